"""client.aio: each twin does what its twin does, and the event loop goes on meanwhile."""

import asyncio
import contextlib
import inspect
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
import redis.exceptions

from client import StatusMessenger as Plain
from client import TaskEnum, aio, configure, connection, lines, messenger, prep, stream, timed, timing
from client.aio import RedisPrep, StatusMessenger, run_and_stream
from client.testing import CaptureMessenger
from tests.integration.worker_rig import PATIENT, RUN, closed_port, mute_server, subscribed

ROOT = Path(__file__).parents[2]
CLIMATE = TaskEnum.build_climate
CHANNEL = f"{RUN}:wepp"


pytestmark = pytest.mark.usefixtures("fresh_client")


def fields(server):
    return {name: value for name, value in server.hgetall(RUN).items() if name != "attrs:loaded"}


class Pulse:
    """Seconds that the event loop stood still at most, less those of a thread beside it, which are the machine's."""

    async def __aenter__(self):
        self._longest = self._beside = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_beside)
        self._thread.start()
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc):
        await asyncio.sleep(0.01)  # for a last beat, late as it may be
        self._task.cancel()
        self._over.set()
        self._thread.join()

    @property
    def longest(self):
        return self._longest - self._beside

    async def _beat(self):
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            self._longest, last = max(self._longest, now - last), now

    def _beat_beside(self):
        last = time.monotonic()
        while not self._over.wait(0.001):
            now = time.monotonic()
            self._beside, last = max(self._beside, now - last), now


# --- each has its twin -------------------------------------------------------------------------------------------

# What is not awaited in the twin either, and what is another name there.
PROMPT = {"StatusMessenger": {"queued", "counts"}, "RedisPrep": {"peek", "timed", "locked", "dump_filepath"}}
RENAMED = {"__getitem__": "get", "__setitem__": "set", "__enter__": "__aenter__", "__exit__": "__aexit__"}
# A redis-py client that blocks; `prep.sync.redis` has it. Pickling; and what only the twin's own insides are made of.
WITHOUT = {"redis", "__getstate__", "__setstate__", "__init__", "__repr__"}


def public(cls):
    names = [name for name in vars(cls) if (not name.startswith("_") or name in RENAMED) and name not in WITHOUT]
    return {name: vars(cls)[name] for name in names}


def dumped(run):
    return json.loads(Path(run.dump_filepath).read_text())


@pytest.mark.parametrize("theirs", [messenger.StatusMessenger, prep.RedisPrep], ids=lambda found: found.__name__)
def test_every_method_has_a_twin_of_the_same_arguments(theirs):
    ours = getattr(aio, theirs.__name__)
    assert len(public(theirs)) >= 6
    for name, value in public(theirs).items():
        twin = inspect.getattr_static(ours, RENAMED.get(name, name))
        if isinstance(value, property):
            if name not in PROMPT[theirs.__name__]:
                assert inspect.iscoroutinefunction(twin), name
                assert (value.fset is None) or inspect.iscoroutinefunction(vars(ours)[f"set_{name}"]), name
            continue
        given, wanted = (inspect.signature(getattr(found, "__func__", found)) for found in (twin, value))
        assert given.parameters.keys() == wanted.parameters.keys() or name == "__exit__", name
        assert [p.default for p in given.parameters.values()] == [p.default for p in wanted.parameters.values()], name
        awaited = inspect.iscoroutinefunction(getattr(twin, "__func__", twin))
        assert awaited == (name not in PROMPT[theirs.__name__]), name
        assert twin.__doc__ or name.startswith("__"), name


def test_the_command_takes_what_its_twin_takes():
    """Its options are handed on as they are."""
    assert list(inspect.signature(run_and_stream).parameters) == ["args", "channel", "options"]
    assert list(inspect.signature(stream.run_and_stream).parameters)[:2] == ["args", "channel"]


# --- the checklist -----------------------------------------------------------------------------------------------


