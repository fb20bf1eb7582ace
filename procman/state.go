// The state machine of one client. Pure: no clock, no process, no randomness but what the event brings. The picture is in
// procman.go. What an event means in a state that does not name it: nothing.

package procman

import "time"

// A State is what is known of a client's processes.
type State string

const (
	Stopped    State = "stopped"    // nothing lives, nothing is to
	Waiting    State = "waiting"    // for others before its first spawn: leftovers, strays, clients earlier in the file
	Starting   State = "starting"   // being spawned
	Running    State = "running"    // its leader lives
	Stopping   State = "stopping"   // its tree is being brought to an end
	Backoff    State = "backoff"    // nothing lives; spawned again at the deadline
	Failed     State = "failed"     // cannot be spawned without risking a twin, or at all
	Exited     State = "exited"     // it ended and restart says to leave it so
	Unkillable State = "unkillable" // its tree survives SIGKILL
)

type kind string

const (
	evStart       kind = "start"        // wanted up: by hand, or autostart
	evStop        kind = "stop"         // wanted down; hurry: without stop_signal
	evRestart     kind = "restart"      // wanted up, in a new process
	evRules       kind = "rules"        // the spec was exchanged
	evCleared     kind = "cleared"      // nothing is in the way of the first spawn
	evBlocked     kind = "blocked"      // something unverified may live
	evCancelled   kind = "cancelled"    // the wait was given up, as a stop asked
	evSpawned     kind = "spawned"      //
	evSpawnFailed kind = "spawn-failed" //
	evExited      kind = "exited"       // the leader has ended, others of its tree live
	evEnded       kind = "ended"        // the tree is empty and reaped; ok: by itself, with exit code 0
	evTimeout     kind = "timeout"      // the timer rang
	evExpired     kind = "expired"      // the watchdog's verdict on a run
	evFrozen      kind = "frozen"       // the leader is in state T (now, or still, but traced)
	evThawed      kind = "thawed"       // it is not any more
	evStuck       kind = "stuck"        // the deadline found it in state T, untraced
)

type event struct {
	kind  kind
	now   time.Duration // monotonic, > 0
	run   uint64        // evExpired: whom it is about
	ok    bool          // evEnded
	hurry bool          // evStop
	roll  float64       // [0, 1): the dice for jitter
}

// An action is what the program has to do after a step.
type action string

const (
	doNothing action = ""
	doClear   action = "clear"  // answer with evCleared, evBlocked or evCancelled
	doCancel  action = "cancel" // the doClear under way
	doSpawn   action = "spawn"  // run number m.run; answer with evSpawned or evSpawnFailed
	doSignal  action = "signal" // stop_signal to every process of the tree
	doKill    action = "kill"   // SIGKILL to every process of the tree
	doLook    action = "look"   // answer with evFrozen, evThawed or evStuck
)

type machine struct {
	rules    *Spec         // not nil; never written through
	want     bool          // desired: up
	state    State         // actual
	run      uint64        // the run that lives or lived last
	deadline time.Duration // the only timer, overwritten by every transition; 0 is none
	cause    Reason        // why this run is ended by us; "" as long as it is not
	killed   bool          // SIGKILL was sent
	again    bool          // its successor was asked for by hand: no delay
	cleared  bool          // nothing was in the way once, since then every process is ours
	began    time.Duration // when this run was spawned
	frozen   time.Duration // since when its leader is in state T; 0 is not
	lived    time.Duration // how long this run was left to itself
	unstable int           // runs and tries in a row that were shorter than stable_after
	restarts int64         // spawns that nobody asked for by hand
}

func step(m machine, e event) (machine, action) {
	if e.kind == evTimeout && (m.deadline == 0 || e.now < m.deadline) || e.kind == evExpired && e.run != m.run {
		return m, doNothing
	}
	switch m.state {
	case Waiting:
		return m.waiting(e)
	case Starting:
		return m.starting(e)
	case Running:
		return m.running(e)
	case Stopping, Unkillable:
		return m.ending(e)
	}
	return m.resting(e) // stopped, backoff, failed, exited
}

func (m machine) resting(e event) (machine, action) {
	switch e.kind {
	case evStart, evRestart:
		m.want, m.unstable = true, 0
		return m.begin()
	case evStop:
		m.want = false
		return m.to(Stopped, 0, doNothing)
	case evTimeout:
		if m.state == Backoff {
			m.restarts++
		}
		return m.begin()
	case evRules: // a shorter restart_delay_max holds at once
		if m.deadline != 0 {
			m.deadline = min(m.deadline, e.now+m.rules.RestartDelayMax)
		}
	}
	return m, doNothing
}

