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
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// Server answers on one control socket. Fill in the exported fields, then call Serve once.
type Server struct {
	// Immutable:
	Backend Backend
	Access  Access
	Version string // of zhxd, for the Server header
	Log     *slog.Logger
	Metrics func() []byte // the page of GET /metrics; it does not wait. nil: there is none

	mu sync.Mutex
	// mu guards:
	held []net.Conn // of shutdown requests: they end with the process
}

// Serve answers until ctx ends, then delivers the answers under way, closes ln and returns nil. It is the last thing that zhxd
// ends. An error means that ln broke.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	if err := until(ctx, s.http(ctx), ln); err != nil {
		return fmt.Errorf("serve control socket %s: %w", ln.Addr(), err)
	}
	return nil
}

// ServeMetrics answers GET /metrics on ln, and nothing else, as Serve does. Whoever can connect may read, and asks for a new page
// once in metricsRest at most, however many they are.
func (s *Server) ServeMetrics(ctx context.Context, ln net.Listener) error {
	var mu sync.Mutex
	var page []byte
	var at time.Time
	mux := http.NewServeMux()
	latest := func() []byte {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(at) >= metricsRest {
			page, at = s.Metrics(), time.Now()
		}
		return page
	}
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { exhibit(w, latest()) })
	return until(ctx, s.limited(ctx, metricsConns, mux), ln)
}

func exhibit(w http.ResponseWriter, page []byte) {
	extend(w)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(page) // a reader that is gone needs no answer
}

// until serves until ctx ends, and then delivers the answers under way.
func until(ctx context.Context, hs *http.Server, ln net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- hs.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	if hs.Shutdown(grace) != nil {
		hs.Close()
	}
	<-done
	return nil
}

// Close ends the answers to shutdown, as the end of the process would.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.held {
		c.Close()
	}
	s.held = nil
}

type connKey struct{} // in a request's context: its *net.UnixConn

func (s *Server) http(ctx context.Context) *http.Server {
	mux := http.NewServeMux()
	if s.Metrics != nil {
		mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { exhibit(w, s.Metrics()) })
	}
	mux.Handle("GET /v1/status", reading(s.status))
	mux.Handle("GET /v1/why", reading(s.why))
	mux.Handle("GET /v1/explain", reading(s.explain))
	mux.Handle("GET /v1/logs", reading(s.logs))
	mux.Handle("GET /v1/tap", reading(s.tap))
	mux.Handle("GET /v1/wait", reading(s.wait))
	mux.Handle("GET /v1/events", reading(s.events))
	mux.Handle("GET /v1/show", reading(s.show))
	mux.Handle("POST /v1/start", clients(s, Backend.Start))
	mux.Handle("POST /v1/stop", clients(s, Backend.Stop))
	mux.Handle("POST /v1/restart", clients(s, Backend.Restart))
	mux.Handle("POST /v1/kill", acting(s, s.kill))
	mux.Handle("POST /v1/reset", clients(s, Backend.Reset))
	mux.Handle("POST /v1/watchdog/resume", clients(s, Backend.Resume))
	mux.Handle("POST /v1/watchdog/pause", acting(s, s.pause))
	mux.Handle("POST /v1/reload", acting(s, s.reload))
	mux.Handle("POST /v1/send", acting(s, s.send))
	mux.Handle("POST /v1/shutdown", acting(s, s.shutdown))
	return s.limited(ctx, connLimit, mux)
}

// limited makes a server of so many connections.
func (s *Server) limited(ctx context.Context, limit int64, handler http.Handler) *http.Server {
	var open atomic.Int64
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Of a body that was promised and is not here yet, net/http reads the rest, however long that takes.
			defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readLimit)) }()
			w.Header().Set("Server", "zhxd/"+s.Version)
			if open.Load() > limit {
				w.Header().Set("Connection", "close")
				refuse(w, Errorf(CodeDown, "try again", "zhxd has %d control connections open and takes no more", limit))
				return
			}
			handler.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: readLimit,
		IdleTimeout:       idleLimit,
		MaxHeaderBytes:    headerLimit,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > 2*limit {
					c.Close()
				}
			case http.StateClosed, http.StateHijacked:
				open.Add(-1)
			}
		},
	}
}

