"""What `relay bench` measures: a relay, peers and a yardstick, started and ended here, or a relay somewhere else.

A server of ours has one CPU to itself, where there are two; Redis and the load generator have the others.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self
from urllib.parse import urlsplit

import click

from relay.cli import embedded
from relay.errors import ConfigError, RelayError

HOST = "127.0.0.1"
START_SECONDS = 20.0  # until a server must accept; a JVM or a Python with much to import takes some
STOP_SECONDS = 3.0  # between SIGTERM and SIGKILL
PREPARE_SECONDS = 120.0  # for what a peer does once, as compiling
ANSWER_SECONDS = 10.0  # for a connection to a relay somewhere else, or to Redis
# nginx lives in sbin, which the PATH of an ordinary user lacks.
PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
OURS = ("STATUS_", "PREFLIGHT_", "REDIS_", "RELAY_")  # variables of this shell that would change the measured relay
PEERS = Path(__file__).parent.parent.parent / "bench" / "peers.toml"


class Address(NamedTuple):
    """Where the load generator connects to: as `socket.getaddrinfo` says it."""

    family: int
    address: Any
    host: str  # the Host field
    prefix: str = ""  # of every path
    tls: ssl.SSLContext | None = None
    name: str | None = None  # for the certificate


@dataclass(frozen=True)
class Recipe:
    """How a server is started: a table of bench/peers.toml, or the relay itself."""

    name: str
    title: str
    command: list[str]  # with placeholders {port} {redis_host} {redis_port} {bench} {tmp} {python}
    publish: str = "redis"  # or "http": POST /pub?id=... of the server itself
    needs: list[str] = field(default_factory=list)  # programs, files by their whole paths, or module:NAME
    install: str = ""  # how to get them
    prepare: list[str] = field(default_factory=list)  # a command to run once before

    def lacking(self) -> list[str]:
        """Those of `needs` that are not here."""
        return [need for need in self.needs if not _there(need)]


def _there(need: str) -> bool:
    kind, _, module = need.partition(":")
    if kind == "module" and module:
        # Of the package alone: what is inside it, find_spec would have to import.
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    if need.startswith("/"):
        return Path(need).exists()
    return shutil.which(need, path=PATH) is not None


def own() -> Recipe:
    """The relay of this installation."""
    serve = ["{python}", "-m", "relay", "serve", "status", "--host", HOST, "--port", "{port}"]
    redis = ["--redis-url", "redis://{redis_host}:{redis_port}", "--log-level", "WARNING"]
    return Recipe("relay", f"relay {metadata.version('weppcloud-relay')}", serve + redis)


def peers(names: list[str], path: Path = PEERS) -> list[Recipe]:
    """The peers of these names, installed or not.

    Raises:
        click.UsageError: one is unknown.
        RelayError: there is no list of peers here, or it is malformed.
    """
    if not names:
        return []
    if not path.exists():
        raise RelayError(
            "--peers: the peers are no part of the installed package; run this in a checkout of the "
            "project's source, where bench/peers.toml says how each is started"
        )
    try:
        tables = tomllib.loads(path.read_text())["peer"]
        known = {name: _recipe(name, table) for name, table in tables.items()}
    except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: malformed: {error}") from error
    for name in names:
        if name not in known:
            raise click.UsageError(f"--peers {name}: there is none; there are {', '.join(known)}")
    return [known[name] for name in names]


def _recipe(name: str, table: dict[str, Any]) -> Recipe:
    return Recipe(name=name, **{"title": name, **table})


class Cpus:
    """Which CPUs are whose: the first is the server's, the others ours; one alone is everybody's."""

    def __init__(self) -> None:
        self.all = sorted(os.sched_getaffinity(0))
        self.server = {self.all[0]}
        self.load = set(self.all[1:]) or self.server

    def __enter__(self) -> Self:
        os.sched_setaffinity(0, self.load)
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self.all)

    @contextlib.contextmanager
    def of_server(self) -> Iterator[None]:
        """What is started within is born on the server's CPU; set after the start, its first threads would not be."""
        os.sched_setaffinity(0, self.server)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.load)


