"""The charts of `relay bench`, drawn by matplotlib as SVG: from the JSON of a session to pictures with their numbers.

Colours stand in the SVG as CSS variables with the light theme's value behind them, so that one picture serves light and
dark: whoever shows it says what the variables are. A server has the same colour in all of them.
"""

import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay.cli.bench_result import YARDSTICK, merged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = dict[str, Any]

WIDTH = 4.6  # inches; with a font of 9 points still to be read where the picture is 370 pixels wide
BAR, PANEL = 0.24, 0.62  # inches of height for each bar, and for the title and scale of a panel
FONT, FAMILY = "DejaVu Sans", "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
# Okabe and Ito's colours, told apart by the colour-blind too; the second value is for a dark ground.
INK = {
    "ink": ("#1f2328", "#e6e8eb"),
    "muted": ("#59636e", "#9aa4af"),
    "grid": ("#d9dee3", "#363d46"),
    "ground": ("#ffffff", "#14171a"),
}
OF_RELAY, OF_YARDSTICK = ("#0072b2", "#4aa8e8"), ("#6e7781", "#a3acb6")
OF_OTHERS = (
    *(("#d55e00", "#f08a3c"), ("#009e73", "#2fbf95"), ("#cc79a7", "#dd94bb"), ("#b58900", "#e6b422")),
    *(("#56b4e9", "#8fd0f5"), ("#7f3c8d", "#b583c4")),
)
LARGEST_NINES = 5.0  # the percentile curve ends at 99.999 %
PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max"}


@dataclass(frozen=True)
class Chart:
    """A picture, and the numbers in it as a table."""

    name: str  # fit for a file name
    title: str
    about: str  # what is to be seen, in a sentence or two
    svg: str
    head: list[str]
    rows: list[list[str]]


def colours(servers: list[str]) -> dict[str, tuple[str, str]]:
    """For each server its colour on a light and on a dark ground."""
    found, others = {"relay": OF_RELAY, YARDSTICK: OF_YARDSTICK}, 0
    for server in servers:
        if server not in found:
            found[server] = OF_OTHERS[others % len(OF_OTHERS)]
            others += 1
    return found


def variables(dark: bool) -> str:
    """The CSS variables of the pictures, for one ground."""
    pairs = [*INK.values(), OF_RELAY, OF_YARDSTICK, *OF_OTHERS]
    return "".join(f"{_variable(pair[0])}:{pair[dark]};" for pair in pairs)


def charts(result: dict[str, Any]) -> list[Chart]:
    """All charts for which the session of that JSON has numbers."""
    runs = merged(result["runs"])
    drawing = Drawing(result)
    largest = {run["scenario"]: max(r["clients"] for r in runs if r["scenario"] == run["scenario"]) for run in runs}
    at_largest = [run for run in runs if run["clients"] == largest[run["scenario"]]]
    drawn = [
        drawing.cpu(at_largest),
        drawing.throughput(at_largest),
        *(drawing.latency(result["runs"], scenario, clients) for scenario, clients in largest.items()),
        *drawing.by_clients(runs),
        drawing.memory(at_largest),
        drawing.handshake(at_largest),
    ]
    return [chart for chart in drawn if chart]


