package cmd

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"zhx/daemon/control"
)

// rounds is how often a story is repeated: few in an ordinary run, ZHX_ROUNDS where somebody wants to know.
func rounds(t *testing.T, few int) int {
	t.Helper()
	if s := os.Getenv("ZHX_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("ZHX_ROUNDS: %v", err)
		}
		return n
	}
	return few
}

const (
	loggers = 20
	lines   = 10000 // of each: what fits into a log file that is not rotated
)

// zhxd is killed while clients print as fast as they can: the next one is back within a second and has adopted them, no pid
// has changed, no line is lost, and all goes on under it.
func TestCrash(t *testing.T) {
	for range rounds(t, 2) {
		crash(t)
	}
}

func crash(t *testing.T) {
	dir := t.TempDir()
	var conf strings.Builder
	fmt.Fprintf(&conf, "[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n", dir+"/run")
	for i := range loggers {
		fmt.Fprintf(&conf, "[client.c%d]\nlog_file = \"%[2]s/c%[1]d.log\"\ncommand = ['sh', '-c', 'i=0; while [ $$i -lt %[3]d ]; do echo line $$i; i=$$((i+1)); done; exec sleep 1000']\n", i, dir, lines)
	}
	conf.WriteString("[client.talker]\ncommand = ['zhx-demo', 'talker', 'talker', '500ms']\n")
	p := startZhxd(t, "--keeper", "--config", write(t, "clients.toml", conf.String()))
	p.await(0, 30*time.Second, `\] ready \(`)
	sock := dir + "/run/control.sock"
	until(t, "the talker is connected", func() bool { return client(t, sock, "talker").Connected })
	before := pids(t, sock)
	if len(before) != loggers+1 {
		t.Fatalf("%d clients run", len(before))
	}
	zhxd := p.pid(0)
	until(t, "some have printed a part", func() bool { // at random: a part of that part
		st, err := os.Stat(dir + "/c0.log")
		return err == nil && st.Size() > rand.Int64N(200<<10)
	})
	from, killed := len(p.log()), time.Now()
	syscall.Kill(zhxd, syscall.SIGKILL)
	p.await(from, 10*time.Second, `\] ready \(`)
	back := time.Since(killed)
	t.Logf("back and ready after %v", back.Round(time.Millisecond))
	if back > time.Second {
		t.Errorf("back only after %v", back)
	}
	for name, pid := range pids(t, sock) {
		if before[name] != pid {
			t.Errorf("%s: pid %d before the crash, %d after it\n%s", name, before[name], pid, p.log()[from:])
		}
	}
	until(t, "the talker is connected again", func() bool { return client(t, sock, "talker").Connected })
	for i := range loggers {
		until(t, "all is printed", func() bool { return strings.Contains(printed(dir, i), fmt.Sprintf("line %d\n", lines-1)) })
		seen := map[string]bool{}
		for line := range strings.Lines(printed(dir, i)) {
			_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			seen[text] = true
		}
		for n := range lines {
			if !seen[fmt.Sprint("line ", n)] {
				t.Errorf("c%d: line %d is lost", i, n)
				break
			}
		}
	}
	if st := client(t, sock, "talker"); st.Restarts != 0 || !st.Adopted {
		t.Errorf("the talker: %d restarts, adopted %t", st.Restarts, st.Adopted)
	}

	// It manages them on: stop, restart, and a death.
	ctl(t, sock, 0, "stop", "c1")
	ctl(t, sock, 0, "restart", "c2")
	if lives(before["c1"]) || lives(before["c2"]) {
		t.Error("stopped and restarted clients live on")
	}
	syscall.Kill(before["c3"], syscall.SIGKILL)
	until(t, "c3 is restarted", func() bool { pid := client(t, sock, "c3").PID; return pid != nil && *pid != before["c3"] })
	if last := client(t, sock, "c3").LastExit; last == nil || last.Reason != "unknown" {
		t.Errorf("the end of a client that is not zhxd's child: %+v", last)
	}
	ctl(t, sock, 0, "shutdown")
	for name, pid := range before {
		if lives(pid) {
			t.Errorf("%s lives after the shutdown", name)
		}
	}
}

