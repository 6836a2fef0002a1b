"""The relay's own log: lines on stderr that nobody has to read for the relay to go on.

A write to a pipe that is full waits, and the event loop with all its clients would wait with it: behind a `| less` or a
log collector that hangs. So lines are handed to a thread, and what it cannot get rid of is dropped and counted.
"""

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator

WAITING = 10_000  # lines that may wait for who reads them
LAST_LINES = 1.0  # seconds for them at the end


class JsonLine(logging.Formatter):
    """One JSON object a line: time, level, pid, logger, msg, and the error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Of logging.Formatter."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "pid": record.process,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Lines(logging.Handler):
    """Writes to a descriptor in a thread of its own; never waits for it.

    Args:
        fd: a descriptor. Not a file object: a thread that hangs in one holds its lock, and Python would not end.

    Attributes:
        dropped: lines lost because WAITING others waited already.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.dropped = 0
        self._fd = fd
        self._told = 0
        self._queue: queue.Queue[str | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Lines that nobody has read yet."""
        return self._queue.qsize()

    def emit(self, record: logging.LogRecord) -> None:
        """Of logging.Handler."""
        try:
            self._queue.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1

    def finish(self) -> None:
        """Gives what waits LAST_LINES to get out."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
            self._thread.join(LAST_LINES)

    def _write_all(self) -> None:
        while (line := self._queue.get()) is not None:
            self._write(line)
            if missing := self.dropped - self._told:
                self._told += missing
                record = logging.makeLogRecord({"name": "relay", "levelno": logging.WARNING, "levelname": "WARNING"})
                record.msg = f"{missing} lines of this log are missing here: nobody read them for too long"
                self._write(self.format(record))

    def _write(self, line: str) -> None:
        data = memoryview((line + "\n").encode("utf-8", "backslashreplace"))
        with contextlib.suppress(OSError):  # whoever read the log is gone: nobody is left to be told
            while data:
                data = data[os.write(self._fd, data) :]


@contextlib.contextmanager
def to_stderr(level: str) -> Iterator[Lines]:
    """The log on stderr: JSON, or plain lines on a terminal; what libraries warn of, too.

    Args:
        level: the least that is shown, such as `INFO`.
    """
    root, log = logging.getLogger(), logging.getLogger("relay")
    lines = Lines(2)
    lines.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(message)s") if sys.stderr.isatty() else JsonLine()
    )
    root.addHandler(lines)
    log.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield lines
    finally:
        logging.captureWarnings(False)
        root.removeHandler(lines)
        lines.finish()
