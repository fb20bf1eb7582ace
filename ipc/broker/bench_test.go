package broker

import (
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"zhx/ipc/wire"
)

// pairOfClients gives a sender's connection and that of the receiver "client2", on a broker that logs nothing.
func pairOfClients(t testing.TB, network string) (b *Broker, s, r net.Conn) {
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	b = New(&gate{sessions: map[string]*session{}}, slog.New(slog.DiscardHandler), Options{})
	served := make(chan error)
	go func() { served <- b.Serve(ln) }()
	dial := func() net.Conn {
		c, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	s, r = dial(), dial()
	t.Cleanup(func() {
		s.Close()
		r.Close()
		b.Close()
		<-served
	})
	r.Write(encode(t, wire.Packet{Cmd: wire.CmdRegister, Source: "client2"}, message("client2", "client2", "")))
	if _, err := io.ReadFull(r, make([]byte, wire.PacketSize)); err != nil {
		t.Fatal(err)
	}
	return b, s, r
}

func bench(b *testing.B, network string, batch int) {
	_, s, r := pairOfClients(b, network)
	var out []byte
	for range batch {
		out = append(out, encode(b, message("client2", "client1", "hello"))...)
	}
	in := make([]byte, len(out))
	b.SetBytes(int64(len(out)))
	b.ReportAllocs()
	for b.Loop() {
		s.Write(out)
		if _, err := io.ReadFull(r, in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkForward: one write, through the broker, one read.
func BenchmarkForward(b *testing.B) {
	b.Run("unix", func(b *testing.B) { bench(b, "unix", 1) })
	b.Run("unix batch 64", func(b *testing.B) { bench(b, "unix", 64) })
	b.Run("tcp", func(b *testing.B) { bench(b, "tcp", 1) })
}

// A message that goes straight through allocates nothing, nor does a feed, nor one that is dropped.
func TestNoAllocation(t *testing.T) {
	b, s, r := pairOfClients(t, "unix")
	in := make([]byte, 3*wire.PacketSize)
	straight := encode(t, message("client2", "client1", "1"), message("client2", "client1", "2"),
		wire.Packet{Cmd: wire.CmdWatchdog, Wdt: wire.WatchdogFeed, Source: "client1"}, message("client2", "client1", "3"))
	through := func() {
		s.Write(straight)
		if _, err := io.ReadFull(r, in); err != nil {
			t.Fatal(err)
		}
	}
	through() // the claims and the line "forwarded"
	if n := testing.AllocsPerRun(500, through); n != 0 {
		t.Errorf("%v allocations for three messages and a feed", n)
	}

	p := b.names.find([]byte("client2")).peer
	packets := encode(t, message("client2", "client1", "x"))
	for b.Counters().Stuck == 0 {
		b.forward(packets, nil, nil)
	}
	if n := testing.AllocsPerRun(500, func() { b.forward(packets, nil, nil) }); n != 0 || !p.out.stuck.Load() {
		t.Errorf("%v allocations for a message that is dropped", n)
	}
}
