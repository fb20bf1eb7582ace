// What zhxd has in the file system: the run directory, its lock (one zhxd a run directory), and the sockets. Only the
// holder of the lock removes or replaces anything, and only what is a socket.
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"zhx/procman/proc"
)

const (
	dirMode        = 0o755
	stateMode      = 0o700
	notifyMode     = 0o711 // clients of any user reach the socket of their own run, which is theirs, and list nothing
	staleProbeTime = time.Second
	cookieSize     = 32 // bytes, twice as many in hexadecimal
)

// ErrRunning: another zhxd holds the run directory.
var ErrRunning = errors.New("zhxd already runs")

// rundir is a run directory that this process holds.
type rundir struct {
	path, state, notify string
	lock                *os.File
	secret              string // in the cookie; "": not made yet
}

// holdRundir makes the run directory and takes its lock. ErrRunning names the pid of the zhxd that has it.
func holdRundir(path string) (*rundir, error) {
	r := &rundir{path: path, state: filepath.Join(path, "state"), notify: filepath.Join(path, "notify")}
	if err := r.make(); err != nil {
		return nil, fmt.Errorf("make run_dir: %w", err)
	}
	lock := filepath.Join(r.state, "lock")
	if pid := bereft(lock); pid > 0 {
		return nil, fmt.Errorf("%w: pid %d holds %s, which was removed; it is about to make it again", ErrRunning, pid, path)
	}
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid, _ := os.ReadFile(lock)
			return nil, fmt.Errorf("%w: pid %s holds %s", ErrRunning, strings.TrimSpace(string(pid)), path)
		}
		return nil, fmt.Errorf("lock %s: %w", lock, err)
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	r.lock = f
	return r, nil
}

// bereft is a zhxd, or its keeper, whose lock was removed with its directory, and has no successor yet; 0: there is none.
func bereft(lock string) int {
	real, err := filepath.EvalSymlinks(filepath.Dir(lock))
	if fi, err2 := os.Lstat(lock); err != nil || err2 == nil && fi.Size() > 0 {
		return 0
	}
	return proc.FindTwin(filepath.Join(real, "lock") + " (deleted)")
}

// make makes the directories, of which the modes do not depend on umask. What is there already only gets wider: run_dir
// may be /tmp.
func (r *rundir) make() error {
	if err := os.MkdirAll(r.path, dirMode); err != nil {
		return err
	}
	fi, err := os.Stat(r.path)
	if err != nil {
		return err
	}
	// Whoever could put others in the place of its entries would be zhxd to everybody.
	if uid := int(fi.Sys().(*syscall.Stat_t).Uid); uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("%s is uid %d's: remove it, or name another run_dir", r.path, uid)
	}
	if fi.Mode()&0o022 != 0 && fi.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("others can write to %s (mode %v): chmod go-w it", r.path, fi.Mode().Perm())
	}
	if fi.Mode()&dirMode != dirMode {
		if err := os.Chmod(r.path, fi.Mode()|dirMode); err != nil {
			return err
		}
	}
	for dir, mode := range map[string]fs.FileMode{r.state: stateMode, r.notify: notifyMode} {
		if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		fi, err := os.Lstat(dir) // in /tmp somebody else may have made it, or a link to any other directory
		if err != nil {
			return err
		}
		if uid := int(fi.Sys().(*syscall.Stat_t).Uid); !fi.IsDir() || uid != os.Geteuid() {
			return fmt.Errorf("%s is uid %d's, or no directory: remove it", dir, uid)
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	return nil
}

func (r *rundir) cookiePath() string { return filepath.Join(r.path, "cookie") }

// makeCookie gives what a client over TCP has to know, which a zhxd that goes on from another takes over. The group may read it.
// What others may have put in its place is replaced: run_dir may be /tmp.
func (r *rundir) makeCookie(group string) (string, error) {
	mode := fs.FileMode(0o600)
	gid, err := lookupGroup(group)
	if err != nil {
		return "", err
	}
	if gid >= 0 {
		mode = 0o640
	}
	path := r.cookiePath()
	if fi, err := os.Lstat(path); err == nil {
		st := fi.Sys().(*syscall.Stat_t)
		if fi.Mode() == mode && int(st.Uid) == os.Geteuid() && (gid < 0 || int(st.Gid) == gid) { // else it may be a FIFO, and not read
			if b, err := os.ReadFile(path); err == nil && len(b) == 2*cookieSize {
				r.secret = string(b)
				return r.secret, nil
			}
		}
		r.secret = ""
		if err := os.Remove(path); err != nil {
			return "", err
		}
	}
	if r.secret == "" {
		secret := make([]byte, cookieSize)
		rand.Read(secret)
		r.secret = hex.EncodeToString(secret)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err = f.WriteString(r.secret); err == nil {
		err = f.Chown(-1, gid)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err != nil {
		return "", err
	}
	return r.secret, nil
}

// whole tells whether the directories are there, and the lock is the one that this process holds.
func (r *rundir) whole() bool {
	ours, err := r.lock.Stat()
	now, err2 := os.Lstat(r.lock.Name())
	_, err3 := os.Lstat(r.notify)
	return errors.Join(err, err2, err3) == nil && os.SameFile(ours, now)
}

// release gives the run directory up; the lock file stays, so that no two holders can have different files.
func (r *rundir) release() { r.lock.Close() }

// listenUnix makes a listening socket with exactly that mode and group. A socket that nobody listens on is replaced; one
// that answers belongs to somebody else; what is no socket is left alone.
func listenUnix(path, key string, mode fs.FileMode, group string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return nil, fmt.Errorf("[daemon] %s: %w", key, err)
	}
	switch fi, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("[daemon] %s: %w", key, err)
	case fi.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("[daemon] %s: %s exists and is no socket: remove it", key, path)
	default:
		c, err := net.DialTimeout("unix", path, staleProbeTime)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) { // EAGAIN: its queue is full
			return nil, fmt.Errorf("[daemon] %s: another program listens on %s", key, path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("[daemon] %s: %w", key, err)
		}
	}
	// Born without any permission (bind(2) takes the mode of the socket), then given its group and mode: nobody can connect in
	// between.
	born := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0) }), err)
	}}
	l, err := born.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("[daemon] %s: %w", key, err)
	}
	ln := l.(*net.UnixListener)
	gid, err := lookupGroup(group)
	if err == nil {
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("[daemon] %s: %w", key, err)
	}
	return ln, nil
}

// lookupGroup resolves a group by name or number; "" is -1: leave as it is.
func lookupGroup(name string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1, err
	}
	return strconv.Atoi(g.Gid)
}
