package ipc_test

// This file compiles the C clients, and runs them with the sanitizers against servers of its own: an honest one, scripted, for
// what a client promises across lost connections, and a hostile one.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

const (
	cPatience = 20 * time.Second       // for anything that is to happen
	cQuiet    = 150 * time.Millisecond // in which what is not to happen does not
)

// cCompile compiles with the sanitizers, for C99 as the standard has it, and gives the program's path.
func cCompile(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc")
	}
	out := filepath.Join(t.TempDir(), name)
	args = append([]string{"-g", "-O1", "-I", "c", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", out}, args...)
	if said, err := exec.Command("gcc", append(args, "-pthread")...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %v: %v\n%s", args, err, said)
	}
	return out
}

func TestCCompiles(t *testing.T) {
	strict := []string{"-pedantic", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-I", "c", "-c", "-o", "/dev/null"}
	for _, compiler := range []string{"gcc -std=c99", "g++ -x c++ -std=c++11", "arm-linux-gnueabihf-gcc -std=c99"} {
		words := strings.Fields(compiler)
		for _, file := range []string{"zhx.c", "sock.c", "example.c", "conform.c"} {
			t.Run(words[0]+" "+file, func(t *testing.T) {
				if _, err := exec.LookPath(words[0]); err != nil {
					t.Skip("needs " + words[0])
				}
				args := append(append(words[1:len(words):len(words)], strict...), filepath.Join("c", file))
				if said, err := exec.Command(words[0], args...).CombinedOutput(); err != nil {
					t.Fatalf("%s %v: %v\n%s", words[0], args, err, said)
				}
			})
		}
	}
}

// cServer is a server of protocol 2 that does what the test says.
type cServer struct {
	t      *testing.T
	listen *net.UnixListener
	path   string
}

func newCServer(t *testing.T) *cServer {
	path := filepath.Join(t.TempDir(), "zhx.sock")
	listen, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listen.Close() })
	return &cServer{t, listen, path}
}

// cConn is one connection of a client, in the server's hand.
type cConn struct {
	t    *testing.T
	conn *net.UnixConn
	buf  []byte
	fds  []int
}

// accept waits for a client and its HELLO, and welcomes it.
func (s *cServer) accept(incarnation uint64) (*cConn, wire.Frame) {
	s.t.Helper()
	s.listen.SetDeadline(time.Now().Add(cPatience))
	conn, err := s.listen.AcceptUnix()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(cPatience))
	c := &cConn{t: s.t, conn: conn}
	for len(c.buf) < len(wire.Preamble) {
		c.fill()
	}
	if got := string(c.buf[:len(wire.Preamble)]); got != wire.Preamble {
		s.t.Fatalf("begins with %q", got)
	}
	c.buf = c.buf[len(wire.Preamble):]
	hello := c.next()
	if hello.Type != wire.TypeHello || hello.Session == 0 || hello.Flags&wire.TakesFDs == 0 {
		s.t.Fatalf("hello %+v", hello)
	}
	c.say(wire.Frame{Type: wire.TypeWelcome, Code: 2, Flags: wire.TakesFDs, Session: incarnation, ID: 1000})
	return c, hello
}

func (c *cConn) fill() {
	c.t.Helper()
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*wire.FDsMax))
	n, o, _, _, err := c.conn.ReadMsgUnix(b, oob)
	if err != nil || n == 0 {
		c.t.Fatalf("the client is gone: %v", err)
	}
	c.buf = append(c.buf, b[:n]...)
	messages, _ := unix.ParseSocketControlMessage(oob[:o])
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		c.fds = append(c.fds, fds...)
	}
}

// next is the client's next frame.
func (c *cConn) next() wire.Frame {
	c.t.Helper()
	for {
		size, err := wire.FrameSize(c.buf)
		if err != nil {
			c.t.Fatal(err)
		}
		if size > 0 && len(c.buf) >= size {
			f, err := wire.ParseFrame(c.buf[:size])
			if err != nil {
				c.t.Fatal(err)
			}
			f.Body = bytes.Clone(f.Body)
			c.buf = c.buf[size:]
			return f
		}
		c.fill()
	}
}

