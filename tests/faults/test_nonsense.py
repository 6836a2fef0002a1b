"""F15, F16: bytes from Redis that are no RESP, and payloads that are no text, too long, or a trap for a browser."""

import os
import random
import time

import pytest

from tests.faults.promises import doubts, heals
from tests.faults.proxy import COMMANDS, SUBSCRIPTIONS
from tests.faults.recorder import Publisher, Said, Written
from tests.integration.peers import wait_for

FLAT = 8 << 20  # bytes by which memory may differ afterwards
PEAK = 128 << 20  # bytes on the way: a reply of 32 MiB, kept in a buffer that grows by doubling


def joined(recorder, process, names=("run0", "run1")):
    """A judge -> (judge, channels, runs)."""
    judge = recorder()
    channels = [Said(f"{name}:wepp") for name in names]
    runs = [Written(name) for name in names] if process.preflight_url else []
    judge.join(process.status_url, *channels)
    if runs:
        judge.join(process.preflight_url, *runs)
    judge.wait(lambda client: client.judge.readies, "ready")
    return judge, channels, runs


# ---- F15: broken RESP ----


@pytest.mark.row("F15")
@pytest.mark.parametrize("kind", [SUBSCRIPTIONS, COMMANDS])
def test_cut_in_the_middle_of_a_reply(relay, redis_server, proxy, recorder, worker, footprint, told, kind):
    line = proxy(redis_server)
    process = relay(env={"REDIS_URL": line.url})
    judge, channels, runs = joined(recorder, process)
    chance, connection = random.Random(5), worker(redis_server)
    memory = footprint(process).memory
    with Publisher(lambda: worker(redis_server), channels, 500):
        for cut in range(1, 4):
            opened = len(line.lines)
            line.faults[kind].cut_after = chance.randrange(1, 60)
            runs[cut % 2].write(connection, cut)
            wait_for(lambda opened=opened: len(line.lines) > opened, "cut, and made anew")
        wait_for(lambda: len(line.open()) == 4, "both connections of both services")
        heals(process, judge)
    for run in runs:
        run.write(connection)
    judge.settle()
    growth = footprint(process).memory - memory
    assert growth < FLAT, f"memory has grown by {growth} bytes"
    told.injected(f"{kind} cut 3 times within a reply, under traffic")
    told.observed(f"each hole flagged, {growth >> 10:+} KiB")
    told.bound("dropped and rebuilt, memory flat")


@pytest.mark.row("F15")
@pytest.mark.long
def test_bits_are_turned(relay, redis_server, proxy, recorder, worker, footprint, told):
    """What a turned bit makes of a line nobody can know; but the sockets stay, and what follows is right again."""
    line = proxy(redis_server, seed=15)
    process = relay(env={"REDIS_URL": line.url})
    judge, channels, runs = joined(recorder, process)
    connection, memory = worker(redis_server), footprint(process).memory
    with Publisher(lambda: worker(redis_server), channels, 500):
        for turn in range(60):
            line.subscriptions.flips = 1
            line.commands.flips = turn % 2
            runs[0].write(connection, turn % 6)
            wait_for(lambda: not line.subscriptions.flips, "a turned bit")
            time.sleep(0.1)
        time.sleep(1.0)
    heals(process, judge, 15.0)
    assert not [client.ended for client in judge.clients if client.ended], "promise 4, the websocket stays"
    anew, channels, runs = joined(recorder, process, ("anew0", "anew1"))
    for ledger in (*channels, *runs):
        ledger.publish(connection) if ledger in channels else ledger.write(connection, 3)
    anew.settle()
    growth = footprint(process).memory - memory
    assert growth < FLAT, f"memory has grown by {growth} bytes"
    told.injected("60 turned bits in what the link says, 30 in answers")
    told.observed(f"{len(line.lines) - 4} reconnects, all well afterwards, {growth >> 10:+} KiB")
    told.bound("no socket lost, memory flat")


HUGE = b"$9223372036854775807\r\n"
DEEP = b"*1\r\n" * 1025


