"""run_and_stream: a command whose output goes line by line to the run's pages, and comes back as a whole.

    command ──pipe──▶ this thread: decodes, cuts into lines, keeps the last ──▶ a queue ──▶ its thread ──▶ Redis

A model must not wait for a page. Nothing here waits for Redis before the command has ended: appending a line to the
queue costs about two microseconds, and while Redis is away the queue lets its oldest lines go.
"""

import codecs
import contextlib
import math
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from client import messenger
from client.messenger import QueuedMessenger, StatusMessenger

# Lines of output that are returned.
KEEP = 10_000
# A longer line is published in pieces of so many bytes; the relay drops what is over 1 MiB.
PIECE = 64 << 10
# Lines that may wait for Redis. More than StatusMessenger's own, for `cat` of a report is faster than any Redis.
WAITING = 100_000
# Seconds between two states of a line that the command overwrites by \r.
STATE_EVERY = 0.25

# Seconds. The command's end is noticed after so long where a child of its own keeps the pipe open, and that child is
# heard for so much longer: a daemon would hold the run up for ever.
TICK = 0.25
GRACE = 1.0
# What the lines have to reach Redis after the command's end; and without any progress, as while Redis is away.
FLUSH = 2.0
STALLED = 0.5
# The same once a command before this one has waited for it: a thousand short commands must not wait 500 s.
STILL_STALLED = 0.02

_CHUNK = 64 << 10


def run_and_stream(
    args: Sequence[str | os.PathLike[str]],
    channel: str,
    *,
    prefix: str = "",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    timeout: float | None = None,
    check: bool = False,
    encoding: str = "utf-8",
    keep: int | None = KEEP,
    on_start: "Callable[[subprocess.Popen[bytes]], object] | None" = None,
) -> "subprocess.CompletedProcess[str]":
    r"""Run a command, publish each line of its output as it comes, and return the output as `subprocess.run` does.

        done = run_and_stream(["wepp"], f"{run_id}:wepp", stdin=open("p1.run"), cwd=runs, check=True)

    Lines end with \n, \r\n or \r. Of those that end with \r alone, as progress bars have them, at most 4 a second are
    published and always the last. A line of more than 64 KiB is published in pieces.

    The command has a process group of its own, which is ended by SIGKILL after `timeout` and when an exception, such as
    KeyboardInterrupt or RQ's JobTimeoutException, comes while it runs. Children that it leaves behind go on; what they
    write is heard for a second more. Where this process itself is ended by SIGKILL, as RQ does to stop a job, the
    command goes on until it writes again, which SIGPIPE then ends. A program that buffers its output where it is no
    terminal is heard in blocks; `stdbuf -oL`, or `python -u`, mends that. POSIX only.

    The lines go through StatusMessenger where it is queued, else through a queue for this command alone. At the end
    they have at most 2 s to reach Redis, and 0.5 s where it takes none.

    Args:
        args: the program and its arguments; never through a shell.
        channel: as for `StatusMessenger.publish`.
        prefix: stands before each published line, not in what is returned.
        cwd: its working directory.
        env: its environment, in place of this process's.
        stdin: what it reads: a file, a descriptor, None for this process's own; by default nothing.
        timeout: seconds that it has; None for as many as it needs.
        check: raise where it ends with another code than 0.
        encoding: of its output; what is not in it appears as in `\xff`.
        keep: lines to return, the last ones, a piece of a long line counting as one; the text then begins with a line
            that says how many are missing. None for all.
        on_start: called with the process once it runs; what it raises ends the command.

    Returns:
        With `stdout` the text, stderr's among it, all ends of line as \n; and `stderr` None.

    Raises:
        TypeError, ValueError: `args`, `channel`, `keep` or `encoding` are none, or the configuration names no usable
            Redis; nothing was started.
        FileNotFoundError, PermissionError, OSError: the program cannot be started, as from `subprocess.run`.
        subprocess.CalledProcessError: with `check`; `output` is the text.
        subprocess.TimeoutExpired: `output` is the text up to then.
    """
    _check(args, prefix, stdin, timeout, keep)
    messenger.check_channel(channel)
    decoder = _decoder(encoding)
    with _publisher() as publish:
        lines = _Lines(lambda line: publish(channel, prefix + line), keep)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with subprocess.Popen(
            args,
            bufsize=0,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        ) as process:
            in_time = _follow(process, decoder, lines, deadline, on_start)
    if timeout is not None and not in_time:
        raise subprocess.TimeoutExpired(args, timeout, lines.text())
    done = subprocess.CompletedProcess(args, process.returncode, lines.text())
    if check:
        done.check_returncode()
    return done


