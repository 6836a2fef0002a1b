"""Each bound of a real process: it is what was set, and a breach does what is documented and is counted as that."""

import contextlib

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Relay
from tests.integration.peers import (
    PONG,
    TEXT,
    Peer,
    Refused,
    Wire,
    address_of,
    ask,
    frame,
    head,
    upgrade,
    wait_for,
)

BOUNDS = {
    "RELAY_MAX_HEAD_SIZE": 2048,
    "RELAY_MAX_HEADERS": 16,
    "RELAY_HEAD_TIMEOUT": "30s",
    "RELAY_MAX_HEADS": 16,
    "RELAY_MAX_CONNECTIONS": 24,
    "RELAY_MAX_TOPICS": 20,
    "RELAY_MAX_FRAGMENTS": 4,
    "RELAY_FRAME_RATE": 1,
    "RELAY_FRAME_BURST": 10,
    "RELAY_MAX_INBOUND": 1 << 20,
    "RELAY_MAX_BACKLOG": 4096,
    "RELAY_MAX_LIVE": 1 << 20,
    "RELAY_MAX_PUBLISHED_SIZE": 61_000,
    "RELAY_MAX_REPLY_SIZE": 1 << 16,
    "RELAY_DRAIN": "1s",
    "STATUS_WRITE_TIMEOUT": "30s",
    "PREFLIGHT_PING_INTERVAL": "500ms",
    "PREFLIGHT_PONG_TIMEOUT": "30s",
}
# In a relay of their own: a test that stands still for a second would break these where it is about others.
SHORT = {"RELAY_HEAD_TIMEOUT": "1s", "STATUS_WRITE_TIMEOUT": "1s", "PREFLIGHT_PONG_TIMEOUT": "1s"}


class Bounded(Relay):
    """A relay with small bounds, and what its /metrics says."""

    def samples(self, name, label="bound"):
        found = text_string_to_metric_families(self.http("status", "/metrics")[2].decode())
        return {s.labels[label]: s.value for family in found for s in family.samples if s.name == name}

    def breaches(self, service="status"):
        return self.samples(f"{service}2_breaches_total")


@pytest.fixture(scope="module")
def start(_shared_redis, tmp_path_factory):
    """A factory of such relays for all tests of the module: `start({'RELAY_DRAIN': '1s'})`, the others as in BOUNDS."""
    with contextlib.ExitStack() as stack:

        def start(changed):
            env = {name: str(value) for name, value in (BOUNDS | changed).items()}
            env |= {"REDIS_URL": _shared_redis.url, "STATUS_METRICS_ENABLED": "1"}
            return stack.enter_context(Bounded([], env, tmp_path_factory.mktemp("relay")))

        yield start


@pytest.fixture(scope="module")
def bounded(start):
    return start({})


@pytest.fixture(scope="module")
def hasty(start):
    return start(SHORT)


@contextlib.contextmanager
def counted(process, breaches, service="status"):
    """In this context these breaches, and no others, are counted; who was there before has gone."""
    wait_for(lambda: process.samples("relay_bound_used")["connections"] == 1, "only who asks for the metrics is there")
    before = process.breaches(service)
    yield
    wait_for(lambda: process.breaches(service) != before, f"{breaches} counted")
    after = process.breaches(service)
    new = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert new == breaches


def test_every_bound_is_told_and_every_breach_has_its_bound(bounded):
    told = bounded.samples("relay_bound")
    assert {name: told[name] for name in ("head_size", "head_timeout", "live", "connections")} == {
        "head_size": 2048,
        "head_timeout": 30,
        "live": 1 << 20,
        "connections": 24,
    }
    assert told["undelivered"] == 16 * 4096
    own = bounded.samples("preflight2_bound")
    assert own == {"message_size": 65536, "write_timeout": 10, "pong_timeout": 30}
    assert bounded.breaches().keys() <= told.keys() | own.keys()
    assert bounded.samples("relay_bound_used").keys() == {
        *("heads", "connections", "topics", "inbound", "live", "log_lines")
    }
    assert bounded.samples("relay_breaches_total") == {"log_lines": 0}


@pytest.mark.parametrize(
    ("bound", "data", "sentence"),
    [
        ("head_size", head("/" + "x" * 2100), b"more than 2048 bytes"),
        ("headers", upgrade("/r1:wepp", *(f"X-{i}: y" for i in range(12))), b"More than 16 headers"),
    ],
)
def test_a_request_head_that_is_too_large(bounded, bound, data, sentence):
    with counted(bounded, {bound: 1}):
        answer = ask(bounded.status_url, data)
        assert answer.status == 431
        assert sentence in answer.body


def test_a_request_head_that_does_not_come(hasty):
    with counted(hasty, {"head_timeout": 1}), Wire(address_of(hasty.status_url)) as slow:
        slow.send(b"GET /r1:wepp HTTP/1.1\r\n")
        answer = slow.answer()
        assert answer.status == 408
        assert b"not complete in 1 s" in answer.body


def test_too_many_request_heads(bounded):
    before = bounded.breaches()["heads"]
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(address_of(bounded.status_url))) for _ in range(17)]
        for wire in wires:
            wire.send(b"GET /")
        assert wires[0].ended() == b""
        assert bounded.breaches()["heads"] > before
        assert bounded.samples("relay_bound_used")["heads"] <= 16


