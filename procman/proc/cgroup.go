// One cgroup2 a client, where there is a cgroup2 that we may write to. No controller is used: a cgroup is a list of
// processes that cannot be left by accident, and cgroup.kill.

package proc

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// cgroups is our directory OWN/zhx-PID-START, with a directory for each client. They are kept from run to run: a restart makes
// none. Kernel.mu guards it after openCgroups.
type cgroups struct {
	base   string // in the file system
	path   string // as /proc/PID/cgroup shows it
	into   bool   // clone can put a child into a cgroup (Linux 5.7)
	byName map[string]*cgroup
	told   map[string]bool // that there is none for a client
}

type cgroup struct {
	path  string // as /proc/PID/cgroup shows it
	trees int    // that use it
	into  bool   // clone can put a child into this one; not after cgroup.kill, see kill
	dir   *os.File
	procs *os.File // cgroup.procs, read again and again
}

// openCgroups answers nil where there is no cgroup2 or no right to make one. The start time makes the name our own: a record
// that names a cgroup means the processes in it, even after the pid was used again.
func openCgroups(self ID, log *slog.Logger) *cgroups {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	mine, err2 := os.ReadFile("/proc/self/cgroup")
	dir, own, err3 := ownCgroup(string(mounts), mine)
	name := fmt.Sprintf("zhx-%d-%d", self.PID, self.Start)
	cs := &cgroups{base: filepath.Join(dir, name), path: filepath.Join(own, name), byName: map[string]*cgroup{}, told: map[string]bool{}}
	if err = errors.Join(err, err2, err3); err == nil {
		sweep(dir)
		if err = os.Mkdir(cs.base, 0o755); errors.Is(err, os.ErrExist) {
			err = nil
		}
	}
	var base *os.File
	if err == nil {
		base, err = os.Open(cs.base)
	}
	if err != nil {
		log.Debug("no cgroup2", "err", err)
		return nil
	}
	defer base.Close()
	cs.into = probeInto(base)
	return cs
}

// ownCgroup finds our own cgroup: its directory where cgroup2 is mounted, and its path in the hierarchy.
func ownCgroup(mountinfo string, cgroup []byte) (dir, own string, err error) {
	own, ok := unified(cgroup)
	if !ok {
		return "", "", errors.New("not in a cgroup2")
	}
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if len(f) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		// A mount may show a part of the hierarchy only (f[3], in a container): ours must be in it.
		if rel, err := filepath.Rel(f[3], own); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.Join(unescape(f[4]), rel), own, nil
		}
	}
	return "", "", errors.New("no cgroup2 is mounted that shows our own cgroup")
}

