// The owner of one client: one goroutine, one mailbox, one timer. It applies step() to whatever happens, does what the
// machine says, and publishes a snapshot.

package procman

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"zhx/procman/logs"
	"zhx/procman/notify"
	"zhx/procman/proc"
)

// A host is the system as a program sees it; life.go has the real one.
type host interface {
	load() (record, error)                                             // what the last zhxd wrote of this client
	save(r record) error                                               // stopped-by-hand and the present run
	clear(ctx context.Context, s *Spec, r record) error                // ends leftovers and strays; an error: something unverified may live
	adopt(s *Spec, r *record, in inlet) (l life, a adopted, err error) // the run of r, if it lives and proves to be it; else nil
	spawn(s *Spec, r *record, in inlet) (l life, err error)            // run r.Run; fills in the rest of r
	giveUp(ctx context.Context, s *Spec, ring *logs.Ring)              // executes on_failure, and returns when it has ended
	execute(ctx context.Context, s *Spec, what string, argv []string, limit time.Duration, ring *logs.Ring) error
}

// An inlet takes what a run says: what it prints, and by sd_notify(3).
type inlet struct {
	ring  *logs.Ring
	said  func(run uint64, m notify.Message) // returns when it is handled; any goroutine but the program's
	serve func(listen func())                // on a goroutine that the end of the Set waits for
}

// A life is a run's processes. Its methods are called by the program only.
type life interface {
	listen() // to what it prints, once: after it is told that it has started
	pid() int
	start() uint64            // its start time
	Exited() <-chan proc.Exit // the leader
	Frozen() <-chan bool      // the leader stopped or continued
	Signal(sig syscall.Signal) error
	Kill() error
	Empty() bool // nothing but the leader's zombie
	WaitEmpty(ctx context.Context) error
	lead(pid int) error            // another process of the tree is the leader now
	unheard() bool                 // it has said something by sd_notify(3) that is not handled; any goroutine
	hear()                         // what it says so, where the socket's path was removed
	leave()                        // zhxd ends, the run goes on
	look() kind                    // evFrozen, evThawed or evStuck, now
	poke(sig syscall.Signal) error // to the leader alone
	dumping() bool                 // the kernel writes the leader's core, now
	OutOfMemory() bool             // the kernel has killed the leader for that
	members() string               // for people
	finish()                       // after it is empty: drains the output
	forget()                       // then: reaps, and removes what need not be gone before the successor lives
}

// A message is what others ask of a program; it is carried out on the program's goroutine.
type message interface{ on(p *program) }

// A request is a message that somebody waits for the answer of.
type request interface {
	message
	refuse(err error) // instead: nil or why not
}

type program struct {
	// Immutable:
	name   string
	log    *slog.Logger // has the attribute client
	host   host
	events Events
	set    *Set
	ring   *logs.Ring
	raised readiness     // what dependants wait for
	mail   chan message  // anybody -> loop; unbuffered: what was sent is carried out
	done   chan struct{} // closed when the loop has ended
	epoch  time.Time

	status atomic.Pointer[Status] // loop -> anybody
	hook   sync.Mutex             // held while on_failure is executed

	// Owned by loop:
	ctx      context.Context // the loop's
	m        machine
	rec      record
	recErr   error // the record cannot be used nor replaced: nothing is spawned
	removed  bool  // the configuration has it no more: ends when nothing lives
	life     life  // nil when nothing lives
	exit     *proc.Exit
	since    time.Time
	last     *LastExit
	deaths   []LastExit // never written to: replaced
	adopted  bool
	number   int64  // of the Apply that rules came with, or that removed it
	asked    int64  // the last request by hand
	leaving  int    // so many requests will take it down, after its dependants
	notice   string // STATUS=
	phase    string // RELOADING=, STOPPING=
	text     string // why the run is being ended, or why it cannot be spawned
	timer    *time.Timer
	empty    chan struct{} // a waiter of the tree -> loop
	clear    chan error    // the clearing goroutine -> loop
	cancel   context.CancelFunc
	after    <-chan error  // the first spawn waits for this: the order of the file; nil: for nothing
	blocked  bool          // by nothing but its dependencies
	throttle time.Duration // how long the restart under way has to wait for its turn on the board; 0 is not
	short    bool          // the last try to start it failed for a shortage of the board's,
	same     bool          // the same one as before
	waiters  []waiter
}

