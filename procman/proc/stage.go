// The stage sets in a child what Go's fork cannot: umask, limits, nice, processors … It is this very program, executed once
// more in the child; it carries out an order step by step, and then executes the client's program under the same pid.
//
//	Start ──fork, exec──> stage ──exec──> program        the pid, parent, group, session and cgroup stay
//	  ├──────order──────────>│
//	  │<──"step 3: EPERM"────┤  or "last step", and end of file: its descriptor is closed on exec
//
// Arguments and environment are the program's own from the beginning, so nothing is to be hidden from it afterwards. But the
// stage may be root, and the environment the client's: but for the mark, its variables have stageEnv in front of their names, so
// that neither a dynamic loader (LD_PRELOAD) nor Go's runtime (GODEBUG, GOMEMLIMIT) obeys them here. The order comes through a
// socket, descriptor 3. Only clients that ask for such a key pass through a stage: it costs the start of a Go program.

package proc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	stageName  = "zhx_stage"      // argv[0] of a stage
	stageEnv   = "+"              // before the program's variables
	stageOrder = 3                // its descriptor
	selfExe    = "/proc/self/exe" // this very program, also when the file was replaced since
	ownUmask   = 0o022
	// A stage that has not executed its program by then is killed, and the start failed.
	maxStage = 10 * time.Second
)

// Stage is what Start sets in a child. Values are absolute: 0 sets 0. NewStage makes one.
type Stage struct {
	Umask            int     // 0 to 0777
	Nofile, Core, AS *uint64 // setrlimit(2), soft and hard; Core and AS in bytes; math.MaxUint64: unlimited; nil: this process's own
	Nice             int     // -20 to 19
	Affinity         []int   // processors, from 0, all of which must be there; none: this process's own
	OOMScoreAdj      int     // -1000 to 1000
	NoNewPrivs       bool
	WatchdogPID      bool // WATCHDOG_PID is set to the child's pid, sd_watchdog_enabled(3)
}

// NewStage returns nil when s asks for nothing that a child does not inherit from this process anyway.
func NewStage(s Stage) *Stage {
	if len(s.Affinity) == 0 {
		s.Affinity = nil
	}
	own := Stage{Umask: ownUmask}
	if n, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		own.Nice = 20 - n // as the system call says it: always positive
	}
	if b, err := readProc(os.Getpid(), "oom_score_adj", 16); err == nil {
		own.OOMScoreAdj, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if reflect.DeepEqual(s, own) {
		return nil
	}
	return &s
}

var stageReady bool // StageMain was called: our executable knows what a stage is

// StageMain is called first by every main (and TestMain) of a program that starts children with a Stage. If this process is a
// stage, it does not return. Else it sets this process's umask to 022, which children without a stage inherit.
func StageMain() {
	if len(os.Args) > 0 && os.Args[0] == stageName {
		perform()
	}
	syscall.Umask(ownUmask)
	stageReady = true
}

// order is what a stage is told. The strings come as arguments: JSON would not keep every byte of a path.
type order struct {
	Stage
	Cred      *syscall.Credential
	dir, path string
	argv      []string
}

type step struct {
	what string // for people
	do   func() error
}

// steps lists what a stage does. Start makes the same list, and is told how far the stage got. What needs privileges comes
// before they are given up, and what hinders the stage itself last.
func (o *order) steps() (list []step) {
	add := func(do func() error, what string, args ...any) {
		list = append(list, step{fmt.Sprintf(what, args...), do})
	}
	add(func() error { syscall.Umask(o.Umask); return nil }, "umask = %04o", o.Umask)
	add(func() error { return unlessDefault(o.OOMScoreAdj, setOOMScoreAdj(o.OOMScoreAdj)) }, "oom_score_adj = %d", o.OOMScoreAdj)
	if o.Nofile != nil {
		add(func() error { return setLimit(unix.RLIMIT_NOFILE, *o.Nofile) }, "limit_nofile = %s", limitText(*o.Nofile))
	}
	if o.Core != nil {
		add(func() error { return setLimit(unix.RLIMIT_CORE, *o.Core) }, "limit_core = %s", limitText(*o.Core))
	}
	if o.AS != nil {
		add(func() error { return raiseAS(*o.AS) }, "limit_as = %s", limitText(*o.AS))
	}
	add(func() error { return unlessDefault(o.Nice, unix.Setpriority(unix.PRIO_PROCESS, 0, o.Nice)) }, "nice = %d", o.Nice)
	if len(o.Affinity) > 0 {
		add(func() error { return setAffinity(o.Affinity) }, "cpu_affinity = %v, all of which must be there", o.Affinity)
	}
	if o.Cred != nil {
		add(func() error { return setCredential(o.Cred) }, "run as uid %d", o.Cred.Uid)
	}
	if o.dir != "" { // with the rights of the user
		add(func() error { return unix.Chdir(o.dir) }, "directory %s", o.dir)
	}
	if o.NoNewPrivs {
		add(func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, "no_new_privileges")
	}
	add(o.execute, "execute %s", o.path)
	return list
}

