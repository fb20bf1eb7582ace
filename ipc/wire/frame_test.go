package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// The bytes of a frame are those that PROTOCOL.md's table says.
func TestFrameLayout(t *testing.T) {
	f := Frame{Type: TypeMessage, Flags: NoHold, Code: LevelHandled, FDs: 2, Session: 0x1122334455667788, ID: 9, Time: 1000, To: "ab", From: "c", Body: []byte("body")}
	want := "\x27\x00\x00\x00" + "\x04\x02\x03\x02" + "\x88\x77\x66\x55\x44\x33\x22\x11" + "\x09\x00\x00\x00\x00\x00\x00\x00" +
		"\xe8\x03\x00\x00" + "\x02\x01\x00\x00" + "ab" + "c" + "body"
	b := AppendFrame([]byte("before"), &f)
	if string(b) != "before"+want {
		t.Errorf("%q, want %q", b[6:], want)
	}
	got, err := ParseFrame(b[6:])
	if err != nil || !reflect.DeepEqual(got, f) {
		t.Errorf("%+v, %v; want %+v", got, err, f)
	}
	if b = b[6:]; string(FrameTo(b)) != "ab" || string(FrameFrom(b)) != "c" || string(FrameBody(b)) != "body" ||
		FrameSession(b) != f.Session || FrameID(b) != 9 || FrameTime(b) != 1000 {
		t.Errorf("the fields where they lie differ from %+v", f)
	}
	defer func() {
		if recover() == nil {
			t.Error("a name of 256 bytes was taken")
		}
	}()
	AppendFrame(nil, &Frame{To: strings.Repeat("x", 256)})
}

// FrameSize says how much belongs together, and what can be no frame.
func TestFrameSize(t *testing.T) {
	frame := func(size uint32, change func(b []byte)) []byte {
		b := make([]byte, FrameHeader)
		binary.LittleEndian.PutUint32(b, size)
		if change != nil {
			change(b)
		}
		return b
	}
	names := func(to, from uint8, ext uint16) func([]byte) {
		return func(b []byte) {
			b[offsetTo], b[offsetFrom] = to, from
			binary.LittleEndian.PutUint16(b[offsetExt:], ext)
		}
	}
	for _, c := range []struct {
		purpose string
		b       []byte
		want    int
		bad     bool
	}{
		{"nothing", nil, 0, false},
		{"a header less a byte, even of a bad size", frame(1<<31, nil)[:FrameHeader-1], 0, false},
		{"the least", frame(FrameHeader, nil), FrameHeader, false},
		{"the largest", frame(FrameMax, nil), FrameMax, false},
		{"one more", frame(FrameMax+1, nil), 0, true},
		{"all ones", frame(1<<32-1, nil), 0, true},
		{"none", frame(0, nil), 0, true},
		{"less than a header", frame(FrameHeader-1, nil), 0, true},
		{"names just fit", frame(FrameHeader+510, names(255, 255, 0)), FrameHeader + 510, false},
		{"names do not fit", frame(FrameHeader+509, names(255, 255, 0)), 0, true},
		{"the extension counts", frame(FrameHeader+2, names(1, 1, 1)), 0, true},
		{"the largest of all lengths", frame(FrameHeader, names(255, 255, 65535)), 0, true},
		{"four descriptors", frame(FrameHeader, func(b []byte) { b[OffsetFDs] = 4 }), FrameHeader, false},
		{"five", frame(FrameHeader, func(b []byte) { b[OffsetFDs] = 5 }), 0, true},
	} {
		got, err := FrameSize(c.b)
		if got != c.want || (err != nil) != c.bad || err != nil && !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %d, %v; want %d", c.purpose, got, err, c.want)
		}
	}
	b := append(frame(FrameHeader+6, names(1, 1, 3)), "tfextB"...)
	if f, err := ParseFrame(b); err != nil || f.To != "t" || f.From != "f" || string(f.Body) != "B" {
		t.Errorf("a later version's extension is passed over: %+v, %v", f, err)
	}
	for _, cut := range [][]byte{b[:len(b)-1], append(b[:len(b):len(b)], 0), b[:10]} {
		if _, err := ParseFrame(cut); !errors.Is(err, ErrFrame) {
			t.Errorf("%d bytes of %d: %v", len(cut), len(b), err)
		}
	}
}

