// The order among clients: who waits for whom to be ready, who stops before whom, who is restarted together.

package procman

import (
	"context"
	"fmt"
	"maps"
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

// unmet lists the clients that p depends on and that are not ready.
func (p *program) unmet() []*program { return p.set.unready(p.m.rules.DependsOn) }

func (s *Set) unready(names []string) []*program {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending(names)
}

// pending lists who of names is not ready. A oneshot that is done stays so while those that it needed go down, so who waits
// for it needs them too. One that is not configured (any more) is not waited for. mu is held.
func (s *Set) pending(names []string) (ds []*program) {
	for _, name := range names {
		i := s.at(name)
		if i < 0 {
			continue
		}
		if ok, _ := s.progs[i].raised.get(); !ok {
			ds = append(ds, s.progs[i])
		} else if s.specs[i].Oneshot {
			ds = append(ds, s.pending(s.specs[i].DependsOn)...)
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

// byLevel orders programs as they stop: the deepest level first, in each those first that come last in the file.
func byLevel(progs []*program, depth map[string]int) (levels [][]*program) {
	at := map[int][]*program{}
	for _, p := range slices.Backward(progs) {
		at[depth[p.name]] = append(at[depth[p.name]], p)
	}
	for _, d := range slices.Backward(slices.Sorted(maps.Keys(at))) {
		levels = append(levels, at[d])
	}
	return levels
}

// dependants lists who needs name, directly or not.
func dependants(specs []Spec, name string) (names []string) {
	needs := map[string]bool{name: true}
	for grown := true; grown; {
		grown = false
		for _, s := range specs {
			if !needs[s.Name] && slices.ContainsFunc(s.DependsOn, func(on string) bool { return needs[on] }) {
				needs[s.Name], grown = true, true
				names = append(names, s.Name)
			}
		}
	}
	return names
}

// above lists who stops before p does, by levels.
func (s *Set) above(p *program) [][]*program {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := dependants(s.specs, p.name)
	if len(names) == 0 {
		return nil
	}
	var progs []*program
	for _, q := range s.progs[:len(s.specs)] {
		if slices.Contains(names, q.name) {
			progs = append(progs, q)
		}
	}
	return byLevel(progs, levels(s.specs))
}

// lower hands m, which takes p down, to p when everybody who depends on it has stopped. It does not wait where nobody does, nor
// to replace what does not live.
func (s *Set) lower(p *program, m request) bool {
	_, stop := m.(stopMsg)
	above := s.above(p)
	if len(above) == 0 || !stop && p.status.Load().PID == 0 {
		return p.tell(m)
	}
	p.leave()
	for _, q := range slices.Concat(above...) { // before any stops: else one comes back while the next below it stops
		q.leave()
	}
	go func() {
		for _, level := range above {
			var replies []<-chan error
			for _, q := range level {
				reply := make(chan error, 1)
				y := yieldMsg{why: fmt.Sprintf("client %q goes down, which it depends on", p.name), reply: reply}
				q.put(loweredMsg{y}, nil)
				replies = append(replies, reply)
			}
			<-all(replies)
		}
		p.put(loweredMsg{m}, fmt.Errorf("client %q: %w", p.name, ErrClosed))
	}()
	return true
}

// Concerned lists the clients that go down when name does: it and those that depend on it.
func (s *Set) Concerned(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(dependants(s.specs, name), name)
}

// raise starts what clients depend on, unless it was stopped by hand.
func (s *Set) raise(names ...string) {
	s.mu.Lock()
	is := byName(s.specs)
	s.mu.Unlock()
	seen := map[string]bool{}
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
	for _, name := range names {
		up(name)
	}
}

// together restarts the others of a group, since name failed, around those who depend on them.
func (s *Set) together(name string, others []string) {
	for _, other := range others {
		if p, err := s.find(other); err == nil {
			s.lower(p, yieldMsg{why: fmt.Sprintf("client %q failed, which it is restarted with", name), reply: make(chan error, 1)})
		}
	}
}

// turn takes part in the board's restarts: how long this one has to wait.
func (s *Set) turn() time.Duration { return s.bucket.Reserve().Delay() }

// waits says in words what a client waits for.
func waits(ds []*program) string {
	var names []string
	for _, d := range ds {
		names = append(names, fmt.Sprintf("%s (%s)", d.name, d.status.Load().State))
	}
	return strings.Join(names, ", ")
}
