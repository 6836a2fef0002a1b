"""A Redis that says what the test says, and the relay's two kinds of connection to it."""

import asyncio

import hiredis

from relay._fanout import Core
from relay.link import Link
from relay.probe import PREFIX
from relay.settings import ServiceSettings
from relay.upstream import MAX_REPLY, Commands
from relay.values import ListenAddress, RedisAddress

PATIENCE = 10.0  # seconds until what is awaited counts as missing
PONG = b"+PONG\r\n"


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, PATIENCE)


async def until(true):
    """Waits for what no event announces."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def ack(verb, *channels):
    """What Redis answers to SUBSCRIBE and UNSUBSCRIBE."""
    return b"".join(b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(verb), verb, len(c), c) for c in channels)


class Visit:
    """One connection, seen from the server's side."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.parser = hiredis.Reader()
        self.curious = False  # hears of the probe's SUBSCRIBE and of INFO, too

    async def command(self):
        """The next command, as a list; None where the connection has ended."""
        while (command := self._next()) is False:
            try:
                data = await soon(self.reader.read(1 << 16))
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.parser.feed(data)
        return command

    def _next(self):
        """Answers by itself what each connection says once it stands, unless `curious`."""
        while (command := self.parser.gets()) is not False:
            if self.curious or command[1:] == [] or not isinstance(command[1], bytes):
                return command
            if command[0] == b"SUBSCRIBE" and command[1].startswith(PREFIX):
                self.say(ack(b"subscribe", command[1]))
            elif command == [b"INFO", b"server"]:
                self.say(b"-NOPERM this user has no permissions to run the 'info' command\r\n")
            else:
                return command
        return False

    async def silent(self):
        """Whether nothing more comes within a moment."""
        while self._next() is False:
            try:
                data = await asyncio.wait_for(self.reader.read(1 << 16), 0.02)
            except TimeoutError:
                return True
            if not data:
                return False
            self.parser.feed(data)
        return False

    def say(self, *replies):
        self.writer.write(b"".join(replies))

    async def greet(self, *greetings):
        """Reads the greetings, which are a PING if nothing else is said, and lets the relay in."""
        for greeting in greetings or ([b"PING"],):
            assert await self.command() == greeting
            self.say(PONG if greeting == [b"PING"] else b"+OK\r\n")

    def hang_up(self):
        self.writer.transport.abort()


class Heard:
    """What a service hears, in order."""

    def __init__(self):
        self.events = asyncio.Queue()

    def on_subscribed(self, channel):
        self.events.put_nowait(("subscribed", channel))

    def on_refused(self, channel, why):
        self.events.put_nowait(("refused", channel))

    def on_event(self, channel, payload):
        self.events.put_nowait((channel, payload))

    def on_down(self, since):
        self.events.put_nowait("down")

    async def next(self, count=1):
        """The next events; one alone, more as a list."""
        events = [await soon(self.events.get()) for _ in range(count)]
        return events[0] if count == 1 else events

    def nothing(self):
        return self.events.empty()


class Server:
    """A listener of the test's own, and what has been made to connect to it; a context manager."""

    def __init__(self, port=0):
        self.port = port
        self.visits = asyncio.Queue()
        self._seen = []
        self._made = []

    async def __aenter__(self):
        self._listening = await asyncio.start_server(self._on_visit, "127.0.0.1", self.port)
        self.port = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        for each in self._made:
            await each.stop()
        self._listening.close()
        await asyncio.sleep(0.01)  # who was accepted just now has yet to come in, and is to be seen out
        for visit in self._seen:
            visit.hang_up()

    async def _on_visit(self, reader, writer):
        self._seen.append(Visit(reader, writer))
        self.visits.put_nowait(self._seen[-1])

    async def accept(self):
        """The next connection, as it comes."""
        return await soon(self.visits.get())

    async def visit(self, *greetings):
        """The next connection, let in."""
        visit = await self.accept()
        await visit.greet(*greetings)
        return visit

    def link(self, **options):
        """A started link; `heard` is its listener, `failed` what it would have ended the relay with."""
        return self.link_with_commands(**options)[0]

    def link_with_commands(self, *, max_reply=MAX_REPLY, **options):
        """A started link, and the command connection on which it is proved, not started."""
        settings, failed = self._settings(**options), []
        core = Core(
            limit=4,
            max_live=1 << 20,
            on_request=lambda *_: None,
            on_text=lambda *_: None,
            on_idle=lambda *_: None,
            on_error=failed.append,
        )
        commands = Commands(settings, failed.append)
        link = Link(settings, core, core.add_service(), lambda: None, commands, failed.append, max_reply=max_reply)
        link.listener = link.heard = Heard()
        self._made.append(commands)
        return self._started(link, failed), commands

    def commands(self, **options):
        """A started command connection; `failed` is what it would have ended the relay with."""
        failed = []
        return self._started(Commands(self._settings(**options), failed.append), failed)

    def _settings(self, *, name="status", db=0, username=None, password=None, port=None, **settings):
        address = RedisAddress(host="127.0.0.1", port=port or self.port, db=db, username=username, password=password)
        quick = {"redis_retry_base": 0.001, "redis_retry_max": 0.002}
        listen = ListenAddress("tcp", "127.0.0.1", 0)
        return ServiceSettings(name=name, listen=listen, redis=address, **(quick | settings))

    def _started(self, upstream, failed):
        upstream.failed = failed
        upstream.start()
        self._made.append(upstream)
        return upstream
