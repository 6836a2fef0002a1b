"""The report on the rows of delivery.md, section 4: what was done, what was seen, what was to hold.

A row is `@pytest.mark.row("F6")`, wherever its test lives; what happens in it the fixture `told` is told. With
RELAY_TEST_REPORT=build/faults.md there is a page on it in the end, and beside it one in HTML.
"""

import html
import os
import platform
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
REPORT = os.environ.get("RELAY_TEST_REPORT")


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
    cases: int = 0  # of a test that tells nothing of each


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


_rows: dict[str, list[Row]] = {}  # by the test's id
_done: list[Row] = []  # of all processes, in the one that writes the report
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
        test = (item.nodeid.rpartition("/")[2].partition("::")[2] or item.name).removeprefix("test_")
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
    if report.when == "teardown":
        report.user_properties += [("row", asdict(row)) for row in _of(item)]
    return report


def pytest_runtest_logreport(report):
    if report.when == "teardown":  # with several processes (-n) the rows are made in the others
        _done.extend(Row(**value) for name, value in report.user_properties if name == "row")


def pytest_sessionfinish(session):
    rows = sorted(_together(_done), key=lambda row: (row.name[0], _number(row), row.test))
    if not REPORT or not rows or session.config.option.collectonly:
        return
    path = ROOT / REPORT
    path.parent.mkdir(exist_ok=True)
    path.write_text(markdown(rows))
    path.with_suffix(".html").write_text(page(rows))


def _together(rows):
    """The cases of a test that tells nothing of each are one line: held where all are, else the first that is not."""
    lines = {}
    for row in rows:
        if row.injected or row.bounds:
            lines[row.name, row.test] = row
            continue
        test = row.test.partition("[")[0]
        line = lines.setdefault((row.name, test), Row(row.name, test, verdict=row.verdict))
        line.cases += 1
        line.seconds += row.seconds
        line.observed += row.observed
        if line.verdict == "held" or row.verdict == "BROKEN":
            line.verdict = row.verdict
    return lines.values()


def _number(row):
    return int(re.sub(r"\D", "", row.name) or 0)


HEAD = ("row", "test", "injected", "observed", "bound", "verdict", "s")


def _cells(row):
    lists = ("; ".join(texts) for texts in (row.injected, row.observed, row.bounds))
    test = f"{row.test} ({row.cases} cases)" if row.cases > 1 else row.test
    return (row.name, test, *lists, row.verdict, f"{row.seconds:.0f}")


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
