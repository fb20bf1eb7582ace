package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

// TestMain lets the test binary be zhxctl in the scripts, and a stand-in for zhxd where standInEnv says how it behaves.
func TestMain(m *testing.M) {
	if how := os.Getenv(standInEnv); how != "" && filepath.Base(os.Args[0]) == "zhxd" {
		standIn(how)
	}
	testscript.Main(m, map[string]func(){"zhxctl": main})
}

const standInEnv = "ZHX_TEST_ZHXD"

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("ZHX_CONTROL", "")
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a program with the race detector lingers for a second
			return os.Chmod(env.WorkDir, 0o755)       // zhx refuses, as root, what others can write
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	})
}

// code CODE PROGRAM ARGS… runs a program and demands its exit code.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code CODE PROGRAM [ARG…]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// standIn is `zhxd --keeper --config FILE --log LOG`, as far as zhxctl can see it.
func standIn(how string) {
	arg := func(name string) string {
		for i, a := range os.Args[:len(os.Args)-1] {
			if a == name {
				return os.Args[i+1]
			}
		}
		fmt.Fprintln(os.Stderr, "stand-in: no", name, "in", os.Args)
		os.Exit(99)
		return ""
	}
	conf, err := config.Load(arg("--config"), config.Options{})
	if err != nil || os.Args[1] != "--keeper" {
		os.Exit(98)
	}
	switch how {
	case "speechless":
		fmt.Fprintln(os.Stderr, "cannot make run_dir")
		os.Exit(1)
	case "other":
		notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
		if err != nil {
			os.Exit(96)
		}
		other := exec.Command(os.Args[0], os.Args[1:]...)
		other.Env = append(os.Environ(), standInEnv+"=well", "NOTIFY_SOCKET="+notify.LocalAddr().String())
		other.Start()
		notify.Read(make([]byte, 100))
		os.Exit(1)
	case "silent":
		select {}
	}
	os.Mkdir(conf.Daemon.RunDir, 0o755)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: conf.Daemon.Control, Net: "unix"})
	if err != nil {
		os.Exit(97)
	}
	b := &canned{status: control.Status{Daemon: &control.DaemonStatus{Version: "9", PID: os.Getpid()}}, end: control.ShutdownReply{Kept: 2}, shut: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-b.shut; cancel() }()
	go func() {
		c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err == nil {
			fmt.Fprint(c, "STATUS=up\nREADY=1\n")
		}
	}()
	(&control.Server{Backend: b, Access: control.Access{UID: os.Getuid(), GID: -1}, Version: "9", Log: quiet}).Serve(ctx, ln)
	os.Exit(0)
}

var quiet = slog.New(slog.DiscardHandler)

// canned is a zhxd that answers what its fields say.
type canned struct {
	status control.Status
	lines  []control.LogLine
	plan   []control.PlanRow
	why    control.Why
	end    control.ShutdownReply
	err    error
	sent   control.SendRequest
	asked  control.LogQuery
	says   control.Explanation
	passes []control.TapEvent
	shut   chan struct{} // closed by Shutdown, if there is one
	hold   time.Duration // that Wait takes
	looked chan struct{} // has room for one: Wait ends when Status is asked for, if there is one
	shown  control.Shown
	events []control.Event
}

func (c *canned) Status(context.Context) control.Status {
	select {
	case c.looked <- struct{}{}:
	default:
	}
	return c.status
}
func (c *canned) Why(context.Context, string) (control.Why, error) { return c.why, c.err }
func (c *canned) Explain(context.Context, string, string) (control.Explanation, error) {
	return c.says, c.err
}
func (c *canned) Tap(context.Context, control.Caller, string) (iter.Seq[control.TapEvent], error) {
	return slices.Values(c.passes), c.err
}
func (c *canned) Show(context.Context, string) (control.Shown, error) { return c.shown, c.err }
func (c *canned) Events(context.Context, control.EventQuery) (iter.Seq[control.Event], error) {
	return slices.Values(c.events), c.err
}
func (c *canned) Logs(_ context.Context, q control.LogQuery) (iter.Seq[control.LogLine], error) {
	c.asked = q
	return slices.Values(c.lines), c.err
}

