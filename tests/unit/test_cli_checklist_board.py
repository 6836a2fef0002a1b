"""The drawing of `relay checklist --watch`, from frames and a clock."""

import re
import time

import pytest

from relay.checklist import snapshot
from relay.cli import checklist_board
from relay.cli.checklist_board import Board
from relay.cli.screen import fitted

NOW = 1_714_168_234.0


@pytest.fixture(autouse=True)
def _zone(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def frame(locks=(), **fields):
    named = {f"timestamps:{name}".encode(): str(value).encode() for name, value in fields.items()}
    return snapshot(named | {f"locked:{name}".encode(): b"true" for name in locks})


def drawn(board, now=NOW, width=80):
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in board.lines(width, now)]


def test_before_a_frame():
    assert drawn(Board("run1")) == ["run1: no snapshot yet", "connecting", ""]


def test_what_is_done_when_and_what_runs_how_long():
    board = Board("run1")
    board.take(frame(["wepp"], build_channels=int(NOW) - 500), NOW)
    board.take({"type": "ping"}, NOW + 5)
    board.take(frame(["soils", "wepp"], build_channels=int(NOW) - 500, set_outlet=int(NOW) + 10), NOW + 12)
    lines = drawn(board, NOW + 73)
    assert lines[:6] == [
        "run1: 2 of 22 done, 2 running, last step 21:50:44",
        "connected, last frame 1m01s ago",
        "",
        "[>] wepp  at least 1m13s",
        "[>] soils  1m01s",
        "",
    ]
    steps = " ".join(lines[6:])
    assert "[✓] outlet          21:50:44" in steps  # what the snapshot says
    assert re.search(r"\[✓\] channels +\[", steps)  # done before, when is not known
    assert "[ ] landuse" in steps


def test_a_step_without_a_time_of_its_own_is_done_when_its_frame_came():
    board = Board("r")
    same = {"lock_statuses": {}, "type": "preflight", "last_modified": 7}
    board.take({**same, "checklist": {"sbs_map": False}}, NOW)
    board.take({**same, "checklist": {"sbs_map": True}}, NOW + 60)
    assert f"sbs_map{'21:51:34':>17}" in drawn(board, NOW + 60)[-1]


def test_what_falls_is_open_again_and_what_is_unlocked_runs_no_more():
    board = Board("r")
    for locks, fields in [([], {}), (["x"], {"build_channels": int(NOW)}), ([], {})]:
        board.take(frame(locks, **fields), NOW)
    assert "[✓]" not in " ".join(drawn(board))
    assert "[>]" not in " ".join(drawn(board))
    board.take(frame(["x"]), NOW + 9)
    assert "[>] x  0m01s" in drawn(board, NOW + 10)


@pytest.mark.parametrize("heard", [True, False])
def test_a_lost_connection_is_said_until_it_is_heard_of_again(heard):
    board = Board("r")
    if heard:
        board.take(frame(), NOW)
    board.trouble = "ws://h/r: Connection refused; reconnecting"
    lines = drawn(board, NOW + 5)
    age = ", last frame 0m05s ago" if heard else ""
    assert lines[1] == f"ws://h/r: Connection refused; reconnecting{age}"
    board.take({"type": "ping"}, NOW + 6)
    assert drawn(board, NOW + 6)[1] == "connected, last frame 0m00s ago"


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_name_is_obeyed(width):
    board = Board("r\x1b[2J" * 9)
    board.take(frame(["\x1b[2J" + "x" * 100]), NOW)
    board.trouble = "\x1b[2J" * 30
    for line in drawn(board, width=width):
        assert "\x1b" not in line
        assert len(line) <= max(width, 3)


def test_a_narrow_terminal_shows_whole_names_and_no_times():
    board = Board("r")
    board.take(frame(), NOW)
    board.take(frame(build_channels=int(NOW), set_outlet=int(NOW) + 1), NOW)
    lines = drawn(board, width=20)
    assert "[ ] sbs_map" in lines
    assert "[✓] channels" in lines
    assert "[ ] rangeland_cover" in lines
    assert "[ ] omni_contr..." in drawn(board, width=17)


def test_what_has_no_room_is_counted():
    lines = [str(number) for number in range(22)]
    assert fitted(lines, 40, 22) == lines
    assert fitted(lines, 40, 9) == [*lines[:8], "14 more lines"]
    assert fitted(lines, 5, 2) == ["0", "21..."]


@pytest.mark.parametrize(("modified", "said"), [(int(NOW) - 90_000, "2024-04-25"), (2**62, "?"), (-(2**62), "?")])
def test_times_of_another_day_and_of_none(modified, said):
    board = Board("r")
    board.take({"type": "preflight", "checklist": {}, "lock_statuses": {}, "last_modified": modified}, NOW)
    assert drawn(board)[0] == f"r: 0 of 0 done, 0 running, last step {said}"


def test_a_terminal_that_has_no_tick_gets_an_x(monkeypatch):
    class Latin:
        encoding = "latin-1"

    monkeypatch.setattr(checklist_board.sys, "stdout", Latin())
    assert checklist_board._tick() == "x"
