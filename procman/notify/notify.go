// Package notify is the service manager's side of sd_notify(3): one datagram socket a run, at a path of its own, so that the
// path says which run it is that speaks.
//
//	a process of the run ─datagram, SCM_CREDENTIALS, descriptors─> Socket ─Serve: one goroutine─> handle(Message)
//
// Who may speak is for handle to decide: a Message has the sender's uid and pid as the kernel gave them at sendmsg. That
// process may be dead before its datagram is read (systemd-notify is), so its uid is what can be relied upon.
//
// A client that floods its socket waits in sendmsg(2) for its own goroutine here (the kernel queues net.unix.max_dgram_qlen
// datagrams), a slow handle does the same to that client, and neither touches another run. A client may send a descriptor
// whose close(2) takes long (a socket with SO_LINGER); that too holds up its own Serve only, but nobody should wait for
// the end of a Serve without limit.
//
// While no zhxd has the path bound, a client's sendmsg fails (ENOENT; ECONNREFUSED after a crash, since the file is still
// there); sd_notify returns that, and programs go on. What was said in the gap is lost: a feed is due again within the
// timeout, a READY=1 is not said twice. A client that has connect(2)ed its socket, instead of naming the path each time,
// does not reach the next zhxd's socket at all.
package notify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// DatagramMax is the longest datagram in bytes, systemd's limit too (PIPE_BUF). A longer one says nothing.
	DatagramMax = 4096
	// StatusMax is the longest status text in bytes. A longer one is cut before the rune that passes it, and ends with "…".
	StatusMax = 512
	// CheckpointMax is the longest name of a checkpoint in bytes. A longer one is malformed.
	CheckpointMax = 32
	// pathMax is the longest path in bytes that sockaddr_un holds with a NUL at its end. A longer one is an error of Listen.
	pathMax = 107
)

// room is for the control messages of one datagram: the sender's credentials, which the kernel puts first, and the
// descriptor of a BARRIER. It drops the descriptors for which there is no room, so that sending many costs zhxd none.
var room = unix.CmsgSpace(unix.SizeofUcred) + unix.CmsgSpace(4)

// A Socket is what NOTIFY_SOCKET of one run names. Every method may be called by anybody.
type Socket struct {
	// Immutable:
	path string
	conn *net.UnixConn
	raw  syscall.RawConn

	owned  atomic.Bool // by Serve, or by Close when there was no Serve: who closes conn
	closed atomic.Bool
	busy   atomic.Bool // Serve is not parked at the end of what was there
}

// Listen makes the socket at path, in place of a socket that an earlier zhxd left there; anything else there is an error.
// Where zhxd is root, uid owns it (-1: nobody else does); its mode is 0600: the owner, and root, may send. The path is
// absolute and at most 107 bytes (abstract sockets have no owner, and are an error); the user must be able to search every
// directory on the way.
func Listen(path string, uid int) (*Socket, error) {
	s, err := listen(path, uid)
	if err != nil {
		return nil, fmt.Errorf("notify socket %q: %w", path, err)
	}
	return s, nil
}

func listen(path string, uid int) (*Socket, error) {
	switch {
	case !filepath.IsAbs(path):
		return nil, errors.New("not an absolute path")
	case len(path) > pathMax:
		return nil, fmt.Errorf("%d bytes are too long for a socket's path, %d is the most", len(path), pathMax)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = prepare(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	pc, err := config.ListenPacket(context.Background(), "unixgram", path)
	if err != nil {
		return nil, err
	}
	s := &Socket{path: path, conn: pc.(*net.UnixConn)}
	if err = s.own(uid); err != nil {
		s.conn.Close()
		os.Remove(path)
		return nil, err
	}
	return s, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something else than a socket")
	}
	return os.Remove(path)
}

// prepare does what must be so before the socket can be found: credentials with every datagram, and no mode wider than ours.
func prepare(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_PASSCRED", err)
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o600)) // bind(2) takes the mode from here, less the umask
}

func (s *Socket) own(uid int) (err error) {
	var st unix.Stat_t
	if err = unix.Stat(s.path, &st); err == nil && st.Mode&0o777 != 0o600 { // the umask has taken of it; a write to the disk is saved else
		err = os.Chmod(s.path, 0o600)
	}
	if err != nil {
		return err
	}
	if uid >= 0 && uint32(uid) != st.Uid && os.Geteuid() == 0 {
		if err = os.Lchown(s.path, uid, -1); err != nil {
			return err
		}
	}
	s.raw, err = s.conn.SyscallConn()
	return err
}

