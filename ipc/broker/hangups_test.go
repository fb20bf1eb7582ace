package broker

import (
	"fmt"
	"testing"
)

// Writing and closing at once is what a short-lived sender does: data and the end of the stream arrive in one edge. Each
// message is delivered and no connection stays, where the end is told apart and where it cannot be.
func TestWriteAndClose(t *testing.T) {
	for _, tr := range transports {
		for _, blind := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, blind %t", tr, blind), func(t *testing.T) {
				w := start(t, func(b *Broker) {
					if blind {
						b.hangups = &hangups{peers: map[int]*peer{}}
					}
				})
				r := w.receiver(tr, "client1")
				for i := range 1000 {
					s := w.dial(tr)
					s.put(message("client1", "client2", fmt.Sprint(i)))
					s.Close()
					r.want(fmt.Sprint(i))
				}
				w.until("only the receiver is connected", func() bool { return len(w.Peers()) == 1 })
			})
		}
	}
}

// A peer that only stops writing has ended too: its connection is closed.
func TestHalfClosed(t *testing.T) {
	for _, tr := range transports {
		w := start(t)
		r := w.receiver(tr, "client1")
		r.Conn.(interface{ CloseWrite() error }).CloseWrite()
		r.closed()
	}
}
