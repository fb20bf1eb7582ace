package procman

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"zhx/procman/notify"
	"zhx/procman/proc"
)

func on(deps ...string) func(*Spec)   { return func(s *Spec) { s.DependsOn = deps } }
func readyBy(r ReadyWhen) func(*Spec) { return func(s *Spec) { s.Ready = r } }
func oneshot(s *Spec)                 { s.Oneshot, s.Restart = true, OnFailure }

// TestLevels: a client's level is one more than the deepest that it depends on; who depends on one is found through others too.
func TestLevels(t *testing.T) {
	specs := []Spec{spec("app", on("db", "net")), spec("db", on("net")), spec("net"), spec("log"), spec("view", on("app"))}
	want(t, "levels", fmt.Sprint(levels(specs)), "map[app:2 db:1 log:0 net:0 view:3]")
	want(t, "net's dependants", fmt.Sprint(dependants(specs, "net")), "[app db view]")
	want(t, "view's", fmt.Sprint(dependants(specs, "view")), "[]")
}

// TestDependsOn: a client is spawned when those that it depends on are ready, whatever ready is to them, and says whom it
// waits for; those that depend on nobody are not kept waiting.
func TestDependsOn(t *testing.T) {
	for _, c := range []struct {
		story string
		dep   Spec
		ready func(w *world, s *Set)
	}{
		{"registered", spec("dep", readyBy(ReadyRegister)), func(_ *world, s *Set) { s.Registered("dep", 1) }},
		{"READY=1", spec("dep", readyBy(ReadyNotify)), func(_ *world, s *Set) {
			p, _ := s.find("dep")
			p.hear(1, notify.Message{Ready: true})
		}},
		{"ended with success", spec("dep", oneshot), func(w *world, _ *Set) { w.life("dep").die(proc.Exit{}) }},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			s := w.set()
			defer s.Shutdown(bg)
			s.Apply([]Spec{spec("app", on("dep")), c.dep, spec("other")})
			synctest.Wait()
			got := strings.Split(w.notes(), ", ")
			slices.Sort(got)
			want(t, c.story+": spawned", strings.Join(got, ", "), "spawn dep 1, spawn other 1")
			want(t, c.story+": state", state(s, "app").State, Waiting)
			want(t, c.story+": waits for", fmt.Sprint(state(s, "app").WaitsFor), "[dep]")
			c.ready(w, s)
			want(t, c.story+": Wait", s.Wait(bg), nil)
			want(t, c.story+": state at last", state(s, "app").State, Running)
			want(t, c.story+": ready", state(s, "dep").Ready, true)
		})
	}
}

// TestStopDependants: whoever depends on a client stops before it, waits while it is down, and comes back after it.
func TestStopDependants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		s.Apply([]Spec{spec("db"), spec("app", on("db")), spec("view", on("app")), spec("other")})
		want(t, "wait", s.Wait(bg), nil)
		w.notes()
		want(t, "stop", s.Stop(bg, "db", "anna"), nil)
		want(t, "order", w.notes(), "signal view 1 SIGTERM, ended view 1 dependency, signal app 1 SIGTERM, ended app 1 dependency, signal db 1 SIGTERM, ended db 1 stop")
		want(t, "view", state(s, "view").State, Waiting)
		if err := s.Start(bg, "app", "anna"); err == nil || !strings.Contains(err.Error(), `depends on "db", which is stopped`) {
			t.Errorf("start of one whose dependency is stopped by hand: %v", err)
		}
		want(t, "start", s.Start(bg, "db", "anna"), nil)
		synctest.Wait()
		want(t, "back", w.notes(), "spawn db 2, spawn app 2, spawn view 2")
		want(t, "restart", s.Restart(bg, "app", "anna"), nil)
		synctest.Wait()
		want(t, "order", w.signals(), "signal view 2 SIGTERM, signal app 2 SIGTERM")
		want(t, "view's run", state(s, "view").Run, 3)
		w.life("db").die(proc.Exit{Code: 1}) // a crash takes nobody along
		synctest.Wait()
		want(t, "after a crash", state(s, "app").Run, 3)
		time.Sleep(time.Minute)
		w.notes()
		s.Shutdown(bg)
		got := w.signals()
		if !strings.HasSuffix(got, "signal app 3 SIGTERM, signal other 1 SIGTERM, signal db 3 SIGTERM") {
			t.Errorf("shutdown: %s", got)
		}
	})
}

