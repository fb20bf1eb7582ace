// Commands beside a client's run: on_failure, and what asks whether the client is alive. They are executed as the client would
// be, each in a tree of its own, and end within a limit.

package procman

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"syscall"
	"time"

	"zhx/procman/logs"
	"zhx/procman/proc"
)

// Execute executes argv as the client would be: its user, directory, environment, limits; argv[0] as in Spec.Command. It belongs to
// no run, and what it prints is the client's. nil: it exited with 0, within limit; else the error says how it ended, or why it was
// not executed (ErrUnknown, ErrClosed among others). It returns when nothing of its tree lives. What does after limit, or when ctx
// or the Set ends, is killed; if something survives that for killWait the error is ErrUnkillable, and so is that of further calls
// for the client, which execute nothing until it is gone. Any goroutine may call it, more than one for a client at a time.
func (s *Set) Execute(ctx context.Context, name string, argv []string, limit time.Duration) error {
	s.mu.Lock()
	i := s.at(name)
	if i < 0 || s.closed {
		defer s.mu.Unlock()
		if s.closed {
			return fmt.Errorf("client %q: %w", name, ErrClosed)
		}
		return fmt.Errorf("client %q: %w", name, ErrUnknown)
	}
	spec, p := s.specs[i], s.progs[i]
	s.loops.Add(1) // the end of the Set waits: it is not closed yet
	s.mu.Unlock()
	defer s.loops.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	return p.host.execute(ctx, &spec, "probe", argv, limit, p.ring)
}

// giveUp executes on_failure.
func (h *system) giveUp(ctx context.Context, s *Spec, ring *logs.Ring) {
	log := h.o.Log.With("client", h.name, "command", s.OnFailure)
	log.Info("on_failure")
	if err := h.execute(ctx, s, "on_failure", s.OnFailure, hookWait, ring); err != nil {
		log.Warn("on_failure failed", "err", err, "next", "the client stays failed")
	}
}

// execute is Execute, for what: on_failure or probe. The ring has more than one pump then: their lines alternate, and it may count
// one that is too long once too often.
func (h *system) execute(ctx context.Context, s *Spec, what string, argv []string, limit time.Duration, ring *logs.Ring) error {
	if _, lives := h.stuck.Load(what); lives {
		return fmt.Errorf("an earlier one lives, %w", ErrUnkillable)
	}
	as := *s
	as.Command, as.TTY = argv, false
	as.FrozenTimeout = 0 // nobody waits for its signs of life: it is not told to give any
	c, err := prepare(&as, h.o.Environ)
	if err != nil {
		return err
	}
	// The names are its own: two commands may be executed at once, and at the same time an earlier program of the same name.
	mark := rand.Text()
	own := what + "." + mark[:8]
	l := &run{log: h.o.Log, fifo: h.fifo(own), drained: make(chan struct{})}
	if _, err = l.output(&as, &c); err != nil {
		return fmt.Errorf("make its output: %w", err)
	}
	logs.RemoveFIFO(l.fifo) // no other zhxd goes on with it, nor is to be kept from starting the client by whoever holds it
	l.Tree = h.o.Kernel.NewTree(h.name+"."+own, 1, mark, c.uid)
	c.Env, c.Tree = append(c.Env, "ZHX_RUN="+mark), l.Tree
	l.Child, err = h.o.Kernel.Start(c.Command)
	c.Output.Close()
	if err != nil {
		l.Tree.Close()
		l.forget()
		return errors.Unwrap(err) // without the tree's name, which is another each time
	}
	go h.pump(l, ring)
	end := func() {
		l.finish()
		l.forget()
	}
	within, cancel := context.WithTimeout(ctx, limit)
	cut := l.WaitEmpty(within) != nil
	cancel()
	if cut && !killed(l.Tree) {
		h.stuck.Store(what, nil)
		go func() { // until it is gone, or this process is
			for !killed(l.Tree) {
			}
			end()
			h.stuck.Delete(what)
		}()
		return fmt.Errorf("%w: %s", ErrUnkillable, l.members())
	}
	exit := <-l.Exited()
	end()
	return verdict(exit, cut, limit, ctx.Err())
}

// killed kills a tree, and tells whether that ended it within killWait.
func killed(t *proc.Tree) bool {
	t.Kill()
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	return t.WaitEmpty(ctx) == nil
}

// verdict says what is wrong with an end; cut: SIGKILL was ours.
func verdict(x proc.Exit, cut bool, limit time.Duration, ended error) error {
	switch {
	case cut && x.Signal == syscall.SIGKILL && ended != nil:
		return fmt.Errorf("killed: %w", ended)
	case cut && x.Signal == syscall.SIGKILL:
		return fmt.Errorf("no end within %v, killed", limit)
	case x.Signal != 0:
		return fmt.Errorf("ended by %s", signalName(x.Signal))
	case x.Code != 0:
		return fmt.Errorf("exit status %d", x.Code)
	}
	return nil
}
