package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// With "zhxd" as its first argument the test binary is a zhxd that starts one run, says so, and is going to be killed.
func init() {
	if len(os.Args) < 3 || os.Args[1] != "zhxd" {
		return
	}
	var mark string
	o := Options{}
	fmt.Sscan(os.Args[2], &mark, &o.NoPidfd, &o.NoCgroup, &o.NoLists)
	k, err := Open(o, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	c, err := k.Start(command(k.NewTree("client-"+mark, 1, mark, os.Getuid()), os.Args[3:]))
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.NewFile(3, "report"), c.PID, c.Start)
	time.Sleep(time.Hour)
}

func command(t *Tree, words []string) Command {
	path, argv := "/proc/self/exe", append([]string{os.Args[0], "child"}, words...)
	if words[0] == "sh" {
		path, argv = "/bin/sh", append([]string{"sh", "-c"}, words[1:]...)
	}
	return Command{Path: path, Argv: argv, Env: append(os.Environ(), "ZHX_RUN="+t.Mark), Output: os.Stdout, Tree: t}
}

var marks atomic.Uint64

// orphaned starts a run under a zhxd of its own and kills that. The run's parent is then init, or below: us.
func orphaned(t *testing.T, k *Kernel, o Options, below bool, words ...string) (tree *Tree, leader ID, out *run) {
	t.Helper()
	mark := fmt.Sprintf("orphaned-%d-%d", os.Getpid(), marks.Add(1))
	r, w, err := os.Pipe()
	report, w2, err2 := os.Pipe()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	defer w2.Close()
	defer w.Close()
	tree = k.NewTree("client-"+mark, 1, mark, os.Getuid())
	k.mu.Lock() // the collector must not take the zhxd
	defer k.mu.Unlock()
	if !below {
		unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	options := fmt.Sprint(mark, " ", o.NoPidfd, " ", o.NoCgroup, " ", o.NoLists)
	pid, err := syscall.ForkExec("/proc/self/exe", append([]string{os.Args[0], "zhxd", options}, words...),
		&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{k.null.Fd(), w.Fd(), 2, w2.Fd()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(report, &leader.PID, &leader.Start); err != nil {
		t.Fatal(err)
	}
	unix.Kill(pid, unix.SIGKILL)
	if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return tree, leader, &run{out: bufio.NewReader(r), tree: tree}
}

// adoptedRun is an orphaned run that was adopted.
func adoptedRun(t *testing.T, k *Kernel, o Options, words ...string) *run {
	t.Helper()
	tree, leader, p := orphaned(t, k, o, false, words...)
	var err error
	if p.Child, err = k.Adopt(tree, leader); err != nil {
		t.Fatal(err)
	}
	return p
}

// over ends an adopted run, and makes sure that nobody of it lives.
func (p *run) over(t *testing.T, pids []int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := errors.Join(p.tree.Kill(), p.tree.WaitEmpty(ctx)); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if s, err := ReadStat(pid); err == nil && s.Living() {
			t.Errorf("process %d lives after all", pid)
		}
	}
	<-p.Exited()
	if err := p.Reap(); err != nil {
		t.Error(err)
	}
	if p.Reap() == nil {
		t.Error("reaped twice")
	}
	p.tree.Close()
}

func eachKernelAdopts(t *testing.T, test func(t *testing.T, k *Kernel, o Options)) {
	for _, o := range kernels {
		t.Run(o.name, func(t *testing.T) { test(t, open(t, o.Options), o.Options) })
	}
}

// Every shape of a tree belongs to the run that was adopted, and ends with it, whether its leader was there to the last or not.
func TestAdopt(t *testing.T) {
	eachKernelAdopts(t, func(t *testing.T, k *Kernel, o Options) {
		for _, shape := range shapes {
			if shape.ends {
				continue // its leader would be gone before it can be adopted: KillRemains
			}
			for _, first := range []bool{false, true} {
				if !first && !k.pidfd {
					continue // the same, and slow
				}
				t.Run(fmt.Sprint(shape.name, ", the leader dies first: ", first), func(t *testing.T) {
					t.Parallel()
					p := adoptedRun(t, k, o, shape.words...)
					pids := p.said(t, shape.says)
					all, err := p.tree.Members()
					if err != nil || len(all) < shape.says || all[0] != p.ID {
						t.Errorf("%v, %v, leader %v", all, err, p.ID)
					}
					for _, pid := range pids {
						if got := k.TreeOf(idOf(t, pid)); got != p.tree {
							t.Errorf("process %d belongs to %v", pid, got)
						}
					}
					if p.tree.Empty() {
						t.Error("empty while members live")
					}
					if first {
						unix.Kill(p.PID, unix.SIGKILL)
						if e := <-p.Exited(); e != (Exit{Code: -1, Unknown: true}) {
							t.Errorf("%+v", e)
						}
						alone := shape.says == 1 && pids[0] == p.PID
						if p.tree.Empty() != alone {
							t.Errorf("empty: %v", !alone)
						}
					}
					p.over(t, append(pids, p.PID))
				})
			}
		}
	})
}

// What an adopted process makes later is found when it has lost its parents: by its mark, by its group without one, and by what
// is below it.
func TestAdoptedForksLater(t *testing.T) {
	eachKernelAdopts(t, func(t *testing.T, k *Kernel, o Options) {
		for _, how := range []string{"sleep 7654", "setsid sleep 7654", "env -i sleep 7654", "setsid sh -c 'env -i setsid sleep 7654; :'"} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				p := adoptedRun(t, k, o, "sh", `trap '`+strings.ReplaceAll(how, "'", `'\''`)+` & echo $!; exit 3' USR1; echo $$; while :; do sleep 0.02; done`)
				p.said(t, 1)
				if err := k.signal(p.ID, unix.SIGUSR1); err != nil {
					t.Fatal(err)
				}
				later := p.said(t, 1)
				if e := <-p.Exited(); !e.Unknown {
					t.Errorf("%+v", e)
				}
				if p.tree.Empty() {
					t.Error("empty while it lives")
				}
				done := make(chan error)
				go func() { done <- p.tree.WaitEmpty(t.Context()) }()
				p.over(t, later)
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// What cannot be verified is not adopted, and nothing is touched.
func TestAdoptVerifies(t *testing.T) {
	eachKernelAdopts(t, func(t *testing.T, k *Kernel, o Options) {
		tree, leader, p := orphaned(t, k, o, false, "say", "sleep")
		p.said(t, 1)
		refused := func(what string, id ID, tree *Tree, want string) {
			t.Helper()
			if _, err := k.Adopt(tree, id); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", what, err)
			}
		}
		other := k.NewTree("other", 1, "another mark", os.Getuid())
		defer other.Close()
		refused("another start time", ID{leader.PID, leader.Start - 1}, tree, ErrRecycled.Error())
		refused("nobody", ID{1 << 29, 1}, tree, ErrGone.Error())
		refused("another run's", leader, other, "another run")
		refused("our parent", idOf(t, os.Getppid()), tree, "ancestor")
		bare := outside(t, k, "A=B", "bare", "leave", "say", "sleep").said(t, 1)[0]
		refused("no environment", idOf(t, bare), other, "no mark")
		other.Output = fmt.Sprintf("/proc/%d/fd/1", bare)
		c, err := k.Adopt(other, idOf(t, bare))
		if err != nil {
			t.Fatal(err)
		}
		(&run{Child: c, tree: other}).over(t, []int{bare})
		if p.Child, err = k.Adopt(tree, leader); err != nil {
			t.Fatal(err)
		}
		p.over(t, nil)
		refused("a dead one", leader, tree, ErrGone.Error())
	})
}

// A program that dropped its environment is verified by the cgroup that the dead zhxd made, which goes with it.
func TestAdoptByCgroup(t *testing.T) {
	k := open(t, Options{})
	if k.cgroups == nil {
		t.Skip("no cgroup2 that this process may write to")
	}
	p := adoptedRun(t, k, Options{}, "sh", `exec env -i sh -c 'echo $$; env -i setsid sleep 7654 & echo $!; wait'`)
	pids := p.said(t, 2)
	dir := p.tree.Cgroup()
	if !strings.HasSuffix(dir, "/"+p.tree.Name) || strings.HasPrefix(dir, k.cgroups.base) {
		t.Errorf("in %s", dir)
	}
	unix.Kill(p.PID, unix.SIGKILL)
	<-p.Exited()
	if p.tree.Empty() || k.TreeOf(idOf(t, pids[1])) != p.tree {
		t.Error("not found by its cgroup")
	}
	p.over(t, pids)
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cgroup is left")
	}
}

// One that is our orphan after all tells how it ends.
func TestAdoptOwnOrphan(t *testing.T) {
	eachKernelAdopts(t, func(t *testing.T, k *Kernel, o Options) {
		tree, leader, p := orphaned(t, k, o, true, "sh", "trap 'exit 3' TERM; echo $$; while :; do sleep 0.02; done")
		p.said(t, 1)
		var err error
		if p.Child, err = k.Adopt(tree, leader); err != nil {
			t.Fatal(err)
		}
		if err := tree.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if e := <-p.exited; e.Code != 3 || e.Unknown {
			t.Errorf("%+v", e)
		}
		p.over(t, nil)
	})
}

// Between the end of an adopted leader and the notice of it another process gets its pid: nobody signals that.
func TestAdoptedRecycled(t *testing.T) {
	eachKernelAdopts(t, func(t *testing.T, k *Kernel, o Options) {
		p := adoptedRun(t, k, o, "say", "sleep")
		p.said(t, 1)
		k.mu.Lock() // nobody notices
		unix.Kill(p.PID, unix.SIGKILL)
		for s, err := ReadStat(p.PID); err == nil && s.ID == p.ID; s, err = ReadStat(p.PID) {
			time.Sleep(time.Millisecond) // its reaper is another
		}
		decoy := 0
		for range 50 {
			if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(p.PID-1)), 0); err != nil {
				break
			}
			pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "7654"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
			if err != nil {
				t.Fatal(err)
			}
			if pid == p.PID {
				decoy = pid
				break
			}
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, 0, nil)
		}
		k.mu.Unlock()
		if decoy == 0 {
			<-p.Exited()
			p.over(t, nil)
			t.Skip("no right to choose a pid (ns_last_pid)")
		}
		if err := p.tree.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		p.over(t, nil)
		if s, err := ReadStat(decoy); err != nil || !s.Living() {
			t.Errorf("the decoy was signalled: %+v, %v", s, err)
		}
		k.mu.Lock() // it may hang on any thread: not for the collector
		unix.Kill(decoy, unix.SIGKILL)
		unix.Wait4(decoy, nil, 0, nil)
		k.mu.Unlock()
	})
}

