package control

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The schema has the fields of the types, and says which are always there: also of those that no script comes to see.
func TestSchema(t *testing.T) {
	var schema struct {
		Defs map[string]struct {
			Required   []string
			Properties map[string]any
		} `json:"$defs"`
	}
	if err := json.Unmarshal(Schema, &schema); err != nil {
		t.Fatal(err)
	}
	seen := map[reflect.Type]bool{reflect.TypeFor[Stamp](): true}
	var look func(reflect.Type)
	look = func(v reflect.Type) {
		for k := v.Kind(); k == reflect.Pointer || k == reflect.Slice; k = v.Kind() {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct || seen[v] {
			return
		}
		seen[v] = true
		var all, required []string
		for f := range v.Fields() {
			tag, _ := f.Tag.Lookup("json")
			name, rest, _ := strings.Cut(tag, ",")
			if !f.IsExported() || name == "-" {
				continue
			}
			all = append(all, name)
			if rest == "" {
				required = append(required, name)
			}
			look(f.Type)
		}
		def := schema.Defs[v.Name()]
		slices.Sort(all)
		if got := slices.Sorted(maps.Keys(def.Properties)); !slices.Equal(got, all) {
			t.Errorf("%s has %q, in the schema %q", v.Name(), all, got)
		}
		slices.Sort(required)
		slices.Sort(def.Required)
		if !slices.Equal(def.Required, required) {
			t.Errorf("%s always has %q, in the schema %q", v.Name(), required, def.Required)
		}
	}
	for _, v := range []any{Status{}, Why{}, Shown{}, Explanation{}, Outcomes{}, ReloadResult{}, Event{}, LogLine{}, TapEvent{}} {
		look(reflect.TypeOf(v))
	}
}
