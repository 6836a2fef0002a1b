"""status_logging: what a run logs, on its pages, for as long as a block or a function runs."""

import contextlib
import functools
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, cast

from client import outbox
from client.messenger import StatusMessengerHandler, check_channel

_Function = TypeVar("_Function", bound=Callable[..., Any])


class status_logging(contextlib.ContextDecorator):  # noqa: N801 - a verb where it is used
    """Publish what is logged within a block, or while a function runs, on a channel.

        with status_logging("run1:wepp", level="INFO"):
            run_wepp()

        @status_logging("run1:wepp")
        def run_wepp(): ...

    A StatusMessengerHandler of that level is attached to the logger. Where the logger's own level would keep such
    records back it is lowered until the last block that needs it has ended; the handlers that are there then still get
    what they got before and no more. Records of other threads come along: a logger is the process's.

    Args:
        channel: as for `StatusMessenger.publish`.
        level: least level of what is published, a number or a name.
        logger: a logger or its name; the root logger where none is given.
        formatter: as of any handler; without it the bare message is published.

    Raises:
        TypeError, ValueError: one of them is none; raised here and not when the block begins.
    """

    def __init__(
        self,
        channel: str,
        level: int | str = logging.INFO,
        logger: logging.Logger | str | None = None,
        formatter: logging.Formatter | None = None,
    ) -> None:
        check_channel(channel)
        if formatter is not None and not isinstance(formatter, logging.Formatter):
            raise TypeError(f"a formatter is a logging.Formatter such as Formatter('%(message)s'), not {formatter!r}")
        self._channel = channel
        self._level = _number_of(level)
        self._logger = _logger_of(logger)
        self._formatter = formatter
        self._handlers: list[_Handler] = []

    def __enter__(self) -> StatusMessengerHandler:
        handler = _Handler(self._channel)
        handler.setLevel(self._level)
        handler.setFormatter(self._formatter)
        self._handlers.append(handler)
        _begin(self._logger, self._level, handler)
        return handler

    def __exit__(self, *exc: object) -> None:
        # Entered again before it is left, in another thread perhaps, its handlers are all alike.
        _end(self._logger, self._level, self._handlers.pop())

    def __call__(self, func: _Function) -> _Function:
        """Have the block around each call of a function, or of a coroutine function.

        Raises:
            TypeError: it is a generator function, which runs after its call.
        """
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise TypeError(f"{func.__qualname__} is a generator and runs after its call; put the block into it")
        if not inspect.iscoroutinefunction(func):
            return super().__call__(func)

        @functools.wraps(func)
        async def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await cast("Awaitable[Any]", func(*args, **kwargs))

        return cast("_Function", run)


class _Handler(StatusMessengerHandler):
    """A block's own handler."""

    def emit(self, record: logging.LogRecord) -> None:
        """Publish, but not what the queue says of itself: it would be one more message that cannot be sent."""
        if record.name != outbox.__name__:
            super().emit(record)


def _number_of(level: object) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(level, str):
        if level.upper() not in names:
            raise ValueError(f"there is no level {level!r}; there are {', '.join(names)}")
        return names[level.upper()]
    if isinstance(level, bool) or not isinstance(level, int):
        raise TypeError(f"a level is a number such as logging.INFO, or a name, not {level!r}")
    if level < 0:
        raise ValueError(f"a level is 0 or more, such as logging.INFO, not {level}")
    return level


def _logger_of(logger: object) -> logging.Logger:
    if isinstance(logger, logging.Logger):
        return logger
    if logger is not None and not isinstance(logger, str):
        raise TypeError(f"a logger is a logging.Logger, its name, or None for the root logger, not {logger!r}")
    return logging.getLogger(logger)


# --- levels, lowered and restored --------------------------------------------------------------------------------


class _Lowered:
    """A logger that blocks are on: the level that is its own, the one it has for them, and those they ask for."""

    def __init__(self, own: int) -> None:
        self.own = own
        self.given = own
        self.asked: list[int] = []


_lock = threading.RLock()
_lowered: dict[logging.Logger, _Lowered] = {}
_guarded: list[logging.Handler] = []


def _begin(logger: logging.Logger, level: int, handler: logging.Handler) -> None:
    with _lock:
        _lowered.setdefault(logger, _Lowered(logger.level)).asked.append(level)
        before = logger.getEffectiveLevel()
        _set_level(logger)
        if logger.getEffectiveLevel() < before:
            _guard_handlers()
        logger.addHandler(handler)


def _end(logger: logging.Logger, level: int, handler: logging.Handler) -> None:
    with _lock:
        # A new list: removeHandler takes it out of the one that a thread which logs just then walks over, and the next
        # handler is passed over. One run of twelve with eight threads lost a line so.
        with logging._lock:  # type: ignore[attr-defined]  # what addHandler holds
            logger.handlers = [each for each in logger.handlers if each is not handler]
        _lowered[logger].asked.remove(level)
        _set_level(logger)
        if not _lowered[logger].asked:
            del _lowered[logger]
        if not _lowered:
            while _guarded:
                _guarded.pop().removeFilter(_passes)


def _set_level(logger: logging.Logger) -> None:
    """Give a logger the level that its blocks ask for, or its own where that does."""
    lowered = _lowered[logger]
    lowered.own = _own_level(logger)
    # 0 would mean another thing to a logger: its parent's level.
    asked = max(min(lowered.asked), 1) if lowered.asked else None
    lowered.given = lowered.own if asked is None or asked >= _level_without_blocks(logger) else asked
    if logger.level != lowered.given:
        logger.setLevel(lowered.given)


def _own_level(logger: logging.Logger) -> int:
    """Its level without blocks: what it was at first, or what the program has set within them."""
    lowered = _lowered.get(logger)
    return lowered.own if lowered is not None and logger.level == lowered.given else logger.level


def _level_without_blocks(logger: logging.Logger) -> int:
    here: logging.Logger | None = logger
    while here is not None:
        if level := _own_level(here):
            return level
        here = here.parent
    return logging.NOTSET


def _guard_handlers() -> None:
    for handler in _handlers():
        if not isinstance(handler, _Handler) and _passes not in handler.filters:
            handler.addFilter(_passes)
            _guarded.append(handler)


def _handlers() -> Iterator[logging.Handler]:
    """Those of all loggers: records come to a parent's handlers whatever the parent's level is."""
    for logger in (logging.root, *list(logging.root.manager.loggerDict.values())):
        if isinstance(logger, logging.Logger):
            yield from logger.handlers


def _passes(record: logging.LogRecord) -> bool:
    """Whether a record would be there without the blocks; the filter of handlers that are none of theirs."""
    logger = logging.root.manager.loggerDict.get(record.name)
    return record.levelno >= _level_without_blocks(logger if isinstance(logger, logging.Logger) else logging.root)


def _start_afresh() -> None:
    """In a child of a fork: another thread of the parent may have held the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_start_afresh)
