package cmd

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The chain "client, zhxd, keeper or init, hardware" as etc/doc/watchdog.md tells it, link by link, with the files of etc. That
// the keeper replaces a zhxd that died is TestCrash, one that hangs TestKeepReal of daemon; the hardware is daemon's board_test.

// long is how many seconds a client sleeps that must live through it all. It is a number of its own: the zhxd of another test, which
// sees it while no zhxd lives to answer for it, must not take it for a copy of a client of its own.
var long = fmt.Sprintf("1%07d", os.Getpid())

// boardConfig is a board with one client that must live through it all.
func boardConfig(t *testing.T, dir string) string {
	return write(t, "clients.toml", fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n[client.sleeper]\ncommand = ['sleep', '%s']\n", dir+"/run", long))
}

// unitKeys reads a unit file: the last value of each key of a section.
func unitKeys(t *testing.T, path, section string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	keys, in := map[string]string{}, ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			in = line
		} else if key, value, ok := strings.Cut(line, "="); ok && in == "["+section+"]" && !strings.HasPrefix(line, "#") {
			keys[key] = value
		}
	}
	return keys
}

// The test is systemd: it starts zhxd as the unit says, with a WatchdogSec that is 20 times shorter, hears READY=1 and then
// WATCHDOG=1 in time, and none when zhxd is hung, for which systemd ends it. The next one adopts its client.
func TestSystemdUnit(t *testing.T) {
	unit := unitKeys(t, "../etc/zhx.service", "Service")
	seconds, err := strconv.Atoi(unit["WatchdogSec"])
	if err != nil || unit["Type"] != "notify" || unit["Restart"] != "on-failure" || unit["KillMode"] != "process" {
		t.Fatalf("the unit is another than this test is for (%v): %v", err, unit)
	}
	timeout := time.Duration(seconds) * time.Second / 20
	dir := t.TempDir()
	conf, sock := boardConfig(t, dir), dir+"/run/control.sock"
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", systemd.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(timeout.Microseconds(), 10))
	hear := func(limit time.Duration, want string) bool {
		t.Helper()
		systemd.SetReadDeadline(time.Now().Add(limit))
		for buf := make([]byte, 1000); ; {
			n, err := systemd.Read(buf)
			if err != nil {
				return false
			}
			if strings.Contains("\n"+string(buf[:n])+"\n", "\n"+want+"\n") {
				return true
			}
		}
	}
	args := append(strings.Fields(unit["ExecStart"])[1:], "--config", conf)
	first := startZhxd(t, args...)
	if !hear(20*time.Second, "READY=1") {
		t.Fatal("no READY=1")
	}
	for i, began := 0, time.Now(); i < 8; i++ {
		if !hear(3*timeout, "WATCHDOG=1") { // a loaded machine may be late once, but not each time
			t.Fatal("no WATCHDOG=1")
		}
		if every := time.Since(began) / time.Duration(i+1); i == 7 && every > timeout*2/3 {
			t.Errorf("WATCHDOG=1 every %v, for a timeout of %v", every, timeout)
		}
	}
	client := *client(t, sock, "sleeper").PID
	first.Process.Signal(syscall.SIGSTOP)
	for hear(timeout/10, "WATCHDOG=1") { // what it had sent before
	}
	if hear(timeout*3/2, "WATCHDOG=1") {
		t.Error("zhxd stands still, and feeds")
	}
	first.Process.Kill() // KillMode=process: it alone
	<-first.ended
	second := startZhxd(t, args...) // RestartSec later
	second.await(0, 20*time.Second, `\[sleeper\] adopted \(`, `\[zhxd\] ready \(`)
	if !hear(20*time.Second, "READY=1") || !hear(3*timeout, "WATCHDOG=1") {
		t.Error("the next zhxd does not feed")
	}
	if pid := pids(t, sock)["sleeper"]; pid != client {
		t.Errorf("the client had pid %d and has %d", client, pid)
	}
	// systemctl stop: zhxd stops its clients itself, and feeds meanwhile or is through.
	second.Process.Signal(syscall.SIGTERM)
	if !hear(20*time.Second, "STOPPING=1") {
		t.Error("no STOPPING=1")
	}
	<-second.ended
	if lives(client) || second.ProcessState.ExitCode() != 0 {
		t.Errorf("after the end, with code %d, the client lives: %t", second.ProcessState.ExitCode(), lives(client))
	}
}

