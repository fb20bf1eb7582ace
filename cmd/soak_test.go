package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zhx/daemon/control"
	"zhx/ipc"
)

// A day of a board in the small: clients come, go, hang, die, flood and feed while the file is edited, names are taken over,
// connections are cut and people ask. Each actor is a goroutine with a dice of its own. Whoever does something to a client
// announces it, so that every end of a run that zhxd tells of can be held against what was done.
//
//	actors ─ announce, do ─> zhxd ─ events ─> judge: was it announced? did it come in time?
//	   └─ all rest at a tenth of the story and at its end: zhxd's memory, descriptors, goroutines and threads are compared
//
// $ZHX_SOAK is the minutes that it lasts (the claim is of 20, make soak), $ZHX_SOAK_SEED the seed to repeat one. An ordinary run is
// of seconds: the story is to work, its figures mean little.

const (
	soakArg     = "role-soak"
	soakShort   = 4 * time.Second
	soakTimeout = 2 * time.Second               // of the watchdog of those that hang
	soakFeed    = 200 * time.Millisecond        // between their feeds
	soakHangs   = 6                             // clients of protocol 1 that hang and die, h0 and so on
	soakTalks   = 4                             // clients of protocol 2 that talk to each other, and also hang and die
	soakHands   = 3                             // clients that people and edits stop and start
	soakGuests  = 4                             // clients that come and go with the file
	soakLate    = 2*soakTimeout + 3*time.Second // the longest that a kill may take: who was starved is given his timeout once more

	// What zhxd may have more at the last rest than at the first, and what the line through the samples of the second half may rise
	// by besides a quarter of what they swing.
	soakFiles, soakRoutines, soakThreads = 4, 8, 4
	soakMemory                           = 6 << 10 // KiB
)

// soak is one story.
type soak struct {
	t      *testing.T
	dir    string
	conf   string
	sock   string // control
	data   string
	tcp    string
	pid    int
	zhxctl *control.Client
	began  time.Time
	end    time.Time
	rest   sync.RWMutex // held for reading by each act, for writing at a rest

	mu      sync.Mutex
	acts    map[string]*soakAct // announced, by client and run
	count   map[string]int
	took    []time.Duration // from an act that hangs a client to its kill, less the timeout
	samples []soakSample
}

type soakAct struct {
	what  string
	kills bool // the watchdog is to kill it
	at    time.Time
	came  chan struct{} // closed when the run has ended
}

type soakSample struct {
	at                                    time.Duration
	memory, files, routines, threads, own int // memory and own (RssAnon) in KiB
}

func TestSoak(t *testing.T) {
	length := soakShort
	if m := os.Getenv("ZHX_SOAK"); m != "" {
		minutes, err := strconv.ParseFloat(m, 64)
		if err != nil {
			t.Fatalf("ZHX_SOAK: %v", err)
		}
		length = time.Duration(minutes * float64(time.Minute))
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("ZHX_SOAK_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("ZHX_SOAK_SEED: %v", err)
		}
	}
	t.Logf("seed %d, %v", seed, length)
	s := startSoak(t)
	ctx, cancel := context.WithCancel(t.Context())
	judged := make(chan struct{})
	go func() { defer close(judged); s.judge(ctx) }()
	var actors sync.WaitGroup
	s.began = time.Now()
	s.end = s.began.Add(length)
	actor := func(n uint64, pause time.Duration, act func(r *rand.Rand)) {
		r := rand.New(rand.NewPCG(seed, n))
		actors.Go(func() {
			if length == soakShort {
				pause /= 4
			}
			for s.sleep(time.Duration(r.Int64N(int64(2 * pause)))) {
				s.rest.RLock()
				act(r)
				s.rest.RUnlock()
			}
		})
	}
	for i := range soakHangs {
		actor(uint64(i), time.Second, s.harm(fmt.Sprint("h", i), i, "stop", "fork", "hush", "flood", "exit 0", "blink", "spin", "kill", "exit 3", "flood", "cut"))
	}
	for i := range soakTalks {
		actor(uint64(100+i), 3*time.Second, s.harm(fmt.Sprint("t", i), i, "cut", "hush", "kill", "stop", "blink", "exit 1", "cut"))
	}
	actor(200, time.Second, s.edit)
	actor(201, 500*time.Millisecond, s.people)
	for i := range 3 {
		actor(uint64(300+i), 300*time.Millisecond, s.stranger)
	}
	for rested := false; s.sleep(max(length/400, 250*time.Millisecond)); {
		s.sample()
		if !rested && time.Since(s.began) > length/10 {
			rested = true
			s.rest.Lock()
			s.settle("first rest")
			s.rest.Unlock()
		}
	}
	actors.Wait()
	s.settle("last rest")
	s.strays()
	cancel()
	<-judged
	s.report(length >= time.Minute)
	if st, err := os.Stat(s.dir + "/zhxd.log.1"); length >= 10*time.Minute && err != nil {
		t.Errorf("zhxd's log was never rotated: %v, %v", st, err)
	}
	ctl(t, s.sock, 0, "shutdown")
	if all := s.marked(); len(all) > 0 {
		t.Errorf("left behind: %v", all)
	}
}

