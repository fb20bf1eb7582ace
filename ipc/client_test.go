package ipc_test

// The client against a zhx that the test plays: how it begins, what it asks, and how it comes back.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"zhx/ipc"
	"zhx/ipc/wire"
)

// How a connection begins, and what Dial makes of zhx's answer.
func TestConnBegins(t *testing.T) {
	cookie := filepath.Join(t.TempDir(), "cookie")
	os.WriteFile(cookie, []byte("from the file\n"), 0o600)
	refuse := func(f wire.Frame) func(*fakeConn) { return func(z *fakeConn) { z.put(f) } }
	for _, c := range []struct {
		purpose, network string
		o                ipc.Options
		env, wantCookie  string
		answer           func(*fakeConn)
		want             string // in the error
		is               error
	}{
		{purpose: "welcome", network: "unix", answer: refuse(wire.Frame{Type: wire.TypeWelcome, Code: 2, ID: 5})},
		{purpose: "the cookie as given", network: "tcp", o: ipc.Options{Cookie: "given"}, env: cookie, wantCookie: "given", answer: refuse(wire.Frame{Type: wire.TypeWelcome, Code: 2, ID: 5})},
		{purpose: "the cookie of the file", network: "tcp", env: cookie, wantCookie: "from the file", answer: refuse(wire.Frame{Type: wire.TypeWelcome, Code: 2, ID: 5})},
		{purpose: "refused", network: "tcp", answer: refuse(wire.Frame{Type: wire.TypeError, Code: wire.ErrDenied, Body: []byte("no such cookie")}), want: "no such cookie", is: ipc.ErrDenied},
		{purpose: "another version", network: "unix", answer: refuse(wire.Frame{Type: wire.TypeWelcome, Code: 1}), want: "version 1"},
		{purpose: "closed", network: "unix", answer: func(z *fakeConn) { z.Close() }, is: io.ErrUnexpectedEOF},
		{purpose: "closed within a frame", network: "unix", answer: func(z *fakeConn) { z.Write(make([]byte, 31)); z.Close() }, is: io.ErrUnexpectedEOF},
		{purpose: "an absurd size", network: "unix", answer: func(z *fakeConn) { z.Write(bytes.Repeat([]byte{0xff}, 100)) }, is: wire.ErrFrame},
		{purpose: "a size of nothing", network: "unix", answer: func(z *fakeConn) { z.Write(make([]byte, 100)) }, is: wire.ErrFrame},
		{purpose: "silence until ctx ends", network: "unix", answer: func(*fakeConn) {}, is: context.Canceled},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			t.Setenv("ZHX_COOKIE", c.env)
			z := fakeListen(t, c.network)
			ends := make(chan *fakeConn, 1)
			ctx, cancel := context.WithCancel(fakeCtx(t))
			defer cancel()
			go func() {
				f := z.raw()
				if c.answer(f); c.is == context.Canceled {
					cancel()
				}
				ends <- f
			}()
			c.o.Address = z.address
			conn, err := ipc.Dial(ctx, c.o)
			if f := <-ends; string(f.hello.Body) != c.wantCookie || (f.hello.Flags == wire.TakesFDs) != (c.network == "unix") {
				t.Errorf("hello %+v", f.hello)
			}
			if c.want == "" && c.is == nil {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Send(ctx, "b", []byte("123456")); !errors.Is(err, ipc.ErrTooBig) {
					t.Errorf("a body larger than welcome says: %v", err)
				}
				conn.Close()
			} else if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v; want %q, %v", err, c.want, c.is)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if _, err := ipc.Dial(fakeCtx(t), ipc.Options{Address: path}); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(fakeCtx(t))
		wait := fakeGo(func() error {
			c, err := ipc.Dial(ctx, ipc.Options{Address: path, Wait: true})
			if err == nil {
				c.Close()
			}
			return err
		})
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		(&fakeZhx{t, ln, path}).accept()
		if err := wait(); err != nil {
			t.Errorf("it waits for who listens: %v", err)
		}
		cancel()
	})
}

