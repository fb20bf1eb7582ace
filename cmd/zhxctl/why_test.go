package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"zhx/daemon/control"
)

// camera is a client with a death of every kind.
func camera() control.Why {
	at := control.Stamp{Time: time.UnixMilli(1700000000123)}
	d := func(run uint64, reason string, more control.Death) control.Death {
		more.Run, more.Reason, more.At, more.Ago = run, reason, at, float64(10*(10-run))
		return more
	}
	return control.Why{V: 1, Name: "camera", State: "waiting", WaitsFor: []string{"db"}, Now: "waits for db (backoff); starts when it is ready", Deaths: []control.Death{
		d(9, "exit", control.Death{Code: new(127), PID: new(977), Uptime: 3.25, Ready: true, Next: "restarts in 200ms",
			Lines: []string{"starting\r", "libv4l2.so.0: \x1b[31mno such file"}}),
		d(8, "signal", control.Death{Signal: new("SIGSEGV"), Core: true, PID: new(970), Uptime: 4000, Ready: true, Next: "restarts at once"}),
		d(7, "watchdog", control.Death{Signal: new("SIGABRT"), Detail: new("no sign of life for 9s"), PID: new(960), Uptime: 0.5}),
		d(6, "stop", control.Death{Code: new(0), Detail: new("asked by root (pid 412)"), PID: new(950), Uptime: 1, Next: "stays stopped until it is started by hand"}),
		d(5, "spawn", control.Death{Errno: new("ENOENT"), Code: new(2), Detail: new("exec /usr/bin/camera\nd: no such file")}),
		d(4, "timeout", control.Death{Signal: new("SIGKILL"), PID: new(940), Uptime: 20}),
		d(3, "dependency", control.Death{Signal: new("SIGTERM"), Detail: new(`client "db" goes down, which it depends on`), PID: new(930), Uptime: 20}),
		d(2, "unknown", control.Death{PID: new(920), Uptime: 20}),
		d(1, "eaten", control.Death{PID: new(910), Lines: []string{"a", "", "b"}}),
	}}
}

func TestWhy(t *testing.T) {
	const want = `camera: waiting for db
  now      waits for db (backoff); starts when it is ready

run 9: exit 127, 10s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    3.2s, was ready, pid 977
  then     restarts in 200ms
  printed  | starting
           | libv4l2.so.0: \x1b[31mno such file

run 8: killed by SIGSEGV, core dumped, 20s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    1h 6m, was ready, pid 970
  then     restarts at once
  printed  nothing

run 7: killed by the watchdog (SIGABRT), 30s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    0.5s, never became ready, pid 960
  why      no sign of life for 9s
  printed  nothing

run 6: stopped (exit 0), 40s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    1s, never became ready, pid 950
  why      asked by root (pid 412)
  then     stays stopped until it is started by hand
  printed  nothing

run 5: could not be spawned (ENOENT), 50s ago
  at       2023-11-14 22:13:20.123 UTC
  why      exec /usr/bin/camera\nd: no such file

run 4: killed, since it was not ready within start_timeout (SIGKILL), 1m 0s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    20s, never became ready, pid 940
  printed  nothing

run 3: stopped for the sake of another client (SIGTERM), 1m 10s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    20s, never became ready, pid 930
  why      client "db" goes down, which it depends on
  printed  nothing

run 2: ended, nobody knows how, 1m 20s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    20s, never became ready, pid 920
  why      zhxd was not its parent any more: the kernel did not tell

run 1: eaten, 1m 30s ago
  at       2023-11-14 22:13:20.123 UTC
  lived    0s, never became ready, pid 910
  printed  | a
           | ` + `
           | b
`
	b := &canned{why: camera()}
	if code, out, errOut := ask(t, b, "why", "camera"); code != 0 || out != want || errOut != "" {
		t.Errorf("got %d\n%s%s\nwant\n%s", code, out, errOut, want)
	}
	if _, out, _ := ask(t, b, "why", "--raw", "camera"); !strings.Contains(out, "libv4l2.so.0: \x1b[31mno such file\n") {
		t.Errorf("raw: %q", out)
	}
	code, out, _ := ask(t, b, "why", "--json", "camera")
	var got control.Why
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || got.V != 1 || len(got.Deaths) != 9 ||
		got.Deaths[0].Lines[1] != "libv4l2.so.0: \x1b[31mno such file" || *got.Deaths[4].Errno != "ENOENT" {
		t.Errorf("as JSON: %d %v\n%s", code, err, out)
	}

	b.why = control.Why{Name: "gps", State: "running", Ready: true, Now: "runs as pid 412 for 3d 4h"}
	const calm = "gps: running\n  now      runs as pid 412 for 3d 4h\n\nzhxd knows of no run of it that has ended\n"
	if code, out, _ := ask(t, b, "why", "gps"); code != 0 || out != calm {
		t.Errorf("it never died: %d\n%s", code, out)
	}
	b.err = control.Errorf(control.CodeUnknown, "zhxctl status lists the clients", "no such client: %q", "gsp")
	if code, out, errOut := ask(t, b, "why", "gsp"); code != 4 || out != "" || errOut != "zhxctl: no such client: \"gsp\"\n  -> zhxctl status lists the clients\n" {
		t.Errorf("nobody: %d\n%s%s", code, out, errOut)
	}
}
