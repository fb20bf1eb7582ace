// The tree of a run: everything that a client's program has become since it was started.

package proc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is one run: its leader (what Start made), the leader's descendants, its session and process group, its cgroup, and
// every orphan whose initial environment carries the mark and which has the uid. After Adopt, and where this process is not the
// reaper, it is every process of the system whose initial environment does.
type Tree struct {
	// Output is the FIFO that an adopted run prints to, by which Adopt can verify the leader. To be set before, or never.
	Output string

	// Immutable:
	Name   string
	Run    uint64
	Mark   string
	UID    int
	k      *Kernel
	cgroup *cgroup // nil: none; Adopt may exchange it, before anybody else uses the tree

	// Kernel.mu guards:
	leader   *Child // nil before Start
	outside  bool   // members may be anybody's children
	starting bool
	seen     map[ID]bool // the members at the last Members: they stay members when they lose their parents
}

// NewTree makes the tree of a run, before its start: from now on a process that carries the mark (ZHX_RUN in its initial
// environment) under that uid is its member. One tree a name at a time; Close it.
func (k *Kernel) NewTree(name string, run uint64, mark string, uid int) *Tree {
	t := &Tree{Name: name, Run: run, Mark: mark, UID: uid, k: k, outside: !k.reaper}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cgroups != nil {
		var err error
		if t.cgroup, err = k.cgroups.get(name); err == nil {
			delete(k.cgroups.told, name)
		} else if !k.cgroups.told[name] {
			k.cgroups.told[name] = true
			k.log.Warn("no cgroup for client", "client", name, "err", err, "next", "its tree is told by group, session, parents and mark")
		}
	}
	k.trees[t] = true
	return t
}

// Close forgets the tree. What lives of it then is nobody's. The cgroup stays for the client's next run.
func (t *Tree) Close() {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if !t.k.trees[t] {
		return
	}
	delete(t.k.trees, t)
	t.k.cgroups.put(t.cgroup)
	for _, o := range t.k.orphans {
		if o.tree == t {
			o.tree = nil
		}
	}
}

// Cgroup is the directory of the cgroup that the run is in; "" without one.
func (t *Tree) Cgroup() string {
	if t.cgroup == nil {
		return ""
	}
	return t.cgroup.dir.Name()
}

// Empty reports whether nothing of the run lives. A zombie leader does not count.
func (t *Tree) Empty() bool {
	t.k.mu.Lock()
	t.look()
	empty, _ := t.empty()
	t.k.mu.Unlock()
	if !empty {
		return false
	}
	others, err := t.others()
	return err == nil && len(others) == 0
}

// look brings the tables up to date as far as empty needs it: once a collect has met whom the leader left behind, nobody joins
// them but their own children, and SIGCHLD tells of their ends. mu is held.
func (t *Tree) look() {
	if t.leader == nil || !t.leader.judged || t.k.undecided {
		t.k.collect()
	}
}

// empty judges by the tables as the last collect left them. Descendants need no look: once the leader has ended, each of
// them is a placed orphan or below one. A stranger is a process in the cgroup that is not below us. mu is held.
func (t *Tree) empty() (empty bool, stranger ID) {
	if t.starting || t.leader != nil && !t.leader.judged || t.k.undecided {
		return false, ID{}
	}
	for _, o := range t.k.orphans {
		if o.tree == t {
			return false, ID{}
		}
	}
	if t.cgroup != nil {
		for _, pid := range t.cgroup.members() {
			switch s, err := ReadStat(pid); {
			case err == nil && s.Living():
				return false, s.ID
			case Shortage(err):
				return false, ID{PID: pid} // it may live
			}
		}
	}
	return true, ID{}
}

// others lists the members of a tree whose members may be anybody's children. It looks twice before it says that there are
// none: one that was made and lost its parent while the processes were read may be in no list.
func (t *Tree) others() (members []ID, err error) {
	for range 2 {
		if t.isOutside() && err == nil && len(members) == 0 {
			members, err = t.Members()
		}
	}
	return members, err
}

func (t *Tree) isOutside() bool {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return t.outside
}