func startSoak(t *testing.T) *soak {
	dir := t.TempDir()
	s := &soak{t: t, dir: dir, conf: dir + "/clients.toml", sock: dir + "/run/control.sock", data: dir + "/run/zhx.sock",
		acts: map[string]*soakAct{}, count: map[string]int{}}
	s.write(s.text(0, nil))
	log := dir + "/zhxd.log"
	p := startZhxd(t, "--config", s.conf, "--log", log)
	s.pid, s.zhxctl = p.Process.Pid, control.Dial(s.sock)
	t.Cleanup(func() {
		if b, _ := os.ReadFile(log); t.Failed() {
			t.Logf("the end of zhxd's log:\n%s", b[max(0, len(b)-8000):])
		}
	})
	until(t, "all run", func() bool { _, err := s.zhxctl.Status(t.Context()); return err == nil && s.calm() })
	b, err := os.ReadFile(log)
	if m := regexp.MustCompile(`\] ready \(.* tcp=(\S+)\)`).FindSubmatch(b); m != nil {
		s.tcp = "tcp:" + string(m[1])
	} else {
		t.Fatalf("no TCP address: %v", err)
	}
	return s
}

// text is the configuration: what is always there, the guests that are, and n, which is new to the first of those that people stop.
func (s *soak) text(n int, guests []int) string {
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `
[daemon]
run_dir = "%s/run"
tcp = ":0"
prototype_presence = false
[defaults]
strays = "ignore"
watchdog_timeout = %q
stable_after = "100ms"
restart_delay = "10ms"
restart_delay_max = "100ms"
log_file = "%[1]s/%%n.log"
`, s.dir, soakTimeout)
	add := func(kind string, n int, args ...string) {
		fmt.Fprintf(&b, "[client.%s%d]\ncommand = [%q", kind, n, exe)
		for _, arg := range args {
			fmt.Fprintf(&b, ", %q", arg)
		}
		b.WriteString("]\n")
	}
	for i := range soakHangs {
		add("h", i, soakArg, "packets")
	}
	for i := range soakTalks {
		add("t", i, soakArg, "talk", fmt.Sprint("t", (i+1)%soakTalks))
	}
	for i := range soakHands {
		add("y", i, soakArg, "packets")
		if i == 0 {
			fmt.Fprintf(&b, "environment = { N = \"%d\" }\n", n)
		}
	}
	for _, i := range guests {
		add("x", i, soakArg, "packets")
	}
	return b.String()
}

func (s *soak) write(text string) {
	if err := os.WriteFile(s.conf, []byte(text), 0o644); err != nil {
		s.t.Error(err)
	}
}

// sleep reports whether the story goes on after d.
func (s *soak) sleep(d time.Duration) bool {
	time.Sleep(min(d, time.Until(s.end))) // what is tested is chance
	return time.Now().Before(s.end) && !s.t.Failed()
}

func (s *soak) tell(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count[what]++
}

// status is of one client; nil: it is not in the file.
func (s *soak) status(name string) *control.ClientStatus {
	time.Sleep(20 * time.Millisecond) // all ask over and over
	st, err := s.zhxctl.Status(s.t.Context())
	if err != nil {
		s.t.Errorf("status: %v", err)
		return nil
	}
	for _, c := range st.Clients {
		if c.Name == name {
			return &c
		}
	}
	return nil
}

