package broker

// This file is a connection of protocol 2: what each of its frames asks for. ipc/PROTOCOL.md is what it keeps to.

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// two is what a connection of protocol 2 has besides; all but owed is its reader's.
type two struct {
	frames
	p     *peer
	party *party  // nil: it has not said HELLO
	fds   []int   // that have come and belong to frames that have not
	takes bool    // descriptors
	oob   *rights // while the reader has something to read and takes descriptors

	mu   sync.Mutex
	owed map[call]due // requests that the peer has and has not answered
}

// call is a request.
type call struct{ session, id uint64 }

type due struct {
	end time.Time // zero: never
	by  *user     // whose share it takes; nil: nobody's
}

var (
	errHello   = errors.New("no HELLO")
	errSlow    = fmt.Errorf("a frame that takes over %s", partialMax)
	errFDs     = errors.New("descriptors that belong to no frame, or too many at once")
	errVersion = errors.New("a version that zhx does not speak")
)

// choose finds out which protocol a connection speaks. The bytes that tell are those of its first packet, or the preamble.
func (p *peer) choose() error {
	var b [len(wire.Preamble)]byte
	have := copy(b[:], p.torn)
	n, err := p.read(b[have:])
	if n > 0 {
		have += n
	}
	p.torn = append(p.torn[:0], b[:have]...)
	switch {
	case have == 0:
	case b[0] != wire.Preamble[0]:
		if wrong := wire.Check(p.torn); wrong != nil {
			return wrong
		}
		p.chosen = true
		return nil
	case !strings.HasPrefix(wire.Preamble[:6], string(b[:min(have, 6)])):
		return fmt.Errorf("%w: %q", wire.ErrFrame, p.torn)
	case have == len(b):
		if b[6] < wire.Version {
			return fmt.Errorf("%w: %d", errVersion, b[6])
		}
		p.torn, p.chosen = nil, true
		p.v2.Store(&two{p: p})
		return nil
	}
	if err == nil && n == 0 {
		return unix.ECONNRESET // it ended; what is torn is counted
	}
	return err
}

// two tells whether the connection speaks protocol 2.
func (p *peer) two() bool { return p.v2.Load() != nil }

// clock limits how long the beginning, or a frame, may take, from when its first part is all that was there.
func (p *peer) clock(begun bool) {
	switch {
	case begun && p.since.IsZero():
		p.since = time.Now()
		p.conn().file.SetReadDeadline(p.since.Add(partialMax))
	case !begun && !p.since.IsZero():
		p.since = time.Time{}
		p.conn().file.SetReadDeadline(time.Time{})
	default:
		return
	}
	if p.ending.Load() { // hangups may have set it in between
		p.conn().file.SetReadDeadline(time.Unix(1, 0))
	}
}

func (p *peer) late() bool { return !p.since.IsZero() && time.Since(p.since) >= partialMax }

func (v *two) limit() int { return v.p.b.maxBody + wire.FrameHeader + 2*255 }

// room accounts for memory of frames begun.
func (v *two) room(bytes int) bool {
	b, u := v.p.b, v.p.user
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes > 0 && b.partial+bytes > partialTotal || !u.take(&u.partial, int64(bytes), partialTotal) {
		return false
	}
	b.partial += bytes
	return true
}

func (v *two) refused(header []byte) {
	v.p.closeAll(v.take(header))
	code := uint8(wire.ErrTooBig)
	if size, _ := wire.FrameSize(header); size <= v.limit() {
		code = wire.ErrFull
	}
	v.p.b.count.refused.Add(1)
	if v.party != nil {
		v.p.say(errorFrame(v.party.id, wire.FrameID(header), code, "", 0, ""))
	}
}

// read is peer.read where descriptors may come.
func (v *two) read(b []byte) (int, error) {
	n, fds, err := recvNow(v.p.fd, b, v.oob)
	v.p.sent.bytes.Add(int64(max(n, 0)))
	if len(fds) > 0 {
		v.p.sent.fds.Add(int64(len(fds)))
		all := v.p.b.transit.Add(int64(len(fds)))
		if v.p.user.fds.Add(int64(len(fds))) > v.p.b.maxTransit/2 && !v.p.user.all || all > v.p.b.maxTransit {
			err = errFDs
		}
	}
	for _, fd := range fds {
		v.fds = append(v.fds, int(fd))
	}
	if len(v.fds) > maxFDs || err == errFDs {
		return n, errFDs
	}
	if err == nil && 0 < n && n < len(b) && len(fds) == 0 && !v.p.ending.Load() { // with descriptors the kernel stops short
		err = unix.EAGAIN
	}
	return n, err
}

