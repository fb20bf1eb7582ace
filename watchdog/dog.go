// The handle of one dog: its machine under its lock. What readers of connections call, so nothing here waits.

package watchdog

import (
	"math/bits"
	"sync"
	"time"
)

// A Dog watches one run. Its methods are for any goroutine and never block; after Retire they do nothing.
type Dog struct {
	// Immutable:
	id    ID
	watch *Watch

	mu                     sync.Mutex // guards what follows; held for a few instructions only
	m                      machine
	feeds, ignored, misses int64
	intervals              histogram
	unheard                time.Duration // silence up to a lapse that changed nothing, as it was armed again: part of the interval that a feed ends
}

// Status is what people see of a dog.
type Status struct {
	Armed     bool
	Paused    bool          // by hand; a hold is no pause
	PausedFor time.Duration // what is left of that; 0 if not paused
	Traced    bool          // as of the last pulse
	Late      bool          // its silence was warned of, and goes on
	Timeout   time.Duration // of alive, as it holds now: Startup before the first feed of a required one
	Remaining time.Duration // until alive is due, >= 0; 0 if not armed
	Feeds     int64         // taken, armings not counted
	Ignored   int64         // feeds of a dog that was not armed
	Misses    int64         // feeds that came after the warning, and after no lapse
	Intervals Intervals
	Margin    time.Duration // Rules.Timeout less Intervals.Max, < 0 if that was longer; 0 without intervals
	Credited  time.Duration // for starvation, in sum
}

// Intervals tell of the silences that the feeds since arming ended. Left out are the first one of a required dog, one that was
// extended, and feeds while the clock stands.
type Intervals struct {
	Count               int64
	Min, Mean, P99, Max time.Duration // P99 is rounded up, by 13 % or 0.13 ms at most
	Buckets             Buckets
}

// Arm begins the watch, or begins it anew after a lapse. Arming an armed dog is a feed.
func (d *Dog) Arm() { d.tell(input{event: evArm}) }

// Require begins the watch of a dog that was never armed, at its run's start: until the first feed Rules.Startup holds.
func (d *Dog) Require() { d.tell(input{event: evRequire}) }

// Feed is a sign of life. False: the dog is not armed, the feed is counted as ignored.
func (d *Dog) Feed() bool { return d.tell(input{event: evFeed}) }

// Checkpoint is a named place that the run passes; it is no feed. False: the dog is not armed, or no deadline has that name.
func (d *Dog) Checkpoint(name string) bool { return d.tell(input{event: evCheckpoint, name: name}) }

// Hold stops the clock: from now on it is zhxd that does not read this run. Holds nest, each ends with one Release.
func (d *Dog) Hold() { d.tell(input{event: evHold}) }

// Release undoes one Hold.
func (d *Dog) Release() { d.tell(input{event: evRelease}) }

// Pause stops the clock for that long, or until Resume; it takes the place of a pause under way. After it every limit
// counts from its end.
func (d *Dog) Pause(length time.Duration) { d.tell(input{event: evPause, d: max(0, length)}) }

// Resume ends a pause.
func (d *Dog) Resume() { d.tell(input{event: evResume}) }

// Trace says that the run is traced: its clock stands until Examine finds that it is not any more.
func (d *Dog) Trace() { d.tell(input{event: evTrace}) }

// SetRules applies at once to the silences under way. The clock of a deadline with the same names goes on.
func (d *Dog) SetRules(r Rules) { d.tell(input{event: evRules, rules: r}) }

// SetTimeout is Rules.Timeout (> 0) until the next SetRules.
func (d *Dog) SetTimeout(timeout time.Duration) { d.tell(input{event: evRetime, d: timeout}) }

// Extend allows the present silence of an armed dog for length from now on at least. Between two feeds that adds
// ExtendMax at most; more is cut.
func (d *Dog) Extend(length time.Duration) { d.tell(input{event: evExtend, d: length}) }

// Retire ends the watch of this run for ever.
func (d *Dog) Retire() {
	d.tell(input{event: evRetire})
	d.watch.mu.Lock()
	defer d.watch.mu.Unlock()
	delete(d.watch.dogs, d)
}

// Status is a snapshot.
func (d *Dog) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.watch.now()
	m := d.m
	m.step(input{event: evTick, at: now}) // a pause may be over
	s := Status{Armed: m.armed(), Paused: m.until > 0, Traced: m.armed() && m.traced, Timeout: m.limit(alive),
		Feeds: d.feeds, Ignored: d.ignored, Misses: d.misses, Intervals: d.intervals.intervals(), Credited: m.credited}
	if s.Paused {
		s.PausedFor = m.until - now
	}
	if w := m.watches[alive]; s.Armed {
		s.Late = w.runs && w.warned
		s.Remaining = max(0, s.Timeout+w.extended+w.granted-m.silence(alive, now))
	}
	if s.Intervals.Count > 0 {
		s.Margin = m.rules.Timeout - s.Intervals.Max
	}
	return s
}

