package procman

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"zhx/procman/proc"
)

// TestRecord: what is written is read again; what cannot be understood is an error and left alone.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	h := &system{name: "a", o: Options{Dir: dir}}
	path := filepath.Join(dir, "a.json")
	fresh := record{Version: recordVersion, Client: "a"}
	full := record{Version: recordVersion, Client: "a", Run: 7, Mark: "m", Boot: "b", PID: 5, Start: 9, UID: 1000, StoppedBy: "anna",
		Sum: "s", TTY: true, Began: 77, Registered: true, Armed: true, Ready: true}
	for _, r := range []record{full, fresh} { // the shorter after the longer
		if err := h.save(r); err != nil {
			t.Fatal(err)
		}
		got, err := h.load()
		want(t, "error", err, nil)
		want(t, "record", got, r)
	}
	if err := h.save(record{StoppedBy: strings.Repeat("x", recordSize)}); err == nil {
		t.Error("a record that is too long was written")
	}
	for _, c := range []struct{ purpose, content, err string }{
		{"empty, as after a power cut", "", ""},
		{"zeros, as after a power cut", strings.Repeat("\x00", recordSize), ""},
		{"a newer version", `{"version":2,"client":"a","run":"many"}`, "version 2"},
		{"no version", `{"client":"a"}`, "version 0"},
		{"half", `{"version":1,"cli`, "unexpected end"},
	} {
		os.WriteFile(path, []byte(c.content), 0o600)
		got, err := h.load()
		if c.err == "" && (err != nil || got != fresh) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got %+v, %v", c.purpose, got, err)
		}
	}
}

// TestNewerRecord: a client whose record is of a newer version is not started, its record not touched, until it is gone.
func TestNewerRecord(t *testing.T) {
	dir := t.TempDir()
	path, content := filepath.Join(dir, "a.json"), `{"version":2}`
	os.WriteFile(path, []byte(content), 0o600)
	st := open(t, dir, proc.Options{})
	if err := st.Leftovers(bg, nil); err == nil {
		t.Error("leftovers say nothing of it")
	}
	st.Apply([]Spec{real("a", "sleep"), real("b", "sleep")})
	st.Wait(bg)
	if s := st.Status(); s[0].State != Failed || !strings.Contains(s[0].Text, "version 2") || s[1].State != Running {
		t.Errorf("got %+v", s)
	}
	st.Stop(bg, "a", "the test")
	b, _ := os.ReadFile(path)
	want(t, "the record", string(b), content)
	os.Remove(path)
	if err := st.Start(bg, "a", "the test"); err != nil {
		t.Errorf("after its removal: %v", err)
	}
}

// TestStoppedByHandStays: over the end of a zhxd, and over edits; the numbers of runs go on.
func TestStoppedByHandStays(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir, proc.Options{})
	first.Apply([]Spec{real("a", "sleep"), real("b", "sleep")})
	first.Wait(bg)
	want(t, "stop", first.Stop(bg, "a", "anna"), nil)
	first.close()

	st := open(t, dir, proc.Options{})
	st.Apply([]Spec{real("a", "sleep"), real("b", "sleep")})
	st.Wait(bg)
	st.Apply([]Spec{real("a", "sleep", func(s *Spec) { s.Directory = "/" }), real("b", "sleep")})
	s := st.Status()
	want(t, "stopped by hand", s[0].State, Stopped)
	want(t, "by", s[0].StoppedBy, "anna")
	want(t, "the other", s[1].State, Running)
	want(t, "its run", s[1].Run, 2)
	want(t, "start", st.Start(bg, "a", "anna"), nil)
	want(t, "run", st.Status()[0].Run, 2)
}

// TestLeftovers: what a dead zhxd left is ended if it proves to be what the record says, and nothing else is touched.
func TestLeftovers(t *testing.T) {
	boot := proc.BootID()
	for _, c := range []struct {
		purpose string
		change  func(r *record)
		killed  bool
		blocked string
	}{
		{"a run", func(r *record) {}, true, ""},
		{"a run between fork and record", func(r *record) { r.PID, r.Start = 0, 0 }, true, ""},
		{"a recycled pid", func(r *record) { r.Mark, r.Start, r.Cgroup = "another", r.Start-1, "" }, false, "holds"},
		{"known by its cgroup alone", func(r *record) { r.Mark, r.PID, r.Start = "another", 0, 0 }, true, ""},
		{"a record of another boot", func(r *record) { r.Boot = "another" }, false, "holds"},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			dir := t.TempDir() + "/[a]" // no pattern
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			victim := crashedZhxd(t, dir)
			st := open(t, dir, proc.Options{})
			h := &system{name: "a", o: st.o}
			r, err := h.load()
			if err != nil || r.Boot != boot || r.PID != victim.PID || r.Start != victim.Start || r.Run != 1 {
				t.Fatalf("got %+v, %v; want one of %+v", r, err, victim)
			}
			c.change(&r)
			if c.killed && r.Mark == "another" && r.Cgroup == "" {
				syscall.Kill(victim.PID, syscall.SIGKILL)
				os.Remove(filepath.Join(dir, "a.1.out"))
				t.Skip("no cgroup2 that this process may write to")
			}
			h.save(r)
			ctx, cancel := context.WithTimeout(bg, 10*time.Second)
			defer cancel()
			err = st.Leftovers(ctx, nil)
			now, _ := proc.ReadStat(victim.PID)
			want(t, "killed", now.ID != victim || !now.Living(), c.killed)
			if (err == nil) != (c.blocked == "") || err != nil && !strings.Contains(err.Error(), c.blocked) {
				t.Errorf("leftovers: %v", err)
			}
			st.Apply([]Spec{real("a", "sleep")})
			st.Wait(bg)
			want(t, "started beside it", st.Status()[0].State == Running, c.blocked == "")
			st.end(victim)
			want(t, "start when it is gone", st.Start(bg, "a", "the test"), nil)
		})
	}
}

// crashedZhxd returns the client of a zhxd that worked in dir and was killed.
func crashedZhxd(t *testing.T, dir string) proc.ID {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"=zhxd "+dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	s, err := proc.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	return s.ID
}
