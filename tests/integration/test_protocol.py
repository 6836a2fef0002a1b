"""`ready` and `gap`, for clients that ask with ?v=2 (docs/protocol.md); nobody else ever sees them."""

import time

import pytest

from tests.integration.peers import wait_for

READY = {"type": "ready"}
KILL = ("CLIENT", "KILL", "TYPE", "pubsub")
SMALL = {"RELAY_MAX_PUBLISHED_SIZE": "1000", "STATUS_METRICS_ENABLED": "true"}


@pytest.fixture
def process(relay, redis_server):
    return relay(env={"REDIS_URL": redis_server.url, **SMALL})


def received(peer, count):
    return [peer.message() for _ in range(count)]


def line(text):
    return {"type": "status", "data": text}


def test_ready_means_subscribed(process, redis_server, join):
    for number in range(20):
        peer = join(f"{process.status_url}/run{number}:wepp?v=2")
        assert received(peer, 1) == [READY]
        redis_server.execute("PUBLISH", f"run{number}:wepp", "first")
        assert received(peer, 1) == [line("first")]


def test_a_second_client_is_ready_too_and_the_first_hears_nothing_of_it(process, redis_server, join):
    first, second = (join(f"{process.status_url}/run:wepp?v=2") for _ in range(2))
    assert received(first, 1) == received(second, 1) == [READY]
    redis_server.execute("PUBLISH", "run:wepp", "x")
    assert received(first, 1) == received(second, 1) == [line("x")]


def test_a_hole_is_told_where_it_is(process, redis_server, join):
    new, old = join(f"{process.status_url}/run:wepp?v=2"), join(f"{process.status_url}/run:wepp")
    redis_server.execute("PUBLISH", "run:wepp", "before")
    assert received(new, 2) == [READY, line("before")]
    began = time.time()
    redis_server.execute(*KILL)
    gap, ready = received(new, 2)
    assert (gap["type"], gap["reason"]) == ("gap", "link")
    assert began - 15 < gap["since"] <= time.time()
    assert ready == READY
    redis_server.execute("PUBLISH", "run:wepp", "after")
    assert received(new, 1) == [line("after")]
    assert received(old, 2) == [line("before"), line("after")]
    _, _, metrics = process.http("status", "/metrics")
    counted = [text for text in metrics.decode().splitlines() if text.startswith(("status2_gaps", "status2_gap_cl"))]
    assert counted == [
        'status2_gaps_total{reason="link"} 1.0',
        'status2_gaps_total{reason="size"} 0.0',
        'status2_gap_clients_total{told="true"} 1.0',
        'status2_gap_clients_total{told="false"} 1.0',
    ]


def test_many_kills_are_as_many_holes(process, redis_server, join):
    peer = join(f"{process.status_url}/run:wepp?v=2")
    assert received(peer, 1) == [READY]
    for number in range(5):
        redis_server.execute(*KILL)
        gap, ready = received(peer, 2)
        assert (gap["type"], ready) == ("gap", READY)
        redis_server.execute("PUBLISH", "run:wepp", str(number))
        assert received(peer, 1) == [line(str(number))]


def test_a_message_that_is_too_large_leaves_a_gap_in_its_place(process, redis_server, join):
    new, old = join(f"{process.status_url}/run:wepp?v=2"), join(f"{process.status_url}/run:wepp")
    assert received(new, 1) == [READY]
    for text in ("a", "x" * 1001, "b", "y" * 1000):
        redis_server.execute("PUBLISH", "run:wepp", text)
    assert received(new, 4) == [line("a"), {"type": "gap", "reason": "size"}, line("b"), line("y" * 1000)]
    assert received(old, 3) == [line("a"), line("b"), line("y" * 1000)]


def test_who_joins_while_redis_is_away_knows_it(process, redis_server, join):
    redis_server.kill()
    wait_for(lambda: not process.ready("status"), "the loss noticed")
    new, old = join(f"{process.status_url}/run:wepp?v=2"), join(f"{process.status_url}/run:wepp")
    assert received(new, 1)[0]["reason"] == "link"
    redis_server.start()
    assert received(new, 1) == [READY]
    redis_server.execute("PUBLISH", "run:wepp", "x")
    assert received(new, 1) == received(old, 1) == [line("x")]


def test_a_checklist_is_ready_when_it_is_current(process, redis_server, join):
    redis_server.execute("HSET", "run", "timestamps:build_channels", "10")
    new, old = join(f"{process.preflight_url}/run?v=2"), join(f"{process.preflight_url}/run")
    snapshot, ready = received(new, 2)
    assert snapshot["checklist"]["channels"]
    assert ready == READY
    redis_server.kill()
    assert received(new, 1)[0]["reason"] == "link"
    redis_server.start()
    redis_server.execute("HSET", "run", "timestamps:build_channels", "10", "timestamps:set_outlet", "20")
    seen = []
    while READY not in seen or not any(frame.get("checklist", {}).get("outlet") for frame in seen):
        seen += received(new, 1)
    assert {frame["type"] for frame in seen} <= {"preflight", "ready"}
    old.until({"channels", "outlet"})


def test_a_watcher_of_a_checklist_learns_that_it_cannot_be_read(process, redis_server, join):
    peer = join(f"{process.preflight_url}/run?v=2")
    assert [frame["type"] for frame in received(peer, 2)] == ["preflight", "ready"]
    redis_server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert [frame["type"] for frame in received(peer, 2)] == ["gap", "ready"]
