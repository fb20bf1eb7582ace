// From a child's output to lines.

package logs

import (
	"bytes"
	"io"
)

// Pump reads r to its end, whatever the error that ends it, and hands each line to the ring and to emit, in order. emit
// may be nil; it must not wait (the child would), nor keep the slice. A last line without a newline counts as one.
func Pump(r io.Reader, ring *Ring, emit func(line []byte)) {
	put := func(line []byte) {
		ring.Add(string(line))
		if emit != nil {
			emit(line)
		}
	}
	buf := make([]byte, 0, 4*LineMax)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		rest := buf
		for {
			line, after, whole := bytes.Cut(rest, []byte("\n"))
			if len(line) > LineMax {
				line, after, whole = rest[:LineMax], rest[LineMax:], true
			}
			if !whole {
				break
			}
			put(line)
			rest = after
		}
		if err != nil {
			if len(rest) > 0 {
				put(rest)
			}
			return
		}
		buf = buf[:copy(buf[:cap(buf)], rest)]
	}
}
