"""zhx.py: how a Python program speaks to zhx, by protocol 2 (ipc/PROTOCOL.md).  One file, no dependencies, Python 3.7 and later.

    import zhx
    with zhx.connect() as c:                        # the socket in $ZHX_SOCKET, the name in $ZHX_NAME
        c.send("camera", b"hello")                  # returns when zhx has it; raises zhx.Error if it cannot be delivered
        print(c.request("camera", b"?", timeout=2).body)
        c.subscribe("temp.*")
        c.publish("temp.cpu", b"41", retain=True)
        for event in c:
            if event.kind == "request":
                event.reply(b"yes")

    async with zhx.AsyncClient() as c:              # the same with asyncio; every call that waits is awaited
        async for event in c: ...

All times are seconds, all names str, all bodies bytes (a str is sent as UTF-8).  What goes wrong is a `zhx.Error`, whose `code` is
one word.  A lost connection comes back by itself: names are registered, topics subscribed and names watched again, and
messages of level "handled" that nobody has acknowledged are sent again; every other call under way raises `closed`.

A message of level "handled" is acknowledged by its `done()`, or by itself when the next event is asked for, or when the `with` block
is left without an exception.  A program that dies before is given the message again, with `repeat` set.

The file has three parts: the values that a user sees, the protocol's core, which does no I/O, and two shells, `Client` and
`AsyncClient`, that move bytes between the core and a socket.
"""

from __future__ import annotations

import array
import asyncio
import collections
import errno
import json
import os
import random
import re
import select
import socket
import struct
import time
import weakref
from typing import Any, AsyncIterator, Callable, Deque, Dict, Iterator, List, Optional, Sequence, Tuple, Union

__all__ = ["Client", "AsyncClient", "connect", "Error", "Timeout", "Failed", "Ticket", "Event", "Message", "Request", "Reply",
           "Publication", "Gap", "State", "Link", "Refused"]

# What the protocol says.
_PREAMBLE = b"\xa7ZHX\r\n\x02\x00"
_VERSION = 2
_HEADER = struct.Struct("<IBBBBQQIBBH")  # size, type, flags, code, fds, session, id, time, to_len, from_len, ext_len
_FRAME_MAX = 16 << 20
_FDS_MAX = 4
_KEPT_MAX = 256  # messages of level handled that nobody has acknowledged
_SEEN_MAX = 1024  # senders of such messages that are remembered
(_HELLO, _WELCOME, _REGISTER, _MESSAGE, _REQUEST, _REPLY, _CANCEL, _ACK, _ERROR, _PUBLISH, _SUBSCRIBE, _UNSUBSCRIBE, _GAP, _WATCH,
 _UNWATCH, _STATE, _FEED) = range(1, 18)
_REPEAT, _NO_HOLD, _FAILED, _RETAIN, _FROM_V1, _TAKES_FDS = 1, 2, 4, 8, 16, 32
_LEVELS = ("none", "accepted", "written", "handled")
_STATES = ("absent", "running", "ready", "late", "restarting", "failed", "stopped")
_POLICIES = ("oldest", "newest", "latest", "disconnect")
_CODES = ("", "noname", "restarting", "stopped", "failed", "full", "denied", "toobig", "expired", "stuck", "gone", "nofds", "bad",
          "taken", "unanswered")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}\Z")
_TOPIC = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\Z")
_PATTERN = re.compile(r"(([A-Za-z0-9_-]+|\*)\.)*([A-Za-z0-9_-]+|\*|>)\Z")
_TOPIC_MAX = 200

# What this library decides.
_SOCKET = "/run/zhx/zhx.sock"
_CHUNK = 64 << 10  # bytes of one read
_OUT_MAX = 256 << 10  # bytes that wait to be written: beyond, no call adds any and nothing more is read
_EVENTS_MAX = 4096  # events, and bytes of them, that wait for receive: beyond, nothing more is read
_EVENT_BYTES_MAX = 16 << 20
_BATCHES_MAX = 16  # reads with descriptors whose frame has not come whole
_BACKOFF = (0.01, 1.0)  # between attempts to connect: the least and the most, before jitter
_SETTLED = 1.0  # a connection that lived so long has been a good one: the backoff begins anew
_HANDSHAKE = 5.0  # until a connection is up; then it is given up
_TIMEOUT = 10.0  # of a call that says none

Body = Union[bytes, bytearray, memoryview, str]


class Error(Exception):
    """What zhx refuses, or what cannot be.

    code: one word. noname (nobody has the name), restarting, stopped, failed (so its client is), full, denied, toobig, expired, stuck
    (the receiver does not read), gone (the receiver ended with the request), nofds, bad (a name or frame makes no sense), taken
    (another connection has this client's name), unanswered (the receiver cannot reply), closed (the connection was lost, and what
    became of the call is not known), timeout.
    about: the name or topic that it is about, or "". retry_in: with restarting, seconds until the client is started next, if known.
    """

    def __init__(self, code: str, text: str = "", about: str = "", retry_in: Optional[float] = None) -> None:
        super().__init__("zhx: " + (about + ": " if about else "") + code + (": " + text if text else ""))
        self.code, self.text, self.about, self.retry_in = code, text, about, retry_in


class Timeout(Error):
    """The time of a call is over; code is timeout.  What was sent may still be delivered, and a message of level handled is."""


class Failed(Error):
    """The receiver of a request answered by Request.fail; code is failedreply, body what it said."""

    def __init__(self, body: bytes, about: str) -> None:
        super().__init__("failedreply", body.decode("utf-8", "replace"), about)
        self.body = body


class Event:
    """What receive gives.  kind: message, request, publication, gap, state, link or refused, a class of that name each."""

    kind = ""


class _Carrier(Event):
    """Something with a body and, maybe, descriptors."""

    def __init__(self, sender: str, body: bytes, fds: List[int]) -> None:
        self.sender, self.body, self.fds = sender, body, fds

    @property
    def text(self) -> str:
        """The body as text, up to its first zero byte: so a C program reads it, and so protocol 1 sends it."""
        return self.body.split(b"\0", 1)[0].decode("utf-8", "replace")

    def take(self) -> List[int]:
        """The descriptors, which are the caller's to close from now on."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close the descriptors that nobody has taken.  Without it that happens when the object is collected."""
        _close(self.take())

    def __del__(self) -> None:
        _close(self.__dict__.get("fds", ()))


class Message(_Carrier):
    """A message to a name of this client.

    sender: the name that it is from, "" if none; to: the name that it was sent to; body: bytes; fds: descriptors, closed with the
    message unless take() takes them; level: the acknowledgement that its sender wants; repeat: this program, or its last run, may
    have been given it before; from_v1: it came by protocol 1, and body is its 512 bytes.
    """

    kind = "message"

    def __init__(self, core: _Core, f: _Frame, fds: List[int]) -> None:
        super().__init__(f.sender, f.body, fds)
        self.to, self.level = f.to, _word(_LEVELS, f.code)
        self.repeat, self.from_v1 = bool(f.flags & _REPEAT), bool(f.flags & _FROM_V1)
        self._core, self._session, self._id = core, f.session, f.id

    def done(self) -> None:
        """Acknowledge a message of level handled: its sender is told, and it does not come again.  Else, and again, without effect."""
        self._core.done(self)


