package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

var topTime = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

// topOf is top as it is a quarter second after zhxd said b, having been polled for 20 s.
func topOf(b control.Status, width, height int) *top {
	m := newTop(context.Background(), &app{out: &sink{Writer: io.Discard}}, nil)
	m.plain = false
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	for i := range 21 {
		for at := range b.Clients {
			b.Clients[at].Messages.Sent += int64(i * (at % 2) * 70)
			b.Clients[at].Messages.Received += int64(i % (at + 1))
		}
		m.Update(polled{st: b, at: topTime.Add(time.Duration(i-20) * time.Second)})
	}
	for i, kind := range []string{"starting", "ready", "late", "lapse", "backoff"} {
		m.events.take(control.Event{At: control.Stamp{Time: topTime.Add(time.Duration(i-9) * time.Second)}, Client: "camera", Kind: kind, Text: "for a \x1b reason"})
	}
	m.events.take(control.Event{At: control.Stamp{Time: topTime}, Kind: "reload", Text: "1 client changed"})
	for i := range 60 {
		m.log.take(control.LogLine{Client: "gps", Text: fmt.Sprintf("fix %d\t卫星 \x1b[2J %s\r", i, strings.Repeat("=", i*3))})
	}
	m.log.take(control.LogLine{Client: "gps", Text: "more", Dropped: 7})
	m.asking = true // the clock runs, and nothing is asked
	m.Update(tick(topTime.Add(250 * time.Millisecond)))
	return m
}

// TestTopLooks compares screens with those in testdata/top, without colours. What a screen is now is in the failure.
func TestTopLooks(t *testing.T) {
	many := board()
	for i := range 40 {
		many.Clients = append(many.Clients, control.ClientStatus{Name: fmt.Sprintf("worker%d", i), State: "running", Ready: true})
	}
	for _, tt := range []struct {
		name          string
		st            control.Status
		width, height int
		keys          string
		do            func(*top)
	}{
		{"80x24", board(), 80, 24, "", nil},
		{"200x50", board(), 200, 50, "j", nil},
		{"ascii", board(), 80, 24, "", func(m *top) { m.plain = true }},
		{"help", board(), 80, 24, "?", nil},
		{"question", board(), 60, 14, "jjjx", nil},
		{"many", many, 80, 24, "jjjjjjjjjjjj", nil},
		{"gone", board(), 80, 24, "", func(m *top) {
			m.Update(polled{err: control.Errorf(control.CodeDown, "zhxctl start", "%w", control.ErrDown)})
			m.Update(tick(topTime.Add(time.Hour)))
		}},
		{"empty", control.Status{Daemon: &control.DaemonStatus{Version: "1", ConfigState: "changed", Config: "c.toml"}}, 50, 12, "jxsp", nil},
	} {
		m := topOf(tt.st, tt.width, tt.height)
		for _, k := range tt.keys {
			log := m.log
			m.Update(key(k))
			m.log = log
		}
		if tt.do != nil {
			tt.do(m)
		}
		got := ""
		for _, line := range m.lines() {
			got += strings.TrimRight(line, " ") + "\n"
		}
		want, err := os.ReadFile("testdata/top/" + tt.name + ".txt")
		if err != nil || got != string(want) {
			t.Errorf("%s: %v\n%s\n%s", tt.name, err, cmp.Diff(string(want), got), got)
		}
	}
}

// TestTopFits: at any size, a screen is as high as it is and no wider.
func TestTopFits(t *testing.T) {
	m := topOf(board(), 80, 24)
	for _, k := range []key{"", "tab", "tab", "?"} {
		m.Update(k)
		for _, width := range []int{1, 2, 3, 10, 33, 60, 79, 100, 130} {
			for height := 1; height < 60; height += 3 {
				m.Update(tea.WindowSizeMsg{Width: width, Height: height})
				lines := m.lines()
				if len(lines) != height {
					t.Fatalf("%dx%d: %d lines", width, height, len(lines))
				}
				for _, line := range lines {
					if lipgloss.Width(line) > width || strings.ContainsAny(line, "\x1b\r\t") {
						t.Fatalf("%dx%d: %q", width, height, line)
					}
				}
			}
		}
	}
}

