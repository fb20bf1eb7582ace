// Somebody guards the guard: `zhxd --keeper` is the same program in a mode that only waits for one child, which is zhxd.
//
//	zhxctl start ─> keeper ── starts, waits for, starts again ──> zhxd ── everything else
//	                   └─ SIGTERM, SIGINT, SIGHUP go on to it; its READY=1 comes back, and goes on to whoever waits for it
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
)

// keeper is one zhxd --keeper. Everything but ready is owned by the goroutine of keep.
type keeper struct {
	argv    []string
	notify  string // the path of its socket, in a folder that is only its user's
	logFile string // what stderr becomes when the first zhxd has died; "": it stays
	log     *slog.Logger
	signals chan os.Signal
	ready   atomic.Bool // a zhxd has been READY
	ending  bool        // nothing is started any more
}

// RunKeeper keeps a zhxd with the same options, and returns the exit code of the one that ended by itself.
func RunKeeper(ctx context.Context, o Options) int {
	state, err := guard(o)
	exe, exeErr := os.Executable()
	if err = errors.Join(err, exeErr); err != nil {
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
	out := NewLog(os.Stderr)
	defer out.Close()
	k := keeper{argv: argv, notify: filepath.Join(state, "keeper"), logFile: o.LogFile, log: out.Logger()}
	return k.keep(ctx)
}

// guard makes this process the only keeper of its run directory, whose state folder it returns: two would start zhxd in turn, also
// after a shutdown. It locks zhxd's lock file, by fcntl(2), which does not see zhxd's flock(2) and names the keeper to zhxctl.
func guard(o Options) (state string, err error) {
	conf, err := load(o)
	if err != nil {
		return "", err
	}
	state = filepath.Join(conf.Daemon.RunDir, "state")
	err = os.MkdirAll(conf.Daemon.RunDir, dirMode)
	if err == nil {
		err = os.MkdirAll(state, stateMode) // zhxd gives both their exact modes
	}
	if err != nil {
		return "", fmt.Errorf("make run_dir: %w", err)
	}
	fd, err := unix.Open(filepath.Join(state, "lock"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", fmt.Errorf("open the lock in %s: %w", state, err)
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}) }()
	select {
	case err := <-locked:
		return state, err
	case <-time.After(keeperHandover):
		holder := unix.Flock_t{Type: unix.F_WRLCK}
		_ = unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &holder)
		return "", fmt.Errorf("the keeper with pid %d has %s, and starts zhxd itself; zhxctl shutdown ends it", holder.Pid, conf.Daemon.RunDir)
	}
}

// keep runs zhxd until it ends by itself, and returns its exit code. It starts it again when it dies by a signal, and, once it
// has been READY (sd_notify), also when it ends with a code other than 0: before that, a code is an answer to whoever started it.
// After SIGTERM, SIGINT or the end of ctx nothing is started any more.
func (k *keeper) keep(ctx context.Context) int {
	k.signals = make(chan os.Signal, 8)
	signal.Notify(k.signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(k.signals)
	defer context.AfterFunc(ctx, func() { k.signals <- unix.SIGTERM })()
	_ = os.Remove(k.notify) // a dead keeper's
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: k.notify, Net: "unixgram"})
	if err != nil {
		k.log.Error("keeper failed", "err", err, "next", "start zhxd without it")
		return 1
	}
	defer os.Remove(k.notify)
	defer socket.Close()
	go k.hear(socket)
	for delay := time.Duration(-1); ; {
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

// once runs one zhxd to its end. The code is -1 when it died by a signal.
func (k *keeper) once() (code int, how string) {
	cmd := exec.Command(k.argv[0], k.argv[1:]...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+k.notify)
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
	for {
		select {
		case <-ended:
			return cmd.ProcessState.ExitCode(), cmd.ProcessState.String()
		case sig := <-k.signals:
			k.ending = k.ending || sig != unix.SIGHUP
			_ = cmd.Process.Signal(sig) // it has just ended: the same
		}
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
		_, _ = sdaemon.SdNotify(false, note) // zhxctl waits for the first one only
	}
}

// toLog makes the log file, which zhxd rotates, stderr: until now it was whoever started the keeper that read it, from now on
// what a zhxd says before it has opened its log would be lost.
func (k *keeper) toLog() {
	if k.logFile == "" {
		return
	}
	if f, err := os.OpenFile(k.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
		_ = unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0)
		f.Close()
	}
}
