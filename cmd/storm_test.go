package cmd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc"
	"zhx/ipc/wire"
)

// Pairs of programs exchange numbered messages while zhxd is killed, connections are cut and receivers are killed. Each receiver
// appends what it is given to a file before it says that it is done, and the files are what is judged.
//
// $ZHX_STORM is how long each story lasts (the claim is of 60s), $ZHX_STORM_SEED the seed to repeat one.

const (
	stormPairs = 10
	lanes      = 4 // of numbers in a pair, each one message at a time: so many of a sender are under way

	stormArg = "role-storm"
)

// storm is one story.
type storm struct {
	t       *testing.T
	rand    *rand.Rand
	dir     string
	conf    string // the configuration's path
	zhxd    *program
	deaths  [stormPairs]int // of the receivers
	crashes int             // of zhxd
	cuts    int
	sender  string // the role of the senders
}

// No connection lasts, but no program dies: every number comes once, in order.
func TestStormConnections(t *testing.T) {
	s := startStorm(t, "recv", "send")
	s.blow(s.crash, s.cut("recv", "send"))
	s.calm()
	s.handled()
}

// Receivers are killed, too: none is missing, and what comes twice is marked, at most once a death. Senders are not cut off: who is
// at the moment when zhxd dies is not told what was handled meanwhile, and if the receiver dies as well, nobody knows it.
func TestStormReceivers(t *testing.T) {
	s := startStorm(t, "recv", "send")
	s.blow(s.crash, s.cut("recv"), s.kill, s.kill)
	s.calm()
	s.handled()
}

// Protocol 1, while only receivers are killed: what was held was delivered or has expired, and nothing comes twice or late.
// Missing is what a receiver had not read when it died, and what zhxd has counted.
func TestStormPackets(t *testing.T) {
	s := startStorm(t, "recv1", "send1")
	s.blow(nil, s.kill)
	s.calm()
	var held, expired, lost int64
	for i := range stormPairs {
		var to, from = client(t, s.sock(), s.name(i, "recv")).Messages, client(t, s.sock(), s.name(i, "send")).Messages
		until(t, "nothing waits", func() bool {
			to = client(t, s.sock(), s.name(i, "recv")).Messages
			return to.Held == to.Released+to.Expired
		})
		last, lines := 0, strings.Split(s.text(i, "recv"), "\n")
		for at, line := range lines[:len(lines)-1] {
			if _, n, _ := numbered(line); n > last {
				last = n
			} else {
				s.wrong(i, lines, at)
			}
		}
		got, sent := int64(len(lines)-1), int64(s.sent(i)[0])
		if from.Sent != sent || to.Received+to.Undeliverable+to.Dropped+to.Expired != sent || got > to.Received {
			t.Errorf("pair %d: %d sent, %d in the file: %+v, %+v", i, sent, got, to, from)
		}
		held, expired, lost = held+to.Held, expired+to.Expired, lost+to.Received-got
		s.t.Logf("pair %d: %d sent, %d deaths: %+v, %d lost in sockets", i, sent, s.deaths[i], to, to.Received-got)
	}
	if held == 0 {
		t.Error("nothing was held")
	}
	t.Logf("%d held, %d of them expired; %d were lost in the sockets of the dead", held, expired, lost)
}

// startStorm starts zhxd and the pairs, and returns when all numbers flow.
func startStorm(t *testing.T, receiver, sender string) *storm {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("ZHX_STORM_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("ZHX_STORM_SEED: %v", err)
		}
	}
	t.Logf("seed %d", seed)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &storm{t: t, rand: rand.New(rand.NewPCG(seed, seed)), dir: t.TempDir(), sender: sender}
	var conf strings.Builder
	fmt.Fprintf(&conf, `
[daemon]
run_dir = "%s/run"
tcp = ""
prototype_presence = false
[defaults]
strays = "ignore"
watchdog = "off"
stable_after = "10ms"
restart_delay = "1ms"
restart_delay_max = "10ms"
`, s.dir)
	for i := range stormPairs {
		keys := "" // half of them zhxd knows to receive only since they did
		if i%2 == 0 {
			keys = "ready = \"register\"\n"
		}
		if i%2 == 0 && receiver == "recv1" {
			keys += "hold = { for = \"10ms\" }\n" // a part of which expires
		}
		fmt.Fprintf(&conf, "[client.%s]\ncommand = [%q, %q, %q, %q]\n%s", s.name(i, "recv"), exe, stormArg, receiver, s.file(i, "recv"), keys)
		fmt.Fprintf(&conf, "[client.%s]\ncommand = [%q, %q, %q, %q, %q]\ndepends_on = [%[6]q]\n", s.name(i, "send"), exe, stormArg, sender, s.file(i, "send"), s.name(i, "recv"))
	}
	s.conf = write(t, "clients.toml", conf.String())
	s.zhxd = startZhxd(t, "--config", s.conf)
	s.zhxd.await(0, 30*time.Second, `\[zhxd\] ready \(`)
	for i := range stormPairs {
		until(t, "messages come", func() bool { return len(s.text(i, "recv")) > 1000 })
	}
	return s
}

