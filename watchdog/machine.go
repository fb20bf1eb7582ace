// The state machine of one dog: a pure stopwatch of silence.
//
//	unarmed ── arm ──> watched <── last release ── held
//	                    │    └────── hold ───────────^
//	                    │ lapse: silence has reached the timeout
//	                    v
//	                  lapsed ── arm ──> watched, or held if a hold is on
//
//	retire leads from everywhere to retired, and nothing leads from there. A feed, a new timeout and a gap move the
//	deadline, not the state.
//
// Silence counts from mark on: up to now while the state is watched, up to stop while it is held.

package watchdog

import "time"

type state uint8

const (
	unarmed state = iota // nobody asked to be watched yet
	watched              // silence is counted
	held                 // armed, but its sender is not read: the stopwatch stands
	lapsed               // was late; not late again before it is armed again
	retired              // its run is over, for ever
	states
)

type event uint8

const (
	evArm     event = iota // the run asks to be watched; when it is already, a feed
	evFeed                 // a sign of life
	evHold                 // zhxd stops reading a sender of this run; nests
	evRelease              // and reads it again
	evRetime               // the timeout changes
	evGap                  // zhxd itself did not run
	evLapse                // the judge finds it due
	evRetire               // the run is over
	events
)

// input is an event with what it needs. All times are monotonic, since the Watch was made.
type input struct {
	event   event
	at      time.Duration
	from    time.Duration // evGap: when the gap began; at is its end
	timeout time.Duration // evRetime
}

// machine is a dog as a value.
type machine struct {
	state   state
	holds   int           // counted in every state: a sender may be held before it is armed
	timeout time.Duration // > 0
	mark    time.Duration // silence counts from here,
	stop    time.Duration // held: to here
	silence time.Duration // and what was counted before mark, since the last feed
}

func (m machine) armed() bool { return m.state == watched || m.state == held }

// due is when silence reaches the timeout; never while it is not counted.
func (m machine) due() time.Duration {
	if m.state != watched {
		return never
	}
	return m.mark + m.timeout - m.silence
}

// silent is the silence counted up to now, of an armed dog.
func (m machine) silent(now time.Duration) time.Duration {
	return m.silence + max(0, m.end(now)-m.mark)
}

// end is how far silence counts at now.
func (m machine) end(now time.Duration) time.Duration {
	if m.state == held {
		return min(now, m.stop)
	}
	return now
}

// step is the whole behaviour. The answer tells whether a feed or arming was taken, a lapse found; true for the rest.
func step(m machine, in input) (machine, bool) {
	if m.state == retired {
		return m, false
	}
	switch in.event {
	case evArm, evFeed:
		if in.event == evFeed && !m.armed() {
			return m, false
		}
		m.state, m.mark, m.silence = watched, in.at, 0
		if m.holds > 0 {
			m.state = held
		}
	case evHold:
		m.holds++
		if m.state == watched {
			m.stop = in.at
			m.state = held
		}
	case evRelease:
		m.holds = max(0, m.holds-1)
		if m.state == held && m.holds == 0 {
			m.silence, m.mark = m.silent(in.at), in.at
			m.state = watched
		}
	case evRetime:
		m.timeout = in.timeout
	case evGap:
		// What was counted inside the gap is taken back; a mark or a hold may have come since it ended.
		if end := m.end(in.at); m.armed() && in.from < end && m.mark < end {
			m.silence, m.mark = m.silent(in.from), end
		}
	case evLapse:
		if m.due() > in.at {
			return m, false
		}
		m.silence = m.silent(in.at)
		m.state = lapsed
	case evRetire:
		m.state = retired
	}
	return m, true
}
