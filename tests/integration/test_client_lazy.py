"""`RedisPrep(wd, dump="lazy")`, and a disk that is full, slow or read-only (contract, section 2.3)."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from client import RedisPrep, dump, lazy
from tests.integration.worker_rig import ROOT, RUN, dumped, until

pytestmark = pytest.mark.usefixtures("fresh_client")

NAMES = {"attrs:loaded": "true", "timestamps:a": "1", "timestamps:b": "2"}


@pytest.fixture
def writes(monkeypatch):
    """The dumps that were written, one entry each."""
    written = []
    replace = dump._replace

    def counting(path, text):
        written.append(text)
        replace(path, text)

    monkeypatch.setattr(dump, "_replace", counting)
    return written


def test_many_changes_are_one_dump(server, wd, writes):
    with RedisPrep(str(wd), dump="lazy", dump_interval=60.0) as run:
        for number in range(50):
            run["a"] = number
        assert writes == [], "it waits"
        assert server.hget(RUN, "timestamps:a") == "49", "Redis does not"
    assert len(writes) == 1
    assert dumped(wd)["timestamps:a"] == "49"


def test_it_is_written_by_itself(server, wd):
    run = RedisPrep(str(wd), dump="lazy", dump_interval=0.05)
    run["a"] = 1
    run["b"] = 2
    until(lambda: (wd / "redisprep.dump").exists() and dumped(wd) == NAMES)


def test_all_of_a_directory_share_the_clock(server, wd, writes):
    for number in range(20):
        RedisPrep(str(wd), dump="lazy", dump_interval=60.0)["a"] = number
    with RedisPrep(str(wd), dump="lazy", dump_interval=60.0) as run:
        run["b"] = 2
    assert len(writes) == 1
    assert dumped(wd)["timestamps:a"] == "19"


def test_of_two_intervals_the_shorter_counts(tmp_path):
    where = dump.Dump(str(tmp_path))
    first = lazy.lazy_dump(RUN, where, dict, 60.0)
    assert lazy.lazy_dump(RUN, where, dict, 0.5) is first
    assert lazy.lazy_dump(RUN, where, dict, 2.0).interval == 0.5
    assert lazy.lazy_dump("other", where, dict, 2.0) is not first


def test_closing_twice_and_going_on(server, wd, writes):
    run = RedisPrep(str(wd), dump="lazy", dump_interval=60.0)
    run["a"] = 1
    run.close()
    run.close()
    assert len(writes) == 1
    run["b"] = 2
    run.close()
    assert dumped(wd) == NAMES


def test_dump_writes_at_once(server, wd):
    run = RedisPrep(str(wd), dump="lazy", dump_interval=60.0)
    run["a"] = 1
    run.dump()
    assert dumped(wd)["timestamps:a"] == "1"
    run.close()


def test_a_removed_field_needs_no_backup(server, wd):
    with RedisPrep(str(wd), dump="lazy", dump_interval=60.0) as run:
        run["a"] = 1
        run.close()
        run.remove_timestamp("a")
        run["b"] = 2
    assert dumped(wd) == {"attrs:loaded": "true", "timestamps:b": "2"}
    assert not (wd / "redisprep.dump.bak").exists()


def test_a_slow_disk_does_not_hold_the_run_up(server, wd, monkeypatch):
    slow, fsync = threading.Event(), os.fsync
    begun = threading.Event()

    def sync(descriptor):
        begun.set()
        assert slow.wait(10)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    run = RedisPrep(str(wd), dump="lazy", dump_interval=0.01)
    run["a"] = 1
    assert begun.wait(10)
    run["b"] = 2  # while the disk is at it
    assert server.hget(RUN, "timestamps:b") == "2"
    slow.set()
    run.close()
    assert dumped(wd) == NAMES


def test_a_failure_of_the_thread_is_one_warning_and_close_raises_it(server, wd, monkeypatch, caplog):
    run = RedisPrep(str(wd), dump="lazy", dump_interval=0.01)
    run["a"] = 1
    until(lambda: (wd / "redisprep.dump").exists())
    before = (wd / "redisprep.dump").read_text()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        for number in range(3):
            run["b"] = number
            until(lambda: "was not written" in caplog.text)
        with pytest.raises(OSError, match="No space left on device, so the dump is as it was before; Redis has the"):
            run.close()
        assert (wd / "redisprep.dump").read_text() == before
    assert caplog.text.count("was not written, trying again with the next change") == 1
    run.close()
    assert dumped(wd) == NAMES


EXIT = """
import sys, os
from client import RedisPrep
run = RedisPrep(sys.argv[1], dump="lazy", dump_interval=60.0)
run["a"] = 1
run["b"] = 2
"""

CHILD = """
import multiprocessing, sys
from client import RedisPrep
run = RedisPrep(sys.argv[1], dump="lazy", dump_interval=60.0)
def work():
    run["a"] = 1
    run["b"] = 2
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
assert child.exitcode == 0
import os; os._exit(0)
"""


@pytest.mark.parametrize("source", [EXIT, CHILD], ids=["exit", "child of multiprocessing"])
def test_the_end_of_a_process_writes_it(server, redis_url, wd, source):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source, str(wd)],
        cwd=ROOT, env=os.environ | {"REDIS_URL": redis_url}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert dumped(wd) == NAMES


# --- real disks ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A working directory on a file system of 64 KiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    (place / RUN).mkdir()
    yield place / RUN
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.needs("mount")
def test_a_disk_that_is_really_full(server, small_disk):
    run = RedisPrep(str(small_disk))
    before = (small_disk / "redisprep.dump").read_text()
    (small_disk.parent / "filler").write_bytes(b"x" * 40_000)
    with pytest.raises(OSError, match="No space left on device, so the dump is as it was before") as caught:
        run.set_rq_job_id("wepp", "x" * 50_000)
    assert Path(caught.value.filename).name == "redisprep.dump"
    assert server.hget(RUN, "rq:wepp") == "x" * 50_000, "Redis has it"
    assert (small_disk / "redisprep.dump").read_text() == before
    assert [path.name for path in small_disk.iterdir()] == ["redisprep.dump"], "no half file stays"
    run.set_rq_job_id("wepp", "7")
    assert dumped(small_disk)["rq:wepp"] == "7"


@pytest.mark.needs("mount")
def test_a_read_only_disk(server, small_disk):
    run = RedisPrep(str(small_disk))
    before = (small_disk / "redisprep.dump").read_text()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.parent)], check=True)
    with pytest.raises(OSError, match="Read-only file system, so the dump is as it was before; Redis has the change"):
        run["a"] = 1
    assert server.hget(RUN, "timestamps:a") == "1"
    assert (small_disk / "redisprep.dump").read_text() == before
    with RedisPrep(str(small_disk), best_effort=True) as forgiving:
        forgiving["b"] = 2
    assert server.hget(RUN, "timestamps:b") == "2"


@pytest.mark.needs("mount")
def test_a_lazy_dump_that_could_never_be_written_is_an_error_at_once(server, small_disk, caplog):
    """Later there would be nobody to tell but the log: a thread writes it."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.parent)], check=True)
    with pytest.raises(PermissionError, match="no dump can be written here; mend the rights, or the mount"):
        RedisPrep(str(small_disk), dump="lazy")
    RedisPrep(str(small_disk), dump="lazy", best_effort=True)["a"] = 1
    assert server.hget(RUN, "timestamps:a") == "1"
    assert "no dump can be written here" in caplog.text


@pytest.mark.needs("mount")
def test_a_step_whose_end_could_not_be_kept_has_failed(server, small_disk):
    run = RedisPrep(str(small_disk))
    with pytest.raises(OSError, match="Read-only"), run.timed("a", failed=True):
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk.parent)], check=True)
    assert {"timestamps:a", "failed:a"} <= set(server.hkeys(RUN))


def test_what_the_disk_refused_once_is_written_at_close(server, wd, caplog):
    """Its thread was the only one that knew of it, and is gone by then."""
    run = RedisPrep(str(wd), dump="lazy", dump_interval=0.01)
    until(lambda: (wd / "redisprep.dump").exists())
    (wd / "redisprep.dump").unlink()
    (wd / "redisprep.dump").mkdir()
    run["a"] = 1
    until(lambda: "was not written, trying again with the next change" in caplog.text)
    (wd / "redisprep.dump").rmdir()
    gc.collect()
    run.close()
    assert dumped(wd)["timestamps:a"] == "1"
    assert run._lazy_dump(0.01) not in lazy._unwritten
