"""client.rq without a worker: what the decorator says, finds, refuses and leaves alone (contract, section 3.4)."""

import asyncio
import inspect
import pickle
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from client import StatusMessenger, messenger, outbox, rq
from client.rq import StatusWorker, job_status
from client.testing import CaptureMessenger

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """A process in direct mode, that has given no wait up."""
    monkeypatch.setattr(rq._Delivery, "_gave_up", False)
    yield
    StatusMessenger.configure(queue=False)


@pytest.fixture
def said():
    with CaptureMessenger() as said:
        yield said


def is_queued():
    return messenger._Process.queued is not None


# --- the lines ---------------------------------------------------------------------------------------------------


@job_status("wepp", trigger="DONE")
def run_wepp(runid, phase="all", *more, clean=False):
    """Runs it."""
    return phase, more, clean


def test_the_lines_of_a_direct_call(said):
    assert run_wepp("run1", 2, "x", clean=True) == (2, ("x",), True)
    assert said.messages == [
        ("run1:wepp", "STARTED run_wepp(run1, 2, x, clean=True)"),
        ("run1:wepp", "COMPLETED run_wepp(run1, 2, x, clean=True)"),
        ("run1:wepp", "TRIGGER   wepp DONE"),
    ]


def test_the_lines_of_a_job(said, monkeypatch):
    job = types.SimpleNamespace(id="7f3a")
    monkeypatch.setitem(sys.modules, "rq", types.SimpleNamespace(get_current_job=lambda: job))
    run_wepp("run1")
    assert said.lines("run1:wepp") == [
        "rq:7f3a STARTED run_wepp(run1)",
        "rq:7f3a COMPLETED run_wepp(run1)",
        "rq:7f3a TRIGGER   wepp DONE",
    ]


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
@pytest.mark.parametrize("queue", [False, True])
def test_the_very_exception_goes_on(said, kind, queue):
    error = kind("why")

    @job_status("wepp", queue=queue)
    def fail(runid):
        raise error

    with pytest.raises(kind) as caught:
        fail("run1")
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert said.lines("run1:wepp") == ["STARTED fail(run1)", "EXCEPTION fail(run1)"]
    assert not is_queued()


async def test_a_coroutine_function(said):
    @job_status("wepp", queue=True)
    async def later(runid):
        StatusMessenger.publish("run1:wepp", f"queued: {is_queued()}")
        await asyncio.sleep(0)
        return runid

    assert inspect.iscoroutinefunction(later)
    assert await later("run1") == "run1"
    assert said.lines("run1:wepp") == ["STARTED later(run1)", "queued: True", "COMPLETED later(run1)"]
    assert not is_queued()


async def test_a_cancelled_and_a_closed_coroutine(said):
    @job_status("wepp", queue=True)
    async def later(runid):
        await asyncio.sleep(60)

    task = asyncio.create_task(later("run1"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    coroutine = later("run1")
    coroutine.send(None)
    coroutine.close()
    assert said.lines("run1:wepp") == 2 * ["STARTED later(run1)", "EXCEPTION later(run1)"]
    assert not is_queued()


def test_it_is_the_function_for_all_who_look():
    assert (run_wepp.__name__, run_wepp.__doc__) == ("run_wepp", "Runs it.")
    assert run_wepp.__module__ == __name__
    assert list(inspect.signature(run_wepp).parameters) == ["runid", "phase", "more", "clean"]


PICKLED = """
import pickle, sys, types
from client.rq import job_status
jobs = sys.modules["jobs"] = types.ModuleType("jobs")
exec("from client.rq import job_status\\n@job_status('wepp')\\ndef work(runid): pass", vars(jobs))
assert pickle.loads(pickle.dumps(jobs.work)) is jobs.work
"""


def test_it_pickles_by_its_path():
    subprocess.run([sys.executable, "-c", PICKLED], cwd=ROOT, check=True)


def test_an_argument_that_cannot_be_shown_or_is_long(said):
    class Unspeakable:
        def __str__(self):
            raise ZeroDivisionError

        __repr__ = __str__

    run_wepp("run1", Unspeakable())
    run_wepp("run1", "x" * 10_000)
    started, _, _, long, *_ = said.lines("run1:wepp")
    assert started == "STARTED run_wepp(run1, <Unspeakable>)"
    assert len(long) < 200


# --- the run -----------------------------------------------------------------------------------------------------


def first(run, other="x"):
    pass


def named(wd, runid="run1"):
    pass


def spelled(wd, *, run_id):
    pass


def both(run_id, runid):
    pass


class Model:
    def method(self, run):
        pass


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (first, ("run1",), {}),
        (first, (), {"other": 1, "run": "run1"}),
        (named, ("/wd",), {}),
        (named, ("/wd", "run1"), {}),
        (spelled, ("/wd",), {"run_id": "run1"}),
        (both, ("other", "run1"), {}),
        (Model.method, (Model(), "run1"), {}),
    ],
)
def test_where_the_run_id_is_found(said, function, args, kwargs):
    job_status("wepp")(function)(*args, **kwargs)
    assert {channel for channel, _ in said.messages} == {"run1:wepp"}


