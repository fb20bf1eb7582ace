package procman

import (
	"bufio"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"zhx/procman/proc"
)

const childVar = "PROCMAN_TEST_CHILD" // what the test binary is to be, when it is a client

func TestMain(m *testing.M) {
	proc.StageMain()
	if os.Getenv("ZHX_RUN") != "" && os.Getenv(childVar) == "" {
		fmt.Println("a client without its part: not all tests once more")
		os.Exit(3)
	}
	if what := os.Getenv(childVar); what != "" {
		child(strings.Fields(what))
	}
	os.Exit(m.Run())
}

// child is every program that these tests manage. It never returns.
func child(words []string) {
	switch words[0] {
	case "sleep":
		fmt.Println("up", os.Getpid())
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("up", os.Getpid())
	case "exit":
		n, _ := strconv.Atoi(words[1])
		os.Exit(n)
	case "zhxd": // one that starts one client, and is going to be killed
		st := &station{started: make(chan int, 1), ended: make(chan LastExit, 1)}
		log := slog.New(slog.DiscardHandler)
		k, err := proc.Open(proc.Options{}, log)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		st.Set = New(Options{Dir: words[1], Notify: words[1], Environ: os.Environ(), Kernel: k, Log: log, Events: st})
		st.Apply([]Spec{real("a", "sleep")})
		st.Wait(bg)
		fmt.Println("pid", <-st.started)
	case "env":
		dir, _ := os.Getwd()
		fmt.Println("DIR=" + dir)
		fmt.Println("ID=", os.Getuid(), os.Getgid())
		for _, kv := range os.Environ() {
			fmt.Println(kv)
		}
		syscall.Exit(0) // not os.Exit, which prints with -cover
	case "print": // so many lines, and a last one without an end; then SIGKILL, as a crash
		n, _ := strconv.Atoi(words[1])
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintln(w, "line", i)
		}
		fmt.Fprint(w, "the last words")
		w.Flush()
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "handle", "handles": // SIGABRT ends it, SIGUSR1 does not; with a child of its own that does the same
		if words[0] == "handles" {
			cmd := exec.Command(os.Args[0])
			cmd.Env, cmd.Stdout = append(os.Environ(), childVar+"=handle"), os.Stdout
			if err := cmd.Start(); err != nil {
				fmt.Println(err)
			}
		}
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGABRT, syscall.SIGUSR1)
		fmt.Println("up", os.Getpid())
		for sig := range c {
			fmt.Println(words[0], "got", signalName(sig.(syscall.Signal)))
			if sig == syscall.SIGABRT {
				os.Exit(7)
			}
		}
	case "unmoved":
		signal.Ignore(syscall.SIGABRT)
		fmt.Println("up", os.Getpid())
	case "fat":
		beFat()
	case "family": // a grandchild in a session of its own that is deaf, one in the group, one stopped
		for _, c := range []struct {
			what string
			sys  *syscall.SysProcAttr
		}{{"deaf", &syscall.SysProcAttr{Setsid: true}}, {"sleep", nil}, {"sleep", nil}} {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childVar+"="+c.what)
			cmd.SysProcAttr = c.sys
			out, _ := cmd.StdoutPipe()
			if err := cmd.Start(); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			line, _ := bufio.NewReader(out).ReadString('\n') // it is up
			fmt.Print(line)
		}
		fmt.Println("complete")
		if words[1] == "crash" {
			os.Exit(1)
		}
	}
	time.Sleep(time.Hour) // until it is killed
	os.Exit(0)
}

