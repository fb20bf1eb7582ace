// The table of keys: the one place where a key of clients.toml is defined. Parsing, defaults, checking, comparing and the
// documentation of keys go by it. Values and their checks are in values.go.

package config

import (
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"

	"zhx/ipc/broker"
	"zhx/ipc/wire"
	"zhx/procman"
	"zhx/watchdog"
	"zhx/watchdog/probe"
)

// A class says how a change of a key is applied by a reload.
type class string

const (
	classLive    class = "live"    // to what runs
	classRestart class = "restart" // the client's process is replaced
	classDaemon  class = "daemon"  // when zhxd is restarted
	classSpec    class = ""        // as the tag of the key's field in procman.Spec says
)

// A key is one row of the table.
type key struct {
	section      string // "daemon", "watchdog", "group", or "client": those may also stand in [defaults]
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
	group    *Group
}

// sections are the tables of the top level.
var sections = []string{"daemon", "watchdog", "defaults", "client", "group"}

// keys are all keys, in the order in which they are documented.
var keys = []key{
	{"daemon", "socket", classDaemon, "", path(func(t *target) *string { return &t.daemon.Socket }),
		"The Unix socket that clients connect to; without it, zhx.sock in run_dir."},
	{"daemon", "socket_mode", classDaemon, `"0666"`, octal("0660", func(t *target) *fs.FileMode { return &t.daemon.SocketMode }),
		"The mode of that socket; names and identity guard it, a narrower mode may as well."},
	{"daemon", "socket_group", classDaemon, `""`, account("group", func(t *target) *string { return &t.daemon.SocketGroup }),
		`The group of that socket; "" is zhxd's own.`},
	{"daemon", "tcp", classDaemon, `"127.1.1.1:8000"`, loopback("127.1.1.1", "8000", func(t *target) *string { return &t.daemon.TCP }),
		`The loopback address that clients connect to; "" is no TCP, ":0" picks a port of 127.1.1.1.`},
	{"daemon", "control", classDaemon, "", path(func(t *target) *string { return &t.daemon.Control }),
		"The Unix socket that zhxctl connects to; without it, control.sock in run_dir."},
	{"daemon", "control_group", classDaemon, `""`, account("group", func(t *target) *string { return &t.daemon.ControlGroup }),
		`The group that may act through zhxctl, beside root and zhxd's own user; "" is zhxd's own.`},
	{"daemon", "run_dir", classDaemon, "", path(func(t *target) *string { return &t.daemon.RunDir }),
		"The directory of sockets, log and state, which need not survive a reboot; without it, /run/zhx for root, else $XDG_RUNTIME_DIR/zhx."},
	{"daemon", "state_dir", classDaemon, "", path(func(t *target) *string { return &t.daemon.StateDir }),
		"The directory of what must survive a reboot; without it, /var/lib/zhx where run_dir is /run/zhx, else run_dir."},
	{"daemon", "identity", classLive, `"enforce"`, word(func(t *target) *string { return &t.daemon.Identity }, "enforce", "warn"),
		"Whether a process that claims a name without proof is refused, or only told of in the log."},
	{"daemon", "reload", classLive, `"auto"`, word(func(t *target) *string { return &t.daemon.Reload }, "auto", "manual"),
		"Whether an edit of this file is applied by itself, or waits for zhxctl reload."},
	{"daemon", "prototype_presence", classDaemon, `true`, boolean(func(t *target) *bool { return &t.daemon.PrototypePresence }),
		"Keeps a sleeping process that `ps -a | grep zhx_server` finds, as the prototype's clients do."},
	{"daemon", "metrics", classLive, `""`, loopback("127.0.0.1", "9155", func(t *target) *string { return &t.daemon.Metrics }),
		`A loopback address where GET /metrics is answered, beside the control socket, for any user of this machine; "" is none.`},
	{"daemon", "max_body", classDaemon, `"256KiB"`, bytes("1KiB", "8MiB", func(t *target) *int { return &t.daemon.MaxBody }),
		"The largest body of a message of protocol 2; what is larger travels as a descriptor."},

	{"watchdog", "interval", classLive, `"3s"`, duration("10ms", "1h", func(t *target) *time.Duration { return &t.watchdog.Interval }),
		"How often a client is expected to feed."},
	{"watchdog", "misses", classLive, `3`, number(1, 1000, func(t *target) *int { return &t.watchdog.Misses }),
		"After how many intervals without a feed a client is late."},
	{"watchdog", "mode", classLive, `"enforce"`, word(func(t *target) *string { return &t.watchdog.Mode }, "enforce", "observe"),
		"Whether a late client is killed, or only told of in the log."},
	{"watchdog", "device", classDaemon, `""`, optionalPath(func(t *target) *string { return &t.watchdog.Device }),
		`The hardware watchdog, as "/dev/watchdog", fed as long as every critical client is well or may still recover; "" is none.`},
	{"watchdog", "magic_close", classDaemon, `false`, boolean(func(t *target) *bool { return &t.watchdog.MagicClose }),
		"Whether the hardware watchdog is switched off when zhxd is asked to end, or resets the board unless the next zhxd feeds it in time."},
	{"watchdog", "reboot_limit", classLive, `3`, number(0, 15, func(t *target) *int { return &t.watchdog.RebootLimit }),
		"How many times an hour zhxd reboots the board, over all boots; then clients are started by hand only."},

	{"client", "command", classSpec, "", command(false, func(t *target) *[]string { return &t.client.Command }),
		"The program and its arguments, which each client needs, without a shell; a program without a slash is looked up in PATH."},
	{"client", "names", classLive, `[]`, words(0, `a list of names, as ["other"]`, func(t *target) *[]string { return &t.client.Names }),
		"Further names that the client may claim, all watched as one."},
	{"client", "instances", classLive, "", number(1, 64, func(t *target) *int { return &t.client.Instances }),
		"How many clients are made of it, NAME-1 and so on; without it, there is the one client NAME."},
	{"client", "directory", classSpec, `"/"`, path(func(t *target) *string { return &t.client.Directory }),
		"The directory that the program starts in."},
	{"client", "environment", classSpec, `{}`, environment(func(t *target) *map[string]string { return &t.client.Environment }),
		"Variables for the program, added to those of [defaults]."},
	{"client", "environment_file", classSpec, `""`, optionalPath(func(t *target) *string { return &t.client.EnvironmentFile }),
		`A file of lines KEY=value, read before each start, that environment goes before; "" is none.`},
	{"client", "user", classSpec, `""`, account("user", func(t *target) *string { return &t.client.User }),
		`The user that the program runs as; "" is zhxd's own.`},
	{"client", "group", classSpec, `""`, account("group", func(t *target) *string { return &t.client.Group }),
		`The group that the program runs as; "" is the user's.`},
	{"client", "groups", classSpec, `[]`, words(0, `a list of names or numbers of groups in quotes, as ["dialout"]`, func(t *target) *[]string { return &t.client.Groups }),
		"Further groups of the program, beside the user's own."},
	{"client", "tty", classSpec, `false`, boolean(func(t *target) *bool { return &t.client.TTY }),
		"Gives the program a terminal to write to, for those that buffer their output otherwise."},
	{"client", "umask", classSpec, `"0022"`, octal("0022", func(t *target) *int { return &t.client.Umask }),
		"The permissions that files made by the program do not get."},
	{"client", "limit_nofile", classSpec, `""`, files(func(t *target) **uint64 { return &t.client.LimitNofile }),
		`How many open files the program may have; "" is zhxd's own limit.`},
	{"client", "limit_core", classSpec, `""`, size(func(t *target) **uint64 { return &t.client.LimitCore }),
		`How many bytes a core dump of the program may have; "" is zhxd's own limit.`},
	{"client", "limit_as", classSpec, `""`, size(func(t *target) **uint64 { return &t.client.LimitAS }),
		`How many bytes of address space the program may have; "" is zhxd's own limit.`},
	{"client", "nice", classSpec, `0`, number(-20, 19, func(t *target) *int { return &t.client.Nice }),
		"The program's nice value, the lowest being served first."},
	{"client", "cpu_affinity", classSpec, `[]`, numbers(0, 0, 1023, func(t *target) *[]int { return &t.client.CPUAffinity }),
		"The processors that the program may run on; [] is zhxd's own."},
	{"client", "oom_score_adj", classSpec, `0`, number(-1000, 1000, func(t *target) *int { return &t.client.OOMScoreAdj }),
		"How readily the kernel kills the program when memory runs out, -1000 being never."},
	{"client", "no_new_privileges", classSpec, `false`, boolean(func(t *target) *bool { return &t.client.NoNewPrivileges }),
		"Keeps the program from gaining privileges through setuid files and the like."},
	{"client", "log_file", classSpec, `""`, logFile(func(t *target) *string { return &t.client.LogFile }),
		`A file that what the program prints is also written to, one of its own for each client, which root only makes where no other user can write; "" is none.`},
	{"client", "autostart", classSpec, `true`, boolean(func(t *target) *bool { return &t.client.Autostart }),
		"Starts the client together with zhxd."},
	{"client", "depends_on", classSpec, `[]`, words(0, `a list of clients, as ["other"]`, func(t *target) *[]string { return &t.client.DependsOn }),
		"Clients that must be ready before this one starts, and that stop after it."},
	{"client", "ready", classSpec, `"spawn"`, word(func(t *target) *procman.ReadyWhen { return &t.client.Ready }, procman.ReadySpawn, procman.ReadyRegister, procman.ReadyNotify),
		"When the client is ready: its process exists, it has registered, or it has said READY=1 as sd_notify does."},
	{"client", "start_timeout", classSpec, `"30s"`, duration("0s", "24h", func(t *target) *time.Duration { return &t.client.StartTimeout }),
		`How long it may take from start to ready, unless it is oneshot, before it is killed; "0s" is for ever.`},
	{"client", "oneshot", classSpec, `false`, boolean(func(t *target) *bool { return &t.client.Oneshot }),
		`The program runs to its end once, and is ready then; restart is "on-failure" unless it is set.`},
	{"client", "restart", classSpec, `"always"`, word(func(t *target) *procman.RestartPolicy { return &t.client.Restart }, procman.Always, procman.OnFailure, procman.Never),
		"After which ends the client is started again."},
	{"client", "restart_delay", classSpec, `"100ms"`, duration("1ms", "1h", func(t *target) *time.Duration { return &t.client.RestartDelay }),
		"The wait before a restart; none after a stable run, doubled with each one that was not."},
	{"client", "restart_delay_max", classSpec, `"30s"`, duration("1ms", "24h", func(t *target) *time.Duration { return &t.client.RestartDelayMax }),
		"The longest wait before a restart."},
	{"client", "stable_after", classSpec, `"5s"`, duration("0s", "24h", func(t *target) *time.Duration { return &t.client.StableAfter }),
		"How long a run must have been ready to be stable."},
	{"client", "start_limit", classSpec, `{}`, startLimit(func(t *target) *procman.StartLimit { return &t.client.StartLimit }),
		"How many restarts there may be within an interval, after which the client has failed; {} is any number."},
	{"client", "on_failure", classSpec, `[]`, command(true, func(t *target) *[]string { return &t.client.OnFailure }),
		"A program that is executed each time that start_limit is reached; [] is none."},
	{"client", "success_exit_codes", classSpec, `[0]`, numbers(1, 0, 255, func(t *target) *[]int { return &t.client.SuccessCodes }),
		"Exit codes that are no failure."},
	{"client", "stop_signal", classSpec, `"SIGTERM"`, signal(`"SIGTERM"`, func(t *target) *syscall.Signal { return &t.client.StopSignal }),
		"The signal that asks the program to end."},
	{"client", "stop_timeout", classSpec, `"5s"`, duration("0s", "1h", func(t *target) *time.Duration { return &t.client.StopTimeout }),
		"How long it may take to end before it is killed with all that it started."},
	{"client", "watchdog", classLive, `"auto"`, word(func(t *target) *string { return &t.client.Watchdog }, "auto", "required", "off"),
		"Whether the client is watched from its first watchdog packet on, from its start, or never."},
	{"client", "watchdog_timeout", classSpec, "", duration("10ms", "24h", func(t *target) *time.Duration { return &t.client.WatchdogTimeout }),
		"How long a watched client may be silent before it is killed and restarted; without it, [watchdog] interval x misses."},
	{"client", "startup_timeout", classLive, `"0s"`, duration("0s", "24h", func(t *target) *time.Duration { return &t.client.StartupTimeout }),
		`How long a client with watchdog = "required" may take to its first feed; "0s" is watchdog_timeout.`},
	{"client", "deadlines", classLive, `[]`, deadlines(func(t *target) *[]watchdog.Deadline { return &t.client.Deadlines }),
		"Times that the client may take from one checkpoint to another, or from one to the next of the same name."},
	{"client", "probe", classLive, `{}`, probed(func(t *target) *probe.Probe { return &t.client.Probe }),
		"How zhxd asks a client that does not feed whether it is alive, an answer being a feed; interval and timeout are a third of watchdog_timeout unless they are set."},
	{"client", "warn_after", classLive, `"0s"`, duration("0s", "24h", func(t *target) *time.Duration { return &t.client.WarnAfter }),
		`The silence after which zhxd looks what the client is doing; "0s" is half of what it may last.`},
	{"client", "warn_signal", classLive, `""`, signal(`"SIGABRT", or ""`, func(t *target) *syscall.Signal { return &t.client.WarnSignal }),
		`The signal that the program gets then; "" is none.`},
	{"client", "abort_signal", classSpec, `""`, signal(`"SIGABRT", or ""`, func(t *target) *syscall.Signal { return &t.client.AbortSignal }),
		`The signal that a late program gets before it is killed, as "SIGABRT" for a core; "" is none.`},
	{"client", "abort_timeout", classSpec, `"10s"`, duration("1ms", "1h", func(t *target) *time.Duration { return &t.client.AbortTimeout }),
		"How long it may take to end by abort_signal, not counting the time in which its core is written."},
	{"client", "critical", classLive, `false`, boolean(func(t *target) *bool { return &t.client.Critical }),
		"Reboots the board when the client's start_limit is reached, which is 5 restarts in 10m then unless it is set."},
	{"client", "hold", classLive, `{ messages = 256, bytes = "256KiB", for = "10s" }`, held(func(t *target) *broker.Hold { return &t.client.Hold }),
		"How many messages to the client wait while it restarts, how large together and how long, what is left out being as in [defaults]; with false none does, as a stale command must not reach an actuator."},
	{"client", "may_send_to", classLive, `["*"]`, patterns(namePatterns, validGlob, func(t *target) *[]string { return &t.client.MaySendTo }),
		"Whom the client may send messages and requests to, if their may_receive_from has it as well; a process that is no client's may send to everybody."},
	{"client", "may_receive_from", classLive, `["*"]`, patterns(namePatterns, validGlob, func(t *target) *[]string { return &t.client.MayReceiveFrom }),
		`Who may send it messages and requests, processes that are no client's as well, those that say no name only with "*"; zhxctl always may.`},
	{"client", "may_publish", classLive, `[">"]`, patterns(topicPatterns, wire.ValidPattern, func(t *target) *[]string { return &t.client.MayPublish }),
		"Which topics the client may publish; a process that is no client's may publish all."},
	{"client", "may_subscribe", classLive, `[">"]`, patterns(topicPatterns, wire.ValidPattern, func(t *target) *[]string { return &t.client.MaySubscribe }),
		"Which topics the client may subscribe to, a pattern only if one of these has all that it means; a process that is no client's may subscribe to all."},
	{"client", "strays", classSpec, `"kill"`, wordBool(func(t *target) *bool { return &t.client.KillStrays }, "kill", "ignore"),
		"What happens before the first start to running copies of the program that nobody manages."},

	{"group", "clients", classLive, "", words(1, `a list of clients, as ["a", "b"]`, func(t *target) *[]string { return &t.group.Clients }),
		"The clients that @NAME stands for on the command line, which each group needs."},
	{"group", "restart", classLive, `"one"`, wordBool(func(t *target) *bool { return &t.group.RestartAll }, "all", "one"),
		"Whether a client that fails is restarted alone or with the others of the group."},
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

// change says how a change of the key is applied.
func (k *key) change() class {
	spec := reflect.TypeFor[procman.Spec]()
	for i := 0; i < spec.NumField() && k.class == classSpec; i++ {
		if tag := spec.Field(i).Tag; tag.Get("key") == k.name {
			return class(tag.Get("class"))
		}
	}
	return k.class
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

// heading is a section as it is written in a file.
func heading(section string) string {
	if named(section) {
		section += ".NAME"
	}
	return "[" + section + "]"
}

// named tells whether a section of the top level has tables with a name each.
func named(section string) bool { return section == "client" || section == "group" }

// homes says where a key of that name may stand, or "".
func homes(name string) string {
	var at []string
	for _, s := range sections {
		if slices.Contains(keysOf(s), name) {
			at = append(at, heading(s))
		}
	}
	return strings.Join(at, " or ")
}
