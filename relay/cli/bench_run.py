"""One measured run: a scenario, put on one server by the compiled load generator.

The order of things: the server at rest (base memory), handshakes, clients at rest (memory, CPU), messages, and a wait
for what is still on its way. CPU and memory are those of the server's whole process tree, so of a local one only.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import click

from relay.cli.bench_scenarios import Scenario
from relay.cli.bench_servers import Address
from relay.errors import RelayError

if TYPE_CHECKING:
    from relay._swarm import Publisher, Swarm

Run = dict[str, Any]  # an entry of `runs` in the JSON
Tell = Callable[[float], None]  # is told how much of a run is done, from 0 to 1

OURS = "bench-"  # what the channels begin with that we publish on; nobody's run is called so
OPEN_SECONDS = 60.0  # for all handshakes
QUIET_SECONDS = 1.0  # without a message after which no more are expected
QUIET_REMOTE_SECONDS = 3.0  # the same, over a network
REST_SECONDS = 0.3  # between the last handshake and the first message
SLICE = 0.002  # seconds served between two looks at the publisher: that much the end of a run is late
MANY = 500  # clients from which their memory is told from that of the server itself
LOOK = 0.25  # seconds between two looks whether anybody is left
ENDLESS = 1 << 50  # messages where seconds are the measure
LEAST_USER = 0.2  # seconds of CPU below which ticks of 10 ms say nothing about its part in user space
TICK = 0.02  # seconds by which the kernel's two accounts of CPU time may differ
SPARE_FILES = 64  # beside the clients'
PORTS = 20000  # connections from one address; the kernel has about 28 000 ports for it


@dataclass(frozen=True)
class Load:
    """What the command line adds to every scenario of a session."""

    path: str  # below the server's address; {i} is the number of the channel
    origin: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()

    @classmethod
    def on_own_channels(cls, path: str | None, **more: Any) -> "Load":
        """On channels of a random name where no path is given."""
        return cls(path or f"/{OURS}{secrets.token_hex(4)}:load-{{i}}", **more)

    def paths(self, topics: int, prefix: str) -> list[bytes]:
        """The request target of each channel."""
        return [(prefix + "/" + self.path.lstrip("/").replace("{i}", str(i))).encode() for i in range(topics)]

    def channels(self, topics: int) -> list[bytes]:
        """The Redis channel of each path: its last part, decoded (contract, section 6).

        Raises:
            click.UsageError: we would publish on channels that may be somebody's, or on one for several paths.
        """
        last = unquote(self.path.partition("?")[0].rstrip("/").rpartition("/")[2])
        if not last.startswith(OURS):
            raise click.UsageError(f"--path {self.path}: published is only on channels that begin with {OURS!r}")
        if topics > 1 and "{i}" not in last:
            raise click.UsageError(f"--path {self.path}: has no {{i}} for the numbers of {topics} channels")
        return [last.replace("{i}", str(i)).encode() for i in range(topics)]


@dataclass(frozen=True)
class Target:
    """The server of a run, and how one publishes to it."""

    name: str
    address: Address
    publisher: Callable[[], socket.socket] | None = None  # a connection to publish through; None: only watch
    protocol: str = "redis"  # what is spoken there, or "http"
    pid: int | None = None  # of a local server


class Usage(NamedTuple):
    """What a process tree has used until now."""

    cpu: float  # seconds
    user: float  # seconds of it outside the kernel
    ticks: float  # seconds by the coarser account, which forgets no thread that has ended
    memory: float = 0  # bytes, PSS: shared pages by their share; 0: not asked for
    own: float = 0  # bytes, USS: of pages that are nobody else's, so that the end of another process changes nothing

    def since(self, before: "Usage") -> float:
        """CPU seconds between the two: by the account in ns, unless a thread that ended took its share away."""
        ticks = self.ticks - before.ticks
        exact = self.cpu - before.cpu
        return exact if exact > ticks - TICK else ticks


class Meter:
    """Reads CPU and memory of a local server; of one elsewhere nothing."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid

    def read(self, memory: bool = False) -> Usage:
        """Now; zeros where nothing can be known."""
        if self.pid is None:
            return Usage(0, 0, 0)
        import psutil

        try:
            root = psutil.Process(self.pid)
            if root.status() == psutil.STATUS_ZOMBIE:  # ours, and nobody has waited for it yet
                raise psutil.ZombieProcess(self.pid)
            tree = [root, *root.children(recursive=True)]
            times = [process.cpu_times() for process in tree]
            return Usage(
                sum(_scheduled(process.pid) for process in tree),
                sum(t.user for t in times) + times[0].children_user,
                sum(t.user + t.system for t in times) + times[0].children_user + times[0].children_system,
                *(map(sum, zip(*(_pages(process) for process in tree), strict=True)) if memory else ()),
            )
        except psutil.NoSuchProcess as error:
            raise RelayError("the measured server has ended by itself") from error

    def await_rest(self, most: float = 5.0) -> None:
        """Return when the server has used next to nothing for 0.2 s: it has finished starting."""
        until = time.monotonic() + (most if self.pid else 0)
        before = self.read()
        while time.monotonic() < until:
            time.sleep(0.2)
            now = self.read()
            if now.since(before) < 0.002:
                return
            before = now


