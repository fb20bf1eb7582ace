package proc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Shapes that trees take: how many processes say so, and what must be true of Kill: afterwards none of them lives.
var shapes = []struct {
	name  string
	words []string
	says  int
	ends  bool // the leader ends by itself
}{
	{"plain", []string{"say", "sleep"}, 1, false},
	{"fork", []string{"say", "fork", "say", "fork", "say", "sleep"}, 3, false},
	{"double fork", []string{"fork", "leave", "say", "sleep"}, 1, false},
	{"daemon: double fork, own session, the leader ends", []string{"session", "leave", "leave", "say", "sleep"}, 1, true},
	{"escape to a session of its own", []string{"say", "session", "fork", "say", "sleep"}, 2, false},
	{"no environment, same group, the leader ends", []string{"bare", "leave", "say", "sleep"}, 1, true},
	{"no environment, own session, parents live", []string{"bare", "session", "fork", "say", "sleep"}, 1, false},
	{"children of a daemon without environment", []string{"session", "leave", "say", "bare", "fork", "say", "sleep"}, 2, true},
	{"grandchild that ignores TERM, the leader ends", []string{"leave", "leave", "ignore", "say", "sleep"}, 1, true},
	{"stopped grandchild, the leader ends", []string{"leave", "leave", "say", "stop"}, 1, true},
	{"200 forks", []string{"sh", "i=0; while [ $i -lt 200 ]; do (while :; do sleep 0.3; done) & i=$((i+1)); echo $$; done; wait"}, 200, false},
}

func TestKill(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		for _, shape := range shapes {
			t.Run(shape.name, func(t *testing.T) {
				p := start(t, k, shape.words...)
				pids := p.said(t, shape.says)
				if shape.ends {
					<-p.Exited()
				}
				for _, pid := range pids {
					if got := k.TreeOf(idOf(t, pid)); got != p.tree {
						t.Errorf("process %d belongs to %v", pid, got)
					}
				}
				if p.tree.Empty() {
					t.Error("empty while members live")
				}
				p.end(t)
				for _, pid := range pids {
					if exists(pid) {
						t.Errorf("process %d lives after all", pid)
					}
				}
				if members, err := p.tree.Members(); err != nil || len(members) > 0 {
					t.Errorf("members after the end: %v, %v", members, err)
				}
			})
		}
		if n := k.Unplaced(); n != 0 {
			t.Errorf("%d orphans were nobody's", n)
		}
	})
}

// Only a cgroup holds a daemon that dropped everything: without, it is nobody's, counted, left alone, and reaped.
func TestUnplaced(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		p := start(t, k, "bare", "session", "leave", "say", "sleep")
		daemon := p.said(t, 1)[0]
		<-p.Exited()
		if k.cgroups != nil {
			if p.tree.Empty() || k.TreeOf(idOf(t, daemon)) != p.tree {
				t.Error("not found by its cgroup")
			}
			return
		}
		if !p.tree.Empty() {
			t.Error("nobody's daemon counts as the client's")
		}
		if n := k.Unplaced(); n != 1 {
			t.Errorf("unplaced: %d", n)
		}
		p.end(t)
		unix.Kill(daemon, unix.SIGKILL)
		if err := k.WaitGone(context.Background(), ID{daemon, 0}); err != nil {
			t.Error(err)
		}
		reaped(t, k, daemon)
	})
}

// reaped waits until the collector has met the end of an orphan.
func reaped(t *testing.T, k *Kernel, pid int) {
	for {
		k.mu.Lock()
		k.collect()
		changed, o := k.changed, k.orphans[pid]
		k.mu.Unlock()
		if o == nil {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
		case <-time.After(10 * time.Second):
			t.Fatalf("orphan %d was not reaped", pid)
		}
	}
}

// Who was a member when the tree was last listed stays one when it has lost its parents, whatever else it dropped.
func TestSeenBefore(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		p := start(t, k, "say", "bare", "session", "fork", "say", "sleep")
		pids := p.said(t, 2)
		if members, err := p.tree.Members(); err != nil || len(members) != 2 || members[0] != p.ID {
			t.Errorf("%v, %v", members, err)
		}
		unix.Kill(p.PID, unix.SIGKILL)
		<-p.Exited()
		if p.tree.Empty() || k.TreeOf(idOf(t, pids[1])) != p.tree {
			t.Error("lost")
		}
	})
}

