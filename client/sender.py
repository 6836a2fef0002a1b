"""What carries StatusMessenger's messages: one connection, a helper thread that makes it, and the counts.

Redis is a separate host and may be restarted at any time, and a worker's real work must not wait for it. So a publish
takes at most BUDGET seconds, whatever the network does (contract, section 3):

    publish ──▶ a connection is there ──▶ one write, one reply line ──▶ number of receivers
                       │ none                        │ written, no reply in time ──▶ in doubt, never sent again
                       ▼
       a helper thread resolves and connects; this publish waits for it within its budget, and gives up with a drop.
       Once FIRST_ATTEMPT is over or has failed, messages are dropped at once and counted. The helper tries again for
       ever, with jitter, and before it hands the new connection over it tells each channel how many it lost.

Redis that is there and answers late is waited for as long: then messages are sent without a wait for their answers, in
doubt, until answers are seen to come in time again; one message asks for that now and then.

The Redis commands that an ACL user of this module needs: PUBLISH on its channels, and SELECT, which may be refused.
"""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

from client import keys
from client.connection import Address
from client.ending import start
from client.turns import Bells, Turns
from client.wire import ReplyError, Unanswered, Unsent, Wire, open_wire, reason

log = logging.getLogger(__name__)

# Of the pauses, and not of the run: what a model draws after random.seed() must not hang on how often Redis was tried.
_chance = random.SystemRandom()

# Seconds. The promise is 0.2 in all; the rest is for the thread to get its turn of the processor back.
BUDGET = 0.195
# What all publishes together wait for the first attempt of an outage, each within its budget: enough for the two round
# trips of a worker 190 ms away, which so loses one message and not a burst.
FIRST_ATTEMPT = 0.5
# And what they wait in vain for the answers of a Redis that is there, until they are sent without waiting.
LATE_MOST = 0.5
# What the helper has for one connection: a worker 190 ms away needs two round trips, and with TLS four.
CONNECT_BUDGET = 5.0
RETRY_BASE = 0.05
RETRY_MAX = 1.0
# Redis that answers, but with a refusal (password, maxclients), is not helped by more questions.
REFUSED_RETRY_MAX = 30.0
# Channels whose drops are told apart; a process that publishes on more gets the rest in the total only.
CHANNELS_MAX = 1024

# How soon a queue that was closed while Redis is away lets go of its thread.
WANTED_EVERY = 0.1

AWAY = "StatusMessenger: {} messages dropped while Redis was away"
OVERRUN = "StatusMessenger: {} messages dropped, for more came than Redis took"

# What a batch has from the first byte to the last reply. Nobody waits for it, and Redis that is slow (a script, a
# fork on a full machine) should not put messages in doubt.
BATCH_BUDGET = 5.0

_NEWS = {
    "away": "Redis at %s is away, dropping status messages until it is back: %s",
    "queued": "Redis at %s is away, status messages wait until it is back: %s",
    "left": "Redis at %s did not take all status messages before their queue was closed: %s",
    "overrun": "Redis at %s takes status messages more slowly than they come, the oldest are dropped: %s",
    "stuck": "Redis at %s takes bytes too slowly, a message is dropped: %s",
    "slow": "Redis at %s is slow, status messages may be lost: %s",
    "refused": "Redis at %s refuses a status message: %s",
}


class Counts(NamedTuple):
    """What became of this process's messages since its start, its fork or its last change of Redis.

    Their sum is what was published once no queue is sending; while one is, a batch may be in two of them or in none.

    Attributes:
        published: Redis said so.
        dropped: they did not reach Redis, or it refused them.
        in_doubt: written, the reply not seen in time; never sent again.
        waiting: in the queue, or on their way from it.
    """

    published: int
    dropped: int
    in_doubt: int
    waiting: int = 0


class Trouble(Exception):  # noqa: N818 - what became of a message, not a fault of the caller
    """Base of the three ends of a message that has no number of receivers."""

    fate: ClassVar[str]


class Dropped(Trouble):
    """The message did not reach Redis."""

    fate = "was dropped"


class Refused(Trouble):
    """Redis answered with an error and passed the message on to nobody."""

    fate = "was refused"


class InDoubt(Trouble):
    """The message was written and its reply not seen in time: it may have been delivered, and is never sent again."""

    fate = "is in doubt"


