package daemon

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"zhx/daemon/control"
)

// What a running client says by sd_notify is heard also after the run directory was removed, by whichever socket it says it.
func TestHeardWithoutRundir(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.a]\ncommand = [%q, \"role-twofold\"]\nstrays = \"ignore\"\n", exe(t)))
	said := func() (how string, n int) {
		if c := z.client("a"); c.Notice != nil {
			fmt.Sscan(*c.Notice, &how, &n)
		}
		return how, n
	}
	z.until("it is heard", func() bool { how, _ := said(); return how != "" })
	pid := z.pid("a")
	for removals := range 2 {
		if err := os.Rename(filepath.Join(z.dir, "run"), filepath.Join(z.dir, fmt.Sprint("away", removals))); err != nil { // all at once
			t.Fatal(err)
		}
		z.until("all is made again", func() bool { return strings.Count(z.log.String(), "socket was removed") >= 2*(removals+1) })
		_, before := said()
		for _, way := range []string{"named", "connected"} {
			z.until("it is heard, "+way, func() bool { how, n := said(); return how == way && n > before+1 })
		}
	}
	if now := z.pid("a"); now != pid {
		t.Errorf("pid %d is %d", pid, now)
	}
}

// A zhxd that is started before the one that runs has made its run directory again does not become a second one there.
func TestOneWithoutRundir(t *testing.T) {
	z := &running{t: t, dir: t.TempDir(), log: &buffer{}}
	z.conf = filepath.Join(z.dir, "clients.toml")
	z.Client = control.Dial(filepath.Join(z.dir, "run", "control.sock"))
	z.edit("")
	zhxd := func() *exec.Cmd {
		cmd := exec.Command(exe(t), "-test.run=^TestKeptReal$")
		cmd.Env = append(os.Environ(), keptConfigEnv+"="+z.conf, "GORACE=atexit_sleep_ms=0")
		return cmd
	}
	first := zhxd()
	first.Stderr = z.log
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer first.Wait()
	defer first.Process.Signal(syscall.SIGTERM)
	z.logged("[zhxd] ready (")
	first.Process.Signal(syscall.SIGSTOP) // it takes its time
	defer first.Process.Signal(syscall.SIGCONT)
	os.RemoveAll(filepath.Join(z.dir, "run"))
	second := zhxd()
	end := time.AfterFunc(10*time.Second, func() { second.Process.Signal(syscall.SIGTERM) })
	out, err := second.CombinedOutput()
	end.Stop()
	if want := fmt.Sprintf("pid %d holds %s/run, which was removed", first.Process.Pid, z.dir); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("want %s; got %v, %s", want, err, out)
	}
	first.Process.Signal(syscall.SIGCONT)
	z.until("the first one goes on", func() bool { st, err := z.Status(t.Context()); return err == nil && st.Daemon.PID == first.Process.Pid })
}

// What is said by sd_notify and is not carried out can be seen in the status.
func TestNotificationsIgnored(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.a]\ncommand = [%q, \"role-babbler\"]\n", exe(t)))
	ignored := func(why string) bool {
		st, err := z.Status(t.Context())
		return err == nil && st.Daemon.Counters["notifications_"+why] == 1
	}
	z.until("nonsense has counted", func() bool { return ignored("malformed") })
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", z.pid("a")))
	if err != nil {
		t.Fatal(err)
	}
	_, socket, _ := strings.Cut(string(environ), "NOTIFY_SOCKET=")
	socket, _, _ = strings.Cut(socket, "\x00")
	c, err := net.Dial("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("STATUS=of a stranger")); err != nil {
		t.Fatal(err)
	}
	z.until("a stranger has counted", func() bool { return ignored("refused") })
}
