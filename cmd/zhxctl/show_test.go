package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

// What is seen beside the status, as people get it.
func TestSeeing(t *testing.T) {
	at := control.Stamp{Time: time.UnixMilli(1700000000123)}
	status := control.Status{Clients: []control.ClientStatus{
		{Name: "app", State: "waiting", DependsOn: []string{"db", "log"}, WaitsFor: []string{"db"}},
		{Name: "db", State: "running", DependsOn: []string{"net"}},
		{Name: "log", State: "running", Ready: true, DependsOn: []string{"db"}, TalksTo: []string{"gps", "zhxctl"}},
		{Name: "net", State: "running", Ready: true},
		{Name: "gps", State: "exited", LastExit: &control.ExitStatus{Reason: "exit", Code: new(1)}},
	}, Peers: []control.PeerStatus{
		{Names: []string{"gps", "fix"}, PID: new(412), UID: new(0), Transport: "unix", Protocol: 2, Managed: true, Proof: "process",
			Sent: control.Traffic{Messages: 7}, Written: control.Traffic{Messages: 3}},
		{Transport: "tcp", Protocol: 1, Proof: "none", Stuck: true, Waiting: 300_000},
	}}
	shown := control.Shown{Name: "gps", File: "/etc/zhx/clients.toml", Keys: []control.KeySet{{Key: "nice", Value: "5", From: "defaults", Line: 3}, {Key: "tty", Value: "false"},
		{Key: "command", Value: `["/usr/bin/gps"]`, From: "client.gps", Line: 14}, {Key: "watchdog_timeout", Value: `"6s"`, From: "watchdog", Line: 9}}}
	events := []control.Event{{Seq: 4, At: at, Client: "gps", Kind: "backoff", Text: "exit 7; restarts in 2s", Run: new(uint64(3))},
		{Seq: 7, At: at, Kind: "reload", Text: "by root \x1b[1m", Lost: 2}}
	const graphText = `Who depends on whom:
~ app      waiting
~ +-db     not ready
*   +-net  running
* +-log    running
~   +-db   as above
x gps      exited

Who has sent something to whom:
  log -> gps, zhxctl
`
	for _, tt := range []struct {
		purpose, args string
		code          int
		out, err      string
	}{
		{"events", "events", 0, "11-14 22:13:20.123  gps         backoff    exit 7; restarts in 2s\n" +
			"11-14 22:13:20.123  zhxd        reload     by root \\x1b[1m\n", "zhxctl: 2 events lost here, which came faster than they were read\n"},
		{"events as JSON, a line each", "events --json gps", 0,
			`{"seq":4,"at":"2023-11-14T22:13:20.123Z","client":"gps","kind":"backoff","run":3,"text":"exit 7; restarts in 2s"}` + "\n" +
				`{"seq":7,"at":"2023-11-14T22:13:20.123Z","client":"","kind":"reload","run":null,"text":"by root \u001b[1m","lost":2}` + "\n",
			"zhxctl: 2 events lost here, which came faster than they were read\n"},
		{"what is set before what is not", "show gps", 0, `[client.gps]  # as loaded from /etc/zhx/clients.toml
command = ["/usr/bin/gps"]                      # clients.toml:14

nice = 5                                        # clients.toml:3 [defaults]
watchdog_timeout = "6s"                         # clients.toml:9 [watchdog]

tty = false                                     # default
`, ""},
		{"a graph", "graph", 0, graphText, ""},
		{"a picture", "graph --dot", 0, "digraph zhx {\n  rankdir = LR\n  \"app\"\n  \"app\" -> \"db\"\n  \"app\" -> \"log\"\n  \"db\"\n  \"db\" -> \"net\"\n" +
			"  \"log\"\n  \"log\" -> \"db\"\n  \"log\" -> \"gps\" [style = dashed, constraint = false]\n" +
			"  \"log\" -> \"zhxctl\" [style = dashed, constraint = false]\n  \"net\"\n  \"gps\"\n}\n", ""},
		{"peers", "peers", 0, "NAMES    PID  UID  VIA   PROTOCOL  PROOF    IN  OUT  WAITING\n" +
			"gps,fix  412  0    unix  2         process  7   3    0B\n" +
			"-        -    -    tcp   1         none     0   0    293K stuck\n", ""},
		{"show nothing", "show", 2, "", "zhxctl: accepts 1 arg(s), received 0\n  -> zhxctl show --help\n"},
	} {
		b := &canned{status: status, shown: shown, events: events}
		if code, out, errOut := ask(t, b, strings.Fields(tt.args)...); code != tt.code || out != tt.out || errOut != tt.err {
			t.Errorf("%s:\ngot  %d\n%s%s\nwant %d\n%s%s", tt.purpose, code, out, errOut, tt.code, tt.out, tt.err)
		}
	}
	unknown := &canned{err: control.Errorf(control.CodeUnknown, "zhxctl status", "no such client: %q", "gsp")}
	for _, args := range []string{"show gsp", "events gsp"} {
		if code, _, errOut := ask(t, unknown, strings.Fields(args)...); code != control.CodeUnknown || errOut != "zhxctl: no such client: \"gsp\"\n  -> zhxctl status\n" {
			t.Errorf("%s: %d %s", args, code, errOut)
		}
	}
	for args, want := range map[string]string{"show --json gps": `"from": "defaults"`, "graph --json": `"talks_to": [`, "peers --json": `"waiting_bytes": 300000`} {
		if code, out, _ := ask(t, &canned{status: status, shown: shown}, strings.Fields(args)...); code != 0 || !strings.Contains(out, want) || !strings.Contains(out, `"v": 1`) {
			t.Errorf("%s: %d %s", args, code, out)
		}
	}
}

