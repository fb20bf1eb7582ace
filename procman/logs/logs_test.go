package logs

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

func texts(lines []Line) (all []string) {
	for _, l := range lines {
		all = append(all, l.Text)
	}
	return all
}

// TestPump: every byte comes out in lines, however the reads cut it.
func TestPump(t *testing.T) {
	long := strings.Repeat("x", LineMax)
	for _, c := range []struct {
		purpose, in string
		want        []string
	}{
		{"lines", "a\nb\n", []string{"a", "b"}},
		{"a last line without a newline", "a\nb", []string{"a", "b"}},
		{"empty lines", "\n\n", []string{"", ""}},
		{"nothing", "", nil},
		{"any bytes", "\x00\xff\x1b[1m\n", []string{"\x00\xff\x1b[1m"}},
		{"the longest line", long + "\n", []string{long}},
		{"a longer one", long + "y\n", []string{long, "y"}},
		{"a much longer one, without end", long + long + long, []string{long, long, long}},
	} {
		for name, reader := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "with EOF": iotest.DataErrReader,
		} {
			ring := NewRing()
			var emitted []string
			Pump(reader(strings.NewReader(c.in)), ring, func(l []byte) { emitted = append(emitted, string(l)) })
			if !slices.Equal(emitted, c.want) || !slices.Equal(texts(ring.Tail(-1)), c.want) {
				t.Errorf("%s (%s): emitted %.40q, kept %.40q; want %.40q", c.purpose, name, emitted, texts(ring.Tail(-1)), c.want)
			}
		}
	}
}

// TestRingLimit: a ring keeps the newest lines within its size, empty ones too, and counts what left.
func TestRingLimit(t *testing.T) {
	for _, size := range []int{0, 1, 100, LineMax} {
		r := NewRing()
		const n = 10000
		for i := range n {
			r.Add(fmt.Sprintf("%0*d", size, i))
		}
		lines, sum := r.Tail(-1), 0
		for _, l := range lines {
			sum += len(l.Text) + lineCost
		}
		if sum > RingSize || sum < RingSize-LineMax-lineCost || lines[0].Seq != int64(n-len(lines)+1) {
			t.Errorf("lines of %d: %d bytes in %d lines from number %d", size, sum, len(lines), lines[0].Seq)
		}
		if last := r.Tail(1)[0]; last.Seq != n || r.Tail(2)[0].Seq != n-1 {
			t.Errorf("last line is number %d", last.Seq)
		}
	}
}

// TestFollow: a follower gets each line, one that sleeps loses some and is told; nobody waits for it.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing()
		r.Add("before")
		ctx, cancel := context.WithCancel(context.Background())
		lines := r.Follow(ctx)
		for i := range FollowQueue + 10 {
			r.Add(fmt.Sprint(i))
		}
		for i := range FollowQueue {
			if l := <-lines; l.Text != fmt.Sprint(i) || l.Lost != 0 {
				t.Fatalf("line %d: %+v", i, l)
			}
		}
		r.Add("after")
		if l := <-lines; l.Text != "after" || l.Lost != 10 {
			t.Errorf("after the gap: %+v", l)
		}
		cancel()
		for range lines { // ends, since it is closed
		}
		r.Add("nobody listens")
	})
}