class Request(Message):
    """A message that wants a reply.  timeout: seconds that its sender gave it, 0 for no end; cancelled: the reply is of no use any more."""

    kind = "request"

    def __init__(self, core: _Core, f: _Frame, fds: List[int]) -> None:
        super().__init__(core, f, fds)
        self.level, self.timeout, self.cancelled = "none", f.time / 1000.0, False
        self._link: Optional[int] = core.links

    def reply(self, body: Body = b"", *, fds: Sequence[int] = ()) -> bool:
        """Answer, once.  fds: up to 4 descriptors, which stay the caller's.

        False: nobody waits for the answer any more, since the sender cancelled or the connection was lost in between.
        Raises Error toobig or nofds; the request can still be answered then.
        """
        return self._core.reply(self, 0, _bytes(body), fds)

    def fail(self, text: Body = b"") -> bool:
        """Answer that it cannot be done: the sender's request raises Failed with this text.  As reply otherwise."""
        return self._core.reply(self, _FAILED, _bytes(text), ())


class Reply(_Carrier):
    """The answer to a request: sender, body, text, and fds as Message has them."""

    kind = "reply"


class Publication(_Carrier):
    """A publication.  topic; sender, may be ""; body; kept: it is the topic's last value, from before the subscription."""

    kind = "publication"

    def __init__(self, f: _Frame) -> None:
        super().__init__(f.sender, f.body, [])
        self.topic, self.kept = f.to, bool(f.flags & _RETAIN)


class Gap(Event):
    """So many publications, lost, for the pattern were lost, since this client did not take them fast enough."""

    kind = "gap"

    def __init__(self, pattern: str, lost: int) -> None:
        self.pattern, self.lost = pattern, lost


class State(Event):
    """The state of a watched name.

    state: absent, running, ready, late (half of its watchdog's time is over), restarting, failed or stopped; change: which of the
    name's changes in this zhxd it is; info: run, pid, cause, exit_code, signal, back_in_ms (milliseconds), each only where known.
    """

    kind = "state"

    def __init__(self, f: _Frame) -> None:
        self.name, self.state, self.change = f.to, _word(_STATES, f.code), f.id
        try:
            info = json.loads(f.body.decode("utf-8"))
        except (ValueError, RecursionError):
            info = None
        self.info: Dict[str, Any] = info if isinstance(info, dict) else {}


class Link(Event):
    """The connection to zhx.  state: down (it is lost), up (it is back), taken (another connection has the name; this client is over)."""

    kind = "link"

    def __init__(self, state: str) -> None:
        self.state = state


class Refused(Event):
    """What nobody waited for was refused: a message of level none, a feed, or a name or pattern after the connection came back;
    or a message came here whose descriptors this process could not take (what is then receive).

    what: send, publish, feed, unsubscribe, unwatch, register, subscribe, watch or receive; error: the Error.
    """

    kind = "refused"

    def __init__(self, what: str, error: Error) -> None:
        self.what, self.error = what, error


class Ticket:
    """A call under way, from Client.post and Client.ask.  done: it is over."""

    def __init__(self, kind: str, about: str, deadline: float) -> None:
        self.done = False
        self._kind, self._about, self._deadline = kind, about, deadline
        self._id = 0
        self._value: Any = None
        self._error: Optional[Error] = None
        self._told: Optional[Callable[[], None]] = None

    def result(self) -> Any:
        """What Client.send or Client.request would have returned; raises what they would have raised, and Timeout if not done."""
        if self._error is not None:
            raise self._error
        if not self.done:
            raise Timeout("timeout", "still under way", self._about)
        return self._value

    def _finish(self, value: Any = None, error: Optional[Error] = None) -> None:
        if not self.done:
            self.done, self._value, self._error = True, value, error
            if self._told:
                self._told()


def _bytes(body: Body) -> bytes:
    return body.encode("utf-8") if isinstance(body, str) else bytes(body)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def _word(words: Sequence[str], code: int) -> str:
    return words[code] if code < len(words) else "unknown"


def _code(words: Sequence[str], word: str, what: str) -> int:
    if word not in words:
        raise Error("bad", "%s is one of %s" % (what, ", ".join(words)), word)
    return words.index(word)


def _check(form: Any, s: str, what: str) -> str:
    if not form.match(s) or len(s) > _TOPIC_MAX:
        raise Error("bad", "this is no %s" % what, repr(s))
    return s


# ---- The core: bytes in, events out.  No I/O; the time is told.


class _Broken(Exception):
    """What came is no protocol 2, and nothing after it can be read."""


class _Frame:
    __slots__ = ("type", "flags", "code", "fds", "session", "id", "time", "to", "sender", "body", "size")

    def __init__(self, b: bytearray, at: int, head: Tuple[int, ...]) -> None:
        self.size, self.type, self.flags, self.code, self.fds, self.session, self.id, self.time, to, sender, ext = head
        start = at + _HEADER.size
        self.to = bytes(b[start:start + to]).decode("utf-8", "replace")
        self.sender = bytes(b[start + to:start + to + sender]).decode("utf-8", "replace")
        self.body = bytes(memoryview(b)[start + to + sender + ext:at + self.size])


class _Out:
    """A frame on its way out: what is left of it, descriptors of its own, and who is told when it is written."""

    __slots__ = ("view", "fds", "ticket", "kept")

    def __init__(self, frame: bytes, fds: List[int], ticket: Optional[Ticket], kept: Optional[_Kept]) -> None:
        self.view, self.fds, self.ticket, self.kept = memoryview(frame), fds, ticket, kept


class _Kept:
    """A message of level handled, until it is acknowledged.  tried: some of it was written once, so that it may have been handled."""

    __slots__ = ("frame", "to", "tried")

    def __init__(self, frame: bytes, to: str) -> None:
        self.frame, self.to, self.tried = frame, to, False


