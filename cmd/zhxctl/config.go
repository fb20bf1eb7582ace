package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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
	excerpt       = 70 // columns of a line that are shown of it
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
	st, err := a.status(ctx, tabLimit)
	if err != nil {
		return nil
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", st.Daemon.PID)); err == nil {
		list = strings.Split(string(b), "\x00")
	}
	return list
}

// load reads the configuration, and gives its problems besides, whether or not it is valid.
func (a *app) load(environ []string) (*config.Config, []control.Problem, error) {
	conf, found, err := sorted(config.Load(a.file(nil), config.Options{Environ: environ}))
	return conf, plain(found), err
}

// file is the configuration that is meant: the argument, where there is one.
func (a *app) file(args []string) string {
	if len(args) > 0 {
		a.config = args[0]
	}
	return cmp.Or(a.config, defaultConfig)
}

// sorted makes of what package config returns the problems, and as an error only what is none of the file.
func sorted(conf *config.Config, err error) (*config.Config, config.Problems, error) {
	if conf != nil {
		return conf, conf.Warnings, nil
	}
	found, ok := errors.AsType[config.Problems](err)
	if ok {
		err = nil
	}
	return nil, found, err
}

func plain(found config.Problems) []control.Problem {
	rows := make([]control.Problem, 0, len(found))
	for _, p := range found {
		rows = append(rows, control.Problem(p))
	}
	return rows
}

