package proc

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The name ends at the last ')' and may contain anything; a line cut short is no stat.
func TestParseStat(t *testing.T) {
	const rest = " S 2 3 4 34816 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123456789012 1 2"
	tests := map[string]struct {
		line string
		comm string
		ok   bool
	}{
		"plain":           {"17 (cat)" + rest, "cat", true},
		"spaces":          {"17 (tmux: server)" + rest, "tmux: server", true},
		"parentheses":     {"17 ((sd-pam))" + rest, "(sd-pam)", true},
		"looks like two":  {"17 (a) S 1 (b)" + rest, "a) S 1 (b", true},
		"line break":      {"17 (a\nb)" + rest, "a\nb", true},
		"empty name":      {"17 ()" + rest, "", true},
		"cut short":       {"17 (cat) S 2 3", "", false},
		"cut in the name": {"17 (cat", "", false},
		"empty":           {"", "", false},
		"no pid":          {"(cat)" + rest, "", false},
		"environment":     {"17 (cat)" + rest + strings.Repeat(" 0", 25) + " 4096 5000 0", "cat", true},
		"no environment":  {"17 (cat)" + rest + strings.Repeat(" 0", 25) + " 4096 4096 0", "cat", true},
	}
	for name, test := range tests {
		s, ok := parseStat([]byte(test.line))
		want := Stat{ID: ID{17, 123456789012}, Comm: test.comm, State: 'S', PPID: 2, PGID: 3, SID: 4, TTY: 34816, Threads: 9, noEnviron: name == "no environment",
			cpu: 11 * time.Second / userHZ, resident: 2 * int64(os.Getpagesize())}
		if ok != test.ok || ok && s != want {
			t.Errorf("%s: %+v, %v", name, s, ok)
		}
	}
}

// What the kernel says of ourselves, and of nobody.
func TestReadStat(t *testing.T) {
	s, err := ReadStat(os.Getpid())
	sid, _ := unix.Getsid(0)
	if err != nil || s.PID != os.Getpid() || s.PPID != os.Getppid() || s.PGID != unix.Getpgrp() || s.SID != sid || s.UID != os.Geteuid() || !s.Living() {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := ReadStat(1 << 30); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if len(BootID()) != 36 {
		t.Errorf("boot id %q", BootID())
	}
	if n, err := Tracer(os.Getpid()); n != 0 || err != nil {
		t.Errorf("traced by %d, %v", n, err)
	}
	b, err := readProc(os.Getpid(), "environ", maxEnviron)
	if v, found := lookup(b, "PATH"); v != os.Getenv("PATH") || !found || err != nil {
		t.Errorf("%q %v %v", v, found, err)
	}
	if _, found := lookup(b, "PAT"); found {
		t.Error("found by a part of its name")
	}
}

// siginfo as the kernel lays it out: checked against gcc where there is one, for the word size of this build.
func TestSiginfo(t *testing.T) {
	var si siginfo
	want := map[uintptr]uintptr{4: 12, 8: 16}[unsafe.Sizeof(uintptr(0))]
	if got := unsafe.Offsetof(si.pid); got != want || unsafe.Offsetof(si.status) != want+8 {
		t.Errorf("pid at %d, status at %d", got, unsafe.Offsetof(si.status))
	}
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc to compare with")
	}
	file := filepath.Join(t.TempDir(), "a.c")
	source := `#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
_Static_assert(offsetof(siginfo_t, si_pid) == 16 && offsetof(siginfo_t, si_status) == 24 && sizeof(siginfo_t) == 128, "layout");
_Static_assert(CLD_EXITED == 1 && CLD_DUMPED == 3 && CLD_CONTINUED == 6, "codes");
`
	if want == 12 {
		source = strings.NewReplacer("16", "12", "24", "20").Replace(source)
	}
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-fsyntax-only", file}
	if want == 12 {
		args = append(args, "-m32")
	}
	if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
		if want == 12 && strings.Contains(string(out), "No such file") {
			t.Skip("gcc has no 32-bit headers")
		}
		t.Errorf("%v\n%s", err, out)
	}
}

// What peek makes of the kernel's answer: it needs no Kernel, so it runs under an emulator of another processor, too.
func TestPeek(t *testing.T) {
	tests := map[string]Exit{
		"exit 0":        {},
		"exit 200":      {Code: 200},
		"kill -TERM $$": {Code: -1, Signal: unix.SIGTERM},
	}
	for script, want := range tests {
		pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if si, err := waitid(unix.P_PID, pid, unix.WEXITED|unix.WNOWAIT); err != nil || int(si.pid) != pid {
			t.Errorf("%s: process %d is %+v, %v", script, pid, si, err)
		}
		if state, got := peek(pid); state != zombie || got != want {
			t.Errorf("%s: %v %+v", script, state, got)
		}
		if _, err := waitid(unix.P_PID, pid, unix.WEXITED|unix.WNOHANG); err != nil {
			t.Error(err)
		}
		if state, _ := peek(pid); state != notOurs {
			t.Errorf("%s: there after it was reaped", script)
		}
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Error(got)
	}
	if path, ok := unified([]byte("4:pids:/x\n0::/a/b\n")); path != "/a/b" || !ok {
		t.Error(path)
	}
	if got := parseList([]byte("12 345\n6")); len(got) != 3 || got[0] != 12 || got[1] != 345 || got[2] != 6 {
		t.Error(got)
	}
}
