package hardware

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The test binary is its own child: a process that writes a record, and dies or meets a full disk at a step of it.
func TestMain(m *testing.M) {
	if dir := os.Getenv("HARDWARE_TEST_DIR"); dir != "" {
		writeAndDie(dir, os.Getenv("HARDWARE_TEST_DIE"))
		return
	}
	os.Exit(m.Run())
}

// writeAndDie kills itself before the step that is given; before none there are it does so after Write. "full": files
// must not grow.
func writeAndDie(dir, die string) {
	r, err := Load(dir, "boot 2", at(time.Minute))
	if err != nil && !errors.Is(err, ErrVolatile) {
		fmt.Println(err)
		return
	}
	kill := func() {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // until it is here
	}
	if die == "full" {
		signal.Ignore(syscall.SIGXFSZ) // EFBIG instead
		var was unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was)
		if err == nil {
			err = unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 10, Max: was.Max})
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		defer unix.Setrlimit(unix.RLIMIT_FSIZE, &was) // for what the test binary itself writes at its end
	}
	r.step = func(i int) error {
		if strconv.Itoa(i) == die {
			kill()
		}
		return nil
	}
	err = r.Write(Reset{Reason: "new"})
	if die == "full" {
		if !errors.Is(err, unix.EFBIG) {
			fmt.Println("no EFBIG:", err)
		}
		return
	}
	kill()
}

func at(uptime time.Duration) func() time.Duration { return func() time.Duration { return uptime } }

