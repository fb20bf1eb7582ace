package proc

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A copy of the test binary plays the client's program, under a name longer than the kernel keeps.
func TestStrays(t *testing.T) {
	k := open(t, Options{})
	dir := t.TempDir()
	prog := filepath.Join(dir, "client-with-a-long-name")
	copyFile(t, "/proc/self/exe", prog)
	other := filepath.Join(dir, "client-with-a-longer-name") // the same first 15 characters
	copyFile(t, prog, other)
	live := filepath.Join(dir, "live.sock")
	ln, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dead := filepath.Join(dir, "dead.sock")
	gone, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	gone.(*net.UnixListener).SetUnlinkOnClose(false)
	gone.Close()
	const ours = "/run/ours.sock"
	tree := newTree(k)
	defer tree.Close()

	argv := []string{prog, "child", "say", "sleep"}
	tests := []struct {
		name string
		c    copyOf
		want string // "full", the reason in part, or "" for not mentioned
	}{
		{"started by hand", copyOf{path: prog, argv: argv}, "full"},
		{"by another path to the same file", copyOf{path: prog, argv: []string{"./client-with-a-long-name", "child", "say", "sleep"}}, "full"},
		{"argv[0] is another name", copyOf{path: prog, argv: []string{"applet", "child", "say", "sleep"}}, "has other arguments"},
		{"another argument", copyOf{path: prog, argv: []string{prog, "child", "say", "say", "sleep"}}, "has other arguments"},
		{"another program", copyOf{path: other, argv: argv}, ""},
		{"on a terminal", copyOf{path: prog, argv: argv, tty: true}, "has a terminal"},
		{"traced", copyOf{path: prog, argv: argv, trace: true}, "is traced by process"},
		{"of a zhxd that lives", copyOf{path: prog, argv: argv, env: []string{"ZHX_RUN=x", "ZHX_SOCKET=" + live}}, "belongs to the zhxd at " + live},
		{"of a zhxd that is dead", copyOf{path: prog, argv: argv, env: []string{"ZHX_RUN=x", "ZHX_SOCKET=" + dead}}, "full"},
		{"of a zhxd whose socket is gone", copyOf{path: prog, argv: argv, env: []string{"ZHX_RUN=x", "ZHX_SOCKET=/nowhere"}}, "full"},
		{"of our predecessor", copyOf{path: prog, argv: argv, env: []string{"ZHX_RUN=x", "ZHX_SOCKET=" + ours}}, "full"},
		{"of a tree of ours", copyOf{path: prog, argv: argv, env: []string{"ZHX_RUN=" + tree.Mark, "ZHX_SOCKET=" + ours}}, ""},
		{"socket without mark", copyOf{path: prog, argv: argv, env: []string{"ZHX_SOCKET=" + live}}, "full"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			id := test.c.start(t, k)
			full, part, err := k.Strays(Query{Path: prog, Argv: argv, UID: os.Getuid(), Socket: ours})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, s := range full {
				if s.ID == id {
					got = "full"
				}
			}
			for _, s := range part {
				if s.ID == id {
					got = s.Reason
				}
			}
			if !strings.HasPrefix(got, test.want) || test.want == "" && got != "" || len(full)+len(part) > 1 {
				t.Errorf("%q, want %q; %v %v", got, test.want, full, part)
			}
		})
	}
	t.Run("another user", func(t *testing.T) {
		copyOf{path: prog, argv: argv}.start(t, k)
		full, part, err := k.Strays(Query{Path: prog, Argv: argv, UID: os.Getuid() + 1})
		if err != nil || len(full)+len(part) > 0 {
			t.Errorf("%v %v %v", full, part, err)
		}
	})
	t.Run("executable replaced", func(t *testing.T) {
		copyOf{path: prog, argv: argv}.start(t, k)
		os.Remove(prog)
		copyFile(t, other, prog)
		full, part, err := k.Strays(Query{Path: prog, Argv: argv, UID: os.Getuid()})
		if err != nil || len(full) > 0 || len(part) != 1 || !strings.Contains(part[0].Reason, "replaced") {
			t.Errorf("%v %v %v", full, part, err)
		}
	})
}

// Scripts show as their interpreter, and are known by the script. The test's own ancestors are never strays.
func TestStrayScripts(t *testing.T) {
	k := open(t, Options{})
	dir := t.TempDir()
	body := "echo $$\nwhile read line; do :; done"
	scripts := map[string]string{"plain.sh": "#!/bin/sh\n", "argument.sh": "#! /bin/sh  -u \n", "env.sh": "#!/usr/bin/env sh\n"}
	for name, line := range scripts {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(line+body), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name := range scripts {
		path := filepath.Join(dir, name)
		q := Query{Path: path, Argv: []string{path, "x"}, UID: os.Getuid()}
		id := copyOf{path: path, argv: []string{path, "x"}}.start(t, k)
		relative := copyOf{path: "./" + name, argv: []string{name, "x"}, dir: dir}.start(t, k)
		different := copyOf{path: path, argv: []string{path, "y"}}.start(t, k)
		full, part, err := k.Strays(q)
		if err != nil || len(full) != 2 || full[0].ID != id && full[1].ID != id || full[0].ID != relative && full[1].ID != relative {
			t.Errorf("%s: %v, %v", name, full, err)
		}
		if len(part) != 1 || part[0].ID != different {
			t.Errorf("%s: in part %v", name, part)
		}
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	full, part, err := k.Strays(Query{Path: exe, Argv: os.Args, UID: os.Getuid()})
	if err != nil || len(full)+len(part) > 0 {
		t.Errorf("we are our own stray: %v, %v, %v", full, part, err)
	}
	parent, err := os.Readlink(procPath(os.Getppid(), "exe"))
	if err != nil {
		t.Skip("the test's parent may not be looked at")
	}
	args, _ := arguments(os.Getppid())
	full, part, err = k.Strays(Query{Path: parent, Argv: args, UID: os.Getuid()})
	for _, s := range append(full, part...) {
		if s.PID == os.Getppid() || err != nil {
			t.Errorf("an ancestor is a stray: %v, %v", s, err)
		}
	}
	if _, _, err := k.Strays(Query{Path: "/nowhere/prog"}); err == nil {
		t.Error("no error for a program that is not there")
	}
}

// copyOf starts a process beside every tree, with an environment of its own.
type copyOf struct {
	path, dir  string
	argv, env  []string
	tty, trace bool
}

func (c copyOf) start(t *testing.T, k *Kernel) ID {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, keep, err := os.Pipe() // a shell that reads it waits for ever
	if err != nil {
		t.Fatal(err)
	}
	attr := &syscall.ProcAttr{Dir: c.dir, Env: append(c.env, "PATH="+os.Getenv("PATH")), Files: []uintptr{in.Fd(), w.Fd(), 2}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if c.tty {
		master, slave, err := OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		defer slave.Close()
		t.Cleanup(func() { master.Close() })
		attr.Files = append(attr.Files, slave.Fd())
		attr.Sys.Setctty, attr.Sys.Ctty = true, 3
	}
	pid, err := syscall.ForkExec(c.path, c.argv, attr)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	in.Close()
	t.Cleanup(func() {
		keep.Close()
		r.Close()
		unix.Kill(pid, unix.SIGKILL)
		unix.Wait4(pid, nil, 0, nil)
	})
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the copy said nothing: %v", err)
	}
	if c.trace {
		if err := unix.PtraceSeize(pid); err != nil {
			t.Skipf("ptrace is not permitted here: %v", err)
		}
	}
	return idOf(t, pid)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
