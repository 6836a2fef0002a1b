"""client.rq with real rq workers, their queue and the status lines on two servers; a plain subscriber is the judge."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
import rq
from rq import Queue

from tests.integration.worker_rig import closed_port, mute_server, subscribed

ROOT = Path(__file__).parents[2]
JOBS = "tests.integration.rq_jobs."
LINES = [str(number) for number in range(5000)]
PLAIN, OURS = "rq.Worker", "client.rq.Worker"
SPAWNS = rq.__version__ >= "3"  # its SpawnWorker passes its class on to the work-horse
WORKERS = ["client.rq.Worker", "client.rq.SimpleWorker", *(["client.rq.SpawnWorker"] if SPAWNS else [])]


@pytest.fixture
def queue(redis_url):
    """A queue on the server that all tests share; status lines go elsewhere."""
    with redis.Redis.from_url(redis_url) as connection:
        yield Queue(connection=connection)


@pytest.fixture
def following(redis_server):
    """The next message on r1:wepp, as text."""
    with subscribed(redis_server.url, "r1:wepp") as following:
        yield lambda: following()[1].decode()


@pytest.fixture
def work(queue, redis_url, redis_server):
    """Enqueue a job and have a worker process of that class do it: `work(worker, function, *args)` -> the job."""

    def work(worker, function, *args, timeout=60, status_url=redis_server.url, patient=30, **kwargs):
        job = queue.enqueue_call(JOBS + function, args=args, kwargs=kwargs, timeout=timeout)
        run("from rq.cli import main; main()", "worker", "--burst", "--url", redis_url, "--worker-class", worker,
            status_url=status_url, patient=patient)  # fmt: skip
        job.refresh()
        return job

    return work


def run(program, *args, status_url, patient=30):
    """Run a program; its stdout. Queues have `patient` seconds at their end; with none all is as in production."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REDIS_")}
    environment |= {"REDIS_URL": status_url, "PYTHONPATH": str(ROOT)}
    if patient:
        program = f"import {JOBS.removesuffix('.')}\n{program}"
        environment["PATIENT"] = str(patient)
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def heard(following, last):
    lines = [following()]
    while lines[-1] != last:
        lines.append(following())
    return lines


def error_of(job):
    return job.latest_result().exc_string


# --- the lines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [PLAIN, "rq.SimpleWorker", *WORKERS])
def test_the_lines_of_a_job(work, following, worker):
    job = work(worker, "run_wepp", "r1")
    assert [following() for _ in range(4)] == [
        f"rq:{job.id} STARTED run_wepp(r1)",
        "working",
        f"rq:{job.id} COMPLETED run_wepp(r1)",
        f"rq:{job.id} TRIGGER   wepp WEPP_RUN_TASK_COMPLETED",
    ]
    assert (job.get_status(), job.return_value()) == ("finished", "r1 is done")


@pytest.mark.parametrize("worker", [PLAIN, OURS])
def test_keyword_arguments(work, following, worker):
    job = work(worker, "run_wepp", clean=True, runid="r1")
    assert following() == f"rq:{job.id} STARTED run_wepp(clean=True, runid=r1)"
    assert job.get_status() == "finished"


@pytest.mark.parametrize("worker", [PLAIN, OURS, "client.rq.SimpleWorker"])
def test_the_lines_of_a_coroutine_function(work, following, worker):
    job = work(worker, "run_later", "r1")
    assert [following() for _ in range(5)] == [
        f"rq:{job.id} STARTED run_later(r1)",
        "working",
        f"rq:{job.id} COMPLETED run_later(r1)",
        f"rq:{job.id} TRIGGER   wepp BATCH_RUN_COMPLETED",
        f"rq:{job.id} TRIGGER   omni END_BROADCAST",
    ]
    assert (job.get_status(), job.return_value()) == ("finished", "r1 is done")


