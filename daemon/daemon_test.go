package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"zhx/daemon/config"
	"zhx/daemon/control"
	"zhx/ipc"
	"zhx/ipc/wire"
	"zhx/procman/proc"
	"zhx/watchdog"
)

// A run's own timeout, WATCHDOG_USEC, holds through edits of anything else.
func TestOwnTimeout(t *testing.T) {
	patient := fmt.Sprintf("[client.patient]\ncommand = [%q, \"role-patient\"]\nwatchdog_timeout = \"5s\"\n", exe(t))
	z := serve(t, patient)
	remaining := func() float64 {
		if left := z.client("patient").Watchdog.Remaining; left != nil {
			return float64(*left)
		}
		return 0
	}
	z.until("it has spoken", func() bool { return remaining() > 30 })
	z.edit(patient + "stable_after = \"1s\"\n")
	z.logged("action=live")
	if left := remaining(); left < 30 {
		t.Errorf("after an edit of another key: %v s remain", left)
	}
	if is := z.client("patient").Watchdog.Timeout; is != 60 {
		t.Errorf("status shows a timeout of %v s", is)
	}
	z.edit(strings.Replace(patient, "5s", "7s", 1))
	z.until("an edit of the timeout holds", func() bool { left := remaining(); return left > 0 && left <= 7 })
}

// An edit of the file applies as a difference, and an invalid one not at all.
func TestHotReload(t *testing.T) {
	talker := fmt.Sprintf("command = [%q, \"role-talker\"]\n", exe(t))
	keep, change, gone := "[client.keep]\n"+talker, "[client.change]\n"+talker, "[client.gone]\n"+talker
	z := serve(t, keep+change+gone)
	for _, name := range []string{"keep", "change", "gone"} {
		z.until(name+" is connected", func() bool { return z.client(name).Connected })
	}
	kept, changed, removed := z.pid("keep"), z.pid("change"), z.pid("gone")

	z.edit(keep + change + "environment = { A = \"1\" }\n" + gone + "[client.fresh]\n" + talker)
	z.until("the changed one is replaced", func() bool { p := z.pid("change"); return p != 0 && p != changed })
	z.until("the new one runs", func() bool { return z.client("fresh") != nil && z.pid("fresh") != 0 })
	if z.pid("keep") != kept || z.pid("gone") != removed {
		t.Error("an untouched client was restarted")
	}

	z.edit(keep + "watchdog_timeout = \"7s\"\nrestart = \"on-failure\"\n" + change + "environment = { A = \"1\" }\n" + gone + "[client.fresh]\n" + talker)
	z.until("the new timeout is in force", func() bool { return z.client("keep").Watchdog.Timeout == 7 })
	if left := z.client("keep").Watchdog.Remaining; left == nil || *left > 7 {
		t.Errorf("the armed dog of the running client did not follow: remaining %v", left)
	}
	if z.pid("keep") != kept {
		t.Error("a change of watchdog_timeout and restart cost the process")
	}

	z.edit("[client.keep]\ncommnad = [\"/bin/true\"]\n")
	z.logged("configuration invalid")
	st, err := z.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if st.Daemon.ConfigState != "invalid" || st.Daemon.ConfigError == nil || !strings.Contains(*st.Daemon.ConfigError, `did you mean "command"`) {
		t.Errorf("status of an invalid file: %s %v", st.Daemon.ConfigState, st.Daemon.ConfigError)
	}
	if z.pid("keep") != kept || z.pid("gone") != removed {
		t.Error("an invalid file changed something")
	}

	began := time.Now()
	z.edit(keep)
	z.until("the removed ones are gone", func() bool { return z.client("gone") == nil && z.client("change") == nil })
	if d := time.Since(began); d < 2*time.Second {
		t.Errorf("clients were removed %v after the edit, before the file stood still for 2s", d)
	}
	z.until("the removed process is gone", func() bool { return syscall.Kill(removed, 0) == syscall.ESRCH })
	if z.pid("keep") != kept {
		t.Error("an untouched client was restarted")
	}
}

