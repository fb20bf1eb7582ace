package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/ipc/wire"
)

// serveMade is serve, and gives the Daemon itself.
func serveMade(t *testing.T, clients string) (*running, *Daemon) {
	t.Helper()
	made := make(chan *Daemon, 1)
	z := serveOn(t, clients, Options{made: func(d *Daemon) { made <- d }})
	return z, <-made
}

// speaker is a connection of protocol 2, frame by frame.
type speaker struct {
	t *testing.T
	net.Conn
	id uint64
}

// speak connects, says HELLO with a cookie, and gives the answer to it.
func (r *running) speak(network, address, cookie string) (*speaker, wire.Frame) {
	r.t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, wire.Preamble)
	s := &speaker{t: r.t, Conn: c}
	s.say(wire.Frame{Type: wire.TypeHello, Body: []byte(cookie)})
	return s, s.hear(wire.TypeWelcome, wire.TypeError)
}

func (r *running) socket() string { return filepath.Join(r.dir, "run", "zhx.sock") }

func (s *speaker) say(f wire.Frame) {
	s.id++
	f.Session, f.ID = 77, s.id
	if _, err := s.Write(wire.AppendFrame(nil, &f)); err != nil {
		s.t.Fatal(err)
	}
}

// hear reads up to the next frame of one of the types.
func (s *speaker) hear(types ...uint8) wire.Frame {
	s.t.Helper()
	for {
		b := make([]byte, wire.FrameHeader)
		_, err := io.ReadFull(s, b)
		size := 0
		if err == nil {
			size, err = wire.FrameSize(b)
		}
		if err == nil {
			b = append(b, make([]byte, size-len(b))...)
			_, err = io.ReadFull(s, b[wire.FrameHeader:])
		}
		f := wire.Frame{}
		if err == nil {
			f, err = wire.ParseFrame(b)
		}
		if err != nil {
			s.t.Fatalf("no frame of types %v: %v", types, err)
		}
		for _, want := range types {
			if f.Type == want {
				return f
			}
		}
	}
}

