// Package ipc is how an application speaks to zhx: it registers a name, sends messages to other names, receives its own,
// and feeds its watchdog. It speaks protocol 1, the 552-byte packets of package wire, so that programs written in C for
// the prototype and programs using this package talk to one another.
//
//	c, err := ipc.Dial(ctx, "")           // the socket in $ZHX_SOCKET, the name in $ZHX_NAME
//	err = c.Register("")                  // messages to the name come here from now on
//	err = c.Arm()                         // from now on zhx kills and restarts this process if it stops feeding
//	err = c.Send("client2", "hello")
//	p, err := c.Receive()                 // p.Source, p.Text()
//
// One connection can do all of this. zhx answers nothing in protocol 1: a message to nobody, or a name that this process
// may not use, shows in zhx's log and counters. A receiver that does not read for 100 ms loses messages; one that only
// reads slowly slows its senders, whose Send then waits.
package ipc

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"zhx/ipc/wire"
)

// DefaultSocket is where zhxd listens if $ZHX_SOCKET does not say otherwise.
const DefaultSocket = "/run/zhx/zhx.sock"

// Conn is a connection to zhx. Any goroutines may call its methods at the same time, but only one Receive. After an error of writing or reading the connection is of no more use.
type Conn struct {
	conn net.Conn
	in   *bufio.Reader // owned by Receive's caller

	mu sync.Mutex // also keeps one packet from being written into another
	// mu guards:
	name string
	out  []byte
}

// Dial connects to zhx at address: the path of a Unix socket, or "tcp:host:port"; "" is $ZHX_SOCKET, else DefaultSocket.
// The connection's name, under which it sends and feeds, is $ZHX_NAME until Register or As changes it: zhx sets both
// variables for the programs that it starts.
func Dial(ctx context.Context, address string) (*Conn, error) {
	network, addr := "unix", cmp.Or(address, os.Getenv("ZHX_SOCKET"), DefaultSocket)
	if hostPort, ok := strings.CutPrefix(addr, "tcp:"); ok {
		network, addr = "tcp", hostPort
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to zhx: %w", err)
	}
	return &Conn{name: os.Getenv("ZHX_NAME"), conn: conn, in: bufio.NewReaderSize(conn, 64*wire.PacketSize)}, nil
}

// As sets the connection's name, at most wire.NameSize bytes, without receiving under it.
func (c *Conn) As(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.name = name
}

// Register makes this connection the one that receives what is sent to name, which becomes the connection's name; "" is
// the name that it has. zhx closes an older connection that receives under the same name.
func (c *Conn) Register(name string) error {
	if name != "" {
		c.As(name)
	}
	return c.put(wire.CmdRegister, 0, "null", "")
}

// Send sends text, at most wire.MsgSize bytes, to the receiver of target. Without a name it is sent as nobody.
func (c *Conn) Send(target, text string) error {
	return c.put(wire.CmdTransfer, 0, target, text)
}

// Arm arms the watchdog of this connection's name: from now on zhx expects Feed more often than the watchdog's timeout,
// and kills and restarts the program if it does not come.
func (c *Conn) Arm() error { return c.put(wire.CmdWatchdog, wire.WatchdogArm, "null", "") }

// Feed is a sign of life.
func (c *Conn) Feed() error { return c.put(wire.CmdWatchdog, wire.WatchdogFeed, "null", "") }

var errNoName = errors.New("zhx: this connection has no name: $ZHX_NAME is not set, and Register gave none")

func (c *Conn) put(cmd, wdt int32, target, text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.name == "" && cmd != wire.CmdTransfer {
		return errNoName
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
func (c *Conn) Receive() (wire.Packet, error) {
	b := make([]byte, wire.PacketSize)
	if _, err := io.ReadFull(c.in, b); err == io.EOF {
		return wire.Packet{}, err
	} else if err != nil {
		return wire.Packet{}, fmt.Errorf("zhx: receive: %w", err)
	}
	return wire.Parse(b)
}

// Close ends the connection; what was sent is still delivered. A Receive that waits returns an error.
func (c *Conn) Close() error { return c.conn.Close() }
