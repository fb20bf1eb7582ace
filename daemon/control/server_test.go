package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// feed is a Logs that passes on what comes from the test, and says when the reader has gone.
func feed(in <-chan LogLine, gone chan<- error) func(context.Context, LogQuery) iter.Seq[LogLine] {
	return func(ctx context.Context, _ LogQuery) iter.Seq[LogLine] {
		return func(yield func(LogLine) bool) {
			for {
				select {
				case line := <-in:
					if yield(line) {
						continue
					}
				case <-ctx.Done():
				}
				gone <- ctx.Err()
				return
			}
		}
	}
}

func TestFollow(t *testing.T) {
	path, f := filepath.Join(t.TempDir(), "s"), newFake()
	in, gone := make(chan LogLine), make(chan error, 1)
	f.lines = feed(in, gone)
	serve(t, path, f, mine())
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.FixedZone("", 3600))
	sent := []LogLine{
		{Client: "a", At: Stamp{at}, Mono: 1.5, Text: "plain <text>"},
		{Client: "b", Text: "caf\xe9 \x1b[1m", Dropped: 3}, // neither UTF-8 nor harmless, but the child's own bytes
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []LogLine
	done := make(chan error)
	go func() {
		done <- Dial(path).Logs(ctx, LogQuery{Follow: true}, func(l LogLine) error {
			got = append(got, l)
			if len(got) == len(sent) {
				cancel() // both arrived, although the stream has no end
			}
			return nil
		})
	}()
	for _, line := range sent {
		in <- line
	}
	if err := <-done; err.(*Error).Code != CodeFailed {
		t.Error(err)
	}
	<-gone // the server lets go of the reader
	sent[0].At, sent[1].At = Stamp{at.UTC()}, got[1].At
	if !reflect.DeepEqual(got, sent) {
		t.Errorf("got %+v", got)
	}
}

// A reader that does not read loses its connection, and nothing else waits for it.
func TestSlowReader(t *testing.T) {
	t.Run("others notice nothing", func(t *testing.T) {
		path, f := filepath.Join(t.TempDir(), "s"), newFake()
		in, gone := make(chan LogLine), make(chan error, 1)
		f.lines = feed(in, gone)
		serve(t, path, f, mine())
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET /v1/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
		line := LogLine{Client: "a", Text: strings.Repeat("x", 4096)}
		for full := false; !full; { // until its socket is full and the server waits in a write
			select {
			case in <- line:
			case <-time.After(200 * time.Millisecond):
				full = true
			}
		}
		if _, err := Dial(path).Status(t.Context()); err != nil {
			t.Error(err)
		}
		c.Close()
		<-gone
	})
	t.Run("it loses its connection", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			in, gone := make(chan LogLine, 1), make(chan error, 1)
			f.lines = feed(in, gone)
			s := &Server{Backend: f, Log: quiet()}
			client, server := net.Pipe()
			defer client.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			hs := s.http(ctx)
			ln := &oneConn{conn: server, done: make(chan struct{})}
			go hs.Serve(ln)
			defer hs.Close()
			fmt.Fprint(client, "GET /v1/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReaderSize(client, 16), nil); err != nil { // the header, and no more
				t.Fatal(err)
			}
			in <- LogLine{Client: "a", Text: strings.Repeat("x", 100<<10)}
			began := time.Now()
			<-gone
			if took := time.Since(began); took != writeLimit {
				t.Errorf("let go after %s, want %s", took, writeLimit)
			}
		})
	})
}

// A request that takes longer than it may take to arrive is not cancelled by that.
func TestLongRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		in, gone := make(chan LogLine, 1), make(chan error, 1)
		f.lines = feed(in, gone)
		s := &Server{Backend: f, Log: quiet()}
		client, server := net.Pipe()
		hs := s.http(t.Context())
		go hs.Serve(&oneConn{conn: server, done: make(chan struct{})})
		fmt.Fprint(client, "GET /v1/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * max(readLimit, idleLimit, writeLimit)) // in the bubble: no time at all
		in <- LogLine{Client: "late"}
		if text, err := bufio.NewReader(res.Body).ReadString('\n'); !strings.Contains(text, "late") {
			t.Error(text, err)
		}
		client.Close()
		<-gone
		hs.Close()
	})
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *oneConn) Close() error   { close(l.done); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{} }

// The answer to shutdown comes at once, its end only with the process: Shutdown returns then.
func TestShutdown(t *testing.T) {
	path, f := filepath.Join(t.TempDir(), "s"), newFake()
	s, end := serve(t, path, f, mine())
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /v1/shutdown HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n%s", `{"keep":true}`)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(res.Body)
	if line, err := body.ReadString('\n'); !strings.Contains(line, fmt.Sprintf(`"pid":%d`, os.Getpid())) {
		t.Error(line, err)
	}
	if got, want := <-f.asked, "shutdown true by "+userName(os.Getuid()); got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
	end() // the server ends, and then, for this test, closes as the kernel would
	if rest, err := io.ReadAll(body); len(rest) > 0 || err != nil {
		t.Error(rest, err)
	}
	s.Close()

	// The client, and a shutdown whose server ends at once: the answer arrives nevertheless.
	f2 := newFake()
	_, end2 := serve(t, path+"2", f2, mine())
	go func() {
		<-f2.ended
		end2()
	}()
	if answer, err := Dial(path+"2").Shutdown(t.Context(), true); err != nil || answer != (ShutdownReply{V: 1, PID: os.Getpid(), Kept: 3}) {
		t.Error(answer, err)
	}
	f3 := newFake()
	f3.err = &Error{Text: "no", Code: CodeFailed}
	serve(t, path+"3", f3, mine())
	if _, err := Dial(path+"3").Shutdown(t.Context(), false); err == nil {
		t.Error("a refused shutdown succeeded")
	}
	select {
	case <-f3.ended:
		t.Error("a refused shutdown began")
	default:
	}
}