// Start starts "gps", is asked by "ui" itself to do that later, and fails with every other client.
func (c *canned) Start(_ context.Context, _ control.Caller, w control.Which) (out []control.Outcome, err error) {
	for _, name := range w.Names {
		o := control.Outcome{Name: name, Text: "started", PID: new(412)}
		if name == "ui" {
			o = control.Outcome{Name: name, Text: "accepted", PID: new(977), Accepted: true}
		} else if name != "gps" {
			o = control.Outcome{Name: name, Error: control.Errorf(control.CodeTimeout, "zhxctl logs "+name, "%s: is not up yet", name)}
		}
		out = append(out, o)
	}
	return out, c.err
}
func (c *canned) Stop(_ context.Context, _ control.Caller, w control.Which) ([]control.Outcome, error) {
	return []control.Outcome{{Name: fmt.Sprint(w), Text: "stopped"}}, c.err
}
func (c *canned) Restart(ctx context.Context, by control.Caller, w control.Which) ([]control.Outcome, error) {
	return c.Start(ctx, by, w)
}
func (c *canned) Kill(_ context.Context, _ control.Caller, m control.KillRequest) ([]control.Outcome, error) {
	return []control.Outcome{{Name: fmt.Sprint(m), Text: "signalled"}}, c.err
}
func (c *canned) Reset(_ context.Context, _ control.Caller, w control.Which) ([]control.Outcome, error) {
	return []control.Outcome{{Name: fmt.Sprint(w), Text: "reset"}}, c.err
}

// Wait finds everything as it should be, once ctx or hold ends, or somebody has looked.
func (c *canned) Wait(ctx context.Context, names []string, aim string) (out []control.Outcome, err error) {
	if c.hold > 0 {
		select {
		case <-time.After(c.hold):
		case <-c.looked:
		case <-ctx.Done():
		}
	}
	for _, name := range names {
		out = append(out, control.Outcome{Name: name, Text: aim})
	}
	return out, c.err
}
func (c *canned) Reload(context.Context, control.Caller, bool) (control.ReloadResult, error) {
	return control.ReloadResult{Plan: c.plan}, c.err
}
func (c *canned) Send(_ context.Context, _ control.Caller, m control.SendRequest) error {
	c.sent = m
	return c.err
}
func (c *canned) Pause(_ context.Context, _ control.Caller, m control.PauseRequest) ([]control.Outcome, error) {
	return []control.Outcome{{Name: m.Names[0], Text: fmt.Sprintf("paused for %vs: %s", m.Seconds, m.Reason)}}, c.err
}
func (c *canned) Resume(_ context.Context, _ control.Caller, w control.Which) ([]control.Outcome, error) {
	return []control.Outcome{{Name: fmt.Sprint(w), Text: "resumed"}}, c.err
}
func (c *canned) Shutdown(_ control.Caller, keep bool) (control.ShutdownReply, func(), error) {
	if !keep {
		c.end.Kept = 0
	}
	return c.end, func() {
		if c.shut != nil {
			close(c.shut)
		}
	}, c.err
}

// ask runs zhxctl against b, or against nothing, and returns its exit code and what it wrote.
func ask(t *testing.T, b *canned, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = askOn(t, b, &o, &e, args...)
	return code, o.String(), e.String()
}

// askOn is ask, where it writes to.
func askOn(t *testing.T, b *canned, out, errOut io.Writer, args ...string) int {
	t.Helper()
	if b != nil {
		path := filepath.Join(t.TempDir(), "c.sock")
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		s := &control.Server{Backend: b, Access: control.Access{UID: os.Getuid(), GID: -1}, Version: "9", Log: quiet}
		go func() { done <- s.Serve(ctx, ln) }()
		defer func() { cancel(); <-done }()
		args = append([]string{"--control", path}, args...)
	}
	return run(t.Context(), args, out, errOut)
}