// borrow and giveBack are around reading.
func (v *two) borrow() {
	if v != nil && v.takes {
		v.oob = rightsLent.Get().(*rights)
	}
}

func (v *two) giveBack() {
	if v != nil && v.oob != nil {
		rightsLent.Put(v.oob)
		v.oob = nil
	}
}

// take gives the descriptors that belong to a frame.
func (v *two) take(frame []byte) []int {
	n := min(int(frame[wire.OffsetFDs]), len(v.fds))
	if n == 0 {
		return nil
	}
	fds := v.fds[:n:n]
	v.fds = v.fds[n:]
	return fds
}

func (p *peer) closeAll(fds []int) {
	if len(fds) == 0 { // most frames: the counters are everybody's
		return
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	p.b.transit.Add(-int64(len(fds)))
	p.user.fds.Add(-int64(len(fds)))
}

// end is called when the reader has ended.
func (v *two) end() {
	p, b := v.p, v.p.b
	p.closeAll(v.fds)
	v.whole(v)
	b.topics.unsubscribe(p, "")
	b.unwatch(p, "")
	v.mu.Lock()
	owed := v.owed
	v.owed = nil
	v.mu.Unlock()
	for c := range owed {
		b.failed(c.session, c.id, wire.ErrGone, "", 0)
	}
	if v.party != nil {
		b.sessions.leave(v.party, p)
	}
	p.out.queue.clear()
}

// owe notes that p was given a request. Beyond maxOwed, or by's half of them, those go whose deadline is over; false: there are none.
func (p *peer) owe(session, id uint64, deadline time.Time, by *user) bool {
	v := p.v2.Load()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.owed) >= maxOwed/2 && by != nil || len(v.owed) >= maxOwed {
		now, his := time.Now(), 0
		for c, d := range v.owed {
			if !d.end.IsZero() && d.end.Before(now) {
				delete(v.owed, c)
			} else if by.is(d.by) {
				his++
			}
		}
		if len(v.owed) >= maxOwed || his >= maxOwed/2 {
			return false
		}
	}
	if v.owed == nil {
		v.owed = map[call]due{}
	}
	v.owed[call{session, id}] = due{deadline, by}
	return true
}

// paid tells whether p was given a request and had not answered it; now it has.
func (p *peer) paid(session, id uint64) bool {
	v := p.v2.Load()
	if v == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	_, owed := v.owed[call{session, id}]
	delete(v.owed, call{session, id})
	return owed
}

// answer tells the client of its own frame: an ACK, or for a code an ERROR.
func (v *two) answer(frame []byte, code uint8, text string) {
	if code != 0 {
		v.refuse(batch{b: frame, n: 1, frames: true}, code, 0, text)
		return
	}
	v.p.say(&wire.Frame{Type: wire.TypeAck, Code: wire.LevelAccepted, Session: v.party.id, ID: wire.FrameID(frame)})
}

// run carries messages that ask for nothing but are told of errors.
func (v *two) run(b []byte, n int) error {
	m := batch{b: b, n: n, frames: true}
	v.p.count(false)
	v.p.sent.messages.Add(int64(n))
	if v.party == nil {
		return errHello
	}
	if wire.FrameSession(b) != v.party.id {
		v.refuse(m, wire.ErrBad, 0, "")
	} else if from, ok := v.source(b, n); !ok {
		v.refuse(m, wire.ErrDenied, 0, notProved)
	} else {
		v.carry(m, from)
	}
	return nil
}

