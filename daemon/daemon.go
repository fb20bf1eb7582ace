// Package daemon is zhxd: wiring and policy. It is the only place that knows broker, processes and watchdog together.
//
//	process ─packet─> ipc/broker ─┬─ for a name: straight into that peer's socket
//	                              ├─ a feed ─> the run's dog (session.go)
//	                              └─ a name ─> identity.go: may this peer have it?
//	watchdog ─(name, run) lapsed─> procman: an old run? ignore : kill the tree, reap, back off, spawn run+1
//	clients.toml ─fsnotify─> reload.go: whole file valid or nothing ─> diff ─> procman
//	zhxctl ─HTTP/JSON─> backend.go ─> published snapshots; verbs go to procman
//
// Owners: the loop in reload.go owns what is loaded; each client has its lock (session.go); everything else belongs to
// the package that does the work. The daemon never ends because of a child, a client or a file: a failure is a log line
// with a next step.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	sdaemon "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"zhx/daemon/config"
	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/procman"
	"zhx/procman/proc"
	"zhx/watchdog"
	"zhx/watchdog/hardware"
)

// DefaultConfig is where the configuration is if nobody says otherwise.
const DefaultConfig = "/etc/zhx/clients.toml"

// Version is set by the linker.
var Version = "devel"

const (
	oneWish  = 500 * time.Millisecond // two signals to end within that are one
	startMax = time.Minute            // for all clients of autostart to be spawned; then zhxd is ready without those that are not, and names them
	threads  = 16                     // that zhxd has from its start on; 5 to 9 is what it uses, but under a flood
	tcpAgain = time.Second            // between attempts to listen on an address of TCP that somebody else has
	endMax   = 90 * time.Second       // for all clients to stop, by levels; then what is left is killed, and named
)

// ErrConfig: the configuration is invalid. The text has every problem with its file and line.
var ErrConfig = errors.New("invalid configuration")

// Options is what the command line says.
type Options struct {
	Config  string    // path of clients.toml
	RunDir  string    // instead of [daemon] run_dir; "" is what the configuration says
	LogFile string    // "" is Stderr
	Stderr  io.Writer // nil is os.Stderr

	// In tests: what stands in for the hardware.
	device hardware.Opener
	board  hardware.Board
	made   func(*Daemon) // is told of it before it serves
}

// Daemon is one zhxd.
type Daemon struct {
	// Immutable:
	opts    Options
	began   time.Time
	out     *lineLog
	log     *slog.Logger
	dir     *rundir
	cookie  string // "": there is none, and nobody is admitted by it
	kernel  *proc.Kernel
	watch   *watchdog.Watch
	bus     *broker.Broker
	procs   *procman.Set
	ctl     *control.Server
	reloads chan reloadRequest // anyone -> loop
	edited  chan struct{}      // the file watcher -> loop
	end     func()             // begins the end
	ending  <-chan struct{}    // it has begun
	serving context.Context    // lives longer: clients talk while they stop
	board   *board

	loaded      atomic.Pointer[config.Config]
	owners      atomic.Pointer[map[string]*client] // name -> the client that it belongs to
	onDisk      atomic.Pointer[diskState]          // the file against what is loaded
	unarmed     atomic.Int64                       // armings of strangers refused: another user's name, or foreignMax
	unfed       atomic.Int64                       // feeds of a dog that was not armed
	foreignRuns atomic.Uint64
	foreignLog  *rate.Limiter          // of lines about lapses of users who are neither root nor zhxd's own
	keep        atomic.Bool            // clients go on when this zhxd ends
	looping     atomic.Bool            // the configuration's loop has begun
	looks       atomic.Int64           // at late clients, under way
	unlooked    atomic.Int64           // late clients that were not looked at: looksMax
	device      atomic.Pointer[string] // what is said of the hardware watchdog; nil: there is none
	rebooting   atomic.Pointer[string] // why, once it is decided
	exhibited   atomic.Pointer[string] // where metrics are served over TCP, or why not; nil: they need not be
	exhibits    chan struct{}          // that has changed in the configuration -> exhibitor
	reloaded    atomic.Int64           // when a configuration was used last, in Unix milliseconds
	probes      sync.WaitGroup
	events      events
	arrivals    arrivals

	mu      sync.Mutex // guards what follows
	clients map[string]*client
	foreign map[string]*foreign // by name
}

