package cmd

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// armMax holds for zhxd and zhxctl for 32-bit ARM together, in bytes: a board's flash is small.
const armMax = 20_000_000

// makeIn runs make at the top of the sources, for a Makefile is a program, too.
func makeIn(t *testing.T, top string, args ...string) {
	t.Helper()
	for _, tool := range []string{"make", "install"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	args = append([]string{"-s", "-C", top}, args...)
	if out, err := exec.Command("make", args...).CombinedOutput(); err != nil {
		t.Fatalf("make %q: %v\n%s", args, err, out)
	}
}

// What make install puts where, for the prefix of a distribution and for the default.
func TestInstall(t *testing.T) {
	for _, c := range []struct{ purpose, prefix, python string }{
		{"as a package has it", "/usr", "lib/python3/dist-packages"},
		{"as somebody has it who builds zhx", "/usr/local", "lib/python3*/dist-packages"},
		{"in a folder that has its name, and more in it", "/opt/zhx", "lib/python3*/dist-packages"},
		{"on a board whose programs are in /bin", "", "lib/python3*/dist-packages"},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			root := t.TempDir()
			do := func(what string) {
				makeIn(t, "..", what, "DESTDIR="+root, "PREFIX="+c.prefix, "BIN="+bin, "COMPLETION="+bin+"/zhxctl completion")
			}
			do("install")
			at := root + c.prefix
			for _, name := range strings.Fields(`bin/zhxd bin/zhxctl lib/systemd/system/zhx.service include/zhx/zhx.h include/zhx/sock.h
				include/zhx/am5728.h share/zhx/c/zhx.c share/zhx/c/sock.c share/zhx/inittab share/zhx/zhx.init share/zhx/zhx.openrc
				share/pkgconfig/zhx.pc share/man/man8/zhxd.8 share/man/man1/zhxctl.1 share/man/man5/clients.toml.5
				share/bash-completion/completions/zhxctl share/zsh/site-functions/_zhxctl share/fish/vendor_completions.d/zhxctl.fish
				share/doc/zhx/README.md ` + c.python + "/zhx.py") {
				if found, _ := filepath.Glob(filepath.Join(at, name)); len(found) != 1 {
					t.Errorf("not installed: %s", name)
				}
			}
			for _, name := range []string{"lib/systemd/system/zhx.service", "share/zhx/inittab", "share/zhx/zhx.init", "share/zhx/zhx.openrc"} {
				text, _ := os.ReadFile(filepath.Join(at, name))
				if !strings.Contains(string(text), c.prefix+"/bin/zhx") || c.prefix == "/usr" && strings.Contains(string(text), "/usr/local") {
					t.Errorf("%s is for another prefix", name)
				}
			}
			linked(t, root, at+"/share/doc/zhx")
			file := root + "/etc/zhx/clients.toml"
			if err := os.WriteFile(file, []byte("# mine\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			do("install")
			if text, err := os.ReadFile(file); err != nil || string(text) != "# mine\n" {
				t.Errorf("the second installation has replaced clients.toml (%v): %q", err, text)
			}
			t.Run("a client in C is compiled with what pkg-config says", func(t *testing.T) {
				if _, err := exec.LookPath("pkg-config"); err != nil {
					t.Skip("needs pkg-config")
				}
				t.Setenv("PKG_CONFIG_SYSROOT_DIR", root)
				t.Setenv("PKG_CONFIG_PATH", at+"/share/pkgconfig")
				sources, err := run("pkg-config", "--variable=sources", "zhx")
				flags, err2 := run("pkg-config", "--cflags", "--libs", "zhx")
				if err != nil || err2 != nil {
					t.Fatal(err, err2)
				}
				sources = filepath.Join(root, strings.TrimPrefix(strings.TrimSpace(sources), root)) // versions differ in this
				compile(t, t.TempDir(), at+"/share/doc/zhx/example.c", append([]string{sources + "/zhx.c"}, strings.Fields(flags)...)...)
			})
			other := at + "/other"
			if err := os.WriteFile(other, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			do("uninstall")
			left, err := run("find", root, "-type", "f")
			names := strings.Fields(left)
			if slices.Sort(names); err != nil || !slices.Equal(names, slices.Sorted(slices.Values([]string{file, other}))) {
				t.Errorf("make uninstall leaves, where clients.toml and what is not its own should be (%v):\n%s", err, left)
			}
		})
	}
}

// linked: what the documents in dir point to is there.
func linked(t *testing.T, root, dir string) {
	t.Helper()
	names, _ := filepath.Glob(dir + "/*.md")
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(string(text), -1) {
			to := filepath.Join(dir, m[1])
			if filepath.IsAbs(m[1]) {
				to = root + m[1]
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s points to what is not installed: %s", filepath.Base(name), m[1])
			}
		}
	}
}

// The programs for a board need nothing of its system, and little of its flash.
func TestCross(t *testing.T) {
	dist := t.TempDir()
	makeIn(t, "..", dist+"/arm", "DIST="+dist)
	size := int64(0)
	for _, name := range []string{"zhxd", "zhxctl"} {
		path := dist + "/arm/" + name
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s is not static", name)
			}
		}
		if f.Machine != elf.EM_ARM || f.Section(".symtab") != nil || f.Section(".debug_info") != nil {
			t.Errorf("%s is for %v, and stripped: %t", name, f.Machine, f.Section(".symtab") == nil)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
	}
	if t.Logf("%d bytes", size); size >= armMax {
		t.Errorf("zhxd and zhxctl for ARM have %d bytes, the limit is %d", size, armMax)
	}
}
