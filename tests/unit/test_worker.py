"""A worker's row of the scoreboard."""

import asyncio
import socket
from types import SimpleNamespace

from relay import internal, settings
from relay.scoreboard import Scoreboard
from relay.server import Server
from relay.worker import MOST_SAID, Worker


async def test_however_much_redis_says_the_row_fits(monkeypatch):
    """A worker whose row is not written counts as one that hangs, and is killed."""
    monkeypatch.setattr(internal, "obstacles", lambda service, draining: ["-ERR " + "x" * 60_000])
    server = Server(settings.load(env={}), SimpleNamespace(waiting=0, dropped=0))
    board = Scoreboard()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Worker(server, ours, {"number": 1, "slot": 0, "row": 1}, board)
        assert board.row(1).why == {name: ["-ERR " + "x" * (MOST_SAID - 5)] for name in ("status", "preflight")}
        asyncio.get_running_loop().remove_reader(ours)
