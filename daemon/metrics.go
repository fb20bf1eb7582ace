// The page that Prometheus reads: GET /metrics of the control socket, and of the loopback address in [daemon] metrics. Here alone is
// a snapshot turned into text; etc/doc/metrics.md is made of the table.
//
//	scrape ─> what status shows, the clients' totals, the judge's lateness, the process ─> families, one after the other ─> text
//
// Labels have only names of clients of the configuration, and words of zhx: nothing that a peer says. A client that is removed
// takes its samples with it. Text format 0.0.4 is written by hand: a page is a snapshot, not a registry of things that count.
package daemon

import (
	"context"
	"maps"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
	"zhx/ipc/broker"
	"zhx/procman"
	"zhx/procman/proc"
	"zhx/watchdog"
)

const exhibitRetry = 2 * time.Second // between two tries to listen where a port is taken

// past is what the runs of a client that have ended, and the dogs that were replaced, add up to.
type past struct {
	deaths  map[string]int64 // by reason
	misses  int64
	credit  time.Duration
	feeding watchdog.Buckets
}

func (p *past) add(dog watchdog.Status) {
	p.misses += dog.Misses
	p.credit += dog.Credited
	p.feeding.Merge(dog.Intervals.Buckets)
}

func (p *past) died(last procman.LastExit) {
	if p.deaths == nil {
		p.deaths = map[string]int64{}
	}
	p.deaths[death(last).Reason]++
}

// seen is one client at the time of a scrape.
type seen struct {
	control.ClientStatus
	past    // and its present run
	account *broker.Account
}

// scrape is all that a page is made of.
type scrape struct {
	*control.DaemonStatus
	peers   []control.PeerStatus
	clients []seen
	judge   watchdog.Lateness
	gc      debug.GCStats
	runtime []metrics.Sample // of runtimeMetrics
	usage   unix.Rusage
	memory  int64
	fds     int // -1: unknown
	maxFDs  uint64
	began   time.Time
	loaded  time.Time
}

// What the words of labels can be.
var (
	clientStates = []procman.State{procman.Stopped, procman.Waiting, procman.Starting, procman.Running, procman.Stopping, procman.Backoff,
		procman.Failed, procman.Exited, procman.Unkillable}
	deathReasons = []procman.Reason{procman.ByExit, procman.BySignal, procman.ByWatchdog, procman.ByStop, procman.BySpawn, procman.ByTimeout,
		procman.ByDependency, procman.ByUnknown}
	configStates   = []string{"ok", "changed", "invalid"}
	runtimeMetrics = []string{"/sched/goroutines:goroutines", "/sched/threads/total:threads", "/memory/classes/heap/objects:bytes",
		"/memory/classes/total:bytes"}
)

const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
	summary   = "summary"
)

// family is the metrics of one name, as they come in the page.
type family struct {
	name, kind string
	labels     []string
	help       string
	write      func(*page, *scrape)
}

var ofClient = []string{"client"}

