package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"zhx/daemon/config"
	"zhx/daemon/control"
	"zhx/procman"
	"zhx/procman/proc"
	"zhx/watchdog/hardware"
)

// card is a hardware watchdog that notes what is done to it.
type card struct {
	fed    atomic.Int64
	reset  bool // it says that it made the last reset
	mu     sync.Mutex
	wrote  []byte
	closed bool
}

func (c *card) open(string) (hardware.Device, error) { return c, nil }
func (c *card) Keepalive() error                     { c.fed.Add(1); return nil }
func (c *card) SetTimeout(int) error                 { return nil }
func (c *card) Timeout() (int, error)                { return 1, nil } // so it is fed each third of a second
func (c *card) Info() (string, uint32, error) {
	return "a card", unix.WDIOF_MAGICCLOSE | unix.WDIOF_KEEPALIVEPING, nil
}
func (c *card) BootStatus() (int, error) {
	if c.reset {
		return unix.WDIOF_CARDRESET, nil
	}
	return 0, nil
}
func (c *card) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrote = append(c.wrote, b...)
	return len(b), nil
}
func (c *card) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

// end is how zhxd left the card.
func (c *card) end() (wrote string, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.wrote), c.closed
}

// lasting is a directory of no file system in memory, for what must survive a reboot: no other is believed to.
func lasting(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if int64(fs.Type) == unix.TMPFS_MAGIC {
		t.Skip("needs a temporary directory that is not in memory, set TMPDIR")
	}
	return dir
}

const crasher = "[client.crasher]\ncommand = [\"false\"]\nrestart_delay = \"1ms\"\ncritical = true\nstart_limit = { burst = 2, interval = \"1m\" }\n"

// The card is fed while zhxd and the critical clients are well. When zhxd is asked to end it is left armed, or switched off by
// choice.
func TestCard(t *testing.T) {
	for magic, want := range map[bool]string{false: "", true: "V"} {
		c := &card{}
		z := serveOn(t, fmt.Sprintf("state_dir = %q\n[watchdog]\ndevice = \"/dev/watchdog\"\nmagic_close = %v\n", lasting(t), magic), Options{device: c.open})
		z.until("it is fed", func() bool { return c.fed.Load() >= 3 })
		st, err := z.Status(context.Background())
		if err != nil || st.Daemon.Watchdog.Device == nil || *st.Daemon.Watchdog.Device != "/dev/watchdog (a card), timeout 1s" {
			t.Errorf("%+v %v", st.Daemon.Watchdog, err)
		}
		z.stop()
		if wrote, closed := c.end(); wrote != want || !closed {
			t.Errorf("magic_close = %v: wrote %q, closed %v", magic, wrote, closed)
		}
	}
}

// A device that another has is told of, and zhxd goes on.
func TestCardBusy(t *testing.T) {
	z := serveOn(t, fmt.Sprintf("state_dir = %q\n[watchdog]\ndevice = \"/dev/watchdog\"\n", lasting(t)),
		Options{device: func(string) (hardware.Device, error) { return nil, unix.EBUSY }})
	st, err := z.Status(context.Background())
	if err != nil || st.Daemon.Watchdog.Device == nil || !strings.Contains(*st.Daemon.Watchdog.Device, "busy") {
		t.Errorf("%+v %v", st.Daemon.Watchdog, err)
	}
	z.logged("hardware watchdog not opened")
}

