package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"zhx/procman"
)

// The contract, as it is written, is a valid file; it has every key of the table and no other; and where it shows a default,
// a file that says nothing means the same.
func TestContract(t *testing.T) {
	data, err := os.ReadFile("testdata/contract.toml")
	if err != nil {
		t.Fatal(err)
	}
	full, problems := parsed(string(data))
	if problems != nil {
		t.Fatal(problems)
	}
	bare, problems := parsed(`[client.NAME]
command = ['/usr/bin/prog', '-x']
[client.MANY]
command = ['/usr/bin/prog', '%n', 'value']
instances = 2
[group.NAME]
clients = ['MANY', 'NAME']
`)
	if problems != nil {
		t.Fatal(problems)
	}
	given := &bare.Clients[0] // what the contract shows with an example
	given.Names, given.Environment = []string{"other"}, map[string]string{"KEY": "value"}
	given.User, given.Group, given.Groups = "name or number", "name or number", []string{"name or number"}
	bare.Sum = full.Sum
	if d := cmp.Diff(full, bare, sameText); d != "" {
		t.Errorf("the contract shows other defaults: -shown +real\n%s", d)
	}

	var shown, real []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z_]+) *=`).FindAllStringSubmatch(string(data), -1) {
		shown = append(shown, m[1])
	}
	for _, k := range keys {
		real = append(real, k.name)
	}
	slices.Sort(shown)
	slices.Sort(real)
	if d := cmp.Diff(slices.Compact(shown), slices.Compact(real)); d != "" { // command and restart stand twice
		t.Errorf("-contract +table\n%s", d)
	}
}

// Every row of the table is whole, and its default is accepted where the key may stand and is what holds without it.
func TestKeys(t *testing.T) {
	for _, k := range keys {
		if k.takes == "" || k.change() == classSpec || !strings.HasSuffix(k.doc, ".") || strings.Contains(k.doc, ". ") {
			t.Errorf("[%s] %s is not whole: %+v", k.section, k.name, k)
		}
		if k.defaultValue == "" {
			continue
		}
		const clients = "[client.a]\ncommand = ['x']\n[group.b]\nclients = ['a']\n"
		line := k.name + " = " + k.defaultValue + "\n"
		texts := []string{"[" + k.section + "]\n" + line + clients}
		switch k.section {
		case "group":
			texts = []string{clients + line}
		case "client":
			texts = []string{"[defaults]\n" + line + clients, strings.Replace(clients, "[group", line+"[group", 1)}
		}
		without, _ := parsed(clients)
		for _, text := range texts {
			with, problems := parsed(text)
			if problems != nil {
				t.Errorf("%s: %q", text, problems)
				continue
			}
			with.Sum = without.Sum
			if d := cmp.Diff(without, with, sameText); d != "" {
				t.Errorf("%s is not what holds without it: %s", text, d)
			}
		}
	}
}

// What procman.Spec says of a key is found: each of its tags is a key of the table, and gives the class that it has there.
func TestSpecClasses(t *testing.T) {
	spec := reflect.TypeFor[procman.Spec]()
	for i := range spec.NumField() {
		tag := spec.Field(i).Tag
		name := tag.Get("key")
		if name == "" || name == "[group]" {
			continue
		}
		i := slices.IndexFunc(keys, func(k key) bool { return k.section == "client" && k.name == name })
		if i < 0 || keys[i].class != classSpec || string(keys[i].change()) != tag.Get("class") {
			t.Errorf("%s, of procman.Spec, is not in the table or has a class of its own there", name)
		}
	}
	for k, want := range map[string]class{"command": classRestart, "group": classRestart, "umask": classRestart, "log_file": classLive, "names": classLive, "tcp": classDaemon} {
		i := slices.IndexFunc(keys, func(x key) bool { return x.name == k })
		if got := keys[i].change(); got != want {
			t.Errorf("%s is %s, want %s", k, got, want)
		}
	}
}

// The shipped file starts nothing and is valid, also with everything in it uncommented; it shows every key of the table, at
// its default.
func TestShipped(t *testing.T) {
	data, err := os.ReadFile("../../etc/clients.toml")
	if err != nil {
		t.Fatal(err)
	}
	asIs, problems := parsed(string(data))
	if problems != nil || len(asIs.Clients) != 0 {
		t.Fatal(problems, asIs)
	}
	text := uncommented(string(data))
	full, problems := parsed(text)
	if problems != nil {
		t.Fatal(strings.Join(problems, "\n"))
	}
	bare, problems := parsed(`[client.modem]
command = ["/usr/bin/modemd", "-b", "115200"]
environment = { LOG_LEVEL = "info" }
watchdog_timeout = "10s"
[client.worker]
command = ["/usr/bin/worker", "%n"]
instances = 2
[group.radio]
clients = ["modem", "worker"]
`)
	if problems != nil {
		t.Fatal(problems)
	}
	bare.Sum = full.Sum
	if d := cmp.Diff(bare, full, sameText); d != "" {
		t.Errorf("it does not show the defaults: -default +shown\n%s", d)
	}
	for _, k := range keys {
		if !regexp.MustCompile(`(?m)^` + k.name + ` *=`).MatchString(text) {
			t.Errorf("it does not show %s", k.name)
		}
	}
}

// uncommented is a file without the # in front of keys and sections. In front of words there is a space after it.
func uncommented(text string) string {
	return regexp.MustCompile(`(?m)^#([a-z\[])`).ReplaceAllString(text, "$1")
}
