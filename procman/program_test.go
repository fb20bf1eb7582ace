package procman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"zhx/procman/logs"
	"zhx/procman/proc"
)

// A world is the system of one Set, without processes: what is asked of it is written down, its children die on request.
type world struct {
	mu      sync.Mutex
	log     bytes.Buffer // what people are told
	did     []string     // "spawn a 1", "signal a 1 SIGTERM", ...
	records map[string]record
	lives   map[string]*fakeLife
	stray   map[string]chan error // clear of that client waits for this
	spawnNo map[string]error      // spawn of that client fails so
	tough   map[string]bool       // that client ignores every signal but SIGKILL; "unkillable": that too
	undead  map[string]bool
	spared  map[string]bool // that client's watchdog is paused
}

func newWorld() *world {
	return &world{records: map[string]record{}, lives: map[string]*fakeLife{}, stray: map[string]chan error{},
		spawnNo: map[string]error{}, tough: map[string]bool{}, undead: map[string]bool{}, spared: map[string]bool{}}
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.did = append(w.did, fmt.Sprintf(format, args...))
}

// notes returns what happened since the last call.
func (w *world) notes() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Join(w.did, ", ")
	w.did = nil
	return s
}

// signals is notes without all else.
func (w *world) signals() string {
	var s []string
	for _, n := range strings.Split(w.notes(), ", ") {
		if strings.HasPrefix(n, "signal") {
			s = append(s, n)
		}
	}
	return strings.Join(s, ", ")
}

func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

func (w *world) Began(string, uint64, *proc.Tree)       {}
func (w *world) Running(name string, run uint64, _ int) {}
func (w *world) Armed(string, uint64)                   {}

func (w *world) Paused(name string, left time.Duration, text string) {
	w.note("paused %s %v %s", name, left > 0, text)
}

func (w *world) Said(name string, run uint64, sign Sign) { w.note("said %s %d %+v", name, run, sign) }
func (w *world) GaveUp(name string, run uint64, why string) {
	w.note("gave up %s %d: %s", name, run, why)
}
func (w *world) Ended(name string, run uint64, l LastExit) {
	w.note("ended %s %d %s", name, run, l.Reason)
}

func (w *world) set() *Set {
	return newSet(Options{Log: slog.New(slog.NewTextHandler(w, nil)), Events: w,
		Spare: func(name string) bool { return w.is(w.spared, name) }}, func(name string) host { return &fakeHost{w, name} })
}

// life returns the life of a client once everything has settled.
func (w *world) life(name string) *fakeLife {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lives[name]
}

type fakeHost struct {
	w    *world
	name string
}

func (h *fakeHost) load() (record, error) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return h.w.records[h.name], nil
}

func (h *fakeHost) save(r record) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.records[h.name] = r
	return nil
}

