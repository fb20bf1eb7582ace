package wire

// This file is the form of protocol 2: the preamble and the frame. What the frames mean to whom is in ipc/PROTOCOL.md.

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Preamble is what a client's connection begins with if it speaks protocol 2: no packet of protocol 1 begins so, nor does
// a text, and CR LF show a link that mangles them. The last byte but one is the highest version that the client speaks.
const Preamble = "\xa7ZHX\r\n\x02\x00"

// Version is the version of protocol 2's frames that this package knows.
const Version = 2

// Sizes in bytes, and what else is limited.
const (
	FrameHeader = 32
	FrameMax    = 16 << 20 // a size beyond is no frame, and framing is lost; a broker's limit for bodies is much lower
	BodyDefault = 256 << 10
	NameMax     = 64  // of a name
	TopicMax    = 200 // of a topic or a pattern
	FDsMax      = 4   // descriptors of a frame
)

// The types of frames. Those that a client sends are answered with TypeAck or TypeError under their id, unless it says otherwise.
const (
	TypeHello       = 1  // client: first of all; session, flag TakesFDs; over TCP the body is the cookie
	TypeWelcome     = 2  // zhx: the answer; session is zhxd's incarnation, id the largest body, code the version
	TypeRegister    = 3  // client: this connection receives what is sent to from
	TypeMessage     = 4  // to, from, body; code is the Level asked for
	TypeRequest     = 5  // the same, answered by a reply within time
	TypeReply       = 6  // session and id are the request's
	TypeCancel      = 7  // client: the reply of request id, sent to to, is of no use any more; not answered
	TypeAck         = 8  // session and id are the message's, code is the Level reached; not answered
	TypeError       = 9  // session and id are the refused frame's, code is an Err…, to the name that it is about; not answered
	TypePublish     = 10 // to is the topic; flag Retain
	TypeSubscribe   = 11 // client: to is a pattern, code a Policy, time how many messages may wait
	TypeUnsubscribe = 12 // client: to is the pattern
	TypeGap         = 13 // zhx: id publications of the pattern to were lost here; not answered
	TypeWatch       = 14 // client: tell the state of the name to, now and whenever it changes
	TypeUnwatch     = 15 // client
	TypeState       = 16 // zhx: code is the State of the name to, id counts its changes, body says more; not answered
	TypeFeed        = 17 // client: from's watchdog; code is a Feed…, to the checkpoint; answered only by TypeError
)

// Flags of a frame. Unknown ones are carried and ignored.
const (
	Repeat   = 1 << iota // a message or request that its receiver may have been given before
	NoHold               // a message or request that must not wait for a restart
	Failed               // a reply: the body says what went wrong
	Retain               // a publication: the last value of its topic, kept for who subscribes later; delivered: it is such a one
	FromV1               // a message that came as a packet: the body is its 512 bytes
	TakesFDs             // hello, welcome: descriptors may be sent on this connection
)

// Levels of acknowledgement.
const (
	LevelNone     = 0 // only an error is told
	LevelAccepted = 1 // zhx has it: it is written, or waits for its receiver
	LevelWritten  = 2 // it is in the receiver's socket
	LevelHandled  = 3 // the receiver says that it is done; sent again until then
)

// What TypeError says.
const (
	ErrNoName     = 1  // nobody has this name
	ErrRestarting = 2  // its client is being restarted, and this message was not to wait, or could not; time: when it is tried next, in ms
	ErrStopped    = 3  // its client was stopped, or never started
	ErrFailed     = 4  // its client has failed and is not started again by itself
	ErrFull       = 5  // there is no room for it
	ErrDenied     = 6  // the configuration does not allow it, or the name is not proved
	ErrTooBig     = 7  // the body, or a name that a receiver of protocol 1 cannot be told
	ErrExpired    = 8  // its time was over before it could be written
	ErrStuck      = 9  // the receiver does not read
	ErrGone       = 10 // the receiver ended with it
	ErrNoFDs      = 11 // descriptors do not get there
	ErrBad        = 12 // the frame makes no sense
	ErrTaken      = 13 // another connection registered the name; this one is closed, and is not to come back by itself
	ErrUnanswered = 14 // the receiver speaks protocol 1 and cannot reply
)

// States of a name.
const (
	StateAbsent     = 0 // nobody has it
	StateRunning    = 1 // its process lives
	StateReady      = 2 // and is ready
	StateLate       = 3 // and has not fed its watchdog for half of its time
	StateRestarting = 4 // it is between two runs
	StateFailed     = 5 // and is not started again by itself
	StateStopped    = 6 // it is not to run
)

// Policies of a subscription whose messages wait since its connection takes no more.
const (
	DropOldest = 0
	DropNewest = 1
	LatestOnly = 2
	Disconnect = 3
)

// What TypeFeed is.
const (
	FeedArm        = 0
	FeedAlive      = 1
	FeedCheckpoint = 2
)

// The fields of a frame, where they lie.
const (
	offsetSize    = 0
	OffsetType    = 4
	OffsetFlags   = 5
	OffsetCode    = 6
	OffsetFDs     = 7
	OffsetSession = 8
	OffsetID      = 16
	OffsetTime    = 24
	offsetTo      = 28
	offsetFrom    = 29
	offsetExt     = 30
)

// Frame is one frame in Go's form.
type Frame struct {
	Type, Flags, Code uint8
	FDs               uint8 // descriptors that come with it
	Session, ID       uint64
	Time              uint32 // ms
	To, From          string // at most 255 bytes
	Body              []byte // ParseFrame gives it in the parsed memory
}