// TestTopKeys: what keys ask for, and what they do not do before y.
func TestTopKeys(t *testing.T) {
	for _, tt := range []struct{ purpose, typed, selected, question, said string }{
		{"down, by what terminals send", "\x1b[B\x1bOB", "modem", "", ""},
		{"up, and not beyond the end", "jjj\x1b[A\x1b[1;5Akkkk", "gps", "", ""},
		{"not beyond the other end", "jjjjjjjjj", "logger", "", ""},
		{"a key that is not known", "\x1b[15~\x1b[3~z", "gps", "", ""},
		{"start does not ask", "js", "camera", "", "start camera …"},
		{"stop asks", "x", "gps", "stop gps? y/n", ""},
		{"restart asks", "jr", "camera", "restart camera? y/n", ""},
		{"no", "rn", "gps", "", "nothing done"},
		{"an arrow is no yes", "r\x1b[B", "gps", "", "nothing done"},
		{"yes", "ry", "gps", "", "restart gps …"},
		{"pause", "p", "gps", "", "pause gps …"},
		{"a pause ends", "jjjp", "ui", "", "resume ui …"},
		{"nothing to pause", "jjp", "modem", "", "modem: has no watchdog"},
		{"help takes one key", "?x", "gps", "", ""},
	} {
		b := board()
		b.Clients[3].Watchdog.PausedFor = new(60.0)
		m, d := topOf(b, 80, 24), decoder{}
		for _, c := range []byte(tt.typed) {
			if k := d.next(c); k != "" {
				m.Update(k)
			}
		}
		if m.selected != tt.selected || m.question != tt.question || m.said != tt.said {
			t.Errorf("%s: %q %q %q", tt.purpose, m.selected, m.question, m.said)
		}
	}
	for _, typed := range []string{"q", "\x03", "x\x03", "?\x03"} {
		m := topOf(board(), 80, 24)
		var cmd tea.Cmd
		for _, c := range []byte(typed) {
			var d decoder
			_, cmd = m.Update(d.next(c))
		}
		if cmd == nil || cmd() != tea.Quit() {
			t.Errorf("%q does not quit", typed)
		}
	}
}

// TestTopActs: what a key does arrives at zhxd, and what became of it on the screen.
func TestTopActs(t *testing.T) {
	zhxd := control.Dial(serve(t, &canned{status: board()}))
	m := newTop(t.Context(), &app{out: &sink{Writer: io.Discard}}, zhxd)
	m.Update(m.poll())
	for _, tt := range []struct{ keys, selected, want string }{
		{"s", "gps", "gps: started"}, {"s", "ui", "ui: " + accepted}, {"xy", "gps", "gps: stopped"}, {"s", "modem", "start: "},
	} {
		m.selected = tt.selected
		var cmd tea.Cmd
		for _, k := range tt.keys {
			_, cmd = m.Update(key(k))
		}
		if m.Update(cmd()); !strings.Contains(m.said, tt.want) {
			t.Errorf("%s of %s: %q", tt.keys, tt.selected, m.said)
		}
	}
}

// TestTopFollows: a client that is removed is no longer selected, a stream that has ended is read again, a rate survives that zhxd
// counts from 0 again.
func TestTopFollows(t *testing.T) {
	m := topOf(board(), 80, 24)
	was, st := m.log, board()
	was.end(nil)
	m.Update(polled{st: st, at: topTime.Add(time.Second)})
	if m.log == was || m.rate("ui") != "0" {
		t.Error("not read again, or a rate of", m.rate("ui"))
	}
	st.Clients = st.Clients[1:]
	if m.Update(polled{st: st, at: topTime.Add(2 * time.Second)}); m.selected != "camera" || m.rates["gps"] != nil {
		t.Error(m.selected, m.rates)
	}
	for i := range 10 * topKept {
		m.log.take(control.LogLine{Run: uint64(i)})
	}
	if got := m.log.last(topKept); len(got) != topKept || got[topKept-1].Run != 10*topKept-1 || len(m.log.got) > 2*topKept {
		t.Error(len(got), len(m.log.got))
	}
}

