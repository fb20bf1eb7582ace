// What others ask of a program, and when they are answered.

package procman

import (
	"fmt"
	"syscall"
	"time"

	"zhx/procman/notify"
)

const byMax = 100 // bytes that a record keeps of who stopped a client, or paused its watchdog; the rest is cut

// A waiter is a request that is answered when its aim is reached or out of reach.
type waiter struct {
	aim aim
	run uint64 // up: at least this one
	reply
}

// A reply is where a request is answered, once: it has capacity 1, gets the answer, then is closed.
type reply chan<- error

func (r reply) refuse(err error) {
	r <- err
	close(r)
}

type aim string

const (
	up    aim = "up"    // the run is ready
	down  aim = "down"  // nothing lives, nor is to
	quiet aim = "quiet" // nothing lives for now
	tried aim = "tried" // it is no longer on its way to the first spawn
	turn  aim = "turn"  // nor keeps others of the file from theirs
)

type startMsg struct {
	by    string          // "" is autostart: a client stopped by hand, or that has come to its end, stays so
	asked int64           // by hand: which request it is; an older one may come late, after dependants
	fresh bool            // in a new process, also if one runs
	begun chan<- struct{} // closed when its status shows it; may be nil
	after <-chan error    // autostart: not spawned before this answers
	turn  reply           // autostart: answered when others of the file need not wait for it; may be nil
	reply reply
}

func (m startMsg) on(p *program) {
	if m.begun != nil {
		defer func() {
			p.publish()
			close(m.begun)
		}()
	}
	w := waiter{aim: up, run: p.m.run + 1, reply: m.reply}
	switch {
	case p.removed:
		m.refuse(fmt.Errorf("client %q: %w", p.name, ErrClosed))
		return
	case m.by != "" && p.superseded(m.asked):
		m.refuse(fmt.Errorf("client %q: %w", p.name, ErrSuperseded))
		return
	case m.by == "":
		w.aim = tried
		if m.turn != nil {
			p.waiters = append(p.waiters, waiter{aim: turn, reply: m.turn})
		}
	case p.m.state == Running && !m.fresh:
		w.run = p.m.run
	}
	p.waiters = append(p.waiters, w)
	p.after = m.after
	switch {
	case m.by == "" && p.m.state == Exited:
		return
	case p.rec.StoppedBy != "":
		if m.by == "" {
			p.log.Info("not started", "why", "stopped by "+p.rec.StoppedBy, "next", p.outlook())
			return
		}
		p.rec.StoppedBy = ""
		p.save()
	}
	p.throttle = 0
	if m.fresh {
		p.because("restart asked by " + m.by)
		p.handle(event{kind: evRestart})
	} else {
		p.handle(event{kind: evStart})
	}
}

// superseded tells whether a later request by hand was carried out before this one.
func (p *program) superseded(asked int64) bool {
	old := asked < p.asked
	p.asked = max(p.asked, asked)
	return old
}

func (m startMsg) refuse(err error) {
	if m.reply.refuse(err); m.turn != nil {
		m.turn.refuse(err)
	}
}

// because notes who or what ends the run that lives, unless it is ending already.
func (p *program) because(text string) {
	if p.m.state == Running {
		p.text = text
	}
}

type stopMsg struct {
	by     string // by hand: recorded; "": because it is gone from the configuration, which is not
	asked  int64  // by hand: as in startMsg
	number int64  // gone: of the Apply; that of a later one, in which it is back, may come before this
	why    string
	hurry  bool            // SIGKILL at once
	begun  chan<- struct{} // closed when it is begun; may be nil
	reply
}

func (m stopMsg) on(p *program) {
	if m.by != "" && p.superseded(m.asked) || m.by == "" && m.number < p.number {
		m.refuse(fmt.Errorf("client %q: %w", p.name, ErrSuperseded))
		return
	}
	p.waiters = append(p.waiters, waiter{aim: down, reply: m.reply})
	if m.by != "" {
		m.why = "stop asked by " + m.by
		p.rec.StoppedBy = m.by[:min(len(m.by), byMax)]
	} else {
		p.removed, p.number = true, m.number
	}
	if m.by != "" || p.rec.Exited {
		p.rec.Exited = false
		p.save() // before anything is done: it holds even if zhxd dies now
	}
	p.because(m.why)
	p.handle(event{kind: evStop, hurry: m.hurry})
	if m.begun != nil {
		close(m.begun)
	}
}

