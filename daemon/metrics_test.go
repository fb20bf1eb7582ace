package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"zhx/daemon/control"
	"zhx/ipc"
)

var update = flag.Bool("update", false, "write the table of etc/doc/metrics.md anew")

// samples parses a page as strictly as Prometheus: each family has its HELP and TYPE once, and then all its samples; no series comes
// twice. The key of the answer is a series as it is written.
func samples(t *testing.T, text string) map[string]float64 {
	t.Helper()
	all, kinds, helped, name := map[string]float64{}, map[string]string{}, "", ""
	label := regexp.MustCompile(`^([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"$`)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if about, is := strings.CutPrefix(line, "# HELP "); is {
			var help string
			if helped, help, _ = strings.Cut(about, " "); help == "" {
				t.Errorf("no help: %s", line)
			}
			continue
		}
		if about, is := strings.CutPrefix(line, "# TYPE "); is {
			var kind string
			name, kind, _ = strings.Cut(about, " ")
			if name != helped || kinds[name] != "" || !slices.Contains([]string{"counter", "gauge", "histogram", "summary"}, kind) {
				t.Errorf("not the one TYPE after its HELP: %s", line)
			}
			kinds[name] = kind
			continue
		}
		cut := strings.LastIndexByte(line, ' ')
		series, labels, _ := strings.Cut(line[:cut], "{")
		base := series
		if kinds[name] == "histogram" || kinds[name] == "summary" {
			base = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(series, "_bucket"), "_sum"), "_count")
		}
		if base != name {
			t.Errorf("a sample outside its family %s: %s", name, line)
		}
		if labels != "" {
			for _, one := range strings.Split(strings.TrimSuffix(labels, "}"), ",") {
				if !label.MatchString(one) {
					t.Errorf("label %q in %s", one, line)
				}
			}
		}
		v, err := strconv.ParseFloat(line[cut+1:], 64)
		if _, again := all[line[:cut]]; err != nil || again {
			t.Errorf("not a number, or a second time: %s", line)
		}
		if (kinds[name] == "counter" || kinds[name] == "histogram") && v < 0 || (kinds[name] == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("no %s: %s", kinds[name], line)
		}
		all[line[:cut]] = v
	}
	if len(kinds) != len(families) {
		t.Errorf("%d families of %d", len(kinds), len(families))
	}
	return all
}

