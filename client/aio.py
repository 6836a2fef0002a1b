"""asyncio twins of RedisPrep, StatusMessenger and run_and_stream: the same names and arguments, awaited.

    from client.aio import RedisPrep, StatusMessenger

    await StatusMessenger.publish(f"{run_id}:wepp", "line")
    prep = await RedisPrep.getInstance(wd)
    async with prep.timed(TaskEnum.build_climate):
        ...

What would block the event loop happens in threads of the client's own, never in asyncio's; a call says everything else,
what it raises included, where its twin is documented. Where a task is cancelled while it awaits one, what has begun is
done to its end, and what waits for a thread is not done at all.
"""

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

from client import messenger, prep, stream
from client.executor import Threads, alone, checklists
from client.keys import TaskEnum
from client.messenger import QueuedMessenger
from client.sender import Counts

T = TypeVar("T")

# One: messages arrive in the order in which they were published.
_publishing = Threads(1, "client-publish")


class StatusMessenger:
    """The twin of client.StatusMessenger, of the same connection, queue and counts."""

    @classmethod
    async def configure(cls, *, queue: bool | int) -> None:
        """As StatusMessenger.configure."""
        await alone(partial(messenger.StatusMessenger.configure, queue=queue), "client-configure")

    @classmethod
    async def publish(cls, channel: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """As StatusMessenger.publish; messages of several tasks go in the order of their calls.

        Queued, it appends to the queue at once, without any thread.
        """
        if messenger.StatusMessenger.queued() is not None and not strict:
            return messenger.StatusMessenger.publish(channel, message)
        return await _publishing.call(partial(messenger.StatusMessenger.publish, channel, message, strict=strict))

    @classmethod
    async def publish_command(cls, runid: str, message: str | bytes | float, *, strict: bool = False) -> int | None:
        """As StatusMessenger.publish_command."""
        if messenger.StatusMessenger.queued() is not None and not strict:
            return messenger.StatusMessenger.publish_command(runid, message)
        return await _publishing.call(partial(messenger.StatusMessenger.publish_command, runid, message, strict=strict))

    @classmethod
    async def flush(cls, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """As StatusMessenger.flush."""
        return await alone(partial(messenger.StatusMessenger.flush, timeout), "client-flush")

    @classmethod
    def queued(cls) -> QueuedMessenger | None:
        """As StatusMessenger.queued; never blocks, and is not awaited."""
        return messenger.StatusMessenger.queued()

    @classmethod
    def counts(cls) -> Counts:
        """As StatusMessenger.counts; never blocks, and is not awaited."""
        return messenger.StatusMessenger.counts()


class RedisPrep:
    """The twin of client.RedisPrep; made by `open`, `getInstance` and their like.

    `prep[key]` is `await prep.get(key)` here, `prep[key] = 7` is `await prep.set(key, 7)`, and an attribute that is set
    is a call: `await prep.set_has_sbs(True)`.

    Args:
        prep: a client.RedisPrep to work on.
    """

    def __init__(self, prep: prep.RedisPrep) -> None:
        self.sync = prep

    @classmethod
    async def open(cls, wd: str, cfg_fn: str | None = None, **options: Any) -> "RedisPrep":
        """As `client.RedisPrep(wd, ...)`, which may write."""
        return cls(await checklists.call(partial(prep.RedisPrep, wd, cfg_fn, **options)))

    @classmethod
    async def getInstance(  # noqa: N802
        cls, wd: str = ".", allow_nonexistent: bool = False, ignore_lock: bool = False
    ) -> "RedisPrep":
        """As RedisPrep.getInstance."""
        return cls(await checklists.call(partial(prep.RedisPrep.getInstance, wd, allow_nonexistent, ignore_lock)))

    @classmethod
    async def tryGetInstance(  # noqa: N802
        cls, wd: str = ".", allow_nonexistent: bool = True, ignore_lock: bool = False
    ) -> "RedisPrep | None":
        """As RedisPrep.tryGetInstance."""
        found = await checklists.call(partial(prep.RedisPrep.tryGetInstance, wd, allow_nonexistent, ignore_lock))
        return None if found is None else cls(found)

    @classmethod
    async def getInstanceFromRunID(  # noqa: N802
        cls, runid: str, allow_nonexistent: bool = False, ignore_lock: bool = False
    ) -> "RedisPrep":
        """As RedisPrep.getInstanceFromRunID; the resolver is called in a thread."""
        make = partial(prep.RedisPrep.getInstanceFromRunID, runid, allow_nonexistent, ignore_lock)
        return cls(await checklists.call(make))

    @classmethod
    def peek(cls, run_id: str) -> "RedisPrep":
        """As RedisPrep.peek; never blocks, and is not awaited."""
        return cls(prep.RedisPrep.peek(run_id))

    def __repr__(self) -> str:
        return repr(self.sync)

    @property
    def run_id(self) -> str:
        """The run id."""
        return self.sync.run_id

    @property
    def wd(self) -> str | None:
        """The working directory; None after `peek`."""
        return self.sync.wd

    @property
    def cfg_fn(self) -> str | None:
        """The name of the configuration file, as it was given."""
        return self.sync.cfg_fn

    @property
    def dump_filepath(self) -> str:
        """The path of `redisprep.dump` in the working directory."""
        return self.sync.dump_filepath

    async def dump(self) -> None:
        """As RedisPrep.dump."""
        await self._call(self.sync.dump)

    async def close(self) -> None:
        """As RedisPrep.close."""
        await self._call(self.sync.close)

    async def __aenter__(self) -> "RedisPrep":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def lazy_load(self) -> None:
        """As RedisPrep.lazy_load."""
        await self._call(self.sync.lazy_load)

    async def sbs_required(self) -> bool:
        """As RedisPrep.sbs_required."""
        return await self._call(lambda: self.sync.sbs_required)

    async def set_sbs_required(self, value: bool) -> None:
        """As setting RedisPrep.sbs_required."""
        await self._call(partial(setattr, self.sync, "sbs_required", value))

    async def has_sbs(self) -> bool:
        """As RedisPrep.has_sbs."""
        return await self._call(lambda: self.sync.has_sbs)

    async def set_has_sbs(self, value: bool) -> None:
        """As setting RedisPrep.has_sbs."""
        await self._call(partial(setattr, self.sync, "has_sbs", value))

    async def timestamp(self, key: TaskEnum | str) -> None:
        """As RedisPrep.timestamp."""
        await self._call(partial(self.sync.timestamp, key))

    async def timestamps_report(self) -> str:
        """As RedisPrep.timestamps_report."""
        return await self._call(self.sync.timestamps_report)

    async def remove_timestamp(self, key: TaskEnum | str) -> None:
        """As RedisPrep.remove_timestamp."""
        await self._call(partial(self.sync.remove_timestamp, key))

    async def remove_all_timestamp(self) -> None:
        """As RedisPrep.remove_all_timestamp."""
        await self._call(self.sync.remove_all_timestamp)

    async def get(self, key: TaskEnum | str) -> int | None:
        """As `prep[key]`."""
        return await self._call(partial(self.sync.__getitem__, key))

    async def set(self, key: TaskEnum | str, value: int) -> None:
        """As `prep[key] = value`."""
        await self._call(partial(self.sync.__setitem__, key, value))

    async def set_rq_job_id(self, key: str, job_id: str) -> None:
        """As RedisPrep.set_rq_job_id."""
        await self._call(partial(self.sync.set_rq_job_id, key, job_id))

    async def get_rq_job_id(self, key: str) -> str | None:
        """As RedisPrep.get_rq_job_id."""
        return await self._call(partial(self.sync.get_rq_job_id, key))

    async def get_rq_job_ids(self) -> dict[str, str]:
        """As RedisPrep.get_rq_job_ids."""
        return await self._call(self.sync.get_rq_job_ids)

    async def set_archive_job_id(self, job_id: str) -> None:
        """As RedisPrep.set_archive_job_id."""
        await self._call(partial(self.sync.set_archive_job_id, job_id))

    async def get_archive_job_id(self) -> str | None:
        """As RedisPrep.get_archive_job_id."""
        return await self._call(self.sync.get_archive_job_id)

    async def clear_archive_job_id(self) -> None:
        """As RedisPrep.clear_archive_job_id."""
        await self._call(self.sync.clear_archive_job_id)

    async def set_locked_status(self, name: str, locked: bool) -> None:
        """As RedisPrep.set_locked_status."""
        await self._call(partial(self.sync.set_locked_status, name, locked))

    async def get_locked_status(self, name: str) -> bool:
        """As RedisPrep.get_locked_status."""
        return await self._call(partial(self.sync.get_locked_status, name))

    def timed(
        self, task: TaskEnum | str, *, started: bool = False, failed: bool = False, channel: str | None = None
    ) -> AbstractAsyncContextManager[None]:
        """As RedisPrep.timed, for `async with`; a task that is cancelled in it has failed."""
        step = self.sync.timed(task, started=started, failed=failed, channel=channel)
        return checklists.entered(lambda: step)

    def locked(self, name: str) -> AbstractAsyncContextManager[None]:
        """As RedisPrep.locked, for `async with`; unlocked also where the task is cancelled."""
        return checklists.entered(partial(self.sync.locked, name))

    async def note(self, field: str, at: int, *, gone: str | None = None) -> None:
        """As RedisPrep.note."""
        await self._call(partial(self.sync.note, field, at, gone=gone))

    async def _call(self, function: Callable[[], T]) -> T:
        return await checklists.call(function)


async def run_and_stream(
    args: Sequence[str | os.PathLike[str]], channel: str, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """As client.run_and_stream; where the task is cancelled, the command is ended by SIGKILL, its whole group."""
    command = _Command(options.pop("on_start", None))
    run = partial(stream.run_and_stream, args, channel, on_start=command.started, **options)
    try:
        return await alone(run, "client-command")
    except asyncio.CancelledError:
        command.cancel()
        raise


class _Command:
    """A command that may be cancelled before, while and after it runs."""

    def __init__(self, on_start: "Callable[[subprocess.Popen[bytes]], object] | None") -> None:
        self._on_start = on_start
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def started(self, process: "subprocess.Popen[bytes]") -> None:
        """In the thread that follows the command; raises InterruptedError, which ends it, if it came too late."""
        with self._lock:
            self._process = process
            if self._cancelled:
                raise InterruptedError("the task that ran this command was cancelled")
        if self._on_start is not None:
            self._on_start(process)

    def cancel(self) -> None:
        """End the command, now or as soon as it runs."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                stream.end(self._process)
