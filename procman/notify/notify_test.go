package notify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test binary is its own child: as "say PATH TEXT" it sends TEXT, as "outside PATH" it listens, see TestNobody.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 4 && os.Args[1] == "say":
		if err := dial(os.Args[2]).say(os.Args[3]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) == 3 && os.Args[1] == "outside":
		listenOutside(os.Args[2])
	}
	goleak.VerifyTestMain(m)
}

// A client is a process of a run, with a socket of its own that has no name.
type client struct {
	fd int
	to string
}

func dial(path string) *client {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return &client{fd, path}
}

func (c *client) say(text string, fds ...int) error {
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(c.fd, []byte(text), control, &unix.SockaddrUnix{Name: c.to}, unix.MSG_NOSIGNAL)
}

func newClient(t *testing.T, s *Socket) *client {
	c := dial(s.Path())
	t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

func (c *client) must(t *testing.T, text string, fds ...int) {
	t.Helper()
	if err := c.say(text, fds...); err != nil {
		t.Fatalf("say %.30q: %v", text, err)
	}
}

// open is a socket in a directory that other users may search.
func open(t *testing.T) *Socket {
	t.Helper()
	s, err := Listen(filepath.Join(directory(t), "run-1"), -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func directory(t *testing.T) string {
	dir, err := os.MkdirTemp("", "notify") // not t.TempDir: its names are too long for a socket, and others cannot get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serve hands what comes to the test, which takes its time; ended gets what Serve returns.
func serve(t *testing.T, s *Socket) (came chan Message, ended chan error) {
	came, ended = make(chan Message), make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- s.Serve(func(m Message) { came <- m })
	}()
	t.Cleanup(func() {
		s.Close()
		for {
			select {
			case <-came:
			case <-done:
				return
			}
		}
	})
	return came, ended
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came in 20 s")
		panic("not reached")
	}
}

// settle waits until all that was sent is handled, descriptors closed and all.
func settle(t *testing.T, s *Socket) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); s.Waiting(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not all is handled in 20 s")
		}
	}
}

func TestListen(t *testing.T) {
	dir := directory(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 107-len(dir)-1))
	for _, test := range []struct{ path, err string }{
		{"", `notify socket "": not an absolute path`},
		{"run-1", `notify socket "run-1": not an absolute path`},
		{"@run-1", `notify socket "@run-1": not an absolute path`},
		{"\x00run-1", `notify socket "\x00run-1": not an absolute path`},
		{file, fmt.Sprintf("notify socket %q: there is something else than a socket", file)},
		{link, fmt.Sprintf("notify socket %q: there is something else than a socket", link)},
		{dir, fmt.Sprintf("notify socket %q: there is something else than a socket", dir)},
		{dir + "/none/run-1", fmt.Sprintf("notify socket %q: listen unixgram %[1]s: bind: no such file or directory", dir+"/none/run-1")},
		{long + "x", fmt.Sprintf("notify socket %q: 108 bytes are too long for a socket's path, 107 is the most", long+"x")},
		{long, ""},
	} {
		s, err := Listen(test.path, -1)
		if text(err) != test.err {
			t.Errorf("%q: %v, want %s", test.path, err, test.err)
		}
		if err == nil {
			newClient(t, s).must(t, "READY=1")
			s.Close()
		}
	}
	if b, err := os.ReadFile(file); string(b) != "kept" {
		t.Errorf("the file that was in the way: %q, %v", b, err)
	}
}

// The mode is 0600 whatever the umask, and the user of the run owns it.
func TestOwner(t *testing.T) {
	for _, mask := range []int{0, 0o22, 0o777} {
		old := syscall.Umask(mask)
		s, err := Listen(filepath.Join(directory(t), "run-1"), 12345)
		syscall.Umask(old)
		if err != nil && mask == 0o777 && os.Geteuid() != 0 {
			t.Skip("not root: a umask of 0777 keeps the directory from us")
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(s.Path())
		s.Close()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("umask %03o: mode %v, %v", mask, info.Mode(), err)
		}
		want := 12345
		if os.Geteuid() != 0 {
			want = os.Geteuid()
		}
		if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid != want {
			t.Errorf("owner %d, want %d", uid, want)
		}
	}
}

