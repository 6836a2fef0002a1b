"""F35: faults at random, one upon the other, on 500 clients; `make soak`, an hour of it unless SOAK says otherwise.

Each round hurts Redis, the way to it or the relay for some seconds, often two of them or all three at once, half of the
time while others attack from beginning to end; then all must be as it was: every promise kept, all told that nothing is
missing from now on, no descriptor more, no memory more.
"""

import contextlib
import functools
import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter

import pytest
import redis

from tests.faults.promises import NOTICED, heals
from tests.faults.proxy import COMMANDS, DOWN, SUBSCRIPTIONS, UP
from tests.faults.recorder import Publisher, Said, Written
from tests.faults.test_clients import FLOODS, MIB, _churn_of_many, _closers, _noise, crowd_of, flood
from tests.integration.peers import Peer, Refused, address_of, wait_for

SECONDS = float(os.environ.get("RELAY_TEST_SOAK") or 3600)
SEED = int(os.environ.get("RELAY_TEST_SEED") or random.randrange(1 << 32))
EACH = 125  # channels and runs, each with a client of either version: 500
RATE = 300  # messages a second
RECHECK = 65.0  # seconds until a run is read again that no event has announced (contract, section 4)
LEAK = 1.0  # MiB an hour
LONG = 1800.0  # seconds from which on a slope is one
GROWTH = 16  # MiB: what a shorter run may show of caches that fill


class Field:
    """What a fault can take hold of."""

    def __init__(self, process, server, line, runs):
        self.process = process
        self.server = server
        self.line = line
        self.runs = runs
        self.patience = 20.0


class Dice(random.Random):
    """One for each fault, for they fall at the same time, and a seed is to bring them again."""

    def hold(self, least, most):
        time.sleep(self.uniform(least, most))


def kill(field, dice):
    """Redis killed, its hashes gone"""
    field.server.kill()
    dice.hold(0.1, 3)
    for run in field.runs:
        run.wiped()
    field.server.start("--notify-keyspace-events", "Kghx")


def freeze(field, dice):
    """Redis stopped"""
    field.server.pause()
    dice.hold(1, 20)
    field.server.resume()


def pause(field, dice):
    """CLIENT PAUSE"""
    field.server.execute("CLIENT", "PAUSE", dice.randrange(500, 4000))


def kick(field, dice):
    """CLIENT KILL TYPE pubsub, again and again"""
    for _ in range(dice.randrange(1, 6)):
        field.server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        dice.hold(0, 0.5)


def reset(field, dice):
    """connections to Redis reset, again and again"""
    for _ in range(dice.randrange(1, 6)):
        field.line.reset(dice.choice([None, COMMANDS, SUBSCRIPTIONS]))
        dice.hold(0, 1)


def stall(field, dice):
    """one direction of the way to Redis blacked out"""
    faults = dice.choice([field.line.commands, field.line.subscriptions])
    faults.stalled = frozenset(dice.choice([{UP}, {DOWN}, {UP, DOWN}]))
    dice.hold(1, 20)
    field.line.heal()


def deaf(field, dice):
    """the subscriptions deliver nothing, and look well, until they end"""
    field.line.subscriptions.deaf = True
    dice.hold(1, NOTICED + 5)
    field.line.reset(SUBSCRIPTIONS)  # words that are lost, and then others come, are no fault of a network
    field.line.heal()


def late(field, dice):
    """200 ms to Redis, with jitter"""
    field.line.both(latency=0.2, jitter=0.1)
    dice.hold(2, 8)
    field.line.heal()


def trickle(field, dice):
    """Redis heard a byte at a time"""
    field.line.commands.trickle = True
    dice.hold(1, 4)
    field.line.heal()


def cut(field, dice):
    """replies cut in the middle"""
    for faults in (field.line.commands, field.line.subscriptions):
        faults.cut_after = dice.randrange(1, 3000)
    dice.hold(0.5, 3)
    field.line.heal()


def unlisted(field, dice):
    """nobody listens for Redis"""
    field.line.refuse()
    field.line.reset()
    dice.hold(0.5, 10)
    field.line.accept()


def stop(field, dice):
    """the relay stopped"""
    field.process.process.send_signal(signal.SIGSTOP)
    dice.hold(0.5, 12)
    field.process.process.send_signal(signal.SIGCONT)


def silent_writes(field, dice):
    """key events off"""
    field.server.execute("CONFIG", "SET", "notify-keyspace-events", "")
    field.patience = RECHECK


def shut(field, dice):
    """a password that the relay does not know, and its subscriptions ended"""
    field.server.execute("ACL", "SETUSER", "default", "resetpass", ">another")
    field.server.execute("CLIENT", "KILL", "TYPE", "pubsub")
    dice.hold(0.5, 6)
    field.server.execute("ACL", "SETUSER", "default", "nopass")


PLACES = [  # of each at most one fault at a time
    [kill, freeze, pause, kick, shut],
    [reset, stall, deaf, late, trickle, cut, unlisted],
    [stop],
]
RARE = [silent_writes]  # one of twenty: a minute each


def attacks(process, server):
    """What others do meanwhile, over and over."""
    url = process.status_url
    return [
        lambda: _noise(url),
        lambda: _noise(process.preflight_url),
        lambda: _churn_of_many(url),
        lambda: _closers(url),
        lambda: [flood(process.status_url, "/evil:wepp", data, 10 * MIB) for data, _ in FLOODS.values()],
        lambda: [Peer(f"{process.preflight_url}/evil{number}").drop() for number in range(300)],
        lambda: _laggards(url),
        lambda: _odd_words(server),
        lambda: [sock.close() for sock in crowd_of(500, address_of(url), b"GET / HT")],
    ]


