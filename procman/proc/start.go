// Starting a program: fork and exec by package syscall. (os/exec keeps a thread in wait4 for each child.)

package proc

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is what Start executes.
type Command struct {
	Path      string   // absolute, or relative to the directory of this process; no PATH is searched
	Argv, Env []string // whole: argv[0] included; nothing is added to Env
	Dir       string   // "": that of this process
	Cred      *syscall.Credential
	Output    *os.File // the child's descriptors 1 and 2; 0 is /dev/null
	TTY       *os.File // instead of Output: the slave side. The child leads a session on it; it is 0, 1 and 2
	Tree      *Tree    // the run; one Start each
	Stage     *Stage   // what is to be set besides; nil: nothing, and the program is executed at once

	order *os.File // descriptor 3, of a stage
}

// Start executes a program as the leader of its tree, in a process group of its own (with TTY: in a session of its own). Its
// error is the kernel's errno, wrapped, with what was tried; then nothing was started.
//
// The child gets default signal handlers, the signal mask of this process's start, and the RLIMIT_NOFILE that this process
// was started with: Go raises its own soft limit, and syscall.ForkExec puts the former one back in the child (unless somebody
// called syscall.Setrlimit). It does not die with us: there is no Pdeathsig, which would tie it to one thread besides.
//
// With a Stage it returns when the program was executed in it, or the stage has failed, or after maxStage.
func (k *Kernel) Start(c Command) (*Child, error) {
	start := k.start
	if c.Stage != nil {
		start = k.startStaged
	}
	child, err := start(c)
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", c.Tree.Name, err)
	}
	return child, nil
}

func (k *Kernel) start(c Command) (*Child, error) {
	child := &Child{k: k, tree: c.Tree, exited: make(chan Exit, 1), frozen: make(chan bool, 1)}
	k.mu.Lock()
	k.forking++
	c.Tree.starting = true
	k.mu.Unlock()

	pid, err := k.fork(c)
	if err == nil {
		unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // both often woke on one processor: the child's first instruction first
		s, unread := ReadStat(pid)
		if unread != nil { // it is ours and unreaped: out of descriptors or memory
			k.log.Error("cannot read the start time of a child", "client", c.Tree.Name, "pid", pid, "err", unread,
				"next", "it is managed, but not to be found again after a crash of zhxd")
		}
		child.ID = ID{pid, s.Start}
		child.pidfd, _ = k.openPidfd(pid) // ours and unreaped: nobody else's. Without a free descriptor SIGCHLD tells
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	k.forking--
	c.Tree.starting = false
	if err == nil {
		delete(k.orphans, pid) // where a look during the fork may have put it
		k.children[pid] = child
		c.Tree.leader = child
		if child.pidfd != nil {
			k.parked.Go(child.park)
		}
	}
	if err != nil || k.forking == 0 && k.again {
		k.collect()
	} else {
		k.check(child) // its SIGCHLD may have come before it was known
	}
	if err != nil {
		return nil, explain(c, err)
	}
	return child, nil
}

const forkReaps = 2 // the children that one call of fork may reap: each of its tries

// fork makes the child inside its cgroup where that is possible, else puts it there afterwards.
func (k *Kernel) fork(c Command) (pid int, err error) {
	sys := &syscall.SysProcAttr{Credential: c.Cred, Setpgid: c.TTY == nil, Setsid: c.TTY != nil, Setctty: c.TTY != nil}
	in, out := k.null.Fd(), uintptr(0)
	switch {
	case c.TTY != nil:
		in = c.TTY.Fd()
		out = in
	case c.Output != nil:
		out = c.Output.Fd()
	default:
		return 0, fmt.Errorf("no output: %w", syscall.EINVAL)
	}
	attr := &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Files: []uintptr{in, out, out}, Sys: sys}
	if c.order != nil {
		attr.Files = append(attr.Files, c.order.Fd())
	}
	group := c.Tree.cgroup
	if group != nil && group.into {
		sys.UseCgroupFD, sys.CgroupFD = true, int(group.dir.Fd())
		if pid, err = syscall.ForkExec(c.Path, c.Argv, attr); err == nil && !stillborn(pid) {
			return pid, nil
		}
		if err == nil { // somebody else wrote into this cgroup.kill before (see cgroup.kill)
			k.mu.Lock()
			group.into = false
			k.mu.Unlock()
			waitid(unix.P_PID, pid, unix.WEXITED)
		}
		sys.UseCgroupFD = false // a program that is not there fails below too; a cgroup that was removed does not matter
	}
	if pid, err = syscall.ForkExec(c.Path, c.Argv, attr); err != nil {
		return 0, err
	}
	if group != nil {
		if err := group.add(pid); err != nil {
			k.log.Warn("child is outside of its cgroup", "client", c.Tree.Name, "pid", pid, "err", err,
				"next", "its tree is told by group, session, parents and mark")
		}
	}
	return pid, nil
}

// stillborn reports whether a child was killed before it executed. ForkExec takes its end for success.
func stillborn(pid int) bool {
	s, err := ReadStat(pid)
	return err == nil && s.forked
}

// explain says which of fork's many steps an errno came from, as far as it can be told.
func explain(c Command, err error) error {
	info, e := os.Stat(c.Dir)
	switch {
	case c.Dir != "" && (e != nil || !info.IsDir()):
		return fmt.Errorf("directory %s: %w", c.Dir, err)
	case err == syscall.EPERM && c.Cred != nil && os.Geteuid() != 0:
		return fmt.Errorf("run as uid %d: only root may: %w", c.Cred.Uid, err)
	}
	return fmt.Errorf("execute %s: %w", c.Path, err)
}
