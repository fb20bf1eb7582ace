package broker

// This file is about connections that only feed, and how they become such and cease to be.

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// feeder is a client of either protocol.
type feeder struct {
	*client
	talker *talker // nil: protocol 1
	name   string
	fed    int64
}

func (w *world) feeder(tr Transport, protocol int, name string) *feeder {
	if protocol == 1 {
		return &feeder{client: w.receiver(tr, name), name: name}
	}
	k := w.talk(tr, name)
	return &feeder{client: k.client, talker: k, name: name}
}

// feed is the bytes of n feeds.
func (f *feeder) feed(n int) []byte {
	f.fed += int64(n)
	if f.talker == nil {
		return bytes.Repeat(encode(f.t, wire.Packet{Cmd: wire.CmdWatchdog, Wdt: wire.WatchdogFeed, Target: "null", Source: f.name}), n)
	}
	return bytes.Repeat(wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeFeed, Code: wire.FeedAlive, Session: f.talker.session, From: f.name}), n)
}

// message is the bytes of one.
func (f *feeder) message(to, text string) []byte {
	if f.talker == nil {
		return encode(f.t, message(to, f.name, text))
	}
	f.talker.id++
	return wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, Session: f.talker.session, ID: f.talker.id, To: to, From: f.name, Body: []byte(text)})
}

func (f *feeder) write(parts ...[]byte) {
	f.t.Helper()
	if _, err := f.Write(bytes.Join(parts, nil)); err != nil {
		f.t.Fatal(err)
	}
}

// joins feeds until f is read with the others.
func (w *world) joins(f *feeder) {
	w.t.Helper()
	p := w.peerOf(f.name)
	f.write(f.feed(feederFeeds))
	w.until("it is read with the others", func() bool { return w.feeders.has(p) })
}

func (f *feeders) has(p *peer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, q := range f.peers {
		if q == p {
			return true
		}
	}
	return false
}

// eachFeeder runs a story for either protocol over either transport.
func eachFeeder(t *testing.T, story func(t *testing.T, w *world, f *feeder)) {
	for _, tr := range transports {
		for _, protocol := range []int{1, 2} {
			t.Run(fmt.Sprint(tr, protocol), func(t *testing.T) {
				w := start(t)
				f := w.feeder(tr, protocol, "f")
				w.joins(f)
				story(t, w, f)
				w.until("each feed has counted", func() bool { return w.gate.session("f").fed.Load() == f.fed })
			})
		}
	}
}

// Feeds of one that is read with the others count, torn and glued as they may be.
func TestFeedersFeed(t *testing.T) {
	eachFeeder(t, func(t *testing.T, w *world, f *feeder) {
		p := w.peerOf("f")
		for range 20 {
			f.write(f.feed(1 + rand.N(5)))
		}
		w.until("they have counted", func() bool { return w.gate.session("f").fed.Load() == f.fed })
		if !w.feeders.has(p) {
			t.Error("it has left, for nothing")
		}
		torn := f.feed(2)
		f.write(torn[:len(torn)-3])
		w.until("a torn one is waited for by its own reader", func() bool { return !w.feeders.has(p) })
		f.write(torn[len(torn)-3:])
	})
}

// What it sends besides goes its way, after the feeds before and before those behind it.
func TestFeedersSpeak(t *testing.T) {
	eachFeeder(t, func(t *testing.T, w *world, f *feeder) {
		r, p := w.receiver(Unix, "r"), w.peerOf("f")
		f.write(f.feed(3), f.message("r", "one"), f.feed(2), f.message("r", "two"))
		r.want("one")
		r.want("two")
		w.until("it is read alone", func() bool { return !w.feeders.has(p) })
		w.joins(f)
		f.write(f.message("r", "three"))
		r.want("three")
		w.until("it is parked", func() bool { return !p.busy.Load() })
		if p.unread != nil {
			t.Error("what was read for it is kept")
		}
	})
}

// What is sent to it comes, also more than its socket takes at once.
func TestFeedersListen(t *testing.T) {
	eachFeeder(t, func(t *testing.T, w *world, f *feeder) {
		const n = 2000
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for i := range n {
				w.Send("f", "s", fmt.Append(nil, i))
			}
		}()
		for i := range n {
			if got := f.text(); got != fmt.Sprint(i) {
				t.Fatalf("%q, want %d", got, i)
			}
		}
		<-sent // it does not join while somebody writes to it
		w.joins(f)
	})
}

// text is of the next message.
func (f *feeder) text() string {
	if f.talker == nil {
		p := f.get()
		return p.Text()
	}
	return string(f.talker.next().Body)
}

// The name of one that closes is free, and what it sent before counts.
func TestFeedersLeave(t *testing.T) {
	eachFeeder(t, func(t *testing.T, w *world, f *feeder) {
		f.write(f.feed(7))
		f.Close()
		w.until("it has gone", func() bool { return !w.Connected("f") && len(w.Peers()) == 0 })
	})
}

// One whose name is taken, and one that is sent away, are told so.
func TestFeedersAreClosed(t *testing.T) {
	eachFeeder(t, func(t *testing.T, w *world, f *feeder) {
		w.Revoke(func(name string, _ Session) bool { return name == "f" })
		f.closed()
	})
}

