package daemon

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"zhx/daemon/control"
)

// A seeded storm over everything at once: kills, stops and starts by hand, SIGSTOPs, edits of the file (some of them
// broken), and then a thousand kills in a row of one client. Each client takes an exclusive lock at its first instruction
// and reports when it is held: no client ever lives twice. Afterwards nothing is left: no process, no zombie, no
// goroutine, no descriptor.
//
// $ZHX_STORM is how long it blows (default 5s), $ZHX_STORM_SEED the seed to repeat a storm.
func TestStorm(t *testing.T) {
	length, kills := 5*time.Second, 100
	if v := os.Getenv("ZHX_STORM"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
		kills = 1000
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("ZHX_STORM_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	serve(t, "").stop() // what is opened once a process and kept (the poller, the signals) is not a leak
	leaked := goleak.IgnoreCurrent()
	before := descriptors(t)

	s := &storm{t: t, rand: rand.New(rand.NewPCG(seed, seed)), locks: t.TempDir()}
	s.running = serve(t, s.config())
	acts := 0
	for end := time.Now().Add(length); time.Now().Before(end); acts++ {
		s.act()
	}
	s.edit(s.config())
	if _, err := s.Reload(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	s.calm()
	s.row(kills)
	s.stop()
	t.Logf("%d acts in %v, %d of them signals that met a run, then %d kills in a row", acts, length, s.signals, kills)

	held, _ := filepath.Glob(filepath.Join(s.locks, "*.held"))
	for _, path := range held {
		b, _ := os.ReadFile(path)
		t.Errorf("%s: two runs lived at once: %s", filepath.Base(path), b)
	}
	if left := children(t); len(left) > 0 {
		for _, pid := range left {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			t.Errorf("process left: %q %q", cmdline, stat)
		}
	}
	goleak.VerifyNone(t, leaked)
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

const stormClients = 5

type storm struct {
	*running
	t       *testing.T
	rand    *rand.Rand
	locks   string
	signals int
	turn    int // makes each configuration differ
}

// config is a valid configuration of some of the clients: which ones, and with which settings, the dice say.
func (s *storm) config() string {
	var b strings.Builder
	b.WriteString("[defaults]\nstable_after = \"1ms\"\nrestart_delay = \"1ms\"\nrestart_delay_max = \"20ms\"\nstop_timeout = \"500ms\"\n")
	for i := range stormClients {
		if s.rand.IntN(8) == 0 && i > 0 && s.running != nil {
			continue
		}
		fmt.Fprintf(&b, "[client.c%d]\ncommand = [%q, \"role-alone\", %q]\n", i, exe(s.t), filepath.Join(s.locks, fmt.Sprint("c", i)))
		fmt.Fprintf(&b, "watchdog_timeout = \"%dms\"\n", 1000+s.rand.IntN(500))
		if s.rand.IntN(4) == 0 {
			s.turn++
			fmt.Fprintf(&b, "environment = { TURN = \"%d\" }\n", s.turn)
		}
	}
	return b.String()
}

// act does one thing to one client, or to the file.
func (s *storm) act() {
	name := fmt.Sprint("c", s.rand.IntN(stormClients))
	one := control.Which{Names: []string{name}}
	ctx := context.Background()
	switch dice := s.rand.IntN(20); {
	case dice < 9:
		s.signal(name, syscall.SIGKILL)
	case dice < 11:
		s.signal(name, syscall.SIGTERM)
	case dice < 12:
		s.signal(name, syscall.SIGSTOP)
	case dice < 14:
		s.Stop(ctx, one) // the client may be out of the configuration just now
	case dice < 17:
		s.Start(ctx, one)
	case dice < 18:
		s.Restart(ctx, one)
	case dice < 19:
		s.edit(s.config())
	default:
		s.edit("[client.c0]\ncommand = [\"/bin/true\"\n")
	}
}

// signal signals a client's leader. Only a pid that this zhxd has as its own child just now is signalled.
func (s *storm) signal(name string, sig syscall.Signal) {
	if pid := s.pid(name); pid > 0 && ownChild(s.t, pid) {
		syscall.Kill(pid, sig)
		s.signals++
	}
}

// calm starts whatever was stopped and waits until all clients run.
func (s *storm) calm() {
	if _, err := s.Start(context.Background(), control.Which{All: true}); err != nil {
		s.t.Fatal(err)
	}
	st, err := s.Status(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range st.Clients {
		s.until(c.Name+" runs, or was removed and has ended", func() bool { return s.pid(c.Name) > 0 || s.client(c.Name) == nil })
	}
}

// row kills one client over and over, each time as soon as its successor runs.
func (s *storm) row(kills int) {
	last := 0
	for range kills {
		s.until("c0 runs again", func() bool {
			pid := s.pid("c0")
			if pid == 0 || pid == last {
				return false
			}
			last = pid
			return true
		})
		syscall.Kill(last, syscall.SIGKILL)
	}
}

// children is every child of this process, zombies included.
func children(t *testing.T) (pids []string) {
	t.Helper()
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range lists {
		b, _ := os.ReadFile(path) // a thread may have ended
		pids = append(pids, strings.Fields(string(b))...)
	}
	return pids
}

func ownChild(t *testing.T, pid int) bool {
	for _, p := range children(t) {
		if p == strconv.Itoa(pid) {
			return true
		}
	}
	return false
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