def _pages(process: Any) -> tuple[float, float]:
    """PSS and USS of a process."""
    found = process.memory_full_info()
    return found.pss, found.uss


def _scheduled(pid: int) -> float:
    """CPU seconds of a process's living threads, as the scheduler counts them in ns (proc(5), schedstat)."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended
            total += int(path.read_text().split()[0])
    return total / 1e9


def raise_file_limit(clients: int) -> None:
    """Raise the soft limit of open files to the hard one.

    Raises:
        RelayError: even so there are too few for that many clients; says how many it would do for.
    """
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = (clients if hard == resource.RLIM_INFINITY else hard) - SPARE_FILES
    if hard != resource.RLIM_INFINITY and clients > most:
        raise RelayError(
            f"{clients} clients need {clients + SPARE_FILES} open files and this process may have {hard}: raise that "
            f"(ulimit -Hn, LimitNOFILE=, --ulimit nofile=), or take --clients {most}"
        )


def measure(scenario: Scenario, target: Target, load: Load, tell: Tell) -> Run:
    """Run a scenario once.

    Returns:
        The run without its `round`. Interrupted by Ctrl-C while messages are on their way it has what came until then,
        and `interrupted` is true.

    Raises:
        RelayError: the connection that publishes cannot be had, or the server ended.
        KeyboardInterrupt: Ctrl-C before anything was published.
    """
    meter = Meter(target.pid)
    meter.await_rest()
    with _swarm(scenario, target, load) as swarm:
        base = meter.read(memory=True)
        began = time.perf_counter()
        swarm.open(scenario.clients, seconds=OPEN_SECONDS)
        connect_seconds = time.perf_counter() - began
        connected = meter.read()
        tell(0.1)
        opened = swarm.counters()["opened"]
        idle = _rest(swarm, meter, scenario.rest)
        full = meter.read(memory=True)
        run = _identity(scenario, target)
        run |= _connects(swarm, opened / connect_seconds, base, connected, full, meter)
        run["idle_cpu_percent"] = idle
        tell(0.3 if scenario.rest else 0.15)
        if opened:
            run |= _messages(swarm, scenario, target, load, meter, tell)
        return run | _at_end(swarm)


@contextlib.contextmanager
def _swarm(scenario: Scenario, target: Target, load: Load) -> Iterator["Swarm"]:
    from relay._swarm import Swarm

    where = target.address
    loopback = where.family == socket.AF_INET and where.address[0].startswith("127.")
    swarm = Swarm(
        family=where.family,
        address=where.address,
        host=where.host.encode(),
        paths=load.paths(scenario.topics, where.prefix),
        clients=scenario.clients,
        stalled=scenario.stalled,
        streams=scenario.streams,
        origin=load.origin,
        headers=load.headers,
        sources=1 + scenario.clients // PORTS if loopback and scenario.clients > PORTS else 0,
        tls=where.tls,
        server_hostname=where.name,
    )
    try:
        yield swarm
    finally:
        swarm.close()


def _identity(scenario: Scenario, target: Target) -> Run:
    return {
        "server": target.name,
        "scenario": scenario.name,
        "clients": scenario.clients,
        "topics": scenario.topics,
        "size": scenario.size,
        "rate": scenario.rate,
        **dict.fromkeys(("published", "delivered"), 0),
        **dict.fromkeys(("lost", "cut_off", "duplicated", "reordered", "damaged")),
        **dict.fromkeys(("seconds", "frames_per_s", "bytes_per_s", "published_per_s"), 0.0),
        **dict.fromkeys(("cpu_us_per_frame", "user_us_per_frame")),
        **dict.fromkeys(("latency_us", "websocket_latency_us", "stream_latency_us")),
        "latency_histogram": [],
        "stalled_out": False,
        "interrupted": False,
        "broke_off": "",
    }


def _connects(swarm: "Swarm", rate: float, base: Usage, connected: Usage, full: Usage, meter: Meter) -> Run:
    opened = max(swarm.counters()["opened"], 1)
    local = meter.pid is not None
    return {
        "connects_per_s": rate,
        "handshake_us": percentiles(swarm.handshakes()),
        "handshake_cpu_us": connected.since(base) * 1e6 / opened if local else None,
        "kb_per_conn": _each(full.own - base.own, opened) if local else None,
        "base_mb": base.memory / (1 << 20) if local else None,
    }


def _each(memory: float, opened: int) -> float | None:
    """KB of each client; None for so few that the interpreter's own comings and goings are more."""
    return memory / 1024 / opened if opened >= MANY and memory >= 0 else None


