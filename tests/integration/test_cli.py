"""The commands against a real Redis and a real relay."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import redis

from tests.integration.peers import wait_for
from tests.integration.terminal import Terminal


def command(*args, **env):
    return {"args": [sys.executable, "-m", "relay", *args], "env": {**os.environ, **env}}


def run(*args, stdin=None, **env):
    return subprocess.run(**command(*args, **env), input=stdin, capture_output=True, timeout=60)


@contextmanager
def running(*args, **env):
    """A command that goes on; killed by its pid if the test has not ended it."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(**command(*args, **env), **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def subscription(redis_url, channel):
    with redis.Redis.from_url(redis_url) as connection, connection.pubsub() as pubsub:
        pubsub.subscribe(channel)
        assert pubsub.get_message(timeout=20)["type"] == "subscribe"
        yield lambda: pubsub.get_message(timeout=20)["data"]


# --- publish ----


@pytest.mark.parametrize("text", ['a "b" \\ c', "", "é \u2028 👩‍🌾", "line\nline"])
def test_publish_passes_the_text_unchanged(redis_url, text):
    with subscription(redis_url, "run1:wepp") as received:
        result = run("publish", "run1:wepp", text, "--redis-url", redis_url)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"1\n", b"")
        assert received() == text.encode()


def test_publish_passes_bytes_that_are_no_utf8(redis_url):
    with subscription(redis_url, "run1:wepp") as received:
        assert run("publish", "run1:wepp", b"\xff\xfe", REDIS_URL=redis_url).returncode == 0
        assert received() == b"\xff\xfe"


def test_publish_reads_lines_and_counts_the_receivers_of_each(redis_url):
    with subscription(redis_url, "r:c") as received:
        result = run("publish", "r:c", "-", stdin=b"one\n\n\xff two \r\nlast", REDIS_URL=redis_url)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"1\n1\n1\n1\n", b"")
        assert [received() for _ in range(4)] == [b"one", b"", b"\xff two ", b"last"]


def test_publish_passes_each_line_on_as_it_comes(redis_url):
    with subscription(redis_url, "r:c") as received, running("publish", "r:c", REDIS_URL=redis_url) as publish:
        publish.stdin.write(b"first\n")
        publish.stdin.flush()
        assert received() == b"first"
        assert publish.stdout.readline() == b"1\n"
        publish.stdin.close()
        assert publish.wait(30) == 0


def test_publish_without_receivers_prints_0(redis_url):
    assert run("publish", "nobody:wepp", "x", "--redis-url", redis_url).stdout == b"0\n"


