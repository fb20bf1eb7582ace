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
