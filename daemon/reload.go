// From clients.toml to what runs. One goroutine, loop, owns what is loaded. The whole file is valid or nothing of it is
// used; a valid one is applied as a difference.
//
//	file watcher ─> edited ─┐
//	SIGHUP, zhxctl reload ──┴─> loop ─> load ─> plan ─> clients of session.go, then procman
package daemon

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"zhx/daemon/config"
	"zhx/procman"
)

// removalSettle is how long a file must have stood still before an edit that removes a client is applied by itself: an
// editor, or a script that writes piece by piece, must not stop a client by a half-written file that happens to be valid.
const removalSettle = 2 * time.Second

const (
	invalidLook = 2 * time.Second // a file that cannot be used is looked at so often: what hinders may be no matter of the file, and send no event
	watchAgain  = 2 * time.Second // after the kernel refused to watch the file
	watchWorks  = watchAgain / 10 // a watch that lasts this long works
)

// diskState is what status says of the file against what is loaded.
type diskState struct {
	word string // ok | changed | invalid
	err  string
}

type reloadRequest struct {
	by    string
	dry   bool             // say what it would do, and do nothing
	reply chan reloadReply // buffered
}

type reloadReply struct {
	plan procman.Plan
	old  *config.Config // that was in force
	conf *config.Config
	err  error
}

// load reads the configuration as the command line says.
func load(o Options) (*config.Config, error) {
	conf, err := config.Load(o.Config, config.Options{RunDir: o.RunDir})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return conf, nil
}

// reload re-reads the file now, whatever the watcher may be about to say, and returns when it is applied.
func (d *Daemon) reload(ctx context.Context, by string, dry bool) reloadReply {
	req := reloadRequest{by: by, dry: dry, reply: make(chan reloadReply, 1)}
	select {
	case d.reloads <- req:
		return <-req.reply
	case <-d.ending:
		return reloadReply{err: errors.New("zhxd is ending")}
	case <-ctx.Done():
		return reloadReply{err: ctx.Err()}
	}
}

// loop applies edits and reload requests until ctx ends.
func (d *Daemon) loop(ctx context.Context) {
	d.looping.Store(true)
	go d.watchFile(ctx)
	still := time.NewTimer(0)
	still.Stop()
	var waited fileSum // what must stand still before it is used
	edit := func() {
		still.Stop()
		if waited = d.edit(waited); waited != (fileSum{}) {
			still.Reset(removalSettle)
		} else if d.onDisk.Load().word == "invalid" {
			still.Reset(invalidLook)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case req := <-d.reloads:
			req.reply <- d.reread(req)
			if req.dry {
				continue
			}
			still.Stop()
			if d.onDisk.Load().word == "invalid" {
				still.Reset(invalidLook)
			}
		case heard := <-d.board.rolls:
			close(heard)
		case <-d.edited:
			waited = fileSum{}
			edit()
		case <-still.C:
			edit()
		}
	}
}

// watchFile tells the loop of edits, until ctx ends.
func (d *Daemon) watchFile(ctx context.Context) {
	for told := false; ; told = true {
		again := time.AfterFunc(watchWorks, func() {
			if told {
				d.log.Info("configuration is watched again")
			}
		})
		err := d.config().Watch(ctx, func() { nudge(d.edited) })
		again.Stop()
		if ctx.Err() != nil {
			return
		}
		if !told {
			d.log.Warn("configuration is not watched", "err", err, "next", "tried again in "+watchAgain.String()+"; until then zhxctl reload after an edit")
		}
		if !rest(ctx, watchAgain) {
			return
		}
	}
}

type fileSum = [sha256.Size]byte

// edit looks at a changed file and applies it, if that may be done at once or it is what was waited for. Otherwise it
// returns what has to stand still.
func (d *Daemon) edit(waited fileSum) (wait fileSum) {
	conf, err := load(d.opts)
	switch {
	case err != nil:
		d.invalid("edit", err)
	case conf.Sum == d.config().Sum: // a reload by hand was faster, or the edit was taken back
		d.onDisk.Store(&diskState{word: "ok"})
	case d.config().Daemon.Reload == "manual":
		d.onDisk.Store(&diskState{word: "changed"})
		d.log.Info("configuration changed", "by", "edit", "next", "zhxctl reload")
	case d.removes(conf) && conf.Sum != waited:
		d.onDisk.Store(&diskState{word: "changed"})
		d.log.Info("configuration removes a client", "by", "edit", "next", "applied when the file has stood still for "+removalSettle.String())
		return conf.Sum
	default:
		d.use(conf, "edit")
	}
	return fileSum{}
}

func (d *Daemon) removes(conf *config.Config) bool {
	return slices.ContainsFunc(d.config().Clients, func(old config.Client) bool {
		return !slices.ContainsFunc(conf.Clients, func(c config.Client) bool { return c.Name == old.Name })
	})
}

