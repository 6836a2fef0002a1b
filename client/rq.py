"""RQ: the lines of a job on its run's pages, and nothing lost where a work-horse ends (contract, section 3).

    from client.rq import job_status

    @job_status("wepp", trigger="WEPP_RUN_TASK_COMPLETED", queue=True)
    def run_wepp_rq(runid): ...

    rq worker --worker-class client.rq.Worker

RQ forks a work-horse for each job, which leaves through os._exit: no atexit, and what waits in a queue is gone. The
decorator waits for what waits before its function returns, the Worker classes before the work-horse ends:

    fork ──▶ queued mode on ──▶ STARTED ... COMPLETED, TRIGGER ──▶ flush, 2 s at most ──▶ os._exit

The decorator needs no rq: called directly, as a test or a script may do, the function says the same without a job id.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from client import ending, keys, messenger
from client.connection import address
from client.lines import Step, job_prefix, shown_call
from client.messenger import StatusMessenger

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# Seconds that the end of a job waits for Redis.
FLUSH = 2.0
# The same once Redis has let an earlier wait of this process run out and is still away: a job that calls a decorated
# function a thousand times must not wait 2000 s.
STILL_AWAY = 0.02
# What a wait leaves of the job's own time limit. RQ ends a job by SIGALRM, and one that has done its work would
# otherwise fail while it waits for a page.
MARGIN = 0.1
# The oldest rq that this module is tried with.
OLDEST = "1.12"


def job_status(
    name: str,
    *,
    trigger: str | Sequence[str] = (),
    runid: Callable[..., str] | None = None,
    queue: bool | int = False,
    flush: float = FLUSH,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for the function of a job, def or async def, that publishes the lines of the call.

    `STARTED f(args)`; `COMPLETED f(args)` and each `TRIGGER` back to back once the function has returned; or
    `EXCEPTION f(args)`, and the exception goes on unchanged. Each begins with `rq:<job id> ` in an RQ job and with the
    word itself outside of one. Arguments are shown by str(), cut to 100 characters.

    The channel is `<run id>:<name>`. The run id is the argument named `runid`, else `run_id`, else the first one, a
    method's `self` or `cls` left out.

    Before the function returns, what waits in StatusMessenger's queue has `flush` seconds to reach Redis: less where
    the job's own time limit leaves less, and 20 ms where Redis has let such a wait run out before and is still away. A
    call within the call of a decorated function, or within a job of `client.rq.Worker`, leaves that to the outer one.
    In a coroutine function a thread waits. Where the job's time limit ends it at an `await`, rq before 3.0 leaves its
    coroutine there for ever: no `EXCEPTION` line and no wait, but that of `client.rq.Worker`.

    Args:
        name: the channel's name, such as `wepp`.
        trigger: the event of the `TRIGGER` line, such as `WEPP_RUN_TASK_COMPLETED`, or several; `omni END_BROADCAST`
            names another channel's pages in the line, which is published on this one all the same.
        runid: called with the arguments of the call, returns the run id.
        queue: publish through a queue for the time of the call, as `StatusMessenger.configure` takes it. Where this
            process is queued already, that queue is used; False leaves the mode alone.
        flush: seconds.

    Raises:
        TypeError: an argument is of no such type, or the function is a generator or has no parameter for a run id; at
            the call, the run id is no str, or the arguments do not fit the function.
        ValueError: an argument is out of its range; at the call, the run id is empty, or the configuration names no
            usable Redis.
    """
    triggers = _checked(name, trigger, queue, flush)
    if runid is not None and not callable(runid):
        raise TypeError(f"runid is a function of the call's arguments that returns the run id, not {runid!r}")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = _signature(function)
        find_run = runid or _finder(function, signature)
        skipped = next(iter(signature.parameters), None) in ("self", "cls")

        def lines(args: tuple[Any, ...], kwargs: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
            signature.bind(*args, **kwargs)  # a wrong call raises here, as the function itself would
            channel = keys.channel(_checked_run_id(find_run(*args, **kwargs), function), name)
            return _told(Step(channel, shown_call(function.__name__, args[skipped:], kwargs), job_prefix()), triggers)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapped_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                said = lines(args, kwargs)
                async with _Delivery(queue, flush):
                    with said:
                        return await cast("Awaitable[Any]", function(*args, **kwargs))

            return cast(Callable[P, R], wrapped_async)

        @functools.wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            said = lines(args, kwargs)
            with _Delivery(queue, flush), said:
                return function(*args, **kwargs)

        return wrapped

    return decorate


@contextlib.contextmanager
def _told(step: Step, triggers: Sequence[tuple[str, str]]) -> Iterator[None]:
    step.started()
    try:
        yield
    except BaseException:
        step.failed()
        raise
    step.completed()
    for name, event in triggers:
        step.trigger(name, event)


# --- what the decorator is given ---------------------------------------------------------------------------------


def _checked(name: object, trigger: object, queue: object, flush: object) -> tuple[tuple[str, str], ...]:
    """The triggers as (name, event); what is raised is that of `job_status`."""
    if not isinstance(name, str):
        raise TypeError(f"@job_status takes a channel's name such as 'wepp' first, not {name!r}")
    if not name or ":" in name:
        raise ValueError(f"{name!r} is no channel's name; write the part after the colon, such as 'wepp'")
    if not isinstance(queue, int):
        raise TypeError(f"queue is True, False or a number of messages such as 10000, not {queue!r}")
    if queue < 0:
        raise ValueError(f"queue is True, False or a number of messages such as 10000, not {queue}")
    if isinstance(flush, bool) or not isinstance(flush, int | float):
        raise TypeError(f"flush is a number of seconds such as {FLUSH}, not {flush!r}")
    if not 0 <= flush < float("inf"):
        raise ValueError(f"flush is a number of seconds from 0, such as {FLUSH}, not {flush}")
    if not isinstance(trigger, str | Sequence):
        raise TypeError(f"trigger is an event such as 'WEPP_RUN_TASK_COMPLETED', or several, not {trigger!r}")
    return tuple(_trigger(name, text) for text in ([trigger] if isinstance(trigger, str) else trigger))


def _trigger(name: str, text: object) -> tuple[str, str]:
    if not isinstance(text, str):
        raise TypeError(f"an event is a str such as 'WEPP_RUN_TASK_COMPLETED', not {text!r}")
    match text.split():
        case [event]:
            return name, event
        case [other, event]:
            return other, event
    raise ValueError(f"{text!r} is no event; write one such as 'WEPP_RUN_TASK_COMPLETED' or 'omni END_BROADCAST'")


def _signature(function: Callable[..., object]) -> inspect.Signature:
    if not callable(function):
        raise TypeError(f"@job_status(...) stands above a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__} is a generator, which has done nothing yet when its call returns; "
                        "decorate the function that runs through it")  # fmt: skip
    return inspect.signature(function)


def _finder(function: Callable[..., object], signature: inspect.Signature) -> Callable[..., object]:
    """What finds the run id among the arguments of a call.

    Raises:
        TypeError: no parameter can be it.
    """
    names = [
        parameter.name
        for place, parameter in enumerate(signature.parameters.values())
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and not (place == 0 and parameter.name in ("self", "cls"))
    ]
    if not names:
        raise TypeError(f"{function.__qualname__}{signature} has no parameter for a run id; "
                        "say @job_status(..., runid=function of its arguments)")  # fmt: skip
    wanted = next((name for name in ("runid", "run_id") if name in names), names[0])

    def find(*args: Any, **kwargs: Any) -> object:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments[wanted]

    return find


def _checked_run_id(found: object, function: Callable[..., object]) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{function.__qualname__} was called with a run id of type {type(found).__name__}, not str; "
                        "say @job_status(..., runid=function of its arguments)")  # fmt: skip
    if not found:
        raise ValueError(f"{function.__qualname__} was called with an empty run id")
    return found