func (m machine) waiting(e event) (machine, action) {
	switch e.kind {
	case evStart, evRestart:
		m.want = true
	case evStop:
		m.want = false
		return m, doCancel
	case evCleared, evBlocked, evCancelled:
		m.cleared = e.kind == evCleared
		switch {
		case !m.want:
			return m.to(Stopped, 0, doNothing)
		case e.kind == evBlocked:
			return m.to(Failed, e.now+m.rules.RestartDelayMax, doNothing)
		}
		return m.begin()
	}
	return m, doNothing
}

func (m machine) starting(e event) (machine, action) {
	switch e.kind {
	case evStart, evRestart:
		m.want = true
	case evStop:
		m.want = false
	case evSpawned:
		m.began, m.lived, m.frozen = e.now, 0, 0
		m, _ = m.to(Running, 0, doNothing)
		if !m.want {
			return m.stop(e)
		}
	case evSpawnFailed:
		m.lived = 0
		switch {
		case !m.want:
			return m.to(Stopped, 0, doNothing)
		case m.rules.Restart == Never:
			return m.to(Failed, 0, doNothing)
		}
		return m.backoff(e)
	}
	return m, doNothing
}

func (m machine) running(e event) (machine, action) {
	m.lived = e.now - m.began
	switch e.kind {
	case evRestart:
		m.again = true
		return m.stop(e)
	case evStop:
		m.want = false
		return m.stop(e)
	case evExited: // what it left behind had no stop request and gets no time
		return m.kill(e, "")
	case evExpired:
		return m.kill(e, ByWatchdog)
	case evStuck:
		return m.kill(e, ByFrozen)
	case evEnded:
		return m.next(e)
	case evTimeout:
		return m.to(Running, 0, doLook)
	case evFrozen:
		m.frozen = e.now
	case evThawed:
		m.frozen = 0
	case evRules:
	default:
		return m, doNothing
	}
	m.deadline = 0
	if m.frozen != 0 && m.rules.FrozenTimeout > 0 {
		m.deadline = m.frozen + m.rules.FrozenTimeout
	}
	return m, doNothing
}

func (m machine) ending(e event) (machine, action) {
	switch e.kind {
	case evStart, evRestart:
		m.want, m.again = true, true
	case evStop:
		m.want, m.again = false, false
		if e.hurry && !m.killed {
			return m.kill(e, m.cause)
		}
	case evTimeout:
		if !m.killed {
			return m.kill(e, m.cause)
		}
		return m.to(Unkillable, e.now+KillWait, doKill) // again: new members may have kept appearing
	case evEnded:
		return m.next(e)
	}
	return m, doNothing
}

func (m machine) to(s State, deadline time.Duration, a action) (machine, action) {
	m.state, m.deadline = s, deadline
	return m, a
}

// begin spawns the next run, after what stands in its way is gone.
func (m machine) begin() (machine, action) {
	if !m.cleared {
		return m.to(Waiting, 0, doClear)
	}
	m.run++
	m.cause, m.killed, m.again = "", false, false
	return m.to(Starting, 0, doSpawn)
}

func (m machine) stop(e event) (machine, action) {
	if e.hurry {
		return m.kill(e, ByStop)
	}
	m.cause = ByStop
	return m.to(Stopping, e.now+m.rules.StopTimeout, doSignal)
}

func (m machine) kill(e event, cause Reason) (machine, action) {
	m.cause, m.killed = cause, true
	return m.to(Stopping, e.now+KillWait, doKill)
}

// next decides what follows a run.
func (m machine) next(e event) (machine, action) {
	switch {
	case !m.want:
		return m.to(Stopped, 0, doNothing)
	case m.again:
		m.unstable = 0
		return m.begin()
	case m.rules.Restart == Never || m.rules.Restart == OnFailure && e.ok:
		return m.to(Exited, 0, doNothing)
	case m.lived >= m.rules.StableAfter:
		m.unstable = 0
		m.restarts++
		return m.begin()
	}
	return m.backoff(e)
}

// backoff waits restart_delay, doubled for each unstable run in a row, up to restart_delay_max, less up to a fifth so that
// clients that fell together do not rise together.
func (m machine) backoff(e event) (machine, action) {
	d := m.rules.RestartDelay
	for i := 0; i < m.unstable && d < m.rules.RestartDelayMax; i++ {
		d *= 2
	}
	d = min(d, m.rules.RestartDelayMax)
	m.unstable++
	return m.to(Backoff, e.now+d-time.Duration(e.roll*float64(d)/5), doNothing)
}
