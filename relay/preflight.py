"""Preflight: one topic for each run, a snapshot of its checklist whenever that changes (contract, section 4).

State, not events: a key event only says that a run is worth reading again. At most one HGETALL is in flight for a
run; an event meanwhile marks it dirty and one more read follows, so the last state always arrives and an older
snapshot never follows a newer one. An unchanged snapshot is not sent again, and on Redis errors nothing is: an
all-false frame before a true one makes browsers announce a completed run.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeGuard

from relay import checklist
from relay._fanout import Core
from relay.handshake import busy, plain
from relay.link import READY, Link, gap
from relay.settings import ProcessSettings, ServiceSettings
from relay.upstream import Commands, Lost

SPACING = 0.025  # seconds between two reads of a run, so between two frames
RECHECK = 50.0  # seconds until every watched run has been read again, event or not
REFUSED_AGAIN = 5.0  # seconds between two tries where Redis does not let us read
JSON = "application/json"
KEPT = 1000  # snapshots of runs that nobody watches, for who joins while Redis is away


@dataclass(slots=True, eq=False)
class _Run:
    """A watched run.

    `snapshot` is the frame that all its clients hold, `times` the one that those of protocol version 3 hold besides;
    `reading` that an HGETALL is in flight; `dirty` that one more must follow; `due` the timer of a read that waits for
    its time; `read_at` when the last one was issued, `covered` that its key events were subscribed by then; `current`
    that such a read has been answered, and nothing broke since; `shown_at` when the last one that was answered had been
    issued.
    """

    snapshot: bytes = b""
    times: bytes = b""
    reading: bool = False
    dirty: bool = False
    due: asyncio.TimerHandle | None = None
    read_at: float = -SPACING
    shown_at: float = 0.0
    covered: bool = False
    current: bool = False


class Preflight:
    """The service.

    Args:
        core: whose topics it fills.
        settings: of the service.
        make_link: makes its link from the core's number of the service.
        commands: its command connection.
        process: the settings of the whole process.
        deliver: has the core send what was published.
        set_events: switch on the key events that are missing in Redis.
    """

    name = "preflight"

    def __init__(
        self,
        core: Core,
        settings: ServiceSettings,
        make_link: Callable[[int], Link],
        commands: Commands,
        process: ProcessSettings,
        deliver: Callable[[], None],
        *,
        set_events: bool = False,
    ) -> None:
        self.core = core
        self.settings = settings
        self.deliver = deliver
        self.index = core.add_service(
            newest_only=True,
            ping_interval=settings.ping_interval,
            pong_timeout=settings.pong_timeout,
            write_timeout=settings.write_timeout,
            max_message=settings.max_message_size,
            max_backlog=process.max_backlog,
            max_fragments=process.max_fragments,
            frame_rate=process.frame_rate,
            frame_burst=process.frame_burst,
        )
        self.link = make_link(self.index)
        self.link.listener = self
        self.commands = commands
        self.commands.on_ready.append(self._on_ready)
        self.commands.on_gone.append(self._on_gone)
        self.set_events = set_events
        self._events_of = b"__keyspace@%d__:" % settings.redis.db  # and the key: the channel of its events
        self.log = logging.getLogger("relay.preflight")
        self.refused = ""  # why Redis does not let this user read runs, where it does not
        self.events = ""  # what is known of Redis' key events: on, off or unknown
        self._runs: OrderedDict[bytes, _Run] = OrderedDict()
        self._kept: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()
        self._to_recheck = 0.0

    # ---- from the clients ----

    def join(self, client: int, run: bytes) -> None:
        """Attaches an accepted client: with the snapshot where one is at hand, otherwise ahead of the first read."""
        state = self._runs.get(run)
        if state is None:
            state = self._runs[run] = _Run()
            self.link.want(self._events_of + run)
        up = self.link.up and self.commands.up and not self.refused
        if not state.snapshot and not up:
            self._recall(run, state)
        notice = READY if state.current else b"" if up else gap("link", time.time())
        self.core.attach(client, run, state.snapshot, notice, state.times)
        if not self.core.watched(self.index, run):
            self.idle(run)  # it was gone before it came

    def show(self, client: int, run: bytes, extra: Iterable[tuple[str, str]], *, head: bool) -> None:
        """Answers a request for the snapshot of now, with these headers: as it is held where it is current, or read."""
        state = self._runs.get(run)
        if state and state.current:
            self.core.refuse(client, plain("200 OK", state.snapshot, extra, kind=JSON, head=head))
            return
        self.core.accept(client, b"")
        self.commands.call(b"HGETALL", run).add_done_callback(lambda answer: self._tell(client, extra, answer, head))

    def _tell(
        self, client: int, extra: Iterable[tuple[str, str]], answer: "asyncio.Future[object]", head: bool
    ) -> None:
        fields = None if answer.cancelled() or answer.exception() else answer.result()
        if _is_hash(fields):
            snapshot = checklist.frame(dict(zip(fields[::2], fields[1::2], strict=True)))
            self.core.refuse(client, plain("200 OK", snapshot, extra, kind=JSON, head=head))
        else:
            self.core.refuse(
                client, busy("The run cannot be read just now: the relay has lost Redis, or Redis refuses it.")
            )

    def _recall(self, run: bytes, state: _Run) -> None:
        """Redis is away: the last snapshot this process holds, also for those who joined before that was known."""
        state.snapshot, state.times = self._kept.get(run, (b"", b""))
        if state.snapshot:
            self.core.publish(self.index, run, state.times, 3)
            if self.core.publish(self.index, run, state.snapshot):
                self.deliver()

    def idle(self, run: bytes) -> None:
        """The run has lost its last client."""
        if self.core.watched(self.index, run):
            return
        state = self._runs.pop(run, None)
        self.link.drop(self._events_of + run)
        if state is None:
            return
        if state.due:
            state.due.cancel()
        if state.snapshot:
            self._kept[run] = state.snapshot, state.times
            self._kept.move_to_end(run)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    # ---- from the link ----

    def on_subscribed(self, channel: bytes) -> None:
        """Of link.Listener. Subscribe first, then read: no write can fall between."""
        self._touch(channel[len(self._events_of) :])

    def on_refused(self, channel: bytes, why: str) -> None:
        """Of link.Listener."""
        self.core.close_topic(self.index, channel[len(self._events_of) :], 1008, b"Redis does not permit this run")

    def on_event(self, channel: bytes, payload: bytes) -> None:
        """Of link.Listener: something was done to the key."""
        self._touch(channel[len(self._events_of) :])

    def on_down(self, since: float) -> None:
        """Of link.Listener. No snapshot is sent; each subscription made again brings a new read."""
        self._doubt(since)

    def _on_gone(self) -> None:
        """The command connection broke: what was asked since its last answer was not read, nor can anything be."""
        self._doubt(_unix(self.commands.sure))

    def _doubt(self, since: float) -> None:
        """What the clients hold may be old. Those that can be told are, once."""
        if any(state.current for state in self._runs.values()):
            self.core.announce_gap(self.index, gap("link", since))
            self.deliver()
        for state in self._runs.values():
            state.current = state.covered = False

    # ---- reading ----

    def _touch(self, run: bytes) -> None:
        """The run is worth reading: now, or when its time has come."""
        state = self._runs.get(run)
        if state is None:
            return
        if state.reading:
            state.dirty = True
        elif not state.due:
            loop = asyncio.get_running_loop()
            wait = state.read_at + SPACING - loop.time()
            if wait > 0:
                state.due = loop.call_later(wait, self._read, run, state)
            else:
                self._read(run, state)

    def _read(self, run: bytes, state: _Run, *, announced: bool = True) -> None:
        state.due = None
        state.reading, state.dirty = True, False
        state.covered = self.link.subscribed(self._events_of + run)
        state.read_at = asyncio.get_running_loop().time()
        answer = self.commands.call(b"HGETALL", run)
        answer.add_done_callback(lambda answer: self._on_read(run, state, answer, announced))

    def _on_read(self, run: bytes, state: _Run, answer: "asyncio.Future[object]", announced: bool) -> None:
        state.reading = False
        error = None if answer.cancelled() else answer.exception()
        if self._runs.get(run) is not state or answer.cancelled():
            return
        if error is not None:
            self._on_error(run, state, error)
            return
        fields = answer.result()
        if not _is_hash(fields):
            self.commands.abort(f"{self.commands.told(fields)} is no answer to HGETALL")
            return
        self._show(run, state, fields, announced)
        state.shown_at = state.read_at
        if state.covered and not state.current and self.commands.up:
            state.current = True
            if self.core.publish(self.index, run, READY, 2):
                self.deliver()
        if state.dirty:
            self._touch(run)

    def _on_error(self, run: bytes, state: _Run, error: BaseException) -> None:
        """No snapshot is sent. A lost connection reads all runs when it is back, the re-check one that was refused."""
        if not self.commands.up:
            return
        self.commands.report(logging.ERROR, f"Redis refuses to read a run: {error}")
        if state.current:
            self.core.announce_gap(self.index, gap("link", _unix(state.shown_at)), run)
            self.deliver()
        state.current = state.covered = False
        if str(error).startswith("NOPERM") and not self.refused:
            self.refused = str(error)
            asyncio.get_running_loop().call_later(REFUSED_AGAIN, self._ask_again, run)
        if state.dirty:
            self._touch(run)

    def _ask_again(self, run: bytes) -> None:
        """Whether this user may read by now; watched or not, for somebody may come."""
        self.commands.call(b"HGETALL", run).add_done_callback(lambda answer: self._on_asked_again(run, answer))

    def _on_asked_again(self, run: bytes, answer: "asyncio.Future[object]") -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, Lost) or (error is not None and str(error).startswith("NOPERM")):
            asyncio.get_running_loop().call_later(REFUSED_AGAIN, self._ask_again, run)
            return
        self.refused = ""
        for each in list(self._runs):
            self._touch(each)

    def _show(self, run: bytes, state: _Run, fields: list[bytes], announced: bool) -> None:
        """Publishes the snapshot where it differs from what clients hold; ahead of it the times, which explain it."""
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        frame, times = checklist.frame(found), checklist.times(found)
        if (frame, times) == (state.snapshot, state.times):
            return
        if not announced and not state.dirty and state.snapshot:
            self._check_events()
        if times != state.times:
            state.times = times
            self.core.publish(self.index, run, times, 3)
        if frame != state.snapshot:
            state.snapshot = frame
            self.core.publish(self.index, run, frame)
        self.deliver()

    def _on_ready(self) -> None:
        """The command connection is (back) up: every watched run is read once."""
        self._check_events()
        for run in list(self._runs):
            self._touch(run)

    def recheck(self, seconds: float) -> None:
        """Reads again the share of the watched runs that is due after so many seconds: a lost event heals."""
        self._to_recheck += len(self._runs) * seconds / RECHECK
        while self._to_recheck >= 1.0 and self._runs:
            self._to_recheck -= 1.0
            run, state = next(iter(self._runs.items()))
            self._runs.move_to_end(run)
            if self.commands.up and not state.reading and not state.due:
                self._read(run, state, announced=False)

    # ---- key events ----

    def _check_events(self) -> None:
        """Whether Redis announces writes to hashes at all (contract, section 1). Refused: unknown, and no failure."""
        self.commands.call(b"CONFIG", b"GET", b"notify-keyspace-events").add_done_callback(self._on_config)

    def _on_config(self, answer: "asyncio.Future[object]") -> None:
        if answer.cancelled() or isinstance(answer.exception(), Lost):
            return  # asked again when the connection is back
        if answer.exception() is not None:
            self._say_events(
                "unknown", logging.INFO, "whether Redis has key events on is unknown: this user may not ask (CONFIG)"
            )
            return
        reply = answer.result()
        flags = reply[1].decode() if isinstance(reply, list) and len(reply) == 2 else ""
        missing = "".join(flag for flag in "Kh" if flag not in flags and not (flag == "h" and "A" in flags))
        if not missing:
            self._say_events("on", logging.INFO, f"Redis announces writes to hashes (notify-keyspace-events {flags})")
        elif self.set_events:
            self.commands.call(
                b"CONFIG", b"SET", b"notify-keyspace-events", (flags + missing + "gx").encode()
            ).add_done_callback(self._on_set)
        else:
            self._say_events(
                "off",
                logging.WARNING,
                f"Redis does not announce writes to hashes: notify-keyspace-events is {flags!r}, without {missing!r}. "
                f"Checklists are up to {RECHECK:g} s late. Mend it: redis-cli CONFIG SET notify-keyspace-events Kghx, "
                "or let the relay do it with --set-keyspace-events",
            )

    def _on_set(self, answer: "asyncio.Future[object]") -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._say_events("on", logging.WARNING, "key events were off in Redis; the relay has switched them on")
        elif not answer.cancelled():
            self._say_events(
                "off",
                logging.WARNING,
                f"key events are off in Redis and could not be switched on: {answer.exception()}",
            )

    def _say_events(self, state: str, level: int, sentence: str) -> None:
        if state != self.events:
            self.events = state
            self.log.log(level, sentence)


def _is_hash(reply: object) -> TypeGuard[list[bytes]]:
    """Fields and values by turns, as HGETALL answers under RESP2."""
    return isinstance(reply, list) and len(reply) % 2 == 0 and all(isinstance(part, bytes) for part in reply)


def _unix(at: float) -> float:
    """A time of the loop's clock in unix seconds."""
    return time.time() - (asyncio.get_running_loop().time() - at)