// feeds reports whether a run has fed.
func feeds(c *control.ClientStatus) bool {
	return c != nil && c.State == "running" && c.PID != nil && c.Connected && c.Watchdog != nil && c.Watchdog.Armed && c.Watchdog.Interval != nil
}

// await is until, for an actor: it may not end the test's goroutine.
func (s *soak) await(what string, holds func() bool) bool {
	if !comesTrue(30*time.Second, holds) {
		s.t.Errorf("%v: not within 30 s: %s", time.Since(s.began).Round(time.Millisecond), what)
		return false
	}
	return true
}

// harm does one of acts to a client, that of index first to begin with, and waits until it feeds again.
func (s *soak) harm(name string, first int, acts ...string) func(*rand.Rand) {
	return func(r *rand.Rand) {
		var c *control.ClientStatus
		if !s.await(name+" feeds", func() bool { c = s.status(name); return feeds(c) }) {
			return
		}
		what := acts[r.IntN(len(acts))]
		if first >= 0 {
			what, first = acts[first], -1
		}
		if what == "spin" && r.IntN(4) > 0 { // it takes a processor from all others
			what = "hush"
		}
		kind, _, _ := strings.Cut(what, " ")
		act := &soakAct{what: what, kills: kind == "stop" || kind == "hush" || kind == "spin", at: time.Now(), came: make(chan struct{})}
		ends := act.kills || kind == "kill" || kind == "exit" || kind == "fork"
		if ends {
			s.mu.Lock()
			s.acts[soakKey(name, *c.Run)] = act
			s.mu.Unlock()
		}
		s.tell(kind)
		var err error
		switch kind {
		case "stop":
			err = syscall.Kill(*c.PID, syscall.SIGSTOP)
		case "blink": // not for long enough
			err = syscall.Kill(*c.PID, syscall.SIGSTOP)
			time.Sleep(time.Duration(r.Int64N(int64(soakTimeout / 2))))
			err = errors.Join(err, syscall.Kill(*c.PID, syscall.SIGCONT))
		case "kill":
			err = syscall.Kill(*c.PID, syscall.SIGKILL)
		default:
			err = s.zhxctl.Send(s.t.Context(), control.SendRequest{Target: name, Text: what})
		}
		if err != nil {
			s.t.Errorf("%s %s: %v", name, what, err)
			return
		}
		if kind == "cut" { // it takes notice at its next feed, and what is sent to it until then is lost
			time.Sleep(2 * soakFeed)
		}
		if !ends {
			return
		}
		late := soakLate
		if s.end.Sub(s.began) == soakShort { // beside other tests, on a machine that is busy with them
			late *= 4
		}
		select {
		case <-act.came:
		case <-time.After(late):
			s.t.Errorf("%v: %s run %d, %s: its end did not come within %v", time.Since(s.began), name, *c.Run, what, late)
			return
		}
		s.await(name+" is back", func() bool { now := s.status(name); return feeds(now) && *now.Run > *c.Run })
	}
}

func soakKey(name string, run uint64) string { return fmt.Sprint(name, " ", run) }

