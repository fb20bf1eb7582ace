package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// answer is a listener that is not zhxd: it reads a little and writes text.
func answer(t *testing.T, path, text string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for c, err := ln.Accept(); err == nil; c, err = ln.Accept() {
			c.Read(make([]byte, 1000))
			io.WriteString(c, text)
			c.Close()
		}
	}()
}

// What can be wrong is told apart, and each says what to do.
func TestUnreachable(t *testing.T) {
	for _, tt := range []struct {
		purpose string
		make    func(t *testing.T, path string)
		code    int
		down    bool
		text    string
	}{
		{"nothing there", func(*testing.T, string) {}, CodeDown, true, "zhxd is not running: there is no "},
		{"a stale socket", func(t *testing.T, path string) {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			ln.SetUnlinkOnClose(false)
			ln.Close()
		}, CodeDown, true, "stale socket"},
		{"a file", func(_ *testing.T, path string) { os.WriteFile(path, nil, 0o600) }, CodeDown, false, "is not a socket"},
		{"a socket of another kind", func(t *testing.T, path string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}, CodeDown, false, "wrong type for socket"},
		{"silence", func(t *testing.T, path string) { answer(t, path, "") }, CodeDown, false, "or this is not its control socket"},
		{"garbage", func(t *testing.T, path string) { answer(t, path, "+OK\r\n\r\n") }, CodeDown, false, "or this is not its control socket"},
		{"another HTTP server", func(t *testing.T, path string) { answer(t, path, "HTTP/1.0 200 OK\r\n\r\n{}") }, CodeDown, false,
			"or this is not its control socket"},
		{"half an answer", func(t *testing.T, path string) {
			answer(t, path, "HTTP/1.1 200 OK\r\nServer: zhxd/1\r\nContent-Length: 50\r\n\r\n{")
		}, CodeDown, false, "broke off its answer"},
		{"an answer that is no JSON", func(t *testing.T, path string) {
			answer(t, path, "HTTP/1.0 500 Oh\r\nServer: zhxd/1\r\n\r\noh")
		}, CodeFailed, false, "zhxd answered 500 Oh"},
	} {
		t.Run(tt.purpose, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			tt.make(t, path)
			_, err := Dial(path).Status(t.Context())
			e, ok := err.(*Error)
			if !ok || e.Code != tt.code || errors.Is(err, ErrDown) != tt.down || !strings.Contains(e.Text, tt.text) {
				t.Errorf("got %#v", err)
			}
			if ok && e.Hint == "" && e.Code == CodeDown {
				t.Error("it does not say what to do")
			}
		})
	}
}

func TestNoPermission(t *testing.T) {
	stranger := syscall.Credential{Uid: 65534, Gid: 65534}
	path := filepath.Join(openDir(t), "s")
	serve(t, path, newFake(), mine())
	os.Chown(path, 0, 4242)
	os.Chmod(path, 0o660)
	e := askAs(t, path, stranger)
	if codeOf(e) != CodeForbidden || !strings.Contains(e.Text, "group gid 4242 (mode 0660)") || !strings.Contains(e.Hint, "usermod -a -G gid 4242") {
		t.Errorf("a socket for a group: %#v", e)
	}
	if e := askAs(t, path, syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{4242}}); codeOf(e) != CodeForbidden ||
		!strings.Contains(e.Text, "is not for user") {
		t.Errorf("who may connect is told by the server whether it may act: %#v", e)
	}
	os.Chmod(filepath.Dir(path), 0o700)
	e = askAs(t, path, stranger)
	if codeOf(e) != CodeForbidden || !strings.Contains(e.Text, filepath.Dir(path)+", which is for user root") {
		t.Errorf("a folder in the way: %#v", e)
	}
}

func TestTimeouts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path) // it accepts nothing: as a zhxd that is stopped
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = Dial(path).Status(ctx)
	if e, ok := err.(*Error); !ok || e.Code != CodeTimeout || !strings.Contains(e.Text, "status: no answer from zhxd at ") {
		t.Errorf("got %#v", err)
	}
}
