// Telling when clients.toml has changed. fsnotify watches directories, not the file: an editor may write in place, rename
// over, or move a symbolic link on the way. What an event says is not trusted; it is the occasion to look.

package config

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	settle    = 100 * time.Millisecond // how long no event must come before the file is looked at
	settleMax = time.Second            // and looked at nonetheless when events do not end
	followMax = 10                     // how often the way to the file is looked up when it changes while it is; then events tell
)

// look is what the file is like: two different looks are a change.
type look struct {
	sum [sha256.Size]byte
	err string // why it cannot be used: missing, not readable, others can write it
}

func lookAt(path string) look {
	data, err := read(path)
	if err != nil {
		return look{err: err.Error()}
	}
	return look{sum: sha256.Sum256(data)}
}

// Watch calls changed, from its own goroutine, whenever the file at c.Path has become another than what c was loaded from,
// or than it was at the last call: its contents, whether it can be read, and who may write it. A burst of changes is one
// call, 100 ms after its last event and at least one a second. It returns when ctx ends (with its error) or watching fails.
//
// A file that went away is a change like any other, and so is its return, with its directory or without: the nearest
// directory that exists is watched meanwhile. File systems that do not tell of changes made elsewhere (NFS, FUSE) need a
// reload by hand.
//
// Whoever wants to know that a file has stood still for a time starts that time anew at each call, and compares Config.Sum
// at its end.
func (c *Config) Watch(ctx context.Context, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", c.Path, err)
	}
	defer w.Close()
	mounts := make(chan struct{}, 1)
	if stop, err := WatchMounts(mounts); err == nil { // without /proc: what is mounted on the way is noticed at the next event
		defer stop()
	}
	last := look{sum: c.Sum}
	places, err := follow(w, c.Path)
	quiet := time.NewTimer(0) // the first look: the file may have changed before it was watched
	var since time.Time       // of the first event that was not looked at yet
	for err == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Errors: // events were lost: look
		case <-mounts:
		case e := <-w.Events:
			if !slices.Contains(places, filepath.Clean(e.Name)) { // what is in / it calls //file
				continue
			}
		case <-quiet.C:
			since = time.Time{}
			places, err = follow(w, c.Path)
			if now := lookAt(c.Path); now != last {
				last = now
				changed()
			}
			continue
		}
		if since.IsZero() {
			since = time.Now()
		}
		quiet.Reset(min(settle, max(0, settleMax-time.Since(since))))
	}
	return err
}

// WatchMounts sends to changed, without waiting, whenever something is mounted or unmounted for this process, until stop: a
// directory that another is mounted over sends no event, nor does one whose file system somebody else has still mounted.
func WatchMounts(changed chan<- struct{}) (stop func(), err error) {
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	go conn.Read(func(uintptr) bool { // once at first, then at each change
		select {
		case changed <- struct{}{}:
		default:
		}
		return false
	})
	return func() { f.Close() }, nil
}

// follow has w watch the directories that path leads through, and no others. It returns the names of which an event is of
// interest.
func follow(w *fsnotify.Watcher, path string) (places []string, err error) {
	for range followMax {
		entries, _ := trail(path)
		places = entries
		for _, entry := range entries {
			dir := filepath.Dir(entry)
			if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("watch %s: %w", dir, err)
			}
			places = append(places, dir)
		}
		for _, dir := range w.WatchList() {
			if !slices.Contains(places[len(entries):], dir) {
				w.Remove(dir) // an error says that it is gone already
			}
		}
		if again, _ := trail(path); slices.Equal(entries, again) {
			break
		}
	}
	return places, nil
}

// trail walks path as the kernel does. The entries are what decides where it leads, in this order: its symbolic links, and
// last where it ends, each as a path that is free of links but for its last element. If something is missing or barred on
// the way, that is the last entry, and the error says why.
func trail(path string) (entries []string, err error) {
	if !filepath.IsAbs(path) {
		wd, err := os.Getwd()
		if err != nil {
			return []string{path}, err
		}
		path = wd + "/" + path // not cleaned: what .. is depends on the links before it
	}
	at, links := "/", 0
	for rest := strings.Split(path, "/"); len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		fi, err := os.Lstat(next)
		if err != nil {
			return append(entries, next), err
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		entries = append(entries, next)
		to, err := os.Readlink(next)
		if links++; err == nil && links > linksMax {
			err = &fs.PathError{Op: "follow", Path: path, Err: errors.New("too many symbolic links")}
		}
		if err != nil {
			return entries, err
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return append(entries, at), nil
}
