package ipc

// This file is the handle of an application: what stays while connections come and go, and what it asks of zhx.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"zhx/ipc/wire"
)

const (
	backoffMin = 10 * time.Millisecond // before the first try to connect again
	backoffMax = time.Second
	keptMax    = 256 // messages of level Handled without an answer
)

// Conn is a handle on zhx. Any goroutines may call its methods at the same time. Each waits at most for its context, whose
// error it then returns; what was sent before may still arrive.
//
// A lost connection is made again, after 10 ms to 1 s, and what was registered, subscribed and watched is so again; then
// messages of level Handled that are not answered are sent again, before anything newer. Calls that wait for another answer
// fail with ErrLost; those that have not begun wait until the connection stands. When a newer connection takes over a name,
// everything fails with ErrTaken, for good.
//
// What comes waits for Receive: 16 events or 256 KiB, and 8,192 or 4 MiB while calls of this Conn wait for answers, which
// come in the same stream. Then nothing more is read. A receiver from which zhx can write nothing for 100 ms is stuck, and
// messages to it are refused. So call Receive all the time; calls from the goroutine that does so are fine.
type Conn struct {
	o       Options
	session uint64
	ctx     context.Context // ends when nothing goes any more
	cancel  context.CancelCauseFunc
	ended   chan struct{} // closed when run has returned

	mu    sync.Mutex
	state sync.Cond // link, err, room in link.out or in kept have changed
	inbox sync.Cond // in, err or the number of calls has changed
	// mu guards:
	err      error // for good: what everything fails with
	link     *link // nil: there is none
	maxBody  int
	name     string
	lastID   uint64
	calls    map[uint64]*call // that wait for an answer, by id
	kept     int              // of calls, those of level Handled
	standing []standing       // what holds again with each connection
	in       []Event
	inBytes  int
	seen     seen
	asked    map[frameID]context.CancelCauseFunc // requests that came and are not replied to
}

// frameID names a frame for ever.
type frameID struct{ session, id uint64 }

// call waits for the answer to a frame.
type call struct {
	id      uint64      // its key in Conn.calls
	answer  chan answer // has room for one
	settled bool
	watch   string      // the state of this name is an answer
	stands  bool        // what it asks for goes into Conn.standing
	keep    *wire.Frame // of level Handled: sent again
	sent    bool        // keep has been
	left    bool        // nobody waits any more
}

// lasts tells that it goes on with the next connection.
func (cl *call) lasts() bool { return cl != nil && (cl.stands || cl.keep != nil) }

type standing struct {
	wire.Frame
	call *call // that waits for the first answer, or has it
}

type answer struct {
	wire.Frame
	files []*os.File
	err   error
}

// Dial connects to zhx and returns when it is welcomed. ctx is of Dial alone. Errors are [*Error], ctx's and the system's.
func Dial(ctx context.Context, o Options) (*Conn, error) {
	c := &Conn{o: o, session: rand.Uint64() | 1, name: o.Name, ended: make(chan struct{}),
		calls: map[uint64]*call{}, seen: seen{}, asked: map[frameID]context.CancelCauseFunc{}}
	if c.name == "" {
		c.name = os.Getenv("ZHX_NAME")
	}
	c.state.L, c.inbox.L = &c.mu, &c.mu
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	for pause := backoffMin; ; pause = min(2*pause, backoffMax) {
		l, err := c.connect(ctx)
		if err == nil {
			c.up(l)
			go c.run(l)
			return c, nil
		}
		if refused := (*Error)(nil); !o.Wait || errors.As(err, &refused) || !sleep(ctx, pause) {
			c.cancel(err)
			return nil, fmt.Errorf("connect to zhx: %w", err)
		}
	}
}

// sleep waits for about d; false: ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d)) // many clients are not to come back at once
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// run serves one connection after the other.
func (c *Conn) run(l *link) {
	defer close(c.ended)
	for pause := backoffMin; ; {
		began := time.Now()
		go c.write(l)
		c.down(l, c.read(l))
		if time.Since(began) > backoffMin { // else zhx closes each at once
			pause = backoffMin
		}
		for again := false; !again; pause = min(2*pause, backoffMax) {
			if !sleep(c.ctx, pause) {
				return
			}
			var err error
			l, err = c.connect(c.ctx)
			again = err == nil
		}
		c.up(l)
	}
}