// The judge of a late sign of life does not wait for the next round.
func TestFeedersSettle(t *testing.T) {
	eachFeeder(t, func(t *testing.T, w *world, f *feeder) {
		f.write(f.feed(5))
		began := time.Now()
		w.Settle(patience, func(any) bool { return true })
		took, fed := time.Since(began), w.gate.session("f").fed.Load()
		if took > patience/2 || fed != f.fed && f.LocalAddr().Network() == "unix" { // what TCP has taken may be on its way still
			t.Errorf("%d of %d after %s", fed, f.fed, took)
		}
	})
}

// Descriptors that come behind feeds are passed on with the frame that they belong to.
func TestFeedersPassDescriptors(t *testing.T) {
	w := start(t)
	f, r := w.feeder(Unix, 2, "f"), w.talk(Unix, "r")
	w.joins(f)
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	frame := wire.AppendFrame(f.feed(2), &wire.Frame{Type: wire.TypeMessage, Session: f.talker.session, ID: 1, To: "r", From: "f", FDs: 1, Body: []byte("look")})
	if _, _, err := f.Conn.(*net.UnixConn).WriteMsgUnix(frame, unix.UnixRights(int(file.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	if got := r.next(); string(got.Body) != "look" || got.FDs != 1 {
		t.Errorf("%+v", got)
	}
}

// What is queued for one that is just joining the others is written nevertheless.
func TestFeedersJoinWhileSpokenTo(t *testing.T) {
	w := start(t)
	f := w.feeder(Unix, 2, "f")
	p, h := w.peerOf("f"), w.hangups
	w.feeders.mu.Lock() // it has the outlet's lock meanwhile
	f.write(f.feed(feederFeeds))
	for watched := true; watched; {
		h.mu.Lock()
		watched = slices.Contains(slices.Collect(maps.Values(h.peers)), p)
		h.mu.Unlock()
	}
	p.tell(&wire.Frame{Type: wire.TypeState, To: "x"})
	w.feeders.mu.Unlock()
	if got := f.talker.next(); got.Type != wire.TypeState {
		t.Errorf("%+v", got)
	}
}

// One whose name is another user's by now is told so at once.
func TestFeedersAreRefused(t *testing.T) {
	w := start(t, func(b *Broker) { b.equal = true })
	f := w.feeder(Unix, 2, "f")
	p := w.peerOf("f")
	f.name = "x"
	f.write(f.feed(feederFeeds))
	w.until("it is read with the others", func() bool { return w.feeders.has(p) })
	w.names.mu.Lock()
	w.names.receivers["x"] = &claim{peer: &peer{user: &user{uid: -1}}}
	w.names.mu.Unlock()
	f.write(f.feed(1))
	f.talker.wantError(0, wire.ErrDenied)
}

// The limits of descriptors on their way hold for them, too.
func TestFeedersPassTooMany(t *testing.T) {
	w := start(t, func(b *Broker) { b.maxTransit = 4 })
	f := w.feeder(Unix, 2, "f")
	w.joins(f)
	if _, _, err := f.Conn.(*net.UnixConn).WriteMsgUnix(f.feed(1)[:9], unix.UnixRights(0, 0, 0, 0, 0), nil); err != nil {
		t.Fatal(err)
	}
	f.closed()
	w.until("they are closed", func() bool { return w.Counters().InTransit == 0 })
}

// Many that feed, speak and are spoken to, at random: each feed counts, and each message comes, in order.
func TestFeedersAtRandom(t *testing.T) {
	const clients, acts = 8, 150
	w := start(t)
	r := w.receiver(Unix, "r")
	said := make(chan map[string][]string, clients)
	fs := make([]*feeder, clients)
	for i := range fs {
		fs[i] = w.feeder(transports[i%2], 1+i/2%2, fmt.Sprint("f", i))
		go func() {
			f, texts := fs[i], []string{}
			for n := range acts {
				switch rand.N(10) {
				case 0:
					texts = append(texts, fmt.Sprint(n))
					f.write(f.feed(1), f.message("r", f.name+" "+fmt.Sprint(n)), f.feed(1))
				case 1:
					w.Send(f.name, "s", []byte("hear"))
				default:
					f.write(f.feed(feederFeeds))
				}
				time.Sleep(rand.N(3 * feederPace / 2)) // so that rounds come in between
			}
			said <- map[string][]string{f.name: texts}
		}()
	}
	heard, want := map[string][]string{}, map[string][]string{}
	go func() {
		for range fs {
			for name, texts := range <-said {
				want[name] = texts
			}
		}
		fs[0].write(fs[0].message("r", "end"))
	}()
	for {
		text := r.get()
		var name, n string
		if k, _ := fmt.Sscan(text.Text(), &name, &n); k < 2 {
			break
		}
		heard[name] = append(heard[name], n)
	}
	if fmt.Sprint(heard) != fmt.Sprint(want) {
		t.Errorf("heard %v\nof %v", heard, want)
	}
	w.until("each feed has counted", func() bool {
		for _, f := range fs {
			if w.gate.session(f.name).fed.Load() != f.fed {
				return false
			}
		}
		return true
	})
}
