// What the kernel does to processes by itself: whether it writes a core right now, and kills for want of memory.

package proc

import (
	"bytes"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const dumpCore = 0x200 // PF_DUMPCORE of linux/sched.h

// CoreDumping tells whether the kernel writes the core of pid at this moment: SIGKILL would cut it off. Linux says so since 4.15.
// Before, it marks the thread that writes, and the mark stays: then a core counts as written when the process has no memory any
// more, which follows.
func CoreDumping(pid int) (bool, error) {
	b, err := readProc(pid, "status", 64<<10)
	if err != nil {
		return false, err
	}
	return coreDumping(pid, b), nil
}

func coreDumping(pid int, status []byte) bool {
	if _, rest, told := bytes.Cut(status, []byte("\nCoreDumping:\t")); told {
		return bytes.HasPrefix(rest, []byte("1"))
	}
	if !bytes.Contains(status, []byte("\nVmSize:")) {
		return false
	}
	tids, _ := numbers(pid, "task", threadsMet)
	for _, tid := range tids {
		if r, err := readThread(pid, tid); err == nil && r.dumps {
			return true
		}
	}
	return false
}

// A killLog tells whom the kernel kills for want of memory, the board's or a cgroup's. It reads the kernel's log, where it may.
type killLog struct {
	mu     sync.Mutex
	fd     int                      // of /dev/kmsg, behind what was there at first; -1: none
	killed map[string]time.Duration // name of a process -> when, by CLOCK_MONOTONIC_RAW: the log's is not adjusted either. The pid there is not of our namespace
}

func openKillLog() *killLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		if _, err = unix.Seek(fd, 0, unix.SEEK_END); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		fd = -1
	}
	return &killLog{fd: fd, killed: map[string]time.Duration{}}
}

func (l *killLog) close() { unix.Close(l.fd) }

// OutOfMemory tells whether the kernel has killed a process of the child's name for want of memory a moment ago. To be asked before
// Reap. It takes one system call while the kernel has said nothing.
func (c *Child) OutOfMemory() bool {
	l := c.k.kills
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read()
	if len(l.killed) == 0 {
		return false
	}
	s, err := ReadStat(c.PID)
	at, killed := l.killed[s.Comm]
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &now)
	return err == nil && killed && time.Duration(now.Nano())-at < oomAge
}

// read takes in what was said since the last time.
func (l *killLog) read() {
	var buf [8 << 10]byte // a record
	for {
		n, err := unix.Read(l.fd, buf[:])
		if err == unix.EPIPE || err == unix.EINTR { // overwritten meanwhile: goes on with the oldest that is there
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		head, text, _ := strings.Cut(string(buf[:n]), ";")
		_, name, told := strings.Cut(text, "illed process ")
		_, name, _ = strings.Cut(name, "(")
		end := strings.LastIndexByte(name, ')')
		if f := strings.Split(head, ","); told && end >= 0 && len(f) > 2 {
			at, _ := strconv.ParseInt(f[2], 10, 64)
			if len(l.killed) >= killedMax {
				clear(l.killed)
			}
			l.killed[name[:end]] = time.Duration(at) * time.Microsecond
		}
	}
}
