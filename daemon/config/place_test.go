package config

import (
	"errors"
	"strings"
	"testing"
)

// What a caret is put under.
func TestPlace(t *testing.T) {
	for _, row := range []struct {
		purpose, text string
		want          string // what stands there, in its line
		line          int
	}{
		{"an unknown key itself", "[daemon]\n  Tpc = ''\n", "Tpc", 2},
		{"a quoted one, with its quotes", "[daemon]\n'x y' = 1\n", "'x y'", 2},
		{"one that belongs elsewhere", "[daemon]\ncommand = ['x']\n", "command", 2},
		{"one outside of any section", "nice = 3\n", "nice", 1},
		{"a value that it cannot have", "[daemon]\nmax_body = -1 # bytes\n", "-1", 2},
		{"a list", "[daemon]\ntcp = [1, 'b]' ] # ]\n", "[1, 'b]' ]", 2},
		{"a list that goes on", "[daemon]\ntcp = [\n 'b']\n", "[", 2},
		{"a list of several lines, of which one is wrong", "[client.a]\ncommand = ['x']\ndepends_on = [\n 'b']\n", "[", 3},
		{"an entry of a list, which the text quotes", "[client.a]\ncommand = ['x']\nnames = [\"c\", \"zhxd\"]\n", `"zhxd"`, 3},
		{"what is only meant is not it", "[client.abc]\ncommand = ['x']\n[client.z]\ncommand = ['x']\ndepends_on = [\"abd\", \"abc\"]\n", `"abd"`, 5},
		{"an entry of a table", "[client.a]\ncommand = ['x']\nenvironment = { AB = 'x', B = 3 }\n", "3", 3},
		{"a dotted key", "[client.a]\ncommand = ['x']\nstart_limit.burst = 0\n", "0", 3},
		{"a table of its own", "[client.a]\ncommand = ['x']\n[client.a.start_limit] # x\nburst = 0\n", "[client.a.start_limit]", 3},
		{"a section", "[client.a] # no command\n", "[client.a]", 1},
		{"a section with a space in front", " [clent.a]\ncommand = ['x']\n", "[clent.a]", 1},
		{"what [defaults] has", "[defaults]\nstart_limit = 7\n[client.a]\ncommand = ['x']\n", "7", 2},
		{"behind characters of several bytes", "[client.a]\ncommand = ['x']\nenvironment = { A = 'äöü', B = \"${Ü}\" }\n", `"${Ü}"`, 3},
		{"behind a byte order mark", "\ufeff[deamon]\n", "[deamon]", 1},
		{"no TOML", "[client.a]\nuser = é\n", "é", 2},
		{"no TOML at the end of a line", "[client.a\n", "", 1},
	} {
		_, err := Parse("f", []byte(row.text), inRun)
		problems, _ := errors.AsType[Problems](err)
		var p Problem
		for _, one := range problems {
			if !one.Warning {
				p = one
				break
			}
		}
		line := []rune(strings.Split(strings.TrimPrefix(row.text, "\ufeff")+"\n", "\n")[max(p.Line, 1)-1])
		got := ""
		if from := p.Column - 1; from >= 0 && from+p.Width <= len(line) {
			got = string(line[from : from+p.Width])
		}
		if got != row.want || p.Line != row.line {
			t.Errorf("%s: line %d, %d+%d: %q, want line %d, %q\n%s", row.purpose, p.Line, p.Column, p.Width, got, row.line, row.want, p)
		}
	}
}
