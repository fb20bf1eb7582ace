package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// violations checks v, as TOML decodes it, by the words of JSON Schema that Schema uses; any other word is one, too.
func violations(at string, schema map[string]any, v any) (bad []string) {
	say := func(format string, args ...any) { bad = append(bad, at+": "+fmt.Sprintf(format, args...)) }
	sub := func(of any, name string, v any) {
		bad = append(bad, violations(at+"."+name, of.(map[string]any), v)...)
	}
	object, _ := v.(map[string]any)
	list, isList := v.([]any)
	if tables, ok := v.([]map[string]any); ok {
		isList = true
		for _, t := range tables {
			list = append(list, t)
		}
	}
	text, isText := v.(string)
	n, isWhole := v.(int64)
	_, isBool := v.(bool)
	properties, _ := schema["properties"].(map[string]any)
	patterns, _ := schema["patternProperties"].(map[string]any)
	for word, want := range schema {
		switch word {
		case "$schema", "title", "description", "default", "properties":
		case "type":
			if ok, known := map[string]bool{"object": object != nil, "array": isList, "string": isText, "integer": isWhole, "boolean": isBool}[want.(string)]; !ok || !known {
				say("%v is no %v", v, want)
			}
		case "enum":
			if !slices.ContainsFunc(want.([]any), func(x any) bool { return reflect.DeepEqual(x, v) }) {
				say("%v is none of %v", v, want)
			}
		case "anyOf":
			if !slices.ContainsFunc(want.([]any), func(s any) bool { return violations(at, s.(map[string]any), v) == nil }) {
				say("%v is nothing of %v", v, want)
			}
		case "pattern":
			if re := regexp.MustCompile(want.(string)); isText && !re.MatchString(text) {
				say("%q does not match %v", text, want)
			}
		case "minLength":
			if isText && utf8.RuneCountInString(text) < int(want.(float64)) {
				say("%q is too short", text)
			}
		case "minimum":
			if isWhole && float64(n) < want.(float64) {
				say("%d is less than %v", n, want)
			}
		case "maximum":
			if isWhole && float64(n) > want.(float64) {
				say("%d is more than %v", n, want)
			}
		case "minItems":
			if isList && len(list) < int(want.(float64)) {
				say("has %d items", len(list))
			}
		case "items":
			for i, item := range list {
				sub(want, fmt.Sprint(i), item)
			}
		case "required":
			for _, name := range want.([]any) {
				if _, ok := object[name.(string)]; object != nil && !ok {
					say("lacks %v", name)
				}
			}
		case "patternProperties", "additionalProperties":
			for _, name := range slices.Sorted(maps.Keys(object)) {
				if properties[name] != nil {
					continue
				}
				matches := false
				for pattern, s := range patterns {
					if regexp.MustCompile(pattern).MatchString(name) {
						if matches = true; word == "patternProperties" {
							sub(s, name, object[name])
						}
					}
				}
				if _, ok := want.(map[string]any); word == "additionalProperties" && !matches && ok {
					sub(want, name, object[name])
				} else if want == false && !matches {
					say("has %s", name)
				}
			}
		default:
			say("the schema has a word of its own, %q", word)
		}
	}
	for name, s := range properties {
		if v, ok := object[name]; ok {
			sub(s, name, v)
		}
	}
	return bad
}

