package broker

// This file is about ends: of connections while something is on its way, and what they leave behind.

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

var holding = Standing{Managed: true, State: wire.StateRestarting, Expects: true, Hold: Hold{Messages: 1000, Bytes: 10 << 20, For: time.Minute}}

// peerOf gives the connection that receives under a name.
func (w *world) peerOf(name string) *peer {
	w.t.Helper()
	c := w.names.find([]byte(name))
	if c == nil {
		w.t.Fatalf("nobody has %s", name)
	}
	return c.peer
}

// A publisher that found a subscription just before its connection ended leaves nothing accounted for.
func TestPublicationAfterTheEnd(t *testing.T) {
	w := start(t)
	a := w.talk(Unix, "a")
	a.ok(wire.Frame{Type: wire.TypeSubscribe, To: "t"})
	found := w.topics.of([]byte("t"))
	a.Close()
	w.until("it is gone", func() bool { return len(w.Peers()) == 0 })
	found[0].send(wire.AppendFrame(nil, &wire.Frame{Type: wire.TypePublish, To: "t", Body: make([]byte, 100)}), nil)
	if n := w.Counters().Waiting; n != 0 {
		t.Errorf("%d bytes wait for nobody", n)
	}
}

// What is queued while a finisher that was fetched has the lock for a moment is written all the same.
func TestFetchedFinisherWrites(t *testing.T) {
	w := start(t)
	k := w.talk(Unix, "k")
	p := w.peerOf("k")
	p.out.mu.Lock()
	p.out.park()
	p.out.fetch() // it goes for the lock
	p.say(&wire.Frame{Type: wire.TypeState, To: "x"})
	p.out.mu.Unlock()
	if f := k.next(); f.Type != wire.TypeState {
		t.Errorf("%+v", f)
	}
}

// A box in which nothing waits any more is forgotten, whatever the name.
func TestBoxesAreForgotten(t *testing.T) {
	w := start(t)
	s := w.talk(Unix, "s")
	for i := range 50 {
		s.say(wire.Frame{Type: wire.TypeMessage, To: fmt.Sprint("stranger", i), Code: wire.LevelHandled, Time: 20})
	}
	for range 50 {
		if f := s.next(); f.Type != wire.TypeError {
			t.Fatalf("%+v", f)
		}
	}
	for end := time.Now().Add(patience); ; s.quiet() {
		w.names.mu.RLock()
		n := len(w.names.boxes)
		w.names.mu.RUnlock()
		if n == 0 {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d boxes are left", n)
		}
	}
}

// Publications carry no descriptors: a subscriber would wait for them.
func TestPublicationWithDescriptors(t *testing.T) {
	w := start(t)
	a, p := w.talk(Unix, "a"), w.talk(Unix, "p")
	a.ok(wire.Frame{Type: wire.TypeSubscribe, To: "t"})
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p.id++
	f := wire.Frame{Type: wire.TypePublish, FDs: 1, Session: p.session, ID: p.id, To: "t", From: "p"}
	if _, _, err := p.Conn.(*net.UnixConn).WriteMsgUnix(wire.AppendFrame(nil, &f), unix.UnixRights(fd), nil); err != nil {
		t.Fatal(err)
	}
	p.wantError(p.id, wire.ErrNoFDs)
	a.quiet()
}

// What was held and waits for its turn, its receiver being there, does not expire; nor does what comes again.
func TestTurnIsNoHold(t *testing.T) {
	w := start(t)
	brief := holding
	brief.Hold.For = time.Second // ample for the receiver to come
	w.stands("r", brief)
	s := w.talk(Unix, "s")
	ids := []uint64{s.say(text("r", "0", wire.LevelHandled)), s.say(text("r", "1", wire.LevelHandled))}
	w.until("they are held", func() bool { return w.Counters().Held == 2 })
	r := w.talk(Unix, "r")
	r.wantMessage("0")
	time.Sleep(brief.Hold.For + 100*time.Millisecond) // it takes its time
	r.Close()
	w.until("it is gone", func() bool { return !w.Connected("r") })
	r = w.talk(Unix, "r")
	for i, id := range ids {
		r.handled(r.wantMessage(fmt.Sprint(i)))
		s.wantAck(id, wire.LevelHandled)
	}
	w.until("what was held is released", func() bool { c := w.Counters(); return c.Held == c.Released && c.Expired == 0 })
}