// TestRaise: a start by hand, and autostart, start what is depended on although it has no autostart itself.
func TestRaise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		manual := func(s *Spec) { s.Autostart = false }
		s.Apply([]Spec{spec("db", manual), spec("app", manual, on("db")), spec("net", manual), spec("view", on("net"))})
		want(t, "wait", s.Wait(bg), nil)
		want(t, "autostart", w.notes(), "spawn net 1, spawn view 1")
		want(t, "start", s.Start(bg, "app", "anna"), nil)
		want(t, "by hand", w.notes(), "spawn db 1, spawn app 1")
	})
}

// TestStartTimeout: a run that does not get ready is killed for that, and says so.
func TestStartTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a", readyBy(ReadyNotify), func(s *Spec) { s.StartTimeout = 3 * time.Second })})
		time.Sleep(4 * time.Second)
		last := state(s, "a").LastExit
		want(t, "reason", last.Reason, ByTimeout)
		want(t, "text", last.Text, "not ready within 3s")
		want(t, "run", state(s, "a").Run, 2)
	})
}

// TestStartLimit: the restart after burst of them is not made; on_failure is executed once, and a start by hand begins anew.
func TestStartLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a", func(s *Spec) { s.StartLimit, s.OnFailure = StartLimit{2, time.Minute}, []string{"tell"} })})
		for range 3 {
			w.life("a").die(proc.Exit{Code: 1})
			time.Sleep(time.Second)
		}
		st := state(s, "a")
		want(t, "state", st.State, Failed)
		want(t, "why", st.Text, "restarted 2 times within 1m0s")
		want(t, "deaths", len(st.Deaths), 3)
		want(t, "next", st.Deaths[2].Next, "stays so until it is started by hand")
		want(t, "on_failure", strings.Count(w.notes(), "on_failure a"), 1)
		want(t, "by hand", s.Start(bg, "a", "anna"), nil)
		w.life("a").die(proc.Exit{Code: 1})
		time.Sleep(time.Second)
		want(t, "counted anew", state(s, "a").State, Running)
	})
}

// TestSuccessCodes: an exit code of the list is no failure.
func TestSuccessCodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a", func(s *Spec) { s.Restart, s.SuccessCodes = OnFailure, []int{0, 3} })})
		w.life("a").die(proc.Exit{Code: 4})
		time.Sleep(time.Minute)
		want(t, "4", state(s, "a").State, Running)
		w.life("a").die(proc.Exit{Code: 3})
		synctest.Wait()
		want(t, "3", state(s, "a").State, Exited)
	})
}

// TestRestartTogether: when one of a group fails the others are restarted; when it is stopped by hand they are not.
func TestRestartTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		together := func(names ...string) func(*Spec) { return func(s *Spec) { s.RestartWith = names } }
		s.Apply([]Spec{spec("a", together("b")), spec("b", together("a")), spec("c")})
		w.life("a").die(proc.Exit{Code: -1, Signal: 11})
		time.Sleep(time.Minute)
		want(t, "runs", fmt.Sprint(state(s, "a").Run, state(s, "b").Run, state(s, "c").Run), "2 2 1")
		want(t, "reason", state(s, "b").LastExit.Reason, ByDependency)
		s.Stop(bg, "a", "anna")
		time.Sleep(time.Minute)
		want(t, "after a stop", state(s, "b").Run, 2)
	})
}

