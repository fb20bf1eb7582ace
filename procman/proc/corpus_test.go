package proc

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// corpus: every shape that a tree takes, and a bomb that is met while it still goes off.
var corpus = append(slices.Clone(shapes), struct {
	name  string
	words []string
	says  int
	ends  bool
}{"bomb, on its way to 200 forks", []string{"sh", "trap '' TERM; i=0; while [ $i -lt 200 ]; do (while :; do sleep 0.3; done) & i=$((i+1)); echo $!; done; wait"}, 20, false})

// Whatever a client has become: after SIGTERM, Kill and WaitEmpty nothing of it lives. Judged without the package's own
// means: by the pids that the processes have said themselves, and by looking for the mark in all of /proc.
func TestCorpus(t *testing.T) {
	n := rounds(t, 3)
	modes := append(slices.Clone(kernels), struct {
		name string
		Options
	}{"no pidfd, no cgroup", Options{NoPidfd: true, NoCgroup: true}})
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			k := open(t, mode.Options)
			for _, shape := range corpus {
				t.Run(shape.name, func(t *testing.T) {
					from := time.Now()
					for range n {
						corpse(t, k, shape.words, shape.says)
					}
					t.Logf("%d rounds, %v each", n, (time.Since(from) / time.Duration(n)).Round(10*time.Microsecond))
				})
			}
			if n := k.Unplaced(); n != 0 {
				t.Errorf("%d orphans were nobody's", n)
			}
		})
	}
}

func corpse(t *testing.T, k *Kernel, words []string, says int) {
	p := start(t, k, words...)
	pids := p.said(t, says)
	var ids []ID
	for _, pid := range pids {
		if s, err := ReadStat(pid); err == nil {
			ids = append(ids, s.ID)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := errors.Join(p.tree.Signal(unix.SIGTERM), p.tree.Kill(), p.tree.WaitEmpty(ctx)); err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		if s, err := ReadStat(id.PID); err == nil && s.ID == id && s.Living() {
			t.Errorf("process %d lives", id.PID)
		}
	}
	all, err := allPids()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		b, _ := readProc(pid, "environ", maxEnviron) // a zombie has none
		if bytes.Contains(b, []byte("\x00"+markVariable+"="+p.tree.Mark+"\x00")) || bytes.HasPrefix(b, []byte(markVariable+"="+p.tree.Mark+"\x00")) {
			t.Error("process " + strconv.Itoa(pid) + " lives, and carries the mark")
		}
	}
	if err := p.Reap(); err != nil { // it has ended: the tree is empty
		t.Error(err)
	}
	p.tree.Close()
}
