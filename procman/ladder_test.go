// What follows a lapse: abort_signal, the core, SIGKILL; and what does not, while the watchdog is paused.

package procman

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"zhx/procman/notify"
	"zhx/procman/proc"
)

func abortedAfter(d time.Duration) func(*Spec) {
	return func(s *Spec) { s.AbortSignal, s.AbortTimeout = syscall.SIGABRT, d }
}

// TestLadder: how a run came to its end after a lapse is told step by step.
func TestLadder(t *testing.T) {
	for _, c := range []struct {
		purpose string
		ends    time.Duration // its leader, by itself; 0: never
		core    time.Duration // is being written until then
		state   kind
		text    string
		did     string
	}{
		{"ends in time", 1200 * time.Millisecond, 0, evThawed, "no feed for 9s; SIGABRT, ended after 1.2s", "poke a 1 SIGABRT"},
		{"does not", 0, 0, evThawed, "no feed for 9s; SIGABRT, still alive after 10s, SIGKILL", "poke a 1 SIGABRT, kill a 1"},
		{"writes a core", 13 * time.Second, 13 * time.Second, evThawed,
			"no feed for 9s; SIGABRT, waited 3s for its core, ended after 13s", "poke a 1 SIGABRT"},
		{"writes, and yet does not end", 0, 12950 * time.Millisecond, evThawed,
			"no feed for 9s; SIGABRT, waited 4s for its core, still alive after 14s, SIGKILL", "poke a 1 SIGABRT, kill a 1"},
		{"writes for ever", 0, time.Hour, evThawed,
			"no feed for 9s; SIGABRT, waited 1m0s for its core, still alive after 1m10s, SIGKILL", "poke a 1 SIGABRT, kill a 1"},
		{"cannot handle a signal", 0, 0, evStuck, "no feed for 9s; in state T, SIGKILL", "kill a 1"},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				s := w.set()
				defer s.Shutdown(bg)
				s.Apply([]Spec{spec("a", abortedAfter(10*time.Second), func(s *Spec) { s.Restart = Never })})
				s.Wait(bg)
				l := w.life("a")
				w.arrange(func() { l.state, l.core = c.state, c.core > 0 })
				w.notes()
				s.Expire("a", 1, "no feed for 9s")
				if c.core > 0 {
					time.AfterFunc(c.core, func() { w.arrange(func() { l.core = false }) })
				}
				if c.ends > 0 {
					time.AfterFunc(c.ends, func() { l.die(proc.Exit{Code: -1, Signal: syscall.SIGABRT, Core: c.core > 0}) })
				}
				time.Sleep(2 * time.Minute)
				last := state(s, "a").LastExit
				want(t, "text", last.Text, c.text)
				want(t, "reason", last.Reason, ByWatchdog)
				want(t, "core", last.Core, c.core > 0 && c.ends > 0)
				want(t, "did", w.notes(), c.did+", ended a 1 watchdog")
			})
		})
	}
}

// TestSpared: while its watchdog is paused no client is ended for a lapse; that is told once. Afterwards it is.
func TestSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		w.spared["a"] = true
		s.Apply([]Spec{spec("a", func(s *Spec) { s.Restart = Never })})
		p, _ := s.find("a")
		l := w.life("a")
		for range 2 {
			p.hear(1, notify.Message{Trigger: true})
			s.Expire("a", 1, "no feed for 9s")
		}
		want(t, "after a lapse", state(s, "a").State, Running)
		want(t, "told", strings.Count(w.log.String(), "msg=lapse"), 1)
		want(t, "why and what next", strings.Contains(w.log.String(), `why="it said WATCHDOG=trigger" next="nothing: `), true)
		l.ice <- true
		time.Sleep(time.Minute)
		want(t, "frozen", state(s, "a").State, Running)
		want(t, "what follows is not denied", strings.Contains(w.log.String(), "killed unless"), false)
		l.ice <- false
		l.ice <- true
		time.Sleep(time.Minute)
		synctest.Wait()
		want(t, "told anew", strings.Count(w.log.String(), "msg=lapse"), 2)
		w.arrange(func() { delete(w.spared, "a") })
		time.Sleep(10 * time.Second)
		want(t, "the pause is over", state(s, "a").LastExit.Text, "in state T for 9s")

		w.arrange(func() { w.spared["a"] = true })
		s.Start(bg, "a", "anna")
		s.Expire("a", 2, "no feed for 9s")
		w.life("a").die(crash)
		want(t, "its own end has its own reason", state(s, "a").LastExit.Text, "")
	})
}