func TestVerbs(t *testing.T) {
	line := control.LogLine{Client: "gps", At: control.Stamp{Time: time.UnixMilli(1700000000123)}, Text: "fix \x1b[1m"}
	for _, tt := range []struct {
		purpose  string
		b        canned
		args     string
		code     int
		out, err string
	}{
		{"start says the pid", canned{}, "start gps", 0, "gps: started, pid 412\n", ""},
		{"one of two fails: its code, its hint", canned{}, "start gps modem", 5, "gps: started, pid 412\n",
			"zhxctl: modem: is not up yet\n  -> zhxctl logs modem\n"},
		{"what is accepted is no failure", canned{}, "restart ui gps", 0,
			"ui: accepted, it concerns the caller's own process tree\ngps: started, pid 412\n", ""},
		{"names of groups are for zhxd", canned{}, "stop @sensors cam", 0, "{[@sensors cam] false}: stopped\n", ""},
		{"stop --all", canned{}, "stop --all", 0, "{[] true}: stopped\n", ""},
		{"a refusal", canned{err: control.Errorf(control.CodeUnknown, "zhxctl status", "no such client: %q", "x")}, "stop x", 4, "",
			"zhxctl: no such client: \"x\"\n  -> zhxctl status\n"},
		{"a failure without a hint", canned{err: io.ErrClosedPipe}, "restart gps", 1, "", "zhxctl: io: read/write on closed pipe\n"},
		{"a plan", canned{plan: plan("gps keep", "modem restart command", "lidar start", "ui stop")},
			"reload", 0, "~ modem  restart  command\n+ lidar  start\n- ui     remove\n1 unchanged\n", ""},
		{"a plan alone", canned{plan: plan("gps keep", "modem live nice")},
			"reload --dry-run", 0, "~ modem  live  nice\n1 unchanged. Nothing done (dry run).\n", ""},
		{"a plan as JSON", canned{}, "reload --dry-run --json", 0,
			"{\n  \"v\": 1,\n  \"dry_run\": true,\n  \"plan\": [],\n  \"problems\": []\n}\n", ""},
		{"an invalid configuration", canned{err: &control.Error{Text: "invalid configuration", Code: control.CodeUsage,
			Problems: []control.Problem{{File: "f", Line: 3, Text: "bad"}}}}, "reload", 2, "", "f:3: error: bad\nzhxctl: invalid configuration\n"},
		{"logs of one client are its bytes, where this is no terminal", canned{lines: []control.LogLine{line}}, "logs gps", 0, "fix \x1b[1m\n", ""},
		{"logs of all say whose they are", canned{lines: []control.LogLine{line}}, "logs", 0, "gps | fix \x1b[1m\n", ""},
		{"lost lines are told", canned{lines: []control.LogLine{{Client: "gps", Text: "x", Dropped: 2}}}, "logs gps", 0, "x\n",
			"zhxctl: gps: 2 lines lost here, which came faster than they were read\n"},
		{"a line in pieces is whole again", canned{lines: []control.LogLine{{Client: "gps", Text: "x", Cut: true}, {Client: "gps", Text: "y"}}}, "logs gps", 0, "xy\n", ""},
		{"among others it shows", canned{lines: []control.LogLine{{Client: "gps", Text: "x", Cut: true}, {Client: "ui", Text: "y"}}}, "logs", 0,
			"gps | x …\nui | y\n", ""},
		{"logs as JSON, a line each", canned{lines: []control.LogLine{line}}, "logs --json", 0,
			`{"client":"gps","run":0,"at":"2023-11-14T22:13:20.123Z","mono_s":0,"text":"fix \u001b[1m"}` + "\n", ""},
		{"send", canned{}, "send gps hello", 0, "", ""},
		{"text that would be changed on its way", canned{}, "send gps caf\xe9", 2, "", "zhxctl: send: the text is not UTF-8, and would not arrive as it is\n  -> --level accepted sends any bytes\n"},
		{"versions", canned{status: board()}, "version", 0, "zhxctl devel\nzhxd 0.4.1\n", ""},
		{"status of an unknown client", canned{status: board()}, "status gsp", 4, "",
			"zhxctl: no such client: \"gsp\"; did you mean \"gps\"?\n  -> zhxctl status\n"},
		{"status of a group without clients", canned{status: board()}, "status @none", 4, "",
			"zhxctl: no such group: \"@none\"\n  -> zhxctl status\n"},
		{"status of one that runs", canned{status: board()}, "status gps", 0,
			"  NAME  STATE    PID  UP  RESTARTS  CPU   MEM   WATCHDOG  LAST EXIT\n* gps   running  412  3d  0         1.2%  6.1M  7.3s/9s   -\n", ""},
		{"status of one that does not", canned{status: board()}, "status gps logger", 3,
			"  NAME    STATE    PID  UP  RESTARTS  CPU   MEM   WATCHDOG  LAST EXIT\n" +
				"* gps     running  412  3d  0         1.2%  6.1M  7.3s/9s   -\n- logger  stopped  -    -   0         -     -     off       stop 1d ago\n", ""},
		{"status of a group, one of which does not run", canned{status: board()}, "status @quiet", 3,
			"  NAME    STATE    PID  UP  RESTARTS  CPU   MEM   WATCHDOG  LAST EXIT\n" +
				"* gps     running  412  3d  0         1.2%  6.1M  7.3s/9s   -\n- logger  stopped  -    -   0         -     -     off       stop 1d ago\n", ""},
		{"an end that goes on without the caller", canned{end: control.ShutdownReply{Accepted: true}}, "shutdown", 0,
			"zhxd: accepted, it concerns the caller's own process tree\n", ""},
	} {
		code, out, errOut := ask(t, &tt.b, strings.Fields(tt.args)...)
		if code != tt.code || out != tt.out || errOut != tt.err {
			t.Errorf("%s:\ngot  %d\n%s%s\nwant %d\n%s%s", tt.purpose, code, out, errOut, tt.code, tt.out, tt.err)
		}
	}
	var b canned
	if ask(t, &b, "logs", "-f", "-n", "7", "gps", "ui"); fmt.Sprint(b.asked) != "{[gps ui] 7 true  false}" {
		t.Error("logs asked for", b.asked)
	}
	b.status = board()
	if ask(t, &b, "logs", "@quiet", "modem", "gsp"); fmt.Sprint(b.asked) != "{[gps logger modem gsp] 50 false  false}" {
		t.Error("logs of a group asked for", b.asked)
	}
	if _, out, _ := ask(t, &b, "__complete", "restart", ""); out != "gps\ncamera\nmodem\nui\nlogger\n@quiet\n@none\n:4\n" {
		t.Errorf("completed: %s", out)
	}
	if _, out, _ := ask(t, &b, "__complete", "why", ""); out != "gps\ncamera\nmodem\nui\nlogger\n:4\n" {
		t.Errorf("a single client completed: %s", out)
	}
	if ask(t, &b, "send", "gps", "a b", "--from", "me"); b.sent != (control.SendRequest{Target: "gps", Source: "me", Text: "a b"}) {
		t.Error("send sent", b.sent)
	}
	long := strings.Repeat("\x01", control.SendMax) // each of which JSON writes as six
	if code, _, errOut := ask(t, &b, "send", "gps", long); code != 0 || b.sent.Text != long {
		t.Errorf("a long text: exit %d, %d bytes\n%s", code, len(b.sent.Text), errOut)
	}
	if code, _, errOut := ask(t, &b, "send", "gps", long+"x"); code != 2 || !strings.Contains(errOut, "--level accepted") {
		t.Errorf("a text that is too long: exit %d\n%s", code, errOut)
	}
}

