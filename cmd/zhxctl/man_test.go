// etc/man/zhxctl.1 is made of the verbs and flags themselves, and of main.go's opening comment.

package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write etc/man/zhxctl.1 anew")

func TestManPage(t *testing.T) {
	const path = "../../etc/man/zhxctl.1"
	want := manPage(t)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("etc/man/zhxctl.1 is not of these verbs (%v): go test ./cmd/zhxctl -run TestManPage -update", err)
	}
}

func manPage(t *testing.T) []byte {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "main.go", nil, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	about, exits, found := strings.Cut(file.Doc.Text(), "\nExit: ")
	if !found {
		t.Fatal("main.go's comment has no line of exit codes")
	}
	root := (&app{out: &sink{Writer: os.Stdout}, err: os.Stderr}).root()
	var b bytes.Buffer
	fmt.Fprintf(&b, ".TH ZHXCTL 1 2026-11-23 zhx \"User Commands\"\n.SH NAME\nzhxctl \\- %s\n", roff(root.Short))
	b.WriteString(".SH SYNOPSIS\n.B zhxctl\n[\\fIOPTION\\fR ...] \\fIVERB\\fR [\\fIARGUMENT\\fR ...]\n.SH DESCRIPTION\n")
	paragraphs(&b, about)
	b.WriteString(".PP\n")
	_, rest, _ := strings.Cut(root.Long, "\n\n") // the first says what NAME does
	paragraphs(&b, rest)
	b.WriteString(".SH OPTIONS\n")
	options(&b, root.PersistentFlags())
	b.WriteString(".SH VERBS\n")
	verbs(&b, root)
	b.WriteString(".SH EXIT STATUS\n")
	for code := range strings.SplitSeq(strings.ReplaceAll(strings.TrimSpace(exits), "\n", " "), " · ") {
		n, what, _ := strings.Cut(strings.TrimSuffix(code, "."), " ")
		fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", n, roff(strings.TrimSuffix(fold(what), "\n")))
	}
	b.WriteString(".SH EXAMPLES\n.nf\n")
	for line := range strings.Lines(root.Example) {
		b.WriteString(roff(strings.TrimPrefix(line, "  ")))
	}
	b.WriteString("\n.fi\n.SH SEE ALSO\n.BR clients.toml (5),\n.BR zhxd (8)\n")
	return b.Bytes()
}

func verbs(b *bytes.Buffer, parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		fmt.Fprintf(b, ".SS \"%s\"\n", strings.ReplaceAll(roff(strings.TrimPrefix(c.Parent().CommandPath()+" "+c.Use, "zhxctl ")), `"`, `\(dq`))
		text := c.Long
		if text == "" {
			text = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
		}
		paragraphs(b, text)
		if c.Example != "" {
			b.WriteString(".PP\n")
			paragraphs(b, c.Example)
		}
		options(b, c.LocalNonPersistentFlags())
		verbs(b, c)
	}
}

func options(b *bytes.Buffer, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		value, usage := pflag.UnquoteUsage(f)
		name := "\\-\\-" + roff(f.Name)
		if f.Shorthand != "" {
			name = "\\-" + f.Shorthand + "\\fR, \\fB" + name
		}
		if value != "" {
			name += "\\fR \\fI" + roff(value)
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, ".TP\n\\fB%s\\fR\n%s\n", name, strings.TrimSuffix(roff(fold(usage)), "\n"))
	})
}

// paragraphs writes text as help has it: an empty line between paragraphs, indented lines as they are.
func paragraphs(b *bytes.Buffer, text string) {
	for i, p := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(p, "  ") || strings.HasPrefix(p, "\t") {
			fmt.Fprintf(b, ".nf\n%s\n.fi\n", roff(p))
		} else {
			b.WriteString(roff(fold(p)))
		}
	}
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
	return b.String() + "\n"
}

// roff escapes text for man(7).
func roff(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '`':
			b.WriteString(`\(ga`)
		case (r == '.' || r == '\'') && (i == 0 || s[i-1] == '\n'):
			b.WriteString(`\&` + string(r))
		case r > '~':
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
