// Package logs keeps what one client prints.
//
//	FIFO or pty ─> Pump (one goroutine a run) ─┬─> Ring: the last 64 KiB ─┬─> Tail: a copy
//	                                           └─> emit: zhxd's log       └─> Follow: a bounded channel a reader
//
// The ring belongs to its mutex, the bytes of an unfinished line to the pump. The child is always drained: nobody who
// reads a ring can hold up the pump; a follower that is too slow loses lines, and is told how many.
package logs

import (
	"context"
	"sync"
	"time"
)

const (
	RingSize    = 64 << 10 // bytes of a ring, lineCost included; the oldest lines go first
	LineMax     = 4 << 10  // bytes of a line; a longer one becomes several
	FollowQueue = 256      // lines that wait for a follower; what comes then is lost to it, see Line.Lost
	lineCost    = 64       // what a line costs beside its bytes, so that empty lines fill a ring too
)

// A Line is what a client printed up to a newline, without it.
type Line struct {
	Seq  int64     // counts the ring's lines from 1
	At   time.Time // when zhxd read it: wall clock and, within this zhxd, monotonic
	Text string    // any bytes, control characters too
	Lost int       // followers only: lines before this one that were lost since the follower was slow
}

// A Ring is the last output of one client, over all its runs. Any goroutine may use it.
type Ring struct {
	mu        sync.Mutex
	lines     []Line // mu guards these
	size      int
	seq       int64
	followers map[*follower]struct{}
}

type follower struct {
	lines chan Line
	lost  int
}

func NewRing() *Ring { return &Ring{followers: map[*follower]struct{}{}} }

// Tail returns the last n lines, all if n < 0. With Follow called first, Seq tells which lines both have.
func (r *Ring) Tail(n int) []Line {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n < 0 || n > len(r.lines) {
		n = len(r.lines)
	}
	return append([]Line(nil), r.lines[len(r.lines)-n:]...)
}

// Follow delivers each line added from now on, until ctx ends; then the channel is closed.
func (r *Ring) Follow(ctx context.Context) <-chan Line {
	f := &follower{lines: make(chan Line, FollowQueue)}
	r.mu.Lock()
	r.followers[f] = struct{}{}
	r.mu.Unlock()
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.followers, f)
		close(f.lines)
	})
	return f.lines
}

// Add appends a line. It never waits for a follower.
func (r *Ring) Add(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	line := Line{Seq: r.seq, At: time.Now(), Text: text}
	r.lines = append(r.lines, line)
	r.size += len(text) + lineCost
	old := 0
	for ; r.size > RingSize; old++ {
		r.size -= len(r.lines[old].Text) + lineCost
		r.lines[old] = Line{} // its text is not kept alive by the array
	}
	r.lines = r.lines[old:]
	for f := range r.followers {
		line.Lost = f.lost
		select {
		case f.lines <- line:
			f.lost = 0
		default:
			f.lost++
		}
	}
}
