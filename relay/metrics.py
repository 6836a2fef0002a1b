"""The counters of the core and the links in Prometheus' text format (contract, section 6: the old names stay)."""

import platform
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from itertools import accumulate, groupby
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relay._fanout import BUILD

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The counter of frames has its own old name in each service.
_FRAMES = {"status": "status2_messages_forwarded", "preflight": "preflight2_messages_sent"}

# Shown from the start: a counter that appears with its first count shows no rise, and the first 1013 would go unseen.
_CODES = dict.fromkeys((1000, 1002, 1007, 1008, 1009, 1012, 1013), 0)
_STATUSES = dict.fromkeys((101, 200, 400, 401, 403, 404, 405, 408, 426, 431, 500, 503), 0)

# Upper bounds; how often each was the least that held, and last how often none did; the sum of all that was seen.
Histogram = tuple[tuple[float, ...], tuple[int, ...], float]

# Of the counters of a service those that say how it is now, and end with their process.
_STATES = ("connections", "streams", "topics", "backlogs", "backlog_bytes")

_Key = TypeVar("_Key", bound=Hashable)


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
    """What one service of one process counted, as `Core.stats` gives it, and its links.

    `ready` is whether new clients are well served, `redis_up` whether both of its connections to Redis stand,
    `reconnects` how often one was made anew, `gaps` how often the subscriptions broke, `instances` how many Redis
    servers have answered, `proved` seconds since a message was known to come, `key_events` whether Redis announces
    writes, both None while that cannot be known; `breaches` how often each bound was exceeded, `bounds` those that are
    the service's own.
    """

    service: str
    counters: Mapping[str, int]
    closes: Mapping[int, int]
    responses: Mapping[int, int]
    delivery: Histogram
    burst: Histogram
    backlog_seconds: float
    ready: bool
    redis_up: bool
    reconnects: int
    gaps: int = 0
    instances: int = 0
    proved: float | None = None
    key_events: bool | None = None
    breaches: Mapping[str, int] = field(default_factory=dict)
    bounds: Sequence[Bound] = ()


def total(readings: Sequence[Reading]) -> Reading:
    """One service of several processes: what was counted is added up; of states and ages the worst holds.

    A channel that is watched in two processes counts twice, as its messages are sent twice by Redis.
    """
    first = readings[0]
    return Reading(
        first.service,
        _sum(reading.counters for reading in readings),
        _sum(reading.closes for reading in readings),
        _sum(reading.responses for reading in readings),
        added(reading.delivery for reading in readings),
        added(reading.burst for reading in readings),
        max(reading.backlog_seconds for reading in readings),
        ready=all(reading.ready for reading in readings),
        redis_up=all(reading.redis_up for reading in readings),
        reconnects=sum(reading.reconnects for reading in readings),
        gaps=sum(reading.gaps for reading in readings),
        instances=max(reading.instances for reading in readings),
        proved=max((reading.proved for reading in readings if reading.proved is not None), default=None),
        key_events=min((reading.key_events for reading in readings if reading.key_events is not None), default=None),
        breaches=_sum(reading.breaches for reading in readings),
        bounds=first.bounds,
    )


def totals(readings: Iterable[Reading]) -> list[Reading]:
    """`total` of each service."""
    return [total(list(of)) for _, of in groupby(sorted(readings, key=_by_service), _by_service)]


def ended(reading: Reading) -> Reading:
    """What is left of a process that has ended: what it counted, and nothing of how it was."""
    counters = {**reading.counters, **dict.fromkeys(_STATES, 0)}
    return replace(
        reading, counters=counters, ready=True, redis_up=True, proved=None, key_events=None, backlog_seconds=0.0
    )


def total_bounds(of_each: Sequence[Sequence[Bound]]) -> list[Bound]:
    """The bounds of several processes: of what each has its own the sum, of all others the one that is everybody's."""
    found = []
    for same in zip(*of_each, strict=True):
        first = same[0]
        if first.used is not None:
            first = first._replace(value=sum(b.value for b in same), used=sum(b.used or 0 for b in same))
        if first.breaches is not None:
            first = first._replace(breaches=sum(b.breaches or 0 for b in same))
        found.append(first)
    return found


