// Somebody guards the guard: `zhxd --keeper` is the same program in a mode that only waits for one child, which is zhxd.
//
//	zhxctl start ─> keeper ── starts, waits for, starts again ──> zhxd ── everything else
//	                   ├─ SIGTERM, SIGINT, SIGHUP go on to it; its READY=1 comes back, and goes on to whoever waits for it
//	                   └─ its WATCHDOG=1 comes back; if none does for too long: SIGABRT, SIGKILL, and it is started again
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	keeperDelayMin = 100 * time.Millisecond // before the second start in a row; the first is immediate, the others double it
	keeperDelayMax = 30 * time.Second       // and end here
	keeperStable   = 10 * time.Second       // a zhxd that lived this long begins a new row
	keeperHandover = time.Second            // for another keeper of the same run directory to end; then this one gives up
	noteMax        = 4 << 10                // bytes of one notification; the rest is cut, as systemd does
	noteWait       = time.Second            // for whoever gets it to take one; then it is lost

	// zhxd is hung when it notifies of nothing for so long. It must wake three times in that, and a board on which nothing
	// happens is not to be woken more often.
	keeperSilence = 2 * time.Minute
	// With a hardware watchdog it wakes for that anyway. This, keeperAbort and a start are over before the board is reset.
	keeperSilenceDevice = deviceTimeout * 2 / 3
	keeperAbort         = 5 * time.Second // for a hung zhxd to print its goroutines; then SIGKILL
	keeperLate          = time.Second     // a timer later than this: the keeper itself did not run, so maybe zhxd did not either
)

// keeper is one zhxd --keeper. Everything but ready is owned by the goroutine of keep.
type keeper struct {
	argv    []string
	runDir  string        // that it is the only keeper of
	notify  string        // the path of its socket, in a folder that is only its user's
	logFile string        // what stderr becomes when the first zhxd has died; "": it stays
	silence time.Duration // of zhxd; longer is hung
	log     *slog.Logger
	signals chan os.Signal
	heard   chan struct{} // zhxd has notified
	ready   atomic.Bool   // a zhxd has been READY
	ending  bool          // nothing is started any more
	lock    *os.File      // nil: not taken yet
	socket  *net.UnixConn // at notify; nil: none yet
}

// RunKeeper keeps a zhxd with the same options, and returns the exit code of the one that ended by itself.
func RunKeeper(ctx context.Context, o Options) int {
	var k keeper
	conf, err := load(o)
	exe, exeErr := os.Executable()
	if err = errors.Join(err, exeErr); err == nil {
		k.runDir = conf.Daemon.RunDir
		err = k.becomeKeeper()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "zhxd: keeper:", err)
		if errors.Is(err, ErrConfig) {
			return 2
		}
		return 1
	}
	argv := []string{exe, "--config", o.Config}
	if o.RunDir != "" {
		argv = append(argv, "--run-dir", o.RunDir)
	}
	if o.LogFile != "" {
		argv = append(argv, "--log", o.LogFile)
	}
	out := newLog(os.Stderr)
	defer out.Close()
	k.argv, k.notify, k.logFile, k.silence, k.log = argv, filepath.Join(k.runDir, "state", "keeper"), o.LogFile, keeperSilence, out.Logger()
	if conf.Watchdog.Device != "" {
		k.silence = keeperSilenceDevice
	}
	// Whoever watches the keeper is passed what zhxd notifies: it may want that more often. The rest is not for zhxd.
	if outer, err := sdaemon.SdWatchdogEnabled(true); err == nil && outer > 0 {
		k.silence = min(k.silence, outer)
	}
	return k.keep(ctx)
}

