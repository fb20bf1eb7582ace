// What the watchdog's words mean for clients: when it may speak, what is looked at before, and what follows.
//
//	half time ── Warned ─> look: a goroutine of its own ─> evidence, and whether a processor is wanted in vain from now on
//	deadline ─── settle: what has arrived is read ─> examine: traced? starved? ─> Lapsed ─> procman's ladder
//	                                                                  paused, mode "observe": told, and nothing is done
package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
	"zhx/procman"
	"zhx/procman/proc"
	"zhx/watchdog"
	"zhx/watchdog/probe"
)

const (
	lookTime   = 50 * time.Millisecond // for one look at a late client; what was not seen by then is left out
	looksMax   = 16                    // looks at a time; beyond, clients are not looked at, which is counted
	attendEach = time.Second           // how often a late client is looked at for a debugger
	lookLines  = 3                     // of what it printed last
	lookRest   = time.Second           // between two looks at the same run, which may feed late again and again

	hintFeeds = 20 // feeds of a run before there are hints
)

// evidence is what a client was seen doing at its half time.
type evidence struct {
	run     uint64
	at      time.Time
	by      string
	silence time.Duration
	lines   []string
}

// pause is a watchdog stopped by hand, over all runs of its client.
type pause struct {
	until time.Time
	text  string // who, and why
}

// settle lets feeds that have arrived be read before the judge speaks. Peers that have not said yet whose they are count
// for everybody.
func (d *Daemon) settle(suspects []watchdog.ID) {
	limit, trees := time.Now().Add(watchdog.SettleMax), map[*proc.Tree]bool{}
	for _, id := range suspects {
		if s := d.session(id); s != nil {
			trees[s.tree] = true
		}
	}
	d.bus.Settle(watchdog.SettleMax, func(who any) bool {
		t := who.(*visitor).tree.Load()
		return t == nil || trees[t]
	})
	for _, id := range suspects {
		for id.Run&foreignBit == 0 && d.procs.Unheard(id.Name, id.Run) && time.Now().Before(limit) {
			time.Sleep(time.Millisecond) // its socket's goroutine is at work, and tells nobody when it is through
		}
	}
}

// warned has a late client looked at. The reading of /proc cannot be bounded by anybody, so the judge does not wait for it.
func (d *Daemon) warned(w watchdog.Warning) {
	s := d.session(w.ID)
	if s == nil {
		return
	}
	if sig := s.client.configured().WarnSignal; sig != 0 && !d.spare(w.Name) {
		go d.procs.Warn(w.Name, w.Run, sig)
	}
	d.event(w.Name, "late", &w.Run, "silent for %v of %v, for %s", round(w.Silence), w.Limit, w.By)
	s.late.Store(true)
	d.changed(w.Name)
	go func() {
		d.look(s, w)
		d.attend(s)
	}()
}

// attend looks for a debugger for as long as the run is late: the judge asks only at the deadline, when it may have left.
func (d *Daemon) attend(s *session) {
	dog := s.theDog()
	tick := time.NewTicker(attendEach)
	defer tick.Stop()
	for late := dog.Status(); ; {
		if traced(s.tree.Tracer()) {
			dog.Trace()
			return
		}
		select {
		case <-tick.C:
		case <-d.serving.Done():
			return
		}
		if now := dog.Status(); !now.Armed || now.Feeds != late.Feeds || d.session(s.id) != s {
			return
		}
	}
}

func (d *Daemon) look(s *session, w watchdog.Warning) {
	now := s.tree.Sched() // of everybody, at once: it is the excuse of those who are many, since the processors are busy
	s.mu.Lock()
	s.sched = &now
	rested := time.Since(s.looked) >= lookRest
	if rested {
		s.looked = time.Now()
	}
	s.mu.Unlock()
	if !rested {
		return
	}
	defer d.looks.Add(-1)
	if d.looks.Add(1) > looksMax {
		d.unlooked.Add(1)
		return
	}
	e := &evidence{run: w.Run, at: time.Now(), by: w.By, silence: w.Silence, lines: s.tree.Evidence(lookTime).Lines()}
	seen := len(e.lines)
	if ring := d.procs.Ring(w.Name); ring != nil {
		for _, line := range ring.Tail(lookLines) {
			if line.At.After(s.began) {
				e.lines = append(e.lines, "printed: "+line.Text)
			}
		}
	}
	s.client.mu.Lock()
	s.client.evidence = e
	s.client.mu.Unlock()
	what := "nothing"
	if seen > 1 {
		what = strings.ReplaceAll(strings.Join(strings.Fields(e.lines[1]), " "), `"`, "")
	}
	d.log.Warn("late", "client", w.Name, "run", w.Run, "for", w.By, "silence", round(w.Silence), "limit", w.Limit, "seen", what,
		"next", "zhxctl why "+w.Name)
}

