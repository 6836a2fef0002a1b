"""F10, F12, F13: checklists from a Redis that is slow, says nothing of writes, or is written to without end."""

import time

import pytest

from tests.faults.recorder import FIELDS, Publisher, Said, Written

SPACING = 0.025  # seconds between two reads of a run (docs/architecture.md)
CONVERGED = 60.0  # seconds (promise 6)


def reads(server):
    """HGETALLs until now, as Redis counts them."""
    stats = server.execute("INFO", "commandstats").get("cmdstat_hgetall")
    return stats["calls"] if stats else 0


def joined(judge, process, ledgers):
    judge.join(process.preflight_url, *ledgers)
    judge.wait(lambda client: client.judge.got and client.judge.readies, "the first snapshot")


# ---- F10: late ----


def late(proxy, server, relay, recorder, runs, **options):
    """A relay behind 200 ms of latency each way, with up to 50 ms of jitter -> (the proxy, the relay, its judge)."""
    line = proxy(server, follow=True)
    line.both(latency=0.2, jitter=0.05)
    process = relay(env={"REDIS_URL": line.url} | options.pop("env", {}), **options)
    judge = recorder()
    joined(judge, process, runs)
    return line, process, judge


def undisturbed(line, judge):
    assert len(line.lines) == 4, f"promise 4, no false alarm: {len(line.lines)} connections where four do"
    assert not any(client.judge.gaps for client in judge.clients), "promise 4, no false alarm: a gap"


def single_flight(line):
    assert line.most_reads == 1, f"one read in flight for a run: there were {line.most_reads}"


@pytest.mark.row("F10")
@pytest.mark.long
def test_slow_is_not_broken(relay, redis_server, proxy, recorder, worker, told):
    runs, channels = [Written(f"run{n}") for n in range(10)], [Said(f"run{n}:wepp") for n in range(10)]
    line, process, judge = late(proxy, redis_server, relay, recorder, runs)
    hasty_env = {"PREFLIGHT_REDIS_REQUEST_TIMEOUT": "1s", "STATUS_REDIS_REQUEST_TIMEOUT": "1s"}
    hasty, _, alarmed = late(proxy, redis_server, relay, recorder, runs, env=hasty_env)
    eager, _, hurried = late(proxy, redis_server, relay, recorder, runs, without=["single-flight"])
    judge.join(process.status_url, *channels)
    connection = worker(redis_server)

    def write(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for run in runs:
                run.write(connection, len(run.states) // 40 % 7)
            time.sleep(0.02)

    with Publisher(lambda: worker(redis_server), channels, 200):
        write(4.0)
        redis_server.execute("CLIENT", "PAUSE", "4000", "ALL")
        write(8.0)
    judge.settle()
    undisturbed(line, judge)
    single_flight(line)
    with pytest.raises(AssertionError, match="promise 4, no false alarm"):
        undisturbed(hasty, alarmed)
    with pytest.raises(AssertionError, match="one read in flight"):
        single_flight(eager)
    hurried.verdict()
    told.injected("200 ms of latency each way, 50 ms of jitter; CLIENT PAUSE 4000; writes all the time")
    told.observed(f"no reconnect, no gap, 1 read in flight; with a deadline of 1 s {len(hasty.lines) - 4} reconnects, "
                  f"without single flight {eager.most_reads} reads")  # fmt: skip
    told.bound("no false reconnect; one HGETALL in flight for a run")


# ---- F12: nothing is announced ----


@pytest.mark.row("F12")
@pytest.mark.long
def test_key_events_are_off(relay, redis_server, recorder, worker, told):
    env, connection = {"REDIS_URL": redis_server.url}, worker(redis_server)
    process, bare = relay("preflight", env=env), relay("preflight", env=env, without=["recheck"])
    runs = [Written(f"run{n}") for n in range(100)]
    judge, stale = recorder(), recorder()
    joined(judge, process, runs)
    joined(stale, bare, runs)
    redis_server.execute("CONFIG", "SET", "notify-keyspace-events", "")
    for number, run in enumerate(runs):
        run.write(connection, 1 + number % 6)
    start = time.monotonic()
    judge.settle(patience=CONVERGED)
    took = time.monotonic() - start
    with pytest.raises(AssertionError, match="promise 6, converges"):
        stale.settle(patience=max(0.0, start + CONVERGED - time.monotonic()))
    warnings = [line for line in process.stderr if "notify-keyspace-events" in line and "does not announce" in line]
    assert len(warnings) == 1, "one warning"
    told.injected("notify-keyspace-events '' while running, 100 runs written")
    told.observed(f"all right after {took:.0f} s, one warning; without the re-check never")
    told.bound(f"{CONVERGED:g} s")


# ---- F13: written to without end ----


def bounded(count, seconds, runs):
    most = runs * (seconds / SPACING + 2)
    assert count <= most, f"reads are bounded by the interval: {count} in {seconds:.1f} s, at most {most:.0f}"


@pytest.mark.row("F13")
@pytest.mark.parametrize("writes", [5000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_run_that_is_written_to_without_end(relay, new_redis, recorder, worker, told, writes):
    counts = {}
    for without in ((), ("spacing",)):
        server = new_redis()
        server.execute("CONFIG", "SET", "notify-keyspace-events", "Kh")
        process = relay("preflight", env={"REDIS_URL": server.url}, without=without)
        judge, run, connection = recorder(), Written("run1"), worker(server)
        joined(judge, process, [run])
        before, start = reads(server), time.monotonic()
        fields = list(FIELDS.values())
        with connection.pipeline(transaction=False) as pipe:
            for number in range(writes):
                pipe.hset("run1", "nobody:reads", number)
                if number % 1000 == 999:
                    pipe.execute()
        run.write(connection, len(fields))
        judge.settle(patience=0.5)
        counts[without] = reads(server) - before, time.monotonic() - start
        assert process.ready("preflight")
    bounded(*counts[()], 1)
    with pytest.raises(AssertionError, match="reads are bounded"):
        bounded(*counts[("spacing",)], 1)
    (kept, seconds), (free, _) = counts[()], counts[("spacing",)]
    told.injected(f"{writes} HSETs on one run")
    told.observed(f"{kept} reads in {seconds:.1f} s, the last state within 0.5 s; without the interval {free} reads")
    told.bound(f"a read each {SPACING * 1000:g} ms")
