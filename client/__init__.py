"""What a worker imports to tell WEPPcloud's pages how a run is going.

    from client import RedisPrep, StatusMessenger, TaskEnum

    StatusMessenger.publish(f"{run_id}:wepp", "rq:7 STARTED run_wepp(run1)")
    RedisPrep.getInstance(wd).timestamp(TaskEnum.run_wepp_watershed)

Pure Python and, beyond the standard library, only redis-py; that is imported by the first use of RedisPrep, so that
`import client` stays cheap in processes that only publish.
"""

# Checkers know this name without typing, whose import would take longer than all the rest here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from client.connection import configure
    from client.keys import TaskEnum
    from client.logs import status_logging
    from client.messenger import QueuedMessenger, StatusMessenger, StatusMessengerHandler
    from client.prep import RedisPrep
    from client.stream import run_and_stream
    from client.timing import timed

__all__ = [
    "QueuedMessenger",
    "RedisPrep",
    "StatusMessenger",
    "StatusMessengerHandler",
    "TaskEnum",
    "configure",
    "run_and_stream",
    "status_logging",
    "timed",
]

_HOMES = {
    "QueuedMessenger": "client.messenger",
    "RedisPrep": "client.prep",
    "StatusMessenger": "client.messenger",
    "StatusMessengerHandler": "client.messenger",
    "TaskEnum": "client.keys",
    "configure": "client.connection",
    "run_and_stream": "client.stream",
    "status_logging": "client.logs",
    "timed": "client.timing",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'client' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
