package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file waits, and says what for.

// lookEvery is how often progress is shown; the first time after as long.
const lookEvery = time.Second

func (a *app) waitCmd() *cobra.Command {
	var aim string
	cmd := a.asJSON(&cobra.Command{
		Use:   "wait NAME…|@GROUP…",
		Short: "wait until clients are ready, run or have stopped",
		Long: `Wait until all clients are ready (or as --for says), and begin nothing. A client that has ended, given up or was stopped counts as
stopped if nothing but a start by hand would bring it back.

Exit 0: it is so. 3: it cannot come to that without somebody's doing. 5: not within --timeout.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.ask(cmd.Context(), actLimit, func(ctx context.Context, zhxd *control.Client) error {
				end := a.progress(zhxd, names)
				out, err := zhxd.Wait(ctx, names, aim)
				end()
				return a.tellOutcomes(out, a.late(zhxd, names, err))
			})
		},
	})
	cmd.Flags().StringVar(&aim, "for", control.AimReady, "`ready`, running or stopped")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{control.AimReady, control.AimRunning, control.AimStopped}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// unsettled says within limit of the clients named (none: of all), as far as they are in one of states (none: in any), which are on their way and
// what to. who is the first of them, else of the named.
func unsettled(limit time.Duration, zhxd *control.Client, names []string, states ...string) (who, text string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	st, _ := zhxd.Status(ctx) // an error: there is nothing to say
	names = members(st.Groups, names)
	var on []string
	for _, c := range st.Clients {
		if len(names) > 0 && !slices.Contains(names, c.Name) {
			continue
		}
		if who == "" {
			who = c.Name
		}
		rests := slices.Contains([]string{"stopped", "exited", "failed"}, c.State) && c.Next == nil
		if rests || c.Ready || len(states) > 0 && !slices.Contains(states, c.State) {
			continue
		}
		is := c.Name + " is " + stateText(c.State, c.Ready, c.Phase, c.WaitsFor)
		if c.Next != nil {
			is += ", tried again in " + span(*c.Next)
		}
		if on = append(on, is); len(on) == 1 {
			who = c.Name
		}
	}
	return who, strings.Join(on, "; ")
}

// late says of a time-out what is not done yet, if zhxd says so.
func (a *app) late(zhxd *control.Client, names []string, err error) error {
	if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.CodeTimeout {
		limit := min(tabLimit, cmp.Or(20*max(a.timeout, 0), tabLimit)) // who wants it soon waits no second for an explanation
		if who, what := unsettled(limit, zhxd, names); who != "" {
			text := strings.TrimSuffix(fmt.Sprintf("%s: not within %s: %s", a.verb, cmp.Or(max(a.timeout, 0), actLimit), what), ": ")
			return control.Errorf(control.CodeTimeout, "zhxctl why "+who, "%s; what was begun goes on", text)
		}
	}
	return err
}

// progress shows on a terminal, from the first second on and in one line, what is waited for and how long already. Call end before
// anything else is written.
func (a *app) progress(zhxd *control.Client, names []string) (end func()) {
	if !isTerminal(a.err) {
		return func() {}
	}
	done, gone, began := make(chan struct{}), make(chan struct{}), time.Now()
	go func() {
		defer close(gone)
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		shown := 0
		for {
			select {
			case <-done:
				fmt.Fprintf(a.err, "\r%*s\r", shown, "")
				return
			case <-tick.C:
			}
			_, what := unsettled(tabLimit, zhxd, names)
			line := escape(strings.TrimSuffix(fmt.Sprintf("%s %s: %s", a.verb, span(time.Since(began).Seconds()), what), ": "))
			line = cut(line, widthOf(a.err)-1, "…") // in the last column, some terminals begin a new line
			fmt.Fprintf(a.err, "\r%s%*s", line, max(shown-columns(line), 0), "")
			shown = max(shown, columns(line))
		}
	}()
	return func() { close(done); <-gone }
}
