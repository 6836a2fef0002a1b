"""`relay demo`: a Redis, a relay, workers and a page to watch them on."""

import contextlib
import http.client
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from relay.cli import core
from relay.cli.examples import ExampleCommand
from relay.errors import RelayError

if TYPE_CHECKING:
    from relay.cli.simulation import Simulation

HOST = "127.0.0.1"  # a demo is for the person at this machine
STATUS_PORT, PREFLIGHT_PORT = 9002, 9001
START = 15.0  # seconds in which a relay must be ready; it takes 0.5 on an idle machine
END = 1.2  # seconds from SIGTERM to SIGKILL, so that all is over within 2 s of Ctrl-C
DRAIN = "500ms"
BACKLOG = 128
PAUSE = 8.0  # seconds between two runs, to look at a full checklist
QUICK, LARGE = "burnt-lodgepole", "upper-clearwater"  # the runs beside the one that is asked for


def _run_id(_ctx: click.Context, _parameter: click.Parameter, run: str) -> str:
    """A run id that the relay serves on all channels; not `..`, for a directory of that name is made and emptied."""
    from relay.handshake import Refused, route

    name = f"{run}:subcatchment_delineation"  # the longest of them
    with contextlib.suppress(Refused):
        if route("status", f"/{name}").topic == name.encode():
            return run
    raise click.BadParameter(f"{run!r} is no run id: letters, digits and _ . ; - only, as in my-run")


def _speed(_ctx: click.Context, _parameter: click.Parameter, speed: float) -> float:
    """Within click's range, which lets through what is no number at all."""
    if math.isnan(speed):
        raise click.BadParameter(f"{speed} is no number")
    return speed


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay demo",
        "relay demo --speed 5 --once",
        "relay demo --run my-run --redis-url redis://localhost:6379",
    ),
)
@click.option("--run", default="demo", show_default=True, callback=_run_id, help="Run id; what it had is overwritten.")
@click.option(
    "--speed", default=1.0, show_default=True, type=click.FloatRange(0.01, 1000), callback=_speed, help="Of the work."
)
@click.option("--redis-url", metavar="URL", help="Use this Redis and not one of the demo's own; it keeps the runs.")
@click.option("--once", is_flag=True, help="End when each run has run once.")
def demo(run: str, speed: float, redis_url: str | None, once: bool) -> None:
    """Run Redis, relay and model runs to watch.

    Starts a Redis, both services, and workers that simulate three model runs again and again: the one of --run, a
    quick one that fails in a step and is started again there, and a slow and large one. Prints the address of a page
    that shows log and checklist of a run, and what else to look at. Takes free ports where 9001 or 9002 are taken.
    Ctrl-C ends everything it started.
    """
    core.require()
    with contextlib.ExitStack() as stack:
        ending = stack.enter_context(Ending())
        _demo(stack, ending, run, speed, redis_url, once)
    click.echo("relay demo: all ended", err=True)


def _demo(
    stack: contextlib.ExitStack, ending: "Ending", run: str, speed: float, redis_url: str | None, once: bool
) -> None:
    from redis.exceptions import ConnectionError as RedisConnectionError

    import client
    import client.connection
    from relay.cli.embedded import redis_server

    redis = stack.enter_context(redis_server(redis_url))
    listeners = [_listener(port) for port in (STATUS_PORT, PREFLIGHT_PORT)]
    status, preflight = (listener.getsockname()[1] for listener in listeners)
    server = stack.enter_context(_relay(redis.url, *listeners))
    for port in (status, preflight):
        if not _ready(port, server, ending):
            return
    client.configure(url=redis.url)
    client.StatusMessenger.configure(queue=True)  # direct, a busy machine loses lines: a publish has 0.2 s
    stack.callback(client.StatusMessenger.configure, queue=False)
    if redis.process is None:
        click.echo(f"relay demo: writes its runs to {client.connection.address()}, which keeps them", err=True)
    click.echo(f"http://{HOST}:{status}/run/{run}")

    def pause(seconds: float) -> bool:
        if server.poll() is not None:
            raise RelayError(f"the relay ended by itself, with exit code {server.returncode}; its last words are above")
        return ending.wait(seconds)

    parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-demo-", ignore_cleanup_errors=True)))
    runs = _runs(run, parent, pause, speed)
    click.echo(_guide(runs, status, preflight), err=True)

    def work(worker: "Simulation") -> None:
        try:
            while worker.once() and not once and not pause(PAUSE / speed):
                pass
        except RedisConnectionError as error:
            raise RelayError(f"{worker.run}: {error}") from error

    with ThreadPoolExecutor(len(runs)) as pool:
        working = [pool.submit(work, worker) for worker, _ in runs.values()]
        if any(future.exception() for future in wait(working, return_when=FIRST_EXCEPTION).done):
            ending.ask()
    for future in working:
        future.result()


Runs = dict[str, tuple["Simulation", str]]  # by run id: its worker, and what there is to see of it