// Run is zhxd from start to end: it returns nil after SIGTERM, SIGINT, a shutdown through the control socket or the end
// of ctx, when every client has stopped. ErrConfig and ErrRunning are told apart with errors.Is.
func Run(ctx context.Context, o Options) error {
	conf, err := load(o)
	if err != nil {
		return err
	}
	d := &Daemon{
		opts: o, began: time.Now(), foreignLog: rate.NewLimiter(foreignLines, foreignLines),
		reloads: make(chan reloadRequest), edited: make(chan struct{}, 1), exhibits: make(chan struct{}, 1),
		clients: map[string]*client{}, foreign: map[string]*foreign{}, events: events{said: map[string]said{}},
	}
	d.owners.Store(&map[string]*client{})
	d.loaded.Store(&config.Config{Daemon: conf.Daemon, Watchdog: conf.Watchdog})
	d.onDisk.Store(&diskState{word: "ok"})

	// Last of all: the end of a shutdown request's answer says that the run directory and the log are free.
	defer func() {
		if d.ctl != nil {
			d.ctl.Close()
		}
	}()
	if d.dir, err = holdRundir(conf.Daemon.RunDir); err != nil {
		return err
	}
	defer d.dir.release()
	if err := d.openLog(); err != nil {
		return err
	}
	defer d.out.Close()
	d.kernel, err = proc.Open(proc.Options{
		NoPidfd: os.Getenv("ZHX_PIDFD") == "off", NoCgroup: os.Getenv("ZHX_CGROUP") == "off", // the old kernels' paths, for tests
	}, d.log)
	if err != nil {
		return err
	}
	defer d.kernel.Close()
	reserveThreads()
	err = d.run(ctx, conf)
	if err != nil && o.LogFile != "" { // nobody reads stderr then
		d.log.Error("zhxd failed", "err", err)
	}
	return err
}

// reserveThreads has the runtime make threads that it keeps: it ends the process when it needs another and there is no process for it,
// by a limit or a fork bomb beside us.
func reserveThreads() {
	var made, left sync.WaitGroup
	made.Add(threads)
	end := make(chan struct{})
	for range threads {
		left.Go(func() {
			runtime.LockOSThread()
			made.Done()
			<-end
			runtime.UnlockOSThread()
		})
	}
	made.Wait()
	close(end)
	left.Wait()
}

func (d *Daemon) openLog() error {
	var w io.Writer = os.Stderr
	if d.opts.Stderr != nil {
		w = d.opts.Stderr
	}
	if d.opts.LogFile != "" {
		f, err := openLogFile(d.opts.LogFile)
		if err != nil {
			return err
		}
		w = f
	}
	d.out = newLog(w)
	d.log = d.out.Logger()
	return nil
}

