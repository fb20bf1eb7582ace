package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"zhx/daemon/config"
	"zhx/daemon/control"
)

// This file looks at the kernel, the board and the configuration for what stands in zhx's way. It reads, and changes nothing; of a
// watchdog device only its name is looked at, since to open it is to arm it.

const (
	levelOK      = "ok"
	levelNote    = "note"    // something of zhx is off, or may surprise
	levelProblem = "problem" // exit 1

	oldestMajor, oldestMinor = 4, 4 // Linux
)

// finding is one line of doctor. Next is what to do; "" where there is nothing to do.
type finding struct {
	Level string `json:"level"` // ok | note | problem
	About string `json:"about"`
	Text  string `json:"text"` // for people
	Next  string `json:"next,omitempty"`
}

// doctor is one examination.
type doctor struct {
	found     []finding
	zhxd      *control.DaemonStatus // nil: none answers
	clients   []control.ClientStatus
	conf      *config.Config // nil: invalid
	processes map[int]process
}

// process is what /proc says of one, as far as we may see it.
type process struct {
	parent  int
	tty     bool
	comm    string
	argv    []string
	exe     os.FileInfo // nil: not to be seen
	unit    string      // of systemd; "": none
	managed bool        // by a zhxd: it has its mark
}

func (a *app) doctorCmd() *cobra.Command {
	return a.asJSON(&cobra.Command{
		Use:   "doctor",
		Short: "examine kernel, board and configuration: what is in zhx's way, what is off because of it, and what to do",
		Long: `Examine kernel, board and configuration, with or without zhxd: what is in zhx's way, what is off because of it, and what to do.

Exit 1 where there is a problem. Run it as the user that zhxd runs as: others see less.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := a.examine(cmd.Context())
			problems := 0
			for _, f := range d.found {
				if f.Level == levelProblem {
					problems++
				}
				if !a.json {
					colour := map[string]kind{levelOK: good, levelNote: doubt, levelProblem: bad}[f.Level]
					fmt.Fprintln(a.out, a.wrap(a.paint(colour, fmt.Sprintf("%-7s", f.Level))+"  "+f.About+": "+escape(f.Text), "         "))
					if f.Next != "" {
						fmt.Fprintln(a.out, a.wrap("  -> "+escape(f.Next), "     "))
					}
				}
			}
			if a.json {
				a.printJSON(struct {
					V        int       `json:"v"`
					Problems int       `json:"problems"`
					Findings []finding `json:"findings"`
				}{1, problems, d.found})
			}
			if problems > 0 {
				return exit(control.CodeFailed)
			}
			return nil
		},
	})
}

// meet asks zhxd for its status, and takes the configuration that it has read for the one that is meant.
func (a *app) meet(ctx context.Context) (st control.Status, err error) {
	st, err = a.status(ctx, readLimit)
	if err == nil && a.config == "" {
		a.config = st.Daemon.Config
		if !filepath.IsAbs(a.config) {
			a.config = filepath.Join("/proc", strconv.Itoa(st.Daemon.PID), "cwd", a.config)
		}
	}
	return st, err
}

func (a *app) examine(ctx context.Context) *doctor {
	d := &doctor{processes: processes()}
	st, err := a.meet(ctx)
	d.zhxd, d.clients = st.Daemon, st.Clients
	if refused, ok := errors.AsType[*control.Error](err); !ok {
		d.add(levelOK, "zhxd", "", "%s runs, pid %d", st.Daemon.Version, st.Daemon.PID)
	} else if errors.Is(err, control.ErrDown) {
		d.add(levelNote, "zhxd", refused.Hint, "%s", refused.Text)
	} else {
		d.add(levelProblem, "zhxd", refused.Hint, "%s", refused.Text)
	}
	d.kernel()
	d.configuration(ctx, a)
	d.device()
	d.port()
	d.rivals()
	d.running(st)
	return d
}

func (d *doctor) add(level, about, next, format string, args ...any) {
	d.found = append(d.found, finding{level, about, fmt.Sprintf(format, args...), next})
}

// has adds one line on something that zhx does without, at a price.
func (d *doctor) has(it bool, about, there, missing, next string) {
	if it {
		d.add(levelOK, about, "", "%s", there)
	} else {
		d.add(levelNote, about, next, "%s", missing)
	}
}

func (d *doctor) kernel() {
	var name unix.Utsname
	_ = unix.Uname(&name)
	release := unix.ByteSliceToString(name.Release[:])
	var major, minor int
	if fmt.Sscanf(release, "%d.%d", &major, &minor); major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		d.add(levelProblem, "kernel", "a newer kernel", "Linux %s; zhx is made for %d.%d and newer", release, oldestMajor, oldestMinor)
	} else {
		d.add(levelOK, "kernel", "", "Linux %s", release)
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		unix.Close(fd)
	}
	d.has(err == nil, "pidfd", "no signal meets the wrong process", "none: the end of an adopted client is told later, and pids are compared by start time",
		"Linux 5.3 or newer, outside of a sandbox that forbids it")
	ok, why := d.cgroup()
	d.has(ok, "cgroup2", "no process of a client escapes its stop", why+": a client's processes are found by mark, group and parents",
		"mount -t cgroup2 none /sys/fs/cgroup; under systemd Delegate=yes")
	_, err = os.ReadFile("/proc/pressure/cpu")
	d.has(err == nil, "pressure", "evidence says how busy the processors were", "none: evidence does not say how busy the processors were",
		"Linux 4.20 or newer with CONFIG_PSI, and psi=1 on its command line")
	d.has(os.Geteuid() == 0, "rights", "root", "not root: the keys user, group, nice below 0 and critical are off; other users' processes are not seen",
		"sudo zhxctl doctor, if zhxd runs as root")
}

// cgroup tells whether clients get a cgroup2 each: of a zhxd that runs by that of its clients, else by whether one could be made.
func (d *doctor) cgroup() (ok bool, why string) {
	for _, c := range d.clients {
		if c.PID != nil {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", *c.PID))
			if err == nil {
				return strings.Contains(string(b), "/zhx-"), "zhxd could make none"
			}
		}
	}
	b, _ := os.ReadFile("/proc/self/cgroup")
	_, own, _ := strings.Cut("\n"+string(b), "\n0::")
	own, _, _ = strings.Cut(own, "\n")
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) == nil && int64(fs.Type) == unix.CGROUP2_SUPER_MAGIC {
			dir := filepath.Join(root, own)
			return unix.Access(dir, unix.W_OK) == nil, dir + " may not be written"
		}
	}
	return false, "none below /sys/fs/cgroup"
}

func (d *doctor) configuration(ctx context.Context, a *app) {
	path := cmp.Or(a.config, defaultConfig)
	conf, problems, err := a.load(a.environ(ctx))
	d.conf = conf
	switch _, missing := os.Stat(path); {
	case errors.Is(missing, os.ErrNotExist):
		d.add(levelProblem, "config", "zhxctl init; or name it with --config", "there is no %s", path)
		return
	case err != nil:
		d.add(levelProblem, "config", "", "%v", err)
		return
	case conf == nil:
		first := slices.IndexFunc(problems, func(p control.Problem) bool { return !p.Warning })
		d.add(levelProblem, "config", "zhxctl check "+path, "%s: %s", path, problems[first].Text)
		return
	case len(problems) > 0:
		d.add(levelNote, "config", "zhxctl check "+path, "%s is valid, with %s", path, count(len(problems), "warning"))
	default:
		d.add(levelOK, "config", "", "%s is valid, %s", path, count(len(conf.Clients), "client"))
	}
	if d.zhxd != nil { // it has them
		return
	}
	for _, place := range [][2]string{{"run_dir", conf.Daemon.RunDir}, {"state_dir", conf.Daemon.StateDir}} {
		key, dir := place[0], place[1]
		for at := dir; ; at = filepath.Dir(at) { // up to what is there
			err := unix.Access(at, unix.W_OK|unix.X_OK)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				d.add(levelProblem, key, "become root, or name another one in [daemon] "+key, "%s cannot be used: %s: %v", dir, at, err)
			}
			break
		}
	}
}

func (d *doctor) device() {
	const about = "hardware watchdog"
	there, _ := filepath.Glob("/dev/watchdog*")
	path := ""
	if d.conf != nil {
		path = d.conf.Watchdog.Device
	}
	if path == "" {
		if len(there) > 0 {
			d.add(levelNote, about, `[watchdog] device = "`+there[0]+`"`, "%s is there, and zhx does not use it", there[0])
		} else {
			d.add(levelOK, about, "", "this board shows none, and none is asked for")
		}
		return
	}
	// It has two names, /dev/watchdog and /dev/watchdog0.
	holder := d.holder(func(file string) bool { return file == path || strings.HasPrefix(file, "/dev/watchdog") })
	err := unix.Access(path, unix.W_OK)
	switch {
	case err != nil:
		d.add(levelProblem, about, "load its driver, or leave [watchdog] device out", "%s: %v", path, err)
	case d.zhxd != nil && holder == d.zhxd.PID:
		d.add(levelOK, about, "", "zhxd feeds %s", path)
	case holder != 0:
		d.add(levelProblem, about, "end it; if it is systemd, RuntimeWatchdogSec=0 in system.conf", "%s is held by %s", path, d.name(holder))
	case d.zhxd != nil && d.zhxd.Watchdog != nil && d.zhxd.Watchdog.Device != nil:
		d.add(levelNote, about, "zhxctl status", "%s", *d.zhxd.Watchdog.Device)
	default:
		d.add(levelOK, about, "", "%s is there", path)
	}
}

// port looks who listens where zhxd does, or is to.
func (d *doctor) port() {
	if d.conf == nil {
		return
	}
	addr, err := netip.ParseAddrPort(d.conf.Daemon.TCP)
	if err != nil || addr.Port() == 0 {
		return // none, or any
	}
	about := "port " + strconv.Itoa(int(addr.Port()))
	inode := ""
	for _, table := range []string{"tcp", "tcp6"} {
		b, _ := os.ReadFile("/proc/net/" + table)
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && taken(f[1], addr) { // listens
				inode = f[9]
			}
		}
	}
	holder := d.holder(func(file string) bool { return file == "socket:["+inode+"]" })
	switch {
	case inode == "":
		d.has(d.zhxd == nil, about, addr.String()+" is free", "zhxd does not listen on "+addr.String(), "zhxctl status: it has read its configuration since")
	case d.zhxd != nil && (holder == d.zhxd.PID || holder == 0):
		d.add(levelOK, about, "", "%s is zhxd's", addr)
	case holder == 0:
		d.add(levelProblem, about, `sudo zhxctl doctor says whose; else [daemon] tcp = ""`, "%s is held by a process that you may not see", addr)
	default:
		d.add(levelProblem, about, `end it; else [daemon] tcp = ""`, "%s is held by %s", addr, d.name(holder))
	}
}

// taken tells whether a listener at local, as /proc/net has it (numbers of the processor's byte order), keeps others from addr.
func taken(local string, addr netip.AddrPort) bool {
	at, port, _ := strings.Cut(local, ":")
	ip := addr.Addr().As4()
	return port == fmt.Sprintf("%04X", addr.Port()) &&
		(strings.Trim(at, "0") == "" || strings.HasSuffix(at, fmt.Sprintf("%08X", binary.NativeEndian.Uint32(ip[:]))))
}

// keepers are files by which others start programs.
var keepers = []string{"/etc/inittab", "/etc/rc.local", "/etc/init.d/*", "/etc/systemd/system/*.wants/*.service", "/etc/supervisor/conf.d/*.conf",
	"/etc/supervisord.conf", "/etc/sv/*/run", "/etc/service/*/run", "/etc/monit/conf.d/*"}

// interpreter is a program of which its name does not say what it does.
var interpreter = regexp.MustCompile(`^(env|(ba|da|a|z)?sh|busybox|python[0-9.]*|perl|ruby|lua|node|java)$`)

// rivals looks who else runs what clients run.
func (d *doctor) rivals() {
	if d.conf == nil {
		return
	}
	before := len(d.found)
	words := func(line string) []string {
		return strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n=:;,\"'&", r) })
	}
	lines := map[string]string{}
	for _, pattern := range keepers {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			b, _ := os.ReadFile(file)
			for line := range strings.Lines(string(b)) {
				if !strings.HasPrefix(strings.TrimSpace(line), "#") {
					lines[line] = file
				}
			}
		}
	}
	last := ""
	for _, c := range d.conf.Clients {
		path, err := exec.LookPath(c.Command[0])
		if err != nil || c.Base == last { // check tells of the one, and the other is one more instance
			continue
		}
		last = c.Base
		exe, err := os.Stat(path)
		if err != nil {
			continue
		}
		for pid, p := range d.processes {
			if d.isRival(p, c.Command, path, exe) {
				d.rival(c, path, pid, p)
			}
		}
		want := []string{path}
		if interpreter.MatchString(filepath.Base(path)) {
			want = words(path + " " + strings.Join(c.Command[1:], " "))
		}
		for line, file := range lines {
			if has := words(line); !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(has, w) }) {
				d.add(levelProblem, "client "+c.Base, "take it out there, or disable it", "%s is started by %s as well", path, file)
			}
		}
	}
	if len(d.found) == before {
		d.add(levelOK, "rivals", "", "nobody else is seen to run the clients' programs")
	}
}

func (d *doctor) isRival(p process, command []string, path string, exe os.FileInfo) bool {
	if p.managed || len(p.argv) == 0 || p.exe == nil {
		return false
	}
	name := filepath.Base(path)
	script := slices.Contains(p.argv[1:min(3, len(p.argv))], path)
	program := os.SameFile(exe, p.exe) && strings.TrimPrefix(filepath.Base(p.argv[0]), "-") == name // busybox has many
	return script || program && (!interpreter.MatchString(name) || slices.Equal(p.argv[1:], command[1:]))
}

func (d *doctor) rival(c config.Client, path string, pid int, p process) {
	for at := pid; at > 1; at = d.processes[at].parent {
		if d.zhxd != nil && at == d.zhxd.PID {
			return
		}
	}
	about := "client " + c.Base
	switch {
	case p.tty:
		d.add(levelNote, about, fmt.Sprintf("end pid %d, if it is not meant", pid), "%s runs on a terminal too, pid %d", path, pid)
	case p.unit != "":
		d.add(levelProblem, about, "systemctl disable --now "+p.unit, "%s is run by %s too, pid %d", path, p.unit, pid)
	case p.parent > 1:
		d.add(levelProblem, about, "take it out there", "%s is run by %s too, pid %d", path, d.name(p.parent), pid)
	default:
		d.add(levelNote, about, `zhxd ends it before the first start, unless strays = "ignore"`, "%s runs already, pid %d, started by nobody that lives", path, pid)
	}
}

// losses are the counters that say that something did not go as it should.
var losses = []string{"messages_dropped", "publications_lost", "log_lines_dropped", "late_not_looked_at", "orphans_unplaced", "peers_malformed",
	"peers_truncated", "peers_over_limit", "peers_no_descriptor", "armings_refused", "notifications_refused", "notifications_malformed"}

// running adds what a zhxd that runs knows.
func (d *doctor) running(st control.Status) {
	if d.zhxd == nil {
		return
	}
	if d.zhxd.ConfigState != "ok" {
		d.add(levelProblem, "config", "zhxctl check, then zhxctl reload", "the file is %s; what was loaded before is in force", d.zhxd.ConfigState)
	}
	if w := d.zhxd.Watchdog; w != nil && w.SafeMode {
		d.add(levelProblem, "safe mode", "zhxctl start NAME", "after too many reboots clients are started by hand only")
	} else if w != nil && w.Mode == "observe" {
		d.add(levelNote, "watchdog", `[watchdog] mode = "enforce"`, "late clients are only told of")
	}
	for _, c := range st.Clients {
		level := levelProblem
		if slices.Contains([]string{"waiting", "starting", "running"}, c.State) {
			level = levelNote // that may pass
		}
		if text, next := ailment(c); text != "" {
			d.add(level, "client "+c.Name, next, "%s", text)
		}
	}
	var lost []string
	for _, name := range losses {
		if n := d.zhxd.Counters[name]; n > 0 {
			lost = append(lost, fmt.Sprintf("%s %d", name, n))
		}
	}
	if len(lost) > 0 {
		d.add(levelNote, "losses", "zhxctl status --json says of whom", "%s", strings.Join(lost, ", "))
	}
}

// processes reads /proc.
func processes() map[int]process {
	all := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		read := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return string(b)
		}
		stat := read("stat")
		end := strings.LastIndexByte(stat, ')') // comm may have any characters
		f := strings.Fields(stat[end+1:])
		if end < 0 || len(f) < 5 {
			continue // gone
		}
		_, comm, _ := strings.Cut(stat[:end], "(")
		p := process{comm: comm, tty: f[4] != "0", argv: strings.Split(strings.TrimSuffix(read("cmdline"), "\x00"), "\x00")}
		p.parent, _ = strconv.Atoi(f[1])
		p.exe, _ = os.Stat(filepath.Join(dir, "exe"))
		p.managed = strings.Contains("\x00"+read("environ"), "\x00ZHX_RUN=")
		for line := range strings.Lines(read("cgroup")) {
			if base := filepath.Base(strings.TrimSpace(line)); strings.HasSuffix(base, ".service") {
				p.unit = base
			}
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		all[pid] = p
	}
	return all
}

// holder is a process that has such a file open, 0 if we see none.
func (d *doctor) holder(is func(file string) bool) int {
	for pid := range d.processes {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if file, err := os.Readlink(fd); err == nil && is(file) {
				return pid
			}
		}
	}
	return 0
}

func (d *doctor) name(pid int) string { return fmt.Sprintf("%s (pid %d)", d.processes[pid].comm, pid) }
