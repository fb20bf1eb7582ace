package ipc_test

// This file is the driver of the conformance table for the Go client: the test binary as a program that obeys lines.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"zhx/ipc"
)

func TestMain(m *testing.M) {
	if os.Getenv("ZHX_TEST_DRIVER") == "1" {
		if len(os.Args) == 3 && os.Args[1] == "shell" {
			driveShell(os.Args[2], os.Stdin, os.Stdout)
			os.Exit(0)
		}
		driveGo(os.Stdin, os.Stdout)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const (
	driverPatience = 30 * time.Second // with an answer
	driverSlow     = 300 * time.Millisecond
)

type driver struct {
	c *ipc.Conn

	mu  sync.Mutex // one line at a time
	out io.Writer

	stop    context.CancelFunc // of the goroutine that receives
	stopped chan struct{}
}

func driveGo(in io.Reader, out io.Writer) {
	d := &driver{out: out}
	defer func() {
		if d.c != nil {
			d.pause()
			d.c.Close()
		}
	}()
	for lines := bufio.NewScanner(in); lines.Scan(); {
		command, rest, _ := strings.Cut(lines.Text(), " ")
		d.say("%s", d.obey(command, rest))
	}
}

func (d *driver) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, format+"\n", args...)
}

// obey does one command and gives its answer.
func (d *driver) obey(command, rest string) string {
	ctx, cancel := context.WithTimeout(context.Background(), driverPatience)
	defer cancel()
	ok := func(err error) string {
		if err != nil {
			return driverError(err)
		}
		return "ok"
	}
	first, text, _ := strings.Cut(rest, " ")
	second, third, _ := strings.Cut(text, " ")
	acked := func(l ipc.Level, err error) string {
		if err != nil {
			return driverError(err)
		}
		return "ack " + l.String()
	}
	if command == "open" {
		c, err := ipc.Dial(ctx, ipc.Options{})
		if err == nil {
			d.c = c
			d.resume()
			err = c.Register(ctx, "")
		}
		return ok(err)
	}
	if d.c == nil {
		return "error closed"
	}
	switch command {
	case "send":
		return acked(d.c.Send(ctx, first, []byte(third), ipc.At(driverWord[ipc.Level](second))))
	case "sendfd":
		fd, err := unix.MemfdCreate("driver", unix.MFD_CLOEXEC)
		if err != nil {
			return driverError(err)
		}
		f := os.NewFile(uintptr(fd), "driver")
		defer f.Close()
		f.WriteString(text)
		return acked(d.c.Send(ctx, first, []byte("fd"), ipc.At(ipc.Written), ipc.WithFiles(f)))
	case "big":
		return acked(d.c.Send(ctx, first, []byte(strings.Repeat("x", driverNumber(text)))))
	case "request":
		ctx, cancel := context.WithTimeout(ctx, time.Duration(driverNumber(second))*time.Millisecond)
		defer cancel()
		r, err := d.c.Request(ctx, first, []byte(third))
		switch {
		case errors.Is(err, ipc.ErrExpired): // zhx's clock was first
			return "timeout"
		case err != nil:
			return driverError(err)
		case r.Failed:
			return "failed " + string(r.Body)
		}
		return "reply " + string(r.Body)
	case "publish":
		return acked(ipc.Accepted, d.c.Publish(ctx, first, []byte(text)))
	case "retain":
		return acked(ipc.Accepted, d.c.Publish(ctx, first, []byte(text), ipc.Retain()))
	case "subscribe":
		return ok(d.c.Subscribe(ctx, first, driverWord[ipc.Policy](second), 0))
	case "unsubscribe":
		return ok(d.c.Unsubscribe(ctx, first))
	case "watch":
		return ok(d.c.Watch(ctx, first))
	case "feed":
		if first == "arm" {
			return ok(d.c.Arm(ctx))
		}
		return ok(d.c.Feed(ctx))
	case "checkpoint":
		return ok(d.c.Checkpoint(ctx, first))
	case "sleep":
		d.pause()
		defer d.resume()
		time.Sleep(time.Duration(driverNumber(first)) * time.Millisecond)
		return "ok"
	}
	return "error bad"
}

// driverWord is the value whose word is s.
func driverWord[T interface {
	~uint8
	fmt.Stringer
}](s string) (v T) {
	for v.String() != s && v < 9 {
		v++
	}
	return v
}

func driverNumber(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func driverError(err error) string {
	var code ipc.Code
	switch {
	case errors.As(err, &code):
		return "error " + code.Word()
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "error closed"
}

// resume receives until pause.
func (d *driver) resume() {
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	d.stopped = make(chan struct{})
	go func() {
		defer close(d.stopped)
		for {
			e, err := d.c.Receive(ctx)
			if errors.Is(err, ipc.ErrTaken) {
				d.say("taken")
			}
			if err != nil {
				return
			}
			d.event(e)
		}
	}()
}

func (d *driver) pause() {
	d.stop()
	<-d.stopped
}

func (d *driver) event(e ipc.Event) {
	switch e := e.(type) {
	case *ipc.Message:
		d.message(e)
	case *ipc.Publication:
		d.say("publication %s %s%s", e.Topic, driverIf(e.Kept, "kept "), e.Body)
	case *ipc.Gap:
		d.say("gap %s %d", e.Pattern, e.Lost)
	case *ipc.State:
		d.say("state %s %s", e.Name, e.State)
	case *ipc.Link:
		if e.Up {
			d.say("up")
		} else {
			d.say("down")
		}
	}
}

func driverIf(yes bool, s string) string {
	if yes {
		return s
	}
	return ""
}

func (d *driver) message(m *ipc.Message) {
	for _, f := range m.Files {
		content, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20)) // wherever its offset is
		f.Close()
		d.say("fd %s %s%s", m.From, content, driverIf(err != nil, fmt.Sprint(err)))
	}
	switch {
	case m.Request:
		d.say("request %s %s", m.From, m.Text())
		switch m.Text() {
		case "hang":
		case "fail":
			m.Fail([]byte("no"))
		default:
			m.Reply([]byte("re: " + m.Text()))
		}
	case len(m.Files) == 0:
		d.say("message %s %s%s%s", m.From, driverIf(m.Repeat, "repeat "), driverIf(m.FromV1, "v1 "), m.Text())
		if strings.HasPrefix(m.Text(), "slow") {
			time.AfterFunc(driverSlow, func() { m.Done() })
			return
		}
		m.Done()
	}
}
