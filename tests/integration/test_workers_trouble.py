"""What a supervisor does about workers that hang or cannot be started: its patience shortened, the rest as it is."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relay.cli import embedded
from tests.conftest import ROOT
from tests.integration.peers import Peer, wait_for

PROGRAM = "import relay.workers as workers; {}; from relay.cli.main import main; main()"
ONCE = """
import asyncio, errno, types
started = []
async def start(*args, **options):
    started.append(args)
    if len(started) == 3:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
    return await asyncio.create_subprocess_exec(*args, **options)
workers.asyncio = types.SimpleNamespace(**{**vars(asyncio), "create_subprocess_exec": start})
"""

NO_MORE = ONCE.replace("len(started) == 3", "len(started) > 2")


@pytest.fixture
def supervise(redis_url, tmp_path):
    """Two workers under a supervisor in which `patch` has been run: its process, its log, its address."""
    with contextlib.ExitStack() as stack:

        def start(patch, **env):
            port = embedded.free_port()
            log = tmp_path / "stderr"
            code = PROGRAM.format(f"exec({patch!r})")
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, "-c", code, "serve", "status", "--workers", "2"],
                    cwd=ROOT,
                    env=os.environ
                    | {"REDIS_URL": redis_url, "STATUS_LISTEN_ADDR": f"127.0.0.1:{port}", "RELAY_DRAIN": "0s"}
                    | env,
                    stderr=file,
                )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            wait_for(lambda: "2 workers serve" in log.read_text(), "all workers", patience=60)
            return process.pid, log, f"ws://127.0.0.1:{port}/run:wepp"

        yield start


def children(pid):
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_one_that_hangs_is_killed_and_another_one_comes(supervise):
    # Not from the start: one that a busy machine takes three seconds to start would be killed again and again.
    patch = 'import signal; signal.signal(signal.SIGUSR1, lambda *_: setattr(workers, "STUCK", 3))'
    pid, log, url = supervise(patch)
    os.kill(pid, signal.SIGUSR1)
    before = children(pid)
    stuck = min(before)
    os.kill(stuck, signal.SIGSTOP)
    try:
        wait_for(lambda: f"worker {stuck} hangs: it is killed" in log.read_text(), "the end of it", patience=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stuck, signal.SIGCONT)
    wait_for(lambda: len(children(pid) - {stuck}) == 2, "another one", patience=60)
    assert "(signal 9)" in log.read_text()
    with Peer(url):
        pass


def heard(manager, seconds):
    """All that has come, and comes within so many seconds."""
    said, until = [], time.monotonic() + seconds
    with contextlib.suppress(TimeoutError, BlockingIOError):
        while True:
            manager.settimeout(max(0, until - time.monotonic()))
            said.append(manager.recv(4096))
    return said


def test_the_watchdog_is_not_fed_while_nobody_serves(supervise, tmp_path):
    """So that systemd starts all of it anew (WatchdogSec=)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        pid, log, _ = supervise(NO_MORE, NOTIFY_SOCKET=str(tmp_path / "notify"))
        while b"WATCHDOG=1" not in manager.recv(4096):
            pass
        for worker in children(pid):
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: log.read_text().count("(signal 9)") == 2, "the end of both", patience=60)
        heard(manager, 0)
        assert b"WATCHDOG" not in b"".join(heard(manager, 2.5)), "once a second it is fed"


def test_a_process_that_cannot_be_started_is_tried_again(supervise):
    pid, log, url = supervise(ONCE)
    killed = min(children(pid))
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: "no worker can be started ([Errno 11]" in log.read_text(), "the failure", patience=60)
    with Peer(url):
        pass  # by the other one
    wait_for(lambda: len(children(pid) - {killed}) == 2, "another try", patience=60)
