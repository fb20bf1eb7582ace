package notify

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParse(t *testing.T) {
	const s = time.Second
	tests := []struct {
		why, in string
		want    Message
		err     string // "": none
	}{
		{"what most programs say", "READY=1", Message{Ready: true}, ""},
		{"an end of line is as good as none", "READY=1\n", Message{Ready: true}, ""},
		{"a NUL at the end, as sizeof sends it", "READY=1\x00", Message{Ready: true}, ""},
		{"CR and empty lines part too", "\r\nREADY=1\r\n\nSTOPPING=1\r", Message{Ready: true, Stopping: true}, ""},
		{"reload as Type=notify-reload has it", "RELOADING=1\nMONOTONIC_USEC=2000000", Message{Reloading: true}, ""},
		{"redis", "STATUS=Ready to accept connections\nREADY=1\n", Message{Ready: true, Status: p("Ready to accept connections")}, ""},
		{"a feed", "WATCHDOG=1", Message{Watchdog: true}, ""},
		{"an alarm", "WATCHDOG=trigger", Message{Trigger: true}, ""},
		{"the alarm is spelt so and not else", "WATCHDOG=Trigger", Message{}, `WATCHDOG="Trigger": not 1`},
		{"another timeout", "WATCHDOG_USEC=3000000", Message{WatchdogTimeout: p(3 * s)}, ""},
		{"no timeout", "WATCHDOG_USEC=0", Message{WatchdogTimeout: p(0 * s)}, ""},
		{"infinity is no timeout", "WATCHDOG_USEC=18446744073709551615", Message{WatchdogTimeout: p(0 * s)}, ""},
		{"nearly infinity", "WATCHDOG_USEC=18446744073709551614", Message{WatchdogTimeout: p(math.MaxInt64 / 1000 * time.Microsecond)}, ""},
		{"past infinity", "WATCHDOG_USEC=18446744073709551616", Message{}, `WATCHDOG_USEC="18446744073709551616": not a number of microseconds`},
		{"negative", "WATCHDOG_USEC=-1", Message{}, `WATCHDOG_USEC="-1": not a number of microseconds`},
		{"more time", "EXTEND_TIMEOUT_USEC=5000000", Message{ExtendTimeout: 5 * s}, ""},
		{"a checkpoint", "X_ZHX_CHECKPOINT=main-loop_2\nWATCHDOG=1", Message{Checkpoint: "main-loop_2", Watchdog: true}, ""},
		{"as long as its name may be", "X_ZHX_CHECKPOINT=" + strings.Repeat("x", CheckpointMax), Message{Checkpoint: strings.Repeat("x", CheckpointMax)}, ""},
		{"longer than that", "X_ZHX_CHECKPOINT=" + strings.Repeat("x", CheckpointMax+1), Message{}, `X_ZHX_CHECKPOINT="` + strings.Repeat("x", CheckpointMax) + `": not a checkpoint's name`},
		{"no name", "X_ZHX_CHECKPOINT=", Message{}, `X_ZHX_CHECKPOINT="": not a checkpoint's name`},
		{"a blank within the name", "X_ZHX_CHECKPOINT=a b", Message{}, `X_ZHX_CHECKPOINT="a b": not a checkpoint's name`},
		{"one at a time", "X_ZHX_CHECKPOINT=a\nX_ZHX_CHECKPOINT=b", Message{Checkpoint: "a"}, ""},
		{"time is in digits", "EXTEND_TIMEOUT_USEC=5s", Message{}, `EXTEND_TIMEOUT_USEC="5s": not a number of microseconds`},
		{"the real process", "MAINPID=4711", Message{MainPID: 4711}, ""},
		{"no process has pid 0", "MAINPID=0", Message{}, `MAINPID="0": not a process's number`},
		{"a group is no process", "MAINPID=-7", Message{}, `MAINPID="-7": not a process's number`},
		{"a sign", "MAINPID=+7", Message{}, `MAINPID="+7": not a process's number`},
		{"wider than a pid", "MAINPID=4294967297", Message{}, `MAINPID="4294967297": not a process's number`},
		{"status is taken back", "STATUS=", Message{Status: p("")}, ""},
		{"status has more =", "STATUS=a=b", Message{Status: p("a=b")}, ""},
		{"status cannot paint the terminal", "STATUS=a\tb\x1b[2J\xff\u202e\u0085z", Message{Status: p("a b\ufffd[2J\ufffd\ufffd\ufffdz")}, ""},
		{"a barrier", "BARRIER=1", Message{Barrier: true}, ""},
		{"a barrier with a NUL", "BARRIER=1\x00", Message{Barrier: true}, ""},
		{"nothing beside a barrier counts", "READY=1\nBARRIER=1", Message{}, "BARRIER=1 with other variables"},
		{"not even what is unknown", "BARRIER=1\nX_A=1", Message{}, "BARRIER=1 with other variables"},
		{"not even itself", "BARRIER=1\nBARRIER=1", Message{}, "BARRIER=1 with other variables"},
		{"no barrier", "BARRIER=0\nREADY=1", Message{Ready: true}, `BARRIER="0": not 1`},
		{"not ready is not defined", "READY=0", Message{}, `READY="0": not 1`},
		{"the good parts count", "MAINPID=x\nREADY=1\nERRNO=y", Message{Ready: true}, `MAINPID="x": not a process's number`},
		{"the first counts", "STATUS=a\nSTATUS=b\nWATCHDOG=1\nWATCHDOG=trigger", Message{Status: p("a"), Watchdog: true}, ""},
		{"the first good one counts", "READY=0\nREADY=1", Message{Ready: true}, `READY="0": not 1`},
		{"a long value is not repeated whole", "READY=" + strings.Repeat("0123456789", 10), Message{}, `READY="01234567890123456789012345678901": not 1`},
		{"unknown is not wrong", "X_FOO=1\nFDSTORE=1\nFDNAME=a\nNOTIFYACCESS=all\nready=1\nREADY\nREADY=1", Message{Ready: true}, ""},
		{"a word is no value", "STATUS\nMAINPID", Message{}, ""},
		{"no name", "=1\n==\n=", Message{}, ""},
		{"empty", "", Message{}, "it is empty"},
		{"as good as empty", "\n\r\n\x00", Message{}, "it is empty"},
		{"two NUL", "READY=1\x00\x00", Message{}, "a NUL byte in it"},
		{"a NUL within", "READY=1\x00STOPPING=1", Message{}, "a NUL byte in it"},
		{"as long as it may be", "READY=1\nX=" + strings.Repeat("x", DatagramMax-10), Message{Ready: true}, ""},
		{"longer", "READY=1\nX=" + strings.Repeat("x", DatagramMax-9), Message{}, "longer than 4096 bytes"},
	}
	for _, test := range tests {
		test.want.UID = -1
		got, err := Parse([]byte(test.in))
		if d := cmp.Diff(test.want, got, cmpopts.IgnoreFields(Message{}, "Malformed")); d != "" {
			t.Errorf("%s: %.60q: (-want +got)\n%s", test.why, test.in, d)
		}
		if text(err) != test.err || text(got.Malformed) != test.err {
			t.Errorf("%s: %.60q: error %q and %q, want %q", test.why, test.in, text(err), text(got.Malformed), test.err)
		}
	}
}