// A forking daemon names its second process, before or after the first has ended: the run goes on, its exit is the second's.
func TestLead(t *testing.T) {
	const daemon = `trap 'exit 7' TERM; echo $$; while :; do sleep 0.02; done`
	eachKernel(t, func(t *testing.T, k *Kernel) {
		for _, early := range []bool{true, false} {
			p := start(t, k, "sh", `trap 'exit 1' USR1; setsid sh -c "`+strings.ReplaceAll(daemon, "$", `\$`)+`" & while :; do sleep 0.02; done`)
			pid := p.said(t, 1)[0]
			first := p.Child
			end := func() {
				if err := k.signal(first.ID, unix.SIGUSR1); err != nil {
					t.Error(err)
				}
			}
			if !early {
				end()
				<-first.Exited()
				if p.tree.Empty() {
					t.Error("empty while the second lives")
				}
			}
			second, err := p.tree.Lead(idOf(t, pid))
			if err != nil {
				t.Fatal(err)
			}
			p.Child = second
			if early {
				end()
			}
			reaped(t, k, first.PID)
			if same, err := p.tree.Lead(second.ID); err != nil || same != second {
				t.Errorf("itself: %v, %v", same, err)
			}
			if _, err := p.tree.Lead(first.ID); !errors.Is(err, ErrGone) && !errors.Is(err, ErrRecycled) {
				t.Errorf("a dead one: %v", err)
			}
			if _, err := p.tree.Lead(idOf(t, os.Getppid())); err == nil {
				t.Error("a stranger leads")
			}
			members, err := p.tree.Members()
			if err != nil || members[0] != second.ID || p.tree.Empty() {
				t.Errorf("%v, %v", members, err)
			}
			if err := p.tree.Signal(unix.SIGTERM); err != nil {
				t.Error(err)
			}
			if e := <-second.Exited(); e.Code != 7 || e.Unknown {
				t.Errorf("%+v", e)
			}
			p.end(t)
			select {
			case e, ok := <-first.exited:
				if early && ok {
					t.Errorf("the former leader told %+v", e)
				}
			default:
			}
		}
	})
}

