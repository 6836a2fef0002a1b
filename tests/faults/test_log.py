"""F33: nobody reads what the relay writes."""

import fcntl
import os
import re
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


@pytest.mark.row("F33")
def test_f33_what_finds_no_room_is_counted_and_told(unread, redis_server, tmp_path, told):
    """Ten lines may wait here, not 10 000."""
    read, write = unread
    env = {"REDIS_URL": redis_server.url, "STATUS_METRICS_ENABLED": "true"}
    process = Relay(["status"], env, tmp_path, stderr=write, without=["log-room"])
    try:
        process.wait("ready")
        with Peer(f"{process.status_url}/run:wepp?v=2") as peer:
            assert peer.message() == {"type": "ready"}
            for _ in range(20):
                redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
                assert [peer.message()["type"] for _ in range(2)] == ["gap", "ready"]
            counted = re.search(
                rb'relay_breaches_total{bound="log_lines"} (\S+)', process.http("status", "/metrics")[2]
            )
            said = b""
            while b"lines of this log are missing here" not in said:
                said += os.read(read, LEAST)
    finally:
        process.end()
    missing = int(re.search(rb"(\d+) lines of this log are missing here", said)[1])
    assert missing == float(counted[1]) > 0
    told.injected("nobody reads stderr while 20 links break, where ten lines may wait")
    told.observed(
        f"{missing} lines dropped, counted, and told in the log where they are missing; clients noticed nothing"
    )
    told.bound("control of the bound of 10 000 lines")


@pytest.mark.row("F33")
def test_f33_who_writes_its_own_lines_stands_still(unread, redis_server, tmp_path):
    """The control: without a thread for the log a pipe that nobody reads holds up everything."""
    read, write = unread
    process = Relay(["status"], {"REDIS_URL": redis_server.url}, tmp_path, stderr=write, without=["log-thread"])
    try:
        time.sleep(2)  # what is looked for is that nothing happens
        with pytest.raises(OSError):  # noqa: PT011 - refused, or timed out
            process.http("status", "/livez")
        os.set_blocking(read, False)
        os.read(read, LEAST)
    finally:
        process.end()