// schema is what Schema prints, as an editor reads it.
func schema(t testing.TB) (s map[string]any) {
	t.Helper()
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func tree(t testing.TB, text string) (v map[string]any) {
	t.Helper()
	if err := toml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// The files that are shipped, and the contract, are valid by the schema.
func TestSchemaFiles(t *testing.T) {
	s := schema(t)
	for _, path := range []string{"../../etc/clients.toml", "../../etc/demo.toml", "testdata/contract.toml"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(data), uncommented(string(data))} {
			if path == "../../etc/demo.toml" {
				text = string(data) // its comments are words
			}
			for _, bad := range violations(path, s, tree(t, text)) {
				t.Error(bad)
			}
		}
	}
}

// Every key of the table is in the schema wherever it may stand, with what it is for and its default, which is valid by it.
func TestSchemaKeys(t *testing.T) {
	top := schema(t)["properties"].(map[string]any)
	for _, name := range sections {
		s := top[name].(map[string]any)
		if named(name) {
			for _, one := range s["patternProperties"].(map[string]any) {
				s = one.(map[string]any)
			}
		}
		properties := s["properties"].(map[string]any)
		if got := slices.Sorted(maps.Keys(properties)); !slices.Equal(got, slices.Sorted(slices.Values(keysOf(name)))) {
			t.Errorf("[%s] has %q", name, got)
		}
		for _, k := range keys {
			if !k.in(name) {
				continue
			}
			one := properties[k.name].(map[string]any)
			if k.shape == nil || one["description"] == "" {
				t.Errorf("%s.%s: %v", name, k.name, one)
			}
			if k.defaultValue != "" {
				v := tree(t, "V = "+k.defaultValue)["V"]
				if bad := violations(k.name, one, v); bad != nil || fmt.Sprint(one["default"]) != fmt.Sprint(v) {
					t.Errorf("the default of %s is %v: %q", k.name, one["default"], bad)
				}
			}
		}
	}
}

// What is wrong for all to see is wrong by the schema; and what is right, however it is written, is right by it.
func TestSchemaValues(t *testing.T) {
	s := schema(t)
	const client = "[client.a]\ncommand = ['x']\n"
	for text, valid := range map[string]bool{
		"":                                                      true,
		"[deamon]\n":                                            false,
		"x = 1\n":                                               false,
		"[client.a]\n":                                          false,
		"[client.'a b']\ncommand=['x']":                         false,
		"[group.a]\nclients = []\n":                             false,
		"[group.a]\nclients = ['a']\n":                          true,
		client + "tty = 'yes'":                                  false,
		client + "nice = 20":                                    false,
		client + "nice = -20":                                   true,
		client + "ready = 'registered'":                         false,
		client + "watchdog_timeout = 9":                         false,
		client + "stop_timeout = '5 s'":                         false,
		client + "stop_timeout = '1m.5s'":                       true,
		client + "stop_timeout = '0'":                           true,
		client + "stop_timeout = '5µs'":                         true,
		client + "umask = '0778'":                               false,
		client + "umask = '27'":                                 true,
		client + "limit_core = '64MiB'":                         true,
		client + "limit_core = '64 MB'":                         false,
		client + "limit_core = 'unlimited'":                     true,
		client + "limit_nofile = 0":                             false,
		client + "hold = false":                                 true,
		client + "hold = true":                                  false,
		client + "hold.for = '1s'":                              true,
		client + "hold.fro = '1s'":                              false,
		client + "start_limit = { burst = 3, interval = '1m' }": true,
		client + "deadlines = [{ from = 'a', to = 'b' }]":       false,
		client + "[[client.a.deadlines]]\nfrom = 'a'\nto = 'b'\nwithin = '1s'": true,
		client + "probe = { http = 'HTTP://127.0.0.1' }":                       true,
		client + "environment = { A = 1 }":                                     false,
		client + "success_exit_codes = [0, 256]":                               false,
		client + "command_ = 1":                                                false,
		"[daemon]\ntcp = ':0'":                                                 true,
		"[daemon]\ntcp = '0.0.0.0:80'":                                         false,
		"[daemon]\nmax_body = '64KiB'":                                         true,
		"[daemon]\nsocket = 'zhx.sock'":                                        false,
		"[defaults]\nstop_signal = 'INT'":                                      true,
	} {
		bad := violations("", s, tree(t, text))
		_, problems := parsed("#\n" + text)
		if (bad == nil) != valid {
			t.Errorf("%s\nis %q", text, bad)
		}
		if bad != nil && problems == nil {
			t.Errorf("%s\nis valid, but not by the schema: %q", text, bad)
		}
	}
}
