package cmd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

// What others of a broker's clients feel of many that do nothing, and of some that misbehave. The loads are testdata/load2.c, and
// need gcc.

const (
	idlePeers    = 500              // of an ordinary run
	idleEach     = 12               // KiB of zhxd for a connection that idles
	idleTrip     = 1.3              // of a round trip alone, with all that idle
	idleLeft     = 0.25             // of what they took, when they have left
	collected    = 5 * time.Minute  // until then: the runtime collects garbage each two minutes at least
	abuseMemory  = 64 << 10         // KiB of zhxd at the most
	abuseLeft    = 12 << 10         // KiB more than at the start, when it is over
	pairRate     = 500              // round trips a second
	abuseRuns    = 10               // of the benchmark
	feeders      = 10               // clients that feed
	fedAfter     = time.Second      // at a third of their timeout
	statusWithin = 10 * time.Second // the answer, on a machine that does all this
)

// Connections idle: they cost zhxd little memory. The claim is of ZHX_IDLE_PEERS=5000: then those that do not idle are no slower
// either, and the memory comes back when the others leave.
func TestIdleConnections(t *testing.T) {
	peers, full := idlePeers, os.Getenv("ZHX_IDLE_PEERS") != ""
	if full {
		var err error
		if peers, err = strconv.Atoi(os.Getenv("ZHX_IDLE_PEERS")); err != nil {
			t.Fatal(err)
		}
	}
	var files unix.Rlimit // zhxd raises its own to the hard one, and half of that is for connections
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Max < uint64(2*peers+64) {
		t.Skipf("needs a hard limit of %d open files (ulimit -Hn): %d %v", 2*peers+64, files.Max, err)
	}
	load2 := compile(t, t.TempDir(), "testdata/load2.c")
	var pin []string
	if full { // so that the scheduler's choice of a processor is no part of the figures
		pin = []string{"taskset", "-c", "0"}
	}
	trip := func(z broker) float64 {
		out, err := run(append(pin[:len(pin):len(pin)], load2, "2", z.sock, "rtt", "10000")...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return figure(t, out, `p50 ([0-9.]+)`)
	}
	z := startBroker(t, pin, t.TempDir(), policy)
	trip(z) // warms up
	if full {
		time.Sleep(quietTime)
	}
	before := memory(t, z.pid)
	leave := hold(t, load2, "2", z.sock, "idle", strconv.Itoa(peers))
	grown := memory(t, z.pid) - before
	each := float64(grown) / float64(peers)
	t.Logf("%d connections: %d KiB before, %d more, %.1f KiB each", peers, before, grown, each)
	limit := float64(idleEach)
	if !full {
		limit = 2 * idleEach // few of them share what the heap grows by at a time
	}
	if each > limit {
		t.Errorf("%.1f KiB of memory a connection, at most %.1f is right", each, limit)
	}
	if full {
		other := startBroker(t, pin, t.TempDir(), policy)
		var with, alone []float64
		for range turns {
			with, alone = append(with, trip(z)), append(alone, trip(other))
		}
		t.Logf("round trip %.1f us with them, %.1f alone: %.2f", median(with), median(alone), median(with)/median(alone))
		if median(with) > idleTrip*median(alone) {
			t.Errorf("a round trip takes %.2f of one alone, at most %.1f is right", median(with)/median(alone), idleTrip)
		}
	}
	leave()
	if !full {
		return
	}
	began := time.Now()
	back := comesTrue(collected, func() bool { return float64(memory(t, z.pid)-before) < idleLeft*float64(grown) })
	t.Logf("%v after they left: %d KiB more than before", time.Since(began).Round(time.Second), memory(t, z.pid)-before)
	if !back {
		t.Errorf("within %v the memory has not come back to %.0f %% of what they took", collected, 100*idleLeft)
	}
}

// hold starts a load that says when it has begun, and returns what ends its standard input and waits for its end. That gives the
// rest that it printed.
func hold(tb testing.TB, argv ...string) (end func() string) {
	tb.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { cmd.Process.Kill() }) // of a test that failed
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); line != "begun\n" {
		tb.Fatalf("%v: %q %v", argv, line, err)
	}
	return func() string {
		in.Close()
		rest, _ := io.ReadAll(out)
		if err := cmd.Wait(); err != nil {
			tb.Errorf("%v: %v", argv, err)
		}
		return strings.TrimSpace(string(rest))
	}
}

// abuses are what some clients do all at once, RATE times a second.
var abuses = []struct{ kind, proto, rate string }{
	{"stuck", "1", "1000"},
	{"slow", "2", "1000"},
	{"flood", "2", "10000"},
	{"vanish", "1", "500"},
	{"vanish", "2", "500"},
}

// abuse has them all at work while a pair does round trips for d, and returns the pair's p99 in us and what the abusers have done.
// at says where: abuse i goes to at(i), the pair to at(-1).
func abuse(tb testing.TB, load2 string, d time.Duration, at func(i int) (proto, sock string)) (p99 float64, done string) {
	tb.Helper()
	seconds := strconv.Itoa(max(1, int(d.Seconds())))
	longer := strconv.Itoa(max(1, int(d.Seconds())) + 1)
	var ends []func() string
	for i, a := range abuses {
		proto, sock := at(i)
		ends = append(ends, hold(tb, load2, proto, sock, a.kind, longer, a.rate))
	}
	proto, sock := at(-1)
	out, err := run(load2, proto, sock, "pair", seconds, strconv.Itoa(pairRate))
	if err != nil {
		tb.Fatalf("the pair: %v\n%s", err, out) // it has lost a message
	}
	for i, end := range ends {
		done += fmt.Sprintf("%s %s  ", abuses[i].kind, end())
	}
	return figure(tb, out, `p99 ([0-9.]+)`), done
}

