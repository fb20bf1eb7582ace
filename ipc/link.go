package ipc

// This file is one connection of protocol 2 while it lasts: its beginning, frames and descriptors in and out.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

const (
	readAhead   = 4 << 10         // bytes read beyond the frame at hand: little, so that reading keeps step with Receive
	outMax      = 256 << 10       // bytes that wait to be written; beyond, calls wait
	handshake   = 5 * time.Second // until WELCOME
	linger      = time.Second     // how long Close may write what was sent
	namesMax    = 255             // bytes of a name, that a frame can hold
	spareMax    = 2 * outMax      // a larger buffer is not kept for later
	controlSize = 64              // of a control message with FDsMax descriptors, ample
	strayMax    = 8 * wire.FDsMax // descriptors that no frame takes
)

// link is one connection.
type link struct {
	conn    net.Conn
	unix    *net.UnixConn // nil over TCP
	in      *bufio.Reader // the reader's
	got     []int         // the reader's: descriptors that came, and whose frame is not read yet
	maxBody int
	fds     bool          // descriptors may be sent
	written chan struct{} // closed when the writer has ended

	// Conn.mu guards:
	out   []byte
	marks []mark
	work  sync.Cond // there is something to write, or it has ended
	ended bool      // the writer ends when out is empty
	deaf  bool      // zhx takes nothing any more, and the writer has ended; what it said before is still read
}

// mark is that a frame with descriptors begins at an offset of what is to be written.
type mark struct {
	at  int
	fds []int // owned; closed when they are sent
}

// connect returns a link when zhx has welcomed it. An *Error is zhx's refusal.
func (c *Conn) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshake)
	defer cancel()
	conn, err := dial(ctx, c.o.Address)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, written: make(chan struct{}), work: sync.Cond{L: &c.mu}}
	l.unix, _ = conn.(*net.UnixConn)
	l.in = bufio.NewReaderSize(l, readAhead)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = l.hello(c)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		l.closeFiles()
		return nil, err
	}
	return l, nil
}

func (l *link) hello(c *Conn) error {
	f := wire.Frame{Type: wire.TypeHello, Session: c.session}
	if l.unix != nil {
		f.Flags = wire.TakesFDs
	} else {
		cookie, err := c.cookie()
		if err != nil {
			return err
		}
		f.Body = []byte(cookie)
	}
	if _, err := l.conn.Write(wire.AppendFrame([]byte(wire.Preamble), &f)); err != nil {
		return err
	}
	w, files, err := l.frame()
	closeFiles(files)
	switch {
	case err != nil:
		return fmt.Errorf("waiting for its welcome: %w", unexpected(err))
	case w.Type == wire.TypeError:
		return refusal(w)
	case w.Type != wire.TypeWelcome || w.Code != wire.Version:
		return fmt.Errorf("zhx answered with a frame of type %d, version %d: want %d, %d", w.Type, w.Code, wire.TypeWelcome, wire.Version)
	}
	l.maxBody = int(min(w.ID, wire.FrameMax-wire.FrameHeader-2*namesMax))
	l.fds = l.unix != nil && w.Flags&wire.TakesFDs != 0
	return nil
}

// cookie is read again for each connection, since each zhxd makes its own.
func (c *Conn) cookie() (string, error) {
	path := os.Getenv("ZHX_COOKIE")
	if c.o.Cookie != "" || path == "" {
		return c.o.Cookie, nil
	}
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func refusal(f wire.Frame) *Error {
	return &Error{Code: Code(f.Code), To: f.To, Text: string(f.Body), Retry: time.Duration(f.Time) * time.Millisecond}
}

var errFDs = errors.New("descriptors of a frame did not come, perhaps since this process has no room for more")

// frame reads the next frame and its files.
func (l *link) frame() (wire.Frame, []*os.File, error) {
	h, err := l.in.Peek(wire.FrameHeader)
	if err != nil {
		if len(h) > 0 {
			err = unexpected(err)
		}
		return wire.Frame{}, nil, err
	}
	size, err := wire.FrameSize(h)
	if err != nil {
		return wire.Frame{}, nil, err
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(l.in, b); err != nil {
		return wire.Frame{}, nil, unexpected(err)
	}
	f, err := wire.ParseFrame(b)
	if err != nil {
		return f, nil, err
	}
	n := int(f.FDs)
	if n > len(l.got) {
		return f, nil, errFDs // which of those that came later are whose cannot be told any more
	}
	var files []*os.File
	for _, fd := range l.got[:n] {
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("from %s", f.From)))
	}
	if l.got = l.got[n:]; l.in.Buffered() == 0 {
		l.closeFiles() // nothing is left that they could belong to
	}
	return f, files, nil
}

