package broker

// This file writes to a connection, and decides what becomes of messages that its socket has no room for.
//
//	deliver ──> straight into the socket
//	   │ no room
//	   v                     took nothing for stuckAfter
//	waiting: the sender's  ──────────────────────────────> stuck: messages are dropped and counted,
//	reader parks           <────────────────────────────── the rest of one begun is kept
//	                         the socket takes bytes again
//
//	say, add ──> queue (queue.go) ──> written before anything newer, by whoever holds the lock, else by the finisher
//
// The lock is held while a sender waits: that is the flow control of the others. Only one goroutine at a time may be in
// RawConn.Write of a connection (it keeps others out without their knowing): the sender that waits, or the finisher, which is
// fetched out of it before anybody waits.

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

type outlet struct {
	// Immutable:
	p    *peer
	try  func(fd uintptr)             // write, for RawConn.Control
	wait func(fd uintptr) (over bool) // write, for RawConn.Write

	stuck atomic.Bool // changed under mu
	queue queue       // with its own lock, taken under mu

	mu sync.Mutex
	// mu guards:
	gone    bool          // the peer's reader has ended
	data    []byte        // what write has still to write
	fds     []int         // what goes with its first byte; nil: none
	err     error         // why it stopped; nil: it is all written
	rest    []byte        // of what was begun; less than one message, or what the queue gave
	item    *item         // that rest is of; nil: none
	written int64         // bytes, in all
	asOf    taken         // when it last became stuck
	name    string        // while stuck: the receiver's
	lost    int64         // while stuck: messages dropped
	parked  chan struct{} // while the finisher waits for room: closed by it when it is out of RawConn.Write
}

func (o *outlet) init(p *peer) {
	o.p, o.queue.p = p, p
	o.try = o.write
	o.wait = func(fd uintptr) bool {
		o.write(fd)
		return o.err != unix.EAGAIN
	}
}

// write writes what the socket takes of data without waiting.
func (o *outlet) write(fd uintptr) {
	whole := o.item != nil && o.item.mail != nil && len(o.data) == len(o.item.frame)
	if whole {
		o.queue.mu.Lock()
		defer o.queue.mu.Unlock()
		if o.queue.hand != o.item { // it was recalled
			o.data, o.item, o.err = nil, nil, nil
			return
		}
	}
	for o.err = nil; len(o.data) > 0; {
		n, err := 0, error(nil)
		if o.fds != nil {
			if n, err = sendNow(int(fd), o.data, o.fds); err == nil {
				o.p.written.fds.Add(int64(len(o.fds)))
			}
		} else {
			n, err = writeNow(int(fd), o.data)
		}
		if err != nil {
			o.err = err
			return
		}
		if whole {
			o.queue.hand = nil
		}
		o.fds = nil
		o.data = o.data[n:]
		o.written += int64(n)
		o.p.written.bytes.Add(int64(n))
	}
}

// push writes what the socket takes of b now and returns the rest; err says why there is one.
func (o *outlet) push(b []byte) []byte {
	o.data = b
	if err := o.p.conn().raw.Control(o.try); err != nil {
		o.err = err
	}
	return o.data
}

// flush writes what waits, as far as there is room, and tells if that was all. err says why not.
func (o *outlet) flush() (all bool) {
	for o.err = nil; ; {
		if len(o.rest) > 0 {
			if o.rest = o.push(o.rest); len(o.rest) > 0 {
				return false
			}
		}
		if o.item != nil {
			o.item.written(o.p)
			o.item = nil
		}
		if o.rest, o.item = o.queue.next(o.p); o.rest == nil {
			return true
		}
	}
}

// turn is what a delivery changed, for the log, which is written without the lock.
type turn struct {
	began, ended bool // being stuck
	lost         int64
	name         string // of the receiver
}

// fate is what became of a batch. What is neither written nor in dropped nor left waits nowhere.
type fate struct {
	done    int    // messages written
	dropped []byte // messages not written because the receiver is stuck
	left    []byte // messages not written because the connection is over, the first of them perhaps begun
}

