package broker

// This file is one connection: its goroutine from accept to close, what it may do, and what it asks for.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// tally is what went one way over a connection.
type tally struct{ bytes, messages, fds atomic.Int64 }

func (t *tally) add(other *tally) {
	t.bytes.Add(other.bytes.Load())
	t.messages.Add(other.messages.Load())
	t.fds.Add(other.fds.Load())
}

func (t *tally) load() Traffic {
	return Traffic{Bytes: t.bytes.Load(), Messages: t.messages.Load(), FDs: t.fds.Load()}
}

// conn is a connection as the runtime's poller has it.
type conn struct {
	file *os.File // os.File, since it gives the poller to any descriptor
	raw  syscall.RawConn
}

func newConn(fd int) *conn {
	c := &conn{file: os.NewFile(uintptr(fd), "peer")}
	c.raw, _ = c.file.SyscallConn() // fails for a closed file only
	return c
}

type peer struct {
	// Immutable:
	b    *Broker
	pull func([]byte) (int, error) // p.read

	cred Cred
	user *user

	// Immutable once arrived:
	who     any
	arrived atomic.Bool

	sent, written tally               // by it, and to it
	v2            atomic.Pointer[two] // nil: it speaks protocol 1, or has not said which; set once by the reader

	polled atomic.Pointer[conn] // nil: feeders has it; see conn
	feeds  chan struct{}        // while feeders has it: closed by it when it lets go. feeders.mu guards it

	busy   atomic.Bool // its reader is not parked at the end of what was there
	ending atomic.Bool // its end of stream may have come already: it is read until EAGAIN, however little there is

	out outlet // what others write to it, with its own lock

	// names.mu guards:
	leaving bool     // takes no name any more
	claims  []*claim // only the reader changes them, and reads them without the lock

	watching int // names; presence.mu guards it

	// Owned by the reader, or by feeders while that has it:
	reader
	fd           int       // open until run ends
	unread       []byte    // what feeders has read, and is no feed
	fed          int       // feeds since it did anything else
	fedFrom      time.Time // when the first of them came
	chosen       bool      // its protocol is known
	since        time.Time // since when a frame, or the beginning, is begun; zero: none is
	end          error
	leave        leave  // of what it sends as nobody
	last         *claim // the last one of use Send
	refused      string // the last source that was refused,
	refusedUntil time.Time
	anonymous    bool // "forwarded" was logged for a source that is no name
}

func newPeer(b *Broker, fd int, c Cred, u *user) *peer {
	p := &peer{b: b, fd: fd, cred: c, user: u}
	p.polled.Store(newConn(fd))
	p.pull = p.read
	p.out.init(p)
	p.busy.Store(true) // until readable has found the end for the first time
	b.hangups.watch(p)
	return p
}

// run is the peer's goroutine. It alone closes the socket: others only shut it down, and it reads to the end.
func (p *peer) run() {
	b := p.b
	p.who = b.gate.Arrive(p.cred)
	p.arrived.Store(true)
	var err error
	for {
		err = p.conn().raw.Read(p.readable)
		switch woken := errors.Is(err, os.ErrDeadlineExceeded); {
		case err == nil && p.end == errFeeds:
			b.feeders.serve(p)
			continue
		case woken && p.late(): // by the clock of a frame
			p.end, err = errSlow, nil
		case woken: // by hangups
			p.conn().file.SetReadDeadline(time.Time{})
			continue
		}
		break
	}
	if err != nil { // the poller's: none of what was read
		p.end = io.EOF
	}
	b.names.drop(p)
	p.out.kick() // what it was told last
	p.farewell()
	p.kick() // wakes a sender that waits for room here
	p.out.close()
	if v := p.v2.Load(); v != nil {
		v.end()
	}
	for _, c := range p.claims {
		if c.use == Receive {
			b.Changed(c.name)
		}
	}
	b.hangups.forget(p.fd)
	p.conn().file.Close()
	b.mu.Lock()
	delete(b.peers, p)
	b.dismiss(p.user)
	b.sent.add(&p.sent)
	b.written.add(&p.written)
	b.shrink()
	b.mu.Unlock()
	b.step()
}

// readable handles everything that is there; false parks the goroutine until there is more.
func (p *peer) readable(uintptr) (over bool) {
	p.busy.Store(true)
	if p.end = p.drainAll(); p.end != unix.EAGAIN {
		return true
	}
	if p.b.feeders.wants(p) {
		p.end = errFeeds
		return true
	}
	p.busy.Store(false)
	p.b.step()
	return false
}

// drainAll handles all that is there, in the protocol that the connection speaks.
func (p *peer) drainAll() error {
	if !p.chosen {
		if err := p.choose(); err != nil {
			p.clock(len(p.torn) > 0)
			return err
		}
	}
	v := p.v2.Load()
	if v == nil {
		return p.drain(p.pull, p)
	}
	v.borrow()
	err := v.drain(p.pull, v)
	v.giveBack()
	p.out.kick() // answers, all at once
	p.clock(v.party == nil || v.begun())
	return err
}

