// Kinds of values: what a key takes, and what it says when it gets something else. An error goes on from "KEY in
// [SECTION]:", as "must be true or false".

package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"

	"zhx/ipc/broker"
	"zhx/ipc/wire"
	"zhx/procman"
	"zhx/watchdog"
	"zhx/watchdog/probe"
)

// value is a kind of value at a place of the target.
type value struct {
	takes string // what it must be, in words,
	shape shape  // and as JSON Schema has it, which may let pass what set refuses, and never the reverse
	set   func(t *target, v any) error
	get   func(t *target) any
}

// shape is a JSON Schema of draft 4.
type shape map[string]any

func (v value) of(s shape) value {
	v.shape = s
	return v
}

// The shapes of which values are made.
func matching(pattern string) shape { return shape{"type": "string", "pattern": pattern} }
func either(shapes ...shape) shape  { return shape{"anyOf": shapes} }
func whole(low, high int64) shape   { return shape{"type": "integer", "minimum": low, "maximum": high} }
func listOf(items shape, least int) shape {
	return shape{"type": "array", "items": items, "minItems": least}
}
func record(entries map[string]shape) shape {
	return shape{"type": "object", "properties": entries, "additionalProperties": false}
}

var (
	aText     = shape{"type": "string"}
	aWord     = shape{"type": "string", "minLength": 1}
	aDuration = matching(`^[+-]?(0|([0-9.]+([nuµμm]?s|m|h))+)$`)
	aSize     = either(shape{"type": "integer", "minimum": 0}, matching(`^[0-9]+[KMG](iB)?$`))
)

// kind makes a value of how it is understood. With ok false it is something else than what it must be.
func kind[T any](takes string, at func(*target) *T, understand func(v any, old T) (x T, ok bool, err error)) value {
	return value{
		takes: takes,
		set: func(t *target, v any) error {
			x, ok, err := understand(v, *at(t))
			switch {
			case err != nil:
				return err
			case !ok:
				return wrong(takes, v)
			}
			*at(t) = x
			return nil
		},
		get: func(t *target) any { return *at(t) },
	}
}

// str makes a value of how a string is understood.
func str[T any](takes string, at func(*target) *T, understand func(s string) (T, bool)) value {
	return kind(takes, at, func(v any, old T) (T, bool, error) {
		s, ok := v.(string)
		if !ok {
			return old, false, nil
		}
		s, err := text(s)
		if err != nil {
			return old, false, err
		}
		x, ok := understand(s)
		return x, ok, nil
	})
}

func boolean(at func(*target) *bool) value {
	return kind("true or false, without quotes", at, func(v any, _ bool) (bool, bool, error) {
		b, ok := v.(bool)
		return b, ok, nil
	}).of(shape{"type": "boolean"})
}

func number(low, high int64, at func(*target) *int) value {
	return kind(fmt.Sprintf("a whole number from %d to %d", low, high), at, func(v any, _ int) (int, bool, error) {
		n, ok := v.(int64)
		return int(n), ok && low <= n && n <= high, nil
	}).of(whole(low, high))
}

// duration is written as time.ParseDuration has it, low and high as well.
func duration(low, high string, at func(*target) *time.Duration) value {
	least, _ := time.ParseDuration(low)
	most, _ := time.ParseDuration(high)
	return str("a duration from "+low+" to "+high+` in quotes, as "5s" or "1m30s"`, at, func(s string) (time.Duration, bool) {
		d, err := time.ParseDuration(s)
		return d, err == nil && least <= d && d <= most
	}).of(aDuration)
}

// word is one of a few words.
func word[T ~string](at func(*target) *T, words ...T) value {
	return str(quoted(words...), at, func(s string) (T, bool) { return T(s), slices.Contains(words, T(s)) }).of(shape{"enum": words})
}

