"""From the JSON of `relay bench` to one HTML file that needs no network, and to SVG files for a README."""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from itertools import chain, repeat
from pathlib import Path
from string import Template
from typing import Any

from relay.cli import bench_charts
from relay.cli.bench_charts import INK, Chart, Run
from relay.cli.bench_result import COLUMNS, JUDGED, UNMEASURED, Column, closings, merged, refusals
from relay.errors import CoreMissing

INSTALL = "pip install 'weppcloud-relay[bench]'"
LEFT = ("scenario", "server")  # columns of names; numbers stand to the right
UNKNOWN_WORD = "unknown"
WRONGS = ("lost", "cut_off", "duplicated", "reordered", "damaged")
TITLE_ROOM = 20  # points above a picture that stands alone, for its title
DESCRIBED = (
    *("clients", "topics", "messages", "seconds", "window", "rate", "size", "text", "batch"),
    *("stalled", "streams", "rest"),
)


def require() -> None:
    """Raise CoreMissing where charts cannot be drawn; to be asked before anything is measured for them."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CoreMissing(f"charts are drawn by matplotlib, which is not installed here: {INSTALL}")


def write(result: dict[str, Any], report: Path | None, charts: Path | None) -> list[Path]:
    """Draw the charts of a session and write what is asked for.

    Args:
        result: what `relay bench --json` writes.
        report: the HTML file, or None.
        charts: the directory where each chart becomes NAME.svg, made if it is not there; or None.

    Returns:
        The files written.

    Raises:
        CoreMissing: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    require()
    drawn = bench_charts.charts(result)
    texts = {report: page(result, drawn)} if report else {}
    if charts:
        charts.mkdir(parents=True, exist_ok=True)
        texts |= {charts / f"{chart.name}.svg": picture(chart) for chart in drawn}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def page(result: dict[str, Any], drawn: list[Chart]) -> str:
    """The whole HTML document; light and dark, as the reader's system is set."""
    template = Template(files("relay.cli").joinpath("bench_report.html").read_text(encoding="utf-8"))
    runs = merged(result["runs"])
    most = max((run["rounds"] for run in runs), default=0)
    return template.substitute(
        light=bench_charts.variables(dark=False),
        dark=bench_charts.variables(dark=True),
        **{name: _variable(pair) for name, pair in INK.items()},
        title="relay bench" + (f" of {escape(result['url'])}" if result["url"] else ""),
        when=f"{escape(str(result['date']))}, {result['seconds']:.0f} s in all",
        command=escape(result["command"]),
        verdict=_verdict(result, runs),
        facts=_facts(result),
        notes=_notes(result, runs),
        summary=_summary(runs),
        rounds=f"Medians of {most} rounds." if most > 1 else "One round." if most else "",
        pictures=_pictures(drawn),
        scenarios=_scenarios(result),
    )


def picture(chart: Chart) -> str:
    """An SVG file that stands alone: with its title, and a ground of its own to be readable on any page."""
    light, dark = (bench_charts.variables(dark) for dark in (False, True))
    style = f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    ground, ink, title = _variable(INK["ground"]), _variable(INK["ink"]), escape(chart.title)
    size = min(11.0, 480 / len(chart.title))  # in bold, two thirds of it are the width of a letter
    before = (
        f"<style>{style}</style><title>{title}</title>"
        f'<rect y="{-TITLE_ROOM}" width="100%" height="100%" rx="6" style="fill:var({ground})"/>'
        f'<text x="9" y="-3" style="font:bold {size:.1f}px {bench_charts.FAMILY};fill:var({ink})">{title}</text>'
    )
    tag, rest = chart.svg.split(">", 1)
    return f"{_taller(tag)}>{before}{rest}"


def _taller(tag: str) -> str:
    """The opening tag of a picture with room above it."""
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', tag).groups()  # type: ignore[union-attr]
    more = f"{float(height) + TITLE_ROOM:g}"
    tag = re.sub(r'viewBox="[^"]*"', f'viewBox="0 {-TITLE_ROOM} {width} {more}"', tag)
    return re.sub(r' height="[^"]*"', f' height="{more}pt"', tag)


# ---- parts of the page ----


def _variable(pair: tuple[str, str]) -> str:
    return f"--c{pair[0][1:]}"


def _verdict(result: dict[str, Any], runs: list[Run]) -> str:
    """What became of the messages in a line, and the bounds that were missed."""
    wrongs = list(_wrongs(runs))
    items = "".join(f"<li>{escape(miss)}</li>" for miss in result["misses"])
    missed = f"<strong>Missed</strong><ul>{items}</ul>" if items else ""
    kind = "bad" if missed or wrongs else "good" if any(run["lost"] is not None for run in runs) else "open"
    return f'<div class="verdict {kind}"><p>{escape(_messages(runs, wrongs))}</p>{missed}</div>'


def _messages(runs: list[Run], wrongs: list[str]) -> str:
    if not runs:
        return "Nothing was measured: no run was completed."
    counted = [run for run in runs if run["lost"] is not None]
    unknown = "unknown where the bench only watched"
    if not counted:
        return f"Lost, duplicated, reordered, damaged: {unknown}, and did not publish itself."
    found = "; ".join(wrongs) or "lost, duplicated, reordered, damaged: 0"
    rest = f"; {unknown}" if len(counted) < len(runs) else ""
    return f"Of {sum(run['delivered'] for run in counted):,} messages delivered: {found}{rest}."