func (h *fakeHost) clear(ctx context.Context, _ *Spec, _ record) error {
	h.w.mu.Lock()
	c := h.w.stray[h.name]
	h.w.mu.Unlock()
	if c != nil {
		select {
		case err := <-c:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (h *fakeHost) adopt(*Spec, *record, inlet) (life, adopted, error) { return nil, adopted{}, nil }

func (h *fakeHost) execute(context.Context, *Spec, string, []string, time.Duration, *logs.Ring) error {
	return nil
}

func (h *fakeHost) giveUp(context.Context, *Spec, *logs.Ring) { h.w.note("on_failure %s", h.name) }

func (h *fakeHost) spawn(_ *Spec, r *record, _ inlet) (life, error) {
	h.w.mu.Lock()
	err := h.w.spawnNo[h.name]
	h.w.mu.Unlock()
	if err != nil {
		h.w.note("cannot spawn %s %d", h.name, r.Run)
		return nil, err
	}
	h.save(*r)
	h.w.note("spawn %s %d", h.name, r.Run)
	l := &fakeLife{w: h.w, name: h.name, run: r.Run, exit: make(chan proc.Exit, 1), ice: make(chan bool), gone: make(chan struct{}), state: evStuck}
	h.w.mu.Lock()
	h.w.lives[h.name] = l
	h.w.mu.Unlock()
	return l, nil
}

type fakeLife struct {
	w        *world
	name     string
	run      uint64
	exit     chan proc.Exit
	ice      chan bool
	gone     chan struct{} // closed: the tree is empty
	children bool          // the leader leaves processes behind
	dead     bool          // the leader
	void     bool          // gone is closed
	state    kind          // what look answers
	core     bool          // what dumping answers
}

// die ends the leader, and the tree with it unless there are children.
func (l *fakeLife) die(x proc.Exit) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if !l.children && !l.void {
		l.void = true
		close(l.gone)
	}
	if !l.dead {
		l.dead = true
		l.exit <- x
	}
}

func (l *fakeLife) Signal(sig syscall.Signal) error {
	l.w.note("signal %s %d %s", l.name, l.run, signalName(sig))
	if !l.w.is(l.w.tough, l.name) {
		l.die(proc.Exit{Code: -1, Signal: sig})
	}
	return nil
}

func (l *fakeLife) poke(sig syscall.Signal) error {
	l.w.note("poke %s %d %s", l.name, l.run, signalName(sig))
	return nil
}

func (l *fakeLife) OutOfMemory() bool { return false }

func (l *fakeLife) dumping() bool {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.core
}

func (l *fakeLife) Kill() error {
	l.w.note("kill %s %d", l.name, l.run)
	if !l.w.is(l.w.undead, l.name) {
		l.w.arrange(func() { l.children = false })
		l.die(proc.Exit{Code: -1, Signal: syscall.SIGKILL})
	}
	return nil
}

func (w *world) is(what map[string]bool, name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return what[name]
}

func (l *fakeLife) Empty() bool {
	select {
	case <-l.gone:
		return true
	default:
		return false
	}
}

func (l *fakeLife) WaitEmpty(ctx context.Context) error {
	select {
	case <-l.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *fakeLife) listen()                  {}
func (l *fakeLife) pid() int                 { return 1000 + int(l.run) }
func (l *fakeLife) start() uint64            { return 1 }
func (l *fakeLife) unheard() bool            { return false }
func (l *fakeLife) hear()                    {}
func (l *fakeLife) leave()                   {}
func (l *fakeLife) Exited() <-chan proc.Exit { return l.exit }
func (l *fakeLife) Frozen() <-chan bool      { return l.ice }
func (l *fakeLife) members() string          { return "4711 tough (state D)" }
func (l *fakeLife) finish()                  {}
func (l *fakeLife) forget()                  {}

func (l *fakeLife) lead(int) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.exit, l.dead = make(chan proc.Exit, 1), false
	return nil
}

func (l *fakeLife) look() kind {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.state
}

// arrange changes the world while it runs.
func (w *world) arrange(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func spec(name string, change ...func(*Spec)) Spec {
	s := *testRules()
	s.Name, s.StopSignal, s.Autostart, s.Umask = name, syscall.SIGTERM, true, 0o022
	for _, c := range change {
		c(&s)
	}
	return s
}

func state(s *Set, name string) Status {
	synctest.Wait()
	for _, st := range s.Status() {
		if st.Name == name {
			return st
		}
	}
	return Status{State: "gone"}
}

func want[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

var (
	crash = proc.Exit{Code: 1}
	bg    = context.Background()
)

// TestBackoffTimes: an unstable client comes back after restart_delay, doubling to its limit; a stable run resets that.
func TestBackoffTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a")})
		for i, d := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			w.life("a").die(crash)
			st := state(s, "a")
			want(t, "state", st.State, Backoff)
			if next := time.Until(st.Next); next > d*time.Millisecond || next < d*time.Millisecond*4/5 {
				t.Errorf("crash %d: next try in %v, want %v less up to a fifth", i, next, d*time.Millisecond)
			}
			time.Sleep(time.Until(st.Next))
			st = state(s, "a")
			want(t, "state after the delay", st.State, Running)
			want(t, "restarts", st.Restarts, int64(i+1))
		}
		time.Sleep(5 * time.Second)
		w.life("a").die(crash)
		st := state(s, "a")
		want(t, "state after a stable run", st.State, Running)
		want(t, "run", st.Run, 8)
		want(t, "last exit", st.LastExit.Reason, ByExit)
		want(t, "its length", st.LastExit.Lived, 5*time.Second)
	})
}

