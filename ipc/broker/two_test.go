package broker

// This file is protocol 2 as a client sees it, frame by frame.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// talker is a client of protocol 2.
type talker struct {
	*client
	session, id uint64
	name        string
}

var sessionsMade uint64

// talk connects and says HELLO; with a name, it registers it.
func (w *world) talk(tr Transport, name string) *talker {
	w.t.Helper()
	sessionsMade++
	return w.resume(tr, name, sessionsMade)
}

// resume is talk with a session that was there before.
func (w *world) resume(tr Transport, name string, session uint64) *talker {
	w.t.Helper()
	k := &talker{client: w.dial(tr), session: session, name: name}
	hello := wire.Frame{Type: wire.TypeHello, Flags: wire.TakesFDs, Session: k.session}
	if tr == TCP {
		hello.Flags, hello.Body = 0, []byte("cookie")
	}
	k.Write(wire.AppendFrame([]byte(wire.Preamble), &hello))
	if f := k.next(); f.Type != wire.TypeWelcome || f.Code != wire.Version || f.Session == 0 || f.ID != wire.BodyDefault {
		w.t.Fatalf("welcome: %+v", f)
	}
	if name != "" {
		k.ok(wire.Frame{Type: wire.TypeRegister, From: name})
	}
	return k
}

// say sends a frame of this session; it gives the id.
func (k *talker) say(f wire.Frame) uint64 {
	k.t.Helper()
	k.id++
	f.Session, f.ID = k.session, k.id
	if f.From == "" {
		f.From = k.name
	}
	k.raw(f)
	return k.id
}

func (k *talker) raw(f wire.Frame) {
	k.t.Helper()
	if _, err := k.Write(wire.AppendFrame(nil, &f)); err != nil {
		k.t.Fatal(err)
	}
}

// ok says a frame and wants it acknowledged.
func (k *talker) ok(f wire.Frame) {
	k.t.Helper()
	k.wantAck(k.say(f), wire.LevelAccepted)
}

func (k *talker) wantAck(id uint64, level uint8) {
	k.t.Helper()
	if f := k.next(); f.Type != wire.TypeAck || f.Session != k.session || f.ID != id || f.Code != level {
		k.t.Fatalf("want the ACK of %d, level %d; got %+v %q", id, level, f, f.Body)
	}
}

func (k *talker) wantError(id uint64, code uint8) wire.Frame {
	k.t.Helper()
	f := k.next()
	if f.Type != wire.TypeError || f.Session != k.session || f.ID != id || f.Code != code {
		k.t.Fatalf("want ERROR %d (%s) of %d; got %+v %q", code, words[code], id, f, f.Body)
	}
	return f
}

// wantMessage wants a message with that body.
func (k *talker) wantMessage(body string) wire.Frame {
	k.t.Helper()
	f := k.next()
	if (f.Type != wire.TypeMessage && f.Type != wire.TypeRequest) || string(f.Body) != body {
		k.t.Fatalf("want the message %q; got %+v %q", body, f, f.Body)
	}
	return f
}

// handled acknowledges a message.
func (k *talker) handled(f wire.Frame) {
	k.t.Helper()
	k.raw(wire.Frame{Type: wire.TypeAck, Code: wire.LevelHandled, Session: f.Session, ID: f.ID})
}

func (k *talker) next() wire.Frame {
	k.t.Helper()
	f, err := k.read()
	if err != nil {
		k.t.Fatalf("reading a frame: %v", err)
	}
	return f
}

func (k *talker) read() (wire.Frame, error) {
	k.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, wire.FrameHeader)
	if _, err := io.ReadFull(k.Conn, b); err != nil {
		return wire.Frame{}, err
	}
	size, err := wire.FrameSize(b)
	if err != nil {
		return wire.Frame{}, err
	}
	b = append(b, make([]byte, size-len(b))...)
	if _, err := io.ReadFull(k.Conn, b[wire.FrameHeader:]); err != nil {
		return wire.Frame{}, err
	}
	return wire.ParseFrame(b)
}

// quiet wants nothing to have come: whatever was sent before a frame is answered before it.
func (k *talker) quiet() {
	k.t.Helper()
	k.wantError(k.say(wire.Frame{Type: wire.TypeMessage, To: "nobody-at-all"}), wire.ErrNoName)
}

