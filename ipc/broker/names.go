package broker

// This file is the one namespace: which connection receives what is sent to a name.

import (
	"errors"
	"sync"
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
}

type names struct {
	mu sync.RWMutex
	// mu guards:
	receivers map[string]*claim
	renewed   uint64 // times that the gate has changed its mind
	// and each peer's gone and, for others than its reader, its claims.
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
// has proved that the name is its own.
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
		older = old.peer
		n.leave(older)
	}
	n.receivers[c.name] = c
	return older, nil
}

// drop frees what p still holds, and p takes no name any more.
func (n *names) drop(p *peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leave(p)
}

// leave wants mu.
func (n *names) leave(p *peer) {
	p.leaving = true
	for _, c := range p.claims {
		if n.receivers[c.name] == c {
			delete(n.receivers, c.name)
		}
	}
}

// renew makes every claim that is being asked for be asked for again.
func (n *names) renew() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.renewed++
}

// asking is what keep wants to be told of the moment when the gate was asked.
func (n *names) asking() uint64 {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.renewed
}

var errRenewed = errors.New("the gate is to be asked again")

// keep adds c to its peer's claims. At maxClaims the oldest that the peer does not receive under makes room; if it
// receives under all of them, keep says errTooMany.
func (n *names) keep(c *claim, asked uint64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.renewed != asked {
		return errRenewed
	}
	p := c.peer
	if len(p.claims) == maxClaims {
		i := 0
		for i < maxClaims && n.receivers[p.claims[i].name] == p.claims[i] {
			i++
		}
		if i == maxClaims {
			return errTooMany
		}
		p.claims = append(p.claims[:i:i], p.claims[i+1:]...)
	}
	p.claims = append(p.claims, c)
	return nil
}