// TestByHand: what people ask is honoured in every state, and they are told how it went.
func TestByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a"), spec("b", func(s *Spec) { s.Autostart = false })})
		w.life("a").die(crash)
		want(t, "after a crash", state(s, "a").State, Backoff)
		want(t, "stop in backoff", s.Stop(bg, "a", "anna"), nil)
		time.Sleep(time.Minute)
		st := state(s, "a")
		want(t, "a minute later", st.State, Stopped)
		want(t, "by", st.StoppedBy, "anna")
		w.notes()
		want(t, "start", s.Start(bg, "a", "anna"), nil)
		want(t, "started", w.notes(), "spawn a 2")
		want(t, "by", state(s, "a").StoppedBy, "")
		want(t, "start again", s.Start(bg, "a", "anna"), nil)
		want(t, "restart", s.Restart(bg, "a", "anna"), nil)
		want(t, "restarted", w.notes(), "signal a 2 SIGTERM, ended a 2 stop, spawn a 3")
		w.life("a").die(crash)
		want(t, "backoff", state(s, "a").State, Backoff)
		want(t, "start in backoff", s.Start(bg, "a", "anna"), nil)
		want(t, "at once", state(s, "a").Run, 4)

		want(t, "no autostart", state(s, "b").State, Stopped)
		w.arrange(func() { w.spawnNo["b"] = fmt.Errorf("execute /b: %w", syscall.ENOENT) })
		if err := s.Start(bg, "b", "anna"); err == nil || !strings.Contains(err.Error(), "/b") || !strings.Contains(err.Error(), "restarts in") {
			t.Errorf("a start that cannot be: %v", err)
		}
		st = state(s, "b")
		want(t, "goes on", st.State, Backoff)
		want(t, "reason", st.LastExit.Reason, BySpawn)
		want(t, "errno", st.LastExit.Code, int(syscall.ENOENT))
		if err := s.Stop(bg, "c", "anna"); !errors.Is(err, ErrUnknown) {
			t.Errorf("stop of what is not: %v", err)
		}
	})
}

// TestStopTimeout: who ignores stop_signal gets SIGKILL; who survives that is unkillable, has no twin, and goes on later.
func TestStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a"), spec("b")})
		synctest.Wait()
		w.arrange(func() { w.tough["a"], w.tough["b"], w.undead["b"] = true, true, true })
		w.notes()
		begin := time.Now()
		want(t, "stop", s.Stop(bg, "a", "anna"), nil)
		want(t, "it took", time.Since(begin), 5*time.Second)
		want(t, "and did", w.notes(), "signal a 1 SIGTERM, kill a 1, ended a 1 stop")
		b := w.life("b")
		begin = time.Now()
		if err := s.Restart(bg, "b", "anna"); !errors.Is(err, ErrUnkillable) || !strings.Contains(err.Error(), "4711") {
			t.Errorf("restart: %v", err)
		}
		want(t, "it took", time.Since(begin), 10*time.Second)
		time.Sleep(time.Hour)
		want(t, "an hour later", state(s, "b").State, Unkillable)
		want(t, "run", state(s, "b").Run, 1)
		w.arrange(func() { w.tough["b"], w.undead["b"] = false, false })
		b.Kill()
		want(t, "at last", state(s, "b").State, Running)
		want(t, "run", state(s, "b").Run, 2)
	})
}

