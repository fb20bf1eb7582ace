// Decoys: strangers that get the very pid of a client a moment after it was reaped. None may ever be signalled.
//
//	TestDecoys ──> keeper, process 1 of a pid namespace ──> TestDecoys again, with a Kernel ──> clients
//	                 └─ decoys, made on request with clone3 and the pid wanted

package proc

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	insideVariable = "ZHX_INSIDE" // set: this is the process inside the namespace
	unavailable    = 77           // the keeper's exit code where the kernel has no clone3 with a pid (before 5.5)
	batch          = 32           // clients at a time: so the first is some clock ticks old when it dies
)

// rounds is ZHX_ROUNDS, or else the default.
func rounds(t *testing.T, otherwise int) int {
	s := os.Getenv("ZHX_ROUNDS")
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("ZHX_ROUNDS=%s is not a number of rounds", s)
	}
	return n
}

// Rounds of clients that are started and stopped; each is signalled through its tree and by its former identity before,
// while and after its pid passes to a decoy.
func TestDecoys(t *testing.T) {
	if os.Getenv(insideVariable) != "" {
		insideDecoys(t)
		return
	}
	cmd := exec.Command("/proc/self/exe", "child", "decoys")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.ProcessState == nil:
		t.Skipf("no pid namespace for this process: %v", err)
	case cmd.ProcessState.ExitCode() == unavailable:
		t.Skipf("no process with a chosen pid, or no /proc, in a namespace: %s", out)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	default:
		t.Logf("%s", out)
	}
}

// keepDecoys is process 1 of the namespace. A request is a pid: of a decoy that lives, it is ended, else one is made. The
// answer is an errno, and the wait status of what was ended.
func keepDecoys() {
	runtime.LockOSThread() // its signal mask is what decoys inherit
	err := errors.Join(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), unix.Mount("proc", "/proc", "proc", 0, ""))
	if err == nil {
		const probe = 4711
		err = newDecoy(probe)
		unix.Kill(probe, unix.SIGKILL)
		unix.Wait4(probe, nil, 0, nil)
	}
	if err != nil {
		os.Stdout.WriteString(err.Error())
		exit(unavailable)
	}
	requests, theirs, _ := os.Pipe()
	mine, answers, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	test, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], "-test.run=^TestDecoys$", "-test.v", "-test.timeout=9m"},
		&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2, theirs.Fd(), mine.Fd()}})
	if err != nil {
		panic(err)
	}
	theirs.Close()
	decoys := map[int32]bool{}
	var pid int32
	for binary.Read(requests, binary.NativeEndian, &pid) == nil {
		var answer [2]int32
		if decoys[pid] {
			var s unix.WaitStatus
			unix.Kill(int(pid), unix.SIGKILL)
			unix.Wait4(int(pid), &s, 0, nil)
			answer[1] = int32(s)
		} else if err := newDecoy(pid); err != nil {
			answer[0] = int32(err.(syscall.Errno))
		}
		if answer[0] == 0 {
			decoys[pid] = !decoys[pid]
		}
		binary.Write(answers, binary.NativeEndian, answer)
	}
	var s unix.WaitStatus
	unix.Wait4(test, &s, 0, nil)
	exit(s.ExitStatus()) // and the kernel kills who is left here
}

// newDecoy makes a process that waits for ever with every signal blocked: what it is sent stays pending, for all to see.
func newDecoy(pid int32) error {
	args := struct{ flags, pidfd, child, parent, exit, stack, size, tls, pids, n uint64 }{
		exit: uint64(unix.SIGCHLD), pids: uint64(uintptr(unsafe.Pointer(&pid))), n: 1,
	}
	all, before := unix.Sigset_t{}, unix.Sigset_t{}
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return err
	}
	errno := cloneDecoy(unsafe.Pointer(&args), unsafe.Sizeof(args))
	runtime.KeepAlive(&pid)
	unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	if errno != 0 {
		return errno
	}
	return nil
}

// cloneDecoy returns in the parent alone. The child has no Go runtime: it does nothing but this system call.
//
//go:norace
//go:nosplit
func cloneDecoy(args unsafe.Pointer, size uintptr) syscall.Errno {
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(args), size, 0)
	for errno == 0 && pid == 0 {
		syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
	return errno
}

// keeper is the test's end of the keeper.
type keeper struct{ requests, answers *os.File }

func (d keeper) ask(t *testing.T, pid int) (syscall.Errno, unix.WaitStatus) {
	t.Helper()
	var answer [2]int32
	err := binary.Write(d.requests, binary.NativeEndian, int32(pid))
	if err == nil {
		err = binary.Read(d.answers, binary.NativeEndian, &answer)
	}
	if err != nil {
		t.Fatalf("the keeper of the decoys: %v", err)
	}
	return syscall.Errno(answer[0]), unix.WaitStatus(answer[1])
}

// untouched says "" of a decoy that nobody has signalled, and else what it saw.
func untouched(pid int) string {
	b, err := readProc(pid, "status", 64<<10)
	if err != nil {
		return err.Error()
	}
	var seen []string
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch {
		case (key == "SigPnd" || key == "ShdPnd") && strings.Trim(value, "0") != "", key == "State" && value != "S (sleeping)" && value != "R (running)":
			seen = append(seen, key+" "+value)
		}
	}
	return strings.Join(seen, ", ")
}

