"""What is to be done before a process ends, however it was started."""

import atexit
import os
import sys
import threading
from collections.abc import Callable

_known: set[Callable[[], object]] = set()


def before_exit(callback: Callable[[], object]) -> None:
    """Have `callback()` called at the end of this process, more than once perhaps; a child of a fork asks for itself.

    Children that multiprocessing forks leave through os._exit, without atexit but after the finalizers of
    multiprocessing.util; that module is loaded there, and not imported where it is not. A child of a plain os.fork that
    leaves through os._exit calls nothing.
    """
    if callback in _known:
        return
    _known.add(callback)
    atexit.unregister(callback)  # a fork inherits what its parent has registered
    atexit.register(callback)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # Before multiprocessing joins the threads of its queues, which have priority -5.
        util.Finalize(None, callback, exitpriority=10)


def start(thread: threading.Thread) -> None:
    """Start a thread, wherever the interpreter is.

    Raises:
        RuntimeError: the process has no thread to give, or the interpreter is ending: in a `__del__` of its last
            moments Thread.start() of Python 3.11 waits for ever for a thread that never begins.
    """
    if sys.is_finalizing():
        raise RuntimeError("the interpreter is ending")
    try:
        thread.start()
    except KeyError as error:
        # A signal handler's exception, as RQ ends a job that takes too long, came once the thread had begun: Python
        # deletes that from a list on which it is no more, and the job ended with KeyError: <Thread(...)>.
        raise error.__context__ or error from None


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_known.clear)
