package proc

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What Exited says is what a bare fork and wait4 say, core flag included.
func TestExit(t *testing.T) {
	tests := map[string]string{
		"success":         "exit 0",
		"code":            "exit 7",
		"largest code":    "exit 255",
		"killed":          "kill -KILL $$",
		"terminated":      "kill -TERM $$",
		"aborted, core":   "ulimit -c unlimited; kill -ABRT $$",
		"aborted, no one": "ulimit -c 0; kill -ABRT $$",
	}
	eachKernel(t, func(t *testing.T, k *Kernel) {
		for name, script := range tests {
			p := start(t, k, "sh", script)
			got := <-p.Exited()
			if _, more := <-p.Exited(); more {
				t.Errorf("%s: a second exit", name)
			}
			if !exists(p.PID) {
				t.Errorf("%s: reaped before Reap", name)
			}
			if !p.tree.Empty() {
				t.Errorf("%s: a zombie leader counts as living", name)
			}
			if err := p.Reap(); err != nil {
				t.Error(err)
			}
			if exists(p.PID) {
				t.Errorf("%s: there after Reap", name)
			}
			if err := p.Reap(); err == nil {
				t.Errorf("%s: reaped twice", name)
			}
			p.tree.Close()
			if want := bare(t, k, script); got != want {
				t.Errorf("%s: %+v, want %+v", name, got, want)
			}
		}
	})
}

func bare(t *testing.T, k *Kernel, script string) Exit {
	k.mu.Lock() // or the collector takes it for an orphan
	defer k.mu.Unlock()
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var s syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &s, 0, nil); err != nil {
		t.Fatal(err)
	}
	e := Exit{Code: s.ExitStatus(), Core: s.CoreDump()}
	if s.Signaled() {
		e.Signal = s.Signal()
	}
	return e
}

// A start that fails says what was tried, and leaves nothing.
func TestStartError(t *testing.T) {
	tests := map[string]struct {
		c     Command
		errno error
		text  string
	}{
		"no program":   {Command{Path: "/nowhere/prog", Argv: []string{"prog"}}, syscall.ENOENT, "execute /nowhere/prog"},
		"no right":     {Command{Path: "/etc/passwd", Argv: []string{"prog"}}, syscall.EACCES, "execute /etc/passwd"},
		"no directory": {Command{Path: "/bin/sh", Argv: []string{"sh"}, Dir: "/nowhere"}, syscall.ENOENT, "directory /nowhere"},
	}
	eachKernel(t, func(t *testing.T, k *Kernel) {
		for name, test := range tests {
			tree := newTree(k)
			test.c.Tree, test.c.Output = tree, os.Stderr
			_, err := k.Start(test.c)
			if !errors.Is(err, test.errno) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), `"client`) {
				t.Errorf("%s: %v", name, err)
			}
			if !tree.Empty() {
				t.Errorf("%s: something is left", name)
			}
			tree.Close()
		}
	})
}

// The child sees its own group, /dev/null as its input, and this process's original descriptor limit.
func TestChildSurroundings(t *testing.T) {
	k := open(t, Options{})
	p := start(t, k, "sh", "ulimit -Sn; echo $$; exec sleep 1000")
	limit, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p.said(t, 1)
	s, err := ReadStat(p.PID)
	if err != nil || s.PGID != p.PID || s.ID != p.ID || s.PPID != os.Getpid() {
		t.Errorf("%+v, %v", s, err)
	}
	if null, _ := os.Readlink(procPath(p.PID, "fd/0")); null != os.DevNull {
		t.Errorf("standard input is %s", null)
	}
	var own syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own)
	soft, err := strconv.ParseUint(strings.TrimSpace(limit), 10, 64)
	if own.Cur == own.Max-1 && (err != nil || soft >= own.Cur) { // Go has raised ours
		t.Errorf("descriptor limit of the child: %s, ours %d", limit, own.Cur)
	}
}

