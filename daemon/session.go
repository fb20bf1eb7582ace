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
	id     watchdog.ID
	began  time.Time
	client *client
	tree   *proc.Tree
	unfed  *atomic.Int64    // counts feeds of a dog that is not armed
	note   func(armed bool) // once each: to procman, whose record and readiness follow it; does not wait
	tell   func()           // whoever watches the client's state that it is, or is not any more, late

	registered, armed atomic.Bool // noted
	late              atomic.Bool // told

	mode atomic.Int32 // of the watchdog: modeAuto …
	pid  atomic.Int64 // of the leader, 0 before the fork

	mu      sync.Mutex // guards what follows
	dog     *watchdog.Dog
	timeout time.Duration // as configured last
	asked   time.Duration // by the run, instead of that: WATCHDOG_USEC; 0: it did not ask
	targets targets
	sched   *proc.Sched // at the last half time
	looked  time.Time   // when evidence was taken last

	// In mode "observe": a lapse was told, and how many feeds there had been.
	observed bool
	fedAt    int64

	probe   probe.Probe // that is under way
	unprobe func()
}

// targets remembers to whom a message was logged as forwarded.
type targets map[string]struct{}

// first reports whether target is new.
func (t targets) first(target string) bool {
	if _, known := t[target]; known || len(t) >= targetsMax {
		return false
	}
	t[target] = struct{}{}
	return true
}

// How a client's watchdog is armed (key watchdog).
const (
	modeAuto int32 = iota
	modeRequired
	modeOff
)

func modeOf(word string) int32 {
	switch word {
	case "required":
		return modeRequired
	case "off":
		return modeOff
	}
	return modeAuto
}

func (s *session) theDog() *watchdog.Dog {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dog
}

// configure applies what can change while the run lives: the watchdog's mode and rules. What the run asked for stays until
// somebody changes just that. client.mu is held.
func (s *session) configure(d *Daemon, c config.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mode, rules := modeOf(c.Watchdog), c.Rules()
	if mode != modeOff && rules.Timeout != s.timeout {
		s.timeout, s.asked = rules.Timeout, 0
	}
	if s.asked > 0 {
		rules.Timeout = s.asked
	}
	switch old := s.mode.Swap(mode); {
	case mode == modeOff:
		s.dog.Retire()
	case old == modeOff, old == modeRequired && mode == modeAuto && !s.armed.Load() && s.dog.Status().Feeds == 0:
		s.dog.Retire() // its first feed is not required any more
		s.newDog(d, rules)
		if s.armed.Load() {
			s.dog.Arm()
		}
	default:
		s.dog.SetRules(rules)
	}
	if c.Critical && d.board.beat == 0 {
		d.board.attending.Do(func() { d.probes.Go(func() { d.board.attend(d.serving) }) })
	}
	if mode == modeRequired && !s.dog.Status().Armed {
		s.dog.Require()
	}
	if s.pid.Load() != 0 {
		s.ask(d, c.Probe)
	}
}

// newDog gives the run a dog, with the pause of its client. client.mu and s.mu are held, or nobody knows s yet.
func (s *session) newDog(d *Daemon, rules watchdog.Rules) {
	if s.dog != nil {
		s.client.past.add(s.dog.Status())
	}
	s.dog = d.watch.Dog(s.id, rules)
	if p := s.client.pause; p != nil && time.Until(p.until) > 0 {
		s.dog.Pause(time.Until(p.until))
	}
}

// ask makes p the probe of the run, whose process lives. s.mu is held.
func (s *session) ask(d *Daemon, p probe.Probe) {
	if s.mode.Load() == modeOff {
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
	ctx, cancel := context.WithCancel(d.serving)
	s.unprobe = cancel
	d.probes.Go(func() { d.probe(ctx, s, p) })
}

// heard is told of each sign of life, after the dog.
func (s *session) heard() {
	if s.late.Load() && s.late.CompareAndSwap(true, false) {
		s.tell()
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
		c.unfed.Add(1)
	}
	c.heard()
}

func (c *claim) Checkpoint(name string) {
	c.Feed() // as by sd_notify
	if !c.theDog().Checkpoint(name) {
		c.unfed.Add(1)
	}
}

func (c *claim) Registered() {
	c.client.mu.Lock()
	c.client.receives[c.name] = true
	c.client.mu.Unlock()
	if c.registered.CompareAndSwap(false, true) {
		c.note(false)
	}
}

// Arm notes it also where the watchdog is off, whose dog takes no notice: it may be switched on.
func (s *session) Arm() {
	s.theDog().Arm()
	if s.armed.CompareAndSwap(false, true) {
		s.note(true)
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
