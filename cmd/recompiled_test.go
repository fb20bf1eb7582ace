package cmd

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The prototype's clients, compiled with ipc/c in place of its own sock.h, am5728.h and socket.c and otherwise as they were
// written, do what they did, and go on when zhxd is killed.
func TestRecompiledClients(t *testing.T) {
	t.Parallel()
	seed := os.Getenv("ZHX_SEED")
	if seed == "" {
		t.Skip("needs ZHX_SEED, the folder of the prototype's sources")
	}
	if _, err := exec.LookPath("stdbuf"); err != nil {
		t.Skip("needs stdbuf")
	}
	library := []string{"../ipc/c/sock.c", "../ipc/c/zhx.c", "-I../ipc/c", "-lpthread"}
	dir := t.TempDir()
	for _, name := range []string{"client1.c", "client2.c"} {
		source, err := os.ReadFile(filepath.Join(seed, name))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name) // "sock.h" in quotes is first looked for beside the file
		if err := os.WriteFile(file, source, 0o644); err != nil {
			t.Fatal(err)
		}
		compile(t, dir, file, library...)
	}
	for _, c := range []struct {
		purpose string
		lines   string // they buffer their output
		stdbuf  string
		adopted bool
	}{
		{"the next zhxd adopts them, and they send and receive by the sockets that they have", "", `"stdbuf", "-oL", `, true},
		{"their terminal dies with zhxd: they are restarted", "tty = true", "", false},
	} {
		t.Run(c.purpose, func(t *testing.T) {
			run := t.TempDir() + "/run"
			conf := fmt.Sprintf("[daemon]\nrun_dir = %q\ntcp = \"\"\nprototype_presence = false\n", run)
			conf += "[defaults]\nwatchdog_timeout = \"30s\" # they feed every 10 s\n" + c.lines + "\n"
			for _, name := range []string{"client1", "client2"} {
				conf += fmt.Sprintf("[client.%s]\ncommand = [%s%q]\n", name, c.stdbuf, filepath.Join(dir, name))
			}
			recompiled(t, startZhxd(t, "--keeper", "--config", write(t, "clients.toml", conf)), run+"/control.sock", c.adopted)
		})
	}
	t.Run("beside the prototype's own headers it does not link", func(t *testing.T) {
		args := append([]string{"-w", "-o", filepath.Join(dir, "mixed"), filepath.Join(seed, "client1.c")}, library...)
		if out, err := exec.Command("gcc", args...).CombinedOutput(); err == nil || !strings.Contains(string(out), "client_socket") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func recompiled(t *testing.T, p *program, control string, adopted bool) {
	hear := func(from int) {
		t.Helper()
		for _, names := range [][2]string{{"client1", "client2"}, {"client2", "client1"}} {
			p.await(from, 30*time.Second, fmt.Sprintf(`\[%s\] \| \[%[1]s\] thread recv:msg="this message is from %s to %[1]s"`, names[0], names[1]))
		}
	}
	armed := func(name string) bool {
		dog := client(t, control, name).Watchdog
		return dog != nil && dog.Armed
	}
	hear(0)
	until(t, "both are armed", func() bool { return armed("client1") && armed("client2") })
	before := pids(t, control)

	// They say a word every 10 s. One zhxd is killed in between, and one more as soon as it is up again.
	from := len(p.log())
	for range 2 {
		at := len(p.log())
		if err := syscall.Kill(lastPID(p), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		p.await(at, 10*time.Second, `\] zhxd begins \(`, `\] ready \(`)
	}
	hear(from)
	until(t, "both are armed again", func() bool { return armed("client1") && armed("client2") })
	if after := pids(t, control); len(after) != 2 || maps.Equal(before, after) != adopted {
		t.Errorf("the clients were %v, and are %v", before, after)
	}
}

// lastPID is the pid of the zhxd that began last.
func lastPID(p *program) int {
	last := 0
	for i, line := range p.log() {
		if strings.Contains(line, "] zhxd begins (") {
			last = i
		}
	}
	return p.pid(last)
}