// carry takes messages to their receiver, and tells what became of them.
func (v *two) carry(m batch, from *claim) {
	p, b := v.p, v.p.b
	if from != nil && from.account != nil {
		from.account.Sent.Add(int64(m.n))
		from.account.SentBytes.Add(int64(len(m.b)))
	}
	target := wire.FrameTo(m.b)
	if !wire.ValidName(string(target)) {
		v.refuse(m, wire.ErrBad, 0, noName)
		return
	}
	if err := p.may(from, SendTo, target); err != nil {
		b.count.refused.Add(int64(m.n))
		v.refuse(m, wire.ErrDenied, 0, err.Error())
		return
	}
	level, request := m.b[wire.OffsetCode], m.b[wire.OffsetType] == wire.TypeRequest
	if request {
		level = wire.LevelNone
	}
	rest, code, back := m, uint8(0), time.Duration(0)
	if level == wire.LevelHandled {
		rest, code, back = v.toBeHandled(m, from, target)
	} else {
		rest, code, back = b.carry(m, p, from, target)
	}
	switch {
	case rest.n > 0:
		if code != wire.ErrStuck {
			b.undeliverable(string(target), rest.source(), code, rest.n, p.user)
		}
		v.refuse(rest, code, back, "")
	case level == wire.LevelNone, code == waits && level > wire.LevelAccepted:
	case level == wire.LevelHandled: // to a receiver of protocol 1
		b.acknowledge(v.party.id, wire.FrameID(m.b), wire.LevelWritten)
	default:
		p.say(&wire.Frame{Type: wire.TypeAck, Code: level, Session: v.party.id, ID: wire.FrameID(m.b)})
	}
}

// toBeHandled has a message wait for its turn.
func (v *two) toBeHandled(m batch, from *claim, target []byte) (rest batch, code uint8, back time.Duration) {
	b := v.p.b
	if m.fds != nil {
		return m, wire.ErrNoFDs, 0
	}
	v.party.turn.Lock() // an older connection of the session may still be read
	defer v.party.turn.Unlock()
	was, again := b.sessions.fresh(v.party, wire.FrameID(m.b), string(target))
	switch {
	case again && was.end == refused:
		v.p.say(errorFrame(v.party.id, was.id, was.code, string(target), 0, ""))
		return m.skip(1), waits, 0
	case again && was.end == handled:
		v.p.say(&wire.Frame{Type: wire.TypeAck, Code: was.code, Session: v.party.id, ID: was.id})
		return m.skip(1), waits, 0
	case again:
		return m.skip(1), waits, 0
	}
	to := b.names.find(target)
	switch {
	case to == nil: // nor may it go past the box of one that comes now
		return b.hold(m, v.p.payer(from), string(target))
	case !to.peer.two():
		return b.carry(m, v.p, from, target)
	}
	hold := b.gate.Standing(to.name).Hold
	if hold.Messages == 0 {
		hold = defaultHold
	}
	if code = b.post(to.name, mailOf(m, v.p.payer(from)), hold); code != 0 {
		return m, code, 0
	}
	b.first(m, v.p, from, to)
	b.tapped(m, 1, "accepted")
	return m.skip(1), waits, 0
}

// refuse tells the sender of frames that came to nothing.
func (v *two) refuse(m batch, code uint8, back time.Duration, text string) {
	for ; m.n > 0; m = m.skip(1) {
		id := wire.FrameID(m.b)
		v.p.b.sessions.ended(v.party.id, id, refused, code)
		v.p.say(errorFrame(v.party.id, id, code, string(wire.FrameTo(m.b)), back, text))
	}
}

// source gives the claim of what n frames say they are from; nil with ok: from nobody.
func (v *two) source(frame []byte, n int) (c *claim, ok bool) {
	name := wire.FrameFrom(frame)
	if len(name) == 0 {
		return nil, true
	}
	if c, ok = v.p.source(name, int64(n)); c == nil {
		return nil, false // also a name that is none
	}
	return c, ok
}

// frame does what one frame asks for. An error ends the connection.
func (v *two) frame(f []byte) error {
	fds := v.take(f)
	defer v.p.closeAll(fds)
	kind := f[wire.OffsetType]
	v.p.count(isFeedFrame(f))
	if v.party == nil {
		if kind != wire.TypeHello {
			return errHello
		}
		return v.hello(f)
	}
	switch kind {
	case wire.TypeAck:
		v.acknowledged(f)
		return nil
	case wire.TypeError, wire.TypeWelcome, wire.TypeGap, wire.TypeState:
		return nil
	case wire.TypeReply:
		v.reply(f, fds)
		return nil
	}
	if wire.FrameSession(f) != v.party.id || kind == wire.TypeHello {
		v.answer(f, wire.ErrBad, "")
		return nil
	}
	if int(f[wire.OffsetFDs]) != len(fds) {
		v.answer(f, wire.ErrNoFDs, "")
		return nil
	}
	if kind == wire.TypeMessage || kind == wire.TypeRequest || kind == wire.TypePublish || kind == wire.TypeSubscribe {
		from, ok := v.source(f, 1)
		if !ok {
			v.answer(f, wire.ErrDenied, notProved)
			return nil
		}
		v.from(f, fds, from)
		return nil
	}
	v.own(f)
	return nil
}

