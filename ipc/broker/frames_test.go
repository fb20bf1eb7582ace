package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// frameNotes is a frameSink that writes down each frame, whoever it was given by.
type frameNotes struct {
	seen []string
	kept int // bytes of memory that were asked for
}

func (n *frameNotes) run(b []byte, count int) error {
	m := batch{b: b, n: count, frames: true}
	for ; m.n > 0; m = m.skip(1) {
		n.seen = append(n.seen, string(m.b[:m.size(0)]))
	}
	return nil
}

func (n *frameNotes) frame(b []byte) error {
	n.seen = append(n.seen, string(b))
	if b[wire.OffsetType] == 99 { // an error of the sink's ends the stream as well
		return io.ErrNoProgress
	}
	return nil
}

func (n *frameNotes) refused(header []byte) { n.seen = append(n.seen, "refused "+string(header)) }
func (n *frameNotes) room(bytes int) bool   { n.kept += bytes; return true }
func (n *frameNotes) limit() int            { return 3000 }

func readFrames(stream, cuts []byte) (n frameNotes, end error) {
	var f frames
	end = inPieces(stream, cuts, 97, func(read func([]byte) (int, error)) error { return f.drain(read, &n) })
	f.whole(&n)
	return n, end
}

// FuzzFrames: however a stream is torn and glued, its frames and what ends it are the same as in one piece, and no memory is
// kept in the end.
func FuzzFrames(f *testing.F) {
	frame := func(kind, code uint8, to string, body int) []byte {
		return wire.AppendFrame(nil, &wire.Frame{Type: kind, Code: code, Session: 7, ID: 1, To: to, From: "me", Body: make([]byte, body)})
	}
	m, other := frame(wire.TypeMessage, 0, "you", 500), frame(wire.TypeMessage, 0, "them", 500)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	f.Add(join(m, m, other, m), []byte{0})
	f.Add(join(frame(wire.TypeRegister, 0, "", 0), m, frame(wire.TypeFeed, 1, "", 0), m), []byte{1, 4})
	f.Add(join(m, frame(wire.TypeMessage, 1, "you", 2900), m), []byte{20})
	f.Add(join(m, frame(wire.TypeMessage, 1, "you", 3000), m), []byte{25, 3}) // beyond the limit
	f.Add(join(m, m[:300]), []byte{2})
	f.Add(join(m, frame(99, 0, "", 0), m), []byte{1})
	f.Add(append(m[:28:28], 255, 255, 255, 255), []byte{0})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		whole, end := readFrames(stream, nil)
		torn, tornEnd := readFrames(stream, cuts)
		if len(torn.seen) != len(whole.seen) || fmt.Sprint(torn.seen) != fmt.Sprint(whole.seen) {
			t.Fatalf("torn: %d frames, whole: %d", len(torn.seen), len(whole.seen))
		}
		for _, kind := range []error{io.EOF, io.ErrNoProgress, wire.ErrFrame} {
			if errors.Is(end, kind) != errors.Is(tornEnd, kind) {
				t.Fatalf("torn ends with %v, whole with %v", tornEnd, end)
			}
		}
		if torn.kept != 0 || whole.kept != 0 {
			t.Fatalf("%d and %d bytes are kept", torn.kept, whole.kept)
		}
	})
}

// FuzzHandshake: whatever a connection begins with, it is answered or closed, nobody panics, and another pair goes on.
func FuzzHandshake(f *testing.F) {
	hello := func(session uint64, body string) []byte {
		return wire.AppendFrame([]byte(wire.Preamble), &wire.Frame{Type: wire.TypeHello, Flags: wire.TakesFDs, Session: session, ID: 1, Body: []byte(body)})
	}
	f.Add(hello(9, ""))
	f.Add(append(hello(9, "cookie"), wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeRegister, Session: 9, ID: 2, From: "x"})...))
	f.Add(append(hello(8, ""), wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, Code: 3, Session: 8, ID: 2, To: "client2", From: "x", Body: []byte("y")})...))
	f.Add(append(hello(8, ""), wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeReply, FDs: 2, Session: 9, ID: 2})...))
	f.Add([]byte("\xa7ZHX"))
	f.Add([]byte("head\x00"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	b := New(&gate{sessions: map[string]*session{}}, slog.New(slog.DiscardHandler), Options{})
	ln, err := net.Listen("unix", filepath.Join(f.TempDir(), "s"))
	if err != nil {
		f.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- b.Serve(ln) }()
	f.Cleanup(func() { b.Close(); <-served })
	dial := func() net.Conn {
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			f.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	f.Fuzz(func(t *testing.T, begins []byte) {
		stranger, pair := dial(), dial()
		defer stranger.Close()
		defer pair.Close()
		stranger.Write(begins)
		stranger.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, stranger); errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, unix.EAGAIN) {
			t.Fatal("neither answered nor closed")
		}
		m := message("witness", "witness", "still here")
		pair.Write(encode(t, wire.Packet{Cmd: wire.CmdRegister, Source: "witness"}, m))
		got := make([]byte, wire.PacketSize)
		if _, err := io.ReadFull(pair, got); err != nil || !bytes.Equal(got, encode(t, m)) {
			t.Fatalf("another pair: %v", err)
		}
	})
}