async def test_all_that_a_checklist_does(server, wd):
    run = await RedisPrep.getInstance(str(wd))
    assert (run.run_id, run.wd, run.cfg_fn) == (RUN, str(wd), None)
    assert repr(run) == f"<RedisPrep {RUN}>"
    await run.timestamp(CLIMATE)
    await run.set("build_soils", 7)
    await run.set_sbs_required(True)
    await run.set_has_sbs(False)
    await run.set_rq_job_id("run_wepp", "j1")
    await run.set_archive_job_id("a1")
    await run.set_locked_status("wepp", True)
    await run.note("started:run_wepp", 9)
    assert abs(await run.get(CLIMATE) - time.time()) < 60
    assert (await run.get("build_soils"), await run.get("abstract_watershed")) == (7, None)
    assert (await run.sbs_required(), await run.has_sbs()) == (True, False)
    assert (await run.get_rq_job_id("run_wepp"), await run.get_rq_job_ids()) == ("j1", {"run_wepp": "j1"})
    assert await run.get_archive_job_id() == "a1"
    assert await run.get_locked_status("wepp") is True
    assert f"build_climate: {await run.get(CLIMATE)}" in await run.timestamps_report()
    assert fields(server)["started:run_wepp"] == "9"
    await run.note("failed:run_wepp", 10, gone="started:run_wepp")
    assert "started:run_wepp" not in fields(server)
    await run.clear_archive_job_id()
    await run.set_locked_status("wepp", False)
    await run.remove_timestamp("build_soils")
    assert (await run.get_archive_job_id(), await run.get("build_soils")) == (None, None)
    await run.remove_all_timestamp()
    assert await run.get(CLIMATE) is None
    await run.dump()
    assert dumped(run)["rq:run_wepp"] == "j1"
    server.delete(RUN)
    await run.lazy_load()
    assert await run.get_rq_job_ids() == {"run_wepp": "j1"}


async def test_the_ways_to_a_checklist(server, wd, monkeypatch):
    monkeypatch.setattr(connection, "_resolver", None)
    configure(resolver=lambda run_id: str(wd))
    async with await RedisPrep.open(str(wd), "a.cfg", run_id="other", dump="lazy", dump_interval=600) as run:
        assert (run.run_id, run.cfg_fn) == ("other", "a.cfg")
        await run.timestamp(CLIMATE)
        with pytest.raises(FileNotFoundError):
            dumped(run)
    assert "timestamps:build_climate" in dumped(run)
    assert (await RedisPrep.getInstanceFromRunID("run7")).wd == str(wd)
    assert await RedisPrep.tryGetInstance(str(wd / "none")) is None
    assert (await RedisPrep.tryGetInstance(str(wd))).run_id == RUN
    assert await RedisPrep.peek("other").get(CLIMATE)
    with pytest.raises(FileNotFoundError):
        await RedisPrep.getInstance(str(wd / "none"))
    with pytest.raises(TypeError, match="comes from peek"):
        await RedisPrep.peek("other").timestamp(CLIMATE)


async def test_the_loop_goes_on_while_redis_is_away(wd):
    with mute_server() as url:
        configure(url)
        run = RedisPrep(prep.RedisPrep.__new__(prep.RedisPrep))
        run.sync.__setstate__({"wd": str(wd), "cfg_fn": None, "run_id": RUN})
        run.sync._retry = 0.5
        async with Pulse() as pulse:
            tasks = [run.timestamp(CLIMATE), run.get(CLIMATE), StatusMessenger.publish(CHANNEL, "x")]
            ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ended[:2]] == [redis.exceptions.TimeoutError, redis.exceptions.TimeoutError] or all(
        isinstance(end, redis.exceptions.RedisError) for end in ended[:2]
    )
    assert ended[2] is None
    assert pulse.longest < 0.3, "as long as no call takes at least"


# --- steps -------------------------------------------------------------------------------------------------------


