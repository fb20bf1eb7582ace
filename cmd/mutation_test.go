package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"zhx/daemon/config"
	"zhx/procman"
)

// TestMutations asks the tests whether they would notice a key that is read, checked, documented and then ignored. For each
// key of the table of keys, the programs and tests are built with code in which applying it is switched off (go's -overlay:
// no file changes), and some test must fail. What it prints is the list: key, and the test that killed it.
//
//	ZHX_MUTATE=all go test -v -timeout 1h -run Mutations ./cmd
//
// The plan of a reload still tells of the key, and daemon/config's own tests are not run: that a key is read does not show
// that it does anything. A killer must fail alone as well, and pass without the mutant.
func TestMutations(t *testing.T) {
	chosen := os.Getenv("ZHX_MUTATE")
	if chosen == "" {
		t.Skip("set ZHX_MUTATE=all, or to names of keys with a comma between: it takes minutes")
	}
	sound := map[string]bool{} // "PACKAGE TEST": does it pass without a mutant?
	for _, key := range documentedKeys(t) {
		name := key[strings.Index(key, ".")+1:]
		if words := strings.Split(chosen, ","); chosen != "all" && !slices.Contains(words, name) && !slices.Contains(words, key) {
			continue
		}
		m, in := mutantOf(t, key)
		began, by := time.Now(), ""
		for _, pkg := range append(in, "./cmd") {
			if by = m.killer(t, pkg, sound); by != "" {
				by = strings.TrimPrefix(pkg, "./") + " " + by
				break
			}
		}
		if by == "" {
			t.Errorf("%-32s SURVIVES", key)
			continue
		}
		t.Logf("%-32s %-50s %5.1f s", key, by, time.Since(began).Seconds())
	}
}

// mutantLimit is for the tests of one package. Time that runs out is a kill: a test waits for what does not come.
const mutantLimit = 2 * time.Minute

// A mutant is edits of files of the tree: path -> what stands there once, what stands there instead. With an empty first
// part the file is new.
type mutant map[string][][2]string

// single is tests of single keys. They are asked before all others, as they are fast and say the most.
const single = "Keys?$|Live$|DependsOn$|StartTimeout$|StartLimit$|SuccessCodes$|GiveUp$|Stray$|AutostartTurnedOn$|Probe$|HalfTime$|Startup$|Deadline$|Critical$|Observe$|Card$|Ladder$|AbortChild$"

// killer is the first test of a package that fails because of the mutant; "" if there is none.
func (m mutant) killer(t *testing.T, pkg string, sound map[string]bool) string {
	t.Helper()
	out := []string{"TestMutations", "TestIdle"} // the latter is a measurement of a minute
	for _, run := range []string{single, "."} {
		for {
			by := m.test(t, "-failfast", "-run", run, "-skip", "^("+strings.Join(out, "|")+")$", pkg)
			if by == "" {
				break
			}
			alone := []string{"-failfast", "-run", "^" + whole(by) + "$", pkg}
			id := pkg + " " + whole(by)
			if _, known := sound[id]; !known {
				sound[id] = mutant{}.test(t, alone...) == ""
			}
			if sound[id] && m.test(t, alone...) != "" {
				return by
			}
			t.Logf("%s does not count: it fails without a mutant, or not each time with it", id)
			out = append(out, whole(by))
		}
	}
	return ""
}

// whole is the test that a subtest is part of.
func whole(test string) string {
	test, _, _ = strings.Cut(test, "/")
	return test
}

// test runs the tests of one package with the mutant in it, and returns the first that fails, "" if all pass.
func (m mutant) test(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), mutantLimit+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-count=1", "-timeout", mutantLimit.String()}, args...)...)
	cmd.Dir, cmd.WaitDelay = "..", time.Second
	cmd.Env = append(os.Environ(), "ZHX_TEST_BIN=", "ZHX_MUTANT_DIR="+t.TempDir(), // the tests themselves call go build
		"GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+m.overlay(t)))
	out, err := cmd.Output()
	for line := range bytes.Lines(out) {
		var event struct{ Action, Test, Output string }
		if json.Unmarshal(line, &event) == nil && event.Test != "" && (event.Action == "fail" || strings.HasPrefix(event.Output, "panic: ")) {
			return event.Test
		}
	}
	if err != nil {
		t.Fatalf("go %v: %v, and no test has failed: the mutant is no program\n%s", cmd.Args, err, out[max(0, len(out)-5000):])
	}
	return ""
}