// TestLeftBehind: processes that a crashed leader leaves are killed at once, and its successor waits for that.
func TestLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a")})
		a := w.life("a")
		time.Sleep(time.Minute)
		w.arrange(func() { w.undead["a"], a.children = true, true })
		w.notes()
		a.die(crash)
		want(t, "state", state(s, "a").State, Stopping)
		want(t, "did", w.notes(), "kill a 1")
		time.Sleep(time.Second)
		w.arrange(func() { a.children = false })
		a.die(crash)
		want(t, "state", state(s, "a").State, Running)
		want(t, "did", w.notes(), "ended a 1 exit, spawn a 2")
	})
}

// TestExpire: a lapse kills its own run, an old one nothing.
func TestExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a")})
		synctest.Wait()
		time.Sleep(9 * time.Second)
		w.notes()
		s.Expire("a", 1, "silent for 9s")
		want(t, "run", state(s, "a").Run, 2)
		want(t, "did", w.notes(), "kill a 1, ended a 1 watchdog, spawn a 2")
		want(t, "why", state(s, "a").LastExit.Text, "silent for 9s")
		s.Expire("a", 1, "silent for 9s")
		want(t, "an old run's lapse", w.notes(), "")
		want(t, "run", state(s, "a").Run, 2)
		s.Expire("nobody", 1, "")
	})
}

// TestFrozen: state T for FrozenTimeout is the end of a run; if traced, or continued in time, it is not.
func TestFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a")})
		a := w.life("a")
		a.ice <- true
		time.Sleep(8 * time.Second)
		a.ice <- false
		time.Sleep(8 * time.Second)
		want(t, "continued in time", state(s, "a").Run, 1)
		w.arrange(func() { a.state = evFrozen }) // a debugger
		a.ice <- true
		time.Sleep(30 * time.Second)
		want(t, "traced", state(s, "a").Run, 1)
		w.arrange(func() { a.state = evStuck })
		time.Sleep(9 * time.Second)
		want(t, "let go", state(s, "a").Run, 2)
		want(t, "reason", state(s, "a").LastExit.Reason, ByFrozen)
		synctest.Wait()
		if !strings.Contains(w.log.String(), "killed, since it was frozen") {
			t.Errorf("nobody was told:\n%s", &w.log)
		}
	})
}

// TestOrder: clients start in the order of the file though the first has strays to wait for, and stop in reverse.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		w.stray["a"] = make(chan error)
		s.Apply([]Spec{spec("a"), spec("b"), spec("c")})
		time.Sleep(time.Second)
		want(t, "waiting", state(s, "a").State, Waiting)
		want(t, "its follower", state(s, "b").State, Waiting)
		want(t, "spawned", w.notes(), "")
		w.stray["a"] <- nil
		want(t, "wait", s.Wait(bg), nil)
		want(t, "spawned", w.notes(), "spawn a 1, spawn b 1, spawn c 1")
		s.Shutdown(bg)
		want(t, "stopped", w.notes(), "signal c 1 SIGTERM, ended c 1 stop, signal b 1 SIGTERM, ended b 1 stop, signal a 1 SIGTERM, ended a 1 stop")
		if err := s.Start(bg, "a", "anna"); !errors.Is(err, ErrClosed) {
			t.Errorf("start after shutdown: %v", err)
		}
	})
}

// TestBlocked: what may be a twin keeps a client from starting; it is tried again, and stops being waited for on request.
func TestBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		w.stray["a"] = make(chan error, 1)
		w.stray["a"] <- errors.New("pid 7 may be one")
		s.Apply([]Spec{spec("a"), spec("b")})
		st := state(s, "a")
		want(t, "state", st.State, Failed)
		want(t, "why", st.Text, "pid 7 may be one")
		want(t, "others", state(s, "b").State, Running)
		w.stray["a"] <- nil
		time.Sleep(time.Until(st.Next))
		want(t, "tried again", state(s, "a").State, Running)

		w.arrange(func() { w.stray["c"] = make(chan error) })
		s.Apply([]Spec{spec("a"), spec("b"), spec("c")})
		want(t, "waiting", state(s, "c").State, Waiting)
		want(t, "stop", s.Stop(bg, "c", "anna"), nil)
		want(t, "wait", s.Wait(bg), nil)
		want(t, "stopped", state(s, "c").State, Stopped)
	})
}

