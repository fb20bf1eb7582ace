package daemon

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"zhx/daemon/control"
	"zhx/ipc"
)

// The test binary is its own client: roles are chosen by the first argument.
func TestMain(m *testing.M) {
	Stage()
	if code, played := Presence(); played {
		os.Exit(code)
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "role-alone":
			roleAlone(os.Args[2])
		case "role-talker":
			roleTalker()
		case "role-lazy":
			roleLazy(os.Args[2])
		case "role-alias":
			roleAlias(os.Args[2])
		case "role-sleeper":
			for {
				unix.Pause()
			}
		case "role-patient": // says that its watchdog is to wait a minute
			sdaemon.SdNotify(false, "WATCHDOG_USEC=60000000\nWATCHDOG=1")
			for {
				unix.Pause()
			}
		case "role-twofold": // speaks through a socket that is connected, and by the path
			connected, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
			for n := 0; err == nil; n++ {
				_, err = fmt.Fprintf(connected, "STATUS=connected %d", n)
				sdaemon.SdNotify(false, fmt.Sprintf("STATUS=named %d", n))
				time.Sleep(20 * time.Millisecond)
			}
			os.Exit(1)
		case "role-babbler":
			sdaemon.SdNotify(false, "WATCHDOG=what")
			select {}
		case "role-spin":
			sdaemon.SdNotify(false, "WATCHDOG=1")
			for n := 0; ; n++ {
			}
		case "role-slow":
			sdaemon.SdNotify(false, "EXTEND_TIMEOUT_USEC=1500000")
			select {}
		case "role-warned":
			warned := make(chan os.Signal, 1)
			signal.Notify(warned, syscall.SIGUSR1)
			sdaemon.SdNotify(false, "WATCHDOG=1")
			fmt.Println(<-warned)
			select {}
		case "role-loop":
			roleLoop()
		case "role-door":
			roleDoor(os.Args[2])
		case "role-farewell":
			roleFarewell(os.Args[2])
		}
	}
	os.Exit(m.Run())
}

// roleAlone takes an exclusive lock at its first instruction, and reports when somebody else has it: two runs of one
// client lived at once. Then it talks.
func roleAlone(lock string) {
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		report, _ := os.OpenFile(lock+".held", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		fmt.Fprintf(report, "pid %d: %v\n", os.Getpid(), err)
	}
	roleTalker()
}

// roleTalker registers, arms its watchdog, feeds it ten times a second, and sends itself and a partner messages.
func roleTalker() {
	fmt.Println("begins")
	c, err := ipc.DialPackets(context.Background(), os.Getenv("ZHX_TEST_ADDRESS")) // "" is $ZHX_SOCKET
	if err == nil {
		err = c.Register("")
	}
	if err == nil {
		err = c.Arm()
	}
	go func() {
		for err == nil {
			if _, err := c.Receive(); err != nil {
				os.Exit(1)
			}
		}
	}()
	for range time.Tick(100 * time.Millisecond) {
		if err == nil {
			err = c.Feed()
		}
		if err == nil {
			err = c.Send(os.Getenv("ZHX_NAME"), "to myself")
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// running is a zhxd in this process, to be looked at from inside and out.
type running struct {
	*control.Client
	t    *testing.T
	conf string // path of its clients.toml
	dir  string
	stop func()
	done chan error
	log  *buffer
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serve runs a zhxd on a configuration ([daemon] is added), and ends it with the test.
func serve(t *testing.T, clients string) *running { return serveOn(t, clients, Options{}) }

// serveOn is serve on hardware of o's.
func serveOn(t *testing.T, clients string, o Options) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{t: t, dir: dir, conf: filepath.Join(dir, "clients.toml"), done: make(chan error, 1), log: &buffer{}}
	r.edit(clients)
	r.Client = control.Dial(filepath.Join(dir, "run", "control.sock"))
	ctx, cancel := context.WithCancel(context.Background())
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-r.done; err != nil {
				t.Error("zhxd ended with: ", err)
			}
		})
	}
	o.Config, o.Stderr = r.conf, r.log
	go func() { r.done <- Run(ctx, o) }()
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("the log of zhxd:\n%s", r.log)
		}
	})
	r.until("zhxd is ready", func() bool { return strings.Contains(r.log.String(), "] ready (") })
	return r
}

// edit writes the configuration as a whole, the way a careful editor does.
func (r *running) edit(clients string) {
	r.t.Helper()
	text := fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \":0\"\nprototype_presence = false\n%s", filepath.Join(r.dir, "run"), clients)
	if err := os.WriteFile(r.conf+".new", []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(r.conf+".new", r.conf); err != nil {
		r.t.Fatal(err)
	}
}

// until waits for a condition of the outside world (a log line, another process) that no channel tells of.
func (r *running) until(what string, holds func() bool) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(20 * time.Second); !holds(); {
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// client is the status of one client, nil if there is none of that name.
func (r *running) client(name string) *control.ClientStatus {
	r.t.Helper()
	st, err := r.Status(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range st.Clients {
		if st.Clients[i].Name == name {
			return &st.Clients[i]
		}
	}
	return nil
}

// pid is the pid of a client that runs, 0 otherwise.
func (r *running) pid(name string) int {
	r.t.Helper()
	if c := r.client(name); c != nil && c.PID != nil && c.State == "running" {
		return *c.PID
	}
	return 0
}

// logged waits for a text in the log.
func (r *running) logged(text string) {
	r.t.Helper()
	r.until("in the log: "+text, func() bool { return strings.Contains(r.log.String(), text) })
}

// exe is this test binary.
func exe(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