// A reload by hand reads the file at once, even a removal, and says what it did.
func TestReloadByHand(t *testing.T) {
	talker := fmt.Sprintf("command = [%q, \"role-talker\"]\n", exe(t))
	z := serve(t, "[client.a]\n"+talker+"[client.b]\n"+talker)
	z.edit("[client.a]\n" + talker)
	res, err := z.Reload(context.Background(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Plan) != 2 || res.Plan[0].Name != "b" || res.Plan[0].Action != "stop" || res.Plan[1].Action != "keep" {
		t.Errorf("plan: %+v", res.Plan)
	}
	z.edit("[client.a]\ncommand = \"no list\"\n")
	_, err = z.Reload(context.Background(), false)
	var e *control.Error
	if !errors.As(err, &e) || e.Code != control.CodeUsage || len(e.Problems) == 0 || e.Problems[0].Line == 0 {
		t.Errorf("reload of an invalid file: %#v", err)
	}
}

// A client that does not feed is killed with its whole tree, and comes back; its dog is that of its run.
func TestLapseKillsTheTree(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "grandchild")
	z := serve(t, fmt.Sprintf("[client.lazy]\ncommand = [%q, \"role-lazy\", %q]\nwatchdog_timeout = \"300ms\"\n", exe(t), pids))
	z.logged("[lazy] warn: lapse (")
	z.until("it runs again", func() bool { c := z.client("lazy"); return c.State == "running" && *c.Run >= 2 })
	c := z.client("lazy")
	if c.LastExit == nil || c.LastExit.Reason != "watchdog" || c.Watchdog.Lapses == 0 {
		t.Errorf("last exit %+v, watchdog %+v", c.LastExit, c.Watchdog)
	}
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	var first int
	fmt.Sscan(string(b), &first)
	z.until("the first run's grandchild is dead", func() bool { return syscall.Kill(first, 0) == syscall.ESRCH })
}

// roleLazy arms and never feeds; with a path in pids, a grandchild in a session of its own
// outlives it, if nobody kills it.
func roleLazy(pids string) {
	sleeper := exec.Command("/proc/self/exe", "role-sleeper")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c, err := ipc.DialPackets(context.Background(), "")
	if err == nil && pids != "" {
		err = sleeper.Start()
	}
	if err == nil && pids != "" {
		f, _ := os.OpenFile(pids, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		fmt.Fprintln(f, sleeper.Process.Pid)
	}
	if err == nil {
		err = c.Arm()
	}
	fmt.Println("armed:", err)
	for {
		unix.Pause()
	}
}

// A client's name belongs to its run: a stranger is refused on both transports, told once, and harms nobody.
func TestNameIsProved(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.mine]\ncommand = [%q, \"role-talker\"]\n", exe(t)))
	z.until("the client has its name", func() bool { return z.client("mine").Connected })
	for _, address := range []string{filepath.Join(z.dir, "run", "zhx.sock"), "tcp:" + z.tcp()} {
		c, err := ipc.DialPackets(context.Background(), address)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Register("mine"); err != nil {
			t.Fatal(err)
		}
		if err := c.Send("mine", "from a stranger"); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	z.logged("name not proved")
	z.until("both are counted", func() bool {
		st, err := z.Status(context.Background())
		return err == nil && st.Daemon.Counters["packets_refused"] >= 4
	})
	if n := strings.Count(z.log.String(), "name not proved"); n != 1 {
		t.Errorf("the refusal was logged %d times", n)
	}
	if c := z.client("mine"); !c.Connected || c.Messages.Received > c.Messages.Sent { // one of its own may be on its way
		t.Errorf("the client lost its name, or got the stranger's message: %+v", c)
	}
}

// A client may use TCP, as the prototype's do: its socket is found among its processes.
func TestNameIsProvedOverTCP(t *testing.T) {
	z := serve(t, "")
	z.edit(fmt.Sprintf("[client.mine]\ncommand = [%q, \"role-talker\"]\nenvironment = { ZHX_TEST_ADDRESS = \"tcp:%s\" }\n", exe(t), z.tcp()))
	z.until("the client has its name", func() bool { c := z.client("mine"); return c != nil && c.Connected && c.Watchdog.Armed })
	st, err := z.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Peers) != 1 || st.Peers[0].Transport != "tcp" || st.Peers[0].Proof != "socket" || !st.Peers[0].Managed {
		t.Errorf("peers: %+v", st.Peers)
	}
}