def test_a_method_is_shown_without_its_object(said):
    job_status("wepp")(Model.method)(Model(), "run1")
    assert said.lines("run1:wepp")[0] == "STARTED method(run1)"


def test_a_function_that_finds_the_run_id(said):
    @job_status("wepp", runid=lambda *parts, **_: "-".join(parts))
    def work(*parts, loud):
        return loud

    assert work("a", "b", loud=True) is True
    assert said.lines("a-b:wepp") == ["STARTED work(a, b, loud=True)", "COMPLETED work(a, b, loud=True)"]


def test_several_triggers(said):
    job_status("batch", trigger=["BATCH_RUN_COMPLETED", "omni END_BROADCAST"])(first)("run1")
    assert said.lines("run1:batch")[2:] == ["TRIGGER   batch BATCH_RUN_COMPLETED", "TRIGGER   omni END_BROADCAST"]


# --- misuse ------------------------------------------------------------------------------------------------------


def generator(runid):
    yield


async def stream(runid):
    yield


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: job_status(first), TypeError, "takes a channel's name such as 'wepp' first"),
        (lambda: job_status(""), ValueError, "is no channel's name"),
        (lambda: job_status("run1:wepp"), ValueError, "write the part after the colon"),
        (lambda: job_status("wepp", trigger=7), TypeError, "trigger is an event such as"),
        (lambda: job_status("wepp", trigger=[7]), TypeError, "an event is a str"),
        (lambda: job_status("wepp", trigger=""), ValueError, "is no event"),
        (lambda: job_status("wepp", trigger="omni A B"), ValueError, "is no event"),
        (lambda: job_status("wepp", runid="run1"), TypeError, "runid is a function of the call's arguments"),
        (lambda: job_status("wepp", queue="yes"), TypeError, "queue is True, False or a number"),
        (lambda: job_status("wepp", queue=-1), ValueError, "queue is True, False or a number"),
        (lambda: job_status("wepp", flush=None), TypeError, "flush is a number of seconds"),
        (lambda: job_status("wepp", flush=-1), ValueError, "flush is a number of seconds"),
        (lambda: job_status("wepp", flush=float("nan")), ValueError, "flush is a number of seconds"),
        (lambda: job_status("wepp")("f"), TypeError, "stands above a function"),
        (lambda: job_status("wepp")(generator), TypeError, "is a generator"),
        (lambda: job_status("wepp")(stream), TypeError, "is a generator"),
        (lambda: job_status("wepp")(lambda *args, **kwargs: None), TypeError, "has no parameter for a run id"),
        (lambda: job_status("wepp")(first)(7), TypeError, "first was called with a run id of type int, not str"),
        (lambda: job_status("wepp")(first)(""), ValueError, "first was called with an empty run id"),
        (lambda: job_status("wepp")(first)(), TypeError, "missing a required argument: 'run'"),
        (lambda: job_status("wepp", runid=lambda **_: "r")(first)(), TypeError, "missing a required argument: 'run'"),
    ],
)
def test_misuse_is_told(said, make, kind, text):
    with pytest.raises(kind, match=text):
        make()
    assert said.messages == []


# --- queued mode and the wait ------------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch):
    """Redis takes nothing; the seconds that each wait had."""
    waits = []

    def wait(queued, timeout=None):
        waits.append(timeout)
        return False

    monkeypatch.setattr(messenger.QueuedMessenger, "flush", wait)
    monkeypatch.setattr(messenger.QueuedMessenger, "retire", wait)
    return waits


def test_the_queue_has_its_size_and_its_time(said, waits):
    @job_status("wepp", queue=7, flush=0.5)
    def work(runid):
        return messenger._Process.queued._outbox.size

    assert work("run1") == 7
    assert waits == [0.5]


def test_a_queue_that_was_there_is_kept_and_waited_for(said, waits):
    StatusMessenger.configure(queue=70)
    before = messenger._Process.queued

    @job_status("wepp", queue=7)
    def work(runid):
        return messenger._Process.queued

    assert work("run1") is before
    assert messenger._Process.queued is before
    assert waits == [rq.FLUSH]


def test_without_a_queue_the_mode_stays_as_it_is(said, waits):
    @job_status("wepp")
    def work(runid):
        return is_queued()

    assert work("run1") is False
    StatusMessenger.configure(queue=True)
    assert work("run1") is True
    assert waits == [rq.FLUSH]


def test_only_the_outermost_call_waits(said, waits):
    StatusMessenger.configure(queue=True)
    outer = job_status("wepp", runid=lambda call: "run1")(lambda call: [call("run1"), call("run1")])
    inner = job_status("wepp", queue=True, flush=1.0)(lambda runid: None)
    outer(inner)
    assert waits == [rq.FLUSH]
    inner("run1")
    assert waits[1:] == [rq.STILL_AWAY]


def test_a_dead_redis_is_waited_for_once(said, waits):
    work = job_status("wepp", queue=True)(lambda runid: None)
    for _ in range(3):
        work("run1")
    assert waits == [rq.FLUSH, rq.STILL_AWAY, rq.STILL_AWAY]


