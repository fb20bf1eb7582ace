package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

// terminal is a pseudo-terminal of some columns (0: it does not say), and what arrives on its screen once it is closed.
func terminal(t *testing.T, columns uint16) (screen *os.File, shown func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: 24})
	}
	if err == nil {
		screen, err = os.OpenFile(filepath.Join("/dev/pts", fmt.Sprint(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with EIO
		got <- string(b)
	}()
	return screen, func() string { screen.Close(); return <-got }
}

// TestProgress: on a terminal, and after a second, one line says what is waited for; it is gone at the end.
func TestProgress(t *testing.T) {
	for _, tt := range []struct {
		purpose string
		columns uint16
		args    string
		want    string
	}{
		{"of the clients named", 80, "wait camera gps", `wait TIME: camera is backoff, tried again in 24s`},
		{"of a group, all of which is well", 80, "wait gps", `wait TIME`},
		{"cut to the terminal", 30, "wait camera", `wait TIME: camera is backo.*…`},
		{"80 columns where it does not say", 0, "wait camera wide", `wait TIME: camera is backoff, tried again in 24s; wide is waiting for x+…`},
	} {
		screen, shown := terminal(t, tt.columns)
		b := &canned{status: board(), hold: time.Minute, looked: make(chan struct{}, 1)} // who has looked, shows it before the end
		b.status.Clients = append(b.status.Clients, control.ClientStatus{Name: "wide", State: "waiting", WaitsFor: []string{strings.Repeat("x", 50)}})
		askOn(t, b, io.Discard, screen, strings.Fields(tt.args)...)
		got := shown()
		most := cmp.Or(int(tt.columns), 80) - 1
		want := `^(\r` + strings.Replace(tt.want, "TIME", `[1-9](\.\d)?s`, 1) + ` *)+\r +\r$` // it is shown more than once on a machine that is busy
		for line := range strings.SplitSeq(got, "\r") {
			if columns(line) > most || !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("%s:\ngot  %q\nwant %q", tt.purpose, got, want)
			}
		}
	}
}

// TestNoProgress: what is not a terminal, or does not last, shows nothing.
func TestNoProgress(t *testing.T) {
	screen, shown := terminal(t, 80)
	askOn(t, &canned{status: board()}, io.Discard, screen, "wait", "camera")
	if got := strings.Trim(shown(), "\r"); got != "" {
		t.Errorf("at once: %q", got)
	}
	var errOut bytes.Buffer
	askOn(t, &canned{status: board(), hold: 1500 * time.Millisecond}, io.Discard, &errOut, "wait", "camera")
	if errOut.Len() > 0 {
		t.Errorf("no terminal: %q", &errOut)
	}
}

func TestActing(t *testing.T) {
	for _, tt := range []struct {
		purpose  string
		b        canned
		args     string
		code     int
		out, err string
	}{
		{"wait, by default until they are ready", canned{}, "wait gps ui", 0, "gps: ready\nui: ready\n", ""},
		{"wait for something else", canned{}, "wait --for stopped gps", 0, "gps: stopped\n", ""},
		{"what cannot come", canned{err: control.Errorf(control.CodeStopped, "zhxctl why gps", "gps: will not be ready: failed")}, "wait gps", 3, "",
			"zhxctl: gps: will not be ready: failed\n  -> zhxctl why gps\n"},
		{"what does not come in time is named", canned{status: board(), hold: time.Minute}, "--timeout 50ms wait camera", 5, "",
			"zhxctl: wait: not within 50ms: camera is backoff, tried again in 24s; what was begun goes on\n  -> zhxctl why camera\n"},
		{"start and wait: also for one whose first run failed", canned{}, "start --wait gps", 0, "gps: ready\n", ""},
		{"not for one that is only accepted, or not to be had", canned{}, "restart --wait ui modem gps", 5,
			"ui: accepted, it concerns the caller's own process tree\ngps: ready\n", "zhxctl: modem: is not up yet\n  -> zhxctl logs modem\n"},
		{"start --all", canned{}, "start --all", 0, "", ""},
		{"kill", canned{}, "kill gps", 0, "{{[gps] false} }: signalled\n", ""},
		{"kill by signal", canned{}, "kill -s HUP @sensors", 0, "{{[@sensors] false} HUP}: signalled\n", ""},
		{"reset", canned{}, "reset --all", 0, "{[] true}: reset\n", ""},
		{"as JSON", canned{}, "reset --json gps", 0,
			"{\n  \"v\": 1,\n  \"clients\": [\n    {\n      \"name\": \"{[gps] false}\",\n      \"pid\": null,\n      \"text\": \"reset\",\n      \"error\": null\n    }\n  ]\n}\n", ""},
		{"of a run, and of what comes", canned{}, "logs -f --previous gps", 2, "",
			"zhxctl: logs: nothing comes of a run that has ended: either -f or --previous\n  -> zhxctl logs --previous\n"},
		{"logs with times, one a line of the child's", canned{lines: []control.LogLine{{Client: "gps", Text: "x", Cut: true}, {Client: "gps", Text: "y"}, {Client: "gps"}}},
			"logs -t gps", 0, "0001-01-01T00:00:00.000Z xy\n0001-01-01T00:00:00.000Z \n", ""},
		{"and names", canned{lines: []control.LogLine{{Client: "gps", Text: "x"}}}, "logs -t", 0, "0001-01-01T00:00:00.000Z gps | x\n", ""},
	} {
		code, out, errOut := ask(t, &tt.b, strings.Fields(tt.args)...)
		if code != tt.code || out != tt.out || errOut != tt.err {
			t.Errorf("%s:\ngot  %d\n%s%s\nwant %d\n%s%s", tt.purpose, code, out, errOut, tt.code, tt.out, tt.err)
		}
	}
	for args, want := range map[string]control.LogQuery{
		"logs --since 10m":      {N: -1, Since: "10m"},
		"logs --since 10m -n 3": {N: 3, Since: "10m"},
		"logs --previous":       {N: 50, Previous: true},
	} {
		var b canned
		if ask(t, &b, strings.Fields(args)...); fmt.Sprint(b.asked) != fmt.Sprint(want) {
			t.Errorf("%s asked for %+v", args, b.asked)
		}
	}
}

// TestTablesFit: no table is wider than the terminal, whatever clients are called and say, in whatever letters; and the name and
// state of each are there.
func TestTablesFit(t *testing.T) {
	b := &canned{status: board()}
	for i := range b.status.Clients {
		b.status.Clients[i].Name += strings.Repeat("-and-more", i*2)
		b.status.Clients[i].LastExit = &control.ExitStatus{Reason: "signal", Signal: new("SIGABRT"), Said: new(strings.Repeat("错误: 没有找到设备 ", 9))}
	}
	b.status.Peers[0].Names = []string{"gps", strings.Repeat("x", 64)}
	b.status.Clients[0].TalksTo = strings.Fields(strings.Repeat("one-and-more another ", 20))
	b.status.Clients[0].Watchdog.Hint = new(strings.Repeat("what may be done ", 9))
	for _, columns := range []uint16{40, 60, 80, 132} {
		for _, verb := range []string{"status", "watchdog", "peers", "graph"} {
			if verb == "status" && columns < 60 {
				continue // its notes have whole names
			}
			screen, shown := terminal(t, columns)
			askOn(t, b, screen, io.Discard, verb)
			got := strings.ReplaceAll(shown(), "\r", "")
			for line := range strings.SplitSeq(got, "\n") {
				if lipgloss.Width(line) > int(columns) && !strings.Contains(line, "->") { // what is to be typed stays whole
					t.Errorf("%s on %d columns: %d: %s", verb, columns, lipgloss.Width(line), line)
				}
			}
			if verb == "status" && !regexp.MustCompile(`camera-\S+ +\S*backoff`).MatchString(got) {
				t.Errorf("on %d columns:\n%s", columns, got)
			}
		}
	}
}
