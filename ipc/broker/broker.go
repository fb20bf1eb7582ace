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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"zhx/ipc/wire"
)

// The limits, each with what happens at it.
const (
	maxPeers   = 8192                   // connections at once, and at most half of the descriptors that the process may have; the next one is closed at accept, counted, logged once a second
	maxClaims  = 16                     // (name, use) pairs kept of a connection; the oldest that it does not receive under is forgotten, and asked for again; one more to receive under is refused
	maxPairs   = 1024                   // (source, target) pairs remembered for the log of undeliverable messages; beyond, only counted
	readSize   = 64 << 10               // bytes a read takes; more waits in the socket
	askAfter   = 10 * time.Millisecond  // waiting for room this long is ordinary; then the kernel is asked what the receiver has left unread
	stuckAfter = 100 * time.Millisecond // a receiver that took nothing for so long is stuck
	retryAfter = 100 * time.Millisecond // a refused source is asked about again; an accept that failed is tried again
	logEvery   = time.Second            // a line that repeats passes once in so long, with the number of those kept back
)

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

// Gate decides who may do what; the daemon is one. It is called on the connection's goroutine, many at once, and never
// under a lock of the broker: while it decides, only that connection waits.
type Gate interface {
	// Arrive is called once for a connection, before anything is read of it. The broker hands who back to Claim and to
	// Settle's mine, and does not look into it.
	Arrive(c Cred) (who any)
	// Claim asks whether this peer may use a valid, unreserved name. A session is kept for the connection and not asked
	// for again; after an error the packet is dropped and counted, and the Gate itself logs the reason.
	Claim(who any, name string, use Use) (Session, error)
	// Account gives the counters of the client that owns the name, nil: nobody's.
	Account(name string) *Account
}

// Session is a peer's proved right to a name. Its methods are called from any goroutine, Hold and Release under a
// receiver's lock, and must not block.
type Session interface {
	Managed() bool            // the name belongs to a client that zhx manages
	Account() *Account        // nil: not counted
	Registered()              // cmd 0 took effect: the peer receives under the name
	Arm()                     // cmd 1, wdt 0
	Feed()                    // cmd 1, wdt 1
	Hold()                    // zhxd stops reading this peer, since a receiver has no room; pairs nest
	Release()                 // and goes on
	First(target string) bool // true once a (run, target): then the broker logs "forwarded"
	Proof() string            // how the claim was proved, for people
}

// Account counts one client's messages. The zero value works.
type Account struct{ Received, Sent, Undeliverable, Dropped, Held atomic.Int64 }

// Errors of Send.
var (
	ErrNoReceiver = errors.New("no receiver has this name")
	ErrStuck      = errors.New("the receiver is stuck: it does not read")
)

// Counters says what the broker did since it began; what is not forwarded is in one of the others.
type Counters struct {
	Accepted      int64 // connections
	Forwarded     int64 // messages written to their receiver
	Undeliverable int64 // messages without a receiver
	Dropped       int64 // messages to a stuck receiver
	Refused       int64 // packets under a name that the peer may not use
	Malformed     int64 // connections closed for a packet that is none
	Truncated     int64 // connections that ended within a packet
	OverLimit     int64 // connections closed at maxPeers
	NoDescriptor  int64 // accepts that failed for want of a descriptor or memory
	Replaced      int64 // connections closed because a newer one registered their name
	Stuck         int64 // times a receiver became stuck
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
}

// Broker is one namespace of peers. New makes it; its methods may be called from any goroutine.
type Broker struct {
	// Immutable:
	gate   Gate
	log    *slog.Logger
	limit  int           // of peers
	noDiag bool          // in a test: as on a kernel without sock_diag
	done   chan struct{} // Close -> acceptors
	passed chan struct{} // readers and acceptors that park -> Settle

	names    names
	quiet    quiet
	count    counts
	settling atomic.Int32
	wg       sync.WaitGroup // acceptors, readers, finishers

	mu sync.Mutex
	// mu guards:
	closed    bool
	hangups   *hangups // from the first Serve on
	listeners map[*listener]struct{}
	peers     map[*peer]struct{}
}

// counts is Counters while they count.
type counts struct {
	accepted, forwarded, undeliverable, dropped, refused, malformed, truncated, overLimit, noDescriptor, replaced, stuck atomic.Int64
}

// New makes a broker that asks g and logs to log. It does nothing until Serve.
func New(g Gate, log *slog.Logger) *Broker {
	return &Broker{
		gate: g, log: log, limit: peerLimit(), done: make(chan struct{}), passed: make(chan struct{}, 1),
		names:     names{receivers: map[string]*claim{}},
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
	if b.hangups != nil {
		b.hangups.close()
	}
	b.mu.Unlock()
	for _, l := range listeners {
		l.close()
	}
	for _, p := range b.snapshot() {
		p.kick()
	}
	b.wg.Wait()
}

// Send delivers msg to target as if source had sent it, by the same path: it waits for a receiver that reads. Who source
// may be is the caller's affair. It fails with ErrNoReceiver, ErrStuck, or what is wrong with a name or msg.
func (b *Broker) Send(target, source string, msg []byte) error {
	if !wire.ValidName(target) || !wire.ValidName(source) {
		return fmt.Errorf("send %q to %q: not a name", source, target)
	}
	packet, err := wire.Packet{Cmd: wire.CmdTransfer, Target: target, Source: source, Msg: msg}.Append(nil)
	if err == nil {
		err = b.forward(packet, nil, nil)
	}
	if err != nil {
		return fmt.Errorf("send to %q: %w", target, err)
	}
	b.log.Info("forwarded", "source", source, "target", target)
	return nil
}

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

// Counters gives what was counted until now.
func (b *Broker) Counters() Counters {
	c := &b.count
	return Counters{
		Accepted: c.accepted.Load(), Forwarded: c.forwarded.Load(), Undeliverable: c.undeliverable.Load(),
		Dropped: c.dropped.Load(), Refused: c.refused.Load(), Malformed: c.malformed.Load(),
		Truncated: c.truncated.Load(), OverLimit: c.overLimit.Load(), NoDescriptor: c.noDescriptor.Load(),
		Replaced: c.replaced.Load(), Stuck: c.stuck.Load(),
	}
}
