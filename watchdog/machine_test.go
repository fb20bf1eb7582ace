package watchdog

import (
	"maps"
	"testing"
	"time"
)

const s = time.Second

var testRules = Rules{Timeout: 4 * s, Startup: 7 * s, Deadlines: []Deadline{{"a", "b", s + s/2}, {"loop", "loop", 2 * s}}}

func play(inputs ...input) machine {
	m := machine{rules: testRules}
	for _, in := range inputs {
		m.step(in)
	}
	return m
}

// Every event at 10 s in every state, reached in each way that matters: the next state, whether it was taken, and when the
// judge has to look next.
func TestEveryPair(t *testing.T) {
	type next struct {
		state state
		taken bool
		due   time.Duration
	}
	const n = never
	events := map[event]input{
		evArm: {}, evRequire: {}, evFeed: {}, evCheckpoint: {name: "a"}, evHold: {}, evRelease: {}, evPause: {d: 3 * s}, evResume: {},
		evRules: {rules: Rules{Timeout: 6 * s}}, evRetime: {d: 6 * s}, evExtend: {d: 5 * s}, evGap: {from: 9*s + s/2}, evTick: {}, evWarn: {},
		evJudge: {}, evTrace: {}, evRetire: {},
	}
	none := func(st state) map[event]next { // what is refused
		return map[event]next{evRequire: {st, false, n}, evFeed: {st, false, n}, evCheckpoint: {st, false, n}, evWarn: {st, false, n}, evJudge: {st, false, n}}
	}
	with := func(m map[event]next, more map[event]next) map[event]next { maps.Copy(m, more); return m }
	arming := func(st state, arm, require time.Duration) map[event]next {
		return map[event]next{evArm: {st, true, arm}, evRequire: {st, true, require}}
	}
	stands := func(due time.Duration) map[event]next {
		return map[event]next{evRequire: {standing, false, due}, evWarn: {standing, false, due}, evJudge: {standing, false, due}, evTrace: {standing, true, 11 * s}}
	}
	arm, hold := input{event: evArm, at: 8 * s}, input{event: evHold, at: 9 * s}
	for _, row := range []struct {
		purpose string
		before  machine
		rest    next // what happens by an event that want does not name
		want    map[event]next
	}{
		{"never armed", play(), next{unarmed, true, n}, with(none(unarmed), arming(watched, 14*s, 17*s))},
		{"never armed, its sender held", play(hold), next{unarmed, true, n}, with(none(unarmed), arming(standing, n, n))},
		{"never armed, paused", play(input{event: evPause, at: 9 * s, d: 9 * s}), next{unarmed, true, n}, with(none(unarmed), arming(standing, n, n))},
		{"watched", play(arm), next{watched, true, 12 * s}, map[event]next{
			evArm: {watched, true, 14 * s}, evRequire: {watched, false, 12 * s}, evFeed: {watched, true, 14 * s}, evCheckpoint: {watched, true, 11*s + s/2},
			evHold: {standing, true, n}, evPause: {standing, true, n}, evRules: {watched, true, 14 * s}, evRetime: {watched, true, 14 * s},
			evExtend: {watched, true, 15 * s}, evGap: {watched, true, 12*s + s/2}, evJudge: {watched, false, 12 * s}, evTrace: {standing, true, 11 * s}}},
		{"watched, late", play(input{event: evArm, at: 5 * s}), next{watched, true, 9 * s}, map[event]next{
			evArm: {watched, true, 14 * s}, evRequire: {watched, false, 9 * s}, evFeed: {watched, true, 14 * s},
			evHold: {standing, true, n}, evPause: {standing, true, n}, evRules: {watched, true, 11 * s}, evRetime: {watched, true, 11 * s},
			evExtend: {watched, true, 15 * s}, evGap: {watched, true, 9*s + s/2}, evJudge: {lapsed, true, n}, evTrace: {standing, true, 11 * s}}},
		{"watched, required and not fed yet", play(input{event: evRequire, at: 8 * s}), next{watched, true, 15 * s}, map[event]next{
			evArm: {watched, true, 14 * s}, evRequire: {watched, false, 15 * s}, evFeed: {watched, true, 14 * s}, evCheckpoint: {watched, true, 11*s + s/2},
			evHold: {standing, true, n}, evPause: {standing, true, n}, evRules: {watched, true, 14 * s},
			evGap: {watched, true, 15*s + s/2}, evWarn: {watched, false, 15 * s}, evJudge: {watched, false, 15 * s}, evTrace: {standing, true, 11 * s}}},
		{"held once: release gives back the second held", play(arm, hold), next{standing, true, n}, with(stands(n), map[event]next{evRelease: {watched, true, 13 * s}})},
		{"held twice", play(arm, hold, hold), next{standing, true, n}, stands(n)},
		{"paused", play(arm, input{event: evPause, at: 9 * s, d: 9 * s}), next{standing, true, n}, with(stands(n), map[event]next{evResume: {watched, true, 14 * s}})},
		{"paused and held", play(arm, hold, input{event: evPause, at: 9 * s, d: 9 * s}), next{standing, true, n}, stands(n)},
		{"a pause that was over at 9.8 s", play(arm, input{event: evPause, at: 9 * s, d: s * 8 / 10}), next{watched, true, 13*s + s*8/10}, map[event]next{
			evArm: {watched, true, 14 * s}, evRequire: {watched, false, 13*s + s*8/10}, evFeed: {watched, true, 14 * s}, evCheckpoint: {watched, true, 11*s + s/2},
			evHold: {standing, true, n}, evPause: {standing, true, n}, evRules: {watched, true, 15*s + s*8/10}, evRetime: {watched, true, 15*s + s*8/10},
			evExtend: {watched, true, 15 * s}, evGap: {watched, true, 14 * s}, evWarn: {watched, false, 13*s + s*8/10}, evJudge: {watched, false, 13*s + s*8/10}, evTrace: {standing, true, 11 * s}}},
		{"found traced at 9 s, and not now", play(input{event: evArm, at: 5 * s}, input{event: evJudge, at: 9 * s, excuse: Excuse{Traced: true}}), next{standing, true, 10 * s}, with(stands(10*s), map[event]next{
			evJudge: {watched, false, 14 * s}})},
		{"lapsed", play(input{event: evArm}, input{event: evJudge, at: 4 * s}), next{lapsed, true, n}, with(none(lapsed), map[event]next{evArm: {watched, true, 14 * s}})},
		{"lapsed, its sender held", play(input{event: evArm}, input{event: evJudge, at: 4 * s}, hold), next{lapsed, true, n}, with(none(lapsed), map[event]next{evArm: {standing, true, n}})},
		{"retired", play(arm, input{event: evRetire, at: 9 * s}), next{retired, false, n}, map[event]next{evRetire: {retired, false, n}}},
	} {
		if _, ok := row.want[evRetire]; !ok {
			row.want[evRetire] = next{retired, true, n}
		}
		for e := range evRetire + 1 {
			m, in := row.before, events[e]
			in.event, in.at = e, 10*s
			taken := m.step(in)
			want, ok := row.want[e]
			if !ok {
				want = row.rest
			}
			if got := (next{m.state, taken, m.due()}); got != want {
				t.Errorf("%s, event %d: got %+v, want %+v", row.purpose, e, got, want)
			}
		}
	}
}

