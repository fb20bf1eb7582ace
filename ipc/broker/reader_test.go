package broker

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// notes is a sink that writes down each packet, whoever it was given by.
type notes []string

func (n *notes) stretch(b []byte) {
	for ; len(b) > 0; b = b[wire.PacketSize:] {
		*n = append(*n, string(b[:wire.PacketSize]))
	}
}

func (n *notes) packet(b []byte) error {
	n.stretch(b)
	if wire.Wdt(b) == 1 && len(wire.Source(b)) == 0 { // an error of the sink's ends the stream as well
		return io.ErrNoProgress
	}
	return nil
}

// read is what a reader makes of a stream.
func read(stream, cuts []byte) (got notes, end error) {
	var r reader
	end = inPieces(stream, cuts, 5, func(read func([]byte) (int, error)) error { return r.drain(read, &got) })
	return got, end
}

// inPieces cuts stream into pieces, by turns of the sizes in cuts, of so many bytes each, and has it drained with pauses between them.
func inPieces(stream, cuts []byte, unit int, drain func(read func([]byte) (int, error)) error) error {
	for turn := 0; ; turn++ {
		piece := stream
		if len(cuts) > 0 {
			piece = stream[:min(len(stream), 1+unit*int(cuts[turn%len(cuts)]))]
		}
		stream = stream[len(piece):]
		err := drain(func(b []byte) (int, error) {
			if len(piece) == 0 && len(stream) == 0 {
				return 0, nil
			}
			n := copy(b, piece)
			if piece = piece[n:]; n == 0 {
				return -1, unix.EAGAIN
			}
			if turn%2 == 0 && len(piece) == 0 && len(stream) > 0 {
				return n, unix.EAGAIN // known to be the last for now
			}
			return n, nil
		})
		if err != unix.EAGAIN {
			return err
		}
	}
}

// FuzzReader: however a stream is torn and glued, the packets and what ends it are the same as in one piece.
func FuzzReader(f *testing.F) {
	packet := func(cmd, wdt int32, target, source string) []byte {
		return encode(f, wire.Packet{Cmd: cmd, Wdt: wdt, Target: target, Source: source, Msg: []byte("text")})
	}
	a, b := packet(wire.CmdTransfer, 0, "client2", "client1"), packet(wire.CmdTransfer, 0, "client1", "client2")
	feed, register := packet(wire.CmdWatchdog, 1, "null", "client1"), packet(wire.CmdRegister, 0, "null", "client1")
	join := func(parts ...[]byte) (s []byte) {
		for _, p := range parts {
			s = append(s, p...)
		}
		return s
	}
	f.Add(join(a, a, b, a), []byte{0})
	f.Add(join(register, a, feed, b, feed), []byte{110, 1})
	f.Add(join(a, []byte("GET / HTTP/1.1")), []byte{111})
	f.Add(join(a, a[:300]), []byte{20, 3, 200})
	f.Add(join(a, packet(wire.CmdWatchdog, 1, "", ""), a), []byte{255})
	f.Add(append(a[:12:12], 7, 0, 0, 0), []byte{2})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		whole, end := read(stream, nil)
		torn, tornEnd := read(stream, cuts)
		if fmt.Sprint(torn) != fmt.Sprint(whole) {
			t.Fatalf("torn: %d packets, whole: %d", len(torn), len(whole))
		}
		for _, kind := range []error{io.EOF, io.ErrNoProgress, wire.ErrHead, wire.ErrCmd, wire.ErrWdt} {
			if errors.Is(end, kind) != errors.Is(tornEnd, kind) {
				t.Fatalf("torn ends with %v, whole with %v", tornEnd, end)
			}
		}
		if n := len(stream) / wire.PacketSize; errors.Is(end, io.EOF) && len(whole) != n {
			t.Fatalf("%d packets of %d", len(whole), n)
		}
	})
}