// A station is a Set with real processes and what it says.
type station struct {
	*Set
	dir     string
	started chan int // pids, in order
	ended   chan LastExit
	lines   chan string // what clients print
	log     *lockedBuffer
	close   func() // shuts down, once
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (st *station) Began(string, uint64, *proc.Tree)     {}
func (st *station) Armed(string, uint64)                 {}
func (st *station) Paused(string, time.Duration, string) {}
func (st *station) Said(string, uint64, Sign)            {}
func (st *station) GaveUp(string, uint64, string)        {}
func (st *station) Running(_ string, _ uint64, pid int)  { st.started <- pid }
func (st *station) Ended(_ string, _ uint64, l LastExit) { st.ended <- l }

// open makes a station; at the end of the test it must shut down and leave no goroutine, process or FIFO.
func open(t *testing.T, dir string, o proc.Options) *station {
	t.Helper()
	if r, w, err := os.Pipe(); err == nil { // so that the poller has its descriptors
		r.Close()
		w.Close()
	}
	before, fds := goleak.IgnoreCurrent(), descriptors()
	st := &station{dir: dir, started: make(chan int, 1<<14), ended: make(chan LastExit, 1<<14), lines: make(chan string, 1<<20), log: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(st.log, nil))
	k, err := proc.Open(o, log)
	if err != nil {
		t.Fatal(err)
	}
	st.Set = New(Options{Dir: dir, Notify: dir, Environ: append(os.Environ(), "ZHX_SOCKET=/nowhere/zhx.sock"), Kernel: k, Log: log, Events: st,
		Output: func(_ string, line []byte) { st.lines <- string(line) }})
	st.close = sync.OnceFunc(func() {
		if err := st.Shutdown(bg); err != nil {
			t.Error(err)
		}
		k.Close()
	})
	t.Cleanup(func() {
		st.close()
		if left := files(st.dir, "", ".out", fs.ModeNamedPipe); left != nil {
			t.Errorf("left behind: %v", left)
		}
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
			t.Errorf("a child is left: %d, %v", pid, err)
		}
		for late := time.Now().Add(time.Second); descriptors() > fds && time.Now().Before(late); { // a log file is closed beside
			time.Sleep(time.Millisecond)
		}
		if n := descriptors(); n > fds {
			t.Errorf("%d descriptors, %d before", n, fds)
		}
		goleak.VerifyNone(t, before)
		if t.Failed() {
			t.Log(st.log)
		}
	})
	return st
}

func descriptors() int {
	list, _ := os.ReadDir("/proc/self/fd")
	return len(list)
}

func real(name, what string, change ...func(*Spec)) Spec {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	s := spec(name)
	s.Command, s.Environment, s.StableAfter = []string{exe}, map[string]string{childVar: what}, time.Millisecond
	s.RestartDelay = time.Minute
	s.RestartDelayMax = time.Minute
	for _, c := range change {
		c(&s)
	}
	return s
}

// end kills a process that is no client's, and reaps it unless our kernel has.
func (st *station) end(id proc.ID) {
	proc.SignalVerified(id, syscall.SIGKILL)
	st.o.Kernel.WaitGone(bg, id)
	syscall.Wait4(id.PID, nil, 0, nil)
}

// until reads what clients print up to a line with that beginning.
func (st *station) until(t *testing.T, beginning string) (lines []string) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case l := <-st.lines:
			lines = append(lines, l)
			if strings.HasPrefix(l, beginning) {
				return lines
			}
		case <-limit:
			t.Fatalf("no line %q; so far %.1000q; log:\n%s", beginning, lines, st.log)
		}
	}
}

func next[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing happens")
	}
	return v
}

var kernels = map[string]proc.Options{"new kernel": {}, "old kernel": {NoPidfd: true, NoCgroup: true}}

// TestStopWholeTree: when stop answers nothing of the tree lives: deaf, stopped, in another session; nor after a crash.
func TestStopWholeTree(t *testing.T) {
	for kernel, o := range kernels {
		t.Run(kernel, func(t *testing.T) {
			st := open(t, t.TempDir(), o)
			st.Apply([]Spec{real("a", "family stay", func(s *Spec) { s.StopTimeout = 200 * time.Millisecond })})
			pids := st.family(t)
			syscall.Kill(pids[3], syscall.SIGSTOP)
			if err := st.Stop(bg, "a", "the test"); err != nil {
				t.Fatal(err)
			}
			dead(t, pids)
			want(t, "reason", next(t, st.ended).Reason, ByStop)
			want(t, "processes killed", strings.Contains(st.log.String(), "does not stop"), true)

			st.Apply([]Spec{real("a", "family stay"), real("b", "family crash")})
			pids = st.family(t)
			want(t, "exit", next(t, st.ended).Code, 1)
			dead(t, pids)
			want(t, "said", strings.Contains(st.log.String(), "left processes behind"), true)
		})
	}
}

// family returns the pids of a "family": the leader's and its children's.
func (st *station) family(t *testing.T) []int {
	pids := []int{next(t, st.started)}
	for _, l := range st.until(t, "complete") {
		if pid, err := strconv.Atoi(strings.TrimPrefix(l, "up ")); err == nil {
			pids = append(pids, pid)
		}
	}
	want(t, "family", len(pids), 4)
	return pids
}

func dead(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if s, err := proc.ReadStat(pid); err == nil && s.Living() {
			t.Errorf("process %d lives: %+v", pid, s)
		}
	}
}

