package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"zhx/daemon/control"
)

// This file packs what somebody needs who helps from afar. Whatever cannot be had is left out, and the archive says why.

const (
	reportLines = 200     // of what each client printed
	reportTail  = 1 << 20 // bytes of a file, the last
	secretMin   = 8       // bytes of a secret that is taken out wherever it stands; a shorter one would be found everywhere
	redacted    = "REDACTED"
)

func (a *app) reportCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "pack status, logs, doctor and configuration into one file for support",
		Long: `Pack status, logs, deaths, doctor, configuration and some of /proc into one file for support, with or without zhxd. It is sent nowhere.

Values that are named as secrets are taken out: SECRET, TOKEN, PASS, KEY, CRED, AUTH in any case; those of 8 bytes and more also
wherever clients printed them. Files of environment_file and cookies are not in it. What a client prints may have other secrets: look before you pass it on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now().UTC()
			host, _ := os.Hostname()
			name := fmt.Sprintf("zhx-report-%s-%s", cmp.Or(host, "board"), now.Format("20060102T150405Z"))
			to, said := io.Writer(a.out), a.err
			if file == "" {
				file = name + ".tar.gz"
			}
			if file != "-" {
				f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return control.Errorf(control.CodeFailed, "zhxctl report -O FILE, one that is not there yet", "%w", err)
				}
				defer f.Close()
				to, said = f, a.out
			}
			parts := a.gather(cmd.Context())
			size, err := pack(to, name, now, parts)
			if err != nil {
				if file != "-" {
					os.Remove(file) // half an archive helps nobody
				}
				return fmt.Errorf("write %s: %w", file, err)
			}
			fmt.Fprintf(said, "%s: %s, %d KiB, secrets taken out; nothing was sent anywhere\n  -> look at it (tar xzf), then pass it on\n",
				file, count(len(parts), "file"), (size+1023)>>10)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "output", "O", "", "write `FILE`, - being standard output (default zhx-report-HOST-TIME.tar.gz here)")
	return cmd
}

// part is one file of a report.
type part struct{ name, text string }

func (a *app) gather(ctx context.Context) (parts []part) {
	add := func(name, text string) { parts = append(parts, part{name, text}) }
	verb := func(name string, args ...string) {
		var b bytes.Buffer
		code := run(ctx, append([]string{"--control", a.control, "--config", a.config, "--timeout", a.timeout.String()}, args...), &b, &b)
		if code != 0 {
			fmt.Fprintf(&b, "exit %d\n", code)
		}
		add(name, b.String())
	}
	read := func(name, path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			b = []byte(err.Error() + "\n")
		}
		add(name, string(b[max(0, len(b)-reportTail):]))
	}
	st, err := a.meet(ctx)
	if err != nil {
		add("status.json", err.Error()+"\n")
	} else {
		text, _ := json.MarshalIndent(st, "", "  ")
		add("status.json", string(text)+"\n")
		verb("events.jsonl", "events", "--json", "-n", "-1")
	}
	add("version.txt", version+"\n")
	verb("doctor.txt", "doctor")
	verb("check.json", "check", "--system", "--json")
	for _, c := range st.Clients {
		verb("why/"+c.Name+".txt", "why", c.Name)
		add("logs/"+c.Name+".txt", a.lastLines(ctx, c.Name))
	}
	read("clients.toml", cmp.Or(a.config, defaultConfig))
	found, _ := a.sockets()
	read("zhxd.log", filepath.Join(found.RunDir, "zhxd.log"))
	if b, err := exec.CommandContext(ctx, "journalctl", "-u", unit, "-n", "1000", "--no-pager").Output(); err == nil {
		add("journal.txt", string(b))
	}
	for _, name := range []string{"version", "cmdline", "meminfo", "mounts", "loadavg", "uptime", "cpuinfo"} {
		read("proc/"+name, "/proc/"+name)
	}
	secrets := a.secrets(ctx, st)
	for i := range parts {
		parts[i].text = redact(parts[i].text, secrets)
	}
	return parts
}

// lastLines is what a client printed last, with its time.
func (a *app) lastLines(ctx context.Context, name string) string {
	var b strings.Builder
	err := a.ask(ctx, readLimit, func(ctx context.Context, zhxd *control.Client) error {
		return zhxd.Logs(ctx, control.LogQuery{Names: []string{name}, N: reportLines}, func(l control.LogLine) error {
			fmt.Fprintf(&b, "%s %s\n", l.At.UTC().Format("2006-01-02T15:04:05.000Z"), l.Text)
			return nil
		})
	})
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	return b.String()
}

// pack writes parts as files of a folder, and tells how many bytes that took.
func pack(to io.Writer, folder string, now time.Time, parts []part) (size int, err error) {
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	files := tar.NewWriter(zip)
	for _, p := range parts { // into memory: it does not fail
		_ = files.WriteHeader(&tar.Header{Name: folder + "/" + p.name, Mode: 0o600, Size: int64(len(p.text)), ModTime: now})
		_, _ = io.WriteString(files, p.text)
	}
	_ = files.Close()
	_ = zip.Close()
	return to.Write(b.Bytes())
}

const secretWord = `(?i:secret|token|pass|key|cred|auth)`

var (
	secretName = regexp.MustCompile(secretWord)
	// A value after a name that is a secret's: NAME = "…", NAME=…, "--name", "…"; and the password of a URL.
	secretValue = regexp.MustCompile(`([\w-]*` + secretWord + `[\w-]*["']?[ \t]*=[ \t]*|["']--?[\w-]*` + secretWord + `[\w-]*["'][ \t]*,[ \t]*)` +
		`("""(?s:.*?)(?:"""|\z)|'''(?s:.*?)(?:'''|\z)|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|["'][^\n]*|[^\s,\[\]{}"']+)`)
	secretURL = regexp.MustCompile(`(://[^/\s:@]*:)[^/\s@]+@`)
)

// secrets are the values that are named as secrets: in the file, also where it is not valid, with ${VARIABLE} replaced where it is;
// and in the environments of clients that run, which a file may have started that was another.
func (a *app) secrets(ctx context.Context, st control.Status) (values []string) {
	add := func(name, value string) {
		if secretName.MatchString(name) && len(value) >= secretMin {
			values = append(values, value)
		}
	}
	if conf, _, _ := a.load(a.environ(ctx)); conf != nil {
		for _, c := range conf.Clients {
			for name, value := range c.Environment {
				add(name, value)
			}
		}
	}
	text, _ := os.ReadFile(cmp.Or(a.config, defaultConfig))
	for _, m := range secretValue.FindAllStringSubmatch(string(text), -1) {
		add(m[1], strings.Trim(m[2], `"'`))
	}
	for _, c := range st.Clients {
		if c.PID != nil {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", *c.PID))
			for variable := range strings.SplitSeq(string(b), "\x00") {
				name, value, _ := strings.Cut(variable, "=")
				add(name, value)
			}
		}
	}
	return values
}

// redact takes secrets out of a file, as TOML or a shell writes them, and those that are known wherever they stand.
func redact(text string, known []string) string {
	text = secretURL.ReplaceAllString(secretValue.ReplaceAllString(text, `${1}"`+redacted+`"`), `${1}`+redacted+`@`)
	for _, value := range known {
		text = strings.ReplaceAll(text, value, redacted)
		quoted := line(value) // as JSON has it
		text = strings.ReplaceAll(text, quoted[1:len(quoted)-1], redacted)
	}
	return text
}
