package cmd

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc"
)

// These benchmarks hold zhxd against physical limits: a relay of one epoll thread that parses nothing, and a bare loop of
// vfork and exec; and against other brokers, where they are installed. Each figure is a median of runs in turns on the same
// machine in the same minute. They need gcc, taskset and the yardsticks' C sources in $ZHX_BENCH (default: the folder bench
// beside $ZHX_SEED).
//
//	go test -run '^$' -bench 'Forward|Stuck|Respawn' ./cmd

const turns = 5

func BenchmarkForwardPinned(b *testing.B) { benchForward(b, "taskset", "-c", "0") }
func BenchmarkForward(b *testing.B)       { benchForward(b) }

// policy has zhxd ask, hold and account for all that the loads send: their names are those of two clients.
const policy = `identity = "warn"
[defaults]
strays = "ignore"
may_send_to = ["ping", "pong", "a*", "b*"]
may_receive_from = ["ping", "pong", "a*", "b*"]
[client.left]
command = ["sleep", "1000"]
names = ["a0000000", "a", "ping"]
[client.right]
command = ["sleep", "1000"]
names = ["b0000000", "b", "pong"]
`

// entrant is a broker, or a way through one. Its loads may be nil. The yardsticks' load has a connection to send and another to
// receive; both protocols of zhx are compared by load2, where each side has one.
type entrant struct {
	name      string
	rtt, tput []string
	foreign   bool // what it loses is not our failure
	us, rate  []float64
}

func benchForward(b *testing.B, pin ...string) {
	y := yardsticks(b)
	dir := b.TempDir()
	load, load2, relay, mib8 := y+"/load", y+"/load2", dir+"/relay.sock", strconv.Itoa(8<<20)
	b.Cleanup(start(b, pin, y+"/relay", "unix:"+relay))
	await(b, "unix", relay)
	zhx := startBroker(b, pin, dir, policy).sock
	all := []*entrant{
		{name: "relay", rtt: []string{load, "raw", "unix:" + relay, "rtt", "-n", "20000"}, tput: []string{load, "raw", "unix:" + relay, "tput", "-n", "2000000", "-b", "64"}},
		{name: "zhx, protocol 1", rtt: []string{load, "zhx", "unix:" + zhx, "rtt", "-n", "20000"}, tput: []string{load, "zhx", "unix:" + zhx, "tput", "-n", "2000000", "-b", "64"}},
		{name: "zhx, 1, one connection", rtt: []string{load2, "1", zhx, "rtt", "20000"}, tput: []string{load2, "1", zhx, "tput", "2000000", "64"}},
		{name: "zhx, 2, one connection", rtt: []string{load2, "2", zhx, "rtt", "20000"}, tput: []string{load2, "2", zhx, "tput", "2000000", "64"}},
		{name: "zhx, 2, 8 MiB by memfd", rtt: []string{load2, "2", zhx, "memfd", "20000", mib8}},
		{name: "the same, and mapped", rtt: []string{load2, "2", zhx, "mapped", "20000", mib8}},
	}
	if len(pin) > 0 {
		all = append(all, others(b, pin, y, dir)...)
	}
	for range turns {
		for _, e := range all {
			for _, of := range []struct {
				argv    []string
				pattern string
				into    *[]float64
			}{{e.rtt, `p50 ([0-9.]+)`, &e.us}, {e.tput, `msg/s ([0-9.]+)`, &e.rate}} {
				if of.argv == nil {
					continue
				}
				out, err := run(append(slices.Clone(pin), of.argv...)...)
				if err == nil {
					*of.into = append(*of.into, figure(b, out, of.pattern))
				} else if !e.foreign {
					b.Fatalf("%v: %v\n%s", of.argv, err, out) // a lost message is an error too
				}
			}
		}
	}
	fmt.Printf("\n%-23s %8s %8s %10s %8s\n", b.Name()[len("Benchmark"):], "rtt us", "/relay", "msg/s", "/relay") // b.Log would cut it
	for _, e := range all {
		row := fmt.Sprintf("%-23s %8.1f %8.2f %10.0f %8.2f", e.name,
			median(e.us), median(e.us)/median(all[0].us), median(e.rate), median(e.rate)/median(all[0].rate))
		fmt.Println(strings.ReplaceAll(row, "NaN", "  -"))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(all[1].us)/median(all[0].us), "rtt1/relay")
	b.ReportMetric(median(all[1].rate)/median(all[0].rate), "msg1/relay")
	b.ReportMetric(median(all[3].us)/median(all[2].us), "rtt2/rtt1")
	b.ReportMetric(median(all[3].rate)/median(all[2].rate), "msg2/msg1")
	b.ReportMetric(median(all[4].us)/median(all[3].us), "memfd/rtt2")
	for _, e := range all[6:] {
		name, _, _ := strings.Cut(e.name, ",")
		b.ReportMetric(median(all[1].rate)/median(e.rate), "msg1/"+name)
	}
}

