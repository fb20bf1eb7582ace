// The prototype's clients look for their server with `ps -a | grep zhx_server` and end when they do not find it. procps
// lists with -a only processes that have a terminal and do not lead a session. So zhxd keeps two tiny sleeping processes
// on a pseudo-terminal of its own, however it was started itself:
//
//	zhxd (holds the master) ── leader: has the session and its terminal, shows nothing
//	                              └─ zhx_server: what ps -a lists
//
// When zhxd dies, the kernel closes the master and hangs both up (SIGHUP): the name is gone from `ps -a` with the server.
package daemon

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"zhx/procman/proc"
)

// presenceName is the process name that the prototype's clients look for.
const presenceName = "zhx_server"

const presenceLeader = "zhx_presence"

// Between two tries to bring it up: the first, doubled up to the last. A system without pseudo-terminals is not told more
// often.
const (
	presenceDelay    = time.Second
	presenceDelayMax = 5 * time.Minute
)

// Stage makes this process what it was started as if that is the stage of a child (package proc), and then does not return.
// main calls it before all else.
func Stage() { proc.StageMain() }

// Presence plays one of the two sleepers if the program was started as one (argv[0] says so) and then never returns but
// with an exit code. main calls it early.
func Presence() (code int, played bool) {
	switch os.Args[0] {
	case presenceLeader:
		c := exec.Command("/proc/self/exe")
		c.Args = []string{presenceName}
		c.Stdin = os.Stdin
		if err := c.Run(); err != nil {
			return 1, true
		}
		return 0, true
	case presenceName:
		// ps shows the name of the thread group's leader, which this file is, whichever thread writes it.
		if err := os.WriteFile("/proc/self/comm", []byte(presenceName), 0); err != nil {
			return 1, true
		}
		for {
			unix.Pause() // until the terminal hangs up
		}
	}
	return 0, false
}

// keepPresence keeps the two sleepers alive until ctx ends, then ends them.
func keepPresence(ctx context.Context, k *proc.Kernel, log *slog.Logger) {
	for delay := presenceDelay; ctx.Err() == nil; {
		began := time.Now()
		err := presence(ctx, k)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > presenceDelayMax {
			delay = presenceDelay
		}
		log.Warn("prototype presence failed", "err", err, "next", "tried again in "+delay.String())
		rest(ctx, delay)
		delay = min(2*delay, presenceDelayMax)
	}
}

// presence runs the sleepers once, and returns when they are gone, with why.
func presence(ctx context.Context, k *proc.Kernel) error {
	master, slave, err := proc.OpenPTY()
	if err != nil {
		return err
	}
	defer master.Close()
	defer slave.Close()

	tree := k.NewTree(presenceLeader, 0, rand.Text(), os.Getuid())
	defer tree.Close()
	child, err := k.Start(proc.Command{
		Path: "/proc/self/exe", Argv: []string{presenceLeader}, Dir: "/", TTY: slave, Tree: tree,
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", presenceName, err)
	}
	slave.Close() // the sleepers hold it
	select {
	case <-ctx.Done():
	case <-child.Exited():
	}
	tree.Kill()
	err = tree.WaitEmpty(context.WithoutCancel(ctx))
	child.Reap()
	if err == nil {
		err = fmt.Errorf("%s ended", presenceName)
	}
	return err
}
