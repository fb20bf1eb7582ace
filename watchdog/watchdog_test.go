package watchdog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// story is a Watch in a bubble of fake time, with what it declared lapsed.
type story struct {
	*Watch
	began   time.Time
	stopped atomic.Int64 // how long the process did not run: time that passed with no timer firing
	looks   atomic.Int64 // readings of the clock

	mu     sync.Mutex // guards what follows
	lapses []string   // "name/run at" in bubble time
	last   Lapse
	warned []Warning
	warnAt []time.Duration
}

func tell(t *testing.T, settle func(*story, []ID), more ...func(*Options)) *story {
	st := &story{began: time.Now()}
	o := Options{
		Lapsed: func(l Lapse) {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.last = l
			st.lapses = append(st.lapses, fmt.Sprintf("%s/%d %v", l.Name, l.Run, time.Since(st.began)))
		},
		Warned: func(w Warning) {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.warned, st.warnAt = append(st.warned, w), append(st.warnAt, time.Since(st.began))
		},
	}
	if settle != nil {
		o.Settle = func(ids []ID) { settle(st, ids) }
	}
	for _, f := range more {
		f(&o)
	}
	st.Watch = New(o)
	now := st.now
	st.now = func() time.Duration { st.looks.Add(1); return now() + time.Duration(st.stopped.Load()) }
	ctx, cancel := context.WithCancel(context.Background())
	go st.Run(ctx)
	t.Cleanup(cancel)
	synctest.Wait()
	return st
}

// stop is SIGSTOP for that long, or a step of the clock: to zhxd they are the same.
func (st *story) stop(d time.Duration) { st.stopped.Add(int64(d)) }

func (st *story) dog(name string, timeout time.Duration) *Dog {
	return st.Dog(ID{name, 1}, Rules{Timeout: timeout})
}

func (st *story) want(t *testing.T, lapses ...string) {
	t.Helper()
	synctest.Wait()
	st.mu.Lock()
	defer st.mu.Unlock()
	if !slices.Equal(st.lapses, lapses) {
		t.Errorf("after %v: lapsed %q, want %q", time.Since(st.began), st.lapses, lapses)
	}
}

// Intervals are what the client did: a lapse that changed nothing cuts none in two, and a clock that stands makes no short ones.
func TestIntervalsOfADog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d *Dog
		st := tell(t, nil, func(o *Options) { o.Lapsed = func(Lapse) { d.Arm() } }) // as mode "observe" does
		d = st.dog("a", 9*s)
		feed := func(after time.Duration) { time.Sleep(after); d.Feed() }
		d.Arm()
		feed(20 * s)
		feed(2 * s)
		d.Pause(10 * s)
		feed(s)
		feed(s)
		d.Resume()
		feed(3 * s)
		d.Extend(time.Minute)
		feed(30 * s)
		if got := d.Status(); got.Intervals.Count != 3 || got.Intervals.Min != 2*s || got.Intervals.Max != 20*s || got.Margin != -11*s || got.Misses != 0 || got.Feeds != 6 {
			t.Errorf("%+v", got)
		}
		// The same in buckets: 2 s, 3 s and 20 s, each in the first whose end it does not exceed.
		want := Buckets{Sum: 25 * s}
		for _, end := range []time.Duration{2 * s, 3 * s, 30 * s} {
			want.Counts[slices.Index(Bounds[:], end)]++
		}
		if got := d.Status().Intervals.Buckets; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		want.Merge(want)
		if want.Sum != 50*s || want.Counts[slices.Index(Bounds[:], 2*s)] != 2 {
			t.Errorf("twice as many: %+v", want)
		}
	})
}

