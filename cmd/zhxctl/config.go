package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

// This file is about the configuration: where it says that zhxd is, whether it is valid, and reading it again.

const (
	defaultConfig = "/etc/zhx/clients.toml"
	defaultRunDir = "/run/zhx"
	controlName   = "control.sock"
	dataName      = "zhx.sock"
)

// socket is the path of the control socket.
func (a *app) socket() (string, error) {
	if path := cmp.Or(a.control, os.Getenv("ZHX_CONTROL")); path != "" {
		return path, nil
	}
	found, err := a.sockets()
	return found.Control, err
}

// dataSocket is where clients connect: without $ZHX_SOCKET that of the zhxd whose control socket is meant.
func (a *app) dataSocket() (string, error) {
	path := os.Getenv("ZHX_SOCKET")
	control := cmp.Or(a.control, os.Getenv("ZHX_CONTROL"))
	switch {
	case path != "":
		return path, nil
	case a.config == "" && control != "":
		return filepath.Join(filepath.Dir(control), dataName), nil
	}
	found, err := a.sockets()
	return found.Socket, err
}

// places are keys of [daemon].
type places struct {
	Control, Socket string
	RunDir          string `toml:"run_dir"`
}

// sockets says where the configuration has them, else where zhxd puts them. They must be found also where it has become
// unreadable, since then people look at the status: so this is lenient, unlike zhxd.
func (a *app) sockets() (places, error) {
	data, err := os.ReadFile(cmp.Or(a.config, defaultConfig))
	if err != nil && a.config != "" {
		return places{}, control.Errorf(control.CodeUsage, "name the control socket itself with --control", "look for [daemon] control: %w", err)
	}
	var found struct{ Daemon places }
	lines := bytes.SplitAfter(data, []byte("\n"))
	for n := len(lines); n > 0; { // what stands above a mistake may do
		bad, ok := errors.AsType[toml.ParseError](toml.Unmarshal(bytes.Join(lines[:n], nil), &found))
		if !ok {
			break
		}
		n = min(bad.Position.Line, n) - 1
	}
	at := found.Daemon
	dir := cmp.Or(at.RunDir, usualDir())
	return places{cmp.Or(at.Control, filepath.Join(dir, controlName)), cmp.Or(at.Socket, filepath.Join(dir, dataName)), dir}, nil
}

// usualDir is the run_dir of a configuration that names none.
func usualDir() string {
	own := os.Getenv("XDG_RUNTIME_DIR")
	if os.Geteuid() == 0 || !filepath.IsAbs(own) {
		return defaultRunDir
	}
	own = filepath.Join(own, "zhx")
	_, notMine := os.Lstat(filepath.Join(own, controlName))
	if _, err := os.Lstat(filepath.Join(defaultRunDir, controlName)); err == nil && notMine != nil {
		return defaultRunDir
	}
	return own // also where neither is there: it is the one that `start` would make
}

// environ is the environment of the zhxd that runs, which may have other variables than ours; nil where it is not to be had.
func (a *app) environ(ctx context.Context) (list []string) {
	_ = a.ask(ctx, tabLimit, func(ctx context.Context, zhxd *control.Client) error {
		st, err := zhxd.Status(ctx)
		if err != nil {
			return err
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", st.Daemon.PID)); err == nil {
			list = strings.Split(string(b), "\x00")
		}
		return nil
	})
	return list
}

// load reads the configuration, and gives its problems besides, whether or not it is valid.
func (a *app) load(environ []string) (*config.Config, []control.Problem, error) {
	conf, err := config.Load(cmp.Or(a.config, defaultConfig), config.Options{Environ: environ})
	found, ok := errors.AsType[config.Problems](err)
	switch {
	case err == nil:
		found = conf.Warnings
	case !ok:
		return nil, nil, err
	}
	problems := make([]control.Problem, 0, len(found))
	for _, p := range found {
		problems = append(problems, control.Problem(p))
	}
	return conf, problems, nil
}

func (a *app) checkCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "check [FILE]",
		Short: "check a configuration, with or without zhxd, and change nothing",
		Long: `Check a configuration, with or without zhxd, and change nothing.

${VARIABLE} and PATH are those of the zhxd that runs, where its environment may be read; else zhxctl's own.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				a.config = args[0]
			}
			return a.check(a.environ(cmd.Context()))
		},
	})
}

func (a *app) check(environ []string) error {
	conf, problems, err := a.load(environ)
	if err != nil {
		return err
	}
	names, warnings := []string{}, 0
	for _, p := range problems {
		if p.Warning {
			warnings++
		}
	}
	if conf != nil {
		for _, c := range conf.Clients {
			names = append(names, c.Name)
		}
	}
	if a.json {
		a.printJSON(struct {
			V        int               `json:"v"`
			Valid    bool              `json:"valid"`
			Clients  []string          `json:"clients"`
			Problems []control.Problem `json:"problems"`
		}{1, conf != nil, names, problems})
	} else {
		for _, p := range problems {
			fmt.Fprintln(a.out, a.clean(config.Problem(p).String()))
		}
		summary := fmt.Sprintf("%s, %s", count(len(problems)-warnings, "error"), count(warnings, "warning"))
		if conf != nil {
			summary = fmt.Sprintf("%s: valid, %s, %s", conf.Path, count(len(names), "client"), count(warnings, "warning"))
		}
		fmt.Fprintln(a.out, summary)
	}
	if conf == nil {
		return exit(control.CodeUsage)
	}
	return nil
}

func (a *app) reloadCmd() *cobra.Command {
	var dry bool
	cmd := a.asJSON(&cobra.Command{
		Use:   "reload",
		Short: "have zhxd read its configuration again, and show what that changed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), readLimit, func(ctx context.Context, zhxd *control.Client) error { return a.reload(ctx, zhxd, dry) })
		},
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show what it would do to each client, and change nothing")
	return cmd
}

func (a *app) reload(ctx context.Context, zhxd *control.Client, dry bool) error {
	res, err := zhxd.Reload(ctx, dry)
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(res)
		return nil
	}
	a.tellProblems(res.Problems)
	var rows [][]string
	kept := 0
	for _, row := range res.Plan {
		if row.Action == "keep" {
			kept++
		}
		if row.Action != "keep" || dry {
			rows = append(rows, []string{row.Action, row.Name, row.Why})
		}
	}
	a.table(rows)
	if dry {
		fmt.Fprintf(a.out, "a dry run: nothing was changed\n")
	} else {
		fmt.Fprintf(a.out, "%d unchanged\n", kept)
	}
	return nil
}

func (a *app) tellProblems(problems []control.Problem) {
	for _, p := range problems {
		fmt.Fprintln(a.err, escape(config.Problem(p).String()))
	}
}