@pytest.mark.row("F15")
@pytest.mark.long
@pytest.mark.parametrize("what", [HUGE, DEEP], ids=["9223372036854775807", "1025 levels"])
@pytest.mark.parametrize("rate", [1, 500], ids=["idle", "10 MB a second"])
def test_a_reply_without_end(relay, redis_server, proxy, recorder, worker, footprint, told, what, rate):
    """What follows would all be its text: the bound of a reply, the probe and PING end it, whichever is first."""
    line, other = proxy(redis_server), proxy(redis_server)
    process = relay("status", env={"REDIS_URL": line.url})
    bare = relay("status", env={"REDIS_URL": other.url}, without=["max-reply", "probe"])
    (judge, channels, _), (blind, _, _) = joined(recorder, process), joined(recorder, bare, ("bare0",))
    use, unbounded = footprint(process), footprint(bare)
    memory, loose = use.memory, unbounded.memory
    everybody = [*channels, *(client.judge.said for client in blind.clients)]
    with Publisher(lambda: worker(redis_server), everybody, rate, b"x" * 20_000):
        since = time.time()
        line.say(what)
        other.say(what)
        took = doubts(process, judge, since)
        back = heals(process, judge)
        wait_for(lambda: time.time() > since + 6, "the traffic of six seconds")
        peak, wild = use.memory - memory, unbounded.memory - loose
    judge.settle()
    wait_for(lambda: use.memory - memory < FLAT, "memory as before")
    assert peak < PEAK, f"memory has grown by {peak} bytes"
    told.injected(f"{what[:24]!r} in the middle, {rate * 20} KB/s")
    told.observed(f"noticed in {took:.1f} s, back in {back:.1f} s, {use.memory - memory >> 10:+} KiB; unbounded "
                  f"{wild >> 20:+} MiB")  # fmt: skip
    told.bound("15 s, memory flat")


# ---- F16: payloads ----

TAILS = {
    "no UTF-8": b" \xff\xfe\xc3(\xed\xa0\x80\xf4\x90\x80\x80",
    "NUL": b" \0 and \0",
    "script": b" </script><script>alert(1)</script>",
    "line separators": " \u2028 \u2029 \x85".encode(),
    "quotes": rb' "\" \\ {"type":"hangup"}',
    "controls": bytes(range(32)),
    "emoji, cut": "🏔".encode()[:3],
    "empty": b"",
    "random": random.Random(16).randbytes(4000),
}
TOO_LARGE = b"x" * (2 << 20)


@pytest.mark.row("F16")
def test_payloads(relay, redis_server, recorder, worker, told):
    env, connection = {"REDIS_URL": redis_server.url}, worker(redis_server)
    process, bare = relay("status", env=env), relay("status", env=env, without=["size"])
    judge, untold = recorder(), recorder()
    said = Said("run1:wepp")
    for version in (1, 2):
        judge.join(process.status_url, said, version=version)
    untold.join(bare.status_url, said)
    for known in (judge, untold):
        known.wait(lambda client: client.judge.version == 1 or client.judge.readies, "ready")
    for tail in TAILS.values():
        assert said.publish(connection, tail) == 2
    for _ in range(3):
        said.publish(connection, TOO_LARGE, oversize=True)
        said.publish(connection)
    judge.settle()
    assert [client.judge.sizes + client.judge.missed for client in judge.clients] == [3, 3]
    with pytest.raises(AssertionError, match="promise 3, no silent hole"):
        untold.settle()
    told.injected(f"{', '.join(TAILS)}, and 2 MiB")
    told.observed("valid frames with the text published; 2 MiB: a gap in its place; untold: a silent hole")
    told.bound("valid, or flagged")


@pytest.mark.row("F16")
def test_checklists_of_odd_bytes(relay, redis_server, recorder, worker, told):
    """Fields and values that are no UTF-8, very long, or no numbers change nothing of what is known."""
    process, connection = relay("preflight", env={"REDIS_URL": redis_server.url}), worker(redis_server)
    run, judge = Written("run1"), recorder()
    judge.join(process.preflight_url, run)
    judge.wait(lambda client: client.judge.readies, "ready")
    odd = {b"locked:\xff\xfe": b"true", b"\0": b"\0", b"x" * 10_000: os.urandom(1 << 20), b"attrs:has_sbs": b"\xff"}
    connection.hset("run1", mapping=odd)
    run.write(connection, 4)
    judge.settle()
    told.injected("a hash with fields of no UTF-8, NUL, 1 MiB")
    told.observed("the right checklist")
    told.bound("valid frames")
