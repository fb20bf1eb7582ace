package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second // for what takes milliseconds

// newFIFO makes a FIFO as procman does: the reader in the poller, the writer open for both.
func newFIFO(t testing.TB) (r, w *os.File) {
	path := filepath.Join(t.TempDir(), "out")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r = openFIFO(t, path)
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 256<<10) // Fd makes it block, as a child's is
	return r, w
}

func openFIFO(t testing.TB, path string) *os.File {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { r.Close() })
	return r
}

// inFIFO is how many bytes wait in it.
func inFIFO(f *os.File) (n int) {
	conn, _ := f.SyscallConn()
	conn.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// start runs a pump; wait returns when it has ended.
func start(t testing.TB, r *os.File, ring *Ring, emit func([]byte)) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		Pump(r, ring, emit)
	}()
	return func() {
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("the pump does not end")
			r.Close()
			<-done
		}
	}
}

// fileLines is what a client's file has, without the stamps, which it checks.
func fileLines(t testing.TB, path string) (lines []string) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		at, err := time.Parse(stamp, line[:min(len(line), len(stamp))])
		if text, whole := strings.CutSuffix(line, "\n"); err != nil || !whole || time.Since(at).Abs() > time.Minute {
			t.Fatalf("a line of the file is %q", line)
		} else {
			lines = append(lines, text[len(stamp):])
		}
	}
	return lines
}

var long = strings.Repeat("x", LineMax)

var pumpCases = []struct {
	purpose, in string
	want        []string
	cut         []int // which of them go on
}{
	{"lines", "a\nb\n", []string{"a", "b"}, nil},
	{"a last line without a newline", "a\nb", []string{"a", "b"}, nil},
	{"empty lines", "\n\n", []string{"", ""}, nil},
	{"nothing", "", nil, nil},
	{"any bytes", "\x00\xff\x1b[1m\r\n", []string{"\x00\xff\x1b[1m\r"}, nil},
	{"the longest line", long + "\n", []string{long}, nil},
	{"a longer one", long + "y\nz\n", []string{long, "y", "z"}, []int{0}},
	{"a much longer one, without end", long + long + long, []string{long, long, long}, []int{0, 1}},
	{"more than a read", strings.Repeat(long[:100]+"\n", 1000), slices.Repeat([]string{long[:100]}, 1000), nil},
	{"more than a pipe, without end", strings.Repeat(long, 100), slices.Repeat([]string{long}, 100), seq(99)},
}

func seq(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// TestPump: every byte comes out in lines, however they are written, with a file and without, whatever it is read from.
func TestPump(t *testing.T) {
	writers := []struct {
		name  string
		write func(w *os.File, s string)
	}{
		{"whole", func(w *os.File, s string) { w.WriteString(s) }},
		{"blocks", func(w *os.File, s string) { // as stdio does it
			for b := range slices.Chunk([]byte(s), 1000) {
				w.Write(b)
			}
		}},
		{"bytes", func(w *os.File, s string) {
			for i := range min(len(s), 3*LineMax) {
				w.WriteString(s[i : i+1])
			}
		}},
		{"slowly", func(w *os.File, s string) { // longer between the parts than an unfinished line stays in the FIFO
			for i, b := range slices.Collect(slices.Chunk([]byte(s), len(s)/3+1)) {
				if i > 0 {
					time.Sleep(2 * partialWait)
				}
				w.Write(b)
			}
		}},
	}
	for _, c := range pumpCases {
		for _, wr := range writers {
			for _, source := range []string{"fifo", "pipe"} {
				for _, file := range []string{"", "log"} {
					if wr.name == "bytes" && len(c.in) > 3*LineMax {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%s/%s", c.purpose, wr.name, source, file), func(t *testing.T) {
						t.Parallel()
						ring := newRing(t)
						if file != "" {
							file = filepath.Join(t.TempDir(), file)
							ring.SetFile(file)
						}
						r, w, err := os.Pipe()
						if source == "fifo" {
							r, w = newFIFO(t)
						} else if err != nil {
							t.Fatal(err)
						}
						defer r.Close()
						var emitted []string
						wait := start(t, r, ring, func(l []byte) { emitted = append(emitted, string(l)) })
						wr.write(w, c.in)
						w.Close()
						wait()
						checkPumped(t, ring, emitted, file, c.want, c.cut)
						if _, err := os.Stat(r.Name() + partSuffix); !errors.Is(err, fs.ErrNotExist) {
							t.Errorf("a part file is left: %v", err)
						}
					})
				}
			}
		}
	}
}

func checkPumped(t *testing.T, ring *Ring, emitted []string, file string, want []string, cut []int) {
	t.Helper()
	if !slices.Equal(emitted, want) {
		t.Errorf("emitted %.60q, want %.60q", emitted, want)
	}
	kept := ring.Tail(-1)
	if rest := want[len(want)-len(kept):]; !slices.Equal(texts(kept), rest) {
		t.Errorf("kept %.60q, want %.60q", texts(kept), rest)
	}
	for i, l := range kept {
		if n := len(want) - len(kept) + i; l.Cut != slices.Contains(cut, n) {
			t.Errorf("line %d: Cut %v", n, l.Cut)
		}
	}
	if file != "" && len(want) > 0 {
		if got := fileLines(t, file); !slices.Equal(got, want) {
			t.Errorf("in the file %.60q, want %.60q", got, want)
		}
	}
}

