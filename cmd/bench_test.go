package cmd

import (
	"context"
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

	"zhx/ipc"
)

// These benchmarks hold zhxd against physical limits: a relay of one epoll thread that parses nothing, and a bare loop of
// vfork and exec. Each figure is a ratio of medians, taken in turns on the same machine in the same minute. They need gcc,
// taskset and the yardsticks' C sources in $ZHX_BENCH (default: the folder bench beside $ZHX_SEED).
//
//	go test -run '^$' -bench 'Forward|Stuck|Respawn' ./cmd

const turns = 5

func BenchmarkForwardPinned(b *testing.B) { benchForward(b, "taskset", "-c", "0") }
func BenchmarkForward(b *testing.B)       { benchForward(b) }

func benchForward(b *testing.B, pin ...string) {
	y := yardsticks(b)
	dir := b.TempDir()
	relay := start(b, pin, filepath.Join(y, "relay"), "unix:"+dir+"/relay.sock")
	defer relay()
	zhx := startBroker(b, pin, dir, "")
	load := func(proto, sock string, args ...string) string {
		cmd := exec.Command(filepath.Join(y, "load"), append([]string{proto, "unix:" + sock}, args...)...)
		if len(pin) > 0 {
			cmd = exec.Command(pin[0], append(append(slices.Clone(pin[1:]), cmd.Path), cmd.Args[1:]...)...)
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %v\n%s", cmd.Args, err, out) // a lost message is an error too
		}
		return string(out)
	}
	var rtt, relayRTT, tput, relayTput []float64
	for range turns {
		rtt = append(rtt, figure(b, load("zhx", zhx, "rtt", "-n", "20000"), `p50 ([0-9.]+)`))
		relayRTT = append(relayRTT, figure(b, load("raw", dir+"/relay.sock", "rtt", "-n", "20000"), `p50 ([0-9.]+)`))
		tput = append(tput, figure(b, load("zhx", zhx, "tput", "-n", "2000000", "-b", "64"), `msg/s ([0-9.]+)`))
		relayTput = append(relayTput, figure(b, load("raw", dir+"/relay.sock", "tput", "-n", "2000000", "-b", "64"), `msg/s ([0-9.]+)`))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rtt), "rtt_us")
	b.ReportMetric(median(rtt)/median(relayRTT), "rtt/relay")
	b.ReportMetric(median(tput), "msg/s")
	b.ReportMetric(median(tput)/median(relayTput), "msg/relay")
}

// BenchmarkStuck: a pair's throughput while a receiver that never reads is sent 1,000 messages a second, against its
// throughput without, and how much zhxd's memory grew meanwhile.
func BenchmarkStuck(b *testing.B) {
	y := yardsticks(b)
	sock := startBroker(b, nil, b.TempDir(), "")
	pid := zhxdPID
	pair := func() float64 {
		out, err := exec.Command(filepath.Join(y, "load"), "zhx", "unix:"+sock, "tput", "-n", "1000000", "-b", "8").CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		return figure(b, string(out), `msg/s ([0-9.]+)`)
	}
	stuck, err := ipc.Dial(context.Background(), sock)
	if err != nil {
		b.Fatal(err)
	}
	defer stuck.Close()
	if err := stuck.Register("stuck"); err != nil {
		b.Fatal(err)
	}
	sender, err := ipc.Dial(context.Background(), sock)
	if err != nil {
		b.Fatal(err)
	}
	defer sender.Close()
	sender.As("sender")

	var with, without []float64
	pair() // warms up
	rss := memory(b, pid)
	for range turns {
		without = append(without, pair())
		ctx, cancel := context.WithCancel(context.Background())
		flooding := make(chan struct{})
		go func() {
			defer close(flooding)
			for tick := time.Tick(time.Millisecond); ctx.Err() == nil; <-tick {
				sender.Send("stuck", "never read")
			}
		}()
		with = append(with, pair())
		cancel()
		<-flooding
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(with)/median(without), "with/without")
	b.ReportMetric(float64(memory(b, pid)-rss), "growth_KiB")
}

