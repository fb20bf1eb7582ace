package broker

// This file cuts a byte stream into frames: pure but for the read function it is given. Nothing here knows peers.

import (
	"encoding/binary"

	"zhx/ipc/wire"
)

// A frameSink takes what frames cut; the bytes are its only during the call.
type frameSink interface {
	run(b []byte, n int) error // n messages without an acknowledgement or descriptors, of one route; an error ends the stream
	frame(b []byte) error      // any other
	refused(header []byte)     // one that is larger than limit, or that room refused; its bytes are passed over
	room(bytes int) bool       // may so much memory be kept for a frame begun? negative: it is given back
	limit() int                // the largest frame
}

// frames keeps what the stream ended with between two calls of drain.
type frames struct {
	torn []byte // of a frame begun
	size int    // of that, if memory was asked for; else 0
	skip int    // bytes still to be passed over
}

// begun tells whether the stream ended within a frame that memory is kept for.
func (f *frames) begun() bool { return f.size > 0 || f.skip > 0 }

// tornFree is how much of a frame may be kept without asking for room.
const tornFree = 1 << 10

// drain is reader.drain for frames.
func (f *frames) drain(read func([]byte) (int, error), to frameSink) error {
	buf := buffers.Get().(*[readSize]byte)
	defer buffers.Put(buf)
	have := 0
	if f.size <= readSize {
		have = copy(buf[:], f.torn)
	}
	left, err := readAll(read, buf, have, func(b []byte) (int, error) { return f.cut(b, to) })
	if f.size <= readSize {
		f.keep(left, to)
	}
	return err
}

// keep holds on to a part of a frame that fits into the buffer.
func (f *frames) keep(part []byte, to frameSink) {
	if f.size == 0 && len(part) > tornFree {
		size, _ := wire.FrameSize(part)
		if !to.room(size) {
			to.refused(part[:wire.FrameHeader])
			f.torn, f.skip = nil, size-len(part)
			return
		}
		f.size = size
	}
	if len(part) == 0 {
		f.torn = nil
		return
	}
	f.torn = append(f.torn[:0], part...)
}

// whole gives the memory of a frame back.
func (f *frames) whole(to frameSink) {
	if f.size > 0 {
		to.room(-f.size)
		f.size, f.torn = 0, nil
	}
}

// cut hands what is whole in b to the sink and tells how many bytes are used up.
func (f *frames) cut(b []byte, to frameSink) (used int, err error) {
	for used < len(b) {
		rest := b[used:]
		if f.skip > 0 {
			n := min(f.skip, len(rest))
			f.skip -= n
			used += n
			continue
		}
		if f.size > readSize {
			n := min(f.size-len(f.torn), len(rest))
			f.torn = append(f.torn, rest[:n]...)
			used += n
			if len(f.torn) == f.size {
				if err := to.frame(f.torn); err != nil {
					return used, err
				}
				f.whole(to)
			}
			continue
		}
		size, err := wire.FrameSize(rest)
		switch {
		case err != nil:
			return used, err
		case size == 0:
			return used, nil
		case size > to.limit():
			to.refused(rest[:wire.FrameHeader])
			f.whole(to)
			f.skip = size
			continue
		case size > readSize:
			if !to.room(size) {
				to.refused(rest[:wire.FrameHeader])
				f.skip = size
				continue
			}
			f.size, f.torn = size, make([]byte, 0, 2*readSize)
			continue
		case size > len(rest):
			return used, nil
		}
		f.whole(to)
		n := 1
		if plain(rest) {
			end := size
			for len(rest)-end >= size && sameHead(rest[:size], rest[end:]) { // as many as are alike in size, too
				end += size
				n++
			}
			if err := to.run(rest[:end], n); err != nil {
				return used, err
			}
			used += end
			continue
		}
		if err := to.frame(rest[:size]); err != nil {
			return used, err
		}
		used += size
	}
	return used, nil
}

// plain tells whether a frame is a message that asks for nothing.
func plain(b []byte) bool {
	return b[wire.OffsetType] == wire.TypeMessage && b[wire.OffsetCode] == wire.LevelNone && b[wire.OffsetFDs] == 0
}

// sameHead tells whether the frame that next begins with is as large as first, of the same kind and route. A sender's frames are
// commonly equal but for their ids: the header is compared in words.
func sameHead(first, next []byte) bool {
	f, n := (*[wire.FrameHeader]byte)(first), (*[wire.FrameHeader]byte)(next)
	u := binary.LittleEndian.Uint64
	names := wire.FrameHeader + int(f[wire.OffsetTime+4]) + int(f[wire.OffsetTime+5])
	return u(f[0:8]) == u(n[0:8]) && u(f[wire.OffsetSession:]) == u(n[wire.OffsetSession:]) && u(f[wire.OffsetTime:]) == u(n[wire.OffsetTime:]) &&
		string(first[wire.FrameHeader:names]) == string(next[wire.FrameHeader:names])
}
