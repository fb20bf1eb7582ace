// The table of keys: the one place where a key of clients.toml is defined. Parsing, defaults, checking, comparing and the
// documentation of keys go by it. Values and their checks are in values.go.

package config

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"

	"zhx/procman"
)

// A class says how a change of a key is applied by a reload.
type class string

const (
	classLive    class = "live"    // to what runs
	classRestart class = "restart" // the client's process is replaced
	classDaemon  class = "daemon"  // when zhxd is restarted
)

// A key is one row of the table.
type key struct {
	section      string // "daemon", "watchdog", or "client": those may also stand in [defaults]
	name         string
	class        class
	defaultValue string // as TOML; "" if there is none
	value               // what it takes; how it is set and read
	doc          string // one sentence
}

// target is what keys are set in. A key uses the part that its section is about.
type target struct {
	daemon   *Daemon
	watchdog *Watchdog
	client   *Client
}

// sections are the tables of the top level.
var sections = []string{"daemon", "watchdog", "defaults", "client"}

// keys are all keys, in the order in which they are documented.
var keys = []key{
	{"daemon", "socket", classDaemon, "", path(func(t *target) *string { return &t.daemon.Socket }),
		"The Unix socket that clients connect to; without it, zhx.sock in run_dir."},
	{"daemon", "socket_mode", classDaemon, `"0666"`, mode(func(t *target) *fs.FileMode { return &t.daemon.SocketMode }),
		"The mode of that socket; names and identity guard it, a narrower mode may as well."},
	{"daemon", "socket_group", classDaemon, `""`, account("group", func(t *target) *string { return &t.daemon.SocketGroup }),
		`The group of that socket; "" is zhxd's own.`},
	{"daemon", "tcp", classDaemon, `"127.1.1.1:8000"`, loopback(func(t *target) *string { return &t.daemon.TCP }),
		`The loopback address that clients connect to; "" is no TCP, ":0" picks a port of 127.1.1.1.`},
	{"daemon", "control", classDaemon, "", path(func(t *target) *string { return &t.daemon.Control }),
		"The Unix socket that zhxctl connects to; without it, control.sock in run_dir."},
	{"daemon", "control_group", classDaemon, `""`, account("group", func(t *target) *string { return &t.daemon.ControlGroup }),
		`The group that may act through zhxctl, beside root and zhxd's own user; "" is zhxd's own.`},
	{"daemon", "run_dir", classDaemon, "", path(func(t *target) *string { return &t.daemon.RunDir }),
		"The directory of sockets, log and state, which need not survive a reboot; without it, /run/zhx for root, else $XDG_RUNTIME_DIR/zhx."},
	{"daemon", "identity", classLive, `"enforce"`, word(func(t *target) *string { return &t.daemon.Identity }, "enforce", "warn"),
		"Whether a process that claims a name without proof is refused, or only told of in the log."},
	{"daemon", "reload", classLive, `"auto"`, word(func(t *target) *string { return &t.daemon.Reload }, "auto", "manual"),
		"Whether an edit of this file is applied by itself, or waits for zhxctl reload."},
	{"daemon", "prototype_presence", classDaemon, `true`, boolean(func(t *target) *bool { return &t.daemon.PrototypePresence }),
		"Keeps a sleeping process that `ps -a | grep zhx_server` finds, as the prototype's clients do."},

	{"watchdog", "interval", classLive, `"3s"`, duration("10ms", "1h", func(t *target) *time.Duration { return &t.watchdog.Interval }),
		"How often a client is expected to feed."},
	{"watchdog", "misses", classLive, `3`, number(1, 1000, func(t *target) *int { return &t.watchdog.Misses }),
		"After how many intervals without a feed a client is late."},

	{"client", "command", classRestart, "", command(func(t *target) *[]string { return &t.client.Command }),
		"The program and its arguments, which each client needs, without a shell; a program without a slash is looked up in PATH."},
	{"client", "names", classLive, `[]`, clientNames(func(t *target) *[]string { return &t.client.Names }),
		"Further names that the client may claim, all watched as one."},
	{"client", "directory", classRestart, `"/"`, path(func(t *target) *string { return &t.client.Directory }),
		"The directory that the program starts in."},
	{"client", "environment", classRestart, `{}`, environment(func(t *target) *map[string]string { return &t.client.Environment }),
		"Variables for the program, added to those of [defaults]."},
	{"client", "user", classRestart, `""`, account("user", func(t *target) *string { return &t.client.User }),
		`The user that the program runs as; "" is zhxd's own.`},
	{"client", "group", classRestart, `""`, account("group", func(t *target) *string { return &t.client.Group }),
		`The group that the program runs as; "" is the user's.`},
	{"client", "tty", classRestart, `false`, boolean(func(t *target) *bool { return &t.client.TTY }),
		"Gives the program a terminal to write to, for those that buffer their output otherwise."},
	{"client", "autostart", classLive, `true`, boolean(func(t *target) *bool { return &t.client.Autostart }),
		"Starts the client together with zhxd."},
	{"client", "restart", classLive, `"always"`, word(func(t *target) *procman.RestartPolicy { return &t.client.Restart }, procman.Always, procman.OnFailure, procman.Never),
		"After which ends the client is started again."},
	{"client", "restart_delay", classLive, `"100ms"`, duration("1ms", "1h", func(t *target) *time.Duration { return &t.client.RestartDelay }),
		"The wait before a restart; none after a stable run, doubled with each one that was not."},
	{"client", "restart_delay_max", classLive, `"30s"`, duration("1ms", "24h", func(t *target) *time.Duration { return &t.client.RestartDelayMax }),
		"The longest wait before a restart."},
	{"client", "stable_after", classLive, `"5s"`, duration("0s", "24h", func(t *target) *time.Duration { return &t.client.StableAfter }),
		"How long a run must last to be stable."},
	{"client", "stop_signal", classLive, `"SIGTERM"`, signal(func(t *target) *syscall.Signal { return &t.client.StopSignal }),
		"The signal that asks the program to end."},
	{"client", "stop_timeout", classLive, `"5s"`, duration("0s", "1h", func(t *target) *time.Duration { return &t.client.StopTimeout }),
		"How long it may take to end before it is killed with all that it started."},
	{"client", "watchdog", classLive, `"auto"`, word(func(t *target) *string { return &t.client.Watchdog }, "auto", "required", "off"),
		"Whether the client is watched from its first watchdog packet on, from its start, or never."},
	{"client", "watchdog_timeout", classLive, "", duration("10ms", "24h", func(t *target) *time.Duration { return &t.client.WatchdogTimeout }),
		"How long a watched client may be silent before it is killed and restarted; without it, [watchdog] interval x misses."},
	{"client", "strays", classLive, `"kill"`, wordBool(func(t *target) *bool { return &t.client.KillStrays }, "kill", "ignore"),
		"What happens before the first start to running copies of the program that nobody manages."},
}

// reset sets the default.
func (k *key) reset(t *target) {
	if k.defaultValue == "" {
		return
	}
	var v struct{ V any }
	_, err := toml.Decode("V = "+k.defaultValue, &v)
	if err == nil {
		err = k.set(t, v.V)
	}
	if err != nil {
		panic(fmt.Sprintf("config: default of %s: %v", k.name, err))
	}
}

// in tells whether the key may stand in a section of the top level.
func (k *key) in(section string) bool {
	return k.section == section || k.section == "client" && section == "defaults"
}

// keysOf lists the names of the keys of a section of the top level.
func keysOf(section string) (names []string) {
	for _, k := range keys {
		if k.in(section) {
			names = append(names, k.name)
		}
	}
	return names
}

// homes says where a key of that name may stand, or "".
func homes(name string) string {
	var at []string
	for _, s := range sections {
		if slices.Contains(keysOf(s), name) {
			at = append(at, "["+strings.Replace(s, "client", "client.NAME", 1)+"]")
		}
	}
	return strings.Join(at, " or ")
}
