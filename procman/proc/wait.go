// How children end: asked of the kernel by pid, told to their owners, reaped by them.

package proc

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Exit says how a process ended.
type Exit struct {
	Code    int            // -1 when a signal ended it, or when it is unknown
	Signal  syscall.Signal // 0 when it exited
	Core    bool           // it dumped core
	Unknown bool           // the kernel did not tell how: it was not our child
}

// A Child is a process made by Start, or a leader by Adopt or Lead. Between the end of our child and Reap it is a zombie, and its
// pid, group and session are still its; those of another belong to anybody then.
type Child struct {
	// Immutable after Start.
	ID
	k      *Kernel
	tree   *Tree
	exited chan Exit
	frozen chan bool
	pidfd  *os.File // nil: SIGCHLD tells, or watch

	// Kernel.mu guards:
	foreign bool   // not our child: in Kernel.adopted, not in Kernel.children
	ended   bool   // told by Exited
	judged  bool   // and a collect since has met whom it left behind
	end     uint64 // of a foreign one: when it was seen to have ended, as start times are told
}

// Exited gives one value when the process has ended, and is closed after it. The pid stays ours until Reap.
func (c *Child) Exited() <-chan Exit { return c.exited }

// Frozen tells when the process stops (true) and continues (false). The latest value wins; nobody need listen. It is silent
// about a process that is not our child.
func (c *Child) Frozen() <-chan bool { return c.frozen }

// Reap gives the pid back to the kernel. To be called once, after Exited and when the tree is empty: until then nobody else
// can get the pid, or be hit by a signal to the group. A process that is not our child is only forgotten.
func (c *Child) Reap() error {
	k := c.k
	k.mu.Lock()
	if !c.ended || !k.holds(c) {
		k.mu.Unlock()
		return fmt.Errorf("reap process %d: it has not ended, or was reaped before", c.PID)
	}
	c.judged = true
	var err error
	if c.foreign {
		delete(k.adopted, c.ID)
	} else {
		delete(k.children, c.PID)
		_, err = waitid(unix.P_PID, c.PID, unix.WEXITED|unix.WNOHANG)
	}
	k.mu.Unlock()
	c.pidfd.Close() // not under mu: it waits for park, and park for mu
	if err != nil {
		return fmt.Errorf("reap process %d: %w", c.PID, err)
	}
	return nil
}

// park waits in the poller until the pidfd says that the child has ended.
func (c *Child) park() {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return // closed already: reaped
	}
	conn.Read(func(uintptr) bool { return c.look() })
}

// holds reports whether c was neither reaped nor replaced. mu is held.
func (k *Kernel) holds(c *Child) bool { return k.children[c.PID] == c || k.adopted[c.ID] == c }

// check asks whether a child has ended, and tells its owner once. mu is held.
func (k *Kernel) check(c *Child) bool {
	if c.ended || !k.holds(c) {
		return true
	}
	if c.foreign && !k.promote(c) {
		if !c.gone() {
			return false
		}
		c.end = ticks()
		c.tell(Exit{Code: -1, Unknown: true})
		return true
	}
	state, exit := peek(c.PID)
	if state == living {
		return false
	}
	if state == notOurs { // somebody else reaped it: a bug beside us, but no reason to wait for ever
		k.log.Error("child was reaped elsewhere", "pid", c.PID, "client", c.tree.Name, "next", "counts as ended, status unknown")
		exit = Exit{Code: -1, Unknown: true}
	}
	c.tell(exit)
	return true
}

// tell hands the end to the owner, once. mu is held.
func (c *Child) tell(e Exit) {
	c.ended = true
	c.exited <- e
	close(c.exited)
}

// thaw tells a child's owner of stops and continues. It asks for these alone, so P_ALL reaps nothing and ends. mu is held.
func (k *Kernel) thaw() {
	for {
		si, err := waitid(unix.P_ALL, 0, unix.WSTOPPED|unix.WCONTINUED|unix.WNOHANG)
		if err != nil || si.pid == 0 {
			return
		}
		if c := k.children[int(si.pid)]; c != nil {
			select {
			case <-c.frozen: // nobody took the older value
			default:
			}
			c.frozen <- si.code != cldContinued
		}
	}
}

type childState uint8

const (
	notOurs childState = iota
	living
	zombie
)

// peek asks the kernel about one pid, and changes nothing. A process whose first thread ended alone is living.
func peek(pid int) (childState, Exit) {
	si, err := waitid(unix.P_PID, pid, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	switch {
	case err != nil:
		return notOurs, Exit{}
	case si.pid == 0:
		return living, Exit{}
	case si.code == cldExited:
		return zombie, Exit{Code: int(si.status)}
	}
	return zombie, Exit{Code: -1, Signal: syscall.Signal(si.status), Core: si.code == cldDumped}
}

// siginfo is what waitid fills in. unix.Siginfo ends at the code. The union behind it is aligned as a pointer is: it begins
// at 16 on 64 bits and at 12 on 32 bits.
type siginfo struct {
	signo, errno, code int32
	_                  [0]uintptr
	pid                int32
	uid                uint32
	status             int32
	_                  [104]byte
}

const _ = uint(unsafe.Sizeof(siginfo{}) - unsafe.Sizeof(unix.Siginfo{})) // the kernel writes no further than ours reaches

const cldExited, cldDumped, cldContinued = 1, 3, 6

func waitid(kind, id, options int) (si siginfo, err error) {
	for {
		err = unix.Waitid(kind, id, (*unix.Siginfo)(unsafe.Pointer(&si)), options, nil)
		if err != unix.EINTR {
			return si, err
		}
	}
}

// ownChildren lists every orphan, perhaps twice, and others. Both files stay open: that descriptors ran out must not hide an
// orphan. Orphans hang on the first thread; that of a Go process never ends. The kernel's list may skip an entry while another
// is reaped. mu is held, so only forks that fail can reap meanwhile, forkReaps times each: that many readings may be wrong,
// but not all.
func (k *Kernel) ownChildren() (list []int) {
	if k.list != nil {
		for range 1 + forkReaps*k.forking {
			list = append(list, parseList(readAll(k.list))...)
		}
		return list
	}
	list, err := pids(k.proc)
	if err != nil {
		k.log.Error("cannot list processes", "err", err, "next", "orphans are looked for again at the next SIGCHLD")
	}
	return list
}

// readAll reads a file of the kernel's from its start.
func readAll(f *os.File) (b []byte) {
	buf := make([]byte, 4096)
	for {
		n, _ := f.ReadAt(buf, int64(len(b)))
		if n == 0 {
			return b
		}
		b = append(b, buf[:n]...)
	}
}

// parseList reads numbers with white space behind each: children lists, cgroup.procs.
func parseList(b []byte) (list []int) {
	for f := range bytes.FieldsSeq(b) {
		list = append(list, int(number(f)))
	}
	return list
}
