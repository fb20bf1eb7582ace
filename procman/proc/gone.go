// Processes that are not our children: waiting for their end, and ending what a dead zhxd left behind.

package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// WaitGone returns when the process that id names has ended (a zombie has), or with the context's error. With pidfd it is
// parked in the poller; without, it looks again every 20 ms.
func (k *Kernel) WaitGone(ctx context.Context, id ID) error {
	fd := -1
	if k.pidfd {
		fd, _ = unix.PidfdOpen(id.PID, 0)
	}
	gone := func() bool {
		s, err := ReadStat(id.PID)
		return errors.Is(err, ErrGone) || err == nil && (s.ID != id || !s.Living())
	}
	if fd >= 0 {
		return waitPidfd(ctx, fd, gone)
	}
	again := time.NewTicker(recheck)
	defer again.Stop()
	for !gone() {
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of process %d: %w", id.PID, ctx.Err())
		}
	}
	return nil
}

// waitPidfd parks until the pidfd, which it closes, is readable. gone is asked once: the descriptor may be of a successor.
func waitPidfd(ctx context.Context, fd int, gone func() bool) error {
	unix.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if gone() {
		return nil
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	err = conn.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return err
}

// KillMarked ends what is left of a run of a dead zhxd, whose processes are nobody's children that we know: the leader if
// its start time still fits, its group and session then, whoever carries the mark under that uid, and all their
// descendants. It returns when they have ended. left is what it did not end, and why: not verified, not permitted, or alive
// when ctx ended.
func (k *Kernel) KillMarked(ctx context.Context, mark string, leader ID, uid int) (killed []ID, left []Stray, err error) {
	done := map[ID]struct{}{}
	for round := 0; ; round++ {
		members, refused, err := k.leftovers(mark, leader, uid)
		if err != nil {
			return killed, left, err
		}
		fresh := false
		for _, s := range append(members, refused...) {
			if _, ok := done[s.ID]; ok {
				continue
			}
			done[s.ID], fresh = struct{}{}, true
			if s.Reason == "" {
				switch err := signalVerified(s.ID, unix.SIGKILL, k.pidfd); {
				case err == nil:
					killed = append(killed, s.ID)
					continue
				case errors.Is(err, ErrGone) || errors.Is(err, ErrRecycled):
					continue
				default:
					s.Reason = err.Error()
				}
			}
			left = append(left, s)
		}
		if !fresh {
			break
		}
		if round == maxKillRounds {
			return killed, left, fmt.Errorf("kill what is left of run %s: %w", mark, ErrForking)
		}
	}
	for _, id := range killed {
		if err := k.WaitGone(ctx, id); err != nil {
			left = append(left, Stray{id, "killed, but not dead: " + err.Error()})
		}
	}
	return killed, left, nil
}

// leftovers finds the living of a run that this process did not start. Our own ancestors are refused: zhxd may have been
// started from inside a client.
func (k *Kernel) leftovers(mark string, leader ID, uid int) (members, refused []Stray, err error) {
	all, err := stats()
	if err != nil {
		return nil, nil, fmt.Errorf("list processes: %w", err)
	}
	line := ancestry(all[os.Getpid()])
	verified := leader.Start != 0 && all[leader.PID].ID == leader
	found := map[int]struct{}{}
	for pid, s := range all {
		theirs := verified && (pid == leader.PID || s.PGID == leader.PID || s.SID == leader.PID)
		if !theirs && mark != "" && pid != os.Getpid() {
			m, _, _ := Environ(pid, markVariable)
			theirs = m == mark && (s.UID == uid || uid == 0)
			if m == mark && !theirs && s.Living() {
				refused = append(refused, Stray{s.ID, fmt.Sprintf("carries the run's mark, but runs as uid %d", s.UID)})
			}
		}
		if theirs {
			found[pid] = struct{}{}
		}
	}
	descend(all, found)
	ours := map[int]struct{}{os.Getpid(): {}}
	descend(all, ours)
	for pid := range found {
		s := all[pid]
		if _, own := ours[pid]; own || !s.Living() {
			continue
		}
		if slices.Contains(line, pid) {
			refused = append(refused, Stray{s.ID, "is an ancestor of this process"})
		} else {
			members = append(members, Stray{ID: s.ID})
		}
	}
	return members, refused, nil
}
