package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"zhx/daemon/control"
)

// This file is how top looks: a head, the table, what is wrong with the client selected, events, its log, and the keys. Nothing is
// told by colour alone.

var topHelp = []string{
	"  up, down, k, j   select a client",
	"  s  x  r          start it, stop it, restart it; the last two ask first",
	"  p                pause its watchdog for 10 minutes, or end the pause",
	"  f                follow its log, or hold it still",
	"  tab              log and events, only the log, only the events",
	"  ?                this help",
	"  q                quit",
}

const (
	topKeys   = "j k select  s start  x stop  r restart  p pause  f follow  tab  ? help  q quit"
	dogColumn = 7   // of the table
	wide      = 100 // columns, from which on there is room for more
)

// topWidths are what the columns of the table take at least, so that they stand still while numbers change.
var topWidths = []int{8, 7, 5, 3, 3, 4, 4, 9, 5}

func (m *top) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen, v.DisableBracketedPasteMode = true, true
	return v
}

// lines is the screen: height of them, none wider than width.
func (m *top) lines() []string {
	out := m.heading()
	shown := min(len(m.st.Clients), max((m.height-len(out)-4)/2, 1))
	out = append(append(out, m.clients(shown)...), m.trouble())
	rest := m.height - len(out) - 1
	switch {
	case m.help:
		out = append(append(out, m.rule("keys; any of them closes this")), topHelp...)
	case m.pane == both && rest >= 8:
		out = append(append(out, m.eventLines(rest/3)...), m.logLines(rest-rest/3)...)
	case m.pane == onlyEvents:
		out = append(out, m.eventLines(rest)...)
	default:
		out = append(out, m.logLines(rest)...)
	}
	out = slices.Concat(out, make([]string, max(m.height-len(out), 0)))[:max(m.height-1, 0)]
	out = append(out, m.bottom())
	for i, line := range out {
		out[i] = m.cut(line, m.width)
	}
	return out
}

func (m *top) cut(text string, width int) string { return cut(text, width, m.glyph("…", "~")) }

func (m *top) glyph(fine, plain string) string {
	if m.plain {
		return plain
	}
	return fine
}

func (m *top) heading() []string {
	d, well := m.st.Daemon, 0
	for _, c := range m.st.Clients {
		if stateColor(stateWord(c)) == good {
			well++
		}
	}
	left := fmt.Sprintf("zhxd %s  up %s  %s, %d running", d.Version, span(d.Uptime+m.passed().Seconds()), count(len(m.st.Clients), "client"), well)
	clock := m.now.UTC().Format("15:04:05 UTC")
	if space := m.width - lipgloss.Width(left) - len(clock); space > 1 {
		left += strings.Repeat(" ", space) + clock
	}
	out := []string{left}
	alarm := func(text string) { out = append(out, m.paint(bad, m.cut("! "+escape(text), m.width))) }
	e, _ := errors.AsType[*control.Error](m.err)
	switch {
	case e != nil:
		alarm("as of " + m.at.UTC().Format("15:04:05") + ": " + e.Text + "  -> " + e.Hint)
	case d.ConfigState == "changed":
		alarm(d.Config + " has changed and is not loaded yet  -> zhxctl reload")
	case d.ConfigState == "invalid":
		alarm(d.Config + " is invalid; what was loaded stays in force  -> zhxctl check")
	}
	if w := d.Watchdog; w != nil && w.SafeMode {
		alarm("safe mode: the board was reset too often; clients are started by hand only")
	} else if w != nil && w.Mode == "observe" {
		alarm("nobody is killed for being late: the watchdog only observes")
	}
	return out
}

// passed is the time since zhxd said how things are. Where it says no more, time stands still.
func (m *top) passed() time.Duration {
	return min(max(m.now.Sub(m.at), 0), 2*topPoll)
}

// clients is the table, with those n rows in which the one selected is.
func (m *top) clients(n int) (lines []string) {
	all, at := m.st.Clients, max(m.index(m.selected), 0)
	if len(all) == 0 {
		return []string{"", "no clients are configured"}
	}
	from := min(max(at-n/2, 0), len(all)-n)
	name := "   NAME"
	if n < len(all) {
		name += fmt.Sprintf(" %d-%d/%d", from+1, from+n, len(all))
	}
	rows := [][]string{{name, "STATE", "PID", "UP", "RST", "CPU", "MEM", "WATCHDOG", "MSG/S", ""}}
	if m.width >= wide {
		rows[0] = append(rows[0], "LAST EXIT")
	}
	for _, c := range all[from : from+n] {
		c = aged(c, m.passed().Seconds())
		row := m.row(c)
		mark, _ := m.mark(c)
		row[0] = m.cut(c.Name, max(m.width/3, 8))
		if c.Name == m.selected {
			row[0] = ">" + mark + " " + m.paint(loud, row[0])
		} else {
			row[0] = " " + mark + " " + row[0]
		}
		if w := c.Watchdog; w != nil && w.Remaining != nil && *w.Remaining < w.Timeout/4 {
			row[dogColumn] = m.paint(doubt, row[dogColumn])
		}
		exit := row[len(row)-1]
		row = append(row[:len(row)-1], m.rate(c.Name), m.spark(c.Name))
		if m.width >= wide {
			row = append(row, exit)
		}
		rows = append(rows, row)
	}
	for i, least := range topWidths {
		rows[0][i] += strings.Repeat(" ", max(least-columns(rows[0][i]), 0))
	}
	leaveOut(rows, m.width, []string{"PID", "MEM", "CPU", "RST", "UP", "MSG/S", ""})
	lines = align(rows)
	if m.err != nil { // it may be so no more
		for i, line := range lines {
			lines[i] = m.paint(faint, painted.ReplaceAllString(line, ""))
		}
	}
	lines[0] = m.paint(faint, lines[0])
	return lines
}

