package control

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/http"
	"time"
)

// This file is what the two ends have in common, and what scripts read: fields and words are only ever added. Absent is null, so
// whatever can be absent is a pointer. Durations are seconds on the monotonic clock.

// The exit codes of zhxctl, which every Error carries.
const (
	CodeFailed    = 1 // it was tried and did not work
	CodeUsage     = 2 // bad request, or invalid configuration
	CodeStopped   = 3 // what was asked after does not run
	CodeUnknown   = 4 // no such client
	CodeTimeout   = 5 // no end within the time given; what was begun goes on
	CodeForbidden = 6 // not permitted
	CodeDown      = 7 // no daemon answers
)

// Status is the answer to GET /v1/status, and what `zhxctl status --json` prints. Daemon is nil only where none runs. The server
// fills in V, and makes an empty list of one that is nil.
type Status struct {
	V       int            `json:"v"`
	Daemon  *DaemonStatus  `json:"daemon"`
	Clients []ClientStatus `json:"clients"` // in the order of the configuration
	Groups  []GroupStatus  `json:"groups"`
	Peers   []PeerStatus   `json:"peers"`
}

// GroupStatus is a name that stands for several clients wherever names of clients are given: "@NAME" for [group.NAME], "NAME" for
// a [client.NAME] with instances.
type GroupStatus struct {
	Name    string   `json:"name"`    // as it is typed
	Clients []string `json:"clients"` // in the order of the configuration
}

// DaemonStatus is zhxd itself.
type DaemonStatus struct {
	Version     string       `json:"version"`
	PID         int          `json:"pid"`
	Uptime      float64      `json:"uptime_s"`
	Config      string       `json:"config"`
	ConfigState string       `json:"config_state"` // ok | changed | invalid: the file on disk against what is loaded
	ConfigError *string      `json:"config_error"`
	Watchdog    *BoardStatus `json:"watchdog"`
	Metrics     *string      `json:"metrics"` // for people: the address of [daemon] metrics, or why nothing is served there; nil: none is configured
	// Counters is all that was lost or refused, by what it was, so that nothing is lost in silence.
	Counters map[string]int64 `json:"counters"`
}

// BoardStatus is the watchdog of the board, which watches zhxd and the critical clients.
type BoardStatus struct {
	Mode      string       `json:"mode"`       // enforce | observe
	Device    *string      `json:"device"`     // for people: which hardware watchdog, and whether it is fed; nil: none is configured
	SafeMode  bool         `json:"safe_mode"`  // reboot_limit was reached: clients are started by hand only
	LastReset *ResetStatus `json:"last_reset"` // nil: none is known of
}

// ResetStatus is a reboot by zhxd, or by the hardware watchdog.
type ResetStatus struct {
	Reason string  `json:"reason"` // for people
	Client *string `json:"client"` // nil: for nobody's sake
	Boot   string  `json:"boot"`   // boot id of the boot that it ended
	Uptime float64 `json:"uptime_s"`
	At     Stamp   `json:"at"`
	Synced bool    `json:"clock_synced"` // else At may mean nothing
	Count  int     `json:"count"`        // resets so far
}

// ClientStatus is one [client.NAME].
type ClientStatus struct {
	Name      string          `json:"name"`
	State     string          `json:"state"` // stopped | waiting | starting | running | stopping | backoff | failed | exited | unkillable
	Ready     bool            `json:"ready"`
	Phase     *string         `json:"phase"`     // reloading | stopping: what a run says of itself by sd_notify(3); nil: neither
	Notice    *string         `json:"notice"`    // its STATUS= by sd_notify(3), as the child wrote it
	WaitsFor  []string        `json:"waits_for"` // clients that it depends on and that are not ready
	Adopted   bool            `json:"adopted"`   // its process was started by an earlier zhxd
	PID       *int            `json:"pid"`       // nil: no process
	Run       *uint64         `json:"run"`       // nil: never started
	Restarts  int64           `json:"restarts"`  // since zhxd started, not counting those given by hand
	Uptime    *float64        `json:"uptime_s"`  // nil: no process
	Next      *float64        `json:"next_s"`    // time until the next start; nil: none is planned
	Why       *string         `json:"why"`       // failed, unkillable: what stands in the way
	Connected bool            `json:"connected"`
	Watchdog  *WatchdogStatus `json:"watchdog"` // nil: off
	LastExit  *ExitStatus     `json:"last_exit"`
	Messages  Messages        `json:"messages"`
	Log       *LogStatus      `json:"log"` // nil: nothing of it is kept

	// Of the first process, without what it has started; nil: there is none. CPU is 100 for a whole processor, over the time since
	// the last status that is at least a second ago; the first one says it over the life of the process.
	CPU       *float64 `json:"cpu_percent"`
	Memory    *int64   `json:"memory_bytes"` // resident
	DependsOn []string `json:"depends_on"`
	TalksTo   []string `json:"talks_to"` // names that its present run has sent something to, the first 256
}

