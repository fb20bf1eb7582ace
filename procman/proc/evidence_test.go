package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Children with threads of their own: "threads" are 40, of which all but a few wait for a futex; "vfork" has one that waits for
// a child and obeys no signal but SIGKILL.
func init() {
	switch args := strings.Join(os.Args[min(1, len(os.Args)):], " "); args {
	case "child threads":
	case "child vfork":
		go func() {
			runtime.LockOSThread()
			pid, _, _ := syscall.RawSyscall6(syscall.SYS_CLONE, unix.CLONE_VFORK|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			for pid == 0 {
				syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
			}
		}()
		fmt.Println(os.Getpid())
		time.Sleep(time.Hour)
	default:
		return
	}
	ready, never := make(chan bool), make(chan bool)
	for range 40 {
		go func() {
			runtime.LockOSThread()
			ready <- true
			<-never
		}()
	}
	for range 40 {
		<-ready
	}
	fmt.Println(os.Getpid())
	time.Sleep(time.Hour)
}

const generous = 10 * time.Second // a limit that a loaded machine keeps, too

// settle asks again until the evidence has what is waited for: a child that said its pid is not yet blocked.
func settle(t *testing.T, tree *Tree, ok func(Evidence) bool) Evidence {
	t.Helper()
	for late := time.Now().Add(generous); ; <-time.After(recheck) {
		e := tree.Evidence(generous)
		if ok(e) {
			return e
		}
		if time.Now().After(late) {
			t.Fatalf("the evidence remains\n%s", strings.Join(e.Lines(), "\n"))
		}
	}
}

func TestEvidenceOfBlocked(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	k := open(t, Options{})
	tests := []struct {
		name  string
		words []string
		calls []string
	}{
		{"read of a FIFO", []string{"sh", "echo $$; read x <>" + fifo}, []string{"read"}},
		{"open of a FIFO", []string{"sh", "echo $$; read x <" + fifo}, []string{"open", "openat"}},
		{"sleep", []string{"sh", "echo $$; exec sleep 1000"}, []string{"nanosleep", "clock_nanosleep"}},
		{"end of a child", []string{"sh", "echo $$; sleep 1000; :"}, []string{"wait4"}},
		{"futex", []string{"threads"}, []string{"futex"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := start(t, k, test.words...)
			p.said(t, 1)
			var th Thread
			e := settle(t, p.tree, func(e Evidence) bool {
				i := -1
				if len(e.Processes) > 0 {
					i = slices.IndexFunc(e.Processes[0].Threads, func(th Thread) bool {
						return th.State != 'R' && (th.Wchan != "" || slices.Contains(test.calls, th.Syscall))
					})
				}
				if i >= 0 {
					th = e.Processes[0].Threads[i]
				}
				return i >= 0 && (e.Processes[0].Fault != "" || slices.Contains(test.calls, th.Syscall))
			})
			leader := e.Processes[0]
			if leader.PID != p.PID || leader.Descriptors < 3 || leader.RSS < 4096 || th.State != 'S' && th.State != 'D' {
				t.Errorf("%+v", leader)
			}
			line := strings.Join(e.Lines(), "\n")
			if th.Wchan != "" && !strings.Contains(line, "wchan "+th.Wchan) || th.Syscall != "" && !strings.Contains(line, th.Syscall) {
				t.Errorf("%+v is not in\n%s", th, line)
			}
			t.Log("\n" + line)
		})
	}
}

// A thread that obeys no signal comes before the first one, with its stack where that is permitted.
func TestEvidenceOfUninterruptible(t *testing.T) {
	p := start(t, open(t, Options{}), "vfork")
	p.said(t, 1)
	e := settle(t, p.tree, func(e Evidence) bool {
		th := e.Processes[0].Threads[0]
		return len(e.Processes) == 2 && th.State == 'D' && th.TID != p.PID && (th.Wchan != "" || th.Syscall == "clone")
	})
	th := e.Processes[0].Threads[0]
	text := strings.Join(e.Lines(), "\n")
	if len(th.Stack) > 0 && !strings.Contains(text, "  stack "+th.Stack[0]) {
		t.Errorf("%+v:\n%s", th, text)
	}
	t.Log("\n" + text)
}

// A spinning process runs, and its processor time grows.
func TestEvidenceOfSpinning(t *testing.T) {
	p := start(t, open(t, Options{}), "sh", "echo $$; while :; do :; done")
	p.said(t, 1)
	spins := func(least time.Duration) Thread {
		return settle(t, p.tree, func(e Evidence) bool {
			th := e.Processes[0].Threads[0]
			return th.State == 'R' && th.CPU > least
		}).Processes[0].Threads[0]
	}
	first := spins(0)
	then := spins(first.CPU)
	if first.Wchan != "" || then.Syscall != "running" && then.Syscall != "" {
		t.Errorf("%+v, %+v", first, then)
	}
}

func TestEvidenceLimits(t *testing.T) {
	k := open(t, Options{})
	t.Run("threads", func(t *testing.T) {
		p := start(t, k, "threads")
		p.said(t, 1)
		e := p.tree.Evidence(generous)
		if len(e.Processes) != 1 || len(e.Processes[0].Threads) != evidenceThreads-evidenceProcesses+1 || e.Left < 40-evidenceThreads {
			t.Errorf("%d processes, %d left:\n%s", len(e.Processes), e.Left, strings.Join(e.Lines(), "\n"))
		}
	})
	t.Run("processes", func(t *testing.T) {
		p := start(t, k, "sh", "i=0; while [ $i -lt 20 ]; do sleep 1000 & echo $!; i=$((i+1)); done; wait")
		p.said(t, 20)
		e := p.tree.Evidence(generous)
		if len(e.Processes) != evidenceProcesses || e.Processes[0].PID != p.PID || e.Left != 21-evidenceProcesses {
			t.Errorf("%d processes, %d left:\n%s", len(e.Processes), e.Left, strings.Join(e.Lines(), "\n"))
		}
	})
	t.Run("time", func(t *testing.T) {
		p := start(t, k, "threads")
		p.said(t, 1)
		for _, limit := range []time.Duration{-1, 0, 200 * time.Microsecond, 50 * time.Millisecond} {
			began := time.Now()
			e := p.tree.Evidence(limit)
			took := time.Since(began)
			if took > limit+generous || len(e.Processes) == 0 && e.Left == 0 {
				t.Errorf("within %v: %+v", limit, e)
			}
			t.Log(limit, took, e.Left)
		}
	})
	t.Run("lines", func(t *testing.T) {
		e := Evidence{Left: 3}
		for pid := range evidenceProcesses {
			e.Processes = append(e.Processes, Process{PID: pid, Comm: "a\x1b[2J", Descriptors: -1, Threads: make([]Thread, evidenceThreads/evidenceProcesses)})
		}
		lines := e.Lines()
		text := strings.Join(lines, "\n")
		if len(lines) != evidenceLines || lines[evidenceLines-1] != "3 more processes or threads were not looked at" || strings.Contains(text, "\x1b") {
			t.Errorf("%d lines:\n%s", len(lines), text)
		}
	})
}

// All that is of the run is met, with whatever the kernel offers.
func TestEvidenceOfTree(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		tests := []struct {
			name  string
			words []string
			says  int
		}{
			{"grandchildren", []string{"say", "fork", "say", "fork", "say", "sleep"}, 3},
			{"an orphan with a child", []string{"say", "fork", "leave", "session", "fork", "say", "sleep"}, 2},
		}
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				p := start(t, k, test.words...)
				pids := p.said(t, test.says)
				e := settle(t, p.tree, func(e Evidence) bool {
					return !slices.ContainsFunc(pids, func(pid int) bool {
						return !slices.ContainsFunc(e.Processes, func(q Process) bool { return q.PID == pid })
					})
				})
				if e.Processes[0].PID != p.PID {
					t.Errorf("%d comes before the leader %d", e.Processes[0].PID, p.PID)
				}
			})
		}
	})
}

