package main

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"zhx/daemon/control"
)

// This file is what top does: on keys, with time, and with what zhxd says. How it looks is in top_view.go.

const (
	topTick   = 500 * time.Millisecond // between redraws. What changed is all that is sent: 9600 baud carry it
	topSoon   = 100 * time.Millisecond // after another client was selected, its log is shown: a tick were felt
	topPoll   = time.Second            // between questions to zhxd; none while one is unanswered
	topSays   = 5 * time.Second        // that what became of a key stays on the screen
	topPause  = 10 * time.Minute       // of a watchdog
	topKept   = 200                    // lines, and events; older ones go
	topRates  = 20                     // samples of a sparkline, one a poll
	topFrames = 10                     // a second, at most
)

func (a *app) topCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "top",
		Short: "watch clients live; start, stop, restart them and pause their watchdogs by keys",
		Long: `Watch clients live: their state, watchdogs counting down, messages a second, events, and the log of the one selected.

` + strings.Join(topHelp, "\n") + `

It asks zhxd once a second, needs no more than a serial line, and asks nothing of the terminal. Where the locale is not UTF-8 it
draws in ASCII.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if term := os.Getenv("TERM"); !isTerminal(a.out.Writer) || !isTerminal(os.Stdin) || term == "" || term == "dumb" {
				return control.Errorf(control.CodeFailed, "zhxctl status", "top: needs a terminal, on which text can be placed (TERM=%s)", term)
			}
			return a.ask(cmd.Context(), noLimit, a.top)
		},
	}
}

// top takes the terminal until q.
func (a *app) top(ctx context.Context, zhxd *control.Client) error {
	m := newTop(ctx, a, zhxd)
	first := m.poll().(polled)
	if first.err != nil {
		return first.err
	}
	m.learn(first)
	in := int(os.Stdin.Fd())
	before, err := unix.IoctlGetTermios(in, unix.TCGETS)
	if err != nil {
		return err
	}
	raw := *before
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(in, unix.TCSETS, &raw); err != nil {
		return err
	}
	defer func() { _ = unix.IoctlSetTermios(in, unix.TCSETSF, before) }()
	// Without an input of its own, bubbletea asks nothing of the terminal and does not change how it sends keys: what does not know
	// such questions shows them, and what answers late answers to the shell.
	screen := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(nil), tea.WithOutput(a.out.Writer), tea.WithoutSignalHandler(), tea.WithFPS(topFrames))
	go func() { // until zhxctl ends
		var d decoder
		for buf := make([]byte, 64); ; {
			n, err := os.Stdin.Read(buf)
			if err != nil {
				screen.Quit() // the line was hung up
				return
			}
			for _, b := range buf[:n] {
				if k := d.next(b); k != "" {
					screen.Send(k)
				}
			}
		}
	}()
	_, err = screen.Run()
	if ctx.Err() != nil {
		return nil // a signal is another way to leave
	}
	return err
}

// What top is told.
type (
	tick   time.Time
	key    string
	acted  string // for people: what became of a key
	redraw struct{}
	polled struct {
		st  control.Status
		at  time.Time
		err error
	}
)

// top is what is on the screen. Update and View belong to one goroutine; what they want of zhxd is in the tea.Cmds.
type top struct {
	*app
	ctx  context.Context
	zhxd *control.Client

	width, height int
	plain         bool // ASCII
	now, asked    time.Time
	asking        bool
	st            control.Status // the last that was no error,
	at            time.Time      // when it came,
	err           error          // and the present one
	rates         map[string]*rate
	selected      string

	pane         pane
	follow, help bool
	events       *feed[control.Event]
	log          *feed[control.LogLine]
	stopLog      context.CancelFunc

	said     string
	saidTill time.Time
	question string
	yes      func() tea.Cmd // what question is about
}

type pane int

const (
	both pane = iota
	onlyLog
	onlyEvents
	panes
)

// rate counts messages of one client.
type rate struct {
	total int64
	last  []float64 // a second, the newest last
}

func newTop(ctx context.Context, a *app, zhxd *control.Client) *top {
	charset := cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_CTYPE"), os.Getenv("LANG"))
	charset = strings.ReplaceAll(strings.ToLower(charset), "-", "")
	term := os.Getenv("TERM")
	return &top{app: a, ctx: ctx, zhxd: zhxd, width: usualWidth, height: 24, now: time.Now(), follow: true, rates: map[string]*rate{},
		plain:  !strings.Contains(charset, "utf8") || strings.HasPrefix(term, "vt") || term == "linux", // their fonts lack the blocks
		events: &feed[control.Event]{ended: true}, log: &feed[control.LogLine]{}, stopLog: func() {}}
}

func (m *top) Init() tea.Cmd { return tea.Batch(m.clock(), m.hear(), m.openLog()) }

func (m *top) clock() tea.Cmd { return tea.Tick(topTick, func(t time.Time) tea.Msg { return tick(t) }) }

func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tick:
		if m.now = time.Time(msg); m.asking || m.now.Sub(m.asked) < topPoll-topTick/2 {
			return m, m.clock()
		}
		m.asking, m.asked = true, m.now
		return m, tea.Batch(m.clock(), m.poll)
	case polled:
		m.asking = false
		return m, m.learn(msg)
	case acted:
		m.say(string(msg), topSays)
		m.asked = time.Time{} // see what came of it
	case key:
		return m, m.press(msg)
	}
	return m, nil
}

func (m *top) say(text string, length time.Duration) { m.said, m.saidTill = text, m.now.Add(length) }

func (m *top) poll() tea.Msg {
	ctx, cancel := context.WithTimeout(m.ctx, readLimit)
	defer cancel()
	st, err := m.zhxd.Status(ctx)
	return polled{st, time.Now(), err}
}

// learn takes in an answer of zhxd.
func (m *top) learn(p polled) tea.Cmd {
	if m.err = p.err; p.err != nil {
		return nil
	}
	rates := map[string]*rate{}
	for _, c := range p.st.Clients {
		total, r := c.Messages.Received+c.Messages.Sent, m.rates[c.Name]
		if r == nil {
			r = &rate{total: total}
		} else if passed := p.at.Sub(m.at).Seconds(); passed > 0 {
			r.last = append(r.last, float64(max(total-r.total, 0))/passed) // it counts from 0 again where zhxd was started again
			r.last = r.last[max(len(r.last)-topRates, 0):]
		}
		r.total, rates[c.Name] = total, r
	}
	m.st, m.at, m.now, m.rates = p.st, p.at, p.at, rates
	var cmds []tea.Cmd
	if m.index(m.selected) < 0 {
		m.selected = ""
		cmds = append(cmds, m.move(0))
	} else if m.follow && m.log.over() {
		cmds = append(cmds, m.openLog())
	}
	if m.events.over() {
		cmds = append(cmds, m.hear())
	}
	return tea.Batch(cmds...)
}

// index is where in the table a client stands, or -1.
func (m *top) index(name string) int {
	return slices.IndexFunc(m.st.Clients, func(c control.ClientStatus) bool { return c.Name == name })
}

// move selects another client.
func (m *top) move(by int) tea.Cmd {
	if len(m.st.Clients) == 0 {
		return nil
	}
	to := m.st.Clients[min(max(m.index(m.selected)+by, 0), len(m.st.Clients)-1)].Name
	if to == m.selected {
		return nil
	}
	m.selected = to
	return m.openLog()
}

// press does what a key is for.
func (m *top) press(k key) tea.Cmd {
	switch {
	case k == "ctrl+c":
		return tea.Quit
	case m.question != "":
		m.question = ""
		if k == "y" {
			return m.yes()
		}
		m.say("nothing done", topSays)
		return nil
	case m.help:
		m.help = false
		return nil
	}
	switch k {
	case "q":
		return tea.Quit
	case "?":
		m.help = true
	case "up", "k":
		return m.move(-1)
	case "down", "j":
		return m.move(1)
	case "tab":
		m.pane = (m.pane + 1) % panes
	case "f":
		m.follow = !m.follow
		return m.openLog()
	}
	at := m.index(m.selected)
	if at < 0 {
		return nil
	}
	switch k {
	case "s":
		return m.act("start", (*control.Client).Start)
	case "x":
		m.confirm("stop", (*control.Client).Stop)
	case "r":
		m.confirm("restart", (*control.Client).Restart)
	case "p":
		if w := m.st.Clients[at].Watchdog; w == nil {
			m.say(m.selected+": has no watchdog", topSays)
		} else if w.PausedFor != nil {
			return m.act("resume", (*control.Client).Resume)
		} else {
			return m.act("pause", func(zhxd *control.Client, ctx context.Context, w control.Which) (control.Outcomes, error) {
				return zhxd.Pause(ctx, control.PauseRequest{Names: w.Names, Seconds: topPause.Seconds(), Reason: "zhxctl top"})
			})
		}
	}
	return nil
}

func (m *top) confirm(what string, do verb) {
	name := m.selected // that the question is about, should that client vanish meanwhile
	m.question = what + " " + name + "? y/n"
	m.yes = func() tea.Cmd { m.selected = name; return m.act(what, do) }
}

// act does a verb to the client selected.
func (m *top) act(what string, do verb) tea.Cmd {
	name := m.selected
	m.say(what+" "+name+" …", actLimit)
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(m.ctx, actLimit)
		defer cancel()
		out, err := do(m.zhxd, ctx, control.Which{Names: []string{name}})
		for _, c := range out.Clients {
			switch {
			case c.Error != nil:
				err = c.Error
			case c.Accepted:
				return acted(name + ": " + accepted)
			default:
				return acted(name + ": " + c.Text)
			}
		}
		if err != nil {
			return acted(what + ": " + err.Error())
		}
		return nil
	}
}

// openLog begins to read the log of the client selected.
func (m *top) openLog() tea.Cmd {
	m.stopLog()
	if m.selected == "" {
		return nil
	}
	ctx, cancel := context.WithCancel(m.ctx)
	f, q := &feed[control.LogLine]{}, control.LogQuery{Names: []string{m.selected}, N: topKept, Follow: m.follow}
	m.log, m.stopLog = f, cancel
	read := func() tea.Msg {
		f.end(m.zhxd.Logs(ctx, q, f.take))
		return nil
	}
	return tea.Batch(read, tea.Tick(topSoon, func(time.Time) tea.Msg { return redraw{} }))
}

// hear begins to read events.
func (m *top) hear() tea.Cmd {
	f := &feed[control.Event]{}
	m.events = f
	return func() tea.Msg {
		f.end(m.zhxd.Events(m.ctx, control.EventQuery{N: topKept, Follow: true}, f.take))
		return nil
	}
}

// feed holds the last that a stream brought. However much comes, it costs a redraw a tick.
type feed[T any] struct {
	mu    sync.Mutex
	got   []T
	ended bool
}

func (f *feed[T]) take(item T) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.got = append(f.got, item); len(f.got) >= 2*topKept {
		f.got = slices.Clone(f.got[topKept:])
	}
	return nil
}

func (f *feed[T]) end(error) { // the next poll tells of a zhxd that is gone
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
}

func (f *feed[T]) over() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

func (f *feed[T]) last(n int) []T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got[max(len(f.got)-n, 0):])
}

// decoder makes keys of the bytes that a terminal sends. It needs no clock: a lone escape means nothing.
type decoder struct{ escaped, sequence bool }

func (d *decoder) next(b byte) key {
	switch was := *d; {
	case was.sequence:
		*d = decoder{sequence: b < 0x40} // a parameter
		return map[byte]key{'A': "up", 'B': "down"}[b]
	case was.escaped && (b == '[' || b == 'O'):
		*d = decoder{sequence: true}
		return ""
	}
	*d = decoder{escaped: b == 0x1b}
	switch b {
	case 0x1b:
		return ""
	case '\t':
		return "tab"
	case 3:
		return "ctrl+c"
	}
	return key(b)
}
