// What is wrong with a file, and on which line: the decoded file, walked with the table of keys.

package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/BurntSushi/toml"
)

// A Problem is one thing wrong with a configuration.
type Problem struct {
	File    string // as given to Load or Parse
	Line    int    // from 1; 0 if it has none
	Section string // as in the file, without brackets: "daemon", "client.modem"; "" if it has none
	Text    string
	Warning bool // the configuration is valid all the same
	Column  int  // in characters from 1; 0 if there is none
	Width   int  // how many characters are meant; 0 without Column
}

// String is FILE:LINE:COLUMN: error: TEXT, as compilers write it.
func (p Problem) String() string {
	at, kind := p.File, "error"
	if p.Line > 0 {
		at = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	if p.Column > 0 {
		at = fmt.Sprintf("%s:%d", at, p.Column)
	}
	if p.Warning {
		kind = "warning"
	}
	return fmt.Sprintf("%s: %s: %s", at, kind, p.Text)
}

// Problems are in the order of their lines. As an error it has at least one that is not a warning.
type Problems []Problem

// Error is the errors, a line each. The warnings are left out.
func (ps Problems) Error() string {
	var lines []string
	for _, p := range ps {
		if !p.Warning {
			lines = append(lines, p.String())
		}
	}
	return strings.Join(lines, "\n")
}

// file is a file being checked.
type file struct {
	path     string
	text     string // without a byte order mark
	md       toml.MetaData
	top      map[string]toml.Primitive // the same tables twice: for positions,
	tree     map[string]any            // and for values
	problems Problems
	count    map[bool]int // of the warnings (true) and of the errors, those left out included
	told     map[string]bool
	environ  map[string]string
	room     int // bytes that replacing variables may still add
}

// decode reads the TOML. A syntax error is the only problem then.
func (f *file) decode() (ok bool) {
	defer func() { // zhxd does not die of a file
		if r := recover(); r != nil {
			f.report(nil, false, "no TOML that can be read: %v", r)
			ok = false
		}
	}()
	var err error
	if f.md, err = toml.Decode(f.text, &f.top); err == nil {
		_, err = toml.Decode(f.text, &f.tree)
	}
	if err != nil {
		text := err.Error()
		pe, is := errors.AsType[toml.ParseError](err)
		if is {
			text = pe.Message
		}
		f.report(nil, false, "%s", text)
		f.locateSyntax(&f.problems[0], pe)
	}
	return err == nil
}

// printable escapes what a file may hold and a terminal must not get, and cuts what is too long.
func printable(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case i > textMax:
			return b.String() + "..."
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// report notes a problem with the key or section at path. What several clients inherit is noted once.
func (f *file) report(path []string, warning bool, format string, args ...any) {
	if f.count[warning] >= problemsMax {
		f.count[warning]++
		return
	}
	text := printable(fmt.Sprintf(format, args...))
	if told := fmt.Sprintf("%q %v %s", path, warning, text); !f.told[told] {
		f.told[told] = true
		f.count[warning]++
		p := Problem{File: f.path, Section: section(top(path)), Text: text, Warning: warning}
		f.locate(&p, path)
		f.problems = append(f.problems, p)
	}
}

// top is the section that path leads into.
func top(path []string) []string {
	if len(path) > 1 && named(path[0]) {
		return path[:2]
	}
	return path[:min(len(path), 1)]
}

// result is what Load and Parse return.
func (f *file) result(c *Config) (*Config, error) {
	slices.SortStableFunc(f.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Text, b.Text))
	})
	if f.count[false] > 0 {
		return nil, f.problems
	}
	c.Warnings = f.problems
	return c, nil
}

// line is where path stands in the file: the key, else the first key below it (a table that is only implied), else the
// nearest table around it; 0 if there is none.
func (f *file) line(path []string) int {
	if len(path) == 0 {
		return 0
	}
	if n := f.exact(path); n > 0 {
		return n
	}
	for _, key := range f.md.Keys() {
		if len(key) > len(path) && slices.Equal(key[:len(path)], path) {
			if n := f.exact(key); n > 0 {
				return n
			}
		}
	}
	return f.line(path[:len(path)-1])
}

// exact is the line on which exactly path was written, or 0. The library tells positions only in errors: it is given a
// value that fails to decode.
func (f *file) exact(path []string) int {
	table := f.top
	for _, name := range path[:len(path)-1] {
		p := table[name]
		table = nil
		f.md.PrimitiveDecode(p, &table) // no table: stays nil
	}
	if p, ok := table[path[len(path)-1]]; ok {
		return f.position(f.md.PrimitiveDecode(p, &undecodable{}))
	}
	return 0
}

// position is the line that an error of the library is about, or 0. The library's own number is wrong where a line ends too
// early, and for strings of several lines; its offset is right.
func (f *file) position(err error) int {
	pe, _ := errors.AsType[toml.ParseError](err)
	if pe.Position.Line == 0 {
		return 0
	}
	line, _ := f.at(pe.Position.Start)
	return line
}

