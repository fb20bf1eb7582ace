package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

// What a board does to zhxd, and what zhxd makes of it: it stays up, says what fails and what happens next, and recovers by itself
// when the fault goes away. etc/doc/faults.md has the table that `go test -run TestFaults -v ./cmd` prints.

const (
	faultsEnv = "ZHX_TEST_FAULTS" // set: in namespaces of our own
	faultUID  = 54321             // of a zhxd that is not root
	faultTime = 20 * time.Second  // for zhxd to say something, or to recover: a deadline, no expectation
)

// A fault is a row of the table. What zhxd says is in said: patterns of lines, each from a message text on.
var faults = []struct {
	name   string
	said   []string
	does   string // what happens next
	needs  string // "root", "gcc"
	inject func(w *faulted)
}{
	{"read-only root", []string{`error: log file failed .*read-only`, `log file works again`}, "clients start and stop; a log_file waits for the disk", "root", readOnlyRoot},
	{"run directory full", []string{`spawn failed .*no space left on device.* -> restarts in`}, "each start is tried again each second, and does not count", "root", runDirFull},
	{"disk of a client's log full", []string{`error: log file failed .*no space left`, `log file works again`}, "lines stay in memory; the file is tried again", "root", logDiskFull},
	{"disk of zhxd's log full", []string{`log lines lost \(count=\d+ err=.*no space left`}, "lines are counted", "root", ownLogFull},
	{"stderr takes nothing", nil, "lines are counted: log_lines_dropped", "", stderrFull},
	{"no descriptors left", []string{`error: accept failed .*too many open files.* -> connection closed`, `spawn failed .*too many open files`,
		`configuration invalid .*too many open files`, `lapse .* -> its whole tree is killed`}, "who connects is turned away; the rest is tried again", "", noDescriptors},
	{"no process for a fork (limit of a user)", []string{`spawn failed .*resource temporarily unavailable`}, "tried again each second", "root", noProcesses},
	{"no memory for a fork", []string{`spawn failed .*cannot allocate memory`}, "tried again each second", "", refused("fork", func(w *faulted) {
		was := w.kill("a")
		w.said(`spawn failed .*cannot allocate memory`)
		w.refuse("")
		w.back("it runs again", w.anew("a", was))
	})},
	{"no open files left on the machine", []string{`error: accept failed .*too many open files in system`}, "who connects waits, or is turned away", "", refused("accept", func(w *faulted) {
		go net.Dial("unix", w.dir+"/run/zhx.sock")
		w.said(`error: accept failed .*too many open files in system`)
		w.refuse("")
		w.back("both answer", w.answers)
	})},
	{"no inotify instance left", []string{`warn: configuration is not watched .* -> tried again in`, `configuration is watched again`}, "SIGHUP and reload work; tried again", "", noInotify},
	{"wall clock steps by years", nil, "nothing: what zhxd waits for is monotonic", "", refused("", clockSteps)},
	{"a start storm", nil, "nothing: they start in the order of the file", "", thousand},
	{"out of memory", []string{`killed by signal .*signal=SIGKILL why="out of memory`}, "restarts as after any death", "root", outOfMemory},
	{"configuration's directory gone", []string{`configuration invalid .*no such file`, `configuration read \(by=edit`}, "nothing changes", "", confGone},
	{"configuration's directory unmounted", []string{`configuration invalid .*no such file`, `configuration read \(by=edit`}, "nothing changes", "root", confUnmounted},
	{"link to the configuration swapped", []string{`configuration invalid`, `configuration read \(by=edit`}, "nothing changes", "", confSwapped},
	{"program removed", []string{`spawn failed .*no such file`}, "backs off", "", program0("gone", func(path string) func() {
		os.Rename(path, path+".away")
		return func() { os.Rename(path+".away", path) }
	})},
	{"program not executable", []string{`spawn failed .*permission denied`}, "backs off", "", program0("barred", func(path string) func() {
		os.Chmod(path, 0o644)
		return func() { os.Chmod(path, 0o755) }
	})},
	{"program open for writing", []string{`spawn failed .*text file busy`}, "backs off", "", program0("busy", func(path string) func() {
		f, _ := os.OpenFile(path, os.O_WRONLY, 0)
		return func() { f.Close() }
	})},
	{"user deleted", []string{`spawn failed .*unknown user`}, "backs off", "root", userDeleted},
	{"sockets unlinked", []string{`error: socket was removed .* -> it is made again`}, "made again; who is connected stays so", "", socketsUnlinked},
	{"run directory removed", []string{`error: run directory was removed .* -> it is made again`, `error: socket was removed`}, "made again, with lock, records and sockets", "", runDirRemoved},
	{"run directory unmounted", []string{`error: run directory was removed .* -> it is made again`, `error: socket was removed`}, "as above", "root", runDirUnmounted},
	{"/proc with hidepid=2, not root", nil, "nothing: it sees its own", "root", hidepid},
}

