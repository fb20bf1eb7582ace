package daemon

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

// keptSilence is what these keepers take for a hang: a loaded machine does not stand still for so long.
const keptSilence = 3 * time.Second

// keptEnv is where the stand-in for zhxd finds the test that plays with it.
const keptEnv = "ZHX_TEST_KEPT"

// TestKept is no test but the stand-in: it says its pid and which signals it gets, and does what it is told.
func TestKept(t *testing.T) {
	path := os.Getenv(keptEnv)
	if path == "" {
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	c, err := net.Dial("unix", path)
	if err != nil {
		os.Exit(99)
	}
	fmt.Fprintln(c, os.Getpid())
	go func() {
		for sig := range signals {
			fmt.Fprintln(c, sig)
		}
	}()
	for in := bufio.NewScanner(c); in.Scan(); {
		var code int
		switch n, _ := fmt.Sscanf(in.Text(), "exit %d", &code); {
		case n == 1:
			os.Exit(code)
		case in.Text() == "ready":
			sdaemon.SdNotify(false, "STATUS=well\nREADY=1")
		case in.Text() == "feed":
			sdaemon.SdNotify(false, sdaemon.SdNotifyWatchdog)
		}
	}
	os.Exit(98)
}

// kept is one stand-in under the keeper.
type kept struct {
	net.Conn
	in  *bufio.Scanner
	pid int
}

func (k *kept) line(t *testing.T) string {
	t.Helper()
	if !k.in.Scan() {
		t.Fatal("the stand-in went silent:", k.in.Err())
	}
	return k.in.Text()
}

// stage runs a keeper on stand-ins and hands each of them to the test.
type stage struct {
	t    *testing.T
	ln   *net.UnixListener
	code chan int
	stop context.CancelFunc

	notify string // the keeper's
}

func keepStandIns(t *testing.T) *stage {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(keptEnv, path)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // a program with the race detector lingers for a second
	ctx, stop := context.WithCancel(t.Context())
	k := keeper{
		argv: []string{os.Args[0], "-test.run=^TestKept$"}, runDir: t.TempDir(), notify: filepath.Join(t.TempDir(), "n"),
		log: slog.New(slog.NewTextHandler(t.Output(), nil)), silence: keptSilence,
	}
	s := &stage{t: t, ln: ln, code: make(chan int, 1), stop: stop, notify: k.notify}
	go func() {
		s.code <- k.keep(ctx)
		ln.Close()
	}()
	t.Cleanup(func() {
		stop()
		for c, err := ln.Accept(); err == nil; c, err = ln.Accept() {
			c.Close()
		}
	})
	return s
}

// next is the stand-in that was started last. It must be there within a second.
func (s *stage) next() *kept {
	s.t.Helper()
	s.ln.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := s.ln.Accept()
	if err != nil {
		s.t.Fatal("no zhxd was started:", err)
	}
	k := &kept{Conn: c, in: bufio.NewScanner(c)}
	s.t.Cleanup(func() { c.Close() })
	fmt.Sscan(k.line(s.t), &k.pid)
	return k
}

// ends checks that keep returns want and starts nothing any more.
func (s *stage) ends(want int) {
	s.t.Helper()
	if got := <-s.code; got != want {
		s.t.Errorf("keep returned %d, want %d", got, want)
	}
	if c, err := s.ln.Accept(); err == nil {
		c.Close()
		s.t.Error("another zhxd was started")
	}
}

func TestKeepCodes(t *testing.T) {
	for _, tt := range []struct {
		purpose string
		say     []string
		code    int
	}{
		{"a clean end is the end", []string{"exit 0"}, 0},
		{"so it is after READY", []string{"ready", "exit 0"}, 0},
		{"invalid configuration at the first start is for who started it", []string{"exit 2"}, 2},
		{"so is another instance", []string{"exit 1"}, 1},
	} {
		t.Run(tt.purpose, func(t *testing.T) {
			s := keepStandIns(t)
			fmt.Fprintln(s.next(), strings.Join(tt.say, "\n"))
			s.ends(tt.code)
		})
	}
}

func TestKeepRestarts(t *testing.T) {
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "n"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	t.Setenv("NOTIFY_SOCKET", notify.LocalAddr().String())
	began := time.Now()
	s := keepStandIns(t)
	first := s.next()
	ordinary := time.Since(began) // what a stand-in takes to say that it is there
	began = time.Now()
	syscall.Kill(first.pid, syscall.SIGKILL) // also before READY: a crash is not an answer
	second := s.next()
	if took := time.Since(began); took > ordinary+time.Second || second.pid == first.pid {
		t.Errorf("pid %d after pid %d, %s later; want another within a second, and %v", second.pid, first.pid, took, ordinary)
	}

	fmt.Fprintln(second, "ready")
	passed := func() {
		t.Helper()
		buf := make([]byte, 100)
		notify.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := notify.Read(buf); err != nil || string(buf[:n]) != "STATUS=well\nREADY=1" {
			t.Errorf("passed on %q, %v", buf[:n], err)
		}
	}
	passed()
	os.Remove(s.notify) // with the run directory
	fmt.Fprintln(second, "exit 1")
	third := s.next()
	fmt.Fprintln(third, "ready")
	passed()
	fmt.Fprintln(third, "exit 2") // no longer anybody's answer: the file may be mended while zhxd is away
	fmt.Fprintln(s.next(), "exit 0")
	s.ends(0)
}

// A zhxd that notifies lives, also one that does so late, and for as long as its start takes. One that does not is ended, which
// leaves its goroutines as evidence, and the next one has all its time again.
func TestKeepHung(t *testing.T) {
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer func(was *os.File) { os.Stderr = was }(os.Stderr)
	os.Stderr = stderr
	s := keepStandIns(t)
	first := s.next()
	time.Sleep(keptSilence + time.Second/2) // no event: it is the time itself that must not matter
	for range 2 {
		fmt.Fprintln(first, "feed")
		time.Sleep(keptSilence * 2 / 3)
	}
	began := time.Now()
	fmt.Fprintln(first, "ready")
	second := s.next()
	if took := time.Since(began); took < keptSilence || took > keptSilence+keeperAbort {
		t.Errorf("it was replaced %v after it had notified last", took)
	}
	if text, err := os.ReadFile(stderr.Name()); !strings.Contains(string(text), "SIGABRT") || !strings.Contains(string(text), "TestKept(") {
		t.Errorf("no goroutines in what it printed: %s %v", text, err)
	}
	fmt.Fprintln(second, "ready\nexit 0")
	s.ends(0)
}

// keeperEnv holds the configuration for the keeper of TestKeepReal, keptConfigEnv for its zhxd.
const keeperEnv, keptConfigEnv = "ZHX_TEST_KEEPER", "ZHX_TEST_KEPT_CONFIG"

// TestKeeping is no test but the keeper of TestKeepReal.
func TestKeeping(t *testing.T) {
	path := os.Getenv(keeperEnv)
	if path == "" {
		return
	}
	os.Setenv(keptConfigEnv, path)
	out := newLog(os.Stderr)
	k := keeper{
		argv: []string{os.Args[0], "-test.run=^TestKeptReal$"}, runDir: filepath.Join(filepath.Dir(path), "run"), notify: filepath.Join(filepath.Dir(path), "n"),
		log: out.Logger(), silence: keptSilence,
	}
	code := k.keep(context.Background())
	out.Close()
	os.Exit(code)
}

// TestKeptReal is no test but the zhxd of TestKeepReal.
func TestKeptReal(t *testing.T) {
	if path := os.Getenv(keptConfigEnv); path != "" {
		if err := Run(context.Background(), Options{Config: path}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// A real zhxd that stands still is replaced, and its client goes on. When keeper and zhxd both stood still, nothing happens.
func TestKeepReal(t *testing.T) {
	dir := t.TempDir()
	z := &running{t: t, dir: dir, conf: filepath.Join(dir, "clients.toml"), log: &buffer{}}
	z.Client = control.Dial(filepath.Join(dir, "run", "control.sock"))
	z.edit(fmt.Sprintf("[client.sleeper]\ncommand = [%q, \"role-sleeper\"]\n", exe(t)))
	guard := exec.Command(exe(t), "-test.run=^TestKeeping$")
	guard.Env = append(os.Environ(), keeperEnv+"="+z.conf, "GORACE=atexit_sleep_ms=0")
	guard.Stderr = z.log
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		guard.Process.Signal(unix.SIGTERM)
		guard.Wait()
		if t.Failed() {
			t.Logf("the log of keeper and zhxd:\n%s", z.log)
		}
	})
	z.logged("[zhxd] ready (")
	zhxd := func() int {
		st, err := z.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st.Daemon.PID
	}
	first, client := zhxd(), z.pid("sleeper")

	for _, pid := range []int{guard.Process.Pid, first} {
		syscall.Kill(pid, syscall.SIGSTOP)
	}
	time.Sleep(keptSilence + 2*keeperLate)
	for _, pid := range []int{guard.Process.Pid, first} {
		syscall.Kill(pid, syscall.SIGCONT)
	}
	time.Sleep(keptSilence) // it is fed again, and nobody says so
	if again := zhxd(); again != first || strings.Contains(z.log.String(), "hangs") {
		t.Errorf("pid %d, then %d, after both stood still\n%s", first, again, z.log)
	}

	syscall.Kill(first, syscall.SIGSTOP)
	z.logged("zhxd hangs (")
	z.until("the next zhxd is ready", func() bool { return strings.Count(z.log.String(), "[zhxd] ready (") == 2 })
	if second := zhxd(); second == first || z.pid("sleeper") != client {
		t.Errorf("zhxd has pid %d after %d, the client %d after %d", second, first, z.pid("sleeper"), client)
	}
}

func TestKeepPassesSignalsOn(t *testing.T) {
	s := keepStandIns(t)
	k := s.next()
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		syscall.Kill(os.Getpid(), sig)
		if got := k.line(t); got != sig.String() {
			t.Errorf("sent %s, got %s", sig, got)
		}
	}
	syscall.Kill(k.pid, syscall.SIGKILL) // after SIGTERM even a crash is the end
	s.ends(1)
}

func TestKeepEndsWithContext(t *testing.T) {
	s := keepStandIns(t)
	k := s.next()
	s.stop()
	if got := k.line(t); got != syscall.SIGTERM.String() {
		t.Errorf("got %s, want SIGTERM", got)
	}
	fmt.Fprintln(k, "exit 0")
	s.ends(0)
}

func TestKeepWithoutProgram(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	k := keeper{argv: []string{filepath.Join(t.TempDir(), "zhxd")}, runDir: t.TempDir(), notify: filepath.Join(t.TempDir(), "n"), log: log}
	if got := k.keep(t.Context()); got != 1 {
		t.Errorf("keep returned %d, want 1", got)
	}
}

func TestKeeperDelay(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	for _, tt := range []struct {
		purpose             string
		before, lived, want time.Duration
	}{
		{"the first start again is immediate", -1, 0, 0},
		{"the second in a row is not", 0, s, 100 * ms},
		{"then it doubles", 200 * ms, s, 400 * ms},
		{"to the maximum", 25 * s, s, 30 * s},
		{"and stays", 30 * s, s, 30 * s},
		{"a long life begins anew", 30 * s, 10 * s, 0},
	} {
		if got := keeperDelay(tt.before, tt.lived); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.purpose, got, tt.want)
		}
	}
}

