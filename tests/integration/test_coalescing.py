"""--coalesce-ms: messages wait, for a bounded time, for others of their channel; without it nothing waits."""

import contextlib
import re
import statistics
import time

import pytest

from tests.integration.peers import Peer

QUIET = {"STATUS_PING_INTERVAL": "60s", "PREFLIGHT_PING_INTERVAL": "60s"}  # no heartbeat among the reads counted here
ROUNDS = 3  # of which one must go well: in each a machine that stands still may be what was too late


@pytest.fixture
def status(relay):
    """A factory of status relays: `status('50')` coalesces for 50 ms."""
    return lambda ms, **env: relay("status", env={**QUIET, "RELAY_COALESCE_MS": ms, **env})


def reads_until(peer, last):
    """What each read brought, up to the frame that holds `last`."""
    reads = []
    while not reads or last not in reads[-1]:
        assert peer.more()
        reads.append(peer.unread)
        peer.unread = b""
    return reads


def turned(process):
    """The relay has gone through its loop, so it has read what Redis had sent before."""
    assert process.http("status", "/health")[0] == 200


def test_messages_that_come_one_by_one_go_out_together(status, worker, redis_url):
    process = status("1000", STATUS_METRICS_ENABLED="true")
    redis = worker(redis_url)
    with Peer(f"{process.status_url}/r1:wepp") as peer:
        assert any(together(process, redis, peer) for _ in range(ROUNDS))


def together(process, redis, peer):
    """Whether ten messages went out in one go, and within a second that this machine may be late with."""
    before, start = bursts(process), time.monotonic()
    for number in range(10):
        redis.publish("r1:wepp", f"m{number}")
    reads = reads_until(peer, b"m9")
    waited = time.monotonic() - start
    assert [f"m{number}".encode() in b"".join(reads) for number in range(10)] == [True] * 10
    return (len(reads), bursts(process) - before) == (1, 1) and waited < 1.0 + 2.0


def bursts(process):
    [line] = re.findall(r"^status2_burst_frames_count (\S+)$", process.http("status", "/metrics")[2].decode(), re.M)
    return float(line)


def test_later_messages_put_the_delivery_off_no_further(status, worker, redis_url):
    process = status("100")
    redis = worker(redis_url)
    with Peer(f"{process.status_url}/r1:wepp") as peer:
        peer.socket.settimeout(0.01)
        reads = sent = 0
        while reads < 10:
            assert sent < 1000, "the first one waits as long as others follow"
            redis.publish("r1:wepp", f"m{sent}")
            sent += 1
            with contextlib.suppress(TimeoutError):
                reads += peer.more()
        assert b"m0" in peer.unread
        assert reads < sent / 2


@pytest.mark.parametrize("env", [{}, {"RELAY_COALESCE_MS": "0"}])
def test_nothing_waits_unless_asked_for(relay, worker, redis_url, env):
    process = relay("status", env={**QUIET, **env})
    redis = worker(redis_url)
    with Peer(f"{process.status_url}/r1:wepp") as peer:
        took = []
        for number in range(100):
            start = time.monotonic()
            redis.publish("r1:wepp", f"m{number}.")
            assert len(reads_until(peer, b"m%d." % number)) == 1
            took.append(time.monotonic() - start)
        assert statistics.median(took) < 0.02, "each waited for others"


def test_a_burst_that_has_grown_waits_no_longer(status, worker, redis_url):
    """Else a second of messages, delivered in one piece, would be above what may wait for a client: its end."""
    process = status("1000")
    redis = worker(redis_url)
    with Peer(f"{process.status_url}/r1:wepp") as peer:
        start = time.monotonic()
        got = 0
        for sent in range(100_000, 3_000_000, 100_000):
            with redis.pipeline(transaction=False) as pipeline:
                for _ in range(100):
                    pipeline.publish("r1:wepp", "x" * 1000)
                pipeline.execute()
            while got < sent - 128 * 1024:
                assert peer.more()
                got += len(peer.unread)
                peer.unread = b""
        assert time.monotonic() - start < 10.0, "bursts waited for the end of their second"


def test_what_waits_goes_out_before_the_close(status, worker, redis_url):
    process = status("1000", RELAY_DRAIN="0s")
    redis = worker(redis_url)
    with Peer(f"{process.status_url}/r1:wepp") as peer:
        for text in ("1", "2", "3"):
            redis.publish("r1:wepp", text)
        turned(process)
        process.process.terminate()
        assert [peer.data() for _ in range(3)] == ["1", "2", "3"]
        assert peer.closed()[0] == 1012
    assert process.stop() == 0


def test_a_newcomer_gets_nothing_that_waited_before_it_came(status, worker, redis_url):
    process = status("1000")
    redis = worker(redis_url)
    url = f"{process.status_url}/r1:wepp"
    with Peer(url) as first:
        redis.publish("r1:wepp", "before")
        turned(process)
        with Peer(url) as second:
            redis.publish("r1:wepp", "after")
            assert second.data() == "after"
            assert [first.data(), first.data()] == ["before", "after"]


def test_snapshots_do_not_wait(relay, worker, redis_url):
    process = relay(env={**QUIET, "RELAY_COALESCE_MS": "1000"})
    redis = worker(redis_url)
    with Peer(f"{process.preflight_url}/r1") as peer:
        assert peer.checks() == set()
        took = []
        for wanted in [{"sbs_map"}, set()] * 5:
            start = time.monotonic()
            redis.hset("r1", "attrs:has_sbs", "true" if wanted else "false")
            peer.until(wanted)
            took.append(time.monotonic() - start)
        assert statistics.median(took) < 0.5, "each waited for others"
