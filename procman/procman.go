// Package procman keeps the clients' processes as the configuration wants them.
//
//	[]Spec ─Apply─> Diff ─> Plan ─┐                         ┌─> host: strays, record, FIFO, fork, kill, reap (life.go)
//	zhxctl ─Start, Stop, Restart ─┼─message─> program ──────┤
//	watchdog ─Expire(name, run) ──┘  a goroutine a client   ├─> Events: Began, Running, Ended
//	kernel ─exited, frozen, tree empty─^    step() decides  └─> Status: a published snapshot, asking never waits
//
// A program (program.go) owns all that concerns one client: mailbox, one timer, the machine (state.go), the run that
// lives. The Set only knows which programs there are. Desired (up, down) and actual state are two fields:
//
//	stopped ──start──> waiting ──nothing in the way──> starting ──spawned──> running ──stop, lapse, frozen, its end──┐
//	   ^                  │  ^                            │ ^                                                      v
//	   │      unverified  v  │ restart_delay_max          │ │ tree empty: at once, or a delay ── backoff <── stopping
//	   │                 failed <──── spawn failed ───────┘ └───────────────────────────────────────┘            │  ^
//	   └── down, tree empty ── stopping;   restart = never, on-failure: exited                KillWait over: unkillable
//
// A stop is honoured in every state, a start by hand too, at once in backoff, failed and exited. A client whose processes
// survive SIGKILL is unkillable until they are gone, killed again and again: it gets no twin, then goes on. A client is failed when something
// that cannot be proved to be its own may still live (tried again every restart_delay_max, or by a start), or when it
// could not be spawned and restart = "never".
package procman

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"zhx/procman/logs"
	"zhx/procman/proc"
)

const (
	KillWait  = 5 * time.Second // from SIGKILL to state unkillable, and to each further SIGKILL; for a leftover to state failed
	StrayWait = 5 * time.Second // from SIGTERM to SIGKILL for a stray copy, then again to state failed
	partMax   = 8               // lines about processes that match a client only in part; the rest is one line with their number
	DrainWait = time.Second     // for the last output of an empty tree, if a stranger holds the FIFO; then it is cut off
)

var (
	ErrUnknown    = errors.New("no such client")
	ErrSuperseded = errors.New("superseded by another request")
	ErrClosed     = errors.New("zhxd is shutting down")
	ErrUnkillable = errors.New("its processes survive SIGKILL")
)

// Events tells the daemon about runs. The methods are called on the program's goroutine, one at a time a client, and must
// not block nor wait for a Set method other than Status and Ring.
type Events interface {
	Began(name string, run uint64, t *proc.Tree)  // before the fork: what the run does from its first instruction on is known
	Running(name string, run uint64, pid int)     // the program executes
	Ended(name string, run uint64, last LastExit) // the tree is empty, its output drained; also after a spawn that failed
}

// Options are what a Set needs. All are required but Output.
type Options struct {
	Dir     string                           // state directory, 0700: a FIFO a run, a record a client
	Environ []string                         // PATH, LANG, TZ, ZHX_SOCKET are passed on to children, all else is not
	Kernel  *proc.Kernel                     // one a process
	Log     *slog.Logger                     // attributes: client, run, pid, err, next
	Events  Events                           //
	Output  func(client string, line []byte) // each line that a client prints; must not wait nor keep it; nil: only the rings
}

// A Set is all clients. Any goroutine may use it.
type Set struct {
	// Immutable:
	o       Options
	newHost func(name string) host // the system; a fake in tests
	ctx     context.Context        // ends when Shutdown is through
	cancel  context.CancelFunc
	loops   sync.WaitGroup

	applying sync.Mutex // one Apply or Shutdown at a time; held while programs are told

	mu     sync.Mutex // leaf; guards the rest
	specs  []Spec
	progs  []*program   // in the order of the file, then removed ones that still stop
	tried  <-chan error // answers when the last client of the last Apply was spawned or could not be
	closed bool
}

// New makes an empty Set. Leftovers, then Apply fill it.
func New(o Options) *Set {
	boot := proc.BootID()
	return newSet(o, func(name string) host { return &system{name: name, boot: boot, o: o} })
}