// others starts the other brokers that are installed, and says which are not.
func others(b *testing.B, pin []string, y, dir string) (all []*entrant) {
	port := func() string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	}
	file := func(name, text string) string {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		return dir + "/" + name
	}
	nats, mqtt, redis, bus := port(), port(), dir+"/redis.sock", dir+"/bus.sock"
	for _, o := range []struct {
		program, network, address, proto, count string
		args                                    []string
	}{
		{"nats-server", "tcp", "127.0.0.1:" + nats, "nats", "400000", []string{"-a", "127.0.0.1", "-p", nats}},
		{"redis-server", "unix", redis, "redis", "400000", []string{file("redis.conf", "port 0\nunixsocket "+redis+"\nsave \"\"\nlogfile /dev/null\nclient-output-buffer-limit pubsub 0 0 0\n")}},
		{"mosquitto", "tcp", "127.0.0.1:" + mqtt, "mqtt", "100000", []string{"-c", file("mosquitto.conf", "listener "+mqtt+" 127.0.0.1\nallow_anonymous true\nuser root\nset_tcp_nodelay true\nmax_queued_messages 0\nlog_dest none\n")}},
		{"dbus-daemon", "unix", bus, "dbus", "64000", []string{"--nofork", "--config-file=" + file("bus.conf", "<busconfig><type>session</type><listen>unix:path="+bus+"</listen><auth>EXTERNAL</auth>"+
			`<policy context="default"><allow send_destination="*"/><allow eavesdrop="true"/><allow own="*"/></policy><limit name="max_outgoing_bytes">1000000000</limit></busconfig>`)}},
	} {
		path, err := exec.LookPath(o.program)
		if err != nil {
			path, err = exec.LookPath("/usr/sbin/" + o.program)
		}
		if err != nil {
			fmt.Println("not installed, so not in the table:", o.program)
			continue
		}
		b.Cleanup(start(b, pin, path, o.args...))
		await(b, o.network, o.address)
		e := &entrant{name: o.program + ", " + o.network, foreign: true}
		if o.proto == "dbus" { // load does not speak it
			e.rtt, e.tput = []string{y + "/load2", o.proto, bus, "rtt", "5000"}, []string{y + "/load2", o.proto, bus, "tput", o.count, "64"}
		} else {
			at := o.network + ":" + o.address
			e.rtt, e.tput = []string{y + "/load", o.proto, at, "rtt", "-n", "5000"}, []string{y + "/load", o.proto, at, "tput", "-n", o.count, "-b", "64"}
		}
		all = append(all, e)
	}
	return all
}

// await waits until somebody listens, which no event tells.
func await(tb testing.TB, network, address string) {
	tb.Helper()
	if !comesTrue(10*time.Second, func() bool {
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
		}
		return err == nil
	}) {
		tb.Fatalf("nobody listens on %s", address)
	}
}

