package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

// This file is how things look. A table is plain text in columns; colour is for terminals, and not with NO_COLOR. What children
// said reaches a terminal with its control characters escaped, except with --raw, and anything else as it is.

const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (a *app) colours() bool {
	return isTerminal(a.out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// clean is s as it may be written to w.
func (a *app) clean(w io.Writer, s string) string {
	if a.raw || !isTerminal(w) {
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

func (a *app) printJSON(v any) error {
	out := json.NewEncoder(a.out)
	out.SetIndent("", "  ")
	return out.Encode(v)
}

// table writes rows in columns. colour, which may be nil, is the colour of a cell or "".
func (a *app) table(rows [][]string, colour func(row, col int) string) {
	var width []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	colours := colour != nil && a.colours()
	for r, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2)
			if colours && colour(r, i) != "" {
				cell = "\x1b[" + colour(r, i) + "m" + cell + "\x1b[0m"
			}
			line.WriteString(cell + pad)
		}
		fmt.Fprintln(a.out, strings.TrimRight(line.String(), " "))
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

func problem(p control.Problem) string { return config.Problem(p).String() }