func newProgram(spec Spec, h host, s *Set) *program {
	o := s.o
	p := &program{
		name: spec.Name, log: o.Log.With("client", spec.Name), host: h, events: o.Events, set: s, ring: s.budget.Ring(),
		raised: readiness{changed: make(chan struct{})}, ctx: s.ctx,
		mail: make(chan message), done: make(chan struct{}), timer: time.NewTimer(0), cancel: func() {},
		m:     machine{rules: &spec, state: Stopped},
		epoch: time.Now().Add(-1), // so that no moment is 0, which means none
	}
	p.timer.Stop()
	p.ring.OnFile(func(path string, err error) {
		if err != nil {
			p.log.Error("log file failed", "file", path, "err", err, "next", "its lines are dropped and counted; tried again")
		} else {
			p.log.Info("log file works again", "file", path)
		}
	})
	p.ring.SetFile(spec.LogFile)
	p.load()
	if left := time.Duration(p.rec.Paused) - proc.Uptime(); left > 0 {
		p.events.Paused(p.name, left, p.rec.PausedBy)
	}
	p.adopt()
	p.publish()
	return p
}

func (p *program) inlet() inlet { return inlet{ring: p.ring, said: p.hear, serve: p.set.ears.Go} }

// adopt takes over what an earlier zhxd left running. It runs before the loop does.
func (p *program) adopt() {
	if p.recErr != nil || p.rec.StoppedBy != "" {
		return
	}
	if p.rec.Exited && p.rec.Sum == restartSum(*p.m.rules) {
		p.m.want, p.m.state, p.m.done = true, Exited, p.m.rules.Oneshot
		p.log.Info("not started", "why", "it has ended under an earlier zhxd", "next", p.outlook())
		return
	}
	if p.rec.Mark == "" {
		return
	}
	l, a, err := p.host.adopt(p.m.rules, &p.rec, p.inlet())
	if err != nil {
		p.log.Error("not adopted", "run", p.rec.Run, "err", err, "next", "neither killed nor doubled unless it can be verified")
	}
	if l == nil {
		return
	}
	p.life, p.since, p.adopted = l, time.Now().Add(-a.uptime), true
	p.ring.Begin(p.rec.Run)
	p.log.Info("adopted", "run", p.rec.Run, "pid", l.pid(), "uptime", a.uptime.Round(time.Millisecond))
	p.events.Running(p.name, p.rec.Run, l.pid())
	p.handle(event{kind: evAdopted, run: p.rec.Run, ok: a.ready, owes: a.registered, d: a.uptime})
	if p.rec.Timeout > 0 {
		p.events.Said(p.name, p.rec.Run, Sign{Timeout: time.Duration(p.rec.Timeout)})
	}
	if a.armed {
		p.events.Armed(p.name, p.rec.Run)
	}
	if !a.sameSpec {
		p.because("its configuration changed")
		p.handle(event{kind: evRestart})
	}
}

