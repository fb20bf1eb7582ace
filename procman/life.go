// The real host of a program: one run's way into the world and out of it. Every system call on processes is proc's.

package procman

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"zhx/procman/logs"
	"zhx/procman/proc"
)

type system struct {
	name string
	boot string // boot id
	o    Options
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
		h.o.Log.Warn("unmanaged copy", "client", h.name, "pid", f.PID, "next", fmt.Sprintf("SIGTERM, then SIGKILL after %v", StrayWait))
		if err := endStray(ctx, h.o.Kernel, f.ID); err != nil {
			return fmt.Errorf("stop unmanaged copy, pid %d: %w", f.PID, err)
		}
	}
	return nil
}

// spawn starts run r.Run. The order is that of decision 8: intent, FIFO, fork, record.
func (h *system) spawn(s *Spec, r *record, ring *logs.Ring) (_ life, err error) {
	c, err := prepare(s, h.o.Environ)
	if err != nil {
		return nil, err
	}
	l := &run{log: h.o.Log, fifo: h.fifo(strconv.FormatUint(r.Run, 10)), drained: make(chan struct{})}
	r.Mark, r.Boot, r.UID, r.PID, r.Start = rand.Text(), h.boot, c.uid, 0, 0
	l.Tree = h.o.Kernel.NewTree(s.Name, r.Run, r.Mark, c.uid)
	r.Cgroup = l.Tree.Cgroup()
	defer func() {
		if err != nil {
			l.Tree.Close()
			l.forget()
		}
	}()
	if err := h.save(*r); err != nil {
		return nil, err
	}
	childEnd, err := l.output(s, &c)
	if err != nil {
		return nil, fmt.Errorf("make its output: %w", err)
	}
	defer childEnd.Close()
	c.Env, c.Tree = append(c.Env, "ZHX_RUN="+r.Mark), l.Tree
	h.o.Events.Began(s.Name, r.Run, l.Tree)
	if l.Child, err = h.o.Kernel.Start(c.Command); err != nil {
		return nil, err
	}
	r.PID, r.Start = l.PID, l.Child.Start
	if err := h.save(*r); err != nil {
		h.o.Log.Error("record not written", "client", s.Name, "run", r.Run, "err", err, "next", "after a crash the run is found by its mark alone")
	}
	go func() {
		defer close(l.drained)
		logs.Pump(l.out, ring, func(line []byte) {
			if h.o.Output != nil {
				h.o.Output(s.Name, line)
			}
		})
	}()
	return l, nil
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
		os.Remove(l.fifo)
		l.out, c.Output, err = proc.MakeFIFO(l.fifo, c.uid, c.gid)
	}
	return c.Output, err
}

// A run is the real life.
type run struct {
	*proc.Child
	*proc.Tree
	log     *slog.Logger
	out     *os.File // our end of the FIFO, or the pseudo-terminal's master
	fifo    string   // not there with a pseudo-terminal
	drained chan struct{}
}

func (l *run) pid() int { return l.PID }

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
	wait := time.AfterFunc(DrainWait, func() {
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
	syscall.Unlink(l.fifo)
}

// endStray stops one process for good: it returns when it is gone.
func endStray(ctx context.Context, k *proc.Kernel, id proc.ID) error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		err := proc.SignalVerified(id, sig)
		if err == nil {
			wait, cancel := context.WithTimeout(ctx, StrayWait)
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
