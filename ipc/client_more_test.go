package ipc_test

// The client against a zhx that the test plays: requests, contexts, torn frames, files, flow, and its end.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"zhx/ipc"
	"zhx/ipc/wire"
)

// Requests to this end: reply, failure, and when a reply is of no use any more.
func TestConnAnswers(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	request := func(id uint64, time uint32) *ipc.Message {
		t.Helper()
		z.put(wire.Frame{Type: wire.TypeRequest, Session: 9, ID: id, Time: time, To: "me", From: "b", Body: []byte("q")})
		m := fakeEvent[*ipc.Message](t, c)
		if !m.Request || m.From != "b" {
			t.Errorf("%+v", m)
		}
		return m
	}
	over := func(m *ipc.Message) {
		t.Helper()
		select {
		case <-m.Context().Done():
		case <-time.After(fakePatience):
			t.Error("its context does not end")
		}
	}
	m := request(1, 0)
	if err := m.Reply([]byte("r")); err != nil {
		t.Fatal(err)
	}
	if f := z.get(); f.Type != wire.TypeReply || f.Session != 9 || f.ID != 1 || f.From != "me" || string(f.Body) != "r" || f.Flags != 0 {
		t.Errorf("%+v", f)
	}
	over(m)
	if m.Reply(nil) == nil {
		t.Error("a second reply was taken")
	}
	if err := request(2, 0).Fail([]byte("no")); err != nil {
		t.Fatal(err)
	}
	if f := z.get(); f.Type != wire.TypeReply || f.ID != 2 || f.Flags != wire.Failed {
		t.Errorf("%+v", f)
	}
	m = request(3, 0)
	z.put(wire.Frame{Type: wire.TypeCancel, Session: 9, ID: 3, To: "me", From: "b"})
	over(m)
	over(request(4, 20))
	m = request(5, 0)
	z.Close()
	over(m)
	if err := m.Reply(nil); !errors.Is(err, ipc.ErrLost) {
		t.Errorf("a reply after the connection was lost: %v", err)
	}
	ln.accept()
}

// What a context's end does to each kind of call.
func TestConnContexts(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	ctx, cancel := context.WithCancel(fakeCtx(t))
	receive := fakeGo(func() error { _, err := c.Receive(ctx); return err })
	send := fakeGo(func() error { _, err := c.Send(ctx, "b", nil); return err })
	z.get()
	handled := fakeGo(func() error { _, err := c.Send(ctx, "b", []byte("kept"), ipc.At(ipc.Handled)); return err })
	kept := z.get()
	request := fakeGo(func() error { _, err := c.Request(ctx, "b", nil); return err })
	asked := z.get()
	if asked.Time == 0 || asked.Time > uint32(fakePatience/time.Millisecond) {
		t.Errorf("its deadline goes along: %d ms", asked.Time)
	}
	cancel()
	for i, wait := range []func() error{receive, send, handled, request} {
		if err := wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if f := z.get(); f.Type != wire.TypeCancel || f.ID != asked.ID || f.Session != asked.Session || f.To != "b" {
		t.Errorf("the receiver is not told: %+v", f)
	}
	z.put(wire.Frame{Type: wire.TypeReply, Session: asked.Session, ID: asked.ID}) // too late
	fakeNothing(t, c, z)
	z.Close()
	z = ln.accept()
	if f := z.get(); f.ID != kept.ID || string(f.Body) != "kept" || f.Flags != wire.Repeat {
		t.Errorf("a message of level Handled is kept nevertheless: %+v", f)
	}
	fakeEvent[*ipc.Link](t, c)
	fakeEvent[*ipc.Link](t, c)
	z.put(wire.Frame{Type: wire.TypeError, Code: wire.ErrStopped, Session: kept.Session, ID: kept.ID, To: "b"})
	if r := fakeEvent[*ipc.Refused](t, c); r.Err.Code != ipc.ErrStopped {
		t.Errorf("and its end is told: %+v", r)
	}

	// While the connection is down calls wait, and no more than 256 messages are kept.
	z.Close()
	fakeEvent[*ipc.Link](t, c)
	ln.ln.Close()
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := c.Feed(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("feed: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range 256 {
		c.Send(ended, "b", []byte{byte(i)}, ipc.At(ipc.Handled)) // is kept, and returns
	}
	full := fakeGo(func() error { _, err := c.Send(context.Background(), "b", nil, ipc.At(ipc.Handled)); return err })
	os.Remove(ln.address)
	again, err := net.Listen("unix", ln.address)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	z = (&fakeZhx{t, again, ln.address}).accept()
	for i := range 256 {
		if f := z.get(); f.Body[0] != byte(i) || f.Flags != 0 {
			t.Errorf("message %d: %+v", i, f)
		}
	}
	short, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Send(short, "b", nil, ipc.At(ipc.Handled)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the 257th: %v", err)
	}
	c.Close()
	if err := full(); !errors.Is(err, ipc.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// Frames torn anywhere come whole, over both kinds of socket; a frame that is none costs the connection, not the Conn.
func TestConnTornFrames(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			c, z, ln := fakePair(t, network, ipc.Options{})
			var b []byte
			for i := range 3 {
				b = wire.AppendFrame(b, &wire.Frame{Type: wire.TypeMessage, To: "me", From: "b", Body: bytes.Repeat([]byte{byte(i)}, i*100)})
			}
			for i := range b {
				z.Write(b[i : i+1])
			}
			for i := range 3 {
				if m := fakeEvent[*ipc.Message](t, c); len(m.Body) != i*100 {
					t.Errorf("%+v", m)
				}
			}
			large := bytes.Repeat([]byte("large"), 100<<10)
			go z.put(wire.Frame{Type: wire.TypeMessage, To: "me", Body: large})
			if m := fakeEvent[*ipc.Message](t, c); !bytes.Equal(m.Body, large) {
				t.Errorf("%d bytes", len(m.Body))
			}
			for _, absurd := range [][]byte{bytes.Repeat([]byte{0xff}, 64), make([]byte, 64), b[35:75]} {
				z.Write(absurd)
				z.Conn.(interface{ CloseWrite() error }).CloseWrite()
				if l := fakeEvent[*ipc.Link](t, c); l.Up || l.Err == nil {
					t.Errorf("%+v", l)
				}
				z = ln.accept()
				fakeEvent[*ipc.Link](t, c)
			}
			fakeNothing(t, c, z)
		})
	}
}

// fakePipe gives the write end's descriptor and whether it was closed everywhere else.
func fakePipe(t *testing.T) (w *os.File, closed func()) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return w, func() {
		t.Helper()
		w.Close()
		r.SetReadDeadline(time.Now().Add(fakePatience))
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("a descriptor is still open: %d, %v", n, err)
		}
	}
}

