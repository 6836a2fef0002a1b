"""`relay bench`: how much a relay does, on this machine beside others or wherever it is deployed."""

import contextlib
import importlib.util
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from relay.cli import bench_scenarios, core
from relay.cli.bench_scenarios import Scenario
from relay.cli.examples import ExampleCommand
from relay.errors import CoreMissing, RelayError, SloMissed

if TYPE_CHECKING:
    from relay.cli.bench_run import Load, Run, Tell
    from relay.cli.bench_servers import Bench, Recipe

INTERRUPTED = 130  # 128 + SIGINT
WATCH_SECONDS = 10.0  # without --redis-url and --duration
DRAW_SECONDS = 0.1  # between two looks of the progress bar
STEPS = 1000  # of the bar for each run
INSTALL = "pip install 'weppcloud-relay[bench]'"
OF_A_PUBLISHER = ("window", "rate", "messages", "size")  # options without meaning where nothing is published


def _duration(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """A Go duration, as everywhere in the relay: `50ms` -> 0.05."""
    if text is None:
        return None
    core.require_extra()
    from relay.values import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from error


def _numbers(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> list[int]:
    """`500,2000` -> [500, 2000]."""
    if text is None:
        return []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise click.BadParameter(f"{text!r} is no list of numbers such as 500,2000,5000")
    return [int(number) for number in text.split(",")]


def _fields(_ctx: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """`X-A: b` -> (b"X-A", b"b"); token and value of RFC 9110, 5.1 and 5.5."""
    found = []
    for text in texts:
        match = re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)", text)
        if not match:
            raise click.BadParameter(f"{text.partition(':')[0]!r}: no header field such as 'Cookie: session=1'")
        found.append((match[1].encode(), match[2].encode()))
    return found


class BenchCommand(ExampleCommand):
    """Keeps the words of its call, for the report to say how it was made."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it, which keeps only what it understood."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)


@click.command(
    cls=BenchCommand,
    examples=(
        "relay bench                                                 a look at this machine, in seconds",
        "relay bench --scenario hot,unicast --peers yardstick,bun --rounds 3 --report bench.html",
        "relay bench --scenario hot --sweep 500,2000,5000 --json -",
        "relay bench --url wss://wepp.cloud/weppcloud-microservices/status --clients 500 --duration 30s",
        "relay bench --url ws://wepp1:9002 --redis-url redis://wepp1:6379 --rate 100 --duration 1m --max-p99 50ms",
    ),
)
@click.option("--url", metavar="URL", help="Put the load on this relay's status service; else one is started here.")
@click.option("--redis-url", metavar="URL", help="With --url: the relay's Redis, to publish there.")
@click.option("--peers", metavar="LIST", default="", help="Measure these beside the relay, as far as installed.")
@click.option("--scenario", "names", metavar="LIST", help="Scenarios to run, or all.  [default: quick]")
@click.option("--scenarios", type=click.Path(path_type=Path), help="Take the scenarios of this TOML file.")
@click.option("--clients", type=click.IntRange(1), help="How many listen.")
@click.option("--topics", type=click.IntRange(1), help="Channels over which they are spread.")
@click.option("--size", type=click.IntRange(1), metavar="BYTES", help="Of a published text.")
@click.option("--window", type=click.IntRange(1), metavar="N", help="Closed loop: messages on their way.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="Open loop: messages a second.")
@click.option("--messages", type=click.IntRange(1), metavar="N", help="How many in all.")
@click.option("--duration", "seconds", callback=_duration, metavar="DURATION", help="Or for how long.")
@click.option("--stalled", type=click.IntRange(0), metavar="N", help="So many of the clients never read.")
@click.option("--streams", type=click.IntRange(0), metavar="N", help="So many of them on event streams.")
@click.option("--path", metavar="PATH", help="What clients ask for, {i} for the channel's number.  [default: random]")
@click.option("--header", "headers", callback=_fields, multiple=True, metavar="'K: V'", help="A header field more.")
@click.option("--origin", default="", help="The Origin field.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Medians of so many are shown.")
@click.option("--sweep", callback=_numbers, metavar="LIST", help="Each scenario with each of these numbers of clients.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML file with charts.")
@click.option("--json", "json_to", type=click.Path(allow_dash=True, dir_okay=False), help="Write JSON; - is stdout.")
@click.option("--charts", type=click.Path(path_type=Path, file_okay=False), help="Write the charts there as SVG.")
@click.option("--max-loss", type=click.IntRange(0), metavar="N", help="Messages lost at most, in all rounds.")
@click.option("--max-p99", callback=_duration, metavar="DURATION", help="Latency of messages, 99th percentile.")
@click.option(
    "--max-connect-p99", callback=_duration, metavar="DURATION", help="Time from connect() to the 101, 99th percentile."
)
@click.option("--min-rate", type=click.FloatRange(0), metavar="N", help="Frames a second, all clients together.")
@click.option("--min-open", type=click.IntRange(0), metavar="N", help="Clients open at the end.")
@click.pass_context
def bench(ctx: click.Context, /, **given: Any) -> None:
    """Measure a relay under load.

    Without --url on a relay and a Redis started for it, the server on one CPU, Redis and the load on the others, with
    fresh servers for each run; CPU and memory are those of the server's process tree. With --url on any relay: with
    --redis-url it publishes there, on channels of its own, and knows what was lost and how late the rest was; without,
    it connects, watches for --duration, and says of loss and latency that they are unknown.

    Exit code 7 where a --max or --min is missed. Counted as missed unasked: clients that could not be opened, and those
    that read and were closed (they do not connect again), unless --min-open says how many must stay; messages doubled,
    reordered or damaged; messages lost, unless --max-loss says how many may be, those that went out without a closed
    client among them.
    """
    local = given["url"] is None
    _judge(given)
    _require(local, charts=bool(given["report"] or given["charts"]))

    from relay.cli import bench_result, bench_run

    chosen = _scenarios(given)
    loads = [_with_clients(s, count, given) for s in chosen for count in given["sweep"] or [s.clients]]
    load = bench_run.Load.on_own_channels(given["path"], origin=given["origin"].encode(), headers=given["headers"])
    if local or given["redis_url"]:
        load.channels(
            max(scenario.topics for scenario in loads)
        )  # a path that is not fit is said before anything starts
    bench_run.raise_file_limit(max(scenario.clients for scenario in loads))
    result = _head(ctx, given["url"], chosen)
    began = time.monotonic()
    failed = None
    with _signals_as_ctrl_c():
        try:
            (_local if local else _remote)(result, loads, load, given)
        except KeyboardInterrupt:
            result["interrupted"] = True
        except RelayError as error:
            failed = error
            if not result["runs"]:
                raise
    bounds = bench_result.Bounds(**{name: given[name] for name in bench_result.Bounds._fields})
    result["seconds"] = round(time.monotonic() - began, 1)
    result["misses"] = bench_result.misses(result["runs"], result["scenarios"], bounds)
    _write(result, given)
    if failed is not None:
        raise failed  # what was measured before it is written all the same
    if result["interrupted"]:
        ctx.exit(INTERRUPTED)
    if result["misses"]:
        raise SloMissed("\nrelay: ".join(result["misses"]))


# ---- what is asked for ----


def _judge(given: dict[str, Any]) -> None:
    """UsageError for options that contradict each other."""
    for one, other in (("window", "rate"), ("messages", "seconds"), ("sweep", "clients"), ("url", "peers")):
        if given[one] and given[other]:
            raise click.UsageError(f"{_option(one)} and {_option(other)} exclude each other: give one of them")
    if given["url"]:
        if not given["redis_url"]:
            for name in (*OF_A_PUBLISHER, "max_p99", "max_loss"):
                if given[name] is not None:
                    raise click.UsageError(
                        f"{_option(name)} needs --redis-url: without it nothing is published, and neither loss nor "
                        "latency can be known"
                    )
    elif given["redis_url"]:
        raise click.UsageError("--redis-url goes with --url: a relay started here has a Redis of its own")
    for name in ("report", "json_to", "charts"):
        if given[name] and not Path(given[name]).absolute().parent.is_dir():  # said now, and not after an hour
            raise click.UsageError(f"{_option(name)} {given[name]}: there is no such directory")


def _option(name: str) -> str:
    return {"seconds": "--duration", "json_to": "--json"}.get(name, f"--{name.replace('_', '-')}")


def _require(local: bool, *, charts: bool) -> None:
    """CoreMissing where something that measuring needs is not installed."""
    (core.require if local else core.require_extra)()
    for module in ("relay._swarm", *(["psutil"] if local else []), *(["matplotlib"] if charts else [])):
        if importlib.util.find_spec(module) is None:
            raise CoreMissing(f"relay bench needs {module}, not installed here: {INSTALL}")


def _scenarios(given: dict[str, Any]) -> list[Scenario]:
    """The scenarios as they are to be run."""
    known = bench_scenarios.load(given["scenarios"])
    names = given["names"] or ("all" if given["scenarios"] else "quick")
    keys = ("clients", "topics", "size", "window", "rate", "messages", "seconds", "stalled", "streams")
    said = {key: given[key] for key in keys}
    chosen = [bench_scenarios.change(scenario, said) for scenario in bench_scenarios.choose(known, names)]
    if given["url"] and not given["redis_url"]:
        return [replace(scenario, messages=0, seconds=scenario.seconds or WATCH_SECONDS) for scenario in chosen]
    return chosen


def _with_clients(scenario: Scenario, clients: int, given: dict[str, Any]) -> Scenario:
    """One load of a sweep."""
    return bench_scenarios.change(scenario, {"clients": clients, "topics": given["topics"]})


# ---- the runs ----


def _local(result: dict[str, Any], loads: list[Scenario], load: "Load", given: dict[str, Any]) -> None:
    """A relay of ours and its peers in turn, round by round, each with a fresh process."""
    from relay.cli import bench_result, bench_servers

    names = list(dict.fromkeys(name.strip() for name in given["peers"].split(",") if name.strip()))
    recipes = [bench_servers.own(), *_installed(bench_servers.peers(names), result["skipped"])]
    result["servers"] = {recipe.name: {"title": recipe.title} for recipe in recipes}
    rounds = range(given["rounds"])
    able = {scenario.name: [recipe for recipe in recipes if _can(recipe, scenario, result)] for scenario in loads}
    runs = sum(len(able[scenario.name]) for scenario in loads) * len(rounds)
    with bench_servers.Bench() as machine, Progress(runs) as progress:
        result["versions"] |= bench_result.redis_version(machine.binary)
        for scenario in loads:
            for number in rounds:
                for recipe in [recipe for recipe in able[scenario.name] if recipe.name in result["servers"]]:
                    with progress.run(recipe.name, scenario) as tell:
                        run = _local_run(result, machine, recipe, scenario, load, tell)
                    _take(result, run, number, progress)


def _installed(recipes: Sequence["Recipe"], skipped: list[dict[str, str]]) -> list["Recipe"]:
    """Those that can run; the others are said to be skipped, and how to get them."""
    for recipe in recipes:
        if lacking := recipe.lacking():
            why = f"not installed ({', '.join(lacking)}): {recipe.install}"
            skipped.append({"server": recipe.name, "why": why})
            click.echo(f"relay: skipped: {recipe.name}: {why}", err=True)
    able = [recipe for recipe in recipes if not recipe.lacking()]
    if recipes and not able:
        raise click.UsageError("--peers: none of them can run here")
    return able


def _can(recipe: "Recipe", scenario: Scenario, result: dict[str, Any]) -> bool:
    """Whether a server has what the clients ask for; of peers websockets alone are known."""
    if recipe.name == "relay" or not scenario.streams:
        return True
    why = f"scenario {scenario.name}: only the relay's event streams can be listened to"
    result["skipped"].append({"server": recipe.name, "why": why})
    click.echo(f"relay: skipped: {recipe.name}: {why}", err=True)
    return False


def _local_run(
    result: dict[str, Any], machine: "Bench", recipe: "Recipe", scenario: Scenario, load: "Load", tell: "Tell"
) -> "Run | None":
    """One run of a fresh server; None where a peer failed, which is skipped from then on."""
    from relay.cli.bench_run import Target, measure

    try:
        with machine.server(recipe) as server:
            publisher = server.link if recipe.publish == "http" else machine.redis
            target = Target(recipe.name, server.address, publisher, recipe.publish, server.process.pid)
            run = measure(scenario, target, load, tell)
        if run["broke_off"] and recipe.name != "relay":
            raise RelayError(run["broke_off"])
        return run
    except RelayError as error:
        if recipe.name == "relay":
            raise
        result["skipped"].append({"server": recipe.name, "why": str(error)})
        result["servers"].pop(recipe.name)
        click.echo(f"relay: skipped: {recipe.name}: {error}", err=True)
        return None


def _remote(result: dict[str, Any], loads: list[Scenario], load: "Load", given: dict[str, Any]) -> None:
    """A relay somewhere, through its Redis or only watched."""
    from relay.cli import bench_servers
    from relay.cli.bench_run import Target, measure

    publisher = None
    if url := given["redis_url"]:
        bench_servers.redis(url).close()  # before any client: a password refused is said at once
        publisher = partial(bench_servers.redis, url)
    target = Target("relay", bench_servers.remote(given["url"]), publisher)
    if not publisher and not given["path"]:
        click.echo(
            "relay: on channels of the bench's own, where nothing comes: --path names others, --redis-url publishes",
            err=True,
        )
    result["servers"] = {"relay": {"title": f"relay at {target.address.host}"}}
    rounds = range(given["rounds"])
    with Progress(len(loads) * len(rounds)) as progress:
        for scenario in loads:
            for number in rounds:
                with progress.run("relay", scenario) as tell:
                    run = measure(scenario, target, load, tell)
                _take(result, run, number, progress)


def _take(result: dict[str, Any], run: "Run | None", number: int, progress: "Progress") -> None:
    """Keep a run; KeyboardInterrupt where it was cut short, RelayError where publishing was."""
    if run is None:
        return
    interrupted = run.pop("interrupted")
    result["runs"].append(run | {"round": number})
    progress.say(run)
    if interrupted:
        raise KeyboardInterrupt
    if run["broke_off"]:
        raise RelayError(run["broke_off"])


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP as Ctrl-C, unless nohup has turned one off: servers are ended and what is known is written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- what is said meanwhile ----


class Progress:
    """A bar on stderr; a line for each run where that is no terminal."""

    def __init__(self, runs: int) -> None:
        self.runs, self.begun = runs, 0
        self.live = sys.stderr.isatty()
        self.bar = click.progressbar(length=runs * STEPS, file=sys.stderr, item_show_func=lambda item: item or "")

    def __enter__(self) -> Self:
        if self.live:
            self.bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.__exit__(None, None, None)

    @contextlib.contextmanager
    def run(self, server: str, scenario: Scenario) -> Iterator["Tell"]:
        """A run, which is told how far it is."""
        label, base, drawn = f"{server}: {scenario.name}, {scenario.clients} clients", self.begun * STEPS, 0.0

        def tell(done: float) -> None:
            nonlocal drawn
            now = time.monotonic()
            if self.live and now - drawn > DRAW_SECONDS:
                drawn = now
                self.bar.update(max(base + int(done * STEPS) - self.bar.pos, 0), label)

        tell(0)
        yield tell
        self.begun += 1
        if self.live:
            self.bar.update(self.begun * STEPS - self.bar.pos, label)

    def say(self, run: "Run") -> None:
        """What came of a run, where there is no bar."""
        if not self.live:
            click.echo(
                f"relay: run {self.begun} of {self.runs}: {run['server']}, {run['scenario']}: {run['opened']} of "
                f"{run['clients']} clients open, {run['delivered']} messages in {run['seconds']:.2f} s",
                err=True,
            )


# ---- what comes out ----


def _head(ctx: click.Context, url: str | None, scenarios: list[Scenario]) -> dict[str, Any]:
    """The JSON before anything has run."""
    from relay.cli import bench_result

    return {
        "format": bench_result.FORMAT,
        "command": _command(ctx.meta[__name__]),
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "seconds": 0.0,
        "machine": bench_result.machine(),
        "versions": bench_result.versions(),
        "mode": "remote" if url else "local",
        "url": _without_secrets(url) if url else None,
        "servers": {},
        "scenarios": {scenario.name: bench_result.described(scenario) for scenario in scenarios},
        "runs": [],
        "skipped": [],
        "misses": [],
        "interrupted": False,
    }


def _command(words: list[str]) -> str:
    """The call as it can be shown to anybody: without passwords, and without what stands in header fields."""
    shown = [_without_secrets(word) for word in words]
    for i, word in enumerate(shown):
        if (i and shown[i - 1] == "--header") or word.startswith("--header="):
            shown[i] = word.partition(":")[0] + ": ***"
    return shlex.join(["relay", "bench", *shown])


def _without_secrets(word: str) -> str:
    """A URL or path without its user, password and query, wherever somebody has left a character unescaped."""
    before, scheme, rest = word.rpartition("://")
    if scheme and "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    rest, query, _ = rest.partition("?")
    return before + scheme + rest + (query and "?***")


def _write(result: dict[str, Any], given: dict[str, Any]) -> None:
    """Table or JSON to stdout, and the files asked for."""
    from relay.cli import bench_result

    text = _json(result)
    if given["json_to"] == "-":
        click.echo(text)
    else:
        click.echo(bench_result.table(result["runs"]))
    try:
        if given["json_to"] not in (None, "-"):
            Path(given["json_to"]).write_text(text + "\n")
        if given["report"] or given["charts"]:
            from relay.cli import bench_report

            bench_report.write(result, given["report"], given["charts"])
    except OSError as error:
        raise RelayError(f"{error.filename} cannot be written: {error.strerror}") from error


def _json(result: dict[str, Any]) -> str:
    """Indented, each pair of a histogram on one line: four lines for each would bury the rest."""
    return re.sub(r"\[\s+([\d.]+),\s+(\d+)\s+\]", r"[\1, \2]", json.dumps(result, indent=1))
