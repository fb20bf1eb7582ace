// Kinds of values: what a key takes, and what it says when it gets something else. An error goes on from "KEY in
// [SECTION]:", as "must be true or false".

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"
)

// value is a kind of value at a place of the target.
type value struct {
	Type  string // string, list of strings, table of strings, boolean, number, duration
	Range string // what is possible, or "" for everything of the type
	set   func(t *target, v any) error
	get   func(t *target) any
}

// kind makes a value of how its text is understood.
func kind[T any](typ, rng string, at func(*target) *T, parse func(v any, old T) (T, error)) value {
	return value{Type: typ, Range: rng,
		set: func(t *target, v any) error {
			x, err := parse(v, *at(t))
			if err == nil {
				*at(t) = x
			}
			return err
		},
		get: func(t *target) any { return *at(t) },
	}
}

// reset sets the default.
func (k *Key) reset(t *target) {
	if k.Default == "" {
		return
	}
	var v struct{ V any }
	if _, err := toml.Decode("V = "+k.Default, &v); err != nil {
		panic(fmt.Sprintf("config: default of %s: %v", k.Name, err))
	}
	if err := k.set(t, v.V); err != nil {
		panic(fmt.Sprintf("config: default of %s: %v", k.Name, err))
	}
}

func boolean(at func(*target) *bool) value {
	return kind("boolean", "", at, func(v any, _ bool) (bool, error) {
		b, ok := v.(bool)
		if !ok {
			return b, wrong("true or false, without quotes", v)
		}
		return b, nil
	})
}

func number(low, high int, at func(*target) *int) value {
	rng := fmt.Sprintf("%d to %d", low, high)
	return kind("number", rng, at, func(v any, _ int) (int, error) {
		n, ok := v.(int64)
		if !ok || n < int64(low) || n > int64(high) {
			return 0, wrong("a whole number from "+rng, v)
		}
		return int(n), nil
	})
}

func duration(low, high time.Duration, at func(*target) *time.Duration) value {
	rng := short(low) + " to " + short(high)
	return kind("duration", rng, at, func(v any, _ time.Duration) (time.Duration, error) {
		s, ok := v.(string)
		if !ok {
			return 0, wrong(`a duration in quotes, as "5s" or "1m30s"`, v)
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, wrong(`a duration, as "5s" or "1m30s"`, v)
		}
		if d < low || d > high {
			return 0, wrong("from "+rng, v)
		}
		return d, nil
	})
}

// short writes a duration without its zero parts: 1h, not 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// word is one of a few words.
func word[T ~string](at func(*target) *T, words ...T) value {
	rng := quoted(words)
	return kind("string", rng, at, func(v any, _ T) (T, error) {
		s, ok := v.(string)
		if !ok || !slices.Contains(words, T(s)) {
			return "", wrong(rng, v)
		}
		return T(s), nil
	})
}

// wordBool is one of two words, for a field that is true for the first.
func wordBool(at func(*target) *bool, yes, no string) value {
	rng := quoted([]string{yes, no})
	return kind("string", rng, at, func(v any, _ bool) (bool, error) {
		if v != yes && v != no {
			return false, wrong(rng, v)
		}
		return v == yes, nil
	})
}

func quoted[T ~string](words []T) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = strconv.Quote(string(w))
	}
	return strings.Join(q, " or ")
}

// path is an absolute path.
func path(at func(*target) *string) value {
	return kind("string", "an absolute path", at, func(v any, _ string) (string, error) {
		s, err := text(v)
		if err == nil && !filepath.IsAbs(s) {
			err = wrong("an absolute path", v)
		}
		return s, err
	})
}

// account is a user or group. Whether it exists is only looked up for a warning: it may come later.
func account(what string, at func(*target) *string) value {
	return kind("string", "name or number of a "+what, at, func(v any, _ string) (string, error) {
		s, ok := v.(string)
		if !ok {
			return "", wrong("the name or number of a "+what+" in quotes", v)
		}
		if strings.ContainsAny(s, ":\n\x00") {
			return "", wrong("the name or number of a "+what, v)
		}
		return s, nil
	})
}

// command is a program and its arguments.
func command(at func(*target) *[]string) value {
	return kind("list of strings", "the program at least", at, func(v any, _ []string) ([]string, error) {
		argv, err := list(v, `a list of strings, as ["/usr/bin/prog", "-x"]`, text)
		if err == nil && (len(argv) == 0 || argv[0] == "") {
			err = errors.New("must begin with a program")
		}
		return argv, err
	})
}