// A client stopped by hand leaves its name to processes of its user (gdb), until it is started again.
func TestStoppedClientLeavesItsName(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.mine]\ncommand = [%q, \"role-talker\"]\n", exe(t)))
	one := control.Which{Names: []string{"mine"}}
	if _, err := z.Stop(context.Background(), one); err != nil {
		t.Fatal(err)
	}
	c, err := ipc.DialPackets(context.Background(), filepath.Join(z.dir, "run", "zhx.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Register("mine"); err != nil {
		t.Fatal(err)
	}
	z.until("the debugged one has the name", func() bool { return z.client("mine").Connected })
	if err := z.Send(context.Background(), control.SendRequest{Target: "mine", Text: "hello"}); err != nil {
		t.Fatal(err)
	}
	if p, err := c.Receive(); err != nil || !strings.HasPrefix(string(p.Msg), "hello\x00") || p.Source != "zhxctl" {
		t.Errorf("received %v %v", p, err)
	}
	z.edit(fmt.Sprintf("[client.mine]\ncommand = [%q, \"role-sleeper\"]\n", exe(t))) // so it does not register itself
	if _, err := z.Reload(context.Background(), false); err != nil {
		t.Fatal(err)
	}
	if !z.client("mine").Connected {
		t.Error("the debugged one lost the name by a reload")
	}
	if _, err := z.Start(context.Background(), one); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(); err == nil {
		t.Error("the older connection was not closed when the client was started")
	}
}

// A client has further names, all on one dog; a name that an edit gives to another client is that one's alone at once,
// though the first is still connected under it.
func TestNames(t *testing.T) {
	mine := fmt.Sprintf("[client.mine]\ncommand = [%q, \"role-alias\", \"other\"]\n", exe(t))
	z := serve(t, mine+"names = [\"other\"]\n")
	z.until("its alias has armed the client's dog", func() bool { return z.client("mine").Watchdog.Armed })
	z.until("it is connected by its alias", func() bool { return z.client("mine").Connected })
	pid := z.pid("mine")
	if err := z.Send(context.Background(), control.SendRequest{Target: "other", Text: "hello"}); err != nil {
		t.Fatal(err)
	}
	z.logged("[mine] | received hello")
	if got := z.client("mine").Messages.Received; got != 1 {
		t.Errorf("its alias received: %d messages on its account", got)
	}
	z.edit(mine + fmt.Sprintf("[client.rest]\ncommand = [%q, \"role-sleeper\"]\nnames = [\"other\"]\n", exe(t)))
	z.logged("[other] name withdrawn")
	z.logged("[mine] | disconnected")
	if z.pid("mine") != pid {
		t.Error("a change of names cost the process")
	}
}

// roleAlias registers and arms under a further name of the client, and prints what comes.
func roleAlias(name string) {
	c, err := ipc.DialPackets(context.Background(), "")
	if err == nil {
		err = c.Register(name)
	}
	if err == nil {
		err = c.Arm()
	}
	for err == nil {
		var p wire.Packet
		if p, err = c.Receive(); err == nil {
			fmt.Println("received " + p.Text())
		}
	}
	fmt.Println("disconnected")
	for {
		unix.Pause()
	}
}

// identity = "warn" lets through what cannot be proved, and says so; "enforce" takes it back, live.
func TestWarn(t *testing.T) {
	sleeper := fmt.Sprintf("[client.mine]\ncommand = [%q, \"role-sleeper\"]\n", exe(t))
	z := serve(t, "identity = \"warn\"\n"+sleeper)
	c, err := ipc.DialPackets(context.Background(), filepath.Join(z.dir, "run", "zhx.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Register("mine"); err != nil {
		t.Fatal(err)
	}
	z.until("the stranger has the name", func() bool { return z.client("mine").Connected })
	z.logged(`name not proved (name=mine verdict="would be refused"`)
	z.edit(sleeper)
	if _, err := c.Receive(); err == nil {
		t.Error("the stranger was not disconnected")
	}
}

// A run directory that others use keeps what it permits.
func TestSharedRunDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	r, err := holdRundir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.release()
	for path, want := range map[string]os.FileMode{dir: os.ModeDir | os.ModeSticky | 0o777, r.state: os.ModeDir | 0o700} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v %v, want %v", path, fi.Mode(), err, want)
		}
	}
}

