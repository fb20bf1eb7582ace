package procman

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"zhx/procman/logs"
	"zhx/procman/notify"
	"zhx/procman/proc"
)

const crashVar = "PROCMAN_TEST_CRASH" // a predecessor in JSON: the test binary is it, and is going to be killed

// A predecessor is a zhxd of an earlier time.
type predecessor struct {
	Dir    string
	Kernel proc.Options
	Specs  []Spec
	Fail   string // the point at which it dies by itself

	Leave    bool          // it ends in order, and leaves its clients
	Patience time.Duration // it is killed so long after it has begun; 0: after its clients are started
}

func init() {
	if os.Getenv(crashVar) == "" {
		return
	}
	proc.StageMain()
	var p predecessor
	if err := json.Unmarshal([]byte(os.Getenv(crashVar)), &p); err != nil {
		panic(err)
	}
	k, err := proc.Open(p.Kernel, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	st := &station{started: make(chan int, 100), ended: make(chan LastExit, 100)}
	st.Set = New(Options{Dir: p.Dir, Notify: p.Dir, Environ: os.Environ(), Kernel: k, Log: slog.New(slog.DiscardHandler), Events: st,
		Fail: func(point string) {
			if point == p.Fail {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				time.Sleep(time.Hour)
			}
		}})
	if p.Patience > 0 {
		fmt.Println(os.Getpid())
	}
	st.Apply(p.Specs)
	st.Wait(bg)
	for _, s := range st.Status() {
		fmt.Println(s.PID)
	}
	if p.Leave {
		if err := st.Leave(bg); err != nil {
			panic(err)
		}
		k.Close()
		os.Exit(0)
	}
	time.Sleep(time.Hour)
}

// crash runs the predecessor until its clients are started, or it dies, kills it, and answers who its clients are.
func (p predecessor) crash(t *testing.T) (clients []proc.ID) {
	t.Helper()
	t.Cleanup(func() { // of a test that failed
		for _, id := range instances(t, p.Dir) {
			proc.SignalVerified(id, syscall.SIGKILL)
		}
	})
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashVar+"="+string(b))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if p.Patience > 0 {
		out.Read(make([]byte, 1))
		time.Sleep(p.Patience)
		cmd.Process.Kill()
		cmd.Wait()
		return nil
	}
	for range p.Specs {
		var pid int
		if _, err := fmt.Fscanln(out, &pid); err != nil {
			break // it died
		}
		st, err := proc.ReadStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, st.ID)
	}
	if !p.Leave {
		cmd.Process.Kill()
	}
	cmd.Wait()
	return clients
}

func lives(id proc.ID) bool {
	st, err := proc.ReadStat(id.PID)
	return err == nil && st.ID == id && st.Living()
}

// instances are the living processes that have this directory in their environment, as real gives it to a client there.
func instances(t *testing.T, dir string) (list []proc.ID) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, _ := strconv.Atoi(e.Name())
		b, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		st, err := proc.ReadStat(pid)
		for len(b) == 0 && err == nil && st.PPID == os.Getpid() && st.Living() { // exec has answered a moment before it shows this
			b, _ = os.ReadFile("/proc/" + e.Name() + "/environ")
			st, err = proc.ReadStat(pid)
		}
		if strings.Contains(string(b), "\x00WHERE="+dir+"\x00") && err == nil && st.Living() {
			list = append(list, st.ID)
		}
	}
	return list
}

func in(dir string) func(*Spec) {
	return func(s *Spec) { s.Umask, s.Environment["WHERE"] = 0o022, dir }
}

// take starts the successor of a predecessor that died in dir.
func take(t *testing.T, dir string, o proc.Options, specs ...Spec) *station {
	t.Helper()
	st := open(t, dir, o)
	if err := st.Leftovers(bg, specs); err != nil {
		t.Error(err)
	}
	st.Apply(specs)
	st.Wait(bg)
	return st
}

