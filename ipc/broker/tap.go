package broker

// This file shows messages as they pass, to who may see them all. A tap that is too slow loses some itself; nobody else does.

import (
	"context"
	"slices"
	"time"

	"zhx/ipc/wire"
)

// TapEvent is one message or publication that passed.
type TapEvent struct {
	At       time.Time
	Kind     string // message, request, reply, publication
	From, To string // To: a name, or a topic
	Size     int    // of the body, bytes
	Body     []byte // its first tapBody bytes
	Outcome  string // written, held, published, or why not
	Lost     int64  // this many before it were not shown, since they came faster than they were taken
}

type tap struct {
	pattern string
	events  chan TapEvent
	lost    int64 // Broker.tapping guards it
}

// Tap shows what passes from now on whose sender, receiver or topic fits pattern ("" or ">" is all), until ctx ends; then the
// channel is closed. Any goroutine may call it.
func (b *Broker) Tap(ctx context.Context, pattern string) <-chan TapEvent {
	t := &tap{pattern: pattern, events: make(chan TapEvent, 256)}
	b.tapping.Lock()
	b.setTaps(append(slices.Clone(b.currentTaps()), t))
	b.tapping.Unlock()
	context.AfterFunc(ctx, func() {
		b.tapping.Lock()
		defer b.tapping.Unlock()
		b.setTaps(slices.DeleteFunc(slices.Clone(b.currentTaps()), func(other *tap) bool { return other == t }))
		close(t.events)
	})
	return t.events
}

func (b *Broker) currentTaps() []*tap {
	if taps := b.taps.Load(); taps != nil {
		return *taps
	}
	return nil
}

func (b *Broker) setTaps(taps []*tap) {
	if len(taps) == 0 {
		b.taps.Store(nil)
		return
	}
	b.taps.Store(&taps)
}

// tapped shows the first n messages to the taps, of which there are commonly none.
func (b *Broker) tapped(m batch, n int, outcome string) {
	if b.taps.Load() == nil {
		return
	}
	b.tapping.Lock()
	defer b.tapping.Unlock()
	for ; n > 0; n-- {
		b.show(m.b[:m.size(0)], m.frames, outcome)
		m = m.skip(1)
	}
}

// show wants tapping.
func (b *Broker) show(message []byte, frames bool, outcome string) {
	e := TapEvent{At: time.Now(), Kind: "message", Outcome: outcome}
	body := []byte(nil)
	if frames {
		e.From, e.To, body = string(wire.FrameFrom(message)), string(wire.FrameTo(message)), wire.FrameBody(message)
		switch message[wire.OffsetType] {
		case wire.TypeRequest:
			e.Kind = "request"
		case wire.TypeReply:
			e.Kind = "reply"
		case wire.TypePublish:
			e.Kind = "publication"
		}
	} else {
		e.From, e.To, body = string(wire.Source(message)), string(wire.Target(message)), message[wire.OffsetMsg:]
	}
	e.Size, e.Body = len(body), slices.Clone(body[:min(len(body), tapBody)])
	for _, t := range b.currentTaps() {
		if !t.wants(e.From) && !t.wants(e.To) {
			continue
		}
		e.Lost = t.lost
		select {
		case t.events <- e:
			t.lost = 0
		default:
			t.lost++
		}
	}
}

func (t *tap) wants(name string) bool {
	return t.pattern == "" || t.pattern == ">" || name != "" && wire.MatchTopic(t.pattern, name)
}
