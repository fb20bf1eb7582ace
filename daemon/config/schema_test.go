package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schema is what Schema prints, as an editor reads it.
func schema(t testing.TB) (s map[string]any) {
	t.Helper()
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// compile makes what checks of a schema, or a part of one.
func compile(t testing.TB, doc any) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft4) // a part does not say it
	err := c.AddResource("schema.json", doc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tree is a file as JSON has it, whose lists are all of one kind.
func tree(t testing.TB, text string) map[string]any {
	t.Helper()
	v := map[string]any{}
	err := toml.Unmarshal([]byte(text), &v)
	data, _ := json.Marshal(v)
	if err == nil {
		var plain any
		if plain, err = jsonschema.UnmarshalJSON(strings.NewReader(string(data))); err == nil {
			return plain.(map[string]any)
		}
	}
	t.Fatalf("%s: %v", text, err)
	return nil
}

// The files that are shipped, and the contract, are valid by the schema.
func TestSchemaFiles(t *testing.T) {
	s := compile(t, schema(t))
	for _, path := range []string{"../../etc/clients.toml", "../../etc/demo.toml", "testdata/contract.toml"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{string(data), uncommented(string(data))} {
			if path == "../../etc/demo.toml" {
				text = string(data) // its comments are words
			}
			if bad := s.Validate(tree(t, text)); bad != nil {
				t.Errorf("%s: %v", path, bad)
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
				if bad := compile(t, one).Validate(v); bad != nil || fmt.Sprint(one["default"]) != fmt.Sprint(v) {
					t.Errorf("the default of %s is %v: %v", k.name, one["default"], bad)
				}
			}
		}
	}
}

// What is wrong for all to see is wrong by the schema; and what is right, however it is written, is right by it.
func TestSchemaValues(t *testing.T) {
	s := compile(t, schema(t))
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
		bad := s.Validate(tree(t, text))
		_, problems := parsed("#\n" + text)
		if (bad == nil) != valid {
			t.Errorf("%s\nis %v", text, bad)
		}
		if bad != nil && problems == nil {
			t.Errorf("%s\nis valid, but not by the schema: %v", text, bad)
		}
	}
}
