"""Micro-benchmarks of the core: a message from its RESP bytes to the kernel. Run with `make bench`."""

import pytest

from tests.unit.rig import Rig, resp

PLAIN = b"wepp hillslope 17 of 214: " + b"x" * 74
ESCAPES = b'he said "no"\n\t\\ ' * 6 + b"1234"
ACCENTS = "Größe é – ".encode() * 7


@pytest.fixture
def rig():
    rig = Rig(limit=2000)
    yield rig
    rig.close()


@pytest.mark.parametrize("text", [PLAIN, ESCAPES, ACCENTS], ids=["plain", "escapes", "accents"])
def test_parse_frame_and_send_to_one_client(benchmark, rig, text):
    """One message of 100 bytes, one send. The client's side reads outside the measure."""
    sock = rig.join(b"run1:wepp")
    message = resp(b"message", b"run1:wepp", text)

    def setup():
        rig.received(sock)

    benchmark.pedantic(rig.publish_raw, (message,), setup=setup, rounds=2000)


def test_parse_and_frame_a_burst_of_64(benchmark, rig):
    """64 messages of 100 bytes in one read of Redis, one send."""
    sock = rig.join(b"run1:wepp")
    messages = resp(b"message", b"run1:wepp", PLAIN) * 64

    def setup():
        rig.received(sock)

    benchmark.pedantic(rig.publish_raw, (messages,), setup=setup, rounds=1000)


@pytest.mark.parametrize("clients", [1, 10, 100, 1000])
def test_one_message_to_many(benchmark, rig, clients):
    """The plain fan-out: one send for each client."""
    socks = [rig.join(b"run1:wepp") for _ in range(clients)]
    message = resp(b"message", b"run1:wepp", PLAIN)

    def setup():
        for sock in socks:
            rig.received(sock)

    benchmark.pedantic(rig.publish_raw, (message,), setup=setup, rounds=max(20, 2000 // clients))


def test_a_message_that_nobody_watches(benchmark, rig):
    benchmark(rig.publish_raw, resp(b"message", b"run1:wepp", PLAIN))
