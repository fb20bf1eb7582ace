package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What % and $ stand for: the environment is inRun's.
func TestExpand(t *testing.T) {
	c, problems := parsed(`
[defaults]
environment = { D = "${HOME}/%n", PATH = "/opt:${VARIABLE}", A = "defaults" }
[client.a]
command = ["${PROG}", "${A}-%n", "%%n $${A} ${VARIABLE}", "${EMPTY}", "${D}"]
environment = { PROG = "prog", A = "own", VARIABLE = "new", B = "${VARIABLE}" }
log_file = "/var/log/${A}-%n.log"
start_limit = { burst = 1, interval = "1s" }
on_failure = ["tell", "%n"]
`)
	if problems != nil {
		t.Fatal(problems)
	}
	a := c.Clients[0]
	got := slices.Concat(a.Command, a.OnFailure, []string{a.LogFile})
	if want := []string{"prog", "own-a", "%n ${A} new", "", "/root/a", "tell", "a", "/var/log/own-a.log"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	env := map[string]string{"D": "/root/a", "PATH": "/opt:value", "A": "own", "PROG": "prog", "VARIABLE": "new", "B": "value"}
	if d := cmp.Diff(env, a.Environment); d != "" {
		t.Errorf("environment: -want +got\n%s", d)
	}
}

// What stands for nothing, with the line of the word and once, however many clients have it.
func TestExpandProblems(t *testing.T) {
	_, got := parsed(`[defaults]
environment = { A = "${NOPE}" }
[client.a]
command = ["x", "${NO}", "${ZHX_NAME}"]
instances = 3
[client.b]
command = ["${EMPTY}"]
directory = "/%n"
[client.b.environment]
C = "1"
B = "${C}"
[client.c]
command = ["x", "${}", "$x"]
log_file = "/%d"
user = "${HOME}"
`)
	want := []string{
		`2: error: environment in [defaults]: "A" has ${NOPE}, which is not set`,
		`4: error: command in [client.a]: has ${NO}, which is not set`,
		`4: error: command in [client.a]: has ${ZHX_NAME}, which is not set`,
		`7: error: command in [client.b]: has "${EMPTY}" for a program, which stands for nothing`,
		`8: error: directory in [client.b]: has a single % in "/%n", which has no meaning here; write %% for the character`,
		`11: error: environment in [client.b]: "B" has ${C}, which is not set`,
		`13: error: command in [client.c]: has a single $ in "${}", which is neither ${VARIABLE} nor %n; write $$ for the character`,
		`14: error: log_file in [client.c]: has a single % in "/%d", which is neither ${VARIABLE} nor %n; write %% for the character`,
		`15: error: user in [client.c]: has a single $ in "${HOME}", which has no meaning here; write $$ for the character`,
	}
	for i := range want {
		want[i] = "clients.toml:" + want[i]
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A small file whose words stand for very much is an error, and no memory.
func TestExpandMax(t *testing.T) {
	text := "[client.a]\nenvironment = { A = '" + strings.Repeat("x", fileMax/4) + "' }\ncommand = ['x'" + strings.Repeat(", '${A}'", 1000) + "]\n"
	_, got := parsed(text)
	if want := "clients.toml:3: error: command in [client.a]: with what % and $ stand for, there are more than 4194304 bytes in all clients"; !slices.Equal(got, []string{want}) {
		t.Errorf("got %s, want %s", got, want)
	}
}
