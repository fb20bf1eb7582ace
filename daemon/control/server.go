package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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
	Version string // of zhxd, for people
	Log     *slog.Logger

	mu sync.Mutex
	// mu guards:
	held []net.Conn // of shutdown requests: they end with the process
}

// Serve answers until ctx ends, then delivers the answers under way, closes ln and returns nil. It is the last thing that zhxd
// ends. An error means that ln broke.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	hs := s.http(ctx)
	done := make(chan error, 1)
	go func() { done <- hs.Serve(&listener{UnixListener: ln, version: s.Version, log: s.Log}) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve control socket %s: %w", ln.Addr(), err)
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

func (s *Server) http(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:        s,
		ReadTimeout:    readLimit,
		IdleTimeout:    idleLimit,
		MaxHeaderBytes: headerLimit,
		ErrorLog:       slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext:    func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
}

// Close ends the answers to shutdown. A process that ends need not call it, and should not: their end says that it is gone.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.held {
		c.Close()
	}
	s.held = nil
}

type connKey struct{} // in a request's context: its net.Conn, which is a *conn

// request is what a route works on.
type request struct {
	*http.Request
	w    http.ResponseWriter
	body []byte
	by   Caller // only where the route acts
}

// routes are all there is; acts asks for the right to act. A route returns an error only if it has written nothing.
var routes = []struct {
	method, path string
	acts         bool
	serve        func(*Server, request) error
}{
	{"GET", "/v1/status", false, (*Server).status},
	{"GET", "/v1/logs", false, (*Server).logs},
	{"GET", "/v1/version", false, (*Server).version},
	{"POST", "/v1/start", true, act(Backend.Start)},
	{"POST", "/v1/stop", true, act(Backend.Stop)},
	{"POST", "/v1/restart", true, act(Backend.Restart)},
	{"POST", "/v1/reload", true, (*Server).reload},
	{"POST", "/v1/send", true, (*Server).send},
	{"POST", "/v1/shutdown", true, (*Server).shutdown},
}

// ServeHTTP finds the route, checks who asks, reads the body, and turns an error into its JSON.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "zhxd/"+s.Version)
	err := s.route(w, r)
	if err == nil {
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Text: err.Error(), Code: CodeFailed}
		if errors.Is(err, context.DeadlineExceeded) {
			e.Code = CodeTimeout
		}
	}
	reply(w, e.httpStatus(), e)
}

func (s *Server) route(w http.ResponseWriter, r *http.Request) error {
	allowed := ""
	for _, rt := range routes {
		if rt.path != r.URL.Path {
			continue
		}
		if allowed = rt.method; rt.method != r.Method {
			break
		}
		req, err := request{Request: r, w: w}, error(nil)
		if rt.acts {
			verb := strings.TrimPrefix(rt.path, "/v1/")
			if req.by, err = s.Access.admit(r.Context().Value(connKey{}).(*conn).UnixConn, verb); err != nil {
				s.Log.Warn("control request refused", "peer", req.by.String(), "err", err)
				return err
			}
		}
		if req.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit)); err != nil {
			return Errorf(CodeUsage, "", "read request: %w", err)
		}
		// The limit was for the request's arrival. Left in place it would cancel what takes longer, such as a stop.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		return rt.serve(s, req)
	}
	if allowed != "" {
		w.Header().Set("Allow", allowed)
		return Errorf(CodeUsage, "", "%s %s: the method is %s", r.Method, r.URL.Path, allowed)
	}
	known := make([]string, 0, len(routes))
	for _, rt := range routes {
		known = append(known, rt.method+" "+rt.path)
	}
	return Errorf(CodeUsage, "", "zhxd %s does not know %s %q; it knows %s", s.Version, r.Method, r.URL.Path, strings.Join(known, ", "))
}

// into decodes the body. An unknown field is refused: a wish that this zhxd is too old for must not be half fulfilled.
func (r request) into(v any) error {
	if len(bytes.TrimSpace(r.body)) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(r.body))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if _, end := dec.Token(); err == nil && end != io.EOF {
		err = errors.New("more than one JSON value")
	}
	if err != nil {
		return Errorf(CodeUsage, "", "bad JSON in the request: %w", err)
	}
	return nil
}

// reply writes v as a line of JSON.
func reply(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		status, text = http.StatusInternalServerError, fmt.Appendf(nil, `{"error":%q,"code":%d}`, err, CodeFailed)
	}
	extend(w)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // a reader that is gone needs no answer
}

// extend gives the reader the write limit from now on.
func extend(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeLimit))
}

func (s *Server) status(r request) error {
	st := s.Backend.Status(r.Context())
	st.V = 1
	if st.Clients == nil {
		st.Clients = []ClientStatus{} // a list is a list, never null
	}
	if st.Peers == nil {
		st.Peers = []PeerStatus{}
	}
	reply(r.w, http.StatusOK, st)
	return nil
}