def test_too_many_connections(bounded):
    with contextlib.ExitStack() as stack, counted(bounded, {"connections": 1}):
        for _ in range(24):
            stack.enter_context(Peer(f"{bounded.status_url}/r1:wepp"))
        with pytest.raises(Refused) as refused:
            Peer(f"{bounded.status_url}/r1:wepp")
        assert refused.value.status == 503


def test_too_many_topics_of_both_services_together(bounded):
    with contextlib.ExitStack() as stack, counted(bounded, {"topics": 1}):
        for number in range(10):
            stack.enter_context(Peer(f"{bounded.status_url}/r{number}:wepp"))
            stack.enter_context(Peer(f"{bounded.preflight_url}/r{number}"))
        assert bounded.samples("relay_bound_used")["topics"] == 20
        with pytest.raises(Refused) as refused:
            Peer(f"{bounded.status_url}/r10:wepp")
        assert refused.value.status == 503
        assert int(refused.value.answer.headers["retry-after"]) > 0
        stack.enter_context(Peer(f"{bounded.status_url}/r1:wepp"))


@pytest.mark.parametrize(
    ("bound", "data", "code"),
    [
        ("message_size", frame(TEXT, b"x" * 65_537), 1009),
        ("fragments", frame(TEXT, final=False) + frame(0, final=False) * 4, 1009),
        ("frame_rate", frame(PONG) * 12, 1008),
    ],
    ids=("message_size", "fragments", "frame_rate"),
)
def test_what_a_client_may_send(bounded, bound, data, code):
    with counted(bounded, {bound: 1}), Peer(f"{bounded.status_url}/r1:wepp") as peer:
        peer.send(data)
        assert peer.closed()[0] == code


def test_what_clients_may_hold_together(bounded):
    """Each within its own bound: of 20 with 60 KB each some go, and who only listens does not."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Peer(f"{bounded.status_url}/r1:wepp"))
        senders = [stack.enter_context(Peer(f"{bounded.status_url}/r1:wepp")) for _ in range(20)]
        before = bounded.breaches()["inbound"]
        for sender in senders:
            sender.send(frame(TEXT, b"x" * 60_000, size=65_536))
        wait_for(lambda: bounded.breaches()["inbound"] > before, "somebody goes")
        assert bounded.samples("relay_bound_used")["inbound"] <= 1 << 20
        assert listener.alive()
        went = int(bounded.breaches()["inbound"] - before)
        assert 1 <= went < 20
        assert bounded.samples("status2_closes_total", "code")["1013"] >= went


@pytest.fixture
def publish(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield lambda text, channel="r1:wepp": connection.publish(channel, text)


def owes(bounded):
    return bounded.samples("relay_bound_used")["live"] > 0


def gives_up(process, bound, publish, size, enough):
    """The code with which one that does not read is given up; None where it was read too late."""
    before = process.breaches()[bound]
    with counted(process, {bound: 1}), Peer(f"{process.status_url}/r1:wepp", receive_buffer=4096) as slow:
        while process.breaches()[bound] == before and not enough():
            publish("x" * size)
        wait_for(lambda: process.breaches()[bound] > before, "it is given up")
        return slow.told()


def test_what_may_wait_for_a_client(bounded, publish):
    assert any(gives_up(bounded, "backlog", publish, 3000, lambda: False) == 1013 for _ in range(3))


def test_how_long_it_may_wait(hasty, publish):
    assert any(gives_up(hasty, "write_timeout", publish, 1000, lambda: owes(hasty)) == 1013 for _ in range(3))


def test_what_may_wait_for_all_clients(bounded, publish):
    """A message larger than what may wait for a client is excused there, and not here."""
    before = bounded.breaches()["live"]
    with contextlib.ExitStack() as stack:
        for number in range(8):
            stack.enter_context(Peer(f"{bounded.status_url}/r{number}:wepp", receive_buffer=4096))
            publish("\0" * 61_000, f"r{number}:wepp")
        wait_for(lambda: bounded.breaches()["live"] > before, "who owes most goes")
        assert bounded.samples("relay_bound_used")["live"] <= 1 << 20


def test_what_may_be_published(bounded, publish):
    with counted(bounded, {"published_size": 1}), Peer(f"{bounded.status_url}/r1:wepp") as peer:
        publish("x" * 61_001)
        publish("next")
        assert peer.data() == "next"


def test_what_redis_may_reply(bounded, publish):
    with Peer(f"{bounded.status_url}/r1:wepp") as peer:
        before = bounded.breaches()["reply_size"]
        publish("x" * 1_000_000)
        wait_for(lambda: bounded.breaches()["reply_size"] == before + 1, "the link is thrown away")
        wait_for(lambda: bounded.ready("status"), "and made anew")
        assert peer.alive()


def test_how_long_a_client_may_be_silent(hasty):
    with counted(hasty, {"pong_timeout": 1}, "preflight"), Peer(f"{hasty.preflight_url}/r1") as peer:
        assert peer.closed()[0] == 1008
