package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"zhx/daemon/control"
	"zhx/procman/proc"
	"zhx/watchdog"
)

// A client that arms and never feeds, with a short timeout.
func lazy(t *testing.T, keys string) string {
	return fmt.Sprintf("[client.lazy]\ncommand = [%q, \"role-lazy\", \"\"]\nwatchdog_timeout = \"300ms\"\n%s", exe(t), keys)
}

func (r *running) armed(name string) func() bool {
	return func() bool { c := r.client(name); return c != nil && c.Watchdog != nil && c.Watchdog.Armed }
}

// A pause holds off the verdict, is shown with its reason, ends by itself, and holds for the next run, too.
func TestPause(t *testing.T) {
	z := serve(t, lazy(t, "autostart = false\n"))
	pause := control.PauseRequest{Names: []string{"lazy"}, Seconds: 3600, Reason: "gdb"}
	if _, err := z.Pause(context.Background(), pause); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Start(context.Background(), control.Which{Names: []string{"lazy"}}); err != nil {
		t.Fatal(err)
	}
	z.until("it is armed", z.armed("lazy"))
	w := z.client("lazy").Watchdog
	if !w.Paused || w.PausedFor == nil || *w.PausedFor > 3600 || w.Pause == nil || !strings.HasSuffix(*w.Pause, ": gdb") {
		t.Errorf("status shows %+v", w)
	}
	began := time.Now()
	pause.Seconds = 1 // instead
	out, err := z.Pause(context.Background(), pause)
	if err != nil || len(out.Clients) != 1 || out.Clients[0].Text != "watchdog paused for 1s" {
		t.Fatalf("%+v %v", out, err)
	}
	z.logged("[lazy] warn: killed by the watchdog (run=1")
	if d := time.Since(began); d < 1300*time.Millisecond {
		t.Errorf("killed %v after a pause of 1s began, its timeout being 300ms", d)
	}
	if w := z.client("lazy").Watchdog; w.Paused {
		t.Errorf("it does not end: %+v", w)
	}

	pause.Seconds = 3600
	if _, err := z.Pause(context.Background(), pause); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Resume(context.Background(), control.Which{Names: []string{"lazy"}}); err != nil {
		t.Fatal(err)
	}
	lapses := z.client("lazy").Watchdog.Lapses
	z.until("it is judged again after a resume", func() bool { return z.client("lazy").Watchdog.Lapses > lapses })

	for _, bad := range []control.PauseRequest{{Names: []string{"nobody"}, Seconds: 1}, {Seconds: 1}, {Names: []string{"lazy"}}, {Names: []string{"lazy"}, Seconds: 1e6}} {
		if _, err := z.Pause(context.Background(), bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// mode = "observe" tells what would be done, once for each silence, and does nothing; also to what is frozen.
func TestObserve(t *testing.T) {
	z := serve(t, "[watchdog]\nmode = \"observe\"\n"+lazy(t, ""))
	z.until("it has lapsed twice", func() bool { return z.client("lazy").Watchdog.Lapses >= 2 })
	pid := z.pid("lazy")
	unix.Kill(pid, unix.SIGSTOP)
	z.until("it has lapsed four times", func() bool { return z.client("lazy").Watchdog.Lapses >= 4 })
	if c := z.client("lazy"); *c.Run != 1 || c.LastExit != nil || z.pid("lazy") != pid {
		t.Errorf("%+v", c)
	}
	if n := strings.Count(z.log.String(), `next="nothing: mode`) + strings.Count(z.log.String(), `-> nothing: mode`); n != 1 {
		t.Errorf("told %d times", n)
	}
	z.edit("[watchdog]\nmode = \"enforce\"\n" + lazy(t, ""))
	z.logged("[lazy] warn: killed")
}

// mode = "observe" sends no warn_signal.
func TestObserveWarning(t *testing.T) {
	z := serve(t, fmt.Sprintf("[watchdog]\nmode = \"observe\"\n[client.warned]\ncommand = [%q, \"role-warned\"]\nwatchdog_timeout = \"400ms\"\nwarn_signal = \"SIGUSR1\"\n", exe(t)))
	z.until("it has lapsed", func() bool { return z.client("warned").Watchdog.Lapses > 0 })
	if strings.Contains(z.log.String(), "user defined signal 1") {
		t.Error("it was signalled")
	}
}

// What an edit means to a run that lives: who need not feed any more is let alone, who had armed or was paused is so again, and what
// a run has asked for stays.
func TestRulesOfARun(t *testing.T) {
	conf := func(role, keys string) string {
		return fmt.Sprintf("[client.c]\ncommand = [%q, %q, \"\"]\nautostart = false\nwatchdog_timeout = \"500ms\"\n%s", exe(t), role, keys)
	}
	for i, row := range []struct {
		role   string
		keys   []string
		pauses bool
		lapses bool
	}{
		{"role-sleeper", []string{"watchdog = \"required\"", "watchdog = \"auto\""}, true, false},
		{"role-patient", []string{"", "critical = true"}, false, false},
		{"role-lazy", []string{"", "watchdog = \"off\"", "watchdog = \"auto\""}, false, true},
		{"role-lazy", []string{"watchdog = \"off\"", "watchdog = \"auto\""}, false, true},
		{"role-sleeper", []string{"watchdog = \"off\"", "watchdog = \"required\""}, true, false},
	} {
		z := serve(t, conf(row.role, row.keys[0]))
		one := control.Which{Names: []string{"c"}}
		if row.pauses {
			if _, err := z.Pause(context.Background(), control.PauseRequest{Names: one.Names, Seconds: 60}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := z.Start(context.Background(), one); err != nil {
			t.Fatal(err)
		}
		if row.role == "role-patient" || row.role == "role-lazy" && row.keys[0] == "" {
			z.until("it is armed", z.armed("c"))
		} else if row.role == "role-lazy" {
			z.logged("armed: <nil>")
		}
		for n, keys := range row.keys[1:] {
			z.edit(conf(row.role, keys))
			z.until(keys, func() bool { return strings.Count(z.log.String(), "configuration applied") > n })
		}
		if i == 0 { // paused, so that the edit may take its time
			if _, err := z.Resume(context.Background(), one); err != nil {
				t.Fatal(err)
			}
		}
		if row.lapses {
			z.logged("[c] warn: killed by the watchdog")
		} else {
			<-time.After(800 * time.Millisecond) // what is tested is time
			if c := z.client("c"); c.Watchdog.Lapses > 0 || c.LastExit != nil {
				t.Errorf("%s, %q: %+v %+v", row.role, row.keys, c, c.Watchdog)
			}
		}
		z.stop()
	}
}

// roleLoop feeds from a thread of its own for ever, while its main loop goes round ten times and hangs then.
func roleLoop() {
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			sdaemon.SdNotify(false, "WATCHDOG=1")
		}
	}()
	for range 10 {
		sdaemon.SdNotify(false, "X_ZHX_CHECKPOINT=loop")
		time.Sleep(10 * time.Millisecond) // its work
	}
	select {}
}

// A feeder thread beside a dead main loop is caught by its checkpoints, and by nothing else.
func TestDeadline(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.loop]\ncommand = [%q, \"role-loop\"]\ndeadlines = [{ from = \"loop\", to = \"loop\", within = \"500ms\" }]\n", exe(t)))
	z.logged(`why="checkpoint loop to loop took longer than 500ms`) // and on a busy machine, how much it was given
	z.until("it runs again", func() bool { return *z.client("loop").Run >= 2 })
	if d := z.client("loop").LastExit.Detail; !strings.HasPrefix(*d, "checkpoint loop to loop took longer than 500ms") {
		t.Error(*d)
	}
}

// roleDoor listens at a path and by HTTP, and says where; at SIGUSR1 it answers nobody any more.
func roleDoor(path string) {
	ln, _ := net.Listen("unix", path)
	tcp, _ := net.Listen("tcp", "127.0.0.1:0")
	fmt.Println("at", tcp.Addr())
	onUSR1 := make(chan struct{})
	go http.Serve(tcp, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-onUSR1:
			<-r.Context().Done()
		default:
		}
	}))
	unix.Pause() // SIGUSR1 ends it, as nobody handles it: that is an end, too
	_ = ln
}