// TestStorm: a client is killed 200 times in a row. Each run has one end; no zombie, goroutine or FIFO is left (open looks).
func TestStorm(t *testing.T) {
	for kernel, o := range kernels {
		t.Run(kernel, func(t *testing.T) {
			st := open(t, t.TempDir(), o)
			st.Apply([]Spec{real("a", "sleep", func(s *Spec) { s.StableAfter = 1 })})
			for i := range 200 {
				pid := next(t, st.started)
				syscall.Kill(pid, syscall.SIGKILL)
				l := next(t, st.ended)
				if l.Run != uint64(i+1) || l.PID != pid || l.Reason != BySignal || l.Signal != "SIGKILL" {
					t.Fatalf("kill %d of pid %d: %+v", i, pid, l)
				}
			}
			next(t, st.started)
			st.settle("a")
			s := st.Status()[0]
			want(t, "run", s.Run, 201)
			want(t, "restarts", s.Restarts, 200)
		})
	}
}

// TestLastWords: all that a child wrote before it was killed is there, in order, before its end is told.
func TestLastWords(t *testing.T) {
	for _, tty := range []bool{false, true} {
		st := open(t, t.TempDir(), proc.Options{})
		st.Apply([]Spec{real("a", "print 5000", func(s *Spec) { s.TTY, s.StableAfter = tty, time.Hour })})
		next(t, st.ended)
		close(st.lines)
		n := 0
		for l := range st.lines {
			if l != fmt.Sprint("line ", n) && (n != 5000 || l != "the last words") {
				t.Fatalf("tty %v: line %d is %q", tty, n, l)
			}
			n++
		}
		want(t, "lines", n, 5001)
		want(t, "ring", st.Ring("a").Tail(1)[0].Text, "the last words")
		st.lines = make(chan string, 1<<20)
	}
}

// TestEnvironment: a child has what the contract says, and nothing else.
func TestEnvironment(t *testing.T) {
	t.Setenv("PATH", "/bin:/usr/bin")
	t.Setenv("LANG", "C.UTF-8")
	t.Setenv("NOTIFY_SOCKET", "/not/for/children")
	os.Unsetenv("TZ")
	dir := t.TempDir()
	change := []func(*Spec){func(s *Spec) {
		s.Directory, s.Restart = dir, Never
		s.Environment["ZHX_NAME"] = "forged"
		s.Environment["ZHX_RUN"] = "forged"
	}}
	wanted := []string{"DIR=" + dir, fmt.Sprint("ID= ", os.Getuid(), " ", os.Getgid()), "LANG=C.UTF-8", "PATH=/bin:/usr/bin",
		childVar + "=env", "ZHX_NAME=a", "ZHX_SOCKET=/nowhere/zhx.sock"}
	if os.Getuid() == 0 {
		os.Chmod(filepath.Dir(dir), 0o755)
		program := filepath.Join(dir, "program") // this test binary's own folder is closed to others
		copyFile(t, os.Args[0], program)
		change = append(change, func(s *Spec) { s.User, s.Group, s.Command = "nobody", "12345", []string{"./program"} })
		wanted[1] = "ID= 65534 12345"
		wanted = append(wanted, "HOME=/nonexistent", "SHELL=/usr/sbin/nologin", "USER=nobody")
	}
	st := open(t, t.TempDir(), proc.Options{})
	st.Apply([]Spec{real("a", "env", change...)})
	next(t, st.ended)
	var got []string
	for _, l := range st.Ring("a").Tail(-1) {
		if path, is := strings.CutPrefix(l.Text, "NOTIFY_SOCKET="); is {
			want(t, "notify socket", filepath.Base(path), "a.1")
		} else if !strings.HasPrefix(l.Text, "ZHX_RUN=") {
			got = append(got, l.Text)
		} else if len(l.Text) < len("ZHX_RUN=")+20 {
			t.Errorf("a weak mark: %s", l.Text)
		}
	}
	slices.Sort(got)
	wanted = append(wanted, "WATCHDOG_USEC=9000000")
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		t.Errorf("got  %q\nwant %q\n%s", got, wanted, st.log)
	}
	st.settle("a")
	want(t, "state", st.Status()[0].State, Exited)
}

type nothing struct{}

func (nothing) on(*program) {}

// settle returns when the client's status shows whatever was told by an event.
func (st *station) settle(name string) {
	p, _ := st.find(name)
	p.tell(nothing{})
}

