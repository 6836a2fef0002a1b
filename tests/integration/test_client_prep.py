"""RedisPrep against a real Redis: each numbered statement of the contract, section 2."""

import logging
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from client import RedisPrep, TaskEnum, configure, connection, dump, store, timed
from tests.integration.worker_rig import ROOT, RUN, dumped

pytestmark = pytest.mark.usefixtures("fresh_client")


# --- the surface --------------------------------------------------------------------------------------------


def test_fields_of_the_hash(server, wd, clock):
    run = RedisPrep(str(wd), "0.cfg")
    run.has_sbs = True
    run.sbs_required = False
    run.timestamp(TaskEnum.fetch_rap_ts)
    run["any plain string"] = 7
    run[TaskEnum.run_wepp] = 8
    run.set_rq_job_id("run_wepp_rq", "job-1")
    run.set_archive_job_id("job-2")
    run.set_locked_status("wepp.nodb", True)
    run.set_locked_status("soils.nodb", False)
    expected = {
        "attrs:loaded": "true",
        "attrs:has_sbs": "true",
        "attrs:sbs_required": "false",
        "timestamps:build_rap_ts": "1714168234",
        "timestamps:any plain string": "7",
        "timestamps:run_wepp": "8",
        "rq:run_wepp_rq": "job-1",
        "archive:job_id": "job-2",
    }
    assert server.hgetall(RUN) == expected | {"locked:wepp.nodb": "true", "locked:soils.nodb": "false"}
    assert dumped(wd) == expected
    assert (run.has_sbs, run.sbs_required) == (True, False)
    assert (run[TaskEnum.fetch_rap_ts], run["build_rap_ts"], run["run_wepp"]) == (1714168234, 1714168234, 8)
    assert (run.get_rq_job_id("run_wepp_rq"), run.get_rq_job_ids()) == ("job-1", {"run_wepp_rq": "job-1"})
    assert run.get_archive_job_id() == "job-2"
    assert (run.get_locked_status("wepp.nodb"), run.get_locked_status("soils.nodb")) == (True, False)
    assert run.cfg_fn == "0.cfg"


def test_what_is_not_there_is_none_or_false(server, wd):
    run = RedisPrep(str(wd))
    assert (run["run_wepp"], run.get_rq_job_id("x"), run.get_rq_job_ids(), run.get_archive_job_id()) == (
        None,
        None,
        {},
        None,
    )
    assert (run.has_sbs, run.sbs_required, run.get_locked_status("x")) == (False, False, False)


@pytest.mark.parametrize(
    ("text", "value"), [("+12", 12), ("-3", -3), ("", None), ("soon", None), (" 12 ", None), ("1.5", None)]
)
def test_a_timestamp_that_is_no_integer_reads_as_none(server, wd, text, value):
    server.hset(RUN, "timestamps:x", text)
    assert RedisPrep(str(wd))["x"] == value


def test_a_timestamp_that_is_no_number_is_misuse(server, wd):
    with pytest.raises(ValueError, match="invalid literal"):
        RedisPrep(str(wd))["x"] = "soon"


def test_clear_archive_job_id(server, wd):
    run = RedisPrep(str(wd))
    run.set_archive_job_id("job-2")
    run.clear_archive_job_id()
    assert run.get_archive_job_id() is None
    assert dumped(wd) == {"attrs:loaded": "true"}
    assert not (wd / "redisprep.dump.bak").exists()


def test_timestamps_report(server, wd):
    run = RedisPrep(str(wd))
    run["run_wepp"] = 7
    lines = run.timestamps_report().splitlines()
    assert lines[0] == "RedisPrep Timestamps (run1):"
    assert lines[1:] == [f"  {task}: {7 if task is TaskEnum.run_wepp else None}" for task in TaskEnum]