// from does what a frame asks for that has a sender.
func (v *two) from(f []byte, fds []int, from *claim) {
	p, b, to := v.p, v.p.b, wire.FrameTo(f)
	p.sent.messages.Add(1)
	switch kind := f[wire.OffsetType]; {
	case kind != wire.TypeSubscribe && len(wire.FrameBody(f)) > b.maxBody:
		v.answer(f, wire.ErrTooBig, "")
	case kind == wire.TypeMessage && f[wire.OffsetCode] > wire.LevelHandled:
		v.answer(f, wire.ErrBad, "")
	case kind == wire.TypeMessage, kind == wire.TypeRequest:
		v.carry(batch{b: f, n: 1, frames: true, fds: fds}, from)
	case fds != nil:
		v.answer(f, wire.ErrNoFDs, "")
	case kind == wire.TypePublish:
		if !wire.ValidTopic(string(to)) {
			v.answer(f, wire.ErrBad, "a topic is words of A-Z a-z 0-9 _ - with dots between them")
		} else if err := p.may(from, Publish, to); err != nil {
			b.count.refused.Add(1)
			v.answer(f, wire.ErrDenied, err.Error())
		} else if code := b.publish(f, p.payer(from)); code != 0 || f[wire.OffsetCode] > wire.LevelNone {
			v.answer(f, code, "")
		}
	default:
		policy, limit := f[wire.OffsetCode], int(min(wire.FrameTime(f), maxWaiting))
		if limit == 0 {
			limit = waiting
		}
		if policy == wire.LatestOnly {
			limit = 1
		}
		if !wire.ValidPattern(string(to)) {
			v.answer(f, wire.ErrBad, "a pattern is words with dots between them, where * is any one and > at the end one or more")
		} else if policy > wire.Disconnect {
			v.answer(f, wire.ErrBad, "")
		} else if err := p.may(from, Subscribe, to); err != nil {
			b.count.refused.Add(1)
			v.answer(f, wire.ErrDenied, err.Error())
		} else {
			s := &subscription{peer: p, pattern: string(to), policy: policy, limit: limit}
			if code := b.topics.subscribe(s, wire.FrameID(f)); code != 0 {
				v.answer(f, code, "")
			}
		}
	}
}

// own does what a frame asks for that concerns the client itself.
func (v *two) own(f []byte) {
	p, b, to, name := v.p, v.p.b, string(wire.FrameTo(f)), wire.FrameFrom(f)
	switch f[wire.OffsetType] {
	case wire.TypeRegister:
		c, ok := p.claim(name, Receive, 1)
		if !ok {
			v.answer(f, wire.ErrDenied, "the name is not proved")
			return
		}
		if err := p.register(c); err != nil {
			v.answer(f, wire.ErrDenied, err.Error())
		} else {
			v.answer(f, 0, "")
		}
	case wire.TypeFeed:
		c, ok := p.claim(name, Watch, 1)
		switch what := f[wire.OffsetCode]; {
		case !ok, !p.free(c, 1):
			v.answer(f, wire.ErrDenied, "the name is not proved")
		case what == wire.FeedArm:
			c.session.Arm()
		case what == wire.FeedAlive:
			c.session.Feed()
		case what == wire.FeedCheckpoint:
			c.session.Checkpoint(to)
		default:
			v.answer(f, wire.ErrBad, "")
		}
	case wire.TypeCancel:
		v.cancel(to, f)
	case wire.TypeUnsubscribe:
		b.topics.unsubscribe(p, to)
		v.answer(f, 0, "")
	case wire.TypeWatch:
		if !wire.ValidName(to) {
			v.answer(f, wire.ErrBad, noName)
		} else if code := b.watch(p, to); code != 0 {
			v.answer(f, code, "")
		}
	case wire.TypeUnwatch:
		b.unwatch(p, to)
		v.answer(f, 0, "")
	default:
		v.answer(f, wire.ErrBad, "")
	}
}

