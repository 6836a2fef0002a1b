"""deploy/: behind haproxy nobody is refused, whatever is ended, started or reloaded (row F29)."""

import asyncio
import contextlib
import random
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from relay.cli.embedded import free_port
from tests.conftest import ADMIN
from tests.integration.fronts import Front
from tests.integration.peers import Peer, Refused, Wire, address_of, ask, assert_told_to_come_back, curl, head, wait_for
from tests.integration.topology import PORTS, RELAYS, Haproxy, Topology

pytestmark = pytest.mark.needs("haproxy")

FIRST_DELAY = 1.0  # seconds; a client comes back after a random part of it (docs/protocol.md)


@pytest.fixture(scope="module")
def topology(tmp_path_factory):
    with Topology(tmp_path_factory.mktemp("topology")) as running:
        yield running


@pytest.fixture
def publisher(topology, worker):
    user, password = ADMIN
    return worker(topology.redis.url, username=user, password=password)


class Newcomers:
    """Open websockets one after the other for as long as the context lasts, and leave again.

    Args:
        urls: of the channels or runs.
        greeting: what each is to get before it leaves.

    Attributes:
        opened: how many were let in and greeted.
        told: how many were let in just before a drain began, and told to come back.
        refused: the errors of those who were not let in.
        cut: the errors of those who were, and whose connection ended without a word before they were greeted.
    """

    def __init__(self, *urls, greeting=lambda peer: None):
        self.opened, self.told, self.refused, self.cut = 0, 0, [], []
        self._greeting = greeting
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._come, args=(url,)) for url in urls]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _come(self, url):
        while not self._over.wait(0.01):
            failures = self.refused
            try:
                with Peer(url) as peer:
                    failures = self.cut
                    self._greeting(peer)
                    self.opened += 1
            except (OSError, Refused, AssertionError) as error:
                if "the relay is restarting" in str(error):
                    self.told += 1
                else:
                    failures.append(repr(error))

    def more(self, count=20):
        """Waits until so many more have come."""
        enough = self.opened + len(self.refused) + len(self.cut) + count
        wait_for(lambda: self.opened + len(self.refused) + len(self.cut) >= enough, "newcomers", patience=20)


@contextlib.contextmanager
def traffic(publisher, channel):
    """A line each 5 ms."""
    over = threading.Event()

    def talk():
        while not over.wait(0.005):
            publisher.publish(channel, "line")

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_messages_and_checklists_come_through(topology, publisher, join):
    lines = [join(f"{topology.haproxy.url('status')}/r1:wepp") for _ in range(8)]
    boxes = join(f"{topology.haproxy.url('preflight')}/r1")
    publisher.publish("r1:wepp", "through haproxy")
    assert [peer.data() for peer in lines] == ["through haproxy"] * 8
    assert boxes.checks() == set()
    publisher.hset("r1", "timestamps:build_channels", "10")
    assert boxes.checks() == {"channels"}, "redis.conf has key events on"
    assert topology.redis.execute("PUBSUB", "NUMSUB", "r1:wepp")[1] == 4, "leastconn spreads eight over four"


@pytest.mark.needs("curl")
def test_events_come_through_as_they_happen(topology, publisher):
    with curl(f"{topology.haproxy.url('status')}/r6:wepp") as lines:
        assert next(line for line in lines if line.startswith("event")) == "event: ready\n"
        publisher.publish("r6:wepp", "by and by")
        assert next(line for line in lines if "by and by" in line).startswith("data: ")


