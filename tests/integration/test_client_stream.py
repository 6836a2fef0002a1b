"""run_and_stream, status_logging and tqdm against a real Redis: one that is there, that is away and that is frozen."""

import contextlib
import logging
import subprocess
import sys
import threading
import time

import pytest
import redis

from client import StatusMessenger, configure, stream
from client.logs import status_logging
from client.progress import tqdm
from client.stream import run_and_stream

CHANNEL = "r1:wepp"
LINES = 100_000
# A line as a model writes it, by a command that would be done with all of them in a twentieth of a second.
MANY = ["awk", f'BEGIN {{for (i = 0; i < {LINES}; i++) print "hillslope", i, "of the run: 12.5 mm, 3.2 t/ha"}}']
pytestmark = pytest.mark.usefixtures("fresh_client")


@contextlib.contextmanager
def subscribed(url, channel=CHANNEL):
    """A subscriber in a thread of its own; yields what it has heard, and ends when the channel says `the end`."""
    heard = []

    def listen():
        for message in pubsub.listen():
            if message["data"] == b"the end":
                return
            heard.append(message["data"].decode())

    with redis.Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=False) as pubsub:
        pubsub.subscribe(channel)
        assert pubsub.get_message(timeout=10)["type"] == "subscribe"
        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield heard
        finally:
            client.publish(channel, "the end")
            listener.join()


def until(condition, timeout=30.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def seconds_of(work):
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


@pytest.fixture
def model_time():
    """Seconds that MANY takes where its output goes nowhere but to this process."""
    return min(seconds_of(lambda: subprocess.run(MANY, check=True, capture_output=True))[0] for _ in range(3))


def lines_of(text):
    return text.removesuffix("\n").split("\n")


def assert_complete(done):
    assert lines_of(done.stdout) == [f"hillslope {i} of the run: 12.5 mm, 3.2 t/ha" for i in range(LINES)]


# --- Redis is there -----------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch):
    """The lines have a minute to reach Redis after the command's end: the machine may be busy with other tests."""
    monkeypatch.setattr(stream, "FLUSH", 60.0)
    monkeypatch.setattr(stream, "STALLED", 60.0)


@pytest.mark.parametrize("queue", [False, True])
def test_each_line_is_published_in_order_and_what_follows_comes_behind(redis_url, queue, patient):
    configure(redis_url)
    StatusMessenger.configure(queue=queue)
    with subscribed(redis_url) as heard:
        StatusMessenger.publish(CHANNEL, "STARTED")
        done = run_and_stream(["seq", "1", "5000"], CHANNEL, prefix="n ")
        StatusMessenger.publish(CHANNEL, "COMPLETED")
        assert StatusMessenger.flush(10)
    assert heard == ["STARTED", *(f"n {i}" for i in range(1, 5001)), "COMPLETED"]
    assert lines_of(done.stdout) == [str(i) for i in range(1, 5001)]


def test_a_hundred_thousand_lines_arrive(redis_url, patient):
    configure(redis_url)
    with subscribed(redis_url) as heard:
        done = run_and_stream(MANY, CHANNEL, keep=None)
    assert_complete(done)
    counts = StatusMessenger.counts()
    assert counts.published + counts.dropped + counts.in_doubt == LINES
    assert heard == lines_of(done.stdout)


def test_odd_lines_pass_through_redis(redis_url, patient):
    configure(redis_url)
    code = r"import sys; sys.stdout.buffer.write(b'a\x00b\n\xff\n\n' + b'x' * 100000 + b'\n1%\r2%\r3%\rlast')"
    with subscribed(redis_url) as heard:
        done = run_and_stream([sys.executable, "-c", code], CHANNEL)
    assert heard == ["a\0b", "\\xff", "", "x" * 65536, "x" * 34464, "1%", "3%", "last"]
    assert done.stdout == "a\0b\n\\xff\n\n" + "x" * 100000 + "\n1%\n2%\n3%\nlast"


def test_logging_and_bars(redis_url):
    configure(redis_url)
    log = logging.getLogger("integration.stream")
    with subscribed(redis_url) as heard:
        with status_logging(CHANNEL, level="INFO", logger=log):
            log.info("begins")
        for _ in tqdm(range(3), desc="hills", channel=CHANNEL, file=None):
            pass
    assert heard[0] == "begins"
    assert heard[-1].startswith("hills: 100%|██████████| 3/3 [")


# --- Redis is away, or frozen -------------------------------------------------------------------------------------


def test_redis_away(redis_server, model_time):
    redis_server.stop()
    configure(redis_server.url)
    seconds, done = seconds_of(lambda: run_and_stream(MANY, CHANNEL, keep=None, check=True))
    assert_complete(done)
    # The lines are decoded, cut and queued meanwhile; and the end waits for Redis once.
    assert seconds < model_time + 30
    assert StatusMessenger.counts().published == 0


def test_redis_frozen_from_the_first_line(redis_server, model_time):
    configure(redis_server.url)
    StatusMessenger.publish(CHANNEL, "connected")
    redis_server.pause()
    seconds, done = seconds_of(lambda: run_and_stream(MANY, CHANNEL, keep=None, check=True))
    assert_complete(done)
    assert seconds < model_time + 30


def test_redis_frozen_in_the_middle(redis_server):
    """The command's own clock says how long it took: what it does at the end is not its time."""
    configure(redis_server.url)
    code = (
        "import sys, time; start = time.monotonic()\n"
        f"for i in range({LINES}):\n"
        "    print('hillslope', i, 'of the run: 12.5 mm, 3.2 t/ha')\n"
        "sys.stdout.flush(); print(time.monotonic() - start)"
    )
    command = [sys.executable, "-c", code]
    alone = float(lines_of(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[-1])
    with subscribed(redis_server.url) as heard:
        watcher = threading.Thread(target=lambda: (until(lambda: heard), redis_server.pause()))
        watcher.start()
        done = run_and_stream(command, CHANNEL, keep=None, check=True)
        watcher.join()
        redis_server.resume()
    lines = lines_of(done.stdout)
    assert len(lines) == LINES + 1
    assert float(lines[-1]) < alone + 30


def test_short_commands_while_redis_is_away_wait_for_it_once(redis_server, monkeypatch):
    monkeypatch.setattr(stream, "STALLED", stream.FLUSH)
    redis_server.stop()
    configure(redis_server.url)
    seconds, _ = seconds_of(lambda: [run_and_stream(["echo", "x"], CHANNEL) for _ in range(20)])
    assert seconds < 20 * stream.STALLED / 2


def test_once_redis_is_back_lines_come_again(redis_server):
    redis_server.stop()
    configure(redis_server.url)
    assert run_and_stream(["echo", "lost"], CHANNEL).stdout == "lost\n"
    redis_server.start()
    with subscribed(redis_server.url) as heard:

        def said():
            run_and_stream(["echo", "back"], CHANNEL)
            return "back" in heard

        until(said)


def test_no_thread_is_left_even_while_redis_is_away(redis_server):
    redis_server.stop()
    configure(redis_server.url)
    for _ in range(5):
        run_and_stream(["echo", "x"], CHANNEL)
    until(lambda: "client-queue" not in [thread.name for thread in threading.enumerate()])
