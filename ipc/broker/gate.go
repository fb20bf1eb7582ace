package broker

// This file is what the broker asks of the daemon, and what of it is known about a name that nobody receives under.

import (
	"time"

	"zhx/ipc/wire"
)

// Gate decides who may do what; the daemon is one. It is called on the connection's goroutine, many at once, and never
// under a lock of the broker, Standing and Account excepted: while it decides, only that connection waits.
type Gate interface {
	// Arrive is called once for a connection, before anything is read of it. The broker hands who back to Claim and to
	// Settle's mine, and does not look into it.
	Arrive(c Cred) (who any)
	// Admit is asked when a connection over TCP says HELLO, with what it says as the cookie. Its error is told to the peer.
	Admit(who any, cookie []byte) error
	// Claim asks whether this peer may use a valid, unreserved name. A session is kept for the connection and not asked
	// for again; after an error the packet is dropped and counted, and the Gate itself logs the reason.
	Claim(who any, name string, use Use) (Session, error)
	// May asks whether a peer may, as source, a name that it was granted ("": it says none), do this to target: a name, a topic
	// or a pattern. A yes is kept until Renew; the error is told to the peer, and counted.
	May(who any, source string, what Action, target string) error
	// Account gives the counters of the client that owns the name, nil: nobody's. It must not wait.
	Account(name string) *Account
	// Standing is what is known about a name. It is called under locks of the broker and must not wait.
	Standing(name string) Standing
}

// Action is what Gate.May is asked about.
type Action uint8

// The actions.
const (
	SendTo Action = iota
	Publish
	Subscribe
)

// Standing is what a Gate knows about a name. The zero Standing is of a name that no client has.
type Standing struct {
	Managed bool
	State   uint8          // wire.State…
	Expects bool           // it will receive under this name again, or for the first time in this run: what comes meanwhile may wait
	Back    time.Duration  // until it is started next; 0: not known, or now
	Hold    Hold           // what may wait
	Account *Account       // nil: nobody's
	Details map[string]any // for people and programs: run, pid, cause, exit_code, signal
}

// Hold limits what waits for a name. The zero Hold: nothing does while its client restarts.
type Hold struct {
	Messages int
	Bytes    int
	For      time.Duration
}

// refusal is the code for a message to a name in this standing that nobody receives under, and that does not wait.
func (s Standing) refusal() uint8 {
	switch {
	case s.State == wire.StateStopped:
		return wire.ErrStopped
	case s.State == wire.StateFailed:
		return wire.ErrFailed
	case s.Expects, s.State == wire.StateRestarting:
		return wire.ErrRestarting
	}
	return wire.ErrNoName
}

// waits tells whether messages to a name in this standing wait for a receiver.
func (s Standing) waits() bool {
	return s.refusal() == wire.ErrRestarting && s.Expects && s.Hold.Messages > 0
}