// becomeKeeper makes this process the only keeper of its run directory, also of one that was made again: two would start zhxd in turn,
// also after a shutdown. It locks zhxd's lock file, by fcntl(2), which does not see zhxd's flock(2) and names the keeper to zhxctl.
func (k *keeper) becomeKeeper() error {
	state := filepath.Join(k.runDir, "state")
	path := filepath.Join(state, "lock")
	if k.lock != nil { // not to be opened a second time: to close it would give the lock up
		ours, err := k.lock.Stat()
		if now, err2 := os.Lstat(path); err == nil && err2 == nil && os.SameFile(ours, now) {
			return nil
		}
	}
	err := os.MkdirAll(k.runDir, dirMode)
	if err == nil {
		err = os.MkdirAll(state, stateMode) // zhxd gives both their exact modes
	}
	if err != nil {
		return fmt.Errorf("make run_dir: %w", err)
	}
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.FcntlFlock(lock.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}) }()
	select {
	case err := <-locked:
		k.lock.Close() // of nil: an error, no harm
		k.lock = lock
		return err
	case <-time.After(keeperHandover):
		holder := unix.Flock_t{Type: unix.F_WRLCK}
		_ = unix.FcntlFlock(lock.Fd(), unix.F_GETLK, &holder)
		return fmt.Errorf("the keeper with pid %d has %s, and starts zhxd itself; zhxctl shutdown ends it", holder.Pid, k.runDir)
	}
}

// take is becomeKeeper, and makes the socket that zhxd notifies by, also where it was removed.
func (k *keeper) take() error {
	err := k.becomeKeeper()
	if _, gone := os.Lstat(k.notify); err != nil || k.socket != nil && gone == nil {
		return err
	}
	k.close()
	if k.socket, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: k.notify, Net: "unixgram"}); err == nil {
		go k.hear(k.socket)
	}
	return err
}

func (k *keeper) close() {
	_ = os.Remove(k.notify) // or a dead keeper's
	if k.socket != nil {
		k.socket.Close()
	}
}

// keep runs zhxd until it ends by itself, and returns its exit code. It starts it again when it dies by a signal, and, once it
// has been READY (sd_notify), also when it ends with a code other than 0: before that, a code is an answer to whoever started it.
// After SIGTERM, SIGINT or the end of ctx nothing is started any more.
func (k *keeper) keep(ctx context.Context) int {
	k.signals, k.heard = make(chan os.Signal, 8), make(chan struct{}, 1)
	signal.Notify(k.signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(k.signals)
	defer context.AfterFunc(ctx, func() { k.signals <- unix.SIGTERM })()
	defer k.close()
	err := k.take()
	for delay := time.Duration(-1); ; {
		if err != nil {
			k.log.Error("keeper failed", "err", err, "next", "start zhxd without it")
			return 1
		}
		began := time.Now()
		code, how := k.once()
		lived := time.Since(began)
		switch {
		case code == 0, code > 0 && (k.ending || !k.ready.Load()):
			return code
		case k.ending:
			return 1
		}
		k.toLog()
		delay = keeperDelay(delay, lived)
		k.log.Error("zhxd died", "how", how, "lived", lived.Round(time.Millisecond), "next", "the keeper starts it again in "+delay.String())
		err = k.take() // zhxctl shutdown finds who is to be told
		if !k.pause(delay) {
			return 0
		}
	}
}

// keeperDelay is the pause before the next start, from the one before (negative: there was none) and how long zhxd lived.
func keeperDelay(before, lived time.Duration) time.Duration {
	switch {
	case before < 0 || lived >= keeperStable:
		return 0
	case before == 0:
		return keeperDelayMin
	}
	return min(2*before, keeperDelayMax)
}

// once runs one zhxd to its end. The code is -1 when it died by a signal, or was hung.
//
// From its first notification on its silence is counted, in halves: what a start takes depends on the clients that a dead zhxd
// left. A half that the keeper did not end in time (SIGSTOP, a frozen cgroup; while the board is suspended the clock itself
// stands) begins the count anew, for zhxd may have stood as well. It notifies after a third.
func (k *keeper) once() (code int, how string) {
	cmd := exec.Command(k.argv[0], k.argv[1:]...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+k.notify, fmt.Sprint("WATCHDOG_USEC=", k.silence.Microseconds()))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ctrl-C reaches it once, through the keeper
	if err := cmd.Start(); err != nil {
		return 1, err.Error()
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState says it
		close(ended)
	}()
	select {
	case <-k.heard: // the dead one's
	default:
	}
	halves, wait := 0, k.silence/2
	timer, due := time.NewTimer(wait), time.Time{}
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ended:
			code, how = cmd.ProcessState.ExitCode(), cmd.ProcessState.String()
			if halves >= 2 && code > 0 { // a program in Go ends with 2 by SIGABRT
				code = -1
			}
			return code, how
		case <-k.heard:
			if halves >= 2 {
				continue // too late
			}
			halves = 0
		case <-timer.C:
			if halves++; halves <= 2 && time.Since(due) > keeperLate {
				halves = 0
			}
			switch halves {
			case 2:
				wait = keeperAbort
				k.log.Error("zhxd hangs", "pid", cmd.Process.Pid, "silence", k.silence, "next", "SIGABRT; SIGKILL after "+wait.String())
				_ = cmd.Process.Signal(unix.SIGABRT)
			case 3:
				_ = cmd.Process.Kill()
				continue
			}
		case sig := <-k.signals:
			k.ending = k.ending || sig != unix.SIGHUP
			_ = cmd.Process.Signal(sig) // it has just ended: the same
			continue
		}
		timer.Reset(wait)
		due = time.Now().Add(wait)
	}
}