def _rest(swarm: "Swarm", meter: Meter, seconds: float) -> float | None:
    """Let the clients be for a moment; with `seconds` for so long more, and the CPU of that in percent of one."""
    swarm.serve(REST_SECONDS)
    if not seconds:
        return None
    swarm.serve(1.0)  # what opening has left to do is done
    before = meter.read()
    swarm.serve(seconds)
    return meter.read().since(before) * 100 / seconds if meter.pid else None


def _messages(swarm: "Swarm", scenario: Scenario, target: Target, load: Load, meter: Meter, tell: Tell) -> Run:
    before = meter.read()
    swarm.reset()
    began = time.perf_counter()
    if target.publisher is None:
        interrupted = _watch(swarm, scenario.seconds, tell)
        run = {"seconds": time.perf_counter() - began, "delivered": swarm.counters()["other"]}
    else:
        with contextlib.closing(target.publisher()) as link:
            publisher = _publisher(swarm, scenario, target, load, link)
            interrupted = _publish(swarm, publisher, scenario, tell)
            publishing = max(time.perf_counter() - began, 1e-9)
            quiet = QUIET_SECONDS if target.pid else QUIET_REMOTE_SECONDS
            in_vain = quiet if not interrupted and not swarm.settle(quiet) else 0
        run = {"seconds": time.perf_counter() - began - in_vain, "published_per_s": publisher.published / publishing}
        run |= _published(swarm, publisher)
    after = meter.read()
    seconds, delivered = max(run["seconds"], 1e-9), run["delivered"]
    run |= {"frames_per_s": delivered / seconds, "bytes_per_s": swarm.counters()["bytes"] / seconds}
    if target.pid is not None and delivered:
        used = after.since(before)
        run["cpu_us_per_frame"] = used * 1e6 / delivered
        if used >= LEAST_USER:
            run["user_us_per_frame"] = (after.user - before.user) * 1e6 / delivered
    return run | {"interrupted": interrupted}


