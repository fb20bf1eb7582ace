package ipc_test

// This file holds the Python client against a zhx that is played by the test: what it does when connections are lost, when
// frames come torn or cannot be, and that each message of level handled is handled once.

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

const pyPatience = 20 * time.Second // for what must come

// pyZhx is a zhx of which the test writes every frame.
type pyZhx struct {
	*testing.T
	ln      net.Listener
	address string
}

func newPyZhx(t *testing.T, network, address string) *pyZhx {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	z := &pyZhx{T: t, ln: ln, address: ln.Addr().String()}
	if network == "tcp" {
		z.address = "tcp:" + z.address
	}
	return z
}

// pyPeer is zhx's end of one connection.
type pyPeer struct {
	*testing.T
	conn net.Conn
	in   []byte
	fds  []int // that came and are not read yet
}

func (z *pyZhx) accept() *pyPeer {
	z.Helper()
	z.ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(pyPatience))
	conn, err := z.ln.Accept()
	if err != nil {
		z.Fatal(err)
	}
	z.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(pyPatience))
	p := &pyPeer{T: z.T, conn: conn}
	p.fill(len(wire.Preamble))
	if got := string(p.in[:len(wire.Preamble)]); got != wire.Preamble {
		z.Fatalf("it begins with %q", got)
	}
	p.in = p.in[len(wire.Preamble):]
	return p
}

func (p *pyPeer) fill(n int) {
	p.Helper()
	for len(p.in) < n {
		b, oob := make([]byte, 64<<10), make([]byte, 256)
		var n, oobn int
		var err error
		if u, ok := p.conn.(*net.UnixConn); ok {
			n, oobn, _, _, err = u.ReadMsgUnix(b, oob)
		} else {
			n, err = p.conn.Read(b)
		}
		if err != nil || n == 0 {
			p.Fatalf("read: %v", err)
		}
		p.in = append(p.in, b[:n]...)
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			p.fds = append(p.fds, fds...)
		}
	}
}

// read reads a frame of this type.
func (p *pyPeer) read(kind uint8) wire.Frame {
	p.Helper()
	p.fill(wire.FrameHeader)
	size, err := wire.FrameSize(p.in)
	if err != nil {
		p.Fatal(err)
	}
	p.fill(size)
	f, err := wire.ParseFrame(bytes.Clone(p.in[:size]))
	p.in = p.in[size:]
	if err != nil || f.Type != kind {
		p.Fatalf("%+v, %v: want one of type %d", f, err, kind)
	}
	return f
}

func (p *pyPeer) write(frames ...wire.Frame) {
	p.Helper()
	var b []byte
	for _, f := range frames {
		b = wire.AppendFrame(b, &f)
	}
	if _, err := p.conn.Write(b); err != nil {
		p.Fatal(err)
	}
}

func (p *pyPeer) ack(f wire.Frame, level uint8) {
	p.Helper()
	p.write(wire.Frame{Type: wire.TypeAck, Code: level, Session: f.Session, ID: f.ID})
}

func pyWelcome() wire.Frame {
	return wire.Frame{Type: wire.TypeWelcome, Code: wire.Version, Flags: wire.TakesFDs, Session: 77, ID: wire.BodyDefault}
}

// welcome does what zhx does with a new connection of a client with this name.
func (p *pyPeer) welcome(name string) (session uint64) {
	p.Helper()
	hello := p.read(wire.TypeHello)
	p.write(pyWelcome())
	r := p.read(wire.TypeRegister)
	if r.From != name || r.Session != hello.Session || hello.Session == 0 {
		p.Fatalf("%+v after %+v", r, hello)
	}
	p.ack(r, 1)
	return hello.Session
}

// pyProgram is a program that runs in Python.
type pyProgram struct {
	*testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string
}