// Read reads bytes and keeps the descriptors that come with them: the kernel gives those of one frame at a time, at the
// latest with its first byte, so they come in the frames' order.
func (l *link) Read(b []byte) (int, error) {
	if l.unix == nil {
		return l.conn.Read(b)
	}
	var control [controlSize]byte
	n, cn, flags, _, err := l.unix.ReadMsgUnix(b, control[:])
	if cn > 0 {
		messages, _ := syscall.ParseSocketControlMessage(control[:cn])
		for i := range messages {
			fds, _ := syscall.ParseUnixRights(&messages[i])
			l.got = append(l.got, fds...)
		}
	}
	if err == nil && (flags&syscall.MSG_CTRUNC != 0 || len(l.got) > strayMax) {
		err = errFDs
	}
	if errors.Is(err, io.EOF) {
		err = io.EOF // it is wrapped here, as nowhere else
	}
	return max(n, 0), err // it is -1 with an error
}

// closeFiles closes the descriptors that no frame took.
func (l *link) closeFiles() {
	for _, fd := range l.got {
		syscall.Close(fd)
	}
	l.got = nil
}

// put adds a frame to what is to be written. It takes fds. Conn.mu is held.
func (l *link) put(f *wire.Frame, fds []int) {
	if len(fds) > 0 {
		f.FDs = uint8(len(fds))
		l.marks = append(l.marks, mark{len(l.out), fds})
	}
	l.out = wire.AppendFrame(l.out, f)
	l.work.Signal()
}

// write writes what is put until the link has ended or its connection broken. Then the reader still reads what zhx said before,
// that the name is taken for one, up to the end that half a close brings about.
func (c *Conn) write(l *link) {
	defer close(l.written)
	var spare []byte
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(l.out) == 0 && !l.ended {
			l.work.Wait()
		}
		if len(l.out) == 0 {
			l.conn.Close()
			return
		}
		b, marks := l.out, l.marks
		l.out, l.marks = spare, nil
		c.state.Broadcast() // there is room
		c.mu.Unlock()
		err := l.writeOut(b, marks)
		c.mu.Lock()
		if spare = nil; cap(b) <= spareMax {
			spare = b[:0]
		}
		if err != nil && l.ended {
			l.conn.Close()
			return
		}
		if err != nil {
			l.deaf = true
			l.conn.(interface{ CloseWrite() error }).CloseWrite()
			return
		}
	}
}

// writeOut writes b and closes the marks' descriptors.
func (l *link) writeOut(b []byte, marks []mark) (err error) {
	at := 0
	for i, m := range marks {
		end := len(b)
		if i+1 < len(marks) {
			end = marks[i+1].at
		}
		if err == nil && at < m.at {
			_, err = l.conn.Write(b[at:m.at])
		}
		if err == nil {
			var n int
			n, _, err = l.unix.WriteMsgUnix(b[m.at:end], syscall.UnixRights(m.fds...), nil)
			at = m.at + n // the descriptors are with the first byte; the rest goes as any
		}
		closeAll(m.fds)
	}
	if err == nil && at < len(b) {
		_, err = l.conn.Write(b[at:])
	}
	return err
}

// duplicates makes descriptors of our own, so that the caller may close the files whenever it likes.
func duplicates(files []*os.File) (fds []int, err error) {
	for _, f := range files {
		var raw syscall.RawConn
		if raw, err = f.SyscallConn(); err != nil {
			break
		}
		controlErr := raw.Control(func(fd uintptr) {
			var dup int
			if dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				fds = append(fds, dup)
			}
		})
		if err = errors.Join(err, controlErr); err != nil {
			break
		}
	}
	if err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		syscall.Close(fd)
	}
}
