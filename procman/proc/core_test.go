package proc

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestCoreDumping: 1 is yes, 0 is no, and a program's name says neither.
func TestCoreDumping(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nCoreDumping:\t1\nTHP_enabled:\t1\n": true,
		"Name:\tx\nCoreDumping:\t0\n":                  false,
		"Name:\tCoreDumping:\t1\nVmSize:\t1 kB\n":      false,
	} {
		if got := coreDumping(os.Getpid(), []byte(status)); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
	if got, err := CoreDumping(os.Getpid()); got || err != nil {
		t.Errorf("this process: %v, %v", got, err)
	}
	if _, err := CoreDumping(1 << 30); !errors.Is(err, ErrGone) {
		t.Errorf("no process: %v", err)
	}
}

// TestCoreDumpingUntold: what a kernel before 4.15 says instead is there all the time that a later one says 1.
func TestCoreDumpingUntold(t *testing.T) {
	p := start(t, open(t, Options{}), "sh", "ulimit -c unlimited; echo $$; exec dd if=/dev/zero of=/dev/null bs=64M 2>/dev/null")
	p.said(t, 1)
	old := []byte("Name:\tdd\nVmSize:\t1 kB\n")
	for st, err := ReadStat(p.PID); err != nil || st.Comm != "dd"; st, err = ReadStat(p.PID) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // of zeroes that it has read: the core is to take a while
	if coreDumping(p.PID, old) {
		t.Error("a process that runs writes a core")
	}
	if err := syscall.Kill(p.PID, syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	told, untold := 0, 0
	for st, err := ReadStat(p.PID); err == nil && st.Living(); st, err = ReadStat(p.PID) {
		if yes, _ := CoreDumping(p.PID); !yes {
			continue
		}
		// It may be through by now, but is not reaped: the mark is there still.
		if told++; !coreDumping(p.PID, old) {
			untold++
		}
	}
	t.Logf("%d times told", told)
	if untold > 0 {
		t.Errorf("%d times of %d, the mark did not say so", untold, told)
	}
	if told == 0 {
		t.Skip("the kernel writes no core here, or not long enough to be seen, or does not tell (before 4.15)")
	}
}