// WaitEmpty returns when nothing of the run lives, or with the context's error. The end of each member that is not below us is
// waited for, then it is looked for others.
func (t *Tree) WaitEmpty(ctx context.Context) error {
	for {
		if err := t.waitOwn(ctx); err != nil {
			return fmt.Errorf("wait for the end of %q: %w", t.Name, err)
		}
		others, err := t.others()
		if err == nil && len(others) == 0 {
			return nil
		}
		if err != nil { // out of descriptors
			t.k.waitChange(ctx, nil, true, ID{})
		}
		for _, id := range others {
			t.k.WaitGone(ctx, id)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for the end of %q: %w", t.Name, err)
		}
	}
}

// waitOwn waits for those below us. The last of them to end is a child of ours, the leader or an orphan, so SIGCHLD tells; only
// for a stranger in the cgroup its own end is waited for.
func (t *Tree) waitOwn(ctx context.Context) error {
	k := t.k
	k.mu.Lock()
	t.look()
	for {
		empty, stranger := t.empty()
		changed, undecided := k.changed, k.undecided
		k.mu.Unlock()
		if empty {
			return nil
		}
		late, err := k.waitChange(ctx, changed, undecided, stranger)
		if err != nil {
			return err
		}
		k.mu.Lock()
		if late {
			k.collect()
		}
	}
}

// waitChange waits for the next collect; or for the end of the stranger if there is one; or, late, not for long while an orphan
// is undecided.
func (k *Kernel) waitChange(ctx context.Context, changed <-chan struct{}, undecided bool, stranger ID) (late bool, err error) {
	limit := time.Hour // of no consequence: the caller looks again
	if undecided {
		limit = recheck
	}
	either, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if stranger != (ID{}) {
		go func() {
			k.WaitGone(either, stranger)
			cancel()
		}()
	}
	select {
	case <-changed:
	case <-either.Done():
		late = true
	}
	return late, ctx.Err()
}

// Members lists the living, the leader first; with an error it may be not all. It reads the stat of every process of the system, and
// its environment if members may be anybody's children.
func (t *Tree) Members() ([]ID, error) {
	k := t.k
	all, err := stats()
	if err != nil {
		return nil, fmt.Errorf("list members of %q: %w", t.Name, err)
	}
	found, outside := map[int]bool{}, t.isOutside()
	if outside {
		var list []Stat
		list, err = carriers(all, t.Mark)
		for _, s := range list {
			if s.UID == t.UID || t.UID == 0 {
				found[s.PID] = true
			}
		}
	}
	// The orphans after the processes: who lost its parents while they were read is among them.
	k.mu.Lock()
	defer k.mu.Unlock()
	k.collect()
	if t.cgroup != nil {
		for _, pid := range t.cgroup.members() {
			found[pid] = true
		}
	}
	for pid, o := range k.orphans {
		if o.tree == t {
			found[pid] = true
		}
	}
	for pid, s := range all {
		if t.seen[s.ID] || t.mine(all, s) {
			found[pid] = true
		}
	}
	descend(all, found)
	if outside {
		for _, pid := range ancestry(all[os.Getpid()]) {
			delete(found, pid)
		}
	}
	var members []ID
	for _, pid := range slices.Sorted(maps.Keys(found)) {
		s, ok := all[pid]
		if !ok { // born after the list was read
			now, gone := ReadStat(pid)
			s, ok = now, gone == nil
		}
		if ok && s.Living() && (k.children[pid] == nil || k.children[pid].tree == t) {
			members = append(members, s.ID)
		}
	}
	t.seen = make(map[ID]bool, len(members))
	for i, id := range members {
		t.seen[id] = true
		if t.leader != nil && id == t.leader.ID {
			copy(members[1:], members[:i])
			members[0] = id
		}
	}
	if err != nil {
		return members, fmt.Errorf("list members of %q: %w", t.Name, err)
	}
	return members, nil
}

// unreaped: the leader's number is still its own, and its group's and session's. mu is held.
func (t *Tree) unreaped() bool { return t.leader != nil && t.k.children[t.leader.PID] == t.leader }

// mine: the leader, or of its group or session. mu is held.
func (t *Tree) mine(all map[int]Stat, s Stat) bool {
	if !t.leads(all, s) {
		return false
	}
	l := t.leader.PID
	return s.PID == l || (s.PGID == l || s.SID == l) && (s.UID == t.UID || s.UID == 0)
}

// descend adds to found whoever has a parent in it.
func descend(all map[int]Stat, found map[int]bool) {
	for more := true; more; {
		more = false
		for pid, s := range all {
			if found[s.PPID] && !found[pid] && pid != os.Getpid() {
				found[pid], more = true, true
			}
		}
	}
}

