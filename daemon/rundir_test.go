package daemon

import (
	"os"
	"path/filepath"
	"testing"
)

// In a run directory that others can write to, as /tmp, what they put there before is neither used nor changed.
func TestRundirTaken(t *testing.T) {
	victim := t.TempDir()
	for name, take := range map[string]func(state string) error{
		"link":               func(state string) error { return os.Symlink(victim, state) },
		"somebody else's":    func(state string) error { return os.MkdirAll(state, 0o777) },
		"no directory":       func(state string) error { return os.WriteFile(state, nil, 0o666) },
		"our own, of before": nil,
	} {
		dir := t.TempDir()
		state := filepath.Join(dir, "state")
		if take != nil {
			if err := take(state); err != nil {
				t.Fatal(err)
			}
		}
		if name == "somebody else's" {
			if os.Getuid() != 0 {
				continue // only root can make it
			}
			if err := os.Chown(state, 65534, -1); err != nil {
				t.Fatal(err)
			}
		}
		before, _ := os.Stat(victim)
		r, err := holdRundir(dir)
		if (err == nil) != (take == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			r.release()
		}
		if after, _ := os.Stat(victim); after.Mode() != before.Mode() {
			t.Errorf("%s: mode of its end is %v", name, after.Mode())
		}
	}
}
