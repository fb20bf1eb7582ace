// Leaders that Start did not make: what a dead zhxd left running (Adopt), and the process that a program names as its main
// one (Lead). They are not our children, or not yet, so SIGCHLD and waitid do not tell of them: a pidfd does, without one a
// look at the start time.

package proc

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Adopt makes a process that an earlier zhxd started the leader of t, which NewTree made with that run's mark and uid. It is
// verified: id's process lives, and its initial environment carries the mark; where that is not to be read, or the program
// has overwritten it, it is in a cgroup that a zhxd made for this client, or its standard output is t.Output. Else the error
// is ErrGone, ErrRecycled, or says what is missing, and nothing was changed.
//
// The Child's Exited tells the end by pidfd, without pidfd up to adoptedPoll late; the Exit is Unknown, for another reaps it
// (unless it is a child of ours after all). Frozen says nothing: no SIGCHLD tells. Reap only forgets it. From now on members
// of t need not be below us: those are found by mark, cgroup, the leader's group and session, and their parents, with a look
// at every process, when somebody asks for members or, after the leader's end, whether t is empty. Our own ancestors are
// never members: zhxd may have been started from inside a client.
func (k *Kernel) Adopt(t *Tree, id ID) (*Child, error) {
	pidfd, s, err := k.hold(id)
	var e badge
	if err == nil {
		e, err = k.prove(t, s)
	}
	if err != nil {
		pidfd.Close() // of nil: an error, no harm
		return nil, fmt.Errorf("adopt process %d for %q: %w", id.PID, t.Name, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cgroups != nil && !t.cgroup.has(e.cgroup) {
		k.cgroups.put(t.cgroup)
		t.cgroup = k.cgroups.inherit(e.cgroup, t.Name) // where its children will be
	}
	t.outside = true
	k.lead(t, id, pidfd)
	k.collect()
	return t.leader, nil
}

// Lead makes another living process of the tree its leader: the one that sd_notify(3) names by MAINPID. Its Exit is known if it
// is our child by its end, as an orphan is; else it is as an adopted one's. The former leader becomes a member as any other:
// its Exited is not to be used any more, it needs no Reap. It may have ended before, as long as it was not reaped.
func (t *Tree) Lead(id ID) (*Child, error) {
	k := t.k
	pidfd, s, err := k.hold(id)
	if err == nil && k.TreeOf(id) != t {
		err = errors.New("it is not of this run")
	}
	below := descends(s)
	k.mu.Lock()
	old := t.leader
	if err == nil && (old == nil || !k.trees[t]) {
		err = errors.New("the run has no leader")
	}
	if err != nil || old.ID == id {
		k.mu.Unlock()
		pidfd.Close()
		if err != nil {
			return nil, fmt.Errorf("make process %d the leader of %q: %w", id.PID, t.Name, err)
		}
		return old, nil
	}
	t.outside = t.outside || !below
	k.lead(t, id, pidfd)
	delete(k.adopted, old.ID)
	if k.children[old.PID] == old {
		delete(k.children, old.PID)
		k.orphans[old.PID] = &orphan{tree: t, settled: true}
	}
	k.collect()
	c := t.leader
	k.mu.Unlock()
	old.pidfd.Close() // not under mu: it waits for park, and park for mu
	return c, nil
}

// hold opens a pidfd, where there are any, of a process that lives and has that start time. Without a free descriptor it is
// nil, and the process is looked at instead.
func (k *Kernel) hold(id ID) (pidfd *os.File, s Stat, err error) {
	pidfd, err = k.openPidfd(id.PID)
	if err == unix.ESRCH || err == unix.EINVAL { // EINVAL: a thread's number
		return nil, s, ErrGone
	}
	// Read after the pidfd was opened: if the start time fits, the descriptor is of this process or of a dead one.
	switch s, err = ReadStat(id.PID); {
	case err == nil && s.ID != id:
		err = ErrRecycled
	case err == nil && !s.Living():
		err = ErrGone
	}
	if err != nil {
		pidfd.Close()
		return nil, s, err
	}
	return pidfd, s, nil
}

// prove looks for what makes a process the run's, beside its start time.
func (k *Kernel) prove(t *Tree, s Stat) (e badge, err error) {
	if self, err := ReadStat(os.Getpid()); err != nil || slices.Contains(ancestry(self), s.PID) {
		return e, errors.Join(err, errors.New("not verified: it is an ancestor of this process"))
	}
	late := time.Now().Add(maxUndecided)
	for e = k.carried(s); e.undecided && time.Now().Before(late); e = k.carried(s) {
		<-time.After(recheck) // it is inside exec
	}
	switch {
	case e.mark == t.Mark && t.Mark != "":
	case e.mark != "":
		return e, errors.New("not verified: it carries the mark of another run")
	case e.cgroup != "" && madeFor(e.cgroup, t.Name) != "":
	case t.Output != "" && prints(s.PID, t.Output):
	default:
		return e, errors.New("not verified: no mark in its environment, not in the client's cgroup, its output is not the run's")
	}
	return e, nil
}

// prints reports whether the process's standard output is this file.
func prints(pid int, path string) bool {
	out, err := os.Stat(procPath(pid, "fd/1"))
	file, err2 := os.Stat(path)
	return err == nil && err2 == nil && os.SameFile(out, file)
}

// descends reports whether a process is below us.
func descends(s Stat) bool {
	line := ancestry(s)
	last, err := ReadStat(line[len(line)-1])
	return err == nil && last.PPID == os.Getpid()
}

// lead makes the leader of t, and begins to wait for its end. mu is held.
func (k *Kernel) lead(t *Tree, id ID, pidfd *os.File) {
	c := &Child{ID: id, k: k, tree: t, exited: make(chan Exit, 1), frozen: make(chan bool, 1), pidfd: pidfd, foreign: true}
	k.adopted[id] = c
	t.leader = c
	k.promote(c)
	switch {
	case pidfd != nil:
		k.parked.Go(c.park)
	case c.foreign:
		k.parked.Go(c.watch)
	}
}

// watch looks for the end of a leader that nothing tells of.
func (c *Child) watch() {
	again := time.NewTicker(adoptedPoll)
	defer again.Stop()
	for over := false; !over; {
		select {
		case <-again.C:
		case <-c.k.closed:
			return
		}
		over = c.look()
	}
}

// look asks for the end of a child, and wakes who waits for the tree of one whose end no SIGCHLD tells.
func (c *Child) look() (over bool) {
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	if over = c.k.check(c); over && c.foreign {
		c.k.collect()
	}
	return over
}

// promote makes a leader our child that has become our orphan: the kernel will tell how it ends, and nobody else may reap it.
// mu is held.
func (k *Kernel) promote(c *Child) bool {
	if state, _ := peek(c.PID); state == notOurs || k.children[c.PID] != nil {
		return false
	}
	if s, err := ReadStat(c.PID); err != nil || s.ID != c.ID {
		return false // somebody else has the pid by now
	}
	delete(k.adopted, c.ID)
	delete(k.orphans, c.PID)
	k.children[c.PID] = c
	c.foreign = false
	return true
}

// isLeader looks for a new orphan among the leaders, and promotes it. mu is held.
func (k *Kernel) isLeader(pid int) bool {
	for id, c := range k.adopted {
		if id.PID == pid && k.promote(c) {
			k.check(c)
			return true
		}
	}
	return false
}

// gone reports whether a foreign leader has ended.
func (c *Child) gone() bool {
	if c.pidfd == nil {
		s, err := ReadStat(c.PID)
		return errors.Is(err, ErrGone) || err == nil && (s.ID != c.ID || !s.Living())
	}
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return false // closed
	}
	over := false
	conn.Control(func(fd uintptr) { over = readable(fd) })
	return over
}

// readable: of a pidfd, that its process has ended.
func readable(fd uintptr) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n > 0
}

// leads reports whether the leader's number still means its group and session, in a list of processes. So it does for who was
// there before a leader that is not our child was seen to have ended, unless somebody has its number by now. mu is held.
func (t *Tree) leads(all map[int]Stat, s Stat) bool {
	l := t.leader
	if l == nil || !l.foreign {
		return t.unreaped()
	}
	now, there := all[l.PID]
	return there && now.ID == l.ID || !there && l.ended && s.Start <= l.end
}

// ticks is the time since boot as start times are told.
func ticks() uint64 {
	return uint64(Uptime() / (time.Second / userHZ))
}
