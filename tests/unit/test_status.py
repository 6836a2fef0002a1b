"""The status service by itself: which newcomers wait, and which the core lets in unasked (contract, section 5)."""

import socket

import pytest

from relay import handshake
from relay.settings import ProcessSettings, ServiceSettings
from relay.status import Status
from relay.values import ListenAddress, RedisAddress
from tests.unit.rig import Rig, resp, texts

CHANNEL = b"run1:wepp"
PLAIN = (
    b"GET /run1:wepp HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Link:
    """Is up or not, and confirms what the test says."""

    def __init__(self):
        self.up = True
        self.confirmed = set()
        self.wanted = set()
        self.deliver = lambda: None

    def subscribed(self, channel):
        return channel in self.confirmed

    def want(self, channel):
        self.wanted.add(channel)

    def drop(self, channel):
        self.wanted.discard(channel)

    # ---- what Redis does ----

    def confirm(self, channel=CHANNEL):
        self.confirmed.add(channel)
        self.listener.on_subscribed(channel)

    def break_(self):
        self.up = False
        self.confirmed.clear()
        self.listener.on_down(0.0)


@pytest.fixture
async def rig():
    """A core whose requests the service judges as the server would, and lets plain ones in."""

    def decide(client, head, full):
        rig.core.accept(client, handshake.read(head).upgrade)
        rig.status.join(client, CHANNEL)

    rig = Rig(decide=decide)
    rig.link = Link()
    settings = ServiceSettings(
        name="status",
        listen=ListenAddress("tcp", "127.0.0.1", 0),
        redis=RedisAddress(host="127.0.0.1", port=1, db=2, username=None, password=None),
    )
    rig.status = Status(rig.core, settings, lambda _: rig.link, None, ProcessSettings())
    rig.service = rig.status.index
    rig.core.let_in_by(rig.service, handshake.switching)
    rig.listener.close()
    rig.listener = socket.create_server(("127.0.0.1", 0))
    rig.listener.setblocking(False)
    rig.core.listen(rig.listener.fileno(), rig.service)
    yield rig
    if rig.status._timer:
        rig.status._timer.cancel()
    rig.close()


def come(rig):
    """A newcomer; whether it was answered at once."""
    sock = rig.connect()
    sock.sendall(PLAIN)
    before = len(rig.requests), rig.stats["opened"]
    rig.until(lambda: (len(rig.requests), rig.stats["opened"]) != before)
    return sock, rig.received(sock).startswith(b"HTTP/1.1 101 ")


async def test_the_first_waits_and_the_others_are_let_in_unasked(rig):
    sock, answered = come(rig)
    assert not answered
    rig.link.confirm()
    assert rig.received(sock, 1).startswith(b"HTTP/1.1 101 ")
    assert [come(rig)[1] for _ in range(3)] == [True] * 3
    assert len(rig.requests) == 1


async def test_behind_a_broken_link_each_waits_until_it_is_confirmed_again(rig):
    """Let in at once it would believe that nothing is missed from here on, while nothing arrives."""
    come(rig)
    rig.link.confirm()
    rig.link.break_()
    assert come(rig)[1]  # nothing to wait for: nobody knows when it is back
    rig.link.up = True
    late, answered = come(rig)
    assert not answered
    rig.link.confirm()
    assert rig.received(late, 1).startswith(b"HTTP/1.1 101 ")
    asked = len(rig.requests)
    sock, answered = come(rig)
    assert answered
    assert len(rig.requests) == asked
    rig.feed(resp(b"message", CHANNEL, b"x"))
    rig.flush()
    assert texts(rig.received(sock, 1)) == ["x"]


async def test_who_comes_before_the_unsubscribe_is_asked_about_once_more(rig):
    sock, _ = come(rig)
    rig.link.confirm()
    rig.received(sock, 1)
    sock.close()
    rig.until(lambda: rig.idle == [CHANNEL])
    assert come(rig)[1]
    assert len(rig.requests) == 2
    assert come(rig)[1]
    assert len(rig.requests) == 2
