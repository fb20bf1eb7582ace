package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zhx/ipc/broker"
	"zhx/procman"
	"zhx/watchdog"
	"zhx/watchdog/probe"
)

// What is wrong with what clients have to do with each other, and with the values that this takes.
func TestRelationProblems(t *testing.T) {
	const a, b, c = "[client.a]\ncommand = ['x']\n", "[client.b]\ncommand = ['x']\n", "[client.c]\ncommand = ['x']\n"
	const ready = "[defaults]\nready = 'notify'\n"
	const hold = `{ messages = 256, bytes = "256KiB", for = "10s" } with 1 to 65536, "1KiB" to "64MiB" and "10ms" to "1h", or false`
	const probes = `{ tcp = "127.0.0.1:80" }, { unix = "/path" }, { http = "http://127.0.0.1/" } or { exec = ["prog"] }, if need be with interval and timeout from "10ms" to "1h", or {}`
	for _, row := range []struct {
		purpose, text string
		want          []string // without "clients.toml:"
	}{
		{"an unknown client", a + "depends_on = ['bb']\n" + b, []string{`3: error: depends_on in [client.a]: no such client: "bb"; did you mean "b"?`}},
		{"itself", ready + a + "depends_on = ['a']\n", []string{`5: error: clients that wait for each other: a -> a`}},
		{"a cycle, with a way to it and one out of it", ready + "[client.w]\ncommand = ['x']\ndepends_on = ['a']\n" + a + "depends_on = ['b', 'o']\n" + b + "depends_on = ['c']\n" + c + "depends_on = ['a']\n[client.o]\ncommand = ['x']\n",
			[]string{`14: error: clients that wait for each other: a -> b -> c -> a`}},
		{"two cycles", ready + a + "depends_on = ['b', 'c']\n" + b + "depends_on = ['a']\n" + c + "depends_on = ['a']\n", []string{
			`8: error: clients that wait for each other: a -> b -> a`, `11: error: clients that wait for each other: a -> c -> a`}},
		{"a cycle of instances", ready + a + "instances = 2\ndepends_on = ['b-1']\n" + b + "instances = 2\ndepends_on = ['a-2']\n",
			[]string{`10: error: clients that wait for each other: a -> b -> a`}},
		{"one instance for another", ready + a + "instances = 2\ndepends_on = ['a-1']\n", []string{`6: error: clients that wait for each other: a -> a`}},
		{"inherited", ready + "depends_on = ['a']\n" + a + b, []string{`3: error: clients that wait for each other: a -> a`}},
		{"a diamond is no cycle", ready + a + "depends_on = ['b', 'c']\n" + b + "depends_on = ['d']\n" + c + "depends_on = ['d']\n[client.d]\ncommand = ['x']\n", nil},
		{"hardly a wait", a + "instances = 3\n" + b + "depends_on = ['a']\n" + c + "depends_on = ['o']\n[client.o]\ncommand = ['x']\noneshot = true\n",
			[]string{`6: warning: client "b" depends on "a", which is ready as soon as it is spawned; ready = "register" or "notify" waits for more`}},

		{"an instance that is a client", a + "instances = 2\n[client.a-2]\ncommand = ['x']\n", []string{`3: error: instance "a-2" of client "a" is also client "a-2"`}},
		{"an instance that has instances", a + "instances = 2\n[client.a-2]\ncommand = ['x']\ninstances = 1\n", []string{`3: error: instance "a-2" of client "a" is also client "a-2"`}},
		{"an instance that is a further name", a + "instances = 2\n" + b + "names = ['a-1']\n", []string{`6: error: name "a-1" of client "b" is also a name of client "a"`}},
		{"a further name that has instances", a + "instances = 2\n" + b + "names = ['a']\n", []string{`6: error: name "a" of client "b" is also a name of client "a"`}},
		{"instances with further names", a + "instances = 1\nnames = ['b']\n", []string{`4: error: names in [client.a]: a client with instances has no further names`}},
		{"an instance whose name is too long", "[client." + strings.Repeat("x", 62) + "]\ncommand = ['x']\ninstances = 10\n",
			[]string{`1: error: [client.` + strings.Repeat("x", 62) + `]: "` + strings.Repeat("x", 62) + `-10" is no name; a name has 1 to 64 of A-Z a-z 0-9 _ -, and no - in front`}},
		{"an instance that protocol 1 cannot address", "[client.worker_xx]\ncommand = ['x']\ninstances = 2\n",
			[]string{`1: warning: name "worker_xx-2" has 11 bytes: protocol 1 cannot address it, its names have at most 10`}},
		{"how many", a + "instances = 0\n" + b + "instances = 65\n", []string{
			`3: error: instances in [client.a]: must be a whole number from 1 to 64, not 0`, `6: error: instances in [client.b]: must be a whole number from 1 to 64, not 65`}},

		{"groups", a + "[group.x]\n[group.y]\nclients = ['aa', 'a']\n[group.'y z']\nclients = []\n[group]\nz = 5\n[group.w]\nclients = 'a'\nrestart = 'both'\n", []string{
			`3: error: [group.x] has no clients`,
			`5: error: clients in [group.y]: no such client: "aa"; did you mean "a"?`,
			`6: error: [group."y z"]: "y z" is no name; a name has 1 to 64 of A-Z a-z 0-9 _ -, and no - in front`,
			`7: error: clients in [group."y z"]: must be a list of clients, as ["a", "b"], not []`,
			`9: error: "z" in [group]: groups are written [group.NAME]`,
			`11: error: clients in [group.w]: must be a list of clients, as ["a", "b"], not "a"`,
			`12: error: restart in [group.w]: must be "all" or "one", not "both"`}},
		{"a group without group", a + "[radio]\nclients = ['a']\n", []string{`3: error: unknown section [radio]; did you mean [group.radio]?`}},
		{"a key of a group", a + "clients = ['a']\n", []string{`3: error: unknown key "clients" in [client.a]; it belongs into [group.NAME]`}},
		{"group is no table", "group = 1\n", []string{`1: error: groups are written [group.NAME]`}},

		{"a oneshot for ever", a + "oneshot = true\nrestart = 'always'\n", []string{`4: error: client "a" is oneshot: restart must be "on-failure" or "never", not "always"`}},
		{"inherited", "[defaults]\noneshot = true\nrestart = 'always'\n" + a, []string{`3: error: client "a" is oneshot: restart must be "on-failure" or "never", not "always"`}},
		{"one file for two", "[defaults]\nlog_file = '/x.log'\n" + a + b, []string{`2: error: log_file of client "b" is also that of client "a", "/x.log"; %n in it stands for the name`}},
		{"what a watchdog that is off does not do", a + "watchdog = 'off'\nprobe = {tcp='127.0.0.1:1'}\ndeadlines = [{from='x',to='y',within='1s'}]\n", []string{
			`4: warning: probe of client "a" has no effect: its watchdog is off`, `5: warning: deadlines of client "a" has no effect: its watchdog is off`}},
		{"a watchdog that is not as it looks", "[defaults]\nstartup_timeout = '1m'\nwatchdog_timeout = '3s'\n" + a + "watchdog = 'required'\n" + b + "critical = true\nrestart = 'never'\n", []string{
			`2: warning: startup_timeout of client "b" has no effect: its watchdog is not "required"`, `9: warning: critical of client "b" has no effect: its restart is "never"`}},
		{"late from the start", a + "watchdog_timeout = '3s'\nwarn_after = '3s'\n" + b + "watchdog_timeout = '3s'\nprobe = {tcp='127.0.0.1:1',interval='2500ms'}\n", []string{
			`4: warning: warn_after of client "a" has no effect: its watchdog_timeout is not longer`,
			`8: warning: client "b" may be late though its probe is answered: interval 2.5s and timeout 1s are more than its watchdog_timeout, 3s`}},
		{"how to ask", a + "probe = {tcp='127.0.0.1:1',intervall='1s'}\n" + b + "probe = {tcp='127.0.0.1:1',exec=['p']}\n[client.c]\ncommand = ['x']\nprobe = {exec=['50%']}\n", []string{
			`3: error: probe in [client.a]: must be ` + probes + `, not with intervall = "1s"`,
			`6: error: probe in [client.b]: must be one of ` + probes,
			`9: error: probe in [client.c]: has a single % in "50%", which is neither ${VARIABLE} nor %n; write %% for the character`}},
		{"nobody executes it", a + "on_failure = ['x']\n", []string{`3: warning: on_failure of client "a" is never executed: it has no start_limit`}},

		{"numbers", a + "nice = 20\noom_score_adj = -1001\ncpu_affinity = [1, 1]\nsuccess_exit_codes = []\n" + b + "cpu_affinity = [1024]\nsuccess_exit_codes = [256]\n", []string{
			`3: error: nice in [client.a]: must be a whole number from -20 to 19, not 20`,
			`4: error: oom_score_adj in [client.a]: must be a whole number from -1000 to 1000, not -1001`,
			`5: error: cpu_affinity in [client.a]: must be a list of different whole numbers from 0 to 1023, as [0, 1], not [1, 1]`,
			`6: error: success_exit_codes in [client.a]: must be a list of different whole numbers from 0 to 255, as [0, 1], not []`,
			`9: error: cpu_affinity in [client.b]: must be a list of different whole numbers from 0 to 1023, as [0, 1], not [1024]`,
			`10: error: success_exit_codes in [client.b]: must be a list of different whole numbers from 0 to 255, as [0, 1], not [256]`}},
		{"limits", a + "limit_nofile = 'unlimited'\nlimit_core = '64MB'\nlimit_as = -1\n" + b + "limit_nofile = 0\nlimit_core = 'G'\nlimit_as = '9007199254740992K'\n", []string{
			`3: error: limit_nofile in [client.a]: must be a whole number from 1 to 1000000000, or "", not "unlimited"`,
			`4: error: limit_core in [client.a]: must be a number of bytes, as 65536 or "64M" (K, M, G), or "unlimited", or "", not "64MB"`,
			`5: error: limit_as in [client.a]: must be a number of bytes, as 65536 or "64M" (K, M, G), or "unlimited", or "", not -1`,
			`8: error: limit_nofile in [client.b]: must be a whole number from 1 to 1000000000, or "", not 0`,
			`9: error: limit_core in [client.b]: must be a number of bytes, as 65536 or "64M" (K, M, G), or "unlimited", or "", not "G"`,
			`10: error: limit_as in [client.b]: must be a number of bytes, as 65536 or "64M" (K, M, G), or "unlimited", or "", not "9007199254740992K"`}},
		{"start_limit", a + "start_limit = 5\n" + b + "start_limit = { burst = 5 }\n" + c + "start_limit = { burst = 5, interval = '1m', x = 1 }\n", []string{
			`3: error: start_limit in [client.a]: must be { burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}, not 5`,
			`6: error: start_limit in [client.b]: must be { burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}`,
			`9: error: start_limit in [client.c]: must be { burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}`}},
		{"hold", a + "hold = true\n" + b + "hold = { messages = 256, byte = 1 }\n" + c + "hold = 5\n", []string{
			"3: error: hold in [client.a]: must be " + hold + ", not true",
			"6: error: hold in [client.b]: must be " + hold,
			"9: error: hold in [client.c]: must be " + hold + ", not 5"}},
		{"what may wait", a + "hold = { messages = 0 }\n" + b + "hold = { bytes = '64MB' }\n" + c + "hold = { for = '9ms' }\n[client.d]\ncommand = ['x']\nhold = { bytes = 1023, for = '1h', messages = 65536 }\n", []string{
			"3: error: hold in [client.a]: must be " + hold, "6: error: hold in [client.b]: must be " + hold,
			"9: error: hold in [client.c]: must be " + hold, "12: error: hold in [client.d]: must be " + hold}},
		{"patterns", a + "may_send_to = ['b c']\nmay_receive_from = ['-*']\nmay_publish = ['gps.']\nmay_subscribe = '>'\n" + b + "may_send_to = ['*', 'z-*', '*z', 'b']\n", []string{
			`3: error: may_send_to in [client.a]: must be ` + namePatterns + `, not ["b c"]`,
			`4: error: may_receive_from in [client.a]: must be ` + namePatterns + `, not ["-*"]`,
			`5: error: may_publish in [client.a]: must be ` + topicPatterns + `, not ["gps."]`,
			`6: error: may_subscribe in [client.a]: must be ` + topicPatterns + `, not ">"`}},
		{"a size", "[daemon]\nmax_body = '9MiB'\n" + a, []string{`2: error: max_body in [daemon]: must be a number of bytes from "1KiB" to "8MiB", as 65536 or "64KiB", not "9MiB"`}},
		{"a negative size", "[daemon]\nmax_body = -1\n" + a, []string{`2: error: max_body in [daemon]: must be a number of bytes from "1KiB" to "8MiB", as 65536 or "64KiB", not -1`}},
		{"its ranges", a + "start_limit = { burst = 0, interval = '1m' }\n" + b + "start_limit = { burst = 1001, interval = '1m' }\n" + c + "start_limit = { burst = 5, interval = '999ms' }\n[client.d]\ncommand = ['x']\nstart_limit = { burst = 5, interval = '25h' }\n", []string{
			`3: error: start_limit in [client.a]: must be { burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}`,
			`6: error: start_limit in [client.b]: must be { burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}`,
			`9: error: start_limit in [client.c]: must be { burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}`,
			`12: error: start_limit in [client.d]: must be { burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}`}},
		{"paths and lists", a + "environment_file = 'x'\nlog_file = '%n.log'\ngroups = ['']\nready = 'exec'\non_failure = ['']\n", []string{
			`3: error: environment_file in [client.a]: must be an absolute path, or "", not "x"`,
			`4: error: log_file in [client.a]: must be an absolute path, or "", not "%n.log"`,
			`5: error: groups in [client.a]: must be a list of names or numbers of groups in quotes, as ["dialout"], not [""]`,
			`6: error: ready in [client.a]: must be "spawn" or "register" or "notify", not "exec"`,
			`7: error: on_failure in [client.a]: must be a list of strings that begins with a program, as ["/usr/bin/prog", "-x"], or [], not [""]`}},
	} {
		var want []string
		for _, w := range row.want {
			want = append(want, "clients.toml:"+w)
		}
		if _, got := parsed(row.text); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\ngot\n%s\nwant\n%s", row.purpose, row.text, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// Every key of a client, with another value than its default, changes exactly what it is for; written with the client as
// well as in [defaults].
func TestClientKeys(t *testing.T) {
	const whole = "[client.a]\ncommand = ['x']\n[client.b]\ncommand = ['x']\nready = 'notify'\n"
	n := func(n uint64) *uint64 { return &n }
	rows := map[string]struct {
		value string
		want  func(c *Client)
	}{
		"command":            {`["y", "z"]`, func(c *Client) { c.Command = []string{"y", "z"} }},
		"names":              {`["n"]`, func(c *Client) { c.Names = []string{"n"} }},
		"instances":          {`1`, func(c *Client) { c.Name, c.Instances = "a-1", 1 }},
		"directory":          {`"/tmp"`, func(c *Client) { c.Directory = "/tmp" }},
		"environment":        {`{ A = "1" }`, func(c *Client) { c.Environment = map[string]string{"A": "1"} }},
		"environment_file":   {`"/e"`, func(c *Client) { c.EnvironmentFile = "/e" }},
		"user":               {`"u"`, func(c *Client) { c.User = "u" }},
		"group":              {`"g"`, func(c *Client) { c.Group = "g" }},
		"groups":             {`["g", "5"]`, func(c *Client) { c.Groups = []string{"g", "5"} }},
		"tty":                {`true`, func(c *Client) { c.TTY = true }},
		"umask":              {`"0077"`, func(c *Client) { c.Umask = 0o077 }},
		"limit_nofile":       {`4096`, func(c *Client) { c.LimitNofile = n(4096) }},
		"limit_core":         {`"unlimited"`, func(c *Client) { c.LimitCore = n(1<<64 - 1) }},
		"limit_as":           {`"3G"`, func(c *Client) { c.LimitAS = n(3 << 30) }},
		"nice":               {`-20`, func(c *Client) { c.Nice = -20 }},
		"cpu_affinity":       {`[1023, 0]`, func(c *Client) { c.CPUAffinity = []int{0, 1023} }},
		"oom_score_adj":      {`-1000`, func(c *Client) { c.OOMScoreAdj = -1000 }},
		"no_new_privileges":  {`true`, func(c *Client) { c.NoNewPrivileges = true }},
		"log_file":           {`"/%n.log"`, func(c *Client) { c.LogFile = "/a.log" }},
		"autostart":          {`false`, func(c *Client) { c.Autostart = false }},
		"depends_on":         {`["b"]`, func(c *Client) { c.DependsOn = []string{"b"} }},
		"ready":              {`"register"`, func(c *Client) { c.Ready = procman.ReadyRegister }},
		"start_timeout":      {`"0s"`, func(c *Client) { c.StartTimeout = 0 }},
		"oneshot":            {`true`, func(c *Client) { c.Oneshot, c.Restart = true, procman.OnFailure }},
		"restart":            {`"never"`, func(c *Client) { c.Restart = procman.Never }},
		"restart_delay":      {`"1s"`, func(c *Client) { c.RestartDelay = time.Second }},
		"restart_delay_max":  {`"1m"`, func(c *Client) { c.RestartDelayMax = time.Minute }},
		"stable_after":       {`"1s"`, func(c *Client) { c.StableAfter = time.Second }},
		"start_limit":        {`{ burst = 5, interval = "1m" }`, func(c *Client) { c.StartLimit = procman.StartLimit{Burst: 5, Interval: time.Minute} }},
		"on_failure":         {`["f", "%n"]`, func(c *Client) { c.OnFailure = []string{"f", "a"} }},
		"success_exit_codes": {`[3, 0]`, func(c *Client) { c.SuccessCodes = []int{0, 3} }},
		"stop_signal":        {`"INT"`, func(c *Client) { c.StopSignal = 2 }},
		"stop_timeout":       {`"1s"`, func(c *Client) { c.StopTimeout = time.Second }},
		"watchdog":           {`"off"`, func(c *Client) { c.Watchdog, c.FrozenTimeout = "off", 0 }},
		"watchdog_timeout":   {`"1s"`, func(c *Client) { c.WatchdogTimeout, c.FrozenTimeout = time.Second, time.Second }},
		"startup_timeout":    {`"1m"`, func(c *Client) { c.StartupTimeout = time.Minute }},
		"deadlines": {`[{ from = "a", to = "b", within = "1s" }]`, func(c *Client) {
			c.Deadlines = []watchdog.Deadline{{From: "a", To: "b", Within: time.Second}}
		}},
		"probe": {`{ exec = ["p", "%n"], timeout = "1s" }`, func(c *Client) {
			c.Probe = probe.Probe{Exec: []string{"p", "a"}, Interval: 3 * time.Second, Timeout: time.Second}
		}},
		"warn_after":    {`"1s"`, func(c *Client) { c.WarnAfter = time.Second }},
		"warn_signal":   {`"USR1"`, func(c *Client) { c.WarnSignal = syscall.SIGUSR1 }},
		"abort_signal":  {`"SIGABRT"`, func(c *Client) { c.AbortSignal = syscall.SIGABRT }},
		"abort_timeout": {`"1m"`, func(c *Client) { c.AbortTimeout = time.Minute }},
		"critical": {`true`, func(c *Client) {
			c.Critical, c.StartLimit = true, procman.StartLimit{Burst: 5, Interval: 10 * time.Minute}
		}},
		"hold":             {`{ bytes = "1MiB", for = "1s" }`, func(c *Client) { c.Hold = broker.Hold{Messages: 256, Bytes: 1 << 20, For: time.Second} }},
		"may_send_to":      {`["b", "z-*"]`, func(c *Client) { c.MaySendTo = []string{"b", "z-*"} }},
		"may_receive_from": {`[]`, func(c *Client) { c.MayReceiveFrom = []string{} }},
		"may_publish":      {`["gps.*"]`, func(c *Client) { c.MayPublish = []string{"gps.*"} }},
		"may_subscribe":    {`["log.>"]`, func(c *Client) { c.MaySubscribe = []string{"log.>"} }},
		"strays":           {`"ignore"`, func(c *Client) { c.KillStrays = false }},
	}
	plain, _ := parsed(whole)
	for _, key := range keysOf("client") {
		row, ok := rows[key]
		if !ok {
			t.Errorf("%s is not tested", key)
			continue
		}
		want := plain.Clients[0]
		row.want(&want)
		line := key + " = " + row.value + "\n"
		texts := []string{strings.Replace("[client.a]\ncommand = ['x']\n", "command = ['x']\n", line, 1) + whole[len("[client.a]\ncommand = ['x']\n"):]}
		if key != "command" {
			texts[0] = strings.Replace(whole, "[client.b]", line+"[client.b]", 1)
		}
		if key != "command" && key != "names" && key != "depends_on" { // b would have them too
			texts = append(texts, "[defaults]\n"+line+whole)
		}
		for _, text := range texts {
			c, problems := parsed(text)
			if c == nil {
				t.Errorf("%s: %v", text, problems)
			} else if d := cmp.Diff(want, c.Clients[0]); d != "" {
				t.Errorf("%s: -want +got\n%s", text, d)
			}
		}
	}
}

// A client says for itself what is nearer than [defaults], also nothing.
func TestNearer(t *testing.T) {
	c, problems := parsed(`
[defaults]
restart = "always"
start_limit = { burst = 5, interval = "1m" }
on_failure = ["f"]
log_file = "/%n.log"
limit_as = 1
groups = ["5"]
hold = { messages = 5 }
may_send_to = []
[client.a]
command = ["x"]
oneshot = true
start_limit = {}
on_failure = []
log_file = ""
limit_as = ""
groups = []
hold = false
may_send_to = ["b"]
[client.b]
command = ["x"]
`)
	if problems != nil {
		t.Fatal(problems)
	}
	a, b := c.Clients[0], c.Clients[1]
	if a.Restart != procman.OnFailure || a.StartLimit.Burst != 0 || len(a.OnFailure)+len(a.LogFile)+len(a.Groups) > 0 || a.LimitAS != nil {
		t.Errorf("a is %+v", a)
	}
	if a.Hold != (broker.Hold{}) || len(a.MaySendTo) != 1 {
		t.Errorf("a is %+v", a)
	}
	if b.Hold != (broker.Hold{Messages: 5, Bytes: 256 << 10, For: 10 * time.Second}) || len(b.MaySendTo) != 0 {
		t.Errorf("b is %+v", b)
	}
	if b.Restart != procman.Always || b.StartLimit.Burst != 5 || b.LogFile != "/b.log" || *b.LimitAS != 1 {
		t.Errorf("b is %+v", b)
	}
}

const farm = `
[client.z]
command = ["x"]
[client.web]
command = ["x", "%n"]
environment = { ME = "%n" }
instances = 3
ready = "register"
[client.a]
command = ["x"]
depends_on = ["web", "z", "web-2"]
[client.b]
command = ["x"]
[group.front]
clients = ["a", "web", "a"]
restart = "all"
[group.back]
clients = ["b", "web-2"]
restart = "all"
[group.all]
clients = ["a", "b", "web", "z"]
`

// Instances stand in the place of their client, each with its name, and mean what their client means wherever that is named.
func TestInstancesAndGroups(t *testing.T) {
	c, problems := parsed(farm)
	if len(problems) != 1 || !strings.Contains(problems[0], `"a" depends on "z"`) {
		t.Fatal(problems)
	}
	got := map[string][]string{}
	var order []string
	for _, cl := range c.Clients {
		order = append(order, cl.Name)
		got[cl.Name] = slices.Concat(cl.Command, []string{cl.Environment["ME"], "|"}, cl.DependsOn, []string{"|"}, cl.RestartWith)
	}
	if want := []string{"z", "web-1", "web-2", "web-3", "a", "b"}; !slices.Equal(order, want) {
		t.Errorf("the clients are %q, want %q", order, want)
	}
	want := map[string][]string{
		"z":     {"x", "", "|", "|"},
		"web-1": {"x", "web-1", "web-1", "|", "|", "web-2", "web-3", "a"},
		"web-2": {"x", "web-2", "web-2", "|", "|", "web-1", "web-3", "a", "b"},
		"web-3": {"x", "web-3", "web-3", "|", "|", "web-1", "web-2", "a"},
		"a":     {"x", "", "|", "z", "web-1", "web-2", "web-3", "|", "web-1", "web-2", "web-3"},
		"b":     {"x", "", "|", "|", "web-2"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("command, environment | depends_on | restarted with: -want +got\n%s", d)
	}
	groups := []Group{
		{"front", []string{"web-1", "web-2", "web-3", "a"}, true},
		{"back", []string{"web-2", "b"}, true},
		{"all", []string{"z", "web-1", "web-2", "web-3", "a", "b"}, false},
	}
	if d := cmp.Diff(groups, c.Groups); d != "" {
		t.Errorf("groups: -want +got\n%s", d)
	}
}

// What a word of the command line stands for.
func TestResolve(t *testing.T) {
	c, _ := parsed(farm)
	for arg, want := range map[string]string{
		"z": "[z] <nil>", "web": "[web-1 web-2 web-3] <nil>", "web-2": "[web-2] <nil>", "@back": "[web-2 b] <nil>",
		"web-4":  `[] no such client: "web-4"; did you mean "web-1"?`,
		"WEB":    `[] no such client: "WEB"; did you mean "web"?`,
		"modem":  `[] no such client: "modem"`,
		"":       `[] no such client: ""`,
		"@frnt":  `[] no such group: "@frnt"; did you mean "@front"?`,
		"@modem": `[] no such group: "@modem"`,
		"front":  `[] no such client: "front"`,
	} {
		clients, err := c.Resolve(arg)
		if got := fmt.Sprint(clients, " ", err); got != want {
			t.Errorf("%q: %s, want %s", arg, got, want)
		}
	}
}

// More clients or groups than there may be are an error with a line, and no memory.
func TestManyClients(t *testing.T) {
	text := "[defaults]\ninstances = 64\ncommand = ['x']\n"
	for i := range 10000 {
		text += fmt.Sprintf("[client.a%d]\n", i)
	}
	_, err := Parse("f", []byte(text), inRun)
	if want := "f:20:1: error: these are more than 1024 clients"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	text = "[client.a]\ncommand = ['x']\n"
	for i := range groupsMax + 2 {
		text += fmt.Sprintf("[group.g%d]\nclients = ['a']\n", i)
	}
	_, err = Parse("f", []byte(text), inRun)
	if want := "f:515:1: error: these are more than 256 groups"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// However clients are entangled, the answer is short.
func TestManyCycles(t *testing.T) {
	var names []string
	text := ""
	for i := range 2 * problemsMax {
		names = append(names, fmt.Sprintf("'a%d'", i))
		text += fmt.Sprintf("[client.a%d]\ncommand = ['x']\n", i)
	}
	all := strings.Join(names, ", ")
	_, err := Parse("f", []byte("[defaults]\ndepends_on = ["+all+", 'unknown']\n"+text+"[group.g]\nclients = ["+all+"]\nrestart = 'all'\n"), inRun)
	if problems, _ := errors.AsType[Problems](err); len(problems) != 2*problemsMax {
		t.Errorf("%d problems: %v", len(problems), err)
	}
}

// Load warns of what a client asks for and this machine or this user cannot give.
func TestLookUpRights(t *testing.T) {
	path := t.TempDir() + "/clients.toml"
	write(t, path, `[client.a]
command = ["/bin/sh"]
instances = 2
groups = ["1", "no-such-group"]
environment_file = "/nowhere"
limit_nofile = 999999999
cpu_affinity = [0, 1023]
nice = -1
oom_score_adj = -1
start_limit = { burst = 5, interval = "1m" }
on_failure = ["/nowhere"]
probe = { exec = ["/nowhere"] }
`, 0o644)
	c, err := Load(path, inRun)
	if err != nil {
		t.Fatal(err)
	}
	nr, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`4:16: warning: client "a-1" cannot start as it is: group "no-such-group" is not known`,
		`5:20: warning: client "a-1" cannot start as it is: environment_file "/nowhere": no such file or directory`,
		`6:16: warning: client "a-1" cannot start as it is: the kernel gives at most ` + strings.TrimSpace(string(nr)) + ` open files (fs.nr_open)`,
		`7:16: warning: client "a-1" cannot start as it is: there is no processor 1023`,
		`8:8: warning: client "a-1" cannot start as it is: only root may set a negative nice`,
		`9:17: warning: client "a-1" cannot start as it is: only root may set a negative oom_score_adj`,
		`11:15: warning: on_failure of client "a-1" cannot be executed: command "/nowhere" is not an executable file`,
		`12:19: warning: probe of client "a-1" cannot be executed: command "/nowhere" is not an executable file`,
	}
	if os.Geteuid() == 0 {
		want = slices.Delete(want, 4, 6)
	} else {
		want = slices.DeleteFunc(want, func(w string) bool { return strings.HasPrefix(w, "6:") }) // the hard limit is told instead
	}
	var got []string
	for _, p := range c.Warnings {
		if os.Geteuid() == 0 || p.Line != 6 {
			got = append(got, strings.TrimPrefix(p.String(), path+":"))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
