"""The scenarios of `relay bench` as data: read, judged, and changed by what the command line says."""

import tomllib
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from relay.errors import ConfigError

TEXTS = ("plain", "escapes", "accents")
SMALLEST, LARGEST = 16, 8 << 20  # bytes of a message that the load generator can make
MOST_TOPICS = 262144  # of the load generator


@dataclass(frozen=True)
class Scenario:
    """One load: who listens, what is published, and how. The keys of a table in a scenarios file."""

    name: str
    about: str
    clients: int
    topics: int
    messages: int = 0  # 0: for `seconds`
    window: int = 0  # closed loop: messages on their way; 0: by `rate`
    rate: float = 0  # open loop: messages a second; 0: by `window`
    size: int = 100  # bytes
    text: str = "plain"
    batch: int = 1
    stalled: int = 0
    streams: int = 0
    rest: float = 0  # seconds
    seconds: float = 0  # how long to publish, or to watch; 0: until `messages` are out

    def problem(self) -> str:
        """What makes no load of it, naming the key at fault; empty: nothing."""
        needed = {"clients": 1, "topics": 1, "messages": 0, "window": 0, "rate": 0, "batch": 1}
        needed |= {"stalled": 0, "streams": 0, "rest": 0}
        for key, least in needed.items():
            if getattr(self, key) < least:
                return f"{key} = {getattr(self, key)}: at least {least}"
        if self.topics > MOST_TOPICS:
            return f"topics = {self.topics}: at most {MOST_TOPICS}"
        if not SMALLEST <= self.size <= LARGEST:
            return f"size = {self.size}: from {SMALLEST} to {LARGEST} bytes"
        if self.text not in TEXTS:
            return f"text = {self.text!r}: {', '.join(TEXTS)}"
        if bool(self.window) == bool(self.rate):
            return "either a window (closed loop) or a rate (open loop)"
        if bool(self.messages) == bool(self.seconds):
            return "either a number of messages or a duration, and more than none"
        if self.stalled >= self.clients:
            return f"stalled = {self.stalled}: fewer than the {self.clients} clients, or nobody reads"
        if self.streams > self.clients:
            return f"streams = {self.streams}: of {self.clients} clients"
        return ""

    def with_clients(self, clients: int) -> "Scenario":
        """For so many clients, as many to a channel as before, and the same share of them on event streams."""
        topics, streams = (round(count * clients / self.clients) for count in (self.topics, self.streams))
        return replace(self, clients=clients, topics=max(1, topics), streams=streams)


def load(path: Path | None) -> dict[str, Scenario]:
    """The scenarios of a file by name, in its order; those that come with the relay where `path` is None.

    Raises:
        ConfigError: the file cannot be read, or is malformed; says where.
    """
    where = f"--scenarios {path}" if path else "the package's own bench_scenarios.toml"
    try:
        text = path.read_text() if path else files("relay.cli").joinpath("bench_scenarios.toml").read_text()
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: no TOML: {error}") from error
    if not tables:
        raise ConfigError(f"{where}: no scenario in it: a table each, as [hot]")
    return {name: _scenario(f"{where}, [{name}]", name, table) for name, table in tables.items()}


def choose(scenarios: dict[str, Scenario], names: str) -> list[Scenario]:
    """Those of a list like `hot,unicast`, or all for `all`.

    Raises:
        click.UsageError: one is not there; lists those that are.
    """
    wanted = list(scenarios) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in scenarios:
            raise click.UsageError(f"--scenario {name}: there is none; there are {', '.join(scenarios)}, and all")
    return [scenarios[name] for name in wanted]


def change(scenario: Scenario, given: dict[str, Any]) -> Scenario:
    """With what the command line says of it; None says nothing.

    A window takes the place of a rate and the other way round, as do messages and seconds.

    Raises:
        click.UsageError: that makes no load.
    """
    said = {key: value for key, value in given.items() if value is not None}
    for one, other in (("window", "rate"), ("rate", "window"), ("messages", "seconds"), ("seconds", "messages")):
        if one in said:
            said.setdefault(other, 0)
    before = scenario
    if "clients" in said:
        scenario = scenario.with_clients(said.pop("clients"))
    scenario = replace(scenario, **said)
    changes = [f"{key} {value}" for key, value in vars(scenario).items() if value != getattr(before, key) and value]
    if changes and scenario.about:
        scenario = replace(scenario, about=f"{scenario.about} Changed: {', '.join(changes)}.")
    if problem := scenario.problem():
        raise click.UsageError(f"scenario {scenario.name}: {problem}")
    return scenario


def _scenario(where: str, name: str, table: Any) -> Scenario:
    kinds = {field.name: field.type for field in fields(Scenario) if field.name != "name"}
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: a value, where each scenario is a table, as [hot]")
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(f"{where}: {key}: unknown; there are {', '.join(kinds)}")
        if not isinstance(value, (int, float) if kinds[key] is float else kinds[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise ConfigError(f"{where}: {key} = {value!r}: should be {kinds[key].__name__}")  # type: ignore[union-attr]
    if missing := [key for key in ("about", "clients", "topics") if key not in table]:
        raise ConfigError(f"{where}: {', '.join(missing)} missing")
    scenario = Scenario(name=name, **table)
    if problem := scenario.problem():
        raise ConfigError(f"{where}: {problem}")
    return scenario
