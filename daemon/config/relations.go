// What clients have to do with each other: names, instances, log files, dependencies and groups.

package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"zhx/ipc/wire"
	"zhx/procman"
)

// A Group is one [group.NAME].
type Group struct {
	Name       string
	Clients    []string // in the order of the file, each once, instances for what they are made of
	RestartAll bool     // when one of them fails, all are restarted
}

// Resolve returns the clients that arg, a word of the command line, stands for: a client, all instances that a client has,
// or with @GROUP those of a group; in the order of the file. The error is for people, and says what arg may have meant.
func (c *Config) Resolve(arg string) ([]string, error) {
	name, isGroup := strings.CutPrefix(arg, "@")
	if !isGroup {
		known := c.words()
		if clients, ok := known[name]; ok {
			return clients, nil
		}
		return nil, fmt.Errorf("no such client: %q%s", name, DidYouMean(name, slices.Sorted(maps.Keys(known))))
	}
	var groups []string
	for _, g := range c.Groups {
		if g.Name == name {
			return g.Clients, nil
		}
		groups = append(groups, "@"+g.Name)
	}
	return nil, fmt.Errorf("no such group: %q%s", arg, DidYouMean(arg, groups))
}

// words has what each name of a client stands for.
func (c *Config) words() map[string][]string {
	known := make(map[string][]string)
	for _, cl := range c.Clients {
		known[cl.Name] = []string{cl.Name}
		if cl.Base != cl.Name {
			known[cl.Base] = append(known[cl.Base], cl.Name)
		}
	}
	return known
}

// sections has one client of each [client.NAME], the first of its instances.
func (c *Config) sections() (first []Client) {
	for i, cl := range c.Clients {
		if i == 0 || c.Clients[i-1].Base != cl.Base {
			first = append(first, cl)
		}
	}
	return first
}

// relate checks and fills in what clients have to do with each other.
func (f *file) relate(c *Config) {
	f.names(c)
	f.logFiles(c)
	known := c.words()
	for i := range c.Clients {
		if cl := &c.Clients[i]; len(cl.DependsOn) > 0 {
			cl.DependsOn = f.members(c, known, cl.DependsOn, f.where(cl.Base, "depends_on"))
		}
	}
	f.waits(c)
	f.groups(c, known)
}

// members is the clients that the list at a key names, in the order of the file.
func (f *file) members(c *Config, known map[string][]string, list, at []string) (members []string) {
	chosen := make(map[string]bool)
	for _, name := range list {
		if known[name] == nil && f.count[false] < problemsMax { // else it would take long to find what was meant
			f.report(at, false, "%s in [%s]: no such client: %q%s", at[len(at)-1], section(top(at)), name, DidYouMean(name, slices.Sorted(maps.Keys(known))))
		}
		for _, n := range known[name] {
			chosen[n] = true
		}
	}
	for _, cl := range c.Clients {
		if chosen[cl.Name] {
			members = append(members, cl.Name)
		}
	}
	return members
}

// names checks how clients are called, by their own names and the further ones.
func (f *file) names(c *Config) {
	owner := make(map[string]string)
	sections := c.sections()
	for _, cl := range sections {
		owner[cl.Base] = cl.Base
	}
	for _, cl := range c.Clients {
		if of := owner[cl.Name]; of == "" {
			owner[cl.Name] = cl.Base
		} else if of != cl.Base {
			f.report(f.where(cl.Base, "instances"), false, "instance %q of client %q is also client %q", cl.Name, cl.Base, of)
		}
	}
	for _, cl := range sections {
		at, longest := []string{"client", cl.Base}, cl.Name
		if cl.Instances > 0 {
			longest = cl.instance(cl.Instances)
		}
		what := "[" + section(at) + "]"
		for i, n := range append([]string{longest}, cl.Names...) {
			if i == 1 {
				at, what = f.where(cl.Base, "names"), "names in "+what
			}
			f.name(at, what, n)
			if i > 0 && owner[n] != "" {
				f.report(at, false, "name %q of client %q is also a name of client %q", n, cl.Base, owner[n])
			}
			if owner[n] == "" {
				owner[n] = cl.Base
			}
		}
	}
}

