// What a run is doing, for people: read before it is judged, while it still does it.

package proc

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The limits of a look at a run. The leader comes first, so they hit the rest.
const (
	aroundProcesses   = 64 // for all that follows
	evidenceProcesses = 8
	evidenceThreads   = 32 // of all processes; each that may still come keeps one
	evidenceFrames    = 8
	evidenceLines     = 40
	threadsMet        = 256 // of a process: those searched for the interesting ones, and asked for children
	schedThreads      = 64  // of all processes
	// Sched and Tracer open no file later than this after they began.
	lookLimit = 20 * time.Millisecond
)

// Evidence is what the processes of a run were doing.
type Evidence struct {
	Processes []Process // the leader first; a zombie is none
	Left      int       // processes and threads that were not looked at, at least
}

// Process is one of them.
type Process struct {
	PID         int
	Comm        string
	Threads     []Thread // what waits without obeying signals (D) first, then what runs (R)
	Descriptors int      // open; -1: not permitted, or no time
	RSS, Swap   int64    // bytes
	Fault       string   // what could not be read and why; "" for nothing
}

// Thread is one of its threads. Each field is of another instant, microseconds apart.
type Thread struct {
	TID     int
	Comm    string
	State   byte          // as Stat's
	Wchan   string        // the kernel function that it waits in; "": none, or not permitted
	Syscall string        // "read", "system call 123", "running", "no system call" (a page fault); "": not permitted
	CPU     time.Duration // that it has used
	Stack   []string      // the kernel's functions, innermost first; empty: running, or not permitted (CAP_SYS_ADMIN)
}

// Evidence looks at the living processes of the run for about as long as limit. Any goroutine may call it but one that others
// wait for: the clock is asked between two files, and a read of /proc cannot be interrupted; it may wait for a process that is
// inside exec.
func (t *Tree) Evidence(limit time.Duration) Evidence {
	var e Evidence
	l, room := look{late: time.Now().Add(limit)}, evidenceThreads
	for s := range t.around(l.late) {
		if later := evidenceProcesses - 1 - len(e.Processes); later >= 0 && l.time() {
			p, left := l.process(s, room-later)
			e.Processes = append(e.Processes, p)
			room -= len(p.Threads)
			e.Left += left
		} else {
			e.Left++
		}
	}
	return e
}

// look reads while there is time, and keeps what it could not read.
type look struct {
	late   time.Time
	faults []string
}

var errLate = errors.New("out of time")

func (l *look) time() bool { return time.Now().Before(l.late) }

// file reads a file of /proc/PID.
func (l *look) file(pid int, name string) string {
	if !l.time() {
		l.fault(name, errLate)
		return ""
	}
	b, err := readProc(pid, name, 64<<10)
	l.fault(name, err)
	return string(bytes.TrimSpace(b))
}

// fault keeps what could not be read. That there is none is no fault: the thread has ended, or the kernel lacks it.
func (l *look) fault(name string, err error) {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		err = errno // without the path
	}
	text := fmt.Sprint(path.Base(name), ": ", err)
	if err != nil && !errors.Is(err, ErrGone) && !errors.Is(err, unix.ENOENT) && !slices.Contains(l.faults, text) {
		l.faults = append(l.faults, text)
	}
}

// process looks at one process, and at no more than most of its threads.
func (l *look) process(s Stat, most int) (p Process, left int) {
	l.faults = nil
	status := l.file(s.PID, "status")
	p = Process{PID: s.PID, Comm: s.Comm, RSS: kilobytes(status, "VmRSS:"), Swap: kilobytes(status, "VmSwap:"), Descriptors: -1}
	fds, err := numbers(s.PID, "fd", -1)
	if l.fault("fd", err); err == nil {
		p.Descriptors = len(fds)
	}
	tids, _ := numbers(s.PID, "task", threadsMet)
	var all []reading
	for _, tid := range tids {
		if !l.time() {
			break
		}
		if r, err := readThread(s.PID, tid); err == nil {
			all = append(all, r)
		}
	}
	urgency := func(r reading) int { return strings.IndexByte("DR", r.State) & 3 } // 0, 1, and 3 for the others
	slices.SortStableFunc(all, func(a, b reading) int { return urgency(a) - urgency(b) })
	for _, r := range all[:min(len(all), most)] {
		if !l.time() {
			break
		}
		p.Threads = append(p.Threads, l.thread(s.PID, r))
	}
	p.Fault = strings.Join(l.faults, ", ")
	return p, max(s.Threads, len(all)) - len(p.Threads)
}

