package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain lets the test binary play zhxctl under another user: askEnv holds a socket, and it prints what became of a reload,
// which a tap must be treated like.
func TestMain(m *testing.M) {
	if path := os.Getenv(askEnv); path != "" {
		_, err := Dial(path).Reload(context.Background(), false)
		tapped := Dial(path).Tap(context.Background(), "", 1, func(TapEvent) error { return nil })
		if (err == nil) != (tapped == nil) {
			err = Errorf(99, "", "reload: %v, tap: %w", err, tapped)
		}
		json.NewEncoder(os.Stdout).Encode(err)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const askEnv = "ZHX_TEST_ASK"

// askAs asks for a reload as another user, and returns the refusal, or nil.
func askAs(t *testing.T, path string, cred syscall.Credential) *Error {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{askEnv + "=" + path, "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &cred}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var refusal *Error
	if err := json.Unmarshal(out, &refusal); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return refusal
}

// openDir is a folder that every user may search, unlike t.TempDir.
func openDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "zhx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fake is a Backend that does what its fields say. It notes what it was asked for, one string a call.
type fake struct {
	asked   chan string
	err     error
	out     []Outcome
	lines   func(ctx context.Context, q LogQuery) iter.Seq[LogLine]
	ended   chan struct{} // closed by Shutdown
	working chan struct{} // Stop waits for it, if there is one

	accept func() // begins what Shutdown has accepted, if there is one
}

func newFake() *fake { return &fake{asked: make(chan string, 100), ended: make(chan struct{})} }

func (f *fake) note(by Caller, format string, args ...any) error {
	f.asked <- fmt.Sprintf(format, args...) + " by " + by.User
	return f.err
}

func (f *fake) Status(context.Context) Status {
	return Status{Daemon: &DaemonStatus{Version: "1", PID: 7, ConfigState: "ok"}, Groups: []GroupStatus{{Name: "@g"}}, Peers: []PeerStatus{{}}}
}

// Why knows a client that died once without a word.
func (f *fake) Why(_ context.Context, name string) (Why, error) {
	return Why{Name: name, State: "backoff", Now: "restarts at once", Deaths: []Death{{Run: 3, Reason: "unknown", At: Stamp{time.UnixMilli(0)}}}},
		f.note(Caller{User: "?"}, "why %s", name)
}
func (f *fake) Explain(_ context.Context, from, to string) (Explanation, error) {
	return Explanation{From: from, To: to, Rules: []Rule{{Client: from, Key: "may_send_to", For: to}}}, f.note(Caller{User: "?"}, "explain %s %s", from, to)
}
func (f *fake) Tap(_ context.Context, by Caller, pattern string) (iter.Seq[TapEvent], error) {
	var events []TapEvent
	for _, text := range []string{"hi", "\xff", "more"} {
		events = append(events, TapEvent{At: Stamp{time.UnixMilli(0)}, Kind: "message", From: "a", To: "b", Size: len(text), Text: text, Outcome: "written"})
	}
	return slices.Values(events), f.note(by, "tap %s", pattern)
}
func (f *fake) Show(_ context.Context, name string) (Shown, error) {
	return Shown{Name: name, File: "c.toml", Keys: []KeySet{{Key: "nice", Value: "5", From: "defaults", Line: 3}}}, f.note(Caller{User: "?"}, "show %s", name)
}
func (f *fake) Events(_ context.Context, q EventQuery) (iter.Seq[Event], error) {
	e := Event{Seq: 9, At: Stamp{time.UnixMilli(0)}, Client: "a", Kind: "ready", Run: new(uint64(3)), Text: "pid 412"}
	return slices.Values([]Event{e}), f.note(Caller{User: "?"}, "events %v", q)
}
func (f *fake) Logs(ctx context.Context, q LogQuery) (iter.Seq[LogLine], error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.lines(ctx, q), nil
}
func (f *fake) Start(_ context.Context, by Caller, w Which) ([]Outcome, error) {
	return f.out, f.note(by, "start %v", w)
}
func (f *fake) Stop(ctx context.Context, by Caller, w Which) ([]Outcome, error) {
	err := f.note(by, "stop %v", w)
	if f.working != nil {
		select {
		case <-f.working:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return f.out, err
}
func (f *fake) Restart(_ context.Context, by Caller, w Which) ([]Outcome, error) {
	return f.out, f.note(by, "restart %v", w)
}
func (f *fake) Kill(_ context.Context, by Caller, m KillRequest) ([]Outcome, error) {
	return f.out, f.note(by, "kill %v", m)
}
func (f *fake) Reset(_ context.Context, by Caller, w Which) ([]Outcome, error) {
	return f.out, f.note(by, "reset %v", w)
}
func (f *fake) Wait(_ context.Context, names []string, aim string) ([]Outcome, error) {
	return []Outcome{{Name: names[0], Text: aim}}, f.note(Caller{User: "?"}, "wait %v for %s", names, aim)
}
func (f *fake) Reload(_ context.Context, by Caller, dry bool) (ReloadResult, error) {
	return ReloadResult{Plan: []PlanRow{{"gps", "live", "watchdog_timeout", []Change{{"watchdog_timeout", "9s", "5s"}}}}}, f.note(by, "reload %v", dry)
}
func (f *fake) Send(_ context.Context, by Caller, m SendRequest) error {
	return f.note(by, "send %v", m)
}
func (f *fake) Pause(_ context.Context, by Caller, m PauseRequest) ([]Outcome, error) {
	return f.out, f.note(by, "pause %v", m)
}
func (f *fake) Resume(_ context.Context, by Caller, w Which) ([]Outcome, error) {
	return f.out, f.note(by, "resume %v", w)
}
func (f *fake) Shutdown(by Caller, keep bool) (ShutdownReply, func(), error) {
	begin := func() { close(f.ended) }
	if f.accept != nil {
		begin = f.accept
	}
	return ShutdownReply{Kept: 3, Accepted: f.accept != nil}, begin, f.note(by, "shutdown %v", keep)
}

// serve runs a server on path until the test ends or end is called, which returns when the server has ended.
func serve(t *testing.T, path string, b Backend, a Access) (s *Server, end func()) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o666)
	ctx, cancel := context.WithCancel(context.Background())
	s = &Server{Backend: b, Access: a, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln); close(done) }()
	end = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
	}
	t.Cleanup(end)
	return s, end
}

func mine() Access { return Access{UID: os.Getuid(), GID: -1} }

// curl sends one HTTP request and returns status and body.
func curl(t *testing.T, path, method, target, body string) (int, string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequest(method, "http://zhx"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestRoutes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f := newFake()
	f.lines = func(_ context.Context, q LogQuery) iter.Seq[LogLine] {
		f.note(Caller{User: "?"}, "logs %v", q)
		return func(func(LogLine) bool) {}
	}
	serve(t, path, f, mine())
	me := userName(os.Getuid())
	for _, tt := range []struct {
		purpose, method, target, body string
		status                        int
		asked, reply                  string
	}{
		{"a status without clients has lists, not null", "GET", "/v1/status", "", 200, "",
			`{"v":1,"daemon":{"version":"1","pid":7,"uptime_s":0,"config":"","config_state":"ok","config_error":null,"watchdog":null,"metrics":null,"counters":null},"clients":[],"groups":[{"name":"@g","clients":[]}],"peers":[{"names":[],"pid":null,"uid":null,"transport":"","protocol":0,"managed":false,"proof":"","stuck":false,"sent":{"bytes":0,"messages":0,"descriptors":0},"written":{"bytes":0,"messages":0,"descriptors":0},"waiting_bytes":0}]}`},
		{"names reach the backend with who asked", "POST", "/v1/stop", `{"names":["a","b"]}`, 200, "stop {[a b] false} by " + me, `{"v":1,"clients":[]}`},
		{"all", "POST", "/v1/restart", `{"all":true}`, 200, "restart {[] true} by " + me, `{"v":1,"clients":[]}`},
		{"start", "POST", "/v1/start", `{"names":["a"]}`, 200, "start {[a] false} by " + me, `{"v":1,"clients":[]}`},
		{"neither names nor all", "POST", "/v1/stop", ``, 400, "", `{"error":"give either \"names\" or \"all\"","code":2}`},
		{"both", "POST", "/v1/stop", `{"names":["a"],"all":true}`, 400, "", `{"error":"give either \"names\" or \"all\"","code":2}`},
		{"reload needs no body", "POST", "/v1/reload", "", 200, "reload false by " + me,
			`{"v":1,"dry_run":false,"plan":[{"name":"gps","action":"live","why":"watchdog_timeout","changes":[{"key":"watchdog_timeout","old":"9s","new":"5s"}]}],"problems":[]}`},
		{"a dry run says so", "POST", "/v1/reload", `{"dry_run":true}`, 200, "reload true by " + me,
			`{"v":1,"dry_run":true,"plan":[{"name":"gps","action":"live","why":"watchdog_timeout","changes":[{"key":"watchdog_timeout","old":"9s","new":"5s"}]}],"problems":[]}`},
		{"why has lists, not null", "GET", "/v1/why?name=gps", "", 200, "why gps by ?",
			`{"v":1,"name":"gps","state":"backoff","ready":false,"now":"restarts at once","next_s":null,"waits_for":[],"deaths":[{"run":3,"pid":null,"reason":"unknown","code":null,"signal":null,"core":false,"detail":null,"errno":null,"at":"1970-01-01T00:00:00.000Z","ago_s":0,"uptime_s":0,"ready":false,"next":"","lines":[]}],"evidence":null}`},
		{"why of nobody", "GET", "/v1/why", "", 400, "", `{"error":"why: give one name","code":2}`},
		{"why of two", "GET", "/v1/why?name=a&name=b", "", 400, "", `{"error":"why: give one name","code":2}`},
		{"explain has lists, not null", "GET", "/v1/explain?from=a&to=b", "", 200, "explain a b by ?",
			`{"v":1,"from":"a","to":"b","allowed":false,"why":[],"rules":[{"client":"a","key":"may_send_to","patterns":[],"for":"b","allowed":false,"pattern":""}],"identity":"","state":"","receives":false,"hold":null}`},
		{"explain half of it", "GET", "/v1/explain?from=a", "", 400, "", `{"error":"explain: give from and to","code":2}`},
		{"a tap that ends, and bytes that are no text", "GET", "/v1/tap?pattern=a&count=2", "", 200, "tap a by " + me,
			`{"at":"1970-01-01T00:00:00.000Z","kind":"message","from":"a","to":"b","size":2,"text":"hi","outcome":"written"}` + "\n" +
				`{"at":"1970-01-01T00:00:00.000Z","kind":"message","from":"a","to":"b","size":1,"text":"\ufffd","outcome":"written","bytes":"/w=="}`},
		{"a tap of a bad number", "GET", "/v1/tap?count=-1", "", 400, "", `{"error":"tap: count=\"-1\" is not a number of messages","code":2}`},
		{"send", "POST", "/v1/send", `{"target":"a","source":"b","text":"hi"}`, 200, "send {a b hi} by " + me, `{"v":1}`},
		{"show", "GET", "/v1/show?name=a", "", 200, "show a by ?", `{"v":1,"name":"a","file":"c.toml","keys":[{"key":"nice","value":"5","from":"defaults","line":3}]}`},
		{"events by default: all that are kept", "GET", "/v1/events", "", 200, "events {[] -1 false} by ?",
			`{"seq":9,"at":"1970-01-01T00:00:00.000Z","client":"a","kind":"ready","run":3,"text":"pid 412"}`},
		{"events with everything", "GET", "/v1/events?name=a&n=5&follow=1", "", 200, "events {[a] 5 true} by ?",
			`{"seq":9,"at":"1970-01-01T00:00:00.000Z","client":"a","kind":"ready","run":3,"text":"pid 412"}`},
		{"events of a bad number", "GET", "/v1/events?n=-2", "", 400, "", `{"error":"events: n=\"-2\" is not a number of events","code":2}`},
		{"logs by default: all lines of all clients", "GET", "/v1/logs", "", 200, "logs {[] -1 false  false} by ?", ""},
		{"logs with everything", "GET", "/v1/logs?name=a&name=b&n=5&follow=1&since=10m&previous=1", "", 200, "logs {[a b] 5 true 10m true} by ?", ""},
		{"logs since a time", "GET", "/v1/logs?since=2026-01-31T12:00:00Z", "", 200, "logs {[] -1 false 2026-01-31T12:00:00Z false} by ?", ""},
		{"logs since no time", "GET", "/v1/logs?since=noon", "", 400, "",
			`{"error":"logs: since=\"noon\" is no duration, as 10m, and no time, as 2026-01-31T12:00:00Z","code":2,"hint":"zhxctl logs --since 10m"}`},
		{"logs of a wish that is neither", "GET", "/v1/logs?previous=maybe", "", 400, "", `{"error":"logs: previous=\"maybe\" is neither 0 nor 1","code":2}`},
		{"kill", "POST", "/v1/kill", `{"names":["a"],"signal":"HUP"}`, 200, "kill {{[a] false} HUP} by " + me, `{"v":1,"clients":[]}`},
		{"kill nobody", "POST", "/v1/kill", `{"signal":"HUP"}`, 400, "", `{"error":"give either \"names\" or \"all\"","code":2}`},
		{"reset", "POST", "/v1/reset", `{"all":true}`, 200, "reset {[] true} by " + me, `{"v":1,"clients":[]}`},
		{"wait", "GET", "/v1/wait?name=a&name=b&for=ready", "", 200, "wait [a b] for ready by ?",
			`{"v":1,"clients":[{"name":"a","pid":null,"text":"ready","error":null}]}`},
		{"wait for what there is not", "GET", "/v1/wait?name=a&for=better", "", 400, "",
			`{"error":"wait: give names, and for what: ready, running or stopped","code":2,"hint":"zhxctl wait NAME --for ready"}`},
		{"wait for nobody", "GET", "/v1/wait?for=ready", "", 400, "",
			`{"error":"wait: give names, and for what: ready, running or stopped","code":2,"hint":"zhxctl wait NAME --for ready"}`},
		{"logs of a bad number", "GET", "/v1/logs?n=-2", "", 400, "", `{"error":"logs: n=\"-2\" is not a number of lines","code":2}`},
		{"a wish that this version does not know", "POST", "/v1/reload", `{"slowly":true}`, 400, "",
			`{"error":"bad request: json: unknown field \"slowly\"","code":2}`},
		{"not JSON", "POST", "/v1/send", `target=a`, 400, "",
			`{"error":"bad request: invalid character 'a' in literal true (expecting 'r')","code":2}`},
		{"the wrong method", "GET", "/v1/stop", "", 405, "", "Method Not Allowed"},
		{"too much", "POST", "/v1/send", `{"text":"` + strings.Repeat("x", bodyLimit) + `"}`, 400, "",
			`{"error":"bad request: http: request body too large","code":2}`},
	} {
		status, reply := curl(t, path, tt.method, tt.target, tt.body)
		if status != tt.status || strings.TrimSuffix(reply, "\n") != tt.reply {
			t.Errorf("%s: got %d %s\nwant %d %s", tt.purpose, status, reply, tt.status, tt.reply)
		}
		asked := ""
		if len(f.asked) > 0 {
			asked = <-f.asked
		}
		if asked != tt.asked {
			t.Errorf("%s: the backend was asked %q, want %q", tt.purpose, asked, tt.asked)
		}
	}
}

func TestErrorsPass(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f := newFake()
	serve(t, path, f, mine())
	c := Dial(path)
	for _, tt := range []struct {
		purpose string
		err     error
		want    Error
		status  int
	}{
		{"an Error as it is", &Error{Text: "x", Code: CodeUnknown, Hint: "h", Problems: []Problem{{"f", 3, "client.a", "bad", false, 1, 2}}},
			Error{Text: "x", Code: CodeUnknown, Hint: "h", Problems: []Problem{{"f", 3, "client.a", "bad", false, 1, 2}}}, 404},
		{"one that is wrapped", fmt.Errorf("outer: %w", &Error{Text: "x", Code: CodeStopped}), Error{Text: "x", Code: CodeStopped}, 409},
		{"another one is a failure", errors.New("no"), Error{Text: "no", Code: CodeFailed}, 500},
		{"a time-out", fmt.Errorf("stop: %w", context.DeadlineExceeded), Error{Text: "stop: context deadline exceeded", Code: CodeTimeout}, 504},
	} {
		f.err = tt.err
		_, err := c.Reload(t.Context(), false)
		<-f.asked
		if got, ok := err.(*Error); !ok || got.Text != tt.want.Text || got.Code != tt.want.Code || got.Hint != tt.want.Hint ||
			!slices.Equal(got.Problems, tt.want.Problems) {
			t.Errorf("%s: got %#v", tt.purpose, err)
		}
		if status, _ := curl(t, path, "POST", "/v1/reload", ""); status != tt.status {
			t.Errorf("%s: HTTP %d, want %d", tt.purpose, status, tt.status)
		}
		<-f.asked
		if _, err := c.Why(t.Context(), "a b&c"); err == nil || err.Error() != tt.want.Text {
			t.Errorf("%s: why: got %v", tt.purpose, err)
		}
		if asked := <-f.asked; asked != "why a b&c by ?" {
			t.Errorf("the backend was asked %q", asked)
		}
	}
}

func TestWhoMayAct(t *testing.T) {
	const nobody, group = 65534, 4242
	many := make([]uint32, 100) // more than one call of the kernel fetches
	for i := range many {
		many[i] = uint32(5000 + i)
	}
	for _, tt := range []struct {
		purpose string
		access  Access
		cred    syscall.Credential
		code    int
	}{
		{"root", Access{nobody, -1}, syscall.Credential{}, 0},
		{"zhxd's own user", Access{nobody, -1}, syscall.Credential{Uid: nobody, Gid: nobody}, 0},
		{"another user", Access{1, -1}, syscall.Credential{Uid: nobody, Gid: nobody}, CodeForbidden},
		{"another user, who is not in the control group", Access{1, group}, syscall.Credential{Uid: nobody, Gid: nobody, Groups: many}, CodeForbidden},
		{"by the main group", Access{1, group}, syscall.Credential{Uid: nobody, Gid: group}, 0},
		{"by another group", Access{1, group}, syscall.Credential{Uid: nobody, Gid: nobody, Groups: append(many, group)}, 0},
		{"without a control group, group 0 has no right", Access{1, -1}, syscall.Credential{Uid: nobody, Gid: 0}, CodeForbidden},
	} {
		t.Run(tt.purpose, func(t *testing.T) {
			path, f := filepath.Join(openDir(t), "s"), newFake()
			serve(t, path, f, tt.access)
			err := askAs(t, path, tt.cred)
			if code := codeOf(err); code != tt.code {
				t.Errorf("got code %d, %v", code, err)
			}
			if acted := len(f.asked) > 0; acted != (tt.code == 0) {
				t.Errorf("acted: %v", acted)
			}
		})
	}
}

func codeOf(e *Error) int {
	if e == nil {
		return 0
	}
	return e.Code
}