// wordBool is one of two words, for a field that is true for the first.
func wordBool(at func(*target) *bool, yes, no string) value {
	return str(quoted(yes, no), at, func(s string) (bool, bool) { return s == yes, s == yes || s == no }).of(shape{"enum": []string{yes, no}})
}

func quoted[T ~string](words ...T) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = strconv.Quote(string(w))
	}
	return strings.Join(q, " or ")
}

func path(at func(*target) *string) value {
	return str("an absolute path", at, func(s string) (string, bool) { return s, filepath.IsAbs(s) }).of(matching("^/"))
}

func optionalPath(at func(*target) *string) value {
	return str(`an absolute path, or ""`, at, func(s string) (string, bool) { return s, s == "" || filepath.IsAbs(s) }).of(matching("^(/|$)"))
}

// logFile is an absolute path in which %n and ${VARIABLE} are replaced later.
func logFile(at func(*target) *string) value {
	return kind(`an absolute path, or ""`, at, func(v any, _ string) (string, bool, error) {
		s, ok := v.(string)
		_, err := raw(s)
		return s, ok && (s == "" || filepath.IsAbs(s)), err
	}).of(matching("^(/|$)"))
}

// account is a user or group. Whether it exists is only looked up for a warning: it may come later.
func account(what string, at func(*target) *string) value {
	return str("the name or number of a "+what+" in quotes", at, func(s string) (string, bool) { return s, true }).of(aText)
}

// signal is a signal by its name, with or without SIG, as in the example, which may go on with `, or ""`.
func signal(example string, at func(*target) *syscall.Signal) value {
	return str("the name of a signal, as "+example, at, func(s string) (syscall.Signal, bool) {
		n := unix.SignalNum("SIG" + strings.TrimPrefix(s, "SIG"))
		return n, n != 0 || s == "" && strings.HasSuffix(example, `""`)
	}).of(matching("^[A-Z0-9]*$"))
}

// octal is the permission bits of a file, or those that it does not get.
func octal[T ~int | ~uint32](example string, at func(*target) *T) value {
	return str("an octal mode in quotes, as "+strconv.Quote(example), at, func(s string) (T, bool) {
		n, err := strconv.ParseUint(s, 8, 9)
		return T(n), err == nil
	}).of(matching("^0*[0-7]{1,3}$"))
}

// loopback is an address of this machine that no other can reach: whoever connects is not asked for a password. host is the one
// of a port alone, port an example.
func loopback(host, port string, at func(*target) *string) value {
	return str(`a loopback address, as "`+host+":"+port+`", or "", as zhx serves no network`, at, func(s string) (string, bool) {
		if s == "" {
			return "", true
		}
		if s[0] == ':' {
			s = host + s
		}
		a, err := netip.ParseAddrPort(s)
		return a.String(), err == nil && a.Addr().Is4() && a.Addr().IsLoopback()
	}).of(matching(`^((127(\.[0-9]{1,3}){3})?:[0-9]+)?$`))
}

// command is a program and its arguments, in which %n and ${VARIABLE} are replaced later.
func command(orNone bool, at func(*target) *[]string) value {
	takes := `a list of strings that begins with a program, as ["/usr/bin/prog", "-x"]`
	least := 1
	if orNone {
		takes, least = takes+", or []", 0
	}
	return kind(takes, at, func(v any, _ []string) ([]string, bool, error) {
		argv, ok, err := list(v, raw)
		return argv, ok && (len(argv) == 0 && orNone || len(argv) > 0 && argv[0] != ""), err
	}).of(listOf(aText, least))
}

// words is a list of strings that are not empty.
func words(least int, takes string, at func(*target) *[]string) value {
	return kind(takes, at, func(v any, _ []string) ([]string, bool, error) {
		out, ok, err := list(v, text)
		return out, ok && len(out) >= least && !slices.Contains(out, ""), err
	}).of(listOf(aWord, least))
}

