// Package config reads clients.toml: the whole file is valid, or nothing of it is used.
//
//	bytes ── BurntSushi/toml ─> tables ── keys.go: ONE table of keys ─> Config
//	                              │         (type, range, default, class of change, documentation)
//	                              └─ whatever is wrong ─> Problems, all at once, with file:line and "did you mean"
//	clients.toml ── watch.go: fsnotify on its directories ─> changed() ── the daemon ─> Load
//
// Everything here is a value: a Config is never changed after it is made, and nothing is remembered between two calls.
// Parse looks at nothing but its arguments, the uid and the environment; Load also reads the file and looks up commands,
// users and groups, for warnings. Neither changes anything.
//
// A file with comments only is valid and starts nothing. A file without even that is refused: it is what an editor or a
// full disk leaves behind, and would stop every client.
package config

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"zhx/ipc/broker"
	"zhx/procman"
	"zhx/watchdog"
	"zhx/watchdog/probe"
)

const (
	fileMax       = 1 << 20        // bytes of a configuration; a larger file is refused, it is not one
	linksMax      = 40             // symbolic links on the way to the file, as in the kernel; beyond: an error
	socketPathMax = 107            // bytes of a Unix socket's path, unix(7); a longer one is an error
	timeoutMax    = 24 * time.Hour // of a watchdog, interval x misses; beyond: an error
	clientsMax    = 1024           // clients, instances counted; more are an error
	groupsMax     = 256            // groups; more are an error
	probePart     = 3              // a probe's interval and timeout are this part of the client's watchdog_timeout, unless they are set
	expandMax     = 4 << 20        // bytes of all commands and environments with ${VARIABLE} and %n replaced; beyond: an error
	problemsMax   = 100            // errors, and as many warnings, that are told of one file; the others are left out
	textMax       = 500            // characters of what is told of one problem, which may quote the file; the rest is cut
)

// Config is a valid configuration.
type Config struct {
	Path     string
	Sum      [sha256.Size]byte // of the file's contents: two Configs of one Sum are the same
	Warnings Problems          // what is valid and yet likely a mistake
	Daemon   Daemon
	Watchdog Watchdog
	Clients  []Client // in the order of the file; instances stand where the client that they are made of does
	Groups   []Group  // in the order of the file

	text string // of the file, for KeysOf
}

// Daemon is [daemon]: keys.go documents each key.
type Daemon struct {
	Socket, TCP, Control, RunDir string // TCP is "" or IPv4:port
	Metrics                      string // "" or IPv4:port
	StateDir                     string
	Identity, Reload             string
	PrototypePresence            bool
	SocketMode                   fs.FileMode
	SocketGroup, ControlGroup    string // name or number; "" is zhxd's own
	MaxBody                      int    // bytes
}

// Watchdog is [watchdog].
type Watchdog struct {
	Interval    time.Duration
	Misses      int
	Mode        string // enforce | observe
	Device      string // "": none
	MagicClose  bool
	RebootLimit int // an hour
}

// Timeout is what a client has that says nothing of its own, and a foreign one.
func (w Watchdog) Timeout() time.Duration { return w.Interval * time.Duration(w.Misses) }

// Client is one [client.NAME], with [defaults] in it.
type Client struct {
	procman.Spec                  // its FrozenTimeout is WatchdogTimeout, or 0 with watchdog = "off"
	Base            string        // NAME, also of its instances
	Instances       int           // that there are of Base; 0: it is none
	Names           []string      // further names that it may claim
	Watchdog        string        // auto | required | off
	WatchdogTimeout time.Duration // > 0
	StartupTimeout  time.Duration // 0: WatchdogTimeout
	Deadlines       []watchdog.Deadline
	Probe           probe.Probe   // zero: none
	WarnAfter       time.Duration // 0: half of what is allowed
	WarnSignal      syscall.Signal
	Critical        bool
	Hold            broker.Hold // zero: nothing waits

	// Patterns: of names, with * for any characters; of topics, as package wire has them.
	MaySendTo, MayReceiveFrom, MayPublish, MaySubscribe []string
}

// Rules are those of the client's dog.
func (c *Client) Rules() watchdog.Rules {
	return watchdog.Rules{Timeout: c.WatchdogTimeout, Startup: c.StartupTimeout, Warn: c.WarnAfter, Deadlines: c.Deadlines}
}

// Options are what the command line decides over the file.
type Options struct {
	RunDir  string   // instead of [daemon] run_dir, if not ""; absolute
	Environ []string // KEY=value, what ${VARIABLE} stands for; nil: os.Environ
	Others  bool     // the file may be another user's: that ours has no run directory is a warning
	System  bool     // warn also of directories and devices that zhxd would not find or could not make
}

// Load reads and checks the file at path. The error is Problems (errors.As), the warnings among them.
func Load(path string, o Options) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, Problems{{File: path, Text: fmt.Sprintf("cannot be read: %v", bare(err))}}
	}
	return Check(path, data, o)
}