func TestStories(t *testing.T) {
	const eps = time.Nanosecond
	for _, row := range []struct {
		purpose string
		play    func(t *testing.T, st *story)
		settle  func(st *story, ids []ID)
	}{
		{purpose: "a lapse comes exactly at the timeout, once, and not again before the dog is armed again", play: func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Arm()
			time.Sleep(9*s - eps)
			st.want(t)
			time.Sleep(eps)
			st.want(t, "a/1 9s")
			if st.last.Silence != 9*s || st.last.Timeout != 9*s {
				t.Errorf("lapse is %+v", st.last)
			}
			if d.Feed() {
				t.Error("a feed after the lapse was taken")
			}
			time.Sleep(time.Hour)
			d.Arm()
			time.Sleep(9 * s)
			st.want(t, "a/1 9s", "a/1 1h0m18s")
		}},
		{purpose: "a feed at the last moment counts", play: func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Arm()
			for range 5 {
				time.Sleep(9*s - eps)
				if !d.Feed() {
					t.Error("feed refused")
				}
			}
			time.Sleep(9*s - eps)
			st.want(t)
			time.Sleep(eps)
			st.want(t, "a/1 53.999999995s")
		}},
		{purpose: "an unarmed dog is never late, and its feeds are counted as ignored", play: func(t *testing.T, st *story) {
			d := st.dog("a", s)
			d.Feed()
			time.Sleep(time.Hour)
			st.want(t)
			if got := d.Status(); got != (Status{Timeout: s, Ignored: 1}) {
				t.Errorf("status %+v", got)
			}
		}},
		{purpose: "arming wakes an idle loop", play: func(t *testing.T, st *story) {
			time.Sleep(100 * time.Hour)
			st.dog("a", 10*time.Millisecond).Arm()
			time.Sleep(10 * time.Millisecond)
			st.want(t, "a/1 100h0m0.01s")
		}},
		{purpose: "arming a quick dog beside a slow one is in time", play: func(t *testing.T, st *story) {
			st.dog("slow", 9*s).Arm()
			time.Sleep(s / 2)
			st.dog("quick", 10*time.Millisecond).Arm()
			time.Sleep(10 * time.Millisecond)
			st.want(t, "quick/1 510ms")
		}},
		{purpose: "with no dog armed nothing wakes the loop", play: func(t *testing.T, st *story) {
			a, b, _ := st.dog("a", s), st.dog("b", s), st.dog("never", s)
			a.Arm()
			b.Arm()
			b.Retire()
			time.Sleep(2 * s)
			st.want(t, "a/1 1s")
			looks := st.looks.Load()
			if next := time.Duration(st.next.Load()); next != never {
				t.Errorf("the loop will wake at %v", next)
			}
			time.Sleep(24 * time.Hour)
			synctest.Wait()
			if st.looks.Load() != looks {
				t.Errorf("the loop looked at the clock %d times in a day with nobody armed", st.looks.Load()-looks)
			}
		}},
		{purpose: "an armed dog costs one wake-up a pulse, however often it feeds", play: func(t *testing.T, st *story) {
			d := st.dog("a", time.Hour)
			d.Arm()
			synctest.Wait()
			looks := st.looks.Load()
			for range 100_000 {
				d.Feed()
			}
			time.Sleep(60*s + s/2)
			synctest.Wait()
			if passes := (st.looks.Load() - looks - 100_000) / 2; passes != 60 { // a pass looks twice
				t.Errorf("%d passes in 60 s", passes)
			}
		}},
		{purpose: "zhxd stopped for 30 s while 50 clients feed: nobody lapses, and a real hang is seen afterwards", play: func(t *testing.T, st *story) {
			feeding, end := context.WithCancel(t.Context())
			for i := range 50 {
				d := st.dog(fmt.Sprint(i), 9*s)
				d.Arm()
				go func() {
					tick := time.NewTicker(8*s + time.Duration(i)*time.Millisecond)
					defer tick.Stop()
					for {
						select {
						case <-feeding.Done():
							return
						case <-tick.C:
							d.Feed()
						}
					}
				}()
			}
			hung := st.dog("hung", 9*s)
			hung.Arm()
			time.Sleep(7900 * time.Millisecond)
			st.stop(30 * s)
			time.Sleep(2 * s) // the hung one has 1.1 s left, and what passed since the last pulse (0.9 s) is credited as well
			st.want(t)
			time.Sleep(s)
			st.want(t, "hung/1 10s")
			if st.last.Silence != 9*s {
				t.Errorf("lapse is %+v", st.last)
			}
			time.Sleep(time.Minute)
			st.want(t, "hung/1 10s")
			end()
		}},
		{purpose: "the clock steps 3 minutes forward", play: func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Arm()
			time.Sleep(8400 * time.Millisecond)
			st.stop(3 * time.Minute)
			time.Sleep(s)
			st.want(t)
			if !d.Feed() {
				t.Error("feed refused")
			}
			time.Sleep(9*s - eps)
			st.want(t)
			time.Sleep(eps)
			st.want(t, "a/1 18.4s")
		}},
		{purpose: "after a stop a reader may shorten a timeout before the loop runs: the gap is still seen", play: func(t *testing.T, st *story) {
			a, b := st.dog("a", 9*s), st.dog("b", 9*s)
			a.Arm()
			b.Arm()
			time.Sleep(3 * s)
			st.stop(30 * s)
			a.SetTimeout(5 * s)
			time.Sleep(s)
			st.want(t)
		}},
		{purpose: "a machine that is late at every pulse still sees a hang", play: func(t *testing.T, st *story) {
			st.dog("a", 9*s).Arm()
			time.Sleep(300 * time.Millisecond)
			for range 20 {
				st.stop(slack + s/10)
				time.Sleep(s)
			}
			st.want(t, "a/1 10s") // 1 s and 0.2 s for the first late pulse
		}},
		{purpose: "being a little late is no gap", play: func(t *testing.T, st *story) {
			st.dog("a", 9*s).Arm()
			time.Sleep(8600 * time.Millisecond)
			st.stop(slack)
			time.Sleep(400 * time.Millisecond)
			st.want(t, "a/1 9s")
		}},
		{purpose: "a held sender does not lapse; the last of nested releases gives it the rest of its time", play: func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Arm()
			time.Sleep(8 * s)
			d.Hold()
			d.Hold()
			time.Sleep(time.Hour)
			d.Release()
			time.Sleep(time.Hour)
			st.want(t)
			if got := d.Status(); !got.Armed || got.Remaining != s {
				t.Errorf("status while held %+v", got)
			}
			d.Release()
			time.Sleep(s - eps)
			st.want(t)
			time.Sleep(eps)
			st.want(t, "a/1 2h0m9s")
			if st.last.Silence != 9*s {
				t.Errorf("lapse is %+v", st.last)
			}
		}},
		{purpose: "a release just before the deadline wakes the loop in time", play: func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Arm()
			time.Sleep(9*s - time.Millisecond)
			d.Hold()
			time.Sleep(3 * time.Millisecond)
			d.Release()
			time.Sleep(time.Millisecond)
			st.want(t, "a/1 9.003s")
		}},
		{purpose: "held before it is armed: it is watched from the release on", play: func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Hold()
			d.Arm()
			time.Sleep(time.Minute)
			d.Release()
			time.Sleep(9 * s)
			st.want(t, "a/1 1m9s")
		}},
		{purpose: "a shorter timeout applies at once, also one that has passed", play: func(t *testing.T, st *story) {
			a, b := st.dog("a", time.Hour), st.dog("b", time.Hour)
			a.Arm()
			b.Arm()
			time.Sleep(5*s + s/2)
			a.SetTimeout(6 * s)
			b.SetTimeout(4 * s)
			st.want(t, "b/1 5.5s")
			time.Sleep(s / 2)
			st.want(t, "b/1 5.5s", "a/1 6s")
		}},
		{purpose: "a longer timeout counts from the last feed", play: func(t *testing.T, st *story) {
			d := st.dog("a", 3*s)
			d.Arm()
			time.Sleep(2 * s)
			d.SetTimeout(20 * s)
			time.Sleep(18*s - eps)
			st.want(t)
			time.Sleep(eps)
			st.want(t, "a/1 20s")
		}},
		{purpose: "a retired dog is forgotten, and its words with it", play: func(t *testing.T, st *story) {
			d := st.dog("a", 3*s)
			d.Arm()
			time.Sleep(2 * s)
			d.Retire()
			d.Retire()
			d.Arm()
			d.Release()
			if d.Feed() {
				t.Error("a retired dog took a feed")
			}
			time.Sleep(time.Hour)
			st.want(t)
			if len(st.dogs) != 0 {
				t.Errorf("%d dogs kept", len(st.dogs))
			}
		}},
		{purpose: "the new run has a dog of its own: the old one's feed does not help it", play: func(t *testing.T, st *story) {
			old, young := st.Dog(ID{"a", 1}, Rules{Timeout: 3 * s}), st.Dog(ID{"a", 2}, Rules{Timeout: 3 * s})
			young.Arm()
			time.Sleep(2 * s)
			old.Feed()
			time.Sleep(s)
			st.want(t, "a/2 3s")
		}},
		{purpose: "arming twice is a feed", play: func(t *testing.T, st *story) {
			d := st.dog("a", 3*s)
			d.Arm()
			time.Sleep(2 * s)
			d.Arm()
			time.Sleep(3 * s)
			st.want(t, "a/1 5s")
		}},
		{purpose: "the suspects are told together, the earliest first, and those still silent lapse in that order",
			play: func(t *testing.T, st *story) {
				for i, name := range []string{"d", "c", "b", "a"} {
					st.dog(name, time.Minute+time.Duration(i)).Arm()
				}
				st.dog("later", time.Hour).Arm()
				time.Sleep(time.Minute - eps)
				st.stop(4)
				time.Sleep(eps)
				st.want(t, "[{d 1} {c 1} {b 1} {a 1}]", "d/1 1m0s", "c/1 1m0s", "b/1 1m0s", "a/1 1m0s")
			},
			settle: func(st *story, ids []ID) {
				st.mu.Lock()
				defer st.mu.Unlock()
				st.lapses = append(st.lapses, fmt.Sprint(ids))
			}},
	} {
		t.Run(row.purpose, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { row.play(t, tell(t, row.settle)) })
		})
	}
}