def _laggards(url):
    """Who joins the busy channels and never reads."""
    with contextlib.ExitStack() as stack:
        for number in range(100):
            stack.enter_context(Peer(f"{url}/run{number % EACH}:wepp", receive_buffer=4096))
        time.sleep(2)


def _odd_words(server):
    """Too large, no UTF-8, full of what must be escaped, on a channel that nobody else is on."""
    with contextlib.suppress(redis.RedisError):  # it may be away
        for word in ("x" * (2 * MIB), b"\xff\x00\xfe" * 1000, "</script>\u2028" * 1000, ""):
            server.execute("PUBLISH", "run0:odd", word)
        time.sleep(0.2)


@contextlib.contextmanager
def attacked(attack, failed):
    """The attack in a thread of its own, again and again until this ends."""
    over = threading.Event()

    def run():
        while attack and not over.is_set():
            with contextlib.suppress(Refused, OSError):  # a relay that is stopped, or full, lets nobody in
                attack()

    with at_once([run], failed):
        try:
            yield
        finally:
            over.set()


@contextlib.contextmanager
def at_once(functions, failed):
    """Each in a thread of its own, ended with this; what they raise is kept."""

    def guarded(function):
        try:
            function()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


@pytest.mark.soak
@pytest.mark.long
@pytest.mark.row("F35")
def test_an_hour_of_faults(relay, redis_server, proxy, recorder, worker, footprint, told):
    print(f"\nSEED={SEED} SOAK={SECONDS:g}")
    dice, line = random.Random(SEED), proxy(redis_server, seed=SEED)
    process, judge = relay(env={"REDIS_URL": line.url}), recorder(keep=False)
    channels, runs = [Said(f"run{n}:wepp") for n in range(EACH)], [Written(f"run{n}") for n in range(EACH)]
    for version in (1, 2):
        judge.join(process.status_url, *channels, version=version)
        judge.join(process.preflight_url, *runs, version=version)
    judge.wait(lambda client: client.judge.version == 1 or client.judge.readies, "ready")
    field, failed, done = Field(process, redis_server, line, runs), [], []
    use, samples = footprint(process), []
    files, until = use.files, time.monotonic() + SECONDS
    while time.monotonic() < until:
        several = some(dice)
        falls = [functools.partial(fault, field, Dice(dice.random())) for fault in several]
        attack = dice.choice(attacks(process, redis_server)) if dice.random() < 0.5 else None
        with Publisher(lambda: worker(redis_server), channels, RATE), attacked(attack, failed), at_once(falls, failed):
            pass
        judge.verdict()
        healed = recovered(field, judge, worker(redis_server), channels, dice)
        returned(use, files)
        samples.append((time.monotonic(), use.memory / MIB))
        done += several
        names = " + ".join(fault.__name__ for fault in several)
        print(f"{len(samples):4} {names:24} healed {healed:5.2f} s, {samples[-1][1]:.1f} MiB", flush=True)
    slope, grown = slope_of(samples)
    told.injected(f"{len(done)} faults of {len(set(done))} kinds in {SECONDS / 60:g} minutes, SEED={SEED}")
    told.observed(f"no promise broken; memory {grown:+.1f} MiB in all, {slope:+.2f} MiB/h in the second half")
    told.bound(f"every promise; {LEAK:g} MiB/h; descriptors as before")
    assert not failed, failed
    if SECONDS >= LONG:
        assert slope < LEAK
    assert grown < GROWTH


def some(dice):
    """Faults that fall together."""
    if dice.random() < 0.05:
        return [dice.choice(RARE)]
    return [dice.choice(faults) for faults in dice.sample(PLACES, dice.choice([1, 1, 2, 2, 3]))]


def recovered(field, judge, connection, channels, dice):
    """All is as it should be, and what is written and said now arrives -> seconds until it was healed."""
    took = heals(field.process, judge, 40.0)
    for run in field.runs:
        run.write(connection, dice.randrange(1, 7))
    for channel in channels:
        channel.publish(connection)
    judge.settle(field.patience)
    field.patience = 20.0
    field.server.execute("CONFIG", "SET", "notify-keyspace-events", "Kghx")
    return took


def returned(use, files):
    """It has as many descriptors as it had before.

    Raises:
        AssertionError: with the kinds of those it has.
    """
    try:
        wait_for(lambda: use.files == files, "")
    except AssertionError:
        kinds = Counter(name.partition(":")[0] for name in use.open_files())
        mine = subprocess.run(["ss", "-Htnp"], capture_output=True, text=True, check=False).stdout
        mine = "\n".join(line for line in mine.splitlines() if f"pid={use.pid}," in line)
        raise AssertionError(f"{files} descriptors before, {use.files} now: {dict(kinds)}\n{mine[-3000:]}") from None


def slope_of(samples):
    """(MiB an hour between the third and the last quarter, MiB since the first quarter), of medians."""
    quarter = max(1, len(samples) // 4)
    parts = [samples[:quarter], samples[2 * quarter : 3 * quarter] or samples[-quarter:], samples[-quarter:]]
    (_, first), (at, third), (end, last) = [
        (statistics.median(t for t, _ in part), statistics.median(m for _, m in part)) for part in parts
    ]
    return (last - third) / max((end - at) / 3600, 1e-9) if end > at else 0.0, last - first
