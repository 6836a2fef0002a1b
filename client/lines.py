"""The lines with which a step of a run says how it goes, as browsers read them (contract, section 3.4).

    rq:<job id> STARTED f(args)
    rq:<job id> COMPLETED f(args)
    rq:<job id> EXCEPTION f(args)
    rq:<job id> TRIGGER   <channel> <EVENT>

Outside of an RQ job there is no id, and the lines begin with the word.
"""

import sys

from client.messenger import StatusMessenger

# Characters of one argument, and of all: a line is for people.
ARGUMENT_MAX = 100


class Step:
    """One step's lines on one channel.

    Args:
        channel: where they are published.
        call: the step as a call, such as `run_wepp(run1)`.
        job: what `job_prefix()` says in the thread of the job; rq before 3.0 knows it in no other.
    """

    def __init__(self, channel: str, call: str, job: str) -> None:
        self.channel = channel
        self.call = call
        self.job = job

    def started(self) -> None:
        """It begins."""
        self._say(f"STARTED {self.call}")

    def completed(self) -> None:
        """It ended well."""
        self._say(f"COMPLETED {self.call}")

    def failed(self) -> None:
        """An exception ended it."""
        self._say(f"EXCEPTION {self.call}")

    def trigger(self, name: str, event: str) -> None:
        """Have pages that watch `name` act on an event such as `WEPP_RUN_TASK_COMPLETED`."""
        self._say(f"TRIGGER   {name} {event}")

    def _say(self, text: str) -> None:
        StatusMessenger.publish(self.channel, f"{self.job}{text}")


def job_prefix() -> str:
    """`rq:<job id> ` within an RQ job, else nothing; does not import rq where the program has not."""
    current = getattr(sys.modules.get("rq"), "get_current_job", None)
    job = current() if current is not None else None
    return f"rq:{job.id} " if job is not None else ""


def shown_call(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    """`name(a, b, c=d)` as the workers write it, each argument by str(), cut where it is long."""
    parts = [_shown(value) for value in args]
    parts += [f"{key}={_shown(value)}" for key, value in kwargs.items()]
    return f"{name}({', '.join(parts)})"


def _shown(value: object) -> str:
    try:
        text = str(value)
    except Exception:
        # Of whatever class it is: a line must not end the step that it speaks of.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= ARGUMENT_MAX else text[: ARGUMENT_MAX - 3] + "..."