// A receiver of protocol 1 leaves with a full socket: what was to be handled is written or comes to the next one, each once and in
// order, though what was about to be written is still in the hand of who writes there.
func TestFullSocketEnds(t *testing.T) {
	const sent = 800
	for _, ends := range []bool{true, false} { // before the next one registers, or by that
		w := start(t)
		w.stands("r", holding)
		s := w.talk(Unix, "s")
		first := s.id + 1
		for i := range sent {
			s.say(text("r", fmt.Sprint(i), wire.LevelHandled))
		}
		w.until("they are held", func() bool { return w.Counters().Held == sent })
		one := w.dial(Unix)
		one.put(wire.Packet{Cmd: wire.CmdRegister, Target: "null", Source: "r"})
		w.full("r")
		out := &w.peerOf("r").out
		out.mu.Lock() // so it is while a sender waits
		t.Cleanup(out.mu.Unlock)
		if ends {
			one.Close()
			for other, end := w.dial(Unix), time.Now().Add(patience); w.Connected("r"); other.put(message("nobody", "", "")) {
				if time.Now().After(end) {
					t.Fatal("it still has its name")
				}
			}
		}
		r := w.talk(Unix, "r")
		f := r.next()
		written, err := strconv.Atoi(string(f.Body))
		if err != nil || written == 0 {
			t.Fatalf("%+v %q", f, f.Body)
		}
		r.handled(f)
		for i := written + 1; i < sent; i++ {
			r.handled(r.wantMessage(fmt.Sprint(i)))
		}
		for i := range sent {
			level := uint8(wire.LevelWritten)
			if i >= written {
				level = wire.LevelHandled
			}
			s.wantAck(first+uint64(i), level)
		}
		if c := w.Counters(); c.Held != c.Released+c.Expired {
			t.Errorf("%+v", c)
		}
	}
}

// full waits until what waits for a receiver has no room in its socket.
func (w *world) full(name string) {
	w.t.Helper()
	w.until("its socket is full", func() bool {
		if !w.Connected(name) {
			return false
		}
		o := &w.peerOf(name).out
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.parked != nil
	})
}

// A request that is cancelled while it waits for room in its receiver's socket does not get there.
func TestCancelledBeforeRoom(t *testing.T) {
	const sent = 60
	w := start(t)
	w.stands("r", holding)
	s, r := w.talk(Unix, "s"), w.talk(Unix, "")
	first := s.id + 1
	for range sent {
		s.say(wire.Frame{Type: wire.TypeRequest, To: "r", Body: make([]byte, 10<<10)})
	}
	w.until("they are held", func() bool { return w.Counters().Held == sent })
	registered := r.say(wire.Frame{Type: wire.TypeRegister, From: "r"})
	w.full("r")
	q := &w.peerOf("r").out.queue
	q.mu.Lock()
	next := q.hand.mail.id
	q.mu.Unlock()
	for id := first; id < first+sent; id++ {
		s.raw(wire.Frame{Type: wire.TypeCancel, Session: s.session, ID: id, To: "r"})
	}
	for id := next; id < first+sent; id++ {
		s.wantError(id, wire.ErrExpired)
	}
	s.quiet()
	r.wantAck(registered, wire.LevelAccepted)
	for _, kind := range []uint8{wire.TypeRequest, wire.TypeCancel} { // those that were written
		for id := first; id < next; id++ {
			if f := r.next(); f.Type != kind || f.ID != id {
				t.Fatalf("want %d of %d, got %+v", kind, id, f)
			}
		}
	}
	r.quiet()
	if c := w.Counters(); c.Held != c.Released+c.Expired {
		t.Errorf("%+v", c)
	}
	r.Close()
	w.until("it is gone", func() bool { return len(w.Peers()) == 1 })
	s.quiet() // it owed no answer
}

