package broker

// This file is what the tests share: a broker on real sockets, a gate that says yes unless told otherwise, clients, and
// waiting for what the broker does or logs.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"zhx/ipc/wire"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv("ZHX_BROKER_CHILD"); socket != "" {
		starvedChild(socket)
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for an event that must come.
const patience = 10 * time.Second

var transports = []Transport{Unix, TCP}

type world struct {
	*Broker
	t      *testing.T
	gate   *gate
	log    *logbook
	listen map[Transport]net.Listener
}

// start serves on both transports; tune changes the broker before.
func start(t *testing.T, tune ...func(*Broker)) *world {
	t.Helper()
	w := &world{t: t, gate: &gate{sessions: map[string]*session{}}, log: &logbook{more: make(chan struct{}, 1)}, listen: map[Transport]net.Listener{}}
	w.Broker = New(w.gate, slog.New(w.log), Options{})
	for _, f := range tune {
		f(w.Broker)
	}
	w.settling.Add(1) // so that until hears every step
	w.serve(Unix, "unix", filepath.Join(t.TempDir(), "s"))
	w.serve(TCP, "tcp", "127.0.0.1:0")
	return w
}

// serve listens on an address; dial finds it under tr.
func (w *world) serve(tr Transport, network, addr string) {
	w.t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.listen[tr] = ln
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := w.Serve(ln); err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	}()
	w.t.Cleanup(func() {
		w.Close()
		<-served
	})
	known := len(w.listen)
	w.until("it serves", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.listeners) >= known
	})
}

// until waits for the broker to do or log something that makes yes true, or the kernel, which tells nobody.
func (w *world) until(what string, yes func() bool) {
	w.t.Helper()
	late, again := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer again.Stop()
	for !yes() {
		select {
		case <-w.passed:
		case <-w.log.more:
		case <-again.C:
		case <-late:
			w.t.Fatalf("never: %s; counters %+v\n%s", what, w.Counters(), w.log)
		}
	}
}

// logged waits for n lines that hold text, and gives the last one.
func (w *world) logged(text string, n int) (line string) {
	w.t.Helper()
	w.until(fmt.Sprintf("%d lines %q", n, text), func() bool {
		lines := w.log.find(text)
		if len(lines) > 0 {
			line = lines[len(lines)-1]
		}
		return len(lines) >= n
	})
	return line
}

type client struct {
	t *testing.T
	net.Conn
}

func (w *world) dial(tr Transport) *client {
	w.t.Helper()
	addr := w.listen[tr].Addr()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	if c, ok := c.(*net.TCPConn); ok {
		c.SetReadBuffer(64 << 10) // and so the kernel does not let it grow to dozens of megabytes
	}
	return &client{w.t, c}
}

// receiver dials, registers, and returns when that is done: the broker has sent it its own message.
func (w *world) receiver(tr Transport, name string) *client {
	w.t.Helper()
	c := w.dial(tr)
	c.put(wire.Packet{Cmd: wire.CmdRegister, Target: "null", Source: name}, wire.Packet{Cmd: wire.CmdTransfer, Target: name, Source: name, Msg: []byte("registered")})
	c.want("registered")
	return c
}

func encode(t testing.TB, packets ...wire.Packet) (b []byte) {
	t.Helper()
	for _, p := range packets {
		var err error
		if b, err = p.Append(b); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func message(target, source, text string) wire.Packet {
	return wire.Packet{Cmd: wire.CmdTransfer, Target: target, Source: source, Msg: []byte(text)}
}

func (c *client) put(packets ...wire.Packet) {
	c.t.Helper()
	if _, err := c.Write(encode(c.t, packets...)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) get() wire.Packet {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, wire.PacketSize)
	if n, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("reading a packet: %d bytes, %v", n, err)
	}
	p, err := wire.Parse(b)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *client) want(text string) {
	c.t.Helper()
	if p := c.get(); p.Text() != text {
		c.t.Fatalf("received %q, want %q", p.Text(), text)
	}
}

// closed waits for the broker to close the connection without having written anything.
func (c *client) closed() {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("want the connection closed; read %d bytes, %v", n, err)
	}
}