// plan makes rows of "NAME ACTION WHY".
func plan(rows ...string) (plan []control.PlanRow) {
	for _, row := range rows {
		var p control.PlanRow
		fmt.Sscan(row, &p.Name, &p.Action, &p.Why)
		plan = append(plan, p)
	}
	return plan
}

// board is a status with everything in it that can be wrong.
func board() control.Status {
	return control.Status{
		Daemon: &control.DaemonStatus{Version: "0.4.1", PID: 400, Uptime: 273600, Config: "/etc/zhx/clients.toml", ConfigState: "ok"},
		Clients: []control.ClientStatus{
			{Name: "gps", State: "running", Ready: true, PID: new(412), Uptime: new(273600.0), Watchdog: &control.WatchdogStatus{Armed: true, Timeout: 9, Remaining: new(7.34)},
				CPU: new(1.2), Memory: new(int64(6_400_000))},
			{Name: "camera", State: "backoff", Restarts: 6, Next: new(24.0), LastExit: &control.ExitStatus{Reason: "exit", Code: new(127), Ago: 8, Said: new("no libv4l2 \x1b[1m")},
				Watchdog: &control.WatchdogStatus{Timeout: 9}},
			{Name: "modem", State: "failed", LastExit: &control.ExitStatus{Reason: "spawn", Detail: new("/usr/bin/modemd: no such file"), Ago: 100}},
			{Name: "ui", State: "running", Ready: true, PID: new(977), Uptime: new(725.0), Restarts: 3, CPU: new(85.4), Memory: new(int64(43_000_000)),
				LastExit: &control.ExitStatus{Reason: "signal", Signal: new("SIGSEGV"), Ago: 725}, Watchdog: &control.WatchdogStatus{Armed: true, Paused: true}},
			{Name: "logger", State: "stopped", LastExit: &control.ExitStatus{Reason: "stop", Ago: 86400}},
		},
		Groups: []control.GroupStatus{{Name: "@quiet", Clients: []string{"gps", "logger"}}, {Name: "@none"}},
		Peers: []control.PeerStatus{
			{Names: []string{"gps"}, Managed: true}, {Names: []string{"ui"}, Managed: true, Stuck: true},
			{Names: []string{"gdb"}, PID: new(55), UID: new(1000)}, {},
		},
	}
}