// read is read(2), and says EAGAIN at once where it took all that was there, as a stream's read of less than it has room for
// does (epoll(7), questions and answers). Where the end of the stream may have come with it, only the next read tells.
// A peer that passes descriptors or urgent data can make a read shorter; what follows those then waits for the next edge.
func (p *peer) read(b []byte) (int, error) {
	if len(p.unread) > 0 {
		n := copy(b, p.unread)
		p.unread = append([]byte(nil), p.unread[n:]...) // nil: nothing of a large one is kept
		return n, nil
	}
	if v := p.v2.Load(); v != nil && v.oob != nil {
		return v.read(b)
	}
	n, err := readNow(p.fd, b)
	p.sent.bytes.Add(int64(max(n, 0)))
	if err == nil && 0 < n && n < len(b) && !p.ending.Load() {
		err = unix.EAGAIN
	}
	return n, err
}

// farewell counts and logs an end that was none of the peer's intention.
func (p *peer) farewell() {
	var errno unix.Errno
	switch {
	case p.end == io.EOF, errors.As(p.end, &errno):
		if p.begun() {
			p.b.count.truncated.Add(1)
			p.b.log.Debug("connection ended within a packet", p.attrs()...)
		}
	case p.cred.Transport == TCP: // a browser's or a scanner's text: not worth a line each
		p.b.count.malformed.Add(1)
		p.b.log.Debug("malformed packet", p.attrs("err", p.end, "next", "connection closed")...)
	default:
		p.b.count.malformed.Add(1)
		if kept, ok := p.b.quiet.pass(pairOf("\x00malformed", ""), p.user); ok {
			p.b.log.Warn("malformed packet", p.attrs("err", p.end, "next", "connection closed", "kept_back", kept)...)
		}
	}
}

// begun tells whether what it sent ends within a packet or a frame. For its reader.
func (p *peer) begun() bool {
	v := p.v2.Load()
	return len(p.torn) > 0 || v != nil && (len(v.torn) > 0 || v.skip > 0)
}

// attrs is who this peer is, for a log line, and more.
func (p *peer) attrs(more ...any) []any {
	attrs := []any{"peer", p.cred.Transport, "pid", p.cred.PID, "uid", p.cred.UID}
	if p.cred.Addr != "" {
		attrs = append(attrs, "addr", p.cred.Addr)
	}
	return append(attrs, more...)
}

// hungUp tells whether the client has closed the connection, or its half of it; what it sent may be unread. For its reader.
func (p *peer) hungUp() bool {
	poll := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// kick ends the connection from any goroutine; what it sent before is still read.
func (p *peer) kick() {
	p.ending.Store(true) // before, so that the shutdown comes after a read that did not see it, and makes an edge of its own
	p.control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
}

// conn gives the connection to who wants to write or to wait, after which it is not read with the other feeders. Who holds out.mu
// may keep it while that is held; without, it may be closed the next moment.
func (p *peer) conn() *conn {
	for {
		if c := p.polled.Load(); c != nil {
			return c
		}
		p.b.feeders.release(p)
	}
}

// control calls f with the descriptor, from any goroutine, unless the connection is over.
func (p *peer) control(f func(fd uintptr)) {
	for c := p.conn(); c.raw.Control(f) != nil; {
		was := c
		if c = p.conn(); c == was {
			return
		}
	}
}

// packet handles a register or a watchdog packet.
func (p *peer) packet(b []byte) error {
	name, use := wire.Source(b), Watch
	p.count(isFeed(b))
	if wire.Cmd(b) == wire.CmdRegister {
		if use = Receive; !mayClaim(string(name)) {
			return fmt.Errorf("register %q: %w", name, errName)
		}
	}
	c, ok := p.claim(name, use, 1)
	switch {
	case !ok, use == Watch && !p.free(c, 1):
	case use == Receive:
		if err := p.register(c); err != nil {
			p.refuse(1, c.name, err)
		}
		p.out.kick() // what has waited for it
	case wire.Wdt(b) == wire.WatchdogArm:
		c.session.Arm()
	default:
		c.session.Feed()
	}
	return nil
}

// register makes this connection the receiver under the name of c.
func (p *peer) register(c *claim) error {
	older, err := p.b.names.take(c)
	if err != nil {
		return err
	}
	c.session.Registered()
	if older != nil {
		p.b.count.replaced.Add(1)
		if p.user.loud() {
			p.b.log.Info("receiver replaced", older.attrs("client", c.name, "next", "a newer connection registered the name; this one is closed")...)
		}
		older.replaced(c.name)
	}
	p.b.Changed(c.name)
	return nil
}

// replaced ends a connection whose name another has; the next write of its client fails, and what it is told last is still sent.
func (p *peer) replaced(name string) {
	v := p.v2.Load()
	if v == nil {
		p.kick()
		return
	}
	p.tell(errorFrame(v.party.id, 0, wire.ErrTaken, name, 0, ""))
	p.ending.Store(true)
	p.control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) })
}

// leave is the last that the gate has allowed.
type leave struct {
	target string
	asOf   uint64 // when the gate had changed its mind so many times
}