class _Core:
    """The client's state.  phase: new, hello (connected), up, down, or for good: absent (no zhxd, and none is needed), over."""

    def __init__(self, name: str, unix: bool, link_events: bool, auto_done: bool) -> None:
        self.name, self.unix, self.link_events, self.auto_done = name, unix, link_events, auto_done
        self.session = int.from_bytes(os.urandom(8), "little") or 1
        self.flush: Callable[[], None] = lambda: None  # the shell's: something was added to out
        self.phase = "new"
        self.why: Optional[Error] = None  # why phase is down or over
        self.links = 0  # connections so far
        self.retry_at = 0.0
        self.last_id = 0
        self.body_max = _FRAME_MAX
        self.takes_fds = False
        # What a new connection is told again.
        self.names: Dict[str, bool] = {}
        self.patterns: Dict[str, Tuple[int, int]] = {}
        self.watched: Dict[str, bool] = {}
        self.kept: Dict[int, _Kept] = {}  # by id, ascending
        # Under way.
        self.tickets: Dict[int, Ticket] = {}  # by id
        self.unwaited: "collections.OrderedDict[int, Tuple[str, str]]" = collections.OrderedDict()  # what and about, by id
        self.armed = 0  # on which connection the watchdog was last; 0: never
        # Received.
        self.events: Deque[Tuple[Event, int]] = collections.deque()
        self.event_bytes = 0
        self.last: Optional[Message] = None  # to be acknowledged when the next event is asked for
        self.seen: "collections.OrderedDict[Tuple[int, str], int]" = collections.OrderedDict()  # (session, to) to the highest id
        self.open: Dict[Tuple[int, int], bool] = {}  # (session, id) given and not done
        self.asked: "weakref.WeakValueDictionary[Tuple[int, int], Request]" = weakref.WeakValueDictionary()
        # The stream.
        self.out: Deque[_Out] = collections.deque()
        self.out_bytes = 0
        self.inbuf = bytearray()
        self.inpos = 0  # of inbuf's first byte in the stream
        self.batches: Deque[Tuple[int, int, List[int]]] = collections.deque()  # first and last+1 byte of a read, its descriptors
        self._failures = 0
        self._up_at = 0.0
        self._given_up_at = 0.0

    # The connection.

    def connected(self, now: float, cookie: bytes) -> None:
        self.phase, self.links, self._given_up_at = "hello", self.links + 1, now + _HANDSHAKE
        self._put(_PREAMBLE)
        self._put(self._frame(_HELLO, flags=_TAKES_FDS if self.unix else 0, body=cookie))

    def lost(self, now: float, why: str, busy: bool = False) -> None:
        """The connection is no more, or an attempt to make it failed.  busy: which says nothing about the next attempt."""
        if self.phase == "over":
            return
        was_up, never_up = self.phase == "up", self._up_at == 0
        for o in self.out:
            _close(o.fds)
        for _, _, fds in self.batches:
            _close(fds)
        outs = list(self.out)
        self.out.clear()
        self.batches.clear()
        self.inbuf, self.inpos, self.out_bytes = bytearray(), 0, 0
        self.unwaited.clear()
        if was_up and now - self._up_at >= _SETTLED:
            self._failures = 0
        least, most = _BACKOFF
        self.retry_at = now + min(most, least * 2 ** min(self._failures, 20)) * random.uniform(0.5, 1.0)
        self._failures += 1
        if never_up and not busy:
            self.phase, self.why = "over", self.why or Error("closed", why)
        else:
            self.phase, self.why = "down", Error("closed", why)
        for o in outs:
            if o.ticket:
                o.ticket._finish(error=Error("closed", why, o.ticket._about))
        for i in [i for i in self.tickets if i not in self.kept]:
            t = self.tickets.pop(i)
            t._finish(error=Error("closed", why, t._about))
        if was_up and self.link_events:
            self._event(Link("down"), 0)

    def end(self, error: Error) -> None:
        """For good."""
        if self.phase == "over":
            return
        for t in [o.ticket for o in self.out if o.ticket] + list(self.tickets.values()):
            t._finish(error=error)
        self.link_events, keep = False, self.link_events
        self.lost(0, error.text)
        self.phase, self.why = "over", error
        self.tickets.clear()
        self.kept.clear()
        if keep and error.code == "taken":
            self._event(Link("taken"), 0)

    def close_events(self) -> None:
        while self.events:
            event, _ = self.events.popleft()
            if isinstance(event, _Carrier):
                event.close()

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self.phase == "hello" and now >= self._given_up_at:
            raise _Broken("no answer to HELLO in %g s" % _HANDSHAKE)
        for t in [t for t in self.tickets.values() if now >= t._deadline]:
            self.abandon(t, Timeout("timeout", "no answer to %s in time" % t._kind, t._about))

    def abandon(self, t: Ticket, error: Error) -> None:
        """Nobody waits for it any more.  A message that is kept stays so."""
        if self.tickets.get(t._id) is t:
            del self.tickets[t._id]
            if t._kind == "request" and self.phase == "up":
                self._put(self._frame(_CANCEL, id=t._id, to=t._about, sender=self.name))
        t._finish(error=error)

    def wake_at(self) -> float:
        """When tick, or a new attempt to connect, is due."""
        at = min((t._deadline for t in self.tickets.values()), default=float("inf"))
        if self.phase == "hello":
            at = min(at, self._given_up_at)
        elif self.phase == "down":
            at = min(at, self.retry_at)
        return at

    def full(self) -> bool:
        return len(self.events) >= _EVENTS_MAX or self.event_bytes >= _EVENT_BYTES_MAX

    def reads(self) -> bool:
        return not self.full() and self.out_bytes < _OUT_MAX

    def ready(self, kept: bool = False) -> bool:
        """Whether a call may begin.  Raises why none will."""
        if self.phase == "over":
            assert self.why
            raise self.why
        room = self.out_bytes < _OUT_MAX and not (kept and len(self.kept) >= _KEPT_MAX)
        return self.phase == "absent" or self.phase == "up" and room

    # Out.

    def _frame(self, type: int, flags: int = 0, code: int = 0, session: Optional[int] = None, id: Optional[int] = None, time: int = 0,
               to: str = "", sender: str = "", body: bytes = b"", fds: int = 0) -> bytes:
        if id is None:
            self.last_id += 1
            id = self.last_id
        t, f = to.encode("ascii", "replace"), sender.encode("ascii", "replace")
        return _HEADER.pack(_HEADER.size + len(t) + len(f) + len(body), type, flags, code, fds, self.session if session is None else session,
                            id, time, len(t), len(f), 0) + t + f + body

    def _put(self, frame: bytes, fds: Sequence[int] = (), ticket: Optional[Ticket] = None, kept: Optional[_Kept] = None) -> None:
        self.out.append(_Out(frame, list(fds), ticket, kept))
        self.out_bytes += len(frame)

    def sent(self, n: int) -> None:
        """n bytes of out are written, and the descriptors of the frames that they begin."""
        self.out_bytes -= n
        while n:
            o = self.out[0]
            _close(o.fds)
            o.fds = []
            if o.kept:
                o.kept.tried = True
            k = min(n, len(o.view))
            o.view, n = o.view[k:], n - k
            if not o.view:
                self.out.popleft()
                if o.ticket:
                    o.ticket._finish("none")

    def unsendable(self, why: str) -> None:
        """The descriptors of the first frame of out cannot be sent, and none of it has been."""
        o = self.out.popleft()
        self.out_bytes -= len(o.view)
        _close(o.fds)
        head = _HEADER.unpack_from(o.view)
        session, id = head[5], head[6]
        t = o.ticket or (self.tickets.pop(id, None) if session == self.session else None)
        if t:
            t._finish(error=Error("nofds", why, t._about))
        elif head[1] == _REPLY:
            self._put(self._frame(_REPLY, flags=_FAILED, session=session, id=id, body=why.encode("utf-8")))

    def call(self, kind: str, type: int, deadline: float, about: str, answered: bool = True, fds: Sequence[int] = (), keep: bool = False,
             **fields: Any) -> Ticket:
        """Send a frame.  The ticket is done with its answer, or, if it has none, when it is written."""
        t = Ticket(kind, about, deadline)
        if self.phase == "absent":
            t._finish("none", Error("noname", "there is no zhxd", about) if kind == "request" else None)
            return t
        if len(fields.get("body", b"")) > self.body_max:
            raise Error("toobig", "%d bytes, at most %d" % (len(fields["body"]), self.body_max), about)
        if fds and (len(fds) > _FDS_MAX or not self.takes_fds or keep):
            raise Error("nofds", "%d descriptors: up to 4, over a Unix socket, at a level below handled" % len(fds), about)
        own, frame = _dup(fds), self._frame(type, fds=len(fds), **fields)
        t._id = self.last_id
        kept = _Kept(frame, about) if keep else None
        if kept:
            self.kept[t._id] = kept
        if answered:
            self.tickets[t._id] = t
        else:
            self._unwaited(t._id, kind, about)
        self._put(frame, own, None if answered else t, kept)
        return t

    def _unwaited(self, id: int, what: str, about: str) -> None:
        self.unwaited[id] = (what, about)
        if len(self.unwaited) > 1024:
            self.unwaited.popitem(last=False)

    def send(self, to: str, body: Body, level: str, fds: Sequence[int], hold: bool, expires: float, deadline: float) -> Ticket:
        code = _code(_LEVELS, level, "level")
        return self.call("send", _MESSAGE, deadline, _check(_NAME, to, "name"), level != "none", fds, level == "handled", code=code,
                         flags=0 if hold else _NO_HOLD, time=_milliseconds(expires), to=to, sender=self.name, body=_bytes(body))

    def request(self, to: str, body: Body, fds: Sequence[int], hold: bool, now: float, deadline: float) -> Ticket:
        return self.call("request", _REQUEST, deadline, _check(_NAME, to, "name"), True, fds, flags=0 if hold else _NO_HOLD,
                         time=_milliseconds(max(deadline - now, 0.001)), to=to, sender=self.name, body=_bytes(body))

    def publish(self, topic: str, body: Body, retain: bool, level: str, deadline: float) -> Ticket:
        code = _code(_LEVELS[:2], level, "level")
        return self.call("publish", _PUBLISH, deadline, _check(_TOPIC, topic, "topic"), level != "none", code=code,
                         flags=_RETAIN if retain else 0, to=topic, sender=self.name, body=_bytes(body))

    def register(self, name: str, deadline: float) -> Ticket:
        return self.call("register", _REGISTER, deadline, _check(_NAME, name, "name"), sender=name)

    def subscribe(self, pattern: str, policy: str, limit: int, deadline: float) -> Ticket:
        t = self.call("subscribe", _SUBSCRIBE, deadline, _check(_PATTERN, pattern, "pattern"), to=pattern, sender=self.name,
                      code=_code(_POLICIES, policy, "policy"), time=limit)
        t._value = (_POLICIES.index(policy), limit)
        return t

    def watch(self, name: str, deadline: float) -> Ticket:
        return self.call("watch", _WATCH, deadline, _check(_NAME, name, "name"), to=name)

    def forget(self, kind: str, about: str, deadline: float) -> Ticket:
        (self.patterns if kind == "unsubscribe" else self.watched).pop(about, None)
        return self.call(kind, _UNSUBSCRIBE if kind == "unsubscribe" else _UNWATCH, deadline, about, False,
                         to=_check(_PATTERN, about, "name or pattern"))

    def feed(self, what: int, checkpoint: str, deadline: float) -> Ticket:
        if not self.name:
            raise Error("bad", "a watchdog is of a name, and this client has none: $ZHX_NAME is not set")
        if what and self.armed not in (0, self.links):
            # A new connection may be to a new zhxd.  It is armed again with the program's next sign of life and not before: the
            # library gives none of its own.
            self.call("feed", _FEED, deadline, self.name, False, code=0, sender=self.name)
        if not what or self.armed:
            self.armed = self.links
        return self.call("feed", _FEED, deadline, self.name, False, code=what, sender=self.name,
                         to=_check(_NAME, checkpoint, "name of a checkpoint") if what == 2 else "")

    def done(self, m: Message) -> None:
        if self.open.pop((m._session, m._id), None) and self.phase == "up":
            # On whatever connection there is now.  If there is none, the message comes again, is known, and is acknowledged then.
            self._put(self._frame(_ACK, code=3, session=m._session, id=m._id))
            self.flush()

    def reply(self, r: Request, flags: int, body: bytes, fds: Sequence[int]) -> bool:
        if r.cancelled or self.phase != "up" or r._link != self.links:
            return False
        if len(body) > self.body_max:
            raise Error("toobig", "%d bytes, at most %d" % (len(body), self.body_max), r.sender)
        if fds and (len(fds) > _FDS_MAX or not self.takes_fds):
            raise Error("nofds", "up to 4, over a Unix socket", r.sender)
        self._put(self._frame(_REPLY, flags=flags, session=r._session, id=r._id, sender=r.to, body=body, fds=len(fds)), _dup(fds))
        r._link = None
        self.flush()
        return True

    # In.

    def feed_bytes(self, now: float, data: bytes, fds: List[int]) -> None:
        """What one read gave.  Raises _Broken."""
        if fds:
            at = self.inpos + len(self.inbuf)
            self.batches.append((at, at + len(data), fds))
            if len(self.batches) > _BATCHES_MAX:
                raise _Broken("descriptors without frames")
        self.inbuf += data
        at = 0
        while len(self.inbuf) - at >= _HEADER.size and self.phase != "over":
            head = _HEADER.unpack_from(self.inbuf, at)
            size, nfds = head[0], head[4]
            if size > _FRAME_MAX or size < _HEADER.size + head[8] + head[9] + head[10] or nfds > _FDS_MAX:
                raise _Broken("a frame of %d bytes with %d descriptors cannot be" % (size, nfds))
            if len(self.inbuf) - at < size:
                break
            own = self._descriptors(self.inpos + at, nfds)
            f = _Frame(self.inbuf, at, head)
            at += size
            self._take(now, f, own)
        del self.inbuf[:at]
        self.inpos += at

    def _descriptors(self, at: int, n: int) -> Optional[List[int]]:
        """The n descriptors of the frame whose first byte is at; None: they are not all there."""
        while self.batches and self.batches[0][1] <= at:  # of no frame
            _close(self.batches.popleft()[2])
        if not n:
            return []
        if not self.batches or self.batches[0][0] > at:
            return None
        fds = self.batches.popleft()[2]
        if len(fds) != n:
            _close(fds)
            return None
        return fds

    def _event(self, event: Event, size: int) -> None:
        self.events.append((event, size))
        self.event_bytes += size

    def _take(self, now: float, f: _Frame, fds: Optional[List[int]]) -> None:
        if self.phase == "hello":
            _close(fds or ())
            self._take_welcome(now, f)
        elif fds is None and f.type in (_MESSAGE, _REQUEST):
            self._event(Refused("receive", Error("nofds", "a message's descriptors were lost on their way into this process", f.sender)), 0)
        elif f.type == _MESSAGE or f.type == _REQUEST:
            self._take_message(f, fds or [])
        elif f.type == _REPLY:
            t = self.tickets.get(f.id) if f.session == self.session else None
            if t is None or t._kind != "request":
                _close(fds or ())
                return
            del self.tickets[f.id]
            if fds is None:
                t._finish(error=Error("nofds", "the descriptors of the reply were lost on their way into this process", t._about))
            elif f.flags & _FAILED:
                _close(fds)
                t._finish(error=Failed(f.body, t._about))
            else:
                t._finish(Reply(f.sender, f.body, fds))
        else:
            _close(fds or ())
            if f.type == _ACK and f.session == self.session:
                self._take_ack(f)
            elif f.type == _ERROR:
                self._take_error(f)
            elif f.type == _CANCEL:
                r = self.asked.get((f.session, f.id))
                if r is not None:
                    r.cancelled = True
            elif f.type == _PUBLISH:
                self._event(Publication(f), f.size)
            elif f.type == _GAP:
                self._event(Gap(f.to, f.id), f.size)
            elif f.type == _STATE:
                for t in [t for t in self.tickets.values() if t._kind == "watch" and t._about == f.to]:
                    del self.tickets[t._id]
                    self.watched[f.to] = True
                    t._finish()
                self._event(State(f), f.size)
            # Another type is a later version's.

    def _take_welcome(self, now: float, f: _Frame) -> None:
        if f.type == _ERROR:
            if self._up_at == 0:
                self.why = _error(f)
            raise _Broken("zhx refuses the connection: " + f.body.decode("utf-8", "replace"))
        if f.type != _WELCOME or f.code != _VERSION:
            raise _Broken("no WELCOME")
        again, self._up_at, self.phase = self._up_at != 0, now, "up"
        self.body_max = min(f.id, _FRAME_MAX - _HEADER.size - 2 * 255)
        self.takes_fds = self.unix and bool(f.flags & _TAKES_FDS)
        for name in self.names:
            self._again("register", name, _REGISTER, sender=name)
        for pattern, (policy, limit) in self.patterns.items():
            self._again("subscribe", pattern, _SUBSCRIBE, to=pattern, sender=self.name, code=policy, time=limit)
        for name in self.watched:
            self._again("watch", name, _WATCH, to=name)
        receivers = set()
        for k in self.kept.values():
            frame = k.frame
            if k.tried and k.to not in receivers:
                frame = frame[:5] + bytes([frame[5] | _REPEAT]) + frame[6:]
            receivers.add(k.to)
            self._put(frame, kept=k)
        if again and self.link_events:
            self._event(Link("up"), 0)

    def _again(self, what: str, about: str, type: int, **fields: Any) -> None:
        self._put(self._frame(type, **fields))
        self._unwaited(self.last_id, what, about)

    def _take_message(self, f: _Frame, fds: List[int]) -> None:
        if f.type == _REQUEST:
            r = Request(self, f, fds)
            self.asked[f.session, f.id] = r
            self._event(r, f.size)
            return
        if f.code == 3:
            # Ids grow to each name by itself, so that is how they are remembered: of a program with two names, one may be
            # registered, and given what waits for it, before the other.
            sender = (f.session, f.to)
            highest = self.seen.pop(sender, None)
            self.seen[sender] = max(f.id, highest or 0)
            if len(self.seen) > _SEEN_MAX:
                self.seen.popitem(last=False)
            if highest is not None:
                if f.id <= highest:
                    _close(fds)
                    if (f.session, f.id) not in self.open:
                        self._put(self._frame(_ACK, code=3, session=f.session, id=f.id))
                    return
                f.flags &= ~_REPEAT
            self.open[f.session, f.id] = True
        self._event(Message(self, f, fds), f.size)

    def _take_ack(self, f: _Frame) -> None:
        self.kept.pop(f.id, None)
        t = self.tickets.pop(f.id, None)
        if t is None:
            return
        if t._kind == "register":
            self.names[t._about] = True
        elif t._kind == "subscribe":
            self.patterns[t._about] = t._value
        elif t._kind == "watch":
            self.tickets[f.id] = t  # STATE is its answer
            return
        t._finish(None if t._kind in ("register", "subscribe") else _word(_LEVELS, f.code))

    def _take_error(self, f: _Frame) -> None:
        error = _error(f)
        if error.code == "taken":
            self.end(error)
        elif f.session == self.session:
            self.kept.pop(f.id, None)
            t = self.tickets.pop(f.id, None)
            what, about = self.unwaited.pop(f.id, ("", ""))
            if t is not None:
                t._finish(error=error)
            elif what:
                if what == "subscribe":
                    self.patterns.pop(about, None)
                self._event(Refused(what, error), 0)

    def next(self) -> Optional[Event]:
        """The oldest event."""
        while self.events:
            event, size = self.events.popleft()
            self.event_bytes -= size
            if isinstance(event, Request) and event.cancelled:
                event.close()
                continue
            if self.auto_done and isinstance(event, Message) and event.level == "handled":
                self.last = event
            return event
        return None

    def done_last(self) -> None:
        last, self.last = self.last, None
        if last is not None:
            last.done()


