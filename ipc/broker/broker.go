// Package broker carries packets between named peers on stream sockets, Unix and TCP in one namespace, and takes their
// watchdog's signs of life. It knows names and connections; whose process a connection is, and what it may do, is asked
// of a [Gate].
//
//	accept ─> peer: a goroutine a connection ─ reads up to 64 KiB, cuts packets in place ─┬─ register ─> names
//	                                                                                     ├─ watchdog ─> Session.Arm, Feed
//	   another peer's socket <─ one write a stretch <─ names: who receives? <─ transfer ─┘
//
// Who owns what: a peer's reader goroutine owns its reassembly and its claims, and alone closes its connection; others
// shut it down and the reader notices. A peer's outlet (what is written to it) is under the outlet's lock; a sender's
// reader writes to its receiver's socket itself. The table of names is under its own lock, which is held for a lookup
// or a change and never while anything waits.
//
// A receiver that still reads slows its senders: a sender's reader waits for room, and meanwhile holds the dogs of its
// sessions. A receiver that took nothing for stuckAfter is stuck: messages to it are dropped whole and counted, until it
// takes bytes again. A packet begun is always finished first.
package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"zhx/ipc/wire"
)

// The limits, each with what happens at it.
const (
	maxPeers     = 8192                   // connections at once, and at most half of the descriptors that the process may have; the next one is closed at accept, counted, logged once a second
	maxNames     = 16                     // that a connection receives under; one more is refused
	shrinkFrom   = 256                    // peers at once, of which three quarters have gone: memory is given back
	maxClaims    = 3 * maxNames           // (name, use) pairs kept of a connection; the oldest that it does not receive under is forgotten, and asked for again
	maxPairs     = 1024                   // (source, target) pairs remembered for the log of undeliverable messages; beyond, only counted
	readSize     = 64 << 10               // bytes a read takes; more waits in the socket
	askAfter     = 10 * time.Millisecond  // waiting for room this long is ordinary; then the kernel is asked what the receiver has left unread
	stuckAfter   = 100 * time.Millisecond // a receiver that took nothing for so long is stuck
	feederFeeds  = 32                     // feeds in a row, within
	feederWithin = 16 * time.Second       // so long: then its connection is read with those of other such
	feederPace   = 10 * time.Millisecond  // as often as this
	retryAfter   = 100 * time.Millisecond // a refused source is asked about again; an accept that failed is tried again
	logEvery     = time.Second            // a line that repeats passes once in so long, with the number of those kept back

	// Of protocol 2.
	controlMax       = 128 << 10       // bytes of acknowledgements, errors and states that a peer has not taken; then it is disconnected
	controlLeast     = 8 << 10         // the same, while more than half of totalBytes waits; they are written at the latest when there are so many
	peerBytes        = 1 << 20         // of publications that wait for a peer; then each subscription's policy decides
	topicBytes       = 256 << 10       // the same, for one subscription
	totalBytes       = 32 << 20        // of all that waits; then what is sent is refused, and policies decide
	waiting          = 64              // publications that wait for a subscription, unless it says otherwise
	maxWaiting       = 4096            // at most, whatever it says
	maxSubscriptions = 256             // a connection, the next one is refused
	allSubscriptions = 8192            // of all connections together, the same
	maxWatches       = 256             // a connection, the next one is refused
	allWatches       = 8192            // of all connections together, the same
	userLines        = 20              // of the log in logEvery that a user may cause who is neither root nor zhxd's own; more are left out
	maxTopics        = 1024            // topics with a last value, the next one is refused; topics whose subscribers are remembered, then they are looked for again
	keptBytes        = 4 << 20         // of last values; then a new one is refused
	maxSessions      = maxPeers + 1024 // sessions remembered; the one that left first is forgotten
	sessionKept      = time.Minute     // how long one is remembered that has had messages to be handled, if there are so many
	keptOutcomes     = 256             // messages to be handled of a session that are known when they are sent again; one before them is refused
	maxOwed          = 1024            // requests that a peer has not answered; one more is refused, unless the time of one is over
	maxFDs           = 4 * wire.FDsMax // descriptors of a peer that belong to frames which have not come; beyond, it is disconnected
	partialTotal     = 32 << 20        // bytes of frames begun, half of them of one user; then a frame is refused and passed over
	partialMax       = 5 * time.Second // for a frame to come wholly; then its connection is closed
	graceFor         = 2 * time.Second // what is to be handled waits so long for a name that no client has: after the broker's start, and after its receiver left, it may come back
	maxLeft          = 1024            // receivers that left so recently; of more, messages do not wait
	tapBody          = 512             // bytes of a message that a tap is shown
)