class Sender:
    """The way to one Redis, for all threads of a process.

    Two locks: the turn is held by the one thread that uses the connection; `_lock` guards everything else, is held for
    moments only, and never while logging, for a handler of the root logger may come back here.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._turns = Turns()
        # Taken and given back in C: in the Python of a Condition a signal handler's exception came between, and one of
        # 220 left it locked for ever.
        self._lock = threading.RLock()
        self._bells = Bells()
        self._wire: Wire | None = None
        self._helper: threading.Thread | None = None
        self._waitable_until = 0.0
        self._failure: str | None = None  # why the first attempt of this outage failed
        self._late = 0.0  # seconds waited in vain for answers since one came in time
        self._ask_at = self._ask_pause = 0.0  # when a message waits for its answer again, late as they are
        # Dropped messages by notice and channel, until their channel is told.
        self._lost: dict[tuple[str, str], int] = {}
        self._told: set[str] = set()  # what the log said since the connection was made
        self._closed = False
        self._published = self._dropped = self._in_doubt = 0

    def counts(self) -> Counts:
        """The counts up to now."""
        with self._lock:
            return Counts(self._published, self._dropped, self._in_doubt)

    def close(self) -> None:
        """End the connection and the helper; this sender is not used again."""
        with self._lock:
            self._closed = True
            self._bells.ring()
        mine = self._turns.take(2 * BUDGET)
        with self._lock:
            if self._wire is not None:
                self._wire.close()
        if mine:
            self._turns.give()

    def publish(
        self, channel: str, message: bytes, flush: Callable[[float], bool] | None = None, *, patient: bool = False
    ) -> int:
        """Publish within BUDGET seconds and return the number of receivers.

        Args:
            channel: the channel's name.
            message: the payload.
            flush: waits for what is to be sent before, for so many seconds, and says whether it was.
            patient: wait for the answer even of a Redis that answers late.

        Raises:
            Trouble: what became of the message instead, counted and, once per connection and kind, logged.
        """
        deadline = time.monotonic() + BUDGET
        counted = False
        try:
            if flush is not None and not flush(BUDGET / 2):
                raise Dropped("messages wait that are to be sent before it")
            receivers = self._in_turn(channel.encode(), message, deadline, patient)
            with self._lock:
                self._published += 1
                counted = True
            return receivers
        except Trouble as trouble:
            self._count(channel, trouble)
            raise
        except BaseException:
            # A signal handler's exception, as RQ ends a job that takes too long: nobody knows how far the message came.
            with self._lock:
                self._in_doubt += not counted
            raise

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, for all that is known."""
        return self._wire is not None

    def connect(self, wanted: Callable[[], bool]) -> None:
        """Wait for a connection for as long as it is wanted; for a queue's thread.

        The helper makes it, for it goes on where this queue is closed. Threads cannot be started any more once the
        interpreter is ending, when queues are flushed: then it is made here.
        """
        while wanted():
            with self._lock:
                if self._wire is not None or self._closed:
                    return
                if self._helper is None and not self._can_start_helper("queued"):
                    self._begin_attempts(threading.current_thread())
                    break
                bell = self._bells.hang()
            bell.acquire(timeout=WANTED_EVERY)
            with self._lock:
                self._bells.take_down(bell)
        else:
            return
        self._connect("queued")

    def publish_batch(self, batch: Sequence[tuple[str, bytes]]) -> int:
        """Publish (channel, message) pairs in one write, within BATCH_BUDGET.

        Returns:
            How many, from the first, are published, refused or in doubt, and counted as such. The rest was not written
            and may be given again.
        """
        deadline = time.monotonic() + BATCH_BUDGET
        if not self._turns.take(BATCH_BUDGET):
            return 0
        try:
            wire = self._wire
            return 0 if wire is None else self._exchange_many(wire, batch, deadline)
        finally:
            self._turns.give()

    def _exchange_many(self, wire: Wire, batch: Sequence[tuple[str, bytes]], deadline: float) -> int:
        try:
            self._report(wire, deadline)
        except Unsent:
            self._lose(wire)
            return 0
        outcome = wire.publish_many(batch, deadline)
        answers, written = outcome.answers, outcome.written
        refusals = [answer[1:].decode(errors="replace") for answer in answers if answer.startswith(b"-")]
        with self._lock:
            self._published += len(answers) - len(refusals)
            self._dropped += len(refusals)
            self._in_doubt += written - len(answers)
        if refusals:
            self.warn("refused", refusals[0])
        if outcome.trouble:
            self._lose(wire)
            doubts = f"{written - len(answers)} are in doubt: " if written > len(answers) else ""
            self.warn("queued", doubts + outcome.trouble)
        if outcome.stuck and not written:
            # Tried again it would not go out in that time either, and nothing behind it ever.
            channel, message = batch[0]
            self.drop({channel: 1}, OVERRUN)
            self.warn("stuck", f"{len(message)} bytes were not written in {BATCH_BUDGET:g} s")
            return 1
        return written

    def drop(self, lost: Mapping[str, int], notice: str) -> None:
        """Count messages of a queue as dropped, and have their channels told ahead of the next message.

        Args:
            lost: how many, by channel; those of the channel "" are told to nobody.
            notice: AWAY or OVERRUN.
        """
        with self._lock:
            self._dropped += sum(lost.values())
            self._remember({(notice, channel): number for channel, number in lost.items() if channel})

    def doubt(self, number: int) -> None:
        """Count messages of a queue of which nobody knows what became."""
        with self._lock:
            self._in_doubt += number

    def _in_turn(self, channel: bytes, message: bytes, deadline: float, patient: bool) -> int:
        if not self._turns.take(deadline - time.monotonic()):
            raise Dropped("other threads of this process were waiting for it already")
        try:
            # What is Unsent cannot have been delivered, so a new connection, if there is one in time, may have it.
            with contextlib.suppress(Unsent):
                return self._exchange(channel, message, deadline, patient)
            return self._exchange(channel, message, deadline, patient)
        except Unsent as trouble:
            raise Dropped(str(trouble)) from None
        finally:
            self._turns.give()

    def _exchange(self, channel: bytes, message: bytes, deadline: float, patient: bool) -> int:
        wire = self._wire_by(deadline)
        began = time.monotonic()
        receivers = None
        try:
            if self._lost:
                self._report(wire, deadline)
            if self._is_late() and not patient and began < self._ask_at:
                wire.tell(channel, message, deadline)
            else:
                receivers = wire.publish(channel, message, deadline)
        except Unanswered as trouble:
            if wire.latency > BUDGET:
                self._note_late(time.monotonic() - began)
            if trouble.lost:
                self._lose(wire)
            raise InDoubt(str(trouble)) from None
        except ReplyError as error:
            raise Refused(str(error)) from None
        except BaseException:
            # Unsent; or the exception of a signal handler, as RQ ends a job that takes too long: then a command may be
            # half written, and the next one would become part of its message.
            self._lose(wire)
            raise
        self._judge(wire)
        if receivers is None:
            raise InDoubt("Redis answers late, so messages are sent without a wait for its answers")
        return receivers

    def _is_late(self) -> bool:
        return self._late >= LATE_MOST

    def _judge(self, wire: Wire) -> None:
        """Whether answers come in time again: what the last one says that was seen."""
        if wire.latency <= BUDGET:
            self._late = self._ask_pause = 0.0

    def _note_late(self, waited: float) -> None:
        """Count what was waited in vain; once that is enough, the next message waits after a pause that doubles."""
        self._late += waited
        if self._is_late():
            self._ask_pause = min(2 * self._ask_pause, REFUSED_RETRY_MAX) or RETRY_MAX
            self._ask_at = time.monotonic() + _chance.uniform(self._ask_pause / 2, self._ask_pause)

    def _wire_by(self, deadline: float) -> Wire:
        with self._lock:
            if self._wire is None and self._helper is None:
                self._start_helper()
            until = min(deadline, self._waitable_until)
        while True:
            with self._lock:
                if self._wire is not None:
                    return self._wire
                left = until - time.monotonic()
                if self._failure is not None or left <= 0:
                    raise Dropped(self._failure or "no connection within the time that a publish may take")
                bell = self._bells.hang()
            bell.acquire(timeout=left)
            with self._lock:
                self._bells.take_down(bell)

    def _can_start_helper(self, news: str) -> bool:
        try:
            self._start_helper(news)
        except Dropped:
            return False
        return True

    def _start_helper(self, news: str | None = None) -> None:
        helper = threading.Thread(target=self._connect, args=(news,), name="client-connect", daemon=True)
        self._begin_attempts(helper)
        try:
            start(helper)
        except RuntimeError as error:  # the interpreter is ending, or the process has no thread to give
            self._helper = None
            raise Dropped(str(error)) from None
        except BaseException:  # of a signal handler: a helper that never ran would be waited for for ever
            self._helper = None
            raise

    def _begin_attempts(self, helper: threading.Thread) -> None:
        self._failure = None
        # Who was late until it was given up has been waited for already.
        self._waitable_until = time.monotonic() + (0.0 if self._is_late() else FIRST_ATTEMPT)
        self._helper = helper

    def _lose(self, wire: Wire) -> None:
        wire.close()
        with self._lock:
            self._wire = None

    def _count(self, channel: str, trouble: Trouble) -> None:
        with self._lock:
            if isinstance(trouble, InDoubt):
                self._in_doubt += 1
            else:
                self._dropped += 1
            if isinstance(trouble, Dropped):
                self._remember({(AWAY, channel): 1})
            kind = "refused" if isinstance(trouble, Refused) else "slow" if self._wire else "away"
        self.warn(kind, trouble)

    def warn(self, kind: str, cause: object) -> None:
        """Log one of `_NEWS`, once per connection and kind."""
        with self._lock:
            is_news = kind not in self._told
            self._told.add(kind)
        if is_news:
            log.warning(_NEWS[kind], self.address, cause)

    def _remember(self, lost: Mapping[tuple[str, str], int]) -> None:
        for key, number in lost.items():
            if key in self._lost or len(self._lost) < CHANNELS_MAX:
                self._lost[key] = self._lost.get(key, 0) + number

    def _report(self, wire: Wire, deadline: float) -> None:
        with self._lock:
            lost, self._lost = self._lost, {}
        try:
            while lost:
                notice, channel = key = next(iter(lost))
                wire.tell(channel.encode(), notice.format(lost[key]).encode(), deadline)
                del lost[key]
        finally:
            with self._lock:
                self._remember(lost)

    # What follows runs in the helper thread, or in that of a queue.

    def _connect(self, news: str | None = None) -> None:
        for pause in _pauses():
            longest = RETRY_MAX
            try:
                self._hand_over(open_wire(self.address, keys.STATUS_DB, CONNECT_BUDGET))
                return
            except OSError as error:
                failure = reason(error)
            except ReplyError as error:
                failure, longest = str(error), REFUSED_RETRY_MAX
            except Exception as error:
                # Unsent; and whatever else: nobody would ever connect again if this thread ended.
                failure = str(error) or type(error).__name__
            if news:
                self.warn(news, failure)
            with self._lock:
                self._failure = failure
                self._bells.ring()
            if self._closes_within(_chance.uniform(0, min(pause, longest))):
                return

    def _closes_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                left = until - time.monotonic()
                if self._closed or left <= 0:
                    return self._closed
                bell = self._bells.hang()
            bell.acquire(timeout=left)
            with self._lock:
                self._bells.take_down(bell)

    def _hand_over(self, wire: Wire) -> None:
        """Tell each channel what it lost, so that the line stands where the hole is; then publishers may go on."""
        try:
            if self._is_late() and wire.latency > BUDGET:
                # It may have been away when it was connected to, and be quick now.
                wire.ping(time.monotonic() + BUDGET)
            while not self._install(wire):
                self._report(wire, time.monotonic() + CONNECT_BUDGET)
        except BaseException:
            wire.close()
            raise

    def _install(self, wire: Wire) -> bool:
        with self._lock:
            if self._lost and not self._closed:
                return False
            self._helper = None
            if self._closed:
                wire.close()
                return True
            self._wire, self._failure = wire, None
            self._judge(wire)
            was_away, self._told = not self._told.isdisjoint(("away", "queued")), set()
            self._bells.ring()
        if was_away:
            log.warning("Redis at %s is back; since the start %s", self.address, self.counts())
        return True


def _pauses() -> Iterator[float]:
    """The ceilings of the pauses between attempts; full jitter is taken below them."""
    pause = RETRY_BASE
    while True:
        yield pause
        pause = min(2 * pause, REFUSED_RETRY_MAX)
