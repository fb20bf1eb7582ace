package ipc

// This file is what comes: answers for calls, events for Receive, and which messages of level Handled came before.

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"zhx/ipc/wire"
)

const (
	inboxEvents = 16 // that wait for Receive; then nothing more is read
	inboxBytes  = 256 << 10
	askedEvents = 8192 // the same while calls wait for answers, which come behind: more than a Unix socket holds
	askedBytes  = 4 << 20
	notesMax    = 1024 // events beyond which no *Refused or *Link is added
	seenMax     = 1024 // pairs of a sender's session and a name of ours
)

// Receive waits for the next event. After the Conn has ended it gives what still waits, then ErrTaken, ErrLost or ErrClosed.
func (c *Conn) Receive(ctx context.Context) (Event, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.wait(ctx, &c.inbox, func() bool { return len(c.in) > 0 }); err != nil && (len(c.in) == 0 || c.err == ErrClosed) {
		return nil, err
	}
	e := c.in[0]
	c.in[0] = nil
	c.in = c.in[1:]
	c.inBytes -= weight(e)
	c.inbox.Broadcast()
	return e, nil
}

func weight(e Event) int {
	switch e := e.(type) {
	case *Message:
		return len(e.Body)
	case *Publication:
		return len(e.Body)
	}
	return 0
}

// read takes what comes by l until it ends.
func (c *Conn) read(l *link) error {
	for {
		f, files, err := l.frame()
		if err != nil {
			return err
		}
		if err := c.take(l, f, files); err != nil {
			closeFiles(files)
			return err
		}
	}
}

// take takes one frame and, unless it returns an error, its files. The error ends the connection.
func (c *Conn) take(l *link, f wire.Frame, files []*os.File) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f.Type {
	case wire.TypeAck, wire.TypeReply:
		if f.Session == c.session && c.settle(f.ID, answer{Frame: f, files: files}) {
			return nil
		}
	case wire.TypeError:
		refused := refusal(f)
		if refused.Code == ErrTaken {
			return refused
		}
		if f.Session != c.session || !c.settle(f.ID, answer{err: refused}) {
			c.note(&Refused{refused})
		}
	case wire.TypeMessage, wire.TypeRequest:
		return c.message(l, f, files)
	case wire.TypeCancel:
		if cancel := c.asked[frameID{f.Session, f.ID}]; cancel != nil {
			cancel(context.Canceled)
		}
	case wire.TypePublish:
		err = c.push(&Publication{Topic: f.To, From: f.From, Body: f.Body, Kept: f.Flags&wire.Retain != 0})
	case wire.TypeGap:
		err = c.push(&Gap{Pattern: f.To, Lost: f.ID})
	case wire.TypeState:
		err = c.push(&State{Name: f.To, State: Presence(f.Code), Changes: f.ID, Details: json.RawMessage(f.Body)})
		for id, cl := range c.calls {
			if cl.watch != "" && cl.watch == f.To {
				c.settle(id, answer{})
			}
		}
	}
	if err == nil {
		closeFiles(files) // nobody took them
	}
	return err
}

// push adds an event when there is room. c.mu is held.
func (c *Conn) push(e Event) error {
	err := c.wait(c.ctx, &c.inbox, func() bool {
		events, bytes := inboxEvents, inboxBytes
		if len(c.calls) > 0 {
			events, bytes = askedEvents, askedBytes
		}
		return len(c.in) == 0 || len(c.in) < events && c.inBytes+weight(e) <= bytes
	})
	if err != nil {
		return err
	}
	c.add(e)
	return nil
}

func (c *Conn) add(e Event) {
	c.in = append(c.in, e)
	c.inBytes += weight(e)
	c.inbox.Broadcast()
}

// note adds what may be lost, but never waits. c.mu is held.
func (c *Conn) note(e Event) {
	if len(c.in) < notesMax {
		c.add(e)
	}
}