// expect is the next frame, which must be of this type and say this.
func (c *cConn) expect(kind uint8, to, from, body string) wire.Frame {
	c.t.Helper()
	f := c.next()
	if f.Type != kind || f.To != to || f.From != from || string(f.Body) != body {
		c.t.Fatalf("got %+v %q, want type %d to %q from %q body %q", f, f.Body, kind, to, from, body)
	}
	return f
}

func (c *cConn) quiet() {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(cQuiet))
	defer c.conn.SetReadDeadline(time.Now().Add(cPatience))
	if n, err := c.conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("the client said %d bytes more: %v", n, err)
	}
}

func (c *cConn) say(f wire.Frame, fds ...int) {
	c.t.Helper()
	f.FDs = uint8(len(fds))
	b, n, err := wire.AppendFrame(nil, &f), 0, error(nil)
	if len(fds) > 0 {
		n, _, err = c.conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	}
	if err == nil {
		_, err = c.conn.Write(b[n:])
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// ack answers a frame.
func (c *cConn) ack(f wire.Frame, level uint8) {
	c.t.Helper()
	c.say(wire.Frame{Type: wire.TypeAck, Code: level, Session: f.Session, ID: f.ID})
}

// cProgram is a C program that runs.
type cProgram struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	errs  *bytes.Buffer
}

func cStart(t *testing.T, s *cServer, name, path string) *cProgram {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*cPatience)
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(os.Environ(), "ZHX_SOCKET="+s.path, "ZHX_NAME="+name, "ASAN_OPTIONS=detect_leaks=0")
	p := &cProgram{t: t, cmd: cmd, lines: make(chan string, 100), errs: new(bytes.Buffer)}
	cmd.Stderr = p.errs
	p.in, _ = cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(p.lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			p.lines <- scan.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		p.in.Close()
		for range p.lines {
		}
		<-read
		cmd.Wait()
	})
	return p
}

func (p *cProgram) tell(lines ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, strings.Join(lines, "\n")+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *cProgram) expect(lines ...string) {
	p.t.Helper()
	for _, want := range lines {
		select {
		case got, ok := <-p.lines:
			if got != want {
				p.t.Fatalf("printed %q (open %v), want %q\n%s", got, ok, want, p.errs)
			}
		case <-time.After(cPatience):
			p.t.Fatalf("did not print %q", want)
		}
	}
}

// end waits until the program ends well, of itself.
func (p *cProgram) end() {
	p.t.Helper()
	p.in.Close()
	for line := range p.lines {
		p.t.Errorf("printed %q at the end", line)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%v\n%s", err, p.errs)
	}
}

// cOpen has the driver open, under the name me.
func cOpen(t *testing.T, s *cServer, p *cProgram) (*cConn, wire.Frame) {
	t.Helper()
	p.tell("open")
	c, hello := s.accept(1)
	c.ack(c.expect(wire.TypeRegister, "", "me", ""), 1)
	p.expect("ok")
	return c, hello
}