func TestStatus(t *testing.T) {
	b := &canned{status: board()}
	const table = `  NAME    STATE    PID  UP   RESTARTS  CPU   MEM   WATCHDOG  LAST EXIT
* gps     running  412  3d   0         1.2%  6.1M  7.3s/9s   -
x camera  backoff  -    -    6         -     -     -         exit 127 8s ago
x modem   failed   -    -    0         -     -     off       spawn 1m ago
* ui      running  977  12m  3         85%   41M   paused    SIGSEGV 12m ago
- logger  stopped  -    -    0         -     -     off       stop 1d ago

camera: exit 127 8s ago, next start in 24s; it said last: "no libv4l2 \x1b[1m"
  -> zhxctl why camera
modem: spawn 1m 40s ago (/usr/bin/modemd: no such file), and is not started again
  -> zhxctl check; then zhxctl start modem
ui: takes no messages; what is sent to it is dropped and counted
  -> zhxctl peers
gdb (pid 55): is connected, and was not started by zhxd
`
	const head = "zhxd 0.4.1  pid 400  up 3d 4h  config "
	const clients = "5 clients: 2 running, 1 backoff, 1 failed, 1 stopped\n"
	for _, tt := range []struct{ state, problem, want string }{
		{"ok", "", head + "ok (/etc/zhx/clients.toml)\n" + clients + "\n" + table},
		{"changed", "", head + "changed (/etc/zhx/clients.toml)\n" + clients +
			"! /etc/zhx/clients.toml has changed and is not loaded yet\n  -> zhxctl reload\n\n" + table},
		{"invalid", "c.toml:3: error: bad\nc.toml:4: error: worse", head + "invalid (/etc/zhx/clients.toml)\n" + clients +
			"! /etc/zhx/clients.toml is invalid; what was loaded before stays in force\n" +
			"!   c.toml:3: error: bad\n!   c.toml:4: error: worse\n  -> zhxctl check /etc/zhx/clients.toml\n\n" + table},
	} {
		b.status.Daemon.ConfigState, b.status.Daemon.ConfigError = tt.state, &tt.problem
		if code, out, errOut := ask(t, b, "status"); code != 0 || out != tt.want || errOut != "" {
			t.Errorf("%s: got %d\n%s%s\nwant\n%s", tt.state, code, out, errOut, tt.want)
		}
	}
	for text, want := range map[string]string{"127.0.0.1:9155": "metrics: 127.0.0.1:9155", "in use": "! metrics are not served: in use"} {
		b.status.Daemon.Metrics = &text
		if _, out, _ := ask(t, b, "status"); !strings.Contains(out, "\n"+want+"\n") {
			t.Errorf("no %q:\n%s", want, out)
		}
	}
	if code, out, _ := ask(t, b, "status", "--json", "ui"); code != 0 || !strings.Contains(out, `"signal": "SIGSEGV"`) ||
		strings.Contains(out, "gdb") || strings.Contains(out, "camera") {
		t.Errorf("one client as JSON: %d %s", code, out)
	}
}