// Signal sends sig to every member. A stopped member is then continued, so that it can obey (not after SIGSTOP, SIGCONT,
// and SIGKILL, which needs no help). That a member ended meanwhile is no error.
func (t *Tree) Signal(sig syscall.Signal) error {
	members, err := t.Members()
	if err != nil { // no descriptors: those that can be reached without
		t.k.mu.Lock()
		defer t.k.mu.Unlock()
		if t.unreaped() {
			unix.Kill(-t.leader.PID, sig)
		}
		return err
	}
	var errs []error
	for _, id := range members {
		errs = append(errs, t.k.signal(id, sig))
		if sig != unix.SIGSTOP && sig != unix.SIGCONT && sig != unix.SIGKILL {
			errs = append(errs, t.k.signal(id, unix.SIGCONT))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("signal %q: %w", t.Name, err)
	}
	return nil
}

// Kill sends SIGKILL to the tree until no new member appears: what was signalled cannot fork any more, so then all were. After
// some rounds it has the kernel kill the cgroup at once. It does not wait for their ends (WaitEmpty does). ErrForking: new ones
// kept appearing.
func (t *Tree) Kill() error {
	if t.Empty() {
		return nil
	}
	done := map[ID]bool{}
	var errs []error
	for round := range maxKillRounds {
		members, err := t.Members() // first: a member that only its parents tell is lost when these die
		undecided := t.killAtOnce(round >= gentleRounds)
		fresh := false
		for _, id := range members {
			if !done[id] {
				done[id], fresh = true, true
				errs = append(errs, t.k.signal(id, unix.SIGKILL))
			}
		}
		if err != nil {
			return err
		}
		if fresh {
			continue
		}
		if undecided == nil {
			if err := errors.Join(errs...); err != nil {
				return fmt.Errorf("kill %q: %w", t.Name, err)
			}
			return nil
		}
		t.k.waitChange(context.Background(), undecided, true, ID{})
	}
	return fmt.Errorf("kill %q: %w (%d killed)", t.Name, ErrForking, len(done))
}

// killAtOnce kills what the kernel can kill in one step, between which and the next nobody forks: the group while its number
// is the leader's, and the cgroup if asked to. While an orphan is undecided, it answers with what tells of the next look.
func (t *Tree) killAtOnce(cgroup bool) (undecided <-chan struct{}) {
	k := t.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if t.cgroup != nil && cgroup {
		t.cgroup.kill()
	}
	if t.unreaped() {
		unix.Kill(-t.leader.PID, unix.SIGKILL)
	}
	if k.undecided {
		return k.changed
	}
	return nil
}

// signal signals one member: an unreaped child or orphan by its number, anybody else verified. Who is gone needs no signal.
func (k *Kernel) signal(id ID, sig syscall.Signal) error {
	k.mu.Lock()
	if c := k.children[id.PID]; c != nil && c.ID == id {
		defer k.mu.Unlock()
		return procError(id.PID, unix.Kill(id.PID, sig)) // a zombie takes it, too
	}
	pidfd := k.pidfd
	if k.orphans[id.PID] != nil && k.forking == 0 { // nobody else reaps it, not even a fork that fails: who has the number keeps it
		defer k.mu.Unlock()
		pidfd = false
	} else {
		k.mu.Unlock()
	}
	err := signalVerified(id, sig, pidfd)
	if errors.Is(err, ErrGone) || errors.Is(err, ErrRecycled) {
		return nil
	}
	return err
}

// HoldsSocket reports whether a member has the socket with that inode, which uid made, open. One that another user made may
// have been passed to it: that proves nothing, but root's may. The leader is asked first.
func (t *Tree) HoldsSocket(inode uint64, uid int) bool {
	t.k.mu.Lock()
	l := t.leader
	t.k.mu.Unlock()
	holds := func(id ID) bool {
		if !holds(id.PID, socketLink(inode)) {
			return false
		}
		s, err := ReadStat(id.PID)
		return err == nil && s.ID == id && (uid == 0 || uid == t.UID || uid == s.UID)
	}
	if l != nil && holds(l.ID) {
		return true
	}
	members, _ := t.Members()
	return slices.ContainsFunc(members, holds)
}
