"""The log: what a line is, and that nobody has to read it."""

import json
import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from relay import logs


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        os.close(fd)


def say(lines, *texts):
    for text in texts:
        lines.emit(logging.makeLogRecord({"msg": text}))


def read_until(fd, text):
    data = b""
    while text not in data:
        data += os.read(fd, 65536)
    return data.decode().splitlines()


def test_a_log_line_is_one_json_object():
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        record = logging.LogRecord("relay.x", logging.ERROR, __file__, 1, "hé\n%s", ("there",), sys.exc_info())
    line = logs.JsonLine().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["msg"]) == ("error", "relay.x", "hé\nthere")
    assert "ValueError: broken" in found["error"]
    assert found["time"].endswith("Z")


def said(stderr):
    """What a program that logs in every way writes there."""
    program = [sys.executable, "-W", "default", "-c", EVERY_WAY]
    return subprocess.run(program, stderr=stderr, check=True, timeout=60).stderr


def test_all_that_is_said_is_json_where_nobody_looks_on():
    entries = [json.loads(line) for line in said(subprocess.PIPE).splitlines()]
    assert [(entry["level"], entry["logger"], entry["msg"].split("\n")[0]) for entry in entries] == [
        ("info", "relay", "one two"),
        ("error", "relay.x", "failed"),
        ("warning", "asyncio", "of a library"),
        ("warning", "py.warnings", "<string>:12: UserWarning: of Python"),
    ]
    assert entries[1]["error"].endswith("ValueError: broken\nin two lines")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"]) for entry in entries)


def test_lines_are_plain_on_a_terminal():
    ours, theirs = pty.openpty()
    said(theirs)
    first = os.read(ours, 65536).decode().splitlines()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ INFO    one two", first)
    for fd in (ours, theirs):
        os.close(fd)


EVERY_WAY = """
import logging, warnings
from relay import logs
with logs.to_stderr("INFO"):
    logging.getLogger("relay").info("one two")
    try:
        raise ValueError("broken\\nin two lines")
    except ValueError:
        logging.getLogger("relay.x").exception("failed")
    logging.getLogger("asyncio").info("of no interest")
    logging.getLogger("asyncio").warning("of a library")
    warnings.warn("of Python", stacklevel=1)
"""


def test_lines_come_in_order_and_what_waits_gets_out_at_the_end(pipe):
    lines = logs.Lines(pipe[1])
    say(lines, "one", "two\udcff", "three")
    lines.finish()
    assert os.read(pipe[0], 1000) == b"one\ntwo\\udcff\nthree\n"
    assert lines.dropped == 0


def test_what_nobody_reads_is_dropped_counted_and_told(pipe, monkeypatch):
    monkeypatch.setattr(logs, "WAITING", 10)
    lines = logs.Lines(pipe[1])
    say(lines, "x" * (1 << 20))  # more than a pipe holds: the thread hangs in it
    while lines._queue.qsize():
        pass
    say(lines, *map(str, range(15)))
    assert lines.dropped == 5
    said = read_until(pipe[0], b"\n9\n")
    assert said[1].startswith("5 lines of this log are missing")
    assert said[2:] == [str(number) for number in range(10)]
    lines.finish()


def test_the_end_waits_for_no_reader(pipe, monkeypatch):
    monkeypatch.setattr(logs, "LAST_LINES", 0.05)
    lines = logs.Lines(pipe[1])
    say(lines, "x" * (1 << 20))
    lines.finish()
    assert lines._thread.is_alive()
    read_until(pipe[0], b"\n")
    lines._thread.join(10)
    assert not lines._thread.is_alive()


def test_a_reader_that_is_gone_ends_nothing(pipe):
    read, write = os.pipe()
    lines = logs.Lines(write)
    os.close(read)
    say(lines, "a", "b")
    lines.finish()
    assert not lines._thread.is_alive()
    os.close(write)


def test_the_thread_of_the_log_hangs_and_the_program_ends_all_the_same():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 2)
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(read)


PROGRAM = """
import logging
from relay import logs
logs.LAST_LINES = 0.1
with logs.to_stderr("INFO"):
    for number in range(10_000):
        logging.getLogger("relay").info("x" * 100)
"""
