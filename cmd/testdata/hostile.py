"""hostile.py: what a local user without rights tries against a zhxd that serves others (cmd/hostile_test.go runs it, under a uid of its own).

    hostile.py STAGE UNIX-SOCKET TCP-ADDRESS RUN-DIR ZHXD-PID NOTIFY-SOCKET SETUID-PROGRAM

A stage is a group of attempts. Each is printed as one line of JSON: attempt, transport, and met, which is what came of it as
somebody without rights can see it. After each line a line is awaited on standard input, so that the test can look how others
fare meanwhile. It speaks raw packets and frames (ipc/PROTOCOL.md): no library of ours is in its way.
"""

import array
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time

STAGE, UNIX, TCP, RUN_DIR, ZHXD, NOTIFY, SETUID = (sys.argv[1:] + [""] * 7)[:7]
LATE = 15.0  # what has not come by then does not

PREAMBLE = b"\xa7ZHX\r\n\x02\x00"
HEADER = struct.Struct("<IBBBBQQIBBH")
(HELLO, WELCOME, REGISTER, MESSAGE, REQUEST, REPLY, CANCEL, ACK, ERROR, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, GAP, WATCH, UNWATCH, STATE,
 FEED) = range(1, 18)
RETAIN, TAKES_FDS = 8, 32
CODES = ("", "no name", "restarting", "stopped", "failed", "full", "denied", "too big", "expired", "stuck", "gone", "no descriptors", "bad",
         "taken", "unanswered")


def connect(transport):
    if transport == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(LATE)
        s.connect(UNIX)
    else:
        host, _, port = TCP.rpartition(":")
        s = socket.create_connection((host, int(port)), LATE)
    return s


def packet(cmd, wdt, target, source, msg=b""):
    return struct.pack("<10s2xii10s10s512s", b"head", cmd, wdt, target, source, msg)


def register(transport, name):
    s = connect(transport)
    s.sendall(packet(0, 0, b"null", name))
    return s


def closed(s, wait=LATE):
    """Whether zhxd closes s within that time. What comes before is thrown away."""
    end = time.monotonic() + wait
    try:
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([s], [], [], left)[0]:
                return False
            if not s.recv(65536):
                return True
    except OSError:
        return True


def received(s):
    """The texts of the packets that come until one says "end"."""
    texts, torn = [], b""
    try:
        while b"end" not in texts:
            got = s.recv(65536)
            if not got:
                break
            torn += got
            while len(torn) >= 552:
                texts.append(torn[40:552].split(b"\0")[0])
                torn = torn[552:]
    except OSError:
        pass
    return texts


class Two:
    """A connection of protocol 2."""

    def __init__(self, transport="unix", cookie=b"", session=None, flags=TAKES_FDS):
        self.s, self.torn, self.id = connect(transport), b"", 0
        self.session = session or random.getrandbits(63) | 1
        self.s.sendall(PREAMBLE)
        self.put(HELLO, flags=flags, body=cookie)
        self.hello = self.get()

    def frame(self, kind, to=b"", sender=b"", body=b"", code=0, flags=0, time=0, fds=0):
        self.id += 1
        size = HEADER.size + len(to) + len(sender) + len(body)
        return HEADER.pack(size, kind, flags, code, fds, self.session, self.id, time, len(to), len(sender), 0) + to + sender + body

    def put(self, *args, **kwargs):
        self.s.sendall(self.frame(*args, **kwargs))

    def get(self, wait=LATE):
        """The next frame: (type, code, to, body); None: none comes; False: the connection is closed."""
        end = time.monotonic() + wait
        while True:
            if len(self.torn) >= 4:
                size = struct.unpack_from("<I", self.torn)[0]
                if len(self.torn) >= size:
                    f, self.torn = self.torn[:size], self.torn[size:]
                    _, kind, flags, code, _, _, _, _, to, sender, ext = HEADER.unpack_from(f)
                    at = HEADER.size
                    return kind, code, f[at:at + to], f[at + to + sender + ext:]
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.s], [], [], left)[0]:
                return None
            try:
                got = self.s.recv(1 << 20)
            except OSError:
                return False
            if not got:
                return False
            self.torn += got

    def ask(self, *args, **kwargs):
        """What a frame is answered with, as a word."""
        self.put(*args, **kwargs)
        while True:
            f = self.get()
            if not f:
                return "closed" if f is False else "nothing"
            if f[0] == ACK:
                return "done"
            if f[0] == ERROR:
                return CODES[f[1]]
            if f[0] == STATE:
                return "told"


