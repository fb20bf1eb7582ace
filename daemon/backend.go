// What zhxctl can do: control.Backend, but for what it sees (snapshot.go).
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/config"
	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/ipc/wire"
	"zhx/procman"
	"zhx/procman/logs"
	"zhx/procman/proc"
)

// backend implements control.Backend.
type backend struct{ *Daemon }

func (d *Daemon) controlServer(c *config.Daemon) *control.Server {
	gid, err := lookupGroup(c.ControlGroup)
	if err != nil {
		gid = -1 // listen has told it
	}
	return &control.Server{
		Backend: backend{d}, Access: control.Access{UID: os.Getuid(), GID: gid}, Version: Version, Log: d.log, Metrics: backend{d}.metrics,
	}
}

// Start implements control.Backend.
func (b backend) Start(ctx context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	return b.each(ctx, by, w, "started", b.procs.Start, nil)
}

// Stop implements control.Backend.
func (b backend) Stop(ctx context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	return b.each(ctx, by, w, "stopped", b.procs.Stop, b.callersTree(by))
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
	return b.each(ctx, by, w, "restarted", b.procs.Restart, b.callersTree(by))
}

// Kill implements control.Backend.
func (b backend) Kill(ctx context.Context, by control.Caller, m control.KillRequest) ([]control.Outcome, error) {
	word := strings.TrimPrefix(strings.ToUpper(cmp.Or(m.Signal, "KILL")), "SIG")
	sig := unix.SignalNum("SIG" + word)
	if n, err := strconv.Atoi(word); err == nil && unix.SignalName(syscall.Signal(n)) != "" {
		sig = syscall.Signal(n)
	}
	if sig == 0 {
		return nil, control.Errorf(control.CodeUsage, "zhxctl kill -s HUP NAME", "kill: no such signal: %q", m.Signal)
	}
	inside := b.callersTree(by)
	if sig != unix.SIGKILL {
		inside = nil
	}
	out, err := b.each(ctx, by, m.Which, "sent "+unix.SignalName(sig), func(ctx context.Context, name, by string) error {
		return b.procs.Kill(ctx, name, by, sig)
	}, inside)
	if sig == unix.SIGKILL {
		for i := range out {
			out[i].PID = nil // what lives now is not what was killed
		}
	}
	return out, err
}

// Reset implements control.Backend.
func (b backend) Reset(ctx context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	return b.each(ctx, by, w, "reset", b.procs.Reset, nil)
}

