package cmd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The prototype's own clients, unmodified, live under zhxd: the transcript of the document that described the prototype,
// step by step, for both. Everything happens in a network and pid namespace of its own, so that 127.1.1.1:8000 is free and
// `ps -a | grep zhx_server`, by which the clients look for their server, sees this zhxd alone.
func TestPrototypeClients(t *testing.T) {
	if clients := os.Getenv("ZHX_TEST_CLIENTS"); clients != "" {
		prototypeTranscript(t, clients) // the inner run
		return
	}
	t.Parallel() // with others that wait most of the time
	seed := os.Getenv("ZHX_SEED")
	if seed == "" {
		t.Skip("needs ZHX_SEED, the folder of the prototype's sources")
	}
	for _, tool := range []string{"gcc", "ps"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs " + tool)
		}
	}
	clients := t.TempDir()
	if out, err := exec.Command(filepath.Join(seed, "build.sh"), clients).CombinedOutput(); err != nil {
		t.Fatalf("build the prototype's clients: %v\n%s", err, out)
	}
	inside := exec.Command("/proc/self/exe", "-test.run=^TestPrototypeClients$", "-test.v")
	inside.Env = append(os.Environ(), "ZHX_TEST_BIN="+bin, "ZHX_TEST_CLIENTS="+clients)
	inside.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
	}
	if uid := os.Getuid(); uid != 0 {
		inside.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		inside.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
	}
	var out bytes.Buffer
	inside.Stdout, inside.Stderr = &out, &out
	if err := inside.Start(); err != nil {
		t.Skip("needs root or user namespaces: ", err)
	}
	if err := inside.Wait(); err != nil {
		t.Errorf("inside the namespace: %v", err)
	}
	t.Log(out.String())
}

func prototypeTranscript(t *testing.T, clients string) {
	ownProc(t)
	loopbackUp(t)
	conf := write(t, "clients.toml", fmt.Sprintf(`
[daemon]
run_dir = %q
[defaults]
tty = true # they buffer their output
[client.client1]
command = [%q]
[client.client2]
command = [%q]
`, t.TempDir()+"/run", clients+"/client1", clients+"/client2"))
	began := time.Now()
	p := startZhxd(t, "--keeper", "--config", conf)
	transcript(p, 0, 1)
	elapsed := time.Since(began)
	zhxd := p.pid(0)
	share := processorTime(t, zhxd).Seconds() / elapsed.Seconds()
	t.Logf("zhxd used %.2f %% of a core over %.1f s", share*100, elapsed.Seconds())
	if share >= 0.01 {
		t.Errorf("zhxd used %.2f %% of a core, at most 1 %% is right", share*100)
	}

	// Killed, it is back within a second, and the transcript goes on.
	from := len(p.log())
	began = time.Now()
	if err := syscall.Kill(zhxd, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await(from, 10*time.Second, `\] zhxd begins \(`, `\] ready \(`)
	t.Logf("zhxd was back %v after kill -9", time.Since(began))
	if back := time.Since(began); back > time.Second {
		t.Errorf("zhxd was back only %v after kill -9", back)
	}
	transcript(p, from, 3)
}

// transcript waits for each step of the document's transcript, for both clients, from that run on.
func transcript(p *program, from, run int) {
	p.t.Helper()
	for _, names := range [][2]string{{"client1", "client2"}, {"client2", "client1"}} {
		me, other := names[0], names[1]
		up := p.await(from, 40*time.Second,
			fmt.Sprintf(`\[%s\] started \(run=%d `, me, run),
			fmt.Sprintf(`\[%s\] \| \[%[1]s\] Creating recv thread`, me))
		forwarded := p.await(up, 40*time.Second, fmt.Sprintf(`\[%s\] forwarded \(target=%s`, me, other))
		received := p.await(up, 40*time.Second, fmt.Sprintf(`\[%s\] \| \[%[1]s\] thread recv:msg="this message is from %s to %[1]s"`, other, me)) // it may be the quicker one
		p.await(max(forwarded, received), 40*time.Second,
			fmt.Sprintf(`\[%s\] warn: lapse \(run=%d pid=\d+`, me, run),
			fmt.Sprintf(`\[%s\] warn: killed by the watchdog \(run=%d .*restarts`, me, run),
			fmt.Sprintf(`\[%s\] started \(run=%d `, me, run+1),
			fmt.Sprintf(`\[%s\] \| \[%[1]s\] Creating recv thread`, me),
			fmt.Sprintf(`\[%s\] forwarded \(target=%s`, me, other))
	}
}

// processorTime is what all threads of a process have run, from schedstat (nanoseconds), not from 10 ms ticks.
func processorTime(t *testing.T, pid int) (sum time.Duration) {
	t.Helper()
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if len(stats) == 0 {
		t.Fatal("no schedstat of zhxd")
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // that thread has ended
		}
		var ns int64
		fmt.Sscan(string(b), &ns)
		sum += time.Duration(ns)
	}
	return sum
}

// ownProc mounts the new pid namespace's /proc over the old one, for this mount namespace alone.
func ownProc(t *testing.T) {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal("make mounts private: ", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatal("mount /proc: ", err)
	}
}

func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal("lo up: ", err)
	}
}
