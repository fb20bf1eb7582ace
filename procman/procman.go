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
//	   └── down, tree empty ── stopping;   restart = never, on-failure: exited                killWait over: unkillable
//
// A stop is honoured in every state, a start by hand too, at once in backoff, failed and exited. A client whose processes
// survive SIGKILL is unkillable until they are gone, killed again and again: it gets no twin, then goes on. A client is failed when something
// that cannot be proved to be its own may still live (tried again every restart_delay_max, or by a start), when it
// could not be spawned and restart = "never", or when its start_limit is reached.
//
// After a lapse the leader gets abort_signal, if the client has one, and abort_timeout to tell what it knows; SIGKILL waits while the
// kernel writes its core. A stop has stop_signal and stop_timeout, and a run that is in state T nothing but SIGKILL.
//
// A run is ready when it is spawned, has registered with the broker or has said READY=1, as the client's ready has it. Who
// depends on a client waits for that before each spawn (order.go), and is stopped before it; levels of clients that do not
// depend on each other go in parallel. What a run says by sd_notify(3) comes through a socket of its own (package notify).
package procman

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"zhx/procman/logs"
	"zhx/procman/proc"
)

const (
	killWait  = 5 * time.Second  // from SIGKILL to state unkillable, and to each further SIGKILL; for a leftover to state failed
	strayWait = 5 * time.Second  // from SIGTERM to SIGKILL for a stray copy, then again to state failed
	partMax   = 8                // lines about processes that match a client only in part; the rest is one line with their number
	drainWait = time.Second      // for the last output of an empty tree, if a stranger holds the FIFO; then it is cut off
	extendMax = time.Hour        // more time than this is not given at a time, whatever EXTEND_TIMEOUT_USEC asks for
	hookWait  = 30 * time.Second // for on_failure; then it is killed

	// A start for which the board had no descriptors, memory, processes or room is tried again after this, and does not count: its
	// client has done nothing. The same shortage is told once.
	shortDelay = time.Second

	coreLook = 100 * time.Millisecond // between two looks at whether the kernel writes the core still: there is no event for it
	coreMax  = time.Minute            // SIGKILL waits so long for a core; then the core is cut off
	coreEnd  = time.Second            // and so long, when the core is written, for what the kernel does next: to end the process

	deathsMax  = 16 // ends of runs that are kept of a client; the oldest goes
	lastLines  = 8  // lines of output that are kept with each
	socketsMax = 4  // notify sockets of a run, if the directory is removed again and again; the oldest is closed

	lastWordWait = 50 * time.Millisecond // for the datagrams of a leader that has ended: one may name its successor

	// The board's restarts that nobody asked for: so many at once, then so many a second; further ones wait. A client that is
	// stable for 10 ms is never held up by it alone.
	restartBurst = 10
	restartRate  = 100
)

var (
	ErrUnknown    = errors.New("no such client")
	ErrSuperseded = errors.New("superseded by another request")
	ErrClosed     = errors.New("zhxd is shutting down")
	ErrUnkillable = errors.New("its processes survive SIGKILL")
	ErrNoProcess  = errors.New("it has no process")
)

// Events tells the daemon about runs. The methods are called on the program's goroutine, one at a time a client, and must
// not block nor wait for a Set method other than Status and Ring.
type Events interface {
	Began(name string, run uint64, t *proc.Tree)  // before the fork: what the run does from its first instruction on is known
	Running(name string, run uint64, pid int)     // the program executes
	Ended(name string, run uint64, last LastExit) // the tree is empty, its output drained; also after a spawn that failed

	Paused(name string, left time.Duration, text string) // before all else: under an earlier zhxd somebody had paused its watchdog

	Armed(name string, run uint64) // an adopted run had armed its watchdog
	// Said is what the watchdog has to know of a word by sd_notify(3). It is called on the goroutine of the run's notify socket,
	// before anything else of that word is carried out; and at an adoption, for the timeout that the run had asked for.
	Said(name string, run uint64, sign Sign)
	// GaveUp: the start limit is reached, and on_failure has ended if there is one; why is for people. It is called on a
	// goroutine of its own that no method of the Set waits for: it may take its time and call any. Not while the Set ends.
	GaveUp(name string, run uint64, why string)
}