func (a *app) checkCmd() *cobra.Command {
	var strict, system bool
	cmd := a.asJSON(&cobra.Command{
		Use:   "check [FILE]",
		Short: "check a configuration, with or without zhxd, and change nothing",
		Long: `Check a configuration, with or without zhxd, and change nothing.

${VARIABLE} and PATH are those of the zhxd that runs, where its environment may be read; else zhxctl's own.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, found, err := sorted(config.Load(a.file(args), config.Options{Environ: a.environ(cmd.Context()), Others: true, System: system}))
			if err != nil {
				return err
			}
			return a.report(conf, found, strict)
		},
	})
	cmd.Flags().BoolVar(&strict, "strict", false, "exit 2 where there are warnings, too")
	cmd.Flags().BoolVar(&system, "system", false, "also look for the directories and devices that zhxd needs on this machine")
	return cmd
}

// report is what check prints. conf is nil where the file is not valid.
func (a *app) report(conf *config.Config, found config.Problems, strict bool) error {
	names, warnings := []string{}, 0
	for _, p := range found {
		if p.Warning {
			warnings++
		}
	}
	if conf != nil {
		for _, c := range conf.Clients {
			names = append(names, c.Name)
		}
	}
	valid := conf != nil && (warnings == 0 || !strict)
	if a.json {
		a.printJSON(struct {
			V        int               `json:"v"`
			Valid    bool              `json:"valid"`
			Clients  []string          `json:"clients"`
			Problems []control.Problem `json:"problems"`
		}{1, valid, names, plain(found)})
	} else {
		a.point(a.out, nil, found)
		summary := fmt.Sprintf("%s, %s", count(len(found)-warnings, "error"), count(warnings, "warning"))
		if valid {
			summary = fmt.Sprintf("%s: valid, %s, %s", conf.Path, count(len(names), "client"), count(warnings, "warning"))
		}
		fmt.Fprintln(a.out, summary)
	}
	if !valid {
		return exit(control.CodeUsage)
	}
	return nil
}

// point prints problems of a text, or without one of the file that they name, each with its line and a caret.
func (a *app) point(w io.Writer, text []byte, found config.Problems) {
	if len(found) > 0 && text == nil && found[len(found)-1].Line > 0 { // else it may be no file
		text, _ = os.ReadFile(found[0].File)
	}
	lines := strings.Split(strings.TrimPrefix(string(text), "\ufeff"), "\n")
	for _, p := range found {
		fmt.Fprintln(w, escape(p.String()))
		if p.Column == 0 || p.Line > len(lines) {
			continue
		}
		line, dots := []rune(strings.TrimRight(lines[p.Line-1], "\r")), ""
		at := min(p.Column-1, len(line))
		before, rest := line[max(0, at-excerpt):at], line[at:min(len(line), at+excerpt)]
		if columns(escape(string(line[:min(len(line), excerpt+1)]))) > excerpt {
			for ; columns(escape(string(before))) >= excerpt/2; before = before[1:] {
				dots = "..."
			}
		}
		pad := strings.Map(func(r rune) rune {
			switch {
			case r == '\t':
				return r
			case r >= 0x1100: // from there on nearly all are two columns wide, as this space is
				return '\u3000'
			}
			return ' '
		}, dots+escape(string(before)))
		for len(rest) > 0 && columns(dots+escape(string(before)+string(rest))) > excerpt+len(dots) {
			rest = rest[:len(rest)-1]
		}
		under := max(1, columns(escape(string(rest[:min(p.Width, len(rest))]))))
		fmt.Fprintf(w, "%7d | %s%s\n        | %s%s\n", p.Line, dots, escape(string(before)+string(rest)), pad, strings.Repeat("^", under))
	}
}

func (a *app) reloadCmd() *cobra.Command {
	var dry, code bool
	cmd := a.asJSON(&cobra.Command{
		Use:   "reload",
		Short: "have zhxd read its configuration again, and show what that changed",
		Long: `Have zhxd read its configuration again, and show what that changed:
+ a client starts, - it is stopped and removed, ~ it is restarted or takes the keys that are named as it runs.

With --dry-run --exit-code the exit code is 0 if there is nothing to do, 2 if there is, 1 if that cannot be told.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if code && !dry {
				return control.Errorf(control.CodeUsage, "zhxctl reload --dry-run --exit-code", "reload: --exit-code goes with --dry-run")
			}
			err := a.ask(cmd.Context(), readLimit, func(ctx context.Context, zhxd *control.Client) error { return a.reload(ctx, zhxd, dry, code) })
			if e, ok := errors.AsType[*control.Error](err); ok && code { // 2 is that there are changes
				a.tell(e)
				return exit(control.CodeFailed)
			}
			return err
		},
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show what it would do to each client, and change nothing")
	cmd.Flags().BoolVar(&code, "exit-code", false, "with --dry-run: exit 2 if it would change something")
	return cmd
}

func (a *app) reload(ctx context.Context, zhxd *control.Client, dry, code bool) error {
	res, err := zhxd.Reload(ctx, dry)
	if err != nil {
		return err
	}
	var rows [][]string
	changed := 0
	for _, row := range res.Plan {
		if row.Action != "keep" {
			changed++
		}
		switch row.Action {
		case "start":
			rows = append(rows, []string{"+ " + row.Name, row.Action, row.Why})
		case "stop":
			rows = append(rows, []string{"- " + row.Name, "remove", row.Why})
		case "keep":
		default:
			rows = append(rows, []string{"~ " + row.Name, row.Action, row.Why})
			for i, c := range row.Changes {
				if i > 0 {
					rows = append(rows, []string{"", "", ""})
				}
				rows[len(rows)-1][2] = fmt.Sprintf("%s: %s -> %s", c.Key, cmp.Or(c.Old, "unset"), cmp.Or(c.New, "unset"))
			}
		}
	}
	if a.json {
		a.printJSON(res)
	} else {
		a.tellProblems(res.Problems)
		a.table(rows)
		end := ""
		if dry {
			end = ". Nothing done (dry run)."
		}
		fmt.Fprintf(a.out, "%d unchanged%s\n", len(res.Plan)-changed, end)
	}
	if code && changed > 0 {
		return exit(control.CodeUsage)
	}
	return nil
}

func (a *app) tellProblems(problems []control.Problem) {
	var found config.Problems
	for _, p := range problems {
		found = append(found, config.Problem(p))
	}
	a.point(a.err, nil, found)
}