func text(to, body string, level uint8) wire.Frame {
	return wire.Frame{Type: wire.TypeMessage, To: to, Code: level, Body: []byte(body)}
}

// Each level's answer, on both transports.
func TestLevels(t *testing.T) {
	for _, tr := range transports {
		w := start(t)
		r, s := w.talk(tr, "a-receiver-with-a-long-name"), w.talk(tr, "sender")
		s.say(text(r.name, "none", wire.LevelNone))
		if f := r.wantMessage("none"); f.From != "sender" || f.To != r.name || f.Session != s.session || f.ID != s.id {
			t.Errorf("%+v", f)
		}
		s.wantAck(s.say(text(r.name, "accepted", wire.LevelAccepted)), wire.LevelAccepted)
		s.wantAck(s.say(text(r.name, "written", wire.LevelWritten)), wire.LevelWritten)
		r.wantMessage("accepted")
		r.wantMessage("written")
		first, second := s.say(text(r.name, "1", wire.LevelHandled)), s.say(text(r.name, "2", wire.LevelHandled))
		f := r.wantMessage("1")
		r.quiet() // the second waits for the first
		r.handled(f)
		s.wantAck(first, wire.LevelHandled)
		r.handled(r.wantMessage("2"))
		s.wantAck(second, wire.LevelHandled)
		s.wantError(s.say(text("nobody", "x", wire.LevelNone)), wire.ErrNoName)
		s.wantError(s.say(text("a b", "x", wire.LevelNone)), wire.ErrBad)
		s.wantError(s.say(wire.Frame{Type: wire.TypeMessage, To: r.name, Code: 4}), wire.ErrBad)
		s.wantError(s.say(wire.Frame{Type: 99}), wire.ErrBad)
		s.wantError(s.say(text(r.name, strings.Repeat("x", wire.BodyDefault+1), wire.LevelNone)), wire.ErrTooBig)
		big := strings.Repeat("b", wire.BodyDefault)
		go s.say(text(r.name, big, wire.LevelNone))
		r.wantMessage(big)
	}
}

// One namespace: packets reach clients of protocol 2 and frames those of protocol 1, where they fit.
func TestBothProtocols(t *testing.T) {
	w := start(t)
	one, two := w.receiver(TCP, "one"), w.talk(Unix, "two")
	one.put(message("two", "one", "to two"))
	if f := two.next(); f.Flags != wire.FromV1 || f.From != "one" || len(f.Body) != wire.MsgSize || !strings.HasPrefix(string(f.Body), "to two\x00") {
		t.Fatalf("%+v", f)
	}
	two.say(text("one", "to one", wire.LevelNone))
	if p := one.get(); p.Text() != "to one" || p.Source != "two" {
		t.Fatalf("%+v", p)
	}
	two.wantAck(two.say(text("one", "handled", wire.LevelHandled)), wire.LevelWritten)
	one.want("handled")
	two.wantError(two.say(text("one", strings.Repeat("x", 513), 0)), wire.ErrTooBig)
	two.wantError(two.say(wire.Frame{Type: wire.TypeRequest, To: "one"}), wire.ErrUnanswered)
	// A stretch of which the middle does not fit.
	var b []byte
	for _, body := range []string{"a", strings.Repeat("x", 600), "c"} {
		two.id++
		b = wire.AppendFrame(b, &wire.Frame{Type: wire.TypeMessage, Session: two.session, ID: two.id, To: "one", From: "two", Body: []byte(body)})
	}
	two.Write(b)
	one.want("a")
	one.want("c")
	two.wantError(two.id-1, wire.ErrTooBig)
}

