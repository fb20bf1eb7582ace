// Who is behind a client's name: the clients of the configuration, each with its current run. The broker speaks to a run
// through its session; each run has a dog of its own, so an old run's late word can never touch the new one. (Names that
// no client has: foreign.go.)
package daemon

import (
	"context"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"zhx/daemon/config"
	"zhx/ipc/broker"
	"zhx/procman/proc"
	"zhx/watchdog"
	"zhx/watchdog/probe"
)

const (
	targetsMax = 256  // receivers remembered as "already logged as forwarded" of a run or a stranger; beyond, nothing more is logged
	foreignMax = 1024 // foreign names with a dog at a time, and half of them of one user; beyond that arming is refused and counted
)

// client is one [client.NAME] of the configuration, over all its runs.
type client struct {
	name    string
	account broker.Account
	lapses  atomic.Int64
	told    atomic.Bool // its first refusal was logged

	mu       sync.Mutex // guards what follows
	conf     config.Client
	current  *session        // the run that lives now, nil between two runs
	ended    *session        // the one before: its last messages may be read after its end
	receives map[string]bool // the names that a run has registered

	pause    *pause    // nil: none; it may be over
	evidence *evidence // the last; never written to
	past     past      // what its runs that have ended add to the metrics
	used     used      // the last look at its processor time
}

func (c *client) configured() config.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conf
}

// names are all that belong to the client.
func (c *client) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{c.name}, c.conf.Names...)
}

func (c *client) run() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// session is one run of a client.
type session struct {
	// Immutable:
	d      *Daemon
	id     watchdog.ID
	began  time.Time
	client *client
	tree   *proc.Tree

	registered, armed atomic.Bool // procman was told, whose record and readiness follow it
	late              atomic.Bool // whoever watches the client's state was told

	pid atomic.Int64 // of the leader, 0 before the fork

	told int64 // of a lapse in mode "observe": the feeds before it, and 1; the judge's

	mu      sync.Mutex // guards what follows
	mode    string     // of the watchdog, as configured last: auto | required | off; "": not configured yet
	dog     *watchdog.Dog
	timeout time.Duration // as configured last
	asked   time.Duration // by the run, instead of that: WATCHDOG_USEC; 0: it did not ask
	targets targets
	sched   *proc.Sched // at the last half time
	looked  time.Time   // when evidence was taken last

	probe   probe.Probe // that is under way
	unprobe func()
}

// targets remembers to whom a message was logged as forwarded.
type targets map[string]bool

// first reports whether target is new.
func (t targets) first(target string) bool {
	if t[target] || len(t) >= targetsMax {
		return false
	}
	t[target] = true
	return true
}

func (s *session) theDog() *watchdog.Dog {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dog
}

// configure applies what can change while the run lives: the watchdog's mode and rules. What the run asked for stays until
// somebody changes just that. client.mu is held.
func (s *session) configure(c config.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, rules := s.mode, c.Rules()
	s.mode = c.Watchdog
	if s.mode != "off" && rules.Timeout != s.timeout {
		s.timeout, s.asked = rules.Timeout, 0
	}
	if s.asked > 0 {
		rules.Timeout = s.asked
	}
	switch {
	case s.mode == "off":
		s.dog.Retire()
	case old == "off", old == "required" && s.mode == "auto" && !s.armed.Load() && s.dog.Status().Feeds == 0:
		s.dog.Retire() // its first feed is not required any more
		s.newDog(rules)
		if s.armed.Load() {
			s.dog.Arm()
		}
	default:
		s.dog.SetRules(rules)
	}
	if d := s.d; c.Critical && d.board.beat == 0 {
		d.board.attending.Do(func() { d.probes.Go(func() { d.board.attend(d.serving) }) })
	}
	if s.mode == "required" && !s.dog.Status().Armed {
		s.dog.Require()
	}
	if s.pid.Load() != 0 {
		s.ask(c.Probe)
	}
}

// newDog gives the run a dog, with the pause of its client. client.mu and s.mu are held, or nobody knows s yet.
func (s *session) newDog(rules watchdog.Rules) {
	if s.dog != nil {
		s.client.past.add(s.dog.Status())
	}
	s.dog = s.d.watch.Dog(s.id, rules)
	if p := s.client.pause; p != nil && time.Until(p.until) > 0 {
		s.dog.Pause(time.Until(p.until))
	}
}

// ask makes p the probe of the run, whose process lives. s.mu is held.
func (s *session) ask(p probe.Probe) {
	if s.mode == "off" {
		p = probe.Probe{}
	}
	if reflect.DeepEqual(p, s.probe) {
		return
	}
	s.unprobe()
	s.probe = p
	if !p.Asks() {
		return
	}
	ctx, cancel := context.WithCancel(s.d.serving)
	s.unprobe = cancel
	s.d.probes.Go(func() { s.d.probe(ctx, s, p) })
}

// heard is told of each sign of life, after the dog.
func (s *session) heard() {
	if s.late.Load() && s.late.CompareAndSwap(true, false) {
		s.d.changed(s.id.Name)
	}
}

// claim is a session as one peer proved it; it is what the broker keeps. It implements broker.Session.
type claim struct {
	*session
	name  string
	proof string
	held  *watchdog.Dog // between Hold and Release, which only the peer's reader calls
}

func (c *claim) Managed() bool            { return true }
func (c *claim) Account() *broker.Account { return &c.client.account }
func (c *claim) Proof() string            { return c.proof }

func (c *claim) Feed() {
	if !c.theDog().Feed() {
		c.d.unfed.Add(1)
	}
	c.heard()
}

func (c *claim) Checkpoint(name string) {
	c.Feed() // as by sd_notify
	if !c.theDog().Checkpoint(name) {
		c.d.unfed.Add(1)
	}
}

func (c *claim) Registered() {
	c.client.mu.Lock()
	c.client.receives[c.name] = true
	c.client.mu.Unlock()
	if c.registered.CompareAndSwap(false, true) {
		go c.d.procs.Registered(c.id.Name, c.id.Run)
	}
}

// Arm notes it also where the watchdog is off, whose dog takes no notice: it may be switched on.
func (s *session) Arm() {
	s.theDog().Arm()
	if s.armed.CompareAndSwap(false, true) {
		go s.d.procs.Armed(s.id.Name, s.id.Run)
	}
	s.heard()
}

func (c *claim) Hold() {
	c.held = c.theDog()
	c.held.Hold()
}

func (c *claim) Release() { c.held.Release() }

func (c *claim) First(target string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.targets.first(target)
}
