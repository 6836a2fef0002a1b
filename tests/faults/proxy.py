"""A TCP proxy between the relay and Redis that can be told to misbehave, while it runs and for one kind of connection.

Which kind a connection is, its own words tell: it carries commands until the first SUBSCRIBE, and subscriptions from
then on. So a fault can hit the one and spare the other, as in a cluster where the two have ended on different nodes.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field, fields

import hiredis

UP, DOWN = "up", "down"  # to Redis, to the relay
COMMANDS, SUBSCRIPTIONS = "commands", "subscriptions"
LOOK = 0.005  # seconds between two looks at a fault that holds something up
READ = 65536


@dataclass
class Faults:
    """What is wrong with the connections of one kind; any field may be changed at any time, from any thread.

    Attributes:
        latency, jitter: seconds by which each chunk comes late, either way, and at most how many more; in order.
        stalled: of UP and DOWN, the directions in which nothing moves; what is held comes when it is lifted.
        deaf: Redis' words are lost, and PINGs are answered here: the connection looks well and delivers nothing.
        trickle: one byte at a time, each in a segment of its own.
        flips: in how many more chunks for the relay one bit is turned.
        cut_after: after how many more bytes for the relay the connection is reset, in the middle of a reply.
        target: the port of another Redis, for connections that become of this kind from now on.
    """

    latency: float = 0.0
    jitter: float = 0.0
    stalled: frozenset = frozenset()
    deaf: bool = False
    trickle: bool = False
    flips: int = 0
    cut_after: int | None = None
    target: int | None = None


@dataclass(eq=False)
class Line:
    """A connection of the relay's: what it is, when it was, and how many reads of one run were ever in flight."""

    client: asyncio.StreamWriter
    kind: str = COMMANDS
    opened: float = field(default_factory=time.monotonic)
    closed: float | None = None
    server: asyncio.StreamWriter | None = None
    asked: hiredis.Reader = field(default_factory=hiredis.Reader)
    answered: hiredis.Reader = field(default_factory=hiredis.Reader)
    in_flight: deque = field(default_factory=deque)
    reads: Counter = field(default_factory=Counter)


