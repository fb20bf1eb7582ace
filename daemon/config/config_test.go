package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zhx/ipc/broker"
	"zhx/procman"
)

var inRun = Options{RunDir: "/run/zhx", Environ: []string{"HOME=/root", "VARIABLE=value", "EMPTY=", "ZHX_NAME=outer"}}

// parsed is what Parse says of text, the path being clients.toml: the Config, and all problems as lines.
func parsed(text string) (*Config, []string) {
	c, err := Parse("clients.toml", []byte(text), inRun)
	problems, _ := errors.AsType[Problems](err)
	if c != nil {
		problems = c.Warnings
	}
	var lines []string
	for _, p := range problems {
		p.Column = 0 // place_test.go has those
		lines = append(lines, p.String())
	}
	return c, lines
}

func failed(problems Problems) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return !p.Warning })
}

// What is wrong with a file, in the letters that people see.
func TestProblems(t *testing.T) {
	for _, row := range []struct {
		purpose, text string
		want          []string // without "clients.toml:"
	}{
		{"empty", "", []string{" error: the file is empty; a comment makes it a configuration that starts nothing"}},
		{"only white space", " \n\t\r\n", []string{" error: the file is empty; a comment makes it a configuration that starts nothing"}},
		{"only a byte order mark", "\ufeff\n", []string{" error: the file is empty; a comment makes it a configuration that starts nothing"}},
		{"comments only is valid", "# nothing yet\n", nil},
		{"a client needs a command only", "[client.a]\ncommand = ['/bin/true']\n", nil},

		{"syntax", "[client.a]\ncommand = [\n  'x',\n", []string{`3: error: unexpected EOF; expected value`}},
		{"a string that does not end", "[client.a]\nuser = \"x\ncommand = ['x']\n", []string{`2: error: strings cannot contain newlines`}},
		{"a section twice", "[client.a]\ncommand=['x']\n\n[client.a]\ncommand=['y']\n", []string{`4: error: Key 'client.a' has already been defined.`}},
		{"a key twice", "[client.a]\ncommand=['x']\ncommand=['y']\n", []string{`3: error: Key 'client.a.command' has already been defined.`}},
		{"not UTF-8", "[client.a]\ncommand=['\xff']\n", []string{`2: error: invalid UTF-8 byte: 0xff`}},

		{"a misspelt key", "[client.modem]\ncommand = ['x']\nwatchdog_timout = '9s'\n",
			[]string{`3: error: unknown key "watchdog_timout" in [client.modem]; did you mean "watchdog_timeout"?`}},
		{"letters of another case", "[client.modem]\nCommand = ['x']\n", []string{
			`1: error: [client.modem] has no command`,
			`2: error: unknown key "Command" in [client.modem]; did you mean "command"?`}},
		{"hyphens", "[defaults]\nstop-signal = 'TERM'\n", []string{`2: error: unknown key "stop-signal" in [defaults]; did you mean "stop_signal"?`}},
		{"nothing near", "[daemon]\ncolour = 'red'\n", []string{`2: error: unknown key "colour" in [daemon]`}},
		{"a key of another section", "[client.a]\ncommand = ['x']\ninterval = '3s'\n",
			[]string{`3: error: unknown key "interval" in [client.a]; it belongs into [watchdog]`}},
		{"of another section, and near one of this", "[daemon]\ntty = true\n",
			[]string{`2: error: unknown key "tty" in [daemon]; it belongs into [defaults] or [client.NAME]`}},
		{"a key before any section", "stop_timeout = '3s'\n[client.a]\ncommand = ['x']\n",
			[]string{`1: error: key "stop_timeout" stands in no section; it belongs into [defaults] or [client.NAME]`}},
		{"an unknown key before any section", "x = 1\n", []string{`1: error: unknown key "x" outside of any section`}},
		{"a misspelt section", "[clients.modem]\ncommand = ['x']\n", []string{`1: error: unknown section [clients]; did you mean [client]?`}},
		{"a client without client", "[modem]\ncommand = ['x']\n", []string{`1: error: unknown section [modem]; did you mean [client.modem]?`}},
		{"an unknown section", "[\"böse\\u0007\"]\nx = 1\n", []string{`1: error: unknown section ["böse\u0007"]; there are [daemon], [watchdog], [defaults], [client], [group]`}},
		{"one client without a name", "[client]\ncommand = ['x']\n", []string{`2: error: "command" in [client]: clients are written [client.NAME]`}},
		{"a list of clients", "[[client]]\nname = 'x'\n", []string{`1: error: clients are written [client.NAME]`}},
		{"client is no table", "client = 1\n", []string{`1: error: clients are written [client.NAME]`}},
		{"daemon is no table", "daemon = 1\n", []string{`1: error: daemon must be a section, [daemon]`}},
		{"all that is wrong, in the order of the lines", "[daemon]\ntpc = ''\nreload = 'never'\n[client.a]\ntty = 'no'\n[client.b]\ncommand = 'x'\n", []string{
			`2: error: unknown key "tpc" in [daemon]; did you mean "tcp"?`,
			`3: error: reload in [daemon]: must be "auto" or "manual", not "never"`,
			`4: error: [client.a] has no command`,
			`5: error: tty in [client.a]: must be true or false, without quotes, not "no"`,
			`7: error: command in [client.b]: must be a list of strings that begins with a program, as ["/usr/bin/prog", "-x"], not "x"`}},

		{"lines of lists, inline tables and dotted keys", `
[client.a]
command = [
  "x",
  "50%",
]
environment = { A = "1", B = "$HOME" }

[client.b]
command = ["x"]
environment.A = 5
[client.b.enviroment]
B = "x"

[client."c d"]
command = ["x"]
`, []string{
			`3: error: command in [client.a]: has a single % in "50%", which is neither ${VARIABLE} nor %n; write %% for the character`,
			`7: error: environment in [client.a]: "B" has a single $ in "$HOME", which is neither ${VARIABLE} nor %n; write $$ for the character`,
			`11: error: environment in [client.b]: "A" must be a string, not 5`,
			`12: error: unknown key "enviroment" in [client.b]; did you mean "environment"?`,
			`15: error: [client."c d"]: "c d" is no name; a name has 1 to 64 of A-Z a-z 0-9 _ -, and no - in front`}},
		{"clients as inline tables", "client = { a = { comand = ['x'] } }\n", []string{
			`1: error: [client.a] has no command`,
			`1: error: unknown key "comand" in [client.a]; did you mean "command"?`}},
		{"lines of strings of several lines", "[client.a]\ncommand = ['x']\ndirectory = \"\"\"\nx\n\"\"\"\n\nx = '''\n\n'''\n", []string{
			`3: error: directory in [client.a]: must be an absolute path, not "x\n"`, `7: error: unknown key "x" in [client.a]`}},
		{"a section that does not end", "\n[client.a\ncommand = ['x']\n", []string{`2: error: expected '.' or ']' to end table name, but got '\n' instead`}},
		{"a byte order mark", "\ufeff\n[daemon]\nx = 1\n", []string{`3: error: unknown key "x" in [daemon]`}},
		{"lines count the same with CRLF", "[client.a]\r\ncommand = ['x']\r\nx = 1\r\n", []string{`3: error: unknown key "x" in [client.a]`}},

		{"reserved name", "[client.zhxd]\ncommand = ['x']\n", []string{`1: error: [client.zhxd]: the name "zhxd" is reserved`}},
		{"reserved further name", "[client.a]\ncommand = ['x']\nnames = ['b', 'null']\n",
			[]string{`3: error: names in [client.a]: the name "null" is reserved`}},
		{"a further name that is a client", "[client.a]\ncommand = ['x']\nnames = ['b']\n[client.b]\ncommand = ['x']\n",
			[]string{`3: error: name "b" of client "a" is also a name of client "b"`}},
		{"a further name that two have", "[client.a]\ncommand = ['x']\nnames = ['c']\n[client.b]\ncommand = ['x']\nnames = ['c']\n",
			[]string{`6: error: name "c" of client "b" is also a name of client "a"`}},
		{"a further name twice", "[client.a]\ncommand = ['x']\nnames = ['c', 'c']\n",
			[]string{`3: error: name "c" of client "a" is also a name of client "a"`}},

		{"an empty command", "[client.a]\ncommand = []\n[client.b]\ncommand = ['']\n", []string{
			`2: error: command in [client.a]: must be a list of strings that begins with a program, as ["/usr/bin/prog", "-x"], not []`,
			`4: error: command in [client.b]: must be a list of strings that begins with a program, as ["/usr/bin/prog", "-x"], not [""]`}},
		{"no strings in a command", "[client.a]\ncommand = ['x', 5]\n", []string{`2: error: command in [client.a]: must be a list of strings that begins with a program, as ["/usr/bin/prog", "-x"], not ["x", 5]`}},
		{"NUL in a command", "[client.a]\ncommand = [\"a\\u0000b\"]\n", []string{`2: error: command in [client.a]: has a NUL character in "a\x00b"`}},
		{"a relative directory", "[client.a]\ncommand = ['x']\ndirectory = 'tmp'\n", []string{`3: error: directory in [client.a]: must be an absolute path, not "tmp"`}},
		{"the environment is not zhx's", "[client.a]\ncommand = ['x']\nenvironment = { ZHX_RUN = 'x' }\n", []string{`3: error: environment in [client.a]: has ZHX_RUN, which zhx sets itself`}},
		{"a variable without a name", "[client.a]\ncommand = ['x']\nenvironment = { 'a=b' = 'x' }\n", []string{`3: error: environment in [client.a]: has "a=b", which is no name of a variable`}},
		{"the line of a variable", "[client.a]\ncommand = ['x']\n[client.a.environment]\nA = 'x'\nB = 5\n", []string{`5: error: environment in [client.a]: "B" must be a string, not 5`}},
		{"no environment", "[client.a]\ncommand = ['x']\nenvironment = ['A=1']\n", []string{`3: error: environment in [client.a]: must be a table of strings, as { KEY = "value" }, not ["A=1"]`}},
		{"a number for a duration", "[client.a]\ncommand = ['x']\nstop_timeout = 5\n", []string{`3: error: stop_timeout in [client.a]: must be a duration from 0s to 1h in quotes, as "5s" or "1m30s", not 5`}},
		{"no duration", "[client.a]\ncommand = ['x']\nstop_timeout = '5'\n", []string{`3: error: stop_timeout in [client.a]: must be a duration from 0s to 1h in quotes, as "5s" or "1m30s", not "5"`}},
		{"ranges", "[watchdog]\ninterval = '1ms'\nmisses = 0\n[defaults]\nrestart_delay = '0s'\nstop_timeout = '-1s'\nwatchdog_timeout = '25h'\n", []string{
			`2: error: interval in [watchdog]: must be a duration from 10ms to 1h in quotes, as "5s" or "1m30s", not "1ms"`,
			`3: error: misses in [watchdog]: must be a whole number from 1 to 1000, not 0`,
			`5: error: restart_delay in [defaults]: must be a duration from 1ms to 1h in quotes, as "5s" or "1m30s", not "0s"`,
			`6: error: stop_timeout in [defaults]: must be a duration from 0s to 1h in quotes, as "5s" or "1m30s", not "-1s"`,
			`7: error: watchdog_timeout in [defaults]: must be a duration from 10ms to 24h in quotes, as "5s" or "1m30s", not "25h"`}},
		{"interval x misses is a watchdog_timeout", "[watchdog]\ninterval = '1h'\nmisses = 100\n",
			[]string{`1: error: interval x misses in [watchdog] is 100h0m0s; at most 24h0m0s is possible`}},
		{"a fraction", "[watchdog]\nmisses = 3.0\n", []string{`2: error: misses in [watchdog]: must be a whole number from 1 to 1000, not 3.0`}},
		{"a delay that excludes the default", "[client.a]\ncommand = ['x']\nrestart_delay_max = '50ms'\n",
			[]string{`3: error: restart_delay in [client.a] is 100ms and longer than its restart_delay_max, 50ms`}},
		{"long text is cut", "[client.a]\ncommand = ['x']\nuser = 1\ntty = '" + strings.Repeat("x", 9999) + "'\n", []string{
			`3: error: user in [client.a]: must be the name or number of a user in quotes, not 1`,
			`4: error: tty in [client.a]: must be true or false, without quotes, not "` + strings.Repeat("x", textMax+1-len(`tty in [client.a]: must be true or false, without quotes, not "`)) + `...`}},
		{"delays that exclude each other", "[defaults]\nrestart_delay = '1m'\n[client.a]\ncommand = ['x']\n[client.b]\ncommand = ['x']\nrestart_delay_max = '1h'\n",
			[]string{`2: error: restart_delay in [client.a] is 1m0s and longer than its restart_delay_max, 30s`}},
		{"words", "[client.a]\ncommand = ['x']\nrestart = true\nwatchdog = 'on'\nstrays = 'keep'\n", []string{
			`3: error: restart in [client.a]: must be "always" or "on-failure" or "never", not true`,
			`4: error: watchdog in [client.a]: must be "auto" or "required" or "off", not "on"`,
			`5: error: strays in [client.a]: must be "kill" or "ignore", not "keep"`}},
		{"no signal", "[client.a]\ncommand = ['x']\nstop_signal = 'SIGTREM'\n", []string{`3: error: stop_signal in [client.a]: must be the name of a signal, as "SIGTERM", not "SIGTREM"`}},
		{"no user", "[client.a]\ncommand = ['x']\nuser = 1000\ngroup = 'a%b'\n", []string{
			`3: error: user in [client.a]: must be the name or number of a user in quotes, not 1000`,
			`4: error: group in [client.a]: has a single % in "a%b", which has no meaning here; write %% for the character`}},
		{"modes", "[daemon]\nsocket_mode = 0o660\n", []string{`2: error: socket_mode in [daemon]: must be an octal mode in quotes, as "0660", not 432`}},
		{"modes", "[daemon]\nsocket_mode = '1777'\n", []string{`2: error: socket_mode in [daemon]: must be an octal mode in quotes, as "0660", not "1777"`}},
		{"the network", "[daemon]\ntcp = '0.0.0.0:8000'\n",
			[]string{`2: error: tcp in [daemon]: must be a loopback address, as "127.1.1.1:8000", or "", as zhx serves no network, not "0.0.0.0:8000"`}},
		{"one path for two sockets", "[daemon]\nsocket = '/run/x'\ncontrol = '/run/x'\n", []string{`3: error: socket and control in [daemon] are the same, "/run/x"`}},
		{"a path too long for a socket", "[daemon]\nsocket = '/" + strings.Repeat("x", 107) + "'\n",
			[]string{`2: error: socket in [daemon]: "/` + strings.Repeat("x", 107) + `" has 108 bytes; a socket's path has at most 107`}},

		{"a name too long for protocol 1", "[client.loud_speaker]\ncommand = ['x']\nnames = ['ok', 'also_too_long']\n", []string{
			`1: warning: name "loud_speaker" has 12 bytes: protocol 1 cannot address it, its names have at most 10`,
			`3: warning: name "also_too_long" has 13 bytes: protocol 1 cannot address it, its names have at most 10`}},
		{"a terminal", "[defaults]\ntty = true\n[client.a]\ncommand = ['x']\n[client.b]\ncommand = ['x']\ntty = false\n", []string{
			`2: warning: client "a" has a terminal of zhxd's (tty): it is restarted if zhxd crashes`}},
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

// A Problem knows its section; an error is lines, without the warnings.
func TestProblemsError(t *testing.T) {
	_, err := Parse("f", []byte("[daemon]\nx = 1\n[client.a]\ncommand = ['x']\ntty = true\n[client.b]\ny = 1\n"), inRun)
	problems, ok := errors.AsType[Problems](err)
	if !ok {
		t.Fatalf("error is %T: %v", err, err)
	}
	var sections []string
	for _, p := range problems {
		sections = append(sections, p.Section)
	}
	if want := []string{"daemon", "client.a", "client.b", "client.b"}; !slices.Equal(sections, want) {
		t.Errorf("sections %q, want %q", sections, want)
	}
	want := "f:2:1: error: unknown key \"x\" in [daemon]\nf:6:1: error: [client.b] has no command\nf:7:1: error: unknown key \"y\" in [client.b]"
	if err.Error() != want {
		t.Errorf("error is\n%s\nwant\n%s", err, want)
	}
}

// A whole file: what is given, what comes from [defaults], what from the table, and what from other keys.
func TestValues(t *testing.T) {
	text := `
[daemon]
tcp = ":0"
socket_mode = "0660"
control = "/tmp/100%%/$$c"
[watchdog]
interval = "2s"
misses = 5
[defaults]
stop_signal = "INT"
environment = { LANG = "C", A = "defaults" }
[client.z]
command = ["prog", "100%%", "$$x"]
names = ["y"]
environment = { A = "own" }
watchdog_timeout = "1m30s"
strays = "ignore"
[client.b]
command = ["/bin/b"]
stop_signal = "SIGUSR1"
watchdog = "off"
restart = "on-failure"
[client.a]
command = ["/bin/a"]
`
	got, problems := parsed(text)
	if problems != nil {
		t.Fatal(problems)
	}
	client := func(name string, command ...string) Client {
		return Client{
			Spec: procman.Spec{Name: name, Command: command, Directory: "/", Environment: map[string]string{"LANG": "C", "A": "defaults"},
				Groups: []string{}, Umask: 0o022, CPUAffinity: []int{}, DependsOn: []string{}, Ready: procman.ReadySpawn, StartTimeout: 30 * time.Second,
				OnFailure: []string{}, SuccessCodes: []int{0}, Autostart: true, Restart: procman.Always, RestartDelay: 100 * time.Millisecond, RestartDelayMax: 30 * time.Second,
				StableAfter: 5 * time.Second, StopSignal: syscall.SIGINT, StopTimeout: 5 * time.Second,
				FrozenTimeout: 10 * time.Second, AbortTimeout: 10 * time.Second, KillStrays: true},
			Base: name, Names: []string{}, Watchdog: "auto", WatchdogTimeout: 10 * time.Second,
			Hold:      broker.Hold{Messages: 256, Bytes: 256 << 10, For: 10 * time.Second},
			MaySendTo: []string{"*"}, MayReceiveFrom: []string{"*"}, MayPublish: []string{">"}, MaySubscribe: []string{">"},
		}
	}
	z, b, a := client("z", "prog", "100%", "$x"), client("b", "/bin/b"), client("a", "/bin/a")
	z.Names, z.KillStrays = []string{"y"}, false
	z.Environment = map[string]string{"LANG": "C", "A": "own"}
	z.WatchdogTimeout, z.FrozenTimeout = 90*time.Second, 90*time.Second
	b.StopSignal, b.Restart, b.Watchdog, b.FrozenTimeout = syscall.SIGUSR1, procman.OnFailure, "off", 0
	want := &Config{
		Path: "clients.toml", Sum: got.Sum,
		Daemon: Daemon{Socket: "/run/zhx/zhx.sock", TCP: "127.1.1.1:0", Control: "/tmp/100%/$c", RunDir: "/run/zhx",
			StateDir: "/var/lib/zhx", Identity: "enforce", Reload: "auto", PrototypePresence: true, SocketMode: 0o660, MaxBody: 256 << 10},
		Watchdog: Watchdog{Interval: 2 * time.Second, Misses: 5, Mode: "enforce", RebootLimit: 3},
		Clients:  []Client{z, b, a},
	}
	if d := cmp.Diff(want, got, sameText); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestRunDir(t *testing.T) {
	root := os.Geteuid() == 0
	for _, row := range []struct {
		purpose, text, runtime, option, want string
	}{
		{"given", "[daemon]\nrun_dir = '/a'\n", "/x", "", "/a/zhx.sock /a/control.sock"},
		{"the command line wins", "[daemon]\nrun_dir = '/a'\n", "/x", "/b", "/b/zhx.sock /b/control.sock"},
		{"but not over a socket of its own", "[daemon]\nsocket = '/a/s'\n", "/x", "/b", "/a/s /b/control.sock"},
		{"neither", "#", "/x", "", map[bool]string{true: "/run/zhx/zhx.sock /run/zhx/control.sock", false: "/x/zhx/zhx.sock /x/zhx/control.sock"}[root]},
		{"and no runtime directory", "[daemon]\ntcp = ''\n", "", "", map[bool]string{true: "/run/zhx/zhx.sock /run/zhx/control.sock",
			false: "clients.toml:1: error: run_dir in [daemon] is not set, and neither is $XDG_RUNTIME_DIR; not being root, zhx needs one of them"}[root]},
	} {
		t.Setenv("XDG_RUNTIME_DIR", row.runtime)
		c, err := Parse("clients.toml", []byte(row.text), Options{RunDir: row.option})
		got := fmt.Sprint(err)
		if c != nil {
			got = c.Daemon.Socket + " " + c.Daemon.Control
		}
		if got != row.want {
			t.Errorf("%s: got %s, want %s", row.purpose, got, row.want)
		}
	}
}

// The addresses that tcp and metrics take, and as what.
func TestLoopback(t *testing.T) {
	for text, want := range map[string]string{
		"": "", ":0": "127.1.1.1:0", "127.1.1.1:8000": "127.1.1.1:8000", "127.0.0.1:1": "127.0.0.1:1",
		"localhost:8000": "-", "8.8.8.8:80": "-", "[::1]:8000": "-", ":http": "-", "127.1.1.1": "-", "127.1.1.1:70000": "-", "[::ffff:127.0.0.1]:80": "-",
	} {
		for _, key := range []string{"tcp", "metrics"} {
			c, problems := parsed("[daemon]\n" + key + " = '" + text + "'\n")
			got, want := "-", want
			if c != nil && key == "tcp" {
				got = c.Daemon.TCP
			} else if c != nil {
				got, want = c.Daemon.Metrics, strings.Replace(want, "127.1.1.1:0", "127.0.0.1:0", 1)
			} else if len(problems) != 1 || !strings.HasPrefix(problems[0], "clients.toml:2: error: "+key+" in [daemon]: must be a loopback address") {
				t.Errorf("%s = %q: %v", key, text, problems)
			}
			if got != want {
				t.Errorf("%s = %q: got %q, want %q: %v", key, text, got, want, problems)
			}
		}
	}
}

func TestDaemonChanges(t *testing.T) {
	old, _ := parsed("[daemon]\n")
	for text, want := range map[string][]string{
		"[daemon]\nidentity = 'warn'\nreload = 'manual'\n[watchdog]\nmisses = 4\n[client.a]\ncommand = ['x']\n": nil,
		"[daemon]\ntcp = ''\nsocket_mode = '0600'\nprototype_presence = false\n":                                {"socket_mode", "tcp", "prototype_presence"},
	} {
		new, problems := parsed(text)
		if problems != nil {
			t.Fatal(problems)
		}
		if got := DaemonChanges(old, new); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// A misspelt word finds the key that was meant, and a foreign one finds none.
func TestSuggest(t *testing.T) {
	for word, want := range map[string]string{
		"watchdog_timout": "watchdog_timeout", "WATCHDOG": "watchdog", "restart_dealy": "restart_delay", "cmd": "", "env": "",
		"comand": "command", "enviroment": "environment", "autostrat": "autostart", "stop-timeout": "stop_timeout", "": "", "x": "", "restart_max_delay": "restart_delay", "tyy": "tty",
	} {
		if got := Suggest(word, keysOf("client")); got != want {
			t.Errorf("%q: suggested %q, want %q", word, got, want)
		}
	}
}

// However much is wrong, the answer is short and quick; and warnings do not crowd out an error.
func TestManyProblems(t *testing.T) {
	var b strings.Builder
	b.WriteString("[defaults]\ntty = true\n")
	for i := range 2000 {
		fmt.Fprintf(&b, "[client.a%d]\ncommand = ['x']\nx%d = 1\n", i, i)
	}
	_, err := Parse("f", []byte(b.String()), inRun)
	problems, _ := errors.AsType[Problems](err)
	if !failed(problems) || len(problems) != 2*problemsMax {
		t.Errorf("%d problems: %v", len(problems), err)
	}
}

// Load warns of what this machine does not have.
func TestLookUp(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/plain", "", 0o644)
	write(t, dir+"/prog", "", 0o755)
	path := filepath.Join(dir, "clients.toml")
	write(t, path, `
[daemon]
socket_group = "no-such-group"
[client.a]
command = ["`+dir+`/prog"]
user = "no-such-user"
group = "12345"
[client.b]
command = ["prog"]
environment = { PATH = "/nowhere:`+dir+`" }
[client.c]
command = ["no-such-prog"]
environment = { PATH = "/nowhere" }
[client.d]
command = ["./prog"]
directory = "`+dir+`"
[client.e]
command = ["`+dir+`/plain"]
directory = "/nowhere"
[client.f]
command = ["`+dir+`/prog"]
user = "4242424242"
`, 0o644)
	c, err := Load(path, inRun)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`3:16: warning: socket_group: group "no-such-group" is not known`,
		`6:8: warning: client "a" cannot start as it is: user "no-such-user" is not known`,
		`12:12: warning: client "c" cannot start as it is: command "no-such-prog" is not an executable file in PATH, "/nowhere"`,
		`18:12: warning: client "e" cannot start as it is: command "` + dir + `/plain" is not an executable file`,
		`19:13: warning: client "e" cannot start as it is: directory "/nowhere": no such file or directory`,
		`22:8: warning: client "f" cannot start as it is: user "4242424242" is not known`,
	}
	var got []string
	for _, p := range c.Warnings {
		got = append(got, strings.TrimPrefix(p.String(), path+":"))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/large", "#"+strings.Repeat("x", fileMax), 0o644)
	if err := syscall.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", dir+"/loop"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"missing": "cannot be read: no such file or directory",
		"fifo":    "cannot be read: no regular file",
		".":       "cannot be read: no regular file",
		"large":   "cannot be read: it has more than 1048576 bytes",
		"loop":    "cannot be read: too many levels of symbolic links",
	} {
		path := dir + "/" + name
		if _, err := Load(path, inRun); err == nil || err.Error() != path+": error: "+want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}

// As root, what others can write is refused.
func TestCheckOwners(t *testing.T) {
	root := os.Geteuid() == 0
	for _, row := range []struct {
		purpose string
		spoil   func(dir string) error // dir/real/file, and dir/links/link to it
		link    bool
		refused string
	}{
		{"as it should be", func(dir string) error { return nil }, true, ""},
		{"others can write the file", func(dir string) error { return os.Chmod(dir+"/real/file", 0o646) }, false, "others can write %s/real/file (mode 0646)"},
		{"a group can", func(dir string) error { return os.Chmod(dir+"/real/file", 0o664) }, false, "others can write %s/real/file (mode 0664)"},
		{"others can replace the file", func(dir string) error { return os.Chmod(dir+"/real", 0o777) }, false, "others can write %s/real (mode 0777)"},
		{"but not in a sticky directory", func(dir string) error { return os.Chmod(dir+"/real", os.ModeSticky|0o777) }, false, ""},
		{"others can replace the link", func(dir string) error { return os.Chmod(dir+"/links", 0o777) }, true, "others can write %s/links (mode 0777)"},
		{"a link in a sticky directory is somebody else's", func(dir string) error {
			return errors.Join(os.Chmod(dir+"/links", os.ModeSticky|0o777), lchown(dir+"/links/link", 1234))
		}, true, "%s/links/link belongs to uid 1234"},
		{"the file is somebody else's", func(dir string) error { return lchown(dir+"/real/file", 1234) }, false, "%s/real/file belongs to uid 1234"},
		{"the directory is", func(dir string) error { return lchown(dir+"/real", 1234) }, true, "%s/real belongs to uid 1234"},
	} {
		dir := t.TempDir()
		for _, sub := range []string{"/real", "/links"} {
			if err := os.Mkdir(dir+sub, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, dir+"/real/file", "#\n", 0o644)
		if err := errors.Join(os.Symlink("../real/file", dir+"/links/link"), row.spoil(dir)); err != nil {
			t.Fatal(err)
		}
		path := dir + "/real/file"
		if row.link {
			path = dir + "/links/link"
		}
		_, err := Load(path, inRun)
		switch {
		case row.refused == "" || !root:
			if err != nil {
				t.Errorf("%s: %v", row.purpose, err)
			}
		case row.link && err != nil && strings.HasSuffix(err.Error(), "permission denied"): // by the kernel: fs.protected_symlinks
		case err == nil || !strings.Contains(err.Error(), fmt.Sprintf(row.refused, dir)):
			t.Errorf("%s: %v, want %s", row.purpose, err, fmt.Sprintf(row.refused, dir))
		}
	}
}

// lchown gives a file to uid, if root runs the test; else nothing is refused and nothing needs to be given.
func lchown(path string, uid int) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, uid, -1)
}

// write makes a file of exactly that mode.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}
