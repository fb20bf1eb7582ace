package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file acts on clients, one verb each.

// accepted is said where zhxd answers before it acts: what it does next may end zhxctl too.
const accepted = "accepted, it concerns the caller's own process tree"

func (a *app) startCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "start [NAME…|@GROUP…]",
		Short: "start clients; without names: start zhxd, in the background and under its keeper",
		Long: `Start clients. A client that was stopped by hand, or had given up, is an ordinary one again.

Without names, start zhxd in the background, under a keeper that starts it again should it die, and return when its sockets
listen and its clients were started. Where systemd has a zhx.service enabled, and neither --config nor --control says that
another zhxd is meant, that service is started instead.`,
		ValidArgsFunction: a.complete,
		RunE: func(cmd *cobra.Command, names []string) error {
			if len(names) == 0 {
				return a.ask(cmd.Context(), startLimit, a.startDaemon)
			}
			return a.act(cmd.Context(), (*control.Client).Start, control.Which{Names: names})
		},
	}
}

func (a *app) stopCmd() *cobra.Command {
	return a.actCmd("stop", "stop clients, until they are started by hand", (*control.Client).Stop)
}

func (a *app) restartCmd() *cobra.Command {
	return a.actCmd("restart", "stop clients and start them again", (*control.Client).Restart)
}

type verb func(*control.Client, context.Context, control.Which) (control.Outcomes, error)

func (a *app) actCmd(name, short string, do verb) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               name + " NAME…|@GROUP…|--all",
		Short:             short,
		ValidArgsFunction: a.complete,
		RunE: func(cmd *cobra.Command, names []string) error {
			if all == (len(names) > 0) {
				hint := fmt.Sprintf("%s NAME…  or  %[1]s --all  (zhxd itself: zhxctl shutdown)", cmd.CommandPath())
				return control.Errorf(control.CodeUsage, hint, "%s: which clients? give either names or --all", name)
			}
			return a.act(cmd.Context(), do, control.Which{Names: names, All: all})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all clients")
	return cmd
}

// act does a verb and tells its outcomes. The exit code is that of the first client with which it failed.
func (a *app) act(ctx context.Context, do verb, w control.Which) error {
	return a.ask(ctx, actLimit, func(ctx context.Context, zhxd *control.Client) error {
		out, err := do(zhxd, ctx, w)
		for _, c := range out.Clients {
			switch {
			case c.Error != nil:
				a.tell(c.Error)
				if err == nil {
					err = exit(c.Error.Code)
				}
			case c.Accepted:
				fmt.Fprintf(a.out, "%s: %s\n", c.Name, accepted)
			case c.PID != nil:
				fmt.Fprintf(a.out, "%s: %s, pid %d\n", c.Name, c.Text, *c.PID)
			default:
				fmt.Fprintf(a.out, "%s: %s\n", c.Name, c.Text)
			}
		}
		return err
	})
}
