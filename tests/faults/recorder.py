"""The judge: websocket clients that check, frame by frame, what the relay promises, and look at nothing of its inside.

What was published and written stands in a ledger (`Said` for a channel, `Written` for a run), filled by the test's own
workers. A judge goes with each client and compares; what it finds broken it says with the number of the promise.

1 order  2 no duplicates, no inventions  3 no hole that is not flagged  4 the websocket stays  6 the final state
7 never back in time
"""

import asyncio
import base64
import contextlib
import json
import os
import struct
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
FOREVER = float("inf")
READ_IN = 0.5  # seconds from a write until every client holds it (delivery, promise 6)
SLACK = 0.005  # seconds between the relay's reading of the clock and ours; `since` is rounded to a millisecond
FIELDS = {  # in the order in which a run's checks become true, so that each is newer than those it depends on
    "channels": "timestamps:build_channels",
    "outlet": "timestamps:set_outlet",
    "subcatchments": "timestamps:abstract_watershed",
    "landuse": "timestamps:build_landuse",
    "soils": "timestamps:build_soils",
    "climate": "timestamps:build_climate",
}


# ---- ledgers ----


@dataclass
class Said:
    """What was published on a channel: numbers from 0 on, each with when it was handed to Redis and when taken."""

    channel: str
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)  # FOREVER: not known to be taken, so it may come or not
    oversize: set[int] = field(default_factory=set)
    tails: dict[int, bytes] = field(default_factory=dict)

    def next(self, tail=b"", *, oversize=False):
        """The next message; `tail` is its end, `oversize` that the relay may not forward it."""
        number = self.count
        if oversize:
            self.oversize.add(number)
        if tail:
            self.tails[number] = tail
        self.after.append(FOREVER)
        self.before.append(time.time())
        return self._head(number) + tail

    def taken(self, first):
        """Redis has answered for all from `first` on."""
        now = time.time()
        for at in range(first, len(self.after)):
            self.after[at] = now

    def publish(self, redis, tail=b"", **what):
        """One message, taken when this returns -> to how many Redis gave it."""
        number = self.count
        given = redis.publish(self.channel, self.next(tail, **what))
        self.taken(number)
        return given

    def text(self, number):
        """What a client must get: bytes that are no UTF-8 are U+FFFD (contract, section 5)."""
        return (self._head(number) + self.tails.get(number, b"")).decode(errors="replace")

    def _head(self, number):
        return b"%d on %b" % (number, self.channel.encode())

    @property
    def count(self):
        return len(self.before)


@dataclass
class Written:
    """The states a run has been in, in order: (last_modified or None, the true checks)."""

    run: str
    states: list[tuple[int | None, frozenset]] = field(default_factory=lambda: [(None, frozenset())])
    times: list[float] = field(default_factory=lambda: [0.0])  # by state: unix seconds by which Redis had it

    def write(self, redis, checks=None):
        """One HSET, to the next version with the first so many checks true; all as before unless told."""
        version = 1 + max((state[0] or 0 for state in self.states), default=0)
        before = self.states[-1][1]
        names = list(FIELDS)[:checks] if checks is not None else [name for name in FIELDS if name in before]
        self.states.append((version, before | frozenset(names)))
        new = {FIELDS[name]: version * 10 + at for at, name in enumerate(names) if name not in before}
        self.times.append(FOREVER)
        at = len(self.times) - 1
        redis.hset(self.run, mapping={"last_modified": version, **new})
        self.times[at] = time.time()

    def wiped(self):
        """The hash is gone with its Redis."""
        self.states.append((None, frozenset()))
        self.times.append(FOREVER)


# ---- judges ----


