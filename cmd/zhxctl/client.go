package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"zhx/daemon/config"
	"zhx/daemon/control"
	"zhx/ipc"
)

// This file is zhxctl as a client, on the data socket: a verb for each thing that a client does, so that a shell script can.

const (
	textMax   = 16 << 20 // bytes read from standard input; no zhxd carries as much
	asNobody  = "-"      // is shown for a sender that says no name, which cannot be a name
	topicMark = "topic:" // tells a topic from a name, as for explain
)

// asClient gives a verb the flag --from.
func (a *app) asClient(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.from, "from", "", "as `NAME` (default $ZHX_NAME, else without a name)")
	return cmd
}

// saying makes a verb that takes TO and TEXT.
func (a *app) saying(use, short, long string, do func(ctx context.Context, to string, body []byte) error) *cobra.Command {
	return a.asClient(&cobra.Command{
		Use: use + " TEXT|-", Short: short, Long: long + "\n\n-: TEXT is what comes from standard input, as it is.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := text(cmd, args[1])
			if err != nil {
				return err
			}
			return a.meant(cmd.Context(), args[0], do(cmd.Context(), args[0], body))
		},
	})
}

// meant adds to an error by which nobody has the name to the name that was likely meant.
func (a *app) meant(ctx context.Context, to string, err error) error {
	if e, ok := errors.AsType[*control.Error](err); ok && e.Code == control.CodeUnknown {
		st, _ := a.status(ctx, tabLimit)
		var names []string
		for _, c := range st.Clients {
			names = append(names, c.Name)
		}
		for _, p := range st.Peers {
			names = append(names, p.Names...)
		}
		e.Text += config.DidYouMean(to, names)
	}
	return err
}

// text is an argument, or what standard input has.
func text(cmd *cobra.Command, arg string) (body []byte, err error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		body, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), textMax))
	}()
	select {
	case <-read:
		return body, err
	case <-cmd.Context().Done(): // ctrl-C does not end the reading
		return nil, fmt.Errorf("read standard input: %w", cmd.Context().Err())
	}
}

func (a *app) sendCmd() *cobra.Command {
	var level string
	levels := []string{"", ipc.Accepted.String(), ipc.Written.String(), ipc.Handled.String()}
	cmd := a.saying("send NAME", "send one message to a client", `Send one message to a client.

zhxd sends it, as zhxctl or as --from, which must be nobody's name then. Where $ZHX_NAME is set or --level is given, zhxctl sends
it itself, as every client does, and returns when the message has come that far: accepted (zhxd has written it, or holds it while
the client restarts; the default), written (it is in the client's socket), handled (the client has said so).`,
		func(ctx context.Context, to string, body []byte) error {
			want := slices.Index(levels, level)
			switch {
			case want < 0:
				return control.Errorf(control.CodeUsage, "", "send: --level is accepted, written or handled")
			case level != "" || os.Getenv("ZHX_NAME") != "":
				return a.connect(ctx, readLimit, func(ctx context.Context, c *ipc.Conn) error {
					_, err := c.Send(ctx, to, body, ipc.At(max(ipc.Level(want), ipc.Accepted)))
					return refusal("send to", to, c.Name(), err)
				})
			case len(body) > control.SendMax:
				return control.Errorf(control.CodeUsage, "--level accepted sends as many as max_body says", "send: the text has %d bytes, at most %d", len(body), control.SendMax)
			case !utf8.Valid(body):
				return control.Errorf(control.CodeUsage, "--level accepted sends any bytes", "send: the text is not UTF-8, and would not arrive as it is")
			}
			m := control.SendRequest{Target: to, Source: a.from, Text: string(body)}
			return a.ask(ctx, readLimit, func(ctx context.Context, zhxd *control.Client) error { return zhxd.Send(ctx, m) })
		})
	cmd.Flags().StringVar(&level, "level", "", "return when it is `accepted`, written or handled")
	return cmd
}

func (a *app) requestCmd() *cobra.Command {
	return a.asRaw(a.saying("request NAME", "ask a client, and print its reply",
		"Ask a client, and print its reply. One that says that it failed goes to standard error, and is exit 1.",
		func(ctx context.Context, to string, body []byte) error {
			return a.connect(ctx, readLimit, func(ctx context.Context, c *ipc.Conn) error {
				r, err := c.Request(ctx, to, body)
				switch {
				case err != nil:
					return refusal("request to", to, c.Name(), err)
				case r.Failed:
					fmt.Fprintln(a.err, escape(string(r.Body)))
					return exit(control.CodeFailed)
				}
				fmt.Fprintln(a.out, a.clean(string(r.Body)))
				return nil
			})
		}))
}

