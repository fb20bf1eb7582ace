package broker

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"zhx/ipc/wire"
)

// Both listeners are one namespace: each transport's client talks to each transport's.
func TestTransportsTalk(t *testing.T) {
	for _, from := range transports {
		for _, to := range transports {
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
				w := start(t)
				r, s := w.receiver(to, "client2"), w.dial(from)
				// What C leaves behind a NUL and in the padding goes along: byte for byte.
				b := encode(t, message("client2", "client1", "hello"))
				copy(b[5:], "garbage")
				copy(b[38:], "zz")
				b[551] = 0xff
				s.Write(b)
				got := make([]byte, wire.PacketSize)
				if _, err := r.Read(got); err != nil || !bytes.Equal(got, b) {
					t.Errorf("received %q, %v; sent %q", got, err, b)
				}
				if line := w.logged("forwarded source=client1", 1); line != "INFO forwarded source=client1 target=client2" {
					t.Error(line)
				}
			})
		}
	}
}

// A packet may come in any pieces, and any number of packets in one.
func TestTornAndGlued(t *testing.T) {
	for _, tr := range transports {
		t.Run(string(tr), func(t *testing.T) {
			w := start(t)
			r, s := w.receiver(Unix, "client2"), w.dial(tr)
			b := encode(t, message("client2", "client1", "one"), message("client2", "client1", "two"), message("client2", "client1", "three"))
			for _, cut := range []int{1, 13, 551, 552, 553, 1105} {
				s.Write(b[:cut])
				w.Settle(patience, func(any) bool { return true }) // the piece is read by itself
				s.Write(b[cut:])
				r.want("one")
				r.want("two")
				r.want("three")
			}
		})
	}
}

// A newer registration wins; the older connection is closed, and what it sent before is still delivered.
func TestNewerRegistrationWins(t *testing.T) {
	for _, tr := range transports {
		t.Run(string(tr), func(t *testing.T) {
			w := start(t)
			other, older := w.receiver(Unix, "other"), w.receiver(tr, "client1")
			older.put(message("other", "client1", "from the older"))
			newer := w.receiver(Unix, "client1")
			older.closed()
			other.want("from the older")
			other.put(message("client1", "other", "who?"))
			newer.want("who?")
			w.logged("receiver replaced", 1)
			if c := w.Counters(); c.Replaced != 1 || c.Undeliverable != 0 {
				t.Errorf("%+v", c)
			}
		})
	}
}

// A closed connection frees its names at once, and the next message to them is undeliverable.
func TestCloseFreesNames(t *testing.T) {
	for _, tr := range transports {
		t.Run(string(tr), func(t *testing.T) {
			w := start(t)
			c := w.receiver(tr, "client1")
			c.put(wire.Packet{Cmd: wire.CmdRegister, Source: "second"}, message("second", "client1", "both"))
			c.want("both")
			if !w.Connected("client1") || !w.Connected("second") {
				t.Fatal("one connection may receive under two names")
			}
			c.Close()
			w.until("the names are free", func() bool { return !w.Connected("client1") && !w.Connected("second") })
			w.until("the peer is gone", func() bool { return len(w.Peers()) == 0 })
		})
	}
}

// What a sender wrote before it closed is delivered, also if it leaves unread what was sent to it.
func TestSenderWritesAndCloses(t *testing.T) {
	for _, tr := range transports {
		for _, unread := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, unread %v", tr, unread), func(t *testing.T) {
				w := start(t)
				r, s := w.receiver(Unix, "client2"), w.receiver(tr, "client1")
				if unread {
					r.put(message("client1", "client2", "you will not read this"))
					w.until("it is there", func() bool { return w.gate.session("client1").account.Received.Load() == 2 })
				}
				const n = 100
				var b []byte
				for i := range n {
					b = append(b, encode(t, message("client2", "client1", fmt.Sprint(i)))...)
				}
				s.Write(b)
				s.Close()
				for i := range n {
					r.want(fmt.Sprint(i))
				}
			})
		}
	}
}

