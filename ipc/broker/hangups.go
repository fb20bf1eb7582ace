package broker

// This file learns of connections that their peer has closed, apart from what they still hold. The runtime's poller tells
// of an edge once, and data and the end of the stream can come in the same one: a reader that has taken less than it had
// room for would have to read again, to be answered EAGAIN, for each message of a calm peer. With this second opinion it
// may park instead.

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hangups is an epoll instance that every peer is in, for EPOLLRDHUP alone (and EPOLLHUP and EPOLLERR, which epoll(7)
// always tells), but those that feeders has: for them, its set is. The runtime's poller watches it in turn.
type hangups struct {
	// Immutable:
	fd      int
	file    *os.File // fd; nil: there is none, and every reader reads to the end
	raw     syscall.RawConn
	feeders *feeders // set by openFeeders

	mu    sync.Mutex
	peers map[int]*peer // by descriptor, while that is open
}

func openHangups() *hangups {
	h := &hangups{peers: map[int]*peer{}}
	var err error
	if h.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return h
	}
	if err = unix.SetNonblock(h.fd, true); err != nil { // or os.NewFile would not hand it to the poller
		unix.Close(h.fd)
		return h
	}
	h.file = os.NewFile(uintptr(h.fd), "hangups")
	h.raw, _ = h.file.SyscallConn() // fails for a closed file only
	return h
}

// run wakes the readers of the peers that hang up, until close.
func (h *hangups) run() {
	if h.file == nil {
		return
	}
	events := make([]unix.EpollEvent, 64)
	h.raw.Read(func(fd uintptr) bool { // returns when it is closed
		for {
			n, err := unix.EpollWait(int(fd), events, 0)
			if n == 0 || err != nil && err != unix.EINTR {
				return false
			}
			for _, e := range events[:max(n, 0)] {
				h.tell(int(e.Fd))
			}
		}
	})
}

// tell may find a newer peer under a descriptor: to that one it does no harm.
func (h *hangups) tell(fd int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if fd == h.feeders.fd {
		h.feeders.next(1)
	} else if p := h.peers[fd]; p != nil {
		p.ending.Store(true)
		p.conn().file.SetReadDeadline(time.Unix(1, 0)) // wakes its reader from where it is parked
	}
}

func (h *hangups) close() {
	if h.file != nil {
		h.file.Close()
	}
}

// watch begins with a peer, before its first read; a peer that cannot be watched is read to the end each time.
func (h *hangups) watch(p *peer) {
	h.mu.Lock()
	h.peers[p.fd] = p
	h.mu.Unlock()
	if h.control(unix.EPOLL_CTL_ADD, p.fd, unix.EPOLLRDHUP|unix.EPOLLET) != nil {
		p.ending.Store(true)
	}
}

// control is epoll_ctl(2).
func (h *hangups) control(op, fd int, events uint32) error {
	if h.file == nil {
		return unix.EBADF
	}
	return unix.EpollCtl(h.fd, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// forget is called before the peer's descriptor is closed; its socket may stay open under another.
func (h *hangups) forget(fd int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.peers, fd)
	h.control(unix.EPOLL_CTL_DEL, fd, 0)
}
