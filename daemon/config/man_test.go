// etc/man/clients.toml.5 is made of the table of keys.

package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestKeysManPage(t *testing.T) {
	const path = "../../etc/man/clients.toml.5"
	if *update {
		if err := os.WriteFile(path, []byte(manPage()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != manPage() {
		t.Errorf("etc/man/clients.toml.5 is not of this table of keys (%v): go test ./daemon/config -run TestKeysManPage -update", err)
	}
}

func manPage() string {
	// man(7) sees a dot or quote that begins a line, and backslashes; a hyphen may else become a dash.
	roff := strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "\n.", "\n\\&.", "\n'", "\n\\&'", "\n[", "\n\\&[").Replace
	var b strings.Builder
	b.WriteString(`.TH CLIENTS.TOML 5 2026-11-23 zhx "File Formats"
.SH NAME
clients.toml \- what zhxd runs, and how
.SH SYNOPSIS
.I /etc/zhx/clients.toml
.SH DESCRIPTION
A TOML file with one section for each client:
.PP
.nf
    [client.modem]
    command = ["/usr/bin/modemd", "\-b", "115200"]
.fi
.PP
That is all a client needs.
Any key of a client may also stand in [defaults], for all clients.
A file with comments only is valid and starts nothing.
The whole file is valid, or nothing of it is used:
.B zhxctl check
tells every problem with its line.
An edit is applied as a difference when the file is saved, or by
.B zhxctl reload
with [daemon] reload = "manual".
.PP
As root, zhxd reads no file that others can write.
.PP
Durations are written as "300ms", "9s", "1m30s".
In strings, % and $ are written twice; in command, environment, on_failure,
log_file and probe (exec, unix), %n is the client's name and ${VARIABLE} a
variable of zhxd's environment, or for all but environment itself one of the
client's environment.
A variable that is not set is an error.
`)
	words := map[class]string{classLive: "A change is applied at once.", classRestart: "A change restarts the client.", classDaemon: "A change waits for zhxd to be restarted."}
	last := ""
	for _, k := range keys {
		if k.section != last {
			last = k.section
			fmt.Fprintf(&b, ".SH KEYS OF %s\n", heading(last))
		}
		fmt.Fprintf(&b, ".TP\n.B %s\n", k.name)
		for _, text := range []string{k.doc, "It is " + k.takes + ".", k.standard(), words[k.change()]} {
			for line := range strings.Lines(fold(text)) {
				b.WriteString(strings.TrimPrefix(roff("\n"+line), "\n"))
			}
		}
	}
	b.WriteString(".SH SEE ALSO\n.BR zhxctl (1),\n.BR zhxd (8)\n")
	return b.String()
}

// standard is a sentence on the default.
func (k *key) standard() string {
	if k.defaultValue == "" {
		return ""
	}
	return "Default: " + k.defaultValue + "."
}

// fold breaks text into lines of at most 72 characters.
func fold(text string) string {
	var b strings.Builder
	used := 0
	for _, word := range strings.Fields(text) {
		switch {
		case used == 0:
		case used+1+len(word) > 72:
			b.WriteByte('\n')
			used = 0
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += len(word)
	}
	if used > 0 {
		b.WriteByte('\n')
	}
	return b.String()
}