func startPython(z *pyZhx, env []string, args ...string) *pyProgram {
	z.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		z.Skip("python3 is not installed")
	}
	p := &pyProgram{T: z.T, cmd: exec.Command(python, append([]string{"-B", "-X", "dev"}, args...)...), lines: make(chan string, 1000)}
	p.cmd.Env = append(os.Environ(), "ZHX_SOCKET="+z.address, "ZHX_NAME=me", "PYTHONPATH=python")
	p.cmd.Env = append(p.cmd.Env, env...)
	var trouble bytes.Buffer
	p.cmd.Stderr = &trouble
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		p.stdin, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		z.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	z.Cleanup(func() {
		p.stdin.Close()
		kill := time.AfterFunc(pyPatience, func() { p.cmd.Process.Kill() })
		defer kill.Stop()
		for range p.lines {
		}
		err := p.cmd.Wait()
		if s := trouble.String(); err != nil || strings.Contains(s, "Traceback") || strings.Contains(s, "ResourceWarning") {
			z.Errorf("python: %v\n%s", err, s)
		}
	})
	return p
}

func (p *pyProgram) do(format string, args ...any) {
	fmt.Fprintf(p.stdin, format+"\n", args...)
}

// want waits for these lines, in this order, and no other.
func (p *pyProgram) want(lines ...string) {
	p.Helper()
	for _, want := range lines {
		select {
		case got, ok := <-p.lines:
			if !ok || got != want {
				p.Fatalf("it says %q, want %q", got, want)
			}
		case <-time.After(pyPatience):
			p.Fatalf("it says nothing, want %q", want)
		}
	}
}

// pyStory runs f with the conformance driver of each client, after open.
func pyStory(t *testing.T, f func(z *pyZhx, p *pyPeer, driver *pyProgram)) {
	for name, args := range map[string][]string{"sync": {"python/conform.py"}, "asyncio": {"python/conform.py", "--asyncio"}} {
		t.Run(name, func(t *testing.T) {
			z := newPyZhx(t, "unix", filepath.Join(t.TempDir(), "s"))
			driver := startPython(z, nil, args...)
			driver.do("open")
			p := z.accept()
			p.welcome("me")
			driver.want("ok")
			f(z, p, driver)
		})
	}
}

