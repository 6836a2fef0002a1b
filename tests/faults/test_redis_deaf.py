"""F3-F6: Redis does not answer, or answers and does not deliver, and every connection stands."""

import time

import pytest

from tests.faults.promises import doubts, heals, stays_unready
from tests.faults.proxy import DOWN, SUBSCRIPTIONS, UP
from tests.faults.recorder import Publisher, Said, Written

QUICK = {f"{service}_REDIS_REQUEST_TIMEOUT": "500ms" for service in ("STATUS", "PREFLIGHT")}


def watched(process, recorder, name="run"):
    """A judge with clients of both versions, on all services of the relay -> (judge, channels, runs)."""
    judge = recorder()
    channels = [Said(f"{name}{n}:wepp") for n in range(5)]
    runs = [Written(f"{name}{n}") for n in range(5)] if process.preflight_url else []
    for version in (1, 2):
        judge.join(process.status_url, *channels, version=version)
        if runs:
            judge.join(process.preflight_url, *runs, version=version)
    judge.wait(lambda client: client.judge.version == 1 or client.judge.readies, "ready")
    return judge, channels, runs


def goes_on(judge, channels, runs, connection):
    """What is said and written now arrives, and all before it was right."""
    for run in runs:
        run.write(connection, 3)
    for channel in channels:
        channel.publish(connection)
    judge.settle()


# ---- F3: frozen ----


@pytest.mark.row("F3")
@pytest.mark.long
def test_frozen_for_half_a_minute(relay, redis_server, recorder, worker, told):
    env = {"REDIS_URL": redis_server.url}
    process, bare = relay(env=env), relay("status", env=env, without=["ping", "probe"])
    judge, channels, runs = watched(process, recorder)
    blind, *_ = watched(bare, recorder, "bare")
    connection = worker(redis_server)
    with Publisher(lambda: worker(redis_server), channels, 200):
        judge.wait(lambda client: client.judge.got, "traffic")
        redis_server.pause()
        since = time.time()
        told.injected("SIGSTOP of Redis for 30 s under traffic")
        took = doubts(process, judge, since)
        with pytest.raises(AssertionError, match="promise 4, bounded doubt"):
            doubts(bare, blind, since)
        judge.verdict()
        time.sleep(max(0.0, since + 30 - time.time()))
        redis_server.resume()
        back = heals(process, judge)
    told.observed(f"noticed in {took:.1f} s, back in {back:.1f} s; without PING and probe it starved")
    told.bound("15 s; no duplicates")
    goes_on(judge, channels, runs, connection)


@pytest.mark.row("F3")
@pytest.mark.long
def test_frozen_for_a_moment(relay, redis_server, recorder, worker, told):
    process = relay(env={"REDIS_URL": redis_server.url, **QUICK})
    judge, channels, runs = watched(process, recorder)
    with Publisher(lambda: worker(redis_server), channels, 200):
        judge.wait(lambda client: client.judge.got, "traffic")
        redis_server.pause()
        told.injected("SIGSTOP of Redis, deadlines of 0.5 s")
        took = doubts(process, judge, time.time())
        redis_server.resume()
        back = heals(process, judge)
    told.observed(f"noticed in {took:.1f} s, back in {back:.1f} s")
    told.bound("15 s")
    goes_on(judge, channels, runs, worker(redis_server))


# ---- F4, F5: half-open, and one way only ----

CUTS = {"half-open": {UP, DOWN}, "nothing to Redis": {UP}, "nothing from Redis": {DOWN}}
ROWS = [
    pytest.param(name, marks=pytest.mark.row("F4" if len(stalled) == 2 else "F5"), id=name)
    for name, stalled in CUTS.items()
]


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_the_line_is_held_up(relay, redis_server, proxy, recorder, worker, told, name):
    """By the proxy, whose kernel acknowledges all that the relay sends: only a deadline can tell."""
    line, other = proxy(redis_server), proxy(redis_server)
    process = relay(env={"REDIS_URL": line.url})
    bare = relay("status", env={"REDIS_URL": other.url}, without=["ping", "probe"])
    judge, channels, runs = watched(process, recorder)
    blind, *_ = watched(bare, recorder, "bare")
    for way in (line, other):
        way.both(stalled=CUTS[name])
    since = time.time()
    told.injected(f"{name}, idle, by the proxy")
    took = doubts(process, judge, since)
    with pytest.raises(AssertionError, match="promise 4, bounded doubt"):
        doubts(bare, blind, since)
    line.heal()
    back = heals(process, judge)
    told.observed(f"noticed in {took:.1f} s, back in {back:.1f} s; without PING and probe it starved")
    told.bound("15 s")
    goes_on(judge, channels, runs, worker(redis_server))


