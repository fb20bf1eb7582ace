package proc

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOutOfMemory: what the kernel says of this process, of another and long ago, as one record a read.
func TestOutOfMemory(t *testing.T) {
	self, err := ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &now)
	us := now.Nano() / 1000
	for record, want := range map[string]bool{
		fmt.Sprintf("3,7,%d,-;Out of memory: Killed process 1 (%s) total-vm:1kB, UID:0\n", us, self.Comm):                true,
		fmt.Sprintf("3,7,%d,-;Memory cgroup out of memory: Killed process 1 (%s), UID 0\n SUBSYSTEM=x\n", us, self.Comm): true,
		fmt.Sprintf("3,7,%d,-;Killed process 1 (%sx) total-vm:1kB\n", us, self.Comm):                                     false,
		fmt.Sprintf("3,7,%d,-;Killed process 1 (%s) total-vm:1kB\n", us-2*oomAge.Microseconds(), self.Comm):              false,
		fmt.Sprintf("3,7,%d,-;Out of memory: Kill process 1 (%s) score 9 or sacrifice child\n", us, self.Comm):           false,
		fmt.Sprintf("3,7,%d;Killed process 1 (%s)\n", us, self.Comm):                                                     true,
		"Killed process": false,
	} {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Write(pair[1], []byte(record))
		c := &Child{ID: self.ID, k: &Kernel{kills: &killLog{fd: pair[0], killed: map[string]time.Duration{}}}}
		if got := c.OutOfMemory(); got != want {
			t.Errorf("%q: %t", record, got)
		}
		unix.Close(pair[0])
		unix.Close(pair[1])
	}
}

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