func TestPythonConnectsAgain(t *testing.T) {
	pyStory(t, func(z *pyZhx, p *pyPeer, driver *pyProgram) {
		driver.do("subscribe temp.* latest")
		s := p.read(wire.TypeSubscribe)
		p.ack(s, 1)
		driver.want("ok")
		driver.do("watch other")
		w := p.read(wire.TypeWatch)
		p.write(wire.Frame{Type: wire.TypeState, Code: wire.StateLate, To: "other", ID: 3, Body: []byte(`{"pid":`)})
		for range 2 { // the state, and that the call is done: in either order
			if line := <-driver.lines; line != "ok" && line != "state other late" {
				t.Fatal(line)
			}
		}
		driver.do("feed arm")
		p.read(wire.TypeFeed)
		driver.want("ok")
		driver.do("request other 20000 what")
		request := p.read(wire.TypeRequest)
		if request.Time < 15000 || request.Time > 20000 {
			t.Errorf("its deadline is %d ms", request.Time)
		}
		p.conn.Close()
		for range 2 {
			if line := <-driver.lines; line != "down" && line != "error closed" {
				t.Fatal(line)
			}
		}
		p = z.accept()
		if session := p.welcome("me"); session != s.Session {
			t.Error("it has another session")
		}
		if again := p.read(wire.TypeSubscribe); again.To != "temp.*" || again.Code != wire.LatestOnly || again.ID <= request.ID {
			t.Errorf("%+v", again)
		}
		if again := p.read(wire.TypeWatch); again.To != w.To {
			t.Errorf("%+v", again)
		}
		driver.want("up")
		p.write(wire.Frame{Type: wire.TypePublish, To: "temp.cpu", Flags: wire.Retain, Body: []byte("41")}, wire.Frame{Type: wire.TypeGap, To: "temp.*", ID: 7})
		driver.want("publication temp.cpu kept 41", "gap temp.* 7")
		// The watchdog is armed again by the program's own next sign of life.
		driver.do("checkpoint loop")
		if a, c := p.read(wire.TypeFeed), p.read(wire.TypeFeed); a.Code != wire.FeedArm || c.Code != wire.FeedCheckpoint || c.To != "loop" || c.From != "me" {
			t.Errorf("%+v, %+v", a, c)
		}
		driver.want("ok")
		p.write(wire.Frame{Type: wire.TypeError, Code: wire.ErrTaken, To: "me"})
		p.conn.Close()
		driver.want("taken")
		driver.do("send other none x")
		driver.want("error taken")
		z.ln.(*net.UnixListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := z.ln.Accept(); err == nil {
			t.Error("it comes back, though another has its name")
		}
	})
}

// pyThree sends three messages of level handled at once, two to one receiver, and says when they are.
const pyThree = `
import zhx, asyncio, sys
mail = [("a", "1"), ("a", "2"), ("b", "3")]
def plain():
    with zhx.connect(timeout=60) as c:
        tickets = [c.post(to, body) for to, body in mail]
        while not all(t.done for t in tickets):
            assert c.receive() is None
        print(*[t.result() for t in tickets])
async def loop():
    async with zhx.AsyncClient(timeout=60) as c:
        print(*await asyncio.gather(*[c.send(to, body, "handled") for to, body in mail]))
plain() if sys.argv[1] == "sync" else asyncio.run(loop())
`

func TestPythonSendsAgain(t *testing.T) {
	for _, how := range []string{"sync", "asyncio"} {
		t.Run(how, func(t *testing.T) {
			z := newPyZhx(t, "unix", filepath.Join(t.TempDir(), "s"))
			program := startPython(z, nil, "-c", pyThree, how)
			var first [3]wire.Frame
			for attempt := range 3 {
				p := z.accept()
				p.welcome("me")
				for i := attempt; i < 3; i++ {
					m := p.read(wire.TypeMessage)
					if attempt == 0 {
						first[i] = m
					}
					// The first of each receiver may have been handled: on the second connection those are 2 and 3, since 1 is done.
					repeat := attempt > 0 && (i == attempt || i == 2)
					if string(m.Body) != strconv.Itoa(i+1) || m.ID != first[i].ID || m.Session != first[0].Session || (m.Flags&wire.Repeat != 0) != repeat || i > 0 && m.ID <= first[i-1].ID {
						t.Errorf("connection %d: %+v", attempt, m)
					}
				}
				p.ack(first[attempt], 3)
				if attempt < 2 {
					// zhx ends after it has passed the acknowledgement on: the client reads it before it sees the end.
					p.conn.Close()
				}
			}
			program.want("handled handled handled")
		})
	}
}

func TestPythonHandlesOnce(t *testing.T) {
	pyStory(t, func(z *pyZhx, p *pyPeer, driver *pyProgram) {
		give := func(session, id uint64, flags uint8, to, text string) {
			t.Helper()
			p.write(wire.Frame{Type: wire.TypeMessage, Code: wire.LevelHandled, Flags: flags, Session: session, ID: id, To: to, From: "x", Body: []byte(text)})
		}
		acked := func(session, id uint64) {
			t.Helper()
			if a := p.read(wire.TypeAck); a.Session != session || a.ID != id || a.Code != wire.LevelHandled {
				t.Errorf("%+v: want one for %d of %d", a, id, session)
			}
		}
		const a, b = math.MaxUint64, 1
		give(a, 5, 0, "me", "five")
		driver.want("message x five")
		acked(a, 5)
		give(a, 5, wire.Repeat, "me", "five") // its acknowledgement was lost
		acked(a, 5)
		give(a, 6, wire.Repeat, "me", "six") // not this one: it was never given here
		driver.want("message x six")
		acked(a, 6)
		give(b, 1, wire.Repeat, "me", "old") // to a run before this one, perhaps
		driver.want("message x repeat old")
		acked(b, 1)
		give(a, 3, 0, "alias", "another name") // ids grow to each name by itself
		driver.want("message x another name")
		acked(a, 3)
		// What is being handled is not acknowledged when it comes again, also not by a new connection, before it is done.
		give(a, 8, 0, "me", "slow")
		driver.want("message x slow")
		give(a, 8, wire.Repeat, "me", "slow")
		p.conn.Close()
		driver.want("down")
		p = z.accept()
		p.welcome("me")
		driver.want("up")
		give(a, 8, wire.Repeat, "me", "slow")
		acked(a, 8)
		for range 2 { // the driver may have been done before it had a new connection, and then the repeat is acknowledged
			give(a, 8, wire.Repeat, "me", "slow")
			acked(a, 8)
		}
		give(a, 9, 0, "me", "nine")
		driver.want("message x nine")
		acked(a, 9)
	})
}

// Without done, a message is acknowledged when the next event is asked for or the block is left in peace.
const pyByItself = `
import zhx, asyncio, sys
def plain(fail):
    with zhx.connect(timeout=60) as c:
        print(c.receive().text, flush=True)
        c.send("x", "between")
        print(c.receive().text, flush=True)
        if fail:
            raise EOFError
async def loop(fail):
    async with zhx.AsyncClient(timeout=60) as c:
        print((await c.receive()).text, flush=True)
        await c.send("x", "between")
        print((await c.receive()).text, flush=True)
        if fail:
            raise EOFError
try:
    plain(sys.argv[2] == "fails") if sys.argv[1] == "sync" else asyncio.run(loop(sys.argv[2] == "fails"))
except EOFError:
    pass
`

func TestPythonAcknowledgesByItself(t *testing.T) {
	for _, how := range []string{"sync", "asyncio"} {
		for _, end := range []string{"fails", "ends"} {
			t.Run(how+" "+end, func(t *testing.T) {
				z := newPyZhx(t, "unix", filepath.Join(t.TempDir(), "s"))
				program := startPython(z, nil, "-c", pyByItself, how, end)
				p := z.accept()
				p.welcome("me")
				m := wire.Frame{Type: wire.TypeMessage, Code: wire.LevelHandled, Session: 5, ID: 1, To: "me", Body: []byte("first")}
				p.write(m)
				program.want("first")
				p.ack(p.read(wire.TypeMessage), 1)
				p.read(wire.TypeAck)
				m.ID, m.Body = 2, []byte("second")
				p.write(m)
				program.want("second")
				if end == "ends" {
					p.read(wire.TypeAck)
				}
				if n, err := p.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("at the end %d bytes, %v", n, err)
				}
			})
		}
	}
}