def row(attempt, transport, met):
    print(json.dumps({"attempt": attempt, "transport": transport, "met": met}), flush=True)
    sys.stdin.readline()


def words(answers):
    """How often what was answered, in that order."""
    out = []
    for a in answers:
        if out and out[-1][1] == a:
            out[-1][0] += 1
        else:
            out.append([1, a])
    return ", then ".join("%d %s" % (n, a) for n, a in out)


def refused(path, how):
    try:
        how(path)
        return "done"
    except OSError as e:
        return os.strerror(e.errno)


# Names and senders.

RESERVED = (b"zhxd", b"zhxctl", b"zhx_server", b"null")
LOOKALIKES = (b"Asker", b"asker ", b"\x1b[31masker", b"asker\n", b"-asker", b"a.sker")
FREE = b"evil"


def receiver(t):
    """A connection that receives under FREE by now."""
    s = register(t, FREE)
    s.sendall(packet(2, 0, FREE, b"", b"end"))
    received(s)
    return s


def names(t):
    mine = receiver(t)

    def through(s):
        """Whether zhxd has done all that was sent on s; else it has closed it."""
        try:
            s.sendall(packet(2, 0, FREE, b"", b"end"))
        except OSError:
            return False
        ready, _, _ = select.select([mine, s], [], [], LATE)
        return mine in ready and b"end" in received(mine)

    def taken(name):
        s = register(t, name)
        if not through(s):
            return "connection closed"
        other = connect(t)
        other.sendall(packet(2, 0, name, b"", b"for you"))
        through(other)
        return "taken" if select.select([s], [], [], 0)[0] else "ignored"

    def idle(packets):
        s = connect(t)
        s.sendall(packets)
        return "ignored" if through(s) else "connection closed"

    row("register the name of a client that runs", t, taken(b"asker"))
    row("that name with more behind a NUL", t, taken(b"asker\0x"))
    row("register the name of a client that is stopped", t, taken(b"halted"))
    row("register the name of a client between two runs", t, taken(b"napper"))
    row("register a name that another user's program has", t, taken(b"foreign"))
    row("register the reserved names", t, words([taken(n) for n in RESERVED]))
    row("register names that look like a client's", t, words(["another name" if (m := taken(n)) == "taken" else m for n in LOOKALIKES]))

    def forged(source):
        s = connect(t)
        s.sendall(packet(2, 0, FREE, source, b"forged"))
        s.sendall(packet(2, 0, FREE, FREE, b"end"))
        return "delivered" if b"forged" in received(mine) else "dropped"

    row("send under the name of a client that runs", t, forged(b"asker"))
    row("send under the name of one that is stopped, or between two runs", t, words([forged(b"halted"), forged(b"napper")]))
    row("send under a name that another user's program has", t, forged(b"foreign"))
    row("send under the reserved names", t, words([forged(n) for n in RESERVED]))
    row("send under no name", t, forged(b""))

    row("arm and feed the watchdog of a client that hangs", t, idle((packet(1, 1, b"null", b"mute") + packet(1, 0, b"null", b"mute")) * 200))
    row("arm and feed the watchdog of another user's program", t, idle(packet(1, 0, b"null", b"foreign") + packet(1, 1, b"null", b"foreign")))


