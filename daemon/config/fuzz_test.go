package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Whatever the bytes, there is a Config or Problems that lie within the file; and a valid file says, written anew from its
// Config, the same.
func FuzzConfig(f *testing.F) {
	for _, k := range keys {
		section := strings.Replace(k.section, "client", "client.a", 1)
		f.Add("[" + section + "]\n" + k.name + " = " + k.defaultValue + "\n")
	}
	for _, text := range []string{"", "\n", "a", "[client.a]\ncommand=['x']\n[client.a.x]\n", "[[client]]\n", "client.a.command=['x', \"\"\"\ny\"\"\"]\nclient.a.names=['b']\n", "\xef\xbb\xbf[client]\r\n", "client={a={command=[\n'x']}}", "a = \"\\\x00\"\n", "[client.\"\"]\n", "a=[[[[[{b=[1]}]]]]]"} {
		f.Add(text)
	}
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
			if p.Line < 0 || p.Line > strings.Count(text, "\n")+1 || strings.ContainsFunc(p.Text+p.Section, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%d lines, problem %q", strings.Count(text, "\n")+1, p)
			}
		}
		if c == nil {
			return
		}
		anew, err := Parse("f", []byte(written(c)), inRun)
		if err != nil {
			t.Fatalf("%v in what was written anew:\n%s", err, written(c))
		}
		anew.Sum, anew.Warnings = c.Sum, c.Warnings
		if d := cmp.Diff(c, anew); d != "" {
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
			if k.section == kind {
				fmt.Fprintf(&b, "%s = %s\n", k.name, literal(k, k.get(t)))
			}
		}
	}
	section("daemon", "daemon", &target{daemon: &c.Daemon})
	section("watchdog", "watchdog", &target{watchdog: &c.Watchdog})
	for i := range c.Clients {
		section("client", "client."+c.Clients[i].Name, &target{client: &c.Clients[i]})
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
		if k.name == "strays" {
			return map[bool]string{true: "'kill'", false: "'ignore'"}[v]
		}
		return fmt.Sprint(v)
	case int:
		return fmt.Sprint(v)
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