// A status is never longer than StatusMax, and is cut between runes.
func TestStatusIsCut(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{strings.Repeat("a", StatusMax), strings.Repeat("a", StatusMax)},
		{strings.Repeat("a", StatusMax+1), strings.Repeat("a", StatusMax-3) + "…"},
		{strings.Repeat("ü", StatusMax/2), strings.Repeat("ü", StatusMax/2)},
		{strings.Repeat("ü", StatusMax), strings.Repeat("ü", StatusMax/2-2) + "…"},
		{strings.Repeat("\xff", StatusMax), strings.Repeat("\ufffd", StatusMax/3-1) + "…"},
	} {
		m, err := Parse([]byte("STATUS=" + test.in))
		if err != nil || *m.Status != test.want {
			t.Errorf("%.20q of %d bytes: %q, %v", test.in, len(test.in), *m.Status, err)
		}
	}
}

func FuzzNotify(f *testing.F) {
	for _, s := range []string{
		"READY=1\nSTATUS=up\n", "BARRIER=1", "BARRIER=1\nREADY=1", "WATCHDOG=trigger\nWATCHDOG_USEC=18446744073709551615", "MAINPID=1\x00",
		"STOPPING=1\nRELOADING=1\nMONOTONIC_USEC=1\nERRNO=2\nEXTEND_TIMEOUT_USEC=9", "STATUS=\xff\x1b\u202e", "X_Y=1\rFDSTORE=1", "\n",
		"X_ZHX_CHECKPOINT=main\nWATCHDOG=1", "X_ZHX_CHECKPOINT=ü",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in := string(b)
		m, err := Parse(b)
		switch {
		case string(b) != in:
			t.Fatal("the datagram was changed")
		case !errors.Is(m.Malformed, err) || (m.Malformed == nil) != (err == nil):
			t.Fatalf("two answers: %v and %v", m.Malformed, err)
		case m.PID != 0 || m.UID != -1:
			t.Fatalf("a datagram says who sent it: %+v", m)
		case m.ExtendTimeout < 0 || m.MainPID < 0 || m.WatchdogTimeout != nil && *m.WatchdogTimeout < 0:
			t.Fatalf("out of range: %+v", m)
		case len(m.Checkpoint) > CheckpointMax || strings.ContainsFunc(m.Checkpoint, func(r rune) bool { return r > 'z' || r <= ' ' || strings.ContainsRune("=\"'\\.,/", r) }):
			t.Fatalf("not a checkpoint's name: %q", m.Checkpoint)
		case m.Watchdog && m.Trigger:
			t.Fatalf("both a feed and an alarm: %+v", m)
		case m.Barrier && !cmp.Equal(m, Message{UID: -1, Barrier: true}):
			t.Fatalf("something beside a barrier: %+v", m)
		case m.Ready && !strings.Contains(in, "READY=1"):
			t.Fatalf("ready of nothing: %+v", m)
		case err != nil && (len(err.Error()) > 400 || !printed(err.Error())):
			t.Fatalf("not an error for a log: %q", err)
		}
		if m.Status != nil {
			s := *m.Status
			if len(s) > StatusMax || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("not a status: %q", s)
			}
		}
	})
}

func printed(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func p[T any](v T) *T { return &v }

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