// leavingMsg comes before a stop or restart that waits for dependants: nobody is to start for this client's sake until the
// loweredMsg with it has come, be it another run then.
type leavingMsg struct{ done chan struct{} } // closed when dependants can see it

func (m leavingMsg) on(p *program) {
	p.leaving++
	p.publish()
	close(m.done)
}

type loweredMsg struct{ request }

func (m loweredMsg) on(p *program) {
	p.leaving--
	m.request.on(p)
}

// leave makes p not ready for those that depend on it.
func (p *program) leave() {
	m := leavingMsg{make(chan struct{})}
	if p.tell(m) {
		<-m.done
	}
}

// yieldMsg stops the run for another client's sake. The client stays wanted, and starts again when its dependencies are ready.
type yieldMsg struct {
	why   string
	reply // when nothing of it lives
}

func (m yieldMsg) on(p *program) {
	p.waiters = append(p.waiters, waiter{aim: quiet, reply: m.reply})
	p.because(m.why)
	p.handle(event{kind: evYield})
}

// waitsMsg: nothing but a dependency keeps the client from being spawned, and one of those has changed.
type waitsMsg struct{}

func (waitsMsg) on(p *program) {
	if p.m.state == Waiting && !p.blocked {
		p.blocked = true
		p.log.Info("waits", "for", waits(p.unmet()), "next", "started when they are ready")
	}
}

// registeredMsg: the run has registered with the broker, or armed its watchdog. The record notes it for a zhxd to come.
type registeredMsg struct {
	run   uint64
	armed bool
}

func (m registeredMsg) on(p *program) {
	if m.run != p.m.run || p.life == nil {
		return
	}
	if m.armed {
		p.rec.Armed = true
	} else {
		p.rec.Registered, p.rec.Receiver = true, true
		p.handle(event{kind: evRegistered, run: m.run})
	}
	p.rec.Ready = p.m.ready
	p.save()
}

type pauseMsg struct {
	until time.Duration
	text  string
}

func (m pauseMsg) on(p *program) {
	p.rec.Paused, p.rec.PausedBy = int64(m.until), m.text[:min(len(m.text), byMax)]
	p.save()
}

// saidMsg is what the run said by sd_notify(3).
type saidMsg struct {
	run  uint64
	said notify.Message
	done chan struct{} // closed when it is handled
}

func (m saidMsg) on(p *program) {
	defer close(m.done)
	if m.run != p.m.run || p.life == nil {
		return
	}
	n := m.said
	if t := n.WatchdogTimeout; t != nil && *t > 0 && p.rec.Timeout != int64(*t) {
		p.rec.Timeout = int64(*t) // a program says it once
		p.save()
	}
	if n.Status != nil {
		p.notice = *n.Status
	}
	if n.MainPID != 0 && n.MainPID != p.life.pid() {
		if err := p.life.lead(n.MainPID); err != nil {
			p.log.Warn("MAINPID refused", "run", m.run, "pid", n.MainPID, "err", err, "next", "the leader stays as it is")
		} else {
			p.exit, p.empty = nil, nil // a former leader's: the end is this one's now
			p.rec.PID, p.rec.Start = p.life.pid(), p.life.start()
			p.save()
			p.events.Running(p.name, m.run, p.life.pid())
			p.log.Info("new leader", "run", m.run, "pid", p.life.pid())
		}
	}
	if n.ExtendTimeout > 0 {
		p.handle(event{kind: evExtend, run: m.run, d: min(n.ExtendTimeout, extendMax)})
	}
	switch {
	case n.Stopping:
		p.phase = "stopping"
	case n.Reloading:
		p.phase = "reloading"
	case n.Ready:
		p.phase = ""
		if !p.m.notified {
			p.handle(event{kind: evReady, run: m.run})
			p.rec.Ready = p.m.ready
			p.save()
		}
	}
	if n.Trigger {
		expireMsg{m.run, "it said WATCHDOG=trigger"}.on(p)
	}
}

