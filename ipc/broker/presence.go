package broker

// This file tells who watches a name of its state, and of every change: asking and being told of the next are one step.

import (
	"encoding/json"
	"reflect"
	"slices"
	"sync"

	"zhx/ipc/wire"
)

type presence struct {
	mu sync.Mutex // held while a state is looked up and queued, so that they are told in order
	// mu guards:
	names   map[string]*watched // that somebody watches
	all     int                 // watches
	changes uint64
}

type watched struct {
	told  Standing
	by    []*peer
	state uint8
}

// Changed says that what Gate.Standing tells of a name may be another. Any goroutine may call it, not under a lock that
// Standing takes; it does not wait.
func (b *Broker) Changed(name string) {
	b.names.mu.RLock()
	if x := b.names.boxes[name]; x != nil {
		x.changed(b.expected(name))
	}
	b.names.mu.RUnlock()
	w := &b.presence
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.names[name]
	if n == nil {
		return
	}
	standing, state := b.state(name)
	standing.Hold, standing.Account = Hold{}, nil
	if n.state == state && reflect.DeepEqual(n.told, standing) {
		return
	}
	n.told, n.state = standing, state
	w.changes++
	f := stateFrame(name, state, standing, w.changes)
	for _, p := range n.by {
		p.tell(f)
	}
}

// state is that of any name.
func (b *Broker) state(name string) (Standing, uint8) {
	s := b.gate.Standing(name)
	switch {
	case s.Managed:
		return s, s.State
	case b.Connected(name):
		return s, wire.StateReady
	}
	return s, wire.StateAbsent
}

func stateFrame(name string, state uint8, s Standing, change uint64) *wire.Frame {
	details := map[string]any{}
	for k, v := range s.Details {
		details[k] = v
	}
	if s.Back > 0 {
		details["back_in_ms"] = s.Back.Milliseconds()
	}
	body, _ := json.Marshal(details) // of strings and numbers
	return &wire.Frame{Type: wire.TypeState, Code: state, ID: change, To: name, Body: body}
}

// watch tells p the state of a name, now and after each change; code: it watches too many.
func (b *Broker) watch(p *peer, name string) (code uint8) {
	w := &b.presence
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.names[name]
	standing, state := b.state(name) // not what was told last: the time until the next start is less by now
	standing.Hold, standing.Account = Hold{}, nil
	if n == nil {
		n = &watched{told: standing, state: state}
	}
	if !slices.Contains(n.by, p) {
		if p.watching >= maxWatches || w.all >= allWatches || !p.user.take(&p.user.watches, 1, allWatches) {
			return wire.ErrFull
		}
		p.watching++
		w.all++
		n.by = append(n.by, p)
		w.names[name] = n
	}
	w.changes++
	p.tell(stateFrame(name, state, standing, w.changes))
	return 0
}

// unwatch ends that for one name; "": for all.
func (b *Broker) unwatch(p *peer, name string) {
	w := &b.presence
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.watching == 0 {
		return
	}
	for watchedName, n := range w.names {
		if name != "" && name != watchedName {
			continue
		}
		if i := slices.Index(n.by, p); i >= 0 {
			n.by = slices.Delete(n.by, i, i+1)
			p.watching--
			p.user.watches.Add(-1)
			w.all--
		}
		if len(n.by) == 0 {
			delete(w.names, watchedName)
		}
	}
}