class Bench:
    """The machine under the servers: a private Redis, a directory, and the CPUs shared out; for a `with`.

    Raises:
        RelayError: no Redis server found, or it does not start.
    """

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.cpus = Cpus()
        self.prepared: set[str] = set()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.cpus)
            self.binary = embedded.find_binary()
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
            self.redis_port = embedded.free_port()
            # A peer that reads slowly is to be measured, not cut off by Redis.
            limit = ("--client-output-buffer-limit", "pubsub", "0", "0", "0")
            stack.callback(embedded.stop, embedded.start(self.binary, self.redis_port, self.directory, limit))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def redis(self) -> socket.socket:
        """A connection to the private Redis, for one publisher."""
        return _blocking(HOST, self.redis_port)

    @contextlib.contextmanager
    def server(self, recipe: Recipe) -> Iterator["Server"]:
        """A fresh server of that recipe that accepts connections; ended, with all it started, behind the `with`.

        Raises:
            RelayError: it cannot be prepared, ends by itself, or does not listen; with the end of what it said.
        """
        server = Server(recipe, embedded.free_port())
        log = self.directory / f"{recipe.name}.log"
        if recipe.prepare and recipe.name not in self.prepared:
            self._prepare(recipe)
        with log.open("wb") as output, self.cpus.of_server():
            server.process = self._spawn(recipe, server.port, output)
        try:
            server.await_listening(log)
            yield server
        finally:
            server.end()

    def _spawn(self, recipe: Recipe, port: int, output: BinaryIO) -> "subprocess.Popen[bytes]":
        try:
            return subprocess.Popen(
                self._filled(recipe.command, port),
                env=self._environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own: Ctrl-C is for us, who end it
            )
        except OSError as error:
            raise RelayError(f"{recipe.title} cannot be started: {error}") from error

    def _filled(self, command: list[str], port: int = 0) -> list[str]:
        places = {
            "{port}": str(port),
            "{redis_host}": HOST,
            "{redis_port}": str(self.redis_port),
            "{bench}": str(PEERS.parent),
            "{tmp}": str(self.directory),
            "{python}": sys.executable,
        }
        filled = []
        for word in command:
            for place, value in places.items():
                word = word.replace(place, value)
            filled.append(word)
        return filled

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        # The servers run in a directory of the bench; from a checkout that is not installed `-m relay` is found so.
        path = os.pathsep.join(filter(None, (str(PEERS.parent.parent), os.environ.get("PYTHONPATH"))))
        return {**inherited, "PATH": PATH, "PYTHONPATH": path}

    def _prepare(self, recipe: Recipe) -> None:
        command = self._filled(recipe.prepare)
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                cwd=self.directory,
                timeout=PREPARE_SECONDS,
                env=self._environment(),
            )
        except subprocess.CalledProcessError as error:
            raise RelayError(f"{' '.join(command)} failed: {_end(error.stderr or error.stdout)}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RelayError(f"{' '.join(command)} failed: {error}") from error
        self.prepared.add(recipe.name)


class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]

    def __init__(self, recipe: Recipe, port: int) -> None:
        self.recipe = recipe
        self.port = port
        self.address = Address(socket.AF_INET, (HOST, port), f"{HOST}:{port}")

    def link(self) -> socket.socket:
        """A connection to the server itself, for a publisher that speaks HTTP."""
        return _blocking(HOST, self.port)

    def await_listening(self, log: Path) -> None:
        """Return when it accepts; RelayError where it does not, with the end of its log."""
        until = time.monotonic() + START_SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            code = self.process.poll()
            if code is not None:
                raise RelayError(f"{self.recipe.title} ended with code {code}; it said: {_end(log.read_bytes())}")
            if time.monotonic() > until:
                said = _end(log.read_bytes())
                raise RelayError(f"{self.recipe.title} does not listen after {START_SECONDS:.0f} s; it said: {said}")
            time.sleep(0.02)

    def end(self) -> None:
        """SIGTERM to it, and SIGKILL to whatever is left of its group."""
        try:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, signal.SIGTERM)
                self.process.wait(STOP_SECONDS)
        finally:  # also when a second Ctrl-C ends the wait
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def remote(url: str) -> Address:
    """Where `url` is, after one connection to see whether anybody answers there.

    Raises:
        click.UsageError: it is no websocket address.
        RelayError: its name is unknown, nothing accepts, or its certificate is not trusted.
    """
    shown = re.sub("(?<=://).*@", "", url).partition("?")[0]  # without what may be a secret
    wrong = click.UsageError(f"--url {shown}: not an address such as ws://localhost:9002 or wss://host/path")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # a port that is no number or none of TCP's, a bracket left open
        raise wrong from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise wrong
    if parts.query or parts.fragment or ":" in parts.path:
        raise click.UsageError(
            f"--url {shown}: takes an address and the prefix of a proxy; a channel or a query goes "
            "into --path, as --path '/run1:wepp?v=2'"
        )
    tls = ssl.create_default_context() if parts.scheme == "wss" else None
    host = parts.netloc.rpartition("@")[2]
    try:
        with socket.create_connection((parts.hostname, port or (443 if tls else 80)), ANSWER_SECONDS) as probe:
            family, address = probe.family, probe.getpeername()
            if tls is not None:
                tls.wrap_socket(probe, server_hostname=parts.hostname).close()
    except ssl.SSLError as error:
        raise RelayError(f"--url {shown}: somebody answers there, but not with a TLS to be trusted: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise RelayError(f"--url {shown}: nothing answers there ({reason}); is a relay running?") from error
    return Address(family, address, host, parts.path.rstrip("/"), tls, parts.hostname if tls else None)


def redis(url: str) -> socket.socket:
    """A connection to the Redis at `url` that is let in, for one publisher; its numbered database does not matter.

    Raises:
        ConfigError: the URL is malformed or asks for TLS, or Redis refuses the password.
        RelayError: Redis does not answer.
    """
    from relay.values import RedisAddress

    try:
        where = RedisAddress.parse(url, 0)
    except ValueError as error:
        raise ConfigError(f"--redis-url: {error}") from error
    if where.tls:
        raise ConfigError(
            f"--redis-url {where}: the load generator speaks no TLS to Redis; give it a redis:// that has none"
        )
    try:
        return _let_in(where)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RelayError(f"--redis-url {where}: Redis does not answer ({reason}); is it running there?") from error


def _let_in(where: Any) -> socket.socket:
    with contextlib.ExitStack() as failing:
        if where.path:
            link = failing.enter_context(socket.socket(socket.AF_UNIX))
            link.settimeout(ANSWER_SECONDS)
            link.connect(where.path)
        else:
            link = failing.enter_context(socket.create_connection((where.host, where.port), ANSWER_SECONDS))
        if where.password is not None:
            _command(link, where, "AUTH", *([where.username] if where.username else []), where.password)
        _command(link, where, "PING")
        link.settimeout(None)
        failing.pop_all()
    return link


def _command(link: socket.socket, where: Any, *words: str) -> None:
    """A command of which `+...` is the good answer; ConfigError for any other."""
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in (word.encode() for word in words)]
    link.sendall(b"*%d\r\n" % len(parts) + b"".join(parts))
    answer = link.recv(4096).decode(errors="replace").strip()
    if not answer.startswith("+"):
        said = answer.removeprefix("-") or "it hung up"
        raise ConfigError(f"--redis-url {where}: Redis refuses {words[0]}: {said}")


def _blocking(host: str, port: int) -> socket.socket:
    link = socket.create_connection((host, port), ANSWER_SECONDS)
    link.settimeout(None)
    return link


def _end(text: bytes | None) -> str:
    """The last lines of what a program said."""
    return " / ".join((text or b"").decode(errors="replace").strip().splitlines()[-3:]) or "(nothing)"
