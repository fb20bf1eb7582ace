package broker

// This file cuts a byte stream into packets: pure but for the read function it is given. Nothing here knows peers.

import (
	"encoding/binary"
	"io"
	"sync"

	"zhx/ipc/wire"
)

// A sink takes what a reader cut; the bytes are its only during the call.
type sink interface {
	stretch(b []byte)      // transfer packets, one or more, that name the same target and the same source
	packet(b []byte) error // a packet of another cmd; an error ends the stream
}

// reader keeps, between two calls of drain, the torn packet that the stream ended with: less than one packet.
type reader struct{ torn []byte }

// buffers lends a reader readSize bytes while it has something to read: an idle peer costs none of it. At the worst,
// every peer sending at once to receivers that are slow, that is maxPeers x readSize, which the kernel's own buffers
// exceed.
var buffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// drain reads and cuts until read fails, which it may with the last bytes or after them, and returns that error
// (unix.EAGAIN: call again when more is there), io.EOF when it reads nothing, or what Check or the sink finds wrong.
func (r *reader) drain(read func([]byte) (int, error), to sink) error {
	buf := buffers.Get().(*[readSize]byte)
	defer buffers.Put(buf)
	left, err := readAll(read, buf, copy(buf[:], r.torn), func(b []byte) (int, error) { return cut(b, to) })
	r.torn = append(r.torn[:0], left...)
	return err
}

// readAll reads behind the have bytes that are in buf, and has cut tell each time how many are used up, until read fails or there
// is nothing, and returns what is left over then; or until cut fails, and nothing more is to be done with the stream.
func readAll(read func([]byte) (int, error), buf *[readSize]byte, have int, cut func([]byte) (int, error)) (left []byte, err error) {
	for err == nil {
		var n int
		if n, err = read(buf[have:]); n > 0 {
			have += n
			used, wrong := cut(buf[:have])
			if wrong != nil {
				return nil, wrong
			}
			have = copy(buf[:], buf[used:have])
		} else if err == nil {
			err = io.EOF
		}
	}
	return buf[:have], err
}

// cut hands the whole packets in b to the sink and tells how many bytes they were. What follows them is checked at once,
// however little it is.
func cut(b []byte, to sink) (used int, err error) {
	for len(b)-used >= wire.PacketSize {
		first := b[used : used+wire.PacketSize]
		if err := wire.Check(first); err != nil {
			return used, err
		}
		if wire.Cmd(first) != wire.CmdTransfer {
			if err := to.packet(first); err != nil {
				return used, err
			}
			used += wire.PacketSize
			continue
		}
		end := used + wire.PacketSize
		for len(b)-end >= wire.PacketSize && sameRoute(first, b[end:end+wire.PacketSize]) {
			end += wire.PacketSize
		}
		to.stretch(b[used:end])
		used = end
	}
	return used, wire.Check(b[used:])
}

// sameRoute tells whether next is a transfer packet with the target and the source of first. A sender's headers are
// commonly equal to the last byte, so that is asked first, in words.
func sameRoute(first, next []byte) bool {
	f, n := (*[wire.OffsetMsg]byte)(first), (*[wire.OffsetMsg]byte)(next)
	diff := uint64(0)
	for i := 0; i < wire.OffsetMsg; i += 8 {
		diff |= binary.LittleEndian.Uint64(f[i:i+8]) ^ binary.LittleEndian.Uint64(n[i:i+8])
	}
	return diff == 0 || string(f[wire.OffsetTarget:]) == string(n[wire.OffsetTarget:]) &&
		wire.Check(next) == nil && wire.Cmd(next) == wire.CmdTransfer
}
