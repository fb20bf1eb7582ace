package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

func (a *app) statusCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "status [NAME…|@GROUP…]",
		Short: "show what runs, and what is wrong with what does not",
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.ask(cmd.Context(), readLimit, func(ctx context.Context, zhxd *control.Client) error { return a.runs(ctx, zhxd, names) })
		},
	})
}

// runs shows the status: exit 3 where zhxd, or one of the clients named, does not run.
func (a *app) runs(ctx context.Context, zhxd *control.Client, names []string) error {
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
				if len(g.Clients) > 0 {
					all = append(all, g.Name)
				}
			}
			kind := "client"
			if strings.HasPrefix(name, "@") {
				kind = "group"
			}
			return st, control.Errorf(control.CodeUnknown, "zhxctl status", "no such %s: %q%s", kind, name, config.DidYouMean(name, all))
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

// show prints a status for a person. whole is false where only some of the clients are asked after.
func (a *app) show(st control.Status, whole bool) {
	if whole {
		a.head(st)
	}
	rows := [][]string{{"  NAME", "STATE", "PID", "UP", "RESTARTS", "CPU", "MEM", "WATCHDOG", "LAST EXIT"}}
	var notes []string
	note := func(text, next string) {
		if notes = append(notes, a.wrap(a.clean(text), "  ")); next != "" {
			notes = append(notes, "  -> "+a.paint(loud, next))
		}
	}
	below := [][]string{nil} // each row
	for _, c := range st.Clients {
		rows = append(rows, a.row(c))
		if !whole {
			below = append(below, a.asides(c))
		}
		if w := c.Watchdog; w != nil && w.Pause != nil {
			note(c.Name+": watchdog paused by "+*w.Pause, "zhxctl watchdog resume "+c.Name)
		}
		if text, next := ailment(c); text != "" {
			note(c.Name+": "+text, next)
		}
	}
	for _, p := range st.Peers {
		switch who := strings.Join(p.Names, ", "); {
		case p.Stuck:
			note(who+": takes no messages; what is sent to it is dropped and counted", "zhxctl peers")
		case whole && !p.Managed && who != "":
			if p.PID != nil {
				who += fmt.Sprintf(" (pid %d)", *p.PID)
			}
			note(who+": is connected, and was not started by zhxd", "")
		}
	}
	if _, total := measure(rows); a.width() > 0 && total > a.width() { // what can be said shorter
		rows[0][4] = "RST"
		for i, row := range rows {
			rows[i][8] = strings.TrimSuffix(row[8], " ago")
		}
	}
	if len(st.Clients) > 0 {
		a.table(a.fit(rows, "MEM", "CPU", "RST", "PID", "WATCHDOG"), below...)
	}
	if len(notes) > 0 {
		fmt.Fprintf(a.out, "\n%s\n", strings.Join(notes, "\n"))
	}
}

func (a *app) head(st control.Status) {
	d, n, of, color := st.Daemon, map[string]int{}, []string{}, good
	for _, c := range st.Clients {
		word := stateWord(c)
		if n[word]++; n[word] == 1 {
			of = append(of, word)
		}
	}
	slices.SortStableFunc(of, func(x, y string) int { return n[y] - n[x] })
	for i, word := range of {
		of[i] = fmt.Sprintf("%d %s", n[word], word)
	}
	if d.ConfigState != "ok" {
		color = bad
	}
	head := fmt.Sprintf("zhxd %s  pid %d  up %s  config %s (%s)", d.Version, d.PID, span(d.Uptime), a.paint(color, d.ConfigState), d.Config)
	clients := strings.TrimSuffix(count(len(st.Clients), "client")+": "+strings.Join(of, ", "), ": ")
	fmt.Fprintf(a.out, "%s\n%s\n", a.wrap(head, "  "), a.wrap(clients, "  "))
	if w := d.Watchdog; w != nil {
		a.showBoard(*w)
	}
	if d.Metrics != nil {
		what := "metrics: "
		if _, err := netip.ParseAddrPort(*d.Metrics); err != nil {
			what = "! metrics are not served: "
		}
		fmt.Fprintln(a.out, a.wrap(what+a.clean(*d.Metrics), "  "))
	}
	switch d.ConfigState {
	case "changed":
		fmt.Fprintf(a.out, "! %s has changed and is not loaded yet\n  -> zhxctl reload\n", d.Config)
	case "invalid":
		fmt.Fprintf(a.out, "! %s is invalid; what was loaded before stays in force\n", d.Config)
		if d.ConfigError != nil {
			for line := range strings.Lines(*d.ConfigError) {
				fmt.Fprintln(a.out, a.wrap("!   "+a.clean(strings.TrimSuffix(line, "\n")), "!     "))
			}
		}
		fmt.Fprintf(a.out, "  -> zhxctl check %s\n", d.Config)
	}
	fmt.Fprintln(a.out)
}

