"""`relay top` of a real relay, on a terminal and without one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import redis

from tests.conftest import OURS, ROOT, Relay
from tests.integration.peers import Peer, wait_for
from tests.integration.terminal import Terminal

PATIENCE = 30.0


@contextlib.contextmanager
def load(process, redis_url):
    """Five readers of one channel, one of another, and a watcher of a run, and 100 messages a second."""
    done = threading.Event()

    def publish():
        with redis.Redis.from_url(redis_url) as worker:
            while not done.wait(0.01):
                worker.publish("r1:wepp", "a line")

    publisher = threading.Thread(target=publish)
    with contextlib.ExitStack() as stack:
        for path in ["r1:wepp"] * 5 + ["r2:climate"]:
            stack.enter_context(Peer(f"{process.status_url}/{path}"))
        stack.enter_context(Peer(f"{process.preflight_url}/r1"))
        publisher.start()
        stack.callback(publisher.join)
        stack.callback(done.set)
        yield


@pytest.fixture(scope="module")
def busy(_shared_redis, tmp_path_factory):
    """A relay under that load, for all tests that leave it as it is; `address` is where it answers operators."""
    directory = tmp_path_factory.mktemp("busy")
    address = f"unix:{directory}/internal.sock"
    process = Relay([], {"REDIS_URL": _shared_redis.url, "RELAY_INTERNAL_ADDR": address}, directory)
    process.address = address
    try:
        process.wait("ready")
        with load(process, _shared_redis.url):
            yield process
    finally:
        process.end()


@pytest.fixture
def mortal(relay, tmp_path):
    """A factory of relays that answer operators at one address, and end at once."""

    def start():
        process = relay(env={"RELAY_INTERNAL_ADDR": f"unix:{tmp_path}/internal.sock", "RELAY_DRAIN": "0s"})
        process.address = f"unix:{tmp_path}/internal.sock"
        return process

    return start


def command(process, *args):
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {
        "args": [sys.executable, "-m", "relay", "top", *args],
        "env": {**env, "RELAY_INTERNAL_ADDR": process.address},
        "cwd": ROOT,
    }


@contextlib.contextmanager
def running(**options):
    """A `relay top` that goes on, killed by its pid if the test has not ended it."""
    with subprocess.Popen(**options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_one_table_where_there_is_no_terminal(busy):
    # In one of three: of whoever stands still for a second the rates are others.
    rates = (rates_of_one_table(busy) for _ in range(3))
    assert any(30 < messages < 130 and frames == pytest.approx(5 * messages, rel=0.2) for messages, frames in rates)


def rates_of_one_table(busy):
    done = subprocess.run(
        **command(busy, "--once", "--interval", "1s"), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert all(line.isprintable() and len(line) <= 80 for line in done.stdout.splitlines())
    assert rows["relay"][2] == "ready,"
    _, sockets, topics, messages, frames, *_ = rows["status"]
    assert (sockets, topics) == ("6", "2")
    assert rows["preflight"][1:3] == ["1", "1"]
    assert rows["r1:wepp"][:2] == ["r1:wepp", "5"]
    assert rows["r2:climate"][:2] == ["r2:climate", "1"]
    return float(messages), float(frames)


def test_a_slow_client_is_shown(busy, redis_url):
    with (
        Peer(f"{busy.status_url}/slow:wepp", receive_buffer=4096),
        redis.Redis.from_url(redis_url) as worker,
    ):
        for _ in range(20):
            worker.publish("slow:wepp", "x" * 10_000)
        done = subprocess.run(
            **command(busy, "--once", "--interval", "200ms"),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    [line] = [line for line in done.stdout.splitlines() if line.startswith("127.0.0.1")]
    address, service, size, unit, *_ = line.split()
    assert (address, service, unit) == ("127.0.0.1", "status", "KiB")
    assert float(size) > 50


def test_an_object_for_each_look_over_a_restart_of_the_relay(mortal, redis_url):
    first = mortal()
    with (
        load(first, redis_url),
        running(
            **command(first, "--json", "--interval", "200ms"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as top,
    ):
        one, two = (json.loads(top.stdout.readline()) for _ in range(2))
        assert two["time"] > one["time"]
        assert two["rates"]["status"]["frames"] > 0
        assert two["debug"]["services"]["status"]["connections"] == 6
        assert first.stop() == 0
        said = top.stderr.readline()
        assert said.startswith(f"relay: {first.address}: ")
        assert "does a relay run" in said
        second = mortal()
        found = two
        while found["debug"]["services"]["status"]["connections"]:
            found = json.loads(top.stdout.readline())
        assert found["ready"]["services"].keys() == {"status", "preflight"}
        assert second.process.poll() is None
        top.send_signal(signal.SIGINT)
        assert top.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    ("end", "code"),
    [(b"q", 0), (b"Q", 0), (signal.SIGTERM, 0), (signal.SIGINT, 130)],
    ids=["q", "Q", "SIGTERM", "SIGINT"],
)
def test_on_a_terminal_until_it_is_ended(busy, end, code):
    with Terminal() as terminal:
        before = terminal.settings()
        with running(**command(busy, "--interval", "200ms"), **terminal.streams()) as top:
            wait_for(lambda: len(terminal.screens()) >= 3, "three tables", PATIENCE)
            assert terminal.settings() != before
            os.write(terminal.ours, end) if isinstance(end, bytes) else top.send_signal(end)
            assert top.wait(PATIENCE) == code
        assert terminal.settings() == before
        drawn = terminal.read()
    assert drawn.startswith("\x1b[?1049h\x1b[?25l")
    assert drawn.endswith("\x1b[?25h\x1b[?1049l")


def test_on_a_small_terminal_only_what_there_is_room_for(busy):
    with Terminal(lines=5, columns=40) as terminal:
        with running(**command(busy, "--interval", "200ms"), **terminal.streams()) as top:
            wait_for(lambda: len(terminal.screens()) >= 2, "two tables", PATIENCE)
            os.write(terminal.ours, b"q")
            assert top.wait(PATIENCE) == 0
        for screen in terminal.screens():
            assert len(screen) == 5
            assert all(len(line) <= 40 for line in screen)


def test_a_relay_that_goes_away_is_said_on_the_table(mortal):
    process = mortal()
    with Terminal() as terminal, running(**command(process, "--interval", "200ms"), **terminal.streams()) as top:
        wait_for(terminal.screens, "a table", PATIENCE)
        process.stop()
        wait_for(lambda: "does a relay run" in " ".join(terminal.screens()[-1]), "why", PATIENCE)
        assert top.poll() is None
        os.write(terminal.ours, b"q")
        assert top.wait(PATIENCE) == 0


def test_a_terminal_is_given_back_where_the_first_look_fails(tmp_path):
    class Nobody:
        address = f"unix:{tmp_path}/internal.sock"

    with Terminal() as terminal:
        before = terminal.settings()
        done = subprocess.run(
            **command(Nobody), stdin=terminal.theirs, stdout=terminal.theirs, stderr=subprocess.PIPE, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert b"No such file or directory; does a relay run" in done.stderr
        assert terminal.settings() == before
        assert terminal.read().endswith("\x1b[?25h\x1b[?1049l")
