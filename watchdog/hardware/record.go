// The record of resets: a file that tells the next boot why zhxd ended this one, and keeps the budget of resets over boots.

package hardware

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	Kept = 16 // resets that the record keeps: a budget must be smaller

	fileName  = "resets.json"
	format    = 1
	reasonMax = 512 // bytes of a Reason; the rest is cut
)

// ErrVolatile: the record's directory is on a file system in memory, so it does not survive a reset.
var ErrVolatile = errors.New("it is on a file system in memory and will not survive a reboot")

// A Reset is one that zhxd made, or was about to make: it is written first. Reason, Client and Run are the caller's.
type Reset struct {
	Reason string        `json:"reason"`
	Client string        `json:"client,omitempty"`
	Run    uint64        `json:"run,omitempty"`
	Boot   string        `json:"boot"`      // boot id of the boot that it ended
	Uptime time.Duration `json:"uptime_ns"` // of that boot, by CLOCK_BOOTTIME
	At     time.Time     `json:"at"`        // by the wall clock, for people: a board may have none
	Synced bool          `json:"synced"`    // the kernel says that the wall clock was synchronised
	Count  int           `json:"count"`     // of the resets ever, this one included
}

// Record is the resets of this board. Its methods are for any goroutine.
type Record struct {
	// Immutable:
	dir, boot string
	uptime    func() time.Duration
	step      func(i int) error // tests: called before each step of Write, which fails with its error; nil: no such

	// What was before this uptime of this boot may be missing.
	lost   bool
	lostAt time.Duration

	writing sync.Mutex // one Write at a time; held over its I/O
	mu      sync.Mutex // guards resets; taken inside writing, never held over I/O
	resets  []Reset    // oldest first, at most Kept; never changed, but replaced
}

// Load reads the record in dir, which it makes (0755). boot is this boot's id, not "", uptime its CLOCK_BOOTTIME. No file is
// an empty record. The Record is usable whatever the error is: broken or unreadable it is empty, with ErrVolatile whole.
//
// A broken record never prevents a start, and never gives the budget back: resets may have been in it, so until the
// machine has run for the whole window since (Recent), the budget counts as used up. So a flash that spoils each record, and
// a directory that each boot loses, allow one reset a window, not a loop of them. Only an overlay that is lost with each
// boot is not told from a healthy directory.
func Load(dir, boot string, uptime func() time.Duration) (*Record, error) {
	r := &Record{dir: dir, boot: boot, uptime: uptime}
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = r.read()
	}
	if err != nil {
		r.lost, r.lostAt = true, uptime()
		return r, fmt.Errorf("read the record of resets: %w", err)
	}
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) == nil && (uint32(s.Type) == unix.TMPFS_MAGIC || uint32(s.Type) == unix.RAMFS_MAGIC) {
		r.lost = true // all before this boot
		return r, fmt.Errorf("record of resets in %q: %w", dir, ErrVolatile)
	}
	return r, nil
}

// contents is the file.
type contents struct {
	Format int     `json:"format"`
	Resets []Reset `json:"resets"`
}

func (r *Record) read() error {
	name := filepath.Join(r.dir, fileName)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var c contents
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if c.Format != format || slices.ContainsFunc(c.Resets, func(x Reset) bool { return x.Uptime < 0 || x.Boot == "" }) {
		return fmt.Errorf("%q: not a record of format %d", name, format)
	}
	r.resets = c.Resets[max(0, len(c.Resets)-Kept):]
	return nil
}

func (r *Record) kept() []Reset {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resets
}

// Last is the latest reset that ended an earlier boot, not necessarily the one before this: other boots may have ended
// otherwise since.
func (r *Record) Last() (Reset, bool) {
	for _, reset := range slices.Backward(r.kept()) {
		if reset.Boot != r.boot {
			return reset, true
		}
	}
	return Reset{}, false
}

// Recent is the number of resets in the last within, at most Kept. Only time counts in which the machine is known to have
// run: this boot's, and of the recorded boots what had passed at their last reset. While it is off, and in boots that
// ended otherwise, nothing gets older, so it errs to a number too high. A reset of this boot counts too: its Write was
// followed by no reboot. After an error of Load the answer is Kept until this boot has lasted for within since the load
// (ErrVolatile: since the boot).
func (r *Record) Recent(within time.Duration) int {
	now := r.uptime()
	if r.lost && now-r.lostAt < within {
		return Kept
	}
	// Backwards: boot ended at the uptime end, and since then it has been past.
	boot, end, past, n := r.boot, now, time.Duration(0), 0
	for _, reset := range slices.Backward(r.kept()) {
		if reset.Boot != boot {
			past += end
			boot, end = reset.Boot, reset.Uptime
		}
		if past+end-reset.Uptime >= within {
			break
		}
		n++
	}
	return n
}

// Write adds a reset that is about to be made, filling in what the caller does not know. After an error the file is the
// old one (or the new one, if only the directory's sync failed), and there should be no reset: one that leaves no record is
// in no budget. It takes as long as the disk does, on a dead one for ever: the caller bounds it.
func (r *Record) Write(reset Reset) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	state, err := unix.Adjtimex(&unix.Timex{}) // changes nothing
	reset.Synced = err == nil && state != unix.TIME_ERROR
	reset.Reason = reset.Reason[:min(len(reset.Reason), reasonMax)]
	reset.Boot, reset.Uptime, reset.At, reset.Count = r.boot, r.uptime(), time.Now().UTC().Round(0), 1
	resets := slices.Clone(r.kept())
	if n := len(resets); n > 0 {
		reset.Count += resets[n-1].Count
	}
	resets = append(resets, reset)
	resets = resets[max(0, len(resets)-Kept):]

	// A crash at any of these leaves the old file or the new one: the data are on the disk before the name is. The name of
	// the temporary file is always the same, so that one left over is overwritten.
	name := filepath.Join(r.dir, fileName)
	var f *os.File
	for i, step := range []func() error{
		func() (err error) {
			f, err = os.OpenFile(name+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
			return err
		},
		func() error { return json.NewEncoder(f).Encode(contents{format, resets}) }, // one write
		func() error { return f.Sync() },
		func() error { return f.Close() },
		func() error { return os.Rename(f.Name(), name) },
		func() error { return syncDir(r.dir) },
	} {
		if r.step != nil {
			err = r.step(i)
		}
		if err == nil {
			err = step()
		}
		if err != nil {
			f.Close() // of nil, or again: an error, no harm
			os.Remove(name + ".tmp")
			return fmt.Errorf("write the record of resets: %w", err)
		}
	}
	r.mu.Lock()
	r.resets = resets
	r.mu.Unlock()
	return nil
}

// syncDir has the names of the directory on the disk.
func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