func (v *two) hello(f []byte) error {
	p, b, id := v.p, v.p.b, wire.FrameSession(f)
	welcome := &wire.Frame{Type: wire.TypeWelcome, Code: wire.Version, Session: b.incarnation, ID: uint64(b.maxBody)}
	var no error
	if p.cred.Transport == TCP {
		no = b.gate.Admit(p.who, wire.FrameBody(f))
	} else if f[wire.OffsetFlags]&wire.TakesFDs != 0 {
		welcome.Flags |= wire.TakesFDs
		v.takes, v.oob = true, rightsLent.Get().(*rights) // from the next byte on
	}
	t, older, back, ok := (*party)(nil), (*peer)(nil), false, false
	if no == nil && id != 0 {
		t, older, back, ok = b.sessions.enter(id, p)
	}
	if !ok {
		text := "the session is another user's, or 0"
		if no != nil {
			text = no.Error()
		}
		b.count.refused.Add(1)
		p.tell(errorFrame(id, wire.FrameID(f), wire.ErrDenied, "", 0, text))
		return fmt.Errorf("HELLO refused: %s", text)
	}
	v.party = t
	p.say(welcome)
	if back {
		b.names.mu.RLock()
		for _, x := range b.names.boxes {
			x.resume()
		}
		b.names.mu.RUnlock()
	}
	if older != nil {
		older.kick()
	}
	return nil
}

// acknowledged ends a message that the client has handled. One that nothing is known of was given by an
// earlier zhxd: its sender knows it, if it is here.
func (v *two) acknowledged(f []byte) {
	b, session, id := v.p.b, wire.FrameSession(f), wire.FrameID(f)
	if to := b.sessions.sentTo(session, id); to != "" {
		if c := b.names.find([]byte(to)); c == nil || c.peer != v.p {
			return
		}
	}
	b.acknowledge(session, id, wire.LevelHandled) // first: if zhxd dies in between, only the one in flight may have been handled unknown to its sender
	for _, c := range v.p.claims {
		if c.use != Receive {
			continue
		}
		b.names.mu.RLock()
		x := b.names.boxes[c.name]
		done := x != nil && x.done(c, session, id)
		b.names.mu.RUnlock()
		if done {
			break
		}
	}
	v.p.out.kick() // the next one
}

// reply takes a reply to where its request came from.
func (v *two) reply(f []byte, fds []int) {
	b, session, id := v.p.b, wire.FrameSession(f), wire.FrameID(f)
	no := func(code uint8) { // to the replier
		v.p.say(errorFrame(session, id, code, "", 0, ""))
		b.count.unanswered.Add(1)
	}
	if _, ok := v.source(f, 1); !ok || len(wire.FrameBody(f)) > b.maxBody || int(f[wire.OffsetFDs]) != len(fds) {
		no(wire.ErrBad)
		return
	}
	to := b.sessions.at(session)
	if !v.p.paid(session, id) || to == nil || fds != nil && !to.takesFDs() {
		no(wire.ErrGone)
		return
	}
	m := batch{b: f, n: 1, frames: true, fds: fds}
	if out := to.out.deliver(m, v.p, "a requester"); out.done == 0 {
		no(wire.ErrStuck)
		return
	}
	b.count.forwarded.Add(1)
	b.tapped(m, 1, "written")
}

// takesFDs tells whether descriptors may be sent to the peer.
func (p *peer) takesFDs() bool {
	v := p.v2.Load()
	return v != nil && v.takes
}

// cancel takes back a request that waits, or tells who has it.
func (v *two) cancel(to string, f []byte) {
	b, id := v.p.b, wire.FrameID(f)
	b.names.mu.RLock()
	x, c := b.names.boxes[to], b.names.receivers[to]
	waited := x != nil && x.cancel(v.party.id, id)
	b.names.mu.RUnlock()
	if !waited && c != nil && c.peer.paid(v.party.id, id) {
		c.peer.tell(&wire.Frame{Type: wire.TypeCancel, Session: v.party.id, ID: id, To: to, From: string(slices.Clone(wire.FrameFrom(f)))})
	}
}