// run wires the parts, serves until the end is asked for, and takes everything down in reverse.
func (d *Daemon) run(ctx context.Context, conf *config.Config) (err error) {
	ctx, d.end = context.WithCancel(ctx)
	defer d.end()
	d.ending = ctx.Done()
	// Before there is a child: one must not inherit that whoever started zhxd ignores these.
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(sigs)
	d.log.Info("zhxd begins", "version", Version, "pid", os.Getpid(), "config", conf.Path, "clients", len(conf.Clients))

	// Whatever serves lives longer than ctx: clients talk while they stop.
	var unserve func()
	d.serving, unserve = context.WithCancel(context.WithoutCancel(ctx))
	defer unserve()
	d.board = d.openBoard(conf)
	d.watch = watchdog.New(watchdog.Options{Settle: d.settle, Examine: d.examine, Warned: d.warned, Lapsed: d.lapsed,
		Passed: d.board.passed, Beat: d.board.beat})
	if d.cookie, err = d.dir.makeCookie(conf.Daemon.SocketGroup); err != nil {
		d.log.Error("cookie not made", "err", err, "next", "protocol 2 over TCP is refused")
	}
	d.bus = broker.New(d, d.log, broker.Options{MaxBody: conf.Daemon.MaxBody})
	d.procs = procman.New(procman.Options{
		Dir: d.dir.state, Notify: d.dir.notify, Environ: append(os.Environ(), "ZHX_SOCKET="+conf.Daemon.Socket), Kernel: d.kernel, Log: d.log, Events: d,
		Output: d.out.Output, Fail: failpoint(),
		Spare: d.spare, Changed: d.changed,
		Settle: func() { d.bus.Settle(watchdog.SettleMax, func(any) bool { return true }) },
	})

	if d.opts.made != nil {
		d.opts.made(d)
	}

	listeners, err := d.listen(&conf.Daemon)
	if err != nil {
		return err
	}
	serving := d.serving
	stopping, hurry := context.WithCancel(serving)
	defer hurry()
	var parts sync.WaitGroup
	parts.Go(func() { d.signals(serving, sigs, hurry) })
	d.ctl = d.controlServer(&conf.Daemon)
	parts.Go(func() { d.watch.Run(serving) })
	if d.board.beat > 0 {
		parts.Go(func() { d.board.heart(serving) })
	}
	parts.Go(func() { d.exhibitor(serving) })
	if conf.Daemon.PrototypePresence {
		parts.Go(func() { keepPresence(serving, d.kernel, d.log) })
	}

	if err := d.procs.Leftovers(ctx, d.specs(conf)); err != nil {
		d.log.Error("leftovers of the last zhxd", "err", err, "next", "their clients are not started until they are gone")
	}
	d.apply(conf)
	// Who connected earlier waits: a run that is not adopted yet could not prove its name, and its receivers seem to be stopped.
	data := func(ln net.Listener) {
		if err := d.bus.Serve(ln); err != nil {
			d.log.Error("listener failed", "address", ln.Addr().String(), "err", err, "next", "restart zhxd")
		}
	}
	listeners.data.serve = func(ln *net.UnixListener) func() {
		parts.Go(func() { data(ln) })
		return func() { d.bus.Unserve(ln) }
	}
	listeners.control.serve = func(ln *net.UnixListener) func() {
		parts.Go(func() { d.ctl.Serve(serving, ln) })
		return func() { ln.Close() } // what is being answered goes on
	}
	if listeners.tcp != nil {
		parts.Go(func() { data(listeners.tcp) })
	} else if conf.Daemon.TCP != "" {
		parts.Go(func() {
			if ln := d.awaitTCP(ctx, conf.Daemon.TCP); ln != nil {
				data(ln)
			}
		})
	}
	sockets := []*guarded{listeners.data, listeners.control} // who asks the second earlier waits: there is no client to speak of yet
	for _, g := range sockets {
		g.end = g.serve(g.ln)
	}
	parts.Go(func() { d.guard(ctx, sockets) })
	tcp := ""
	if listeners.tcp != nil {
		tcp = listeners.tcp.Addr().String()
	}
	parts.Go(func() {
		limited, cancel := context.WithTimeout(ctx, startMax)
		defer cancel()
		err := d.procs.Wait(limited)
		if ctx.Err() != nil {
			return // asked to end
		}
		if err != nil {
			d.log.Warn("the start takes too long", "limit", startMax, "err", err, "next", "ready without them; it goes on")
		}
		d.log.Info("ready", "socket", conf.Daemon.Socket, "tcp", tcp, "next", "zhxctl --control "+conf.Daemon.Control+" status")
		notifyOuter(sdaemon.SdNotifyReady)
		debug.FreeOSMemory() // a start leaves garbage that would stay for as long as nothing happens
	})
	d.loop(ctx)

	notifyOuter(sdaemon.SdNotifyStopping)
	if d.keep.Load() {
		d.log.Info("zhxd ends", "next", "clients go on; the next zhxd adopts them")
		err = d.procs.Leave(stopping)
	} else {
		d.log.Info("zhxd ends", "next", "clients stop in reverse order")
		limit := time.AfterFunc(endMax, func() {
			d.log.Warn("the end takes too long", "limit", endMax, "next", "what is left is killed")
			hurry()
		})
		err = d.procs.Shutdown(stopping)
		limit.Stop()
	}
	if err != nil {
		d.log.Error("clients left", "err", err)
	}
	d.bus.Close()
	if !d.keep.Load() {
		os.Remove(d.dir.cookiePath())
	}
	unserve()
	parts.Wait()
	d.probes.Wait()
	if d.rebooting.Load() != nil {
		d.board.restart()
	}
	d.log.Info("zhxd has ended", "uptime", round(time.Since(d.began)))
	return nil
}

// listeners are the sockets of one zhxd.
type listeners struct {
	data, control *guarded
	tcp           net.Listener // nil: none
}

func (d *Daemon) listen(c *config.Daemon) (l listeners, err error) {
	l.data = &guarded{path: c.Socket, make: func() (*net.UnixListener, error) {
		return listenUnix(c.Socket, "socket", c.SocketMode, c.SocketGroup)
	}}
	l.control = &guarded{path: c.Control, make: func() (*net.UnixListener, error) {
		return listenUnix(c.Control, "control", 0o660, c.ControlGroup)
	}}
	if err := l.data.open(); err != nil {
		return l, err
	}
	if c.TCP != "" {
		l.tcp, err = net.Listen("tcp4", c.TCP)
		if errors.Is(err, unix.EADDRINUSE) { // any user could do that: the others are not to suffer for it
			d.log.Error("the address of TCP is taken", "err", err, "next", "clients connect by "+c.Socket+" alone; tried again each "+tcpAgain.String())
			err = nil
		} else if err != nil {
			err = fmt.Errorf("[daemon] tcp: %w", err)
		}
	}
	if err == nil {
		err = l.control.open()
	}
	if err != nil {
		l.data.ln.Close()
		if l.tcp != nil {
			l.tcp.Close()
		}
	}
	return l, err
}