// TestPTY: a pseudo-terminal ends with an error, and cannot be looked into; its lines reach the file all the same.
func TestPTY(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	defer master.Close()
	var tty *os.File
	conn, _ := master.SyscallConn()
	conn.Control(func(fd uintptr) {
		unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		n, _ := unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		tty, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	ring, path := newRing(t), filepath.Join(t.TempDir(), "log")
	ring.SetFile(path)
	wait := start(t, master, ring, nil)
	tty.WriteString("a\nb")
	tty.Close()
	wait()
	want := []string{"a\r", "b"}
	if got := fileLines(t, path); !slices.Equal(got, want) || !slices.Equal(texts(ring.Tail(-1)), want) {
		t.Errorf("in the file %q, in the ring %q; want %q", got, texts(ring.Tail(-1)), want)
	}
}

// TestFIFOKeeps: with a file, bytes are in the FIFO as long as the file has not got them; without one they are taken at
// once. The file is switched on and off while the pump runs.
func TestFIFOKeeps(t *testing.T) {
	r, w := newFIFO(t)
	ring, dir := newRing(t), t.TempDir()
	left := make(chan int)
	wait := start(t, r, ring, func([]byte) { left <- inFIFO(r) })
	for i, file := range []string{"", "a", "b", "", "b", ""} {
		want := 0
		if file != "" {
			want = len("0 begun\n")
			file = filepath.Join(dir, file)
		}
		ring.SetFile(file)
		fmt.Fprintf(w, "%d read\n", i) // its read may have begun before
		<-left
		fmt.Fprintf(w, "%d begun\n", i)
		if got := <-left; got != want {
			t.Errorf("step %d: %d bytes are in the FIFO when the line is handed on, want %d", i, got, want)
		}
	}
	w.Close()
	wait()
	for file, want := range map[string][]string{"a": {"1 begun"}, "b": {"2 begun", "4 begun"}} {
		got := slices.DeleteFunc(fileLines(t, filepath.Join(dir, file)), func(l string) bool { return strings.HasSuffix(l, " read") })
		if !slices.Equal(got, want) {
			t.Errorf("file %s has %q, want %q", file, got, want)
		}
	}
}

// TestPartBeside: an unfinished line goes beside the FIFO after a while; the next pump begins with it.
func TestPartBeside(t *testing.T) {
	r, w := newFIFO(t)
	path := filepath.Join(t.TempDir(), "log")
	ring := newRing(t)
	ring.SetFile(path)
	wait := start(t, r, ring, nil)
	part := r.Name() + partSuffix
	for _, more := range []string{"ab", "c"} {
		w.WriteString(more)
		eventually(t, "the part is beside the FIFO", func() bool {
			b, _ := os.ReadFile(part)
			return bytes.HasSuffix(b, []byte(more))
		})
	}
	eventually(t, "the FIFO is empty", func() bool { return inFIFO(r) == 0 })
	beside, _ := os.ReadFile(part)
	w.WriteString("d\n")
	eventually(t, "the part is gone", func() bool { _, err := os.Stat(part); return err != nil })
	os.WriteFile(part, beside, 0o600) // as if zhxd had been killed before "d"
	r2 := openFIFO(t, r.Name())
	r.Close()
	wait()
	os.WriteFile(part, beside, 0o600)
	wait = start(t, r2, ring, nil)
	w.WriteString("e\nf\n")
	w.Close()
	wait()
	if got, want := fileLines(t, path), []string{"abcd", "abce", "f"}; !slices.Equal(got, want) {
		t.Errorf("in the file %q, want %q", got, want)
	}
	RemoveFIFO(r.Name())
	if left, _ := filepath.Glob(filepath.Dir(r.Name()) + "/*"); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// TestBigWrites: a write that is larger than the FIFO blocks half-way and then wakes nobody who left something in there.
func TestBigWrites(t *testing.T) {
	r, w := newFIFO(t)
	ring := newRing(t)
	ring.SetFile(filepath.Join(t.TempDir(), "log"))
	wait := start(t, r, ring, nil)
	const rounds, lines = 5, 10000
	began := time.Now()
	for range rounds {
		w.WriteString("begun") // 5 bytes that stay
		time.Sleep(partialWait / 4)
		w.WriteString(strings.Repeat(long[:99]+"\n", lines)) // 1 MB
	}
	w.Close()
	wait()
	if c := ring.Counters(); c.Lines != rounds*lines || c.Bytes != rounds*(lines*99+5) || c.FileDropped != 0 {
		t.Errorf("%+v", c)
	}
	t.Logf("%d MB in %v", rounds, time.Since(began))
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// BenchmarkPump: lines a second through a FIFO, from 1 and from 20 clients at once.
func BenchmarkPump(b *testing.B) {
	block := strings.Repeat(long[:79]+"\n", 50) // as stdio writes them
	for _, file := range []bool{false, true} {
		for _, clients := range []int{1, 20} {
			b.Run(fmt.Sprintf("file=%v/clients=%d", file, clients), func(b *testing.B) {
				budget := NewBudget(BudgetSize)
				var waits []func()
				for i := range clients {
					r, w := newFIFO(b)
					ring := budget.Ring()
					b.Cleanup(ring.Close)
					if file {
						ring.SetFile(filepath.Join(b.TempDir(), fmt.Sprint(i)))
					}
					waits = append(waits, start(b, r, ring, nil))
					go func() {
						for n := 0; n < b.N/clients; n += 50 {
							w.WriteString(block)
						}
						w.Close()
					}()
				}
				for _, wait := range waits {
					wait()
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
			})
		}
	}
}