// A stranger is closed without an answer and says nothing to anybody else; Unix logs what was wrong, TCP does so only for
// who looks for it.
func TestMalformed(t *testing.T) {
	bad := func(cmd, wdt byte, source string) []byte {
		b := encode(t, wire.Packet{Cmd: wire.CmdTransfer, Target: "client2", Source: source})
		b[wire.OffsetCmd], b[wire.OffsetWdt] = cmd, wdt
		return b
	}
	for _, c := range []struct {
		purpose string
		bytes   []byte
		says    string
	}{
		{"the first byte of HTTP is enough", []byte("G"), `does not begin with "head": "G"`},
		{"HTTP whole", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), `does not begin with "head": "GET / HT"`},
		{"unknown cmd", bad(3, 0, "client1"), "unknown cmd 3"},
		{"unknown wdt", bad(1, 2, "client1"), "unknown wdt 2"},
		{"a register under what is no name", bad(0, 0, "a b"), `register "a b": not a name`},
		{"a register under no name", bad(0, 0, ""), `register "": not a name`},
		{"a register under zhx's own name", bad(0, 0, "zhxctl"), `register "zhxctl": not a name`},
		{"the stream is not searched for the next head", append([]byte("x"), bad(2, 0, "client1")...), `does not begin with "head": "x`},
	} {
		for _, tr := range transports {
			t.Run(fmt.Sprintf("%s, %s", c.purpose, tr), func(t *testing.T) {
				w := start(t)
				r, s, stranger := w.receiver(Unix, "client2"), w.dial(TCP), w.dial(tr)
				stranger.Write(c.bytes)
				stranger.closed()
				line := w.logged("malformed packet", 1)
				if level := map[Transport]string{Unix: "WARN", TCP: "DEBUG"}[tr]; !strings.HasPrefix(line, level) || !strings.Contains(line, c.says) {
					t.Errorf("logged %s; want %s and %s", line, level, c.says)
				}
				s.put(message("client2", "client1", "still here"))
				r.want("still here")
				w.until("all is counted", func() bool { return w.Counters().Malformed == 1 && w.Counters().Forwarded == 2 })
			})
		}
	}
}

// A message before the malformed packet in the same write is delivered, one after it is not.
func TestMalformedAfterGood(t *testing.T) {
	w := start(t)
	r, s := w.receiver(Unix, "client2"), w.dial(TCP)
	b := encode(t, message("client2", "client1", "good"))
	s.Write(append(append(b, "POST"...), b...))
	r.want("good")
	s.closed()
	w.until("all is counted", func() bool { return w.Counters().Malformed == 1 && w.Counters().Forwarded == 2 })
}

func TestTruncatedIsCounted(t *testing.T) {
	w := start(t)
	s := w.dial(Unix)
	s.Write(encode(t, message("client2", "client1", "half"))[:300])
	s.Close()
	w.logged("connection ended within a packet", 1)
	if c := w.Counters(); c.Truncated != 1 || c.Undeliverable != 0 {
		t.Errorf("%+v", c)
	}
}

// No receiver: counted, for the client that owns the name too, and logged once a second a pair.
func TestNoReceiver(t *testing.T) {
	w := start(t)
	s := w.dial(Unix)
	for range 50 {
		s.put(message("nobody", "client1", "?"), message("a b", "client1", "?"))
	}
	s.put(message("nobody", "client9", "?"))
	w.until("all are counted", func() bool { return w.Counters().Undeliverable == 101 })
	w.logged("no receiver source=client9 target=nobody", 1)
	for text, most := range map[string]int{"no receiver source=client1 target=nobody": 3, `no receiver source=client1 target="a b"`: 3} {
		if lines := w.log.find(text); len(lines) == 0 || len(lines) > most {
			t.Errorf("logged %d times: %s", len(lines), text)
		}
	}
	if n := w.gate.session("nobody").account.Undeliverable.Load(); n != 51 {
		t.Errorf("the target's account has %d", n)
	}
	if n := w.gate.session("client1").account.Sent.Load(); n != 100 {
		t.Errorf("the source's account has %d sent", n)
	}
}

