package procman

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestKill: SIGKILL is for the tree, another signal for its leader, and neither for nobody; what follows is as restart has it.
func TestKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a"), spec("b", func(s *Spec) { s.Restart = Never })})
		want(t, "wait", s.Wait(bg), nil)
		w.notes()
		want(t, "a signal", s.Kill(bg, "a", "me", syscall.SIGHUP), nil)
		want(t, "goes to the leader", w.notes(), "poke a 1 SIGHUP")
		want(t, "which runs", state(s, "a").State, Running)
		w.arrange(func() { w.lives["a"].children = true })
		want(t, "a kill", s.Kill(bg, "a", "me", syscall.SIGKILL), nil)
		st := state(s, "a")
		want(t, "ends the tree", st.State, Backoff)
		want(t, "reason", st.LastExit.Reason, BySignal)
		want(t, "by whom", st.LastExit.Text, "kill asked by me")
		if err := s.Kill(bg, "a", "me", syscall.SIGHUP); !errors.Is(err, ErrNoProcess) {
			t.Error("what does not run:", err)
		}
		want(t, "a kill of what is not restarted", s.Kill(bg, "b", "me", syscall.SIGKILL), nil)
		want(t, "ends it", state(s, "b").State, Exited)
		if err := s.Kill(bg, "c", "me", syscall.SIGKILL); !errors.Is(err, ErrUnknown) {
			t.Error("nobody:", err)
		}
		want(t, "a kill of what does not die", s.Start(bg, "b", "me"), nil)
		w.arrange(func() { w.undead["b"] = true })
		s.Kill(bg, "b", "me", syscall.SIGKILL)
		time.Sleep(killWait)
		want(t, "shows", state(s, "b").State, Unkillable)
		w.arrange(func() { w.undead["b"] = false })
	})
}

// TestReset: who has given up is stopped, and has as many tries again; who waits for its next try waits no longer than the first time.
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a", func(s *Spec) { s.StartLimit = StartLimit{3, time.Minute} })})
		crashes := func() (n int) {
			for ; state(s, "a").State == Running; n++ {
				w.life("a").die(crash)
				if st := state(s, "a"); st.State == Backoff {
					time.Sleep(time.Until(st.Next))
				}
			}
			return n
		}
		want(t, "wait", s.Wait(bg), nil)
		want(t, "crashes until it has given up", crashes(), 4)
		want(t, "state", state(s, "a").State, Failed)
		want(t, "reset", s.Reset(bg, "a", "me"), nil)
		st := state(s, "a")
		want(t, "state after reset", st.State, Stopped)
		want(t, "wanted", st.Wanted, false)
		want(t, "by hand", st.StoppedBy, "")
		want(t, "start", s.Start(bg, "a", "me"), nil)
		for range 3 {
			w.life("a").die(crash)
			st = state(s, "a")
			want(t, "a further crash", st.State, Backoff)
			want(t, "reset while it waits", s.Reset(bg, "a", "me"), nil)
			if left := time.Until(state(s, "a").Next); left > 100*time.Millisecond {
				t.Errorf("%v left of its delay", left)
			}
			time.Sleep(time.Second)
		}
		want(t, "crashes, since the last reset", crashes(), 4)
	})
}
