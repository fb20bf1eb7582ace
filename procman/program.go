// The owner of one client: one goroutine, one mailbox, one timer. It applies step() to whatever happens, does what the
// machine says, and publishes a snapshot.

package procman

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"time"

	"zhx/procman/logs"
	"zhx/procman/proc"
)

// A host is the system as a program sees it; life.go has the real one.
type host interface {
	load() (record, error)                                         // what the last zhxd wrote of this client
	save(r record) error                                           // stopped-by-hand and the present run
	clear(ctx context.Context, s *Spec, r record) error            // ends leftovers and strays; an error: something unverified may live
	spawn(s *Spec, r *record, ring *logs.Ring) (l life, err error) // run r.Run; fills in the rest of r
}

// A life is a run's processes. Its methods are called by the program only.
type life interface {
	pid() int
	Exited() <-chan proc.Exit // the leader
	Frozen() <-chan bool      // the leader stopped or continued
	Signal(sig syscall.Signal) error
	Kill() error
	Empty() bool // nothing but the leader's zombie
	WaitEmpty(ctx context.Context) error
	look() kind      // evFrozen, evThawed or evStuck, now
	members() string // for people
	finish()         // after it is empty: drains the output
	forget()         // then: reaps, and removes what need not be gone before the successor lives
}

// A message is what others ask of a program; it is carried out on the program's goroutine.
type message interface{ on(p *program) }

type program struct {
	// Immutable:
	name   string
	log    *slog.Logger // has the attribute client
	host   host
	events Events
	ring   *logs.Ring
	mail   chan message  // anybody -> loop; unbuffered: what was sent is carried out
	done   chan struct{} // closed when the loop has ended
	epoch  time.Time

	status atomic.Pointer[Status] // loop -> anybody

	// Owned by loop:
	m       machine
	rec     record
	recErr  error // the record cannot be used nor replaced: nothing is spawned
	removed bool  // the configuration has it no more: ends when nothing lives
	life    life  // nil when nothing lives
	exit    *proc.Exit
	since   time.Time
	last    *LastExit
	text    string // why the run is being ended, or why it cannot be spawned
	timer   *time.Timer
	empty   chan struct{} // a waiter of the tree -> loop
	clear   chan error    // the clearing goroutine -> loop
	cancel  context.CancelFunc
	after   <-chan error // the first spawn waits for this: the order of the file; nil: for nothing
	waiters []waiter
}

// A waiter is a request that is answered when its aim is reached or out of reach.
type waiter struct {
	aim   aim
	run   uint64       // up: at least this one
	reply chan<- error // capacity 1; gets the answer, then is closed
}

type aim string

const (
	up    aim = "up"    // the run is spawned
	down  aim = "down"  // nothing lives
	tried aim = "tried" // it is no longer on its way to the first spawn
)

func newProgram(spec Spec, h host, o Options) *program {
	p := &program{
		name: spec.Name, log: o.Log.With("client", spec.Name), host: h, events: o.Events, ring: logs.NewRing(),
		mail: make(chan message), done: make(chan struct{}), timer: time.NewTimer(0), cancel: func() {},
		m:     machine{rules: &spec, state: Stopped},
		epoch: time.Now().Add(-1), // so that no moment is 0, which means none
	}
	p.timer.Stop()
	p.load()
	p.publish()
	return p
}

func (p *program) load() {
	p.rec, p.recErr = p.host.load()
	p.m.run = max(p.m.run, p.rec.Run)
}

func (p *program) save() {
	if p.recErr != nil {
		return // it is not ours to write; the client is failed and says so
	}
	if err := p.host.save(p.rec); err != nil {
		p.log.Error("record not written", "err", err, "next", "a zhxd that starts after a crash will not know who was stopped by hand")
	}
}

// over tells whether the loop has ended: the client was removed and nothing of it lives.
func (p *program) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tell hands m to the loop; false: the loop has ended.
func (p *program) tell(m message) bool {
	select {
	case p.mail <- m:
		return true
	case <-p.done:
		return false
	}
}

func (p *program) loop(ctx context.Context) {
	defer close(p.done)
	defer func() {
		p.cancel()
		for _, w := range p.waiters {
			w.reply <- fmt.Errorf("client %q: %w", p.name, ErrClosed)
			close(w.reply)
		}
	}()
	for !p.removed || p.life != nil || p.m.state != Stopped {
		var exited <-chan proc.Exit
		var frozen <-chan bool
		if p.life != nil {
			frozen = p.life.Frozen()
			if p.exit == nil {
				exited = p.life.Exited()
			}
		}
		select {
		case <-ctx.Done():
			return
		case m := <-p.mail:
			m.on(p)
		case x := <-exited:
			p.exit = &x
			p.leaderGone(ctx)
		case <-p.empty:
			p.ended()
		case stopped := <-frozen:
			if stopped {
				p.handle(event{kind: evFrozen})
			} else {
				p.handle(event{kind: evThawed})
			}
		case err := <-p.clear:
			p.cleared(err)
		case <-p.timer.C:
			p.handle(event{kind: evTimeout})
		}
		p.publish()
		p.answer()
	}
}