// What ends a connection of protocol 2, and what does not.
func TestHandshake(t *testing.T) {
	hello := func(f wire.Frame) string { return wire.Preamble + string(wire.AppendFrame(nil, &f)) }
	for _, c := range []struct {
		purpose string
		tr      Transport
		bytes   string
		says    uint8 // 0: closed without a word
	}{
		{"a preamble mangled by a text channel", Unix, "\xa7ZHX\n\x02\x00\x00", 0},
		{"version 1 was never", Unix, "\xa7ZHX\r\n\x01\x00", 0},
		{"no HELLO", Unix, hello(wire.Frame{Type: wire.TypeWatch, Session: 1, To: "x"}), 0},
		{"a message before HELLO", Unix, hello(text("x", "y", 0)), 0},
		{"session 0", Unix, hello(wire.Frame{Type: wire.TypeHello}), wire.ErrDenied},
		{"TCP without the cookie", TCP, hello(wire.Frame{Type: wire.TypeHello, Session: 1}), wire.ErrDenied},
		{"a size that cannot be", Unix, wire.Preamble + "\x1f\x00\x00\x00" + strings.Repeat("\x00", 28), 0},
		{"a size beyond all limits", Unix, wire.Preamble + "\xff\xff\xff\xff" + strings.Repeat("\x00", 28), 0},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			w := start(t)
			k := &talker{client: w.dial(c.tr), session: 1}
			io.WriteString(k, c.bytes)
			if c.says != 0 {
				if f := k.next(); f.Type != wire.TypeError || f.Code != c.says {
					t.Errorf("%+v", f)
				}
			}
			if _, err := k.read(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("not closed: %v", err)
			}
		})
	}
	t.Run("byte by byte", func(t *testing.T) {
		w := start(t)
		r := w.talk(Unix, "r")
		k := &talker{client: w.dial(Unix), session: 1 << 40} // none of talk's
		for _, b := range []byte(hello(wire.Frame{Type: wire.TypeHello, Session: k.session}) + string(wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, Session: k.session, To: "r", Body: []byte("torn")}))) {
			k.Write([]byte{b})
		}
		r.wantMessage("torn")
	})
}

// A request and its reply; a receiver that ends; a reply that nobody asked for; a cancellation.
func TestRequests(t *testing.T) {
	w := start(t)
	r, s := w.talk(Unix, "r"), w.talk(TCP, "")
	ask := func(body string) uint64 {
		return s.say(wire.Frame{Type: wire.TypeRequest, To: "r", Time: 1000, Body: []byte(body)})
	}
	id := ask("?")
	f := r.wantMessage("?")
	r.raw(wire.Frame{Type: wire.TypeReply, Session: f.Session, ID: f.ID, From: "r", Body: []byte("!")})
	if got := s.next(); got.Type != wire.TypeReply || got.ID != id || string(got.Body) != "!" || got.From != "r" {
		t.Fatalf("%+v", got)
	}
	r.raw(wire.Frame{Type: wire.TypeReply, Session: f.Session, ID: f.ID, From: "r"}) // again
	if got := r.next(); got.Type != wire.TypeError || got.Code != wire.ErrGone {
		t.Fatalf("%+v", got)
	}
	id = ask("cancelled")
	r.wantMessage("cancelled")
	s.raw(wire.Frame{Type: wire.TypeCancel, Session: s.session, ID: id, To: "r"})
	if got := r.next(); got.Type != wire.TypeCancel || got.ID != id || got.Session != s.session {
		t.Fatalf("%+v", got)
	}
	id = ask("never answered")
	r.wantMessage("never answered")
	r.Close()
	s.wantError(id, wire.ErrGone)
	s.wantError(ask("nobody there"), wire.ErrNoName)
}

// While the client restarts, messages of every kind wait for it, in order, and then come before anything newer.
func TestHold(t *testing.T) {
	restarting := Standing{Managed: true, State: wire.StateRestarting, Expects: true, Back: time.Second, Hold: Hold{Messages: 6, Bytes: 10000, For: time.Minute}}
	w := start(t)
	w.stands("r", restarting)
	one, s := w.dial(Unix), w.talk(Unix, "s")
	one.put(message("r", "one", "1"))
	w.until("it is held", func() bool { return w.Counters().Held == 1 })
	s.say(text("r", "2", wire.LevelNone))
	s.wantAck(s.say(text("r", "3", wire.LevelAccepted)), wire.LevelAccepted)
	written := s.say(text("r", "4", wire.LevelWritten))
	handled := s.say(text("r", "5", wire.LevelHandled))
	s.say(wire.Frame{Type: wire.TypeRequest, To: "r", Body: []byte("6")})
	s.wantError(s.say(text("r", "7", wire.LevelNone)), wire.ErrFull)
	if f := s.wantError(s.say(wire.Frame{Type: wire.TypeMessage, To: "r", Flags: wire.NoHold}), wire.ErrRestarting); f.Time != 1000 {
		t.Errorf("back in %d ms", f.Time)
	}
	r := w.talk(Unix, "r")
	one.put(message("r", "one", "newer"))
	for _, body := range []string{"1", "2", "3", "4", "5", "6", "newer"} {
		f := r.next()
		if got, _, _ := bytes.Cut(f.Body, []byte{0}); string(got) != body || f.Flags&wire.Repeat != 0 {
			t.Fatalf("got %+v %q, want %q", f, got, body)
		}
		if body == "5" {
			r.handled(f)
		}
	}
	s.wantAck(written, wire.LevelWritten)
	s.wantAck(handled, wire.LevelHandled)
	w.until("all are accounted for", func() bool { c := w.Counters(); return c.Held == 6 && c.Released == 6 && c.Expired == 0 })
}