// TestAdopt: after a kill -9 of zhxd the next one goes on with its clients: the same pids and runs, what they print, their end.
func TestAdopt(t *testing.T) {
	for kernel, o := range kernels {
		t.Run(kernel, func(t *testing.T) {
			dir := t.TempDir()
			soon := func(s *Spec) { s.RestartDelay = time.Millisecond }
			specs := []Spec{real("a", "sleep", in(dir), soon), real("b", "family wait", in(dir), func(s *Spec) { s.StopTimeout = 50 * time.Millisecond }),
				real("tty", "sleep", in(dir), func(s *Spec) { s.TTY = true }), real("gone", "sleep", in(dir))}
			was := predecessor{Dir: dir, Kernel: o, Specs: specs}.crash(t)
			for lives(was[2]) || len(instances(t, dir)) != 6 { // the terminal took its client with it; a family is four
				time.Sleep(time.Millisecond)
			}
			st := take(t, dir, o, specs[:3]...)
			for i, s := range st.Status() {
				want(t, "adopted", s.Adopted, i < 2)
				want(t, "pid the same", s.PID == was[i].PID, i < 2)
				want(t, "lives", lives(was[i]), i < 2)
				want(t, "state", s.State, Running)
				want(t, "run", s.Run, map[bool]uint64{true: 1, false: 2}[i < 2])
				if up := time.Since(s.Since); i < 2 && (up < time.Millisecond || up > time.Minute) {
					t.Errorf("%s: up for %v", s.Name, up)
				}
			}
			want(t, "the one that is not configured lives", lives(was[3]), false)

			for range 3 {
				next(t, st.started)
			}
			syscall.Kill(was[0].PID, syscall.SIGKILL)
			for l := next(t, st.ended); l.PID != was[0].PID; l = next(t, st.ended) {
			}
			next(t, st.started)
			st.settle("a")
			s := st.Status()[0]
			want(t, "its end", s.LastExit.Reason, ByUnknown)
			want(t, "its successor", s.Run, 2)
			want(t, "adopted", s.Adopted, false)
			want(t, "stop", st.Stop(bg, "b", "the test"), nil)
			want(t, "lives after its stop", lives(was[1]), false)
			st.close()
			if left := instances(t, dir); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if e.Type() == fs.ModeSocket {
					t.Errorf("a notify socket is left: %s", e.Name())
				}
			}
		})
	}
}

// TestCrashBetween: a zhxd that dies around the fork or before the record: the next one has exactly one instance.
func TestCrashBetween(t *testing.T) {
	for kernel, o := range kernels {
		for _, c := range []struct {
			point   string
			adopted bool
			change  func(*Spec)
		}{
			{"before-fork", false, func(*Spec) {}},
			{"after-fork", true, func(*Spec) {}},
			{"before-record", true, func(*Spec) {}},
			{"after-fork", true, func(s *Spec) { s.Umask = 0o077 }}, // through a stage
			{"after-fork", false, func(s *Spec) { s.TTY = true }},
			{"after-fork", true, func(s *Spec) { s.Environment[childVar], s.StopTimeout = "family wait", 50*time.Millisecond }},
		} {
			t.Run(kernel+" "+c.point, func(t *testing.T) {
				dir := t.TempDir()
				spec := real("a", "sleep", in(dir), c.change)
				predecessor{Dir: dir, Kernel: o, Specs: []Spec{spec}, Fail: c.point}.crash(t)
				st := take(t, dir, o, spec)
				s := st.Status()[0]
				want(t, "adopted", s.Adopted, c.adopted)
				want(t, "state", s.State, Running)
				leaders := 0
				for _, id := range instances(t, dir) {
					if n, err := proc.ReadStat(id.PID); err == nil && (n.PPID == os.Getpid() || n.PPID == 1) {
						leaders++
						want(t, "pid", s.PID, id.PID)
					}
				}
				want(t, "instances", leaders, 1)
				want(t, "stop", st.Stop(bg, "a", "the test"), nil)
				want(t, "left", len(instances(t, dir)), 0)
			})
		}
	}
}

// TestCrashAnytime: nor is there a twin, or a client missing, whenever zhxd is killed while it starts ten of them.
func TestCrashAnytime(t *testing.T) {
	for round := range 6 {
		dir := t.TempDir()
		var specs []Spec
		for i := range 10 {
			specs = append(specs, real(fmt.Sprint("c", i), "sleep", in(dir), func(s *Spec) { s.Umask = []int{0o022, 0o077}[i%2] }))
		}
		predecessor{Dir: dir, Specs: specs, Patience: time.Duration(1+rand.IntN(40)) * time.Millisecond}.crash(t)
		o := kernels[[]string{"new kernel", "old kernel"}[round%2]]
		st := take(t, dir, o, specs...)
		for _, s := range st.Status() {
			want(t, "state", s.State, Running)
		}
		want(t, "instances", len(instances(t, dir)), len(specs))
		st.close()
		want(t, "left", len(instances(t, dir)), 0)
	}
}

