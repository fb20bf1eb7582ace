package watchdog

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

const ms = time.Millisecond

// wantWarned checks who was warned of, by which stopwatch and when.
func (st *story) wantWarned(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	st.mu.Lock()
	defer st.mu.Unlock()
	var got []string
	for i, w := range st.warned {
		got = append(got, fmt.Sprintf("%s %s %v: %v of %v", w.Name, w.By, st.warnAt[i], w.Silence, w.Limit))
	}
	if !slices.Equal(got, want) {
		t.Errorf("warned %q, want %q", got, want)
	}
}

// Limits: warnings, the start, deadlines, extensions, pauses, beats.
func TestLimits(t *testing.T) {
	id := ID{"a", 1}
	for _, row := range []struct {
		purpose string
		play    func(t *testing.T, st *story)
	}{
		{"a silence is told once, at half of its limit, and the next one again", func(t *testing.T, st *story) {
			d := st.dog("a", 8*s)
			d.Arm()
			time.Sleep(7 * s)
			d.Feed()
			time.Sleep(3 * s)
			d.Feed()
			time.Sleep(8 * s)
			st.wantWarned(t, "a alive 4s: 4s of 8s", "a alive 14s: 4s of 8s")
			st.want(t, "a/1 18s")
			if got := d.Status(); got.Misses != 1 || got.Feeds != 2 {
				t.Errorf("%d misses of %d feeds", got.Misses, got.Feeds)
			}
		}},
		{"a warning of its own length, also in the silence after a miss; one that is not below the limit is half of it", func(t *testing.T, st *story) {
			d := st.Dog(id, Rules{Timeout: 900 * ms, Warn: 100 * ms})
			d.Arm()
			time.Sleep(200 * ms)
			d.Feed()
			time.Sleep(200 * ms)
			d.SetRules(Rules{Timeout: 900 * ms, Warn: 900 * ms})
			d.Feed()
			time.Sleep(500 * ms)
			st.wantWarned(t, "a alive 100ms: 100ms of 900ms", "a alive 300ms: 100ms of 900ms", "a alive 850ms: 450ms of 900ms")
		}},
		{"the start of a required one has its limit, the first feed ends it at once", func(t *testing.T, st *story) {
			d, never := st.Dog(id, Rules{Timeout: 10 * ms, Startup: time.Minute}), st.Dog(ID{"never", 1}, Rules{Timeout: s, Startup: 2 * s})
			d.Require()
			never.Require()
			if got := d.Status(); !got.Armed || got.Timeout != time.Minute || got.Remaining != time.Minute {
				t.Errorf("status %+v", got)
			}
			time.Sleep(2*s + s/4)
			st.want(t, "never/1 2s")
			if st.last.By != "startup" || st.last.Timeout != 2*s {
				t.Errorf("lapse %+v", st.last)
			}
			d.Feed()
			if got := d.Status(); got.Timeout != 10*ms || got.Intervals.Count != 0 || got.Misses != 0 {
				t.Errorf("status %+v", got)
			}
			time.Sleep(10 * ms)
			st.want(t, "never/1 2s", "a/1 2.26s")
			st.wantWarned(t, "never startup 1s: 1s of 2s", "a alive 2.255s: 5ms of 10ms")
		}},
		{"feeds do not hide a dead main loop: the deadline lapses in time and is named", func(t *testing.T, st *story) {
			d := st.Dog(id, Rules{Timeout: 9 * s, Deadlines: []Deadline{{"begin", "end", 100 * ms}}})
			if d.Checkpoint("begin") {
				t.Error("a checkpoint of an unarmed dog was taken")
			}
			d.Arm()
			if d.Checkpoint("other") {
				t.Error("an unknown checkpoint was taken")
			}
			for range 20 {
				if !d.Checkpoint("begin") {
					t.Error("a checkpoint was refused")
				}
				time.Sleep(50*ms - 1)
				d.Checkpoint("end")
				time.Sleep(50*ms + 1)
				d.Feed()
			}
			d.Checkpoint("begin")
			d.Feed()
			time.Sleep(s)
			st.want(t, "a/1 2.1s")
			st.wantWarned(t, "a begin to end 2.05s: 50ms of 100ms")
			if want := (Lapse{ID: id, By: "begin to end", Timeout: 100 * ms, Silence: 100 * ms}); st.last != want {
				t.Errorf("lapse %+v, want %+v", st.last, want)
			}
		}},
		{"more time on request, for this silence", func(t *testing.T, st *story) {
			d := st.dog("a", 4*s)
			d.Extend(time.Hour) // unarmed: nothing to extend
			d.Arm()
			time.Sleep(3 * s)
			d.Extend(10 * s)
			if got := d.Status(); got.Remaining != 10*s {
				t.Errorf("status %+v", got)
			}
			time.Sleep(9 * s)
			st.want(t)
			d.Feed()
			time.Sleep(4 * s)
			st.want(t, "a/1 16s")
		}},
		{"a pause ends by itself: then the whole limit counts", func(t *testing.T, st *story) {
			d := st.dog("a", 4*s)
			d.Arm()
			time.Sleep(3 * s)
			d.Pause(time.Second) // replaced
			d.Pause(time.Minute)
			time.Sleep(20 * s)
			if got := d.Status(); !got.Armed || !got.Paused || got.PausedFor != 40*s || got.Remaining != s {
				t.Errorf("status %+v", got)
			}
			time.Sleep(40 * s)
			if got := d.Status(); got.Paused || got.PausedFor != 0 || got.Remaining != 4*s {
				t.Errorf("status after it %+v", got)
			}
			time.Sleep(4 * s)
			st.want(t, "a/1 1m7s")
			st.wantWarned(t, "a alive 2s: 2s of 4s", "a alive 1m5s: 2s of 4s")
		}},
		{"a pause of a dog that is not armed holds when it is, also beyond a lapse; resume ends it", func(t *testing.T, st *story) {
			d := st.dog("a", 2*s)
			d.Pause(never)
			if time.Duration(st.next.Load()) != never {
				t.Error("a pause alone wakes the loop")
			}
			d.Arm()
			time.Sleep(time.Hour)
			d.Resume()
			time.Sleep(2 * s)
			st.want(t, "a/1 1h0m2s")
			d.Pause(time.Minute)
			d.Arm()
			time.Sleep(time.Hour)
			st.want(t, "a/1 1h0m2s", "a/1 1h1m4s")
		}},
		{"a pause shorter than the limit makes nobody lapse sooner", func(t *testing.T, st *story) {
			d := st.dog("a", 100*ms)
			d.Arm()
			time.Sleep(99 * ms)
			d.Pause(ms)
			time.Sleep(99 * ms)
			st.want(t)
			time.Sleep(2 * ms)
			st.want(t, "a/1 200ms")
		}},
		{"the clock stopped, a reader holds and releases before the loop sees it: nobody is late", func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Arm()
			time.Sleep(3300 * ms)
			d.Feed()
			st.stop(30 * s)
			d.Hold()
			d.Release()
			time.Sleep(10 * s)
			st.want(t, "a/1 13s") // the loop sees the gap at its next pulse, and credits up to there
		}},
		{"a feed that comes before the loop has seen the gap is no miss, and no long silence", func(t *testing.T, st *story) {
			d := st.dog("a", 9*s)
			d.Arm()
			time.Sleep(2300 * ms)
			st.stop(time.Hour)
			d.Feed()
			if got := d.Status(); got.Misses != 0 || got.Intervals.Max != 3*s+slack {
				t.Errorf("status %+v", got)
			}
		}},
	} {
		t.Run(row.purpose, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { row.play(t, tell(t, nil)) })
		})
	}
}

