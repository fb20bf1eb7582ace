package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file acts on clients, one verb each.

// accepted is said where zhxd answers before it acts: what it does next may end zhxctl too.
const accepted = "accepted, it concerns the caller's own process tree"

func (a *app) startCmd() *cobra.Command {
	cmd := a.wait(a.actCmd("start", "start clients; without names: start zhxd, in the background and under its keeper", (*control.Client).Start))
	cmd.Use = "start [NAME…|@GROUP…|--all]"
	cmd.Long = `Start clients, and return when each is ready, or its first run has failed. A client that was stopped by hand, or had given up, is
an ordinary one again.

Without names, start zhxd in the background, under a keeper that starts it again should it die, and return when its sockets
listen and its clients were started. Where systemd has a zhx.service enabled, and neither --config nor --control says that
another zhxd is meant, that service is started instead.`
	act := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		if len(names) == 0 && !cmd.Flags().Changed("all") {
			return a.ask(cmd.Context(), startLimit, a.startDaemon)
		}
		return act(cmd, names)
	}
	return cmd
}

func (a *app) stopCmd() *cobra.Command {
	cmd := a.actCmd("stop", "stop clients, until they are started by hand; it returns when nothing of them lives", (*control.Client).Stop)
	cmd.Flags().Bool("wait", false, "changes nothing: stop always waits")
	return cmd
}

func (a *app) restartCmd() *cobra.Command {
	return a.wait(a.actCmd("restart", "stop clients and start them again", (*control.Client).Restart))
}

func (a *app) killCmd() *cobra.Command {
	var signal string
	cmd := a.wait(a.actCmd("kill", "signal clients: SIGKILL to all their processes, or another signal to the first of them",
		func(zhxd *control.Client, ctx context.Context, w control.Which) (control.Outcomes, error) {
			return zhxd.Kill(ctx, control.KillRequest{Which: w, Signal: signal})
		}))
	cmd.Long = `Send SIGKILL to all processes of clients, or with -s another signal to the process that zhxd started (or that it named, MAINPID), and
wait for what comes of it only with --wait. A client that ends is started again or not as its restart says. Exit 3: one of them does not run.`
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "`SIGNAL`, by name or number (default KILL)")
	return cmd
}

func (a *app) resetCmd() *cobra.Command {
	cmd := a.actCmd("reset", "forget that clients have failed", (*control.Client).Reset)
	cmd.Long = `Forget that clients have failed: their start_limit and restart_delay begin anew. One that waits for its next start waits no longer than
restart_delay. One that had given up is stopped; zhxctl start starts it, and so does the next start of zhxd.`
	return cmd
}

type verb func(*control.Client, context.Context, control.Which) (control.Outcomes, error)

func (a *app) actCmd(name, short string, do verb) *cobra.Command {
	var all bool
	cmd := a.asJSON(&cobra.Command{
		Use:   name + " NAME…|@GROUP…|--all",
		Short: short,
		RunE: func(cmd *cobra.Command, names []string) error {
			if all == (len(names) > 0) {
				hint := fmt.Sprintf("%s NAME…  or  %[1]s --all  (zhxd itself: zhxctl shutdown)", cmd.CommandPath())
				return control.Errorf(control.CodeUsage, hint, "%s: which clients? give either names or --all", name)
			}
			return a.act(cmd.Context(), do, control.Which{Names: names, All: all})
		},
	})
	cmd.Flags().BoolVar(&all, "all", false, "all clients")
	return cmd
}

// wait gives a verb the flag --wait.
func (a *app) wait(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.patient, "wait", false, "wait until they are ready, also over runs that fail")
	return cmd
}

// act does a verb and tells its outcomes.
func (a *app) act(ctx context.Context, do verb, w control.Which) error {
	return a.ask(ctx, actLimit, func(ctx context.Context, zhxd *control.Client) error {
		end := a.progress(zhxd, w.Names)
		out, err := do(zhxd, ctx, w)
		if err == nil && a.patient {
			out.Clients, err = until(ctx, zhxd, out.Clients)
		}
		end()
		return a.tellOutcomes(out, a.late(zhxd, w.Names, err))
	})
}

// until waits for those to be ready that a verb has begun to start.
func until(ctx context.Context, zhxd *control.Client, done []control.Outcome) ([]control.Outcome, error) {
	var names []string
	rest := slices.DeleteFunc(done, func(c control.Outcome) bool {
		begun := !c.Accepted && (c.Error == nil || c.Error.Code == control.CodeFailed)
		if begun {
			names = append(names, c.Name)
		}
		return begun
	})
	if len(names) == 0 {
		return rest, nil
	}
	out, err := zhxd.Wait(ctx, names, control.AimReady)
	return append(rest, out.Clients...), err
}

// tellOutcomes tells what became of each client. The exit code is err's, else that of the first client with which it failed.
func (a *app) tellOutcomes(out control.Outcomes, err error) error {
	if a.json && err == nil {
		a.printJSON(out)
	}
	for _, c := range out.Clients {
		switch {
		case c.Error != nil:
			a.tell(c.Error)
			if err == nil {
				err = exit(c.Error.Code)
			}
		case a.json:
		case c.Accepted:
			fmt.Fprintf(a.out, "%s: %s\n", c.Name, accepted)
		case c.PID != nil:
			fmt.Fprintf(a.out, "%s: %s, pid %d\n", c.Name, c.Text, *c.PID)
		default:
			fmt.Fprintf(a.out, "%s: %s\n", c.Name, c.Text)
		}
	}
	return err
}
