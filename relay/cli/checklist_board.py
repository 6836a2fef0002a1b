"""The drawing of `relay checklist --watch`: what is done and since when, what runs and how long, and the connection."""

import sys
import textwrap
import time
from typing import Any

from relay.cli.follow import Frame, follow, follow_any
from relay.cli.screen import Screen, cut, ended_by_key, plain, span
from relay.cli.terminal import RESET

GREEN, RED, BOLD_YELLOW, DIM = "\x1b[32m", "\x1b[31m", "\x1b[1;33m", "\x1b[2m"
CELL = 28  # columns of a step: its mark, the longest name, and a time
GAP = 4  # columns between two


class Board:
    """What the frames of a run have said until now.

    A snapshot has no times but that of the newest step (`last_modified`). So when a step was done is known of those
    that tick while this watches, and how long a lock has been held at least, from the first frame that shows it.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.last: dict[str, Any] = {}
        self.done: dict[str, float] = {}  # by step, epoch seconds
        self.held: dict[str, float] = {}  # by lock, likewise: the first frame with it
        self.unsure: frozenset[str] = frozenset()  # locks that were held before this watched
        self.trouble = ""
        self.heard: float | None = None

    def take(self, frame: Frame, now: float) -> None:
        """A frame, heartbeats among them, has come."""
        self.heard, self.trouble = now, ""
        if frame.get("type") != "preflight":
            return
        before, modified = self.last.get("checklist", {}), frame.get("last_modified")
        when: float = now if modified is None or modified == self.last.get("last_modified") else modified
        for step, done in frame["checklist"].items():
            if not done:
                self.done.pop(step, None)
            elif before.get(step) is False:
                self.done[step] = when
        held = [name for name, locked in frame["lock_statuses"].items() if locked]
        if not self.last:
            self.unsure = frozenset(held)
        self.unsure &= frozenset(held)
        self.held = {name: self.held.get(name, now) for name in held}
        self.last = frame

    def lines(self, width: int, now: float) -> list[str]:
        """The drawing, no line wider than `width`."""
        steps = self.last.get("checklist", {})
        done = sum(map(bool, steps.values()))
        state = f"{done} of {len(steps)} done, {len(self.held)} running" if self.last else "no snapshot yet"
        newest = self.last.get("last_modified")
        changed = f", last step {_clock(newest, now)}" if newest is not None else ""
        head = f"{plain(self.run)}: {state}{changed}"
        running = [
            _styled(BOLD_YELLOW, cut(f"[>] {plain(name)}  {self._since(name, now)}", width)) for name in self.held
        ]
        return [cut(head, width), *self._connection(width, now), "", *running, *([""] if running else []), *_columns(
            [self._step(step, bool(ticked), now, width) for step, ticked in steps.items()], width
        )]  # fmt: skip

    def _connection(self, width: int, now: float) -> list[str]:
        age = f", last frame {span(now - self.heard)} ago" if self.heard is not None else ""
        if self.trouble:
            return [_styled(RED, line) for line in textwrap.wrap(plain(self.trouble) + age, width)]
        return [_styled(DIM, cut(f"connected{age}" if self.heard is not None else "connecting", width))]

    def _since(self, name: str, now: float) -> str:
        return f"{'at least ' if name in self.unsure else ''}{span(now - self.held[name])}"

    def _step(self, step: str, done: bool, now: float, width: int) -> tuple[str, str]:
        """Its style, and its text in CELL columns; where the terminal has fewer, in those, without a time."""
        when = _clock(self.done[step], now) if step in self.done and width >= CELL else ""
        name = cut(plain(step), min(CELL, width + 1) - 5 - len(when))
        text = f"[{_tick() if done else ' '}] {name}"
        return GREEN if done else "", f"{text}{when:>{CELL - len(text)}}"[:width]


async def show(screen: Screen, run: str, url: str, query: str) -> None:
    """Draw the run at `url` until it is ended: by q, SIGTERM, or the end of the terminal.

    Raises:
        KeyboardInterrupt: by Ctrl-C.
        RelayError: the relay refuses the run.
    """
    import asyncio
    import signal

    board, ended, loop = Board(run), asyncio.Event(), asyncio.get_running_loop()
    interrupted = False

    def draw() -> None:
        screen.draw(board.lines(screen.size()[0], time.time()))

    def take(frame: Frame) -> bool:
        board.take(frame, time.time())
        draw()
        return False

    def tell(up: bool, sentence: str) -> None:
        board.trouble = "" if up else sentence
        draw()

    async def age() -> None:
        while True:
            draw()
            await asyncio.sleep(1)

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        ended.set()

    loop.add_signal_handler(signal.SIGTERM, ended.set)  # so that the terminal is given back as it was
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGWINCH, draw)
    ended_by_key(ended)
    await follow_any([follow(url, take, query=query, tell=tell), age(), ended.wait()])
    if interrupted:
        raise KeyboardInterrupt


def _columns(cells: list[tuple[str, str]], width: int) -> list[str]:
    """Cells from top to bottom in as many columns as there is room for."""
    columns = max(1, (width + GAP) // (CELL + GAP))
    height = -(-len(cells) // columns)
    rows = [cells[row::height] for row in range(height)]
    return [(" " * GAP).join(_styled(style, text) for style, text in row) for row in rows]


def _styled(style: str, text: str) -> str:
    return f"{style}{text}{RESET}" if style else text


def _tick() -> str:
    """A tick, where the terminal's encoding has one."""
    try:
        "✓".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "x"
    return "✓"


def _clock(seconds: float, now: float) -> str:
    """The time of day, the date where it is not of the last day; a hash may say anything."""
    try:
        return time.strftime("%H:%M:%S" if abs(now - seconds) < 86_400 else "%Y-%m-%d", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"