// BenchmarkRespawn: from a child's SIGKILL to its successor's first instruction, against a bare loop of vfork and exec.
func BenchmarkRespawn(b *testing.B) {
	y := yardsticks(b)
	dir := b.TempDir()
	measure := func(sock string, supervise func() (end func())) float64 {
		cmd := exec.Command(filepath.Join(y, "respawn"), sock, "100")
		ready, err := cmd.StderrPipe()
		if err != nil {
			b.Fatal(err)
		}
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := ready.Read(make([]byte, 16)); err != nil { // "ready": its socket is there
			b.Fatal(err)
		}
		end := supervise()
		err = cmd.Wait()
		end()
		if err != nil {
			b.Fatalf("respawn: %v %s", err, out.String())
		}
		return figure(b, out.String(), `p50 ([0-9.]+)`)
	}
	var ours, bare []float64
	for i := range turns {
		sock := fmt.Sprintf("%s/bare%d", dir, i)
		bare = append(bare, measure(sock, func() func() {
			return start(b, nil, filepath.Join(y, "forkloop"), filepath.Join(y, "beacon"), sock)
		}))
		sock = fmt.Sprintf("%s/zhx%d", dir, i)
		ours = append(ours, measure(sock, func() func() {
			run := b.TempDir()
			startBroker(b, nil, run, fmt.Sprintf("[client.beacon]\ncommand = [%q, %q]\nstable_after = \"10ms\"\n", filepath.Join(y, "beacon"), sock))
			return endBroker
		}))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours), "ms")
	b.ReportMetric(median(bare), "bare_ms")
	b.ReportMetric(median(ours)/median(bare), "ms/bare")
}

// yardsticks builds the C programs.
func yardsticks(b *testing.B) string {
	b.Helper()
	src := os.Getenv("ZHX_BENCH")
	if src == "" && os.Getenv("ZHX_SEED") != "" {
		src = filepath.Join(os.Getenv("ZHX_SEED"), "../bench")
	}
	if src == "" {
		b.Skip("needs ZHX_BENCH, the folder of the yardsticks' C sources")
	}
	for _, tool := range []string{"gcc", "taskset"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skip("needs " + tool)
		}
	}
	dir := b.TempDir()
	for _, name := range []string{"load", "relay", "respawn", "beacon", "forkloop"} {
		args := []string{"-O2", "-w", "-o", filepath.Join(dir, name), filepath.Join(src, name+".c"), "-lpthread"}
		if name == "beacon" || name == "forkloop" {
			args = append(args, "-static")
		}
		if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
			b.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return dir
}

// start runs a program until the returned func is called.
func start(b *testing.B, pin []string, path string, args ...string) (end func()) {
	b.Helper()
	argv := append(append(slices.Clone(pin), path), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // and what it started
		cmd.Wait()
	}
}

var (
	zhxdPID   int
	endBroker func()
)

// startBroker runs zhxd with these clients and returns its data socket when it is ready. It ends with the benchmark.
func startBroker(b *testing.B, pin []string, dir, clients string) (sock string) {
	b.Helper()
	conf := filepath.Join(dir, "clients.toml")
	text := fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \":0\"\nprototype_presence = false\n%s", dir+"/run", clients)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	argv := append(slices.Clone(pin), filepath.Join(bin, "zhxd"), "--config", conf)
	cmd := exec.Command(argv[0], argv[1:]...)
	log, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	zhxdPID = cmd.Process.Pid
	p := &program{Cmd: cmd, ended: make(chan struct{}), more: make(chan struct{})}
	go func() {
		p.read(log)
		cmd.Wait()
		close(p.ended)
	}()
	ended := false
	endBroker = func() {
		if !ended {
			ended = true
			cmd.Process.Signal(os.Interrupt)
			<-p.ended
		}
	}
	b.Cleanup(endBroker)
	for deadline := time.After(10 * time.Second); ; {
		p.mu.Lock()
		more, ready := p.more, slices.ContainsFunc(p.lines, func(l string) bool { return strings.Contains(l, "] ready (") })
		p.mu.Unlock()
		if ready {
			return dir + "/run/zhx.sock"
		}
		select {
		case <-more:
		case <-p.ended:
			b.Fatalf("zhxd ended: %v", p.log())
		case <-deadline:
			b.Fatal("zhxd is not ready within 10 s")
		}
	}
}

func figure(b *testing.B, out, pattern string) float64 {
	b.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if m == nil {
		b.Fatalf("no %s in %q", pattern, out)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// memory is a process's resident memory in KiB.
func memory(b *testing.B, pid int) int {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	return int(figure(b, string(status), `VmRSS:\s+([0-9]+)`))
}
