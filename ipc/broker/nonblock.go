package broker

// This file is read(2) and write(2) on sockets that never block. The scheduler is not told of these calls: told, it would
// take a thread that the kernel preempts within one (a write often wakes its reader) for a blocked one, and start another
// in its place. Pinned to one processor, that made a round trip a quarter slower.

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func readNow(fd int, b []byte) (int, error)  { return ioNow(unix.SYS_READ, fd, b) }
func writeNow(fd int, b []byte) (int, error) { return ioNow(unix.SYS_WRITE, fd, b) }

// ioNow returns -1 with an errno, never EINTR. b is not empty.
func ioNow(call uintptr, fd int, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}