// deliver writes whole messages to the receiver known as name, for the reader of from (nil: none).
func (o *outlet) deliver(m batch, from *peer, name string) (f fate) {
	if !o.mu.TryLock() { // another is writing here, or waits for room
		from.hold()
		o.mu.Lock()
		from.release()
	}
	f, t := o.place(m, from, name)
	o.p.written.messages.Add(int64(f.done))
	o.data, o.fds = nil, nil // they were the sender's
	o.unlock()
	o.report(t)
	return f
}

// place is deliver under the lock.
func (o *outlet) place(m batch, from *peer, name string) (f fate, t turn) {
	left := m.b
	switch {
	case o.gone:
		return fate{left: left}, t
	case o.stuck.Load():
		var alive bool
		if left, alive = o.revive(m); !alive {
			return o.drop(m, len(m.b)-len(left)), t
		}
		t = o.unstick()
	case len(o.rest) > 0 || o.queue.some.Load():
		if !o.flush() && o.err == unix.EAGAIN {
			o.drain(from)
		}
		switch o.err {
		case nil:
		case unix.EAGAIN:
			o.stick(name)
			t.began, t.name = true, name
			return o.drop(m, 0), t
		default:
			return fate{left: left}, t
		}
		fallthrough
	default:
		o.fds = m.fds
		left = o.push(m.b)
	}
	if len(left) > 0 && o.err == unix.EAGAIN {
		from.hold()
		left = o.await(left)
		from.release()
		if o.err == unix.EAGAIN {
			o.stick(name)
			t.began, t.name = true, name
			return o.drop(m, len(m.b)-len(left)), t
		}
	}
	if len(left) == 0 {
		return fate{done: m.n}, t
	}
	done, begun := m.split(len(m.b) - len(left))
	return fate{done: done, left: m.b[begun:]}, t
}

// drain waits until nothing waits any more, or err says why that cannot be.
func (o *outlet) drain(from *peer) {
	from.hold()
	defer from.release()
	for !o.flush() && o.err == unix.EAGAIN {
		if o.rest = o.await(o.rest); len(o.rest) > 0 {
			return
		}
	}
}

// idle tells that nothing waits here, nor anybody. It wants mu.
func (o *outlet) idle() bool {
	return !o.gone && o.parked == nil && len(o.rest) == 0 && !o.queue.some.Load()
}

// taken is how many bytes a receiver has read, if the kernel tells: at least, and at most, since what is on its way through
// the kernel shows on neither side or on both.
type taken struct {
	least, most int64
	known       bool
}