// What a sequence of events leaves of the stopwatches, where one event alone does not show it.
func TestStopwatch(t *testing.T) {
	for _, row := range []struct {
		purpose string
		inputs  []input
		due     time.Duration
	}{
		{"a feed during a hold: only what was held after it is credited",
			[]input{{event: evArm}, {event: evHold, at: 1 * s}, {event: evFeed, at: 3 * s}, {event: evRelease, at: 5 * s}}, 9 * s},
		{"a debugger that came and went before the deadline: a whole timeout after it",
			[]input{{event: evArm}, {event: evTrace, at: 3 * s}, {event: evJudge, at: 4 * s, excuse: Excuse{Traced: true}}, {event: evJudge, at: 5 * s}}, 9 * s},
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
		{"or hold and release",
			[]input{{event: evArm}, {event: evTick, at: 1 * s}, {event: evHold, at: 30 * s}, {event: evRelease, at: 30 * s}, {event: evGap, from: 1 * s, at: 31 * s}}, 34 * s},
		{"or reach a checkpoint",
			[]input{{event: evArm}, {event: evCheckpoint, name: "a", at: 30 * s}, {event: evGap, from: 1 * s, at: 31 * s}}, 32*s + s/2},
		{"two gaps",
			[]input{{event: evArm}, {event: evGap, from: 1 * s, at: 10 * s}, {event: evGap, from: 11 * s, at: 20 * s}}, 22 * s},
		{"a new timeout keeps what was credited",
			[]input{{event: evArm}, {event: evGap, from: 1 * s, at: 10 * s}, {event: evRetime, at: 11 * s, d: 6 * s}}, 15 * s},
		{"a release after a late feed and a lapse: armed again it begins anew",
			[]input{{event: evArm}, {event: evJudge, at: 4 * s}, {event: evFeed, at: 5 * s}, {event: evArm, at: 6 * s}}, 10 * s},
		{"a checkpoint again before its end: the older one counts",
			[]input{{event: evArm}, {event: evCheckpoint, name: "a", at: 1 * s}, {event: evCheckpoint, name: "a", at: 2 * s}}, 2*s + s/2},
		{"the end of a deadline stops it, and again changes nothing",
			[]input{{event: evArm}, {event: evCheckpoint, name: "a", at: 1 * s}, {event: evCheckpoint, name: "b", at: 2 * s}, {event: evCheckpoint, name: "b", at: 3 * s}}, 4 * s},
		{"from each to the next",
			[]input{{event: evArm}, {event: evCheckpoint, name: "loop", at: s / 2}, {event: evCheckpoint, name: "loop", at: 1 * s}}, 3 * s},
		{"feeds do not help the main loop",
			[]input{{event: evArm}, {event: evCheckpoint, name: "loop", at: 1 * s}, {event: evFeed, at: 2 * s}}, 3 * s},
		{"new rules: the deadline that stays goes on, the other is gone, one that is new is stopped",
			[]input{{event: evArm}, {event: evCheckpoint, name: "a", at: 1 * s}, {event: evCheckpoint, name: "loop", at: 1 * s},
				{event: evRules, at: 2 * s, rules: Rules{Timeout: 9 * s, Deadlines: []Deadline{{"x", "y", s}, {"a", "b", 5 * s}}}}}, 6 * s},
		{"more rules than there is room for",
			[]input{{event: evArm}, {event: evRules, rules: Rules{Timeout: 9 * s, Deadlines: make([]Deadline, 2*DeadlinesMax)}}}, 9 * s},
		{"an extension that is over by now changes nothing",
			[]input{{event: evArm}, {event: evExtend, at: 1 * s, d: 2 * s}}, 4 * s},
		{"an extension is at most ExtendMax in one silence",
			[]input{{event: evArm}, {event: evExtend, at: 1 * s, d: ExtendMax}, {event: evExtend, at: 2 * s, d: 2 * ExtendMax}}, ExtendMax + 4*s},
		{"and ends with it", []input{{event: evArm}, {event: evExtend, at: 1 * s, d: ExtendMax}, {event: evFeed, at: 2 * s}}, 6 * s},
		{"one lapse, the earliest, and arming stops all deadlines",
			[]input{{event: evArm}, {event: evCheckpoint, name: "a", at: 1 * s}, {event: evJudge, at: 9 * s}, {event: evArm, at: 10 * s}}, 14 * s},
		{"a pause gives every stopwatch its limit anew",
			[]input{{event: evArm}, {event: evCheckpoint, name: "a", at: 1 * s}, {event: evPause, at: 2 * s, d: 10 * s}, {event: evTick, at: 12 * s}}, 13*s + s/2},
		{"a pause without end", []input{{event: evArm}, {event: evPause, at: 1 * s, d: never}, {event: evTick, at: never - 1}}, never},
		{"starvation credits one limit at most",
			[]input{{event: evArm}, {event: evJudge, at: 4 * s, excuse: Excuse{Starved: 1 * s}}, {event: evJudge, at: 5 * s, excuse: Excuse{Starved: 1000 * s}}}, 8 * s},
		{"and is counted from the warning on",
			[]input{{event: evArm}, {event: evJudge, at: 4 * s, excuse: Excuse{Starved: 1 * s}}, {event: evJudge, at: 5 * s, excuse: Excuse{Starved: 1*s + grantMin}}}, 5*s + grantMin},
		{"a rest below 10 ms is none",
			[]input{{event: evArm}, {event: evJudge, at: 4 * s, excuse: Excuse{Starved: 1 * s}}, {event: evJudge, at: 5 * s, excuse: Excuse{Starved: 1*s + grantMin - 1}}}, never},
	} {
		if m := play(row.inputs...); m.due() != row.due {
			t.Errorf("%s: due at %v, want %v", row.purpose, m.due(), row.due)
		}
	}
}
