package cmd

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"zhx/daemon/control"
)

// What zhxd costs a board on which nothing happens, and what a board on which all falls at once costs zhxd.

const (
	idleClients  = 100
	crashClients = 200
	storms       = 3
	crashSpread  = 10 * time.Millisecond // between two restarts
	crashBurst   = 10                    // restarts that need not wait for that
	stampGrain   = 5 * time.Millisecond  // by which stamps of zhxd's log may be off
	wakesMax     = 5                     // of zhxd in a minute in which nothing happens: the runtime's own
	crowdMax     = 30                    // restarts within 100 ms, on a machine that is in time: 10 at once and 10 that follow, and what the scheduler adds
	// quietTime lets the runtime of a zhxd that has just started 100 clients give back what that took.
	quietTime = 3 * time.Second
)

// A hundred clients sleep: zhxd sleeps too. The claim is of a minute, ZHX_IDLE=60s; an ordinary run looks for less.
func TestIdle(t *testing.T) {
	window := span(t, "ZHX_IDLE", 10*time.Second)
	p, _ := startBoard(t, idleClients)
	from := 0
	for range idleClients { // zhxd is not asked: what an answer takes stays for as long as nothing happens
		from = p.await(from, 30*time.Second, `\[c\d+\] started `)
	}
	pid := p.pid(0)
	time.Sleep(quietTime)
	before, switchesBefore := processorTime(t, pid), threadsField(t, pid, "voluntary_ctxt_switches")
	time.Sleep(window)
	used, switches := processorTime(t, pid)-before, threadsField(t, pid, "voluntary_ctxt_switches")-switchesBefore
	rss, anon := statusField(t, fmt.Sprintf("/proc/%d/status", pid), "VmRSS"), statusField(t, fmt.Sprintf("/proc/%d/status", pid), "RssAnon")
	t.Logf("in %v zhxd used %v of processor time, woke %d times, and has %d KiB, %d of it its own", window, used, switches, rss, anon)
	allowed := time.Duration(20 * float64(time.Millisecond) * window.Minutes())
	if window < 30*time.Second { // one collection of garbage, on a machine that does more, is no polling
		allowed = max(allowed, 10*time.Millisecond)
	}
	if used > allowed {
		t.Errorf("zhxd used %v of processor time in %v, at most %v is right", used, window, allowed)
	}
	if window >= time.Minute && switches > wakesMax {
		t.Errorf("it woke %d times, at most %d is right: nobody's watchdog is armed", switches, wakesMax)
	}
	if rss > 20<<10 {
		t.Errorf("zhxd has %d KiB of memory, at most 20 MiB is right", rss)
	}
}

// Two hundred clients fall at once, a few times: status answers as ever while they come back, and they come back one after
// the other.
func TestCrashAtOnce(t *testing.T) {
	p, sock := startBoard(t, crashClients)
	zhxd := control.Dial(sock)
	var idle, storm []time.Duration
	var late time.Duration
	for range storms {
		idle = append(idle, ask(t, zhxd, func(n int, _ control.Status) bool { return n == 200 })...)
		took, machine := crashAll(t, p, sock, zhxd)
		storm, late = append(storm, took...), max(late, machine)
	}
	t.Logf("status of %d: idle p50 %v p99 %v of %d, in the storm p50 %v p99 %v of %d", crashClients,
		quantile(idle, 0.5), quantile(idle, 0.99), len(idle), quantile(storm, 0.5), quantile(storm, 0.99), len(storm))
	// Others on the same processors are not zhxd's fault: below the floor the figure is only told, and on a machine that is late so is
	// the slowest of the few that it has time for. If a status waited for clients, most would be far above it.
	which := 0.99
	if late >= crashSpread {
		which = 0.5
	}
	if took, allowed := quantile(storm, which), max(5*quantile(idle, 0.99), 150*time.Millisecond)+late; took > allowed {
		t.Errorf("status took %v in the storm, at most %v is right", took, allowed)
	}
}

