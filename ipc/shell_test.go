package ipc_test

// This file is the driver of the conformance table for the shell: each command becomes the zhxctl that a script would use.

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// zhxctl builds it.
func zhxctl(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "zhxctl")
	if out, err := exec.Command("go", "build", "-o", path, "zhx/cmd/zhxctl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

type shell struct {
	zhxctl string

	mu  sync.Mutex // one line at a time
	out io.Writer

	running []*exec.Cmd // in the background
	ended   sync.WaitGroup
}

func driveShell(zhxctl string, in io.Reader, out io.Writer) {
	s := &shell{zhxctl: zhxctl, out: out}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		command, rest, _ := strings.Cut(lines.Text(), " ")
		s.say(s.obey(command, rest))
	}
	for _, cmd := range s.running {
		cmd.Process.Signal(os.Interrupt)
	}
	s.ended.Wait()
}

func (s *shell) say(line string) {
	if line != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintln(s.out, line)
	}
}

// run is a zhxctl to its end; ok is what is said if it is exit 0.
func (s *shell) run(ok string, args ...string) string {
	cmd := exec.Command(s.zhxctl, args...)
	var said strings.Builder
	cmd.Stderr = &said
	answer, err := cmd.Output()
	exit := new(exec.ExitError)
	switch {
	case err == nil:
		return strings.ReplaceAll(ok, "{}", strings.TrimSuffix(string(answer), "\n"))
	case !errors.As(err, &exit):
		return "error " + err.Error()
	case exit.ExitCode() == 5:
		return "timeout"
	}
	// zhxctl: WHAT "WHO": WORD: reason
	if word := regexp.MustCompile(`^zhxctl: .*?: ([a-z]+): `).FindStringSubmatch(said.String()); word != nil {
		return "error " + word[1]
	}
	return "failed " + strings.TrimSpace(said.String())
}

// follow is a zhxctl in the background; each line that it prints is an event.
func (s *shell) follow(event func(line []byte) string, args ...string) string {
	cmd := exec.Command(s.zhxctl, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "error " + err.Error()
	}
	s.running = append(s.running, cmd)
	s.ended.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.say(event(lines.Bytes()))
		}
		cmd.Wait()
	})
	return "ok"
}

func (s *shell) obey(command, rest string) string {
	me := os.Getenv("ZHX_NAME")
	first, text, _ := strings.Cut(rest, " ")
	second, third, _ := strings.Cut(text, " ")
	switch command {
	case "open":
		return s.open(me)
	case "send":
		return s.run("ack "+second, "send", "--level", second, first, third)
	case "request":
		return s.run("reply {}", "request", "--timeout", second+"ms", first, third)
	case "publish":
		return s.run("ack accepted", "publish", first, text)
	case "retain":
		return s.run("ack accepted", "publish", "--retain", first, text)
	case "subscribe":
		return s.subscribe(first)
	case "watch":
		return s.follow(func(line []byte) string {
			words := strings.Fields(string(line))
			return "state " + words[0] + " " + words[1]
		}, "watch", first)
	case "feed":
		if first == "arm" {
			return s.run("ok", "feed", "--arm")
		}
		return s.run("ok", "feed")
	case "checkpoint":
		return s.run("ok", "feed", "--checkpoint", first)
	}
	return "error bad"
}

// event is a line of receive and subscribe.
type event struct {
	Kind, From, To, Text string
	V1, Repeat, Kept     bool
}

// open returns once the name is registered: it is ready then.
func (s *shell) open(me string) string {
	s.follow(func(line []byte) string {
		var e event
		json.Unmarshal(line, &e)
		words := []string{e.Kind, e.From}
		if e.Repeat {
			words = append(words, "repeat")
		}
		if e.V1 {
			words = append(words, "v1")
		}
		return strings.Join(append(words, e.Text), " ")
	}, "receive", me, "--json", "--reply", "re: {body}")
	cmd := exec.Command(s.zhxctl, "watch", me)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "error " + err.Error()
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(os.Interrupt)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), me+" ready") {
			return "ok"
		}
	}
	return "error never registered"
}

// subscribe returns once it is one.
func (s *shell) subscribe(pattern string) string {
	return s.follow(func(line []byte) string {
		var e event
		json.Unmarshal(line, &e)
		kept := ""
		if e.Kept {
			kept = "kept "
		}
		return "publication " + e.To + " " + kept + e.Text
	}, "subscribe", pattern, "--json")
}
