// From a child's output to lines.

package logs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Pump reads f, a FIFO or a pseudo-terminal's master, to its end, whatever the error that ends it, and hands each line to
// the ring, to emit and to the ring's file, in this order. emit may be nil; it must not wait (the child would), nor keep the
// slice. A last line without a newline counts as one. One pump a ring at a time.
//
// With a file and a FIFO, what the child wrote stays in the FIFO until the file has it, so that it is still there when zhxd
// is killed: the next pump of the same FIFO gives each line at least once. Twice come those that the file got and the FIFO
// still held, at most the lines of one read; an unfinished line may come once in full and once without its beginning. Lines
// that the file failed to take (Counters.FileDropped) leave the FIFO too. Anything else is taken as it is read.
func Pump(f *os.File, ring *Ring, emit func(line []byte)) {
	p := pump{f: f, ring: ring, emit: emit, buf: make([]byte, 4*LineMax)}
	defer p.end()
	if st, err := f.Stat(); err == nil && st.Mode()&os.ModeNamedPipe != 0 && filepath.IsAbs(f.Name()) {
		p.part = f.Name() + partSuffix
		p.recall()
	}
	for p.step() == nil {
	}
}

// A pump owns buf: first what was taken from f and is no whole line yet, then what was seen in f and is still there.
type pump struct {
	f     *os.File
	ring  *Ring
	emit  func([]byte)
	buf   []byte
	held  int     // of buf were taken; at most LineMax, without a newline
	part  string  // the part file, "" if f has no name
	kept  bool    // it has the held bytes
	look  *peeker // nil: not yet, or there can be none
	blind bool    // there can be none
	lines []piece
}

// step is one read and what comes of it. An error: there will be no other.
func (p *pump) step() error {
	file := p.ring.file.Load()
	seen, all, err := p.read(file != nil)
	end, at := p.held+seen, time.Now()
	done := p.cut(p.buf[:end], err != nil)
	if len(p.lines) > 0 {
		p.pass(file, at)
		p.forget()
	}
	if seen > 0 {
		if all { // and no line
			p.keep(p.buf[p.held:end])
		} else { // at least one line, which begins with what is held
			end = done
		}
		p.look.take(p.buf[p.held:end])
	}
	p.held = copy(p.buf, p.buf[done:end])
	return err
}

// read fills buf behind what is held. seen bytes of it are still in f; all: they must be taken, even without a newline.
func (p *pump) read(safe bool) (seen int, all bool, err error) {
	if safe && p.look == nil && !p.blind {
		if p.part != "" {
			p.look = newPeeker(p.f)
		}
		p.blind = p.look == nil
	}
	if safe && p.look != nil {
		seen, all, err = p.look.peek(p.buf[p.held:], p.held)
		if !errors.Is(err, errBlind) {
			return seen, all, err
		}
		p.look.close()
		p.look, p.blind = nil, true
	}
	n, err := p.f.Read(p.buf[p.held:])
	p.held += n
	return 0, false, err
}

// cut finds the lines, and returns how many bytes they are.
func (p *pump) cut(b []byte, last bool) (done int) {
	p.lines = p.lines[:0]
	for done < len(b) {
		text := b[done:]
		end := bytes.IndexByte(text[:min(len(text), LineMax+1)], '\n')
		switch {
		case end >= 0:
			p.lines = append(p.lines, piece{text: text[:end]})
			done += end + 1
		case len(text) > LineMax:
			p.lines = append(p.lines, piece{text: text[:LineMax], cut: true})
			done += LineMax
		case last:
			p.lines = append(p.lines, piece{text: text})
			done = len(b)
		default:
			return done
		}
	}
	return done
}

// pass hands the lines on.
func (p *pump) pass(file *file, at time.Time) {
	p.ring.add(p.lines, at)
	if p.emit != nil {
		for _, l := range p.lines {
			p.emit(l.text)
		}
	}
	if file != nil {
		dropped, changed, err := file.write(p.lines, at)
		p.ring.filed(dropped, file.path, changed, err)
	}
}

func (p *pump) end() {
	p.forget()
	if p.look != nil {
		p.look.close()
	}
}

// The part file is where the beginning of an unfinished line is safe while it is no longer in the FIFO: beside it.
const partSuffix = ".part"

// RemoveFIFO removes a run's FIFO, and what a pump may have left beside it.
func RemoveFIFO(path string) {
	os.Remove(path)
	os.Remove(path + partSuffix)
}

// keep adds to the part file what is about to be taken. It can fail: then these bytes are as safe as zhxd is.
func (p *pump) keep(more []byte) {
	f, err := os.OpenFile(p.part, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	f.Write(more)
	p.kept = true
}

// forget empties the part file, once the line is in the client's file.
func (p *pump) forget() {
	if p.kept {
		os.Remove(p.part)
		p.kept = false
	}
}

// recall begins with what the last zhxd's pump left in the part file.
func (p *pump) recall() {
	f, err := os.Open(p.part)
	if err != nil {
		return
	}
	defer f.Close()
	p.kept = true
	p.held, _ = io.ReadFull(f, p.buf[:LineMax])
}