// What each call puts on the wire, and what it makes of the answer.
func TestConnCalls(t *testing.T) {
	c, z, _ := fakePair(t, "unix", ipc.Options{})
	ctx := fakeCtx(t)
	type frame = wire.Frame
	level := func(l ipc.Level, err error) error {
		if err == nil && l != ipc.Written {
			return fmt.Errorf("level %v", l)
		}
		return err
	}
	ack, refused := &frame{Type: wire.TypeAck, Code: wire.LevelWritten}, &frame{Type: wire.TypeError, Code: wire.ErrRestarting, Time: 1500, To: "b", Body: []byte("not now")}
	for _, s := range []struct {
		purpose string
		call    func() error
		want    frame
		answer  *frame // nil: it waits for none
		is      error
	}{
		{"register as oneself", func() error { return c.Register(ctx, "") }, frame{Type: wire.TypeRegister, From: "me"}, ack, nil},
		{"and another name", func() error { return c.Register(ctx, "two") }, frame{Type: wire.TypeRegister, From: "two"}, ack, nil},
		{"send, accepted", func() error { return level(c.Send(ctx, "b", []byte("hi"))) }, frame{Type: wire.TypeMessage, To: "b", From: "me", Code: 1, Body: []byte("hi")}, ack, nil},
		{"send with all options", func() error {
			return level(c.Send(ctx, "b", nil, ipc.At(ipc.Handled), ipc.NoHold(), ipc.WaitAtMost(1500*time.Microsecond), ipc.From("two")))
		}, frame{Type: wire.TypeMessage, To: "b", From: "two", Code: 3, Flags: wire.NoHold, Time: 2}, ack, nil},
		{"send, refused", func() error { return level(c.Send(ctx, "b", nil)) }, frame{Type: wire.TypeMessage, To: "b", From: "me", Code: 1}, refused, ipc.ErrRestarting},
		{"send, no answer asked for", func() error { _, err := c.Send(ctx, "b", nil, ipc.At(ipc.None)); return err }, frame{Type: wire.TypeMessage, To: "b", From: "me"}, nil, nil},
		{"publish", func() error { return c.Publish(ctx, "a.b", []byte("x"), ipc.Retain()) }, frame{Type: wire.TypePublish, To: "a.b", From: "me", Code: 1, Flags: wire.Retain, Body: []byte("x")}, ack, nil},
		{"publish without an answer", func() error { return c.Publish(ctx, "a.b", nil, ipc.At(ipc.None)) }, frame{Type: wire.TypePublish, To: "a.b", From: "me"}, nil, nil},
		{"subscribe", func() error { return c.Subscribe(ctx, "a.>", ipc.LatestOnly, 7) }, frame{Type: wire.TypeSubscribe, To: "a.>", From: "me", Code: 2, Time: 7}, ack, nil},
		{"unsubscribe", func() error { return c.Unsubscribe(ctx, "a.>") }, frame{Type: wire.TypeUnsubscribe, To: "a.>"}, ack, nil},
		{"watch", func() error { return c.Watch(ctx, "b") }, frame{Type: wire.TypeWatch, To: "b"}, &frame{Type: wire.TypeState, To: "b", ID: 4, Code: wire.StateLate}, nil},
		{"watch, refused", func() error { return c.Watch(ctx, "-") }, frame{Type: wire.TypeWatch, To: "-"}, &frame{Type: wire.TypeError, Code: wire.ErrBad}, ipc.ErrBad},
		{"unwatch", func() error { return c.Unwatch(ctx, "b") }, frame{Type: wire.TypeUnwatch, To: "b"}, nil, nil},
		{"arm", func() error { return c.Arm(ctx) }, frame{Type: wire.TypeFeed, From: "me"}, nil, nil},
		{"feed", func() error { return c.Feed(ctx) }, frame{Type: wire.TypeFeed, From: "me", Code: 1}, nil, nil},
		{"a checkpoint", func() error { return c.Checkpoint(ctx, "loop") }, frame{Type: wire.TypeFeed, From: "me", Code: 2, To: "loop"}, nil, nil},
		{"request", func() error {
			r, err := c.Request(context.Background(), "b", []byte("q"))
			if err == nil && (string(r.Body) != "because" || !r.Failed || r.From != "b") {
				return fmt.Errorf("%+v", r)
			}
			return err
		}, frame{Type: wire.TypeRequest, To: "b", From: "me", Body: []byte("q")}, &frame{Type: wire.TypeReply, From: "b", Flags: wire.Failed, Body: []byte("because")}, nil},
	} {
		t.Run(s.purpose, func(t *testing.T) {
			wait := fakeGo(s.call)
			got := z.get()
			id := got.ID
			if got.Session != z.hello.Session || id == 0 {
				t.Errorf("session %x, id %d; hello said %x", got.Session, id, z.hello.Session)
			}
			got.Session, got.ID = 0, 0
			if len(got.Body) == 0 {
				got.Body = nil
			}
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", s.want) {
				t.Errorf("%+v, want %+v", got, s.want)
			}
			if a := s.answer; a != nil {
				f := *a
				if f.Session = z.hello.Session; f.Type != wire.TypeState {
					f.ID = id
				}
				z.put(f)
			}
			if err := wait(); !errors.Is(err, s.is) {
				t.Errorf("%v, want %v", err, s.is)
			} else if refused := (*ipc.Error)(nil); errors.As(err, &refused) && refused.Code == ipc.ErrRestarting {
				if refused.Retry != 1500*time.Millisecond || !strings.Contains(err.Error(), "not now") || !strings.Contains(err.Error(), `"b"`) {
					t.Errorf("%v", err)
				}
			}
		})
	}
	if s := fakeEvent[*ipc.State](t, c); s.Name != "b" || s.State != ipc.Late || s.Changes != 4 {
		t.Errorf("%+v", s)
	}
	z.put(wire.Frame{Type: wire.TypeGap, To: "a.>", ID: 9}, wire.Frame{Type: 99}, wire.Frame{Type: wire.TypeAck, Session: 1, ID: 1},
		wire.Frame{Type: wire.TypePublish, To: "a.b", From: "b", Flags: wire.Retain, Body: []byte("x")},
		wire.Frame{Type: wire.TypeError, Session: z.hello.Session, ID: 1 << 40, Code: wire.ErrNoName, To: "b"},
		wire.Frame{Type: wire.TypeMessage, To: "me", From: "v1", Flags: wire.FromV1, Body: append([]byte("old"), make([]byte, 509)...)})
	if g := fakeEvent[*ipc.Gap](t, c); g.Pattern != "a.>" || g.Lost != 9 {
		t.Errorf("%+v", g)
	}
	if p := fakeEvent[*ipc.Publication](t, c); p.Topic != "a.b" || p.From != "b" || !p.Kept || string(p.Body) != "x" {
		t.Errorf("%+v", p)
	}
	if r := fakeEvent[*ipc.Refused](t, c); r.Err.Code != ipc.ErrNoName || r.Err.To != "b" {
		t.Errorf("%+v", r)
	}
	if m := fakeEvent[*ipc.Message](t, c); !m.FromV1 || m.Text() != "old" || m.From != "v1" || m.To != "me" || m.Done() != nil {
		t.Errorf("%+v", m)
	}
}