// The first message of a (run, target) pair is logged, the rest are counted.
func TestForwardedIsLoggedOnce(t *testing.T) {
	w := start(t)
	a, b, s := w.receiver(Unix, "a"), w.receiver(Unix, "b"), w.dial(TCP)
	for range 10 {
		s.put(message("a", "client1", "x"), message("b", "client1", "x"), message("b", "no name", "x"))
	}
	for range 10 {
		a.get()
		b.get()
		b.get()
	}
	for _, text := range []string{"forwarded source=client1 target=a", "forwarded source=client1 target=b", "forwarded peer=tcp"} {
		if lines := w.log.find(text); len(lines) != 1 {
			t.Errorf("%d times: %s\n%s", len(lines), text, w.log)
		}
	}
	w.until("b is said to have received them all", func() bool { return w.gate.session("b").account.Received.Load() == 21 })
}

// The watchdog's packets reach the session of their name, in order with the rest.
func TestWatchdog(t *testing.T) {
	w := start(t)
	s := w.receiver(TCP, "client1")
	feed := wire.Packet{Cmd: wire.CmdWatchdog, Wdt: wire.WatchdogFeed, Target: "null", Source: "client1"}
	arm := wire.Packet{Cmd: wire.CmdWatchdog, Source: "client1"}
	odd := wire.Packet{Cmd: wire.CmdWatchdog, Source: "a b"}
	s.put(arm, feed, message("client1", "client1", "between"), feed, odd)
	s.put(message("client1", "client1", "done"))
	s.want("between")
	s.want("done")
	if c := w.gate.session("client1"); c.armed.Load() != 1 || c.fed.Load() != 2 {
		t.Errorf("armed %d, fed %d", c.armed.Load(), c.fed.Load())
	}
	if c := w.Counters(); c.Refused != 1 || c.Malformed != 0 {
		t.Errorf("a feed of what is no name: %+v", c)
	}
}

// What the gate refuses is dropped and counted, each use by itself; the gate logs why, the broker does not.
func TestRefused(t *testing.T) {
	denied := errors.New("denied")
	for _, c := range []struct {
		purpose string
		use     Use
		packet  wire.Packet
		refused int64
	}{
		{"register", Receive, wire.Packet{Cmd: wire.CmdRegister, Source: "client1"}, 1},
		{"feed", Watch, wire.Packet{Cmd: wire.CmdWatchdog, Source: "client1"}, 1},
		{"send", Send, message("client2", "client1", "no"), 3},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			w := start(t)
			w.gate.refuse(func(name string, use Use) error {
				if use == c.use && name == "client1" {
					return denied
				}
				return nil
			})
			r, s := w.receiver(Unix, "client2"), w.dial(Unix)
			for range c.refused {
				s.put(c.packet)
			}
			s.put(message("client2", "zhxctl", "no"), message("client2", "other", "yes"))
			r.want("yes")
			if n := w.Counters().Refused; n != c.refused+1 || w.Connected("client1") {
				t.Errorf("refused %d, connected %v", n, w.Connected("client1"))
			}
			if lines := w.log.find("denied"); len(lines) > 0 {
				t.Errorf("logged %q", lines)
			}
		})
	}
}