func TestCClient(t *testing.T) {
	conform := cCompile(t, "conform", "-std=c99", "c/conform.c", "c/zhx.c")
	message := func(session, id uint64, to, body string, flags uint8) wire.Frame {
		return wire.Frame{Type: wire.TypeMessage, Code: wire.LevelHandled, Flags: flags, Session: session, ID: id, To: to, From: "you", Body: []byte(body)}
	}
	for name, test := range map[string]func(t *testing.T, s *cServer, p *cProgram, c *cConn, hello wire.Frame){
		// What was not acknowledged is sent again, in order, after the names and before anything newer; the session stays.
		"handled survives": func(t *testing.T, s *cServer, p *cProgram, c *cConn, hello wire.Frame) {
			p.tell("send you handled one")
			first := c.expect(wire.TypeMessage, "you", "me", "one")
			if first.Code != wire.LevelHandled || first.Flags != 0 || first.Session != hello.Session {
				t.Fatalf("%+v", first)
			}
			for incarnation := range uint64(3) {
				c.conn.Close()
				p.expect("down")
				var again wire.Frame
				c, again = s.accept(incarnation)
				if again.Session != hello.Session || again.ID <= first.ID {
					t.Fatalf("hello %+v after %+v", again, hello)
				}
				c.ack(c.expect(wire.TypeRegister, "", "me", ""), 1)
				if f := c.expect(wire.TypeMessage, "you", "me", "one"); f.ID != first.ID || f.Flags != wire.Repeat {
					t.Fatalf("%+v after %+v", f, first)
				}
				p.expect("up")
			}
			c.ack(first, wire.LevelHandled)
			p.expect("ack handled")
			p.tell("send you handled two")
			c.ack(c.expect(wire.TypeMessage, "you", "me", "two"), wire.LevelWritten)
			p.expect("ack written")
		},
		// Subscriptions, watches and an armed watchdog are made again; feeds are not.
		"all is made again": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			p.tell("subscribe a.> latest", "watch you", "feed arm", "feed alive", "checkpoint half")
			f := c.expect(wire.TypeSubscribe, "a.>", "me", "")
			if f.Code != wire.LatestOnly {
				t.Fatalf("%+v", f)
			}
			c.ack(f, 1)
			c.expect(wire.TypeWatch, "you", "", "")
			for code, to := range []string{"", "", "half"} {
				if f := c.expect(wire.TypeFeed, to, "me", ""); int(f.Code) != code {
					t.Fatalf("%+v", f)
				}
			}
			p.expect("ok", "ok", "ok", "ok", "ok")
			for round := range 2 {
				c.conn.Close()
				p.expect("down")
				c, _ = s.accept(2)
				c.ack(c.expect(wire.TypeRegister, "", "me", ""), 1)
				c.expect(wire.TypeSubscribe, "a.>", "me", "")
				c.expect(wire.TypeWatch, "you", "", "")
				p.expect("up")
				if round == 0 {
					c.expect(wire.TypeFeed, "", "me", "") // a new zhxd is told of the arming
				} else {
					c.quiet()
				}
			}
			c.say(wire.Frame{Type: wire.TypePublish, To: "a.b", From: "you", Flags: wire.Retain, Body: []byte("x y")})
			c.say(wire.Frame{Type: wire.TypeGap, To: "a.>", ID: 7})
			c.say(wire.Frame{Type: wire.TypeState, To: "you", Code: wire.StateRestarting, ID: 1, Body: []byte("{}")})
			p.expect("publication a.b kept x y", "gap a.> 7", "state you restarting")
		},
		// A receiver that lives is given every message once, whatever comes again.
		"no duplicate": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			handled := func(id uint64) {
				t.Helper()
				if f := c.expect(wire.TypeAck, "", "", ""); f.Session != 9 || f.ID != id || f.Code != wire.LevelHandled {
					t.Fatalf("%+v, want an ack of %d", f, id)
				}
			}
			c.say(message(9, 5, "me", "five", wire.Repeat))
			handled(5)
			c.say(message(9, 5, "me", "five", wire.Repeat))
			handled(5)
			c.say(message(9, 6, "me", "six", wire.Repeat))
			handled(6)
			c.say(message(9, 4, "other", "to another name", 0))
			handled(4)
			c.say(message(9, 7, "me", "slow", 0))
			p.expect("message you repeat five", "message you six", "message you to another name", "message you slow")
			c.conn.Close()
			p.expect("down")
			c, _ = s.accept(1)
			c.ack(c.expect(wire.TypeRegister, "", "me", ""), 1)
			c.say(message(9, 7, "me", "slow", wire.Repeat)) // while it is not done: no second, and acknowledged when done
			p.expect("up")
			handled(7)
			c.say(message(9, 7, "me", "slow", wire.Repeat))
			handled(7)
			c.say(message(9, 1, "me", "one", 0)) // 1 to me of session 9 was before 5
			handled(1)
		},
		// Nothing but handled messages outlives a connection, and who waits is told.
		"closed": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			p.tell("send you written x")
			c.expect(wire.TypeMessage, "you", "me", "x")
			c.conn.Close()
			p.expect("error closed", "down")
			c, _ = s.accept(1)
			c.ack(c.expect(wire.TypeRegister, "", "me", ""), 1)
			p.expect("up")
			c.quiet()
			p.tell("request you 60000 x")
			c.expect(wire.TypeRequest, "you", "me", "x")
			c.conn.Close()
			p.expect("error closed", "down")
		},
		"requests": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			for flags, said := range map[uint8]string{0: "reply 25 C", wire.Failed: "failed 25 C"} {
				p.tell("request you 60000 how warm")
				f := c.expect(wire.TypeRequest, "you", "me", "how warm")
				c.say(wire.Frame{Type: wire.TypeReply, Session: 1, ID: f.ID, Body: []byte("of another")})
				c.say(wire.Frame{Type: wire.TypeReply, Flags: flags, Session: f.Session, ID: f.ID, From: "you", Body: []byte("25 C")})
				p.expect(said)
			}
			p.tell("request you 30 late")
			f := c.expect(wire.TypeRequest, "you", "me", "late")
			if cancel := c.expect(wire.TypeCancel, "you", "me", ""); cancel.ID != f.ID || f.Time != 30 {
				t.Fatalf("%+v, %+v", f, cancel)
			}
			p.expect("timeout")
			for body, reply := range map[string]string{"ask": "re: ask", "fail": "no"} {
				c.say(wire.Frame{Type: wire.TypeRequest, Session: 3, ID: 4, To: "me", From: "you", Body: []byte(body)})
				if f := c.expect(wire.TypeReply, "", "me", reply); f.Session != 3 || f.ID != 4 || (f.Flags == wire.Failed) != (body == "fail") {
					t.Fatalf("%+v", f)
				}
				p.expect("request you " + body)
			}
		},
		"errors": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			p.tell("send you accepted x", "big you 1001", "send -you accepted x")
			f := c.expect(wire.TypeMessage, "you", "me", "x")
			c.say(wire.Frame{Type: wire.TypeError, Code: wire.ErrRestarting, Session: f.Session, ID: f.ID, To: "you", Time: 9})
			p.expect("error restarting", "error toobig", "error bad")
		},
		// Who has lost its name does not come back and fight for it.
		"taken": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			p.tell("send you handled x")
			c.expect(wire.TypeMessage, "you", "me", "x")
			c.say(wire.Frame{Type: wire.TypeError, Code: wire.ErrTaken, To: "me"})
			c.conn.Close()
			p.expect("error taken", "taken")
			s.listen.SetDeadline(time.Now().Add(cQuiet))
			if _, err := s.listen.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("it came back: %v", err)
			}
		},
		"descriptors": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			p.tell("sendfd you what it holds")
			f := c.expect(wire.TypeMessage, "you", "me", "fd")
			if len(c.fds) != 1 || f.FDs != 1 {
				t.Fatalf("%v with %+v", c.fds, f)
			}
			file := os.NewFile(uintptr(c.fds[0]), "")
			defer file.Close()
			if b := make([]byte, 100); true {
				if n, _ := file.ReadAt(b, 0); string(b[:n]) != "what it holds" {
					t.Fatalf("%q", b[:n])
				}
			}
			c.ack(f, wire.LevelWritten)
			c.say(wire.Frame{Type: wire.TypeMessage, To: "me", From: "you"}, int(file.Fd()))
			p.expect("ack written", "fd you what it holds")
		},
		// A frame that the client has no room for is passed over, and the next one read.
		"too big": func(t *testing.T, s *cServer, p *cProgram, c *cConn, _ wire.Frame) {
			c.say(wire.Frame{Type: wire.TypeMessage, To: "me", From: "you", Body: make([]byte, 1<<20)})
			c.say(wire.Frame{Type: wire.TypeMessage, To: "me", From: "you", Body: []byte("after it")})
			p.expect("message you after it")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newCServer(t)
			p := cStart(t, s, "me", conform)
			c, hello := cOpen(t, s, p)
			test(t, s, p, c, hello)
			p.end()
		})
	}
}