def number(value: float | None) -> str:
    """With three digits that count; thousands apart; `-` where it was not measured."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, min(3, 2 - math.floor(math.log10(abs(value)))))}f}"


class Drawing:
    """Draws for a set of servers, in their order and each in its colour."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.servers = list(result["servers"])
        self.colours = {server: pair[0] for server, pair in colours(self.servers).items()}
        self.open_loops = {name for name, scenario in result["scenarios"].items() if scenario["rate"]}

    # ---- servers beside each other ----

    def cpu(self, runs: list[Run]) -> Chart | None:
        """CPU for each frame, user space and kernel stacked."""
        panels = self._panels(runs, "cpu_us_per_frame")
        if not panels:
            return None
        parts = {}
        for run in (run for panel in panels.values() for run in panel):
            # Two accounts of the kernel, one of them in ticks of 10 ms: their difference can be a little below zero.
            user = min(run["user_us_per_frame"] or 0.0, run["cpu_us_per_frame"])
            parts[_key(run)] = (user, run["cpu_us_per_frame"] - user)
        return Chart(
            "cpu",
            "CPU for each frame",
            "What the server's processes took to deliver one message to one client, in the table with the part in user "
            "space: less is better. Each scenario has its own scale.",
            self._bars("cpu", panels, lambda run: parts[_key(run)], "µs per frame"),
            *self._beside(panels, lambda run: f"{number(sum(parts[_key(run)]))} ({number(parts[_key(run)][0])})", "µs"),
        )

    def throughput(self, runs: list[Run]) -> Chart | None:
        """Frames a second; of closed loops, as an open one is as fast as it was told to be."""
        closed = [run for run in runs if run["published"] and run["scenario"] not in self.open_loops]
        panels = self._panels(closed, "frames_per_s")
        return self._simple(
            *("throughput", "Frames a second", "Delivered to all clients together: more is better."),
            *(panels, "frames_per_s", "frames/s"),
        )

    def memory(self, runs: list[Run]) -> Chart | None:
        """Memory for each connection where most connections were open: with few it is mostly noise."""
        panels = self._panels(_of_most(runs), "kb_per_conn")
        return self._simple(
            *("memory", "Memory for each connection", "Growth of the server's own memory (PSS); not the kernel's."),
            *(panels, "kb_per_conn", "KB per connection"),
        )

    def handshake(self, runs: list[Run]) -> Chart | None:
        """CPU for each handshake, where most clients came."""
        panels = self._panels(_of_most(runs), "handshake_cpu_us")
        return self._simple(
            *("handshake", "CPU for each handshake", "From accept to the 101, all processes of the server."),
            *(panels, "handshake_cpu_us", "µs per handshake"),
        )

    def _panels(self, runs: list[Run], key: str) -> dict[str, list[Run]]:
        """The runs with that value by scenario."""
        panels: dict[str, list[Run]] = {}
        for run in runs:
            if run[key] is not None:
                panels.setdefault(_label(run), []).append(run)
        return panels

    def _simple(
        self, name: str, title: str, about: str, panels: dict[str, list[Run]], key: str, unit: str
    ) -> Chart | None:
        """Bars of one part; None where there would be one alone, which a table says as well."""
        if sum(map(len, panels.values())) < 2:
            return None
        svg = self._bars(name, panels, lambda run: (max(run[key], 0.0),), unit)
        return Chart(name, title, about, svg, *self._beside(panels, lambda run: number(run[key]), unit))

    def _beside(
        self, panels: dict[str, list[Run]], cell: Callable[[Run], str], unit: str
    ) -> tuple[list[str], list[list[str]]]:
        """Head and rows of a table: a line for each scenario, a column for each server."""
        cells = {_key(run): cell(run) for runs in panels.values() for run in runs}
        servers = [server for server in self.servers if any(key[1] == server for key in cells)]
        scenarios = dict.fromkeys(scenario for scenario, _ in cells)
        rows = [[scenario, *(cells.get((scenario, server), "-") for server in servers)] for scenario in scenarios]
        return [unit, *servers], rows

    def _bars(
        self, name: str, panels: dict[str, list[Run]], parts: Callable[[Run], tuple[float, ...]], unit: str
    ) -> str:
        """A panel for each scenario, a bar for each server; the first part in full colour, what follows paler."""
        heights = [PANEL + BAR * len(runs) for runs in panels.values()]
        stacked = any(len(parts(run)) > 1 for runs in panels.values() for run in runs)
        with _Canvas(name, sum(heights) + (0.3 if stacked else 0)) as canvas:
            every = canvas.figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
            for axes, (label, runs) in zip(every, panels.items(), strict=True):
                self._panel(axes, label, runs, parts)
            every[-1].set_xlabel(unit)
            if stacked:
                _key_of_parts(canvas.figure)
        return canvas.svg

    def _panel(self, axes: "Axes", label: str, runs: list[Run], parts: Callable[[Run], tuple[float, ...]]) -> None:
        axes.set_title(label, loc="left")
        for place, run in enumerate(runs):
            axes.barh(place, sum(parts(run)), 0.72, color=INK["ground"][0])  # no grid is to shine through what is pale
            end = 0.0
            for depth, part in enumerate(parts(run)):
                axes.barh(place, part, 0.72, end, color=self.colours[run["server"]], alpha=0.42 if depth else 1.0)
                end += part
            axes.annotate(number(end), (end, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(runs)), [run["server"] for run in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(0, 1.16 * max(sum(parts(run)) for run in runs) or 1)
        axes.xaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", labelcolor=INK["ink"][0])

    # ---- latency ----

    def latency(self, rounds: list[Run], scenario: str, clients: int) -> Chart | None:
        """The percentile curve of each server: all rounds together."""
        runs = [run for run in rounds if (run["scenario"], run["clients"]) == (scenario, clients)]
        curves = {
            server: histogram
            for server in self.servers
            if (histogram := _added([run["latency_histogram"] for run in runs if run["server"] == server]))
        }
        if not curves:
            return None
        name = f"latency-{re.sub(r'[^a-z0-9-]+', '-', scenario.lower())}"
        known = {run["server"]: run["latency_us"] for run in merged(runs) if run["latency_us"]}
        rows = [[server, *(number(known[server][key] / 1e3) for key in PERCENTILES)] for server in curves]
        return Chart(
            name,
            f"Latency: {scenario}, {clients:,} clients",
            "From publishing in Redis to the client: so many messages in a hundred came within the time on the left.",
            self._curves(name, curves),
            ["ms", *PERCENTILES.values()],
            rows,
        )

    def _curves(self, name: str, curves: dict[str, dict[float, int]]) -> str:
        with _Canvas(name, 3.0) as canvas:
            axes = canvas.figure.subplots()
            far = 0.0
            for server, histogram in curves.items():
                nines, milliseconds = _percentile_curve(histogram)
                far = max(far, nines[-1])
                axes.plot(nines, milliseconds, color=self.colours[server], label=server)
            shares = [share for share in (50, 90, 99, 99.9, 99.99, 99.999) if _nines(share / 100) <= far + 0.01]
            axes.set_xticks([_nines(share / 100) for share in shares], [f"{share:g}%" for share in shares])
            axes.set_xlim(0, max(far, 1))
            _log_axis(axes)
            axes.set_xlabel("of all messages")
            axes.set_ylabel("ms")
            axes.grid()
            _legend(canvas.figure, len(curves))
        return canvas.svg

    # ---- growth ----

    def by_clients(self, runs: list[Run]) -> Iterator[Chart]:
        """Throughput and CPU over the number of clients, for scenarios that ran with several."""
        kinds = (
            ("frames_per_s", "Frames a second", "frames/s", "How much is delivered, the more clients there are."),
            ("cpu_us_per_frame", "CPU for each frame", "µs per frame", "A level line: growth costs nothing extra."),
        )
        for scenario in dict.fromkeys(run["scenario"] for run in runs):
            own = [run for run in runs if run["scenario"] == scenario]
            for key, title, unit, about in kinds:
                known = [run for run in own if run[key] is not None]
                if len({run["clients"] for run in known}) > 1:
                    name = f"{key.partition('_')[0]}-by-clients-{re.sub(r'[^a-z0-9-]+', '-', scenario.lower())}"
                    yield self._growth(name, f"{title} by clients: {scenario}", about, known, key, unit)

    def _growth(self, name: str, title: str, about: str, runs: list[Run], key: str, unit: str) -> Chart:
        counts = sorted({run["clients"] for run in runs})
        lines = {
            server: {run["clients"]: run[key] for run in runs if run["server"] == server} for server in self.servers
        }
        lines = {server: line for server, line in lines.items() if line}
        with _Canvas(name, 2.9) as canvas:
            axes = canvas.figure.subplots()
            for server, line in lines.items():
                clients = sorted(line)
                colour = self.colours[server]
                axes.plot(clients, [line[n] for n in clients], color=colour, label=server, marker="o", markersize=4)
            axes.set_xlim(0, counts[-1] * 1.04)
            axes.set_ylim(0, 1.1 * max(value for line in lines.values() for value in line.values()) or 1)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: _tick(value))
            axes.set_xlabel("clients")
            axes.set_ylabel(unit)
            axes.grid()
            _legend(canvas.figure, len(lines))
        rows = [[f"{n:,}", *(number(line.get(n)) for line in lines.values())] for n in counts]
        return Chart(name, title, about, canvas.svg, ["clients", *lines], rows)


class _Canvas:
    """A figure for a `with` of `height` inches, and behind it the SVG of it; `name` makes its ids its own."""

    def __init__(self, name: str, height: float) -> None:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self.name = name
        self.style = mpl.rc_context(_style())
        self.style.__enter__()
        self.figure: Figure = Figure(figsize=(WIDTH, height), layout="constrained")
        self.svg = ""

    def __enter__(self) -> "_Canvas":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                self.svg = self._drawn()
        finally:
            self.style.__exit__(*error)

    def _drawn(self) -> str:
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        svg = file.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
        svg = svg.replace(f"'{FONT}'", FAMILY)
        # Several pictures share a page: ids of their own.
        svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", svg)
        return re.sub(r"#[0-9a-f]{6}\b", lambda match: _as_variable(match[0]), svg)


def _style() -> dict[Any, Any]:  # of names that matplotlib types as literals
    ink, muted, grid = (INK[name][0] for name in ("ink", "muted", "grid"))
    return {
        **{f"figure.constrained_layout.{side}_pad": 0.09 for side in "wh"},  # inches to the edge
        "svg.fonttype": "none",  # text stays text: to be searched, and in the reader's font
        "svg.hashsalt": "relay",  # the same numbers make the same file
        "savefig.transparent": True,
        "text.parse_math": False,  # a $ in the name of a scenario is a $
        "font.family": FONT,
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.titlesize": 9,
        "axes.titlecolor": ink,
        "axes.titleweight": "bold",
        "axes.edgecolor": grid,
        "axes.axisbelow": True,
        **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
        "grid.color": grid,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.8,
        **{f"{axis}tick.{key}": value for axis in "xy" for key, value in (("color", grid), ("labelcolor", muted))},
        **{f"{axis}tick.{part}.size": 0 for axis in "xy" for part in ("major", "minor")},
        "legend.frameon": False,
    }


def _variable(colour: str) -> str:
    return f"--c{colour[1:]}"


def _as_variable(colour: str) -> str:
    return f"var({_variable(colour)},{colour})"


def _key_of_parts(figure: "Figure") -> None:
    from matplotlib.patches import Patch

    muted = INK["muted"][0]
    parts = [Patch(color=muted, label="user space"), Patch(color=muted, alpha=0.42, label="kernel")]
    figure.legend(handles=parts, loc="outside upper left", ncols=2, handlelength=1.0, handleheight=0.8)


def _legend(figure: "Figure", lines: int) -> None:
    if lines > 1:
        figure.legend(loc="outside upper left", ncols=lines if lines < 5 else 3, handlelength=1.4)


def _log_axis(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _of_most(runs: list[Run]) -> list[Run]:
    """Those of the scenario with most clients, and among equals of one that lets them rest."""
    most = max(runs, key=lambda run: (run["clients"], run["idle_cpu_percent"] is not None), default=None)
    return [run for run in runs if most and run["scenario"] == most["scenario"]]


def _key(run: Run) -> tuple[str, str]:
    return run["scenario"], run["server"]


def _label(run: Run) -> str:
    return f"{run['scenario']}, {run['clients']:,} clients"


def _tick(value: float) -> str:
    """1500000 -> 1.5M, 20000 -> 20k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _added(histograms: list[list[list[float]]]) -> dict[float, int]:
    """Histograms of (upper bound, count) into one, ascending."""
    together: dict[float, int] = {}
    for upper, count in (bucket for histogram in histograms for bucket in histogram):
        together[upper] = together.get(upper, 0) + int(count)
    return dict(sorted(together.items()))


def _percentile_curve(histogram: dict[float, int]) -> tuple[list[float], list[float]]:
    """The number of nines and the milliseconds of each bucket; one message of all is as far right as it goes."""
    total, seen = sum(histogram.values()), 0
    furthest = min(math.log10(max(total, 10)), LARGEST_NINES)
    nines, milliseconds = [0.0], [next(iter(histogram)) / 1e3]
    for upper, count in histogram.items():
        seen += count
        nines.append(min(_nines(seen / total), furthest))
        milliseconds.append(upper / 1e3)
        if nines[-1] >= furthest:
            break
    return nines, milliseconds


def _nines(share: float) -> float:
    """0.9 -> 1, 0.99 -> 2: what makes room for the slowest."""
    return -math.log10(max(1.0 - share, 1e-12))
