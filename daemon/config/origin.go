// Where the value of a key comes from: for people who wonder why a client is as it is.

package config

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"zhx/ipc/broker"
	"zhx/procman"
	"zhx/watchdog/probe"
)

// KeySet is a key with its value.
type KeySet struct {
	Key   string
	Value string // as TOML
	From  string // the section that sets it: "client.modem", "defaults", "watchdog"; "" if none does
	Line  int    // in the file; 0 if none does
}

// KeysOf lists what each key of a client is, in the order in which they are documented; nil if there is no such client. A value
// stands as the file has it, unless it means more than it says: by ${VARIABLE}, [defaults] or another key.
func (c *Config) KeysOf(client string) []KeySet {
	f := &file{path: c.Path, text: c.text}
	if !f.decode() {
		return nil
	}
	return c.keysOf(f, client, "")
}

// Values is for what KeysOf says of keys of many clients: the file is decoded once.
func (c *Config) Values() func(client, key string) string {
	f := &file{path: c.Path, text: c.text}
	if !f.decode() { // it was valid once
		return func(string, string) string { return "" }
	}
	return func(client, key string) (value string) {
		for _, k := range c.keysOf(f, client, key) {
			value = k.Value
		}
		return value
	}
}

// keysOf is KeysOf; with only, of that key alone, and without its line, which takes long to find.
func (c *Config) keysOf(f *file, client, only string) (set []KeySet) {
	i := slices.IndexFunc(c.Clients, func(cl Client) bool { return cl.Name == client })
	if i < 0 {
		return nil
	}
	cl, written := c.Clients[i], Client{}
	is, was := target{client: &cl}, target{client: &written}
	for _, k := range keys {
		if k.section != "client" || only != "" && k.name != only {
			continue
		}
		at, as := f.entry(cl.Base, k.name), ""
		switch {
		case at != nil:
			v := f.tree[at[0]].(map[string]any)
			if len(at) == 3 {
				v = v[at[1]].(map[string]any)
			}
			_ = k.set(&was, v[k.name])                          // it is valid
			if _, table := v[k.name].(map[string]any); !table { // others may have a part in it
				as = inline(v[k.name])
			}
		case k.defaultValue != "":
			k.reset(&was)
			as = k.defaultValue
		case k.name == "watchdog_timeout" && f.md.IsDefined("watchdog"):
			at = []string{"watchdog"}
		case reflect.ValueOf(k.get(&is)).IsZero():
			continue
		}
		if as == "" || !reflect.DeepEqual(k.get(&is), k.get(&was)) {
			as = inline(meaning(k.get(&is)))
		}
		one := KeySet{Key: k.name, Value: as}
		if at != nil && only == "" {
			one.From, one.Line = section(top(at)), f.line(at)
		}
		set = append(set, one)
	}
	return set
}

// meaning is a value that another key has had a part in, as a file would have it.
func meaning(v any) any {
	table := map[string]any{}
	add := func(name string, v any) {
		if !reflect.ValueOf(v).IsZero() {
			table[name] = v
		}
	}
	switch v := v.(type) {
	case time.Duration:
		return short(v)
	case procman.RestartPolicy:
		return string(v)
	case procman.StartLimit:
		add("burst", v.Burst)
		add("interval", short(v.Interval))
	case broker.Hold:
		add("messages", v.Messages)
		add("bytes", v.Bytes)
		add("for", short(v.For))
	case probe.Probe:
		add("exec", v.Exec)
		add("tcp", v.TCP)
		add("unix", v.Unix)
		add("http", v.HTTP)
		add("interval", short(v.Interval))
		add("timeout", short(v.Timeout))
	case map[string]string:
		for name, value := range v {
			table[name] = value
		}
	default:
		return v
	}
	return table
}

// short is a duration as people write it.
func short(d time.Duration) string {
	return strings.Replace(strings.Replace(d.String(), "m0s", "m", 1), "h0m", "h", 1)
}

// inline writes a value as TOML in one line.
func inline(v any) string {
	var parts []string
	switch v := v.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, toml.Key{name}.String()+" = "+inline(v[name]))
		}
		if len(parts) == 0 {
			return "{}"
		}
		return "{ " + strings.Join(parts, ", ") + " }"
	case []any:
		for _, one := range v {
			parts = append(parts, inline(one))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return show(v)
}