@pytest.mark.parametrize("worker", [PLAIN, OURS])
def test_an_exception_goes_on_unchanged(work, following, worker):
    job = work(worker, "fail", "r1")
    assert [following(), following()] == [f"rq:{job.id} STARTED fail(r1)", f"rq:{job.id} EXCEPTION fail(r1)"]
    assert job.get_status() == "failed"
    assert error_of(job).endswith("ZeroDivisionError: r1 divides\n")


@pytest.mark.parametrize("worker", [PLAIN, OURS])
def test_a_decorated_function_within_another(work, following, worker):
    job = work(worker, "nest", "r1")
    assert [following() for _ in range(5)] == [
        f"rq:{job.id} STARTED nest(r1)",
        f"rq:{job.id} STARTED build_climate(r1, 3)",
        "3 years",
        f"rq:{job.id} COMPLETED build_climate(r1, 3)",
        f"rq:{job.id} COMPLETED nest(r1)",
    ]
    assert job.return_value()[1] is (worker == PLAIN), "the mode is again what it was"


# --- nothing is lost through os._exit ----------------------------------------------------------------------------


def test_what_waits_is_lost_without_client_rq(work, following, redis_server):
    """The control: the very job of the tests below, without what they test."""
    assert work(PLAIN, "say_much_queued", "r1").get_status() == "finished"
    redis_server.execute("PUBLISH", "r1:wepp", "end")
    assert heard(following, "end")[:-1] != LINES


def test_the_decorator_waits_before_the_function_returns(work, following):
    job = work(PLAIN, "say_much", "r1")
    assert heard(following, f"rq:{job.id} TRIGGER   wepp DONE") == [
        f"rq:{job.id} STARTED say_much(r1)",
        *LINES,
        f"rq:{job.id} COMPLETED say_much(r1)",
        f"rq:{job.id} TRIGGER   wepp DONE",
    ]
    assert job.get_status() == "finished"


@pytest.mark.parametrize("function", ["say_much_bare", "say_much_queued", "say_on_a_queue_of_its_own"])
def test_the_worker_waits_whatever_the_job_does(work, following, function):
    job = work(OURS, function, "r1")
    assert heard(following, "4999") == LINES
    assert job.get_status() == "finished"
    assert function != "say_much_bare" or job.return_value() is True


def test_the_worker_waits_after_an_exception(work, following):
    job = work(OURS, "say_much_and_fail", "r1")
    assert heard(following, "4999") == LINES
    assert "ZeroDivisionError" in error_of(job)


@pytest.mark.parametrize("worker", [PLAIN, OURS])
def test_the_decorator_waits_after_a_timeout(work, following, worker):
    job = work(worker, "outlast", "r1", timeout=2)
    assert [following(), following()] == [f"rq:{job.id} STARTED outlast(r1)", f"rq:{job.id} EXCEPTION outlast(r1)"]
    assert "JobTimeoutException" in error_of(job)


def test_the_worker_waits_after_a_timeout(work, following):
    job = work(OURS, "say_much_and_outlast", "r1", timeout=2)
    assert heard(following, "4999") == LINES
    assert "JobTimeoutException" in error_of(job)


@pytest.mark.parametrize("worker", [PLAIN, OURS])
def test_a_coroutine_function_whose_time_is_over(work, following, redis_server, worker):
    job = work(worker, "outlast_later", "r1", timeout=2)
    redis_server.execute("PUBLISH", "r1:wepp", "end")
    lines = [f"rq:{job.id} STARTED outlast_later(r1)", f"rq:{job.id} EXCEPTION outlast_later(r1)"]
    # rq before 3.0 never comes back to the coroutine.
    assert heard(following, "end")[:-1] == lines[: 2 if rq.__version__ >= "3" else 1]
    assert "JobTimeoutException" in error_of(job)


@pytest.mark.parametrize("worker", WORKERS)
def test_two_jobs_in_a_row(queue, work, following, worker):
    first = queue.enqueue_call(JOBS + "say_much_bare", args=("r1",))
    second = work(worker, "say_much", "r1")
    assert heard(following, f"rq:{second.id} TRIGGER   wepp DONE") == [
        *LINES,
        f"rq:{second.id} STARTED say_much(r1)",
        *LINES,
        f"rq:{second.id} COMPLETED say_much(r1)",
        f"rq:{second.id} TRIGGER   wepp DONE",
    ]
    assert first.get_status() == second.get_status() == "finished"


