package cmd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// packaging skips a test that is not of make test, but of make deb-test: it takes a minute.
func packaging(t *testing.T) (debian string) {
	t.Helper()
	if debian = os.Getenv("ZHX_DEBIAN"); debian == "" {
		t.Skip("needs ZHX_DEBIAN, a folder with a Debian (make deb-test)")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	return debian
}

// The package in a clean Debian: testdata/deb.sh tells its life, in namespaces of its own.
func TestDeb(t *testing.T) {
	debian := packaging(t)
	arch, err := run("dpkg", "--print-architecture")
	if err != nil {
		t.Skip("needs dpkg: ", err)
	}
	arch = strings.TrimSpace(arch)
	dir := t.TempDir()
	root := dir + "/root"
	if out, err := run("cp", "-a", "--reflink=auto", debian, root); err != nil {
		t.Fatal(err, out)
	}
	packages, demo := root+"/tmp/", filepath.Join(dir, strings.Replace(arch, "armhf", "arm", 1), "zhx-demo")
	for _, version := range []string{"1.0", "2.0"} {
		makeIn(t, "..", "deb", "DEBS="+arch, "DIST="+dir, "VERSION="+version)
		if out, err := run("mv", dir+"/zhx_"+version+"_"+arch+".deb", packages+version+".deb"); err != nil {
			t.Fatal(err, out)
		}
	}

	t.Run("the same sources give the same bytes", func(t *testing.T) {
		makeIn(t, "..", "deb", "DEBS="+arch, "DIST="+dir, "VERSION=2.0", "-o", filepath.Dir(demo))
		before, err := os.ReadFile(packages + "2.0.deb")
		after, err2 := os.ReadFile(dir + "/zhx_2.0_" + arch + ".deb")
		if err != nil || err2 != nil || !bytes.Equal(before, after) {
			t.Error("they differ", err, err2)
		}
	})

	script, err := os.ReadFile("testdata/deb.sh")
	if err == nil {
		err = os.WriteFile(packages+"deb.sh", script, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run("cp", demo, packages); err != nil {
		t.Fatal(err, out)
	}
	// This sh is process 1, and waits for orphans, too. Where the machine lets us, clients have cgroups of their own.
	inside := exec.Command("sh", "-c", `mkdir -p "$0/sys/fs/cgroup" && { mount -t cgroup2 none "$0/sys/fs/cgroup" || :; } &&
		mount -t proc proc "$0/proc" && chroot "$0" /bin/sh /tmp/deb.sh; exit $?`, root)
	inside.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	inside.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if out, err := inside.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A release is built where there is no network and no module was ever fetched.
func TestRelease(t *testing.T) {
	packaging(t)
	if out, err := run("git", "-C", "..", "ls-files"); err != nil {
		t.Skip("needs a git repository: ", out)
	}
	dir := t.TempDir()
	makeIn(t, "..", "dist", "DIST="+dir, "VERSION=1.0")
	if out, err := run("tar", "-C", dir, "-xf", dir+"/zhx-1.0.tar.gz"); err != nil {
		t.Fatal(err, out)
	}
	build := exec.Command("make", "-C", dir+"/zhx-1.0", "build")
	build.Env = append(os.Environ(), "GOPROXY=off", "GOMODCACHE="+dir+"/none")
	build.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if said, err := run(dir+"/zhx-1.0/bin/zhxd", "--version"); err != nil || strings.TrimSpace(said) != "zhxd 1.0" {
		t.Errorf("%v: %s", err, said)
	}
}
