package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp/cmpopts"
)

// Each value is told as it is in force, with the line that it comes from.
func TestKeysOf(t *testing.T) {
	const text = `[daemon]
run_dir = "/tmp/zhx-of-a-test"
[watchdog]
misses = 2
[defaults]
nice = 5
hold = { messages = 8 }
environment = { A = "1" }
[client.pool]
command = ["/bin/prog", "%n"]
instances = 2
stop_timeout = "1500ms"
umask = "0027"
strays = "ignore"
stop_signal = "INT"
deadlines = [{ from = "a", to = "b", within = "1s" }]
environment.B = "x y"
probe = { tcp = "127.0.0.1:80", interval = "10ms" }
oneshot = true
critical = true
`
	c, err := Parse("c.toml", []byte(text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, k := range c.KeysOf("pool-2") {
		got[k.Key] = strings.TrimSpace(fmt.Sprintf("%s  %s %d", k.Value, k.From, k.Line))
	}
	for _, tt := range []struct{ purpose, key, want string }{
		{"%n has its meaning", "command", `["/bin/prog", "pool-2"]  client.pool 10`},
		{"a value stands as it was written", "stop_timeout", `"1500ms"  client.pool 12`},
		{"a mode too", "umask", `"0027"  client.pool 13`},
		{"and a word", "strays", `"ignore"  client.pool 14`},
		{"and a signal without SIG", "stop_signal", `"INT"  client.pool 15`},
		{"a list of tables", "deadlines", `[{ from = "a", to = "b", within = "1s" }]  client.pool 16`},
		{"a number", "instances", "2  client.pool 11"},
		{"of [defaults]", "nice", "5  defaults 6"},
		{"the default", "directory", `"/"   0`},
		{"what is left out is as by default", "hold", `{ bytes = 262144, for = "10s", messages = 8 }  defaults 7`},
		{"two tables in one", "environment", `{ A = "1", B = "x y" }  client.pool 17`},
		{"what is derived from another section", "watchdog_timeout", `"6s"  watchdog 3`},
		{"what is derived from another key", "probe", `{ interval = "10ms", tcp = "127.0.0.1:80", timeout = "2s" }  client.pool 18`},
		{"oneshot changes a default", "restart", `"on-failure"   0`},
		{"critical, too", "start_limit", `{ burst = 5, interval = "10m" }   0`},
	} {
		if value := c.Values()("pool-2", tt.key); !strings.HasPrefix(tt.want, value+"  ") {
			t.Errorf("%s: the value of %s alone is %s", tt.purpose, tt.key, value)
		}
		if got[tt.key] != tt.want {
			t.Errorf("%s: %s is %s, want %s", tt.purpose, tt.key, got[tt.key], tt.want)
		}
	}
	if len(got) != len(keysOf("client")) {
		t.Errorf("%d keys of %d", len(got), len(keysOf("client")))
	}
	if c.KeysOf("pool") != nil {
		t.Error("there is no client of that name")
	}
}

// sameText compares what files mean, whatever they look like.
var sameText = cmpopts.IgnoreUnexported(Config{})
