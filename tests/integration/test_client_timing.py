"""`prep.timed`, `@timed` and `prep.locked`: what they leave in Redis and say on a channel."""

import asyncio
import errno

import pytest

from client import RedisPrep, TaskEnum, configure, connection, dump, timed
from tests.integration.worker_rig import RUN, heard, subscribed

pytestmark = pytest.mark.usefixtures("fresh_client")

CLIMATE = TaskEnum.build_climate
NOW = "1714168234"


class StepError(Exception):
    pass


def fields(server):
    return {name: value for name, value in server.hgetall(RUN).items() if name != "attrs:loaded"}


def test_a_timestamp_on_success_and_nothing_else(server, wd, clock):
    with RedisPrep(str(wd)).timed(CLIMATE):
        assert fields(server) == {}
    assert fields(server) == {"timestamps:build_climate": NOW}


def test_no_timestamp_on_failure_and_the_exception_is_the_same(server, wd):
    error = StepError("x")
    with pytest.raises(StepError) as caught, RedisPrep(str(wd)).timed(CLIMATE):
        raise error
    assert caught.value is error
    assert fields(server) == {}


def test_when_it_began_and_failed_if_asked(server, wd, clock):
    run = RedisPrep(str(wd))

    def step():
        with run.timed(CLIMATE, started=True, failed=True):
            assert fields(server) == {"started:build_climate": NOW}
            clock.now += 5
            raise StepError

    with pytest.raises(StepError):
        step()
    assert fields(server) == {"started:build_climate": NOW, "failed:build_climate": "1714168239"}
    clock.now += 5
    with run.timed(CLIMATE, started=True, failed=True):
        assert fields(server) == {"started:build_climate": "1714168244"}, "an earlier failure is past"
        clock.now += 5
    assert fields(server) == {"started:build_climate": "1714168244", "timestamps:build_climate": "1714168249"}


@pytest.mark.parametrize(("channel", "where"), [("wepp", "run1:wepp"), ("run9:rq", "run9:rq")])
def test_lines_if_a_channel_is_given(server, redis_url, wd, channel, where):
    run = RedisPrep(str(wd))
    with subscribed(redis_url, where) as following:
        with run.timed(CLIMATE, channel=channel):
            assert following()[1] == b"STARTED build_climate(run1)"
        assert following()[1] == b"COMPLETED build_climate(run1)"
        assert "timestamps:build_climate" in fields(server), "the timestamp comes before the line"
        with pytest.raises(StepError), run.timed(CLIMATE, channel=channel):
            raise StepError
        assert heard(following, "EXCEPTION build_climate(run1)")[0] == "STARTED build_climate(run1)"


def test_what_is_optional_never_stops_a_step(wd, monkeypatch, caplog):
    (wd / "redisprep.dump").write_text("{}")
    configure("redis://127.0.0.1:1")
    run = RedisPrep(str(wd), retry=0)
    with pytest.raises(StepError, match="the step ran"), run.timed(CLIMATE, started=True, failed=True, channel="wepp"):
        raise StepError("the step ran")
    assert caplog.text.count("was not brought up to date, going on") == 2


def test_a_decorated_function_finds_its_run(server, wd):
    configure(resolver=lambda run_id: str(wd) if run_id == RUN else "/nowhere")

    class Climate:
        def __init__(self):
            self.wd = str(wd)

        @timed("method")
        def build(self, years):
            return years

    @timed("by_wd")
    def by_wd(years, wd=str(wd)):
        return years

    @timed("by_run")
    def by_run(runid):
        return runid

    @timed("by_prep")
    def by_prep(prep):
        return prep.run_id

    @timed("by_rule", prep=lambda config: RedisPrep.getInstance(config["where"]))
    def by_rule(config):
        return 5

    @timed("fixed", prep=RedisPrep(str(wd)))
    def fixed():
        return 6

    run = RedisPrep(str(wd))
    assert (Climate().build(1), by_wd(2), by_run(RUN), by_prep(run), by_rule({"where": str(wd)}), fixed()) == (
        1, 2, RUN, RUN, 5, 6,
    )  # fmt: skip
    assert {name.partition(":")[2] for name in fields(server)} == {
        "method", "by_wd", "by_run", "by_prep", "by_rule", "fixed",
    }  # fmt: skip
    with pytest.raises(FileNotFoundError):
        by_run("other")