func (d *Daemon) reread(req reloadRequest) reloadReply {
	conf, err := load(d.opts)
	r := reloadReply{old: d.config(), conf: conf, err: err}
	switch {
	case err != nil && !req.dry:
		d.invalid(req.by, err)
	case err != nil:
	case req.dry:
		r.plan = planWith(procman.Diff(d.specs(r.old), d.specs(conf)), r.old.Clients, conf.Clients)
	default:
		r.plan = d.use(conf, req.by)
	}
	return r
}

func (d *Daemon) invalid(by string, err error) {
	now := diskState{word: "invalid", err: strings.TrimPrefix(err.Error(), ErrConfig.Error()+": ")}
	if was := d.onDisk.Swap(&now); by == "edit" && *was == now {
		return // told
	}
	d.event("", "reload", nil, "refused: the configuration is invalid, by %s", by)
	d.log.Error("configuration invalid", "by", by, "err", err, "next", "nothing changes; mend it, zhxctl check "+d.opts.Config)
}

// use applies a valid configuration and says what that did.
func (d *Daemon) use(conf *config.Config, by string) procman.Plan {
	if keys := config.DaemonChanges(d.config(), conf); len(keys) > 0 {
		d.log.Warn("configuration needs a restart of zhxd", "keys", strings.Join(keys, ", "), "next", "they stay as they are until then")
	}
	plan := d.apply(conf)
	d.onDisk.Store(&diskState{word: "ok"})
	kept := 0
	d.event("", "reload", nil, "by %s", by)
	for _, row := range plan {
		if row.Action == procman.ActKeep {
			kept++
			continue
		}
		d.event(row.Name, "reload", nil, "%s", strings.TrimSuffix(string(row.Action)+": "+strings.Join(row.Why, ", "), ": "))
		d.log.Info("configuration applied", "client", row.Name, "action", string(row.Action), "changed", strings.Join(row.Why, ", "))
	}
	d.log.Info("configuration read", "by", by, "clients", len(conf.Clients), "untouched", kept)
	return plan
}

// apply makes conf what is loaded: names and watchdogs first, so that a new run is known when it connects, then processes.
func (d *Daemon) apply(conf *config.Config) procman.Plan {
	old := d.config()
	next := *conf
	next.Daemon = old.Daemon // in force until zhxd is restarted
	next.Daemon.Identity, next.Daemon.Reload, next.Daemon.Metrics = conf.Daemon.Identity, conf.Daemon.Reload, conf.Daemon.Metrics
	next.Watchdog.Device, next.Watchdog.MagicClose = old.Watchdog.Device, old.Watchdog.MagicClose
	d.loaded.Store(&next)
	d.reloaded.Store(time.Now().UnixMilli())
	nudge(d.exhibits)

	owners := map[string]*client{}
	d.mu.Lock()
	for _, cc := range conf.Clients {
		c := d.clients[cc.Name]
		if c == nil {
			c = &client{name: cc.Name, receives: map[string]bool{}}
			d.clients[cc.Name] = c
		}
		c.mu.Lock()
		was := c.conf
		c.conf = cc
		// Else it stays as it is: a run may have asked for another timeout.
		if c.current != nil && (len(config.ClientChanges(was, cc)) > 0 || was.WatchdogTimeout != cc.WatchdogTimeout) {
			c.current.configure(cc)
		}
		c.mu.Unlock()
		for _, name := range append([]string{cc.Name}, cc.Names...) {
			owners[name] = c
		}
	}
	for name, c := range d.clients {
		if owners[name] != c && c.run() == nil {
			delete(d.clients, name)
		}
	}
	d.mu.Unlock()
	was := *d.owners.Swap(&owners)
	var moved []string
	for name, c := range owners {
		if was[name] != c {
			moved = append(moved, name)
		}
	}
	d.takeBack(moved)
	d.bus.Renew()
	plan := d.procs.Apply(d.specs(conf))
	for name := range was {
		d.bus.Changed(name)
	}
	for name := range owners { // its hold, or that it is a client's
		d.stateEvent(name) // that it was adopted, before it could be asked for
		d.bus.Changed(name)
	}
	return planWith(plan, old.Clients, conf.Clients)
}

// specs are the clients as procman knows them.
func (d *Daemon) specs(conf *config.Config) (specs []procman.Spec) {
	for _, c := range conf.Clients {
		c.Spec.Autostart = c.Autostart && !d.board.safe
		specs = append(specs, c.Spec)
	}
	return specs
}

// planWith adds to procman's plan the keys that procman does not know: they apply live.
func planWith(plan procman.Plan, old, new []config.Client) procman.Plan {
	for i, row := range plan {
		a := slices.IndexFunc(old, func(c config.Client) bool { return c.Name == row.Name })
		b := slices.IndexFunc(new, func(c config.Client) bool { return c.Name == row.Name })
		if a < 0 || b < 0 {
			continue
		}
		why := config.ClientChanges(old[a], new[b])
		if old[a].WatchdogTimeout != new[b].WatchdogTimeout && !slices.Contains(row.Why, "watchdog_timeout") {
			why = append(why, "watchdog_timeout")
		}
		if len(why) > 0 && row.Action == procman.ActKeep {
			plan[i].Action = procman.ActLive
		}
		plan[i].Why = append(plan[i].Why, why...)
	}
	return plan
}
