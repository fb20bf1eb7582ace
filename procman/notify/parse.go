package notify

// This file is what a datagram says: pure, and fuzzed.

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A Message is what one datagram says. Of a variable that occurs twice the first counts, as in systemd.
type Message struct {
	PID, UID int // the sender as the kernel has it: it may be dead, and PID be another's by now; 0 and -1: not known

	Ready, Stopping, Reloading bool           // more than one may be said: STOPPING outweighs READY, and that RELOADING
	Watchdog                   bool           // WATCHDOG=1: a feed
	Trigger                    bool           // WATCHDOG=trigger: act as for a lapse, be the watchdog armed or not
	Barrier                    bool           // BARRIER=1: nothing else is said
	Status                     *string        // valid UTF-8, printable, one line, up to StatusMax; "" takes the status back; nil: not said
	MainPID                    int            // > 0; as the sender claims: the caller looks whose that is; 0: not said
	WatchdogTimeout            *time.Duration // WATCHDOG_USEC: 0 is off; nil: not said
	ExtendTimeout              time.Duration  // EXTEND_TIMEOUT_USEC: > 0, from now; 0: not said
	Checkpoint                 string         // X_ZHX_CHECKPOINT, zhx's own: 1 to CheckpointMax of A-Z a-z 0-9 _ -; "": not said

	Malformed error // the first thing that was wrong; it names the variable. The rest is as good as if that had not been there; nil: nothing
}

var (
	errLong    = fmt.Errorf("longer than %d bytes", DatagramMax)
	errEmpty   = errors.New("it is empty")
	errNUL     = errors.New("a NUL byte in it")
	errBarrier = errors.New("BARRIER=1 with other variables")
)

// Parse reads a datagram as systemd does: lines VAR=VALUE that end with LF or CR, a NUL at the end allowed, what it does
// not know ignored. The error, also in Malformed, is the first thing wrong; the message is then what remains: nothing for a
// datagram that is empty, too long, has a NUL byte, or BARRIER=1 beside something else; else all but the malformed values.
func Parse(b []byte) (Message, error) {
	m, err := parse(b)
	m.UID, m.Malformed = -1, err
	return m, err
}

func parse(b []byte) (m Message, wrong error) {
	if len(b) > DatagramMax {
		return m, errLong
	}
	b = bytes.TrimSuffix(b, []byte{0})
	if bytes.IndexByte(b, 0) >= 0 {
		return m, errNUL
	}
	lines := 0
	var seen []string // of the variables that zhx has a use for
	for line := range strings.FieldsFuncSeq(string(b), func(r rune) bool { return r == '\n' || r == '\r' }) {
		lines++
		name, value, ok := strings.Cut(line, "=")
		if !ok || slices.Contains(seen, name) {
			continue
		}
		switch known, err := m.set(name, value); {
		case !known: // ignored, as sd_notify(3) has it
		case err == nil:
			seen = append(seen, name)
		case wrong == nil:
			wrong = fmt.Errorf("%s=%.32q: %w", name, value, err)
		}
	}
	switch {
	case lines == 0:
		return Message{}, errEmpty
	case m.Barrier && lines > 1:
		return Message{}, errBarrier
	}
	return m, wrong
}

// set puts one variable into m; known tells whether zhx has a use for it. After an error m is as it was.
func (m *Message) set(name, value string) (known bool, err error) {
	switch name {
	case "READY":
		m.Ready, err = one(value)
	case "STOPPING":
		m.Stopping, err = one(value)
	case "RELOADING":
		m.Reloading, err = one(value)
	case "BARRIER":
		m.Barrier, err = one(value)
	case "WATCHDOG":
		if m.Trigger = value == "trigger"; !m.Trigger {
			m.Watchdog, err = one(value)
		}
	case "STATUS":
		text := printable(value)
		m.Status = &text
	case "MAINPID":
		m.MainPID, err = pid(value)
	case "WATCHDOG_USEC":
		var d time.Duration
		if d, err = microseconds(value); err == nil {
			m.WatchdogTimeout = &d
		}
	case "EXTEND_TIMEOUT_USEC":
		m.ExtendTimeout, err = microseconds(value)
	case "X_ZHX_CHECKPOINT":
		m.Checkpoint, err = checkpoint(value)
	default:
		return false, nil
	}
	return true, err
}

// one reads a variable that has but one meaning: READY=0 is not defined.
func one(value string) (bool, error) {
	if value != "1" {
		return false, errors.New("not 1")
	}
	return true, nil
}

func pid(value string) (int, error) {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 1 || value[0] == '+' {
		return 0, errors.New("not a process's number")
	}
	return int(n), nil
}

func checkpoint(value string) (string, error) {
	strange := strings.Trim(value, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
	if value == "" || len(value) > CheckpointMax || strange != "" {
		return "", errors.New("not a checkpoint's name")
	}
	return value, nil
}

// microseconds reads a time; systemd writes "for ever" as the highest number, and that is no time: 0.
func microseconds(value string) (time.Duration, error) {
	n, err := strconv.ParseUint(value, 10, 64)
	switch {
	case err != nil:
		return 0, errors.New("not a number of microseconds")
	case n == math.MaxUint64:
		return 0, nil
	}
	return time.Duration(min(n, math.MaxInt64/1000)) * time.Microsecond, nil // 292 years at most
}

// printable is text with every byte and rune replaced that a terminal could take for more than text, and cut at StatusMax.
func printable(text string) string {
	const more = "…"
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return utf8.RuneError
		}
		return r
	}, text)
	if len(text) <= StatusMax {
		return text
	}
	end := StatusMax - len(more)
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + more
}