def _check(args: object, prefix: object, stdin: object, timeout: object, keep: object) -> None:
    if isinstance(args, str | bytes | os.PathLike):
        raise TypeError(
            f"a command is a list such as ['wepp', '-v'], not {args!r}; split a line by shlex.split(), "
            "or have a shell read it: ['sh', '-c', line]"
        )
    if not isinstance(args, Sequence):
        raise TypeError(f"a command is a list such as ['wepp', '-v'], not {type(args).__name__}")
    if not args:
        raise ValueError("the command is empty; name a program, such as ['wepp']")
    if not isinstance(prefix, str):
        raise TypeError(f"a prefix is a str, not {type(prefix).__name__}")
    if stdin == subprocess.PIPE:
        raise ValueError("nobody would write to the command's stdin; give it a file, or None for this process's own")
    if timeout is not None and not isinstance(timeout, int | float):
        raise TypeError(f"a timeout is a number of seconds, or None, not {timeout!r}")
    if timeout is not None and math.isnan(timeout):
        raise ValueError("a timeout is a number of seconds, or None, not nan")
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int)):
        raise TypeError(f"keep is a number of lines such as {KEEP}, or None for all, not {keep!r}")
    if keep is not None and keep < 1:
        raise ValueError(f"keep is at least 1, or None for all lines, not {keep}")


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    try:
        b"a".decode(encoding, "backslashreplace")  # refuses what is no encoding of text, such as "hex"
        return codecs.getincrementaldecoder(encoding)("backslashreplace")
    except LookupError as error:
        raise ValueError(f"{error}; name one such as 'utf-8' or 'latin-1'") from None


def _follow(
    process: "subprocess.Popen[bytes]",
    decoder: codecs.IncrementalDecoder,
    lines: "_Lines",
    deadline: float,
    on_start: "Callable[[subprocess.Popen[bytes]], object] | None",
) -> bool:
    """Feed `lines` until the process has ended; false where it had to be ended because its time was over."""
    try:
        if on_start is not None:
            on_start(process)
        _read(process, decoder, lines, deadline)
        in_time = _wait(process, deadline)
        if not in_time:
            end(process)
            _read(process, decoder, lines, math.inf)
        return in_time
    except BaseException:
        end(process)
        raise
    finally:
        lines.feed(decoder.decode(b"", final=True))
        lines.end()