// Descriptors come to the message that they belong to, and those that nobody takes are closed.
func TestConnFiles(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	message := wire.Frame{Type: wire.TypeMessage, To: "me", From: "b", Body: []byte("x")}
	w1, closed1 := fakePipe(t)
	w2, closed2 := fakePipe(t)
	z.put(message)
	z.putFDs(message, int(w1.Fd()), int(w2.Fd()))
	z.put(message)
	for i, want := range []int{0, 2, 0} {
		m := fakeEvent[*ipc.Message](t, c)
		if len(m.Files) != want {
			t.Errorf("message %d has %d files", i, len(m.Files))
		}
		for _, f := range m.Files {
			if _, err := f.Write(nil); err != nil {
				t.Error(err)
			}
			f.Close()
		}
	}
	closed1()
	closed2()
	dup := func(frame wire.Frame, purpose string) func() {
		w, closed := fakePipe(t)
		z.putFDs(frame, int(w.Fd()))
		return func() { t.Helper(); t.Log(purpose); closed() }
	}
	untaken := []func(){
		dup(wire.Frame{Type: 99}, "of an unknown frame"),
		dup(wire.Frame{Type: wire.TypeReply, Session: z.hello.Session, ID: 12345}, "of a reply nobody waits for"),
		dup(wire.Frame{Type: wire.TypeGap, To: "x"}, "of a frame that has none"),
	}
	fakeEvent[*ipc.Gap](t, c)
	w, closed := fakePipe(t)
	if _, _, err := z.Conn.(*net.UnixConn).WriteMsgUnix(wire.AppendFrame(nil, &message), syscall.UnixRights(int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	if m := fakeEvent[*ipc.Message](t, c); len(m.Files) != 0 {
		t.Error("a frame that says 0 got one")
	}
	closed() // though it said 0
	for _, f := range untaken {
		f()
	}
	z.put(wire.Frame{Type: wire.TypeMessage, FDs: 1, To: "me"}) // and none comes
	if l := fakeEvent[*ipc.Link](t, c); l.Up {
		t.Error("descriptors that did not come were not missed")
	}
	z = ln.accept()
	fakeEvent[*ipc.Link](t, c)

	// To zhx: with the first byte of their frame, in the midst of others; the files remain the caller's.
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Add(2)
		go func() { defer wg.Done(); c.Send(fakeCtx(t), "b", nil, ipc.At(ipc.None)) }()
		go func() {
			defer wg.Done()
			w, closed := fakePipe(t)
			if _, err := c.Send(fakeCtx(t), "b", []byte{byte(i)}, ipc.WithFiles(w, w)); err != nil {
				t.Error(err)
			}
			closed()
		}()
	}
	for range 8 {
		f := z.get()
		if len(z.fds) != int(f.FDs) || len(f.Body)*2 != len(z.fds) {
			t.Errorf("%d descriptors of %d", len(z.fds), f.FDs)
		}
		for _, fd := range z.fds {
			syscall.Close(fd)
		}
		if z.fds = nil; f.Code > 0 {
			z.ack(f, 1)
		}
	}
	wg.Wait()
	for purpose, opts := range map[string][]ipc.Option{
		"at level handled": {ipc.WithFiles(os.Stdin), ipc.At(ipc.Handled)}, "too many": {ipc.WithFiles(os.Stdin, os.Stdin, os.Stdin, os.Stdin, os.Stdin)},
	} {
		if _, err := c.Send(fakeCtx(t), "b", nil, opts...); !errors.Is(err, ipc.ErrNoFDs) && !errors.Is(err, ipc.ErrBad) {
			t.Errorf("%s: %v", purpose, err)
		}
	}
	if _, err := c.Send(fakeCtx(t), "b", nil, ipc.WithFiles(w)); err == nil {
		t.Error("a closed file was sent")
	}
	w, closed = fakePipe(t)
	z.putFDs(message, int(w.Fd()))
	z.putFDs(message, int(w.Fd()))
	fakeEvent[*ipc.Message](t, c).Files[0].Close()
	c.Close()
	closed()

	tcp, _, _ := fakePair(t, "tcp", ipc.Options{})
	if _, err := tcp.Send(fakeCtx(t), "b", nil, ipc.WithFiles(os.Stdin)); !errors.Is(err, ipc.ErrNoFDs) {
		t.Errorf("over TCP: %v", err)
	}
}

// Without Receive little is read, and zhx sees that; a call gets its answer nevertheless, from behind as many messages as a socket
// holds.
func TestConnFlow(t *testing.T) {
	const behind = 5000
	c, z, _ := fakePair(t, "unix", ipc.Options{})
	z.Conn.(*net.UnixConn).SetWriteBuffer(64 << 10)
	message := wire.Frame{Type: wire.TypeMessage, To: "me", Body: make([]byte, 20<<10)}
	sent := 0
	for b := wire.AppendFrame(nil, &message); ; sent++ {
		z.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := z.Write(b); err != nil {
			break
		}
		if sent > 1000 {
			t.Fatal("it reads without bounds")
		}
	}
	if bytes := sent * len(message.Body); bytes > 1<<20 {
		t.Errorf("%d bytes were read or wait in the socket", bytes)
	}
	c.Close()

	c, z, _ = fakePair(t, "unix", ipc.Options{})
	message.Body = nil
	wait := fakeGo(func() error { _, err := c.Send(fakeCtx(t), "b", nil); return err })
	f := z.get()
	var b []byte
	for range behind {
		b = wire.AppendFrame(b, &message)
	}
	z.Write(b)
	z.ack(f, 1)
	if err := wait(); err != nil {
		t.Errorf("an answer behind %d messages: %v", behind, err)
	}
	for range behind {
		fakeEvent[*ipc.Message](t, c)
	}
}

// zhx says that the name is taken and closes; this end finds out by writing, while that is not read yet. It does not come back.
func TestConnTakenWhileWriting(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	for range 40 { // more than it reads ahead
		z.put(wire.Frame{Type: wire.TypeMessage, To: "me", Body: make([]byte, 1000)})
	}
	z.put(wire.Frame{Type: wire.TypeError, Code: wire.ErrTaken, To: "me"})
	z.Close()
	if err := c.Feed(fakeCtx(t)); err != nil {
		t.Fatal(err)
	}
	again := make(chan struct{})
	go func() {
		if conn, err := ln.ln.Accept(); err == nil {
			conn.Close()
			close(again)
		}
	}()
	time.Sleep(20 * time.Millisecond) // the writer fails, as nothing tells
	var err error
	for err == nil {
		_, err = c.Receive(fakeCtx(t))
	}
	if !errors.Is(err, ipc.ErrTaken) {
		t.Error(err)
	}
	select {
	case <-again:
		t.Error("it connects again")
	case <-time.After(100 * time.Millisecond):
	}
}

// A connection that takes nothing any more, and does not end either, keeps nobody from closing.
func TestConnClosesDeaf(t *testing.T) {
	c, z, _ := fakePair(t, "unix", ipc.Options{})
	z.Conn.(*net.UnixConn).CloseRead()
	c.Feed(fakeCtx(t))
	time.Sleep(20 * time.Millisecond) // the writer fails, as nothing tells
	if err := fakeGo(c.Close)(); err != nil {
		t.Error(err)
	}
}

// What is asked for again in vain goes on as it was.
func TestConnStandsOn(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	watch := func(ctx context.Context) func() error {
		return fakeGo(func() error { return c.Watch(ctx, "b") })
	}
	wait := watch(fakeCtx(t))
	z.get()
	z.put(wire.Frame{Type: wire.TypeState, To: "b"})
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(fakeCtx(t))
	wait = watch(ctx)
	z.get()
	cancel()
	if err := wait(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	z.Close()
	z = ln.accept()
	if f := z.get(); f.Type != wire.TypeWatch || f.To != "b" {
		t.Fatalf("%+v", f)
	}
	wait = watch(fakeCtx(t))
	z.get()
	z.put(wire.Frame{Type: wire.TypeState, To: "b"})
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	z.Close()
	z = ln.accept()
	if f := z.get(); f.Type != wire.TypeWatch || f.To != "b" {
		t.Fatalf("%+v", f)
	}
	z.put(wire.Frame{Type: wire.TypePublish, To: "nothing"})
	z.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if f, err := z.next(); err == nil {
		t.Errorf("once more: %+v", f)
	}
}

// Many goroutines, and a connection that is cut again and again: what is handled arrives, each message as often as it is
// sent again, and no call hangs.
func TestConnConcurrent(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	done := make(chan struct{})
	served := fakeGo(func() error {
		for n := 0; ; n++ {
			f, err := z.next()
			if err == nil && n%200 == 199 {
				z.Close()
			}
			if err != nil || n%200 == 199 {
				select {
				case <-done:
					return nil
				default:
					z = ln.accept()
				}
				continue
			}
			answer := wire.Frame{Type: wire.TypeAck, Code: f.Code, Session: f.Session, ID: f.ID, Body: f.Body}
			if f.Type == wire.TypeRequest {
				answer.Type = wire.TypeReply
			}
			z.Write(wire.AppendFrame(nil, &answer))
			z.Write(wire.AppendFrame(nil, &wire.Frame{Type: wire.TypePublish, To: "x"}))
		}
	})
	ctx := fakeCtx(t)
	received := fakeGo(func() error {
		for {
			if _, err := c.Receive(ctx); err != nil {
				return err
			}
		}
	})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				body := fmt.Sprint(g, i)
				if _, err := c.Send(ctx, "b", []byte(body), ipc.At(ipc.Handled)); err != nil {
					t.Errorf("handled: %v", err)
				}
				if r, err := c.Request(ctx, "b", []byte(body)); err != nil && !errors.Is(err, ipc.ErrLost) || err == nil && string(r.Body) != body {
					t.Errorf("request: %+v, %v", r, err)
				}
				if err := c.Feed(ctx); err != nil {
					t.Errorf("feed: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for { // feeds are on their way still, and with them perhaps a cut
		if _, err := c.Request(ctx, "b", nil); !errors.Is(err, ipc.ErrLost) {
			break
		}
	}
	close(done)
	c.Close()
	if err := received(); !errors.Is(err, ipc.ErrClosed) {
		t.Error(err)
	}
	if err := served(); err != nil {
		t.Error(err)
	}
}

// Close writes what was sent, and ends every call; Once makes the first lost connection the last.
func TestConnEnds(t *testing.T) {
	c, z, _ := fakePair(t, "unix", ipc.Options{})
	ctx := fakeCtx(t)
	waiting := fakeGo(func() error { _, err := c.Send(ctx, "b", nil); return err })
	z.get()
	for i := range 100 {
		if _, err := c.Send(ctx, "b", []byte{byte(i)}, ipc.At(ipc.None)); err != nil {
			t.Fatal(err)
		}
	}
	closed := fakeGo(func() error { return errors.Join(c.Close(), c.Close()) })
	for i := range 100 {
		if f := z.get(); f.Body[0] != byte(i) {
			t.Errorf("%+v", f)
		}
	}
	if _, err := z.next(); err != io.EOF {
		t.Errorf("then the end: %v", err)
	}
	if err := errors.Join(closed()); err != nil {
		t.Error(err)
	}
	if err := waiting(); !errors.Is(err, ipc.ErrClosed) {
		t.Errorf("under way: %v", err)
	}
	if _, err := c.Receive(ctx); !errors.Is(err, ipc.ErrClosed) {
		t.Errorf("after: %v", err)
	}

	c, z, _ = fakePair(t, "unix", ipc.Options{Once: true})
	z.put(wire.Frame{Type: wire.TypeMessage, To: "me", Body: []byte("last")})
	z.Close()
	if m := fakeEvent[*ipc.Message](t, c); m.Text() != "last" {
		t.Errorf("%+v", m)
	}
	if _, err := c.Receive(ctx); !errors.Is(err, ipc.ErrLost) {
		t.Errorf("once: %v", err)
	}
	if _, err := c.Send(ctx, "b", nil, ipc.At(ipc.Handled)); !errors.Is(err, ipc.ErrLost) {
		t.Errorf("once: %v", err)
	}
}