// Check is Load of a file that is at path, or would be, with data in it.
func Check(path string, data []byte, o Options) (*Config, error) {
	f, c := parse(path, data, o)
	if c != nil {
		f.lookUp(c)
		if o.System {
			f.lookAround(c)
		}
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
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold zhxd up
	if err != nil {
		return nil, err
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, errors.New("no regular file")
	}
	if err := checkOwners(path, fi); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, fileMax+1))
	if len(data) > fileMax {
		return nil, fmt.Errorf("it has more than %d bytes", fileMax)
	}
	return data, err
}

// checkOwners refuses, as root, a configuration that others can write: the opened file, the symbolic links that lead to it
// and the directories of both belong to root, and group and others may not write there (a sticky directory may be /tmp).
// The directories above are not looked at: by them only another file of root's can be put in the place.
func checkOwners(path string, opened fs.FileInfo) error {
	if os.Geteuid() != 0 { // any other user may trust what he likes
		return nil
	}
	entries, err := trail(path)
	if err != nil {
		return err
	}
	last := entries[len(entries)-1]
	if err := checkOwner(last, opened); err != nil { // not what has the name now
		return err
	}
	places := slices.Clone(entries[:len(entries)-1])
	for _, entry := range entries {
		places = append(places, filepath.Dir(entry))
	}
	for _, p := range places {
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		if err := checkOwner(p, fi); err != nil {
			return err
		}
	}
	return nil
}

func checkOwner(path string, fi fs.FileInfo) error {
	const never = "zhxd does not run as root what others wrote"
	mode := fi.Mode() // a link has one that says nothing
	if sticky := mode.IsDir() && mode&fs.ModeSticky != 0; mode&0o022 != 0 && mode&fs.ModeSymlink == 0 && !sticky {
		return fmt.Errorf("others can write %s (mode %04o): %s; chmod go-w %s", path, mode.Perm(), never, path)
	}
	if uid := fi.Sys().(*syscall.Stat_t).Uid; uid != 0 {
		return fmt.Errorf("%s belongs to uid %d: %s; chown -h root %s, or give it a copy in a directory of root's, or run it as that user",
			path, uid, never, path)
	}
	return nil
}

// DaemonChanges lists the keys that differ and take effect only when zhxd is restarted.
func DaemonChanges(old, new *Config) (changed []string) {
	a, b := target{daemon: &old.Daemon, watchdog: &old.Watchdog}, target{daemon: &new.Daemon, watchdog: &new.Watchdog}
	for _, k := range keys {
		if k.class == classDaemon && k.get(&a) != k.get(&b) {
			changed = append(changed, k.name)
		}
	}
	return changed
}

// ClientChanges lists the live keys of a client that differ and that are no part of its Spec.
func ClientChanges(old, new Client) (changed []string) {
	a, b := target{client: &old}, target{client: &new}
	for _, k := range keys {
		if k.section == "client" && k.class == classLive && k.name != "instances" && !reflect.DeepEqual(k.get(&a), k.get(&b)) {
			changed = append(changed, k.name)
		}
	}
	return changed
}

// parse makes a Config of data. It is to be used only if f has no error.
func parse(path string, data []byte, o Options) (*file, *Config) {
	f := &file{path: path, text: strings.TrimPrefix(string(data), "\ufeff"), count: make(map[bool]int),
		told: make(map[string]bool), environ: make(map[string]string), room: expandMax}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	for _, kv := range o.Environ {
		name, value, _ := strings.Cut(kv, "=")
		f.environ[name] = value
	}
	if strings.TrimSpace(f.text) == "" {
		f.report(nil, false, "the file is empty; a comment makes it a configuration that starts nothing")
		return f, nil
	}
	if !f.decode() {
		return f, nil
	}
	c := &Config{Path: path, Sum: sha256.Sum256(data), text: f.text}
	var template Client
	t := &target{daemon: &c.Daemon, watchdog: &c.Watchdog, client: &template, group: new(Group)}
	for _, k := range keys {
		k.reset(t)
	}
	for name := range f.tree {
		switch {
		case !slices.Contains(sections, name):
			f.report([]string{name}, false, "%s", f.unknownSection(name))
		case !named(name):
			f.fill([]string{name}, t)
		}
	}
	f.finishDaemon(&c.Daemon, o)
	if c.Watchdog.Timeout() > timeoutMax {
		f.report([]string{"watchdog"}, false, "interval x misses in [watchdog] is %v; at most %v is possible", c.Watchdog.Timeout(), timeoutMax)
	}
	for _, name := range f.tables("client") {
		if f.client(c, template, name); len(c.Clients) > clientsMax {
			f.report([]string{"client", name}, false, "these are more than %d clients", clientsMax)
			return f, nil
		}
	}
	f.relate(c)
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
		f.report(at("run_dir"), o.Others, "run_dir in [daemon] is not set, and neither is $XDG_RUNTIME_DIR; not being root, zhx needs one of them")
		if !o.Others {
			return
		}
		d.RunDir = "/run/zhx"
	}
	if d.StateDir == "" {
		if d.StateDir = d.RunDir; d.RunDir == "/run/zhx" {
			d.StateDir = "/var/lib/zhx"
		}
	}
	for _, s := range []struct {
		key, file string
		path      *string
	}{{"socket", "zhx.sock", &d.Socket}, {"control", "control.sock", &d.Control}} {
		if *s.path == "" {
			*s.path = filepath.Join(d.RunDir, s.file)
		}
		if n := len(*s.path); n > socketPathMax {
			f.report(at(s.key), false, "%s in [daemon]: %q has %d bytes; a socket's path has at most %d", s.key, *s.path, n, socketPathMax)
		}
	}
	if d.Socket == d.Control {
		f.report(at("control"), false, "socket and control in [daemon] are the same, %q", d.Control)
	}
}

