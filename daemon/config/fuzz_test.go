package config

import (
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"zhx/ipc/broker"
	"zhx/procman"
	"zhx/watchdog"
	"zhx/watchdog/probe"
)

// Whatever the bytes, there is a Config or Problems that lie within the file; and a valid file says, written anew from its
// Config, the same. It is valid by the schema, too.
func FuzzConfig(f *testing.F) {
	for _, k := range keys {
		section := strings.Trim(strings.Replace(heading(k.section), "NAME", "a", 1), "[]")
		f.Add("[" + section + "]\n" + k.name + " = " + k.defaultValue + "\n")
	}
	f.Add("[client.a]\ncommand=['x']\ndeadlines=[{from='a',to='b',within='1s'}]\nprobe={exec=['p','%n'],timeout='2s'}\nabort_signal='ABRT'\ncritical=true\n[client.b]\ncommand=['y']\nprobe={http='http://127.0.0.1/x%20y'}\n")
	f.Add("[client.a]\ncommand=['x%n', '${HOME}%%']\ninstances=2\nlog_file='/%n'\n[client.b]\ncommand=['y']\ndepends_on=['a']\nstart_limit={burst=1,interval='1s'}\nlimit_as='2G'\n[group.c]\nclients=['b','a-1']\nrestart='all'\n")
	f.Add("[defaults]\nmay_send_to=['*-x', '*']\nmay_subscribe=[]\nhold=false\n[client.a]\ncommand=['x']\nhold={for='1s',bytes=5000}\nmay_publish=['a.*.>']\n")
	for _, text := range []string{"", "\n", "a", "[client.a]\ncommand=['x']\n[client.a.x]\n", "[[client]]\n", "client.a.command=['x', \"\"\"\ny\"\"\"]\nclient.a.names=['b']\n", "\xef\xbb\xbf[client]\r\n", "client={a={command=[\n'x']}}", "a = \"\\\x00\"\n", "[client.\"\"]\n", "a=[[[[[{b=[1]}]]]]]"} {
		f.Add(text)
	}
	schema := compile(f, schema(f))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("f", []byte(text), inRun)
		problems, ok := errors.AsType[Problems](err)
		if (c == nil) != ok || ok && !failed(problems) {
			t.Fatalf("config %v, error %v", c != nil, err)
		}
		if c != nil {
			problems = c.Warnings
		}
		for _, p := range problems {
			if p.Line < 0 || p.Line > strings.Count(text, "\n")+1 || p.Column < 0 || p.Column > 0 && (p.Line == 0 || p.Width < 1) || strings.ContainsFunc(p.Text+p.Section, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%d lines, problem %q", strings.Count(text, "\n")+1, p)
			}
		}
		if c == nil {
			return
		}
		if bad := schema.Validate(tree(t, strings.TrimPrefix(text, "\ufeff"))); bad != nil {
			t.Errorf("%q\nis valid, but not by the schema: %v", text, bad)
		}
		anew, err := Parse("f", []byte(written(c)), inRun)
		if err != nil {
			t.Fatalf("%v in what was written anew:\n%s", err, written(c))
		}
		anew.Sum, anew.Warnings = c.Sum, c.Warnings
		for i, cl := range c.Clients { // instances were written as clients
			anew.Clients[i].Base, anew.Clients[i].Instances = cl.Base, cl.Instances
		}
		if d := cmp.Diff(c, anew, sameText); d != "" {
			t.Errorf("written anew as\n%s\nit differs: %s", written(c), d)
		}
	})
}

// written is c as TOML, every key of the table with its value.
func written(c *Config) string {
	var b strings.Builder
	section := func(kind, name string, t *target) {
		fmt.Fprintf(&b, "[%s]\n", name)
		for _, k := range keys {
			if k.section == kind && k.name != "instances" {
				fmt.Fprintf(&b, "%s = %s\n", k.name, literal(k, k.get(t)))
			}
		}
	}
	section("daemon", "daemon", &target{daemon: &c.Daemon})
	section("watchdog", "watchdog", &target{watchdog: &c.Watchdog})
	for i := range c.Clients {
		section("client", "client."+c.Clients[i].Name, &target{client: &c.Clients[i]})
	}
	for i := range c.Groups {
		section("group", "group."+c.Groups[i].Name, &target{group: &c.Groups[i]})
	}
	return b.String()
}

// literal writes a value as TOML.
func literal(k key, v any) string {
	text := func(s string) string { return quote(strings.NewReplacer("%", "%%", "$", "$$").Replace(s)) }
	switch v := v.(type) {
	case time.Duration:
		return quote(v.String())
	case os.FileMode:
		return fmt.Sprintf("'%04o'", v)
	case syscall.Signal:
		return quote(unix.SignalName(v))
	case bool:
		switch {
		case k.name == "strays":
			return map[bool]string{true: "'kill'", false: "'ignore'"}[v]
		case k.section == "group":
			return map[bool]string{true: "'all'", false: "'one'"}[v]
		}
		return fmt.Sprint(v)
	case int:
		if k.name == "umask" {
			return fmt.Sprintf("'%04o'", v)
		}
		return fmt.Sprint(v)
	case []int:
		return strings.ReplaceAll(fmt.Sprint(v), " ", ", ")
	case *uint64:
		switch {
		case v == nil:
			return "''"
		case *v == math.MaxUint64:
			return "'unlimited'"
		}
		return fmt.Sprint(*v)
	case broker.Hold:
		if v == (broker.Hold{}) {
			return "false"
		}
		return fmt.Sprintf("{ messages = %d, bytes = %d, for = '%v' }", v.Messages, v.Bytes, v.For)
	case procman.StartLimit:
		if v.Burst == 0 {
			return "{}"
		}
		return fmt.Sprintf("{ burst = %d, interval = '%v' }", v.Burst, v.Interval)
	case []watchdog.Deadline:
		var items []string
		for _, d := range v {
			items = append(items, fmt.Sprintf("{ from = '%s', to = '%s', within = '%v' }", d.From, d.To, d.Within))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case probe.Probe:
		if !v.Asks() {
			return "{}"
		}
		way := ""
		switch {
		case v.TCP != "":
			way = "tcp = " + text(v.TCP)
		case v.Unix != "":
			way = "unix = " + text(v.Unix)
		case v.HTTP != "":
			way = "http = " + quote(v.HTTP)
		default:
			var items []string
			for _, s := range v.Exec {
				items = append(items, text(s))
			}
			way = "exec = [" + strings.Join(items, ", ") + "]"
		}
		return fmt.Sprintf("{ %s, interval = '%v', timeout = '%v' }", way, v.Interval, v.Timeout)
	case []string:
		var items []string
		for _, s := range v {
			items = append(items, text(s))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case map[string]string:
		var items []string
		for name, s := range v {
			items = append(items, quote(name)+" = "+text(s))
		}
		return "{ " + strings.Join(items, ", ") + " }"
	}
	return text(reflect.ValueOf(v).String())
}

func quote(s string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, "\\U%08X", r)
	}
	return `"` + b.String() + `"`
}
