package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file is what clients say.

func (a *app) logsCmd() *cobra.Command {
	var q control.LogQuery
	var stamps bool
	cmd := a.asJSON(&cobra.Command{
		Use:   "logs [NAME…|@GROUP…]",
		Short: "show what clients printed",
		Long: `Show what clients printed, as far as zhxd keeps it in memory: of several clients with their names before each line.

--previous shows the last run that has ended: of a client that runs the one before, of one that waits for its next start the one
that failed.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if q.Follow && q.Previous {
				return control.Errorf(control.CodeUsage, cmd.CommandPath()+" --previous", "logs: nothing comes of a run that has ended: either -f or --previous")
			}
			if q.Since != "" && !cmd.Flags().Changed("lines") {
				q.N = -1
			}
			return a.follow(cmd.Context(), q.Follow, names, func(ctx context.Context, zhxd *control.Client, names []string) error {
				q.Names = names
				return zhxd.Logs(ctx, q, a.logLine(q, stamps))
			})
		},
	})
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().IntVarP(&q.N, "lines", "n", 50, "the last `N` lines of each client; -1: all that zhxd has kept")
	cmd.Flags().StringVar(&q.Since, "since", "", "none older than `10m`, or a time as 2026-01-31T12:00:00Z")
	cmd.Flags().BoolVar(&q.Previous, "previous", false, "of the last run that has ended")
	cmd.Flags().BoolVarP(&stamps, "timestamps", "t", false, "begin each line with its time (UTC)")
	cmd.Flags().BoolVar(&a.raw, "raw", false, "do not escape control characters on a terminal")
	return cmd
}

// follow lets do print what is kept of clients, given by their own names (none: of all), and with on what comes, until ctrl-C.
func (a *app) follow(ctx context.Context, on bool, names []string, do func(context.Context, *control.Client, []string) error) error {
	limit := readLimit
	if on {
		limit = noLimit
	}
	err := a.ask(ctx, limit, func(ctx context.Context, zhxd *control.Client) error {
		if len(names) > 0 {
			st, err := zhxd.Status(ctx)
			if err != nil {
				return err
			}
			names = members(st.Groups, names)
		}
		return do(ctx, zhxd, names)
	})
	e, ok := errors.AsType[*control.Error](err)
	switch {
	case on && ctx.Err() != nil:
		return nil // that is how one stops
	case on && ok && e.Code == control.CodeTimeout:
		return control.Errorf(control.CodeTimeout, "", "%s: %v are over", a.verb, a.timeout)
	}
	return err
}

// logLine prints a line of an answer to q.
func (a *app) logLine(q control.LogQuery, stamps bool) func(control.LogLine) error {
	going := false
	return func(l control.LogLine) error {
		if a.json {
			_, err := fmt.Fprintln(a.out, line(l))
			return err
		}
		if l.Dropped > 0 {
			fmt.Fprintf(a.err, "zhxctl: %s: %s lost here, which came faster than they were read\n", l.Client, count(int(l.Dropped), "line"))
		}
		prefix, end := "", "\n"
		switch one := len(q.Names) == 1; {
		case l.Cut && one:
			end = "" // what the child wrote has no end here
		case l.Cut:
			prefix, end = l.Client+" | ", " …\n" // the next line may be another client's
		case !one:
			prefix = l.Client + " | "
		}
		if stamps && !going {
			prefix = l.At.UTC().Format("2006-01-02T15:04:05.000Z ") + prefix
		}
		going = end == ""
		text := l.Text
		if isTerminal(a.out.Writer) {
			text = strings.TrimSuffix(text, "\r") // a child on a terminal of its own ends lines so
		}
		_, err := fmt.Fprint(a.out, prefix+a.clean(text)+end)
		return err
	}
}
