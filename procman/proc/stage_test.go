package proc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// shown is what a child says of itself.
const shown = `umask
cat /proc/self/limits /proc/self/status # not the shell's: it blocks signals while it starts cat
echo oom $(cat /proc/$$/oom_score_adj)
echo arguments "$@"
echo files $(ls /proc/self/fd)
set -- $(cat /proc/$$/stat)
echo nice ${19}
echo pid $$ watchdog $WATCHDOG_PID
echo dir $(pwd)
echo argv $(tr '\0' ' ' </proc/$$/cmdline)
tr '\0' '\n' </proc/$$/environ
echo end`

// show starts a shell through the stage and returns what it says.
func show(t *testing.T, k *Kernel, c Command) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.Path, c.Argv, c.Output = "/bin/sh", []string{"sh", "-c", shown, "zero", "one two"}, w
	c.Tree = newTree(k)
	c.Tree.UID = unix.Getuid()
	c.Env = append(c.Env, "PATH="+os.Getenv("PATH"), "ZHX_RUN="+c.Tree.Mark)
	child, err := k.Start(c)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	p := &run{Child: child, tree: c.Tree, out: bufio.NewReader(r)}
	defer p.end(t)
	if got := k.TreeOf(p.ID); got != p.tree {
		t.Errorf("belongs to %v", got)
	}
	text, err := io.ReadAll(r)
	if e := <-p.Exited(); err != nil || e != (Exit{}) {
		t.Errorf("%+v, %v\n%s", e, err, text)
	}
	return string(text)
}

func ptr(n uint64) *uint64 { return &n }

// processors lists those that this process may run on.
func processors(t *testing.T) (list []int) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for n := range 1024 {
		if set.IsSet(n) {
			list = append(list, n)
		}
	}
	return list
}

// Each setting as the child sees it, and what it sees without: what this process was started with.
func TestStage(t *testing.T) {
	last := processors(t)[len(processors(t))-1:]
	cpu := strconv.Itoa(last[0])
	plain := Stage{Umask: 0o022}
	with := func(change func(*Stage)) Stage {
		s := plain
		change(&s)
		return s
	}
	tests := []struct {
		name  string
		stage Stage
		line  string // a regular expression
	}{
		{"umask", with(func(s *Stage) { s.Umask = 0o027 }), `0?027`},
		{"umask of 0", with(func(s *Stage) { s.Umask = 0 }), `0000`},
		{"limit_nofile", with(func(s *Stage) { s.Nofile = ptr(77) }), `Max open files +77 +77 .*`},
		{"limit_core", with(func(s *Stage) { s.Core = ptr(0) }), `Max core file size +0 +0 .*`},
		{"limit_as", with(func(s *Stage) { s.AS = ptr(64 << 20) }), `Max address space +67108864 +67108864 .*`},
		{"limit_as, below what the stage has", with(func(s *Stage) { s.AS = ptr(12 << 20) }), `Max address space +12582912 +12582912 .*`},
		{"nice", with(func(s *Stage) { s.Nice = 7 }), `nice 7`},
		{"cpu_affinity", with(func(s *Stage) { s.Affinity = last }), `Cpus_allowed_list:\s` + cpu},
		{"oom_score_adj", with(func(s *Stage) { s.OOMScoreAdj = 321 }), `oom 321`},
		{"no_new_privileges", with(func(s *Stage) { s.NoNewPrivs = true }), `NoNewPrivs:\s1`},
		{"watchdog pid", with(func(s *Stage) { s.WatchdogPID = true }), `pid (\d+) watchdog \d+`},
	}
	without := map[string]bool{} // the lines of a child that passed through no stage
	eachKernel(t, func(t *testing.T, k *Kernel) {
		dir := t.TempDir()
		bare := show(t, k, Command{Dir: dir})
		for line := range strings.Lines(bare) {
			without[strings.TrimSpace(line)] = true
		}
		files := regexp.MustCompile(`\nfiles .*\n`).FindString(bare) // 3 is ls's own; others came from whoever started the tests
		nofile := regexp.MustCompile(`\nMax open files .*\n`).FindString(bare)
		want := []string{nofile, files, "\ndir " + dir + "\n", "\narguments one two\n"}
		for _, test := range tests {
			got := show(t, k, Command{Dir: dir, Stage: &test.stage, Env: []string{"WATCHDOG_PID=1"}})
			line := regexp.MustCompile(`(?m)^` + test.line + `$`).FindString(got)
			switch {
			case line == "":
				t.Errorf("%s: no line %s in\n%s", test.name, test.line, got)
			case without[line]:
				t.Errorf("%s: %s without a stage, too", test.name, line)
			}
			for i, line := range want {
				if (i > 0 || test.stage.Nofile == nil) && !strings.Contains(got, line) {
					t.Errorf("%s: not %q in\n%s", test.name, line, got)
				}
			}
			pid := regexp.MustCompile(`pid (\d+) watchdog (\d+)`).FindStringSubmatch(got)
			if pid == nil || test.stage.WatchdogPID != (pid[1] == pid[2]) {
				t.Errorf("%s: %q", test.name, pid)
			}
			if n := strings.Count(got, "\nWATCHDOG_PID="); n != 1 {
				t.Errorf("%s: %d times in the environment", test.name, n)
			}
		}
		// A stage that sets what is set anyway changes nothing: Go's own descriptor limit is taken back, too.
		same := regexp.MustCompile(`(?m)^(0?022|Max .*|(Cpus_allowed|Sig(Pnd|Blk|Ign|Cgt)|Shd\w*|NoNewPrivs|Groups|Cap\w*|Umask).*|oom .*|nice .*|files .*)$`)
		if got, want := same.FindAllString(show(t, k, Command{Dir: dir, Stage: &plain}), -1), same.FindAllString(bare, -1); !slices.Equal(got, want) {
			t.Errorf("through an idle stage\n%q\nwithout\n%q", got, want)
		}
	})
}

