// The table of keys: the one place where a key of clients.toml is defined. Parsing, defaults, checking, comparing and the
// documentation of keys go by it. Values and their checks are in values.go.

package config

import (
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"zhx/procman"
)

// A Class says how a change of a key is applied by a reload.
type Class string

const (
	ClassLive    Class = "live"    // to what runs
	ClassRestart Class = "restart" // the client's process is replaced
	ClassDaemon  Class = "daemon"  // when zhxd is restarted
)

// A Key is one row of the table.
type Key struct {
	Section string // "daemon", "watchdog", or "client": those may also stand in [defaults]
	Name    string
	value          // Type and Range; how it is set and read
	Default string // as TOML; "" if there is none, then Without says what holds
	Without string
	Class   Class
	Doc     string // one sentence
}

// target is what keys are set in. A key uses the part that its section is about.
type target struct {
	daemon   *Daemon
	watchdog *Watchdog
	client   *Client
}

// sections are the tables of the top level.
var sections = []string{"daemon", "watchdog", "defaults", "client"}

// Keys are all keys, in the order in which they are documented. Do not change it.
var Keys = []Key{
	{Section: "daemon", Name: "socket", Class: ClassDaemon,
		value:   path(func(t *target) *string { return &t.daemon.Socket }),
		Without: "zhx.sock in run_dir",
		Doc:     "The Unix socket that clients connect to."},
	{Section: "daemon", Name: "socket_mode", Class: ClassDaemon,
		value:   mode(func(t *target) *fs.FileMode { return &t.daemon.SocketMode }),
		Default: `"0666"`,
		Doc:     "The mode of that socket; names and identity guard it, a narrower mode may as well."},
	{Section: "daemon", Name: "socket_group", Class: ClassDaemon,
		value:   account("group", func(t *target) *string { return &t.daemon.SocketGroup }),
		Default: `""`,
		Doc:     `The group of that socket; "" is zhxd's own.`},
	{Section: "daemon", Name: "tcp", Class: ClassDaemon,
		value:   loopback(func(t *target) *string { return &t.daemon.TCP }),
		Default: `"127.1.1.1:8000"`,
		Doc:     `The loopback address that clients connect to; "" is no TCP, ":0" picks a port of 127.1.1.1.`},
	{Section: "daemon", Name: "control", Class: ClassDaemon,
		value:   path(func(t *target) *string { return &t.daemon.Control }),
		Without: "control.sock in run_dir",
		Doc:     "The Unix socket that zhxctl connects to."},
	{Section: "daemon", Name: "control_group", Class: ClassDaemon,
		value:   account("group", func(t *target) *string { return &t.daemon.ControlGroup }),
		Default: `""`,
		Doc:     `The group that may act through zhxctl, beside root and zhxd's own user; "" is zhxd's own.`},
	{Section: "daemon", Name: "run_dir", Class: ClassDaemon,
		value:   path(func(t *target) *string { return &t.daemon.RunDir }),
		Without: "/run/zhx for root, else $XDG_RUNTIME_DIR/zhx",
		Doc:     "The directory of sockets, log and state; it need not survive a reboot."},
	{Section: "daemon", Name: "identity", Class: ClassLive,
		value:   word(func(t *target) *string { return &t.daemon.Identity }, "enforce", "warn"),
		Default: `"enforce"`,
		Doc:     "Whether a process that claims a name without proof is refused, or only told of in the log."},
	{Section: "daemon", Name: "reload", Class: ClassLive,
		value:   word(func(t *target) *string { return &t.daemon.Reload }, "auto", "manual"),
		Default: `"auto"`,
		Doc:     "Whether an edit of this file is applied by itself, or waits for zhxctl reload."},
	{Section: "daemon", Name: "prototype_presence", Class: ClassDaemon,
		value:   boolean(func(t *target) *bool { return &t.daemon.PrototypePresence }),
		Default: `true`,
		Doc:     "Keeps a sleeping process that `ps -a | grep zhx_server` finds, as the prototype's clients do."},

	{Section: "watchdog", Name: "interval", Class: ClassLive,
		value:   duration(10*time.Millisecond, time.Hour, func(t *target) *time.Duration { return &t.watchdog.Interval }),
		Default: `"3s"`,
		Doc:     "How often a client is expected to feed."},
	{Section: "watchdog", Name: "misses", Class: ClassLive,
		value:   number(1, 1000, func(t *target) *int { return &t.watchdog.Misses }),
		Default: `3`,
		Doc:     "After how many intervals without a feed a client is late."},

	{Section: "client", Name: "command", Class: ClassRestart,
		value:   command(func(t *target) *[]string { return &t.client.Command }),
		Without: "an error: each client needs one",
		Doc:     "The program and its arguments, without a shell; a program without a slash is looked up in PATH."},
	{Section: "client", Name: "names", Class: ClassLive,
		value:   clientNames(func(t *target) *[]string { return &t.client.Names }),
		Default: `[]`,
		Doc:     "Further names that the client may claim, all watched as one."},
	{Section: "client", Name: "directory", Class: ClassRestart,
		value:   path(func(t *target) *string { return &t.client.Directory }),
		Default: `"/"`,
		Doc:     "The directory that the program starts in."},
	{Section: "client", Name: "environment", Class: ClassRestart,
		value:   environment(func(t *target) *map[string]string { return &t.client.Environment }),
		Default: `{}`,
		Doc:     "Variables for the program, added to those of [defaults]."},
	{Section: "client", Name: "user", Class: ClassRestart,
		value:   account("user", func(t *target) *string { return &t.client.User }),
		Default: `""`,
		Doc:     `The user that the program runs as; "" is zhxd's own.`},
	{Section: "client", Name: "group", Class: ClassRestart,
		value:   account("group", func(t *target) *string { return &t.client.Group }),
		Default: `""`,
		Doc:     `The group that the program runs as; "" is the user's.`},
	{Section: "client", Name: "tty", Class: ClassRestart,
		value:   boolean(func(t *target) *bool { return &t.client.TTY }),
		Default: `false`,
		Doc:     "Gives the program a terminal to write to, for those that buffer their output otherwise."},
	{Section: "client", Name: "autostart", Class: ClassLive,
		value:   boolean(func(t *target) *bool { return &t.client.Autostart }),
		Default: `true`,
		Doc:     "Starts the client together with zhxd."},
	{Section: "client", Name: "restart", Class: ClassLive,
		value:   word(func(t *target) *procman.RestartPolicy { return &t.client.Restart }, procman.Always, procman.OnFailure, procman.Never),
		Default: `"always"`,
		Doc:     "After which ends the client is started again."},
	{Section: "client", Name: "restart_delay", Class: ClassLive,
		value:   duration(time.Millisecond, time.Hour, func(t *target) *time.Duration { return &t.client.RestartDelay }),
		Default: `"100ms"`,
		Doc:     "The wait before a restart; none after a stable run, doubled with each one that was not."},
	{Section: "client", Name: "restart_delay_max", Class: ClassLive,
		value:   duration(time.Millisecond, 24*time.Hour, func(t *target) *time.Duration { return &t.client.RestartDelayMax }),
		Default: `"30s"`,
		Doc:     "The longest wait before a restart."},
	{Section: "client", Name: "stable_after", Class: ClassLive,
		value:   duration(0, 24*time.Hour, func(t *target) *time.Duration { return &t.client.StableAfter }),
		Default: `"5s"`,
		Doc:     "How long a run must last to be stable."},
	{Section: "client", Name: "stop_signal", Class: ClassLive,
		value:   signal(func(t *target) *syscall.Signal { return &t.client.StopSignal }),
		Default: `"SIGTERM"`,
		Doc:     "The signal that asks the program to end."},
	{Section: "client", Name: "stop_timeout", Class: ClassLive,
		value:   duration(0, time.Hour, func(t *target) *time.Duration { return &t.client.StopTimeout }),
		Default: `"5s"`,
		Doc:     "How long it may take to end before it is killed with all that it started."},
	{Section: "client", Name: "watchdog", Class: ClassLive,
		value:   word(func(t *target) *string { return &t.client.Watchdog }, "auto", "required", "off"),
		Default: `"auto"`,
		Doc:     "Whether the client is watched from its first watchdog packet on, from its start, or never."},
	{Section: "client", Name: "watchdog_timeout", Class: ClassLive,
		value:   duration(10*time.Millisecond, timeoutMax, func(t *target) *time.Duration { return &t.client.WatchdogTimeout }),
		Without: "[watchdog] interval x misses",
		Doc:     "How long a watched client may be silent before it is killed and restarted."},
	{Section: "client", Name: "strays", Class: ClassLive,
		value:   wordBool(func(t *target) *bool { return &t.client.KillStrays }, "kill", "ignore"),
		Default: `"kill"`,
		Doc:     "What happens before the first start to running copies of the program that nobody manages."},
}

// lookup finds a key; the letters must be the same.
func lookup(section, name string) *Key {
	for i := range Keys {
		if k := &Keys[i]; k.Section == section && k.Name == name {
			return k
		}
	}
	return nil
}

// names are the keys of a section.
func names(section string) (names []string) {
	for _, k := range Keys {
		if k.Section == section {
			names = append(names, k.Name)
		}
	}
	return names
}

// homes says where a key of that name may stand, or "".
func homes(name string) string {
	var at []string
	for _, s := range sections {
		kind := strings.Replace(s, "defaults", "client", 1)
		if slices.Contains(names(kind), name) {
			at = append(at, "["+strings.Replace(s, "client", "client.NAME", 1)+"]")
		}
	}
	return strings.Join(at, " or ")
}