# --- queued mode for a while, and the wait at its end ------------------------------------------------------------

# Whether this call stands within another one that waits at its own end.
_inside: ContextVar[bool] = ContextVar("client.rq.inside", default=False)


class _Delivery:
    """Around a job: queued mode if asked for, and at the end what waits has `seconds` to reach Redis."""

    _gave_up = False

    def __init__(self, queue: bool | int, seconds: float) -> None:
        self._queue = queue
        self._seconds = seconds
        self._switched = False

    def __enter__(self) -> None:
        if self._queue and messenger._Process.queued is None:
            try:
                StatusMessenger.configure(queue=self._queue)
                self._switched = True
            except RuntimeError as error:
                log.warning("status messages go without a queue: %s", error)
        self._outermost = not _inside.get()
        _inside.set(True)

    def __exit__(self, *exc: object) -> None:
        self._leave()
        self._deliver()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._leave()
        # A coroutine that is closed may not await any more.
        if messenger._Process.queued is None or kind is GeneratorExit:
            self._deliver()
        else:
            await asyncio.to_thread(self._deliver)

    def _leave(self) -> None:
        _inside.set(not self._outermost)

    def _deliver(self) -> None:
        queued = messenger._Process.queued
        if queued is None:
            return
        if self._switched:
            messenger._Process.queued = None
            _Delivery._gave_up = not queued.retire(self._patience())
        elif self._outermost:
            _Delivery._gave_up = not queued.flush(self._patience())

    def _patience(self) -> float:
        """Seconds to wait."""
        sender = messenger._Process.sender
        is_away = self._gave_up and not (sender is not None and sender.is_connected)
        patience = min(self._seconds, STILL_AWAY) if is_away else self._seconds
        left, again = signal.getitimer(signal.ITIMER_REAL) if hasattr(signal, "getitimer") else (0.0, 0.0)
        is_limited = left and not again
        return min(patience, max(left - MARGIN, 0.0)) if is_limited else patience


