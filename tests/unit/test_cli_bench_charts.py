"""Charts of `relay bench`: which are drawn, with which numbers, and that they are SVG fit for a page."""

import re
import xml.etree.ElementTree as ET

import pytest

from relay.cli import bench_charts
from tests.unit.bench_session import a_run, a_session


def names(session):
    return [chart.name for chart in bench_charts.charts(session)]


def chart(session, name):
    return next(chart for chart in bench_charts.charts(session) if chart.name == name)


def test_a_session_with_a_peer_has_each_kind():
    session = a_session([a_run(server=server, clients=n) for n in (500, 2000) for server in ("relay", "bun")])
    assert names(session) == [
        *("cpu", "throughput", "frames-by-clients-hot", "cpu-by-clients-hot", "latency-hot", "memory", "handshake"),
    ]


def test_what_was_not_measured_is_not_drawn():
    unknown = dict.fromkeys(("cpu_us_per_frame", "user_us_per_frame", "kb_per_conn", "handshake_cpu_us", "latency_us"))
    watched = a_run(**unknown, published=0, lost=None, latency_histogram=[])
    assert names(a_session([watched])) == []
    assert names(a_session([])) == []


def test_one_bar_alone_is_no_chart_and_an_open_loop_has_no_throughput():
    assert names(a_session([a_run()])) == ["cpu", "latency-hot"]
    both = [a_run(), a_run(server="bun")]
    assert "throughput" in names(a_session(both))
    assert "throughput" not in names(a_session(both, rate=500))


def test_bars_are_medians_at_the_most_clients():
    rounds = [a_run(round=i, clients=2000, cpu_us_per_frame=cpu) for i, cpu in enumerate((1.0, 9.0, 2.0))]
    session = a_session([*rounds, a_run(clients=500, cpu_us_per_frame=77.0)])
    drawn = chart(session, "cpu")
    assert drawn.rows == [["hot", "2.00 (0.100)"]]
    assert "hot, 2,000 clients" in drawn.svg
    assert ">2.00<" in drawn.svg
    assert ">77.0<" not in drawn.svg


def test_user_space_is_never_more_than_all():
    """The two are counted by different clocks of the kernel."""
    session = a_session([a_run(cpu_us_per_frame=0.2, user_us_per_frame=0.3)])
    assert chart(session, "cpu").rows == [["hot", "0.200 (0.200)"]]


def test_user_space_that_was_not_measured_is_not_zero():
    session = a_session([a_run(cpu_us_per_frame=0.2, user_us_per_frame=None)])
    assert chart(session, "cpu").rows == [["hot", "0.200"]]


def test_a_line_has_its_server_beside_it_and_no_legend():
    session = a_session([a_run(server=server, clients=n) for n in (500, 2000) for server in ("relay", "bun")])
    for name in ("cpu-by-clients-hot", "latency-hot"):
        svg = chart(session, name).svg
        assert len(re.findall(r">\s*(relay|bun)\s*<", svg)) == 2
        assert "legend" not in svg


def test_names_beside_lines_do_not_stand_on_each_other():
    together = {"a": 0.5, "b": 0.5, "c": 0.51, "d": 0.9}
    moved = bench_charts._apart(together, 0.1)
    assert moved == pytest.approx({"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.9})
    crowded = bench_charts._apart(dict.fromkeys("abc", 1.0), 0.1)
    assert sorted(crowded.values()) == pytest.approx([0.8, 0.9, 1.0])


def test_the_scenario_with_a_pace_of_its_own_has_the_first_curve():
    session = a_session([a_run(), a_run(scenario="paced")])
    session["scenarios"]["paced"] = session["scenarios"]["hot"] | {"rate": 500}
    assert [name for name in names(session) if name.startswith("latency")] == ["latency-paced", "latency-hot"]


def test_growth_has_a_row_for_each_number_of_clients():
    session = a_session([a_run(clients=500, frames_per_s=4e5), a_run(clients=2000, frames_per_s=1.5e6)])
    drawn = chart(session, "frames-by-clients-hot")
    assert (drawn.head, drawn.rows) == (["clients", "relay"], [["500", "400,000"], ["2,000", "1,500,000"]])


def test_memory_is_shown_where_clients_rest():
    session = a_session([
        *(a_run(server=server, scenario="mixed", kb_per_conn=5.0) for server in ("relay", "bun")),
        *(a_run(server=server, scenario="idle", kb_per_conn=0.4, idle_cpu_percent=1.0) for server in ("relay", "bun")),
    ])  # fmt: skip
    assert chart(session, "memory").rows == [["idle", "0.400", "0.400"]]


def test_the_percentile_curve_adds_up_rounds():
    rounds = [a_run(round=0, latency_histogram=[[100, 90]]), a_run(round=1, latency_histogram=[[100, 0], [1000, 10]])]
    histogram = bench_charts._added([run["latency_histogram"] for run in rounds])
    nines, milliseconds = bench_charts._percentile_curve(histogram)
    assert milliseconds == [0.1, 0.1, 1.0]
    assert nines == pytest.approx([0, 1, 2])  # 90 of 100 within 0.1 ms; one of 100 is as far as it goes


def test_the_table_of_latencies_has_what_the_curve_has():
    """Not the medians of the rounds: a round that was late is in the picture."""
    rounds = [a_run(round=i, latency_histogram=[[100 * (1 + 9 * (i == 2)), 40]]) for i in range(3)]
    drawn = chart(a_session(rounds), "latency-hot")
    assert drawn.head == ["ms", "p50", "p90", "p99", "p99.9", "max"]
    assert drawn.rows == [["relay", "0.100", "1.00", "1.00", "1.00", "1.00"]]


def test_pictures_are_svg_of_their_own_in_both_themes():
    drawn = bench_charts.charts(a_session([a_run(), a_run(server="bun")]))
    ids = []
    for picture in drawn:
        root = ET.fromstring(picture.svg)
        ids += [element.get("id") for element in root.iter() if element.get("id")]
        assert "relay" in "".join(root.itertext())
        assert not re.search(r"(?<!,)#[0-9a-f]{6}", picture.svg), "a colour that no theme can change"
        used = set(re.findall(r"var\((--c[0-9a-f]+)", picture.svg))
        assert used
        for dark in (False, True):
            assert used <= set(re.findall(r"(--c[0-9a-f]+):", bench_charts.variables(dark)))
    assert len(ids) == len(set(ids))


def test_the_same_numbers_make_the_same_file():
    session = a_session([a_run()])
    assert chart(session, "cpu").svg == chart(session, "cpu").svg


def test_a_server_keeps_its_colour():
    few, many = bench_charts.colours(["relay", "bun"]), bench_charts.colours(["bun", "nchan", "relay", "yardstick"])
    assert few["relay"] == many["relay"]
    assert few["bun"] == many["bun"]
    assert len(set(many.values())) == 4


def test_names_are_text_and_not_formulas():
    session = a_session([a_run(scenario="a$b$<c>")])
    assert "a$b$&lt;c&gt;" in chart(session, "cpu").svg
    assert "latency-a-b-c-" in names(session)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0, "0"),
        (0.0514, "0.051"),
        (0.22, "0.220"),
        (6.94, "6.94"),
        (14.31, "14.3"),
        (1234567.8, "1,234,568"),
    ],
)
def test_numbers(value, said):
    assert bench_charts.number(value) == said
