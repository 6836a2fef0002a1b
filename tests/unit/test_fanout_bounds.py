"""What the core bounds: each breach ends the one who broke it, and is counted under its own name."""

import contextlib
import time

import pytest

from relay._fanout import BOUNDS, Core
from tests.unit.rig import ANSWER, Rig, client_frame, close_code, resp, texts


@pytest.fixture
def make_rig():
    rigs = []

    def make(**options):
        rigs.append(Rig(**options))
        return rigs[-1]

    yield make
    while rigs:
        rigs.pop().close()


def breached(rig):
    """The bounds that have been exceeded, and how often."""
    return {bound: count for bound, count in rig.stats["breaches"].items() if count}


def inbound(rig):
    return rig.core.totals()["inbound_bytes"]


# ---- what is counted, and as what ----

FRAMES = {
    "message_size": (client_frame(b"x" * 1001), 1009),
    "message_size in fragments": (client_frame(b"x" * 1000, fin=False) + client_frame(b"x", 0), 1009),
    "fragments": (client_frame(b"", fin=False) + client_frame(b"", 0, fin=False) * 4, 1009),
    "frame_rate": (client_frame(b"", 10) * 21, 1008),
}


@pytest.mark.parametrize("name", FRAMES)
def test_what_a_client_sends(make_rig, name):
    data, code = FRAMES[name]
    rig = make_rig(max_message=1000, max_fragments=4, frame_burst=20)
    sock = rig.join(b"t")
    sock.sendall(data)
    assert close_code(rig.ended(sock)) == code
    assert breached(rig) == {name.partition(" ")[0]: 1}


def test_a_broken_rule_is_no_breach(make_rig):
    rig = make_rig()
    sock = rig.join(b"t")
    sock.sendall(client_frame(b"", 3))
    assert close_code(rig.ended(sock)) == 1002
    assert breached(rig) == {}


@pytest.mark.parametrize("head", [b"GET /" + b"x" * 2000, b"GET /" + b"x" * 990 + b" HTTP/1.1\r\n\r\n"])
def test_a_long_head(make_rig, head):
    rig = make_rig(max_head=1000)
    sock = rig.connect()
    sock.sendall(head)
    assert rig.ended(sock).endswith(b"The request head has more than 1000 bytes.\n")
    assert breached(rig) == {"head_size": 1}


def test_a_head_as_long_as_a_read(make_rig):
    rig = make_rig(max_head=65536)
    for size in (65536, 65537):
        rig.connect().sendall(b"GET /" + b"x" * (size - 9) + b"\r\n\r\n")
    rig.until(lambda: rig.requests and breached(rig))
    assert [len(head) for _, head, _ in rig.requests] == [65536]


def test_a_parked_client_that_talks_on(make_rig):
    rig = make_rig(max_head=1000, decide=lambda client, head, full: rig.core.accept(client, ANSWER))
    sock = rig.connect()
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    rig.until(lambda: rig.requests)
    sock.sendall(b"x" * 1001)
    rig.until(lambda: rig.core.totals()["sockets"] == 0)
    assert breached(rig) == {"head_size": 1}


def test_a_head_that_does_not_come(make_rig):
    rig = make_rig(head_timeout=0.2)
    slow, mute = rig.connect(), rig.connect()
    slow.sendall(b"GET / HTTP/1.1\r\n")
    rig.until(lambda: rig.core.totals()["heads"] == 1 and inbound(rig) and rig.core.totals()["sockets"] == 2)
    rig.tick_until(lambda: rig.core.totals()["heads"] == 0)
    assert rig.ended(slow).endswith(b"The request head was not complete in 0.2 s.\n")
    assert rig.ended(mute) == b""
    assert breached(rig) == {"head_timeout": 2}