// What arrives while Settle lets the readers catch up decides: a feed, a hold, more time, the end of the run.
func TestSettle(t *testing.T) {
	for _, row := range []struct {
		purpose string
		during  func(st *story, d *Dog)
		want    []string
	}{
		{"nothing", func(st *story, d *Dog) {}, []string{"a/1 9.05s"}},
		{"a queued feed wins", func(st *story, d *Dog) { d.Feed() }, nil},
		{"its sender is held", func(st *story, d *Dog) { d.Hold() }, nil},
		{"it gets more time", func(st *story, d *Dog) { d.SetTimeout(time.Minute) }, nil},
		{"it is retired", func(st *story, d *Dog) { d.Retire() }, nil},
		{"zhxd is stopped meanwhile: judged only after the readers had their time again", func(st *story, d *Dog) { st.stop(time.Minute) }, []string{"a/1 9.1s"}},
		{"another dog is armed: the loop looks again", func(st *story, d *Dog) { st.dog("b", s).Arm() }, []string{"a/1 9.05s", "b/1 10.05s"}},
	} {
		t.Run(row.purpose, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d *Dog
				first := true
				st := tell(t, func(st *story, ids []ID) {
					if first {
						row.during(st, d)
					}
					first = false
					time.Sleep(SettleMax)
				})
				d = st.dog("a", 9*s)
				d.Arm()
				time.Sleep(11 * s)
				st.want(t, row.want...)
			})
		})
	}
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := tell(t, nil).dog("a", 9*s)
		d.Arm()
		d.Feed()
		time.Sleep(2 * s)
		one := Intervals{Count: 1}
		one.Buckets.Counts[0] = 1
		if got, want := d.Status(), (Status{Armed: true, Timeout: 9 * s, Remaining: 7 * s, Feeds: 1, Intervals: one, Margin: 9 * s}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		time.Sleep(7 * s)
		synctest.Wait()
		d.Feed()
		if got, want := d.Status(), (Status{Timeout: 9 * s, Feeds: 1, Ignored: 1, Intervals: one, Margin: 9 * s}); got != want {
			t.Errorf("lapsed: got %+v, want %+v", got, want)
		}
	})
}