// chance is a time of less than limit.
func (s *storm) chance(limit time.Duration) time.Duration {
	return time.Duration(s.rand.Int64N(int64(limit)))
}

func (s *storm) sock() string                   { return s.dir + "/run/control.sock" }
func (s *storm) name(i int, role string) string { return fmt.Sprintf("pair%d-%s", i, role) }
func (s *storm) file(i int, role string) string { return filepath.Join(s.dir, s.name(i, role)) }

func (s *storm) text(i int, role string) string {
	b, _ := os.ReadFile(s.file(i, role))
	return string(b)
}

// blow does one of acts after the other, and every now and then crash, if there is one.
func (s *storm) blow(crash func(), acts ...func()) {
	length := span(s.t, "ZHX_STORM", 2*time.Second)
	pause := func() time.Duration { // of a minute: 2 to 5 s
		return max(length/30, 200*time.Millisecond) + s.chance(max(length/20, 400*time.Millisecond))
	}
	end, next := time.Now().Add(length), time.Now().Add(pause())
	for time.Now().Before(end) {
		acts[s.rand.IntN(len(acts))]()
		if crash != nil && time.Now().After(next) {
			crash()
			next = time.Now().Add(pause())
		}
		time.Sleep(s.chance(100 * time.Millisecond)) // what is tested is chance
	}
}

// crash kills zhxd. It is the test that starts the next one: zhxd's keeper would wait longer each time.
func (s *storm) crash() {
	s.zhxd.Process.Kill()
	<-s.zhxd.ended
	s.crashes++
	time.Sleep(s.chance(100 * time.Millisecond)) // as long as it likes to be away
	s.zhxd = startZhxd(s.t, "--config", s.conf)
}

// cut has a program of one of these roles break its own connection.
func (s *storm) cut(roles ...string) func() {
	return func() {
		role := roles[s.rand.IntN(len(roles))]
		if pid := s.pid(s.rand.IntN(stormPairs), role); pid > 0 && syscall.Kill(pid, syscall.SIGUSR1) == nil {
			s.cuts++
		}
	}
}

// kill kills a receiver, each process only once.
func (s *storm) kill() {
	i := s.rand.IntN(stormPairs)
	if pid := s.pid(i, "recv"); pid > 0 && os.Remove(s.file(i, "recv.pid")) == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
		s.deaths[i]++
	}
}

// pid is of a process that takes signals; 0: there is none just now.
func (s *storm) pid(i int, role string) int {
	b, _ := os.ReadFile(s.file(i, role+".pid"))
	pid, _ := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if !strings.HasSuffix(string(b), "\n") {
		return 0
	}
	return pid
}

// calm waits until the senders have ended what they are at and sees that nobody died but by our hand.
func (s *storm) calm() {
	s.zhxd.await(0, 30*time.Second, `\[zhxd\] ready \(`)
	for i := range stormPairs {
		syscall.Kill(s.pid(i, "send"), syscall.SIGUSR2)
	}
	for i := range stormPairs {
		if !comesTrue(30*time.Second, func() bool { return strings.HasSuffix(s.text(i, "send"), "end\n") }) {
			s.t.Errorf("pair %d has not ended: %q, received:\n%s", i, s.text(i, "send"), near(strings.Split(s.text(i, "recv"), "\n"), 1<<30))
		}
		for role, runs := range map[string]int{"send": 1, "recv": 1 + s.deaths[i]} {
			until(s.t, "all run", func() bool { return client(s.t, s.sock(), s.name(i, role)).PID != nil })
			if c := client(s.t, s.sock(), s.name(i, role)); int(*c.Run) < runs || runs == 1 && *c.Run > 1 { // a zhxd that dies at a start takes a number with it
				s.t.Errorf("%s: run %d, want %d: %+v", c.Name, *c.Run, runs, c.LastExit)
			}
		}
	}
	deaths := 0
	for _, n := range s.deaths {
		deaths += n
	}
	s.t.Logf("zhxd was killed %d times, %d connections were cut, receivers killed %d times", s.crashes, s.cuts, deaths)
}

// handled judges files of which each number is to be there.
func (s *storm) handled() {
	all, marks := 0, 0
	for i := range stormPairs {
		var have [lanes]int
		marked, lines := 0, strings.Split(s.text(i, "recv"), "\n")
		for at, line := range lines[:len(lines)-1] {
			lane, n, repeat := numbered(line)
			if repeat {
				marked++
			}
			if n != have[lane]+1 && !(repeat && n == have[lane]) {
				s.wrong(i, lines, at)
			}
			have[lane] = n
		}
		if sent := s.sent(i); !slices.Equal(sent, have[:]) {
			s.t.Errorf("pair %d: %v sent, %v received", i, sent, have)
		}
		if marked > s.deaths[i] {
			s.t.Errorf("pair %d: %d were marked as repeats in %d deaths", i, marked, s.deaths[i])
		}
		all, marks = all+len(lines)-1, marks+marked
	}
	s.t.Logf("%d messages, %d of them marked as repeats", all, marks)
}

