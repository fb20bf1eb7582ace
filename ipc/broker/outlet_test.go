package broker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"zhx/ipc/wire"
)

// flood sends the numbers from first, in batches of 64 packets, until stop says so after one; it gives the next number.
func (c *client) flood(target, source string, first int, stop func(next int) bool) int {
	for ; ; first += 64 {
		var b []byte
		for i := range 64 {
			b, _ = message(target, source, strconv.Itoa(first+i)).Append(b)
		}
		if _, err := c.Write(b); err != nil {
			c.t.Errorf("flood: %v", err)
			return first
		}
		if stop(first + 64) {
			return first + 64
		}
	}
}

// numbers reads packets, which must be whole and in order, until one says last, and tells how many it read.
func (c *client) numbers(last string) (n int) {
	c.t.Helper()
	for before := -1; ; n++ {
		text := c.get().Text()
		if text == last {
			return n
		}
		i, err := strconv.Atoi(text)
		if err != nil || i <= before {
			c.t.Fatalf("received %q after %d", text, before)
		}
		before = i
	}
}

// A receiver that takes nothing for stuckAfter is stuck: what is sent to it is dropped whole and counted, without
// waiting; others notice nothing; when it reads again its stream is whole packets in order.
func TestStuckReceiver(t *testing.T) {
	for _, tr := range transports {
		t.Run(string(tr), func(t *testing.T) {
			w := start(t)
			stuck, r, s, flooder := w.receiver(tr, "stuck"), w.receiver(TCP, "client2"), w.dial(Unix), w.dial(Unix)
			sent := flooder.flood("stuck", "flooder", 0, func(int) bool { return w.Counters().Stuck > 0 })
			if line := w.logged("receiver stuck", 1); !strings.Contains(line, "target=stuck") || !strings.Contains(line, "next=") {
				t.Error(line)
			}

			sent = flooder.flood("stuck", "flooder", sent, func(next int) bool { return next > sent+100*64 })
			w.until("all is handled", func() bool { return w.gate.session("flooder").account.Sent.Load() == int64(sent) })
			begun := time.Now()
			for i := range 200 {
				s.put(message("client2", "client1", strconv.Itoa(i)))
				r.want(strconv.Itoa(i))
			}
			if d := time.Since(begun); d > 10*stuckAfter {
				t.Errorf("200 messages of another pair took %v", d)
			}
			for err := error(nil); err == nil; sent++ { // TCP may still find some room
				if err = w.Send("stuck", "zhxctl", []byte(strconv.Itoa(sent))); err != nil && !errors.Is(err, ErrNotSent) {
					t.Fatal(err)
				}
			}
			if p := w.Peers(); !p[len(p)-1].Stuck && tr == Unix {
				t.Errorf("not shown as stuck: %+v", p)
			}

			// It reads: the finisher ends it by itself, and what comes then is delivered.
			var got int
			var reading sync.WaitGroup
			reading.Go(func() { got = stuck.numbers("last") })
			w.until("it takes messages again", func() bool { return !w.names.find([]byte("stuck")).peer.out.stuck.Load() })
			flooder.put(message("stuck", "flooder", "last"))
			reading.Wait()
			dropped := w.Counters().Dropped
			if int64(got) != int64(sent)-dropped {
				t.Errorf("%d sent, %d dropped, %d received", sent, dropped, got)
			}
			if a := w.gate.session("stuck").account.Dropped.Load(); a != dropped {
				t.Errorf("the account has %d dropped, the broker %d", a, dropped)
			}
			w.until("the log tells of all that the broker has dropped", func() bool { return w.told() == dropped })
		})
	}
}

// told is how many dropped messages the log tells of. TCP may find room by compacting, and a receiver be stuck more than once.
func (w *world) told() (n int64) {
	for _, line := range append(w.log.find("receiver takes messages again"), w.log.find("stuck receiver closed")...) {
		_, dropped, _ := strings.Cut(line, "dropped=")
		dropped, _, _ = strings.Cut(dropped, " ")
		i, _ := strconv.ParseInt(dropped, 10, 64)
		n += i
	}
	return n
}

// A packet begun is finished by the next message too, if that comes before the finisher.
func TestBegunPacketIsFinished(t *testing.T) {
	w := start(t)
	stuck, flooder := w.receiver(TCP, "stuck"), w.dial(Unix)
	sent := flooder.flood("stuck", "flooder", 0, func(int) bool { return w.Counters().Stuck > 0 })
	out := &w.names.find([]byte("stuck")).peer.out
	out.mu.Lock()
	begun := len(out.rest)
	out.mu.Unlock()
	if begun == 0 {
		t.Skip("this kernel took whole packets only: no packet was begun")
	}
	var got int
	var reading sync.WaitGroup
	reading.Go(func() { got = stuck.numbers("last") })
	sent = flooder.flood("stuck", "flooder", sent, func(int) bool { return !out.stuck.Load() })
	flooder.put(message("stuck", "flooder", "last"))
	reading.Wait()
	if c := w.Counters(); int64(got) != int64(sent)-c.Dropped {
		t.Errorf("%d sent, %d dropped, %d received", sent, c.Dropped, got)
	}
}