// pause waits, and reports false when asked to end meanwhile.
func (k *keeper) pause(d time.Duration) bool {
	for timer := time.After(d); ; {
		select {
		case <-timer:
			return true
		case sig := <-k.signals:
			if sig != unix.SIGHUP {
				return false
			}
		}
	}
}

// hear passes what zhxd notifies on, to init or zhxctl, where one of them started the keeper. It ends with the socket.
func (k *keeper) hear(socket *net.UnixConn) {
	buf := make([]byte, noteMax)
	for {
		n, err := socket.Read(buf)
		if err != nil {
			return
		}
		note := string(buf[:n])
		if strings.Contains("\n"+note+"\n", "\n"+sdaemon.SdNotifyReady+"\n") {
			k.ready.Store(true)
		}
		nudge(k.heard)
		notifyOuter(note) // zhxctl waits for the first one only
	}
}

// notifyOuter is sd_notify(3), but does not wait for ever: if whoever watches this process is stopped, its socket is full soon, and
// clients and hardware are to be looked after all the same.
func notifyOuter(note string) {
	outer.mu.Lock()
	defer outer.mu.Unlock()
	for range 2 { // it may be another by now, at the same path
		if path := os.Getenv("NOTIFY_SOCKET"); outer.Conn == nil || outer.path != path {
			conn, err := net.Dial("unixgram", path)
			if err != nil {
				return // nobody watches
			}
			if outer.Conn != nil {
				outer.Close()
			}
			outer.Conn, outer.path = conn, path
		}
		_ = outer.SetWriteDeadline(time.Now().Add(noteWait))
		if _, err := outer.Write([]byte(note)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		outer.Close()
		outer.Conn = nil
	}
}

// outer is whoever watches this process. It stays connected: it would be taken for hung where descriptors have run out, or somebody
// has removed the socket with the run directory.
var outer struct {
	mu sync.Mutex
	net.Conn
	path string
}

// toLog makes the log file, which zhxd rotates, stderr: until now it was whoever started the keeper that read it, from now on
// what a zhxd says before it has opened its log would be lost.
func (k *keeper) toLog() {
	if k.logFile == "" {
		return
	}
	if f, err := os.OpenFile(k.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, logMode); err == nil {
		_ = unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0)
		f.Close()
	}
}
