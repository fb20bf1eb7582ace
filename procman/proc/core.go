// Whether the kernel writes a core right now.

package proc

import (
	"bytes"
	"errors"
	"fmt"
)

// CoreDumping tells whether the kernel writes the core of pid at this moment: SIGKILL would cut it off. The error wraps
// errors.ErrUnsupported where the kernel does not say so (before Linux 4.15; nor of a zombie, whose core is written or never was).
func CoreDumping(pid int) (dumping bool, err error) {
	b, err := readProc(pid, "status", 64<<10)
	if err != nil {
		return false, err
	}
	return coreDumping(pid, b)
}

func coreDumping(pid int, status []byte) (bool, error) {
	_, rest, ok := bytes.Cut(status, []byte("\nCoreDumping:\t"))
	if !ok {
		return false, fmt.Errorf("process %d: state of its core: %w", pid, errors.ErrUnsupported)
	}
	return bytes.HasPrefix(rest, []byte("1")), nil
}
