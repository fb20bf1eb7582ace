// What zhxctl can see and do: control.Backend over the published snapshots of procman, watchdog and broker. Seeing never
// waits for a client's loop.
package daemon

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"zhx/daemon/config"
	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/ipc/wire"
	"zhx/procman"
	"zhx/procman/logs"
)

// backend implements control.Backend.
type backend struct{ *Daemon }

func (d *Daemon) controlServer(c *config.Daemon) *control.Server {
	gid, err := lookupGroup(c.ControlGroup)
	if err != nil {
		gid = -1 // listen has told it
	}
	return &control.Server{
		Backend: backend{d}, Access: control.Access{UID: os.Getuid(), GID: gid}, Version: Version, Log: d.log,
	}
}

// Status implements control.Backend.
func (b backend) Status(context.Context) control.Status {
	conf, disk := b.config(), b.onDisk.Load()
	st := control.Status{Daemon: &control.DaemonStatus{
		Version: Version, PID: os.Getpid(), Uptime: control.Seconds(time.Since(b.began)),
		Config: conf.Path, ConfigState: disk.word, Counters: b.counters(),
	}}
	if disk.err != "" {
		st.Daemon.ConfigError = &disk.err
	}
	for _, p := range b.procs.Status() {
		if c := b.client(p.Name); c != nil {
			st.Clients = append(st.Clients, b.clientStatus(c, p))
		}
	}
	for _, p := range b.bus.Peers() {
		st.Peers = append(st.Peers, peerStatus(p))
	}
	return st
}

// counters is everything that was lost or refused, by name, so that nothing is lost in silence.
func (b backend) counters() map[string]int64 {
	n := b.bus.Counters()
	return map[string]int64{
		"connections": n.Accepted, "messages_forwarded": n.Forwarded, "messages_undeliverable": n.Undeliverable,
		"messages_dropped": n.Dropped, "packets_refused": n.Refused, "peers_malformed": n.Malformed, "peers_truncated": n.Truncated,
		"peers_over_limit": n.OverLimit, "peers_no_descriptor": n.NoDescriptor, "peers_replaced": n.Replaced, "receivers_stuck": n.Stuck,
		"armings_refused": b.unarmed.Load(), "feeds_ignored": b.unfed.Load(), "log_lines_dropped": b.out.Dropped(), "orphans_unplaced": b.kernel.Unplaced(),
	}
}

func (b backend) clientStatus(c *client, p procman.Status) control.ClientStatus {
	st := control.ClientStatus{
		Name: p.Name, State: string(p.State), Ready: p.State == procman.Running, Restarts: p.Restarts, Connected: b.connected(c),
		Messages: control.Messages{
			Received: c.account.Received.Load(), Sent: c.account.Sent.Load(), Undeliverable: c.account.Undeliverable.Load(),
			Dropped: c.account.Dropped.Load(), Held: c.account.Held.Load(),
		},
	}
	if p.PID != 0 {
		uptime := control.Seconds(time.Since(p.Since))
		st.PID, st.Uptime = &p.PID, &uptime
	}
	if p.Run != 0 {
		st.Run = &p.Run
	}
	if p.Text != "" && (p.State == procman.Failed || p.State == procman.Unkillable) {
		st.Why = &p.Text
	}
	if !p.Next.IsZero() {
		next := control.Seconds(time.Until(p.Next))
		st.Next = &next
	}
	c.mu.Lock()
	mode, timeout, s := c.conf.Watchdog, c.conf.WatchdogTimeout, c.current
	c.mu.Unlock()
	if mode != "off" {
		st.Watchdog = &control.WatchdogStatus{Timeout: control.Seconds(timeout), Lapses: c.lapses.Load()}
		if s != nil {
			dog := s.theDog().Status()
			st.Watchdog.Armed, st.Watchdog.Paused = dog.Armed, dog.Paused
			if dog.Armed {
				remaining := control.Seconds(dog.Remaining)
				st.Watchdog.Remaining = &remaining
			}
		}
	}
	st.LastExit = exitStatus(p.LastExit)
	return st
}

