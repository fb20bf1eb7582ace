package broker

// This file lets the judge of a late sign of life wait until what has already arrived is read.

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Settle returns once no connection waits to be accepted and the readers of the peers for which mine says yes have
// handled every byte that was there when it was called, or after limit. A reader that waits for a receiver's room does
// not get there: its dog is held. One caller at a time.
func (b *Broker) Settle(limit time.Duration, mine func(who any) bool) {
	b.settling.Add(1)
	defer b.settling.Add(-1)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for b.pending(mine) {
		select {
		case <-b.passed:
		case <-timer.C:
			return
		}
	}
}

// step tells a Settle that a reader or an acceptor has handled all that was there.
func (b *Broker) step() {
	if b.settling.Load() > 0 {
		select {
		case b.passed <- struct{}{}:
		default:
		}
	}
}

// pending tells whether there is something that Settle waits for. A descriptor is asked before its busy flag: the flag is
// up from before the first byte is taken until after the last is handled.
func (b *Broker) pending(mine func(who any) bool) bool {
	b.mu.Lock()
	listeners := slices.Collect(maps.Keys(b.listeners))
	b.mu.Unlock()
	for _, l := range listeners {
		if l.waiting() || l.busy.Load() {
			return true
		}
	}
	for _, p := range b.snapshot() {
		if !p.arrived.Load() || mine(p.who) && (p.waiting() || p.busy.Load()) {
			return true
		}
	}
	return false
}

// waiting tells whether bytes of the peer are still in its socket.
func (p *peer) waiting() (yes bool) {
	p.control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		yes = n > 0 && err == nil
	})
	return yes
}

// waiting tells whether a connection waits to be accepted.
func (l *listener) waiting() (yes bool) {
	l.raw.Control(func(fd uintptr) { // an error: it is closed
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		yes = n > 0
	})
	return yes
}