// reading makes the handler of a verb that reads. do returns the answer, or nil if it has given it.
func reading(do func(w http.ResponseWriter, r *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch answer, err := do(w, r); {
		case err != nil:
			refuse(w, err)
		case answer != nil:
			reply(w, http.StatusOK, answer)
		}
	})
}

// acting makes the handler of a verb that acts: it checks who asks, and decodes the body. An unknown field is refused: a wish that
// this zhxd is too old for must not be half fulfilled.
func acting[T any](s *Server, do func(w http.ResponseWriter, ctx context.Context, by Caller, req T) (any, error)) http.Handler {
	return reading(func(w http.ResponseWriter, r *http.Request) (any, error) {
		by, err := s.admit(r)
		if err != nil {
			return nil, err
		}
		control := http.NewResponseController(w)
		control.SetReadDeadline(time.Now().Add(readLimit))
		var req T
		body := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyLimit))
		body.DisallowUnknownFields()
		if err := body.Decode(&req); err != nil && err != io.EOF { // no body is an empty request
			return nil, Errorf(CodeUsage, "", "bad request: %w", err)
		}
		control.SetReadDeadline(time.Time{}) // else it would end what takes longer, such as a stop
		return do(w, r.Context(), by, req)
	})
}

// admit names who asks, and is an error where that may not act.
func (s *Server) admit(r *http.Request) (by Caller, err error) {
	by, err = s.Access.admit(r.Context().Value(connKey{}).(*net.UnixConn), strings.TrimPrefix(r.URL.Path, "/v1/"))
	if err != nil {
		s.Log.Warn("control request refused", "peer", by.String(), "err", err)
	}
	return by, err
}

// clients makes the handler of a verb on clients. What was only accepted begins after the answer.
func clients(s *Server, do func(Backend, context.Context, Caller, Which) ([]Outcome, error)) http.Handler {
	return acting(s, func(w http.ResponseWriter, ctx context.Context, by Caller, which Which) (any, error) {
		return nil, act(w, ctx, which, func() ([]Outcome, error) { return do(s.Backend, ctx, by, which) })
	})
}

func (s *Server) kill(w http.ResponseWriter, ctx context.Context, by Caller, m KillRequest) (any, error) {
	return nil, act(w, ctx, m.Which, func() ([]Outcome, error) { return s.Backend.Kill(ctx, by, m) })
}

func act(w http.ResponseWriter, ctx context.Context, which Which, do func() ([]Outcome, error)) error {
	if which.All == (len(which.Names) > 0) {
		return Errorf(CodeUsage, "", `give either "names" or "all"`)
	}
	out, err := do()
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, Outcomes{V: 1, Clients: list(out)})
	if slices.ContainsFunc(out, func(c Outcome) bool { return c.Begin != nil }) {
		heard(ctx)
	}
	for _, c := range out {
		if c.Begin != nil {
			c.Begin()
		}
	}
	return nil
}

// heard waits until the asker has closed the connection, which it does when it has the answer, or has had time to.
func heard(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(hearLimit):
	}
}

// reply sends v as a line of JSON, whole, before it returns: the length is told where the body does not end with the connection.
// A reader that is gone needs no answer.
func reply(w http.ResponseWriter, status int, v any) {
	extend(w)
	body, _ := json.Marshal(v) // of a type of ours: it can be marshalled
	w.Header().Set("Content-Type", "application/json")
	if w.Header().Get("Transfer-Encoding") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
	_ = http.NewResponseController(w).Flush()
}

func refuse(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Text: err.Error(), Code: CodeFailed}
		if errors.Is(err, context.DeadlineExceeded) {
			e.Code = CodeTimeout
		}
	}
	reply(w, httpStatus[e.Code], e)
}

// extend gives the reader the write limit from now on.
func extend(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeLimit))
}

// list is s as JSON should have it: a list is a list, never null.
func list[T any](s []T) []T { return append([]T{}, s...) }

