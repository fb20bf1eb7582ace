package proc

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A child that holds its FIFO writes on when nobody reads, and nothing is lost; whether it lives shows in the FIFO.
func TestFIFO(t *testing.T) {
	k := open(t, Options{})
	path := filepath.Join(t.TempDir(), "out")
	defer unix.Umask(unix.Umask(0o777))
	read, write, err := MakeFIFO(path, os.Getuid(), os.Getgid())
	unix.Umask(0o022)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeNamedPipe|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, _, err := MakeFIFO(path, os.Getuid(), os.Getgid()); !errors.Is(err, os.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	if size, err := unix.FcntlInt(write.Fd(), unix.F_GETPIPE_SZ, 0); err != nil || size != fifoSize {
		t.Logf("buffers %d, %v", size, err) // not everywhere permitted
	}
	tree := newTree(k)
	c, err := k.Start(Command{Path: "/bin/sh", Argv: []string{"sh", "-c", "trap 'echo second; kill -STOP $$' USR1; echo first; while :; do sleep 0.01; done"},
		Env: os.Environ(), Output: write, Tree: tree})
	if err != nil {
		t.Fatal(err)
	}
	write.Close()
	p := &run{Child: c, tree: tree}
	lines := bufio.NewReader(read)
	if line, err := lines.ReadString('\n'); line != "first\n" {
		t.Fatalf("%q, %v", line, err)
	}
	read.Close() // zhxd dies
	unix.Kill(c.PID, unix.SIGUSR1)
	for frozen := range c.Frozen() { // it has written, without SIGPIPE
		if frozen {
			break
		}
	}
	if held, err := FIFOHeld(path); !held || err != nil {
		t.Errorf("held: %v, %v", held, err)
	}
	read, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // the next zhxd
	if err != nil {
		t.Fatal(err)
	}
	lines = bufio.NewReader(read)
	if line, err := lines.ReadString('\n'); line != "second\n" {
		t.Errorf("%q, %v", line, err)
	}
	p.end(t)
	if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
		t.Errorf("after its end: %q, %v", rest, err)
	}
	read.Close()
	if held, err := FIFOHeld(path); held || err != nil {
		t.Errorf("held after the end: %v, %v", held, err)
	}
	os.Remove(path)
	if held, err := FIFOHeld(path); held || err != nil {
		t.Errorf("held without a FIFO: %v, %v", held, err)
	}
	if _, _, err := MakeFIFO("/nowhere/out", 0, 0); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A child on a pseudo-terminal leads its session, has it as its terminal, and its lines arrive as written.
func TestPTY(t *testing.T) {
	eachKernel(t, func(t *testing.T, k *Kernel) {
		master, slave, err := OpenPTY()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		tree := newTree(k)
		c, err := k.Start(Command{Path: "/bin/sh", Argv: []string{"sh", "-c", "tty; echo to the terminal >/dev/tty; exec sleep 1000"}, Env: os.Environ(), TTY: slave, Tree: tree})
		if err != nil {
			t.Fatal(err)
		}
		name := slave.Name()
		slave.Close()
		if _, err := master.WriteString("no echo\n"); err != nil {
			t.Error(err)
		}
		lines := bufio.NewReader(master)
		for _, want := range []string{name + "\n", "to the terminal\n"} {
			if got, err := lines.ReadString('\n'); got != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
		s, err := ReadStat(c.PID)
		if err != nil || s.SID != c.PID || s.PGID != c.PID || s.TTY == 0 {
			t.Errorf("%+v, %v", s, err)
		}
		(&run{Child: c, tree: tree}).end(t)
		if rest, err := io.ReadAll(lines); len(strings.TrimSpace(string(rest))) > 0 || !errors.Is(err, syscall.EIO) {
			t.Errorf("after its end: %q, %v", rest, err)
		}
	})
}