// A foreign process that lapses is killed if it is still the one that armed, whichever transport it came by.
func TestForeignLapse(t *testing.T) {
	z := serve(t, "[watchdog]\ninterval = \"100ms\"\n")
	for _, address := range []string{filepath.Join(z.dir, "run", "zhx.sock"), "tcp:" + z.tcp()} {
		foreign := exec.Command(exe(t), "role-lazy", "")
		foreign.Env = append(os.Environ(), "ZHX_NAME=foreign", "ZHX_SOCKET="+address)
		if err := foreign.Start(); err != nil {
			t.Fatal(err)
		}
		pid := foreign.Process.Pid
		go foreign.Wait() // zhxd, in this process, may reap it first
		z.until("it is dead", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	}
	z.until("both lapses are logged", func() bool {
		return strings.Count(z.log.String(), "] warn: lapse of a foreign client") == 2 && strings.Count(z.log.String(), "-> killed; zhx did not start it") == 2
	})
}

// A foreign process may feed by another connection than it armed by. One that is zhxd itself is not killed, and zhx says so.
func TestForeignFeeds(t *testing.T) {
	z := serve(t, "[watchdog]\ninterval = \"100ms\"\n")
	var conns []*ipc.PacketConn
	for range 2 {
		c, err := ipc.DialPackets(context.Background(), filepath.Join(z.dir, "run", "zhx.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.As("foreign")
		conns = append(conns, c)
	}
	if err := conns[0].Arm(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 20 { // more than three timeouts
		if err := conns[1].Feed(); err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	if strings.Contains(z.log.String(), "lapse") {
		t.Error("it lapsed though it fed")
	}
	z.logged("not killed: process " + fmt.Sprint(os.Getpid()) + " is zhxd itself")
}

// Bytes that are no packet end that connection at once, on TCP without an answer, and nobody else notices.
func TestHTTPOnTheDataPort(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.mine]\ncommand = [%q, \"role-talker\"]\n", exe(t)))
	c, err := net.Dial("tcp", z.tcp())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: 127.1.1.1:8000\r\n\r\n")
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered %d bytes, %v; want the end at once", n, err)
	}
	z.until("the client goes on", func() bool { return z.client("mine").Messages.Received > 2 })
}

// One zhxd a run directory: the second one ends and names the first.
func TestSecondZhxd(t *testing.T) {
	z := serve(t, "")
	err := Run(context.Background(), Options{Config: z.conf, Stderr: &buffer{}})
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprint("pid ", os.Getpid())) {
		t.Errorf("the second zhxd: %v", err)
	}
	if _, err := z.Status(context.Background()); err != nil {
		t.Errorf("the first one after that: %v", err)
	}
}

// Clients stop in the reverse order of the file, while the broker still carries messages.
func TestShutdownOrder(t *testing.T) {
	z := serve(t, fmt.Sprintf("[client.first]\ncommand = [%q, \"role-talker\"]\n[client.last]\ncommand = [%q, \"role-farewell\", \"first\"]\n", exe(t), exe(t)))
	z.until("both are connected", func() bool { return z.client("first").Connected && z.client("last").Connected })
	z.stop()
	log := z.log.String()
	last, farewell, first := strings.Index(log, "[last] stopped"), strings.Index(log, "[last] forwarded (target=first"), strings.Index(log, "[first] stopping")
	if farewell < 0 || last < 0 || first < last || first < farewell {
		t.Errorf("farewell forwarded at %d, last stopped at %d, first asked to stop at %d", farewell, last, first)
	}
}

// roleFarewell sends a message when it is asked to end.
func roleFarewell(target string) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM) // before it is seen to be connected
	c, err := ipc.DialPackets(context.Background(), "")
	if err == nil {
		err = c.Register("")
	}
	if err != nil {
		os.Exit(1)
	}
	<-asked
	c.Send(target, "farewell")
	c.Close()
	os.Exit(0)
}

