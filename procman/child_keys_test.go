package procman

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"zhx/procman/proc"
)

// TestChildKeys: what a key promises the program is what the program finds, all the way from Apply.
func TestChildKeys(t *testing.T) {
	dir := t.TempDir()
	vars, log := filepath.Join(dir, "vars"), filepath.Join(dir, "log")
	if err := os.WriteFile(vars, []byte("FROM_FILE=there\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key    string
		change func(*Spec)
		script string // sh; what it prints has
		want   string
	}{
		{"directory", func(s *Spec) { s.Directory = dir }, "pwd", dir},
		{"environment", func(s *Spec) { s.Environment["GIVEN"] = "here" }, "echo =$GIVEN=", "=here="},
		{"environment_file", func(s *Spec) { s.EnvironmentFile = vars }, "echo =$FROM_FILE=", "=there="},
		{"tty", func(s *Spec) { s.TTY = true }, "test -t 1 && echo terminal", "terminal"},
		{"umask", func(s *Spec) { s.Umask = 0o027 }, "umask", "0027"},
		{"limit_nofile", func(s *Spec) { s.LimitNofile = new(uint64(123)) }, "ulimit -Hn; ulimit -Sn", "123\n123"},
		{"limit_core", func(s *Spec) { s.LimitCore = new(uint64(4096)) }, "set -- $(grep core /proc/self/limits); echo =$5=$6=", "=4096=4096="},
		{"limit_as", func(s *Spec) { s.LimitAS = new(uint64(1 << 30)) }, "set -- $(grep address /proc/self/limits); echo =$4=$5=", "=1073741824=1073741824="},
		{"nice", func(s *Spec) { s.Nice = 7 + niceness(t) }, "nice", fmt.Sprint(7 + niceness(t))},
		{"cpu_affinity", func(s *Spec) { s.CPUAffinity = []int{lastProcessor(t)} }, "set -- $(grep Cpus_allowed_list /proc/self/status); echo =$2=", fmt.Sprintf("=%d=", lastProcessor(t))},
		{"oom_score_adj", func(s *Spec) { s.OOMScoreAdj = 987 }, "cat /proc/self/oom_score_adj", "987"},
		{"no_new_privileges", func(s *Spec) { s.NoNewPrivileges = true }, "set -- $(grep NoNewPrivs /proc/self/status); echo =$2=", "=1="},
		{"user", func(s *Spec) { s.User = "nobody" }, "id -un", "nobody"},
		{"group", func(s *Spec) { s.Group = "12345" }, "id -g", "12345"},
		{"groups", func(s *Spec) { s.Groups = []string{"12345", "12346"} }, "id -G", "12345 12346"},
		{"log_file", func(s *Spec) { s.LogFile = log }, "echo into the file", "into the file"},
	} {
		t.Run(c.key, func(t *testing.T) {
			if os.Getuid() != 0 && (c.key == "user" || c.key == "group" || c.key == "groups") {
				t.Skip("only root may change user and groups")
			}
			st := open(t, t.TempDir(), proc.Options{})
			st.Apply([]Spec{real("a", "none", func(s *Spec) { s.Command, s.Restart = []string{"sh", "-c", c.script}, Never }, c.change)})
			last := next(t, st.ended)
			var printed []string
			for _, l := range st.Ring("a").Tail(-1) {
				printed = append(printed, l.Text)
			}
			if got := strings.Join(printed, "\n"); !strings.Contains(got, c.want) {
				t.Errorf("it prints %q, want %q; its end: %+v", got, c.want, last)
			}
		})
	}
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), "into the file") {
		t.Errorf("log_file: %q, %v", b, err)
	}
}

// niceness is the test's own nice value.
func niceness(t *testing.T) int {
	t.Helper()
	n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	return 20 - n // the system call's answer has no negative numbers
}

// lastProcessor is one that the test itself may run on. On a machine with more than one, a program is not confined to it by itself.
func lastProcessor(t *testing.T) (last int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for n := range len(set) * 64 {
		if set.IsSet(n) {
			last = n
		}
	}
	return last
}