// judge holds each end of a run, by zhxd's events, against what was announced.
func (s *soak) judge(ctx context.Context) {
	ended := map[string]bool{}
	err := s.zhxctl.Events(ctx, control.EventQuery{N: -1, Follow: true}, func(e control.Event) error {
		if e.Lost > 0 {
			s.t.Errorf("%d events were lost", e.Lost)
		}
		if e.Run == nil {
			return nil
		}
		end, _, _ := strings.Cut(e.Text, ";")
		if strings.HasPrefix(e.Text, "pid ") || e.Kind == "asked" || e.Kind == "late" || e.Kind == "reload" || e.Kind == "removed" {
			return nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		key := soakKey(e.Client, *e.Run)
		act := s.acts[key]
		died := regexp.MustCompile(`^(watchdog|exit|SIG|unknown|spawn|timeout)`).MatchString(end)
		switch {
		case e.Kind == "lapse" && (act == nil || !act.kills):
			s.t.Errorf("a false lapse: %v %s", key, e.Text)
		case e.Kind == "lapse" || !died || ended[key]:
			return nil
		case act == nil:
			s.t.Errorf("%s ended, and nobody did anything to it: %s %q", key, e.Kind, e.Text)
		case act.kills != strings.HasPrefix(end, "watchdog"):
			s.t.Errorf("%s: %s, and then %q", key, act.what, e.Text)
		}
		ended[key] = true
		if act == nil {
			return nil
		}
		if over := e.At.Sub(act.at) - soakTimeout; act.kills {
			s.took = append(s.took, over)
			if over < -soakTimeout/2 { // its last feed was before the act, and may have been late itself
				s.t.Errorf("%s: %s, killed %v before its time", key, act.what, -over)
			}
		}
		close(act.came)
		delete(s.acts, key)
		return nil
	})
	if ctx.Err() == nil {
		s.t.Errorf("the events ended: %v", err)
	}
}

// edit changes the file, and waits until it is in force: guests come and go, one client has another environment, or it is not valid.
func (s *soak) edit(r *rand.Rand) {
	var guests []int
	for i := range soakGuests {
		if r.IntN(2) == 0 {
			guests = append(guests, i)
		}
	}
	text, valid := s.text(r.IntN(3), guests), r.IntN(6) > 0
	if !valid {
		text += "[client.x9]\ncomand = 1\n"
	}
	how := []string{"in place", "rename", "symlink"}[r.IntN(3)]
	s.tell("edit " + how)
	s.put(r.IntN(1000), how, text)
	want := len(guests) + soakHangs + soakTalks + soakHands
	var st control.Status
	s.await("the file is read, edited "+how, func() (ok bool) {
		var err error
		st, err = s.zhxctl.Status(s.t.Context())
		if !valid {
			return err == nil && st.Daemon.ConfigState == "invalid"
		}
		return err == nil && st.Daemon.ConfigState == "ok" && len(st.Clients) == want
	})
	if !valid { // nothing of it is in force; what follows is
		s.put(r.IntN(1000), how, s.text(0, nil))
		s.await("the file is valid again", func() bool {
			st, err := s.zhxctl.Status(s.t.Context())
			return err == nil && st.Daemon.ConfigState == "ok" && len(st.Clients) == want-len(guests)
		})
	}
}

func (s *soak) put(n int, how, text string) {
	other := fmt.Sprintf("%s/other%d.toml", s.dir, n%2)
	var err error
	switch how {
	case "in place":
		s.write(text)
		return
	case "rename":
		err = errors.Join(os.WriteFile(other, []byte(text), 0o644), os.Rename(other, s.conf))
	case "symlink": // to a new file each time: the old one may be what it points at now
		other = fmt.Sprintf("%s/target%d.toml", s.dir, time.Now().UnixNano())
		err = errors.Join(os.WriteFile(other, []byte(text), 0o644), os.Symlink(other, s.dir+"/link"), os.Rename(s.dir+"/link", s.conf))
	}
	if err != nil {
		s.t.Errorf("edit %s: %v", how, err)
	}
}

// people type a command.
func (s *soak) people(r *rand.Rand) {
	any := []string{"h0", "h1", "t0", "t1", "y0", "y1"}[r.IntN(6)]
	hand := fmt.Sprint("y", r.IntN(soakHands))
	verbs := [][]string{{"status"}, {"status", "--json"}, {"why", any}, {"logs", any}, {"logs", "--previous", any}, {"events"}, {"show", any}, {"peers"},
		{"graph"}, {"watchdog"}, {"watchdog", "pause", hand, "1s"}, {"watchdog", "resume", hand}, {"send", hand, "hello"}, {"publish", "soak.ctl", "x"},
		{"restart", hand}, {"stop", hand}, {"start", hand}, {"reload"}, {"reload", "--dry-run"}, {"explain", "h0", "t0"}, {"wait", "y0", "--for", "ready", "--timeout", "100ms"},
		{"tap", "--count", "2", "--timeout", "300ms"}, {"request", "t0", "who", "--timeout", "500ms"}, {"version"}, {"nonsense"}}
	args := verbs[r.IntN(len(verbs))]
	s.tell("zhxctl " + args[0])
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "zhxctl"), append([]string{"--control", s.sock}, args...)...).CombinedOutput()
	var code *exec.ExitError
	exit := 0
	if errors.As(err, &code) {
		exit = code.ExitCode()
	}
	misused := exit == control.CodeUsage && args[0] != "reload" // which may have met an edit that is not valid
	if ctx.Err() != nil || err != nil && exit <= 0 || exit == control.CodeDown || exit == control.CodeForbidden || misused != (args[0] == "nonsense") {
		s.t.Errorf("zhxctl %v: %v\n%s", args, err, out)
	}
}

