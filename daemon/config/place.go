// Where in its line a problem stands: what an editor jumps to, and a caret is put under.

package config

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

const lineMax = 4096 // bytes of a line that are searched; what stands behind has no column

const (
	quotedRE = `"(?:[^"\\]|\\.)*"|'[^']*'`
	valueRE  = quotedRE + `|\[(?:` + quotedRE + `|[^\]])*\]?|\{(?:` + quotedRE + `|[^}])*\}?|[^\s,#}\]]+`
)

var (
	headingRE = regexp.MustCompile(`^\s*(\[[^#]*\])`)
	wordRE    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
)

// span is the part of a line, in characters from 1, that a problem with path is about: the key, where it is none of the
// table, else the value, and of that only what text quotes; on the line of a heading that heading. column is 0 where there is
// none of them.
func span(line string, path []string, text string) (column, width int) {
	line = line[:min(len(line), lineMax)]
	var from, to int
	if at := headingRE.FindStringSubmatchIndex(line); at != nil {
		from, to = at[2], at[3]
	} else if len(path) > 0 {
		inside := len(path) - len(top(path))
		unknown := inside == 0 || inside == 1 && !slices.Contains(keysOf(path[0]), path[len(path)-1])
		for _, name := range slices.Backward(path) { // of `a.b = 1` it may be a
			at := regexp.MustCompile(`(?:^|[\s,{.])(["']?` + regexp.QuoteMeta(name) + `["']?)(?:\s*\.[^=]*)?\s*=\s*(` + valueRE + `)?`).FindStringSubmatchIndex(line)
			if at == nil {
				continue
			}
			if from, to = at[2], at[3]; !unknown && at[4] >= 0 {
				from, to = at[4], at[5]
			}
			break
		}
		text, _, _ = strings.Cut(text, "; did you mean")
		for _, word := range slices.Backward(wordRE.FindAllString(text, -1)) {
			if i := strings.Index(line[from:to], word); i >= 0 {
				from, to = from+i, from+i+len(word)
				break
			}
		}
	}
	if from == to {
		return 0, 0
	}
	return 1 + utf8.RuneCountInString(line[:from]), utf8.RuneCountInString(line[from:to])
}

// at is the line that contains the byte at offset, and which of its characters that is, from 1.
func (f *file) at(offset int) (line, column int) {
	before := f.text[:min(offset, len(f.text))]
	start := strings.LastIndexByte(before, '\n') + 1
	return 1 + strings.Count(before, "\n"), 1 + utf8.RuneCountInString(before[start:])
}

// locate fills in where a problem with path stands.
func (f *file) locate(p *Problem, path []string) {
	if p.Line = f.line(path); p.Line > 0 {
		lines := strings.SplitN(f.text, "\n", p.Line+1)
		p.Column, p.Width = span(lines[p.Line-1], path, p.Text)
	}
}

// locateSyntax fills in where the library says that the file is no TOML.
func (f *file) locateSyntax(p *Problem, pe toml.ParseError) {
	if pe.Position.Line > 0 {
		p.Line, p.Column = f.at(pe.Position.Start)
		meant, _, _ := strings.Cut(f.text[min(pe.Position.Start, len(f.text)):], "\n")
		p.Width = max(1, utf8.RuneCountInString(meant[:min(max(pe.Position.Len, 0), len(meant))]))
	}
}
