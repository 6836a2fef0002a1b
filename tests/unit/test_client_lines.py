"""The lines of a step, as browsers and the old call sites have them (contract, section 3.4)."""

import sys
import types

import pytest

from client import lines
from client.lines import ARGUMENT_MAX, Step, job_prefix, shown_call


@pytest.fixture
def said(monkeypatch):
    published = []
    monkeypatch.setattr(lines.StatusMessenger, "publish", lambda channel, text: published.append((channel, text)))
    return published


@pytest.fixture
def job(monkeypatch):
    """An rq that has been imported; `job.id` is that of the current job, and `job.current` None outside of one."""
    found = types.SimpleNamespace(id="7f3a")
    found.current = found
    monkeypatch.setitem(sys.modules, "rq", types.SimpleNamespace(get_current_job=lambda: found.current))
    return found


def test_the_four_lines(said, job):
    step = Step("run1:wepp", "run_wepp(run1)", job_prefix())
    step.started()
    step.completed()
    step.trigger("wepp", "WEPP_RUN_TASK_COMPLETED")
    step.failed()
    assert said == [
        ("run1:wepp", "rq:7f3a STARTED run_wepp(run1)"),
        ("run1:wepp", "rq:7f3a COMPLETED run_wepp(run1)"),
        ("run1:wepp", "rq:7f3a TRIGGER   wepp WEPP_RUN_TASK_COMPLETED"),
        ("run1:wepp", "rq:7f3a EXCEPTION run_wepp(run1)"),
    ]


def test_without_a_job_there_is_no_id(said, job):
    job.current = None
    Step("run1:wepp", "f()", job_prefix()).started()
    assert said == [("run1:wepp", "STARTED f()")]


def test_rq_is_not_imported_for_it(said, monkeypatch):
    monkeypatch.delitem(sys.modules, "rq", raising=False)
    Step("run1:wepp", "f()", job_prefix()).completed()
    assert said == [("run1:wepp", "COMPLETED f()")]
    assert "rq" not in sys.modules


class Unspeakable:
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("args", "kwargs", "shown"),
    [
        ((), {}, "f()"),
        (("run1",), {}, "f(run1)"),
        (("run1", 7), {"clean": True, "name": "a b"}, "f(run1, 7, clean=True, name=a b)"),
        ((Unspeakable(),), {}, "f(<Unspeakable>)"),
        (("x" * 1000,), {}, "f(" + "x" * (ARGUMENT_MAX - 3) + "...)"),
        (("x" * ARGUMENT_MAX,), {}, "f(" + "x" * ARGUMENT_MAX + ")"),
    ],
)
def test_a_call_as_a_line_shows_it(args, kwargs, shown):
    assert shown_call("f", args, kwargs) == shown