// A Sign is never zero.
type Sign struct {
	Alive      bool          // WATCHDOG=1
	Ready      bool          // READY=1
	Timeout    time.Duration // WATCHDOG_USEC, for the signs of life to come; 0: not said (or "off", which a client does not decide)
	Extend     time.Duration // EXTEND_TIMEOUT_USEC, as asked for, not cut; 0: not said
	Checkpoint string        // X_ZHX_CHECKPOINT; "": not said
}

// Options are what a Set needs. All are required but Spare, Output, Settle, Changed and Fail.
type Options struct {
	Dir     string                           // state directory, 0700: a FIFO a run, a record a client
	Notify  string                           // directory of the runs' notify sockets, to be passed by every user: 0711
	Environ []string                         // PATH, LANG, TZ, ZHX_SOCKET are passed on to children, all else is not
	Kernel  *proc.Kernel                     // one a process
	Log     *slog.Logger                     // attributes: client, run, pid, err, next
	Events  Events                           //
	Spare   func(client string) bool         // its watchdog is paused or only observes: no run is ended for a lapse; asked at every step, must not block; nil: none is
	Output  func(client string, line []byte) // each line that a client without a log file prints; must not wait nor keep it; nil: only the rings
	Settle  func()                           // called by Shutdown after each level: what those said last can still be heard; nil: not
	Changed func(client string)              // what StatusOf says of its runs has changed; called on the program's goroutine, must not block; nil: not
	Fail    func(point string)               // in tests of a crash: called at before-fork, after-fork, before-record; nil: not
}

// A Set is all clients. Any goroutine may use it.
type Set struct {
	// Immutable:
	o       Options
	newHost func(name string) host // the system; a fake in tests
	ctx     context.Context        // ends when Shutdown is through
	cancel  context.CancelFunc
	loops   sync.WaitGroup
	ears    sync.WaitGroup // the runs' notify sockets
	budget  *logs.Budget
	bucket  *rate.Limiter

	applying sync.Mutex // one Apply or Shutdown at a time; held while programs are told
	applied  int64      // applying guards it: number of the last Apply

	asked   atomic.Int64 // requests by hand so far
	ignored ignored

	mu     sync.Mutex // guards the rest; under it only that of a readiness is taken
	specs  []Spec
	progs  []*program   // in the order of the file, then removed ones that still stop
	turned <-chan error // answers when the file's order keeps nobody waiting any more
	tried  <-chan error // answers when every client of each Apply was spawned or could not be
	closed bool
}

// New makes an empty Set. Leftovers, then Apply fill it.
func New(o Options) *Set {
	boot, s := proc.BootID(), newSet(o, nil)
	s.newHost = func(name string) host { return &system{name: name, boot: boot, o: o, ignored: &s.ignored} }
	return s
}

// ignored counts what all runs have said by sd_notify.
type ignored struct{ refused, malformed atomic.Int64 }

// Ignored counts what came to the runs' notify sockets and was not carried out: from who may not speak for the run, and wholly or
// in part what says nothing.
func (s *Set) Ignored() (refused, malformed int64) {
	return s.ignored.refused.Load(), s.ignored.malformed.Load()
}