// TestFaults injects each fault.
func TestFaults(t *testing.T) {
	if os.Geteuid() == 0 && os.Getenv(faultsEnv) == "" { // so that what is mounted, and whoever is left, ends with the test
		inner := exec.Command("/proc/self/exe", "-test.run=^TestFaults$/"+faultsOnly(), "-test.v", "-test.parallel=8")
		inner.Env = append(os.Environ(), "ZHX_TEST_BIN="+bin, faultsEnv+"=1")
		inner.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		inner.WaitDelay = time.Second
		out, err := inner.CombinedOutput()
		var exit *exec.ExitError
		switch {
		case err == nil || errors.As(err, &exit):
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
			return
		}
		t.Log("no namespaces for this process, so nothing is mounted: ", err)
	}
	os.Chmod(bin, 0o755) // for a zhxd that is not root
	mounts := os.Getenv(faultsEnv) != ""
	if mounts {
		ownProc(t)
	}
	for _, f := range faults {
		t.Run(strings.ReplaceAll(f.name, "/", ""), func(t *testing.T) {
			if f.needs == "root" && !mounts {
				t.Skip("needs root and namespaces of its own")
			}
			t.Parallel()
			w := &faulted{T: t, dir: t.TempDir()}
			os.Chmod(w.dir, 0o755)
			os.Chmod(filepath.Dir(w.dir), 0o755)
			f.inject(w)
			for _, pattern := range f.said {
				w.said(pattern)
			}
			if w.pid != w.p.pid(0) || !lives(w.pid) {
				t.Errorf("zhxd was %d, and is not", w.pid)
			}
			t.Logf("| %s | %s | %s | %v |", f.name, strings.Join(f.said, ", "), f.does, w.took.Round(time.Millisecond))
		})
	}
}

// The table in the documentation has each fault.
func TestFaultsTable(t *testing.T) {
	text, err := os.ReadFile("../etc/doc/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		if !strings.Contains(string(text), "\n| "+f.name+" |") {
			t.Errorf("not in the table: %s", f.name)
		}
	}
}

func faultsOnly() string { return os.Getenv("ZHX_FAULT") } // a part of a name

// faulted is a zhxd with a fault.
type faulted struct {
	*testing.T
	dir, conf, sock string // sock may lead through /proc, into zhxd's own mount namespace
	p               *program
	pid             int
	healed          time.Time
	took            time.Duration
}

// start starts zhxd with these clients, and returns when they are ready.
func (w *faulted) start(clients string, how ...func(*exec.Cmd)) {
	w.Helper()
	if w.conf == "" {
		w.conf = w.dir + "/clients.toml"
	}
	w.write(w.conf, clients)
	w.p = startProgram(w.T, append(how, func(c *exec.Cmd) { c.Args = append(c.Args, "--config", w.conf) })...)
	w.p.await(0, faultTime, `\[zhxd\] ready \(`)
	w.pid, w.sock = w.p.pid(0), w.dir+"/run/control.sock"
}

func (w *faulted) write(path, clients string) {
	w.Helper()
	os.MkdirAll(filepath.Dir(path), 0o755)
	text := fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n[defaults]\nrestart_delay_max = \"1s\"\nstable_after = \"1ms\"\nstrays = \"ignore\"\n", w.dir+"/run")
	if err := os.WriteFile(path, []byte(text+clients), 0o644); err != nil {
		w.Fatal(err)
	}
}

