package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file tells somebody who was woken at night why a client is not up. It is a report, not a stream of bytes: control
// characters are escaped wherever it goes.

// notTold is what "unknown" means for a run's end.
const notTold = "zhxd was not its parent any more: the kernel did not tell"

func (a *app) whyCmd() *cobra.Command {
	cmd := a.asJSON(&cobra.Command{
		Use:   "why NAME",
		Short: "show what a client is doing, how its last runs ended and what they printed last",
		Args:  cobra.ExactArgs(1),
		RunE: asking(a, func(ctx context.Context, zhxd *control.Client, names []string) (control.Why, error) {
			return zhxd.Why(ctx, names[0])
		}, a.showWhy),
	})
	cmd.Flags().BoolVar(&a.raw, "raw", false, "do not escape control characters")
	return cmd
}

func (a *app) showWhy(y control.Why) {
	fmt.Fprintf(a.out, "%s: %s\n", y.Name, stateText(y.State, y.Ready, nil, y.WaitsFor))
	a.field("now", y.Now)
	if y.Evidence != nil && !slices.ContainsFunc(y.Deaths, func(d control.Death) bool { return d.Run == y.Evidence.Run }) {
		a.showEvidence(*y.Evidence)
	}
	if len(y.Deaths) == 0 {
		fmt.Fprintln(a.out, "\nzhxd knows of no run of it that has ended")
	}
	for _, d := range y.Deaths {
		a.showDeath(d)
		if y.Evidence != nil && d.Run == y.Evidence.Run {
			a.showEvidence(*y.Evidence)
		}
	}
}

// showEvidence tells what a run did when it was about to be late.
func (a *app) showEvidence(e control.Evidence) {
	what := map[string]string{"alive": "without a feed", "startup": "without a first feed"}[e.By]
	if what == "" {
		what = "from checkpoint " + e.By
	}
	a.field("seen", fmt.Sprintf("%s ago, after %s %s:", span(e.Ago), span(e.Silence), what))
	for _, line := range e.Lines {
		fmt.Fprintf(a.out, "           | %s\n", a.plain(line))
	}
}

func (a *app) showDeath(d control.Death) {
	fmt.Fprintf(a.out, "\nrun %d: %s, %s ago\n", d.Run, a.plain(verdict(d)), span(d.Ago))
	a.field("at", d.At.UTC().Format("2006-01-02 15:04:05.000 UTC"))
	if d.PID != nil {
		became := "never became ready"
		if d.Ready {
			became = "was ready"
		}
		a.field("lived", fmt.Sprintf("%s, %s, pid %d", span(d.Uptime), became, *d.PID))
	}
	if d.Reason == "unknown" {
		a.field("why", notTold)
	}
	if d.Detail != nil {
		a.field("why", *d.Detail)
	}
	a.field("then", d.Next)
	for i, line := range d.Lines {
		label := ""
		if i == 0 {
			label = "printed"
		}
		line = strings.TrimSuffix(line, "\r") // of a child on a terminal of its own
		fmt.Fprintf(a.out, "  %-7s  | %s\n", label, a.plain(line))
	}
	if len(d.Lines) == 0 && d.PID != nil && d.Reason != "unknown" { // of that one zhxd may have missed the last words
		a.field("printed", "nothing")
	}
}

// field writes one labelled line, if there is something to write.
func (a *app) field(label, text string) {
	if text != "" {
		fmt.Fprintf(a.out, "  %-7s  %s\n", label, a.plain(text))
	}
}

// plain is s without control characters, except with --raw.
func (a *app) plain(s string) string {
	if a.raw {
		return s
	}
	return escape(s)
}

// verdict is how a run ended, in a few words.
func verdict(d control.Death) string {
	how := "" // where the reason does not say it
	switch {
	case d.Signal != nil:
		how = *d.Signal
	case d.Code != nil:
		how = "exit " + strconv.Itoa(*d.Code)
	}
	words, known := map[string]string{
		"watchdog":   "killed by the watchdog",
		"stop":       "stopped",
		"timeout":    "killed, since it was not ready within start_timeout",
		"dependency": "stopped for the sake of another client",
		"unknown":    "ended, nobody knows how",
	}[d.Reason]
	switch {
	case d.Reason == "exit" && d.Code != nil:
		words, how = how, ""
	case d.Reason == "signal" && d.Signal != nil:
		words, how = "killed by "+how, ""
	case d.Reason == "spawn":
		words, how = "could not be spawned", ""
		if d.Errno != nil {
			how = *d.Errno
		}
	case !known:
		words = d.Reason // of a zhxd newer than this
	}
	if how != "" {
		words += " (" + how + ")"
	}
	if d.Core {
		words += ", core dumped"
	}
	return words
}
