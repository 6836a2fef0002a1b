"""The process at its file limit: refused politely, at rest, in touch with Redis, and back once there is room (F30)."""

import contextlib
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relay.cli.embedded import free_port
from tests.conftest import ROOT
from tests.integration.peers import Peer, Refused, Wire, address_of, ask, head, upgrade, wait_for

LIMIT = 96
AT_REST = 0.2  # of a core
SECONDS = 2.0


class Limited:
    """A `relay serve status` that may have 96 files open."""

    def __init__(self, redis_url):
        port = free_port()
        self.url = f"ws://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            ["prlimit", f"--nofile={LIMIT}:{LIMIT}", sys.executable, "-m", "relay", "serve", "status"],
            cwd=ROOT,
            env={"REDIS_URL": redis_url, "STATUS_LISTEN_ADDR": f"127.0.0.1:{port}", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ready(self):
        with contextlib.suppress(OSError):
            return ask(self.url, head("/readyz")).status == 200

    def allow(self, files):
        """A new limit for the running process."""
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (files, LIMIT))

    def files(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def used(self):
        """Seconds of CPU."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def load(self):
        """The share of a core that it takes for two seconds."""
        before = self.used()
        time.sleep(SECONDS)  # what is looked for is that nothing happens
        return (self.used() - before) / SECONDS

    def fill(self, peers):
        """Opens websockets until one is refused; the refusal."""
        for number in range(LIMIT):
            try:
                peers.enter_context(Peer(f"{self.url}/r{number}:wepp"))
            except Refused as refused:
                return refused.answer
        raise AssertionError(f"{LIMIT} files, and {LIMIT} clients found room")


@pytest.fixture
def limited(redis_url):
    process = Limited(redis_url)
    try:
        wait_for(process.ready, "ready")
        yield process
    finally:
        process.process.send_signal(signal.SIGTERM)
        process.process.send_signal(signal.SIGTERM)
        process.process.wait(20)


@pytest.fixture
def peers():
    with contextlib.ExitStack() as stack:
        yield stack


def delivers(process, worker, redis_url, peer):
    """A message comes through: the link to Redis is alive."""
    assert worker(redis_url).publish("r0:wepp", "alive") == 1
    assert peer.data() == "alive"


@pytest.mark.row("F30")
@pytest.mark.needs("prlimit")
def test_when_full_newcomers_get_503_and_nothing_spins(limited, peers, worker, redis_url):
    first = peers.enter_context(Peer(f"{limited.url}/r0:wepp"))
    with contextlib.ExitStack() as others:
        refusal = limited.fill(others)
        assert (refusal.status, refusal.headers["retry-after"]) == (503, "5")
        waiting = []
        for _ in range(20):  # each asks at once: who says nothing for 0.2 s makes way without an answer
            waiting.append(others.enter_context(Wire(address_of(limited.url))))
            waiting[-1].send(upgrade("/r1:wepp"))
        answers = [wire.answer() for wire in waiting]
        assert [(answer.status, answer.headers["retry-after"]) for answer in answers] == [(503, "5")] * 20
        assert ask(limited.url, head("/health")).status == 200
        assert ask(limited.url, head("/readyz")).status == 200
        assert limited.load() < AT_REST, "it spins"
        delivers(limited, worker, redis_url, first)
    wait_for(lambda: limited.files() < LIMIT / 2, "the closed ones are gone")
    assert peers.enter_context(Peer(f"{limited.url}/r1:wepp")).alive()


@pytest.mark.row("F30")
@pytest.mark.needs("strace", "ptrace", "root")
@pytest.mark.parametrize("error", ["ENOBUFS", "ENOMEM", "ENFILE", "ECONNABORTED"])
@pytest.mark.parametrize("service", ["status", "preflight"])
def test_errors_of_accept_are_waited_out(relay, redis_server, tmp_path, service, error):
    """Whoever came meanwhile is served once the kernel has room again."""
    process = relay(service, env={"REDIS_URL": redis_server.url})
    base = process.status_url or process.preflight_url
    path = "/r0:wepp" if service == "status" else "/r0"
    log = tmp_path / "strace"
    with Peer(base + path) as first:
        strace = subprocess.Popen(
            ["strace", "-f", "-o", str(log), "-e", "trace=accept4", "-e", f"inject=accept4:error={error}:when=1..10",
             "-p", str(process.process.pid)], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert "attached" in strace.stderr.readline()
            with contextlib.ExitStack() as stack:
                late = [stack.enter_context(Wire(address_of(base))) for _ in range(5)]
                for wire in late:
                    wire.send(upgrade(path))
                assert [wire.answer().status for wire in late] == [101] * 5
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait()
            strace.stderr.close()
        tried = [line for line in log.read_text().splitlines() if "accept4(" in line]
        assert sum("INJECTED" in line for line in tried) == 10
        assert len(tried) < 40, "it spins"
        assert first.alive()


@pytest.mark.row("F30")
@pytest.mark.needs("prlimit")
def test_health_is_answered_however_many_are_refused(limited, peers):
    """Who is refused does not linger in the few places that health paths are answered from."""
    limited.fill(peers)
    for _ in range(3):
        for _ in range(20):
            wire = peers.enter_context(Wire(address_of(limited.url)))
            wire.send(upgrade("/r1:wepp"))
            assert wire.answer().status == 503
        assert ask(limited.url, head("/health")).status == 200


@pytest.mark.row("F30")
@pytest.mark.needs("prlimit")
def test_when_accept_itself_fails_nothing_spins_and_it_recovers(limited, peers, worker, redis_url):
    """The limit is lowered under what is open: accept(2) fails with EMFILE, whatever is left of our own count."""
    first = peers.enter_context(Peer(f"{limited.url}/r0:wepp"))
    limited.allow(limited.files() - 1)
    waiting = [peers.enter_context(Wire(address_of(limited.url))) for _ in range(5)]
    for number, wire in enumerate(waiting):
        wire.send(upgrade(f"/r{number}:wepp"))
    assert limited.load() < AT_REST, "it spins"
    delivers(limited, worker, redis_url, first)
    limited.allow(LIMIT)
    assert [wire.answer().status for wire in waiting] == [101] * 5