func (p *program) load() {
	p.rec, p.recErr = p.host.load()
	p.rec.Receiver = p.rec.Receiver || p.rec.Registered
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

// put hands m to the loop; where that has ended, m is answered with err.
func (p *program) put(m request, err error) {
	if !p.tell(m) {
		m.refuse(err)
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
			w.refuse(fmt.Errorf("client %q: %w", p.name, ErrClosed))
		}
		if p.life != nil {
			p.life.leave()
		}
		if p.removed {
			p.ring.Close()
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
			p.leaderGone(ctx, x)
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
		e.now, e.roll, e.unmet = p.now(), rand.Float64(), len(p.unmet()) > 0
		e.spared = p.set.o.Spare != nil && p.set.o.Spare(p.name)
		was := p.m
		var a action
		p.m, a = step(p.m, e)
		p.explain(was, e)
		p.report(was, e)
		if e.kind == evSpawned || e.kind == evAdopted {
			p.life.listen()
		}
		if p.m.state == Running {
			p.text = "" // it was spared
		}
		ended, certificate := e.kind == evEnded, p.last
		e = event{kind: p.do(a), d: p.throttle, short: p.short}
		if ended { // behind the start of its successor, since a line takes a tenth of a restart
			certificate.log(p.log)
		}
	}
	p.timer.Stop()
	if p.m.deadline != 0 {
		p.timer.Reset(p.m.deadline - p.now())
	}
}

// explain finds the words for what the machine decided by itself.
func (p *program) explain(was machine, e event) {
	switch {
	case p.m.state == Unkillable && was.state != Unkillable:
		p.text = p.life.members()
	case was.state == Stopping && p.m.aborted != 0 && p.m.killed && !was.killed:
		p.ladder(e.kind == evExited)
	case was.state != Running || p.m.state != Stopping && !p.m.spared:
	case e.kind == evStuck:
		p.text = fmt.Sprintf("in state T for %v", p.m.rules.FrozenTimeout)
	case p.m.cause == ByTimeout:
		p.text = fmt.Sprintf("not ready within %v", p.m.rules.StartTimeout)
	case e.kind == evTimeout:
		p.text = fmt.Sprintf("it did not come back within %v after zhxd was replaced", p.m.rules.FrozenTimeout)
	}
}

// ladder adds to the text, which has abort_signal already, how a run that was aborted came to its end.
func (p *program) ladder(ended bool) {
	now := p.now()
	if p.m.dumping != 0 {
		p.text += fmt.Sprintf(", waited %v for its core", (now - p.m.dumping).Round(time.Millisecond))
	}
	how := ", still alive after %v, SIGKILL"
	if ended {
		how = ", ended after %v"
	}
	p.text += fmt.Sprintf(how, (now - p.m.aborted).Round(time.Millisecond))
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
		p.publish() // that nothing lives, before something does again
		return p.spawn()
	case doSignal:
		p.complain("cannot be signalled", p.life.Signal(p.m.rules.StopSignal))
	case doKill:
		p.complain("cannot be killed", p.life.Kill())
	case doLook:
		return p.life.look()
	case doAbort:
		if p.life.look() == evStuck {
			p.text += "; in state T, SIGKILL"
			return evStuck
		}
		p.text += "; " + signalName(p.m.rules.AbortSignal)
		p.complain("cannot be signalled", p.life.poke(p.m.rules.AbortSignal))
	case doExamine:
		if p.life.dumping() {
			return evDumping
		}
		return evUndumped
	case doGiveUp:
		p.text = fmt.Sprintf("restarted %d times within %v", p.m.rules.StartLimit.Burst, p.m.rules.StartLimit.Interval)
		spec, run, why := p.m.rules, p.m.run, p.text
		p.set.loops.Go(func() {
			if len(spec.OnFailure) > 0 {
				p.hook.Lock() // one at a time
				defer p.hook.Unlock()
				p.host.giveUp(p.ctx, spec, p.ring)
			}
			if p.ctx.Err() == nil {
				go p.events.GaveUp(p.name, run, why) // not of the loops: it may wait for these
			}
		})
	}
	return ""
}

func (p *program) complain(text string, err error) {
	if err != nil {
		p.log.Error(text, "run", p.m.run, "err", err, "next", "waits for its tree to be empty")
	}
}

// startClearing makes room for a spawn, beside the loop: strays take their time, the file has an order, and dependencies
// get ready when they do.
func (p *program) startClearing() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.clear = make(chan error, 1)
	if p.recErr != nil {
		p.load() // somebody may have removed it
	}
	out, after, spec, rec, err, cleared := p.clear, p.after, p.m.rules, p.rec, p.recErr, p.m.cleared
	p.blocked = false
	go func() {
		if err == nil && !cleared {
			err = p.host.clear(ctx, spec, rec)
		}
		if after != nil {
			select {
			case <-after:
			case <-ctx.Done():
			}
		}
		if err == nil {
			p.await(ctx, spec.DependsOn)
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
		was := p.text
		p.text, p.short = err.Error(), short(err)
		p.same = p.short && p.text == was
		p.handle(event{kind: evBlocked, short: p.short})
	}
}