// said waits for a line of zhxd.
func (w *faulted) said(pattern string) { w.Helper(); w.p.await(0, faultTime, pattern) }

// heal ends the fault; back waits until what it hit works again.
func (w *faulted) heal(f func()) {
	f()
	w.healed = time.Now()
}

func (w *faulted) back(what string, holds func() bool) {
	w.Helper()
	until(w.T, what, holds)
	w.took = time.Since(w.healed)
}

// kill kills a client, which was running.
func (w *faulted) kill(name string) (was int) {
	w.Helper()
	pid := client(w.T, w.sock, name).PID
	if pid == nil {
		w.Fatalf("%s does not run", name)
	}
	syscall.Kill(*pid, syscall.SIGKILL)
	return *pid
}

// anew tells whether the client runs, as another process than was.
func (w *faulted) anew(name string, was int) func() bool {
	return func() bool { pid := client(w.T, w.sock, name).PID; return pid != nil && *pid != was }
}

// tmpfs mounts one at a folder of the test's.
func (w *faulted) tmpfs(name, options string) string {
	w.Helper()
	path := filepath.Join(w.dir, name)
	os.MkdirAll(path, 0o755)
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "mode=0755,"+options); err != nil {
		w.Fatalf("mount %s: %v", path, err)
	}
	w.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// fill takes the last byte and the last inode of a file system.
func (w *faulted) fill(dir string) (free func()) {
	w.Helper()
	f, err := os.Create(dir + "/filler")
	if err != nil {
		w.Fatal(err)
	}
	for buf := make([]byte, 4096); len(buf) > 0; {
		if _, err := f.Write(buf); err != nil {
			buf = buf[:len(buf)/2]
		}
	}
	f.Close()
	names := []string{dir + "/filler"}
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s/filler%d", dir, i)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			break
		}
		names = append(names, name)
	}
	return func() {
		for _, name := range names {
			os.Remove(name)
		}
	}
}

// onThread runs f on a thread that ends after it, with a mount namespace of its own: of process pid, or (0) a new one. What f
// starts is in it.
func (w *faulted) onThread(pid int, f func()) {
	w.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if pid != 0 {
			var ns int
			if ns, err = unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
				err = unix.Setns(ns, unix.CLONE_NEWNS)
				unix.Close(ns)
			}
		}
		if err != nil {
			w.Error(err)
			return
		}
		f()
	}()
	<-done
	if w.Failed() {
		w.FailNow()
	}
}

// A client that sleeps. Its arguments are no other zhxd's: that would take it for a copy of its own, and cannot ask ours, whose
// socket is in another namespace.
var sleeper = fmt.Sprintf("[client.a]\ncommand = [\"sleep\", \"1000.%d\"]\n", time.Now().UnixNano())

// talker prints for ever.
const talkerClient = "[client.talker]\ncommand = [\"sh\", \"-c\", \"while echo line; do sleep 0.05; done\"]\n"

func readOnlyRoot(w *faulted) {
	set := func(set, clear uint64) {
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: set, Attr_clr: clear}); err != nil {
			w.Skip("needs mount_setattr (Linux 5.12): ", err)
		}
	}
	w.write(w.dir+"/clients.toml", "")
	os.Mkdir(w.dir+"/run", 0o755)
	os.Mkdir(w.dir+"/log", 0o755)
	w.onThread(0, func() {
		w.start(sleeper+talkerClient+fmt.Sprintf("log_file = %q\n", w.dir+"/log/talker"), func(*exec.Cmd) {
			set(unix.MOUNT_ATTR_RDONLY, 0)
			if err := unix.Mount("tmpfs", w.dir+"/run", "tmpfs", 0, "mode=0755"); err != nil {
				w.Fatal(err)
			}
		})
	})
	w.sock = fmt.Sprintf("/proc/%d/root%s", w.pid, w.sock)
	w.said(`error: log file failed .*read-only file system`)
	was := w.kill("a")
	until(w.T, "it is restarted", w.anew("a", was))
	w.onThread(w.pid, func() { w.heal(func() { set(0, unix.MOUNT_ATTR_RDONLY) }) })
	w.said(`log file works again`)
	w.took = time.Since(w.healed)
}

