package broker

// This file reads the connections that do nothing but feed their watchdog, and often, together. The runtime's poller wakes a
// thread and a goroutine for each feed, which costs several times what the feed does; here one look takes in what came to all
// of them within feederPace.
//
//	peer.run ── feederFeeds in a row ──> join: out of the runtime's poller and of hangups, into the set
//	                                      │ hangups rings, and is not asked again while feeds keep coming:
//	                                      │ round, feederPace, round, ... until one finds nothing
//	peer.run <── release: it sent something else or ended, or somebody writes to it or closes it
//
// What such a connection sends waits for a round, at most feederPace; what is sent to it waits for nothing.

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// errFeeds ends a peer's reading for the time that feeders does it.
var errFeeds = errors.New("it only feeds")

// feeders is an epoll instance of those peers, which hangups watches in turn, and what gives the pace.
type feeders struct {
	// Immutable:
	fd    int      // of set; -1: there is none
	set   *os.File // nil: there is none, and every reader reads its own
	timer *os.File // a timerfd: time.Sleep would wake two threads
	raw   syscall.RawConn

	mu      sync.Mutex
	peers   map[int]*peer // by descriptor
	reading *peer         // whose bytes run handles
}

func openFeeders(h *hangups) *feeders {
	f := &feeders{fd: -1, peers: map[int]*peer{}}
	h.feeders = f
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return f
	}
	f.timer = os.NewFile(uintptr(timer), "feeders")
	f.raw, _ = f.timer.SyscallConn() // fails for a closed file only
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	switch {
	case err != nil:
	case f.timer.SetReadDeadline(time.Time{}) != nil, // the poller has not taken it
		h.control(unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLONESHOT) != nil: // nobody would ring
		unix.Close(fd)
	default:
		f.fd, f.set = fd, os.NewFile(uintptr(fd), "feeders")
	}
	return f
}

// run reads until close.
func (f *feeders) run(h *hangups) {
	if f.set == nil {
		return
	}
	f.raw.Read(func(uintptr) bool { // comes back at each expiration
		if f.round() {
			f.next(feederPace)
		} else {
			h.control(unix.EPOLL_CTL_MOD, f.fd, unix.EPOLLIN|unix.EPOLLONESHOT)
		}
		return false
	})
}

// next has run look again after so long, more than 0.
func (f *feeders) next(after time.Duration) {
	f.raw.Control(func(fd uintptr) { // an error: it is over
		unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(after))}, nil)
	})
}

// round handles what is there, and tells if there was anything.
func (f *feeders) round() (some bool) {
	var events [64]unix.EpollEvent
	buf := buffers.Get().(*[readSize]byte)
	defer buffers.Put(buf)
	for began, n := time.Now(), len(events); n == len(events) && time.Since(began) < feederPace; { // in a flood it would never end
		n = epollNow(f.fd, events[:])
		for _, e := range events[:n] {
			if p := f.begin(int(e.Fd)); p != nil {
				f.done(p, p.takeFeeds(buf[:]) && e.Events == unix.EPOLLIN)
				some = true
			}
		}
	}
	return some
}

func (f *feeders) begin(fd int) *peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.peers[fd]
	if f.reading = p; p != nil {
		p.busy.Store(true)
	}
	return p
}

func (f *feeders) done(p *peer, stays bool) {
	f.mu.Lock()
	f.reading = nil
	switch {
	case f.peers[p.fd] != p: // released meanwhile
		close(p.feeds)
	case stays:
		p.busy.Store(false)
	default:
		f.expel(p)
	}
	f.mu.Unlock()
	p.b.step()
}

// takeFeeds is the reader's work where it is nothing but feeds under a name that is proved already; false: there is more to it.
func (p *peer) takeFeeds(buf []byte) bool {
	v := p.v2.Load()
	v.borrow()
	n, err := p.read(buf)
	v.giveBack()
	b := buf[:max(n, 0)]
	for size := p.feed(b); size > 0; size = p.feed(b) {
		if v == nil {
			p.packet(b[:size])
		} else {
			v.own(b[:size])
		}
		b = b[size:]
	}
	p.unread = append(p.unread, b...)
	if err == errFDs {
		p.kick()
	}
	p.out.kick() // what it was refused
	return len(b) == 0 && err == unix.EAGAIN
}

// feed is the size of such a feed, if b begins with one; else 0.
func (p *peer) feed(b []byte) int {
	size, name := wire.PacketSize, []byte(nil)
	if v := p.v2.Load(); v == nil {
		if len(b) < size || wire.Check(b[:size]) != nil || !isFeed(b) {
			return 0
		}
		name = wire.Source(b)
	} else {
		var err error
		if size, err = wire.FrameSize(b); err != nil || size == 0 || len(b) < size || !isFeedFrame(b) || b[wire.OffsetFDs] > 0 || wire.FrameSession(b) != v.party.id {
			return 0
		}
		name = wire.FrameFrom(b)
	}
	if p.claimed(name, Watch) == nil {
		return 0
	}
	return size
}

func isFeed(b []byte) bool {
	return wire.Cmd(b) == wire.CmdWatchdog && wire.Wdt(b) == wire.WatchdogFeed
}

func isFeedFrame(b []byte) bool {
	return b[wire.OffsetType] == wire.TypeFeed && b[wire.OffsetCode] == wire.FeedAlive
}

// count is told of all that p sends. For its reader.
func (p *peer) count(isFeed bool) {
	if !isFeed {
		p.fed = 0
	} else if p.fed++; p.fed == 1 {
		p.fedFrom = time.Now()
	}
}

// wants tells whether p has become one. For its reader.
func (f *feeders) wants(p *peer) bool {
	if p.fed < feederFeeds {
		return false
	}
	p.fed = 0
	return time.Since(p.fedFrom) < feederWithin && !p.begun() && !p.ending.Load()
}

// serve reads p, unless somebody writes to it, until release. For its reader.
func (f *feeders) serve(p *peer) {
	if f.join(p) {
		<-p.feeds
		p.b.hangups.watch(p)
	}
}

// join needs another descriptor, since to close the old one is the only way out of the runtime's poller.
func (f *feeders) join(p *peer) bool {
	if f.set == nil || !p.out.mu.TryLock() {
		return false
	}
	defer p.out.unlock() // a writer finds it either here or there
	if !p.out.idle() {
		return false
	}
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	p.b.hangups.forget(p.fd)
	f.mu.Lock()
	old := p.polled.Swap(nil)
	p.fd, p.feeds = fd, make(chan struct{})
	f.peers[fd] = p
	p.busy.Store(false)
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(f.fd, unix.EPOLL_CTL_ADD, fd, &e); err != nil || p.ending.Load() { // who closes it may have found the old one
		f.expel(p)
	}
	f.mu.Unlock()
	old.file.Close()
	p.b.step()
	return true
}

// release gives a peer back to its own reader.
func (f *feeders) release(p *peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expel(p)
}

// expel is release under the lock.
func (f *feeders) expel(p *peer) {
	if f.peers[p.fd] != p {
		return
	}
	delete(f.peers, p.fd)
	unix.EpollCtl(f.fd, unix.EPOLL_CTL_DEL, p.fd, nil)
	p.busy.Store(true)
	p.polled.Store(newConn(p.fd))
	if f.reading != p {
		close(p.feeds)
	}
}

// close ends run.
func (f *feeders) close() {
	if f.timer != nil {
		f.timer.Close()
	}
}