// list is a list of strings.
func list(v any, understand func(string) (string, error)) (out []string, ok bool, err error) {
	items, ok := v.([]any)
	out = make([]string, len(items))
	for i, item := range items {
		s, is := item.(string)
		if ok = ok && is; err == nil {
			out[i], err = understand(s)
		}
	}
	return out, ok, err
}

// numbers is a set of numbers, sorted.
func numbers(least int, low, high int64, at func(*target) *[]int) value {
	takes := fmt.Sprintf("a list of different whole numbers from %d to %d, as [0, 1]", low, high)
	return kind(takes, at, func(v any, _ []int) ([]int, bool, error) {
		items, ok := v.([]any)
		out := make([]int, len(items))
		for i, item := range items {
			n, is := item.(int64)
			ok = ok && is && low <= n && n <= high
			out[i] = int(n)
		}
		slices.Sort(out)
		return out, ok && len(out) >= least && len(slices.Compact(slices.Clone(out))) == len(out), nil
	}).of(listOf(whole(low, high), least))
}

// files is a limit of open files. The kernel has no unlimited one, not even for root.
func files(at func(*target) **uint64) value {
	return kind(`a whole number from 1 to 1000000000, or ""`, at, func(v any, _ *uint64) (*uint64, bool, error) {
		n, is := v.(int64)
		if !is {
			return nil, v == "", nil
		}
		return new(uint64(n)), 1 <= n && n <= 1e9, nil
	}).of(either(whole(1, 1e9), matching("^$")))
}

// size is a limit in bytes.
func size(at func(*target) **uint64) value {
	return kind(`a number of bytes, as 65536 or "64M" (K, M, G), or "unlimited", or ""`, at, func(v any, _ *uint64) (*uint64, bool, error) {
		switch v := v.(type) {
		case int64:
			return new(uint64(v)), v >= 0, nil
		case string:
			if v == "" {
				return nil, true, nil
			}
			if v == "unlimited" {
				return new(uint64(math.MaxUint64)), true, nil
			}
			n, ok := parseSize(v)
			return &n, ok, nil
		}
		return nil, false, nil
	}).of(either(aSize, matching("^(unlimited)?$")))
}

// parseSize reads "64K", "64KiB", and so on with M and G.
func parseSize(s string) (n uint64, ok bool) {
	s = strings.TrimSuffix(s, "iB")
	if s == "" {
		return 0, false
	}
	shift := 10 * (1 + strings.IndexByte("KMG", s[len(s)-1]))
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 63-shift)
	return n << shift, err == nil && shift > 0
}

// sizeWithin is a number of bytes, or text as parseSize reads it, low and high as well.
func sizeWithin(v any, low, high string) (int, bool) {
	least, _ := parseSize(low)
	most, _ := parseSize(high)
	n, ok := v.(int64)
	size := uint64(n) // a negative one is too large
	if s, is := v.(string); is {
		size, ok = parseSize(s)
	}
	return int(size), ok && least <= size && size <= most
}

func bytes(low, high string, at func(*target) *int) value {
	return kind(fmt.Sprintf(`a number of bytes from %q to %q, as 65536 or "64KiB"`, low, high), at, func(v any, _ int) (int, bool, error) {
		n, ok := sizeWithin(v, low, high)
		return n, ok, nil
	}).of(aSize)
}

// held is what may wait for a client; false: nothing.
func held(at func(*target) *broker.Hold) value {
	const takes = `{ messages = 256, bytes = "256KiB", for = "10s" } with 1 to 65536, "1KiB" to "64MiB" and "10ms" to "1h", or false`
	return kind(takes, at, func(v any, old broker.Hold) (h broker.Hold, ok bool, err error) {
		table, ok := v.(map[string]any)
		if !ok {
			return h, v == false, nil
		}
		h = cmp.Or(old, broker.Hold{Messages: 256, Bytes: 256 << 10, For: 10 * time.Second})
		for key, v := range table {
			switch key {
			case "messages":
				n, is := v.(int64)
				h.Messages, ok = int(n), is && 1 <= n && n <= 65536
			case "bytes":
				h.Bytes, ok = sizeWithin(v, "1KiB", "64MiB")
			case "for":
				s, _ := v.(string)
				d, err := time.ParseDuration(s)
				h.For, ok = d, err == nil && 10*time.Millisecond <= d && d <= time.Hour
			default:
				ok = false
			}
			if !ok {
				return old, false, errors.New("must be " + takes)
			}
		}
		return h, true, nil
	}).of(either(shape{"enum": []bool{false}}, record(map[string]shape{"messages": whole(1, 65536), "bytes": aSize, "for": aDuration})))
}

