"""The charts of `relay bench`, drawn by matplotlib as SVG: from the JSON of a session to pictures with their numbers.

Colours stand in the SVG as CSS variables with the light theme's value behind them, so that one picture serves light and
dark: whoever shows it says what the variables are. A server has the same colour in all of them.
"""

import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from relay.cli.bench_result import JUDGED, YARDSTICK, merged

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
# The relay is what one looks for: the others are thinner and paler.
STRONG: dict[str, Any] = {"linewidth": 2.6, "zorder": 4}
CALM: dict[str, Any] = {"linewidth": 1.5, "zorder": 3}
PART = {True: (1.0, 0.5), False: (0.75, 0.32)}  # opacity of a bar's first part and of its second, for the relay or not
LABEL_GAP = 0.085  # of the height of a chart: a line of text, for labels that stand above each other
LARGEST_NINES = 5.0  # the percentile curve ends at 99.999 %
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


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
        *drawing.by_clients(runs),
        *drawing.latencies(result["runs"], largest),
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
        self.queues = {name for name, scenario in result["scenarios"].items() if scenario["window"] > 1}
        self.names: set[str] = set()  # of the pictures; "a b" and "a-b" are two scenarios

    # ---- servers beside each other ----

    def cpu(self, runs: list[Run]) -> Chart | None:
        """CPU for each frame, user space and kernel stacked."""
        panels = self._panels(runs, "cpu_us_per_frame")
        if not panels:
            return None
        return Chart(
            "cpu",
            "CPU per frame, lower is better",
            "What the server's processes took to deliver one message to one client; in the table with the part in user "
            "space in brackets. Each scenario has its own scale.",
            self._bars("cpu", panels, _parts, "µs per frame"),
            *self._beside(panels, _with_part, "µs"),
        )

    def throughput(self, runs: list[Run]) -> Chart | None:
        """Frames a second; of closed loops, as an open one is as fast as it was told to be."""
        closed = [run for run in runs if run["published"] and run["scenario"] not in self.open_loops]
        panels = self._panels(closed, "frames_per_s")
        return self._simple(
            *("throughput", "Frames per second, higher is better", "Delivered to all clients together."),
            *(panels, "frames_per_s", "frames/s"),
        )

    def memory(self, runs: list[Run]) -> Chart | None:
        """Memory for each connection where most connections were open: with few it is mostly noise."""
        panels = self._panels(_of_most(runs), "kb_per_conn")
        return self._simple(
            *("memory", "Memory per connection, lower is better", "The server's own memory; not the kernel's."),
            *(panels, "kb_per_conn", "KB per connection"),
        )

    def handshake(self, runs: list[Run]) -> Chart | None:
        """CPU for each handshake, where most clients came."""
        panels = self._panels(_of_most(runs), "handshake_cpu_us")
        return self._simple(
            *("handshake", "CPU per handshake, lower is better", "From accept to the 101, in the server's processes."),
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
            end, ours = 0.0, run["server"] == JUDGED
            for part, opacity in zip(parts(run), PART[ours], strict=False):
                axes.barh(place, part, 0.72, end, color=self.colours[run["server"]], alpha=opacity)
                end += part
            _beside(axes, number(end), (end, place), run["server"], INK["ink"][0])
        axes.set_yticks(range(len(runs)), [run["server"] for run in runs])
        for text in axes.get_yticklabels():
            text.set_fontweight(_weight(text.get_text()))
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(0, 1.16 * max(sum(parts(run)) for run in runs) or 1)
        axes.xaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", labelcolor=INK["ink"][0])

    # ---- latency ----

    def latencies(self, rounds: list[Run], largest: dict[str, int]) -> Iterator[Chart | None]:
        """A chart for each scenario; first those that say most, where the pace is given from outside."""
        for scenario in sorted(largest, key=lambda name: name not in self.open_loops):
            yield self._latency(rounds, scenario, largest[scenario])

    def _latency(self, rounds: list[Run], scenario: str, clients: int) -> Chart | None:
        """The percentile curve of each server: all rounds together."""
        runs = [run for run in rounds if (run["scenario"], run["clients"]) == (scenario, clients)]
        curves = {
            server: histogram
            for server in self.servers
            if (histogram := _added([run["latency_histogram"] for run in runs if run["server"] == server]))
        }
        if not curves:
            return None
        name = self._name("latency", scenario)
        rows = [
            [server, *(number(_within(curve, share)) for share in PERCENTILES.values())]
            for server, curve in curves.items()
        ]
        about = "From publishing to the client; this share of the messages took at most so long, in all rounds."
        if scenario in self.queues:
            about += " As fast as it goes: each waits for those before it."
        return Chart(
            name,
            f"Latency ({scenario}, {clients:,} clients), lower is better",
            about,
            self._curves(name, curves),
            ["ms", *PERCENTILES],
            rows,
        )

    def _curves(self, name: str, curves: dict[str, dict[float, int]]) -> str:
        lines = {server: _percentile_curve(histogram) for server, histogram in curves.items()}
        far = max(max(nines) for nines, _ in lines.values())
        with _Canvas(name, 2.9) as canvas:
            axes = canvas.figure.subplots()
            shares = [share for share in (50, 90, 99, 99.9, 99.99, 99.999) if _nines(share / 100) <= far + 0.01]
            axes.set_xticks([_nines(share / 100) for share in shares], [f"{share:g}%" for share in shares])
            axes.set_xlim(0, max(far, 1))
            # The few that were quickest would take half of the axis from what matters.
            low, high = (f(_within(curve, at) for curve in curves.values()) for f, at in ((min, 0.1), (max, 1.0)))
            _log_axis(axes, 0.8 * low, 1.25 * high)
            self._lines(axes, lines)
            axes.set_xlabel("of all messages")
            axes.set_ylabel("ms")
        return canvas.svg

    def _lines(self, axes: "Axes", lines: dict[str, tuple[list[float], list[float]]], **style: Any) -> None:
        """A line for each server in its colour, its name at its right end, moved up or down where two would collide."""
        for server, (along, up) in lines.items():
            strength = STRONG if server == JUDGED else CALM
            axes.plot(along, up, color=self.colours[server], **strength, **style)
        axes.grid()
        to_share = axes.transData + axes.transAxes.inverted()
        ends = {server: to_share.transform((along[-1], up[-1]))[1] for server, (along, up) in lines.items()}
        for server, height in _apart(ends, LABEL_GAP).items():
            _beside(axes, server, (1, height), server, self.colours[server], xycoords="axes fraction")

    def _name(self, kind: str, scenario: str) -> str:
        """Fit for a file name and an id, and no other picture's."""
        plain = f"{kind}-{re.sub(r'[^a-z0-9-]+', '-', scenario.lower())}"
        names = (plain, *(f"{plain}-{number}" for number in range(2, len(self.names) + 3)))
        name = next(name for name in names if name not in self.names)
        self.names.add(name)
        return name

    # ---- growth ----

    def by_clients(self, runs: list[Run]) -> Iterator[Chart]:
        """Throughput and CPU over the number of clients, for scenarios that ran with several."""
        kinds = (
            ("frames_per_s", "Frames per second", "higher", "frames/s", "Delivered to all clients together."),
            ("cpu_us_per_frame", "CPU per frame", "lower", "µs per frame", "Level: growth costs nothing."),
        )
        for scenario in dict.fromkeys(run["scenario"] for run in runs):
            own = [run for run in runs if run["scenario"] == scenario]
            for key, what, better, unit, about in kinds:
                known = [run for run in own if run[key] is not None]
                if len({run["clients"] for run in known}) > 1:
                    name = self._name(f"{key.partition('_')[0]}-by-clients", scenario)
                    title = f"{what} by clients ({scenario}), {better} is better"
                    yield self._growth(name, title, about, known, key, unit)

    def _growth(self, name: str, title: str, about: str, runs: list[Run], key: str, unit: str) -> Chart:
        counts = sorted({run["clients"] for run in runs})
        lines = {
            server: {run["clients"]: run[key] for run in runs if run["server"] == server} for server in self.servers
        }
        lines = {server: line for server, line in lines.items() if line}
        curves = {server: (sorted(line), [line[n] for n in sorted(line)]) for server, line in lines.items()}
        with _Canvas(name, 2.7) as canvas:
            axes = canvas.figure.subplots()
            axes.set_xlim(0, counts[-1] * 1.02)
            axes.set_ylim(0, 1.1 * max(value for line in lines.values() for value in line.values()) or 1)
            self._lines(axes, curves, marker="o", markersize=4)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: _tick(value))
            axes.set_xlabel(_along(runs))
            axes.set_ylabel(unit)
        rows = [[f"{n:,}", *(number(line.get(n)) for line in lines.values())] for n in counts]
        return Chart(name, title, about, canvas.svg, ["clients", *lines], rows)


