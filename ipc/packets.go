package ipc

// This file is the client of protocol 1, the 552-byte packets of package wire.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"zhx/ipc/wire"
)

// PacketConn is a connection to zhx that speaks protocol 1, as programs written in C for the prototype do. Any goroutines
// may call its methods at the same time, but only one Receive. After an error of writing or reading the connection is of no
// more use. zhx answers nothing in protocol 1: a message to nobody, or a name that this process may not use, shows in zhx's
// log and counters. A receiver that does not read for 100 ms loses messages; one that only reads slowly slows its senders,
// whose Send then waits.
type PacketConn struct {
	conn net.Conn
	in   *bufio.Reader // owned by Receive's caller

	mu sync.Mutex // also keeps one packet from being written into another
	// mu guards:
	name string
	out  []byte
}

// DialPackets connects to zhx at address: the path of a Unix socket, or "tcp:host:port"; "" is $ZHX_SOCKET, else
// DefaultSocket. The connection's name, under which it sends and feeds, is $ZHX_NAME until Register or As changes it: zhx
// sets both variables for the programs that it starts.
func DialPackets(ctx context.Context, address string) (*PacketConn, error) {
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to zhx: %w", err)
	}
	return &PacketConn{name: os.Getenv("ZHX_NAME"), conn: conn, in: bufio.NewReaderSize(conn, packetsAhead*wire.PacketSize)}, nil
}

// packetsAhead is how many packets are read at once. zhx takes a receiver for stuck by what it reads off the socket, so what
// is read has to keep step with what Receive gives: much at once and then nothing for long looks like no reader at all.
const packetsAhead = 4

// As sets the connection's name, at most wire.NameSize bytes, without receiving under it.
func (c *PacketConn) As(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.name = name
}

// Register makes this connection the one that receives what is sent to name, which becomes the connection's name; "" is
// the name that it has. zhx closes an older connection that receives under the same name.
func (c *PacketConn) Register(name string) error {
	if name != "" {
		c.As(name)
	}
	return c.put(wire.CmdRegister, 0, "null", "")
}

// Send sends text, at most wire.MsgSize bytes, to the receiver of target. Without a name it is sent as nobody.
func (c *PacketConn) Send(target, text string) error {
	return c.put(wire.CmdTransfer, 0, target, text)
}

// Arm arms the watchdog of this connection's name: from now on zhx expects Feed more often than the watchdog's timeout,
// and kills and restarts the program if it does not come.
func (c *PacketConn) Arm() error { return c.put(wire.CmdWatchdog, wire.WatchdogArm, "null", "") }

// Feed is a sign of life.
func (c *PacketConn) Feed() error { return c.put(wire.CmdWatchdog, wire.WatchdogFeed, "null", "") }

var errUnnamed = errors.New("zhx: this connection has no name: $ZHX_NAME is not set, and Register gave none")

func (c *PacketConn) put(cmd, wdt int32, target, text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.name == "" && cmd != wire.CmdTransfer {
		return errUnnamed
	}
	var err error
	c.out, err = wire.Packet{Cmd: cmd, Wdt: wdt, Target: target, Source: c.name, Msg: []byte(text)}.Append(c.out[:0])
	if err == nil {
		_, err = c.conn.Write(c.out)
	}
	if err != nil {
		return fmt.Errorf("zhx: to %q: %w", target, err)
	}
	return nil
}

// Receive waits for the next message. It returns io.EOF when zhx has closed the connection: it ends, it refuses what was
// sent, or a newer connection has registered the name.
func (c *PacketConn) Receive() (wire.Packet, error) {
	b := make([]byte, wire.PacketSize)
	if _, err := io.ReadFull(c.in, b); err == io.EOF {
		return wire.Packet{}, err
	} else if err != nil {
		return wire.Packet{}, fmt.Errorf("zhx: receive: %w", err)
	}
	return wire.Parse(b)
}

// Close ends the connection; what was sent is still delivered. A Receive that waits returns an error.
func (c *PacketConn) Close() error { return c.conn.Close() }
