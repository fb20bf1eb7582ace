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

// The model: time goes by in small ticks, and every stopwatch that runs collects the tick, unless its dog stands.
type modelWatch struct {
	runs, warned               bool
	silence, extended, granted time.Duration
}

type modelDog struct {
	armed, retired, startup, traced bool
	begun                           bool // was armed once
	holds                           int
	pause, look, credited           time.Duration // what is left
	rules                           Rules
	watches                         [1 + DeadlinesMax]modelWatch
	feeds, ignored, misses          int64
	excuse                          Excuse // what Examine would find
}

const tick = 500 * time.Microsecond

func (g *modelDog) tick(gap bool) {
	if g.look -= tick; g.pause > 0 {
		if g.pause -= tick; g.pause == 0 {
			g.renew()
		}
	} else if g.armed && !gap && g.holds == 0 && !g.traced {
		for i := range g.watches {
			g.watches[i].silence += tick
		}
	}
}

func (g *modelDog) renew() {
	for i := range g.watches {
		g.watches[i] = modelWatch{runs: g.watches[i].runs}
	}
}

// limits are those of the stopwatch: its name, when it warns, when it is due.
func (g *modelDog) limits(i int) (by string, warn, limit time.Duration) {
	switch by, limit = "alive", g.rules.Timeout; {
	case i > 0:
		by, limit = g.rules.Deadlines[i-1].From+" to "+g.rules.Deadlines[i-1].To, g.rules.Deadlines[i-1].Within
	case g.startup:
		if by = "startup"; g.rules.Startup > 0 {
			limit = g.rules.Startup
		}
	}
	if warn = g.rules.Warn; warn == 0 || warn >= limit {
		warn = limit / 2
	}
	return by, warn, limit
}

// judge tells what happens at this instant.
func (g *modelDog) judge(tell func(what, by string)) {
	if g.armed && g.traced && g.look <= 0 {
		g.look = pulse
		if g.traced = g.excuse.Traced; !g.traced {
			g.renew()
		}
	}
	if !g.armed || g.holds > 0 || g.pause > 0 || g.traced {
		return
	}
	for i := range 1 + len(g.rules.Deadlines) {
		w := &g.watches[i]
		if by, warn, _ := g.limits(i); w.runs && !w.warned && w.silence >= warn+w.extended {
			w.warned = true
			tell("warned", by)
		}
	}
	for {
		first, late := 0, time.Duration(-1)
		for i := range 1 + len(g.rules.Deadlines) {
			w := &g.watches[i]
			if _, _, limit := g.limits(i); w.runs && w.silence-limit-w.extended-w.granted > late {
				first, late = i, w.silence-limit-w.extended-w.granted
			}
		}
		if late < 0 {
			return
		}
		if g.excuse.Traced {
			g.traced, g.look = true, pulse
			return
		}
		w := &g.watches[first]
		by, _, limit := g.limits(first)
		more := min(g.excuse.Starved, limit) - w.granted
		if more < grantMin {
			g.armed = false
			tell("lapsed", by)
			return
		}
		w.granted += more
		g.credited += more
	}
}

func (g *modelDog) feed(arm, require bool) bool {
	if g.retired || !g.armed && !arm {
		return false
	}
	if !g.armed {
		g.armed, g.traced, g.watches = true, false, [1 + DeadlinesMax]modelWatch{}
	}
	g.begun, g.startup, g.watches[0] = true, require, modelWatch{runs: true}
	return true
}

func (g *modelDog) checkpoint(name string) (taken bool) {
	for i, d := range g.rules.Deadlines {
		if w := &g.watches[i+1]; g.armed && (d.From == name || d.To == name) {
			taken = true
			if d.From == d.To || d.From == name && !w.runs {
				*w = modelWatch{runs: true}
			} else if d.To == name {
				*w = modelWatch{}
			}
		}
	}
	return taken
}

