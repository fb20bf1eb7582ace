// Package watchdog tells who is late. It knows nothing of sockets or processes, and does no I/O.
//
//	connection's reader ── Arm, Feed, Checkpoint, Hold … ─> Dog ─ step (machine.go), under that dog's own short lock
//	Run's goroutine ── one timer, at the earliest alarm or the next pulse ─> pass:
//	    half of a silence is over ─> Warned
//	    due dogs are suspects ─> Settle (their readers finish what lies in the sockets) ─> Examine each that is still due
//	        ─> judged: traced, its clock stands; starved, it gets that time; else Lapsed
//	    all judged ─> Passed
//
// A dog belongs to one run of one client and owns one machine: stopwatches of silence, one for the feeds and one for each
// pair of checkpoints. Silence counts only while the sender could have been heard and could speak: not while zhxd itself
// does not read it (Hold), not while somebody stopped the watch (Pause) or the client (a tracer), and not over a gap in
// which zhxd did not run. A gap (SIGSTOP, overload, suspend, a step of the clock) shows as a wake-up that comes later than
// it was due. While any dog is armed the loop wakes at least once a pulse, so a gap's beginning is known to within one
// pulse; with none armed, and no Beat asked for, there is no timer. Time is the monotonic clock alone.
//
// The Watch owns the set of dogs and the loop. Lock order: Watch.mu, then Dog.mu; no callback runs under either. The
// limits are below; the number of dogs is limited by who makes them.
package watchdog

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	pulse     = time.Second            // longest time between two wake-ups while a dog is armed: the error of a gap's length
	slack     = 100 * time.Millisecond // a wake-up later than this means that zhxd did not run: a gap
	SettleMax = 50 * time.Millisecond  // what Settle may take; beyond it by more than slack is a gap, and nobody is judged
	grantMin  = 10 * time.Millisecond  // less starvation than this is no excuse

	DeadlinesMax = 8         // of one dog
	ExtendMax    = time.Hour // what Extend may add to one silence

	never = time.Duration(math.MaxInt64)
)

// An ID is a run of a client: a dog speaks for this run only.
type ID struct {
	Name string
	Run  uint64
}

// Rules is what a dog goes by. The zero Startup and Warn are defaults.
type Rules struct {
	Timeout   time.Duration // the longest silence between two feeds; > 0
	Startup   time.Duration // of a required one, until the first feed; 0: Timeout
	Warn      time.Duration // silence at which Warned is told; 0, or not below the limit that holds: half of that limit
	Deadlines []Deadline    // DeadlinesMax of them at most, more are left out; never written to
}

// A Deadline is the longest time from checkpoint From to checkpoint To; if they are the same, from each to the next.
type Deadline struct {
	From, To string
	Within   time.Duration // > 0
}

// Options are the Watch's callbacks, called from Run's goroutine with no lock held. Each but Lapsed may be nil. What they
// take beyond slack, Settle beyond SettleMax, is to the Watch a gap.
type Options struct {
	// Settle lets the readers of the suspects' connections pass what already waits in their sockets, so that a feed that
	// came in time wins. It returns within SettleMax.
	Settle func(suspects []ID)
	// Examine asks, after Settle, what excuses one that is still due, and once a pulse one that was found traced.
	Examine func(ID) Excuse
	// Warned is told once in a silence. It must not block.
	Warned func(Warning)
	// Lapsed is told each dog whose deadline passed, once until it is armed again. It must not block.
	Lapsed func(Lapse)
	// Passed is told of each pass that has judged all who were due. It must not block.
	Passed func()
	// Beat makes passes at least so often, also with no dog armed. 0: only when a dog needs them.
	Beat time.Duration
}

// An Excuse is what a late client's silence may be due to. With both zero it lapses.
type Excuse struct {
	Traced bool // a tracer has it: its clock stands until Examine says otherwise, then every limit counts anew
	// Starved is the time since Warned in which it wanted a processor and got none. So much later is its deadline, by one
	// limit at most in one silence.
	Starved time.Duration
}

// A Warning is a silence that has gone on for Rules.Warn.
type Warning struct {
	ID
	By      string        // "alive", "startup", or "FROM to TO" of a Deadline
	Limit   time.Duration // what is allowed
	Silence time.Duration // what was counted so far, >= Rules.Warn or half of Limit
}

// A Lapse is a deadline that passed without a feed, or without its checkpoint.
type Lapse struct {
	ID
	By       string        // as in Warning; the earliest, if several have passed
	Timeout  time.Duration // what was allowed
	Silence  time.Duration // what was counted, without holds, pauses and gaps: >= Timeout + Credited
	Credited time.Duration // what it was given in this silence for starvation
}

// Watch is the set of dogs and the loop that judges them.
type Watch struct {
	// Immutable:
	o    Options
	now  func() time.Duration // monotonic, since New
	wake chan struct{}        // a dog whose alarm came nearer -> Run

	next atomic.Int64 // when Run wakes next; never while it looks for that, so that whoever comes between wakes it again

	// Owned by Run:
	ran  time.Duration // when a pass last began or settled
	late bool          // that wake-up was late

	mu       sync.Mutex // guards what follows
	dogs     map[*Dog]struct{}
	lateness Lateness
}