// The owner speaks, and is known by uid and pid though dead when its datagram is read; another user cannot.
func TestSender(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: cannot be another user")
	}
	s, err := Listen(filepath.Join(directory(t), "run-1"), 12345)
	if err != nil {
		t.Fatal(err)
	}
	say := func(uid uint32) (int, error) {
		cmd := exec.Command("/proc/self/exe", "say", s.Path(), "READY=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.Output()
		if err != nil {
			return 0, errors.New(string(out))
		}
		return cmd.Process.Pid, nil
	}
	if _, err := say(54321); err == nil || err.Error() != "permission denied\n" {
		t.Errorf("another user: %v", err)
	}
	pid, err := say(12345)
	if err != nil {
		t.Fatal(err)
	}
	newClient(t, s).must(t, "STOPPING=1")
	came, _ := serve(t, s)
	if m := receive(t, came); !m.Ready || m.UID != 12345 || m.PID != pid {
		t.Errorf("from %d: %+v", pid, m)
	}
	if m := receive(t, came); !m.Stopping || m.UID != 0 || m.PID != os.Getpid() {
		t.Errorf("from root: %+v", m)
	}
}

// Who has no pid here (a pid namespace beside or above ours) is nobody.
func TestNobody(t *testing.T) {
	path := filepath.Join(directory(t), "run-1")
	cmd := exec.Command("/proc/self/exe", "outside", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Skipf("no pid namespaces: %v", err)
	}
	var line [64]byte
	if n, err := out.Read(line[:]); err != nil {
		t.Fatalf("%q, %v", line[:n], err)
	}
	c := dial(path)
	defer unix.Close(c.fd)
	c.must(t, "READY=1")
	in.Close()
	n, _ := out.Read(line[:])
	if err := cmd.Wait(); err != nil || string(line[:n]) != "0 -1\n" {
		t.Errorf("%q, %v", line[:n], err)
	}
}

func listenOutside(path string) {
	s, err := Listen(path, -1)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("listening")
	os.Stdin.Read(make([]byte, 1)) // until it has been said
	s.closed.Store(true)           // Serve takes what is there
	s.Serve(func(m Message) { fmt.Println(m.PID, m.UID) })
	os.Remove(path)
	os.Exit(0)
}

// Messages are handled in the order in which they were sent; a barrier is answered after all of them and itself, no sooner.
func TestBarrier(t *testing.T) {
	s := open(t)
	c := newClient(t, s)
	ours, theirs := pipe(t)
	c.must(t, "STATUS=1")
	c.must(t, "STATUS=2")
	c.must(t, "BARRIER=1", theirs)
	unix.Close(theirs)
	step := make(chan Message)
	go s.Serve(func(m Message) {
		step <- m
		<-step
	})
	for _, want := range []string{"1", "2"} {
		if m := receive(t, step); *m.Status != want {
			t.Errorf("out of order: %+v, want %s", m, want)
		}
		if answered(t, ours, 0) {
			t.Error("answered before all is handled")
		}
		step <- Message{}
	}
	if m := receive(t, step); !m.Barrier {
		t.Errorf("no barrier: %+v", m)
	}
	if answered(t, ours, 20) {
		t.Error("answered before it was handled itself")
	}
	step <- Message{}
	if !answered(t, ours, 20_000) {
		t.Error("not answered")
	}
}

func pipe(t *testing.T) (read, write int) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return fds[0], fds[1]
}

// answered tells whether the other end of the pipe is closed everywhere, waiting for that so many ms.
func answered(t *testing.T, fd, ms int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, ms)
	for err == unix.EINTR {
		n, err = unix.Poll(fds, ms)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n == 1 && fds[0].Revents&unix.POLLHUP != 0
}

