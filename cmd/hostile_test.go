package cmd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc"
	"zhx/ipc/wire"
)

// A user without rights tries what testdata/hostile.py has, against a zhxd that runs as root, with clients under uids of their own.
// What each attempt met is the table in etc/doc/hostile.md, which -update rewrites.

const (
	hostileUID  = 65534
	newcomerUID = 2
	hostilePage = "../etc/doc/hostile.md"

	hostileFiles   = 1024                   // open files that zhxd may have: half of them for connections, half of those for one user
	hostileTrip    = 500 * time.Millisecond // p99 of the innocent pairs, while ten processes of the attacker want the processors
	hostileMemory  = 128 << 10              // KiB of zhxd at the most
	hostileThreads = 128
	hostileLines   = 60 // of zhxd's log a second

	innocentArg = "role-innocent"
)

type attempt struct{ Attempt, Transport, Met string }

func TestHostile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for clients and attackers of other users")
	}
	python := "/usr/bin/python3" // what is in $PATH may be root's alone
	if _, err := os.Stat(python); err != nil {
		t.Skipf("needs python3 for every user: %v", err)
	}
	machine := worstTimer(t)
	h := startHostile(t, python)
	var rows []attempt
	for _, stage := range []string{"names", "signals", "read", "shares", "flood"} {
		began, from := time.Now(), len(h.p.log())
		rows = append(rows, h.stage(stage)...)
		lines, took := len(h.p.log())-from, time.Since(began)
		trips := h.innocents()
		t.Logf("%s: %v, %d lines of the log, %s", stage, took.Round(time.Millisecond), lines, trips)
		if own := h.lines(from); own > hostileLines*int(took.Seconds()+2) {
			t.Errorf("%s: %d lines of the log in %v", stage, own, took)
		}
	}
	h.unharmed(machine())
	h.table(rows)
}

// hostile is a zhxd that is attacked.
type hostile struct {
	t       *testing.T
	p       *program
	dir     string
	sock    string
	script  []string // python and hostile.py, without its stage
	strange atomic.Int64
	p99     time.Duration // of the innocent pairs, the worst
}