// families are all there are.
var families = []family{
	{"zhx_build_info", gauge, []string{"version", "goversion"}, "Always 1; the labels say which zhxd this is.",
		func(p *page, s *scrape) { p.add(1, s.Version, runtime.Version()) }},
	{"zhx_uptime_seconds", gauge, nil, "Time since zhxd began, which no step of the clock moves.",
		one(func(s *scrape) float64 { return time.Since(s.began).Seconds() })},
	{"zhx_config_state", gauge, []string{"state"}, "1 for what clients.toml is against what is loaded, 0 for the other states: ok, changed, invalid.",
		func(p *page, s *scrape) {
			for _, state := range configStates {
				p.add(truth(s.ConfigState == state), state)
			}
		}},
	{"zhx_config_last_reload_success_timestamp_seconds", gauge, nil, "When a configuration was put to use last, by the clock of that time.",
		one(func(s *scrape) float64 { return float64(s.loaded.UnixMilli()) / 1000 })},
	{"zhx_safe_mode", gauge, nil, "1 if reboot_limit was reached and clients are started by hand only.",
		one(func(s *scrape) float64 { return truth(s.Watchdog != nil && s.Watchdog.SafeMode) })},

	{"zhx_client_state", gauge, []string{"client", "state"}, "1 for the state that the client is in, 0 for each other one.",
		each(func(p *page, c *seen) {
			for _, state := range clientStates {
				p.add(truth(c.State == string(state)), c.Name, string(state))
			}
		})},
	{"zhx_client_ready", gauge, ofClient, "1 if the client is ready, as its key ready has it.",
		value(func(c *seen) float64 { return truth(c.Ready) })},
	{"zhx_client_connected", gauge, ofClient, "1 if a connection to the broker receives under a name of the client.",
		value(func(c *seen) float64 { return truth(c.Connected) })},
	{"zhx_client_uptime_seconds", gauge, ofClient, "Age of the client's process; without a process, there is no sample.",
		some(func(c *seen) *float64 { return c.Uptime })},
	{"zhx_client_resident_memory_bytes", gauge, ofClient, "Resident memory of the client's first process; without a process, there is no sample.",
		each(func(p *page, c *seen) {
			if c.Memory != nil {
				p.add(float64(*c.Memory), c.Name)
			}
		})},
	{"zhx_client_restarts_total", counter, ofClient, "Starts of the client that nobody asked for by hand.",
		value(func(c *seen) float64 { return float64(c.Restarts) })},
	{"zhx_client_deaths_total", counter, []string{"client", "reason"},
		"Ends of the client's runs: exit, signal, watchdog, stop (asked for), spawn (could not be started), timeout (not ready in time), dependency (for another client's sake), unknown.",
		each(func(p *page, c *seen) {
			for _, reason := range deathReasons {
				p.add(float64(c.past.deaths[string(reason)]), c.Name, string(reason))
			}
		})},

	{"zhx_client_watchdog_armed", gauge, ofClient, "1 if the client is late when it does not feed in time.",
		watched(func(w *control.WatchdogStatus) float64 { return truth(w.Armed) })},
	{"zhx_client_watchdog_paused", gauge, ofClient, "1 if the client's watchdog was paused by hand.",
		watched(func(w *control.WatchdogStatus) float64 { return truth(w.Paused) })},
	{"zhx_client_watchdog_timeout_seconds", gauge, ofClient, "The silence that the client is allowed.",
		watched(func(w *control.WatchdogStatus) float64 { return w.Timeout })},
	{"zhx_client_watchdog_remaining_seconds", gauge, ofClient, "Time until the client is late, unless it feeds; there is no sample where it is not armed.",
		some(func(c *seen) *float64 {
			if c.Watchdog == nil {
				return nil
			}
			return c.Watchdog.Remaining
		})},
	{"zhx_client_watchdog_lapses_total", counter, ofClient, "Times that the client was late.",
		watched(func(w *control.WatchdogStatus) float64 { return float64(w.Lapses) })},
	{"zhx_client_watchdog_misses_total", counter, ofClient, "Feeds that came after warn_after, and in time nevertheless.",
		value(func(c *seen) float64 { return float64(c.misses) })},
	{"zhx_client_watchdog_credited_seconds_total", counter, ofClient, "Time that the client was given beyond its timeout since the processors were busy with others.",
		value(func(c *seen) float64 { return c.credit.Seconds() })},
	{"zhx_client_feed_interval_seconds", histogram, ofClient, "Times between two feeds, without those in which zhxd did not listen.",
		each(func(p *page, c *seen) { p.buckets(c.feeding, c.Name) })},

	{"zhx_client_sent_messages_total", counter, ofClient, "Messages and requests that the client has sent.",
		value(func(c *seen) float64 { return float64(c.Messages.Sent) })},
	{"zhx_client_sent_bytes_total", counter, ofClient, "Bytes of these, headers included.",
		value(func(c *seen) float64 { return float64(c.account.SentBytes.Load()) })},
	{"zhx_client_received_messages_total", counter, ofClient, "Messages and requests that were written to the client.",
		value(func(c *seen) float64 { return float64(c.Messages.Received) })},
	{"zhx_client_received_bytes_total", counter, ofClient, "Bytes of these as they were sent, headers included.",
		value(func(c *seen) float64 { return float64(c.account.ReceivedBytes.Load()) })},
	{"zhx_client_lost_messages_total", counter, []string{"client", "reason"},
		"Messages to the client that it did not get: undeliverable (there was no receiver), stuck (it did not read), expired (they were held, in vain).",
		each(func(p *page, c *seen) {
			p.add(float64(c.Messages.Undeliverable), c.Name, "undeliverable")
			p.add(float64(c.Messages.Dropped), c.Name, "stuck")
			p.add(float64(c.Messages.Expired), c.Name, "expired")
		})},
	{"zhx_client_held_messages_total", counter, ofClient, "Messages that had to wait for a run of the client.",
		value(func(c *seen) float64 { return float64(c.Messages.Held) })},
	{"zhx_client_waiting_messages", gauge, ofClient, "Those of them that wait now.",
		value(func(c *seen) float64 { return float64(max(0, c.Messages.Held-c.Messages.Released-c.Messages.Expired)) })},

	{"zhx_peers", gauge, []string{"transport", "protocol"}, "Connections to the broker that are open.",
		func(p *page, s *scrape) {
			for _, transport := range []broker.Transport{broker.Unix, broker.TCP} {
				for protocol := 1; protocol <= 2; protocol++ {
					n := 0
					for _, peer := range s.peers {
						if peer.Transport == string(transport) && peer.Protocol == protocol {
							n++
						}
					}
					p.add(float64(n), string(transport), strconv.Itoa(protocol))
				}
			}
		}},
	{"zhx_stuck_peers", gauge, nil, "Connections whose receiver has taken nothing for 100 ms, though there is something for it.",
		one(func(s *scrape) (n float64) {
			for _, peer := range s.peers {
				n += truth(peer.Stuck)
			}
			return n
		})},
	{"zhx_stuck_receivers_total", counter, nil, "Times that a receiver became stuck.", counted("receivers_stuck")},
	{"zhx_connections_total", counter, nil, "Connections to the broker that were accepted.", counted("connections")},
	{"zhx_closed_connections_total", counter, []string{"reason"},
		"Connections that ended other than by their own wish: malformed (sent what is no message), truncated (ended within a message), over_limit (there were too many), replaced (a newer one has its name).",
		counted("peers_malformed", "malformed", "peers_truncated", "truncated", "peers_over_limit", "over_limit", "peers_replaced", "replaced")},
	{"zhx_accept_failures_total", counter, nil, "Connections that waited since zhxd had no descriptor or no memory for them.",
		counted("peers_no_descriptor")},
	{"zhx_identity_refusals_total", counter, nil, "Messages, registrations and feeds refused: a name was not proved, or a rule such as may_send_to forbids them.",
		counted("packets_refused")},
	{"zhx_arming_refusals_total", counter, nil, "Attempts of strangers to arm a watchdog that were refused.", counted("armings_refused")},
	{"zhx_ignored_notifications_total", counter, []string{"reason"},
		"Messages of sd_notify that were not carried out: refused (from who may not speak for the client), malformed (it, or a part of it, says nothing).",
		counted("notifications_refused", "refused", "notifications_malformed", "malformed")},
	{"zhx_ignored_feeds_total", counter, nil, "Feeds of a watchdog that was not armed.", counted("feeds_ignored")},
	{"zhx_forwarded_messages_total", counter, nil, "Messages and requests that were written to their receiver.",
		counted("messages_forwarded")},
	{"zhx_held_messages_total", counter, nil, "Messages that had to wait for their receiver.", counted("messages_held")},
	{"zhx_released_messages_total", counter, nil, "Those of them that it got.", counted("messages_released")},
	{"zhx_lost_messages_total", counter, []string{"reason"},
		"What did not get there: undeliverable, stuck, expired as for a client; unanswered (replies whose asker has gone), untold (acknowledgements and errors that a peer did not take), publication (by a slow subscriber).",
		counted("messages_undeliverable", "undeliverable", "messages_dropped", "stuck", "messages_expired", "expired", "replies_unanswered", "unanswered", "answers_untold", "untold", "publications_lost", "publication")},
	{"zhx_lost_publications_total", counter, []string{"policy"},
		"Of those, publications, by the policy of who subscribed: oldest, newest (which is lost), latest (none but that is kept), disconnect (its connection was closed).",
		counted("publications_lost_oldest", "oldest", "publications_lost_newest", "newest", "publications_lost_latest", "latest", "publications_lost_disconnect", "disconnect")},
	{"zhx_publications_total", counter, nil, "Messages to topics.", counted("published")},
	{"zhx_received_bytes_total", counter, nil, "Bytes that peers have sent.", counted("bytes_received")},
	{"zhx_written_bytes_total", counter, nil, "Bytes that were written to peers.", counted("bytes_written")},
	{"zhx_waiting_bytes", gauge, nil, "Bytes that wait in zhxd's memory for their receivers.", counted("bytes_waiting")},
	{"zhx_received_descriptors_total", counter, nil, "Descriptors that peers have sent.", counted("descriptors_received")},
	{"zhx_written_descriptors_total", counter, nil, "Descriptors that were passed on.", counted("descriptors_written")},
	{"zhx_transit_descriptors", gauge, nil, "Descriptors that are open in zhxd, on their way from one peer to another.",
		counted("descriptors_in_transit")},

	{"zhx_judge_lateness_seconds", histogram, nil, "How late zhxd itself was each time that it looked who is late.",
		func(p *page, s *scrape) { p.buckets(s.judge.Wakes) }},
	{"zhx_judge_gaps_total", counter, nil, "Times that it was later than 100 ms: it did not run, and nobody is judged for that.",
		one(func(s *scrape) float64 { return float64(s.judge.Gaps) })},
	{"zhx_judge_gap_seconds_total", counter, nil, "Time that was taken from all silences therefore.",
		one(func(s *scrape) float64 { return s.judge.Given.Seconds() })},
	{"zhx_unexamined_clients_total", counter, nil, "Late clients that were not looked at, since too many were late at once.", counted("late_not_looked_at")},
	{"zhx_dropped_log_lines_total", counter, nil, "Lines of zhxd's own log that nobody took in time.", counted("log_lines_dropped")},
	{"zhx_unplaced_orphans_total", counter, nil, "Processes that lost their parents and belong to no client that can be told.", counted("orphans_unplaced")},

	{"go_goroutines", gauge, nil, "Goroutines of zhxd.", sampled(0)},
	{"go_threads", gauge, nil, "Threads of zhxd.", sampled(1)},
	{"go_memstats_heap_alloc_bytes", gauge, nil, "Bytes of zhxd's heap that are in use.", sampled(2)},
	{"go_memstats_sys_bytes", gauge, nil, "Bytes of address space that zhxd has from the kernel.", sampled(3)},
	{"go_gc_duration_seconds", summary, nil, "Pauses of zhxd for its garbage collection.",
		func(p *page, s *scrape) {
			p.sample("_sum", "", s.gc.PauseTotal.Seconds())
			p.sample("_count", "", float64(s.gc.NumGC))
		}},
	{"process_cpu_seconds_total", counter, nil, "Processor time of zhxd, user and system.",
		one(func(s *scrape) float64 { return time.Duration(s.usage.Utime.Nano() + s.usage.Stime.Nano()).Seconds() })},
	{"process_resident_memory_bytes", gauge, nil, "Resident memory of zhxd.", one(func(s *scrape) float64 { return float64(s.memory) })},
	{"process_open_fds", gauge, nil, "Descriptors that zhxd has open; there is no sample where it has none left to count them with.",
		func(p *page, s *scrape) {
			if s.fds >= 0 {
				p.add(float64(s.fds))
			}
		}},
	{"process_max_fds", gauge, nil, "Descriptors that zhxd may have open.", one(func(s *scrape) float64 { return float64(s.maxFDs) })},
	{"process_start_time_seconds", gauge, nil, "When zhxd began, by the clock of that time.",
		one(func(s *scrape) float64 { return float64(s.began.UnixMilli()) / 1000 })},
}

