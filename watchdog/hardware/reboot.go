// The restart of the board.

package hardware

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Board is the two system calls of a restart. A test gives its own; Real has the real ones, and nothing else does.
type Board struct {
	Sync   func() // may hang
	Reboot func() error
}

// Real is the board that zhxd runs on: Reboot restarts it at once, without a word to init.
func Real() Board {
	return Board{
		Sync:   unix.Sync,
		Reboot: func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) },
	}
}

// Restart writes what files still have in memory to the disks, for at most limit, and restarts the board. If that
// works it does not return. The watchdog device stays open and armed: it resets the board if the restart hangs before
// the kernel stops the device (omap_wdt: in the shutdown of devices).
func (b Board) Restart(limit time.Duration) error {
	synced := make(chan struct{})
	go func() { // a dead disk holds sync(2) for ever: then this goroutine is left behind
		b.Sync()
		close(synced)
	}()
	select {
	case <-synced:
	case <-time.After(limit):
	}
	err := b.Reboot()
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: zhxd needs CAP_SYS_BOOT", err)
	}
	if err != nil {
		return fmt.Errorf("restart the board: %w", err)
	}
	return nil
}
