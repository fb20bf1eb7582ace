package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pieces(lines ...string) (all []piece) {
	for _, l := range lines {
		all = append(all, piece{text: []byte(l)})
	}
	return all
}

// TestFilePlaces: what may be a client's file, and what is left as it was.
func TestFilePlaces(t *testing.T) {
	for _, c := range []struct {
		purpose string
		make    func(path string) error
		err     string
		want    string // the file, without stamps
	}{
		{"nothing there", func(string) error { return nil }, "", "new\n"},
		{"an older file", func(p string) error { return os.WriteFile(p, []byte("old\n"), 0o600) }, "", "old\nnew\n"},
		{"one that ends within a line", func(p string) error { return os.WriteFile(p, []byte("ol"), 0o600) }, "", "ol\nnew\n"},
		{"an empty one", func(p string) error { return os.WriteFile(p, nil, 0o600) }, "", "new\n"},
		{"no directory", func(p string) error { return os.Remove(filepath.Dir(p)) }, "no such file or directory", ""},
		{"a directory", func(p string) error { return os.Mkdir(p, 0o700) }, "no regular file", ""},
		{"a FIFO, which would block", func(p string) error { return unix.Mkfifo(p, 0o600) }, "no regular file", ""},
		{"a link, which can be anybody's", func(p string) error { return os.Symlink("/dev/full", p) }, "no regular file", ""},
	} {
		path := filepath.Join(t.TempDir(), "d", "log")
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), c.make(path)); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(path)
		f, at := &file{path: path}, time.Now()
		dropped, changed, err := f.write(pieces("new"), at)
		f.close()
		if c.err != "" {
			after, _ := os.Lstat(path)
			if dropped != 1 || !changed || err == nil || !strings.Contains(err.Error(), c.err) || fmt.Sprint(before) != fmt.Sprint(after) {
				t.Errorf("%s: dropped %d, changed %v, %v; it is %v, was %v", c.purpose, dropped, changed, err, after, before)
			}
			continue
		}
		b, _ := os.ReadFile(path)
		if got := strings.Replace(string(b), at.UTC().Format(stamp), "", 1); dropped != 0 || changed || err != nil || got != c.want {
			t.Errorf("%s: %q, dropped %d, %v", c.purpose, got, dropped, err)
		}
		if st, _ := os.Stat(path); before == nil && st.Mode() != 0o640 || before != nil && st.Mode() != 0o600 {
			t.Errorf("%s: mode %v", c.purpose, st.Mode())
		}
	}
}

// TestFileTrust: root does not open by its name what somebody else could exchange for a link to another file of root's.
func TestFileTrust(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("others than root harm only themselves")
	}
	const nobody = 65534
	for _, c := range []struct {
		purpose string
		make    func(dir string) error // PARENT/d, in which the file is to be
		ok      bool
	}{
		{"a link to a directory of root's", func(d string) error { return errors.Join(os.Rename(d, d+"2"), os.Symlink(d+"2", d)) }, true},
		{"a group may write further up", func(d string) error { return os.Chmod(filepath.Dir(d), 0o775) }, true},
		{"the client's directory", func(d string) error { return os.Chown(d, nobody, -1) }, false},
		{"a group may write", func(d string) error { return os.Chmod(d, 0o775) }, false},
		{"all may, as in /tmp", func(d string) error { return os.Chmod(d, 0o777|os.ModeSticky) }, false},
		{"the client's further up", func(d string) error { return os.Chown(filepath.Dir(d), nobody, -1) }, false},
		{"all may write further up", func(d string) error { return os.Chmod(filepath.Dir(d), 0o777) }, false},
	} {
		dir := filepath.Join(t.TempDir(), "parent", "d")
		if err := errors.Join(os.MkdirAll(dir, 0o755), c.make(dir)); err != nil {
			t.Fatal(err)
		}
		f := &file{path: filepath.Join(dir, "log")}
		dropped, _, err := f.write(pieces("new"), time.Now())
		f.close()
		if _, missing := os.Stat(f.path); c.ok != (err == nil) || c.ok != (missing == nil) || c.ok != (dropped == 0) ||
			!c.ok && !strings.Contains(err.Error(), "others than root can write to "+filepath.Dir(dir)) {
			t.Errorf("%s: %v", c.purpose, err)
		}
	}
}

// TestFileRetry: a failure is told once, lines are dropped and counted, at most one try a second is made, and that it works
// again is told once.
func TestFileRetry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	f, at := &file{path: filepath.Join(dir, "log")}, time.Now()
	defer f.close()
	for _, c := range []struct {
		purpose string
		do      func() error
		later   time.Duration
		dropped int
		changed bool
	}{
		{"no directory", nil, 0, 2, true},
		{"still none", nil, fileRetry, 2, false},
		{"there is one, but it is too early", func() error { return os.Mkdir(dir, 0o700) }, fileRetry / 2, 2, false},
		{"now it works", nil, fileRetry / 2, 0, true},
		{"and works", nil, 0, 0, false},
		{"removed under it: made again when it is missed", func() error { return os.Remove(f.path) }, fileRetry, 0, false},
		{"the directory too", func() error { return os.RemoveAll(dir) }, fileRetry, 2, true},
		{"another error: told again", func() error { return errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(f.path, 0o700)) }, fileRetry, 2, true},
		{"it works again", func() error { return os.Remove(f.path) }, fileRetry, 0, true},
	} {
		if c.do != nil {
			if err := c.do(); err != nil {
				t.Fatal(err)
			}
		}
		at = at.Add(c.later)
		dropped, changed, err := f.write(pieces("a", "b"), at)
		if dropped != c.dropped || changed != c.changed || (err == nil) != (dropped == 0) {
			t.Errorf("%s: dropped %d, changed %v, %v", c.purpose, dropped, changed, err)
		}
	}
	f.shut()
	if b, err := os.ReadFile(f.path); strings.Count(string(b), "\n") != 2 {
		t.Errorf("%q, %v", b, err)
	}
}