// A stuck receiver that closes is told of at its end, too, and its messages are undeliverable from then on.
func TestStuckReceiverCloses(t *testing.T) {
	for _, tr := range transports {
		w := start(t)
		stuck, flooder := w.receiver(tr, "stuck"), w.dial(Unix)
		flooder.flood("stuck", "flooder", 0, func(int) bool { return w.Counters().Stuck > 0 })
		stuck.Close()
		w.until("its name is free", func() bool { return !w.Connected("stuck") })
		w.until("its end is told, with all that was dropped", func() bool { n := w.told(); return n > 0 && n == w.Counters().Dropped })
	}
}

// A receiver that closes while a sender waits for its room lets the sender go on.
func TestReceiverClosesWhileSenderWaits(t *testing.T) {
	for _, tr := range transports {
		w := start(t)
		slow, r, s := w.receiver(tr, "slow"), w.receiver(Unix, "client2"), w.dial(Unix)
		var sending sync.WaitGroup
		sending.Go(func() { s.flood("slow", "client1", 0, func(next int) bool { return next > 1<<14 }) })
		<-w.gate.session("client1").held
		slow.Close()
		sending.Wait()
		s.put(message("client2", "client1", "on"))
		r.want("on")
		if c := w.Counters(); c.Undeliverable == 0 || c.Dropped != 0 {
			t.Errorf("%+v", c)
		}
	}
}

// A receiver that reads loses nothing, however slowly it does: here a packet every 20 ms while its sender bursts, for
// longer than stuckAfter. Meanwhile the sender's dog is held.
func TestSlowReaderLosesNothing(t *testing.T) {
	for _, c := range []struct {
		transport Transport
		noDiag    bool
	}{{Unix, false}, {TCP, false}, {TCP, true}} {
		t.Run(fmt.Sprintf("%s, without sock_diag %v", c.transport, c.noDiag), func(t *testing.T) {
			w := start(t, func(b *Broker) { b.noDiag = c.noDiag })
			slow, s, client1 := w.receiver(c.transport, "slow"), w.dial(Unix), w.gate.session("client1")
			const all = 1 << 14
			var sending sync.WaitGroup
			sending.Go(func() { s.flood("slow", "client1", 0, func(next int) bool { return next == all }) })
			<-client1.held
			n := 0
			for tick, end := time.NewTicker(20*time.Millisecond), time.After(8*stuckAfter); end != nil; {
				select {
				case <-tick.C:
					if text := slow.get().Text(); text != strconv.Itoa(n) {
						t.Fatalf("received %q, want %d", text, n)
					}
					n++
				case <-end:
					tick.Stop()
					end = nil
				}
			}
			if n >= all/64 || client1.holds.Load() != client1.releases.Load()+1 {
				t.Errorf("%d received slowly; held %d, released %d", n, client1.holds.Load(), client1.releases.Load())
			}
			for ; n < all; n++ {
				if text := slow.get().Text(); text != strconv.Itoa(n) {
					t.Fatalf("received %q, want %d", text, n)
				}
			}
			sending.Wait()
			if c := w.Counters(); c.Dropped != 0 || c.Stuck != 0 || client1.holds.Load() != client1.releases.Load() {
				t.Errorf("%+v; held %d, released %d", c, client1.holds.Load(), client1.releases.Load())
			}
		})
	}
}

// A sender kept by another that waits for the same receiver is held as well, with all that its connection has proved.
func TestSendersBehindOneAreHeld(t *testing.T) {
	w := start(t)
	slow, s1, s2 := w.receiver(Unix, "slow"), w.dial(Unix), w.dial(TCP)
	s2.put(wire.Packet{Cmd: wire.CmdWatchdog, Source: "dog"}, message("nobody", "client2", ""))
	w.until("its names are proved", func() bool { return w.Counters().Undeliverable == 1 })
	stop := make(chan struct{})
	var sending, reading sync.WaitGroup
	sending.Go(func() {
		s1.flood("slow", "client1", 0, func(int) bool {
			select {
			case <-stop:
				return true
			default:
				return false
			}
		})
	})
	<-w.gate.session("client1").held
	s2.put(message("slow", "client2", "behind"))
	<-w.gate.session("client2").held
	<-w.gate.session("dog").held
	close(stop)
	reading.Go(func() {
		for text := ""; text != "end"; text = slow.get().Text() {
		}
	})
	sending.Wait()
	s2.put(message("slow", "client2", "end"))
	reading.Wait()
	for _, name := range []string{"client1", "client2", "dog"} {
		s := w.gate.session(name)
		w.until(name+" is released", func() bool { return s.holds.Load() == s.releases.Load() })
	}
}