// crashAll kills all clients, and asks for the status until all are back. It returns how long the answers took,
// and how late a bare timer was meanwhile.
func crashAll(t *testing.T, p *program, sock string, zhxd *control.Client) (took []time.Duration, late time.Duration) {
	t.Helper()
	old := pids(t, sock)
	if len(old) != crashClients {
		t.Fatalf("%d clients run", len(old))
	}
	from, began, machine := len(p.log()), time.Now(), worstTimer(t)
	for _, pid := range old {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	took = ask(t, zhxd, func(_ int, st control.Status) bool {
		if time.Since(began) > time.Minute {
			t.Fatal("they are not all back within a minute")
		}
		back := 0
		for _, c := range st.Clients {
			if c.PID != nil && *c.PID != old[c.Name] && c.Ready {
				back++
			}
		}
		return back == crashClients
	})
	all := time.Since(began)
	var starts []time.Time
	for len(starts) < crashClients {
		from = p.await(from, 10*time.Second, `\[c\d+\] started `)
		stamp, _, _ := strings.Cut(p.log()[from-1], " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, at)
	}
	late = machine()
	most := crowd(starts, 100*time.Millisecond)
	t.Logf("all back after %v, at most %d restarts within 100 ms, %d within 1 s; a bare timer was late by %v", all.Round(time.Millisecond), most,
		crowd(starts, time.Second), late)
	if most > crowdMax && late < crashSpread { // else what was kept back comes at once
		t.Errorf("%d restarts within 100 ms, at most %d is spread", most, crowdMax)
	}
	for i, at := range starts { // crowd has put them in order; a late machine makes none early
		if early := began.Add(time.Duration(i+1-crashBurst) * crashSpread).Sub(at); early > stampGrain {
			t.Errorf("restart %d of %d came %v before its turn", i+1, len(starts), early)
			break
		}
	}
	return took, late
}

// startBoard starts zhxd with n clients that sleep, c0 and so on, and waits until it has started them. Their program has a
// name of its own: zhxd looks at each process that could be a copy of a client, and asks the zhxd that it belongs to.
func startBoard(t *testing.T, n int) (p *program, sock string) {
	t.Helper()
	dir := t.TempDir()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("needs sleep")
	}
	code, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	nap := fmt.Sprintf("%s/nap%d", dir, os.Getpid())
	if err := os.WriteFile(nap, code, 0o755); err != nil {
		t.Fatal(err)
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n", dir+"/run")
	for i := range n {
		fmt.Fprintf(&conf, "[client.c%d]\ncommand = [%q, \"1000\"]\n", i, nap)
	}
	p = startZhxd(t, "--config", write(t, "clients.toml", conf.String()))
	p.await(0, 30*time.Second, `\[zhxd\] ready \(`)
	return p, dir + "/run/control.sock"
}

// ask asks for the status, over and over, until enough says so of the answer, and returns how long each took.
func ask(t *testing.T, zhxd *control.Client, enough func(n int, st control.Status) bool) (took []time.Duration) {
	t.Helper()
	for {
		began := time.Now()
		st, err := zhxd.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
		if enough(len(took), st) {
			return took
		}
		time.Sleep(time.Millisecond) // a person or a script, not a flood
	}
}

func quantile(all []time.Duration, q float64) time.Duration {
	all = slices.Sorted(slices.Values(all))
	return all[int(math.Ceil(q*float64(len(all))))-1].Round(10 * time.Microsecond)
}

// crowd is how many of at lie within one window, wherever that is.
func crowd(at []time.Time, window time.Duration) (most int) {
	slices.SortFunc(at, time.Time.Compare)
	first := 0
	for i := range at {
		for at[i].Sub(at[first]) >= window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// threadsField sums a field of the status of all threads.
func threadsField(t *testing.T, pid int, field string) (sum int) {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, path := range files {
		sum += statusField(t, path, field)
	}
	return sum
}

// statusField is a number in a file of /proc.
func statusField(t *testing.T, path, field string) (n int) {
	t.Helper()
	text, err := os.ReadFile(path)
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+)`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %s: %v", field, path, err)
	}
	fmt.Sscan(string(m[1]), &n)
	return n
}