// up begins with a connection: what stands, then what is kept.
func (c *Conn) up(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		l.ended = true
		return
	}
	again := c.maxBody != 0
	c.link, c.maxBody = l, l.maxBody
	for i := range c.standing {
		s := &c.standing[i]
		s.ID = c.nextID()
		if !s.call.settled && !s.call.left {
			delete(c.calls, s.call.id)
			s.call.id = s.ID
			c.calls[s.ID] = s.call
		}
		l.put(&s.Frame, nil)
	}
	var kept []*call
	for _, cl := range c.calls {
		if cl.keep != nil {
			kept = append(kept, cl)
		}
	}
	slices.SortFunc(kept, func(a, b *call) int { return cmp.Compare(a.id, b.id) })
	oldest := map[string]bool{}
	for _, cl := range kept {
		f := *cl.keep
		if cl.sent && !oldest[f.To] {
			f.Flags |= wire.Repeat
		}
		oldest[f.To], cl.sent = true, true
		l.put(&f, nil)
	}
	if again {
		c.note(&Link{Up: true})
	}
	c.state.Broadcast()
}

// down ends a connection of which err was read.
func (c *Conn) down(l *link, err error) {
	c.mu.Lock()
	c.link = nil
	l.ended = true
	l.work.Signal()
	if c.err != ErrClosed { // else the writer writes what is left
		l.conn.Close()
	}
	if refused := (*Error)(nil); errors.As(err, &refused) {
		c.fail(err)
	} else if c.o.Once {
		c.fail(ErrLost)
	}
	for id, cl := range c.calls {
		if !cl.lasts() {
			c.settle(id, answer{err: ErrLost})
		}
	}
	for _, cancel := range c.asked {
		cancel(ErrLost)
	}
	clear(c.asked)
	if c.err == nil {
		c.note(&Link{Err: err})
	}
	c.mu.Unlock()
	<-l.written
	for _, m := range l.marks {
		closeAll(m.fds)
	}
	l.closeFiles()
}

// fail ends everything. c.mu is held.
func (c *Conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.cancel(c.err)
	for id := range c.calls {
		c.settle(id, answer{err: c.err})
	}
	c.state.Broadcast()
	c.inbox.Broadcast()
}

// Close ends the connection, for which it waits; what was sent is still written if zhx takes it within a second. Every call
// under way returns ErrClosed. Events that nobody received are gone, and messages of level Handled are not sent again.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.fail(ErrClosed)
	c.err = ErrClosed
	if l := c.link; l != nil {
		l.ended = true
		l.work.Signal()
		if l.conn.SetWriteDeadline(time.Now().Add(linger)); l.deaf {
			l.conn.Close()
		}
	}
	c.mu.Unlock()
	<-c.ended
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.in {
		if m, ok := e.(*Message); ok {
			closeFiles(m.Files)
		}
	}
	c.in = nil
	return nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Name is whom it sends and feeds as.
func (c *Conn) Name() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.name
}

// MaxBody is the largest body in bytes that zhx carries. Something larger goes as the content of a file, by WithFiles.
func (c *Conn) MaxBody() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.maxBody
}

// Register has what is sent to name come here, and takes the name from an older connection; "" is Conn.Name.
func (c *Conn) Register(ctx context.Context, name string) error {
	c.mu.Lock()
	if name == "" {
		name = c.name
	} else if c.name == "" {
		c.name = name
	}
	c.mu.Unlock()
	return c.stand(ctx, "register", name, wire.Frame{Type: wire.TypeRegister, From: name})
}

// Subscribe has publications whose topic the pattern means come here. At most waiting of them, 0: 64, and 256 KiB wait in
// zhx if this Conn takes no more; then the policy decides, and a *Gap tells. Again, it changes the policy.
func (c *Conn) Subscribe(ctx context.Context, pattern string, p Policy, waiting int) error {
	return c.stand(ctx, "subscribe to", pattern, wire.Frame{Type: wire.TypeSubscribe, To: pattern, From: c.Name(), Code: uint8(p), Time: uint32(max(waiting, 0))})
}

// Unsubscribe ends that. What waits already may still come.
func (c *Conn) Unsubscribe(ctx context.Context, pattern string) error {
	c.mu.Lock()
	c.unlist(wire.TypeSubscribe, pattern)
	c.mu.Unlock()
	_, err := c.ask(ctx, &sending{Frame: wire.Frame{Type: wire.TypeUnsubscribe, To: pattern}}, &call{answer: make(chan answer, 1)})
	if err != nil && !(err == ErrLost && c.ctx.Err() == nil) { // the next connection does not have it
		return fmt.Errorf("unsubscribe from %q: %w", pattern, err)
	}
	return nil
}