@pytest.mark.long
@pytest.mark.row("F29")
def test_one_of_four_ends_under_traffic_and_nobody_is_refused(topology, publisher):
    url = f"{topology.haproxy.url('status')}/r2:wepp"
    checklist = f"{topology.haproxy.url('preflight')}/r2"
    with (
        traffic(publisher, "r2:wepp"),
        Newcomers(url, url, greeting=Peer.data) as lines,
        Newcomers(checklist, greeting=Peer.checks) as boxes,
    ):
        for newcomers in (lines, boxes):
            newcomers.more()
        for name in ("status-2", "preflight-2"):
            topology.relays[name].process.send_signal(signal.SIGTERM)
        for name in ("status-2", "preflight-2"):
            assert topology.relays[name].stop() == 0
        for newcomers in (lines, boxes):
            newcomers.more()
        assert (lines.cut, boxes.cut) == ([], [])
        topology.relays["status-3"].process.kill()
        lines.more(50)
    assert (lines.refused, boxes.refused, boxes.cut) == ([], [], [])
    assert len(lines.cut) <= 2, "whom the killed one had let in and not greeted yet, of two at a time"
    for name in ("status-2", "preflight-2", "status-3"):
        topology.relays[name].process.wait()
        topology.start_relay(name)
    topology.settled()


def test_redis_is_away_and_nobody_is_refused(topology, join):
    urls = [f"{topology.haproxy.url('status')}/r3:wepp", f"{topology.haproxy.url('preflight')}/r3"]
    held = [join(url) for url in urls]
    with Newcomers(*urls) as newcomers:
        newcomers.more()
        topology.redis.kill()
        for service in PORTS:
            wait_for(lambda service=service: not topology.haproxy.up(service), "no relay is ready")
            wait_for(lambda service=service: len(topology.haproxy.up(f"{service}_alive")) == 4, "all are alive")
        newcomers.more()
        topology.start_redis()
        topology.settled()
        newcomers.more()
    assert newcomers.refused + newcomers.cut == []
    assert all(peer.alive() for peer in held), "and those who were there have stayed"


@pytest.mark.long
@pytest.mark.row("F29")
def test_haproxy_is_reloaded_and_nobody_is_refused(topology, publisher, join):
    url = f"{topology.haproxy.url('status')}/r4:wepp"
    held = join(url)
    (before,) = topology.haproxy.workers()
    with traffic(publisher, "r4:wepp"), Newcomers(url, url, greeting=Peer.data) as newcomers:
        newcomers.more()
        topology.haproxy.reload()
        begin = time.monotonic()
        newcomers.more()
        assert held.data() == "line", "the worker before keeps its websockets"
        wait_for(lambda: before not in topology.haproxy.workers(), "the worker before is gone")
        took = time.monotonic() - begin
        newcomers.more()
    assert newcomers.refused + newcomers.cut == []
    assert took < 6.0, "hard-stop-after is 2 s here"
    held.ended()
    topology.settled()


class Browser:
    """A websocket that comes back after a random part of its first delay, for ever."""

    def __init__(self, url):
        self.url = url
        self.open = False
        self.codes, self.refused, self.late = [], [], []

    async def run(self):
        while True:
            begin = time.monotonic()
            try:
                async with connect(self.url, compression=None, ping_interval=None, proxy=None) as socket:
                    self.late.append(time.monotonic() - begin)
                    self.open = True
                    await socket.wait_closed()
                    self.codes.append(socket.close_code)
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                self.refused.append(repr(error))
            self.open = False
            await asyncio.sleep(random.uniform(0, FIRST_DELAY))


@pytest.mark.long
@pytest.mark.row("F29")
async def test_a_rolling_restart_tells_each_client_and_refuses_none(topology):
    browsers = [Browser(f"{topology.haproxy.url('status')}/r5:wepp") for _ in range(100)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(browser.run()) for browser in browsers]
        await asyncio.to_thread(wait_for, lambda: all(browser.open for browser in browsers), "all are there")
        for number in range(1, 5):
            await asyncio.to_thread(topology.restart_relay, f"status-{number}")
        await asyncio.to_thread(wait_for, lambda: all(browser.open for browser in browsers), "all are back")
        for task in tasks:
            task.cancel()
    assert [error for browser in browsers for error in browser.refused] == []
    codes = [code for browser in browsers for code in browser.codes]
    assert len(codes) >= 100, "each relay had its share"
    assert set(codes) == {1012}
    assert max(late for browser in browsers for late in browser.late) < 5.0, (
        "back within its own delay, and what a handshake takes"
    )