// systemd itself understands every line of the unit.
func TestSystemdVerify(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze")
	}
	text, err := os.ReadFile("../etc/zhx.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := write(t, "zhx.service", strings.ReplaceAll(string(text), "/usr/local/bin", bin)) // the program must exist
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}

// busybox init, process 1 of a pid namespace, runs etc/inittab: keeper and zhxd are back after each is killed, and the client goes
// on; at shutdown it is stopped in order.
func TestInittab(t *testing.T) {
	if os.Getenv(inittabEnv) != "" {
		becomeInit(t)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox with init (Debian: busybox-static)")
	}
	if out, _ := exec.Command(busybox, "--list").Output(); !strings.Contains("\n"+string(out), "\ninit\n") {
		t.Skip("needs a busybox with init (Debian: busybox-static)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount over /etc/inittab")
	}
	text, err := os.ReadFile("../etc/inittab")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf, sock, log := boardConfig(t, dir), dir+"/run/control.sock", dir+"/run/zhxd.log"
	tab := strings.NewReplacer(
		"/usr/local/bin/zhxd", bin+"/zhxd --config "+conf,
		"/usr/local/bin/zhxctl", bin+"/zhxctl --control "+sock,
		"/run/zhx/zhxd.log", log,
	).Replace(string(text))
	pid1 := exec.Command("/proc/self/exe", "-test.run=^TestInittab$")
	pid1.Env = append(os.Environ(), "ZHX_TEST_BIN="+bin, inittabEnv+"="+write(t, "inittab", tab), "ZHX_TEST_BUSYBOX="+busybox)
	pid1.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	var said bytes.Buffer
	pid1.Stdout, pid1.Stderr = &said, &said
	pid1.WaitDelay = time.Second // of those that have its output open; they are dead
	if err := pid1.Start(); err != nil {
		t.Skip("no pid namespace for this process: ", err)
	}
	ended := make(chan struct{})
	go func() {
		pid1.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		pid1.Process.Kill() // the kernel kills all of the namespace with its process 1
		<-ended
		if text, _ := os.ReadFile(log); t.Failed() {
			t.Logf("init said:\n%s\nthe log of zhxd:\n%s", said.Bytes(), text)
		}
	})

	// Pids of status are those of the namespace; /proc here has them too, in NSpid.
	outside := func(inside int) (pid int) {
		t.Helper()
		for _, child := range descendants(pid1.Process.Pid) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", child))
			_, after, _ := strings.Cut(string(b), "\nNSpid:")
			line, _, _ := strings.Cut(after, "\n")
			if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == strconv.Itoa(inside) {
				return child
			}
		}
		t.Fatalf("no process with pid %d inside", inside)
		return 0
	}
	answers := func() bool {
		return exec.Command(filepath.Join(bin, "zhxctl"), "--control", sock, "status", "sleeper").Run() == nil
	}
	until(t, "init has started zhxd", answers)
	first, client := outside(status(t, sock).Daemon.PID), outside(pids(t, sock)["sleeper"])
	guard := parent(first)
	if grand := parent(guard); grand != pid1.Process.Pid {
		t.Fatalf("init is %d; zhxd %d is the child of %d, which is that of %d", pid1.Process.Pid, first, guard, grand)
	}

	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", first)); !strings.Contains(string(env), "\x00WATCHDOG_USEC=120000000\x00") {
		t.Errorf("the keeper does not watch whether zhxd hangs: %v", err)
	}

	syscall.Kill(first, syscall.SIGKILL)
	until(t, "the keeper has started another zhxd", func() bool { return !lives(first) && answers() })
	second := outside(status(t, sock).Daemon.PID)
	if second == first || parent(second) != guard || !lives(client) {
		t.Errorf("zhxd was %d and is %d, its parent was %d and is %d; its client lives: %t", first, second, guard, parent(second), lives(client))
	}

	syscall.Kill(guard, syscall.SIGKILL) // zhxd goes on without; init's next keeper has to wait for it
	syscall.Kill(second, syscall.SIGKILL)
	until(t, "init has started keeper and zhxd", func() bool { return !lives(second) && answers() })
	third := outside(status(t, sock).Daemon.PID)
	if next := parent(third); next == guard || parent(next) != pid1.Process.Pid || outside(pids(t, sock)["sleeper"]) != client {
		t.Errorf("the keeper was %d and is %d, child of %d; the client is %d", guard, next, parent(next), client)
	}

	// What the line of shutdown runs; the rest of a shutdown is init's own.
	if !strings.Contains(tab, "\n::shutdown:"+bin+"/zhxctl --control "+sock+" shutdown\n") {
		t.Error("nothing is shut down in order")
	}
	ctl(t, sock, 0, "shutdown")
	if lives(client) {
		t.Error("the client lives after the shutdown")
	}
	until(t, "zhxd is gone", func() bool { return !lives(third) }) // its sockets, which zhxctl sees, are closed a moment before
}