// Lateness tells how well zhxd itself keeps time.
type Lateness struct {
	Wakes Buckets       // how late each wake-up of Run was, if at all
	Gaps  int64         // those that were later than 100 ms: zhxd did not run
	Given time.Duration // in sum, the time that was taken from all silences therefore
}

// Lateness is a snapshot of what Run has seen since it began.
func (w *Watch) Lateness() Lateness {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lateness
}

// New makes a Watch without dogs. Run must be running for anybody to be judged.
func New(o Options) *Watch {
	began := time.Now()
	w := &Watch{
		o:    o,
		now:  func() time.Duration { return time.Since(began) },
		wake: make(chan struct{}, 1),
		dogs: make(map[*Dog]struct{}),
	}
	w.next.Store(int64(never))
	return w
}

// Dog makes an unarmed dog. Anybody may call it, also before Run. Retire gives it back.
func (w *Watch) Dog(id ID, r Rules) *Dog {
	d := &Dog{id: id, watch: w}
	d.m.follow(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dogs[d] = struct{}{}
	return d
}

// Run judges until ctx ends. One goroutine a Watch.
func (w *Watch) Run(ctx context.Context) {
	timer := time.NewTimer(never)
	timer.Stop()
	for {
		if next := w.pass(); next == never {
			timer.Stop()
		} else {
			timer.Reset(next - w.now())
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// pass warns of and judges who is due, and returns when the next pass is.
func (w *Watch) pass() time.Duration {
	now := w.now()
	w.running(now, time.Duration(w.next.Load()))
	w.next.Store(int64(never)) // only now: until it is credited, a feed that comes in a gap looks here for the gap
	done := true
	if suspects := w.look(now); len(suspects) > 0 {
		if w.o.Settle != nil {
			ids := make([]ID, len(suspects))
			for i, d := range suspects {
				ids[i] = d.id
			}
			w.o.Settle(ids)
		}
		settled := w.now()
		if done = !w.running(settled, now+SettleMax); done {
			for _, d := range suspects { // who fed, is held, retired or has more time since is not due any more
				w.judge(d, settled)
			}
		}
		now = settled
	}
	next := w.earliest(now) // not from a newer reading: a stop since this one is to show as a gap
	w.next.Store(int64(next))
	if done && w.o.Passed != nil {
		w.o.Passed()
	}
	return next
}

// running notes that the loop runs at now and was to run by expected. Was that too long ago, zhxd did not run: every dog
// is credited all the time since the loop last ran, and the answer is true. On a machine that is late again and again
// only the lateness is credited, else a hang would never be seen there.
func (w *Watch) running(now, expected time.Duration) (gap bool) {
	gap = now-expected > slack
	from := w.ran
	if w.late {
		from = expected
	}
	w.mu.Lock()
	w.lateness.Wakes.Add(max(0, now-expected))
	if gap {
		w.lateness.Gaps++
		w.lateness.Given += now - from
	}
	w.mu.Unlock()
	if gap {
		w.each(func(d *Dog) { d.m.step(input{event: evGap, from: from, at: now}) })
	}
	w.ran, w.late = now, gap
	return gap
}

// look tells the warnings and lists the dogs that are due, the earliest first.
func (w *Watch) look(now time.Duration) (dogs []*Dog) {
	var warnings []Warning
	at := make(map[*Dog]time.Duration) // as it is now: it may move while they are sorted
	w.each(func(d *Dog) {
		more, due := d.look(now)
		warnings = append(warnings, more...)
		if due <= now {
			at[d] = due
			dogs = append(dogs, d)
		}
	})
	if w.o.Warned != nil {
		for _, warning := range warnings {
			w.o.Warned(warning)
		}
	}
	slices.SortFunc(dogs, func(a, b *Dog) int { return cmp.Compare(at[a], at[b]) })
	return dogs
}

// judge asks for the excuse of a suspect that is still due, and tells its lapse if there is none.
func (w *Watch) judge(d *Dog, now time.Duration) {
	if !d.suspect(now) {
		return
	}
	var excuse Excuse
	if w.o.Examine != nil {
		excuse = w.o.Examine(d.id)
	}
	if lapse, ok := d.judge(now, excuse); ok {
		w.o.Lapsed(lapse)
	}
}

// earliest is when the loop must run again: at the earliest alarm, at the next pulse if any dog is armed, at the next
// beat if that is asked for, else never.
func (w *Watch) earliest(now time.Duration) time.Duration {
	next := never
	if w.o.Beat > 0 {
		next = now + w.o.Beat
	}
	w.each(func(d *Dog) {
		if d.m.armed() {
			next = min(next, d.m.alarm(), now+pulse)
		}
	})
	return max(next, now) // who became due while the suspects settled is no sign of a gap
}

// each calls f with every dog, locked.
func (w *Watch) each(f func(d *Dog)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for d := range w.dogs {
		d.mu.Lock()
		f(d)
		d.mu.Unlock()
	}
}

// nudge makes Run look again, if a dog has an alarm before Run would. Run is expected from now on: if it comes late, that
// is a gap as well. Is it late already, that stands.
func (w *Watch) nudge(alarm, now time.Duration) {
	next := w.next.Load()
	if int64(alarm) >= next {
		return
	}
	if int64(now) < next {
		w.next.CompareAndSwap(next, int64(now))
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
