"""What publishing costs a worker, and how fast it arrives: StatusMessenger beside plain redis-py, in one run.

    python bench/publishing.py [messages]

Starts a Redis of its own. Each way publishes the same lines, a few thousand at a time, as a busy step of a run does;
`caller` is what the calls themselves took, `arrived` is counted by a subscriber in a process of its own, from the first
call to the last line. Then a loop of pure Python, which is what a run can lose most by a thread beside it, with the
lines of a queue and without.
"""

import multiprocessing
import multiprocessing.connection
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis

import client
from client import StatusMessenger
from relay.cli import embedded

CHANNEL = "run1:wepp"
LINE = "2026-11-23 10:41:07 wepp INFO hillslope 1834 of 5120: simulated 30 years, 12.4 mm runoff"
LAST = "last"
CHUNK = 5000
ROUNDS = 3
RATES = (200, 1500)  # lines a second
PAIRS = 12  # of a loop with lines and two without, in turn
STEPS = 20_000_000  # of each loop, 1.5 s: the thread learns in its first tenth that the run is busy


def listen(url: str, pipe: multiprocessing.connection.Connection) -> None:
    """In a process of its own: after each LAST, send how many lines came before it, and when."""
    with redis.Redis.from_url(url, decode_responses=True) as connection, connection.pubsub() as pubsub:
        pubsub.subscribe(CHANNEL)
        count = 0
        for message in pubsub.listen():
            if message["type"] == "subscribe":
                pipe.send("ready")
            elif message["data"] == LAST:
                pipe.send((count, time.monotonic()))
                count = 0
            else:
                count += 1


def measured(
    publish: Callable[[str, str], object],
    finish: Callable[[], object],
    messages: int,
    pipe: multiprocessing.connection.Connection,
) -> tuple[float, float]:
    """One round: microseconds of the caller for a message, and messages that arrived per second."""
    calls = 0.0
    begin = time.monotonic()
    for start in range(0, messages, CHUNK):
        number = min(CHUNK, messages - start)
        before = time.perf_counter()
        for _ in range(number):
            publish(CHANNEL, LINE)
        calls += time.perf_counter() - before
        finish()
    publish(CHANNEL, LAST)
    finish()
    count, end = pipe.recv()
    if count != messages:
        raise SystemExit(f"{count} of {messages} messages arrived; on a machine this busy the figures mean nothing")
    return calls / messages * 1e6, count / (end - begin)


def main() -> None:
    """Measure all four ways in turn, ROUNDS times, and print the medians."""
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory() as directory:
        port = embedded.free_port()
        server = embedded.start(embedded.find_binary(), port, Path(directory), ())
        try:
            report(f"redis://127.0.0.1:{port}", messages)
            report_run()
        finally:
            embedded.stop(server)


def report(url: str, messages: int) -> None:
    """Print one line for each way; `times` are relative to redis-py's plain publish."""
    client.configure(url)
    plain = redis.Redis.from_url(url)
    pipeline = plain.pipeline(transaction=False)
    nothing: Callable[[], object] = lambda: None  # noqa: E731
    ways: dict[str, tuple[bool, Callable[[str, str], object], Callable[[], object]]] = {
        "redis-py, publish": (False, plain.publish, nothing),
        "redis-py, pipeline of 5000": (False, pipeline.publish, pipeline.execute),
        "StatusMessenger, direct": (False, StatusMessenger.publish, nothing),
        "StatusMessenger, queued": (True, StatusMessenger.publish, StatusMessenger.flush),
    }
    here, there = multiprocessing.Pipe()
    listener = multiprocessing.get_context("spawn").Process(target=listen, args=(url, there), daemon=True)
    listener.start()
    here.recv()
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (queued, publish, finish) in ways.items():
            StatusMessenger.configure(queue=queued)
            results[name].append(measured(publish, finish, messages, here))
    listener.kill()
    first: tuple[float, float] | None = None
    print(f"{messages} messages of {len(LINE)} bytes, median of {ROUNDS} rounds, redis-py {redis.__version__}\n")
    print(f"{'':28}{'caller':>12}{'':8}{'arrived':>12}")
    print(f"{'':28}{'us/message':>12}{'times':>8}{'messages/s':>12}{'times':>8}")
    for name, rounds in results.items():
        calls, arrived = (statistics.median(figures) for figures in zip(*rounds, strict=True))
        first = first or (calls, arrived)
        print(f"{name:28}{calls:12.2f}{calls / first[0]:8.3f}{arrived:12.0f}{arrived / first[1]:8.2f}")


def loop(rate: float, publish: Callable[[str, str], object]) -> tuple[float, float]:
    """Seconds of a loop that publishes so many lines a second, and of its calls."""
    value, calls = 0, 0.0
    begin = due = time.perf_counter()
    for _ in range(STEPS // 100):
        for step in range(100):
            value = (value * 31 + step) & 0xFFFFFFFF
        if time.perf_counter() >= due:
            due += 1 / rate
            called = time.perf_counter()
            publish(CHANNEL, LINE)
            calls += time.perf_counter() - called
    return time.perf_counter() - begin, calls


def report_run() -> None:
    """Print by how much the lines of a queue lengthen the loop.

    The medians of the pairs' ratios, and beside them those of loops that publish nothing: what that differs from 1 is
    the machine's noise. Where it is more than what is looked for, the sum of two parts says more: the calls, and the
    processor's time of the queue's thread, for which the loop stands still, both in hundredths of the loop's time.
    """
    StatusMessenger.configure(queue=True)
    (thread,) = (each for each in threading.enumerate() if each.name == "client-queue")
    clock = time.pthread_getcpuclockid(thread.ident or 0)
    nothing: Callable[[str, str], object] = lambda channel, message: None  # noqa: E731
    print(
        f"\n{'a loop of pure Python, queued':36}{'its time':>12}{'with no lines':>16}{'calls, %':>12}{'thread, %':>12}"
    )
    for rate in RATES:
        ratios, seconds, calls, busy = [], 0.0, 0.0, -time.clock_gettime(clock)
        for _ in range(PAIRS):
            (lines, its_calls), (bare, no_calls), (again, _) = (
                loop(rate, publish) for publish in (StatusMessenger.publish, nothing, nothing)
            )
            ratios.append((lines / bare, again / bare))
            seconds += lines
            calls += its_calls - no_calls
        busy += time.clock_gettime(clock)
        figures = [*(statistics.median(column) for column in zip(*ratios, strict=True))]
        shares = f"{100 * calls / seconds:12.2f}{100 * busy / seconds:12.2f}"
        print(f"{f'{rate} lines a second':36}{figures[0]:12.3f}{figures[1]:16.3f}{shares}")


if __name__ == "__main__":
    main()