func runDirFull(w *faulted) {
	w.tmpfs("run", "size=256k,nr_inodes=64")
	w.start(sleeper)
	free := w.fill(w.dir + "/run")
	was := w.kill("a")
	w.said(`spawn failed .*no space left`)
	w.heal(free)
	w.back("it runs again", w.anew("a", was))
}

func logDiskFull(w *faulted) {
	w.tmpfs("log", "size=256k,nr_inodes=64")
	free := w.fill(w.dir + "/log")
	w.start(talkerClient + fmt.Sprintf("log_file = %q\n", w.dir+"/log/talker"))
	w.said(`error: log file failed .*no space left`)
	w.heal(free)
	w.back("its lines are in the file", func() bool { b, _ := os.ReadFile(w.dir + "/log/talker"); return bytes.Contains(b, []byte("line")) })
}

func ownLogFull(w *faulted) {
	path := w.tmpfs("log", "size=256k,nr_inodes=64") + "/zhxd.log"
	w.conf, w.sock = w.dir+"/clients.toml", w.dir+"/run/control.sock"
	w.write(w.conf, sleeper)
	w.p = startProgram(w.T, func(c *exec.Cmd) { c.Args = append(c.Args, "--config", w.conf, "--log", path) })
	// What the file has is the log that the table looks at.
	has := func(text string) func() bool {
		return func() bool {
			b, _ := os.ReadFile(path)
			w.p.mu.Lock()
			w.p.lines = strings.Split(string(b), "\n")
			w.p.mu.Unlock()
			return strings.Contains(string(b), text)
		}
	}
	until(w.T, "it is ready", has("] ready ("))
	w.pid = w.p.pid(0)
	was := w.kill("a")
	until(w.T, "it runs again", w.anew("a", was))
	free := w.fill(filepath.Dir(path))
	for range 200 { // until the page that the log ends in is full
		was = w.kill("a")
		until(w.T, "it runs again", w.anew("a", was))
		if dropped(w) > 0 {
			break
		}
	}
	w.heal(free)
	w.kill("a")
	w.back("the log says that it was full", has("-> the log is written again"))
}

func stderrFull(w *faulted) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		w.Skip("needs /dev/full")
	}
	defer full.Close()
	w.conf, w.sock = w.dir+"/clients.toml", w.dir+"/run/control.sock"
	w.write(w.conf, sleeper)
	w.p = startProgram(w.T, func(c *exec.Cmd) { c.Args, c.Stderr = append(c.Args, "--config", w.conf), full })
	until(w.T, "its client runs", func() bool { // it answers before that
		st, err := control.Dial(w.sock).Status(context.Background())
		return err == nil && len(st.Clients) > 0 && st.Clients[0].PID != nil
	})
	w.pid = w.p.Process.Pid
	was := w.kill("a")
	until(w.T, "it runs again", w.anew("a", was))
	if dropped(w) == 0 {
		w.Error("no line is counted as lost")
	}
	w.p.lines = []string{fmt.Sprintf("[zhxd] zhxd begins ( pid=%d)", w.pid)}
}

// dropped is how many lines of its log zhxd says it has lost.
func dropped(w *faulted) int64 {
	return int64(status(w.T, w.sock).Daemon.Counters["log_lines_dropped"])
}

// limit changes a soft limit of zhxd's; it returns what it was.
func (w *faulted) limit(resource int, soft uint64) (was uint64) {
	w.Helper()
	var old unix.Rlimit
	err := unix.Prlimit(w.pid, resource, nil, &old)
	if err == nil {
		err = unix.Prlimit(w.pid, resource, &unix.Rlimit{Cur: min(soft, old.Max), Max: old.Max}, nil)
	}
	if err != nil {
		w.Fatal(err)
	}
	return old.Cur
}

// connect takes descriptors of zhxd's until there is none, as its clients could: a connection is closed.
func (w *faulted) connect() (end func()) {
	w.Helper()
	var all []net.Conn
	closed := make(chan struct{}, 10000)
	for {
		c, err := net.Dial("unix", w.dir+"/run/zhx.sock")
		if err != nil {
			w.Fatal(err)
		}
		all = append(all, c)
		go func() {
			c.Read(make([]byte, 1))
			closed <- struct{}{}
		}()
		select {
		case <-closed:
			return func() {
				for _, c := range all {
					c.Close()
				}
			}
		case <-time.After(5 * time.Millisecond): // it may have been accepted
		}
	}
}

