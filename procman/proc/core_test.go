package proc

import (
	"errors"
	"os"
	"testing"
)

// TestCoreDumping: 1 is yes, 0 is no, and what the kernel does not say is neither. That it says 1 while it writes is shown where
// a core is waited for, in package procman.
func TestCoreDumping(t *testing.T) {
	for _, c := range []struct {
		purpose, status string
		want            bool
		err             error
	}{
		{"writes", "Name:\tx\nCoreDumping:\t1\nTHP_enabled:\t1\n", true, nil},
		{"does not", "Name:\tx\nCoreDumping:\t0\n", false, nil},
		{"before Linux 4.15", "Name:\tx\nVmRSS:\t1 kB\n", false, errors.ErrUnsupported},
		{"a program's name proves nothing", "Name:\tCoreDumping:\t1\n", false, errors.ErrUnsupported},
	} {
		got, err := coreDumping(1, []byte(c.status))
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %v, %v", c.purpose, got, err)
		}
	}
	if got, err := CoreDumping(os.Getpid()); got || err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("this process: %v, %v", got, err)
	}
	if _, err := CoreDumping(1 << 30); !errors.Is(err, ErrGone) {
		t.Errorf("no process: %v", err)
	}
}