func TestPythonReadsTornFrames(t *testing.T) {
	pyStory(t, func(z *pyZhx, p *pyPeer, driver *pyProgram) {
		var b []byte
		for i, text := range []string{"one", "", "three", "hang", "yes", "fail"} {
			f := wire.Frame{Type: wire.TypeMessage, ID: uint64(i), Session: 9, To: "me", From: "x", Body: []byte(text)}
			if i > 2 {
				f.Type, f.Time = wire.TypeRequest, 1000
			}
			b = wire.AppendFrame(b, &f)
		}
		b = wire.AppendFrame(b, &wire.Frame{Type: 200, ID: 3, Body: []byte("of a later version")})
		packet := append([]byte("v1 text\x00"), make([]byte, 504)...)
		b = wire.AppendFrame(b, &wire.Frame{Type: wire.TypeMessage, Flags: wire.FromV1 | 64, To: "me", From: "old", Body: packet})
		for i := range b {
			if _, err := p.conn.Write(b[i : i+1]); err != nil {
				t.Fatal(err)
			}
		}
		driver.want("message x one", "message x ", "message x three", "request x hang", "request x yes", "request x fail", "message old v1 v1 text")
		p.write(wire.Frame{Type: wire.TypeCancel, Session: 9, ID: 3}, // of one that it has, and of one that comes with it
			wire.Frame{Type: wire.TypeRequest, Session: 9, ID: 6, To: "me"}, wire.Frame{Type: wire.TypeCancel, Session: 9, ID: 6})
		if r := p.read(wire.TypeReply); r.Session != 9 || r.ID != 4 || r.From != "me" || string(r.Body) != "re: yes" || r.Flags != 0 {
			t.Errorf("%+v", r)
		}
		if r := p.read(wire.TypeReply); r.ID != 5 || string(r.Body) != "no" || r.Flags != wire.Failed {
			t.Errorf("%+v", r)
		}
		// What it asks for is answered, refused, and given up.
		answers := []struct {
			command, says string
			frame         wire.Frame
		}{
			{"request x 15000 q", "reply a", wire.Frame{Type: wire.TypeReply, Body: []byte("a")}},
			{"request x 15000 q", "failed a", wire.Frame{Type: wire.TypeReply, Flags: wire.Failed, Body: []byte("a")}},
			{"request x 15000 q", "error gone", wire.Frame{Type: wire.TypeError, Code: wire.ErrGone}},
			{"send x handled q", "ack written", wire.Frame{Type: wire.TypeAck, Code: wire.LevelWritten}},
			{"send x written q", "error restarting", wire.Frame{Type: wire.TypeError, Code: wire.ErrRestarting, Time: 500, Body: []byte("later")}},
			{"publish a.b q", "ack accepted", wire.Frame{Type: wire.TypeAck, Code: wire.LevelAccepted}},
			{"subscribe a.> oldest", "error denied", wire.Frame{Type: wire.TypeError, Code: wire.ErrDenied}},
		}
		kinds := map[string]uint8{"request": wire.TypeRequest, "send": wire.TypeMessage, "publish": wire.TypePublish, "subscribe": wire.TypeSubscribe}
		for _, a := range answers {
			driver.do("%s", a.command)
			verb, _, _ := strings.Cut(a.command, " ")
			f := p.read(kinds[verb])
			a.frame.Session, a.frame.ID = f.Session, f.ID
			p.write(a.frame)
			driver.want(a.says)
		}
		driver.do("request x 30 q")
		f := p.read(wire.TypeRequest)
		if c := p.read(wire.TypeCancel); c.ID != f.ID || c.Session != f.Session || c.To != "x" {
			t.Errorf("%+v", c)
		}
		p.write(wire.Frame{Type: wire.TypeReply, Session: f.Session, ID: f.ID}) // too late: nobody has it
		driver.want("timeout")
		driver.do("big x 262145")
		driver.want("error toobig")
		driver.do("send a.b accepted x")
		driver.want("error bad")
		driver.do("send x none ")
		if m := p.read(wire.TypeMessage); m.Code != 0 || len(m.Body) != 0 {
			t.Errorf("%+v", m)
		}
		driver.want("ack none")
	})
}

