package broker

// This file is what one user may take of what all share: half of it, so that nobody's flood leaves the others nothing. Root and
// zhxd's own user may take all.

import (
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// user is one uid that is, or was lately, connected. Nil is nobody's: no share.
type user struct {
	// Immutable:
	uid int // -1: unknown
	all bool

	// Bytes: load waits, for its connections or sent by it under names that are no client's; partial is of frames begun.
	load, partial, keptBytes                 atomic.Int64
	peers, fds, subscriptions, watches, kept atomic.Int64

	mu sync.Mutex
	// mu guards:
	since time.Time
	lines int // of the log, since then
}

// take adds n to what u has of a thing, of which there are limit for all; false: that would be more than its share.
func (u *user) take(of *atomic.Int64, n, limit int64) bool {
	if now := of.Add(n); n > 0 && !u.all && now > limit/2 {
		of.Add(-n)
		return false
	}
	return true
}

// fits tells whether n bytes more may wait.
func (b *Broker) fits(u *user, n int) bool {
	return b.load.Load()+int64(n) <= totalBytes && (u == nil || u.all || u.load.Load()+int64(n) <= totalBytes/2)
}

// weigh accounts for bytes that wait, or, negative, wait no longer.
func (b *Broker) weigh(u *user, n int) {
	b.load.Add(int64(n))
	if u != nil {
		u.load.Add(int64(n))
	}
}

func (u *user) is(other *user) bool { return u != nil && other != nil && u.uid == other.uid }

// loud tells whether a line about u may be logged now.
func (u *user) loud() bool {
	if u == nil || u.all {
		return true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); now.Sub(u.since) >= logEvery {
		u.since, u.lines = now, 0
	}
	u.lines++
	return u.lines <= userLines
}

// enroll counts one more connection of a user, nil: it has its share. It wants mu.
func (b *Broker) enroll(uid int) *user {
	u := b.users[uid]
	if u == nil {
		u = &user{uid: uid, all: (uid == 0 || uid == os.Geteuid()) && !b.equal}
		b.users[uid] = u
	}
	if !u.take(&u.peers, 1, int64(b.limit)) {
		return nil
	}
	return u
}

// dismiss is called when a connection has ended. It wants mu.
func (b *Broker) dismiss(u *user) {
	if u.peers.Add(-1) == 0 {
		maps.DeleteFunc(b.users, func(_ int, u *user) bool { return u.peers.Load() == 0 && u.load.Load() == 0 && u.kept.Load() == 0 })
	}
}

// payer is whose share it is that what p sends takes: nobody's, if the sender is a client's process.
func (p *peer) payer(from *claim) *user {
	if p == nil || p.user.all || from != nil && from.session.Managed() {
		return nil
	}
	return p.user
}