// get is one answer of an HTTP server, over dial.
func get(dial func(context.Context, string, string) (net.Conn, error), method, path string) (code int, body string, err error) {
	tr := &http.Transport{DialContext: dial, DisableKeepAlives: true}
	req, err := http.NewRequest(method, "http://zhx"+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

func to(network, address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

// page is what the control socket has of metrics now.
func (r *running) page() map[string]float64 {
	r.t.Helper()
	code, body, err := get(to("unix", filepath.Join(r.dir, "run", "control.sock")), "GET", "/metrics")
	if err != nil || code != http.StatusOK {
		r.t.Fatalf("GET /metrics: %d %v", code, err)
	}
	return samples(r.t, body)
}

// What happens to a client is seen in its samples; they go with it; and no peer makes a label.
func TestMetrics(t *testing.T) {
	talker := fmt.Sprintf("command = [%q, \"role-talker\"]\n", exe(t))
	z := serve(t, "[client.stays]\n"+talker+"[client.goes]\n"+talker)
	c, err := ipc.DialPackets(t.Context(), filepath.Join(z.dir, "run", "zhx.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 50 {
		if err := errors.Join(c.Register(fmt.Sprintf("evil%d", i)), c.Arm()); err != nil {
			t.Fatal(err)
		}
	}
	var page map[string]float64
	is := func(series string) float64 {
		t.Helper()
		v, there := page[series]
		if !there {
			t.Errorf("no sample %s", series)
		}
		return v
	}
	fed := func() float64 { return is(`zhx_client_feed_interval_seconds_count{client="stays"}`) }
	z.until("both have fed, and taken messages", func() bool {
		page = z.page()
		return fed() > 3 && is(`zhx_client_feed_interval_seconds_count{client="goes"}`) > 0 && is(`zhx_client_received_messages_total{client="stays"}`) > 3
	})
	for series, want := range map[string]float64{
		`zhx_client_state{client="stays",state="running"}`: 1, `zhx_client_state{client="stays",state="stopped"}`: 0,
		`zhx_client_ready{client="stays"}`: 1, `zhx_client_connected{client="stays"}`: 1, `zhx_client_watchdog_armed{client="stays"}`: 1,
		`zhx_client_watchdog_timeout_seconds{client="stays"}`: 9, `zhx_client_restarts_total{client="stays"}`: 0,
		`zhx_peers{transport="unix",protocol="1"}`: 3, `zhx_peers{transport="tcp",protocol="2"}`: 0,
		`zhx_config_state{state="ok"}`: 1, `zhx_config_state{state="invalid"}`: 0,
		`zhx_client_feed_interval_seconds_bucket{client="stays",le="+Inf"}`: fed(),
	} {
		if got := is(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	if left := is(`zhx_client_watchdog_remaining_seconds{client="stays"}`); left <= 0 || left > 9 {
		t.Errorf("%v s remain", left)
	}
	if interval := is(`zhx_client_feed_interval_seconds_sum{client="stays"}`) / fed(); interval < 0.05 || interval > 5 {
		t.Errorf("a feed every %v s, 0.1 s is right", interval)
	}
	for _, series := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds",
		"process_start_time_seconds", "go_goroutines", "go_threads", "go_memstats_heap_alloc_bytes", "zhx_uptime_seconds",
		"zhx_config_last_reload_success_timestamp_seconds", "zhx_connections_total", "zhx_received_bytes_total",
		"zhx_judge_lateness_seconds_count", `zhx_client_resident_memory_bytes{client="stays"}`, `zhx_client_uptime_seconds{client="stays"}`} {
		if is(series) <= 0 {
			t.Errorf("%s is %v", series, page[series])
		}
	}
	for series := range page {
		if strings.Contains(series, "evil") {
			t.Errorf("a label by a peer's wish: %s", series)
		}
	}

	// What was sent is counted in messages and in bytes, one after the other: that agrees when it is still.
	one := control.Which{Names: []string{"stays"}}
	if _, err := z.Stop(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	z.until("its connection is read to its end", func() bool {
		page = z.page()
		return is(`zhx_peers{transport="unix",protocol="1"}`) == 2
	})
	for _, way := range []string{"sent", "received"} {
		n, bytes := is(`zhx_client_`+way+`_messages_total{client="stays"}`), is(`zhx_client_`+way+`_bytes_total{client="stays"}`)
		if n*552 != bytes {
			t.Errorf("%v packets of 552 bytes were %s, and %v bytes", n, way, bytes)
		}
	}

	// A new run goes on counting.
	before := fed()
	if _, err := z.Start(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	page = z.page()
	if is(`zhx_client_deaths_total{client="stays",reason="stop"}`) != 1 || fed() < before {
		t.Errorf("after a restart: %v deaths, %v intervals, %v before", is(`zhx_client_deaths_total{client="stays",reason="stop"}`), fed(), before)
	}
	z.edit("[client.stays]\n" + talker)
	if _, err := z.Reload(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	z.until("nothing is told of what was removed", func() bool {
		for series := range z.page() {
			if strings.Contains(series, "goes") {
				return false
			}
		}
		return true
	})
}

// Every counter of status is in the page, and each family has the words that the daemon uses.
func TestMetricsLeaveNothingOut(t *testing.T) {
	z := serve(t, "")
	st, err := z.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := int64(1000)
	for name := range st.Daemon.Counters {
		n++
		st.Daemon.Counters[name] = n
	}
	var text []byte
	for _, f := range families {
		if strings.Contains(f.name, "zhx_") && !strings.HasPrefix(f.name, "zhx_judge") {
			p := page{family: &f}
			f.write(&p, &scrape{DaemonStatus: st.Daemon})
			text = append(text, p.text...)
		}
	}
	for name, v := range st.Daemon.Counters {
		if !strings.Contains(string(text), fmt.Sprintf(" %d\n", v)) {
			t.Errorf("status counts %s, no metric does", name)
		}
	}
	for path, words := range map[string]map[string]bool{"../procman/program.go ../procman/state.go": wordsOf(clientStates), "../procman/status.go": wordsOf(deathReasons)} {
		for _, file := range strings.Fields(path) {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^\t(?:By)?[A-Z]\w+ +(?:State|Reason) += "(\w+)"`).FindAllSubmatch(source, -1) {
				if word := string(m[1]); word != "frozen" && !words[word] {
					t.Errorf("%s: no label for %q", file, word)
				}
				delete(words, string(m[1]))
			}
		}
		if len(words) > 0 {
			t.Errorf("labels for what there is not: %v", slices.Collect(maps.Keys(words)))
		}
	}
}

func wordsOf[T ~string](list []T) map[string]bool {
	words := map[string]bool{}
	for _, word := range list {
		words[string(word)] = true
	}
	return words
}

// The address of the configuration comes and goes with it, has the page and nothing else, and a port that is taken is waited for.
func TestMetricsAddress(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	z := serve(t, "")
	says := func() string {
		st, err := z.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Daemon.Metrics == nil {
			return ""
		}
		return *st.Daemon.Metrics
	}
	if is := says(); is != "" {
		t.Errorf("metrics are at %s, nobody asked for that", is)
	}
	z.edit(fmt.Sprintf("metrics = %q\n", address))
	z.logged("error: metrics not served")
	z.until("status says so", func() bool { return strings.Contains(says(), "address already in use") })
	taken.Close()
	z.until("the port is free, and taken", func() bool { return says() == address })
	if strings.Count(z.log.String(), "metrics not served") != 1 {
		t.Error("it is said more than once that the port is taken")
	}
	for _, row := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/metrics", 200}, {"POST", "/metrics", 405}, {"GET", "/", 404}, {"GET", "/v1/status", 404}, {"GET", "/metrics/", 404},
		{"POST", "/v1/shutdown", 404}, {"GET", "/v1/logs", 404}, {"GET", "/debug/pprof/", 404},
	} {
		code, body, err := get(to("tcp", address), row.method, row.path)
		if err != nil || code != row.code {
			t.Errorf("%s %s: %d %v, want %d", row.method, row.path, code, err, row.code)
		} else if code == 200 {
			samples(t, body)
		}
	}
	besieged(z, address)
	z.edit("")
	z.until("the port is closed", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err != nil && says() == ""
	})
}

// besieged has a thousand connections come at once, each with half a request or nothing: few stay open, zhxd is as well as before,
// and answers when they go.
func besieged(z *running, address string) {
	z.t.Helper()
	before := z.page()["process_open_fds"]
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		z.t.Fatal(err)
	}
	var crowd []net.Conn
	defer func() {
		for _, c := range crowd {
			c.Close()
		}
	}()
	for i := range min(1000, int(limit.Cur/2)-100) { // of this process, which is zhxd's, too
		c, err := net.Dial("tcp", address)
		if err != nil {
			z.t.Fatal(err)
		}
		crowd = append(crowd, c)
		if i%2 == 0 {
			_, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: half") // may be closed already
		}
		if i%100 == 99 {
			if now := z.page()["process_open_fds"] - float64(len(crowd)); now > before+2*16+20 { // and those that are just being closed
				z.t.Errorf("zhxd has %v descriptors open, %v before there were %d scrapers", now, before, len(crowd))
			}
		}
	}
	for _, c := range crowd {
		c.Close()
	}
	z.until("it answers again", func() bool {
		code, _, err := get(to("tcp", address), "GET", "/metrics")
		return err == nil && code == 200
	})
}

// The document has the table of families, with what they really are.
func TestMetricsDocument(t *testing.T) {
	const path = "../etc/doc/metrics.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const first, end = "| name | type | labels | meaning |\n|---|---|---|---|\n", "\n## "
	head, rest, found := strings.Cut(string(data), first)
	table, tail, more := strings.Cut(rest, end)
	if !found || !more {
		t.Fatal("etc/doc/metrics.md has no table, or nothing after it")
	}
	var want strings.Builder
	for _, f := range families {
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s |\n", f.name, f.kind, strings.Join(f.labels, ", "), f.help)
	}
	if *update {
		if err := os.WriteFile(path, []byte(head+first+want.String()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if table != want.String() {
		t.Error("etc/doc/metrics.md has not these families: go test ./daemon -run TestMetricsDocument -update")
	}
}
