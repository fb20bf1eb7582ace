package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file is what clients say and are told.

func (a *app) logsCmd() *cobra.Command {
	var q control.LogQuery
	var stamps bool
	cmd := a.asJSON(&cobra.Command{
		Use:               "logs [NAME…]",
		Short:             "show what clients printed",
		ValidArgsFunction: a.complete,
		RunE: func(cmd *cobra.Command, names []string) error {
			q.Names = names
			return a.logs(cmd.Context(), q, stamps)
		},
	})
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().IntVarP(&q.N, "lines", "n", 50, "the last `N` lines of each client; -1: all that zhxd has kept")
	cmd.Flags().BoolVarP(&stamps, "timestamps", "t", false, "when each line came, UTC")
	cmd.Flags().BoolVar(&a.raw, "raw", false, "do not escape control characters on a terminal")
	return cmd
}

func (a *app) logs(ctx context.Context, q control.LogQuery, stamps bool) error {
	zhxd, limited, cancel, err := a.daemon(ctx, readLimit)
	if err != nil {
		return err
	}
	defer cancel()
	if q.Follow && a.timeout == 0 {
		limited = ctx
	}
	out := json.NewEncoder(a.out)
	out.SetEscapeHTML(false)
	err = zhxd.Logs(limited, q, func(line control.LogLine) error {
		if a.json {
			return out.Encode(line)
		}
		prefix := ""
		if stamps {
			prefix = line.At.String() + " "
		}
		if len(q.Names) != 1 {
			prefix += line.Client + " | "
		}
		if line.Dropped > 0 {
			fmt.Fprintf(a.err, "zhxctl: %s: %s lost here, which came faster than they were read\n", line.Client, count(int(line.Dropped), "line"))
		}
		text := line.Text
		if isTerminal(a.out) {
			text = strings.TrimSuffix(text, "\r") // a child on a terminal of its own ends lines so
		}
		_, err := fmt.Fprintln(a.out, prefix+a.clean(a.out, text))
		return err
	})
	if q.Follow && ctx.Err() != nil {
		return nil // ctrl-C is how one stops following
	}
	return err
}

func (a *app) sendCmd() *cobra.Command {
	var m control.SendRequest
	cmd := &cobra.Command{
		Use:               "send NAME TEXT",
		Short:             "send one message to a client",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			zhxd, ctx, cancel, err := a.daemon(cmd.Context(), readLimit)
			if err != nil {
				return err
			}
			defer cancel()
			m.Target, m.Text = args[0], args[1]
			return zhxd.Send(ctx, m)
		},
	}
	cmd.Flags().StringVar(&m.Source, "from", "", "send as `NAME`, which must be nobody's (default zhxctl)")
	return cmd
}
