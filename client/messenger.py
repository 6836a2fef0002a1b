"""StatusMessenger and its logging handler: a run's lines, published for the status service (contract, section 3)."""

import contextlib
import logging
import numbers
import os
import threading

from client import keys
from client.connection import address
from client.sender import Counts, Refused, Sender, Trouble


class _Process:
    """This process's sender; a child of a fork has its own, with new locks."""

    lock = threading.Lock()
    sender: Sender | None = None

    @classmethod
    def start_afresh(cls) -> None:
        cls.lock = threading.Lock()
        if cls.sender is not None:
            cls.sender.abandon()
        cls.sender = None


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_Process.start_afresh)


class StatusMessenger:
    """Publishes messages to the run's pages, on a connection made at the first use and shared by all threads."""

    @classmethod
    def publish(cls, channel: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """Publish one message, unchanged, within 0.2 s whatever the network does (contract, section 3).

        A message that cannot be sent in that time is dropped and counted; once Redis is back, a line on the channel
        says how many were. One that was written but not confirmed in time is counted as in doubt and never repeated.

        Args:
            channel: `<run id>:<name>`; its grammar is not checked.
            message: text (sent as UTF-8), bytes, or a number (sent as `str()` writes it); a bool is no number here, as
                in redis-py.
            strict: raise instead of dropping.

        Returns:
            The number of receivers; None where the message was dropped or is in doubt.

        Raises:
            TypeError: the channel is no str, or the message no text, bytes or number.
            ValueError: the channel is empty or no UTF-8, or the configuration names no usable Redis.
            redis.exceptions.ConnectionError: with `strict`, the message was dropped or is in doubt.
            redis.exceptions.ResponseError: with `strict`, Redis refused the message.
        """
        _check_channel(channel)
        payload = _payload(message)
        try:
            return _sender().publish(channel, payload)
        except Trouble as trouble:
            if strict:
                raise _as_redis_error(trouble, channel) from None
            return None

    @classmethod
    def publish_command(cls, runid: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """Publish on the run's command channel, `<runid>:command`; otherwise as `publish`."""
        _check_channel(runid)
        return cls.publish(keys.channel(runid, keys.COMMAND), message, strict=strict)

    @classmethod
    def counts(cls) -> Counts:
        """How many messages of this process were published, dropped, and are in doubt."""
        return _sender().counts()


class StatusMessengerHandler(logging.Handler):
    """Publishes log records on a channel: by the handler's formatter if it has one, else the bare message.

    Args:
        channel: the channel, as for `StatusMessenger.publish`.

    Raises:
        TypeError, ValueError: the channel is no str, or is empty.
    """

    def __init__(self, channel: str) -> None:
        _check_channel(channel)
        super().__init__()
        self.channel = channel

    def format(self, record: logging.LogRecord) -> str:
        """The record as the formatter writes it; without one, its message alone."""
        return self.formatter.format(record) if self.formatter else record.getMessage()

    def emit(self, record: logging.LogRecord) -> None:
        """Publish the record; never raises, for one exception here would end wepppy's QueueListener thread.

        The sender's own warnings are passed over: they say that this very channel does not work.
        """
        if record.name == Sender.__module__:
            return
        try:
            StatusMessenger.publish(self.channel, self.format(record))
        except Exception:
            # handleError writes to stderr, which may be closed.
            with contextlib.suppress(Exception):
                self.handleError(record)


def _sender() -> Sender:
    wanted = address()
    with _Process.lock:
        sender = _Process.sender
        if sender is not None and sender.address == wanted:
            return sender
        _Process.sender = fresh = Sender(wanted)
    if sender is not None:
        sender.close()
    return fresh


def _check_channel(channel: object) -> None:
    if not isinstance(channel, str):
        raise TypeError(f"a channel is a str such as 'run1:wepp', not {channel!r}")
    if not channel:
        raise ValueError("the channel is empty; name one such as 'run1:wepp'")
    channel.encode()


def _payload(message: object) -> bytes:
    if isinstance(message, str):
        # Log lines quote file names, and one that is no UTF-8 is a lone surrogate in a str.
        return message.encode(errors="backslashreplace")
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    if isinstance(message, numbers.Number) and not isinstance(message, bool):
        return str(message).encode()
    raise TypeError(f"a message is a str, bytes or a number, not {type(message).__name__}")


def _as_redis_error(trouble: Trouble, channel: str) -> Exception:
    # Imported here, for it takes 0.1 s and who does not ask for `strict` never needs it.
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import ResponseError

    kind = ResponseError if isinstance(trouble, Refused) else RedisConnectionError
    return kind(f"the message on {channel} {trouble.fate}: {trouble}")
