// Package config reads clients.toml: the whole file is valid, or nothing of it is used.
//
//	bytes ── BurntSushi/toml ─> tables ── keys.go: ONE table of keys ─> Config
//	                              │         (type, range, default, class of change, documentation)
//	                              └─ whatever is wrong ─> Problems, all at once, with file:line and "did you mean"
//	clients.toml ── watch.go: fsnotify on its directories ─> changed() ── the daemon ─> Load
//
// Everything here is a value: a Config is never changed after it is made, and nothing is remembered between two calls.
// Parse looks at nothing but its arguments, the uid and $XDG_RUNTIME_DIR; Load also reads the file and looks up commands,
// users and groups, for warnings. Neither changes anything.
//
// A file with comments only is valid and starts nothing. A file without even that is refused: it is what an editor or a
// full disk leaves behind, and would stop every client.
package config

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
	"zhx/procman"
)

const (
	fileMax       = 1 << 20        // bytes of a configuration; a larger file is refused, it is not one
	linksMax      = 40             // symbolic links on the way to the file, as in the kernel; beyond: an error
	socketPathMax = 107            // bytes of a Unix socket's path, unix(7); a longer one is an error
	timeoutMax    = 24 * time.Hour // of a watchdog, given or computed; beyond: an error
	problemsMax   = 100            // errors, and as many warnings, that are told of one file; the others are left out
)

// Config is a valid configuration.
type Config struct {
	Path     string
	Sum      [sha256.Size]byte // of the file's contents: two Configs of one Sum are the same
	Warnings Problems          // what is valid and yet likely a mistake
	Daemon   Daemon
	Watchdog Watchdog
	Clients  []Client // in the order of the file
}

// Daemon is [daemon]: keys.go documents each key.
type Daemon struct {
	Socket, TCP, Control, RunDir string // TCP is "" or IPv4:port
	Identity, Reload             string
	PrototypePresence            bool
	SocketMode                   fs.FileMode
	SocketGroup, ControlGroup    string // name or number; "" is zhxd's own
}

// Watchdog is [watchdog].
type Watchdog struct {
	Interval time.Duration
	Misses   int
}

// Timeout is what a client has that says nothing of its own, and a foreign one.
func (w Watchdog) Timeout() time.Duration { return w.Interval * time.Duration(w.Misses) }

// Client is one [client.NAME], with [defaults] in it.
type Client struct {
	procman.Spec                  // its FrozenTimeout is WatchdogTimeout, or 0 with watchdog = "off"
	Names           []string      // further names that it may claim
	Watchdog        string        // auto | required | off
	WatchdogTimeout time.Duration // > 0
}

// Options are what the command line decides over the file.
type Options struct {
	RunDir string // instead of [daemon] run_dir, if not ""; absolute
}

// Load reads and checks the file at path. The error is Problems (errors.As), the warnings among them.
func Load(path string, o Options) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, Problems{{File: path, Text: fmt.Sprintf("cannot be read: %v", bare(err))}}
	}
	f, c := parse(path, data, o)
	if c != nil {
		f.lookUp(c)
	}
	return f.result(c)
}

// Parse checks data as the contents of the file at path, which is not read. Errors are as with Load.
func Parse(path string, data []byte, o Options) (*Config, error) {
	f, c := parse(path, data, o)
	return f.result(c)
}

// read returns the contents of a configuration that may be trusted.
func read(path string) ([]byte, error) {
	if err := CheckOwner(path); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not hold zhxd up
	if err != nil {
		return nil, err
	}
	defer file.Close()
	switch fi, err := file.Stat(); {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, errors.New("no regular file")
	case fi.Size() > fileMax:
		return nil, fmt.Errorf("it has %d bytes, at most %d are possible", fi.Size(), fileMax)
	}
	return io.ReadAll(io.LimitReader(file, fileMax))
}

// CheckOwner refuses, as root, a configuration that others can write: the file, its directory and those of the symbolic
// links that lead to it belong to root, and group and others may not write there (a sticky directory may be /tmp). The
// directories above are not looked at. Any other user may trust what he likes. A missing file is an error as well.
func CheckOwner(path string) error {
	entries, err := trail(path)
	if err != nil {
		return err
	}
	places := []string{entries[len(entries)-1]}
	for _, entry := range entries {
		places = append(places, filepath.Dir(entry))
	}
	for _, p := range places {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: p, Err: err}
		}
		if os.Geteuid() != 0 {
			continue
		}
		sticky := st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
		if st.Mode&0o022 != 0 && !sticky {
			return fmt.Errorf("others can write %s (mode %04o): zhxd does not run as root what others wrote; chmod go-w %s", p, st.Mode&0o7777, p)
		}
		if st.Uid != 0 {
			return fmt.Errorf("%s belongs to uid %d: zhxd does not run as root what others wrote; chown root %s", p, st.Uid, p)
		}
	}
	return nil
}

// DaemonChanges lists the keys that differ and take effect only when zhxd is restarted.
func DaemonChanges(old, new *Config) (keys []string) {
	a, b := target{daemon: &old.Daemon, watchdog: &old.Watchdog}, target{daemon: &new.Daemon, watchdog: &new.Watchdog}
	for _, k := range Keys {
		if k.Class == ClassDaemon && k.get(&a) != k.get(&b) {
			keys = append(keys, k.Name)
		}
	}
	return keys
}

