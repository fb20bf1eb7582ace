// Command zhxd is the daemon of zhx: message broker, process manager and watchdog of one board.
//
//	zhxd [--config FILE] [--run-dir DIR] [--log FILE] [--keeper]
//
// It runs in the foreground until SIGTERM or SIGINT; SIGHUP re-reads the configuration. Exit: 0 ended in order,
// 1 failed (also: another zhxd holds the run directory), 2 wrong usage or an invalid configuration.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"zhx/daemon"
)

func main() {
	daemon.Stage()
	if code, played := daemon.Presence(); played {
		os.Exit(code)
	}
	// Whoever reads the log may go (zhxd | tee): a failed write, not the end of zhxd. Caught, not ignored: children would
	// inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	var o daemon.Options
	var keeper, version bool
	flags := flag.NewFlagSet("zhxd", flag.ContinueOnError)
	flags.StringVar(&o.Config, "config", daemon.DefaultConfig, "the configuration `FILE`")
	flags.StringVar(&o.RunDir, "run-dir", "", "`DIR` for sockets and state, instead of [daemon] run_dir")
	flags.StringVar(&o.LogFile, "log", "", "write the log to `FILE` (1 MiB, one older) instead of stderr")
	flags.BoolVar(&keeper, "keeper", false, "only keep a zhxd with the same arguments alive")
	flags.BoolVar(&version, "version", false, "print the version")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(os.Stderr, "zhxd: unexpected argument %q; clients are started with zhxctl start NAME\n", flags.Arg(0))
		return 2
	case version:
		fmt.Println("zhxd", daemon.Version)
		return 0
	}
	if keeper {
		return daemon.RunKeeper(context.Background(), o)
	}
	err := daemon.Run(context.Background(), o)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "zhxd:", err)
	if errors.Is(err, daemon.ErrConfig) {
		return 2
	}
	return 1
}