// inittabEnv is the inittab that the test binary, as process 1 of a namespace, gives to busybox init.
const inittabEnv = "ZHX_TEST_INITTAB"

// becomeInit becomes busybox init. All that it mounts is in its own mount namespace.
func becomeInit(t *testing.T) {
	ownProc(t)
	// A file is mounted over a file: where the machine has none, all of /etc is covered by what is needed of it.
	tab := os.Getenv(inittabEnv)
	if _, err := os.Stat("/etc/inittab"); err != nil {
		text, err := os.ReadFile(tab)
		if err == nil {
			err = unix.Mount("tmpfs", "/etc", "tmpfs", 0, "")
		}
		if err == nil {
			err = os.WriteFile("/etc/inittab", text, 0o644)
		}
		if err != nil {
			t.Fatal("an /etc with an inittab: ", err)
		}
	} else if err := unix.Mount(tab, "/etc/inittab", "", unix.MS_BIND, ""); err != nil {
		t.Fatal("mount over /etc/inittab: ", err)
	}
	t.Fatal(unix.Exec(os.Getenv("ZHX_TEST_BUSYBOX"), []string{"init"}, os.Environ()))
}

func descendants(pid int) (all []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			child, _ := strconv.Atoi(s)
			all = append(append(all, child), descendants(child)...)
		}
	}
	return all
}

func parent(pid int) (ppid int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(b), ") ")
	var state string
	fmt.Sscan(after, &state, &ppid)
	return ppid
}

// The example for C: its main loop hangs while its feeder thread feeds, and the checkpoints tell.
func TestFeederThread(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("needs gcc")
	}
	dir := t.TempDir()
	build := exec.Command("gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", dir+"/feeder", "../etc/doc/feeder.c")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Without its feeds, its lapse would be that of watchdog_timeout, which is before.
	p := startZhxd(t, "--config", write(t, "clients.toml", fmt.Sprintf(`
[daemon]
run_dir = %q
tcp = ""
prototype_presence = false
[client.feeder]
command = [%q, "10"]
ready = "notify"
deadlines = [{ from = "loop", to = "loop", within = "3s" }]
watchdog_timeout = "2s"
`, dir+"/run", dir+"/feeder")))
	sock := dir + "/run/control.sock"
	hangs := p.await(0, 20*time.Second, `\[feeder\] started \(run=1 `, `\[feeder\] \| the main loop hangs`)
	p.await(hangs, 10*time.Second, `\[feeder\] warn: lapse \(.*checkpoint loop to loop`, `\[feeder\] warn: killed by the watchdog `)
	until(t, "status tells why it ended", func() bool {
		last := client(t, sock, "feeder").LastExit
		return last != nil && last.Reason == "watchdog"
	})
	if why := ctl(t, sock, 0, "why", "feeder"); !strings.Contains(why, "checkpoint loop to loop took longer than 3s") {
		t.Errorf("why does not name the checkpoint:\n%s", why)
	}
	p.await(hangs, 20*time.Second, `\[feeder\] started \(run=2 `)
}