def _milliseconds(seconds: float) -> int:
    return min(max(int(seconds * 1000 + 0.999), 0), 0xFFFFFFFF) if seconds < 4e6 else (0 if seconds == float("inf") else 0xFFFFFFFF)


def _error(f: _Frame) -> Error:
    return Error(_word(_CODES, f.code), f.body.decode("utf-8", "replace"), f.to, f.time / 1000.0 if f.time else None)


def _dup(fds: Sequence[int]) -> List[int]:
    """Copies, so that the caller may close its own at once."""
    own: List[int] = []
    try:
        for fd in fds:
            own.append(os.dup(fd))
    except OSError:
        _close(own)
        raise
    return own


def _poll_time(at: float) -> Optional[int]:
    """Milliseconds until then, as poll wants them."""
    left = at - time.monotonic()
    return None if left == float("inf") else int(min(max(left, 0) * 1000 + 0.999, 1 << 30))


# ---- The shells.


class _Shell:
    """What both clients have in common: the socket."""

    def __init__(self, address: Optional[str] = None, name: Optional[str] = None, *, cookie: Optional[bytes] = None, register: bool = True,
                 timeout: float = _TIMEOUT, optional: bool = False, auto_done: bool = True, link_events: bool = False) -> None:
        self._address = address or os.environ.get("ZHX_SOCKET") or _SOCKET
        self._cookie, self._timeout, self._optional, self._register = cookie, timeout, optional, register
        self._family: int = socket.AF_UNIX
        self._where: Any = self._address
        if self._address.startswith("tcp:"):
            host, _, port = self._address[4:].rpartition(":")
            host = host.strip("[]")
            if not host or not port.isdigit() or int(port) > 65535:
                raise Error("bad", "an address is a path or tcp:HOST:PORT", self._address)
            self._family, self._where = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))
        name = os.environ.get("ZHX_NAME", "") if name is None else name
        if name:
            _check(_NAME, name, "name")
        self._core = _Core(name, self._family == socket.AF_UNIX, link_events, auto_done)
        self._sock: Optional[socket.socket] = None
        self._connecting = False  # the kernel does; the core does not know yet
        self._start()

    def _start(self) -> None:
        """The rest of making a client."""
        raise NotImplementedError

    def _call(self, begin: Callable[[float], Ticket], timeout: Optional[float], kept: bool = False) -> Any:
        """Begin something and wait for its end; in AsyncClient an awaitable that does."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The name that this client sends as, "" if none."""
        return self._core.name

    @property
    def body_max(self) -> int:
        """The largest body in bytes; a larger one raises Error toobig, and is best sent as the descriptor of a memfd."""
        return self._core.body_max

    def _dial(self, now: float) -> None:
        """Begin to connect."""
        sock = None
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM)
            sock.setblocking(False)
            if self._family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(self._where)
        except (OSError, ValueError) as e:
            code = getattr(e, "errno", None) or errno.EINVAL
        if code not in (0, errno.EINPROGRESS):
            if sock:
                sock.close()
            self._no_connection(now, code)
            return
        self._sock, self._connecting = sock, code != 0
        if code == 0:
            self._dialled(now)

    def _dialled(self, now: float) -> None:
        """The kernel has connected, or has not."""
        assert self._sock
        if self._connecting:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._drop()
                self._no_connection(now, code)
                return
            self._connecting = False
        cookie = self._cookie or b""
        if not cookie and self._family != socket.AF_UNIX and os.environ.get("ZHX_COOKIE"):
            try:  # each time anew: another zhxd has another cookie
                with open(os.environ["ZHX_COOKIE"], "rb") as f:
                    cookie = f.read(4096)
            except OSError as e:
                self._core.why = Error("denied", "the cookie cannot be read: %s" % e)
                self._lose(now, "the cookie cannot be read: %s" % e)
                return
        self._core.connected(now, cookie)

    def _no_connection(self, now: float, code: int) -> None:
        if self._optional and self._core.phase == "new" and code in (errno.ENOENT, errno.ECONNREFUSED):
            self._core.phase = "absent"
            return
        # EAGAIN: its queue of connections is full at this moment.
        self._core.lost(now, "connect to zhx at %s: %s" % (self._address, os.strerror(code)), code == errno.EAGAIN)

    def _drop(self) -> None:
        sock, self._sock, self._connecting = self._sock, None, False
        if sock:
            sock.close()

    def _lose(self, now: float, why: str) -> None:
        self._drop()
        self._core.lost(now, why)

    def _read(self, now: float) -> None:
        """Read once, what is there.  Raises OSError, _Broken."""
        assert self._sock
        fds = array.array("i")
        if self._core.unix:
            space = socket.CMSG_SPACE(_FDS_MAX * fds.itemsize)
            data, control, _, _ = self._sock.recvmsg(_CHUNK, space, socket.MSG_CMSG_CLOEXEC)
            for level, type, value in control:
                if level == socket.SOL_SOCKET and type == socket.SCM_RIGHTS:
                    fds.frombytes(value[:len(value) - len(value) % fds.itemsize])
        else:
            data = self._sock.recv(_CHUNK)
        if not data:
            raise _Broken("zhx closed the connection")
        self._core.feed_bytes(now, data, fds.tolist())
        if self._core.phase == "over":
            self._drop()

    def _write(self) -> None:
        """Write what the socket takes.  Raises OSError."""
        assert self._sock
        core = self._core
        while core.out:
            first = core.out[0]
            try:
                if first.fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", first.fds))]
                    core.sent(self._sock.sendmsg([first.view], rights, socket.MSG_NOSIGNAL))
                    continue
                views = []
                for o in core.out:
                    if o.fds or len(views) == 64:
                        break
                    views.append(o.view)
                core.sent(self._sock.sendmsg(views, (), socket.MSG_NOSIGNAL))
            except BlockingIOError:
                return
            except OSError as e:
                if not first.fds or e.errno not in (errno.ETOOMANYREFS, errno.EBADF):
                    raise
                core.unsendable(str(e))

    def _advance(self, readable: bool, writable: bool) -> None:
        """Do what can be done without waiting."""
        now, core = time.monotonic(), self._core
        try:
            if self._sock and self._connecting:
                if writable or readable:
                    self._dialled(now)
            elif self._sock and readable:
                try:
                    self._read(now)
                except (BlockingIOError, InterruptedError):
                    pass
            core.tick(now)
            if not self._sock and (core.phase == "new" or core.phase == "down" and now >= core.retry_at):
                self._dial(now)
            if self._sock and not self._connecting:
                self._write()
        except (_Broken, OSError) as e:
            try:  # zhx may have said why it closes, while this end was still writing: that the name is taken, say
                while self._sock and core.phase == "up" and core.reads() and not isinstance(e, _Broken):
                    self._read(now)
            except (_Broken, OSError):
                pass
            self._lose(time.monotonic(), str(e))
        if core.phase == "over":
            self._drop()

    def _too_late(self) -> None:
        if self._core.phase != "up":
            raise self._core.why or Timeout("timeout", "no connection to zhx yet")
        raise Timeout("timeout", "zhx takes nothing")

    def _deadline(self, timeout: Optional[float]) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    def _end(self) -> None:
        """Close: what is written is delivered, the rest is not."""
        if self._sock and not self._connecting:
            try:
                self._write()
            except OSError:
                pass
        self._drop()
        if self._core.phase != "over":
            self._core.end(Error("closed", "this client is closed"))
        self._core.close_events()

    def send(self, to: str, body: Body = b"", level: str = "accepted", *, fds: Sequence[int] = (), hold: bool = True, expires: float = 0,
             timeout: Optional[float] = None) -> Any:
        """Send a message and wait until level is reached: none (written to zhx; what becomes of it then only a Refused tells),
        accepted (zhx has delivered or holds it), written (it is in the receiver's socket), handled (its receiver says that it is
        done: kept, and sent again when the connection is lost, until then).

        Returns the level reached: a receiver of protocol 1 cannot say handled, and gives written.
        fds: up to 4 descriptors, which stay the caller's; not with handled. hold: whether it may wait while its receiver
        restarts, at most expires seconds (0: as the configuration says). timeout: seconds to wait for the answer.
        Raises Error: noname restarting stopped failed full denied toobig expired stuck nofds bad closed timeout.
        """
        return self._call(lambda d: self._core.send(to, body, level, fds, hold, expires, d), timeout, level == "handled")

    def request(self, to: str, body: Body = b"", *, fds: Sequence[int] = (), hold: bool = True, timeout: Optional[float] = None) -> Any:
        """Ask, and wait for the reply, timeout seconds: then it is cancelled, and Timeout raised.  fds and hold as send has them.

        Raises Failed if the receiver answered so; Error as send does, and: gone (the receiver ended), unanswered (it cannot reply).
        """
        return self._call(lambda d: self._core.request(to, body, fds, hold, time.monotonic(), d), timeout)

    def publish(self, topic: str, body: Body = b"", *, retain: bool = False, level: str = "accepted",
                timeout: Optional[float] = None) -> Any:
        """Publish to all who subscribed to the topic: words of A-Z a-z 0-9 _ - with dots between them, at most 200 bytes.

        retain: kept for who subscribes later; an empty body takes what is kept away. level: accepted, or none: do not wait.
        Raises Error: denied full toobig bad closed timeout.
        """
        return self._call(lambda d: self._core.publish(topic, body, retain, level, d), timeout)

    def subscribe(self, pattern: str, policy: str = "oldest", limit: int = 0, *, timeout: Optional[float] = None) -> Any:
        """Receive what is published to topics like this: * is any one word, > at the end one word or more.  Kept values come first.

        policy: what is lost when this client is too slow, and told by a Gap: oldest, newest, latest (all but it), or disconnect.
        limit: how many may wait in zhx, 0 for 64.  Raises Error: denied full bad closed timeout.
        """
        return self._call(lambda d: self._core.subscribe(pattern, policy, limit, d), timeout)

    def unsubscribe(self, pattern: str, *, timeout: Optional[float] = None) -> Any:
        """End a subscription.  What was published before may still come.  Raises Error: bad closed timeout."""
        return self._call(lambda d: self._core.forget("unsubscribe", pattern, d), timeout)

    def watch(self, name: str, *, timeout: Optional[float] = None) -> Any:
        """Receive the State of a name, now and whenever it changes.  Raises Error: bad closed timeout."""
        return self._call(lambda d: self._core.watch(name, d), timeout)

    def unwatch(self, name: str, *, timeout: Optional[float] = None) -> Any:
        """End it.  Raises Error: bad closed timeout."""
        return self._call(lambda d: self._core.forget("unwatch", name, d), timeout)

    def register(self, name: str, *, timeout: Optional[float] = None) -> Any:
        """Receive what is sent to this name too, up to 16 names in all.  Raises Error: denied full bad closed timeout."""
        return self._call(lambda d: self._core.register(name, d), timeout)

    def arm(self, *, timeout: Optional[float] = None) -> Any:
        """Arm the watchdog of this client's name: from now on zhx restarts the program if feeds fail to come.

        It stays armed when the connection is lost.  A refusal comes as Refused.  Raises Error: bad (no name) closed timeout.
        """
        return self._call(lambda d: self._core.feed(0, "", d), timeout)

    def feed(self, *, timeout: Optional[float] = None) -> Any:
        """A sign of life.  As arm otherwise."""
        return self._call(lambda d: self._core.feed(1, "", d), timeout)

    def checkpoint(self, name: str, *, timeout: Optional[float] = None) -> Any:
        """The program passes the point of this name.  As arm otherwise."""
        return self._call(lambda d: self._core.feed(2, name, d), timeout)


