// Who may send, publish and subscribe: the keys may_… of clients.toml. Each list is asked of the client that it belongs to, so
// a message needs the word of both sides; a name that no client has, or none, brings no list along.
package daemon

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/ipc/wire"
	"zhx/procman"
)

// topicWord marks a topic, or a pattern of topics, for explain.
const topicWord = "topic:"

// rule is one list that has to have a pattern for what is asked.
type rule struct {
	client, key string
	patterns    []string
	match       func(pattern, what string) bool
	what        string // a name, a topic or a pattern
}

// by is the pattern that says yes.
func (r *rule) by() (pattern string, ok bool) {
	i := slices.IndexFunc(r.patterns, func(p string) bool { return r.match(p, r.what) })
	if i < 0 {
		return "", false
	}
	return r.patterns[i], true
}

func (r *rule) refusal() error {
	about := fmt.Sprintf("%q", r.what)
	if r.what == "" {
		about = "a sender that says no name"
	}
	return fmt.Errorf("%s of client %q has no pattern for %s", r.key, r.client, about)
}

// May implements broker.Gate. A client's process that says no name, or a free one, is bound by its client's lists all the same.
func (d *Daemon) May(who any, source string, what broker.Action, target string) error {
	var room [2]rule // it may be asked for each message
	by := d.owner(source)
	if v, ok := who.(*visitor); ok && by == nil {
		if t := v.tree.Load(); t != nil {
			by = d.client(t.Name)
		}
	}
	for _, r := range d.rules(room[:0], by, source, what, target) {
		if _, ok := r.by(); !ok {
			return r.refusal()
		}
	}
	return nil
}

// rules appends the lists that decide, all of which must say yes; by is the sender's client, nil: none. zhxctl and zhxd may everything.
func (d *Daemon) rules(rs []rule, by *client, source string, what broker.Action, target string) []rule {
	if wire.Reserved(source) {
		return rs
	}
	if c := by; c != nil {
		c.mu.Lock()
		switch what {
		case broker.SendTo:
			rs = append(rs, rule{c.name, "may_send_to", c.conf.MaySendTo, glob, target})
		case broker.Publish:
			rs = append(rs, rule{c.name, "may_publish", c.conf.MayPublish, wire.MatchTopic, target})
		case broker.Subscribe:
			rs = append(rs, rule{c.name, "may_subscribe", c.conf.MaySubscribe, covers, target})
		}
		c.mu.Unlock()
	}
	if c := d.owner(target); c != nil && what == broker.SendTo {
		c.mu.Lock()
		rs = append(rs, rule{c.name, "may_receive_from", c.conf.MayReceiveFrom, glob, source})
		c.mu.Unlock()
	}
	return rs
}

func glob(pattern, name string) bool {
	ok, _ := path.Match(pattern, name) // names have no slash, and patterns nothing special but *
	return ok
}

// covers tells whether all topics that asked means are also meant by pattern.
func covers(pattern, asked string) bool {
	return wire.MatchTopic(pattern, asked) && (strings.HasSuffix(pattern, ">") || !strings.HasSuffix(asked, ">"))
}

// Explain implements control.Backend.
func (b backend) Explain(_ context.Context, from, to string) (control.Explanation, error) {
	x := control.Explanation{From: from, To: to, Allowed: true, Identity: b.identity(from)}
	actions, target := []broker.Action{broker.SendTo}, to
	topic, isTopic := strings.CutPrefix(to, topicWord)
	switch {
	case !wire.ValidName(from):
		return x, control.Errorf(control.CodeUsage, "", "explain: %q is no name", from)
	case !isTopic && !wire.ValidName(to):
		return x, control.Errorf(control.CodeUsage, "", "explain: %q is no name, and no topic as %sNAME", to, topicWord)
	case isTopic && wire.ValidTopic(topic):
		actions, target = []broker.Action{broker.Publish, broker.Subscribe}, topic
	case isTopic && wire.ValidPattern(topic):
		actions, target = []broker.Action{broker.Subscribe}, topic
	case isTopic:
		return x, control.Errorf(control.CodeUsage, "", "explain: %q is no topic", topic)
	}
	for _, what := range actions {
		for _, r := range b.rules(nil, b.owner(from), from, what, target) {
			row := control.Rule{Client: r.client, Key: r.key, Patterns: r.patterns, For: r.what}
			if row.Pattern, row.Allowed = r.by(); !row.Allowed {
				x.Allowed = false
				x.Why = append(x.Why, r.refusal().Error())
			}
			x.Rules = append(x.Rules, row)
		}
	}
	if isTopic {
		return x, nil
	}
	st := b.Standing(to)
	x.State, x.Receives = states[st.State], b.bus.Connected(to)
	if !st.Managed && x.Receives {
		x.State = states[wire.StateReady]
	}
	if st.Hold.Messages > 0 {
		x.Hold = &control.HoldStatus{Messages: st.Hold.Messages, Bytes: st.Hold.Bytes, For: control.Seconds(st.Hold.For), Now: st.Expects && !x.Receives}
	}
	return x, nil
}

var states = map[uint8]string{wire.StateAbsent: "absent", wire.StateRunning: "running", wire.StateReady: "ready", wire.StateLate: "late",
	wire.StateRestarting: "restarting", wire.StateFailed: "failed", wire.StateStopped: "stopped"}

// identity says, for people, who can speak under a name now.
func (d *Daemon) identity(name string) string {
	c := d.owner(name)
	switch {
	case wire.Reserved(name):
		return "zhx itself: nobody else can have this name"
	case c == nil:
		return "whoever comes first: no client has this name"
	}
	st, _ := d.procs.StatusOf(c.name)
	who := fmt.Sprintf("processes of run %d of client %s", st.Run, c.name)
	switch {
	case st.StoppedBy != "":
		who = fmt.Sprintf("processes of client %s's user, as it is stopped by hand", c.name)
	case st.State != procman.Running && st.PID == 0:
		who = fmt.Sprintf("nobody now, as client %s does not run", c.name)
	}
	if !d.enforcing() {
		who += `; others are only told of in the log (identity = "warn")`
	}
	return who
}
