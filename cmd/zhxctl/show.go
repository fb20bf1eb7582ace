package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file is how clients are: what is configured, who depends on whom and talks to whom, who is connected.

func (a *app) showCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "show NAME",
		Short: "show the configuration of a client that is in force, and where each value comes from",
		Long: `Show the configuration of a client that is in force, as TOML, and where each value comes from: a line of the file when it was
loaded, which may be one of [defaults], or no line, where it is the default. Environments may hold secrets.`,
		Args: cobra.ExactArgs(1),
		RunE: asking(a, func(ctx context.Context, zhxd *control.Client, names []string) (control.Shown, error) {
			return zhxd.Show(ctx, names[0])
		}, a.showKeys),
	})
}

// showKeys prints what somebody has set before what nobody has.
func (a *app) showKeys(s control.Shown) {
	fmt.Fprintf(a.out, "[client.%s]  %s\n", s.Name, a.paint(faint, "# as loaded from "+s.File))
	slices.SortStableFunc(s.Keys, func(x, y control.KeySet) int { return from(x) - from(y) })
	for i, k := range s.Keys {
		origin := "# default"
		if k.From != "" {
			origin = fmt.Sprintf("# %s:%d", filepath.Base(s.File), k.Line)
		}
		if k.From == "defaults" || k.From == "watchdog" {
			origin += " [" + k.From + "]"
		}
		if i > 0 && from(k) != from(s.Keys[i-1]) {
			fmt.Fprintln(a.out)
		}
		fmt.Fprintf(a.out, "%-46s  %s\n", k.Key+" = "+a.clean(k.Value), a.paint(faint, origin))
	}
}

// from is 0 for what the client sets itself, 1 for what another section does, 2 for a default.
func from(k control.KeySet) int {
	switch {
	case k.From == "":
		return 2
	case strings.HasPrefix(k.From, "client"):
		return 0
	}
	return 1
}

func (a *app) graphCmd() *cobra.Command {
	var dot bool
	cmd := a.asJSON(&cobra.Command{
		Use:   "graph",
		Short: "show who depends on whom, and who has sent something to whom",
		Long: `Show who depends on whom, below each client what it waits for; and to whom those that run now have sent something.

zhxctl graph --dot | dot -Tsvg makes a picture of it.`,
		Args: cobra.NoArgs,
		RunE: asking(a, func(ctx context.Context, zhxd *control.Client, _ []string) (graph, error) {
			st, err := zhxd.Status(ctx)
			return edges(st), err
		}, func(g graph) {
			if dot {
				a.showDot(g)
			} else {
				a.showGraph(g.status)
			}
		}),
	})
	cmd.Flags().BoolVar(&dot, "dot", false, "print it in the language of Graphviz")
	return cmd
}

// graph is the answer of graph --json.
type graph struct {
	V       int    `json:"v"`
	Clients []node `json:"clients"`

	status control.Status // that it was made of
}

type node struct {
	Name      string   `json:"name"`
	DependsOn []string `json:"depends_on"`
	TalksTo   []string `json:"talks_to"`
}

func edges(st control.Status) graph {
	g := graph{V: 1, Clients: []node{}, status: st}
	for _, c := range st.Clients {
		g.Clients = append(g.Clients, node{c.Name, c.DependsOn, c.TalksTo})
	}
	return g
}

func (a *app) showDot(g graph) {
	fmt.Fprintln(a.out, "digraph zhx {\n  rankdir = LR")
	for _, c := range g.Clients {
		fmt.Fprintf(a.out, "  %q\n", c.Name)
		for _, on := range c.DependsOn {
			fmt.Fprintf(a.out, "  %q -> %q\n", c.Name, on)
		}
		for _, to := range c.TalksTo {
			fmt.Fprintf(a.out, "  %q -> %q [style = dashed, constraint = false]\n", c.Name, to)
		}
	}
	fmt.Fprintln(a.out, "}")
}

func (a *app) showGraph(st control.Status) {
	clients, below := map[string]control.ClientStatus{}, map[string]bool{}
	for _, c := range st.Clients {
		clients[c.Name] = c
		for _, on := range c.DependsOn {
			below[on] = true
		}
	}
	var rows [][]string
	shown := map[string]bool{}
	var branch func(name, indent string)
	branch = func(name, indent string) {
		c := clients[name]
		mark, state := a.mark(c)
		if again := shown[name] && len(c.DependsOn) > 0; again {
			rows = append(rows, []string{mark + " " + indent + name, "as above"})
			return
		}
		shown[name] = true
		rows = append(rows, []string{mark + " " + indent + name, state})
		for _, on := range c.DependsOn {
			branch(on, strings.Replace(indent, "+-", "  ", 1)+"+-")
		}
	}
	for _, c := range st.Clients {
		if !below[c.Name] {
			branch(c.Name, "")
		}
	}
	fmt.Fprintln(a.out, a.paint(loud, "Who depends on whom:"))
	a.table(a.fit(rows))
	fmt.Fprintln(a.out, "\n"+a.paint(loud, "Who has sent something to whom:"))
	nobody := true
	for _, c := range st.Clients {
		if len(c.TalksTo) > 0 {
			nobody = false
			fmt.Fprintln(a.out, a.wrap("  "+c.Name+" -> "+strings.Join(c.TalksTo, ", "), "      "))
		}
	}
	if nobody {
		fmt.Fprintln(a.out, "  nobody, of those that run now")
	}
}

func (a *app) peersCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "peers",
		Short: "show who is connected, by what proof, and what has gone over each connection",
		Long: `Show who is connected, by what proof, and what has gone over each connection.

IN and OUT are messages from and to it; WAITING are bytes that it does not take.`,
		Args: cobra.NoArgs,
		RunE: asking(a, func(ctx context.Context, zhxd *control.Client, _ []string) (peers, error) {
			st, err := zhxd.Status(ctx)
			return peers{1, st.Peers}, err
		}, a.showPeers),
	})
}

// peers is the answer of peers --json.
type peers struct {
	V     int                  `json:"v"`
	Peers []control.PeerStatus `json:"peers"`
}

func (a *app) showPeers(all peers) {
	rows := [][]string{{"NAMES", "PID", "UID", "VIA", "PROTOCOL", "PROOF", "IN", "OUT", "WAITING"}}
	for _, p := range all.Peers {
		names, waiting := strings.Join(p.Names, ","), size(int64(p.Waiting))
		if names == "" {
			names = asNobody
		}
		if p.Stuck {
			waiting = a.paint(bad, waiting+" stuck")
		}
		rows = append(rows, []string{names, number(p.PID), number(p.UID), p.Transport, fmt.Sprint(p.Protocol), p.Proof,
			fmt.Sprint(p.Sent.Messages), fmt.Sprint(p.Written.Messages), waiting})
	}
	a.table(a.fit(rows, "UID", "VIA", "PROTOCOL", "PROOF", "PID", "OUT", "IN"))
}