// sent is the last number of each lane by its sender's word.
func (s *storm) sent(i int) []int {
	last := make([]int, lanes)
	for line := range strings.Lines(s.text(i, "send")) {
		if lane, n, _ := numbered(line); n > 0 {
			last[lane] = n
		} else if line != "end\n" {
			s.t.Errorf("pair %d: the sender was told: %s", i, line)
		}
	}
	if s.sender == "send1" {
		last = last[:1]
	}
	return last
}

// numbered reads "LANE N" or "LANE N repeat"; n 0: it is none.
func numbered(line string) (lane, n int, repeat bool) {
	f := strings.Fields(line)
	if len(f) == 3 && f[2] == "repeat" {
		f, repeat = f[:2], true
	}
	if len(f) == 2 {
		lane, _ = strconv.Atoi(f[0])
		n, _ = strconv.Atoi(f[1])
	}
	if lane < 0 || lane >= lanes {
		return 0, 0, false
	}
	return lane, n, repeat
}

// wrong shows a line that is, with those around it.
func (s *storm) wrong(i int, lines []string, at int) {
	s.t.Errorf("pair %d, line %d is %q, after and before:\n%s", i, at+1, lines[at], near(lines, at))
}

func near(lines []string, at int) string {
	at = min(at, len(lines))
	return strings.Join(lines[max(0, at-12):min(len(lines), at+12)], "\n")
}

// stormer is the part of a program: recv FILE, send FILE TO, and the same with protocol 1. It cuts its connections at SIGUSR1; a
// sender stops at SIGUSR2 and says in its file how far it came.
func stormer(args []string) {
	role, path := args[0], args[1]
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	say := func(format string, args ...any) {
		if _, err := fmt.Fprintf(file, format+"\n", args...); err != nil { // one write
			fmt.Println(err)
			os.Exit(1)
		}
	}
	var over atomic.Bool
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for s := range signals {
			if s == syscall.SIGUSR1 {
				cutConnections()
			} else {
				over.Store(true)
			}
		}
	}()
	os.WriteFile(path+".pid", fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644)
	switch ctx := context.Background(); role {
	case "recv":
		err = receiveHandled(ctx, say)
	case "send":
		err = sendHandled(ctx, args[2], over.Load, say)
	case "recv1":
		err = receivePackets(ctx, say)
	case "send1":
		err = sendPackets(ctx, args[2], over.Load, say)
	}
	if err != nil {
		say("%s failed: %v", role, err)
		os.Exit(1)
	}
	say("end")
	select {}
}

func cutConnections() {
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, path := range fds {
		fd, _ := strconv.Atoi(filepath.Base(path))
		peer, err := unix.Getpeername(fd)
		if to, ok := peer.(*unix.SockaddrUnix); err == nil && ok && to.Name == os.Getenv("ZHX_SOCKET") {
			unix.Shutdown(fd, unix.SHUT_RDWR)
		}
	}
}

func receiveHandled(ctx context.Context, say func(string, ...any)) error {
	c, err := ipc.Dial(ctx, ipc.Options{Wait: true})
	if err == nil {
		err = c.Register(ctx, "")
	}
	for err == nil {
		var e ipc.Event
		e, err = c.Receive(ctx)
		switch e := e.(type) {
		case *ipc.Message:
			mark := ""
			if e.Repeat {
				mark = " repeat"
			}
			say("%s%s", e.Text(), mark)
			err = e.Done()
		case *ipc.Refused:
			err = e.Err
		}
	}
	return err
}

func sendHandled(ctx context.Context, to string, over func() bool, say func(string, ...any)) error {
	c, err := ipc.Dial(ctx, ipc.Options{Wait: true})
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for lane := range lanes {
		all.Go(func() {
			n := 0
			for !over() {
				level, err := c.Send(ctx, to, fmt.Appendf(nil, "%d %d", lane, n+1), ipc.At(ipc.Handled))
				if n == 0 && errors.Is(err, ipc.ErrNoName) { // it has not begun
					time.Sleep(10 * time.Millisecond)
					continue
				}
				if err != nil || level != ipc.Handled {
					say("lane %d, %d: %v, %v", lane, n+1, level, err)
				}
				n++
			}
			say("%d %d", lane, n)
		})
	}
	all.Wait()
	return nil
}

func receivePackets(ctx context.Context, say func(string, ...any)) error {
	c, err := ipc.DialPackets(ctx, "")
	if err == nil {
		err = c.Register("")
	}
	for err == nil {
		var p wire.Packet
		if p, err = c.Receive(); err == nil {
			say("%s", p.Text())
		}
	}
	return err
}

// sendPackets sends in bursts, over a thousand a second.
func sendPackets(ctx context.Context, to string, over func() bool, say func(string, ...any)) error {
	c, err := ipc.DialPackets(ctx, "")
	n := 0
	for err == nil && !over() {
		for range 1 + rand.IntN(16) {
			if n++; err == nil {
				err = c.Send(to, fmt.Sprint("0 ", n))
			}
		}
		time.Sleep(rand.N(10 * time.Millisecond))
	}
	say("0 %d", n)
	return err
}