// hear takes a message from a run's notify socket, on that socket's goroutine, and returns when it is handled.
func (p *program) hear(run uint64, n notify.Message) {
	sign := Sign{Alive: n.Watchdog, Ready: n.Ready, Extend: n.ExtendTimeout, Checkpoint: n.Checkpoint}
	if n.WatchdogTimeout != nil {
		sign.Timeout = *n.WatchdogTimeout
	}
	if sign != (Sign{}) {
		p.events.Said(p.name, run, sign)
	}
	if sign.Timeout > 0 || n.Ready || n.Stopping || n.Reloading || n.Trigger || n.Status != nil || n.MainPID != 0 || n.ExtendTimeout > 0 {
		m := saidMsg{run: run, said: n, done: make(chan struct{})}
		if !p.tell(m) {
			return
		}
		<-m.done
	}
}

// specMsg is a new configuration of the client; it revives one that was removed and still stops.
type specMsg struct {
	spec   Spec
	fresh  bool  // in a new process
	number int64 // of the Apply: an older one can come late, after dependants
}

func (m specMsg) on(p *program) {
	turnedOn := false
	switch {
	case m.number >= p.number:
		turnedOn = m.spec.Autostart && !p.m.rules.Autostart && !p.removed
		p.removed, p.m.rules, p.number = false, &m.spec, m.number
		p.ring.SetFile(p.m.rules.LogFile)
	case p.removed || !m.fresh:
		return // the later Apply knew better
	}
	switch {
	case m.fresh && p.m.want:
		p.because("its configuration changed")
		p.handle(event{kind: evRestart})
	case turnedOn && !p.m.want && p.rec.StoppedBy == "":
		p.handle(event{kind: evStart})
	default:
		p.handle(event{kind: evRules})
	}
}
func (specMsg) refuse(error) {}

type expireMsg struct {
	run uint64
	why string
}

func (m expireMsg) on(p *program) {
	if m.run == p.m.run {
		p.because(m.why)
	}
	p.handle(event{kind: evExpired, run: m.run})
}

// warnMsg signals the leader of a run that still runs.
type warnMsg struct {
	run uint64
	sig syscall.Signal
}

func (m warnMsg) on(p *program) {
	if m.run == p.m.run && p.m.state == Running {
		p.complain("cannot be signalled", p.life.poke(m.sig))
	}
}

// killMsg signals the leader, with SIGKILL the whole tree. The client stays wanted or not, as it was.
type killMsg struct {
	by  string
	sig syscall.Signal
	reply
}

func (m killMsg) on(p *program) {
	if p.life == nil {
		m.refuse(fmt.Errorf("client %q: %w", p.name, ErrNoProcess))
		return
	}
	p.log.Info("signalled", "run", p.m.run, "pid", p.life.pid(), "signal", signalName(m.sig), "by", m.by, "next", "its restart decides, should it end")
	if m.sig != syscall.SIGKILL {
		m.refuse(p.life.poke(m.sig))
		return
	}
	p.because("kill asked by " + m.by)
	p.handle(event{kind: evKill})
	p.publish() // who waits then for it to be ready means the next run
	m.refuse(nil)
}

// resetMsg has the client's failures forgotten.
type resetMsg struct {
	by string
	reply
}

func (m resetMsg) on(p *program) {
	p.handle(event{kind: evReset})
	p.log.Info("failures forgotten", "by", m.by, "next", p.doing())
	m.refuse(nil)
}

// answer replies to those whose aim is reached, or cannot be.
func (p *program) answer() {
	left := p.waiters[:0]
	for _, w := range p.waiters {
		if over, err := p.reached(w); over {
			w.refuse(err)
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
	case w.aim == turn:
		return s != Waiting && s != Starting || p.blocked, nil
	case w.aim == quiet && p.life == nil:
		return true, nil
	case s == Unkillable:
		return true, fmt.Errorf("client %q: %w: %s", p.name, ErrUnkillable, p.text)
	case w.aim == quiet:
		return false, nil
	case p.m.want != (w.aim == up):
		return true, fmt.Errorf("client %q: %w", p.name, ErrSuperseded)
	case w.aim == down:
		return s == Stopped, nil
	case p.m.run >= w.run && (p.m.ready || s == Running && p.m.rules.Oneshot || s == Exited):
		return true, nil
	case s == Backoff && p.throttle == 0 || s == Failed:
		return true, fmt.Errorf("client %q: %s; %s", p.name, p.text, p.outlook())
	case s == Waiting:
		for _, d := range p.unmet() {
			if st := d.status.Load(); st.State == Stopped || st.State == Failed || st.State == Exited {
				return true, fmt.Errorf("client %q: it depends on %q, which is %s", p.name, d.name, st.State)
			}
		}
	}
	return false, nil
}