// All at once, for a user: the privileged settings come first, the user's rights decide about directory and program, and
// what needs no help from the environment is not to be seen in it.
func TestStageUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a program as another user")
	}
	k := open(t, Options{})
	s := Stage{Umask: 0o077, Nofile: ptr(99), Core: ptr(4096), AS: ptr(128 << 20), Nice: -3, Affinity: processors(t)[:1], OOMScoreAdj: 5, NoNewPrivs: true, WatchdogPID: true}
	cred := &syscall.Credential{Uid: 65534, Gid: 65533, Groups: []uint32{7, 65532}}
	r, w, _ := os.Pipe()
	defer r.Close()
	tree := k.NewTree("client", 1, "mark", 65534)
	long := "LONG=" + strings.Repeat("x", 100<<10) // Exec copies it, when no memory is to be had any more
	env := []string{"ZHX_RUN=mark", long, "A\xff=not UTF-8", "PATH=" + os.Getenv("PATH")}
	c, err := k.Start(Command{Path: "/bin/sh", Argv: []string{"a\xffb", "-c", shown}, Env: env, Output: w, Tree: tree, Dir: "/", Stage: &s, Cred: cred})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer (&run{Child: c, tree: tree}).end(t)
	b, _ := io.ReadAll(r)
	pid := strconv.Itoa(c.PID)
	for _, line := range []string{
		`0?077`, `Max open files +99 +99 .*`, `Max core file size +4096 +4096 .*`, `Max address space +134217728 +134217728 .*`, `nice -3`,
		`Uid:\s65534\s65534\s65534\s65534`, `Gid:\s65533\s65533\s65533\s65533`, `Groups:\s7 65532 ?`, `CapEff:\s0+`, `CapPrm:\s0+`,
		`oom 5`, `NoNewPrivs:\s1`, "pid " + pid + " watchdog " + pid, "dir /", `end`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).Match(b) {
			t.Errorf("no line %s in\n%.3000s", line, b)
		}
	}
	for _, v := range append(env, "WATCHDOG_PID="+pid, "argv a\xffb -c umask ") {
		if !strings.Contains(string(b), "\n"+v) {
			t.Errorf("%.20q is not there", v)
		}
	}
	if n := strings.Count(string(b[strings.Index(string(b), "ZHX_RUN="):]), "\n"); n != len(env)+2 {
		t.Errorf("%d lines from the environment on", n)
	}
}