// What is wrong with a frame so that nothing after it can be read.
var ErrFrame = errors.New("not a frame")

// AppendFrame appends f to dst. It panics if To or From has more than 255 bytes.
func AppendFrame(dst []byte, f *Frame) []byte {
	if len(f.To) > 255 || len(f.From) > 255 {
		panic("wire: a name of over 255 bytes")
	}
	var h [FrameHeader]byte
	binary.LittleEndian.PutUint32(h[offsetSize:], uint32(FrameHeader+len(f.To)+len(f.From)+len(f.Body)))
	h[OffsetType], h[OffsetFlags], h[OffsetCode], h[OffsetFDs] = f.Type, f.Flags, f.Code, f.FDs
	binary.LittleEndian.PutUint64(h[OffsetSession:], f.Session)
	binary.LittleEndian.PutUint64(h[OffsetID:], f.ID)
	binary.LittleEndian.PutUint32(h[OffsetTime:], f.Time)
	h[offsetTo], h[offsetFrom] = uint8(len(f.To)), uint8(len(f.From))
	dst = append(dst, h[:]...)
	dst = append(dst, f.To...)
	dst = append(dst, f.From...)
	return append(dst, f.Body...)
}

// FrameSize is the size of the frame of which b holds the first bytes; 0: that needs more of them. An error wraps ErrFrame.
func FrameSize(b []byte) (int, error) {
	if len(b) < FrameHeader {
		return 0, nil
	}
	size := binary.LittleEndian.Uint32(b)
	if size > FrameMax {
		return 0, fmt.Errorf("%w: a size of %d bytes, at most %d", ErrFrame, size, FrameMax)
	}
	if least := uint32(FrameHeader) + uint32(b[offsetTo]) + uint32(b[offsetFrom]) + uint32(ext(b)); size < least {
		return 0, fmt.Errorf("%w: a size of %d bytes, its names and header have %d", ErrFrame, size, least)
	}
	if b[OffsetFDs] > FDsMax {
		return 0, fmt.Errorf("%w: %d descriptors, at most %d", ErrFrame, b[OffsetFDs], FDsMax)
	}
	return int(size), nil
}

func ext(b []byte) uint16 { return binary.LittleEndian.Uint16(b[offsetExt:]) }

// The rest reads a field where it lies, without a copy. b holds a whole frame, that FrameSize has found good.

func FrameTo(b []byte) []byte { return b[FrameHeader : FrameHeader+int(b[offsetTo])] }
func FrameFrom(b []byte) []byte {
	from := FrameHeader + int(b[offsetTo])
	return b[from : from+int(b[offsetFrom])]
}
func FrameBody(b []byte) []byte {
	return b[FrameHeader+int(b[offsetTo])+int(b[offsetFrom])+int(ext(b)):]
}
func FrameSession(b []byte) uint64 { return binary.LittleEndian.Uint64(b[OffsetSession:]) }
func FrameID(b []byte) uint64      { return binary.LittleEndian.Uint64(b[OffsetID:]) }
func FrameTime(b []byte) uint32    { return binary.LittleEndian.Uint32(b[OffsetTime:]) }

// ParseFrame reads the frame that b holds, exactly. What lies between names and body, for later versions, is passed over.
func ParseFrame(b []byte) (Frame, error) {
	size, err := FrameSize(b)
	if err != nil {
		return Frame{}, err
	}
	if size == 0 || size != len(b) {
		return Frame{}, fmt.Errorf("%w: %d bytes of one of %d", ErrFrame, len(b), size)
	}
	return Frame{
		Type: b[OffsetType], Flags: b[OffsetFlags], Code: b[OffsetCode], FDs: b[OffsetFDs],
		Session: FrameSession(b), ID: FrameID(b), Time: FrameTime(b),
		To: string(FrameTo(b)), From: string(FrameFrom(b)), Body: FrameBody(b),
	}, nil
}

// ValidTopic tells whether topic may be published: words of [A-Za-z0-9_-] with dots between them, at most TopicMax bytes.
func ValidTopic(topic string) bool { return validTopic(topic, false) }

// ValidPattern tells whether pattern is a topic in which words may be *, any one word, and the last may be >, one or more.
func ValidPattern(pattern string) bool { return validTopic(pattern, true) }

func validTopic(s string, pattern bool) bool {
	if s == "" || len(s) > TopicMax {
		return false
	}
	for word, rest, more := cutWord(s); ; word, rest, more = cutWord(rest) {
		if !(pattern && (word == "*" || word == ">" && !more)) && !validWord(word) {
			return false
		}
		if !more {
			return true
		}
	}
}

func validWord(word string) bool {
	for _, c := range []byte(word) {
		if letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'; !letter {
			return false
		}
	}
	return word != ""
}

func cutWord(s string) (word, rest string, more bool) {
	for i := range len(s) {
		if s[i] == '.' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// MatchTopic tells whether a valid pattern means a valid topic.
func MatchTopic(pattern, topic string) bool {
	for {
		p, prest, pmore := cutWord(pattern)
		if p == ">" && !pmore {
			return true
		}
		t, trest, tmore := cutWord(topic)
		if p != "*" && p != t || pmore != tmore {
			return false
		}
		if !pmore {
			return true
		}
		pattern, topic = prest, trest
	}
}