// tcp is the address that TCP got.
func (r *running) tcp() string {
	_, after, _ := strings.Cut(r.log.String(), " tcp=")
	address, _, _ := strings.Cut(after, ")")
	return address
}

// Somebody has the address of TCP: zhxd begins without it, and takes it when it is free.
func TestTCPTaken(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.1.1.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	d := &Daemon{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	c := &config.Daemon{Socket: filepath.Join(dir, "s"), Control: filepath.Join(dir, "c"), SocketMode: 0o600, TCP: ln.Addr().String()}
	l, err := d.listen(c)
	if err != nil || l.tcp != nil {
		t.Fatal(l.tcp, err)
	}
	defer l.data.ln.Close()
	defer l.control.ln.Close()
	ln.Close()
	later := d.awaitTCP(context.Background(), c.TCP)
	defer later.Close()
	if conn, err := net.Dial("tcp4", c.TCP); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
}

// begin starts a program that ends with the test, and gives what the kernel says of it.
func begin(t *testing.T, other *exec.Cmd) proc.Stat {
	t.Helper()
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Process.Kill(); other.Wait() })
	st, err := proc.ReadStat(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// One user has half of the foreign watchdogs, and a process that has become another user's is not killed for it.
func TestForeignOfOthers(t *testing.T) {
	d := &Daemon{foreign: map[string]*foreign{}}
	uid := os.Geteuid() + 1000
	for i := range foreignMax / 2 {
		if !d.foreignRoom(uid) {
			t.Fatalf("there is no room for number %d", i)
		}
		d.foreign[fmt.Sprint(i)] = &foreign{uid: uid}
	}
	if d.foreignRoom(uid) || !d.foreignRoom(uid+1) || !d.foreignRoom(0) || !d.foreignRoom(os.Geteuid()) {
		t.Error("the half of one user is not what is kept from it, and from it alone")
	}
	other := exec.Command(exe(t), "role-sleeper")
	st := begin(t, other)
	if err := killForeign(&foreign{uid: uid, id: st.ID}, 0); err == nil {
		t.Error("a process that is not its user's any more may be killed")
	}
	if err := killForeign(&foreign{uid: st.UID, id: st.ID}, 0); err != nil {
		t.Error(err)
	}
	recycled := proc.ID{PID: st.PID, Start: st.Start + 1}
	if err := killForeign(&foreign{uid: st.UID, id: recycled}, 0); !errors.Is(err, proc.ErrRecycled) {
		t.Errorf("the pid of one that armed is another's now: %v", err)
	}
}

// Of lapses that are only observed, too, a user's programs fill the log no faster than foreignLines.
func TestObservedForeign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can start a program as another user")
	}
	other := exec.Command("/bin/sleep", "1000")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	st := begin(t, other)
	for uid, want := range map[int]int{st.UID: foreignLines, 0: 3 * foreignLines} {
		var log buffer
		d := &Daemon{foreign: map[string]*foreign{}, foreignLog: rate.NewLimiter(0, foreignLines), watch: watchdog.New(watchdog.Options{}),
			log: slog.New(slog.NewTextHandler(&log, nil))}
		d.loaded.Store(&config.Config{Watchdog: config.Watchdog{Mode: "observe"}})
		f := &foreign{uid: uid, id: st.ID, run: watchdog.ID{Name: "f", Run: 1}}
		f.dog = d.watch.Dog(f.run, watchdog.Rules{Timeout: time.Minute})
		d.foreign["f"] = f
		f.dog.Arm()
		for range 3 * foreignLines {
			f.dog.Feed()
			d.lapsedForeign(watchdog.Lapse{ID: f.run})
		}
		f.dog.Retire()
		if got := strings.Count(log.String(), "lapse of a foreign client"); got != want {
			t.Errorf("uid %d: %d lines, want %d", uid, got, want)
		}
	}
}
