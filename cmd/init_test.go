package cmd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The files of etc under the inits that they are for: the script under each shell, the unit under a systemd and the OpenRC script
// under an OpenRC that are process 1 of namespaces of their own. The inittab is TestInittab.

// initsEnv is what asks for the tests that start an init; `make inits` does, once.
const initsEnv = "ZHX_INITS"

// What a board does with the script, in each shell that it may have: all exit codes are those of LSB.
func TestInitScript(t *testing.T) {
	shells := [][]string{{"sh"}}
	if busybox, err := exec.LookPath("busybox"); err == nil {
		shells = append(shells, []string{busybox, "sh"})
	}
	for _, shell := range shells {
		t.Run(filepath.Base(shell[0]), func(t *testing.T) { initScript(t, shell) })
	}
}

func initScript(t *testing.T, shell []string) {
	dir := t.TempDir()
	sock, lock := dir+"/run/control.sock", dir+"/run/state/lock"
	conf := boardConfig(t, dir)
	text, err := os.ReadFile("../etc/zhx.init")
	if err != nil {
		t.Fatal(err)
	}
	script := write(t, "zhx", strings.NewReplacer("=/usr/local/bin/", "="+bin+"/", "/etc/zhx/clients.toml", conf).Replace(string(text)))
	var out []byte
	attempt := func(action string) (code int) {
		cmd := exec.Command(shell[0], append(shell[1:], script, action)...)
		cmd.Env = append(os.Environ(), "ZHX_CONTROL="+sock)
		out, _ = cmd.CombinedOutput()
		return cmd.ProcessState.ExitCode()
	}
	service := func(code int, action string) {
		t.Helper()
		if got := attempt(action); got != code {
			t.Fatalf("%s: exit code %d, not %d\n%s", action, got, code, out)
		}
	}
	zhxd := func() int { return status(t, sock).Daemon.PID }
	sleeper := func() int { return pids(t, sock)["sleeper"] }
	t.Cleanup(func() { service(0, "stop") })

	service(3, "status")
	service(0, "stop")
	service(0, "try-restart")
	service(3, "status")
	service(7, "reload")
	service(2, "begin")

	service(0, "start")
	first, child := zhxd(), sleeper()
	service(0, "start")
	service(0, "status")
	if zhxd() != first || sleeper() != child {
		t.Error("a second start is another zhxd, or another client")
	}
	good, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	config := func(text string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	config(string(good) + "[client.second]\ncommand = ['sleep', '" + long + "']\n")
	service(0, "reload")
	until(t, "the second client runs", func() bool { return pids(t, sock)["second"] != 0 })
	if sleeper() != child {
		t.Error("a reload has touched the first client")
	}
	config("[client.x]\n")
	service(6, "reload")
	config(string(good))
	service(0, "restart")
	if zhxd() == first || sleeper() == child {
		t.Error("restart is the old zhxd, or the old client")
	}

	// Keeper and zhxd are killed: what they leave in the run directory is stale, and names a process that is another one.
	first, child = zhxd(), sleeper()
	syscall.Kill(parent(first), syscall.SIGKILL)
	syscall.Kill(first, syscall.SIGKILL)
	until(t, "zhxd is dead", func() bool { return attempt("status") == 3 }) // threads of it close its sockets
	stale := func() {
		t.Helper()
		for _, path := range []string{sock, dir + "/run/zhx.sock"} { // a socket that nobody listens at
			os.Remove(path)
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err == nil {
				err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: path})
				syscall.Close(fd)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(lock, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stale()
	service(0, "start")
	if sleeper() != child {
		t.Error("the next zhxd has not adopted the client")
	}

	service(0, "stop")
	if lives(child) {
		t.Error("the client lives after the stop")
	}
	service(3, "status")
	stale()
	service(0, "start")
	service(0, "status")
	service(0, "stop")

	config("[client.x]\n")
	if service(6, "start"); !bytes.Contains(out, []byte("clients.toml:1")) {
		t.Errorf("an invalid configuration, and it says\n%s", out)
	}
	service(3, "status")
	config(string(good))
	gone := write(t, "zhx", strings.ReplaceAll(string(text), "/usr/local/bin/", dir+"/nothing/"))
	for action, code := range map[string]int{"start": 5, "stop": 0, "status": 4} { // the package is removed, the script is not
		cmd := exec.Command(shell[0], append(shell[1:], gone, action)...)
		if cmd.Run(); cmd.ProcessState.ExitCode() != code {
			t.Errorf("%s without zhxctl: exit code %d, not %d", action, cmd.ProcessState.ExitCode(), code)
		}
	}
}

// boot is a board of its own in namespaces: processes, mounts, network, cgroups. Its root is a tmpfs, read-only as a board's, with
// this machine's /usr, our programs in /usr/local/bin, and an /etc of its own.
type boot struct {
	t    *testing.T
	pid1 int
	mnt  string // its /mnt: a folder of the test
}

// bootScript is process 1 until it becomes the init. $1 is where the root is to be, $2 our programs, $3 its /mnt, which has etc,
// $4 what is to be in /usr besides; then the init.
const bootScript = `set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
cd "$1"
mkdir usr etc var run dev proc sys tmp root mnt old
for d in bin sbin lib lib32 lib64; do [ ! -L /$d ] || cp -P /$d .; done
if [ "$4" ]; then mount -t overlay -o "ro,lowerdir=$4:/usr" overlay usr; else mount --bind /usr usr; mount -o remount,bind,ro usr; fi
mount --bind "$2" usr/local/bin
mount --bind "$3" mnt
for d in etc run tmp dev; do mount -t tmpfs -o mode=755 tmpfs $d; done
mount -t tmpfs -o ro tmpfs var
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for d in null zero full random urandom tty; do touch dev/$d; mount --bind /dev/$d dev/$d; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
cp -a mnt/etc/. etc/
pivot_root . old
umount -l /old
rmdir /old
mount -o remount,ro /
echo booted >/mnt/booted
shift 4
exec env -i container=zhx PATH=/usr/local/bin:/usr/bin:/usr/sbin SYSTEMD_UNIT_PATH=/etc/systemd/system "$@"`

// startInit boots with files, of which the names are below /etc. It skips the test where there can be no such namespaces.
func startInit(t *testing.T, overlay string, files map[string]string, init ...string) *boot {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make namespaces")
	}
	if _, err := exec.LookPath(init[0]); err != nil {
		t.Skip("needs ", init[0])
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	at := regexp.MustCompile(`(?m)^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 `).FindSubmatch(mounts)
	if at == nil {
		t.Skip("needs a cgroup2")
	}
	group, err := os.MkdirTemp(string(at[1]), "zhx-test-")
	if err != nil {
		t.Skip("needs to make a cgroup: ", err)
	}
	b := &boot{t: t, mnt: t.TempDir()}
	files["passwd"], files["group"] = "root:x:0:0:root:/root:/bin/sh\n", "root:x:0:\n"
	for name, text := range files {
		path := filepath.Join(b.mnt, "etc", name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-c", `echo 0 >"$0/cgroup.procs" && exec unshare --pid --mount --cgroup --net --uts --ipc --fork "$@"`, group,
		"sh", "-c", bootScript, "sh", t.TempDir(), bin, b.mnt, overlay}
	unshare := exec.Command("sh", append(args, init...)...)
	var said bytes.Buffer
	unshare.Stdout, unshare.Stderr, unshare.WaitDelay = &said, &said, time.Second
	if err := unshare.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		unshare.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		if text, _ := os.ReadFile(b.mnt + "/zhxd.log"); t.Failed() {
			t.Logf("the log of zhxd:\n%s", text)
		}
		if b.pid1 > 0 {
			syscall.Kill(b.pid1, syscall.SIGKILL) // the kernel kills all of the namespace with its process 1
		}
		unshare.Process.Kill()
		<-ended
		comesTrue(10*time.Second, func() bool { return removeGroup(group) == nil })
	})
	until(t, "the root is made", func() bool {
		select {
		case <-ended:
			t.Skipf("no namespaces and mounts for this process:\n%s", said.Bytes())
		default:
		}
		_, err := os.Stat(b.mnt + "/booted")
		return err == nil
	})
	children := descendants(unshare.Process.Pid)
	if len(children) == 0 {
		t.Fatal("it has ended\n", said.String())
	}
	b.pid1 = children[0]
	return b
}

func removeGroup(dir string) error {
	inner, _ := filepath.Glob(dir + "/*/cgroup.procs")
	for _, d := range inner {
		removeGroup(filepath.Dir(d))
	}
	return os.Remove(dir)
}

// try runs a command on the board.
func (b *boot) try(argv ...string) (out string, code int) {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(b.pid1), "-m", "-u", "-i", "-n", "-p", "-C", "env", "-i", "PATH=/usr/local/bin:/usr/bin:/usr/sbin"}, argv...)...)
	text, _ := cmd.CombinedOutput()
	return strings.TrimSpace(string(text)), cmd.ProcessState.ExitCode()
}

