package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

const (
	ample = 20 * time.Second       // for what answers
	short = 100 * time.Millisecond // for what never does
)

// watch fails the test if it leaves a goroutine or a descriptor behind.
func watch(t *testing.T) {
	if r, w, err := os.Pipe(); err == nil { // so that the poller has its descriptors
		r.Close()
		w.Close()
	}
	before, fds := goleak.IgnoreCurrent(), descriptors()
	t.Cleanup(func() {
		goleak.VerifyNone(t, before)
		if n := descriptors(); n > fds {
			t.Errorf("%d descriptors, %d before", n, fds)
		}
	})
}

func descriptors() int {
	list, _ := os.ReadDir("/proc/self/fd")
	return len(list)
}

// server has serve on each connection that it accepts, and closes it then; nil: it accepts none. quit is closed at the end.
func server(t *testing.T, network, address string, serve func(c net.Conn, quit <-chan struct{})) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	quit, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(quit)
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for serve != nil {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c, quit)
			c.Close()
		}
		<-quit
	}()
	return l.Addr().String()
}

// says answers a request with text, again and again each gap if that is not 0.
func says(begin, text string, gap time.Duration) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, quit <-chan struct{}) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		fmt.Fprint(c, begin)
		for text != "" {
			if _, err := fmt.Fprint(c, text); err != nil {
				return
			}
			select {
			case <-quit:
				return
			case <-time.After(gap):
			}
		}
	}
}

func hangs(c net.Conn, quit <-chan struct{}) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for buf := make([]byte, 1024); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	}()
	select {
	case <-quit:
		c.Close()
		<-gone
	case <-gone:
	}
}

// full is a listener whose backlog takes no more; room makes room.
func full(t *testing.T, domain int, address syscall.Sockaddr) (fd int, room func()) {
	t.Helper()
	l, err := syscall.Socket(domain, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = syscall.Bind(l, address)
	}
	if err == nil {
		err = syscall.Listen(l, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(l) })
	address, _ = syscall.Getsockname(l)
	for range 4 {
		c, err := syscall.Socket(domain, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Close(c) })
		if syscall.Connect(c, address) == syscall.EAGAIN {
			break
		}
	}
	return l, func() {
		c, _, err := syscall.Accept(l)
		if err != nil {
			t.Error(err)
		}
		syscall.Close(c)
	}
}

