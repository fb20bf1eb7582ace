package cmd

import (
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the README says that `make run` prints is what it prints: every line of its transcript comes, for each client in
// that order, within 15 s; and ctrl-C ends everything in order. Numbers and the private folder differ.
func TestReadmeTranscript(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(readme), "$ make run\n")
	transcript, _, found := strings.Cut(after, "\n```")
	before, end, interrupted := strings.Cut(transcript, "\n^C\n")
	if !found || !interrupted {
		t.Fatal("the README has no transcript of make run with a ctrl-C")
	}
	p := startZhxd(t, "--config", "../etc/demo.toml", "--run-dir", t.TempDir()+"/zhx")
	for _, subject := range []string{"zhxd", "client1", "client2"} {
		p.await(0, 15*time.Second, patterns(before, subject)...)
	}
	p.Process.Signal(syscall.SIGINT)
	for _, subject := range []string{"zhxd", "client2", "client1"} {
		p.await(0, 15*time.Second, patterns(end, subject)...)
	}
	<-p.ended
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after ctrl-C", code)
	}
}

var (
	numbers = regexp.MustCompile(`[0-9]+(\\\.[0-9]+)?`)
	private = regexp.MustCompile(`/tmp/tmp\\\.[A-Za-z0-9]+`)
	version = regexp.MustCompile(`version=[^ ]+ |config=[^ ]+ |by=[a-z]+|seen="[^"]*"`)
)

// patterns turns the lines about one subject into patterns that hold for any run.
func patterns(transcript, subject string) (all []string) {
	for line := range strings.Lines(transcript) {
		_, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(text, "["+subject+"]") {
			continue
		}
		text = version.ReplaceAllString(text, "@")
		text = private.ReplaceAllString(regexp.QuoteMeta(text), `\S+`)
		text = numbers.ReplaceAllString(text, `[0-9.]+(m?s)?`)
		all = append(all, strings.ReplaceAll(text, "@", `.*?`)+"$")
	}
	return all
}