// Random events on three dogs in random time: the Watch warns and declares lapses of the same stopwatches at the same
// instants as the model, and every status agrees. Events fall on multiples of 100 ms, and alarms beside them, so that
// nothing is a tie.
func TestModel(t *testing.T) {
	const dogs = 3
	grid := func(t *rapid.T, label string, from, to int) time.Duration { // not by IntRange: that prefers the small ones
		return time.Duration(from+rapid.SampledFrom([]int{0, 1, 2, 3, 5, 8, 13, 21, 34}).Draw(t, label)*(to-from)/34) * 100 * ms
	}
	limits := rapid.Custom(func(t *rapid.T) time.Duration { return grid(t, "limit", 0, 40) + 11*ms })
	rules := rapid.Custom(func(t *rapid.T) Rules {
		r := Rules{Timeout: limits.Draw(t, "timeout")}
		if rapid.Bool().Draw(t, "more") {
			r.Startup, r.Warn = limits.Draw(t, "startup"), grid(t, "warn", 0, 20)
			if r.Warn > 0 {
				r.Warn += 7 * ms
			}
		}
		for _, d := range rapid.SliceOfNDistinct(rapid.SampledFrom([]Deadline{{From: "x", To: "y"}, {From: "y", To: "x"}, {From: "x", To: "x"}, {From: "y", To: "z"}}),
			1, 4, func(d Deadline) Deadline { return d }).Draw(t, "deadlines") {
			d.Within = limits.Draw(t, "within")
			r.Deadlines = append(r.Deadlines, d)
		}
		return r
	})
	rapid.Check(t, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			var got, want []string
			var stopped atomic.Int64
			var now time.Duration // the model's
			model := make([]modelDog, dogs)
			w := New(Options{
				Warned:  func(l Warning) { got = append(got, fmt.Sprintf("%s warned %s", l.Name, l.By)) },
				Lapsed:  func(l Lapse) { got = append(got, fmt.Sprintf("%s lapsed %s", l.Name, l.By)) },
				Examine: func(id ID) Excuse { return model[id.Run].excuse },
			})
			bubble := w.now
			w.now = func() time.Duration { return bubble() + time.Duration(stopped.Load()) }
			go w.Run(t.Context())
			judge := func() {
				for i := range model {
					model[i].judge(func(what, by string) { want = append(want, fmt.Sprintf("%d %s %s", i, what, by)) })
				}
			}
			pass := func() { // a pass now, with nothing due: so it is known from where on a gap is credited
				w.wake <- struct{}{}
				synctest.Wait()
			}
			var real []*Dog
			for i := range model {
				model[i].rules = rules.Draw(t, "first rules")
				real = append(real, w.Dog(ID{fmt.Sprint(i), uint64(i)}, model[i].rules))
			}
			unseen := false // no miss is known of feeds that come before the loop has seen a gap
			event := func(what string) {
				i := rapid.IntRange(0, dogs-1).Draw(t, "dog")
				d, g := real[i], &model[i]
				if old := *g; old.retired {
					defer func() { old.ignored = g.ignored; *g = old }()
				}
				switch what {
				case "arm":
					d.Arm()
					g.feed(true, false)
				case "require":
					d.Require()
					if !g.begun {
						g.feed(true, true)
					}
				case "feed":
					_, warn, _ := g.limits(0)
					silence, extended, startup := g.watches[0].silence, g.watches[0].extended, g.startup
					taken := g.feed(false, false)
					if d.Feed() != taken {
						t.Fatalf("dog %d: feed taken: want %v", i, taken)
					}
					switch {
					case !taken:
						g.ignored++
					case !startup && silence >= warn+extended:
						g.misses++
						fallthrough
					default:
						g.feeds++
					}
				case "checkpoint":
					name := rapid.SampledFrom([]string{"x", "y", "z", "other"}).Draw(t, "name")
					if taken := g.checkpoint(name); d.Checkpoint(name) != taken {
						t.Fatalf("dog %d: checkpoint taken: want %v", i, taken)
					}
				case "hold":
					d.Hold()
					g.holds++
				case "release":
					d.Release()
					g.holds = max(0, g.holds-1)
				case "pause":
					g.pause = grid(t, "length", 1, 50)
					d.Pause(g.pause)
				case "resume":
					d.Resume()
					if g.pause > 0 {
						g.pause = 0
						g.renew()
					}
				case "rules":
					old := g.rules
					g.rules = rules.Draw(t, "new rules")
					d.SetRules(g.rules)
					watches := [1 + DeadlinesMax]modelWatch{g.watches[0]}
					for i, d := range g.rules.Deadlines {
						for j, o := range old.Deadlines {
							if d.From+d.To == o.From+o.To {
								watches[i+1] = g.watches[j+1]
							}
						}
					}
					g.watches = watches
				case "retime":
					g.rules.Timeout = limits.Draw(t, "new timeout")
					d.SetTimeout(g.rules.Timeout)
				case "extend":
					more := grid(t, "more", 0, 50) + 3*ms
					if rapid.IntRange(0, 9).Draw(t, "one in ten") == 0 {
						more = 2 * ExtendMax
					}
					d.Extend(more)
					a := &g.watches[0]
					if _, _, limit := g.limits(0); g.armed {
						a.extended += max(0, min(more-(limit+a.extended+a.granted-a.silence), ExtendMax-a.extended))
					}
				case "tracer":
					g.excuse.Traced = !g.excuse.Traced
				case "starve":
					g.excuse.Starved = grid(t, "starved", 0, 60)
				case "retire":
					if rapid.IntRange(0, 9).Draw(t, "one in ten") == 0 {
						d.Retire()
						g.retired, g.armed, g.pause = true, false, 0
					}
				}
			}
			for range 200 {
				what := rapid.SampledFrom([]string{"wait", "wait", "wait", "wait", "wait", "arm", "arm", "require", "feed", "feed", "checkpoint", "checkpoint", "checkpoint", "checkpoint", "hold", "release", "pause", "resume",
					"rules", "retime", "extend", "tracer", "starve", "retire", "gap"}).Draw(t, "event")
				d := grid(t, "how long", 1, 20)
				switch what {
				case "wait":
					time.Sleep(d)
					for end := now + d; now < end; now += tick {
						for i := range model {
							model[i].tick(false)
						}
						judge()
					}
				case "gap":
					pass()
					d += 2 * pulse
					stopped.Add(int64(d))
					for end := now + d; now < end; now += tick {
						for i := range model {
							model[i].tick(true)
						}
					}
					for range rapid.IntRange(0, 3).Draw(t, "before the loop runs") {
						unseen = true
						event(rapid.SampledFrom([]string{"arm", "feed", "checkpoint", "hold", "release"}).Draw(t, "event"))
					}
					pass()
				default:
					event(what)
				}
				judge()
				synctest.Wait()
				slices.Sort(got) // two may be due in the same instant
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Fatalf("at %v: %q, the model says %q", now, got, want)
				}
				got, want = nil, nil
				for i, g := range model {
					_, _, limit := g.limits(0)
					want := Status{Armed: g.armed, Paused: g.pause > 0, Traced: g.armed && g.traced, Timeout: limit, Feeds: g.feeds, Ignored: g.ignored,
						Misses: g.misses, Credited: g.credited}
					if want.Paused {
						want.PausedFor = g.pause
					}
					if a := g.watches[0]; g.armed {
						want.Remaining, want.Late = max(0, limit+a.extended+a.granted-a.silence), a.runs && a.warned
					}
					got := real[i].Status()
					got.Intervals, got.Margin = Intervals{}, 0
					if unseen {
						got.Misses = want.Misses
					}
					if got != want {
						t.Fatalf("at %v dog %d: status %+v, want %+v", now, i, got, want)
					}
				}
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
				d := w.Dog(ID{fmt.Sprint("feeds", i), 1}, Rules{Timeout: timeout})
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
			w.Dog(ID{"hangs", 1}, Rules{Timeout: timeout}).Arm()
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
