package broker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/ipc/wire"
)

// The kernel tells who connected: by SO_PEERCRED, and for TCP the client's own socket, both ways of asking.
func TestIdentity(t *testing.T) {
	for _, noDiag := range []bool{false, true} {
		w := start(t, func(b *Broker) { b.noDiag = noDiag })
		for _, tr := range []Transport{Unix, TCP, "tcp6"} {
			if tr == "tcp6" {
				if tr = TCP; !hasIPv6() {
					continue
				}
				w.serve(TCP, "tcp6", "[::1]:0")
			}
			c := w.receiver(tr, "client1")
			got, want := w.gate.arrived(t), Cred{Transport: tr, UID: os.Getuid(), PID: os.Getpid()}
			if tr == TCP {
				want.PID, want.Addr = 0, c.LocalAddr().String()
				raw, err := c.Conn.(*net.TCPConn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				var st unix.Stat_t
				raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) })
				if want.Inode = st.Ino; err != nil {
					t.Fatal(err)
				}
			}
			if got != want {
				t.Errorf("without sock_diag %v: %+v, want %+v", noDiag, got, want)
			}
			c.Close()
			w.until("it is gone", func() bool { return len(w.Peers()) == 0 })
		}
	}
}

// hasIPv6 tells whether this machine's loopback interface has it.
func hasIPv6() bool {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		ln.Close()
	}
	return err == nil
}

// What a receiver has read is known to the byte.
func TestTaken(t *testing.T) {
	for _, noDiag := range []bool{false, true} {
		for _, tr := range transports {
			w := start(t, func(b *Broker) { b.noDiag = noDiag })
			c := w.receiver(tr, "client1")
			for range 3 {
				if err := w.Send("client1", "zhxctl", nil); err != nil {
					t.Fatal(err)
				}
			}
			c.Read(make([]byte, 100))
			out := &w.names.find([]byte("client1")).peer.out
			want := taken{least: wire.PacketSize + 100, most: wire.PacketSize + 100, known: true}
			if noDiag && tr == Unix {
				want = taken{}
			}
			w.until(fmt.Sprintf("all is acknowledged and %+v (%s, without sock_diag %v)", want, tr, noDiag), func() bool {
				out.mu.Lock()
				defer out.mu.Unlock()
				got := out.taken()
				return got == want || !got.known && !want.known
			})
		}
	}
}

// At the limit a connection is closed and counted; once another has gone there is room again.
func TestPeerLimit(t *testing.T) {
	w := start(t, func(b *Broker) { b.limit = 2 })
	a, b := w.receiver(Unix, "a"), w.receiver(TCP, "b")
	for range 3 {
		w.dial(Unix).closed()
		w.dial(TCP).closed()
	}
	w.logged("too many connections", 1)
	if lines := w.log.find("too many connections"); w.Counters().OverLimit != 6 || len(lines) > 3 {
		t.Errorf("%+v, logged %q", w.Counters(), lines)
	}
	b.put(message("a", "b", "still here"))
	a.want("still here")
	a.Close()
	w.until("there is room", func() bool { return len(w.Peers()) == 1 })
	w.receiver(Unix, "c")
}

// starvedChild is the test binary as a broker with few descriptors; it ends with its standard input and writes what it
// counted.
func starvedChild(socket string) {
	limit := unix.Rlimit{Cur: 30, Max: 30}
	ln, err := net.Listen("unix", socket)
	if err == nil {
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	b := New(&gate{sessions: map[string]*session{}}, slog.New(slog.NewTextHandler(os.Stderr, nil)), Options{})
	if b.limit != 15 {
		fmt.Println("it leaves nothing to others: limit", b.limit)
	}
	b.limit = maxPeers
	served := make(chan error)
	go func() { served <- b.Serve(ln) }()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	b.Close()
	c := b.Counters()
	var use unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &use)
	fmt.Println(<-served, c.NoDescriptor >= 20, c.Accepted >= 10, time.Duration(unix.TimevalToNsec(use.Utime)) < time.Second)
}

// Without descriptors left, the broker closes who comes, says so, goes on for those who are there, and takes new ones
// once there are some again.
func TestNoDescriptors(t *testing.T) {
	w := &world{t: t, listen: map[Transport]net.Listener{}}
	socket := filepath.Join(t.TempDir(), "s")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "ZHX_BROKER_CHILD="+socket)
	var errs strings.Builder
	child.Stderr = &errs
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	w.listen[Unix] = addrOnly{&net.UnixAddr{Name: socket, Net: "unix"}}

	r := w.receiver(Unix, "client1")
	var there []*client
	turnedAway := 0
	for i := range 60 {
		c := w.dial(Unix)
		if c.registers(fmt.Sprint("c", i)) {
			there = append(there, c)
		} else {
			turnedAway++
		}
	}
	if len(there) < 10 || turnedAway < 20 {
		t.Errorf("%d are there, %d turned away", len(there), turnedAway)
	}
	r.put(message("client1", "client1", "still here"))
	r.want("still here")
	for _, c := range there {
		c.Close()
	}
	for late := time.Now().Add(patience); !w.dial(Unix).registers("again"); {
		if time.Now().After(late) {
			t.Fatal("takes no new ones")
		}
	}
	in.Close()
	rest, _ := io.ReadAll(out)
	if err := child.Wait(); err != nil || string(rest) != "<nil> true true true\n" {
		t.Errorf("the child: %v, %s\n%s", err, rest, errs.String())
	}
	if !strings.Contains(errs.String(), `msg="accept failed"`) {
		t.Errorf("logged nothing: %s", errs.String())
	}
}

