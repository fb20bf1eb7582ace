// Command zhxctl asks zhxd, the daemon of zhx: what runs, what it said, why it died, start, stop, read the configuration again.
// It also lets a shell script be a client: send, request, publish, subscribe, receive, watch, feed.
//
// It finds zhxd's control socket by --control, else $ZHX_CONTROL, else [daemon] control of --config's FILE, else where zhxd puts
// it by default. As a client it connects to $ZHX_SOCKET, else to the data socket of that zhxd. What is asked for goes to standard
// output; everything else goes to standard error: one line that begins with "zhxctl: " and, where there is something to do about
// it, one that begins with "  -> ". Colours are for a terminal, and for none where $NO_COLOR is set.
//
// Exit: 0 done · 1 failed · 2 wrong usage or an invalid configuration · 3 not running · 4 no such client · 5 timed out ·
// 6 not permitted · 7 no daemon answers.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

// version is set by the linker.
var version = "devel"

// How long zhxctl waits, if --timeout does not say it. Then it is exit 5, and what was begun goes on.
const (
	readLimit  = 10 * time.Second
	startLimit = 30 * time.Second // for zhxd to be ready
	actLimit   = 2 * time.Minute  // for clients to stop and start
	tabLimit   = time.Second      // for names to complete
	noLimit    = 0
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	os.Exit(code)
}

// app is one invocation.
type app struct {
	out *sink
	err io.Writer
	// Set by flags:
	control, config string
	from, format    string
	count           int
	timeout         time.Duration
	json, raw       bool
	patient         bool // --wait

	verb string // as it was typed
}

// sink remembers the first error of writing: it is looked at once, at the end.
type sink struct {
	io.Writer
	failed error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.Writer.Write(p)
	if s.failed == nil {
		s.failed = err
	}
	return n, err
}

// exit is an error that has been told already.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit %d", int(e)) }

func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	a := &app{out: &sink{Writer: out}, err: errOut}
	root := a.root()
	if len(args) > 1 && args[0] == "help" { // cobra's own takes what it does not know for no error
		args = slices.Concat(args[1:], []string{"--help"})
	}
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	begun := false // else an error is about the command line
	root.PersistentPreRun = func(cmd *cobra.Command, _ []string) { begun, a.verb = true, cmd.Name() }
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		err = a.out.failed
	}
	if code, ok := errors.AsType[exit](err); ok {
		return int(code)
	}
	e, ok := errors.AsType[*control.Error](err)
	switch {
	case err == nil:
		return 0
	case ok:
	case begun:
		e = control.Errorf(control.CodeFailed, "", "%w", err)
	default:
		e = usage(cmd, err)
	}
	a.tell(e)
	return e.Code
}

// usage makes one line and a hint of what cobra says about the command line.
func usage(cmd *cobra.Command, err error) *control.Error {
	text, rest, _ := strings.Cut(err.Error(), "\n")
	hint := cmd.CommandPath() + " --help"
	if words := strings.Fields(rest); len(words) > 4 && words[0] == "Did" { // Did you mean this? WORD…
		hint = "zhxctl " + cmp.Or(config.Suggest(strings.Split(text, `"`)[1], words[4:]), words[4])
	}
	return &control.Error{Text: text, Code: control.CodeUsage, Hint: hint}
}

// tell writes an error for a person.
func (a *app) tell(e *control.Error) {
	a.tellProblems(e.Problems)
	fmt.Fprintf(a.err, "zhxctl: %s\n", escape(e.Text))
	if e.Hint != "" {
		fmt.Fprintf(a.err, "  -> %s\n", escape(e.Hint))
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "zhxctl",
		Short: "ask zhxd what runs, start and stop it, read its configuration again",
		Long: `Ask zhxd what runs, start and stop it, read its configuration again.

A NAME is that of a client; that of a client with instances stands for all of them, and @GROUP for the clients of [group.GROUP].`,
		Example: `  zhxctl start                 # zhxd and all its clients
  zhxctl status
  zhxctl why camera            # how it died, and what it printed last
  zhxctl watchdog pause camera 10m --reason "gdb"
  zhxctl logs -f camera
  zhxctl restart camera
  zhxctl request camera "exposure?"
  zhxctl subscribe --json 'gps.>'
  zhxctl check && zhxctl reload`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.control, "control", "", "zhxd's control socket, a `PATH`")
	flags.StringVar(&a.config, "config", "", "the configuration `FILE` (default "+defaultConfig+")")
	flags.DurationVar(&a.timeout, "timeout", 0, "how long to wait (default 10s to read, 30s for zhxd to start, 2m to stop)")
	root.AddCommand(a.startCmd(), a.shutdownCmd(), a.stopCmd(), a.restartCmd(), a.killCmd(), a.resetCmd(), a.waitCmd(), a.statusCmd(), a.topCmd(), a.whyCmd(), a.eventsCmd(), a.showCmd(), a.graphCmd(), a.peersCmd(), a.watchdogCmd(), a.logsCmd(),
		a.sendCmd(), a.requestCmd(), a.publishCmd(), a.subscribeCmd(), a.receiveCmd(), a.watchCmd(), a.feedCmd(), a.tapCmd(), a.explainCmd(),
		a.reloadCmd(), a.checkCmd(), a.editCmd(), a.initCmd(), a.schemaCmd(), a.versionCmd(),
		a.doctorCmd(), a.reportCmd(), a.completionCmd())
	a.completing(root)
	return root
}

// asJSON gives a verb the flag --json.
func (a *app) asJSON(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON, whose fields are only ever added to")
	return cmd
}

// ask lets do talk to zhxd, which may take limit.
func (a *app) ask(ctx context.Context, limit time.Duration, do func(context.Context, *control.Client) error) error {
	path, err := a.socket()
	if err != nil {
		return err
	}
	ctx, cancel := a.within(ctx, limit)
	defer cancel()
	return do(ctx, control.Dial(path))
}

// status asks zhxd for its status, which may take limit.
func (a *app) status(ctx context.Context, limit time.Duration) (st control.Status, err error) {
	err = a.ask(ctx, limit, func(ctx context.Context, zhxd *control.Client) (err error) {
		st, err = zhxd.Status(ctx)
		return err
	})
	return st, err
}

// asking is what a verb does that asks zhxd for one thing: what get answers is printed as JSON, or shown.
func asking[T any](a *app, get func(context.Context, *control.Client, []string) (T, error), show func(T)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return a.ask(cmd.Context(), readLimit, func(ctx context.Context, zhxd *control.Client) error {
			answer, err := get(ctx, zhxd, args)
			switch {
			case err != nil:
			case a.json:
				a.printJSON(answer)
			default:
				show(answer)
			}
			return err
		})
	}
}

// within is ctx for as long as --timeout says, else for limit.
func (a *app) within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit = cmp.Or(max(a.timeout, 0), limit); limit == noLimit {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}