def test_too_many_heads(make_rig):
    rig = make_rig(max_heads=3)
    socks = [rig.connect() for _ in range(4)]
    for count, sock in enumerate(socks[:3], 1):
        sock.sendall(b"GET /")
        rig.until(lambda count=count: rig.core.totals()["heads"] == count)
    socks[3].sendall(b"G")
    assert rig.ended(socks[0]) == b""
    assert rig.core.totals()["heads"] == 3
    assert breached(rig) == {"heads": 1}
    socks[3].sendall(b"ET /t HTTP/1.1\r\n\r\n")
    rig.until(lambda: rig.requests)
    assert rig.core.totals()["heads"] == 2


def test_who_has_said_nothing_yet_is_no_head(make_rig):
    """Clients that come back all at once: each is there before its request is."""
    rig = make_rig(max_heads=3)
    socks = [rig.connect() for _ in range(30)]
    rig.until(lambda: rig.core.totals()["sockets"] == 30)
    for sock in socks:
        sock.sendall(b"GET /t HTTP/1.1\r\n\r\n")
    rig.until(lambda: len(rig.requests) == 30)
    assert breached(rig) == {}


def test_heads_that_have_begun_at_any_time_end_at_theirs(make_rig):
    rig = make_rig(head_timeout=0.5)
    socks = [rig.connect() for _ in range(20)]
    rig.until(lambda: rig.core.totals()["sockets"] == 20)
    for sock in reversed(socks):
        sock.sendall(b"G")
    rig.until(lambda: rig.core.totals()["heads"] == 20)
    last = rig.connect()
    last.sendall(b"GET")
    rig.until(lambda: rig.core.totals()["heads"] == 21)
    rig.tick_until(lambda: rig.core.totals()["heads"] == 0)
    for sock in (*socks, last):
        assert rig.ended(sock).startswith(b"HTTP/1.1 408 ")
    assert breached(rig) == {"head_timeout": 21}


def test_no_slot_is_left(make_rig):
    rig = make_rig(limit=2)
    for _ in range(18):
        rig.join(b"t")
    assert rig.ended(rig.connect()).startswith(b"HTTP/1.1 503 ")
    assert breached(rig) == {"connections": 1}


def test_the_silent_that_make_way(make_rig):
    rig = make_rig(limit=2)
    for _ in range(17):
        rig.join(b"t")
    silent = rig.connect()
    rig.until(lambda: rig.core.totals()["sockets"] == 18)
    now = time.monotonic()
    rig.tick_until(lambda: time.monotonic() > now + 0.35)
    rig.ended(rig.connect())
    assert rig.ended(silent) == b""
    assert breached(rig) == {"connections": 2}


def laggard(rig, topic=b"t"):
    """A client that does not read, and owes something already."""
    sock = rig.join(topic, rcvbuf=4096)
    live = rig.live_bytes
    while rig.live_bytes == live:
        rig.publish(topic, b"x" * 4000)
    return sock


def test_what_waits_for_a_client(make_rig):
    rig = make_rig(max_backlog=20_000)
    sock = laggard(rig)
    for _ in range(6):
        rig.publish(b"t", b"x" * 4000)
    assert close_code(rig.ended(sock)) == 1013
    assert breached(rig) == {"backlog": 1}


def test_what_waits_too_long(make_rig):
    rig = make_rig(write_timeout=0.1)
    sock = laggard(rig)
    rig.tick_until(lambda: rig.stats["closes"])
    assert close_code(rig.ended(sock)) == 1013
    assert breached(rig) == {"write_timeout": 1}


def test_what_is_not_delivered(make_rig):
    rig = make_rig(max_backlog=1000)
    socks = [rig.join(b"t") for _ in range(3)]
    rig.feed(resp(b"message", b"t", b"x" * 500) * 40)
    assert [close_code(rig.ended(sock)) for sock in socks] == [1013] * 3
    assert breached(rig) == {"undelivered": 3}