func startHostile(t *testing.T, python string) *hostile {
	dir, err := os.MkdirTemp("", "zhx-hostile") // t.TempDir is for us alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &hostile{t: t, dir: dir, sock: dir + "/run/control.sock"}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	give := func(from, name string, mode os.FileMode) string {
		t.Helper()
		b, err := os.ReadFile(from)
		must(err)
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, b, 0o755))
		must(os.Chmod(path, mode))
		return path
	}
	must(os.Chmod(dir, 0o755))
	self, err := os.Executable()
	must(err)
	exe, script := give(self, "innocent", 0o755), give("testdata/hostile.py", "hostile.py", 0o644)
	sleep, err := exec.LookPath("sleep")
	must(err)
	setuid := give(sleep, "sleep", 0o755|os.ModeSetuid)
	var fs unix.Statfs_t
	if must(unix.Statfs(dir, &fs)); fs.Flags&unix.ST_NOSUID != 0 || statusField(t, "/proc/self/status", "NoNewPrivs") != 0 {
		t.Log("no program is setuid here: one attempt is left out")
		setuid = ""
	}

	conf := filepath.Join(dir, "clients.toml")
	text := fmt.Sprintf(`[daemon]
run_dir = "%[1]s/run"
tcp = ":0"
prototype_presence = false
[watchdog]
interval = "500ms"
misses = 2
[defaults]
directory = "/"
watchdog_timeout = "3s"
[client.asker]
command = [%[2]q, %[3]q, "ask", "echo"]
user = "5"
group = "5"
depends_on = ["echo"]
[client.asker.environment]
SECRET = "not for others"
[client.echo]
command = [%[2]q, %[3]q, "echo"]
ready = "register"
may_receive_from = ["asker", "new*"]
user = "1"
group = "1"
[client.keeper]
command = [%[2]q, %[3]q, "keep"]
user = "1"
group = "1"
[client.mute]
command = [%[2]q, %[3]q, "mute"]
user = "1"
group = "1"
watchdog_timeout = "1s"
restart_delay_max = "500ms"
[client.halted]
command = ["sleep", "1000"]
user = "1"
group = "1"
[client.napper]
command = ["false"]
ready = "register"
restart_delay = "10m"
restart_delay_max = "10m"
user = "1"
group = "1"
[client.dozer]
command = ["false"]
ready = "register"
restart_delay = "10m"
restart_delay_max = "10m"
hold = { messages = 8 }
user = "1"
group = "1"
`, dir, exe, innocentArg)
	must(os.WriteFile(conf, []byte(text), 0o644))
	h.p = startProgram(t, func(c *exec.Cmd) {
		c.Args = []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" --config "$1"`, hostileFiles), c.Path, conf}
		c.Path = "/bin/sh"
	})
	h.p.await(0, 30*time.Second, `\[zhxd\] ready \(`)
	address := regexp.MustCompile(` tcp=(\S+:\d+)`).FindStringSubmatch(strings.Join(h.p.log(), "\n"))
	if address == nil {
		t.Fatal("no address of TCP")
	}
	text += fmt.Sprintf(`[client.asker1]
command = [%[1]q, %[2]q, "ask1", "echo1", "tcp:%[3]s"]
depends_on = ["echo1"]
user = "5"
group = "5"
[client.echo1]
command = [%[1]q, %[2]q, "echo1", "tcp:%[3]s"]
ready = "register"
user = "1"
group = "1"
`, exe, innocentArg, address[1])
	must(os.WriteFile(conf, []byte(text), 0o644))
	h.p.await(0, 30*time.Second, `\[asker\] \| begun`, `\[asker1\] \| begun`)
	ctl(t, h.sock, 0, "stop", "halted")
	for _, name := range []string{"napper", "dozer"} {
		until(t, name+" waits", func() bool { return client(t, h.sock, name).State == "backoff" })
	}

	c, err := ipc.Dial(context.Background(), ipc.Options{Address: dir + "/run/zhx.sock"})
	must(err)
	must(c.Register(context.Background(), "foreign"))
	t.Cleanup(func() { c.Close() })
	go func() { // root's program that no client is
		for {
			e, err := c.Receive(context.Background())
			if err != nil {
				return
			}
			if _, ok := e.(*ipc.Message); ok {
				h.strange.Add(1)
			}
		}
	}()
	asker := client(t, h.sock, "asker")
	h.script = []string{python, script, "", dir + "/run/zhx.sock", address[1], dir + "/run", strconv.Itoa(h.p.pid(0)),
		fmt.Sprintf("%s/run/notify/asker.%d", dir, *asker.Run), setuid}
	must(os.WriteFile(dir+"/run/zhxd.log", nil, 0o640)) // as it is in the background
	h.innocents()
	return h
}

// start runs a stage of the script as a user.
func (h *hostile) start(stage string, uid int) (next func() (attempt, bool)) {
	h.t.Helper()
	argv := slices.Clone(h.script)
	argv[2] = stage
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stderr, cmd.Env = "/", os.Stderr, []string{"PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}, Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	lines := bufio.NewScanner(out)
	first := true
	return func() (a attempt, ok bool) {
		h.t.Helper()
		if !first {
			fmt.Fprintln(in)
		}
		first = false
		if lines.Scan() {
			if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
				h.t.Fatalf("%q: %v", lines.Text(), err)
			}
			return a, true
		}
		late.Stop()
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left
		if err := cmd.Wait(); err != nil {
			h.t.Fatalf("hostile.py %s: %v", stage, err)
		}
		return a, false
	}
}

// stage has all of its attempts made; after each that takes something, and after the flood, somebody else comes.
func (h *hostile) stage(stage string) (rows []attempt) {
	h.t.Helper()
	next := h.start(stage, hostileUID)
	for {
		a, more := next()
		if !more {
			return rows
		}
		if strings.HasPrefix(a.Attempt, "arm, end") {
			h.p.await(0, 30*time.Second, `foreign client is gone`)
			if h.script[len(h.script)-1] != "" {
				h.p.await(0, 30*time.Second, `not user \d+'s any more`)
			}
		}
		if rows = append(rows, a); stage != "shares" && a.Attempt != "a preamble cut short" {
			continue
		}
		other := h.start("newcomer", newcomerUID)
		if met, _ := other(); met.Met != "" {
			h.t.Errorf("while: %v: a newcomer is refused: %s", a, met.Met)
		}
		other()
		counters := status(h.t, h.sock).Daemon.Counters
		if waits := counters["bytes_waiting"]; waits > 17<<20 || waits < 12<<20 && strings.HasPrefix(a.Met, "16 MiB") {
			h.t.Errorf("while: %v: %d bytes wait", a, waits)
		}
	}
}

