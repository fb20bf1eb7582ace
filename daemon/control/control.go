// Package control is how people and programs ask zhxd: HTTP and JSON on a Unix socket of its own.
//
//	zhxctl, curl ─> socket ─> Server ─ who is it? (SO_PEERCRED, groups) ─> Backend, which is the daemon
//	                             └─ reading: whoever may connect · acting: root, zhxd's own uid, the control group
//
//	GET  /v1/status  /v1/version  /v1/logs?name=NAME&n=N&follow=1   (a line of JSON a line; name may be repeated or left out)
//	POST /v1/start  /v1/stop  /v1/restart   {"names":["NAME"],"all":false}
//	POST /v1/reload  /v1/send {"target":"","source":"","text":""}  /v1/shutdown {"keep":false}
//
// The Server owns its connections and nothing else; all state is the Backend's. Nothing waits for a client that does not read:
// it holds its own connection until the write limit, no more. The answer to shutdown has no end of its own: the kernel ends it
// together with the process, so whoever reads to its end knows that zhxd is gone, without asking again and again.
//
// The package knows neither processes nor the broker: its types are plain, and they are the contract with scripts.
package control

import "time"

// Limits, and what happens at each.
const (
	connLimit   = 64               // open connections; the next one is told so and closed
	headerLimit = 16 << 10         // bytes of a request's header; more: 431 by net/http
	bodyLimit   = 64 << 10         // bytes of a request's body; more: an error
	readLimit   = 5 * time.Second  // for a request to arrive whole; then the connection is closed
	idleLimit   = 30 * time.Second // between two requests on a connection; then it is closed
	writeLimit  = 10 * time.Second // for a reader to take what was written; then the connection is closed
	endLimit    = time.Second      // for answers under way when the server ends; then they are cut off
	pathLimit   = 107              // bytes of a socket's path, by the kernel
)
