"""What the rows share: the judge, the proxy, relays without a defence, namespaces; and the report of it all.

A row of delivery.md, section 4 or Security, is `@pytest.mark.row("F6")`; what happened in it the fixture `told` is
told. With RELAY_TEST_REPORT=build/faults.md there is a page on it in the end, and beside it one in HTML.
"""

import contextlib
import html
import os
import platform
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import ROOT, Relay
from tests.faults.netns import Namespace, RedisThere
from tests.faults.proxy import Proxy
from tests.faults.recorder import Recorder

REPORT = os.environ.get("RELAY_TEST_REPORT")


# ---- fixtures ----


@pytest.fixture
def recorder():
    """A factory of judges, with no clients yet: `recorder()`. One that is asked for no verdict has seen nothing."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Recorder(**options))


@pytest.fixture
def proxy():
    """A factory of proxies to a Redis: `proxy(redis_server)`. Asked for before `relay`, it outlives the relays."""
    with contextlib.ExitStack() as stack:
        yield lambda server, **options: stack.enter_context(Proxy(server.port, **options))


@pytest.fixture
def namespace():
    """A factory of network namespaces with a way to them: `namespace()`."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Namespace())


@pytest.fixture
def redis_there(namespace, tmp_path):
    """A Redis in a namespace of its own, running; `redis_there.namespace` is where the cable is cut."""
    server = RedisThere(tmp_path, namespace())
    yield server.start()
    server.stop()


@pytest.fixture
def worker():
    """A factory of connections to a Redis of the tests, as workers have them."""
    with contextlib.ExitStack() as stack:

        def connect(server, **options):
            # No command is sent twice: what was published twice the judge would rightly call a duplicate.
            where = {"unix_socket_path": server.unix} if hasattr(server, "unix") else {"port": server.port}
            connection = redis.Redis(**where, retry=Retry(NoBackoff(), 0), **options)
            return stack.enter_context(contextlib.closing(connection))

        yield connect


# ---- what a relay takes ----


class Footprint:
    """Memory and descriptors of a process, from /proc."""

    def __init__(self, process: Relay):
        self.pid = process.process.pid

    @property
    def memory(self):
        """Bytes of its own in memory."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) << 10

    @property
    def files(self):
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    @property
    def cpu(self):
        """Seconds of processor time until now."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def footprint():
    return Footprint


# ---- the report ----


@dataclass
class Row:
    """A test of a row: what it said of itself, and what became of it."""

    name: str
    test: str
    injected: list[str] = field(default_factory=list)
    observed: list[str] = field(default_factory=list)
    bounds: list[str] = field(default_factory=list)
    verdict: str = "not run"
    seconds: float = 0.0


class Told:
    """What the report says of this test: `injected("kill -9")`, `observed("back in 1.2 s")`, `bound("2 s")`."""

    def __init__(self, rows):
        self._rows = rows

    def injected(self, text):
        for row in self._rows:
            row.injected.append(text)

    def observed(self, text):
        for row in self._rows:
            row.observed.append(text)

    def bound(self, text):
        for row in self._rows:
            row.bounds.append(text)


_rows: dict[str, list[Row]] = defaultdict(list)  # by the test's id
_started = time.time()


def pytest_configure(config):
    config.addinivalue_line("markers", "soak: an hour, by make soak alone")
    config.addinivalue_line("markers", "row(*names): the rows of delivery.md that this test is about")


@pytest.fixture
def told(request):
    """What happened, for the report."""
    return Told(_of(request.node))


def _of(item):
    if item.nodeid not in _rows:
        names = [name for mark in item.iter_markers("row") for name in mark.args]
        test = item.nodeid.rpartition("/")[2].partition("::")[2] or item.name
        _rows[item.nodeid] = [Row(name, test) for name in names]
    return _rows[item.nodeid]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    for row in _of(item):
        row.seconds += report.duration
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            row.verdict = reason.removeprefix("Skipped: ")
        elif report.failed:
            row.verdict = "BROKEN"
            row.observed.append(str(call.excinfo.value).partition("\n")[0][:200] if call.excinfo else report.when)
        elif row.verdict == "not run" and report.when == "call":
            row.verdict = "held"
    return report


def pytest_sessionfinish(session):
    rows = sorted(
        (row for rows in _rows.values() for row in rows), key=lambda row: (row.name[0], _number(row), row.test)
    )
    if not REPORT or not rows or session.config.option.collectonly:
        return
    path = ROOT / REPORT
    path.parent.mkdir(exist_ok=True)
    path.write_text(markdown(rows))
    path.with_suffix(".html").write_text(page(rows))


def _number(row):
    return int(re.sub(r"\D", "", row.name) or 0)


HEAD = ("row", "test", "injected", "observed", "bound", "verdict", "s")


def _cells(row):
    lists = ("; ".join(texts) for texts in (row.injected, row.observed, row.bounds))
    return (row.name, row.test, *lists, row.verdict, f"{row.seconds:.0f}")


def _summary(rows):
    broken = sum(row.verdict == "BROKEN" for row in rows)
    held = sum(row.verdict == "held" for row in rows)
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(_started))
    return (
        f"{when} UTC, Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{time.time() - _started:.0f} s: {held} held, {broken} broken, {len(rows) - held - broken} not run."
    )


def markdown(rows):
    """The report, one line for each test of a row."""
    lines = ["# Faults: what was done, and what held", "", _summary(rows), ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += [
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in _cells(row)) + " |" for row in rows
    ]
    return "\n".join([*lines, ""])


def page(rows):
    """The same for a browser."""
    head = "".join(f"<th>{name}" for name in HEAD)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in _cells(row)) for row in rows)
    style = "body{font:14px system-ui}td,th{text-align:left;vertical-align:top;padding:.3em;border-top:1px solid #ccc}"
    return (
        f"<!doctype html><meta charset=utf-8><title>Faults</title><style>{style}</style><h1>Faults</h1>"
        f"<p>{html.escape(_summary(rows))}<table><tr>{head}{body}</table>\n"
    )