// load takes a directory in memory for a disk, for a test's is often there.
func load(t *testing.T, dir, boot string, uptime func() time.Duration) *Record {
	t.Helper()
	r, err := Load(dir, boot, uptime)
	if errors.Is(err, ErrVolatile) {
		r.lost, err = false, nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// write is a boot that lasts for uptime and ends with a reset.
func write(t *testing.T, dir, boot string, uptime time.Duration, reset Reset) {
	t.Helper()
	if err := load(t, dir, boot, at(uptime)).Write(reset); err != nil {
		t.Fatal(err)
	}
}

// reasons are the file's resets, oldest first.
func reasons(t *testing.T, dir string) string {
	t.Helper()
	var s []string
	for _, reset := range load(t, dir, "reader", at(0)).kept() {
		s = append(s, reset.Reason)
	}
	return strings.Join(s, " ")
}

// The next boot is told of the reset, with what Write knows; the boot itself is not, nor before there is one.
func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "zhx")
	r := load(t, dir, "boot 1", at(90*time.Second))
	if last, ok := r.Last(); ok || r.Recent(time.Hour) != 0 {
		t.Errorf("an empty record has %+v, %d", last, r.Recent(time.Hour))
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("before the first reset there is %v, %v", names, err)
	}
	before := time.Now()
	if err := r.Write(Reset{Reason: "radio is dead " + strings.Repeat("x", 1000), Client: "radio", Run: 7}); err != nil {
		t.Fatal(err)
	}
	if last, ok := r.Last(); ok {
		t.Errorf("it is of this boot: %+v", last)
	}
	if n := r.Recent(time.Second); n != 1 {
		t.Errorf("recent %d: the one of this boot counts", n)
	}

	last, ok := load(t, dir, "boot 2", at(0)).Last()
	if !ok || last.At.Before(before.Add(-time.Second)) || last.At.After(time.Now().Add(time.Second)) {
		t.Errorf("%v, at %v", ok, last.At)
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	want := Reset{Reason: ("radio is dead " + strings.Repeat("x", 1000))[:reasonMax], Client: "radio", Run: 7,
		Boot: "boot 1", Uptime: 90 * time.Second, At: last.At, Synced: err == nil && state != unix.TIME_ERROR, Count: 1}
	if d := cmp.Diff(want, last); d != "" {
		t.Error(d)
	}

	for i := range 2 * Kept {
		write(t, dir, fmt.Sprint("boot ", 2+i), time.Minute, Reset{Reason: fmt.Sprint(i)})
	}
	r = load(t, dir, "now", at(0))
	if last, _ := r.Last(); last.Count != 2*Kept+1 || last.Reason != "31" || len(r.kept()) != Kept || r.kept()[0].Reason != "16" {
		t.Errorf("%d resets, the last %+v", len(r.kept()), last)
	}
	if n := r.Recent(24 * time.Hour); n != Kept {
		t.Errorf("recent %d, want %d", n, Kept)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 || names[0].Name() != "resets.json" {
		t.Errorf("%v, %v", names, err)
	}
}

// What counts as recent, by the time in which the machine ran.
func TestRecent(t *testing.T) {
	type boot struct {
		id     string
		uptime time.Duration // at its reset
	}
	const min = time.Minute
	for _, tt := range []struct {
		name   string
		boots  []boot
		now    boot
		within time.Duration
		want   int
	}{
		{"nothing", nil, boot{"z", min}, time.Hour, 0},
		{"the last boot's reset is as old as this boot", []boot{{"a", 50 * min}}, boot{"z", 10 * min}, time.Hour, 1},
		{"and is past when this boot has lasted", []boot{{"a", 50 * min}}, boot{"z", 60 * min}, time.Hour, 0},
		{"boots between add up", []boot{{"a", 5 * min}, {"b", 20 * min}, {"c", 20 * min}, {"d", 20 * min}}, boot{"z", min}, time.Hour, 3},
		{"to the minute", []boot{{"a", 5 * min}, {"b", 20 * min}, {"c", 20 * min}, {"d", 20 * min}}, boot{"z", min}, 61*min + 1, 4},
		{"how long the oldest one's boot was is nothing to it", []boot{{"a", 500 * min}}, boot{"z", min}, time.Hour, 1},
		{"a loop of short boots", []boot{{"a", min}, {"b", min}, {"c", min}, {"d", min}, {"e", min}}, boot{"z", min}, time.Hour, 5},
		{"a reset of this boot that failed", []boot{{"a", min}, {"z", 10 * min}}, boot{"z", 30 * min}, 25 * min, 1},
		{"this boot counts once", []boot{{"a", min}, {"z", 10 * min}, {"z", 20 * min}}, boot{"z", 30 * min}, 30*min + 1, 3},
		{"two in one earlier boot", []boot{{"a", 10 * min}, {"a", 40 * min}}, boot{"z", 40 * min}, time.Hour, 1},
		{"the earlier of the two", []boot{{"a", 10 * min}, {"a", 40 * min}}, boot{"z", 40 * min}, 70*min + 1, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, b := range tt.boots {
				write(t, dir, b.id, b.uptime, Reset{})
			}
			if n := load(t, dir, tt.now.id, at(tt.now.uptime)).Recent(tt.within); n != tt.want {
				t.Errorf("recent %d, want %d", n, tt.want)
			}
		})
	}
}

// A broken record is an error, and uses up the budget until the machine has run for the window; then it works.
func TestBroken(t *testing.T) {
	good := t.TempDir()
	write(t, good, "boot 1", time.Minute, Reset{Reason: "old"})
	whole, err := os.ReadFile(filepath.Join(good, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty": "", "cut off": string(whole[:len(whole)-3]), "another format": `{"format":2,"resets":[]}`, "no object": "[]", "zeros": "\x00\x00\x00\x00",
		"two": string(whole) + string(whole), "negative uptime": strings.Replace(string(whole), `"uptime_ns":6`, `"uptime_ns":-6`, 1),
		"no boot": strings.Replace(string(whole), "boot 1", "", 1), "wrong type": strings.Replace(string(whole), `"old"`, "1", 1),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, fileName), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			now := 2 * time.Hour
			r, err := Load(dir, "boot 2", func() time.Duration { return now })
			if err == nil || errors.Is(err, ErrVolatile) || !strings.Contains(err.Error(), fileName) {
				t.Fatalf("error %v", err)
			}
			if last, ok := r.Last(); ok {
				t.Errorf("%+v", last)
			}
			now += 59 * time.Minute
			if n := r.Recent(time.Hour); n != Kept {
				t.Errorf("recent %d, want %d", n, Kept)
			}
			now += time.Minute
			if n := r.Recent(time.Hour); n != 0 {
				t.Errorf("recent %d after an hour, want 0", n)
			}
			if err := r.Write(Reset{Reason: "new"}); err != nil || reasons(t, dir) != "new" {
				t.Errorf("%q, %v", reasons(t, dir), err)
			}
		})
	}
}

// A directory that cannot be, and a record that cannot be read, are as a broken one.
func TestUnreadable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, fileName), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]unix.Errno{filepath.Join(file, "zhx"): unix.ENOTDIR, dir: unix.EISDIR} {
		r, err := Load(path, "boot", at(0))
		if !errors.Is(err, want) || r.Recent(time.Hour) != Kept {
			t.Errorf("%s: %v, recent %d", path, err, r.Recent(time.Hour))
		}
		if err := r.Write(Reset{}); err == nil {
			t.Errorf("%s: written", path)
		}
	}
}

// A record in memory is lost with each boot: one reset in the window's time of running, though the record seems empty.
func TestVolatile(t *testing.T) {
	var s unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &s); err != nil || uint32(s.Type) != unix.TMPFS_MAGIC {
		t.Skipf("/dev/shm is no tmpfs: %v", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "zhx")
	if err != nil {
		t.Skipf("/dev/shm: %v", err)
	}
	defer os.RemoveAll(dir)
	for uptime, want := range map[time.Duration]int{0: Kept, 59 * time.Minute: Kept, time.Hour: 0} {
		if r, err := Load(dir, "boot", at(uptime)); !errors.Is(err, ErrVolatile) || r.Recent(time.Hour) != want {
			t.Errorf("up for %v: %v, recent %d, want %d", uptime, err, r.Recent(time.Hour), want)
		}
	}
}

