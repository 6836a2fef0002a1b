"""The load generator against servers that lose, repeat, damage, refuse and stall as they are told."""

import contextlib
import json
import resource
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import trustme

from relay._swarm import SMALLEST, Publisher, Swarm
from tests.unit.fake_relay import SECONDS, FakeRedis, FakeRelay, answer_to, frame, serve_until, status


@pytest.fixture
def new_relay():
    with contextlib.ExitStack() as stack:

        def new(*args, **options):
            relay = FakeRelay(*args, **options)
            stack.callback(relay.close)
            return relay

        yield new


@pytest.fixture
def new_redis_peer():
    with contextlib.ExitStack() as stack:

        def new(**options):
            peer = FakeRedis(**options)
            stack.callback(peer.close)
            return peer

        yield new


@pytest.fixture
def relay_peer(new_relay):
    return new_relay()


@pytest.fixture
def redis_peer(new_redis_peer):
    return new_redis_peer()


def swarm_of(relay, clients, paths=(b"/r:wepp",), **options):
    options = {"family": relay.listener.family, "address": relay.address, "host": b"localhost"} | options
    return Swarm(paths=paths, clients=clients, **options)


def opened(relay, clients, paths=(b"/r:wepp",), **options):
    """A swarm whose clients are open, in the order of `relay.clients`."""
    swarm = swarm_of(relay, clients, paths, **options)
    swarm.open(clients, at_once=1, seconds=SECONDS)
    assert (swarm.counters()["open"], swarm.trouble) == (clients, "")
    return swarm


def counts(swarm, *names):
    counters = swarm.counters()
    return tuple(counters[name] for name in names)


JUDGED = ("delivered", "lost", "duplicated", "reordered", "damaged", "other")


def judged(swarm):
    return {name: count for name, count in zip(JUDGED, counts(swarm, *JUDGED), strict=True) if count}


def deliver(swarm, relay, stream, index=0):
    """Sends bytes to one client and serves until they were read."""
    wanted = swarm.counters()["bytes"] + len(stream)
    sender = threading.Thread(target=relay.clients[index].sendall, args=(stream,))
    sender.start()
    serve_until(swarm, lambda counters: counters["bytes"] >= wanted)
    sender.join()


# ---- what is asked ----


def test_the_request_is_a_websocket_upgrade_with_the_fields_given(relay_peer):
    paths = [b"/a:x", b"/b:x"]
    opened(relay_peer, 3, paths, host=b"relay.example:80", origin=b"https://a", headers=[(b"X-Run", b"7")])
    lines = [request.split(b"\r\n") for request in relay_peer.requests]
    assert [request[0] for request in lines] == [b"GET /a:x HTTP/1.1", b"GET /b:x HTTP/1.1", b"GET /a:x HTTP/1.1"]
    for request in lines:
        fields = dict(line.split(b": ", 1) for line in request[1:-2])
        assert len(fields.pop(b"Sec-WebSocket-Key")) == 24
        assert fields == {
            b"Host": b"relay.example:80",
            b"Upgrade": b"websocket",
            b"Connection": b"Upgrade",
            b"Sec-WebSocket-Version": b"13",
            b"Origin": b"https://a",
            b"X-Run": b"7",
        }
    assert len(set(relay_peer.requests)) == 3, "a key of its own for each"


def test_clients_open_in_steps_and_handshakes_are_timed(relay_peer):
    swarm = swarm_of(relay_peer, 30)
    swarm.open(10, seconds=SECONDS)
    assert counts(swarm, "open", "opened", "connecting") == (10, 10, 0)
    swarm.open(30, at_once=4, seconds=SECONDS)
    assert counts(swarm, "open", "opened", "connecting") == (30, 30, 0)
    assert sum(count for _, count in swarm.handshakes()) == 30
    assert all(0 < bound < SECONDS * 1e6 for bound, _ in swarm.handshakes())


def test_sources_spread_over_loopback_addresses(relay_peer):
    opened(relay_peer, 4, sources=3)
    hosts = [client.getpeername()[0] for client in relay_peer.clients]
    assert hosts == ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.1"]