func (a *app) row(c control.ClientStatus) []string {
	up, cpu, memory, exit, dog := "-", "-", "-", "-", dogText(c.Watchdog)
	if c.PID == nil && c.Watchdog != nil && c.Watchdog.Pause == nil {
		dog = "-"
	}
	if c.Uptime != nil {
		up = age(*c.Uptime)
	}
	if c.CPU != nil {
		cpu = strconv.FormatFloat(*c.CPU, 'f', -1, 64) + "%"
		if *c.CPU >= 10 {
			cpu = fmt.Sprintf("%.0f%%", *c.CPU)
		}
	}
	if c.Memory != nil {
		memory = size(*c.Memory)
	}
	if c.LastExit != nil {
		exit = ending(c.LastExit) + " " + age(c.LastExit.Ago) + " ago"
	}
	mark, state := a.mark(c)
	return []string{mark + " " + c.Name, state, number(c.PID), up, strconv.FormatInt(c.Restarts, 10), cpu, memory, dog, exit}
}

// number is one that may be missing.
func number(n *int) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n)
}

// mark tells well, not yet, not well and not running apart without colours, too.
func (a *app) mark(c control.ClientStatus) (mark, state string) {
	state = stateWord(c)
	color := stateColor(state)
	if state == "exited" && !well(c.LastExit) {
		color = bad
	}
	mark = map[kind]string{good: "*", doubt: "~", bad: "x", faint: "-"}[color]
	return a.paint(color, mark), a.paint(color, state)
}

// stateColor is that of a state, or of another thing that happens to a client.
func stateColor(word string) kind {
	switch word {
	case "running", "ready":
		return good
	case "backoff", "failed", "unkillable", "lapse":
		return bad
	case "stopped", "exited", "asked", "reload":
		return faint
	}
	return doubt
}

// dogText is how long the watchdog waits still, or why it does not.
func dogText(w *control.WatchdogStatus) string {
	switch {
	case w == nil:
		return "off"
	case w.PausedFor != nil:
		return "paused " + age(*w.PausedFor)
	case w.Paused:
		return "paused"
	case w.Traced:
		return "traced"
	case w.Armed && w.Remaining != nil:
		return span(*w.Remaining) + "/" + strings.TrimSuffix(span(w.Timeout), " 0s")
	}
	return "not armed"
}

// stateWord is a state in one or two words.
func stateWord(c control.ClientStatus) string {
	switch {
	case c.State == "running" && c.Phase != nil:
		return *c.Phase
	case c.State == "running" && !c.Ready:
		return "not ready"
	}
	return c.State
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

// cause is how and when a run ended, and what is known of why.
func cause(e *control.ExitStatus) string {
	text := ending(e) + " " + span(e.Ago) + " ago"
	if e.Detail != nil {
		text += " (" + *e.Detail + ")"
	} else if e.Reason == "unknown" {
		text += " (" + notTold + ")"
	}
	return text
}

// well tells whether a run has ended as it may.
func well(e *control.ExitStatus) bool { return e == nil || e.Success || e.Code != nil && *e.Code == 0 }

// ailment says what is wrong with a client and what to type, or nothing.
func ailment(c control.ClientStatus) (text, next string) {
	e, why := c.LastExit, "zhxctl why "+c.Name
	switch {
	case c.State == "unkillable":
		return "its process does not end, not even by SIGKILL: the kernel holds it", "look at /proc/" + number(c.PID) + "/stack and the kernel's log"
	case c.State == "failed" && c.Why != nil:
		text = *c.Why
		if e != nil {
			text += ", the last time " + cause(e)
		}
		return text, why + "; then zhxctl start " + c.Name
	case c.State == "running" && !c.Ready && c.Phase == nil:
		return "runs, and is not ready yet", why
	case len(c.WaitsFor) > 0:
		return stateText(c.State, c.Ready, c.Phase, c.WaitsFor), "" // they are told of as well
	case well(e) || !slices.Contains([]string{"backoff", "failed", "exited"}, c.State):
		return "", ""
	}
	text, next = cause(e), why
	if e.Reason == "spawn" {
		next = "zhxctl check"
	}
	if c.Next != nil {
		text += ", next start in " + span(*c.Next)
	}
	if c.State == "failed" {
		text, next = text+", and is not started again", next+"; then zhxctl start "+c.Name
	}
	if e.Said != nil {
		text += fmt.Sprintf("; it said last: %q", *e.Said)
	}
	return text, next
}
