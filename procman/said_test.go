package procman

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"zhx/procman/notify"
	"zhx/procman/proc"
)

// TestSaid: what a run says by sd_notify(3) shows, and an old run's word does not.
func TestSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a", readyBy(ReadyNotify))})
		want(t, "wait", s.Wait(bg), nil)
		p, _ := s.find("a")
		text := "loading"
		for _, c := range []struct {
			said  notify.Message
			run   uint64
			ready bool
			phase string
		}{
			{notify.Message{Status: &text}, 1, false, ""},
			{notify.Message{Ready: true}, 2, false, ""}, // nobody's
			{notify.Message{Ready: true}, 1, true, ""},
			{notify.Message{Reloading: true}, 1, true, "reloading"},
			{notify.Message{Ready: true}, 1, true, ""},
			{notify.Message{Stopping: true, Ready: true}, 1, false, "stopping"},
		} {
			p.hear(c.run, c.said)
			synctest.Wait()
			st := state(s, "a")
			want(t, "ready", st.Ready, c.ready)
			want(t, "phase", st.Phase, c.phase)
			want(t, "notice", st.Notice, "loading")
		}
		p.hear(1, notify.Message{Trigger: true})
		synctest.Wait()
		want(t, "after WATCHDOG=trigger", state(s, "a").LastExit.Reason, ByWatchdog)
		want(t, "the next run's notice", state(s, "a").Notice, "")
	})
}

// TestGiveUp: on_failure is a process like the client's, and what it prints is the client's.
func TestGiveUp(t *testing.T) {
	dir := t.TempDir()
	st := open(t, t.TempDir(), proc.Options{})
	st.Apply([]Spec{real("a", "exit 1", func(s *Spec) {
		s.RestartDelay, s.RestartDelayMax, s.StartLimit = time.Millisecond, time.Millisecond, StartLimit{1, time.Minute}
		s.OnFailure = []string{"sh", "-c", "pwd > " + filepath.Join(dir, "done") + "; echo given up; kill -TERM $$"}
	})})
	st.until(t, "given up")
	for range 2 {
		next(t, st.ended)
	}
	st.Shutdown(bg) // ends it wherever it is: the line above says that it got to its end
	if b, err := os.ReadFile(filepath.Join(dir, "done")); err != nil || len(b) == 0 {
		t.Errorf("on_failure did not get to its end: %v", err)
	}
}

// TestLateLeader: a new leader that is told after the former one has ended is waited for, also where the tree was about to be empty.
func TestLateLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a", func(s *Spec) { s.Restart = Never })})
		p, _ := s.find("a")
		l := w.life("a")
		w.arrange(func() { l.children = true })
		go s.Stop(bg, "a", "anna") // its leader ends, a child does not yet
		synctest.Wait()
		p.hear(1, notify.Message{MainPID: 4711})
		w.arrange(func() { close(l.gone); l.void = true })
		time.Sleep(time.Second)
		want(t, "while nobody has told of its end", state(s, "a").State, Stopping)
		l.die(proc.Exit{})
		want(t, "then", state(s, "a").State, Stopped)
	})
}

// TestEnvironmentFileMustBeOne: what could be waited for, or never ends, is an error.
func TestEnvironmentFileMustBeOne(t *testing.T) {
	dir := t.TempDir()
	fifo, long := filepath.Join(dir, "fifo"), filepath.Join(dir, "long")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(long, make([]byte, envFileMax+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, long, dir, "/dev/zero"} {
		if err := readEnvironment(path, map[string]string{}); err == nil || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestReadEnvironment: the lines of an environment_file, one story a row.
func TestReadEnvironment(t *testing.T) {
	for _, c := range []struct{ purpose, text, want, err string }{
		{"plain", "A=b\n", "A=b", ""},
		{"comments and empty lines", "# A=b\n\n; x\nA=c", "A=c", ""},
		{"quotes of one kind go", "A=\"b c\"\nB='d'\nC=\"e'", "A=b c B=d C=\"e'", ""},
		{"blanks around go", "  A =  b  \n", "A=b", ""},
		{"the last one counts", "A=1\nA=2\n", "A=2", ""},
		{"an empty value", "A=\n", "A=", ""},
		{"no =", "A=b\nnonsense\n", "", ":2: not KEY=value"},
		{"no key", "=b\n", "", ":1: not KEY=value"},
		{"a blank within the key", "A B=c\n", "", ":1: not KEY=value"},
		{"a NUL", "A=b\x00c\n", "", ":1: not KEY=value"},
	} {
		path := filepath.Join(t.TempDir(), "env")
		os.WriteFile(path, []byte(c.text), 0o600)
		env := map[string]string{}
		err := readEnvironment(path, env)
		var got []string
		for _, k := range []string{"A", "B", "C"} {
			if v, ok := env[k]; ok {
				got = append(got, k+"="+v)
			}
		}
		if c.err == "" && (err != nil || strings.Join(got, " ") != c.want) || c.err != "" && (err == nil || !strings.HasSuffix(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v; want %q, %q", c.purpose, got, err, c.want, c.err)
		}
	}
}

// TestChanged: each state that a client passes through is published and told of, also those that last for a moment only, and nothing
// is told where a word changes none; that it has registered is known from its record as well.
func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.records["b"] = record{Version: recordVersion, Run: 4, Registered: true}
		s := w.set()
		s.o.Changed = func(name string) {
			if st, ok := s.StatusOf(name); ok && name == "a" {
				w.note("%s %s %d %t", name, st.State, st.Run, st.Registers)
			}
		}
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a"), spec("b")})
		want(t, "wait", s.Wait(bg), nil)
		s.Registered("a", 1)
		synctest.Wait()
		w.notes()
		p, _ := s.find("a")
		text := "loading"
		p.hear(1, notify.Message{Status: &text, Watchdog: true})
		time.Sleep(time.Minute) // stable
		synctest.Wait()
		want(t, "a word is no change", strings.Contains(w.notes(), "running 1"), false)
		want(t, "restart", s.Restart(bg, "a", "me"), nil)
		synctest.Wait()
		got := w.notes()
		for _, part := range []string{"a stopping 1 true", "a starting 1 true", "spawn a 2", "a running 2 true"} {
			i := strings.Index(got, part)
			if i < 0 {
				t.Fatalf("%q is not in %q, or not in this order", part, got)
			}
			got = got[i:]
		}
		st, ok := s.StatusOf("b")
		want(t, "known from the record", st.Registers && ok, true)
		if _, ok := s.StatusOf("c"); ok {
			t.Error("a client that there is not has a status")
		}
	})
}