// lines is how many of zhxd's own there are in its log from line from on.
func (h *hostile) lines(from int) (n int) {
	for _, line := range h.p.log()[from:] {
		if !strings.Contains(line, "] | ") && !strings.Contains(line, "[mute]") {
			n++
		}
	}
	return n
}

// innocents has the pairs say how they fared since they were last asked.
func (h *hostile) innocents() (all string) {
	h.t.Helper()
	for _, name := range []string{"asker", "asker1"} {
		from := len(h.p.log())
		if err := syscall.Kill(pids(h.t, h.sock)[name], syscall.SIGUSR1); err != nil {
			h.t.Fatalf("%s: %v", name, err)
		}
		h.p.await(from, 30*time.Second, `\[`+name+`\] \| trips`)
		said := regexp.MustCompile(`\[` + name + `\] \| trips (\d+) p99 (\S+) most (\S+) lost (\d+)`).FindStringSubmatch(strings.Join(h.p.log()[from:], "\n"))
		if said == nil {
			h.t.Fatalf("%s says nothing", name)
		}
		p99, err := time.ParseDuration(said[2])
		if h.p99 = max(h.p99, p99); err != nil || said[4] != "0" {
			h.t.Errorf("%s: %s", name, said[0])
		}
		all += fmt.Sprintf("%s: %s trips, p99 %s, at most %s; ", name, said[1], said[2], said[3])
	}
	return all
}

// unharmed looks at zhxd and its clients when all is over.
func (h *hostile) unharmed(late time.Duration) {
	h.t.Helper()
	h.t.Logf("the machine was late by %v at the most", late)
	if h.p99 > hostileTrip+late {
		h.t.Errorf("an innocent pair's p99 was %v, at most %v is right, and %v for the machine's own lateness", h.p99, hostileTrip, late)
	}
	st := status(h.t, h.sock)
	for _, c := range st.Clients {
		switch c.Name {
		case "asker", "echo", "keeper", "asker1", "echo1":
			if w := c.Watchdog; *c.Run != 1 || w.Lapses > 0 || w.Misses > 0 && late < fedAfter/10 || !w.Armed && c.Name != "keeper" {
				h.t.Errorf("%s: run %d, %+v", c.Name, *c.Run, *w)
			}
		case "mute":
			if c.Watchdog.Lapses == 0 {
				h.t.Error("mute was fed by somebody else")
			}
		}
	}
	if n := h.strange.Load(); n != 2 { // one over each transport, to see who has the name
		h.t.Errorf("%d messages came to root's program under its name", n)
	}
	log := strings.Join(h.p.log(), "\n")
	if strings.ContainsRune(log, '\x1b') {
		h.t.Error("an escape sequence is in the log")
	}
	pid := h.p.pid(0)
	fds := 0
	until(h.t, "the descriptors come back", func() bool {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		fds = len(entries)
		return err == nil && fds < 100
	})
	most, threads := memoryField(h.t, pid, "VmHWM"), statusField(h.t, fmt.Sprintf("/proc/%d/status", pid), "Threads")
	h.t.Logf("zhxd: at most %d KiB, %d threads, %d descriptors now", most, threads, fds)
	if most > hostileMemory || threads > hostileThreads {
		h.t.Errorf("zhxd had %d KiB and %d threads, %d and %d are right", most, threads, hostileMemory, hostileThreads)
	}
}