// Whoever watches a client is told each state that it passes through, in order, with what led to it; and what is sent to it is
// expected to be received where a run of it has registered.
func TestStates(t *testing.T) {
	z, d := serveMade(t, fmt.Sprintf("[client.a]\ncommand = [%q, \"role-talker\"]\nnames = [\"a2\"]\nautostart = false\nready = \"register\"\nwatchdog_timeout = \"20s\"\nwarn_after = \"400ms\"\nstable_after = \"1ms\"\nstart_limit = { burst = 1, interval = \"1h\" }\n", exe(t)))
	s, _ := z.speak("unix", z.socket(), "")
	var last uint64
	var body struct {
		Run           int
		PID           int
		Cause, Signal string
		Exit          *int `json:"exit_code"`
	}
	// A slow machine may see it late, and fed again, at any time.
	await := func(want ...uint8) {
		t.Helper()
		for i, code := range want {
			for {
				f := s.hear(wire.TypeState)
				if f.ID <= last || f.To != "a" {
					t.Fatalf("after change %d: %+v", last, f)
				}
				last, body.PID, body.Signal = f.ID, 0, ""
				if err := json.Unmarshal(f.Body, &body); err != nil {
					t.Fatal(err)
				}
				if f.Code == code {
					break
				}
				if again := i > 0 && f.Code == want[i-1]; !again && f.Code != wire.StateLate && f.Code != wire.StateReady {
					t.Fatalf("state %d %s, want %d of %v", f.Code, f.Body, code, want)
				}
			}
		}
	}
	expects := func(name string, want bool) {
		t.Helper()
		if got := d.Standing(name); !got.Managed || got.Expects != want || got.Account == nil {
			t.Errorf("%s: %+v, want it to be expected: %t", name, got, want)
		}
	}
	s.say(wire.Frame{Type: wire.TypeWatch, To: "a"})
	await(wire.StateStopped)
	expects("a", false)
	if _, err := z.Start(context.Background(), control.Which{Names: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	await(wire.StateRestarting, wire.StateRunning, wire.StateReady)
	expects("a", true)
	pid := body.PID
	if body.Run != 1 || pid == 0 || body.Cause != "" {
		t.Errorf("ready as %+v", body)
	}
	z.until("it is armed", z.armed("a"))
	syscall.Kill(pid, syscall.SIGSTOP)
	await(wire.StateLate)
	syscall.Kill(pid, syscall.SIGCONT)
	await(wire.StateReady)
	syscall.Kill(pid, syscall.SIGKILL)
	await(wire.StateRestarting)
	if body.Cause != "signal" || body.Signal != "SIGKILL" || body.Run != 1 || body.PID != 0 || body.Exit != nil {
		t.Errorf("restarting as %+v", body)
	}
	await(wire.StateRunning, wire.StateReady)
	if body.Run != 2 || body.PID == 0 {
		t.Errorf("ready again as %+v", body)
	}
	syscall.Kill(body.PID, syscall.SIGKILL)
	await(wire.StateFailed)
	expects("a", false)
	if _, err := z.Stop(context.Background(), control.Which{Names: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	await(wire.StateStopped)
	if got := d.Standing("nobody"); got.Managed {
		t.Errorf("a name that no client has: %+v", got)
	}
}

// Without ready = "register" a name is expected once a run has registered it, and not before.
func TestExpected(t *testing.T) {
	z, d := serveMade(t, fmt.Sprintf("[client.a]\ncommand = [%q, \"role-talker\"]\nnames = [\"a2\"]\n[client.mute]\ncommand = [%[1]q, \"role-sleeper\"]\n", exe(t)))
	z.until("a has registered", func() bool { return d.Standing("a").Expects })
	for _, name := range []string{"a2", "mute"} {
		if d.Standing(name).Expects {
			t.Errorf("%s is expected", name)
		}
	}
	if st, ok := d.procs.StatusOf("mute"); !ok || st.Registers {
		t.Errorf("mute: %+v", st)
	}
	z.until("procman knows it", func() bool { st, _ := d.procs.StatusOf("a"); return st.Registers })
}

// hold is what waits, and an edit applies to what runs.
func TestHoldKey(t *testing.T) {
	conf := func(keys string) string { return "[client.a]\ncommand = [\"sleep\", \"1h\"]\n" + keys }
	z, d := serveMade(t, conf("hold = { messages = 3, bytes = 5000, for = \"1s\" }\n"))
	if got, want := d.Standing("a").Hold, (broker.Hold{Messages: 3, Bytes: 5000, For: time.Second}); got != want {
		t.Fatalf("%+v, want %+v", got, want)
	}
	z.edit(conf("hold = false\n"))
	z.until("nothing is held", func() bool { return d.Standing("a").Hold == broker.Hold{} })
	z.logged("changed=hold")
	if run := z.client("a").Run; *run != 1 {
		t.Errorf("it was restarted: run %d", *run)
	}
}

// max_body is what WELCOME says.
func TestMaxBodyKey(t *testing.T) {
	z := serve(t, "max_body = \"4KiB\"\n")
	if _, f := z.speak("unix", z.socket(), ""); f.Type != wire.TypeWelcome || f.ID != 4096 {
		t.Errorf("%+v", f)
	}
}

// Over TCP protocol 2 wants the cookie, which only zhxd's user can read unless there is a socket_group, and which goes with zhxd.
func TestCookie(t *testing.T) {
	z := serve(t, "# no clients\n")
	path := filepath.Join(z.dir, "run", "cookie")
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o600 {
		t.Fatal(fi.Mode(), err)
	}
	cookie, err := os.ReadFile(path)
	if err != nil || len(cookie) != 64 {
		t.Fatalf("%q %v", cookie, err)
	}
	_, line, _ := strings.Cut(z.log.String(), " tcp=")
	address := line[:strings.IndexAny(line, " )")]
	for said, want := range map[string]uint8{"": wire.TypeError, string(cookie[:63]): wire.TypeError, string(cookie): wire.TypeWelcome} {
		_, f := z.speak("tcp", address, said)
		if f.Type != want || want == wire.TypeError && f.Code != wire.ErrDenied {
			t.Errorf("with %q: %+v %s", said, f, f.Body)
		}
	}
	z.stop()
	if _, err := os.Stat(path); err == nil {
		t.Error("it is left behind")
	}
}

// The tap shows a message with its outcome, as many as were asked for.
func TestTap(t *testing.T) {
	z := serve(t, "# no clients\n")
	s, _ := z.speak("unix", z.socket(), "")
	s.say(wire.Frame{Type: wire.TypeRegister, From: "b"})
	s.hear(wire.TypeAck)
	seen := make(chan control.TapEvent, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- z.Tap(context.Background(), "b", 1, func(e control.TapEvent) error { seen <- e; return nil })
	}()
	z.logged("tapped")
	tick := time.NewTicker(20 * time.Millisecond) // the line comes a moment before the tap
	defer tick.Stop()
	for {
		if err := z.Send(context.Background(), control.SendRequest{Target: "b", Text: "hi"}); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-seen:
			if e.From != "zhxctl" || e.To != "b" || e.Text != "hi" || e.Size != 2 || e.Kind != "message" || e.Outcome != "written" {
				t.Errorf("%+v", e)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			return
		case <-tick.C:
		}
	}
}