// undecodable fails to be decoded, which makes the library say where it stands.
type undecodable struct{}

func (*undecodable) UnmarshalTOML(any) error { return errors.New("undecodable") }

// where is the path of the first of the keys that a client has, itself or by [defaults]; else of the client.
func (f *file) where(client string, keys ...string) []string {
	for _, key := range keys {
		if path := f.entry(client, key); path != nil {
			return path
		}
	}
	return []string{"client", client}
}

// entry is the path of a key, or of what lies below it, that a client has, itself or by [defaults]; or nil.
func (f *file) entry(client string, key ...string) []string {
	for _, path := range [][]string{{"client", client}, {"defaults"}} {
		if path = append(path, key...); f.md.IsDefined(path...) {
			return path
		}
	}
	return nil
}

// tables lists the tables below client or group, in the order of the file.
func (f *file) tables(kind string) (names []string) {
	table, ok := f.tree[kind].(map[string]any)
	if !ok && f.tree[kind] != nil {
		f.report([]string{kind}, false, "%ss are written %s", kind, heading(kind))
	}
	seen := make(map[string]bool)
	for _, key := range f.md.Keys() {
		if key[0] != kind || len(key) == 1 || seen[key[1]] {
			continue
		}
		seen[key[1]] = true
		if _, ok := table[key[1]].(map[string]any); ok {
			names = append(names, key[1])
		} else if table != nil {
			f.report(key[:2], false, "%q in [%s]: %[2]ss are written %s", key[1], kind, heading(kind))
		}
	}
	return names
}

// fill sets the keys of one table.
func (f *file) fill(path []string, t *target) {
	var v any = f.tree
	for _, name := range path {
		v = v.(map[string]any)[name]
	}
	table, ok := v.(map[string]any)
	if !ok {
		f.report(path, false, "%s must be a section, [%s]", section(path), section(path))
	}
	for name, v := range table {
		at := append(slices.Clone(path), name)
		i := slices.IndexFunc(keys, func(k key) bool { return k.name == name && k.in(path[0]) })
		if i < 0 {
			f.report(at, false, "%s", unknownKey(name, path))
			continue
		}
		err := keys[i].set(t, v)
		if e, ok := errors.AsType[entryError](err); ok {
			at = append(at, e.key)
		}
		if err != nil {
			f.report(at, false, "%s in [%s]: %v", name, section(path), err)
		}
	}
}

func unknownKey(name string, path []string) string {
	text := fmt.Sprintf("unknown key %q in [%s]", name, section(path))
	if h := homes(name); h != "" {
		return fmt.Sprintf("%s; it belongs into %s", text, h)
	}
	return text + DidYouMean(name, keysOf(path[0]))
}

// unknownSection is what to say of a key at the top level that is none of ours.
func (f *file) unknownSection(name string) string {
	table, isTable := f.tree[name].(map[string]any)
	switch {
	case !isTable && homes(name) != "":
		return fmt.Sprintf("key %q stands in no section; it belongs into %s", name, homes(name))
	case !isTable:
		return fmt.Sprintf("unknown key %q outside of any section", name)
	}
	text, meant := fmt.Sprintf("unknown section [%s]", section([]string{name})), Suggest(name, sections)
	for key, kind := range map[string]string{"command": "client", "clients": "group"} {
		if meant == "" && table[key] != nil {
			meant = section([]string{kind, name})
		}
	}
	if meant == "" {
		return fmt.Sprintf("%s; there are [%s]", text, strings.Join(sections, "], ["))
	}
	return fmt.Sprintf("%s; did you mean [%s]?", text, meant)
}

// section writes a path as it stands in brackets.
func section(path []string) string { return printable(toml.Key(path).String()) }

// DidYouMean is "; did you mean \"X\"?", X being the candidate that word was likely meant to be, or "".
func DidYouMean(word string, candidates []string) string {
	if s := Suggest(word, candidates); s != "" {
		return fmt.Sprintf("; did you mean %q?", s)
	}
	return ""
}

// Suggest is the candidate that word was likely meant to be, or "".
func Suggest(word string, candidates []string) string {
	plain := strings.NewReplacer("-", "_")
	best, at := "", min(max(2, len(word)/4), len(word)-1)+1
	word = plain.Replace(strings.ToLower(word))
	for _, c := range candidates {
		if d := distance(word, plain.Replace(strings.ToLower(c))); d < at {
			best, at = c, d
		}
	}
	return best
}

// distance is how many letters must be put in, left out, exchanged, or swapped with the next, to make b of a.
func distance(a, b string) int {
	row, above, above2 := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		row, above, above2 = above2, row, above
		row[0] = i + 1
		for j := range len(b) {
			row[j+1] = above[j]
			if a[i] != b[j] {
				row[j+1] = 1 + min(above[j], above[j+1], row[j])
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], above2[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
