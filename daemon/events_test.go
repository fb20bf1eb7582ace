package daemon

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"zhx/daemon/control"
)

// A reader gets every event once and in order, is told of those that went before it came to them, and keeps nobody waiting.
func TestEventsRing(t *testing.T) {
	d := &Daemon{events: events{said: map[string]said{}}}
	add := func(n int) {
		for range n {
			d.event("", "reload", nil, "x")
		}
	}
	add(3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read, err := backend{d}.Events(ctx, control.EventQuery{N: 2, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	next, stop := iter.Pull(read)
	defer stop()
	expect := func(seq, lost uint64) {
		t.Helper()
		if e, _ := next(); e.Seq != seq || e.Lost != lost {
			t.Fatalf("got event %d, %d lost; want %d, %d", e.Seq, e.Lost, seq, lost)
		}
	}
	expect(2, 0)
	add(1) // while event 3 waits to be read
	expect(3, 0)
	expect(4, 0)
	add(eventsMax)
	for seq := uint64(5); seq < 5+eventsMax; seq++ {
		e, _ := next()
		if lost := e.Seq - seq; lost != e.Lost { // it had taken none, or the first of them
			t.Fatalf("got event %d, %d lost, after %d", e.Seq, e.Lost, seq-1)
		}
		seq = e.Seq
	}
	cancel()
	if e, more := next(); more {
		t.Errorf("got event %d after the end", e.Seq)
	}
	for _, tt := range []struct{ n, want int }{{-1, eventsMax}, {0, 0}, {7, 7}, {1000, eventsMax}} {
		read, _ := backend{d}.Events(t.Context(), control.EventQuery{N: tt.n})
		got := 0
		for range read {
			got++
		}
		if got != tt.want {
			t.Errorf("the last %d: got %d", tt.n, got)
		}
	}
}

// What happens to clients is told with its cause: a start, an end by itself and its restart, a verb by hand, a reload; and only
// what was asked for.
func TestEvents(t *testing.T) {
	z := serve(t, `
[client.loud]
command = ["sh", "-c", "test -e $$0 && exec sleep 1000; touch $$0; echo 'no modem'; exit 7", "`+filepath.Join(t.TempDir(), "once")+`"]
restart_delay = "10ms"
[client.quiet]
command = ["sleep", "1000"]
[client.talker]
command = ["`+exe(t)+`", "role-talker"]
depends_on = ["quiet"]
`)
	z.until("who talks is seen", func() bool {
		c := z.client("talker")
		return slices.Equal(c.TalksTo, []string{"talker"}) && slices.Equal(c.DependsOn, []string{"quiet"})
	})
	told := func(names ...string) (all []string) {
		err := z.Events(t.Context(), control.EventQuery{Names: names, N: -1}, func(e control.Event) error {
			all = append(all, fmt.Sprintf("%s %s: %s", e.Client, e.Kind, e.Text))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	has := func(all []string, parts ...string) bool { // in this order
		for _, part := range parts {
			i := slices.IndexFunc(all, func(s string) bool { return strings.Contains(s, part) })
			if i < 0 {
				return false
			}
			all = all[i+1:]
		}
		return true
	}
	z.until("the end and the restart are told", func() bool {
		return has(told("loud"), "loud ready: pid ", ": exit 7; restarts ", "loud ready: pid ")
	})
	st := z.client("loud")
	if st.LastExit.Said == nil || *st.LastExit.Said != "no modem" {
		t.Errorf("last words %v", st.LastExit.Said)
	}
	if st.CPU == nil || *st.CPU < 0 || *st.CPU > 100 || st.Memory == nil || *st.Memory < 10_000 {
		t.Errorf("cpu %v, memory %v", st.CPU, st.Memory)
	}
	if _, err := z.Stop(t.Context(), control.Which{Names: []string{"quiet"}}); err != nil {
		t.Fatal(err)
	}
	z.until("the stop is told, and by whom", func() bool {
		return has(told("quiet"), "quiet asked: to be stopped, by ", "quiet stopping: ", "quiet stopped: stop: ")
	})
	if _, err := z.Reload(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if all := told(); !has(all, " reload: by ") || has(told("loud"), "quiet") {
		t.Errorf("told: %q", all)
	}
	if err := z.Events(t.Context(), control.EventQuery{Names: []string{"nobody"}}, nil); err.(*control.Error).Code != control.CodeUnknown {
		t.Error(err)
	}
	shown, err := z.Show(t.Context(), "quiet")
	if err != nil || shown.File != z.conf || !slices.ContainsFunc(shown.Keys, func(k control.KeySet) bool {
		return k.Key == "command" && k.Value == `["sleep", "1000"]` && k.From == "client.quiet" && k.Line > 0
	}) {
		t.Errorf("shown: %+v %v", shown, err)
	}
	if _, err := z.Show(t.Context(), "nobody"); err.(*control.Error).Code != control.CodeUnknown {
		t.Error(err)
	}
}