// TestBucket: clients that crash at once come back at the board's rate, and none is forgotten.
func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		var specs []Spec
		for i := range 200 {
			specs = append(specs, spec(fmt.Sprintf("c%d", i)))
		}
		s.Apply(specs)
		want(t, "wait", s.Wait(bg), nil)
		time.Sleep(time.Minute)
		w.notes()
		for _, spec := range specs {
			w.life(spec.Name).die(proc.Exit{Code: 1})
		}
		back := func() int { return strings.Count(w.notes(), "spawn") }
		synctest.Wait()
		want(t, "at once", back(), restartBurst)
		time.Sleep(time.Second + time.Millisecond)
		want(t, "in the first second", back(), restartRate)
		time.Sleep(time.Second)
		want(t, "in the second", back(), 200-restartBurst-restartRate)
	})
}

// TestOutOfTime: what keeps the end waiting is named and killed.
func TestOutOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		w.tough["b"] = true
		s.Apply([]Spec{spec("a"), spec("b", on("a"), func(s *Spec) { s.StopTimeout = time.Hour })})
		s.Wait(bg)
		ctx, cancel := context.WithTimeout(bg, time.Minute)
		defer cancel()
		s.Shutdown(ctx)
		if !strings.Contains(w.log.String(), `msg="blocks the end" client=b state=stopping`) {
			t.Errorf("nobody was told:\n%s", &w.log)
		}
	})
}

func brief(st Status) string { return fmt.Sprintf("%s %d", st.State, st.Run) }

// TestLaterRequestWins: a stop that still waits for dependants does not undo a start that was asked for after it.
func TestLaterRequestWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		w.tough["app"] = true // takes 5 s to stop
		s.Apply([]Spec{spec("db"), spec("app", on("db"))})
		s.Wait(bg)
		stopped := make(chan error, 1)
		go func() { stopped <- s.Stop(bg, "db", "anna") }()
		time.Sleep(time.Second)
		want(t, "start", s.Start(bg, "db", "otto"), nil)
		if err := <-stopped; !errors.Is(err, ErrSuperseded) {
			t.Errorf("stop: %v", err)
		}
		want(t, "db", brief(state(s, "db")), "running 1")
		want(t, "app", brief(state(s, "app")), "running 2")
	})
}

// TestEditWhileLowering: an edit that comes while another's restart waits for dependants does not swallow that restart; one
// that removes the client does.
func TestEditWhileLowering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		w.tough["app"] = true
		db := spec("db")
		s.Apply([]Spec{db, spec("app", on("db"))})
		s.Wait(bg)
		db.Command = []string{"y"}
		s.Apply([]Spec{db, spec("app", on("db"))})
		time.Sleep(time.Second)
		db.StableAfter *= 2
		s.Apply([]Spec{db, spec("app", on("db"))})
		time.Sleep(10 * time.Second)
		want(t, "db", fmt.Sprint(state(s, "db").Run, state(s, "db").Ready), "2 true")
		want(t, "app", brief(state(s, "app")), "running 2")

		db.Command = []string{"z"}
		s.Apply([]Spec{db, spec("app", on("db"))})
		time.Sleep(time.Second)
		s.Apply([]Spec{spec("app")})
		time.Sleep(10 * time.Second)
		want(t, "removed", state(s, "db").State, "gone")
		want(t, "app", state(s, "app").State, Running)
	})
}

// TestCrashWhileLowering: a client that dies and comes back while its dependants stop for it is nobody's to start for.
func TestCrashWhileLowering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		w.tough["view"] = true
		s.Apply([]Spec{spec("db"), spec("app", on("db")), spec("view", on("app"))})
		s.Wait(bg)
		time.Sleep(time.Minute)
		go s.Stop(bg, "db", "anna")
		time.Sleep(time.Second)
		w.life("db").die(crash)
		synctest.Wait()
		w.notes()
		time.Sleep(10 * time.Second)
		want(t, "order", w.notes(), "kill view 1, ended view 1 dependency, signal app 1 SIGTERM, ended app 1 dependency, signal db 2 SIGTERM, ended db 2 stop")
	})
}

