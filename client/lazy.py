"""Dumps that wait: for a working directory on a slow disk, `RedisPrep(wd, dump="lazy")`.

A change starts the clock, and what has changed by the time it rings is one dump, written by a thread of its own. All
RedisPrep of one working directory share the clock, for call sites make a new one for each step.
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Mapping

from redis.exceptions import RedisError

from client.dump import Dump
from client.ending import before_exit, start

log = logging.getLogger(__name__)


class LazyDump:
    """The dump of one run, written `interval` seconds after the first change that it lacks.

    Args:
        dump: where it is written.
        read: reads the run's hash from Redis, within its own budget.
        interval: seconds.
    """

    def __init__(self, dump: Dump, read: Callable[[], Mapping[str, str]], interval: float) -> None:
        self.interval = interval
        self._dump = dump
        self._read = read
        self._failed = False
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        # A signal handler may write the checklist while they are held.
        self._state = threading.RLock()
        self._writing = threading.RLock()
        self._timer: threading.Timer | None = None
        self._pending = False
        self._removed: set[str] = set()

    def touch(self, removed: Collection[str] = ()) -> None:
        """Note that the dump lacks something; `removed` are the fields whose loss needs no backup."""
        with self._state:
            self._pending = True
            _unwritten.add(self)
            self._removed.update(removed)
            if self._timer is None:
                before_exit(_write_all)
                self._timer = threading.Timer(self.interval, self._ring)
                self._timer.daemon = True
                try:
                    start(self._timer)
                except RuntimeError:  # the interpreter is ending: what comes before its end is one dump for all
                    self._timer = None

    def write(self) -> None:
        """Write now what is not written yet.

        Raises:
            OSError, redis.exceptions.RedisError: as `Dump.save`; the next write tries again.
        """
        with self._writing:
            with self._state:
                pending, self._pending = self._pending, False
                removed, self._removed = self._removed, set()
            if not pending:
                return
            _unwritten.discard(self)
            try:
                self._dump.save(self._read, removed)
            except BaseException:
                with self._state:
                    self._pending = True
                    _unwritten.add(self)
                    self._removed |= removed
                raise
            self._failed = False

    def _ring(self) -> None:
        with self._state:
            self._timer = None
        self.write_or_warn()

    def write_or_warn(self) -> None:
        """As `write`, but a failure is a line in the log, once until it works again."""
        try:
            self.write()
        except (OSError, RedisError) as error:
            if not self._failed:
                log.warning("%s was not written, trying again with the next change: %s", self._dump.path, error)
            self._failed = True

    def abandon(self) -> None:
        """In a child of a fork: what waits is the parent's, and so is the timer."""
        self._start_afresh()


_by_run: "weakref.WeakValueDictionary[tuple[str, str], LazyDump]" = weakref.WeakValueDictionary()
_all: "weakref.WeakSet[LazyDump]" = weakref.WeakSet()
# Kept for what they have to write: once the disk had refused, and the timer was gone, nobody else held one, and `close`
# made a new one that knew of nothing.
_unwritten: set[LazyDump] = set()


def lazy_dump(run_id: str, dump: Dump, read: Callable[[], Mapping[str, str]], interval: float) -> LazyDump:
    """The process's LazyDump of this run and directory, made if there is none; the shorter interval counts."""
    key = (run_id, str(dump.path))
    found = _by_run.get(key)
    if found is None:
        found = _by_run.setdefault(key, LazyDump(dump, read, interval))
    found.interval = min(found.interval, interval)
    return found


def _write_all() -> None:
    for waiting in list(_all):
        waiting.write_or_warn()


def _abandon_all() -> None:
    for waiting in list(_all):
        waiting.abandon()
    _unwritten.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_abandon_all)