class StatusJudge:
    """Of one client of a channel.

    Args:
        said: the channel's ledger.
        version: 2 for a client that asks to be told of holes; a hole that 1 sees is no breach.
    """

    def __init__(self, said, version=2):
        self.said = said
        self.version = version
        self.broken: list[str] = []
        self.got = 0
        self.last = said.count - 1  # what was said before it came is not due
        self.readies: list[float] = []
        self.gaps: list[tuple[float, float]] = []  # (when heard, since)
        self.sizes = 0
        self.missed = 0
        self._open = 0.0  # since when the hole is that no `ready` has closed; None: there is none
        self._holes: list[tuple[float, float]] = []  # closed since the last message

    def frame(self, now, message):
        kind = message.get("type")
        if kind == "status":
            self._status(now, message["data"])
        elif kind == "ready" and self.version == 2:
            self.readies.append(now)
            if self._open is not None:
                self._holes.append((self._open, now))
            self._open = None
        elif kind == "gap" and self.version == 2:
            self._gap(now, message)
        else:
            self.broken.append(f"no client may be sent this: {str(message)[:100]}")

    def _gap(self, now, message):
        if message["reason"] == "size":
            self.sizes += 1
        else:
            self.gaps.append((now, message["since"]))
            self._open = message["since"] if self._open is None else min(self._open, message["since"])

    def _status(self, now, text):
        head = text.partition(" ")[0]
        number = int(head) if head.isascii() and head.isdigit() else -1
        if not 0 <= number < self.said.count or text != self.said.text(number):
            self.broken.append(f"promise 2, no inventions: {text[:100]!r} was not said on {self.said.channel}")
            return
        self.got += 1
        if number == self.last:
            self.broken.append(f"promise 2, no duplicates: {text} came twice")
        elif number < self.last:
            self.broken.append(f"promise 1, order: {text} came after {self.last}")
        else:
            self._missing(range(self.last + 1, number))
            self.last = number
        self._holes.clear()

    def _missing(self, numbers):
        """Numbers that will not come any more."""
        for number in numbers:
            before, after = self.said.before[number], self.said.after[number]
            self.missed += 1
            if self.version == 1 or self._excused(before, after):
                continue
            if self.sizes and number in self.said.oversize:
                self.sizes -= 1
                continue
            since = self._open if self._open is not None else self._holes[-1][0] if self._holes else None
            why = f"the gap says since {since - after:+.3f} s of it" if since else "no gap was told"
            self.broken.append(f"promise 3, no silent hole: {number} on {self.said.channel} is missing, and {why}")

    def _excused(self, before, after):
        if after == FOREVER:
            return True
        holes = self._holes if self._open is None else [*self._holes, (self._open, FOREVER)]
        return any(since <= after + SLACK and before <= until for since, until in holes)

    @property
    def sure(self):
        """Whether it was told that nothing is missing from now on."""
        return self._open is None

    def end(self):
        """Nothing more will come: what is missing at the end is missing, too."""
        self._missing(range(self.last + 1, self.said.count))
        self.last = self.said.count - 1


class PreflightJudge:
    """Of one client of a run.

    Args:
        written: the run's ledger.
        version: 2 for a client that asks for `ready` and `gap`.
    """

    def __init__(self, written, version=2):
        self.written = written
        self.version = version
        self.broken: list[str] = []
        self.got = 0
        self.readies: list[float] = []
        self.gaps: list[tuple[float, float]] = []
        self.sure = False
        self.seen = None  # the state it holds
        self._last = None  # the message that said so
        self._at = 0  # which of the ledger's states that is, at least

    def frame(self, now, message):
        kind = message.get("type")
        if kind == "preflight":
            self._snapshot(message)
        elif kind == "ready" and self.version == 2:
            self.readies.append(now)
            self.sure = True
        elif kind == "gap" and self.version == 2:
            self._gap(now, message["since"])
        else:
            self.broken.append(f"no client may be sent this: {str(message)[:100]}")

    def _gap(self, now, since):
        """What Redis had before the hole began, and half a second for it to be read, must have come before."""
        self.gaps.append((now, since))
        self.sure = False
        due = max(at for at, written in enumerate(self.written.times) if written <= since - READ_IN)
        if (
            self.seen is not None
            and self._at < due
            and self.written.states[due] not in self.written.states[: self._at + 1]
        ):
            late = since - self.written.times[self._at + 1]
            self.broken.append(
                f"promise 3, never silently: {self.written.run} had changed {late:.3f} s before the hole"
            )

    def _snapshot(self, message):
        checks = frozenset(name for name, value in message["checklist"].items() if value)
        state = (message.get("last_modified"), checks)
        self.got += 1
        states = self.written.states
        if message == self._last:
            self.broken.append(f"promise 7: {self.written.run} was told twice that it is {state}")
        elif state == self.seen:
            pass  # something else has changed, such as a lock
        elif state in states[self._at :]:
            self._at = states.index(state, self._at)
        elif state in states:
            self.broken.append(f"promise 7, never back in time: {self.written.run} is {state} again")
        else:
            self.broken.append(f"promise 7, no transient state: {self.written.run} never was {state}")
        self.seen, self._last = state, message

    def end(self):
        """Nothing more will be written."""
        if self.seen != self.written.states[-1]:
            last = self.written.states[-1]
            self.broken.append(f"promise 6, converges: {self.written.run} is {last}, and the client holds {self.seen}")