def test_the_redis_client_is_of_database_0_and_speaks_str(server, wd):
    run = RedisPrep(str(wd))
    assert run.redis.hget(RUN, "attrs:loaded") == "true"
    assert run.redis is RedisPrep(str(wd)).redis


def test_pickles_to_names_alone_and_unpickles_without_writing(server, wd):
    run = RedisPrep(str(wd), "0.cfg", run_id="batch;;b;;run1")
    assert run.__getstate__() == {"wd": str(wd), "cfg_fn": "0.cfg", "run_id": "batch;;b;;run1"}
    server.flushall()
    (wd / "redisprep.dump").unlink()
    again = pickle.loads(pickle.dumps(run))
    assert again.__getstate__() == run.__getstate__()
    assert server.dbsize() == 0
    assert list(wd.iterdir()) == []
    again.timestamp("x")
    assert dumped(wd) == {"timestamps:x": str(again["x"])}


def test_a_field_that_is_no_utf_8_harms_nothing(server, wd):
    server.hset(RUN, "attrs:odd", b"\xff\xfe")
    run = RedisPrep(str(wd))
    run.timestamp(TaskEnum.run_wepp)
    assert dumped(wd)["attrs:odd"] == "\udcff\udcfe"


# --- points 1 and 2: which run, and what constructing writes ------------------------------------------------


def test_constructing_without_a_dump_writes_loaded_and_the_dump(server, wd):
    RedisPrep(f"{wd}/")
    assert server.hgetall(RUN) == {"attrs:loaded": "true"}
    assert (wd / "redisprep.dump").read_bytes() == b'{"attrs:loaded": "true"}'


def test_constructing_with_a_dump_writes_nothing(server, wd):
    (wd / "redisprep.dump").write_text('{"timestamps:x": "1"}')
    RedisPrep(str(wd))
    RedisPrep.getInstance(str(wd))
    assert RedisPrep.tryGetInstance(str(wd)) is not None
    assert server.dbsize() == 0
    assert (wd / "redisprep.dump").read_text() == '{"timestamps:x": "1"}'


def test_the_dot_and_the_explicit_run_id(server, wd, monkeypatch):
    monkeypatch.chdir(wd)
    RedisPrep.getInstance().timestamp("x")
    RedisPrep(".", run_id="run1;;omni;;s1").timestamp("y")
    assert set(server.keys()) == {RUN, "run1;;omni;;s1"}


def test_peek_writes_nothing_and_reads_when_asked(server, wd):
    RedisPrep(str(wd))["run_wepp"] = 7
    (wd / "redisprep.dump").unlink()
    peeked = RedisPrep.peek(RUN)
    assert (peeked["run_wepp"], peeked.has_sbs) == (7, False)
    assert RedisPrep.peek("unknown")["run_wepp"] is None
    assert server.hgetall(RUN) == {"attrs:loaded": "true", "timestamps:run_wepp": "7"}
    assert server.keys() == [RUN]
    assert list(wd.iterdir()) == []


# --- point 3: Redis first, then the dump --------------------------------------------------------------------

MUTATORS = {
    "timestamp": lambda run: run.timestamp(TaskEnum.run_wepp),
    "timestamp, not monotonic": lambda run: RedisPrep(run.wd, monotonic=False).timestamp(TaskEnum.run_wepp),
    "setitem": lambda run: run.__setitem__("x", 1),
    "remove_timestamp": lambda run: run.remove_timestamp("old"),
    "remove_all_timestamp": lambda run: run.remove_all_timestamp(),
    "has_sbs": lambda run: setattr(run, "has_sbs", True),
    "sbs_required": lambda run: setattr(run, "sbs_required", True),
    "set_rq_job_id": lambda run: run.set_rq_job_id("x", "1"),
    "set_archive_job_id": lambda run: run.set_archive_job_id("1"),
    "clear_archive_job_id": lambda run: run.clear_archive_job_id(),
    "set_locked_status": lambda run: run.set_locked_status("x", True),
}


