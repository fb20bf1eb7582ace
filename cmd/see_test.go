package cmd

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"zhx/daemon/control"
)

// Somebody looks at a board with a hundred clients: that takes at most twice as long as to say the version, though cpu and memory of
// each are read then. The quickest of many turns counts: what else the machine does is no part of it.
func TestStatusIsCheap(t *testing.T) {
	_, sock := startBoard(t, idleClients)
	quickest := map[string]time.Duration{}
	var out []byte
	for range 25 {
		for _, args := range [][]string{{"version"}, {"status"}, {"status", "--json"}} {
			began := time.Now()
			b, err := exec.Command(filepath.Join(bin, "zhxctl"), append([]string{"--control", sock}, args...)...).Output()
			took := time.Since(began)
			if err != nil {
				t.Fatalf("%v: %v", args, err)
			}
			name := args[len(args)-1]
			if was, ok := quickest[name]; !ok || took < was {
				quickest[name] = took
			}
			out = b
		}
	}
	t.Logf("%d clients: version %v, status %v, status --json %v", idleClients, quickest["version"], quickest["status"], quickest["--json"])
	if quickest["status"] > 2*quickest["version"] {
		t.Errorf("status takes %v, version %v", quickest["status"], quickest["version"])
	}
	var st control.Status
	if err := json.Unmarshal(out, &st); err != nil || len(st.Clients) != idleClients {
		t.Fatalf("%d clients: %v", len(st.Clients), err)
	}
	for _, c := range st.Clients {
		if c.CPU == nil || *c.CPU > 100 || c.Memory == nil || *c.Memory <= 0 {
			t.Errorf("%s: cpu %v, memory %v", c.Name, c.CPU, c.Memory)
		}
	}
}
