package logs

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBudgetFair: whatever is printed by whom, the sum stays within the budget, each ring has its newest lines without a
// gap, and loses one only while it has more than an equal share.
func TestBudgetFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := NewBudget(rapid.IntRange(1000, 40000).Draw(t, "budget"))
		var rings []*Ring
		costs := map[*Ring][]int{} // of each line ever
		had := map[*Ring]int64{}   // evicted before
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch act := rapid.IntRange(0, 30).Draw(t, "act"); {
			case act == 0 || len(rings) == 0:
				rings = append(rings, b.Ring())
			case act == 1 && len(rings) > 1:
				rings[0].Close()
				rings = rings[1:]
			default:
				r := rings[rapid.IntRange(0, len(rings)-1).Draw(t, "ring")]
				var lines []piece
				for range rapid.IntRange(1, 5).Draw(t, "lines") {
					size := rapid.IntRange(0, 900).Draw(t, "size")
					lines = append(lines, piece{text: make([]byte, size)})
					costs[r] = append(costs[r], size+lineCost)
				}
				r.add(lines, time.Now())
			}
			sum, share := int64(0), b.limit/int64(len(rings))
			for i, r := range rings {
				kept, used := r.Tail(-1), 0
				first := len(costs[r]) - len(kept)
				for j, l := range kept {
					used += len(l.Text) + lineCost
					if l.Seq != int64(first+j+1) {
						t.Fatalf("ring %d: line %d where %d belongs", i, l.Seq, first+j+1)
					}
				}
				sum += int64(used)
				if n := r.Counters().Evicted; n != had[r] {
					if had[r] = n; int64(used+costs[r][first-1]) <= share {
						t.Fatalf("ring %d has %d bytes and lost a line of %d; its share is %d", i, used, costs[r][first-1], share)
					}
				}
			}
			if sum > b.limit || sum != b.used.Load() {
				t.Fatalf("%d bytes in the rings, %d counted, the budget is %d", sum, b.used.Load(), b.limit)
			}
		}
	})
}

// TestQuietKeepsItsWords: the last lines of a quiet client outlive all that 60 chatty ones print at once.
func TestQuietKeepsItsWords(t *testing.T) {
	b := NewBudget(BudgetSize)
	quiet := b.Ring()
	for i := range 200 {
		add(quiet, fmt.Sprint("word ", i))
	}
	var all sync.WaitGroup
	for range 60 {
		r := b.Ring()
		all.Go(func() {
			line := strings.Repeat("x", 100)
			for range 2000 {
				add(r, line)
			}
		})
	}
	all.Wait()
	if n := len(quiet.Tail(-1)); n != 200 || b.used.Load() > BudgetSize {
		t.Errorf("%d of 200 lines are left, %d bytes used", n, b.used.Load())
	}
	if free := BudgetSize - b.used.Load(); free > BudgetSize/8 {
		t.Errorf("%d bytes of the budget are not used", free)
	}
}

// BenchmarkAdd: what a line costs, by how many clients print at once and how many lines a read gives. Up to 32 rings fit
// into the budget whole, 100 do not.
func BenchmarkAdd(b *testing.B) {
	text := []byte(strings.Repeat("x", 80))
	for _, rings := range []int{1, 20, 100} {
		for _, lines := range []int{1, 50} {
			b.Run(fmt.Sprintf("rings=%d/lines=%d", rings, lines), func(b *testing.B) {
				budget, at := NewBudget(BudgetSize), time.Now()
				batch := make([]piece, lines)
				for i := range batch {
					batch[i].text = text
				}
				var all sync.WaitGroup
				b.ReportAllocs()
				for range rings {
					r := budget.Ring()
					for range 1000 { // full before it counts
						add(r, string(text))
					}
					all.Go(func() {
						order := rand.IntN(lines + 1) // not all at the same line
						for n := order; n < b.N/rings; n += lines {
							r.add(batch, at)
						}
					})
				}
				all.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
			})
		}
	}
}
