// Package ipc is how an application speaks to zhx: it registers a name, sends messages to other names and receives its own,
// asks and answers, publishes and subscribes, watches other names, and feeds its watchdog.
//
//	c, err := ipc.Dial(ctx, ipc.Options{})           // the socket in $ZHX_SOCKET, the name in $ZHX_NAME
//	err = c.Register(ctx, "")                        // messages to the name come here from now on
//	err = c.Arm(ctx)                                 // from now on zhx restarts this process if it stops feeding
//	level, err := c.Send(ctx, "client2", body, ipc.At(ipc.Handled))
//	reply, err := c.Request(ctx, "client2", body)
//	e, err := c.Receive(ctx)                         // *Message, *Publication, *State …
//
// [Conn] speaks protocol 2, which PROTOCOL.md specifies; [PacketConn] speaks protocol 1. Both talk to programs of either.
package ipc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"zhx/ipc/wire"
)

// DefaultSocket is where zhxd listens if $ZHX_SOCKET does not say otherwise.
const DefaultSocket = "/run/zhx/zhx.sock"

func dial(ctx context.Context, address string) (net.Conn, error) {
	network, addr := "unix", cmp.Or(address, os.Getenv("ZHX_SOCKET"), DefaultSocket)
	if hostPort, ok := strings.CutPrefix(addr, "tcp:"); ok {
		network, addr = "tcp", hostPort
	}
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// Options are of a Conn. The zero Options is right for a program that zhx starts.
type Options struct {
	Address string // the path of a Unix socket, or "tcp:host:port"; "": $ZHX_SOCKET, else DefaultSocket
	Name    string // whom it sends, subscribes and feeds as; "": $ZHX_NAME, and if there is none the first that it registers
	Cookie  string // over TCP: the content of the file cookie in zhx's run directory; "": read from the file $ZHX_COOKIE whenever it connects
	Once    bool   // it does not connect again: when the connection is lost everything fails with ErrLost
	Wait    bool   // Dial tries again and again until its context ends, else once
}

// What calls fail with, besides [Error] and their context's error.
var (
	ErrClosed = errors.New("zhx: the connection was closed here")
	ErrLost   = errors.New("zhx: the connection was lost") // while the call was under way: it is not known what it did
)

// Error is zhx's refusal. It wraps its Code: errors.Is(err, ErrNoName).
type Error struct {
	Code  Code
	To    string        // the name or topic that it is about
	Text  string        // for people; may be empty
	Retry time.Duration // with ErrRestarting: until the client is started next; 0: not known
}

func (e *Error) Error() string {
	s := e.Code.Error()
	if e.Text != "" {
		s += ": " + e.Text
	}
	if e.Retry > 0 {
		s += fmt.Sprintf(" (it is started again in %v)", e.Retry)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Code }

// Code is why zhx refused.
type Code uint8

// The codes.
const (
	ErrNoName     Code = wire.ErrNoName     // nobody has the name
	ErrRestarting Code = wire.ErrRestarting // its client is between two runs, and the message was not to wait
	ErrStopped    Code = wire.ErrStopped    // its client is not to run
	ErrFailed     Code = wire.ErrFailed     // its client is not started again by itself
	ErrFull       Code = wire.ErrFull       // no room to wait
	ErrDenied     Code = wire.ErrDenied     // the configuration does not allow it, or the name is not this process's
	ErrTooBig     Code = wire.ErrTooBig     // the body, or a name that a receiver of protocol 1 cannot be told
	ErrExpired    Code = wire.ErrExpired    // its time was over before it was written
	ErrStuck      Code = wire.ErrStuck      // the receiver does not read
	ErrGone       Code = wire.ErrGone       // the receiver ended with the request
	ErrNoFDs      Code = wire.ErrNoFDs      // descriptors do not get there
	ErrBad        Code = wire.ErrBad        // it makes no sense
	ErrTaken      Code = wire.ErrTaken      // a newer connection registered the name: this one is over, for good
	ErrUnanswered Code = wire.ErrUnanswered // the receiver speaks protocol 1 and cannot reply
)

var codeText = [...][2]string{
	{"error", "unknown error"},
	{"noname", "nobody has this name"},
	{"restarting", "its client is being restarted"},
	{"stopped", "its client is stopped"},
	{"failed", "its client has failed"},
	{"full", "no room to wait"},
	{"denied", "denied"},
	{"toobig", "too big"},
	{"expired", "expired"},
	{"stuck", "the receiver does not read"},
	{"gone", "the receiver ended before it replied"},
	{"nofds", "descriptors do not get there"},
	{"bad", "malformed"},
	{"taken", "another connection took the name over"},
	{"unanswered", "the receiver cannot reply"},
}

// Word is the code in one word of lower-case letters, for programs.
func (c Code) Word() string { return codeText[c.known()][0] }

func (c Code) Error() string { return "zhx: " + codeText[c.known()][1] }

func (c Code) known() Code {
	if int(c) < len(codeText) {
		return c
	}
	return 0
}

// Level is how far a message is to come before Send returns.
type Level uint8

// The levels. What zhx does not deliver is told at each of them: at None by [Refused], else by Send.
const (
	None     Level = wire.LevelNone     // it is on its way
	Accepted Level = wire.LevelAccepted // zhx has written it, or holds it while the receiver restarts
	Written  Level = wire.LevelWritten  // it is in the receiver's socket
	Handled  Level = wire.LevelHandled  // the receiver called Done; until then it is sent again after each lost connection
)

func (l Level) String() string { return word(l, "none", "accepted", "written", "handled") }

// Policy says what happens to publications that a subscriber has no room for.
type Policy uint8

// The policies.
const (
	DropOldest Policy = wire.DropOldest
	DropNewest Policy = wire.DropNewest
	LatestOnly Policy = wire.LatestOnly
	Disconnect Policy = wire.Disconnect // the connection is closed
)

func (p Policy) String() string { return word(p, "oldest", "newest", "latest", "disconnect") }

// Presence is the state of a name.
type Presence uint8

// The states.
const (
	Absent     Presence = wire.StateAbsent
	Running    Presence = wire.StateRunning
	Ready      Presence = wire.StateReady
	Late       Presence = wire.StateLate // it has not fed its watchdog for half of its time
	Restarting Presence = wire.StateRestarting
	Failed     Presence = wire.StateFailed
	Stopped    Presence = wire.StateStopped
)

func (p Presence) String() string {
	return word(p, "absent", "running", "ready", "late", "restarting", "failed", "stopped")
}

func word[T ~uint8](v T, words ...string) string {
	if int(v) < len(words) {
		return words[v]
	}
	return fmt.Sprintf("unknown %d", v)
}

// Option changes one message, request or publication.
type Option func(*sending)

type sending struct {
	wire.Frame
	files []*os.File
}

// At is the level that Send waits for, Accepted if it is not given; with Publish None or Accepted.
func At(l Level) Option { return func(s *sending) { s.Code = uint8(l) } }

// WaitAtMost is how long a message may wait for its receiver's restart, if that is less than zhx's configuration allows.
func WaitAtMost(d time.Duration) Option { return func(s *sending) { s.Time = milliseconds(d) } }

// NoHold has a message or request refused rather than wait for its receiver's restart.
func NoHold() Option { return func(s *sending) { s.Flags |= wire.NoHold } }

// WithFiles sends up to four files' descriptors along, over a Unix socket. The files remain the caller's, who may close
// them when the call returns. They do not go at level Handled.
func WithFiles(files ...*os.File) Option { return func(s *sending) { s.files = files } }

// Retain keeps a publication as its topic's last value, for those who subscribe later. An empty one ends that.
func Retain() Option { return func(s *sending) { s.Flags |= wire.Retain } }

// From sends in the name of another that this connection may use than Conn.Name.
func From(name string) Option { return func(s *sending) { s.From = name } }

// Event is what Receive gives: a *Message, *Publication, *Gap, *State, *Refused or *Link.
type Event interface{ event() }

// Message is a message or a request to a name of this connection.
type Message struct {
	From, To string
	Body     []byte     // the receiver's; of FromV1 all 512 bytes
	Files    []*os.File // the receiver's, to close
	Level    Level      // that its sender asked for
	Request  bool       // it wants Reply or Fail
	Repeat   bool       // this or an earlier run may have been given it before, and have ended without Done
	FromV1   bool       // it came by protocol 1

	c           *Conn
	session, id uint64
	ctx         context.Context
}

// Publication is a publication to a topic that this connection has a pattern for.
type Publication struct {
	Topic, From string
	Body        []byte
	Kept        bool // it is the last value from before the subscription
}

// Gap says that publications of a pattern were lost here, before the next one that comes.
type Gap struct {
	Pattern string
	Lost    uint64
}

// State is the state of a watched name: at once, after each change, and again when the connection came back.
type State struct {
	Name    string
	State   Presence
	Changes uint64          // of this name in this zhxd, so far
	Details json.RawMessage // an object with, where known: run, pid, cause, exit_code, signal, back_in_ms
}

// Refused is a refusal that no call waits for: of a message of level None, a feed, or a name registered again after the
// connection was lost. It is lost itself if over a thousand events wait.
type Refused struct{ Err *Error }

// Link says that the connection was lost, and why, or that it stands again. It may be lost as Refused is.
type Link struct {
	Up  bool
	Err error
}

func (*Message) event()     {}
func (*Publication) event() {}
func (*Gap) event()         {}
func (*State) event()       {}
func (*Refused) event()     {}
func (*Link) event()        {}

// Text is the body as text: of protocol 1 up to its first NUL.
func (m *Message) Text() string {
	if m.FromV1 {
		text, _, _ := bytes.Cut(m.Body, []byte{0})
		return string(text)
	}
	return string(m.Body)
}

// Reply is the answer to a request.
type Reply struct {
	From   string
	Body   []byte
	Failed bool       // the body says what went wrong: the receiver called Fail
	Files  []*os.File // the asker's, to close
}

// milliseconds rounds up: what has a limit must not get none, which 0 is.
func milliseconds(d time.Duration) uint32 {
	ms := (max(d, 1) + time.Millisecond - 1) / time.Millisecond
	return uint32(min(ms, 1<<32-1))
}
