#!/usr/bin/env python3
"""The conformance driver of zhx.py: commands on stdin, one a line, answers and events on stdout.  --asyncio drives AsyncClient.

It uses only what the library documents.  Commands: open, send TO LEVEL TEXT, sendfd TO TEXT, big TO N, request TO MS TEXT,
publish TOPIC TEXT, retain TOPIC TEXT, subscribe PATTERN POLICY, unsubscribe PATTERN, watch NAME, feed arm|alive, checkpoint NAME,
sleep MS.  It ends at the end of stdin.
"""

import asyncio
import os
import select
import sys
import tempfile
import time

import zhx

SLOW = 0.3  # until a message that begins with "slow" is acknowledged
OPTIONS = dict(auto_done=False, link_events=True, timeout=30.0)


def say(*words):
    """Print a line; None is no word of it."""
    print(*[w for w in words if w is not None], flush=True)


def content(fd):
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0).decode("utf-8", "replace")


def file_of(text):
    """A descriptor of an unlinked file that holds text."""
    with tempfile.TemporaryFile() as f:
        f.write(text.encode())
        f.flush()
        return os.dup(f.fileno())


def show(event):
    """Print an event, and answer it.  A message that is to be acknowledged later is returned."""
    if event.kind == "message":
        if event.fds:
            say("fd", event.sender, content(event.fds[0]))
            event.close()
        else:
            say("message", event.sender, "repeat" if event.repeat else None, "v1" if event.from_v1 else None,
                event.text if event.from_v1 else event.body.decode("utf-8", "replace"))
        if event.text.startswith("slow"):
            return event
        event.done()
    elif event.kind == "request":
        say("request", event.sender, event.text)
        if event.text == "fail":
            event.fail("no")
        elif event.text != "hang":
            event.reply("re: " + event.text)
    elif event.kind == "publication":
        say("publication", event.topic, "kept" if event.kept else None, event.text)
    elif event.kind == "gap":
        say("gap", event.pattern, event.lost)
    elif event.kind == "state":
        say("state", event.name, event.state)
    elif event.kind == "link":
        say(event.state)
    elif event.kind == "refused":
        print("refused:", event.what, event.error, file=sys.stderr, flush=True)
    return None


def command(line):
    """The words of a line, as a call: the library's method, its arguments, and how its result is told."""
    verb, _, rest = line.partition(" ")

    def fields(n):
        words = rest.split(" ", n - 1)
        return words + [""] * (n - len(words))

    def ack(level):
        return "ack " + level

    def ok(_):
        return "ok"

    if verb == "send":
        to, level, text = fields(3)
        return "send", (to, text, level), {}, ack
    if verb == "sendfd":
        to, text = fields(2)
        return "send", (to, "fd", "written"), {"fds": [file_of(text)]}, ack
    if verb == "big":
        to, n = fields(2)
        return "send", (to, b"x" * int(n), "accepted"), {}, ack
    if verb == "request":
        to, ms, text = fields(3)
        return "request", (to, text), {"timeout": int(ms) / 1000.0}, lambda reply: "reply " + reply.text
    if verb in ("publish", "retain"):
        topic, text = fields(2)
        return "publish", (topic, text), {"retain": verb == "retain"}, ack
    if verb == "subscribe":
        return "subscribe", tuple(fields(2)), {}, ok
    if verb in ("unsubscribe", "watch", "checkpoint"):
        return verb, (rest,), {}, ok
    if verb == "feed":
        return ("arm" if rest == "arm" else "feed"), (), {}, ok
    raise SystemExit("conform.py: no command: " + line)


def failure(method, error):
    """How an error is told."""
    if isinstance(error, zhx.Timeout) or method == "request" and error.code == "expired":  # zhx's clock was first
        return "timeout"
    if isinstance(error, zhx.Failed):
        return "failed " + error.text
    return "error " + error.code


def sync():
    client, later, unread = None, [], b""

    def pump(wake):
        """Wait for one event or less."""
        due = min([at for at, _ in later], default=None)
        event = client.receive(None if due is None else max(due - time.monotonic(), 0), wake)
        if event is not None:
            m = show(event)
            if m is not None:
                later.append((time.monotonic() + SLOW, m))
        for entry in [e for e in later if time.monotonic() >= e[0]]:
            later.remove(entry)
            entry[1].done()

    while True:
        while b"\n" not in unread:
            over = client is None
            try:
                if not over:
                    pump([0])
            except zhx.Error:
                over = True
            if over or select.select([0], [], [], 0)[0]:
                got = os.read(0, 65536)
                if not got:
                    if client is not None:
                        client.close()
                    return
                unread += got
        line, _, unread = unread.partition(b"\n")
        line, method, options = line.decode(), "", {}
        try:
            if line == "open":
                client = zhx.Client(**OPTIONS)
                say("ok")
                continue
            if line.startswith("sleep "):
                time.sleep(int(line[6:]) / 1000.0)
                say("ok")
                continue
            method, args, options, tell = command(line)
            if method in ("send", "request"):
                # Not waiting in the library, so that what comes meanwhile is told, and answered, meanwhile.
                ticket = (client.post if method == "send" else client.ask)(*args, **options)
                while not ticket.done:
                    pump([])
                result = ticket.result()
            else:
                result = getattr(client, method)(*args, **options)
            say(tell(result))
        except zhx.Error as e:
            say(failure(method, e))
        finally:
            for fd in options.get("fds", ()):
                os.close(fd)


async def events(client):
    async def done_later(m):
        await asyncio.sleep(SLOW)
        m.done()

    tasks = set()
    try:
        async for event in client:
            m = show(event)
            if m is not None:
                tasks.add(asyncio.ensure_future(done_later(m)))
    except zhx.Error:
        pass


async def asynchronous():
    loop = asyncio.get_event_loop()
    client = reader = None
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        if not line:
            break
        line = line.rstrip("\n")
        method, options = "", {}
        try:
            if line == "open":
                client = await zhx.AsyncClient(**OPTIONS).open()
                reader = asyncio.ensure_future(events(client))
                say("ok")
                continue
            if line.startswith("sleep "):
                time.sleep(int(line[6:]) / 1000.0)
                say("ok")
                continue
            method, args, options, tell = command(line)
            say(tell(await getattr(client, method)(*args, **options)))
        except zhx.Error as e:
            say(failure(method, e))
        finally:
            for fd in options.get("fds", ()):
                os.close(fd)
    if client:
        client.close()
        await reader


if __name__ == "__main__":
    if "--asyncio" in sys.argv[1:]:
        asyncio.run(asynchronous())
    else:
        sync()
