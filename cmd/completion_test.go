package cmd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// askShell has a shell complete each argument, as far as it is typed, and print what it offers, a word a line, and then "==". The
// script of zhxctl is the file "completion", for zsh _zhxctl, in the folder in which it runs.
var askShell = map[string]string{
	// As readline would do it; but compopt works only there.
	"bash": `. /usr/share/bash-completion/bash_completion && . ./completion || exit
		compopt() { :; }
		complete="$(complete -p zhxctl | sed 's/.*-F //; s/ .*//')"
		for line; do
			COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
			read -ra COMP_WORDS <<<"$line"
			case $line in *' ') COMP_WORDS+=('');; esac
			COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
			"$complete" zhxctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
			printf '%s\n' "${COMPREPLY[@]}" ==
		done`,
	"fish": `source ./completion; for line in $argv; complete -C "$line"; echo ==; end`,
	// By its own line editor, on a terminal of its own, which writes down what is added to the offers.
	"zsh": `zmodload zsh/zpty || exit
		cat >rc <<'RC'
		fpath=($PWD $fpath)
		autoload -Uz compinit && compinit -u -D
		compadd() { local -a offers; builtin compadd -O offers "$@"; print -rl -- $offers >>offers; builtin compadd "$@" }
		offer() { zle list-choices; print -r '==' >>offers; zle kill-buffer; print -n "DO"; print "NE" }
		zle -N offer
		bindkey '^I' offer
RC
		zpty shell zsh -f -i
		zpty -w shell 'source ./rc; print -n REA; print DY'
		zpty -r shell output '*READY*'
		for line; do
			zpty -w -n shell "$line"$'\t'
			zpty -r shell output '*DONE*'
		done
		zpty -d shell
		cat offers`,
}

// Shells complete verbs, flags, their values, and the names that zhxd knows.
func TestCompletionInShells(t *testing.T) {
	dir := t.TempDir()
	conf := write(t, "clients.toml", "[daemon]\nrun_dir = '"+dir+"/run'\ntcp = ''\nprototype_presence = false\n[defaults]\nautostart = false\ncommand = ['sleep', '1000']\n"+
		"[client.gps]\n[client.gps-2]\n[client.camera]\n[group.sensors]\nclients = ['gps', 'gps-2']\n")
	sock := dir + "/run/control.sock"
	startZhxd(t, "--config", conf)
	until(t, "zhxd answers", func() bool {
		return exec.Command(filepath.Join(bin, "zhxctl"), "--control", sock, "status").Run() == nil
	})
	offers := []struct{ typed, want string }{
		{"zhxctl stop ", "@sensors camera gps gps-2"},
		{"zhxctl stop gps g", "gps-2"}, // what is there already is not offered again
		{"zhxctl why c", "camera"},
		{"zhxctl wat", "watch watchdog"},
		{"zhxctl watchdog pa", "pause"},
		{"zhxctl logs --prev", "--previous"},
		{"zhxctl wait --for r", "ready running"},
		{"zhxctl publish ", ""}, // a topic is nothing that zhxd lists
	}
	for shell, script := range askShell {
		t.Run(shell, func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skip("there is no " + shell)
			}
			if _, err := os.Stat("/usr/share/bash-completion/bash_completion"); shell == "bash" && err != nil {
				t.Skip("there is no package bash-completion")
			}
			dir := t.TempDir()
			env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "ZHX_CONTROL="+sock, "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir, "TERM=vt100")
			text, err := exec.Command(filepath.Join(bin, "zhxctl"), "completion", shell).Output()
			if err != nil {
				t.Fatal(err)
			}
			name := map[string]string{"zsh": "_zhxctl"}[shell]
			if name == "" {
				name = "completion"
			}
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				t.Fatal(err)
			}
			ask := func() (wrong []string) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				ask := exec.CommandContext(ctx, path, "-c", script, shell)
				if shell == "fish" {
					ask.Args = ask.Args[:3]
				}
				for _, o := range offers {
					ask.Args = append(ask.Args, o.typed)
				}
				ask.Dir, ask.Env = dir, env
				out, err := ask.CombinedOutput()
				answers := strings.Split(string(out), "==\n")
				if err != nil || len(answers) != len(offers)+1 {
					t.Fatalf("%v: %s", err, out)
				}
				for i, o := range offers {
					var words []string
					for line := range strings.Lines(answers[i]) {
						if word, _, _ := strings.Cut(strings.ReplaceAll(strings.TrimSpace(line), "\t", " "), " "); word != "" { // the rest explains it
							words = append(words, word)
						}
					}
					slices.Sort(words)
					if got := strings.Join(slices.Compact(words), " "); got != o.want {
						wrong = append(wrong, fmt.Sprintf("%q offers %q, want %q", o.typed, got, o.want))
					}
				}
				return wrong
			}
			wrong := ask()
			for again := 0; again < 2 && wrong != nil; again++ { // zhxctl completes what zhxd says within a second, and this machine may be busy
				os.Remove(filepath.Join(dir, "offers"))
				wrong = ask()
			}
			for _, text := range wrong {
				t.Error(text)
			}
		})
	}
}