// name checks one name of a client.
func (f *file) name(at []string, what, n string) {
	switch {
	case !wire.ValidName(n):
		f.report(at, false, "%s: %q is no name; a name has 1 to 64 of A-Z a-z 0-9 _ -, and no - in front", what, n)
	case wire.Reserved(n):
		f.report(at, false, "%s: the name %q is reserved", what, n)
	case len(n) > wire.NameSize:
		f.report(at, true, "name %q has %d bytes: protocol 1 cannot address it, its names have at most %d", n, len(n), wire.NameSize)
	}
}

// logFiles refuses one file for two clients: each rotates its own.
func (f *file) logFiles(c *Config) {
	owner := make(map[string]string)
	for _, cl := range c.Clients {
		if of := owner[cl.LogFile]; of != "" && cl.LogFile != "" {
			f.report(f.where(cl.Base, "log_file"), false, "log_file of client %q is also that of client %q, %q; %%n in it stands for the name", cl.Name, of, cl.LogFile)
		}
		owner[cl.LogFile] = cl.Name
	}
}

// waits refuses clients that would wait for each other for ever, and warns of those that hardly wait. All instances of a
// client wait for the same, so it is sections that make a cycle.
func (f *file) waits(c *Config) {
	sections := c.sections()
	clients, first := make(map[string]*Client), make(map[string]*Client)
	for i := range c.Clients {
		clients[c.Clients[i].Name] = &c.Clients[i]
	}
	for i := range sections {
		first[sections[i].Base] = &sections[i]
	}
	var way []string // from the section where the walk began
	done := make(map[string]bool)
	var walk func(name string)
	walk = func(name string) {
		way, done[name] = append(way, name), false
		at, last := f.where(name, "depends_on"), ""
		for _, on := range first[name].DependsOn {
			on := clients[on]
			if on.Base == last { // another instance
				continue
			}
			last = on.Base
			if on.Ready == procman.ReadySpawn && !on.Oneshot {
				f.report(at, true, `client %q depends on %q, which is ready as soon as it is spawned; ready = "register" or "notify" waits for more`, name, on.Base)
			}
			over, begun := done[on.Base]
			switch {
			case !begun:
				walk(on.Base)
			case !over && f.count[false] < problemsMax:
				cycle := append(slices.Clone(way[slices.Index(way, on.Base):]), on.Base)
				f.report(at, false, "clients that wait for each other: %s", strings.Join(cycle, " -> "))
			}
		}
		way, done[name] = way[:len(way)-1], true
	}
	for _, cl := range sections {
		if _, begun := done[cl.Base]; !begun {
			walk(cl.Base)
		}
	}
}

// groups adds each [group.NAME] to c, and to its clients who is restarted with them.
func (f *file) groups(c *Config, known map[string][]string) {
	for i, name := range f.tables("group") {
		if i == groupsMax {
			f.report([]string{"group", name}, false, "these are more than %d groups", groupsMax)
			return
		}
		g, path := Group{Name: name}, []string{"group", name}
		f.fill(path, &target{group: &g})
		if !wire.ValidName(name) {
			f.name(path, "["+section(path)+"]", name)
		}
		if !f.md.IsDefined("group", name, "clients") {
			f.report(path, false, "[%s] has no clients", section(path))
		}
		g.Clients = f.members(c, known, g.Clients, append(path, "clients"))
		c.Groups = append(c.Groups, g)
	}
	for i := range c.Clients {
		cl, with := &c.Clients[i], make(map[string]bool)
		for _, g := range c.Groups {
			if g.RestartAll && slices.Contains(g.Clients, cl.Name) {
				for _, other := range g.Clients {
					with[other] = true
				}
			}
		}
		for _, other := range c.Clients {
			if other.Name != cl.Name && with[other.Name] {
				cl.RestartWith = append(cl.RestartWith, other.Name)
			}
		}
	}
}