// Excuses: a tracer, starvation. Examine is called with no lock held: it asks for statuses and makes dogs.
func TestExcuses(t *testing.T) {
	for _, row := range []struct {
		purpose  string
		examine  func(st *story, n int64) Excuse // the nth call
		examined int64
		lapse    string
		last     Lapse
	}{
		{"none", func(*story, int64) Excuse { return Excuse{} }, 1, "a/1 3s", Lapse{Silence: 3 * s}},
		{"traced for 3 timeouts: looked at each pulse, then a whole timeout", func(st *story, n int64) Excuse {
			return Excuse{Traced: time.Since(st.began) <= 12*s}
		}, 12, "a/1 16s", Lapse{Silence: 3 * s}},
		{"starved in half of its silence", func(*story, int64) Excuse { return Excuse{Starved: 1500 * ms} }, 2, "a/1 4.5s", Lapse{Silence: 4500 * ms, Credited: 1500 * ms}},
		{"starved for ever: one limit and no more", func(st *story, n int64) Excuse { return Excuse{Starved: time.Since(st.began) - 1500*ms} }, 3, "a/1 6s", Lapse{Silence: 6 * s, Credited: 3 * s}},
		{"starved for less than counts", func(*story, int64) Excuse { return Excuse{Starved: grantMin - 1} }, 1, "a/1 3s", Lapse{Silence: 3 * s}},
	} {
		t.Run(row.purpose, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var st *story
				var d *Dog
				var n atomic.Int64
				st = tell(t, nil, func(o *Options) {
					o.Examine = func(id ID) Excuse {
						d.Status()
						st.dog("new", s).Retire()
						return row.examine(st, n.Add(1))
					}
				})
				d = st.dog("a", 3*s)
				d.Arm()
				time.Sleep(10 * s)
				if got := d.Status(); got.Traced != (row.last.Silence == 3*s && row.examined > 1) {
					t.Errorf("status %+v", got)
				}
				time.Sleep(time.Minute)
				st.want(t, row.lapse)
				row.last.ID, row.last.By, row.last.Timeout = ID{"a", 1}, "alive", 3*s
				if st.last != row.last {
					t.Errorf("lapse %+v, want %+v", st.last, row.last)
				}
				if n.Load() != row.examined {
					t.Errorf("examined %d times, want %d", n.Load(), row.examined)
				}
				if got := d.Status(); got.Credited != row.last.Credited {
					t.Errorf("credited %v in sum", got.Credited)
				}
			})
		})
	}
}

