// From a spec to a command: who runs it, what file it is, what its environment is.

package procman

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"zhx/procman/proc"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" // PATH of a child if zhxd has none

// A prepared command lacks only what belongs to one run.
type prepared struct {
	proc.Command
	uid, gid int
	socket   string // zhxd's data socket
}

// prepare looks everything up anew: between two runs a user or a file may have appeared.
func prepare(s *Spec, environ []string) (c prepared, err error) {
	env := map[string]string{"PATH": defaultPath}
	for _, kv := range environ {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "PATH", "LANG", "TZ":
			env[k] = v
		case "ZHX_SOCKET":
			c.socket = v
		}
	}
	if err := c.become(s, env); err != nil {
		return c, err
	}
	for k, v := range s.Environment {
		env[k] = v
	}
	env["ZHX_SOCKET"], env["ZHX_NAME"] = c.socket, s.Name
	delete(env, "ZHX_RUN")
	for k, v := range env {
		c.Env = append(c.Env, k+"="+v)
	}
	slices.Sort(c.Env)
	c.Argv, c.Dir = s.Command, s.Directory
	if st, err := os.Stat(c.Dir); c.Dir != "" && err != nil {
		return c, fmt.Errorf("directory: %w", err)
	} else if c.Dir != "" && !st.IsDir() {
		return c, fmt.Errorf("directory %s: %w", c.Dir, syscall.ENOTDIR)
	}
	c.Path, err = find(s.Command[0], c.Dir, env["PATH"])
	return c, err
}

// become sets uid, gid and credential, and HOME, USER, SHELL where a user is given.
func (c *prepared) become(s *Spec, env map[string]string) error {
	c.uid, c.gid = os.Geteuid(), os.Getegid()
	if s.User == "" && s.Group == "" {
		return nil
	}
	var groups []uint32
	if s.User != "" {
		u, err := user.Lookup(s.User)
		if _, number := strconv.ParseUint(s.User, 10, 32); err != nil && number == nil {
			u, err = user.LookupId(s.User)
		}
		if err != nil {
			return fmt.Errorf("user %q: %w", s.User, err)
		}
		ids, err := u.GroupIds()
		if err != nil {
			return fmt.Errorf("groups of user %q: %w", s.User, err)
		}
		for _, id := range ids {
			n, _ := strconv.ParseUint(id, 10, 32)
			groups = append(groups, uint32(n))
		}
		c.uid, _ = strconv.Atoi(u.Uid)
		c.gid, _ = strconv.Atoi(u.Gid)
		env["HOME"], env["USER"], env["SHELL"] = u.HomeDir, u.Username, shell(u.Uid)
	}
	if s.Group != "" {
		g, err := user.LookupGroup(s.Group)
		if _, number := strconv.ParseUint(s.Group, 10, 32); err != nil && number == nil {
			g, err = &user.Group{Gid: s.Group}, nil // a group needs no entry
		}
		if err != nil {
			return fmt.Errorf("group %q: %w", s.Group, err)
		}
		c.gid, _ = strconv.Atoi(g.Gid)
	}
	if c.uid == os.Geteuid() && c.gid == os.Getegid() && c.uid != 0 {
		return nil // nothing to change, and no right to
	}
	c.Cred = &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.gid), Groups: groups}
	return nil
}

// shell is the login shell of a user, which os/user does not tell.
func shell(uid string) string {
	b, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) == 7 && f[2] == uid && f[6] != "" {
			return f[6]
		}
	}
	return "/bin/sh"
}

// find returns the file that the name means: with a slash itself (from dir on), else the first of that name in path that
// can be executed.
func find(name, dir, path string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		_, err := os.Stat(name)
		return name, err
	}
	for _, d := range filepath.SplitList(path) {
		file := filepath.Join(d, name)
		if st, err := os.Stat(file); filepath.IsAbs(d) && err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%q is not in PATH (%s): %w", name, path, syscall.ENOENT)
}
