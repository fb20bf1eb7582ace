package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

func (a *app) statusCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:               "status [NAME…]",
		Short:             "show what runs, and what is wrong with what does not",
		ValidArgsFunction: a.complete,
		RunE:              func(cmd *cobra.Command, names []string) error { return a.status(cmd.Context(), names) },
	})
}

// status is exit 3 where zhxd, or one of the clients named, does not run.
func (a *app) status(ctx context.Context, names []string) error {
	zhxd, ctx, cancel, err := a.daemon(ctx, readLimit)
	if err != nil {
		return err
	}
	defer cancel()
	st, err := zhxd.Status(ctx)
	if e, ok := errors.AsType[*control.Error](err); ok && errors.Is(err, control.ErrDown) {
		if a.json {
			err = a.printJSON(control.Status{V: 1, Clients: []control.ClientStatus{}, Peers: []control.PeerStatus{}})
		} else {
			_, err = fmt.Fprintf(a.out, "%s\n  -> %s\n", e.Text, e.Hint)
		}
		return cmp.Or(err, error(exit(control.CodeStopped)))
	}
	if err != nil {
		return err
	}
	if len(names) > 0 {
		if st, err = only(st, names); err != nil {
			return err
		}
	}
	if a.json {
		err = a.printJSON(st)
	} else {
		a.show(st, len(names) == 0)
	}
	if err == nil && len(names) > 0 && slices.ContainsFunc(st.Clients, func(c control.ClientStatus) bool { return c.PID == nil }) {
		return exit(control.CodeStopped)
	}
	return err
}

// only leaves the clients with those names, and their connections.
func only(st control.Status, names []string) (control.Status, error) {
	all := make([]string, 0, len(st.Clients))
	for _, c := range st.Clients {
		all = append(all, c.Name)
	}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return st, control.Errorf(control.CodeUnknown, "the clients are: "+strings.Join(all, ", "), "no such client: %q", name)
		}
	}
	st.Clients = slices.DeleteFunc(st.Clients, func(c control.ClientStatus) bool { return !slices.Contains(names, c.Name) })
	st.Peers = slices.DeleteFunc(st.Peers, func(p control.PeerStatus) bool {
		return !slices.ContainsFunc(p.Names, func(n string) bool { return slices.Contains(names, n) })
	})
	return st, nil
}

// show prints a status for a person. whole is false where only some of the clients are asked after.
func (a *app) show(st control.Status, whole bool) {
	if whole {
		a.head(st)
	}
	if len(st.Clients) > 0 {
		rows := [][]string{{"NAME", "STATE", "PID", "UPTIME", "RESTARTS", "WATCHDOG", "LAST EXIT"}}
		for _, c := range st.Clients {
			rows = append(rows, row(c))
		}
		a.table(rows, func(r, col int) string {
			if r == 0 || col != 1 {
				return ""
			}
			return stateColour(st.Clients[r-1].State)
		})
	}
	var notes []string
	for _, c := range st.Clients {
		if text, next := ailment(c); text != "" {
			notes = append(notes, fmt.Sprintf("%s: %s\n  -> %s", c.Name, text, next))
		}
	}
	for _, p := range st.Peers {
		switch who := strings.Join(p.Names, ", "); {
		case p.Stuck:
			notes = append(notes, who+": takes no messages; what is sent to it is dropped and counted")
		case whole && !p.Managed && who != "":
			notes = append(notes, who+": is connected, and was not started by zhxd"+foreign(p))
		}
	}
	if len(notes) > 0 {
		fmt.Fprintln(a.out)
	}
	for _, note := range notes {
		for line := range strings.Lines(note + "\n") {
			fmt.Fprintln(a.out, a.clean(a.out, strings.TrimSuffix(line, "\n")))
		}
	}
}

func foreign(p control.PeerStatus) string {
	text := ""
	if p.PID != nil {
		text += fmt.Sprintf(", pid %d", *p.PID)
	}
	if p.UID != nil {
		text += fmt.Sprintf(", uid %d", *p.UID)
	}
	return text
}

