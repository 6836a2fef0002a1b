"""RedisPrep: what a run has done so far, in a Redis hash that the preflight service watches (contract, section 2).

Redis commands that an ACL user of this module needs, on keys named as run ids: HGET, HGETALL, HMGET, HSET, HSETNX,
HDEL, EVAL (the step in `timestamp`; HGETALL and HSET are called in it), MULTI and EXEC (`lazy_load`). The `CLIENT
SETINFO` that redis-py sends first may be refused.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from client import keys
from client.connection import address, resolved_run_id, working_directory
from client.dump import Dump
from client.keys import TaskEnum
from client.lazy import LazyDump, lazy_dump
from client.lines import job_prefix
from client.messenger import check_channel
from client.store import Store, store
from client.timing import locking, timing

log = logging.getLogger(__name__)

_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)

# KEYS: the run. ARGV: the field, now, the prefix of timestamps. See `RedisPrep.timestamp`.
_STAMP = """
local now, newest = tonumber(ARGV[2]), nil
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, #ARGV[3]) == ARGV[3] and string.find(fields[i + 1], '^[+-]?%d+$') then
    local at = tonumber(fields[i + 1])
    if newest == nil or at > newest then newest = at end
  end
end
local stamp = now
if newest ~= nil and newest >= now and newest <= now + 60 then stamp = newest + 1 end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', stamp))
return stamp
"""


class _Outage:
    """Whether the log already says that Redis is away: a worker makes a RedisPrep per call, and one line is enough."""

    told = False


class RedisPrep:
    """The checklist state of one run.

    Every mutator writes Redis, then `<wd>/redisprep.dump`. Where Redis is away it tries again for `retry` seconds in
    all and then raises redis.exceptions.ConnectionError; getters do the same.

    Args:
        wd: the run's working directory; its last part is the run id, and `.` is resolved first.
        cfg_fn: the run's configuration file name, kept for the caller.
        run_id: the run id where the last part of `wd` is not unique (batch and omni runs).
        restore: load the dump into Redis where Redis knows nothing of the run, as `lazy_load()` does.
        monotonic: let `timestamp()` keep a strict order between steps that end within one second.
        best_effort: a mutator that fails logs one warning per outage and goes on, instead of raising.
        retry: seconds that one mutator or getter may take in all while Redis is away.
        dump: when the dump is written: `now`, before the mutator returns; or `lazy`, by a thread of its own,
            `dump_interval` seconds after the first change that it lacks, and at `close()` and the end of the process.
        dump_interval: seconds.

    Raises:
        ValueError: no run id can be made of `wd`, or an argument is out of its range.
        TypeError: the run id is no str, the directory no path, or a number of seconds none.
        redis.exceptions.RedisError, OSError: the first write, where no dump exists yet, failed; or `dump="lazy"` could
            write none.
    """

    def __init__(
        self,
        wd: str,
        cfg_fn: str | None = None,
        *,
        run_id: str | None = None,
        restore: bool = False,
        monotonic: bool = True,
        best_effort: bool = False,
        retry: float = 5.0,
        dump: str = "now",
        dump_interval: float = 1.0,
    ) -> None:
        if dump not in ("now", "lazy"):
            raise ValueError(f"dump={dump!r} is not known; it is 'now' or 'lazy'")
        if not 0 <= _number(retry, "retry") < float("inf"):
            raise ValueError(f"retry={retry!r} is no number of seconds; write 0 for one attempt, or such as 5.0")
        if not 0 < _number(dump_interval, "dump_interval") <= threading.TIMEOUT_MAX:
            raise ValueError(f"dump_interval={dump_interval!r} is no number of seconds; write one such as 1.0")
        wd = _resolved(wd)
        self.wd: str | None = wd
        self.cfg_fn = cfg_fn
        if not isinstance(run_id, str | None):
            raise TypeError(f"run_id is a str such as 'batch;;wa;;run1', not {run_id!r}")
        self.run_id = run_id if run_id is not None else resolved_run_id(str(Path(wd).absolute())) or _last_part(wd)
        if not self.run_id:
            raise ValueError(f"wd={wd!r} gives no run id; name a run's directory, or say run_id=")
        self._monotonic = monotonic
        self._best_effort = best_effort
        self._retry = float(retry)
        self._lazy = dump_interval if dump == "lazy" else None
        if self._lazy is not None:
            with self._forgiving():
                self._dump.check_writable()
        if restore:
            self.lazy_load()
        if not Path(self.dump_filepath).exists():
            self._set_flag("loaded", True)

    @classmethod
    def getInstance(cls, wd: str = ".", allow_nonexistent: bool = False, ignore_lock: bool = False) -> "RedisPrep":  # noqa: N802
        """The RedisPrep of a directory; `ignore_lock` is for older call sites and has no effect.

        Raises:
            FileNotFoundError: `wd` is no directory and `allow_nonexistent` is false.
        """
        return cls._open(wd, None, allow_nonexistent)

    @classmethod
    def tryGetInstance(  # noqa: N802
        cls, wd: str = ".", allow_nonexistent: bool = True, ignore_lock: bool = False
    ) -> "RedisPrep | None":
        """As `getInstance`, but None where `wd` is no directory, whatever `allow_nonexistent` says."""
        return cls._open(wd, None, False) if Path(_resolved(wd)).is_dir() else None

    @classmethod
    def getInstanceFromRunID(  # noqa: N802
        cls, runid: str, allow_nonexistent: bool = False, ignore_lock: bool = False
    ) -> "RedisPrep":
        """The RedisPrep of a run id, its directory found by the resolver given to `client.configure(resolver=...)`.

        Raises:
            RuntimeError: no resolver was given.
            FileNotFoundError: the directory is missing and `allow_nonexistent` is false.
        """
        return cls._open(working_directory(runid), runid, allow_nonexistent)

    @classmethod
    def peek(cls, run_id: str) -> "RedisPrep":
        """A RedisPrep to read from: made without reading or writing anything, and its mutators raise TypeError."""
        if not isinstance(run_id, str):
            raise TypeError(f"a run id is a str, not {run_id!r}")
        if not run_id:
            raise ValueError("peek() needs a run id")
        found = cls.__new__(cls)
        found.__setstate__({"wd": None, "cfg_fn": None, "run_id": run_id})
        return found

    @classmethod
    def _open(cls, wd: str, run_id: str | None, allow_nonexistent: bool) -> "RedisPrep":
        if not allow_nonexistent and not Path(_resolved(wd)).is_dir():
            raise FileNotFoundError(f"the working directory {wd} does not exist")
        return cls(wd, run_id=run_id)

    def __getstate__(self) -> dict[str, str | None]:
        return {"wd": self.wd, "cfg_fn": self.cfg_fn, "run_id": self.run_id}

    def __setstate__(self, state: dict[str, str | None]) -> None:
        """Take the names; the options are those of a RedisPrep made without any. Touches neither Redis nor the dump."""
        vars(self).update(state, _monotonic=True, _best_effort=False, _retry=5.0, _lazy=None)

    def __repr__(self) -> str:
        return f"<RedisPrep {self.run_id}>"

    @property
    def redis(self) -> Redis:
        """The redis-py client of database 0, with str answers, shared by the process."""
        return self._store.redis

    @property
    def dump_filepath(self) -> str:
        """The path of `redisprep.dump` in the working directory."""
        return str(self._dump.path)

    def dump(self) -> None:
        """Write the dump as Redis has the run now; does nothing where the working directory is missing."""
        with self._forgiving():
            self._dump.save(self._reader(time.monotonic() + self._retry))

    def close(self) -> None:
        """Write the dump if it waits, `dump="lazy"`; of no effect otherwise, and everything still works afterwards.

        Raises:
            OSError, redis.exceptions.RedisError: it could not be written; not with `best_effort`.
        """
        if self._lazy is not None:
            with self._forgiving():
                self._lazy_dump(self._lazy).write()

    def __enter__(self) -> "RedisPrep":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def lazy_load(self) -> None:
        """Load the dump into Redis unless Redis has `attrs:loaded`; fields that Redis has already are kept.

        Raises:
            ValueError: the dump is no JSON object.
        """
        with self._forgiving():
            if not self._flag("loaded") and (fields := self._dump.load()):
                self._mutate(lambda redis: self._restore(redis, fields))

    def _restore(self, redis: Redis, fields: dict[str, str]) -> None:
        with redis.pipeline() as pipeline:
            for field, value in fields.items():
                pipeline.hsetnx(self.run_id, field, value)
            pipeline.hset(self.run_id, keys.ATTRIBUTE + "loaded", "true")
            pipeline.execute()

    @property
    def sbs_required(self) -> bool:
        """Whether the run needs a soil burn severity map."""
        return self._flag("sbs_required")

    @sbs_required.setter
    def sbs_required(self, value: bool) -> None:
        self._set_flag("sbs_required", value)

    @property
    def has_sbs(self) -> bool:
        """Whether the run has a soil burn severity map."""
        return self._flag("has_sbs")

    @has_sbs.setter
    def has_sbs(self, value: bool) -> None:
        self._set_flag("has_sbs", value)

    def timestamp(self, key: TaskEnum | str) -> None:
        """Record that a task has ended now, by this machine's clock.

        The checks compare whole seconds with strict `>`, so two steps within one second would leave the later one
        unchecked. Where the newest timestamp of the run lies between now and now + 60, newest + 1 is written instead;
        reading and writing are one atomic step, a script sent with EVAL. `monotonic=False` writes now by a plain HSET.
        """
        now, field = int(time.time()), keys.stamp(key)
        if not self._monotonic:
            self[key] = now
            return
        self._mutate(lambda redis: redis.eval(_STAMP, 1, self.run_id, field, str(now), keys.TIMESTAMP))

    def timestamps_report(self) -> str:
        """A line for each task with its timestamp, or None, below a line with the run id."""
        tasks = list(TaskEnum)
        stamps = self._ask(lambda redis: redis.hmget(self.run_id, [keys.TIMESTAMP + task.value for task in tasks]))
        lines = [f"  {task}: {stamp}" for task, stamp in zip(tasks, stamps, strict=True)]
        return "\n".join([f"RedisPrep Timestamps ({self.run_id}):", *lines])

    def remove_timestamp(self, key: TaskEnum | str) -> None:
        """Forget that a task has ended; nothing happens where it has not."""
        self._remove(keys.stamp(key))

    def remove_all_timestamp(self) -> None:
        """Forget that any task of TaskEnum has ended, in one step; timestamps under other names stay."""
        self._remove(*(keys.TIMESTAMP + task.value for task in TaskEnum))

    def __setitem__(self, key: TaskEnum | str, value: int) -> None:
        self._set(keys.stamp(key), str(int(value)))

    def __getitem__(self, key: TaskEnum | str) -> int | None:
        """The timestamp of a task in epoch seconds; None where there is none, or one that is no integer."""
        text = self._get(keys.stamp(key))
        return int(text) if text is not None and _INTEGER.fullmatch(text) else None

    def set_rq_job_id(self, key: str, job_id: str) -> None:
        """Record the id of the RQ job that does `key`.

        Raises:
            TypeError: there is no id.
        """
        self._set(keys.RQ_JOB + keys.part(key, "a job's key"), _job_id(job_id))

    def get_rq_job_id(self, key: str) -> str | None:
        """The id of the RQ job that does `key`."""
        return self._get(keys.RQ_JOB + str(key))

    def get_rq_job_ids(self) -> dict[str, str]:
        """The ids of all RQ jobs of the run, by key."""
        prefix = keys.RQ_JOB
        return {name[len(prefix) :]: value for name, value in self._hash().items() if name.startswith(prefix)}

    def set_archive_job_id(self, job_id: str) -> None:
        """Record the id of the job that archives the run.

        Raises:
            TypeError: there is no id.
        """
        self._set(keys.ARCHIVE_JOB, _job_id(job_id))

    def get_archive_job_id(self) -> str | None:
        """The id of the job that archives the run."""
        return self._get(keys.ARCHIVE_JOB)

    def clear_archive_job_id(self) -> None:
        """Forget the job that archives the run."""
        self._remove(keys.ARCHIVE_JOB)

    def set_locked_status(self, name: str, locked: bool) -> None:
        """Record whether a controller of the run is locked; the dump leaves locks out."""
        self._set(keys.LOCKED + keys.part(name, "a controller"), _bool_text(locked))

    def get_locked_status(self, name: str) -> bool:
        """Whether a controller of the run is locked; false where nothing is recorded."""
        return _is_true(self._get(keys.LOCKED + name))

    def timed(
        self, task: TaskEnum | str, *, started: bool = False, failed: bool = False, channel: str | None = None
    ) -> AbstractContextManager[None]:
        """A context manager around one step: its end is a `timestamp(task)`, an exception in it is not.

        The exception goes on unchanged. What is optional here never raises for Redis or the disk, and is then a warning
        in the log; the timestamp itself raises as `timestamp` does.

        Args:
            task: the step.
            started: record when it began, in the field `started:<task>`, and forget an earlier `failed:<task>`.
            failed: record when an exception ended it, in the field `failed:<task>`.
            channel: publish `STARTED`, `COMPLETED` and `EXCEPTION` lines; a name such as `wepp` for the run's own
                channel `<run id>:wepp`, or a whole channel, with a colon.

        Raises:
            TypeError, ValueError: the channel is no str, or is empty.
        """
        keys.stamp(task)
        if channel is not None:
            check_channel(channel)
        call = f"{task}({self.run_id})"
        return timing(self, task, started=started, failed=failed, channel=channel, call=call, job=job_prefix())

    def locked(self, name: str) -> AbstractContextManager[None]:
        """A context manager that shows a controller of the run as locked; a sign for people, and no mutex."""
        return locking(self, name)

    def note(self, field: str, at: int, *, gone: str | None = None) -> None:
        """Write a field of epoch seconds, and remove another, in one transaction.

        Args:
            field: the field's whole name.
            at: epoch seconds.
            gone: the whole name of the field to be removed.
        """

        def operation(redis: Redis) -> None:
            with redis.pipeline() as pipeline:
                pipeline.hset(self.run_id, field, str(at))
                if gone is not None:
                    pipeline.hdel(self.run_id, gone)
                pipeline.execute()

        self._mutate(operation, removed=() if gone is None else (gone,))

    def _flag(self, name: str) -> bool:
        return _is_true(self._get(keys.ATTRIBUTE + name))

    def _set_flag(self, name: str, value: bool) -> None:
        self._set(keys.ATTRIBUTE + name, _bool_text(value))

    def _get(self, field: str) -> str | None:
        value: str | None = self._ask(lambda redis: redis.hget(self.run_id, field))
        return value

    def _hash(self) -> dict[str, str]:
        fields: dict[str, str] = self._ask(lambda redis: redis.hgetall(self.run_id))
        return fields

    def _set(self, field: str, value: str) -> None:
        self._mutate(lambda redis: redis.hset(self.run_id, field, value))

    def _remove(self, *fields: str) -> None:
        self._mutate(lambda redis: redis.hdel(self.run_id, *fields), removed=fields)

    @property
    def _store(self) -> Store:
        return store(address(), self._retry)

    @property
    def _dump(self) -> Dump:
        if self.wd is None:
            raise TypeError(f"{self!r} comes from peek(), so it can only read; make a RedisPrep(wd) to write")
        return Dump(self.wd)

    def _ask(self, operation: Callable[[Redis], Any]) -> Any:
        return self._store.call(time.monotonic() + self._retry, operation)

    def _reader(self, deadline: float | None = None) -> Callable[[], dict[str, str]]:
        """What reads the run's hash: by `deadline`, or each time with a whole budget."""
        calls, run_id = self._store, self.run_id

        def read() -> dict[str, str]:
            until = time.monotonic() + calls.budget if deadline is None else deadline
            fields: dict[str, str] = calls.call(until, lambda redis: redis.hgetall(run_id))
            return fields

        return read

    def _lazy_dump(self, interval: float) -> LazyDump:
        return lazy_dump(self.run_id, self._dump, self._reader(), interval)

    def _mutate(self, operation: Callable[[Redis], Any], removed: Collection[str] = ()) -> None:
        """Run the operation, then dump; both share one budget of `retry` seconds."""
        dump = self._dump
        deadline = time.monotonic() + self._retry
        with self._forgiving():
            self._store.call(deadline, operation)
            if self._lazy is None:
                dump.save(self._reader(deadline), removed)
            else:
                self._lazy_dump(self._lazy).touch(removed)
            _Outage.told = False

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Let `best_effort` go on after a failure, with one warning per outage."""
        try:
            yield
        except (RedisError, OSError) as error:
            if not self._best_effort:
                raise
            if not _Outage.told:
                log.warning("the checklist of run %s was not brought up to date, going on: %s", self.run_id, error)
            _Outage.told = True


def _resolved(wd: str) -> str:
    """`wd` as given, but absolute where its last part (`.`, `..`, none) is no name of a run."""
    wd = os.fspath(wd)
    if not isinstance(wd, str):
        raise TypeError(f"wd is a str or a Path, not {wd!r}")
    if not wd:  # an unset variable would otherwise write to whatever directory the process happens to be in
        raise ValueError("wd is empty; name a run's directory, or '.' for this one")
    return str(Path(wd).resolve()) if _last_part(wd) in ("", ".", "..") else wd


def _last_part(wd: str) -> str:
    return wd.rstrip("/").rpartition("/")[2]


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds such as 1.0, not {value!r}")
    return value


def _bool_text(value: object) -> str:
    """Bools of numpy count, and 0 or 1; a text does not, for "false" would be true."""
    if isinstance(value, str | bytes):
        raise TypeError(f"True or False is wanted here, not {value!r}")
    return "true" if value else "false"


def _is_true(text: str | None) -> bool:
    return text is not None and text.lower() == "true"


def _job_id(job_id: object) -> str:
    """An id as text; None is the id of a job that was never enqueued, and no page could make anything of it."""
    if job_id is None:
        raise TypeError("a job's id is a str, not None: was the job enqueued?")
    return keys.part(str(job_id), "a job's id")
