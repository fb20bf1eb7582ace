// The state machine of one dog: a clock that stands at times, and stopwatches of silence that go by it. It is pure.
//
//	unarmed ── arm, require ──> watched <── the last cause is gone ── standing
//	                             │   └── hold, pause, traced ─────────────^
//	                             │ judge: a stopwatch has reached its limit, and there is no excuse
//	                             v
//	                           lapsed ── arm ──> watched, or standing if it is held or paused
//
//	retire leads from everywhere to retired, and nothing leads from there. Feeds, checkpoints, rules, extensions and gaps
//	move deadlines, not the state; holds and pauses are kept in every state.
//
// One stopwatch is for alive, one for each Deadline of the rules:
//
//	alive:     runs while the dog is armed; feed and arm start it anew. From require to the first feed its limit is Startup
//	FROM to TO: stopped ── FROM ──> runs ── TO ──> stopped; FROM == TO: each starts it anew
//	each:      quiet ── warn: silence has reached the warning ──> warned ── started anew ──> quiet
//
// A lapse names one stopwatch, the earliest. Resumption and the end of a trace start all that run anew. The order of
// checkpoints, or a count of misses, would be one more field of stopwatch, looked at where feed and checkpoint start it.

package watchdog

import "time"

type state uint8

const (
	unarmed  state = iota // nobody asked to be watched yet
	watched               // silence is counted
	standing              // armed, but the clock stands: its sender is not read, it is paused, or traced
	lapsed                // was late; not late again before it is armed again
	retired               // its run is over, for ever
	states
)

type event uint8

const (
	evArm        event = iota // the run asks to be watched; when it is already, a feed
	evRequire                 // zhxd watches it from its start on; nothing but in the state unarmed
	evFeed                    // a sign of life
	evCheckpoint              // the run passes a named place
	evHold                    // zhxd stops reading a sender of this run; nests
	evRelease                 // and reads it again
	evPause                   // somebody stops the clock until a time
	evResume                  // and lets it go on
	evRules                   // all limits change
	evRetime                  // alive's limit changes
	evExtend                  // the run asks for more time in this silence
	evGap                     // zhxd itself did not run
	evTick                    // zhxd runs
	evWarn                    // the loop asks for the next stopwatch that is to be warned of
	evJudge                   // the judge has looked at it
	evTrace                   // somebody saw that it is traced
	evRetire                  // the run is over
	events
)

// input is an event with what it needs. All times are monotonic, since the Watch was made.
type input struct {
	event  event
	at     time.Duration
	from   time.Duration // evGap: when the gap began; at is its end
	d      time.Duration // evPause, evRetime, evExtend
	name   string        // evCheckpoint
	rules  Rules         // evRules
	excuse Excuse        // evJudge
}

// stopwatch measures one silence. Its start is on the dog's clock.
type stopwatch struct {
	runs, warned bool
	start        time.Duration
	extended     time.Duration // asked for by the run in this silence; deadline and warning are that much later
	granted      time.Duration // for starvation in this silence; the deadline is that much later
}

const alive = 0 // index of its stopwatch; that of Deadlines[i] is i+1

// machine is a dog as a value.
type machine struct {
	state   state
	rules   Rules
	watches [1 + DeadlinesMax]stopwatch
	startup bool // required, and not fed yet
	which   int  // whose the last warning or lapse was

	credited time.Duration // granted in sum

	holds  int           // why the clock may stand: its sender is not read,
	until  time.Duration // it is paused until then; 0: not paused,
	traced bool          // or it was found traced,
	looked time.Duration // when last

	counted time.Duration // the dog's clock showed this
	mark    time.Duration // at this time, and goes on from there in the state watched
	sure    time.Duration // and this, at a time when the loop was seen to run:
	sureAt  time.Duration // what a gap cannot take back
}

func (m *machine) armed() bool { return m.state == watched || m.state == standing }

// clock is what the dog's clock shows at that time.
func (m *machine) clock(at time.Duration) time.Duration {
	if m.state == watched {
		return m.counted + max(0, at-m.mark)
	}
	return m.counted
}

// silence is what a stopwatch has counted by that time.
func (m *machine) silence(i int, at time.Duration) time.Duration {
	return max(0, m.clock(at)-m.watches[i].start)
}

// by names a stopwatch.
func (m *machine) by(i int) string {
	switch {
	case i != alive:
		return m.rules.Deadlines[i-1].From + " to " + m.rules.Deadlines[i-1].To
	case m.startup:
		return "startup"
	}
	return "alive"
}

func (m *machine) limit(i int) time.Duration {
	switch {
	case i != alive:
		return m.rules.Deadlines[i-1].Within
	case m.startup && m.rules.Startup > 0:
		return m.rules.Startup
	}
	return m.rules.Timeout
}

// warning is the silence at which a stopwatch warns.
func (m *machine) warning(i int) time.Duration {
	if limit := m.limit(i); m.rules.Warn <= 0 || m.rules.Warn >= limit {
		return limit / 2
	}
	return m.rules.Warn
}

// first is the running stopwatch whose deadline, or whose warning still to be given, is the earliest, and when that is;
// never if there is none or the clock stands.
func (m *machine) first(warn bool) (which int, at time.Duration) {
	at = never
	if m.state != watched {
		return 0, at
	}
	for i, s := range m.watches[:1+len(m.rules.Deadlines)] {
		if !s.runs || warn && s.warned {
			continue
		}
		end := m.mark - m.counted + s.start + s.extended
		if warn {
			end += m.warning(i)
		} else {
			end += m.limit(i) + s.granted
		}
		if end < at {
			which, at = i, end
		}
	}
	return which, at
}