class Client(_Shell):
    """A connection to zhx, for programs that wait.  Not for several threads at a time: let each have its own.

    address: a path, or tcp:HOST:PORT (HOST best a number); None: $ZHX_SOCKET, else /run/zhx/zhx.sock.
    name: sent as, and received under; None: $ZHX_NAME; "": none. register: whether what is sent to the name comes here; a program
    that only sends or feeds under a name that another process receives under says False.
    cookie: over TCP; None: the content of the file $ZHX_COOKIE. timeout: of each call that says none, and of opening.
    optional: without a zhxd at this moment, every call succeeds without effect, but request, which raises noname.
    auto_done: see the module; False: only done() acknowledges, for programs that handle several messages at a time.
    link_events: give Link events too.

    Opening raises Error: closed (nobody listens there), denied (the name, the cookie), bad (a name or address that cannot be), timeout.
    Every call raises closed or timeout where there is no connection, and taken once another connection has the name: this client
    does not come back by itself then.  The connection is kept up only while a call waits, receive best of all.
    """

    def _start(self) -> None:
        self._core.flush = self._flush
        self._finished = False  # a ticket is, since receive began
        try:
            self._until(self._core.ready, self._deadline(None))
            if self._register and self._core.name:
                self.register(self._core.name)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._core.done_last()
        self.close()

    def __iter__(self) -> Iterator[Event]:
        """Events, without end.  Raises what receive does."""
        while True:
            event = self.receive()
            if event is not None:
                yield event

    def _step(self, true: Callable[[], bool], deadline: float, wake: Sequence[int] = ()) -> bool:
        """Wait once for anything, unless it is true now; whether one of wake is readable."""
        self._advance(False, False)
        core, poll = self._core, select.poll()
        if core.phase == "over" or true():
            return False
        for fd in wake:
            poll.register(fd, select.POLLIN)
        if self._sock:
            mask = select.POLLOUT if self._connecting or core.out else 0
            poll.register(self._sock, mask | (select.POLLIN if core.reads() else 0))
        ready = dict(poll.poll(_poll_time(min(deadline, core.wake_at()))))
        mine = ready.pop(self._sock.fileno(), 0) if self._sock else 0
        if mine:
            # A hang-up is found by reading, also where nothing more is to be read: what came before it is there still.
            self._advance(bool(mine & ~select.POLLOUT), bool(mine & select.POLLOUT))
        return bool(ready)

    def _until(self, true: Callable[[], bool], deadline: float) -> None:
        while not true():
            if time.monotonic() >= deadline:
                self._too_late()
            if self._core.full():
                raise Error("full", "so many events wait for receive() that no answer can be read")
            self._step(true, deadline)

    def _flush(self) -> None:
        """Write what a reply or an acknowledgement added.  Bounded by the client's timeout; what is left goes with the next call."""
        deadline = self._deadline(None)
        while self._core.out and self._core.phase == "up" and time.monotonic() < deadline:
            self._advance(False, False)
            if self._core.out and self._sock:
                poll = select.poll()
                poll.register(self._sock, select.POLLOUT)
                poll.poll(_poll_time(min(deadline, self._core.wake_at())))

    def _call(self, begin: Callable[[float], Ticket], timeout: Optional[float], kept: bool = False) -> Any:
        deadline = self._deadline(timeout)
        self._until(lambda: self._core.ready(kept), deadline)
        t = begin(deadline)
        try:
            self._advance(False, False)
            self._until(lambda: t.done, deadline)
        except Error as e:
            self._core.abandon(t, e)
        return t.result()

    def _begin(self, begin: Callable[[float], Ticket], timeout: Optional[float], kept: bool = False) -> Ticket:
        def told() -> None:
            self._finished = True
        deadline = self._deadline(timeout)
        self._until(lambda: self._core.ready(kept), deadline)
        t = begin(deadline)
        t._told = told
        self._advance(False, False)
        return t

    def close(self) -> None:
        """Close the connection.  Messages of level handled that were not acknowledged are given up, and their receivers may have them."""
        self._end()

    def receive(self, timeout: Optional[float] = None, wake: Sequence[int] = ()) -> Optional[Event]:
        """The next event: see Event.  timeout: seconds, None without end, 0 only what is there.

        None: the time is over, a ticket of post or ask is done, or one of the descriptors of wake can be read.
        Acknowledges the message that was received before, unless auto_done is False.  Raises Error taken and closed (by close).
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._core.done_last()
        while True:
            event = self._core.next()
            if event is not None:
                return event
            if self._finished:
                self._finished = False
                return None
            if self._core.phase == "over":
                raise self._core.why or Error("closed")
            woken = self._step(lambda: bool(self._core.events) or self._finished, deadline, wake)
            if not self._core.events and not self._finished and (woken or time.monotonic() >= deadline):
                return None

    def post(self, to: str, body: Body = b"", level: str = "handled", *, fds: Sequence[int] = (), hold: bool = True, expires: float = 0,
             timeout: Optional[float] = None) -> Ticket:
        """As send, but does not wait for the answer, only, timeout seconds at most, for room to write (256 messages of level
        handled may be under way): the answer comes while other calls, best receive, wait.  With a timeout of that kind it must come
        by then too."""
        return self._begin(lambda d: self._core.send(to, body, level, fds, hold, expires, d), timeout, level == "handled")

    def ask(self, to: str, body: Body = b"", *, fds: Sequence[int] = (), hold: bool = True, timeout: Optional[float] = None) -> Ticket:
        """As request, but does not wait: the answer comes while other calls, best receive, wait."""
        return self._begin(lambda d: self._core.request(to, body, fds, hold, time.monotonic(), d), timeout)


def connect(address: Optional[str] = None, name: Optional[str] = None, **options: Any) -> Client:
    """Open a Client: see there."""
    return Client(address, name, **options)


class AsyncClient(_Shell):
    """The same with asyncio: see Client for what the parameters and methods mean.  Any tasks of one event loop may use it together;
    where several receive, auto_done=False is for them.  Opened by `async with`, or `await open()`; reads and reconnects whenever
    the loop runs.  A call that is cancelled is as one whose time is over.  A full queue of events, 4,096, ends reading until they
    are received, answers included."""

    def _start(self) -> None:
        self._core.flush = self._soon
        self._loop: Any = None
        self._timer: Any = None
        self._due = False  # _turn is scheduled
        self._selected: Tuple[Optional[socket.socket], bool, bool] = (None, False, False)  # what the loop looks at, for what
        self._waiting: Deque[Any] = collections.deque()  # futures of who waits for any progress

    async def open(self) -> AsyncClient:
        """Connect and register, once.  Raises as Client."""
        self._loop = asyncio.get_event_loop()
        self._turn()
        try:
            await self._until(self._core.ready, self._deadline(None))
            if self._register and self._core.name:
                await self.register(self._core.name)
        except BaseException:
            self.close()
            raise
        return self

    async def __aenter__(self) -> AsyncClient:
        return await self.open()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._core.done_last()
        self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self.receive()
        assert event is not None
        return event

    def _soon(self) -> None:
        if not self._due and self._loop is not None:
            self._due = True
            self._loop.call_soon(self._turn)

    def _drop(self) -> None:
        self._select(None, False, False)  # the loop must forget a socket before it is closed
        super()._drop()

    def _select(self, sock: Optional[socket.socket], reads: bool, writes: bool) -> None:
        if self._selected == (sock, reads, writes):
            return
        old, old_reads, old_writes = self._selected
        self._selected = (sock, reads, writes)
        if old_reads:
            self._loop.remove_reader(old)
        if old_writes:
            self._loop.remove_writer(old)
        if reads:
            self._loop.add_reader(sock, self._turn, True, False)
        if writes:
            self._loop.add_writer(sock, self._turn, False, True)

    def _turn(self, readable: bool = False, writable: bool = False) -> None:
        """Do what can be done without waiting, and have the loop call again when there is more."""
        self._due = False
        self._advance(readable, writable)
        core, sock = self._core, self._sock
        if sock is not None:
            self._select(sock, core.reads() and not self._connecting, self._connecting or bool(core.out))
        if self._timer:
            self._timer.cancel()
            self._timer = None
        at = core.wake_at()
        if at != float("inf") and core.phase != "over":
            self._timer = self._loop.call_later(max(at - time.monotonic(), 0), self._turn)
        waiting, self._waiting = self._waiting, collections.deque()
        for w in waiting:
            if not w.done():
                w.set_result(None)

    async def _wait(self, future: Any, deadline: float) -> None:
        timer = None
        if deadline != float("inf"):
            timer = self._loop.call_later(max(deadline - time.monotonic(), 0), lambda: future.done() or future.set_result(None))
        try:
            await future
        finally:
            if timer:
                timer.cancel()

    async def _until(self, true: Callable[[], bool], deadline: float) -> None:
        """Wait for any progress until it is true.  Raises Timeout, or why there is no connection."""
        while not true():
            if time.monotonic() >= deadline:
                self._too_late()
            future = self._loop.create_future()
            self._waiting.append(future)
            await self._wait(future, deadline)

    async def _call(self, begin: Callable[[float], Ticket], timeout: Optional[float], kept: bool = False) -> Any:
        deadline = self._deadline(timeout)
        await self._until(lambda: self._core.ready(kept), deadline)
        t = begin(deadline)
        if not t.done:
            future = self._loop.create_future()
            t._told = lambda: future.done() or future.set_result(None)
            self._turn()
            try:
                await self._wait(future, deadline)
            finally:  # cancelled, or too late
                if not t.done:
                    self._core.abandon(t, Timeout("timeout", "no answer to %s in time" % t._kind, t._about))
                    self._soon()
        return t.result()

    def close(self) -> None:
        """As Client.close."""
        self._end()
        if self._loop is not None:
            self._turn()

    async def receive(self, timeout: Optional[float] = None) -> Optional[Event]:
        """As Client.receive; None: the time is over."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        core = self._core
        core.done_last()
        while True:
            event = core.next()
            if event is not None:
                if self._sock and not self._selected[1]:
                    self._soon()  # there may be room again to read
                return event
            if core.phase == "over":
                raise core.why or Error("closed")
            if time.monotonic() >= deadline:
                return None
            future = self._loop.create_future()
            self._waiting.append(future)
            await self._wait(future, deadline)