// A receiver's process has ended, and its reader has not noticed: messages wait for the next one, none is lost.
func TestEndNotNoticed(t *testing.T) {
	w := start(t)
	w.stands("r", holding)
	s, old := w.dial(Unix), w.receiver(Unix, "r")
	let := make(chan struct{})
	busy := make(chan struct{})
	w.gate.refuse(func(name string, use Use) error {
		if name == "slow" {
			close(busy)
			<-let
		}
		return nil
	})
	old.put(message("nobody", "slow", "x"))
	<-busy
	old.Close()
	for i := range 5 {
		s.put(message("r", "s", fmt.Sprint(i)))
	}
	w.until("they are read", func() bool { return w.Counters().Sent.Messages >= 6 && len(w.Peers()) == 2 })
	w.until("they wait", func() bool { return w.Counters().Undeliverable > 0 || w.peerOf("r").out.queue.waiting() > 0 })
	close(let)
	w.until("it is gone", func() bool { return !w.Connected("r") && len(w.Peers()) == 1 })
	r := w.talk(Unix, "r")
	for i := range 5 {
		f := r.next()
		if got, _, _ := bytes.Cut(f.Body, []byte{0}); string(got) != fmt.Sprint(i) {
			t.Fatalf("got %q, want %d", got, i)
		}
	}
}

// twins is a gate that stops the first who asks how "r" stands, while on is set.
type twins struct {
	*gate
	on          atomic.Bool
	stops, goOn chan struct{}
}

func (g *twins) Standing(name string) Standing {
	if name == "r" && g.on.CompareAndSwap(true, false) {
		close(g.stops)
		<-g.goOn
	}
	return g.gate.Standing(name)
}

// Two connections of one session, the older still being read, do not change the order of what is to be handled.
func TestOlderConnectionStillRead(t *testing.T) {
	g := &twins{stops: make(chan struct{}), goOn: make(chan struct{})}
	w := start(t, func(b *Broker) { g.gate = b.gate.(*gate); b.gate = g })
	w.stands("r", Standing{Managed: true, State: wire.StateReady, Expects: true, Hold: holding.Hold})
	r, s := w.talk(Unix, "r"), w.talk(Unix, "s")
	g.on.Store(true)
	id := s.say(text("r", "1", wire.LevelHandled))
	<-g.stops // between being known as new and waiting
	again := w.resume(Unix, "", s.session)
	for i := range 2 {
		m := text("r", fmt.Sprint(i+1), wire.LevelHandled)
		m.Session, m.ID = s.session, id+uint64(i)
		again.raw(m)
	}
	time.Sleep(50 * time.Millisecond) // what is wrong would happen here
	close(g.goOn)
	r.handled(r.wantMessage("1"))
	r.handled(r.wantMessage("2"))
}

// A message that is under way is known however many others of its session end meanwhile.
func TestUnderWayIsKnown(t *testing.T) {
	s := sessions{all: map[uint64]*party{}}
	p := &peer{}
	k, _, _, _ := s.enter(1, p)
	s.fresh(k, 1, "r")
	for id := uint64(2); id < 2000; id++ {
		s.fresh(k, id, "r")
		s.ended(1, id, handled, wire.LevelHandled)
	}
	if was, again := s.fresh(k, 1, "r"); !again || was.end != 0 {
		t.Errorf("%+v, %t", was, again)
	}
	if was, again := s.fresh(k, 1999-keptOutcomes/2, "r"); !again || was.end != handled {
		t.Errorf("%+v, %t", was, again)
	}
}

// A subscriber that reads is told all last values, however many may wait for it.
func TestManyLastValues(t *testing.T) {
	const topics = 100
	w := start(t)
	p := w.talk(Unix, "p")
	for i := range topics {
		p.ok(wire.Frame{Type: wire.TypePublish, To: fmt.Sprint("t.", i), Code: wire.LevelAccepted, Flags: wire.Retain, Body: []byte("x")})
	}
	for _, policy := range []uint8{wire.DropOldest, wire.DropNewest, wire.Disconnect} {
		a := w.talk(Unix, "")
		a.ok(wire.Frame{Type: wire.TypeSubscribe, To: "t.>", Code: policy, Time: 2})
		var got []string
		for range topics {
			f := a.next()
			if f.Type != wire.TypePublish || f.Flags != wire.Retain || slices.Contains(got, f.To) {
				t.Fatalf("policy %d: %+v after %d", policy, f, len(got))
			}
			got = append(got, f.To)
		}
	}
}

// Who was not given a message does not acknowledge it, though it knows its session.
func TestForgedAck(t *testing.T) {
	w := start(t)
	r, s, other := w.talk(Unix, "r"), w.talk(Unix, "s"), w.talk(Unix, "other")
	id := s.say(text("r", "x", wire.LevelHandled))
	f := r.wantMessage("x")
	other.handled(f)
	other.quiet()
	s.quiet()
	r.handled(f)
	s.wantAck(id, wire.LevelHandled)
}

