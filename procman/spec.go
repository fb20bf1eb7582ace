// What a client is: the keys of [client.NAME] that concern its processes.

package procman

import (
	"reflect"
	"syscall"
	"time"
)

// A RestartPolicy says after which ends a client is started again. A stop by hand is never followed by a restart.
type RestartPolicy string

const (
	Always    RestartPolicy = "always"     // after every end
	OnFailure RestartPolicy = "on-failure" // after every end but one of the success exit codes
	Never     RestartPolicy = "never"      // after none; the client is then in state exited
)

// A Spec is one client as configured. It is a value: nobody changes it (its slice and map neither) after Apply.
// The caller has checked and filled it in (daemon/config has the ranges and defaults); the zero value does not run.
//
// The tag key is the key's name in clients.toml; class is how a change of it is applied, and is written only here:
// restart (the client's process is replaced) or live (it keeps its pid).
type Spec struct {
	Name            string            // [A-Za-z0-9_][A-Za-z0-9_-]{0,63}
	Command         []string          `key:"command" class:"restart"` // [0] without a slash is looked up in the child's PATH
	Directory       string            `key:"directory" class:"restart"`
	Environment     map[string]string `key:"environment" class:"restart"`      // cannot set ZHX_SOCKET, ZHX_NAME, ZHX_RUN
	EnvironmentFile string            `key:"environment_file" class:"restart"` // absolute; lines KEY=value under environment; "" is none; read before each spawn
	User            string            `key:"user" class:"restart"`             // name or number; "" is zhxd's own
	Group           string            `key:"group" class:"restart"`            // name or number; "" is the user's
	Groups          []string          `key:"groups" class:"restart"`           // supplementary, names or numbers, beside the user's own
	TTY             bool              `key:"tty" class:"restart"`
	Umask           int               `key:"umask" class:"restart"`             // 0 to 0777
	LimitNofile     *uint64           `key:"limit_nofile" class:"restart"`      // setrlimit(2), soft and hard; nil: zhxd's own; math.MaxUint64: unlimited
	LimitCore       *uint64           `key:"limit_core" class:"restart"`        // bytes
	LimitAS         *uint64           `key:"limit_as" class:"restart"`          // bytes
	Nice            int               `key:"nice" class:"restart"`              // -20 to 19
	CPUAffinity     []int             `key:"cpu_affinity" class:"restart"`      // processors, from 0; none: zhxd's own
	OOMScoreAdj     int               `key:"oom_score_adj" class:"restart"`     // -1000 to 1000
	NoNewPrivileges bool              `key:"no_new_privileges" class:"restart"` // PR_SET_NO_NEW_PRIVS
	LogFile         string            `key:"log_file" class:"live"`             // absolute; "" is none
	DependsOn       []string          `key:"depends_on" class:"live"`           // clients; no cycles
	Ready           ReadyWhen         `key:"ready" class:"live"`                //
	StartTimeout    time.Duration     `key:"start_timeout" class:"live"`        // from spawn to ready, not for a oneshot; then it is killed; 0 is for ever
	Oneshot         bool              `key:"oneshot" class:"live"`              // runs to the end once; ready is to have ended with success
	RestartWith     []string          `key:"[group]" class:"live"`              // clients that are restarted when this one fails
	Autostart       bool              `key:"autostart" class:"live"`            //
	Restart         RestartPolicy     `key:"restart" class:"live"`              //
	RestartDelay    time.Duration     `key:"restart_delay" class:"live"`        // > 0; doubles with each unstable run
	RestartDelayMax time.Duration     `key:"restart_delay_max" class:"live"`    // >= RestartDelay
	StableAfter     time.Duration     `key:"stable_after" class:"live"`         // a run that was ready for so long is followed by its successor at once
	StartLimit      StartLimit        `key:"start_limit" class:"live"`          //
	OnFailure       []string          `key:"on_failure" class:"live"`           // command, executed once each time that StartLimit is reached; none: nothing
	SuccessCodes    []int             `key:"success_exit_codes" class:"live"`   // exit codes that are no failure; none: 0
	StopSignal      syscall.Signal    `key:"stop_signal" class:"live"`          //
	StopTimeout     time.Duration     `key:"stop_timeout" class:"live"`         // from StopSignal to SIGKILL
	FrozenTimeout   time.Duration     `key:"watchdog_timeout" class:"live"`     // the watchdog's; longest time in state T without a tracer; 0 is for ever
	AbortSignal     syscall.Signal    `key:"abort_signal" class:"live"`         // after a lapse, to the leader; 0: none, SIGKILL at once
	AbortTimeout    time.Duration     `key:"abort_timeout" class:"live"`        // from AbortSignal to SIGKILL, which waits for a core that is being written
	KillStrays      bool              `key:"strays" class:"live"`               // stop unmanaged copies before the first spawn
}

// ReadyWhen says when a run counts as ready: dependants start then, and stable_after begins.
type ReadyWhen string

const (
	ReadySpawn    ReadyWhen = "spawn"    // its process exists
	ReadyRegister ReadyWhen = "register" // it has registered with the broker
	ReadyNotify   ReadyWhen = "notify"   // it has said READY=1, sd_notify(3)
)

// StartLimit ends restarting: the restart after Burst of them within Interval is not made. The zero value is no limit.
type StartLimit struct {
	Burst    int
	Interval time.Duration
}

// A change is one key in which two specs differ.
type change struct{ key, class string }

// changed lists the keys in which s and t differ, in the order of the fields. An empty map or slice equals none.
func changed(s, t Spec) (cs []change) {
	a, b := reflect.ValueOf(s), reflect.ValueOf(t)
	for i := range a.NumField() {
		tag := a.Type().Field(i).Tag
		x, y := a.Field(i), b.Field(i)
		if k := x.Kind(); (k == reflect.Map || k == reflect.Slice) && x.Len()+y.Len() == 0 {
			continue
		}
		if tag.Get("key") != "" && !reflect.DeepEqual(x.Interface(), y.Interface()) {
			cs = append(cs, change{tag.Get("key"), tag.Get("class")})
		}
	}
	return cs
}
