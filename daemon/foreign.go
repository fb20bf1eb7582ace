// Names that no client of the configuration has, and processes that zhx did not start. Such a process may register a free
// name, talk, and be watched. If it lapses it is killed only if its process is still proved to be the one that armed;
// otherwise zhx says why it did not.
package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"zhx/ipc/broker"
	"zhx/procman/proc"
	"zhx/watchdog"
)

// foreignBit marks the run numbers of foreign dogs, so that they never meet those of a client's runs.
const foreignBit = 1 << 63

// foreignLines of the log, at once and a second, are for lapses of foreign programs; beyond, they are judged without one.
const foreignLines = 20

// stranger is a free name as one peer uses it. It implements broker.Session; the peer's reader alone calls it.
type stranger struct {
	*visitor
	d       *Daemon
	name    string
	account *broker.Account // of a client that is stopped by hand and whose name this is; else nil
	held    *watchdog.Dog
}

func (s *stranger) Managed() bool            { return false }
func (s *stranger) Account() *broker.Account { return s.account }
func (s *stranger) Proof() string            { return s.proof() }
func (s *stranger) First(target string) bool { return s.targets.first(target) }
func (s *stranger) Registered()              {}
func (s *stranger) Arm()                     { s.d.armForeign(s.visitor, s.name) }

func (s *stranger) Feed() {
	if dog := s.d.foreignDog(s.visitor, s.name); dog == nil || !dog.Feed() {
		s.d.unfed.Add(1)
	}
}

func (s *stranger) Checkpoint(name string) {
	s.Feed()
	if dog := s.d.foreignDog(s.visitor, s.name); dog == nil || !dog.Checkpoint(name) {
		s.d.unfed.Add(1)
	}
}

func (s *stranger) Hold() {
	if s.held = s.d.foreignDog(s.visitor, s.name); s.held != nil {
		s.held.Hold()
	}
}

func (s *stranger) Release() {
	if s.held != nil {
		s.held.Release()
	}
}

// foreign is an armed dog of a process that zhx did not start.
type foreign struct {
	uid     int
	id      proc.ID // zero: not proved
	missing string  // why not
	dog     *watchdog.Dog
	run     watchdog.ID
	told    int64 // of a lapse in mode "observe": the feeds before it, and 1; the judge's
}

// foreignDog is the armed dog of a name, if it is of this visitor's user: a process may feed by another connection, or
// another process, than it armed by.
func (d *Daemon) foreignDog(v *visitor, name string) *watchdog.Dog {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.foreign[name]; f != nil && f.uid == v.cred.UID {
		return f.dog
	}
	return nil
}

// foreignRun is that dog, if it is still its name's; else nil.
func (d *Daemon) foreignRun(id watchdog.ID) *foreign {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.foreign[id.Name]; f != nil && f.run == id {
		return f
	}
	return nil
}

// armForeign arms a dog for the visitor's process. It replaces one that the same user armed under that name.
func (d *Daemon) armForeign(v *visitor, name string) {
	f := &foreign{uid: v.cred.UID, id: v.id, run: watchdog.ID{Name: name, Run: d.foreignRuns.Add(1) | foreignBit}}
	if f.id == (proc.ID{}) {
		f.missing = "its process was gone before it could be asked for"
		if v.cred.Inode != 0 {
			f.missing = "no process was found that holds its socket"
			f.id, _ = proc.FindSocket(v.cred.Inode, v.cred.UID)
		}
	}
	d.mu.Lock()
	old := d.foreign[name]
	if old == nil && !d.foreignRoom(f.uid) || old != nil && old.uid != f.uid {
		d.mu.Unlock()
		d.unarmed.Add(1)
		return
	}
	f.dog = d.watch.Dog(f.run, watchdog.Rules{Timeout: d.config().Watchdog.Timeout()})
	d.foreign[name] = f
	d.mu.Unlock()
	if old != nil {
		old.dog.Retire()
	}
	f.dog.Arm()
}

// foreignRoom tells whether one more foreign dog may be armed: of a user that is neither root nor zhxd's own, half of all may. It
// wants mu.
func (d *Daemon) foreignRoom(uid int) bool {
	his := 0
	for _, f := range d.foreign {
		if f.uid == uid {
			his++
		}
	}
	return len(d.foreign) < foreignMax && (his < foreignMax/2 || trusted(uid))
}

// trusted tells who has no share: root and zhxd's own user, as in the broker.
func trusted(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// forget ends a foreign dog, if it is still that of its name; nil is any.
func (d *Daemon) forget(name string, run *watchdog.ID) *foreign {
	d.mu.Lock()
	f := d.foreign[name]
	if f == nil || run != nil && f.run != *run {
		d.mu.Unlock()
		return nil
	}
	delete(d.foreign, name)
	d.mu.Unlock()
	f.dog.Retire()
	return f
}

func (d *Daemon) lapsedForeign(l watchdog.Lapse) {
	sig := unix.SIGKILL
	if d.observes() {
		sig = 0 // only looks whether it lives
		if f := d.foreignRun(l.ID); f != nil && killForeign(f, sig) == nil {
			if n := f.dog.Status().Feeds + 1; n != f.told {
				f.told = n
				d.loud(f.uid).Warn("lapse of a foreign client", "client", l.Name, "pid", f.id.PID, "silence", round(l.Silence), "next", `nothing: mode = "observe"`)
			}
			f.dog.Arm()
			return
		}
	}
	f := d.forget(l.Name, &l.ID)
	if f == nil {
		return // armed anew meanwhile
	}
	log := d.loud(f.uid).With("client", l.Name, "pid", f.id.PID, "silence", round(l.Silence), "timeout", l.Timeout)
	if f.id == (proc.ID{}) {
		log.Warn("lapse of a foreign client", "next", "not killed: "+f.missing+"; its dog is removed")
		return
	}
	switch err := killForeign(f, sig); {
	case err == nil:
		log.Warn("lapse of a foreign client", "next", "killed; zhx did not start it and does not restart it")
	case errors.Is(err, proc.ErrGone):
		log.Info("foreign client is gone", "next", "its dog is removed")
	default:
		log.Warn("lapse of a foreign client", "next", fmt.Sprintf("not killed: %v; its dog is removed", err))
	}
}

// loud is where lapses of a user's programs are told, up to foreignLines.
func (d *Daemon) loud(uid int) *slog.Logger {
	if trusted(uid) || d.foreignLog.Allow() {
		return d.log
	}
	return slog.New(slog.DiscardHandler)
}

// killForeign signals only what is proved to be the process that armed, and never zhxd or init, nor one that has become another
// user's (by executing a program that is setuid): who may not kill that may not have zhx do it.
func killForeign(f *foreign, sig unix.Signal) error {
	id := f.id
	if id.PID <= 1 || id.PID == os.Getpid() {
		return fmt.Errorf("process %d is zhxd itself or init", id.PID)
	}
	if st, err := proc.ReadStat(id.PID); err == nil && st.UID != f.uid && f.uid != 0 {
		return fmt.Errorf("process %d is not user %d's any more", id.PID, f.uid)
	}
	return proc.SignalVerified(id, sig)
}