// run runs a program to its end.
func run(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

// BenchmarkStuck: a pair's throughput while a receiver that never reads is sent 1,000 messages a second, against its
// throughput without, and how much zhxd's memory grew meanwhile.
func BenchmarkStuck(b *testing.B) {
	y := yardsticks(b)
	z := startBroker(b, nil, b.TempDir(), "")
	sock, pid := z.sock, z.pid
	pair := func() float64 {
		out, err := exec.Command(filepath.Join(y, "load"), "zhx", "unix:"+sock, "tput", "-n", "1000000", "-b", "8").CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		return figure(b, string(out), `msg/s ([0-9.]+)`)
	}
	stuck, err := ipc.DialPackets(context.Background(), sock)
	if err != nil {
		b.Fatal(err)
	}
	defer stuck.Close()
	if err := stuck.Register("stuck"); err != nil {
		b.Fatal(err)
	}
	sender, err := ipc.DialPackets(context.Background(), sock)
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
			z := startBroker(b, nil, inMemory(b), fmt.Sprintf("[client.beacon]\ncommand = [%q, %q]\nstable_after = \"10ms\"\n", filepath.Join(y, "beacon"), sock))
			return z.end
		}))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours), "ms")
	b.ReportMetric(median(bare), "bare_ms")
	b.ReportMetric(median(ours)/median(bare), "ms/bare")
}

// inMemory makes a directory that is on a tmpfs, as /run is on a board: in a disk's file system a FIFO or a socket that is made
// waits for the journal, and for all that others write.
func inMemory(b *testing.B) string {
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		b.Skipf("needs a tmpfs at /dev/shm: %v", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "zhx")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
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
		var static []string
		if name == "beacon" || name == "forkloop" {
			static = []string{"-static"}
		}
		compile(b, dir, filepath.Join(src, name+".c"), static...)
	}
	compile(b, dir, "testdata/load2.c")
	return dir
}

// compile builds a program of one C source into dir, and returns its path.
func compile(tb testing.TB, dir, src string, args ...string) (path string) {
	tb.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		tb.Skip("needs gcc")
	}
	path = filepath.Join(dir, strings.TrimSuffix(filepath.Base(src), ".c"))
	if out, err := run(append([]string{"gcc", "-O2", "-w", "-o", path, src, "-lpthread"}, args...)...); err != nil {
		tb.Fatalf("build %s: %v\n%s", src, err, out)
	}
	return path
}

// start runs a program until the returned func is called.
func start(tb testing.TB, pin []string, path string, args ...string) (end func()) {
	tb.Helper()
	argv := append(append(slices.Clone(pin), path), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL} // it ends with the test, however that does
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	return func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // and what it started
		cmd.Wait()
	}
}

// broker is a zhxd that is ready.
type broker struct {
	sock, control string
	pid           int
	end           func()
}

// startBroker runs zhxd in dir with these lines of [daemon] and clients. It ends with the test.
func startBroker(tb testing.TB, pin []string, dir, lines string) broker {
	tb.Helper()
	conf := filepath.Join(dir, "clients.toml")
	text := fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n%s", dir+"/run", lines)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
	argv := append(slices.Clone(pin), filepath.Join(bin, "zhxd"), "--config", conf)
	cmd := exec.Command(argv[0], argv[1:]...)
	log, err := cmd.StderrPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	p := &program{Cmd: cmd, ended: make(chan struct{}), more: make(chan struct{})}
	go func() {
		p.read(log)
		cmd.Wait()
		close(p.ended)
	}()
	end := sync.OnceFunc(func() {
		cmd.Process.Signal(os.Interrupt)
		<-p.ended
	})
	tb.Cleanup(end)
	for deadline := time.After(30 * time.Second); ; {
		p.mu.Lock()
		more, ready := p.more, slices.ContainsFunc(p.lines, func(l string) bool { return strings.Contains(l, "] ready (") })
		p.mu.Unlock()
		if ready {
			return broker{sock: dir + "/run/zhx.sock", control: dir + "/run/control.sock", pid: cmd.Process.Pid, end: end}
		}
		select {
		case <-more:
		case <-p.ended:
			tb.Fatalf("zhxd ended: %v", p.log())
		case <-deadline:
			tb.Fatal("zhxd is not ready within 30 s")
		}
	}
}

func figure(b testing.TB, out, pattern string) float64 {
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

// median of no figures is no number.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// memory is a process's resident memory in KiB.
func memory(tb testing.TB, pid int) int { return memoryField(tb, pid, "VmRSS") }

func memoryField(tb testing.TB, pid int, field string) int {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	return int(figure(tb, string(status), field+`:\s+([0-9]+)`))
}
