package cmd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Metrics as those read them who are to: promtool and a Prometheus of Debian's package.

// page gets /metrics over a control socket.
func page(t *testing.T, sock string) []byte {
	t.Helper()
	unix := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}
	res, err := (&http.Client{Transport: unix, Timeout: 20 * time.Second}).Get("http://zhx/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	return text
}

// With 100 clients: what a scrape costs, and promtool has nothing to say of it.
func TestPromtool(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("needs promtool")
	}
	p, sock := startBoard(t, 100)
	const scrapes = 20
	text := page(t, sock)
	pid := p.pid(0)
	began, used := time.Now(), processorTime(t, pid)
	for range scrapes {
		text = page(t, sock)
	}
	t.Logf("a scrape of 100 clients: %d bytes in %v, %v of it zhxd's processor time", len(text), time.Since(began)/scrapes, (processorTime(t, pid)-used)/scrapes)
	lint := exec.Command("promtool", "check", "metrics")
	lint.Stdin = bytes.NewReader(text)
	if out, err := lint.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}

	document, err := os.ReadFile("../etc/doc/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rules, _ := strings.Cut(string(document), "```yaml\ngroups:")
	rules, _, found := strings.Cut(rules, "```")
	out, err := exec.Command("promtool", "check", "rules", write(t, "rules.yml", "groups:"+rules)).CombinedOutput()
	if !found || err != nil || !strings.Contains(string(out), "4 rules found") {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	// What the rules ask for is there.
	for _, name := range regexp.MustCompile(`zhx_\w+`).FindAllString(rules, -1) {
		if !bytes.Contains(text, []byte("\n"+name+"{")) {
			t.Errorf("the rules ask for %s, which is not in the page", name)
		}
	}
}

// A Prometheus scrapes zhxd, finds it up, and knows how its client is.
func TestPrometheus(t *testing.T) {
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("needs prometheus")
	}
	dir := t.TempDir()
	conf := write(t, "clients.toml", fmt.Sprintf(`
[daemon]
run_dir = %q
tcp = ""
metrics = "127.0.0.1:0"
prototype_presence = false
[client.talker]
command = [%q, "talker", "talker", "100ms"]
`, dir+"/run", filepath.Join(bin, "zhx-demo")))
	p := startZhxd(t, "--config", conf)
	p.await(0, 30*time.Second, `\[zhxd\] ready \(`)
	var address string
	until(t, "metrics are served", func() bool {
		if at := status(t, dir+"/run/control.sock").Daemon.Metrics; at != nil {
			address = *at
		}
		return address != ""
	})
	scrape := write(t, "prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs: [{job_name: zhx, static_configs: [{targets: [%q]}]}]
`, address))
	prometheus := exec.Command("prometheus", "--config.file="+scrape, "--storage.tsdb.path="+dir+"/tsdb", "--web.listen-address=127.0.0.1:0")
	log, err := prometheus.StderrPipe()
	if err == nil {
		err = prometheus.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	listens := make(chan string, 1)
	read := make(chan string, 1)
	go func() {
		var text strings.Builder
		at := regexp.MustCompile(`Listening on"? address=(127\.0\.0\.1:[1-9]\d*)`)
		for s := bufio.NewScanner(log); s.Scan(); {
			fmt.Fprintln(&text, s.Text())
			if m := at.FindStringSubmatch(s.Text()); m != nil {
				select {
				case listens <- m[1]:
				default: // once is enough
				}
			}
		}
		read <- text.String()
	}()
	t.Cleanup(func() {
		prometheus.Process.Kill()
		said := <-read
		prometheus.Wait()
		if t.Failed() {
			t.Logf("prometheus:\n%s", said)
		}
	})
	var api string
	select {
	case api = <-listens:
	case <-time.After(30 * time.Second):
		t.Fatal("prometheus does not listen within 30 s")
	}
	for _, query := range []string{
		`up{job="zhx"} == 1`,
		`zhx_client_state{client="talker",state="running"} == 1`,
		`zhx_client_state{client="talker",state="stopped"} == 0`,
		`sum(zhx_client_state{client="talker"}) == 1`,
		`zhx_build_info == 1`,
		`increase(zhx_client_feed_interval_seconds_count[10s]) > 0`,
		`histogram_quantile(0.5, zhx_client_feed_interval_seconds_bucket{client="talker"}) < 2`,
	} {
		until(t, query, func() bool { return counts(api, query) })
	}
}

// counts tells whether a Prometheus has a sample for query.
func counts(api, query string) bool {
	res, err := http.Get("http://" + api + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		return false
	}
	defer res.Body.Close()
	var answer struct {
		Data struct{ Result []any }
	}
	return json.NewDecoder(res.Body).Decode(&answer) == nil && len(answer.Data.Result) > 0
}