// zhxd is killed at each point of a start: exactly one instance lives afterwards.
func TestCrashPoints(t *testing.T) {
	for i := range rounds(t, 1) {
		for _, point := range []string{"before-fork", "after-fork", "before-record"} {
			dir := t.TempDir()
			mark := fmt.Sprintf("%d.%d%d", 100000+i, len(point), os.Getpid())
			conf := write(t, "clients.toml", fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n[client.c]\ncommand = ['sleep', '%s']\n", dir+"/run", mark))
			first := exec.Command(filepath.Join(bin, "zhxd"), "--config", conf)
			first.Env = append(os.Environ(), "ZHX_FAILPOINT="+point)
			if err := first.Run(); err == nil || first.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: %v", point, err)
			}
			p := startZhxd(t, "--config", conf)
			p.await(0, 10*time.Second, `\] ready \(`)
			until(t, point+": there is one instance", func() bool { return instances(mark) == 1 }) // exec answers a moment before /proc shows it
			ctl(t, dir+"/run/control.sock", 0, "shutdown")
			if n := instances(mark); n != 0 {
				t.Errorf("%s: %d instances after the shutdown\n%s", point, n, p.log())
			}
		}
	}
}

// shutdown --keep ends zhxd alone; the next one goes on where it was.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	conf := write(t, "clients.toml", fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n[client.a]\ncommand = ['sleep', '%s']\n[client.t]\ntty = true\ncommand = ['sleep', '%[2]s']\n", dir+"/run", long))
	p := startZhxd(t, "--config", conf)
	p.await(0, 10*time.Second, `\] ready \(`)
	sock := dir + "/run/control.sock"
	before := pids(t, sock)
	ctl(t, sock, 0, "shutdown", "--keep")
	if !lives(before["a"]) || lives(before["t"]) {
		t.Error("a is to live, t with its terminal is not")
	}
	p = startZhxd(t, "--config", conf)
	p.await(0, 10*time.Second, `\[a\] adopted \(`, `\] ready \(`)
	if after := pids(t, sock); after["a"] != before["a"] {
		t.Errorf("pid %d, then %d", before["a"], after["a"])
	}
	ctl(t, sock, 0, "shutdown")
}

// lives tells of a process that is more than a zombie: who is no child of zhxd's may have a parent that does not look.
func lives(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, ok := strings.Cut(string(b), ") ")
	return ok && after[0] != 'Z'
}

// instances counts the processes that have mark as an argument of their own.
func instances(mark string) (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if b, _ := os.ReadFile(f); strings.Contains(string(b), "\x00"+mark+"\x00") {
			n++
		}
	}
	return n
}

// printed is what a logger's file and its older one have.
func printed(dir string, i int) string {
	files, _ := filepath.Glob(fmt.Sprintf("%s/c%d*.log", dir, i))
	var all strings.Builder
	for _, f := range files {
		if base := filepath.Base(f); base == fmt.Sprintf("c%d.log", i) || strings.HasPrefix(base, fmt.Sprintf("c%d-", i)) {
			b, _ := os.ReadFile(f)
			all.Write(b)
		}
	}
	return all.String()
}

func status(t *testing.T, sock string) (st control.Status) {
	t.Helper()
	out, err := exec.Command(filepath.Join(bin, "zhxctl"), "--control", sock, "status", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return st
}

func client(t *testing.T, sock, name string) control.ClientStatus {
	t.Helper()
	for _, c := range status(t, sock).Clients {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no client %s", name)
	return control.ClientStatus{}
}

func pids(t *testing.T, sock string) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, c := range status(t, sock).Clients {
		if c.PID != nil {
			all[c.Name] = *c.PID
		}
	}
	return all
}

// ctl runs zhxctl, which has to end with that code.
func ctl(t *testing.T, sock string, code int, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "zhxctl"), append([]string{"--control", sock}, args...)...)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("zhxctl %s: exit code %d\n%s", strings.Join(args, " "), got, out)
	}
	return string(out)
}

// until waits for something outside that no event tells of.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	if !comesTrue(30*time.Second, holds) {
		t.Fatalf("not within 30 s: %s", what)
	}
}
