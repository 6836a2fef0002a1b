"""One of several processes: what its supervisor tells it, and what all of them know of each other.

The channel is a pair of Unix sockets that keep messages apart, JSON with descriptors beside it:

    accept   slot, shared names; a socket for each     release   slot: its sockets are another's from now on
    drain    delay, why, refuse (newcomers)            end       at once

and back `ready` (Redis has answered, or is known to be away), `released` and `stopped` (nothing is accepted any more).
When the channel ends the supervisor is gone, and nobody would restart this process: it drains.
"""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterable
from typing import Any

from relay import internal, listeners, metrics
from relay.errors import ConfigError
from relay.metrics import Bound, Histogram, Reading
from relay.scoreboard import Row, Scoreboard
from relay.server import Held, Server
from relay.server import run as run_server
from relay.settings import Settings

MESSAGE = 65536  # bytes at most
DESCRIPTORS = 16
READY_IN = 5.0  # seconds after which a worker counts as ready whatever Redis does
ROW_EVERY = 0.5  # seconds
MOST_SAID = 500  # characters of a sentence in a row
LATE = 5.0  # seconds for which a row may stay as it is until its worker counts as hanging


def tell(channel: socket.socket, message: dict[str, Any], descriptors: Iterable[int] = ()) -> None:
    """Sends one message.

    Raises:
        OSError: the other side is gone.
    """
    socket.send_fds(channel, [json.dumps(message).encode()], list(descriptors))