// client adds [client.name] to c, or its instances.
func (f *file) client(c *Config, cl Client, name string) {
	path := []string{"client", name}
	cl.Name, cl.Base = name, name
	f.fill(path, &target{client: &cl})
	if slices.Equal(f.where(name, "command"), path) {
		f.report(path, false, "[%s] has no command", section(path))
	}
	if cl.RestartDelay > cl.RestartDelayMax {
		f.report(f.where(name, "restart_delay", "restart_delay_max"), false, "restart_delay in [%s] is %v and longer than its restart_delay_max, %v", section(path), cl.RestartDelay, cl.RestartDelayMax)
	}
	if cl.WatchdogTimeout == 0 {
		cl.WatchdogTimeout = c.Watchdog.Timeout()
	}
	if cl.Watchdog != "off" {
		cl.FrozenTimeout = cl.WatchdogTimeout
	}
	if p := &cl.Probe; p.Asks() {
		third := cl.WatchdogTimeout / probePart
		p.Interval, p.Timeout = cmp.Or(p.Interval, third), cmp.Or(p.Timeout, third)
		if p.Interval+p.Timeout > cl.WatchdogTimeout {
			f.report(f.where(name, "probe"), true, "client %q may be late though its probe is answered: interval %v and timeout %v are more than its watchdog_timeout, %v",
				name, p.Interval, p.Timeout, cl.WatchdogTimeout)
		}
	}
	for _, idle := range []struct {
		key, why string
		is       bool
	}{
		{"probe", "watchdog is off", cl.Watchdog == "off" && cl.Probe.Asks()},
		{"deadlines", "watchdog is off", cl.Watchdog == "off" && len(cl.Deadlines) > 0},
		{"startup_timeout", `watchdog is not "required"`, cl.Watchdog != "required" && cl.StartupTimeout > 0},
		{"warn_after", "watchdog_timeout is not longer", cl.WarnAfter >= cl.WatchdogTimeout && len(cl.Deadlines) == 0 && cl.StartupTimeout <= cl.WarnAfter},
		{"critical", `restart is "never"`, cl.Critical && cl.Restart == procman.Never},
	} {
		if idle.is {
			f.report(f.where(name, idle.key), true, "%s of client %q has no effect: its %s", idle.key, name, idle.why)
		}
	}
	if cl.Critical && cl.StartLimit.Burst == 0 {
		cl.StartLimit = procman.StartLimit{Burst: 5, Interval: 10 * time.Minute}
	}
	if cl.TTY {
		f.report(f.where(name, "tty"), true, "client %q has a terminal of zhxd's (tty): it is restarted if zhxd crashes", name)
	}
	if cl.Oneshot {
		f.oneshot(&cl)
	}
	if len(cl.OnFailure) > 0 && cl.StartLimit.Burst == 0 {
		f.report(f.where(name, "on_failure"), true, "on_failure of client %q is never executed: it has no start_limit", name)
	}
	if cl.Instances > 0 && len(cl.Names) > 0 {
		f.report(f.where(name, "names"), false, "names in [%s]: a client with instances has no further names", section(path))
	}
	for i := range max(1, cl.Instances) {
		one := cl
		if cl.Instances > 0 {
			one.Name = cl.instance(i + 1)
		}
		f.expand(&one)
		c.Clients = append(c.Clients, one)
	}
}

func (cl *Client) instance(n int) string { return fmt.Sprintf("%s-%d", cl.Base, n) }

// oneshot is what that key means for restart, which is "always" only where nobody said so.
func (f *file) oneshot(cl *Client) {
	at := f.entry(cl.Name, "restart")
	switch {
	case cl.Restart != procman.Always:
	case at == nil || at[0] == "defaults" && f.where(cl.Name, "oneshot")[0] == "client": // nearer than restart
		cl.Restart = procman.OnFailure
	default:
		f.report(at, false, "client %q is oneshot: restart must be %s, not \"always\"", cl.Name, quoted(procman.OnFailure, procman.Never))
	}
}