// LogStatus counts lines, over all runs of a client in this zhxd.
type LogStatus struct {
	Lines       int64 `json:"lines"`        // that it printed
	Evicted     int64 `json:"evicted"`      // that are no longer kept in memory, and gave way to newer ones
	Cut         int64 `json:"cut"`          // that were longer than zhxd keeps in one, and became several
	FileDropped int64 `json:"file_dropped"` // that its log file did not get
}

// WatchdogStatus is the dog of the present run.
type WatchdogStatus struct {
	Armed     bool     `json:"armed"`
	Paused    bool     `json:"paused"`
	Timeout   float64  `json:"timeout_s"`
	Remaining *float64 `json:"remaining_s"` // nil: not armed
	Lapses    int64    `json:"lapses"`      // of all runs

	Traced    bool            `json:"traced"`       // a debugger is attached: the clock stands
	PausedFor *float64        `json:"paused_for_s"` // nil: not paused by hand
	Pause     *string         `json:"pause"`        // who paused it, and why
	Misses    int64           `json:"misses"`       // feeds of this run that came after warn_after
	Credited  float64         `json:"credited_s"`   // time that this run was given since the processors were busy
	Interval  *IntervalStatus `json:"interval"`     // between the feeds of this run; nil: there was none
	Margin    *float64        `json:"margin_s"`     // timeout_s less the longest of them
	Hint      *string         `json:"hint"`         // for people: timeout_s is too tight, or too loose
}

// IntervalStatus is the distribution of the times between feeds, without those in which zhxd did not listen.
type IntervalStatus struct {
	Count int64   `json:"count"`
	Min   float64 `json:"min_s"`
	Mean  float64 `json:"mean_s"`
	P99   float64 `json:"p99_s"` // at most an eighth too long
	Max   float64 `json:"max_s"`
}

// Evidence is what a client was seen doing when it was about to be late.
type Evidence struct {
	Run     uint64   `json:"run"`
	At      Stamp    `json:"at"`
	Ago     float64  `json:"ago_s"`
	By      string   `json:"by"`        // alive | startup | "FROM to TO": what it was late for
	Silence float64  `json:"silence_s"` // by then
	Lines   []string `json:"lines"`     // for people: processes, their threads, states, wait channels, system calls, stacks
}

// PauseRequest stops the watchdog's clock for clients, for a time. Seconds is > 0, at most 86400.
type PauseRequest struct {
	Names   []string `json:"names"`
	Seconds float64  `json:"for_s"`
	Reason  string   `json:"reason"`
}

// ExitStatus is how the last run ended.
type ExitStatus struct {
	// Reason: exit | signal | watchdog | stop | spawn | timeout (not ready within start_timeout) | dependency (for another client's
	// sake) | unknown (the kernel did not tell).
	Reason  string  `json:"reason"`
	Code    *int    `json:"code"`    // nil: it did not exit by itself
	Success bool    `json:"success"` // Code is one of success_exit_codes
	Signal  *string `json:"signal"`  // "SIGKILL"; nil: none
	Detail  *string `json:"detail"`  // for people: why a spawn failed, who stopped it
	At      Stamp   `json:"at"`
	Ago     float64 `json:"ago_s"`
	Said    *string `json:"said"` // the last line that it printed; what is not UTF-8 is U+FFFD
}