# ---- clients ----


class Client(asyncio.Protocol):
    """A websocket that answers heartbeats as a browser does and passes the rest to its judge.

    Attributes:
        frames: (unix seconds, message) of all that came but heartbeats, where they are kept.
        ended: how it was closed: the code, or 1006.
    """

    def __init__(self, path, judge, frames, opened):
        self.path = path
        self.judge = judge
        self.frames = frames
        self.ended = None
        self.leaving = False
        self.pings = 0
        self._opened = opened
        self._unread = b""
        self._upgraded = False

    def connection_made(self, transport):
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (f"GET {self.path} HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket")
        transport.write(
            "\r\n".join([*lines, "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "", ""]).encode()
        )

    def data_received(self, data):
        data = self._unread + data
        if not self._upgraded:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._unread = head
                return
            self._upgraded = True
            if self._opened and not self._opened.done():
                self._opened.set_result(head)
        self._unread = data[self._take(data) :]

    def _take(self, data):
        """Whole frames; where the next one begins."""
        start, now = 0, time.time()
        while len(data) >= start + 2:
            size, body = data[start + 1], start + 2
            if size >= 126:
                wide = 2 if size == 126 else 8
                size, body = int.from_bytes(data[body : body + wide], "big"), body + wide
            if len(data) < body + size:
                break
            self._frame(now, data[start] & 15, data[body : body + size])
            start = body + size
        return start

    def _frame(self, now, opcode, payload):
        if opcode == PING:
            self._send(PONG, payload)
        elif opcode == CLOSE:
            self.ended = struct.unpack("!H", payload[:2])[0] if payload else 1005
        elif payload == b'{"type":"ping"}':
            self.pings += 1
            self._send(TEXT, b'{"type":"pong"}')
        elif opcode == TEXT:
            message = json.loads(payload)
            if self.frames is not None:
                self.frames.append((now, message))
            self.judge.frame(now, message)
        else:
            self.judge.broken.append(f"opcode {opcode}: {payload[:100]!r}")

    def _send(self, opcode, payload):
        self.transport.write(bytes([0x80 | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload)

    def connection_lost(self, exc):
        self.ended = self.ended or 1006
        if self._opened and not self._opened.done():
            self._opened.set_exception(ConnectionError(f"{self.path}: {exc or 'closed'}"))


class Recorder:
    """All clients of a test, in a thread of their own; a context manager.

    Args:
        keep: whether clients keep their frames.
    """

    def __init__(self, *, keep=True):
        self.keep = keep
        self.clients: list[Client] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.leaving = True
            self._loop.call_soon_threadsafe(client.transport.abort)
        self._do(asyncio.sleep(0.01))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def join(self, url, *ledgers, version=2):
        """A client for each ledger, Said or Written, at `url`; open when this returns, and judged from now on."""
        return self._do(self._join_all(url, ledgers, version))

    async def _join_all(self, url, ledgers, version):
        door = asyncio.Semaphore(50)
        return await asyncio.gather(*(self._join(url, ledger, version, door) for ledger in ledgers))

    async def _join(self, url, ledger, version, door):
        parts = urlsplit(url)
        is_status = isinstance(ledger, Said)
        judge = StatusJudge(ledger, version) if is_status else PreflightJudge(ledger, version)
        path = f"/{ledger.channel if is_status else ledger.run}" + ("?v=2" if version == 2 else "")
        async with door:
            opened = self._loop.create_future()
            frames = [] if self.keep else None
            client = Client(path, judge, frames, opened)
            await self._loop.create_connection(lambda: client, parts.hostname, parts.port)
            head = await asyncio.wait_for(opened, 20)
        assert b" 101 " in head, head
        self.clients.append(client)
        return client

    def leave(self, client):
        """It goes without a word, and is judged no more."""
        client.leaving = True
        self.clients.remove(client)
        self._loop.call_soon_threadsafe(client.transport.abort)

    # ---- the verdict ----

    def broken(self):
        """All breaches until now, each as a sentence."""
        found = [sentence for client in list(self.clients) for sentence in client.judge.broken]
        return found + [
            f"promise 4, the websocket stays: {client.path} ended with {client.ended}"
            for client in list(self.clients)
            if client.ended and not client.leaving
        ]

    def verdict(self):
        """Raises:
        AssertionError: a promise was broken.
        """
        broken = self.broken()
        assert not broken, "\n".join([f"{len(broken)} breaches", *broken[:20]])

    def wait(self, condition, what, patience=10.0):
        """Until the condition, asked of each client, holds for all -> seconds it took."""
        start = time.monotonic()
        while waiting := [client for client in list(self.clients) if not condition(client)]:
            took = time.monotonic() - start
            assert took < patience, f"{what}: {len(waiting)} clients not within {patience} s, such as {waiting[0].path}"
            time.sleep(0.01)
        return time.monotonic() - start

    def settle(self, patience=10.0):
        """Until each has got the last that was said or written; then the verdict, with what is missing at the end."""
        until = time.monotonic() + patience
        for client in list(self.clients):
            self._settle(client, until)
        for client in list(self.clients):
            client.judge.end()
        self.verdict()

    def _settle(self, client, until):
        judge = client.judge
        while time.monotonic() < until and not client.ended:
            if isinstance(judge, StatusJudge) and judge.last >= judge.said.count - 1:
                return
            if isinstance(judge, PreflightJudge) and judge.seen == judge.written.states[-1]:
                return
            time.sleep(0.01)


# ---- workers ----


class Publisher:
    """A worker that publishes round robin on channels, at a rate, until it is told to stop; Redis may go and come.

    Args:
        connect: makes a connection to Redis.
        ledgers: of the channels.
        rate: messages a second.
        tail: of each message.
    """

    def __init__(self, connect, ledgers, rate, tail=b""):
        self.connect = connect
        self.tail = tail
        self.ledgers = ledgers
        self.rate = rate
        self.failed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        started, done, at = time.monotonic(), 0, 0
        with contextlib.closing(self.connect()) as redis:
            while not self._stop.wait(0.002):
                due = min(int((time.monotonic() - started) * self.rate) - done, 500)
                if due > 0:
                    self._publish(redis, [self.ledgers[(at + i) % len(self.ledgers)] for i in range(due)])
                    at, done = at + due, done + due

    def _publish(self, redis, ledgers):
        firsts = {id(said): (said, said.count) for said in reversed(ledgers)}
        with redis.pipeline(transaction=False) as pipe:
            for said in ledgers:
                pipe.publish(said.channel, said.next(self.tail))
            try:
                pipe.execute()
            except Exception:
                self.failed += len(ledgers)
                return
        for said, first in firsts.values():
            said.taken(first)