func (b backend) connected(c *client) bool {
	return slices.ContainsFunc(c.names(), b.bus.Connected)
}

func exitStatus(e *procman.LastExit) *control.ExitStatus {
	if e == nil {
		return nil
	}
	st := &control.ExitStatus{Reason: string(e.Reason), At: control.Stamp{Time: e.At}, Ago: control.Seconds(time.Since(e.At))}
	if e.Signal != "" {
		st.Signal = &e.Signal
	} else if e.Code >= 0 {
		st.Code = &e.Code
	}
	if e.Reason == procman.ByFrozen { // in state T for the watchdog's timeout: the same rule, seen by the kernel
		st.Reason = string(procman.ByWatchdog)
	}
	if e.Text != "" {
		st.Detail = &e.Text
	}
	return st
}

func peerStatus(p broker.PeerInfo) control.PeerStatus {
	st := control.PeerStatus{Names: p.Names, Transport: string(p.Transport), Protocol: p.Protocol, Managed: p.Managed, Proof: p.Proof, Stuck: p.Stuck}
	if p.PID > 0 {
		st.PID = &p.PID
	}
	if p.UID >= 0 {
		st.UID = &p.UID
	}
	return st
}

// Start implements control.Backend.
func (b backend) Start(ctx context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	return b.each(ctx, by, w, "started", b.procs.Start)
}

// Stop implements control.Backend.
func (b backend) Stop(ctx context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	return b.each(ctx, by, w, "stopped", b.procs.Stop)
}

// Restart implements control.Backend.
func (b backend) Restart(ctx context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	if w.All { // of those that are to run: a client stopped by hand stays stopped
		w.All = false
		for _, p := range b.procs.Status() {
			if p.Wanted && b.known(p.Name) == nil {
				w.Names = append(w.Names, p.Name)
			}
		}
	}
	return b.each(ctx, by, w, "restarted", b.procs.Restart)
}

// each does one verb to several clients at once. All names are looked up before anything is begun.
func (b backend) each(ctx context.Context, by control.Caller, w control.Which, done string,
	verb func(ctx context.Context, name, by string) error) ([]control.Outcome, error) {
	names := w.Names
	if w.All {
		names = nil
		for _, c := range b.config().Clients {
			names = append(names, c.Name)
		}
	}
	for _, name := range names {
		if err := b.known(name); err != nil {
			return nil, err
		}
	}
	outcomes := make([]control.Outcome, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			outcomes[i] = control.Outcome{Name: name, Text: done}
			if err := verb(ctx, name, by.String()); err != nil {
				outcomes[i].Text, outcomes[i].Error = "not "+done, verbError(name, err)
			}
		})
	}
	all.Wait()
	for _, p := range b.procs.Status() {
		if i := slices.Index(names, p.Name); i >= 0 && p.PID != 0 {
			outcomes[i].PID = &p.PID
		}
	}
	return outcomes, nil
}

func (b backend) known(name string) error {
	if slices.ContainsFunc(b.config().Clients, func(c config.Client) bool { return c.Name == name }) {
		return nil
	}
	return control.Errorf(control.CodeUnknown, "zhxctl status lists the clients", "no such client: %q", name)
}

func verbError(name string, err error) *control.Error {
	code := control.CodeFailed
	switch {
	case errors.Is(err, procman.ErrUnknown):
		code = control.CodeUnknown
	case errors.Is(err, context.DeadlineExceeded):
		code = control.CodeTimeout
	}
	return control.Errorf(code, "zhxctl logs "+name, "%s: %w", name, err)
}

// Reload implements control.Backend.
func (b backend) Reload(ctx context.Context, by control.Caller) (control.ReloadResult, error) {
	reply := b.reload(ctx, by.String())
	if reply.err != nil {
		e := control.Errorf(control.CodeUsage, "nothing changed; zhxctl check "+b.opts.Config, "%w", reply.err)
		var problems config.Problems
		if errors.As(reply.err, &problems) {
			e = control.Errorf(control.CodeUsage, "nothing changed", "%w", ErrConfig)
			e.Problems = problemRows(problems)
		}
		return control.ReloadResult{}, e
	}
	res := control.ReloadResult{Problems: problemRows(reply.conf.Warnings)}
	for _, row := range reply.plan {
		res.Plan = append(res.Plan, control.PlanRow{Name: row.Name, Action: string(row.Action), Why: strings.Join(row.Why, ", ")})
	}
	return res, nil
}