// overlay writes the files that stand in for those of the tree, and go's list of them.
func (m mutant) overlay(t *testing.T) string {
	t.Helper()
	dir, replace := t.TempDir(), map[string]string{}
	for path, edits := range m {
		full, err := filepath.Abs(filepath.Join("..", path))
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		if edits[0][0] != "" {
			b, err := os.ReadFile(full)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		for _, e := range edits {
			if e[0] != "" && strings.Count(text, e[0]) != 1 {
				t.Fatalf("%s has %q %d times; name another place where the key is applied", path, e[0], strings.Count(text, e[0]))
			}
			text = strings.Replace(text, e[0], e[1], 1)
		}
		replace[full] = filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))
		if err := os.WriteFile(replace[full], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return list
}

// documentedKeys lists all keys as SECTION.KEY. The document is made from the table of keys, which a test of its own sees to.
func documentedKeys(t *testing.T) (keys []string) {
	t.Helper()
	text, err := os.ReadFile("../etc/doc/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	section := ""
	for line := range strings.Lines(string(text)) {
		if m := regexp.MustCompile(`^## \[(\w+)`).FindStringSubmatch(line); m != nil {
			section = m[1]
		} else if m := regexp.MustCompile("^\\| `(\\w+)` \\|").FindStringSubmatch(line); m != nil {
			keys = append(keys, section+"."+m[1])
		}
	}
	if len(keys) < 50 {
		t.Fatalf("only %d keys", len(keys))
	}
	return keys
}

// mutantOf is the mutant of a key, and the packages whose tests may kill it, before those of ./cmd.
func mutantOf(t *testing.T, key string) (m mutant, in []string) {
	t.Helper()
	if m, ok := daemonMutants()[key]; ok {
		return m, []string{"./daemon"}
	}
	spec := reflect.TypeFor[procman.Spec]()
	for i := range spec.NumField() {
		if f := spec.Field(i); "client."+f.Tag.Get("key") == key {
			return procmanMutant(f.Name, defaultOf(t, i)), []string{"./procman", "./daemon"}
		}
	}
	t.Fatalf("%s is applied nowhere that is known here: add its mutant", key)
	return nil, nil
}

// defaultOf is what a field of a client's spec is without its key, as Go source within procman. A command is true(1) then.
func defaultOf(t *testing.T, field int) string {
	t.Helper()
	conf, err := config.Parse("clients.toml", []byte("[client.a]\ncommand = ['true']\n"), config.Options{RunDir: "/run/zhx"})
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(conf.Clients[0].Spec).Field(field).Interface()
	return strings.ReplaceAll(fmt.Sprintf("%#v", v), "procman.", "")
}

// procmanMutant is a procman that takes every spec without what the key says. The plan is that of the true specs.
func procmanMutant(field, value string) mutant {
	return mutant{
		"procman/procman.go": {{"Diff(s.specs, specs)", "mutantDiff(s, &specs)"}},
		"procman/record.go":  {{"configured := byName(specs)", "configured := byName(mutantSpecs(specs))"}},
		"procman/mutant.go": {{"", fmt.Sprintf(`package procman

import (
	"os"
	"slices"
	"sync"
	"testing"
)

// A test binary that is a client and is not told its part would run all tests, which start it again, and so on without end.
func init() {
	if testing.Testing() && os.Getenv("ZHX_RUN") != "" && len(os.Args) == 1 && os.Getenv("PROCMAN_TEST_CHILD") == "" {
		os.Exit(1)
	}
}

var mutantWas sync.Map

func mutantDiff(s *Set, specs *[]Spec) Plan {
	was, _ := mutantWas.Swap(s, *specs)
	old, _ := was.([]Spec)
	plan := Diff(old, *specs)
	*specs = mutantSpecs(*specs)
	return plan
}

func mutantSpecs(specs []Spec) []Spec {
	specs = slices.Clone(specs)
	for i := range specs {
		specs[i].%s = %s
	}
	return specs
}
`, field, value)}},
	}
}

// daemonMutants are the keys that procman does not know, or not alone.
func daemonMutants() map[string]mutant {
	all := map[string]mutant{}
	for key, reset := range map[string]string{ // what zhxd begins with
		"socket":             `d.Socket = d.RunDir + "/zhx.sock"`,
		"socket_mode":        `d.SocketMode = 0o666`,
		"socket_group":       `d.SocketGroup = ""`,
		"tcp":                `d.TCP = "127.1.1.1:8000"`,
		"control":            `d.Control = d.RunDir + "/control.sock"`,
		"control_group":      `d.ControlGroup = ""`,
		"prototype_presence": `d.PrototypePresence = true`,
		"state_dir":          `d.StateDir = d.RunDir`,
		"max_body":           `d.MaxBody = 256 << 10`,
		"device":             `conf.Watchdog.Device = ""`,
		"magic_close":        `conf.Watchdog.MagicClose = false`,
		"reboot_limit":       `conf.Watchdog.RebootLimit = 3`,
		"run_dir": `if o.RunDir == "" { // not the true default: this may be a machine that has a zhxd
			was := d.RunDir
			d.RunDir = os.Getenv("ZHX_MUTANT_DIR")
			if d.Socket == was+"/zhx.sock" {
				d.Socket = d.RunDir + "/zhx.sock"
			}
			if d.Control == was+"/control.sock" {
				d.Control = d.RunDir + "/control.sock"
			}
		}`,
	} {
		section := "daemon."
		if strings.Contains(reset, "conf.Watchdog") {
			section = "watchdog."
		}
		all[section+key] = mutant{
			"daemon/daemon.go": {{"conf, err := load(o)", "conf, err := mutantLoad(o)"}},
			"daemon/mutant.go": {{"", `package daemon

import (
	"os"

	"zhx/daemon/config"
)

var _ = os.Getenv

func mutantLoad(o Options) (*config.Config, error) {
	conf, err := load(o)
	if err != nil {
		return nil, err
	}
	d := &conf.Daemon
	_ = d
	` + reset + `
	return conf, nil
}
`}},
		}
	}
	const (
		inForce   = "next.Daemon.Identity, next.Daemon.Reload = conf.Daemon.Identity, conf.Daemon.Reload"
		eachOwner = "for _, cc := range conf.Clients {\n"
		eachSpec  = "for _, c := range conf.Clients {\n"
		timeout   = "if c.Watchdog.Timeout() > timeoutMax {"
		client    = "f.fill(path, &target{client: &cl})\n"
		group     = "c.Groups = append(c.Groups, g)"
	)
	maps.Copy(all, map[string]mutant{
		"daemon.identity":   {"daemon/reload.go": {{inForce, inForce + "\nnext.Daemon.Identity = \"enforce\""}}},
		"daemon.reload":     {"daemon/reload.go": {{inForce, inForce + "\nnext.Daemon.Reload = \"auto\""}}},
		"watchdog.mode":     {"daemon/reload.go": {{inForce, inForce + "\nnext.Watchdog.Mode = \"enforce\""}}},
		"watchdog.interval": {"daemon/config/config.go": {{timeout, "c.Watchdog.Interval = 3 * time.Second\n" + timeout}}},
		"watchdog.misses":   {"daemon/config/config.go": {{timeout, "c.Watchdog.Misses = 3\n" + timeout}}},
		"client.names":      {"daemon/reload.go": {{eachOwner, eachOwner + "cc.Names = nil\n"}}},
		"client.instances":  {"daemon/config/config.go": {{client, client + "cl.Instances = 0\n"}}},
		"client.watchdog": {"daemon/reload.go": {{eachOwner, eachOwner + "cc.Watchdog = \"auto\"\n"},
			{eachSpec, eachSpec + "if c.Watchdog == \"off\" {\nc.FrozenTimeout = c.WatchdogTimeout\n}\n"}}},
		"client.watchdog_timeout": {"daemon/reload.go": {{eachOwner, eachOwner + "cc.WatchdogTimeout = conf.Watchdog.Timeout()\n"},
			{eachSpec, eachSpec + "if c.FrozenTimeout > 0 {\nc.FrozenTimeout = conf.Watchdog.Timeout()\n}\n"}}},
		"group.clients": {"daemon/config/relations.go": {{group, "g.Clients = nil\n" + group}}},
		"group.restart": {"daemon/config/relations.go": {{group, "g.RestartAll = false\n" + group}}},
	})
	for key, zero := range map[string]string{"StartupTimeout": "0", "Deadlines": "nil", "Probe": "probe.Probe{}", "WarnAfter": "0", "WarnSignal": "0", "Critical": "false",
		"Hold": "broker.Hold{Messages: 256, Bytes: 256 << 10, For: 10 * time.Second}", "MaySendTo": `[]string{"*"}`, "MayReceiveFrom": `[]string{"*"}`,
		"MayPublish": `[]string{">"}`, "MaySubscribe": `[]string{">"}`} {
		edits := [][2]string{{eachOwner, eachOwner + "cc." + key + " = " + zero + "\n"}}
		for word, pkg := range map[string]string{"probe.": "zhx/watchdog/probe", "broker.": "zhx/ipc/broker"} {
			if strings.HasPrefix(zero, word) {
				edits = append(edits, [2]string{`"zhx/procman"`, "\"zhx/procman\"\n\"" + pkg + "\""})
			}
		}
		all["client."+snake(key)] = mutant{"daemon/reload.go": edits}
	}
	return all
}

// snake is the key of a field: StartupTimeout is startup_timeout.
func snake(field string) string {
	return strings.ToLower(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(field, "${1}_$2"))
}