// TestAdoptChanged: a run whose configuration changed meanwhile is adopted and then stopped as a change asks for, not killed.
func TestAdoptChanged(t *testing.T) {
	dir := t.TempDir()
	spec := real("a", "sleep", in(dir))
	was := predecessor{Dir: dir, Specs: []Spec{spec}}.crash(t)
	spec.Directory = "/"
	st := take(t, dir, proc.Options{}, spec)
	l := next(t, st.ended)
	want(t, "pid", l.PID, was[0].PID)
	want(t, "reason", l.Reason, ByStop)
	for st.Status()[0].Run != 2 {
		next(t, st.started)
		st.settle("a")
	}
	want(t, "instances", len(instances(t, dir)), 1)
}

// TestAdoptOutput: no line is lost between the first that the next zhxd reads and the last, though nobody read for a while.
func TestAdoptOutput(t *testing.T) {
	dir := t.TempDir()
	spec := real("a", "sleep", in(dir), func(s *Spec) {
		s.Command = []string{"/bin/sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); done"}
	})
	predecessor{Dir: dir, Specs: []Spec{spec}}.crash(t)
	st := take(t, dir, proc.Options{}, spec)
	last := -1
	for i := range 20_000 {
		var n int
		if _, err := fmt.Sscanf(next(t, st.lines), "line %d", &n); i == 0 && err != nil {
			continue // the last zhxd has read its beginning
		} else if err != nil || last >= 0 && n != last+1 {
			t.Fatalf("after line %d: %d, %v", last, n, err)
		}
		last = n
	}
}

// TestAdoptLeft: a zhxd that ends in order and keeps its clients hands them over as one that is killed does, twice in a row.
func TestAdoptLeft(t *testing.T) {
	dir := t.TempDir()
	specs := []Spec{real("a", "sleep", in(dir)), real("b", "deaf", in(dir), func(s *Spec) { s.StopTimeout = time.Millisecond })}
	was := predecessor{Dir: dir, Specs: specs, Leave: true}.crash(t)
	now := predecessor{Dir: dir, Specs: specs, Leave: true}.crash(t)
	st := take(t, dir, proc.Options{}, specs...)
	for i, s := range st.Status() {
		want(t, "adopted", s.Adopted, true)
		want(t, "pid", s.PID, was[i].PID)
		want(t, "in between", now[i], was[i])
		want(t, "run", s.Run, 1)
	}
}

// TestNotAdopted: what is not the run any more, or is not to go on, is left to the ordinary path.
func TestNotAdopted(t *testing.T) {
	for _, c := range []struct {
		purpose string
		change  func(r *record, dir string)
		killed  bool
		err     string // of Leftovers
	}{
		{"another boot", func(r *record, _ string) { r.Boot = "another" }, false, "holds"},
		{"a recycled pid", func(r *record, _ string) { r.Start--; r.Mark, r.Cgroup = "another", "" }, false, "holds"},
		{"stopped by hand", func(r *record, _ string) { r.StoppedBy = "anna" }, true, ""},
		{"on a terminal", func(r *record, _ string) { r.TTY = true }, true, ""},
		{"another run's process", func(r *record, _ string) { r.Mark = "another" }, true, ""}, // its pid and start time are the run's
		{"without its FIFO", func(_ *record, dir string) { os.Remove(filepath.Join(dir, "a.1.out")) }, true, ""},
		{"a newer record", func(r *record, _ string) { r.Version++ }, false, "version 2"},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			dir := t.TempDir()
			spec := real("a", "sleep", in(dir))
			was := predecessor{Dir: dir, Specs: []Spec{spec}}.crash(t)[0]
			st := open(t, dir, proc.Options{})
			h := &system{name: "a", o: st.o}
			r, err := h.load()
			if err != nil {
				t.Fatal(err)
			}
			c.change(&r, dir)
			h.save(r)
			err = st.Leftovers(bg, []Spec{spec})
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("leftovers: %v", err)
			}
			st.Apply([]Spec{spec})
			st.Wait(bg)
			s := st.Status()[0]
			want(t, "adopted", s.Adopted, false)
			want(t, "killed", !lives(was), c.killed)
			want(t, "a twin", s.State == Running && !c.killed, false)
			st.end(was)
			if c.err == "version 2" {
				os.Remove(h.path())
			}
			want(t, "start", st.Start(bg, "a", "the test"), nil)
		})
	}
}

