package cmd

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The table of supervisors claims what zhx has by the names of tests: each exists.
func TestSupervisorsTable(t *testing.T) {
	known := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(b), -1) {
			known[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("../etc/doc/supervisors.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		cells := strings.Split(line, "|")
		if len(cells) != 11 || strings.Contains(line, "---") || strings.Contains(line, "shown by") {
			continue
		}
		tests := regexp.MustCompile(`Test\w+`).FindAllString(cells[9], -1)
		if has := !strings.HasPrefix(strings.TrimSpace(cells[8]), "N"); has != (len(tests) > 0) {
			t.Errorf("claimed without a test, or the other way round: %s", line)
		}
		for _, name := range tests {
			if !known[name] {
				t.Errorf("no such test: %s in %s", name, line)
			}
		}
	}
}
