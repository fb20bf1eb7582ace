// Identity is proved, not claimed. The broker asks here who a connection is and whether it may use a name; the kernel
// answers: SO_PEERCRED and the process's start time for a Unix socket, the inode of the client's socket for TCP.
//
//	accept ─> Arrive: pid, start time, which run's tree is it in? (for TCP: asked when a name is claimed)
//	cmd 0, 1, 2 ─> Claim: a client's name belongs to its current run's tree; a free name to whoever has it first
//	a run begins, an edit gives a name to another ─> takeBack: who has a name that is not its own any more is disconnected
//
// What cannot be proved is refused and counted; a client's first refusal says what is missing and how to mend it.
package daemon

import (
	"crypto/subtle"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"zhx/ipc/broker"
	"zhx/procman/proc"
)

const unproved = "none (identity = warn)" // a proof that identity = "enforce" does not take

// visitor is one connection, as the kernel names it.
type visitor struct {
	// Immutable:
	cred broker.Cred
	id   proc.ID // zero: not known (TCP, or the process was gone when it was accepted)

	tree atomic.Pointer[proc.Tree] // the run whose tree it is in, as soon as that is known

	// Owned by the peer's reader:
	targets targets // of what it sends under free names
}

// Arrive implements broker.Gate.
func (d *Daemon) Arrive(c broker.Cred) any {
	v := &visitor{cred: c, targets: targets{}}
	if c.PID > 0 {
		if st, err := proc.ReadStat(c.PID); err == nil && (c.UID < 0 || st.UID == c.UID || c.UID == 0) {
			v.id = st.ID
			v.tree.Store(d.arrivals.treeOf(d.kernel, v.id))
		}
	}
	return v
}

const (
	arrivalFor  = time.Second
	arrivalsMax = 64 // processes; beyond it they are asked for anew
)

// arrivals remembers whose a process is that has just connected, since one that connects again and again would have zhxd read
// through /proc each time. That a process is nobody's is asked again where it claims a client's name.
type arrivals struct {
	mu    sync.Mutex
	since time.Time
	trees map[proc.ID]*proc.Tree
}

func (a *arrivals) treeOf(k *proc.Kernel, id proc.ID) *proc.Tree {
	a.mu.Lock()
	if now := time.Now(); now.Sub(a.since) > arrivalFor || len(a.trees) >= arrivalsMax {
		a.since, a.trees = now, map[proc.ID]*proc.Tree{}
	}
	t, known := a.trees[id]
	a.mu.Unlock()
	if !known {
		t = k.TreeOf(id)
		a.mu.Lock()
		a.trees[id] = t
		a.mu.Unlock()
	}
	return t
}

// Admit implements broker.Gate: protocol 2 over TCP is for who can read the cookie.
func (d *Daemon) Admit(_ any, cookie []byte) error {
	if d.cookie == "" || subtle.ConstantTimeCompare(cookie, []byte(d.cookie)) == 0 {
		return fmt.Errorf("the cookie is not what is in %s", d.dir.cookiePath())
	}
	return nil
}

// Claim implements broker.Gate: it binds a name to what it means for this peer.
func (d *Daemon) Claim(who any, name string, use broker.Use) (broker.Session, error) {
	v := who.(*visitor)
	c := d.owner(name)
	if c == nil {
		return &stranger{d: d, visitor: v, name: name}, nil
	}
	run := c.run()
	if last := c.lastWords(v, use); last != nil && last != run {
		return &claim{session: last, name: name, proof: v.proof()}, nil
	}
	if run == nil {
		return d.claimIdle(v, c, name)
	}
	proof, missing := d.prove(v, run, use)
	if proof == "" {
		err := d.refuse(v, c, name, missing, "start it as client "+c.name+", or set identity = \"warn\" in [daemon]")
		if d.enforcing() {
			return nil, err
		}
		proof = unproved
	}
	return &claim{session: run, name: name, proof: proof}, nil
}

// lastWords is the run before, if the peer was of it when it was accepted: what a sender wrote before its end is delivered.
// It may not feed nor receive any more.
func (c *client) lastWords(v *visitor, use broker.Use) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if use != broker.Send || c.ended == nil || v.tree.Load() != c.ended.tree {
		return nil
	}
	return c.ended
}

