// Package probe asks clients that cannot feed by themselves whether they live.
//
//	Run ── at once, then each Interval ──> one probe, bounded by Timeout ──┬─> told(nil): it is alive
//	        a connection, a request, or its caller's way to execute a      └─> told(err): why not
//	        command: never two at once
//
// A probe shows what is asked and no more: that a connection is taken says that the kernel has room for it, not that anybody
// accepts it. A request or a command can ask the part that matters. What follows from an answer is the caller's.
package probe

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"
)

const (
	headerMax = 16 << 10              // bytes that are read of an answer to a request; a longer header is no sign of life
	redial    = 20 * time.Millisecond // a Unix socket whose backlog is full refuses, and tells nobody when there is room again
)

// A Probe is what to ask, and how often. Exactly one of Exec, TCP, Unix and HTTP is set; the zero value asks nothing.
type Probe struct {
	Exec []string // a command: it exits with 0
	TCP  string   // HOST:PORT: a connection is made
	Unix string   // path of a stream socket: a connection is made
	HTTP string   // http://HOST[:PORT][/PATH]: GET is answered with 200 to 399. Redirects are not followed, no proxy is used

	Interval time.Duration // > 0; from the begin of a probe to the begin of the next
	Timeout  time.Duration // > 0; of each. If it is above Interval, a slow probe delays the next
}

// Asks tells whether there is anything to ask.
func (p Probe) Asks() bool { return len(p.Exec) > 0 || p.TCP != "" || p.Unix != "" || p.HTTP != "" }

// Run probes at once and then each Interval until ctx ends. A probe that takes longer is followed by the next at once; those
// that were missed are not made up for. exec executes p.Exec, and returns nil if that has exited with 0; its context ends after
// Timeout, and nothing of the command may live when it returns. told hears of each probe that was not cut short by ctx; the text
// of an error is the same for the same reason. Both are called on Run's goroutine.
func Run(ctx context.Context, p Probe, exec func(ctx context.Context) error, told func(err error)) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		next.Reset(p.Interval)
		if err := p.once(ctx, exec); ctx.Err() == nil {
			told(err)
		}
	}
}

// once is one probe.
func (p Probe) once(ctx context.Context, exec func(ctx context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	var asked string
	switch {
	case p.TCP != "":
		asked, err = "tcp "+p.TCP, connect(ctx, "tcp", p.TCP)
	case p.Unix != "":
		asked, err = "unix "+p.Unix, connect(ctx, "unix", p.Unix)
	case p.HTTP != "":
		asked, err = p.HTTP, get(ctx, p.HTTP) // it begins with http
	default:
		asked, err = "exec "+p.Exec[0], exec(ctx)
	}
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded): // a Dialer has a timer of its own
		err = fmt.Errorf("no answer within %v", p.Timeout)
	case errors.As(err, &op):
		err = op.Err // without our own port, which is another each time
	}
	return fmt.Errorf("probe %s: %w", asked, err)
}

func connect(ctx context.Context, network, address string) error {
	conn, err := dial(ctx, network, address)
	if err == nil {
		conn.Close()
	}
	return err
}

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	for {
		conn, err := d.DialContext(ctx, network, address)
		if network != "unix" || !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-time.After(redial):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// get makes one request on a connection of its own. http.Transport would do as well, but goes on dialling when the time is up.
func get(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")))
	if err != nil {
		return err
	}
	defer conn.Close() // the body, too, which nobody reads
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	req := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{"User-Agent": {"zhx"}}, Close: true}
	if err := req.Write(conn); err != nil {
		return err
	}
	limited := &io.LimitedReader{R: conn, N: headerMax}
	answer := bufio.NewReader(limited)
	for {
		resp, err := http.ReadResponse(answer, req)
		switch {
		case limited.N <= 0 && err != nil:
			return fmt.Errorf("the header of its answer is above %d bytes", headerMax)
		case errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("closed without an answer")
		case errors.As(err, new(*net.OpError)):
			return err
		case err != nil: // it would quote what came
			return errors.New("its answer is not HTTP")
		case resp.StatusCode < 200: // 1xx: the answer is yet to come
		case resp.StatusCode < 400:
			return nil
		default:
			return fmt.Errorf("status %d", resp.StatusCode)
		}
	}
}