func problemRows(problems config.Problems) (rows []control.Problem) {
	for _, p := range problems {
		rows = append(rows, control.Problem{File: p.File, Line: p.Line, Section: p.Section, Text: p.Text, Warning: p.Warning})
	}
	return rows
}

// Send implements control.Backend: one message, as zhxctl or under a name that is nobody's.
func (b backend) Send(_ context.Context, _ control.Caller, m control.SendRequest) error {
	if m.Source == "" {
		m.Source = "zhxctl"
	}
	switch {
	case m.Source == "zhxctl":
	case !wire.ValidName(m.Source) || wire.Reserved(m.Source):
		return control.Errorf(control.CodeUsage, "", "--from %q is no name that may be used", m.Source)
	case b.owner(m.Source) != nil || b.bus.Connected(m.Source):
		return control.Errorf(control.CodeUsage, "zhxctl status lists who has it", "--from %q is somebody's name", m.Source)
	}
	switch err := b.bus.Send(m.Target, m.Source, []byte(m.Text)); {
	case err == nil:
		return nil
	case errors.Is(err, broker.ErrNoReceiver):
		code := control.CodeFailed
		if b.owner(m.Target) == nil {
			code = control.CodeUnknown
		}
		return control.Errorf(code, "zhxctl status", "%q: %w", m.Target, err)
	case errors.Is(err, broker.ErrStuck):
		return control.Errorf(control.CodeFailed, "zhxctl status", "%q: %w", m.Target, err)
	default:
		return control.Errorf(control.CodeUsage, "", "%w", err)
	}
}

// Shutdown implements control.Backend.
func (b backend) Shutdown(by control.Caller, keep bool) error {
	if keep {
		return control.Errorf(control.CodeFailed, "", "this zhxd cannot leave its clients to the next one yet")
	}
	b.log.Info("asked to end", "by", by.String())
	b.end()
	return nil
}

// Logs implements control.Backend.
func (b backend) Logs(ctx context.Context, q control.LogQuery) (<-chan control.LogLine, error) {
	names := q.Names
	for _, name := range names {
		if err := b.known(name); err != nil {
			return nil, err
		}
	}
	if len(names) == 0 {
		for _, c := range b.config().Clients {
			names = append(names, c.Name)
		}
	}
	out := make(chan control.LogLine)
	var kept []control.LogLine
	var follow []func()
	for _, name := range names {
		ring := b.procs.Ring(name)
		if ring == nil {
			continue
		}
		var more <-chan logs.Line
		if q.Follow {
			more = ring.Follow(ctx)
		}
		var last int64
		for _, line := range ring.Tail(q.N) {
			kept = append(kept, b.logLine(name, line))
			last = line.Seq
		}
		if q.Follow {
			follow = append(follow, func() { b.follow(ctx, name, more, last, out) })
		}
	}
	slices.SortStableFunc(kept, func(x, y control.LogLine) int { return x.At.Compare(y.At.Time) })
	go func() {
		defer close(out)
		for _, line := range kept {
			select {
			case out <- line:
			case <-ctx.Done():
				return
			}
		}
		var all sync.WaitGroup
		for _, f := range follow {
			all.Go(f)
		}
		all.Wait()
	}()
	return out, nil
}

func (b backend) follow(ctx context.Context, name string, more <-chan logs.Line, last int64, out chan<- control.LogLine) {
	for line := range more {
		if line.Seq <= last {
			continue
		}
		select {
		case out <- b.logLine(name, line):
		case <-ctx.Done():
			return
		}
	}
}

func (b backend) logLine(name string, line logs.Line) control.LogLine {
	return control.LogLine{
		Client: name, At: control.Stamp{Time: line.At}, Mono: control.Seconds(line.At.Sub(b.began)), Text: line.Text, Dropped: int64(line.Lost),
	}
}