// The end of the last orphan wakes WaitEmpty, when it was signalled by somebody else, too. A context ends it, and Signal
// reaches all.
func TestWaitEmpty(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		p := start(t, k, "leave", "say", "session", "fork", "say", "ignore", "say", "sleep")
		pids := p.said(t, 3)
		<-p.Exited()
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.tree.WaitEmpty(gone); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		done := make(chan error)
		go func() { done <- p.tree.WaitEmpty(t.Context()) }()
		if err := p.tree.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		reaped(t, k, pids[0])
		select {
		case <-done:
			t.Error("empty while somebody ignores SIGTERM")
		default:
		}
		unix.Kill(pids[2], unix.SIGKILL)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A process in the cgroup that is not below us: the tree waits for its end, and Kill ends it.
func TestStranger(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		if k.cgroups == nil {
			t.Skip("no cgroup2 that this process may write to")
		}
		for _, kill := range []func(*Tree, int) error{
			func(_ *Tree, pid int) error { return unix.Kill(pid, unix.SIGKILL) },
			func(t *Tree, _ int) error { return t.Kill() },
		} {
			tree := newTree(k)
			pid := outside(t, k, "A=B", "say", "sleep").said(t, 1)[0]
			if err := tree.cgroup.add(pid); err != nil {
				t.Fatal(err)
			}
			if tree.Empty() || k.TreeOf(idOf(t, pid)) != tree {
				t.Error("a stranger in the cgroup does not count")
			}
			done := make(chan error)
			go func() { done <- tree.WaitEmpty(t.Context()) }()
			if err := kill(tree, pid); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			tree.Close()
		}
	})
}

// A run is known by its mark before its fork returns: the child may connect at once.
func TestMarkBeforeStart(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		tree, foreign := newTree(k), k.NewTree("foreign", 1, "another mark", os.Getuid())
		r, w, _ := os.Pipe()
		defer r.Close()
		k.mu.Lock() // a fork that Start has not come back from
		k.forking++
		pid, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], "child", "say", "sleep"},
			&syscall.ProcAttr{Env: []string{"ZHX_RUN=" + tree.Mark}, Files: []uintptr{0, w.Fd(), 2}})
		k.mu.Unlock()
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		(&run{out: bufio.NewReader(r)}).said(t, 1) // exec is over
		id := idOf(t, pid)
		if got := k.TreeOf(id); got != tree {
			t.Errorf("belongs to %v", got)
		}
		if k.TreeOf(ID{id.PID, id.Start + 1}) != nil || k.TreeOf(ID{os.Getpid(), 0}) != nil {
			t.Error("found by its pid alone")
		}
		if !foreign.Empty() {
			t.Error("counts for another tree")
		}
		unix.Kill(pid, unix.SIGKILL)
		if err := k.WaitGone(t.Context(), id); err != nil {
			t.Error(err)
		}
		k.mu.Lock()
		k.collect()
		if _, err := waitid(unix.P_PID, pid, unix.WEXITED|unix.WNOHANG); err != nil {
			t.Errorf("reaped during its fork: %v", err)
		}
		k.forking--
		k.collect()
		k.mu.Unlock()
		tree.Close()
		foreign.Close()
	})
}

// What another uid or another run's mark says does not count. A stranger is nobody's.
func TestForeign(t *testing.T) {
	k := open(t, Options{})
	p := start(t, k, "say", "sleep")
	p.said(t, 1)
	if got := k.TreeOf(idOf(t, os.Getppid())); got != nil {
		t.Errorf("our parent belongs to %v", got)
	}
	other := k.NewTree("other", 1, "another mark", os.Getuid()+1)
	defer other.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	tests := map[string]struct {
		badge
		want *Tree
	}{
		"mark, uid":          {badge{Stat: Stat{UID: os.Getuid()}, mark: p.tree.Mark}, p.tree},
		"mark, another uid":  {badge{Stat: Stat{UID: os.Getuid() + 5}, mark: other.Mark}, nil},
		"unknown mark":       {badge{Stat: Stat{UID: os.Getuid()}, mark: "no such"}, nil},
		"no mark":            {badge{}, nil},
		"group, uid":         {badge{Stat: Stat{UID: os.Getuid(), PGID: p.PID}}, p.tree},
		"group, another uid": {badge{Stat: Stat{UID: os.Getuid() + 5, PGID: p.PID}}, nil},
		"session":            {badge{Stat: Stat{UID: os.Getuid(), SID: p.PID}}, p.tree},
	}
	for name, test := range tests {
		if got := k.match(test.badge); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Nobody is signalled whose start time is another's.
func TestRecycled(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		p := start(t, k, "say", "sleep")
		p.said(t, 1)
		wrong := ID{p.PID, p.Start - 1}
		for _, pidfd := range []bool{true, false} {
			if err := signalVerified(wrong, unix.SIGKILL, pidfd); !errors.Is(err, ErrRecycled) {
				t.Errorf("pidfd %v: %v", pidfd, err)
			}
			if err := signalVerified(p.ID, 0, pidfd); err != nil {
				t.Errorf("pidfd %v: %v", pidfd, err)
			}
		}
		if err := k.signal(wrong, unix.SIGKILL); err != nil {
			t.Error(err)
		}
		if killed, left, err := k.KillRemains(t.Context(), Remains{Mark: "no such mark", Leader: wrong}); err != nil || len(killed)+len(left) > 0 {
			t.Errorf("%v %v %v", killed, left, err)
		}
		if err := k.WaitGone(t.Context(), wrong); err != nil {
			t.Error(err)
		}
		if s, err := ReadStat(p.PID); err != nil || !s.Living() {
			t.Fatalf("%+v, %v: killed by a recycled identity", s, err)
		}
		id := p.ID
		p.end(t)
		for _, pidfd := range []bool{true, false} {
			if err := signalVerified(id, unix.SIGKILL, pidfd); !errors.Is(err, ErrGone) {
				t.Errorf("pidfd %v: %v", pidfd, err)
			}
		}
	})
}

