package cmd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The main job, done by the board's binaries: zhxd, zhxctl and the prototype's own clients as 32-bit ARM programs under
// qemu-user, which the kernel runs them by (binfmt_misc, in a user namespace of its own: nothing of it reaches the machine).
//
// What qemu-user 7.2 does not do goes by zhxd's fallbacks, so these are what is tested here, beside the 32-bit code:
//
//	prctl PR_SET_CHILD_SUBREAPER   EINVAL            orphans are told by mark, cgroup, group and session
//	clone CLONE_PIDFD, clone3      EINVAL, ENOSYS    pidfd_open after the fork; cgroup.procs is written to
//	socket NETLINK_SOCK_DIAG       EPROTONOSUPPORT   /proc/net/tcp says whose a connection is; nobody, what a peer has not read
//	/proc/PID/exe                  is qemu's         copies of a client that nobody manages are not found
//	/proc/PID/wchan, syscall       are qemu's        the evidence of a hang names the host's system calls

const armEnv, nativeEnv = "ZHX_TEST_ARM", "ZHX_TEST_NATIVE" // the folders of the binaries, in the inner run

func TestARM(t *testing.T) {
	if arm := os.Getenv(armEnv); arm != "" {
		armBoard(t, arm, os.Getenv(nativeEnv)) // the inner run
		return
	}
	seed := os.Getenv("ZHX_SEED")
	if os.Getenv("ZHX_ARM") == "" {
		t.Skip("set ZHX_ARM=1, as make arm does: it builds everything for ARM")
	}
	if seed == "" {
		t.Skip("needs ZHX_SEED, the folder of the prototype's sources")
	}
	const gcc = "arm-linux-gnueabihf-gcc"
	for _, tool := range []string{gcc, "qemu-arm-static", "ps"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	arm, native := t.TempDir(), t.TempDir()
	for dir, env := range map[string][]string{arm: {"GOARCH=arm", "GOARM=7"}, native: nil} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "./zhxd", "./zhxctl", "./zhx-demo")
		build.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", build, err, out)
		}
	}
	for _, name := range []string{"client1", "client2"} { // as the prototype's build.sh does, but static: no ARM libraries are here
		cc := exec.Command(gcc, "-static", "-O2", "-w", "-o", filepath.Join(arm, name), name+".c", "socket.c", "-lpthread")
		cc.Dir = seed
		if out, err := cc.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cc, err, out)
		}
	}
	inside := exec.Command("/proc/self/exe", "-test.run=^TestARM$", "-test.v")
	inside.Env = append(os.Environ(), "ZHX_TEST_BIN="+arm, armEnv+"="+arm, nativeEnv+"="+native)
	inside.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	var out bytes.Buffer
	inside.Stdout, inside.Stderr = &out, &out
	if err := inside.Start(); err != nil {
		t.Skip("needs user namespaces: ", err)
	}
	if err := inside.Wait(); err != nil {
		t.Errorf("inside the namespace: %v", err)
	}
	if strings.Contains(out.String(), "--- SKIP: TestARM") {
		t.Skip(out.String())
	}
	t.Log(out.String())
}

