// The memory of all rings of a board together.

package logs

import (
	"slices"
	"sync"
	"sync/atomic"
)

// A Budget bounds the sum of its rings. Above it the oldest lines go from the rings that have most, down to one level, so
// that no ring loses any while it has no more than an equal share: a chatty client cannot push out a quiet one's last words.
// The sum passes the limit for a moment, by at most the lines of one read a pump.
type Budget struct {
	limit int64 // bytes, the lines' cost included
	used  atomic.Int64

	mu    sync.Mutex // never taken under a ring's
	rings []*Ring
}

// NewBudget returns a budget of so many bytes; BudgetSize is a board's.
func NewBudget(bytes int) *Budget { return &Budget{limit: int64(bytes)} }

// Ring returns a new ring of this budget. The caller closes it.
func (b *Budget) Ring() *Ring {
	r := &Ring{budget: b, followers: map[*follower]struct{}{}}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rings = append(b.rings, r)
	return r
}

func (b *Budget) remove(r *Ring) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rings = slices.DeleteFunc(b.rings, func(of *Ring) bool { return of == r })
}

// hold brings the sum back within the limit.
func (b *Budget) hold() {
	if b.used.Load() <= b.limit {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used.Load() <= b.limit {
		return // somebody else did it meanwhile
	}
	level := b.level()
	for _, r := range b.rings {
		if r.used.Load() > level {
			r.mu.Lock()
			r.evict(level)
			r.mu.Unlock()
		}
	}
}

// level is what the biggest rings are cut down to: a sixteenth is made free, so that this is not the work of every line;
// but never below an equal share. It needs mu.
func (b *Budget) level() int64 {
	sizes := make([]int64, len(b.rings))
	for i, r := range b.rings {
		sizes[i] = r.used.Load()
	}
	slices.Sort(sizes)
	left, level := b.limit-b.limit/16, int64(0)
	for i, size := range sizes {
		if level = left / int64(len(sizes)-i); size > level {
			break
		}
		left -= size
	}
	return max(level, b.limit/int64(max(1, len(b.rings))))
}
