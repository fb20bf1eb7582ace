package broker

import (
	"testing"
	"time"

	"zhx/ipc/wire"
)

// When Settle returns, what was written before has been handled, also by a connection that was not yet accepted.
func TestSettle(t *testing.T) {
	for _, tr := range transports {
		t.Run(string(tr), func(t *testing.T) {
			w := start(t)
			s := w.gate.session("client1")
			feed := encode(t, wire.Packet{Cmd: wire.CmdWatchdog, Wdt: wire.WatchdogFeed, Source: "client1"})
			for i := range 100 {
				c := w.dial(tr)
				c.Write(feed)
				w.Settle(patience, func(any) bool { return true })
				c.Write(feed)
				w.Settle(patience, func(any) bool { return true })
				if n := s.fed.Load(); n != int64(2*i+2) {
					t.Fatalf("after Settle %d of %d feeds are read", n, 2*i+2)
				}
				c.Close()
			}
		})
	}
}

// A peer that is not asked for is not waited for; one that is, at most for limit.
func TestSettleLimit(t *testing.T) {
	w := start(t)
	r := w.receiver(Unix, "client1")
	release, asked := make(chan struct{}), make(chan struct{})
	w.gate.refuse(func(name string, use Use) error {
		if name == "slow" {
			asked <- struct{}{}
			<-release
		}
		return nil
	})
	c := w.dial(Unix)
	c.put(message("client1", "slow", "x"))
	<-asked
	w.Settle(patience, func(who any) bool { return who == 1 }) // r, who is idle
	begun := time.Now()
	w.Settle(20*time.Millisecond, func(who any) bool { return who == 2 })
	if d := time.Since(begun); d < 20*time.Millisecond || d > patience/2 {
		t.Errorf("waited %v for one that does not get on", d)
	}
	close(release)
	r.want("x")
}