func (a *app) publishCmd() *cobra.Command {
	var retain bool
	cmd := a.saying("publish TOPIC", "publish to whoever has subscribed to a topic", "Publish to whoever has subscribed to a topic.",
		func(ctx context.Context, topic string, body []byte) error {
			var how []ipc.Option
			if retain {
				how = append(how, ipc.Retain())
			}
			return a.connect(ctx, readLimit, func(ctx context.Context, c *ipc.Conn) error {
				return refusal("publish to", topicMark+topic, c.Name(), c.Publish(ctx, topic, body, how...))
			})
		})
	cmd.Flags().BoolVar(&retain, "retain", false, "keep it as the topic's last value, for those who subscribe later; an empty TEXT ends that")
	return cmd
}

// arrival is a message, request or publication that came; as JSON, one line. The words are those of control.TapEvent.
type arrival struct {
	Kind   string `json:"kind"` // message | request | publication
	From   string `json:"from"`
	To     string `json:"to"` // a name, or a topic
	Text   string `json:"text"`
	Level  string `json:"level,omitempty"`  // of a message: what its sender asked for
	Repeat bool   `json:"repeat,omitempty"` // it may have come before
	V1     bool   `json:"v1,omitempty"`     // by protocol 1
	Kept   bool   `json:"kept,omitempty"`   // the last value from before the subscription
	Bytes  []byte `json:"bytes,omitempty"`  // Text again where JSON cannot carry it
}

var placeholder = regexp.MustCompile(`\{[a-z]+\}`)

// checkLayout refuses a --format with a lower-case word in braces that there is not. Other braces stand for themselves.
func checkLayout(format string) error {
	for _, word := range placeholder.FindAllString(format, -1) {
		if fill(word, arrival{}) == word {
			return control.Errorf(control.CodeUsage, "there are {topic}, {to}, {from}, {body}, and {json}, the body as a JSON string",
				"format %q: there is no %s", format, word)
		}
	}
	return nil
}

func fill(format string, m arrival) string {
	return strings.NewReplacer("{topic}", m.To, "{to}", m.To, "{from}", cmp.Or(m.From, asNobody), "{body}", m.Text, "{json}", line(m.Text)).Replace(format)
}

// line is v as one line of JSON, without its end.
func line(v any) string {
	var b strings.Builder
	out := json.NewEncoder(&b)
	out.SetEscapeHTML(false)
	_ = out.Encode(v) // of a type of ours
	return strings.TrimSuffix(b.String(), "\n")
}

// print fails where standard output does.
func (a *app) print(m arrival) error {
	text := a.clean(fill(a.format, m))
	if a.json {
		if !utf8.ValidString(m.Text) {
			m.Bytes = []byte(m.Text)
		}
		text = line(m)
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}

// asFormatted gives a verb the flags for how it prints what comes.
func (a *app) asFormatted(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.format, "format", "", "a `LAYOUT` of {topic}, {to}, {from}, {body}, and {json}, the body as a JSON string")
	return a.asRaw(a.asCounted(cmd))
}

func (a *app) asRaw(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.raw, "raw", false, "do not escape control characters on a terminal")
	return cmd
}

func (a *app) asCounted(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().IntVar(&a.count, "count", 0, "end after `N` of them, with exit 0; if --timeout is over before, it is exit 5")
	return a.asJSON(cmd)
}

