package ipc

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"zhx/ipc/wire"
)

// connected gives a PacketConn and zhx's end of it. Environment and address are what a program would have.
func connected(t *testing.T, network, address string, dial func(addr net.Addr) string) (*PacketConn, net.Conn) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := DialPackets(context.Background(), dial(ln.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	zhx, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		zhx.Close()
	})
	return c, zhx
}

func receive(t *testing.T, zhx net.Conn) wire.Packet {
	t.Helper()
	b := make([]byte, wire.PacketSize)
	if _, err := io.ReadFull(zhx, b); err != nil {
		t.Fatal(err)
	}
	p, err := wire.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAddresses(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for _, c := range []struct {
		purpose, network, address string
		dial                      func(addr net.Addr) string
	}{
		{"a path is a Unix socket", "unix", socket, net.Addr.String},
		{"TCP says so", "tcp", "127.0.0.1:0", func(a net.Addr) string { return "tcp:" + a.String() }},
		{"none is the environment's", "unix", socket, func(a net.Addr) string { t.Setenv("ZHX_SOCKET", a.String()); return "" }},
		{"which may be TCP", "tcp", "127.0.0.1:0", func(a net.Addr) string { t.Setenv("ZHX_SOCKET", "tcp:"+a.String()); return "" }},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			conn, zhx := connected(t, c.network, c.address, c.dial)
			if err := conn.Send("client2", "hello"); err != nil {
				t.Fatal(err)
			}
			if p := receive(t, zhx); p.Target != "client2" || p.Source != "" || p.Text() != "hello" {
				t.Errorf("%+v", p)
			}
		})
	}
	_, err := DialPackets(context.Background(), filepath.Join(t.TempDir(), "nobody"))
	if err == nil || !strings.Contains(err.Error(), "connect to zhx") || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("nobody listens: %v", err)
	}
}

// What each call puts on the wire.
func TestPackets(t *testing.T) {
	t.Setenv("ZHX_NAME", "client1")
	c, zhx := connected(t, "tcp", "127.0.0.1:0", func(a net.Addr) string { return "tcp:" + a.String() })
	for _, s := range []struct {
		purpose string
		call    func() error
		want    wire.Packet
	}{
		{"the name is the environment's", func() error { return c.Register("") }, wire.Packet{Cmd: wire.CmdRegister, Target: "null", Source: "client1"}},
		{"arm", c.Arm, wire.Packet{Cmd: wire.CmdWatchdog, Wdt: wire.WatchdogArm, Target: "null", Source: "client1"}},
		{"feed", c.Feed, wire.Packet{Cmd: wire.CmdWatchdog, Wdt: wire.WatchdogFeed, Target: "null", Source: "client1"}},
		{"register under another", func() error { return c.Register("other") }, wire.Packet{Cmd: wire.CmdRegister, Target: "null", Source: "other"}},
		{"and send as that", func() error { return c.Send("client2", "") }, wire.Packet{Cmd: wire.CmdTransfer, Target: "client2", Source: "other"}},
	} {
		t.Run(s.purpose, func(t *testing.T) {
			if err := s.call(); err != nil {
				t.Fatal(err)
			}
			got := receive(t, zhx)
			if got.Msg = nil; got.Cmd != s.want.Cmd || got.Wdt != s.want.Wdt || got.Target != s.want.Target || got.Source != s.want.Source {
				t.Errorf("%+v, want %+v", got, s.want)
			}
		})
	}
	if err := c.Send("elevenbytes", ""); err == nil || !strings.Contains(err.Error(), `"elevenbytes"`) {
		t.Errorf("a name too long: %v", err)
	}
	c.As("")
	if err := c.Feed(); err != errUnnamed {
		t.Errorf("without a name: %v", err)
	}
}

// Receive puts torn packets together, and tells the end from a broken packet.
func TestReceive(t *testing.T) {
	c, zhx := connected(t, "tcp", "127.0.0.1:0", func(a net.Addr) string { return "tcp:" + a.String() })
	b, err := wire.Packet{Cmd: wire.CmdTransfer, Target: "client1", Source: "client2", Msg: []byte("hello")}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	zhx.Write(b[:100])
	zhx.Write(append(b[100:len(b):len(b)], b...))
	zhx.Close()
	for range 2 {
		if p, err := c.Receive(); err != nil || p.Source != "client2" || p.Text() != "hello" {
			t.Errorf("%+v, %v", p, err)
		}
	}
	if _, err := c.Receive(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}

	c, zhx = connected(t, "tcp", "127.0.0.1:0", func(a net.Addr) string { return "tcp:" + a.String() })
	zhx.Write(b[:100])
	zhx.Close()
	if _, err := c.Receive(); err == nil || err == io.EOF {
		t.Errorf("within a packet: %v", err)
	}
}

// What is read off the socket keeps step with Receive, since zhx takes a receiver that reads nothing for stuck.
func TestReadAhead(t *testing.T) {
	c, zhx := connected(t, "unix", filepath.Join(t.TempDir(), "s"), net.Addr.String)
	b, err := wire.Packet{Cmd: wire.CmdTransfer, Target: "client1"}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	zhx.Write(bytes.Repeat(b, 32))
	if _, err := c.Receive(); err != nil || c.in.Buffered() >= packetsAhead*wire.PacketSize {
		t.Errorf("one packet was received and %d bytes beyond read, %v", c.in.Buffered(), err)
	}
}
