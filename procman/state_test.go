package procman

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	allStates = []State{Stopped, Waiting, Starting, Running, Stopping, Backoff, Failed, Exited, Unkillable}
	allKinds  = []kind{evStart, evStop, evRestart, evRules, evCleared, evBlocked, evCancelled, evSpawned, evSpawnFailed, evExited,
		evEnded, evTimeout, evExpired, evFrozen, evThawed, evStuck, evAdopted, evRegistered, evReady, evExtend, evYield, evThrottled, evDumping, evUndumped,
		evKill, evReset}
)

func testRules() *Spec {
	return &Spec{Name: "x", Command: []string{"x"}, Restart: Always, RestartDelay: 100 * time.Millisecond, RestartDelayMax: time.Second,
		StableAfter: 5 * time.Second, StopTimeout: 5 * time.Second, FrozenTimeout: 9 * time.Second}
}

// TestEveryPair walks every (state, event) pair. A pair that is not in the table changes nothing and asks for nothing.
func TestEveryPair(t *testing.T) {
	// As a client that is wanted up, in a run that began 1 s ago (so is unstable), whose deadline is just over.
	const now = 10 * time.Second
	table := map[State]map[kind]string{
		Stopped: {evStart: "starting spawn", evRestart: "starting spawn", evStop: "stopped", evTimeout: "starting spawn", evAdopted: "running"},
		Waiting: {evStop: "waiting cancel", evRules: "waiting cancel", evCleared: "starting spawn", evBlocked: "failed",
			evCancelled: "starting spawn"},
		Starting: {evSpawned: "running", evSpawnFailed: "backoff", evThrottled: "backoff"},
		Running: {evStop: "stopping signal", evRestart: "stopping signal", evExited: "stopping kill", evEnded: "backoff",
			evTimeout: "running look", evExpired: "stopping kill", evStuck: "stopping kill", evYield: "stopping signal", evKill: "stopping kill"},
		Stopping:   {evTimeout: "stopping kill", evEnded: "backoff", evKill: "stopping kill"},
		Backoff:    {evStart: "starting spawn", evRestart: "starting spawn", evStop: "stopped", evTimeout: "starting spawn", evAdopted: "running"},
		Failed:     {evStart: "starting spawn", evRestart: "starting spawn", evStop: "stopped", evTimeout: "starting spawn", evAdopted: "running"},
		Exited:     {evStart: "starting spawn", evRestart: "starting spawn", evStop: "stopped", evTimeout: "starting spawn", evAdopted: "running"},
		Unkillable: {evTimeout: "stopping kill", evEnded: "backoff", evKill: "stopping kill"},
	}
	for _, s := range allStates {
		for _, k := range allKinds {
			m := machine{rules: testRules(), want: s != Stopped, state: s, run: 7, cleared: true, began: 9 * time.Second, deadline: now}
			m2, a := step(m, event{kind: k, now: now, run: 7, d: time.Second})
			got := strings.TrimSpace(string(m2.state) + " " + string(a))
			want := table[s][k]
			if want == "" {
				want = string(s)
			}
			if got != want {
				t.Errorf("%s, %s: got %q, want %q", s, k, got, want)
			}
			run := uint64(7)
			switch {
			case a == doSpawn:
				run = 8
			case k == evThrottled && s == Starting: // it was none
				run = 6
			}
			if m2.run != run {
				t.Errorf("%s, %s: run %d after %q", s, k, m2.run, a)
			}
			if m2.state != s && m2.deadline == now {
				t.Errorf("%s, %s: the deadline of the old state holds in %s", s, k, m2.state)
			}
		}
	}
}

