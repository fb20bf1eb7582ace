package cmd

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A speaker is a program that says by sd_notify(3) when it is ready, and knows nothing of zhx.
type speaker struct {
	tools   []string // it needs
	user    string   // it runs as, where the test is root
	command func(dir string) []string
	notice  string            // its STATUS= when it is ready
	ask     string            // on the socket that it has in dir; "" is no socket
	answer  string            // to that
	signs   func(dir string)  // what it waits for before it is ready; nil: nothing
	files   map[string]string // in dir, DIR in them being that
}

// Each is supervised with readiness, its status, a dependant, a death and a stop.
func TestPrograms(t *testing.T) {
	for name, s := range map[string]speaker{
		"redis-server": {
			tools: []string{"redis-server"},
			command: func(dir string) []string {
				return []string{"redis-server", "--port", "0", "--unixsocket", dir + "/sock", "--dir", dir, "--save", "", "--supervised", "systemd", "--daemonize", "no"}
			},
			notice: "Ready to accept connections", ask: "PING\r\n", answer: "+PONG\r\n",
		},
		"mosquitto": {
			tools: []string{"mosquitto"}, user: "mosquitto",
			files:   map[string]string{"conf": "listener 0 DIR/sock\nallow_anonymous true\npersistence false\nlog_dest stderr\n"},
			command: func(dir string) []string { return []string{"mosquitto", "-c", dir + "/conf"} },
			ask:     "\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", answer: "\x20\x02\x00\x00", // CONNECT, CONNACK
		},
		"systemd-notify": {
			tools: []string{"systemd-notify", "sh"},
			files: map[string]string{"script": "trap 'exit 0' TERM\nwhile [ ! -e DIR/go ]; do sleep 0.02; done\nsystemd-notify --ready --status='at your service'\nwhile :; do sleep 0.05; done\n"},
			command: func(dir string) []string {
				return []string{"sh", dir + "/script"}
			},
			notice: "at your service",
			signs:  func(dir string) { os.WriteFile(dir+"/go", nil, 0o644) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, tool := range s.tools {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skip("needs " + tool)
				}
			}
			s.supervise(t)
		})
	}
}

func (s speaker) supervise(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	for name, text := range s.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	keys := ""
	if s.user != "" && os.Geteuid() == 0 { // without root it runs as whoever tests
		give(t, s.user, dir)
		keys = fmt.Sprintf("user = %q\n", s.user)
	}
	// A dependant that starts finds it answering: by its socket, else by nothing to look at.
	found := "true"
	if s.ask != "" {
		found = "test -S " + dir + "/sock"
	}
	p := startZhxd(t, "--config", write(t, "clients.toml", fmt.Sprintf(`
[daemon]
run_dir = %q
tcp = ""
prototype_presence = false
[defaults]
restart_delay = "10ms"
[client.program]
ready = "notify"
command = ['%s']
%s
[client.dependant]
depends_on = ["program"]
command = ["sh", "-c", "%s && echo found; exec sleep 1000"]
`, run+"/run", strings.Join(s.command(dir), "', '"), keys, found)))
	sock := run + "/run/control.sock"
	if s.signs != nil {
		p.await(0, 20*time.Second, `\[program\] started `, `\[dependant\] waits `)
		until(t, "before READY=1 it runs, and is not ready", func() bool {
			c := client(t, sock, "program")
			return c.State == "running" && !c.Ready
		})
		until(t, "before READY=1 its dependant waits for it", func() bool {
			c := client(t, sock, "dependant")
			return c.State == "waiting" && len(c.WaitsFor) == 1
		})
		s.signs(dir)
	}
	from := p.await(0, 30*time.Second, `\[program\] ready `)
	p.await(from, 30*time.Second, `\[dependant\] \| found`) // may come before zhxd says that it has started it
	from = p.await(from, 30*time.Second, `\[dependant\] started `)
	until(t, "it answers", func() bool { return s.answers(dir) })
	c := client(t, sock, "program")
	if notice := ""; c.Notice != nil {
		notice = *c.Notice
		if !strings.Contains(notice, s.notice) {
			t.Errorf("its notice is %q", notice)
		}
	} else if s.notice != "" {
		t.Error("its STATUS= is not shown")
	}
	if !c.Ready || c.PID == nil {
		t.Fatalf("%s, ready %t", c.State, c.Ready)
	}

	// It dies, and is ready again when its successor says so.
	syscall.Kill(*c.PID, syscall.SIGKILL)
	from = p.await(from, 20*time.Second, `\[program\] .*killed by signal`, `\[program\] started `, `\[program\] ready `)
	until(t, "it answers again", func() bool { return s.answers(dir) })

	// It ends by itself when it is stopped, after its dependant.
	ctl(t, sock, 0, "stop", "program")
	p.await(from, 10*time.Second, `\[dependant\] stopped for another `, `\[program\] stopped `)
	c = client(t, sock, "program")
	if e := c.LastExit; c.State != "stopped" || e == nil || e.Reason != "stop" || e.Code == nil || *e.Code != 0 {
		t.Errorf("%s, its last exit %s", c.State, ctl(t, sock, 0, "why", "program"))
	}
	if s.answers(dir) && s.ask != "" {
		t.Error("it answers, stopped")
	}
	// And all comes back.
	ctl(t, sock, 0, "start", "program")
	if c := client(t, sock, "program"); !c.Ready {
		t.Error("started by hand, and not ready")
	}
	until(t, "the dependant is back", func() bool { return client(t, sock, "dependant").Ready })
	until(t, "it answers in the end", func() bool { return s.answers(dir) }) // mosquitto loses a SIGTERM that comes before
}

