package main

import (
	"strings"
	"testing"
)

// Values that are named as secrets do not leave the board, however they are written; the rest stays legible.
func TestRedact(t *testing.T) {
	for _, tt := range []struct{ purpose, text, want string }{
		{"a table", `environment = { API_TOKEN = "hunter2", PLAIN = "stays" }`, `environment = { API_TOKEN = "REDACTED", PLAIN = "stays" }`},
		{"any case, quotes of both kinds, no blanks", `"db-password"='hunter2',x="stays"`, `"db-password"="REDACTED",x="stays"`},
		{"quotes within", `SECRET = "a\"hunter2" # stays`, `SECRET = "REDACTED" # stays`},
		{"several lines", "KEY = \"\"\"a\nhunter2\n\"\"\"\nstays", "KEY = \"REDACTED\"\nstays"},
		{"several lines that do not end", "KEY = '''a\nhunter2\n", `KEY = "REDACTED"`},
		{"a string that does not end", "KEY = \"hunter2 hunter2\nstays", "KEY = \"REDACTED\"\nstays"},
		{"a dotted key", `client.a.environment.AUTH = "hunter2"`, `client.a.environment.AUTH = "REDACTED"`},
		{"a shell's line, printed", `export AWS_KEY=hunter2 stays`, `export AWS_KEY="REDACTED" stays`},
		{"an argument", `["prog", "--token=hunter2", "-x"]`, `["prog", "--token="REDACTED"", "-x"]`},
		{"an argument of its own", `["prog", "--password", "hunter2", "-x"]`, `["prog", "--password", "REDACTED", "-x"]`},
		{"the password of a URL", `DB = "pg://me:hunter2@host/db"`, `DB = "pg://me:REDACTED@host/db"`},
		{"a known value in JSON", `{"text":"it is sesame\\\"open"}`, `{"text":"it is REDACTED"}`},
		{"a list, a table and a section of such a name", "[client.keypad]\nkeypad.command = [\"stays\"]\nkeys = [\"stays\"]\nkeys = { a = \"stays\" }",
			"[client.keypad]\nkeypad.command = [\"stays\"]\nkeys = [\"stays\"]\nkeys = { a = \"stays\" }"},
	} {
		if got := redact(tt.text, []string{`sesame\"open`}); got != tt.want || strings.Contains(got, "hunter2") {
			t.Errorf("%s:\n%s\nbecame\n%s\nwant\n%s", tt.purpose, tt.text, got, tt.want)
		}
	}
}
