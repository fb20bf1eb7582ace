// Who a process is: what /proc says of it, and the only way to signal one that is not our child.

package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ID names one incarnation of a process: pids are used again, a pid with its start time is not.
type ID struct {
	PID   int
	Start uint64 // field 22 of /proc/PID/stat: clock ticks (10 ms) since boot
}

// Stat is what /proc/PID says of a process at one instant.
type Stat struct {
	ID
	Comm                 string
	State                byte // as ps shows it: R S D T t Z X I
	PPID, PGID, SID, TTY int  // TTY: device number of the controlling terminal, 0 for none
	Threads              int
	UID                  int           // effective
	noEnviron            bool          // its environment is there, and empty
	forked               bool          // it has not executed a program yet
	dumps                bool          // it writes a core, or has
	cpu                  time.Duration // that it has used, user and system, in ticks of 1/userHZ
	resident             int64         // bytes
}

// Living reports whether anything of the process still runs. (A process whose first thread ended alone shows Z, and lives.)
func (s Stat) Living() bool { return s.State != 'X' && (s.State != 'Z' || s.Threads > 1) }

// ReadStat reads /proc/PID/stat and the owner of /proc/PID. It answers ErrGone for a pid that is not in use.
func ReadStat(pid int) (Stat, error) {
	// One descriptor of the directory ties owner and stat to the same process.
	dir, err := unix.Open(procPath(pid, ""), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stat{}, procError(pid, err)
	}
	defer unix.Close(dir)
	var owner unix.Stat_t
	if err := unix.Fstat(dir, &owner); err != nil {
		return Stat{}, procError(pid, err)
	}
	fd, err := unix.Openat(dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stat{}, procError(pid, err)
	}
	defer unix.Close(fd)
	var buf [1024]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return Stat{}, procError(pid, err)
	}
	s, ok := parseStat(buf[:n])
	if !ok {
		return Stat{}, fmt.Errorf("process %d: unreadable stat %q", pid, string(buf[:n]))
	}
	s.UID = int(owner.Uid)
	return s, nil
}

const forkNoExec = 0x40 // PF_FORKNOEXEC of linux/sched.h

// parseStat reads one line of /proc/PID/stat. The name ends at the last ')': it may contain anything.
func parseStat(b []byte) (s Stat, ok bool) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 2 || end < open || len(b) < end+4 {
		return s, false
	}
	s.PID, s.Comm, s.State = int(number(b[:open-1])), string(b[open+1:end]), b[end+2]
	var field [52]int64 // as proc(5) counts
	n := 4
	for f := range bytes.FieldsSeq(b[end+3:]) {
		if n < len(field) {
			field[n] = number(f)
			n++
		}
	}
	if n <= 22 {
		return s, false
	}
	s.PPID, s.PGID, s.SID, s.TTY = int(field[4]), int(field[5]), int(field[6]), int(field[7])
	s.Threads, s.Start = int(field[20]), uint64(field[22])
	s.forked, s.dumps = field[9]&forkNoExec != 0, field[9]&dumpCore != 0
	s.cpu, s.resident = time.Duration(field[14]+field[15])*(time.Second/userHZ), field[24]*int64(os.Getpagesize())
	// Where the environment lies; 0 inside exec, in a process that is ending, and where we may not look.
	s.noEnviron = field[50] != 0 && field[50] == field[51]
	return s, true
}

// number reads an unsigned decimal; anything else (fields that are -1) is 0.
func number(b []byte) (n int64) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

func procPath(pid int, file string) string { return "/proc/" + strconv.Itoa(pid) + "/" + file }

func procError(pid int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		err = ErrGone
	}
	return fmt.Errorf("process %d: %w", pid, err)
}

// readProc reads at most limit bytes of a file of /proc/PID. (os.File would try the poller first.)
func readProc(pid int, file string, limit int) ([]byte, error) {
	fd, err := unix.Open(procPath(pid, file), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, procError(pid, err)
	}
	defer unix.Close(fd)
	var b []byte
	for len(b) < limit {
		b = slices.Grow(b, min(limit-len(b), max(512, len(b))))
		n, err := unix.Read(fd, b[len(b):min(limit, cap(b))])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, procError(pid, err)
		case n == 0:
			return b, nil
		default:
			b = b[:len(b)+n]
		}
	}
	return b, nil
}

// pids lists the processes in /proc, which dir is.
func pids(dir *os.File) ([]int, error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	list := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			list = append(list, pid)
		}
	}
	return list, err
}

func allPids() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return pids(dir)
}

// A scan is one reading of all processes, for everybody who asked before it began: a thousand clients that are stopped at once would
// read a million files else.
var scans struct {
	reading sync.Mutex // one at a time

	mu   sync.Mutex                           // guards next
	next func() (all map[int]Stat, err error) // that has not begun; nil: none
}

// stats reads the stat of every process, by readStats, after it is called. The map is shared: it is not to be written to.
func stats() (map[int]Stat, error) {
	scans.mu.Lock()
	if scans.next == nil {
		scans.next = sync.OnceValues(func() (map[int]Stat, error) {
			scans.reading.Lock()
			defer scans.reading.Unlock()
			scans.mu.Lock()
			scans.next = nil // who asks from now on gets another
			scans.mu.Unlock()
			return readStats()
		})
	}
	next := scans.next
	scans.mu.Unlock()
	return next()
}