// A zhx that talks nonsense costs a client its connection, never its time or memory.
func TestPythonHostileZhx(t *testing.T) {
	frame := func(size uint32, change func(b []byte)) []byte {
		b := wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, To: "me", Body: make([]byte, 64)})
		b[0], b[1], b[2], b[3] = byte(size), byte(size>>8), byte(size>>16), byte(size>>24)
		if change != nil {
			change(b)
		}
		return b
	}
	nonsense := [][]byte{
		frame(0, nil), frame(31, nil), frame(wire.FrameMax+1, nil), frame(math.MaxUint32, nil), // sizes
		frame(98, func(b []byte) { b[28] = 255 }), frame(98, func(b []byte) { b[30], b[31] = 255, 255 }), // names and ext beyond it
		frame(98, func(b []byte) { b[wire.OffsetFDs] = 5 }),
		[]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
		frame(wire.FrameMax, nil)[:40], // the most that may be, of which no more comes
	}
	pyStory(t, func(z *pyZhx, p *pyPeer, driver *pyProgram) {
		for i, b := range nonsense {
			if _, err := p.conn.Write(b); err != nil {
				t.Fatal(err)
			}
			if len(b) == 40 {
				p.conn.Close()
			}
			driver.want("down")
			p = z.accept()
			if i == 1 { // and nonsense instead of a welcome
				p.read(wire.TypeHello)
				p.write(wire.Frame{Type: wire.TypeMessage})
				p.conn.Close()
				p = z.accept()
			}
			p.welcome("me")
			driver.want("up")
		}
		// A state's body that is no object, descriptors that are announced and do not come, answers to nothing.
		p.write(wire.Frame{Type: wire.TypeState, Code: 99, To: "x", Body: bytes.Repeat([]byte("["), 100_000)},
			wire.Frame{Type: wire.TypeMessage, To: "me", FDs: 2}, wire.Frame{Type: wire.TypeAck, ID: 1 << 60}, wire.Frame{Type: wire.TypeError, Code: 200},
			wire.Frame{Type: wire.TypeReply, ID: 1}, wire.Frame{Type: wire.TypeMessage, To: "me", From: "\xff", Body: []byte("\xff")})
		driver.want("state x unknown", "message \ufffd \ufffd")
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", driver.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, peak, _ := strings.Cut(string(status), "VmHWM:")
		if kib, err := strconv.Atoi(strings.Fields(peak)[0]); err != nil || kib > 100<<10 {
			t.Errorf("it grew to %d KiB: %v", kib, err)
		}
	})
}