// examine looks whether a silent client could have spoken.
func (d *Daemon) examine(id watchdog.ID) (e watchdog.Excuse) {
	if id.Run&foreignBit != 0 {
		if f := d.foreignRun(id); f != nil && f.id != (proc.ID{}) {
			e.Traced = traced(proc.Tracer(f.id.PID))
		}
		return e
	}
	s := d.session(id)
	if s == nil {
		return e
	}
	e.Traced = traced(s.tree.Tracer())
	s.mu.Lock()
	since := s.sched
	s.mu.Unlock()
	if since != nil {
		e.Starved = since.Starved(s.tree.Sched())
	}
	return e
}

// traced reads the answer of a look for a tracer.
func traced(tracer int, err error) bool { return err == nil && tracer != 0 }

// lapsed is the watchdog's verdict.
func (d *Daemon) lapsed(l watchdog.Lapse) {
	if l.Run&foreignBit != 0 {
		d.lapsedForeign(l)
		return
	}
	s := d.session(l.ID)
	if s == nil {
		return // it has ended meanwhile
	}
	s.client.lapses.Add(1)
	log := d.log.With("client", l.Name, "run", l.Run, "pid", s.pid.Load(), "silence", round(l.Silence), "timeout", l.Timeout)
	why := verdict(l)
	d.event(l.Name, "lapse", &l.Run, "%s", why)
	if d.observes() {
		dog := s.theDog()
		if n := dog.Status().Feeds + 1; n != s.told {
			s.told = n
			log.Warn("lapse", "why", why, "next", `nothing: mode = "observe"`)
		}
		dog.Arm()
		s.heard()
		return
	}
	next := "its whole tree is killed"
	if sig := s.client.configured().AbortSignal; sig != 0 {
		next = fmt.Sprintf("%s, then its whole tree is killed", unix.SignalName(sig))
	}
	if l.By != "alive" || l.Credited > 0 {
		log = log.With("why", why)
	}
	log.Warn("lapse", "next", next)
	go func() { // its loop may be busy; the judge must not be
		if d.procs.Expire(l.Name, l.Run, why); d.spare(l.Name) {
			s.theDog().Arm() // a pause, or an edit, came in between: judged again when that is over
		}
	}()
}

// verdict is a lapse for people.
func verdict(l watchdog.Lapse) (why string) {
	switch l.By {
	case "alive":
		why = fmt.Sprintf("no feed for %v", round(l.Silence))
	case "startup":
		why = fmt.Sprintf("no first feed for %v", round(l.Silence))
	default:
		why = fmt.Sprintf("checkpoint %s took longer than %v", l.By, l.Timeout)
	}
	if l.Credited > 0 {
		why += fmt.Sprintf(", %v of them given since it waited for a processor", round(l.Credited))
		if busy, ok := proc.CPUPressure(); ok {
			why += fmt.Sprintf(" (cpu pressure %.0f %%)", busy)
		}
	}
	return why
}

func (d *Daemon) observes() bool { return d.config().Watchdog.Mode == "observe" }

// spare tells procman whose frozen or silent processes are not to be ended.
func (d *Daemon) spare(name string) bool {
	c := d.client(name)
	return d.observes() || c != nil && c.paused() != nil
}

