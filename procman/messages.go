// What others ask of a program.

package procman

import "fmt"

const byMax = 100 // bytes that a record keeps of who stopped a client; the rest is cut

type startMsg struct {
	by    string       // "" is autostart: a client stopped by hand stays so
	fresh bool         // in a new process, also if one runs
	after <-chan error // autostart: not spawned before this answers
	reply chan<- error
}

func (m startMsg) on(p *program) {
	w := waiter{aim: up, run: p.m.run + 1, reply: m.reply}
	switch {
	case p.removed:
		m.reply <- fmt.Errorf("client %q: %w", p.name, ErrClosed)
		close(m.reply)
		return
	case m.by == "":
		p.after, w.aim = m.after, tried
	case p.m.state == Running && !m.fresh:
		w.run = p.m.run
	}
	p.waiters = append(p.waiters, w)
	if p.rec.StoppedBy != "" {
		if m.by == "" {
			p.log.Info("not started", "why", "stopped by "+p.rec.StoppedBy, "next", p.outlook())
			return
		}
		p.rec.StoppedBy = ""
		p.save()
	}
	if m.fresh {
		p.because("restart asked by " + m.by)
		p.handle(event{kind: evRestart})
	} else {
		p.handle(event{kind: evStart})
	}
}

// because notes who or what ends the run that lives, unless it is ending already.
func (p *program) because(text string) {
	if p.m.state == Running {
		p.text = text
	}
}

type stopMsg struct {
	by    string // by hand: recorded; "": because it is gone from the configuration, which is not
	why   string
	hurry bool // SIGKILL at once
	reply chan<- error
}

func (m stopMsg) on(p *program) {
	p.waiters = append(p.waiters, waiter{aim: down, reply: m.reply})
	if m.by != "" {
		m.why = "stop asked by " + m.by
		p.rec.StoppedBy = m.by[:min(len(m.by), byMax)]
		p.save() // before anything is done: it holds even if zhxd dies now
	} else {
		p.removed = true
	}
	p.because(m.why)
	p.handle(event{kind: evStop, hurry: m.hurry})
}

// specMsg is a new configuration of the client; it revives one that was removed and still stops.
type specMsg struct {
	spec   Spec
	action Action
}

func (m specMsg) on(p *program) {
	turnedOn := m.spec.Autostart && !p.m.rules.Autostart
	p.removed, p.m.rules = false, &m.spec
	switch {
	case m.action == ActRestart && p.m.want:
		p.because("its configuration changed")
		p.handle(event{kind: evRestart})
	case m.action == ActLive && turnedOn && !p.m.want && p.rec.StoppedBy == "":
		p.handle(event{kind: evStart})
	default:
		p.handle(event{kind: evRules})
	}
}

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