// Why is the answer to GET /v1/why: what one client is doing, and how its last runs ended.
type Why struct {
	V        int      `json:"v"`
	Name     string   `json:"name"`
	State    string   `json:"state"`
	Ready    bool     `json:"ready"`
	Now      string   `json:"now"`       // one sentence: what it is doing and what happens next
	Next     *float64 `json:"next_s"`    // time until the next start; nil: none is planned
	WaitsFor []string `json:"waits_for"` // as in ClientStatus
	Deaths   []Death  `json:"deaths"`    // the newest first, at most 16
	// Evidence is the last, of the run that lives or of one of Deaths; nil: none was late.
	Evidence *Evidence `json:"evidence"`
}

// Death is the end of one run, or of the attempt at one.
type Death struct {
	Run    uint64   `json:"run"`
	PID    *int     `json:"pid"`    // nil: it was never spawned
	Reason string   `json:"reason"` // the words of ExitStatus
	Code   *int     `json:"code"`   // nil: it did not exit by itself
	Signal *string  `json:"signal"` // nil: none
	Core   bool     `json:"core"`   // the kernel wrote a core file
	Detail *string  `json:"detail"` // for people: who stopped it, why a spawn failed, what the watchdog says, which dependency
	Errno  *string  `json:"errno"`  // "ENOENT": of a spawn; nil: none
	At     Stamp    `json:"at"`
	Ago    float64  `json:"ago_s"`
	Uptime float64  `json:"uptime_s"`
	Ready  bool     `json:"ready"` // it had become ready
	Next   string   `json:"next"`  // for people: what followed, "restarts in 200ms"
	Lines  []string `json:"lines"` // the last that it printed; what is not UTF-8 is U+FFFD, unlike in logs
}

// Messages counts what passed the broker for one client.
type Messages struct {
	Received      int64 `json:"received"`
	Sent          int64 `json:"sent"`
	Undeliverable int64 `json:"undeliverable"`
	Dropped       int64 `json:"dropped"`
	Held          int64 `json:"held"`     // that waited for a run of it, in all: released, expired and those that wait now
	Released      int64 `json:"released"` // and were delivered
	Expired       int64 `json:"expired"`  // and were refused then
}

// Explanation is the answer to GET /v1/explain: who may send to whom, or publish and subscribe to a topic, and by which rule.
type Explanation struct {
	V       int      `json:"v"`
	From    string   `json:"from"`
	To      string   `json:"to"`      // a name, or topic:NAME, which may be a pattern
	Allowed bool     `json:"allowed"` // by all Rules; without any, everything is
	Why     []string `json:"why"`     // a line for each rule that says no
	Rules   []Rule   `json:"rules"`   // that are asked, of both sides

	Identity string      `json:"identity"` // for people: who can speak as From now
	State    string      `json:"state"`    // of the name To: absent | running | ready | late | restarting | failed | stopped; "" of a topic
	Receives bool        `json:"receives"` // a connection has registered To
	Hold     *HoldStatus `json:"hold"`     // what may wait for To while it restarts; nil: nothing
}

// Rule is one list of patterns of a client.
type Rule struct {
	Client   string   `json:"client"`
	Key      string   `json:"key"` // may_send_to | may_receive_from | may_publish | may_subscribe
	Patterns []string `json:"patterns"`
	For      string   `json:"for"` // what it is asked for
	Allowed  bool     `json:"allowed"`
	Pattern  string   `json:"pattern"` // the one that allows it; "": none does
}

// HoldStatus is the key hold of a client.
type HoldStatus struct {
	Messages int     `json:"messages"`
	Bytes    int     `json:"bytes"`
	For      float64 `json:"for_s"`
	Now      bool    `json:"now"` // a message that is sent now waits
}

// TapEvent is one message that passed the broker, or was refused: one line of JSON in the answer to GET /v1/tap.
type TapEvent struct {
	At      Stamp  `json:"at"`
	Kind    string `json:"kind"` // message | request | reply | publication
	From    string `json:"from"`
	To      string `json:"to"`              // a name, or a topic
	Size    int    `json:"size"`            // bytes of the body
	Text    string `json:"text"`            // the body's first 512 bytes, those that are not UTF-8 included
	Outcome string `json:"outcome"`         // written | held | published, or why not
	Lost    int64  `json:"lost,omitempty"`  // events before this one, the reader being too slow
	Bytes   []byte `json:"bytes,omitempty"` // as in LogLine
}

