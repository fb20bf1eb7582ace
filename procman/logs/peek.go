// Looking into a FIFO without taking from it.

package logs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errBlind = errors.New("this FIFO cannot be looked into")

// A peeker copies what a FIFO holds through a pipe of its own with tee(2).
//
// What stays in a FIFO silences it: a write into a pipe that is not empty wakes nobody if it blocks half-way (and none at
// all does, Linux 5.5 to 5.13). So an unfinished line stays for partialWait only, then it is taken.
type peeker struct {
	f      *os.File
	conn   syscall.RawConn
	pr, pw int
}

// newPeeker returns nil if f is not in the poller, or there is no pipe to be had.
func newPeeker(f *os.File) *peeker {
	conn, err := f.SyscallConn()
	if err != nil || f.SetReadDeadline(time.Time{}) != nil {
		return nil
	}
	var pipe [2]int
	if unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	return &peeker{f: f, conn: conn, pr: pipe[0], pw: pipe[1]}
}

func (k *peeker) close() {
	unix.Close(k.pr)
	unix.Close(k.pw)
}

// peek waits until b, with held bytes before it, ends a line, and returns how much of b is a copy of what the FIFO holds.
// all: there may be no newline, yet it must be taken. After io.EOF nothing is in the FIFO; after another error what was
// there is in b.
func (k *peeker) peek(b []byte, held int) (n int, all bool, err error) {
	timed := false
	waitErr := k.conn.Read(func(fd uintptr) bool {
		var now int
		now, err = k.tee(int(fd), b)
		switch {
		case err == unix.EAGAIN:
			err = nil
			return false
		case err != nil:
			err = errors.Join(errBlind, err)
			return true
		case now == 0:
			err = io.EOF
			return true
		}
		if n = now; held+n > LineMax || bytes.IndexByte(b[:n], '\n') >= 0 {
			return true
		}
		if all = ended(int(fd)); !all && !timed {
			timed = true
			k.f.SetReadDeadline(time.Now().Add(partialWait))
		}
		return all
	})
	if timed {
		k.f.SetReadDeadline(time.Time{})
	}
	if errors.Is(waitErr, os.ErrDeadlineExceeded) {
		return n, true, nil
	}
	return n, all, errors.Join(waitErr, err)
}

// tee is tee(2), as read(2) would be.
func (k *peeker) tee(fd int, b []byte) (int, error) {
	n, err := retry(func() (int, error) {
		n, err := unix.Tee(fd, k.pw, len(b), unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
	if err != nil {
		return 0, err
	}
	for got := 0; got < n; {
		more, err := retry(func() (int, error) { return unix.Read(k.pr, b[got:n]) })
		if err != nil {
			return 0, errors.Join(errBlind, err)
		}
		got += more
	}
	return n, nil
}

// take takes seen from the FIFO, which holds it first.
func (k *peeker) take(seen []byte) {
	k.conn.Control(func(fd uintptr) {
		for len(seen) > 0 {
			n, err := retry(func() (int, error) { return unix.Read(int(fd), seen) })
			if err != nil || n <= 0 {
				return // the child itself took it: it holds the other end for reading too
			}
			seen = seen[n:]
		}
	})
}

// ended tells whether nobody can write any more.
func ended(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, _ := unix.Poll(fds, 0)
	return n > 0 && fds[0].Revents&unix.POLLHUP != 0
}

func retry(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); err != unix.EINTR {
			return n, err
		}
	}
}
