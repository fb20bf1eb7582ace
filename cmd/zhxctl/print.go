package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
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
	for i, line := range align(rows) {
		fmt.Fprintln(a.out, line)
		if i < len(below) {
			for _, text := range below[i] {
				fmt.Fprintln(a.out, text)
			}
		}
	}
}

// align makes a line of each row of a table.
func align(rows [][]string) (lines []string) {
	widths, _ := measure(rows)
	for _, row := range rows {
		line := ""
		for at, cell := range row {
			line += cell + strings.Repeat(" ", widths[at]-columns(cell)+gap)
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return lines
}

const (
	gap       = 2  // columns between two cells
	longName  = 26 // columns that a first cell keeps, while others can be left out
	shortName = 8  // and then
)

// measure is how wide each column of a table is, and all of them.
func measure(rows [][]string) (widths []int, total int) {
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			total -= widths[i]
			widths[i] = max(widths[i], columns(cell))
			total += widths[i]
		}
	}
	return widths, total + gap*(len(widths)-1)
}

// fit makes a table as wide as the terminal at most: long names are cut, then columns with these headings are left out, one after
// the other, and then names are cut shorter.
func (a *app) fit(rows [][]string, spare ...string) [][]string {
	limit := a.width()
	shorten := func(least int) {
		if widths, total := measure(rows); limit > 0 && total > limit {
			for i := range rows {
				rows[i][0] = cut(rows[i][0], max(widths[0]+limit-total, least), "…")
			}
		}
	}
	shorten(longName)
	defer shorten(shortName)
	if limit > 0 {
		leaveOut(rows, limit, spare)
	}
	return rows
}

// leaveOut takes columns with these headings out of a table, one after the other, until it is at most so wide.
func leaveOut(rows [][]string, width int, spare []string) {
	for _, heading := range spare {
		if _, total := measure(rows); total <= width {
			return
		}
		at := slices.IndexFunc(rows[0], func(h string) bool { return strings.TrimRight(h, " ") == heading })
		for i, row := range rows {
			rows[i] = slices.Delete(row, at, at+1)
		}
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

// age is a duration in one unit, as tables have room for.
func age(seconds float64) string {
	text, _, _ := strings.Cut(span(max(seconds, 0)), " ")
	if seconds < 10 {
		return strconv.Itoa(int(seconds)) + "s"
	}
	return text
}

// size is a number of bytes for a person.
func size(n int64) string {
	const units = "BKMGT"
	v, i := float64(n), 0
	for ; v >= 1000 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i > 0 && v < 9.95 {
		return fmt.Sprintf("%.1f%c", v, units[i])
	}
	return fmt.Sprintf("%.0f%c", v, units[i])
}

// count is a number with its word: "1 client", "2 clients".
func count(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return strconv.Itoa(n) + " " + word + "s"
}
