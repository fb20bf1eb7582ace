package broker

// This file takes a stretch of messages to its receiver, and accounts for it.

import (
	"maps"
	"strconv"
	"sync"
	"time"

	"zhx/ipc/wire"
)

// forward delivers transfer packets of one route. p is their sender and from its claim; nil: nobody's. The error is for
// Send; all is counted here.
func (b *Broker) forward(packets []byte, p *peer, from *claim) error {
	if from != nil && from.account != nil {
		from.account.Sent.Add(int64(len(packets) / wire.PacketSize))
	}
	name := wire.Target(packets)
	for range 2 { // again, if the receiver goes away meanwhile: its successor may be there
		to := b.names.find(name)
		if to == nil {
			break
		}
		left, dropped := to.peer.out.deliver(packets, p, to.name)
		done := int64((len(packets)-len(left))/wire.PacketSize - dropped)
		b.count.forwarded.Add(done)
		if to.account != nil {
			to.account.Received.Add(done)
		}
		if done > 0 {
			b.first(packets, p, from, to)
		}
		if dropped > 0 {
			b.count.dropped.Add(int64(dropped))
			if to.account != nil {
				to.account.Dropped.Add(int64(dropped))
			}
			return ErrStuck
		}
		if packets = left; len(packets) == 0 {
			return nil
		}
	}
	b.undeliverable(packets, p)
	return ErrNoReceiver
}

// first logs a (run, target) pair's first message.
func (b *Broker) first(packets []byte, p *peer, from, to *claim) {
	switch {
	case from == nil:
		if p != nil && !p.anonymous { // nobody's run: once a connection
			p.anonymous = true
			b.log.Info("forwarded", p.attrs("source", shown(string(wire.Source(packets))), "target", to.name)...)
		}
	case from.target != to.name:
		from.target = to.name
		if from.session.First(to.name) {
			b.log.Info("forwarded", "source", from.name, "target", to.name)
		}
	}
}

func (b *Broker) undeliverable(packets []byte, p *peer) {
	n := int64(len(packets) / wire.PacketSize)
	target, source := string(wire.Target(packets)), string(wire.Source(packets))
	b.count.undeliverable.Add(n)
	if a := b.gate.Account(target); a != nil {
		a.Undeliverable.Add(n)
	}
	if p == nil {
		return // Send tells its caller
	}
	if kept, ok := b.quiet.pass(pairOf(source, target)); ok {
		b.log.Warn("no receiver", "source", shown(source), "target", shown(target), "next", "message dropped and counted", "kept_back", kept)
	}
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

// pass tells whether the line about key may be logged now, and how many like it were kept back. At maxPairs what is older
// than logEvery is forgotten; if nothing is, the line is kept back.
func (q *quiet) pass(key pair) (kept int64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	s, known := q.last[key]
	if known && now.Sub(s.at) < logEvery {
		s.kept++
		q.last[key] = s
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