// What a client says of itself, and what it waits for.
func TestStatusOfOne(t *testing.T) {
	exited := func(name string, e control.ExitStatus) control.ClientStatus {
		return control.ClientStatus{Name: name, State: "exited", LastExit: &e}
	}
	running := func(c control.ClientStatus) control.ClientStatus {
		c.Name, c.State, c.PID = "gps", "running", new(412)
		return c
	}
	row := func(state, pid, dog, exit string) string {
		width := max(5, len(state))
		return fmt.Sprintf("  NAME  %-*s  PID  UP  RESTARTS  CPU  MEM  WATCHDOG  LAST EXIT\n", width, "STATE") +
			fmt.Sprintf("%s gps   %-*s  %-3s  -   0         -    -    %-8s  %s\n", map[bool]string{true: "-", false: "~"}[state == "exited"], width, state, pid, dog, exit)
	}
	for _, tt := range []struct {
		purpose string
		client  control.ClientStatus
		want    string
	}{
		{"not ready", running(control.ClientStatus{}), row("not ready", "412", "off", "-") + "\ngps: runs, and is not ready yet\n  -> zhxctl why gps\n"},
		{"all it says, whatever a terminal would make of it", running(control.ClientStatus{Ready: true, Phase: new("reloading"), Notice: new("fix \x1b[1m3D"),
			Adopted: true, Log: &control.LogStatus{Cut: 1, FileDropped: 20}}),
			row("reloading", "412", "off", "-") +
				"  says: fix \\x1b[1m3D\n  adopted: an earlier zhxd started it\n" +
				"  log: 20 lines could not be written to its file\n  log: 1 line too long for one, and kept in pieces\n"},
		{"an exit code that is no failure needs no word", exited("gps", control.ExitStatus{Reason: "exit", Code: new(3), Success: true}),
			row("exited", "-", "off", "exit 3 0s ago")},
		{"an end that nobody saw", exited("gps", control.ExitStatus{Reason: "unknown"}),
			strings.Replace(row("exited", "-", "off", "unknown 0s ago"), "- gps", "x gps", 1) +
				"\ngps: unknown 0s ago (zhxd was not its parent any more: the kernel did not tell)\n  -> zhxctl why gps\n"},
		{"it waits", control.ClientStatus{Name: "gps", State: "waiting", WaitsFor: []string{"db", "net"}},
			row("waiting", "-", "off", "-") + "\ngps: waiting for db, net\n"},
		{"it waits for many", control.ClientStatus{Name: "gps", State: "waiting", WaitsFor: []string{"db", "net", "fs"}},
			row("waiting", "-", "off", "-") + "\ngps: waiting for db and 2 more\n"},
	} {
		b := &canned{status: control.Status{Daemon: &control.DaemonStatus{}, Clients: []control.ClientStatus{tt.client}}}
		if _, out, _ := ask(t, b, "status", "gps"); out != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.purpose, out, tt.want)
		}
		if _, out, _ := ask(t, b, "status"); strings.Contains(out, "says:") {
			t.Errorf("%s: the table of all is too long:\n%s", tt.purpose, out)
		}
	}
}

// check knows the variables that the zhxd which runs has, and no others.
func TestCheckEnvironment(t *testing.T) {
	zhxd := exec.Command("/bin/sleep", "7654")
	zhxd.Env = []string{"ONLY_THERE=/bin/true"}
	if err := zhxd.Start(); err != nil {
		t.Fatal(err)
	}
	defer zhxd.Wait()
	defer zhxd.Process.Kill()
	file := filepath.Join(t.TempDir(), "clients.toml")
	if err := os.WriteFile(file, []byte("[daemon]\nrun_dir = \"/tmp/zhx-of-a-test\"\n[client.gps]\ncommand = [\"${ONLY_THERE}\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ONLY_HERE", "/bin/true")
	b := &canned{status: control.Status{Daemon: &control.DaemonStatus{PID: zhxd.Process.Pid}}}
	if code, out, _ := ask(t, b, "check", file); code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
	if err := os.WriteFile(file, []byte("[client.gps]\ncommand = [\"${ONLY_HERE}\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := ask(t, b, "check", file); code != 2 || !strings.Contains(out, "${ONLY_HERE}, which is not set") {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out, _ := ask(t, nil, "--control", "/nowhere", "check", file); code != 0 {
		t.Errorf("without zhxd: exit %d: %s", code, out)
	}
}

func TestEscape(t *testing.T) {
	for _, tt := range []struct{ purpose, in, want string }{
		{"text stays", "größe 5 µm\t\"x\\y\"", "größe 5 µm\t\"x\\y\""},
		{"escape sequences show", "\x1b[2J\r\x07", `\x1b[2J\r\a`},
		{"the C1 controls too, which some terminals obey", "\u009b2J", `\u009b2J`},
		{"what turns text round", "a\u202eb", `a\u202eb`},
		{"what is not UTF-8", "caf\xe9\xff", `caf\xe9\xff`},
		{"a replacement character that was sent", "\ufffd", "\ufffd"},
	} {
		if got := escape(tt.in); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.purpose, got, tt.want)
		}
	}
}