// On a terminal there are colours, unless somebody does not want them, and no line is wider than it; the marks are there without.
func TestTerminal(t *testing.T) {
	b := &canned{status: board()}
	long := &b.status.Clients[0]
	long.Name, long.LastExit = "a-client-with-a-long-name", &control.ExitStatus{Reason: "watchdog", Ago: 3600}
	for _, tt := range []struct {
		purpose  string
		columns  uint16
		env      string
		colours  bool
		has, not string
	}{
		{"wide", 200, "", true, "RESTARTS", "RST"},
		{"80 columns", 80, "", true, "RST", "RESTARTS"},
		{"that many, too, where a serial line does not say how many", 0, "", true, "RST", "RESTARTS"},
		{"narrow", 60, "", true, "LAST EXIT", "MEM"},
		{"NO_COLOR", 80, "NO_COLOR", false, "x camera", "RESTARTS"},
	} {
		if t.Setenv("NO_COLOR", ""); tt.env != "" {
			t.Setenv(tt.env, "1")
		}
		t.Setenv("TERM", "xterm")
		out := onTerminal(t, b, tt.columns, "status")
		if strings.Contains(out, "\x1b[31m") != tt.colours || !strings.Contains(out, tt.has) || strings.Contains(out, tt.not) {
			t.Errorf("%s:\n%s", tt.purpose, out)
		}
		limit := int(tt.columns)
		if limit == 0 {
			limit = 80
		}
		for line := range strings.Lines(strings.ReplaceAll(out, "\r", "")) {
			if n := columns(strings.TrimSuffix(line, "\n")); n > limit {
				t.Errorf("%s: %d columns: %s", tt.purpose, n, line)
			}
		}
	}
}

// onTerminal is what zhxctl writes to a terminal.
func onTerminal(t *testing.T, b *canned, width uint16, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: width}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served, read := make(chan error), make(chan []byte)
	s := &control.Server{Backend: b, Access: control.Access{UID: os.Getuid(), GID: -1}, Version: "9", Log: quiet}
	go func() { served <- s.Serve(ctx, ln) }()
	go func() {
		out, _ := io.ReadAll(master) // EIO, when nobody has the other end
		read <- out
	}()
	run(t.Context(), append([]string{"--control", path}, args...), slave, io.Discard)
	slave.Close()
	cancel()
	<-served
	return string(<-read)
}
