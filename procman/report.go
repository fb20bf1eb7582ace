// What people are told: one line an event, with who, what, why, and what happens next.

package procman

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// report logs the step from was by e, after the machine took it and before its action is done.
func (p *program) report(was machine, e event) {
	log := p.log.With("run", p.m.run)
	switch state := p.m.state; {
	case e.kind == evSpawned:
		log.Info("started", "pid", p.life.pid())
	case p.m.ready && !was.ready:
		log.Info("ready", "pid", p.life.pid(), "after", (p.m.readyAt - p.m.began).Round(time.Millisecond))
	case e.kind == evThrottled:
		log.Info("restart put off", "why", "too many restarts on the board at once", "next", p.outlook())
	case e.kind == evSpawnFailed && e.short && p.same: // told already; the certificate of the first would push out those of real deaths
		p.deaths = p.deaths[:max(0, len(p.deaths)-1)]
		p.bury()
	case e.kind == evSpawnFailed:
		p.bury()
		log.Warn("spawn failed", "err", p.text, "next", p.outlook())
	case e.kind == evBlocked && e.short && p.same:
	case e.kind == evBlocked && state == Failed:
		log.Error("not started", "err", p.text, "next", p.outlook())
	case e.kind == evEnded:
		p.bury() // its line is logged when the action is done
	case e.kind == evExited && p.m.killed && !was.killed:
		log.Warn("left processes behind", "processes", p.life.members(), "next", "they are killed")
	case e.kind == evFrozen && was.frozen == 0 && p.m.deadline != 0:
		next := fmt.Sprintf("killed unless it continues within %v", p.m.rules.FrozenTimeout)
		if e.spared {
			next = spared
		}
		log.Warn("frozen", "pid", p.life.pid(), "next", next)
	case p.m.spared && !was.spared:
		log.Warn("lapse", "why", p.text, "next", spared)
	case e.kind == evThawed && was.frozen != 0:
		log.Info("continues", "pid", p.life.pid())
	case state == Unkillable && was.state != Unkillable:
		log.Error("unkillable", "processes", p.text, "next", "no successor until they are gone")
	case state == Stopping && was.state == Running && (p.m.cause == ByStop || p.m.cause == ByDependency) && !p.m.killed:
		log.Info("stopping", "why", p.text, "signal", signalName(p.m.rules.StopSignal),
			"next", fmt.Sprintf("SIGKILL unless its tree is empty within %v", p.m.rules.StopTimeout))
	case state == Stopping && was.state == Running && p.m.aborted != 0:
		log.Warn("aborting", "why", p.text, "signal", signalName(p.m.rules.AbortSignal),
			"next", fmt.Sprintf("SIGKILL to its whole tree unless its leader has ended within %v", p.m.rules.AbortTimeout))
	case p.m.dumping != 0 && was.dumping == 0:
		log.Info("its core is being written", "next", fmt.Sprintf("SIGKILL when it is, at the latest in %v", coreMax))
	case state == Stopping && was.state == Stopping && p.m.killed && !was.killed:
		log.Warn("does not stop", "processes", p.life.members(), "next", "SIGKILL to its whole tree")
	}
}

const spared = "nothing: its watchdog is paused, or only observes"

// The message and its level for each reason that a run ends for.
var (
	texts = map[Reason]string{ByExit: "exited", BySignal: "killed by signal", ByWatchdog: "killed by the watchdog",
		ByFrozen: "killed, since it was frozen", ByStop: "stopped", ByTimeout: "killed, since it was not ready",
		ByDependency: "stopped for another", ByUnknown: "ended, the kernel did not tell how"}
	gravity = map[Reason]slog.Level{ByExit: slog.LevelInfo, BySignal: slog.LevelWarn, ByWatchdog: slog.LevelWarn,
		ByFrozen: slog.LevelWarn, ByStop: slog.LevelInfo, ByTimeout: slog.LevelWarn, ByDependency: slog.LevelInfo, ByUnknown: slog.LevelWarn}
)

// bury keeps the certificate of the last death.
func (p *program) bury() {
	p.last.Next = p.outlook()
	p.deaths = append(slices.Clone(p.deaths[max(0, len(p.deaths)+1-deathsMax):]), *p.last)
}

func (l *LastExit) log(log *slog.Logger) {
	as := []slog.Attr{slog.Uint64("run", l.Run), slog.Int("pid", l.PID)}
	if l.Signal == "" {
		as = append(as, slog.Int("code", l.Code))
	} else {
		as = append(as, slog.String("signal", l.Signal))
	}
	if l.Core {
		as = append(as, slog.Bool("core", true))
	}
	if l.Text != "" {
		as = append(as, slog.String("why", l.Text))
	}
	as = append(as, slog.Duration("lived", l.Lived.Round(time.Millisecond)), slog.String("next", l.Next))
	log.LogAttrs(context.Background(), gravity[l.Reason], texts[l.Reason], as...)
}

// outlook says what happens to the client next, as the machine stands.
func (p *program) outlook() string {
	switch p.m.state {
	case Starting:
		return "restarts at once"
	case Waiting:
		if ds := p.unmet(); len(ds) > 0 {
			return "starts when ready: " + waits(ds)
		}
		return "starts in its turn"
	case Backoff:
		return fmt.Sprintf("restarts in %v", (p.m.deadline - p.now()).Round(time.Millisecond))
	case Failed:
		if p.m.deadline == 0 {
			return "stays so until it is started by hand"
		}
		return fmt.Sprintf("tried again in %v", (p.m.deadline - p.now()).Round(time.Millisecond))
	case Exited:
		if p.m.done {
			return "done: it is to run once"
		}
		return fmt.Sprintf("stays so: restart = %q", p.m.rules.Restart)
	case Stopped:
		if p.removed {
			return "nothing, it is not to run any more"
		}
		return "stays stopped until it is started by hand"
	}
	return "it is " + string(p.m.state)
}

// doing says in one sentence what the client does and what happens next.
func (p *program) doing() string {
	m := p.m
	switch m.state {
	case Running:
		switch {
		case p.phase != "":
			return "runs, and says that it is " + p.phase
		case m.ready:
			return "runs, and is ready"
		case m.rules.Oneshot:
			return "runs, once"
		case m.startBy != 0:
			return fmt.Sprintf("runs, not ready yet; killed unless it is (ready = %q) within %v", m.rules.Ready, m.rules.StartTimeout)
		}
		return fmt.Sprintf("runs, not ready yet (ready = %q)", m.rules.Ready)
	case Stopping:
		if p.text == "" {
			return "what is left of it is being stopped"
		}
		return "is being stopped: " + p.text
	case Unkillable:
		return "survives SIGKILL, and gets no successor until it is gone: " + p.text
	case Failed:
		return "failed: " + p.text + "; " + p.outlook()
	case Exited, Stopped:
		if p.rec.StoppedBy != "" {
			return "stopped by " + p.rec.StoppedBy + "; " + p.outlook()
		}
	case Starting:
		return "is being spawned"
	}
	return string(m.state) + "; " + p.outlook()
}