// aged is a client as it is seconds later, as far as that goes by the clock.
func aged(c control.ClientStatus, seconds float64) control.ClientStatus {
	later := func(p *float64, by float64) *float64 {
		if p == nil {
			return nil
		}
		return new(max(*p+by, 0))
	}
	c.Uptime, c.Next = later(c.Uptime, seconds), later(c.Next, -seconds)
	if c.LastExit != nil {
		e := *c.LastExit
		e.Ago += seconds
		c.LastExit = &e
	}
	if c.Watchdog != nil {
		w := *c.Watchdog
		if w.PausedFor = later(w.PausedFor, -seconds); !w.Paused && !w.Traced {
			w.Remaining = later(w.Remaining, -seconds)
		}
		c.Watchdog = &w
	}
	return c
}

// rate is the present messages a second of a client.
func (m *top) rate(name string) string {
	r := m.rates[name]
	if r == nil || len(r.last) == 0 {
		return "-"
	}
	switch now := r.last[len(r.last)-1]; {
	case now >= 1000:
		return strconv.FormatFloat(now/1000, 'f', 1, 64) + "k"
	case now >= 10 || now < 0.05:
		return strconv.FormatFloat(now, 'f', 0, 64)
	default:
		return strconv.FormatFloat(now, 'f', 1, 64)
	}
}

// spark draws the last rates of a client against the highest of them.
func (m *top) spark(name string) string {
	r, samples := m.rates[name], topRates
	if m.width < wide {
		samples = topRates / 3
	}
	if r == nil {
		return ""
	}
	last, levels := r.last[max(len(r.last)-samples, 0):], []rune(m.glyph("▁▂▃▄▅▆▇█", "_.:-=+*#"))
	line, most := strings.Repeat(" ", samples-len(last)), slices.Max(append(last[:len(last):len(last)], 1))
	for _, v := range last {
		line += string(levels[int(math.Ceil(v/most*float64(len(levels)-1)))])
	}
	return line
}

// trouble is what is wrong with the client selected, and what to type.
func (m *top) trouble() string {
	at := m.index(m.selected)
	if at < 0 {
		return ""
	}
	c := aged(m.st.Clients[at], m.passed().Seconds())
	text, next := ailment(c)
	switch w := c.Watchdog; {
	case text != "":
		text = c.Name + ": " + text
	case w != nil && w.Pause != nil:
		text = c.Name + ": watchdog paused by " + *w.Pause
	case c.Notice != nil && *c.Notice != "":
		text = c.Name + " says: " + *c.Notice
	}
	if text = flat(text); next == "" {
		return text
	}
	next = "  -> " + next
	return m.cut(text, max(m.width-lipgloss.Width(next), m.width/3)) + m.paint(loud, next)
}

// flat is text as one line of a screen.
func flat(text string) string {
	return escape(strings.ReplaceAll(strings.TrimRight(text, "\r"), "\t", "    "))
}

// rule is the line above a pane.
func (m *top) rule(title string) string {
	dash := m.glyph("─", "-")
	return m.paint(faint, dash+dash+" "+title+" "+strings.Repeat(dash, max(m.width-lipgloss.Width(title)-4, 0)))
}

// eventLines is a pane of n lines.
func (m *top) eventLines(n int) []string {
	lines := []string{m.rule("events")}
	for _, e := range m.events.last(max(n-1, 0)) {
		word := m.paint(stateColor(e.Kind), fmt.Sprintf("%-9s", e.Kind))
		lines = append(lines, fmt.Sprintf("%s %-10s %s %s", e.At.UTC().Format("15:04:05"), cmp.Or(e.Client, "zhxd"), word, flat(e.Text)))
	}
	return slices.Concat(lines, make([]string, max(n-len(lines), 0)))
}

func (m *top) logLines(n int) []string {
	how := ""
	if !m.follow {
		how = ", held still: f follows"
	}
	lines := []string{m.rule("log of " + cmp.Or(m.selected, "nobody") + how)}
	for _, l := range m.log.last(max(n-1, 0)) {
		text := flat(l.Text[:min(len(l.Text), 8*m.width)]) // what is beyond is cut anyway
		if l.Dropped > 0 {
			text = "[" + count(int(l.Dropped), "line") + " lost] " + text
		}
		lines = append(lines, text)
	}
	return slices.Concat(lines, make([]string, max(n-len(lines), 0)))
}

// bottom is the last line: a question, what became of a key, or the keys.
func (m *top) bottom() string {
	switch {
	case m.question != "":
		return m.paint(loud, m.question)
	case m.now.Before(m.saidTill):
		return m.paint(loud, m.cut(flat(m.said), m.width))
	}
	return m.paint(faint, topKeys)
}