// run is try of a command that has to end with that code.
func (b *boot) run(code int, argv ...string) string {
	b.t.Helper()
	out, got := b.try(argv...)
	if got != code {
		b.t.Fatalf("%s: exit code %d, not %d\n%s", strings.Join(argv, " "), got, code, out)
	}
	return out
}

// path is a file of the board, seen from here.
func (b *boot) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", b.pid1, name) }

func (b *boot) sock() string { return b.path("/run/zhx/control.sock") }

func (b *boot) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(b.path(name), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// proc is a file of /proc of one of its processes.
func (b *boot) proc(pid int, name string) string {
	text, _ := os.ReadFile(b.path(fmt.Sprintf("/proc/%d/%s", pid, name)))
	return string(text)
}

func (b *boot) lives(pid int) bool {
	_, after, ok := strings.Cut(b.proc(pid, "stat"), ") ")
	return ok && after[0] != 'Z'
}

// others are the programs that run on the board besides its init.
func (b *boot) others() (all []string) {
	dirs, _ := filepath.Glob(b.path("/proc/[0-9]*"))
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if b.lives(pid) && pid > 1 {
			all = append(all, strings.ReplaceAll(b.proc(pid, "cmdline"), "\x00", " "))
		}
	}
	return all
}

// initsConfig is of two clients, with arguments of their own: the zhxd of another test sees them, and what it takes for a copy of a
// client of its own is ended while no zhxd of ours lives to answer for it.
var initsConfig = strings.ReplaceAll(`[daemon]
reload = "manual"
[client.a]
command = ["sleep", "LONG"]
critical = true
[client.b]
command = ["sleep", "LONG"]
depends_on = ["a"]
`, "LONG", long)