// TestStopWhileDown: dependants of a client that is between two runs stop with it, too.
func TestStopWhileDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("db"), spec("app", on("db"))})
		s.Wait(bg)
		w.life("db").die(crash)
		want(t, "db", state(s, "db").State, Backoff)
		want(t, "stop", s.Stop(bg, "db", "anna"), nil)
		want(t, "app", state(s, "app").State, Waiting)
	})
}

// TestBehindOneshot: whoever depends on a oneshot that is done waits for what that needed.
func TestBehindOneshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("db"), spec("migrate", oneshot, on("db")), spec("app", on("migrate"))})
		w.life("migrate").die(proc.Exit{})
		want(t, "app", state(s, "app").State, Running)
		want(t, "stop", s.Stop(bg, "db", "anna"), nil)
		st := state(s, "app")
		want(t, "app", fmt.Sprintln(st.State, st.WaitsFor), "waiting [db]\n")
		want(t, "start", s.Start(bg, "db", "anna"), nil)
		want(t, "app", brief(state(s, "app")), "running 2")
		want(t, "migrate ran", state(s, "migrate").Run, 1)
	})
}

// TestRemovedTogether: clients that an edit removes stop in their order, too.
func TestRemovedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("db"), spec("app", on("db")), spec("other")})
		s.Wait(bg)
		w.notes()
		s.Apply([]Spec{spec("other")})
		synctest.Wait()
		want(t, "order", w.notes(), "signal app 1 SIGTERM, ended app 1 stop, signal db 1 SIGTERM, ended db 1 stop")
	})
}

// TestRaiseByEdit: what an edit makes somebody depend on is started as what he depended on from the first day.
func TestRaiseByEdit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		manual := func(s *Spec) { s.Autostart = false }
		s.Apply([]Spec{spec("db", manual), spec("app"), spec("net", manual), spec("late", manual, on("net")), spec("held", on("net"))})
		s.Wait(bg)
		s.Stop(bg, "held", "anna")
		s.Stop(bg, "net", "anna")
		s.Start(bg, "net", "anna")
		w.notes()
		s.Apply([]Spec{spec("db", manual), spec("app", on("db")), spec("net", manual), spec("late", on("net")), spec("held", on("net"))})
		synctest.Wait()
		want(t, "started", sorted(w.notes()), "spawn db 1, spawn late 1")
	})
}

// TestGroupInOrder: the members of a group that are restarted together stop and start in the order of their dependencies.
func TestGroupInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		together := func(names ...string) func(*Spec) { return func(s *Spec) { s.RestartWith = names } }
		s.Apply([]Spec{spec("a", together("db", "app")), spec("db", together("a", "app")), spec("app", on("db"), together("a", "db"))})
		s.Wait(bg)
		w.notes()
		w.life("a").die(crash)
		synctest.Wait()
		want(t, "order", w.notes(), "ended a 1 exit, signal app 1 SIGTERM, ended app 1 dependency, signal db 1 SIGTERM, ended db 1 dependency, spawn db 2, spawn app 2")
		time.Sleep(time.Minute)
		want(t, "runs", fmt.Sprint(state(s, "a").Run, state(s, "db").Run, state(s, "app").Run), "2 2 2")
	})
}

// TestWaitNames: who keeps the start waiting is named.
func TestWaitNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("db", readyBy(ReadyNotify)), spec("app", on("db"))})
		ctx, cancel := context.WithTimeout(bg, time.Minute)
		defer cancel()
		if err := s.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "app waiting") || !strings.Contains(err.Error(), "db (running)") {
			t.Error(err)
		}
	})
}
