package watchdog

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The test binary is its own child: a process with a Watch, which a real SIGSTOP stops.
func TestMain(m *testing.M) {
	if os.Getenv("WATCHDOG_TEST_CHILD") != "" {
		feedFifty()
		return
	}
	os.Exit(m.Run())
}

// feedFifty has 50 dogs of 300 ms, each fed every 100 ms. It says "ready" once all were fed, and how many lapsed after
// ten more feeds each.
func feedFifty() {
	var lapses atomic.Int64
	w := New(Options{Lapsed: func(Lapse) { lapses.Add(1) }})
	go w.Run(context.Background())
	var ready, done sync.WaitGroup
	for i := range 50 {
		d := w.Dog(ID{fmt.Sprint(i), 1}, Rules{Timeout: 300 * time.Millisecond})
		d.Arm()
		ready.Add(1)
		done.Go(func() {
			feeds := time.NewTicker(100 * time.Millisecond)
			<-feeds.C
			d.Feed()
			ready.Done()
			for range 10 {
				<-feeds.C
				d.Feed()
			}
		})
	}
	ready.Wait()
	fmt.Println("ready")
	done.Wait()
	fmt.Println("lapses", lapses.Load())
}

// A process that is stopped for three timeouts finds nobody late when it goes on.
func TestStopped(t *testing.T) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "WATCHDOG_TEST_CHILD=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Process.Kill()
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		t.Fatalf("child says %q: %v", line, err)
	}
	child.Process.Signal(syscall.SIGSTOP)
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(child.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("child is not stopped: %v", err)
	}
	<-time.After(time.Second) // the stop itself: what is tested is time
	child.Process.Signal(syscall.SIGCONT)
	if line, err := lines.ReadString('\n'); line != "lapses 0\n" {
		t.Errorf("child says %q: %v", line, err)
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}
