"""F35: faults at random, one upon the other, on 500 clients; `make soak`, an hour of it unless SOAK says otherwise.

Each round hurts Redis, the way to it or the relay for some seconds, half of the time while others attack; then all must
be as it was: every promise kept, all told that nothing is missing from now on, no descriptor more, no memory more.
"""

import contextlib
import os
import random
import signal
import statistics
import threading
import time

import pytest

from tests.faults.promises import NOTICED, heals
from tests.faults.proxy import COMMANDS, DOWN, SUBSCRIPTIONS, UP
from tests.faults.recorder import Publisher, Said, Written
from tests.faults.test_clients import FLOODS, MIB, _churn_of_many, _closers, _noise, flood
from tests.integration.peers import Peer, wait_for

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

    def __init__(self, dice, process, server, line, runs):
        self.dice = dice
        self.process = process
        self.server = server
        self.line = line
        self.runs = runs
        self.patience = 20.0

    def hold(self, least, most):
        time.sleep(self.dice.uniform(least, most))


def kill(field):
    """Redis killed, its hashes gone"""
    field.server.kill()
    field.hold(0.1, 3)
    for run in field.runs:
        run.wiped()
    field.server.start("--notify-keyspace-events", "Kghx")


def freeze(field):
    """Redis stopped"""
    field.server.pause()
    field.hold(1, 20)
    field.server.resume()


def pause(field):
    """CLIENT PAUSE"""
    field.server.execute("CLIENT", "PAUSE", field.dice.randrange(500, 4000))


def kick(field):
    """CLIENT KILL TYPE pubsub, again and again"""
    for _ in range(field.dice.randrange(1, 6)):
        field.server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        field.hold(0, 0.5)


def reset(field):
    """connections to Redis reset, again and again"""
    for _ in range(field.dice.randrange(1, 6)):
        field.line.reset(field.dice.choice([None, COMMANDS, SUBSCRIPTIONS]))
        field.hold(0, 1)


def stall(field):
    """one direction of the way to Redis blacked out"""
    faults = field.dice.choice([field.line.commands, field.line.subscriptions])
    faults.stalled = frozenset(field.dice.choice([{UP}, {DOWN}, {UP, DOWN}]))
    field.hold(1, 20)
    field.line.heal()


def deaf(field):
    """the subscriptions deliver nothing, and look well"""
    field.line.subscriptions.deaf = True
    field.hold(NOTICED + 1, 20)  # words that are lost and then come again are no fault of a network
    field.line.heal()


def late(field):
    """200 ms to Redis, with jitter"""
    field.line.both(latency=0.2, jitter=0.1)
    field.hold(2, 8)
    field.line.heal()


def trickle(field):
    """Redis heard a byte at a time"""
    field.line.commands.trickle = True
    field.hold(1, 4)
    field.line.heal()


def cut(field):
    """replies cut in the middle"""
    for faults in (field.line.commands, field.line.subscriptions):
        faults.cut_after = field.dice.randrange(1, 3000)
    field.hold(0.5, 3)
    field.line.heal()


def unlisted(field):
    """nobody listens for Redis"""
    field.line.refuse()
    field.line.reset()
    field.hold(0.5, 10)
    field.line.accept()


def stop(field):
    """the relay stopped"""
    field.process.process.send_signal(signal.SIGSTOP)
    field.hold(0.5, 12)
    field.process.process.send_signal(signal.SIGCONT)


def silent_writes(field):
    """key events off"""
    field.server.execute("CONFIG", "SET", "notify-keyspace-events", "")
    field.patience = RECHECK


FAULTS = [kill, freeze, pause, kick, reset, stall, deaf, late, trickle, cut, unlisted, stop]
RARE = [silent_writes]  # one of twenty: a minute each


def attacks(process):
    """What others do meanwhile; none of it needs Redis."""
    url = process.status_url
    return [
        lambda: _noise(url),
        lambda: _noise(process.preflight_url),
        lambda: _churn_of_many(url),
        lambda: _closers(url),
        lambda: [flood(process.status_url, "/evil:wepp", data, 10 * MIB) for data, _ in FLOODS.values()],
        lambda: [Peer(f"{process.preflight_url}/evil{number}").drop() for number in range(300)],
    ]


@contextlib.contextmanager
def attacked(attack, failed):
    """The attack in a thread of its own, ended with this."""

    def run():
        try:
            attack()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
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
    field, failed, done = Field(dice, process, redis_server, line, runs), [], []
    use, samples = footprint(process), []
    files, until = use.files, time.monotonic() + SECONDS
    while time.monotonic() < until:
        several = [one(dice) for _ in range(dice.choice([1, 1, 2]))]
        attack = dice.choice(attacks(process)) if dice.random() < 0.5 else lambda: None
        with Publisher(lambda: worker(redis_server), channels, RATE), attacked(attack, failed):
            for fault in several:
                fault(field)
                judge.verdict()
        healed = recovered(field, judge, worker(redis_server), channels)
        wait_for(lambda: use.files == files, "its descriptors as many as before")
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


def one(dice):
    return dice.choice(RARE if dice.random() < 0.05 else FAULTS)


def recovered(field, judge, connection, channels):
    """All is as it should be, and what is written and said now arrives -> seconds until it was healed."""
    took = heals(field.process, judge, 40.0)
    for run in field.runs:
        run.write(connection, field.dice.randrange(1, 7))
    for channel in channels:
        channel.publish(connection)
    judge.settle(field.patience)
    field.patience = 20.0
    field.server.execute("CONFIG", "SET", "notify-keyspace-events", "Kghx")
    return took


def slope_of(samples):
    """(MiB an hour between the third and the last quarter, MiB since the first quarter), of medians."""
    quarter = max(1, len(samples) // 4)
    parts = [samples[:quarter], samples[2 * quarter : 3 * quarter] or samples[-quarter:], samples[-quarter:]]
    (_, first), (at, third), (end, last) = [
        (statistics.median(t for t, _ in part), statistics.median(m for _, m in part)) for part in parts
    ]
    return (last - third) / max((end - at) / 3600, 1e-9) if end > at else 0.0, last - first