func noDescriptors(w *faulted) {
	exe, err := os.Executable()
	if err != nil {
		w.Fatal(err)
	}
	w.start(sleeper + fmt.Sprintf("[client.f]\ncommand = [%q, %q, \"100ms\"]\nwatchdog_timeout = \"1s\"\n", exe, feederArg))
	until(w.T, "it feeds", func() bool { return client(w.T, w.sock, "f").Watchdog.Armed })
	a, f := *client(w.T, w.sock, "a").PID, *client(w.T, w.sock, "f").PID
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.pid))
	highest := 0
	for _, e := range fds {
		n := 0
		fmt.Sscan(e.Name(), &n)
		highest = max(highest, n)
	}
	was := w.limit(unix.RLIMIT_NOFILE, uint64(highest+1))
	end := w.connect()
	w.said(`error: accept failed .*too many open files.* -> connection closed`)
	w.limit(unix.RLIMIT_NOFILE, 1) // those that are closed now are not to be had either
	syscall.Kill(a, syscall.SIGKILL)
	w.said(`spawn failed .*too many open files`)
	w.write(w.conf, twoClients+fmt.Sprintf("[client.f]\ncommand = [%q, %q, \"100ms\"]\nwatchdog_timeout = \"1s\"\n", exe, feederArg))
	w.said(`configuration invalid .*too many open files`)
	syscall.Kill(f, syscall.SIGUSR1)
	w.said(`\[f\] warn: killed by the watchdog`)
	w.heal(func() { w.limit(unix.RLIMIT_NOFILE, was); end() })
	w.back("all run again", func() bool {
		all := pids(w.T, w.sock)
		return all["a"] != 0 && all["a"] != a && all["f"] != 0 && all["f"] != f && all["b"] != 0
	})
}

func asUser(c *exec.Cmd) {
	c.SysProcAttr.Credential = &syscall.Credential{Uid: faultUID, Gid: faultUID}
}

func (w *faulted) userRuns() {
	os.Mkdir(w.dir+"/run", 0o755)
	os.Chown(w.dir+"/run", faultUID, faultUID)
}

func noProcesses(w *faulted) {
	w.userRuns()
	w.start(sleeper, asUser)
	a := *client(w.T, w.sock, "a").PID
	limit := func(n string) { // by the user itself: to change another's needs a capability that root in a container may lack
		set := exec.Command("prlimit", "--pid", fmt.Sprint(w.pid), "--nproc="+n+":")
		set.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: faultUID, Gid: faultUID}}
		if out, err := set.CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
			w.Skip("needs prlimit")
		} else if err != nil {
			w.Fatalf("%v: %s", err, out)
		}
	}
	var was unix.Rlimit
	if err := unix.Prlimit(w.pid, unix.RLIMIT_NPROC, nil, &was); err != nil {
		if err := unix.Getrlimit(unix.RLIMIT_NPROC, &was); err != nil {
			w.Fatal(err)
		}
	}
	limit("0")
	syscall.Kill(a, syscall.SIGKILL)
	w.said(`spawn failed .*resource temporarily unavailable`)
	for range 100 { // it needs its threads
		status(w.T, w.sock)
	}
	w.heal(func() { limit(fmt.Sprint(int64(was.Cur))) })
	w.back("it runs again", w.anew("a", a))
}

var twoClients = sleeper + strings.Replace(sleeper, ".a]", ".b]", 1)

func (w *faulted) runsToo(name string) func() bool {
	return func() bool { return pids(w.T, w.sock)[name] != 0 }
}

func confGone(w *faulted) {
	w.conf = w.dir + "/etc/zhx/clients.toml"
	w.start(sleeper)
	if err := os.RemoveAll(w.dir + "/etc"); err != nil {
		w.Fatal(err)
	}
	w.said(`configuration invalid .*no such file`)
	w.heal(func() { w.write(w.conf, twoClients) })
	w.back("the new client runs", w.runsToo("b"))
}