// What waits is refused when its time is over, or when the client turns out not to come back.
func TestHoldEnds(t *testing.T) {
	w := start(t)
	s := w.talk(Unix, "s")
	standing := Standing{Managed: true, State: wire.StateRestarting, Expects: true, Hold: Hold{Messages: 9, Bytes: 10000, For: time.Minute}}
	w.stands("r", standing)
	brief := s.say(wire.Frame{Type: wire.TypeMessage, To: "r", Time: 20})
	s.wantError(brief, wire.ErrExpired)
	id := s.say(text("r", "x", wire.LevelHandled))
	w.until("it is held", func() bool { return w.Counters().Held == 2 })
	for _, c := range []struct {
		state uint8
		code  uint8
	}{{wire.StateFailed, wire.ErrFailed}, {wire.StateStopped, wire.ErrStopped}} {
		standing.State, standing.Expects = c.state, false
		w.stands("r", standing)
		if c.state == wire.StateFailed {
			s.wantError(id, c.code)
		}
		s.wantError(s.say(text("r", "x", wire.LevelNone)), c.code)
	}
	standing.State, standing.Expects, standing.Hold = wire.StateRestarting, true, Hold{}
	w.stands("r", standing)
	s.wantError(s.say(text("r", "x", wire.LevelNone)), wire.ErrRestarting)
	standing.Hold = Hold{Messages: 9, Bytes: 10000, For: 20 * time.Millisecond}
	w.stands("r", standing)
	s.wantError(s.say(text("r", "x", wire.LevelNone)), wire.ErrExpired)
	if c := w.Counters(); c.Held != 3 || c.Held != c.Expired || c.Released != 0 {
		t.Errorf("%+v", c)
	}
}

// A receiver that ends while it has a message to be handled is given it again, marked, and before what came after it.
func TestHandledComesAgain(t *testing.T) {
	w := start(t)
	w.stands("r", Standing{Managed: true, State: wire.StateReady, Expects: true, Hold: Hold{Messages: 9, Bytes: 10000, For: time.Minute}})
	r, s := w.talk(Unix, "r"), w.talk(Unix, "s")
	var ids []uint64
	for i := range 3 {
		ids = append(ids, s.say(text("r", fmt.Sprint(i), wire.LevelHandled)))
	}
	r.wantMessage("0")
	r.Close()
	w.until("it is gone", func() bool { return !w.Connected("r") })
	ids = append(ids, s.say(text("r", "3", wire.LevelHandled)))
	r = w.talk(Unix, "r")
	for i, id := range ids {
		f := r.wantMessage(fmt.Sprint(i))
		if repeat := f.Flags&wire.Repeat != 0; repeat != (i == 0) {
			t.Errorf("message %d: repeat %t", i, repeat)
		}
		r.handled(f)
		s.wantAck(id, wire.LevelHandled)
	}
}