func (s *Server) status(_ http.ResponseWriter, r *http.Request) (any, error) {
	st := s.Backend.Status(r.Context())
	st.V, st.Clients, st.Groups, st.Peers = 1, list(st.Clients), list(st.Groups), list(st.Peers)
	for i := range st.Clients {
		c := &st.Clients[i]
		c.WaitsFor, c.DependsOn, c.TalksTo = list(c.WaitsFor), list(c.DependsOn), list(c.TalksTo)
	}
	for i := range st.Groups {
		st.Groups[i].Clients = list(st.Groups[i].Clients)
	}
	for i := range st.Peers {
		st.Peers[i].Names = list(st.Peers[i].Names)
	}
	return st, nil
}

func (s *Server) why(_ http.ResponseWriter, r *http.Request) (any, error) {
	names := r.URL.Query()["name"]
	if len(names) != 1 {
		return nil, Errorf(CodeUsage, "", "why: give one name")
	}
	y, err := s.Backend.Why(r.Context(), names[0])
	y.V, y.WaitsFor, y.Deaths = 1, list(y.WaitsFor), list(y.Deaths)
	if y.Evidence != nil {
		y.Evidence.Lines = list(y.Evidence.Lines)
	}
	for i := range y.Deaths {
		y.Deaths[i].Lines = list(y.Deaths[i].Lines)
	}
	return y, err
}

func (s *Server) explain(_ http.ResponseWriter, r *http.Request) (any, error) {
	args := r.URL.Query()
	if len(args["from"]) != 1 || len(args["to"]) != 1 {
		return nil, Errorf(CodeUsage, "", "explain: give from and to")
	}
	x, err := s.Backend.Explain(r.Context(), args.Get("from"), args.Get("to"))
	x.V, x.Why, x.Rules = 1, list(x.Why), list(x.Rules)
	for i := range x.Rules {
		x.Rules[i].Patterns = list(x.Rules[i].Patterns)
	}
	return x, err
}

// show is not for everybody: a configuration may have secrets in its environments.
func (s *Server) show(_ http.ResponseWriter, r *http.Request) (any, error) {
	if _, err := s.admit(r); err != nil {
		return nil, err
	}
	shown, err := s.Backend.Show(r.Context(), r.URL.Query().Get("name"))
	shown.V, shown.Keys = 1, list(shown.Keys)
	return shown, err
}

// events streams as logs does.
func (s *Server) events(w http.ResponseWriter, r *http.Request) (any, error) {
	args := r.URL.Query()
	q := EventQuery{Names: args["name"], N: -1}
	q.Follow, _ = strconv.ParseBool(args.Get("follow"))
	if err := howMany(args, "n", -1, &q.N, "events", "events"); err != nil {
		return nil, err
	}
	events, err := s.Backend.Events(r.Context(), q)
	if err == nil {
		stream(w, events, 0, func(*Event) {})
	}
	return nil, err
}

// tap streams as logs does, but not to everybody: it shows what others say to each other.
func (s *Server) tap(w http.ResponseWriter, r *http.Request) (any, error) {
	by, err := s.admit(r)
	if err != nil {
		return nil, err
	}
	args, n := r.URL.Query(), 0
	if err := howMany(args, "count", 0, &n, "tap", "messages"); err != nil {
		return nil, err
	}
	events, err := s.Backend.Tap(r.Context(), by, args.Get("pattern"))
	if err == nil {
		stream(w, events, n, func(e *TapEvent) { e.Bytes = noText(e.Text) })
	}
	return nil, err
}