// readStats reads the stat of every process. One that ends meanwhile is left out; one whose parent was gone before it could be
// read is read again, since it has a new parent.
func readStats() (map[int]Stat, error) {
	list, err := allPids()
	all := make(map[int]Stat, len(list))
	for _, pid := range list {
		s, unread := ReadStat(pid)
		if unread == nil {
			all[pid] = s
		} else if Shortage(unread) { // it may live
			err = unread
		}
	}
	for pid, s := range all {
		if _, ok := all[s.PPID]; !ok && s.PPID != 0 {
			if s, err := ReadStat(pid); err == nil {
				all[pid] = s
			}
		}
	}
	return all, err
}

// environ reads the environment that a process was executed with, of another thread where the first one has ended.
func environ(s Stat) ([]byte, error) {
	if s.State == 'Z' && s.Living() {
		threads, _ := os.ReadDir(procPath(s.PID, "task"))
		for _, t := range threads {
			if b, err := readProc(s.PID, "task/"+t.Name()+"/environ", maxEnviron); err == nil && len(b) > 0 || Shortage(err) {
				return b, err
			}
		}
	}
	return readProc(s.PID, "environ", maxEnviron)
}

// lookup finds a variable in an environment as /proc/PID/environ shows it: what the process was executed with.
func lookup(environ []byte, key string) (string, bool) {
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		if len(v) > len(key) && v[len(key)] == '=' && string(v[:len(key)]) == key {
			return string(v[len(key)+1:]), true
		}
	}
	return "", false
}

// Tracer says which process traces pid (a debugger, strace); 0 for none.
func Tracer(pid int) (int, error) {
	b, err := readProc(pid, "status", 64<<10)
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(b, []byte("\nTracerPid:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return int(number(line)), nil
}

// BootID names this boot of the machine: process start times compare within one boot only.
func BootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// Uptime is CLOCK_BOOTTIME, the age of this boot: the one clock that goes on over the end of zhxd, and through a suspend.
func Uptime() time.Duration {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return time.Duration(now.Nano())
}

// holds reports whether a process has a file open, which /proc shows as want. What may not be looked into does not hold it.
func holds(pid int, want string) bool {
	fds, _ := numbers(pid, "fd", -1)
	return slices.ContainsFunc(fds, func(fd int) bool {
		file, err := os.Readlink(procPath(pid, "fd/"+strconv.Itoa(fd)))
		return err == nil && file == want
	})
}

func socketLink(inode uint64) string { return "socket:[" + strconv.FormatUint(inode, 10) + "]" }

// FindTwin looks for a process with our name and user, but this one and its parent, that has a file open which /proc shows as
// link; 0: there is none.
func FindTwin(link string) int {
	list, _ := allPids()
	self, _ := ReadStat(os.Getpid())
	for _, pid := range list {
		if s, err := ReadStat(pid); err == nil && pid != self.PID && pid != self.PPID && s.UID == self.UID && s.Comm == self.Comm && holds(pid, link) {
			return pid
		}
	}
	return 0
}

// FindSocket looks for a process of uid that has the socket open. It reads the descriptors of every such process: for a
// foreign TCP peer that arms a watchdog, not for every connection.
func FindSocket(inode uint64, uid int) (ID, bool) {
	list, _ := allPids()
	for _, pid := range list {
		s, err := ReadStat(pid)
		if err != nil || s.UID != uid || !holds(pid, socketLink(inode)) {
			continue
		}
		if again, err := ReadStat(pid); err == nil && again.ID == s.ID {
			return s.ID, true
		}
	}
	return ID{}, false
}

// SignalVerified signals the process that id names, never its successor under the same pid: ErrGone, ErrRecycled, EPERM.
// Without pidfd, microseconds remain between the look at the start time and the signal.
func SignalVerified(id ID, sig syscall.Signal) error { return signalVerified(id, sig, true) }

func signalVerified(id ID, sig syscall.Signal, pidfd bool) error {
	send := func() error { return unix.Kill(id.PID, sig) }
	if pidfd {
		// Opened before the start time is read: if that fits, the descriptor is of this process or of a dead one.
		switch fd, err := unix.PidfdOpen(id.PID, 0); err {
		case nil:
			defer unix.Close(fd)
			send = func() error { return unix.PidfdSendSignal(fd, sig, nil, 0) }
		case unix.ESRCH, unix.EINVAL: // EINVAL: a thread's number
			return procError(id.PID, unix.ESRCH)
		}
	}
	s, err := ReadStat(id.PID)
	if err != nil {
		return err
	}
	if s.ID != id {
		return fmt.Errorf("signal process %d: %w", id.PID, ErrRecycled)
	}
	return procError(id.PID, send())
}

// Usage is the processor time that a process has used, and the bytes of its memory that are resident.
func Usage(pid int) (cpu time.Duration, resident int64, err error) {
	s, err := ReadStat(pid)
	return s.cpu, s.resident, err
}