// awaitTCP listens as soon as the address is free; nil: ctx has ended.
func (d *Daemon) awaitTCP(ctx context.Context, address string) net.Listener {
	for rest(ctx, tcpAgain) {
		if ln, err := net.Listen("tcp4", address); err == nil {
			d.log.Info("the address of TCP is free", "tcp", ln.Addr().String(), "next", "clients connect there, too")
			return ln
		}
	}
	return nil
}

// failpoint ends this process at the point that $ZHX_FAILPOINT names, in tests of a crash.
func failpoint() func(point string) {
	at := os.Getenv("ZHX_FAILPOINT")
	if at == "" {
		return nil
	}
	return func(point string) {
		if point == at {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
}

func (d *Daemon) config() *config.Config { return d.loaded.Load() }

// owner is the client of the configuration that a name belongs to, nil for a free name.
func (d *Daemon) owner(name string) *client { return (*d.owners.Load())[name] }

// Account implements broker.Gate.
func (d *Daemon) Account(name string) *broker.Account {
	if c := d.owner(name); c != nil {
		return &c.account
	}
	return nil
}

// Began implements procman.Events: the run exists from before its fork, so that it is known when it connects.
func (d *Daemon) Began(name string, number uint64, t *proc.Tree) {
	c := d.client(name)
	if c == nil {
		return // removed from the configuration while it was about to start
	}
	s := &session{d: d, id: watchdog.ID{Name: name, Run: number}, began: time.Now(), client: c, tree: t, targets: targets{}, unprobe: func() {}}
	c.mu.Lock()
	s.newDog(c.conf.Rules())
	s.configure(c.conf)
	c.current = s
	c.mu.Unlock()
	d.takeBack(c.names())
}

// Running implements procman.Events.
func (d *Daemon) Running(name string, number uint64, pid int) {
	if s := d.session(watchdog.ID{Name: name, Run: number}); s != nil {
		s.pid.Store(int64(pid))
		p := s.client.configured().Probe
		s.mu.Lock()
		s.ask(p)
		s.mu.Unlock()
	}
}

// Ended implements procman.Events. Began and Ended of one client come one after the other.
func (d *Daemon) Ended(name string, number uint64, last procman.LastExit) {
	s := d.session(watchdog.ID{Name: name, Run: number})
	if s == nil {
		return
	}
	s.client.mu.Lock()
	dog := s.theDog()
	dog.Retire()
	s.client.past.add(dog.Status())
	s.client.past.died(last)
	s.client.current, s.client.ended = nil, s
	s.client.mu.Unlock()
	s.mu.Lock()
	s.unprobe()
	s.mu.Unlock()
}

// Armed implements procman.Events: an adopted run gets a whole timeout to come back and feed.
func (d *Daemon) Armed(name string, number uint64) {
	if s := d.session(watchdog.ID{Name: name, Run: number}); s != nil {
		s.armed.Store(true) // the record has it
		s.Arm()
	}
}

// session is that run, if it is its client's current one; nil: it has ended.
func (d *Daemon) session(id watchdog.ID) *session {
	if c := d.client(id.Name); c != nil {
		if s := c.run(); s != nil && s.id == id {
			return s
		}
	}
	return nil
}

func (d *Daemon) client(name string) *client {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.clients[name]
}

// signals turns SIGHUP into a reload, the first SIGINT or SIGTERM into the end, and a later one into a fast end. One that
// comes with the first is the same wish: timeout(1) signals the process and its group.
func (d *Daemon) signals(ctx context.Context, ch <-chan os.Signal, hurry func()) {
	for asked := (time.Time{}); ; {
		select {
		case <-ctx.Done():
			return
		case sig := <-ch:
			switch {
			case sig == unix.SIGHUP:
				go d.reload(ctx, "SIGHUP", false) // the loop logs what came of it
			case !asked.IsZero() && time.Since(asked) < oneWish:
			case !asked.IsZero():
				d.log.Warn("asked to end again", "by", sig.String(), "next", "clients are killed")
				hurry()
			default:
				asked = time.Now()
				d.log.Info("asked to end", "by", sig.String())
				d.end()
			}
		}
	}
}

// rest waits for d, and reports false where ctx ends before.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// nudge tells whoever waits on c, which has room for one, to look; never waits: who has not looked yet is told already.
func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// given is a pointer to v, as what can be absent is shown; nil for the zero value.
func given[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

// round shortens a duration for people.
func round(v time.Duration) time.Duration {
	switch {
	case v > 10*time.Second:
		return v.Round(100 * time.Millisecond)
	case v > time.Second:
		return v.Round(10 * time.Millisecond)
	}
	return v.Round(time.Millisecond)
}
