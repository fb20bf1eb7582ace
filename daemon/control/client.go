package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrDown is in every Error that means that no zhxd runs, as opposed to one that cannot be reached or does not answer.
var ErrDown = errors.New("zhxd is not running")

// Client asks the zhxd whose control socket is at a path. Each request has its own connection, so any number may run at once.
// All errors are of type *Error. How long to wait is the context's matter.
type Client struct{ path string }

// Dial makes a Client. It connects when it is asked something.
func Dial(path string) *Client { return &Client{path: path} }

// Status returns the present state.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	return st, c.ask(ctx, "GET", "/v1/status", nil, &st)
}

// Version returns the version and pid of zhxd.
func (c *Client) Version(ctx context.Context) (v VersionReply, err error) {
	return v, c.ask(ctx, "GET", "/v1/version", nil, &v)
}

// Start starts clients, or returns an Error and starts none. An Outcome may hold an Error of its own. So do Stop and Restart.
func (c *Client) Start(ctx context.Context, w Which) (out Outcomes, err error) {
	return out, c.ask(ctx, "POST", "/v1/start", w, &out)
}

// Stop stops clients. It returns when nothing of them lives.
func (c *Client) Stop(ctx context.Context, w Which) (out Outcomes, err error) {
	return out, c.ask(ctx, "POST", "/v1/stop", w, &out)
}

// Restart stops and starts clients.
func (c *Client) Restart(ctx context.Context, w Which) (out Outcomes, err error) {
	return out, c.ask(ctx, "POST", "/v1/restart", w, &out)
}

// Reload has the configuration read again. An invalid one is an Error with all its problems.
func (c *Client) Reload(ctx context.Context) (res ReloadResult, err error) {
	return res, c.ask(ctx, "POST", "/v1/reload", nil, &res)
}

// Send sends one message to a client.
func (c *Client) Send(ctx context.Context, m SendRequest) error {
	return c.ask(ctx, "POST", "/v1/send", m, nil)
}

// Shutdown ends zhxd and returns when its process has ended.
func (c *Client) Shutdown(ctx context.Context, keep bool) (v VersionReply, err error) {
	return v, c.open(ctx, "POST", "/v1/shutdown", ShutdownRequest{Keep: keep}, func(body io.Reader) error {
		if err := json.NewDecoder(body).Decode(&v); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, body)
		if errors.Is(err, syscall.ECONNRESET) {
			return nil // the process ended, with something of ours unread
		}
		return err
	})
}

// Logs hands each line to emit until the lines end, ctx ends, or emit returns an error, which Logs returns as it is.
func (c *Client) Logs(ctx context.Context, q LogQuery, emit func(LogLine) error) error {
	args := url.Values{"name": q.Names, "n": {strconv.Itoa(q.N)}}
	if q.Follow {
		args.Set("follow", "1")
	}
	var stop error
	err := c.open(ctx, "GET", "/v1/logs?"+args.Encode(), nil, func(body io.Reader) error {
		for dec := json.NewDecoder(body); ; {
			var line LogLine
			if err := dec.Decode(&line); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			if line.Bytes != nil {
				line.Text, line.Bytes = string(line.Bytes), nil
			}
			if stop = emit(line); stop != nil {
				return nil
			}
		}
	})
	if stop != nil {
		return stop
	}
	return err
}

// ask sends one request and decodes its answer; into may be nil.
func (c *Client) ask(ctx context.Context, method, target string, body, into any) error {
	return c.open(ctx, method, target, body, func(r io.Reader) error {
		if into == nil {
			return nil
		}
		return json.NewDecoder(r).Decode(into)
	})
}

