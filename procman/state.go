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
	evAdopted     kind = "adopted"      // a run of an earlier zhxd lives; ok: it was ready, d: since when it was spawned
	evRegistered  kind = "registered"   // it has registered with the broker
	evReady       kind = "ready"        // it says that it is ready
	evExtend      kind = "extend"       // it asks for d more, from now, to get ready or to end
	evYield       kind = "yield"        // to end for another client's sake, and to come back when it can
	evThrottled   kind = "throttled"    // the restart has to wait for d: too many on the board at once
	evDumping     kind = "dumping"      // the kernel writes the leader's core
	evUndumped    kind = "undumped"     // it does not
	evKill        kind = "kill"         // SIGKILL, asked by hand; restart decides what follows
	evReset       kind = "reset"        // to forget the failures so far
)

type event struct {
	kind    kind
	now     time.Duration // monotonic, > 0
	run     uint64        // evExpired, evRegistered, evReady, evExtend, evAdopted: whom it is about
	ok      bool          // evEnded, evAdopted
	unknown bool          // evEnded: nobody knows how
	short   bool          // evSpawnFailed, evBlocked: the board had too little of something, which is not the client's doing
	owes    bool          // evAdopted: it had registered and has to come back
	hurry   bool          // evStop
	unmet   bool          // a client that this one depends on is not ready
	spared  bool          // its watchdog is paused, or only observes
	d       time.Duration // evAdopted, evExtend, evThrottled
	roll    float64       // [0, 1): the dice for jitter
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
	doGiveUp  action = "giveup" // the start limit is reached: on_failure
	doAbort   action = "abort"  // abort_signal to the leader alone, for one core and not one a child; answer with evStuck if it is in state T
	doExamine action = "core"   // answer with evDumping or evUndumped
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
	began    time.Duration // when this run was spawned; may be negative for an adopted one
	aborted  time.Duration // when abort_signal was sent; 0 is not
	dumping  time.Duration // since when SIGKILL waits for the core; 0: it does not
	dumped   bool          // the core is written
	frozen   time.Duration // since when its leader is in state T; 0 is not
	spared   bool          // it would have been ended, but for its watchdog's pause
	lived    time.Duration // how long this run was left to itself
	unstable int           // runs and tries in a row that were not ready for stable_after
	restarts int64         // spawns that nobody asked for by hand

	// How far this run is.
	registered, notified bool          // with the broker; by READY=1
	ready                bool          // as the rule has it, now
	readyAt              time.Duration // when it last became so; 0: never yet
	steady               time.Duration // how long it was ready at its end
	startBy              time.Duration // to be ready; 0 is no deadline, also of the next
	backBy               time.Duration // an adopted run, to register again
	done                 bool          // a oneshot that has ended with success

	// Restarts that nobody asked for.
	auto     bool          // the spawn under way is one
	admitted bool          // and has waited for its turn on the board
	window   time.Duration // start of the start limit's interval
	count    int           // restarts in it
}

