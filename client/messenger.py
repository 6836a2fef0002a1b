"""StatusMessenger and its logging handler: a run's lines, published for the status service (contract, section 3)."""

import contextlib
import logging
import numbers
import os
import threading

from client import keys
from client.connection import address
from client.ending import start
from client.outbox import EXIT_BUDGET, Outbox, as_bytes
from client.sender import Counts, Refused, Sender, Trouble

# Waiting messages, where nothing else is said; at 100 bytes each they are 1 MB.
QUEUE_SIZE = 10_000

# Redis' own bound of a string (proto-max-bulk-len); it closes the connection on a larger one.
MESSAGE_MAX = 512 << 20


class _Process:
    """This process's sender and queue; a child of a fork has its own, with new locks."""

    lock = threading.RLock()  # a signal handler may publish while it is held
    sender: Sender | None = None
    queued: "QueuedMessenger | None" = None

    @classmethod
    def start_afresh(cls) -> None:
        cls.lock = threading.RLock()
        cls.sender = None
        cls.queued = None


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_Process.start_afresh)


class StatusMessenger:
    """Publishes messages to the run's pages, on a connection made at the first use and shared by all threads."""

    @classmethod
    def configure(cls, *, queue: bool | int) -> None:
        """Choose between direct and queued publishing for this process.

        Queued, `publish` only appends, for about a microsecond, and returns None; a daemon thread sends up to 256
        messages or what comes in 5 ms in one write. While Redis is away messages wait. At the end of the process they
        have 2 s, but not where it leaves through `os._exit`, as RQ's work-horses do: see `client.rq`.

        A child of a fork starts in direct mode whatever its parent had; call this there, too.

        Args:
            queue: True for 10 000 waiting messages, or their number, the oldest being dropped beyond; False for direct.

        Raises:
            ValueError: the number is not positive, or the configuration names no usable Redis.
        """
        known, size = _Process.queued, QUEUE_SIZE if queue is True else queue
        if queue is not False and known is not None and known.takes(size):
            address()
            return  # said again, by a library or a task: what waits goes on waiting
        fresh = None if queue is False else QueuedMessenger(size)
        if _Process.queued is not None:
            _Process.queued.retire()
        _Process.queued = fresh

    @classmethod
    def publish(cls, channel: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """Publish one message, unchanged, within 0.2 s whatever the network does (contract, section 3).

        A message that cannot be sent in that time is dropped and counted; once Redis is back, a line on the channel
        says how many were. One that was written but not confirmed in time is counted as in doubt and never repeated.

        Args:
            channel: `<run id>:<name>`; its grammar is not checked.
            message: text (sent as UTF-8), bytes, or a number (sent as `str()` writes it); a bool is no number here, as
                in redis-py.
            strict: raise instead of dropping; in queued mode the message goes directly, behind those that wait.

        Returns:
            The number of receivers; None where the message was dropped, is in doubt, or was queued.

        Raises:
            TypeError: the channel is no str, or the message no text, bytes or number.
            ValueError: the channel is empty or no UTF-8, the message is over 512 MiB, or the configuration names no
                usable Redis.
            redis.exceptions.ConnectionError: with `strict`, the message was dropped or is in doubt.
            redis.exceptions.ResponseError: with `strict`, Redis refused the message.
        """
        queued = _Process.queued
        if queued is not None:
            return queued.publish(channel, message, strict=strict)
        check_channel(channel)
        return _publish(channel, _payload(message), strict)

    @classmethod
    def publish_command(cls, runid: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """Publish on the run's command channel, `<runid>:command`; otherwise as `publish`."""
        check_channel(runid)
        return cls.publish(keys.channel(runid, keys.COMMAND), message, strict=strict)

    @classmethod
    def flush(cls, timeout: float | None = None) -> bool:
        """Wait until nothing that was published before waits any more; at once true in direct mode.

        Args:
            timeout: seconds; None waits for as long as Redis is away.

        Returns:
            False where messages still wait after `timeout`.
        """
        queued = _Process.queued
        return queued is None or queued.flush(timeout)

    @classmethod
    def queued(cls) -> "QueuedMessenger | None":
        """The queue of this process, None in direct mode."""
        return _Process.queued

    @classmethod
    def counts(cls) -> Counts:
        """What became of the messages of this process."""
        queued = _Process.queued
        return _sender().counts() if queued is None else queued.counts()


class QueuedMessenger:
    """A queue of its own in front of the process's connection; what StatusMessenger uses after `configure(queue=...)`.

    Of use where one part of a program is to be queued and the rest is not. In a child of a fork it publishes directly.

    Args:
        size: messages that may wait; beyond, and beyond 64 MiB, the oldest are dropped, counted and told.

    Raises:
        ValueError: `size` is not positive, or the configuration names no usable Redis.
        RuntimeError: the process has no thread to give.
    """

    def __init__(self, size: int = QUEUE_SIZE) -> None:
        address()  # what is wrong with the configuration is said here, and not by a thread
        self._outbox = Outbox(size, _sender)
        self._short = self._outbox.short
        self._closed = False
        self._checked: object = self  # the last channel that was seen to be one; this is none

    def takes(self, size: int) -> bool:
        """Whether it is open, for so many messages."""
        return not self._closed and self._outbox.size == size

    def publish(self, channel: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """Append a message; otherwise, and for what is raised, as `StatusMessenger.publish`.

        Raises:
            RuntimeError: the queue was closed by `close()`.
        """
        if channel is not self._checked:  # a run says most of its lines on one channel
            check_channel(channel)
            if type(channel) is str:
                self._checked = channel
            else:  # such as a member of an Enum; what waits is plain, whatever its class does
                channel = channel.encode().decode()
        payload: str | bytes = message if type(message) is str and len(message) <= self._short else _payload(message)
        if not strict and self._outbox.append(channel, payload):
            return None
        if self._closed:
            raise RuntimeError("this QueuedMessenger is closed; publish before close(), or make another one")
        return _publish(channel, _payload(payload), strict, self._outbox)

    def publish_command(self, runid: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """Publish on the run's command channel, `<runid>:command`; otherwise as `publish`."""
        check_channel(runid)
        return self.publish(keys.channel(runid, keys.COMMAND), message, strict=strict)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing that was published before waits any more; false where `timeout` seconds were too few."""
        return self._outbox.flush(timeout)

    def close(self, timeout: float | None = EXIT_BUDGET) -> bool:
        """Flush and end the thread; what Redis has not taken by then is dropped and counted. May be called again.

        Args:
            timeout: seconds; None waits for as long as Redis is away.

        Returns:
            Whether all was sent in time.
        """
        self._closed = True
        return self._outbox.close(timeout)

    def retire(self, timeout: float | None = EXIT_BUDGET) -> bool:
        """As `close`, but who publishes here from now on, a thread that has not heard of it, publishes directly."""
        return self._outbox.close(timeout)

    def counts(self) -> Counts:
        """What became of the messages of this process, with what this queue dropped and what waits in it."""
        counts, boxes = _sender().counts(), self._outbox.and_closed()
        dropped = counts.dropped + sum(box.dropped for box in boxes)
        return counts._replace(dropped=dropped, waiting=sum(box.waiting for box in boxes))

    def __enter__(self) -> "QueuedMessenger":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class StatusMessengerHandler(logging.Handler):
    """Publishes log records on a channel: by the handler's formatter if it has one, else the bare message.

    Args:
        channel: the channel, as for `StatusMessenger.publish`.

    Raises:
        TypeError, ValueError: the channel is no str, or is empty.
    """

    def __init__(self, channel: str) -> None:
        check_channel(channel)
        super().__init__()
        self.channel = channel

    def format(self, record: logging.LogRecord) -> str:
        """The record as the formatter writes it; without one, its message alone."""
        return self.formatter.format(record) if self.formatter else record.getMessage()

    def emit(self, record: logging.LogRecord) -> None:
        """Publish the record; never raises, for one exception here would end wepppy's QueueListener thread.

        The warnings of this package's own sender are passed over: they say that this very channel does not work.
        """
        if record.name in (Sender.__module__, Outbox.__module__):
            return
        try:
            StatusMessenger.publish(self.channel, self.format(record))
        except Exception:
            # handleError writes to stderr, which may be closed.
            with contextlib.suppress(Exception):
                self.handleError(record)


def _publish(channel: str, payload: bytes, strict: bool, ahead: Outbox | None = None) -> int | None:
    """Publish directly, behind what waits in a queue."""
    if strict:
        import redis.exceptions  # noqa: F401 - 0.1 s, which are not to come on top of the budget
    try:
        return _sender().publish(channel, payload, ahead.flush if ahead else None, patient=strict)
    except Trouble as trouble:
        if strict:
            raise _as_redis_error(trouble, channel) from None
        return None


def _sender() -> Sender:
    wanted = address()
    with _Process.lock:
        sender = _Process.sender
        if sender is not None and sender.address == wanted:
            return sender
        _Process.sender = fresh = Sender(wanted)
    if sender is not None:
        _let_go(sender)
    return fresh


def _let_go(sender: Sender) -> None:
    """Close it in a thread: what other threads have under way on it may take 0.4 s, and no publish waits so long."""
    try:
        start(threading.Thread(target=sender.close, name="client-close", daemon=True))
    except RuntimeError:  # the interpreter is ending
        sender.close()


def check_channel(channel: object) -> None:
    """See that a channel is one.

    Raises:
        TypeError: it is no str.
        ValueError: it is empty or no UTF-8.
    """
    if not isinstance(channel, str):
        raise TypeError(f"a channel is a str such as 'run1:wepp', not {channel!r}")
    if not channel:
        raise ValueError("the channel is empty; name one such as 'run1:wepp'")
    if not channel.isascii():
        channel.encode()


def _payload(message: object) -> bytes:
    if isinstance(message, str):
        payload = as_bytes(message)
    elif isinstance(message, bytes | bytearray | memoryview):
        payload = bytes(message)
    elif isinstance(message, numbers.Number) and not isinstance(message, bool):
        payload = str(message).encode()
    else:
        raise TypeError(f"a message is a str, bytes or a number, not {type(message).__name__}")
    if len(payload) > MESSAGE_MAX:
        raise ValueError(
            f"a message of {len(payload)} bytes is more than Redis takes, {MESSAGE_MAX}; publish a part of it"
        )
    return payload


def _as_redis_error(trouble: Trouble, channel: str) -> Exception:
    # Imported here, for it takes 0.1 s and who does not ask for `strict` never needs it.
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import ResponseError

    kind = ResponseError if isinstance(trouble, Refused) else RedisConnectionError
    return kind(f"the message on {channel} {trouble.fate}: {trouble}")
