package cmd

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests of this folder run the programs themselves, built once, as a user has them.
var bin string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		play(os.Args[1:]) // a client of ours
	}
	if bin = os.Getenv("ZHX_TEST_BIN"); bin != "" { // we are inside a namespace, and the outer run has built
		os.Exit(m.Run())
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "zhx-bin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		build := exec.Command("go", "build", "-o", dir+"/", "./zhxd", "./zhxctl", "./zhx-demo")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build the programs:", err)
			return 1
		}
		os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		return m.Run()
	}())
}

// program is a running zhxd whose log the test reads as it comes.
type program struct {
	*exec.Cmd
	t     *testing.T
	ended chan struct{}

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and replaced when a line comes
}

// startZhxd starts zhxd without a terminal, its log read by the test. It ends with the test, with all its clients.
func startZhxd(t *testing.T, args ...string) *program {
	t.Helper()
	return startProgram(t, func(c *exec.Cmd) { c.Args = append(c.Args, args...) })
}

// startProgram starts zhxd as how says: with arguments, or as somebody else.
func startProgram(t *testing.T, how ...func(*exec.Cmd)) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(filepath.Join(bin, "zhxd")), t: t, ended: make(chan struct{}), more: make(chan struct{})}
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, f := range how {
		f(p.Cmd)
	}
	var log io.Reader = strings.NewReader("") // its stderr is something else
	if p.Stderr == nil {
		var err error
		if log, err = p.StderrPipe(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.read(log)
		p.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.end()
		if t.Failed() {
			t.Logf("the log of zhxd:\n%s", strings.Join(p.log(), "\n"))
		}
	})
	return p
}

func (p *program) read(r io.Reader) {
	for s := bufio.NewScanner(r); s.Scan(); {
		p.mu.Lock()
		p.lines = append(p.lines, s.Text())
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
}

func (p *program) log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// pid is the pid of the first zhxd that began in the log from line from on (under a keeper it is not the program's own).
func (p *program) pid(from int) (pid int) {
	p.t.Helper()
	begins := regexp.MustCompile(`\] zhxd begins \(.* pid=(\d+)`)
	for _, line := range p.log()[from:] {
		if m := begins.FindStringSubmatch(line); m != nil {
			fmt.Sscan(m[1], &pid)
			return pid
		}
	}
	p.t.Fatal("no zhxd has begun")
	return 0
}

// end asks zhxd to end, and waits until it has.
func (p *program) end() {
	p.t.Helper()
	p.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.Process.Kill()
		p.t.Error("zhxd did not end within 20 s of SIGTERM")
	}
}

// await waits until each pattern was seen, in that order, in the log from line from on, and returns the line after the
// last one. limit bounds all of it.
func (p *program) await(from int, limit time.Duration, patterns ...string) int {
	p.t.Helper()
	deadline := time.After(limit)
	for i, pattern := range patterns {
		re := regexp.MustCompile(pattern)
		for {
			p.mu.Lock()
			for from < len(p.lines) && !re.MatchString(p.lines[from]) {
				from++
			}
			found, more := from < len(p.lines), p.more
			p.mu.Unlock()
			if found {
				from++
				break
			}
			select {
			case <-more:
			case <-p.ended:
				p.t.Fatalf("zhxd ended before the log had %q (%d of %d)", pattern, i+1, len(patterns))
			case <-deadline:
				p.t.Fatalf("not in the log within %v: %q (%d of %d)", limit, pattern, i+1, len(patterns))
			}
		}
	}
	return from
}

// Whoever read the log is gone, as in zhxd | tee after ctrl-C: zhxd still ends in order.
func TestLogReaderGone(t *testing.T) {
	conf := write(t, "clients.toml", fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n", t.TempDir()+"/run"))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	zhxd := exec.Command(filepath.Join(bin, "zhxd"), "--config", conf)
	zhxd.Stderr = w
	if err := zhxd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for s := bufio.NewScanner(r); s.Scan() && !strings.Contains(s.Text(), "] ready ("); {
	}
	r.Close()
	zhxd.Process.Signal(syscall.SIGTERM)
	if err := zhxd.Wait(); err != nil {
		t.Error(err)
	}
}

// write puts a file into a fresh folder of the test and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }
