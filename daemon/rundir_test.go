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

// A zhxd that goes on from another keeps the cookie; what others may have known, written or read is replaced.
func TestCookieTaken(t *testing.T) {
	dir := t.TempDir()
	r, err := holdRundir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.release()
	cookie := func() string {
		t.Helper()
		c, err := r.makeCookie("")
		b, readErr := os.ReadFile(filepath.Join(dir, "cookie"))
		if err != nil || readErr != nil || len(c) != 2*cookieSize || string(b) != c {
			t.Fatalf("%q %q %v %v", c, b, err, readErr)
		}
		return c
	}
	first := cookie()
	if again := cookie(); again != first {
		t.Error("it is not kept")
	}
	path := filepath.Join(dir, "cookie")
	for name, spoil := range map[string]func() error{
		"others can read it": func() error { return os.Chmod(path, 0o644) },
		"cut short":          func() error { return os.Truncate(path, 10) },
		"a link": func() error {
			other := filepath.Join(t.TempDir(), "other")
			os.WriteFile(other, []byte(first), 0o600)
			os.Remove(path)
			return os.Symlink(other, path)
		},
		"a group that is not to": func() error { return os.Chmod(path, 0o640) },
	} {
		before := cookie()
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if after := cookie(); after == before || after == first {
			t.Errorf("%s: it is believed", name)
		}
	}
}

// A run directory in which others could put their own in the place of its entries is refused.
func TestRundirOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		mode  os.FileMode
		uid   int // -1: ours
		taken bool
	}{
		"ours":                  {0o755, -1, true},
		"as /tmp":               {0o777 | os.ModeSticky, -1, true},
		"others can write":      {0o777, -1, false},
		"a group can write":     {0o775, -1, false},
		"somebody else's":       {0o755, 65534, false},
		"somebody's, as /tmp":   {0o777 | os.ModeSticky, 65534, false},
		"closed to all but us":  {0o700, -1, true},
		"closed, somebody's it": {0o700, 65534, false},
	} {
		dir := filepath.Join(t.TempDir(), "run")
		if c.uid >= 0 && os.Getuid() != 0 {
			continue // only root can make it
		}
		err := os.Mkdir(dir, 0o700)
		if err == nil {
			err = os.Chmod(dir, c.mode)
		}
		if err == nil {
			err = os.Chown(dir, c.uid, -1)
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := holdRundir(dir)
		if (err == nil) != c.taken {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			r.release()
		}
	}
}
