package broker

// This file takes a stretch of messages to its receiver, and accounts for it.

import (
	"maps"
	"strconv"
	"sync"
	"time"

	"zhx/ipc/wire"
)

// forward delivers transfer packets of one route. p is their sender and from its claim; nil: nobody's.
func (b *Broker) forward(packets []byte, p *peer, from *claim) {
	m := batch{b: packets, n: len(packets) / wire.PacketSize}
	if from != nil && from.account != nil {
		from.account.Sent.Add(int64(m.n))
		from.account.SentBytes.Add(int64(len(m.b)))
	}
	target := wire.Target(packets)
	if err := p.may(from, SendTo, target); err != nil {
		p.refuse(int64(m.n), string(wire.Source(packets)), err)
		return
	}
	rest, code, _ := b.carry(m, p, from, target)
	if rest.n > 0 && code != wire.ErrStuck {
		b.undeliverable(string(target), string(wire.Source(packets)), code, rest.n, p.user)
	}
}

// carry takes messages of one route to whoever receives under target, or has them wait for it. It returns those that will
// not get there, the code that says why, and when to try again, and has counted all but them; those dropped for a stuck one, too.
func (b *Broker) carry(m batch, p *peer, from *claim, target []byte) (rest batch, code uint8, back time.Duration) {
	for range 2 { // again, if the receiver goes away meanwhile: its successor may be there
		to := b.names.find(target)
		if to == nil {
			break
		}
		for m.n > 0 {
			out := m
			if two := to.peer.two(); two != m.frames {
				if out, code = m.convert(two); code != 0 {
					return m, code, 0
				}
			}
			request := out.frames && out.b[wire.OffsetType] == wire.TypeRequest // on its own
			switch {
			case out.fds != nil && !to.peer.takesFDs():
				return m, wire.ErrNoFDs, 0
			case request && !to.peer.owe(wire.FrameSession(out.b), wire.FrameID(out.b), deadline(out.b), p.payer(from)):
				return m, wire.ErrFull, 0
			}
			f := to.peer.out.deliver(out, p, to.name)
			if request && f.done == 0 {
				to.peer.paid(wire.FrameSession(out.b), wire.FrameID(out.b))
			}
			if f.done > 0 {
				b.count.forwarded.Add(int64(f.done))
				if to.account != nil {
					to.account.Received.Add(int64(f.done))
				}
				b.first(m, p, from, to)
				b.tapped(m, f.done, "written")
				all := len(m.b)
				m = m.skip(f.done)
				if to.account != nil {
					to.account.ReceivedBytes.Add(int64(all - len(m.b)))
				}
			}
			switch {
			case len(f.dropped) > 0:
				b.count.dropped.Add(int64(m.n))
				if to.account != nil {
					to.account.Dropped.Add(int64(m.n))
				}
				return m, wire.ErrStuck, 0
			case len(f.left) > 0:
				to = nil
			}
			if to == nil {
				break
			}
		}
		if m.n == 0 {
			return m, 0, 0
		}
	}
	return b.hold(m, p.payer(from), string(target))
}

// hold has messages wait for a receiver that is expected. payer is whose share of what may wait they take.
func (b *Broker) hold(m batch, payer *user, target string) (rest batch, code uint8, back time.Duration) {
	standing := b.gate.Standing(target)
	if !standing.Managed && m.frames && m.b[wire.OffsetType] == wire.TypeMessage && m.b[wire.OffsetCode] == wire.LevelHandled {
		b.names.mu.RLock()
		standing = b.expected(target)
		b.names.mu.RUnlock()
	}
	if !standing.waits() || m.fds != nil {
		return m, standing.refusal(), standing.Back
	}
	for m.n > 0 {
		mail := mailOf(m, payer)
		if m.frames && m.b[wire.OffsetFlags]&wire.NoHold != 0 {
			return m, wire.ErrRestarting, standing.Back
		}
		if code = b.post(target, mail, standing.Hold); code != 0 {
			return m, code, standing.Back
		}
		b.tapped(m, 1, "held")
		m = m.skip(1)
	}
	return m, waits, 0
}

// waits is no error: the messages wait in a box.
const waits = 255

// post puts a mail into the box of a name.
func (b *Broker) post(name string, m *mail, hold Hold) (code uint8) {
	for {
		b.names.box(b, name)
		b.names.mu.RLock()
		x, to := b.names.boxes[name], b.names.receivers[name]
		if x != nil {
			code = x.put(m, hold)
		}
		b.names.mu.RUnlock()
		if x == nil { // it was forgotten just now
			continue
		}
		if to != nil {
			to.peer.out.kick()
		} else if code != 0 {
			b.names.forget(x)
		}
		return code
	}
}

// mailOf copies the first message of a batch.
func mailOf(m batch, payer *user) *mail {
	frame := m.b[:m.size(0)]
	mail := &mail{user: payer, frame: append([]byte(nil), frame...), packet: !m.frames, kind: wire.TypeMessage}
	if m.frames {
		mail.kind, mail.level = frame[wire.OffsetType], frame[wire.OffsetCode]
		mail.session, mail.id = wire.FrameSession(frame), wire.FrameID(frame)
		mail.deadline = deadline(frame)
		mail.expires = mail.deadline
	}
	return mail
}