func confUnmounted(w *faulted) {
	dir := w.tmpfs("etc", "")
	w.conf = dir + "/clients.toml"
	w.start(sleeper)
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		w.Fatal(err)
	}
	w.said(`configuration invalid .*no such file`)
	w.heal(func() {
		w.tmpfs("etc", "")
		w.write(w.conf, twoClients)
	})
	w.back("the new client runs", w.runsToo("b"))
}

func confSwapped(w *faulted) {
	w.write(w.dir+"/one/clients.toml", sleeper)
	os.MkdirAll(w.dir+"/two", 0o755)
	os.Symlink("one", w.dir+"/etc")
	w.conf = w.dir + "/etc/clients.toml"
	w.start(sleeper)
	os.Remove(w.dir + "/etc")
	w.said(`configuration invalid .*no such file`)
	w.write(w.dir+"/two/clients.toml", twoClients)
	w.heal(func() { os.Symlink("two", w.dir+"/etc") })
	w.back("the new client runs", w.runsToo("b"))
}

// program0 spoils the program of a client between two runs of it.
func program0(name string, spoil func(path string) (heal func())) func(*faulted) {
	return func(w *faulted) {
		sleep, err := exec.LookPath("sleep")
		if err != nil {
			w.Skip("needs sleep")
		}
		code, err := os.ReadFile(sleep)
		if err != nil {
			w.Fatal(err)
		}
		path := fmt.Sprintf("%s/%s%d", w.dir, name, os.Getpid()) // a copy named busybox-like would look at its name: sleep of coreutils does not
		if err := os.WriteFile(path, code, 0o755); err != nil {
			w.Fatal(err)
		}
		w.start(fmt.Sprintf("[client.a]\ncommand = [%q, \"1000\"]\n", path))
		pid := *client(w.T, w.sock, "a").PID
		if name == "busy" { // a program that runs cannot be opened for writing
			ctl(w.T, w.sock, 0, "stop", "a")
		}
		heal := spoil(path)
		if name == "busy" {
			exec.Command(filepath.Join(bin, "zhxctl"), "--control", w.sock, "start", "a").Run()
		} else {
			w.kill("a")
		}
		w.said(`\[a\] warn: spawn failed`)
		w.heal(heal)
		w.back("it runs again", w.anew("a", pid))
	}
}

func userDeleted(w *faulted) {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		w.Fatal(err)
	}
	file := w.dir + "/passwd"
	put := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			w.Fatal(err)
		}
	}
	with := string(passwd) + fmt.Sprintf("zhxfault:x:%d:%[1]d::/:/bin/sh\n", faultUID)
	put(with)
	w.onThread(0, func() {
		if err := unix.Mount(file, "/etc/passwd", "", unix.MS_BIND, ""); err != nil {
			w.Fatal(err)
		}
		w.start(strings.Replace(sleeper, "\n", "\nuser = \"zhxfault\"\n", 1))
	})
	put(string(passwd))
	was := w.kill("a")
	w.said(`spawn failed .*unknown user`)
	w.heal(func() { put(with) })
	w.back("it runs again", w.anew("a", was))
}

func (w *faulted) answers() bool {
	_, err := control.Dial(w.sock).Status(context.Background())
	if err != nil {
		return false
	}
	c, err := net.Dial("unix", w.dir+"/run/zhx.sock")
	if err == nil {
		c.Close()
	}
	return err == nil
}

func socketsUnlinked(w *faulted) {
	w.start(sleeper)
	data := w.dir + "/run/zhx.sock"
	os.Remove(data)
	os.WriteFile(data, nil, 0o600) // in its place, for two tries
	w.said(`run directory is not whole .*is no socket`)
	time.Sleep(2500 * time.Millisecond)
	os.Remove(data)
	until(w.T, "both answer", w.answers)
	w.heal(func() {
		os.Remove(data)
		os.Remove(w.dir + "/run/control.sock")
	})
	w.back("both answer", w.answers)
}

func runDirRemoved(w *faulted) {
	w.start(sleeper)
	a := *client(w.T, w.sock, "a").PID
	for range 2 { // what was made again is looked after, too
		w.heal(func() { os.RemoveAll(w.dir + "/run") })
		w.back("both answer", w.answers)
	}
	w.runDirWhole(a)
}