func newSet(o Options, newHost func(string) host) *Set {
	s := &Set{o: o, newHost: newHost, budget: logs.NewBudget(logs.BudgetSize), bucket: rate.NewLimiter(restartRate, restartBurst)}
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
	plan, old, turned, closed := Diff(s.specs, specs), s.progs, s.turned, s.closed
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.applied++
	// First all programs, so that they find each other; then what each is to do.
	was, is := map[string]*program{}, byName(specs)
	for _, p := range old {
		was[p.name] = p
	}
	rows := plan[len(plan)-len(specs):] // Diff has them in this order
	var progs, ending, gone []*program
	for i, spec := range specs {
		p := was[spec.Name]
		back := specMsg{spec: spec, fresh: true, number: s.applied} // of no consequence if it stops already
		if p == nil || rows[i].Action == ActStart && !p.tell(back) {
			p = s.add(spec)
		}
		progs = append(progs, p)
	}
	for _, row := range plan[:len(plan)-len(specs)] {
		gone = append(gone, was[row.Name])
	}
	for _, p := range old {
		if _, stays := is[p.name]; !stays && !p.over() {
			ending = append(ending, p)
		}
	}
	s.mu.Lock()
	depth := levels(s.specs)
	s.specs, s.progs = slices.Clone(specs), append(slices.Clip(progs), ending...)
	s.mu.Unlock()

	turned = all([]<-chan error{turned, s.dismiss(byLevel(gone, depth), s.applied)})
	var tried []<-chan error
	var up []string
	for i, row := range rows {
		p, spec := progs[i], specs[i]
		if row.Action == ActKeep {
			continue
		}
		switch change := (specMsg{spec: spec, fresh: row.Action == ActRestart, number: s.applied}); {
		case change.fresh: // after its dependants
			s.lower(p, change)
		case row.Action == ActLive:
			p.tell(change)
		case spec.Autostart:
			turn, reply, begun := make(chan error, 1), make(chan error, 1), make(chan struct{})
			if m := (startMsg{begun: begun, after: turned, turn: turn, reply: reply}); p.tell(m) {
				<-begun // who looks from now on sees that it is to run
			} else {
				m.refuse(nil)
			}
			turned = all([]<-chan error{turned, turn}) // a client stopped by hand answers at once: not for those before it
			tried = append(tried, reply)
		}
		if st := p.status.Load(); (spec.Autostart || st.Wanted) && st.StoppedBy == "" {
			up = append(up, row.Name)
		}
	}
	s.raise(up...)
	s.mu.Lock()
	s.turned, s.tried = turned, all(append(tried, s.tried))
	s.mu.Unlock()
	return plan
}

// dismiss stops programs that the configuration has no more, level by level, and answers when they are gone.
func (s *Set) dismiss(above [][]*program, number int64) <-chan error {
	done := make(chan error)
	go func() {
		defer close(done)
		for _, level := range above {
			var replies []<-chan error
			for _, p := range level {
				reply := make(chan error, 1)
				p.put(stopMsg{why: "removed from the configuration", number: number, reply: reply}, nil)
				replies = append(replies, reply)
			}
			<-all(replies)
		}
	}()
	return done
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
	p := newProgram(spec, s.newHost(spec.Name), s)
	s.loops.Go(func() { p.loop(s.ctx) })
	return p
}

// Wait returns when every client that Apply is to start was spawned or could not be, or when ctx ends; the error names who is
// not, and whom it waits for.
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
	}
	var late []string
	for _, st := range s.Status() {
		if st.State == Waiting || st.State == Starting {
			late = append(late, st.Name+" "+st.Outlook)
		}
	}
	return fmt.Errorf("not started yet: %s: %w", strings.Join(late, ", "), ctx.Err())
}

// Start spawns the client unless it runs, at once also in backoff, and ends its being stopped by hand. What it depends on
// is started before, unless it was stopped by hand. It returns when the
// client is ready; with an error when it could not be spawned (then it is tried again as configured), when somebody asked for
// the contrary meanwhile (ErrSuperseded), or with ctx's, which takes nothing back. by is for the log: who asks.
func (s *Set) Start(ctx context.Context, name, by string) error {
	s.raise(name)
	asked := s.asked.Add(1)
	return s.ask(ctx, name, hand, func(reply chan<- error) request { return startMsg{by: by, asked: asked, reply: reply} })
}

