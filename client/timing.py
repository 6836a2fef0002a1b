"""Steps of a run that say themselves when they began, ended or failed."""

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from redis.exceptions import RedisError

from client import keys
from client.executor import checklists
from client.keys import TaskEnum
from client.lines import Step, job_prefix, shown_call
from client.messenger import check_channel

if TYPE_CHECKING:
    from client.prep import RedisPrep

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# How `@timed` finds the run of a call, by the names of its parameters.
_FINDABLE = ("prep", "self", "cls", "wd", "runid", "run_id")


@contextmanager
def timing(
    prep: "RedisPrep", task: TaskEnum | str, *, started: bool, failed: bool, channel: str | None, call: str, job: str
) -> Iterator[None]:
    """What `RedisPrep.timed` does; `call` is the step as its lines name it, `job` what `job_prefix()` says."""
    step = Step(_channel(prep.run_id, channel), call, job) if channel else None
    with _optional(prep):
        if started:
            prep.note(keys.STARTED + str(task), int(time.time()), gone=keys.FAILED + str(task))
    if step:
        step.started()
    try:
        yield
    except BaseException:
        with _optional(prep):
            if failed:
                prep.note(keys.FAILED + str(task), int(time.time()))
        if step:
            step.failed()
        raise
    try:
        prep.timestamp(task)
    except BaseException as error:  # a full disk, Redis away: who reads the lines must not wait for its end
        if failed and not isinstance(error, RedisError):  # that one has been waited for long enough
            with _optional(prep):
                prep.note(keys.FAILED + str(task), int(time.time()))
        if step:
            step.failed()
        raise
    if step:
        step.completed()


@contextmanager
def locking(prep: "RedisPrep", name: str) -> Iterator[None]:
    """What `RedisPrep.locked` does."""
    try:
        prep.set_locked_status(name, True)
    except OSError:  # the dump's disk; Redis has it already, and pages would show a lock for ever
        with _optional(prep):
            prep.set_locked_status(name, False)
        raise
    try:
        yield
    except BaseException:
        with _optional(prep):
            prep.set_locked_status(name, False)
        raise
    prep.set_locked_status(name, False)


def timed(
    task: TaskEnum | str,
    *,
    prep: "RedisPrep | Callable[..., RedisPrep] | None" = None,
    started: bool = False,
    failed: bool = False,
    channel: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function, def or async def, that is one step of a run: `RedisPrep.timed` around each call.

    Args:
        task: the step.
        prep: the run, or a function that is called with the call's arguments and returns it. Without it the run is
            found by the call's own arguments: `prep`, a RedisPrep; `wd`, a working directory, also as an attribute of
            `self` or `cls`; `runid` or `run_id`, by `client.configure(resolver=...)`.
        started: as for `RedisPrep.timed`.
        failed: likewise.
        channel: likewise.

    Raises:
        TypeError: the function has none of these parameters, and there is no `prep`; or it is a generator; or the step
            or the channel is no str.
        FileNotFoundError: at the call, the working directory does not exist.
    """
    keys.stamp(task)
    if channel is not None:
        check_channel(channel)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator, which ends when nobody asks it any more; "
                            "write `with prep.timed(...)` inside")  # fmt: skip
        signature = inspect.signature(function)
        if prep is None and not any(name in signature.parameters for name in _FINDABLE):
            raise TypeError(f"{function.__qualname__}{signature} has no parameter that names a run "
                            f"({', '.join(_FINDABLE)}); say @timed(..., prep=function of its arguments)")  # fmt: skip

        skipped = next(iter(signature.parameters), None) in ("self", "cls")

        def around(args: tuple[Any, ...], kwargs: dict[str, Any], job: str) -> AbstractContextManager[None]:
            found = _prep_of(prep, signature, args, kwargs)
            shown = shown_call(function.__name__, args[skipped:], kwargs)
            return timing(found, task, started=started, failed=failed, channel=channel, call=shown, job=job)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapped_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                # Redis and the dump may take seconds, which are not the event loop's.
                async with checklists.entered(functools.partial(around, args, kwargs, job_prefix())):
                    return await function(*args, **kwargs)

            return cast(Callable[P, R], wrapped_async)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            with around(args, kwargs, job_prefix()):
                return function(*args, **kwargs)

        return wrapped

    return decorate


def _channel(run_id: str, channel: str) -> str:
    return channel if ":" in channel else keys.channel(run_id, channel)


def _prep_of(
    prep: "RedisPrep | Callable[..., RedisPrep] | None",
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> "RedisPrep":
    from client.prep import RedisPrep

    if prep is not None:
        found = prep if isinstance(prep, RedisPrep) else prep(*args, **kwargs)
        if not isinstance(found, RedisPrep):
            raise TypeError(f"@timed(..., prep=...) gave {found!r}, which is no RedisPrep")
        return found
    bound = signature.bind(*args, **kwargs)  # a wrong call raises what the function itself would
    bound.apply_defaults()
    given = bound.arguments
    if isinstance(given.get("prep"), RedisPrep):
        return cast(RedisPrep, given["prep"])
    wd = given.get("wd") or next((w for name in ("self", "cls") if (w := getattr(given.get(name), "wd", None))), None)
    if wd:
        return RedisPrep.getInstance(wd)
    run_id = given.get("runid") or given.get("run_id")
    if run_id:
        return RedisPrep.getInstanceFromRunID(run_id)
    raise TypeError("no run is to be found in the arguments of this call; say @timed(..., prep=function of them)")


@contextmanager
def _optional(prep: "RedisPrep") -> Iterator[None]:
    """What is not worth the step, or would hide the step's own exception: a line in the log instead of raising."""
    try:
        yield
    except (RedisError, OSError) as error:
        log.warning("the checklist of run %s was not brought up to date, going on: %s", prep.run_id, error)