def names2():
    h = Two()
    for what, name in (("a client that runs", b"asker"), ("a client that is stopped", b"halted"), ("a client between two runs", b"napper"),
                       ("another user's program", b"foreign"), ("zhx itself", b"zhxctl")):
        row("protocol 2: register, send, subscribe, feed under the name of " + what, "unix",
            words([h.ask(REGISTER, sender=name), h.ask(MESSAGE, FREE, name, b"forged", 1), h.ask(SUBSCRIBE, b"x", name),
                   h.ask(FEED, sender=name, code=1)]))
    other = Two()
    h.session, was = other.session, h.session
    row("protocol 2: speak with the session of another", "unix", h.ask(MESSAGE, FREE, b"", b"forged", 1))
    h.session = was
    row("protocol 2: reply to a request of another", "unix", h.ask(REPLY, b"", b"", b"forged"))
    row("protocol 2: no cookie, and a guessed one", "tcp",
        words(["%s, closed" % CODES[t.hello[1]] if t.hello and t.hello[0] == ERROR and t.get() is False else "welcome"
               for t in (Two("tcp"), Two("tcp", b"0" * 64), Two("tcp", b"\0" * 65536))]))

    # A socket of ours in the hands of a client: is it the client's?
    mine, t = receiver("unix"), connect("tcp")
    h.s.sendmsg([h.frame(MESSAGE, b"keeper", b"", b"a present", 2, fds=1)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [t.fileno()]))])
    arrived = h.get()
    t.sendall(packet(0, 0, b"null", b"keeper") + packet(2, 0, FREE, b"keeper", b"forged") + packet(2, 0, FREE, b"", b"end"))
    row("pass a connection to a client, then speak under its name on it", "tcp",
        "not passed" if not arrived or arrived[0] != ACK else "delivered" if b"forged" in received(mine) else "dropped")


# What zhxd would do for us.

def signals():
    def victim(then):
        """A child that arms and never feeds; the test's watchdog ends after a second."""
        said, say = os.pipe()
        pid = os.fork()
        if pid == 0:
            s = connect("unix")
            s.sendall(packet(1, 0, b"null", b"v%d" % os.getpid()) + packet(0, 0, b"null", b"v%d" % os.getpid()) +
                      packet(2, 0, b"v%d" % os.getpid(), b"", b"end"))
            received(s)  # it is armed
            os.set_inheritable(s.fileno(), True)
            os.write(say, b"x")
            then()
        os.read(said, 1)
        return pid

    alive = victim(signal.pause)
    setuid = victim(lambda: os.execv(SETUID, [SETUID, "30"])) if SETUID else 0
    gone = victim(lambda: os._exit(0))
    os.waitpid(gone, 0)
    end = time.monotonic() + LATE
    while SETUID and os.stat("/proc/%d" % setuid).st_uid != 0 and time.monotonic() < end:
        time.sleep(0.01)
    _, status = os.waitpid(alive, 0)
    row("lapse on purpose", "unix", "it is killed itself" if os.WIFSIGNALED(status) else "it lives")
    row("arm, end, and leave the pid to others", "unix", "nobody is signalled")  # the test waits until zhxd has judged
    if SETUID:
        row("arm, become root by a setuid program, and lapse", "unix", "not killed" if os.waitpid(setuid, os.WNOHANG)[0] == 0 else "killed")
        try:
            os.kill(setuid, signal.SIGKILL)  # the real uid is still ours
        except OSError:
            pass


# What there is to read.

