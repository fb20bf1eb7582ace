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
	OnFailure RestartPolicy = "on-failure" // after every end but exit code 0
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
	Environment     map[string]string `key:"environment" class:"restart"` // cannot set ZHX_SOCKET, ZHX_NAME, ZHX_RUN
	User            string            `key:"user" class:"restart"`        // name or number; "" is zhxd's own
	Group           string            `key:"group" class:"restart"`       // name or number; "" is the user's
	TTY             bool              `key:"tty" class:"restart"`
	Autostart       bool              `key:"autostart" class:"live"`
	Restart         RestartPolicy     `key:"restart" class:"live"`
	RestartDelay    time.Duration     `key:"restart_delay" class:"live"`     // > 0; doubles with each unstable run
	RestartDelayMax time.Duration     `key:"restart_delay_max" class:"live"` // >= RestartDelay
	StableAfter     time.Duration     `key:"stable_after" class:"live"`      // a run of this length is followed by its successor at once
	StopSignal      syscall.Signal    `key:"stop_signal" class:"live"`
	StopTimeout     time.Duration     `key:"stop_timeout" class:"live"`     // from StopSignal to SIGKILL
	FrozenTimeout   time.Duration     `key:"watchdog_timeout" class:"live"` // longest time in state T without a tracer; 0 is for ever
	KillStrays      bool              `key:"strays" class:"live"`           // stop unmanaged copies before the first spawn
}

// Equal tells whether two specs are the same in every key.
func (s Spec) Equal(t Spec) bool { return s.Name == t.Name && len(changed(s, t)) == 0 }

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