// open sends one request and gives the body of its answer to read. It makes every failure into an *Error that says what to do.
func (c *Client) open(ctx context.Context, method, target string, body any, read func(io.Reader) error) error {
	began := time.Now()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.path)
	if err != nil && ctx.Err() == nil {
		return unreachable(c.path, err)
	}
	if err == nil {
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
		err = c.talk(ctx, conn, method, target, body, read)
	}
	verb, _, _ := strings.Cut(strings.TrimPrefix(target, "/v1/"), "?")
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Errorf(CodeTimeout, "zhxctl status", "%s: zhxd at %s did not finish within %s; it goes on without being waited for: %w",
			verb, c.path, time.Since(began).Round(time.Millisecond), ctx.Err())
	case ctx.Err() != nil:
		return Errorf(CodeFailed, "", "%s: interrupted; what zhxd has begun goes on: %w", verb, ctx.Err())
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return Errorf(CodeDown, "zhxctl status", "%s: zhxd ended, or broke off its answer: %w", verb, err)
}

// talk does one exchange on conn.
func (c *Client) talk(ctx context.Context, conn net.Conn, method, target string, body any, read func(io.Reader) error) error {
	text := []byte(nil)
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://zhxd"+target, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Close = true
	if wrote := req.Write(conn); errors.Is(wrote, os.ErrDeadlineExceeded) {
		return wrote
	} // else there may be an answer that says why it was not read
	res, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return Errorf(CodeDown, "zhxctl status; else name the control socket with --control",
			"%s closed the connection without an answer: zhxd ended this moment, or this is not its control socket", c.path)
	}
	if err != nil || !strings.HasPrefix(res.Header.Get("Server"), "zhxd/") {
		return Errorf(CodeDown, "name zhxd's control socket with --control", "what answers at %s is not zhxd's control socket", c.path)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return read(res.Body)
	}
	refusal := &Error{}
	if err := json.NewDecoder(res.Body).Decode(refusal); err != nil || refusal.Code == 0 {
		return Errorf(CodeFailed, "", "%s: zhxd answered %s", target, res.Status)
	}
	return refusal
}

// unreachable says why nobody could be asked, and what to do about it.
func unreachable(path string, err error) *Error {
	const start = "zhxctl start"
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return &Error{Code: CodeDown, Hint: start, cause: ErrDown, Text: "zhxd is not running: there is no " + path}
	case errors.Is(err, syscall.ECONNREFUSED):
		if info, err := os.Stat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
			return &Error{Code: CodeDown, Hint: "name zhxd's control socket with --control", Text: path + " is not a socket"}
		}
		return &Error{Code: CodeDown, Hint: start, cause: ErrDown,
			Text: "zhxd is not running: it left the stale socket " + path + " behind, which the next start removes"}
	case errors.Is(err, fs.ErrPermission):
		return forbidden(path)
	case errors.Is(err, syscall.EPROTOTYPE):
		return &Error{Code: CodeDown, Hint: "name zhxd's control socket with --control", Text: path + " is a socket of another kind than zhxd's"}
	case len(path) > pathLimit:
		return &Error{Code: CodeUsage, Text: fmt.Sprintf("the control socket's path is longer than %d bytes: %s", pathLimit, path)}
	case errors.Is(err, syscall.EAGAIN):
		return &Error{Code: CodeDown, Hint: "is it stopped? look at its process", Text: "zhxd takes no more connections at " + path}
	}
	return Errorf(CodeDown, "", "connect to zhxd: %w", err)
}

// forbidden names whom the socket, or the first folder in the way, is for.
func forbidden(path string) *Error {
	info, err := os.Stat(path)
	for errors.Is(err, fs.ErrPermission) && path != "/" && path != "." {
		path = filepath.Dir(path)
		info, err = os.Stat(path)
	}
	me := userName(os.Geteuid())
	e := &Error{Code: CodeForbidden, Hint: "become root (sudo zhxctl …)", cause: fs.ErrPermission,
		Text: "user " + me + " is not permitted to connect to " + path}
	if err != nil {
		return e
	}
	owner := info.Sys().(*syscall.Stat_t)
	e.Text = fmt.Sprintf("%s, which is for user %s and group %s (mode %04o)", e.Text,
		userName(int(owner.Uid)), groupName(int(owner.Gid)), info.Mode().Perm())
	if owner.Gid != 0 && info.Mode().Perm()&0o060 == 0o060 {
		group := groupName(int(owner.Gid))
		e.Hint += ", or join group " + group + " (usermod -a -G " + group + " " + me + ") and log in again"
	}
	return e
}
