package daemon

import (
	"testing"
	"time"

	"zhx/procman"
)

// TestHopeless: a client will never be ready if nothing is planned for it, or for one that it waits for, directly or not.
func TestHopeless(t *testing.T) {
	waits := func(on ...string) procman.Status { return procman.Status{State: procman.Waiting, WaitsFor: on} }
	is := map[string]procman.Status{
		"stopped": {State: procman.Stopped}, "given up": {State: procman.Failed}, "ended": {State: procman.Exited},
		"tried again": {State: procman.Failed, Next: time.Now()}, "backoff": {State: procman.Backoff, Next: time.Now()},
		"runs": {State: procman.Running}, "stopping": {State: procman.Stopping}, "unkillable": {State: procman.Unkillable},
		"done":              {State: procman.Exited, Ready: true},
		"waits for a death": waits("runs", "given up"), "far off": waits("waits for a death"),
		"waits for what is done": waits("done"), "waits": waits("backoff"),
	}
	for _, name := range []string{"stopped", "given up", "ended", "waits for a death", "far off"} {
		if !hopeless(is, name) {
			t.Errorf("%s: hope", name)
		}
	}
	for _, name := range []string{"tried again", "backoff", "runs", "stopping", "unkillable", "waits", "waits for what is done"} {
		if hopeless(is, name) {
			t.Errorf("%s: no hope", name)
		}
	}
}