@pytest.mark.parametrize("mutate", MUTATORS.values(), ids=MUTATORS)
def test_every_mutator_writes_redis_before_the_dump(server, wd, mutate, monkeypatch):
    run = RedisPrep(str(wd))
    run["old"], run["build_soils"] = 1, 2
    run.set_archive_job_id("old")
    before, after_redis = server.hgetall(RUN), []
    save = dump.Dump.save
    monkeypatch.setattr(dump.Dump, "save", lambda *args: (after_redis.append(server.hgetall(RUN)), save(*args)))
    mutate(run)
    assert after_redis == [server.hgetall(RUN)]
    assert after_redis != [before]
    assert dumped(wd) == {name: value for name, value in after_redis[0].items() if not name.startswith("locked:")}
    assert not (wd / "redisprep.dump.bak").exists()


def test_a_full_disk_leaves_the_old_dump(server, wd, monkeypatch):
    run = RedisPrep(str(wd))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run["x"] = 1
    assert (wd / "redisprep.dump").read_text() == '{"attrs:loaded": "true"}'
    assert [path.name for path in wd.iterdir()] == ["redisprep.dump"]
    assert server.hget(RUN, "timestamps:x") == "1"


def test_a_dump_overtaken_between_its_reading_and_its_rename_lacks_nothing(server, wd, monkeypatch):
    slow, fast, replace = RedisPrep(str(wd)), RedisPrep(str(wd)), Path.replace

    def overtaken(self, target):
        monkeypatch.setattr(Path, "replace", replace)
        fast["fast"] = 2
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", overtaken)
    slow["slow"] = 1
    assert dumped(wd) == {"attrs:loaded": "true", "timestamps:slow": "1", "timestamps:fast": "2"}


def hammer(url, wd, name, number):
    configure(url)
    run = RedisPrep(wd)
    for count in range(number):
        run[f"{name}-{count}"] = count


def test_processes_that_dump_at_once_leave_a_whole_dump_that_lacks_nothing(server, wd, redis_url):
    RedisPrep(str(wd))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=hammer, args=(redis_url, str(wd), f"p{n}", 40)) for n in range(3)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert dumped(wd)["attrs:loaded"] == "true"  # json.loads would fail on half a file
        time.sleep(0.001)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(server.hgetall(RUN)) == 121
    assert dumped(wd) == server.hgetall(RUN)
    assert [path.name for path in wd.iterdir()] == ["redisprep.dump"]


def test_a_missing_directory_is_no_error_for_a_mutator(server, tmp_path):
    run = RedisPrep.getInstance(str(tmp_path / "gone"), allow_nonexistent=True)
    run.timestamp(TaskEnum.run_wepp)
    assert server.hget("gone", "timestamps:run_wepp") is not None
    assert not (tmp_path / "gone").exists()


# --- point 4: serialization is one-way ----------------------------------------------------------------------


def test_a_dump_is_never_read_back_by_default(server, wd):
    (wd / "redisprep.dump").write_text('{"attrs:loaded": "true", "timestamps:run_wepp": "7"}')
    run = RedisPrep.getInstance(str(wd))
    assert run["run_wepp"] is None
    assert server.dbsize() == 0


@pytest.mark.parametrize("load", [lambda wd: RedisPrep(wd).lazy_load(), lambda wd: RedisPrep(wd, restore=True)])
def test_lazy_load_and_restore_fill_a_redis_that_knows_nothing(server, wd, load):
    (wd / "redisprep.dump").write_text('{"timestamps:run_wepp": "7", "locked:wepp": "true", "timestamps:x": "1"}')
    server.hset(RUN, "timestamps:x", "2")
    load(str(wd))
    assert server.hgetall(RUN) == {"attrs:loaded": "true", "timestamps:run_wepp": "7", "timestamps:x": "2"}