// deadline is when a frame's time is over; zero: never.
func deadline(frame []byte) (end time.Time) {
	if ms := wire.FrameTime(frame); ms > 0 {
		end = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	return end
}

// skip is without the first n messages.
func (m batch) skip(n int) batch {
	at := len(m.b)
	switch {
	case n == m.n:
	case m.frames:
		at = 0
		for range n {
			at += m.size(at)
		}
	default:
		at = n * wire.PacketSize
	}
	m.b, m.n = m.b[at:], m.n-n
	return m
}

// convert gives as many of the first messages as have one, at least one, the form of the other protocol.
func (m batch) convert(two bool) (out batch, code uint8) {
	switch {
	case two:
		return batch{b: appendFrames(nil, m.b), n: m.n, frames: true}, 0
	case m.fds != nil:
		return m, wire.ErrNoFDs
	case m.b[wire.OffsetType] == wire.TypeRequest:
		return m, wire.ErrUnanswered
	}
	for at := 0; out.n < m.n; out.n++ {
		size := m.size(at)
		b, ok := appendPacket(out.b, m.b[at:at+size])
		if !ok {
			break
		}
		out.b = b
		at += size
	}
	if out.n == 0 {
		return m, wire.ErrTooBig
	}
	return out, 0
}

// appendFrames appends packets as frames.
func appendFrames(dst, packets []byte) []byte {
	for ; len(packets) > 0; packets = packets[wire.PacketSize:] {
		dst = wire.AppendFrame(dst, &wire.Frame{
			Type: wire.TypeMessage, Flags: wire.FromV1, To: string(wire.Target(packets)), From: string(wire.Source(packets)),
			Body: packets[wire.OffsetMsg:wire.PacketSize],
		})
	}
	return dst
}

// appendPacket appends a frame as a packet, if it fits into one.
func appendPacket(dst, frame []byte) ([]byte, bool) {
	b, err := wire.Packet{
		Cmd: wire.CmdTransfer, Target: string(wire.FrameTo(frame)), Source: string(wire.FrameFrom(frame)), Msg: wire.FrameBody(frame),
	}.Append(dst)
	return b, err == nil
}

// first logs a (run, target) pair's first message.
func (b *Broker) first(m batch, p *peer, from, to *claim) {
	switch {
	case from == nil:
		if p != nil && !p.anonymous && p.user.loud() { // nobody's run: once a connection
			p.anonymous = true
			b.log.Info("forwarded", p.attrs("source", shown(m.source()), "target", to.name)...)
		}
	case from.target != to.name:
		from.target = to.name
		if from.session.First(to.name) && p.user.loud() {
			b.log.Info("forwarded", "source", from.name, "target", to.name)
		}
	}
}

func (m batch) source() string {
	if m.frames {
		return string(wire.FrameFrom(m.b))
	}
	return string(wire.Source(m.b))
}

// undelivered counts messages that came to nothing, other than for a stuck receiver or after they were held.
func (b *Broker) undelivered(target string, n int) {
	b.count.undeliverable.Add(int64(n))
	if a := b.gate.Account(target); a != nil {
		a.Undeliverable.Add(int64(n))
	}
}

func (b *Broker) undeliverable(target, source string, code uint8, n int, by *user) {
	b.undelivered(target, n)
	if kept, ok := b.quiet.pass(pairOf(source, target), by); ok {
		text := "no receiver"
		if code == wire.ErrFull || code == wire.ErrTooBig {
			text = "not delivered"
		}
		b.log.Warn(text, "source", shown(source), "target", shown(target), "err", words[code], "next", "message dropped and counted", "kept_back", kept)
	}
}

// Why a frame is wrong, for people.
const (
	noName    = "no name: that is 1 to 64 of A-Z a-z 0-9 _ -, and no - first"
	notProved = "the name it is from is not proved"
)

// words are the codes of errors for people.
var words = [...]string{
	wire.ErrNoName: "nobody has this name", wire.ErrRestarting: "its client is being restarted", wire.ErrStopped: "its client is stopped",
	wire.ErrFailed: "its client has failed", wire.ErrFull: "no room to wait", wire.ErrDenied: "the configuration does not allow it",
	wire.ErrTooBig: "too big for its receiver", wire.ErrExpired: "its time is over", wire.ErrStuck: "the receiver does not read",
	wire.ErrGone: "the receiver ended", wire.ErrNoFDs: "descriptors do not get there", wire.ErrBad: "the frame makes no sense",
	wire.ErrTaken: "another connection has the name", wire.ErrUnanswered: "the receiver cannot reply",
}

// shown is a name as a log line shows it: quoted where it is none.
func shown(name string) string {
	if wire.ValidName(name) {
		return name
	}
	return strconv.Quote(name)
}

// quiet lets a line that repeats pass once in logEvery.
type quiet struct {
	mu sync.Mutex
	// mu guards:
	last map[pair]sparse
}

// pair is what makes a line the same one: often (source, target), cut to their sizes in a packet.
type pair [2 * wire.NameSize]byte

type sparse struct {
	at   time.Time
	kept int64 // lines kept back since
}

func pairOf(a, b string) (p pair) {
	copy(p[:wire.NameSize], a)
	copy(p[wire.NameSize:], b)
	return p
}

// pass tells whether the line about key, which by has caused, may be logged now, and how many like it were kept back. At maxPairs
// what is older than logEvery is forgotten; if nothing is, the line is kept back, as it is where by has caused enough.
func (q *quiet) pass(key pair, by *user) (kept int64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	s, known := q.last[key]
	if known && now.Sub(s.at) < logEvery {
		s.kept++
		q.last[key] = s
		return 0, false
	}
	if !by.loud() {
		return 0, false
	}
	if !known && len(q.last) >= maxPairs {
		maps.DeleteFunc(q.last, func(_ pair, s sparse) bool { return now.Sub(s.at) >= logEvery })
		if len(q.last) >= maxPairs {
			return 0, false
		}
	}
	q.last[key] = sparse{at: now}
	return s.kept, true
}