// guardEnv holds the run directory for which a stand-in asks for the lock.
const guardEnv = "ZHX_TEST_GUARD"

// TestGuarded is no test but the other keeper of TestGuard.
func TestGuarded(t *testing.T) {
	if dir := os.Getenv(guardEnv); dir != "" {
		fmt.Println((&keeper{runDir: dir}).becomeKeeper())
	}
}

// Two keepers would start zhxd again in turn, also after a shutdown; and zhxd's own lock is not in the keeper's way.
func TestGuard(t *testing.T) {
	k := &keeper{runDir: filepath.Join(t.TempDir(), "run")}
	os.Chmod(filepath.Dir(k.runDir), 0o755)
	for _, purpose := range []string{"at first", "before a further start", "the run directory was removed"} {
		if err := k.becomeKeeper(); err != nil {
			t.Fatal(purpose, err)
		}
		other := exec.Command(os.Args[0], "-test.run=^TestGuarded$")
		other.Env = append(os.Environ(), guardEnv+"="+k.runDir, "GORACE=atexit_sleep_ms=0")
		out, err := other.Output()
		if want := fmt.Sprintf("the keeper with pid %d has %s", os.Getpid(), k.runDir); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: got %s %v, want %s", purpose, out, err, want)
		}
		if purpose == "before a further start" {
			os.RemoveAll(k.runDir)
		}
	}
	held, err := holdRundir(k.runDir)
	if err != nil {
		t.Fatal(err)
	}
	held.release()
}

