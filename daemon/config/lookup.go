// What only the machine can tell of a configuration: whether commands, directories, users and groups exist. They may come
// later, so what is missing is a warning.

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lookUp adds the warnings that Load gives beyond Parse.
func (f *file) lookUp(c *Config) {
	warn := func(path []string, who string, err error) {
		if err != nil {
			f.report(path, true, "%s: %v", who, err)
		}
	}
	warn([]string{"daemon", "socket_group"}, "socket_group", findAccount("group", c.Daemon.SocketGroup))
	warn([]string{"daemon", "control_group"}, "control_group", findAccount("group", c.Daemon.ControlGroup))
	for _, cl := range c.sections() {
		who := fmt.Sprintf("client %q cannot start as it is", cl.Name)
		at := func(key string) []string { return f.where(cl.Base, key) }
		warn(at("user"), who, findAccount("user", cl.User))
		warn(at("group"), who, findAccount("group", cl.Group))
		for _, group := range cl.Groups {
			warn(at("groups"), who, findAccount("group", group))
		}
		if _, err := os.Stat(cl.Directory + "/"); err != nil {
			warn(at("directory"), who, fmt.Errorf("directory %q: %w", cl.Directory, bare(err)))
		}
		if cl.EnvironmentFile != "" {
			warn(at("environment_file"), who, readable(cl.EnvironmentFile))
		}
		if len(cl.Command) > 0 {
			warn(at("command"), who, f.findCommand(cl, cl.Command[0]))
		}
		if len(cl.OnFailure) > 0 {
			warn(at("on_failure"), fmt.Sprintf("on_failure of client %q cannot be executed", cl.Name), f.findCommand(cl, cl.OnFailure[0]))
		}
		if len(cl.Probe.Exec) > 0 {
			warn(at("probe"), fmt.Sprintf("probe of client %q cannot be executed", cl.Name), f.findCommand(cl, cl.Probe.Exec[0]))
		}
		for key, err := range beyond(cl) {
			warn(at(key), who, err)
		}
	}
}

// lookAround adds the warnings that Options.System asks for.
func (f *file) lookAround(c *Config) {
	d, told := c.Daemon, make(map[string]bool)
	for _, p := range []struct{ key, dir string }{{"run_dir", d.RunDir}, {"state_dir", d.StateDir},
		{"socket", filepath.Dir(d.Socket)}, {"control", filepath.Dir(d.Control)}} {
		if err := makeable(p.dir); err != nil && !told[p.dir] { // most are in run_dir
			told[p.dir] = true
			f.report([]string{"daemon", p.key}, true, "%s in [daemon]: %v", p.key, err)
		}
	}
	if device := c.Watchdog.Device; device != "" {
		fi, err := os.Stat(device)
		if err == nil && fi.Mode()&fs.ModeCharDevice == 0 {
			err = errors.New("no device")
		}
		if err != nil {
			f.report([]string{"watchdog", "device"}, true, "device %q in [watchdog]: %v", device, bare(err))
		}
	}
	for _, cl := range c.Clients {
		if cl.LogFile == "" {
			continue
		}
		dir := filepath.Dir(cl.LogFile) // which zhxd does not make
		if _, err := os.Stat(dir + "/"); err != nil {
			f.report(f.where(cl.Base, "log_file"), true, "log_file of client %q: directory %q: %v", cl.Name, dir, bare(err))
		}
	}
}

// makeable tells whether a directory is there, or may be made, for whoever runs this to write into.
func makeable(path string) error {
	for dir := path; ; {
		fi, err := os.Stat(dir)
		switch up := filepath.Dir(dir); {
		case errors.Is(err, fs.ErrNotExist) && up != dir:
			dir = up
			continue
		case err == nil && !fi.IsDir():
			err = syscall.ENOTDIR
		case err == nil:
			err = unix.Access(dir, unix.W_OK|unix.X_OK)
		}
		if err != nil {
			return fmt.Errorf("cannot make %q or write into it: %q: %w", path, dir, bare(err))
		}
		return nil
	}
}

// readable tells whether zhxd can open a file.
func readable(path string) error {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold zhxd up
	if err != nil {
		return fmt.Errorf("environment_file %q: %w", path, bare(err))
	}
	return file.Close()
}

// beyond has the keys that ask for more than zhxd may give, or the machine has.
func beyond(cl Client) map[string]error {
	keys := make(map[string]error)
	if nr, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil && cl.LimitNofile != nil {
		if most, err := strconv.ParseUint(strings.TrimSpace(string(nr)), 10, 64); err == nil && *cl.LimitNofile > most {
			keys["limit_nofile"] = fmt.Errorf("the kernel gives at most %d open files (fs.nr_open)", most)
		}
	}
	for _, n := range cl.CPUAffinity {
		if _, err := os.Stat(fmt.Sprintf("/sys/devices/system/cpu/cpu%d", n)); errors.Is(err, fs.ErrNotExist) {
			keys["cpu_affinity"] = fmt.Errorf("there is no processor %d", n)
		}
	}
	if os.Geteuid() == 0 {
		return keys
	}
	for _, limit := range []struct {
		key      string
		resource int
		want     *uint64
	}{{"limit_nofile", unix.RLIMIT_NOFILE, cl.LimitNofile}, {"limit_core", unix.RLIMIT_CORE, cl.LimitCore}, {"limit_as", unix.RLIMIT_AS, cl.LimitAS}} {
		var has unix.Rlimit
		if err := unix.Getrlimit(limit.resource, &has); err == nil && limit.want != nil && *limit.want > has.Max {
			keys[limit.key] = fmt.Errorf("only root may set %s above %d, its hard limit", limit.key, has.Max)
		}
	}
	if cl.Nice < 0 {
		keys["nice"] = errors.New("only root may set a negative nice")
	}
	if cl.OOMScoreAdj < 0 {
		keys["oom_score_adj"] = errors.New("only root may set a negative oom_score_adj")
	}
	return keys
}

// findCommand finds the program as the client's start will: in its PATH, or as a path seen from its directory.
func (f *file) findCommand(cl Client, name string) error {
	dirs, where := []string{cl.Directory}, ""
	switch {
	case filepath.IsAbs(name):
		dirs = []string{"/"}
	case !strings.Contains(name, "/"):
		path, ok := cl.Environment["PATH"]
		if !ok {
			path = f.environ["PATH"]
		}
		dirs, where = filepath.SplitList(path), fmt.Sprintf(" in PATH, %q", path)
	}
	for _, dir := range dirs {
		if fi, err := os.Stat(filepath.Join(dir, name)); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return nil
		}
	}
	return fmt.Errorf("command %q is not an executable file%s", name, where)
}

// findAccount finds a user or group by name or number. A group's number needs no entry.
func findAccount(what, name string) (err error) {
	_, notNumber := strconv.ParseUint(name, 10, 32)
	switch {
	case name == "" || what == "group" && notNumber == nil:
		return nil
	case what == "group":
		_, err = user.LookupGroup(name)
	case notNumber == nil:
		_, err = user.LookupId(name)
	default:
		_, err = user.Lookup(name)
	}
	if err != nil {
		return fmt.Errorf("%s %q is not known", what, name)
	}
	return nil
}

// bare is the cause without the path, which the message has already.
func bare(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
