package main

import (
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
		Use:               "status [NAME…|@GROUP…]",
		Short:             "show what runs, and what is wrong with what does not",
		ValidArgsFunction: a.complete,
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.ask(cmd.Context(), readLimit, func(ctx context.Context, zhxd *control.Client) error { return a.status(ctx, zhxd, names) })
		},
	})
}

// status is exit 3 where zhxd, or one of the clients named, does not run.
func (a *app) status(ctx context.Context, zhxd *control.Client, names []string) error {
	st, err := zhxd.Status(ctx)
	if e, ok := errors.AsType[*control.Error](err); ok && errors.Is(err, control.ErrDown) {
		if a.json {
			a.printJSON(control.Status{V: 1, Clients: []control.ClientStatus{}, Groups: []control.GroupStatus{}, Peers: []control.PeerStatus{}})
		} else {
			fmt.Fprintf(a.out, "%s\n  -> %s\n", e.Text, e.Hint)
		}
		return exit(control.CodeStopped)
	}
	if err == nil && len(names) > 0 {
		st, err = only(st, names)
	}
	if err != nil {
		return err
	}
	if a.json {
		a.printJSON(st)
	} else {
		a.show(st, len(names) == 0)
	}
	if len(names) > 0 && slices.ContainsFunc(st.Clients, func(c control.ClientStatus) bool { return c.PID == nil }) {
		return exit(control.CodeStopped)
	}
	return nil
}

// only leaves the clients with those names, and their connections.
func only(st control.Status, typed []string) (control.Status, error) {
	var all []string
	for _, c := range st.Clients {
		all = append(all, c.Name)
	}
	names := members(st.Groups, typed)
	for _, name := range names {
		if !slices.Contains(all, name) {
			for _, g := range st.Groups {
				all = append(all, g.Name)
			}
			return st, control.Errorf(control.CodeUnknown, "the clients are: "+strings.Join(all, ", "), "no such client: %q", name)
		}
	}
	st.Clients = slices.DeleteFunc(st.Clients, func(c control.ClientStatus) bool { return !slices.Contains(names, c.Name) })
	st.Peers = slices.DeleteFunc(st.Peers, func(p control.PeerStatus) bool {
		return !slices.ContainsFunc(p.Names, func(n string) bool { return slices.Contains(names, n) })
	})
	return st, nil
}

// members replaces names of groups by the clients that they stand for. What it does not know stays, for others to refuse.
func members(groups []control.GroupStatus, typed []string) (names []string) {
	for _, name := range typed {
		if i := slices.IndexFunc(groups, func(g control.GroupStatus) bool { return g.Name == name }); i >= 0 && len(groups[i].Clients) > 0 {
			names = append(names, groups[i].Clients...)
		} else {
			names = append(names, name)
		}
	}
	return names
}