const steps = 6 // of Write: create, write, sync, close, rename, sync of the directory

// child runs writeAndDie, and says whether it was killed.
func child(t *testing.T, dir, die string) bool {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "HARDWARE_TEST_DIR="+dir, "HARDWARE_TEST_DIE="+die)
	out, err := c.CombinedOutput()
	if len(out) > 0 {
		t.Fatalf("child: %s", out)
	}
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL
}

// kill -9 before each step of Write and after the last leaves the old record or the new one, with or without one before;
// and the next Write works, whatever was left over.
func TestCrash(t *testing.T) {
	for _, old := range []string{"", "old"} {
		for i := range steps + 1 {
			t.Run(fmt.Sprintf("%q before step %d", old, i), func(t *testing.T) {
				dir := t.TempDir()
				if old != "" {
					write(t, dir, "boot 1", time.Minute, Reset{Reason: old})
				}
				if !child(t, dir, strconv.Itoa(i)) {
					t.Fatal("it was not killed")
				}
				want := old
				if i >= 5 { // the rename is step 4
					want = strings.TrimSpace(old + " new")
				}
				if got := reasons(t, dir); got != want {
					t.Errorf("record %q, want %q", got, want)
				}
				write(t, dir, "boot 3", time.Minute, Reset{Reason: "next"})
				if got := reasons(t, dir); got != strings.TrimSpace(want+" next") {
					t.Errorf("record %q after the next", got)
				}
				if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
					t.Errorf("left over: %v, %v", names, err)
				}
			})
		}
	}
}

// What a crash in the middle of the data left is not read, and overwritten.
func TestCutOff(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "boot 1", time.Minute, Reset{Reason: "old"})
	tmp := filepath.Join(dir, fileName+".tmp")
	if err := os.WriteFile(tmp, []byte(`{"format": 1, "resets": [ {"reason": "ne`+strings.Repeat("w", 1<<16)), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := reasons(t, dir); got != "old" {
		t.Errorf("record %q", got)
	}
	write(t, dir, "boot 2", time.Minute, Reset{Reason: "new"})
	if got := reasons(t, dir); got != "old new" {
		t.Errorf("record %q", got)
	}
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Error("the temporary file is left over")
	}
}

// An error at any step is told; the old record stays, in memory and, unless the new one had its name already, in the file.
func TestStepFails(t *testing.T) {
	for i := range steps {
		dir := t.TempDir()
		write(t, dir, "boot 1", time.Minute, Reset{Reason: "old"})
		r := load(t, dir, "boot 2", at(time.Minute))
		ran := 0
		r.step = func(n int) error {
			if ran = n; n == i {
				return unix.ENOSPC
			}
			return nil
		}
		if err := r.Write(Reset{Reason: "new"}); !errors.Is(err, unix.ENOSPC) || ran != i {
			t.Errorf("step %d: %v, at %d", i, err, ran)
		}
		want := "old"
		if i == 5 {
			want = "old new"
		}
		if got := reasons(t, dir); got != want || len(r.kept()) != 1 {
			t.Errorf("step %d: record %q, in memory %d, want %q", i, got, len(r.kept()), want)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
			t.Errorf("step %d: left over: %v, %v", i, names, err)
		}
	}
}

// The kernel cuts the write off: an error, the old record, nothing left over.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "boot 1", time.Minute, Reset{Reason: "old"})
	if child(t, dir, "full") {
		t.Error("it was killed")
	}
	if got := reasons(t, dir); got != "old" {
		t.Errorf("record %q", got)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left over: %v, %v", names, err)
	}
}

// Last and Recent answer while a Write hangs in the disk.
func TestHungDisk(t *testing.T) {
	r := load(t, t.TempDir(), "boot", at(time.Minute))
	hung, disk := make(chan struct{}), make(chan struct{})
	r.step = func(i int) error {
		if i == 2 {
			close(hung)
			<-disk
		}
		return nil
	}
	done := make(chan error)
	go func() { done <- r.Write(Reset{}) }()
	<-hung
	if _, ok := r.Last(); ok || r.Recent(time.Hour) != 0 {
		t.Error("it is not written yet")
	}
	close(disk)
	if err := <-done; err != nil || r.Recent(time.Hour) != 1 {
		t.Errorf("%v, recent %d", err, r.Recent(time.Hour))
	}
}