// A critical client that reaches its start_limit reboots the board, with a record that the next start reads; the card is not fed any more and
// stays armed. Again and again, it ends in safe mode, which keeps control socket and card.
func TestCritical(t *testing.T) {
	dir := lasting(t)
	conf := fmt.Sprintf("state_dir = %q\n[watchdog]\ndevice = \"/dev/watchdog\"\nreboot_limit = 2\n%s", dir, crasher)
	var rebooted atomic.Int64
	board := hardware.Board{Sync: func() {}, Reboot: func() error { rebooted.Add(1); return nil }}
	for i := range 2 {
		c := &card{}
		z := serveOn(t, conf, Options{device: c.open, board: board})
		z.logged("critical client lost")
		if err := <-z.done; err != nil { // it ends by itself
			t.Fatal(err)
		}
		z.done <- nil
		if rebooted.Load() != int64(i+1) {
			t.Fatalf("rebooted %d times", rebooted.Load())
		}
		if wrote, closed := c.end(); wrote != "" || !closed {
			t.Errorf("the card: wrote %q, closed %v; it must stay armed", wrote, closed)
		}
		var record struct{ Resets []hardware.Reset }
		b, err := os.ReadFile(filepath.Join(dir, "resets.json"))
		if err == nil {
			err = json.Unmarshal(b, &record)
		}
		if err != nil || len(record.Resets) != i+1 || record.Resets[i].Client != "crasher" || !strings.HasPrefix(record.Resets[i].Reason, "client crasher: restarted 2 times") {
			t.Fatalf("%s %v", b, err)
		}
	}

	c := &card{}
	z := serveOn(t, conf, Options{device: c.open, board: board})
	z.logged("safe mode")
	z.until("the card is fed", func() bool { return c.fed.Load() >= 3 })
	st, err := z.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if w := st.Daemon.Watchdog; !w.SafeMode {
		t.Errorf("status shows %+v", w)
	}
	if c := z.client("crasher"); c.State != "stopped" {
		t.Errorf("it was started in safe mode: %+v", c)
	}
	if _, err := z.Start(context.Background(), control.Which{Names: []string{"crasher"}}); err != nil {
		t.Fatal(err)
	}
	z.logged("no reboot: reboot_limit is reached")
	fed := c.fed.Load()
	z.until("the card is fed on", func() bool { return c.fed.Load() > fed+1 })
	if rebooted.Load() != 2 {
		t.Error("rebooted in safe mode")
	}
	z.stop()

	// Another boot.
	b, err := os.ReadFile(filepath.Join(dir, "resets.json"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "resets.json"), []byte(strings.ReplaceAll(string(b), proc.BootID(), "earlier")), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	z = serveOn(t, fmt.Sprintf("state_dir = %q\n[client.a]\ncommand = [\"false\"]\nautostart = false\ncritical = true\n", dir), Options{board: board})
	if st, err := z.Status(context.Background()); err != nil || st.Daemon.Watchdog.LastReset == nil || *st.Daemon.Watchdog.LastReset.Client != "crasher" ||
		st.Daemon.Watchdog.LastReset.Count != 2 {
		t.Errorf("after the reboot status shows %+v %v", st.Daemon.Watchdog, err)
	}
	z.logged("last reset")
}

// Who is not critical may fail as often as it likes, and mode "observe" reboots nothing.
func TestNotCritical(t *testing.T) {
	board := hardware.Board{Sync: func() {}, Reboot: func() error { t.Error("rebooted"); return nil }}
	for keys, want := range map[string]string{
		strings.Replace(crasher, "critical = true", "critical = false", 1): "[crasher] warn: exited",
		"[watchdog]\nmode = \"observe\"\n" + crasher:                       `nothing: mode = "observe"`,
	} {
		z := serveOn(t, fmt.Sprintf("state_dir = %q\n%s", lasting(t), keys), Options{board: board})
		z.until("it has failed", func() bool { return z.client("crasher").State == "failed" })
		if !strings.Contains(want, "exited") {
			z.logged(want)
		}
		z.stop()
	}
}

// Who stops a client by hand does not want a reboot for those that wait for it.
func TestByHand(t *testing.T) {
	all := []procman.Status{{Name: "db", StoppedBy: "me"}, {Name: "app", WaitsFor: []string{"net", "db"}}, {Name: "ui", WaitsFor: []string{"app"}},
		{Name: "net", WaitsFor: []string{"slow"}}, {Name: "slow"}}
	for i, want := range []bool{true, true, true, false, false} {
		if byHand(all, all[i]) != want {
			t.Errorf("%s: want %v", all[i].Name, want)
		}
	}
}

// Without a record there is no reboot: nobody could tell how many there were.
func TestUnrecorded(t *testing.T) {
	dir := lasting(t)
	board := hardware.Board{Sync: func() {}, Reboot: func() error { t.Error("rebooted"); return nil }}
	if err := os.WriteFile(filepath.Join(dir, "resets.json"), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	z := serveOn(t, fmt.Sprintf("state_dir = %q\n%s", dir, crasher), Options{board: board})
	z.logged("record of resets")
	z.logged("critical client lost")
	if st, _ := z.Status(context.Background()); st.Daemon.Watchdog.SafeMode {
		t.Error("safe mode for a record that tells nothing")
	}
}

// Init and the card are fed by completed passes of the judge, after all parts have answered, and by nothing else.
func TestHeart(t *testing.T) {
	dir := t.TempDir()
	init, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "init"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer init.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "init"))
	heard := make(chan string, 100)
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := init.Read(b)
			if err != nil {
				return
			}
			if string(b[:n]) == sdaemon.SdNotifyWatchdog {
				heard <- "fed"
			}
		}
	}()
	c := &card{}
	dog, err := hardware.Open("/dev/watchdog", time.Second, c.open)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := &buffer{}
	out := newLog(log)
	defer out.Close()
	d := &Daemon{log: out.Logger(), ending: make(chan struct{})} // else a roll call goes on with the other parts, which it has not
	d.loaded.Store(&config.Config{})
	b := &board{d: d, beat: 20 * time.Millisecond, init: true, dog: dog, passes: make(chan struct{}, 1), rolls: make(chan chan struct{}), down: map[string]time.Time{}}
	d.board = b
	d.looping.Store(true)
	ended := make(chan struct{})
	go func() { defer close(ended); b.heart(ctx) }()
	defer func() { cancel(); <-ended }()

	// The configuration's loop is stuck: nobody takes the roll call.
	for range 10 {
		b.passed()
		time.Sleep(5 * time.Millisecond) // the judge's passes
	}
	deadline := time.After(10 * time.Second)
	for !strings.Contains(log.String(), "a part of zhxd does not answer") {
		select {
		case <-deadline:
			t.Fatalf("not told:\n%s", log)
		case <-time.After(time.Millisecond):
			b.passed()
		}
	}
	if c.fed.Load() != 0 || len(heard) != 0 {
		t.Errorf("fed %d times, init %d, while a part was stuck", c.fed.Load(), len(heard))
	}
}

// A broker, or a process manager, that hangs in its own lock keeps the card from being fed, until it goes on.
func TestHeartOfParts(t *testing.T) {
	c := &card{}
	var d *Daemon
	z := serveOn(t, fmt.Sprintf("state_dir = %q\n[watchdog]\ndevice = \"/dev/watchdog\"\n", lasting(t)), Options{device: c.open, made: func(made *Daemon) { d = made }})
	for _, part := range []any{d.bus, d.procs} {
		missed := func() int { return strings.Count(z.log.String(), "a part of zhxd does not answer") }
		mu := (*sync.Mutex)(reflect.ValueOf(part).Elem().FieldByName("mu").Addr().UnsafePointer())
		mu.Lock()
		unlock := sync.OnceFunc(mu.Unlock)
		t.Cleanup(unlock)
		before := missed()
		z.until("it is missed", func() bool { return missed() > before })
		fed := c.fed.Load()
		<-time.After(time.Second) // what is tested is time: the card wants to be fed three times in that
		if c.fed.Load() > fed+1 { // an answer may have been on its way
			t.Errorf("fed while %T was stuck", part)
		}
		unlock()
		z.until("it is fed on", func() bool { return c.fed.Load() > fed+1 })
	}
}