// What patterns takes.
const (
	namePatterns  = `a list of names in which * is any characters, as ["modem", "worker-*"]`
	topicPatterns = `a list of topics in which * is any word and > at the end is one word or more, as ["gps.*", "log.>"]`
)

func patterns(takes string, valid func(string) bool, at func(*target) *[]string) value {
	return kind(takes, at, func(v any, _ []string) ([]string, bool, error) {
		out, ok, err := list(v, text)
		return out, ok && !slices.ContainsFunc(out, func(s string) bool { return !valid(s) }), err
	}).of(listOf(aWord, 0))
}

// validGlob tells whether some name may match it: it is one if each * stands for no or one character.
func validGlob(s string) bool {
	return wire.ValidName(strings.ReplaceAll(s, "*", "")) || wire.ValidName(strings.ReplaceAll(s, "*", "x"))
}

// startLimit is a number and a duration, or none.
func startLimit(at func(*target) *procman.StartLimit) value {
	const takes = `{ burst = 5, interval = "1m" } with 1 to 1000 and "1s" to "24h", or {}`
	return kind(takes, at, func(v any, _ procman.StartLimit) (l procman.StartLimit, ok bool, err error) {
		table, ok := v.(map[string]any)
		if !ok || len(table) == 0 {
			return l, ok, nil
		}
		burst, _ := table["burst"].(int64)
		interval, _ := table["interval"].(string)
		l.Burst = int(burst)
		l.Interval, err = time.ParseDuration(interval)
		if err != nil || len(table) > 2 || burst < 1 || burst > 1000 || l.Interval < time.Second || l.Interval > 24*time.Hour {
			return l, false, errors.New("must be " + takes)
		}
		return l, true, nil
	}).of(record(map[string]shape{"burst": whole(1, 1000), "interval": aDuration}))
}

// deadlines is a list of pairs of checkpoints with a time each.
func deadlines(at func(*target) *[]watchdog.Deadline) value {
	takes := fmt.Sprintf(`a list of at most %d as { from = "begin", to = "end", within = "1s" }, with names of at most 32 of A-Z a-z 0-9 _ -, and "1ms" to "24h"`,
		watchdog.DeadlinesMax)
	one := record(map[string]shape{"from": aWord, "to": aWord, "within": aDuration})
	one["required"] = []string{"from", "to", "within"}
	return kind(takes, at, func(v any, _ []watchdog.Deadline) (ds []watchdog.Deadline, ok bool, err error) {
		items, ok := v.([]any)
		if tables, are := v.([]map[string]any); are {
			for _, t := range tables {
				items = append(items, t)
			}
			ok = true
		}
		for _, item := range items {
			table, _ := item.(map[string]any)
			from, _ := table["from"].(string)
			to, _ := table["to"].(string)
			within, _ := table["within"].(string)
			d, err := time.ParseDuration(within)
			if err != nil || len(table) != 3 || !checkpoint(from) || !checkpoint(to) || d < time.Millisecond || d > 24*time.Hour {
				return nil, false, errors.New("must be " + takes)
			}
			ds = append(ds, watchdog.Deadline{From: from, To: to, Within: d})
		}
		return ds, ok && len(ds) <= watchdog.DeadlinesMax, nil
	}).of(listOf(one, 0))
}

