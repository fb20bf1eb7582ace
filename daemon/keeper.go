// Somebody guards the guard: `zhxd --keeper` is the same program in a mode that only waits for one child, which is zhxd.
//
//	zhxctl start ─> keeper ── starts, waits for, starts again ──> zhxd ── everything else
//	                   └─ SIGTERM, SIGINT, SIGHUP go on to it; its READY=1 comes back, and goes on to whoever waits for it
//
// What a dead zhxd leaves running is not the keeper's business: it is no subreaper, and waits for its one child by pid.
package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	keeperDelayMin = 100 * time.Millisecond // before the second start in a row; the first is immediate, the others double it
	keeperDelayMax = 30 * time.Second       // and end here
	keeperStable   = 10 * time.Second       // a zhxd that lived this long begins a new row
	noteMax        = 4 << 10                // bytes of one notification; the rest is cut, as systemd does
	noteEnded      = "X_ZHX_ENDED=1"        // from the keeper to itself: zhxd said all that came before, and has ended
)

// keeper is one call of Keep. Everything is owned by its goroutine.
type keeper struct {
	argv, env []string
	log       *slog.Logger
	signals   chan os.Signal
	socket    *net.UnixConn // where zhxd notifies
	notes     chan string   // hear -> the loop, in order
	ready     bool          // zhxd has been READY once
	ending    bool          // nothing is started any more
}

// Keep runs argv, which is zhxd, until it ends by itself, and returns its exit code. It starts it again when it dies by a signal,
// and, once it has been READY (sd_notify) for the first time, also when it ends with a code other than 0. Before that, a code is
// an answer to whoever started it: another zhxd runs, the configuration is invalid. After SIGTERM, SIGINT or the end of ctx
// nothing is started any more.
func Keep(ctx context.Context, argv []string, log *slog.Logger) int {
	k := &keeper{argv: argv, log: log, signals: make(chan os.Signal, 8), notes: make(chan string)}
	signal.Notify(k.signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(k.signals)
	if err := k.listen(); err != nil {
		log.Error("keeper failed", "err", err, "next", "start zhxd without it")
		return 1
	}
	defer k.socket.Close()
	done := make(chan struct{})
	defer close(done)
	go k.hear(done)
	for delay := time.Duration(-1); ; {
		began := time.Now()
		code, how := k.once(ctx)
		lived := time.Since(began)
		switch {
		case code == 0, code > 0 && (k.ending || !k.ready):
			return code
		case k.ending:
			return 1
		}
		delay = keeperDelay(delay, lived)
		log.Error("zhxd died", "how", how, "lived", lived.Round(time.Millisecond), "next", "the keeper starts it again in "+delay.String())
		if !k.pause(ctx, delay) {
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
func (k *keeper) once(ctx context.Context) (code int, how string) {
	cmd := exec.Command(k.argv[0], k.argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = k.env, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ctrl-C reaches it once, through the keeper
	if err := cmd.Start(); err != nil {
		return 1, err.Error()
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ProcessState says it
		close(ended)
	}()
	for asked := ctx.Done(); ; {
		select {
		case <-ended:
			go func() {
				if _, err := k.socket.WriteTo([]byte(noteEnded), k.socket.LocalAddr()); err != nil {
					k.notes <- noteEnded
				}
			}()
			for note := <-k.notes; note != noteEnded; note = <-k.notes {
				k.heard(note)
			}
			return cmd.ProcessState.ExitCode(), cmd.ProcessState.String()
		case note := <-k.notes:
			k.heard(note)
		case sig := <-k.signals:
			k.ending = k.ending || sig != unix.SIGHUP
			_ = cmd.Process.Signal(sig) // it has just ended: the same
		case <-asked:
			k.ending, asked = true, nil
			_ = cmd.Process.Signal(unix.SIGTERM)
		}
	}
}

// pause waits, and reports false when asked to end meanwhile.
func (k *keeper) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		case sig := <-k.signals:
			if sig != unix.SIGHUP {
				return false
			}
		}
	}
}

// heard passes a notification on, to init or zhxctl, where one of them started the keeper.
func (k *keeper) heard(note string) {
	k.ready = k.ready || slices.Contains(strings.Split(note, "\n"), sdaemon.SdNotifyReady)
	_, _ = sdaemon.SdNotify(false, note) // zhxctl waits for the first one only
}

// listen makes the socket that zhxd notifies. The kernel picks its address, an abstract one: nothing is left behind.
func (k *keeper) listen() (err error) {
	if k.socket, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"}); err != nil {
		return fmt.Errorf("make a notify socket: %w", err)
	}
	raw, err := k.socket.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	}
	if err != nil {
		k.socket.Close()
		return fmt.Errorf("ask for the senders of notifications: %w", err)
	}
	k.env = append(os.Environ(), "NOTIFY_SOCKET="+k.socket.LocalAddr().String())
	return nil
}

// hear reads notifications until the socket is closed. Anybody can reach an abstract address, so the sender's uid counts.
func (k *keeper) hear(done <-chan struct{}) {
	buf, oob := make([]byte, noteMax), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, _, _, err := k.socket.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(msgs) != 1 {
			continue
		}
		if cred, err := unix.ParseUnixCredentials(&msgs[0]); err != nil || int(cred.Uid) != os.Geteuid() {
			continue
		}
		select {
		case k.notes <- string(buf[:n]):
		case <-done:
			return
		}
	}
}

// RunKeeper keeps a zhxd with the same options.
func RunKeeper(ctx context.Context, o Options) int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "zhxd: keeper:", err)
		return 1
	}
	argv := []string{exe, "--config", o.Config}
	if o.RunDir != "" {
		argv = append(argv, "--run-dir", o.RunDir)
	}
	out := NewLog(os.Stderr)
	if o.LogFile != "" {
		argv = append(argv, "--log", o.LogFile)
		out = NewLog(appender(o.LogFile))
	}
	defer out.Close()
	return Keep(ctx, argv, out.Logger())
}

// appender appends to a log file that zhxd rotates: it opens it for each line, of which there are few.
type appender string

func (a appender) Write(p []byte) (int, error) {
	f, err := os.OpenFile(string(a), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Write(p)
}