def test_a_decorated_coroutine(server, redis_url, wd):
    @timed(CLIMATE, started=True, failed=True, channel="wepp")
    async def build(wd, fail=False):
        await asyncio.sleep(0)
        if fail:
            raise StepError
        return "built"

    with subscribed(redis_url, "run1:wepp") as following:
        assert asyncio.run(build(str(wd))) == "built"
        assert set(fields(server)) == {"started:build_climate", "timestamps:build_climate"}
        with pytest.raises(StepError):
            asyncio.run(build(str(wd), fail=True))
        assert set(fields(server)) == {"started:build_climate", "timestamps:build_climate", "failed:build_climate"}
        call = f"build({wd})"
        assert heard(following, f"EXCEPTION build({wd}, fail=True)")[:2] == [f"STARTED {call}", f"COMPLETED {call}"]


def test_a_cancelled_coroutine_has_failed(server, wd):
    begun = asyncio.Event()

    @timed(CLIMATE, failed=True)
    async def build(wd):
        begun.set()
        await asyncio.Event().wait()

    async def cancelled():
        task = asyncio.create_task(build(str(wd)))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert set(fields(server)) == {"failed:build_climate"}


def test_misuse_is_said_where_it_is_written():
    with pytest.raises(TypeError, match=r"has no parameter that names a run \(prep, self, cls, wd, runid, run_id\)"):

        @timed(CLIMATE)
        def lost(years):
            pass

    with pytest.raises(TypeError, match="is a generator"):

        @timed(CLIMATE)
        def lines(wd):
            yield

    with pytest.raises(ValueError, match="the channel is empty"):
        timed(CLIMATE, channel="")


def test_a_call_that_names_no_run_is_said(server):
    @timed(CLIMATE)
    def build(self):
        pass

    with pytest.raises(TypeError, match="no run is to be found"):
        build(object())


def test_locked_shows_a_lock_and_takes_it_away(server, wd):
    run = RedisPrep(str(wd))
    with run.locked("wepp"):
        assert fields(server) == {"locked:wepp": "true"}
    assert fields(server) == {"locked:wepp": "false"}
    with pytest.raises(StepError), run.locked("wepp"):
        raise StepError
    assert fields(server) == {"locked:wepp": "false"}


def test_a_lock_that_cannot_be_taken_away_hides_no_exception(redis_server, tmp_path, caplog):
    configure(redis_server.url)
    run = RedisPrep(str(tmp_path), run_id=RUN, retry=0)

    def step():
        with run.locked("wepp"):
            redis_server.kill()
            raise StepError

    with pytest.raises(StepError):
        step()
    assert "was not brought up to date, going on" in caplog.text


def test_the_run_id_of_a_nested_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_run_id_resolver", None)
    for part in ("batch/b1/runs/r1", "plain"):
        (tmp_path / part).mkdir(parents=True)

    def run_id_of(directory):
        parts = directory.split("/")
        return f"batch;;{parts[-3]};;{parts[-1]}" if "batch" in parts else None

    configure(run_id_resolver=run_id_of)
    nested = RedisPrep(str(tmp_path / "batch/b1/runs/r1/"))
    assert nested.run_id == "batch;;b1;;r1"
    assert RedisPrep.getInstance(str(tmp_path / "plain")).run_id == "plain"
    assert RedisPrep(str(tmp_path / "plain"), run_id="mine").run_id == "mine"
    monkeypatch.chdir(tmp_path / "batch/b1/runs")
    assert RedisPrep("r1").run_id == "batch;;b1;;r1", "it is asked with an absolute path"
    configure(run_id_resolver=lambda _: 7)
    with pytest.raises(TypeError, match="the run_id_resolver gave 7 for"):
        RedisPrep(str(tmp_path / "plain"))
    with pytest.raises(TypeError, match="takes a function from directory to run id"):
        configure(run_id_resolver="r1")


def test_a_full_disk_leaves_no_lock_and_no_step_without_an_end(server, redis_url, wd, monkeypatch):
    run = RedisPrep(str(wd))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dump.Dump, "save", full)
    with pytest.raises(OSError, match="No space left"), run.locked("wepp"):
        pytest.fail("the lock was not taken")
    assert fields(server) == {"locked:wepp": "false"}
    with subscribed(redis_url, "run1:wepp") as following:
        with pytest.raises(OSError, match="No space left"), run.timed(CLIMATE, channel="wepp"):
            pass
        ended = "EXCEPTION build_climate(run1)"
        assert heard(following, ended) == ["STARTED build_climate(run1)", ended]
