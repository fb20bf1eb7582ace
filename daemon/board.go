// Who watches zhxd, and what zhxd does for the board: init and the hardware watchdog are fed, and a critical client that cannot
// be kept alive ends in a reboot.
//
//	watchdog: a pass is complete ─> heart: do configuration, broker and procman answer? ─┬─> init: WATCHDOG=1
//	                                                                                     └─> every critical client well? ─> device
//	procman: start_limit reached ─┐
//	heart: unwell for too long ───┴─> reboot: the record is written ─> zhxd ends as ever ─> reboot(2); the device, unfed, does it else
//
// Neither is fed from anywhere else: if the judge, a part, or a lock of one is stuck, whoever watches notices.
package daemon

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"

	"zhx/daemon/config"
	"zhx/daemon/control"
	"zhx/procman"
	"zhx/procman/proc"
	"zhx/watchdog/hardware"
)

const (
	deviceTimeout = 30 * time.Second // of the hardware watchdog, if it can be set
	recoverMax    = 5 * time.Minute  // for a critical client that does not run to do so again; then it is unwell
	leftoverMax   = 5 * time.Minute  // for what an earlier zhxd left to end at the start; then the configuration's loop is missed
	rebootHour    = time.Hour        // what reboot_limit counts over
	syncMax       = 10 * time.Second // for the disks to take what was written before a reboot; then it comes without
)

// board is the heart's state. What is not said to be anybody's is the heart's own.
type board struct {
	// Immutable:
	d      *Daemon
	system hardware.Board
	beat   time.Duration // how often somebody is to be fed; 0: nobody is
	init   bool          // it wants to be fed
	safe   bool          // reboot_limit was reached before this start
	passes chan struct{} // a pass is complete -> heart
	rolls  chan chan struct{}

	dog     *hardware.Dog        // nil: none, or it could not be opened
	fed     time.Time            // who watches zhxd
	down    map[string]time.Time // critical clients that do not run: since when
	silent  bool                 // a part does not answer; told
	calling chan struct{}        // the roll call under way; closed when all have answered

	attending sync.Once // starts attend, which then has down: there is no heart

	record atomic.Pointer[hardware.Record] // nil: not read yet

	mu   sync.Mutex // there is one decision on a reboot at a time, which may take as long as the disk does
	told string     // of a reboot that is not to be; under mu
}

// openBoard finds out what happened before, and arms the hardware watchdog. Whatever is missing, zhxd goes on without it.
func (d *Daemon) openBoard(c *config.Config) *board {
	b := &board{d: d, system: d.opts.board, passes: make(chan struct{}, 1), rolls: make(chan chan struct{}), down: map[string]time.Time{}}
	if b.system.Reboot == nil {
		b.system = hardware.Real()
	}
	critical := slices.ContainsFunc(c.Clients, func(c config.Client) bool { return c.Critical })
	if _, err := os.Stat(c.Daemon.StateDir); critical || c.Watchdog.Device != "" || err == nil && c.Daemon.StateDir != c.Daemon.RunDir {
		limit := c.Watchdog.RebootLimit
		if n := b.load(c.Daemon.StateDir); limit > 0 && n >= limit {
			b.safe = true
			d.log.Error("safe mode", "resets", n, "limit", limit, "next", "clients are started by hand only: zhxctl start NAME")
		}
	}
	b.open(c.Watchdog.Device)
	if last, ok := b.last(); ok {
		d.log.Warn("last reset", "why", last.Reason, "uptime", round(last.Uptime), "count", last.Count)
	}
	if b.dog != nil && b.dog.Info().WasReset {
		d.log.Warn("last reset", "why", "the hardware watchdog made it")
	}
	period := func(timeout time.Duration) {
		if b.beat == 0 || timeout/3 < b.beat {
			b.beat = timeout / 3
		}
	}
	if timeout, err := sdaemon.SdWatchdogEnabled(false); err == nil && timeout > 0 {
		b.init = true
		period(timeout)
	}
	if b.dog != nil && b.dog.Info().Timeout > 0 {
		period(b.dog.Info().Timeout)
	}
	if b.beat == 0 && (critical || b.dog != nil) {
		period(deviceTimeout)
	}
	return b
}

