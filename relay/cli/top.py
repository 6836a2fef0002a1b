"""`relay top`: what a relay is doing now, from its listener for operators."""

import json
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from relay.cli import core, flags
from relay.cli.examples import ExampleCommand
from relay.cli.screen import Screen, cut, ended_by_key, plain, span
from relay.errors import ConfigError, RelayError

if TYPE_CHECKING:
    from relay.values import ListenAddress

RATES = ("messages", "frames", "bytes")  # counters of a service that are shown by the second
OWN = "unix:/run/relay/internal.sock"  # as deploy/relay.service has it


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay top --internal-addr unix:/run/relay/internal.sock",
        "relay top --once",
        "relay top --interval 10s --json | jq .rates.status.frames",
    ),
)
@click.option("--internal-addr", metavar="ADDR", help="Where the relay answers operators.  [env: RELAY_INTERNAL_ADDR]")
@click.option("--interval", default="2s", show_default=True, metavar="DURATION", help="Between two looks.")
@click.option("--once", is_flag=True, help="Print one table, of one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each look.")
@flags.ENV_FILE
def top(internal_addr: str | None, interval: str, once: bool, as_json: bool, env_file: str | None) -> None:
    """Show what a relay is doing.

    Sockets, messages, frames and bytes a second, the largest topics, the slowest clients, the links to Redis. Asks the
    listener for operators, which the relay has where RELAY_INTERNAL_ADDR is set for it. On a terminal the table is
    drawn anew after each interval, and q ends it; otherwise one table follows the other.
    """
    import asyncio

    core.require_extra()
    from relay import settings, values

    try:
        seconds = values.duration_between(0.1, 3600)(interval)
    except ValueError as error:
        raise click.UsageError(f"--interval {interval}: {error}") from None
    given = {"RELAY_INTERNAL_ADDR": internal_addr} if internal_addr is not None else {}
    address = settings.load((), flags=given, env_file=Path(env_file) if env_file else None).internal_addr
    if address is None:
        raise ConfigError(
            f"no address to ask: start the relay with RELAY_INTERNAL_ADDR={OWN}, and give the same here, in the "
            "environment or with --internal-addr"
        )
    if address.kind == "fd":
        raise click.UsageError(f"{address} is a socket that the relay inherits: give its path or port")
    if as_json:
        asyncio.run(_watch(address, seconds, once, _print_json, first=False))
    elif once or not sys.stdout.isatty():
        asyncio.run(_watch(address, seconds, once, _print_table, first=False))
    else:
        with Screen() as screen:

            def draw(now: Look, before: Look | None) -> None:
                screen.draw(table(now, before, screen.size()[0]))

            asyncio.run(_watch(address, seconds, once, draw, first=True))


# ---- asking ----


class Look(NamedTuple):
    """What the listener said at a time of the monotonic clock; `trouble` is why it says nothing any more."""

    at: float
    address: str
    debug: Mapping[str, Any]
    ready: Mapping[str, Any]
    trouble: str = ""


Show = Callable[[Look, Look | None], None]


async def look(address: "ListenAddress") -> Look:
    """Asks for both pages.

    Raises:
        RelayError: they cannot be had; says how to have them.
    """
    from relay.cli import reach

    async def page(path: str) -> Mapping[str, Any]:
        # A listener on all addresses is asked on the loopback.
        host = "localhost" if address.host in ("", "0.0.0.0", "::") else address.host
        status, body = await reach.get(path, host=host, port=address.port, unix=address.path)
        found = json.loads(body) if status in (200, 503) else None
        if not isinstance(found, dict) or not isinstance(found.get("services"), dict):
            raise ValueError(f"it answers {status} for {path} and is no listener for operators")
        return found

    try:
        return Look(time.monotonic(), str(address), await page("/debug"), await page("/readyz"))
    except PermissionError:
        why = "this user may not: root and the group of the relay's unit may (sudo)"
    except (OSError, TimeoutError, ValueError) as error:
        why = reach.why(error)
    raise RelayError(f"{address}: {why}; does a relay run with RELAY_INTERNAL_ADDR={address}?")


async def _watch(address: "ListenAddress", interval: float, once: bool, show: Show, *, first: bool) -> None:
    """Looks again after each interval; rates need two looks, so the first is shown only where another replaces it.

    Raises:
        RelayError: the first look fails, or with `once` the second; later ones are told and tried again.
    """
    import asyncio
    import contextlib
    import signal

    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)  # so that the terminal is given back as it was
    if first:
        ended_by_key(ended)
    before = await look(address)
    if first:
        show(before, None)
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), interval)
        if ended.is_set():
            return
        try:
            now = await look(address)
        except RelayError as error:
            if once:
                raise
            show(before._replace(trouble=str(error)), None)
            continue
        show(now, before)
        if once:
            return
        before = now


def rates(now: Look, before: Look | None) -> dict[str, dict[str, float | None]]:
    """By service and counter, how much a second since the look before; None where that is unknown.

    That is so of the first look, after a restart of the relay, and of what an older relay does not count.
    """
    known = before is not None and before.debug.get("seconds", 0) <= now.debug.get("seconds", 0)
    found: dict[str, dict[str, float | None]] = {}
    for name, counters in now.debug["services"].items():
        old = before.debug["services"].get(name, {}) if before and known else {}
        found[name] = {
            what: (counters[what] - old[what]) / (now.at - before.at)
            if before and what in counters and what in old and now.at > before.at
            else None
            for what in RATES
        }
    return found


