package cmd

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
	"zhx/ipc"
	"zhx/ipc/wire"
)

// The watchdog as a whole: nobody is killed for what is not his fault, and whoever hangs is killed in time.

const (
	watched   = 50
	fedEvery  = 500 * time.Millisecond // half of their timeout
	hangLimit = 100 * time.Millisecond // beyond the timeout, to the death that the parent sees

	// A program that only sleeps for a millisecond at a time: as late as it is, the machine is.
	timerLate = 50 * time.Millisecond
)

// feeder registers, arms, and feeds each interval for ever; it hangs at SIGUSR1, and prints when it fed last.
func feeder(interval time.Duration) {
	c, err := ipc.DialPackets(context.Background(), "")
	if err == nil {
		err = c.Register("")
	}
	time.Sleep(rand.N(interval)) // not all at once; before it is armed, since the first feed is an interval after that
	if err == nil {
		err = c.Arm()
	}
	hang := make(chan os.Signal, 1)
	signal.Notify(hang, syscall.SIGUSR1)
	for tick := time.NewTicker(interval); err == nil; {
		select {
		case <-hang:
			now := monotonic()
			fmt.Println("fed at", int64(now), c.Feed())
			select {}
		case <-tick.C:
			err = c.Feed()
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

func monotonic() time.Duration {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano())
}

// startFeeders starts zhxd with n clients that feed, f0 and so on, and returns when all are armed.
func startFeeders(t *testing.T, n int, interval, timeout time.Duration, keys string) (p *program, sock string) {
	t.Helper()
	role := feederArg
	if n > watched {
		role = plainArg
	}
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n[defaults]\nwatchdog_timeout = %q\n%s\n", dir+"/run", timeout, keys)
	for i := range n {
		fmt.Fprintf(&conf, "[client.f%d]\ncommand = [%q, %q, %q]\nstrays = \"ignore\"\n", i, exe, role, interval)
	}
	p = startZhxd(t, "--config", write(t, "clients.toml", conf.String()))
	p.await(0, 60*time.Second, `\[zhxd\] ready \(`)
	sock = dir + "/run/control.sock"
	until(t, "all are armed", func() bool {
		for _, c := range status(t, sock).Clients {
			if c.Watchdog == nil || !c.Watchdog.Armed {
				return false
			}
		}
		return true
	})
	return p, sock
}

// nobodyLapsed fails the test if a client did, or is not the process that it was.
func nobodyLapsed(t *testing.T, sock string) {
	t.Helper()
	var misses int64
	for _, c := range status(t, sock).Clients {
		misses += c.Watchdog.Misses
		if c.Watchdog.Lapses != 0 || c.Run == nil || *c.Run != 1 {
			t.Errorf("%s: run %d, %d lapses", c.Name, *c.Run, c.Watchdog.Lapses)
		}
	}
	t.Logf("%d late feeds, no lapse", misses)
}

// span is a time that an environment variable may make longer than an ordinary run has.
func span(t *testing.T, name string, few time.Duration) time.Duration {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return few
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

// zhxd is stopped while its clients feed, for longer than their timeouts: when it goes on, it kills nobody. The claim is of
// ZHX_STOP=30s.
func TestStoppedZhxd(t *testing.T) {
	p, sock := startFeeders(t, watched, 100*time.Millisecond, time.Second, "")
	pid := p.pid(0)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(span(t, "ZHX_STOP", 3*time.Second)) // what is tested is time
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond) // in which each would have to lapse
	nobodyLapsed(t, sock)
}

// All processors are burnt by other work, twice over, while clients feed at half their timeout: nobody is killed. The claim
// is of ZHX_BURN=60s.
func TestBurntProcessors(t *testing.T) {
	_, sock := startFeeders(t, watched, fedEvery, 2*fedEvery, "")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var burners []*exec.Cmd
	for range 2 * runtime.NumCPU() {
		b := exec.Command(exe, burnerArg)
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		burners = append(burners, b)
	}
	time.Sleep(span(t, "ZHX_BURN", 5*time.Second)) // what is tested is time
	nobodyLapsed(t, sock)
	for _, b := range burners {
		b.Process.Kill()
		b.Wait()
	}
}

// A sender is held back, since its receiver reads slowly: zhxd does not read what it sends, its feeds neither, and does not
// kill it for that.
func TestHeldSender(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := startZhxd(t, "--config", write(t, "clients.toml", fmt.Sprintf(`
[daemon]
run_dir = %q
tcp = ""
prototype_presence = false
[defaults]
strays = "ignore"
[client.slow]
command = [%q, %q]
ready = "register"
[client.eager]
command = [%q, %q]
depends_on = ["slow"]
watchdog_timeout = "500ms"
`, dir+"/run", exe, slowArg, exe, eagerArg)))
	p.await(0, 30*time.Second, `\[zhxd\] ready \(`)
	sock := dir + "/run/control.sock"
	until(t, "its messages come slowly", func() bool { return client(t, sock, "slow").Messages.Received > 0 })
	time.Sleep(span(t, "ZHX_HELD", 3*time.Second)) // what is tested is time
	c := client(t, sock, "eager")
	if c.Watchdog.Lapses != 0 || *c.Run != 1 || c.Messages.Dropped != 0 {
		t.Errorf("run %d, %+v, %+v", *c.Run, c.Watchdog, c.Messages)
	}
	if i := c.Watchdog.Interval; i == nil || c.Messages.Sent > 64*(i.Count+2) {
		t.Errorf("%d sent, feeds %+v", c.Messages.Sent, i)
	}
	t.Logf("%d sent, feeds %+v", c.Messages.Sent, *c.Watchdog.Interval)
}

// A run says once how long it may be silent; that holds under the next zhxd, too. So does a pause by hand, for the next run as well.
func TestAdoptedTimeout(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	conf := write(t, "clients.toml", fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n[client.patient]\ncommand = [%q, %q]\nwatchdog_timeout = \"2s\"\n",
		dir+"/run", exe, patientArg))
	sock := dir + "/run/control.sock"
	asked := func() bool { w := client(t, sock, "patient").Watchdog; return w.Armed && w.Timeout == 60 }
	p := startZhxd(t, "--config", conf)
	p.await(0, 30*time.Second, `\[zhxd\] ready \(`)
	until(t, "its own timeout holds", asked)
	zhxd := control.Dial(sock)
	if _, err := zhxd.Pause(t.Context(), control.PauseRequest{Names: []string{"patient"}, Seconds: 600, Reason: "gdb"}); err != nil {
		t.Fatal(err)
	}
	crash := func() {
		t.Helper()
		until(t, "what holds is recorded", func() bool {
			record, _ := os.ReadFile(dir + "/run/state/patient.json")
			return strings.Contains(string(record), `"armed":true`) && strings.Contains(string(record), `"timeout":`)
		})
		p.Process.Kill()
		<-p.ended
		p = startZhxd(t, "--config", conf)
		p.await(0, 30*time.Second, `\[patient\] adopted `, `\[zhxd\] ready \(`)
		if !asked() {
			t.Errorf("adopted: %+v", client(t, sock, "patient").Watchdog)
		}
	}
	paused := func() bool {
		w := client(t, sock, "patient").Watchdog
		return w.Pause != nil && strings.HasSuffix(*w.Pause, ": gdb") && *w.PausedFor > 0 && *w.PausedFor < 600
	}
	crash()
	if events := events(t, zhxd); !strings.Contains(events, "which an earlier zhxd has started") {
		t.Errorf("the adoption is no event: %s", events)
	}
	if !paused() {
		t.Errorf("adopted: %+v", client(t, sock, "patient").Watchdog)
	}
	syscall.Kill(*client(t, sock, "patient").PID, syscall.SIGKILL)
	until(t, "the next run is armed", func() bool { return *client(t, sock, "patient").Run == 2 && asked() })
	crash()
	if !paused() {
		t.Errorf("its next run, adopted: %+v", client(t, sock, "patient").Watchdog)
	}
	if _, err := zhxd.Resume(t.Context(), control.Which{Names: []string{"patient"}}); err != nil {
		t.Fatal(err)
	}
	crash()
	if paused() {
		t.Error("a pause that was ended has come back")
	}
}

func events(t *testing.T, zhxd *control.Client) (text string) {
	t.Helper()
	if err := zhxd.Events(t.Context(), control.EventQuery{N: -1}, func(e control.Event) error { text += e.Text + "; "; return nil }); err != nil {
		t.Fatal(err)
	}
	return text
}

// slowReader takes a message each 20 ms, and nothing ahead of that.
func slowReader() {
	c, err := net.Dial("unix", os.Getenv("ZHX_SOCKET"))
	if err == nil {
		b, _ := wire.Packet{Cmd: wire.CmdRegister, Source: os.Getenv("ZHX_NAME")}.Append(nil)
		_, err = c.Write(b)
	}
	for b := make([]byte, wire.PacketSize); err == nil; time.Sleep(20 * time.Millisecond) {
		_, err = io.ReadFull(c, b)
	}
	os.Exit(1)
}

// eagerSender sends without end, and feeds between messages.
func eagerSender() {
	c, err := ipc.DialPackets(context.Background(), "")
	if err == nil {
		err = c.Arm()
	}
	for i := 0; err == nil; i++ {
		if err = c.Send("slow", "more"); err == nil && i%64 == 0 {
			err = c.Feed()
		}
	}
	os.Exit(1)
}

// Clients hang, one after the other: each is dead soon after its timeout, from its last feed on. A round in which the machine
// itself was late is repeated, and told. The claim is of ZHX_ROUNDS=100.
func TestHangs(t *testing.T) {
	n := rounds(t, 10)
	const timeout = 500 * time.Millisecond
	p, sock := startFeeders(t, 1, 50*time.Millisecond, timeout, "restart_delay = \"1ms\"\nrestart_delay_max = \"10ms\"")
	late, repeated, done := 0, 0, 0
	var took []time.Duration
	for done < n {
		until(t, "it feeds", func() bool {
			c := client(t, sock, "f0")
			return c.PID != nil && c.Watchdog.Armed && c.Watchdog.Interval != nil
		})
		pid, from := *client(t, sock, "f0").PID, len(p.log())
		gone := watchDeath(t, pid)
		worst := worstTimer(t)
		if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		death := <-gone
		machine := worst()
		from = p.await(from, 10*time.Second, `\[f0\] \| fed at \d+`)
		var fed int64
		_, after, _ := strings.Cut(p.log()[from-1], "| fed at ")
		fmt.Sscan(after, &fed)
		if machine > timerLate {
			if repeated++; repeated > n {
				t.Fatalf("the machine was late in %d rounds", repeated)
			}
			continue
		}
		done++
		over := death - time.Duration(fed) - timeout
		took = append(took, over)
		if over > hangLimit || over < 0 {
			late++
		}
	}
	slices.Sort(took)
	t.Logf("%d hangs: killed %v to %v after their timeout, median %v; %d later than %v; %d rounds repeated, the machine being late",
		n, took[0], took[n-1], took[n/2], late, hangLimit, repeated)
	if late > max(1, n/100) {
		t.Errorf("%d of %d not within %v", late, n, hangLimit)
	}
}

// watchDeath tells when a process ended, as its parent sees it: by its pidfd, which is ready at the same moment.
func watchDeath(t *testing.T, pid int) <-chan time.Duration {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Skip("needs pidfd_open: ", err)
	}
	gone := make(chan time.Duration, 1)
	go func() {
		defer unix.Close(fd)
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(p, -1); err != unix.EINTR {
				break
			}
		}
		gone <- monotonic()
	}()
	return gone
}

