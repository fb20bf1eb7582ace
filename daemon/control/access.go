package control

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// This file decides who may act.

// Access says who may act, besides root.
type Access struct {
	UID int // zhxd's own
	GID int // the control group; -1: none
}

// admit names the process at the other end of c, and refuses it where it may not act. verb is for the refusal.
func (a Access) admit(c *net.UnixConn, verb string) (Caller, error) {
	var cred *unix.Ucred
	raw, err := c.SyscallConn()
	if err != nil {
		return Caller{}, fmt.Errorf("ask the kernel who is connected: %w", err)
	}
	ctlErr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if cred == nil {
		return Caller{}, fmt.Errorf("ask the kernel who is connected: %w", cmp.Or(err, ctlErr))
	}
	by := Caller{UID: int(cred.Uid), PID: int(cred.Pid), User: userName(int(cred.Uid))}
	if by.UID == 0 || by.UID == a.UID || a.GID >= 0 && (int(cred.Gid) == a.GID || slices.Contains(procGroups("/proc", cred), a.GID)) {
		return by, nil
	}
	allowed, hint := []string{"root"}, "become root (sudo zhxctl …)"
	if a.UID != 0 {
		allowed = append(allowed, "user "+userName(a.UID))
	}
	if a.GID >= 0 {
		allowed = append(allowed, "group "+groupName(a.GID))
		hint += ", or join group " + groupName(a.GID) + " and log in again"
	}
	return by, Errorf(CodeForbidden, hint, "%s is not for user %s: only for %s", verb, by.User, strings.Join(allowed, " and "))
}

// procGroups returns the supplementary groups of a peer, which no program can add to without root. A process of another user,
// which took the pid over in the meantime, does not count. (SO_PEERGROUPS would say it too, but not before Linux 4.13.)
func procGroups(proc string, cred *unix.Ucred) (groups []int) {
	status, _ := os.ReadFile(fmt.Sprintf("%s/%d/status", proc, cred.Pid)) // it is gone: no groups
	sameUser := false
	for line := range strings.Lines(string(status)) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "Uid":
			ids := strings.Fields(value) // real, effective, saved, of files
			sameUser = len(ids) == 4 && ids[1] == strconv.FormatUint(uint64(cred.Uid), 10)
		case "Groups":
			for _, field := range strings.Fields(value) {
				if gid, err := strconv.Atoi(field); err == nil && sameUser {
					groups = append(groups, gid)
				}
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
