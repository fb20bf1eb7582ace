package broker

// This file asks the kernel about the other end of a connection: who holds a TCP client's socket, and how much a receiver
// has left unread. sock_diag(7) answers for one socket at a time, of this network namespace; where the kernel has no such
// module, /proc/net/tcp does for TCP, and nothing for Unix sockets.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// socket is what the kernel tells of one.
type socket struct {
	addr   netip.AddrPort
	inode  uint64 // 0: no process holds it any more
	uid    int    // has no meaning if inode is 0
	unread int64  // bytes
}

// clientOf describes the other end of the accepted TCP connection fd; without ok, only its address.
func (b *Broker) clientOf(fd int) (client socket, ok bool) {
	ours, err := unix.Getsockname(fd)
	theirs, err2 := unix.Getpeername(fd)
	if err != nil || err2 != nil {
		return socket{}, false
	}
	client.addr = addrPort(theirs)
	if !b.noDiag {
		if err := client.diagTCP(addrPort(ours)); err == nil {
			return client, true
		}
	}
	return client, client.procTCP(addrPort(ours)) == nil
}

// unread tells how many bytes that were written to fd its other end has not read, at most and at least, and false if the
// kernel does not say. Over TCP the client's window may not let all through yet. A byte on its way is counted twice until
// it is acknowledged if what is unacknowledged is asked for first, and not at all until it arrives if what is unsent is
// asked for last.
func (b *Broker) unread(fd int, t Transport) (most, least int64, ok bool) {
	if t == TCP {
		unacknowledged, err1 := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
		client, ok := b.clientOf(fd)
		unsent, err2 := unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
		return client.unread + int64(unacknowledged), client.unread + int64(unsent), ok && err1 == nil && err2 == nil
	}
	if b.noDiag {
		return 0, 0, false
	}
	n, err := diagUnix(fd)
	return n, n, err == nil
}

// What x/sys/unix does not name: linux/inet_diag.h and linux/unix_diag.h.
const (
	anyState   = ^uint32(0)
	noCookie   = ^uint32(0)
	showPeer   = 4  // UDIAG_SHOW_PEER
	showUnread = 16 // UDIAG_SHOW_RQLEN
	attrPeer   = 2  // UNIX_DIAG_PEER: u32, an inode
	attrUnread = 4  // UNIX_DIAG_RQLEN: u32 unread, u32 of the other direction
)

type inetRequest struct { // struct inet_diag_req_v2
	Family, Protocol, Ext, Pad uint8
	States                     uint32
	ID                         inetID
}

type inetID struct { // struct inet_diag_sockid
	SrcPort, DstPort [2]byte // big-endian, as the addresses
	Src, Dst         [16]byte
	Interface        uint32
	Cookie           [2]uint32
}

type inetAnswer struct { // struct inet_diag_msg
	Family, State, Timer, Retrans       uint8
	ID                                  inetID
	Expires, Unread, Unsent, UID, Inode uint32
}

type unixRequest struct { // struct unix_diag_req
	Family, Protocol uint8
	Pad              uint16
	States           uint32
	Inode            uint32
	Show             uint32
	Cookie           [2]uint32
}

// unixAnswer is how many bytes of struct unix_diag_msg come before its attributes.
const unixAnswer = 16

// diagTCP asks for the client's socket of the connection to ours: its source is the client.
func (s *socket) diagTCP(ours netip.AddrPort) error {
	r := inetRequest{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, States: anyState, ID: inetID{Cookie: [2]uint32{noCookie, noCookie}}}
	if !s.addr.Addr().Is4() {
		r.Family = unix.AF_INET6
	}
	binary.BigEndian.PutUint16(r.ID.SrcPort[:], s.addr.Port())
	binary.BigEndian.PutUint16(r.ID.DstPort[:], ours.Port())
	copy(r.ID.Src[:], s.addr.Addr().AsSlice())
	copy(r.ID.Dst[:], ours.Addr().AsSlice())
	b, err := ask(r)
	if err != nil {
		return err
	}
	var a inetAnswer
	if _, err := binary.Decode(b, binary.NativeEndian, &a); err != nil {
		return err
	}
	if a.ID.SrcPort != r.ID.SrcPort || a.ID.DstPort != r.ID.DstPort {
		return errNoSocket // a listener on the client's port
	}
	s.inode, s.uid, s.unread = uint64(a.Inode), int(a.UID), int64(a.Unread)
	return nil
}

