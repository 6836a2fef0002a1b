"""What a service manager is told and gives (systemd's sd_notify and socket units)."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from relay import notify
from relay.errors import ListenError
from tests.conftest import ROOT
from tests.integration.peers import Peer

AS_THE_MANAGER_DOES = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.executable, [sys.executable, "-m", "relay", *sys.argv[2:]])
"""


class Manager:
    """The manager's side of NOTIFY_SOCKET."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(20)
        self.env = {"NOTIFY_SOCKET": path}

    def until(self, line):
        while line not in self.sock.recv(4096).decode().split("\n"):
            pass


@pytest.fixture
def manager(tmp_path):
    made = Manager(str(tmp_path / "notify"))
    with made.sock:
        yield made


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_the_manager_is_told(relay, manager, workers):
    process = relay("status", "--workers", workers, env={**manager.env, "RELAY_DRAIN": "0s"}, wait=None)
    manager.until("READY=1")
    assert process.listens("status"), "ready means that newcomers are taken"
    manager.until("WATCHDOG=1")
    manager.until("WATCHDOG=1")
    process.process.send_signal(signal.SIGTERM)
    manager.until("STOPPING=1")
    assert process.process.wait(20) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_listening_socket_is_passed_by_the_manager(redis_url, workers, tmp_path):
    """The socket outlives the relay: whoever comes between two of them waits, and is refused by nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "log").open("wb") as log:
        port = listener.getsockname()[1]
        env = {**os.environ, "REDIS_URL": redis_url, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "status", "RELAY_DRAIN": "0s"}
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)):  # waits in the queue
                fd = listener.fileno()
                process = subprocess.Popen(
                    [sys.executable, "-c", AS_THE_MANAGER_DOES, str(fd), "serve", "status", "--workers", workers],
                    env=env,
                    cwd=ROOT,
                    pass_fds=[fd],
                    stderr=log,
                )
                try:
                    with Peer(f"ws://127.0.0.1:{port}/run:wepp") as peer:
                        peer.leave()
                finally:
                    process.terminate()
                    assert process.wait(20) == 0


def test_two_sockets_of_one_name_are_refused():
    """systemd gives all of a unit the same one: of two the first was accepted on by nobody, and its clients hung."""
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "status:status"}
    with pytest.raises(ListenError, match="FileDescriptorName="):
        notify.passed(env)
    assert notify.passed({**env, "LISTEN_FDNAMES": "status:preflight"}) == {"status": 3, "preflight": 4}
    assert notify.passed({**env, "LISTEN_PID": "1"}) == {}