// A server that breaks every rule does a client no harm: no memory error, no descriptor lost, no call that hangs, nothing allocated; nor
// does it that there is none, where it takes that well.
func TestCHostile(t *testing.T) {
	program := cCompile(t, "hostile", "-std=c99", "-Dmalloc=counted", "testdata/c_hostile.c", "c/zhx.c")
	s := newCServer(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "ZHX_SOCKET="+s.path, "MS=3000")
	var conns sync.WaitGroup
	conns.Add(1)
	go func() {
		defer conns.Done()
		for seed := uint64(1); ; seed++ {
			conn, err := s.listen.AcceptUnix()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(cPatience))
			conns.Add(1)
			go func() {
				defer conns.Done()
				defer conn.Close()
				cMistreat(conn, rand.New(rand.NewPCG(seed, 5)), int(null.Fd()))
			}()
		}
	}()
	said, err := cmd.CombinedOutput()
	s.listen.Close()
	conns.Wait()
	t.Logf("%s", said)
	if err != nil {
		t.Fatal(err)
	}
	for _, never := range []string{"ups=0 ", "messages=0 ", "answers=0 ", "answered=0 "} {
		if strings.Contains(string(said), never) {
			t.Errorf("%s: the test has tested nothing", never)
		}
	}
}

// cMistreat is one connection of a hostile server.
func cMistreat(conn *net.UnixConn, r *rand.Rand, fd int) {
	head := make([]byte, len(wire.Preamble)+wire.FrameHeader)
	if _, err := io.ReadFull(conn, head); err != nil {
		return
	}
	session := wire.FrameSession(head[len(wire.Preamble):])
	switch r.IntN(12) {
	case 0:
		return // no word
	case 1: // WELCOME never comes
		io.Copy(io.Discard, conn)
		return
	case 2: // something else comes
	default:
		welcome := wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeWelcome, Code: 2, Flags: wire.TakesFDs, Session: r.Uint64(), ID: 256 << 10})
		// Two in three of the clients are told that they have their name, so that they believe all that follows.
		if r.IntN(3) > 0 {
			welcome = wire.AppendFrame(welcome, &wire.Frame{Type: wire.TypeAck, Code: 1, Session: session, ID: wire.FrameID(head[len(wire.Preamble):]) + 1})
		}
		if _, err := conn.Write(welcome); err != nil {
			return
		}
	}
	if r.IntN(4) > 0 { // or it does not read
		done := make(chan struct{})
		defer func() { <-done }()
		defer conn.Close()
		go func() {
			defer close(done)
			io.Copy(io.Discard, conn)
		}()
	}
	names := []string{"", "me", "second", "other", "a.b", strings.Repeat("n", 255), "a\x00b"}
	for i := range 1 + r.IntN(1000) {
		f := wire.Frame{
			Type: uint8(1 + r.IntN(18)), Flags: uint8(r.Uint32()), Code: uint8(r.IntN(8)), Session: session, ID: uint64(r.IntN(20 + i)),
			Time: r.Uint32(), To: names[r.IntN(len(names))], From: names[r.IntN(len(names))], Body: make([]byte, r.IntN(200)),
		}
		switch r.IntN(3) {
		case 0:
			f.Session = r.Uint64N(4)
		case 1: // an answer, perhaps to something
			f.Type = uint8(wire.TypeReply + r.IntN(4))
		}
		if r.IntN(30) == 0 {
			f.Body = make([]byte, r.IntN(20000)) // more than the client said that it takes
		}
		if r.IntN(300) == 0 {
			f.Type, f.Code = wire.TypeError, wire.ErrTaken
		}
		var oob []byte
		if n := r.IntN(120); n < 5 { // as many as it says, or not
			f.FDs = uint8(n)
			if r.IntN(6) == 0 {
				n = r.IntN(30)
			}
			if n > 0 {
				fds := make([]int, n)
				for i := range fds {
					fds[i] = fd
				}
				oob = unix.UnixRights(fds...)
			}
		}
		b := wire.AppendFrame(nil, &f)
		switch r.IntN(300) {
		case 0: // an absurd size
			binary.LittleEndian.PutUint32(b, []uint32{0, 1, 31, uint32(len(b)) - 1, 17 << 20, 1 << 31, 1<<32 - 1}[r.IntN(7)])
		case 1: // an ext, that may or may not be there
			binary.LittleEndian.PutUint16(b[30:], uint16(r.Uint32()))
		case 2: // noise
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		case 3: // the end, at any byte
			b = b[:r.IntN(len(b))]
			conn.WriteMsgUnix(b, oob, nil)
			return
		}
		for len(b) > 0 { // torn, or whole
			n := len(b)
			if r.IntN(3) == 0 {
				n = 1 + r.IntN(n)
			}
			if _, _, err := conn.WriteMsgUnix(b[:n], oob, nil); err != nil {
				return
			}
			b, oob = b[n:], nil
		}
	}
}