// TestAnswers: what counts as a sign of life and what does not, one listener a row.
func TestAnswers(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	const ok = "HTTP/1.1 200 OK\r\n"
	none := func(net.Conn, <-chan struct{}) {}
	for _, c := range []struct {
		purpose string
		way     string
		serve   func(net.Conn, <-chan struct{})
		limit   time.Duration
		want    string // "": alive
	}{
		{"accepts", "tcp", hangs, ample, ""},
		{"accepts never, but the kernel has room", "tcp", nil, ample, ""},
		{"closes at once", "tcp", none, ample, ""},
		{"accepts", "unix", hangs, ample, ""},
		{"accepts never, but the kernel has room", "unix", nil, ample, ""},
		{"closes at once", "unix", none, ample, ""},
		{"200", "http", says(ok+"\r\n", "", 0), ample, ""},
		{"the last that is good", "http", says("HTTP/1.0 399 Strange\r\n\r\n", "", 0), ample, ""},
		{"a redirect is an answer, wherever it leads", "http", says("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "", 0), ample, ""},
		{"hints before the answer", "http", says("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "", 0), ample, ""},
		{"a body without end", "http", says(ok+"\r\n", strings.Repeat("x", 4096), 0), ample, ""},
		{"a body that does not come", "http", says(ok+"Content-Length: 10\r\n\r\n", "x", time.Hour), ample, ""},
		{"not found", "http", says("HTTP/1.1 404 Not Found\r\n\r\n", "", 0), ample, "status 404"},
		{"its own error", "http", says("HTTP/1.1 500 Oh\r\n\r\n", "", 0), ample, "status 500"},
		{"no HTTP", "http", says("SSH-2.0-x\r\n", "", 0), ample, "its answer is not HTTP"},
		{"a bad header", "http", says(ok+"nonsense\r\n\r\n", "", 0), ample, "its answer is not HTTP"},
		{"closes within the header", "http", says(ok, "", 0), ample, "closed without an answer"},
		{"closes at once", "http", func(c net.Conn, _ <-chan struct{}) { c.(*net.TCPConn).CloseWrite(); c.Read(make([]byte, 4096)) }, ample, "closed without an answer"},
		{"a header without end", "http", says(ok, "X: "+strings.Repeat("y", 99)+"\r\n", 0), ample, "the header of its answer is above 16384 bytes"},
		{"hints without end", "http", says("", "HTTP/1.1 103 Early Hints\r\n\r\n", 0), ample, "the header of its answer is above 16384 bytes"},
		{"hangs", "http", hangs, short, "no answer within 100ms"},
		{"accepts never", "http", nil, short, "no answer within 100ms"},
		{"a header that trickles", "http", says(ok, "X: y\r\n", 5*time.Millisecond), short, "no answer within 100ms"},
		{"hints, then nothing", "http", says("HTTP/1.1 103 Early Hints\r\n\r\n", " ", time.Hour), short, "no answer within 100ms"},
	} {
		t.Run(c.way+", "+c.purpose, func(t *testing.T) {
			watch(t)
			p := Probe{Interval: time.Hour, Timeout: c.limit}
			asked := ""
			switch c.way {
			case "tcp":
				p.TCP = server(t, "tcp", "127.0.0.1:0", c.serve)
				asked = "tcp " + p.TCP
			case "unix":
				p.Unix = server(t, "unix", filepath.Join(t.TempDir(), "s"), c.serve)
				asked = "unix " + p.Unix
			case "http":
				p.HTTP = "http://" + server(t, "tcp", "127.0.0.1:0", c.serve) + "/health?a=b"
				asked = p.HTTP
			}
			judge(t, p, asked, c.want)
		})
	}
}

// judge probes once, as Run does; the answer is the wanted one, "" for alive.
func judge(t *testing.T, p Probe, asked, want string) {
	t.Helper()
	if want != "" {
		want = "probe " + asked + ": " + want
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	told := 0
	Run(ctx, p, nil, func(err error) {
		told++
		cancel()
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// TestNobodyThere: what cannot be connected to is told shortly, without our own port.
func TestNobodyThere(t *testing.T) {
	watch(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is ours, and closed
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	path := filepath.Join(t.TempDir(), "s")
	p := Probe{Interval: time.Hour, Timeout: ample}
	p.TCP = address
	judge(t, p, "tcp "+address, "connect: connection refused")
	p.TCP, p.HTTP = "", "http://"+address
	judge(t, p, "http://"+address, "connect: connection refused")
	p.HTTP, p.Unix = "", path
	judge(t, p, "unix "+path, "connect: no such file or directory")
}

// TestFullBacklog: a listener that takes no more connections is given the whole time, and no more.
func TestFullBacklog(t *testing.T) {
	watch(t)
	fd, _ := full(t, syscall.AF_INET, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprint("127.0.0.1:", at.(*syscall.SockaddrInet4).Port)
	p := Probe{Interval: time.Hour, Timeout: short}
	p.TCP = address
	judge(t, p, "tcp "+address, "no answer within 100ms")
	p.TCP, p.HTTP = "", "http://"+address
	judge(t, p, "http://"+address, "no answer within 100ms")

	path := filepath.Join(t.TempDir(), "s")
	_, room := full(t, syscall.AF_UNIX, &syscall.SockaddrUnix{Name: path})
	p.HTTP, p.Unix = "", path
	judge(t, p, "unix "+path, "no answer within 100ms")
	p.Timeout = ample
	later := time.AfterFunc(2*redial, room)
	defer later.Stop()
	judge(t, p, "unix "+path, "")
}

// TestRequest: what a server is asked.
func TestRequest(t *testing.T) {
	watch(t)
	got := make(chan *http.Request, 1)
	address := server(t, "tcp", "127.0.0.1:0", func(c net.Conn, _ <-chan struct{}) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			t.Error(err)
		}
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
		got <- r
	})
	url := "http://" + address + "/a%20b?c=d#e"
	judge(t, Probe{HTTP: url, Interval: time.Hour, Timeout: ample}, url, "")
	r := <-got
	if r.Method != "GET" || r.RequestURI != "/a%20b?c=d" || r.Host != address || !r.Close || r.UserAgent() != "zhx" || r.Proto != "HTTP/1.1" {
		t.Errorf("got %+v", r)
	}
}

// TestEndInTheMiddle: the end of the context ends a probe under way, which is told to nobody.
func TestEndInTheMiddle(t *testing.T) {
	watch(t)
	ctx, cancel := context.WithCancel(context.Background())
	address := server(t, "tcp", "127.0.0.1:0", func(c net.Conn, quit <-chan struct{}) {
		cancel()
		hangs(c, quit)
	})
	begin := time.Now()
	Run(ctx, Probe{HTTP: "http://" + address, Interval: time.Hour, Timeout: time.Hour}, nil, func(err error) { t.Errorf("told: %v", err) })
	if d := time.Since(begin); d > ample {
		t.Errorf("it took %v", d)
	}
}

var command = Probe{Exec: []string{"ask", "-x"}, Interval: 10 * time.Second, Timeout: 4 * time.Second}

// TestTimes: a probe at once, then one each interval from begin to begin, however long they take; a slow one delays the next, and
// no two are under way at once.
func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := []time.Duration{0, 3 * time.Second, 25 * time.Second, 0, 10 * time.Second, time.Second}
		want := []time.Duration{0, 10, 20, 45, 55, 65}
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		n, under := 0, 0
		p := command
		p.Timeout = time.Minute
		Run(ctx, p, func(ctx context.Context) error {
			if under++; under != 1 {
				t.Error("two at once")
			}
			if d := time.Since(began); d != want[n]*time.Second {
				t.Errorf("probe %d at %v", n, d)
			}
			if end, ok := ctx.Deadline(); !ok || time.Until(end) != p.Timeout {
				t.Errorf("its limit is %v", time.Until(end))
			}
			time.Sleep(took[n])
			under--
			return nil
		}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			if n++; n == len(took) {
				cancel()
			}
		})
		if d := time.Since(began); n != len(took) || d != 66*time.Second {
			t.Errorf("%d probes, the last ended after %v", n, d)
		}
	})
}

// TestExec: a command that fails is told with its error, one that takes too long with the limit; its end is waited for.
func TestExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		no := errors.New("exit status 1")
		slow := func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(time.Second) // until it is killed and reaped
			return fmt.Errorf("killed: %w", ctx.Err())
		}
		answers := []func(context.Context) error{
			func(context.Context) error { return no }, slow, func(context.Context) error { return nil },
		}
		want := []string{"probe exec ask: exit status 1", "probe exec ask: no answer within 4s", "<nil>"}
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		Run(ctx, command, func(ctx context.Context) error { return answers[n](ctx) }, func(err error) {
			if got := fmt.Sprint(err); got != want[n] {
				t.Errorf("got %q, want %q", got, want[n])
			}
			if n == 0 && !errors.Is(err, no) {
				t.Error("the cause is lost")
			}
			if n++; n == len(answers) {
				cancel()
			}
		})
	})
}

// TestEnd: Run ends with its context, between two probes at once, within one when that has ended; nothing is told then.
func TestEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			purpose          string
			end, takes, want time.Duration
			told             int
		}{
			{"before the first", 0, 0, 0, 0},
			{"between two", 12 * time.Second, time.Second, 12 * time.Second, 2},
			{"within one", 21 * time.Second, 2 * time.Second, 22 * time.Second, 2},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), c.end)
			began, told := time.Now(), 0
			Run(ctx, command, func(context.Context) error { time.Sleep(c.takes); return nil }, func(error) { told++ })
			cancel()
			if d := time.Since(began); d != c.want || told != c.told {
				t.Errorf("%s: it ended after %v, told %d times", c.purpose, d, told)
			}
		}
	})
}

// TestAsks: only the zero value asks nothing, whatever its times.
func TestAsks(t *testing.T) {
	for _, p := range []Probe{command, {TCP: "x:1"}, {Unix: "/x"}, {HTTP: "http://x"}} {
		if !p.Asks() {
			t.Errorf("%+v asks nothing", p)
		}
	}
	if (Probe{Interval: 1, Timeout: 1}).Asks() {
		t.Error("asks without a question")
	}
}