@pytest.mark.parametrize("delivered", [True, False])
def test_what_the_process_owes(make_rig, delivered):
    rig = make_rig(max_live=160_000, max_backlog=90_000)
    socks = [laggard(rig, b"%d" % i) for i in range(3)] if delivered else [rig.join(b"%d" % i) for i in range(3)]
    for i in range(3):
        rig.feed(resp(b"message", b"%d" % i, b"x" * 1000) * (40 + i))
    if delivered:
        rig.flush()
    rig.core.poll()
    assert close_code(rig.ended(socks[2])) == 1013
    assert breached(rig) == {"live": 1}
    rig.flush()


def test_who_is_being_closed_owes_its_frame_no_longer_than_there_is_room(make_rig):
    """A frame is sent whole: eight of 366 KB were kept for 2 s where the process may owe 1 MiB."""
    rig = make_rig(max_live=1_000_000, max_backlog=1000)
    for i in range(6):
        rig.join(b"%d" % i, rcvbuf=4096)
        rig.publish(b"%d" % i, b"x" * 400_000)
        assert rig.live_bytes <= 1_000_000
    assert breached(rig)["live"] >= 3
    assert breached(rig).keys() == {"live"}


def test_what_waits_for_a_client_of_snapshots_that_is_none(make_rig):
    """Pongs, and each ping is a sign of life: 10 MB waited for one client, and nothing ended it."""
    rig = make_rig(newest_only=True, max_backlog=4096, frame_rate=0)
    sock = rig.join(b"t", rcvbuf=1024)
    with contextlib.suppress(ConnectionError):
        for _ in range(100_000):
            sock.sendall(client_frame(b"x" * 125, 9))
            rig.core.poll()
            if breached(rig):
                break
    assert breached(rig) == {"backlog": 1}
    assert rig.stats["closes"] == {1013: 1}


def test_who_keeps_silent(make_rig):
    rig = make_rig(pong_timeout=0.2)
    sock = rig.join(b"t")
    rig.tick_until(lambda: rig.stats["closes"])
    assert close_code(rig.ended(sock)) == 1008
    assert breached(rig) == {"pong_timeout": 1}


def test_what_is_published(make_rig):
    rig = make_rig(max_published=1000)
    rig.join(b"t")
    rig.publish(b"t", b"x" * 1001)
    assert breached(rig) == {"published_size": 1}


def test_what_was_found_outside(make_rig):
    rig = make_rig()
    for bound in BOUNDS:
        rig.core.breached(rig.service, bound)
    assert breached(rig) == dict.fromkeys(BOUNDS, 1)
    with pytest.raises(ValueError, match="tuple"):
        rig.core.breached(rig.service, "patience")


@pytest.mark.parametrize("bounds", [{"max_head": 0}, {"max_head": 65537}, {"max_heads": 0}, {"head_timeout": 0}])
def test_a_bound_that_cannot_be(bounds):
    with pytest.raises(ValueError, match=r"heads at once|no interval"):
        Core(limit=1, max_live=1, on_request=print, on_text=print, on_idle=print, on_error=print, **bounds)


def test_a_rate_is_kept_to_the_tenth(make_rig):
    """15 frames a second were 10: what a tick of 0.1 s earned was rounded down each time."""
    rig = make_rig(frame_rate=15, frame_burst=10)
    sock = rig.join(b"t")
    sock.sendall(client_frame(b"", 10) * 10)
    rig.turn()
    for _ in range(4):
        now = time.monotonic()
        rig.tick_until(lambda now=now: time.monotonic() > now + 0.1)
        sock.sendall(client_frame(b"", 10))
    sock.sendall(client_frame(b"", 10) + client_frame(b"last"))
    rig.until(lambda: rig.texts == [b"last"] or rig.stats["closes"])
    assert breached(rig) == {}


# ---- what clients have sent and is not complete ----


def part(size, whole=65536):
    """The beginning of a frame of `whole` bytes, `size` of them."""
    return client_frame(b"x" * whole)[: size + 8]


