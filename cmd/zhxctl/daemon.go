package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

// This file starts and ends zhxd itself.

const (
	unit          = "zhx.service"
	exitForbidden = 4        // systemctl's
	saidMax       = 64 << 10 // bytes of what a zhxd that does not start says; the rest is not shown
)

// startDaemon returns when zhxd is ready, whoever started it.
func (a *app) startDaemon(ctx context.Context, zhxd *control.Client) error {
	st, err := zhxd.Status(ctx)
	switch {
	case err == nil:
		fmt.Fprintf(a.out, "zhxd runs already, pid %d\n", st.Daemon.PID)
		return nil
	case !errors.Is(err, control.ErrDown):
		return err
	case a.hasUnit(ctx):
		if err := a.startUnit(ctx, zhxd); err != nil {
			return err
		}
		if path, err := a.socket(); err == nil { // who is not root would have had a zhxd elsewhere
			zhxd = control.Dial(path)
		}
	default:
		if err := a.launch(ctx, zhxd); err != nil {
			return err
		}
	}
	if st, err = zhxd.Status(ctx); err == nil {
		fmt.Fprintf(a.out, "zhxd %s runs, pid %d\n", st.Daemon.Version, st.Daemon.PID)
	}
	return err
}

// hasUnit tells whether this board's zhxd is systemd's.
func (a *app) hasUnit(ctx context.Context) bool {
	return a.hasSystemd() && exec.CommandContext(ctx, "systemctl", "--quiet", "is-enabled", unit).Run() == nil
}

// hasSystemd tells whether systemd may run the zhxd that is meant.
func (a *app) hasSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil && a.config == "" && a.control == "" && os.Getenv("ZHX_CONTROL") == ""
}

// startUnit waits until zhxd has told systemd that it is ready. Whatever is wrong, systemd goes on trying.
func (a *app) startUnit(ctx context.Context, zhxd *control.Client) error {
	end := a.progress(zhxd, nil)
	out, err := exec.CommandContext(ctx, "systemctl", "start", unit).CombinedOutput()
	end()
	switch exit, _ := errors.AsType[*exec.ExitError](err); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return notReady(ctx, zhxd, "systemctl status "+unit, "systemd")
	case exit != nil && (exit.ExitCode() == exitForbidden || bytes.Contains(out, []byte("authentication required"))): // polkit: 1
		return control.Errorf(control.CodeForbidden, "sudo zhxctl start; a zhxd of your own: zhxctl start --config FILE", "systemctl start %s: %s", unit, bytes.TrimSpace(out))
	}
	if conf, problems, broken := a.load(nil); conf == nil && broken == nil {
		return &control.Error{Code: control.CodeUsage, Hint: "mend it: systemd tries again each second, until zhxctl shutdown", Problems: problems,
			Text: "zhxd is not started: invalid configuration"}
	}
	return control.Errorf(control.CodeFailed, "journalctl -u "+unit+"; systemd tries again each second, until zhxctl shutdown",
		"systemctl start %s: %w: %s", unit, err, bytes.TrimSpace(out))
}

// stopUnit keeps systemd from starting a zhxd again that has died, and tells whether it was about to.
func (a *app) stopUnit(ctx context.Context) bool {
	if !a.hasSystemd() {
		return false
	}
	state, _ := exec.CommandContext(ctx, "systemctl", "is-active", unit).Output() // exit 3
	return string(state) == "activating\n" && exec.CommandContext(ctx, "systemctl", "stop", unit).Run() == nil
}

// notReady is the error where ctx ends before zhxd is ready, which who started it goes on with.
func notReady(ctx context.Context, zhxd *control.Client, hint, under string) error {
	_, what := unsettled(tabLimit, zhxd, nil, "waiting", "starting")
	if what != "" {
		what = ", " + what
	}
	code := control.CodeTimeout
	if errors.Is(ctx.Err(), context.Canceled) { // ctrl-C
		code = control.CodeFailed
	}
	return control.Errorf(code, "zhxctl status; "+hint, "zhxd is not ready yet%s; it goes on starting, under %s", what, under)
}