// serve has b answer at the path that it returns, until the test ends.
func serve(t *testing.T, b *canned) string {
	path := filepath.Join(t.TempDir(), "c.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	s := &control.Server{Backend: b, Access: control.Access{UID: os.Getuid(), GID: -1}, Version: "9", Log: quiet}
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-done })
	return path
}

// TestTopOnTerminal: it draws, asks the terminal nothing, leaves on q or a signal, and leaves the terminal as it was.
func TestTopOnTerminal(t *testing.T) {
	path := serve(t, &canned{status: board(), lines: []control.LogLine{{Client: "gps", Text: "a fix"}}})
	for _, tt := range []struct {
		purpose string
		env     []string
		leave   func(master *os.File, p *os.Process)
		color   bool
	}{
		{"q", []string{"TERM=xterm-256color", "NO_COLOR="}, func(m *os.File, _ *os.Process) { m.WriteString("q") }, true},
		{"SIGTERM, without colour", []string{"TERM=vt100", "NO_COLOR=yes"}, func(_ *os.File, p *os.Process) { p.Signal(syscall.SIGTERM) }, false},
	} {
		master, slave := pseudoTerminal(t)
		before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		zhxctl := &exec.Cmd{Path: self, Args: []string{"zhxctl", "--control", path, "top"}, Stdin: slave, Stdout: slave, Stderr: slave,
			Env: append(os.Environ(), tt.env...), SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}}
		if err := zhxctl.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(30*time.Second, func() { zhxctl.Process.Kill() })
		out := ""
		for buf, left := make([]byte, 4096), false; ; {
			n, err := master.Read(buf)
			out += string(buf[:n])
			if !left && strings.Contains(out, "a fix") {
				left = true
				tt.leave(master, zhxctl.Process)
			}
			if err != nil || strings.Contains(out, "\x1b[?1049l") { // the screen that was there before
				break
			}
		}
		go io.Copy(io.Discard, master)
		if err := zhxctl.Wait(); err != nil {
			t.Errorf("%s: %v: %q", tt.purpose, err, out)
		}
		kill.Stop()
		after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil || *after != *before {
			t.Errorf("%s: the terminal is left changed: %v", tt.purpose, err)
		}
		for _, bad := range []string{"$p", "\x1b[c", "\x1b[>", "\x1b[?u", "\x1b[=", "\x1b]", "\x1bP", "\x1b[6n", "\x1b[?1000h", "\x1b[?2004h"} {
			if strings.Contains(out, bad) {
				t.Errorf("%s: the terminal gets %q in %q", tt.purpose, bad, out)
			}
		}
		if !strings.Contains(out, "camera") || tt.color != strings.Contains(out, "\x1b[32m") {
			t.Errorf("%s: %q", tt.purpose, out)
		}
		slave.Close()
	}
}

// pseudoTerminal is one of 80x24.
func pseudoTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// TestTopNeedsATerminal: elsewhere it says so, and does not ask zhxd. It needs a zhxd as well, and leaves the screen alone without.
func TestTopNeedsATerminal(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		term, want string
		code       int
	}{
		{"vt100", "zhxctl: zhxd is not running", 7}, {"dumb", "zhxctl: top: needs a terminal", 1}, {"", "zhxctl: top: needs a terminal", 1},
	} {
		_, slave := pseudoTerminal(t)
		var said strings.Builder
		zhxctl := &exec.Cmd{Path: self, Args: []string{"zhxctl", "--control", "/nowhere/c.sock", "top"}, Stdin: slave, Stdout: slave, Stderr: &said,
			Env: append(os.Environ(), "TERM="+tt.term)}
		if err := zhxctl.Run(); zhxctl.ProcessState.ExitCode() != tt.code || !strings.HasPrefix(said.String(), tt.want) {
			t.Errorf("TERM=%s: %v: %s", tt.term, err, said.String())
		}
		slave.Close()
	}
	code, out, errOut := ask(t, nil, "top")
	if code != 1 || out != "" || !strings.HasPrefix(errOut, "zhxctl: top: needs a terminal") || !strings.HasSuffix(errOut, "\n  -> zhxctl status\n") {
		t.Errorf("%d %q %q", code, out, errOut)
	}
}
