package ipc_test

// This file is one table of cases that every client library passes: each case is a play between a, the library's driver, b, the Go
// client's, a broker on a real socket, and whoever speaks protocol 1.

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zhx/ipc"
	"zhx/ipc/broker"
	"zhx/ipc/wire"
)

// cases are plays, a line an act:
//
//	a COMMAND      the driver is told so
//	a< LINE        the driver says so, now or before; ~ begins a regular expression. A sender's messages, and a topic's publications, come in order
//	v1 TO TEXT     a packet from "one"
//	v1< TEXT       "one" receives a packet
//	state NAME WORD, deny FROM TO, allow     what the daemon says from now on
//	cut NAME       the connection that receives under it is lost
//	restart        the broker is another one
//	fed NAME WHAT  the name's watchdog was told so
//
// At the end no driver has said anything that was not asked for.
var cases = []struct {
	purpose, play string
	shell         bool // a script can do it, too
}{
	{"each level is answered", `
		a open
		a< ok
		b open
		b< ok
		a send b accepted two
		a< ack accepted
		b< message a two
		a send b written three words here
		a< ack written
		b< message a three words here
		a send b handled four
		b< message a four
		a< ack handled
		b send a handled five
		a< message b five
		b< ack handled
		b send a none six
		b< ack none
		a< message b six`, true},
	{"a message that asks for nothing", `
		a open
		a< ok
		b open
		b< ok
		a send b none one
		a< ack none
		b< message a one`, false},
	{"errors say why", `
		a open
		a< ok
		a send nobody accepted x
		a< error noname
		a send nobody handled x
		a< error noname
		state gone stopped
		a send gone accepted x
		a< error stopped
		state bad failed
		a send bad handled x
		a< error failed
		a request nobody 1000 x
		a< error noname
		deny a b
		a send b accepted x
		a< error denied
		allow
		a send b accepted x
		a< error noname`, true},
	{"protocol 1 cannot say that it has handled a message", `
		a open
		a< ok
		v1 a hello
		a< message one v1 hello
		a send one handled it is written
		a< ack written
		v1< it is written`, false},
	{"what is too big", `
		a open
		a< ok
		a big a 300000
		a< error toobig
		v1 a hello
		a< message one v1 hello
		a big one 513
		a< error toobig`, false},
	{"requests", `
		a open
		a< ok
		b open
		b< ok
		a request b 5000 what?
		b< request a what?
		a< reply re: what?
		a request b 5000 fail
		b< request a fail
		a< failed no
		a request b 2000 hang
		b< request a hang
		a< timeout
		b request a 5000 and you?
		a< request b and you?
		b< reply re: and you?
		a send b written still in step
		b< message a still in step
		a< ack written`, true},
	{"a request that its receiver fails", `
		a open
		a< ok
		b open
		b< ok
		b request a 5000 fail
		a< request b fail
		b< failed no`, false},
	{"topics", `
		a open
		a< ok
		b open
		b< ok
		b retain temp.cpu 41
		b< ack accepted
		a subscribe temp.* oldest
		a< ok
		a< publication temp.cpu kept 41
		b publish temp.cpu 42
		b< ack accepted
		a< publication temp.cpu 42
		b publish temp.cpu.0 43
		b< ack accepted
		b subscribe fan.> latest
		b< ok
		a publish fan.left.speed 900
		a< ack accepted
		b< publication fan.left.speed 900
		a publish not.*.atopic x
		a< error bad`, true},
	{"an end of a subscription", `
		a open
		a< ok
		b open
		b< ok
		a subscribe temp.* oldest
		a< ok
		a unsubscribe temp.*
		a< ok
		b publish temp.cpu 44
		b< ack accepted
		a send a written last
		a< message a last
		a< ack written`, false},
	{"presence", `
		a open
		a< ok
		a watch b
		a< ok
		a< state b absent
		b open
		b< ok
		a< state b ready
		state c running
		a watch c
		a< ok
		a< state c running
		state c late
		a< state c late
		state c restarting
		a< state c restarting
		state c ready
		a< state c ready`, true},
	{"protocol 1, both ways", `
		a open
		a< ok
		v1 a hello from the past
		a< message one v1 hello from the past
		a send one written hello back
		a< ack written
		v1< hello back
		a request one 1000 x
		a< error unanswered`, true},
	{"the watchdog", `
		a open
		a< ok
		a feed arm
		a< ok
		fed a arm
		a feed alive
		a< ok
		fed a alive
		a checkpoint loop
		a< ok
		fed a loop`, true},
	{"descriptors", `
		a open
		a< ok
		b open
		b< ok
		a sendfd b a frame
		b< fd a a frame
		a< ack written
		b sendfd a another
		a< fd b another
		b< ack written
		v1 a here I am
		a< message one v1 here I am
		a sendfd one refused
		a< error nofds
		a send b handled in step
		b< message a in step
		a< ack handled`, false},
	{"a message larger than any buffer", `
		a open
		a< ok
		b open
		b< ok
		a big b 200000
		b< ~message a x{200000}
		a< ack accepted
		b big a 200000
		a< ~message b x{200000}
		b< ack accepted`, false},
	{"one at a time: the second is handled after the first", `
		a open
		a< ok
		b open
		b< ok
		b send a handled slow 1
		a< message b slow 1
		b< ack handled
		b send a handled 2
		a< message b 2
		b< ack handled
		a send b handled slow 3
		b< message a slow 3
		a< ack handled`, false},
	{"what waits for a restart comes in order, and before anything newer", `
		b open
		b< ok
		state a restarting
		b send a accepted 1
		b< ack accepted
		b send a none 2
		b< ack none
		v1 a 3
		b send a accepted 4
		b< ack accepted
		a open
		a< ok
		b send a accepted 5
		b< ack accepted
		a< ~message b 1
		a< message b 2
		a< message one v1 3
		a< message b 4
		a< message b 5`, false},
	{"a connection that is lost comes back with all that it had", `
		a open
		a< ok
		b open
		b< ok
		a subscribe news oldest
		a< ok
		a watch c
		a< ok
		a< state c absent
		cut a
		a< down
		a< up
		a< state c absent
		b publish news still subscribed
		b< ack accepted
		a< publication news still subscribed
		b send a handled still registered
		a< message b still registered
		b< ack handled`, false},
	{"nothing is lost or doubled when a receiver's connection is cut while it handles", `
		a open
		a< ok
		b open
		b< ok
		b send a handled slow one
		a< message b slow one
		cut a
		a< down
		a< up
		b< ack handled
		b send a handled two
		a< message b two
		b< ack handled`, false},
	{"nor when the sender's is, nor when the broker dies", `
		a open
		a< ok
		b open
		b< ok
		a send b handled slow one
		b< message a slow one
		cut a
		a< down
		a< up
		a< ack handled
		a send b handled slow two
		b< message a slow two
		restart
		a< down
		a< up
		b< down
		b< up
		a< ack handled
		a send b handled three
		b< message a three
		a< ack handled`, false},
	{"another takes the name over, for good", `
		a open
		a< ok
		taker a
		a< taken
		b open
		b< ok
		b send a written for the other
		b< ack written`, false},
}

