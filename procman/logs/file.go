// A client's own log file. The library rotates; this is what keeps it from harm: what path may be, what a failure costs,
// when it is tried again.

package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/DeRuina/timberjack"
)

const stamp = "2006-01-02T15:04:05.000Z " // RFC 3339 of UTC

// A file takes lines while it can. The pump writes, anybody closes.
type file struct {
	path string

	mu     sync.Mutex
	out    *timberjack.Logger // mu guards these; nil: not open
	batch  []byte
	looked time.Time // when it was seen at its path
	failed time.Time // with err
	err    error     // nil: it works
	closed bool      // the ring has another, or none
}

// write appends the lines, and tells how many it could not, and whether its state changed; err is nil if it works.
func (f *file) write(lines []piece, at time.Time) (dropped int, changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.err
	for len(lines) > 0 && dropped == 0 {
		n := f.format(lines, at)
		dropped = n - f.put(n, at)
		lines = lines[n:]
	}
	if dropped > 0 {
		dropped += len(lines)
	}
	if f.closed {
		f.shut() // these lines were read before
	}
	return dropped, kind(was) != kind(f.err), f.err
}

// format fills the batch, and tells with how many lines.
func (f *file) format(lines []piece, at time.Time) (n int) {
	f.batch = f.batch[:0]
	at = at.UTC()
	for n < len(lines) && len(f.batch) < fileBatch {
		f.batch = append(at.AppendFormat(f.batch, stamp), lines[n].text...)
		f.batch = append(f.batch, '\n')
		n++
	}
	return n
}

// put writes the batch of n lines, and tells how many of them are in the file.
func (f *file) put(n int, at time.Time) int {
	if f.err != nil && at.Sub(f.failed) < fileRetry {
		return 0
	}
	err := f.open(at)
	var written int
	if err == nil {
		written, err = f.out.Write(f.batch)
	}
	if f.err = err; err == nil {
		return n
	}
	f.failed = at
	f.shut() // so that the next try finds out what is there, a piece of a line above all
	return bytes.Count(f.batch[:written], []byte("\n"))
}

// open opens the file unless it is open. One that was removed, or whose directory was, is made again: lines would go nowhere.
func (f *file) open(at time.Time) error {
	if f.out != nil {
		if at.Sub(f.looked) < fileRetry {
			return nil
		}
		f.looked = at
		if _, err := os.Lstat(f.path); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		f.shut()
	}
	var torn bool
	path, err := resolve(f.path)
	if err == nil {
		torn, err = inspect(path)
	}
	if err != nil {
		return fmt.Errorf("log file: %w", err)
	}
	f.looked = at
	f.out = &timberjack.Logger{Filename: path, MaxSize: FileMiB, MaxBackups: FileOld}
	if torn {
		_, err = f.out.Write([]byte("\n"))
	}
	return err
}

// resolve answers path with no symbolic link in its directory, which must exist: the library would make it. The library opens,
// renames and gives files to their former owner by name. So root, as logrotate, does not write into a directory where somebody
// else could put a link in time, nor below one where somebody else could exchange directories. (That a group may write to one
// further up is somebody's choice, as for /var/log in Ubuntu.)
func resolve(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil || os.Geteuid() != 0 {
		return filepath.Join(dir, filepath.Base(path)), err
	}
	for at, writers := dir, fs.FileMode(0o022); ; at, writers = filepath.Dir(at), 0o002 {
		st, err := os.Lstat(at)
		if err != nil {
			return "", err
		}
		sticky := at != dir && st.Mode()&fs.ModeSticky != 0
		if st.Sys().(*syscall.Stat_t).Uid != 0 || st.Mode()&writers != 0 && !sticky {
			return "", fmt.Errorf("others than root can write to %s (mode %04o): root does not write %s", at, st.Mode().Perm(), path)
		}
		if at == "/" {
			return filepath.Join(dir, filepath.Base(path)), nil
		}
	}
}

// inspect tells whether a file may be written at path: the library would rename whatever else is there. torn: it ends within
// a line, of a zhxd that was killed or a disk that was full.
func inspect(path string) (torn bool, err error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || st.Size() == 0 && st.Mode().IsRegular() {
		return false, err
	}
	if !st.Mode().IsRegular() {
		return false, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	last := make([]byte, 1)
	_, err = f.ReadAt(last, st.Size()-1)
	return last[0] != '\n', err
}

// shut ends the library's goroutine too. It needs mu.
func (f *file) shut() {
	if f.out != nil {
		f.out.Close()
		f.out = nil
	}
}

func (f *file) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.shut()
}

// kind makes errors comparable: those of a failed rotation have the time in them.
func kind(err error) any {
	var errno syscall.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &errno):
		return errno
	}
	return "other"
}
