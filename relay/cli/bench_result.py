"""What comes out of `relay bench`: the head of the JSON, medians, the table, and what missed its bound."""

import functools
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from relay.cli import core
from relay.cli.bench_run import Run, percentiles, together
from relay.cli.bench_scenarios import Scenario

FORMAT = 1
JUDGED = "relay"  # the server whose numbers the bounds are for
YARDSTICK = "yardstick"
SUMMED = ("published", "delivered", "lost", "cut_off", "duplicated", "reordered", "damaged", "undecided")
MEDIANS = (
    *(
        "seconds",
        "frames_per_s",
        "bytes_per_s",
        "published_per_s",
        "connects_per_s",
        "handshake_cpu_us",
        "cpu_us_per_frame",
    ),
    *("user_us_per_frame", "kb_per_conn", "base_mb", "idle_cpu_percent"),
)
BY_KIND = {"websockets": "websocket_latency_us", "event streams": "stream_latency_us"}
RATE_REACHED = 0.98  # of what was asked for
HTTP_ODD = {"0": "no answer", "101": "an answer that is no upgrade"}  # what stands for a status in `refused`
UNKNOWN, UNMEASURED = "?", "-"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "os": _os(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def versions() -> dict[str, str | None]:
    """Of the relay and what it stands on."""
    return {
        "relay": _version("weppcloud-relay"),
        "build": core.build(),
        "uvloop": _version("uvloop"),
        "hiredis": _version("hiredis"),
    }


def redis_version(binary: Path) -> dict[str, str]:
    """Of the Redis that the bench has started."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=([\d.]+)", said)
    return {binary.name: version[1] if version else said.strip()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def described(scenario: Scenario) -> dict[str, Any]:
    """A scenario as the JSON tells it."""
    return {key: value for key, value in vars(scenario).items() if key != "name"}


# ---- rounds into one ----


def merged(runs: list[Run]) -> list[Run]:
    """One run for each server, scenario and number of clients: counts and latencies together, all else medians."""
    groups: dict[tuple[str, int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["scenario"], run["clients"], run["server"]), []).append(run)
    order = list(dict.fromkeys(run["server"] for run in runs))
    scenarios = list(dict.fromkeys((run["scenario"], run["clients"]) for run in runs))
    keys = [(*scenario, server) for scenario in scenarios for server in order]
    return [_merge(groups[key]) for key in keys if key in groups]


def _merge(rounds: list[Run]) -> Run:
    one = dict(rounds[0])
    one |= {key: _over(sum, rounds, key) for key in SUMMED}
    one |= {key: _over(median, rounds, key) for key in MEDIANS}
    one |= {key: min(run[key] for run in rounds) for key in ("opened", "open_at_end")}
    one |= {key: dict(sum((Counter(run[key]) for run in rounds), Counter())) for key in ("refused", "closed")}
    histogram = _pooled(rounds)
    one |= {"latency_histogram": histogram, "latency_us": percentiles(histogram)}
    one |= {key: _percentiles([run[key] for run in rounds]) for key in ("handshake_us", *BY_KIND.values())}
    return one | {"rounds": len(rounds), "stalled_out": any(run["stalled_out"] for run in rounds)}


def _over(function: Callable[[list[Any]], Any], rounds: list[Run], key: str) -> Any:
    values = [run[key] for run in rounds if run[key] is not None]
    return function(values) if values else None


def _pooled(rounds: list[Run]) -> list[tuple[float, int]]:
    """The latencies of all rounds in one histogram: the median of several p99 would hide the round that was bad."""
    return together(*(run["latency_histogram"] for run in rounds))


def _percentiles(rounds: list[dict[str, float] | None]) -> dict[str, float] | None:
    """Medians, and of what was longest the longest."""
    known = [values for values in rounds if values]
    return (
        {key: (max if key == "max" else median)(values[key] for values in known) for key in known[0]} if known else None
    )


# ---- the table ----


class Column(NamedTuple):
    """A column of the table: two lines of head, and what stands below."""

    name: str
    unit: str
    value: Callable[[Run], float | str | None]
    digits: int = 0


def _at(key: str, *rest: str, scale: float = 1.0) -> Callable[[Run], float | str | None]:
    def value(run: Run) -> float | str | None:
        found = functools.reduce(lambda place, name: place and place.get(name), (key, *rest), run)  # type: ignore[arg-type,return-value]
        return found * scale if isinstance(found, (int, float)) else found  # type: ignore[return-value]

    return value


def _count(*keys: str) -> Callable[[Run], str]:
    """A sum of counts; unknown where nobody could count."""
    return lambda run: UNKNOWN if run[keys[0]] is None else str(sum(run[key] for key in keys))


COLUMNS = (
    Column("scenario", "", _at("scenario")),
    Column("clients", "", _at("clients")),
    Column("server", "", _at("server")),
    Column("frames", "1/s", _at("frames_per_s")),
    Column("cpu", "us/frame", _at("cpu_us_per_frame"), 3),
    Column("user", "us/frame", _at("user_us_per_frame"), 3),
    Column("p50", "ms", _at("latency_us", "p50", scale=1e-3), 2),
    Column("p99", "ms", _at("latency_us", "p99", scale=1e-3), 2),
    Column("max", "ms", _at("latency_us", "max", scale=1e-3), 1),
    Column("connects", "1/s", _at("connects_per_s")),
    Column("connect", "p99 ms", _at("handshake_us", "p99", scale=1e-3), 1),
    Column("handshake", "cpu us", _at("handshake_cpu_us"), 1),
    Column("memory", "KB/conn", _at("kb_per_conn"), 2),
    Column("base", "MB", _at("base_mb"), 1),
    Column("rest", "cpu %", _at("idle_cpu_percent"), 2),
    Column("lost", "", _count("lost")),
    Column("wrong", "", _count("duplicated", "reordered", "damaged")),
)
RATIOS = (  # to the yardstick's
    Column("frames", "", _at("frames_per_s"), 2),
    Column("cpu", "", _at("cpu_us_per_frame"), 2),
    Column("p50", "", _at("latency_us", "p50"), 2),
    Column("p99", "", _at("latency_us", "p99"), 2),
    Column("handshake", "", _at("handshake_cpu_us"), 2),
)


def table(runs: list[Run]) -> str:
    """The medians, a line for each server, scenario and number of clients; ratios to the yardstick where it ran."""
    if not runs:
        return "nothing was measured"
    together = merged(runs)
    lines = [[_cell(column, run) for column in COLUMNS] for run in together]
    shown = [i for i, column in enumerate(COLUMNS) if i < 4 or any(line[i] != UNMEASURED for line in lines)]
    head = [[COLUMNS[i].name for i in shown], [COLUMNS[i].unit for i in shown]]
    parts = [_aligned([*head, *([line[i] for i in shown] for line in lines)])]
    ratios = list(_ratios(runs))
    if ratios:
        parts.append("\n" + _aligned([["times the", "", "yardstick's", *(column.name for column in RATIOS)], *ratios]))
    parts += [line for run in together for line in _remarks(run)]
    if any(run["lost"] is None for run in together):
        parts.append("? unknown: what is published was not published by the bench (--redis-url lets it)")
    return "\n".join(parts)


def _cell(column: Column, run: Run) -> str:
    value = column.value(run)
    if value is None:
        return UNMEASURED
    return value if isinstance(value, str) else f"{value:.{column.digits}f}"


def _aligned(lines: list[list[str]]) -> str:
    """Columns two blanks apart: names to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = (0, 2)
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _ratios(runs: list[Run]) -> Iterator[list[str]]:
    """The medians of the rounds' ratios: what drifts with the machine drifts for both of a round."""
    for one in merged(runs):
        mine = {run["round"]: run for run in runs if _same(run, one, one["server"])}
        theirs = {run["round"]: run for run in runs if _same(run, one, YARDSTICK)}
        pairs = [(run, theirs[number]) for number, run in mine.items() if number in theirs]
        if pairs and one["server"] != YARDSTICK:
            yield [one["scenario"], str(one["clients"]), one["server"], *(_ratio(column, pairs) for column in RATIOS)]


def _same(run: Run, one: Run, server: str) -> bool:
    return bool(run["scenario"] == one["scenario"] and run["clients"] == one["clients"] and run["server"] == server)


def _ratio(column: Column, pairs: list[tuple[Run, Run]]) -> str:
    values = [(column.value(mine), column.value(other)) for mine, other in pairs]
    ratios = [float(mine) / float(other) for mine, other in values if mine is not None and other]
    return f"{median(ratios):.{column.digits}f}" if ratios else UNMEASURED


def _remarks(run: Run) -> Iterator[str]:
    """What a line of the table has no room for."""
    where = _where(run)
    kinds = {kind: run[key] for kind, key in BY_KIND.items() if run[key]}
    if len(kinds) > 1:
        each = [f"{kind} {us['p50'] / 1e3:.2f} and {us['p99'] / 1e3:.2f} ms" for kind, us in kinds.items()]
        yield f"{where}: p50 and p99 of {', of '.join(each)}"
    if run["refused"]:
        yield f"{where}: refused: {refusals(run)}"
    if run["closed"]:
        yield f"{where}: closed: {closings(run)}"
    if wrong := [f"{run[name]:,} {name}" for name in ("duplicated", "reordered", "damaged") if run[name]]:
        yield f"{where}: {', '.join(wrong)}"
    if run["published_per_s"] < RATE_REACHED * run["rate"] and run["published"]:
        yield f"{where}: published were {run['published_per_s']:,.0f} messages a second, not {run['rate']:,.0f}"
    if run["broke_off"]:
        yield f"{where}: {run['broke_off']}"
    if run["stalled_out"]:
        yield f"{where}: ended early, as for 10 s no message came back"


def refusals(run: Run) -> str:
    """How often which HTTP status, and the first thing that went wrong with a connection."""
    said = [f"{count} with {HTTP_ODD.get(status, status)}" for status, count in run["refused"].items()]
    said += [f"{run['undecided']} undecided in time"] if run["undecided"] else []
    return ", ".join(said) + (f" ({run['trouble']})" if run["trouble"] else "")


def closings(run: Run) -> str:
    """How many ended by which close code, and what went out without them."""
    said = ", ".join(f"{count:,} with {code}" for code, count in run["closed"].items())
    return said + (f"; {run['cut_off']:,} messages went out without them" if run["cut_off"] else "")


def _where(run: Run) -> str:
    return f"{run['server']}, {run['scenario']}, {run['clients']} clients"


# ---- bounds ----


class Bounds(NamedTuple):
    """What is asked for; None: no matter."""

    max_loss: int | None = None
    max_p99: float | None = None  # seconds
    max_connect_p99: float | None = None  # seconds
    min_rate: float | None = None  # frames a second
    min_open: int | None = None


def misses(runs: list[Run], scenarios: dict[str, dict[str, Any]], bounds: Bounds) -> list[str]:
    """A sentence for each bound that the relay missed: what was asked for, what was seen, where.

    Without a bound of one's own these are some, wherever the relay is: a client that could not be opened or was closed,
    for the swarm does not connect again; a message lost or wrong. What never reads is not held against the relay.
    """
    return [
        f"{said} ({_where(run)})"
        for run in merged([run for run in runs if run["server"] == JUDGED])
        for said in (*_asked(run, bounds), *_unasked(run, bounds, scenarios[run["scenario"]]["stalled"]))
    ]


def _asked(run: Run, bounds: Bounds) -> Iterator[str]:
    """Missed bounds of the command line."""
    for name, key, bound in (
        ("p99 latency", "latency_us", bounds.max_p99),
        ("p99 time to connect", "handshake_us", bounds.max_connect_p99),
    ):
        if bound is not None and (run[key] is None or run[key]["p99"] > bound * 1e6):
            seen = f"{run[key]['p99'] / 1e3:.4g} ms" if run[key] else "nothing"
            yield f"{name}: {bound * 1e3:.4g} ms asked for, {seen} seen"
    if bounds.min_rate is not None and run["frames_per_s"] < bounds.min_rate:
        yield f"rate: {bounds.min_rate:.0f} frames/s asked for, {run['frames_per_s']:.0f} seen"
    if bounds.min_open is not None and run["open_at_end"] < bounds.min_open:
        yield f"open at the end: {bounds.min_open} clients asked for, {run['open_at_end']} seen{_why_not(run)}"
    if bounds.max_loss is not None and (run["lost"] is None or run["lost"] + run["cut_off"] > bounds.max_loss):
        gone = f", and {run['cut_off']} by clients that were closed" if run["cut_off"] else ""
        yield f"lost: at most {bounds.max_loss} messages asked for, {run['lost']} seen{gone}"


def _unasked(run: Run, bounds: Bounds, stalled: int) -> Iterator[str]:
    """What counts as a miss though nobody asked."""
    if bounds.min_open is None and run["opened"] < run["clients"]:
        yield f"opened: {run['clients']} clients asked for, {run['opened']} seen{_why_not(run)}"
    if run["stalled_out"]:
        yield "messages: all asked for, and none came back for 10 s"
    if run["published"] and not run["delivered"]:
        yield f"messages: {run['published']} published and none came back; is that the Redis of this relay?"
    # Of a client that never reads the close frame is never read either: an end without one is its, or a crash.
    unread = min(run["closed"].get("1006", 0), stalled * run["rounds"])
    closed = sum(run["closed"].values()) - unread
    if bounds.min_open is None and closed > 0:
        yield f"closed: no client that reads asked for, {closed} seen ({closings(run)})"
    for name in ("lost", "duplicated", "reordered", "damaged"):
        if run[name] and not (name == "lost" and bounds.max_loss is not None):
            yield f"{name}: no message asked for, {run[name]} seen"


def _why_not(run: Run) -> str:
    refused = refusals(run)
    return f", refused: {refused}" if refused else ""
