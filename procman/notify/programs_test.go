package notify

// Real programs, unmodified, against a real socket: how each is run for it to say READY=1.

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody is the user of the programs where the tests are root: one who may not do what root may.
const nobody = 65534

func TestPrograms(t *testing.T) {
	// DIR in an argument or file is a directory of the program's own.
	tests := []struct {
		program string
		args    []string
		conf    string   // DIR/conf
		said    []string // what it says until it is ready, and at the end
		socket  string   // that it answers hello at, when it is ready; then it gets SIGTERM, and exits with 0; "": it ends by itself
		hello   string
	}{
		{
			program: "systemd-notify", // waits for its barrier to be answered (since 246)
			args:    []string{"--ready", "--status=half way", "--pid=1"},
			said:    []string{"READY MAINPID STATUS=half way", "BARRIER"},
		},
		{
			program: "redis-server", // without "supervised systemd" it says nothing
			args: []string{"--port", "0", "--unixsocket", "DIR/redis.sock", "--dir", "DIR", "--save", "",
				"--supervised", "systemd", "--daemonize", "no"},
			said:   []string{"STATUS=Redis is loading...", "STATUS=Ready to accept connections", "READY", "STOPPING"},
			socket: "DIR/redis.sock",
			hello:  "PING\r\n",
		},
		{
			// As root it becomes mosquitto before it speaks, and then its uid is not the run's. A SIGTERM that comes
			// between READY=1 and its loop is lost (2.0.11), and so it gets none before it has answered.
			program: "mosquitto",
			args:    []string{"-c", "DIR/conf"},
			conf:    "listener 0 DIR/mosquitto.sock\nallow_anonymous true\npersistence false\nlog_dest stderr\n",
			said:    []string{"READY"},
			socket:  "DIR/mosquitto.sock",
			hello:   "\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", // CONNECT
		},
		{
			program: "python3",
			args: []string{"-c", `
import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
s.send(b"STATUS=snake\n")
r, w = os.pipe()
socket.send_fds(s, [b"BARRIER=1"], [w])
os.close(w)
assert os.read(r, 1) == b""
s.send(b"READY=1\nFOO=bar")
`},
			said: []string{"STATUS=snake", "BARRIER", "READY"},
		},
	}
	for _, test := range tests {
		t.Run(test.program, func(t *testing.T) {
			if _, err := exec.LookPath(test.program); err != nil {
				t.Skipf("no program %s", test.program)
			}
			dir := directory(t)
			expand := func(s string) string { return strings.ReplaceAll(s, "DIR", dir) }
			if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(expand(test.conf)), 0o644); err != nil {
				t.Fatal(err)
			}
			var args []string
			for _, arg := range test.args {
				args = append(args, expand(arg))
			}
			cmd := exec.Command(test.program, args...)
			uid := os.Getuid()
			if uid == 0 && test.program != "python3" { // which may be where only root gets to
				uid = nobody
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
				if err := os.Chown(dir, nobody, nobody); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Listen(filepath.Join(dir, "notify"), uid)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "NOTIFY_SOCKET=" + s.Path()}
			run(t, s, cmd, uid, test.said, func() error {
				if test.socket == "" {
					return nil
				}
				if err := greet(expand(test.socket), test.hello); err != nil {
					return err
				}
				return cmd.Process.Signal(syscall.SIGTERM)
			})
		})
	}
}

func run(t *testing.T, s *Socket, cmd *exec.Cmd, uid int, want []string, ready func() error) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	lost := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer lost.Stop()
	served := make(chan struct{})
	var said []string
	go func() {
		defer close(served)
		s.Serve(func(m Message) {
			said = append(said, words(m))
			if m.UID != uid || m.PID != cmd.Process.Pid || m.Malformed != nil {
				t.Errorf("%q from pid %d of uid %d, want %d of %d", words(m), m.PID, m.UID, cmd.Process.Pid, uid)
			}
			if m.Ready {
				if err := ready(); err != nil {
					t.Error(err)
				}
			}
		})
	}()
	err := <-ended
	s.Close()
	<-served
	if err != nil {
		t.Errorf("%v: %v\n%s", cmd.Args, err, out.String())
	}
	if got := strings.Join(said, ", "); got != strings.Join(want, ", ") {
		t.Errorf("%v said %q, want %q\n%s", cmd.Args, got, want, out.String())
	}
}

// greet waits for the first byte of an answer.
func greet(path, hello string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = c.Write([]byte(hello)); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

// words is what m says, as a test writes it.
func words(m Message) string {
	var w []string
	for _, x := range []struct {
		said bool
		word string
	}{
		{m.Ready, "READY"}, {m.Stopping, "STOPPING"}, {m.Reloading, "RELOADING"}, {m.Barrier, "BARRIER"},
		{m.MainPID > 0, "MAINPID"}, {m.Watchdog, "WATCHDOG"}, {m.Trigger, "TRIGGER"}, {m.Malformed != nil, text(m.Malformed)},
	} {
		if x.said {
			w = append(w, x.word)
		}
	}
	if m.Status != nil {
		w = append(w, "STATUS="+*m.Status)
	}
	return strings.Join(w, " ")
}

// A program that waits for its barrier waits as long as handle takes, and is not harmed when handle refuses.
func TestSystemdNotifyWaits(t *testing.T) {
	if _, err := exec.LookPath("systemd-notify"); err != nil {
		t.Skip("no program systemd-notify")
	}
	s := open(t)
	step := make(chan Message)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(func(m Message) {
			step <- m
			<-step
		})
	}()
	cmd := exec.Command("systemd-notify", "--ready")
	cmd.Env = []string{"NOTIFY_SOCKET=" + s.Path()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if m := receive(t, step); !m.Ready {
		t.Errorf("%+v", m)
	}
	step <- Message{}
	if m := receive(t, step); !m.Barrier {
		t.Errorf("%+v", m)
	}
	select {
	case err := <-ended:
		t.Errorf("did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	step <- Message{}
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
	s.Close()
	<-done
}