func TestTopics(t *testing.T) {
	long := strings.Repeat("a", TopicMax)
	for _, c := range []struct {
		s              string
		topic, pattern bool
	}{
		{"a", true, true}, {"A-z_0.9", true, true}, {long, true, true}, {long + "a", false, false},
		{"", false, false}, {".", false, false}, {"a.", false, false}, {".a", false, false}, {"a..b", false, false},
		{"a b", false, false}, {"ä", false, false}, {"a\x00", false, false},
		{"*", false, true}, {"a.*.b", false, true}, {">", false, true}, {"a.>", false, true}, {"*.>", false, true},
		{">.a", false, false}, {"a.>.b", false, false}, {"a*", false, false}, {"a>", false, false}, {"**", false, false},
	} {
		if ValidTopic(c.s) != c.topic || ValidPattern(c.s) != c.pattern {
			t.Errorf("%q: a topic %v, a pattern %v; want %v, %v", c.s, ValidTopic(c.s), ValidPattern(c.s), c.topic, c.pattern)
		}
	}
	for _, c := range []struct {
		pattern, topic string
		want           bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a.b", false}, {"a.b", "a", false}, {"a.b", "a.b", true}, {"ab", "a", false}, {"a", "ab", false},
		{"*", "a", true}, {"*", "a.b", false}, {"*.b", "a.b", true}, {"a.*", "a", false}, {"a.*.c", "a.b.c", true}, {"a.*.c", "a.c", false},
		{">", "a", true}, {">", "a.b.c", true}, {"a.>", "a", false}, {"a.>", "a.b", true}, {"a.>", "a.b.c", true}, {"a.>", "b.c", false},
		{"*.>", "a", false}, {"*.>", "a.b", true}, {"a.*.>", "a.b", false}, {"a.*.>", "a.b.c.d", true},
	} {
		if got := MatchTopic(c.pattern, c.topic); got != c.want {
			t.Errorf("%q means %q: %v, want %v", c.pattern, c.topic, got, c.want)
		}
	}
}

// FuzzFrame: what ParseFrame takes, AppendFrame makes again but for an extension; FrameSize judges a header as ParseFrame
// does the whole, wherever it is cut; and a pattern without wildcards means exactly itself.
func FuzzFrame(f *testing.F) {
	f.Add(AppendFrame(nil, &Frame{Type: TypeHello, Flags: TakesFDs, Session: 1}))
	f.Add(AppendFrame(nil, &Frame{Type: TypeMessage, Code: 3, FDs: 4, Session: 1 << 63, ID: 1, Time: 1, To: "to", From: "from", Body: []byte("body")}))
	f.Add(AppendFrame(nil, &Frame{Type: TypePublish, Flags: Retain, To: "a.b.c"}))
	f.Add(AppendFrame(nil, &Frame{Type: TypeSubscribe, To: "a.*.>", Code: Disconnect}))
	f.Add([]byte(Preamble + "\xff\xff\xff\xff and so on, which is no frame at all"))
	f.Add(append(binary.LittleEndian.AppendUint32(nil, FrameHeader+3), "----------------------------\x00\x00\x03\x00ext"...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		size, err := FrameSize(b)
		if size < 0 || size > FrameMax || size > 0 && size < FrameHeader || err != nil && (size != 0 || !errors.Is(err, ErrFrame)) {
			t.Fatalf("size %d, %v", size, err)
		}
		if len(b) > FrameHeader {
			if s, e := FrameSize(b[:FrameHeader]); s != size || (e == nil) != (err == nil) {
				t.Fatalf("the header alone: %d, %v; with more %d, %v", s, e, size, err)
			}
		}
		fr, perr := ParseFrame(b)
		if (perr == nil) != (err == nil && size == len(b) && size > 0) {
			t.Fatalf("size %d, %v, but parsed: %v", size, err, perr)
		}
		if perr != nil {
			return
		}
		again := AppendFrame(nil, &fr)
		if n := int(ext(b)); n == 0 && !bytes.Equal(again, b) || len(again) != len(b)-n {
			t.Fatalf("%q was made %q", b, again)
		}
		if twice, err := ParseFrame(again); err != nil || !bytes.Equal(AppendFrame(nil, &twice), again) {
			t.Fatalf("again: %v", err)
		}
		if ValidTopic(fr.To) && (!ValidPattern(fr.To) || !MatchTopic(fr.To, fr.To) || !MatchTopic(">", fr.To)) {
			t.Fatalf("topic %q does not mean itself", fr.To)
		}
		if ValidPattern(fr.To) && ValidTopic(fr.From) && MatchTopic(fr.To, fr.From) && fr.To != fr.From && ValidTopic(fr.To) {
			t.Fatalf("topic %q means %q", fr.To, fr.From)
		}
	})
}
