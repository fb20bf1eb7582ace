package hardware

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// The order of the calls, how long a hung sync holds the reboot back, and what errors say.
func TestRestart(t *testing.T) {
	const limit = 5 * time.Second
	for _, tt := range []struct {
		name   string
		sync   time.Duration
		reboot error
		calls  []string
		after  time.Duration
		err    string // part of it; "" none
	}{
		{"synced", time.Second, nil, []string{"synced", "reboot"}, time.Second, ""},
		{"a disk that hangs", time.Hour, nil, []string{"reboot"}, limit, ""},
		{"not allowed", 0, unix.EPERM, []string{"synced", "reboot"}, 0, "CAP_SYS_BOOT"},
		{"another error", 0, unix.EINVAL, []string{"synced", "reboot"}, 0, "restart the board: invalid argument"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls []string
				start := time.Now()
				err := Board{
					Sync: func() {
						time.Sleep(tt.sync)
						if tt.sync < limit { // else nobody waits for it, and calls is the test's
							calls = append(calls, "synced")
						}
					},
					Reboot: func() error { calls = append(calls, "reboot"); return tt.reboot },
				}.Restart(limit)
				if took := time.Since(start); took != tt.after {
					t.Errorf("after %v, want %v", took, tt.after)
				}
				if !errors.Is(err, tt.reboot) || err != nil && (tt.err == "" || !strings.Contains(err.Error(), tt.err)) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				if !slices.Equal(calls, tt.calls) {
					t.Errorf("calls %q, want %q", calls, tt.calls)
				}
				time.Sleep(tt.sync) // until it is over
			})
		})
	}
}
