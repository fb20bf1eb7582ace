package watchdog

import (
	"testing"
	"time"
)

const s = time.Second

// reach is a machine in each state, as events bring it there by the time 10 s; the armed ones were armed at 8 s and are
// due at 12 s (timeout 4 s). held and unarmedHeld have one hold, from 9 s on.
func reach(t *testing.T, want state, holds int) machine {
	t.Helper()
	m := machine{timeout: 4 * s}
	do := func(e event, at time.Duration) { m, _ = step(m, input{event: e, at: at}) }
	switch want {
	case watched:
		do(evArm, 8*s)
	case held:
		do(evArm, 8*s)
		do(evHold, 9*s)
		holds--
	case lapsed:
		do(evArm, 0)
		do(evLapse, 4*s)
	case retired:
		do(evRetire, 9*s)
	}
	for range holds {
		do(evHold, 9*s)
	}
	if m.state != want {
		t.Fatalf("built state %d, want %d", m.state, want)
	}
	return m
}

// Every event in every state, without and with holds: the next state, whether it was taken, and when it is due.
func TestEveryPair(t *testing.T) {
	type next struct {
		state state
		taken bool
		due   time.Duration
	}
	const n = never
	same := func(st state) next { return next{st, true, n} }
	for _, row := range []struct {
		purpose string
		state   state
		holds   int
		want    [events]next // arm feed hold release retime(6s) gap(9.5..10) lapse(10) retire
	}{
		{"never armed", unarmed, 0, [events]next{
			{watched, true, 14 * s}, {unarmed, false, n}, same(unarmed), same(unarmed), same(unarmed), same(unarmed), {unarmed, false, n}, same(retired)}},
		{"never armed, its sender held", unarmed, 1, [events]next{
			{held, true, n}, {unarmed, false, n}, same(unarmed), same(unarmed), same(unarmed), same(unarmed), {unarmed, false, n}, same(retired)}},
		{"watched", watched, 0, [events]next{
			{watched, true, 14 * s}, {watched, true, 14 * s}, {held, true, n}, {watched, true, 12 * s}, {watched, true, 14 * s}, {watched, true, 12*s + s/2}, {watched, false, 12 * s}, same(retired)}},
		{"held once: release gives back the second held", held, 1, [events]next{
			{held, true, n}, {held, true, n}, {held, true, n}, {watched, true, 13 * s}, {held, true, n}, {held, true, n}, {held, false, n}, same(retired)}},
		{"held twice", held, 2, [events]next{
			{held, true, n}, {held, true, n}, {held, true, n}, {held, true, n}, {held, true, n}, {held, true, n}, {held, false, n}, same(retired)}},
		{"lapsed", lapsed, 0, [events]next{
			{watched, true, 14 * s}, {lapsed, false, n}, same(lapsed), same(lapsed), same(lapsed), same(lapsed), {lapsed, false, n}, same(retired)}},
		{"lapsed, its sender held", lapsed, 1, [events]next{
			{held, true, n}, {lapsed, false, n}, same(lapsed), same(lapsed), same(lapsed), same(lapsed), {lapsed, false, n}, same(retired)}},
		{"retired", retired, 0, [events]next{
			{retired, false, n}, {retired, false, n}, {retired, false, n}, {retired, false, n}, {retired, false, n}, {retired, false, n}, {retired, false, n}, {retired, false, n}}},
	} {
		for e := range events {
			m, taken := step(reach(t, row.state, row.holds), input{event: e, at: 10 * s, from: 9*s + s/2, timeout: 6 * s})
			if got := (next{m.state, taken, m.due()}); got != row.want[e] {
				t.Errorf("%s, event %d: got %+v, want %+v", row.purpose, e, got, row.want[e])
			}
		}
	}
}

// What a sequence of events leaves of the stopwatch, where one event alone does not show it.
func TestStopwatch(t *testing.T) {
	for _, row := range []struct {
		purpose string
		inputs  []input
		due     time.Duration
	}{
		{"a feed during a hold: only what was held after it is credited",
			[]input{{event: evArm}, {event: evHold, at: 1 * s}, {event: evFeed, at: 3 * s}, {event: evRelease, at: 5 * s}}, 9 * s},
		{"a release too many changes nothing",
			[]input{{event: evArm}, {event: evRelease, at: 1 * s}, {event: evHold, at: 2 * s}, {event: evRelease, at: 3 * s}}, 5 * s},
		{"a gap within a hold is not credited twice",
			[]input{{event: evArm}, {event: evHold, at: 1 * s}, {event: evGap, from: 2 * s, at: 30 * s}, {event: evRelease, at: 31 * s}}, 34 * s},
		{"after a gap a reader may hold before the loop has seen the gap",
			[]input{{event: evArm}, {event: evHold, at: 30 * s}, {event: evGap, from: 1 * s, at: 31 * s}, {event: evRelease, at: 32 * s}}, 35 * s},
		{"or feed: the feed counts, nothing is added",
			[]input{{event: evArm}, {event: evFeed, at: 30 * s}, {event: evGap, from: 1 * s, at: 31 * s}}, 35 * s},
		{"or release what was held before",
			[]input{{event: evArm}, {event: evHold, at: 1 * s}, {event: evRelease, at: 30 * s}, {event: evGap, from: 2 * s, at: 31 * s}}, 34 * s},
		{"two gaps",
			[]input{{event: evArm}, {event: evGap, from: 1 * s, at: 10 * s}, {event: evGap, from: 11 * s, at: 20 * s}}, 22 * s},
		{"a new timeout keeps what was credited",
			[]input{{event: evArm}, {event: evGap, from: 1 * s, at: 10 * s}, {event: evRetime, at: 11 * s, timeout: 6 * s}}, 15 * s},
		{"a release after a late feed and a lapse: armed again it begins anew",
			[]input{{event: evArm}, {event: evLapse, at: 4 * s}, {event: evFeed, at: 5 * s}, {event: evArm, at: 6 * s}}, 10 * s},
	} {
		m := machine{timeout: 4 * s}
		for _, in := range row.inputs {
			m, _ = step(m, in)
		}
		if m.due() != row.due {
			t.Errorf("%s: due at %v, want %v", row.purpose, m.due(), row.due)
		}
	}
}