class _LastDelivery(_Delivery):
    """Around the job of a work-horse: what any other process does at its end, which os._exit leaves out."""

    def _deliver(self) -> None:
        for callback in list(ending._known):
            try:
                callback()
            except Exception:
                # Of whatever kind: the others are to have their turn, and the job has ended already.
                log.exception("something was not done at the end of a job")


# --- workers -----------------------------------------------------------------------------------------------------


class StatusWorker:
    """What makes a worker class of rq one whose jobs lose no line; stands before it in a class of your own.

        class OurWorker(StatusWorker, rq.Worker): ...

    Each job runs in queued mode, whatever its code does. Once it has ended, well, by an exception or by rq's
    JobTimeoutException, and rq has noted how, what waits has 2 s to reach Redis, outside of the job's time limit. A
    work-horse does here also what any other process does at its end, such as to write the dumps of
    `RedisPrep(dump="lazy")`.

    Attributes:
        status_queue: as for `StatusMessenger.configure`; a class whose jobs say more than Redis takes sets a number.
    """

    status_queue: bool | int = True

    def work(self, *args: Any, **kwargs: Any) -> Any:
        """As rq's; what is wrong with the configuration is said here, and not by each job.

        Raises:
            ValueError: the configuration names no usable Redis.
        """
        address()
        return cast(Any, super()).work(*args, **kwargs)

    def perform_job(self, *args: Any, **kwargs: Any) -> Any:
        """As rq's, which calls it in the work-horse, or where there is none in the worker itself."""
        around = _LastDelivery if getattr(self, "is_horse", False) else _Delivery
        with around(self.status_queue, FLUSH):
            return cast(Any, super()).perform_job(*args, **kwargs)


_WORKERS = ("Worker", "SimpleWorker", "SpawnWorker")


def __getattr__(name: str) -> Any:
    """StatusWorker joined with rq's class of that name, made at the first use, so that rq is not needed before.

    Raises:
        ImportError: rq is not installed, or too old for this class.
    """
    if name not in _WORKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import rq
    except ImportError as error:
        raise ImportError(f"client.rq.{name} needs rq: pip install 'rq>={OLDEST}'") from error
    if name == "SpawnWorker" and int(rq.__version__.partition(".")[0]) < 3:
        # Whatever its class, its work-horses are plain rq.Workers, and what waits in their queues would be lost.
        raise ImportError(f"client.rq.SpawnWorker needs rq>=3.0 and this is {rq.__version__}; "
                          "pip install -U rq, or use @job_status or client.rq.Worker")  # fmt: skip
    theirs = getattr(rq, name)
    text = f"rq's {name}, whose jobs lose no line; see StatusWorker."
    made = globals()[name] = type(name, (StatusWorker, theirs), {"__module__": __name__, "__doc__": text})
    return made
