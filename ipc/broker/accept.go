package broker

// This file takes connections in: both listeners, the limit, and what to do when there are no descriptors.

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type listener struct {
	// Immutable:
	b         *Broker
	ln        net.Listener
	file      *os.File // the same socket: net gives no way to accept by hand, and so none to know that all were accepted
	raw       syscall.RawConn
	transport Transport

	busy  atomic.Bool // not parked with an empty queue
	ended atomic.Bool // by Unserve

	// Owned by Serve:
	spare int // a descriptor to give up when there is no other; -1: none
	err   error
}

// Serve accepts connections on ln, a *net.UnixListener or a *net.TCPListener, which it closes. It returns nil after
// Close, else why it cannot serve.
func (b *Broker) Serve(ln net.Listener) error {
	defer ln.Close()
	l, err := b.listen(ln)
	if err != nil {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	defer b.wg.Done()
	defer l.end()
	for {
		if err := l.raw.Read(l.acceptAll); err != nil {
			select {
			case <-b.done:
				return nil
			default:
				if l.ended.Load() {
					return nil
				}
				return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
			}
		}
		l.complain(l.err, "tried again")
		select {
		case <-b.done:
		case <-time.After(retryAfter):
		}
	}
}

// Unserve ends Serve on ln, whose connections stay.
func (b *Broker) Unserve(ln net.Listener) {
	b.mu.Lock()
	var found *listener
	for l := range b.listeners {
		if l.ln == ln {
			found = l
		}
	}
	b.mu.Unlock()
	if found != nil {
		found.ended.Store(true)
		found.close()
	}
}

func (b *Broker) listen(ln net.Listener) (*listener, error) {
	l := &listener{b: b, ln: ln, transport: Unix}
	var err error
	switch ln := ln.(type) {
	case *net.UnixListener:
		l.file, err = ln.File()
	case *net.TCPListener:
		l.transport = TCP
		l.file, err = ln.File()
	default:
		err = errors.New("neither a Unix nor a TCP listener")
	}
	if err != nil {
		return nil, err
	}
	if l.raw, err = l.file.SyscallConn(); err != nil {
		return nil, err
	}
	l.spare = openSpare()
	b.mu.Lock()
	b.wg.Add(1)
	b.listeners[l] = struct{}{}
	closed := b.closed
	if b.hangups == nil && !closed {
		b.hangups = openHangups()
		b.feeders = openFeeders(b.hangups)
		b.wg.Go(b.hangups.run)
		b.wg.Go(func() { b.feeders.run(b.hangups) })
	}
	b.mu.Unlock()
	if closed {
		l.close()
	}
	return l, nil
}

func (l *listener) end() {
	l.close()
	unix.Close(l.spare)
	l.b.mu.Lock()
	delete(l.b.listeners, l)
	l.b.mu.Unlock()
	l.b.step()
}

// close stops the acceptor, and waits until it has left acceptAll: not under b.mu, which that takes.
func (l *listener) close() {
	l.file.Close()
	l.ln.Close()
}

func openSpare() int {
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

// acceptAll empties the queue; false parks until another comes, true: it failed with err.
func (l *listener) acceptAll(fd uintptr) (failed bool) {
	l.busy.Store(true)
	for {
		conn, err := l.accept(int(fd))
		switch err {
		case nil:
			l.b.admit(conn, l.transport)
		case unix.EAGAIN:
			l.busy.Store(false)
			l.b.step()
			return false
		case unix.EINTR, unix.ECONNABORTED:
		case unix.EMFILE, unix.ENFILE:
			if !l.turnAway(int(fd)) {
				l.err = err
				return true
			}
		default:
			l.err = err
			return true
		}
	}
}

func (l *listener) accept(fd int) (int, error) {
	conn, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	return conn, err
}

// turnAway gives up the spare descriptor to accept a connection and close it: its client learns at once, and the queue
// does not stay readable for ever. It fails if there is no spare one or somebody else was quicker.
func (l *listener) turnAway(fd int) bool {
	if l.spare >= 0 {
		unix.Close(l.spare)
	}
	conn, err := l.accept(fd)
	if err == nil {
		l.complain(unix.EMFILE, "connection closed")
		unix.Close(conn)
	}
	l.spare = openSpare()
	return err == nil
}

func (l *listener) complain(err error, next string) {
	l.b.count.noDescriptor.Add(1)
	if kept, ok := l.b.quiet.pass(pairOf("\x00accept", next), nil); ok {
		l.b.log.Error("accept failed", "peer", l.transport, "err", err, "next", next, "kept_back", kept)
	}
}

// peerLimit leaves zhxd what it needs besides to start and watch processes: anybody may connect.
func peerLimit() int {
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) != nil {
		return maxPeers
	}
	return int(min(maxPeers, files.Cur/2))
}

// admit makes a peer of an accepted descriptor, or closes it at the limit.
func (b *Broker) admit(fd int, t Transport) {
	if t == TCP {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // an error would only make it slower
	}
	c := b.identify(fd, t)
	b.count.accepted.Add(1)
	b.mu.Lock()
	limit, u := b.limit, (*user)(nil)
	if len(b.peers) < limit && !b.closed {
		if u = b.enroll(c.UID); u == nil {
			limit /= 2
		}
	}
	switch {
	case u != nil:
		p := newPeer(b, fd, c, u)
		b.peers[p] = struct{}{}
		b.wg.Go(p.run)
	case b.closed:
		unix.Close(fd)
		limit = 0
	default:
		b.count.overLimit.Add(1)
		unix.Close(fd)
	}
	b.mu.Unlock()
	if u == nil && limit > 0 {
		if kept, ok := b.quiet.pass(pairOf("\x00limit", strconv.Itoa(c.UID)), nil); ok {
			b.log.Error("too many connections", "peer", t, "uid", c.UID, "limit", limit, "next", "connection closed", "kept_back", kept)
		}
	}
}

// identify asks the kernel who connected.
func (b *Broker) identify(fd int, t Transport) Cred {
	c := Cred{Transport: t, UID: -1}
	if t == TCP {
		s, ok := b.clientOf(fd)
		c.Addr = s.addr.String()
		if ok && s.inode != 0 { // 0: the client has closed it, and then its uid reads as root's
			c.UID, c.Inode = s.uid, s.inode
		}
	} else if u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
		c.UID, c.PID = int(u.Uid), int(u.Pid)
	}
	return c
}