func (o *outlet) taken() (t taken) {
	o.p.control(func(fd uintptr) { // over: not known
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
	o.fetch()
	o.data = b
	slice, last := askAfter, o.asOf
	for {
		c, before, began := o.p.conn(), len(o.data), time.Now()
		c.file.SetWriteDeadline(began.Add(slice)) // an error: Write has it too
		if err := c.raw.Write(o.wait); err == nil {
			return o.data
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			o.err = err
			return o.data
		}
		if left := o.push(o.data); o.err != unix.EAGAIN { // zhxd itself may have slept past the deadline
			return left
		}
		frozen := time.Since(began) >= 2*slice // zhxd did not run, nor perhaps the receiver
		now := o.taken()
		took := len(o.data) < before
		if now.known && last.known {
			took = now.least > last.least || now.most > last.most
		}
		if !took && !frozen && (slice == stuckAfter || last.known) {
			o.asOf = now
			return o.data
		}
		slice, last = stuckAfter, now
	}
}

func (o *outlet) stick(name string) {
	o.stuck.Store(true)
	o.name = name
	o.park()
}

// park has the finisher wait for room.
func (o *outlet) park() {
	o.p.conn().file.SetWriteDeadline(time.Time{})
	parked := make(chan struct{})
	o.parked = parked
	o.p.b.wg.Go(func() { o.finish(parked) })
}

// fetch gets the finisher out of RawConn.Write.
func (o *outlet) fetch() {
	if o.parked != nil {
		o.p.conn().file.SetWriteDeadline(time.Unix(1, 0))
		<-o.parked
		o.parked = nil
	}
}

// drop gives up what a stuck receiver was not sent, of which it got the first written bytes: of a message begun the rest is
// kept, whole ones are lost and counted.
func (o *outlet) drop(m batch, written int) fate {
	done, begun := m.split(written)
	if begun < written { // nothing waits before it: it was begun
		end := begun + m.size(begun)
		o.rest = append([]byte(nil), m.b[written:end]...)
		begun, done = end, done+1
	}
	o.lost += int64(m.n - done)
	return fate{done: done, dropped: m.b[begun:]}
}

// revive tries, without waiting, to go on where a stuck receiver stopped: first what waits, then m, of which it returns the
// rest. The receiver is alive if its socket took bytes and, where the kernel tells, it has read some.
func (o *outlet) revive(m batch) (left []byte, alive bool) {
	before := o.written
	if !o.flush() {
		return m.b, false
	}
	o.fds = m.fds
	if left = o.push(m.b); o.written == before {
		return left, false
	}
	now := o.taken()
	return left, !now.known || !o.asOf.known || now.least > o.asOf.least
}

// unstick ends being stuck, and fetches the finisher out of RawConn.Write.
func (o *outlet) unstick() turn {
	t := turn{ended: true, lost: o.lost, name: o.name}
	o.stuck.Store(false)
	o.lost, o.name = 0, ""
	o.fetch()
	return t
}

// finish waits for room also when no message comes that would try it, and writes what waits.
func (o *outlet) finish(parked chan struct{}) {
	for {
		over := o.roomy()
		close(parked) // before the lock: who holds it may be waiting for this
		o.mu.Lock()
		if o.parked != parked { // fetched
			o.unlock() // something may have been queued this moment
			return
		}
		o.parked = nil
		if over || o.gone { // the reader will tell of the connection's end
			o.mu.Unlock()
			return
		}
		if o.flush() || o.err != unix.EAGAIN {
			var t turn
			if o.stuck.Load() && o.err == nil {
				t = o.unstick()
			}
			o.unlock()
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
	err := o.p.conn().raw.Write(func(fd uintptr) bool {
		fds[0].Fd = int32(fd)
		n, err := unix.Poll(fds, 0)
		for err == unix.EINTR {
			n, err = unix.Poll(fds, 0)
		}
		return n != 0
	})
	return err != nil || fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}

// kick has what was queued written by somebody: who holds the lock, or this goroutine.
func (o *outlet) kick() {
	if o.queue.some.Load() && o.mu.TryLock() {
		o.unlock()
	}
}

// unlock lets go of the lock once nothing is queued that has nobody to write it.
func (o *outlet) unlock() {
	for {
		over := o.gone || o.parked != nil
		if !over && (len(o.rest) > 0 || o.queue.some.Load()) && !o.flush() {
			if over = true; o.err == unix.EAGAIN {
				o.park()
			}
		}
		o.mu.Unlock()
		if over || !o.queue.some.Load() || !o.mu.TryLock() {
			return
		}
	}
}

// close refuses all further messages. The peer receives under no name any more.
func (o *outlet) close() {
	o.mu.Lock()
	o.gone = true
	o.fetch()
	torn := o.item
	if torn != nil && (torn.mail == nil || len(o.rest) == len(torn.frame)) { // it was recalled
		torn = nil
	}
	o.rest, o.item = nil, nil
	var t turn
	if o.stuck.Load() {
		t = o.unstick()
	}
	o.mu.Unlock()
	if torn != nil {
		torn.mail.torn(o.p)
	}
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
	if !o.p.user.loud() {
		return
	}
	o.p.b.log.Log(context.Background(), level, text, o.p.attrs(append(more, "target", t.name)...)...)
}