// A sender that lost its connection sends again what it has no answer for; the broker knows what became of that.
func TestSentAgain(t *testing.T) {
	w := start(t)
	r, s := w.talk(Unix, "r"), w.talk(Unix, "s")
	done, waiting := s.say(text("r", "done", wire.LevelHandled)), s.say(text("r", "waiting", wire.LevelHandled))
	refused := s.say(text("nobody", "x", wire.LevelHandled))
	s.wantError(refused, wire.ErrNoName)
	r.handled(r.wantMessage("done"))
	f := r.wantMessage("waiting")
	s.Close()
	again := w.resume(TCP, "s", s.session) // of the same user
	for id, m := range map[uint64]wire.Frame{done: text("r", "done", wire.LevelHandled), refused: text("nobody", "x", wire.LevelHandled), waiting: text("r", "waiting", wire.LevelHandled)} {
		m.Session, m.ID, m.From = s.session, id, "s"
		again.raw(m)
		switch id {
		case done:
			again.wantAck(done, wire.LevelHandled)
		case refused:
			again.wantError(refused, wire.ErrNoName)
		}
	}
	r.quiet()
	r.handled(f)
	again.wantAck(waiting, wire.LevelHandled)
}

// Publications reach each connection once; a last value is told to who subscribes later; a slow one loses by its policy.
func TestTopics(t *testing.T) {
	w := start(t)
	a, b, p := w.talk(Unix, "a"), w.talk(TCP, ""), w.talk(Unix, "p")
	publish := func(topic, body string, flags uint8) {
		p.ok(wire.Frame{Type: wire.TypePublish, To: topic, Code: wire.LevelAccepted, Flags: flags, Body: []byte(body)})
	}
	want := func(k *talker, topic, body string, flags uint8) {
		t.Helper()
		if f := k.next(); f.Type != wire.TypePublish || f.To != topic || string(f.Body) != body || f.Flags != flags || f.From != "p" {
			t.Fatalf("%+v %q", f, f.Body)
		}
	}
	a.ok(wire.Frame{Type: wire.TypeSubscribe, To: "temp.*"})
	a.ok(wire.Frame{Type: wire.TypeSubscribe, To: "temp.>"})
	publish("temp.cpu", "41", wire.Retain)
	publish("temp.cpu.0", "42", 0)
	publish("fan", "1", wire.Retain)
	want(a, "temp.cpu", "41", 0)
	want(a, "temp.cpu.0", "42", 0)
	b.ok(wire.Frame{Type: wire.TypeSubscribe, To: "*"})
	want(b, "fan", "1", wire.Retain)
	publish("fan", "", wire.Retain) // no last value any more
	want(b, "fan", "", 0)
	a.ok(wire.Frame{Type: wire.TypeUnsubscribe, To: "temp.*"})
	a.ok(wire.Frame{Type: wire.TypeUnsubscribe, To: "temp.>"})
	a.ok(wire.Frame{Type: wire.TypeSubscribe, To: ">"})
	want(a, "temp.cpu", "41", wire.Retain)
	p.wantError(p.say(wire.Frame{Type: wire.TypePublish, To: "temp.*", Body: []byte("x")}), wire.ErrBad)
	a.wantError(a.say(wire.Frame{Type: wire.TypeSubscribe, To: "a.>.b"}), wire.ErrBad)
	a.quiet()
}

func TestSlowSubscriber(t *testing.T) {
	const limit, sent = 8, 500
	body := bytes.Repeat([]byte("x"), 4000)
	for _, c := range []struct {
		purpose string
		policy  uint8
	}{{"oldest", wire.DropOldest}, {"newest", wire.DropNewest}, {"latest", wire.LatestOnly}, {"disconnect", wire.Disconnect}} {
		t.Run(c.purpose, func(t *testing.T) {
			w := start(t)
			slow, p := w.talk(Unix, ""), w.talk(Unix, "p")
			slow.ok(wire.Frame{Type: wire.TypeSubscribe, To: "n", Code: c.policy, Time: limit})
			for i := range sent {
				p.ok(wire.Frame{Type: wire.TypePublish, To: "n", Code: wire.LevelAccepted, Body: append([]byte(fmt.Sprintf("%03d ", i)), body...)})
			}
			if c.policy == wire.Disconnect {
				w.logged("slow subscriber", 1)
				for {
					if _, err := slow.read(); err != nil {
						break
					}
				}
				if n := w.Counters().Gaps; n[wire.Disconnect] == 0 || n != [...]int64{wire.Disconnect: n[wire.Disconnect]} {
					t.Errorf("counted %d", n)
				}
				return
			}
			next, lost, gaps := 0, 0, 0
			for next < sent {
				f := slow.next()
				if f.Type == wire.TypeGap {
					lost, next, gaps = lost+int(f.ID), next+int(f.ID), gaps+1
					continue
				}
				if got := string(f.Body[:3]); got != fmt.Sprintf("%03d", next) {
					t.Fatalf("got %s, want %03d (%d lost)", got, next, lost)
				}
				next++
			}
			// More than one, where some are lost already while the subscriber's own reader holds the socket for an answer.
			if gaps == 0 || gaps > 3 || int64(lost) != w.Counters().Gaps[c.policy] {
				t.Errorf("%d gaps, %d lost, counted %d", gaps, lost, w.Counters().Gaps)
			}
		})
	}
}

