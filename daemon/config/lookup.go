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
		if _, err := os.Stat(cl.Directory + "/"); err != nil {
			warn(f.where(cl.Name, "directory"), who, fmt.Errorf("directory %q: %w", cl.Directory, bare(err)))
		}
		if len(cl.Command) > 0 {
			warn(f.where(cl.Name, "command"), who, findCommand(cl))
		}
	}
}

// findCommand finds the program as the client's start will: in its PATH, or as a path seen from its directory.
func findCommand(cl Client) error {
	name, dirs, where := cl.Command[0], []string{cl.Directory}, ""
	switch {
	case filepath.IsAbs(name):
		dirs = []string{"/"}
	case !strings.Contains(name, "/"):
		path, ok := cl.Environment["PATH"]
		if !ok {
			path = os.Getenv("PATH")
		}
		dirs, where = filepath.SplitList(path), fmt.Sprintf(" in PATH, %q", path)
	}
	for _, dir := range dirs {
		if fi, err := os.Stat(filepath.Join(dir, name)); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return nil
		}
	}
	return fmt.Errorf("command %q is not an executable file%s", name, where)
}

// findAccount finds a user or group by name or number. A group's number needs no entry.
func findAccount(what, name string) (err error) {
	_, notNumber := strconv.ParseUint(name, 10, 32)
	switch {
	case name == "" || what == "group" && notNumber == nil:
		return nil
	case what == "group":
		_, err = user.LookupGroup(name)
	case notNumber == nil:
		_, err = user.LookupId(name)
	default:
		_, err = user.Lookup(name)
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