# ---- showing ----


def _print_json(now: Look, before: Look | None) -> None:
    if now.trouble:
        click.echo(f"relay: {now.trouble}", err=True)
        return
    found = {"time": round(time.time(), 3), "address": now.address, "rates": rates(now, before)}
    click.echo(json.dumps({**found, "debug": now.debug, "ready": now.ready}, separators=(",", ":")))


def _print_table(now: Look, before: Look | None) -> None:
    if now.trouble:
        click.echo(f"relay: {now.trouble}", err=True)
    else:
        click.echo("\n".join([*table(now, before), ""]))


def table(now: Look, before: Look | None, width: int = 80) -> list[str]:
    """The lines of the table, none longer than `width`, of printable ASCII alone."""
    debug, ready = now.debug, now.ready
    totals = debug.get("totals", {})
    state = "draining" if ready.get("draining") else "ready" if ready.get("ready") else "NOT READY"
    lines = [
        *(
            _wrapped(now.trouble, width)
            or [f"relay {debug.get('version')}, {state}, up {span(debug.get('seconds'))}, {now.address}"]
        ),
        f"{totals.get('sockets', '-')} sockets, {totals.get('heads', '-')} unfinished heads, frames waiting "
        f"{_size(totals.get('live_bytes'))}, requests waiting {_size(totals.get('inbound_bytes'))}",
        *_services(now, before, width),
        *_workers(debug.get("workers"), width),
        *_topics(debug, width),
        *_slowest(debug, width),
        *_closes(now, before),
    ]
    return [cut(plain(line), width) for line in lines]


def _services(now: Look, before: Look | None, width: int) -> list[str]:
    rows, reasons = [], []
    by_second = rates(now, before)
    for name, counters in now.debug["services"].items():
        speed = by_second[name]
        state = now.ready["services"].get(name, {})
        link, commands = state.get("link", {}), state.get("commands", {})
        rows.append(
            [
                name,
                str(counters.get("connections", "-")),
                str(counters.get("topics", "-")),
                _rate(speed["messages"]),
                _rate(speed["frames"]),
                _size(speed["bytes"]),
                f"{_updown(link)}/{_updown(commands)}",
                str(link.get("reconnects", 0) + commands.get("reconnects", 0)),
            ]
        )
        reasons += [f"{name}: {sentence}" for sentence in state.get("why", [])]
        if state.get("key_events") == "off":
            reasons.append(f"{name}: key events are off in Redis; see `relay doctor`")
    head = ["SERVICE", "SOCKETS", "TOPICS", "MESSAGES/S", "FRAMES/S", "BYTES/S", "LINK/CMDS", "LOST"]
    return ["", *_grid(head, rows, width), *(line for reason in reasons for line in _wrapped(reason, width, "  "))]


def _workers(workers: object, width: int) -> list[str]:
    """A row for each worker process, of whatever is said of all of them."""
    if not isinstance(workers, list) or not all(isinstance(worker, dict) for worker in workers) or not workers:
        return []
    keys = [key for key, value in workers[0].items() if not isinstance(value, dict | list)]
    rows = [[str(worker.get(key, "-")) for key in keys] for worker in workers]
    return ["", *_grid(["WORKER " + keys[0].upper(), *(key.upper() for key in keys[1:])], rows, width)]


def _topics(debug: Mapping[str, Any], width: int) -> list[str]:
    largest = [topic for counters in debug["services"].values() for topic in counters.get("largest", [])]
    largest.sort(key=lambda topic: (-topic["undelivered_bytes"], -topic["clients"]))
    rows = [[topic["topic"], str(topic["clients"]), _size(topic["undelivered_bytes"])] for topic in largest[:10]]
    return ["", *_grid(["TOPIC", "CLIENTS", "WAITING"], rows, width)] if rows else []


def _slowest(debug: Mapping[str, Any], width: int) -> list[str]:
    rows = [
        [client["address"], client["service"], _size(client["waiting_bytes"]), f"{client['oldest_seconds']:.1f} s"]
        for client in debug.get("slowest", [])
    ]
    return ["", *_grid(["SLOWEST CLIENT", "SERVICE", "WAITING", "SINCE"], rows, width)] if rows else []


def _closes(now: Look, before: Look | None) -> list[str]:
    """How many websockets the relay has closed, by code, and how many of them since the look before."""
    lines = []
    for name, counters in now.debug["services"].items():
        old = before.debug["services"].get(name, {}).get("closes", {}) if before else None
        parts = []
        for code, count in sorted(counters.get("closes", {}).items()):
            more = count - old.get(code, 0) if old is not None else 0
            parts.append(f"{code}: {count}" + (f" (+{more})" if more > 0 else ""))
        if parts:
            lines.append(f"closes of {name}  " + "   ".join(parts))
    return ["", *lines] if lines else []


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns under their names; the first has what the others leave, and is cut to that."""
    shown = [head, *([plain(cell) for cell in row] for row in rows)]
    wide = [max(len(row[column]) for row in shown) for column in range(1, len(head))]
    first = max(12, width - sum(wide) - 2 * len(wide))
    return [
        f"{cut(row[0], first):{first}}" + "".join(f"  {cell:>{size}}" for cell, size in zip(row[1:], wide, strict=True))
        for row in shown
    ]


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(plain(text), width, initial_indent=indent, subsequent_indent=2 * indent)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _size(value: float | None) -> str:
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _updown(connection: Mapping[str, Any]) -> str:
    return "up" if connection.get("up") else "DOWN"