// clientNames are names by the rule for clients.
func clientNames(at func(*target) *[]string) value {
	one := func(v any) (string, error) {
		s, _ := v.(string)
		if problem := badName(s); problem != "" {
			return "", errors.New("cannot be: " + problem)
		}
		return s, nil
	}
	return kind("list of strings", "names, by the rule for clients", at, func(v any, _ []string) ([]string, error) {
		return list(v, `a list of names, as ["other"]`, one)
	})
}

// list is a list whose entries are what one makes of them.
func list(v any, want string, one func(any) (string, error)) ([]string, error) {
	items, ok := v.([]any)
	if !ok {
		return nil, wrong(want, v)
	}
	out := make([]string, len(items))
	for i, item := range items {
		s, err := one(item)
		if err != nil {
			return nil, fmt.Errorf("entry %d %w", i+1, err)
		}
		out[i] = s
	}
	return out, nil
}

// environment is variables, added to those that are set already.
func environment(at func(*target) *map[string]string) value {
	return kind("table of strings", "", at, func(v any, old map[string]string) (map[string]string, error) {
		table, ok := v.(map[string]any)
		if !ok {
			return nil, wrong(`a table of strings, as { KEY = "value" }`, v)
		}
		env := maps.Clone(old)
		if env == nil {
			env = make(map[string]string)
		}
		for _, name := range slices.Sorted(maps.Keys(table)) {
			switch s, err := text(table[name]); {
			case err != nil:
				return nil, fmt.Errorf("%q %w", name, err)
			case name == "" || strings.ContainsAny(name, "=\x00"):
				return nil, fmt.Errorf("has %q, which is no name of a variable", name)
			case name == "ZHX_SOCKET" || name == "ZHX_NAME" || name == "ZHX_RUN":
				return nil, fmt.Errorf("has %s, which zhx sets itself", name)
			default:
				env[name] = s
			}
		}
		return env, nil
	})
}

// signal is a signal by its name, with or without SIG.
func signal(at func(*target) *syscall.Signal) value {
	return kind("string", "the name of a signal", at, func(v any, _ syscall.Signal) (syscall.Signal, error) {
		s, _ := v.(string)
		if n := unix.SignalNum("SIG" + strings.TrimPrefix(s, "SIG")); n != 0 {
			return n, nil
		}
		return 0, wrong(`the name of a signal, as "SIGTERM"`, v)
	})
}

// mode is the permission bits of a file.
func mode(at func(*target) *fs.FileMode) value {
	return kind("string", `"0000" to "0777"`, at, func(v any, _ fs.FileMode) (fs.FileMode, error) {
		s, _ := v.(string)
		n, err := strconv.ParseUint(s, 8, 9)
		if err != nil {
			return 0, wrong(`an octal mode in quotes, as "0660"`, v)
		}
		return fs.FileMode(n), nil
	})
}

// loopback is an address of this machine that no other can reach: whoever connects is not asked for a password.
func loopback(at func(*target) *string) value {
	const rng = `a loopback address, as "127.1.1.1:8000", or ""`
	return kind("string", rng, at, func(v any, _ string) (string, error) {
		s, ok := v.(string)
		switch {
		case !ok:
			return "", wrong(rng, v)
		case s == "":
			return "", nil
		}
		full := s
		if strings.HasPrefix(s, ":") {
			full = "127.1.1.1" + s
		}
		a, err := netip.ParseAddrPort(full)
		if err != nil || !a.Addr().Is4() || !a.Addr().IsLoopback() {
			return "", fmt.Errorf("%w: zhx does not serve a network", wrong(rng, v))
		}
		return a.String(), nil
	})
}

// text is free text: command, environment, directory and the paths of [daemon]. In it % and $ have no meaning yet and are
// kept for one: they are written twice.
func text(v any) (string, error) {
	s, ok := v.(string)
	if !ok {
		return "", wrong("a string", v)
	}
	if strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("has a NUL character in %q", s)
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' || c == '$' {
			if i+1 == len(s) || s[i+1] != c {
				return "", fmt.Errorf("has a single %c in %q, which is kept for a later meaning; write %c%c for the character", c, s, c, c)
			}
			i++
		}
		b.WriteByte(c)
	}
	return b.String(), nil
}

// wrong is the error for a value that is not what it must be.
func wrong(want string, v any) error { return fmt.Errorf("must be %s, not %s", want, show(v)) }

// show writes a value of the file.
func show(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case []any:
		if len(v) == 0 {
			return "an empty list"
		}
		return "a list"
	case []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	case time.Time:
		return "a date"
	}
	return fmt.Sprint(v)
}