// TestWord: what the watchdog has to know of a word is told before the word is carried out; a signal reaches a run that runs.
func TestWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.set()
		defer s.Shutdown(bg)
		s.Apply([]Spec{spec("a", readyBy(ReadyNotify))})
		s.Wait(bg)
		p, _ := s.find("a")
		off, text := time.Duration(0), "x"
		w.notes()
		p.hear(1, notify.Message{Watchdog: true})
		p.hear(1, notify.Message{Status: &text, WatchdogTimeout: &off})
		p.hear(1, notify.Message{Ready: true, ExtendTimeout: time.Second, Checkpoint: "main"})
		want(t, "ready", state(s, "a").Ready, true)
		want(t, "said", w.notes(), "said a 1 {Alive:true Ready:false Timeout:0s Extend:0s Checkpoint:}, "+
			"said a 1 {Alive:false Ready:true Timeout:0s Extend:1s Checkpoint:main}")
		s.Warn("a", 1, syscall.SIGUSR1)
		s.Warn("a", 2, syscall.SIGUSR1)
		s.Warn("nobody", 1, syscall.SIGUSR1)
		synctest.Wait()
		want(t, "warned", w.notes(), "poke a 1 SIGUSR1")
		s.Stop(bg, "a", "anna")
		w.notes()
		s.Warn("a", 1, syscall.SIGUSR1)
		synctest.Wait()
		want(t, "when it is over", w.notes(), "")
	})
}

// TestGaveUp: that the start limit is reached is told when on_failure has ended, and at once where there is none.
func TestGaveUp(t *testing.T) {
	for hook, told := range map[string]string{"": "gave up a 2: restarted 1 times within 1m0s", "x": "on_failure a, gave up a 2: restarted 1 times within 1m0s"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			s := w.set()
			defer s.Shutdown(bg)
			s.Apply([]Spec{spec("a", func(s *Spec) {
				s.StartLimit = StartLimit{1, time.Minute}
				if hook != "" {
					s.OnFailure = []string{hook}
				}
			})})
			w.life("a").die(crash)
			time.Sleep(time.Second)
			w.notes()
			w.life("a").die(crash)
			synctest.Wait()
			want(t, "on_failure: "+hook, w.notes(), "ended a 2 exit, "+told)
		})
	}
}

// TestAbortChild: real processes meet the ladder. The signal is for the leader alone; what that leaves is killed.
func TestAbortChild(t *testing.T) {
	for kernel, o := range kernels {
		t.Run(kernel, func(t *testing.T) {
			st := open(t, t.TempDir(), o)
			st.Apply([]Spec{real("a", "handles", abortedAfter(time.Minute)), real("b", "unmoved", abortedAfter(50*time.Millisecond)),
				real("c", "sleep", abortedAfter(time.Minute))})
			pids := map[string]int{}
			for len(pids) < 4 {
				l := st.until(t, "up ")
				pids[l[len(l)-1]] = 0
			}
			st.Wait(bg) // it prints, perhaps, before it is known to have been started
			for _, s := range st.Status() {
				pids[s.Name] = s.PID
			}
			st.Warn("a", 1, syscall.SIGUSR1)
			st.until(t, "handles got SIGUSR1")
			for _, c := range []struct{ name, signal, text string }{{"a", "", "the test; SIGABRT, ended after "}, {"b", "SIGKILL", "the test; SIGABRT, still alive after "}} {
				st.Expire(c.name, 1, "the test")
				l := next(t, st.ended)
				if l.Reason != ByWatchdog || l.Signal != c.signal || !strings.HasPrefix(l.Text, c.text) || c.name == "a" && l.Code != 7 {
					t.Errorf("%s: %+v", c.name, l)
				}
			}
			syscall.Kill(pids["c"], syscall.SIGSTOP)
			for s, err := proc.ReadStat(pids["c"]); err == nil && s.State != 'T'; s, err = proc.ReadStat(pids["c"]) {
				time.Sleep(time.Millisecond) // the program is told of it, a test is not
			}
			st.Expire("c", 1, "the test")
			l := next(t, st.ended)
			want(t, "in state T", l.Text, "the test; in state T, SIGKILL")
			for line := range pids {
				if pid, err := strconv.Atoi(strings.TrimPrefix(line, "up ")); err == nil {
					dead(t, []int{pid})
				}
			}
			for _, line := range st.Ring("a").Tail(-1) {
				if strings.HasPrefix(line.Text, "handle ") {
					t.Errorf("the leader's child: %q", line.Text)
				}
			}
		})
	}
}