// stranger connects as somebody whom zhxd has not started, over Unix or TCP, and does what such do.
func (s *soak) stranger(r *rand.Rand) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Second)
	defer cancel()
	address := s.data
	if r.IntN(3) == 0 {
		address = s.tcp
	}
	name := fmt.Sprint("guest", r.IntN(3))
	what := []string{"takes over", "claims", "is deaf", "babbles", "breaks off", "comes in crowds", "subscribes", "requests"}[r.IntN(8)]
	s.tell("stranger " + what)
	packets := func(name string) *ipc.PacketConn {
		c, err := ipc.DialPackets(ctx, address)
		if err == nil {
			err = c.Register(name)
		}
		if err != nil {
			s.t.Errorf("stranger %s: %v", what, err)
		}
		return c
	}
	switch what {
	case "takes over": // a name that another connection of the same user has
		one, two := packets(name), packets(name)
		two.Send(name, "to myself")
		one.Close()
		two.Close()
	case "claims": // what belongs to a client: in vain
		c := packets("h0")
		c.Send("h1", "hello")
		c.Close()
	case "is deaf": // and is sent much
		deaf, from := packets(name), packets("from"+name)
		for range 2000 {
			if from.Send(name, strings.Repeat("x", 400)) != nil {
				break
			}
		}
		time.Sleep(200 * time.Millisecond) // so that it counts as stuck
		deaf.Close()
		from.Close()
	case "babbles", "breaks off", "comes in crowds":
		network, at := "unix", address
		if tcp, ok := strings.CutPrefix(address, "tcp:"); ok {
			network, at = "tcp", tcp
		}
		n := 1
		if what == "comes in crowds" {
			n = 30
		}
		for range n {
			c, err := net.Dial(network, at)
			if err != nil {
				s.t.Errorf("stranger %s: %v", what, err)
				return
			}
			defer c.Close()
			if what == "babbles" {
				b := make([]byte, r.IntN(5000))
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				c.Write(b)
			} else if what == "breaks off" {
				c.Write([]byte("head\x00\x00")[:1+r.IntN(6)])
			}
		}
	default: // over Unix: who comes by TCP needs the cookie
		c, err := ipc.Dial(ctx, ipc.Options{Address: s.data, Name: name, Once: true})
		if err != nil {
			s.t.Errorf("stranger %s: %v", what, err)
			return
		}
		defer c.Close()
		if what == "requests" {
			for range 20 {
				c.Request(ctx, fmt.Sprint("t", r.IntN(soakTalks)), []byte("who"), ipc.WaitAtMost(200*time.Millisecond))
			}
			return
		}
		if err := c.Subscribe(ctx, "soak.>", ipc.DropOldest, 16); err != nil && ctx.Err() == nil {
			s.t.Errorf("stranger %s: %v", what, err)
		}
		for range 500 {
			c.Publish(ctx, "soak.flood", make([]byte, 300))
		}
	}
}

// calm reports whether all clients of the file without guests feed, and nobody else is there.
func (s *soak) calm() bool {
	st, err := s.zhxctl.Status(s.t.Context())
	if err != nil || len(st.Clients) != soakHangs+soakTalks+soakHands || len(st.Peers) != len(st.Clients) {
		return false
	}
	return !slices.ContainsFunc(st.Clients, func(c control.ClientStatus) bool { return !feeds(&c) })
}

