package broker

// This file is what waits for a connection of protocol 2: first what zhx itself has to say, then messages that were held,
// and publications. Nobody waits here; each kind has a limit of its own.

import (
	"slices"
	"sync"
	"sync/atomic"

	"zhx/ipc/wire"
)

// batch is messages of one route, one after the other.
type batch struct {
	b      []byte
	n      int   // messages
	frames bool  // of protocol 2; else packets
	fds    []int // that go with the only message; nil: none
}

// size is that of the message at an offset.
func (m batch) size(at int) int {
	if m.frames {
		size, _ := wire.FrameSize(m.b[at:])
		return size
	}
	return wire.PacketSize
}

// split tells how many messages the first written bytes are, and where the first begins that is not wholly among them.
func (m batch) split(written int) (done, begun int) {
	if !m.frames {
		done = written / wire.PacketSize
		return done, done * wire.PacketSize
	}
	for begun < len(m.b) {
		size := m.size(begun)
		if begun+size > written {
			break
		}
		begun += size
		done++
	}
	return done, begun
}

type queue struct {
	p    *peer
	some atomic.Bool // something waits; changed under mu

	mu sync.Mutex
	// mu guards:
	control []byte  // whole frames, at most controlMax
	items   []*item // in order
	hand    *item   // a mail that next gave, of which nothing is written: it may be recalled; nil: none
	bytes   int     // of publications among them
	over    bool    // the connection is: nothing is queued any more
}

// item is one message that waits.
type item struct {
	frame []byte        // never written to
	mail  *mail         // nil: it was not held
	sub   *subscription // nil: it is no publication
	gap   bool          // it stands where publications of sub were lost
}

// written is called when all of it is in the socket, under the outlet's lock.
func (it *item) written(p *peer) {
	p.written.messages.Add(1)
	if it.mail != nil {
		it.mail.written(p)
	}
}

// next takes what is to be written next: all of control, or one item; nil: nothing waits.
func (q *queue) next(p *peer) ([]byte, *item) {
	if !q.some.Load() {
		return nil, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.control) > 0 {
		b := q.control
		q.control = nil
		q.p.b.weigh(q.p.user, -len(b))
		q.look()
		return b, nil
	}
	if len(q.items) == 0 {
		return nil, nil
	}
	it := q.items[0]
	q.remove(0)
	switch {
	case it.gap:
		lost := it.sub.lost
		it.sub.lost = 0
		return wire.AppendFrame(nil, &wire.Frame{Type: wire.TypeGap, ID: lost, To: it.sub.pattern}), nil
	case it.mail != nil:
		it.mail.begin(p)
		q.hand = it
	}
	return it.frame, it
}

// look sets some. It wants mu.
func (q *queue) look() { q.some.Store(len(q.items) > 0 || len(q.control) > 0) }

// remove wants mu.
func (q *queue) remove(i int) {
	it := q.items[i]
	q.items = slices.Delete(q.items, i, i+1)
	if len(q.items) == 0 {
		q.items = nil
	}
	q.look()
	switch {
	case it.sub == nil:
	case it.gap:
		it.sub.gap = false
	default:
		q.account(it, -1)
	}
}

// account wants mu.
func (q *queue) account(it *item, sign int) {
	it.sub.waiting += sign
	it.sub.bytes += sign * len(it.frame)
	q.bytes += sign * len(it.frame)
	q.p.b.weigh(q.p.user, sign*len(it.frame))
}

// say queues a frame of zhx's own. A peer that has not taken controlMax of them is disconnected: it would wait for ever for
// what it is not told.
func (p *peer) say(f *wire.Frame) {
	q, b := &p.out.queue, p.b
	q.mu.Lock()
	had, limit := len(q.control), controlMax
	if b.load.Load() > totalBytes/2 {
		limit = controlLeast
	}
	full := had >= limit || had > 0 && !b.fits(p.user, 0)
	if !full && !q.over {
		q.control = wire.AppendFrame(q.control, f)
		b.weigh(p.user, len(q.control)-had)
		q.some.Store(true)
	}
	q.mu.Unlock()
	switch {
	case full:
		b.count.untold.Add(1)
		p.kick()
	case had >= controlLeast:
		p.out.kick()
	}
}

// tell is say to any connection: it is written at once if there is room and nobody is writing.
func (p *peer) tell(f *wire.Frame) {
	p.say(f)
	p.out.kick()
}

// add queues mails behind everything that is queued by now.
func (q *queue) add(mails []*item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, mails...)
	q.look()
}

// recall takes back the mails that match, as far as nothing of them is written.
func (q *queue) recall(match func(*mail) bool) (mails []*mail) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.hand != nil && match(q.hand.mail) {
		mails = append(mails, q.hand.mail)
		q.p.paid(q.hand.mail.session, q.hand.mail.id)
		q.hand = nil
	}
	q.items = slices.DeleteFunc(q.items, func(it *item) bool {
		mine := it.mail != nil && match(it.mail)
		if mine {
			mails = append(mails, it.mail)
		}
		return mine
	})
	q.look()
	return mails
}

// publish queues a publication by the subscription's policy; false: the connection is to be closed.
func (q *queue) publish(frame []byte, s *subscription) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over { // its subscription was found just before
		return true
	}
	b := s.peer.b
	full := func() bool {
		return s.waiting >= s.limit || s.bytes+len(frame) > topicBytes || q.bytes+len(frame) > peerBytes || !b.fits(q.p.user, len(frame))
	}
	for full() {
		oldest := -1
		switch s.policy {
		case wire.Disconnect:
			b.count.gaps[s.policy].Add(1)
			return false
		case wire.DropOldest, wire.LatestOnly:
			oldest = slices.IndexFunc(q.items, func(it *item) bool { return it.sub == s && !it.gap })
		}
		if oldest < 0 { // this one is lost
			q.lose(s, len(q.items))
			return true
		}
		q.remove(oldest)
		q.lose(s, oldest)
	}
	it := &item{frame: frame, sub: s}
	q.account(it, 1)
	q.items = append(q.items, it)
	q.some.Store(true)
	return true
}

// lose counts a publication that is lost at a place in the queue. It wants mu.
func (q *queue) lose(s *subscription, at int) {
	s.lost++
	s.peer.b.count.gaps[s.policy].Add(1)
	if !s.gap {
		s.gap = true
		q.items = slices.Insert(q.items, at, &item{sub: s, gap: true})
	}
	q.some.Store(true)
}

// waiting is how many bytes wait.
func (q *queue) waiting() (bytes int) {
	if !q.some.Load() {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		bytes += len(it.frame)
	}
	return bytes + len(q.control)
}

// clear forgets everything, and what comes later, for a connection that is over.
func (q *queue) clear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) > 0 {
		q.remove(len(q.items) - 1)
	}
	q.p.b.weigh(q.p.user, -len(q.control))
	q.control, q.over = nil, true
	q.some.Store(false)
}
