package logs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// TestMain: the test binary is also the pump that is killed, see crash_test.go.
func TestMain(m *testing.M) {
	if os.Getenv("ZHX_LOGS_PUMP") != "" {
		pumpMain()
	}
	goleak.VerifyTestMain(m)
}

func texts(lines []Line) (all []string) {
	for _, l := range lines {
		all = append(all, l.Text)
	}
	return all
}

func newRing(t testing.TB) *Ring {
	r := NewBudget(BudgetSize).Ring()
	t.Cleanup(r.Close)
	return r
}

func add(r *Ring, text string) { r.add([]piece{{text: []byte(text)}}, time.Now()) }

// TestRingLimit: a ring keeps the newest lines within its size, empty ones too, and counts what left.
func TestRingLimit(t *testing.T) {
	for _, size := range []int{0, 1, 100, LineMax} {
		r := newRing(t)
		const n = 10000
		for i := range n {
			add(r, fmt.Sprintf("%0*d", size, i))
		}
		lines, sum := r.Tail(-1), 0
		for _, l := range lines {
			sum += len(l.Text) + lineCost
		}
		if sum > 64<<10 || sum < 64<<10-LineMax-lineCost || lines[0].Seq != int64(n-len(lines)+1) {
			t.Errorf("lines of %d: %d bytes in %d lines from number %d", size, sum, len(lines), lines[0].Seq)
		}
		if last := r.Tail(1)[0]; last.Seq != n || r.Tail(2)[0].Seq != n-1 {
			t.Errorf("last line is number %d", last.Seq)
		}
		if c := r.Counters(); c.Lines != n || c.Evicted != n-int64(len(lines)) || size >= 4 && c.Bytes != int64(n*size) {
			t.Errorf("lines of %d: %+v, %d left", size, c, len(lines))
		}
	}
}

// TestFollow: a follower gets each line, one that sleeps loses some and is told; nobody waits for it.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t)
		add(r, "before")
		ctx, cancel := context.WithCancel(context.Background())
		lines := r.Follow(ctx)
		for i := range FollowQueue + 10 {
			add(r, fmt.Sprint(i))
		}
		for i := range FollowQueue {
			if l := <-lines; l.Text != fmt.Sprint(i) || l.Lost != 0 {
				t.Fatalf("line %d: %+v", i, l)
			}
		}
		add(r, "after")
		if l := <-lines; l.Text != "after" || l.Lost != 10 {
			t.Errorf("after the gap: %+v", l)
		}
		if n := r.Counters().FollowerLost; n != 10 {
			t.Errorf("counted %d lost by followers, want 10", n)
		}
		cancel()
		for range lines { // ends, since it is closed
		}
		add(r, "nobody listens")
	})
}

// TestCutCount: a line counts once as cut, however many pieces it has.
func TestCutCount(t *testing.T) {
	r := newRing(t)
	for _, cut := range []bool{true, true, false, false, true, false} {
		r.add([]piece{{text: []byte("x"), cut: cut}}, time.Now())
	}
	if n := r.Counters().Cut; n != 2 {
		t.Errorf("%d lines cut, want 2", n)
	}
}

// TestClose: a closed ring keeps nothing and owes nothing, its followers still hear.
func TestClose(t *testing.T) {
	b := NewBudget(BudgetSize)
	r := b.Ring()
	add(r, strings.Repeat("x", 100))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lines := r.Follow(ctx)
	r.Close()
	add(r, "late")
	r.SetFile(t.TempDir() + "/late")
	if l := <-lines; l.Text != "late" {
		t.Errorf("the follower got %+v", l)
	}
	if len(r.Tail(-1)) != 0 || b.used.Load() != 0 || r.file.Load() != nil || len(b.rings) != 0 {
		t.Errorf("kept %q, %d bytes, file %v, %d rings", texts(r.Tail(-1)), b.used.Load(), r.file.Load(), len(b.rings))
	}
	if c := r.Counters(); c.Lines != 2 || c.Evicted != 2 {
		t.Errorf("counted %+v", c)
	}
}
