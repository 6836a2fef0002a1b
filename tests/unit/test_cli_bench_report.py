"""The HTML file of `relay bench`: it stands alone, says what was measured, and escapes what it is given."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from relay.cli import bench_charts, bench_report
from relay.errors import CoreMissing
from tests.unit.bench_session import a_run, a_session

ROOT = Path(__file__).parent.parent.parent


class Page(HTMLParser):
    """The text of a page, its tags, and whether they close as they should."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == ["html"]  # closed by nobody but the end

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag != "html":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


UNKNOWN = dict.fromkeys(("lost", "cut_off", "duplicated", "reordered", "damaged"))
MEASURED = (
    *("handshake_cpu_us", "cpu_us_per_frame", "user_us_per_frame", "kb_per_conn", "base_mb", "latency_us"),
    "handshake_us",
)


def page(session):
    """With its charts, which take half a second."""
    return bench_report.page(session, bench_charts.charts(session))


def words(session):
    """Without them."""
    return bench_report.page(session, [])


def cells(table):
    """Rows of the text of cells, a dict by the head's names each."""
    head, *rows = ([re.sub("<small>.*|<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)]
                   for row in re.findall(r"<tr.*?</tr>", table))  # fmt: skip
    return [dict(zip(head, row, strict=True)) for row in rows]


def summary(session):
    return cells(re.search(r"What was measured</h2>(.*?</table>)", words(session), re.S)[1])


def test_it_needs_no_network():
    text = page(a_session([a_run(), a_run(server="bun")]))
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "img", "iframe")
        assert attributes.get("href", attributes.get("xlink:href", "#")).startswith("#")
        assert not any("http" in value for name, value in attributes.items() if value and not name.startswith("xmlns"))
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_table_has_the_medians_of_the_rounds():
    rounds = [
        a_run(round=i, frames_per_s=rate, cpu_us_per_frame=cpu, lost=lost, duplicated=1)
        for i, (rate, cpu, lost) in enumerate([(1e6, 0.3, 0), (5e6, 0.1, 4), (2e6, 0.9, 1)])
    ]
    session = a_session([*rounds, a_run(server="bun", idle_cpu_percent=1.256)])
    assert summary(session) == [
        {
            "scenario": "hot", "clients": "1,000", "server": "relay", "frames": "2,000,000", "cpu": "0.300",
            "user": "0.100", "p50": "0.20", "p99": "0.40", "max": "0.6", "connects": "20,000", "connect": "1.0",
            "handshake": "27.0", "memory": "0.40", "base": "37.0", "rest": "-", "lost": "5", "wrong": "3",
        },
        {
            "scenario": "hot", "clients": "1,000", "server": "bun", "frames": "1,000,000", "cpu": "0.250",
            "user": "0.100", "p50": "0.20", "p99": "0.40", "max": "0.6", "connects": "20,000", "connect": "1.0",
            "handshake": "27.0", "memory": "0.40", "base": "37.0", "rest": "1.26", "lost": "0", "wrong": "0",
        },
    ]  # fmt: skip
    assert "Medians of 3 rounds." in words(session)


def test_it_says_what_was_measured_where_and_when():
    text = Page(words(a_session([a_run(), a_run(server="bun")]))).text
    for said in ("relay bench --peers bun", "2026-11-23T14:00:00Z", "Some CPU, 2 cores", "Title of bun", "release"):
        assert said in text
    assert "uvloop" not in text  # not installed
    assert "One round." in text


def test_each_chart_has_its_numbers_under_it():
    session = a_session([a_run(), a_run(server="bun", cpu_us_per_frame=0.431)])
    figures = re.findall(r"<figure .*?</figure>", page(session), re.S)
    assert len(figures) == len(bench_charts.charts(session))
    for figure in figures:
        assert figure.index("</svg>") < figure.index("<table>")
    assert "0.431 (0.100)" in figures[0]


def test_misses_skipped_peers_and_an_interrupt_are_said():
    trouble = {
        "misses": ["p99 latency: 50 ms asked for, 71 ms seen"],
        "skipped": [{"server": "nchan", "why": "not installed: apt-get install nginx"}],
        "interrupted": True,
    }
    text = Page(words(a_session([a_run()], **trouble))).text
    assert "p99 latency: 50 ms asked for, 71 ms seen" in text
    assert "Skipped: nchan: not installed: apt-get install nginx" in text
    assert "Interrupted" in text
    assert "Missed" not in Page(words(a_session([a_run()]))).text


@pytest.mark.parametrize(
    ("runs", "kind", "said"),
    [
        ([a_run(), a_run()], "good", "Of 6,000,000 messages delivered: lost, duplicated, reordered, damaged: 0."),
        (
            [a_run(), a_run(server="bun", lost=3), a_run(server="bun", scenario="x", lost=4, reordered=1)],
            "bad",
            "Of 9,000,000 messages delivered: 7 lost by bun (hot, x); 1 reordered by bun (x).",
        ),
        (
            [a_run(**UNKNOWN)],
            "open",
            "Lost, duplicated, reordered, damaged: unknown where the bench only watched, and did not publish itself.",
        ),
        ([a_run(), a_run(scenario="x", **UNKNOWN)], "good", "damaged: 0; unknown where the bench only watched."),
        ([], "open", "Nothing was measured: no run was completed."),
    ],
)  # fmt: skip
def test_the_verdict_is_a_line_at_the_top(runs, kind, said):
    text = words(a_session(runs))
    assert said in Page(text).text
    assert text.index(f'class="verdict {kind}"') < text.index("<dl>")


def test_a_missed_bound_is_bad_even_where_nothing_was_lost():
    assert 'class="verdict bad"' in words(a_session([a_run()], misses=["rate: 5 asked for, 4 seen"]))


def test_what_befell_the_connections_is_said():
    odd = a_run(refused={"503": 2}, closed={"1013": 1}, undecided=3, trouble="connect: reset", stalled_out=True)
    text = Page(words(a_session([odd]))).text
    for said in ("refused: 2 with 503, 3 undecided in time (connect: reset)", "closed: 1 with 1013", "ended early"):
        assert f"relay, hot, 1,000 clients: {said}" in text


def test_without_a_run_there_is_a_page_all_the_same():
    text = Page(page(a_session([], interrupted=True, servers={}, scenarios={}))).text
    assert "no run was completed" in text
    assert "Charts" not in text


def test_unknown_is_not_zero():
    unknown = UNKNOWN | dict.fromkeys(MEASURED)
    session = a_session([a_run(**unknown, latency_histogram=[])], mode="remote", url="ws://h:1")
    assert summary(session) == [
        {"scenario": "hot", "clients": "1,000", "server": "relay", "frames": "1,000,000", "connects": "20,000",
         "lost": "?", "wrong": "?"}
    ]  # fmt: skip
    session["machine"] |= dict.fromkeys(session["machine"])
    text = Page(words(session)).text
    assert "relay bench of ws://h:1" in text
    assert "Machine hereunknown, unknown cores, unknown GB" in text
    assert "None" not in text


@pytest.mark.parametrize("known", [(), *((name,) for name in MEASURED), MEASURED])
def test_any_part_of_the_data_makes_a_page(known):
    missing = dict.fromkeys(set(MEASURED) - set(known))
    runs = [a_run(server=server, **missing, latency_histogram=[[1.0, 0]]) for server in ("relay", "bun")]
    text = Page(page(a_session(runs))).text
    assert "Frames per second" in text
    assert "None" not in text


def hostile(value, evil):
    """The same shape with every text replaced, names too: but those that the format gives."""
    if isinstance(value, dict):
        return {key: hostile(one, evil) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one, evil) for one in value]
    return evil if isinstance(value, str) and value != "local" else value


