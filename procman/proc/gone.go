// Processes that are not our children: waiting for their end, and ending what a dead zhxd left behind.

package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// WaitGone returns when the process that id names has ended (a zombie has), or with the context's error. Without pidfd it
// looks again after recheck, then ever later.
func (k *Kernel) WaitGone(ctx context.Context, id ID) error {
	for wait := recheck; ; wait = min(2*wait, adoptedPoll) {
		pidfd, _, err := k.hold(id)
		if errors.Is(err, ErrGone) || errors.Is(err, ErrRecycled) {
			return nil
		}
		if pidfd != nil {
			err = park(ctx, pidfd)
			pidfd.Close()
			if err == nil {
				return nil
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of process %d: %w", id.PID, ctx.Err())
		}
	}
}

// park waits in the poller until the pidfd says that its process has ended.
func park(ctx context.Context, pidfd *os.File) error {
	defer context.AfterFunc(ctx, func() { pidfd.SetReadDeadline(time.Now()) })()
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(readable)
}

// Remains tells what is known of a run of a dead zhxd. Its processes are nobody's children that we know.
type Remains struct {
	Mark   string
	Leader ID // Start 0: not known
	UID    int
	Cgroup string // as Tree.Cgroup told; "" for none
}

// KillRemains ends what is left of a run: the leader if its start time still fits, its group and session then, who is in its
// cgroup, whoever carries the mark under that uid, and all their descendants. It returns when they have ended. left is what it
// did not end, and why: not verified, not permitted, or alive when ctx ended.
func (k *Kernel) KillRemains(ctx context.Context, r Remains) (killed []ID, left []Stray, err error) {
	done := map[ID]bool{}
	for fresh, round := true, 0; fresh; round++ {
		found, err := r.find()
		if err == nil && round == maxKillRounds {
			err, found = ErrForking, nil
		}
		fresh = false
		for _, s := range found {
			if done[s.ID] {
				continue
			}
			done[s.ID], fresh = true, true
			if s.Reason == "" {
				err := signalVerified(s.ID, unix.SIGKILL, k.pidfd)
				if err == nil {
					killed = append(killed, s.ID)
				}
				if err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrRecycled) {
					continue
				}
				s.Reason = err.Error()
			}
			left = append(left, s)
		}
		if err != nil {
			return killed, left, fmt.Errorf("kill what is left of run %s: %w", r.Mark, err)
		}
	}
	for _, id := range killed {
		if err := k.WaitGone(ctx, id); err != nil {
			left = append(left, Stray{id, "killed, but not dead: " + err.Error()})
		}
	}
	if ours := k.cgroups != nil && filepath.Dir(r.Cgroup) == k.cgroups.base; r.Cgroup != "" && !ours && len(left) == 0 {
		unix.Rmdir(r.Cgroup)
		unix.Rmdir(filepath.Dir(r.Cgroup)) // when it was the last
	}
	return killed, left, nil
}

// find lists the living of the run, with a reason those that are not to be touched. Our own ancestors are not: zhxd may have
// been started from inside a client. With an error it may be not all.
func (r Remains) find() (list []Stray, err error) {
	all, err := stats()
	if err != nil {
		return nil, err
	}
	verified := r.Leader.Start != 0 && all[r.Leader.PID].ID == r.Leader
	found := map[int]bool{}
	for pid, s := range all {
		if verified && (pid == r.Leader.PID || s.PGID == r.Leader.PID || s.SID == r.Leader.PID) {
			found[pid] = true
		}
	}
	carry, err := carriers(all, r.Mark)
	for _, s := range carry {
		if !found[s.PID] && s.UID != r.UID && r.UID != 0 {
			list = append(list, Stray{s.ID, fmt.Sprintf("carries the run's mark, but runs as uid %d", s.UID)})
			continue
		}
		found[s.PID] = true
	}
	if r.Cgroup != "" {
		b, _ := os.ReadFile(r.Cgroup + "/cgroup.procs") // gone when nobody was in it
		for _, pid := range parseList(b) {
			if _, ok := all[pid]; ok { // who was born since is met in the next round
				found[pid] = true
			}
		}
	}
	descend(all, found)
	line, ours := ancestry(all[os.Getpid()]), below(all)
	for pid := range found {
		s := all[pid]
		if ours[pid] || !s.Living() {
			continue
		}
		reason := ""
		if slices.Contains(line, pid) {
			reason = "is an ancestor of this process"
		}
		list = append(list, Stray{s.ID, reason})
	}
	return list, err
}

