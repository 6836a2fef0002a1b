"""The supervisor of several processes: `relay serve --workers N`.

It serves nobody itself. It holds the listening sockets, one of each address for each slot (SO_REUSEPORT), so that none
goes when a process does: what is not accepted yet waits in its queue for the next one. A worker is this program,
started anew, and so of the newest code and settings; it is told over a channel which sockets it accepts on
(relay/worker.py).

    HUP           one worker after the other is replaced: its successor is ready before it stops accepting
    TTIN, TTOU    one worker more, one less
    TERM, INT     all drain; a second one ends them at once
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop

from relay import listeners, metrics, notify
from relay.errors import ListenError, RedisGivenUp
from relay.logs import to_stderr
from relay.scoreboard import ROWS, Row, Scoreboard, Totals
from relay.settings import Settings
from relay.values import MAX_WORKERS
from relay.worker import hear, tell

LIVED = 10.0  # seconds after which the end of a worker is no failure to start
PAUSE_MOST = 30.0  # seconds between two tries to start one
ANSWER_IN = 5.0  # seconds for a worker to give up its sockets
PROVED_IN = 10.0  # seconds for a new worker to have its Redis, where the one before has
STARTS_IN = 30.0  # seconds for a worker to be ready
STUCK = 60  # looks, one a second, at which a row has not changed: its worker is killed and replaced
REMEMBERED = 4 * ROWS  # workers that are gone

log = logging.getLogger("relay")


@dataclass(eq=False)
class Worker:
    """One process, from its start to its end."""

    number: int
    slot: "Slot"
    row: int
    process: asyncio.subprocess.Process
    channel: socket.socket
    started: float
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    released: dict[int, asyncio.Event] = field(default_factory=dict)
    ends_in: float = 0.0  # seconds that its own drain takes
    stopped: bool = False  # it accepts no more, whoever told it to
    code: int = 0
    beat: int = -1
    looks: int = 0  # since its row has changed

    def tell(self, message: dict[str, Any], descriptors: Iterable[int] = ()) -> None:
        """Sends an order; one that is gone does not mind."""
        with contextlib.suppress(OSError):
            tell(self.channel, message, descriptors)


@dataclass(eq=False)
class Slot:
    """A share of the newcomers: a socket of each address, and who is to accept on them."""

    index: int
    socks: dict[str, socket.socket]
    worker: Worker | None = None  # whose slot it is
    holder: Worker | None = None  # who accepts: another one while its own is away
    failures: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # of who hands its sockets on


class Supervisor:
    """All workers of a relay.

    Args:
        settings: of the process.
        command: that starts a worker, which finds its channel's descriptor in its environment (notify.CHANNEL).

    Raises:
        ListenError: an address cannot be listened on.
    """

    def __init__(self, settings: Settings, command: list[str]) -> None:
        self._settings = settings
        self._command = command
        self._loop = asyncio.get_running_loop()
        self._board = Scoreboard()
        self._totals = Totals(began=time.time())
        self._numbers = 0
        self._rows = set(range(1, ROWS))
        self._workers: set[Worker] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_by_one = asyncio.Lock()  # replacements, and workers more or less
        self._hangups = 0
        self._ending = False
        self._code = 0
        self._ended = asyncio.Event()
        self._places = listeners.places(settings)
        self._first = listeners.open_all(self._places, shared=True)
        self._shared = [place.name for place in self._places if place.address.kind != "tcp"]
        self._slots = [Slot(0, self._first)]
        self._unused: list[Slot] = []  # slots whose worker was taken away: another one serves them
        while len(self._slots) < settings.workers:
            self._slots.append(self._new_slot())

    def _new_slot(self) -> Slot:
        socks = {name: sock if name in self._shared else listeners.beside(sock) for name, sock in self._first.items()}
        return Slot(len(self._slots) + len(self._unused), socks)

    # ---- the life of it ----

    async def run(self) -> int:
        """Serves until all have drained: 0, or the exit code of the worker for which all end."""
        orders = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self._replace_all,
            signal.SIGTTIN: self._one_more,
            signal.SIGTTOU: self._one_less,
        }
        if sys.stdin.isatty():
            orders[signal.SIGHUP] = self._stop  # the terminal is closed
        for number, order in orders.items():
            self._loop.add_signal_handler(number, order)
        for place in self._places:
            log.info(f"{place.name} listens on {listeners.where(self._first[place.name])}")
        self._do(self._start_all())
        self._do(self._look_on())
        await self._ended.wait()
        for task in self._tasks:
            task.cancel()
        for worker in self._workers:
            worker.process.kill()
        self._close(["status", "preflight", "internal", "metrics"])
        return self._code

    def _close(self, names: Iterable[str]) -> None:
        for slot in (*self._slots, *self._unused):
            for name in slot.socks.keys() & names:
                listeners.unlisten(slot.socks[name])

    def _do(self, what: Any) -> None:
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("the supervisor failed at something", exc_info=error)

    async def _start_all(self) -> None:
        """The first alone: what keeps it from starting keeps all of them, and is said once."""
        async with self._one_by_one:
            first, *others = self._slots
            worker = await self._begin(first)
            for slot in others:
                self._give(slot, worker)  # until their own are ready: nobody waits for a Redis that says nothing
            await _either(worker.ready, worker.gone, timeout=STARTS_IN)
            begun = [(slot, await self._begin(slot)) for slot in others if not self._ending]
            for slot, worker in begun:
                await _either(worker.ready, worker.gone, timeout=STARTS_IN)
                await self._hand(slot, worker)
        if not self._ending:
            log.info(f"{sum(slot.worker is not None for slot in self._slots)} workers serve")
            notify.tell("READY=1", self._status())

    def _status(self) -> str:
        return f"STATUS={len(self._slots)} workers, {len(self._workers)} processes"

    # ---- one worker ----

    async def _begin(self, slot: Slot) -> Worker:
        """A slot's worker, accepting at once where nobody does."""
        self._lend()
        slot.worker = worker = await self._start(slot)
        if slot.holder is None:
            self._give(slot, worker)
        return worker

    async def _start(self, slot: Slot, warns: bool = False) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                preexec_fn=_alone,
                env=notify.without(os.environ) | {notify.CHANNEL: str(theirs.fileno())},
            )
        self._numbers += 1
        ours.setblocking(False)
        worker = Worker(self._numbers, slot, self._rows.pop(), process, ours, self._loop.time())
        names = [place.name for place in self._places]
        welcome = {"number": worker.number, "slot": slot.index, "row": worker.row, "names": names, "warns": warns}
        worker.tell(welcome, [self._board.fd])
        self._workers.add(worker)
        self._loop.add_reader(ours, self._hear, worker)
        self._do(self._watch(worker))
        if self._ending:
            worker.tell({"do": "end"})
        return worker

    def _hear(self, worker: Worker) -> None:
        try:
            heard = hear(worker.channel)
        except BlockingIOError:
            return
        except OSError:
            heard = None
        if heard is None:
            self._loop.remove_reader(worker.channel)
            return
        message = heard[0]
        if "ready" in message:
            worker.ends_in = message["ends_in"]
            worker.ready.set()
            self._lend()
        elif "stopped" in message:
            self._forsake(worker)
        elif "released" in message and (event := worker.released.pop(message["released"], None)):
            event.set()

    async def _watch(self, worker: Worker) -> None:
        worker.code = await worker.process.wait()
        self._loop.remove_reader(worker.channel)
        worker.channel.close()
        self._workers.discard(worker)
        self._retire(worker)
        worker.gone.set()
        for event in worker.released.values():
            event.set()
        self._forsake(worker)
        if self._ending:
            if not self._workers:
                self._ended.set()
        elif (worker.code == RedisGivenUp.exit_code and worker.slot.worker is worker) or (
            worker.number == 1 and not worker.ready.is_set()
        ):
            self._code = worker.code if worker.code > 0 else 1  # it has said why
            self._end_all()
        elif worker.slot.worker is worker:
            notify.tell(self._status())
            await self._revive(worker)
            notify.tell(self._status())

    def _forsake(self, worker: Worker) -> None:
        """What it accepted on goes to others."""
        worker.stopped = True
        for slot in (*self._slots, *self._unused):
            if slot.holder is worker:
                slot.holder = None
        self._lend()
        if not self._ending and worker.slot.worker is worker and not worker.gone.is_set():  # by a signal of its own
            self._do(self._revive(worker))

    def _retire(self, worker: Worker) -> None:
        """What it has counted is kept. Its row goes last: until then it is named as one that counts no longer."""
        row = self._board.row(worker.row)
        if isinstance(row, Row):
            kept = metrics.totals([*self._totals.readings, *map(metrics.ended, row.readings)])
            lags = [metrics.added([*self._totals.lags, row.lag])]
            gone = frozenset(sorted({*self._totals.gone, worker.number})[-REMEMBERED:])
            seconds = self._totals.seconds + row.process.get("process_cpu_seconds_total", 0.0)
            self._totals = replace(self._totals, readings=kept, lags=lags, gone=gone, seconds=seconds)
            self._publish()
        self._board.clear(worker.row)
        self._rows.add(worker.row)

    def _publish(self) -> None:
        self._board.write(0, self._totals)

    async def _revive(self, dead: Worker) -> None:
        """A worker that ended unasked comes back, the later the more often it did not even start."""
        slot = dead.slot
        slot.worker = None
        self._totals = replace(self._totals, restarts=self._totals.restarts + 1)
        self._publish()
        lived = self._loop.time() - dead.started
        slot.failures = 0 if lived > LIVED else slot.failures + 1
        pause = 0.0 if not slot.failures else min(PAUSE_MOST, 0.25 * 2**slot.failures)
        gone = f"signal {-dead.code}" if dead.code < 0 else f"exit code {dead.code}"
        how = gone if dead.gone.is_set() else "SIGTERM"
        log.error(f"worker {dead.process.pid} ended unasked ({how}); another one starts in {pause:g} s")
        while True:
            await asyncio.sleep(pause)
            if self._ending or slot.worker is not None or slot not in self._slots:
                return
            try:
                worker = await self._begin(slot)
                break
            except OSError as error:  # no memory, no process, no program just now
                pause = min(PAUSE_MOST, max(0.5, 2 * pause))
                log.error(f"no worker can be started ({error}); tried again in {pause:g} s")
        await _either(worker.ready, worker.gone, timeout=STARTS_IN)
        said = False
        while not await self._served_as_well(self._another(worker), worker):
            if slot.worker is not worker or worker.gone.is_set():
                return
            if not said:  # by settings that a SIGHUP has refused: it would let in its share and have nothing for them
                log.error(f"worker {worker.process.pid} has no Redis, and others have: it lets nobody in until it has")
                said = True
        if slot.worker is worker:  # and not replaced meanwhile
            await self._hand(slot, worker)

    def _another(self, worker: Worker) -> Worker | None:
        """One who serves, if there is one beside this worker."""
        others = [slot.worker for slot in self._slots]
        return next((each for each in others if each and each is not worker and each.ready.is_set()), None)

    # ---- who accepts ----

    def _give(self, slot: Slot, worker: Worker) -> None:
        slot.holder = worker
        order = {"do": "accept", "slot": slot.index, "names": list(slot.socks), "shared": self._shared}
        worker.tell(order, [sock.fileno() for sock in slot.socks.values()])

    def _lend(self) -> None:
        """Sockets that nobody accepts on go to who has least; where there is nobody their newcomers wait."""
        workers = [slot.worker for slot in self._slots]
        able = [each for each in workers if each and each.ready.is_set() and not each.stopped]
        for slot in (*self._slots, *self._unused):
            if slot.holder is None and able and not self._ending:
                self._give(slot, min(able, key=self._held_by))

    def _held_by(self, worker: Worker) -> int:
        return sum(slot.holder is worker for slot in (*self._slots, *self._unused))

    async def _hand(self, slot: Slot, worker: Worker) -> None:
        """Gives a slot's sockets to a worker, once whoever has them has let go."""
        async with slot.lock:
            await self._hand_on(slot, worker)

    async def _hand_on(self, slot: Slot, worker: Worker) -> None:
        holder = slot.holder
        if holder is worker or worker.stopped:
            return
        if holder is not None:
            event = holder.released.setdefault(slot.index, asyncio.Event())
            holder.tell({"do": "release", "slot": slot.index})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), ANSWER_IN)
        if not self._ending and not worker.stopped:
            self._give(slot, worker)
        elif slot.holder is holder:  # it has let go, and the other one is gone meanwhile
            slot.holder = None
            self._lend()

    # ---- signals ----

    def _replace_all(self) -> None:
        if self._hangups < 2 and not self._ending:  # one more than is being done covers whatever changed meanwhile
            self._hangups += 1
            self._do(self._replace_one_by_one())

    async def _replace_one_by_one(self) -> None:
        async with self._one_by_one:
            log.info("SIGHUP: the workers are replaced one by one")
            try:
                for number, slot in enumerate(list(self._slots)):
                    if self._ending or (slot.worker and not await self._replace(slot, warns=number == 0)):
                        break
                else:
                    log.info("all workers are replaced")
            except OSError as error:
                log.error(f"no worker can be started ({error}): the old ones stay")
            finally:
                self._hangups -= 1
            notify.tell(self._status())

    async def _replace(self, slot: Slot, warns: bool) -> bool:
        """Whether a slot has a new worker; where that one does not start, the old one stays.

        The first one of them `warns` of what is odd about the settings of now, for all.
        """
        new = await self._start(slot, warns)
        if why := await self._keeps_out(new, slot.worker, "the one before has"):
            if not self._ending:
                log.error(f"the new worker {new.process.pid} {why}: the old ones stay")
            new.tell({"do": "end"})
            return False
        old, slot.worker, slot.failures = slot.worker, new, 0
        for mine in [s for s in (*self._slots, *self._unused) if s.holder is old or s is slot]:
            await self._hand(mine, new)
        if old:
            await self._dismiss(old, "SIGHUP")
        return True

    async def _keeps_out(self, new: Worker, beside: Worker | None, has: str) -> str:
        """Waits until a new worker can serve as well as the one beside it; what keeps it from that, or nothing."""
        await _either(new.ready, new.gone, timeout=STARTS_IN)
        why = "" if new.ready.is_set() else "is not ready in time"
        if not why and not await self._served_as_well(beside, new):
            why = f"has no Redis, and {has}"
        return f"does not start (exit code {new.code})" if new.gone.is_set() else why

    async def _served_as_well(self, old: Worker | None, new: Worker) -> bool:
        """Whether newcomers are: settings that name another Redis must not take everybody to where nothing is."""
        until = self._loop.time() + PROVED_IN
        while old is not None and not new.gone.is_set():
            before, after = self._board.row(old.row), self._board.row(new.row)
            if not isinstance(before, Row) or any(before.why.values()):
                return True
            if isinstance(after, Row) and not any(after.why.values()):
                return True
            if self._loop.time() > until:
                return False
            await asyncio.sleep(0.1)
        return not new.gone.is_set()

    async def _dismiss(self, worker: Worker, why: str) -> None:
        """Drains one whose sockets are another's already, and waits for its end."""
        worker.tell({"do": "drain", "delay": 0.0, "why": why, "refuse": False})
        try:
            await asyncio.wait_for(worker.gone.wait(), worker.ends_in + 10.0)
        except TimeoutError:
            worker.process.kill()

    def _one_more(self) -> None:
        self._do(self._add())

    async def _add(self) -> None:
        async with self._one_by_one:
            if self._ending:
                return
            if len(self._slots) >= MAX_WORKERS:
                log.info(f"SIGTTIN: there are {MAX_WORKERS} workers, which is the most")
                return
            try:
                slot = self._unused.pop() if self._unused else self._new_slot()
                self._unused.append(slot)
                self._lend()
                worker = await self._start(slot)
            except (OSError, ListenError) as error:
                log.error(f"SIGTTIN: no worker can be started ({error})")
                return
            if why := await self._keeps_out(worker, self._another(worker), "others have"):
                if not self._ending:
                    log.error(f"SIGTTIN: the new worker {worker.process.pid} {why}: none is added")
                worker.tell({"do": "end"})
                return
            self._unused.remove(slot)
            self._slots.append(slot)
            slot.worker = worker
            log.info(f"SIGTTIN: {len(self._slots)} workers from now on")
            await self._hand(slot, worker)
            notify.tell(self._status())

    def _one_less(self) -> None:
        self._do(self._remove())

    async def _remove(self) -> None:
        async with self._one_by_one:
            if self._ending:
                return
            if len(self._slots) == 1:
                log.info("SIGTTOU: the last worker stays; SIGTERM ends the relay")
                return
            slot = self._slots.pop()
            self._unused.append(slot)
            log.info(f"SIGTTOU: {len(self._slots)} workers from now on")
            leaving, slot.worker = slot.worker, None
            heir = min((s.worker for s in self._slots if s.worker), key=self._held_by, default=None)
            for mine in [s for s in (*self._slots, *self._unused) if s is slot or s.holder is leaving]:
                if heir:
                    await self._hand(mine, heir)
            if leaving:
                await self._dismiss(leaving, "SIGTTOU")
            notify.tell(self._status())

    def _stop(self) -> None:
        if self._ending:
            log.warning("again: ending at once")
            self._end_all()
            return
        self._ending = True
        settings = self._settings
        log.info(f"draining {len(self._workers)} workers for {settings.drain:g} s at most")
        notify.tell("STOPPING=1")
        self._totals = replace(self._totals, draining=True)
        self._publish()
        for worker in self._workers:
            worker.tell({"do": "drain", "delay": settings.drain_delay, "why": "the relay ends", "refuse": True})
        # The workers' are the last copies then: when they stop accepting, newcomers are refused and wait for nobody.
        self._loop.call_later(settings.drain_delay, self._close, ["status", "preflight"])
        longest = max((worker.ends_in for worker in self._workers), default=0.0)
        self._loop.call_later(max(longest, settings.drain_delay + settings.drain) + 10.0, self._end_all)
        if not self._workers:
            self._ended.set()

    def _end_all(self) -> None:
        self._ending = True
        for worker in self._workers:
            worker.tell({"do": "end"})
        self._loop.call_later(1.0, self._ended.set)
        if not self._workers:
            self._ended.set()

    # ---- looking on ----

    async def _look_on(self) -> None:
        """Once a second: the watchdog of systemd, and workers that hang.

        Looks are counted and not seconds: where the whole machine stood still, the workers did too.
        """
        while True:
            await asyncio.sleep(1.0)
            if any(worker.ready.is_set() for worker in self._workers):
                notify.tell("WATCHDOG=1")
            for worker in list(self._workers):
                beat = self._board.beat(worker.row)
                worker.looks = worker.looks + 1 if beat == worker.beat else 0
                worker.beat = beat
                if worker.looks >= STUCK:
                    log.error(f"worker {worker.process.pid} hangs: it is killed")
                    worker.process.kill()


def _alone() -> None:
    """Of a worker, from its first moment: what a terminal sends to all processes is the supervisor's to pass on."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)


async def _either(*events: asyncio.Event, timeout: float) -> None:  # noqa: ASYNC109 - one word for the caller
    """Waits until one of them is set, or the time is up."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def run(settings: Settings, arguments: list[str]) -> int:
    """Serves with several processes until SIGTERM or SIGINT.

    Args:
        settings: of the process.
        arguments: of the command line, which each worker is started with too.

    Returns:
        0 after a drain, or the exit code of a worker that could not be started.

    Raises:
        ListenError: an address cannot be listened on.
    """
    levels = [service.log_level for service in settings.services]
    # Where it was started with `python -m relay` in a checkout, the package is found there and nowhere else.
    checkout = Path(__file__).parents[1] == Path.cwd()
    command = [sys.executable, *([] if checkout else ["-P"]), "-m", "relay", *arguments]

    async def supervise() -> int:
        for warning in settings.warnings:
            log.warning(warning)
        return await Supervisor(settings, command).run()

    with (
        to_stderr(min(levels, key=lambda level: int(logging.getLevelName(level)))),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(supervise())