// The prototype's interface: a program of its kind, with names that the prototype had no room for, across a lost connection.
func TestCSock(t *testing.T) {
	const long = "a-name-of-more-than-ten-bytes"
	s := newCServer(t)
	p := cStart(t, s, "", cCompile(t, "c_sock", "testdata/c_sock.c", "c/sock.c", "c/zhx.c"))
	// Two connections, in any order; what is said first tells which is which.
	var receiver, sender *cConn
	for range 2 {
		c, _ := s.accept(1)
		switch f := c.next(); f.Type {
		case wire.TypeRegister:
			receiver = c
			c.ack(f, 1)
		case wire.TypeFeed:
			sender = c
		default:
			t.Fatalf("%+v", f)
		}
	}
	first := sender.expect(wire.TypeMessage, "another-long-name", long, "first")
	sender.ack(first, wire.LevelHandled)
	receiver.say(wire.Frame{Type: wire.TypeMessage, Session: 5, ID: 1, Code: wire.LevelHandled, To: long, From: "you", Body: []byte("hello")})
	if f := receiver.expect(wire.TypeAck, "", "", ""); f.ID != 1 {
		t.Fatalf("%+v", f)
	}
	p.expect("you: hello")
	// What the program does not read is not acknowledged.
	for i, text := range []string{"hold", "unread"} {
		receiver.say(wire.Frame{Type: wire.TypeMessage, Session: 5, ID: 2 + uint64(i), Code: wire.LevelHandled, To: long, From: "you", Body: []byte(text)})
	}
	p.expect("you: hold")
	if f := receiver.expect(wire.TypeAck, "", "", ""); f.ID != 2 {
		t.Fatalf("%+v", f)
	}
	receiver.quiet()
	p.tell("")
	p.expect("you: unread")
	if f := receiver.expect(wire.TypeAck, "", "", ""); f.ID != 3 {
		t.Fatalf("%+v", f)
	}
	receiver.conn.Close()
	receiver, _ = s.accept(2)
	receiver.ack(receiver.expect(wire.TypeRegister, "", long, ""), 1)
	receiver.say(wire.Frame{Type: wire.TypeMessage, Flags: wire.FromV1, To: long, From: "you", Body: append([]byte("end"), make([]byte, 509)...)})
	p.expect("you: end")
	if f := sender.expect(wire.TypeFeed, "", long, ""); f.Code != wire.FeedAlive {
		t.Fatalf("%+v", f)
	}
	// Its last word comes though its process has ended its main function already, and also by another connection.
	last := sender.expect(wire.TypeMessage, "another-long-name", long, "last")
	sender.conn.Close()
	sender, _ = s.accept(2)
	again := sender.expect(wire.TypeMessage, "another-long-name", long, "last")
	sender.expect(wire.TypeFeed, "", long, "") // armed anew, at a new zhxd
	if again.ID != last.ID {
		t.Fatalf("%+v after %+v", again, last)
	}
	sender.ack(again, wire.LevelHandled)
	p.end()
}