def _publisher(swarm: "Swarm", scenario: Scenario, target: Target, load: Load, link: socket.socket) -> "Publisher":
    from relay._swarm import Publisher

    return Publisher(
        swarm,
        fd=link.fileno(),
        names=load.channels(scenario.topics),
        size=scenario.size,
        messages=scenario.messages or ENDLESS,
        window=scenario.window,
        rate=scenario.rate,
        batch=scenario.batch,
        text=scenario.text,
        protocol=target.protocol,
        host=target.address.host.encode(),
    )


def _publish(swarm: "Swarm", publisher: "Publisher", scenario: Scenario, tell: Tell) -> bool:
    """Publish from a thread of its own while the clients are served in this one; whether Ctrl-C ended it early.

    It ends also when no client is left to publish to.
    """
    thread = threading.Thread(target=publisher.run, name="publisher")
    began = looked = time.perf_counter()
    thread.start()
    try:
        while not publisher.done:
            swarm.serve(SLICE)
            passed = time.perf_counter() - began
            if scenario.seconds and passed >= scenario.seconds:
                publisher.stop()
            if passed > looked - began + LOOK:
                looked = began + passed
                if not swarm.counters()["open"]:
                    publisher.stop()
            tell(_share(passed / scenario.seconds if scenario.seconds else publisher.published / scenario.messages))
        return False
    except KeyboardInterrupt:
        return True
    finally:
        publisher.stop()
        thread.join()


def _watch(swarm: "Swarm", seconds: float, tell: Tell) -> bool:
    """Only receive, for so long; whether Ctrl-C ended it early."""
    began = time.perf_counter()
    try:
        while (passed := time.perf_counter() - began) < seconds:
            swarm.serve(min(0.1, seconds - passed))
            tell(_share(passed / seconds))
    except KeyboardInterrupt:
        return True
    return False


def _share(done: float) -> float:
    return 0.3 + 0.7 * min(done, 1.0)


def _published(swarm: "Swarm", publisher: "Publisher") -> Run:
    counters, websockets, streams = swarm.counters(), swarm.latencies(), swarm.latencies(streams=True)
    histogram = together(websockets, streams)
    return {
        "published": publisher.published,
        "delivered": counters["delivered"],
        "lost": counters["lost"],
        "cut_off": counters["cut_off"],
        "duplicated": counters["duplicated"],
        "reordered": counters["reordered"],
        "damaged": counters["damaged"],
        "stalled_out": publisher.stalled,
        "broke_off": f"publishing ended early: {publisher.error}" if publisher.error else "",
        "latency_us": percentiles(histogram),
        "websocket_latency_us": percentiles(websockets),
        "stream_latency_us": percentiles(streams),
        "latency_histogram": [[round(upper, 3), count] for upper, count in histogram],
    }


def _at_end(swarm: "Swarm") -> Run:
    counters = swarm.counters()
    return {
        "opened": counters["opened"],
        "open_at_end": counters["open"],
        "refused": {str(status): count for status, count in sorted(counters["refused"].items())},
        "closed": {str(code): count for code, count in sorted(counters["closed"].items())},
        "undecided": counters["connecting"],
        "trouble": swarm.trouble,
    }


def together(*histograms: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Several histograms as one."""
    counts: Counter[float] = Counter()
    for histogram in histograms:
        counts.update(dict(histogram))
    return sorted(counts.items())


def percentiles(histogram: list[tuple[float, int]]) -> dict[str, float] | None:
    """Of (upper bound in µs, count), ascending; None where nothing was counted."""
    total = sum(count for _, count in histogram)
    if not total:
        return None
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    found: dict[str, float] = {}
    seen = 0
    for upper, count in histogram:
        seen += count
        for name, share in shares.items():
            if name not in found and seen >= share * total:
                found[name] = round(upper, 3)
    return found