// worstTimer starts a bare program that sleeps for a millisecond at a time, and returns what ends it and tells its worst lateness.
func worstTimer(t *testing.T) func() time.Duration {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	timer := exec.Command(exe, timerArg)
	end, err := timer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	timer.Stdout = &out
	if err := timer.Start(); err != nil {
		t.Fatal(err)
	}
	return func() (worst time.Duration) {
		end.Close()
		timer.Wait()
		fmt.Sscan(out.String(), (*int64)(&worst))
		return worst
	}
}

// bareTimer sleeps for a millisecond at a time until its input ends, and prints by how much the worst sleep was too long.
func bareTimer() {
	var ended sync.WaitGroup
	done := make(chan struct{})
	ended.Go(func() { os.Stdin.Read(make([]byte, 1)); close(done) })
	var worst time.Duration
	for before := monotonic(); ; {
		select {
		case <-done:
			fmt.Println(int64(worst))
			os.Exit(0)
		default:
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
		now := monotonic()
		worst = max(worst, now-before-time.Millisecond)
		before = now
	}
}

// plainFeeder feeds as a program in C does, by write(2) and nanosleep(2) alone: nobody wakes it when zhxd has read.
func plainFeeder(interval time.Duration) {
	packet := func(wdt int32) []byte {
		b, _ := wire.Packet{Cmd: wire.CmdWatchdog, Wdt: wdt, Source: os.Getenv("ZHX_NAME")}.Append(nil)
		return b
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv("ZHX_SOCKET")})
	}
	if err == nil {
		_, err = unix.Write(fd, packet(wire.WatchdogArm))
	}
	pause := unix.NsecToTimespec(int64(interval))
	for feed := packet(wire.WatchdogFeed); err == nil; _, err = unix.Write(fd, feed) {
		unix.Nanosleep(&pause, nil)
	}
	fmt.Println(err)
	os.Exit(1)
}

