// Was a run starved of the processor, is it traced: what excuses a silence.

package proc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// What the kernel's account of a running thread may be behind: it is brought up to date by a tick, which is 10 ms at most, and
// so is the resolution of the elder account.
const schedSlack = 20 * time.Millisecond

// Sched is a reading of how long each thread of a run has run, and waited for a processor. The zero value is of no thread.
type Sched struct {
	threads map[ID]reading // the ID is the thread's
}

// reading is what one thread was doing.
type reading struct {
	Stat             // the thread's: PID is its number
	at     time.Time // before it was read
	cpu    time.Duration
	exact  bool          // these are known, too:
	delay  time.Duration // spent in a processor's queue, but for the present stay
	slices int64         // how often it was given a processor
}

// Sched reads the accounts of up to 64 threads, the leader's first. Any goroutine may call it; it takes some milliseconds, and
// begins no new file after 20 ms. Unlike those of Evidence, what it reads of a process does not wait for it.
func (t *Tree) Sched() Sched {
	s, late := Sched{threads: map[ID]reading{}}, time.Now().Add(lookLimit)
	for p := range t.around(late) {
		tids, _ := numbers(p.PID, "task", schedThreads)
		for _, tid := range tids {
			if len(s.threads) == schedThreads || !time.Now().Before(late) {
				return s
			}
			if r, err := readThread(p.PID, tid); err == nil {
				b, _ := readProc(p.PID, fmt.Sprintf("task/%d/schedstat", tid), 256)
				r.schedule(string(b))
				s.threads[r.ID] = r
			}
		}
	}
	return s
}

// Starved says how long, since the reading s, the thread that was worst off wanted a processor and got none. A time between
// these that it slept is not counted, but for one doubt: who waits in the queue now, and was given no processor in between,
// counts as waiting all the time. Without CONFIG_SCHED_INFO only a thread that wants to run in both readings counts.
func (s Sched) Starved(now Sched) (worst time.Duration) {
	for id, b := range now.threads {
		if a, ok := s.threads[id]; ok {
			worst = max(worst, a.starved(b))
		}
	}
	return worst
}

func (r reading) starved(now reading) (d time.Duration) {
	elapsed, exact := now.at.Sub(r.at), r.exact && now.exact
	if exact {
		d = now.delay - r.delay
	}
	// A stay in the queue is put to account when it ends: one that does not end shows in nothing else.
	if now.State == 'R' && (exact && now.slices == r.slices || !exact && r.State == 'R') {
		if w := elapsed - (now.cpu - r.cpu); w > schedSlack {
			d = max(d, w)
		}
	}
	return max(0, min(d, elapsed))
}

// readThread reads a thread's stat, with its processor time in ticks.
func readThread(pid, tid int) (r reading, err error) {
	r.at = time.Now()
	b, err := readProc(pid, fmt.Sprintf("task/%d/stat", tid), 1024)
	if err != nil {
		return r, err
	}
	var ok bool
	if r.Stat, ok = parseStat(b); !ok {
		return r, fmt.Errorf("thread %d: unreadable stat %q", tid, b)
	}
	r.cpu = r.Stat.cpu
	return r, nil
}

// schedule takes the exact account, /proc/PID/task/TID/schedstat. It is missing without CONFIG_SCHED_INFO, and all zeros where the
// kernel does not keep it.
func (r *reading) schedule(schedstat string) {
	var cpu, delay, slices int64
	if n, _ := fmt.Sscan(schedstat, &cpu, &delay, &slices); n == 3 && slices > 0 {
		r.cpu, r.delay, r.slices, r.exact = time.Duration(cpu), time.Duration(delay), slices, true
	}
}

// CPUPressure is the share of the last 10 s, in percent, in which some process of the system waited for a processor. It is not
// known before Linux 4.20, or without CONFIG_PSI.
func CPUPressure() (avg10 float64, ok bool) {
	b, _ := os.ReadFile("/proc/pressure/cpu")
	_, rest, _ := strings.Cut(string(b), "some avg10=")
	word, _, _ := strings.Cut(rest, " ")
	avg10, err := strconv.ParseFloat(word, 64)
	return avg10, err == nil
}

// Tracer says which thread (a debugger's, strace's) traces the leader, or else another process of the run; 0 for none. It is
// bounded as Sched is. The error says what could not be read where no tracer was found.
func (t *Tree) Tracer() (tracer int, err error) {
	for s := range t.around(time.Now().Add(lookLimit)) {
		tracer, e := Tracer(s.PID)
		if tracer != 0 {
			return tracer, nil
		}
		if e != nil && !errors.Is(e, ErrGone) {
			err = fmt.Errorf("look for a tracer of %q: %w", t.Name, e)
		}
	}
	return 0, err
}
