// What a child writes into: a FIFO that outlives us, or a pseudo-terminal.

package proc

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// MakeFIFO makes a FIFO at path, mode 0600 whatever the umask, owned by uid and gid, and opens both ends. read is ours: in
// the poller, it gives what is there and io.EOF when nobody holds the other end any more. write is the child's, open for
// reading and writing: while the child lives it can write, whether anybody reads or not, and nothing it wrote is lost. It
// is an error if path exists. The caller closes write after Start.
func MakeFIFO(path string, uid, gid int) (read, write *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, fmt.Errorf("make FIFO %s: %w", path, err)
	}
	r, w := -1, -1
	var st unix.Stat_t
	if err = unix.Stat(path, &st); err == nil && st.Mode&0o777 != 0o600 { // the umask has taken of it; a write to the disk is saved else
		err = unix.Chmod(path, 0o600)
	}
	if err == nil {
		r, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		w, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err == nil && (uid != os.Geteuid() || gid != os.Getegid()) {
		err = unix.Fchown(r, uid, gid)
	}
	read, write = os.NewFile(uintptr(r), path), os.NewFile(uintptr(w), path) // nil without a descriptor
	if err != nil {
		read.Close()
		write.Close()
		os.Remove(path)
		return nil, nil, fmt.Errorf("open FIFO %s for uid %d, gid %d: %w", path, uid, gid, err)
	}
	unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, fifoSize)
	return read, write, nil
}

// OpenFIFO opens the read end of a FIFO that MakeFIFO has made, perhaps in an earlier zhxd: read as MakeFIFO gives it. What was
// written since somebody read last is there.
func OpenFIFO(path string) (read *os.File, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open FIFO %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, fmt.Errorf("open FIFO %s: it is none", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// FIFOHeld reports whether somebody has the FIFO open for reading: its child does as long as it, or anybody who inherited
// it, lives. Our own read end counts: to be asked before it is opened or after it is closed. A FIFO that is not there is
// not held.
func FIFOHeld(path string) (bool, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(fd)
		return true, nil
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("ask who holds FIFO %s: %w", path, err)
}

// OpenPTY makes a pseudo-terminal that passes lines as they were written and echoes nothing. master is in the poller; its Read
// fails with EIO once nobody has the slave open. slave is for Command.TTY; a child of another user that opens it again by its
// name needs slave.Chown first. The caller closes slave after Start.
func OpenPTY() (master, slave *os.File, err error) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a pseudo-terminal: /dev/ptmx: %w", err)
	}
	master = os.NewFile(uintptr(m), "/dev/ptmx")
	n, err := unix.IoctlGetUint32(m, unix.TIOCGPTN)
	path := "/dev/pts/" + strconv.Itoa(int(n))
	if err == nil {
		err = unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0)
	}
	s := -1
	if err == nil {
		s, err = unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		var mode *unix.Termios
		if mode, err = unix.IoctlGetTermios(s, unix.TCGETS); err == nil {
			mode.Oflag &^= unix.OPOST
			mode.Lflag &^= unix.ECHO
			err = unix.IoctlSetTermios(s, unix.TCSETS, mode)
		}
	}
	slave = os.NewFile(uintptr(s), path) // nil without a descriptor
	if err != nil {
		master.Close()
		slave.Close()
		return nil, nil, fmt.Errorf("open a pseudo-terminal: %s: %w", path, err)
	}
	return master, slave, nil
}
