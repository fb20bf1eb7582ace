// The Kernel: what this process is to its children, what the running kernel can do, and who its orphans belong to.

package proc

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options force what older kernels lack. The zero value takes what there is.
type Options struct {
	NoPidfd  bool // wait by SIGCHLD (before Linux 5.3)
	NoCgroup bool // no cgroup2, or none that we may write
	NoLists  bool // no CONFIG_PROC_CHILDREN
	NoReaper bool // orphans are init's (qemu-user, which refuses the prctl)
}

// Kernel is this process's hold on its children. One may be open in a process at a time.
type Kernel struct {
	// Immutable:
	log     *slog.Logger
	null    *os.File
	pidfd   bool
	reaper  bool
	proc    *os.File // /proc
	list    *os.File // the children of our first thread; nil without CONFIG_PROC_CHILDREN
	cgroups *cgroups
	kills   *killLog
	signals chan os.Signal
	closed  chan struct{}
	parked  sync.WaitGroup

	unplaced atomic.Int64

	mu sync.Mutex
	// mu guards:
	children  map[int]*Child // not reaped
	adopted   map[ID]*Child  // leaders that are not our children
	orphans   map[int]*orphan
	trees     map[*Tree]bool
	forking   int           // forks whose child is not in children yet: nobody unknown is reaped meanwhile
	again     bool          // there was a collect during a fork: to be repeated
	undecided bool          // the last collect met an orphan that cannot be placed yet
	changed   chan struct{} // closed, and made anew, after each look at the orphans
}

// orphan is a child of ours that Start did not make. Nobody else can reap it, so its pid is it.
type orphan struct {
	tree    *Tree // nil: nobody's, or not settled
	settled bool
	since   time.Time
}

