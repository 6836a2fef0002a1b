"""What the sockets of clients are given, before and after the core has them."""

import os
import socket
from pathlib import Path

import pytest

from tests.unit.rig import Rig

NOTSENT_LOWAT = 25  # TCP_NOTSENT_LOWAT of Linux; Python has no name for it


@pytest.fixture
def rig():
    rig = Rig(limit=300, decide=lambda *_: None)
    yield rig
    rig.close()


def accepted(sock):
    """The core's end of a connection: a duplicate of the descriptor in this very process that has it as its peer."""
    for name in Path("/proc/self/fd").iterdir():
        try:
            end = socket.socket(fileno=os.dup(int(name.name)))
        except OSError:
            continue
        try:
            if end.getpeername() == sock.getsockname():
                return end
        except OSError:
            pass
        end.close()
    return None


def options(sock):
    with accepted(sock) as end:
        return (
            end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
            end.getsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT),
        )


def test_what_waits_for_a_client_waits_here_and_not_in_the_kernel(rig):
    """Also for who was connected before the core had the listener, as an inherited one's clients are."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        listener.setblocking(False)
        early = [socket.create_connection(listener.getsockname()) for _ in range(100)]  # more than one round accepts
        rig.core.listen(listener.fileno(), rig.service)
        rig.until(lambda: rig.core.totals()["sockets"] == len(early))
        late = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        rig.until(lambda: rig.core.totals()["sockets"] == len(early) + len(late))
        assert {options(sock) for sock in early + late} == {(1, 16384)}
        rig.core.stop_listening()
        for sock in early + late:
            sock.close()
