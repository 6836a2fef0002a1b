"""The terminal while something is drawn on it again and again."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import asyncio


class Screen:
    """A screen of its own, no cursor, each key at once; then the terminal as it was."""

    def __init__(self) -> None:
        self._was: list[Any] | None = None

    def __enter__(self) -> Self:
        import termios
        import tty

        if sys.stdin.isatty():
            self._was = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
            quiet = termios.tcgetattr(sys.stdin)
            quiet[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the shell with this screen
            termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        import termios

        self._write("\x1b[?25h\x1b[?1049l")
        if self._was is not None:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._was)

    def size(self) -> tuple[int, int]:
        """Columns and lines that there are."""
        size = os.get_terminal_size(sys.stdout.fileno())
        return size.columns or 80, size.lines or 24  # a terminal that nobody has measured says 0

    def draw(self, lines: Sequence[str]) -> None:
        """Put `lines`, none wider than the terminal, over what was drawn before, as many as there is room for."""
        self._write("\x1b[H" + "\n".join(f"{line}\x1b[K" for line in fitted(lines, *self.size())) + "\x1b[J")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def ended_by_key(ended: "asyncio.Event") -> None:
    """Set `ended` at a q, and where the terminal is gone; for a running loop, with each key at once."""
    import asyncio

    def on_key() -> None:
        keys = os.read(sys.stdin.fileno(), 64)
        if not keys or b"q" in keys.lower():
            ended.set()

    if sys.stdin.isatty():
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), on_key)


# ---- what is drawn ----


def fitted(lines: Sequence[str], width: int, height: int) -> Sequence[str]:
    """`lines`, or the first of them and how many more there are."""
    if len(lines) <= height:
        return lines
    return [*lines[: height - 1], cut(f"{len(lines) - height + 1} more lines", width)]


def plain(text: str) -> str:
    r"""Text of others in printable ASCII, all else as \x1b and the like: what is no letter moves no cursor."""
    return "".join(c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, most: int) -> str:
    """`text`, its end replaced by dots where it is longer."""
    return text if len(text) <= most else text[: max(0, most - 3)] + "..."


def span(seconds: float | None) -> str:
    """A time in its two largest units, `-` where it is unknown."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours // 24}d{hours % 24}h"
        if hours >= 24
        else f"{hours}h{minutes:02}m"
        if hours
        else f"{minutes}m{rest:02}s"
    )
