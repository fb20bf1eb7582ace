package broker

// This file writes to a receiver, and decides what becomes of messages that its socket has no room for.
//
//	deliver ──> straight into the socket
//	   │ no room
//	   v                     took nothing for stuckAfter
//	waiting: the sender's  ──────────────────────────────> stuck: messages are dropped and counted,
//	reader parks           <────────────────────────────── the rest of a packet begun is kept
//	                         the socket takes bytes again
//
// The lock is held while a sender waits: that is the flow control of the others. Only one goroutine at a time may be in
// RawConn.Write of a connection (it keeps others out without their knowing): the sender that waits, or the finisher of a
// stuck receiver, which is fetched out of it before anybody waits again.

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

type outlet struct {
	// Immutable:
	p    *peer
	try  func(fd uintptr)             // write, for RawConn.Control
	wait func(fd uintptr) (over bool) // write, for RawConn.Write

	stuck atomic.Bool // changed under mu

	mu sync.Mutex
	// mu guards:
	gone    bool          // the peer's reader has ended
	data    []byte        // what write has still to write
	err     error         // why it stopped; nil: it is all written
	rest    []byte        // while stuck: of a packet begun, less than one
	written int64         // bytes, in all
	asOf    taken         // when it last became stuck
	name    string        // while stuck: the receiver's
	lost    int64         // while stuck: packets dropped
	parked  chan struct{} // while stuck: closed by the finisher when it is out of RawConn.Write
}

func (o *outlet) init(p *peer) {
	o.p = p
	o.try = o.write
	o.wait = func(fd uintptr) bool {
		o.write(fd)
		return o.err != unix.EAGAIN
	}
}

// write writes what the socket takes of data without waiting.
func (o *outlet) write(fd uintptr) {
	for o.err = nil; len(o.data) > 0; {
		n, err := writeNow(int(fd), o.data)
		if err != nil {
			o.err = err
			return
		}
		o.data = o.data[n:]
		o.written += int64(n)
	}
}

// push writes what the socket takes of b now and returns the rest; err says why there is one.
func (o *outlet) push(b []byte) []byte {
	o.data = b
	if err := o.p.raw.Control(o.try); err != nil {
		o.err = err
	}
	return o.data
}

// turn is what a delivery changed, for the log, which is written without the lock.
type turn struct {
	began, ended bool // being stuck
	lost         int64
	name         string // of the receiver
}

// deliver writes whole packets to the receiver known as name, for the reader of from (nil: none). It returns those that
// it did not write because the connection is over, the first of them perhaps begun, and how many it dropped because the
// receiver is stuck.
func (o *outlet) deliver(packets []byte, from *peer, name string) (left []byte, dropped int) {
	if !o.mu.TryLock() { // another is writing here, or waits for room
		from.hold()
		o.mu.Lock()
		from.release()
	}
	left, dropped, t := o.place(packets, from, name)
	o.data = nil // it was the sender's buffer
	o.mu.Unlock()
	o.report(t)
	return left, dropped
}

// place is deliver under the lock.
func (o *outlet) place(packets []byte, from *peer, name string) (left []byte, dropped int, t turn) {
	switch {
	case o.gone:
		return packets, 0, t
	case o.stuck.Load():
		var alive bool
		if left, alive = o.revive(packets); !alive {
			return nil, o.drop(left), t
		}
		t = o.unstick()
	default:
		left = o.push(packets)
	}
	if len(left) > 0 && o.err == unix.EAGAIN {
		from.hold()
		left = o.await(left)
		from.release()
		if o.err == unix.EAGAIN {
			o.stick(name)
			t.began, t.name = true, name
			return nil, o.drop(left), t
		}
	}
	whole := (len(left) + wire.PacketSize - 1) / wire.PacketSize * wire.PacketSize
	return packets[len(packets)-whole:], 0, t
}

// taken is how many bytes a receiver has read, if the kernel tells: at least, and at most, since what is on its way through
// the kernel shows on neither side or on both.
type taken struct {
	least, most int64
	known       bool
}

func (o *outlet) taken() (t taken) {
	o.p.raw.Control(func(fd uintptr) { // an error: not known
		var most, least int64
		most, least, t.known = o.p.b.unread(int(fd), o.p.cred.Transport)
		t.least, t.most = o.written-most, o.written-least
	})
	return t
}

