package broker

// This file is the one namespace: which connection receives what is sent to a name.

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// claim is a peer's right to use a name, as the gate granted it.
type claim struct {
	// Immutable:
	peer    *peer
	name    string
	use     Use
	session Session
	account *Account // nil: not counted

	// Owned by the peer's reader:
	target string // the last that Session.First was asked about
	leave  leave
}

type names struct {
	renewed atomic.Uint64 // times that the gate has changed its mind; added to under mu

	mu sync.RWMutex
	// mu guards:
	receivers map[string]*claim
	left      map[string]left // receivers of protocol 2 that were here a moment ago
	boxes     map[string]*box // of names that somebody receives under, or expects to
	// and each peer's leaving and, for others than its reader, its claims.
}

// left is when a receiver was last here.
type left struct {
	at time.Time
	by *user
}

var (
	errTaken = errors.New("a connection of another user holds this name")
	errGone  = errors.New("this connection is being closed")
)

// find gives the receiver's claim, nil: there is none.
func (n *names) find(name []byte) *claim {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.receivers[string(name)]
}

// take makes c's peer the receiver under c's name. It returns the peer that was it until now, for the caller to close.
// A foreign newcomer does not take the name from a living connection of another user; a managed one does, since the gate
// has proved that the name is its own. One that has hung up takes it from nobody: its client may have come again since, and been
// read sooner.
func (n *names) take(c *claim) (older *peer, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.peer.leaving {
		return nil, errGone
	}
	old := n.receivers[c.name]
	if old != nil && old.peer != c.peer {
		if uid := c.peer.cred.UID; (uid < 0 || uid != old.peer.cred.UID) && !c.session.Managed() {
			return nil, errTaken
		}
		if c.peer.hungUp() {
			return nil, errGone
		}
		older = old.peer
		n.leave(older, c.name)
	}
	n.receivers[c.name] = c
	if x := n.boxes[c.name]; x != nil {
		x.admit(c)
	}
	return older, nil
}

// box gives the box of a name, and makes one if there is none.
func (n *names) box(b *Broker, name string) *box {
	n.mu.RLock()
	x := n.boxes[name]
	n.mu.RUnlock()
	if x != nil {
		return x
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if x = n.boxes[name]; x == nil {
		x = &box{b: b, name: name, to: n.receivers[name]}
		n.boxes[name] = x
	}
	return x
}

// forget drops a box that nobody needs any more.
func (n *names) forget(x *box) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boxes[x.name] == x && x.empty() {
		delete(n.boxes, x.name)
	}
}

// drop frees what p still holds, and p takes no name any more.
func (n *names) drop(p *peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leave(p, "")
}

// leave wants mu. Another peer is about to receive under next.
func (n *names) leave(p *peer, next string) {
	p.leaving = true
	for _, c := range p.claims {
		if n.receivers[c.name] != c {
			continue
		}
		delete(n.receivers, c.name)
		if p.two() && c.name != next {
			n.leftNow(c.name, p.user)
		}
		if x := n.boxes[c.name]; x != nil {
			x.recall(c, c.name == next)
			if x.empty() {
				delete(n.boxes, c.name)
			}
		}
	}
}

// leftNow wants mu.
func (n *names) leftNow(name string, by *user) {
	his := 0
	if len(n.left) >= maxLeft/2 {
		maps.DeleteFunc(n.left, func(_ string, l left) bool { return time.Since(l.at) > graceFor })
		for _, l := range n.left {
			if by.is(l.by) && !by.all {
				his++
			}
		}
	}
	if len(n.left) < maxLeft && his < maxLeft/2 {
		n.left[name] = left{time.Now(), by}
	}
}

// expected completes a standing: a name that no client has may be about to come back, and what is to be handled waits for it.
// names.mu is held, for reading at least.
func (b *Broker) expected(name string) Standing {
	s := b.gate.Standing(name)
	if !s.Managed && (time.Since(b.began) < graceFor || time.Since(b.names.left[name].at) < graceFor) {
		s.Expects, s.Hold = true, defaultHold
		s.Hold.For = graceFor
	}
	return s
}

// renew makes every claim that is being asked for be asked for again.
func (n *names) renew() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.renewed.Add(1)
}

var errRenewed = errors.New("the gate is to be asked again")

// keep adds c to its peer's claims. At maxClaims the oldest that the peer does not receive under makes room. At maxNames that it
// receives under, keep says errTooMany to one more.
func (n *names) keep(c *claim, asked uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.renewed.Load() != asked {
		return errRenewed
	}
	p := c.peer
	received, other := 0, 0
	for i, k := range slices.Backward(p.claims) {
		if n.receivers[k.name] == k {
			received++
		} else {
			other = i
		}
	}
	if c.use == Receive && received == maxNames {
		return errTooMany
	}
	if len(p.claims) == maxClaims {
		p.claims = append(p.claims[:other:other], p.claims[other+1:]...)
	}
	p.claims = append(p.claims, c)
	return nil
}