// TestRotation: a file stays below its size, one older is kept, no line is cut by it, and mode and lines stay.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	f := &file{path: filepath.Join(dir, "log.txt")}
	line := strings.Repeat("x", 1000)
	const lines = 4 * 1024
	for i := range lines / 4 {
		if dropped, _, err := f.write(pieces(fmt.Sprint(4*i, " ", line), line, line, line), time.Now()); dropped != 0 || err != nil {
			t.Fatal(dropped, err)
		}
		if i == 0 {
			os.Chmod(f.path, 0o604)
		}
	}
	f.close() // the library's goroutine has removed what it should
	names, _ := filepath.Glob(dir + "/*")
	if len(names) != 1+FileOld {
		t.Errorf("files %q", names)
	}
	slices.Sort(names) // log-TIME, log.txt
	n, first := 0, ""
	for _, name := range names {
		st, err := os.Stat(name)
		if err != nil || st.Size() > FileMiB<<20 || st.Mode() != 0o604 {
			t.Errorf("%v, %v", st, err)
		}
		for _, l := range fileLines(t, name) {
			if number, x, _ := strings.Cut(l, " "); first == "" && x == line {
				first = number
			} else if l != line && x != line {
				t.Fatalf("a line is %.40q", l)
			}
			n++
		}
	}
	if first != fmt.Sprint(lines-n) {
		t.Errorf("%d lines are left, beginning with %s", n, first)
	}
}

// TestManyLines: the most lines that a read can give go to the file in several writes, all of them.
func TestManyLines(t *testing.T) {
	f := &file{path: filepath.Join(t.TempDir(), "log")}
	dropped, _, err := f.write(make([]piece, 4*LineMax), time.Now())
	f.close()
	if n := len(fileLines(t, f.path)); n != 4*LineMax || dropped != 0 || err != nil {
		t.Errorf("%d lines in the file, %d dropped, %v", n, dropped, err)
	}
}

// TestFullDisk: on a file system that is full, or has no room for a rotation, the child is drained, what the file cannot take
// is counted, and it goes on when there is room.
func TestFullDisk(t *testing.T) {
	if os.Getenv("ZHX_LOGS_NAMESPACE") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), "ZHX_LOGS_NAMESPACE=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || strings.Contains(string(out), "--- SKIP") {
			t.Skip("no tmpfs in a namespace of our own here: ", err, string(out))
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	t.Run("full", func(t *testing.T) { fullDisk(t, "mode=0700,size=64k") })
	t.Run("rotation", func(t *testing.T) { fullDisk(t, "mode=0700,size=8m,nr_inodes=3") }) // its root, the ballast, the file
}

func fullDisk(t *testing.T, options string) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, options); err != nil {
		t.Skip("mount: ", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	ballast, path := filepath.Join(dir, "ballast"), filepath.Join(dir, "log")
	if err := os.WriteFile(ballast, make([]byte, 20<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	ring, told := newRing(t), make(chan error, 100)
	ring.OnFile(func(at string, err error) {
		if at != path {
			t.Errorf("told of %s", at)
		}
		told <- err
	})
	ring.SetFile(path)
	r, w := newFIFO(t)
	wait := start(t, r, ring, nil)
	sent := 0
	send := func() {
		sent++
		fmt.Fprintf(w, "%08d %s\n", sent, long[:991])
	}
	for len(told) == 0 && sent < 5000 {
		send()
	}
	if err := <-told; err == nil || !errors.Is(err, unix.ENOSPC) && !strings.Contains(err.Error(), "no space left") {
		t.Errorf("told %v", err)
	}
	for range 2000 { // more than the FIFO takes
		send()
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for len(told) == 0 {
		send()
		time.Sleep(10 * time.Millisecond)
	}
	if err := <-told; err != nil {
		t.Errorf("told %v instead of nil", err)
	}
	r.Close()
	wait()
	ring.SetFile("")
	var numbers []string
	names, _ := filepath.Glob(dir + "/log*")
	slices.Sort(names) // log, log-TIME
	slices.Reverse(names)
	for _, name := range names {
		b, _ := os.ReadFile(name)
		for line := range strings.Lines(string(b)) {
			if len(line) == len(stamp)+1001 && strings.HasSuffix(line, long[:991]+"\n") {
				numbers = append(numbers, line[len(stamp):][:8])
			}
		}
	}
	c := ring.Counters()
	if !slices.IsSorted(numbers) || int64(len(slices.Compact(numbers)))+c.FileDropped != c.Lines || c.FileDropped < 1000 {
		t.Errorf("%d sent, %+v, in the files %d", sent, c, len(numbers))
	}
	if last := numbers[len(numbers)-1]; last <= fmt.Sprintf("%08d", 2000) {
		t.Errorf("the last line in the file is %s of %d", last, sent)
	}
}

// TestFileOffNeedsNoFile: switching off a file that never was does nothing.
func TestFileOffNeedsNoFile(t *testing.T) {
	ring, path := newRing(t), filepath.Join(t.TempDir(), "log")
	ring.SetFile("")
	ring.SetFile(path)
	ring.SetFile("")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || ring.file.Load() != nil {
		t.Errorf("%v", err)
	}
}