def test_ipv6(new_relay):
    opened(new_relay(("::1", 0), socket.AF_INET6), 2)


def test_a_unix_socket_with_a_short_queue(new_relay, redis_peer, tmp_path):
    relay = new_relay(str(tmp_path / "relay.sock"), socket.AF_UNIX)
    relay.listener.listen(1)
    swarm = swarm_of(relay, 50, address=str(tmp_path / "relay.sock"))
    swarm.open(50, seconds=SECONDS)
    assert counts(swarm, "open", "refused") == (50, {})
    (message,) = redis_peer.publish(swarm, [b"r"], 1)
    for index in range(50):
        deliver(swarm, relay, status(message), index)
    assert judged(swarm) == {"delivered": 50}


# ---- how answers are judged ----


@pytest.mark.parametrize(
    ("answer", "code", "why"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\r\nfull", 503, "refused: HTTP/1.1 503 Service"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 400, "refused"),
        (None, 0, "ended before the answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 0, "no HTTP"),
        (b"HTTP/1.1 1o1 Odd\r\n\r\n", 0, "no HTTP"),
        (b"HTTP/1.1 101 Switching\r\n" + b"X: " + b"y" * 20000, 0, "no HTTP"),
    ],
)
def test_a_refusal_counts_by_its_status(new_relay, answer, code, why):
    swarm = swarm_of(new_relay(answer=lambda request: answer), 2)
    swarm.open(2, seconds=SECONDS)
    assert counts(swarm, "refused", "open", "opened", "connecting") == ({code: 2}, 0, 0, 0)
    assert why in swarm.trouble


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda request: answer_to(request, accept=b"A" * 27 + b"="), "wrong Sec-WebSocket-Accept"),
        (lambda request: answer_to(request, b"Sec-WebSocket-Extensions: permessage-deflate\r\n"), "none was asked for"),
        (lambda request: answer_to(request, b"Sec-WebSocket-Protocol: chat\r\n"), "none was asked for"),
        (lambda request: answer_to(request).replace(b"Upgrade: websocket", b"Upgrade: h2c"), "does not upgrade"),
        (lambda request: answer_to(request).replace(b"Connection: Upgrade", b"Connection: close"), "does not upgrade"),
    ],
)
def test_a_101_that_is_no_handshake_counts_as_refused(new_relay, change, why):
    swarm = swarm_of(new_relay(answer=change), 1)
    swarm.open(1, seconds=SECONDS)
    assert counts(swarm, "refused", "opened") == ({101: 1}, 0)
    assert why in swarm.trouble


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        swarm = Swarm(family=socket.AF_INET, address=unused.getsockname(), host=b"h", paths=[b"/"], clients=3)
        swarm.open(3, seconds=SECONDS)
    assert counts(swarm, "refused") == ({0: 3},)
    assert "refused" in swarm.trouble


def test_who_never_answers_stays_undecided(new_relay):
    swarm = swarm_of(new_relay(answer=lambda request: b""), 2)
    swarm.open(2, seconds=0.5)
    assert counts(swarm, "connecting", "open", "refused") == (2, 0, {})


def test_an_answer_in_pieces_of_every_length(new_relay):
    relay = new_relay(answer=lambda request: b"")
    whole = len(answer_to(b"\r\nSec-WebSocket-Key: x\r\n"))
    swarm = swarm_of(relay, whole)
    swarm.open(whole, at_once=whole, seconds=0.5)
    serve_until(swarm, lambda counters: len(relay.requests) == whole)
    answers = [answer_to(request) + frame(b"x", 0x89) for request in relay.requests]
    for size, (client, answer) in enumerate(zip(relay.clients, answers, strict=True)):
        client.sendall(answer[:size])
    swarm.serve(0.05)
    for size, (client, answer) in enumerate(zip(relay.clients, answers, strict=True)):
        client.sendall(answer[size:])
    serve_until(swarm, lambda counters: counters["pings"] == whole)
    assert counts(swarm, "open", "refused", "bytes") == (whole, {}, 3 * whole)


# ---- how messages are judged ----