def _sum(counts: Iterable[Mapping[_Key, int]]) -> Mapping[_Key, int]:
    found: Counter[_Key] = Counter()
    for each in counts:
        found.update(each)
    return found


def added(histograms: Iterable[Histogram]) -> Histogram:
    """Several histograms as one."""
    bounds, counts, sums = zip(*histograms, strict=True)
    return bounds[0], tuple(map(sum, zip(*counts, strict=True))), sum(sums)


class _Relay(Collector):
    def __init__(
        self,
        read: Callable[[], Iterable[Reading]],
        bounds: Callable[[], Sequence[Bound]],
        lags: Callable[[], Iterable[Histogram]],
        processes: Callable[[], "Processes"],
    ) -> None:
        self._read = read
        self._bounds = bounds
        self._lags = lags
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client: everything is read when it is asked for, nothing is kept twice."""
        for reading in totals(self._read()):
            yield from _service(reading)
        yield from _limits("relay", self._bounds())
        yield _histogram("relay_loop_lag_seconds", "How late the loop's turns come.", added(self._lags()))
        yield from _of_the_system(self._processes())
        build = GaugeMetricFamily("relay_build_info", "What runs here.", labels=["version", "core", "python"])
        build.add_metric([_version(), BUILD, platform.python_version()], 1)
        yield build


class Processes(NamedTuple):
    """What serves: what the system says of each process, by metric, and how many of them ended unasked."""

    seen: Sequence[Mapping[str, float]]
    restarts: int = 0


def process() -> dict[str, float]:
    """What the system says of this process, by metric (proc(5))."""
    families = ProcessCollector(registry=None).collect()
    return {sample.name: sample.value for family in families for sample in family.samples}


# Of several processes: what is added up, and what is the least of theirs.
_SUMS = {
    "process_virtual_memory_bytes": "Virtual memory.",
    "process_resident_memory_bytes": "Memory in use.",
    "process_open_fds": "Open descriptors.",
}
_LEAST = {
    "process_max_fds": "Descriptors that a process may have.",
    "process_start_time_seconds": "When it began, unix time.",
}


def _of_the_system(processes: Processes) -> Iterator[Metric]:
    def values(name: str) -> list[float]:
        return [seen[name] for seen in processes.seen if name in seen]

    seconds = values("process_cpu_seconds_total")
    yield CounterMetricFamily("process_cpu_seconds", "Processor time.", sum(seconds))
    for name, sentence in _SUMS.items():
        yield GaugeMetricFamily(name, sentence, sum(values(name)))
    for name, sentence in _LEAST.items():
        yield GaugeMetricFamily(name, sentence, min(values(name), default=0.0))
    serving = sum("process_resident_memory_bytes" in seen for seen in processes.seen)
    yield GaugeMetricFamily("relay_workers", "Processes that serve.", serving)
    yield CounterMetricFamily("relay_worker_restarts", "Workers that ended unasked.", processes.restarts)


@cache
def _version() -> str:
    return metadata.version("weppcloud-relay")


def _by_service(reading: Reading) -> str:
    return reading.service


def _service(reading: Reading) -> Iterator[Metric]:
    prefix, counters = f"{reading.service}2", reading.counters
    yield GaugeMetricFamily(
        f"{prefix}_connections_active", "Websockets and event streams open now.", counters["connections"]
    )
    yield GaugeMetricFamily(f"{prefix}_event_streams", "Those of them that are event streams.", counters["streams"])
    yield CounterMetricFamily(
        f"{prefix}_connections_opened", "Websockets and event streams opened.", counters["opened"]
    )
    yield GaugeMetricFamily(f"{prefix}_topics", "Runs or channels watched now.", counters["topics"])
    yield from _clients(prefix, reading)
    yield from _redis(prefix, reading)
    yield _breaches(prefix, reading.breaches)
    yield from _limits(prefix, reading.bounds)


def _clients(prefix: str, reading: Reading) -> Iterator[Metric]:
    """What was sent to clients, how fast, who lags, and how they ended."""
    counters = reading.counters
    yield CounterMetricFamily(_FRAMES[reading.service], "Frames handed to clients.", counters["frames"])
    yield CounterMetricFamily(f"{prefix}_sent_bytes", "Bytes of these frames.", counters["bytes"])
    yield _histogram(
        f"{prefix}_delivery_seconds", "From a read of Redis until each client had its send.", reading.delivery
    )
    yield _histogram(f"{prefix}_burst_frames", "Frames that one send to each client carries.", reading.burst)
    yield GaugeMetricFamily(f"{prefix}_backlog_clients", "Clients that lag now.", counters["backlogs"])
    yield GaugeMetricFamily(f"{prefix}_backlog_bytes", "What waits for them.", counters["backlog_bytes"])
    yield GaugeMetricFamily(f"{prefix}_backlog_seconds", "How long the oldest of it waits.", reading.backlog_seconds)
    yield CounterMetricFamily(
        f"{prefix}_snapshots_replaced", "Frames a slow client was spared for a newer one.", counters["replaced"]
    )
    yield CounterMetricFamily(f"{prefix}_write_errors", "Clients lost while writing to them.", counters["write_errors"])
    yield _counter(f"{prefix}_closes", "Websockets closed by the relay.", "code", {**_CODES, **reading.closes})
    yield _counter(f"{prefix}_http_responses", "Answers to requests.", "code", {**_STATUSES, **reading.responses})


def _redis(prefix: str, reading: Reading) -> Iterator[Metric]:
    """How sure it is that messages come, what may be missing, and who was told."""
    yield GaugeMetricFamily(f"{prefix}_ready", "1 while new clients are well served: /readyz.", int(reading.ready))
    yield GaugeMetricFamily(f"{prefix}_redis_up", "1 while both connections to Redis stand.", int(reading.redis_up))
    yield CounterMetricFamily(f"{prefix}_redis_reconnects", "Connections to Redis made anew.", reading.reconnects)
    yield CounterMetricFamily(f"{prefix}_redis_instances", "Redis servers seen, restarts included.", reading.instances)
    if reading.proved is not None:
        yield GaugeMetricFamily(
            f"{prefix}_redis_proved_seconds",
            "Seconds since a message was known to come; above 14: deaf.",
            reading.proved,
        )
    if reading.key_events is not None:
        yield GaugeMetricFamily(
            f"{prefix}_redis_key_events", "1 where Redis announces writes to hashes.", int(reading.key_events)
        )
    oversize = reading.counters["oversize"]
    yield CounterMetricFamily(f"{prefix}_oversize_messages", "Published messages dropped for their size.", oversize)
    gaps = {"link": reading.gaps, "size": oversize}
    yield _counter(f"{prefix}_gaps", "Holes in what clients got, by reason.", "reason", gaps)
    clients = {"true": reading.counters["told"], "false": reading.counters["untold"]}
    yield _counter(
        f"{prefix}_gap_clients", "Clients behind a hole; not told: those that did not ask with ?v=2.", "told", clients
    )


def _counter(name: str, sentence: str, label: str, counts: Mapping[_Key, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, sentence, labels=[label])
    for value, count in counts.items():
        family.add_metric([str(value)], count)
    return family


def _histogram(name: str, sentence: str, histogram: Histogram) -> HistogramMetricFamily:
    bounds, counts, observed = histogram
    edges = map(floatToGoString, (*bounds, float("inf")))
    return HistogramMetricFamily(name, sentence, list(zip(edges, accumulate(counts), strict=True)), observed)


def _breaches(prefix: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    return _counter(f"{prefix}_breaches", "How often a bound was exceeded.", "bound", counts)


def _limits(prefix: str, bounds: Sequence[Bound]) -> Iterator[Metric]:
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


def exposition(
    read: Callable[[], Iterable[Reading]],
    bounds: Callable[[], Sequence[Bound]],
    lags: Callable[[], Iterable[Histogram]],
    processes: Callable[[], Processes],
) -> bytes:
    """All metrics as text.

    Args:
        read: gives the readings of all services, of each process that serves them.
        bounds: gives the bounds of the whole process.
        lags: gives for each process how late the turns of its loop come, as `Core.lag` does.
        processes: gives what the system says of each.
    """
    registry = CollectorRegistry()
    registry.register(_Relay(read, bounds, lags, processes))
    return generate_latest(registry)