// A connection keeps maxClaims; sources beyond are asked for again, receiving under more than maxNames is refused.
func TestManyNames(t *testing.T) {
	w := start(t)
	s := w.receiver(Unix, "client1")
	for i := range 3 * maxClaims {
		s.put(message("client1", fmt.Sprintf("s%d", i), "x"))
		s.want("x")
	}
	for i := range 2 * maxNames {
		s.put(wire.Packet{Cmd: wire.CmdRegister, Source: fmt.Sprintf("r%d", i)})
	}
	w.until("the rest is refused", func() bool { return w.Counters().Refused == maxNames+1 })
	w.logged("name refused", 1)
	if p := w.Peers(); len(p) != 1 || len(p[0].Names) != maxClaims || !w.Connected("client1") || !w.Connected("r14") || w.Connected("r15") {
		t.Errorf("%+v", p)
	}
}

func TestSend(t *testing.T) {
	w := start(t)
	r := w.receiver(TCP, "client1")
	if err := w.Send("client1", "zhxctl", []byte("by hand")); err != nil {
		t.Fatal(err)
	}
	r.want("by hand")
	w.logged("forwarded source=zhxctl target=client1", 1)
	for _, c := range []struct {
		purpose        string
		target, source string
		msg            []byte
		is             error
		says           string
	}{
		{"nobody there", "nobody", "zhxctl", nil, ErrNoReceiver, `send to "nobody": no receiver`},
		{"no name", "a b", "zhxctl", nil, nil, `"a b"`},
		{"too much text for a packet", "client1", "zhxctl", make([]byte, 513), ErrNotSent, "too big"},
		{"too much text at all", "client1", "zhxctl", make([]byte, wire.BodyDefault+1), ErrNotSent, "at most 262144"},
	} {
		err := w.Send(c.target, c.source, c.msg)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.purpose, err)
		}
	}
}

func TestPeers(t *testing.T) {
	w := start(t)
	w.gate.session("client1").managed.Store(true)
	s := w.receiver(TCP, "client1")
	s.put(message("client1", "client0", "also its name"))
	s.get()
	u := w.receiver(Unix, "client2")
	defer u.Close()
	w.until("what it was sent is counted", func() bool { p := w.Peers(); return p[0].Written.Messages == 2 && p[1].Written.Messages == 1 })
	got := fmt.Sprintf("%+v", w.Peers())
	want := fmt.Sprintf("[{Names:[client0 client1] PID:0 UID:%d Transport:tcp Protocol:1 Managed:true Proof:test Stuck:false Sent:{Bytes:1656 Messages:2 FDs:0} Written:{Bytes:1104 Messages:2 FDs:0} Waiting:0}"+
		" {Names:[client2] PID:%d UID:%[1]d Transport:unix Protocol:1 Managed:false Proof:test Stuck:false Sent:{Bytes:1104 Messages:1 FDs:0} Written:{Bytes:552 Messages:1 FDs:0} Waiting:0}]", os.Getuid(), os.Getpid())
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// Close ends Serve, every connection, and every goroutine (TestMain looks for them); after it nothing is accepted.
func TestClose(t *testing.T) {
	w := start(t)
	c := w.receiver(Unix, "client1")
	w.Close()
	c.closed()
	if _, err := net.Dial("unix", w.listen[Unix].Addr().String()); err == nil {
		t.Error("still accepts")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Serve(ln); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
	w.Close()
}

// Who has a name by a claim that became stale is disconnected, and nobody else is; a claim that the gate is just granting
// is asked for again.
func TestRevoke(t *testing.T) {
	w := start(t)
	a, b := w.receiver(Unix, "a"), w.receiver(TCP, "b")
	asked := make(chan struct{})
	w.gate.refuse(func(name string, use Use) error {
		if name == "late" {
			asked <- struct{}{}
			<-asked
		}
		return nil
	})
	late := w.dial(Unix)
	late.put(wire.Packet{Cmd: wire.CmdRegister, Source: "late"})
	<-asked
	w.Revoke(func(name string, _ Session) bool { return name == "a" })
	a.closed()
	asked <- struct{}{}
	<-asked // again
	w.gate.refuse(nil)
	asked <- struct{}{}
	w.until("it has the name", func() bool { return w.Connected("late") })
	b.put(message("late", "b", "still here"))
	late.want("still here")
}
