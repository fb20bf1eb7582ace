package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file is about being late: how near clients come to it, and how to have the watchdog look away for a while.

func (a *app) watchdogCmd() *cobra.Command {
	cmd := a.asJSON(&cobra.Command{
		Use:   "watchdog [NAME…|@GROUP…]",
		Short: "show how regularly clients feed, and pause their watchdogs",
		Long: `Show the times between the feeds of each client's present run, how much of its timeout the slowest left, and hints.

MISSES counts feeds that came after warn_after, by default half of the timeout; LAPSES counts deadlines that passed.`,
		RunE: asking(a, func(ctx context.Context, zhxd *control.Client, names []string) (control.Status, error) {
			st, err := zhxd.Status(ctx)
			if err == nil && len(names) > 0 {
				st, err = only(st, names)
			}
			return st, err
		}, a.showWatchdog),
	})
	cmd.AddCommand(a.pauseCmd(), a.resumeCmd())
	return cmd
}

func (a *app) pauseCmd() *cobra.Command {
	var reason string
	cmd := a.asJSON(&cobra.Command{
		Use:   "pause NAME|@GROUP DURATION",
		Short: "stop the watchdog's clock for a client, for a time such as 10m",
		Long:  "Stop the watchdog's clock for a client. It goes on by itself after the time given, with a whole timeout.",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			length, err := time.ParseDuration(args[1])
			if err != nil || length <= 0 || length > control.PauseMax {
				return control.Errorf(control.CodeUsage, "zhxctl watchdog pause "+args[0]+" 10m", "%q is no duration of at most %.0fh, as 90s or 10m", args[1], control.PauseMax.Hours())
			}
			return a.act(cmd.Context(), func(zhxd *control.Client, ctx context.Context, w control.Which) (control.Outcomes, error) {
				return zhxd.Pause(ctx, control.PauseRequest{Names: w.Names, Seconds: length.Seconds(), Reason: reason})
			}, control.Which{Names: args[:1]})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, a `TEXT` that status shows")
	return cmd
}

func (a *app) resumeCmd() *cobra.Command {
	return a.actCmd("resume", "end the pause of a client's watchdog", (*control.Client).Resume)
}

func (a *app) showWatchdog(st control.Status) {
	rows, below := [][]string{{"NAME", "LEFT", "TIMEOUT", "MIN", "MEAN", "P99", "MAX", "MARGIN", "MISSES", "LAPSES"}}, [][]string{nil}
	for _, c := range st.Clients {
		w := c.Watchdog
		if w == nil {
			rows, below = append(rows, []string{c.Name, "off", "", "", "", "", "", "", "", ""}), append(below, nil)
			continue
		}
		cells := []string{c.Name, dogText(w), exact(w.Timeout), "-", "-", "-", "-", "-", strconv.FormatInt(w.Misses, 10), strconv.FormatInt(w.Lapses, 10)}
		if w.Remaining != nil && w.PausedFor == nil && !w.Traced {
			cells[1] = exact(*w.Remaining)
		}
		if i := w.Interval; i != nil {
			copy(cells[3:], []string{exact(i.Min), exact(i.Mean), exact(i.P99), exact(i.Max)})
		}
		if w.Margin != nil {
			cells[7] = exact(*w.Margin)
		}
		var notes []string
		if w.Hint != nil {
			notes = append(notes, a.wrap("  "+a.clean(*w.Hint), "    "))
		}
		if w.Credited > 0 {
			notes = append(notes, a.wrap("  was given "+exact(w.Credited)+" more, since it waited for a processor", "    "))
		}
		rows, below = append(rows, cells), append(below, notes)
	}
	a.table(a.fit(rows, "P99", "MIN", "MEAN", "TIMEOUT", "MAX", "MARGIN", "MISSES"), below...)
}

// exact is a duration with the digits that matter to a deadline.
func exact(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= time.Minute:
		return span(seconds)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// showBoard tells of the board's watchdog, where there is something to tell.
func (a *app) showBoard(w control.BoardStatus) {
	if w.Device != nil {
		fmt.Fprintf(a.out, "hardware watchdog: %s\n", a.clean(*w.Device))
	}
	if w.Mode == "observe" {
		fmt.Fprintln(a.out, `! nobody is killed for being late: [watchdog] mode = "observe"`)
	}
	if r := w.LastReset; r != nil {
		at := r.At.UTC().Format("2006-01-02 15:04:05 UTC")
		if !r.Synced {
			at += ", of a clock that was not set"
		}
		fmt.Fprintf(a.out, "last reset: %s (%s)\n", a.clean(r.Reason), at)
	}
	if w.SafeMode {
		fmt.Fprintln(a.out, "! safe mode: the board was reset too often; clients are started by hand only\n  -> zhxctl why NAME, zhxctl start NAME")
	}
}
