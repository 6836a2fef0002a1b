"""F33: nobody reads what the relay writes."""

import fcntl
import os
import time

import pytest

from tests.conftest import Relay
from tests.integration.peers import Peer, wait_for

LEAST = 4096  # bytes a pipe can be made to hold


@pytest.fixture
def unread():
    """A pipe that is full: (its reading end, its writing end)."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, LEAST)
    os.write(write, b"\n" * LEAST)
    yield read, write
    for fd in (read, write):
        os.close(fd)


@pytest.mark.row("F33")
def test_f33_a_log_that_nobody_reads_holds_up_nothing(unread, redis_server, tmp_path):
    read, write = unread
    process = Relay(["status"], {"REDIS_URL": redis_server.url}, tmp_path, stderr=write)
    try:
        process.wait("ready")
        with Peer(f"{process.status_url}/run:wepp?v=2") as peer:
            assert peer.message() == {"type": "ready"}
            for number in range(20):
                redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")  # two lines each
                assert [peer.message()["type"] for _ in range(2)] == ["gap", "ready"]
                redis_server.execute("PUBLISH", "run:wepp", str(number))
                assert peer.data() == str(number)
            said = b""
            while said.count(b"Redis is back") < 20:
                said += os.read(read, LEAST)
        began = time.monotonic()
        os.write(write, b"\n" * LEAST)
        assert process.stop() == 0
        assert time.monotonic() - began < 10
    finally:
        process.end()
    wait_for(lambda: process.process.poll() is not None, "ended")