// due is when the judge has to look at it: at a deadline, and a pulse after it was found traced.
func (m *machine) due() time.Duration {
	if m.armed() && m.traced {
		return m.looked + pulse
	}
	_, at := m.first(false)
	return at
}

// alarm is when the loop has to look at it.
func (m *machine) alarm() time.Duration {
	_, at := m.first(true)
	if m.armed() && m.until > 0 {
		at = min(at, m.until)
	}
	return min(at, m.due())
}

// step is the whole behaviour. The answer tells whether an arming, feed or checkpoint was taken, a warning or a lapse (of
// the stopwatch which) found; true for the rest.
func (m *machine) step(in input) bool {
	if m.state == retired {
		return false
	}
	if end := m.until; end > 0 && (end <= in.at || in.event == evResume) {
		m.until = 0
		m.renew(min(end, in.at))
	}
	switch in.event {
	case evArm, evRequire, evFeed:
		return m.fed(in)
	case evCheckpoint:
		return m.checkpoint(in)
	case evHold:
		m.holds++
	case evRelease:
		m.holds = max(0, m.holds-1)
	case evPause:
		m.until = in.at + min(in.d, never-in.at)
	case evRules:
		m.follow(in.rules)
	case evRetime:
		m.rules.Timeout = in.d
	case evExtend:
		s := &m.watches[alive]
		left := m.limit(alive) + s.extended + s.granted - m.silence(alive, in.at)
		if m.armed() {
			s.extended += max(0, min(in.d-left, ExtendMax-s.extended))
		}
	case evGap:
		m.takeBack(in.from, in.at)
	case evTick:
		if m.mark <= in.at {
			m.sure, m.sureAt = m.clock(in.at), in.at
		}
	case evWarn:
		which, at := m.first(true)
		if at > in.at {
			return false
		}
		m.which, m.watches[which].warned = which, true
	case evJudge:
		return m.judge(in)
	case evTrace:
		if m.armed() {
			m.traced, m.looked = true, in.at
		}
	case evRetire:
		m.state, m.until, m.traced = retired, 0, false
	}
	m.turn(in.at)
	return true
}

// turn lets the clock stand or go, as the causes want it.
func (m *machine) turn(at time.Duration) {
	stand := m.holds > 0 || m.until > 0 || m.traced
	switch {
	case m.state == watched && stand:
		m.counted, m.mark, m.state = m.clock(at), max(m.mark, at), standing
	case m.state == standing && !stand:
		m.mark, m.state = max(m.mark, at), watched
	}
}

// fed starts alive anew, and the whole dog if it was not armed.
func (m *machine) fed(in input) bool {
	switch {
	case m.armed() && in.event == evRequire, !m.armed() && in.event == evFeed, m.state == lapsed && in.event == evRequire:
		return false
	case !m.armed():
		m.state, m.counted, m.mark, m.sure, m.sureAt = watched, 0, in.at, 0, in.at
		m.watches = [len(m.watches)]stopwatch{}
	}
	m.startup = in.event == evRequire
	m.watches[alive] = stopwatch{runs: true, start: m.clock(in.at)}
	m.turn(in.at)
	return true
}

// checkpoint starts and stops the stopwatches that have this name. An older FROM counts: it is still without its TO.
func (m *machine) checkpoint(in input) (taken bool) {
	if !m.armed() {
		return false
	}
	for i, d := range m.rules.Deadlines {
		s := &m.watches[i+1]
		if d.From != in.name && d.To != in.name {
			continue
		}
		taken = true
		switch {
		case d.From == d.To, d.From == in.name && !s.runs:
			*s = stopwatch{runs: true, start: m.clock(in.at)}
		case d.To == in.name:
			*s = stopwatch{}
		}
	}
	return taken
}

// renew ends every silence, as a cause for which the clock stood has ended.
func (m *machine) renew(at time.Duration) {
	for i, s := range m.watches {
		m.watches[i] = stopwatch{runs: s.runs, start: m.clock(at)}
	}
	m.turn(at)
}

// follow takes new rules. The stopwatch of a deadline that stays goes on.
func (m *machine) follow(r Rules) {
	r.Deadlines = r.Deadlines[:min(len(r.Deadlines), DeadlinesMax)]
	watches := [len(m.watches)]stopwatch{m.watches[alive]}
	for i, d := range r.Deadlines {
		for j, old := range m.rules.Deadlines {
			if d.From == old.From && d.To == old.To {
				watches[i+1] = m.watches[j+1]
			}
		}
	}
	m.rules, m.watches = r, watches
}

// takeBack takes back what the clock has counted inside a gap. Readers may have run before the loop saw the gap: then a
// hold or release since is not the gap's, and a stopwatch that was started since starts at the gap's end.
func (m *machine) takeBack(from, to time.Duration) {
	was := m.clock(from)
	if from < m.mark {
		was = min(was, m.sure+max(0, from-m.sureAt))
	}
	m.counted, m.mark = was, max(m.mark, to)
	m.sure, m.sureAt = was, to
	for i := range m.watches {
		m.watches[i].start = min(m.watches[i].start, was)
	}
}

// judge makes it lapsed if it is due and has no excuse.
func (m *machine) judge(in input) bool {
	if m.due() > in.at {
		return false
	}
	was := m.traced
	m.traced, m.looked = in.excuse.Traced, in.at
	if m.turn(in.at); was && !m.traced {
		m.renew(in.at)
	}
	for {
		which, at := m.first(false)
		if at > in.at {
			return false
		}
		s, limit := &m.watches[which], m.limit(which)
		if more := min(in.excuse.Starved, limit) - s.granted; more >= grantMin {
			s.granted += more
			m.credited += more
			continue
		}
		m.counted, m.mark, m.which, m.state = m.clock(in.at), in.at, which, lapsed
		return true
	}
}