def test_what_arrives_is_counted_and_timed(relay_peer, redis_peer):
    swarm = opened(relay_peer, 3, [b"/a:x", b"/b:x"])
    messages = redis_peer.publish(swarm, [b"a:x", b"b:x"], 10)
    assert [channel for channel, _ in redis_peer.published] == [b"a:x", b"b:x"] * 5
    assert all(len(message) == 100 for message in messages)
    frames = [status(message) for message in messages]
    for index in range(3):
        deliver(swarm, relay_peer, b"".join(frames[index % 2 :: 2]), index)
    assert swarm.settle(SECONDS) is True
    assert judged(swarm) == {"delivered": 15}
    assert (swarm.received(), swarm.per_client()) == (15, [(5, 0)] * 3)
    assert counts(swarm, "bytes") == (sum(len(f) for f in frames) + sum(len(f) for f in frames[::2]),)
    latencies = swarm.latencies()
    assert sum(count for _, count in latencies) == 15
    assert [bound for bound, _ in latencies] == sorted(bound for bound, _ in latencies)


def pick(frames, order):
    return b"".join(frames[number] for number in order)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], {"delivered": 6}),
        ([1, 2, 3, 4, 5], {"delivered": 5, "lost": 1}),
        ([0, 3, 5], {"delivered": 3, "lost": 3}),
        ([0, 1, 1, 2, 3, 0, 4, 5], {"delivered": 6, "duplicated": 2}),
        ([0, 2, 1, 3, 4, 5], {"delivered": 6, "reordered": 1}),
        ([5, 4, 3, 2, 1, 0], {"delivered": 6, "reordered": 5}),
        ([0, 2, 1, 1, 3, 5], {"delivered": 5, "lost": 1, "reordered": 1, "duplicated": 1}),
    ],
)
def test_numbers_tell_loss_duplicates_and_order(relay_peer, redis_peer, order, expected):
    swarm = opened(relay_peer, 1)
    frames = [status(message) for message in redis_peer.publish(swarm, [b"r"], 6)]
    deliver(swarm, relay_peer, pick(frames, order))
    assert judged(swarm) == expected
    assert sum(count for _, count in swarm.latencies()) == expected["delivered"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([*range(1, 200), 0], {"delivered": 200, "reordered": 1}),
        ([*range(200), 0], {"delivered": 200, "duplicated": 1}),
        ([*range(100), *range(150, 200), 140, 140], {"delivered": 151, "reordered": 1, "duplicated": 1, "lost": 49}),
    ],
)
def test_late_ones_are_told_from_repeated_ones_after_many_more(relay_peer, redis_peer, order, expected):
    swarm = opened(relay_peer, 1)
    frames = [status(message) for message in redis_peer.publish(swarm, [b"r"], 200)]
    deliver(swarm, relay_peer, pick(frames, order))
    assert judged(swarm) == expected


@pytest.mark.parametrize("came", [[], [0, 1], [0, 2]])
def test_what_never_comes_is_lost_once_it_has_settled(relay_peer, redis_peer, came):
    swarm = opened(relay_peer, 1)
    frames = [status(message) for message in redis_peer.publish(swarm, [b"r"], 6)]
    if came:
        deliver(swarm, relay_peer, pick(frames, came))
    before = judged(swarm).get("lost", 0)
    assert before == (1 if came == [0, 2] else 0), "a gap is known at once, an end that is missing is not"
    assert swarm.settle(0.05) is False
    assert judged(swarm)["lost"] == 6 - len(came)
    assert swarm.per_client() == [(len(came), 6 - len(came))]
    deliver(swarm, relay_peer, frames[5])
    assert judged(swarm) == {"delivered": len(came) + 1, "lost": 5 - len(came), "reordered": 1}
    assert swarm.settle(0.05) is True


def test_who_joins_late_misses_only_what_came_after_its_101(relay_peer, redis_peer):
    swarm = swarm_of(relay_peer, 3)
    swarm.open(1, seconds=SECONDS)
    first = [status(message) for message in redis_peer.publish(swarm, [b"r"], 5)]
    swarm.open(2, seconds=SECONDS)
    swarm.open(3, seconds=SECONDS)
    second = [status(message) for message in redis_peer.publish(swarm, [b"r"], 5, size=300)]
    deliver(swarm, relay_peer, b"".join(first + second), 0)
    deliver(swarm, relay_peer, b"".join(first[3:] + second), 1)  # published before, and under way
    deliver(swarm, relay_peer, b"".join(second[2:]), 2)
    assert swarm.per_client() == [(10, 0), (7, 0), (3, 2)]
    assert swarm.settle(SECONDS) is True


