package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"zhx/daemon/control"
	"zhx/ipc"
)

// boot runs a zhxd in this process on a configuration as it stands, and ends it with the test. It returns when the log has
// the line that says it is ready.
func boot(t *testing.T, text string) string {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "clients.toml")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	log, done := &buffer{}, make(chan error, 1)
	go func() { done <- Run(ctx, Options{Config: conf, Stderr: log}) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	for tick := time.Tick(2 * time.Millisecond); ; <-tick {
		_, ready, ok := strings.Cut(log.String(), "] ready (")
		if line, _, whole := strings.Cut(ready, "\n"); ok && whole {
			return line
		}
		select {
		case err := <-done:
			t.Fatalf("zhxd ended: %v\n%s", err, log)
		default:
		}
	}
}

// The sockets are where the configuration wants them, and nowhere else; who may connect is what their modes and groups say.
func TestSocketKeys(t *testing.T) {
	dir := t.TempDir()
	group := os.Getgid()
	if os.Getuid() == 0 {
		group = 12345 // only root may give a socket a group that is not its own
	}
	line := boot(t, fmt.Sprintf("[daemon]\nrun_dir = %[1]q\nsocket = '%[1]s/data'\nsocket_mode = '0640'\nsocket_group = '%[2]d'\ncontrol = '%[1]s/ctl'\ncontrol_group = '%[2]d'\ntcp = '127.2.3.4:0'\nprototype_presence = false\n",
		dir, group))
	for name, mode := range map[string]os.FileMode{"data": 0o640, "ctl": 0o660} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fi.Mode(); got != mode|os.ModeSocket {
			t.Errorf("%s: mode %v, want %v", name, got, mode)
		}
		if got := fi.Sys().(*syscall.Stat_t).Gid; int(got) != group {
			t.Errorf("%s: group %d, want %d", name, got, group)
		}
	}
	for _, name := range []string{"zhx.sock", "control.sock"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is there too", name)
		}
	}
	c, err := ipc.DialPackets(context.Background(), filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := control.Dial(filepath.Join(dir, "ctl")).Status(context.Background()); err != nil {
		t.Error(err)
	}
	_, address, _ := strings.Cut(line, "tcp=")
	address = address[:strings.IndexAny(address+" ", " )")]
	if !strings.HasPrefix(address, "127.2.3.4:") {
		t.Fatalf("not where tcp says: %s", line)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// run_dir has the lock, the state and, unless other keys say where, the sockets.
func TestRunDirKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	boot(t, fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = ''\nprototype_presence = false\n", dir))
	for _, name := range []string{"zhx.sock", "control.sock", "state"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// The process that the prototype's clients look for is there if, and only if, it is wanted.
func TestPresenceKey(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		t.Run(fmt.Sprint(wanted), func(t *testing.T) {
			boot(t, fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = ''\nprototype_presence = %t\n", t.TempDir(), wanted))
			limit := 20 * time.Second
			if !wanted {
				limit = time.Second // nothing tells of what does not come
			}
			there, tick := false, time.Tick(5*time.Millisecond)
			for late := time.After(limit); !there && late != nil; {
				select {
				case <-tick:
					there = present(os.Getpid())
				case <-late:
					late = nil
				}
			}
			if there != wanted {
				t.Errorf("%s is there: %t", presenceName, there)
			}
		})
	}
}

// present tells whether a descendant of the process has the name that the prototype's clients look for.
func present(pid int) bool {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	parent, named := map[int]int{}, []int{}
	for _, f := range files {
		b, _ := os.ReadFile(f)
		text := string(b)
		open, shut := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		var id, of int
		var state string
		if open < 0 || shut < 0 {
			continue // it has ended
		}
		fmt.Sscan(text[:open], &id)
		fmt.Sscan(text[shut+1:], &state, &of)
		parent[id] = of
		if text[open+1:shut] == presenceName {
			named = append(named, id)
		}
	}
	for _, id := range named {
		for ; id > 1; id = parent[id] {
			if id == pid {
				return true
			}
		}
	}
	return false
}

// Who is silent for interval x misses, or for its own watchdog_timeout, is killed then; from its start, from its first packet or
// never, as watchdog says.
func TestWatchdogKeys(t *testing.T) {
	for _, c := range []struct {
		purpose, common, own, role, want string
	}{
		{"from its start", "interval = '150ms'\nmisses = 2", "watchdog = 'required'", "role-sleeper", "timeout=300ms"},
		{"from its first packet", "interval = '50ms'\nmisses = 5", "", "role-lazy", "timeout=250ms"},
		{"a timeout of its own", "interval = '1h'", "watchdog = 'required'\nwatchdog_timeout = '200ms'", "role-sleeper", "timeout=200ms"},
		{"never", "interval = '50ms'", "watchdog = 'off'", "role-lazy", ""},
		{"not before its first packet", "interval = '50ms'", "", "role-sleeper", ""},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			z := serve(t, fmt.Sprintf("[watchdog]\n%s\n[client.mine]\ncommand = [%q, %q, '']\n%s\n", c.common, exe(t), c.role, c.own))
			if c.want == "" {
				pid := z.pid("mine")
				if c.role == "role-lazy" {
					z.logged("| armed: <nil>")
				}
				<-time.After(time.Second) // nothing tells of what does not come
				if now := z.pid("mine"); pid == 0 || now != pid {
					t.Errorf("pid %d, then %d", pid, now)
				}
				return
			}
			z.logged("] warn: lapse (")
			z.until("it has a successor", func() bool { c := z.client("mine"); return c.Run != nil && *c.Run > 1 })
			if !strings.Contains(z.log.String(), c.want) {
				t.Errorf("another timeout than %s", c.want)
			}
		})
	}
}

// An edit waits for a reload by hand if the configuration says so.
func TestReloadKey(t *testing.T) {
	client := func(name string) string {
		return fmt.Sprintf("reload = 'manual'\n[client.%s]\ncommand = [%q, 'role-sleeper']\n", name, exe(t))
	}
	z := serve(t, client("before"))
	z.edit(client("after"))
	z.until("the edit is seen", func() bool {
		st, err := z.Status(context.Background())
		return err == nil && st.Daemon.ConfigState != "ok"
	})
	<-time.After(removalSettle + 500*time.Millisecond) // nothing tells of what does not come
	if z.pid("before") == 0 || z.client("after") != nil {
		t.Error("the edit was applied by itself")
	}
	if _, err := z.Reload(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	z.until("it is applied", func() bool { return z.client("before") == nil && z.pid("after") != 0 })
}

// instances makes several clients of one, a group has one name for several, and with restart = "all" they fall together.
func TestGroupKeys(t *testing.T) {
	for _, c := range []struct {
		restart  string
		together bool
	}{{"one", false}, {"all", true}} {
		t.Run(c.restart, func(t *testing.T) {
			z := serve(t, fmt.Sprintf("[client.one]\ncommand = [%[1]q, 'role-sleeper']\ninstances = 2\n[client.other]\ncommand = [%[1]q, 'role-sleeper']\n[group.g]\nclients = ['one-1', 'other']\nrestart = %[2]q\n",
				exe(t), c.restart))
			for _, name := range []string{"one-1", "one-2", "other"} {
				if z.pid(name) == 0 {
					t.Fatalf("%s does not run", name)
				}
			}
			out, err := z.Stop(context.Background(), control.Which{Names: []string{"@g"}})
			if err != nil || z.pid("one-1") != 0 || z.pid("other") != 0 || z.pid("one-2") == 0 {
				t.Errorf("stop @g: %+v, %v", out, err)
			}
			if _, err := z.Start(context.Background(), control.Which{Names: []string{"@g"}}); err != nil {
				t.Fatal(err)
			}
			falls, other, beside := z.pid("one-1"), z.pid("other"), z.pid("one-2")
			syscall.Kill(falls, syscall.SIGKILL)
			z.until("it is restarted", func() bool { pid := z.pid("one-1"); return pid != 0 && pid != falls })
			if c.together {
				z.until("the other one is, too", func() bool { pid := z.pid("other"); return pid != 0 && pid != other })
			} else if z.pid("other") != other {
				t.Error("so is the other one")
			}
			if z.pid("one-2") != beside {
				t.Error("so is one that is not in the group")
			}
		})
	}
}
