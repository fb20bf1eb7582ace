// Package watchdog tells who is late. It knows nothing of sockets or processes, and does no I/O.
//
//	connection's reader ── Arm, Feed, Hold, Release ─> Dog ─ step (machine.go), under that dog's own short lock
//	Run's goroutine ── one timer, at the earliest deadline or the next pulse ─> pass:
//	    due dogs are suspects ─> Settle (their readers finish what lies in the sockets) ─> judged again ─> Lapsed
//
// A dog belongs to one run of one client and owns one machine: a stopwatch of silence. Silence counts only while the
// sender could have been heard: not while zhxd itself does not read it (Hold), and not over a gap in which zhxd did not
// run. A gap (SIGSTOP, overload, suspend, a step of the clock) shows as a wake-up that comes later than it was due. While
// any dog is armed the loop wakes at least once a pulse, so a gap's beginning is known to within one pulse; with none
// armed there is no timer.
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

	never = time.Duration(math.MaxInt64)
)

// An ID is a run of a client: a dog speaks for this run only.
type ID struct {
	Name string
	Run  uint64
}

// Options are the Watch's callbacks, called from Run's goroutine with no lock held.
type Options struct {
	// Settle lets the readers of the suspects' connections pass what already waits in their sockets, so that a feed that
	// came in time wins. It returns within SettleMax. May be nil.
	Settle func(suspects []ID)
	// Lapsed is told each deadline that passed, once until the dog is armed again. It must not block: to the Watch that is
	// a gap.
	Lapsed func(Lapse)
}

// A Lapse is a deadline that passed without a feed.
type Lapse struct {
	ID
	Timeout time.Duration // what was allowed
	Silence time.Duration // what was counted since the last feed, without holds and gaps: >= Timeout
}

// Watch is the set of dogs and the loop that judges them.
type Watch struct {
	// Immutable:
	o    Options
	now  func() time.Duration // monotonic, since New
	wake chan struct{}        // a dog whose deadline came nearer -> Run

	next atomic.Int64 // when Run wakes next; never while it looks for that, so that whoever comes between wakes it again

	// Owned by Run:
	ran  time.Duration // when a pass last began or settled
	late bool          // that wake-up was late

	mu   sync.Mutex // guards dogs
	dogs map[*Dog]struct{}
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

// Dog makes an unarmed dog; timeout > 0. Anybody may call it, also before Run. Retire gives it back.
func (w *Watch) Dog(id ID, timeout time.Duration) *Dog {
	d := &Dog{id: id, watch: w, m: machine{timeout: timeout}}
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

// pass judges who is due and returns when the next pass is.
func (w *Watch) pass() time.Duration {
	now := w.now()
	w.running(now, time.Duration(w.next.Swap(int64(never))))
	if suspects := w.due(now); len(suspects) > 0 {
		if w.o.Settle != nil {
			ids := make([]ID, len(suspects))
			for i, d := range suspects {
				ids[i] = d.id
			}
			w.o.Settle(ids)
		}
		settled := w.now()
		if !w.running(settled, now+SettleMax) {
			for _, d := range suspects { // who fed, is held, retired or has more time since is not due any more
				if lapse, ok := d.judge(settled); ok {
					w.o.Lapsed(lapse)
				}
			}
		}
		now = settled
	}
	next := w.earliest(now) // not from a newer reading: a stop since this one is to show as a gap
	w.next.Store(int64(next))
	return next
}

// running notes that the loop runs at now and was to run by expected. Was that too long ago, zhxd did not run: every dog
// is credited all the time since the loop last ran, and the answer is true. On a machine that is late again and again
// only the lateness is credited, else a hang would never be seen there.
func (w *Watch) running(now, expected time.Duration) (gap bool) {
	gap = now-expected > slack
	if gap {
		from := w.ran
		if w.late {
			from = expected
		}
		w.each(func(d *Dog) { d.m, _ = step(d.m, input{event: evGap, from: from, at: now}) })
	}
	w.ran, w.late = now, gap
	return gap
}

// due lists the dogs whose deadline has passed, the earliest first.
func (w *Watch) due(now time.Duration) (dogs []*Dog) {
	at := make(map[*Dog]time.Duration) // as it is now: it may move while they are sorted
	w.each(func(d *Dog) {
		if due := d.m.due(); due <= now {
			at[d] = due
			dogs = append(dogs, d)
		}
	})
	slices.SortFunc(dogs, func(a, b *Dog) int { return cmp.Compare(at[a], at[b]) })
	return dogs
}

// earliest is when the loop must run again: at the earliest deadline, at the next pulse if any dog is armed, else never.
func (w *Watch) earliest(now time.Duration) time.Duration {
	next := never
	w.each(func(d *Dog) {
		if d.m.armed() {
			next = min(next, d.m.due(), now+pulse)
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

// nudge makes Run look again, if a dog is due before Run would. Run is expected from now on: if it comes late, that is a
// gap as well. Is it late already, that stands.
func (w *Watch) nudge(due, now time.Duration) {
	next := w.next.Load()
	if int64(due) >= next {
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