// A connection with as many names as it may register sends as each of them.
func TestAllNamesSend(t *testing.T) {
	w := start(t)
	k := w.talk(Unix, "n0")
	for i := 1; i < maxNames; i++ {
		k.ok(wire.Frame{Type: wire.TypeRegister, From: fmt.Sprint("n", i)})
	}
	k.wantError(k.say(wire.Frame{Type: wire.TypeRegister, From: "more"}), wire.ErrDenied)
	for i := range maxNames {
		k.say(wire.Frame{Type: wire.TypeMessage, To: "n0", From: fmt.Sprint("n", i)})
		k.wantMessage("")
	}
}

// Who watches a name later is told when it comes back from then on.
func TestWatchedLater(t *testing.T) {
	w := start(t)
	for _, back := range []time.Duration{time.Second, 200 * time.Millisecond} {
		w.gate.mu.Lock() // time passes: nothing else changes
		w.gate.standing = map[string]Standing{"r": {Managed: true, State: wire.StateRestarting, Back: back}}
		w.gate.mu.Unlock()
		k := w.talk(Unix, "")
		k.say(wire.Frame{Type: wire.TypeWatch, To: "r"})
		if f, want := k.next(), fmt.Sprintf(`{"back_in_ms":%d}`, back.Milliseconds()); string(f.Body) != want {
			t.Errorf("%s, want %s", f.Body, want)
		}
	}
}

// Whose a session is: its user's, and if he was not known, whoever's comes back with it.
func TestSessionOfUser(t *testing.T) {
	for _, c := range []struct {
		purpose    string
		was, comes int // uid
		ok         bool
	}{
		{"the same user", 1000, 1000, true},
		{"another", 1000, 1001, false},
		{"one who is not known takes none", 1000, -1, false},
		{"the connection over TCP ended before it was identified", -1, 1000, true},
	} {
		s := sessions{all: map[uint64]*party{}}
		p := &peer{cred: Cred{UID: c.was}}
		k, _, _, _ := s.enter(1, p)
		s.fresh(k, 1, "r") // so that it is kept
		s.leave(k, p)
		if _, _, _, ok := s.enter(1, &peer{cred: Cred{UID: c.comes}}); ok != c.ok {
			t.Errorf("%s: %t", c.purpose, ok)
		}
	}
}

// A sender that has missed the word that its message was handled is waited for, a moment, before the next one is given: another
// zhxd would get both again, and only the first of them marked.
func TestNextWaitsForTheSender(t *testing.T) {
	w := start(t)
	r, s := w.talk(Unix, "r"), w.talk(Unix, "s")
	first := s.say(text("r", "1", wire.LevelHandled))
	second := s.say(text("r", "2", wire.LevelHandled))
	f := r.wantMessage("1")
	s.Close()
	w.until("it is gone", func() bool { return w.sessions.at(s.session) == nil })
	r.handled(f)
	r.quiet()
	again := w.resume(Unix, "", s.session)
	r.handled(r.wantMessage("2"))
	again.wantAck(second, wire.LevelHandled)
	m := text("r", "1", wire.LevelHandled)
	m.Session, m.ID = s.session, first
	again.raw(m)
	again.wantAck(first, wire.LevelHandled)
}

// One that never comes back is not waited for longer than graceFor.
func TestNextGoesOnWithoutTheSender(t *testing.T) {
	w := start(t)
	r, s := w.talk(Unix, "r"), w.talk(Unix, "s")
	s.say(text("r", "1", wire.LevelHandled))
	s.say(text("r", "2", wire.LevelHandled))
	f := r.wantMessage("1")
	s.Close()
	w.until("it is gone", func() bool { return w.sessions.at(s.session) == nil })
	r.handled(f)
	r.wantMessage("2")
}

// A client that never takes its answers is disconnected; what they took is given back.
func TestAnswersNotTaken(t *testing.T) {
	w := start(t)
	s := w.talk(Unix, "s")
	bad := wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, Code: wire.LevelAccepted, Session: s.session, ID: 9, To: "nobody"})
	bad = bytes.Repeat(bad, 1000)
	s.SetWriteDeadline(time.Now().Add(patience))
	for {
		if _, err := s.Write(bad); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("still connected")
			}
			break
		}
	}
	w.until("it is forgotten", func() bool { return len(w.Peers()) == 0 && w.load.Load() == 0 && w.Counters().Untold > 0 })
}