def test_the_wait_ends_before_the_time_limit_of_the_job(said, waits, monkeypatch):
    monkeypatch.setattr(rq, "MARGIN", 20.0)
    work = job_status("wepp", queue=True, flush=100.0)(lambda runid: None)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.alarm(60)
        work("run1")
        assert 10.0 < waits[0] <= 60.0 - rq.MARGIN
        monkeypatch.setattr(rq._Delivery, "_gave_up", False)
        signal.setitimer(signal.ITIMER_REAL, rq.MARGIN / 2)
        work("run1")
        assert waits[1:] == [0.0]
        monkeypatch.setattr(rq._Delivery, "_gave_up", False)
        signal.setitimer(signal.ITIMER_REAL, 60.0, 60.0)
        work("run1")
        assert waits[2:] == [100.0], "one that comes again and again is no limit"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


async def test_a_coroutine_waits_in_a_thread(said, monkeypatch):
    loop, waiting, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def wait(queued, timeout=None):
        loop.call_soon_threadsafe(waiting.set)
        return go_on.wait(60)

    monkeypatch.setattr(messenger.QueuedMessenger, "retire", wait)

    @job_status("wepp", queue=True)
    async def later(runid):
        return "done"

    task = asyncio.create_task(later("run1"))
    async with asyncio.timeout(30):  # less than the thread waits: the event loop must be free meanwhile
        await waiting.wait()
    go_on.set()
    assert await task == "done"


def test_a_process_without_a_thread_to_give_publishes_directly(said, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(outbox.Outbox, "__init__", refuse)
    assert job_status("wepp", queue=True)(lambda runid: "done")("run1") == "done"
    assert len(said.lines("run1:wepp")) == 2
    assert caplog.messages == ["status messages go without a queue: can't start new thread"]


def test_a_wrong_configuration_is_told_at_the_call(monkeypatch):
    def refuse():
        raise ValueError("REDIS_URL is no URL")

    monkeypatch.setattr(messenger, "address", refuse)
    with pytest.raises(ValueError, match="REDIS_URL is no URL"):
        job_status("wepp", queue=True)(first)("run1")
    assert rq._inside.get() is False


# --- workers -----------------------------------------------------------------------------------------------------


class FakeWorker:
    """The three names of rq's workers that StatusWorker knows."""

    is_horse = False

    def work(self, burst):
        return f"burst={burst}"

    def perform_job(self, job, queue):
        return job(), is_queued()


class OurWorker(StatusWorker, FakeWorker):
    status_queue = 7


def test_a_worker_queues_for_each_job(said, waits):
    worker = OurWorker()
    assert worker.work(burst=True) == "burst=True"
    inner = job_status("wepp", queue=True)(lambda runid: messenger._Process.queued._outbox.size)
    assert worker.perform_job(lambda: inner("run1"), "queue") == (7, True)
    assert waits == [rq.FLUSH]
    assert not is_queued()


def test_a_work_horse_does_what_is_to_be_done_at_the_end_of_a_process(said, monkeypatch, caplog):
    done = []

    def fail():
        done.append("failed")
        raise ZeroDivisionError

    monkeypatch.setattr(rq.ending, "_known", {fail, lambda: done.append("written")})
    worker = OurWorker()
    worker.is_horse = True
    assert worker.perform_job(lambda: "result", "queue") == ("result", True)
    assert sorted(done) == ["failed", "written"]
    assert caplog.messages == ["something was not done at the end of a job"]


def test_the_classes_are_those_of_rq_and_pickle():
    import rq as theirs

    for name in ("Worker", "SimpleWorker"):
        made = getattr(rq, name)
        assert issubclass(made, (StatusWorker, getattr(theirs, name)))
        assert made.__mro__[1] is StatusWorker
        assert pickle.loads(pickle.dumps(made)) is made is getattr(rq, name)
        assert (made.__name__, made.__module__) == (name, "client.rq")


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match=r"module 'client\.rq' has no attribute 'Queue'"):
        _ = rq.Queue


WITHOUT = """
import sys
import types
import client.rq
assert "rq" not in sys.modules and "redis" not in sys.modules
sys.modules["rq"] = None  # as if it were not installed
from client import StatusMessenger
from client.rq import StatusWorker, job_status
from client.testing import CaptureMessenger
with CaptureMessenger() as said:
    job_status("wepp")(lambda runid: None)("run1")
assert said.lines("run1:wepp") == ["STARTED <lambda>(run1)", "COMPLETED <lambda>(run1)"]
try:
    from client.rq import Worker
except ImportError as error:
    print(error)
sys.modules["rq"] = types.SimpleNamespace(__version__="2.6.1")
try:
    client.rq.SpawnWorker
except ImportError as error:
    print(error)
"""


def test_without_rq():
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "client.rq.Worker needs rq: pip install 'rq>=1.12'",
        "client.rq.SpawnWorker needs rq>=3.0 and this is 2.6.1; "
        "pip install -U rq, or use @job_status or client.rq.Worker",
    ]
