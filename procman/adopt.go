// Going on with a run that an earlier zhxd left: it is found by its record, verified, and managed as if it had been spawned here.

package procman

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"zhx/procman/proc"
)

// adopted is what the record knows of a run that was taken over.
type adopted struct {
	registered, armed, ready bool
	uptime                   time.Duration
	sameSpec                 bool // else it has to be restarted
}

// adopt takes over the run of r, and corrects r where the run was found without its help. A nil life without an error: there is
// none that could go on (spawn may follow, after clear). With an error: there was one, and it could not be taken over; what
// proved to be of it was ended, what did not lives, as the error says.
func (h *system) adopt(s *Spec, r *record, in inlet) (life, adopted, error) {
	id, ok := h.adoptable(s, *r)
	if !ok {
		return nil, adopted{}, nil
	}
	l, err := h.takeOver(id, r)
	if err != nil {
		err = errors.Join(fmt.Errorf("run %d of a dead zhxd: %w", r.Run, err), h.endLeftover(context.Background(), *r))
		return nil, adopted{}, err
	}
	r.PID, r.Start, r.Cgroup = id.PID, id.Start, l.Tree.Cgroup()
	if err := h.save(*r); err != nil {
		h.o.Log.Error("record not written", "client", h.name, "run", r.Run, "err", err, "next", "the record of the last zhxd holds on")
	}
	h.o.Events.Began(h.name, r.Run, l.Tree)
	h.unheard(l, h.listen(l, in))
	l.pump = func() { h.pump(l, in.ring) }
	return l, adopted{registered: r.Registered, armed: r.Armed, ready: r.Ready, uptime: r.uptime(), sameSpec: r.Sum == restartSum(*s)}, nil
}

// takeOver verifies the run and opens its output again. What it printed meanwhile is in the FIFO, which it holds open itself.
func (h *system) takeOver(id proc.ID, r *record) (*run, error) {
	l := h.newRun(r.Run)
	var err error
	if l.out, err = proc.OpenFIFO(l.fifo); err != nil {
		return nil, err
	}
	l.Tree = h.o.Kernel.NewTree(h.name, r.Run, r.Mark, r.UID)
	l.Output = l.fifo
	if l.Child, err = h.o.Kernel.Adopt(l.Tree, id); err != nil {
		l.Tree.Close()
		l.out.Close()
		return nil, err
	}
	return l, nil
}

// adoptable finds the leader of the run of r, if it lives and can go on: not from another boot, not on a pseudo-terminal, which
// is gone, not if the client was stopped by hand.
func (h *system) adoptable(s *Spec, r record) (proc.ID, bool) {
	if r.Mark == "" || r.Boot != h.boot || r.TTY || r.StoppedBy != "" {
		return proc.ID{}, false
	}
	id := proc.ID{PID: r.PID, Start: r.Start}
	if id.Start == 0 {
		id = h.unrecorded(s, r)
	}
	st, err := proc.ReadStat(id.PID)
	return id, err == nil && st.ID == id && st.Living()
}

// unrecorded looks for the leader of a run whose zhxd died before it could write who that is.
func (h *system) unrecorded(s *Spec, r record) proc.ID {
	c, err := prepare(s, h.o.Environ)
	if err != nil {
		return proc.ID{}
	}
	for late := time.Now().Add(settleWait); ; <-time.After(settleLook) {
		id, err := h.o.Kernel.FindLeader(r.Mark, r.UID, proc.Query{Path: c.Path, Argv: c.Argv})
		held, _ := proc.FIFOHeld(h.fifo(strconv.FormatUint(r.Run, 10)))
		if err == nil || !held || time.Now().After(late) {
			return id
		}
	}
}

// uptime is the age of the run that lives.
func (r record) uptime() time.Duration {
	if r.Began <= 0 {
		return 0 // written by a zhxd that did not note it
	}
	return proc.Uptime() - time.Duration(r.Began)
}