// The rest of a dead zhxd's run ends, whole; a decoy with another mark lives on.
func TestKillRemains(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		const mark = "mark of the dead"
		decoy := start(t, k, "say", "sleep")
		decoy.said(t, 1)
		p := outside(t, k, "ZHX_RUN="+mark, "say", "session", "fork", "say", "leave", "say", "bare", "fork", "say", "stop")
		pids := p.said(t, 4)
		leader := idOf(t, pids[0])
		killed, left, err := k.KillRemains(t.Context(), Remains{Mark: mark, Leader: leader, UID: os.Getuid()})
		if err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
		for _, pid := range pids {
			if s, err := ReadStat(pid); err == nil && s.Living() {
				t.Errorf("process %d is not among the killed: %v", pid, killed)
			}
		}
		if !slices.Contains(killed, leader) {
			t.Errorf("the leader is not among the killed: %v", killed)
		}
		if s, err := ReadStat(decoy.PID); err != nil || !s.Living() {
			t.Error("the decoy was killed")
		}
	})
}

// A daemon of a dead zhxd's run that dropped everything is found by the cgroup that the record names.
func TestRemainsInCgroup(t *testing.T) {
	k := open(t, Options{})
	if k.cgroups == nil {
		t.Skip("no cgroup2 that this process may write to")
	}
	p := outside(t, k, "A=B", "bare", "session", "leave", "say", "sleep")
	daemon := p.said(t, 1)[0]
	dir := filepath.Dir(k.cgroups.base) + "/zhx-" + strconv.Itoa(1<<22+1) + "-8/client"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(daemon)), 0); err != nil {
		t.Fatal(err)
	}
	killed, left, err := k.KillRemains(t.Context(), Remains{Mark: "mark of the dead", UID: os.Getuid(), Cgroup: dir})
	if err != nil || len(left) > 0 || len(killed) != 1 || killed[0].PID != daemon {
		t.Errorf("killed %v of %d, left %v, %v", killed, daemon, left, err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); err == nil {
		t.Error("the cgroup is left")
	}
}

