// Strays: copies of a client's program that nobody manages.

package proc

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	ps "github.com/mitchellh/go-ps"
	"golang.org/x/sys/unix"
)

// Query says whose copies Strays looks for.
type Query struct {
	Path   string   // the client's executable, absolute; may be a script
	Argv   []string // whole: argv[0] included. Of argv[0] the last part of the path counts: it is the name of the program
	UID    int
	Socket string // our own data socket, as in the environment of our clients (ZHX_SOCKET)
}

// Stray is a process that nobody manages, or one that was left alone for a reason.
type Stray struct {
	ID
	Reason string // "" or why it is left alone, for people
}

// Strays finds the processes that have the client's executable, whole argument vector and user, and that nobody manages: no
// terminal, no tracer, no mark of another zhxd that lives, no tree of ours, no ancestor of ours. What fits but for some of
// these, or has other arguments, comes back in part with the reason. A mark under our own socket that is none of our trees' is
// a leftover of our predecessor: a stray. Names are compared only to choose candidates.
func (k *Kernel) Strays(q Query) (full, part []Stray, err error) {
	want, err := expect(q)
	if err != nil {
		return nil, nil, fmt.Errorf("look for strays of %s: %w", q.Path, err)
	}
	list, err := ps.Processes()
	if err != nil {
		return nil, nil, fmt.Errorf("look for strays of %s: %w", q.Path, err)
	}
	self, err := ReadStat(os.Getpid())
	if err != nil {
		return nil, nil, err
	}
	line := ancestry(self)
	for _, p := range list {
		if !slices.Contains(want.names, p.Executable()) || slices.Contains(line, p.Pid()) {
			continue
		}
		s, err := ReadStat(p.Pid())
		if err != nil || s.UID != q.UID || !s.Living() {
			continue
		}
		reason, candidate := k.judge(q, want, s)
		if again, err := ReadStat(s.PID); err != nil || again.ID != s.ID || !candidate {
			continue // it ended while it was looked at
		}
		if reason == "" {
			full = append(full, Stray{ID: s.ID})
		} else {
			part = append(part, Stray{s.ID, reason})
		}
	}
	return full, part, nil
}

// judge looks at one candidate. Not a candidate: another program, or one that a tree of ours owns.
func (k *Kernel) judge(q Query, want program, s Stat) (reason string, candidate bool) {
	executed, replaced := want.executedBy(s.PID)
	if !executed {
		return "", false
	}
	argv, err := arguments(s.PID)
	if err != nil || !want.runs(s.PID, argv) || k.TreeOf(s.ID) != nil {
		return "", false
	}
	switch {
	case replaced:
		return "its executable was replaced since", true
	case !want.sameArgs(argv):
		return fmt.Sprintf("has other arguments: %q", argv), true
	case s.TTY != 0:
		return "has a terminal", true
	}
	if tracer, err := Tracer(s.PID); err != nil || tracer != 0 {
		return fmt.Sprintf("is traced by process %d", tracer), true
	}
	environ, err := readProc(s.PID, "environ", maxEnviron)
	if err != nil {
		return "its environment cannot be read", true
	}
	_, marked := lookup(environ, markVariable)
	socket, _ := lookup(environ, socketVariable)
	if marked && socket != q.Socket && connects(socket) {
		return "belongs to the zhxd at " + socket, true
	}
	return "", true
}

// program is how a client's program shows in /proc. A script shows as its interpreter.
type program struct {
	names  []string    // what comm may be, cut at 15 characters
	file   string      // the executable, links resolved
	exe    os.FileInfo // the same
	argv   []string
	script os.FileInfo // nil: none. Else it is argv[at]
	at     int
}

// expect works out the program that the kernel makes of the client's command.
func expect(q Query) (p program, err error) {
	p.file, p.argv, p.names = q.Path, q.Argv, []string{comm(q.Path)}
	if line := shebang(q.Path); line != nil {
		if p.script, err = os.Stat(q.Path); err != nil {
			return p, err
		}
		if len(line) == 2 && filepath.Base(line[0]) == "env" { // env executes it once more, found in PATH
			line = line[1:]
			if p.file, err = exec.LookPath(line[0]); err != nil {
				return p, err
			}
		} else {
			p.file = line[0]
		}
		p.names = append(p.names, comm(p.file))
		p.at = len(line)
		p.argv = slices.Concat(line, []string{q.Path}, q.Argv[min(1, len(q.Argv)):])
	}
	if p.file, err = filepath.EvalSymlinks(p.file); err != nil {
		return p, err
	}
	p.exe, err = os.Stat(p.file)
	return p, err
}

func comm(path string) string {
	name := filepath.Base(path)
	return name[:min(15, len(name))]
}

// shebang splits a script's first line as the kernel does: the interpreter, and the rest as one argument. nil: no script.
func shebang(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var buf [256]byte
	n, _ := f.Read(buf[:])
	line, ok := bytes.CutPrefix(buf[:n], []byte("#!"))
	if !ok {
		return nil
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	interpreter, arg, _ := strings.Cut(strings.Trim(string(line), " \t"), " ")
	if arg = strings.Trim(arg, " \t"); arg == "" {
		return []string{interpreter}
	}
	return []string{interpreter, arg}
}

// runs reports whether an interpreter runs this very script, whatever path it was given.
func (p program) runs(pid int, argv []string) bool {
	if p.script == nil {
		return true
	}
	if len(argv) <= p.at {
		return false
	}
	path := argv[p.at]
	if !filepath.IsAbs(path) {
		path = procPath(pid, "cwd/"+path)
	}
	info, err := os.Stat(path)
	return err == nil && os.SameFile(info, p.script)
}

func (p program) sameArgs(argv []string) bool {
	if len(argv) != len(p.argv) {
		return false
	}
	for i := range argv {
		named := i == 0 && filepath.Base(argv[0]) == filepath.Base(p.argv[0])
		if argv[i] != p.argv[i] && !named && (p.script == nil || i != p.at) {
			return false
		}
	}
	return true
}

// arguments reads the argument vector as it is now: programs may overwrite theirs.
func arguments(pid int) ([]string, error) {
	b, err := readProc(pid, "cmdline", maxEnviron)
	if err != nil || len(b) == 0 {
		return nil, errors.Join(err, ErrGone)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// connects asks whether somebody listens on a Unix socket. A full backlog, a missing permission or no answer in time count
// as yes: what may belong to another zhxd is left alone.
func connects(socket string) bool {
	c, err := net.DialTimeout("unix", socket, aliveTimeout)
	if err == nil {
		c.Close()
	}
	return err == nil || !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}
