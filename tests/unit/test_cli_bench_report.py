"""The HTML file of `relay bench`: it stands alone, says what was measured, and escapes what it is given."""

import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from relay.cli import bench_charts, bench_report
from relay.errors import CoreMissing
from tests.unit.bench_session import a_run, a_session


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


def page(session):
    return bench_report.page(session, bench_charts.charts(session))


def test_it_needs_no_network():
    text = page(a_session([a_run(), a_run(server="bun")]))
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "img", "iframe")
        assert attributes.get("href", attributes.get("xlink:href", "#")).startswith("#")
    assert not re.search(r"url\((?!#)|@import", text)


def test_it_says_what_was_measured_where_and_when():
    text = Page(page(a_session([a_run(), a_run(server="bun")]))).text
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
    text = Page(page(a_session([a_run()], **trouble))).text
    assert "p99 latency: 50 ms asked for, 71 ms seen" in text
    assert "Skipped: nchan: not installed: apt-get install nginx" in text
    assert "Interrupted" in text
    assert "Missed" not in Page(page(a_session([a_run()]))).text


def test_without_a_run_there_is_a_page_all_the_same():
    text = Page(page(a_session([], interrupted=True))).text
    assert "no run was completed" in text
    assert "Charts" not in text


def test_unknown_is_not_zero():
    unknown = dict.fromkeys(("lost", "duplicated", "reordered", "damaged", "latency_us"))
    session = a_session([a_run(**unknown, latency_histogram=[])], mode="remote", url="ws://h:1")
    assert "<td>?</td>" in page(session)
    assert "relay bench of ws://h:1" in page(session)


def test_what_it_is_given_is_text():
    evil = "<script>alert(1)</script>"
    session = a_session(
        [a_run(scenario=evil), a_run(server=evil, scenario=evil)],
        command=evil,
        misses=[evil],
        skipped=[{"server": evil, "why": evil}],
        url=evil,
    )
    assert "<script" not in page(session)
    assert Page(page(session)).text.count("alert(1)") > 8


def test_files_are_written(tmp_path):
    report, folder = tmp_path / "bench.html", tmp_path / "new" / "charts"
    bench_report.write(a_session([a_run(), a_run(server="bun")]), report, folder)
    assert report.read_text().startswith("<!DOCTYPE html>")
    assert {file.name for file in folder.iterdir()} == {
        *("cpu.svg", "throughput.svg", "latency-hot.svg", "memory.svg", "handshake.svg"),
    }


def test_a_picture_stands_alone_in_light_and_dark():
    (drawn, *_) = bench_charts.charts(a_session([a_run()]))
    root = ET.fromstring(bench_report.picture(drawn))
    style = root.find("{http://www.w3.org/2000/svg}style").text
    assert "prefers-color-scheme:dark" in style
    assert set(re.findall(r"var\((--c[0-9a-f]+)", drawn.svg)) <= set(re.findall(r"(--c[0-9a-f]+):", style))


def test_without_matplotlib_it_names_the_line_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CoreMissing, match=r"pip install 'weppcloud-relay\[bench\]'"):
        bench_report.require()
