package broker

// This file is publish and subscribe: who subscribes to what, and each topic's last value. A publisher waits for nobody.

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

type subscription struct {
	// Immutable:
	peer    *peer
	pattern string
	policy  uint8
	limit   int // messages that wait

	// the queue's mu guards:
	waiting, bytes int
	lost           uint64
	gap            bool // its place is in the queue
}

type topics struct {
	mu sync.RWMutex
	// mu guards:
	subs  []*subscription
	cache map[string][]*subscription // by topic, one a connection; thrown away with each change of subs
	kept  map[string]last            // by topic
	bytes int                        // of those
}

// last is a topic's last value.
type last struct {
	frame []byte
	by    *user // whose share it takes; nil: nobody's
}

// subscribe adds a subscription, or puts it in the place of the peer's own for that pattern, acknowledges that to the peer, and tells
// it the last values; code: it is refused. The lock is held for that, so that no newer value comes before them.
func (t *topics) subscribe(s *subscription, id uint64) (code uint8) {
	t.mu.Lock()
	defer t.mu.Unlock()
	mine := 0
	for i, old := range t.subs {
		if old.peer != s.peer {
			continue
		}
		if mine++; old.pattern == s.pattern {
			t.subs = slices.Delete(t.subs, i, i+1)
			s.peer.user.subscriptions.Add(-1)
			mine--
			break
		}
	}
	if mine >= maxSubscriptions || len(t.subs) >= allSubscriptions || !s.peer.user.take(&s.peer.user.subscriptions, 1, allSubscriptions) {
		return wire.ErrFull
	}
	t.subs = append(t.subs, s)
	clear(t.cache)
	s.peer.say(&wire.Frame{Type: wire.TypeAck, Code: wire.LevelAccepted, Session: s.peer.v2.Load().party.id, ID: id})
	for topic, kept := range t.kept {
		if wire.MatchTopic(s.pattern, topic) {
			s.send(kept.frame, kept.frame)
		}
	}
	return 0
}

// unsubscribe ends one subscription of p; "" all.
func (t *topics) unsubscribe(p *peer, pattern string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	had := len(t.subs)
	t.subs = slices.DeleteFunc(t.subs, func(s *subscription) bool { return s.peer == p && (pattern == "" || s.pattern == pattern) })
	if gone := had - len(t.subs); gone > 0 {
		p.user.subscriptions.Add(-int64(gone))
		clear(t.cache)
	}
}

// of gives one subscription of each connection that has one for topic.
func (t *topics) of(topic []byte) []*subscription {
	t.mu.RLock()
	found, ok := t.cache[string(topic)]
	t.mu.RUnlock()
	if ok {
		return found
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.subs {
		if wire.MatchTopic(s.pattern, string(topic)) && !slices.ContainsFunc(found, func(f *subscription) bool { return f.peer == s.peer }) {
			found = append(found, s)
		}
	}
	if len(t.cache) >= maxTopics {
		clear(t.cache)
	}
	t.cache[string(topic)] = found
	return found
}

// keep makes frame the last value of its topic, or forgets that if its body is empty; code: there is no room, or no more of by's share.
func (t *topics) keep(frame []byte, by *user) (code uint8) {
	topic := string(wire.FrameTo(frame))
	t.mu.Lock()
	defer t.mu.Unlock()
	old, known := t.kept[topic]
	if len(wire.FrameBody(frame)) == 0 {
		t.put(topic, old, -1)
		delete(t.kept, topic)
		return 0
	}
	t.put(topic, old, -1)
	if !known && len(t.kept) >= maxTopics || t.bytes+len(frame) > keptBytes || by != nil && (by.kept.Load() >= maxTopics/2 || by.keptBytes.Load()+int64(len(frame)) > keptBytes/2) {
		t.put(topic, old, 1)
		return wire.ErrFull
	}
	t.put(topic, last{slices.Clone(frame), by}, 1)
	return 0
}

// put accounts for a last value, and keeps it, or, sign -1, no longer accounts for it. It wants mu.
func (t *topics) put(topic string, v last, sign int) {
	if v.frame == nil {
		return
	}
	t.bytes += sign * len(v.frame)
	if v.by != nil {
		v.by.kept.Add(int64(sign))
		v.by.keptBytes.Add(int64(sign * len(v.frame)))
	}
	t.kept[topic] = v
}

// publish takes a publication to all that subscribe to it.
func (b *Broker) publish(frame []byte, by *user) (code uint8) {
	if frame[wire.OffsetFlags]&wire.Retain != 0 {
		if code = b.topics.keep(frame, by); code != 0 {
			return code
		}
		frame[wire.OffsetFlags] &^= wire.Retain
	}
	b.count.published.Add(1)
	var copied []byte
	for _, s := range b.topics.of(wire.FrameTo(frame)) {
		copied = s.send(frame, copied)
	}
	b.tapped(batch{b: frame, n: 1, frames: true}, 1, "published")
	return 0
}

// send writes a publication if there is room and nobody is writing; else it waits, as a copy that subscribers share.
func (s *subscription) send(frame, copied []byte) []byte {
	o := &s.peer.out
	if o.mu.TryLock() {
		direct := !o.gone && !o.stuck.Load() && len(o.rest) == 0 && !o.queue.some.Load()
		if direct {
			left := o.push(frame)
			if direct = len(left) < len(frame); direct && len(left) > 0 && o.err == unix.EAGAIN {
				o.rest = slices.Clone(left)
			}
			o.data = nil
		}
		o.unlock()
		if direct {
			s.peer.written.messages.Add(1)
			return copied
		}
	}
	if copied == nil {
		copied = slices.Clone(frame)
	}
	if !o.queue.publish(copied, s) {
		if s.peer.user.loud() {
			s.peer.b.log.Warn("slow subscriber", s.peer.attrs("pattern", s.pattern, "next", "its connection is closed, as it asked for")...)
		}
		s.peer.kick()
	}
	o.kick()
	return copied
}