def read():
    row("connect to the control socket", "unix", refused(RUN_DIR + "/control.sock", lambda p: socket.socket(socket.AF_UNIX).connect(p)))
    d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    row("feed on the notify socket of a client", "unix", refused(NOTIFY, lambda p: d.sendto(b"WATCHDOG=1\nMAINPID=1", p)))
    row("list the notify sockets", "files", refused(RUN_DIR + "/notify", os.listdir))
    row("read state/ (records, output of clients, lock)", "files", refused(RUN_DIR + "/state", os.listdir))
    row("read the cookie", "files", refused(RUN_DIR + "/cookie", lambda p: open(p).read()))
    row("read zhxd.log", "files", refused(RUN_DIR + "/zhxd.log", lambda p: open(p).read()))
    row("put an entry into the run directory", "files", refused(RUN_DIR + "/x", lambda p: os.symlink("/etc/passwd", p)))
    row("take the socket's path", "files", refused(UNIX, os.unlink))
    for what, how in (("fd", os.listdir), ("environ", lambda p: open(p).read()), ("mem", lambda p: open(p, "rb+").read(1))):
        row("/proc/PID/%s of zhxd" % what, "files", refused("/proc/%s/%s" % (ZHXD, what), how))
    row("the requests of the control socket on the data socket", "unix", http("unix"))
    row("the requests of the control socket on the data socket", "tcp", http("tcp"))
    h = Two()
    row("send to a client that has may_receive_from", "unix", h.ask(MESSAGE, b"echo", b"", b"x", 1))
    row("subscribe to everything", "unix", h.ask(SUBSCRIBE, b">") + ": topics are everybody's")
    row("watch a client", "unix", h.ask(WATCH, b"asker") + ": states are everybody's")


def http(t):
    s = connect(t)
    s.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        got = s.recv(65536)
    except OSError:
        got = b""
    return "closed" if not got else "answered"


# Shares: what is taken until zhxd says no, and then kept while the test looks how others fare.

