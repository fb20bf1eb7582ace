package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file is what has happened to clients.

func (a *app) eventsCmd() *cobra.Command {
	var q control.EventQuery
	cmd := a.asJSON(&cobra.Command{
		Use:   "events [NAME…|@GROUP…]",
		Short: "show what has happened to clients: state changes with their cause, and what was asked by hand",
		Long: `Show what has happened to clients: state changes with their cause, lateness, what was asked by hand, and reloads; times in UTC.

zhxd keeps the last 256 events of all clients, and not beyond its own end.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.follow(cmd.Context(), q.Follow, names, func(ctx context.Context, zhxd *control.Client, names []string) error {
				q.Names = names
				return zhxd.Events(ctx, q, a.showEvent)
			})
		},
	})
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().IntVarP(&q.N, "lines", "n", 50, "the last `N` events; -1: all that zhxd has kept")
	return cmd
}

func (a *app) showEvent(e control.Event) error {
	if e.Lost > 0 {
		fmt.Fprintf(a.err, "zhxctl: %s lost here, which came faster than they were read\n", count(int(e.Lost), "event"))
	}
	text := line(e)
	if !a.json {
		word := a.paint(stateColor(e.Kind), fmt.Sprintf("%-9s", e.Kind))
		text = a.wrap(fmt.Sprintf("%s  %-10s  %s  %s", e.At.UTC().Format("01-02 15:04:05.000"), cmp.Or(e.Client, "zhxd"), word, a.plain(e.Text)), "      ")
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}
