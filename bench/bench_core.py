"""Micro-benchmarks of the core and the handshake, with real sockets where something is sent.

`make bench` shows them beside bench/baseline.json (bench/README.md). Where a burst is in the name, a figure is of its
64 messages together. Figures are of one machine: compare them with a baseline made on the same one.
"""

from itertools import repeat

import pytest

from relay import handshake
from tests.unit.rig import ANSWER, Rig, resp

BURST = 64  # messages
SLICE = 16 << 10  # bytes, as the link feeds hiredis
TOPIC = b"run1:wepp"
SIZES = {"100B": 100, "1KB": 1 << 10, "16KB": 16 << 10}
TEXTS = {
    "plain": b"wepp hillslope 17 of 214, day 120 of 365: ",
    "escapes": b'he said "no"\n\t\\ or \x1b[1m ',
    "accents": "Größe é – 雨量 ".encode(),
}
PLAIN = (TEXTS["plain"] * 3)[:100]

CHROME = (
    b"GET /run1:wepp HTTP/1.1\r\nHost: wepp.cloud\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/142.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: https://wepp.cloud\r\n"
    b"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
BARE = (
    b"GET /run1:wepp HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Bench(Rig):
    """A rig whose clients are never slow."""

    def __init__(self):
        super().__init__(limit=2000, max_backlog=1 << 30)
        self.socks = []
        self.events = False

    def accept(self, client, head, full):
        self.core.accept(client, ANSWER, events=self.events)
        self.core.attach(client, TOPIC)

    def watch(self, clients, *, events=False):
        self.events = events
        self.socks = [self.join(TOPIC) for _ in range(clients)]

    def read(self, slices):
        """What the link does with a read from Redis, but for the sending."""
        for part in slices:
            self.intake.take(part)

    def clear(self):
        """Everything sent and read."""
        self.flush()
        for sock in self.socks:
            self.received(sock)

    def frame(self, text):
        for _ in repeat(None, BURST):
            self.core.publish(self.service, TOPIC, text)

    def send(self, text):
        self.core.publish(self.service, TOPIC, text)
        self.flush()


@pytest.fixture
def rig():
    rig = Bench()
    yield rig
    rig.close()


def burst(text, size=100):
    """A burst of messages as the link feeds it to hiredis."""
    filled = (TEXTS[text] * (size // len(TEXTS[text]) + 1))[:size].decode(errors="ignore").encode().ljust(size)
    data = resp(b"message", TOPIC, filled) * BURST
    return [data[start : start + SLICE] for start in range(0, len(data), SLICE)]


@pytest.mark.benchmark(group="frame: a burst of finished texts")
@pytest.mark.parametrize("size", SIZES)
def test_frame(benchmark, rig, size):
    """Header and copy."""
    rig.watch(1)
    benchmark.pedantic(rig.frame, (b"x" * SIZES[size],), setup=rig.clear, rounds=400)


@pytest.mark.benchmark(group="escape: a burst from Redis, parsed, escaped and framed")
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", SIZES)
def test_escape(benchmark, rig, size, text):
    rig.watch(1)
    benchmark.pedantic(rig.read, (burst(text, SIZES[size]),), setup=rig.clear, rounds=400)


@pytest.mark.benchmark(group="parse: a burst of 100 bytes each from Redis")
@pytest.mark.parametrize("clients", [0, 1], ids=["unwatched", "watched"])
def test_parse(benchmark, rig, clients):
    """Unwatched: the look into the index, and a list of them for the service; watched: frames instead."""
    rig.watch(clients)
    benchmark.pedantic(rig.read, (burst("plain"),), setup=rig.clear, rounds=1000)


@pytest.mark.benchmark(group="publish: one message to all clients of a topic")
@pytest.mark.parametrize("clients", [1, 10, 100, 1000])
def test_publish(benchmark, rig, clients):
    """The plain fan-out: one send for each client."""
    rig.watch(clients)
    benchmark.pedantic(rig.send, (PLAIN,), setup=rig.clear, rounds=max(50, 2000 // clients))


@pytest.mark.benchmark(group="publish: one message to all clients of a topic")
@pytest.mark.parametrize("clients", [100, 1000])
def test_publish_events(benchmark, rig, clients):
    """The same to event streams."""
    rig.watch(clients, events=True)
    benchmark.pedantic(rig.send, (PLAIN,), setup=rig.clear, rounds=max(50, 2000 // clients))


@pytest.mark.benchmark(group="publish: a burst of 64 to one client")
def test_publish_a_burst(benchmark, rig):
    """From the bytes of Redis to the kernel, one send."""
    rig.watch(1)

    def turn(slices):
        rig.read(slices)
        rig.flush()

    benchmark.pedantic(turn, (burst("plain"),), setup=rig.clear, rounds=1000)


@pytest.mark.benchmark(group="head: an upgrade request read and judged")
@pytest.mark.parametrize("head", [BARE, CHROME], ids=["bare", "chrome"])
def test_head(benchmark, head):
    assert benchmark(handshake.read, head).upgrade


@pytest.mark.benchmark(group="head: an upgrade request read and judged")
def test_head_of_an_unusual_client(benchmark):
    """By `websockets`' ServerProtocol alone."""
    assert benchmark(handshake.judged, CHROME).upgrade


@pytest.mark.benchmark(group="head: an upgrade request read and judged")
def test_route(benchmark):
    """What a path names, each path being new."""

    def route():
        handshake.route.cache_clear()
        return handshake.route("status", "/weppcloud-microservices/status/run1:wepp")

    assert benchmark(route).topic == TOPIC
