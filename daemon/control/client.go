package control

import (
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
type Client struct {
	path string
	http http.Client
}

// Dial makes a Client. It connects when it is asked something.
func Dial(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status returns the present state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return askFor[Status](ctx, c, "GET", "status", nil)
}

// Why returns what one client is doing, and how its last runs ended.
func (c *Client) Why(ctx context.Context, name string) (Why, error) {
	return askFor[Why](ctx, c, "GET", "why?"+url.Values{"name": {name}}.Encode(), nil)
}

// Start starts clients, or returns an Error and starts none. An Outcome may hold an Error of its own. So do Stop and Restart.
func (c *Client) Start(ctx context.Context, w Which) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "POST", "start", w)
}

// Stop stops clients. It returns when nothing of them lives, except of those that an Outcome says are Accepted.
func (c *Client) Stop(ctx context.Context, w Which) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "POST", "stop", w)
}

// Restart stops and starts clients.
func (c *Client) Restart(ctx context.Context, w Which) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "POST", "restart", w)
}

// Kill signals clients. It does not wait for what comes of that.
func (c *Client) Kill(ctx context.Context, m KillRequest) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "POST", "kill", m)
}

// Reset has the failures of clients forgotten.
func (c *Client) Reset(ctx context.Context, w Which) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "POST", "reset", w)
}

// Wait returns when all of names are as aim has it, with CodeStopped when that cannot come.
func (c *Client) Wait(ctx context.Context, names []string, aim string) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "GET", "wait?"+url.Values{"name": names, "for": {aim}}.Encode(), nil)
}

// Pause stops the watchdog's clock for clients, for a time.
func (c *Client) Pause(ctx context.Context, m PauseRequest) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "POST", "watchdog/pause", m)
}

// Resume ends pauses.
func (c *Client) Resume(ctx context.Context, w Which) (Outcomes, error) {
	return askFor[Outcomes](ctx, c, "POST", "watchdog/resume", w)
}

// Reload has the configuration read again; with dry, it is only told what that would do. An invalid one is an Error with all its
// problems.
func (c *Client) Reload(ctx context.Context, dry bool) (ReloadResult, error) {
	return askFor[ReloadResult](ctx, c, "POST", "reload", ReloadRequest{DryRun: dry})
}

// Send sends one message to a client.
func (c *Client) Send(ctx context.Context, m SendRequest) error {
	return c.ask(ctx, "POST", "send", m, decode(&struct{}{}))
}

// Shutdown ends zhxd, and returns when its process has ended, or at once if the request is Accepted. With keep the clients go on.
func (c *Client) Shutdown(ctx context.Context, keep bool) (answer ShutdownReply, err error) {
	err = c.ask(ctx, "POST", "shutdown", ShutdownRequest{Keep: keep}, func(body io.Reader) error {
		if err := decode(&answer)(body); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, body); !errors.Is(err, syscall.ECONNRESET) { // it ended with something of ours unread
			return err
		}
		return nil
	})
	return answer, err
}

// Logs hands each line to emit until the lines end, ctx ends, or emit returns an error, which Logs returns as it is.
func (c *Client) Logs(ctx context.Context, q LogQuery, emit func(LogLine) error) error {
	args := url.Values{"name": q.Names, "n": {strconv.Itoa(q.N)}, "follow": {strconv.FormatBool(q.Follow)},
		"since": {q.Since}, "previous": {strconv.FormatBool(q.Previous)}}
	return follow(ctx, c, "logs?"+args.Encode(), func(line LogLine) error {
		if line.Bytes != nil {
			line.Text, line.Bytes = string(line.Bytes), nil
		}
		return emit(line)
	})
}

// Explain says who may send to whom and why: from is a name, to one as well, or topic:NAME.
func (c *Client) Explain(ctx context.Context, from, to string) (Explanation, error) {
	return askFor[Explanation](ctx, c, "GET", "explain?"+url.Values{"from": {from}, "to": {to}}.Encode(), nil)
}

// Show returns the configuration of a client that is in force.
func (c *Client) Show(ctx context.Context, name string) (Shown, error) {
	return askFor[Shown](ctx, c, "GET", "show?"+url.Values{"name": {name}}.Encode(), nil)
}

// Events hands each event to emit; it ends as Logs does.
func (c *Client) Events(ctx context.Context, q EventQuery, emit func(Event) error) error {
	args := url.Values{"name": q.Names, "n": {strconv.Itoa(q.N)}, "follow": {strconv.FormatBool(q.Follow)}}
	return follow(ctx, c, "events?"+args.Encode(), emit)
}

