// The real host of a program: one run's way into the world and out of it. Every system call on processes is proc's.

package procman

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"zhx/procman/logs"
	"zhx/procman/notify"
	"zhx/procman/proc"
)

type system struct {
	name    string
	boot    string // boot id
	o       Options
	ignored *ignored

	stuck sync.Map // what execute executed and could not kill: it lives

	// Owned by the program: the last spec spawned, and its sum.
	spec *Spec
	sum  string
}

// clear ends what the last zhxd left of this client, then the copies that nobody manages.
func (h *system) clear(ctx context.Context, s *Spec, r record) error {
	if err := h.endLeftover(ctx, r); err != nil || !s.KillStrays {
		return err
	}
	c, err := prepare(s, h.o.Environ)
	if err != nil {
		return nil // the spawn will say what is wrong
	}
	full, part, err := h.o.Kernel.Strays(proc.Query{Path: c.Path, Argv: c.Argv, UID: c.uid, Socket: c.socket})
	if err != nil {
		return fmt.Errorf("look for unmanaged copies: %w", err)
	}
	for i, p := range part {
		if i == partMax {
			h.o.Log.Warn("more look like unmanaged copies", "client", h.name, "count", len(part)-i, "next", "left alone")
			break
		}
		h.o.Log.Warn("looks like an unmanaged copy", "client", h.name, "pid", p.PID, "why", p.Reason, "next", "left alone")
	}
	for _, f := range full {
		h.o.Log.Warn("unmanaged copy", "client", h.name, "pid", f.PID, "next", fmt.Sprintf("SIGTERM, then SIGKILL after %v", strayWait))
		if err := endStray(ctx, h.o.Kernel, f.ID); err != nil {
			return fmt.Errorf("stop unmanaged copy, pid %d: %w", f.PID, err)
		}
	}
	return nil
}

// spawn starts run r.Run. The order is that of decision 8: intent, FIFO, fork, record.
func (h *system) spawn(s *Spec, r *record, in inlet) (_ life, err error) {
	c, err := prepare(s, h.o.Environ)
	if err != nil {
		return nil, err
	}
	l := h.newRun(r.Run)
	*r = record{Version: r.Version, Client: r.Client, StoppedBy: r.StoppedBy, Receiver: r.Receiver, Paused: r.Paused, PausedBy: r.PausedBy, Run: r.Run, Mark: rand.Text(), Boot: h.boot,
		UID: c.uid, Sum: h.sumOf(s), TTY: s.TTY, Began: int64(proc.Uptime())}
	l.Tree = h.o.Kernel.NewTree(s.Name, r.Run, r.Mark, c.uid)
	r.Cgroup = l.Tree.Cgroup()
	defer func() {
		if err != nil {
			l.Tree.Close()
			l.forget()
		}
	}()
	if err := h.save(*r); err != nil {
		return nil, errOurs{err}
	}
	childEnd, err := l.output(s, &c)
	if err != nil {
		err = fmt.Errorf("make its output: %w", err)
		if !errors.Is(err, fs.ErrPermission) { // its user =, where zhxd is not root
			err = errOurs{err}
		}
		return nil, err
	}
	defer childEnd.Close()
	if err = h.listen(l, in); proc.Shortage(err) {
		return nil, err
	}
	h.unheard(l, err)
	if len(l.sockets) > 0 {
		c.Env = append(c.Env, "NOTIFY_SOCKET="+l.sockets[0].Path())
	}
	c.Env, c.Tree = append(c.Env, "ZHX_RUN="+r.Mark), l.Tree
	h.o.Events.Began(s.Name, r.Run, l.Tree)
	h.failpoint("before-fork")
	if l.Child, err = h.o.Kernel.Start(c.Command); err != nil {
		return nil, err
	}
	h.failpoint("after-fork")
	r.PID, r.Start = l.PID, l.Child.Start
	h.failpoint("before-record")
	if err := h.save(*r); err != nil {
		h.o.Log.Error("record not written", "client", s.Name, "run", r.Run, "err", err, "next", "after a crash the run is found by its mark alone")
	}
	l.pump = func() { h.pump(l, in.ring) }
	return l, nil
}

