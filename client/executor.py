"""Blocking calls of an asyncio program, in threads of the client's own.

asyncio.to_thread has six threads on a machine with two cores, and the program looks up host names with them: with Redis
away they would all wait for it.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from client.ending import start

T = TypeVar("T")


class Threads:
    """At most so many threads, started when they are needed; a child of a fork starts its own.

    Calls begin in the order in which they were made. One whose task is cancelled before that never begins, and one
    that has begun goes on to its end.

    Args:
        most: threads.
        name: what their names begin with.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._start_afresh()
        _all.add(self)

    def _start_afresh(self) -> None:
        self._executor = ThreadPoolExecutor(self._most, self._name)

    async def call(self, function: Callable[[], T]) -> T:
        """Call the function in one of the threads, in a copy of the caller's context."""
        return await asyncio.wrap_future(self._submit(function))

    @asynccontextmanager
    async def entered(self, make: Callable[[], AbstractContextManager[object]]) -> AsyncIterator[None]:
        """The context manager that `make()` returns, made, entered and left in one of the threads.

        It is always left if it was entered, whenever the task is cancelled.
        """
        entering = self._submit(partial(_enter, make))
        try:
            manager = await asyncio.wrap_future(entering)
        except asyncio.CancelledError as error:
            if entering.done() and not entering.cancelled():
                self._submit(partial(_leave_late, error, entering))
            elif not entering.cancelled():
                # In its thread, for at the end of the interpreter none takes anything new.
                entering.add_done_callback(partial(_leave_late, error))
            raise
        try:
            yield
        except GeneratorExit as error:
            # The coroutine is thrown away and may not wait any more.
            self._submit(partial(_leave, manager, error))
            raise
        except BaseException as error:
            if not await self._to_its_end(partial(_leave, manager, error)):
                raise
        else:
            await self._to_its_end(partial(_leave, manager, None))

    async def _to_its_end(self, function: Callable[[], T]) -> T:
        """As `call`, but it is done even where the task is cancelled for a second time, or the loop ends."""
        return await asyncio.shield(asyncio.wrap_future(self._submit(function)))

    def _submit(self, function: Callable[[], T]) -> "Future[T]":
        return self._executor.submit(copy_context().run, function)


async def alone(function: Callable[[], T], name: str) -> T:
    """Call the function in a daemon thread of its own, for it may take as long as it likes.

    Args:
        function: what is called, in a copy of the caller's context.
        name: the thread's.

    Raises:
        RuntimeError: the process has no thread to give.
    """
    future: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            result = context.run(function)
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    start(threading.Thread(target=run, name=name, daemon=True))
    return await asyncio.wrap_future(future)


def _enter(make: Callable[[], AbstractContextManager[object]]) -> AbstractContextManager[object]:
    manager = make()
    manager.__enter__()
    return manager


def _leave(manager: AbstractContextManager[object], error: BaseException | None) -> bool | None:
    return manager.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


def _leave_late(error: BaseException, entering: "Future[AbstractContextManager[object]]") -> None:
    """What was entered while its task was being cancelled."""
    if entering.exception() is None:
        _leave(entering.result(), error)


_all: "weakref.WeakSet[Threads]" = weakref.WeakSet()


def _abandon_all() -> None:
    for threads in list(_all):
        threads._start_afresh()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_abandon_all)

# Seconds that Redis is away are waited for here, 5 in each call: as many runs as one program is likely to lead.
checklists = Threads(32, "client-checklist")