func newSet(o Options, newHost func(string) host) *Set {
	s := &Set{o: o, newHost: newHost}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Apply makes specs the configuration: removed clients stop, changed ones restart or take the change live, new ones with
// autostart start in the order of the file, each after the one before was spawned or could not be, and after the removed
// ones are gone. It does not wait for any of this (Wait does). After Shutdown it does nothing.
func (s *Set) Apply(specs []Spec) Plan {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	plan, old, tried, closed := Diff(s.specs, specs), s.progs, s.tried, s.closed
	s.mu.Unlock()
	if closed {
		return nil
	}
	is, was := byName(specs), map[string]*program{}
	for _, p := range old {
		was[p.name] = p
	}
	var gone []<-chan error
	var progs []*program
	for _, row := range plan {
		p, spec := was[row.Name], is[row.Name]
		if row.Action == ActStop {
			reply := make(chan error, 1)
			p.tell(stopMsg{why: "removed from the configuration", reply: reply})
			gone = append(gone, reply)
			continue
		}
		delete(was, row.Name)
		if p == nil || row.Action != ActKeep && !p.tell(specMsg{spec, row.Action}) {
			p = s.add(spec)
		}
		progs = append(progs, p)
		if row.Action == ActStart && spec.Autostart {
			if gone != nil {
				tried, gone = all(append(gone, tried)), nil
			}
			reply := make(chan error, 1)
			p.tell(startMsg{after: tried, reply: reply})
			tried = all([]<-chan error{tried, reply}) // a client stopped by hand answers at once: not for those before it
		}
	}
	for _, p := range old {
		if was[p.name] != nil && !p.over() {
			progs = append(progs, p)
		}
	}
	s.mu.Lock()
	s.specs, s.progs, s.tried = slices.Clone(specs), progs, tried
	s.mu.Unlock()
	return plan
}

// all answers when each of replies has; a nil one counts as answered.
func all(replies []<-chan error) <-chan error {
	done := make(chan error)
	go func() {
		defer close(done)
		for _, r := range replies {
			if r != nil {
				<-r
			}
		}
	}()
	return done
}

func (s *Set) add(spec Spec) *program {
	p := newProgram(spec, s.newHost(spec.Name), s.o)
	s.loops.Go(func() { p.loop(s.ctx) })
	return p
}

// Wait returns when every client that Apply is to start was spawned or could not be, or when ctx ends.
func (s *Set) Wait(ctx context.Context) error {
	s.mu.Lock()
	tried := s.tried
	s.mu.Unlock()
	if tried == nil {
		return nil
	}
	select {
	case <-tried:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Start spawns the client unless it runs, at once also in backoff, and ends its being stopped by hand. It returns when the
// client runs; with an error when it could not be spawned (then it is tried again as configured), when somebody asked for
// the contrary meanwhile (ErrSuperseded), or with ctx's, which takes nothing back. by is for the log: who asks.
func (s *Set) Start(ctx context.Context, name, by string) error {
	return s.ask(ctx, name, func(reply chan<- error) message { return startMsg{by: by, reply: reply} })
}

// Stop ends the client's whole tree; it stays stopped, over a restart of zhxd too, until somebody starts it. It returns when
// the tree is empty, with ErrUnkillable when that cannot be brought about.
func (s *Set) Stop(ctx context.Context, name, by string) error {
	return s.ask(ctx, name, func(reply chan<- error) message { return stopMsg{by: by, reply: reply} })
}

// Restart stops the client if it runs, and starts it. It returns when the new run is spawned, else as Start does.
func (s *Set) Restart(ctx context.Context, name, by string) error {
	return s.ask(ctx, name, func(reply chan<- error) message { return startMsg{by: by, fresh: true, reply: reply} })
}

func (s *Set) ask(ctx context.Context, name string, m func(chan<- error) message) error {
	p, err := s.find(name)
	if err != nil {
		return err
	}
	reply := make(chan error, 1)
	if !p.tell(m(reply)) {
		return fmt.Errorf("client %q: %w", name, ErrClosed)
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return fmt.Errorf("client %q is %s: %w", name, p.status.Load().State, ctx.Err())
	}
}

// find returns the program of a configured client.
func (s *Set) find(name string) (*program, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.progs[:min(len(s.specs), len(s.progs))] {
		if p.name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("client %q: %w", name, ErrUnknown)
}

// Expire is the watchdog's verdict: the tree of that run is killed, and the client goes on as after any failure. A run
// that is over is left alone. why is for people.
func (s *Set) Expire(name string, run uint64, why string) {
	if p, err := s.find(name); err == nil {
		p.tell(expireMsg{run, why})
	}
}

// Status is a snapshot of every client in the order of the file, then of removed ones that still stop.
func (s *Set) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for _, p := range s.progs {
		if !p.over() {
			all = append(all, *p.status.Load())
		}
	}
	return all
}

// Ring is what the client prints, nil if there is no such client.
func (s *Set) Ring(name string) *logs.Ring {
	if p, err := s.find(name); err == nil {
		return p.ring
	}
	return nil
}

// Shutdown stops all clients, one after the other in reverse order, and ends the Set. When ctx ends, what is left is killed
// without further ado. The error names clients that survive that.
func (s *Set) Shutdown(ctx context.Context) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	s.closed = true
	progs := s.progs
	s.mu.Unlock()
	var errs []error
	for _, p := range slices.Backward(progs) {
		reply := make(chan error, 1)
		if !p.tell(stopMsg{why: "zhxd is shutting down", hurry: ctx.Err() != nil, reply: reply}) {
			continue
		}
		select {
		case err := <-reply:
			errs = append(errs, err)
		case <-ctx.Done():
			hurried := make(chan error, 1)
			p.tell(stopMsg{why: "zhxd is shutting down", hurry: true, reply: hurried})
			errs = append(errs, <-reply)
		}
	}
	s.cancel()
	s.loops.Wait()
	return errors.Join(errs...)
}