// PeerStatus is one open connection to the broker.
type PeerStatus struct {
	Names     []string `json:"names"`
	PID       *int     `json:"pid"` // nil: unknown
	UID       *int     `json:"uid"` // nil: unknown
	Transport string   `json:"transport"`
	Protocol  int      `json:"protocol"`
	Managed   bool     `json:"managed"`
	Proof     string   `json:"proof"`
	Stuck     bool     `json:"stuck"`
	Sent      Traffic  `json:"sent"`          // by it
	Written   Traffic  `json:"written"`       // to it
	Waiting   int      `json:"waiting_bytes"` // for it, since it takes no more
}

// Traffic is what has gone one way over a connection.
type Traffic struct {
	Bytes    int64 `json:"bytes"`
	Messages int64 `json:"messages"` // requests, replies and publications are some
	FDs      int64 `json:"descriptors"`
}

// LogLine is one line that a client printed: one line of JSON in the answer to GET /v1/logs.
type LogLine struct {
	Client  string  `json:"client"`
	Run     uint64  `json:"run"` // that had begun last
	At      Stamp   `json:"at"`
	Mono    float64 `json:"mono_s"`            // seconds, monotonic, from a start that is the same for all lines of one zhxd
	Text    string  `json:"text"`              // without the line's end; as the child wrote it, bytes that are not UTF-8 included
	Dropped int64   `json:"dropped,omitempty"` // lines of this client lost before this one, the reader being too slow
	Cut     bool    `json:"cut,omitempty"`     // a line longer than zhxd keeps in one: it goes on in the next line of this client
	Bytes   []byte  `json:"bytes,omitempty"`   // Text again where JSON cannot carry it: server and client fill it in and take it out
}

// LogQuery says which lines are wanted.
type LogQuery struct {
	Names  []string // none: of all clients
	N      int      // the last N lines of each client; 0: none; -1: all that are kept
	Follow bool     // and what comes, until the reader goes

	Since    string // a duration, "10m", or a time by RFC 3339: none that are older; "": all
	Previous bool   // those of the last run that has ended, and no others
}

// Which names the clients that a verb acts on: either Names or All. Names may hold those of groups, as they are typed.
type Which struct {
	Names []string `json:"names"`
	All   bool     `json:"all"`
}

// Outcome is what became of one client of a Which. Text is for people: "started", "was stopped already".
type Outcome struct {
	Name  string `json:"name"`
	PID   *int   `json:"pid"`
	Text  string `json:"text"`
	Error *Error `json:"error"`
	// Accepted: whoever asked belongs to this client's own process tree and would not live to hear the end, so that it is answered
	// before the first signal. Begin starts what was accepted: the server calls it once, when the answer is on its way, also to an
	// asker that is gone. It must return at once.
	Accepted bool   `json:"accepted,omitempty"`
	Begin    func() `json:"-"`
}

// Outcomes is the answer to start, stop and restart.
type Outcomes struct {
	V       int       `json:"v"`
	Clients []Outcome `json:"clients"`
}

// ReloadRequest has the configuration read again. DryRun changes nothing.
type ReloadRequest struct {
	DryRun bool `json:"dry_run,omitempty"` // left out where it is false: a zhxd that does not know it still reloads
}

// ReloadResult is what a re-reading of the configuration did, or would do. Problems holds warnings only: errors come as an Error.
// The server fills in DryRun.
type ReloadResult struct {
	V        int       `json:"v"`
	DryRun   bool      `json:"dry_run"`
	Plan     []PlanRow `json:"plan"`
	Problems []Problem `json:"problems"`
	// Accepted and Begin are as with Outcome: the plan ends the tree that whoever asked belongs to.
	Accepted bool   `json:"accepted,omitempty"`
	Begin    func() `json:"-"`
}

// PlanRow is what a new configuration means for one client. Action is keep, live, restart, start or stop; Why has the keys that
// changed.
type PlanRow struct {
	Name    string   `json:"name"`
	Action  string   `json:"action"`
	Why     string   `json:"why"`
	Changes []Change `json:"changes"` // of those keys
}