// Of a run that was not started, has ended, or was reaped, there is nothing to see.
func TestEvidenceOfDead(t *testing.T) {
	k := open(t, Options{})
	tree := newTree(k)
	defer tree.Close()
	p := start(t, k, "exit:0")
	<-p.Exited()
	nothing := func(tree *Tree) {
		t.Helper()
		before := tree.Sched()
		e := tree.Evidence(generous)
		tracer, err := tree.Tracer()
		if len(e.Processes) > 0 || e.Left > 0 || e.Lines() != nil || tracer != 0 || err != nil || before.Starved(tree.Sched()) != 0 {
			t.Errorf("%+v, tracer %d, %v, %+v", e, tracer, err, before)
		}
	}
	nothing(tree)
	nothing(p.tree)
	p.end(t)
	nothing(p.tree)
}

func TestSyscallName(t *testing.T) {
	for text, want := range map[string]string{
		"":                 "",
		"running":          "running",
		"-1 0x7ffc 0x7f24": "no system call",
		fmt.Sprintf("%d 0x3 0x7f 0x1", unix.SYS_FUTEX): "futex",
		"99999 0x0": "system call 99999",
	} {
		if got := syscallName(text); got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}

func BenchmarkEvidence(b *testing.B) {
	p := start(b, open(b, Options{}), "sh", "echo $$; read x <>/dev/null; exec sleep 1000")
	p.said(b, 1)
	for b.Loop() {
		p.tree.Evidence(50 * time.Millisecond)
	}
}
