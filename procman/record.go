// What a zhxd leaves behind for the next one: a record a client. It is written before the fork (the intent, with the
// run's mark) and after it (with pid and start time), so that whatever lives after a crash can be found and verified.

package procman

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"zhx/procman/logs"
	"zhx/procman/proc"
)

const (
	recordVersion = 1
	recordSize    = 2 << 10 // bytes of the file; a longer record is an error

	// A process between fork and exec, or in its stage, holds the FIFO but does not prove to be of the run yet. It is looked for
	// again each settleLook, for settleWait; then what holds the FIFO is nobody that is known.
	settleWait = time.Second
	settleLook = 50 * time.Millisecond
)

// A record is one client's file NAME.json. The last run stays in it after its end; whether it lives is asked of the kernel.
type record struct {
	Version   int    `json:"version"`
	Client    string `json:"client"`
	Run       uint64 `json:"run"`            // number of the last run; the next one has one more
	Mark      string `json:"mark,omitempty"` // ZHX_RUN of that run; "" when it is known to be over
	Boot      string `json:"boot,omitempty"` // boot id: of another boot nothing lives
	PID       int    `json:"pid,omitempty"`  // the leader's. 0: zhxd died between intent and fork, or before it could write it
	Start     uint64 `json:"start,omitempty"`
	UID       int    `json:"uid"`
	Cgroup    string `json:"cgroup,omitempty"`     // the run's cgroup2
	StoppedBy string `json:"stopped_by,omitempty"` // stopped by hand: not started by autostart
	Receiver  bool   `json:"receiver,omitempty"`   // a run has registered with the broker
	Paused    int64  `json:"paused,omitempty"`     // its watchdog, by hand, until that proc.Uptime, in nanoseconds; of another boot: not
	PausedBy  string `json:"paused_by,omitempty"`  // who, and why
	Exited    bool   `json:"exited,omitempty"`     // it is in that state: not started by autostart either, until the next boot

	// What the next zhxd has to know to go on with the run.
	Sum        string `json:"sum,omitempty"`        // restartSum of the spec that it was spawned with
	TTY        bool   `json:"tty,omitempty"`        // it has a pseudo-terminal, which ends with its zhxd
	Began      int64  `json:"began,omitempty"`      // proc.Uptime at its spawn, in nanoseconds
	Registered bool   `json:"registered,omitempty"` // with the broker
	Armed      bool   `json:"armed,omitempty"`      // its watchdog
	Timeout    int64  `json:"timeout,omitempty"`    // WATCHDOG_USEC as it said it, in nanoseconds; 0: it did not
	Ready      bool   `json:"ready,omitempty"`      // as its client's ready has it
}