// sumOf is restartSum, which takes its time, once for each spec.
func (h *system) sumOf(s *Spec) string {
	if h.spec != s {
		h.spec, h.sum = s, restartSum(*s)
	}
	return h.sum
}

func (h *system) newRun(number uint64) *run {
	return &run{log: h.o.Log, fifo: h.fifo(strconv.FormatUint(number, 10)), drained: make(chan struct{})}
}

func (h *system) failpoint(point string) {
	if h.o.Fail != nil {
		h.o.Fail(point)
	}
}

// pump takes in what the run prints until nobody can print any more.
func (h *system) pump(l *run, ring *logs.Ring) {
	defer close(l.drained)
	logs.Pump(l.out, ring, func(line []byte) {
		if h.o.Output != nil && !ring.HasFile() {
			h.o.Output(h.name, line)
		}
	})
}

// errOurs is an error that has nothing to do with the client: a run directory that is full or gone.
type errOurs struct{ error }

func (e errOurs) Unwrap() error { return e.error }

// short tells whether a start failed for what the board, or zhxd, lacks.
func short(err error) bool { return proc.Shortage(err) || errors.As(err, new(errOurs)) }

// listen opens the run's notify socket.
func (h *system) listen(l *run, in inlet) error {
	socket, err := notify.Listen(filepath.Join(h.o.Notify, fmt.Sprintf("%s.%d", h.name, l.Run)), l.UID)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.sockets = append(l.sockets, socket)
	l.mu.Unlock()
	l.relisten = func() { h.unheard(l, h.listen(l, in)) }
	in.serve(func() {
		err := socket.Serve(h.judge(l, in))
		if err != nil {
			h.o.Log.Error("notify socket failed", "client", h.name, "run", l.Run, "err", err, "next", "what it says by sd_notify is not heard")
		}
	})
	return nil
}

// unheard: a run can do without a notify socket.
func (h *system) unheard(l *run, err error) {
	if err != nil {
		h.o.Log.Error("no notify socket", "client", h.name, "run", l.Run, "err", err, "next", "what it says by sd_notify is not heard")
	}
}

// judge lets those be heard who may speak for the run.
func (h *system) judge(l *run, in inlet) func(notify.Message) {
	told, refused := false, false
	refuse := func(err error) {
		h.ignored.refused.Add(1)
		if !refused {
			refused = true
			h.o.Log.Warn("notification refused", "client", h.name, "run", l.Run, "err", err, "next", "ignored; further ones are not told")
		}
	}
	return func(n notify.Message) {
		// A sender is commonly dead before it is read. Who lives must be of the run; who does not, of its user.
		if n.UID < 0 {
			refuse(errors.New("its sender is not known here, as one of another pid namespace"))
			return
		}
		if n.UID != l.UID && n.UID != 0 {
			refuse(fmt.Errorf("uid %d is not the client's; a program that changes its user itself is to be given it by user =", n.UID))
			return
		}
		if st, err := proc.ReadStat(n.PID); err == nil && st.Living() && h.o.Kernel.TreeOf(st.ID) != l.Tree {
			refuse(fmt.Errorf("process %d is not in the tree of the run", n.PID))
			return
		}
		if n.Malformed != nil {
			h.ignored.malformed.Add(1)
		}
		if n.Malformed != nil && !told {
			told = true
			h.o.Log.Warn("malformed notification", "client", h.name, "run", l.Run, "err", n.Malformed, "next", "ignored; further ones are not told")
		}
		in.said(l.Run, n)
	}
}

// output makes both ends of what the child writes into, and gives the command its own.
func (l *run) output(s *Spec, c *prepared) (childEnd *os.File, err error) {
	if s.TTY {
		l.out, c.TTY, err = proc.OpenPTY()
		if err == nil && c.Cred != nil {
			c.TTY.Chown(c.uid, c.gid) // so that the child can open it by its name; it can do without
		}
		return c.TTY, err
	}
	l.out, c.Output, err = proc.MakeFIFO(l.fifo, c.uid, c.gid)
	if errors.Is(err, syscall.EEXIST) { // of a run whose record somebody removed
		logs.RemoveFIFO(l.fifo)
		l.out, c.Output, err = proc.MakeFIFO(l.fifo, c.uid, c.gid)
	}
	return c.Output, err
}