// defaultHold is what may wait to be handled by a receiver for which nothing waits while it restarts.
var defaultHold = Hold{Messages: 256, Bytes: 256 << 10, For: 10 * time.Second}

// Transport is how a peer connected: "unix" or "tcp".
type Transport string

// The transports.
const (
	Unix Transport = "unix"
	TCP  Transport = "tcp"
)

// Cred is what the kernel tells of a peer when it is accepted.
type Cred struct {
	Transport Transport
	UID       int    // -1: unknown
	PID       int    // Unix: who connected, by SO_PEERCRED; 0: unknown
	Inode     uint64 // TCP: the inode of the client's socket; 0: unknown
	Addr      string // TCP: the client's address
}

// Use is what a peer wants a name for.
type Use uint8

// The uses of a name, one for each command of a packet.
const (
	Receive Use = 1 << iota // cmd 0: be who messages to the name go to
	Send                    // cmd 2: be their source
	Watch                   // cmd 1: arm and feed the name's watchdog
)

// Session is a peer's proved right to a name. Its methods are called from any goroutine, Hold and Release under a
// receiver's lock, and must not block.
type Session interface {
	Managed() bool            // the name belongs to a client that zhx manages
	Account() *Account        // nil: not counted
	Registered()              // cmd 0 took effect: the peer receives under the name
	Arm()                     // cmd 1, wdt 0
	Feed()                    // cmd 1, wdt 1
	Checkpoint(name string)   // protocol 2: FEED, code 2
	Hold()                    // zhxd stops reading this peer, since a receiver has no room; pairs nest
	Release()                 // and goes on
	First(target string) bool // true once a (run, target): then the broker logs "forwarded"
	Proof() string            // how the claim was proved, for people
}

// Account counts one client's messages, and their bytes as they were sent. The zero value works. What was Held is Released, or
// Expired, or waits still.
type Account struct {
	Received, Sent, Undeliverable, Dropped, Held, Released, Expired atomic.Int64
	ReceivedBytes, SentBytes                                        atomic.Int64
}

// Errors of Send; the text of ErrNotSent says why.
var (
	ErrNoReceiver = errors.New("no receiver has this name")
	ErrNotSent    = errors.New("not sent")
)

// Options are what a broker may be told.
type Options struct {
	MaxBody int // bytes of a frame's body; 0: wire.BodyDefault
}

// Counters says what the broker did since it began; what is not forwarded is in one of the others.
type Counters struct {
	Accepted      int64   // connections
	Forwarded     int64   // messages written to their receiver
	Undeliverable int64   // messages without a receiver
	Dropped       int64   // messages to a stuck receiver
	Refused       int64   // packets under a name that the peer may not use
	Malformed     int64   // connections closed for a packet that is none
	Truncated     int64   // connections that ended within a packet
	OverLimit     int64   // connections closed at maxPeers
	NoDescriptor  int64   // accepts that failed for want of a descriptor or memory
	Replaced      int64   // connections closed because a newer one registered their name
	Stuck         int64   // times a receiver became stuck
	Held          int64   // messages that waited for their receiver
	Released      int64   // of those: written to it
	Expired       int64   // of those: refused in the end
	Published     int64   // publications
	Unanswered    int64   // replies that came to nothing
	Sent, Written Traffic // by peers, and to peers
	Waiting       int64   // bytes, in all
	InTransit     int64   // descriptors that are open here, on their way from one peer to another
	Untold        int64   // acknowledgements, errors and states that a peer did not take

	Gaps [1 + wire.Disconnect]int64 // publications that slow subscribers lost, by their policy
}

