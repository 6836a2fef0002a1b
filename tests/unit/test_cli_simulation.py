import json
import random
import re

import pytest
import redis

import client
from client import sender
from relay.checklist import snapshot
from relay.cli import simulation
from relay.cli.simulation import AGAIN, CLEARWATER, COUGAR, MOSCOW, TASKS, Simulation


@pytest.fixture
def worker(redis_url, tmp_path, monkeypatch):
    """Makes a worker on the shared Redis that never waits; `wait` may say otherwise.

    It has 30 s for what has 0.2 or 5 s in a demo: on a machine that stands still its lines would be dropped.
    """
    monkeypatch.setattr(sender, "BUDGET", 30.0)
    monkeypatch.setattr(sender, "FIRST_ATTEMPT", 30.0)
    monkeypatch.setattr(simulation, "RedisPrep", lambda *args: client.RedisPrep(*args, retry=30.0))

    def worker(wait=lambda seconds: False, **kwargs):
        return Simulation("run1", tmp_path, wait, seed=1, **kwargs)

    client.configure(url=redis_url)
    yield worker
    client.configure(url=redis_url)


@pytest.fixture
def fields(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield lambda: connection.hgetall("run1")


@pytest.fixture
def heard(redis_url):
    """All that is published on channels of the run, as (channel, text), up to the line asked for."""
    with redis.Redis.from_url(redis_url) as connection, connection.pubsub() as pubsub:
        pubsub.psubscribe("run1:*")
        assert pubsub.get_message(timeout=30)["type"] == "psubscribe"

        def until(end):
            lines = []
            while not lines or end not in lines[-1][1]:
                message = pubsub.get_message(timeout=30)
                assert message, lines[-3:]
                lines.append((message["channel"].decode().partition(":")[2], message["data"].decode()))
            return lines

        yield until


def test_a_run_leaves_a_checklist_and_a_dump(worker, fields, tmp_path):
    assert worker().once()
    done = {name for name, true in snapshot(fields())["checklist"].items() if true}
    assert {"channels", "outlet", "subcatchments", "landuse", "soils", "climate", "wepp", "dss_export"} <= done
    assert not any(snapshot(fields())["lock_statuses"].values())
    dump = json.loads((tmp_path / "run1" / "redisprep.dump").read_text())
    assert dump["timestamps:run_wepp_watershed"] == fields()[b"timestamps:run_wepp_watershed"].decode()


def test_tasks_end_in_order(worker, fields):
    worker().once()
    times = [int(fields()[f"timestamps:{task.done}".encode()]) for task in TASKS]
    assert times == sorted(set(times))


def test_each_task_says_started_lines_completed_and_trigger_on_its_channel(worker, heard):
    worker().once()
    lines = heard("DSS_EXPORT_TASK_COMPLETED")
    for task in TASKS:
        said = [text for channel, text in lines if channel == task.channel]
        [start] = [n for n, text in enumerate(said) if text.endswith(f"STARTED {task.call}_rq(run1)")]
        [end] = [n for n, text in enumerate(said) if text.endswith(f"COMPLETED {task.call}_rq(run1)")]
        assert end > start + 1
        job = said[start].split()[0]
        assert job.startswith("rq:")
        assert said[end].split()[0] == job
        assert said[end + 1] == f"{job} TRIGGER   {task.channel} {task.event}_TASK_COMPLETED"


def test_while_a_task_runs_it_is_locked_and_not_done(worker, fields):
    seen = []

    def wait(seconds):
        seen.append(snapshot(fields()))
        return False

    worker(wait).once()
    running = [frame for frame in seen if frame["lock_statuses"]["wepp"]]
    assert running
    assert not any(frame["checklist"]["wepp"] for frame in running)


def test_told_to_end_it_ends_and_unlocks(worker, fields):
    waits = iter([False] * 30 + [True])
    assert not worker(lambda seconds: next(waits)).once()
    assert not any(snapshot(fields())["lock_statuses"].values())


def test_the_next_run_starts_from_nothing(worker, fields):
    assert worker().once()
    waits = iter([True])
    assert not worker(lambda seconds: next(waits)).once()
    assert not any(snapshot(fields())["checklist"].values())


def test_speed_divides_the_time_of_the_work(worker):
    def total(speed):
        waited = []
        worker(lambda seconds: waited.append(seconds), speed=speed).once()
        return sum(waited)

    once = total(1.0)
    assert 30 < once < 120
    assert total(4.0) == pytest.approx(once / 4)


def test_a_task_that_fails_says_why_and_leaves_its_step_undone_until_it_is_started_again(worker, fields, heard):
    looks = []

    def wait(seconds):
        if seconds == AGAIN:
            looks.append(snapshot(fields()))
        return False

    assert worker(wait, fails="build_climate").once()
    lines = [text for channel, text in heard("DSS_EXPORT_TASK_COMPLETED") if channel == "climate"]
    [look] = looks
    assert look["checklist"]["soils"]
    assert not look["checklist"]["climate"]
    assert not any(look["lock_statuses"].values())
    first, last = lines[0].split()[0], lines[-1].split()[0]
    end = lines.index(f"{first} EXCEPTION build_climate_rq(run1)")
    assert lines[end - 1].startswith("ERROR build_climate: given up\nTraceback (most recent call last):\n")
    assert lines[end - 1].splitlines()[-1].startswith("TimeoutError: ")
    assert not [text for text in lines[: end + 1] if "COMPLETED" in text or "TRIGGER" in text]
    assert first != last  # another job
    assert lines[end + 1] == f"{last} STARTED build_climate_rq(run1)"
    assert lines[-2:] == [
        f"{last} COMPLETED build_climate_rq(run1)",
        f"{last} TRIGGER   climate CLIMATE_BUILD_TASK_COMPLETED",
    ]
    assert snapshot(fields())["checklist"]["climate"]


def test_told_to_end_between_a_failure_and_the_next_start_it_ends(worker, fields):
    assert not worker(lambda seconds: seconds == AGAIN, fails="build_climate").once()
    assert not snapshot(fields())["checklist"]["climate"]


def test_a_large_site_has_more_to_do_than_a_small_one(worker, heard):
    for site in (COUGAR, CLEARWATER):
        worker(site=site).once()
        lines = [text for _, text in heard("DSS_EXPORT_TASK_COMPLETED")]
        assert sum(text.startswith("wepp hillslope ") for text in lines) == site.hillslopes
        assert any(f"ash transport: hillslope {site.hillslopes} of {site.hillslopes}" in text for text in lines)


@pytest.mark.parametrize("site", [MOSCOW, COUGAR, CLEARWATER], ids=lambda site: site.station)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.call)
def test_lines_are_lines(task, site):
    for seconds, line in task.lines(random.Random(0), site):
        assert seconds > 0
        assert line.strip() == line
        assert line.isprintable()


