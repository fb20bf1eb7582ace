// What the broker, and through it every program, is told of a client's state: published snapshots of procman, and whether
// the watchdog has begun to wonder.
package daemon

import (
	"time"

	"zhx/ipc/broker"
	"zhx/ipc/wire"
	"zhx/procman"
)

// Standing implements broker.Gate. It waits for nothing: the locks that it takes are held for a few instructions.
func (d *Daemon) Standing(name string) broker.Standing {
	c := d.owner(name)
	if c == nil {
		return broker.Standing{}
	}
	st, _ := d.procs.StatusOf(c.name) // the zero Status: a client that an edit adds this moment
	c.mu.Lock()
	s, hold := c.current, c.conf.Hold
	comes := c.receives[name] || c.conf.Ready == procman.ReadyRegister || len(c.receives) == 0 && st.Registers && name == c.name
	c.mu.Unlock()
	late := s != nil && s.late.Load() && s.theDog().Status().Late
	out := broker.Standing{Managed: true, State: stateOf(&st, late), Hold: hold, Account: &c.account, Details: details(&st)}
	out.Expects = comes && out.State != wire.StateFailed && out.State != wire.StateStopped
	if !st.Next.IsZero() {
		out.Back = max(0, time.Until(st.Next))
	}
	return out
}

// stateOf is procman's state in the words of presence.
func stateOf(st *procman.Status, late bool) uint8 {
	switch {
	case st.State == procman.Failed, st.State == procman.Exited && st.LastExit != nil && !st.LastExit.Success:
		return wire.StateFailed
	case !st.Wanted, st.State == procman.Exited:
		return wire.StateStopped
	case st.State != procman.Running: // on its way down, or up
		return wire.StateRestarting
	case late:
		return wire.StateLate
	case st.Ready:
		return wire.StateReady
	}
	return wire.StateRunning
}

// details is the body of STATE, but for the time until the next start. The end is that of the last run that has ended.
func details(st *procman.Status) map[string]any {
	about := map[string]any{}
	if st.Run != 0 {
		about["run"] = st.Run
	}
	if st.PID != 0 {
		about["pid"] = st.PID
	}
	e := st.LastExit
	if e == nil {
		return about
	}
	end := death(*e)
	about["cause"] = end.Reason
	if e.Text != "" {
		about["cause"] = end.Reason + ": " + e.Text
	}
	if end.Code != nil {
		about["exit_code"] = *end.Code
	}
	if end.Signal != nil {
		about["signal"] = *end.Signal
	}
	return about
}

// changed notes what is new of a client, and has the broker look at its Standing again. It implements procman.Options.Changed.
func (d *Daemon) changed(name string) {
	d.stateEvent(name)
	if c := d.client(name); c != nil {
		for _, name := range c.names() {
			d.bus.Changed(name)
		}
	}
}
