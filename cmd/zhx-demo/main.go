// Command zhx-demo is a client to look at: like the prototype's client1 and client2 it registers a name, arms its
// watchdog, and then sends its partner a message and feeds, over and over, more slowly than its watchdog allows. So zhx
// kills and restarts it for ever, and shows all that it does.
//
//	zhx-demo NAME PARTNER PAUSE
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"zhx/ipc"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: zhx-demo NAME PARTNER PAUSE")
		os.Exit(2)
	}
	pause, err := time.ParseDuration(os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "zhx-demo:", err)
		os.Exit(2)
	}
	for { // zhxd may be replaced by another one: a client that comes back goes on under that
		err := run(os.Args[1], os.Args[2], pause)
		fmt.Fprintln(os.Stderr, "zhx-demo:", err)
		time.Sleep(again)
	}
}

const again = 200 * time.Millisecond // between two tries to connect

func run(name, partner string, pause time.Duration) error {
	c, err := ipc.DialPackets(context.Background(), "")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Register(name); err != nil {
		return err
	}
	fmt.Println("receive thread begins")
	gone := make(chan error, 1)
	go func() { gone <- receive(c) }()

	time.Sleep(time.Second) // its partner may just be starting, as the prototype's clients knew
	if err := c.Arm(); err != nil {
		return err
	}
	for tick := time.Tick(pause); ; {
		if err := c.Send(partner, "this message is from "+name+" to "+partner); err != nil {
			return err
		}
		select {
		case err := <-gone:
			return err
		case <-tick:
		}
		if err := c.Feed(); err != nil {
			return err
		}
	}
}

func receive(c *ipc.PacketConn) error {
	for {
		p, err := c.Receive()
		if err != nil {
			return err
		}
		text, _, _ := bytes.Cut(p.Msg, []byte{0})
		fmt.Printf("received from %s: %q\n", p.Source, text)
	}
}