// HoldsSocket tells whose an inode is, of the leader and of a descendant.
func TestHoldsSocket(t *testing.T) {
	k := open(t, Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, _ := ln.(*net.TCPListener).File()
	defer f.Close()
	var st unix.Stat_t
	unix.Fstat(int(f.Fd()), &st)

	tree := newTree(k)
	c, err := k.Start(Command{Path: "/proc/self/exe", Argv: []string{os.Args[0], "child", "fork", "say", "sleep"}, Env: os.Environ(), Output: f, Tree: tree})
	if err != nil {
		t.Fatal(err)
	}
	defer (&run{Child: c, tree: tree}).end(t)
	other := startIn(t, k, k.NewTree("other", 1, "", 0), "say", "sleep")
	other.said(t, 1)
	if !tree.HoldsSocket(st.Ino, os.Getuid()) {
		t.Error("the leader's socket was not found")
	}
	if other.tree.HoldsSocket(st.Ino, os.Getuid()) || tree.HoldsSocket(st.Ino+1e6, os.Getuid()) || tree.HoldsSocket(st.Ino, os.Getuid()+1) {
		t.Error("wrong about the socket's holder")
	}
	if id, ok := FindSocket(st.Ino, os.Getuid()); !ok || id.PID != os.Getpid() && id.PID != c.PID {
		t.Errorf("found %v, %v", id, ok)
	}
	if _, ok := FindSocket(st.Ino, os.Getuid()+1); ok {
		t.Error("found under another uid")
	}
}

// The cgroup of a client stays from run to run, and goes when another client comes, or with the Kernel; a dead zhxd's is swept.
func TestCgroup(t *testing.T) {
	gone := func(dir string) {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	var k *Kernel
	t.Cleanup(func() {
		if k.cgroups != nil {
			gone(k.cgroups.base)
		}
	})
	k = open(t, Options{})
	if k.cgroups == nil {
		t.Skip("no cgroup2 that this process may write to")
	}
	again := func() *Tree { return k.NewTree("client", 1, fmt.Sprintf("mark-%d", os.Getpid()), os.Getuid()) }
	second := again()
	second.cgroup.into = false // before Linux 5.7; after cgroup.kill
	p := startIn(t, k, second, "say", "sleep")
	p.said(t, 1)
	if got := second.cgroup.members(); !slices.Equal(got, []int{p.PID}) {
		t.Errorf("in the cgroup: %v", got)
	}
	root := filepath.Dir(k.cgroups.base)
	left := root + "/zhx-" + strconv.Itoa(1<<22+1) + "-7" // above every pid
	if err := os.MkdirAll(left+"/client", 0o755); err != nil {
		t.Fatal(err)
	}
	sweep(root)
	if _, err := os.Stat(left); err == nil {
		t.Error("a dead zhxd's cgroup was not swept")
	}
	p.end(t)
	before := descriptors(t)
	kept := again()
	if kept.cgroup != second.cgroup {
		t.Error("made again")
	}
	if err := os.Mkdir(kept.Cgroup()+"/inner", 0o755); err != nil { // as a client may
		t.Fatal(err)
	}
	kept.Close()
	k.NewTree("other", 1, "other mark", os.Getuid()).Close()
	gone(kept.Cgroup())
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, before the other client %d", n, before)
	}
	remove(k.cgroups.base) // a zhxd in another pid namespace sweeps: it does not see that we live
	k.NewTree("other", 2, "other mark", os.Getuid()).Close()
	tree := again() // somebody writes into cgroup.kill behind our back
	if err := os.WriteFile(tree.cgroup.dir.Name()+"/cgroup.kill", []byte("1"), 0); err == nil {
		tree.cgroup.into = k.cgroups.into
		p := startIn(t, k, tree, "say", "sleep")
		p.said(t, 1)
		if got := tree.cgroup.members(); !slices.Equal(got, []int{p.PID}) {
			t.Errorf("in the cgroup after its cgroup.kill: %v", got)
		}
		tree.cgroup.kill() // by ourselves
		p.end(t)
		p = startIn(t, k, again(), "say", "sleep")
		p.said(t, 1)
		p.end(t)
	}
}

// Below a cgroup that is not the root, as under an init that gives each service its own.
func TestCgroupNested(t *testing.T) {
	k := open(t, Options{})
	if k.cgroups == nil {
		t.Skip("no cgroup2 that this process may write to")
	}
	root := filepath.Dir(k.cgroups.base)
	nested := filepath.Join(root, "nested-"+strconv.Itoa(os.Getpid()))
	move := func(dir string) error {
		return os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err := os.Mkdir(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(move(root), os.Remove(nested)); err != nil {
			t.Error(err)
		}
	})
	if err := move(nested); err != nil {
		t.Skip("this process may not be moved: ", err)
	}
	inner := openCgroups(idOf(t, os.Getpid()), k.log)
	if inner == nil || filepath.Dir(inner.base) != nested {
		t.Fatalf("%+v", inner)
	}
	outer := k.cgroups
	k.cgroups = inner
	p := start(t, k, "bare", "session", "leave", "say", "sleep")
	daemon := p.said(t, 1)[0]
	<-p.Exited()
	if k.TreeOf(idOf(t, daemon)) != p.tree || p.tree.Empty() {
		t.Error("not found by its cgroup")
	}
	p.end(t)
	inner.close()
	k.cgroups = outer
}

// Where our cgroup is, as mountinfo tells it.
func TestOwnCgroup(t *testing.T) {
	const v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
	tests := map[string]struct{ mounts, cgroup, dir string }{
		"systemd":             {"24 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/system.slice/zhx.service\n", "/sys/fs/cgroup/system.slice/zhx.service"},
		"hybrid":              {v1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n", "3:cpu:/x\n0::/a\n", "/sys/fs/cgroup/unified/a"},
		"space in its path":   {"24 1 0:22 / /sys/fs/c\\040g rw shared:4 - cgroup2 cgroup2 rw\n", "0::/\n", "/sys/fs/c g"},
		"a part is mounted":   {"24 1 0:22 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/docker/1/x\n", "/sys/fs/cgroup/x"},
		"another is mounted":  {"24 1 0:22 /docker/2 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/docker/1\n", ""},
		"version 1 alone":     {v1, "3:cpu:/x\n", ""},
		"listed, not mounted": {v1, "3:cpu:/x\n0::/\n", ""},
	}
	for name, test := range tests {
		dir, _, err := ownCgroup(test.mounts, []byte(test.cgroup))
		if dir != test.dir || (err == nil) != (test.dir != "") {
			t.Errorf("%s: %q, %v", name, dir, err)
		}
	}
}

// SIGCHLD may have been blocked or ignored by whoever started us: the Kernel listens all the same.
func TestIgnoredBefore(t *testing.T) {
	signal.Ignore(unix.SIGCHLD)
	defer signal.Reset(unix.SIGCHLD)
	k := open(t, Options{NoPidfd: true})
	p := start(t, k, "exit:3")
	if e := <-p.Exited(); e.Code != 3 {
		t.Errorf("%+v", e)
	}
}

// Where this process may not become the reaper, whoever lost its parents is still known, and ends with its run.
func TestNoReaper(t *testing.T) {
	for name, o := range map[string]Options{"all else": {NoReaper: true}, "no cgroup": {NoReaper: true, NoCgroup: true}} {
		t.Run(name, func(t *testing.T) {
			k := open(t, o)
			p := start(t, k, "session", "leave", "say", "sleep")
			orphan := idOf(t, p.said(t, 1)[0])
			<-p.Exited()
			if k.TreeOf(orphan) != p.tree || p.tree.Empty() {
				t.Error("an orphan is not known")
			}
			if err := errors.Join(p.tree.Kill(), p.tree.WaitEmpty(t.Context()), p.Reap()); err != nil {
				t.Error(err)
			}
			if s, err := ReadStat(orphan.PID); err == nil && s.ID == orphan && s.Living() {
				t.Error("the orphan lives")
			}
			p.tree.Close()
		})
	}
}

// A process that cannot be looked into for want of descriptors or memory may be anybody's: there is no answer without it.
func TestCarriersUnread(t *testing.T) {
	parent, err := ReadStat(os.Getppid())
	if err != nil {
		t.Fatal(err)
	}
	limit := func(soft uint64) (was [2]uint64) { // not by package syscall, which remembers that for children
		unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, 0, uintptr(unsafe.Pointer(&was)), 0, 0)
		unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&[2]uint64{soft, was[1]})), 0, 0, 0)
		return was
	}
	was := limit(0)
	_, err = carriers(map[int]Stat{parent.PID: parent}, "mark")
	limit(was[0])
	if !Shortage(err) {
		t.Errorf("without descriptors: %v", err)
	}
	if list, err := carriers(map[int]Stat{parent.PID: parent}, "mark"); err != nil || len(list) > 0 {
		t.Errorf("with them: %v, %v", list, err)
	}
}

// That a client has no cgroup is said once, however often its start is tried, and again after it had one.
func TestNoCgroupOnce(t *testing.T) {
	k := open(t, Options{NoCgroup: true})
	var log bytes.Buffer
	k.log = slog.New(slog.NewTextHandler(&log, nil))
	dir := filepath.Join(t.TempDir(), "base")
	k.cgroups = &cgroups{base: filepath.Join(dir, "zhx"), byName: map[string]*cgroup{}, told: map[string]bool{}}
	try := func(name string, want int) {
		t.Helper()
		k.NewTree(name, 1, "mark", 0).Close()
		if got := strings.Count(log.String(), "no cgroup for client"); got != want {
			t.Errorf("%s: %d lines, want %d", name, got, want)
		}
	}
	try("a", 1)
	try("a", 1)
	try("b", 2)
	client := filepath.Join(k.cgroups.base, "a")
	if err := errors.Join(os.MkdirAll(client, 0o755), os.WriteFile(filepath.Join(client, "cgroup.procs"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	try("a", 2)
	k.cgroups.leave(k.cgroups.byName["a"])
	delete(k.cgroups.byName, "a")
	os.RemoveAll(dir)
	try("a", 3)
}
