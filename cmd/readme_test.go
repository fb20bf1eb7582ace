package cmd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the README says that `make run` prints is what it prints: every line of its transcript comes, zhxd's about each client
// and each client's own in that order, within 15 s; and ctrl-C ends everything in order. Numbers and the private folder differ.
func TestReadmeTranscript(t *testing.T) {
	t.Parallel()
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
	private := t.TempDir()
	p := startProgram(t, func(c *exec.Cmd) {
		c.Args = append(c.Args, "--config", "../etc/demo.toml", "--run-dir", private+"/zhx")
		if path, err := exec.LookPath("make"); err == nil {
			c.Path, c.Args = path, []string{"make", "-s", "-C", "..", "run", "BIN=" + bin}
			c.Env = append(os.Environ(), "TMPDIR="+private)
		}
	})
	interrupt := func() { syscall.Kill(-p.Process.Pid, syscall.SIGINT) } // as a terminal does: all of them
	t.Cleanup(interrupt)
	for _, subject := range []string{"[zhxd] ", "[client1] ", "[client1] | ", "[client2] ", "[client2] | "} {
		p.await(0, 15*time.Second, patterns(before, subject)...)
	}
	interrupt()
	for _, subject := range []string{"[zhxd] ", "[client2] ", "[client1] "} {
		p.await(0, 15*time.Second, patterns(end, subject)...)
	}
	<-p.ended
	switch left, _ := os.ReadDir(private); {
	case p.Args[0] != "make":
		if code := p.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit code %d after ctrl-C", code)
		}
	case len(left) > 0:
		t.Errorf("make run leaves %v behind", left)
	}
}

// What somebody new is to type is what newcomer.txtar types: ten commands, the first of which builds zhx.
func TestReadmeNewcomer(t *testing.T) {
	script, err := os.ReadFile("testdata/script/newcomer.txtar")
	if err != nil {
		t.Fatal(err)
	}
	blocks := codeBlocks(t, "../README.md")
	build, files, _ := strings.Cut(blocks["sh"][0], "\n")
	if !strings.HasPrefix(build, "make build ") || !strings.Contains(string(script), "-- typed --\n"+files+"-- ") {
		t.Errorf("the script does not write\n%s", files)
	}
	commands := 1 + strings.Count(files, "cat >")
	for line := range strings.Lines(blocks["console"][0]) {
		command, typed := strings.CutPrefix(strings.TrimSpace(line), "$ ")
		if !typed {
			continue
		}
		commands++
		if _, after, found := strings.Cut(string(script), " "+command); !found || !strings.ContainsAny(after[:1], " \n") {
			t.Errorf("the script does not type, or not now: %s", command)
		} else {
			script = []byte(after)
		}
	}
	if commands != 10 {
		t.Errorf("%d commands, the README says ten", commands)
	}
}

// The Chinese document has the same sections as the README, and shows the same programs, commands and transcripts.
func TestReadmeChinese(t *testing.T) {
	sections := map[string]int{}
	for _, path := range []string{"../README.md", "../etc/doc/README.zh-CN.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sections[path] = strings.Count(string(text), "\n## ")
	}
	if sections["../README.md"] != sections["../etc/doc/README.zh-CN.md"] {
		t.Errorf("sections: %v", sections)
	}
	english, chinese := codeBlocks(t, "../README.md"), codeBlocks(t, "../etc/doc/README.zh-CN.md")
	for _, language := range []string{"", "c", "console", "go", "python", "sh"} {
		if language == "" { // the first is the transcript, the other a picture with words in it
			english[language], chinese[language] = english[language][:1], chinese[language][:1]
		}
		if !slices.Equal(english[language], chinese[language]) {
			t.Errorf("%q differs:\n%q\n%q", language, english[language], chinese[language])
		}
	}
}

// The README's four clients do what it says: they print what is sent to them, and answer.
func TestReadmeClients(t *testing.T) {
	blocks := codeBlocks(t, "../README.md")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	goClient := filepath.Join(dir, "client")
	if out, err := exec.Command("go", "build", "-o", goClient, file("client.go", blocks["go"][0])).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	clients := map[string]string{
		"go":    fmt.Sprintf("[%q]", goClient),
		"shell": fmt.Sprintf("[\"sh\", %q]", file("client.sh", blocks["sh"][len(blocks["sh"])-1])),
	}
	if python, err := exec.LookPath("python3"); err != nil {
		t.Log("the one in Python needs python3")
	} else {
		library, _ := filepath.Abs("../ipc/python")
		clients["python"] = fmt.Sprintf("[%q, %q]\nenvironment = { PYTHONPATH = %q }", python, file("client.py", blocks["python"][0]), library)
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Log("the one in C needs gcc")
	} else {
		path := compile(t, dir, file("in-c.c", blocks["c"][0]), "-Wall", "-Wextra", "-Wno-unused-parameter", "-I../ipc/c", "../ipc/c/zhx.c")
		clients["c"] = fmt.Sprintf("[%q]", path)
	}
	run := filepath.Join(dir, "run")
	conf := fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n", run)
	for name, command := range clients {
		conf += fmt.Sprintf("[client.%s]\ncommand = %s\nready = \"register\"\n", name, command)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	startZhxd(t, "--config", file("clients.toml", conf))
	sock := run + "/control.sock"
	for name := range clients {
		until(t, name+" is there", func() bool { _, err := os.Stat(sock); return err == nil && client(t, sock, name).State == "running" })
		ctl(t, sock, 0, "send", name, "good morning")
		until(t, name+" prints it", func() bool { return strings.Contains(ctl(t, sock, 0, "logs", name), "zhxctl says: good morning\n") })
		if reply := ctl(t, sock, 0, "request", name, "are you there?"); reply != "heard\n" {
			t.Errorf("%s replied %q", name, reply)
		}
	}
}

// codeBlocks are a document's fenced blocks, by their language.
func codeBlocks(t *testing.T, path string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][]string{}
	for _, m := range regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```$").FindAllStringSubmatch(string(text), -1) {
		blocks[m[1]] = append(blocks[m[1]], m[2])
	}
	return blocks
}

var (
	numbers = regexp.MustCompile(`[0-9]+(\\\.[0-9]+)?`)
	private = regexp.MustCompile(`/tmp/tmp\\\.[A-Za-z0-9]+`)
	version = regexp.MustCompile(`version=[^ ]+ |config=[^ ]+ |by=[a-z]+|seen="[^"]*"`)
)

// patterns turns the lines about one subject, or those that it prints itself, into patterns that hold for any run.
func patterns(transcript, subject string) (all []string) {
	for line := range strings.Lines(transcript) {
		_, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if rest, is := strings.CutPrefix(text, subject); !is || strings.HasPrefix(rest, "| ") {
			continue
		}
		text = version.ReplaceAllString(text, "@")
		text = private.ReplaceAllString(regexp.QuoteMeta(text), `\S+`)
		text = numbers.ReplaceAllString(text, `[0-9.]+(m?s)?`)
		all = append(all, strings.ReplaceAll(text, "@", `.*?`)+"$")
	}
	return all
}
