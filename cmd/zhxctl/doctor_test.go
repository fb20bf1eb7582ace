package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"zhx/daemon/control"
)

// What stands in the way without zhxd: each is told by name, with what to do.
func TestDoctor(t *testing.T) {
	listen := func(network, addr string) (port int) {
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln.Addr().(*net.TCPAddr).Port
	}
	device := filepath.Join(t.TempDir(), "watchdog")
	held, err := os.Create(device)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	self := fmt.Sprintf("%s (pid %d)", comm(t), os.Getpid())
	for _, tt := range []struct {
		purpose, toml, want string
		code                int
	}{
		{"the port is held", fmt.Sprintf("[daemon]\ntcp = \"127.0.0.1:%d\"", listen("tcp4", "127.0.0.1:0")), "is held by " + self + "\n  -> end it; else [daemon] tcp", 1},
		{"by who listens on all addresses", fmt.Sprintf("[daemon]\ntcp = \"127.0.0.1:%d\"", listen("tcp4", "0.0.0.0:0")), "is held by " + self, 1},
		{"and of both protocols", fmt.Sprintf("[daemon]\ntcp = \"127.0.0.1:%d\"", listen("tcp", "[::]:0")), "is held by " + self, 1},
		{"another address is no matter", fmt.Sprintf("[daemon]\ntcp = \"127.0.0.9:%d\"", listen("tcp4", "127.0.0.8:0")), "ok       port ", 0},
		{"a device that somebody feeds", "[watchdog]\ndevice = \"" + device + "\"", device + " is held by " + self, 1},
		{"a device that is not there", "[watchdog]\ndevice = \"" + device + "9\"", "problem  hardware watchdog: " + device + "9: no such file", 1},
		{"a run_dir that cannot be", "[daemon]\nrun_dir = \"/dev/null/x\"", "problem  run_dir: /dev/null/x cannot be used: ", 1},
		{"an invalid file", "[daemon]\nrundir = 1", `unknown key "rundir"`, 1},
		{"a program that is not there is a warning", "[client.x]\ncommand = [\"/nowhere\"]", "is valid, with 1 warning\n  -> zhxctl check ", 0},
		{"a program that this test is", "[client.x]\ncommand = [\"" + os.Args[0] + "\"]", "client x: " + os.Args[0] + " ", -1},
	} {
		text := tt.toml
		if !strings.Contains(text, "run_dir") {
			text = strings.Replace("[daemon]\nrun_dir = \""+t.TempDir()+"\"\n"+text, "\n[daemon]", "", 1)
		}
		if !strings.Contains(text, "tcp") {
			text = strings.Replace(text, "[daemon]", "[daemon]\ntcp = \"\"", 1)
		}
		file := filepath.Join(t.TempDir(), "clients.toml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		code, out, errOut := ask(t, nil, "--config", file, "--control", file+".sock", "doctor")
		if tt.code >= 0 && code != tt.code || !strings.Contains(out, tt.want) || errOut != "" {
			t.Errorf("%s: exit %d, want %d, %q in\n%s%s", tt.purpose, code, tt.code, tt.want, out, errOut)
		}
	}
}

func comm(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// With zhxd: what it knows.
func TestDoctorOfZhxd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients.toml")
	if err := os.WriteFile(file, []byte("[daemon]\ntcp = \"\"\nrun_dir = \"/tmp/x\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := &canned{status: board()}
	d := b.status.Daemon
	d.PID, d.Config, d.ConfigState = os.Getpid(), file, "changed"
	d.Counters = map[string]int64{"messages_dropped": 3, "connections": 9}
	d.Watchdog = &control.BoardStatus{SafeMode: true}
	b.status.Clients[0].PID = new(os.Getpid())
	code, out, errOut := ask(t, b, "doctor")
	for _, want := range []string{
		fmt.Sprintf("ok       zhxd: 0.4.1 runs, pid %d\n", os.Getpid()),
		"problem  config: the file is changed; what was loaded before is in force\n  -> zhxctl check, then zhxctl reload\n",
		"problem  safe mode: ",
		"problem  client camera: exit 127 8s ago, next start in 24s",
		"\n  -> zhxctl why camera\n",
		"note     losses: messages_dropped 3\n",
	} {
		if !strings.Contains(out, want) || code != 1 || errOut != "" {
			t.Errorf("exit %d, %q is not in\n%s%s", code, want, out, errOut)
		}
	}
	b.err = control.Errorf(control.CodeForbidden, "sudo", "not for you")
	if code, out, _ := ask(t, nil, "--control", file, "doctor"); code != 1 || !strings.Contains(out, "problem  zhxd: "+file+" is not a socket\n") {
		t.Errorf("no answer: exit %d\n%s", code, out)
	}
}

// Who runs a client's program: the name of an interpreter, or of busybox, is not enough.
func TestRival(t *testing.T) {
	exe, err := os.Stat("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		purpose, command, path, argv string
		managed, want                bool
	}{
		{"a program with other arguments", "/bin/prog -a", "/bin/prog", "prog -b", false, true},
		{"one that a zhxd runs", "/bin/prog", "/bin/prog", "/bin/prog", true, false},
		{"another applet", "/bin/prog", "/bin/prog", "other", false, false},
		{"an interpreter of something else", "python3 /a.py", "/bin/python3", "python3 /b.py", false, false},
		{"an interpreter of the same", "python3 /a.py", "/bin/python3", "/bin/python3 /a.py", false, true},
		{"a script", "/a.sh -x", "/a.sh", "/bin/sh /a.sh", false, true},
		{"who edits it", "/a.sh", "/a.sh", "vi -n -b /a.sh", false, false},
	} {
		p := process{argv: strings.Fields(tt.argv), exe: exe, managed: tt.managed}
		if got := (&doctor{}).isRival(p, strings.Fields(tt.command), tt.path, exe); got != tt.want {
			t.Errorf("%s: %v", tt.purpose, got)
		}
	}
}