func runDirUnmounted(w *faulted) {
	dir := w.tmpfs("run", "")
	w.start(sleeper)
	a := *client(w.T, w.sock, "a").PID
	w.heal(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	w.back("both answer", w.answers)
	w.runDirWhole(a)
}

// runDirWhole: the client goes on, a restart works, and no second zhxd can have the directory.
func (w *faulted) runDirWhole(a int) {
	w.Helper()
	if now := pids(w.T, w.sock)["a"]; now != a {
		w.Errorf("the client was %d and is %d", a, now)
	}
	until(w.T, "its record is there again", func() bool {
		b, _ := os.ReadFile(w.dir + "/run/state/a.json")
		return bytes.Contains(b, []byte(fmt.Sprint(a)))
	})
	ctl(w.T, w.sock, 0, "restart", "a")
	if out, err := exec.Command(filepath.Join(bin, "zhxd"), "--config", w.conf).CombinedOutput(); err == nil || !regexp.MustCompile(`pid \d+ holds`).Match(out) {
		w.Errorf("a second zhxd: %v, %s", err, out)
	}
}

func hidepid(w *faulted) {
	w.userRuns()
	w.onThread(0, func() {
		if err := unix.Mount("proc", "/proc", "proc", 0, "hidepid=2"); err != nil {
			w.Fatal(err)
		}
		w.start(sleeper+"[client.talker]\ncommand = ['zhx-demo', 'talker', 'talker', '500ms']\nready = \"register\"\n", asUser)
	})
	was := w.kill("a")
	until(w.T, "it runs again", w.anew("a", was))
	if c := client(w.T, w.sock, "talker"); !c.Connected {
		w.Errorf("%+v", c)
	}
}

// thousand clients start and stop, and those among them that feed are not late for it.
func thousand(w *faulted) {
	clients, feeding := 200, 20 // ZHX_CLIENTS=1000 is the claim
	if n := os.Getenv("ZHX_CLIENTS"); n != "" {
		fmt.Sscan(n, &clients)
	}
	var files unix.Rlimit // zhxd raises its own to the hard one
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Max < uint64(8*clients) {
		w.Skipf("needs a hard limit of %d open files (ulimit -Hn): %d %v", 8*clients, files.Max, err)
	}
	exe, err := os.Executable()
	if err != nil {
		w.Fatal(err)
	}
	var conf strings.Builder
	for i := range clients {
		if i%(clients/feeding) == 0 {
			fmt.Fprintf(&conf, "[client.f%d]\ncommand = [%q, %q, \"500ms\"]\nwatchdog_timeout = \"2s\"\n", i, exe, plainArg)
		} else {
			conf.WriteString(strings.Replace(sleeper, ".a]", fmt.Sprintf(".c%d]", i), 1))
		}
	}
	w.heal(func() {})
	w.start(conf.String())
	w.took = time.Since(w.healed)
	until(w.T, "all run", func() bool { return len(pids(w.T, w.sock)) == clients })
	time.Sleep(quietTime)
	used := processorTime(w.T, w.pid)
	time.Sleep(time.Second)
	used = processorTime(w.T, w.pid) - used
	began := time.Now()
	all := status(w.T, w.sock).Clients
	took := time.Since(began)
	lapses := int64(0)
	for _, c := range all {
		lapses += c.Watchdog.Lapses
	}
	rss := statusField(w.T, fmt.Sprintf("/proc/%d/status", w.pid), "VmRSS")
	began = time.Now()
	ctl(w.T, w.sock, 0, "stop", "--all")
	w.Logf("%d clients: ready after %v, %d KiB, %v of processor time in 1 s with %d that feed, status in %v, stopped in %v, %d lapses",
		clients, w.took.Round(time.Millisecond), rss, used.Round(time.Millisecond), feeding, took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), lapses)
	if lapses != 0 || len(all) != clients {
		w.Errorf("%d lapses, %d clients", lapses, len(all))
	}
}