// table compares the rows with those of the page.
func (h *hostile) table(rows []attempt) {
	h.t.Helper()
	page, err := os.ReadFile(hostilePage)
	if err != nil {
		h.t.Fatal(err)
	}
	var now strings.Builder
	fmt.Fprintln(&now, "| attempt | over | met |\n|---|---|---|")
	for _, r := range rows {
		fmt.Fprintf(&now, "| %s | %s | %s |\n", r.Attempt, r.Transport, r.Met)
	}
	at := regexp.MustCompile(`(?m)^\| attempt(.*\n\|.*)*\n`).FindIndex(page)
	if at == nil {
		h.t.Fatalf("no table in %s", hostilePage)
	}
	if *update {
		page = slices.Concat(page[:at[0]], []byte(now.String()), page[at[1]:])
		if err := os.WriteFile(hostilePage, page, 0o644); err != nil {
			h.t.Fatal(err)
		}
		return
	}
	was := slices.DeleteFunc(strings.Split(string(page[at[0]:at[1]]), "\n"), func(line string) bool {
		return strings.Contains(line, "by a setuid program") && h.script[len(h.script)-1] == ""
	})
	for i, line := range strings.Split(now.String(), "\n") {
		if i >= len(was) || was[i] != line {
			h.t.Errorf("%s does not have: %s\n(if it is right, run this test with -update)", hostilePage, line)
		}
	}
}

// innocent is the part of a client that does what it is to: ask NAME and echo by protocol 2, ask1 NAME ADDRESS and echo1 ADDRESS by
// protocol 1; keep never answers and keeps the descriptors that it is given, mute arms and never feeds.
func innocent(args []string) {
	role := args[0]
	if strings.HasSuffix(role, "1") {
		c, err := ipc.DialPackets(context.Background(), args[len(args)-1])
		if err == nil {
			err = c.Register("")
		}
		if err == nil {
			err = c.Arm()
		}
		if err == nil {
			go feedForever(c.Feed)
			if role == "echo1" {
				for err == nil {
					var p wire.Packet
					if p, err = c.Receive(); err == nil {
						err = c.Send(p.Source, p.Text())
					}
				}
			} else {
				err = asks(func(i int) error {
					text := strconv.Itoa(i)
					for err := c.Send(args[1], text); ; {
						p, err2 := c.Receive()
						if err := cmp.Or(err, err2); err != nil || p.Text() == text {
							return err
						}
					}
				})
			}
		}
		fmt.Println(err)
		os.Exit(1)
	}
	ctx := context.Background()
	c, err := ipc.Dial(ctx, ipc.Options{})
	if err == nil {
		err = c.Register(ctx, "")
	}
	if err == nil && role != "keep" {
		err = c.Arm(ctx)
	}
	if err == nil && (role == "ask" || role == "echo") {
		go feedForever(func() error { return c.Feed(ctx) })
	}
	if role == "ask" && err == nil {
		go func() {
			for {
				if _, err := c.Receive(ctx); err != nil {
					return
				}
			}
		}()
		err = asks(func(i int) error {
			limited, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			r, err := c.Request(limited, args[1], []byte(strconv.Itoa(i)))
			if err == nil && string(r.Body) != strconv.Itoa(i) {
				err = fmt.Errorf("answered %q", r.Body)
			}
			return err
		})
	}
	var kept []*ipc.Message
	for err == nil {
		var e ipc.Event
		if e, err = c.Receive(ctx); err != nil {
			break
		}
		switch m, ok := e.(*ipc.Message); {
		case !ok:
		case role == "keep":
			kept = append(kept, m)
		case m.Request:
			m.Reply(m.Body)
		}
	}
	fmt.Println(err, len(kept))
	os.Exit(1)
}

func feedForever(feed func() error) {
	for range time.Tick(fedAfter / 2) {
		if err := feed(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// asks makes 200 round trips a second, and says at SIGUSR1 how they were since the last time.
func asks(trip func(i int) error) error {
	tell := make(chan os.Signal, 1)
	signal.Notify(tell, syscall.SIGUSR1)
	fmt.Println("begun")
	var took []time.Duration
	lost := 0
	tick := time.NewTicker(5 * time.Millisecond)
	for i := 0; ; i++ {
		began := time.Now()
		stuck := time.AfterFunc(20*time.Second, func() {
			fmt.Println("a round trip takes over 20 s")
			os.Exit(1)
		})
		if err := trip(i); err != nil {
			fmt.Println("lost:", err)
			lost++
		}
		stuck.Stop()
		took = append(took, time.Since(began))
		select {
		case <-tell:
			slices.Sort(took)
			fmt.Printf("trips %d p99 %v most %v lost %d\n", len(took), quantile(took, 0.99), took[len(took)-1].Round(time.Microsecond), lost)
			took, lost = nil, 0
		case <-tick.C:
		}
	}
}