// What a zhxd that is started again says before it has its log must not be lost.
func TestKeeperStderr(t *testing.T) {
	var ours [3]int // the tests' own standard output and error
	for fd := 1; fd <= 2; fd++ {
		var err error
		if ours[fd], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ours[fd])
	}
	k := keeper{logFile: filepath.Join(t.TempDir(), "zhxd.log")}
	k.toLog()
	fmt.Fprint(os.Stderr, "invalid configuration")
	unix.Dup3(ours[1], 1, 0)
	unix.Dup3(ours[2], 2, 0)
	if text, err := os.ReadFile(k.logFile); string(text) != "invalid configuration" {
		t.Errorf("the log has %q, %v", text, err)
	}
}

// Who is watched by somebody that is stopped waits for him a moment only.
func TestNotifyOuter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	notifyOuter("nobody")
	t.Setenv("NOTIFY_SOCKET", path)
	notifyOuter("READY=1")
	buf := make([]byte, 100)
	if n, err := socket.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	os.Remove(path) // as with the run directory
	notifyOuter("WATCHDOG=1")
	socket.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := socket.Read(buf); err != nil || string(buf[:n]) != "WATCHDOG=1" {
		t.Fatalf("without its path: %q, %v", buf[:n], err)
	}
	for took := time.Duration(0); took < noteWait; { // as many as the kernel takes (net.unix.max_dgram_qlen) go at once
		began := time.Now()
		notifyOuter("WATCHDOG=1")
		took = time.Since(began)
	}
}