// load reads the record of resets, and tells how many were recent. A broken record tells of none, and there is no reboot.
func (b *board) load(dir string) int {
	record, err := hardware.Load(dir, proc.BootID(), proc.Uptime)
	b.record.Store(record)
	if err != nil {
		b.d.log.Error("record of resets", "err", err, "next", "no reboot by zhxd within the first hour")
		return 0
	}
	return record.Recent(rebootHour)
}

func (b *board) open(path string) {
	if path == "" {
		return
	}
	open := b.d.opts.device
	if open == nil {
		open = hardware.OpenDevice
	}
	dog, err := hardware.Open(path, deviceTimeout, open)
	if err != nil {
		b.d.device.Store(new(err.Error()))
		b.d.log.Error("hardware watchdog not opened", "err", err, "next", "zhxd goes on without it")
		return
	}
	b.dog = dog
	info := dog.Info()
	b.d.device.Store(new(fmt.Sprintf("%s (%s), timeout %v", path, info.Identity, info.Timeout)))
	b.d.log.Info("hardware watchdog", "device", path, "identity", info.Identity, "timeout", info.Timeout,
		"next", "it resets the board unless zhxd feeds it")
}

func (b *board) last() (hardware.Reset, bool) {
	if r := b.record.Load(); r != nil {
		return r.Last()
	}
	return hardware.Reset{}, false
}

// passed is told of each completed pass of the judge; it must not block.
func (b *board) passed() { nudge(b.passes) } // the heart may be stuck, which must not be the judge's trouble

// heart feeds whoever watches zhxd.
func (b *board) heart(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			if b.dog != nil {
				err := b.dog.Close(b.d.config().Watchdog.MagicClose && b.d.rebooting.Load() == nil)
				if err != nil {
					b.d.log.Warn("hardware watchdog not closed", "err", err, "next", "it may reset the board")
				}
			}
			return
		case <-b.passes:
		}
		if time.Since(b.fed) < b.beat/2 || !b.answered(ctx) {
			continue
		}
		b.fed = time.Now()
		if b.init {
			notifyOuter(sdaemon.SdNotifyWatchdog)
		}
		if name, why := b.unwell(); name != "" && b.d.reboot(name, 0, why) {
			continue // the device is left alone from now on
		}
		if b.dog != nil && b.d.rebooting.Load() == nil {
			if err := b.dog.Feed(); err != nil {
				b.d.log.Error("hardware watchdog not fed", "err", err, "next", "it may reset the board")
			}
		}
	}
}

// attend is what is left of the heart's work where nobody is fed, as when an edit makes the first client critical.
func (b *board) attend(ctx context.Context) {
	for tick := time.NewTicker(deviceTimeout / 3); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		if name, why := b.unwell(); name != "" {
			b.d.reboot(name, 0, why)
		}
	}
}

// answered tells whether all parts have answered since the last time.
func (b *board) answered(ctx context.Context) bool {
	if b.calling == nil {
		done := make(chan struct{})
		b.calling = done
		go b.rollCall(ctx, done)
	}
	late := time.NewTimer(b.beat / 2)
	defer late.Stop()
	select {
	case <-b.calling:
		b.calling = nil
		if b.silent {
			b.silent = false
			b.d.log.Info("all parts of zhxd answer again")
		}
		return true
	case <-late.C:
		if !b.silent {
			b.silent = true
			b.d.log.Error("a part of zhxd does not answer", "next", "neither init nor the hardware watchdog is fed until it does")
		}
	case <-ctx.Done():
	}
	return false
}

// rollCall passes through each part's own locks and loop.
func (b *board) rollCall(ctx context.Context, done chan struct{}) {
	if b.d.looping.Load() || time.Since(b.d.began) > leftoverMax { // leftovers are ended before the loop begins
		heard := make(chan struct{})
		select {
		case b.rolls <- heard:
			<-heard
		case <-b.d.ending: // the configuration's loop has ended; it is not missed
		case <-ctx.Done():
			return
		}
	}
	b.d.bus.Peers()
	b.d.procs.Status()
	close(done)
}

