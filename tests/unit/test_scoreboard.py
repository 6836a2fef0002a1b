"""The memory that all processes of a relay see."""

import dataclasses
import os

import pytest

from relay.metrics import Bound, Reading
from relay.scoreboard import HALF, ROW, Row, Scoreboard, Totals, _format
from relay.worker import Worker


def row(number, slot=0, **values):
    given = {"at": 1.0, "pid": 7, "accepting": True, "draining": False, "why": {}, "readings": [], "bounds": []}
    return Row(number=number, slot=slot, lag=None, process={}, **({"counts": {}} | given | values))


@pytest.fixture
def board():
    return Scoreboard()


def test_what_one_writes_another_reads(board):
    other = Scoreboard(os.dup(board.fd))
    board.write(1, row(5, slot=1))
    board.write(3, row(6, slot=0))
    assert other.rows() == (Totals(), [row(6, slot=0), row(5, slot=1)])
    board.clear(3)
    assert other.rows()[1] == [row(5, slot=1)]


def test_who_ends_in_the_middle_of_a_row_leaves_the_one_before(board):
    """One that was being written read as none: sums over all processes fell, and rose again."""
    for beat in range(1, 4):
        board.write(1, row(5, at=float(beat)))
    newest = ROW + (3 & 1) * HALF + 44
    board._memory[newest] ^= 0xFF
    assert board.row(1) == row(5, at=2.0)
    board._memory[newest] ^= 0xFF
    assert board.row(1) == row(5, at=3.0)


def test_who_is_counted_by_the_supervisor_is_counted_once(board):
    board.write(1, row(5))
    board.write(2, row(6))
    board.write(0, Totals(gone=frozenset({5})))
    assert [each.number for each in board.rows()[1]] == [6]


def test_each_write_is_a_beat(board):
    before = board.beat(1)
    for _ in range(3):
        board.write(1, row(5))
    assert board.beat(1) == before + 3


def test_what_does_not_fit_is_refused_and_leaves_what_was(board):
    board.write(1, row(5))
    with pytest.raises(ValueError, match="does not fit"):
        board.write(1, dataclasses.replace(row(5), counts={"x": "y" * HALF}))
    assert board.row(1) == row(5)


def test_what_other_code_has_written_is_passed_over(board, monkeypatch):
    """A row that lacks a field is read without a complaint, which comes when the field is asked for."""
    for kinds in ((Row, Totals), (Row, Totals, Reading, Bound, Worker)):
        monkeypatch.setattr("relay.scoreboard.FORMAT", _format(*kinds))
        board.write(1, row(5))
        assert board.row(1) == row(5)
        monkeypatch.undo()
        assert board.row(1) is None
    board.write(1, row(5))
    monkeypatch.delattr("relay.scoreboard.Row")
    assert board.row(1) is None
