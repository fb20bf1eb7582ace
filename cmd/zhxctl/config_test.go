package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

// What init writes is what is shipped.
func TestFirstConfig(t *testing.T) {
	if shipped, err := os.ReadFile("../../etc/clients.toml"); err != nil || !bytes.Equal(shipped, firstConfig) {
		t.Errorf("clients.toml is another than etc/clients.toml (%v): cp etc/clients.toml cmd/zhxctl/", err)
	}
}

// The exit codes by which a script decides whether to reload.
func TestReloadExitCode(t *testing.T) {
	invalid := &control.Error{Text: "invalid configuration", Code: control.CodeUsage, Problems: []control.Problem{{File: "f", Line: 3, Text: "bad"}}}
	for _, row := range []struct {
		purpose string
		b       *canned // nil: there is no zhxd
		args    string
		code    int
		out     string // the end
		err     string // the beginning
	}{
		{"nothing to do", &canned{plan: plan("gps keep")}, "reload --dry-run --exit-code", 0, "1 unchanged. Nothing done (dry run).\n", ""},
		{"changes", &canned{plan: plan("gps keep", "ui live nice")}, "reload --dry-run --exit-code", 2, "~ ui  live  nice\n1 unchanged. Nothing done (dry run).\n", ""},
		{"changes as JSON", &canned{plan: plan("ui start")}, "reload --dry-run --exit-code --json", 2, "\"problems\": []\n}\n", ""},
		{"an invalid file", &canned{err: invalid}, "reload --dry-run --exit-code", 1, "", "f:3: error: bad\nzhxctl: invalid configuration\n"},
		{"no zhxd", nil, "--control /nowhere reload --dry-run --exit-code", 1, "", "zhxctl: zhxd is not running"},
		{"the same without --exit-code", nil, "--control /nowhere reload --dry-run", 7, "", "zhxctl: zhxd is not running"},
		{"not permitted", &canned{err: control.Errorf(control.CodeForbidden, "sudo", "not you")}, "reload", 6, "", "zhxctl: not you\n  -> sudo\n"},
		{"it is no reload", &canned{}, "reload --exit-code", 2, "", "zhxctl: reload: --exit-code goes with --dry-run\n  -> zhxctl reload --dry-run --exit-code\n"},
	} {
		code, out, errOut := ask(t, row.b, strings.Fields(row.args)...)
		if code != row.code || !strings.HasSuffix(out, row.out) || !strings.HasPrefix(errOut, row.err) || (errOut == "") != (row.err == "") {
			t.Errorf("%s: exit %d\n%s%s", row.purpose, code, out, errOut)
		}
	}
}

// What stands in a file reaches no terminal as it is, and no line is longer than it may be.
func TestPoint(t *testing.T) {
	var b bytes.Buffer
	a := &app{out: &sink{Writer: &b}}
	text := "\ufeffx\r\n\x1b[2J = 1\r\n" + strings.Repeat("a", 100) + "\n" + strings.Repeat("错", 50) + "!\n"
	a.point(a.out, []byte(text), config.Problems{
		{File: "f", Line: 1, Column: 1, Width: 1, Text: "one"},
		{File: "f", Line: 2, Column: 8, Width: 1, Text: "two"},
		{File: "f", Line: 3, Column: 101, Width: 1, Text: "at the end"},
		{File: "f", Line: 3, Column: 1, Width: 1000, Text: "very much"},
		{File: "f", Line: 4, Column: 51, Width: 1, Text: "wide letters before it"},
		{File: "f", Line: 30, Column: 3, Width: 1, Text: "gone meanwhile"},
		{File: "f", Text: "no line"},
	})
	want := "f:1:1: error: one\n      1 | x\n        | ^\n" +
		"f:2:8: error: two\n      2 | \\x1b[2J = 1\n        |           ^\n" +
		"f:3:101: error: at the end\n      3 | ..." + strings.Repeat("a", 34) + "\n        | " + strings.Repeat(" ", 37) + "^\n" +
		"f:3:1: error: very much\n      3 | " + strings.Repeat("a", 70) + "\n        | " + strings.Repeat("^", 70) + "\n" +
		"f:4:51: error: wide letters before it\n      4 | ..." + strings.Repeat("错", 17) + "!\n        |    " + strings.Repeat("\u3000", 17) + "^\n" +
		"f:30:3: error: gone meanwhile\nf: error: no line\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// What may not be written is exit 6.
func TestEditForbidden(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "clients.toml")
	if err := os.WriteFile(file, []byte("#\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	for _, args := range [][]string{{"edit", file}, {"init", filepath.Join(dir, "other.toml")}} {
		if code, _, errOut := ask(t, nil, args...); code != control.CodeForbidden {
			t.Errorf("%v: exit %d, %s", args, code, errOut)
		}
	}
}