// Path is what NOTIFY_SOCKET of the run is to be.
func (s *Socket) Path() string { return s.path }

// Close takes the path away (whose no other Socket may be by now). Serve handles what had been sent before, and then returns;
// Close does not wait for that, and handle may call it. Without a Serve, what had been sent is lost.
// A zhxd that ends and keeps its clients closes too: the next one makes the socket anew at the same path.
func (s *Socket) Close() {
	if !s.closed.CompareAndSwap(false, true) {
		return
	}
	os.Remove(s.path)
	// Nobody can add to the queue from here on, who has connected neither; and a parked Serve wakes.
	s.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) })
	if s.owned.CompareAndSwap(false, true) {
		s.conn.Close()
	}
}

// Waiting tells whether datagrams were sent that are not handled yet: a judge of a late feed lets those pass first.
func (s *Socket) Waiting() bool {
	queued := false
	s.raw.Control(func(fd uintptr) { // not FIONREAD: that is 0 where an empty datagram is the first of many
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(p, 0)
		queued = n > 0 && !s.closed.Load()
	})
	return queued || s.busy.Load() // in this order: Serve is busy before it takes one out of the queue
}

// Serve reads until Close, and calls handle for every datagram, in the order in which they were sent. The sender of one without
// credentials (its pid cannot be told here: it is of a pid namespace beside ours) is not known.
//
// Malformed messages are handed over with what is good of them, perhaps nothing: so handle can say so, once it knows the sender
// to be entitled. A BARRIER=1 is answered (its descriptor is closed) when handle has returned for it, and hence for all that was
// sent before it. Descriptors that come with anything else are closed, too: FDSTORE is not supported.
//
// Called once; nil after Close. Any other error of recvmsg(2) ends it too: the socket is deaf from then on.
func (s *Socket) Serve(handle func(Message)) error {
	if !s.owned.CompareAndSwap(false, true) {
		return nil
	}
	defer s.busy.Store(false)
	defer s.conn.Close()
	r := receiver{s: s, text: make([]byte, DatagramMax), control: make([]byte, room)}
	for {
		if err := s.raw.Read(r.receive); err != nil {
			return fmt.Errorf("notify socket %q: %w", s.path, err)
		}
		switch {
		case r.err == unix.EAGAIN: // only when closed
			return nil
		case r.err != nil:
			return fmt.Errorf("notify socket %q: recvmsg: %w", s.path, r.err)
		}
		r.deliver(handle)
	}
}

// A receiver is the buffers of a Serve, and the datagram that is in them.
type receiver struct {
	s             *Socket
	text, control []byte
	n, c, flags   int
	err           error
}

// receive takes one datagram; false: there is none, and the poller is to wait for it. After Close it does not wait.
func (r *receiver) receive(fd uintptr) bool {
	r.s.busy.Store(true)
	for {
		closed := r.s.closed.Load() // before the queue is looked at: all that was sent before Close is in it
		r.n, r.c, r.flags, _, r.err = unix.Recvmsg(int(fd), r.text, r.control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch r.err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			r.s.busy.Store(false)
			return closed
		}
		return true
	}
}

func (r *receiver) deliver(handle func(Message)) {
	cred, fds := split(r.control[:r.c])
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	m := Message{Malformed: errLong}
	if r.flags&unix.MSG_TRUNC == 0 {
		m, _ = Parse(r.text[:r.n])
	}
	if m.Barrier && (len(fds) != 1 || r.flags&unix.MSG_CTRUNC != 0) { // CTRUNC: more than there was room for, or zhxd has no number left
		m = Message{Malformed: errDescriptors}
	}
	m.UID = -1
	if cred != nil {
		m.PID, m.UID = int(cred.Pid), int(cred.Uid)
	}
	handle(m)
}

var errDescriptors = errors.New("BARRIER=1 without exactly one descriptor")

// split reads the control messages of a datagram: who sent it (nil: not known), and the descriptors, which are ours to close.
func split(control []byte) (cred *unix.Ucred, fds []int) {
	messages, _ := unix.ParseSocketControlMessage(control) // the kernel made them
	for i := range messages {
		m := &messages[i]
		switch {
		case m.Header.Level != unix.SOL_SOCKET:
		case m.Header.Type == unix.SCM_RIGHTS:
			got, _ := unix.ParseUnixRights(m)
			fds = append(fds, got...)
		case m.Header.Type == unix.SCM_CREDENTIALS && len(m.Data) >= unix.SizeofUcred:
			if c, err := unix.ParseUnixCredentials(m); err == nil && c.Pid > 0 {
				cred = c
			}
		}
	}
	return cred, fds
}