// unlessDefault forgives what is not permitted if it is the default: who asked for nothing starts all the same, in a session
// or container that has another value and must keep it.
func unlessDefault(value int, err error) error {
	if value == 0 && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) {
		return nil
	}
	return err
}

// setOOMScoreAdj comes before the change of user, after which this file is root's.
func setOOMScoreAdj(n int) error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(n)), 0)
}

// setLimit goes through package syscall, which then leaves RLIMIT_NOFILE alone at exec. Where it is not set, Exec puts the
// limit back that Go has raised at the start.
func setLimit(resource int, n uint64) error {
	return syscall.Setrlimit(resource, &syscall.Rlimit{Cur: n, Max: n})
}

func limitText(n uint64) string {
	if n == math.MaxUint64 {
		return "unlimited"
	}
	return strconv.FormatUint(n, 10)
}

// raiseAS sets a limit that is above the present one, which only root may. To lower it would break our own runtime: execute does.
func raiseAS(n uint64) error {
	var own syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_AS, &own); err != nil || own.Max >= n {
		return err
	}
	return setLimit(unix.RLIMIT_AS, n)
}

// setAffinity refuses what the kernel forgives: a set of which only a part is there.
func setAffinity(cpus []int) error {
	var set unix.CPUSet
	for _, n := range cpus {
		set.Set(n)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	if slices.ContainsFunc(cpus, func(n int) bool { return !set.IsSet(n) }) {
		return unix.EINVAL
	}
	return nil
}

func setCredential(c *syscall.Credential) error {
	if !c.NoSetGroups {
		groups := make([]int, len(c.Groups))
		for i, g := range c.Groups {
			groups[i] = int(g)
		}
		if err := syscall.Setgroups(groups); err != nil {
			return err
		}
	}
	if err := syscall.Setgid(int(c.Gid)); err != nil {
		return err
	}
	return syscall.Setuid(int(c.Uid))
}

// execute becomes the program.
func (o *order) execute() error {
	env := os.Environ()
	for i, v := range env {
		env[i] = strings.TrimPrefix(v, stageEnv)
	}
	if o.WatchdogPID {
		env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "WATCHDOG_PID=") })
		env = append(env, "WATCHDOG_PID="+strconv.Itoa(os.Getpid()))
	}
	if o.AS == nil {
		return syscall.Exec(o.path, o.argv, env)
	}
	// From the limit on, our runtime gets neither memory nor threads, and would die of that. So all is made before, and there
	// is nothing between the two system calls.
	if o.Nofile == nil {
		syscall.Exec("", nil, nil) // before it fails it puts the limit back that Go has raised
	}
	path, err := syscall.BytePtrFromString(o.path)
	argv, err2 := syscall.SlicePtrFromStrings(o.argv)
	envp, err3 := syscall.SlicePtrFromStrings(env)
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	limit := syscall.Rlimit{Cur: *o.AS, Max: *o.AS}
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_AS, uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
	}
	return errno
}

// perform is the life of a stage.
func perform() {
	runtime.LockOSThread() // nice, processors and no_new_privs belong to a thread: the one that executes
	runtime.GOMAXPROCS(1)  // no other thread is started from here on: execute needs that
	o, err := readOrder()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s is started by zhxd alone: %v\n", stageName, err)
		os.Exit(2)
	}
	steps := o.steps()
	for i, s := range steps {
		if i == len(steps)-1 {
			tell(i, nil)
		}
		if err := s.do(); err != nil {
			tell(i, err)
			break
		}
	}
	unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0) // os.Exit would wait for the race detector
}