// TestStepDetails tells, one story a row, what the pairs leave open.
func TestStepDetails(t *testing.T) {
	const s = time.Second
	base := machine{rules: testRules(), want: true, state: Running, run: 3, cleared: true, began: 1 * s, ready: true, readyAt: 1 * s}
	notify := func(m *machine) { // spawned at 1 s, not ready
		m.rules.Ready, m.rules.StartTimeout, m.ready, m.readyAt, m.startBy, m.deadline = ReadyNotify, 3*s, false, 0, 4*s, 4*s
	}
	abort := func(m *machine) { m.rules.AbortSignal, m.rules.AbortTimeout = syscall.SIGABRT, 10*s }
	lapse := event{kind: evExpired, now: 2 * s, run: 3}
	dump := func(now time.Duration) []event {
		return []event{lapse, {kind: evTimeout, now: now}, {kind: evDumping, now: now}}
	}
	limited := func(m *machine) { m.rules.StartLimit = StartLimit{2, 10 * s} }
	with := func(change func(m *machine)) machine { m := base; m.rules = testRules(); change(&m); return m }
	for _, c := range []struct {
		story    string
		m        machine
		events   []event
		state    State
		action   action // of the last event
		deadline time.Duration
	}{
		{"after a stable run: at once", base, []event{{kind: evEnded, now: 6 * s}}, Starting, doSpawn, 0},
		{"after an unstable run: restart_delay", base, []event{{kind: evEnded, now: 2 * s}}, Backoff, doNothing, 2*s + 100*time.Millisecond},
		{"jitter takes off up to a fifth", base, []event{{kind: evEnded, now: 2 * s, roll: 0.5}}, Backoff, doNothing, 2*s + 90*time.Millisecond},
		{"the delay doubles", with(func(m *machine) { m.unstable = 3 }), []event{{kind: evEnded, now: 2 * s}}, Backoff, doNothing, 2*s + 800*time.Millisecond},
		{"up to its limit, for ever", with(func(m *machine) { m.unstable = 1 << 30 }), []event{{kind: evEnded, now: 2 * s}}, Backoff, doNothing, 3 * s},
		{"a failed spawn backs off too", with(func(m *machine) { m.state, m.unstable = Starting, 1 }), []event{{kind: evSpawnFailed, now: s}}, Backoff, doNothing, s + 200*time.Millisecond},
		{"nothing is counted of one that failed for a shortage", with(func(m *machine) { m.state, m.unstable, m.rules.Restart = Starting, 5, Never }), []event{{kind: evSpawnFailed, short: true, now: s}}, Backoff, doNothing, s + shortDelay},
		{"nor is one that is in the way for a shortage", with(func(m *machine) { m.state, m.want = Waiting, true }), []event{{kind: evBlocked, short: true, now: s}}, Failed, doNothing, s + shortDelay},
		{"a failed spawn, never again", with(func(m *machine) { m.state = Starting; m.rules.Restart = Never }), []event{{kind: evSpawnFailed, now: s}}, Failed, doNothing, 0},
		{"restart = never", with(func(m *machine) { m.rules.Restart = Never }), []event{{kind: evEnded, now: 9 * s}}, Exited, doNothing, 0},
		{"on-failure, success", with(func(m *machine) { m.rules.Restart = OnFailure }), []event{{kind: evEnded, now: 9 * s, ok: true}}, Exited, doNothing, 0},
		{"on-failure, failure", with(func(m *machine) { m.rules.Restart = OnFailure }), []event{{kind: evEnded, now: 9 * s}}, Starting, doSpawn, 0},
		{"restart by hand, though never", with(func(m *machine) { m.rules.Restart = Never }), []event{{kind: evRestart, now: 2 * s}, {kind: evEnded, now: 3 * s}}, Starting, doSpawn, 0},
		{"stop, then start while it stops", base, []event{{kind: evStop, now: 2 * s}, {kind: evStart, now: 3 * s}, {kind: evEnded, now: 4 * s}}, Starting, doSpawn, 0},
		{"restart, then stop while it stops", base, []event{{kind: evRestart, now: 2 * s}, {kind: evStop, now: 3 * s}, {kind: evEnded, now: 4 * s}}, Stopped, doNothing, 0},
		{"stop: SIGKILL after stop_timeout", base, []event{{kind: evStop, now: 2 * s}, {kind: evTimeout, now: 7 * s}}, Stopping, doKill, 7*s + killWait},
		{"an early timer is none", base, []event{{kind: evStop, now: 2 * s}, {kind: evTimeout, now: 6 * s}}, Stopping, doNothing, 7 * s},
		{"unkillable", base, []event{{kind: evExited, now: 2 * s}, {kind: evTimeout, now: 2*s + killWait}}, Unkillable, doKill, 2*s + 2*killWait},
		{"unkillable: killed again", with(func(m *machine) { m.state, m.killed, m.deadline = Unkillable, true, s }), []event{{kind: evTimeout, now: s}}, Unkillable, doKill, s + killWait},
		{"unkillable gets no twin by hand", with(func(m *machine) { m.state = Unkillable }), []event{{kind: evStart, now: s}}, Unkillable, doNothing, 0},
		{"unkillable, at last empty", with(func(m *machine) { m.state, m.killed = Unkillable, true }), []event{{kind: evEnded, now: s}}, Backoff, doNothing, s + 100*time.Millisecond},
		{"in a hurry: SIGKILL at once", base, []event{{kind: evStop, now: 2 * s, hurry: true}}, Stopping, doKill, 2*s + killWait},
		{"killed: restart decides", base, []event{{kind: evKill, now: 2 * s}, {kind: evEnded, now: 3 * s}}, Backoff, doNothing, 3*s + 100*time.Millisecond},
		{"killed for good", with(func(m *machine) { m.rules.Restart = Never }), []event{{kind: evKill, now: 2 * s}, {kind: evEnded, now: 3 * s}}, Exited, doNothing, 0},
		{"killed while it stops: no successor", base, []event{{kind: evStop, now: 2 * s}, {kind: evKill, now: 2 * s}, {kind: evKill, now: 3 * s}, {kind: evEnded, now: 3 * s}}, Stopped, doNothing, 0},
		{"reset: the delay is the first again", with(func(m *machine) { m.state, m.unstable, m.deadline = Backoff, 5, 9*s }), []event{{kind: evReset, now: 2 * s}}, Backoff, doNothing, 2*s + 100*time.Millisecond},
		{"reset makes no delay longer", with(func(m *machine) { m.state, m.deadline = Backoff, 2*s+1 }), []event{{kind: evReset, now: 2 * s}}, Backoff, doNothing, 2*s + 1},
		{"reset of what is tried again", with(func(m *machine) { m.state, m.deadline = Failed, 9*s }), []event{{kind: evReset, now: 2 * s}}, Failed, doNothing, 2*s + 100*time.Millisecond},
		{"reset of what has given up", with(func(m *machine) { m.state = Failed }), []event{{kind: evReset, now: 2 * s}}, Stopped, doNothing, 0},
		{"in a hurry, while it stops", base, []event{{kind: evStop, now: 2 * s}, {kind: evStop, now: 3 * s, hurry: true}}, Stopping, doKill, 3*s + killWait},
		{"an old run's lapse", base, []event{{kind: evExpired, now: 2 * s, run: 2}}, Running, doNothing, 0},
		{"frozen: a deadline", base, []event{{kind: evFrozen, now: 2 * s}}, Running, doNothing, 11 * s},
		{"frozen, thawed", base, []event{{kind: evFrozen, now: 2 * s}, {kind: evThawed, now: 3 * s}}, Running, doNothing, 0},
		{"frozen, timeout edited", base, []event{{kind: evFrozen, now: 2 * s}, {kind: evRules, now: 3 * s}}, Running, doNothing, 11 * s},
		{"frozen, but traced: watched on", base, []event{{kind: evFrozen, now: 2 * s}, {kind: evTimeout, now: 11 * s}, {kind: evFrozen, now: 11 * s}}, Running, doNothing, 20 * s},
		{"frozen, no watchdog", with(func(m *machine) { m.rules.FrozenTimeout = 0 }), []event{{kind: evFrozen, now: 2 * s}}, Running, doNothing, 0},
		{"a shorter restart_delay_max holds at once", with(func(m *machine) { m.state, m.deadline = Backoff, 30*s }), []event{{kind: evRules, now: 2 * s}}, Backoff, doNothing, 3 * s},
		{"a start by hand forgets the crashes", with(func(m *machine) { m.state, m.unstable = Backoff, 5 }), []event{{kind: evStart, now: s}, {kind: evSpawnFailed, now: s}}, Backoff, doNothing, s + 100*time.Millisecond},
		{"the first spawn waits", with(func(m *machine) { m.state, m.cleared = Stopped, false }), []event{{kind: evStart, now: s}}, Waiting, doClear, 0},
		{"blocked: tried again", with(func(m *machine) { m.state, m.cleared = Waiting, false }), []event{{kind: evBlocked, now: s}}, Failed, doNothing, 2 * s},
		{"blocked, by hand: clears again", with(func(m *machine) { m.state, m.cleared = Failed, false }), []event{{kind: evStart, now: s}}, Waiting, doClear, 0},
		{"stopped while it waits", with(func(m *machine) { m.state, m.cleared = Waiting, false }), []event{{kind: evStop, now: s}, {kind: evCancelled, now: s}}, Stopped, doNothing, 0},
		{"ready at last: no deadline", with(notify), []event{{kind: evReady, now: 2 * s, run: 3}}, Running, doNothing, 0},
		{"an old run's READY=1", with(notify), []event{{kind: evReady, now: 2 * s, run: 2}}, Running, doNothing, 4 * s},
		{"registered is not notified", with(notify), []event{{kind: evRegistered, now: 2 * s, run: 3}}, Running, doNothing, 4 * s},
		{"a lapse: SIGKILL", base, []event{{kind: evExpired, now: 2 * s, run: 3}}, Stopping, doKill, 2*s + killWait},
		{"a lapse: abort_signal, and time for it", with(abort), []event{lapse}, Stopping, doAbort, 12 * s},
		{"it cannot handle that in state T", with(abort), []event{lapse, {kind: evStuck, now: 2 * s}}, Stopping, doKill, 2*s + killWait},
		{"it ends, the rest is killed", with(abort), []event{lapse, {kind: evExited, now: 3 * s}}, Stopping, doKill, 3*s + killWait},
		{"it ends, nothing is left", with(abort), []event{lapse, {kind: evEnded, now: 3 * s}}, Backoff, doNothing, 3*s + 100*time.Millisecond},
		{"it gets no more time on its word", with(abort), []event{lapse, {kind: evExtend, now: 3 * s, run: 3, d: 99 * s}}, Stopping, doNothing, 12 * s},
		{"a second lapse", with(abort), []event{lapse, {kind: evExpired, now: 3 * s, run: 3}}, Stopping, doNothing, 12 * s},
		{"aborted, then stopped: as long", with(abort), []event{lapse, {kind: evStop, now: 3 * s}}, Stopping, doNothing, 12 * s},
		{"aborted, then stopped in a hurry", with(abort), []event{lapse, {kind: evStop, now: 3 * s, hurry: true}}, Stopping, doKill, 3*s + killWait},
		{"its time is over: is there a core?", with(abort), []event{lapse, {kind: evTimeout, now: 12 * s}}, Stopping, doExamine, 0},
		{"there is none", with(abort), []event{lapse, {kind: evTimeout, now: 12 * s}, {kind: evUndumped, now: 12 * s}}, Stopping, doKill, 12*s + killWait},
		{"there is: looked at again", with(abort), dump(12 * s), Stopping, doNothing, 12*s + coreLook},
		{"and again", with(abort), append(dump(12*s), dump(13 * s)[1:]...), Stopping, doNothing, 13*s + coreLook},
		{"it is written", with(abort), append(dump(12*s), event{kind: evTimeout, now: 13 * s}, event{kind: evUndumped, now: 13 * s}), Stopping, doNothing, 13*s + coreEnd},
		{"and yet it does not end", with(abort), append(dump(12*s), event{kind: evTimeout, now: 13 * s}, event{kind: evUndumped, now: 13 * s}, event{kind: evTimeout, now: 14 * s}), Stopping, doKill, 14*s + killWait},
		{"no longer than coreMax", with(abort), append(dump(12*s), dump(12*s + coreMax - 1)[1:]...), Stopping, doNothing, 12*s + coreMax},
		{"then it is cut off", with(abort), append(dump(12*s), event{kind: evTimeout, now: 12*s + coreMax}), Stopping, doKill, 12*s + coreMax + killWait},
		{"SIGKILL was sent: unkillable, as ever", with(abort), []event{lapse, {kind: evExited, now: 3 * s}, {kind: evTimeout, now: 9 * s}}, Unkillable, doKill, 9*s + killWait},
		{"a stop has no abort_signal, nor a core", with(abort), []event{{kind: evStop, now: 2 * s}, {kind: evTimeout, now: 7 * s}}, Stopping, doKill, 7*s + killWait},
		{"frozen: SIGKILL at once", with(abort), []event{{kind: evFrozen, now: 2 * s}, {kind: evTimeout, now: 11 * s}, {kind: evStuck, now: 11 * s}}, Stopping, doKill, 11*s + killWait},
		{"did not come back: aborted", with(func(m *machine) { abort(m); m.state = Stopped }), []event{{kind: evAdopted, now: 2 * s, run: 9, owes: true}, {kind: evTimeout, now: 11 * s}}, Stopping, doAbort, 21 * s},
		{"the next run starts anew", with(abort), []event{lapse, {kind: evRestart, now: 2 * s}, {kind: evEnded, now: 3 * s}, {kind: evSpawned, now: 3 * s}, {kind: evExpired, now: 4 * s, run: 4}}, Stopping, doAbort, 14 * s},
		{"and is stopped as any", with(abort), []event{lapse, {kind: evRestart, now: 2 * s}, {kind: evEnded, now: 3 * s}, {kind: evSpawned, now: 3 * s}, {kind: evStop, now: 4 * s}, {kind: evTimeout, now: 9 * s}}, Stopping, doKill, 9*s + killWait},
		{"spared: a lapse", with(abort), []event{{kind: evExpired, now: 2 * s, run: 3, spared: true}}, Running, doNothing, 0},
		{"spared: frozen, looked at again", base, []event{{kind: evFrozen, now: 2 * s}, {kind: evTimeout, now: 11 * s, spared: true}, {kind: evStuck, now: 11 * s, spared: true}}, Running, doNothing, 20 * s},
		{"spared no more: killed then", base, []event{{kind: evFrozen, now: 2 * s}, {kind: evTimeout, now: 11 * s, spared: true}, {kind: evStuck, now: 11 * s, spared: true}, {kind: evTimeout, now: 20 * s}, {kind: evStuck, now: 20 * s}}, Stopping, doKill, 20*s + killWait},
		{"spared: did not come back", with(func(m *machine) { m.state = Stopped }), []event{{kind: evAdopted, now: 2 * s, run: 9, owes: true}, {kind: evTimeout, now: 11 * s, spared: true}}, Running, doNothing, 20 * s},
		{"spared: nothing watched any more", with(func(m *machine) { m.backBy, m.deadline, m.rules.FrozenTimeout = 11*s, 11*s, 0 }), []event{{kind: evTimeout, now: 11 * s, spared: true}}, Running, doNothing, 0},
		{"spared: not from start_timeout", with(notify), []event{{kind: evTimeout, now: 4 * s, spared: true}}, Stopping, doKill, 4*s + killWait},
		{"not ready in time", with(notify), []event{{kind: evTimeout, now: 4 * s}}, Stopping, doKill, 4*s + killWait},
		{"more time to get ready", with(notify), []event{{kind: evExtend, now: 3 * s, d: 5 * s, run: 3}, {kind: evTimeout, now: 4 * s}}, Running, doNothing, 8 * s},
		{"frozen while it gets ready: the earlier deadline", with(notify), []event{{kind: evFrozen, now: 2 * s}}, Running, doNothing, 4 * s},
		{"ready = spawn by an edit", with(notify), []event{{kind: evReady, now: 2 * s, run: 3}, {kind: evRules, now: 3 * s}}, Running, doNothing, 0},
		{"stable counts from ready", with(func(m *machine) { m.readyAt = 4 * s }), []event{{kind: evEnded, now: 8 * s}}, Backoff, doNothing, 8*s + 100*time.Millisecond},
		{"never ready is never stable", with(notify), []event{{kind: evEnded, now: 99 * s}}, Backoff, doNothing, 99*s + 100*time.Millisecond},
		{"more time to stop", base, []event{{kind: evStop, now: 2 * s}, {kind: evExtend, now: 6 * s, d: 9 * s, run: 3}}, Stopping, doNothing, 15 * s},
		{"no more time after SIGKILL", base, []event{{kind: evExited, now: 2 * s}, {kind: evExtend, now: 3 * s, d: 9 * s, run: 3}}, Stopping, doNothing, 2*s + killWait},
		{"a oneshot is done", with(func(m *machine) { m.rules.Oneshot = true }), []event{{kind: evEnded, now: 2 * s, ok: true}}, Exited, doNothing, 0},
		{"a oneshot that fails", with(func(m *machine) { m.rules.Oneshot, m.ready = true, false }), []event{{kind: evEnded, now: 9 * s}}, Backoff, doNothing, 9*s + 100*time.Millisecond},
		{"the start limit holds", with(limited), []event{{kind: evEnded, now: 9 * s}, {kind: evSpawned, now: 9 * s}, {kind: evEnded, now: 15 * s}, {kind: evSpawned, now: 15 * s}, {kind: evEnded, now: 18 * s}}, Failed, doGiveUp, 0},
		{"and forgets", with(limited), []event{{kind: evEnded, now: 9 * s}, {kind: evSpawned, now: 9 * s}, {kind: evEnded, now: 15 * s}, {kind: evSpawned, now: 15 * s}, {kind: evEnded, now: 21 * s}}, Starting, doSpawn, 0},
		{"a start by hand clears it", with(func(m *machine) { limited(m); m.state, m.count = Failed, 3 }), []event{{kind: evStart, now: 2 * s}, {kind: evSpawned, now: 2 * s}, {kind: evEnded, now: 8 * s}}, Starting, doSpawn, 0},
		{"an end that nobody knows does not count", with(func(m *machine) { limited(m); m.count, m.window = 2, s }), []event{{kind: evEnded, now: 9 * s, unknown: true}}, Starting, doSpawn, 0},
		{"a restart waits for who it depends on", base, []event{{kind: evEnded, now: 9 * s, unmet: true}}, Waiting, doClear, 0},
		{"stopped for another: comes back", base, []event{{kind: evYield, now: 2 * s}, {kind: evEnded, now: 3 * s, unmet: true}, {kind: evCleared, now: 4 * s}}, Starting, doSpawn, 0},
		{"stopped for another, then by hand", base, []event{{kind: evYield, now: 2 * s}, {kind: evStop, now: 2 * s}, {kind: evEnded, now: 3 * s}}, Stopped, doNothing, 0},
		{"too many at once: later", base, []event{{kind: evEnded, now: 9 * s}, {kind: evThrottled, now: 9 * s, d: 2 * s}}, Backoff, doNothing, 11 * s},
		{"adopted, owes a registration", with(func(m *machine) { m.state, m.want = Stopped, false }), []event{{kind: evAdopted, now: 2 * s, run: 9, ok: true, owes: true, d: 60 * s}}, Running, doNothing, 11 * s},
		{"adopted, came back", with(func(m *machine) { m.state = Stopped }), []event{{kind: evAdopted, now: 2 * s, run: 9, ok: true, owes: true}, {kind: evRegistered, run: 9, now: 3 * s}}, Running, doNothing, 0},
		{"adopted, did not come back", with(func(m *machine) { m.state = Stopped }), []event{{kind: evAdopted, now: 2 * s, run: 9, ok: true, owes: true}, {kind: evTimeout, now: 11 * s}}, Stopping, doKill, 11*s + killWait},
		{"adopted, not ready: what it said meanwhile is lost, so it has a deadline", with(func(m *machine) { notify(m); m.state, m.startBy = Stopped, 0 }), []event{{kind: evAdopted, now: 20 * s, run: 9}}, Running, doNothing, 23 * s},
		{"a start by hand while it runs clears the limit too", with(func(m *machine) { limited(m); m.count, m.window = 2, s }), []event{{kind: evStart, now: 2 * s}, {kind: evEnded, now: 9 * s}}, Starting, doSpawn, 0},
		{"and while it waits", with(func(m *machine) { limited(m); m.count, m.window, m.state = 2, s, Waiting }), []event{{kind: evStart, now: s}, {kind: evCleared, now: s}, {kind: evSpawned, now: s}, {kind: evEnded, now: 9 * s}}, Starting, doSpawn, 0},
		{"stopped while it is spawned", with(func(m *machine) { m.state = Starting }), []event{{kind: evStop, now: s}, {kind: evSpawned, now: s}}, Stopping, doSignal, 6 * s},
	} {
		m, a := c.m, doNothing
		for _, e := range c.events {
			m, a = step(m, e)
		}
		if m.state != c.state || a != c.action || m.deadline != c.deadline {
			t.Errorf("%s: got %s %q deadline %v, want %s %q %v", c.story, m.state, a, m.deadline, c.state, c.action, c.deadline)
		}
	}
}