// Stop ends the client's whole tree, after those who depend on it, which wait then; it stays stopped, over a restart of zhxd
// too, until somebody starts it. It returns when the tree is empty, with ErrUnkillable when that cannot be brought about.
func (s *Set) Stop(ctx context.Context, name, by string) error {
	asked := s.asked.Add(1)
	return s.ask(ctx, name, s.lower, func(reply chan<- error) request { return stopMsg{by: by, asked: asked, reply: reply} })
}

// Restart stops the client if it runs, and starts it, around those who depend on it. It returns when the new run is ready,
// else as Start does.
func (s *Set) Restart(ctx context.Context, name, by string) error {
	s.raise(name)
	asked := s.asked.Add(1)
	return s.ask(ctx, name, s.lower, func(reply chan<- error) request {
		return startMsg{by: by, asked: asked, fresh: true, reply: reply}
	})
}

// Kill sends sig to the leader of the run, SIGKILL to its whole tree, and returns when that is done: ErrNoProcess where none
// lives. What follows, should the run end of it, is as after any end that nobody asked for.
func (s *Set) Kill(ctx context.Context, name, by string, sig syscall.Signal) error {
	return s.ask(ctx, name, hand, func(reply chan<- error) request { return killMsg{by: by, sig: sig, reply: reply} })
}

// Reset forgets the failures of a client: its start limit and its delay begin anew. A backoff that is under way is cut to
// RestartDelay; a client that has given up is stopped, and its next start an ordinary one.
func (s *Set) Reset(ctx context.Context, name, by string) error {
	return s.ask(ctx, name, hand, func(reply chan<- error) request { return resetMsg{by: by, reply: reply} })
}

func hand(p *program, m request) bool { return p.tell(m) }

func (s *Set) ask(ctx context.Context, name string, tell func(*program, request) bool, m func(chan<- error) request) error {
	p, err := s.find(name)
	if err != nil {
		return err
	}
	reply := make(chan error, 1)
	if !tell(p, m(reply)) {
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
	if i := s.at(name); i >= 0 {
		return s.progs[i], nil
	}
	return nil, fmt.Errorf("client %q: %w", name, ErrUnknown)
}

// at is where specs, and progs, have a configured client; -1: there is none of that name. mu is held.
func (s *Set) at(name string) int {
	return slices.IndexFunc(s.specs, func(spec Spec) bool { return spec.Name == name })
}

// Expire is the watchdog's verdict: abort_signal to the leader of that run if the client has one, and once that has ended,
// or not in time, SIGKILL to its tree; the client goes on as after any failure. A run that is over is left alone, and so is one
// that Options.Spare spares. why is for people. Expire and Warn wait for the client's loop.
func (s *Set) Expire(name string, run uint64, why string) { s.note(name, expireMsg{run, why}) }

// Warn sends sig to the leader of that run, for it to tell what it does while it may be about to lapse. A run that is ending or
// over is left alone.
func (s *Set) Warn(name string, run uint64, sig syscall.Signal) { s.note(name, warnMsg{run, sig}) }

// Registered tells that the run has registered with the broker, Armed that its watchdog is armed. A run that is over is
// left alone. They wait for the client's loop.
func (s *Set) Registered(name string, run uint64) { s.note(name, registeredMsg{run: run}) }
func (s *Set) Armed(name string, run uint64)      { s.note(name, registeredMsg{run: run, armed: true}) }

// Pause notes for a zhxd to come that the client's watchdog is paused until that proc.Uptime, or, 0, that it is not.
func (s *Set) Pause(name string, until time.Duration, text string) {
	s.note(name, pauseMsg{until, text})
}

// Unheard tells whether the run has said something by sd_notify(3) that is not handled yet.
func (s *Set) Unheard(name string, run uint64) bool {
	p, err := s.find(name)
	if err != nil {
		return false
	}
	st := p.status.Load()
	return st.Run == run && st.unheard != nil && st.unheard()
}

func (s *Set) note(name string, m message) {
	if p, err := s.find(name); err == nil {
		p.tell(m)
	}
}

// Status is a snapshot of every client in the order of the file, then of removed ones that still stop.
func (s *Set) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for i, p := range s.progs {
		if p.over() {
			continue
		}
		st := *p.status.Load()
		if st.State == Waiting && i < len(s.specs) {
			for _, d := range s.pending(s.specs[i].DependsOn) {
				st.WaitsFor = append(st.WaitsFor, d.name)
			}
		}
		all = append(all, st)
	}
	return all
}