DAMAGES = {
    "a byte of the filling": lambda text, _: status(text[:50] + b"*" + text[51:]),
    "binary": lambda text, _: frame(b'{"type":"status","data":"%b"}' % text, 0x82),
    "another topic": lambda _, other: status(other),
    "cut short": lambda text, _: status(text[:-1]),
    "no digit": lambda text, _: status(text[:8] + b"*" + text[9:]),
    "head cut": lambda text, _: status(text[:10]),
    "no JSON": lambda text, _: frame(b'{"type":"status","data":"%b"' % text),
    "another type": lambda text, _: frame(b'{"type":"news","data":"%b"}' % text),
    "a number never sent": lambda text, _: status(text[:7] + b"zzzz" + text[11:]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_seen(relay_peer, redis_peer, kind):
    swarm = opened(relay_peer, 1, [b"/a:x", b"/b:x"])
    mine, other, mine_too, _ = redis_peer.publish(swarm, [b"a:x", b"b:x"], 4)
    deliver(swarm, relay_peer, DAMAGES[kind](mine, other))
    deliver(swarm, relay_peer, status(mine_too))
    counters = swarm.counters()
    # Where the head still tells which message it was, it is damaged and not lost as well.
    known = kind in ("a byte of the filling", "cut short", "no JSON", "another type")
    assert (counters["damaged"], counters["delivered"], counters["lost"]) == (1, 1, 0 if known else 1)
    assert swarm.settle(SECONDS) is True


def test_strangers_messages_are_none_of_ours(relay_peer, redis_peer, new_relay):
    earlier = opened(new_relay(), 1)
    stranger = redis_peer.publish(earlier, [b"r"], 1)[0]
    swarm = opened(relay_peer, 1)
    texts = [b"rq:7 STARTED f(1)", b"", stranger]
    others = [b'{"type":"preflight","checklist":{}}', b"[1]", b"not json", b"[" * 100000, b"\xff\xfe", b""]
    deliver(swarm, relay_peer, b"".join(map(status, texts)) + b"".join(map(frame, others)))
    assert judged(swarm) == {"other": len(texts) + len(others)}


@pytest.mark.parametrize("text", ["plain", "escapes", "accents"])
@pytest.mark.parametrize("size", [SMALLEST, SMALLEST + 1, 17, 125, 1000, 65536, 300_000])
def test_texts_and_sizes(relay_peer, redis_peer, text, size):
    swarm = opened(relay_peer, 1)
    messages = redis_peer.publish(swarm, [b"r"], 3, text=text, size=size)
    assert {len(message) for message in messages} == {size}
    deliver(swarm, relay_peer, b"".join(map(status, messages)))
    assert judged(swarm) == {"delivered": 3}


@pytest.mark.parametrize("text", ["escapes", "accents"])
def test_other_ways_to_write_the_same_json_are_right(relay_peer, redis_peer, text):
    swarm = opened(relay_peer, 1)
    messages = redis_peer.publish(swarm, [b"r"], 2, text=text, size=500)
    for message in messages:
        deliver(swarm, relay_peer, frame(json.dumps({"type": "status", "data": message.decode()}).encode()))
    assert judged(swarm) == {"delivered": 2}


def test_a_frame_in_pieces_of_every_length(relay_peer, redis_peer):
    size = len(status(b"x" * 150)) * 2
    swarm = opened(relay_peer, size)
    stream = b"".join(map(status, redis_peer.publish(swarm, [b"r"], 2, size=150)))
    assert len(stream) == size
    for cut, client in enumerate(relay_peer.clients):
        client.sendall(stream[:cut])
    serve_until(swarm, lambda counters: counters["bytes"] == sum(range(size)))
    for cut, client in enumerate(relay_peer.clients):
        client.sendall(stream[cut:])
    assert swarm.settle(SECONDS) is True
    assert judged(swarm) == {"delivered": 2 * size}


@pytest.mark.parametrize("piece", [4001, 16384, 100_000])
def test_large_frames_in_pieces(relay_peer, redis_peer, piece):
    swarm = opened(relay_peer, 1)
    messages = redis_peer.publish(swarm, [b"r"], 3, size=300_000)
    small = redis_peer.publish(swarm, [b"r"], 2)
    stream = b"".join(map(status, [*messages, *small]))
    for at in range(0, len(stream), piece):
        deliver(swarm, relay_peer, stream[at : at + piece])
    assert judged(swarm) == {"delivered": 5}


def test_reset_forgets_messages_and_keeps_rows(relay_peer, redis_peer):
    swarm = opened(relay_peer, 1)
    frames = [status(message) for message in redis_peer.publish(swarm, [b"r"], 6)]
    deliver(swarm, relay_peer, pick(frames, [0, 2, 2]) + frame(b"?") + frame(b"", 0x89))
    swarm.reset()
    assert counts(swarm, *JUDGED, "bytes", "pings", "opened") == (0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert (swarm.latencies(), swarm.per_client(), swarm.received()) == ([], [(0, 0)], 0)
    assert sum(count for _, count in swarm.handshakes()) == 1
    deliver(swarm, relay_peer, pick(frames, [1, 3, 4]))
    assert judged(swarm) == {"delivered": 3, "reordered": 1}
    assert swarm.settle(0.05) is False
    assert judged(swarm) == {"delivered": 3, "reordered": 1, "lost": 1}


# ---- heartbeats, ends ----


def test_heartbeats_are_answered(relay_peer):
    swarm = opened(relay_peer, 1)
    beats = [frame(b"", 0x89), frame(b"x" * 125, 0x89), frame(b'{"type":"ping"}'), frame(b'{"type": "ping"}')]
    deliver(swarm, relay_peer, b"".join(beats) + frame(b"unasked", 0x8A))
    assert counts(swarm, "pings", "other", "damaged") == (4, 0, 0)
    pong = (1, b'{"type":"pong"}')
    assert [relay_peer.said(0) for _ in beats] == [(10, b""), (10, b"x" * 125), pong, pong]


@pytest.mark.parametrize(
    ("stream", "code", "echo"),
    [
        (frame(b"\x03\xf4", 0x88), 1012, b"\x03\xf4"),
        (frame(b"\x03\xf5slow", 0x88) + frame(b"after"), 1013, b"\x03\xf5"),
        (frame(b"", 0x88), 1005, b""),
        (frame(b"x", 0x81, 0x80), 1002, b"\x03\xea"),  # masked
        (frame(b"x", 0x01), 1002, b"\x03\xea"),  # a fragment
        (frame(b"x", 0x80), 1002, b"\x03\xea"),  # continued from nothing
        (frame(b"x", 0xC1), 1002, b"\x03\xea"),  # compressed
        (frame(b"x", 0x83), 1002, b"\x03\xea"),  # a reserved opcode
        (frame(b"x" * 126, 0x89), 1002, b"\x03\xea"),
        (frame(b"x", 0x88), 1002, b"\x03\xea"),
        (b"\x81\x7f" + b"\xff" * 8, 1009, b"\x03\xf1"),
    ],
)
def test_ends_count_by_their_code(relay_peer, stream, code, echo):
    swarm = opened(relay_peer, 2)
    deliver(swarm, relay_peer, stream)
    assert counts(swarm, "closed", "open", "opened", "other") == ({code: 1}, 1, 2, 0)
    assert counts(swarm, "damaged") == (1 if code in (1002, 1009) else 0,)
    assert relay_peer.said(0) == (8, echo)


def test_an_end_without_a_close_frame_is_1006(relay_peer, redis_peer):
    swarm = opened(relay_peer, 2)
    (message,) = redis_peer.publish(swarm, [b"r"], 1)
    deliver(swarm, relay_peer, status(message))
    relay_peer.clients[0].close()
    relay_peer.clients[1].sendall(status(message)[:50])
    relay_peer.clients[1].close()
    serve_until(swarm, lambda counters: counters["open"] == 0)
    assert counts(swarm, "closed", "delivered", "lost") == ({1006: 2}, 1, 0)
    assert swarm.settle(SECONDS) is True, "nobody is left to wait for"


def test_close_says_goodbye(relay_peer):
    swarm = opened(relay_peer, 2)
    swarm.close()
    assert [relay_peer.said(index) for index in range(2)] == [(8, b"\x03\xe8")] * 2
    assert counts(swarm, "open", "closed") == (0, {})
    swarm.close()


def test_stalled_clients_read_nothing_and_are_not_judged(relay_peer, redis_peer):
    swarm = opened(relay_peer, 3, stalled=1)
    for client in relay_peer.clients:
        client.setblocking(False)
    relay_peer.clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with contextlib.suppress(BlockingIOError):
        while True:  # until nothing more goes, as nobody reads
            relay_peer.clients[2].send(bytes(65536))
    messages = redis_peer.publish(swarm, [b"r"], 4, window=4)
    for index in range(2):
        deliver(swarm, relay_peer, b"".join(map(status, messages)), index)
    assert swarm.settle(SECONDS) is True
    assert judged(swarm) == {"delivered": 8}
    assert swarm.per_client() == [(4, 0), (4, 0)]
    assert counts(swarm, "open") == (3,)
    relay_peer.clients[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    relay_peer.clients[2].close()
    serve_until(swarm, lambda counters: counters["closed"] == {1006: 1})


def test_ctrl_c_ends_serve(relay_peer):
    swarm = opened(relay_peer, 1)
    main = threading.get_ident()
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        swarm.serve(SECONDS)
    timer.join()
    swarm.serve(0)


def test_one_thread_at_a_time(relay_peer):
    swarm = opened(relay_peer, 1)
    other = threading.Thread(target=swarm.serve, args=(3.0,))
    other.start()
    relay_peer.clients[0].sendall(frame(b"", 0x89))
    assert relay_peer.said(0) == (10, b""), "the other one serves"
    with pytest.raises(RuntimeError, match="one thread"):
        swarm.serve(0)
    other.join()


# ---- TLS ----


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_relay(new_relay, authority):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("relay.test").configure_cert(context)
    return new_relay(tls=context)


@pytest.mark.parametrize("size", [100, 300_000])
def test_tls(tls_relay, redis_peer, authority, size):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    swarm = opened(tls_relay, 3, tls=context, server_hostname="relay.test")
    messages = redis_peer.publish(swarm, [b"r"], 5, size=size)
    for index in range(3):
        deliver(swarm, tls_relay, b"".join(map(status, messages)) + frame(b"?", 0x89), index)
    assert judged(swarm) == {"delivered": 15}
    assert tls_relay.said(0) == (10, b"?")
    deliver(swarm, tls_relay, frame(b"\x03\xf4", 0x88))
    tls_relay.clients[1].close()
    serve_until(swarm, lambda counters: counters["closed"] == {1012: 1, 1006: 1})
    swarm.close()
    assert tls_relay.said(2) == (10, b"?")
    assert tls_relay.said(2) == (8, b"\x03\xe8")


def test_a_certificate_that_is_not_trusted(tls_relay):
    swarm = swarm_of(tls_relay, 2, tls=ssl.create_default_context(), server_hostname="relay.test")
    swarm.open(2, seconds=SECONDS)
    assert counts(swarm, "refused", "opened") == ({0: 2}, 0)
    assert "certificate" in swarm.trouble


# ---- the publisher ----


def running(publisher):
    thread = threading.Thread(target=publisher.run)
    thread.start()
    return thread


def test_a_closed_loop_waits_for_all_live_clients(relay_peer, redis_peer):
    swarm = opened(relay_peer, 3)
    publisher = Publisher(swarm, fd=redis_peer.publisher.fileno(), names=[b"r"], size=100, messages=9, window=4)
    thread = running(publisher)
    redis_peer.wait_for(4)
    swarm.serve(0.1)
    assert (publisher.published, publisher.done) == (4, False)
    for index in range(2):
        deliver(swarm, relay_peer, status(redis_peer.published[0][1]), index)
    swarm.serve(0.1)
    assert publisher.published == 4, "the third has not got it"
    deliver(swarm, relay_peer, status(redis_peer.published[0][1]), 2)
    redis_peer.wait_for(5)
    assert publisher.published <= 5
    relay_peer.clients[2].close()  # it is waited for no more
    for number in range(1, 9):
        redis_peer.wait_for(number + 1)
        for index in range(2):
            deliver(swarm, relay_peer, status(redis_peer.published[number][1]), index)
    assert swarm.settle(SECONDS) is True
    thread.join(SECONDS)
    assert (publisher.published, publisher.done, publisher.stalled, publisher.error) == (9, True, False, "")
    assert judged(swarm) == {"delivered": 19}


def test_a_closed_loop_that_stands_still_says_so(relay_peer, redis_peer):
    swarm = opened(relay_peer, 1)
    publisher = Publisher(
        swarm, fd=redis_peer.publisher.fileno(), names=[b"r"], size=100, messages=9, window=2, batch=2
    )
    publisher.run()
    assert (publisher.published, publisher.stalled, publisher.done, publisher.error) == (2, True, True, "")


def test_an_open_loop_keeps_its_rate_and_stamps_when_it_was_due(relay_peer, redis_peer):
    swarm = opened(relay_peer, 1)
    began = time.monotonic()
    messages = redis_peer.publish(swarm, [b"r"], 101, window=0, rate=500.0)
    took = time.monotonic() - began
    assert took >= 100 / 500
    deliver(swarm, relay_peer, b"".join(map(status, messages)))
    assert judged(swarm) == {"delivered": 101}
    latencies = swarm.latencies()
    assert latencies[-1][0] >= 0.19e6, "the first one waited for all the others"
    assert latencies[-1][0] <= (time.monotonic() - began) * 1e6 * 33 / 32 + 3


def test_bursts_at_a_rate_are_due_together(relay_peer, redis_peer):
    swarm = opened(relay_peer, 1)
    messages = redis_peer.publish(swarm, [b"r"], 20, window=0, rate=100.0, batch=10)
    stamps = [message[11:16] for message in messages]
    assert [len(set(burst)) for burst in (stamps[:10], stamps[10:])] == [1, 1]
    assert stamps[0] != stamps[10]


def test_stop_ends_a_publisher(relay_peer, redis_peer):
    swarm = opened(relay_peer, 1)
    publisher = Publisher(swarm, fd=redis_peer.publisher.fileno(), names=[b"r"], size=100, messages=10**9, rate=100.0)
    thread = running(publisher)
    redis_peer.wait_for(3)
    publisher.stop()
    thread.join(SECONDS)
    assert publisher.done
    assert 3 <= publisher.published < 10**9
    with pytest.raises(RuntimeError, match="once"):
        publisher.run()


def test_redis_refuses(relay_peer, new_redis_peer):
    peer = new_redis_peer(reply=b"-NOPERM no access to this channel\r\n")
    publisher = Publisher(
        opened(relay_peer, 1), fd=peer.publisher.fileno(), names=[b"r"], size=50, messages=1, rate=1.0
    )
    publisher.run()
    assert publisher.error == "the server refused a publication: -NOPERM no access to this channel"
    assert publisher.done


def test_redis_goes_away(relay_peer, redis_peer):
    redis_peer.side.shutdown(socket.SHUT_RDWR)
    publisher = Publisher(
        opened(relay_peer, 1), fd=redis_peer.publisher.fileno(), names=[b"r"], size=50, messages=9, rate=100.0
    )
    publisher.run()
    assert "the connection that publishes broke" in publisher.error
    assert publisher.published < 9


def test_http_posts_the_whole_text_of_the_frame(relay_peer):
    swarm = opened(relay_peer, 1, [b"/sub?id=r:x"])
    ours, side = socket.socketpair()
    with ours, side, side.makefile("rb") as requests:
        publisher = Publisher(
            swarm, fd=ours.fileno(), names=[b"r:x"], size=90, messages=3, window=1, text="escapes", protocol="http",
            host=b"nchan",
        )  # fmt: skip
        thread = running(publisher)
        for _ in range(3):
            assert requests.readline() == b"POST /pub?id=r:x HTTP/1.1\r\n"
            fields = dict(line.rstrip().split(b": ") for line in iter(requests.readline, b"\r\n"))
            assert fields[b"Host"] == b"nchan"
            deliver(swarm, relay_peer, frame(requests.read(int(fields[b"Content-Length"]))))
            side.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok")
        thread.join(SECONDS)
    assert (publisher.error, publisher.done) == ("", True)
    assert judged(swarm) == {"delivered": 3}


def test_http_refuses(relay_peer):
    swarm = opened(relay_peer, 1)
    ours, side = socket.socketpair()
    with ours, side:
        side.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        publisher = Publisher(swarm, fd=ours.fileno(), names=[b"r"], size=90, messages=3, rate=1000.0, protocol="http")
        publisher.run()
    assert publisher.error == "the server refused a publication: HTTP/1.1 403 Forbidden"


def test_one_publisher_at_a_time(relay_peer, redis_peer):
    swarm = opened(relay_peer, 1)
    common = {"fd": redis_peer.publisher.fileno(), "names": [b"r"], "size": 50, "messages": 10**9, "rate": 100.0}
    first, second = Publisher(swarm, **common), Publisher(swarm, **common)
    thread = running(first)
    redis_peer.wait_for(1)
    with pytest.raises(RuntimeError, match="one at a time"):
        second.run()
    first.stop()
    thread.join(SECONDS)


# ---- what makes no sense ----


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"paths": []}, "0 paths"),
        ({"host": b"a\r\nX: y"}, "line end"),
        ({"paths": [b"/a\nb"]}, "line end"),
        ({"headers": [(b"X", b"a\r\n")]}, "line end"),
        ({"address": ("localhost", 80)}, "numeric"),
        ({"family": socket.AF_UNIX, "address": "/" + "x" * 200}, "Unix socket"),
        ({"sources": 251}, "sources"),
        ({"family": socket.AF_INET6, "address": ("::1", 80), "sources": 2}, "sources"),
    ],
    ids=str,
)
def test_a_swarm_that_cannot_be(change, why):
    given = {"family": socket.AF_INET, "address": ("127.0.0.1", 80), "host": b"h", "paths": [b"/"], "clients": 1}
    with pytest.raises(ValueError, match=why):
        Swarm(**(given | change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rate": 0.0}, "either a window"),
        ({"window": 3}, "either a window"),
        ({"rate": -1.0, "window": 3}, "no load"),
        ({"size": SMALLEST - 1}, "no load"),
        ({"size": 8 * 1024 * 1024 + 1}, "no load"),
        ({"batch": 0}, "no load"),
        ({"messages": -1}, "no load"),
        ({"names": [b"a", b"b"]}, "2 names for the 1 paths"),
        ({"text": "prose"}, "plain, escapes, accents"),
        ({"protocol": "amqp"}, "redis or http"),
        ({"protocol": "http", "names": [b"a b"]}, "query"),
    ],
    ids=str,
)
def test_a_load_that_cannot_be(change, why):
    swarm = Swarm(family=socket.AF_INET, address=("127.0.0.1", 80), host=b"h", paths=[b"/"], clients=1)
    given = {"fd": -1, "names": [b"r"], "size": 100, "messages": 1, "rate": 1.0}
    with pytest.raises(ValueError, match=why):
        Publisher(swarm, **(given | change))


def test_no_descriptors_left_is_an_error_that_says_what_to_do(relay_peer):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    swarm = swarm_of(relay_peer, 50)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    tenth = [number for number in range(len(used) + 10) if number not in used][9]  # those in use may lie far above
    resource.setrlimit(resource.RLIMIT_NOFILE, (tenth + 1, hard))
    try:
        with pytest.raises(OSError, match="raise RLIMIT_NOFILE"):
            swarm.open(50, seconds=SECONDS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    swarm.open(50, seconds=SECONDS)
    assert counts(swarm, "opened") == (50,)