// handle steps the machine with e and whatever follows from doing what it says.
func (p *program) handle(e event) {
	for e.kind != "" {
		e.now, e.roll = p.now(), rand.Float64()
		was := p.m
		var a action
		p.m, a = step(p.m, e)
		if p.m.state == Unkillable && was.state != Unkillable {
			p.text = p.life.members()
		}
		p.report(was, e)
		e = event{kind: p.do(a)}
	}
	p.timer.Stop()
	if p.m.deadline != 0 {
		p.timer.Reset(p.m.deadline - p.now())
	}
}

func (p *program) now() time.Duration { return time.Since(p.epoch) }

// do carries out a and returns the event that answers it, if it does at once.
func (p *program) do(a action) kind {
	switch a {
	case doClear:
		p.startClearing()
	case doCancel:
		p.cancel()
	case doSpawn:
		return p.spawn()
	case doSignal:
		p.complain("cannot be signalled", p.life.Signal(p.m.rules.StopSignal))
	case doKill:
		p.complain("cannot be killed", p.life.Kill())
	case doLook:
		k := p.life.look()
		if k == evStuck {
			p.text = fmt.Sprintf("in state T for %v", p.m.rules.FrozenTimeout)
		}
		return k
	}
	return ""
}

func (p *program) complain(text string, err error) {
	if err != nil {
		p.log.Error(text, "run", p.m.run, "err", err, "next", "waits for its tree to be empty")
	}
}

// startClearing makes room for the first spawn, beside the loop: strays take their time, and the file has an order.
func (p *program) startClearing() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.clear = make(chan error, 1)
	if p.recErr != nil {
		p.load() // somebody may have removed it
	}
	out, after, spec, rec, err := p.clear, p.after, p.m.rules, p.rec, p.recErr
	go func() {
		if err == nil {
			err = p.host.clear(ctx, spec, rec)
		}
		if after != nil {
			select {
			case <-after:
			case <-ctx.Done():
			}
		}
		out <- errors.Join(err, ctx.Err())
	}()
}

func (p *program) cleared(err error) {
	p.cancel()
	p.clear = nil
	switch {
	case err == nil:
		p.handle(event{kind: evCleared})
	case errors.Is(err, context.Canceled):
		p.handle(event{kind: evCancelled})
	default:
		p.text = err.Error()
		p.handle(event{kind: evBlocked})
	}
}

func (p *program) spawn() kind {
	p.text, p.exit = "", nil
	p.rec.Run = p.m.run
	l, err := p.host.spawn(p.m.rules, &p.rec, p.ring)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		p.text = err.Error()
		p.last = &LastExit{Run: p.m.run, Reason: BySpawn, Code: int(errno), At: time.Now(), Text: p.text}
		p.events.Ended(p.name, p.m.run, *p.last)
		return evSpawnFailed
	}
	p.life, p.since = l, time.Now()
	p.events.Running(p.name, p.m.run, l.pid())
	return evSpawned
}

// leaderGone goes on at once when the leader was all of its tree, else it waits for the rest.
func (p *program) leaderGone(ctx context.Context) {
	if p.life.Empty() {
		p.ended()
		return
	}
	l, empty := p.life, make(chan struct{})
	p.empty = empty
	go func() {
		if l.WaitEmpty(ctx) == nil {
			close(empty)
		}
	}()
	p.handle(event{kind: evExited})
}

func (p *program) ended() {
	p.empty = nil
	l := p.life
	l.finish()
	m := p.m
	if m.state == Running { // nothing of ours ended it; the machine has not seen its length yet
		m.lived = p.now() - m.began
	}
	last := lastExit(m, *p.exit, l.pid(), p.text)
	p.last, p.life, p.since = &last, nil, time.Time{}
	p.events.Ended(p.name, m.run, last)
	p.handle(event{kind: evEnded, ok: last.Reason == ByExit && last.Code == 0})
	l.forget()
}

// answer replies to those whose aim is reached, or cannot be.
func (p *program) answer() {
	left := p.waiters[:0]
	for _, w := range p.waiters {
		if over, err := p.reached(w); over {
			w.reply <- err
			close(w.reply)
		} else {
			left = append(left, w)
		}
	}
	p.waiters = left
}

func (p *program) reached(w waiter) (bool, error) {
	switch s := p.m.state; {
	case w.aim == tried:
		return s != Waiting && s != Starting, nil
	case s == Unkillable:
		return true, fmt.Errorf("client %q: %w: %s", p.name, ErrUnkillable, p.text)
	case p.m.want != (w.aim == up):
		return true, fmt.Errorf("client %q: %w", p.name, ErrSuperseded)
	case w.aim == down:
		return s == Stopped, nil
	case s == Running && p.m.run >= w.run:
		return true, nil
	case s == Backoff || s == Failed:
		return true, fmt.Errorf("client %q: %s; %s", p.name, p.text, p.outlook())
	}
	return false, nil
}

func (p *program) publish() {
	s := &Status{Name: p.name, State: p.m.state, Wanted: p.m.want, Run: p.m.run, Restarts: p.m.restarts,
		Since: p.since, LastExit: p.last, StoppedBy: p.rec.StoppedBy}
	if p.life != nil {
		s.PID = p.life.pid()
	}
	switch s.State {
	case Backoff, Failed:
		if s.Text = p.text; p.m.deadline != 0 {
			s.Next = p.epoch.Add(p.m.deadline)
		}
	case Unkillable:
		s.Text = p.text
	}
	p.status.Store(s)
}
