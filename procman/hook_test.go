package procman

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/procman/proc"
)

// init is the part of a tracer, which must be another process than the parent: as long as it does not wait for one that it traces,
// the parent does not see the end of that, as if SIGKILL did nothing.
func init() {
	var pid int
	if n, _ := fmt.Sscanf(os.Getenv(childVar), "tracer %d", &pid); n == 1 {
		runtime.LockOSThread()
		fmt.Println("seized:", unix.PtraceSeize(pid))
		select {}
	}
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// TestExecute: how commands end, one story a row. Nothing of them is left (open looks), and the client does not notice.
func TestExecute(t *testing.T) {
	const ample = 20 * time.Second
	notExec := filepath.Join(t.TempDir(), "text")
	os.WriteFile(notExec, []byte("hello"), 0o644)
	for kernel, o := range kernels {
		st := open(t, t.TempDir(), o)
		st.Apply([]Spec{real("a", "sleep")})
		st.until(t, "up")
		for _, c := range []struct {
			purpose string
			argv    []string
			limit   time.Duration
			want    string // "": nil
		}{
			{"exits with 0", sh("exit 0"), ample, ""},
			{"exits with 1", sh("exit 1"), ample, "exit status 1"},
			{"exits with 255", sh("exit 255"), ample, "exit status 255"},
			{"dies by itself", sh("kill -SEGV $$"), ample, "ended by SIGSEGV"},
			{"kills itself", sh("kill -KILL $$"), ample, "ended by SIGKILL"},
			{"its end is that of all", sh("sleep 0.05 & exit 0"), ample, ""},
			{"leaves a child behind for too long", sh("sleep 100 & exit 0"), 2 * time.Second, ""},
			{"hangs", sh("exec sleep 100"), 50 * time.Millisecond, "no end within 50ms, killed"},
			{"hangs with children", sh("sleep 100 & setsid sleep 100 & sleep 100"), 300 * time.Millisecond, "no end within 300ms, killed"},
			{"hears no signal", sh("trap '' TERM INT HUP; sleep 100; sleep 100"), 50 * time.Millisecond, "no end within 50ms, killed"},
			{"is stopped", sh("kill -STOP $$"), 50 * time.Millisecond, "no end within 50ms, killed"},
			{"is not there", []string{"/no/such/file"}, ample, "stat /no/such/file: no such file or directory"},
			{"is no program", []string{notExec}, ample, "execute " + notExec + ": permission denied"},
		} {
			t.Run(kernel+", "+c.purpose, func(t *testing.T) {
				got := ""
				if err := st.Execute(bg, "a", c.argv, c.limit); err != nil {
					got = err.Error()
				}
				want(t, "error", got, c.want)
				want(t, "outputs left", len(files(st.dir, "a.", ".out", fs.ModeNamedPipe)), 1)
			})
		}
		s := st.Status()[0]
		want(t, "the client", s.State, Running)
		want(t, "its run", s.Run, 1)
		want(t, "lines", len(st.Ring("a").Tail(-1)), 1)
		want(t, "told", strings.Contains(st.log.String(), "probe"), false)
		st.close()
	}
}

// TestExecuteEndsByContext: the end of the context kills the whole tree, deaf ones in another session too.
func TestExecuteEndsByContext(t *testing.T) {
	for kernel, o := range kernels {
		t.Run(kernel, func(t *testing.T) {
			st := open(t, t.TempDir(), o)
			family := real("a", "family stay", func(s *Spec) { s.LogFile, s.Autostart = filepath.Join(t.TempDir(), "a.log"), false })
			st.Apply([]Spec{family})
			lines := st.Ring("a").Follow(t.Context())
			ctx, cancel := context.WithCancel(bg)
			answer := make(chan error, 1)
			go func() { answer <- st.Execute(ctx, "a", family.Command, time.Hour) }()
			var pids []int
			for line := range lines {
				var pid int
				if fmt.Sscanf(line.Text, "up %d", &pid); pid != 0 {
					pids = append(pids, pid)
				}
				if line.Text == "complete" {
					break
				}
			}
			want(t, "its children", len(pids), 3)
			cancel()
			if err := next(t, answer); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			dead(t, pids)
		})
	}
}

// TestExecuteAsTheClient: user, directory and environment are the client's; mark and tree are its own, and nobody expects signs
// of life.
func TestExecuteAsTheClient(t *testing.T) {
	dir := t.TempDir()
	id := fmt.Sprint("ID= ", os.Getuid(), " ", os.Getgid())
	program := real("a", "").Command[0]
	change := func(*Spec) {}
	if os.Getuid() == 0 {
		os.Chmod(filepath.Dir(dir), 0o755)
		copyFile(t, program, filepath.Join(dir, "program")) // this test binary's own folder is closed to others
		program, id = "./program", "ID= 65534 12345"
		change = func(s *Spec) { s.User, s.Group = "nobody", "12345" }
	}
	st := open(t, t.TempDir(), proc.Options{})
	st.Apply([]Spec{real("a", "env", func(s *Spec) {
		s.Directory, s.Restart, s.Command, s.Environment["COLOUR"] = dir, Never, []string{program}, "blue"
		change(s)
	})})
	next(t, st.ended)
	ring := st.Ring("a")
	clients := len(ring.Tail(-1))
	want(t, "error", st.Execute(bg, "a", []string{program}, time.Hour), nil)
	var lines [2][]string
	marks := map[string]bool{}
	for i, l := range ring.Tail(-1) {
		switch name, _, _ := strings.Cut(l.Text, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC":
			want(t, "it is the client's "+name, i < clients, true)
		case "ZHX_RUN":
			marks[l.Text] = true
		default:
			who := 0
			if i >= clients {
				who = 1
			}
			lines[who] = append(lines[who], l.Text)
		}
	}
	want(t, "marks", len(marks), 2)
	slices.Sort(lines[0])
	slices.Sort(lines[1])
	if !slices.Equal(lines[0], lines[1]) {
		t.Errorf("the client %q\nthe command %q", lines[0], lines[1])
	}
	for _, l := range []string{id, "DIR=" + dir, "COLOUR=blue", "ZHX_NAME=a"} {
		want(t, l, slices.Contains(lines[1], l), true)
	}
}

// TestExecuteAtOnce: commands of one client know nothing of each other, and do not hinder its restarts nor are hindered by them.
func TestExecuteAtOnce(t *testing.T) {
	for kernel, o := range kernels {
		t.Run(kernel, func(t *testing.T) {
			st := open(t, t.TempDir(), o)
			st.Apply([]Spec{real("a", "sleep", func(s *Spec) { s.OnFailure = sh("echo hook") })})
			st.until(t, "up")
			gate := filepath.Join(t.TempDir(), "gate")
			var all sync.WaitGroup
			for i := range 6 {
				all.Go(func() {
					script := fmt.Sprintf("echo begin; until [ -e %s ]; do sleep 0.02; done; echo end %d; exit %d", gate, i, i)
					err := st.Execute(bg, "a", sh(script), time.Hour)
					if got := fmt.Sprint(err); i > 0 && got != fmt.Sprint("exit status ", i) || i == 0 && err != nil {
						t.Errorf("command %d: %v", i, err)
					}
				})
			}
			for range 6 {
				st.until(t, "begin")
			}
			want(t, "outputs", len(files(st.dir, "a.", ".out", fs.ModeNamedPipe)), 1)
			want(t, "error", st.Execute(bg, "a", sh("exec sleep 100"), 50*time.Millisecond).Error(), "no end within 50ms, killed")
			p, err := st.find("a")
			if err != nil {
				t.Fatal(err)
			}
			p.host.giveUp(bg, &Spec{Name: "a", OnFailure: sh("echo hook; exit 7")}, p.ring)
			want(t, "stop", st.Stop(bg, "a", "the test"), nil)
			want(t, "clear", p.host.clear(bg, &Spec{Name: "a"}, record{}), nil)
			want(t, "start", st.Start(bg, "a", "the test"), nil)
			os.WriteFile(gate, nil, 0o600)
			all.Wait()
			said := map[string]int{}
			for _, l := range st.Ring("a").Tail(-1) {
				said[l.Text]++
			}
			for i := range 6 {
				want(t, "its end", said[fmt.Sprint("end ", i)], 1)
			}
			want(t, "on_failure", said["hook"], 1)
			want(t, "its end is told", strings.Contains(st.log.String(), `msg="on_failure failed" client=a command="[sh -c echo hook; exit 7]" err="exit status 7"`), true)
		})
	}
}

// TestExecuteUnkillable: what survives SIGKILL is told as such, has no twin, and is reaped when it is gone at last; on_failure is not
// kept waiting.
func TestExecuteUnkillable(t *testing.T) {
	st := open(t, t.TempDir(), proc.Options{})
	a := real("a", "sleep")
	st.Apply([]Spec{a})
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- st.Execute(ctx, "a", sh("echo pid $$; exec sleep 100"), time.Hour) }()
	lines := st.until(t, "pid ")
	pid := strings.TrimPrefix(lines[len(lines)-1], "pid ")
	st.Apply([]Spec{a, real("b", "tracer "+pid)})
	lines = st.until(t, "seized: ")
	if l := lines[len(lines)-1]; l != "seized: <nil>" {
		t.Skip("no right to trace: " + l)
	}
	cancel()
	if err := next(t, answer); !errors.Is(err, ErrUnkillable) {
		t.Errorf("got %v", err)
	}
	err := st.Execute(bg, "a", sh("echo a twin"), time.Hour)
	if !errors.Is(err, ErrUnkillable) {
		t.Errorf("again: %v", err)
	}
	p, _ := st.find("a")
	p.host.giveUp(bg, &Spec{Name: "a", OnFailure: sh("echo hook")}, p.ring)
	want(t, "another client's", st.Execute(bg, "b", sh("exit 0"), time.Hour), nil)
	want(t, "stop of the tracer", st.Stop(bg, "b", "the test"), nil)
	for late := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(late); time.Sleep(time.Millisecond) {
		err = st.Execute(bg, "a", sh("exit 0"), time.Hour)
	}
	want(t, "at last", err, nil)
	for _, l := range st.Ring("a").Tail(-1) {
		want(t, l.Text, l.Text == "a twin", false)
	}
	want(t, "the last line", st.Ring("a").Tail(1)[0].Text, "hook")
}

// TestExecuteAndTheSet: nobody's command is refused, and so is any after the end, which ends those under way.
func TestExecuteAndTheSet(t *testing.T) {
	st := open(t, t.TempDir(), proc.Options{})
	st.Apply([]Spec{real("a", "sleep"), real("b", "sleep")})
	if err := st.Execute(bg, "c", sh("exit 0"), time.Hour); !errors.Is(err, ErrUnknown) {
		t.Errorf("of nobody: %v", err)
	}
	answer := make(chan error, 1)
	go func() { answer <- st.Execute(bg, "a", sh("echo begin; exec sleep 100"), time.Hour) }()
	st.until(t, "begin")
	st.close()
	select {
	case err := <-answer:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("under way: %v", err)
		}
	case <-time.After(time.Second): // it has returned before the Set ended
		t.Error("the Set has ended before its commands")
	}
	if err := st.Execute(bg, "a", sh("exit 0"), time.Hour); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
