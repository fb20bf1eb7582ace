package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// This file is how things look. What children said reaches a terminal with its control characters escaped, except with --raw,
// and anything else as it is.

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// clean is s as it may be written to standard output.
func (a *app) clean(s string) string {
	if a.raw || !isTerminal(a.out.Writer) {
		return s
	}
	return escape(s)
}

// escape shows what a terminal would obey, or could not show, as Go writes it in strings. Tabs stay.
func escape(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch _, size := utf8.DecodeRuneInString(s[i:]); {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\t' || strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

func (a *app) printJSON(v any) {
	out := json.NewEncoder(a.out)
	out.SetIndent("", "  ")
	_ = out.Encode(v)
}

// table writes rows in columns, and below each row its lines of below, if there are any, which are no part of the columns.
func (a *app) table(rows [][]string, below ...[]string) {
	var aligned strings.Builder
	columns := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(columns, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	columns.Flush()
	i := 0
	for line := range strings.Lines(aligned.String()) {
		fmt.Fprint(a.out, line)
		if i < len(below) {
			for _, text := range below[i] {
				fmt.Fprintln(a.out, text)
			}
		}
		i++
	}
}

// span is a duration for a person: two units at most.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	const day = 24 * time.Hour
	switch {
	case d < 10*time.Second:
		return strconv.FormatFloat(max(float64(d.Milliseconds()/100), 0)/10, 'f', -1, 64) + "s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh %dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd %dh", d/day, d%day/time.Hour)
}

// count is a number with its word: "1 client", "2 clients".
func count(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return strconv.Itoa(n) + " " + word + "s"
}
