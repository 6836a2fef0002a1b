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
        *("cpu", "throughput", "latency-hot", "frames-by-clients-hot", "cpu-by-clients-hot", "memory", "handshake"),
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