SIMPLE = """
import sys, threading
import redis, rq
from client import StatusMessenger, messenger
from client.rq import SimpleWorker

with redis.Redis.from_url(sys.argv[1]) as connection:
    SimpleWorker([rq.Queue(connection=connection)], connection=connection).work(burst=True)
for thread in threading.enumerate():
    if thread.name == "client-queue":
        thread.join(10)
left = [thread.name for thread in threading.enumerate() if thread.name.startswith("client-")]
print(messenger._Process.queued, left, StatusMessenger.counts().published)
"""


def test_a_worker_without_forks_is_in_direct_mode_between_jobs(queue, redis_url, redis_server):
    for _ in range(2):
        queue.enqueue_call(JOBS + "run_wepp", args=("r1",))
    assert run(SIMPLE, redis_url, status_url=redis_server.url).splitlines()[-1] == "None [] 8"


def test_a_lazy_dump_is_written_before_the_work_horse_ends(work, tmp_path):
    assert work(OURS, "write_lazily", str(tmp_path)).get_status() == "finished"
    assert "timestamps:run_wepp" in json.loads((tmp_path / "redisprep.dump").read_text())


MIXED = """
import sys
import redis, rq
from client.rq import StatusWorker

class OurWorker(StatusWorker, rq.Worker):
    status_queue = 100

with redis.Redis.from_url(sys.argv[1]) as connection:
    OurWorker([rq.Queue(connection=connection)], connection=connection).work(burst=True)
"""


def test_a_worker_class_of_ones_own(queue, redis_url, redis_server, following):
    job = queue.enqueue_call(JOBS + "say_much_bare", args=("r1", 2.0))
    run(MIXED, redis_url, status_url=redis_server.url)
    told, *lines = heard(following, "4999")
    assert told.startswith("StatusMessenger: "), "more came than the class lets wait"
    assert lines == LINES[-len(lines) :]
    assert job.get_status() == "finished"


# --- nothing hurts the job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worker", "function", "redis_is"),
    [(PLAIN, "run_later", mute_server), (PLAIN, "nest", closed_port), (OURS, "run_wepp", mute_server),
     (OURS, "run_later", closed_port)],
)  # fmt: skip
def test_a_dead_status_redis_leaves_the_job_as_it_is(work, worker, function, redis_is):
    """Plain redis-py would hold each of its publishes up for 4 s and 59 s."""
    with redis_is() as url:
        start = time.monotonic()
        job = work(worker, function, "r1", status_url=url, patient=False)
        took = time.monotonic() - start
    assert job.get_status() == "finished"
    assert function == "nest" or job.return_value() == "r1 is done"
    assert took < 15.0


def test_a_dead_status_redis_does_not_hide_an_exception(work):
    with closed_port() as url:
        job = work(PLAIN, "fail", "r1", status_url=url, patient=False)
    assert error_of(job).endswith("ZeroDivisionError: r1 divides\n")


@pytest.mark.parametrize("worker", [PLAIN, OURS])
def test_the_wait_does_not_run_into_the_time_limit_of_the_job(work, worker):
    """4.5 s of 6 are left when the function has done its work, and the wait for a dead Redis may take 8."""
    with closed_port() as url:
        job = work(worker, "end_just_in_time", "r1", timeout=6, status_url=url, patient=8)
    assert (job.get_status(), job.return_value()) == ("finished", "r1 is done")


def test_a_worker_says_at_its_start_what_is_wrong_with_the_configuration(redis_url):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("REDIS_")}
    done = subprocess.run(
        [sys.executable, "-c", "from rq.cli import main; main()",
         "worker", "--burst", "--url", redis_url, "--worker-class", OURS],
        cwd=ROOT, env=inherited | {"REDIS_URL": "http://wepp1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "ValueError: REDIS_URL must start with redis://" in done.stderr