func (a *app) head(st control.Status) {
	d, states := cmp.Or(st.Daemon, &control.DaemonStatus{}), map[string]int{}
	var order []string
	for _, c := range st.Clients {
		if states[c.State]++; states[c.State] == 1 {
			order = append(order, c.State)
		}
	}
	clients := count(len(st.Clients), "client")
	for i, state := range order {
		clients += fmt.Sprintf("%s %d %s", []string{":", ","}[min(i, 1)], states[state], state)
	}
	fmt.Fprintf(a.out, "zhxd %s  pid %d  up %s  %s  config %s (%s)\n", d.Version, d.PID, span(d.Uptime), clients, d.ConfigState, d.Config)
	switch d.ConfigState {
	case "changed":
		fmt.Fprintf(a.out, "! %s has changed and is not loaded yet\n  -> zhxctl reload\n", d.Config)
	case "invalid":
		fmt.Fprintf(a.out, "! %s is invalid; what was loaded before stays in force\n", d.Config)
		if d.ConfigError != nil {
			for line := range strings.Lines(*d.ConfigError) {
				fmt.Fprintf(a.out, "!   %s\n", a.clean(a.out, strings.TrimSuffix(line, "\n")))
			}
		}
		fmt.Fprintf(a.out, "  -> zhxctl check %s\n", d.Config)
	}
	fmt.Fprintln(a.out)
}

func row(c control.ClientStatus) []string {
	pid, uptime, dog, exit := "-", "-", "off", "-"
	if c.PID != nil {
		pid = strconv.Itoa(*c.PID)
	}
	if c.Uptime != nil {
		uptime = span(*c.Uptime)
	}
	switch w := c.Watchdog; {
	case w == nil:
	case w.Paused:
		dog = "paused"
	case w.Armed && w.Remaining != nil:
		dog = span(*w.Remaining) + " of " + span(w.Timeout)
	default:
		dog = "not armed"
	}
	if c.LastExit != nil {
		exit = ending(c.LastExit) + " " + span(c.LastExit.Ago) + " ago"
	}
	return []string{c.Name, c.State, pid, uptime, strconv.FormatInt(c.Restarts, 10), dog, exit}
}

// ending is how a run ended, in two words.
func ending(e *control.ExitStatus) string {
	switch {
	case e.Reason == "exit" && e.Code != nil:
		return "exit " + strconv.Itoa(*e.Code)
	case e.Reason == "signal" && e.Signal != nil:
		return *e.Signal
	}
	return e.Reason
}

func stateColour(state string) string {
	switch state {
	case "running":
		return green
	case "backoff", "failed", "unkillable":
		return red
	case "stopped", "exited":
		return ""
	}
	return yellow
}

// ailment says what is wrong with a client and what to type, or nothing.
func ailment(c control.ClientStatus) (text, next string) {
	logs := "zhxctl logs " + c.Name
	why := "it ended"
	if e := c.LastExit; e != nil {
		if why = ending(e); e.Reason == "spawn" {
			why, logs = "it cannot be started", "zhxctl check"
		}
		why += " " + span(e.Ago) + " ago"
		if e.Detail != nil {
			why += " (" + *e.Detail + ")"
		}
	}
	switch c.State {
	case "backoff":
		if c.Next != nil {
			why += ", next start in " + span(*c.Next)
		}
		return why, logs
	case "failed":
		return why + ", and is not started again", logs + "; then zhxctl start " + c.Name
	case "exited":
		if c.LastExit != nil && (c.LastExit.Code == nil || *c.LastExit.Code != 0) {
			return why, logs
		}
	case "unkillable":
		return "its process does not end, not even by SIGKILL: the kernel holds it", "look at /proc/" + row(c)[2] + "/stack and the kernel's log"
	}
	return "", ""
}