// TestApply: an edit touches what it changes, and no more.
func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("keep"), spec("live"), spec("restart"), spec("stop"), spec("hand")})
		s.Wait(bg)
		s.Stop(bg, "hand", "anna")
		w.arrange(func() { w.tough["stop"] = true })
		w.notes()
		s.Apply([]Spec{spec("new"), spec("keep"),
			spec("live", func(s *Spec) { s.RestartDelay = time.Second; s.RestartDelayMax = time.Second }),
			spec("restart", func(s *Spec) { s.Command = []string{"y"} }), spec("hand", func(s *Spec) { s.Command = []string{"y"} })})
		synctest.Wait()
		want(t, "did", sorted(w.notes()), "ended restart 1 stop, signal restart 1 SIGTERM, signal stop 1 SIGTERM, spawn restart 2")
		want(t, "the removed one still stops", state(s, "stop").State, Stopping)
		want(t, "the new one waits for that", state(s, "new").State, Waiting)
		if err := s.Start(bg, "stop", "anna"); !errors.Is(err, ErrUnknown) {
			t.Errorf("start of a removed one: %v", err)
		}
		time.Sleep(5 * time.Second)
		want(t, "gone", state(s, "stop").State, "gone")
		want(t, "new", state(s, "new").State, Running)
		want(t, "stopped by hand", state(s, "hand").State, Stopped)
		w.life("live").die(proc.Exit{Code: -1, Signal: syscall.SIGKILL})
		time.Sleep(10 * time.Second)
		w.life("live").die(crash)
		w.life("live").die(crash)
		if d := time.Until(state(s, "live").Next); d < 800*time.Millisecond {
			t.Errorf("live: next try in %v, want the new delay", d)
		}
	})
}

// TestRevive: a client that is removed and comes back while it stops gets no twin.
func TestRevive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		w.tough["a"] = true
		s.Apply([]Spec{spec("a")})
		s.Wait(bg)
		s.Apply(nil)
		time.Sleep(time.Second)
		s.Apply([]Spec{spec("a")})
		want(t, "still stops", state(s, "a").State, Stopping)
		time.Sleep(4 * time.Second)
		want(t, "back", state(s, "a").State, Running)
		want(t, "did", w.notes(), "spawn a 1, signal a 1 SIGTERM, kill a 1, ended a 1 stop, spawn a 2")
		s.Apply(nil)
		time.Sleep(6 * time.Second)
		s.Apply([]Spec{spec("a")})
		want(t, "after it was gone: the numbers go on", state(s, "a").Run, 3)
	})
}

// TestSuperseded: who asks for the contrary of a later request is told.
func TestSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		w.tough["a"] = true
		s.Apply([]Spec{spec("a")})
		s.Wait(bg)
		var errs [2]error
		var wg sync.WaitGroup
		wg.Go(func() { errs[0] = s.Stop(bg, "a", "anna") })
		time.Sleep(time.Second)
		wg.Go(func() { errs[1] = s.Start(bg, "a", "otto") })
		wg.Wait()
		if !errors.Is(errs[0], ErrSuperseded) || errs[1] != nil {
			t.Errorf("stop, then start: %v", errs)
		}
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		if err := s.Restart(ctx, "a", "otto"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stopping") {
			t.Errorf("restart in too short a time: %v", err)
		}
		begin := time.Now()
		ctx, cancel = context.WithTimeout(bg, time.Second)
		defer cancel()
		wg.Go(func() {
			time.Sleep(time.Second / 2)
			if err := s.Start(bg, "a", "otto"); !errors.Is(err, ErrClosed) {
				t.Errorf("start during shutdown: %v", err)
			}
		})
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		wg.Wait()
		want(t, "a shutdown in a hurry took", time.Since(begin), time.Second)
	})
}

func sorted(notes string) string {
	list := strings.Split(notes, ", ")
	slices.Sort(list)
	return strings.Join(list, ", ")
}