def hear(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message and its descriptors; None at the end.

    Raises:
        BlockingIOError: there is none yet.
    """
    data, descriptors, _, _ = socket.recv_fds(channel, MESSAGE, DESCRIPTORS)
    return (json.loads(data), descriptors) if data else None


class Worker:
    """This process in the eyes of the others.

    Args:
        server: what it serves with.
        channel: to the supervisor.
        welcome: the supervisor's first message: `number`, `slot`, the `row` of the scoreboard, and whether it `warns`.
        board: the scoreboard.
    """

    def __init__(self, server: Server, channel: socket.socket, welcome: dict[str, Any], board: Scoreboard) -> None:
        self._server = server
        self._channel = channel
        self._number, self._slot, self._row = welcome["number"], welcome["slot"], welcome["row"]
        self._board = board
        self._told_ready = False
        self._loop = asyncio.get_running_loop()
        self._born = self._loop.time()
        channel.setblocking(False)
        self._loop.add_reader(channel, self._read)
        server.whole = self
        server.signals = []
        # A service manager sends SIGTERM to all processes; it is the supervisor that counts them.
        self._loop.add_signal_handler(signal.SIGTERM, self._terminated)
        server.on_stopped = lambda: self._tell({"stopped": True})
        self._turn()

    def _terminated(self) -> None:
        if not self._server.draining:
            self._server.drain("SIGTERM", self._server.settings.drain_delay, refusing=False)

    # ---- the channel ----

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            tell(self._channel, message)
        except OSError:
            self._lost()

    def _read(self) -> None:
        while True:
            try:
                heard = hear(self._channel)
            except BlockingIOError:
                return None
            except OSError:
                heard = None
            if heard is None:
                return self._lost()
            self._obey(*heard)

    def _lost(self) -> None:
        self._loop.remove_reader(self._channel)
        for held in [held for held in self._server.held if held.name in ("internal", "metrics")]:
            self._server.leave(held)  # or the next supervisor could not have the address until this drain is over
        if not self._server.draining:
            self._server.drain("the supervisor is gone", 0.0)

    def _obey(self, order: dict[str, Any], descriptors: list[int]) -> None:
        if order["do"] == "accept":
            for name, descriptor in zip(order["names"], descriptors, strict=True):
                held = Held(name, socket.socket(fileno=descriptor), order["slot"])
                if self._server.draining:
                    held.sock.close()
                else:
                    self._server.accept_on(held, shared=name in order["shared"])
        elif order["do"] == "release":
            self._server.release(order["slot"])
            self._tell({"released": order["slot"]})
        elif order["do"] == "drain" and not self._server.draining:  # else it was told by a signal as well
            self._server.drain(order["why"], order["delay"], refusing=order["refuse"])
        elif order["do"] == "end":
            self._server.end()
        self.write()

    # ---- the scoreboard ----

    def _turn(self) -> None:
        self._loop.call_later(ROW_EVERY, self._turn)
        self.write()
        if not self._told_ready and (self._loop.time() > self._born + READY_IN or self._redis_is_known()):
            self._told_ready = True
            settings = self._server.settings
            self._tell({"ready": True, "ends_in": settings.drain_delay + settings.drain})

    def _redis_is_known(self) -> bool:
        links = ((service.link, service.commands) for service in self._server.services)
        return all(link.proved or link.failures or commands.failures for link, commands in links)

    def write(self) -> None:
        """Writes this process' row."""
        server = self._server
        # What Redis says may be in there, at any length; a row that does not fit would make this worker one that hangs.
        why = {s.name: [said[:MOST_SAID] for said in internal.obstacles(s, server.draining)] for s in server.services}
        row = Row(
            number=self._number,
            at=self._loop.time(),
            slot=self._slot,
            pid=os.getpid(),
            accepting=bool(server.held) and not server.draining,
            draining=server.draining,
            why=why,
            readings=server.readings(),
            bounds=server.bounds(),
            lag=server.core.lag(),
            process=metrics.process(),
            counts=server.facts.counts(),
        )
        self._board.write(self._row, row)

    def rows(self) -> list[Row]:
        """Those of all workers, this one's as it is now."""
        self.write()
        return self._board.rows()[1]

    def why(self, service: str) -> list[str]:
        """Why the whole would not serve newcomers of a service well; empty where it would.

        A worker that hangs is one of them: the kernel goes on to send newcomers its way.
        """
        totals, rows = self._board.rows()
        accepting = [row for row in rows if row.accepting]
        found = [why for row in accepting for why in row.why[service]]
        found += [f"worker {row.pid} hangs" for row in accepting if self._hangs(row)]
        if totals.draining or not accepting:
            found.append("the relay is draining")
        return list(dict.fromkeys(found))

    def _hangs(self, row: Row) -> bool:
        return row.number != self._number and self._loop.time() - row.at > LATE

    def readings(self) -> list[Reading]:
        """Those of all workers, those that have ended among them."""
        self.write()
        totals, rows = self._board.rows()
        return [*totals.readings, *(reading for row in rows for reading in row.readings)]

    def bounds(self) -> list[Bound]:
        """Those of all workers."""
        return metrics.total_bounds([row.bounds for row in self.rows()])

    def lags(self) -> list[Histogram]:
        """How late the turns of each loop come."""
        totals, rows = self._board.rows()
        return [*totals.lags, *(row.lag for row in rows)]

    def processes(self) -> metrics.Processes:
        """What the system says of each worker, and of those that have ended what they have used."""
        totals, rows = self._board.rows()
        past = {"process_cpu_seconds_total": totals.seconds, "process_start_time_seconds": totals.began}
        return metrics.Processes([past, *(row.process for row in rows)], totals.restarts)


def run(settings: Settings, channel: int) -> int:
    """Serves as one of several until it has drained.

    Args:
        settings: of the process.
        channel: the descriptor that the supervisor has passed.

    Returns:
        0 after a drain.

    Raises:
        RelayError: what kept it from starting, or ended it.
    """
    sock = socket.socket(fileno=channel)
    sock.set_inheritable(False)
    welcome = hear(sock)
    if welcome is None:
        return 0
    message, descriptors = welcome
    if [place.name for place in listeners.places(settings)] != message["names"]:
        raise ConfigError(
            f"the settings have other listeners than {', '.join(message['names'])}, with which this relay was started: "
            "restart it, for a reload leaves what is listened on as it is"
        )
    board = Scoreboard(descriptors[0])
    return run_server(settings, lambda server: Worker(server, sock, message, board), warns=message["warns"])