// stage is a broker with a gate that says what the play says.
type stage struct {
	t      *testing.T
	socket string
	bus    *broker.Broker
	served chan struct{}
	one    *ipc.PacketConn
	packet chan string
	taker  *ipc.Conn

	mu     sync.Mutex
	states map[string]uint8
	denied [2]string
	fed    []string
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, socket: filepath.Join(t.TempDir(), "s"), states: map[string]uint8{}}
	s.open()
	t.Cleanup(func() {
		if s.one != nil {
			s.one.Close()
		}
		if s.taker != nil {
			s.taker.Close()
		}
		s.close()
	})
	return s
}

func (s *stage) open() {
	ln, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	s.bus, s.served = broker.New(s, slog.New(slog.DiscardHandler), broker.Options{}), make(chan struct{})
	go func() {
		defer close(s.served)
		s.bus.Serve(ln)
	}()
}

func (s *stage) close() {
	s.bus.Close()
	<-s.served
}

func (s *stage) Arrive(broker.Cred) any         { return nil }
func (s *stage) Admit(any, []byte) error        { return nil }
func (s *stage) Account(string) *broker.Account { return nil }
func (s *stage) Standing(n string) broker.Standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	state, managed := s.states[n]
	return broker.Standing{Managed: managed, State: state, Expects: managed && state != wire.StateFailed && state != wire.StateStopped,
		Hold: broker.Hold{Messages: 99, Bytes: 1 << 20, For: time.Minute}}
}