// tell does a step, and wakes the loop if the dog has to be looked at sooner than it knows. A feed moves that away, so it
// never does, but where it ends a startup, an extension or a silence whose warning came before half of its limit.
func (d *Dog) tell(in input) (taken bool) {
	d.mu.Lock()
	in.at = d.watch.now() // under the lock: the machine's time never runs backwards
	was, state, startup, extended := d.m.alarm(), d.m.state, d.m.startup, d.m.watches[alive].extended
	// A feed may come before the loop has seen a gap: then no more silence counts than until the loop was to see it.
	heard := min(in.at, min(time.Duration(d.watch.next.Load()), never-slack)+slack)
	silence := d.m.silence(alive, heard)
	warning := d.m.warning(alive)
	taken = d.m.step(in)
	switch {
	case in.event == evArm && state == lapsed:
		d.unheard += silence
	case in.event != evFeed:
	case !taken:
		d.ignored++
	default:
		d.feeds++
		if !startup && silence >= warning+extended {
			d.misses++
		}
		if !startup && extended == 0 && state == watched {
			d.intervals.add(d.unheard + silence)
		}
		d.unheard = 0
	}
	alarm := d.m.alarm()
	d.mu.Unlock()
	if alarm < was {
		d.watch.nudge(alarm, in.at)
	}
	return taken
}

// look brings it to now and tells whether the judge has to look at it.
func (d *Dog) look(now time.Duration) (warnings []Warning, due time.Duration) {
	d.m.step(input{event: evTick, at: now})
	for d.m.step(input{event: evWarn, at: now}) {
		i := d.m.which
		warnings = append(warnings, Warning{ID: d.id, By: d.m.by(i), Limit: d.m.limit(i), Silence: d.m.silence(i, now)})
	}
	return warnings, d.m.due()
}

// suspect is whether it is due.
func (d *Dog) suspect(now time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.m.due() <= now
}

// judge makes it lapsed if it is due and not excused.
func (d *Dog) judge(now time.Duration, e Excuse) (Lapse, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	late := d.m.step(input{event: evJudge, at: now, excuse: e})
	if !late {
		return Lapse{}, false
	}
	i := d.m.which
	return Lapse{ID: d.id, By: d.m.by(i), Timeout: d.m.limit(i), Silence: d.m.silence(i, now), Credited: d.m.watches[i].granted}, true
}

// histogram counts durations in buckets: 8 an octave, from 2^17 ns on; below, and beyond the last, they are less exact.
type histogram struct {
	count    int64
	min, max time.Duration
	buckets  [25 * 8]uint32
	coarse   Buckets
}

const unit = 17 // log2 of the nanoseconds of one unit

func (h *histogram) add(d time.Duration) {
	if h.count == 0 || d < h.min {
		h.min = d
	}
	h.count++
	h.max = max(h.max, d)
	h.coarse.Add(d)
	units := uint64(d) >> unit
	octave := max(0, bits.Len64(units)-4)
	h.buckets[min(octave*8+int(units>>octave), len(h.buckets)-1)]++
}

func (h *histogram) intervals() Intervals {
	if h.count == 0 {
		return Intervals{}
	}
	in := Intervals{Count: h.count, Min: h.min, Mean: h.coarse.Sum / time.Duration(h.count), P99: h.max, Max: h.max, Buckets: h.coarse}
	below := h.count - h.count/100 // so many are not longer than P99
	for i, n := range h.buckets[:len(h.buckets)-1] {
		if below -= int64(n); below <= 0 {
			octave := max(0, i/8-1)
			in.P99 = min(h.max, time.Duration(i-octave*8+1)<<(octave+unit))
			break
		}
	}
	return in
}

// Bounds are the inclusive upper ends of Buckets, the same for all of them.
var Bounds = [...]time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, time.Second,
	2 * time.Second, 3 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second}

// Buckets counts durations: Counts[i] have those of at most Bounds[i] that are in no bucket before, the last one all others. Its
// owner guards it.
type Buckets struct {
	Counts [len(Bounds) + 1]int64
	Sum    time.Duration
}

// Add counts d.
func (b *Buckets) Add(d time.Duration) {
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	b.Counts[i]++
	b.Sum += d
}

// Merge counts all that o has counted.
func (b *Buckets) Merge(o Buckets) {
	for i, n := range o.Counts {
		b.Counts[i] += n
	}
	b.Sum += o.Sum
}