// checkpoint tells whether a client can say that name.
func checkpoint(name string) bool { return wire.ValidName(name) && len(name) <= 32 }

// probed is one way to ask a client, and how often and how long. In exec and unix, %n and ${VARIABLE} are replaced later.
func probed(at func(*target) *probe.Probe) value {
	const takes = `{ tcp = "127.0.0.1:80" }, { unix = "/path" }, { http = "http://127.0.0.1/" } or { exec = ["prog"] }, if need be with interval and timeout from "10ms" to "1h", or {}`
	return kind(takes, at, func(v any, _ probe.Probe) (p probe.Probe, ok bool, err error) {
		table, ok := v.(map[string]any)
		ways := 0
		for _, key := range slices.Sorted(maps.Keys(table)) {
			v, good := table[key], false
			s, _ := v.(string)
			switch key {
			case "exec":
				p.Exec, good, err = list(v, raw)
				good = good && len(p.Exec) > 0 && p.Exec[0] != ""
			case "tcp":
				_, err := netip.ParseAddrPort(s)
				p.TCP, good = s, err == nil
			case "unix":
				_, err = raw(s)
				p.Unix, good = s, filepath.IsAbs(s)
			case "http":
				u, err := url.Parse(s)
				p.HTTP, good = s, err == nil && u.Scheme == "http" && u.Host != ""
			case "interval", "timeout":
				d, err := time.ParseDuration(s)
				if good = err == nil && d >= 10*time.Millisecond && d <= time.Hour; key == "interval" {
					p.Interval = d
				} else {
					p.Timeout = d
				}
				ways--
			}
			if ways++; err == nil && !good {
				err = fmt.Errorf("must be %s, not with %s = %s", takes, key, show(v))
			}
			if err != nil {
				return p, false, err
			}
		}
		if ways != 1 && len(table) > 0 {
			return p, false, errors.New("must be one of " + takes)
		}
		return p, ok, nil
	}).of(record(map[string]shape{"exec": listOf(aText, 1), "tcp": aText, "unix": matching("^/"), "http": aText,
		"interval": aDuration, "timeout": aDuration}))
}

// entryError is what is wrong with one entry of a table.
type entryError struct {
	key string
	error
}

// environment is variables, added to those that are set already.
func environment(at func(*target) *map[string]string) value {
	return kind(`a table of strings, as { KEY = "value" }`, at, func(v any, old map[string]string) (map[string]string, bool, error) {
		table, ok := v.(map[string]any)
		env := make(map[string]string)
		maps.Copy(env, old)
		for _, name := range slices.Sorted(maps.Keys(table)) {
			s, ok := table[name].(string)
			s, err := raw(s)
			switch {
			case !ok:
				err = fmt.Errorf("%q %w", name, wrong("a string", table[name]))
			case err != nil:
				err = fmt.Errorf("%q %w", name, err)
			case name == "" || strings.ContainsAny(name, "=\x00"):
				err = fmt.Errorf("has %q, which is no name of a variable", name)
			case zhxSets(name):
				err = fmt.Errorf("has %s, which zhx sets itself", name)
			}
			if err != nil {
				return nil, false, entryError{name, err}
			}
			env[name] = s
		}
		return env, ok, nil
	}).of(shape{"type": "object", "additionalProperties": aText})
}

// zhxSets tells whether zhx itself sets a variable for each run.
func zhxSets(name string) bool {
	return name == "ZHX_SOCKET" || name == "ZHX_NAME" || name == "ZHX_RUN"
}

// wrong is the error for a value that is not what it must be.
func wrong(takes string, v any) error { return fmt.Errorf("must be %s, not %s", takes, show(v)) }

// show writes a value as TOML, but for tables.
func show(v any) string {
	b, _ := toml.Marshal(map[string]any{"V": v})
	if s, ok := strings.CutPrefix(string(b), "V = "); ok {
		return strings.TrimSpace(s)
	}
	return "a table"
}