// answers asks the program whether it is there.
func (s speaker) answers(dir string) bool {
	if s.ask == "" {
		return true
	}
	c, err := net.Dial("unix", dir+"/sock")
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	buf := make([]byte, len(s.answer))
	if _, err = c.Write([]byte(s.ask)); err == nil {
		_, err = c.Read(buf)
	}
	return err == nil && string(buf) == s.answer
}

// give lets a user into a test's folder, which is its own then.
func give(t *testing.T, name, dir string) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Skip("needs the user " + name)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // of all folders of this test
		t.Fatal(err)
	}
}

// A client that feeds by WATCHDOG=1 lives for as long as it does; what sd_watchdog_enabled(3) looks at is in its environment.
func TestWatchdogByNotify(t *testing.T) {
	if _, err := exec.LookPath("systemd-notify"); err != nil {
		t.Skip("needs systemd-notify")
	}
	dir := t.TempDir()
	script := write(t, "script", fmt.Sprintf("systemd-notify --ready\nwhile [ ! -e %s/hang ]; do systemd-notify WATCHDOG=1; sleep 0.2; done\nexec sleep 1000\n", dir))
	p := startZhxd(t, "--config", write(t, "clients.toml", fmt.Sprintf(`
[daemon]
run_dir = %q
tcp = ""
prototype_presence = false
[client.fed]
ready = "notify"
watchdog = "required"
watchdog_timeout = "1s"
command = ["sh", %q]
`, dir+"/run", script)))
	sock := dir + "/run/control.sock"
	p.await(0, 10*time.Second, `\[zhxd\] ready `)
	p.await(0, 10*time.Second, `\[fed\] ready `)
	pid := *client(t, sock, "fed").PID
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	for _, want := range []string{"WATCHDOG_USEC=1000000", fmt.Sprintf("WATCHDOG_PID=%d", pid)} {
		if !strings.Contains("\x00"+string(environ), "\x00"+want+"\x00") {
			t.Errorf("no %s in its environment (%v): %q", want, err, environ)
		}
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		c := client(t, sock, "fed")
		if c.PID == nil || *c.PID != pid || c.Watchdog == nil || !c.Watchdog.Armed {
			t.Fatalf("it feeds, and is %s, watchdog %+v", c.State, c.Watchdog)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := os.WriteFile(dir+"/hang", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hung := time.Now()
	p.await(0, 10*time.Second, `\[fed\] warn: killed by the watchdog `)
	t.Logf("killed %v after it was told to hang", time.Since(hung).Round(time.Millisecond))
	if lives(pid) {
		t.Error("it lives")
	}
	until(t, "status tells why it ended", func() bool {
		last := client(t, sock, "fed").LastExit
		return last != nil && last.Reason == "watchdog"
	})
}