// FindLeader finds the leader of a run of which only the mark is known: the one process that carries it under that uid, leads
// its process group, has a parent that does not carry it, and executes q's program. ErrGone: there is none; another error: there
// are several, or the program is not to be found. q needs Path and Argv.
func (k *Kernel) FindLeader(mark string, uid int, q Query) (ID, error) {
	want, err := expect(q)
	if err != nil {
		return ID{}, fmt.Errorf("look for the leader of run %s: %w", mark, err)
	}
	all, err := stats()
	if err != nil {
		return ID{}, fmt.Errorf("look for the leader of run %s: %w", mark, err)
	}
	theirs := map[int]bool{}
	list, err := carriers(all, mark)
	if err != nil {
		return ID{}, fmt.Errorf("look for the leader of run %s: %w", mark, err)
	}
	for _, s := range list {
		theirs[s.PID] = true
	}
	var leaders []ID
	for _, s := range list {
		argv, err := arguments(s.PID)
		if executed, _ := want.executedBy(s.PID); err != nil || argv[0] == stageName || !executed || !want.runs(s.PID, argv) {
			continue
		}
		if !theirs[s.PPID] && s.PGID == s.PID && (s.UID == uid || uid == 0) {
			leaders = append(leaders, s.ID)
		}
	}
	switch len(leaders) {
	case 0:
		return ID{}, fmt.Errorf("look for the leader of run %s: %w", mark, ErrGone)
	case 1:
		return leaders[0], nil
	}
	return ID{}, fmt.Errorf("look for the leader of run %s: %d processes may be it", mark, len(leaders))
}

// executedBy reports whether a process executes the program's file, and whether that was replaced since.
func (p program) executedBy(pid int) (executed, replaced bool) {
	link, err := os.Readlink(procPath(pid, "exe"))
	exe, err2 := os.Stat(procPath(pid, "exe"))
	replaced = link == p.file+" (deleted)"
	return err == nil && err2 == nil && (replaced || os.SameFile(exe, p.exe)), replaced
}

// below lists this process and its descendants.
func below(all map[int]Stat) map[int]bool {
	ours := map[int]bool{os.Getpid(): true}
	descend(all, ours)
	return ours
}

// carriers finds the living processes whose initial environment has the mark, but for those below us. One that is inside exec
// has none at that moment: it is asked again, for maxUndecided at most; so is one that cannot be read for want of descriptors or
// memory, which is an error in the end.
func carriers(all map[int]Stat, mark string) (list []Stat, err error) {
	if mark == "" {
		return nil, nil
	}
	var asked []Stat
	ours := below(all)
	for pid, s := range all {
		kernel := s.PPID == 2 && all[2].Comm == "kthreadd"
		if !ours[pid] && !kernel && pid != 2 && s.Living() {
			asked = append(asked, s)
		}
	}
	for late := time.Now().Add(maxUndecided); ; <-time.After(recheck) {
		var again []Stat
		err = nil
		for _, s := range asked {
			b, unread := environ(s)
			if m, _ := lookup(b, markVariable); m == mark {
				list = append(list, s)
			} else if Shortage(unread) {
				again, err = append(again, s), unread
			} else if undecided(s, b, unread) {
				if now, err := ReadStat(s.PID); err == nil && now.ID == s.ID && now.Living() {
					again = append(again, now)
				}
			}
		}
		if asked = again; len(asked) == 0 || time.Now().After(late) {
			return list, err
		}
	}
}
