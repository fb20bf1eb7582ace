// Package cmd holds the programs; this test holds the house: which package may import which, what lies at the top, and
// that every package says what it is. It is a statement of policy: change the code, not the table.
package cmd

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mayImport: package -> what it may import of this module. A package that is not listed may import nothing of it.
var mayImport = map[string][]string{
	"zhx/cmd/zhxd":     {"zhx/daemon"},
	"zhx/cmd/zhxctl":   {"zhx/daemon/control", "zhx/daemon/config", "zhx/ipc"},
	"zhx/cmd/zhx-demo": {"zhx/ipc", "zhx/ipc/wire"},
	"zhx/daemon": {"zhx/daemon/config", "zhx/daemon/control", "zhx/ipc", "zhx/ipc/wire", "zhx/ipc/broker", "zhx/procman",
		"zhx/procman/proc", "zhx/procman/logs", "zhx/watchdog", "zhx/watchdog/probe", "zhx/watchdog/hardware"},
	"zhx/daemon/config": {"zhx/procman", "zhx/watchdog", "zhx/watchdog/probe", "zhx/ipc/broker", "zhx/ipc/wire"},
	"zhx/ipc":           {"zhx/ipc/wire"},
	"zhx/ipc/broker":    {"zhx/ipc/wire"},
	"zhx/procman":       {"zhx/procman/proc", "zhx/procman/logs", "zhx/procman/notify"},
}

// topLevel is all that lies at the top, dot files aside.
var topLevel = []string{"cmd", "daemon", "etc", "ipc", "procman", "watchdog", "go.mod", "go.sum", "Makefile", "README.md"}

// built is what the Makefile makes: git ignores it, or it is in a release alone (vendor).
var built = []string{"bin", "dist", "vendor"}

type goPackage struct {
	ImportPath, Name, Doc string
	Imports               []string
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, "zhx/") && !slices.Contains(mayImport[p.ImportPath], imported) {
				t.Errorf("%s must not import %s", p.ImportPath, imported)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Name != "" && p.Doc == "" && p.ImportPath != "zhx/cmd" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(topLevel, e.Name()) && !slices.Contains(built, e.Name()) {
			t.Errorf("%s does not belong to the top level", e.Name())
		}
	}
	for _, name := range topLevel {
		if _, err := os.Stat(filepath.Join("..", name)); err != nil {
			t.Error(err)
		}
	}
}

func packages(t *testing.T) (all []goPackage) {
	t.Helper()
	list := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports", "zhx/...")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
