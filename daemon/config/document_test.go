// etc/doc/keys.md is made of the table of keys.

package config

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write etc/doc/keys.md anew")

// The document says what the table says.
func TestKeysDocument(t *testing.T) {
	const path = "../../etc/doc/keys.md"
	if *update {
		if err := os.WriteFile(path, []byte(document()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != document() {
		t.Errorf("etc/doc/keys.md is not of this table of keys (%v): go test ./daemon/config -run TestKeysDocument -update", err)
	}
}

// document is the keys as people read them, a table a section.
func document() string {
	var b strings.Builder
	b.WriteString(`# The keys of clients.toml

This page is made from the table in daemon/config/keys.go: ` + "`go test ./daemon/config -run TestKeysDocument -update`" + `.

Any key of a client may also stand in [defaults], for all clients. Durations are written as "300ms", "9s", "1m30s". In
strings, % and $ are written twice; in command, environment, on_failure, log_file and probe (exec, unix), %n is the
client's name and ${VARIABLE} a variable of zhxd's environment, or for all but environment itself one of the client's
environment. A variable that is not set is an error.
`)
	words := map[class]string{classLive: "applied at once", classRestart: "the client is restarted", classDaemon: "waits for zhxd to be restarted"}
	last := ""
	for _, k := range keys {
		if k.section != last {
			last = k.section
			fmt.Fprintf(&b, "\n## %s\n\n| key | must be | default | when changed | |\n|---|---|---|---|---|\n", heading(k.section))
		}
		standard := "-"
		if k.defaultValue != "" {
			standard = "`" + k.defaultValue + "`"
		}
		row := []string{"`" + k.name + "`", k.takes, standard, words[k.change()], k.doc}
		for i := range row {
			row[i] = strings.ReplaceAll(row[i], "|", `\|`)
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String()
}
