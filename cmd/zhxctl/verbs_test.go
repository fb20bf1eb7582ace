// Every verb is told by scripts, here or of ../testdata: its normal use, each of its exit codes (7: there is no zhxd; 6: one may
// not; 5: zhxd does not answer; 4: a wrong name, with what to type instead), and what --json prints, by its schema.

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// exits has the exit codes of every verb besides 0 and 2, which all have.
var exits = map[string]string{
	"status": "34567", "why": "4567", "show": "4567", "graph": "567", "peers": "567", "events": "4567", "logs": "14567", "top": "167", "version": "",
	"start": "134567", "stop": "4567", "restart": "14567", "kill": "34567", "reset": "4567", "wait": "34567", "shutdown": "56",
	"watchdog": "4567", "watchdog pause": "4567", "watchdog resume": "4567",
	"send": "14567", "request": "14567", "publish": "567", "subscribe": "567", "receive": "567", "watch": "567", "feed": "567",
	"tap": "567", "explain": "567",
	"reload": "1567", "check": "", "edit": "16", "init": "16", "schema": "", "doctor": "1", "report": "1", "completion": "",
}

func TestVerbsAreTold(t *testing.T) {
	told := tellings(t)
	var schema struct {
		Defs map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal(control.Schema, &schema); err != nil {
		t.Fatal(err)
	}
	verbs := 0
	var walk func(*cobra.Command)
	walk = func(parent *cobra.Command) {
		for _, cmd := range parent.Commands() {
			name := strings.TrimPrefix(cmd.CommandPath(), "zhxctl ")
			codes, known := exits[name]
			if verbs++; !known {
				t.Errorf("%s: which exit codes has it?", name)
			}
			for _, code := range strings.Split("02"+codes, "") {
				if !slices.Contains(told[name], "code "+code) {
					t.Errorf("%s: no script has it exit %s", name, code)
				}
			}
			if strings.Contains(codes, "4") && !slices.Contains(told[name], "suggestion") {
				t.Errorf("%s: no script looks at what it suggests for a wrong name", name)
			}
			if asJSON := cmd.Flags().Lookup("json") != nil; asJSON != (schema.Defs[name] != nil) || asJSON != slices.Contains(told[name], "json") {
				t.Errorf("%s: --json: %v; in schema.json: %v; looked at by a script: %v", name, asJSON, schema.Defs[name] != nil, slices.Contains(told[name], "json"))
			}
			walk(cmd)
		}
	}
	walk((&app{}).root())
	if verbs != len(exits) {
		t.Errorf("%d verbs, and %d of which the exit codes are told", verbs, len(exits))
	}
}

// tellings is what the scripts show of each verb: "code N", "json", "suggestion".
func tellings(t *testing.T) map[string][]string {
	told := map[string][]string{}
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	more, _ := filepath.Glob("../testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 || len(more) == 0 {
		t.Fatal("no scripts")
	}
	call := regexp.MustCompile(`^(?:(!) )?(?:\[exec:script\] )?(?:eventually |exec |code (\d) |json '?([a-z ]+?)'? (\d) |(forbidden) )*(?:script -qec '|cat \w+ # )?zhxctl (.*)$`)
	suggests := regexp.MustCompile(`^stderr .*(did you mean|-> zhxctl)`)
	for _, script := range append(scripts, more...) {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		script, _, _ := bytes.Cut(text, []byte("\n-- "))
		last, code := "", ""
		for line := range strings.Lines(string(script)) {
			if suggests.MatchString(line) && code == "4" {
				told[last] = append(told[last], "suggestion")
			}
			m := call.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			args, _, _ := strings.Cut(m[6], " -- ")
			cmd, _, err := (&app{}).root().Find(strings.Fields(strings.ReplaceAll(args, "'", "")))
			if last = ""; err == nil && cmd.HasParent() {
				last = strings.TrimPrefix(cmd.CommandPath(), "zhxctl ")
			}
			switch code = m[2] + m[4]; {
			case m[5] != "":
				code = "6"
			case code == "" && m[1] == "":
				code = "0"
			}
			told[last] = append(told[last], "code "+code)
			if m[3] == last {
				told[last] = append(told[last], "json")
			}
		}
	}
	return told
}

// What documents and help show of zhxctl can be typed so: there is such a verb, with such flags and as many arguments. The examples
// of the manual page are a script.
func TestExamples(t *testing.T) {
	documents, _ := filepath.Glob("../../etc/doc/*.md")
	shown := map[string]string{}
	for _, path := range append(documents, "../../README.md", "../../etc/clients.toml") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		shown[path] = string(text)
	}
	root := (&app{}).root()
	var helps func(*cobra.Command)
	helps = func(cmd *cobra.Command) {
		shown["help of "+cmd.Name()] = cmd.Long + "\n" + cmd.Example
		for _, c := range cmd.Commands() {
			helps(c)
		}
	}
	helps(root)
	quoted := regexp.MustCompile(`"[^"]*"|'[^']*'`)
	typed := regexp.MustCompile("(?m)(?:^ *(?:[$#] )?(?:sudo )?|&& |`)(?:[A-Z_]+=\\S+ )?zhxctl((?: [^\\n`]*)?)")
	count := 0
	for where, text := range shown {
		for _, m := range typed.FindAllStringSubmatch(text, -1) {
			args := quoted.ReplaceAllString(strings.ReplaceAll(m[1], "[daemon]", ""), "x") // in quotes it may be anything
			if at := strings.IndexAny(args, "|>;&#)"); at >= 0 {
				args = args[:at]
			}
			words := strings.Fields(strings.ReplaceAll(args, "…", ""))
			if len(words) == 0 || !regexp.MustCompile(`^(--?)?[a-z]`).MatchString(words[0]) || strings.ContainsAny(args, "[{") || strings.HasSuffix(words[0], ":") || strings.Contains(args, "  ") && strings.HasPrefix(where, "help") && !strings.Contains(m[1], "#") {
				continue // it is about zhxctl, or a pattern of what to type
			}
			cmd, rest, err := root.Find(words)
			if err == nil {
				if err = cmd.ParseFlags(rest); err == nil && len(words) > 1 {
					err = cmd.ValidateArgs(cmd.Flags().Args())
				}
			}
			if err != nil {
				t.Errorf("%s: zhxctl%s: %v", where, m[1], err)
			}
			count++
		}
	}
	if count < 80 {
		t.Errorf("only %d examples were found", count)
	}
	script, err := os.ReadFile("../testdata/script/examples.txtar")
	if err != nil {
		t.Fatal(err)
	}
	noQuotes := strings.NewReplacer(`"`, "", "'", "")
	for line := range strings.Lines(root.Example) {
		for command := range strings.SplitSeq(line, " && ") {
			command, _, _ = strings.Cut(strings.TrimSpace(command), "  #")
			if !strings.Contains(noQuotes.Replace(string(script)), noQuotes.Replace(strings.TrimSpace(command))) {
				t.Errorf("no script runs: %s", command)
			}
		}
	}
}
