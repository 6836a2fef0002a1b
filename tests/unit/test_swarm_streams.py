"""The load generator on event streams (WHATWG HTML, section 9.2), from a server that says what it is told."""

import contextlib
import json

import pytest

from relay._swarm import Swarm
from tests.unit.fake_relay import SECONDS, FakeRedis, FakeRelay, answer_to, serve_until, status

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
NAMES = [b"r:wepp"]


def event(text, name=b"status"):
    """The relay's event for a published text."""
    return b'event: %b\ndata: {"type":"%b","data":%b}\n\n' % (name, name, json.dumps(text.decode()).encode())


@pytest.fixture
def peers():
    """(a relay, a Redis), where each client is answered by `answer` or as a websocket."""
    with contextlib.ExitStack() as stack:

        def start(answer=HEAD):
            relay = FakeRelay(answer=lambda request: answer if b"event-stream" in request else answer_to(request))
            redis = FakeRedis()
            stack.callback(relay.close)
            stack.callback(redis.close)
            return relay, redis

        yield start


def swarm_of(relay, clients=1, streams=1, **options):
    options = {"family": relay.listener.family, "address": relay.address, "host": b"localhost"} | options
    swarm = Swarm(paths=[b"/r:wepp"], clients=clients, streams=streams, **options)
    for number in range(clients):  # one by one, so that the relay has them in this order
        swarm.open(number + 1, seconds=SECONDS)
    return swarm


def wrong(swarm):
    counters = swarm.counters()
    return {name: counters[name] for name in ("lost", "duplicated", "reordered", "damaged", "other") if counters[name]}


def test_it_asks_as_an_event_source_does_and_the_others_as_websockets(peers):
    relay, _ = peers()
    swarm = swarm_of(relay, clients=3, streams=2, origin=b"https://here.example", headers=[(b"Cookie", b"a=1")])
    assert swarm.counters()["open"] == 3, swarm.trouble
    assert relay.requests[1] == (
        b"GET /r:wepp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        b"Origin: https://here.example\r\nCookie: a=1\r\n\r\n"
    )
    assert [b"Upgrade: websocket" in request for request in relay.requests] == [False, False, True]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_events_are_read_however_they_are_cut(peers, size):
    relay, redis = peers(HEAD + b"retry: 2500\n\n")
    swarm = swarm_of(relay)
    messages = redis.publish(swarm, NAMES, 5)
    whole = b"".join(b":\n\n" + event(message) for message in messages) + event(b"from a stranger") + b"data: odd\n\n"
    for at in range(0, len(whole), size):
        relay.clients[0].sendall(whole[at : at + size])
        swarm.serve(0)
    serve_until(swarm, lambda counters: counters["other"] == 2)
    counters = swarm.counters()
    assert (counters["delivered"], counters["pings"], counters["bytes"]) == (5, 5, len(whole) + len(b"retry: 2500\n\n"))
    assert wrong(swarm) == {"other": 2}
    assert swarm.settle(SECONDS) is True


def test_what_is_missing_double_late_or_damaged_is_seen(peers):
    relay, redis = peers()
    swarm = swarm_of(relay)
    first, second, third, fourth, fifth = redis.publish(swarm, NAMES, 5)
    assert fourth  # never comes
    relay.clients[0].sendall(b"".join(map(event, (first, first, third, second, fifth[:-1] + b"?"))))
    serve_until(swarm, lambda counters: counters["damaged"])
    assert wrong(swarm) == {"duplicated": 1, "reordered": 1, "lost": 1, "damaged": 1}


def test_latencies_of_both_kinds_are_kept_apart(peers):
    relay, redis = peers()
    swarm = swarm_of(relay, clients=3, streams=2)
    messages = redis.publish(swarm, NAMES, 4)
    for client, whole in zip(relay.clients, (event, event, status), strict=True):
        client.sendall(b"".join(map(whole, messages)))
    serve_until(swarm, lambda counters: counters["delivered"] == 12)
    counts = [sum(count for _, count in swarm.latencies(streams=streams)) for streams in (True, False)]
    assert counts == [8, 4]
    swarm.reset()
    assert swarm.latencies(streams=True) == swarm.latencies() == []


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b'event: close\ndata: {"type":"close","code":1013,"reason":"slow"}\n\n', 1013),
        (b'event: close\ndata: {"type":"close","code":"x"}\n\n', 1005),
        (b"", 1006),
        (b"event: status\ndata: {", 1006),
    ],
)
def test_an_end_has_the_code_that_was_said(peers, said, code):
    relay, _ = peers()
    swarm = swarm_of(relay)
    relay.clients[0].sendall(said)
    relay.clients[0].close()
    serve_until(swarm, lambda counters: not counters["open"])
    assert swarm.counters()["closed"] == {code: 1}


def test_an_event_without_an_end_is_damage_and_no_hang(peers):
    relay, _ = peers()
    swarm = swarm_of(relay)
    relay.clients[0].settimeout(SECONDS)
    with contextlib.suppress(ConnectionError):  # it hangs up before it has all
        for _ in range(40):
            relay.clients[0].sendall(b"data: " + b"x" * 10_000)
            swarm.serve(0)
    serve_until(swarm, lambda counters: not counters["open"])
    assert (swarm.counters()["damaged"], swarm.counters()["closed"]) == (1, {1009: 1})


@pytest.mark.parametrize(
    ("answer", "code", "why"),
    [
        (b"HTTP/1.1 406 Not Acceptable\r\n\r\n", 406, "refused: HTTP/1.1 406"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n", 200, "no event stream"),
        (HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", 200, "in chunks"),
        (b"SSH-2.0-x\r\n\r\n", 0, "no HTTP: b'SSH-2.0-x'"),
        (None, 0, "ended before the answer"),
    ],
)
def test_an_answer_that_is_no_event_stream_counts_as_refused(peers, answer, code, why):
    relay, _ = peers(answer)
    swarm = swarm_of(relay)
    assert (swarm.counters()["refused"], swarm.counters()["opened"]) == ({code: 1}, 0)
    assert why in swarm.trouble
