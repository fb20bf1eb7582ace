package broker

// This file is where messages wait for their receiver: while its client restarts, and those to be handled one at a time,
// behind the one that the receiver has.
//
//	no receiver, but Standing.Expects ─put─> waiting ──a connection registers the name: admit──> its queue ─> socket
//	level handled ────────────────────put─> waiting ──advance, one at a time──> flight ─> queue ─> socket ─ACK─> done
//	                                           ^                                  │
//	                                           └── the receiver ends: recall, the one in flight first, marked Repeat
//
// Every mail ends once: written, handled, expired or refused; its sender is told, and the account counts it.

import (
	"slices"
	"sync"
	"time"

	"zhx/ipc/wire"
)

// mail is one message, or request, that waits.
type mail struct {
	// Immutable:
	box         *box
	session, id uint64 // 0: of protocol 1
	kind, level uint8
	deadline    time.Time // by the frame's own time; zero: never
	frame       []byte    // its own copy, in the form of
	packet      bool      // protocol 1, else 2
	user        *user     // whose share it takes; nil: nobody's

	// box.mu guards until it is in a queue; then it is immutable:
	held    bool      // counted as such
	expires time.Time // zero: never
}

func (m *mail) handled() bool { return m.level == wire.LevelHandled && m.kind == wire.TypeMessage }

type box struct {
	// Immutable:
	b    *Broker
	name string

	mu sync.Mutex // taken under names.mu
	// mu guards:
	to      *claim // who receives; nil: nobody
	waiting []*mail
	bytes   int       // of waiting
	flight  *mail     // to be handled, given to the receiver and not answered
	again   time.Time // when to advance again without a cause; zero: never
	timer   *time.Timer
}

// put takes a mail in behind the others; code: it is refused for that. names.mu is held, for reading at least. Whoever calls it
// kicks the receiver.
func (x *box) put(m *mail, hold Hold) (code uint8) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.room(m, hold) {
		return wire.ErrFull
	}
	m.box = x
	if x.to == nil {
		x.holds(m, hold)
	}
	x.take(m, len(x.waiting))
	if x.to != nil {
		x.advance()
	} else {
		x.judge(x.b.expected(x.name)) // the receiver may have gone since it was asked for
	}
	x.wake()
	return 0
}

// room tells whether m may wait: of a user that has a share, half of what may. It wants mu.
func (x *box) room(m *mail, hold Hold) bool {
	n, bytes := len(x.waiting), x.bytes
	fits := func(part int) bool {
		return n < (hold.Messages+part-1)/part && (n == 0 || bytes+len(m.frame) <= hold.Bytes/part)
	}
	if !fits(1) || !x.b.fits(m.user, len(m.frame)) {
		return false
	}
	if m.user == nil || fits(2) {
		return true
	}
	n, bytes = 0, 0
	for _, w := range x.waiting {
		if m.user.is(w.user) {
			n, bytes = n+1, bytes+len(w.frame)
		}
	}
	return fits(2)
}

// take and give account for what waits. They want mu, as all that follows.
func (x *box) take(m *mail, at int) {
	x.waiting = slices.Insert(x.waiting, at, m)
	x.bytes += len(m.frame)
	x.b.weigh(m.user, len(m.frame))
}

func (x *box) give(i int) *mail {
	m := x.waiting[i]
	x.waiting = slices.Delete(x.waiting, i, i+1)
	x.bytes -= len(m.frame)
	x.b.weigh(m.user, -len(m.frame))
	return m
}

// holds begins a mail's time of waiting for a receiver that is not there.
func (x *box) holds(m *mail, hold Hold) {
	if end := time.Now().Add(hold.For); m.expires.IsZero() || end.Before(m.expires) {
		m.expires = end
	}
	if !m.held {
		m.held = true
		x.b.count.held.Add(1)
		if a := x.b.gate.Account(x.name); a != nil {
			a.Held.Add(1)
		}
	}
}

// admit gives a new receiver all that waits, up to the second that is to be handled. What still waits then has waited for
// its turn, not for a receiver: only its own time counts. names.mu is held for writing: nobody can send to the receiver before that.
func (x *box) admit(c *claim) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.to = c
	for _, m := range x.waiting {
		m.expires = m.deadline
	}
	x.advance()
	x.wake()
}

// advance queues what may go to the receiver now.
func (x *box) advance() {
	var ready []*item
	x.again = time.Time{}
	for i := 0; i < len(x.waiting); {
		m := x.waiting[i]
		if m.handled() && x.to.peer.two() {
			until := time.Time{}
			if x.flight == nil {
				until = x.b.sessions.waits(m.session)
			}
			if x.flight != nil || !until.IsZero() {
				if !until.IsZero() && (x.again.IsZero() || until.Before(x.again)) {
					x.again = until
				}
				i++
				continue
			}
			x.flight = m
		}
		x.give(i)
		message, code := m.as(x.to.peer.two())
		if code != 0 {
			x.refuse(m, code, 0)
			if x.flight == m {
				x.flight = nil
			}
			continue
		}
		ready = append(ready, &item{frame: message, mail: m})
	}
	if len(ready) > 0 {
		x.to.peer.out.queue.add(ready)
	}
}

// as gives the mail the form of the receiver's protocol. The mail keeps its own: the next receiver may speak the other.
func (m *mail) as(two bool) (message []byte, code uint8) {
	switch {
	case two == !m.packet:
		return m.frame, 0
	case two:
		return appendFrames(nil, m.frame), 0
	case m.kind == wire.TypeRequest:
		return nil, wire.ErrUnanswered
	}
	packet, ok := appendPacket(nil, m.frame)
	if !ok {
		return nil, wire.ErrTooBig
	}
	return packet, 0
}