// A client that cannot feed is asked: each kind of probe arms and feeds, and one that fails is a lapse.
func TestProbe(t *testing.T) {
	dir := t.TempDir()
	door := filepath.Join(dir, "door")
	keys := func(probe string) string {
		return fmt.Sprintf("[client.door]\ncommand = [%q, \"role-door\", %q]\nwatchdog_timeout = \"600ms\"\nprobe = %s\n", exe(t), door, probe)
	}
	z := serve(t, keys("{}"))
	var address string
	z.until("it listens", func() bool {
		_, after, ok := strings.Cut(z.log.String(), "| at ")
		address, _, _ = strings.Cut(after, "\n")
		return ok
	})
	if z.client("door").Watchdog.Armed {
		t.Fatal("it is armed without a probe")
	}
	pid := z.pid("door")
	for _, probe := range []string{
		fmt.Sprintf("{ unix = %q, interval = \"50ms\" }", door),
		fmt.Sprintf("{ tcp = %q, interval = \"50ms\" }", address),
		fmt.Sprintf("{ http = \"http://%s/\", interval = \"50ms\" }", address),
		fmt.Sprintf("{ exec = [\"test\", \"-S\", %q], interval = \"50ms\" }", door),
	} {
		var before int64
		if i := z.client("door").Watchdog.Interval; i != nil {
			before = i.Count
		}
		z.edit(keys(probe))
		z.until("it is fed by "+probe, func() bool {
			i := z.client("door").Watchdog.Interval
			return i != nil && i.Count > before+5
		})
		if z.pid("door") != pid {
			t.Fatalf("it was restarted with %s", probe)
		}
	}
	z.edit(keys("{ exec = [\"false\"], interval = \"50ms\" }"))
	z.logged("probe failed")
	z.logged("[door] warn: killed by the watchdog")
}