// message: c.mu is held.
func (c *Conn) message(l *link, f wire.Frame, files []*os.File) error {
	m := &Message{From: f.From, To: f.To, Body: f.Body, Files: files, Request: f.Type == wire.TypeRequest,
		Repeat: f.Flags&wire.Repeat != 0, FromV1: f.Flags&wire.FromV1 != 0, c: c, session: f.Session, id: f.ID, ctx: c.ctx}
	if m.Request {
		return c.request(m, time.Duration(f.Time)*time.Millisecond)
	}
	m.Level = Level(f.Code)
	if m.Level != Handled {
		return c.push(m)
	}
	s := c.seen.of(m)
	switch {
	case s == nil || f.ID > s.given:
		m.Repeat = m.Repeat && s == nil
		if err := c.push(m); err != nil { // it waits, and then it is given
			return err
		}
		c.seen.given(m)
	case f.ID <= s.done:
		closeFiles(files)
		l.put(m.ack(), nil)
	default: // it is in work: Done will tell
		closeFiles(files)
	}
	return nil
}

// request: c.mu is held.
func (c *Conn) request(m *Message, within time.Duration) error {
	which := frameID{m.session, m.id}
	ctx, cancel := context.WithCancelCause(c.ctx)
	c.asked[which] = cancel
	m.ctx = ctx
	if within > 0 {
		var stop func()
		m.ctx, stop = context.WithTimeout(ctx, within)
		context.AfterFunc(ctx, stop)
	}
	context.AfterFunc(m.ctx, func() {
		cancel(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.asked, which)
	})
	return c.push(m)
}

// Context is of a request: it ends when its reply is of no use any more, since the asker cancelled it or waits no longer,
// the connection was lost, or it was replied to. Of another message it ends with the Conn.
func (m *Message) Context() context.Context { return m.ctx }

// Done tells that a message of level Handled is handled: its sender learns that, and zhx gives the next one. Without it,
// the message is given to this process's next run. For another message, and for the second time, it does nothing. While
// the connection is down it is noted, and told when the sender asks again. It never waits.
func (m *Message) Done() error {
	if m.Level != Handled {
		return nil
	}
	c := m.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("acknowledge to %q: %w", m.From, c.err)
	}
	if c.seen.finish(m) && c.link != nil {
		c.link.put(m.ack(), nil)
	}
	return nil
}

func (m *Message) ack() *wire.Frame {
	return &wire.Frame{Type: wire.TypeAck, Code: wire.LevelHandled, From: m.To, Session: m.session, ID: m.id}
}

// Reply answers a request. It waits for room to write as long as Context.
func (m *Message) Reply(body []byte, files ...*os.File) error { return m.reply(body, files, 0) }

// Fail answers a request with what went wrong.
func (m *Message) Fail(body []byte) error { return m.reply(body, nil, wire.Failed) }

func (m *Message) reply(body []byte, files []*os.File, flags uint8) error {
	if !m.Request {
		return fmt.Errorf("reply to %q: it was no request", m.From)
	}
	c := m.c
	c.mu.Lock()
	defer c.mu.Unlock()
	err := context.Cause(m.ctx)
	if err == nil {
		err = c.put(m.ctx, &sending{files: files, Frame: wire.Frame{Type: wire.TypeReply, Flags: flags, From: m.To, Session: m.session, ID: m.id, Body: body}}, nil)
	}
	if err != nil {
		return fmt.Errorf("reply to %q: %w", m.From, err)
	}
	if cancel := c.asked[frameID{m.session, m.id}]; cancel != nil {
		cancel(nil)
	}
	return nil
}

// seen has, for each sender and name of ours, which message of level Handled was given last, and which was done. Ids grow
// by receiver, so the names of one Conn are told apart.
type seen map[stream]*watermark

type stream struct {
	session uint64
	to      string
}

type watermark struct {
	given, done uint64
	used        time.Time
}

func (s seen) of(m *Message) *watermark { return s[stream{m.session, m.To}] }

// given notes a message, and forgets the stream that was quiet for longest if there are too many.
func (s seen) given(m *Message) {
	w := s.of(m)
	if w == nil {
		if len(s) >= seenMax {
			var oldest stream
			for k, o := range s {
				if s[oldest] == nil || o.used.Before(s[oldest].used) {
					oldest = k
				}
			}
			delete(s, oldest)
		}
		w = &watermark{}
		s[stream{m.session, m.To}] = w
	}
	w.given, w.used = m.id, time.Now()
}

// finish notes that a message is done; false: it was before.
func (s seen) finish(m *Message) bool {
	w := s.of(m)
	if w == nil { // forgotten meanwhile
		return true
	}
	if m.id <= w.done {
		return false
	}
	w.done = m.id
	return true
}