// The unit, unchanged but for a shorter WatchdogSec and where its log goes, under a real systemd on a board with a read-only root.
func TestSystemd(t *testing.T) {
	if os.Getenv(initsEnv) == "" {
		t.Skip("starts a systemd: " + initsEnv + "=1, or make inits")
	}
	unit, err := os.ReadFile("../etc/zhx.service")
	if err != nil {
		t.Fatal(err)
	}
	const dir = "systemd/system/"
	files := map[string]string{
		"zhx/clients.toml":             initsConfig,
		"machine-id":                   strings.Repeat("0", 31) + "1\n",
		dir + "zhx.service":            string(unit),
		dir + "zhx.service.d/own.conf": "[Service]\nWatchdogSec=4\nTimeoutAbortSec=2\nStandardError=append:/mnt/zhxd.log\n",
		dir + "default.target":         "[Unit]\nWants=zhx.service\n",
	}
	for _, target := range []string{"sysinit", "basic", "multi-user", "network", "shutdown"} { // what the unit and systemd's defaults name
		files[dir+target+".target"] = "[Unit]\nDefaultDependencies=no\n"
	}
	b := startInit(t, "", files, "/lib/systemd/systemd")
	show := func(property string) string {
		t.Helper()
		return b.run(0, "systemctl", "show", "--value", "-p", property, "zhx")
	}
	zhxd := func() int {
		t.Helper()
		pid, _ := strconv.Atoi(show("MainPID"))
		return pid
	}
	if !comesTrue(20*time.Second, func() bool { _, code := b.try("systemctl", "show", "-p", "Version"); return code == 0 }) {
		t.Skip("no systemd comes up in these namespaces")
	}
	active := func() bool { return show("ActiveState") == "active" }
	until(t, "zhxd has told systemd that it is ready", active)
	began := pids(t, b.sock())
	if began["a"] == 0 || began["b"] == 0 {
		t.Fatalf("active, with these clients: %v", began)
	}
	same := func(after string) {
		t.Helper()
		for name, pid := range pids(t, b.sock()) {
			if pid != began[name] {
				t.Errorf("after %s: %s has pid %d, and had %d", after, name, pid, began[name])
			}
		}
	}
	for property, want := range map[string]string{"Type": "notify", "KillMode": "process", "TasksMax": "infinity", "Delegate": "yes", "DelegateControllers": "", "OOMPolicy": "continue"} {
		if got := show(property); got != want {
			t.Errorf("%s is %q, not %q", property, got, want)
		}
	}
	b.inherits(zhxd(), began["a"])
	if log, _ := os.ReadFile(b.mnt + "/zhxd.log"); !bytes.Contains(log, []byte("record of resets")) { // of a critical client, in /var
		t.Error("zhxd does not say that it cannot write the record of resets")
	}

	first := zhxd()
	b.run(0, "sh", "-c", fmt.Sprint("kill -KILL ", first))
	until(t, "systemd has started it again", func() bool { return zhxd() != first && active() })
	same("SIGKILL of zhxd")

	first = zhxd()
	b.run(0, "sh", "-c", fmt.Sprint("kill -STOP ", first))
	until(t, "systemd has found that it hangs", func() bool { return zhxd() != first && active() })
	same("SIGSTOP of zhxd")
	if log, _ := os.ReadFile(b.mnt + "/zhxd.log"); !bytes.Contains(log, []byte("SIGABRT: abort")) {
		t.Error("zhxd has not printed its goroutines")
	}

	b.run(0, "zhxctl", "shutdown", "--keep")
	until(t, "it has ended", func() bool { return show("ActiveState") == "inactive" })
	if !b.lives(began["a"]) || !b.lives(began["b"]) {
		t.Error("shutdown --keep ends clients")
	}
	b.run(0, "systemctl", "start", "zhx")
	same("shutdown --keep and systemctl start")

	script := func(name string, args ...string) { // of the package
		t.Helper()
		text, err := os.ReadFile("../etc/deb/" + name)
		if err == nil {
			err = os.WriteFile(b.mnt+"/"+name, bytes.Replace(text, []byte("\nPATH="), []byte("\nPATH=/usr/local/bin:"), 1), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		b.run(0, append([]string{"sh", "/mnt/" + name}, args...)...)
	}
	first = zhxd()
	script("prerm", "upgrade", "2")
	until(t, "prerm has ended it", func() bool { return show("ActiveState") == "inactive" })
	script("postinst", "configure", "1")
	if !active() || zhxd() == first {
		t.Errorf("after the upgrade the unit is %s, its zhxd %d, and was %d", show("ActiveState"), zhxd(), first)
	}
	same("an upgrade of the package")

	b.write("/etc/zhx/clients.toml", initsConfig+"[client.c]\ncommand = ['sleep', '"+long+"']\n")
	b.run(0, "systemctl", "reload", "zhx")
	until(t, "the reload has started c", func() bool { began["c"] = pids(t, b.sock())["c"]; return began["c"] != 0 })
	b.write("/etc/zhx/clients.toml", "[client.a]\n")
	b.run(1, "systemctl", "reload", "zhx")
	if !active() {
		t.Error("a reload of an invalid file is the end of the unit: ", show("ActiveState"))
	}
	same("reload")

	b.run(0, "systemctl", "stop", "zhx")
	b.nothing("systemctl stop")
	log, _ := os.ReadFile(b.mnt + "/zhxd.log")
	if !regexp.MustCompile(`(?s)\[b\] stopped .*\[a\] stopped `).Match(log) {
		t.Error("they are not stopped in order")
	}

	// zhxctl start is the unit where it is enabled, and zhxctl shutdown keeps systemd from starting it again.
	b.run(0, "systemctl", "enable", "zhx")
	out := b.run(2, "zhxctl", "start") // the file is invalid
	if !strings.Contains(out, "/etc/zhx/clients.toml:1") || !strings.Contains(out, "systemd tries again") {
		t.Errorf("zhxctl start, and the file is invalid:\n%s", out)
	}
	b.write("/etc/zhx/clients.toml", initsConfig)
	until(t, "systemd has tried again", active)
	b.run(0, "zhxctl", "start")
	b.run(0, "zhxctl", "shutdown")
	until(t, "it has ended", func() bool { return show("ActiveState") == "inactive" })
	b.nothing("zhxctl shutdown")
	if out := b.run(0, "zhxctl", "start"); !active() || !strings.Contains(out, fmt.Sprint("pid ", zhxd())) {
		t.Errorf("the unit is %s, its zhxd %d, and zhxctl start says %s", show("ActiveState"), zhxd(), out)
	}
	script("prerm", "remove")
	b.nothing("the package's removal")
	b.run(1, "systemctl", "is-enabled", "zhx")
	b.run(0, "systemctl", "enable", "--now", "zhx")
	b.write("/etc/zhx/clients.toml", "[client.a]\n")
	b.run(0, "sh", "-c", fmt.Sprint("kill -KILL ", zhxd()))
	until(t, "systemd has tried in vain", func() bool { n, _ := strconv.Atoi(show("NRestarts")); return n >= 2 })
	if out := b.run(0, "zhxctl", "shutdown"); !strings.Contains(out, "systemd was about to start it again") || show("ActiveState") == "activating" {
		t.Errorf("the unit is %s, and zhxctl shutdown says\n%s", show("ActiveState"), out)
	}

	// What systemctl answers to those who may not, and for as long as it takes.
	for _, said := range []string{"echo Access denied; exit 4", "echo Interactive authentication required.; exit 1"} { // without and with polkit
		os.WriteFile(b.mnt+"/systemctl", []byte("#!/bin/sh\n[ $1 != start ] || { "+said+"; }\n"), 0o755)
		if out := b.run(6, "env", "PATH=/mnt:/usr/local/bin:/usr/bin", "zhxctl", "start"); !strings.Contains(out, "sudo zhxctl start") {
			t.Errorf("systemctl is not permitted, and zhxctl start says\n%s", out)
		}
	}
	os.WriteFile(b.mnt+"/systemctl", []byte("#!/bin/sh\n[ $1 != start ] || exec sleep 100\n"), 0o755)
	if out := b.run(5, "env", "PATH=/mnt:/usr/local/bin:/usr/bin", "zhxctl", "--timeout", "300ms", "start"); !strings.Contains(out, "it goes on starting, under systemd") {
		t.Errorf("systemctl takes long, and zhxctl start says\n%s", out)
	}
}

// nothing checks that nothing of zhx is left.
func (b *boot) nothing(after string) {
	b.t.Helper()
	until(b.t, "all have ended after "+after, func() bool { return len(b.others()) == 0 })
	left, _ := filepath.Glob(b.path("/run/zhx/*.sock"))
	groups, _ := filepath.Glob(b.path("/sys/fs/cgroup/system.slice/zhx.service/*/cgroup.procs"))
	if len(left)+len(groups) > 0 {
		b.t.Errorf("after %s there are %q %q", after, left, groups)
	}
}

// inherits compares what a client has under the unit with what it should have, which is nothing of systemd's or zhxd's.
func (b *boot) inherits(zhxd, client int) {
	b.t.Helper()
	var names, open []string
	for _, v := range strings.Split(strings.TrimSuffix(b.proc(client, "environ"), "\x00"), "\x00") {
		name, _, _ := strings.Cut(v, "=")
		names = append(names, name)
		if strings.Contains("\x00"+b.proc(zhxd, "environ"), "\x00"+v+"\x00") && name != "PATH" && name != "LANG" {
			b.t.Errorf("the client has zhxd's %s", v)
		}
	}
	slices.Sort(names)
	files, _ := filepath.Glob(b.path(fmt.Sprintf("/proc/%d/fd/*", client)))
	for _, file := range files {
		to, _ := os.Readlink(file)
		open = append(open, filepath.Base(file)+" "+filepath.Base(filepath.Dir(to)))
	}
	space := func(pid int) (all string) {
		for _, kind := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup", "user"} {
			to, _ := os.Readlink(b.path(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)))
			all += to + " "
		}
		return all
	}
	stat := func(pid int) []string {
		_, after, _ := strings.Cut(b.proc(pid, "stat"), ") ")
		return append(strings.Fields(after), make([]string, 50)...)
	}
	field := func(pid int, name string) string {
		return strings.Join(strings.Fields(regexp.MustCompile(`(?m)^` + name + `:(.*)$`).FindString(b.proc(pid, "status")))[1:], " ")
	}
	limit := func(pid int, name string) string {
		f := strings.Fields(strings.TrimPrefix(regexp.MustCompile(`(?m)^`+name+` .*$`).FindString(b.proc(pid, "limits")), name))
		return strings.Join(f[:min(2, len(f))], " ")
	}
	score, hard := "-900", "524288"
	if caps, _ := strconv.ParseUint(field(1, "CapEff"), 16, 64); caps&(1<<unix.CAP_SYS_RESOURCE) == 0 { // in a container
		score = "0"
		_, hard, _ = strings.Cut(limit(1, "Max open files"), " ")
	}
	ignored, _ := strconv.ParseUint(field(client, "SigIgn"), 16, 64)
	for _, row := range []struct{ what, got, want string }{
		{"zhxd's oom_score_adj", strings.TrimSpace(b.proc(zhxd, "oom_score_adj")), score},
		{"zhxd's open files", strings.Fields(limit(zhxd, "Max open files"))[1], hard},
		{"environment", strings.Join(names, " "), "LANG NOTIFY_SOCKET PATH WATCHDOG_USEC ZHX_NAME ZHX_RUN ZHX_SOCKET"},
		{"descriptors", strings.Join(open, ", "), "0 dev, 1 state, 2 state"},
		{"oom_score_adj", strings.TrimSpace(b.proc(client, "oom_score_adj")), "0"},
		{"umask", field(client, "Umask"), "0022"},
		{"blocked signals", field(client, "SigBlk"), strings.Repeat("0", 16)},
		{"ignored signals", fmt.Sprintf("%016x", ignored&^(3<<31)), strings.Repeat("0", 16)}, // systemd's services ignore SIGPIPE, what glibc spawned (make) its own 32 and 33
		{"capabilities", field(client, "CapEff"), field(1, "CapEff")},
		{"capabilities to be had", field(client, "CapBnd"), field(1, "CapBnd")},
		{"ambient capabilities", field(client, "CapAmb"), strings.Repeat("0", 16)},
		{"no_new_privs", field(client, "NoNewPrivs"), "0"},
		{"seccomp", field(client, "Seccomp"), "0"},
		{"processors", field(client, "Cpus_allowed"), field(1, "Cpus_allowed")},
		{"uid", field(client, "Uid"), "0 0 0 0"},
		{"groups", field(client, "Groups"), field(zhxd, "Groups")},
		{"nice", stat(client)[16], "0"},
		{"policy of scheduling", stat(client)[38], "0"},
		{"terminal", stat(client)[4], "0"},
		{"namespaces", space(client), space(1)},
		{"open files", limit(client, "Max open files"), "1024 " + hard},
		{"processor time", limit(client, "Max cpu time"), "unlimited unlimited"},
		{"address space", limit(client, "Max address space"), "unlimited unlimited"},
		{"file size", limit(client, "Max file size"), "unlimited unlimited"},
		{"stack", limit(client, "Max stack size"), "8388608 unlimited"},
	} {
		if row.got != row.want {
			b.t.Errorf("under the unit, %s: %q, not %q", row.what, row.got, row.want)
		}
	}
	if own := b.proc(client, "cgroup"); !regexp.MustCompile(`(?m)^0::.*/system\.slice/zhx\.service/zhx-\d+-\d+/a$`).MatchString(own) {
		b.t.Errorf("the client's cgroup: %s", own)
	}
}

