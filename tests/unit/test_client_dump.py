"""The dump file alone, fed by functions in place of Redis (contract, section 2, points 3 and 4)."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from client import dump as module
from client.dump import Dump


@pytest.fixture
def dump(tmp_path):
    return Dump(str(tmp_path))


def test_one_json_object_with_default_separators_and_no_locks(dump):
    dump.save(lambda: {"attrs:loaded": "true", "locked:wepp": "true", "timestamps:x": "1"})
    assert dump.path.read_bytes() == b'{"attrs:loaded": "true", "timestamps:x": "1"}'
    assert [path.name for path in dump.path.parent.iterdir()] == ["redisprep.dump"]


def test_a_field_that_came_between_reading_and_renaming_is_not_missing(dump):
    answers = [{"a": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}]
    dump.save(lambda: answers.pop(0))
    assert json.loads(dump.path.read_text()) == {"a": "1", "b": "2"}
    assert answers == []


def test_fields_of_a_faster_process_are_read_again_before_they_count_as_lost(dump):
    dump.path.write_text('{"a": "1", "b": "2"}')
    answers = [{"a": "1"}, {"a": "1", "b": "2"}, {"a": "1", "b": "2"}]
    dump.save(lambda: answers.pop(0))
    assert not dump.backup.exists()


def test_lost_fields_keep_the_old_dump_as_backup(dump):
    old = '{"a":"1",   "b":"2"}'
    dump.path.write_text(old)
    dump.save(lambda: {"a": "5"})
    assert dump.backup.read_text() == old
    assert json.loads(dump.path.read_text()) == {"a": "5"}


def test_removed_and_changed_fields_are_no_loss(dump):
    dump.path.write_text('{"a": "1", "b": "2"}')
    dump.save(lambda: {"a": "5"}, removed=["b", "c"])
    assert not dump.backup.exists()


@pytest.mark.parametrize(("backup_fields", "replaced"), [(1, True), (2, True), (3, False)])
def test_a_backup_is_replaced_only_by_one_with_at_least_as_many_fields(dump, backup_fields, replaced):
    before = json.dumps({f"old{number}": "1" for number in range(backup_fields)})
    dump.backup.write_text(before)
    dump.path.write_text('{"a": "1", "b": "2"}')
    dump.save(dict)
    assert dump.backup.read_text() == ('{"a": "1", "b": "2"}' if replaced else before)


@pytest.mark.parametrize("half", [b'{"a": "1', b"", b"[1]", b"\xff"])
def test_half_a_dump_of_an_older_worker_is_written_over(dump, half):
    dump.path.write_bytes(half)
    dump.save(lambda: {"b": "2"})
    assert json.loads(dump.path.read_text()) == {"b": "2"}
    assert not dump.backup.exists()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_dump_and_no_scratch_file(dump, monkeypatch, broken):
    dump.path.write_text('{"a": "1"}')

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[broken], fail)
    with pytest.raises(OSError, match="No space"):
        dump.save(lambda: {"a": "1", "b": "2"})
    assert dump.path.read_text() == '{"a": "1"}'
    assert [path.name for path in dump.path.parent.iterdir()] == ["redisprep.dump"]


def test_the_content_is_on_disk_before_the_rename(dump, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_size), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(to.name), replace(self, to)))
    dump.save(lambda: {"a": "1"})
    assert events == [len('{"a": "1"}'), "redisprep.dump"]


def test_the_rights_are_those_of_the_umask(dump):
    before = os.umask(0o027)
    try:
        dump.save(lambda: {"a": "1"})
    finally:
        os.umask(before)
    assert dump.path.stat().st_mode & 0o777 == 0o640


def test_nothing_is_written_where_the_directory_is_gone(tmp_path):
    dump = Dump(str(tmp_path / "gone"))
    dump.save(lambda: {"a": "1"})
    assert not dump.path.parent.exists()


def test_who_writes_without_a_pause_holds_up_nobody_else(dump, monkeypatch):
    """With 50 writes a second on a disk of 25 ms, a timestamp had not returned after 20 s."""
    clock, reads = SimpleNamespace(now=100.0), iter(range(50))
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)

    def read():
        clock.now += module.PATIENCE / 4
        return {"a": str(next(reads))}

    dump.save(read)
    assert dump.load() == {"a": "3"}
    assert next(reads) == 5, "one read ahead of the four writes that there was time for, and one behind each"


def test_load(dump):
    assert dump.load() == {}
    dump.path.write_text('{"timestamps:x": 7, "locked:y": "true"}')
    assert dump.load() == {"timestamps:x": "7"}


@pytest.mark.parametrize("text", ['{"a', "[]"])
def test_load_says_what_is_wrong_with_the_file(dump, text):
    dump.path.write_text(text)
    with pytest.raises(ValueError, match=r"redisprep\.dump is no JSON.*move it away"):
        dump.load()