async def test_a_step(server, wd):
    run = await RedisPrep.getInstance(str(wd))
    with CaptureMessenger() as said:
        async with run.timed(CLIMATE, started=True, failed=True, channel="wepp"):
            assert set(fields(server)) == {"started:build_climate"}
        with pytest.raises(ZeroDivisionError):
            async with run.timed(CLIMATE, started=True, failed=True, channel="wepp"):
                raise ZeroDivisionError
    call = f"build_climate({RUN})"
    assert said.lines(CHANNEL) == [f"STARTED {call}", f"COMPLETED {call}", f"STARTED {call}", f"EXCEPTION {call}"]
    assert set(fields(server)) == {"started:build_climate", "failed:build_climate", "timestamps:build_climate"}
    with pytest.raises(ValueError, match="the channel is empty"):
        run.timed(CLIMATE, channel="")


async def test_a_lock_goes_also_where_the_task_is_cancelled(server, wd):
    run, held = await RedisPrep.getInstance(str(wd)), asyncio.Event()

    async def hold():
        async with run.locked("wepp"):
            held.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await held.wait()
    assert fields(server) == {"locked:wepp": "true"}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fields(server) == {"locked:wepp": "false"}


def test_the_job_of_a_line_is_that_of_the_caller(server, wd, monkeypatch):
    """rq before 3.0 knows the job in the thread alone that runs it."""
    monkeypatch.setattr(
        lines, "job_prefix", lambda: "rq:7 " if threading.current_thread() is threading.main_thread() else ""
    )
    for module in (prep, timing):
        monkeypatch.setattr(module, "job_prefix", lines.job_prefix)

    @timed(CLIMATE, channel="wepp")
    async def build(wd):
        pass

    async def main():
        async with (await RedisPrep.getInstance(str(wd))).timed(CLIMATE, channel="wepp"):
            pass
        await build(str(wd))

    with CaptureMessenger() as said:
        asyncio.run(main())
    assert len(said.lines(CHANNEL)) == 4
    assert all(line.startswith("rq:7 ") for line in said.lines(CHANNEL))


# --- messages ----------------------------------------------------------------------------------------------------


async def test_messages_arrive_in_the_order_of_their_calls(redis_url):
    configure(redis_url)
    with subscribed(redis_url, CHANNEL, f"{RUN}:command") as following:
        counts = await asyncio.gather(*(StatusMessenger.publish(CHANNEL, str(number)) for number in range(300)))
        assert counts == [1] * 300
        assert [following()[1] for _ in range(300)] == [b"%d" % number for number in range(300)]
        assert await StatusMessenger.publish_command(RUN, "stop") == 1
        assert following() == (f"{RUN}:command", b"stop")
        assert await StatusMessenger.flush(1) is True
    assert StatusMessenger.counts().published == 301


async def test_queued(redis_url):
    configure(redis_url)
    await StatusMessenger.configure(queue=True)
    with subscribed(redis_url, CHANNEL) as following:
        publish = StatusMessenger.publish(CHANNEL, "first")
        with pytest.raises(StopIteration) as ended:
            publish.send(None)  # it waits for nothing at all
        assert ended.value.value is None
        assert await StatusMessenger.publish(CHANNEL, "second", strict=True) == 1
        assert await StatusMessenger.flush() is True
        assert [following()[1], following()[1]] == [b"first", b"second"]
    assert StatusMessenger.queued() is Plain.queued() is not None
    assert StatusMessenger.counts() == Plain.counts()
    await StatusMessenger.configure(queue=False)
    assert StatusMessenger.queued() is None


@pytest.mark.parametrize(
    ("channel", "message", "error"), [("", "x", ValueError), (7, "x", TypeError), (CHANNEL, None, TypeError)]
)
@pytest.mark.parametrize("queue", [False, True])
async def test_misuse_is_raised_at_the_call(redis_url, channel, message, error, queue):
    configure(redis_url)
    await StatusMessenger.configure(queue=queue)
    with pytest.raises(error):
        await StatusMessenger.publish(channel, message)
    assert StatusMessenger.counts().published == 0


async def test_a_flush_may_be_given_up():
    with closed_port() as url:
        configure(url)
        await StatusMessenger.configure(queue=True)
        await StatusMessenger.publish(CHANNEL, "waits")
        assert await StatusMessenger.flush(0.05) is False
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await StatusMessenger.flush()
        assert StatusMessenger.counts().waiting == 1