// PeerInfo is one connection as status shows it.
type PeerInfo struct {
	Names     []string // that it may use, sorted; none: it has not said one
	PID, UID  int      // 0, -1: unknown
	Transport Transport
	Protocol  int
	Managed   bool
	Proof     string
	Stuck     bool
	Sent      Traffic // by it
	Written   Traffic // to it
	Waiting   int     // bytes for it that it has not taken
}

// Traffic is what went one way: bytes of all kinds, messages with requests, replies and publications, descriptors.
type Traffic struct{ Bytes, Messages, FDs int64 }

// Broker is one namespace of peers. New makes it; its methods may be called from any goroutine.
type Broker struct {
	// Immutable:
	gate        Gate
	log         *slog.Logger
	limit       int // of peers
	began       time.Time
	maxBody     int
	incarnation uint64
	maxTransit  int64         // descriptors on their way at a time, and half of them of one user; then a connection is closed
	noDiag      bool          // in a test: as on a kernel without sock_diag
	equal       bool          // in a test: root has no more than others
	done        chan struct{} // Close -> acceptors
	passed      chan struct{} // readers and acceptors that park -> Settle

	names         names
	sessions      sessions
	topics        topics
	presence      presence
	quiet         quiet
	count         counts
	sent, written tally                  // of connections that have ended
	load          atomic.Int64           // bytes that wait, in boxes and as publications
	transit       atomic.Int64           // Counters.InTransit
	taps          atomic.Pointer[[]*tap] // nil: none; changed under tapping
	tapping       sync.Mutex
	settling      atomic.Int32
	wg            sync.WaitGroup // acceptors, readers, finishers

	mu sync.Mutex
	// mu guards:
	closed    bool
	hangups   *hangups // from the first Serve on
	feeders   *feeders // the same
	listeners map[*listener]struct{}
	peers     map[*peer]struct{}
	most      int           // peers at a time, since memory was given back
	partial   int           // bytes of frames begun
	users     map[int]*user // by uid
}

// counts is Counters while they count.
type counts struct {
	accepted, forwarded, undeliverable, dropped, refused, malformed, truncated, overLimit, noDescriptor, replaced, stuck,
	held, released, expired, published, unanswered, untold atomic.Int64

	gaps [1 + wire.Disconnect]atomic.Int64
}

// New makes a broker that asks g and logs to log. It does nothing until Serve.
func New(g Gate, log *slog.Logger, o Options) *Broker {
	if o.MaxBody == 0 {
		o.MaxBody = wire.BodyDefault
	}
	return &Broker{
		began: time.Now(), maxBody: o.MaxBody, incarnation: rand.Uint64() | 1,
		gate: g, log: log, limit: peerLimit(), maxTransit: int64(peerLimit() / 2), done: make(chan struct{}), passed: make(chan struct{}, 1),
		names:     names{receivers: map[string]*claim{}, boxes: map[string]*box{}, left: map[string]left{}},
		sessions:  sessions{all: map[uint64]*party{}},
		topics:    topics{cache: map[string][]*subscription{}, kept: map[string]last{}},
		presence:  presence{names: map[string]*watched{}},
		users:     map[int]*user{},
		quiet:     quiet{last: map[pair]sparse{}},
		listeners: map[*listener]struct{}{},
		peers:     map[*peer]struct{}{},
	}
}

// Close closes the listeners and every connection, and returns when the last goroutine has ended: Serve too.
func (b *Broker) Close() {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.done)
	}
	listeners := slices.Collect(maps.Keys(b.listeners))
	b.mu.Unlock()
	if b.hangups != nil { // for good, since it is closed
		b.hangups.close()
	}
	if b.feeders != nil {
		b.feeders.close() // waits for a round, which a gate may have call the broker
	}
	for _, l := range listeners {
		l.close()
	}
	for _, p := range b.snapshot() {
		p.kick()
	}
	b.wg.Wait()
	if b.feeders != nil {
		b.feeders.set.Close() // no peer is left to be taken out of it
	}
}

