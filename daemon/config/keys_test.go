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
	bare, problems := parsed("[client.NAME]\ncommand = ['/usr/bin/prog', '-x']\n")
	if problems != nil {
		t.Fatal(problems)
	}
	given := &bare.Clients[0] // what the contract shows with an example
	given.Names, given.Environment = []string{"other"}, map[string]string{"KEY": "value"}
	given.User, given.Group = "name or number", "name or number"
	bare.Sum = full.Sum
	if d := cmp.Diff(full, bare); d != "" {
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
	if d := cmp.Diff(shown, real); d != "" {
		t.Errorf("-contract +table\n%s", d)
	}
}

// Every row of the table is whole, and its default is accepted where the key may stand and is what holds without it.
func TestKeys(t *testing.T) {
	for _, k := range keys {
		if k.takes == "" || k.class == "" || !strings.HasSuffix(k.doc, ".") || strings.Contains(k.doc, ". ") {
			t.Errorf("[%s] %s is not whole: %+v", k.section, k.name, k)
		}
		if k.defaultValue == "" {
			continue
		}
		places := []string{k.section}
		if k.section == "client" {
			places = []string{"defaults", "client.a"}
		}
		without, _ := parsed("[client.a]\ncommand = ['x']\n")
		for _, place := range places {
			text := "[" + place + "]\n" + k.name + " = " + k.defaultValue + "\n[client.a]\ncommand = ['x']\n"
			if place == "client.a" {
				text = "[client.a]\ncommand = ['x']\n" + k.name + " = " + k.defaultValue + "\n"
			}
			with, problems := parsed(text)
			if problems != nil {
				t.Errorf("%s: %q", text, problems)
				continue
			}
			with.Sum = without.Sum
			if d := cmp.Diff(without, with); d != "" {
				t.Errorf("%s is not what holds without it: %s", text, d)
			}
		}
	}
}

// How a change of a client's key is applied is written twice, here for people, and in procman's Spec: they agree.
func TestClassesAgree(t *testing.T) {
	classes := make(map[string]string)
	spec := reflect.TypeFor[procman.Spec]()
	for i := range spec.NumField() {
		if tag := spec.Field(i).Tag; tag.Get("key") != "" {
			classes[tag.Get("key")] = tag.Get("class")
		}
	}
	for _, k := range keys {
		class, known := classes[k.name]
		delete(classes, k.name)
		if k.section == "client" && known && class != string(k.class) {
			t.Errorf("%s is %s here and %s in procman", k.name, k.class, class)
		}
	}
	if len(classes) > 0 {
		t.Errorf("keys of procman that are not in the table: %v", classes)
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
	if len(full.Clients) != 1 {
		t.Errorf("%d clients", len(full.Clients))
	}
	bare, _ := parsed("[client." + full.Clients[0].Name + "]\ncommand = ['x']\n")
	template := &bare.Clients[0]
	template.Command, template.Environment, template.WatchdogTimeout, template.FrozenTimeout =
		full.Clients[0].Command, full.Clients[0].Environment, full.Clients[0].WatchdogTimeout, full.Clients[0].FrozenTimeout
	bare.Sum = full.Sum
	if d := cmp.Diff(bare, full); d != "" {
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
