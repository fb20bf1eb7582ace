// Package logs keeps what the clients print.
//
//	FIFO or pty ─> Pump (one goroutine a run) ─┬─> Ring: the last 64 KiB ─┬─> Tail: a copy
//	                                           │   (a Budget: of them all)└─> Follow: a bounded channel a reader
//	                                           ├─> emit: zhxd's log
//	                                           └─> the client's own file, if it has one
//
// The child is always drained: nobody who reads a ring can hold up the pump, nor can a full disk. What is lost on the way
// is counted, see Counters.
//
// With a file, the kill of zhxd loses nothing that a FIFO holds: bytes leave the FIFO only when their lines are in the
// file, so the next zhxd's pump finds them there. A few lines may come twice. See Pump.
package logs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	BudgetSize  = 2 << 20  // bytes of all rings of a board, each line's lineCost included; see Budget
	RingSize    = 64 << 10 // bytes of a ring, lineCost included; the oldest lines go first
	LineMax     = 4 << 10  // bytes of a line; a longer one becomes several, see Line.Cut
	FollowQueue = 256      // lines that wait for a follower; what comes then is lost to it, see Line.Lost
	lineCost    = 72       // what a line costs beside its bytes, so that empty lines fill a ring too

	FileMiB     = 1                     // MiB of a client's file; before it would grow beyond, it is renamed and a new one begun
	FileOld     = 1                     // renamed files that are kept
	fileRetry   = time.Second           // after a failure lines are dropped for so long; also how often a file is looked for that somebody removed
	fileBatch   = 64 << 10              // bytes that go to a file in one write
	partialWait = 20 * time.Millisecond // so long an unfinished line stays in the FIFO, then beside it; see peeker
)

// A Line is what a client printed up to a newline, without it.
type Line struct {
	Seq  int64     // counts the ring's lines from 1
	At   time.Time // when zhxd read it: wall clock and, within this zhxd, monotonic
	Text string    // any bytes, control characters too
	Run  uint64    // that had begun last; also of what is executed beside it
	Cut  bool      // the line was longer than LineMax: it goes on in the next one
	Lost int       // followers only: lines before this one that were lost since the follower was slow
}

// Counters count from the ring's beginning; none ever falls.
type Counters struct {
	Lines, Bytes int64 // printed; without newlines
	Evicted      int64 // lines that the ring no longer has
	Cut          int64 // lines longer than LineMax
	FileDropped  int64 // lines that the file could not take
	FollowerLost int64 // lines, the sum over followers
}

// A Ring is the last output of one client, over all its runs. Any goroutine may use it.
type Ring struct {
	budget *Budget
	file   atomic.Pointer[file] // nil: none
	used   atomic.Int64         // bytes of lines; changed under mu

	mu        sync.Mutex
	lines     []Line // mu guards these
	closed    bool
	run       uint64
	going     bool // the last line was Cut
	n         Counters
	followers map[*follower]struct{}
	report    func(path string, err error)
}

type follower struct {
	lines chan Line
	lost  int
}

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

// Begin says which run the lines to come are of.
func (r *Ring) Begin(run uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run = run
}

// Counters returns what was printed, and what of it was lost where.
func (r *Ring) Counters() Counters {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}

// SetFile makes path the client's file from the pump's next read on; "" is none. It only notes the path and never waits: the
// pump opens the file, mode 0640, when a line comes, and appends to what is there. Its directory must exist, for root one that
// only root can write to, and path must not be anything but a regular file. What fails then goes to OnFile.
//
// Old files are NAME-TIME-size.EXT beside it. The newest by that time is kept: where the clock was set back, the one of the
// later time outlives the others.
func (r *Ring) SetFile(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.setFile(path)
}

// HasFile tells whether there is one.
func (r *Ring) HasFile() bool { return r.file.Load() != nil }

// setFile needs mu.
func (r *Ring) setFile(path string) {
	old := r.file.Load()
	if old != nil && old.path == path || r.closed && path != "" {
		return
	}
	var f *file
	if path != "" {
		f = &file{path: path}
	}
	r.file.Store(f)
	if old != nil {
		go old.close() // which waits for a write under way, and a disk can be slow
	}
}

// OnFile has report called when the file begins to fail, when it fails in another way, and with nil when it takes lines
// again. The pump calls it: it must not wait.
func (r *Ring) OnFile(report func(path string, err error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report = report
}

// Close gives the ring's share of the budget back, and its lines and its file. It keeps nothing from then on; followers
// still get what comes.
func (r *Ring) Close() {
	r.budget.remove(r)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.evict(0)
	r.setFile("")
}

// A piece is a line, or a part of one that is too long, on its way.
type piece struct {
	text []byte
	cut  bool
}

// add appends lines. It never waits for a follower.
func (r *Ring) add(lines []piece, at time.Time) {
	r.mu.Lock()
	grown := 0
	for _, p := range lines {
		r.n.Lines++
		r.n.Bytes += int64(len(p.text))
		if p.cut && !r.going {
			r.n.Cut++
		}
		r.going = p.cut
		line := Line{Seq: r.n.Lines, At: at, Run: r.run, Text: string(p.text), Cut: p.cut}
		r.lines = append(r.lines, line)
		grown += len(p.text) + lineCost
		for f := range r.followers {
			line.Lost = f.lost
			select {
			case f.lines <- line:
				f.lost = 0
			default:
				f.lost++
				r.n.FollowerLost++
			}
		}
	}
	r.grow(grown)
	limit := int64(RingSize)
	if r.closed {
		limit = 0
	}
	r.evict(limit)
	r.mu.Unlock()
	r.budget.hold()
}

// evict drops the oldest lines until no more than limit bytes are left. It needs mu.
func (r *Ring) evict(limit int64) {
	old, size := 0, int(r.used.Load())
	for ; old < len(r.lines) && int64(size) > limit; old++ {
		size -= len(r.lines[old].Text) + lineCost
		r.lines[old] = Line{} // its text is not kept alive by the array
	}
	r.lines = r.lines[old:]
	r.n.Evicted += int64(old)
	r.grow(size - int(r.used.Load()))
}

// grow needs mu.
func (r *Ring) grow(bytes int) {
	if bytes != 0 {
		r.used.Add(int64(bytes))
		r.budget.used.Add(int64(bytes))
	}
}

// filed counts lines that the file did not take, and passes a change of the file's state on.
func (r *Ring) filed(dropped int, path string, changed bool, err error) {
	if dropped == 0 && !changed {
		return
	}
	r.mu.Lock()
	r.n.FileDropped += int64(dropped)
	report := r.report
	r.mu.Unlock()
	if changed && report != nil {
		report(path, err)
	}
}