def _read(
    process: "subprocess.Popen[bytes]", decoder: codecs.IncrementalDecoder, lines: "_Lines", deadline: float
) -> None:
    """Feed `lines` until the pipe ends, `deadline` is there, or the process has ended GRACE seconds ago."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    has_ended = False
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(min(left, TICK)):
                chunk = os.read(pipe, _CHUNK)
                if not chunk:
                    return
                lines.feed(decoder.decode(chunk))
            lines.tick()
            if not has_ended and process.poll() is not None:
                has_ended, deadline = True, time.monotonic() + GRACE


def _wait(process: "subprocess.Popen[bytes]", deadline: float) -> bool:
    """Wait for the end of a process, which may have closed its output long before; false where it is too late."""
    try:
        process.wait(None if deadline == math.inf else max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return False
    return True


def end(process: "subprocess.Popen[bytes]") -> None:
    """End the whole group by SIGKILL; not once the process is gone, for its number may be another's by then.

    It is waited for here, because Popen's own block does not wait any more after a KeyboardInterrupt.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Lines:
    r"""Cuts text into lines, publishes them, and keeps the last.

    A state is a line that ends with \r alone: the next one is written over it. They have their turn every STATE_EVERY
    seconds, and the one shown last also when something else comes, or nothing any more.

    Args:
        publish: takes a line without its end.
        keep: lines to keep; None for all.
    """

    def __init__(self, publish: Callable[[str], object], keep: int | None) -> None:
        self._publish = publish
        self._kept: deque[str] = deque(maxlen=keep)
        self._seen = 0
        self._rest = ""  # of a line that has no end yet
        self._state: str | None = None  # not published yet
        self._turn = -math.inf  # of the next state, on time.monotonic
        self._after_return = False  # the text ended with \r, and may go on with \n

    def feed(self, text: str) -> None:
        """Take the next piece of the output."""
        if not text:
            return
        if self._after_return and text.startswith("\n"):
            text = text[1:]
            self._settle()
        *ended, rest = (self._rest + text).split("\n")
        for line in ended:
            self._take(self._overwritten(line.removesuffix("\r")), "\n")
        self._after_return = rest.endswith("\r")
        self._rest = self._cut(self._overwritten(rest))

    def tick(self) -> None:
        """Publish the newest state if its turn has come."""
        if self._state is not None and time.monotonic() >= self._turn:
            self._settle()

    def end(self) -> None:
        """Publish what is left."""
        if self._rest:
            self._take(self._rest, "")
        self._settle()

    def text(self) -> str:
        """What was kept, and in the first line what was not."""
        kept = "".join(self._kept)
        missing = self._seen - len(self._kept)
        return f"[{missing} lines before these were not kept; keep=None keeps all]\n{kept}" if missing else kept

    def _overwritten(self, line: str) -> str:
        r"""Take all states before the last \r; returns what stands behind it."""
        if "\r" not in line:
            return line
        *states, rest = line.split("\r")
        for state in map(self._cut, states):
            self._keep(state + "\n")
            # Empty where a program writes the \r first.
            self._state = state or self._state
            self.tick()
        return rest

    def _cut(self, line: str) -> str:
        """Publish and keep all full pieces of a long line; returns the rest."""
        size = PIECE if line.isascii() else PIECE // 4
        while len(line) > size:
            self._take(line[:size], "")
            line = line[size:]
        return line

    def _take(self, line: str, end: str) -> None:
        self._settle()
        line = self._cut(line)
        self._keep(line + end)
        self._publish(line)

    def _settle(self) -> None:
        if self._state is not None:
            state, self._state = self._state, None
            self._turn = time.monotonic() + STATE_EVERY
            self._publish(state)

    def _keep(self, text: str) -> None:
        self._kept.append(text)
        self._seen += 1


# --- the way to Redis --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _publisher() -> Iterator[Callable[[str, str], object]]:
    """What publishes without ever waiting."""
    queued = StatusMessenger.queued()
    if queued is not None:
        yield queued.publish
        return
    try:
        queue = QueuedMessenger(WAITING)
    except RuntimeError:  # the interpreter is ending, or the process has no thread to give
        yield StatusMessenger.publish
        return
    try:
        yield queue.publish
    finally:
        try:
            _flush(queue)
        finally:
            queue.close(0)


class _Outage:
    """The number of messages published when a command had to give its lines up: unchanged, Redis is still away."""

    published: int | None = None


def _flush(queue: QueuedMessenger) -> None:
    """Wait for the queue to run empty: FLUSH seconds at most, and less where it does not move."""
    deadline = time.monotonic() + FLUSH
    before = queue.counts()
    patience = STILL_STALLED if _Outage.published == before.published else STALLED
    while not queue.flush(min(patience, max(deadline - time.monotonic(), 0))):
        counts = queue.counts()
        if counts == before or time.monotonic() >= deadline:
            _Outage.published = counts.published
            return
        before, patience = counts, STALLED
    _Outage.published = None