// Said implements procman.Events: a word on the run's notify socket. The first sign of life arms, as by a packet; a checkpoint is
// one as well.
func (d *Daemon) Said(name string, run uint64, sign procman.Sign) {
	s := d.session(watchdog.ID{Name: name, Run: run})
	if s == nil {
		return
	}
	dog := s.theDog()
	if sign.Timeout > 0 {
		s.mu.Lock()
		s.asked = sign.Timeout
		s.dog.SetTimeout(sign.Timeout)
		s.mu.Unlock()
	}
	if sign.Extend > 0 {
		dog.Extend(sign.Extend)
	}
	if sign.Alive || sign.Checkpoint != "" || sign.Ready && dog.Status().Armed {
		s.alive()
	}
	if sign.Checkpoint != "" && !dog.Checkpoint(sign.Checkpoint) {
		d.unfed.Add(1)
	}
}

// alive is a sign of life that arms, if it may, where nothing was armed. That of a required run is noted, too: adopted, it is not
// at its start any more.
func (s *session) alive() {
	if !s.theDog().Feed() || !s.armed.Load() {
		s.Arm()
	}
	s.heard()
}

// probe asks the run, as its client's probe says, for as long as it lives.
func (d *Daemon) probe(ctx context.Context, s *session, p probe.Probe) {
	var last string
	probe.Run(ctx, p, func(ctx context.Context) error { return d.procs.Execute(ctx, s.id.Name, p.Exec, p.Timeout) }, func(err error) {
		if err == nil {
			s.alive()
			last = ""
		} else if text := err.Error(); text != last && ctx.Err() == nil {
			last = text
			d.log.Warn("probe failed", "client", s.id.Name, "run", s.id.Run, "err", text, "next", "no feed; asked again in "+p.Interval.String())
		}
	})
}

// paused is the pause by hand that holds now.
func (c *client) paused() *pause {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pause != nil && time.Until(c.pause.until) <= 0 {
		c.pause = nil
	}
	return c.pause
}

// Paused implements procman.Events.
func (d *Daemon) Paused(name string, left time.Duration, text string) {
	if c := d.client(name); c != nil {
		c.mu.Lock()
		c.pause = &pause{until: time.Now().Add(left), text: text}
		c.mu.Unlock()
	}
}

// Pause implements control.Backend.
func (b backend) Pause(_ context.Context, by control.Caller, m control.PauseRequest) ([]control.Outcome, error) {
	length := time.Duration(m.Seconds * float64(time.Second))
	p := &pause{until: time.Now().Add(length), text: by.String()}
	if m.Reason != "" {
		p.text += ": " + m.Reason
	}
	return b.setPause(by, control.Which{Names: m.Names}, p, func(s *session) { s.theDog().Pause(length) },
		"watchdog paused for "+round(length).String())
}

// Resume implements control.Backend.
func (b backend) Resume(_ context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	return b.setPause(by, w, nil, func(s *session) { s.theDog().Resume() }, "watchdog resumed")
}

func (b backend) setPause(by control.Caller, w control.Which, p *pause, tell func(*session), done string) (out []control.Outcome, err error) {
	names, err := b.resolve(w)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		c := b.client(name)
		if c == nil {
			continue // an edit has removed it a moment ago
		}
		c.mu.Lock()
		mode := c.conf.Watchdog
		if c.pause = p; c.current != nil {
			tell(c.current)
		}
		c.mu.Unlock()
		if p == nil {
			b.procs.Pause(name, 0, "")
		} else {
			b.procs.Pause(name, proc.Uptime()+time.Until(p.until), p.text)
		}
		o := control.Outcome{Name: name, Text: done}
		if mode == "off" {
			o.Text += `, which is off`
		}
		out = append(out, o)
		b.log.Info("asked of the watchdog", "client", name, "by", by.String(), "next", done)
		b.event(name, "asked", nil, "%s by %v", done, by)
	}
	return out, nil
}

// hint says whether the timeout fits what the client does; "": it does, or it is too early to say.
func hint(dog watchdog.Status) string {
	i := dog.Intervals
	switch {
	case i.Count < hintFeeds:
	case i.Max > dog.Timeout*3/4:
		return fmt.Sprintf("too tight: slowest feed %v of %v", round(i.Max), dog.Timeout)
	case i.Max < dog.Timeout/20 && dog.Timeout > time.Second:
		return fmt.Sprintf("too loose: slowest feed %v of %v", round(i.Max), dog.Timeout)
	}
	return ""
}