func (s *stage) May(_ any, from string, _ broker.Action, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.denied == [2]string{from, to} {
		return errors.New("the play says so")
	}
	return nil
}

func (s *stage) Claim(_ any, name string, _ broker.Use) (broker.Session, error) {
	return role{s, name}, nil
}

// role is a name in a play.
type role struct {
	s    *stage
	name string
}

func (role) Managed() bool            { return true }
func (role) Account() *broker.Account { return nil }
func (role) Registered()              {}
func (role) Hold()                    {}
func (role) Release()                 {}
func (role) First(string) bool        { return false }
func (role) Proof() string            { return "" }
func (r role) Arm()                   { r.note("arm") }
func (r role) Feed()                  { r.note("alive") }
func (r role) Checkpoint(name string) { r.note(name) }

func (r role) note(what string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.fed = append(r.s.fed, r.name+" "+what)
}

// actor is a driver that runs.
type actor struct {
	t    *testing.T
	name string
	in   io.Writer

	mu     sync.Mutex
	said   []string
	spoken chan struct{}
}

// enter starts a driver under a name.
func (s *stage) enter(name string, argv []string) *actor {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "ZHX_SOCKET="+s.socket, "ZHX_NAME="+name, "ZHX_TEST_DRIVER=1", "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	a := &actor{t: s.t, name: name, in: in, spoken: make(chan struct{}, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewReaderSize(out, 1<<20)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			a.mu.Lock()
			a.said = append(a.said, strings.TrimSuffix(line, "\n"))
			a.mu.Unlock()
			select {
			case a.spoken <- struct{}{}:
			default:
			}
		}
	}()
	s.t.Cleanup(func() {
		in.Close()
		end := time.AfterFunc(10*time.Second, func() {
			s.t.Errorf("driver %s did not end", name)
			cmd.Process.Kill()
		})
		<-ended
		cmd.Wait()
		end.Stop()
	})
	return a
}

// hears waits for a line, and takes it out of what was said.
func (a *actor) hears(want string) {
	a.t.Helper()
	fits := func(line string) bool { return line == want }
	if pattern, ok := strings.CutPrefix(want, "~"); ok {
		// Go's counted repetition ends at 1,000: a long body is counted by hand.
		if head, n, long := strings.Cut(pattern, "x{"); long {
			fits = func(line string) bool {
				body, ok := strings.CutPrefix(line, head)
				return ok && fmt.Sprintf("%d}", strings.Count(body, "x")) == n && strings.Trim(body, "x") == ""
			}
		} else {
			fits = regexp.MustCompile("^" + pattern + "$").MatchString
		}
	}
	late := time.After(15 * time.Second)
	for {
		a.mu.Lock()
		i := slices.IndexFunc(a.said, fits)
		said, early := strings.Join(a.said, "\n\t"), -1
		if i >= 0 {
			words := strings.SplitAfterN(a.said[i], " ", 3) // what it is, and of whom
			kind := strings.Join(words[:min(2, len(words))], "")
			early = slices.IndexFunc(a.said[:i], func(line string) bool { return strings.HasPrefix(line, kind) })
			a.said = slices.Delete(a.said, i, i+1)
		}
		a.mu.Unlock()
		if early >= 0 && (strings.HasPrefix(want, "message ") || strings.HasPrefix(want, "~message ") || strings.HasPrefix(want, "publication ")) {
			a.t.Errorf("%s said %q not before\n\t%s", a.name, want, said)
		}
		if i >= 0 {
			return
		}
		select {
		case <-a.spoken:
		case <-late:
			a.t.Fatalf("%s never said %q; it said\n\t%s", a.name, want, said)
		}
	}
}