// What a late client was doing is kept: a sleeping one's wait, a spinning one's state and processor time.
func TestEvidence(t *testing.T) {
	z := serve(t, lazy(t, "")+fmt.Sprintf("[client.spin]\ncommand = [%q, \"role-spin\"]\nwatchdog_timeout = \"600ms\"\n", exe(t)))
	for name, want := range map[string][]string{"lazy": {"S", "printed: armed: <nil>"}, "spin": {" R "}} {
		var y control.Why
		var text string
		z.until(name+" has a death with evidence", func() bool {
			var err error
			if y, err = z.Why(context.Background(), name); err != nil {
				t.Fatal(err)
			}
			if y.Evidence == nil || !slices.ContainsFunc(y.Deaths, func(d control.Death) bool { return d.Run == y.Evidence.Run }) {
				return false
			}
			// On a busy machine a run may not have got so far as to print, or zhxd as to look at all.
			text = strings.Join(y.Evidence.Lines, "\n")
			return !slices.ContainsFunc(want, func(part string) bool { return !strings.Contains(text, part) })
		})
		if y.Evidence.By != "alive" || y.Evidence.Silence <= 0 {
			t.Errorf("%s: %+v", name, y.Evidence)
		}
		t.Logf("%s:\n%s", name, text)
	}
	z.logged("[lazy] warn: late (")
}

// A debugger holds a client for three timeouts: nobody is killed. When it has left, the client has a whole timeout.
func TestTraced(t *testing.T) {
	z := serve(t, lazy(t, ""))
	z.until("it is armed", z.armed("lazy"))
	runtime.LockOSThread() // ptrace is a matter of threads
	defer runtime.UnlockOSThread()
	var pid, run = 0, uint64(0)
	z.until("a run is attached to before it is killed, and stopped", func() bool {
		// Not by wait(2): here the debugger is zhxd's own process, which may have waited already.
		if st, err := proc.ReadStat(pid); pid != 0 && err == nil && st.Living() {
			return st.State == 't'
		}
		c := z.client("lazy")
		if c.PID == nil || !c.Watchdog.Armed {
			return false
		}
		err := unix.PtraceSeize(*c.PID)
		if st, gone := proc.ReadStat(*c.PID); err == unix.EPERM && gone == nil && st.Living() { // the dead may not be traced either
			t.Skip("ptrace is not permitted")
		}
		if err == nil && unix.PtraceInterrupt(*c.PID) == nil {
			pid, run = *c.PID, *c.Run
		}
		return false
	})
	z.until("status shows it", func() bool { return z.client("lazy").Watchdog.Traced })
	<-time.After(900 * time.Millisecond) // three timeouts: what is tested is time
	if c := z.client("lazy"); *c.Run != run || c.Watchdog.Lapses != int64(run-1) {
		t.Errorf("%+v %+v", c, c.Watchdog)
	}
	left := time.Now()
	if err := unix.PtraceDetach(pid); err != nil {
		t.Fatal(err)
	}
	z.logged(fmt.Sprintf("[lazy] warn: killed by the watchdog (run=%d", run))
	if d := time.Since(left); d < 300*time.Millisecond {
		t.Errorf("killed %v after the debugger left", d)
	}
}

// A client that another keeps from the only processor that it may run on is given the time that it waited, once, and the verdict says so.
func TestStarvedClient(t *testing.T) {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !cpus.IsSet(cpu) {
		cpu++
	}
	z := serve(t, fmt.Sprintf("[defaults]\ncommand = [%q, \"role-spin\"]\ncpu_affinity = [%d]\n[client.burner]\nwatchdog = \"off\"\n[client.starved]\nnice = 19\nwatchdog_timeout = \"1s\"\n", exe(t), cpu))
	z.logged(" of them given since it waited for a processor")
}

