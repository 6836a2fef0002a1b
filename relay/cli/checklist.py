"""`relay checklist`: what is done and what is running in one run."""

import json
from collections.abc import Iterator
from typing import Any

import click

from relay.cli.examples import ExampleCommand
from relay.cli.screen import plain
from relay.cli.target import TOKEN, address, masked, query
from relay.cli.terminal import colored

WAIT = 10.0  # seconds for the first snapshot: twice the relay's own deadline for its Redis command


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay checklist run1",
        "relay checklist run1 --watch",
        "relay checklist run1 --watch --plain | tee -a run1.txt",
        "relay checklist run1 --json | jq .checklist.wepp",
    ),
)
@click.argument("run")
@click.option("--url", default="ws://localhost:9001", show_default=True, help="The relay's preflight service.")
@TOKEN
@click.option("--watch", is_flag=True, help="Stay, and show each change.")
@click.option("--plain", "lines", is_flag=True, help="With --watch: a line for each change on a terminal, too.")
@click.option("--json", "as_json", is_flag=True, help="Each snapshot as one JSON object, as the relay sends it.")
def checklist(run: str, url: str, token: str, watch: bool, lines: bool, as_json: bool) -> None:
    """Print what is done and what runs in RUN.

    Locked is what runs. With --watch the changes follow, one a line, and a lost connection is made again; on a
    terminal, unless NO_COLOR is set, the whole is drawn anew instead, and q or Ctrl-C ends it.
    """
    import asyncio
    from urllib.parse import quote

    from relay.cli.follow import Frame, follow
    from relay.errors import RelayError

    last: Frame = {}

    def take(frame: Frame) -> bool:
        nonlocal last
        if frame.get("type") != "preflight":
            return False
        for line in [json.dumps(frame, separators=(",", ":"))] if as_json else changes(last, frame):
            print(line, flush=True)
        last = frame
        return not watch

    where = address(url, quote(run, safe=""))
    if watch and not (lines or as_json) and colored():
        from relay.cli import checklist_board
        from relay.cli.screen import Screen

        with Screen() as screen:
            asyncio.run(checklist_board.show(screen, run, where, query(token)))
        return
    if watch:
        asyncio.run(follow(where, take, query=query(token)))
        return
    try:
        asyncio.run(asyncio.wait_for(follow(where, take, again=False, query=query(token)), WAIT))
    except TimeoutError:
        raise RelayError(f"{masked(where)}: no snapshot within {WAIT:g} s; does the relay reach its Redis?") from None


def changes(last: dict[str, Any], frame: dict[str, Any]) -> Iterator[str]:
    """What of `frame` is not in `last`: a line for each item, then one for each lock that is or was held.

    A lock bears the name that somebody has written into Redis.
    """
    before = last.get("checklist", {})
    for item, done in frame["checklist"].items():
        if before.get(item) != done:
            yield f"[{'x' if done else ' '}] {plain(item)}"
    held = last.get("lock_statuses", {})
    for name, locked in frame["lock_statuses"].items():
        if bool(held.get(name)) != locked:
            yield f"{plain(name)} {'locked' if locked else 'unlocked'}"
