package cmd

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write etc/man/zhxd.8 anew")

// zhxd.8 has the flags that zhxd has. What else it says stands here.
func TestManPageOfZhxd(t *testing.T) {
	help, err := exec.Command(filepath.Join(bin, "zhxd"), "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, help)
	}
	roff := strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace
	var options strings.Builder
	for _, m := range regexp.MustCompile(`(?m)^  -(\S+)(?: (\S+))?\n    \t(.+)$`).FindAllStringSubmatch(string(help), -1) {
		name := `\fB\-\-` + roff(m[1]) + `\fR`
		if m[2] != "" {
			name += ` \fI` + m[2] + `\fR`
		}
		fmt.Fprintf(&options, ".TP\n%s\n%s\n", name, roff(m[3]))
	}
	want := strings.Replace(zhxdPage, "OPTIONS\n", "OPTIONS\n"+options.String(), 1)
	const path = "../etc/man/zhxd.8"
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("etc/man/zhxd.8 has not these flags (%v): go test ./cmd -run TestManPageOfZhxd -update", err)
	}
}

// What reads manual pages has nothing to say against ours.
func TestManPagesAreWellFormed(t *testing.T) {
	pages, err := filepath.Glob("../etc/man/*")
	if err != nil || len(pages) != 3 {
		t.Fatalf("pages: %q, %v", pages, err)
	}
	for _, tt := range [][]string{{"man", "--warnings", "-E", "UTF-8", "-l"}, {"mandoc", "-Tlint", "-Wwarning"}} {
		t.Run(tt[0], func(t *testing.T) {
			if _, err := exec.LookPath(tt[0]); err != nil {
				t.Skip("there is no " + tt[0])
			}
			for _, page := range pages {
				c := exec.Command(tt[0], append(tt[1:], page)...)
				c.Env = append(os.Environ(), "MANWIDTH=200", "LC_ALL=C.UTF-8")
				var said bytes.Buffer
				c.Stderr = &said
				if tt[0] == "mandoc" { // it tells on standard output
					c.Stdout = &said
				}
				if err := c.Run(); err != nil || said.Len() > 0 {
					t.Errorf("%s: %v: %s", page, err, said.String())
				}
			}
		})
	}
}

const zhxdPage = `.TH ZHXD 8 2026-11-23 zhx "System Administration"
.SH NAME
zhxd \- message broker, process manager and watchdog of one board
.SH SYNOPSIS
.B zhxd
[\fB\-\-config\fR \fIFILE\fR]
[\fB\-\-run\-dir\fR \fIDIR\fR]
[\fB\-\-log\fR \fIFILE\fR]
[\fB\-\-keeper\fR]
.SH DESCRIPTION
zhxd starts the clients that
.BR clients.toml (5)
names, keeps what they print, starts them again when they end, carries their
messages by name, and kills those whose watchdog is not fed in time.
It runs in the foreground;
.B zhxctl start
starts it in the background, under a keeper that starts it again should it die.
.PP
When zhxd dies its clients go on, and the next zhxd adopts them.
.SH OPTIONS
.SH SIGNALS
.TP
.BR SIGTERM ", " SIGINT
Stop all clients in reverse order, and end.
A second one, later than half a second, kills what is left.
.TP
.B SIGHUP
Read the configuration again.
An invalid one changes nothing.
.SH EXIT STATUS
.TP
.B 0
It ended in order.
.TP
.B 1
It failed; or another zhxd holds the run directory.
.TP
.B 2
Wrong usage, or an invalid configuration.
.SH ENVIRONMENT
.TP
.B NOTIFY_SOCKET
Is told READY=1 when the clients are started, and STOPPING=1, as by
.BR sd_notify (3).
.TP
.B WATCHDOG_USEC
Has it tell WATCHDOG=1 as long as all of its parts answer.
.TP
.B XDG_RUNTIME_DIR
Has the run directory of a zhxd that is not root's: zhx in it.
.PP
Clients get PATH, LANG and TZ of it, and ZHX_SOCKET, ZHX_NAME and ZHX_RUN.
.SH FILES
.TP
.I /etc/zhx/clients.toml
The configuration.
.TP
.I /run/zhx
The run directory: zhx.sock for clients, control.sock for
.BR zhxctl (1),
cookie for clients over TCP, zhxd.log if
.B zhxctl start
started it.
.TP
.I /var/lib/zhx/resets.json
The record of the reboots that zhxd has made.
.SH SEE ALSO
.BR zhxctl (1),
.BR clients.toml (5)
`