func insideDecoys(t *testing.T) {
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	d := keeper{os.NewFile(3, "requests"), os.NewFile(4, "answers")}
	d.notices(t)
	// No cgroups: those of a Kernel outside would look deserted from here, where its pid is not known, and be swept.
	for _, o := range []Options{{NoCgroup: true}, {NoCgroup: true, NoPidfd: true}} {
		name := "pidfd"
		if o.NoPidfd {
			name = "no pidfd"
		}
		t.Run(name, func(t *testing.T) {
			k := open(t, o)
			from, n, taken := time.Now(), 0, 0
			for n < rounds(t, 50) && !t.Failed() {
				n += d.batch(t, k, &taken)
			}
			t.Logf("%d decoys got the pid of a dead client, in %v; %d pids were given away before", n, time.Since(from).Round(time.Millisecond), taken)
		})
	}
}

// notices: the test is worth nothing if a decoy does not show what it got.
func (d keeper) notices(t *testing.T) {
	for _, sig := range []syscall.Signal{0, unix.SIGTERM, unix.SIGCONT, unix.SIGUSR1, unix.SIGSTOP, unix.SIGKILL} {
		const pid = 4711
		if errno, _ := d.ask(t, pid); errno != 0 {
			t.Fatal(errno)
		}
		unix.Kill(pid, sig)
		got := untouched(pid)
		for late := time.Now().Add(5 * time.Second); sig != 0 && got == "" && time.Now().Before(late); got = untouched(pid) {
			time.Sleep(time.Millisecond) // it stops on its own processor, in its own time
		}
		if (got == "") != (sig == 0) {
			t.Errorf("a decoy that got signal %d shows %q", sig, got)
		}
		d.ask(t, pid)
	}
}

// batch starts clients, stops them, gives their pids to decoys, and sends to whom they were all that a late caller may send.
func (d keeper) batch(t *testing.T, k *Kernel, taken *int) (made int) {
	var clients []*run
	for range batch {
		tree := newTree(k)
		c, err := k.Start(Command{Path: "/bin/sleep", Argv: []string{"sleep", "1000"}, Env: []string{"ZHX_RUN=" + tree.Mark}, Output: k.null, Tree: tree})
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, &run{Child: c, tree: tree})
	}
	for i, c := range clients {
		stop := c.tree.Kill
		if i%2 == 0 {
			stop = func() error { return c.tree.Signal(unix.SIGTERM) }
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	for _, c := range clients {
		<-c.Exited()
	}
	// A start time is a clock tick of 10 ms. No system forks through all its pids in one, but this test would.
	for bootTicks() <= clients[batch-1].Start {
		runtime.Gosched()
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		late(k, clients, stop)
	}()
	var decoys []int
	for i, c := range clients {
		if err := errors.Join(c.tree.WaitEmpty(t.Context()), c.Reap()); err != nil {
			t.Error(err)
		}
		if errno, _ := d.ask(t, c.PID); errno != 0 { // it went to somebody else: as it should be
			if errno != unix.EEXIST {
				t.Fatal(errno)
			}
			*taken++
			continue
		}
		decoys = append(decoys, c.PID)
		stale(t, k, c, i%8 == 0)
	}
	close(stop)
	<-stopped
	for _, c := range clients {
		c.tree.Close()
	}
	for _, pid := range decoys {
		if got := untouched(pid); got != "" {
			t.Errorf("decoy %d was signalled: %s", pid, got)
		}
		if _, s := d.ask(t, pid); s.Signal() != unix.SIGKILL {
			t.Errorf("decoy %d ended: %x", pid, s)
		}
	}
	return len(decoys)
}

// bootTicks is the present as a start time.
func bootTicks() uint64 {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return uint64(now.Nano()) / 1e7
}

// late signals the clients all the while, as somebody does who has not heard of their ends.
func late(k *Kernel, clients []*run, stop <-chan struct{}) {
	for {
		for _, c := range clients {
			select {
			case <-stop:
				return
			default:
			}
			c.tree.Signal(unix.SIGUSR1)
			k.signal(c.ID, unix.SIGTERM)
			if k.pidfd { // without, microseconds remain for who is not our child: SignalVerified says so
				SignalVerified(c.ID, unix.SIGHUP)
			}
		}
	}
}

// stale says all that can be said to a client whose pid is a decoy's.
func stale(t *testing.T, k *Kernel, c *run, remains bool) {
	t.Helper()
	decoy := idOf(t, c.PID)
	if decoy.Start == c.Start {
		t.Fatal("the decoy has the start time, too")
	}
	if err := errors.Join(c.tree.Signal(unix.SIGTERM), c.tree.Kill(), c.tree.WaitEmpty(t.Context()), k.signal(c.ID, unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	for _, pidfd := range []bool{true, false} {
		if err := signalVerified(c.ID, unix.SIGKILL, pidfd); !errors.Is(err, ErrRecycled) {
			t.Errorf("pidfd %v: %v", pidfd, err)
		}
	}
	if k.TreeOf(decoy) != nil || k.TreeOf(c.ID) != nil || !c.tree.Empty() {
		t.Error("the decoy counts as the client")
	}
	if err := c.Reap(); err == nil {
		t.Error("reaped again")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.WaitGone(ctx, c.ID); err != nil {
		t.Error(err)
	}
	if !remains { // reads the environment of everybody
		return
	}
	if killed, left, err := k.KillRemains(t.Context(), Remains{Mark: c.tree.Mark, Leader: c.ID, UID: os.Getuid()}); err != nil || len(killed)+len(left) > 0 {
		t.Errorf("killed %v, left %v, %v", killed, left, err)
	}
}