// TestModel lets chance play the world against the machine: never two live runs, one end for each begin, an old run's word
// means nothing, and whoever is wanted up or down gets there.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := testRules()
		rules.Ready = rapid.SampledFrom([]ReadyWhen{ReadySpawn, ReadyRegister, ReadyNotify}).Draw(t, "ready")
		rules.StartTimeout = rapid.SampledFrom([]time.Duration{0, 3 * time.Second}).Draw(t, "start_timeout")
		rules.StartLimit = rapid.SampledFrom([]StartLimit{{}, {2, 10 * time.Second}}).Draw(t, "start_limit")
		rules.AbortSignal = rapid.SampledFrom([]syscall.Signal{0, syscall.SIGABRT}).Draw(t, "abort_signal")
		rules.AbortTimeout = rapid.SampledFrom([]time.Duration{0, 3 * time.Second}).Draw(t, "abort_timeout")
		rules.Oneshot = rapid.Bool().Draw(t, "oneshot")
		rules.Restart = rapid.SampledFrom([]RestartPolicy{Always, OnFailure, Never}).Draw(t, "restart")
		m := machine{rules: rules, state: Stopped}
		now := time.Second
		var live, spawned, ended uint64 // live: the run whose processes exist
		leader := false
		clearing, unmet, spared := false, false, false
		var do func(e event)
		do = func(e event) {
			e.now, e.roll, e.unmet, e.spared = now, 0.5, e.unmet || unmet, spared
			before := m
			var a action
			m, a = step(m, e)
			switch a {
			case doClear:
				if clearing {
					t.Fatalf("clears twice at a time")
				}
				clearing = true
			case doSpawn:
				if live != 0 {
					t.Fatalf("run %d is spawned while run %d lives", m.run, live)
				}
				if m.run != before.run+1 {
					t.Fatalf("run %d follows %d", m.run, before.run)
				}
				if !m.want {
					t.Fatalf("spawned, though wanted down")
				}
				if rapid.Bool().Draw(t, "spawn succeeds") {
					live, leader = m.run, true
					spawned++
					do(event{kind: evSpawned})
				} else {
					do(event{kind: rapid.SampledFrom([]kind{evSpawnFailed, evThrottled}).Draw(t, "why not"), d: time.Second})
				}
			case doSignal, doKill:
				if live != m.run {
					t.Fatalf("%s for run %d, but %d lives", a, m.run, live)
				}
				if spared && (m.cause == ByWatchdog || m.cause == ByFrozen) && before.state == Running {
					t.Fatalf("%s by %s, though spared", a, m.cause)
				}
			case doAbort:
				if live != m.run || !leader || before.state != Running || spared {
					t.Fatalf("aborts run %d in state %s (%d lives, spared: %v)", m.run, before.state, live, spared)
				}
				if rapid.IntRange(0, 9).Draw(t, "in state T") == 0 {
					do(event{kind: evStuck})
				}
			case doExamine:
				if m.killed || m.cause != ByWatchdog {
					t.Fatalf("looks for a core by %s, killed: %v", m.cause, m.killed)
				}
				do(event{kind: rapid.SampledFrom([]kind{evDumping, evDumping, evDumping, evUndumped}).Draw(t, "core")})
			case doLook:
				do(event{kind: rapid.SampledFrom([]kind{evFrozen, evThawed, evStuck}).Draw(t, "look")})
			}
		}
		end := func() {
			live, leader = 0, false
			ended++
			do(event{kind: evEnded, ok: rapid.Bool().Draw(t, "ok")})
		}
		t.Repeat(map[string]func(*rapid.T){
			"by hand": func(t *rapid.T) {
				do(event{kind: rapid.SampledFrom([]kind{evStart, evStop, evRestart, evRules, evYield, evKill, evReset}).Draw(t, "ask"), hurry: rapid.Bool().Draw(t, "hurry")})
			},
			"says": func(t *rapid.T) {
				do(event{kind: rapid.SampledFrom([]kind{evRegistered, evReady, evExtend}).Draw(t, "word"), run: m.run, d: time.Second})
			},
			"time": func(t *rapid.T) {
				now += time.Duration(rapid.IntRange(1, 12000).Draw(t, "ms")) * time.Millisecond
				do(event{kind: evTimeout})
				if m.state == Stopping && !m.killed && m.dumping != 0 && now >= m.dumping+coreMax+coreEnd {
					t.Fatalf("at %v still not killed, its core waited for since %v", now, m.dumping)
				}
			},
			"lapse": func(t *rapid.T) {
				run := uint64(rapid.IntRange(0, int(m.run)).Draw(t, "run"))
				before := m
				do(event{kind: evExpired, run: run})
				if run != before.run && m != before {
					t.Fatalf("the lapse of run %d touched run %d", run, before.run)
				}
			},
			"pause":        func(t *rapid.T) { spared = !spared },
			"dependencies": func(t *rapid.T) { unmet = !unmet },
			"clear": func(t *rapid.T) {
				if clearing {
					clearing = false
					do(event{kind: rapid.SampledFrom([]kind{evCleared, evBlocked, evCancelled}).Draw(t, "found")})
				}
			},
			"leader ends": func(t *rapid.T) {
				if leader {
					leader = false
					do(event{kind: evExited})
				}
			},
			"tree empties": func(t *rapid.T) {
				if live != 0 {
					end()
				}
			},
			"freezes": func(t *rapid.T) {
				if leader {
					do(event{kind: rapid.SampledFrom([]kind{evFrozen, evThawed}).Draw(t, "frozen")})
				}
			},
			"": func(t *rapid.T) {
				alive := m.state == Running || m.state == Stopping || m.state == Unkillable
				if alive != (live != 0) || spawned-ended != map[bool]uint64{true: 1}[live != 0] {
					t.Fatalf("state %s, run %d lives, %d spawned, %d ended", m.state, live, spawned, ended)
				}
				if (m.state == Stopping || m.state == Backoff) && m.deadline == 0 {
					t.Fatalf("%s without a deadline", m.state)
				}
			},
		})
		do(event{kind: evStop})
		for range 3 { // whatever it was up to: a stop comes to its end
			if clearing {
				clearing = false
				do(event{kind: evCancelled})
			} else if live != 0 {
				end()
			}
		}
		if m.state != Stopped {
			t.Fatalf("stopped, and yet %s", m.state)
		}
	})
}