def test_lazy_load_leaves_a_loaded_run_alone(server, wd):
    run = RedisPrep(str(wd))
    (wd / "redisprep.dump").write_text('{"timestamps:run_wepp": "7"}')
    run.lazy_load()
    assert server.hgetall(RUN) == {"attrs:loaded": "true"}


def test_a_flush_keeps_the_fullest_old_dump_as_backup(server, wd):
    run = RedisPrep(str(wd))
    for name in ("a", "b", "c"):
        run[name] = 1
    full = (wd / "redisprep.dump").read_bytes()
    server.flushall()
    run["d"] = 2
    assert dumped(wd) == {"timestamps:d": "2"}
    assert (wd / "redisprep.dump.bak").read_bytes() == full
    run["e"] = 2
    server.flushall()
    run["f"] = 3  # loses two fields, but the backup has four
    assert (wd / "redisprep.dump.bak").read_bytes() == full


def test_removing_is_no_loss(server, wd):
    run = RedisPrep(str(wd))
    for task in (TaskEnum.run_wepp, TaskEnum.build_soils, TaskEnum.fetch_rap_ts):
        run.timestamp(task)
    run.remove_timestamp(TaskEnum.run_wepp)
    run.remove_all_timestamp()
    assert dumped(wd) == {"attrs:loaded": "true"}
    assert not (wd / "redisprep.dump.bak").exists()


# --- point 5: removing --------------------------------------------------------------------------------------


def test_remove_all_timestamp_removes_only_tasks_in_one_hdel(server, wd):
    run = RedisPrep(str(wd))
    for task in TaskEnum:
        run[task] = 1
    run["own"] = 2
    server.config_resetstat()
    run.remove_all_timestamp()
    assert server.hgetall(RUN) == {"attrs:loaded": "true", "timestamps:own": "2"}
    assert server.info("commandstats")["cmdstat_hdel"]["calls"] == 1


def test_removing_what_is_not_there_succeeds(server, wd):
    run = RedisPrep(str(wd))
    run.remove_timestamp(TaskEnum.run_wepp)
    run.remove_timestamp("own")
    run.remove_all_timestamp()
    assert server.hgetall(RUN) == {"attrs:loaded": "true"}


# --- point 6: call sites ------------------------------------------------------------------------------------


def test_the_idiom_of_call_sites(server, wd, tmp_path):
    for directory in (str(wd), str(tmp_path / "gone")):
        try:  # noqa: SIM105 - as call sites write it
            RedisPrep.getInstance(directory).timestamp(TaskEnum.run_wepp)
        except FileNotFoundError:
            pass
    assert server.keys() == [RUN]
    assert RedisPrep.tryGetInstance(str(tmp_path / "gone")) is None
    assert RedisPrep.tryGetInstance(str(wd), allow_nonexistent=False).run_id == RUN


# --- point 7: timestamps that the strict checks can tell apart ----------------------------------------------


@pytest.mark.parametrize(
    ("newest", "written"),
    [(None, 0), (-100, 0), (-1, 0), (0, 1), (1, 2), (59, 60), (60, 61), (61, 0), (3600, 0)],
)
def test_timestamp_is_after_the_newest_within_a_minute(server, wd, clock, newest, written):
    run = RedisPrep(str(wd))
    if newest is not None:
        run["build_soils"] = clock.now + newest
        run["older"] = clock.now + newest - 500
    run.timestamp(TaskEnum.run_wepp)
    assert run["run_wepp"] == clock.now + written


def test_steps_within_one_second_stay_in_order(server, wd, clock):
    run = RedisPrep(str(wd))
    tasks = [TaskEnum.build_channels, TaskEnum.set_outlet, "own", TaskEnum.abstract_watershed, TaskEnum.set_outlet]
    for task in tasks:
        run.timestamp(task)
    assert [run["build_channels"], run["own"], run["abstract_watershed"], run["set_outlet"]] == [
        clock.now + offset for offset in (0, 2, 3, 4)
    ]