def _along(runs: list[Run]) -> str:
    """What an axis of clients says: how many of them each message goes to."""
    if {run["topics"] for run in runs} == {1}:
        return "clients, all of one channel"
    shares = sorted({round(run["clients"] / run["topics"]) for run in runs})
    return (
        f"clients, {shares[0]} to a channel"
        if len(shares) == 1
        else f"clients, {shares[0]} to {shares[-1]} to a channel"
    )


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
    parts = [Patch(color=muted, label="user space"), Patch(color=muted, alpha=PART[False][1], label="kernel")]
    figure.legend(handles=parts, loc="outside upper left", ncols=2, handlelength=1.0, handleheight=0.8)


def _log_axis(axes: "Axes", low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _of_most(runs: list[Run]) -> list[Run]:
    """Those of the scenario with most clients, and among equals of one that lets them rest."""
    most = max(runs, key=lambda run: (run["clients"], run["idle_cpu_percent"] is not None), default=None)
    return [run for run in runs if most and run["scenario"] == most["scenario"]]


def _parts(run: Run) -> tuple[float, ...]:
    """CPU in user space and in the kernel; or in both where they were not told apart."""
    if run["user_us_per_frame"] is None:
        return (run["cpu_us_per_frame"],)
    # Two accounts of the kernel, one of them in ticks of 10 ms: their difference can be a little below zero.
    user = min(run["user_us_per_frame"], run["cpu_us_per_frame"])
    return user, run["cpu_us_per_frame"] - user


def _with_part(run: Run) -> str:
    user, *kernel = _parts(run)
    return f"{number(run['cpu_us_per_frame'])} ({number(user)})" if kernel else number(user)


def _beside(axes: "Axes", text: str, at: tuple[float, float], server: str, colour: str, xycoords: str = "data") -> None:
    """Text to the right of a point."""
    to_the_right: Any = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, at, xycoords=xycoords, **to_the_right, color=colour, weight=_weight(server))


def _weight(server: str) -> str:
    return "bold" if server == JUDGED else "normal"


def _apart(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Heights moved as little as it takes, from the lowest upwards, to be `gap` apart; then all back below 1."""
    moved: dict[str, float] = {}
    floor = -math.inf
    for name in sorted(heights, key=lambda name: heights[name]):
        floor = moved[name] = max(heights[name], floor + gap)
    ceiling = math.inf
    for name in reversed(moved):
        ceiling = moved[name] = min(moved[name], max(1.0, heights[name]), ceiling - gap)
    return moved


def _within(histogram: dict[float, int], share: float) -> float:
    """The milliseconds within which that share of all messages came."""
    wanted = share * sum(histogram.values())
    up_to = zip(histogram, accumulate(histogram.values()), strict=True)
    return next(upper for upper, seen in up_to if seen >= wanted) / 1e3


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
    for upper, count in (bucket for histogram in histograms for bucket in histogram if bucket[1]):
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
