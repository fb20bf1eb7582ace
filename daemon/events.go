// What has happened to clients lately, in words, for those who come later and those who look on.
//
//	procman: Changed ──┐
//	watchdog: late, lapse ─┼─> events.add ─> a ring of eventsMax ─> zhxctl events, each reader at its own pace
//	asked by hand, reload ─┘
package daemon

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"zhx/daemon/control"
	"zhx/procman"
	"zhx/procman/proc"
)

const eventsMax = 256 // events that are kept; the oldest goes. A reader who is further behind is told how many it has missed

// events is the ring.
type events struct {
	mu   sync.Mutex // guards what follows; while it is held, nothing is waited for but procman's snapshots
	ring []control.Event
	seq  uint64          // of the last
	said map[string]said // of each client's state, last
	more chan struct{}   // closed by the next; nil: nobody waits
}

type said struct {
	kind string
	run  uint64
	died uint64 // the last run that has
	want int    // of a start that failed: what the board had too little of, as errno
}

// add is called with mu held.
func (e *events) add(ev control.Event) {
	e.seq++
	ev.Seq, ev.At = e.seq, control.Stamp{Time: time.Now()}
	if e.ring = append(e.ring, ev); len(e.ring) > eventsMax {
		e.ring = slices.Delete(e.ring, 0, 1)
	}
	if e.more != nil {
		close(e.more)
		e.more = nil
	}
}

// after gives the events behind seq that are kept, and what is closed when there are more.
func (e *events) after(seq uint64) ([]control.Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.more == nil {
		e.more = make(chan struct{})
	}
	i := slices.IndexFunc(e.ring, func(ev control.Event) bool { return ev.Seq > seq })
	if i < 0 {
		return nil, e.more
	}
	return slices.Clone(e.ring[i:]), e.more
}

// event notes what was done to a client, or to zhxd where it is "".
func (d *Daemon) event(client, kind string, run *uint64, format string, args ...any) {
	d.events.mu.Lock()
	defer d.events.mu.Unlock()
	d.events.add(control.Event{Client: client, Kind: kind, Run: run, Text: fmt.Sprintf(format, args...)})
}

// stateEvent notes what procman says of a client, if that is new.
func (d *Daemon) stateEvent(name string) {
	d.events.mu.Lock()
	defer d.events.mu.Unlock()
	st, ok := d.procs.StatusOf(name) // under the lock: what is seen first is noted first
	now := said{kind: string(st.State), run: st.Run}
	if st.LastExit != nil {
		now.died = st.LastExit.Run
		if e := st.LastExit; e.Reason == procman.BySpawn && proc.Shortage(syscall.Errno(e.Code)) {
			now.want = e.Code
		}
	}
	if now.kind == string(procman.Running) && st.Ready {
		now.kind = "ready"
	}
	// Of a start, what it comes to is enough, but for what it follows.
	was, known := d.events.said[name]
	if !ok || was == now || st.State == procman.Starting && was.died == now.died || !known && st.State == procman.Stopped {
		return
	}
	d.events.said[name] = now
	if now.want != 0 && was.want == now.want && was.kind == now.kind {
		return // tried again, in vain
	}
	ev := control.Event{Client: name, Kind: now.kind, Run: given(st.Run), Text: strings.TrimPrefix(st.Outlook, now.kind+"; ")}
	switch e := st.LastExit; {
	case now.kind == "ready" && st.Adopted:
		ev.Text = fmt.Sprintf("pid %d, which an earlier zhxd has started", st.PID)
	case now.kind == "ready" && st.PID > 0:
		ev.Text = fmt.Sprintf("pid %d", st.PID)
	case st.PID == 0 && e != nil && e.Run == st.Run:
		ev.Text = ended(*e)
	}
	d.events.add(ev)
}

// ended says how a run ended, and what follows.
func ended(e procman.LastExit) string {
	end := death(e)
	text := end.Reason
	switch {
	case end.Reason == "exit" && end.Code != nil:
		text = fmt.Sprintf("exit %d", *end.Code)
	case end.Reason == "signal" && end.Signal != nil:
		text = *end.Signal
	}
	if e.Text != "" {
		text += ": " + e.Text
	}
	return text + "; " + e.Next
}

// Events implements control.Backend.
func (b backend) Events(ctx context.Context, q control.EventQuery) (iter.Seq[control.Event], error) {
	for _, name := range q.Names {
		if err := b.known(name); err != nil {
			return nil, err
		}
	}
	var seq, lost uint64
	next := func() (list []control.Event, more <-chan struct{}) {
		list, more = b.events.after(seq)
		if n := len(list); n > 0 {
			if seq > 0 {
				lost += list[0].Seq - seq - 1
			}
			seq = list[n-1].Seq
		}
		return slices.DeleteFunc(list, func(ev control.Event) bool { return len(q.Names) > 0 && !slices.Contains(q.Names, ev.Client) }), more
	}
	list, more := next()
	if q.N >= 0 {
		list = list[max(0, len(list)-q.N):]
	}
	return func(yield func(control.Event) bool) {
		for ; ; list, more = next() {
			for _, ev := range list {
				ev.Lost, lost = lost, 0
				if !yield(ev) {
					return
				}
			}
			if !q.Follow {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}, nil
}