// unwell names a critical client that cannot be kept alive, and why; "": all is well, or may yet become so. Who waits for a client
// that was stopped by hand is as well as if it had been stopped itself.
func (b *board) unwell() (name, why string) {
	critical, all := map[string]bool{}, b.d.procs.Status()
	for _, c := range b.d.config().Clients {
		critical[c.Name] = c.Critical
	}
	for _, st := range all {
		if !critical[st.Name] {
			continue
		}
		switch {
		case !st.Wanted, byHand(all, st), st.State == procman.Running, st.State == procman.Exited:
			delete(b.down, st.Name)
			continue
		case st.State == procman.Unkillable:
			return st.Name, "it survives SIGKILL: " + st.Text
		}
		if b.down[st.Name].IsZero() {
			b.down[st.Name] = time.Now()
		}
		if down := time.Since(b.down[st.Name]); down > recoverMax {
			return st.Name, fmt.Sprintf("it does not run for %v: %s", round(down), st.Outlook)
		}
	}
	return "", ""
}

// byHand tells whether a client is stopped by hand, or waits for one that is.
func byHand(all []procman.Status, st procman.Status) bool {
	return st.StoppedBy != "" || slices.ContainsFunc(all, func(on procman.Status) bool {
		return slices.Contains(st.WaitsFor, on.Name) && byHand(all, on)
	})
}

// GaveUp implements procman.Events: a client has reached its start_limit.
func (d *Daemon) GaveUp(name string, run uint64, why string) {
	if c := d.client(name); c != nil && c.configured().Critical {
		d.reboot(name, run, why)
	}
}

// reboot ends zhxd and reboots the board for a critical client. It does neither where that is not wanted or was done too often;
// then it is false.
func (d *Daemon) reboot(name string, run uint64, why string) bool {
	b, conf := d.board, d.config()
	b.mu.Lock()
	defer b.mu.Unlock()
	if d.rebooting.Load() != nil {
		return true
	}
	if b.record.Load() == nil {
		b.load(conf.Daemon.StateDir)
	}
	next, why := "", "client "+name+": "+why
	if conf.Watchdog.Mode == "observe" {
		next = `nothing: mode = "observe"`
	} else if b.safe || b.record.Load().Recent(rebootHour) >= conf.Watchdog.RebootLimit {
		next = "no reboot: reboot_limit is reached; zhxctl start " + name
	} else if err := b.record.Load().Write(hardware.Reset{Reason: why, Client: name, Run: run}); err != nil {
		next = "no reboot, since it could not be recorded: " + err.Error()
	}
	reboots := next == ""
	if reboots {
		next = "clients stop, then the board reboots"
		d.rebooting.Store(&why)
	}
	if text := name + next; text != b.told { // not by why, in which time goes by
		b.told = text
		d.log.Error("critical client lost", "client", name, "why", why, "next", next)
	}
	if reboots {
		d.end() // after it is told: the log ends, too
	}
	return reboots
}

// restart is the last that zhxd does before a reboot.
func (b *board) restart() {
	b.d.log.Warn("the board reboots", "why", *b.d.rebooting.Load())
	if err := b.system.Restart(syncMax); err != nil {
		b.d.log.Error("the board does not reboot", "err", err, "next", "reboot it by hand; the hardware watchdog does, if there is one")
	}
}

func (b backend) boardStatus() *control.BoardStatus {
	st := &control.BoardStatus{Mode: b.config().Watchdog.Mode, SafeMode: b.board.safe, Device: b.device.Load()}
	if last, ok := b.board.last(); ok {
		st.LastReset = &control.ResetStatus{Reason: last.Reason, Boot: last.Boot, Uptime: control.Seconds(last.Uptime),
			At: control.Stamp{Time: last.At}, Synced: last.Synced, Count: last.Count, Client: given(last.Client)}
	}
	return st
}