// Send delivers msg to target as if source had sent it, by the same path: it waits for a receiver that reads, and msg is held
// where the receiver restarts. Who source may be is the caller's affair. It fails with ErrNoReceiver, or ErrNotSent.
func (b *Broker) Send(target, source string, msg []byte) error {
	if !wire.ValidName(target) || !wire.ValidName(source) {
		return fmt.Errorf("send %q to %q: not a name", source, target)
	}
	if len(msg) > b.maxBody {
		return fmt.Errorf("send to %q: %w: %d bytes, at most %d", target, ErrNotSent, len(msg), b.maxBody)
	}
	m := batch{b: wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeMessage, To: target, From: source, Body: msg}), n: 1, frames: true}
	rest, code, _ := b.carry(m, nil, nil, []byte(target))
	switch {
	case rest.n == 0:
		b.log.Info("forwarded", "source", source, "target", target)
		return nil
	case code != wire.ErrStuck:
		b.undelivered(target, 1)
		if code == wire.ErrNoName {
			return fmt.Errorf("send to %q: %w", target, ErrNoReceiver)
		}
	}
	return fmt.Errorf("send to %q: %w: %s", target, ErrNotSent, words[code])
}

// Renew says that Gate.May may answer otherwise than it did.
func (b *Broker) Renew() { b.names.renew() }

// Revoke closes the connections of which a claim has become stale; stale may call the broker. A claim that a reader is
// just being given is asked for again. Any goroutine may call it.
func (b *Broker) Revoke(stale func(name string, s Session) bool) {
	b.names.renew()
	for _, p := range b.snapshot() {
		b.names.mu.RLock()
		claims := slices.Clone(p.claims)
		b.names.mu.RUnlock()
		i := slices.IndexFunc(claims, func(c *claim) bool { return stale(c.name, c.session) })
		if i >= 0 {
			b.log.Info("name withdrawn", p.attrs("client", claims[i].name, "next", "its connection is closed")...)
			p.kick()
		}
	}
}

// Connected tells whether a connection receives under name.
func (b *Broker) Connected(name string) bool { return b.names.find([]byte(name)) != nil }

// Peers lists the connections by their names. It never waits for one.
func (b *Broker) Peers() []PeerInfo {
	infos := []PeerInfo{}
	for _, p := range b.snapshot() {
		if p.arrived.Load() {
			infos = append(infos, p.info())
		}
	}
	slices.SortFunc(infos, func(a, b PeerInfo) int { return slices.Compare(a.Names, b.Names) })
	return infos
}

func (b *Broker) snapshot() []*peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.peers))
}

// shrink gives memory back to the kernel when most of many connections have gone: nothing else may happen for long that
// makes the runtime do it. It wants mu.
func (b *Broker) shrink() {
	if b.most = max(b.most, len(b.peers)); b.most >= shrinkFrom && len(b.peers) < b.most/4 {
		b.most = 0
		time.AfterFunc(retryAfter, debug.FreeOSMemory)
	}
}

// Counters gives what was counted until now.
func (b *Broker) Counters() Counters {
	c := &b.count
	var sent, written tally
	b.mu.Lock() // a connection that ends is in one of both
	sent.add(&b.sent)
	written.add(&b.written)
	for p := range b.peers {
		sent.add(&p.sent)
		written.add(&p.written)
	}
	b.mu.Unlock()
	var gaps [len(c.gaps)]int64
	for policy := range gaps {
		gaps[policy] = c.gaps[policy].Load()
	}
	return Counters{
		Sent: sent.load(), Written: written.load(), Waiting: b.load.Load(), InTransit: b.transit.Load(),
		Accepted: c.accepted.Load(), Forwarded: c.forwarded.Load(), Undeliverable: c.undeliverable.Load(),
		Dropped: c.dropped.Load(), Refused: c.refused.Load(), Malformed: c.malformed.Load(),
		Truncated: c.truncated.Load(), OverLimit: c.overLimit.Load(), NoDescriptor: c.noDescriptor.Load(),
		Replaced: c.replaced.Load(), Stuck: c.stuck.Load(),
		Held: c.held.Load(), Released: c.released.Load(), Expired: c.expired.Load(), Published: c.published.Load(),
		Gaps: gaps, Unanswered: c.unanswered.Load(), Untold: c.untold.Load(),
	}
}
