package proc

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Two that spin on one processor each lack about half of it; one that sleeps lacks nothing.
func TestStarved(t *testing.T) {
	k := open(t, Options{})
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	spin := []string{"sh", "echo $$; while :; do :; done"}
	var pair [2]*run
	for i := range pair {
		pair[i] = start(t, k, spin...)
		pair[i].said(t, 1)
		if err := unix.SchedSetaffinity(pair[i].PID, &one); err != nil {
			t.Fatal(err)
		}
	}
	asleep := start(t, k, "sh", "echo $$; exec sleep 1000")
	asleep.said(t, 1)
	settle(t, asleep.tree, func(e Evidence) bool { return e.Processes[0].Threads[0].State == 'S' })

	for _, test := range []struct {
		name string
		look func(*Tree) Sched
	}{
		{"schedstat", (*Tree).Sched},
		{"ticks", func(tree *Tree) Sched { // as without CONFIG_SCHED_INFO
			s := tree.Sched()
			for id, r := range s.threads {
				r, _ = readThread(id.PID, id.PID)
				s.threads[id] = r
			}
			return s
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now()
			before := [3]Sched{test.look(pair[0].tree), test.look(pair[1].tree), test.look(asleep.tree)}
			time.Sleep(time.Second) // what is measured is time
			least := time.Since(began)
			for i, p := range []*run{pair[0], pair[1], asleep} {
				starved := before[i].Starved(test.look(p.tree))
				t.Logf("of %v: %v", time.Since(began), starved)
				switch {
				case p == asleep && starved > least/20:
					t.Errorf("one that slept lacked %v of %v", starved, least)
				case p != asleep && starved < least/5:
					t.Errorf("one of two on a processor lacked only %v of %v", starved, least)
				case starved > time.Since(began):
					t.Errorf("lacked %v in %v", starved, time.Since(began))
				}
			}
		})
	}
}

func TestStarvedReading(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	began := time.Now()
	at := func(after time.Duration, state byte, cpu, delay time.Duration, slices int64) reading {
		r := reading{Stat: Stat{State: state}, at: began.Add(after), cpu: cpu, delay: delay, slices: slices}
		r.exact = slices > 0
		return r
	}
	tests := []struct {
		name     string
		from, to reading
		want     time.Duration
	}{
		{"slept", at(0, 'S', s, s, 9), at(4*s, 'S', s, s, 9), 0},
		{"ran alone", at(0, 'R', s, s, 9), at(4*s, 'R', 5*s-9*ms, s, 9), 0},
		{"shared a processor", at(0, 'R', s, s, 9), at(4*s, 'R', 3*s, 3*s, 99), 2 * s},
		{"woke, worked and slept on a busy machine", at(0, 'S', s, s, 9), at(4*s, 'S', 2*s, 2*s, 19), s},
		{"in the queue all the time", at(0, 'R', s, s, 9), at(4*s, 'R', s, s, 9), 4 * s},
		{"woke, and is in the queue since", at(0, 'S', s, s, 9), at(4*s, 'R', s, s, 9), 4 * s},
		{"was in the queue since before the first reading", at(0, 'R', s, s, 9), at(4*s, 'S', s+ms, 9*s, 10), 4 * s},
		{"account set back", at(0, 'R', s, 3*s, 9), at(4*s, 'S', s, s, 10), 0},
		{"ticks: ran alone", at(0, 'R', s, 0, 0), at(4*s, 'R', 5*s-10*ms, 0, 0), 0},
		{"ticks: wanted it in both", at(0, 'R', s, 0, 0), at(4*s, 'R', 2*s, 0, 0), 3 * s},
		{"ticks: slept at first", at(0, 'S', s, 0, 0), at(4*s, 'R', s, 0, 0), 0},
		{"ticks first: it had never run", at(0, 'R', 0, 0, 0), at(4*s, 'R', s, 3*s, 7), 3 * s},
	}
	for _, test := range tests {
		if got := test.from.starved(test.to); got != test.want {
			t.Errorf("%s: %v, not %v", test.name, got, test.want)
		}
	}
}

func TestSchedLimit(t *testing.T) {
	p := start(t, open(t, Options{}), "sh", "i=0; while [ $i -lt 100 ]; do sleep 1000 & echo $!; i=$((i+1)); done; wait")
	p.said(t, 100)
	if s := p.tree.Sched(); len(s.threads) > schedThreads {
		t.Errorf("%d threads", len(s.threads))
	}
}

func TestCPUPressure(t *testing.T) {
	avg10, ok := CPUPressure()
	if _, err := os.Stat("/proc/pressure/cpu"); err == nil != ok || avg10 < 0 || avg10 > 100 {
		t.Errorf("%v, %v", avg10, ok)
	}
}

// A tracer is found whichever process of the run it traces.
func TestTreeTracer(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		for i, name := range []string{"leader", "child"} {
			t.Run(name, func(t *testing.T) {
				runtime.LockOSThread() // a thread traces, not a process
				defer runtime.UnlockOSThread()
				p := start(t, k, "say", "fork", "say", "sleep")
				pids := p.said(t, 2)
				if tracer, err := p.tree.Tracer(); tracer != 0 || err != nil {
					t.Fatalf("untraced: %d, %v", tracer, err)
				}
				if err := unix.PtraceSeize(pids[i]); err != nil {
					t.Skipf("ptrace is not permitted here: %v", err)
				}
				if tracer, err := p.tree.Tracer(); tracer != unix.Gettid() || err != nil {
					t.Errorf("traced by thread %d: %d, %v", unix.Gettid(), tracer, err)
				}
				p.end(t)
			})
		}
	})
}
