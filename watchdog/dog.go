// The handle of one dog: its machine under its lock. What readers of connections call, so nothing here waits.

package watchdog

import (
	"sync"
	"time"
)

// A Dog watches one run. Its methods are for any goroutine and never block; after Retire they do nothing.
type Dog struct {
	// Immutable:
	id    ID
	watch *Watch

	mu             sync.Mutex // guards what follows; held for a few instructions only
	m              machine
	feeds, ignored int64
}

// Status is what people see of a dog.
type Status struct {
	Armed     bool
	Paused    bool          // nothing pauses a dog yet; a hold is no pause
	Timeout   time.Duration // as set
	Remaining time.Duration // until it is due, >= 0; 0 if not armed
	Feeds     int64         // taken, armings not counted
	Ignored   int64         // feeds of a dog that was not armed
}

// Arm begins the watch, or begins it anew after a lapse. Arming an armed dog is a feed.
func (d *Dog) Arm() { d.nearer(input{event: evArm}) }

// Feed is a sign of life. False: the dog is not armed, the feed is counted as ignored.
func (d *Dog) Feed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	var taken bool
	d.m, taken = step(d.m, input{event: evFeed, at: d.watch.now()})
	if taken {
		d.feeds++
	} else {
		d.ignored++
	}
	return taken
}

// Hold stops the clock: from now on it is zhxd that does not read this run. Holds nest, each ends with one Release.
func (d *Dog) Hold() { d.nearer(input{event: evHold}) }

// Release undoes one Hold.
func (d *Dog) Release() { d.nearer(input{event: evRelease}) }

// SetTimeout applies at once: the deadline is the last feed, what was credited since, and timeout (> 0).
func (d *Dog) SetTimeout(timeout time.Duration) {
	d.nearer(input{event: evRetime, timeout: timeout})
}

// Retire ends the watch of this run for ever.
func (d *Dog) Retire() {
	d.nearer(input{event: evRetire})
	d.watch.mu.Lock()
	defer d.watch.mu.Unlock()
	delete(d.watch.dogs, d)
}

// Status is a snapshot.
func (d *Dog) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Status{Armed: d.m.armed(), Timeout: d.m.timeout, Feeds: d.feeds, Ignored: d.ignored}
	if s.Armed {
		s.Remaining = max(0, d.m.timeout-d.m.silent(d.watch.now()))
	}
	return s
}

// nearer does a step that may bring the deadline nearer than the loop knows. A feed cannot, so it has no part in this.
func (d *Dog) nearer(in input) {
	d.mu.Lock()
	in.at = d.watch.now() // under the lock: the machine's time never runs backwards
	d.m, _ = step(d.m, in)
	due := d.m.due()
	d.mu.Unlock()
	d.watch.nudge(due, in.at)
}

// judge makes it lapsed if it is due.
func (d *Dog) judge(now time.Duration) (Lapse, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var late bool
	if d.m, late = step(d.m, input{event: evLapse, at: now}); !late {
		return Lapse{}, false
	}
	return Lapse{ID: d.id, Timeout: d.m.timeout, Silence: d.m.silence}, true
}
