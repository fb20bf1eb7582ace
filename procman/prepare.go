// From a spec to a command: who runs it, what file it is, what its environment is.

package procman

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"zhx/procman/proc"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" // PATH of a child if zhxd has none
	envFileMax  = 64 << 10                                                       // bytes of an environment_file; a longer one is an error
)

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
	if s.EnvironmentFile != "" {
		if err := readEnvironment(s.EnvironmentFile, env); err != nil {
			return c, fmt.Errorf("environment_file: %w", err)
		}
	}
	maps.Copy(env, s.Environment)
	if s.FrozenTimeout > 0 { // sd_watchdog_enabled(3); a stage adds WATCHDOG_PID
		env["WATCHDOG_USEC"] = strconv.FormatInt(s.FrozenTimeout.Microseconds(), 10)
	}
	env["ZHX_SOCKET"], env["ZHX_NAME"] = c.socket, s.Name
	delete(env, "ZHX_RUN") // spawn adds these two
	delete(env, "NOTIFY_SOCKET")
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
	c.Stage = proc.NewStage(proc.Stage{Umask: s.Umask, Nofile: s.LimitNofile, Core: s.LimitCore, AS: s.LimitAS, Nice: s.Nice,
		Affinity: s.CPUAffinity, OOMScoreAdj: s.OOMScoreAdj, NoNewPrivs: s.NoNewPrivileges,
		WatchdogPID: s.Ready == ReadyNotify && s.FrozenTimeout > 0})
	c.Path, err = find(s.Command[0], c.Dir, env["PATH"])
	return c, err
}

// become sets uid, gid and credential, and HOME, USER, SHELL where a user is given.
func (c *prepared) become(s *Spec, env map[string]string) error {
	c.uid, c.gid = os.Geteuid(), os.Getegid()
	if s.User == "" && s.Group == "" && len(s.Groups) == 0 {
		return nil
	}
	var groups []uint32
	if own, err := os.Getgroups(); s.User == "" && err == nil {
		for _, id := range own {
			groups = append(groups, uint32(id))
		}
	}
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
		gid, err := lookUpGroup(s.Group)
		if err != nil {
			return err
		}
		c.gid = int(gid)
	}
	for _, name := range s.Groups {
		gid, err := lookUpGroup(name)
		if err != nil {
			return err
		}
		groups = append(groups, gid)
	}
	if c.uid == os.Geteuid() && c.gid == os.Getegid() && c.uid != 0 && len(s.Groups) == 0 {
		return nil // nothing to change, and no right to
	}
	c.Cred = &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.gid), Groups: groups}
	return nil
}

func lookUpGroup(name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if err == nil {
		name = g.Gid
	}
	n, number := strconv.ParseUint(name, 10, 32)
	if number != nil { // a number needs no entry
		return 0, fmt.Errorf("group %q: %w", name, err)
	}
	return uint32(n), nil
}

// readEnvironment adds the lines KEY=value of a file to env. Empty lines and those that begin with # or ; say nothing; a value
// may stand in quotes of one kind, which mean nothing else: there is no expansion.
func readEnvironment(path string, env map[string]string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // of a FIFO: without waiting for somebody who writes
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > envFileMax {
		return fmt.Errorf("%s: no regular file of at most %d bytes", path, envFileMax)
	}
	b, err := io.ReadAll(io.LimitReader(f, envFileMax))
	if err != nil {
		return err
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if k = strings.TrimSpace(k); !ok || k == "" || strings.ContainsAny(k, " \t\x00") || strings.Contains(v, "\x00") {
			return fmt.Errorf("%s:%d: not KEY=value", path, n)
		}
		v = strings.TrimSpace(v)
		if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
			v = v[1 : len(v)-1]
		}
		env[k] = v
	}
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
