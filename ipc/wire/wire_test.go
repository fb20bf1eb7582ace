package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestAppend(t *testing.T) {
	for _, c := range []struct {
		purpose string
		packet  Packet
		fails   string
	}{
		{"an ordinary message", Packet{Cmd: CmdTransfer, Target: "client2", Source: "client1", Msg: []byte("hello")}, ""},
		{"names that fill their fields have no NUL", Packet{Cmd: CmdTransfer, Target: "0123456789", Source: "abcdefghij"}, ""},
		{"a message that fills its field", Packet{Cmd: CmdTransfer, Msg: bytes.Repeat([]byte("x"), MsgSize)}, ""},
		{"feeding", Packet{Cmd: CmdWatchdog, Wdt: WatchdogFeed, Source: "client1"}, ""},
		{"wdt has no meaning in other commands", Packet{Cmd: CmdRegister, Wdt: -7, Source: "client1"}, ""},
		{"a name too long is not cut", Packet{Target: "01234567890"}, `name "01234567890"`},
		{"a name with a NUL would be read as another", Packet{Source: "a\x00b"}, `name "a\x00b"`},
		{"a message too long is not cut", Packet{Msg: make([]byte, MsgSize+1)}, "message of 513 bytes"},
		{"an unknown cmd", Packet{Cmd: 3}, "unknown cmd 3"},
		{"an unknown wdt", Packet{Cmd: CmdWatchdog, Wdt: 2}, "unknown wdt 2"},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			b, err := c.packet.Append([]byte("kept"))
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) || string(b) != "kept" {
					t.Fatalf("Append: %q, %v; want the error %q and dst as it was", b, err, c.fails)
				}
				return
			}
			if err != nil || len(b) != 4+PacketSize || string(b[:9]) != "kepthead\x00" {
				t.Fatalf("Append: %d bytes %q, %v", len(b), b[:12], err)
			}
			p, err := Parse(b[4:])
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Msg) != MsgSize || !bytes.HasPrefix(p.Msg, c.packet.Msg) || p.Text() != string(c.packet.Msg) {
				t.Errorf("message came back as %q", p.Msg)
			}
			p.Msg = c.packet.Msg
			if fmt.Sprint(p) != fmt.Sprint(c.packet) {
				t.Errorf("came back as %v, was %v", p, c.packet)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	raw := func(cmd, wdt int32) []byte {
		b := append([]byte("head\x00garbage"), make([]byte, PacketSize-12)...)
		binary.LittleEndian.PutUint32(b[OffsetCmd:], uint32(cmd))
		binary.LittleEndian.PutUint32(b[OffsetWdt:], uint32(wdt))
		return b
	}
	for _, c := range []struct {
		purpose string
		b       []byte
		at      int // the shortest prefix that is wrong
		want    error
		text    string
	}{
		{"HTTP is known at its first byte", []byte("GET / HTTP/1.1\r\n"), 1, ErrHead, `does not begin with "head": "GET / HTTP/1"`},
		{"a word that goes on", []byte("heads and tails"), 5, ErrHead, "heads"},
		{"the C string ends after four letters", []byte("head of state"), 5, ErrHead, "head "},
		{"garbage after the C string is ordinary", raw(CmdTransfer, 0), 0, nil, ""},
		{"an unknown cmd", raw(3, 0), OffsetWdt, ErrCmd, "unknown cmd 3"},
		{"a negative cmd", raw(-1, 0), OffsetWdt, ErrCmd, "unknown cmd -1"},
		{"an unknown wdt", raw(CmdWatchdog, 2), OffsetTarget, ErrWdt, "unknown wdt 2"},
		{"a negative wdt", raw(CmdWatchdog, -1), OffsetTarget, ErrWdt, "unknown wdt -1"},
		{"arm", raw(CmdWatchdog, WatchdogArm), 0, nil, ""},
		{"feed", raw(CmdWatchdog, WatchdogFeed), 0, nil, ""},
		{"a message's wdt is not looked at", raw(CmdTransfer, 99), 0, nil, ""},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			for n := range len(c.b) + 1 {
				err := Check(c.b[:n])
				if wrong := c.want != nil && n >= c.at; wrong != (err != nil) || wrong && !errors.Is(err, c.want) {
					t.Fatalf("with %d bytes: %v", n, err)
				}
			}
			if err := Check(c.b); err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("says %q, want %q in it", err, c.text)
			}
		})
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		name            string
		valid, reserved bool
	}{
		{"client1", true, false}, {"_", true, false}, {"9-9_z", true, false}, {strings.Repeat("n", 64), true, false},
		{"", false, false}, {"-x", false, false}, {"a b", false, false}, {"ä", false, false}, {strings.Repeat("n", 65), false, false},
		{"zhxd", true, true}, {"zhxctl", true, true}, {"zhx_server", true, true}, {"null", true, true},
	} {
		if ValidName(c.name) != c.valid || Reserved(c.name) != c.reserved {
			t.Errorf("%q: valid %v, reserved %v; want %v, %v", c.name, ValidName(c.name), Reserved(c.name), c.valid, c.reserved)
		}
	}
}

// The prototype's struct, as a C compiler of this machine lays it out.
const layout = `#include <stddef.h>
#include <stdio.h>
struct zhx_packet { char head[10]; int cmd, wdt; char target[10], source[10], msg[512]; };
#define AT(f) (int)offsetof(struct zhx_packet, f)
int main(void) {
	printf("%d %d %d %d %d %d", AT(cmd), AT(wdt), AT(target), AT(source), AT(msg), (int)sizeof(struct zhx_packet));
	return 0;
}`

func TestLayoutIsC(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc, to lay out the C struct")
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(source, []byte(layout), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(gcc, "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	got, err := exec.Command(program).Output()
	want := fmt.Sprint(OffsetCmd, OffsetWdt, OffsetTarget, OffsetSource, OffsetMsg, PacketSize)
	if err != nil || string(got) != want {
		t.Errorf("C has %q (%v), this package %q", got, err, want)
	}
}

// FuzzPacket: what Append makes of any values, Parse gives back; what Parse takes, Append makes again but for the bytes
// that have no meaning.
func FuzzPacket(f *testing.F) {
	f.Add(int32(CmdTransfer), int32(0), "client2", "client1", []byte("hello"))
	f.Add(int32(CmdWatchdog), int32(WatchdogFeed), "null", "client1", []byte("null"))
	f.Add(int32(CmdRegister), int32(-1), "", "0123456789", []byte{})
	f.Add(int32(7), int32(7), "a\x00", "01234567890", make([]byte, 513))
	f.Fuzz(func(t *testing.T, cmd, wdt int32, target, source string, msg []byte) {
		b, err := Packet{cmd, wdt, target, source, msg}.Append(nil)
		if err != nil {
			return
		}
		p, err := Parse(b)
		if err != nil || p.Cmd != cmd || p.Wdt != wdt || p.Target != target || p.Source != source || !bytes.Equal(p.Msg[:len(msg)], msg) {
			t.Fatalf("came back as %v, %v", p, err)
		}
		again, err := p.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("appended again: %q, %v; was %q", again, err, b)
		}
	})
}
