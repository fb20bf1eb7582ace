// Whether the kernel writes a core right now.

package proc

import "bytes"

const dumpCore = 0x200 // PF_DUMPCORE of linux/sched.h

// CoreDumping tells whether the kernel writes the core of pid at this moment: SIGKILL would cut it off. Linux says so since 4.15.
// Before, it marks the thread that writes, and the mark stays: then a core counts as written when the process has no memory any
// more, which follows.
func CoreDumping(pid int) (bool, error) {
	b, err := readProc(pid, "status", 64<<10)
	if err != nil {
		return false, err
	}
	return coreDumping(pid, b), nil
}

func coreDumping(pid int, status []byte) bool {
	if _, rest, told := bytes.Cut(status, []byte("\nCoreDumping:\t")); told {
		return bytes.HasPrefix(rest, []byte("1"))
	}
	if !bytes.Contains(status, []byte("\nVmSize:")) {
		return false
	}
	tids, _ := numbers(pid, "task", threadsMet)
	for _, tid := range tids {
		if r, err := readThread(pid, tid); err == nil && r.dumps {
			return true
		}
	}
	return false
}
