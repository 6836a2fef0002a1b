"""What is done before a process ends."""

import multiprocessing.util
import subprocess
import sys
import threading

import pytest

from client import ending

FIRST = (
    "from client.ending import before_exit\ndef last(): print('last', flush=True)\n"
    "before_exit(last)\nbefore_exit(last)\n"
)
POOL = (
    "import multiprocessing, os\nfrom client.ending import before_exit\n"
    "def last(): print('last', flush=True)\ndef work(): before_exit(last)\n"
    "child = multiprocessing.get_context('fork').Process(target=work)\n"
    "child.start()\nchild.join()\nos._exit(0)\n"
)
FORK = FIRST + "import os\nchild = os.fork()\nif not child: os._exit(0)\nos.waitpid(child, 0)\n"
FORK_EXIT = FIRST + "import os\nchild = os.fork()\nif child: os.waitpid(child, 0); os._exit(0)\nbefore_exit(last)\n"


@pytest.mark.parametrize(
    ("source", "printed"),
    [
        (FIRST, "last\n"),
        (FIRST + "raise SystemExit(0)", "last\n"),
        (FIRST + "import os; os._exit(0)", ""),
        (POOL, "last\n"),
        (FORK, "last\n"),
        (FORK_EXIT, "last\n"),
    ],
    ids=["end", "exit", "os._exit", "child of multiprocessing", "parent of a fork", "child of a fork"],
)
def test_once_in_each_process_that_ends_in_order(source, printed):
    done = subprocess.run([sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == printed


def test_asking_again_registers_nothing_more(monkeypatch):
    registered = []
    monkeypatch.setattr(ending.atexit, "register", registered.append)
    monkeypatch.setattr(ending, "_known", set())

    def last():
        raise AssertionError("not in this process")

    for _ in range(3):
        ending.before_exit(last)
    assert registered == [last]
    for _, finalizer in list(multiprocessing.util._finalizer_registry.items()):
        if finalizer._callback is last:
            finalizer.cancel()


def test_multiprocessing_is_not_imported_for_it():
    source = FIRST + "import sys; print('multiprocessing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nlast\n"


class JobTimeoutException(Exception):  # noqa: N818 - RQ's name
    """As RQ raises it from a signal handler."""


def test_an_exception_that_comes_while_a_thread_is_started_stays_what_it_is(monkeypatch):
    name = "_start_new_thread" if hasattr(threading, "_start_new_thread") else "_start_joinable_thread"
    begun, end, begin = threading.Event(), threading.Event(), getattr(threading, name)

    def interrupted(*args, **kwargs):
        begin(*args, **kwargs)
        assert begun.wait(10)
        raise JobTimeoutException

    monkeypatch.setattr(threading, name, interrupted)
    thread = threading.Thread(target=lambda: (begun.set(), end.wait(10)))
    with pytest.raises(JobTimeoutException):
        ending.start(thread)
    end.set()
    thread.join(10)
    assert not thread.is_alive()
