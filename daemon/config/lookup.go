// What only the machine can tell of a configuration: whether commands, directories, users and groups exist. They may come
// later, so what is missing is a warning.

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// lookUp adds the warnings that Load gives beyond Parse.
func (f *file) lookUp(c *Config) {
	warn := func(path []string, who string, err error) {
		if err != nil {
			f.report(path, true, "%s: %v", who, err)
		}
	}
	warn([]string{"daemon", "socket_group"}, "socket_group", findAccount("group", c.Daemon.SocketGroup))
	warn([]string{"daemon", "control_group"}, "control_group", findAccount("group", c.Daemon.ControlGroup))
	for _, cl := range c.Clients {
		who := fmt.Sprintf("client %q cannot start as it is", cl.Name)
		warn(f.where(cl.Name, "user"), who, findAccount("user", cl.User))
		warn(f.where(cl.Name, "group"), who, findAccount("group", cl.Group))
		if fi, err := os.Stat(cl.Directory); err != nil {
			warn(f.where(cl.Name, "directory"), who, fmt.Errorf("directory %q: %w", cl.Directory, bare(err)))
		} else if !fi.IsDir() {
			warn(f.where(cl.Name, "directory"), who, fmt.Errorf("%q is no directory", cl.Directory))
		}
		if len(cl.Command) > 0 {
			warn(f.where(cl.Name, "command"), who, findCommand(cl))
		}
	}
}

// findCommand finds the program as the client's start will: in its PATH, or as a path seen from its directory.
func findCommand(cl Client) error {
	name := cl.Command[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(cl.Directory, name)
		}
		return executable(name)
	}
	path, ok := cl.Environment["PATH"]
	if !ok {
		path = os.Getenv("PATH")
	}
	for _, dir := range filepath.SplitList(path) {
		if executable(filepath.Join(dir, name)) == nil {
			return nil
		}
	}
	return fmt.Errorf("command %q is not found in PATH, %q", name, path)
}

func executable(name string) error {
	switch fi, err := os.Stat(name); {
	case err != nil:
		return fmt.Errorf("command %q: %w", name, bare(err))
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return fmt.Errorf("command %q is not executable", name)
	}
	return nil
}

// findAccount finds a user or group by name. A number needs no name.
func findAccount(what, name string) error {
	_, err := strconv.ParseUint(name, 10, 32)
	switch {
	case name == "" || err == nil:
		return nil
	case what == "user":
		_, err = user.Lookup(name)
	default:
		_, err = user.LookupGroup(name)
	}
	if err != nil {
		return fmt.Errorf("%s %q is not known", what, name)
	}
	return nil
}

// bare is the cause without the path, which the message has already.
func bare(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