// launch starts zhxd under its keeper and waits until it says that it is ready (sd_notify).
func (a *app) launch(ctx context.Context, zhxd *control.Client) error {
	conf, problems, err := a.load(nil)
	if err != nil {
		return err
	}
	if conf == nil {
		return &control.Error{Code: control.CodeUsage, Hint: "mend it, or name another one with --config", Problems: problems,
			Text: "zhxd is not started: invalid configuration"}
	}
	if path, _ := a.socket(); path != conf.Daemon.Control {
		return control.Errorf(control.CodeUsage, "leave out --control and $ZHX_CONTROL, or mend [daemon] control",
			"zhxd is not started: its control socket would be %s by %s, not %s", conf.Daemon.Control, conf.Path, path)
	}
	path, err := filepath.Abs(cmp.Or(a.config, defaultConfig)) // zhxd works in another folder
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "zhxctl-") // 0700: whoever notifies us is us
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	said, err := os.Create(filepath.Join(dir, "stderr")) // no pipe: its end, which is ours, would kill who writes into it
	if err != nil {
		return err
	}
	defer said.Close()

	log := filepath.Join(conf.Daemon.RunDir, "zhxd.log")
	keeper := exec.Command(findZhxd(), "--keeper", "--config", path, "--log", log)
	keeper.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	keeper.Dir, keeper.Stderr = "/", said
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	keepDescriptors()
	if err := keeper.Start(); err != nil {
		return err
	}
	ended, ready := make(chan struct{}), make(chan struct{})
	go func() {
		_ = keeper.Wait() // ProcessState says it
		close(ended)
	}()
	go awaitReady(notify, ready)
	end := a.progress(zhxd, nil)
	select {
	case <-ready:
		end()
		return nil
	case <-ended:
		end()
		if _, err := zhxd.Status(ctx); err == nil { // somebody else has started it in the same moment
			return nil
		}
		text := make([]byte, saidMax)
		n, _ := said.ReadAt(text, 0)
		for line := range strings.Lines(string(text[:n])) {
			fmt.Fprintln(a.err, escape(strings.TrimSuffix(line, "\n")))
		}
		code := control.CodeFailed
		if keeper.ProcessState.ExitCode() == control.CodeUsage {
			code = control.CodeUsage
		}
		return control.Errorf(code, "its log is "+log, "zhxd did not start: %s", keeper.ProcessState)
	case <-ctx.Done():
		end()
		return notReady(ctx, zhxd, "its log is "+log, fmt.Sprintf("the keeper with pid %d", keeper.Process.Pid))
	}
}

// awaitReady closes ready at the first READY=1, and ends with the socket.
func awaitReady(notify *net.UnixConn, ready chan<- struct{}) {
	buf := make([]byte, 4<<10)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			return
		}
		if bytes.Contains(buf[:n], []byte("READY=1")) {
			close(ready)
			return
		}
	}
}

// findZhxd looks beside zhxctl; else exec looks in PATH.
func findZhxd() string {
	self, err := os.Executable()
	beside := filepath.Join(filepath.Dir(self), "zhxd")
	if _, missing := os.Stat(beside); err == nil && missing == nil {
		return beside
	}
	return "zhxd"
}

// keepDescriptors keeps from zhxd what whoever called zhxctl left open: a pipe would not end, a lock of flock(1) would not be
// given back, for as long as zhxd runs.
func keepDescriptors() {
	open, _ := os.ReadDir("/proc/self/fd")
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

func (a *app) shutdownCmd() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "shutdown",
		Short: "stop all clients and zhxd, and return when they have ended",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), actLimit, func(ctx context.Context, zhxd *control.Client) error { return a.shutdown(ctx, zhxd, keep) })
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "end zhxd alone: its clients go on, and the next zhxctl start adopts them")
	return cmd
}

func (a *app) shutdown(ctx context.Context, zhxd *control.Client, keep bool) error {
	end := a.progress(zhxd, nil)
	done, err := zhxd.Shutdown(ctx, keep)
	end()
	switch {
	case err == nil && done.Accepted:
		fmt.Fprintf(a.out, "zhxd: %s\n", accepted)
	case err == nil && done.Kept > 0:
		fmt.Fprintf(a.out, "zhxd has ended, pid %d; it left %s running, which the next zhxctl start adopts\n", done.PID, count(done.Kept, "client"))
	case err == nil:
		fmt.Fprintf(a.out, "zhxd has ended, pid %d\n", done.PID)
	case errors.Is(err, control.ErrDown):
		fmt.Fprintln(a.out, "zhxd is not running")
		if pid := a.keeper(); pid > 0 && unix.Kill(pid, unix.SIGTERM) == nil {
			fmt.Fprintf(a.out, "its keeper was about to start it again, and is told to end, pid %d\n", pid)
		} else if a.stopUnit(ctx) {
			fmt.Fprintln(a.out, "systemd was about to start it again, and is told to leave it")
		}
		return nil
	}
	return err
}

// keeper is the pid of the keeper of the zhxd that is meant, 0 if there is none: the kernel names who holds its lock.
func (a *app) keeper() int {
	path, _ := a.socket()
	runDir := filepath.Dir(path)
	if conf, _, _ := a.load(nil); conf != nil && conf.Daemon.Control == path {
		runDir = conf.Daemon.RunDir
	}
	lock, err := os.OpenFile(filepath.Join(runDir, "state", "lock"), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer lock.Close()
	holder := unix.Flock_t{Type: unix.F_WRLCK}
	if unix.FcntlFlock(lock.Fd(), unix.F_GETLK, &holder) != nil || holder.Type == unix.F_UNLCK {
		return 0
	}
	return int(holder.Pid)
}

func (a *app) versionCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "version",
		Short: "show the versions of zhxctl and of the zhxd that runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var zhxd *string // nil: nobody says
			st, err := a.status(cmd.Context(), readLimit)
			if err == nil {
				zhxd = &st.Daemon.Version
			}
			switch {
			case a.json:
				a.printJSON(map[string]any{"v": 1, "zhxctl": version, "zhxd": zhxd})
			case err != nil:
				fmt.Fprintf(a.out, "zhxctl %s\n%s\n", version, a.clean(err.Error()))
			default:
				fmt.Fprintf(a.out, "zhxctl %s\nzhxd %s\n", version, *zhxd)
			}
			return nil
		},
	})
}