// After a lost connection: what stands is asked for again, what is kept is sent again, before anything newer and marked
// only where the receiver may have it, and what cannot be known is told.
func TestConnReturns(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	ctx := fakeCtx(t)
	for _, call := range []func() error{
		func() error { return c.Register(ctx, "") },
		func() error { return c.Subscribe(ctx, "gone", 0, 0) },
		func() error { return c.Subscribe(ctx, "a.*", ipc.DropNewest, 3) },
		func() error { return c.Watch(ctx, "b") },
	} {
		wait := fakeGo(call)
		z.ack(z.get(), 1)
		if err := wait(); err != nil {
			t.Fatal(err)
		}
	}
	gone := fakeGo(func() error { return c.Unsubscribe(ctx, "gone") })
	z.ack(z.get(), 1)
	if err := gone(); err != nil {
		t.Fatal(err)
	}
	handled := func(to, body string) func() error {
		wait := fakeGo(func() error { _, err := c.Send(ctx, to, []byte(body), ipc.At(ipc.Handled)); return err })
		return wait
	}
	waits := []func() error{}
	for _, m := range []string{"b1", "b2", "d1"} {
		waits = append(waits, handled(m[:1], m))
		z.get()
	}
	lost := fakeGo(func() error { _, err := c.Send(ctx, "b", nil); return err })
	z.get()
	asked := fakeGo(func() error { _, err := c.Request(ctx, "b", nil); return err })
	z.get()
	z.Close()
	for _, wait := range []func() error{lost, asked} {
		if err := wait(); !errors.Is(err, ipc.ErrLost) {
			t.Errorf("under way when the connection was lost: %v", err)
		}
	}
	if l := fakeEvent[*ipc.Link](t, c); l.Up || l.Err == nil {
		t.Errorf("%+v", l)
	}
	var newer []func() error
	newer = append(newer, fakeGo(func() error { _, err := c.Send(ctx, "b", []byte("newer")); return err }))

	z = ln.accept()
	for _, want := range []string{"register me  0 0", "subscribe me a.* 0 3", "watch  b 0 0", "message b b1 1 0", "message b b2 0 0", "message d d1 1 0", "message b newer 0 0"} {
		f := z.get()
		got := map[uint8]string{wire.TypeRegister: "register", wire.TypeSubscribe: "subscribe", wire.TypeWatch: "watch", wire.TypeMessage: "message"}[f.Type]
		if f.Type == wire.TypeMessage {
			got += fmt.Sprintf(" %s %s %d %d", f.To, f.Body, f.Flags, f.Time)
		} else {
			got += fmt.Sprintf(" %s %s %d %d", f.From, f.To, f.Flags, f.Time)
		}
		if got != want {
			t.Errorf("again: %q, want %q", got, want)
		}
		z.ack(f, max(f.Code, 1))
	}
	for i, wait := range append(waits, newer...) {
		if err := wait(); err != nil {
			t.Errorf("message %d: %v", i, err)
		}
	}
	if l := fakeEvent[*ipc.Link](t, c); !l.Up {
		t.Errorf("%+v", l)
	}

	// A message of level Handled that is first sent after the connection was lost is no repeat; Register asked for meanwhile comes first.
	z.Close()
	fakeEvent[*ipc.Link](t, c)
	register := fakeGo(func() error { return c.Register(ctx, "two") })
	wait := handled("b", "late")
	z = ln.accept()
	seen := map[string]int{}
	for range 5 {
		f := z.get()
		seen[f.From+f.To+string(f.Body)]++
		if f.Type == wire.TypeMessage && f.Flags != 0 {
			t.Errorf("%+v", f)
		}
		z.ack(f, max(f.Code, 1))
	}
	if err := errors.Join(register(), wait()); err != nil || seen["two"] != 1 || seen["meblate"] != 1 {
		t.Errorf("%v, %v", err, seen)
	}

	// A refusal of what is registered again is told, and a takeover ends it.
	z.Close()
	z = ln.accept()
	f := z.get()
	z.put(wire.Frame{Type: wire.TypeError, Code: wire.ErrDenied, Session: f.Session, ID: f.ID, To: f.From})
	for {
		e, err := c.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := e.(*ipc.Refused); ok {
			if r.Err.Code != ipc.ErrDenied {
				t.Errorf("%+v", r.Err)
			}
			break
		}
	}
	z.put(wire.Frame{Type: wire.TypeError, Code: wire.ErrTaken, To: "me"})
	if _, err := c.Receive(ctx); !errors.Is(err, ipc.ErrTaken) {
		t.Errorf("taken over: %v", err)
	}
	if err := c.Feed(ctx); !errors.Is(err, ipc.ErrTaken) {
		t.Errorf("after that: %v", err)
	}
	c.Close()
	ln.ln.(*net.UnixListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := ln.ln.Accept(); err == nil {
		t.Error("it came back")
	}
}

// The receiver's side of level Handled.
func TestConnHandledOnce(t *testing.T) {
	c, z, ln := fakePair(t, "unix", ipc.Options{})
	message := func(session, id uint64, flags uint8, to string) wire.Frame {
		return wire.Frame{Type: wire.TypeMessage, Code: wire.LevelHandled, Flags: flags, Session: session, ID: id, To: to, From: "b", Body: []byte("x")}
	}
	acked := func(session, id uint64) {
		t.Helper()
		if f := z.get(); f.Type != wire.TypeAck || f.Code != wire.LevelHandled || f.Session != session || f.ID != id {
			t.Errorf("%+v, want the acknowledgement of %d %d", f, session, id)
		}
	}
	z.put(message(1, 5, wire.Repeat, "me"))
	first := fakeEvent[*ipc.Message](t, c)
	if !first.Repeat || first.Level != ipc.Handled {
		t.Errorf("the repeat for an unknown session: %+v", first)
	}
	z.put(message(1, 5, wire.Repeat, "me"), message(1, 4, 0, "me"))
	fakeNothing(t, c, z) // it is in work

	z.Close()
	fakeEvent[*ipc.Link](t, c)
	first.Done() // while the connection is down
	z = ln.accept()
	fakeEvent[*ipc.Link](t, c)
	z.put(message(1, 5, wire.Repeat, "me"))
	acked(1, 5)
	fakeNothing(t, c, z)
	z.put(message(1, 6, wire.Repeat, "me"))
	if m := fakeEvent[*ipc.Message](t, c); m.Repeat {
		t.Errorf("a repeat of what never came is none: %+v", m)
	} else {
		m.Done()
		acked(1, 6)
		m.Done() // once is enough
	}
	z.put(message(1, 3, 0, "two"))
	fakeEvent[*ipc.Message](t, c).Done() // another name has its own order
	acked(1, 3)

	for s := uint64(100); s < 100+1030; s++ {
		z.put(message(s, 1, 0, "me"))
		fakeEvent[*ipc.Message](t, c).Done()
		acked(s, 1)
	}
	z.put(message(100+1029, 1, wire.Repeat, "me"), message(110, 1, wire.Repeat, "me"))
	acked(100+1029, 1)
	acked(110, 1)
	z.put(message(1, 6, wire.Repeat, "me"))
	if m := fakeEvent[*ipc.Message](t, c); !m.Repeat {
		t.Error("a session that was quiet for longest is not forgotten")
	}
}
