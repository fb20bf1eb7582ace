package watchdog

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// The model: time goes by in small ticks, and every armed dog that is not held collects the tick as silence.
type modelDog struct {
	armed, retired bool
	holds          int
	timeout        time.Duration
	silence        time.Duration
	feeds, ignored int64
}

const tick = 5 * time.Millisecond

type model struct {
	dogs   []modelDog
	now    time.Duration
	lapses []string
}

func (m *model) advance(d time.Duration) {
	for ; d > 0; d -= tick {
		m.now += tick
		for i := range m.dogs {
			if g := &m.dogs[i]; g.armed && g.holds == 0 {
				g.silence += tick
			}
		}
		m.judge()
	}
}

func (m *model) judge() {
	for i := range m.dogs {
		if g := &m.dogs[i]; g.armed && g.holds == 0 && g.silence >= g.timeout {
			g.armed = false
			m.lapses = append(m.lapses, fmt.Sprintf("%d/1 %v", i, m.now))
		}
	}
}

func (m *model) feed(i int, arm bool) (taken bool) {
	g := &m.dogs[i]
	taken = !g.retired && (g.armed || arm)
	if taken {
		g.armed, g.silence = true, 0
	}
	return taken
}

// Random events on three dogs in random time: the Watch declares the same lapses at the same instants as the model, and
// every status agrees. Events fall on multiples of 10 ms and deadlines 5 ms beside them, so that nothing is a tie.
func TestModel(t *testing.T) {
	const dogs = 3
	timeouts := rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.IntRange(0, 300).Draw(t, "timeout"))*10*time.Millisecond + tick
	})
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			var got []string
			began := time.Now()
			w := New(Options{Lapsed: func(l Lapse) { got = append(got, fmt.Sprintf("%s/%d %v", l.Name, l.Run, time.Since(began))) }})
			go w.Run(t.Context())
			m := &model{}
			var real []*Dog
			for i := range dogs {
				timeout := timeouts.Draw(t, "first timeout")
				real = append(real, w.Dog(ID{fmt.Sprint(i), 1}, timeout))
				m.dogs = append(m.dogs, modelDog{timeout: timeout})
			}
			for range rapid.IntRange(1, 60).Draw(t, "steps") {
				i := rapid.IntRange(0, dogs-1).Draw(t, "dog")
				d, g := real[i], &m.dogs[i]
				switch rapid.SampledFrom([]string{"wait", "wait", "arm", "feed", "hold", "release", "retime", "retire"}).Draw(t, "event") {
				case "wait":
					pause := time.Duration(rapid.IntRange(1, 200).Draw(t, "10ms")) * 10 * time.Millisecond
					time.Sleep(pause)
					m.advance(pause)
				case "arm":
					d.Arm()
					m.feed(i, true)
				case "feed":
					want := m.feed(i, false)
					if d.Feed() != want {
						t.Fatalf("dog %d: feed taken: want %v", i, want)
					}
					if want {
						g.feeds++
					} else {
						g.ignored++
					}
				case "hold":
					d.Hold()
					g.holds++
				case "release":
					d.Release()
					g.holds = max(0, g.holds-1)
					m.judge()
				case "retime":
					g.timeout = timeouts.Draw(t, "new timeout")
					d.SetTimeout(g.timeout)
					m.judge()
				case "retire":
					if rapid.IntRange(0, 9).Draw(t, "one in ten") == 0 {
						d.Retire()
						g.retired, g.armed = true, false
					}
				}
				synctest.Wait()
				for i, g := range m.dogs {
					want := Status{Armed: g.armed, Timeout: g.timeout, Feeds: g.feeds, Ignored: g.ignored}
					if g.armed {
						want.Remaining = max(0, g.timeout-g.silence)
					}
					if got := real[i].Status(); got != want && !g.retired {
						t.Fatalf("dog %d: status %+v, want %+v", i, got, want)
					}
				}
			}
			slices.Sort(got) // two dogs may be due in the same instant
			slices.Sort(m.lapses)
			if !slices.Equal(got, m.lapses) {
				t.Fatalf("lapsed %q, the model says %q", got, m.lapses)
			}
		})
	})
}

// Clients that feed in time, and stops of zhxd of any length at any moment: nobody lapses but the one that hangs, and that
// one at most a pulse a stop later than its timeout (in the time that zhxd ran).
func TestAnyStops(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		timeout := time.Duration(rapid.IntRange(1000, 9000).Draw(t, "timeout ms")) * time.Millisecond
		stops := rapid.SliceOfN(rapid.IntRange(200, 60_000), 0, 8).Draw(t, "stops ms")
		runs := rapid.SliceOfN(rapid.IntRange(0, 3000), 8, 8).Draw(t, "runs ms")
		rapid.SyncTest(t, func(t *rapid.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var stopped, fed, hung atomic.Int64
			w := New(Options{Lapsed: func(l Lapse) {
				if l.Name == "hangs" {
					hung.Add(1)
				} else {
					fed.Add(1)
				}
			}})
			now := w.now
			w.now = func() time.Duration { return now() + time.Duration(stopped.Load()) }
			go w.Run(ctx)
			for i := range 5 {
				d := w.Dog(ID{fmt.Sprint("feeds", i), 1}, timeout)
				d.Arm()
				go func() {
					feeds := time.NewTicker(timeout - time.Millisecond)
					defer feeds.Stop()
					for {
						select {
						case <-ctx.Done():
							return
						case <-feeds.C:
							d.Feed()
						}
					}
				}()
			}
			w.Dog(ID{"hangs", 1}, timeout).Arm()
			for i, ms := range stops {
				time.Sleep(time.Duration(runs[i])*time.Millisecond + 300*time.Microsecond)
				stopped.Add(int64(ms) * int64(time.Millisecond))
			}
			time.Sleep(timeout + time.Duration(len(stops))*pulse)
			synctest.Wait()
			if fed.Load() != 0 || hung.Load() != 1 {
				t.Fatalf("%d of those that feed lapsed, %d of the one that hangs", fed.Load(), hung.Load())
			}
		})
	})
}
