// What zhxctl sees: published snapshots of procman, watchdog and broker, in the words of package control. Seeing never waits
// for a client's loop.
package daemon

import (
	"context"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/ipc/wire"
	"zhx/procman"
	"zhx/procman/proc"
)

// Status implements control.Backend.
func (b backend) Status(context.Context) control.Status {
	conf, disk := b.config(), b.onDisk.Load()
	st := control.Status{Daemon: &control.DaemonStatus{
		Version: Version, PID: os.Getpid(), Uptime: control.Seconds(time.Since(b.began)),
		Config: conf.Path, ConfigState: disk.word, Counters: b.counters(), Watchdog: b.boardStatus(), Metrics: b.exhibited.Load(),
		ConfigError: given(disk.err),
	}}
	for _, p := range b.procs.Status() {
		if c := b.client(p.Name); c != nil {
			st.Clients = append(st.Clients, b.clientStatus(c, p))
		}
	}
	for _, g := range conf.Groups {
		st.Groups = append(st.Groups, control.GroupStatus{Name: "@" + g.Name, Clients: g.Clients})
	}
	instances := map[string][]string{}
	for _, c := range conf.Clients {
		if c.Base != c.Name {
			instances[c.Base] = append(instances[c.Base], c.Name)
		}
	}
	for base, names := range instances {
		st.Groups = append(st.Groups, control.GroupStatus{Name: base, Clients: names})
	}
	slices.SortFunc(st.Groups, func(a, b control.GroupStatus) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range b.bus.Peers() {
		st.Peers = append(st.Peers, peerStatus(p))
	}
	return st
}

// counters is everything that was lost or refused, by name, so that nothing is lost in silence.
func (b backend) counters() map[string]int64 {
	n := b.bus.Counters()
	refused, malformed := b.procs.Ignored()
	return map[string]int64{
		"connections": n.Accepted, "messages_forwarded": n.Forwarded, "messages_undeliverable": n.Undeliverable,
		"messages_dropped": n.Dropped, "packets_refused": n.Refused, "peers_malformed": n.Malformed, "peers_truncated": n.Truncated,
		"peers_over_limit": n.OverLimit, "peers_no_descriptor": n.NoDescriptor, "peers_replaced": n.Replaced, "receivers_stuck": n.Stuck,
		"messages_held": n.Held, "messages_released": n.Released, "messages_expired": n.Expired, "published": n.Published,
		"publications_lost":        n.Gaps[wire.DropOldest] + n.Gaps[wire.DropNewest] + n.Gaps[wire.LatestOnly] + n.Gaps[wire.Disconnect],
		"publications_lost_oldest": n.Gaps[wire.DropOldest], "publications_lost_newest": n.Gaps[wire.DropNewest],
		"publications_lost_latest": n.Gaps[wire.LatestOnly], "publications_lost_disconnect": n.Gaps[wire.Disconnect],
		"replies_unanswered": n.Unanswered, "answers_untold": n.Untold,
		"bytes_received": n.Sent.Bytes, "bytes_written": n.Written.Bytes, "bytes_waiting": n.Waiting,
		"descriptors_received": n.Sent.FDs, "descriptors_written": n.Written.FDs, "descriptors_in_transit": n.InTransit,
		"notifications_refused": refused, "notifications_malformed": malformed,
		"armings_refused": b.unarmed.Load(), "feeds_ignored": b.unfed.Load(), "late_not_looked_at": b.unlooked.Load(), "log_lines_dropped": b.out.Dropped(), "orphans_unplaced": b.kernel.Unplaced(),
	}
}

func (b backend) clientStatus(c *client, p procman.Status) control.ClientStatus {
	st := control.ClientStatus{
		Name: p.Name, State: string(p.State), Ready: p.Ready, WaitsFor: p.WaitsFor, Adopted: p.Adopted, Restarts: p.Restarts,
		Run: given(p.Run), Notice: given(p.Notice), Phase: given(p.Phase), Next: until(p.Next), LastExit: exitStatus(p.LastExit),
		Connected: slices.ContainsFunc(c.names(), b.bus.Connected), Watchdog: c.watchdogStatus(), DependsOn: c.configured().DependsOn, TalksTo: c.talksTo(),
		Messages: control.Messages{
			Received: c.account.Received.Load(), Sent: c.account.Sent.Load(), Undeliverable: c.account.Undeliverable.Load(),
			Dropped: c.account.Dropped.Load(), Held: c.account.Held.Load(),
			Released: c.account.Released.Load(), Expired: c.account.Expired.Load(),
		},
	}
	if p.PID != 0 {
		st.PID, st.Uptime = &p.PID, new(control.Seconds(time.Since(p.Since)))
		if cpu, resident, err := proc.Usage(p.PID); err == nil {
			st.CPU, st.Memory = new(c.load(p, cpu)), &resident
		}
	}
	if ring := b.procs.Ring(p.Name); ring != nil {
		n := ring.Counters()
		st.Log = &control.LogStatus{Lines: n.Lines, Evicted: n.Evicted, Cut: n.Cut, FileDropped: n.FileDropped}
	}
	if p.State == procman.Failed || p.State == procman.Unkillable {
		st.Why = given(p.Text)
	}
	return st
}

// until is the time until the next start of a client; nil: none is planned.
func until(next time.Time) *float64 {
	if next.IsZero() {
		return nil
	}
	return new(control.Seconds(time.Until(next)))
}

const loadLeast = time.Second // between two looks at a process' time, which the kernel counts in ticks

// used is a look at the processor time of a process.
type used struct {
	run     uint64
	at      time.Time
	cpu     time.Duration
	percent float64 // by then, since the look before
}

// load is what a client uses of a processor, in percent.
func (c *client) load(p procman.Status, cpu time.Duration) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := c.used.run != p.Run
	if fresh {
		c.used = used{run: p.Run, at: p.Since}
	}
	if since := time.Since(c.used.at); fresh || since >= loadLeast {
		percent := 100 * float64(cpu-c.used.cpu) / float64(max(since, loadLeast))
		c.used.at, c.used.cpu, c.used.percent = time.Now(), cpu, math.Round(10*max(0, percent))/10
	}
	return c.used.percent
}

