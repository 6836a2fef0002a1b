"""CaptureMessenger: for tests of code that publishes, without a Redis.

A fixture of pytest is made of it in two lines:

    @pytest.fixture
    def said():
        with CaptureMessenger() as said:
            yield said

    def test_the_run_says_that_it_is_done(said):
        run_wepp("run1")
        assert said.lines("run1:wepp")[-1] == "rq:7 COMPLETED run_wepp(run1)"
"""

import threading
from unittest import mock

from client import messenger
from client.outbox import Outbox


class CaptureMessenger:
    """Within its block, takes every message of this process's StatusMessenger, QueuedMessenger and handlers.

    Nothing is sent then, and no connection made; misuse raises as ever. Of blocks within each other, the one begun
    last takes the messages, whichever thread they come from. A child of a fork captures for itself: what it publishes
    is not seen here.

    Args:
        receivers: what `publish` returns; where it is queued it returns None, as ever.

    Attributes:
        messages: (channel, message) in the order of publishing, the message as text.

    Raises:
        TypeError, ValueError: `receivers` is no number from 0.
    """

    def __init__(self, receivers: int = 1) -> None:
        if isinstance(receivers, bool) or not isinstance(receivers, int):
            raise TypeError(f"receivers is a number such as 1, not {receivers!r}")
        if receivers < 0:
            raise ValueError(f"receivers is 0 or more, not {receivers}")
        self.receivers = receivers
        self.messages: list[tuple[str, str]] = []

    def lines(self, channel: str) -> list[str]:
        """The messages on one channel, in order."""
        return [message for where, message in self.messages if where == channel]

    def __enter__(self) -> "CaptureMessenger":
        with _lock:
            if not _active:
                _patches.start()
            _active.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        with _lock:
            # The same one may be in there twice: the later goes.
            del _active[max(place for place, capture in enumerate(_active) if capture is self)]
            if not _active:
                _patches.stop()


class _Patches:
    """The two ways that a message takes: published directly, or appended to a queue."""

    def __init__(self) -> None:
        self.publish = messenger._publish
        self.append = Outbox.append
        self._publishing = mock.patch.object(messenger, "_publish", _publish)
        self._appending = mock.patch.object(Outbox, "append", _append)

    def start(self) -> None:
        self._publishing.start()
        self._appending.start()

    def stop(self) -> None:
        self._publishing.stop()
        self._appending.stop()


def _publish(channel: str, payload: bytes, strict: bool, ahead: Outbox | None = None) -> int | None:
    receivers = _take(channel, payload)
    return _patches.publish(channel, payload, strict, ahead) if receivers is None else receivers


def _append(outbox: Outbox, channel: str, payload: str | bytes) -> bool:
    if not outbox._accepting:
        return False
    return _take(channel, payload) is not None or _patches.append(outbox, channel, payload)


def _take(channel: str, payload: str | bytes) -> int | None:
    """The number of receivers; None where another thread came here just before the last block ended."""
    captures = _active[-1:]
    if not captures:
        return None
    captures[0].messages.append((channel, messenger._payload(payload).decode(errors="backslashreplace")))
    return captures[0].receivers


_lock = threading.Lock()
_active: list[CaptureMessenger] = []
_patches = _Patches()
