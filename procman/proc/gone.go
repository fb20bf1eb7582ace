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

// WaitGone returns when the process that id names has ended (a zombie has), or with the context's error. It looks again every
// recheck: this is for strangers, of which there are few and seldom, and needs no second way for kernels without pidfd.
func (k *Kernel) WaitGone(ctx context.Context, id ID) error {
	again := time.NewTicker(recheck)
	defer again.Stop()
	for {
		s, err := ReadStat(id.PID)
		if errors.Is(err, ErrGone) || err == nil && (s.ID != id || !s.Living()) {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of process %d: %w", id.PID, ctx.Err())
		}
	}
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
	done := map[ID]struct{}{}
	for fresh, round := true, 0; fresh; round++ {
		found, err := r.find()
		if err == nil && round == maxKillRounds {
			err = ErrForking
		}
		if err != nil {
			return killed, left, fmt.Errorf("kill what is left of run %s: %w", r.Mark, err)
		}
		fresh = false
		for _, s := range found {
			if _, ok := done[s.ID]; ok {
				continue
			}
			done[s.ID], fresh = struct{}{}, true
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
	}
	for _, id := range killed {
		if err := k.WaitGone(ctx, id); err != nil {
			left = append(left, Stray{id, "killed, but not dead: " + err.Error()})
		}
	}
	if r.Cgroup != "" && len(left) == 0 {
		unix.Rmdir(r.Cgroup)
		unix.Rmdir(filepath.Dir(r.Cgroup)) // when it was the last
	}
	return killed, left, nil
}

// find lists the living of the run, with a reason those that are not to be touched. Our own ancestors are not: zhxd may have
// been started from inside a client.
func (r Remains) find() (list []Stray, err error) {
	all, err := stats()
	if err != nil {
		return nil, err
	}
	verified := r.Leader.Start != 0 && all[r.Leader.PID].ID == r.Leader
	found, ours := map[int]struct{}{}, map[int]struct{}{os.Getpid(): {}}
	descend(all, ours)
	for pid, s := range all {
		theirs := verified && (pid == r.Leader.PID || s.PGID == r.Leader.PID || s.SID == r.Leader.PID)
		if _, own := ours[pid]; !own && !theirs && r.Mark != "" {
			environ, _ := readProc(pid, "environ", maxEnviron) // of others only root may
			m, _ := lookup(environ, markVariable)
			theirs = m == r.Mark && (s.UID == r.UID || r.UID == 0)
			if m == r.Mark && !theirs && s.Living() {
				list = append(list, Stray{s.ID, fmt.Sprintf("carries the run's mark, but runs as uid %d", s.UID)})
			}
		}
		if theirs {
			found[pid] = struct{}{}
		}
	}
	if r.Cgroup != "" {
		b, _ := os.ReadFile(r.Cgroup + "/cgroup.procs") // gone when nobody was in it
		for _, pid := range parseList(b) {
			if _, ok := all[pid]; ok { // who was born since is met in the next round
				found[pid] = struct{}{}
			}
		}
	}
	descend(all, found)
	line := ancestry(all[os.Getpid()])
	for pid := range found {
		s := all[pid]
		if _, own := ours[pid]; own || !s.Living() {
			continue
		}
		reason := ""
		if slices.Contains(line, pid) {
			reason = "is an ancestor of this process"
		}
		list = append(list, Stray{s.ID, reason})
	}
	return list, nil
}
