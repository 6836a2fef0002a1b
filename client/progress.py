"""A tqdm that also publishes: `from client.progress import tqdm`. Needs tqdm, which the client itself does not."""

import io
import os
import re
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from client.connection import address
from client.messenger import StatusMessenger, check_channel

try:
    from tqdm import std
except ImportError as error:
    raise ImportError("client.progress needs tqdm: pip install tqdm") from error

# Seconds between two lines on a channel.
EVERY = 0.25

# What colours a description or a postfix; and all other control characters.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

_Item = TypeVar("_Item")

if TYPE_CHECKING:
    _Bar = std.tqdm
else:

    class _Bar(std.tqdm):
        """tqdm's class, which takes no parameter in brackets where its stubs have one."""

        def __class_getitem__(cls, _item):
            return cls


class tqdm(_Bar[_Item]):  # noqa: N801 - its name
    """A bar of tqdm that publishes its text, without control characters, at most 4 times a second on a channel.

        for hillslope in tqdm(hillslopes, desc="hillslopes", channel=f"{run_id}:wepp"):
            ...

    All bars on a channel share its 4 lines a second. A bar's last state, 100 % or where an exception stopped it, is
    published besides, but for a bar within another one that lasted less than a quarter of a second: thousands of those
    may come in a second. Text is as wide as tqdm makes it where it knows no terminal.

    Args:
        iterable: as tqdm's first argument.
        *args: as tqdm's further ones.
        channel: as for `StatusMessenger.publish`.
        **kwargs: tqdm's own. `file=None` draws no bar and only publishes; without `file` the bar is on stderr, as ever.
            `disable=True` neither draws nor publishes.

    Raises:
        TypeError, ValueError: the channel is none, or the configuration names no usable Redis.
    """

    def __init__(self, iterable: Iterable[_Item] | None = None, *args: Any, channel: str, **kwargs: Any) -> None:
        check_channel(channel)
        address()  # what is wrong with the configuration is said here, and not in the middle of a run
        if "file" in kwargs and kwargs["file"] is None:
            kwargs["file"] = _Nowhere()
        self.channel = channel
        # A page has the characters of a bar, whatever stderr has.
        self._as_on_a_page = {"ncols": None, "colour": None, "ascii": kwargs.get("ascii") or False}
        self._since = time.monotonic()
        self._published: tuple[object, ...] = ()
        self._pace = _Pace.join(channel)
        self._pid = os.getpid()
        try:
            super().__init__(cast("Iterable[_Item]", iterable), *args, **kwargs)
        finally:
            if getattr(self, "disable", True):
                self._pace.leave()

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> None:
        """Draw the bar, as tqdm does, and publish it if its channel has its turn."""
        super().refresh(nolock, lock_args)
        if not self.disable:
            self._publish(time.monotonic(), is_last=False)

    def close(self) -> None:
        """End the bar, as tqdm does, and publish its last state."""
        if getattr(self, "disable", True):  # closed before, or never begun
            return
        try:
            super().close()
        finally:
            now = time.monotonic()
            is_outermost = self._pace.leave() == 0
            if os.getpid() == self._pid:  # a child of a fork lets go of its parent's bar, which goes on there
                self._publish(now, is_last=is_outermost or now - self._since >= EVERY)

    def _publish(self, now: float, *, is_last: bool) -> None:
        state = (self.n, self.total, self.desc, self.postfix)
        with _Pace.lock:
            # The last state has often had its turn already, with a rate of another moment.
            if state == self._published if is_last else now < self._pace.turn:
                return
            self._pace.turn, self._published = now + EVERY, state
        StatusMessenger.publish(self.channel, self._text())

    def _text(self) -> str:
        text = self.format_meter(**{**self.format_dict, **self._as_on_a_page})
        return _CONTROLS.sub(" ", _ESCAPES.sub("", text)).strip()


class _Pace:
    """What the bars of one channel share: how many are open, and when the next line may come, on time.monotonic."""

    # Reentrant: the garbage collector may close a bar while this thread holds it.
    lock = threading.RLock()
    known: ClassVar[dict[str, "_Pace"]] = {}

    def __init__(self) -> None:
        self.bars = 0
        self.turn = 0.0

    @classmethod
    def join(cls, channel: str) -> "_Pace":
        """Count one more bar on a channel; channels without bars are forgotten."""
        now = time.monotonic()
        with cls.lock:
            for idle in [name for name, pace in cls.known.items() if not pace.bars and pace.turn < now]:
                del cls.known[idle]
            pace = cls.known.setdefault(channel, cls())
            pace.bars += 1
            return pace

    def leave(self) -> int:
        """Count one bar less; returns how many are left."""
        with self.lock:
            self.bars -= 1
            return self.bars

    @classmethod
    def start_afresh(cls) -> None:
        """In a child of a fork: another thread of the parent may have held the lock."""
        cls.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_Pace.start_afresh)


class _Nowhere(io.TextIOBase):
    """A file for bars that nobody draws; of an encoding that has the characters of a bar."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Take `text` for written."""
        return len(text)
