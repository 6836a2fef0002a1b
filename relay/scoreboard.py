"""What each process of a relay with several knows of itself, in memory that all of them see.

One row for each process, read whole by whoever is asked for /metrics or /readyz. It has two halves, and the older one
is written: what a process that is killed in the middle of it leaves behind is the row before.

The supervisor's row is the first. It keeps what the workers that have ended have counted, and names them: from the
moment in which that row is there their own rows count no longer, so that a sum neither misses nor doubles anything.
"""

import inspect
import mmap
import os
import pickle
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.metrics import Bound, Reading

ROWS = 256
ROW = 65536  # bytes
HALF = ROW // 2
_HEAD = struct.Struct("=QIII")  # beat, size, checksum, format


@dataclass(frozen=True)
class Row:
    """What one worker says of itself: plain data."""

    number: int  # no other worker of this supervisor had it
    at: float  # of the monotonic clock, which all processes share
    slot: int
    pid: int
    accepting: bool
    draining: bool
    why: Mapping[str, list[str]]  # service -> why newcomers would not be well served; empty where they would be
    readings: list[Any]  # of metrics.py, as the next two
    bounds: list[Any]
    lag: Any
    process: Mapping[str, float]  # what the system says of it, by metric
    counts: Mapping[str, Any]  # of /debug


@dataclass(frozen=True)
class Totals:
    """The supervisor's row: what workers have counted that are no more, and their numbers."""

    readings: list[Any] = field(default_factory=list)
    lags: list[Any] = field(default_factory=list)
    seconds: float = 0.0  # of the processor
    began: float = 0.0  # unix seconds
    gone: frozenset[int] = frozenset()
    draining: bool = False
    restarts: int = 0  # of workers that ended unasked


def _format(*kinds: type) -> int:
    """Of rows, by the names in them: of another version's some may be missing, seen when they are needed."""
    return zlib.crc32(repr([list(inspect.signature(kind).parameters) for kind in kinds]).encode())


FORMAT = _format(Row, Totals, Reading, Bound)


class Scoreboard:
    """The rows.

    Args:
        fd: of the memory; a new one without it.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("relay-scoreboard", os.MFD_CLOEXEC)
            os.ftruncate(fd, ROWS * ROW)
        self.fd = fd
        self._memory = mmap.mmap(fd, ROWS * ROW)

    def write(self, number: int, row: Row | Totals) -> None:
        """Puts a row in the place of the one before the last.

        Raises:
            ValueError: it is larger than there is room.
        """
        data = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
        if len(data) > HALF - _HEAD.size:
            raise ValueError(f"a row of {len(data)} bytes does not fit into {HALF}")
        beat = self.beat(number) + 1
        at = number * ROW + (beat & 1) * HALF
        self._memory[at + _HEAD.size : at + _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, at, beat, len(data), zlib.crc32(data), FORMAT)

    def clear(self, number: int) -> None:
        """Empties a row."""
        for at in (number * ROW, number * ROW + HALF):
            _HEAD.pack_into(self._memory, at, 0, 0, 0, 0)

    def beat(self, number: int) -> int:
        """How often the row has been written."""
        return max(int(_HEAD.unpack_from(self._memory, number * ROW + half)[0]) for half in (0, HALF))

    def row(self, number: int) -> Any:
        """The row, or None: empty, or of another version of this program that cannot be understood."""
        heads = [(*_HEAD.unpack_from(self._memory, number * ROW + half), number * ROW + half) for half in (0, HALF)]
        for _, size, checksum, form, at in sorted(heads, reverse=True):
            data = self._memory[at + _HEAD.size : at + _HEAD.size + min(size, HALF)]
            if size and zlib.crc32(data) == checksum:
                try:
                    return (
                        pickle.loads(data) if form == FORMAT else None
                    )  # of our own processes: nobody else writes here
                except Exception:  # whatever newer or older code has put there
                    return None
        return None

    def rows(self) -> tuple[Totals, list[Row]]:
        """The supervisor's row, and those of the workers that it does not count itself, by slot."""
        totals = self.row(0) or Totals()
        rows = [row for number in range(1, ROWS) if isinstance(row := self.row(number), Row)]
        again = self.row(0) or Totals()
        if again.gone != totals.gone:  # one ended meanwhile
            return self.rows()
        return totals, sorted((row for row in rows if row.number not in totals.gone), key=lambda row: row.slot)