def test_the_relays_hear_who_comes_and_the_log_no_token(tmp_path):
    heads = []

    async def relay(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().splitlines())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    with Front(relay) as front:
        haproxy = Haproxy(tmp_path, dict.fromkeys(RELAYS, f"127.0.0.1:{front.port}"))
        try:
            with Wire(address_of(haproxy.url("status")), source="127.0.0.5") as wire:
                wire.send(head("/r1:wepp?token=secret", "X-Forwarded-For: 6.6.6.6", "Connection: close"))
                assert wire.answer().status == 200
        finally:
            haproxy.end()
    (asked,) = [lines for lines in heads if lines[0].startswith("GET /r1:wepp")]
    told = [line.partition(": ")[2] for line in asked if line.lower().startswith("x-forwarded-for")]
    assert told == ["6.6.6.6", "127.0.0.5"], "its own line is the last, and relays read from the right"
    log = (tmp_path / "haproxy.log").read_text()
    assert "GET /r1:wepp\n" in log
    assert "secret" not in log


def test_an_event_source_comes_back_when_all_relays_are_away(tmp_path):
    """It never does after a 503."""
    haproxy = Haproxy(tmp_path, dict.fromkeys(RELAYS, f"127.0.0.1:{free_port()}"))
    try:
        for url, path in ((haproxy.url("status"), "/r1:wepp"), (haproxy.url("preflight"), "/r1")):
            assert_told_to_come_back(ask(url, head(path, "Accept: text/event-stream", "Connection: close")))
            plain = ask(url, head(path, "Connection: close"))
            assert (plain.status, plain.headers["content-type"]) == (503, "text/plain")
    finally:
        haproxy.end()


@pytest.mark.parametrize("word", [b"", b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n"])
def test_what_is_posted_is_sent_once(tmp_path, word):
    """A relay that ended behind its PUBLISH had haproxy send it again: one POST, two lines."""
    asked = []

    async def relay(reader, writer):
        method = (await reader.readuntil(b"\r\n\r\n")).partition(b" ")[0]
        asked.append(method)
        ready = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(word if method == b"POST" else ready)
        await writer.drain()

    with Front(relay) as front:
        haproxy = Haproxy(tmp_path, dict.fromkeys(RELAYS, f"127.0.0.1:{front.port}"))
        try:
            message = head("/r1:wepp", "Content-Length: 1", "Connection: close", method="POST") + b"x"
            assert ask(haproxy.url("status"), message).status in (502, 503)
        finally:
            haproxy.end()
    assert asked.count(b"POST") == 1


@contextlib.contextmanager
def name_server(addresses):
    """Of Docker's kind: the address (A) of each name in `addresses`, a dict to be changed, and none other (AAAA)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def answer():
            while (got := sock.recvfrom(512))[0]:
                data, asker = got
                end = data.index(b"\0", 12) + 5
                name, kind = data[13 : end - 5].decode(), data[end - 4 : end - 2]
                found = kind == b"\0\1" and name in addresses
                record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(addresses[name]) if found else b""
                sock.sendto(data[:2] + b"\x81\x80\0\1\0" + bytes([found]) + b"\0" * 4 + data[12:end] + record, asker)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"127.0.0.1:{sock.getsockname()[1]}"
        finally:
            sock.sendto(b"", sock.getsockname())
            thread.join()


class Container(BaseHTTPRequestHandler):
    """Says at which address it is."""

    def do_GET(self):
        body = self.server.server_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_container_that_is_made_anew_is_found_at_its_new_address(tmp_path):
    port, name, addresses = free_port(), "status-1", {}
    with contextlib.ExitStack() as stack:
        for address in ("127.0.0.2", "127.0.0.3"):
            server = stack.enter_context(ThreadingHTTPServer((address, port), Container))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        where = dict.fromkeys(RELAYS, f"{name}:{port}")
        haproxy = Haproxy(tmp_path, where, DNS=stack.enter_context(name_server(addresses)))
        stack.callback(haproxy.end)

        def at():
            return ask(haproxy.url("status"), head("/livez", "Connection: close")).body.decode()

        assert "503" in at(), "it is not there yet"
        for address in ("127.0.0.2", "127.0.0.3"):
            addresses[name] = address
            wait_for(lambda address=address: at() == address, f"the container at {address}")
