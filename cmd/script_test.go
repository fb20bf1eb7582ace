package cmd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"zhx/daemon/control"
)

// Each script is a story with the real zhxd under its keeper, told by zhxctl. WORK in a script's files is its folder.
// Commands beyond testscript's own:
//
//	code N PROGRAM…   the program ends with that exit code
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
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":       scriptCode,
			"eventually": scriptEventually,
			"pidof":      scriptPidof,
			"signal": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(syscall.Kill(number(ts, args[1]), map[string]syscall.Signal{"KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}[args[0]]))
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