// Asking for a state and being told of the next are one.
func TestPresence(t *testing.T) {
	w := start(t)
	k := w.talk(Unix, "")
	want := func(name string, state uint8) map[string]any {
		t.Helper()
		f := k.next()
		var details map[string]any
		if f.Type != wire.TypeState || f.To != name || f.Code != state || json.Unmarshal(f.Body, &details) != nil {
			t.Fatalf("%+v %q", f, f.Body)
		}
		return details
	}
	k.say(wire.Frame{Type: wire.TypeWatch, To: "foreign"})
	want("foreign", wire.StateAbsent)
	f := w.talk(Unix, "foreign")
	want("foreign", wire.StateReady)
	f.Close()
	want("foreign", wire.StateAbsent)
	w.stands("r", Standing{Managed: true, State: wire.StateReady})
	k.say(wire.Frame{Type: wire.TypeWatch, To: "r"})
	want("r", wire.StateReady)
	w.stands("r", Standing{Managed: true, State: wire.StateRestarting, Back: time.Second, Details: map[string]any{"signal": "SIGKILL"}})
	if d := want("r", wire.StateRestarting); d["signal"] != "SIGKILL" || d["back_in_ms"] != 1000.0 {
		t.Errorf("%v", d)
	}
	w.Changed("r") // nothing has
	k.ok(wire.Frame{Type: wire.TypeUnwatch, To: "r"})
	w.stands("r", Standing{Managed: true, State: wire.StateReady})
	k.quiet()
}

// A newer connection takes a name over; the older one is told, and then closed.
func TestTakenOver(t *testing.T) {
	w := start(t)
	old := w.talk(Unix, "r")
	w.talk(Unix, "r")
	if f := old.next(); f.Type != wire.TypeError || f.Code != wire.ErrTaken || f.To != "r" {
		t.Errorf("%+v", f)
	}
	if _, err := old.read(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("not closed: %v", err)
	}
}

// The configuration's word: told to the sender, counted, and asked again when it changes.
func TestPolicy(t *testing.T) {
	w := start(t)
	w.receiver(Unix, "r")
	s, one := w.talk(Unix, "s"), w.dial(Unix)
	w.gate.mu.Lock()
	w.gate.forbid = func(source string, what Action, target string) error { return errors.New("s may_send_to has no r") }
	w.gate.mu.Unlock()
	if f := s.wantError(s.say(text("r", "x", 0)), wire.ErrDenied); string(f.Body) != "s may_send_to has no r" {
		t.Errorf("%q", f.Body)
	}
	one.put(message("r", "one", "x"))
	w.until("both are counted", func() bool { return w.Counters().Refused == 2 })
	w.gate.mu.Lock()
	w.gate.forbid = nil
	w.gate.mu.Unlock()
	w.Renew()
	s.wantAck(s.say(text("r", "x", wire.LevelWritten)), wire.LevelWritten)
}