def said(site, seed=0):
    """All lines of a run."""
    return [line for task in TASKS for _, line in task.lines(random.Random(seed), site)]


def figures(pattern, site, seed=0):
    """The numbers that `pattern` finds in the lines of a run."""
    found = [re.search(pattern, line) for line in said(site, seed)]
    return [float(number) for match in found if match for number in match.groups()]


@pytest.mark.parametrize("seed", range(20))
def test_shares_of_an_area_are_shares(seed):
    severities = figures(r"^(?:unburned|low|moderate|high): ([\d.]+) %", MOSCOW, seed)
    assert len(severities) == 4
    assert sum(severities) == pytest.approx(100)
    assert sum(figures(r"^\d+ .*: ([\d.]+) % of the area", MOSCOW, seed)) <= 100


def test_figures_of_a_site_are_its_own_and_fit_its_size():
    patterns = (
        r"outlet: row (\d+), column (\d+)",
        r"columns, ([\d.]+) m to ([\d.]+) m",
        r"order (\d)",
        r"flowpath ([\d.]+) km",
    )
    for pattern in patterns:
        small, middle, large = (figures(pattern, site) for site in (COUGAR, MOSCOW, CLEARWATER))
        assert small
        assert len({*map(tuple, (small, middle, large))}) == 3
    assert figures(patterns[3], COUGAR) < figures(patterns[3], MOSCOW) < figures(patterns[3], CLEARWATER)
    for site in (COUGAR, MOSCOW, CLEARWATER):
        [rows, columns] = figures(r"(\d+) rows, (\d+) columns", site)
        [row, column] = figures(patterns[0], site)
        assert 0 < row < rows
        assert 0 < column < columns
        assert site.hectares * 100 * 2 < rows * columns < site.hectares * 100 * 6


def test_a_run_is_delineated_by_one_program():
    assert not [line for line in said(MOSCOW) if "TopAz" in line]


def test_the_days_of_the_climate_are_counted_with_leap_days():
    assert figures(r"(\d+) days$", MOSCOW) == [8766]  # 24 years, of which six have one more
