"""`relay tail`: the log lines of one channel, as a browser gets them."""

import json
import sys
import unicodedata

import click

from relay.cli.examples import ExampleCommand
from relay.cli.target import TOKEN, Target, address, parse, query

MISSING = {  # of a gap, by its reason (docs/protocol.md)
    "link": "the relay has lost Redis: lines may be missing from here on, until it is back",
    "size": "a line is missing here: it was larger than the relay forwards",
}


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay tail run1:wepp",
        "relay tail run1:wepp -n 1",
        "relay tail run1:wepp --json | jq -r .data",
        "relay tail 'batch;;spring;;run1:climate' --url wss://wepp.cloud/weppcloud-microservices/status",
    ),
)
@click.argument("target", metavar="RUN:CHANNEL", callback=parse)
@click.option("--url", default="ws://localhost:9002", show_default=True, help="The relay's status service.")
@TOKEN
@click.option("--json", "as_json", is_flag=True, help="One JSON object per message.")
@click.option("-n", "--lines", type=click.IntRange(min=1), help="End after this many messages.")
def tail(target: Target, url: str, token: str, as_json: bool, lines: int | None) -> None:
    """Print what is published on a channel.

    From now on: the relay keeps no past. Reconnects by itself when the connection is lost, and says so on stderr;
    ends where the relay refuses the channel. Where lines may be missing it says that there, on stderr. Text comes out
    as it was published; on a terminal its control characters are shown, not obeyed.
    """
    import asyncio

    from relay.cli.follow import Frame, follow

    shown = harmless if sys.stdout.isatty() else str
    left = lines

    def take(frame: Frame) -> bool:
        nonlocal left
        if frame.get("type") == "gap":
            print(f"relay: {MISSING.get(str(frame.get('reason')), 'lines may be missing here')}", file=sys.stderr)
        if frame.get("type") != "status":
            return False
        print(json.dumps(frame, separators=(",", ":")) if as_json else shown(str(frame.get("data", ""))), flush=True)
        if left is not None:
            left -= 1
        return left == 0

    asyncio.run(follow(address(url, target.path()), take, query=query(token, v="2")))


def harmless(text: str) -> str:
    r"""`text` with what a terminal would obey written as \x1b and the like; newlines and tabs stay.

    Cc are the control characters, Cf the invisible ones that reorder what is read (Unicode 4.4); joiners, which
    emoji need, are let through.
    """
    return "".join(c if _plain(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(character: str) -> bool:
    return character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf")