func TestSpan(t *testing.T) {
	for in, want := range map[float64]string{-1: "0s", 0: "0s", 0.84: "0.8s", 9: "9s", 9.99: "9.9s", 59.9: "59s", 60: "1m 0s", 3600: "1h 0m", 90000: "1d 1h"} {
		if got := span(in); got != want {
			t.Errorf("span(%v) = %q, want %q", in, got, want)
		}
	}
}

// zhxd is started by a stand-in, whose name is found in PATH.
func TestStart(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "zhxd")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("ZHX_CONTROL", "")
	t.Setenv("GORACE", "atexit_sleep_ms=0") // a program with the race detector lingers for a second
	for _, tt := range []struct {
		how      string
		args     string
		code     int
		out, err string // the beginnings
		down     string
		left     string // what it says at the end
	}{
		{"well", "start", 0, "zhxd 9 runs, pid ", "", "shutdown", ""},
		{"speechless", "start", 1, "", "cannot make run_dir\nzhxctl: zhxd did not start: exit status 1\n  -> its log is ", "", ""},
		{"other", "start", 0, "zhxd 9 runs, pid ", "", "shutdown --keep", "; it left 2 clients running, which the next zhxctl start adopts"}, // it was started by another zhxctl in the same moment
		{"silent", "start --timeout 300ms", 5, "", "zhxctl: zhxd is not ready yet; it goes on starting, under the keeper with pid ", "", ""},
	} {
		t.Run(tt.how, func(t *testing.T) {
			work := t.TempDir()
			conf := filepath.Join(work, "clients.toml")
			text := fmt.Sprintf("[daemon]\nrun_dir = %q\n", filepath.Join(work, "run"))
			if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Setenv(standInEnv, tt.how)
			t.Setenv("TMPDIR", work)
			var open [2]int // as a caller's, who did not mark it close-on-exec
			if err := unix.Pipe2(open[:], 0); err != nil {
				t.Fatal(err)
			}
			zhxctl := func(args ...string) (int, string, string) {
				return ask(t, nil, append([]string{"--config", conf}, args...)...)
			}

			code, out, errOut := zhxctl(strings.Fields(tt.args)...)
			unix.Close(open[1])
			end := []unix.PollFd{{Fd: int32(open[0]), Events: unix.POLLIN}}
			if n, _ := unix.Poll(end, 0); n == 0 || end[0].Revents&unix.POLLHUP == 0 {
				t.Error("zhxd holds a pipe of whoever called zhxctl")
			}
			unix.Close(open[0])
			if code != tt.code || !strings.HasPrefix(out, tt.out) || !strings.HasPrefix(errOut, tt.err) {
				t.Errorf("got %d\n%s%s", code, out, errOut)
			}
			if left, _ := filepath.Glob(work + "/zhxctl-*"); left != nil {
				t.Error("left behind:", left)
			}
			var pid int
			if _, err := fmt.Sscanf(errOut, tt.err+"%d", &pid); err == nil {
				p, _ := os.FindProcess(pid)
				p.Kill()
			}
			if tt.code != 0 {
				return
			}
			if code, again, _ := zhxctl("start"); code != 0 || !strings.HasPrefix(again, "zhxd runs already, pid ") {
				t.Errorf("started again: %d %s", code, again)
			}
			code, out, errOut = zhxctl(strings.Fields(tt.down)...)
			fmt.Sscanf(out, "zhxd has ended, pid %d", &pid)
			if code != 0 || out != fmt.Sprintf("zhxd has ended, pid %d%s\n", pid, tt.left) {
				t.Errorf("shutdown: %d %s%s", code, out, errOut)
			}
			if code, out, _ := zhxctl("shutdown"); code != 0 || out != "zhxd is not running\n" {
				t.Errorf("shutdown again: %d %s", code, out)
			}
			if code, _, _ := zhxctl("status"); code != 3 {
				t.Errorf("status after shutdown: %d", code)
			}
		})
	}
}