// Change is what becomes of a key, both as TOML; "": it is not set, and has no default.
type Change struct {
	Key string `json:"key"`
	Old string `json:"old"`
	New string `json:"new"`
}

// Problem is one finding in a configuration file. It converts to and from the problem of package config.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // 0: of the file as a whole
	Section string `json:"section"`
	Text    string `json:"text"`
	Warning bool   `json:"warning"`
	Column  int    `json:"column"` // in characters from 1; 0: none
	Width   int    `json:"width"`  // how many characters are meant; 0 without Column
}

// SendRequest is one message to a client.
type SendRequest struct {
	Target string `json:"target"`
	Source string `json:"source"`
	Text   string `json:"text"`
}

// ShutdownRequest ends zhxd. Keep leaves the clients running for the next zhxd.
type ShutdownRequest struct {
	Keep bool `json:"keep"`
}

// ShutdownReply is the beginning of the answer to it; its end comes with the end of the process, except where the request was
// Accepted: then whoever asked belongs to a client that is stopped, and is not kept waiting. The server fills in V and PID.
type ShutdownReply struct {
	V        int  `json:"v"`
	PID      int  `json:"pid"`
	Kept     int  `json:"kept"` // clients that go on
	Accepted bool `json:"accepted,omitempty"`
}

// Caller is the process that asks for something, as the kernel named it when it connected.
type Caller struct {
	UID, PID int
	User     string // for people
}

// String is what a log line says of the caller: "root (pid 412)".
func (c Caller) String() string { return fmt.Sprintf("%s (pid %d)", c.User, c.PID) }

// Backend is zhxd as the control server sees it: one method a verb, called by several goroutines at once. ctx ends when the asker
// goes away or the server ends; what was begun then goes on without an answer. An error that is or wraps an *Error is passed on as
// it is, any other one as a failure.
type Backend interface {
	// Status never waits for anything that a client can hold up.
	Status(ctx context.Context) Status
	// Why, like Status, waits for nothing. It knows clients only, no groups.
	Why(ctx context.Context, name string) (Why, error)
	// Explain refuses what are no names. Like Status, it waits for nothing.
	Explain(ctx context.Context, from, to string) (Explanation, error)
	// Show, like Why, knows clients only.
	Show(ctx context.Context, name string) (Shown, error)
	// Events is as Logs.
	Events(ctx context.Context, q EventQuery) (iter.Seq[Event], error)
	// Tap gives the messages that pattern means ("": all), from now on, until ctx ends.
	Tap(ctx context.Context, by Caller, pattern string) (iter.Seq[TapEvent], error)
	// Logs refuses unknown names before it returns. The lines end after the last one, or when ctx does. They are asked for once.
	Logs(ctx context.Context, q LogQuery) (iter.Seq[LogLine], error)
	// Wait returns when all of names are as aim (AimReady…) has it, with CodeStopped when nothing that zhxd will do by itself
	// can bring that about.
	Wait(ctx context.Context, names []string, aim string) ([]Outcome, error)
	// Start, Stop and Restart return when that is done, or accepted. An error means that nothing was begun.
	Start(ctx context.Context, by Caller, w Which) ([]Outcome, error)
	Stop(ctx context.Context, by Caller, w Which) ([]Outcome, error)
	Restart(ctx context.Context, by Caller, w Which) ([]Outcome, error)
	// Kill signals and does not wait for what comes of it. Reset forgets failures.
	Kill(ctx context.Context, by Caller, m KillRequest) ([]Outcome, error)
	Reset(ctx context.Context, by Caller, w Which) ([]Outcome, error)
	// Reload answers an invalid file with an *Error of CodeUsage that holds all problems. dry says what it would do, and does not.
	Reload(ctx context.Context, by Caller, dry bool) (ReloadResult, error)
	Send(ctx context.Context, by Caller, m SendRequest) error
	// Pause replaces a pause that there is. It holds over restarts of the client, not of zhxd. Resume ends it.
	Pause(ctx context.Context, by Caller, m PauseRequest) ([]Outcome, error)
	Resume(ctx context.Context, by Caller, w Which) ([]Outcome, error)
	// Shutdown decides, and changes nothing yet. begin sets the end going, without waiting for it: the server calls it once, when
	// the answer is on its way, also to an asker that is gone.
	Shutdown(by Caller, keep bool) (answer ShutdownReply, begin func(), err error)
}

