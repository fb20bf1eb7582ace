package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"zhx/daemon/control"
	"zhx/ipc"
)

func TestLayout(t *testing.T) {
	m := arrival{Kind: "publication", From: "gps", To: "gps.fix", Text: "a \"b\"\n\x1b[1m"}
	for _, tt := range []struct{ purpose, format, want string }{
		{"all words", "{topic}|{to}|{from}|{body}", "gps.fix|gps.fix|gps|a \"b\"\n\x1b[1m"},
		{"the body as JSON, in an object of the format's own", `{"t":{json}}`, `{"t":"a \"b\"\n\u001b[1m"}`},
		{"nothing", "", ""},
		{"braces that are no word", "{} {Topic} {a b} {topic", "{} {Topic} {a b} {topic"},
		{"what is filled in is not looked at again", "{body}{body}", m.Text + m.Text},
	} {
		if err := checkLayout(tt.format); err != nil {
			t.Errorf("%s: %v", tt.purpose, err)
		} else if got := fill(tt.format, m); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.purpose, got, tt.want)
		}
	}
	if got := fill("{from}", arrival{}); got != "-" {
		t.Errorf("a sender without a name is %q", got)
	}
	err := checkLayout("{topic} {bdy}")
	if e, ok := errors.AsType[*control.Error](err); !ok || e.Code != control.CodeUsage || !strings.Contains(e.Text, "no {bdy}") {
		t.Error("a word that there is not:", err)
	}
}

// A refusal has an exit code, its word in the text, and what to do.
func TestRefusals(t *testing.T) {
	zhxd := func(c ipc.Code, text string) error {
		return fmt.Errorf("zhx: somehow: %w", &ipc.Error{Code: c, To: "gps", Text: text})
	}
	for _, tt := range []struct {
		purpose    string
		to, from   string
		err        error
		code       int
		text, hint string
	}{
		{"no such name", "gps", "ui", zhxd(ipc.ErrNoName, ""), 4, `send to "gps": noname: nobody has this name`, "zhxctl status"},
		{"between two runs, and back soon", "gps", "ui", &ipc.Error{Code: ipc.ErrRestarting, Retry: time.Second}, 1,
			`send to "gps": restarting: its client is being restarted, and is started again in 1s`, "zhxctl watch gps"},
		{"stopped, in zhxd's words", "gps", "ui", zhxd(ipc.ErrStopped, "by root"), 1, `send to "gps": stopped: by root`, "zhxctl start gps"},
		{"denied", "gps", "ui", zhxd(ipc.ErrDenied, "no"), 6, `send to "gps": denied: no`, "zhxctl explain ui gps"},
		{"a topic denied", "topic:a.b", "ui", zhxd(ipc.ErrDenied, "no"), 6, `send to "a.b": denied: no`, "zhxctl explain ui topic:a.b"},
		{"denied to somebody without a name", "gps", "", zhxd(ipc.ErrDenied, "no"), 6, `send to "gps": denied: no`, ""},
		{"too late", "gps", "ui", zhxd(ipc.ErrExpired, ""), 5, `send to "gps": expired: expired`, "zhxctl watch gps"},
		{"no sense", "g p s", "ui", zhxd(ipc.ErrBad, ""), 2, `send to "g p s": bad: malformed`, ""},
		{"a code of a later zhxd", "gps", "ui", zhxd(200, "new"), 1, `send to "gps": error: new`, ""},
		{"no answer", "gps", "ui", fmt.Errorf("x: %w", context.DeadlineExceeded), 5, `send to "gps": no answer in time; what was asked for may still be done`, ""},
		{"ctrl-C", "gps", "ui", context.Canceled, 1, `send to "gps": interrupted; what was asked for may still be done`, ""},
		{"the connection is gone", "gps", "ui", ipc.ErrLost, 7, `send to "gps": closed: the connection was lost; it is not known what was done`, "zhxctl status"},
		{"what is told already stays", "gps", "ui", control.Errorf(3, "h", "t"), 3, "t", "h"},
	} {
		e, ok := errors.AsType[*control.Error](refusal("send to", tt.to, tt.from, tt.err))
		if !ok || e.Code != tt.code || e.Text != tt.text || e.Hint != tt.hint {
			t.Errorf("%s: got %+v\nwant %d %q %q", tt.purpose, e, tt.code, tt.text, tt.hint)
		}
	}
	if err := refusal("send to", "gps", "", nil); err != nil {
		t.Error("no refusal:", err)
	}
}

// What zhxd shows of others.
func TestTapAndExplain(t *testing.T) {
	at := control.Stamp{Time: time.UnixMilli(1700000000123)}
	for _, tt := range []struct {
		purpose  string
		b        canned
		args     string
		code     int
		out, err string
	}{
		{"a message", canned{passes: []control.TapEvent{{At: at, Kind: "message", From: "a", To: "b", Size: 3, Text: "h\x1bi\x00\x00", Outcome: "written", Lost: 2}}},
			"tap", 0, "22:13:20.123  a -> b  message of 3 bytes, written: h\\x1bi\n", "zhxctl: 2 messages not shown here\n"},
		{"from nobody, without a body", canned{passes: []control.TapEvent{{At: at, Kind: "publication", To: "a.b", Outcome: "published"}}},
			"tap a.*", 0, "22:13:20.123  - -> a.b  publication of 0 bytes, published\n", ""},
		{"as JSON", canned{passes: []control.TapEvent{{At: at, Kind: "request", From: "a", To: "b", Size: 1, Text: "<", Outcome: "held"}}},
			"tap --json", 0, `{"at":"2023-11-14T22:13:20.123Z","kind":"request","from":"a","to":"b","size":1,"text":"<","outcome":"held"}` + "\n", ""},
		{"a number of messages that is none", canned{}, "tap --count -1", 2, "", "zhxctl: tap: count=\"-1\" is not a number of messages\n"},
		{"allowed, of two rules", canned{says: control.Explanation{From: "a", To: "b", Allowed: true, Identity: "who", State: "ready", Receives: true,
			Hold:  &control.HoldStatus{Messages: 256, Bytes: 1024, For: 10},
			Rules: []control.Rule{{Client: "a", Key: "may_send_to", For: "b", Allowed: true, Pattern: "*"}}}}, "explain a b", 0,
			"a -> b: allowed\n  may_send_to  of a: yes, \"*\" means \"b\"\n  from     who\n  to       ready, receives\n" +
				"  hold     while it restarts 256 messages wait, 1024 bytes, 10s\n", ""},
		{"denied", canned{says: control.Explanation{From: "a", To: "topic:t", Identity: "who",
			Rules: []control.Rule{{Client: "a", Key: "may_publish", Patterns: []string{"x", "y"}, For: "t"}}}}, "explain a topic:t", 6,
			"a -> topic:t: denied\n  may_publish  of a: no, none of [\"x\" \"y\"] means \"t\"\n  from     who\n", ""},
		{"nobody's rule", canned{says: control.Explanation{From: "a", To: "b", Allowed: true, State: "absent"}}, "explain a b", 0,
			"a -> b: allowed, since no client's rule is asked\n  to       absent\n", ""},
	} {
		code, out, errOut := ask(t, &tt.b, strings.Fields(tt.args)...)
		if code != tt.code || out != tt.out || errOut != tt.err {
			t.Errorf("%s:\ngot  %d\n%s%s\nwant %d\n%s%s", tt.purpose, code, out, errOut, tt.code, tt.out, tt.err)
		}
	}
}