func step(m machine, e event) (machine, action) {
	switch e.kind {
	case evTimeout:
		if m.deadline == 0 || e.now < m.deadline {
			return m, doNothing
		}
	case evExpired, evRegistered, evReady, evExtend:
		if e.run != m.run {
			return m, doNothing
		}
	case evStart, evRestart, evReset: // whoever asks knows of the crashes
		m.unstable, m.count = 0, 0
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
		m.want, m.auto = true, false
		return m.begin(e)
	case evStop:
		m.want, m.done = false, false
		return m.to(Stopped, 0, doNothing)
	case evTimeout:
		return m.begin(e)
	case evAdopted:
		m.want, m.cleared, m.run, m.began = true, true, e.run, e.now-e.d
		m.auto, m.registered, m.notified, m.readyAt = false, e.ok, e.ok, 0
		if e.owes {
			m.owe(e)
		}
		m.limitStart(e) // what it said while no zhxd listened is lost
		m, _ = m.to(Running, 0, doNothing)
		return m.judge(e), doNothing
	case evRules: // a shorter restart_delay_max holds at once
		if m.deadline != 0 {
			m.deadline = min(m.deadline, e.now+m.rules.RestartDelayMax)
		}
	case evReset: // it does not start what has given up
		if m.state == Failed && m.deadline == 0 {
			m.want = false
			return m.to(Stopped, 0, doNothing)
		}
		if m.deadline != 0 {
			m.deadline = min(m.deadline, e.now+m.rules.RestartDelay)
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
	case evRules: // it may wait for others now
		return m, doCancel
	case evCleared, evBlocked, evCancelled:
		m.cleared = m.cleared || e.kind == evCleared
		switch {
		case !m.want:
			return m.to(Stopped, 0, doNothing)
		case e.kind == evBlocked && e.short:
			return m.to(Failed, e.now+shortDelay, doNothing)
		case e.kind == evBlocked:
			return m.to(Failed, e.now+m.rules.RestartDelayMax, doNothing)
		}
		return m.begin(e)
	}
	return m, doNothing
}

func (m machine) starting(e event) (machine, action) {
	switch e.kind {
	case evStart, evRestart:
		m.want = true
	case evStop:
		m.want = false
	case evThrottled: // no run yet
		m.run--
		m.admitted = true
		return m.to(Backoff, e.now+e.d, doNothing)
	case evSpawned:
		m.counted()
		m.began, m.lived, m.frozen = e.now, 0, 0
		m.limitStart(e)
		m, _ = m.to(Running, 0, doNothing)
		if !m.want {
			return m.stop(e, ByStop)
		}
		return m.judge(e), doNothing
	case evSpawnFailed:
		m.lived = 0
		if e.short && m.want { // neither a restart nor a failure of the client
			m.admitted = false
			return m.to(Backoff, e.now+shortDelay-time.Duration(e.roll*float64(shortDelay)/5), doNothing)
		}
		m.counted()
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

func (m *machine) counted() {
	if m.auto {
		m.restarts++
	}
}

func (m *machine) limitStart(e event) {
	if m.rules.StartTimeout > 0 && !m.rules.Oneshot {
		m.startBy = e.now + m.rules.StartTimeout
	}
}

// owe gives an adopted run, that has not come back yet, watchdog_timeout for it.
func (m *machine) owe(e event) {
	if m.backBy = 0; m.rules.FrozenTimeout > 0 {
		m.backBy = e.now + m.rules.FrozenTimeout
	}
}

// judge brings ready up to date, and the one deadline of a run that lives.
func (m machine) judge(e event) machine {
	is := !m.rules.Oneshot
	switch m.rules.Ready {
	case ReadyRegister:
		is = is && m.registered
	case ReadyNotify:
		is = is && m.notified
	}
	if is && !m.ready {
		m.readyAt, m.startBy = e.now, 0
	}
	m.ready, m.deadline = is, 0
	for _, d := range []time.Duration{m.startBy, m.backBy, m.frozenBy()} {
		if d != 0 && (m.deadline == 0 || d < m.deadline) {
			m.deadline = d
		}
	}
	return m
}

// frozenBy is when a leader in state T is looked at; 0 is never.
func (m machine) frozenBy() time.Duration {
	if m.frozen == 0 || m.rules.FrozenTimeout <= 0 {
		return 0
	}
	return m.frozen + m.rules.FrozenTimeout
}

func (m machine) running(e event) (machine, action) {
	m.lived, m.steady = e.now-m.began, 0
	if m.ready {
		m.steady = e.now - m.readyAt
	}
	switch e.kind {
	case evRestart:
		m.again = true
		return m.stop(e, ByStop)
	case evStop:
		m.want = false
		return m.stop(e, ByStop)
	case evYield:
		return m.stop(e, ByDependency)
	case evExited: // what it left behind had no stop request and gets no time
		return m.kill(e, "")
	case evKill:
		return m.kill(e, BySignal)
	case evExpired:
		if !e.spared {
			return m.abort(e)
		}
		m.spared = true
	case evStuck:
		if !e.spared { // it could not handle abort_signal
			return m.kill(e, ByFrozen)
		}
		m.frozen, m.spared = e.now, true
	case evEnded:
		return m.next(e)
	case evTimeout:
		switch {
		case m.startBy != 0 && e.now >= m.startBy:
			return m.kill(e, ByTimeout)
		case m.backBy == 0 || e.now < m.backBy:
			return m.to(Running, 0, doLook)
		case !e.spared:
			return m.abort(e)
		}
		m.spared = true
		m.owe(e)
	case evFrozen:
		m.frozen = e.now
	case evThawed:
		m.frozen, m.spared = 0, false
	case evRegistered:
		m.registered, m.backBy = true, 0
	case evReady:
		m.notified, m.backBy = true, 0
	case evExtend:
		if m.startBy != 0 {
			m.startBy = max(m.startBy, e.now+e.d)
		}
	case evRules:
		if !m.ready && m.startBy == 0 {
			m.limitStart(e)
		}
	default:
		return m, doNothing
	}
	return m.judge(e), doNothing
}

func (m machine) ending(e event) (machine, action) {
	aborting := m.aborted != 0 && !m.killed
	switch e.kind {
	case evStart, evRestart:
		m.want, m.again = true, true
	case evStop:
		m.want, m.again = false, false
		if e.hurry && !m.killed {
			return m.kill(e, m.cause)
		}
	case evKill:
		if !m.killed {
			return m.kill(e, m.cause)
		}
	case evExtend:
		if !m.killed && !aborting {
			m.deadline = max(m.deadline, e.now+e.d)
		}
	case evExited:
		if aborting {
			return m.kill(e, m.cause)
		}
	case evUndumped:
		switch {
		case aborting && m.dumping != 0 && !m.dumped: // it ends now, by itself
			m.dumped, m.deadline = true, e.now+coreEnd
		case aborting:
			return m.kill(e, m.cause)
		}
	case evStuck:
		if aborting {
			m.aborted = 0 // it was not sent
			return m.kill(e, m.cause)
		}
	case evDumping:
		if aborting && m.dumping == 0 {
			m.dumping = e.now
		}
		if aborting {
			m.deadline = min(e.now+coreLook, m.dumping+coreMax)
		}
	case evTimeout:
		switch {
		case aborting && !m.dumped && (m.dumping == 0 || e.now < m.dumping+coreMax):
			return m.to(Stopping, 0, doExamine)
		case !m.killed:
			return m.kill(e, m.cause)
		}
		return m.to(Unkillable, e.now+killWait, doKill) // again: new members may have kept appearing
	case evEnded:
		return m.next(e)
	}
	return m, doNothing
}

func (m machine) to(s State, deadline time.Duration, a action) (machine, action) {
	m.state, m.deadline = s, deadline
	return m, a
}

// begin spawns the next run, after what stands in its way is gone and those that it depends on are ready.
func (m machine) begin(e event) (machine, action) {
	if !m.cleared || e.unmet {
		return m.to(Waiting, 0, doClear)
	}
	m.run++
	m.cause, m.killed, m.again, m.done, m.spared = "", false, false, false, false
	m.aborted, m.dumping, m.dumped = 0, 0, false
	m.registered, m.notified, m.ready, m.readyAt, m.steady, m.startBy, m.backBy = false, false, false, 0, 0, 0, 0
	return m.to(Starting, 0, doSpawn)
}

func (m machine) stop(e event, cause Reason) (machine, action) {
	if e.hurry {
		return m.kill(e, cause)
	}
	m.cause, m.ready = cause, false
	return m.to(Stopping, e.now+m.rules.StopTimeout, doSignal)
}

// abort ends a run after a lapse: with abort_signal first, if there is one. Its deadline is the timeout's; then, while the core
// is being written, the next look at that.
func (m machine) abort(e event) (machine, action) {
	if m.rules.AbortSignal == 0 {
		return m.kill(e, ByWatchdog)
	}
	m.cause, m.aborted, m.ready = ByWatchdog, e.now, false
	return m.to(Stopping, e.now+m.rules.AbortTimeout, doAbort)
}

func (m machine) kill(e event, cause Reason) (machine, action) {
	m.cause, m.killed, m.ready = cause, true, false
	return m.to(Stopping, e.now+killWait, doKill)
}

// next decides what follows a run.
func (m machine) next(e event) (machine, action) {
	m.ready, m.auto, m.admitted = false, false, false
	switch {
	case !m.want:
		return m.to(Stopped, 0, doNothing)
	case m.again, m.cause == ByDependency:
		return m.begin(e)
	case m.rules.Oneshot && e.ok:
		m.done = true
		return m.to(Exited, 0, doNothing)
	case m.rules.Restart == Never || m.rules.Restart == OnFailure && e.ok:
		return m.to(Exited, 0, doNothing)
	case m.steady >= m.rules.StableAfter:
		m.unstable = 0
		if m.limited(e) {
			return m.to(Failed, 0, doGiveUp)
		}
		m.auto = true
		return m.begin(e)
	}
	return m.backoff(e)
}

// limited counts a restart, and tells whether it is one too many. An end that the kernel did not tell of does not count: it
// may have been a good one.
func (m *machine) limited(e event) bool {
	limit := m.rules.StartLimit
	if limit.Burst <= 0 || e.unknown {
		return false
	}
	if m.count == 0 || e.now-m.window >= limit.Interval {
		m.window, m.count = e.now, 0
	}
	m.count++
	return m.count > limit.Burst
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
	if m.limited(e) {
		return m.to(Failed, 0, doGiveUp)
	}
	m.auto, m.admitted = true, false
	return m.to(Backoff, e.now+d-time.Duration(e.roll*float64(d)/5), doNothing)
}