// startAbused starts zhxd with clients that feed, and returns when all are armed.
func startAbused(tb testing.TB) broker {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	z := startBroker(tb, nil, tb.TempDir(), policy+fmt.Sprintf(
		"[client.fed]\ncommand = [%q, %q, %q]\ninstances = %d\nwatchdog_timeout = %q\n", exe, feederArg, fedAfter, feeders, 3*fedAfter))
	if !comesTrue(30*time.Second, func() bool { armed, _, _ := fed(tb, z); return armed == feeders }) {
		tb.Fatal("not all are armed within 30 s")
	}
	return z
}

// fed sums up how the clients that feed do.
func fed(tb testing.TB, z broker) (armed int, misses, lapses int64) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), statusWithin)
	defer cancel()
	st, err := control.Dial(z.control).Status(ctx)
	if err != nil {
		tb.Fatalf("zhxd does not answer: %v", err)
	}
	for _, c := range st.Clients {
		if w := c.Watchdog; w != nil && strings.HasPrefix(c.Name, "fed-") {
			misses, lapses = misses+w.Misses, lapses+w.Lapses
			if w.Armed {
				armed++
			}
		}
	}
	return armed, misses, lapses
}

// Some clients misbehave: another pair loses nothing, no feed is late, zhxd answers and stays small. The claim is of
// ZHX_ABUSE=60s, where the memory has to come back, too; what the pair feels is BenchmarkAbuse's.
func TestAbuse(t *testing.T) {
	d := span(t, "ZHX_ABUSE", 5*time.Second)
	load2 := compile(t, t.TempDir(), "testdata/load2.c")
	z := startAbused(t)
	before := memory(t, z.pid)
	machine := worstTimer(t)
	asked, stop := make(chan time.Duration), make(chan struct{})
	go func() { // somebody looks at the status meanwhile
		var worst time.Duration
		defer func() { asked <- worst }()
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			began := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), statusWithin)
			_, err := control.Dial(z.control).Status(ctx)
			cancel()
			if worst = max(worst, time.Since(began)); err != nil {
				t.Errorf("zhxd does not answer: %v", err)
				return
			}
		}
	}()
	p99, done := abuse(t, load2, d, func(i int) (string, string) {
		if i < 0 {
			return "2", z.sock
		}
		return abuses[i].proto, z.sock
	})
	close(stop)
	worst, late := <-asked, machine()
	armed, misses, lapses := fed(t, z)
	most := memoryField(t, z.pid, "VmHWM")
	t.Logf("%v: %s; the pair's p99 %.0f us, status within %v, %d feeds late, memory %d KiB, at most %d, %d now",
		d, done, p99, worst.Round(time.Millisecond), misses, before, most, memory(t, z.pid))
	if armed != feeders || lapses != 0 {
		t.Errorf("%d of %d are still armed, %d lapses", armed, feeders, lapses)
	}
	if misses > 0 && late < fedAfter/10 { // where a bare timer is late the machine is, not zhxd
		t.Errorf("%d feeds were late, while the machine was late by %v", misses, late)
	}
	if most > abuseMemory {
		t.Errorf("zhxd had %d KiB of memory, at most %d is right", most, abuseMemory)
	}
	if os.Getenv("ZHX_ABUSE") != "" && !comesTrue(collected, func() bool { return memory(t, z.pid) < before+abuseLeft }) {
		t.Errorf("%v later zhxd has %d KiB, %d before", collected, memory(t, z.pid), before)
	}
}

// BenchmarkAbuse: a pair's p99 through the zhxd that others abuse, against the same pair's on a relay while the same abuse goes
// to relays of its own: one each, since a relay ends with who does not read. ZHX_ABUSE=60s is the claim, and needs -timeout 1h.
func BenchmarkAbuse(b *testing.B) {
	d := 5 * time.Second
	if s := os.Getenv("ZHX_ABUSE"); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			b.Fatal(err)
		}
	}
	y := yardsticks(b)
	z := startAbused(b)
	var ours, bare, ratios []float64
	fmt.Println()
	for i := range abuseRuns {
		p99, done := abuse(b, y+"/load2", d, func(i int) (string, string) {
			if i < 0 {
				return "2", z.sock
			}
			return abuses[i].proto, z.sock
		})
		dir := b.TempDir()
		relay := func(i int) string { return fmt.Sprintf("%s/relay%d", dir, i+1) }
		var ends []func()
		for i := range len(abuses) + 1 {
			ends = append(ends, start(b, nil, y+"/relay", "unix:"+relay(i-1)))
			await(b, "unix", relay(i-1))
		}
		alone, doneAlone := abuse(b, y+"/load2", d, func(i int) (string, string) { return "raw", relay(i) })
		for _, end := range ends {
			end()
		}
		ours, bare, ratios = append(ours, p99), append(bare, alone), append(ratios, p99/alone)
		fmt.Printf("run %2d: p99 %6.0f us  %s\n      relay %6.0f us  %s\n", i+1, p99, done, alone, doneAlone)
	}
	_, misses, lapses := fed(b, z)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours), "p99_us")
	b.ReportMetric(median(bare), "relay_p99_us")
	b.ReportMetric(median(ratios), "p99/relay")
	b.ReportMetric(float64(misses+lapses), "late")
	b.ReportMetric(float64(memoryField(b, z.pid, "VmHWM")), "most_KiB")
}
