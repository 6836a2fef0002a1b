"""What a terminal is shown of text from others: nothing in it is obeyed but colours, and what matters stands out."""

import os
import re
import sys
import unicodedata

SGR = re.compile(r"(\x1b\[[0-9;:]*m)")  # "select graphic rendition" of ECMA-48: colours, bold, and what ends them
COLOR = re.compile(r"\b0*[345]8(?::[\d:]*|;0*5;\d+|;0*2(?:;\d*){3})")  # within one, by its number or its three parts
CONCEAL = re.compile(r"\b0*8(?!\d)")  # within one, of what is left: the text that follows is not seen
RESET = "\x1b[0m"

JOB = re.compile(r"(?:rq:\S+ +)?(STARTED|COMPLETED|EXCEPTION|TRIGGER) +\S")  # contract, section 3.4
LEVEL = re.compile(r"\b(CRITICAL|FATAL|ERROR|WARNING|WARN|DEBUG)\b|^(Traceback) \(most recent call last\)")
STYLES = {
    "STARTED": "\x1b[1;36m",
    "COMPLETED": "\x1b[1;32m",
    "EXCEPTION": "\x1b[1;31m",
    "TRIGGER": "\x1b[1;35m",
    "CRITICAL": "\x1b[1;31m",
    "FATAL": "\x1b[1;31m",
    "ERROR": "\x1b[31m",
    "Traceback": "\x1b[31m",
    "WARNING": "\x1b[33m",
    "WARN": "\x1b[33m",
    "DEBUG": "\x1b[2m",
}


def colored(choice: str = "auto") -> bool:
    """Whether stdout is to be coloured: as --color says, or a terminal that is not dumb, without NO_COLOR."""
    if choice != "auto":
        return choice == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str) -> str:
    """A published text in the colour of its kind, or in its own, each line of it ended as it began: in none.

    What brings colours of its own is given no other.
    """
    kind = None if SGR.search(text) else JOB.match(text) or LEVEL.search(text)
    style = STYLES[kind[kind.lastindex or 1]] if kind else ""
    return "\n".join(_line(line, style) for line in text.split("\n"))


def _line(line: str, style: str) -> str:
    parts = SGR.split(line)  # every second is a colour
    shown = "".join(
        part if index % 2 and not CONCEAL.search(COLOR.sub("", part)) else harmless(part)
        for index, part in enumerate(parts)
    )
    return f"{style}{shown}{RESET}" if style or len(parts) > 1 else shown


def harmless(text: str) -> str:
    r"""`text` with what a terminal would obey written as \x1b and the like; newlines and tabs stay.

    Cc are the control characters, Cf the invisible ones that reorder what is read (Unicode 4.4); joiners, which
    emoji need, are let through.
    """
    return "".join(c if _plain(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: str) -> str:
    """What a server said, on one line, of bounded length, and harmless."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= 200 else f"{line[:200]}..."


def _plain(character: str) -> bool:
    return character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf")
