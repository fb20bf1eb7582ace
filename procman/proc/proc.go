// Package proc is the kernel as zhx sees it: every system call on processes is here. It starts programs, learns how they
// end, keeps together what belongs to one run, and names processes so that no signal ever reaches a stranger.
//
//	Start ──fork/exec──> child ──ends──┬─ pidfd in Go's poller ─┐
//	                                   └─ SIGCHLD, waitid ──────┴─> Exited (WNOWAIT: the pid stays ours) ─> Empty ─> Reap
//	child's children ─orphaned─> ours (subreaper) ─SIGCHLD─> collect: placed into a Tree while they live, reaped when dead
//	Tree.Kill ─> the group, every member by a verified pid, again until nobody new appears, cgroup.kill ─> WaitEmpty
//
//	a dead zhxd's ─Adopt─> leader of a Tree ─pidfd, or a look at its start time─> Exited, status unknown
//	sd_notify's MAINPID ─Lead─> leader of its Tree ─our orphan by its end?─┬─yes─> Exited, Reap
//	                                                                       └─no──> as adopted
//
// Owners: Kernel.mu guards the table of children, the table of orphans, and the trees; nothing else is shared. Reaping
// happens under mu only, so whoever holds mu may signal an unreaped child by its number. Signals to other processes go through
// SignalVerified. No goroutine holds a thread: one waits for SIGCHLD, one a child is parked in the poller (with pidfd).
//
// While a Kernel is open, every child of this process that Start did not make is an orphan and is reaped: os/exec and
// os.StartProcess must not be used beside it.
//
// Linux 4.4 is enough. Without pidfd (before 5.3) children are waited for by SIGCHLD; without a writable cgroup2 a tree is
// what its leader, group, session, parents and mark say; without CONFIG_PROC_CHILDREN own children are found by asking
// waitid about every pid in /proc. A process that left its group and session, cleared its environment and lost its
// parents, on a system without cgroup2, is nobody's: it is logged once and left alone.
package proc

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The limits of the package, and what happens there.
const (
	// A Kill that still finds new members after so many rounds gives up with ErrForking; its caller may call again.
	maxKillRounds = 64
	// So many rounds Kill does without cgroup.kill, after which no child can be made inside this cgroup any more.
	gentleRounds = 4
	// The walk to a process's ancestors ends here: a deeper descendant is still found by cgroup, session, group or mark.
	maxAncestors = 64
	// An environment is read so far: a mark beyond it is not seen. Linux allows 2 MiB, programs use a few KiB.
	maxEnviron = 256 << 10
	// An orphan inside exec, or ending, cannot be placed for that moment: its environment is not there. It may be anybody's, so
	// no tree counts as empty. If it stays so for longer (it hangs in the kernel), it is nobody's.
	maxUndecided = time.Second
	// What a FIFO buffers, where the kernel permits it (pipe-max-size); else its default of 64 KiB stays.
	fifoSize = 256 << 10
	// The connect that asks whether another zhxd lives waits so long; a full backlog counts as alive.
	aliveTimeout = time.Second
	// What sends no event is looked at so often: an undecided process; and, without pidfd, the end of a process that is neither
	// our child nor a leader, at first. The time between two looks doubles, up to adoptedPoll.
	recheck = 20 * time.Millisecond
	// Without pidfd (before Linux 5.3) the end of a leader that is not our child is noticed so late. There is no such look
	// where there is no such leader.
	adoptedPoll = 500 * time.Millisecond
	// A kill for want of memory is told by the kernel's log, by the name of the process: an older line is another one's.
	oomAge = 10 * time.Second
	// Names of such processes that are remembered: beyond, the older are forgotten.
	killedMax = 64
	// Start times are told in 1/100 s on every architecture that Go runs on.
	userHZ = 100
)

// The environment variables that zhx gives a child; Strays and the marks read them back.
const (
	markVariable   = "ZHX_RUN"
	socketVariable = "ZHX_SOCKET"
)

var (
	// ErrGone: no process has this pid, or the one meant has ended. A zombie still exists, and takes signals.
	ErrGone = errors.New("no such process")
	// ErrRecycled: the pid belongs to another process by now (its start time differs). It was not signalled.
	ErrRecycled = errors.New("the pid belongs to another process by now")
	// ErrForking: Kill met new members in every one of its rounds.
	ErrForking = errors.New("new members keep appearing")
)

// Shortage tells whether err is of the board: no descriptors, memory, processes or room on a file system. It says nothing about
// the program or process that was asked for, and goes away without anybody's edit. (EIO is none: execve says it of a program that
// is cut short.)
func Shortage(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && slices.Contains([]unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN, unix.ENOSPC,
		unix.EDQUOT, unix.EROFS, unix.ENOBUFS}, errno)
}