// The usual ways to write a family: one sample; one of each client; one of those that have it; of those with a watchdog.

func one(f func(*scrape) float64) func(*page, *scrape) {
	return func(p *page, s *scrape) { p.add(f(s)) }
}

// counted is one counter of status; with labels, each of several is followed by its label.
func counted(names ...string) func(*page, *scrape) {
	return func(p *page, s *scrape) {
		for i := 0; i < len(names); i += 1 + len(p.labels) {
			p.add(float64(s.Counters[names[i]]), names[i+1:i+1+len(p.labels)]...)
		}
	}
}

func sampled(i int) func(*page, *scrape) {
	return func(p *page, s *scrape) { p.add(float64(s.runtime[i].Value.Uint64())) }
}

func each(f func(*page, *seen)) func(*page, *scrape) {
	return func(p *page, s *scrape) {
		for i := range s.clients {
			f(p, &s.clients[i])
		}
	}
}

func value(f func(*seen) float64) func(*page, *scrape) {
	return each(func(p *page, c *seen) { p.add(f(c), c.Name) })
}

func some(f func(*seen) *float64) func(*page, *scrape) {
	return each(func(p *page, c *seen) {
		if v := f(c); v != nil {
			p.add(*v, c.Name)
		}
	})
}

func watched(f func(*control.WatchdogStatus) float64) func(*page, *scrape) {
	return each(func(p *page, c *seen) {
		if c.Watchdog != nil {
			p.add(f(c.Watchdog), c.Name)
		}
	})
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// page is what is written so far, and the family that is being written.
type page struct {
	text []byte
	*family
}

// add writes a sample; values are those of the family's labels.
func (p *page) add(v float64, values ...string) { p.sample("", "", v, values...) }

// buckets writes a histogram.
func (p *page) buckets(b watchdog.Buckets, values ...string) {
	n := int64(0)
	for i, in := range b.Counts {
		n += in
		le := "+Inf"
		if i < len(watchdog.Bounds) {
			le = strconv.FormatFloat(watchdog.Bounds[i].Seconds(), 'f', -1, 64)
		}
		p.sample("_bucket", le, float64(n), values...)
	}
	p.sample("_sum", "", b.Sum.Seconds(), values...)
	p.sample("_count", "", float64(n), values...)
}

var escaped = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (p *page) sample(suffix, le string, v float64, values ...string) {
	p.text = append(append(p.text, p.name...), suffix...)
	separator := byte('{')
	label := func(name, value string) {
		p.text = append(append(append(p.text, separator), name...), `="`...)
		p.text = append(append(p.text, escaped.Replace(value)...), '"')
		separator = ','
	}
	for i, value := range values {
		label(p.labels[i], value)
	}
	if le != "" {
		label("le", le)
	}
	if separator == ',' {
		p.text = append(p.text, '}')
	}
	p.text = append(strconv.AppendFloat(append(p.text, ' '), v, 'f', -1, 64), '\n')
}

// metrics is the page as of now. It waits for nothing that a client can hold up.
func (b backend) metrics() []byte {
	s := b.scrape()
	p := page{text: make([]byte, 0, 8<<10*(1+len(s.clients)/2))}
	for i := range families {
		f := &families[i]
		p.family = f
		p.text = append(p.text, "# HELP "+f.name+" "+f.help+"\n# TYPE "+f.name+" "+f.kind+"\n"...)
		f.write(&p, s)
	}
	return p.text
}

func (b backend) scrape() *scrape {
	st := b.Status(context.Background())
	s := &scrape{DaemonStatus: st.Daemon, peers: st.Peers, judge: b.watch.Lateness(), began: b.began,
		loaded: time.UnixMilli(b.reloaded.Load()), fds: -1}
	for _, cs := range st.Clients {
		if c := b.client(cs.Name); c != nil { // else an edit has removed it a moment ago
			s.clients = append(s.clients, seen{ClientStatus: cs, past: c.totals(), account: &c.account})
		}
	}
	for _, name := range runtimeMetrics {
		s.runtime = append(s.runtime, metrics.Sample{Name: name})
	}
	metrics.Read(s.runtime)
	debug.ReadGCStats(&s.gc)
	_, s.memory, _ = proc.Usage(os.Getpid())
	_ = unix.Getrusage(unix.RUSAGE_SELF, &s.usage)
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	s.maxFDs = limit.Cur
	if dir, err := os.Open("/proc/self/fd"); err == nil {
		names, _ := dir.Readdirnames(-1)
		dir.Close()
		s.fds = len(names) - 1 // without dir's own
	}
	return s
}

// totals are the client's over all runs.
func (c *client) totals() past {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.past
	all.deaths = maps.Clone(c.past.deaths)
	if c.current != nil {
		all.add(c.current.theDog().Status())
	}
	return all
}

// exhibitor serves the page on the address that the configuration names, for as long as it names it.
func (d *Daemon) exhibitor(ctx context.Context) {
	for ctx.Err() == nil {
		address := d.config().Daemon.Metrics
		turn, over := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.exhibit(turn, address)
		}()
		for same := true; same; {
			select {
			case <-d.exhibits:
				same = d.config().Daemon.Metrics == address
			case <-ctx.Done():
				same = false
			}
		}
		over()
		<-done
		d.exhibited.Store(nil)
	}
}

// exhibit returns when ctx ends. A port that is taken is tried again, as whoever has it may go.
func (d *Daemon) exhibit(ctx context.Context, address string) {
	for said := ""; address != "" && ctx.Err() == nil; {
		ln, err := net.Listen("tcp4", address)
		if err == nil {
			at := ln.Addr().String()
			d.exhibited.Store(&at)
			d.log.Info("metrics served", "address", at)
			if err = d.ctl.ServeMetrics(ctx, ln); err == nil {
				return
			}
		}
		text := err.Error()
		d.exhibited.Store(&text)
		if text != said {
			said = text
			d.log.Error("metrics not served", "address", address, "err", err, "next", "tried again every "+exhibitRetry.String()+"; the control socket answers GET /metrics, too")
		}
		rest(ctx, exhibitRetry)
	}
}
