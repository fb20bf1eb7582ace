// What zhxd has in the file system is looked after: a socket that somebody unlinks, or a run directory that is removed or
// unmounted, is made again, else nobody new could connect and no client could be started.
//
//	inotify: something of ours was deleted or moved ─> guard ─> run directory, lock, cookie, records ─> sockets, served anew
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/config"
)

const (
	guardSettle = 100 * time.Millisecond // from the first event of a removal, which has many, to the look
	guardAgain  = 2 * time.Second        // after something could not be made, or not be watched
)

// guarded is a Unix socket of zhxd's.
type guarded struct {
	path  string
	make  func() (*net.UnixListener, error)
	serve func(*net.UnixListener) (end func()) // on goroutines of its own

	ln  *net.UnixListener
	as  fs.FileInfo // what was made at path
	end func()
}

func (g *guarded) open() error {
	ln, err := g.make()
	if err != nil {
		return err
	}
	as, err := os.Lstat(g.path)
	if err != nil {
		ln.Close()
		return err
	}
	g.ln, g.as = ln, as
	return nil
}

// guard looks after the run directory and the sockets until ctx ends.
func (d *Daemon) guard(ctx context.Context, sockets []*guarded) {
	told, mounts := "", make(chan struct{}, 1)
	if stop, err := config.WatchMounts(mounts); err == nil {
		defer stop()
	}
	for ctx.Err() == nil {
		events, err := d.watchPlaces(sockets) // before the look: what happens after that is an event
		if err = errors.Join(err, d.restore(sockets)); err != nil {
			if err.Error() != told {
				d.log.Error("run directory is not whole", "err", err, "next", "tried again each "+guardAgain.String())
			}
			told = err.Error()
			rest(ctx, guardAgain)
		} else {
			told = ""
			if events == nil { // something was not there to be watched; now it is
				continue
			}
			event := make(chan struct{})
			go func() {
				events.Read(make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1))
				close(event)
			}()
			select {
			case <-event:
			case <-mounts:
			case <-ctx.Done():
			}
			if ctx.Err() == nil {
				<-time.After(guardSettle)
			}
		}
		events.Close() // of nil: an error, no harm
	}
}

// watchPlaces has the kernel tell when one of the places is deleted, moved or unmounted, or something in a socket's directory is.
// nil without an error: one is not there.
func (d *Daemon) watchPlaces(sockets []*guarded) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch the run directory: %w", err)
	}
	const itself = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	places := map[string]uint32{d.dir.path: itself, d.dir.state: itself, d.dir.notify: itself}
	for _, g := range sockets {
		places[filepath.Dir(g.path)] = itself | unix.IN_DELETE | unix.IN_MOVED_FROM
	}
	for path, mask := range places {
		if _, err := unix.InotifyAddWatch(fd, path, mask); err != nil {
			unix.Close(fd)
			if err == unix.ENOENT {
				return nil, nil
			}
			return nil, fmt.Errorf("watch %s: %w", path, err)
		}
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// restore makes again what is gone.
func (d *Daemon) restore(sockets []*guarded) error {
	var errs []error
	removed := !d.dir.whole()
	if removed {
		again, err := holdRundir(d.dir.path)
		if err == nil {
			d.dir.lock.Close()
			d.dir.lock = again.lock
			d.log.Error("run directory was removed", "path", d.dir.path, "next", "it is made again")
			_, err = d.dir.makeCookie(d.config().Daemon.SocketGroup)
		}
		errs = append(errs, err)
	}
	for _, g := range sockets {
		if now, err := os.Lstat(g.path); err == nil && os.SameFile(now, g.as) {
			continue
		}
		g.ln.SetUnlinkOnClose(false)
		if err := g.open(); err != nil {
			errs = append(errs, err)
			continue
		}
		d.log.Error("socket was removed", "path", g.path, "next", "it is made again; who is connected stays so")
		g.end()
		g.end = g.serve(g.ln)
	}
	if removed {
		d.procs.Save() // last: it waits for each client's loop
	}
	return errors.Join(errs...)
}