// Error is a refusal or a failure on its way to a person and a script. It is also the body of every answer that is not a success.
type Error struct {
	Text     string    `json:"error"`          // one line
	Code     int       `json:"code"`           // zhxctl's exit code
	Hint     string    `json:"hint,omitempty"` // the next thing to type
	Problems []Problem `json:"problems,omitempty"`

	cause error
}

// Errorf makes an Error. A %w among the arguments stays visible to errors.Is.
func Errorf(code int, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Text: err.Error(), Code: code, Hint: hint, cause: errors.Unwrap(err)}
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error { return e.cause }

// httpStatus is for those who read HTTP only; Code says it more finely.
var httpStatus = map[int]int{
	CodeFailed:    http.StatusInternalServerError,
	CodeUsage:     http.StatusBadRequest,
	CodeStopped:   http.StatusConflict,
	CodeUnknown:   http.StatusNotFound,
	CodeTimeout:   http.StatusGatewayTimeout,
	CodeForbidden: http.StatusForbidden,
	CodeDown:      http.StatusServiceUnavailable,
}

// Stamp is a wall-clock time in UTC with milliseconds. For people and for correlating, never for arithmetic.
type Stamp struct{ time.Time }

func (s Stamp) MarshalJSON() ([]byte, error) {
	return s.UTC().AppendFormat(nil, `"2006-01-02T15:04:05.000Z07:00"`), nil
}

// Seconds is d in seconds, whole milliseconds.
func Seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// What is seen beside the status.

// Event is something that happened to a client: one line of JSON in the answer to GET /v1/events.
type Event struct {
	Seq    uint64 `json:"seq"` // one more than that of the event before, of this zhxd
	At     Stamp  `json:"at"`
	Client string `json:"client"` // "": zhxd itself
	// Kind is a state of ClientStatus, with the words ready and removed besides; or what is done to it: late | lapse | asked | reload.
	Kind string  `json:"kind"`
	Run  *uint64 `json:"run"`            // nil: of none
	Text string  `json:"text"`           // for people: the cause, and what happens next
	Lost uint64  `json:"lost,omitempty"` // events before this one, the reader being too slow
}

// EventQuery says which events are wanted.
type EventQuery struct {
	Names  []string // none: of all clients, and of zhxd
	N      int      // the last N, of the 256 that are kept; -1: all of them
	Follow bool     // and what comes, until the reader goes
}

// Shown is the answer to GET /v1/show: the configuration of a client as it is in force.
type Shown struct {
	V    int      `json:"v"`
	Name string   `json:"name"`
	File string   `json:"file"`
	Keys []KeySet `json:"keys"`
}

// KeySet is a key of clients.toml and where its value comes from.
type KeySet struct {
	Key   string `json:"key"`
	Value string `json:"value"` // as TOML
	From  string `json:"from"`  // the section: "client.gps" | "defaults" | "watchdog"; "": it is the default
	Line  int    `json:"line"`  // of the file when it was loaded; 0: it stands there not
}

// What is done to clients, and waited for.

// KillRequest sends Signal ("HUP", "SIGHUP" or "1") to the leaders of clients; "" or SIGKILL to their whole trees.
type KillRequest struct {
	Which
	Signal string `json:"signal,omitempty"`
}

// What one can wait for. A client that has come to its end, given up or was stopped rests: it is AimStopped.
const (
	AimReady   = "ready"
	AimRunning = "running"
	AimStopped = "stopped"
)

// From is the time that Since means. A duration goes by the monotonic clock: it holds where the clock was set meanwhile.
func (q LogQuery) From() (from time.Time, err error) {
	if d, no := time.ParseDuration(q.Since); no == nil {
		return time.Now().Add(-d), nil
	} else if q.Since != "" {
		if from, err = time.Parse(time.RFC3339, q.Since); err != nil {
			err = Errorf(CodeUsage, "zhxctl logs --since 10m", "logs: since=%q is no duration, as 10m, and no time, as 2026-01-31T12:00:00Z", q.Since)
		}
	}
	return from, err
}