const fat = 64 << 20 // bytes

// beFat fills memory with its own addresses, and has SIGABRT do what it does to programs that do not know it: dump core.
func beFat() {
	b, err := unix.Mmap(-1, 0, fat, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	for i := 0; i < fat; i += 8 {
		binary.NativeEndian.PutUint64(b[i:], ^uint64(i))
	}
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}) // the race detector takes it away
	var byDefault [64]byte                                                                           // struct sigaction: SIG_DFL, no flags, no mask
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGABRT), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	if errno != 0 {
		panic(errno)
	}
	fmt.Println("fat at", uintptr(unsafe.Pointer(&b[0])))
}

// TestCore: SIGKILL does not cut a core off, neither one that is written within abort_timeout nor one that takes longer.
func TestCore(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil || strings.ContainsAny(string(pattern), "|/") || len(strings.TrimSpace(string(pattern))) == 0 {
		t.Skipf("kernel.core_pattern is %q (%v): no core comes into the program's directory", pattern, err)
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &limit); limit.Max != unix.RLIM_INFINITY && os.Getuid() != 0 {
		t.Skipf("no core may be larger than %d bytes here (setrlimit)", limit.Max)
	}
	dir := t.TempDir()
	st := open(t, t.TempDir(), proc.Options{})
	program := func(d time.Duration) Spec {
		return real("a", "fat", abortedAfter(d), func(s *Spec) { s.LimitCore, s.Directory = new(uint64(unix.RLIM_INFINITY)), dir })
	}
	abort := func(run uint64) LastExit {
		line := st.until(t, "fat at ")
		at, _ := strconv.ParseUint(strings.TrimPrefix(line[len(line)-1], "fat at "), 10, 64)
		st.Expire("a", run, "the test")
		l := next(t, st.ended)
		want(t, "reason", l.Reason, ByWatchdog)
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		if l.Core {
			want(t, "signal", l.Signal, "SIGABRT")
			if len(files) != 1 {
				t.Fatalf("%d files in its directory", len(files))
			}
			readCore(t, files[0], at)
		}
		for _, f := range files {
			os.Remove(f)
		}
		return l
	}
	st.Apply([]Spec{program(time.Minute)})
	if l := abort(1); !l.Core || !strings.Contains(l.Text, "SIGABRT, ended after ") {
		t.Fatalf("in time: %+v", l)
	}
	// When the kernel begins to write is its own affair: a run that was killed before that proves nothing, and the next one gets
	// twice the time; one that had written by then neither, and it begins anew.
	for run, d := uint64(2), time.Millisecond; ; run, d = run+1, d*2 {
		if run > 30 {
			t.Fatal("no abort_timeout has ended while the core was written")
		}
		st.Apply([]Spec{program(d)})
		if err := st.Start(bg, "a", "the test"); err != nil {
			t.Fatal(err)
		}
		l := abort(run)
		t.Logf("abort_timeout %v: %s, core: %v", d, l.Text, l.Core)
		if strings.Contains(l.Text, "for its core") {
			want(t, "core", l.Core, true)
			break
		}
		if l.Core {
			d = time.Millisecond / 2
		}
	}
}

// readCore looks for the whole of beFat's memory in a core that has all that its own headers promise.
func readCore(t *testing.T, path string, at uint64) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, p := range f.Progs {
		if end := p.Off + p.Filesz; uint64(st.Size()) < end {
			t.Errorf("the core has %d bytes, and a part that ends at %d", st.Size(), end)
		}
		if p.Type != elf.PT_LOAD || at < p.Vaddr || at >= p.Vaddr+p.Filesz {
			continue
		}
		b := make([]byte, fat)
		n, _ := p.ReadAt(b, int64(at-p.Vaddr))
		for found+8 <= n && binary.NativeEndian.Uint64(b[found:]) == ^uint64(found) {
			found += 8
		}
	}
	want(t, "bytes of its memory in the core", found, fat)
}
