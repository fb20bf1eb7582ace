package broker

// This file is the clients of protocol 2 beyond their connections: where what concerns a frame of theirs is told, and what has
// become of those that are sent again after a connection was lost.

import (
	"sync"
	"time"

	"zhx/ipc/wire"
)

// party is one session.
type party struct {
	id uint64

	turn sync.Mutex // held from when a message to be handled is known to be new until it waits, for their order

	// sessions.mu guards:
	peer *peer     // nil: it is not connected
	uid  int       // -1: unknown
	left time.Time // since when not
	deaf bool      // and it has not been told that one of its messages was handled
	high uint64    // the highest id of a message to be handled
	ring []outcome // of the last keptOutcomes of those; nil: there was none
	next int       // where the next goes, unless that one is under way
}

// outcome is what became of a message that was to be handled.
type outcome struct {
	id   uint64
	to   string
	end  uint8 // 0: it is under way
	code uint8
}

const (
	handled uint8 = 1 + iota // code is the level
	refused                  // code is the error
)

type sessions struct {
	mu  sync.Mutex
	all map[uint64]*party
}

// enter makes p the connection of a session. It returns the older one, for the caller to close; back: others' messages have waited
// for it; ok: false if it is another user's.
func (s *sessions) enter(id uint64, p *peer) (t *party, older *peer, back, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t = s.all[id]
	if t == nil {
		s.forget(p)
		t = &party{id: id, uid: p.cred.UID}
		s.all[id] = t
	} else if t.uid >= 0 && t.uid != p.cred.UID { // one that ended before it was identified is nobody's
		return nil, nil, false, false
	}
	older, back, t.peer, t.uid, t.deaf = t.peer, t.deaf, p, p.cred.UID, false
	return t, older, back, true
}

// waits tells until when no further message of a session is given to who handles them, zero: it may. One that has missed the
// word that a message was handled would, under another zhxd, send that and those behind it again, and only the first marked.
func (s *sessions) waits(session uint64) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.all[session]; t != nil && t.deaf && time.Since(t.left) < graceFor {
		return t.left.Add(graceFor)
	}
	return time.Time{}
}

// leave ends p's being the connection of its session, which is kept for a while if something may be sent again.
func (s *sessions) leave(t *party, p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.peer != p {
		return
	}
	t.peer, t.left = nil, time.Now()
	if t.ring == nil {
		delete(s.all, t.id)
	}
}

// forget makes room for one more: of those that left, all that did long ago, else the first to leave; of p's user, if that has half
// of all. It wants mu.
func (s *sessions) forget(p *peer) {
	shared := p.user != nil && !p.user.all
	if len(s.all) < maxSessions/2 || !shared && len(s.all) < maxSessions {
		return
	}
	var first, his *party
	have := 0
	for id, t := range s.all {
		if shared && t.uid == p.user.uid {
			have++
		}
		switch {
		case t.peer != nil:
		case time.Since(t.left) > sessionKept:
			delete(s.all, id)
		default:
			if first == nil || t.left.Before(first.left) {
				first = t
			}
			if shared && t.uid == p.user.uid && (his == nil || t.left.Before(his.left)) {
				his = t
			}
		}
	}
	switch {
	case have >= maxSessions/2 && his != nil:
		delete(s.all, his.id)
	case len(s.all) >= maxSessions && first != nil:
		delete(s.all, first.id)
	}
}

// at is where frames of a session are told of; nil: it is not connected.
func (s *sessions) at(id uint64) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.all[id]; t != nil {
		return t.peer
	}
	return nil
}

// outcome is what is kept of a message to be handled; nil: nothing. sessions.mu is held.
func (t *party) outcome(id uint64) *outcome {
	if id > t.high {
		return nil
	}
	for i := range t.ring {
		if t.ring[i].id == id {
			return &t.ring[i]
		}
	}
	return nil
}

// fresh notes a message that is to be handled; was: it has been sent before, and that is what became of it.
func (s *sessions) fresh(t *party, id uint64, to string) (was outcome, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id <= t.high {
		if o := t.outcome(id); o != nil {
			return *o, true
		}
		return outcome{id: id, end: refused, code: wire.ErrBad}, true
	}
	t.high = id
	if t.ring == nil {
		t.ring = make([]outcome, 0, 8)
	}
	if len(t.ring) < keptOutcomes {
		t.ring = append(t.ring, outcome{id: id, to: to})
	} else {
		for i := 0; i < keptOutcomes && t.ring[t.next].end == 0; i++ {
			t.next = (t.next + 1) % keptOutcomes
		}
		t.ring[t.next] = outcome{id: id, to: to}
		t.next = (t.next + 1) % keptOutcomes
	}
	return outcome{}, false
}

// sentTo tells who a message to be handled is for; "": it is not known.
func (s *sessions) sentTo(session, id uint64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.all[session]; t != nil {
		if o := t.outcome(id); o != nil {
			return o.to
		}
	}
	return ""
}

// ended notes what became of a frame, and gives the connection that is to be told.
func (s *sessions) ended(session, id uint64, end, code uint8) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.all[session]
	if t == nil {
		return nil
	}
	t.deaf = t.deaf || t.peer == nil && end == handled
	if o := t.outcome(id); o != nil {
		o.end, o.code = end, code
	}
	return t.peer
}

// failed tells a session that a frame of its came to nothing. Session 0 is protocol 1: nobody.
func (b *Broker) failed(session, id uint64, code uint8, to string, back time.Duration) {
	if session == 0 {
		return
	}
	if p := b.sessions.ended(session, id, refused, code); p != nil {
		p.tell(errorFrame(session, id, code, to, back, ""))
	}
}

// errorFrame is what a client is told; text "" is what the code says.
func errorFrame(session, id uint64, code uint8, to string, back time.Duration, text string) *wire.Frame {
	if text == "" {
		text = words[code]
	}
	ms := uint32(max(0, min(back.Milliseconds(), 1<<31)))
	return &wire.Frame{Type: wire.TypeError, Code: code, Session: session, ID: id, Time: ms, To: to, Body: []byte(text)}
}

// acknowledge tells a session that a message of its has reached a level.
func (b *Broker) acknowledge(session, id uint64, level uint8) {
	if p := b.sessions.ended(session, id, handled, level); p != nil {
		p.tell(&wire.Frame{Type: wire.TypeAck, Code: level, Session: session, ID: id})
	}
}