// takeBack makes names their owners' alone: nobody else's dogs are armed under them, and connections that have one of
// them by a claim of yesterday are closed, to be asked anew when they come again.
func (d *Daemon) takeBack(names []string) {
	for _, name := range names {
		d.forget(name, nil)
	}
	d.bus.Revoke(func(name string, s broker.Session) bool {
		c := d.owner(name)
		if c == nil {
			return false
		}
		switch s := s.(type) {
		case *claim:
			return s.client != c || s.proof == unproved && d.enforcing()
		case *stranger:
			return d.enforcing() && (s.account != &c.account || c.run() != nil)
		}
		return false
	})
}

// prove says how it is known that v is part of the run, or what is missing.
func (d *Daemon) prove(v *visitor, run *session, use broker.Use) (proof, missing string) {
	if t := v.tree.Load(); t != nil {
		if t == run.tree {
			return v.proof(), ""
		}
		return "", fmt.Sprintf("its process belongs to run %d of %s", t.Run, t.Name)
	}
	switch {
	case v.cred.Transport == broker.TCP && v.cred.Inode != 0:
		if run.tree.HoldsSocket(v.cred.Inode, v.cred.UID) {
			v.tree.Store(run.tree)
			return v.proof(), ""
		}
		missing = "no process of the current run holds that socket, or it was made by another user"
	case v.cred.Transport == broker.TCP:
		missing = "the kernel did not tell whose socket it is"
	case v.id != proc.ID{}:
		if t := d.kernel.TreeOf(v.id); t == run.tree { // it may have joined since
			v.tree.Store(t)
			return v.proof(), ""
		}
		missing = fmt.Sprintf("process %d is not in the tree of the current run", v.id.PID)
	default:
		missing = "the process was gone before it could be asked for"
		// A short-lived sender of the client's own user is believed for a message, never for a feed or a name.
		if use == broker.Send && v.cred.UID >= 0 && v.cred.UID == run.tree.UID {
			return "user", ""
		}
	}
	return "", missing
}

// claimIdle: a client that does not run now. Stopped by hand, its name belongs to processes of its user (gdb); else it
// belongs to the run to come.
func (d *Daemon) claimIdle(v *visitor, c *client, name string) (broker.Session, error) {
	s := &stranger{d: d, visitor: v, name: name, account: &c.account}
	missing := "client " + c.name + " does not run"
	if st, _ := d.procs.StatusOf(c.name); st.StoppedBy != "" {
		if v.cred.UID == 0 || v.cred.UID >= 0 && v.cred.UID == c.uid() {
			return s, nil
		}
		missing = "client " + c.name + " is stopped, and this is another user's process"
	}
	if err := d.refuse(v, c, name, missing, "zhxctl start "+c.name); d.enforcing() {
		return nil, err
	}
	return s, nil
}

// uid is the user that the client's processes run as, -1 if there is no such user.
func (c *client) uid() int {
	c.mu.Lock()
	name := c.conf.User
	c.mu.Unlock()
	if name == "" {
		return os.Getuid()
	}
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	if uid, err := strconv.Atoi(name); err == nil {
		return uid
	}
	return -1
}

// proof names what the peer is known by.
func (v *visitor) proof() string {
	switch {
	case v.id != proc.ID{}:
		return "process"
	case v.cred.Inode != 0:
		return "socket"
	case v.cred.UID >= 0:
		return "user"
	}
	return "none"
}

// refuse says what is missing, and logs it for a client's first time. The broker counts.
func (d *Daemon) refuse(v *visitor, c *client, name, missing, mend string) error {
	if c.told.CompareAndSwap(false, true) {
		verdict := "refused"
		if !d.enforcing() {
			verdict = "would be refused"
		}
		d.log.Warn("name not proved", "name", name, "verdict", verdict, "missing", missing,
			"transport", string(v.cred.Transport), "pid", v.cred.PID, "uid", v.cred.UID, "next", mend+"; further ones are only counted")
	}
	return fmt.Errorf("name %q not proved: %s", name, missing)
}

func (d *Daemon) enforcing() bool { return d.config().Daemon.Identity != "warn" }