// Descriptors go with their message to who takes them, and nobody leaks one.
func TestDescriptors(t *testing.T) {
	w := start(t)
	before := openFiles(t)
	r, s, tcp := w.talk(Unix, "r"), w.talk(Unix, "s"), w.talk(TCP, "t")
	send := func(f wire.Frame, n int) uint64 {
		t.Helper()
		s.id++
		f.Session, f.ID, f.From, f.FDs = s.session, s.id, "s", uint8(n)
		var fds []int
		for range n {
			fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			unix.Write(fd, f.Body)
			fds = append(fds, fd)
		}
		if _, _, err := s.Conn.(*net.UnixConn).WriteMsgUnix(wire.AppendFrame(nil, &f), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
		return s.id
	}
	for n := 1; n <= wire.FDsMax; n++ {
		s.wantAck(send(text("r", "with", wire.LevelWritten), n), wire.LevelWritten)
		s.say(text("r", "without", wire.LevelNone))
		b, oob := make([]byte, 4096), make([]byte, 256)
		r.SetReadDeadline(time.Now().Add(patience))
		got, oobn, _, _, err := r.Conn.(*net.UnixConn).ReadMsgUnix(b[:wire.FrameHeader+1+1+4], oob)
		if err != nil {
			t.Fatal(err)
		}
		f, err := wire.ParseFrame(b[:got])
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 || string(f.Body) != "with" || int(f.FDs) != n {
			t.Fatalf("%v %+v %d messages", err, f, len(messages))
		}
		fds, _ := unix.ParseUnixRights(&messages[0])
		if len(fds) != n {
			t.Fatalf("%d descriptors of %d", len(fds), n)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		r.wantMessage("without")
	}
	s.wantError(send(text("t", "x", wire.LevelNone), 1), wire.ErrNoFDs)
	s.wantError(send(text("r", "x", wire.LevelHandled), 1), wire.ErrNoFDs)
	w.receiver(Unix, "one")
	s.wantError(send(text("one", "x", wire.LevelNone), 2), wire.ErrNoFDs)
	w.stands("away", Standing{Managed: true, State: wire.StateRestarting, Expects: true, Hold: Hold{Messages: 1, Bytes: 1000, For: time.Minute}})
	s.wantError(send(text("away", "x", wire.LevelNone), 1), wire.ErrRestarting)
	tcp.Close()
	r.Close()
	s.Close()
	w.until("all are gone", func() bool { return len(w.Peers()) == 1 })
	if n := w.Counters().InTransit; n != 0 {
		t.Errorf("%d descriptors are said to be on their way", n)
	}
	if after := openFiles(t); after > before+2 { // of the receiver of protocol 1, and its client
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A frame that is begun and not ended is given up; its memory is accounted for.
func TestFrameBegun(t *testing.T) {
	w := start(t)
	k := w.talk(Unix, "k")
	whole := wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, Session: k.session, ID: 9, To: "k", From: "k", Body: make([]byte, 200<<10)})
	k.Write(whole[:100<<10])
	w.until("memory is kept", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.partial == len(whole) })
	go k.Write(whole[100<<10:])
	k.wantMessage(string(make([]byte, 200<<10)))
	w.until("and given back", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.partial == 0 && w.users[os.Getuid()].partial.Load() == 0
	})
	var begun []*client // and so are beginnings
	for _, part := range []string{wire.Preamble[:5], wire.Preamble, wire.Preamble + "\x20"} {
		c := w.dial(Unix)
		io.WriteString(c, part)
		begun = append(begun, c)
	}
	k.Write(whole[:5000])
	started := time.Now()
	if _, err := k.read(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) || time.Since(started) < partialMax-100*time.Millisecond {
		t.Errorf("closed after %s: %v", time.Since(started), err)
	}
	w.until("and given back", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.partial == 0 })
	for _, c := range begun {
		c.closed()
	}
}

// A tap sees what passes, and is told how much it has missed; without one nothing is looked at.
func TestTap(t *testing.T) {
	w := start(t)
	w.receiver(Unix, "r")
	s := w.talk(Unix, "s")
	events := w.Tap(t.Context(), "r")
	s.wantAck(s.say(text("r", "seen", wire.LevelWritten)), wire.LevelWritten)
	e := <-events
	if e.From == "r" { // what it wrote to itself to know that it is registered: it may read it before a tap is looked for
		e = <-events
	}
	if e.From != "s" || e.To != "r" || string(e.Body) != "seen" || e.Outcome != "written" || e.Kind != "message" || e.Lost != 0 {
		t.Errorf("%+v", e)
	}
	const more = 7
	events = w.Tap(t.Context(), "a.b")
	publish := func() {
		s.wantAck(s.say(wire.Frame{Type: wire.TypePublish, To: "a.b", Code: wire.LevelAccepted}), wire.LevelAccepted)
	}
	for range cap(events) + more {
		publish()
	}
	for range cap(events) {
		<-events
	}
	publish()
	if e := <-events; e.Lost != more {
		t.Errorf("%d lost, want %d", e.Lost, more)
	}
}