func (p *program) spawn() kind {
	if p.m.auto && !p.m.admitted {
		if p.throttle = p.set.turn(); p.throttle > 0 {
			return evThrottled
		}
	}
	p.throttle = 0
	p.text, p.exit, p.adopted, p.notice, p.phase = "", nil, false, "", ""
	p.rec.Run, p.rec.Exited, p.since = p.m.run, false, time.Now()
	p.ring.Begin(p.m.run)
	l, err := p.host.spawn(p.m.rules, &p.rec, p.inlet())
	p.short = err != nil && short(err)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		p.same = p.short && p.last != nil && p.last.Reason == BySpawn && p.last.Code == int(errno)
		p.text, p.since = err.Error(), time.Time{}
		p.last = &LastExit{Run: p.m.run, Reason: BySpawn, Code: int(errno), At: time.Now(), Text: p.text}
		p.events.Ended(p.name, p.m.run, *p.last)
		return evSpawnFailed
	}
	p.life = l
	p.events.Running(p.name, p.m.run, l.pid())
	return evSpawned
}

// leaderGone goes on at once when the leader was all of its tree, else it waits for the rest. A last word may still be
// unread, and may say that another process leads now.
func (p *program) leaderGone(ctx context.Context, x proc.Exit) {
	led := p.life.Exited()
	for late := time.Now().Add(lastWordWait); p.life.unheard() && time.Now().Before(late); {
		select {
		case m := <-p.mail:
			m.on(p)
		case <-time.After(time.Millisecond): // it was not for us
		}
	}
	if p.life.Exited() != led {
		return
	}
	p.exit = &x
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
	l, m := p.life, p.m
	if m.aborted != 0 && !m.killed {
		p.ladder(true)
	}
	l.finish()
	if m.state == Running { // nothing of ours ended it; the machine has not seen its length yet
		m.lived = p.now() - m.began
	}
	last := lastExit(m, *p.exit, l.pid(), p.text)
	for _, line := range p.ring.Tail(lastLines) {
		if line.At.After(p.since) {
			last.Lines = append(last.Lines, line.Text)
		}
	}
	if last.Reason == BySignal && last.Signal == "SIGKILL" && last.Text == "" && l.OutOfMemory() {
		last.Text = "out of memory: the kernel has killed it"
	}
	last.Success = last.Reason == ByExit && p.success(last.Code)
	ok := last.Success
	p.last, p.life, p.since, p.notice, p.phase = &last, nil, time.Time{}, "", ""
	p.events.Ended(p.name, m.run, last)
	p.handle(event{kind: evEnded, ok: ok, unknown: last.Reason == ByUnknown})
	l.forget()
	if p.m.state == Exited {
		p.rec.Exited = true
		p.save()
	}
	if failed := !ok && last.Reason != ByStop && last.Reason != ByDependency; failed && p.m.want && len(p.m.rules.RestartWith) > 0 {
		go p.set.together(p.name, p.m.rules.RestartWith)
	}
}

func (p *program) success(code int) bool {
	if codes := p.m.rules.SuccessCodes; len(codes) > 0 {
		return slices.Contains(codes, code)
	}
	return code == 0
}

func (p *program) publish() {
	s := &Status{Name: p.name, State: p.m.state, Wanted: p.m.want, Run: p.m.run, Restarts: p.m.restarts,
		Since: p.since, Registers: p.rec.Receiver, LastExit: p.last, Deaths: p.deaths, StoppedBy: p.rec.StoppedBy,
		Ready: p.m.ready && p.leaving == 0 && p.phase != "stopping" || p.m.done, Adopted: p.adopted, TTY: p.m.rules.TTY, Outlook: p.doing(), Notice: p.notice, Phase: p.phase}
	if p.life != nil {
		s.PID, s.unheard = p.life.pid(), p.life.unheard
	}
	switch s.State {
	case Backoff, Failed:
		if s.Text = p.text; p.m.deadline != 0 {
			s.Next = p.epoch.Add(p.m.deadline)
		}
	case Unkillable:
		s.Text = p.text
	}
	if s.State == Starting {
		s.Run = p.rec.Run // the next one has not begun
	}
	was := p.status.Swap(s)
	p.raised.set(s.Ready, s.State)
	if p.set.o.Changed != nil && (was == nil || !was.sameRun(s)) {
		p.set.o.Changed(p.name)
	}
}
