"""Sockets that take connections: made, inherited, shared, and what keeps them from being had."""

import socket

import pytest

from relay import listeners, settings
from relay.errors import ListenError


def listen(address, **options):
    place = listeners.places(settings.load(("status",), env={"STATUS_LISTEN_ADDR": address}))[0]
    return place.open(**options)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("203.0.113.7:9002", "no address of this machine"),
        ("fd:7777", "no such descriptor"),
        ("unix:/nowhere/x", "the directory is not there"),
    ],
)
def test_an_address_that_cannot_be_had(address, why):
    with pytest.raises(ListenError, match=why) as error:
        listen(address)
    assert "STATUS_LISTEN_ADDR" in str(error.value)


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match="something else listens there already"):
            listen(address)


def test_a_descriptor_that_does_not_listen():
    with socket.socket() as idle:
        fd = socket.dup(idle.fileno())
        with pytest.raises(ListenError, match="no listening socket"):
            listen(f"fd:{fd}")


def test_a_unix_socket_left_behind_is_replaced_and_a_living_one_is_not(tmp_path):
    path = str(tmp_path / "relay.sock")
    address = f"unix:{path}"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    sock = listen(address)
    with pytest.raises(ListenError, match="listens there already"):
        listen(address)
    listeners.unlisten(sock)
    assert not (tmp_path / "relay.sock").exists()


def test_a_path_that_cannot_be_a_socket(tmp_path):
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ListenError, match="there is a file or a directory already, and no socket"):
            listen(f"unix:{taken}")
    with pytest.raises(ListenError, match="the directory is not there"):
        listen(f"unix:{tmp_path}/gone/relay.sock")


def test_a_unix_socket_that_is_anothers_by_now_stays(tmp_path):
    address = f"unix:{tmp_path / 'relay.sock'}"
    first = listen(address)
    (tmp_path / "relay.sock").unlink()
    second = listen(address)
    listeners.unlisten(first)
    assert (tmp_path / "relay.sock").exists()
    listeners.unlisten(second)
    assert not (tmp_path / "relay.sock").exists()


def test_sockets_beside_each_other_share_what_comes():
    with listen("127.0.0.1:0", shared=True) as first, listeners.beside(first) as second:
        assert first.getsockname() == second.getsockname()
        clients = [socket.create_connection(first.getsockname()) for _ in range(100)]
        shares = []
        for sock in (first, second):
            shares.append(0)
            try:
                while True:
                    sock.accept()[0].close()
                    shares[-1] += 1
            except BlockingIOError:
                pass
        assert sum(shares) == 100
        assert min(shares) > 20, "50 each, and with one chance in 10 million 20 or less"
        for client in clients:
            client.close()


@pytest.mark.parametrize("shared", [True, False])
def test_one_that_shares_is_not_shared_with_strangers(shared):
    first = listen("127.0.0.1:0", shared=True)
    with first, pytest.raises(ListenError, match="something else listens there already"):
        listen(f"127.0.0.1:{first.getsockname()[1]}", shared=shared)


def test_where_one_cannot_be_had_none_is(tmp_path):
    env = {"STATUS_LISTEN_ADDR": f"unix:{tmp_path / 'status.sock'}", "PREFLIGHT_LISTEN_ADDR": "203.0.113.7:9001"}
    places = listeners.places(settings.load(env=env))
    with pytest.raises(ListenError, match="PREFLIGHT_LISTEN_ADDR"):
        listeners.open_all(places)
    assert not (tmp_path / "status.sock").exists()