// What would end the asker begins when the answer has been sent: the asker has all of it, although what has begun does not return.
func TestAcceptedBeginsAfterTheAnswer(t *testing.T) {
	for _, tt := range []struct {
		purpose, verb, body, reply string
	}{
		{"stop", "stop", `{"names":["self"]}`, `{"v":1,"clients":[{"name":"self","pid":null,"text":"accepted","error":null,"accepted":true}]}`},
		{"restart", "restart", `{"all":true}`, `{"v":1,"clients":[{"name":"self","pid":null,"text":"accepted","error":null,"accepted":true}]}`},
		{"shutdown, whose answer ends although zhxd has not ended", "shutdown", ``,
			fmt.Sprintf(`{"v":1,"pid":%d,"kept":3,"accepted":true}`, os.Getpid())},
	} {
		t.Run(tt.purpose, func(t *testing.T) {
			path, f := filepath.Join(t.TempDir(), "s"), newFake()
			begun, heard := make(chan struct{}), make(chan struct{})
			f.accept = func() { close(begun); <-heard }
			f.out = []Outcome{{Name: "self", Text: "accepted", Accepted: true, Begin: f.accept}}
			serve(t, path, f, mine())
			status, reply := curl(t, path, "POST", "/v1/"+tt.verb, tt.body)
			if status != 200 || strings.TrimSuffix(reply, "\n") != tt.reply {
				t.Errorf("got %d %s\nwant %s", status, reply, tt.reply)
			}
			close(heard)
			<-begun
		})
	}
	// It begins also when the asker has gone before.
	path, f := filepath.Join(t.TempDir(), "s"), newFake()
	f.asked = make(chan string) // the backend waits in it
	begun := make(chan struct{})
	f.out = []Outcome{{Name: "self", Accepted: true, Begin: func() { close(begun) }}}
	serve(t, path, f, mine())
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "POST /v1/restart HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n%s", `{"all":true}`)
	c.Close()
	<-f.asked
	<-begun
}

// The end of the server cancels what is under way.
func TestServeEnds(t *testing.T) {
	path, f := filepath.Join(t.TempDir(), "s"), newFake()
	f.working = make(chan struct{})
	_, end := serve(t, path, f, mine())
	done := make(chan error)
	go func() {
		_, err := Dial(path).Stop(t.Context(), Which{All: true})
		done <- err
	}()
	<-f.asked
	end()
	if err := <-done; err.(*Error).Code != CodeFailed {
		t.Error(err)
	}
}

func TestConnectionLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path, newFake(), mine())
	var open []net.Conn
	for range connLimit {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	_, err := Dial(path).Status(t.Context())
	if e, ok := err.(*Error); !ok || e.Code != CodeDown || !strings.Contains(e.Text, "takes no more") {
		t.Errorf("one more: %v", err)
	}
	// A place is free again soon after a connection has ended: net/http counts it when it has closed it.
	open[0].Close()
	err = errors.New("not asked")
	for began := time.Now(); err != nil && time.Since(began) < 10*time.Second; {
		_, err = Dial(path).Status(t.Context())
	}
	if err != nil {
		t.Error(err)
	}
}

// The groups come from /proc, and only while the pid is still of the same user.
func TestProcGroups(t *testing.T) {
	proc := t.TempDir()
	os.Mkdir(filepath.Join(proc, "12"), 0o755)
	os.WriteFile(filepath.Join(proc, "12", "status"), []byte("Name:\tGroups: 0\nUid:\t7\t1000\t7\t7\nGid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \n"), 0o644)
	for _, tt := range []struct {
		purpose string
		cred    unix.Ucred
		want    string
	}{
		{"its effective user's", unix.Ucred{Pid: 12, Uid: 1000}, "[4 24 1000]"},
		{"another user has the pid now", unix.Ucred{Pid: 12, Uid: 7}, "[]"},
		{"nobody has it", unix.Ucred{Pid: 13, Uid: 1000}, "[]"},
	} {
		if got := fmt.Sprint(procGroups(proc, &tt.cred)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.purpose, got, tt.want)
		}
	}
}

// Whoever is connected must ask in time, and as a whole, on both addresses.
func TestSlowRequests(t *testing.T) {
	for _, row := range []struct {
		name, says string
		limit      time.Duration
		control    bool
	}{
		{"nothing", "", readLimit, false},
		{"half a request", "GET /metrics HTTP/1.1\r\nHost: x\r\n", readLimit, false},
		{"no body, which it has promised", "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", readLimit, false},
		{"no body, on the control socket", "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", readLimit, true},
		{"no second request", "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", idleLimit, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{Backend: newFake(), Log: quiet(), Metrics: func() []byte { return []byte("page\n") }}
				client, server := net.Pipe()
				defer client.Close()
				ctx, cancel := context.WithCancel(t.Context())
				ln, ended := &oneConn{conn: server, done: make(chan struct{})}, make(chan error)
				go func() {
					if row.control {
						ended <- until(ctx, s.http(ctx), ln)
					} else {
						ended <- s.ServeMetrics(ctx, ln)
					}
				}()
				began := time.Now()
				fmt.Fprint(client, row.says)
				text, _ := io.ReadAll(client)
				if took := time.Since(began); took > row.limit+time.Second {
					t.Errorf("its connection was closed after %v, want %v", took, row.limit)
				}
				if asked := strings.HasSuffix(row.says, "\r\n\r\n"); strings.Contains(string(text), "page\n") != asked {
					t.Errorf("answered %q", text)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