// recall takes back what the receiver c was not given, and what it may not have handled. names.mu is held for writing. next:
// another receiver takes its place at once.
func (x *box) recall(c *claim, next bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.to != c {
		return
	}
	x.to = nil
	back := c.peer.out.queue.recall(func(m *mail) bool { return m.box == x })
	if f := x.flight; f != nil && !slices.Contains(back, f) { // its writing was begun
		again := *f // it may be being written
		again.frame = slices.Clone(f.frame)
		again.frame[wire.OffsetFlags] |= wire.Repeat
		again.held = false // that was released, or will be
		back = slices.Insert(back, 0, &again)
	}
	x.flight = nil
	for i, m := range back {
		x.take(m, i)
	}
	if !next {
		standing := x.b.expected(x.name)
		for _, m := range x.waiting {
			x.holds(m, standing.Hold)
		}
		x.judge(standing)
	}
	x.wake()
}

// empty tells whether the box may be forgotten.
func (x *box) empty() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.waiting) == 0 && x.to == nil
}

// changed looks again at what waits, when the standing of the name may be another.
func (x *box) changed(s Standing) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.judge(s)
	x.wake()
}

// cancel takes a request away of which nothing is written; false: it does not wait here.
func (x *box) cancel(session, id uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	match := func(m *mail) bool {
		return m.box == x && m.session == session && m.id == id && m.kind == wire.TypeRequest
	}
	var back []*mail
	if i := slices.IndexFunc(x.waiting, match); i >= 0 {
		back = append(back, x.give(i))
	} else if x.to != nil { // it may wait for room
		back = x.to.peer.out.queue.recall(match)
	}
	for _, m := range back {
		x.refuse(m, wire.ErrExpired, 0)
	}
	return len(back) > 0
}

// judge refuses what waits where it waits in vain, now that nobody receives.
func (x *box) judge(s Standing) {
	code := s.refusal()
	switch {
	case x.to != nil || s.waits():
		return
	case code == wire.ErrNoName:
		code = wire.ErrGone // there was somebody
	}
	for len(x.waiting) > 0 {
		x.refuse(x.give(0), code, s.Back)
	}
}

// refuse ends a mail, and tells its sender.
func (x *box) refuse(m *mail, code uint8, back time.Duration) {
	if m.held {
		x.b.count.expired.Add(1)
		if a := x.b.gate.Account(x.name); a != nil {
			a.Expired.Add(1)
		}
	} else {
		x.b.undelivered(x.name, 1)
	}
	x.b.failed(m.session, m.id, code, x.name, back)
}

// torn is called when the receiver p has ended before all of a mail was written, but a part. No lock is held.
func (m *mail) torn(p *peer) {
	p.paid(m.session, m.id)
	if m.handled() && p.two() { // recall has taken it back as another
		m.release()
		return
	}
	m.box.mu.Lock()
	defer m.box.mu.Unlock()
	m.box.refuse(m, wire.ErrGone, 0)
}

// wake sets the timer to the first that expires, or may go on.
func (x *box) wake() {
	first := x.again
	for _, m := range x.waiting {
		if !m.expires.IsZero() && (first.IsZero() || m.expires.Before(first)) {
			first = m.expires
		}
	}
	switch {
	case first.IsZero():
		if x.timer != nil {
			x.timer.Stop()
		}
	case x.timer == nil:
		x.timer = time.AfterFunc(time.Until(first), x.expire)
	default:
		x.timer.Reset(time.Until(first))
	}
}

// expire refuses what has waited long enough. What waits behind one in flight for a receiver that is there, only by its own time.
func (x *box) expire() {
	x.mu.Lock()
	now := time.Now()
	for i := 0; i < len(x.waiting); {
		if m := x.waiting[i]; !m.expires.IsZero() && !now.Before(m.expires) {
			code := uint8(wire.ErrExpired)
			if x.to == nil && !x.b.gate.Standing(x.name).Managed { // its grace is over
				code = wire.ErrNoName
			}
			x.refuse(x.give(i), code, 0)
		} else {
			i++
		}
	}
	x.mu.Unlock()
	x.resume()
	x.b.names.forget(x)
}

// resume lets what may go on, after its sender came back or has been away for long.
func (x *box) resume() {
	x.mu.Lock()
	to := x.to
	if to != nil {
		x.advance()
	}
	x.wake()
	x.mu.Unlock()
	if to != nil {
		to.peer.out.kick()
	}
}

// done ends the flight that a receiver has handled, and lets the next one go; false: it is not in flight here.
func (x *box) done(c *claim, session, id uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if f := x.flight; x.to != c || f == nil || f.session != session || f.id != id {
		return false
	}
	x.flight = nil
	x.advance()
	x.wake()
	return true
}

// begin is called just before the mail is written to p.
func (m *mail) begin(p *peer) {
	if m.kind == wire.TypeRequest {
		p.owe(m.session, m.id, m.deadline, m.user)
	}
}

// written is called under the outlet's lock.
func (m *mail) written(p *peer) {
	b, a := m.box.b, m.box.b.gate.Account(m.box.name)
	b.count.forwarded.Add(1)
	if a != nil {
		a.Received.Add(1)
		a.ReceivedBytes.Add(int64(len(m.frame)))
	}
	m.release()
	if m.level == wire.LevelWritten || m.level == wire.LevelHandled && !p.two() {
		b.acknowledge(m.session, m.id, wire.LevelWritten)
	}
}

// release counts one that was held and waits no longer.
func (m *mail) release() {
	if !m.held {
		return
	}
	m.box.b.count.released.Add(1)
	if a := m.box.b.gate.Account(m.box.name); a != nil {
		a.Released.Add(1)
	}
}