// TestAdoptFacts: what the record knows of the run comes back, and the daemon hears of its tree.
func TestAdoptFacts(t *testing.T) {
	dir := t.TempDir()
	spec := real("a", "sleep", in(dir))
	was := predecessor{Dir: dir, Specs: []Spec{spec}}.crash(t)[0]
	st := open(t, dir, proc.Options{})
	h := &system{name: "a", boot: proc.BootID(), o: st.o}
	r, err := h.load()
	if err != nil || r.PID != was.PID || r.Sum != restartSum(spec) {
		t.Fatalf("%+v, %v", r, err)
	}
	r.Registered, r.Armed, r.Ready, r.PID, r.Start = true, true, true, 0, 0
	r.Began -= int64(time.Hour)
	spec.Restart = Never
	var serving sync.WaitGroup
	l, a, err := h.adopt(&spec, &r, inlet{ring: logs.NewBudget(1 << 20).Ring(), said: func(uint64, notify.Message) {}, serve: serving.Go})
	if err != nil || l == nil {
		t.Fatal(l, err)
	}
	if a.uptime < time.Hour || a.uptime > time.Hour+time.Minute {
		t.Errorf("up for %v", a.uptime)
	}
	a.uptime = 0
	want(t, "facts", a, adopted{registered: true, armed: true, ready: true, sameSpec: true})
	want(t, "leader", proc.ID{PID: r.PID, Start: r.Start}, was)
	saved, err := h.load()
	want(t, "record", saved, r)
	want(t, "error", err, nil)
	if err := l.Kill(); err != nil {
		t.Error(err)
	}
	<-l.Exited()
	want(t, "empty", l.WaitEmpty(bg), nil)
	l.listen()
	l.finish()
	l.forget()
	serving.Wait()
}

// TestStaysExited: a oneshot that is done, or a client that is not to be restarted, does not run once more because zhxd was
// replaced; it does when its command changed, or after an ordinary end of zhxd.
func TestStaysExited(t *testing.T) {
	dir := t.TempDir()
	once, run := real("a", "exit 0", in(dir), oneshot), uint64(0)
	for _, c := range []struct {
		story string
		edit  func()
		runs  bool
		keep  bool // this zhxd ends, and keeps its clients
	}{
		{"the first time", func() {}, true, true},
		{"zhxd was replaced", func() {}, false, true},
		{"twice", func() {}, false, true},
		{"its command changed meanwhile", func() { once.Directory = "/" }, true, false},
		{"zhxd had ended", func() {}, true, false},
	} {
		c.edit()
		st := take(t, dir, proc.Options{}, once)
		if c.runs {
			run++
			next(t, st.ended)
			st.settle("a")
		}
		s := st.Status()[0]
		want(t, c.story+": state", s.State, Exited)
		want(t, c.story+": ready", s.Ready, true)
		want(t, c.story+": run", s.Run, run)
		if c.keep {
			want(t, c.story+": leave", st.Leave(bg), nil)
		}
		st.close()
	}
}

// TestRestartSum: every key of class restart counts, no other, and an empty list is none.
func TestRestartSum(t *testing.T) {
	base := restartSum(Spec{Name: "a"})
	want(t, "the name", restartSum(Spec{Name: "b"}), base)
	want(t, "empty lists", restartSum(Spec{Groups: []string{}, Environment: map[string]string{}}), base)
	seen := map[string]string{}
	for i, f := range reflect.VisibleFields(reflect.TypeFor[Spec]()) {
		s := Spec{}
		switch v := reflect.ValueOf(&s).Elem().Field(i).Addr().Interface().(type) {
		case *string:
			*v = "x"
		case *[]string:
			*v = []string{"x"}
		case *[]int:
			*v = []int{1}
		case *map[string]string:
			*v = map[string]string{"x": "y"}
		case **uint64:
			*v = new(uint64(math.MaxUint64))
		case *bool:
			*v = true
		case *int:
			*v = 7
		default:
			if f.Tag.Get("class") == "restart" {
				t.Errorf("key %s is of a type that this test does not know", f.Name)
			}
			continue
		}
		sum := restartSum(s)
		want(t, f.Name+" counts", sum != base, f.Tag.Get("class") == "restart")
		if before, ok := seen[sum]; ok && sum != base {
			t.Errorf("%s and %s look alike", f.Name, before)
		}
		seen[sum] = f.Name
	}
}
