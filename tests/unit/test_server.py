"""What the process takes from its surroundings: descriptors, addresses, and how it logs."""

import logging
import resource
import subprocess
import sys

import pytest

from relay import listeners, server, settings


def load(**env):
    return settings.load(("status",), env=env)


@pytest.fixture
def file_limit():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda soft: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_file_limit_is_raised_to_the_hard_one(file_limit):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    file_limit(256)
    room = server.max_connections(load())
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert room > 256 - listeners.FILES_KEPT


def test_room_is_what_is_asked_for_within_what_there_is(caplog):
    assert server.max_connections(load(RELAY_MAX_CONNECTIONS="100")) == 100
    with caplog.at_level(logging.WARNING, "relay"):
        assert server.max_connections(load(RELAY_MAX_CONNECTIONS="2000000000")) < 2_000_000_000
    assert "RELAY_MAX_CONNECTIONS=2000000000" in caplog.text


def test_no_collection_walks_over_what_was_there_at_the_start():
    """With 5000 channels one did, and every delivery stood still for 12 ms."""
    code = """
import gc
from relay import listeners, server, settings
async def run(self):
    print(gc.get_freeze_count() > 10_000 > len(gc.get_objects()))
server.Server.run = run
server.run(settings.load(("status",), env={"STATUS_LISTEN_ADDR": "127.0.0.1:0"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