// restartSum tells specs apart whose processes are not alike: it differs if a key of class restart does. Keys that are zero do
// not count, so that a key that a newer zhxd knows and nobody uses changes nothing.
func restartSum(s Spec) string {
	keys := map[string]any{}
	for field, value := range reflect.ValueOf(s).Fields() {
		list := value.Kind() == reflect.Map || value.Kind() == reflect.Slice
		if field.Tag.Get("class") == "restart" && !value.IsZero() && (!list || value.Len() > 0) {
			keys[field.Tag.Get("key")] = value.Interface()
		}
	}
	b, err := json.Marshal(keys) // in the order of the keys
	if err != nil {
		panic(err) // a key of a type that has no JSON
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func (h *system) path() string { return filepath.Join(h.o.Dir, h.name+".json") }

func (h *system) fifo(run string) string { return filepath.Join(h.o.Dir, h.name+"."+run+".out") }

// load reads the record; without a file it is a fresh one. An unreadable one is an error as one of a newer version is: it
// may tell of processes that live.
func (h *system) load() (record, error) {
	fresh := record{Version: recordVersion, Client: h.name}
	b, err := os.ReadFile(h.path())
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err == nil && len(bytes.Trim(b, "\x00 \n")) == 0 {
		return fresh, nil // made, but not written: nothing was started yet, or the power went
	}
	var r record
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && r.Version != recordVersion || r.Version > recordVersion {
		err = fmt.Errorf("it is of version %d, this zhxd knows %d", r.Version, recordVersion)
	}
	if err != nil {
		return fresh, fmt.Errorf("record %s: %w; remove it when nothing of this client lives", h.path(), err)
	}
	r.Exited = r.Exited && r.Boot == h.boot
	if r.Boot != h.boot {
		r.Paused = 0
	}
	return r, nil
}

// save overwrites the record with one write within one page, padded to one length: a zhxd that is killed has written all of
// it or nothing. (A rename over the old file would be as good, but makes ext4 write to the disk, which costs a restart 2 ms.)
// It is not synced: it has to survive zhxd, not the machine.
func (h *system) save(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(b) >= recordSize {
		return fmt.Errorf("write record %s: its %d bytes are too many", h.path(), len(b))
	}
	b = append(b, bytes.Repeat([]byte(" "), recordSize-1-len(b))...)
	fd, err := unix.Open(h.path(), unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600) // os.File would try the poller first
	if err == nil {
		_, err = unix.Pwrite(fd, append(b, '\n'), 0)
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("write record %s: %w", h.path(), err)
	}
	return nil
}

// Save makes all records and notify sockets again: their directories were removed. It waits for each client's loop.
func (s *Set) Save() {
	for _, st := range s.Status() {
		s.note(st.Name, saveMsg{})
	}
}

type saveMsg struct{}

func (saveMsg) on(p *program) {
	p.save()
	if p.life != nil {
		p.life.hear()
	}
}

// files lists what a directory has of such names. (filepath.Glob would read the directory's own name as a pattern.)
func files(dir, prefix, suffix string, kind fs.FileMode) (paths []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), suffix) && e.Type() == kind {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// endLeftover makes sure that nothing of an earlier zhxd's run lives: what proves to be of it is killed. An error: something may.
func (h *system) endLeftover(ctx context.Context, r record) error {
	for late := time.Now().Add(settleWait); ; {
		here := r.Mark != "" && r.Boot == h.boot
		if here {
			if err := h.killRemains(ctx, r); err != nil {
				return err
			}
		}
		held, err := h.removeOutputs()
		if err != nil || held == "" {
			return err
		}
		if !here || time.Now().After(late) || ctx.Err() != nil {
			return fmt.Errorf("a process that does not prove to be of a dead zhxd's run holds %s", held)
		}
		<-time.After(settleLook)
	}
}

func (h *system) killRemains(ctx context.Context, r record) error {
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	killed, left, err := h.o.Kernel.KillRemains(ctx, proc.Remains{
		Mark: r.Mark, Leader: proc.ID{PID: r.PID, Start: r.Start}, UID: r.UID, Cgroup: r.Cgroup})
	for _, id := range killed {
		h.o.Log.Warn("left over from a dead zhxd", "client", h.name, "run", r.Run, "pid", id.PID, "next", "it was killed")
	}
	for _, s := range left {
		err = errors.Join(err, fmt.Errorf("run %d of a dead zhxd: pid %d: %s", r.Run, s.PID, s.Reason))
	}
	return err
}

// removeOutputs removes the FIFOs and notify sockets of the client's runs, but for a FIFO that somebody holds: it answers that.
func (h *system) removeOutputs() (held string, err error) {
	for _, fifo := range files(h.o.Dir, h.name+".", ".out", fs.ModeNamedPipe) {
		yes, err := proc.FIFOHeld(fifo)
		if err != nil || yes {
			return fifo, err
		}
		logs.RemoveFIFO(fifo)
	}
	for _, socket := range files(h.o.Notify, h.name+".", "", fs.ModeSocket) {
		os.Remove(socket)
	}
	return "", nil
}

// Leftovers ends what a dead zhxd left running, also of clients that are not configured any more: verified by boot id,
// start time and mark, whole trees, and says so. Runs of specs that can go on are left for the first Apply, which adopts them
// and comes next. It ends with ctx. The error has what could not be verified: it is not touched, and a client of that name is
// failed until it is gone.
func (s *Set) Leftovers(ctx context.Context, specs []Spec) error {
	configured := byName(specs)
	paths := files(s.o.Dir, "", ".json", 0)
	errs := make([]error, len(paths))
	var wg sync.WaitGroup
	for i, path := range paths {
		wg.Go(func() {
			h := &system{name: strings.TrimSuffix(filepath.Base(path), ".json"), boot: proc.BootID(), o: s.o}
			r, err := h.load()
			if spec, ok := configured[h.name]; ok && err == nil {
				if _, goesOn := h.adoptable(&spec, r); goesOn {
					return
				}
			}
			if err == nil {
				err = h.endLeftover(ctx, r)
			}
			if err == nil && r.Mark != "" {
				r.Mark = ""
				err = h.save(r)
			}
			if err != nil {
				s.o.Log.Error("leftovers", "client", h.name, "err", err, "next", "neither killed nor doubled")
				errs[i] = fmt.Errorf("client %q: %w", h.name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
