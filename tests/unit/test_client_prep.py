"""RedisPrep's rules that need no Redis; the rest is in the integration tests (contract, section 2)."""

import inspect

import pytest

from client import RedisPrep, TaskEnum, connection, prep
from client.connection import Address

SURFACE = """
    __getitem__ __setitem__ clear_archive_job_id dump dump_filepath get_archive_job_id get_locked_status get_rq_job_id
    get_rq_job_ids getInstance getInstanceFromRunID has_sbs lazy_load peek redis remove_all_timestamp remove_timestamp
    sbs_required set_archive_job_id set_locked_status set_rq_job_id timestamp timestamps_report tryGetInstance
"""


@pytest.fixture
def no_redis(monkeypatch):
    """Fails the test if Redis is so much as asked for."""

    def fail(*_):
        raise AssertionError("Redis was asked")

    monkeypatch.setattr(prep, "store", fail)
    monkeypatch.setattr(connection, "_found", Address("127.0.0.1", 1))


def existing(tmp_path, name="run1"):
    wd = tmp_path / name
    wd.mkdir(parents=True)
    (wd / "redisprep.dump").write_text("{}")
    return wd


def test_the_surface_is_that_of_the_contract():
    shown = str(inspect.signature(RedisPrep)).replace("'", '"')
    for part in (
        "(wd: str, cfg_fn: str | None = None, *, run_id: str | None = None, restore: bool = False,",
        'monotonic: bool = True, best_effort: bool = False, retry: float = 5.0, dump: str = "now",',
    ):
        assert part in shown
    later = {"allow_nonexistent": False, "ignore_lock": False}
    for method, expected in (
        (RedisPrep.getInstance, {"wd": "."} | later),
        (RedisPrep.tryGetInstance, {"wd": "."} | later | {"allow_nonexistent": True}),
        (RedisPrep.getInstanceFromRunID, {"runid": inspect.Parameter.empty} | later),
    ):
        found = {name: each.default for name, each in inspect.signature(method).parameters.items()}
        assert found == expected
    assert set(SURFACE.split()) <= set(dir(RedisPrep))


@pytest.mark.parametrize(
    ("tail", "run_id"), [("run1", "run1"), ("run1/", "run1"), ("run1//", "run1"), ("b/run1", "run1")]
)
def test_the_run_id_is_the_last_part(tmp_path, no_redis, tail, run_id):
    existing(tmp_path, tail)
    found = RedisPrep(f"{tmp_path}/{tail}")
    assert (found.run_id, found.wd) == (run_id, f"{tmp_path}/{tail}")


@pytest.mark.parametrize("dot", [".", "./", "sub/.."])
def test_a_dot_is_resolved_first(tmp_path, no_redis, monkeypatch, dot):
    (existing(tmp_path) / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "run1")
    found = RedisPrep(dot)
    monkeypatch.chdir(tmp_path)
    assert found.run_id == "run1"
    assert found.dump_filepath == str(tmp_path / "run1" / "redisprep.dump")


def test_an_explicit_run_id_wins(tmp_path, no_redis):
    assert RedisPrep(str(existing(tmp_path)), run_id="batch;;b;;run1").run_id == "batch;;b;;run1"


def test_a_path_object_will_do(tmp_path, no_redis):
    assert RedisPrep(existing(tmp_path)).run_id == "run1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dump": "later"}, "dump='later' is not known; it is 'now' or 'lazy'"),
        ({"retry": -1}, "retry=-1 is no number of seconds"),
        ({"retry": float("nan")}, "retry=nan"),
        ({"run_id": ""}, "gives no run id"),
        ({"dump": "lazy", "dump_interval": 0}, "dump_interval=0 is no number of seconds"),
    ],
)
def test_an_argument_out_of_range(tmp_path, no_redis, options, message):
    with pytest.raises(ValueError, match=message):
        RedisPrep(str(existing(tmp_path)), **options)


def test_the_root_is_no_run(no_redis):
    with pytest.raises(ValueError, match="gives no run id"):
        RedisPrep("/")


def test_constructing_beside_a_dump_asks_redis_nothing(tmp_path, no_redis):
    assert RedisPrep(str(existing(tmp_path)), "0.cfg").cfg_fn == "0.cfg"


def test_peek_reads_and_writes_nothing(no_redis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    peeked = RedisPrep.peek("run1")
    assert (peeked.run_id, peeked.wd, peeked.cfg_fn) == ("run1", None, None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="needs a run id"):
        RedisPrep.peek("")


MUTATORS = [
    lambda prep: prep.timestamp(TaskEnum.run_wepp),
    lambda prep: prep.remove_timestamp("x"),
    lambda prep: prep.remove_all_timestamp(),
    lambda prep: prep.__setitem__("x", 1),
    lambda prep: setattr(prep, "has_sbs", True),
    lambda prep: setattr(prep, "sbs_required", True),
    lambda prep: prep.set_rq_job_id("x", "1"),
    lambda prep: prep.set_archive_job_id("1"),
    lambda prep: prep.clear_archive_job_id(),
    lambda prep: prep.set_locked_status("wepp.nodb", True),
    lambda prep: prep.dump(),
]


@pytest.mark.parametrize("mutate", MUTATORS)
def test_a_peeked_prep_cannot_write(no_redis, mutate):
    with pytest.raises(TypeError, match=r"comes from peek\(\), so it can only read"):
        mutate(RedisPrep.peek("run1"))


def test_get_instance_of_a_missing_directory(tmp_path, no_redis):
    missing = str(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        RedisPrep.getInstance(missing)
    assert RedisPrep.tryGetInstance(missing) is None
    assert RedisPrep.tryGetInstance(missing, allow_nonexistent=False) is None


def test_get_instance_from_run_id_asks_the_resolver(tmp_path, no_redis, monkeypatch):
    monkeypatch.setattr(connection, "_resolver", None)
    with pytest.raises(RuntimeError, match="resolver"):
        RedisPrep.getInstanceFromRunID("batch;;b;;run1")
    existing(tmp_path)
    monkeypatch.setattr(connection, "_resolver", lambda run_id: str(tmp_path / run_id.rpartition(";;")[2]))
    found = RedisPrep.getInstanceFromRunID("batch;;b;;run1")
    assert (found.run_id, found.wd) == ("batch;;b;;run1", str(tmp_path / "run1"))
    with pytest.raises(FileNotFoundError):
        RedisPrep.getInstanceFromRunID("batch;;b;;run2")


@pytest.mark.parametrize("make", [RedisPrep, RedisPrep.getInstance, RedisPrep.tryGetInstance])
def test_an_empty_directory_is_none(no_redis, make):
    with pytest.raises(ValueError, match=r"wd is empty; name a run's directory, or '\.' for this one"):
        make("")


@pytest.mark.parametrize(
    "record", [lambda run: run.set_rq_job_id("wepp", None), lambda run: run.set_archive_job_id(None)]
)
def test_no_job_has_the_id_none(record):
    with pytest.raises(TypeError, match="was the job enqueued"):
        record(object.__new__(RedisPrep))