// openrcEnv is a folder with the usr of Debian's packages openrc, librc1 and libeinfo1: they are not for a machine with another init.
const openrcEnv = "ZHX_OPENRC"

// OpenRC, its init included, starts zhx as one of a runlevel.
func TestOpenRC(t *testing.T) {
	dir := os.Getenv(openrcEnv)
	if dir == "" {
		t.Skip("starts an OpenRC: make inits")
	}
	script, err := os.ReadFile("../etc/zhx.openrc")
	if err != nil {
		t.Fatal(err)
	}
	b := startInit(t, dir, map[string]string{
		"zhx/clients.toml":  initsConfig,
		"rc.conf":           "rc_sys=lxc\n",
		"runlevels/.keep":   "",
		"init.d/zhx":        string(script),
		"init.d/localmount": "#!/sbin/openrc-run\nstart() { :; }\n",
	}, "sh", "-c", "cd /etc/runlevels && mkdir sysinit boot default shutdown && rc-update add zhx default && exec openrc-init >/mnt/zhxd.log 2>&1")
	until(t, "OpenRC has started zhx", func() bool { _, code := b.try("rc-service", "zhx", "status"); return code == 0 })
	began, first := pids(t, b.sock()), status(t, b.sock()).Daemon.PID
	same := func(after string) {
		t.Helper()
		if now := pids(t, b.sock()); now["a"] != began["a"] || now["b"] != began["b"] || now["a"] == 0 {
			t.Errorf("after %s the clients are %v, and were %v", after, now, began)
		}
	}
	b.run(0, "rc-service", "zhx", "start")
	b.run(0, "sh", "-c", fmt.Sprint("kill -KILL ", first))
	until(t, "the keeper has started it again", func() bool {
		_, code := b.try("zhxctl", "status")
		return code == 0 && status(t, b.sock()).Daemon.PID != first
	})
	same("SIGKILL of zhxd")
	b.run(0, "zhxctl", "shutdown", "--keep")
	b.run(3, "rc-service", "zhx", "status")
	b.run(0, "zhxctl", "start")
	same("shutdown --keep and start")
	b.write("/etc/zhx/clients.toml", initsConfig+"[client.c]\ncommand = ['sleep', '"+long+"']\n")
	b.run(0, "rc-service", "zhx", "reload")
	until(t, "the reload has started c", func() bool { return pids(t, b.sock())["c"] != 0 })
	b.run(0, "rc-service", "zhx", "stop")
	b.run(3, "rc-service", "zhx", "status")
	b.write("/etc/zhx/clients.toml", "[client.a]\n")
	if out := b.run(1, "rc-service", "zhx", "start"); !strings.Contains(out, "/etc/zhx/clients.toml:1") {
		t.Errorf("the configuration is invalid, and it says\n%s", out)
	}
	if left := b.others(); len(left) > 0 {
		t.Errorf("after the stop there are %q", left)
	}
}
