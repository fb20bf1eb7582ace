// The table of keys as a JSON Schema, for editors: they complete keys, show what each is for and underline what is wrong.

package config

import (
	"encoding/json"
	"maps"

	"github.com/BurntSushi/toml"
)

// Schema is a JSON Schema of draft 4, which is what taplo and what builds on it take, of the whole file. A file that is valid
// is valid by it; not all that is wrong is wrong by it.
func Schema() []byte {
	top := make(map[string]shape)
	for _, s := range sections {
		of := make(map[string]shape)
		for _, k := range keys {
			if k.in(s) {
				of[k.name] = k.schema()
			}
		}
		if top[s] = record(of); named(s) {
			top[s]["required"] = []string{map[string]string{"client": "command", "group": "clients"}[s]}
			top[s] = shape{"type": "object", "patternProperties": shape{"^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$": top[s]}, "additionalProperties": false}
		}
	}
	all := record(top)
	all["$schema"], all["title"] = "http://json-schema.org/draft-04/schema#", "clients.toml of zhx"
	out, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		panic("config: schema: " + err.Error()) // it is made of constants
	}
	return append(out, '\n')
}

// schema is what the row says.
func (k *key) schema() shape {
	applied := map[class]string{classLive: "at once", classRestart: "by a restart of the client", classDaemon: "when zhxd is restarted"}
	s := shape{"description": k.doc + " It must be " + k.takes + ". A change is applied " + applied[k.change()] + "."}
	maps.Copy(s, k.shape)
	var v struct{ V any }
	if _, err := toml.Decode("V = "+k.defaultValue, &v); err == nil {
		s["default"] = v.V
	}
	return s
}
