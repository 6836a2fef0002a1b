"""What the process takes from its surroundings: descriptors, addresses, and how it logs."""

import logging
import resource
import socket
import subprocess
import sys

import pytest

from relay import server, settings
from relay.errors import ListenError


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
    assert room > 256 - server.FILES_KEPT


def test_room_is_what_is_asked_for_within_what_there_is(caplog):
    assert server.max_connections(load(RELAY_MAX_CONNECTIONS="100")) == 100
    with caplog.at_level(logging.WARNING, "relay"):
        assert server.max_connections(load(RELAY_MAX_CONNECTIONS="2000000000")) < 2_000_000_000
    assert "RELAY_MAX_CONNECTIONS=2000000000" in caplog.text


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("203.0.113.7:9002", "no address of this machine"),
        ("fd:7777", "no such descriptor"),
        ("unix:/nowhere/x", "No such file"),
    ],
)
def test_an_address_that_cannot_be_had(address, why):
    with pytest.raises(ListenError, match=why) as error:
        server._listen(load(STATUS_LISTEN_ADDR=address).status)
    assert "STATUS_LISTEN_ADDR" in str(error.value)


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match="something else listens there already"):
            server._listen(load(STATUS_LISTEN_ADDR=address).status)


def test_a_descriptor_that_does_not_listen():
    with socket.socket() as idle:
        fd = socket.dup(idle.fileno())
        with pytest.raises(ListenError, match="no listening socket"):
            server._listen(load(STATUS_LISTEN_ADDR=f"fd:{fd}").status)


def test_a_unix_socket_left_behind_is_replaced_and_a_living_one_is_not(tmp_path):
    path = str(tmp_path / "relay.sock")
    listen = load(STATUS_LISTEN_ADDR=f"unix:{path}").status
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    sock = server._listen(listen)
    with pytest.raises(ListenError, match="listens there already"):
        server._listen(listen)
    server._unlisten(sock)
    assert not (tmp_path / "relay.sock").exists()


def test_a_unix_socket_that_is_anothers_by_now_stays(tmp_path):
    listen = load(STATUS_LISTEN_ADDR=f"unix:{tmp_path / 'relay.sock'}").status
    first = server._listen(listen)
    (tmp_path / "relay.sock").unlink()
    second = server._listen(listen)
    server._unlisten(first)
    assert (tmp_path / "relay.sock").exists()
    server._unlisten(second)
    assert not (tmp_path / "relay.sock").exists()


def test_no_collection_walks_over_what_was_there_at_the_start():
    """With 5000 channels one did, and every delivery stood still for 12 ms."""
    code = """
import gc
from relay import server, settings
async def run(self):
    print(gc.get_freeze_count() > 10_000 > len(gc.get_objects()))
server.Server.run = run
server.run(settings.load(("status",), env={"STATUS_LISTEN_ADDR": "127.0.0.1:0"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