// settle brings all back to where the story began, and takes a sample of zhxd then.
func (s *soak) settle(when string) {
	s.put(0, "rename", s.text(0, nil))
	for i := range soakHands {
		name := fmt.Sprint("y", i)
		ctl(s.t, s.sock, 0, "start", name)
		ctl(s.t, s.sock, 0, "watchdog", "resume", name)
	}
	s.await(when+": all is calm", s.calm)
	var low soakSample
	comesTrue(min(s.end.Sub(s.began)/10, 5*time.Second), func() bool { // goroutines end a moment later
		now := s.sample()
		if low.routines == 0 || now.routines+now.files < low.routines+low.files {
			low = now
		}
		first, known := s.rested()
		return known && now.files <= first.files && now.routines <= first.routines
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples = append(s.samples, low)
	s.count[when] = len(s.samples) - 1
}

func (s *soak) rested() (soakSample, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.count["first rest"]
	return s.samples[i], ok
}

func (s *soak) sample() soakSample {
	path := fmt.Sprintf("/proc/%d", s.pid)
	files, _ := os.ReadDir(path + "/fd")
	now := soakSample{at: time.Since(s.began), files: len(files), memory: statusField(s.t, path+"/status", "VmRSS"),
		own: statusField(s.t, path+"/status", "RssAnon"), threads: statusField(s.t, path+"/status", "Threads")}
	if m := regexp.MustCompile(`(?m)^go_goroutines (\d+)`).FindSubmatch(page(s.t, s.sock)); m != nil {
		now.routines, _ = strconv.Atoi(string(m[1]))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples = append(s.samples, now)
	return now
}

// marked lists the processes that were started as clients of this zhxd.
func (s *soak) marked() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		var pid int
		fmt.Sscanf(f, "/proc/%d/", &pid)
		if b, _ := os.ReadFile(f); bytes.Contains(b, []byte("ZHX_SOCKET="+s.data+"\x00")) && lives(pid) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// strays are processes that nobody should have left: of clients, and zombies of zhxd.
func (s *soak) strays() {
	var known []int
	for _, pid := range pids(s.t, s.sock) {
		known = append(known, pid)
	}
	slices.Sort(known)
	if all := s.marked(); !slices.Equal(all, known) {
		s.t.Errorf("the clients are processes %v, and there are %v", known, all)
	}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if _, after, ok := strings.Cut(string(b), ") "); ok && strings.HasPrefix(after, fmt.Sprintf("Z %d ", s.pid)) {
			s.t.Errorf("a zombie of zhxd: %s", b)
		}
	}
}

// report prints the figures, and judges them if the story was long enough for that.
func (s *soak) report(judge bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, last := s.samples[s.count["first rest"]], s.samples[s.count["last rest"]]
	delete(s.count, "first rest")
	delete(s.count, "last rest")
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(s.count)) {
		fmt.Fprintf(&b, "%6d  %s\n", s.count[what], what)
	}
	for key, act := range s.acts {
		s.t.Errorf("%s: %s, and its end never came", key, act.what)
	}
	slices.Sort(s.took)
	if n := len(s.took); n > 0 {
		fmt.Fprintf(&b, "%d kills by the watchdog, %v to %v after the timeout, median %v, none false\n", n,
			s.took[0].Round(time.Millisecond), s.took[n-1].Round(time.Millisecond), s.took[n/2].Round(time.Millisecond))
	}
	fmt.Fprintf(&b, "%-12s %10s %10s %10s %10s %16s %8s\n", "of zhxd", "first rest", "last rest", "least", "most", "rise of 2nd half", "allowed")
	for _, f := range []struct {
		name    string
		of      func(soakSample) int
		allowed int
	}{
		{"VmRSS KiB", func(s soakSample) int { return s.memory }, soakMemory},
		{"RssAnon KiB", func(s soakSample) int { return s.own }, soakMemory},
		{"descriptors", func(s soakSample) int { return s.files }, soakFiles},
		{"goroutines", func(s soakSample) int { return s.routines }, soakRoutines},
		{"threads", func(s soakSample) int { return s.threads }, soakThreads},
	} {
		least, most := f.of(first), f.of(first)
		for _, at := range s.samples {
			least, most = min(least, f.of(at)), max(most, f.of(at))
		}
		rise := rising(s.samples[len(s.samples)/2:], f.of)
		fmt.Fprintf(&b, "%-12s %10d %10d %10d %10d %16.1f %8d\n", f.name, f.of(first), f.of(last), least, most, rise, f.allowed)
		swing := float64(most-least) / 4 // so much a line through what goes up and down may rise by chance
		if judge && (f.of(last) > f.of(first)+f.allowed || rise > float64(f.allowed)+swing) {
			s.t.Errorf("%s grows: %d at the first rest, %d at the last, the second half rises by %.1f; %d is allowed", f.name, f.of(first), f.of(last), rise, f.allowed)
		}
	}
	s.t.Logf("%v\n%s", time.Since(s.began).Round(time.Second), b.String())
}

// rising is by how much the straight line that lies closest to the samples rises from the first to the last.
func rising(all []soakSample, of func(soakSample) int) float64 {
	var n, sx, sy, sxx, sxy float64
	for _, s := range all {
		x, y := s.at.Seconds(), float64(of(s))
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	if d := n*sxx - sx*sx; d > 0 {
		return (n*sxy - sx*sy) / d * (all[len(all)-1].at - all[0].at).Seconds()
	}
	return 0
}

// soaker is a client of the story: it feeds, and does what it is sent.
func soaker(args []string) {
	ctx := context.Background()
	cut := make(chan os.Signal, 1)
	signal.Notify(cut, syscall.SIGUSR1)
	told := make(chan string)
	var feed func() error
	var err error
	if args[0] == "talk" {
		feed, err = soakTalk(ctx, args[1], told)
	} else {
		feed, err = soakPackets(ctx, told)
	}
	for tick := time.NewTicker(soakFeed); err == nil; {
		select {
		case <-tick.C:
			err = feed()
		case what := <-told:
			do, arg, _ := strings.Cut(what, " ")
			switch do {
			case "hush":
				select {}
			case "spin":
				for n := 0; ; n++ {
				}
			case "exit":
				code, _ := strconv.Atoi(arg)
				os.Exit(code)
			case "fork": // twice, into a session of its own, and then it is gone
				exec.Command("sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit").Run()
				os.Exit(0)
			case "flood":
				go func() {
					for i := range 3000 {
						fmt.Println("line", i, strings.Repeat("x", 40))
					}
				}()
			case "cut":
				cutConnections()
			}
		}
	}
	fmt.Println(err)
	os.Exit(9)
}

// soakPackets is of protocol 1. It connects again when its connection is cut, as the library for C does.
func soakPackets(ctx context.Context, told chan<- string) (feed func() error, err error) {
	var c *ipc.PacketConn
	connect := func() error {
		if c, err = ipc.DialPackets(ctx, ""); err == nil {
			err = errors.Join(c.Register(""), c.Arm())
		}
		if err != nil {
			return err
		}
		go func(c *ipc.PacketConn) {
			for {
				p, err := c.Receive()
				if err != nil {
					return
				}
				told <- p.Text()
			}
		}(c)
		return nil
	}
	err = connect()
	return func() error {
		if c.Feed() != nil {
			c.Close()
			return connect()
		}
		return nil
	}, err
}

// soakTalk is of protocol 2: it publishes, subscribes, asks another and answers.
func soakTalk(ctx context.Context, other string, told chan<- string) (feed func() error, err error) {
	c, err := ipc.Dial(ctx, ipc.Options{Wait: true})
	if err == nil {
		err = errors.Join(c.Register(ctx, ""), c.Subscribe(ctx, "soak.>", ipc.DropOldest, 64), c.Watch(ctx, other), c.Arm(ctx))
	}
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			e, err := c.Receive(ctx)
			if err != nil {
				fmt.Println(err)
				os.Exit(9)
			}
			m, ok := e.(*ipc.Message)
			switch {
			case ok && m.Request:
				m.Reply([]byte("me"))
			case ok:
				m.Done()
				told <- m.Text()
			}
		}
	}()
	for _, do := range []func(){
		func() { c.Publish(ctx, "soak.talk", make([]byte, 100)) },
		func() { c.Request(ctx, other, []byte("who"), ipc.WaitAtMost(time.Second)) }, // which may be hung, or gone
	} {
		go func() {
			for range time.Tick(50 * time.Millisecond) {
				do()
			}
		}()
	}
	return func() error { return c.Feed(ctx) }, nil
}
