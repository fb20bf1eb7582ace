package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// looking is a Watch on a real file. Each call of changed puts what the file is like then into seen.
type looking struct {
	*testing.T
	path string
	seen chan string
}

func startLooking(t *testing.T, path string, watch func(ctx context.Context, changed func()) error) *looking {
	l := &looking{T: t, path: path, seen: make(chan string, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- watch(ctx, func() {
			data, err := read(path)
			if err != nil {
				data = []byte(fmt.Sprint(bare(err)))
			}
			l.seen <- string(data)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
		goleak.VerifyNone(t)
	})
	return l
}

// await waits until the file was seen as want and returns how many calls that took.
func (l *looking) await(want string) (calls int) {
	l.Helper()
	deadline := time.After(10 * time.Second)
	var last string
	for {
		select {
		case last = <-l.seen:
			if calls++; last == want {
				return calls
			}
		case <-deadline:
			l.Fatalf("not seen: %q; %d calls, the last saw %q", want, calls, last)
		}
	}
}

// must stops the test at the first failure.
func (l *looking) must(errs ...error) {
	l.Helper()
	if err := errors.Join(errs...); err != nil {
		l.Fatal(err)
	}
}

func save(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }

const missing = "no such file or directory"

// All ways in which a file comes to have other contents. Each story begins with dir/etc/clients.toml, "0".
func TestWatch(t *testing.T) {
	for _, row := range []struct {
		purpose string
		prepare func(dir string) error
		play    func(l *looking, dir string)
	}{
		{"written in place", nil, func(l *looking, dir string) {
			l.must(save(l.path, "1"))
			l.await("1")
			l.must(save(l.path, "2"))
			l.await("2")
		}},
		{"renamed over", nil, func(l *looking, dir string) {
			for _, text := range []string{"1", "2", "3"} {
				l.must(save(l.path+".new", text), os.Rename(l.path+".new", l.path))
				l.await(text)
			}
		}},
		{"as vim does: the old file is moved away, a new one is written", nil, func(l *looking, dir string) {
			for _, text := range []string{"1", "2", "3"} {
				l.must(os.Rename(l.path, l.path+"~"), save(l.path, text), os.Remove(l.path+"~"))
				l.await(text)
			}
		}},
		{"half-written, then completed", nil, func(l *looking, dir string) {
			f, err := os.Create(l.path)
			l.must(err)
			defer f.Close()
			_, err = f.WriteString("ha")
			l.must(err)
			l.await("ha")
			_, err = f.WriteString("lf and whole")
			l.must(err)
			l.await("half and whole")
		}},
		{"removed and made again", nil, func(l *looking, dir string) {
			for _, text := range []string{"1", "2"} {
				l.must(os.Remove(l.path))
				l.await(missing)
				l.must(save(l.path, text))
				l.await(text)
			}
		}},
		{"removed and made again with its directory", nil, func(l *looking, dir string) {
			for _, text := range []string{"1", "2"} {
				l.must(os.RemoveAll(dir + "/etc"))
				l.await(missing)
				l.must(os.Mkdir(dir+"/etc", 0o755), save(l.path, text))
				l.await(text)
			}
		}},
		{"another directory takes the place", nil, func(l *looking, dir string) {
			for _, text := range []string{"1", "2"} {
				l.must(os.Mkdir(dir+"/new", 0o755), save(dir+"/new/clients.toml", text),
					os.Rename(dir+"/etc", dir+"/old"+text), os.Rename(dir+"/new", dir+"/etc"))
				l.await(text)
			}
			l.must(save(l.path, "3"))
			l.await("3")
		}},
		{"the directory does not exist at first, nor the one above", func(dir string) error { return os.RemoveAll(dir + "/etc") }, func(l *looking, dir string) {
			l.path = dir + "/etc/clients.toml"
			l.must(os.MkdirAll(dir+"/etc", 0o755), save(l.path, "1"))
			l.await("1")
		}},
		{"a symbolic link is swapped, as Kubernetes does",
			func(dir string) error {
				return errors.Join(os.MkdirAll(dir+"/etc/..v0", 0o755), os.Rename(dir+"/etc/clients.toml", dir+"/etc/..v0/clients.toml"),
					os.Symlink("..v0", dir+"/etc/..data"), os.Symlink("..data/clients.toml", dir+"/etc/clients.toml"))
			},
			func(l *looking, dir string) {
				for _, text := range []string{"1", "2"} {
					v := "..v" + text
					l.must(os.Mkdir(dir+"/etc/"+v, 0o755), save(dir+"/etc/"+v+"/clients.toml", text),
						os.Symlink(v, dir+"/etc/..tmp"), os.Rename(dir+"/etc/..tmp", dir+"/etc/..data"))
					l.await(text)
				}
				l.must(save(dir+"/etc/..v2/clients.toml", "3"))
				l.await("3")
			}},
		{"a link to a link to the file: each may change",
			func(dir string) error {
				return errors.Join(os.MkdirAll(dir+"/a", 0o755), os.MkdirAll(dir+"/b/c", 0o755), os.Rename(dir+"/etc/clients.toml", dir+"/b/c/real"),
					os.Symlink(dir+"/b/c/../c/real", dir+"/a/link"), os.Symlink("../a/link", dir+"/etc/clients.toml"))
			},
			func(l *looking, dir string) {
				l.must(save(dir+"/b/c/real", "1"))
				l.await("1")
				l.must(save(dir+"/b/other", "2"), os.Symlink("../b/other", dir+"/a/new"), os.Rename(dir+"/a/new", dir+"/a/link"))
				l.await("2")
				l.must(os.Remove(dir + "/b/other"))
				l.await(missing)
				l.must(save(dir+"/b/other", "3"))
				l.await("3")
				l.must(save(l.path+".new", "4"), os.Rename(l.path+".new", l.path))
				l.await("4")
			}},
	} {
		t.Run(row.purpose, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			path := dir + "/etc/clients.toml"
			if err := errors.Join(os.Mkdir(dir+"/etc", 0o755), save(path, "0")); err != nil {
				t.Fatal(err)
			}
			if row.prepare != nil {
				if err := row.prepare(dir); err != nil {
					t.Fatal(err)
				}
			}
			c := &Config{Path: path} // of a Sum that no file has: the first look is a change
			l := startLooking(t, path, c.Watch)
			if data, err := read(path); err != nil {
				l.await(missing)
			} else {
				l.await(string(data))
			}
			row.play(l, dir)
		})
	}
}

// A hundred saves are few calls, and the last of them saw the last save.
func TestWatchBurst(t *testing.T) {
	path := t.TempDir() + "/clients.toml"
	if err := save(path, "#"); err != nil {
		t.Fatal(err)
	}
	l := startLooking(t, path, (&Config{Path: path}).Watch)
	l.await("#")
	began := time.Now()
	for i := range 100 {
		l.must(save(path, fmt.Sprint("#", i)))
	}
	most := 2 + int(time.Since(began)/settle) // at worst the saves came slowly, and each pause was one
	if calls := l.await("#99"); calls > most {
		t.Errorf("%d calls, at most %d expected", calls, most)
	}
}

// An edit between Load and Watch is not lost; without one nothing is said of a file that did not change.
func TestWatchFromLoaded(t *testing.T) {
	path := t.TempDir() + "/clients.toml"
	if err := save(path, "#0"); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path, inRun)
	if err != nil {
		t.Fatal(err)
	}
	if lookAt(path) != (look{sum: c.Sum}) {
		t.Error("what was loaded looks different from the file")
	}
	if err := save(path, "#1"); err != nil {
		t.Fatal(err)
	}
	l := startLooking(t, path, c.Watch)
	l.await("#1")
}