def _wrongs(runs: list[Run]) -> Iterator[str]:
    """Each kind of wrong that a server did, with the scenarios it was seen in."""
    for server in dict.fromkeys(run["server"] for run in runs):
        for wrong in WRONGS:
            found = [run for run in runs if run["server"] == server and run[wrong]]
            if found:
                where = ", ".join(dict.fromkeys(run["scenario"] for run in found))
                yield f"{sum(run[wrong] for run in found):,} {wrong.replace('_', ' ')} by {server} ({where})"


def _facts(result: dict[str, Any]) -> str:
    machine = result["machine"]
    servers = (
        f'<span class="dot" style="background:var({_variable(pair)})"></span>{escape(server)}: '
        f"{escape(result['servers'][server]['title'])}"
        for server, pair in bench_charts.colours(list(result["servers"])).items()
        if server in result["servers"]
    )
    here = " here" if result["mode"] == "remote" else ""  # where the load came from; of the server nothing is known
    known = {key: escape(UNKNOWN_WORD if value is None else str(value)) for key, value in machine.items()}
    facts = {
        f"Machine{here}": f"{known['cpu']}, {known['cores']} cores, {known['memory_gb']} GB",
        "System": f"{known['os']}, Linux {known['kernel']}, Python {known['python']}",
        f"Versions{here}": ", ".join(f"{escape(k)} {escape(str(v))}" for k, v in result["versions"].items() if v),
        "Servers": "<br>".join(servers),
    }
    return "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in facts.items() if said)


def _notes(result: dict[str, Any], runs: list[Run]) -> str:
    said = ["Interrupted: what follows had been measured until then."] if result["interrupted"] else []
    said += [f"Skipped: {one['server']}: {one['why']}" for one in result["skipped"]]
    said += [
        f"{run['server']}, {run['scenario']}, {run['clients']:,} clients: {odd}" for run in runs for odd in _odd(run)
    ]
    return "".join(f"<p>{escape(line)}</p>" for line in said)


def _odd(run: Run) -> Iterator[str]:
    """What befell the connections of a run, and its end before its time."""
    if refused := refusals(run):
        yield f"refused: {refused}"
    if run["closed"]:
        yield f"closed: {closings(run)}"
    if run["stalled_out"]:
        yield "ended early, as for 10 s no message came back"


def _summary(runs: list[Run]) -> str:
    if not runs:
        return "<p>Nothing: no run was completed.</p>"
    cells = [[_cell(column, run) for column in COLUMNS] for run in runs]
    shown = [i for i in range(len(COLUMNS)) if any(row[i] != UNMEASURED for row in cells)]
    head = [f"{COLUMNS[i].name}<small>{COLUMNS[i].unit or '&nbsp;'}</small>" for i in shown]
    names = [i for i, at in enumerate(shown) if COLUMNS[at].name in LEFT]
    ours = [run["server"] == JUDGED for run in runs]
    return _table(head, [[escape(row[i]) for i in shown] for row in cells], names, ours=ours)


def _cell(column: Column, run: dict[str, Any]) -> str:
    value = column.value(run)
    if value is None:
        return UNMEASURED
    return value if isinstance(value, str) else f"{value:,.{column.digits}f}"


def _pictures(drawn: list[Chart]) -> str:
    if not drawn:
        return ""
    return f'<h2>Charts</h2><div class="charts">{"".join(map(_figure, drawn))}</div>'


def _figure(chart: Chart) -> str:
    table = _table(map(escape, chart.head), [list(map(escape, row)) for row in chart.rows], names=[0])
    svg = chart.svg.replace("<svg", f'<svg role="img" aria-label="{escape(chart.title)}"', 1)
    return (
        f'<figure id="{chart.name}"><h3>{escape(chart.title)}</h3><figcaption>{escape(chart.about)}</figcaption>'
        f'{svg}<div class="wide">{table}</div></figure>'
    )


def _scenarios(result: dict[str, Any]) -> str:
    found = result["scenarios"].items()
    keys = [key for key in DESCRIBED if any(scenario.get(key) for _, scenario in found)]
    head = ["scenario", "", *keys]
    rows = [
        [escape(name), escape(scenario["about"]), *(escape(_ran(result["runs"], name, scenario, key)) for key in keys)]
        for name, scenario in found
    ]
    return _table(head, rows, names=[0], prose=1)


def _ran(runs: list[Run], name: str, scenario: dict[str, Any], key: str) -> str:
    """A value of a scenario; where a sweep changed it, from the least to the most."""
    seen = sorted({run[key] for run in runs if run["scenario"] == name and key in ("clients", "topics")})
    if len(seen) > 1:
        return f"{seen[0]} to {seen[-1]}"
    return f"{(seen or [scenario.get(key)])[0] or UNMEASURED}"


def _table(
    head: Iterable[str], rows: list[list[str]], names: list[int], prose: int = -1, ours: Iterable[bool] = ()
) -> str:
    """Cells are HTML already; `names` are the columns that stand to the left, `ours` tells the rows to stand out."""

    def kind(i: int) -> str:
        return ' class="name prose"' if i == prose else ' class="name"' if i in names else ""

    top = "".join(f"<th{kind(i)}>{cell}</th>" for i, cell in enumerate(head))
    lines = ("".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row)) for row in rows)
    marks = (' class="ours"' if mark else "" for mark in chain(ours, repeat(False)))
    body = "".join(f"<tr{mark}>{line}</tr>" for line, mark in zip(lines, marks, strict=False))
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
