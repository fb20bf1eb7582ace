// Package wire is the form of what zhx carries: the 552-byte packet of protocol 1, as the C compiler lays it out, and the
// frame of protocol 2 (frame.go). It is pure: bytes in, values out, no I/O, no state, nothing kept.
//
//	offset  0  head[10]         the C string "head"; what follows its NUL has no meaning
//	       10  2 bytes          the compiler's padding, no meaning
//	       12  cmd int32        0 register, 1 watchdog, 2 transfer; little-endian
//	       16  wdt int32        with cmd 1: 0 arm, 1 feed; else no meaning
//	       20  target_name[10]  a name ends at its first NUL or fills all ten bytes
//	       30  source_name[10]
//	       40  msg[512]         carried as it is
//
// Packets follow one another in a stream, without anything between them: a reader cuts by length and calls [Check] on
// what it has, also on a part of a packet, so that a stranger is known at its first wrong byte.
package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes and offsets in bytes.
const (
	PacketSize = 552
	NameSize   = 10  // a longer name is an error of Append
	MsgSize    = 512 // a longer message is an error of Append; nothing is cut

	OffsetCmd    = 12
	OffsetWdt    = 16
	OffsetTarget = 20
	OffsetSource = 30
	OffsetMsg    = 40
)

// The commands of a packet, and the words of the watchdog command.
const (
	CmdRegister = 0 // this connection receives what is sent to source_name
	CmdWatchdog = 1 // source_name's watchdog: see wdt
	CmdTransfer = 2 // forwarded to target_name's receiver, byte for byte

	WatchdogArm  = 0
	WatchdogFeed = 1
)

const head = "head\x00"

// What Check finds wrong; its errors wrap one of these and quote what was there.
var (
	ErrHead = errors.New(`does not begin with "head"`)
	ErrCmd  = errors.New("unknown cmd")
	ErrWdt  = errors.New("unknown wdt")
)

// Packet is one packet in Go's form.
type Packet struct {
	Cmd, Wdt       int32
	Target, Source string // at most NameSize bytes, no NUL
	Msg            []byte // at most MsgSize bytes; Parse gives all MsgSize of them, in the parsed memory
}

// Text is the message as a C program reads it: up to its first NUL.
func (p Packet) Text() string { return string(untilNUL(p.Msg)) }

// Append appends the packet's 552 bytes to dst. Unused bytes are zero. It fails, and leaves dst as it was, when a name or
// the message does not fit, a name holds a NUL, or Check would refuse the result.
func (p Packet) Append(dst []byte) ([]byte, error) {
	for _, name := range []string{p.Target, p.Source} {
		if len(name) > NameSize || bytes.IndexByte([]byte(name), 0) >= 0 {
			return dst, fmt.Errorf("name %q: at most %d bytes without NUL", name, NameSize)
		}
	}
	if len(p.Msg) > MsgSize {
		return dst, fmt.Errorf("message of %d bytes: at most %d", len(p.Msg), MsgSize)
	}
	var b [PacketSize]byte
	copy(b[:], head)
	binary.LittleEndian.PutUint32(b[OffsetCmd:], uint32(p.Cmd))
	binary.LittleEndian.PutUint32(b[OffsetWdt:], uint32(p.Wdt))
	copy(b[OffsetTarget:], p.Target)
	copy(b[OffsetSource:], p.Source)
	copy(b[OffsetMsg:], p.Msg)
	if err := Check(b[:]); err != nil {
		return dst, err
	}
	return append(dst, b[:]...), nil
}

// Parse reads the packet that b holds: exactly PacketSize bytes that Check accepts.
func Parse(b []byte) (Packet, error) {
	if len(b) != PacketSize {
		return Packet{}, fmt.Errorf("packet of %d bytes: want %d", len(b), PacketSize)
	}
	if err := Check(b); err != nil {
		return Packet{}, err
	}
	return Packet{Cmd: Cmd(b), Wdt: Wdt(b), Target: string(Target(b)), Source: string(Source(b)), Msg: b[OffsetMsg:]}, nil
}

// Check says what is wrong with a packet of which b holds the first bytes, any number of them from 0 to PacketSize, or
// nil: nothing so far. A field is judged once it is there whole, the head byte by byte: "GET /" fails at its G. The same
// packet gives the same kind of error however it was cut.
func Check(b []byte) error {
	if len(b) >= OffsetTarget && string(b[:len(head)]) == head { // the whole of it, in the fewest steps
		if cmd := Cmd(b); cmd == CmdTransfer || cmd == CmdRegister || cmd == CmdWatchdog && uint32(Wdt(b)) <= WatchdogFeed {
			return nil
		}
	}
	if n := min(len(b), len(head)); string(b[:n]) != head[:n] {
		return fmt.Errorf("%w: %q", ErrHead, b[:min(len(b), OffsetCmd)])
	}
	if len(b) >= OffsetWdt && uint32(Cmd(b)) > CmdTransfer {
		return fmt.Errorf("%w %d", ErrCmd, Cmd(b))
	}
	if len(b) >= OffsetTarget && Cmd(b) == CmdWatchdog && uint32(Wdt(b)) > WatchdogFeed {
		return fmt.Errorf("%w %d", ErrWdt, Wdt(b))
	}
	return nil
}

// Cmd, Wdt, Target and Source read a field where it lies, without a copy. b holds a whole packet; a name ends before its
// first NUL and is valid as long as b is.
func Cmd(b []byte) int32     { return int32(binary.LittleEndian.Uint32(b[OffsetCmd:])) }
func Wdt(b []byte) int32     { return int32(binary.LittleEndian.Uint32(b[OffsetWdt:])) }
func Target(b []byte) []byte { return untilNUL(b[OffsetTarget : OffsetTarget+NameSize]) }
func Source(b []byte) []byte { return untilNUL(b[OffsetSource : OffsetSource+NameSize]) }

func untilNUL(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

// ValidName tells whether name may be anybody's: [A-Za-z0-9_][A-Za-z0-9_-]{0,63}.
func ValidName(name string) bool {
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
		if !letter && (c != '-' || i == 0) {
			return false
		}
	}
	return 0 < len(name) && len(name) <= NameMax
}

// Reserved tells whether zhx keeps a valid name for itself: zhxd, zhxctl, zhx_server (what the prototype's clients look
// for), null (what they write where no name is meant).
func Reserved(name string) bool {
	return name == "zhxd" || name == "zhxctl" || name == "zhx_server" || name == "null"
}