// Open makes this process the reaper of all its descendants, and starts to listen for their ends. It fails without /proc.
func Open(o Options, log *slog.Logger) (*Kernel, error) {
	err := error(unix.EINVAL)
	if !o.NoReaper {
		err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	if err != nil {
		log.Warn("cannot become the reaper of orphans", "err", err, "next", "they are told by mark, cgroup, group and session")
	}
	reaper := err == nil
	self, err := ReadStat(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("open the kernel: /proc is needed: %w", err)
	}
	k := &Kernel{
		log: log, pidfd: !o.NoPidfd && probePidfd(), reaper: reaper, kills: openKillLog(), signals: make(chan os.Signal, 1),
		closed: make(chan struct{}), adopted: map[ID]*Child{},
		children: map[int]*Child{}, orphans: map[int]*orphan{}, trees: map[*Tree]bool{}, changed: make(chan struct{}),
	}
	closeOnExec()
	if k.null, err = os.Open(os.DevNull); err != nil {
		return nil, fmt.Errorf("open the kernel: %w", err)
	}
	if k.proc, err = os.Open("/proc"); err != nil {
		return nil, fmt.Errorf("open the kernel: %w", err)
	}
	if !o.NoLists {
		k.list, _ = os.Open(procPath(os.Getpid(), "task/"+strconv.Itoa(os.Getpid())+"/children"))
	}
	if !o.NoCgroup {
		k.cgroups = openCgroups(self.ID, log)
	}
	log.Debug("kernel probed", "pidfd", k.pidfd, "children_list", k.list != nil,
		"cgroup2", k.cgroups != nil, "cgroup2_clone", k.cgroups != nil && k.cgroups.into)
	signal.Notify(k.signals, syscall.SIGCHLD)
	k.parked.Go(k.listen)
	return k, nil
}

// closeOnExec keeps from children what whoever started this process left open in it. Linux 5.11 does that in one call.
func closeOnExec() {
	if unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// probePidfd: Linux 5.3 can open one (and then poll it). A sandbox may say EPERM.
func probePidfd() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// openPidfd opens one for the poller: nil where there are none, or none can be had.
func (k *Kernel) openPidfd(pid int) (*os.File, error) {
	if !k.pidfd {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Close stops listening and removes the cgroups that are empty. It ends no process: children that live stay, and are init's
// or the next subreaper's when this process goes.
func (k *Kernel) Close() {
	signal.Stop(k.signals)
	close(k.signals)
	close(k.closed)
	k.mu.Lock()
	children := slices.AppendSeq(slices.Collect(maps.Values(k.children)), maps.Values(k.adopted))
	for t := range k.trees {
		k.cgroups.put(t.cgroup)
	}
	k.mu.Unlock()
	for _, c := range children {
		c.pidfd.Close() // not under mu: it waits for park, and park for mu
	}
	k.parked.Wait()
	if k.cgroups != nil {
		k.cgroups.close()
	}
	k.kills.close()
	for _, f := range []*os.File{k.null, k.proc, k.list} {
		f.Close() // of nil: an error, no harm
	}
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
}

// Unplaced counts the orphans so far that belonged to no tree.
func (k *Kernel) Unplaced() int64 { return k.unplaced.Load() }

func (k *Kernel) listen() {
	for range k.signals {
		k.mu.Lock()
		k.collect()
		k.mu.Unlock()
	}
}

// collect brings the tables up to date: ends, stops and continues of children are told to their owners, orphans that live
// are placed, orphans that ended are reaped. A pass that met a new orphan is repeated, for its own children may have become
// ours behind the pass; so when collect returns, every process whose ancestors all ended was seen. mu is held.
func (k *Kernel) collect() {
	k.again, k.undecided = k.forking > 0, false
	if k.forking == 0 { // a stop of the child that is being made would be lost
		k.thaw()
	}
	for _, c := range k.children {
		k.check(c)
	}
	for pid := range k.orphans {
		if state, _ := peek(pid); state == notOurs { // a fork that failed: its child was met, and reaped by ForkExec
			delete(k.orphans, pid)
		}
	}
	for again := true; again; {
		again = false
		var dead []int
		// The known ones, too: a former leader may hang on another thread.
		for _, pid := range slices.AppendSeq(k.ownChildren(), maps.Keys(k.orphans)) {
			if k.children[pid] != nil {
				continue
			}
			state, _ := peek(pid)
			if state == notOurs {
				continue
			}
			o := k.orphans[pid]
			if o == nil && k.isLeader(pid) {
				again = true
				continue
			}
			if o == nil {
				o, again = &orphan{since: time.Now()}, true
				k.orphans[pid] = o
			}
			if state == zombie {
				dead = append(dead, pid)
			} else if !o.settled {
				k.place(pid, o)
			}
		}
		// After the living were placed: a dead one may lead their group or session. During a fork a dead one may be the very
		// child that is being made; the end of the fork comes back here.
		for _, pid := range dead {
			if k.forking == 0 {
				waitid(unix.P_PID, pid, unix.WEXITED|unix.WNOHANG)
				delete(k.orphans, pid)
			}
		}
	}
	for _, c := range k.children {
		c.judged = c.ended
	}
	for _, c := range k.adopted {
		c.judged = c.ended
	}
	close(k.changed)
	k.changed = make(chan struct{})
}

// place looks for the tree of an orphan that lives. mu is held.
func (k *Kernel) place(pid int, o *orphan) {
	s, err := ReadStat(pid)
	if err != nil {
		k.undecided = k.undecided || Shortage(err)
		return
	}
	e := k.carried(s)
	o.tree = k.match(e)
	switch {
	case o.tree != nil:
		o.settled = true
	case e.unread || e.undecided && time.Since(o.since) < maxUndecided:
		k.undecided = true
	case k.forking == 0: // else it may be the child that is being made
		o.settled = true
		k.unplaced.Add(1)
		k.log.Warn("orphan belongs to no client", "pid", pid, "process", s.Comm, "next", "left alone, reaped when it ends")
	}
}

// badge is what a process carries that tells its tree, whoever its parents are.
type badge struct {
	Stat
	cgroup, mark string
	undecided    bool // its environment is not there at this moment
	unread       bool // or could not be read, for want of descriptors or memory
}

// undecided: what was read of its environment is no answer. It is inside exec, or its memory is gone: it is ending.
func undecided(s Stat, environ []byte, err error) bool {
	return (err == nil && len(environ) == 0 || errors.Is(err, ErrGone)) && !s.noEnviron
}

func (k *Kernel) carried(s Stat) badge {
	e := badge{Stat: s}
	if k.cgroups != nil {
		e.cgroup = cgroupOf(s.PID)
	}
	b, err := environ(s)
	e.mark, _ = lookup(b, markVariable)
	e.undecided, e.unread = undecided(s, b, err), Shortage(err)
	return e
}

// match finds the tree that the badge names. Who was started by root may have dropped to any uid; the mark was not to be
// read by others then. mu is held.
func (k *Kernel) match(e badge) *Tree {
	for t := range k.trees {
		if t.seen[e.ID] || t.cgroup.has(e.cgroup) || t.Mark != "" && t.Mark == e.mark && (t.UID == e.UID || t.UID == 0) {
			return t
		}
	}
	// A group can be joined by whoever shares the session, so the uid must fit as well.
	for _, leader := range []int{e.SID, e.PGID} {
		if t := k.known(leader); t != nil && (e.UID == t.UID || e.UID == 0) {
			return t
		}
	}
	return nil
}

// known is the tree of a child, a leader that is none, or a placed orphan. mu is held.
func (k *Kernel) known(pid int) *Tree {
	if c := k.children[pid]; c != nil {
		return c.tree
	}
	if o := k.orphans[pid]; o != nil {
		return o.tree
	}
	for id, c := range k.adopted {
		if id.PID != pid {
			continue
		}
		if s, err := ReadStat(pid); err == nil && s.ID == id {
			return c.tree
		}
	}
	return nil
}

// TreeOf says whose a process is: by its ancestors, then by its cgroup, mark, session and group. nil: nobody's, or id is not
// that process any more. A run is found by its mark from before its fork, and until its Tree is closed.
func (k *Kernel) TreeOf(id ID) *Tree {
	s, err := ReadStat(id.PID)
	if err != nil || s.ID != id {
		return nil
	}
	line := ancestry(s)
	carried := k.carried(s)
	k.mu.Lock()
	defer k.mu.Unlock()
	for range 2 {
		for _, pid := range line {
			if t := k.known(pid); t != nil {
				return t
			}
		}
		k.collect() // an ancestor may have become our orphan a moment ago
	}
	return k.match(carried)
}

// ancestry lists a process and its ancestors, up to this process or init. A parent is older than its child: what is not has
// got the pid of one that ended meanwhile.
func ancestry(s Stat) []int {
	line := []int{s.PID}
	for len(line) < maxAncestors && s.PPID > 0 && s.PPID != os.Getpid() {
		parent, err := ReadStat(s.PPID)
		if err != nil || parent.Start > s.Start {
			break
		}
		s = parent
		line = append(line, s.PID)
	}
	return line
}
