// The log of zhxd: lines for a person, written by one goroutine, so that a terminal that stands still or a full disk
// never holds up a child's output, the broker or the watchdog. What does not fit into the queue is counted and told.
//
//	slog.Logger ─┐
//	child lines ─┴─> put (never waits) ─queue─> writer ─> stderr or zhxd.log (1 MiB, one older)
package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
)

const (
	logQueue    = 2048                       // lines that wait for a slow reader of the log; above that they are dropped and counted
	logOwn      = 512                        // of these are for zhxd's own lines alone: clients that print much do not push them out
	logLineMax  = 8 << 10                    // bytes of one line; the rest is cut and marked
	logMode     = 0o640                      // it has what the clients print
	logFileMax  = 1 << 20                    // bytes of zhxd.log; above that it becomes zhxd.log.1
	logFlushMax = time.Second                // how long Close waits for a log that is not being read
	stampLayout = "2006-01-02T15:04:05.000Z" // UTC, RFC 3339 with milliseconds
)

// lineLog writes lines such as
//
//	2026-11-22T17:20:31.402Z [client1] lapse (run=3 pid=5061 silence=9s) -> its whole tree is killed, then it restarts
//	2026-11-22T17:20:31.404Z [client1] | what the client printed
//
// It is safe for any number of goroutines; none of its methods but Close waits for the writing.
type lineLog struct {
	// Immutable:
	lines chan []byte
	done  chan struct{}
	w     io.Writer

	mu     sync.RWMutex // guards closed against a send on the closed queue
	closed bool

	dropped atomic.Int64
}

// newLog starts a log that writes to w.
func newLog(w io.Writer) *lineLog {
	l := &lineLog{lines: make(chan []byte, logQueue), done: make(chan struct{}), w: w}
	go l.write()
	return l
}

// Dropped is the number of lines that were lost because nobody took the log's bytes, or the log could not be written.
func (l *lineLog) Dropped() int64 { return l.dropped.Load() }

// Logger is the log as a slog.Logger. The attribute client (or source) names whom
// a line is about, next says what happens next.
func (l *lineLog) Logger() *slog.Logger { return slog.New(&logHandler{log: l}) }

// Output logs one line that a client printed.
func (l *lineLog) Output(client string, line []byte) {
	if len(l.lines) >= logQueue-logOwn {
		l.dropped.Add(1)
		return
	}
	b := fmt.Appendf(nil, "%s [%s] | ", time.Now().UTC().Format(stampLayout), client)
	l.put(append(b, printable(string(line))...))
}

// Close writes what is queued, for at most logFlushMax, and ends the log.
func (l *lineLog) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.lines)
	}
	l.mu.Unlock()
	select {
	case <-l.done:
	case <-time.After(logFlushMax):
	}
}

func (l *lineLog) put(line []byte) {
	if len(line) > logLineMax {
		line = append(line[:logLineMax], " [cut]"...)
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return
	}
	select {
	case l.lines <- append(line, '\n'):
	default:
		l.dropped.Add(1)
	}
}

func (l *lineLog) write() {
	defer close(l.done)
	var told int64
	var failed error // of the last line: it is told when there is room again, and until then counted
	torn := false
	for line := range l.lines {
		if torn {
			line = append([]byte("\n"), line...)
		}
		n, err := l.w.Write(line)
		if err != nil {
			torn = torn && n == 0 || n > 1
			failed = err
			l.dropped.Add(1)
			continue
		}
		if torn = false; failed != nil {
			count := l.dropped.Load() - told
			told += count
			fmt.Fprintf(l.w, "%s [zhxd] log lines lost (count=%d err=%q) -> the log is written again\n", time.Now().UTC().Format(stampLayout), count, failed)
			failed = nil
		}
		if n := l.dropped.Load(); n != told {
			fmt.Fprintf(l.w, "%s [zhxd] log lines dropped (count=%d) -> the log was read too slowly\n",
				time.Now().UTC().Format(stampLayout), n-told)
			told = n
		}
	}
}

// logHandler turns slog records into the log's lines.
type logHandler struct {
	log   *lineLog
	attrs []slog.Attr
}

func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{log: h.log, attrs: append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

func (h *logHandler) WithGroup(string) slog.Handler { return h } // groups are not used

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	subject, next := "zhxd", ""
	var pairs []string
	attr := func(a slog.Attr) bool {
		switch v := a.Value.Resolve().String(); a.Key {
		case "":
		case "client":
			subject = v
		case "source": // of a message: who sent it is whom the line is about
			if v != "" {
				subject = v
			}
		case "next":
			next = v
		default:
			if v == "" || strings.ContainsAny(v, " \t\n\"=()") {
				v = strconv.Quote(v)
			}
			pairs = append(pairs, a.Key+"="+printable(v))
		}
		return true
	}
	for _, a := range h.attrs {
		attr(a)
	}
	r.Attrs(attr)

	b := fmt.Appendf(nil, "%s [%s] ", r.Time.UTC().Format(stampLayout), printable(subject))
	if r.Level >= slog.LevelWarn {
		b = append(b, strings.ToLower(r.Level.String())+": "...)
	}
	b = append(b, r.Message...)
	if len(pairs) > 0 {
		b = append(b, " ("+strings.Join(pairs, " ")+")"...)
	}
	if next != "" {
		b = append(b, " -> "+printable(next)...)
	}
	h.log.put(b)
	return nil
}

// printable shows control characters escaped, so that a child cannot steer the terminal of who reads the log.
func printable(s string) string {
	steers := func(r rune) bool { return unicode.IsControl(r) && r != '\t' }
	if !strings.ContainsFunc(s, func(r rune) bool { return steers(r) || r == '\ufffd' }) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\ufffd' && !strings.HasPrefix(s[i:], "\ufffd"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case steers(r):
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// logFile is zhxd.log: it grows to logFileMax, then it becomes NAME.1 and a new one begins.
// Owned by the log's writer.
type logFile struct {
	path string
	f    *os.File
	size int64
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, logMode)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	l.f, l.size = f, 0
	debug.SetCrashOutput(f, debug.CrashOptions{}) // under the keeper nobody reads stderr
	if fi, err := f.Stat(); err == nil {
		if l.size = fi.Size(); fi.Mode().IsRegular() && fi.Mode().Perm()&0o007 != 0 { // an earlier zhxd's
			f.Chmod(logMode)
		}
	}
	return nil
}

func (l *logFile) Write(p []byte) (int, error) {
	if l.size+int64(len(p)) > logFileMax {
		// A rotation that fails keeps the old file: a log too long is better than none.
		if os.Rename(l.path, l.path+".1") == nil {
			old := l.f
			if l.open() == nil {
				old.Close()
			}
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}
