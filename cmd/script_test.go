package cmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"zhx/daemon/control"
)

// Each script is a story with the real zhxd under its keeper, told by zhxctl. WORK in a script's files is its folder.
// Commands beyond testscript's own:
//
//	code N PROGRAM…   the program ends with that exit code
//	json VERB N PROGRAM…   and what it prints is what daemon/control/schema.json says of that verb
//	forbidden PROGRAM…   as somebody else, whom nothing here belongs to, it is exit 6 and says what to do
//	eventually PROGRAM… -- PATTERN   its output matches within 10 s
//	pidof NAME VAR    the pid of a client (or of zhxd), into a variable
//	signal NAME PID   what pidof told
//	gone PID          it ends within 10 s
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("ZHX_CONTROL", e.WorkDir+"/run/control.sock")
			e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			for _, dir := range []string{bin, filepath.Dir(e.WorkDir), e.WorkDir} { // for forbidden
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			e.Defer(func() { // whatever the story left running
				end := exec.Command(filepath.Join(bin, "zhxctl"), "--control", e.WorkDir+"/run/control.sock", "shutdown")
				if out, err := end.CombinedOutput(); err != nil {
					t.Errorf("shutdown: %v\n%s", err, out)
				}
			})
			files, err := filepath.Glob(e.WorkDir + "/*.toml")
			for _, path := range files {
				b, _ := os.ReadFile(path)
				os.WriteFile(path, []byte(strings.ReplaceAll(string(b), "WORK", e.WorkDir)), 0o644)
			}
			return err
		},
		Condition: func(name string) (bool, error) {
			if name != "nobody" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return exec.Command("setpriv", slices.Concat(somebodyElse, []string{filepath.Join(bin, "zhxctl"), "schema"})...).Run() == nil, nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code": scriptCode,
			"json": scriptJSON,
			"forbidden": func(ts *testscript.TestScript, neg bool, args []string) {
				scriptCode(ts, neg, slices.Concat([]string{"6", "setpriv"}, somebodyElse, args))
				if said := ts.ReadFile("stderr") + ts.ReadFile("stdout"); !matches(`(not permitted|permission denied)(.*\n)+  -> `, said) {
					ts.Fatalf("no word on permission, or on what to do: %s", said)
				}
			},
			"eventually": scriptEventually,
			"pidof":      scriptPidof,
			"signal": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(syscall.Kill(number(ts, args[1]), map[string]syscall.Signal{"KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}[args[0]]))
			},
			"gone": func(ts *testscript.TestScript, _ bool, args []string) {
				pid := number(ts, args[0])
				within(ts, fmt.Sprintf("process %d ends", pid), func() bool { return syscall.Kill(pid, 0) != nil })
			},
		},
	})
}

func scriptCode(ts *testscript.TestScript, _ bool, args []string) {
	want := number(ts, args[0])
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// somebodyElse makes setpriv(1) somebody who owns nothing.
var somebodyElse = []string{"--reuid=65534", "--regid=65534", "--clear-groups"}

// answers is daemon/control/schema.json, of which each verb is compiled apart. Here it has no room for fields that it does not name;
// for others it has, since fields are added.
var answers = sync.OnceValue(func() *jsonschema.Compiler {
	c := jsonschema.NewCompiler()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(control.Schema))
	if err == nil {
		shut(doc)
		err = c.AddResource("schema.json", doc)
	}
	if err != nil {
		panic(err)
	}
	return c
})

func shut(doc any) {
	switch v := doc.(type) {
	case map[string]any:
		for _, sub := range v {
			shut(sub)
		}
		if _, open := v["additionalProperties"]; !open && v["type"] == "object" && v["properties"] != nil {
			v["additionalProperties"] = false
		}
	case []any:
		for _, sub := range v {
			shut(sub)
		}
	}
}

func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	scriptCode(ts, neg, args[1:])
	answersTo(ts, args[0], ts.ReadFile("stdout"))
}

// answersTo demands that out is what a verb prints with --json: one value or more.
func answersTo(ts *testscript.TestScript, verb, out string) {
	schema, err := answers().Compile("schema.json#/$defs/" + strings.ReplaceAll(verb, " ", "%20"))
	ts.Check(err)
	values := json.NewDecoder(strings.NewReader(out))
	values.UseNumber()
	for n := 0; n == 0 || values.More(); n++ {
		var v any
		ts.Check(values.Decode(&v))
		if err := schema.Validate(v); err != nil {
			ts.Fatalf("value %d of %s: %v", n, verb, err)
		}
	}
}

func scriptEventually(ts *testscript.TestScript, _ bool, args []string) {
	n := len(args) - 2
	if n < 1 || args[n] != "--" {
		ts.Fatalf("usage: eventually PROGRAM… -- PATTERN")
	}
	within(ts, strings.Join(args, " "), func() bool {
		ts.Exec(args[0], args[1:n]...)
		return matches(args[n+1], ts.ReadFile("stdout")+ts.ReadFile("stderr"))
	})
}

func scriptPidof(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("zhxctl", "status", "--json"))
	var st control.Status
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &st))
	pid := 0
	if args[0] == "zhxd" {
		pid = st.Daemon.PID
	}
	for _, c := range st.Clients {
		if c.Name == args[0] && c.PID != nil {
			pid = *c.PID
		}
	}
	if pid == 0 {
		ts.Fatalf("%s has no process", args[0])
	}
	ts.Setenv(args[1], strconv.Itoa(pid))
}

// within waits for something outside that no event tells of.
func within(ts *testscript.TestScript, what string, holds func() bool) {
	if !comesTrue(10*time.Second, holds) {
		ts.Fatalf("not within 10 s: %s", what)
	}
}

// comesTrue looks again and again whether something outside holds, for at most limit.
func comesTrue(limit time.Duration, holds func() bool) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(limit); !holds(); {
		select {
		case <-tick.C:
		case <-late:
			return false
		}
	}
	return true
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}