// await waits until b is written, and returns the rest with err if the connection ends, or with EAGAIN if the receiver
// is stuck. Room comes in large steps (a Unix socket tells of it when three quarters are free, and frees a buffer when it
// is wholly read), so a receiver that only reads slowly is told by what it has read. TCP finds room by compacting, too:
// a receiver that has read nothing since it was last stuck is so again at once.
func (o *outlet) await(b []byte) []byte {
	o.data = b
	slice, last := askAfter, o.asOf
	for {
		before := len(o.data)
		o.p.file.SetWriteDeadline(time.Now().Add(slice)) // an error: Write has it too
		if err := o.p.raw.Write(o.wait); err == nil {
			return o.data
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			o.err = err
			return o.data
		}
		if left := o.push(o.data); o.err != unix.EAGAIN { // zhxd itself may have slept past the deadline
			return left
		}
		now := o.taken()
		took := len(o.data) < before
		if now.known && last.known {
			took = now.least > last.least || now.most > last.most
		}
		if !took && (slice == stuckAfter || last.known) {
			o.asOf = now
			return o.data
		}
		slice, last = stuckAfter, now
	}
}

func (o *outlet) stick(name string) {
	o.stuck.Store(true)
	o.name = name
	o.p.file.SetWriteDeadline(time.Time{})
	parked := make(chan struct{})
	o.parked = parked
	o.p.b.wg.Go(func() { o.finish(parked) })
}

// drop gives up what a stuck receiver was not sent: of a packet begun the rest is kept, whole ones are lost and counted.
func (o *outlet) drop(left []byte) (dropped int) {
	o.rest = append(o.rest, left[:len(left)%wire.PacketSize]...)
	dropped = len(left) / wire.PacketSize
	o.lost += int64(dropped)
	return dropped
}

// revive tries, without waiting, to go on where a stuck receiver stopped: first the packet begun, then b, of which it
// returns the rest. The receiver is alive if its socket took bytes and, where the kernel tells, it has read some.
func (o *outlet) revive(b []byte) (left []byte, alive bool) {
	before := o.written
	if o.rest = o.push(o.rest); len(o.rest) > 0 {
		return b, false
	}
	if left = o.push(b); o.written == before {
		return left, false
	}
	now := o.taken()
	return left, !now.known || !o.asOf.known || now.least > o.asOf.least
}

// unstick ends being stuck, and fetches the finisher out of RawConn.Write.
func (o *outlet) unstick() turn {
	t := turn{ended: true, lost: o.lost, name: o.name}
	o.stuck.Store(false)
	o.rest, o.lost, o.name = nil, 0, ""
	o.p.file.SetWriteDeadline(time.Unix(1, 0))
	<-o.parked
	return t
}

// finish waits for a stuck receiver's socket to take bytes, also when no message comes that would try it, and finishes
// the packet begun.
func (o *outlet) finish(parked chan struct{}) {
	for {
		over := o.roomy()
		close(parked) // before the lock: who holds it may be waiting for this
		o.mu.Lock()
		if o.parked != parked || !o.stuck.Load() || over { // fetched; or the reader will tell of the connection's end
			o.mu.Unlock()
			return
		}
		if o.rest = o.push(o.rest); len(o.rest) == 0 {
			t := o.unstick()
			o.mu.Unlock()
			o.report(t)
			return
		}
		parked = make(chan struct{})
		o.parked = parked
		o.mu.Unlock()
	}
}

// roomy waits for the socket to be writable, and tells if the connection is over. It only asks, since what may be written
// is known under the lock alone.
func (o *outlet) roomy() (over bool) {
	fds := []unix.PollFd{{Events: unix.POLLOUT}}
	err := o.p.raw.Write(func(fd uintptr) bool {
		fds[0].Fd = int32(fd)
		n, err := unix.Poll(fds, 0)
		for err == unix.EINTR {
			n, err = unix.Poll(fds, 0)
		}
		return n != 0
	})
	return err != nil || fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}

// close refuses all further messages.
func (o *outlet) close() {
	o.mu.Lock()
	o.gone = true
	var t turn
	if o.stuck.Load() {
		t = o.unstick()
	}
	o.mu.Unlock()
	if t.ended {
		o.log(slog.LevelInfo, "stuck receiver closed", t, "dropped", t.lost)
	}
}

func (o *outlet) report(t turn) {
	if t.ended {
		o.log(slog.LevelInfo, "receiver takes messages again", t, "dropped", t.lost)
	}
	if t.began {
		o.p.b.count.stuck.Add(1)
		o.log(slog.LevelWarn, "receiver stuck", t, "next", "messages to it are dropped and counted until it reads")
	}
}

func (o *outlet) log(level slog.Level, text string, t turn, more ...any) {
	o.p.b.log.Log(context.Background(), level, text, o.p.attrs(append(more, "target", t.name)...)...)
}
