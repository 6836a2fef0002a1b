"""`relay tail`: the log lines of channels, as a browser gets them."""

import json
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from relay.cli.examples import ExampleCommand
from relay.cli.target import TOKEN, Target, address, parse_all, query
from relay.cli.terminal import RESET, colored, harmless, painted
from relay.errors import RelayError

if TYPE_CHECKING:
    from relay.cli.follow import Frame

MISSING = {  # of a gap, by its reason (docs/protocol.md)
    "link": "the relay has lost Redis: lines may be missing from here on, until it is back",
    "size": "a line is missing here: it was larger than the relay forwards",
}
TRIGGER = re.compile(r"(?:rq:\S+ +)?TRIGGER +\S+ +(\S+)")  # contract, section 3.4
COLORS = (36, 33, 35, 32, 34)  # SGR, of the channels in the order of the command line; red is of what went wrong


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay tail run1:wepp",
        "relay tail run1:wepp run1:climate run2:wepp",
        "relay tail run1:wepp --until WEPP_RUN_TASK_COMPLETED --timeout 2h && ./next-step",
        "relay tail run1:wepp --json -n 10 | jq -r .data",
        "relay tail run1:wepp --color always | less -R",
        "relay tail 'batch;;spring;;run1:climate' --url wss://wepp.cloud/weppcloud-microservices/status",
    ),
)
@click.argument("targets", metavar="RUN:CHANNEL...", nargs=-1, required=True, callback=parse_all)
@click.option("--url", default="ws://localhost:9002", show_default=True, help="The relay's status service.")
@TOKEN
@click.option("--json", "as_json", is_flag=True, help="One JSON object per message.")
@click.option("-n", "--lines", type=click.IntRange(min=1), help="End after this many messages, of all channels.")
@click.option("--until", metavar="EVENT", help="End with the TRIGGER line of this event.")
@click.option("--timeout", metavar="DURATION", help="With --until: the longest wait for it; then exit code 1.")
@click.option(
    "--color",
    type=click.Choice(("auto", "always", "never")),
    default="auto",
    show_default=True,
    help="auto: on a terminal, unless NO_COLOR is set.",
)
def tail(
    targets: tuple[Target, ...],
    url: str,
    token: str,
    as_json: bool,
    lines: int | None,
    until: str | None,
    timeout: str | None,
    color: str,
) -> None:
    """Print what is published on channels.

    From now on: the relay keeps no past. Reconnects by itself when a connection is lost, and says so on stderr; ends
    where the relay refuses a channel. Where lines may be missing it says that there, on stderr. Of several channels
    each line begins with its own. Text comes out as it was published; on a terminal its control characters are shown,
    not obeyed, and where there is colour its colours are let through.
    """
    import asyncio

    from relay.cli.follow import follow, follow_any

    seconds = _seconds(timeout, until)
    prefixes = _prefixes(targets, colored(color) and not as_json)
    shown = painted if colored(color) else harmless if sys.stdout.isatty() else str
    left, came = lines, False

    def taker(target: Target) -> "Callable[[Frame], bool]":
        prefix, several = prefixes[target], len(targets) > 1

        def take(frame: "Frame") -> bool:
            nonlocal left, came
            if came or left == 0:
                return True  # another channel has ended it in the same turn of the loop
            if frame.get("type") == "gap":
                why = MISSING.get(str(frame.get("reason")), "lines may be missing here")
                print(f"relay: {f'{target}: ' if several else ''}{why}", file=sys.stderr)
            if frame.get("type") != "status":
                return False
            text = str(frame.get("data", ""))
            if as_json:
                labelled = {**frame, "channel": str(target)} if several else frame
                print(json.dumps(labelled, separators=(",", ":")), flush=True)
            else:
                print("\n".join(prefix + line for line in shown(text).split("\n")), flush=True)
            event = TRIGGER.match(text) if until else None
            came = event is not None and event[1] == until
            left = left and left - 1
            return came or left == 0

        return take

    asked = query(token, v="2")
    following = [follow(address(url, target.path()), taker(target), query=asked) for target in targets]
    in_time = asyncio.run(follow_any(following, seconds))
    if until and not came:
        raise RelayError(f"{until} did not come within {f'{lines} messages' if in_time else timeout}")


def _seconds(timeout: str | None, until: str | None) -> float | None:
    """--timeout in seconds; a usage error where it is none, or without the --until that it bounds."""
    if timeout is None:
        return None
    from relay.values import positive_duration

    if until is None:
        raise click.UsageError("--timeout bounds the wait for an event: name it with --until")
    try:
        return positive_duration(timeout)
    except ValueError as error:
        raise click.UsageError(f"--timeout {timeout}: {error}") from None


def _prefixes(targets: tuple[Target, ...], color: bool) -> dict[Target, str]:
    """What stands before the lines of each channel, as wide as the longest; nothing where there is one channel."""
    if len(targets) == 1:
        return {targets[0]: ""}
    width = max(len(str(target)) for target in targets)
    names = {target: f"{harmless(str(target)):{width}} |" for target in targets}
    if not color:
        return {target: f"{name} " for target, name in names.items()}
    return {
        target: f"\x1b[{COLORS[index % len(COLORS)]}m{name}{RESET} "
        for index, (target, name) in enumerate(names.items())
    }