def test_inbound_bytes_are_given_back_with_the_end_of_a_message(make_rig):
    rig = make_rig()
    sock = rig.join(b"t")
    assert inbound(rig) == 0
    whole = client_frame(b"a" * 5000, fin=False) + client_frame(b"b" * 5000, 0)
    sock.sendall(whole[:7000])
    rig.until(lambda: inbound(rig) > 7000 - 16)
    assert inbound(rig) < 3 * 7000
    sock.sendall(whole[7000:])
    rig.until(lambda: rig.texts)
    assert rig.texts == [b"a" * 5000 + b"b" * 5000]
    assert inbound(rig) == 0


def test_inbound_bytes_are_given_back_with_the_connection(make_rig):
    rig = make_rig(decide=lambda client, head, full: rig.core.accept(client, ANSWER) if b"park" in head else None)
    head, parked = rig.connect(), rig.connect()
    head.sendall(b"GET / HTTP/1.1\r\n")
    parked.sendall(b"GET /park HTTP/1.1\r\n\r\nx")
    rig.until(lambda: rig.requests and rig.core.totals()["heads"] == 1 and inbound(rig) > len(ANSWER))
    head.close()
    parked.close()
    rig.until(lambda: rig.core.totals()["sockets"] == 0)
    assert inbound(rig) == 0


def test_those_who_hold_most_go_first(make_rig):
    rig = make_rig(max_inbound=400_000)
    small, large = [rig.join(b"t") for _ in range(20)], [rig.join(b"t") for _ in range(10)]
    for sock in small:
        sock.sendall(part(1000))
    rig.turn()
    for sock in large:
        sock.sendall(part(60_000))
        rig.turn()
        assert inbound(rig) <= 400_000
    rig.until(lambda: breached(rig).get("inbound", 0) >= 2)
    assert breached(rig).keys() == {"inbound"}
    assert rig.stats["connections"] == 30 - breached(rig)["inbound"] >= 24, "no more than it takes"
    rig.publish(b"t", b"fine")
    assert [texts(rig.received(sock, 10)) for sock in small] == [["fine"]] * 20
    codes = [close_code(data) for sock in large if (data := rig.received(sock, 4))[:1] == b"\x88"]
    assert codes == [1013] * breached(rig)["inbound"]


def test_many_who_hold_little_are_ended_too(make_rig):
    rig = make_rig(limit=300, max_inbound=300_000)
    socks = [rig.join(b"t") for _ in range(200)]
    for sock in socks:
        sock.sendall(part(2000))
    rig.turn()
    assert inbound(rig) <= 300_000
    assert 0 < breached(rig)["inbound"] < 180


def test_heads_and_the_parked_are_told_503(make_rig):
    rig = make_rig(max_inbound=30_000, decide=lambda client, head, full: rig.core.accept(client, ANSWER))
    parked = rig.connect()
    parked.sendall(b"GET / HTTP/1.1\r\n\r\n")
    rig.until(lambda: rig.requests)
    parked.sendall(b"x" * 7900)
    heads = [rig.connect() for _ in range(4)]
    for sock in heads:
        rig.turn()
        sock.sendall(b"GET /" + b"x" * 7000)
    rig.until(lambda: breached(rig).get("inbound"))
    assert inbound(rig) <= 30_000
    assert rig.ended(parked).startswith(b"HTTP/1.1 503 "), "it held most"
    assert not rig.core.attach(rig.requests[0][0], b"t")


def test_who_is_being_closed_is_ended_for_what_it_holds(make_rig):
    """It waits for the peer's close for 2 s, and holds what comes meanwhile like any other."""
    rig = make_rig(max_inbound=50_000)
    sock = rig.join(b"t")
    rig.core.close(rig.handles[sock], 1001)
    sock.sendall(part(60_000))
    rig.turn()
    assert inbound(rig) == 0
    assert close_code(rig.ended(sock)) == 1001
    assert breached(rig) == {}
