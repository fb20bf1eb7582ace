package main

import (
	"io"
	"os"
	"regexp"
	"strings"

	"charm.land/lipgloss/v2"
	"golang.org/x/sys/unix"
)

// This file is about terminals: colour, which only they get, and how wide they are.

// A kind of text has a colour, by SGR of ECMA-48: the sixteen that any terminal, a serial one too, has.
type kind string

const (
	good  kind = "32" // green
	doubt kind = "33" // yellow
	bad   kind = "31" // red
	loud  kind = "1"  // bold
	faint kind = "2"
)

// paint gives text its colour, if standard output is a terminal that is to have colours: https://no-color.org.
func (a *app) paint(k kind, text string) string {
	if text == "" || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !isTerminal(a.out.Writer) {
		return text
	}
	return "\x1b[" + string(k) + "m" + text + "\x1b[0m"
}

var painted = regexp.MustCompile("\x1b\\[[0-9;]*m")

// columns is how many columns text takes on a terminal.
func columns(text string) int { return lipgloss.Width(text) }

// cut makes text at most width columns wide; mark, of one column, stands for what is left out.
func cut(text string, width int, mark string) string {
	switch {
	case columns(text) <= width:
		return text
	case width < 2: // MaxWidth(0) were none
		return ""
	}
	return lipgloss.NewStyle().MaxWidth(width-1).Render(text) + mark
}

func (a *app) width() int { return widthOf(a.out.Writer) }

// usualWidth is that of a terminal that does not say it, such as a serial line.
const usualWidth = 80

// widthOf is the width of a terminal; 0: w is none, and lines may have any length.
func widthOf(w io.Writer) int {
	if !isTerminal(w) {
		return 0
	}
	if size, err := unix.IoctlGetWinsize(int(w.(*os.File).Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		return int(size.Col)
	}
	return usualWidth
}

// wrap breaks text at spaces where it is wider than the terminal; its further lines begin with indent.
func (a *app) wrap(text, indent string) string {
	width := a.width()
	var lines []string
	line := ""
	for i, word := range strings.Split(text, " ") {
		switch {
		case i == 0:
			line = word
		case width == 0 || columns(line)+1+columns(word) <= width:
			line += " " + word
		default:
			lines, line = append(lines, line), indent+word
		}
	}
	return strings.Join(append(lines, line), "\n")
}