// A run is the real life.
type run struct {
	*proc.Child
	*proc.Tree
	log      *slog.Logger
	out      *os.File // our end of the FIFO, or the pseudo-terminal's master
	fifo     string   // not there with a pseudo-terminal
	relisten func()   // at its notify socket, once there was one
	pump     func()   // takes in what it prints, to the end
	drained  chan struct{}

	mu      sync.Mutex       // for others than the program
	sockets []*notify.Socket // at one path, the oldest first; none: it is not heard
}

func (l *run) listen()       { go l.pump() }
func (l *run) pid() int      { return l.PID }
func (l *run) start() uint64 { return l.Child.Start }

// lead makes another process of the tree the leader, which sd_notify(3) calls MAINPID.
func (l *run) lead(pid int) error {
	st, err := proc.ReadStat(pid)
	if err != nil {
		return err
	}
	child, err := l.Lead(st.ID)
	if err == nil {
		l.Child = child
	}
	return err
}

func (l *run) unheard() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.sockets, (*notify.Socket).Waiting)
}

// hear makes the notify socket again where its path was removed. Who has connected to the earlier one is heard by that.
func (l *run) hear() {
	if len(l.sockets) == 0 {
		return
	}
	if _, err := os.Lstat(l.sockets[0].Path()); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	if len(l.sockets) == socketsMax {
		l.sockets[0].Close()
		l.mu.Lock()
		l.sockets = slices.Delete(l.sockets, 0, 1)
		l.mu.Unlock()
	}
	l.relisten()
}

func (l *run) deafen() {
	for _, s := range l.sockets {
		s.Close()
	}
}

// leave lets the run go on without us. What it prints is taken in until this process ends, then it stays in the FIFO for the
// next zhxd.
func (l *run) leave() { l.deafen() } // the next zhxd makes its socket anew, at the same path

func (l *run) look() kind {
	tracer, err := proc.Tracer(l.PID)
	st, err2 := proc.ReadStat(l.PID)
	switch {
	case err != nil || err2 != nil || st.ID != l.Child.ID || st.State != 'T' && st.State != 't': // t: stopped by its tracer
		return evThawed
	case tracer != 0:
		return evFrozen
	}
	return evStuck
}

func (l *run) poke(sig syscall.Signal) error { return proc.SignalVerified(l.Child.ID, sig) }

func (l *run) dumping() bool {
	dumping, err := proc.CoreDumping(l.PID)
	return err == nil && dumping
}

func (l *run) members() string {
	ids, err := l.Members()
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, id := range ids {
		st, err := proc.ReadStat(id.PID)
		if err == nil && st.ID == id && st.Living() {
			fmt.Fprintf(&b, "%d %s (state %c), ", id.PID, st.Comm, st.State)
		}
	}
	return strings.TrimSuffix(b.String(), ", ")
}

// finish drains to the end of file, which an empty tree brings about at once.
func (l *run) finish() {
	wait := time.AfterFunc(drainWait, func() {
		l.log.Warn("output cut off", "client", l.Name, "run", l.Run, "err", "a process outside of its tree holds it open", "next", "it is closed")
		l.out.Close()
	})
	<-l.drained
	wait.Stop()
	l.Tree.Close()
}

func (l *run) forget() {
	if l.Child != nil {
		l.Reap()
	}
	l.out.Close()
	logs.RemoveFIFO(l.fifo)
	l.deafen()
}

// endStray stops one process for good: it returns when it is gone.
func endStray(ctx context.Context, k *proc.Kernel, id proc.ID) error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		err := proc.SignalVerified(id, sig)
		if err == nil {
			wait, cancel := context.WithTimeout(ctx, strayWait)
			err = k.WaitGone(wait, id)
			cancel()
		}
		if err == nil || errors.Is(err, proc.ErrGone) || errors.Is(err, proc.ErrRecycled) {
			return nil
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return errors.New("it survives SIGKILL")
}