// A file in / and one whose directory is there: fsnotify names them with two slashes.
func TestWatchRoot(t *testing.T) {
	dir, err := os.MkdirTemp("/", "zhx-test-")
	if err != nil {
		t.Skip("needs a directory of its own in /: ", err)
	}
	defer os.RemoveAll(dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	path := dir + "/clients.toml"
	l := startLooking(t, path, (&Config{Path: path}).Watch)
	l.await(missing)
	l.must(os.Mkdir(dir, 0o755), save(path, "#"))
	l.await("#")
}

// Who may write the file is part of what it is like: Load refuses it otherwise.
func TestWatchMode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root refuses what others can write")
	}
	path := t.TempDir() + "/clients.toml"
	if err := save(path, "#"); err != nil {
		t.Fatal(err)
	}
	l := startLooking(t, path, (&Config{Path: path}).Watch)
	l.await("#")
	l.must(os.Chmod(path, 0o666))
	l.await(fmt.Sprintf("others can write %s (mode 0666): zhxd does not run as root what others wrote; chmod go-w %s", path, path))
	l.must(os.Chmod(path, 0o644))
	l.await("#")
}

// The way to a file, as the kernel goes it.
func TestTrail(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.MkdirAll(dir+"/a/b", 0o755), save(dir+"/a/b/file", ""), os.Symlink("a", dir+"/to-a"), os.Symlink("../../to-a/b", dir+"/a/b/up"),
		os.Symlink(dir+"/to-a/b/file", dir+"/abs"), os.Symlink("gone", dir+"/dangling"), os.Symlink("self", dir+"/self"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		path string
		want []string
		err  string
	}{
		{"a/b/file", []string{"a/b/file"}, ""},
		{"to-a/../a//b/./file", []string{"to-a", "a/b/file"}, ""},
		{"a/b/up/file", []string{"a/b/up", "to-a", "a/b/file"}, ""},
		{"abs", []string{"abs", "to-a", "a/b/file"}, ""},
		{"dangling", []string{"dangling", "gone"}, missing},
		{"a/x/y", []string{"a/x"}, missing},
		{"a/b/file/y", []string{"a/b/file/y"}, "not a directory"},
		{"self", slices.Repeat([]string{"self"}, linksMax+1), "too many symbolic links"},
	} {
		got, err := trail(dir + "/" + row.path)
		for i := range got {
			got[i], _ = filepath.Rel(dir, got[i])
		}
		text := ""
		if err != nil {
			text = bare(err).Error()
		}
		if !slices.Equal(got, row.want) || text != row.err {
			t.Errorf("%s: %q, %q; want %q, %q", row.path, got, text, row.want, row.err)
		}
	}
}