@pytest.mark.long
@pytest.mark.needs("netns", "ip", "tc")
@pytest.mark.parametrize("name", ROWS)
def test_the_cable_is_cut(relay, redis_there, recorder, worker, told, name):
    """In a network of its own: packets are lost, nobody is told, and nothing is acknowledged."""
    env = {"REDIS_URL": redis_there.url}
    process = relay(env=env)
    bare = relay("status", env=env, without=["ping", "probe", "user-timeout"])
    judge, channels, runs = watched(process, recorder)
    blind, *_ = watched(bare, recorder, "bare")
    for way in CUTS[name]:
        redis_there.namespace.blackout(way)
    since = time.time()
    told.injected(f"{name}, idle, in a namespace")
    took = doubts(process, judge, since)
    with pytest.raises(AssertionError, match="promise 4, bounded doubt"):
        doubts(bare, blind, since)
    judge.verdict()
    redis_there.namespace.mend()
    back = heals(process, judge)
    told.observed(f"noticed in {took:.1f} s, back in {back:.1f} s; without PING and probe it starved")
    told.bound("15 s")
    goes_on(judge, channels, runs, worker(redis_there))


# ---- F6: a node that hears nothing ----


@pytest.mark.row("F6")
@pytest.mark.long
def test_the_wrong_node(relay, redis_server, new_redis, proxy, recorder, worker, told):
    """After a failover the subscriptions are with a Redis that answers all and to which nobody publishes."""
    elsewhere = new_redis()
    line, other = proxy(redis_server), proxy(redis_server)
    process = relay("status", env={"REDIS_URL": line.url})
    bare = relay("status", env={"REDIS_URL": other.url}, without=["probe"])
    (judge, channels, _), (blind, unheard, _) = watched(process, recorder), watched(bare, recorder, "bare")
    for way in (line, other):
        way.subscriptions.target = elsewhere.port
        way.reset(SUBSCRIPTIONS)
    told.injected("the subscriptions are sent to another Redis, which answers PING and gets no messages")
    for known in (judge, blind):
        known.wait(lambda c: c.judge.version == 1 or (c.judge.gaps and c.judge.sure), "on the wrong node")
    since = time.time()
    connection = worker(redis_server)
    for channel in (*channels, *unheard):
        assert channel.publish(connection) == 0
    took = doubts(process, judge, since)
    with pytest.raises(AssertionError, match="promise 4, bounded doubt"):
        doubts(bare, blind, since)
    stays_unready(process, 6.0)
    line.heal()
    line.reset(SUBSCRIPTIONS)
    back = heals(process, judge)
    told.observed(f"noticed in {took:.1f} s, back in {back:.1f} s; without the probe it starved")
    told.bound("15 s")
    goes_on(judge, channels, [], connection)
    with pytest.raises(AssertionError, match="promise 3, no silent hole"):
        blind.settle(patience=0.1)


@pytest.mark.row("F6")
@pytest.mark.long
def test_the_node_goes_deaf(relay, redis_server, proxy, recorder, worker, told):
    """In the middle of traffic, on a connection that has delivered until now and goes on answering PING."""
    line, other = proxy(redis_server), proxy(redis_server)
    process = relay(env={"REDIS_URL": line.url})
    bare = relay("status", env={"REDIS_URL": other.url}, without=["probe"])
    (judge, channels, runs), (blind, unheard, _) = watched(process, recorder), watched(bare, recorder, "bare")
    with Publisher(lambda: worker(redis_server), [*channels, *unheard], 1000):
        judge.wait(lambda client: client.judge.got, "traffic")
        for way in (line, other):
            way.subscriptions.deaf = True
        since = time.time()
        told.injected("deaf under 1000 messages/s: PING is answered, nothing is delivered")
        took = doubts(process, judge, since)
        with pytest.raises(AssertionError, match="promise 4, bounded doubt"):
            doubts(bare, blind, since)
        stays_unready(process, 6.0)
        for way in (line, other):
            way.heal()
        back = heals(process, judge)
        blind.wait(lambda client: client.judge.got > 1, "traffic again")
    told.observed(f"noticed in {took:.1f} s, back in {back:.1f} s; without the probe it starved")
    told.bound("15 s; the gap begins before the first message that is missing")
    goes_on(judge, channels, runs, worker(redis_server))
    with pytest.raises(AssertionError, match="promise 3, no silent hole"):
        blind.settle(patience=1.0)
