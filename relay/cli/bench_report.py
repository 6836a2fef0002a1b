"""From the JSON of `relay bench` to one HTML file that needs no network, and to SVG files for a README."""

import importlib.util
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from relay.cli import bench_charts
from relay.cli.bench_charts import INK, Chart
from relay.cli.bench_result import COLUMNS, UNMEASURED, Column, merged
from relay.errors import CoreMissing

INSTALL = "pip install 'weppcloud-relay[bench]'"
LEFT = ("scenario", "server")  # columns of names; numbers stand to the right
DESCRIBED = ("clients", "topics", "messages", "seconds", "window", "rate", "size", "text", "batch", "stalled", "rest")


def require() -> None:
    """Raise CoreMissing where charts cannot be drawn; to be asked before anything is measured for them."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CoreMissing(f"charts are drawn by matplotlib, which is not installed here: {INSTALL}")


def write(result: dict[str, Any], report: Path | None, folder: Path | None) -> None:
    """Draw the charts of a session and write what is asked for.

    Args:
        result: what `relay bench --json` writes.
        report: the HTML file, or None.
        folder: where each chart becomes NAME.svg, made if it is not there; or None.

    Raises:
        CoreMissing: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    require()
    drawn = bench_charts.charts(result)
    if report:
        report.write_text(page(result, drawn), encoding="utf-8")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in drawn:
            folder.joinpath(f"{chart.name}.svg").write_text(picture(chart), encoding="utf-8")


def page(result: dict[str, Any], drawn: list[Chart]) -> str:
    """The whole HTML document; light and dark, as the reader's system is set."""
    template = Template(files("relay.cli").joinpath("bench_report.html").read_text(encoding="utf-8"))
    most = max((run["rounds"] for run in merged(result["runs"])), default=0)
    return template.substitute(
        light=bench_charts.variables(dark=False),
        dark=bench_charts.variables(dark=True),
        **{name: _variable(pair) for name, pair in INK.items()},
        title="relay bench" + (f" of {escape(result['url'])}" if result["url"] else ""),
        when=f"{escape(result['date'])}, {result['seconds']:.0f} s in all",
        command=escape(result["command"]),
        verdict=_verdict(result),
        facts=_facts(result),
        notes=_notes(result),
        summary=_summary(result),
        rounds=f"Medians of {most} rounds." if most > 1 else "One round.",
        pictures=_pictures(drawn),
        scenarios=_scenarios(result),
    )


def picture(chart: Chart) -> str:
    """An SVG file that stands alone: with a ground of its own, so that it is readable on any page."""
    light, dark = (bench_charts.variables(dark) for dark in (False, True))
    style = (
        f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
        f"<title>{escape(chart.title)}</title>"
        f'<rect width="100%" height="100%" rx="6" style="fill:var({_variable(INK["ground"])})"/>'
    )
    tag, rest = chart.svg.split(">", 1)
    return f"{tag}>{style}{rest}"


# ---- parts of the page ----


def _variable(pair: tuple[str, str]) -> str:
    return f"--c{pair[0][1:]}"


def _verdict(result: dict[str, Any]) -> str:
    if not result["misses"]:
        return ""
    items = "".join(f"<li>{escape(miss)}</li>" for miss in result["misses"])
    return f'<div class="missed"><strong>Missed</strong><ul>{items}</ul></div>'


def _facts(result: dict[str, Any]) -> str:
    machine = result["machine"]
    servers = (
        f'<span class="dot" style="background:var({_variable(pair)})"></span>{escape(server)}: '
        f"{escape(result['servers'][server]['title'])}"
        for server, pair in bench_charts.colours(list(result["servers"])).items()
        if server in result["servers"]
    )
    facts = {
        "Machine": f"{escape(machine['cpu'])}, {machine['cores']} cores, {machine['memory_gb']} GB",
        "System": f"{escape(machine['os'])}, Linux {escape(machine['kernel'])}, Python {escape(machine['python'])}",
        "Versions": ", ".join(f"{escape(k)} {escape(str(v))}" for k, v in result["versions"].items() if v),
        "Servers": "<br>".join(servers),
    }
    return "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in facts.items() if said)


def _notes(result: dict[str, Any]) -> str:
    said = [f"Skipped: {escape(one['server'])}: {escape(one['why'])}" for one in result["skipped"]]
    said += ["Interrupted: what follows had been measured until then."] if result["interrupted"] else []
    return "".join(f"<p>{line}</p>" for line in said)


def _summary(result: dict[str, Any]) -> str:
    runs = merged(result["runs"])
    if not runs:
        return "<p>Nothing: no run was completed.</p>"
    cells = [[_cell(column, run) for column in COLUMNS] for run in runs]
    shown = [i for i in range(len(COLUMNS)) if any(row[i] != UNMEASURED for row in cells)]
    head = [f"{COLUMNS[i].name}<small>{COLUMNS[i].unit or '&nbsp;'}</small>" for i in shown]
    names = [i for i, at in enumerate(shown) if COLUMNS[at].name in LEFT]
    return _table(head, [[escape(row[i]) for i in shown] for row in cells], names)


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
        [escape(name), escape(scenario["about"]), *(escape(f"{scenario.get(key) or UNMEASURED}") for key in keys)]
        for name, scenario in found
    ]
    return _table(head, rows, names=[0], prose=1)


def _table(head: Iterable[str], rows: list[list[str]], names: list[int], prose: int = -1) -> str:
    """Cells are HTML already; `names` are the columns that stand to the left."""

    def kind(i: int) -> str:
        return ' class="name prose"' if i == prose else ' class="name"' if i in names else ""

    top = "".join(f"<th{kind(i)}>{cell}</th>" for i, cell in enumerate(head))
    lines = ("".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