// parse makes a Config of data. It is to be used only if f has no error.
func parse(path string, data []byte, o Options) (*file, *Config) {
	f := &file{path: path}
	if len(bytes.TrimSpace(data)) == 0 {
		f.report(nil, false, "the file is empty; a comment makes it a configuration that starts nothing")
		return f, nil
	}
	if !f.decode(data) {
		return f, nil
	}
	c := &Config{Path: path, Sum: sha256.Sum256(data)}
	var template Client
	t := &target{daemon: &c.Daemon, watchdog: &c.Watchdog, client: &template}
	for _, k := range Keys {
		k.reset(t)
	}
	for _, name := range slices.Sorted(maps.Keys(f.tree)) {
		switch name {
		case "daemon", "watchdog":
			f.fill([]string{name}, name, t)
		case "defaults":
			f.fill([]string{name}, "client", t)
		case "client":
		default:
			f.report([]string{name}, false, "%s", unknownSection(name, f.tree[name]))
		}
	}
	f.finishDaemon(&c.Daemon, o)
	if c.Watchdog.Timeout() > timeoutMax {
		f.report([]string{"watchdog"}, false, "interval x misses in [watchdog] is %v; at most %v is possible", c.Watchdog.Timeout(), timeoutMax)
	}
	for _, name := range f.clients() {
		f.client(c, template, name)
	}
	f.collisions(c)
	return f, c
}

// finishDaemon fills in what depends on the user and on other keys.
func (f *file) finishDaemon(d *Daemon, o Options) {
	at := func(key string) []string { return []string{"daemon", key} }
	runtime := os.Getenv("XDG_RUNTIME_DIR")
	switch {
	case o.RunDir != "":
		d.RunDir = o.RunDir
	case d.RunDir != "":
	case os.Geteuid() == 0:
		d.RunDir = "/run/zhx"
	case filepath.IsAbs(runtime):
		d.RunDir = filepath.Join(runtime, "zhx")
	default:
		f.report(at("run_dir"), false, "run_dir in [daemon] is not set, and neither is $XDG_RUNTIME_DIR; not being root, zhx needs one of them")
		return
	}
	if d.Socket == "" {
		d.Socket = filepath.Join(d.RunDir, "zhx.sock")
	}
	if d.Control == "" {
		d.Control = filepath.Join(d.RunDir, "control.sock")
	}
	if d.Socket == d.Control {
		f.report(at("control"), false, "socket and control in [daemon] are the same, %q", d.Control)
	}
	for key, path := range map[string]string{"socket": d.Socket, "control": d.Control} {
		if len(path) > socketPathMax {
			f.report(at(key), false, "%s in [daemon]: %q has %d bytes; a socket's path has at most %d", key, path, len(path), socketPathMax)
		}
	}
}

// client adds [client.name] to c.
func (f *file) client(c *Config, cl Client, name string) {
	path := []string{"client", name}
	cl.Name = name
	if _, ok := f.tree["client"].(map[string]any)[name].(map[string]any); !ok {
		f.report(path, false, "%q in [client]: clients are written [client.NAME]", name)
		return
	}
	if problem := badName(name); problem != "" {
		f.report(path, false, "[%s]: %s", section(path), problem)
	}
	f.fill(path, "client", &target{client: &cl})
	if len(cl.Command) == 0 && !f.has("client", name, "command") && !f.has("defaults", "command") {
		f.report(path, false, "[%s] has no command", section(path))
	}
	if cl.RestartDelay > cl.RestartDelayMax {
		f.report(f.where(name, "restart_delay"), false, "restart_delay in [%s] is %v and longer than its restart_delay_max, %v", section(path), cl.RestartDelay, cl.RestartDelayMax)
	}
	if cl.WatchdogTimeout == 0 {
		cl.WatchdogTimeout = c.Watchdog.Timeout()
	}
	if cl.Watchdog != "off" {
		cl.FrozenTimeout = cl.WatchdogTimeout
	}
	if cl.TTY {
		f.report(f.where(name, "tty"), true, "client %q has a terminal of zhxd's (tty): it is restarted if zhxd crashes", name)
	}
	for _, n := range append([]string{name}, cl.Names...) {
		if len(n) > wire.NameSize {
			f.report(f.where(name, "names"), true, "name %q has %d bytes: protocol 1 cannot address it, its names have at most %d", n, len(n), wire.NameSize)
		}
	}
	c.Clients = append(c.Clients, cl)
}

// collisions finds names that two clients would have.
func (f *file) collisions(c *Config) {
	owner := make(map[string]string)
	for _, cl := range c.Clients {
		owner[cl.Name] = cl.Name
	}
	for _, cl := range c.Clients {
		for _, n := range cl.Names {
			if o, taken := owner[n]; taken {
				f.report(f.where(cl.Name, "names"), false, "name %q of client %q is also a name of client %q", n, cl.Name, o)
				continue
			}
			owner[n] = cl.Name
		}
	}
}

// badName says what is wrong with the name of a client; "" is nothing.
func badName(name string) string {
	switch {
	case !wire.ValidName(name):
		return fmt.Sprintf("%q is no name; a name has 1 to 64 of A-Z a-z 0-9 _ -, and no - in front", name)
	case wire.Reserved(name):
		return fmt.Sprintf("the name %q is reserved", name)
	}
	return ""
}

// unknownSection is what to say of a key at the top level that is none of ours.
func unknownSection(name string, v any) string {
	table, isTable := v.(map[string]any)
	switch {
	case !isTable && homes(name) != "":
		return fmt.Sprintf("key %q stands in no section; it belongs into %s", name, homes(name))
	case !isTable:
		return fmt.Sprintf("unknown key %q outside of any section", name)
	case suggest(name, sections) != "":
		return fmt.Sprintf("unknown section [%s]; did you mean [%s]?", section([]string{name}), suggest(name, sections))
	case table["command"] != nil:
		return fmt.Sprintf("unknown section [%s]; did you mean [%s]?", section([]string{name}), section([]string{"client", name}))
	}
	return fmt.Sprintf("unknown section [%s]; there are [%s]", section([]string{name}), strings.Join(sections, "], ["))
}