func armBoard(t *testing.T, arm, native string) {
	ownProc(t)
	loopbackUp(t)
	runARM(t)
	conf := filepath.Join(t.TempDir(), "clients.toml")
	sock := filepath.Join(filepath.Dir(conf), "run/control.sock")
	edit := func(format string, args ...any) {
		t.Helper()
		if err := os.WriteFile(conf, fmt.Appendf(nil, format, args...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf(`
[daemon]
run_dir = "%s/run"
[client.client1]
command = ["%s/client1"]
tty = true # they buffer their output
[client.client2]
command = ["%[2]s/client2"]
tty = true
`, filepath.Dir(conf), arm)
	edit("%s", text)
	p := startZhxd(t, "--keeper", "--config", conf)
	// The steps of the prototype's transcript. A client waits for a second until it sends, which is less than another may need to
	// start here: so its first run may send to nobody.
	for _, names := range [][2]string{{"client1", "client2"}, {"client2", "client1"}} {
		me, other := names[0], names[1]
		forwarded, recv := fmt.Sprintf(`\[%s\] forwarded \(target=%s`, me, other), fmt.Sprintf(`\[%s\] \| \[%[1]s\] thread recv:msg="this message is from %s to %[1]s"`, other, me)
		again := p.await(0, 60*time.Second, `\[`+me+`\] started \(run=1 `, `\[`+me+`\] warn: lapse \(run=1 pid=\d+`,
			`\[`+me+`\] warn: killed by the watchdog \(run=1 .*restarts`, `\[`+me+`\] started \(run=2 `)
		p.await(0, 60*time.Second, forwarded, recv)
		p.await(again, 60*time.Second, forwarded)
	}

	// An edit is followed: the clients go on, the new one passes through a stage.
	from := len(p.log())
	edit("%s\n[defaults]\nwatchdog_timeout = \"30s\"\n[client.client3]\ncommand = [%q, \"client3\", \"client3\", \"200ms\"]\numask = \"0077\"\n", text, arm+"/zhx-demo")
	p.await(from, 60*time.Second, `\[client1\] configuration applied \(action=live`, `\[client2\] configuration applied \(action=live`,
		`\[client3\] started `, `\[client3\] forwarded \(target=client3`)
	before := pids(t, sock)
	if umask := statusField(t, fmt.Sprintf("/proc/%d/status", before["client3"]), "Umask"); umask != 0o77 {
		t.Errorf("umask %#o", umask)
	}
	for _, args := range [][]string{{"status"}, {"why", "client1"}, {"logs", "client1"}, {"send", "client3", "hello"}, {"restart", "client1"}} {
		ctl(t, sock, 0, args...)
	}

	// zhxd is killed: the keeper starts the next one, which adopts who can live without it.
	from = len(p.log())
	if err := syscall.Kill(p.pid(0), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await(from, 60*time.Second, `\] zhxd begins \(`, `\[client3\] adopted `, `\] ready \(`)
	for _, names := range [][2]string{{"client1", "client2"}, {"client2", "client1"}} { // the second time it sends, at the latest
		p.await(from, 60*time.Second, `\[`+names[0]+`\] started `, fmt.Sprintf(`\[%s\] \| \[%[1]s\] thread recv:msg="this message is from %s`, names[0], names[1]))
	}
	if pid := pids(t, sock)["client3"]; pid != before["client3"] {
		t.Errorf("adopted as pid %d, was %d", pid, before["client3"])
	}

	// It stops in order, and nothing is left.
	from = len(p.log())
	ctl(t, sock, 0, "shutdown")
	p.await(from, 20*time.Second, `\[client3\] stopped `, `\[client2\] stopped `, `\[client1\] stopped `, `\] zhxd has ended `)
	<-p.ended
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files { // of this pid namespace
		var pid int
		fmt.Sscanf(f, "/proc/%d/", &pid)
		if text, _ := os.ReadFile(f); pid != os.Getpid() && lives(pid) {
			t.Errorf("left behind: process %d, %q", pid, text)
		}
	}
	t.Log(armFigures(t, map[string]string{"armv7": arm, "amd64": native}))
}

// runARM has the kernel run ARM programs by qemu-user, in this user namespace alone. P: argv[0] is kept; F: qemu is opened now.
func runARM(t *testing.T) {
	t.Helper()
	qemu, err := exec.LookPath("qemu-arm-static")
	if err != nil {
		t.Fatal(err)
	}
	const at = "/proc/sys/fs/binfmt_misc"
	if err := unix.Mount("binfmt_misc", at, "binfmt_misc", 0, ""); err != nil {
		t.Skip("needs a binfmt_misc of its own (Linux 6.7): ", err)
	}
	magic := `\x7fELF\x01\x01\x01` + strings.Repeat(`\x00`, 9) + `\x02\x00\x28\x00` // 32 bits, little endian, executable, ARM
	mask := strings.Repeat(`\xff`, 7) + `\x00` + strings.Repeat(`\xff`, 12)         // of any ABI: gcc's have 3, Go's 0
	if err := os.WriteFile(at+"/register", []byte(":zhx-arm:M::"+magic+":"+mask+":"+qemu+":PF"), 0); err != nil {
		t.Fatal(err)
	}
}

// armFigures starts each zhxd with the same clients, and tells sizes and memory. A process under qemu-user is qemu itself, its
// tables and what it has translated, beside the 4 GiB that are the ARM program's: what lies in there is what a board would see.
func armFigures(t *testing.T, dirs map[string]string) string {
	const clients = 20
	outer := bin
	defer func() { bin = outer }()
	table := fmt.Sprintf("\nof binaries, bytes; of zhxd with %d sleeping clients, KiB: resident, what of it is the program's, what Go has taken, its heap\n", clients)
	table += fmt.Sprintf("%-6s %10s %10s %10s %10s %10s %10s %10s\n", "", "zhxd", "zhxctl", "zhx-demo", "VmRSS", "program's", "Go's", "heap")
	for _, arch := range []string{"armv7", "amd64"} {
		bin = dirs[arch]
		table += fmt.Sprintf("%-6s", arch)
		for _, name := range []string{"zhxd", "zhxctl", "zhx-demo"} {
			info, err := os.Stat(filepath.Join(bin, name))
			if err != nil {
				t.Fatal(err)
			}
			table += fmt.Sprintf(" %10d", info.Size())
		}
		p, sock := startBoard(t, clients)
		until(t, "all run", func() bool { return len(pids(t, sock)) == clients })
		time.Sleep(quietTime) // what is measured is what it needs afterwards
		pid := p.pid(0)
		rss := statusField(t, fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
		own := rss
		if arch == "armv7" {
			own = residentOf(t, pid, filepath.Join(bin, "zhxd"))
		}
		table += fmt.Sprintf(" %10d %10d", rss, own)
		for _, name := range []string{"go_memstats_sys_bytes", "go_memstats_heap_alloc_bytes"} {
			table += fmt.Sprintf(" %10.0f", figure(t, string(page(t, sock)), `(?m)^`+name+` ([0-9.e+]+)$`)/1024)
		}
		table += "\n"
		p.end()
	}
	return table
}

// residentOf is the memory in KiB of the ARM program in a process of qemu-user. Its addresses begin 64 KiB before its executable,
// which is linked to 0x10000.
func residentOf(t *testing.T, pid int, exe string) (kib int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	var first, start uint64
	area := regexp.MustCompile(`^([0-9a-f]+)-[0-9a-f]+ \S+ `)
	for line := range strings.Lines(string(maps)) {
		if m := area.FindStringSubmatch(line); m != nil {
			fmt.Sscanf(m[1], "%x", &start)
			if first == 0 && strings.Contains(line, exe) {
				first = start - 0x10000
			}
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && first != 0 && start-first < 1<<32 {
			kib += n
		}
	}
	if kib == 0 { // another qemu, which reads the file instead
		t.Logf("where the memory of %s is in process %d is not known", exe, pid)
	}
	return kib
}