ENDS = """
import asyncio, os, sys
from client import configure
from client.aio import RedisPrep, StatusMessenger

async def main():
    configure(sys.argv[1])
    await StatusMessenger.configure(queue=True)
    await StatusMessenger.publish("run1:wepp", "waits")
    flush = asyncio.create_task(StatusMessenger.flush())
    await asyncio.sleep(0.1)

asyncio.run(main())
print("ended", flush=True)
"""


def test_the_process_ends_while_a_flush_waits():
    with closed_port() as url:
        done = subprocess.run(
            [sys.executable, "-c", ENDS, url], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
    assert done.stdout == "ended\n"


TWO_LOOPS_AND_A_FORK = """
import asyncio, os, sys
from client import configure
from client.aio import RedisPrep, StatusMessenger

configure(sys.argv[1])

async def main(line):
    await StatusMessenger.publish("run1:wepp", line)
    run = await RedisPrep.getInstance(sys.argv[2])
    await run.set(line, 7)
    return await run.get(line)

assert asyncio.run(main("first")) == asyncio.run(main("second")) == 7
child = os.fork()
if not child:
    try:
        os._exit(asyncio.run(asyncio.wait_for(main("child"), 30)))
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
asyncio.run(main("third"))
"""


def test_two_loops_and_a_fork(redis_url, tmp_path):
    (tmp_path / RUN).mkdir()
    with subscribed(redis_url, CHANNEL) as following:
        subprocess.run(
            [sys.executable, "-c", PATIENT + TWO_LOOPS_AND_A_FORK, redis_url, tmp_path / RUN],
            cwd=ROOT, check=True, timeout=60,
        )  # fmt: skip
        assert [following()[1] for _ in range(4)] == [b"first", b"second", b"child", b"third"]


# --- commands ----------------------------------------------------------------------------------------------------


def is_gone(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), 0)
        return False
    return True


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110, of a process outside
            await asyncio.sleep(0.01)


async def test_a_command():
    started = []
    with CaptureMessenger() as said:
        done = await run_and_stream(["sh", "-c", "echo a; echo b"], CHANNEL, prefix="> ", on_start=started.append)
        assert (done.stdout, done.returncode) == ("a\nb\n", 0)
        with pytest.raises(subprocess.CalledProcessError):
            await run_and_stream(["false"], CHANNEL, check=True)
        with pytest.raises(TypeError, match="a command is a list"):
            await run_and_stream("echo a", CHANNEL)
    assert said.lines(CHANNEL) == ["> a", "> b"]
    assert [process.returncode for process in started] == [0]


async def test_a_cancelled_command_ends_with_its_group():
    with CaptureMessenger() as said:
        task = asyncio.create_task(run_and_stream(["sh", "-c", "sleep 60 & echo $! $$; wait"], CHANNEL))
        await until(lambda: said.lines(CHANNEL))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        child, shell = said.lines(CHANNEL)[0].split()
        await until(lambda: is_gone(shell) and is_gone(child))


async def test_a_command_cancelled_before_it_runs(monkeypatch):
    may_start, begun, pids = threading.Event(), threading.Event(), []
    popen = subprocess.Popen

    def late(*args, **kwargs):
        begun.set()
        assert may_start.wait(10)
        process = popen(*args, **kwargs)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(stream.subprocess, "Popen", late)
    with CaptureMessenger():
        task = asyncio.create_task(run_and_stream(["sleep", "60"], CHANNEL))
        await until(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_start.set()
        await until(lambda: pids and is_gone(pids[0]))


async def test_what_on_start_raises_ends_the_command():
    pids = []

    def refuse(process):
        pids.append(process.pid)
        raise ZeroDivisionError

    with CaptureMessenger(), pytest.raises(ZeroDivisionError):
        await run_and_stream(["sleep", "60"], CHANNEL, on_start=refuse)
    assert is_gone(pids[0])
