package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file is what clients say.

func (a *app) logsCmd() *cobra.Command {
	var q control.LogQuery
	cmd := a.asJSON(&cobra.Command{
		Use:               "logs [NAME…|@GROUP…]",
		Short:             "show what clients printed",
		ValidArgsFunction: a.complete,
		RunE: func(cmd *cobra.Command, names []string) error {
			limit := readLimit
			if q.Follow {
				limit = noLimit
			}
			err := a.ask(cmd.Context(), limit, func(ctx context.Context, zhxd *control.Client) error {
				if len(names) > 0 {
					st, err := zhxd.Status(ctx)
					if err != nil {
						return err
					}
					q.Names = members(st.Groups, names)
				}
				return zhxd.Logs(ctx, q, a.logLine(q))
			})
			if q.Follow && cmd.Context().Err() != nil {
				return nil // ctrl-C is how one stops following
			}
			return err
		},
	})
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().IntVarP(&q.N, "lines", "n", 50, "the last `N` lines of each client; -1: all that zhxd has kept")
	cmd.Flags().BoolVar(&a.raw, "raw", false, "do not escape control characters on a terminal")
	return cmd
}

// logLine prints a line of an answer to q.
func (a *app) logLine(q control.LogQuery) func(control.LogLine) error {
	asJSON := json.NewEncoder(a.out)
	asJSON.SetEscapeHTML(false)
	return func(line control.LogLine) error {
		if a.json {
			return asJSON.Encode(line)
		}
		if line.Dropped > 0 {
			fmt.Fprintf(a.err, "zhxctl: %s: %s lost here, which came faster than they were read\n", line.Client, count(int(line.Dropped), "line"))
		}
		prefix, end := "", "\n"
		switch one := len(q.Names) == 1; {
		case line.Cut && one:
			end = "" // what the child wrote has no end here
		case line.Cut:
			prefix, end = line.Client+" | ", " …\n" // the next line may be another client's
		case !one:
			prefix = line.Client + " | "
		}
		text := line.Text
		if isTerminal(a.out.Writer) {
			text = strings.TrimSuffix(text, "\r") // a child on a terminal of its own ends lines so
		}
		_, err := fmt.Fprint(a.out, prefix+a.clean(text)+end)
		return err
	}
}
