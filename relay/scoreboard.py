"""What each process of a relay with several knows of itself, in memory that all of them see.

One row for each process, written whole, and read whole by whoever is asked for /metrics or /readyz. A row that is being
written while it is read fails its checksum and is read again.

The supervisor's row is the first. It keeps what the workers that have ended have counted, and names them: from the
moment in which that row is there their own rows count no longer, so that a sum neither misses nor doubles anything.
"""

import mmap
import os
import pickle
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROWS = 256
ROW = 65536  # bytes
_TRIES = 5
_HEAD = struct.Struct("=QII")  # beat, size, checksum


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
    counts: Mapping[str, Any]  # of /debug


@dataclass(frozen=True)
class Totals:
    """The supervisor's row: what workers have counted that are no more, and their numbers."""

    readings: list[Any] = field(default_factory=list)
    lags: list[Any] = field(default_factory=list)
    gone: frozenset[int] = frozenset()
    draining: bool = False
    restarts: int = 0  # of workers that ended unasked


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
        """Puts a row in the place of the one before it.

        Raises:
            ValueError: it is larger than there is room.
        """
        data = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
        if len(data) > ROW - _HEAD.size:
            raise ValueError(f"a row of {len(data)} bytes does not fit into {ROW}")
        at = number * ROW
        self._memory[at + _HEAD.size : at + _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, at, self.beat(number) + 1, len(data), zlib.crc32(data))

    def clear(self, number: int) -> None:
        """Empties a row."""
        _HEAD.pack_into(self._memory, number * ROW, 0, 0, 0)

    def beat(self, number: int) -> int:
        """How often the row has been written."""
        return int(_HEAD.unpack_from(self._memory, number * ROW)[0])

    def row(self, number: int) -> Any:
        """The row, or None: empty, or of another version of this program that cannot be understood."""
        for _ in range(_TRIES):
            _, size, checksum = _HEAD.unpack_from(self._memory, number * ROW)
            if not size:
                return None
            at = number * ROW + _HEAD.size
            data = self._memory[at : at + min(size, ROW)]
            if zlib.crc32(data) == checksum:
                try:
                    return pickle.loads(data)  # of our own processes: nobody else has the descriptor
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
