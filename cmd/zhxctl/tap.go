package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file looks from outside at what passes between clients, and at what may not. Control characters are escaped wherever it
// goes.

func (a *app) tapCmd() *cobra.Command {
	return a.asRaw(a.asCounted(&cobra.Command{
		Use:   "tap [PATTERN]",
		Short: "show messages as they pass",
		Long: `Show messages as they pass, of all kinds and protocols: those whose sender, receiver or topic PATTERN means, by default all. Each is
shown with its size, what became of it and its first 512 bytes. What comes faster than it is read is not shown, but counted.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.follow(cmd.Context(), true, nil, func(ctx context.Context, zhxd *control.Client, _ []string) error {
				return zhxd.Tap(ctx, strings.Join(args, ""), a.count, a.showTap)
			})
		},
	}))
}

func (a *app) showTap(e control.TapEvent) error {
	if e.Lost > 0 {
		fmt.Fprintf(a.err, "zhxctl: %s not shown here\n", count(int(e.Lost), "message"))
	}
	text := fmt.Sprintf("%s  %s -> %s  %s of %s, %s", e.At.UTC().Format("15:04:05.000"), cmp.Or(e.From, asNobody), cmp.Or(e.To, asNobody),
		e.Kind, count(e.Size, "byte"), e.Outcome)
	if body := strings.TrimRight(e.Text, "\x00"); body != "" { // protocol 1 fills up with zeros
		text += ": " + a.plain(body)
	}
	if a.json {
		text = line(e)
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}

func (a *app) explainCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "explain FROM TO|topic:TOPIC",
		Short: "show whether one may send to another, or publish and subscribe to a topic, and by which rule",
		Long: `Show whether one may send to another, or publish and subscribe to a topic, and by which rule. What is not allowed is exit 6, as it
would be to whoever tried it.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), readLimit, func(ctx context.Context, zhxd *control.Client) error {
				x, err := zhxd.Explain(ctx, args[0], args[1])
				switch {
				case err != nil:
					return err
				case a.json:
					a.printJSON(x)
				default:
					a.showExplanation(x)
				}
				if !x.Allowed {
					return exit(control.CodeForbidden)
				}
				return nil
			})
		},
	})
}

func (a *app) showExplanation(x control.Explanation) {
	verdict := map[bool]string{true: "allowed", false: "denied"}[x.Allowed]
	if len(x.Rules) == 0 {
		verdict += ", since no client's rule is asked"
	}
	fmt.Fprintf(a.out, "%s -> %s: %s\n", x.From, x.To, verdict)
	for _, r := range x.Rules {
		says := fmt.Sprintf("of %s: no, none of %q means %q", r.Client, r.Patterns, r.For)
		if r.Allowed {
			says = fmt.Sprintf("of %s: yes, %q means %q", r.Client, r.Pattern, r.For)
		}
		a.field(r.Key, says)
	}
	a.field("from", x.Identity)
	if x.Receives {
		x.State += ", receives"
	}
	a.field("to", x.State)
	if h := x.Hold; h != nil {
		a.field("hold", fmt.Sprintf("while it restarts %s wait, %s, %s", count(h.Messages, "message"), count(h.Bytes, "byte"), exact(h.For)))
	}
}
