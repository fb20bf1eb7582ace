package logs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pumpMain is a zhxd that only pumps: ZHX_LOGS_PUMP names the FIFO, ZHX_LOGS_FILE the file. It is busy with each line, so that
// most kills find it between reading and writing.
func pumpMain() {
	path := os.Getenv("ZHX_LOGS_PUMP")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("open")
	ring := NewBudget(BudgetSize).Ring()
	ring.SetFile(os.Getenv("ZHX_LOGS_FILE"))
	Pump(os.NewFile(uintptr(fd), path), ring, func([]byte) {
		for began := time.Now(); time.Since(began) < 20*time.Microsecond; {
		}
	})
	ring.Close()
	os.Exit(0)
}

// TestKill: the pump's process is killed at 30 random instants while a child writes all it can; the next one takes over.
// Each line is in the file at least once, for the first time in order, and what is not whole is at most a piece or two a kill.
func TestKill(t *testing.T) {
	const kills = 30
	r, w := newFIFO(t)
	r.Close()
	log := filepath.Join(t.TempDir(), "log")
	pump := func() *exec.Cmd { // returns when it has the FIFO open
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "ZHX_LOGS_PUMP="+r.Name(), "ZHX_LOGS_FILE="+log)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			_, err = out.Read(make([]byte, 1))
		}
		if err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	var stop atomic.Bool
	written := make(chan int)
	go func() { written <- chatter(w, &stop) }()
	var all []byte
	for range kills {
		cmd := pump()
		time.Sleep(rand.N(80 * time.Millisecond))
		cmd.Process.Kill()
		cmd.Wait()
		all = collect(all, log, FileMiB<<20) // before the oldest is removed
	}
	stop.Store(true)
	last := pump()
	lines := <-written
	w.Close()
	if err := last.Wait(); err != nil {
		t.Fatal(err)
	}
	checkKilled(t, collect(all, log, 0), lines, kills)
}

// chatter writes numbered lines, and returns how many: in blocks that end anywhere, now and then with a pause that is longer
// than an unfinished line stays in the FIFO.
func chatter(w *os.File, stop *atomic.Bool) (lines int) {
	var b []byte
	for {
		for len(b) < 4000 && !stop.Load() {
			b = fmt.Appendf(b, "%06d %s\n", lines, long[:rand.IntN(150)])
			lines++
		}
		if len(b) == 0 {
			return lines
		}
		n := min(len(b), 1+rand.IntN(4000))
		w.Write(b[:n])
		b = b[n:]
		if rand.IntN(200) == 0 {
			time.Sleep(rand.N(3 * partialWait))
		}
	}
}

// collect takes the file and the older one away if they are larger than limit together. Nobody writes them.
func collect(all []byte, log string, limit int) []byte {
	names, _ := filepath.Glob(log + "*")
	slices.Sort(names)
	slices.Reverse(names) // log-TIME, log
	var have []byte
	for _, name := range names {
		b, _ := os.ReadFile(name)
		have = append(have, b...)
	}
	if len(have) <= limit {
		return all
	}
	for _, name := range names {
		os.Remove(name)
	}
	if have[len(have)-1] != '\n' {
		have = append(have, '\n')
	}
	return append(all, have...)
}

func checkKilled(t *testing.T, all []byte, lines, kills int) {
	whole := regexp.MustCompile(`^\S{24} (\d{6}) x*\n$`)
	next, doubles := 0, 0
	var pieces []string
	for line := range strings.Lines(string(all)) {
		m := whole.FindStringSubmatch(line)
		if m == nil {
			pieces = append(pieces, line)
			continue
		}
		switch n, _ := strconv.Atoi(m[1]); {
		case n == next:
			next++
		case n < next:
			doubles++
		default:
			t.Fatalf("line %d follows %d", n, next-1)
		}
	}
	if next != lines || len(pieces) > 2*kills {
		t.Errorf("%d of %d lines, pieces %.80q", next, lines, pieces)
	}
	t.Logf("%d lines, %d twice, pieces %.80q", next, doubles, pieces)
}
