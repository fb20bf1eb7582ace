package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

func (a *app) checkCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "check [FILE]",
		Short: "check a configuration, without zhxd and without changing anything",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				a.config = args[0]
			}
			return a.check()
		},
	})
}

// load reads the configuration, and gives its problems besides, whether or not it is valid.
func (a *app) load() (*config.Config, []control.Problem, error) {
	path := a.config
	if path == "" {
		path = defaultConfig
	}
	conf, err := config.Load(path, config.Options{})
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

func (a *app) check() error {
	conf, problems, err := a.load()
	if err != nil {
		return err
	}
	var names []string
	if conf != nil {
		for _, c := range conf.Clients {
			names = append(names, c.Name)
		}
	}
	if a.json {
		err = a.printJSON(struct {
			V        int               `json:"v"`
			Valid    bool              `json:"valid"`
			Clients  []string          `json:"clients"`
			Problems []control.Problem `json:"problems"`
		}{1, conf != nil, append([]string{}, names...), problems})
	} else {
		warnings := 0
		for _, p := range problems {
			fmt.Fprintln(a.out, a.clean(a.out, problem(p)))
			if p.Warning {
				warnings++
			}
		}
		switch errs := len(problems) - warnings; {
		case conf == nil:
			fmt.Fprintf(a.out, "%s, %s\n", count(errs, "error"), count(warnings, "warning"))
		case warnings > 0:
			fmt.Fprintf(a.out, "%s: valid, %s, %s\n", conf.Path, count(len(names), "client"), count(warnings, "warning"))
		default:
			fmt.Fprintf(a.out, "%s: valid, %s\n", conf.Path, count(len(names), "client"))
		}
	}
	if err == nil && conf == nil {
		return exit(control.CodeUsage)
	}
	return err
}

func (a *app) reloadCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "reload",
		Short: "have zhxd read its configuration again, and show what that changed",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.reload(cmd.Context()) },
	})
}

func (a *app) reload(ctx context.Context) error {
	zhxd, ctx, cancel, err := a.daemon(ctx, readLimit)
	if err != nil {
		return err
	}
	defer cancel()
	res, err := zhxd.Reload(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(res)
	}
	for _, p := range res.Problems {
		fmt.Fprintln(a.err, a.clean(a.err, problem(p)))
	}
	signs := map[string][2]string{"live": {"~", yellow}, "restart": {"~", yellow}, "start": {"+", green}, "stop": {"-", red}}
	var rows [][]string
	for _, row := range res.Plan {
		if sign, ok := signs[row.Action]; ok {
			rows = append(rows, []string{sign[0], row.Name, row.Action, row.Why})
		}
	}
	a.table(rows, func(r, col int) string {
		if col > 0 {
			return ""
		}
		return signs[rows[r][2]][1]
	})
	_, err = fmt.Fprintf(a.out, "%d unchanged\n", len(res.Plan)-len(rows))
	return err
}
