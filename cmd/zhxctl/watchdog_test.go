package main

import (
	"strings"
	"testing"
	"time"

	"zhx/daemon/control"
)

// How regularly clients feed, what is wrong with it, and who is paused.
func TestWatchdog(t *testing.T) {
	b := &canned{status: control.Status{Daemon: &control.DaemonStatus{}, Clients: []control.ClientStatus{
		{Name: "gps", State: "running", Watchdog: &control.WatchdogStatus{Armed: true, Timeout: 5, Remaining: new(4.2), Misses: 3, Lapses: 1, Credited: 0.4,
			Interval: &control.IntervalStatus{Count: 99, Min: 0.9, Mean: 1.0042, P99: 3.1, Max: 4.2}, Margin: new(0.8), Hint: new("too tight: slowest feed 4.2s of 5s")}},
		{Name: "modem", State: "running", Watchdog: &control.WatchdogStatus{Timeout: 9}},
		{Name: "camera", State: "running", Watchdog: &control.WatchdogStatus{Timeout: 9, Paused: true, PausedFor: new(61.0), Pause: new("root (pid 7): gdb")}},
		{Name: "ui", State: "running", Watchdog: &control.WatchdogStatus{Armed: true, Timeout: 90, Remaining: new(90.0), Traced: true}},
		{Name: "logger", State: "running"},
	}}}
	const want = `NAME    LEFT       TIMEOUT  MIN    MEAN  P99   MAX   MARGIN  MISSES  LAPSES
gps     4.2s       5s       900ms  1s    3.1s  4.2s  800ms  3       1
  too tight: slowest feed 4.2s of 5s
  was given 400ms more, since it waited for a processor
modem   not armed  9s       -      -     -     -     -  0       0
camera  paused 1m  9s       -      -     -     -     -  0       0
ui      traced     1m 30s   -      -     -     -     -  0       0
logger  off
`
	if code, out, errOut := ask(t, b, "watchdog"); code != 0 || squeeze(out) != squeeze(want) || errOut != "" {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	if _, out, _ := ask(t, b, "status"); !strings.Contains(out, "camera: watchdog paused by root (pid 7): gdb\n  -> zhxctl watchdog resume camera\n") {
		t.Error(out)
	}
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"watchdog", "pause", "gps", "10m", "--reason", "gdb"}, 0, "gps: paused for 600s: gdb\n"},
		{[]string{"watchdog", "pause", "gps", "soon"}, 2, "zhxctl: \"soon\" is no duration of at most 24h, as 90s or 10m\n  -> zhxctl watchdog pause gps 10m\n"},
		{[]string{"watchdog", "pause", "gps", "25h"}, 2, "zhxctl: \"25h\" is no duration of at most 24h, as 90s or 10m\n  -> zhxctl watchdog pause gps 10m\n"},
		{[]string{"watchdog", "pause", "gps"}, 2, "zhxctl: accepts 2 arg(s), received 1\n  -> zhxctl watchdog pause --help\n"},
		{[]string{"watchdog", "resume", "gps"}, 0, "{[gps] false}: resumed\n"},
		{[]string{"watchdog", "resume", "--all"}, 0, "{[] true}: resumed\n"},
		{[]string{"watchdog", "resume"}, 2, "zhxctl: resume: which clients? give either names or --all\n" +
			"  -> zhxctl watchdog resume NAME…  or  zhxctl watchdog resume --all  (zhxd itself: zhxctl shutdown)\n"},
	} {
		if code, out, errOut := ask(t, b, row.args...); code != row.code || out+errOut != row.want {
			t.Errorf("%v: exit %d\n%s%s", row.args, code, out, errOut)
		}
	}
}

func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n")
}

// What the board's own watchdog has to say stands above the clients, and only what it has.
func TestBoard(t *testing.T) {
	reset := &control.ResetStatus{Reason: "client gps: restarted 5 times within 10m0s", At: control.Stamp{Time: time.Unix(0, 0)}}
	for _, row := range []struct {
		purpose string
		board   control.BoardStatus
		want    string
	}{
		{"nothing", control.BoardStatus{Mode: "enforce"}, ""},
		{"a device", control.BoardStatus{Device: new("/dev/watchdog (OMAP Watchdog), timeout 30s")}, "hardware watchdog: /dev/watchdog (OMAP Watchdog), timeout 30s\n"},
		{"observing", control.BoardStatus{Mode: "observe"}, "! nobody is killed for being late: [watchdog] mode = \"observe\"\n"},
		{"safe mode", control.BoardStatus{SafeMode: true, LastReset: reset},
			"last reset: client gps: restarted 5 times within 10m0s (1970-01-01 00:00:00 UTC, of a clock that was not set)\n" +
				"! safe mode: the board was reset too often; clients are started by hand only\n  -> zhxctl why NAME, zhxctl start NAME\n"},
	} {
		b := &canned{status: control.Status{Daemon: &control.DaemonStatus{Version: "9", PID: 1, ConfigState: "ok", Config: "c", Watchdog: &row.board}}}
		_, out, _ := ask(t, b, "status")
		if _, after, _ := strings.Cut(out, "\n0 clients\n"); after != row.want+"\n" {
			t.Errorf("%s:\n%s", row.purpose, out)
		}
	}
}