// Watch has a *State of name come at once, and after each change.
func (c *Conn) Watch(ctx context.Context, name string) error {
	return c.stand(ctx, "watch", name, wire.Frame{Type: wire.TypeWatch, To: name})
}

// Unwatch ends that. Another state may come.
func (c *Conn) Unwatch(ctx context.Context, name string) error {
	c.mu.Lock()
	c.unlist(wire.TypeWatch, name)
	c.mu.Unlock()
	return c.post(ctx, "unwatch", name, &sending{Frame: wire.Frame{Type: wire.TypeUnwatch, To: name}})
}

// stand asks for what is to hold with every connection.
func (c *Conn) stand(ctx context.Context, what, name string, f wire.Frame) error {
	cl := &call{answer: make(chan answer, 1), stands: true}
	if f.Type == wire.TypeWatch {
		cl.watch = name
	}
	_, err := c.ask(ctx, &sending{Frame: f}, cl)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.standing, func(s standing) bool { return s.call == cl })
	switch {
	case err != nil && i >= 0: // what stood before goes on
		c.standing = slices.Delete(c.standing, i, i+1)
	case i >= 0: // in place of what stood before
		c.standing = append(slices.DeleteFunc(c.standing[:i], func(s standing) bool { return s.is(f.Type, name) }), c.standing[i:]...)
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", what, name, err)
	}
	return nil
}

func (s *standing) is(what uint8, name string) bool {
	return s.Type == what && cmp.Or(s.To, s.From) == name
}

// unlist: c.mu is held.
func (c *Conn) unlist(what uint8, name string) {
	c.standing = slices.DeleteFunc(c.standing, func(s standing) bool { return s.is(what, name) })
}

// Arm arms the watchdog of Conn.Name: from now on zhx expects Feed more often than the watchdog's timeout, and kills and
// restarts the program if it does not come. Of these three only a *Refused tells an error of zhx.
func (c *Conn) Arm(ctx context.Context) error { return c.feed(ctx, wire.FeedArm, "") }

// Feed is a sign of life.
func (c *Conn) Feed(ctx context.Context) error { return c.feed(ctx, wire.FeedAlive, "") }

// Checkpoint tells that the program passes a place of this name.
func (c *Conn) Checkpoint(ctx context.Context, name string) error {
	return c.feed(ctx, wire.FeedCheckpoint, name)
}

func (c *Conn) feed(ctx context.Context, code uint8, checkpoint string) error {
	name := c.Name()
	if name == "" {
		return errUnnamed
	}
	return c.post(ctx, "feed", name, &sending{Frame: wire.Frame{Type: wire.TypeFeed, Code: code, To: checkpoint, From: name}})
}

func (c *Conn) sending(what uint8, to string, body []byte, opts []Option) *sending {
	s := &sending{Frame: wire.Frame{Type: what, To: to, From: c.Name(), Body: body}}
	if what != wire.TypeRequest {
		s.Code = wire.LevelAccepted
	}
	for _, o := range opts {
		o(s)
	}
	return s
}

// Send sends body to the receiver of to. It returns when the level asked for is reached, or less, as the receiver may give
// no word; an error that is none of zhx's leaves it open what has become of the message. At most 256 messages of level
// Handled are under way; one more waits. One whose ctx ends is still sent again until it is answered.
func (c *Conn) Send(ctx context.Context, to string, body []byte, opts ...Option) (Level, error) {
	s := c.sending(wire.TypeMessage, to, body, opts)
	if s.Code == wire.LevelNone {
		return None, c.post(ctx, "send to", to, s)
	}
	cl := &call{answer: make(chan answer, 1)}
	if s.Code == wire.LevelHandled {
		cl.keep = &s.Frame
	}
	a, err := c.ask(ctx, s, cl)
	if err != nil {
		return None, fmt.Errorf("send to %q: %w", to, err)
	}
	return Level(a.Code), nil
}

// Request sends body to the receiver of to and waits for its reply. ctx's deadline goes along; when ctx ends before, the
// receiver is told. Without a deadline it waits as long as the receiver lives.
func (c *Conn) Request(ctx context.Context, to string, body []byte, opts ...Option) (*Reply, error) {
	s := c.sending(wire.TypeRequest, to, body, opts)
	s.Code, s.Time = 0, 0
	if deadline, ok := ctx.Deadline(); ok {
		s.Time = milliseconds(time.Until(deadline))
	}
	a, err := c.ask(ctx, s, &call{answer: make(chan answer, 1)})
	if err != nil {
		return nil, fmt.Errorf("request to %q: %w", to, err)
	}
	return &Reply{From: a.From, Body: a.Body, Failed: a.Flags&wire.Failed != 0, Files: a.files}, nil
}

