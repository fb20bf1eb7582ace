package ipc_test

// This file is a zhx that a test plays, frame by frame.

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"zhx/ipc"
	"zhx/ipc/wire"
)

// fakePatience is how long a test waits for what must come.
const fakePatience = 10 * time.Second

// fakeZhx listens as zhx does; what it answers is the test's.
type fakeZhx struct {
	t       *testing.T
	ln      net.Listener
	address string
}

func fakeListen(t *testing.T, network string) *fakeZhx {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	z := &fakeZhx{t, ln, ln.Addr().String()}
	if network == "tcp" {
		z.address = "tcp:" + z.address
	}
	return z
}

// fakeConn is zhx's end of a connection.
type fakeConn struct {
	t *testing.T
	net.Conn
	hello wire.Frame
	fds   []int
}

// raw accepts a connection and reads its beginning.
func (z *fakeZhx) raw() *fakeConn {
	conn, err := z.ln.Accept()
	if err != nil {
		z.t.Error(err)
		return &fakeConn{t: z.t}
	}
	z.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(fakePatience))
	f := &fakeConn{t: z.t, Conn: conn}
	b := make([]byte, len(wire.Preamble))
	if io.ReadFull(conn, b); string(b) != "\xa7\x5a\x48\x58\x0d\x0a\x02\x00" {
		z.t.Errorf("it begins with %q", b)
	}
	if f.hello = f.get(); f.hello.Type != wire.TypeHello || f.hello.Session == 0 {
		z.t.Errorf("no hello: %+v", f.hello)
	}
	return f
}

const fakeMaxBody = 1 << 20

// accept also welcomes.
func (z *fakeZhx) accept() *fakeConn {
	f := z.raw()
	f.put(wire.Frame{Type: wire.TypeWelcome, Code: wire.Version, Session: 77, ID: fakeMaxBody, Flags: f.hello.Flags & wire.TakesFDs})
	return f
}

// Read collects descriptors.
func (f *fakeConn) Read(b []byte) (int, error) {
	u, ok := f.Conn.(*net.UnixConn)
	if !ok {
		return f.Conn.Read(b)
	}
	control := make([]byte, 64)
	n, cn, _, _, err := u.ReadMsgUnix(b, control)
	messages, _ := syscall.ParseSocketControlMessage(control[:max(cn, 0)])
	for i := range messages {
		fds, _ := syscall.ParseUnixRights(&messages[i])
		f.fds = append(f.fds, fds...)
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF
	}
	return max(n, 0), err
}

func (f *fakeConn) next() (wire.Frame, error) {
	b := make([]byte, wire.FrameHeader)
	if _, err := io.ReadFull(f, b); err != nil {
		return wire.Frame{}, err
	}
	size, err := wire.FrameSize(b)
	if err != nil {
		return wire.Frame{}, err
	}
	b = append(b, make([]byte, size-len(b))...)
	if _, err := io.ReadFull(f, b[wire.FrameHeader:]); err != nil {
		return wire.Frame{}, err
	}
	return wire.ParseFrame(b)
}

func (f *fakeConn) get() wire.Frame {
	fr, err := f.next()
	if err != nil {
		f.t.Errorf("zhx reads a frame: %v", err)
	}
	return fr
}

func (f *fakeConn) put(frames ...wire.Frame) {
	var b []byte
	for _, fr := range frames {
		b = wire.AppendFrame(b, &fr)
	}
	if _, err := f.Write(b); err != nil {
		f.t.Errorf("zhx writes: %v", err)
	}
}

// putFDs sends one frame with descriptors.
func (f *fakeConn) putFDs(fr wire.Frame, fds ...int) {
	fr.FDs = uint8(len(fds))
	if _, _, err := f.Conn.(*net.UnixConn).WriteMsgUnix(wire.AppendFrame(nil, &fr), syscall.UnixRights(fds...), nil); err != nil {
		f.t.Errorf("zhx writes: %v", err)
	}
}

func (f *fakeConn) ack(fr wire.Frame, level uint8) {
	f.put(wire.Frame{Type: wire.TypeAck, Code: level, Session: fr.Session, ID: fr.ID})
}

// fakePair gives a Conn named me and zhx's end of it.
func fakePair(t *testing.T, network string, o ipc.Options) (*ipc.Conn, *fakeConn, *fakeZhx) {
	t.Helper()
	z := fakeListen(t, network)
	ends := make(chan *fakeConn, 1)
	go func() { ends <- z.accept() }()
	if o.Address = z.address; o.Name == "" {
		o.Name = "me"
	}
	c, err := ipc.Dial(fakeCtx(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, <-ends, z
}

func fakeCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), fakePatience)
	t.Cleanup(cancel)
	return ctx
}

// fakeGo runs a call, and returns what waits for its error.
func fakeGo(call func() error) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- call() }()
	return func() error {
		select {
		case err := <-done:
			return err
		case <-time.After(fakePatience):
			return errors.New("it does not return")
		}
	}
}

func fakeEvent[T ipc.Event](t *testing.T, c *ipc.Conn) (event T) {
	t.Helper()
	e, err := c.Receive(fakeCtx(t))
	event, ok := e.(T)
	if !ok {
		t.Fatalf("received %T %+v, %v; want %T", e, e, err, event)
	}
	return event
}

// fakeNothing checks that nothing has come before what zhx sends now, a publication.
func fakeNothing(t *testing.T, c *ipc.Conn, z *fakeConn) {
	t.Helper()
	z.put(wire.Frame{Type: wire.TypePublish, To: "nothing"})
	fakeEvent[*ipc.Publication](t, c)
}