// registers tells whether the broker took the connection: it answers with the client's own message, or closes.
func (c *client) registers(name string) bool {
	c.Write(encode(c.t, wire.Packet{Cmd: wire.CmdRegister, Source: name}, message(name, name, "registered"))) // an error: closed
	c.SetReadDeadline(time.Now().Add(patience))
	_, err := io.ReadFull(c, make([]byte, wire.PacketSize))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("neither taken nor closed")
	}
	return err == nil
}

// addrOnly stands for a listener in another process.
type addrOnly struct{ addr net.Addr }

func (a addrOnly) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (a addrOnly) Close() error              { return nil }
func (a addrOnly) Addr() net.Addr            { return a.addr }

// A user has half of what all share, and root all of it, as zhxd's own user. Each case takes one thing until it is refused; frames
// are answered, and what is counted is how many are not refused.
func TestShares(t *testing.T) {
	frame := func(f wire.Frame) func(k *talker, i int) uint64 {
		return func(k *talker, i int) uint64 {
			f := f
			f.To = strings.Replace(f.To, "%", fmt.Sprint(i), 1)
			return k.say(f)
		}
	}
	for _, c := range []struct {
		purpose     string
		put         func(k *talker, i int) uint64
		n, of, half int
	}{
		{"last values", frame(wire.Frame{Type: wire.TypePublish, Flags: wire.Retain, Code: 1, To: "a.t%", Body: []byte("x")}), maxTopics + 1, maxTopics, maxTopics / 2},
		{"messages that wait for a client", frame(wire.Frame{Type: wire.TypeMessage, Code: wire.LevelAccepted, To: "c"}), 11, 10, 5},
		{"and one that is half as large as they may be", frame(wire.Frame{Type: wire.TypeMessage, Code: wire.LevelAccepted, To: "c", Body: make([]byte, 600)}), 3, 1, 1},
		{"requests that are not answered", frame(wire.Frame{Type: wire.TypeRequest, To: "r"}), maxOwed + 1, maxOwed, maxOwed / 2},
	} {
		for _, equal := range []bool{false, true} {
			w := start(t, func(b *Broker) { b.equal = equal })
			w.stands("c", Standing{Managed: true, State: wire.StateRestarting, Expects: true, Hold: Hold{Messages: 10, Bytes: 1000, For: time.Minute}})
			r := w.talk(Unix, "r")
			go io.Copy(io.Discard, r.Conn)
			k := w.talk(Unix, "")
			refusals := 0
			for i := range c.n {
				c.put(k, i)
			}
			for last := k.say(wire.Frame{Type: wire.TypePublish, Code: 1, To: "last"}); ; { // what is before it is answered, where it is at all
				f, err := k.read()
				if err != nil {
					t.Fatalf("%s: %v", c.purpose, err)
				}
				if f.Type == wire.TypeError && f.Code == wire.ErrFull {
					refusals++
				}
				if f.ID == last {
					break
				}
			}
			want := c.of
			if equal {
				want = c.half
			}
			if taken := c.n - refusals; taken != want {
				t.Errorf("%s: %d taken, want %d (equal: %t)", c.purpose, taken, want, equal)
			}
		}
	}
}

// Half of the connections, and of the descriptors on their way, are one user's; and of the log it has a few lines a second.
func TestSharesOfConnections(t *testing.T) {
	w := start(t, func(b *Broker) { b.equal, b.limit, b.maxTransit = true, 8, 8 })
	k := w.talk(Unix, "k")
	for i := range 100 {
		k.say(text("nobody"+fmt.Sprint(i), "x", wire.LevelNone))
	}
	k.say(text("k", "last", wire.LevelNone))
	for f := k.next(); f.Type != wire.TypeMessage; f = k.next() {
	}
	if n := len(w.log.find("no receiver")); n == 0 || n > 2*userLines {
		t.Errorf("%d lines of the log", n)
	}
	for range 3 {
		w.receiver(TCP, "r")
		w.until("it takes the place of the one before", func() bool { return len(w.Peers()) <= 2 })
	}
	w.dial(Unix)
	w.dial(TCP)
	w.until("all are here", func() bool { return len(w.Peers()) == 4 })
	w.dial(Unix).closed()
	w.dial(TCP).closed()
	if n := w.Counters().OverLimit; n != 2 {
		t.Errorf("%d over the limit", n)
	}
	raw, err := k.Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), []byte{1}, unix.UnixRights(0, 0, 0, 0, 0), nil, 0)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	k.closed()
	w.until("what it had is accounted for", func() bool { return w.transit.Load() == 0 && len(w.Peers()) == 3 })
}

// A name that a connection of another user receives under is not a sender's, unless that is root's or its client's.
func TestSenderOfOthersName(t *testing.T) {
	w := start(t)
	w.receiver(Unix, "x")
	theirs := w.names.find([]byte("x")).peer.user.uid
	for _, c := range []struct {
		purpose      string
		name         string
		uid          int
		all, managed bool
		free         bool
	}{
		{"another user's", "x", theirs + 1, false, false, false},
		{"the same user's", "x", theirs, false, false, true},
		{"an unknown user's", "x", -1, false, false, false},
		{"root", "x", theirs + 1, true, false, true},
		{"the client's own", "x", theirs + 1, false, true, true},
		{"nobody receives under it", "y", theirs + 1, false, false, true},
	} {
		p := &peer{b: w.Broker, user: &user{uid: c.uid, all: c.all}}
		s := &session{}
		s.managed.Store(c.managed)
		before := w.Counters().Refused
		if free := p.free(&claim{peer: p, name: c.name, session: s}, 3); free != c.free {
			t.Errorf("%s: %t", c.purpose, free)
		}
		if refused := w.Counters().Refused - before; (refused == 3) == c.free {
			t.Errorf("%s: %d refused", c.purpose, refused)
		}
	}
}