// talksTo are the names that the run that lives has sent something to.
func (c *client) talksTo() []string {
	s := c.run()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.targets))
}

// watchdogStatus is nil where it is off.
func (c *client) watchdogStatus() *control.WatchdogStatus {
	paused := c.paused()
	c.mu.Lock()
	mode, timeout, s := c.conf.Watchdog, c.conf.WatchdogTimeout, c.current
	c.mu.Unlock()
	if mode == "off" {
		return nil
	}
	st := &control.WatchdogStatus{Timeout: control.Seconds(timeout), Lapses: c.lapses.Load()}
	if paused != nil {
		st.Paused, st.PausedFor, st.Pause = true, new(control.Seconds(time.Until(paused.until))), &paused.text
	}
	if s == nil {
		return st
	}
	dog := s.theDog().Status()
	st.Armed, st.Traced, st.Timeout, st.Misses, st.Credited = dog.Armed, dog.Traced, control.Seconds(dog.Timeout), dog.Misses, control.Seconds(dog.Credited)
	if dog.Armed {
		st.Remaining = new(control.Seconds(dog.Remaining))
	}
	if i := dog.Intervals; i.Count > 0 {
		st.Margin = new(control.Seconds(dog.Margin))
		st.Interval = &control.IntervalStatus{Count: i.Count, Min: control.Seconds(i.Min), Mean: control.Seconds(i.Mean), P99: control.Seconds(i.P99), Max: control.Seconds(i.Max)}
	}
	st.Hint = given(hint(dog))
	return st
}

func exitStatus(e *procman.LastExit) *control.ExitStatus {
	if e == nil {
		return nil
	}
	d := death(*e)
	st := &control.ExitStatus{Reason: d.Reason, Code: d.Code, Success: e.Success, Signal: d.Signal, Detail: d.Detail, At: d.At, Ago: d.Ago}
	if n := len(d.Lines); n > 0 {
		st.Said = &d.Lines[n-1]
	}
	return st
}

// death is the end of one run for people and scripts.
func death(e procman.LastExit) control.Death {
	d := control.Death{Run: e.Run, Reason: string(e.Reason), Core: e.Core, At: control.Stamp{Time: e.At}, Ago: control.Seconds(time.Since(e.At)),
		Uptime: control.Seconds(e.Lived), Ready: e.Ready, Next: e.Next, Lines: e.Lines,
		PID: given(e.PID), Detail: given(e.Text)}
	if e.Signal != "" {
		d.Signal = &e.Signal
	} else if e.Code >= 0 && e.Reason != procman.BySpawn {
		d.Code = &e.Code
	}
	switch e.Reason {
	case procman.ByFrozen: // in state T for the watchdog's timeout: the same rule, seen by the kernel
		d.Reason = string(procman.ByWatchdog)
	case procman.BySpawn:
		d.Errno = given(unix.ErrnoName(unix.Errno(e.Code))) // 0 has no name
	}
	return d
}

// Why implements control.Backend.
func (b backend) Why(_ context.Context, name string) (control.Why, error) {
	if err := b.known(name); err != nil {
		return control.Why{}, err
	}
	all := b.procs.Status()
	i := slices.IndexFunc(all, func(p procman.Status) bool { return p.Name == name })
	if i < 0 { // an edit has removed it a moment ago
		return control.Why{}, control.Errorf(control.CodeUnknown, "zhxctl status lists the clients", "no such client: %q", name)
	}
	p := all[i]
	w := control.Why{Name: name, State: string(p.State), Ready: p.Ready, Now: p.Outlook, WaitsFor: p.WaitsFor, Next: until(p.Next)}
	for _, e := range slices.Backward(p.Deaths) {
		w.Deaths = append(w.Deaths, death(e))
	}
	if c := b.client(name); c != nil {
		c.mu.Lock()
		e := c.evidence
		c.mu.Unlock()
		if e != nil {
			w.Evidence = &control.Evidence{Run: e.run, At: control.Stamp{Time: e.at}, Ago: control.Seconds(time.Since(e.at)), By: e.by,
				Silence: control.Seconds(e.silence), Lines: e.lines}
		}
	}
	return w, nil
}

func peerStatus(p broker.PeerInfo) control.PeerStatus {
	st := control.PeerStatus{Names: p.Names, Transport: string(p.Transport), Protocol: p.Protocol, Managed: p.Managed, Proof: p.Proof, Stuck: p.Stuck,
		Sent: control.Traffic(p.Sent), Written: control.Traffic(p.Written), Waiting: p.Waiting}
	if p.PID > 0 {
		st.PID = &p.PID
	}
	if p.UID >= 0 {
		st.UID = &p.UID
	}
	return st
}

// Show implements control.Backend.
func (b backend) Show(_ context.Context, name string) (control.Shown, error) {
	conf := b.config()
	set := conf.KeysOf(name)
	if set == nil {
		return control.Shown{}, b.known(name)
	}
	shown := control.Shown{Name: name, File: conf.Path}
	for _, k := range set {
		shown.Keys = append(shown.Keys, control.KeySet(k))
	}
	return shown, nil
}