// A timeout that the slowest feed nearly took is too tight, one of which it took next to nothing too loose; few feeds tell nothing.
func TestHint(t *testing.T) {
	for _, row := range []struct {
		feeds   int64
		slowest time.Duration
		want    string
	}{
		{hintFeeds, 4200 * time.Millisecond, "too tight: slowest feed 4.2s of 5s"},
		{hintFeeds, 2 * time.Second, ""},
		{hintFeeds, 100 * time.Millisecond, "too loose: slowest feed 100ms of 5s"},
		{hintFeeds - 1, 4200 * time.Millisecond, ""},
	} {
		if got := hint(watchdog.Status{Timeout: 5 * time.Second, Intervals: watchdog.Intervals{Count: row.feeds, Max: row.slowest}}); got != row.want {
			t.Errorf("%+v: %q", row, got)
		}
	}
}

// A debugger that leaves before the deadline has stopped the clock as well.
func TestTracedInBetween(t *testing.T) {
	z := serve(t, strings.Replace(lazy(t, ""), "300ms", "4s", 1))
	z.until("it is armed", z.armed("lazy"))
	z.logged("[lazy] warn: late (") // after 2 s
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid := z.pid("lazy")
	if err := unix.PtraceSeize(pid); err == unix.EPERM {
		t.Skip("ptrace is not permitted")
	} else if err != nil || unix.PtraceInterrupt(pid) != nil {
		t.Fatal(err)
	}
	z.until("it is seen", func() bool { return z.client("lazy").Watchdog.Traced })
	z.until("it is stopped", func() bool {
		st, err := proc.ReadStat(pid)
		return err == nil && st.State == 't'
	})
	if err := unix.PtraceDetach(pid); err != nil {
		t.Fatal(err)
	}
	left := time.Now()
	z.logged("[lazy] warn: killed by the watchdog (run=1")
	if d := time.Since(left); d < 4*time.Second {
		t.Errorf("killed %v after the debugger left", d)
	}
}

// In state T without a debugger a client is killed.
func TestStoppedWithoutTracer(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.fed]\ncommand = [%q, \"role-talker\"]\nwatchdog_timeout = \"500ms\"\n", exe(t)))
	z.until("it is armed", z.armed("fed"))
	unix.Kill(z.pid("fed"), unix.SIGSTOP)
	z.logged("[fed] warn: killed")
}

// A required client has startup_timeout to its first feed, and asks for more by sd_notify.
func TestStartup(t *testing.T) {
	for role, least := range map[string]time.Duration{"role-sleeper": 700 * time.Millisecond, "role-slow": 1500 * time.Millisecond} {
		z := serve(t, fmt.Sprintf("[client.slow]\ncommand = [%q, %q]\nwatchdog = \"required\"\nwatchdog_timeout = \"100ms\"\nstartup_timeout = \"700ms\"\n", exe(t), role))
		var y control.Why
		z.until("the first run is dead", func() bool {
			y, _ = z.Why(context.Background(), "slow")
			return len(y.Deaths) > 0
		})
		first := y.Deaths[len(y.Deaths)-1]
		if lived := time.Duration(first.Uptime * float64(time.Second)); first.Reason != "watchdog" || lived < least-100*time.Millisecond { // its clock began before it
			t.Errorf("%s: %s after %v", role, first.Reason, lived)
		}
		z.logged(`why="no first feed for `)
		z.stop()
	}
}

// At warn_after a client is looked at, and gets its warn_signal.
func TestHalfTime(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.warned]\ncommand = [%q, \"role-warned\"]\nwatchdog_timeout = \"10s\"\nwarn_after = \"100ms\"\nwarn_signal = \"SIGUSR1\"\n", exe(t)))
	z.logged("[warned] | user defined signal 1")
	z.until("it was looked at", func() bool {
		y, err := z.Why(context.Background(), "warned")
		return err == nil && y.Evidence != nil && y.Evidence.Silence < 5
	})
	if w := z.client("warned").Watchdog; w.Lapses != 0 {
		t.Errorf("%+v", w)
	}
	z.edit(fmt.Sprintf("[client.warned]\ncommand = [%q, \"role-warned\"]\nwatchdog_timeout = \"10s\"\nwarn_after = \"9s\"\nwarn_signal = \"SIGUSR1\"\n", exe(t)))
	z.logged("changed=warn_after")
}