func (l *look) thread(pid int, r reading) Thread {
	file := func(name string) string { return l.file(pid, fmt.Sprintf("task/%d/%s", r.PID, name)) }
	r.schedule(file("schedstat"))
	th := Thread{TID: r.PID, Comm: r.Comm, State: r.State, CPU: r.cpu, Syscall: syscallName(file("syscall"))}
	if r.State == 'R' {
		return th // it waits for nothing, and its stack changes while it is read
	}
	if th.Wchan = file("wchan"); th.Wchan == "0" {
		th.Wchan = ""
	}
	for line := range strings.Lines(file("stack")) { // "[<0>] do_wait+0x5a/0x110"
		_, function, _ := strings.Cut(strings.TrimSpace(line), " ")
		function, _, _ = strings.Cut(function, "+")
		if len(th.Stack) < evidenceFrames && function != "" {
			th.Stack = append(th.Stack, function)
		}
	}
	return th
}

// kilobytes finds "VmRSS:   1234 kB" in /proc/PID/status.
func kilobytes(status, key string) int64 {
	_, rest, _ := strings.Cut(status, "\n"+key)
	line, _, _ := strings.Cut(rest, " kB")
	n, _ := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return n << 10
}

// numbers lists a directory of /proc/PID: its descriptors, or its threads, the oldest first.
func numbers(pid int, dir string, most int) (list []int, err error) {
	d, err := os.Open(procPath(pid, dir))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, _ := d.Readdirnames(most)
	for _, name := range names {
		list = append(list, int(number([]byte(name))))
	}
	return list, nil
}

// around yields the living of the run, the leader first, and opens nothing after late. Unlike Members it reads no environments
// but those of new orphans: it asks the tables, the cgroup, and each for its children. Where no kernel list tells either of these
// it looks at every process, once and without minding late, and for an adopted run not at all.
func (t *Tree) around(late time.Time) iter.Seq[Stat] {
	return func(yield func(Stat) bool) {
		queue, met := t.known(), map[int]bool{os.Getpid(): true} // zhxd may have been started from inside a client
		scan := t.k.list == nil && t.cgroup == nil && !t.isOutside()
		for i := 0; i < len(queue) && len(met) <= aroundProcesses; i++ {
			id := queue[i]
			s, err := ReadStat(id.PID)
			if met[id.PID] || err != nil || !s.Living() || id.Start != 0 && id != s.ID {
				continue
			}
			met[id.PID] = true
			if !yield(s) || !time.Now().Before(late) {
				return
			}
			if scan {
				members, _ := t.Members()
				queue, scan = append(queue, members...), false
			}
			tids, _ := numbers(s.PID, "task", threadsMet)
			for _, tid := range tids {
				if t.k.list == nil || !time.Now().Before(late) {
					break
				}
				b, _ := readProc(s.PID, fmt.Sprintf("task/%d/children", tid), 64<<10)
				for _, pid := range parseList(b) {
					queue = append(queue, ID{PID: pid})
				}
			}
		}
	}
}

// known lists who the tables say is of the run, the leader first.
func (t *Tree) known() (list []ID) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if t.cgroup == nil {
		t.k.collect() // no signal tells that somebody has become an orphan
	}
	for pid, o := range t.k.orphans {
		if o.tree == t {
			list = append(list, ID{PID: pid})
		}
	}
	for id := range t.seen {
		list = append(list, id)
	}
	if t.cgroup != nil {
		for _, pid := range t.cgroup.members() {
			list = append(list, ID{PID: pid})
		}
	}
	slices.SortFunc(list, func(a, b ID) int { return cmp.Compare(a.PID, b.PID) })
	if t.leader != nil {
		list = slices.Insert(list, 0, t.leader.ID)
	}
	return list
}

