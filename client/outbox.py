"""The queue between a run and Redis: `append` costs the run about a microsecond, a thread of its own does the rest.

    publish ──▶ append ──▶ waiting (bounded, the oldest goes first) ──▶ the sender's thread ──▶ one write for many
                                     ▲                                            │
                                     └── what a dead connection left unwritten ◀──┘

While Redis is away messages wait; only what the bounds push out is dropped, and each channel is told how many were
where they are missing. What was written and not answered is in doubt and never sent again.
"""

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from client.ending import before_exit, start
from client.sender import AWAY, CHANNELS_MAX, OVERRUN, Sender
from client.turns import Bells

log = logging.getLogger(__name__)

# One write takes so many messages, or as many as come within LINGER seconds: a run that says a thousand lines a second
# is interrupted two hundred times for it and not a thousand.
BATCH = 256
LINGER = 0.005
# Seconds instead of LINGER while the run computes in Python. Each time that the thread asks for the interpreter then,
# five times for a write, the run stands still for a tenth of a millisecond: at 200 lines a second and more the thread
# took 2.7 % of a core, and now 0.4. It sees that the run computes by waking up LATE.
LINGER_BUSY = 0.2
LATE = 0.003
# Bytes of payload in one write.
BATCH_BYTES = 1 << 20
# Bytes of all that wait, together 64 MiB: of the short messages, whose number says enough; and of the others, of which
# a single larger one may wait alone.
SHORT_BYTES_MAX = 8 << 20
BYTES_MAX = 56 << 20

# Seconds that the end of the process waits for all queues together.
EXIT_BUDGET = 2.0

_NEVER = 1 << 62