@pytest.mark.parametrize("odd", ["", "soon", "9" * 30, "1714168300.5", " 1714168240 "])
def test_what_is_no_integer_or_far_ahead_does_not_count(server, wd, clock, odd):
    run = RedisPrep(str(wd))
    server.hset(RUN, mapping={"timestamps:odd": odd, "attrs:x": clock.now + 5, "last_modified": clock.now + 5})
    run.timestamp("x")
    assert run["x"] == clock.now


def test_not_monotonic_writes_now(server, wd, clock):
    run = RedisPrep(str(wd), monotonic=False)
    run["build_soils"] = clock.now + 10
    run.timestamp(TaskEnum.run_wepp)
    assert run["run_wepp"] == clock.now


def test_reading_and_writing_a_timestamp_is_one_step(server, wd, clock):
    """Twenty steps by four threads at once: read and write apart, several would get the same second."""
    runs = [RedisPrep(str(wd)) for _ in range(4)]

    def steps(number):
        for count in range(5):
            runs[number].timestamp(f"{number}-{count}")

    threads = [threading.Thread(target=steps, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stamps = [int(value) for name, value in server.hgetall(RUN).items() if name.startswith("timestamps:")]
    assert sorted(stamps) == [clock.now + offset for offset in range(20)]


def test_the_rights_that_the_module_names_are_enough(redis_server, wd, clock):
    rights = ["+hget", "+hgetall", "+hmget", "+hset", "+hsetnx", "+hdel", "+eval", "+multi", "+exec"]
    redis_server.execute("ACL", "SETUSER", "worker", "on", ">w", "~*", "-@all", *rights)
    configure(redis_server.url.replace("//", "//worker:w@"))
    (wd / "redisprep.dump").write_text('{"timestamps:build_soils": "7"}')
    run = RedisPrep(str(wd), restore=True)
    run.timestamp(TaskEnum.run_wepp)
    run.remove_all_timestamp()
    run.has_sbs = True
    assert (run["run_wepp"], run.get_rq_job_ids(), run.has_sbs) == (None, {}, True)
    assert "run_wepp: None" in run.timestamps_report()


# --- point 8: booleans --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("TRUE", True), ("false", False), ("1", False), ("", False)]
)
def test_has_sbs_reads_in_any_case(server, wd, text, value):
    server.hset(RUN, "attrs:has_sbs", text)
    assert RedisPrep(str(wd)).has_sbs is value


def test_booleans_are_written_lower_case(server, wd):
    run = RedisPrep(str(wd))
    run.has_sbs, run.sbs_required = 1, None
    assert server.hmget(RUN, "attrs:has_sbs", "attrs:sbs_required") == ["true", "false"]


# --- point 9: Redis may be restarted at any time ------------------------------------------------------------


def test_a_mutator_goes_on_when_redis_is_back_in_time(redis_server, wd):
    configure(redis_server.url)
    run = RedisPrep(str(wd), retry=30)
    redis_server.kill()
    back = threading.Timer(0.5, redis_server.start)
    back.start()
    run.timestamp(TaskEnum.run_wepp)
    back.join()
    assert run["run_wepp"] is not None
    assert dumped(wd) == {"timestamps:run_wepp": str(run["run_wepp"])}


def test_a_mutator_outlives_a_restart_between_two_calls(redis_server, wd, monkeypatch):
    monkeypatch.setattr(store, "STEP", 10.0)
    configure(redis_server.url)
    run = RedisPrep(str(wd), retry=0)
    redis_server.kill()
    redis_server.start()
    run.timestamp(TaskEnum.run_wepp)
    assert run["run_wepp"] is not None


def hole(kind, request):
    """The URL of a host with one way of not answering; ended with the test."""
    server = socket.socket()
    request.addfinalizer(server.close)
    server.bind(("127.0.0.1", 0))
    if kind == "closed":
        return f"redis://127.0.0.1:{server.getsockname()[1]}"
    server.listen(0 if kind == "swallowing" else 64)
    for _ in range(3 if kind == "swallowing" else 0):
        filler = socket.socket()
        request.addfinalizer(filler.close)
        filler.setblocking(False)
        filler.connect_ex(server.getsockname())
    return f"redis://127.0.0.1:{server.getsockname()[1]}"


HOLES = pytest.mark.parametrize("kind", ["closed", "mute", "swallowing"])


@HOLES
@pytest.mark.parametrize("retry", [0.4, 1.6])
def test_a_mutator_raises_connection_error_within_its_budget(wd, request, kind, retry):
    configure(hole(kind, request))
    (wd / "redisprep.dump").write_text('{"timestamps:x": "1"}')
    run = RedisPrep(str(wd), retry=retry)
    times = []
    while len(times) < 2 or (len(times) < 6 and min(times) >= retry):  # where the machine stood still, once more
        start = time.monotonic()
        with pytest.raises(redis.ConnectionError, match=rf"Redis at redis://.* gave no answer within {retry:g} s"):
            run.timestamp(TaskEnum.run_wepp)
        times.append(time.monotonic() - start)
    assert retry / 3 < min(times) < retry  # its last pause may be one too long
    assert (wd / "redisprep.dump").read_text() == '{"timestamps:x": "1"}'


def test_the_default_budget_is_5_seconds(wd, request):
    configure(hole("mute", request))
    start = time.monotonic()
    with pytest.raises(redis.ConnectionError, match="within 5 s"):
        RedisPrep(str(wd))
    assert 4.0 < time.monotonic() - start < 9.0


@HOLES
def test_best_effort_logs_once_and_goes_on(wd, request, kind, caplog):
    configure(hole(kind, request))
    for _ in range(2):  # a worker makes a RedisPrep per call
        run = RedisPrep(str(wd), best_effort=True, restore=True, retry=0.1)
        run.timestamp(TaskEnum.run_wepp)
        run.has_sbs = True
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "checklist of run run1 was not brought up to date" in caplog.text
    assert list(wd.iterdir()) == []


def test_best_effort_logs_again_in_the_next_outage(redis_server, wd, caplog):
    configure(redis_server.url)
    run = RedisPrep(str(wd), best_effort=True)
    for outage in (1, 2):
        redis_server.kill()
        run._retry = 0.1
        run["x"] = 1
        run["x"] = 2
        redis_server.start()
        run._retry = 30.0
        run["x"] = 3
        assert len(caplog.records) == outage
    assert dumped(wd) == {"timestamps:x": "3"}


def test_getters_raise_too(wd, request):
    configure(hole("closed", request))
    peeked = RedisPrep.peek(RUN)
    peeked._retry = 0.1
    with pytest.raises(redis.ConnectionError):
        _ = peeked.has_sbs


def test_a_wrong_password_is_said_at_once_and_not_repeated(redis_server, wd):
    redis_server.execute("ACL", "SETUSER", "default", "resetpass", ">right")
    configure(redis_server.url.replace("//", "//:wr0ng@"))
    start = time.monotonic()
    with pytest.raises(redis.AuthenticationError) as caught:
        RedisPrep(str(wd), retry=60)
    assert time.monotonic() - start < 30
    assert "wr0ng" not in str(caught.value)


def test_a_password_file(redis_server, wd, tmp_path, monkeypatch):
    secret = "p@ss:w/ö?#%rd"
    redis_server.execute("ACL", "SETUSER", "default", "resetpass", f">{secret}")
    (tmp_path / "password").write_text(secret + "\n")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    RedisPrep(str(wd)).timestamp(TaskEnum.run_wepp)
    assert RedisPrep.peek(RUN)["run_wepp"] is not None
    assert secret not in repr(RedisPrep.peek(RUN)) + repr(connection.address())


def test_a_unix_socket(new_redis, wd, tmp_path):
    new_redis("--unixsocket", str(tmp_path / "redis.sock"))
    configure(f"unix://{tmp_path}/redis.sock")
    RedisPrep(str(wd))["x"] = 1
    assert RedisPrep.peek(RUN)["x"] == 1


FORK = """
import os, sys
from client import RedisPrep
run = RedisPrep(sys.argv[1])
used = run.redis
child = os.fork()
if not child:
    run["child"] = 1
    os._exit(0 if run.redis is not used else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
run["parent"] = 2
sys.exit(status or run["child"] != 1)
"""


def test_a_child_of_a_fork_has_its_own_connection(server, redis_url, wd):
    environment = os.environ | {"REDIS_URL": redis_url}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, str(wd)], check=True, cwd=ROOT, env=environment, timeout=60
    )
    assert dumped(wd) == {"attrs:loaded": "true", "timestamps:child": "1", "timestamps:parent": "2"}


