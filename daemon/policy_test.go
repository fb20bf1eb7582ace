package daemon

import (
	"context"
	"strings"
	"testing"

	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/ipc/wire"
)

const policed = `[client.a]
command = ["sleep", "1h"]
names = ["a2"]
may_send_to = ["b", "w-*"]
may_publish = ["gps.*", "log.a.>"]
may_subscribe = ["gps.>", "*.state"]
[client.b]
command = ["sleep", "1h"]
may_receive_from = ["a", "x*"]
[client.open]
command = ["sleep", "1h"]
[client.shut]
command = ["sleep", "1h"]
may_send_to = []
may_receive_from = []
may_publish = []
may_subscribe = []
`

// Both sides must agree, what nobody restricts is open, and a refusal names its rule.
func TestPolicyKeys(t *testing.T) {
	z, d := serveMade(t, policed)
	const send, publish, subscribe = broker.SendTo, broker.Publish, broker.Subscribe
	for _, row := range []struct {
		source string
		what   broker.Action
		target string
		no     string
	}{
		{"a", send, "b", ""},
		{"a", send, "w-1", ""},
		{"a", send, "w", `may_send_to of client "a" has no pattern for "w"`},
		{"a", send, "open", `may_send_to of client "a" has no pattern for "open"`},
		{"a2", send, "b", `may_receive_from of client "b" has no pattern for "a2"`},
		{"a2", send, "open", `may_send_to of client "a" has no pattern for "open"`},
		{"open", send, "b", `may_receive_from of client "b" has no pattern for "open"`},
		{"open", send, "a2", ""},
		{"open", send, "anybody", ""},
		{"x1", send, "b", ""},
		{"y1", send, "b", `may_receive_from of client "b" has no pattern for "y1"`},
		{"", send, "b", `may_receive_from of client "b" has no pattern for a sender that says no name`},
		{"", send, "open", ""},
		{"y1", send, "y2", ""},
		{"shut", send, "open", `may_send_to of client "shut" has no pattern for "open"`},
		{"open", send, "shut", `may_receive_from of client "shut" has no pattern for "open"`},
		{"zhxctl", send, "shut", ""},
		{"zhxd", send, "shut", ""},
		{"a", publish, "gps.fix", ""},
		{"a", publish, "gps.fix.raw", `may_publish of client "a" has no pattern for "gps.fix.raw"`},
		{"a", publish, "log.a.x.y", ""},
		{"a", publish, "b", `may_publish of client "a" has no pattern for "b"`},
		{"shut", publish, "x", `may_publish of client "shut" has no pattern for "x"`},
		{"open", publish, "b", ""},
		{"y1", publish, "gps.fix", ""},
		{"a", subscribe, "gps.>", ""},
		{"a", subscribe, "gps.*", ""},
		{"a", subscribe, "gps.fix.>", ""},
		{"a", subscribe, "x.state", ""},
		{"a", subscribe, "*.state", ""},
		{"a", subscribe, "*.>", `may_subscribe of client "a" has no pattern for "*.>"`},
		{"a", subscribe, ">", `may_subscribe of client "a" has no pattern for ">"`},
		{"a", subscribe, "*.*", `may_subscribe of client "a" has no pattern for "*.*"`},
		{"shut", subscribe, "x", `may_subscribe of client "shut" has no pattern for "x"`},
		{"", subscribe, ">", ""},
	} {
		err := d.May(nil, row.source, row.what, row.target)
		if (err == nil) != (row.no == "") || err != nil && err.Error() != row.no {
			t.Errorf("%q %d %q: %v, want %q", row.source, row.what, row.target, err, row.no)
		}
	}
	if covers("a.*", "a.>") || !covers("a.>", "a.*") || covers("*", ">") || !covers(">", "*.>") {
		t.Error("a pattern that means more than another is covered by it")
	}

	s, _ := z.speak("unix", z.socket(), "") // who says no name
	message := wire.Frame{Type: wire.TypeMessage, Code: wire.LevelAccepted, To: "shut"}
	s.say(message)
	if f := s.hear(wire.TypeError, wire.TypeAck); f.Code != wire.ErrDenied || string(f.Body) != `may_receive_from of client "shut" has no pattern for a sender that says no name` {
		t.Errorf("%+v %s", f, f.Body)
	}
	z.edit("[client.shut]\ncommand = [\"sleep\", \"1h\"]\n" + policed[:strings.Index(policed, "[client.shut]")])
	z.logged("changed=\"may_send_to, may_receive_from, may_publish, may_subscribe\"")
	s.say(message)
	if f := s.hear(wire.TypeError, wire.TypeAck); f.Code == wire.ErrDenied {
		t.Errorf("after an edit: %+v %s", f, f.Body)
	}
}

// explain shows each rule of both sides, and what else there is to know.
func TestExplain(t *testing.T) {
	z := serve(t, policed+"hold = { messages = 3 }\n")
	ctx := context.Background()
	x, err := z.Explain(ctx, "a", "b")
	if err != nil || !x.Allowed || len(x.Rules) != 2 || x.Rules[0].Pattern != "b" || x.Rules[1].Client != "b" || x.Rules[1].Key != "may_receive_from" ||
		x.State != "ready" || x.Receives || x.Hold == nil || x.Hold.Messages != 256 || x.Hold.Now || x.Identity != "processes of run 1 of client a" {
		t.Errorf("%+v %v", x, err)
	}
	x, err = z.Explain(ctx, "open", "shut")
	if err != nil || x.Allowed || len(x.Why) != 1 || x.Why[0] != `may_receive_from of client "shut" has no pattern for "open"` || x.Hold.Messages != 3 || x.Hold.For != 10 {
		t.Errorf("%+v %v", x, err)
	}
	x, err = z.Explain(ctx, "a", "topic:gps.fix")
	if err != nil || !x.Allowed || len(x.Rules) != 2 || x.Rules[0].Pattern != "gps.*" || x.Rules[1].Pattern != "gps.>" || x.State != "" {
		t.Errorf("%+v %v", x, err)
	}
	x, err = z.Explain(ctx, "a", "topic:>")
	if err != nil || x.Allowed || len(x.Rules) != 1 || x.Rules[0].Key != "may_subscribe" {
		t.Errorf("%+v %v", x, err)
	}
	x, err = z.Explain(ctx, "stranger", "nobody")
	if err != nil || !x.Allowed || len(x.Rules) != 0 || x.State != "absent" || x.Hold != nil || x.Identity != "whoever comes first: no client has this name" {
		t.Errorf("%+v %v", x, err)
	}
	for _, bad := range [][2]string{{"a b", "b"}, {"a", "topic:"}, {"a", "b.c"}} {
		if _, err := z.Explain(ctx, bad[0], bad[1]); err == nil || err.(*control.Error).Code != control.CodeUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
