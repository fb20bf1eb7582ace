package daemon

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A line for a person: when, who, what, the facts, and what happens next.
func TestLogLine(t *testing.T) {
	var b buffer
	l := newLog(&b)
	l.Logger().With("client", "modem").Warn("lapse", "pid", 12, "text", "two words", "empty", "", "raw", "\x1bc", "next", "it is killed")
	l.Logger().Info("ready", "socket", "/run/zhx/zhx.sock")
	l.Output("modem", []byte("colour \x1b[31mred\x07 \xff 中文"))
	l.Close()
	want := []string{
		`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \[modem\] warn: lapse \(pid=12 text="two words" empty="" raw=\\x1bc\) -> it is killed$`,
		`Z \[zhxd\] ready \(socket=/run/zhx/zhx\.sock\)$`,
		`Z \[modem\] \| colour \\x1b\[31mred\\a \\xff 中文$`,
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d: %q", len(lines), len(want), lines)
	}
	for i, w := range want {
		if !regexp.MustCompile(w).MatchString(lines[i]) {
			t.Errorf("line %d is %q, want %s", i, lines[i], w)
		}
	}
}

// A log that nobody reads holds nobody up: lines are dropped, and the drop is counted and told when it is read again.
func TestLogNeverWaits(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	l := newLog(w)
	line := []byte(strings.Repeat("x", 200))
	for range logQueue + 1000 { // a pipe holds 64 KiB, the queue the rest
		l.Output("c", line)
	}
	if l.Dropped() == 0 {
		t.Error("no line was dropped, and none was written either")
	}
	seen := make(chan string)
	go func() {
		var all strings.Builder
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Read(buf)
			all.Write(buf[:n])
			if err != nil {
				seen <- all.String()
				return
			}
		}
	}()
	l.Close()
	w.Close()
	if !strings.Contains(<-seen, "log lines dropped (count=") {
		t.Error("the drop was not told")
	}
}

// zhxd.log: 1 MiB, one older.
func TestLogFileRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zhxd.log")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // an earlier zhxd's
		t.Fatal(err)
	}
	f, err := openLogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	chunk := []byte(strings.Repeat("x", 1023) + "\n")
	for range 3 << 10 {
		if _, err := f.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{path, path + ".1"} {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > logFileMax || fi.Size() == 0 {
			t.Errorf("%s has %d bytes", filepath.Base(p), fi.Size())
		}
		if fi.Mode() != logMode {
			t.Errorf("%s has mode %v: what clients print is not for everybody", filepath.Base(p), fi.Mode())
		}
	}
	if all, _ := filepath.Glob(path + "*"); len(all) != 2 {
		t.Errorf("files: %v", all)
	}
}
