// The test binary is its own child: with "child" as its first argument it does what the words after it say.

package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	StageMain()
	if len(os.Args) > 1 && os.Args[1] == "child" {
		act(os.Args[2:])
	}
	os.Exit(m.Run())
}

// act does the words in turn. fork and leave give the words after them to a new process; then the first sleeps for ever,
// and the second exits; session and bare (no environment) say how that process is made.
func act(words []string) {
	var env = os.Environ()
	sys := &syscall.SysProcAttr{}
	for i, word := range words {
		name, arg, _ := strings.Cut(word, ":")
		n, _ := strconv.Atoi(arg)
		switch name {
		case "say": // one write: lines of several processes share the pipe
			os.Stdout.WriteString(strconv.Itoa(os.Getpid()) + "\n")
		case "ignore":
			signal.Ignore(syscall.SIGTERM)
		case "stop":
			syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		case "session":
			sys.Setsid = true
		case "bare":
			env = nil
		case "fork", "leave":
			_, err := syscall.ForkExec("/proc/self/exe", append([]string{os.Args[0], "child"}, words[i+1:]...),
				&syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}, Sys: sys})
			if err != nil {
				panic(err)
			}
			if name == "leave" {
				exit(0)
			}
			time.Sleep(time.Hour)
		case "exit":
			exit(n)
		case "sleep":
			time.Sleep(time.Hour)
		case "decoys":
			keepDecoys()
		default:
			panic("unknown word " + word)
		}
	}
	os.Exit(0)
}

// exit without what the race detector does first: sleep for a second.
func exit(code int) { syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(code), 0, 0) }

// rounds of options: everything that the machine has, and each old-kernel path alone and together.
var kernels = []struct {
	name string
	Options
}{
	{"all", Options{}},
	{"no pidfd", Options{NoPidfd: true}},
	{"no cgroup", Options{NoCgroup: true}},
	{"oldest", Options{NoPidfd: true, NoCgroup: true, NoLists: true}},
}

// eachKernel runs the test under each set of options. Afterwards no child, zombie or goroutine may be left.
func eachKernel(t *testing.T, test func(t *testing.T, k *Kernel)) {
	for _, o := range kernels {
		t.Run(o.name, func(t *testing.T) { test(t, open(t, o.Options)) })
	}
}

func open(t testing.TB, o Options) *Kernel {
	t.Helper()
	before := goleak.IgnoreCurrent()
	k, err := Open(o, slog.New(slog.NewTextHandler(testLog{t}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
			t.Errorf("a child is left: wait4 says %d, %v", pid, err)
		}
		if _, ok := t.(*testing.T); ok {
			goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("os/signal.loop"))
		}
	})
	return k
}

type testLog struct{ testing.TB }

func (l testLog) Write(b []byte) (int, error) { l.Logf("%s", b); return len(b), nil }

// program is a started run and what it writes.
type run struct {
	*Child
	tree *Tree
	out  *bufio.Reader
}

var runs uint64

// newTree makes a tree with a mark of its own.
func newTree(k *Kernel) *Tree {
	runs++
	return k.NewTree(fmt.Sprintf("client%d", runs), runs, fmt.Sprintf("mark-%d-%d", os.Getpid(), runs), os.Getuid())
}

// start starts the test binary with these words, or with "sh" first a shell.
func start(t testing.TB, k *Kernel, words ...string) *run {
	t.Helper()
	return startIn(t, k, newTree(k), words...)
}

func startIn(t testing.TB, k *Kernel, tree *Tree, words ...string) *run {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path, argv := "/proc/self/exe", append([]string{os.Args[0], "child"}, words...)
	if words[0] == "sh" {
		path, argv = "/bin/sh", append([]string{"sh", "-c"}, words[1:]...)
	}
	c, err := k.Start(Command{Path: path, Argv: argv, Env: append(os.Environ(), "ZHX_RUN="+tree.Mark), Output: w, Tree: tree, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	p := &run{Child: c, tree: tree, out: bufio.NewReader(r)}
	t.Cleanup(func() {
		p.end(t)
		r.Close()
	})
	return p
}

// outside starts a process as a dead zhxd leaves it: its parent is init, and not below us.
func outside(t *testing.T, k *Kernel, env string, words ...string) *run {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	defer w.Close()
	k.mu.Lock() // the collector must not take the process in between
	defer k.mu.Unlock()
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	pid, err := syscall.ForkExec("/proc/self/exe", append([]string{os.Args[0], "child", "leave"}, words...),
		&syscall.ProcAttr{Env: append(os.Environ(), env), Files: []uintptr{k.null.Fd(), w.Fd(), 2}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	return &run{out: bufio.NewReader(r)}
}

// end kills what is left and reaps.
func (p *run) end(t testing.TB) {
	t.Helper()
	if err := p.tree.Kill(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.tree.WaitEmpty(ctx); err != nil {
		t.Error(err)
	}
	if !p.reaped() {
		if err := p.Reap(); err != nil {
			t.Error(err)
		}
	}
	p.tree.Close()
}

func (p *run) reaped() bool {
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	return p.k.children[p.PID] != p.Child
}

// said reads the pids that n processes say.
func (p *run) said(t testing.TB, n int) []int {
	t.Helper()
	var list []int
	for range n {
		line, err := p.out.ReadString('\n')
		pid, err2 := strconv.Atoi(strings.TrimSpace(line))
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("after %v: %v", list, err)
		}
		list = append(list, pid)
	}
	return list
}

func exists(pid int) bool { return unix.Kill(pid, 0) == nil }

func idOf(t testing.TB, pid int) ID {
	t.Helper()
	s, err := ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	return s.ID
}
