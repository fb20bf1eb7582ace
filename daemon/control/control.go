// Package control is how people and programs ask zhxd: HTTP and JSON on a Unix socket of its own.
//
//	zhxctl, curl ─> socket ─> Server ─ who is it? (SO_PEERCRED, groups) ─> Backend, which is the daemon
//	                             └─ reading: whoever may connect · acting, and the tap: root, zhxd's own uid, the control group
//
//	GET  /v1/status  /v1/why?name=NAME  /v1/show?name=NAME  /v1/explain?from=NAME&to=NAME   (or to=topic:TOPIC)
//	GET  /v1/events?name=NAME&n=N&follow=1   (a line of JSON an event; name may be repeated or left out)
//	GET  /v1/logs?name=NAME&n=N&follow=1&since=10m&previous=1   (a line of JSON a line; name may be repeated or left out)
//	GET  /v1/wait?name=NAME&for=ready|running|stopped   (answered when it is so, or cannot be; name may be repeated)
//	GET  /metrics   (for Prometheus; also on the address of [daemon] metrics, for whoever can connect)
//	GET  /v1/tap?pattern=P&count=N         (the same; N = 0: until the reader goes; who may act only)
//	POST /v1/start  /v1/stop  /v1/restart  /v1/reset  /v1/kill   {"names":["NAME","@GROUP"],"all":false}; kill: and "signal":"HUP"
//	POST /v1/watchdog/pause {"names":["NAME"],"for_s":600,"reason":""}  /v1/watchdog/resume {"names":["NAME"],"all":false}
//	POST /v1/reload {"dry_run":false}  /v1/send {"target":"","source":"","text":""}  /v1/shutdown {"keep":false}
//
// The Server owns its connections and nothing else; all state is the Backend's. A client that does not read holds up its own
// connection, until the write limit, and nothing else. The answer to shutdown ends together with the process: whoever reads to
// its end knows that zhxd is gone, without asking again and again. What would end the asker itself, since a client of zhx runs it,
// begins when the answer has been sent.
package control

import (
	_ "embed"
	"time"
)

// Schema is a JSON Schema (2020-12) of what zhxctl --json prints: in $defs by verb. A test holds it to the types of this package.
//
//go:embed schema.json
var Schema []byte

// Limits, and what happens at each.
const (
	connLimit    = 64                     // open connections; on more, requests are refused; on twice as many, they are closed unheard
	metricsRest  = 250 * time.Millisecond // how long a page of metrics is good for those who ask over TCP
	metricsConns = 16                     // connLimit, of those
	headerLimit  = 16 << 10               // bytes of a request's header; more: 431 by net/http
	bodyLimit    = 7 * SendMax            // bytes of a request's body, in which JSON may write each of a text as six; more: an error
	readLimit    = 5 * time.Second        // for the header of a request to arrive, and again for its body; then it is an error
	hearLimit    = 500 * time.Millisecond // for an asker that is stopped by what it asked for to read the answer; then it begins
	idleLimit    = 30 * time.Second       // between two requests on a connection; then it is closed
	writeLimit   = 10 * time.Second       // for a reader to take what was written; then the connection is closed
	endLimit     = time.Second            // for answers under way when the server ends; then they are cut off

	// SendMax are the bytes of a message that zhxd sends itself: as many as any client's may have by default.
	SendMax = 256 << 10

	// PauseMax is the longest pause of a watchdog; more is an error.
	PauseMax = 24 * time.Hour
)