// gate says yes to all but what deny names, and gives every name one session.
type gate struct {
	mu       sync.Mutex
	sessions map[string]*session
	creds    []Cred
	deny     func(name string, use Use) error
	forbid   func(source string, what Action, target string) error
	standing map[string]Standing
}

func (g *gate) Arrive(c Cred) any {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.creds = append(g.creds, c)
	return len(g.creds)
}

// arrived gives the only peer that came since it was last asked.
func (g *gate) arrived(t *testing.T) Cred {
	g.mu.Lock()
	defer g.mu.Unlock()
	creds := g.creds
	if g.creds = nil; len(creds) != 1 {
		t.Fatalf("arrived: %+v", creds)
	}
	return creds[0]
}

func (g *gate) Claim(who any, name string, use Use) (Session, error) {
	g.mu.Lock()
	deny := g.deny
	g.mu.Unlock()
	if deny != nil {
		if err := deny(name, use); err != nil {
			return nil, err
		}
	}
	return g.session(name), nil
}

func (g *gate) Admit(_ any, cookie []byte) error {
	if string(cookie) != "cookie" {
		return errors.New("not the cookie")
	}
	return nil
}

func (g *gate) May(_ any, source string, what Action, target string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.forbid != nil {
		return g.forbid(source, what, target)
	}
	return nil
}

func (g *gate) Standing(name string) Standing {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.standing[name]
}

// stands sets what is known of a name.
func (w *world) stands(name string, s Standing) {
	w.gate.mu.Lock()
	if w.gate.standing == nil {
		w.gate.standing = map[string]Standing{}
	}
	w.gate.standing[name] = s
	w.gate.mu.Unlock()
	w.Changed(name)
}

func (g *gate) Account(name string) *Account { return g.session(name).Account() }

// refuse makes the gate refuse what deny does.
func (g *gate) refuse(deny func(name string, use Use) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.deny = deny
}

func (g *gate) session(name string) *session {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sessions[name]
	if s == nil {
		s = &session{seen: map[string]bool{}, held: make(chan struct{}, 1)}
		g.sessions[name] = s
	}
	return s
}

type session struct {
	account                             Account
	managed                             atomic.Bool
	armed, fed, holds, releases, passed atomic.Int64
	held                                chan struct{} // Hold -> a test
	mu                                  sync.Mutex
	seen                                map[string]bool
}

func (s *session) Managed() bool     { return s.managed.Load() }
func (s *session) Account() *Account { return &s.account }
func (s *session) Registered()       {}
func (s *session) Arm()              { s.armed.Add(1) }
func (s *session) Feed()             { s.fed.Add(1) }
func (s *session) Checkpoint(string) { s.passed.Add(1) }
func (s *session) Release()          { s.releases.Add(1) }
func (s *session) Proof() string     { return "test" }
func (s *session) Hold() {
	s.holds.Add(1)
	select {
	case s.held <- struct{}{}:
	default:
	}
}

func (s *session) First(target string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.seen[target]
	s.seen[target] = true
	return first
}

// logbook keeps what is logged, a line each: LEVEL text key=value ...
type logbook struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func (l *logbook) Enabled(context.Context, slog.Level) bool { return true }
func (l *logbook) WithAttrs([]slog.Attr) slog.Handler       { panic("not used") }
func (l *logbook) WithGroup(string) slog.Handler            { panic("not used") }
func (l *logbook) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	l.mu.Lock()
	l.lines = append(l.lines, line)
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return nil
}

func (l *logbook) find(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.lines), func(line string) bool { return !strings.Contains(line, text) })
}

func (l *logbook) String() string { return strings.Join(l.find(""), "\n") }