// What brings descriptors that are not wanted, too many or too few, leaves none of them here, and does no other harm.
func TestDescriptors(t *testing.T) {
	many := func(n int) []int { return slices.Repeat([]int{1}, n) }
	tests := []struct {
		text      string
		fds       []int
		ready     bool // what it says is heard
		malformed bool
	}{
		{"READY=1\nFDSTORE=1", many(1), true, false},
		{"READY=1", many(2), true, false},
		{"READY=1", many(3), true, false},
		{"READY=1\nFDSTORE=1", many(253), true, false},
		{"BARRIER=1", many(0), false, true},
		{"BARRIER=1", many(2), false, true},
		{"BARRIER=1", many(253), false, true},
		{"BARRIER=1\nREADY=1", many(1), false, true},
		{"", many(1), false, true},
		{strings.Repeat("x", DatagramMax+1), many(1), false, true},
	}
	for _, test := range tests {
		s := open(t)
		c := newClient(t, s)
		came, _ := serve(t, s)
		before := descriptors(t)
		c.must(t, test.text, test.fds...)
		if m := receive(t, came); m.Ready != test.ready || m.Barrier || (m.Malformed != nil) != test.malformed {
			t.Errorf("%.20q with %d: %+v", test.text, len(test.fds), m)
		}
		settle(t, s)
		if after := descriptors(t); after > before { // fewer: the socket of the case before has gone at last
			t.Errorf("%.20q with %d: %d descriptors before, %d after", test.text, len(test.fds), before, after)
		}
	}
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// With no descriptor left a barrier cannot be received: the kernel closes it for us, and all goes on.
func TestNoDescriptorLeft(t *testing.T) {
	s := open(t)
	c := newClient(t, s)
	ours, theirs := pipe(t)
	c.must(t, "BARRIER=1", theirs)
	c.must(t, "READY=1")
	unix.Close(theirs)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	low := old
	low.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	came, _ := serve(t, s)
	m := receive(t, came)
	n := receive(t, came)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if m.Barrier || !errors.Is(m.Malformed, errDescriptors) || !n.Ready || !answered(t, ours, 20_000) {
		t.Errorf("%+v, then %+v", m, n)
	}
}

// Datagrams that say nothing are handed over as such, with whose they are; the next one is heard.
func TestMalformed(t *testing.T) {
	s := open(t)
	c := newClient(t, s)
	came, _ := serve(t, s)
	for _, test := range []struct{ text, err string }{
		{"", "it is empty"},
		{"READY=1\x00\x00", "a NUL byte in it"},
		{"READY=1\nX=" + strings.Repeat("x", DatagramMax-9), "longer than 4096 bytes"},
		{"WATCHDOG=0", `WATCHDOG="0": not 1`},
	} {
		c.must(t, test.text)
		m := receive(t, came)
		if want := (Message{PID: os.Getpid(), UID: os.Getuid(), Malformed: m.Malformed}); m != want || text(m.Malformed) != test.err {
			t.Errorf("%.20q: %+v", test.text, m)
		}
	}
	c.must(t, "READY=1\nX="+strings.Repeat("x", DatagramMax-10))
	if m := receive(t, came); !m.Ready || m.Malformed != nil {
		t.Errorf("4096 bytes: %+v", m)
	}
}

// Waiting sees what is queued, even behind an empty datagram, and what is being handled; and then no more.
func TestWaiting(t *testing.T) {
	s := open(t)
	c := newClient(t, s)
	if s.Waiting() {
		t.Error("waiting, and nothing was sent")
	}
	c.must(t, "")
	c.must(t, "WATCHDOG=1")
	if !s.Waiting() {
		t.Error("two in the queue, and not waiting")
	}
	came, _ := serve(t, s)
	receive(t, came)
	if !s.Waiting() {
		t.Error("one in the queue or with handle, and not waiting")
	}
	receive(t, came)
	settle(t, s)
}

// Waiting is never false between a datagram's sendmsg and the end of its handling.
func TestWaitingHasNoGap(t *testing.T) {
	s := open(t)
	c := newClient(t, s)
	var handled atomic.Int64
	ended := make(chan error)
	go func() { ended <- s.Serve(func(Message) { handled.Add(1) }) }()
	for i := range int64(3000) {
		c.must(t, "WATCHDOG=1")
		for s.Waiting() {
		}
		if handled.Load() != i+1 {
			t.Fatalf("%d handled of %d, and not waiting", handled.Load(), i+1)
		}
	}
	s.Close()
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
}

// A client that floods fills its own queue: all that it got rid of is handled, and another run is heard in the meantime.
func TestFlood(t *testing.T) {
	flooded, other := open(t), open(t)
	var heard atomic.Uint64
	ended := make(chan error)
	go func() { ended <- flooded.Serve(func(Message) { heard.Add(1) }) }()
	came, _ := serve(t, other)
	var sent atomic.Uint64
	var stop atomic.Bool
	flooders := make(chan error)
	for range 4 {
		c := newClient(t, flooded)
		go func() {
			var err error
			for err == nil && !stop.Load() {
				if err = c.say("WATCHDOG=1\nSTATUS=" + strings.Repeat("x", 4000)); err == nil {
					sent.Add(1)
				}
			}
			flooders <- err
		}()
	}
	c := newClient(t, other)
	var longest time.Duration
	for end := time.Now().Add(10 * time.Second); sent.Load() < 2000 && time.Now().Before(end); {
		at := time.Now()
		c.must(t, "WATCHDOG=1")
		receive(t, came)
		longest = max(longest, time.Since(at))
	}
	stop.Store(true)
	for range 4 {
		if err := receive(t, flooders); err != nil {
			t.Error(err)
		}
	}
	flooded.Close()
	if err := receive(t, ended); err != nil || heard.Load() != sent.Load() || sent.Load() < 1000 {
		t.Errorf("%d sent, %d heard, %v", sent.Load(), heard.Load(), err)
	}
	if longest > 2*time.Second {
		t.Errorf("another run was heard after %v only", longest)
	}
	t.Logf("%d flooded; another run was heard within %v", sent.Load(), longest)
}

// Close lets Serve handle what had been sent, and nothing more comes in, over an old connection neither.
func TestClose(t *testing.T) {
	s := open(t)
	c := newClient(t, s)
	connected, err := net.Dial("unixgram", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	c.must(t, "STATUS=1")
	c.must(t, "STATUS=2")
	came, ended := serve(t, s)
	receive(t, came) // that is: it is not parked
	s.Close()
	s.Close()
	if err := c.say("STATUS=3"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := connected.Write([]byte("STATUS=3")); !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Close, connected: %v", err)
	}
	if m := receive(t, came); *m.Status != "2" {
		t.Errorf("%+v", m)
	}
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
	if s.Waiting() {
		t.Error("waiting, and closed")
	}
	if _, err := connected.Write([]byte("STATUS=4")); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Serve, connected: %v", err)
	}
	if err := s.Serve(nil); err != nil {
		t.Errorf("served twice: %v", err)
	}
}

// A parked Serve ends, and handle may call Close.
func TestCloseWakes(t *testing.T) {
	s := open(t)
	_, ended := serve(t, s)
	settle(t, s)
	s.Close()
	if err := receive(t, ended); err != nil {
		t.Error(err)
	}
	s = open(t)
	newClient(t, s).must(t, "STOPPING=1")
	if err := s.Serve(func(Message) { s.Close() }); err != nil {
		t.Error(err)
	}
	s = open(t)
	s.Close()
	if err := s.Serve(nil); err != nil {
		t.Error(err)
	}
}

// After a crash of zhxd the path is there and refuses; the next zhxd takes it over.
func TestNextTakesThePath(t *testing.T) {
	old, err := Listen(filepath.Join(directory(t), "run-1"), -1)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, old)
	old.conn.Close() // all that is left of a zhxd that was killed: the file
	if err := c.say("READY=1"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("in the gap: %v", err)
	}
	next, err := Listen(old.Path(), -1)
	if err != nil {
		t.Fatal(err)
	}
	came, _ := serve(t, next)
	c.must(t, "READY=1")
	if m := receive(t, came); !m.Ready {
		t.Errorf("%+v", m)
	}
	next.Close()
	if _, err := os.Lstat(next.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the path is still there: %v", err)
	}
}