def test_what_it_is_given_is_text():
    evil = """</svg><script>alert(1)</script>"'&amp;"""
    odd = a_run(refused={evil: 1}, closed={evil: 1}, lost=1)
    more = {"misses": ["a"], "skipped": [{"server": "b", "why": "c"}], "url": "d"}
    session = hostile(a_session([odd, a_run(round=1), a_run(clients=9)], **more), evil)
    session["servers"], session["versions"] = {evil: {"title": evil}}, {evil: evil}
    session["scenarios"] = {evil: session["scenarios"]["hot"]}
    text = page(session)
    assert "<script" not in text
    assert Page(text).text.count(evil) > 30
    for chart in bench_charts.charts(session):
        root = ET.fromstring(bench_report.picture(chart))
        assert evil in "".join(root.itertext())


def test_ids_are_not_used_twice():
    names = ("a b", "a-b", "a_b", "a-b-2")
    session = a_session([a_run(scenario=name, clients=n) for name in names for n in (1, 2)])
    drawn = bench_charts.charts(session)
    tags = Page(bench_report.page(session, drawn)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len({chart.name for chart in drawn}) == len(drawn) > 12


def test_what_is_referred_to_is_there():
    tags = Page(page(a_session([a_run(), a_run(clients=9)]))).tags
    ids = {attributes.get("id") for _, attributes in tags}
    referred = {attributes[name][1:] for _, attributes in tags for name in attributes if name.endswith("href")}
    referred |= {
        found
        for _, attributes in tags
        for value in attributes.values()
        for found in re.findall(r"url\(#(.*?)\)", value or "")
    }
    assert referred
    assert referred <= ids


def test_the_same_session_makes_the_same_files(tmp_path):
    """In another process too, which hashes differently."""
    session = a_session([a_run(server=server, clients=n) for server in ("relay", "bun") for n in (5, 9)])
    tmp_path.joinpath("session.json").write_text(json.dumps(session))
    code = (
        "import json, pathlib; from relay.cli import bench_report; here = pathlib.Path(); "
        "bench_report.write(json.loads(here.joinpath('session.json').read_text()), here / 'a.html', here / 'a')"
    )
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=60)
    bench_report.write(session, tmp_path / "b.html", tmp_path / "b")
    for path in [tmp_path / "a.html", *(tmp_path / "a").iterdir()]:
        twin = tmp_path / str(path.relative_to(tmp_path)).replace("a", "b", 1)
        assert path.read_bytes() == twin.read_bytes()


