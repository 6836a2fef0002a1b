"""Clients that stop reading, seen from outside: what they made the process take, it gives back (F19)."""

import contextlib
import threading
from pathlib import Path

import pytest

from tests.integration.peers import Peer, wait_for

TOPICS = 200
MESSAGES = 30  # of 16 KiB for each: all that may wait for a client, and more
MIB = 1 << 20


def memory(process):
    """Bytes that the process holds of its own."""
    rollup = Path(f"/proc/{process.process.pid}/smaps_rollup").read_text()
    return int(rollup.split("Pss:")[1].split()[0]) * 1024


@pytest.mark.parametrize("size", [200, 2000, 300_000])
@pytest.mark.parametrize("ms", ["0", "300"])
def test_who_reads_without_a_pause_survives_a_burst(relay, worker, redis_url, ms, size):
    """2 MB at once: of 0.5 MB, within less time than a reader is without the processor, it got 152 KB and a 1013."""
    process = relay("status", env={"RELAY_COALESCE_MS": ms})
    # The promise is the relay's; that this machine lets a reader run in time is not.
    assert any(survives(process, worker(redis_url), size) for _ in range(3)), "closed before the end"


def survives(process, redis, size):
    number = 2_000_000 // size
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/r1:wepp")) for _ in range(3)]
        got = [0] * len(peers)

        def read(which):  # bytes alone: to take the frames apart takes longer than to send them
            while got[which] < number * size and peers[which].more():
                got[which] += len(peers[which].unread)
                peers[which].unread = b""

        threads = [threading.Thread(target=read, args=(which,)) for which in range(len(peers))]
        for thread in threads:
            thread.start()
        with redis.pipeline(transaction=False) as pipeline:
            for _ in range(number):
                pipeline.publish("r1:wepp", "x" * size)
            pipeline.execute()
        for thread in threads:
            thread.join()
    return min(got) > number * size


@pytest.mark.row("F19")
def test_memory_comes_back(relay, worker, redis_url):
    process = relay("status", env={"STATUS_METRICS_ENABLED": "1"})
    redis = worker(redis_url)
    with contextlib.ExitStack() as stack:
        for number in range(TOPICS):
            stack.enter_context(Peer(f"{process.status_url}/r{number}:wepp", receive_buffer=4096))
        before = memory(process)
        for part in range(3):
            with redis.pipeline(transaction=False) as pipeline:
                for message in range(MESSAGES * TOPICS // 3):
                    pipeline.publish(f"r{message % TOPICS}:wepp", "x" * 16384)
                pipeline.execute()
            if part == 0:
                wait_for(lambda: memory(process) > before + 20 * MIB, "it holds what nobody takes")
        said = f'status2_closes_total{{code="1013"}} {TOPICS}.0'
        # One whose kernel took the more, and that owes less than the bound, is closed 10 s after its oldest byte.
        wait_for(lambda: said in process.http("status", "/metrics")[2].decode(), "every laggard is closed", 30.0)
    wait_for(lambda: memory(process) < before + 16 * MIB, "the memory is given back")
