// What is published of a client.

package procman

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"zhx/procman/proc"
)

// A Reason is why a run ended, or never was.
type Reason string

const (
	ByExit     Reason = "exit"     // by itself, with Code
	BySignal   Reason = "signal"   // of a signal that zhx did not send, or was asked to send
	ByWatchdog Reason = "watchdog" // ended after a lapse: by abort_signal, which Signal may show, or SIGKILL
	ByFrozen   Reason = "frozen"   // killed after watchdog_timeout in state T
	ByStop     Reason = "stop"     // stopped on request: stop, restart, an edit, shutdown
	BySpawn    Reason = "spawn"    // it could not be spawned: Code is the errno, 0 if there is none

	ByTimeout    Reason = "timeout"    // killed, since it was not ready within start_timeout
	ByDependency Reason = "dependency" // stopped for a client that it depends on, or that it is restarted with
	ByUnknown    Reason = "unknown"    // the kernel did not tell: this zhxd did not start it
)

// A LastExit is the end of a run.
type LastExit struct {
	Run     uint64
	PID     int // of its leader; 0 after a spawn that failed
	Reason  Reason
	Code    int    // exit code; -1 when it ended by a signal
	Signal  string // "SIGKILL"; "" when it exited
	Core    bool
	Lived   time.Duration
	At      time.Time // wall clock and monotonic
	Text    string    // who or what ended it, and by what steps, or why the spawn failed; may be empty
	Ready   bool      // it had become ready
	Success bool      // it exited by itself, with one of the success exit codes
	Next    string    // what followed, for people
	Lines   []string  // the last that it printed, at most lastLines
}

// A Status is a snapshot of one client.
type Status struct {
	Name      string
	State     State
	Wanted    bool // desired: up
	PID       int  // the leader's, 0 when nothing lives
	Run       uint64
	Restarts  int64     // spawns that nobody asked for by hand, in this zhxd
	Since     time.Time // when the run that lives was spawned; zero when none does
	Next      time.Time // of the next try; zero when none is due
	Ready     bool
	TTY       bool       // it has a terminal of this zhxd
	Outlook   string     // one sentence: what it is doing and what happens next
	Adopted   bool       // the run that lives was spawned by an earlier zhxd
	WaitsFor  []string   // waiting: clients that it depends on and that are not ready
	Notice    string     // STATUS= of sd_notify(3), control characters and all
	Phase     string     // "reloading" or "stopping", as it says itself
	Registers bool       // this run or one before has registered with the broker
	LastExit  *LastExit  // nil: none in this zhxd; not to be written to
	Deaths    []LastExit // the last deathsMax, oldest first; not to be written to
	StoppedBy string     // who stopped it by hand; "" when nobody did
	Text      string     // failed, unkillable: why

	unheard func() bool // the life's; nil when nothing lives
}

// sameRun tells whether two snapshots say the same of the client's runs.
func (s *Status) sameRun(o *Status) bool {
	return s.State == o.State && s.Wanted == o.Wanted && s.Run == o.Run && s.PID == o.PID && s.Ready == o.Ready &&
		s.Next.Equal(o.Next) && s.LastExit == o.LastExit && s.Registers == o.Registers
}

func lastExit(m machine, x proc.Exit, pid int, text string) LastExit {
	l := LastExit{Run: m.run, PID: pid, Reason: m.cause, Code: x.Code, Core: x.Core, Lived: m.lived, At: time.Now(), Text: text, Ready: m.readyAt != 0}
	if x.Signal != 0 {
		l.Signal = signalName(x.Signal)
	}
	switch {
	case l.Reason != "":
	case x.Unknown:
		l.Reason = ByUnknown
	case x.Signal != 0:
		l.Reason = BySignal
	default:
		l.Reason = ByExit
	}
	return l
}

func signalName(s syscall.Signal) string {
	if n := unix.SignalName(s); n != "" {
		return n
	}
	return fmt.Sprintf("signal %d", int(s))
}