// A user of its own: needs root.
func TestCredential(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a program as another user")
	}
	k := open(t, Options{})
	r, w, _ := os.Pipe()
	defer r.Close()
	tree := k.NewTree("client", 1, "mark", 65534)
	c, err := k.Start(Command{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}, Env: []string{"ZHX_RUN=mark"}, Output: w, Tree: tree,
		Cred: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{1}}})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if s, err := ReadStat(c.PID); err != nil || s.UID != 65534 {
		t.Errorf("%+v, %v", s, err)
	}
	if b, _ := readProc(c.PID, "status", 1<<16); !strings.Contains(string(b), "\nGroups:\t1 \n") {
		t.Error("supplementary groups were not set")
	}
	(&run{Child: c, tree: tree}).end(t)
}

// 100 children that run cost no thread.
func TestThreads(t *testing.T) {
	threads := func() int {
		list, _ := os.ReadDir("/proc/self/task")
		return len(list)
	}
	eachKernel(t, func(t *testing.T, k *Kernel) {
		for range 10 {
			start(t, k, "sh", "exec sleep 1000") // the pool of threads is warm
		}
		before := threads()
		for range 100 {
			p := start(t, k, "sh", "exec sleep 1000")
			defer unix.Kill(p.PID, unix.SIGKILL)
		}
		if grown := threads() - before; grown > 10 {
			t.Errorf("%d threads more for 100 children", grown)
		}
	})
}

// A child that ends at once is never lost, and never taken by the collector, which many other deaths keep busy.
func TestExitAtOnce(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		done := make(chan error)
		for worker := range 4 {
			go func() {
				for i := range 40 {
					tree := k.NewTree("client"+strconv.Itoa(worker), uint64(i), "", os.Getuid())
					c, err := k.Start(Command{Path: "/bin/sh", Argv: []string{"sh", "-c", "(exit 1) & exit 3"}, Output: os.Stderr, Tree: tree})
					if err == nil {
						if e := <-c.Exited(); e.Code != 3 {
							err = errors.New("code " + strconv.Itoa(e.Code))
						}
					}
					if err == nil {
						err = errors.Join(tree.WaitEmpty(context.Background()), c.Reap())
					}
					if err != nil {
						done <- err
						return
					}
					tree.Close()
				}
				done <- nil
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// Stops and continues are told, also those of a process that nobody signalled through us.
func TestFrozen(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		p := start(t, k, "say", "sleep")
		p.said(t, 1)
		for _, want := range []bool{true, false, true} {
			sig := unix.SIGCONT
			if want {
				sig = unix.SIGSTOP
			}
			unix.Kill(p.PID, sig)
			if got := <-p.Frozen(); got != want {
				t.Errorf("frozen: %v, want %v", got, want)
			}
		}
		if err := p.tree.Kill(); err != nil { // stopped as it is
			t.Error(err)
		}
		if e := <-p.Exited(); e.Signal != unix.SIGKILL {
			t.Errorf("%+v", e)
		}
	})
}

// From a child's death to its successor's start, and the same without any supervision.
func BenchmarkRestart(b *testing.B) {
	argv := []string{"true"}
	for _, o := range append(kernels, struct {
		name string
		Options
	}{"no lists", Options{NoLists: true}}) {
		b.Run(o.name, func(b *testing.B) {
			k := open(b, o.Options)
			var kill, judge time.Duration
			for b.Loop() {
				tree := k.NewTree("client", 1, "mark", 0)
				c, err := k.Start(Command{Path: "/bin/true", Argv: argv, Output: os.Stderr, Tree: tree})
				if err != nil {
					b.Fatal(err)
				}
				<-c.Exited()
				from := time.Now()
				if !tree.Empty() {
					b.Fatal("not empty")
				}
				judge += time.Since(from)
				c.Reap()
				tree.Close()
				kill += time.Since(from)
			}
			b.ReportMetric(float64(judge.Microseconds())/float64(b.N), "µs-empty")
			b.ReportMetric(float64(kill.Microseconds())/float64(b.N), "µs-empty+reap")
		})
	}
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			pid, err := syscall.ForkExec("/bin/true", argv, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
			if err != nil {
				b.Fatal(err)
			}
			var s syscall.WaitStatus
			syscall.Wait4(pid, &s, 0, nil)
		}
	})
}