func (s *Server) version(r request) error {
	reply(r.w, http.StatusOK, VersionReply{V: 1, Version: s.Version, PID: os.Getpid()})
	return nil
}

// logs streams until the lines end or the reader goes, or takes nothing for the write limit.
func (s *Server) logs(r request) error {
	args := r.URL.Query()
	q := LogQuery{Names: slices.DeleteFunc(args["name"], func(n string) bool { return n == "" }), N: -1}
	for key := range args {
		if key != "name" && key != "n" && key != "follow" {
			return Errorf(CodeUsage, "", "logs: unknown parameter %q", key)
		}
	}
	if n := args.Get("n"); n != "" {
		var err error
		if q.N, err = strconv.Atoi(n); err != nil || q.N < -1 {
			return Errorf(CodeUsage, "", "logs: n=%q is not a number of lines", n)
		}
	}
	if f := args.Get("follow"); f != "" {
		var err error
		if q.Follow, err = strconv.ParseBool(f); err != nil {
			return Errorf(CodeUsage, "", "logs: follow=%q is neither 0 nor 1", f)
		}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	lines, err := s.Backend.Logs(ctx, q)
	if err != nil {
		return err
	}
	r.w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(r.w)
	flush := http.NewResponseController(r.w).Flush
	extend(r.w)
	if flush() != nil { // the header says that the question was understood, before there is a line
		return nil
	}
	for line := range lines {
		if !utf8.ValidString(line.Text) {
			line.Bytes = []byte(line.Text)
		}
		extend(r.w)
		if out.Encode(line) != nil {
			return nil
		}
		if len(lines) == 0 && flush() != nil {
			return nil
		}
	}
	return nil
}

// act makes the route of a verb on clients.
func act(do func(Backend, context.Context, Caller, Which) ([]Outcome, error)) func(*Server, request) error {
	return func(s *Server, r request) error {
		var which Which
		if err := r.into(&which); err != nil {
			return err
		}
		if which.All == (len(which.Names) > 0) {
			return Errorf(CodeUsage, "", `give either "names" or "all"`)
		}
		out, err := do(s.Backend, r.Context(), r.by, which)
		if err != nil {
			return err
		}
		reply(r.w, http.StatusOK, Outcomes{V: 1, Clients: append([]Outcome{}, out...)})
		return nil
	}
}

func (s *Server) reload(r request) error {
	if err := r.into(&struct{}{}); err != nil {
		return err
	}
	res, err := s.Backend.Reload(r.Context(), r.by)
	if err != nil {
		return err
	}
	res.V = 1
	res.Plan, res.Problems = append([]PlanRow{}, res.Plan...), append([]Problem{}, res.Problems...)
	reply(r.w, http.StatusOK, res)
	return nil
}

func (s *Server) send(r request) error {
	var m SendRequest
	if err := r.into(&m); err != nil {
		return err
	}
	if err := s.Backend.Send(r.Context(), r.by, m); err != nil {
		return err
	}
	reply(r.w, http.StatusOK, struct {
		V int `json:"v"`
	}{1})
	return nil
}

// shutdown answers before the server goes, and then leaves the connection open: the kernel closes it when the process has ended.
func (s *Server) shutdown(r request) error {
	var m ShutdownRequest
	if err := r.into(&m); err != nil {
		return err
	}
	if err := s.Backend.Shutdown(r.by, m.Keep); err != nil {
		return err
	}
	r.w.Header().Set("Transfer-Encoding", "identity") // the body ends with the connection
	reply(r.w, http.StatusOK, VersionReply{V: 1, Version: s.Version, PID: os.Getpid()})
	ctl := http.NewResponseController(r.w)
	if ctl.Flush() != nil {
		return nil
	}
	c, _, err := ctl.Hijack()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, c)
	return nil
}

// listener accepts up to connLimit connections.
type listener struct {
	*net.UnixListener
	version string
	log     *slog.Logger
	open    atomic.Int64
	full    bool // Owned by Accept: said so already
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= connLimit {
			l.full = false
			return &conn{UnixConn: c, open: &l.open}, nil
		}
		l.open.Add(-1)
		if !l.full {
			l.full = true
			l.log.Warn("control connections refused", "err", "too many are open", "limit", connLimit, "next", "waits until one is closed")
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Busy\r\nServer: zhxd/%s\r\nConnection: close\r\n\r\n"+
			`{"error":"zhxd has %d control connections open and takes no more","code":%d,"hint":"try again"}`+"\n",
			l.version, connLimit, CodeDown)
		c.Close()
	}
}

// conn gives its place back when it is closed.
type conn struct {
	*net.UnixConn
	open *atomic.Int64
	once sync.Once
}

func (c *conn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.UnixConn.Close()
}