// What the client's environment says to loaders and to Go's runtime is for the program, not for the stage, which may be root.
func TestStageEnvironment(t *testing.T) {
	k := open(t, Options{})
	r, w, _ := os.Pipe()
	defer r.Close()
	tree := newTree(k)
	env := []string{"GOMEMLIMIT=nonsense", "GODEBUG=inittrace=1", "LD_PRELOAD=/nowhere", "+A=1", "ZHX_RUN=" + tree.Mark}
	c, err := k.Start(Command{Path: "/bin/sh", Argv: []string{"sh", "-c", `tr '\0' '\n' </proc/$$/environ 2>/dev/null`}, Env: env,
		Output: w, Tree: tree, Stage: &Stage{Umask: 1}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer (&run{Child: c, tree: tree}).end(t)
	var got []string
	b, _ := io.ReadAll(r)
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "ERROR: ld.so") { // of the program
			got = append(got, strings.TrimSpace(line))
		}
	}
	if !slices.Equal(got, env) {
		t.Errorf("%q, not %q", got, env)
	}
}

// The same where this process is nobody, and has a descriptor limit that Go raises for itself.
func TestStageNotRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("TestStage was that")
	}
	k := open(t, Options{})
	dir, err := os.MkdirTemp("", "") // under t.TempDir others have no right
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	tree := k.NewTree("test", 1, "mark of nobody", 65534)
	exe := filepath.Join(dir, "proc.test") // where it was built, others have no right either
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := k.Start(Command{
		Path: "/bin/sh", Argv: []string{"sh", "-c", `ulimit -Sn 300; exec "$0" "$@"`, exe, "-test.v", "-test.run=^(TestStage|TestStageError|TestStageTTY)$"}, Dir: "/",
		Env: []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir, "HOME=" + dir}, Output: w, Tree: tree, Cred: &syscall.Credential{Uid: 65534, Gid: 65534},
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer (&run{Child: c, tree: tree}).end(t)
	b, _ = io.ReadAll(r)
	if e := <-c.Exited(); e.Code != 0 || !strings.Contains(string(b), "--- PASS: TestStageError") {
		t.Errorf("%+v\n%s", e, b)
	}
}

