"""The counters of the core and the links in Prometheus' text format (contract, section 6: the old names stay)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The counter of frames has its own old name in each service.
_FRAMES = {"status": "status2_messages_forwarded", "preflight": "preflight2_messages_sent"}


class Bound(NamedTuple):
    """A bound in force: its `value` in `unit`, and how much of that is `used` now where this can be said.

    `breaches` are those of the process, where no service is the one to count them.
    """

    name: str
    unit: str
    value: float
    used: float | None = None
    breaches: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one service counted, as `Core.stats` gives it, and its links.

    `redis_up` is whether both of its connections to Redis stand, `reconnects` how often one was made anew, `gaps` how
    often the subscriptions broke, `instances` how many Redis servers have answered, `proved` seconds since a message
    was known to come, None while that cannot be known; `breaches` how often each bound was exceeded, `bounds` those
    that are the service's own.
    """

    service: str
    counters: dict[str, int]
    closes: dict[int, int]
    redis_up: bool
    reconnects: int
    gaps: int = 0
    instances: int = 0
    proved: float | None = None
    breaches: Mapping[str, int] = field(default_factory=dict)
    bounds: Sequence[Bound] = ()


class _Relay(Collector):
    def __init__(self, read: Callable[[], list[Reading]], bounds: Callable[[], Sequence[Bound]]) -> None:
        self._read = read
        self._bounds = bounds

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Of prometheus_client: everything is read when it is asked for, nothing is kept twice."""
        for reading in self._read():
            yield from _service(reading)
        yield from _limits("relay", self._bounds())


def _service(reading: Reading) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    prefix, counters = f"{reading.service}2", reading.counters
    yield GaugeMetricFamily(f"{prefix}_connections_active", "Websockets open now.", counters["connections"])
    yield CounterMetricFamily(_FRAMES[reading.service], "Frames handed to clients.", counters["frames"])
    yield CounterMetricFamily(f"{prefix}_redis_reconnects", "Connections to Redis made anew.", reading.reconnects)
    yield CounterMetricFamily(f"{prefix}_write_errors", "Clients lost while writing to them.", counters["write_errors"])
    yield GaugeMetricFamily(f"{prefix}_redis_up", "1 while both connections to Redis stand.", int(reading.redis_up))
    yield from _delivery(prefix, reading)
    yield GaugeMetricFamily(f"{prefix}_topics", "Runs or channels watched now.", counters["topics"])
    yield CounterMetricFamily(f"{prefix}_connections_opened", "Websockets opened.", counters["opened"])
    yield CounterMetricFamily(
        f"{prefix}_oversize_messages", "Published messages dropped for their size.", counters["oversize"]
    )
    yield CounterMetricFamily(
        f"{prefix}_snapshots_replaced", "Frames a slow client was spared for a newer one.", counters["replaced"]
    )
    closes = CounterMetricFamily(f"{prefix}_closes", "Websockets closed by the relay.", labels=["code"])
    for code, count in sorted(reading.closes.items()):
        closes.add_metric([str(code)], count)
    yield closes
    yield _breaches(prefix, reading.breaches)
    yield from _limits(prefix, reading.bounds)


def _delivery(prefix: str, reading: Reading) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    """What may be missing, who was told, and how sure it is that messages come."""
    gaps = CounterMetricFamily(f"{prefix}_gaps", "Holes in what clients got, by reason.", labels=["reason"])
    gaps.add_metric(["link"], reading.gaps)
    gaps.add_metric(["size"], reading.counters["oversize"])
    yield gaps
    clients = CounterMetricFamily(
        f"{prefix}_gap_clients", "Clients behind a hole; not told: those that did not ask with ?v=2.", labels=["told"]
    )
    clients.add_metric(["true"], reading.counters["told"])
    clients.add_metric(["false"], reading.counters["untold"])
    yield clients
    yield CounterMetricFamily(f"{prefix}_redis_instances", "Redis servers seen, restarts included.", reading.instances)
    if reading.proved is not None:
        yield GaugeMetricFamily(
            f"{prefix}_redis_proved_seconds",
            "Seconds since a message was known to come; above 14: deaf.",
            reading.proved,
        )


def _breaches(prefix: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    breaches = CounterMetricFamily(f"{prefix}_breaches", "How often a bound was exceeded.", labels=["bound"])
    for bound, count in counts.items():
        breaches.add_metric([bound], count)
    return breaches


def _limits(prefix: str, bounds: Sequence[Bound]) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    limits = GaugeMetricFamily(f"{prefix}_bound", "The bounds in force.", labels=["bound", "unit"])
    used = GaugeMetricFamily(f"{prefix}_bound_used", "What is used of a bound now.", labels=["bound", "unit"])
    for bound in bounds:
        limits.add_metric([bound.name, bound.unit], bound.value)
        if bound.used is not None:
            used.add_metric([bound.name, bound.unit], bound.used)
    yield limits
    if used.samples:
        yield used
    counted = {bound.name: bound.breaches for bound in bounds if bound.breaches is not None}
    if counted:
        yield _breaches(prefix, counted)


def exposition(read: Callable[[], list[Reading]], bounds: Callable[[], Sequence[Bound]]) -> bytes:
    """All metrics as text.

    Args:
        read: gives the readings of all services.
        bounds: gives the bounds of the whole process.
    """
    registry = CollectorRegistry()
    registry.register(_Relay(read, bounds))
    return generate_latest(registry)