def _runs(run: str, parent: Path, pause: Callable[[float], bool], speed: float) -> Runs:
    """The run that is asked for, and two beside it unless it is one of them: a run has one worker."""
    from relay.cli.simulation import CLEARWATER, COUGAR, Simulation

    asked = Simulation(run, parent, pause, speed=speed), f"every step to the export, at --speed {speed:g}"
    quick = Simulation(QUICK, parent, pause, speed=2 * speed, site=COUGAR, fails="build_climate")
    large = Simulation(LARGE, parent, pause, speed=0.6 * speed, site=CLEARWATER)
    beside = {
        QUICK: (quick, "quick; its climate fails (EXCEPTION), is left undone, and is started again later"),
        LARGE: (large, f"slow and large: wepp has {CLEARWATER.hillslopes} hillslopes to run, and is locked for long"),
    }
    return {run: asked} | beside | {run: asked}


def _guide(runs: Runs, status: int, preflight: int) -> str:
    """What to look at, and with what."""
    width = max(map(len, runs))
    logs = f" --url ws://{HOST}:{status}" if status != STATUS_PORT else ""
    lists = f" --url ws://{HOST}:{preflight}" if preflight != PREFLIGHT_PORT else ""
    channels = " ".join(f"{name}:{'climate' if name == QUICK else 'wepp'}" for name in runs)
    return "\n".join(
        (
            "relay demo: open this page in a browser; Ctrl-C ends everything. The runs:",
            *(f"  http://{HOST}:{status}/run/{name:{width}}  {what}" for name, (_, what) in runs.items()),
            "relay demo: the same in another terminal:",
            f"  {_program()} tail {channels}{logs}",
            f"  {_program()} checklist {QUICK} --watch{lists}",
        )
    )


def _program() -> str:
    """What calls this command in the user's shell."""
    if shutil.which("relay"):
        return "relay"
    return sys.argv[0] if Path(sys.argv[0]).name == "relay" else f"{sys.executable} -m relay"


class Ending:
    """Ctrl-C, SIGTERM and a closed terminal as something to wait for, not an exception in the middle of anything.

    The bytes that Python writes for them (`signal.set_wakeup_fd`) are never read: once asked to end, no wait waits.
    """

    def __enter__(self) -> Self:
        self._asked, self._wakeup = socket.socketpair()
        self._asked.setblocking(False)
        self._wakeup.setblocking(False)
        self._before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        asking = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            asking.append(signal.SIGHUP)
        self._handlers = {s: signal.signal(s, lambda *_: None) for s in asking}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        self._asked.close()
        self._wakeup.close()

    def wait(self, seconds: float) -> bool:
        """Wait so long; true, and at once, when it is time to end."""
        return bool(select.select([self._asked], [], [], seconds)[0])

    def ask(self) -> None:
        """Make it time to end."""
        with contextlib.suppress(BlockingIOError):  # full of what asks already
            self._wakeup.send(b"\0")


def _listener(usual: int) -> socket.socket:
    """A socket that listens on the usual port of a service, or on a free one where that is taken.

    It is handed to the relay: a port that is looked at and let go is another demo's a moment later, and what answers
    there is then another demo's relay.
    """
    from relay.cli.embedded import free_port

    port = usual
    while True:
        with contextlib.suppress(OSError):  # taken
            return socket.create_server((HOST, port), backlog=BACKLOG)
        port = free_port()


@contextlib.contextmanager
def _relay(redis_url: str, status: socket.socket, preflight: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Both services in a process of their own, which alone has the two sockets from then on.

    In a session of its own too: the terminal sends Ctrl-C to the whole process group, and the relay is to end when
    the worker has, not before.
    """
    from relay.cli.embedded import ends_with_parent

    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("STATUS_", "PREFLIGHT_", "RELAY_", "REDIS_"))}
    settings = {
        "REDIS_URL": redis_url,
        "STATUS_LISTEN_ADDR": f"fd:{status.fileno()}",
        "PREFLIGHT_LISTEN_ADDR": f"fd:{preflight.fileno()}",
        "STATUS_LOG_LEVEL": "WARNING",
        "PREFLIGHT_LOG_LEVEL": "WARNING",
        "RELAY_DRAIN": DRAIN,
    }
    command = [sys.executable, "-m", "relay", "serve"]
    with status, preflight:
        process = subprocess.Popen(
            command,
            env=inherited | settings,
            start_new_session=True,
            preexec_fn=ends_with_parent(),
            pass_fds=(status.fileno(), preflight.fileno()),
        )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(END)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(port: int, server: subprocess.Popen[bytes], ending: Ending) -> bool:
    """Wait until the service on `port` is ready; false where it is time to end first."""
    deadline = time.monotonic() + START
    while not _answers(port):
        if server.poll() is not None:
            raise RelayError(f"the relay did not start: exit code {server.returncode}; its last words are above")
        if time.monotonic() > deadline:
            raise RelayError(f"the relay is not ready on port {port} after {START:g} s; is its Redis there?")
        if ending.wait(0.05):
            return False
    return True


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=0.5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