// noText is s where it is not UTF-8, which JSON cannot carry; else nil.
func noText(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// howMany reads a number of things, at least least, if there is one.
func howMany(args url.Values, key string, least int, n *int, verb, things string) (err error) {
	text := args.Get(key)
	if text == "" {
		return nil
	}
	if *n, err = strconv.Atoi(text); err != nil || *n < least {
		return Errorf(CodeUsage, "", "%s: %s=%q is not a number of %s", verb, key, text, things)
	}
	return nil
}

// logs streams until the lines end or the reader goes, or takes nothing for the write limit.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) (any, error) {
	args := r.URL.Query()
	q := LogQuery{Names: args["name"], N: -1, Since: args.Get("since")}
	if _, err := q.From(); err != nil {
		return nil, err
	}
	err := howMany(args, "n", -1, &q.N, "logs", "lines")
	if err != nil {
		return nil, err
	}
	for key, wish := range map[string]*bool{"follow": &q.Follow, "previous": &q.Previous} {
		if f := args.Get(key); f != "" {
			if *wish, err = strconv.ParseBool(f); err != nil {
				return nil, Errorf(CodeUsage, "", "logs: %s=%q is neither 0 nor 1", key, f)
			}
		}
	}
	lines, err := s.Backend.Logs(r.Context(), q)
	if err == nil {
		stream(w, lines, 0, func(line *LogLine) { line.Bytes = noText(line.Text) })
	}
	return nil, err
}

func (s *Server) wait(_ http.ResponseWriter, r *http.Request) (any, error) {
	names, aim := r.URL.Query()["name"], r.URL.Query().Get("for")
	if len(names) == 0 || !slices.Contains([]string{AimReady, AimRunning, AimStopped}, aim) {
		return nil, Errorf(CodeUsage, "zhxctl wait NAME --for ready", "wait: give names, and for what: ready, running or stopped")
	}
	out, err := s.Backend.Wait(r.Context(), names, aim)
	return Outcomes{V: 1, Clients: list(out)}, err
}

// stream writes a line of JSON for each of lines, the first n of them (0: all), as shape makes it.
func stream[T any](w http.ResponseWriter, lines iter.Seq[T], n int, shape func(*T)) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	extend(w)
	out, flush := json.NewEncoder(w), http.NewResponseController(w).Flush
	if flush() != nil { // the header says that the question was understood, before there is a line
		return
	}
	for line := range lines {
		shape(&line)
		extend(w)
		if n--; out.Encode(line) != nil || flush() != nil || n == 0 {
			return
		}
	}
}

func (s *Server) pause(_ http.ResponseWriter, ctx context.Context, by Caller, m PauseRequest) (any, error) {
	if len(m.Names) == 0 || m.Seconds <= 0 || m.Seconds > PauseMax.Seconds() {
		return nil, Errorf(CodeUsage, "", `pause: give "names", and "for_s" above 0 and up to %.0f`, PauseMax.Seconds())
	}
	out, err := s.Backend.Pause(ctx, by, m)
	return Outcomes{V: 1, Clients: list(out)}, err
}

func (s *Server) reload(w http.ResponseWriter, ctx context.Context, by Caller, m ReloadRequest) (any, error) {
	res, err := s.Backend.Reload(ctx, by, m.DryRun)
	if err != nil {
		return nil, err
	}
	res.V, res.DryRun, res.Plan, res.Problems = 1, m.DryRun, list(res.Plan), list(res.Problems)
	reply(w, http.StatusOK, res)
	if res.Begin != nil {
		heard(ctx)
		res.Begin()
	}
	return nil, nil
}

func (s *Server) send(_ http.ResponseWriter, ctx context.Context, by Caller, m SendRequest) (any, error) {
	return struct {
		V int `json:"v"`
	}{1}, s.Backend.Send(ctx, by, m)
}

// shutdown answers before anything ends, and then leaves the connection open: the kernel closes it when the process has ended.
func (s *Server) shutdown(w http.ResponseWriter, ctx context.Context, by Caller, m ShutdownRequest) (any, error) {
	answer, begin, err := s.Backend.Shutdown(by, m.Keep)
	if err != nil {
		return nil, err
	}
	defer begin()
	answer.V, answer.PID = 1, os.Getpid()
	if !answer.Accepted {
		w.Header().Set("Transfer-Encoding", "identity") // the body ends with the connection
	}
	reply(w, http.StatusOK, answer)
	if answer.Accepted {
		heard(ctx)
		return nil, nil
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil // whoever asked is gone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, c)
	return nil, nil
}