// Publish sends body to whoever has subscribed to the topic, and returns when zhx has it; at level None, at once.
func (c *Conn) Publish(ctx context.Context, topic string, body []byte, opts ...Option) error {
	s := c.sending(wire.TypePublish, topic, body, opts)
	if s.Code == wire.LevelNone {
		return c.post(ctx, "publish to", topic, s)
	}
	s.Code = wire.LevelAccepted
	if _, err := c.ask(ctx, s, &call{answer: make(chan answer, 1)}); err != nil {
		return fmt.Errorf("publish to %q: %w", topic, err)
	}
	return nil
}

// post sends a frame for whose answer nobody waits.
func (c *Conn) post(ctx context.Context, what, to string, s *sending) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.put(ctx, s, nil); err != nil {
		return fmt.Errorf("%s %q: %w", what, to, err)
	}
	return nil
}

// ask sends a frame and waits for its answer.
func (c *Conn) ask(ctx context.Context, s *sending, cl *call) (answer, error) {
	c.mu.Lock()
	err := c.put(ctx, s, cl)
	by := c.link
	c.mu.Unlock()
	if err != nil {
		return answer{}, err
	}
	select {
	case a := <-cl.answer:
		return a, a.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case a := <-cl.answer: // it came at the same time
		return a, a.err
	default:
	}
	if cl.left = true; cl.keep == nil {
		delete(c.calls, cl.id)
		if s.Type == wire.TypeRequest && c.link == by && by != nil {
			by.put(&wire.Frame{Type: wire.TypeCancel, To: s.To, From: s.From, Session: c.session, ID: s.ID}, nil)
		}
	}
	return answer{}, ctx.Err()
}

// put waits until s may be written, gives it an id, and has it written; what lasts needs no connection, it goes with the
// next one. cl, if not nil, gets the answer. c.mu is held.
func (c *Conn) put(ctx context.Context, s *sending, cl *call) error {
	kept := cl != nil && cl.keep != nil
	if len(s.To) > namesMax || len(s.From) > namesMax || len(s.files) > wire.FDsMax {
		return &Error{Code: ErrBad, To: s.To, Text: fmt.Sprintf("at most %d bytes of a name and %d files", namesMax, wire.FDsMax)}
	}
	err := c.wait(ctx, &c.state, func() bool {
		if kept && c.kept >= keptMax {
			return false
		}
		return c.link == nil && cl.lasts() || c.link != nil && len(c.link.out) < outMax
	})
	if err != nil {
		return err
	}
	if len(s.Body) > c.maxBody {
		return &Error{Code: ErrTooBig, To: s.To, Text: fmt.Sprintf("a body of %d bytes, at most %d", len(s.Body), c.maxBody)}
	}
	var fds []int
	if len(s.files) > 0 {
		if kept || !c.link.fds {
			return &Error{Code: ErrNoFDs, To: s.To, Text: "descriptors go over a Unix socket, and not at level handled"}
		}
		if fds, err = duplicates(s.files); err != nil {
			return err
		}
	}
	if s.Session == 0 { // else it is a reply
		s.Session, s.ID = c.session, c.nextID()
	}
	if kept {
		s.Body = slices.Clone(s.Body)
		c.kept++
		cl.sent = c.link != nil
	}
	if cl != nil {
		cl.id = s.ID
		c.calls[cl.id] = cl
		if cl.stands {
			c.standing = append(c.standing, standing{s.Frame, cl})
		}
		c.inbox.Broadcast() // more may wait there now
	}
	if c.link != nil {
		c.link.put(&s.Frame, fds)
	}
	return nil
}

func (c *Conn) nextID() uint64 {
	c.lastID++
	return c.lastID
}

// settle gives a call its answer; false: there is no such call, or nobody waits for it. c.mu is held.
func (c *Conn) settle(id uint64, a answer) bool {
	cl := c.calls[id]
	if cl == nil {
		return false
	}
	delete(c.calls, id)
	cl.settled = true
	if cl.keep != nil {
		c.kept--
		c.state.Broadcast()
	}
	cl.answer <- a
	return !cl.left
}

// wait waits until ok holds, which cond tells. c.mu is held.
func (c *Conn) wait(ctx context.Context, cond *sync.Cond, ok func() bool) error {
	var stop func() bool
	for {
		switch {
		case c.err != nil:
			return c.err
		case ok():
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		if stop == nil {
			stop = context.AfterFunc(ctx, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				cond.Broadcast()
			})
			defer stop()
		}
		cond.Wait()
	}
}
