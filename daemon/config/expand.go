// What % and $ stand for: %n is the client's name, ${VARIABLE} a variable, %% and $$ the character; all else is an error. In
// most keys %n and ${VARIABLE} have no meaning, and are errors as well.

package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// text is a string as it is meant, of a key in which % and $ have no meaning: they are written twice.
func text(s string) (string, error) { return expand(s, nil) }

// raw is a string that %n and ${VARIABLE} will be replaced in, checked but as it is.
func raw(s string) (string, error) {
	_, err := expand(s, func(word string) (string, error) { return word, nil })
	return s, err
}

var special = regexp.MustCompile(`%%|\$\$|%n|\$\{[A-Za-z_][A-Za-z0-9_]*\}|[%$\x00]`)

// expand replaces what % and $ stand for, up to the first error. meaning is asked for "%n" and each "${VARIABLE}"; without
// it, they are errors.
func expand(s string, meaning func(word string) (string, error)) (out string, err error) {
	out = special.ReplaceAllStringFunc(s, func(word string) (x string) {
		switch {
		case err != nil:
		case word == "%%" || word == "$$":
			x = word[1:]
		case word == "\x00":
			err = fmt.Errorf("has a NUL character in %q", s)
		case meaning == nil:
			err = fmt.Errorf("has a single %[1]c in %[2]q, which has no meaning here; write %[1]c%[1]c for the character", word[0], s)
		case len(word) == 1:
			err = fmt.Errorf("has a single %[1]c in %[2]q, which is neither ${VARIABLE} nor %%n; write %[1]c%[1]c for the character", word[0], s)
		default:
			x, err = meaning(word)
		}
		return x
	})
	return out, err
}

// expand replaces %n and ${VARIABLE} in the keys of cl that know them. A variable is one of zhxd's; for what is not the
// environment itself, one of the client's goes before.
func (f *file) expand(cl *Client) {
	lists := [][]string{slices.Collect(maps.Values(cl.Environment)), {cl.LogFile, cl.Probe.Unix}, cl.Command, cl.OnFailure, cl.Probe.Exec}
	if !slices.ContainsFunc(slices.Concat(lists...), func(s string) bool { return strings.ContainsAny(s, "%$") }) {
		return
	}
	for _, list := range lists { // all is copied
		for _, s := range list {
			f.room -= 16 + len(s)
		}
	}
	tooMuch := fmt.Errorf("with what %% and $ stand for, there are more than %d bytes in all clients", expandMax)
	if f.room < 0 {
		f.report([]string{"client", cl.Base}, false, "[%s]: %v", section([]string{"client", cl.Base}), tooMuch)
		return
	}
	own := map[string]string{}
	meaning := func(word string) (string, error) {
		name := strings.Trim(word, "${}")
		x, set := own[name]
		if !set {
			x, set = f.environ[name]
		}
		switch {
		case word == "%n":
			x = cl.Name
		case !set || zhxSets(name): // a zhxd under another has its own ZHX_NAME
			return "", fmt.Errorf("has %s, which is not set", word)
		}
		if f.room -= len(x); f.room < 0 {
			return "", tooMuch
		}
		return x, nil
	}
	value := func(s string, key ...string) (out string, ok bool) {
		out, err := expand(s, meaning)
		if len(key) > 1 && err != nil {
			err = fmt.Errorf("%q %w", key[1], err)
		}
		return out, f.valid(cl.Base, err, key...)
	}
	argv := func(key string, argv []string) []string {
		out, ok := make([]string, len(argv)), true
		for i, s := range argv {
			if out[i], ok = value(s, key); i == 0 && ok && out[0] == "" {
				f.valid(cl.Base, fmt.Errorf("has %q for a program, which stands for nothing", s), key)
			}
		}
		return out
	}
	env := make(map[string]string, len(cl.Environment))
	for name, s := range cl.Environment {
		env[name], _ = value(s, "environment", name)
	}
	own, cl.Environment = env, env
	cl.LogFile, _ = value(cl.LogFile, "log_file")
	cl.Command, cl.OnFailure = argv("command", cl.Command), argv("on_failure", cl.OnFailure)
	cl.Probe.Unix, _ = value(cl.Probe.Unix, "probe")
	if len(cl.Probe.Exec) > 0 {
		cl.Probe.Exec = argv("probe", cl.Probe.Exec)
	}
}

// valid reports err, of a key that a client has, itself or by [defaults].
func (f *file) valid(client string, err error, key ...string) bool {
	if err != nil {
		at := f.entry(client, key...)
		f.report(at, false, "%s in [%s]: %v", key[0], section(top(at)), err)
	}
	return err == nil
}
