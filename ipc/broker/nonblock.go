package broker

// This file is read(2), write(2), and with descriptors recvmsg(2) and sendmsg(2), on sockets that never block. The scheduler is not told of these calls: told, it would
// take a thread that the kernel preempts within one (a write often wakes its reader) for a blocked one, and start another
// in its place. Pinned to one processor, that made a round trip a quarter slower.

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

func readNow(fd int, b []byte) (int, error)  { return ioNow(unix.SYS_READ, fd, b) }
func writeNow(fd int, b []byte) (int, error) { return ioNow(unix.SYS_WRITE, fd, b) }

// sendNow sends b with descriptors, at most wire.FDsMax, which go with its first byte.
func sendNow(fd int, b []byte, fds []int) (int, error) {
	var oob struct {
		unix.Cmsghdr
		fds [wire.FDsMax]int32
	}
	oob.Level, oob.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	oob.SetLen(unix.CmsgLen(4 * len(fds)))
	for i, fd := range fds {
		oob.fds[i] = int32(fd)
	}
	return msgNow(unix.SYS_SENDMSG, fd, b, unsafe.Pointer(&oob), unix.CmsgSpace(4*len(fds)), unix.MSG_NOSIGNAL)
}

// maxRights is how many descriptors the kernel passes at a time (unix(7)).
const maxRights = 253

// rights is room for what recvmsg(2) says of descriptors.
type rights struct {
	unix.Cmsghdr
	fds [maxRights + 1]int32
}

// rightsLent lends it to readers, as buffers does theirs.
var rightsLent = sync.Pool{New: func() any { return new(rights) }}

// recvNow is readNow, and takes the descriptors that came along. They come with the last of the bytes, never in front of bytes
// of a later message.
func recvNow(fd int, b []byte, oob *rights) (n int, fds []int32, err error) {
	oob.SetLen(0)
	n, err = msgNow(unix.SYS_RECVMSG, fd, b, unsafe.Pointer(oob), int(unsafe.Sizeof(*oob)), unix.MSG_CMSG_CLOEXEC)
	if oob.Len > 0 && oob.Level == unix.SOL_SOCKET && oob.Type == unix.SCM_RIGHTS {
		fds = oob.fds[:(int(oob.Len)-unix.CmsgLen(0))/4]
	}
	return n, fds, err
}

func msgNow(call uintptr, fd int, b []byte, oob unsafe.Pointer, room int, flags uintptr) (int, error) {
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	m := unix.Msghdr{Iov: &iov, Control: (*byte)(oob)}
	m.SetIovlen(1)
	m.SetControllen(room)
	return callNow(call, fd, unsafe.Pointer(&m), flags|unix.MSG_DONTWAIT)
}

// ioNow is for b that is not empty.
func ioNow(call uintptr, fd int, b []byte) (int, error) {
	return callNow(call, fd, unsafe.Pointer(&b[0]), uintptr(len(b)))
}

// epollNow is epoll_wait(2) without waiting.
func epollNow(fd int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// callNow returns -1 with an errno, never EINTR.
func callNow(call uintptr, fd int, p unsafe.Pointer, last uintptr) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(p), last)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}