// TestSpawnFailure: what cannot be spawned is said with its errno, and tried again.
func TestSpawnFailure(t *testing.T) {
	dir := t.TempDir()
	notExec := filepath.Join(dir, "text")
	os.WriteFile(notExec, []byte("hello"), 0o644)
	for _, c := range []struct {
		purpose string
		change  func(*Spec)
		errno   syscall.Errno
		text    string
	}{
		{"missing file", func(s *Spec) { s.Command = []string{"/no/such/file"} }, syscall.ENOENT, "/no/such/file"},
		{"not in PATH", func(s *Spec) { s.Command = []string{"no-such-program"} }, syscall.ENOENT, "no-such-program"},
		{"not executable", func(s *Spec) { s.Command = []string{notExec} }, syscall.EACCES, notExec},
		{"missing directory", func(s *Spec) { s.Directory = "/no/such/dir" }, syscall.ENOENT, "/no/such/dir"},
		{"a file as directory", func(s *Spec) { s.Directory = notExec }, syscall.ENOTDIR, notExec},
		{"missing user", func(s *Spec) { s.User = "no-such-user" }, 0, "no-such-user"},
		{"missing group", func(s *Spec) { s.Group = "no-such-group" }, 0, "no-such-group"},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			st := open(t, t.TempDir(), proc.Options{})
			st.Apply([]Spec{real("a", "sleep", c.change)})
			l := next(t, st.ended)
			st.Wait(bg)
			if l.Reason != BySpawn || l.Code != int(c.errno) || !strings.Contains(l.Text, c.text) {
				t.Errorf("got %+v", l)
			}
			if s := st.Status()[0]; s.State != Backoff || s.Next.IsZero() || s.PID != 0 {
				t.Errorf("got %+v", s)
			}
			if err := st.Start(bg, "a", "the test"); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("start by hand: %v", err)
			}
		})
	}
}

// TestLook: only a process that is stopped and has no tracer is stuck.
func TestLook(t *testing.T) {
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"=sleep")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	s, _ := proc.ReadStat(pid)
	l := &run{Child: &proc.Child{ID: s.ID}}
	want(t, "running", l.look(), evThawed)
	if err := syscall.PtraceAttach(pid); err != nil {
		t.Fatal(err)
	}
	syscall.Wait4(pid, nil, syscall.WALL, nil)
	want(t, "traced", l.look(), evFrozen)
	syscall.PtraceDetach(pid)
	syscall.Kill(pid, syscall.SIGSTOP)
	syscall.Wait4(pid, nil, syscall.WUNTRACED, nil)
	want(t, "stopped", l.look(), evStuck)
	cmd.Process.Kill()
	cmd.Wait()
	want(t, "gone", l.look(), evThawed)
}

// TestFrozenChild: a child that is stopped for longer than FrozenTimeout is replaced.
func TestFrozenChild(t *testing.T) {
	for kernel, o := range kernels {
		t.Run(kernel, func(t *testing.T) {
			st := open(t, t.TempDir(), o)
			st.Apply([]Spec{real("a", "sleep", func(s *Spec) { s.FrozenTimeout = 100 * time.Millisecond })})
			pid := next(t, st.started)
			syscall.Kill(pid, syscall.SIGSTOP)
			l := next(t, st.ended)
			want(t, "reason", l.Reason, ByFrozen)
			want(t, "its successor", next(t, st.started) != pid, true)
		})
	}
}

func copyFile(t *testing.T, from, to string) {
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestStray: a copy that nobody manages is gone before the first spawn, one with a different argument is left alone.
func TestStray(t *testing.T) {
	prog := filepath.Join(t.TempDir(), "stray-test-prog")
	copyFile(t, os.Args[0], prog)
	copies := func(arg string) proc.ID {
		cmd := exec.Command(prog, arg)
		cmd.Env = []string{childVar + "=sleep"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 1)) // exec answers a moment before /proc shows its arguments
		}
		if err != nil {
			t.Fatal(err)
		}
		out.Close()
		s, err := proc.ReadStat(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Process.Release()
		return s.ID
	}
	lives := func(id proc.ID) bool {
		s, err := proc.ReadStat(id.PID)
		return err == nil && s.ID == id && s.Living()
	}
	for _, kill := range []bool{true, false} {
		st := open(t, t.TempDir(), proc.Options{})
		stray, others := copies("same"), []proc.ID{}
		for range partMax + 2 {
			others = append(others, copies("other"))
		}
		st.Apply([]Spec{real("a", "sleep", func(s *Spec) { s.Command, s.KillStrays = []string{prog, "same"}, kill })})
		next(t, st.started)
		want(t, "the stray lives", lives(stray), !kill)
		want(t, "the others live", slices.ContainsFunc(others, func(id proc.ID) bool { return !lives(id) }), false)
		want(t, "said", strings.Contains(st.log.String(), "SIGTERM"), kill)
		want(t, "said of all others", strings.Contains(st.log.String(), "count=2"), kill)
		if n := strings.Count(st.log.String(), "looks like an unmanaged copy"); kill && n != partMax {
			t.Errorf("%d lines on the others", n)
		}
		for _, id := range append(others, stray) {
			st.end(id)
		}
		st.close()
	}
}
