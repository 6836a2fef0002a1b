"""The judge and the proxy themselves: each breach of a promise is seen, and each fault is what it says."""

import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.faults.proxy import DOWN, SUBSCRIPTIONS, UP
from tests.faults.recorder import PreflightJudge, Publisher, Said, StatusJudge, Written


def status(number, channel="run1:wepp"):
    return {"type": "status", "data": f"{number} on {channel}"}


READY = {"type": "ready"}


@pytest.fixture
def said():
    """Six messages: the first three published and taken at 10, 11, 12, the others at 20, 21, 22."""
    return Said("run1:wepp", before=[10.0, 11.0, 12.0, 20.0, 21.0, 22.0], after=[10.0, 11.0, 12.0, 20.0, 21.0, 22.0])


def gap(since):
    return {"type": "gap", "reason": "link", "since": since}


STREAMS = {
    "nothing wrong": ([READY, *map(status, range(6))], None),
    "a hole that is flagged": ([READY, status(0), gap(11.0), READY, *map(status, (3, 4, 5))], None),
    "a hole that none flags": ([READY, status(0), *map(status, (3, 4, 5))], "promise 3"),
    "a gap that begins too late": ([READY, status(0), gap(11.5), READY, *map(status, (3, 4, 5))], "promise 3"),
    "said after the ready": ([READY, *map(status, (0, 1, 2)), gap(12.5), READY, *map(status, (4, 5))], "promise 3"),
    "missing at the end": ([READY, *map(status, range(5))], "promise 3"),
    "twice": ([READY, *map(status, (0, 1, 1, 2, 3, 4, 5))], "promise 2, no duplicates"),
    "out of order": ([READY, *map(status, (0, 2, 1, 3, 4, 5))], "promise 1|promise 3"),
    "never said": ([READY, *map(status, range(7))], "promise 2, no inventions"),
    "another channel's": ([READY, status(0, "run2:wepp")], "promise 2, no inventions"),
    "a hangup": ([{"type": "hangup"}], "no client may be sent this"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_judge_of_lines(said, name):
    frames, breach = STREAMS[name]
    judge = StatusJudge(said)
    judge.last = -1
    for frame in frames:
        judge.frame({True: 15.0}.get(frame == READY, 30.0), frame)
    judge.end()
    if breach is None:
        assert not judge.broken
    else:
        assert any(part in sentence for part in breach.split("|") for sentence in judge.broken), judge.broken


def test_an_old_client_is_told_of_no_hole(said):
    judge = StatusJudge(said, version=1)
    judge.last = -1
    for frame in (status(0), status(5)):
        judge.frame(30.0, frame)
    judge.end()
    assert not judge.broken
    judge.frame(30.0, READY)
    assert judge.broken


def test_a_message_too_large_excuses_itself_alone(said):
    said.oversize = {1}
    for numbers, broken in ([0, 2], False), ([0, 3], True):
        judge = StatusJudge(said)
        judge.last = -1
        judge.frame(1.0, READY)
        judge.frame(30.0, {"type": "gap", "reason": "size"})
        for number in numbers:
            judge.frame(30.0, status(number))
        assert bool(judge.broken) is broken


def snapshot(version, *checks):
    names = ("channels", "outlet", "subcatchments")
    message = {"type": "preflight", "checklist": {name: name in checks for name in names}}
    return message | ({} if version is None else {"last_modified": version})


SNAPSHOTS = {
    "all states": ([snapshot(None), snapshot(1, "channels"), snapshot(2, "channels", "outlet")], None),
    "some skipped": ([snapshot(2, "channels", "outlet")], None),
    "back in time": ([snapshot(2, "channels", "outlet"), snapshot(1, "channels")], "never back in time"),
    "told twice": ([snapshot(1, "channels"), snapshot(1, "channels")], "told twice"),
    "a moment of nothing": ([snapshot(1, "channels"), snapshot(None)], "never back in time"),
    "a state that never was": ([snapshot(1, "channels", "outlet")], "no transient state"),
    "the last is missing": ([snapshot(1, "channels")], "promise 6"),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_judge_of_checklists(name):
    frames, breach = SNAPSHOTS[name]
    written = Written("run1")
    written.states += [(1, frozenset({"channels"})), (2, frozenset({"channels", "outlet"}))]
    judge = PreflightJudge(written)
    for frame in frames:
        judge.frame(0.0, frame)
    judge.end()
    assert bool(judge.broken) is bool(breach), judge.broken
    assert not breach or any(breach in sentence for sentence in judge.broken), judge.broken


@pytest.mark.parametrize(("since", "breach"), [(10.4, None), (10.6, "promise 3"), (9.0, None)])
def test_the_hole_of_a_checklist_begins_with_what_it_lacks(since, breach):
    written = Written("run1")
    written.states += [(1, frozenset({"channels"})), (2, frozenset({"channels", "outlet"}))]
    written.times += [9.0, 10.0]
    judge = PreflightJudge(written)
    for frame in (snapshot(1, "channels"), READY, gap(since), READY, snapshot(2, "channels", "outlet")):
        judge.frame(11.0, frame)
    judge.end()
    assert bool(judge.broken) is bool(breach), judge.broken
    assert not breach or breach in judge.broken[0]


def test_the_judge_sees_what_a_relay_does(relay, redis_server, recorder, worker):
    process = relay(env={"REDIS_URL": redis_server.url})
    judge = recorder()
    channels, runs = [Said(f"run{n}:wepp") for n in range(5)], [Written(f"run{n}") for n in range(5)]
    for version in (1, 2):
        judge.join(process.status_url, *channels, version=version)
        judge.join(process.preflight_url, *runs, version=version)
    connection = worker(redis_server)
    with Publisher(lambda: worker(redis_server), channels, 2000):
        for checks in range(1, 7):
            for run in runs:
                run.write(connection, checks)
    judge.settle()
    assert all(client.judge.got for client in judge.clients)
    assert all(client.judge.readies for client in judge.clients if client.judge.version == 2)


# ---- the proxy ----


@pytest.fixture
def through(proxy, redis_server):
    """A proxy, and a connection and a subscription through it."""
    way = proxy(redis_server)
    once = {"port": way.port, "retry": Retry(NoBackoff(), 0), "socket_timeout": 2.0}
    with redis.Redis(**once) as commands, redis.Redis(**once).pubsub() as listener:
        commands.ping()
        listener.subscribe("x")
        assert listener.get_message(timeout=5)["type"] == "subscribe"
        yield way, commands, listener


def test_it_knows_which_is_which(through):
    way, commands, listener = through
    assert [len(way.open(kind)) for kind in ("commands", "subscriptions")] == [1, 1]
    way.reset(SUBSCRIPTIONS)
    with pytest.raises(redis.ConnectionError):
        listener.connection.read_response()
    assert commands.ping()
    assert [len(way.open(kind)) for kind in ("commands", "subscriptions")] == [1, 0]


@pytest.mark.parametrize("way", [UP, DOWN])
def test_what_is_held_comes_when_it_is_let_go(through, redis_server, way):
    proxy, commands, listener = through
    proxy.subscriptions.stalled = {way}
    redis_server.execute("PUBLISH", "x", "1")
    came = listener.get_message(timeout=0.1)
    assert bool(came) is (way == UP)
    assert commands.ping()
    proxy.heal()
    assert came or listener.get_message(timeout=5)["data"] == b"1"


def test_late_and_in_order(through, redis_server):
    proxy, commands, listener = through
    proxy.both(latency=0.05, jitter=0.02)
    start = time.monotonic()
    assert commands.ping()
    assert time.monotonic() - start >= 0.1
    for number in range(20):
        redis_server.execute("PUBLISH", "x", number)
    assert [int(listener.get_message(timeout=5)["data"]) for _ in range(20)] == list(range(20))


def test_deaf_it_answers_pings_and_delivers_nothing(through, redis_server):
    proxy, _, listener = through
    proxy.subscriptions.deaf = True
    assert redis_server.execute("PUBLISH", "x", "1") == 1
    listener.ping()
    assert listener.get_message(timeout=5)["type"] == "pong"
    assert listener.get_message(timeout=0.1) is None


def test_another_redis_hears_the_subscription(proxy, redis_server, new_redis):
    other = new_redis()
    way = proxy(redis_server)
    way.subscriptions.target = other.port
    with redis.Redis(port=way.port) as connection, connection.pubsub() as listener:
        listener.subscribe("x")
        assert listener.get_message(timeout=5)["type"] == "subscribe"
        assert (redis_server.execute("PUBLISH", "x", "1"), other.execute("PUBLISH", "x", "2")) == (0, 1)
        assert listener.get_message(timeout=5)["data"] == b"2"


def test_bytes_are_turned_cut_and_counted_out(through, redis_server):
    proxy, commands, _ = through
    proxy.both(trickle=True)
    assert commands.echo("x" * 2000) == b"x" * 2000
    proxy.heal()
    proxy.commands.flips = 1
    with pytest.raises((redis.RedisError, AssertionError)):
        assert commands.echo("x" * 2000) == b"x" * 2000
    commands.connection_pool.disconnect()
    commands.ping()
    proxy.commands.cut_after = 100
    with pytest.raises(redis.ConnectionError):
        commands.echo("x" * 2000)
    proxy.refuse()
    with pytest.raises(redis.ConnectionError):
        commands.ping()
    proxy.accept()
    assert commands.ping()