func (a *app) subscribeCmd() *cobra.Command {
	return a.asFormatted(a.asClient(&cobra.Command{
		Use:   "subscribe PATTERN…",
		Short: "print what is published",
		Long: `Print what is published to topics that a PATTERN means: words with dots between them, where * is any one word, and > at the end
one word or more. What is lost, since it comes faster than it is read, is told on standard error.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, patterns []string) error {
			a.format = cmp.Or(a.format, "{topic} {body}")
			return stream(a, cmd, func(ctx context.Context, c *ipc.Conn) (err error) {
				for i := 0; i < len(patterns) && err == nil; i++ {
					err = refusal("subscribe to", topicMark+patterns[i], c.Name(), c.Subscribe(ctx, patterns[i], ipc.DropOldest, 0))
				}
				return err
			}, func(p *ipc.Publication) error {
				return a.print(arrival{Kind: "publication", From: p.From, To: p.Topic, Text: string(p.Body), Kept: p.Kept})
			})
		},
	}))
}

func (a *app) receiveCmd() *cobra.Command {
	var answer string
	cmd := a.asFormatted(&cobra.Command{
		Use:   "receive [NAME]",
		Short: "be the receiver of a name, by default $ZHX_NAME, and print what is sent to it",
		Long: `Be the receiver of a name, by default $ZHX_NAME, and print what is sent to it.

What was printed counts as handled. Requests are answered with --reply, else refused. When zhxctl has ended nobody has the name:
a script that takes message after message reads them all from one zhxctl.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.from, a.format = strings.Join(args, ""), cmp.Or(a.format, "{from} {body}")
			if err := cmp.Or(checkLayout(answer), a.named(cmd)); err != nil {
				return err
			}
			return stream(a, cmd, func(ctx context.Context, c *ipc.Conn) error {
				return refusal("register", c.Name(), c.Name(), c.Register(ctx, ""))
			}, func(m *ipc.Message) error {
				for _, f := range m.Files {
					f.Close()
				}
				got := arrival{Kind: "message", From: m.From, To: m.To, Text: m.Text(), Level: m.Level.String(), Repeat: m.Repeat, V1: m.FromV1}
				if m.Request {
					got.Kind, got.Level = "request", ""
				}
				if err := a.print(got); err != nil {
					return err // nobody has seen it
				}
				switch { // an error: nobody waits for it any more
				case !m.Request:
					_ = m.Done()
				case answer == "":
					_ = m.Fail([]byte("zhxctl receive has no --reply"))
				default:
					_ = m.Reply([]byte(fill(answer, got)))
				}
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&answer, "reply", "", "answer requests with a `LAYOUT` as that of --format")
	return cmd
}

func (a *app) watchCmd() *cobra.Command {
	return a.asCounted(&cobra.Command{
		Use:   "watch NAME…",
		Short: "print the state of names, now and at each change",
		Long: `Print the state of names, now and at each change: absent, running, ready, late (half of its watchdog's time is over), restarting,
failed or stopped, and what is known besides, as JSON.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			return stream(a, cmd, func(ctx context.Context, c *ipc.Conn) (err error) {
				for i := 0; i < len(names) && err == nil; i++ {
					err = refusal("watch", names[i], "", c.Watch(ctx, names[i]))
				}
				return err
			}, func(s *ipc.State) error {
				text := fmt.Sprintf("%s %s %s", s.Name, s.State, escape(string(s.Details)))
				if a.json {
					text = line(struct {
						Name    string          `json:"name"`
						State   string          `json:"state"`
						Changes uint64          `json:"changes"`
						Details json.RawMessage `json:"details,omitempty"`
					}{s.Name, s.State.String(), s.Changes, s.Details})
				}
				_, err := fmt.Fprintln(a.out, text)
				return err
			})
		},
	})
}

func (a *app) feedCmd() *cobra.Command {
	var arm bool
	var checkpoint string
	cmd := a.asClient(&cobra.Command{
		Use:   "feed",
		Short: "feed the watchdog of the client that this runs under",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.named(cmd); err != nil {
				return err
			}
			return a.connect(cmd.Context(), readLimit, func(ctx context.Context, c *ipc.Conn) (err error) {
				switch {
				case arm:
					err = c.Arm(ctx)
				case checkpoint != "":
					err = c.Checkpoint(ctx, checkpoint)
				default:
					err = c.Feed(ctx)
				}
				if err == nil { // only a refusal is answered, before what is asked next
					err = c.Watch(ctx, c.Name())
				}
				if err == nil {
					var e ipc.Event
					e, err = c.Receive(ctx)
					if refused, ok := e.(*ipc.Refused); ok {
						err = refused.Err
					}
				}
				return refusal("feed", c.Name(), c.Name(), err)
			})
		},
	})
	cmd.Flags().BoolVar(&arm, "arm", false, "arm it instead: from then on it wants to be fed")
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "tell instead that the checkpoint `NAME` is passed")
	return cmd
}

// named refuses what cannot be done without a name.
func (a *app) named(cmd *cobra.Command) error {
	if cmp.Or(a.from, os.Getenv("ZHX_NAME")) != "" {
		return nil
	}
	return control.Errorf(control.CodeUsage, "name it, or set $ZHX_NAME", "%s: as whom?", cmd.Name())
}

// connect lets do talk to zhxd as a client, which may take limit.
func (a *app) connect(ctx context.Context, limit time.Duration, do func(context.Context, *ipc.Conn) error) error {
	path, err := a.dataSocket()
	if err != nil {
		return err
	}
	ctx, cancel := a.within(ctx, limit)
	defer cancel()
	c, err := ipc.Dial(ctx, ipc.Options{Address: path, Name: a.from})
	refused, ok := errors.AsType[*ipc.Error](err)
	switch {
	case err == nil:
		defer c.Close()
		return do(ctx, c)
	case ok || ctx.Err() != nil:
		return refusal("connect to", path, "", cmp.Or[error](ctx.Err(), refused))
	case errors.Is(err, fs.ErrPermission):
		return control.Errorf(control.CodeForbidden, "become root, or join the group that [daemon] socket_group names", "%w", err)
	}
	return control.Errorf(control.CodeDown, "zhxctl start; or name zhxd's data socket with $ZHX_SOCKET", "no zhxd at %s: %w", path, err)
}

// stream asks for something by begin, and gives show what comes of it until --count have come, or the reader has had enough. A
// lost connection is made again.
func stream[T any](a *app, cmd *cobra.Command, begin func(context.Context, *ipc.Conn) error, show func(T) error) error {
	if a.count < 0 {
		return control.Errorf(control.CodeUsage, "", "%s: --count %d is no number of lines", cmd.Name(), a.count)
	}
	if err := checkLayout(a.format); err != nil {
		return err
	}
	came := 0
	err := a.connect(cmd.Context(), noLimit, func(ctx context.Context, c *ipc.Conn) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go func() { // while events are taken: so many kept values may come that an answer cannot
			asking, done := context.WithTimeout(ctx, readLimit)
			defer done()
			if err := begin(asking, c); err != nil {
				cancel(err)
			}
		}()
		for came == 0 || came != a.count {
			e, err := c.Receive(ctx)
			if err != nil {
				return cmp.Or(context.Cause(ctx), err)
			}
			switch e := e.(type) {
			case *ipc.Gap:
				fmt.Fprintf(a.err, "zhxctl: %s: %s lost here\n", escape(e.Pattern), count(int(e.Lost), "publication"))
			case *ipc.Link:
				if !e.Up {
					fmt.Fprintln(a.err, "zhxctl: the connection to zhxd was lost, and is made again when it is back")
				}
			case *ipc.Refused:
				return e.Err
			}
			if e, ok := e.(T); ok {
				came++
				if err := show(e); err != nil {
					return err
				}
			}
		}
		return nil
	})
	switch {
	case cmd.Context().Err() != nil:
		return nil // ctrl-C is how one ends it
	case err == context.DeadlineExceeded:
		return control.Errorf(control.CodeTimeout, "", "%s: %v are over; %d came", cmd.Name(), a.timeout, came)
	}
	return refusal(cmd.Name(), "", "", err)
}

// advice has the exit codes of refusals, where it is not 1, and what to do: {to} is whom it is about, {from} who asked.
var advice = map[ipc.Code]struct {
	exit int
	hint string
}{
	ipc.ErrNoName:     {control.CodeUnknown, "zhxctl status"},
	ipc.ErrRestarting: {0, "zhxctl watch {to}"},
	ipc.ErrStopped:    {0, "zhxctl start {to}"},
	ipc.ErrFailed:     {0, "zhxctl why {to}; then zhxctl start {to}"},
	ipc.ErrDenied:     {control.CodeForbidden, "zhxctl explain {from} {to}"},
	ipc.ErrExpired:    {control.CodeTimeout, "zhxctl watch {to}"},
	ipc.ErrStuck:      {0, "zhxctl why {to}"},
	ipc.ErrGone:       {0, "zhxctl why {to}"},
	ipc.ErrBad:        {control.CodeUsage, ""},
	ipc.ErrUnanswered: {0, "zhxctl send {to} TEXT"},
}

// refusal makes of what package ipc says an error with an exit code: what was tried, the word for why, the reason for people.
func refusal(what, to, from string, err error) error {
	if to != "" {
		what = fmt.Sprintf("%s %q", what, strings.TrimPrefix(to, topicMark))
	}
	refused, ok := errors.AsType[*ipc.Error](err)
	switch {
	case ok:
		do := advice[refused.Code]
		if to == "" || refused.Code == ipc.ErrDenied && from == "" {
			do.hint = "" // there is nothing to fill in
		}
		why := cmp.Or(refused.Text, strings.TrimPrefix(refused.Code.Error(), "zhx: "))
		if refused.Retry > 0 {
			why += ", and is started again in " + exact(refused.Retry.Seconds())
		}
		return control.Errorf(cmp.Or(do.exit, control.CodeFailed), strings.NewReplacer("{to}", to, "{from}", from).Replace(do.hint),
			"%s: %s: %s", what, refused.Code.Word(), why)
	case errors.Is(err, context.DeadlineExceeded):
		return control.Errorf(control.CodeTimeout, "", "%s: no answer in time; what was asked for may still be done", what)
	case errors.Is(err, context.Canceled):
		return control.Errorf(control.CodeFailed, "", "%s: interrupted; what was asked for may still be done", what)
	case errors.Is(err, ipc.ErrLost):
		return control.Errorf(control.CodeDown, "zhxctl status", "%s: closed: the connection was lost; it is not known what was done", what)
	}
	return err
}
