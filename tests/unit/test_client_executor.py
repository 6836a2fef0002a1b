"""Blocking calls of an asyncio program: their order, their end, and what a cancelled task leaves behind."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import pytest

from client.executor import Threads, alone

ROOT = Path(__file__).parents[2]
word: ContextVar[str] = ContextVar("word", default="none")


class Step:
    """A context manager whose entering and leaving wait for a word; `said` is what happened."""

    def __init__(self, swallows=False):
        self.said = []
        self.began = threading.Event()
        self.may_enter, self.may_leave = threading.Event(), threading.Event()
        self.may_enter.set()
        self.may_leave.set()
        self.swallows = swallows
        self.over = threading.Event()

    def __enter__(self):
        self.began.set()
        assert self.may_enter.wait(10)
        self.said.append("entered")

    def __exit__(self, kind, error, trace):
        self.began.set()
        assert self.may_leave.wait(10)
        self.said.append(kind.__name__ if kind else None)
        self.over.set()
        return self.swallows


def waited(event):
    return asyncio.get_running_loop().run_in_executor(None, event.wait, 10)


async def test_a_call_is_made_in_another_thread_and_in_the_context_of_the_caller():
    threads = Threads(1, "few")
    word.set("mine")
    assert await threads.call(word.get) == "mine"
    assert (await threads.call(lambda: threading.current_thread().name)).startswith("few")
    assert await alone(word.get, "only") == "mine"
    assert await alone(lambda: threading.current_thread().name, "only") == "only"


async def test_calls_begin_in_order():
    threads, order = Threads(1, "few"), []
    await asyncio.gather(*(threads.call(partial(order.append, number)) for number in range(500)))
    assert order == list(range(500))


@pytest.mark.parametrize("call", [Threads(1, "few").call, partial(alone, name="only")])
async def test_what_is_raised_comes_back(call):
    with pytest.raises(ZeroDivisionError):
        await call(lambda: 1 / 0)


async def test_the_loop_goes_on_meanwhile():
    threads, done = Threads(1, "few"), threading.Event()
    call = asyncio.create_task(threads.call(lambda: done.wait(10)))
    await asyncio.sleep(0)
    done.set()
    assert await call


async def test_what_waits_for_a_thread_is_not_done_once_it_is_cancelled():
    threads, free, said = Threads(1, "few"), threading.Event(), []
    first = asyncio.create_task(threads.call(lambda: free.wait(10)))
    second = asyncio.create_task(threads.call(lambda: said.append("second")))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    free.set()
    await first
    await threads.call(lambda: said.append("third"))
    assert said == ["third"]


async def test_a_call_of_its_own_thread_may_be_cancelled():
    free = threading.Event()
    call = asyncio.create_task(alone(lambda: free.wait(10), "only"))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    [thread] = [thread for thread in threading.enumerate() if thread.name == "only"]
    free.set()
    await asyncio.get_running_loop().run_in_executor(None, thread.join, 10)
    assert not thread.is_alive()


# --- context managers --------------------------------------------------------------------------------------------


async def test_entered_and_left():
    step = Step()
    async with Threads(1, "few").entered(lambda: step):
        assert step.said == ["entered"]
    assert step.said == ["entered", None]


async def test_an_exception_goes_through_it_unchanged():
    step, error = Step(), ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        async with Threads(1, "few").entered(lambda: step):
            raise error
    assert caught.value is error
    assert step.said == ["entered", "ZeroDivisionError"]


async def test_it_may_swallow_an_exception():
    async with Threads(1, "few").entered(lambda: Step(swallows=True)):
        raise ZeroDivisionError


async def test_what_making_it_raises_comes_back():
    with pytest.raises(ZeroDivisionError):
        async with Threads(1, "few").entered(lambda: 1 / 0):
            raise AssertionError


async def body(threads, step, running):
    async with threads.entered(lambda: step):
        running.set()
        await asyncio.Event().wait()


async def test_cancelled_within():
    step, running = Step(), asyncio.Event()
    task = asyncio.create_task(body(Threads(1, "few"), step, running))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert step.said == ["entered", "CancelledError"]


async def test_cancelled_while_it_enters():
    """A lock that is taken after nobody waits for it any more would be held for ever."""
    step = Step()
    step.may_enter.clear()
    task = asyncio.create_task(body(Threads(1, "few"), step, asyncio.Event()))
    await waited(step.began)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert step.said == []
    step.may_enter.set()
    assert await waited(step.over)
    assert step.said == ["entered", "CancelledError"]


async def test_cancelled_before_it_enters():
    threads, free, step = Threads(1, "few"), threading.Event(), Step()
    first = asyncio.create_task(threads.call(lambda: free.wait(10)))
    task = asyncio.create_task(body(threads, step, asyncio.Event()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    free.set()
    await first
    await threads.call(lambda: None)
    assert step.said == []


@pytest.mark.parametrize("workers_busy", [False, True])
async def test_cancelled_again_while_it_leaves(workers_busy):
    threads, step, running, free = Threads(1, "few"), Step(), asyncio.Event(), threading.Event()
    step.may_leave.clear()
    task = asyncio.create_task(body(threads, step, running))
    await running.wait()
    other = asyncio.create_task(threads.call(lambda: free.wait(10))) if workers_busy else None
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert step.said == ["entered"]
    free.set()
    step.may_leave.set()
    assert await waited(step.over)
    if other:
        await other


def test_a_loop_that_ends_leaves_it():
    step = Step()

    async def main():
        running = asyncio.Event()
        main.task = asyncio.create_task(body(Threads(1, "few"), step, running))
        await running.wait()

    asyncio.run(main())
    assert step.over.wait(10)
    assert step.said == ["entered", "CancelledError"]


async def test_a_coroutine_that_is_thrown_away_leaves_it():
    step, running = Step(), asyncio.Event()
    coroutine = body(Threads(1, "few"), step, running)
    task = asyncio.ensure_future(coroutine)
    await running.wait()
    with contextlib.suppress(RuntimeError):
        coroutine.close()
    assert await waited(step.over)
    assert step.said == ["entered", "GeneratorExit"]
    task.cancel()
    with contextlib.suppress(BaseException):
        await task


# --- processes ---------------------------------------------------------------------------------------------------


def test_a_child_of_a_fork_has_threads_of_its_own():
    threads = Threads(1, "few")
    assert asyncio.run(threads.call(lambda: 1)) == 1
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os._exit(asyncio.run(asyncio.wait_for(threads.call(lambda: 7), 10)))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert asyncio.run(threads.call(lambda: 2)) == 2


FOREVER = """
import asyncio, threading
from client.executor import alone

async def main():
    task = asyncio.create_task(alone(threading.Event().wait, "only"))
    await asyncio.sleep(0.1)
    print(threading.active_count(), flush=True)

asyncio.run(main())
"""


def test_a_call_that_never_ends_does_not_hold_the_process_up():
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", FOREVER], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "2\n"
    assert done.stderr == ""
    assert time.monotonic() - begin < 20