// The prototype's own client, from where it was written, compiled as it is.
func TestCPrototype(t *testing.T) {
	if os.Getenv("ZHX_SEED") == "" {
		t.Skip("needs $ZHX_SEED, the prototype's folder")
	}
	source, err := os.ReadFile(filepath.Join(os.Getenv("ZHX_SEED"), "client1.c"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "client1.c") // apart from the headers beside it
	if err := os.WriteFile(file, source, 0o644); err != nil {
		t.Fatal(err)
	}
	s := newCServer(t)
	p := cStart(t, s, "", cCompile(t, "client1", file, "c/sock.c", "c/zhx.c"))
	receiver, _ := s.accept(1)
	receiver.ack(receiver.expect(wire.TypeRegister, "", "client1", ""), 1)
	sender, _ := s.accept(1)
	if f := sender.expect(wire.TypeFeed, "", "client1", ""); f.Code != wire.FeedArm {
		t.Fatalf("%+v", f)
	}
	said := sender.expect(wire.TypeMessage, "client2", "client1", "this message is from client1 to client2")
	for incarnation := range uint64(2) {
		receiver.say(wire.Frame{Type: wire.TypeMessage, Session: 5, ID: 1 + incarnation, Code: wire.LevelHandled, To: "client1", From: "client2", Body: fmt.Append(nil, "hello ", incarnation)})
		if f := receiver.expect(wire.TypeAck, "", "", ""); f.ID != 1+incarnation {
			t.Fatalf("%+v", f)
		}
		receiver.conn.Close()
		receiver, _ = s.accept(2 + incarnation)
		receiver.ack(receiver.expect(wire.TypeRegister, "", "client1", ""), 1)
	}
	sender.conn.Close()
	sender, _ = s.accept(4)
	sender.ack(said, wire.LevelHandled)
	p.cmd.Process.Kill()
}
