package procman

import (
	"reflect"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"zhx/procman/proc"
)

// TestDiff: a row a client, with the class of its gravest change and all its changed keys.
func TestDiff(t *testing.T) {
	base := spec("a", func(s *Spec) { s.Environment = map[string]string{"K": "v"} })
	edit := func(change func(*Spec)) Spec { s := base; change(&s); return s }
	for _, c := range []struct {
		purpose  string
		old, new []Spec
		want     Plan
	}{
		{"nothing at all", nil, nil, nil},
		{"the same", []Spec{base}, []Spec{base}, Plan{{"a", ActKeep, nil}}},
		{"the same, built anew", []Spec{base}, []Spec{edit(func(s *Spec) { s.Environment = map[string]string{"K": "v"} })}, Plan{{"a", ActKeep, nil}}},
		{"no environment, an empty one", []Spec{edit(func(s *Spec) { s.Environment = nil })}, []Spec{edit(func(s *Spec) { s.Environment = map[string]string{} })}, Plan{{"a", ActKeep, nil}}},
		{"new", nil, []Spec{base, spec("b")}, Plan{{"a", ActStart, nil}, {"b", ActStart, nil}}},
		{"removed", []Spec{base, spec("b")}, nil, Plan{{"a", ActStop, nil}, {"b", ActStop, nil}}},
		{"renamed: the old one goes first", []Spec{base}, []Spec{spec("b")}, Plan{{"a", ActStop, nil}, {"b", ActStart, nil}}},
		{"in another order", []Spec{base, spec("b")}, []Spec{spec("b"), base}, Plan{{"b", ActKeep, nil}, {"a", ActKeep, nil}}},
		{"live", []Spec{base}, []Spec{edit(func(s *Spec) { s.StopTimeout++; s.KillStrays = true })}, Plan{{"a", ActLive, []string{"stop_timeout", "strays"}}}},
		{"live and restart", []Spec{base}, []Spec{edit(func(s *Spec) { s.TTY = true; s.StableAfter++ })}, Plan{{"a", ActRestart, []string{"tty", "stable_after"}}}},
		{"a variable", []Spec{base}, []Spec{edit(func(s *Spec) { s.Environment = map[string]string{"K": "w"} })}, Plan{{"a", ActRestart, []string{"environment"}}}},
	} {
		if got := Diff(c.old, c.new); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.purpose, got, c.want)
		}
	}
}

// TestEveryKeyHasAClass: each field but the name is a key, is live or restart, and a change of it alone shows.
func TestEveryKeyHasAClass(t *testing.T) {
	restart := []string{"command", "directory", "environment", "environment_file", "user", "group", "groups", "tty", "umask",
		"limit_nofile", "limit_core", "limit_as", "nice", "cpu_affinity", "oom_score_adj", "no_new_privileges"}
	for i := 1; i < reflect.TypeFor[Spec]().NumField(); i++ {
		f := reflect.TypeFor[Spec]().Field(i)
		a, b := spec("a"), spec("a")
		switch v := reflect.ValueOf(&b).Elem().Field(i); v.Kind() {
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Slice:
			v.Set(reflect.Append(v, reflect.New(v.Type().Elem()).Elem()))
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
		case reflect.Struct:
			v.Field(0).SetInt(7)
		case reflect.Map:
			v.Set(reflect.ValueOf(map[string]string{"K": "v"}))
		default:
			v.SetInt(v.Int() + 1)
		}
		class := ActLive
		if slices.Contains(restart, f.Tag.Get("key")) {
			class = ActRestart
		}
		if got, want := Diff([]Spec{a}, []Spec{b}), (Plan{{"a", class, []string{f.Tag.Get("key")}}}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", f.Name, got, want)
		}
	}
}

// TestLive: each live key holds for the run that lives, which keeps its pid.
func TestLive(t *testing.T) {
	for _, c := range []struct {
		key    string
		change func(*Spec)
		then   func(w *world, s *Set)
		want   string
	}{
		{"restart", func(s *Spec) { s.Restart = OnFailure },
			func(w *world, s *Set) { w.life("a").die(proc.Exit{}) }, "ended a 1 exit"},
		{"restart_delay, restart_delay_max", func(s *Spec) { s.RestartDelay, s.RestartDelayMax = time.Hour, time.Hour },
			func(w *world, s *Set) { w.life("a").die(crash); time.Sleep(time.Minute) }, "ended a 1 exit"},
		{"stable_after", func(s *Spec) { s.StableAfter = 0 },
			func(w *world, s *Set) { w.life("a").die(crash) }, "ended a 1 exit, spawn a 2"},
		{"stop_signal", func(s *Spec) { s.StopSignal = syscall.SIGINT },
			func(w *world, s *Set) { s.Stop(bg, "a", "anna") }, "signal a 1 SIGINT, ended a 1 stop"},
		{"stop_timeout", func(s *Spec) { s.StopTimeout = time.Hour },
			func(w *world, s *Set) {
				w.arrange(func() { w.tough["a"] = true })
				go s.Stop(bg, "a", "anna")
				time.Sleep(time.Minute)
			}, "signal a 1 SIGTERM"},
		{"watchdog_timeout", func(s *Spec) { s.FrozenTimeout = time.Second },
			func(w *world, s *Set) { w.life("a").ice <- true; time.Sleep(2 * time.Second) }, "kill a 1, ended a 1 frozen, spawn a 2"},
	} {
		t.Run(c.key, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				s := w.set()
				s.Apply([]Spec{spec("a")})
				s.Wait(bg)
				w.notes()
				s.Apply([]Spec{spec("a", c.change)})
				c.then(w, s)
				synctest.Wait()
				want(t, c.key, w.notes(), c.want)
				s.Shutdown(bg)
			})
		})
	}
}

// TestAutostartTurnedOn: it starts a client that never ran, not one that somebody stopped; turned off it stops nobody.
func TestAutostartTurnedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		off := func(s *Spec) { s.Autostart = false }
		s.Apply([]Spec{spec("idle", off), spec("stopped"), spec("runs")})
		s.Stop(bg, "stopped", "anna")
		s.Apply([]Spec{spec("idle", off), spec("stopped", off), spec("runs", off)})
		want(t, "runs", state(s, "runs").State, Running)
		s.Apply([]Spec{spec("idle"), spec("stopped"), spec("runs")})
		want(t, "idle", state(s, "idle").State, Running)
		want(t, "stopped", state(s, "stopped").State, Stopped)
		want(t, "runs", state(s, "runs").Run, 1)
	})
}