// Tap hands each message that pattern means ("": all) to emit as it passes, count of them (0: any number); it ends as Logs does.
func (c *Client) Tap(ctx context.Context, pattern string, count int, emit func(TapEvent) error) error {
	args := url.Values{"pattern": {pattern}, "count": {strconv.Itoa(count)}}
	return follow(ctx, c, "tap?"+args.Encode(), func(e TapEvent) error {
		if e.Bytes != nil {
			e.Text, e.Bytes = string(e.Bytes), nil
		}
		return emit(e)
	})
}

// follow hands each line of an answer to emit.
func follow[T any](ctx context.Context, c *Client, what string, emit func(T) error) error {
	var stop error
	err := c.ask(ctx, "GET", what, nil, func(body io.Reader) error {
		for lines := json.NewDecoder(body); ; {
			var line T
			if err := lines.Decode(&line); err == io.EOF {
				return nil
			} else if err != nil {
				return err
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

// askFor asks for an answer of one JSON value.
func askFor[T any](ctx context.Context, c *Client, method, what string, body any) (v T, err error) {
	err = c.ask(ctx, method, what, body, decode(&v))
	return v, err
}

func decode(into any) func(io.Reader) error {
	return func(body io.Reader) error { return json.NewDecoder(body).Decode(into) }
}

// ask sends one request and gives the body of its answer to read. It makes every failure into an *Error that says what to do.
func (c *Client) ask(ctx context.Context, method, what string, body any, read func(io.Reader) error) error {
	began := time.Now()
	err := c.exchange(ctx, method, what, body, read)
	verb, _, _ := strings.Cut(what, "?")
	refusal, refused := errors.AsType[*Error](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Errorf(CodeTimeout, "zhxctl status; if that gets no answer either, look at zhxd's process",
			"%s: no answer from zhxd at %s within %s; what it has begun goes on", verb, c.path, time.Since(began).Round(time.Millisecond))
	case ctx.Err() != nil:
		return Errorf(CodeFailed, "", "%s: interrupted; what zhxd has begun goes on", verb)
	case refused:
		return refusal
	}
	return Errorf(CodeDown, "zhxctl status", "%s: zhxd ended, or broke off its answer: %w", verb, err)
}

func (c *Client) exchange(ctx context.Context, method, what string, body any, read func(io.Reader) error) error {
	var text []byte
	if body != nil {
		text, _ = json.Marshal(body) // of a type of ours: it can be marshalled
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://zhxd/v1/"+what, bytes.NewReader(text))
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return unreachable(c.path, err)
	}
	if err != nil || !strings.HasPrefix(res.Header.Get("Server"), "zhxd/") {
		return Errorf(CodeDown, "zhxctl status; else name the control socket with --control",
			"no answer at %s: zhxd ended this moment, or this is not its control socket", c.path)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return read(res.Body)
	}
	refusal := &Error{}
	if json.NewDecoder(res.Body).Decode(refusal) != nil || refusal.Code == 0 {
		return Errorf(CodeFailed, "", "%s: zhxd answered %s", what, res.Status)
	}
	return refusal
}

// unreachable says why nobody could be asked, and what to do about it.
func unreachable(path string, err error) *Error {
	info, statErr := os.Stat(path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return Errorf(CodeDown, "zhxctl start", "%w: there is no %s", ErrDown, path)
	case errors.Is(err, syscall.ECONNREFUSED) && statErr == nil && info.Mode().Type() != fs.ModeSocket:
		return Errorf(CodeDown, "name zhxd's control socket with --control", "%s is not a socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return Errorf(CodeDown, "zhxctl start", "%w: it left the stale socket %s behind, which the next start removes", ErrDown, path)
	case errors.Is(err, fs.ErrPermission):
		return forbidden(path)
	}
	return Errorf(CodeDown, "name zhxd's control socket with --control; if this is it, look at zhxd's process", "connect to zhxd: %w", err)
}

// forbidden names whom the socket, or the first folder in the way, is for.
func forbidden(path string) *Error {
	info, err := os.Stat(path)
	for errors.Is(err, fs.ErrPermission) && path != "/" && path != "." {
		path = filepath.Dir(path)
		info, err = os.Stat(path)
	}
	me := userName(os.Geteuid())
	e := &Error{Code: CodeForbidden, Hint: "become root (sudo zhxctl …)", Text: "user " + me + " is not permitted to connect to " + path}
	if err != nil {
		return e
	}
	owner := info.Sys().(*syscall.Stat_t)
	group := groupName(int(owner.Gid))
	e.Text += fmt.Sprintf(", which is for user %s and group %s (mode %04o)", userName(int(owner.Uid)), group, info.Mode().Perm())
	if owner.Gid != 0 && info.Mode().Perm()&0o060 == 0o060 {
		e.Hint += ", or join group " + group + " (usermod -a -G " + group + " " + me + ") and log in again"
	}
	return e
}