def test_files_are_written(tmp_path):
    report, folder = tmp_path / "bench.html", tmp_path / "new" / "charts"
    session = a_session([a_run(), a_run(server="bun")])
    written = bench_report.write(session, report=report, charts=folder)
    names = ("cpu", "throughput", "latency-hot", "memory", "handshake")
    assert written == [report, *(folder / f"{name}.svg" for name in names)]
    assert {*folder.iterdir(), report} == set(written)
    assert report.read_text().startswith("<!DOCTYPE html>")
    assert bench_report.write(session, report=None, charts=None) == []


def test_a_picture_stands_alone_in_light_and_dark():
    (drawn, *_) = bench_charts.charts(a_session([a_run()]))
    root = ET.fromstring(bench_report.picture(drawn))
    style = root.find("{http://www.w3.org/2000/svg}style").text
    assert "prefers-color-scheme:dark" in style
    assert drawn.title in [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    top, height = (float(root.get("viewBox").split()[i]) for i in (1, 3))
    assert root.get("height") == f"{height:g}pt"
    assert top < 0 < height + top == float(re.search('viewBox="0 0 .*? (.*?)"', drawn.svg)[1])
    assert set(re.findall(r"var\((--c[0-9a-f]+)", drawn.svg)) <= set(re.findall(r"(--c[0-9a-f]+):", style))


def test_without_matplotlib_it_names_the_line_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CoreMissing, match=r"pip install 'weppcloud-relay\[bench\]'"):
        bench_report.require()