def test_publish_waits_for_a_redis_that_is_slow(redis_url):
    """A worker's publish gives up after 0.2 s, in which a Redis on another continent is not even connected to."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.client_pause(4000)
    result = run("publish", "nobody:wepp", "x", "--redis-url", redis_url)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"0\n", b"")


def test_publish_with_redis_away_is_exit_code_1_and_one_sentence():
    result = run("publish", "r:c", "x", "--redis-url", "redis://127.0.0.1:1")
    assert (result.returncode, result.stdout) == (1, b"")
    [line] = result.stderr.decode().splitlines()
    assert line.startswith("relay: the message on r:c was dropped: ")
    assert "refused" in line


def test_publish_to_a_url_that_is_none_is_exit_code_3():
    result = run("publish", "r:c", "x", REDIS_URL="http://h")
    assert result.returncode == 3
    assert result.stderr.startswith(b"relay: REDIS_URL must start with redis://")
    result = run("publish", "r:c", "x", "--redis-url", "http://h")
    assert result.returncode == 3
    assert result.stderr.startswith(b"relay: --redis-url must start with redis://")


# --- tail ----


def publish_until_printed(tail, channel, redis_url, text="one"):
    """The next line that `tail` prints, of a text on `channel`.

    Redis counts the relay as a receiver before the websocket has been let in: what comes in between is nobody's.
    """
    while True:
        heard = run("publish", channel, text, "--redis-url", redis_url).stdout != b"0\n"
        if heard and select.select([tail.stdout], [], [], 10)[0]:
            return tail.stdout.readline().decode()


def test_tail_prints_what_publish_said(relay, redis_url):
    url = relay("status").status_url
    with running("tail", "run1:wepp", "--url", url, "-n", "2") as tail:
        assert publish_until_printed(tail, "run1:wepp", redis_url) == "one\n"
        run("publish", "run1:other", "not this", "--redis-url", redis_url)
        run("publish", "run1:wepp", 'two "and" \\ ✓', "--redis-url", redis_url)
        assert tail.stdout.read().decode() == 'two "and" \\ ✓\n'
        assert tail.wait(30) == 0
        assert tail.stderr.read() == b""


def test_tail_follows_over_a_restart_of_the_relay(relay, redis_url):
    first = relay("status", env={"RELAY_DRAIN": "0"})
    with running("tail", "run1:wepp", "--url", first.status_url, "--json") as tail:
        assert json.loads(publish_until_printed(tail, "run1:wepp", redis_url))["data"] == "one"
        assert first.stop() == 0
        assert b"reconnecting" in tail.stderr.readline()
        relay("status", env={"STATUS_LISTEN_ADDR": f"127.0.0.1:{first.ports['status']}"}, wait=None)
        assert b"again" in tail.stderr.readline()
        assert json.loads(publish_until_printed(tail, "run1:wepp", redis_url, "after"))["data"] == "after"
        tail.send_signal(signal.SIGINT)
        assert tail.wait(30) == 130
        # The new relay may have let it in before it had Redis.
        assert all(b"lost Redis" in line for line in tail.stderr.readlines())


def test_tail_of_several_until_an_event(relay, redis_url):
    url, event = relay("status").status_url, "WEPP_RUN_TASK_COMPLETED"
    with running("tail", "r1:wepp", "r2:climate", "--url", url, "--until", event, "--timeout", "1m") as tail:
        assert publish_until_printed(tail, "r1:wepp", redis_url) == "r1:wepp    | one\n"
        assert publish_until_printed(tail, "r2:climate", redis_url) == "r2:climate | one\n"
        run("publish", "r1:wepp", f"rq:7 TRIGGER   wepp NOT_{event}", "--redis-url", redis_url)
        run("publish", "r1:wepp", f"rq:7 TRIGGER   wepp {event}", "--redis-url", redis_url)
        assert tail.wait(30) == 0
        assert tail.stdout.read().decode().splitlines() == [
            f"r1:wepp    | rq:7 TRIGGER   wepp NOT_{event}",
            f"r1:wepp    | rq:7 TRIGGER   wepp {event}",
        ]
        assert tail.stderr.read() == b""


def test_tail_of_what_the_relay_refuses_ends(relay):
    result = run("tail", "__x:wepp", "--url", relay("status").status_url)
    assert result.returncode == 1
    assert b"refused with 400" in result.stderr


# --- checklist ----


def test_checklist_of_an_unknown_run(relay, redis_url):
    url = relay("preflight").preflight_url
    result = run("checklist", "nobody", "--url", url)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"[ ] channels\n" in result.stdout
    assert b"[x]" not in result.stdout
    assert b"locked" not in result.stdout


def test_checklist_shows_what_is_done_and_locked(relay, redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        connection.hset("run1", mapping={"timestamps:build_channels": "1", "locked:wepp": "true"})
    url = relay("preflight").preflight_url
    shown = run("checklist", "run1", "--url", url).stdout.decode().splitlines()
    assert "[x] channels" in shown
    assert "[ ] outlet" in shown
    assert [line for line in shown if line.endswith("locked")] == ["wepp locked"]
    frame = json.loads(run("checklist", "run1", "--url", url, "--json").stdout)
    assert frame["type"] == "preflight"
    assert frame["checklist"]["channels"] is True


def test_checklist_watch_prints_each_change(relay, redis_url):
    url = relay("preflight").preflight_url
    with running("checklist", "run1", "--url", url, "--watch") as watch, redis.Redis.from_url(redis_url) as connection:
        while watch.stdout.readline() != b"[ ] geneva\n":
            pass
        connection.hset("run1", "timestamps:build_channels", "10")
        assert watch.stdout.readline() == b"[x] channels\n"
        connection.hset("run1", "locked:climate", "true")
        assert watch.stdout.readline() == b"climate locked\n"
        watch.send_signal(signal.SIGINT)
        assert watch.wait(30) == 130


def test_checklist_watch_on_a_terminal(relay, redis_url):
    first = relay("preflight", env={"RELAY_DRAIN": "0"})
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, "-m", "relay", "checklist", "run1", "--watch", "--url", first.preflight_url]
    with Terminal() as terminal, redis.Redis.from_url(redis_url) as connection:
        before = terminal.settings()

        def shown(text):
            return lambda: terminal.screens() and text in "\n".join(terminal.screens()[-1])

        with subprocess.Popen(command, env={**clean, "TERM": "xterm"}, **terminal.streams()) as watch:
            try:
                wait_for(shown("run1: 0 of 22 done, 0 running"), "a snapshot")
                connection.hset("run1", mapping={"locked:climate": "true"})
                wait_for(shown("[>] climate  0m0"), "a lock")
                connection.hset("run1", mapping={"locked:climate": "false", "timestamps:build_channels": "1714168234"})
                wait_for(shown("[✓] channels      2024-04-26"), "a tick and when")
                assert first.stop() == 0
                wait_for(shown("reconnecting"), "a lost connection")
                relay("preflight", env={"PREFLIGHT_LISTEN_ADDR": f"127.0.0.1:{first.ports['preflight']}"}, wait=None)
                wait_for(lambda: shown("connected, last")() and shown("[✓] channels")(), "a connection")
                watch.send_signal(signal.SIGINT)
                assert watch.wait(30) == 130
            finally:
                if watch.poll() is None:
                    watch.kill()
        assert terminal.settings() == before
        assert terminal.read().endswith("\x1b[?25h\x1b[?1049l")


# --- healthcheck, serve ----


def test_healthcheck_of_a_relay(relay):
    serving = relay()
    for port in serving.ports.values():
        result = run("healthcheck", "--url", f"http://127.0.0.1:{port}")
        assert (result.returncode, result.stderr) == (0, b"")
        assert run("healthcheck", "--ready", "--url", f"http://127.0.0.1:{port}").returncode == 0


def test_healthcheck_tells_alive_from_ready(relay):
    serving = relay("status", env={"REDIS_URL": "redis://127.0.0.1:1"}, wait="listen")
    url = f"http://127.0.0.1:{serving.ports['status']}"
    assert run("healthcheck", "--url", url).returncode == 0
    result = run("healthcheck", "--url", url, "--ready")
    assert result.returncode == 1
    assert b"answered 503" in result.stderr


def test_flags_reach_the_server(redis_url, relay):
    serving = relay("status", "--metrics-enabled", "--drain", "0s", env={"STATUS_METRICS_ENABLED": "false"})
    assert serving.http("status", "/metrics")[0] == 200


def test_a_port_in_use_is_exit_code_5(relay):
    port = str(relay("status").ports["status"])
    result = run("serve", "status", "--host", "127.0.0.1", "--port", port)
    assert result.returncode == 5
    assert port in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()