// With a beat the loop passes also for nobody, says so, and says nothing of a pass that could not judge.
func TestBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var passed atomic.Int64
		var stop atomic.Bool
		st := tell(t, func(st *story, _ []ID) {
			if stop.Swap(false) {
				st.stop(time.Minute)
			}
		}, func(o *Options) { o.Beat, o.Passed = 2*s, func() { passed.Add(1) } })
		want := func(n int64) {
			t.Helper()
			synctest.Wait()
			if got := passed.Swap(0); got != n {
				t.Errorf("%d passes, want %d", got, n)
			}
		}
		want(1)
		time.Sleep(10 * s)
		want(5)
		st.stop(time.Hour)
		time.Sleep(2 * s)
		want(1)
		d := st.dog("a", s/2)
		d.Arm()
		want(1)
		stop.Store(true)
		time.Sleep(s / 4) // the warning
		want(1)
		time.Sleep(s / 4) // due: the first pass is stopped while the readers settle, the second judges
		st.want(t, "a/1 12.5s")
		want(1)
	})
}

// 50 clients feed at half of their timeout while the loop, and so the readers, come late by anything at any time.
func TestFeedAtHalf(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			st, r := tell(t, nil), rand.New(rand.NewPCG(seed, 1))
			for i := range 50 {
				timeout := 2*s + time.Duration(i)*7*ms
				d := st.dog(fmt.Sprint(i), timeout)
				d.Arm()
				go func() {
					feeds := time.NewTicker(timeout / 2)
					defer feeds.Stop()
					for {
						select {
						case <-t.Context().Done():
							return
						case <-feeds.C:
							d.Feed()
						}
					}
				}()
			}
			for range 300 {
				time.Sleep(time.Duration(100+r.IntN(400)) * ms)
				late := time.Duration(r.IntN(200)) * ms
				if r.IntN(10) == 0 {
					late = time.Duration(r.IntN(10_000)) * ms
				}
				st.stop(late)
			}
			st.want(t)
		})
	}
}

// The wall clock has no say: the package reads a clock in New alone, and there a difference of two of its own readings,
// which is monotonic. No file keeps a time.Time but that one, or builds one.
func TestMonotonic(t *testing.T) {
	var reads []string
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			ast.Inspect(decl, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" && !slices.Contains([]string{"Duration", "NewTimer", "Hour", "Second", "Millisecond"}, sel.Sel.Name) {
						where := ""
						if fn, ok := decl.(*ast.FuncDecl); ok {
							where = fn.Name.Name
						}
						reads = append(reads, where+" "+sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
	if want := []string{"New Now", "New Since"}; !slices.Equal(reads, want) {
		t.Errorf("uses of package time: %q, want %q", reads, want)
	}
}

// The histogram against sorted silences: p99 is never less than the exact one, and at most 13 % or 0.14 ms more.
func TestIntervals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		silences := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Int64Range(0, 1<<rapid.IntRange(0, 43).Draw(t, "bits")).Draw(t, "silence"))
		}), 1, 500).Draw(t, "silences")
		var h histogram
		var sum time.Duration
		for _, d := range silences {
			h.add(d)
			sum += d
		}
		slices.Sort(silences)
		n := len(silences)
		exact, got := silences[n-n/100-1], h.intervals()
		if got.Count != int64(n) || got.Min != silences[0] || got.Max != silences[n-1] || got.Mean != sum/time.Duration(n) ||
			got.P99 < exact || got.P99 > got.Max || got.P99 > max(exact+exact*13/100, exact+140*time.Microsecond) {
			t.Fatalf("got %+v of %v", got, silences)
		}
	})
}