// Five hundred clients that feed ten times a second cost a twentieth of a processor at most. The claim is of ZHX_FEED=60s.
func TestFeeders(t *testing.T) {
	const crowd = 500
	window := span(t, "ZHX_FEED", 0)
	if window == 0 {
		t.Skip("set ZHX_FEED=60s: it starts 500 processes")
	}
	p, sock := startFeeders(t, crowd, 100*time.Millisecond, 9*time.Second, "")
	pid := p.pid(0)
	time.Sleep(quietTime)
	feeds := func() (n int64) {
		for _, c := range status(t, sock).Clients {
			n += c.Watchdog.Interval.Count
		}
		return n
	}
	fed, before, switches := feeds(), processorTime(t, pid), threadsField(t, pid, "voluntary_ctxt_switches")
	began := time.Now()
	time.Sleep(window)
	took := time.Since(began)
	used, woken := processorTime(t, pid)-before, threadsField(t, pid, "voluntary_ctxt_switches")-switches
	share := used.Seconds() / took.Seconds()
	rate := float64(feeds()-fed) / took.Seconds()
	t.Logf("%.0f feeds a second of %d clients: %.1f %% of a processor, %.1f us a feed, %.0f wakes a second", rate, crowd, 100*share, 1e6*share/rate, float64(woken)/took.Seconds())
	if share > 0.05 {
		t.Errorf("%.1f %% of a processor, at most 5 %% is right", 100*share)
	}
	nobodyLapsed(t, sock)
}

// The clients of these stories, by their first argument.
const (
	feederArg  = "role-feeder"
	plainArg   = "role-plain"
	slowArg    = "role-slow"
	patientArg = "role-patient"
	eagerArg   = "role-eager"
	burnerArg  = "role-burner"
	timerArg   = "role-timer"
)

// play is the part of a client, if args name one; then it does not return.
func play(args []string) {
	switch args[0] {
	case feederArg:
		interval, _ := time.ParseDuration(args[1])
		feeder(interval)
	case patientArg:
		c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err == nil {
			_, err = c.Write([]byte("WATCHDOG_USEC=60000000\nWATCHDOG=1"))
		}
		fmt.Println(err)
		select {}
	case plainArg:
		interval, _ := time.ParseDuration(args[1])
		plainFeeder(interval)
	case slowArg:
		slowReader()
	case eagerArg:
		eagerSender()
	case timerArg:
		bareTimer()
	case stormArg:
		stormer(args[1:])
	case soakArg:
		soaker(args[1:])
	case innocentArg:
		innocent(args[1:])
	case burnerArg:
		for n := 0; ; n++ {
		}
	}
}