// unified is the cgroup2 line of /proc/PID/cgroup.
func unified(b []byte) (string, bool) {
	for line := range bytes.Lines(b) {
		if path, ok := bytes.CutPrefix(line, []byte("0::")); ok {
			return string(bytes.TrimSuffix(path, []byte("\n"))), true
		}
	}
	return "", false
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// probeInto forks a program that does not exist into the cgroup: ENOENT means that the fork got as far as exec. Where our own
// cgroup was once emptied by cgroup.kill, the child may be killed at its birth (see kill): then fork answers no error.
func probeInto(dir *os.File) bool {
	sys := &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	pid, err := syscall.ForkExec(dir.Name()+"/nothing", []string{""}, &syscall.ProcAttr{Sys: sys})
	if err == nil {
		waitid(unix.P_PID, pid, unix.WEXITED)
	}
	return errors.Is(err, syscall.ENOENT)
}

// sweep removes the empty cgroups of a zhxd that is gone. One with processes in it cannot be removed, and stays.
func sweep(own string) {
	entries, _ := os.ReadDir(own)
	for _, e := range entries {
		var id ID
		if n, _ := fmt.Sscanf(e.Name(), "zhx-%d-%d", &id.PID, &id.Start); n != 2 {
			continue
		}
		if s, err := ReadStat(id.PID); errors.Is(err, ErrGone) || err == nil && s.ID != id {
			remove(filepath.Join(own, e.Name()))
		}
	}
}

// remove removes an empty cgroup, and those that were made below it.
func remove(dir string) {
	inner, _ := os.ReadDir(dir)
	for _, e := range inner {
		if e.IsDir() {
			remove(filepath.Join(dir, e.Name()))
		}
	}
	unix.Rmdir(dir)
}

// get answers the cgroup of a client, to be put back. It may have been removed while it was empty, and ours with it: by the
// sweep of a zhxd in another pid namespace that shares the cgroups, which cannot see that we live.
func (cs *cgroups) get(name string) (*cgroup, error) {
	c := cs.byName[name]
	if c != nil {
		if _, err := c.procs.ReadAt(make([]byte, 1), 0); !errors.Is(err, unix.ENODEV) {
			c.trees++
			return c, nil
		}
	}
	for name, c := range cs.byName { // of clients that may never come back
		if c.trees == 0 {
			delete(cs.byName, name)
			cs.leave(c)
		}
	}
	dir := filepath.Join(cs.base, name)
	err := os.Mkdir(cs.base, 0o755)
	if err == nil || errors.Is(err, os.ErrExist) {
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	c = &cgroup{path: filepath.Join(cs.path, name), trees: 1, into: cs.into && err == nil} // one that is there already has a past
	if err = c.open(dir); err != nil {
		return nil, err
	}
	cs.byName[name] = c
	return c, nil
}

// put gives a cgroup back. Ours stays for the client's next run.
func (cs *cgroups) put(c *cgroup) {
	if c == nil {
		return
	}
	if c.trees--; c.trees == 0 && cs.byName[filepath.Base(c.path)] != c {
		cs.leave(c)
	}
}

// leave closes a cgroup, and removes it if nobody is in it.
func (cs *cgroups) leave(c *cgroup) {
	dir := c.dir.Name()
	c.dir.Close()
	c.procs.Close()
	remove(dir)
	if base := filepath.Dir(dir); base != cs.base {
		unix.Rmdir(base) // when it was the last
	}
}

func (cs *cgroups) close() {
	for _, c := range cs.byName {
		cs.leave(c)
	}
	remove(cs.base)
}

func (c *cgroup) open(dir string) (err error) {
	if c.dir, err = os.Open(dir); err != nil {
		return err
	}
	if c.procs, err = os.Open(filepath.Join(dir, "cgroup.procs")); err != nil {
		c.dir.Close()
	}
	return err
}

// inherit opens the cgroup that another zhxd made for the client, for a process in it or below it. nil: it is in none, or we
// are in it, too.
func (cs *cgroups) inherit(path, name string) *cgroup {
	c := &cgroup{path: madeFor(path, name), trees: 1}
	own := filepath.Dir(cs.path)
	rel, err := filepath.Rel(own, c.path)
	if c.path == "" || err != nil || c.has(own) || c.open(filepath.Join(filepath.Dir(cs.base), rel)) != nil {
		return nil
	}
	return c
}

// madeFor cuts a path off behind the part that a zhxd made for a client of that name; "" if there is none.
func madeFor(path, name string) string {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i > 0; i-- {
		var id ID
		if n, _ := fmt.Sscanf(parts[i-1], "zhx-%d-%d", &id.PID, &id.Start); n == 2 && parts[i] == name {
			return strings.Join(parts[:i+1], "/")
		}
	}
	return ""
}

// has reports whether a process of that path is in the cgroup or below it: a client may make cgroups below its own.
func (c *cgroup) has(path string) bool {
	return c != nil && (path == c.path || strings.HasPrefix(path, c.path+"/"))
}

// cgroupOf is the path of a process's cgroup2; "" without one.
func cgroupOf(pid int) string {
	b, err := readProc(pid, "cgroup", 64<<10)
	if err != nil {
		return ""
	}
	path, _ := unified(b)
	return path
}

func (c *cgroup) add(pid int) error {
	return os.WriteFile(c.dir.Name()+"/cgroup.procs", strconv.AppendInt(nil, int64(pid), 10), 0)
}

// kill ends everything in the cgroup and below it at once (Linux 5.14; before that, nothing happens here). Linux 6.14 and later
// count these kills, compare the count with that of the parent's cgroup, and kill what clone puts there (seen on 6.18).
func (c *cgroup) kill() {
	if os.WriteFile(c.dir.Name()+"/cgroup.kill", []byte("1"), 0) == nil {
		c.into = false
	}
}

// members lists who is in the cgroup. A process that has ended may show for a moment.
func (c *cgroup) members() []int { return parseList(readAll(c.procs)) }