// may asks the gate, unless it was asked the same before. from nil is nobody; p nil is zhx itself, which may.
func (p *peer) may(from *claim, what Action, target []byte) error {
	if p == nil {
		return nil
	}
	last, source := &p.leave, ""
	if from != nil {
		last, source = &from.leave, from.name
	}
	now := p.b.names.renewed.Load()
	if what == SendTo && last.target == string(target) && last.asOf == now {
		return nil
	}
	if err := p.b.gate.May(p.who, source, what, string(target)); err != nil {
		return err
	}
	if what == SendTo {
		*last = leave{string(target), now}
	}
	return nil
}

var (
	errName    = errors.New("not a name that a client may have")
	errTooMany = fmt.Errorf("this connection receives under %d names already", maxNames)
)

func mayClaim(name string) bool { return wire.ValidName(name) && !wire.Reserved(name) }

// claimed gives the right to a use of a name that this connection has been given; nil: none. For its reader.
func (p *peer) claimed(name []byte, use Use) *claim {
	for _, c := range p.claims {
		if c.use == use && c.name == string(name) {
			return c
		}
	}
	return nil
}

// claim gives this connection's right to a use of a name, from what it keeps or from the gate. If there is none, n
// packets are counted as refused; the gate logs its own refusals.
func (p *peer) claim(name []byte, use Use, n int64) (*claim, bool) {
	if c := p.claimed(name, use); c != nil {
		return c, true
	}
	c := &claim{peer: p, name: string(name), use: use}
	if !mayClaim(c.name) {
		p.refuse(n, c.name, errName)
		return nil, false
	}
	p.last = nil // keep may forget it
	for err := errRenewed; err == errRenewed; {
		asked := p.b.names.renewed.Load()
		session, no := p.b.gate.Claim(p.who, c.name, use)
		if no != nil {
			p.b.count.refused.Add(n)
			return nil, false
		}
		c.session, c.account = session, session.Account()
		if err = p.b.names.keep(c, asked); err == errTooMany {
			p.refuse(n, c.name, err)
			return nil, false
		}
	}
	return c, true
}

// refuse counts n packets that the broker itself refuses, and says so once in logEvery.
func (p *peer) refuse(n int64, name string, err error) {
	p.b.count.refused.Add(n)
	if kept, ok := p.b.quiet.pass(pairOf("\x00refused", name), p.user); ok {
		p.b.log.Warn("name refused", p.attrs("client", shown(name), "err", err, "next", "packet ignored and counted", "kept_back", kept)...)
	}
}

// source gives the claim of n messages from name; nil with ok: that is no name, so they are nobody's.
func (p *peer) source(name []byte, n int64) (c *claim, ok bool) {
	switch {
	case p.last != nil && p.last.name == string(name):
		return p.last, p.free(p.last, n)
	case !wire.ValidName(string(name)):
		return nil, true
	case p.refused == string(name) && time.Now().Before(p.refusedUntil):
		p.b.count.refused.Add(n)
		return nil, false
	}
	if c, ok = p.claim(name, Send, n); !ok {
		p.refused, p.refusedUntil = string(name), time.Now().Add(retryAfter)
		return nil, false
	}
	p.last = c
	return c, p.free(c, n)
}

// free tells whether c's name may be used by p: that of no client may not while a connection of another user receives under it. If
// not, n packets are counted as refused.
func (p *peer) free(c *claim, n int64) bool {
	if p.user.all || c.session.Managed() {
		return true
	}
	if to := p.b.names.find([]byte(c.name)); to == nil || to.peer == p || p.user.is(to.peer.user) && p.user.uid >= 0 {
		return true
	}
	p.refuse(n, c.name, errTaken)
	return false
}

// stretch forwards transfer packets of one route.
func (p *peer) stretch(b []byte) {
	p.count(false)
	p.sent.messages.Add(int64(len(b) / wire.PacketSize))
	if from, ok := p.source(wire.Source(b), int64(len(b)/wire.PacketSize)); ok {
		p.b.forward(b, p, from)
	}
}

// hold credits the dogs of all that this peer has proved to be, while its reader waits for another; release ends it.
// Only the reader calls them. nil is nobody: Broker.Send.
func (p *peer) hold() {
	if p != nil {
		for _, c := range p.claims {
			c.session.Hold()
		}
	}
}

func (p *peer) release() {
	if p != nil {
		for _, c := range p.claims {
			c.session.Release()
		}
	}
}

func (p *peer) info() PeerInfo {
	p.b.names.mu.RLock()
	defer p.b.names.mu.RUnlock()
	info := PeerInfo{PID: p.cred.PID, UID: p.cred.UID, Transport: p.cred.Transport, Protocol: 1, Stuck: p.out.stuck.Load(),
		Sent: p.sent.load(), Written: p.written.load(), Waiting: p.out.queue.waiting()}
	if p.two() {
		info.Protocol = 2
	}
	for _, c := range p.claims {
		if !slices.Contains(info.Names, c.name) {
			info.Names = append(info.Names, c.name)
		}
		info.Managed = info.Managed || c.session.Managed()
		info.Proof = c.session.Proof()
	}
	slices.Sort(info.Names)
	return info
}