def fds():
    held, files = [], array.array("i", [os.open("/dev/null", os.O_RDONLY)] * 16)
    for _ in range(20):
        h = Two()
        h.s.sendmsg([h.frame(WATCH, FREE)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        try:
            if not h.get() or h.ask(UNSUBSCRIBE, b"x") == "closed":
                break
        except OSError:
            break
        held.append(h)
    row("send descriptors whose frame never comes", "unix", "%d descriptors, then the connection is closed" % (16 * len(held)))
    torn = Two()
    torn.s.sendall(torn.frame(MESSAGE, FREE, code=1, fds=4))
    f = torn.get()
    row("a frame that says it has descriptors, and has none", "unix", CODES[f[1]] if f and f[0] == ERROR else "closed" if f is False else "nothing")


def crowd(t):
    """Connect until no more stay, also where zhxd has not yet seen that some of ours were closed."""
    held, end, steady = [], time.monotonic() + LATE, 0
    while steady < 4 and time.monotonic() < end:
        before = len(held)
        for _ in range(400 if not held else 20):
            try:
                held.append(connect(t))
            except OSError:
                break
        time.sleep(0.1)
        held = [s for s in held if not select.select([s], [], [], 0)[0]]
        steady = steady + 1 if len(held) == before else 0
    row("connect without end, where zhxd takes 512 of all", t, "%d stay, the others are closed" % len(held))
    for s in held:
        s.close()
    while time.monotonic() < end + LATE:  # until zhxd has seen that
        held = [connect(t) for _ in range(100)]
        time.sleep(0.1)
        full = select.select(held, [], [], 0)[0]
        for s in held:
            s.close()
        if not full:
            break


def answered(conn, n, make):
    """What n frames, which make puts, are answered with, of those that are answered."""
    out = []
    for i in range(n):
        make(conn, i)
    for _ in range(n):
        f = conn.get()
        if not f:
            break
        out.append("done" if f[0] in (ACK, STATE) else CODES[f[1]] if f[0] == ERROR else str(f[0]))
    return out


def shares():
    fds()
    crowd("unix")
    crowd("tcp")

    held, all_ = [], []
    for i in range(17):
        held.append(Two())
        all_ += answered(held[-1], 257 if i == 0 else 256, lambda c, j: c.put(SUBSCRIBE, b"s%d.c%d" % (j, i)))
    row("subscribe 4,353 times, where zhxd takes 8,192 of all", "unix", words(all_))
    held, all_ = [], []
    for i in range(17):
        held.append(Two())
        all_ += answered(held[-1], 257 if i == 0 else 256, lambda c, j: c.put(WATCH, b"w%d-%d" % (j, i)))
    row("watch 4,353 names, where zhxd takes 8,192 of all", "unix", words(all_))
    held = []

    h = Two()
    row("last values of 600 topics, where zhxd keeps 1,024 of all", "unix",
        words(answered(h, 600, lambda c, j: c.put(PUBLISH, b"evil.t%d" % j, b"", b"x", 1, RETAIN))))
    for j in range(600):
        h.put(PUBLISH, b"evil.t%d" % j, b"", b"", 0, RETAIN)
    row("last values of 256 KiB, where zhxd keeps 4 MiB of all", "unix",
        words(answered(h, 10, lambda c, j: c.put(PUBLISH, b"evil.t%d" % j, b"", bytes(262000), 1, RETAIN))))
    for j in range(10):
        h.put(PUBLISH, b"evil.t%d" % j, b"", b"", 0, RETAIN)
    row("messages that are to wait for a client between two runs, where 8 of all may", "unix",
        words([h.ask(MESSAGE, b"dozer", b"", b"x", 1) for _ in range(6)]))
    r = Two()
    for j in range(600):
        r.put(REQUEST, b"keeper", b"", b"never answered")
    r.put(UNSUBSCRIBE, b"x")
    full, f = [], r.get()
    while f and f[0] == ERROR:
        full.append(CODES[f[1]])
        f = r.get()
    row("600 requests that are never answered, where a receiver takes 1,024", "unix", "%d taken, then %s" % (600 - len(full), words(full)))
    h = Two()
    row("register 17 names on a connection", "unix", words([h.ask(REGISTER, sender=b"r%d" % j) for j in range(17)]))
    h = Two()
    row("a body of 300 KiB, where 256 KiB are the most", "unix", h.ask(MESSAGE, FREE, b"", bytes(300 << 10), 1))
    h.s.sendall(struct.pack("<I", 1 << 31) + bytes(HEADER.size))
    row("a frame of 2 GiB", "unix", "closed" if closed(h.s) else "taken")

    # What is published and not read.
    held = []
    for i in range(24):
        h = Two()
        for t in range(4):
            h.ask(SUBSCRIBE, b"flood.%d" % t, time=4096)
        held.append(h)
    h = Two()
    body = bytes(60000)
    for _ in range(16):
        for t in range(4):
            h.put(PUBLISH, b"flood.%d" % t, b"", body)
    h.ask(PUBLISH, b"flood.x", b"", b"", 1)
    row("24 subscribers that never read, of 24 MiB, where 32 MiB of all may wait", "unix", "16 MiB wait, what is more is lost")  # the test asks zhxd


# All at once, for SECONDS, while the others do what they do.

SECONDS = 4.0


def storm(kind, t):
    end, n = time.monotonic() + SECONDS, 0
    junk = random.randbytes(4096)
    s = connect(t)
    while time.monotonic() < end:
        n += 1
        try:
            if kind == "packets":  # to a receiver of its own that does not read, and to a client
                s.sendall(packet(2, 0, b"stuck-%s" % t.encode(), FREE, junk[:512].replace(b"\0", b"x")) * 32 + packet(2, 0, b"nobody", FREE) * 8)
            elif kind == "forged":  # under two names by turns, each of which has to be proved
                s.sendall((packet(2, 0, b"asker", b"echo") + packet(1, 1, b"null", b"mute")) * 16)
            elif kind == "lines":  # each of which could be a line of the log
                s.sendall(b"".join(packet(2, 0, b"n%d" % (n * 8 + i), b"m%d" % n) for i in range(8)))
            elif kind == "connections":
                c = connect(t)
                c.sendall(junk if n % 2 else b"head")
                c.close()
            elif kind == "sessions":
                c = Two()
                c.put(REGISTER, sender=b"s%d" % (n % 1000))
                c.put(MESSAGE, b"s%d" % (n % 1000), b"", b"x", 3)
                c.put(SUBSCRIBE, b"a.>")
                c.s.close()
            elif kind == "topics":
                if n == 1:
                    h = Two()
                h.put(PUBLISH, b"a.t%d" % n, b"", junk)
            elif kind == "frames":
                if n == 1:
                    h = Two()
                h.s.sendall(h.frame(MESSAGE, b"nobody", b"", junk, 0) * 8)
                if n % 64 == 0:
                    h.torn = b""
                    while select.select([h.s], [], [], 0)[0] and h.s.recv(1 << 20):
                        pass
        except OSError:  # closed: again
            try:
                s = connect(t)
                if kind in ("topics", "frames"):
                    h = Two()
            except OSError:
                pass
    os._exit(0)


def flood():
    # Meanwhile: connections that begin and do not go on. zhxd gives them five seconds.
    slow = []
    for t in ("unix", "tcp"):
        for what, begun in (("a preamble cut short", PREAMBLE[:5]), ("a preamble without HELLO", PREAMBLE), ("a HELLO cut short", PREAMBLE + b"\x20\0\0\0\1")):
            s = connect(t)
            s.sendall(begun)
            slow.append((what, t, s))
    h = Two()
    h.s.sendall(h.frame(MESSAGE, FREE, b"", bytes(200 << 10))[:100 << 10])
    slow.append(("a frame cut short", "unix", h.s))
    for t in ("unix", "tcp"):
        s = register(t, b"stuck-%s" % t.encode())
        slow.append((None, t, s))
    kinds = [("packets", "unix"), ("packets", "tcp"), ("forged", "unix"), ("forged", "tcp"), ("lines", "unix"), ("connections", "unix"), ("connections", "tcp"),
             ("sessions", "unix"), ("topics", "unix"), ("frames", "unix")]
    children = []
    for kind, t in kinds:
        pid = os.fork()
        if pid == 0:
            storm(kind, t)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    row("packets to a receiver that does not read, and to nobody, as fast as can be", "both", "dropped and counted")
    row("packets under names that are to be proved, by turns", "both", "refused and counted")
    row("packets to and from thousands of names", "unix", "counted; 20 lines of the log a second")
    row("connections that come and go, with and without rubbish", "both", "closed")
    row("sessions that come and go with names, subscriptions and messages to be handled", "unix", "given up")
    row("publications to ever new topics, and frames to nobody", "unix", "carried to nobody")
    for what, t, s in slow:
        if what:
            row(what, t, "closed after 5 s" if closed(s) else "kept")


# Somebody else, who is not hostile, comes now.

def newcomer():
    n, c = b"new%d" % os.getpid(), Two()
    got = [c.ask(REGISTER, sender=n), c.ask(SUBSCRIBE, n + b".>", n), c.ask(WATCH, b"asker"), c.ask(PUBLISH, n + b".x", n, b"x", 1, RETAIN)]
    c.ask(PUBLISH, n + b".x", n, b"", 1, RETAIN)
    if c.ask(MESSAGE, b"dozer", n, b"x", 1, time=200) != "done":
        got.append("not held")
    c.put(REQUEST, b"echo", n, b"ping", time=5000)
    f = c.get()
    while f and f[0] not in (REPLY, ERROR):
        f = c.get()
    got.append("done" if f and f[0] == REPLY else "no reply: %r" % (f,))
    t = register("tcp", b"t" + n[:9])
    t.sendall(packet(2, 0, b"t" + n[:9], b"", b"end"))
    got.append("done" if received(t) else "nothing over TCP")
    wrong = [g for g in got if g not in ("done", "told")]
    print(json.dumps({"attempt": "newcomer", "transport": "both", "met": " ".join(wrong)}), flush=True)


for stage in {"names": [lambda: names("unix"), lambda: names("tcp"), names2], "signals": [signals], "read": [read], "shares": [shares], "flood": [flood],
              "newcomer": [newcomer]}[STAGE]:
    stage()