// diagUnix tells how much the other end of the Unix socket fd has left unread.
func diagUnix(fd int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	peer, err := askUnix(uint32(st.Ino), showPeer, attrPeer)
	if err != nil {
		return 0, err
	}
	n, err := askUnix(peer, showUnread, attrUnread)
	return int64(n), err
}

// askUnix gives the first word of one attribute of a Unix socket.
func askUnix(inode, show uint32, attr uint16) (uint32, error) {
	b, err := ask(unixRequest{Family: unix.AF_UNIX, States: anyState, Inode: inode, Show: show, Cookie: [2]uint32{noCookie, noCookie}})
	if err != nil {
		return 0, err
	}
	for b = b[min(unixAnswer, len(b)):]; len(b) >= 8; {
		size := binary.NativeEndian.Uint16(b)
		if binary.NativeEndian.Uint16(b[2:]) == attr {
			return binary.NativeEndian.Uint32(b[4:]), nil
		}
		b = b[min(max(unix.NLMSG_ALIGNTO, int(size+3)&^3), len(b)):]
	}
	return 0, errNoSocket
}

var errNoSocket = errors.New("the kernel does not tell of this socket")

// ask sends one request to sock_diag and gives the answer's payload.
func ask(request any) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	h := unix.NlMsghdr{Len: uint32(unix.NLMSG_HDRLEN + binary.Size(request)), Type: unix.SOCK_DIAG_BY_FAMILY, Flags: unix.NLM_F_REQUEST}
	b, _ := binary.Append(nil, binary.NativeEndian, h)
	b, err = binary.Append(b, binary.NativeEndian, request)
	if err != nil {
		return nil, err
	}
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	answer := make([]byte, os.Getpagesize())
	n, _, err := unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT) // it is there: the kernel answers within Sendto
	if err != nil {
		return nil, err
	}
	if _, err := binary.Decode(answer[:n], binary.NativeEndian, &h); err != nil {
		return nil, err
	}
	if h.Type != unix.SOCK_DIAG_BY_FAMILY {
		return nil, errNoSocket
	}
	return answer[unix.NLMSG_HDRLEN:n], nil
}

// procTCP finds the client's socket of the connection to ours in /proc/net/tcp: its line has the client's address first.
func (s *socket) procTCP(ours netip.AddrPort) error {
	file := "/proc/net/tcp"
	if !s.addr.Addr().Is4() {
		file = "/proc/net/tcp6"
	}
	table, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	local, remote := hexAddr(s.addr), hexAddr(ours)
	for line := range bytes.Lines(table) {
		f := strings.Fields(string(line))
		if len(f) < 10 || f[1] != local || f[2] != remote {
			continue
		}
		_, unread, _ := strings.Cut(f[4], ":")
		var errs [3]error
		s.unread, errs[0] = strconv.ParseInt(unread, 16, 64)
		s.uid, errs[1] = strconv.Atoi(f[7])
		s.inode, errs[2] = strconv.ParseUint(f[9], 10, 64)
		return errors.Join(errs[:]...)
	}
	return errNoSocket
}

// hexAddr is an address as /proc/net/tcp writes it: words in the machine's order.
func hexAddr(a netip.AddrPort) string {
	var s strings.Builder
	for words := a.Addr().AsSlice(); len(words) > 0; words = words[4:] {
		fmt.Fprintf(&s, "%08X", binary.NativeEndian.Uint32(words))
	}
	fmt.Fprintf(&s, ":%04X", a.Port())
	return s.String()
}

// addrPort is a socket address; IPv4 also where IPv6 carries it.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