// A stage that fails says in which step, and leaves nothing: no process, no zombie, no descriptor. The tree takes another.
func TestStageError(t *testing.T) {
	missing := -1 // a processor
	for n := range 1024 {
		if !slices.Contains(processors(t), n) {
			missing = n
			break
		}
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/nowhere/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	sh := Command{Path: "/bin/sh", Argv: []string{"sh", "-c", "exit 0"}}
	with := func(c Command, s Stage) Command { c.Stage = &s; return c }
	tests := map[string]struct {
		c     Command
		errno error
		text  string
	}{
		"no program":         {Command{Path: "/nowhere/prog", Stage: &Stage{}}, unix.ENOENT, "execute /nowhere/prog: "},
		"no interpreter":     {Command{Path: script, Stage: &Stage{}}, unix.ENOENT, "execute " + script},
		"no right":           {Command{Path: "/etc/passwd", Stage: &Stage{}}, unix.EACCES, "execute /etc/passwd: "},
		"no program, memory": {Command{Path: "/nowhere/prog", Stage: &Stage{AS: ptr(1 << 20)}}, unix.ENOENT, "execute /nowhere/prog: "},
		"no directory":       {Command{Path: "/bin/sh", Dir: "/nowhere", Stage: &Stage{}}, unix.ENOENT, "directory /nowhere: "},
		"descriptors":        {with(sh, Stage{Nofile: ptr(math.MaxUint64)}), unix.EPERM, "limit_nofile = unlimited: "},
		"processor":          {with(sh, Stage{Affinity: []int{missing}}), unix.EINVAL, "cpu_affinity = [" + strconv.Itoa(missing) + "]"},
		"one processor of 2": {with(sh, Stage{Affinity: append(processors(t)[:1:1], missing)}), unix.EINVAL, strconv.Itoa(missing) + "]"},
		"far processor":      {with(sh, Stage{Affinity: []int{processors(t)[0], 5000}}), unix.EINVAL, "5000]"},
		"oom_score_adj":      {with(sh, Stage{OOMScoreAdj: 1001}), unix.EINVAL, "oom_score_adj = 1001: "},
		"too much to pass":   {Command{Path: "/bin/sh", Argv: []string{"sh", strings.Repeat("x", 1<<20)}, Stage: &Stage{}}, unix.E2BIG, "stage"},
	}
	if os.Getuid() != 0 {
		for _, l := range []struct {
			name     string
			resource int
			limit    func(*Stage, *uint64)
		}{
			{"limit_core", unix.RLIMIT_CORE, func(s *Stage, n *uint64) { s.Core = n }},
			{"limit_as", unix.RLIMIT_AS, func(s *Stage, n *uint64) { s.AS = n }},
			{"limit_nofile", unix.RLIMIT_NOFILE, func(s *Stage, n *uint64) { s.Nofile = n }},
		} {
			var own syscall.Rlimit
			if err := syscall.Getrlimit(l.resource, &own); err == nil && own.Max != math.MaxUint64 {
				var s Stage
				l.limit(&s, ptr(own.Max+1))
				tests[l.name+" above the hard limit"] = struct {
					c     Command
					errno error
					text  string
				}{with(sh, s), unix.EPERM, l.name + " = " + strconv.FormatUint(own.Max+1, 10)}
			}
		}
		tests["nice"] = tests["no right"]
		nice := tests["nice"]
		nice.c, nice.text = with(sh, Stage{Nice: -5}), "nice = -5: "
		tests["nice"] = nice
		user := nice
		user.c, user.errno, user.text = with(sh, Stage{}), unix.EPERM, "run as uid 1: "
		user.c.Cred = &syscall.Credential{Uid: 1, Gid: 1}
		tests["user"] = user
	} else {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		user := tests["no directory"] // root may, this user may not
		user.c.Dir, user.errno, user.text = dir, unix.EACCES, "directory "+dir
		user.c.Cred = &syscall.Credential{Uid: 65534, Gid: 65534}
		tests["directory of another"] = user
	}
	eachKernel(t, func(t *testing.T, k *Kernel) {
		for name, test := range tests {
			tree := newTree(k)
			before := descriptors(t)
			test.c.Tree, test.c.Output, test.c.Env = tree, os.Stderr, []string{"ZHX_RUN=" + tree.Mark}
			_, err := k.Start(test.c)
			if !errors.Is(err, test.errno) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), `"client`) {
				t.Errorf("%s: %v", name, err)
			}
			if !tree.Empty() || tree.leader != nil {
				t.Errorf("%s: something is left", name)
			}
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
				t.Errorf("%s: a child is left: %d, %v", name, pid, err)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%s: %d descriptors, before %d", name, after, before)
			}
			c, err := k.Start(Command{Path: "/bin/true", Argv: []string{"true"}, Output: os.Stderr, Tree: tree, Stage: &Stage{Umask: 1}})
			if err != nil {
				t.Fatalf("%s: the next start: %v", name, err)
			}
			(&run{Child: c, tree: tree}).end(t)
		}
	})
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A default that may not be set is forgiven: 0, where this process has another value and must keep it.
func TestStageDefaults(t *testing.T) {
	for _, errno := range []error{unix.EPERM, unix.EACCES} {
		if err := unlessDefault(0, errno); err != nil {
			t.Error(err)
		}
		if err := unlessDefault(1, errno); err == nil {
			t.Error("what was asked for is forgiven")
		}
	}
	if err := unlessDefault(0, unix.EINVAL); err == nil {
		t.Error("a bug is forgiven")
	}
}

// A stage is needed only for what differs from what this process has.
func TestNewStage(t *testing.T) {
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	b, err2 := os.ReadFile("/proc/self/oom_score_adj")
	oom, err3 := strconv.Atoi(strings.TrimSpace(string(b)))
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	own := Stage{Umask: 0o022, Nice: 20 - nice, OOMScoreAdj: oom}
	if s := NewStage(own); s != nil {
		t.Errorf("%+v", s)
	}
	own.Affinity = []int{}
	if s := NewStage(own); s != nil {
		t.Errorf("%+v", s)
	}
	for name, change := range map[string]func(*Stage){
		"umask":    func(s *Stage) { s.Umask = 0 },
		"nofile":   func(s *Stage) { s.Nofile = ptr(0) },
		"core":     func(s *Stage) { s.Core = ptr(0) },
		"as":       func(s *Stage) { s.AS = ptr(0) },
		"nice":     func(s *Stage) { s.Nice++ },
		"affinity": func(s *Stage) { s.Affinity = []int{0} },
		"oom":      func(s *Stage) { s.OOMScoreAdj++ },
		"nnp":      func(s *Stage) { s.NoNewPrivs = true },
		"watchdog": func(s *Stage) { s.WatchdogPID = true },
	} {
		s := own
		change(&s)
		if NewStage(s) == nil {
			t.Errorf("%s: none", name)
		}
	}
}

