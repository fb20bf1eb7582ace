package control

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file decides who may act. Its system calls are here and nowhere else in the package.

// Access says who may act, besides root.
type Access struct {
	UID int // zhxd's own
	GID int // the control group; -1: none
}

// admit names the process at the other end of c, and refuses it where it may not act. verb is for the refusal.
func (a Access) admit(c *net.UnixConn, verb string) (Caller, error) {
	var cred *unix.Ucred
	var groups []uint32
	raw, err := c.SyscallConn()
	if err == nil {
		var credErr error
		err = raw.Control(func(fd uintptr) {
			if cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); credErr == nil {
				groups = groupsOf(int(fd), cred)
			}
		})
		err = errors.Join(err, credErr)
	}
	if err != nil {
		return Caller{}, fmt.Errorf("ask the kernel who is connected: %w", err)
	}
	by := Caller{UID: int(cred.Uid), GID: int(cred.Gid), PID: int(cred.Pid), User: userName(int(cred.Uid))}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid)); err == nil {
		by.Comm = strings.Trim(strconv.QuoteToASCII(strings.TrimSuffix(string(comm), "\n")), `"`)
	}
	if by.UID == 0 || by.UID == a.UID || a.GID >= 0 && (by.GID == a.GID || slices.Contains(groups, uint32(a.GID))) {
		return by, nil
	}
	if a.GID < 0 {
		return by, Errorf(CodeForbidden, "become root or "+userName(a.UID), "%s is not for user %s: only for root and %s",
			verb, by.User, userName(a.UID))
	}
	return by, Errorf(CodeForbidden, "become root, or join group "+groupName(a.GID)+" and log in again",
		"%s is not for user %s: only for root, %s and group %s", verb, by.User, userName(a.UID), groupName(a.GID))
}

// groupsOf returns the supplementary groups that the peer had when it connected.
func groupsOf(fd int, cred *unix.Ucred) []uint32 {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4]
		case unix.ERANGE: // size is now what it takes, and never changes again
			groups = make([]uint32, size/4)
		default:
			return procGroups("/proc", cred)
		}
	}
}

// procGroups is for kernels before 4.13, which do not know SO_PEERGROUPS. A process of another user, which took the pid over in
// the meantime, does not count.
func procGroups(proc string, cred *unix.Ucred) (groups []uint32) {
	f, err := os.Open(fmt.Sprintf("%s/%d/status", proc, cred.Pid))
	if err != nil {
		return nil
	}
	defer f.Close()
	mine := false
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), ":")
		fields := strings.Fields(value)
		if key == "Uid" && len(fields) == 4 {
			mine = fields[1] == strconv.FormatUint(uint64(cred.Uid), 10)
		}
		if key != "Groups" || !mine {
			continue
		}
		for _, field := range fields {
			if gid, err := strconv.ParseUint(field, 10, 32); err == nil {
				groups = append(groups, uint32(gid))
			}
		}
	}
	return groups
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(uid)
}

func groupName(gid int) string {
	if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return "gid " + strconv.Itoa(gid)
}