def test_a_redis_without_memory_says_so_and_the_old_dump_stays(redis_server, wd, caplog):
    """Its PUBLISH still works, so the run's lines do, too."""
    configure(redis_server.url)
    run = RedisPrep(str(wd))
    run.timestamp(TaskEnum.build_soils)
    before = (wd / "redisprep.dump").read_bytes()
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory", "1")
    for change in (lambda: run.timestamp(TaskEnum.build_climate), lambda: run.set_rq_job_id("wepp", "j1")):
        with pytest.raises(redis.exceptions.OutOfMemoryError, match="used memory > 'maxmemory'"):
            change()
    RedisPrep(str(wd), best_effort=True).timestamp(TaskEnum.build_climate)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (wd / "redisprep.dump").read_bytes() == before
    assert run["build_soils"] is not None
    assert run["build_climate"] is None


@pytest.mark.parametrize("run_id", [5, b"run1", Path("run1")])
def test_a_run_id_that_is_no_text_is_an_error(server, wd, run_id):
    with pytest.raises(TypeError, match="run_id is a str such as 'batch;;wa;;run1', not"):
        RedisPrep(str(wd), run_id=run_id)


@pytest.mark.parametrize("task", [None, TaskEnum, b"x", 5, ""])
def test_a_task_that_is_no_name_is_an_error_and_nothing_is_written(server, wd, task):
    run = RedisPrep(str(wd))
    before = server.hgetall(RUN)
    for attempt in (
        lambda: run.timestamp(task),
        lambda: run.timed(task),
        lambda: timed(task),
        lambda: run.remove_timestamp(task),
        lambda: run.__setitem__(task, 1),
        lambda: run[task],
        lambda: run.set_rq_job_id(task, "7"),
        lambda: run.set_locked_status(task, True),
    ):
        with pytest.raises((TypeError, ValueError), match=r" is a str, not | is empty"):
            attempt()
    assert server.hgetall(RUN) == before


def test_a_text_is_no_truth(server, wd):
    run = RedisPrep(str(wd))
    for wrong in (lambda: setattr(run, "has_sbs", "false"), lambda: run.set_locked_status("wepp", "false")):
        with pytest.raises(TypeError, match="True or False is wanted here, not 'false'"):
            wrong()
    run.has_sbs = 1
    assert run.has_sbs is True


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"retry": "5"}, "retry is a number of seconds such as 1.0, not '5'"),
        ({"retry": None}, "retry is a number of seconds"),
        ({"dump_interval": "1"}, "dump_interval is a number of seconds"),
    ],
)
def test_seconds_that_are_none(wd, options, error):
    with pytest.raises(TypeError, match=error):
        RedisPrep(str(wd), **options)


def test_what_names_no_run():
    with pytest.raises(TypeError, match="a run id is a str, not 5"):
        RedisPrep.peek(5)
    with pytest.raises(TypeError, match="wd is a str or a Path, not b'/tmp/x'"):
        RedisPrep(b"/tmp/x")