func readOrder() (o order, err error) {
	kind, err := unix.GetsockoptInt(stageOrder, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil && kind != unix.SOCK_SEQPACKET || len(os.Args) < 3 {
		err = unix.ENOTSOCK
	}
	if err != nil {
		return o, fmt.Errorf("descriptor %d has no order: %w", stageOrder, err)
	}
	unix.CloseOnExec(stageOrder)
	size, err := unix.GetsockoptInt(stageOrder, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return o, err
	}
	b := make([]byte, size) // no message is larger
	n, err := unix.Read(stageOrder, b)
	if err == nil {
		err = json.Unmarshal(b[:n], &o) // nothing at all is no order either: zhxd is gone
	}
	o.dir, o.path, o.argv = os.Args[1], os.Args[2], os.Args[3:]
	return o, err
}

// tell reports that step i comes now, or has failed. If nobody listens any more, nothing is executed.
func tell(i int, err error) {
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(i))
	b = binary.NativeEndian.AppendUint32(b, uint32(errno))
	if _, err := unix.Write(stageOrder, b); err != nil {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

// startStaged starts a program through a stage. When it fails, the child has been reaped.
func (k *Kernel) startStaged(c Command) (*Child, error) {
	if !stageReady {
		return nil, fmt.Errorf("start a stage: StageMain was not called: %w", unix.ENOSYS)
	}
	o := order{Stage: *c.Stage, Cred: c.Cred, dir: c.Dir, path: c.Path}
	message, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("start a stage: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start a stage: %w", err)
	}
	unix.SetNonblock(pair[0], true)
	ours, theirs := os.NewFile(uintptr(pair[0]), "stage"), os.NewFile(uintptr(pair[1]), "stage")
	defer ours.Close()
	argv, env := append([]string{stageName, c.Dir, c.Path}, c.Argv...), slices.Clone(c.Env)
	for i, v := range env {
		if !strings.HasPrefix(v, markVariable+"=") {
			env[i] = stageEnv + v
		}
	}
	child, err := k.start(Command{
		Path: selfExe, Argv: argv, Env: env, Output: c.Output, TTY: c.TTY, Tree: c.Tree, order: theirs,
	})
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("start a stage: %w", err)
	}
	if err = o.follow(ours, message); err == nil && died(child.PID, c.Path) {
		err = io.EOF
	}
	if err != nil {
		return nil, k.discard(child, err)
	}
	return child, nil
}

// follow gives a stage its order, and returns when it has executed the program.
func (o *order) follow(stage *os.File, message []byte) error {
	stage.SetDeadline(time.Now().Add(maxStage))
	if _, err := stage.Write(message); err != nil {
		return fmt.Errorf("give the stage its order: %w", err)
	}
	steps := o.steps()
	for reached := -1; ; {
		var b [8]byte
		n, err := stage.Read(b[:])
		switch {
		case err == io.EOF && reached == len(steps)-1:
			return nil
		case err != nil || n != len(b):
			return fmt.Errorf("wait for the stage: %w", err)
		}
		reached = int(binary.NativeEndian.Uint32(b[:]))
		if errno := syscall.Errno(binary.NativeEndian.Uint32(b[4:])); errno != 0 {
			return fmt.Errorf("%s: %w", steps[reached].what, errno)
		}
	}
}

// died reports whether a stage ended between its last word and the program: it has its name still.
func died(pid int, path string) bool {
	s, err := ReadStat(pid)
	return err == nil && !s.Living() && s.Comm == comm(selfExe) && s.Comm != comm(path)
}

// discard ends the child whose stage failed, and reaps it.
func (k *Kernel) discard(c *Child, err error) error {
	k.mu.Lock()
	if k.children[c.PID] == c {
		unix.Kill(c.PID, unix.SIGKILL)
	}
	k.mu.Unlock()
	if e := <-c.Exited(); errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		err = fmt.Errorf("the stage ended before it executed the program (code %d, signal %d): %w", e.Code, e.Signal, err)
	}
	err = errors.Join(err, c.Reap())
	k.mu.Lock()
	defer k.mu.Unlock()
	c.tree.leader = nil
	return err
}