class Proxy:
    """Listens on a port of its own and forwards to `port`; a context manager, in a thread of its own.

    Args:
        port: of the Redis behind it.
        seed: of the jitter and of the bits that are turned.
        follow: count the HGETALLs in flight (`most_reads`), which parses all that is said.
    """

    def __init__(self, port, *, seed=1, follow=False):
        self.target = port
        self.faults = {COMMANDS: Faults(), SUBSCRIPTIONS: Faults()}
        self.lines: list[Line] = []  # of all time, oldest first
        self.most = 0  # connections at once
        self.most_reads = 0  # HGETALLs of one run in flight on one connection
        self._follow = follow
        self._chance = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: None)  # resets are what this is for
        self._tasks: set[asyncio.Task] = set()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_):
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- what the tests say ----

    @property
    def subscriptions(self):
        return self.faults[SUBSCRIPTIONS]

    @property
    def commands(self):
        return self.faults[COMMANDS]

    def both(self, **changes):
        """Changes fields of both kinds' faults: `both(stalled={DOWN})`."""
        for faults in self.faults.values():
            for name, value in changes.items():
                assert hasattr(faults, name), name
                setattr(faults, name, value)

    def heal(self):
        """No fault any more; what is held goes on."""
        self.both(**{known.name: known.default for known in fields(Faults)})

    def reset(self, kind=None):
        """RST to the relay and to Redis on each connection, or on those of one kind."""
        self._do(self._reset(kind))

    def refuse(self):
        """Nobody listens any more; the connections stay."""
        self._do(self._refuse())

    def accept(self):
        """Listens again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._do(self._listen())

    def say(self, data, kind=SUBSCRIPTIONS):
        """Bytes to the relay, on each open connection of the kind."""
        self._do(self._say(data, kind))

    def open(self, kind=None):
        """The connections that are open now."""
        return [line for line in list(self.lines) if line.closed is None and kind in (None, line.kind)]

    # ---- the thread ----

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self):
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=1 << 20)

    async def _refuse(self):
        self._server.close()
        self._listener.close()

    async def _end(self):
        await self._refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # an aborted transport ends a turn later

    async def _reset(self, kind):
        for line in self.open(kind):
            _abort(line.client)
            if line.server:
                _abort(line.server)

    async def _say(self, data, kind):
        for line in self.open(kind):
            line.client.write(data)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        line = Line(writer)
        self.lines.append(line)
        self.most = max(self.most, len(self.open()))
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._connect(line, self.target)
                await self._pump(line, UP, reader)
        finally:
            line.closed = time.monotonic()
            writer.transport.abort()
            if line.server:
                line.server.transport.abort()
            self._tasks.discard(asyncio.current_task())

    async def _connect(self, line, port):
        """The way to a Redis; the one there was is given up."""
        old = line.server
        reader, line.server = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        if old:
            old.transport.abort()
        task = asyncio.ensure_future(self._down(line, reader, line.server))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _down(self, line, reader, server):
        with contextlib.suppress(OSError):
            await self._pump(line, DOWN, reader)
        if line.server is server:
            line.client.transport.abort() if reader.exception() else line.client.close()

    async def _pump(self, line, way, reader):
        """Reads ahead of what is late, so that latency delays and does not throttle."""
        late: asyncio.Queue = asyncio.Queue()
        writing = asyncio.ensure_future(self._write(line, way, late))
        self._tasks.add(writing)
        writing.add_done_callback(self._tasks.discard)
        try:
            while True:
                await self._let_go(line, way)
                data = await reader.read(READ)
                faults = self.faults[line.kind]
                due = self._loop.time() + faults.latency + faults.jitter * self._chance.random()
                late.put_nowait((due, data))
                if not data or writing.done():
                    break
            await writing
        finally:
            writing.cancel()

    async def _write(self, line, way, late):
        before = 0.0
        with contextlib.suppress(OSError):
            while True:
                due, data = await late.get()
                before = max(before, due)  # in order
                await asyncio.sleep(max(0.0, before - self._loop.time()))
                await self._let_go(line, way)
                if not data:
                    return
                await (self._to_redis(line, data) if way == UP else self._to_relay(line, data))

    async def _let_go(self, line, way):
        for _ in iter(lambda: way in self.faults[line.kind].stalled, False):
            await asyncio.sleep(LOOK)

    async def _to_redis(self, line, data):
        if line.kind == COMMANDS and b"\r\nSUBSCRIBE\r\n" in data:
            line.kind = SUBSCRIPTIONS
            if target := self.subscriptions.target:
                await self._connect(line, target)
        elif self._follow and line.kind == COMMANDS:
            self._asked(line, data)
        faults = self.faults[line.kind]
        if faults.deaf:
            pong = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n" if line.kind == SUBSCRIPTIONS else b"+PONG\r\n"
            line.client.write(pong * data.count(b"\r\nPING\r\n"))
        await self._send(line.server, data, faults)

    async def _to_relay(self, line, data):
        faults = self.faults[line.kind]
        if faults.deaf:
            return
        if self._follow and line.kind == COMMANDS:
            self._answered(line, data)
        if faults.flips:
            faults.flips -= 1
            data = self._flipped(data)
        if faults.cut_after is not None:
            data, faults.cut_after = data[: faults.cut_after], faults.cut_after - len(data)
        await self._send(line.client, data, faults)
        if faults.cut_after is not None and faults.cut_after <= 0:
            faults.cut_after = None
            await asyncio.sleep(LOOK)  # a RST overtakes what is not read yet
            _abort(line.client)

    async def _send(self, writer, data, faults):
        for start in range(0, len(data), 1 if faults.trickle else READ):
            writer.write(data[start : start + (1 if faults.trickle else READ)])
            await writer.drain()
            if faults.trickle:
                await asyncio.sleep(0)

    def _flipped(self, data):
        at = self._chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._chance.randrange(8)]) + data[at + 1 :]

    # ---- what is in flight ----

    def _asked(self, line, data):
        line.asked.feed(data)
        while (command := line.asked.gets()) is not False:
            line.in_flight.append(command)
            if command[0] == b"HGETALL":
                line.reads[command[1]] += 1
                self.most_reads = max(self.most_reads, line.reads[command[1]])

    def _answered(self, line, data):
        line.answered.feed(data)
        while line.in_flight and line.answered.gets() is not False:
            command = line.in_flight.popleft()
            if command[0] == b"HGETALL":
                line.reads[command[1]] -= 1


def _abort(writer):
    """A reset: with SO_LINGER at zero seconds close() sends a RST."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