// StatusOf is the snapshot of a configured client, but for WaitsFor. It waits for nothing that a client can hold up.
func (s *Set) StatusOf(name string) (Status, bool) {
	p, err := s.find(name)
	if err != nil {
		return Status{}, false
	}
	return *p.status.Load(), true
}

// Ring is what the client prints, nil if there is no such client.
func (s *Set) Ring(name string) *logs.Ring {
	if p, err := s.find(name); err == nil {
		return p.ring
	}
	return nil
}

// Shutdown stops all clients, those that others depend on after those others, all of a level at once (without any
// depends_on, one after the other in reverse order of the file), and ends the Set.
// When ctx ends, what is left is killed without further ado. The error names clients that survive that.
func (s *Set) Shutdown(ctx context.Context) error {
	return s.end(ctx, s.o.Settle, func() [][]*program { return byLevel(s.progs, stopLevels(s.specs)) })
}

// Leave ends the Set and lets the clients run on, for the next zhxd to adopt; those with a terminal of this one are stopped.
func (s *Set) Leave(ctx context.Context) error {
	return s.end(ctx, nil, func() [][]*program {
		var bound []*program
		for i, p := range s.progs {
			if i >= len(s.specs) || s.specs[i].TTY {
				bound = append(bound, p)
			}
		}
		return [][]*program{bound}
	})
}

// end stops clients by levels, which it asks for with mu held, and calls settle, if there is one, after each. Then it waits for all
// goroutines; for what a client may hold up (package notify), not for ever.
func (s *Set) end(ctx context.Context, settle func(), stopping func() [][]*program) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.mu.Lock()
	s.closed = true
	levels := stopping()
	s.mu.Unlock()
	var errs []error
	for _, level := range levels {
		errs = append(errs, s.stopAll(ctx, level)...)
		if settle != nil {
			settle()
		}
	}
	s.cancel()
	s.loops.Wait()
	deaf := make(chan struct{})
	go func() {
		s.ears.Wait()
		close(deaf)
	}()
	select {
	case <-deaf:
	case <-time.After(drainWait):
	}
	return errors.Join(errs...)
}

// stopAll stops programs of one level.
func (s *Set) stopAll(ctx context.Context, progs []*program) (errs []error) {
	const why = "zhxd is shutting down"
	replies := map[*program]chan error{}
	for _, p := range progs {
		reply, begun := make(chan error, 1), make(chan struct{})
		if p.tell(stopMsg{why: why, number: math.MaxInt64, hurry: ctx.Err() != nil, begun: begun, reply: reply}) {
			<-begun // in this order
			replies[p] = reply
		}
	}
	for _, p := range progs {
		reply := replies[p]
		if reply == nil {
			continue
		}
		select {
		case err := <-reply:
			errs = append(errs, err)
		case <-ctx.Done():
			p.log.Warn("blocks the end", "state", p.status.Load().State, "next", "its whole tree is killed")
			hurried := make(chan error, 1)
			p.tell(stopMsg{why: why, number: math.MaxInt64, hurry: true, reply: hurried})
			errs = append(errs, <-reply)
		}
	}
	return errs
}