// complete offers what may be typed for NAME, as far as zhxd says it in time.
func (a *app) complete(cmd *cobra.Command, _ []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	_ = a.ask(cmd.Context(), tabLimit, func(ctx context.Context, zhxd *control.Client) error {
		st, err := zhxd.Status(ctx)
		for _, c := range st.Clients {
			names = append(names, c.Name)
		}
		for _, g := range st.Groups {
			if strings.Contains(cmd.Use, "GROUP") {
				names = append(names, g.Name)
			}
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// show prints a status for a person. whole is false where only some of the clients are asked after.
func (a *app) show(st control.Status, whole bool) {
	if whole {
		a.head(st)
	}
	rows := [][]string{{"NAME", "STATE", "PID", "UPTIME", "RESTARTS", "WATCHDOG", "LAST EXIT"}}
	var notes []string
	below := [][]string{nil} // each row
	for _, c := range st.Clients {
		rows = append(rows, row(c))
		if !whole {
			below = append(below, a.asides(c))
		}
		if w := c.Watchdog; w != nil && w.Pause != nil {
			notes = append(notes, a.clean(c.Name+": watchdog paused by "+*w.Pause), "  -> zhxctl watchdog resume "+c.Name)
		}
		if text, next := ailment(c); text != "" {
			notes = append(notes, a.clean(c.Name+": "+text), "  -> "+next)
		}
	}
	for _, p := range st.Peers {
		switch who := strings.Join(p.Names, ", "); {
		case p.Stuck:
			notes = append(notes, who+": takes no messages; what is sent to it is dropped and counted")
		case whole && !p.Managed && who != "":
			if p.PID != nil {
				who += fmt.Sprintf(" (pid %d)", *p.PID)
			}
			notes = append(notes, who+": is connected, and was not started by zhxd")
		}
	}
	if len(st.Clients) > 0 {
		a.table(rows, below...)
	}
	if len(notes) > 0 {
		fmt.Fprintf(a.out, "\n%s\n", strings.Join(notes, "\n"))
	}
}

func (a *app) head(st control.Status) {
	d := st.Daemon
	fmt.Fprintf(a.out, "zhxd %s  pid %d  up %s  %s  config %s (%s)\n", d.Version, d.PID, span(d.Uptime), count(len(st.Clients), "client"), d.ConfigState, d.Config)
	if w := d.Watchdog; w != nil {
		a.showBoard(*w)
	}
	switch d.ConfigState {
	case "changed":
		fmt.Fprintf(a.out, "! %s has changed and is not loaded yet\n  -> zhxctl reload\n", d.Config)
	case "invalid":
		fmt.Fprintf(a.out, "! %s is invalid; what was loaded before stays in force\n", d.Config)
		if d.ConfigError != nil {
			for line := range strings.Lines(*d.ConfigError) {
				fmt.Fprintf(a.out, "!   %s\n", a.clean(strings.TrimSuffix(line, "\n")))
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
	case w.PausedFor != nil:
		dog = "paused for " + span(*w.PausedFor)
	case w.Paused:
		dog = "paused"
	case w.Traced:
		dog = "traced"
	case w.Armed && w.Remaining != nil:
		dog = span(*w.Remaining) + " of " + span(w.Timeout)
	default:
		dog = "not armed"
	}
	if c.LastExit != nil {
		exit = ending(c.LastExit) + " " + span(c.LastExit.Ago) + " ago"
	}
	return []string{c.Name, stateText(c.State, c.Ready, c.Phase, c.WaitsFor), pid, uptime, strconv.FormatInt(c.Restarts, 10), dog, exit}
}

// stateText is a state, and what makes it less than it says.
func stateText(state string, ready bool, phase *string, waitsFor []string) string {
	switch {
	case state == "waiting" && len(waitsFor) > 2:
		return fmt.Sprintf("waiting for %s and %d more", waitsFor[0], len(waitsFor)-1)
	case state == "waiting" && len(waitsFor) > 0:
		return "waiting for " + strings.Join(waitsFor, ", ")
	case state == "running" && phase != nil:
		return "running, " + *phase
	case state == "running" && !ready:
		return "running, not ready"
	}
	return state
}

// asides are what only somebody wants to know who asks after one client.
func (a *app) asides(c control.ClientStatus) (lines []string) {
	if c.Notice != nil && *c.Notice != "" {
		lines = append(lines, "  says: "+a.plain(*c.Notice))
	}
	if c.Adopted {
		lines = append(lines, "  adopted: an earlier zhxd started it")
	}
	if l := c.Log; l != nil && l.FileDropped > 0 {
		lines = append(lines, "  log: "+count(int(l.FileDropped), "line")+" could not be written to its file")
	}
	if l := c.Log; l != nil && l.Cut > 0 {
		lines = append(lines, "  log: "+count(int(l.Cut), "line")+" too long for one, and kept in pieces")
	}
	return lines
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

// ailment says what is wrong with a client and what to type, or nothing.
func ailment(c control.ClientStatus) (text, next string) {
	e := c.LastExit
	failed := e != nil && !e.Success && (e.Code == nil || *e.Code != 0)
	if c.State == "unkillable" {
		return "its process does not end, not even by SIGKILL: the kernel holds it", "look at /proc/" + row(c)[2] + "/stack and the kernel's log"
	}
	if c.State == "failed" && c.Why != nil {
		return *c.Why, "zhxctl start " + c.Name + ", when that is mended"
	}
	if !failed || !slices.Contains([]string{"backoff", "failed", "exited"}, c.State) {
		return "", ""
	}
	text, next = ending(e)+" "+span(e.Ago)+" ago", "zhxctl why "+c.Name
	if e.Reason == "spawn" {
		next = "zhxctl check"
	}
	if e.Detail != nil {
		text += " (" + *e.Detail + ")"
	} else if e.Reason == "unknown" {
		text += " (" + notTold + ")"
	}
	if c.Next != nil {
		text += ", next start in " + span(*c.Next)
	}
	if c.State == "failed" {
		text, next = text+", and is not started again", next+"; then zhxctl start "+c.Name
	}
	return text, next
}