// The second process's parent lives on and reaps it: its status is unknown, the tree is not empty, and leadership can go back.
func TestLeadBelow(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		p := start(t, k, "sh", `sleep 7654 & echo $!; wait; echo 0; sleep 7654`)
		pid := p.said(t, 1)[0]
		first := p.Child
		second, err := p.tree.Lead(idOf(t, pid))
		if err != nil {
			t.Fatal(err)
		}
		p.Child = second
		unix.Kill(pid, unix.SIGKILL)
		if e := <-second.Exited(); !e.Unknown || e.Code != -1 {
			t.Errorf("%+v", e)
		}
		p.said(t, 1)
		if members, err := p.tree.Members(); p.tree.Empty() || err != nil || !slices.Contains(members, first.ID) {
			t.Errorf("%v, %v", members, err)
		}
		if err := second.Reap(); err != nil {
			t.Error(err)
		}
		if p.Child, err = p.tree.Lead(first.ID); err != nil {
			t.Fatal(err)
		}
		p.tree.Kill()
		if e := <-p.Exited(); e.Signal != unix.SIGKILL || e.Unknown {
			t.Errorf("%+v", e)
		}
	})
}

// An adopted run may name another leader, too.
func TestLeadAdopted(t *testing.T) {
	eachKernelAdopts(t, func(t *testing.T, k *Kernel, o Options) {
		p := adoptedRun(t, k, o, "fork", "say", "session", "fork", "say", "sleep")
		pids := p.said(t, 2)
		first := p.Child
		second, err := p.tree.Lead(idOf(t, pids[1]))
		if err != nil {
			t.Fatal(err)
		}
		p.Child = second
		unix.Kill(first.PID, unix.SIGKILL)
		unix.Kill(pids[0], unix.SIGKILL)
		for _, id := range []ID{first.ID, {pids[0], first.Start}} {
			if err := k.WaitGone(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		if p.tree.Empty() {
			t.Error("empty while the new leader lives")
		}
		p.over(t, pids)
	})
}

// Without anything left to wait for, a Kernel can be closed while an adopted run goes on; the next one adopts it again.
func TestAdoptAgain(t *testing.T) {
	eachKernelAdopts(t, func(t *testing.T, k *Kernel, o Options) {
		p := adoptedRun(t, k, o, "say", "sleep")
		p.said(t, 1)
		p.tree.Close()
		k.mu.Lock()
		delete(k.adopted, p.ID) // as the end of a zhxd does
		k.mu.Unlock()
		tree := k.NewTree(p.tree.Name, 1, p.tree.Mark, os.Getuid())
		c, err := k.Adopt(tree, p.ID)
		if err != nil {
			t.Fatal(err)
		}
		p.pidfd.Close()
		(&run{Child: c, tree: tree}).over(t, []int{p.PID})
	})
}

// Nothing is looked at while nobody asks: an idle adopted run costs no processor time with pidfd.
func TestAdoptedIdle(t *testing.T) {
	k := open(t, Options{})
	if !k.pidfd {
		t.Skip("no pidfd: it is looked at each adoptedPoll")
	}
	p := adoptedRun(t, k, Options{}, "say", "sleep")
	p.said(t, 1)
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	<-time.After(adoptedPoll)
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	if spent := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()); spent > 20*time.Millisecond {
		t.Errorf("%v in %v", spent, adoptedPoll)
	}
	p.over(t, nil)
}