// The judge knows how late it came itself.
func TestLateness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := tell(t, nil)
		st.dog("a", 9*s).Arm()
		time.Sleep(s / 2)
		if l := st.Lateness(); l.Gaps != 0 || l.Given != 0 || l.Wakes.Sum != 0 || l.Wakes.Counts[0] == 0 {
			t.Errorf("in time: %+v", l)
		}
		st.stop(5 * s)
		time.Sleep(s)
		l := st.Lateness()
		if late := l.Wakes.Counts[slices.Index(Bounds[:], 5*s)]; l.Gaps != 1 || late != 1 || l.Wakes.Sum != 5*s || l.Given < 5*s || l.Given > 5*s+pulse {
			t.Errorf("after a stop of 5 s: %+v", l)
		}
	})
}

// A feed is on every client's hot path: no allocation, and no matter how many others feed.
func BenchmarkFeed(b *testing.B) {
	w := New(Options{})
	go w.Run(b.Context())
	dogs := make([]*Dog, 500)
	for i := range dogs {
		dogs[i] = w.Dog(ID{fmt.Sprint(i), 1}, Rules{Timeout: time.Minute})
		dogs[i].Arm()
	}
	b.ReportAllocs()
	var n atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for i := int(n.Add(1)) * 37; pb.Next(); i++ {
			dogs[i%len(dogs)].Feed()
		}
	})
}

// A pass over 500 armed dogs of whom nobody is late.
func BenchmarkPass(b *testing.B) {
	w := New(Options{})
	for i := range 500 {
		w.Dog(ID{fmt.Sprint(i), 1}, Rules{Timeout: 24 * time.Hour}).Arm()
	}
	b.ReportAllocs()
	for b.Loop() {
		w.pass()
	}
}

// Feed allocates nothing, taken or not.
func TestFeedAllocates(t *testing.T) {
	d := New(Options{}).Dog(ID{"a", 1}, Rules{Timeout: time.Minute, Deadlines: []Deadline{{"x", "x", s}}})
	for range 2 {
		if n := testing.AllocsPerRun(100, func() { d.Feed(); d.Checkpoint("x") }); n != 0 {
			t.Errorf("armed %v: %v allocations a feed", d.Status().Armed, n)
		}
		d.Arm()
	}
}
