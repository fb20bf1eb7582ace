package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file completes what is typed in a shell. What may stand where is what a verb's Use says.

func (a *app) completionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "print the script that makes a shell complete verbs, flags and the names of clients",
		Long: `Print the script that makes a shell complete verbs, flags and the names of clients. make install installs it; without that:

  bash   . <(zhxctl completion bash)     in ~/.bashrc; needs the package bash-completion
  zsh    zhxctl completion zsh > DIR/_zhxctl, DIR being one of $fpath
  fish   zhxctl completion fish > ~/.config/fish/completions/zhxctl.fish`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			}
			return control.Errorf(control.CodeUsage, "zhxctl completion bash", "completion: there is none for %q, only for bash, zsh and fish", args[0])
		},
	}
}

// completing lets the arguments of cmd and of all below it be completed.
func (a *app) completing(cmd *cobra.Command) {
	cmd.ValidArgsFunction = a.offer
	for _, c := range cmd.Commands() {
		a.completing(c)
	}
}

// offer is what may be typed next, as far as zhxd says it in time: NAME, FROM and TO in Use are clients, GROUP is a group, FILE a
// file, a word in lower case is itself. A topic is none of these.
func (a *app) offer(cmd *cobra.Command, args []string, _ string) (words []string, _ cobra.ShellCompDirective) {
	places := strings.Fields(cmd.Use)[1:]
	at := len(args)
	if last := len(places) - 1; at > last && last >= 0 && strings.Contains(places[last], "…") {
		at = last
	}
	if at >= len(places) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	files := cobra.ShellCompDirectiveNoFileComp
	for place := range strings.SplitSeq(places[at], "|") {
		place = strings.Trim(place, "[]…@")
		switch place {
		case "NAME", "FROM", "TO", "GROUP":
			st, _ := a.status(cmd.Context(), tabLimit)
			for _, c := range st.Clients {
				if place != "GROUP" {
					words = append(words, c.Name)
				}
			}
			for _, g := range st.Groups {
				if place == "GROUP" {
					words = append(words, g.Name)
				}
			}
		case "FILE":
			files = cobra.ShellCompDirectiveDefault
		default:
			if place != "" && place[0] >= 'a' && place == strings.ToLower(place) {
				words = append(words, place)
			}
		}
	}
	return slices.DeleteFunc(words, func(w string) bool { return slices.Contains(args, w) }), files
}