func pyMemfd(t *testing.T, text string) int {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString(text)
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// writeFDs writes frames in one piece that carries the descriptors.
func (p *pyPeer) writeFDs(fds []int, frames ...wire.Frame) {
	p.Helper()
	var b []byte
	for _, f := range frames {
		b = wire.AppendFrame(b, &f)
	}
	if _, _, err := p.conn.(*net.UnixConn).WriteMsgUnix(b, unix.UnixRights(fds...), nil); err != nil {
		p.Fatal(err)
	}
}

func TestPythonDescriptors(t *testing.T) {
	pyStory(t, func(z *pyZhx, p *pyPeer, driver *pyProgram) {
		count := func() int {
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", driver.cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		fd := pyMemfd(t, "content")
		defer unix.Close(fd)
		m := wire.Frame{Type: wire.TypeMessage, To: "me", From: "x", Body: []byte("b")}
		with := m
		with.FDs = 1
		before := 0
		for range 20 {
			p.write(m)
			p.writeFDs([]int{fd}, with, m) // the kernel may join what is before
			driver.want("message x b", "fd x content", "message x b")
			p.writeFDs([]int{fd, fd}, m)                                                              // that no frame announces
			p.writeFDs([]int{fd}, wire.Frame{Type: wire.TypeReply, FDs: 1})                           // that nobody waits for
			p.writeFDs([]int{fd, fd, fd, fd}, wire.Frame{Type: wire.TypeGap, To: "a.b", FDs: 4}, m)   // that mean nothing
			p.writeFDs([]int{fd, fd, fd}, wire.Frame{Type: wire.TypeMessage, To: "me", FDs: 2}, with) // too many, and then none
			p.write(m)
			driver.want("message x b", "gap a.b 0", "message x b", "message x b")
			if before == 0 {
				before = count()
			}
		}
		if after := count(); after != before {
			t.Errorf("%d descriptors, then %d", before, after)
		}
		driver.do("sendfd x its text")
		f := p.read(wire.TypeMessage)
		if f.FDs != 1 || len(p.fds) != 1 || f.Code != wire.LevelWritten {
			t.Fatalf("%+v with %d", f, len(p.fds))
		}
		defer unix.Close(p.fds[0])
		b := make([]byte, 100)
		if n, err := unix.Pread(p.fds[0], b, 0); string(b[:max(n, 0)]) != "its text" {
			t.Errorf("%q, %v", b[:max(n, 0)], err)
		}
		p.write(wire.Frame{Type: wire.TypeError, Code: wire.ErrNoFDs, Session: f.Session, ID: f.ID})
		driver.want("error nofds")
		driver.do("send x none ") // by then it has closed its own
		driver.want("ack none")
		if after := count(); after != before {
			t.Errorf("%d descriptors, then %d", before, after)
		}
	})
}

func TestPythonOverTCP(t *testing.T) {
	cookie := filepath.Join(t.TempDir(), "cookie")
	if err := os.WriteFile(cookie, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"python/conform.py"}, {"python/conform.py", "--asyncio"}} {
		z := newPyZhx(t, "tcp", "127.0.0.1:0")
		driver := startPython(z, []string{"ZHX_COOKIE=" + cookie}, args...)
		driver.do("open")
		p := z.accept()
		hello := p.read(wire.TypeHello)
		if string(hello.Body) != "secret" || hello.Flags != 0 {
			t.Errorf("%+v", hello)
		}
		p.write(wire.Frame{Type: wire.TypeError, Code: wire.ErrDenied, Session: hello.Session, ID: hello.ID, Body: []byte("the cookie")})
		p.conn.Close()
		driver.want("error denied")
		driver.do("open")
		p = z.accept()
		p.welcome("me")
		driver.want("ok")
		driver.do("sendfd x text")
		driver.want("error nofds")
	}
}

// What waits is bounded by its own time, whatever zhx does; and without zhx there is nothing to wait for, if that is allowed.
const pyBounds = `
import zhx, sys, os, time, asyncio
def word(f):
    try:
        return f()
    except zhx.Error as e:
        return e.code
def plain():
    c = zhx.connect(timeout=60)
    while word(lambda: c.send("x", b"x" * 100000, level="none", timeout=0.2)) == "none":
        pass
    print(word(lambda: c.send("x", level="handled", timeout=0.05)), word(lambda: c.feed(timeout=0.05)), c.receive(timeout=0.01), flush=True)
    c.close()
    print(word(lambda: c.send("x")), word(lambda: c.receive()))
    absent = zhx.connect("/nowhere/at/all", "me", optional=True)
    absent.subscribe("a.b")
    absent.arm()
    print(absent.send("x", "y"), absent.receive(timeout=0.01), word(lambda: absent.request("x")))
    print(word(lambda: zhx.connect("/nowhere/at/all")), word(lambda: zhx.connect("tcp:nowhere")), word(lambda: zhx.connect(name="a b")))
async def loop():
    async def word(f):
        try:
            return await f()
        except zhx.Error as e:
            return e.code
    c = await zhx.AsyncClient(timeout=60).open()
    while await word(lambda: c.send("x", b"x" * 100000, level="none", timeout=0.2)) == "none":
        pass
    print(await word(lambda: c.send("x", level="handled", timeout=0.05)), await word(lambda: c.feed(timeout=0.05)), await c.receive(timeout=0.01), flush=True)
    c.close()
    print(await word(lambda: c.send("x")), await word(lambda: c.receive()))
    absent = await zhx.AsyncClient("/nowhere/at/all", "me", optional=True).open()
    await absent.subscribe("a.b")
    await absent.arm()
    print(await absent.send("x", "y"), await absent.receive(timeout=0.01), await word(lambda: absent.request("x")))
    async def new(*a, **k):
        await zhx.AsyncClient(*a, **k).open()
    print(await word(lambda: new("/nowhere/at/all")), await word(lambda: new("tcp:nowhere")), await word(lambda: new(name="a b")))
plain() if sys.argv[1] == "sync" else asyncio.run(loop())
`

func TestPythonBounds(t *testing.T) {
	for _, how := range []string{"sync", "asyncio"} {
		t.Run(how, func(t *testing.T) {
			z := newPyZhx(t, "unix", filepath.Join(t.TempDir(), "s"))
			program := startPython(z, nil, "-c", pyBounds, how)
			p := z.accept()
			p.welcome("me") // and from here on it reads no more
			program.want("timeout timeout None", "closed closed", "none None noname", "closed bad bad")
		})
	}
}

// A client that learns by writing that it has no connection still reads what zhx said last: else two programs with one name
// would take it from each other for ever.
const pyTaken = `
import zhx, sys
with zhx.connect(timeout=60) as c:
    print("ok", flush=True)
    sys.stdin.readline()
    try:
        c.send("x", "y")
    except zhx.Error as e:
        print(e.code)
`

func TestPythonTakenUnread(t *testing.T) {
	z := newPyZhx(t, "unix", filepath.Join(t.TempDir(), "s"))
	program := startPython(z, nil, "-c", pyTaken)
	p := z.accept()
	p.welcome("me")
	program.want("ok")
	p.write(wire.Frame{Type: wire.TypeMessage, To: "me"}, wire.Frame{Type: wire.TypeError, Code: wire.ErrTaken, To: "me"})
	p.conn.Close()
	program.do("go")
	program.want("taken")
}

// A flood that nobody receives ends reading, and then calls say so; nothing is lost of it.
const pyFlood = `
import zhx
c = zhx.connect(timeout=60)
try:
    c.request("x", timeout=60)
except zhx.Error as e:
    print(e.code, flush=True)
n = 0
while n < 20000:
    assert c.receive().text == str(n)
    n += 1
print("all")
c.close()
`

func TestPythonFlood(t *testing.T) {
	z := newPyZhx(t, "unix", filepath.Join(t.TempDir(), "s"))
	program := startPython(z, nil, "-c", pyFlood)
	p := z.accept()
	p.welcome("me")
	p.read(wire.TypeRequest)
	for i := range 20000 {
		_, err := p.conn.Write(wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, To: "me", Body: []byte(strconv.Itoa(i))}))
		if err != nil {
			if errors.Is(err, unix.EPIPE) {
				t.Fatal("it gave up")
			}
			t.Fatal(err)
		}
	}
	program.want("full", "all")
}