// What a child without a stage inherits is the same however this program was started.
func TestOwnUmask(t *testing.T) {
	if got := unix.Umask(ownUmask); got != ownUmask {
		t.Errorf("this process's own umask is %o", got)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv(insideVariable) != "" {
		return
	}
	cmd := exec.Command("/bin/sh", "-c", `umask 0077; exec "$0" -test.run='^TestOwnUmask$'`, exe)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// On a pseudo-terminal the stage, and so the program, leads the session.
func TestStageTTY(t *testing.T) {
	k := open(t, Options{})
	master, slave, err := OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	tree := newTree(k)
	c, err := k.Start(Command{Path: "/bin/sh", Argv: []string{"sh", "-c", "umask; tty </dev/tty; exec sleep 1000"}, Env: os.Environ(), TTY: slave, Tree: tree, Stage: &Stage{Umask: 0o031}})
	if err != nil {
		t.Fatal(err)
	}
	slave.Close()
	defer (&run{Child: c, tree: tree}).end(t)
	out := bufio.NewReader(master)
	for _, want := range []string{"031", "/dev/"} {
		if line, err := out.ReadString('\n'); err != nil || !strings.Contains(line, want) {
			t.Errorf("%q, %v, not %q", line, err, want)
		}
	}
	if s, err := ReadStat(c.PID); err != nil || s.SID != c.PID || s.TTY == 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A stage that died after its last word has its own name still. Only a program of that very name cannot be told from it.
func TestStageDied(t *testing.T) {
	k := open(t, Options{})
	p := start(t, k, "say", "sleep") // executed as /proc/self/exe, as a stage is
	p.said(t, 1)
	if died(p.PID, "/bin/sh") {
		t.Error("it lives")
	}
	unix.Kill(p.PID, unix.SIGKILL)
	<-p.Exited()
	if !died(p.PID, "/bin/sh") || died(p.PID, selfExe) {
		t.Error("wrong about a dead one")
	}
}

// A stage that is killed before it executed is no child that was started.
func TestStageKilled(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		tree := newTree(k)
		ctx, cancel := context.WithCancel(t.Context())
		killed := make(chan struct{})
		go func() { // as soon as it is there: it has 10 ms until it executes; if it was faster, sleep is killed
			defer close(killed)
			for ctx.Err() == nil {
				k.mu.Lock()
				if l := tree.leader; l != nil {
					unix.Kill(l.PID, unix.SIGKILL)
					k.mu.Unlock()
					return
				}
				k.mu.Unlock()
			}
		}()
		c, err := k.Start(Command{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}, Output: os.Stderr, Tree: tree, Stage: &Stage{}})
		cancel()
		<-killed
		if err == nil {
			(&run{Child: c, tree: tree}).end(t)
			t.Log("killed too late")
			return
		}
		if !strings.Contains(err.Error(), "signal 9") || !tree.Empty() {
			t.Error(err)
		}
		tree.Close()
	})
}

// Whoever calls himself a stage gets nothing but a word: without a socket, with a file, with a socket that says nothing.
func TestStageForged(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pair[0])
	socket := os.NewFile(uintptr(pair[1]), "socket")
	defer socket.Close()
	for name, files := range map[string][]*os.File{"nothing": nil, "a file": {os.Stdin}, "a socket": {socket}} {
		for _, args := range [][]string{{stageName}, {stageName, "/", "/bin/echo", "echo", "executed"}} {
			cmd := exec.Command(exe)
			cmd.Args, cmd.ExtraFiles = args, files
			b, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 2 || !strings.HasPrefix(string(b), "zhx_stage is started by zhxd alone: ") || strings.Contains(string(b), "executed") {
				t.Errorf("%s, %q: %v\n%s", name, args, err, b)
			}
		}
	}
}

// What a stage costs.
func BenchmarkStage(b *testing.B) {
	k := open(b, Options{})
	for b.Loop() {
		tree := k.NewTree("client", 1, "mark", 0)
		c, err := k.Start(Command{Path: "/bin/true", Argv: []string{"true"}, Output: os.Stderr, Tree: tree, Stage: &Stage{}})
		if err != nil {
			b.Fatal(err)
		}
		<-c.Exited()
		tree.Empty()
		c.Reap()
		tree.Close()
	}
}