// Lines shows the evidence to people, on 40 lines at most.
func (e Evidence) Lines() (lines []string) {
	for _, p := range e.Processes {
		line := fmt.Sprintf("pid %d %q: %d threads shown, ", p.PID, p.Comm, len(p.Threads)) // quoted: a name must not steer the terminal
		if p.Descriptors >= 0 {
			line += fmt.Sprintf("%d descriptors, ", p.Descriptors)
		}
		line += fmt.Sprintf("%.1f MB resident, %.1f MB swapped", float64(p.RSS)/1e6, float64(p.Swap)/1e6)
		if p.Fault != "" {
			line += " (" + p.Fault + ")"
		}
		lines = append(lines, line)
		for _, th := range p.Threads {
			line := fmt.Sprintf("  %d %q  %c", th.TID, th.Comm, th.State)
			if th.Wchan != "" {
				line += "  wchan " + th.Wchan
			}
			if th.Syscall != "" {
				line += "  " + th.Syscall
			}
			line += "  cpu " + th.CPU.Round(time.Millisecond).String()
			if len(th.Stack) > 0 && (th.State == 'D' || th.Wchan == "") {
				line += "  stack " + strings.Join(th.Stack, " < ")
			}
			lines = append(lines, line)
		}
	}
	if e.Left > 0 {
		lines = append(lines[:min(len(lines), evidenceLines-1)], fmt.Sprintf("%d more processes or threads were not looked at", e.Left))
	}
	return lines
}

// syscallName reads /proc/PID/syscall: "0 0x3 0x7f…", the number of the call first.
func syscallName(text string) string {
	word, _, _ := strings.Cut(text, " ")
	n, err := strconv.Atoi(word)
	if err != nil {
		return word // "running", or nothing
	}
	if n < 0 {
		return "no system call"
	}
	return cmp.Or(blocking[n], elder[runtime.GOARCH][n], "system call "+word)
}

// blocking names the calls that programs hang in. A 32-bit program on a 64-bit kernel has other numbers than ours.
var blocking = map[int]string{
	unix.SYS_READ: "read", unix.SYS_READV: "readv", unix.SYS_WRITE: "write", unix.SYS_WRITEV: "writev", unix.SYS_OPENAT: "openat",
	unix.SYS_CLOSE: "close", unix.SYS_IOCTL: "ioctl", unix.SYS_FCNTL: "fcntl", unix.SYS_FLOCK: "flock", unix.SYS_FSYNC: "fsync",
	unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FUTEX: "futex", unix.SYS_PPOLL: "ppoll", unix.SYS_PSELECT6: "pselect",
	unix.SYS_EPOLL_PWAIT: "epoll_pwait", unix.SYS_NANOSLEEP: "nanosleep", unix.SYS_CLOCK_NANOSLEEP: "clock_nanosleep",
	unix.SYS_ACCEPT4: "accept", unix.SYS_CONNECT: "connect", unix.SYS_RECVMSG: "recvmsg", unix.SYS_RECVFROM: "recvfrom",
	unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDTO: "sendto", unix.SYS_WAIT4: "wait4", unix.SYS_WAITID: "waitid",
	unix.SYS_RT_SIGTIMEDWAIT: "rt_sigtimedwait", unix.SYS_RT_SIGSUSPEND: "rt_sigsuspend", unix.SYS_RESTART_SYSCALL: "restart_syscall",
	unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_EXECVE: "execve",
}

// elder names those that not every architecture has; on arm also the ones with 64 bits of time.
var elder = map[string]map[int]string{
	"amd64": {2: "open", 7: "poll", 23: "select", 34: "pause", 43: "accept", 58: "vfork", 232: "epoll_wait"},
	"arm64": {202: "accept"},
	"arm": {5: "open", 29: "pause", 142: "select", 168: "poll", 190: "vfork", 221: "fcntl", 252: "epoll_wait", 285: "accept",
		407: "clock_nanosleep", 413: "pselect", 414: "ppoll", 421: "rt_sigtimedwait", 422: "futex"},
}