class Outbox:
    """Messages that wait for the thread that sends them.

    A short text is appended without the lock, and as it is: between two stretches of work its caller finds everything
    he touches out of the processor's caches, and pays by the lines of code. What there is to be heeded at some length
    of the queue (somebody sleeps, it is full, it is closed) is one number, set under the lock before the queue is
    looked at, as the queue is appended to before the number is; that each thread sees it so, the interpreter's own lock
    sees to.

    The lock is reentrant: a signal handler, or a logging handler run by the garbage collector, may publish while the
    same thread is in `append`.

    Args:
        size: messages that may wait.
        sender: gives the process's sender at this moment; asked before each write.

    Attributes:
        short: characters of a text that may be appended as such.

    Raises:
        ValueError: `size` is no positive integer.
        RuntimeError: the process has no thread to give.
    """

    def __init__(self, size: int, sender: Callable[[], Sender]) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"a queue's size is a number of messages such as 10000, not {size!r}")
        self.size = size
        self.short = SHORT_BYTES_MAX // (4 * size)  # no character takes more bytes in memory
        self._sender = sender
        self._start_afresh()
        self._thread = threading.Thread(target=self._run, name="client-queue", daemon=True)
        start(self._thread)
        _all.append(weakref.ref(self, _all.remove))
        before_exit(_close_all)

    def _start_afresh(self) -> None:
        self._lock = threading.RLock()
        self._bells = Bells()
        self._waiting: deque[tuple[str, str | bytes]] = deque()
        self._sending: list[tuple[str, bytes]] = []
        self._bytes = 0  # of payload in _waiting, short texts apart
        self._gone = 0  # messages that were taken and wait no more, whatever became of them
        # What _gone will be in the end, known once this is closed. A text that was appended behind came too late, and
        # who appended it takes it out again.
        self._end = _NEVER
        self._lost: dict[str, int] = {}  # pushed out, by channel, until the sender counts them
        self._wake_at = _NEVER  # the length of _waiting that the thread sleeps for
        self._heed_at = self.size + 1  # the length of _waiting that `append` does not pass over
        self._linger = LINGER
        self._hurried = 0  # callers of flush(): nothing lingers for them
        self._accepting = self._open = True

    def append(self, channel: str, payload: str | bytes) -> bool:
        """Take a message for sending; false where this outbox is closed, or belongs to the parent of this process.

        Args:
            channel: the channel's name.
            payload: a text of at most `short` characters, or bytes.
        """
        if isinstance(payload, bytes):
            with self._lock:
                if not self._accepting:
                    return False
                self._waiting.append((channel, payload))
                self._bytes += len(payload)
                self._heed()
            return True
        message = (channel, payload)
        self._waiting.append(message)
        return len(self._waiting) < self._heed_at or self._heed_text(message)

    @property
    def waiting(self) -> int:
        """Messages that wait or are on their way."""
        with self._lock:
            return min(len(self._waiting) + len(self._sending), self._end - self._gone)

    def and_closed(self) -> "list[Outbox]":
        """This one, and those that are closed: their last write may be on its way."""
        return [self, *(other for other in _living() if other is not self and not other._open)]

    @property
    def dropped(self) -> int:
        """Messages that were pushed out and that the sender does not count yet."""
        with self._lock:
            return sum(self._lost.values())

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was appended before has been sent, dropped or is in doubt; false where it took too long.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Raises:
            TypeError: it is neither a number nor None.
        """
        if timeout is not None and not isinstance(timeout, int | float):
            raise TypeError(f"a timeout is a number of seconds, or None, not {timeout!r}")
        with self._lock:
            until = self._gone + self.waiting
            self._hurried += 1
            self._bells.ring()
        try:
            return self._wait_until(lambda: self._gone >= until, timeout)
        finally:
            with self._lock:
                self._hurried -= 1

    def close(self, timeout: float | None) -> bool:
        """Take no more, flush, end the thread, and count what is left as dropped. May be called again.

        Returns:
            Whether nothing was left.
        """
        with self._lock:
            self._accepting = False
            self._wake_me_at(_NEVER)  # before the queue is looked at
            self._end = self._gone + self.waiting
        flushed = self.flush(timeout)
        with self._lock:
            self._open = False
            sending = len(self._sending)
            left = self.waiting - sending
            for _ in range(left):
                self._push_out()
            lost, self._lost = self._lost, {}
            self._bells.ring()
        if lost:
            self._sender().drop(lost, AWAY)
        if left or sending:
            doubts = f", {sending} on their way are in doubt" if sending else ""
            self._sender().warn("left", f"{left} were dropped{doubts}")
        return flushed

    def abandon(self) -> None:
        """In a child of a fork: the messages, the thread and the locks are the parent's."""
        self._start_afresh()
        self._accepting = self._open = False
        self._end = 0
        self._wake_me_at(_NEVER)

    def _heed_text(self, message: tuple[str, str]) -> bool:
        """Heed what is to be heeded once a text is appended; false where it came too late and is taken out again."""
        with self._lock:
            if self._accepting:
                self._heed()
                return True
            for place in reversed(range(self.waiting - len(self._sending), len(self._waiting))):
                if self._waiting[place] is message:
                    del self._waiting[place]
                    return False
            return True  # it came in time after all

    def _heed(self) -> None:
        self._trim()
        if self._is_due(self._wake_at):
            # In this order: behind an exception of a signal handler between them the next one rings again. And where a
            # handler flushed between them, the thread sleeps anew, and looks once more.
            self._bells.ring()
            self._wake_me_at(_NEVER)
            self._bells.ring()

    def _is_due(self, number: int) -> bool:
        return len(self._waiting) >= (1 if self._bytes >= BATCH_BYTES else number)

    def _wake_me_at(self, number: int) -> None:
        self._wake_at = number
        self._heed_at = min(number, self.size + 1) if self._accepting else 0

    def _trim(self) -> None:
        while len(self._waiting) > self.size or (self._bytes > BYTES_MAX and len(self._waiting) > 1):
            self._push_out()

    def _push_out(self) -> None:
        channel, payload = self._waiting.popleft()
        if isinstance(payload, bytes):
            self._bytes -= len(payload)
        self._gone += 1
        self._lose(channel)

    def _lose(self, channel: str) -> None:
        if channel not in self._lost and len(self._lost) >= CHANNELS_MAX:
            channel = ""  # counted, and told to nobody
        self._lost[channel] = self._lost.get(channel, 0) + 1

    def _wait_until(self, holds: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until that holds, looked at under the lock; returns whether it does."""
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            with self._lock:
                bell = self._bells.hang()  # before the look: whatever changes behind it is heard
                if holds():
                    self._bells.take_down(bell)
                    return True
            left = threading.TIMEOUT_MAX if until is None else until - time.monotonic()
            # As threading.Condition does: a signal handler that flushes may have interrupted its own thread's `append`,
            # and nothing would ever be taken while that holds the lock.
            lock: Any = self._lock
            held = lock._release_save() if lock._is_owned() else None
            try:
                heard = bell.acquire(timeout=min(max(left, 0), threading.TIMEOUT_MAX))
            finally:
                if held is not None:
                    lock._acquire_restore(held)
            if not heard:
                with self._lock:
                    self._bells.take_down(bell)
                    return holds()

    # What follows runs in the thread.

    def _run(self) -> None:
        while self._wait_for(1, None):
            sender = self._sender()
            notice = OVERRUN if sender.is_connected else AWAY
            # Before anything is taken from the queue: what an outage pushes out of it is the oldest, without exception.
            sender.connect(partial(self._wants, sender))
            if self._open and not self._wants(sender):
                continue
            lost = self._take()
            if lost:
                sender.drop(lost, notice)
                if notice is OVERRUN:
                    sender.warn("overrun", f"{sum(lost.values())} by now")
            if not self._sending:
                if self._accepting:
                    continue
                return  # closed meanwhile
            try:
                settled = sender.publish_batch(self._sending)
            except Exception:
                # Nothing that this code knows of; but a thread that ended would let the queue run over in silence.
                settled = len(self._sending)
                sender.doubt(settled)
                log.exception("%d status messages are in doubt", settled)
            self._give_back(settled)

    def _wants(self, sender: Sender) -> bool:
        """Whether that one is still to take the messages: not once the process has been told of another Redis."""
        return self._open and self._sender() is sender

    def _wait_for(self, number: int, seconds: float | None) -> bool:
        """Wait for so many messages, less if somebody flushes; returns whether this outbox is still open."""

        def look() -> bool:
            self._wake_me_at(number)
            return self._is_due(number) or not self._open or bool(self._hurried and self._waiting)

        self._wait_until(look, seconds)
        with self._lock:
            self._wake_me_at(_NEVER)
            return self._open

    def _take(self) -> dict[str, int]:
        """Take the next batch; returns how many messages were pushed out ahead of it, by channel."""
        self._let_gather()
        with self._lock:
            most, size = min(BATCH, self.waiting), 0
            while len(self._sending) < most and size < BATCH_BYTES:
                channel, payload = self._waiting.popleft()
                if isinstance(payload, str):
                    payload = as_bytes(payload)
                else:
                    self._bytes -= len(payload)
                size += len(payload)
                self._sending.append((channel, payload))
            if not self._waiting:
                self._bytes = 0  # an exception of a signal handler between a message and its bytes is forgotten here
            lost, self._lost = self._lost, {}
            return lost

    def _let_gather(self) -> None:
        """Wait for a whole batch for a moment, a longer one where the run is busy with the interpreter.

        Not for more than half of what may wait: a queue of 100 ran over while 256 were waited for.
        """
        until = time.monotonic() + self._linger
        self._wait_for(min(BATCH, (self.size + 1) // 2), self._linger)
        late = time.monotonic() - until
        if late > LATE:
            self._linger = LINGER_BUSY
        elif late > 0:  # not woken by a whole batch, or somebody who flushes
            self._linger = LINGER

    def _give_back(self, settled: int) -> None:
        with self._lock:
            left = self._sending[settled:]
            self._sending = []
            self._gone += settled if self._open else settled + len(left)
            if self._open:
                self._waiting.extendleft(reversed(left))
                self._bytes += sum(len(payload) for _, payload in left)
                if self._accepting:  # or what came too late would push out what came in time
                    self._trim()
            else:
                for channel, _ in left:
                    self._lose(channel)
            lost, self._lost = ({}, self._lost) if self._open else (self._lost, {})
            self._bells.ring()
        if lost:
            self._sender().drop(lost, AWAY)


def as_bytes(text: str) -> bytes:
    """A text as it is published: UTF-8, and what has none, such as the name of a file that is no text, escaped."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace")


# A list, which other threads may append to while it is copied; of a WeakSet `counts()` said that it changed its size.
_all: "list[weakref.ref[Outbox]]" = []


def _living() -> list[Outbox]:
    return [outbox for reference in tuple(_all) if (outbox := reference()) is not None]


def _close_all() -> None:
    """At the end of the process: EXIT_BUDGET for all queues together."""
    deadline = time.monotonic() + EXIT_BUDGET
    for outbox in _living():
        outbox.close(max(deadline - time.monotonic(), 0))


def _abandon_all() -> None:
    """In a child of a fork, which has none of its parent's threads: what it publishes goes directly."""
    for outbox in _living():
        outbox.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_abandon_all)