// play acts a case out.
func (s *stage) play(play string, a, b []string) {
	s.t.Helper()
	actors := map[string]*actor{}
	for _, act := range strings.Split(strings.TrimSpace(play), "\n") {
		act = strings.TrimSpace(act)
		word, rest, _ := strings.Cut(act, " ")
		first, second, _ := strings.Cut(rest, " ")
		name, hears := strings.CutSuffix(word, "<")
		switch name {
		case "a", "b":
			if actors[name] == nil {
				argv := b
				if name == "a" {
					argv = a
				}
				actors[name] = s.enter(name, argv)
			}
			if hears {
				actors[name].hears(rest)
			} else {
				fmt.Fprintln(actors[name].in, rest)
			}
		case "v1":
			if s.one == nil {
				s.speakV1()
			}
			if hears {
				select {
				case text := <-s.packet:
					if text != rest {
						s.t.Fatalf("one received %q, want %q", text, rest)
					}
				case <-time.After(15 * time.Second):
					s.t.Fatalf("one never received %q", rest)
				}
			} else if err := s.one.Send(first, second); err != nil {
				s.t.Fatal(err)
			}
		case "state":
			s.mu.Lock()
			s.states[first] = uint8(slices.Index([]string{"absent", "running", "ready", "late", "restarting", "failed", "stopped"}, second))
			s.mu.Unlock()
			s.bus.Changed(first)
		case "deny":
			s.deny(first, second)
		case "allow":
			s.deny("", "")
		case "cut":
			s.bus.Revoke(func(name string, _ broker.Session) bool { return name == first })
		case "restart":
			s.close()
			s.open()
		case "taker":
			c, err := ipc.Dial(s.t.Context(), ipc.Options{Address: s.socket, Name: first})
			if err == nil {
				s.taker, err = c, c.Register(s.t.Context(), "")
			}
			if err != nil {
				s.t.Fatal(err)
			}
		case "fed":
			s.until(act, func() bool { return slices.Contains(s.fed, rest) })
		default:
			s.t.Fatalf("no act: %q", act)
		}
	}
	for _, a := range actors {
		a.mu.Lock()
		if len(a.said) > 0 {
			s.t.Errorf("%s also said\n\t%s", a.name, strings.Join(a.said, "\n\t"))
		}
		a.mu.Unlock()
	}
}

func (s *stage) deny(from, to string) {
	s.mu.Lock()
	s.denied = [2]string{from, to}
	s.mu.Unlock()
	s.bus.Renew()
}

// until waits for what only the gate sees.
func (s *stage) until(what string, yes func() bool) {
	s.t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		is := yes()
		s.mu.Unlock()
		if is {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("never: %s", what)
		}
	}
}

func (s *stage) speakV1() {
	one, err := ipc.DialPackets(context.Background(), s.socket)
	if err == nil {
		err = one.Register("one")
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.one, s.packet = one, make(chan string, 16)
	go func() {
		for {
			p, err := one.Receive()
			if err != nil {
				return
			}
			s.packet <- p.Text()
		}
	}()
	s.until("one is registered", func() bool { return s.bus.Connected("one") })
}

func TestConformance(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	golang := []string{self}
	libraries := []struct {
		name string
		argv func(t *testing.T) []string
	}{
		{"go", func(*testing.T) []string { return golang }},
		{"c", func(t *testing.T) []string {
			gcc, err := exec.LookPath("gcc")
			if err != nil {
				t.Skip("needs gcc")
			}
			driver := filepath.Join(t.TempDir(), "conform")
			if out, err := exec.Command(gcc, "-std=c99", "-O2", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover", "-o", driver, "c/conform.c", "c/zhx.c").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return []string{driver}
		}},
		{"shell", func(t *testing.T) []string { return []string{self, "shell", zhxctl(t)} }},
		{"python", func(t *testing.T) []string { return []string{python(t), "python/conform.py"} }},
		{"python asyncio", func(t *testing.T) []string { return []string{python(t), "python/conform.py", "--asyncio"} }},
	}
	for _, l := range libraries {
		t.Run(l.name, func(t *testing.T) {
			argv := l.argv(t)
			for _, c := range cases {
				if l.name == "shell" && !c.shell {
					continue
				}
				t.Run(c.purpose, func(t *testing.T) {
					t.Parallel() // they mostly wait
					newStage(t).play(c.play, argv, golang)
				})
			}
		})
	}
}

func python(t *testing.T) string {
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3")
	}
	return cmp.Or(path, "python3")
}