// outOfMemory has a client eat more than its cgroup may.
func outOfMemory(w *faulted) {
	var dir, limit string
	for path, file := range map[string]string{"/sys/fs/cgroup": "memory.max", "/sys/fs/cgroup/memory": "memory.limit_in_bytes"} {
		try := fmt.Sprintf("%s/zhx-fault-%d", path, time.Now().UnixNano())
		if os.Mkdir(try, 0o755) == nil {
			w.Cleanup(func() { unix.Rmdir(try) })
			if f, err := os.OpenFile(try+"/"+file, os.O_WRONLY, 0); err == nil { // else it is a folder of a tmpfs that has the cgroups in it
				if _, err := f.WriteString("20M"); err == nil {
					dir, limit = try, f.Name()
				}
				f.Close()
			}
		}
	}
	if dir == "" {
		w.Skip("needs a cgroup with a memory controller that it may make")
	}
	if kmsg, err := os.Open("/dev/kmsg"); err != nil {
		w.Skip("needs the kernel's log: ", err)
	} else {
		kmsg.Close()
	}
	w.start(fmt.Sprintf("[client.a]\ncommand = [\"sh\", \"-c\", \"echo 0 >%s/cgroup.procs; exec tail /dev/zero\"]\n", dir))
	w.said(`\[a\] warn: killed by signal`)
	w.heal(func() { os.WriteFile(limit, []byte("1G"), 0) })
	ctl(w.T, w.sock, 0, "stop", "a")
	w.took = time.Since(w.healed)
}

// refuse has the kernel refuse what testdata/kernel.c knows by these words from now on; "": nothing.
func (w *faulted) refuse(words string) {
	w.heal(func() { // in one step: it is read meanwhile
		if err := errors.Join(os.WriteFile(w.dir+"/words.new", []byte(words), 0o644), os.Rename(w.dir+"/words.new", w.dir+"/words")); err != nil {
			w.Fatal(err)
		}
	})
}

// startRefused starts zhxd so that it can be refused what it asks of the kernel.
func (w *faulted) startRefused(words string) {
	w.Helper()
	kernel := compile(w.T, w.dir, "testdata/kernel.c")
	w.refuse(words)
	w.heal(func() {})
	if out, err := exec.Command(kernel, w.dir+"/words", "/bin/true").CombinedOutput(); err != nil {
		w.Skipf("needs seccomp with notifications (Linux 5.5) and ptrace: %s %v", out, err)
	}
	exe, err := os.Executable()
	if err != nil {
		w.Fatal(err)
	}
	w.start(sleeper+fmt.Sprintf("[client.f]\ncommand = [%q, %q, \"200ms\"]\nwatchdog_timeout = \"2s\"\n", exe, feederArg), func(c *exec.Cmd) {
		c.Args = []string{kernel, w.dir + "/words", c.Path}
		c.Path = kernel
	})
	until(w.T, "it feeds", func() bool { return client(w.T, w.sock, "f").Watchdog.Armed })
}

func refused(words string, story func(*faulted)) func(*faulted) {
	return func(w *faulted) {
		w.startRefused("")
		w.refuse(words)
		story(w)
	}
}

func noInotify(w *faulted) {
	w.startRefused("inotify")
	w.said(`warn: configuration is not watched`)
	w.refuse("")
	w.said(`configuration is watched again`)
	w.took = time.Since(w.healed)
	w.write(w.conf, twoClients)
	until(w.T, "the new client runs", w.runsToo("b"))
}

// clockSteps: forward and back, and nobody is late, restarted early or never again.
func clockSteps(w *faulted) {
	f := *client(w.T, w.sock, "f").PID
	for _, years := range []int{3, -5, 40} {
		w.refuse(fmt.Sprintf("clock=%d", years*365*86400))
		was := w.kill("a")
		w.back("it runs again", w.anew("a", was))
		at := client(w.T, w.sock, "a").LastExit.At
		if off := time.Until(at.Time) - time.Duration(years)*365*24*time.Hour; off.Abs() > time.Hour {
			w.Errorf("%d years on, the death is stamped %v", years, at)
		}
		time.Sleep(2500 * time.Millisecond / 3) // in all: longer than the timeout of f
	}
	w.refuse("")
	if c := client(w.T, w.sock, "f"); c.PID == nil || *c.PID != f || c.Watchdog.Lapses != 0 {
		w.Errorf("%+v", c)
	}
	ctl(w.T, w.sock, 0, "stop", "f")
}
