// The order among clients: who waits for whom to be ready, who stops before whom, who is restarted together.

package procman

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// readiness is what a program tells those that depend on it.
type readiness struct {
	mu sync.Mutex
	// mu guards:
	ok      bool
	state   State
	changed chan struct{} // closed, and made anew, with each change
}

func (r *readiness) set(ok bool, state State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ok == r.ok && state == r.state {
		return
	}
	r.ok, r.state = ok, state
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *readiness) get() (ok bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ok, r.changed
}

// unmet lists the clients that p depends on and that are not ready. One that is not configured (any more) is not waited for.
func (p *program) unmet() []*program { return p.set.unready(p.m.rules.DependsOn) }

func (s *Set) unready(names []string) (ds []*program) {
	for _, name := range names {
		if d, err := s.find(name); err == nil {
			if ok, _ := d.raised.get(); !ok {
				ds = append(ds, d)
			}
		}
	}
	return ds
}

// await returns when all of names are ready, or with ctx. It runs beside the loop, which it tells of each change.
func (p *program) await(ctx context.Context, names []string) {
	for ds := p.set.unready(names); len(ds) > 0; ds = p.set.unready(names) {
		ok, changed := ds[0].raised.get()
		if ok {
			continue
		}
		if !p.tell(waitsMsg{}) {
			return
		}
		// Any of them may fail meanwhile, but whoever waits is told of that one when its turn comes.
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// levels gives each client its depth: 0 depends on nobody, else one more than the deepest that it depends on. Cycles are the
// configuration's errors; here they only end.
func levels(specs []Spec) map[string]int {
	is, depth := byName(specs), map[string]int{}
	var of func(name string) int
	of = func(name string) int {
		if d, known := depth[name]; known {
			return d
		}
		depth[name] = 0
		d := 0
		for _, on := range is[name].DependsOn {
			if _, configured := is[on]; configured {
				d = max(d, of(on)+1)
			}
		}
		depth[name] = d
		return d
	}
	for _, s := range specs {
		of(s.Name)
	}
	return depth
}

// stopLevels are the levels by which all clients stop. Where nobody says what he depends on, the file's order says it.
func stopLevels(specs []Spec) map[string]int {
	if slices.ContainsFunc(specs, func(s Spec) bool { return len(s.DependsOn) > 0 }) {
		return levels(specs)
	}
	place := map[string]int{}
	for i, s := range specs {
		place[s.Name] = i
	}
	return place
}

// dependants lists who needs name, directly or not, by levels: those that nobody needs first.
func dependants(specs []Spec, name string) (byLevel [][]string) {
	needs := map[string]bool{name: true}
	for grown := true; grown; {
		grown = false
		for _, s := range specs {
			if !needs[s.Name] && slices.ContainsFunc(s.DependsOn, func(on string) bool { return needs[on] }) {
				needs[s.Name], grown = true, true
			}
		}
	}
	depth := levels(specs)
	var names []string
	for _, s := range slices.Backward(specs) {
		if s.Name != name && needs[s.Name] {
			names = append(names, s.Name)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return depth[b] - depth[a] })
	for i, n := range names {
		if i == 0 || depth[n] != depth[names[i-1]] {
			byLevel = append(byLevel, nil)
		}
		byLevel[len(byLevel)-1] = append(byLevel[len(byLevel)-1], n)
	}
	return byLevel
}

// lower hands m, which takes p down, to p when everybody who depends on it has stopped. It does not wait where nobody does.
func (s *Set) lower(p *program, m message) bool {
	s.mu.Lock()
	above := dependants(s.specs, p.name)
	s.mu.Unlock()
	if len(above) == 0 || p.status.Load().PID == 0 {
		return p.tell(m)
	}
	p.leave()
	for _, name := range slices.Concat(above...) { // before any stops: else one comes back while the next below it stops
		if q, err := s.find(name); err == nil {
			q.leave()
		}
	}
	go func() {
		for _, level := range above {
			var replies []<-chan error
			for _, name := range level {
				if q, err := s.find(name); err == nil {
					reply := make(chan error, 1)
					q.tell(yieldMsg{why: fmt.Sprintf("client %q goes down, which it depends on", p.name), reply: reply})
					replies = append(replies, reply)
				}
			}
			<-all(replies)
		}
		if !p.tell(m) {
			m.refuse(fmt.Errorf("client %q: %w", p.name, ErrClosed))
		}
	}()
	return true
}

// Concerned lists the clients that go down when name does: it and those that depend on it.
func (s *Set) Concerned(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(slices.Concat(dependants(s.specs, name)...), name)
}

// raise starts what a client depends on, unless it was stopped by hand.
func (s *Set) raise(name string) {
	s.mu.Lock()
	is := byName(s.specs)
	s.mu.Unlock()
	seen := map[string]bool{name: true}
	var up func(name string)
	up = func(name string) {
		for _, on := range is[name].DependsOn {
			if seen[on] {
				continue
			}
			seen[on] = true
			up(on)
			if p, err := s.find(on); err == nil && !p.status.Load().Wanted {
				begun := make(chan struct{})
				if p.tell(startMsg{begun: begun, reply: make(chan error, 1)}) {
					<-begun // whoever waits for it sees that it is not stopped
				}
			}
		}
	}
	up(name)
}

// together restarts the others of a group, since name failed.
func (s *Set) together(name string, others []string) {
	for _, other := range others {
		if p, err := s.find(other); err == nil {
			p.tell(yieldMsg{why: fmt.Sprintf("client %q failed, which it is restarted with", name), reply: make(chan error, 1)})
		}
	}
}

// turn takes part in the board's restarts: how long this one has to wait.
func (s *Set) turn() time.Duration {
	r := s.bucket.Reserve()
	return r.Delay()
}

// waits says in words what a client waits for.
func waits(ds []*program) string {
	var names []string
	for _, d := range ds {
		names = append(names, fmt.Sprintf("%s (%s)", d.name, d.status.Load().State))
	}
	return strings.Join(names, ", ")
}

// waitsFor lists what a client waits for. mu is held.
func (s *Set) waitsFor(name string) (names []string) {
	for _, spec := range s.specs {
		if spec.Name != name {
			continue
		}
		for _, on := range spec.DependsOn {
			j := slices.IndexFunc(s.specs, func(o Spec) bool { return o.Name == on })
			if j < 0 {
				continue
			}
			if ok, _ := s.progs[j].raised.get(); !ok {
				names = append(names, s.specs[j].Name)
			}
		}
	}
	return names
}
