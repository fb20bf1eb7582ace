package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file starts and ends zhxd itself.

const (
	unit      = "zhx.service"
	tailLines = 10       // of zhxd.log, shown when zhxd does not start
	tailBytes = 64 << 10 // of zhxd.log, searched for them
)

// startDaemon returns when zhxd is ready, whoever started it.
func (a *app) startDaemon(ctx context.Context) error {
	zhxd, ctx, cancel, err := a.daemon(ctx, startLimit)
	if err != nil {
		return err
	}
	defer cancel()
	if v, err := zhxd.Version(ctx); err == nil {
		_, err = fmt.Fprintf(a.out, "zhxd runs already, pid %d\n", v.PID)
		return err
	} else if !errors.Is(err, control.ErrDown) {
		return err
	}
	if a.hasUnit(ctx) {
		out, err := exec.CommandContext(ctx, "systemctl", "start", unit).CombinedOutput()
		if err != nil {
			return control.Errorf(control.CodeFailed, "journalctl -u "+unit, "systemctl start %s: %w: %s", unit, err, bytes.TrimSpace(out))
		}
	} else if err := a.launch(ctx); err != nil {
		return err
	}
	v, err := zhxd.Version(ctx)
	if err == nil {
		_, err = fmt.Fprintf(a.out, "zhxd %s runs, pid %d\n", v.Version, v.PID)
	}
	return err
}

// hasUnit tells whether this board's zhxd is systemd's.
func (a *app) hasUnit(ctx context.Context) bool {
	if a.config != "" || a.control != "" || os.Getenv("ZHX_CONTROL") != "" {
		return false
	}
	_, err := os.Stat("/run/systemd/system")
	return err == nil && exec.CommandContext(ctx, "systemctl", "--quiet", "is-enabled", unit).Run() == nil
}

// launch starts zhxd under its keeper and waits until it says that it is ready (sd_notify).
func (a *app) launch(ctx context.Context) error {
	a.config = a.configPath()
	conf, problems, err := a.load()
	if err != nil {
		return err
	}
	if conf == nil {
		problems = slices.DeleteFunc(problems, func(p control.Problem) bool { return p.Warning })
		return &control.Error{Code: control.CodeUsage, Hint: "mend it, or name another one with --config", Problems: problems,
			Text: "zhxd is not started: invalid configuration"}
	}
	if path, _ := a.socket(); path != conf.Daemon.Control {
		return control.Errorf(control.CodeUsage, "leave out --control and $ZHX_CONTROL, or mend [daemon] control",
			"zhxd is not started: its control socket would be %s by %s, not %s", conf.Daemon.Control, conf.Path, path)
	}
	program, err := findZhxd()
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
	said, err := os.Create(filepath.Join(dir, "stderr")) // what zhxd says before it has its log
	if err != nil {
		return err
	}
	defer said.Close()

	log := filepath.Join(conf.Daemon.RunDir, "zhxd.log")
	before := size(log)
	keeper := exec.Command(program, "--keeper", "--config", a.config, "--log", log)
	keeper.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	keeper.Dir, keeper.Stderr = "/", said
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := keeper.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- keeper.Wait() }()
	ready := make(chan struct{})
	go awaitReady(notify, ready)
	select {
	case <-ready:
		return nil
	case <-ended:
		code := control.CodeFailed
		if keeper.ProcessState.ExitCode() == control.CodeUsage {
			code = control.CodeUsage
		}
		for _, line := range lastLines(log, before, said.Name()) {
			fmt.Fprintln(a.err, a.clean(a.err, line))
		}
		return control.Errorf(code, "its log is "+log, "zhxd did not start: %s", keeper.ProcessState)
	case <-ctx.Done():
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return control.Errorf(control.CodeFailed, "zhxctl status", "interrupted; zhxd goes on starting")
		}
		return control.Errorf(control.CodeTimeout, "zhxctl status; its log is "+log,
			"zhxd is not ready yet; it goes on starting, under the keeper with pid %d", keeper.Process.Pid)
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
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			close(ready)
			return
		}
	}
}

// findZhxd looks beside zhxctl, then in PATH.
func findZhxd() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "zhxd")
		if _, err := exec.LookPath(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("zhxd")
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", control.Errorf(control.CodeFailed, "install it, or put its folder into PATH", "zhxd is neither beside zhxctl nor in PATH: %w", err)
	}
	return path, nil
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// lastLines returns the last lines of the first file that says anything: the log from offset on, or what went to stderr.
func lastLines(log string, offset int64, stderr string) []string {
	if now := size(log); now < offset { // a new one was begun
		offset = 0
	} else {
		offset = max(offset, now-tailBytes)
	}
	for _, from := range []struct {
		path   string
		offset int64
	}{{log, offset}, {stderr, 0}} {
		f, err := os.Open(from.path)
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(io.NewSectionReader(f, from.offset, tailBytes))
		f.Close()
		if lines := strings.Split(strings.TrimSpace(string(text)), "\n"); lines[0] != "" {
			return lines[max(0, len(lines)-tailLines):]
		}
	}
	return nil
}

func (a *app) shutdownCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "shutdown",
		Short: "stop all clients and zhxd, and return when they have ended",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.shutdown(cmd.Context()) },
	}
}

func (a *app) shutdown(ctx context.Context) error {
	zhxd, ctx, cancel, err := a.daemon(ctx, actLimit)
	if err != nil {
		return err
	}
	defer cancel()
	v, err := zhxd.Shutdown(ctx, false)
	switch {
	case errors.Is(err, control.ErrDown):
		_, err = fmt.Fprintln(a.out, "zhxd is not running")
	case err == nil:
		_, err = fmt.Fprintf(a.out, "zhxd has ended, pid %d\n", v.PID)
	}
	return err
}

func (a *app) versionCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "version",
		Short: "show the versions of zhxctl and of the zhxd that runs",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.version(cmd.Context()) },
	})
}

func (a *app) version(ctx context.Context) error {
	both := struct {
		V      int     `json:"v"`
		Zhxctl string  `json:"zhxctl"`
		Zhxd   *string `json:"zhxd"`
	}{V: 1, Zhxctl: version}
	zhxd, ctx, cancel, err := a.daemon(ctx, time.Second)
	if err == nil {
		defer cancel()
		var v control.VersionReply
		if v, err = zhxd.Version(ctx); err == nil {
			both.Zhxd = &v.Version
		}
	}
	if a.json {
		return a.printJSON(both)
	}
	fmt.Fprintln(a.out, "zhxctl", version)
	if err != nil {
		_, err = fmt.Fprintln(a.out, err)
		return err
	}
	_, err = fmt.Fprintln(a.out, "zhxd", cmp.Or(*both.Zhxd, "unknown"))
	return err
}