// Wait implements control.Backend.
func (b backend) Wait(ctx context.Context, names []string, aim string) ([]control.Outcome, error) {
	names, err := b.resolve(control.Which{Names: names})
	if err != nil {
		return nil, err
	}
	for {
		_, moves := b.events.after(math.MaxUint64) // before the look
		if out, err := b.reached(names, aim); out != nil || err != nil {
			return out, err
		}
		select {
		case <-moves:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// reached is nil as long as one of names is not as aim has it, and an error once it cannot come to that.
func (b backend) reached(names []string, aim string) (out []control.Outcome, err error) {
	is := map[string]procman.Status{}
	for _, p := range b.procs.Status() {
		is[p.Name] = p
	}
	missing := false
	for _, name := range names {
		p, there := is[name]
		reached := p.Ready
		switch aim {
		case control.AimRunning:
			reached = p.State == procman.Running
		case control.AimStopped:
			reached = !there || rests(p)
		}
		if !reached && (!there || aim != control.AimStopped && hopeless(is, name)) {
			return nil, control.Errorf(control.CodeStopped, "zhxctl why "+name, "%s: will not be %s: %s", name, aim, cmp.Or(p.Outlook, "it was removed"))
		}
		out, missing = append(out, control.Outcome{Name: name, Text: aim, PID: given(p.PID)}), missing || !reached
	}
	if missing {
		return nil, nil
	}
	return out, nil
}

// rests tells whether nothing lives of a client, and nothing will before somebody asks for it.
func rests(p procman.Status) bool {
	return p.State == procman.Stopped || p.State == procman.Exited || p.State == procman.Failed && p.Next.IsZero()
}

// hopeless tells whether a client, or one that it waits for, rests.
func hopeless(is map[string]procman.Status, name string) bool {
	p := is[name]
	return rests(p) || slices.ContainsFunc(p.WaitsFor, func(on string) bool { return !is[on].Ready && hopeless(is, on) })
}

// callersTree is the run that the caller's process is part of; nil: of none.
func (b backend) callersTree(by control.Caller) *proc.Tree {
	st, err := proc.ReadStat(by.PID)
	if err != nil {
		return nil
	}
	return b.kernel.TreeOf(st.ID)
}

// each does one verb to several clients at once. All names are looked up before anything is begun. What takes down the tree
// inside is only accepted: whoever asks from there would not live to hear the end.
func (b backend) each(ctx context.Context, by control.Caller, w control.Which, done string,
	verb func(ctx context.Context, name, by string) error, inside *proc.Tree) ([]control.Outcome, error) {
	names, err := b.resolve(w)
	if err != nil {
		return nil, err
	}
	outcomes := make([]control.Outcome, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		b.event(name, "asked", nil, "to be %s, by %v", done, by)
		if inside != nil && slices.Contains(b.procs.Concerned(name), inside.Name) {
			outcomes[i] = control.Outcome{Name: name, Text: "accepted", Accepted: true, Begin: func() {
				go verb(context.WithoutCancel(ctx), name, by.String()) // the log says what came of it
			}}
			continue
		}
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

// resolve gives the clients that are meant, each once, in the order of the file for All.
func (b backend) resolve(w control.Which) (names []string, err error) {
	if w.All {
		for _, c := range b.config().Clients {
			names = append(names, c.Name)
		}
		return names, nil
	}
	for _, arg := range w.Names {
		meant, err := b.config().Resolve(arg)
		if err != nil {
			return nil, control.Errorf(control.CodeUnknown, "zhxctl status lists the clients", "%w", err)
		}
		for _, name := range meant {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

func (b backend) known(name string) error {
	if slices.ContainsFunc(b.config().Clients, func(c config.Client) bool { return c.Name == name }) {
		return nil
	}
	_, err := b.config().Resolve(name)
	if err == nil { // which is not what is asked for here
		err = fmt.Errorf("no such client: %q, it stands for several", name)
	}
	return control.Errorf(control.CodeUnknown, "zhxctl status lists the clients", "%w", err)
}

func verbError(name string, err error) *control.Error {
	code := control.CodeFailed
	switch {
	case errors.Is(err, procman.ErrUnknown):
		code = control.CodeUnknown
	case errors.Is(err, context.DeadlineExceeded):
		code = control.CodeTimeout
	case errors.Is(err, procman.ErrNoProcess):
		code = control.CodeStopped
	}
	return control.Errorf(code, "zhxctl why "+name, "%s: %w", name, err)
}

// Reload implements control.Backend. What ends the caller's own tree is only accepted.
func (b backend) Reload(ctx context.Context, by control.Caller, dry bool) (control.ReloadResult, error) {
	inside := b.callersTree(by)
	reply := b.reload(ctx, by.String(), dry || inside != nil)
	var res control.ReloadResult
	if inside != nil && !dry && reply.err == nil {
		if endsOne := func(row procman.Row) bool {
			return (row.Action == procman.ActRestart || row.Action == procman.ActStop) && slices.Contains(b.procs.Concerned(row.Name), inside.Name)
		}; slices.ContainsFunc(reply.plan, endsOne) {
			res.Accepted, res.Begin = true, func() { go b.reload(context.WithoutCancel(ctx), by.String(), false) }
		} else {
			reply = b.reload(ctx, by.String(), false)
		}
	}
	if reply.err != nil {
		e := control.Errorf(control.CodeUsage, "nothing changed; zhxctl check "+b.opts.Config, "%w", reply.err)
		var problems config.Problems
		if errors.As(reply.err, &problems) {
			e = control.Errorf(control.CodeUsage, "nothing changed", "%w", ErrConfig)
			e.Problems = problemRows(problems)
		}
		return control.ReloadResult{}, e
	}
	res.Problems = problemRows(reply.conf.Warnings)
	was, is := reply.old.Values(), reply.conf.Values()
	for _, row := range reply.plan {
		one := control.PlanRow{Name: row.Name, Action: string(row.Action), Why: strings.Join(row.Why, ", "), Changes: []control.Change{}}
		for _, key := range row.Why {
			one.Changes = append(one.Changes, control.Change{Key: key, Old: was(row.Name, key), New: is(row.Name, key)})
		}
		res.Plan = append(res.Plan, one)
	}
	return res, nil
}

func problemRows(problems config.Problems) (rows []control.Problem) {
	for _, p := range problems {
		rows = append(rows, control.Problem(p))
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
		return control.Errorf(code, "zhxctl status", "%w", err)
	case errors.Is(err, broker.ErrNotSent):
		return control.Errorf(control.CodeFailed, "zhxctl status", "%w", err)
	default:
		return control.Errorf(control.CodeUsage, "", "%w", err)
	}
}

// Shutdown implements control.Backend.
func (b backend) Shutdown(by control.Caller, keep bool) (answer control.ShutdownReply, begin func(), err error) {
	if !keep {
		answer.Accepted = b.callersTree(by) != nil
	}
	for _, p := range b.procs.Status() {
		if keep && p.PID != 0 && !p.TTY {
			answer.Kept++
		}
	}
	return answer, func() {
		b.log.Info("asked to end", "by", by.String(), "keep", keep)
		b.keep.Store(keep)
		b.end()
	}, nil
}

// Logs implements control.Backend.
func (b backend) Logs(ctx context.Context, q control.LogQuery) (iter.Seq[control.LogLine], error) {
	names := q.Names
	for _, name := range names {
		if err := b.known(name); err != nil {
			return nil, err
		}
	}
	if len(names) == 0 {
		names, _ = b.resolve(control.Which{All: true})
	}
	from, err := q.From()
	if err != nil {
		return nil, err
	}
	out := make(chan control.LogLine) // of those that are followed
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
		for _, line := range b.tail(name, ring, q, from) {
			kept = append(kept, b.logLine(name, line))
			last = line.Seq
		}
		if q.Follow {
			follow = append(follow, func() { b.follow(ctx, name, more, last, out) })
		}
	}
	if q.Previous && len(kept) == 0 {
		return nil, control.Errorf(control.CodeFailed, "zhxctl logs", "nothing is kept of a run that has ended")
	}
	slices.SortStableFunc(kept, func(x, y control.LogLine) int { return x.At.Compare(y.At.Time) })
	return func(yield func(control.LogLine) bool) {
		for _, line := range kept {
			if !yield(line) {
				return
			}
		}
		var all sync.WaitGroup
		for _, f := range follow {
			all.Go(f)
		}
		go func() {
			all.Wait()
			close(out)
		}()
		for line := range out {
			if !yield(line) {
				return // ctx ends with the asker, and those that are followed with it
			}
		}
	}, nil
}

// tail is what of the kept lines q means.
func (b backend) tail(name string, ring *logs.Ring, q control.LogQuery, from time.Time) []logs.Line {
	var run uint64 // no run is
	if p, _ := b.procs.StatusOf(name); p.LastExit != nil {
		run = p.LastExit.Run
	}
	lines := slices.DeleteFunc(ring.Tail(-1), func(l logs.Line) bool { return l.At.Before(from) || q.Previous && l.Run != run })
	if q.N < 0 {
		return lines
	}
	return lines[max(0, len(lines)-q.N):]
}

// Tap implements control.Backend.
func (b backend) Tap(ctx context.Context, by control.Caller, pattern string) (iter.Seq[control.TapEvent], error) {
	if pattern != "" && !wire.ValidPattern(pattern) {
		return nil, control.Errorf(control.CodeUsage, "zhxctl tap, or a name, or a topic in which * is any word and > at the end one word or more",
			"tap: %q means no name and no topic", pattern)
	}
	b.log.Info("tapped", "by", by.String(), "pattern", pattern)
	events := b.bus.Tap(ctx, pattern)
	return func(yield func(control.TapEvent) bool) {
		for e := range events {
			if !yield(control.TapEvent{At: control.Stamp{Time: e.At}, Kind: e.Kind, From: e.From, To: e.To, Size: e.Size,
				Text: string(e.Body), Outcome: e.Outcome, Lost: e.Lost}) {
				return
			}
		}
	}, nil
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
		Client: name, Run: line.Run, At: control.Stamp{Time: line.At}, Mono: control.Seconds(line.At.Sub(b.began)), Text: line.Text,
		Dropped: int64(line.Lost), Cut: line.Cut,
	}
}
