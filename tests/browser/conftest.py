"""A Chromium, and a front that stands where WEPPcloud's web server stands."""

import asyncio
import contextlib
import re
import shutil
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright, expect

from tests.conftest import Relay

SECONDS = 20.0  # until what is awaited counts as missing
expect.set_options(timeout=SECONDS * 1000)

FIXTURES = Path(__file__).parent / "fixtures"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
CHROMIUM_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Front:
    """Serves the pages of fixtures/, and hands `/weppcloud-microservices/<service>/...` on to a relay, path and all."""

    def __init__(self, ports):
        self.ports = ports
        self.pages = {}  # path -> HTML, beside the files
        self.tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.tasks.add(task := asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            service = re.match("/weppcloud-microservices/(status|preflight)/", path)
            if service:
                await self.tunnel(head, reader, writer, self.ports[service[1]])
            else:
                await self.file(path, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the browser or the relay has gone, or the test has ended
        finally:
            writer.close()
            self.tasks.discard(task)

    async def file(self, path, writer):
        file = FIXTURES / ("run.html" if path.startswith("/weppcloud/runs/") else Path(path).name)
        body = self.pages[path].encode() if path in self.pages else file.read_bytes()
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: {TYPES[file.suffix]}\r\nConnection: close\r\n\r\n"
        writer.write(answer.encode() + body)
        await writer.drain()

    async def tunnel(self, head, reader, writer, port):
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with contextlib.closing(up_writer):
            up_writer.write(head)
            await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))


async def copy(reader, writer):
    """Pass bytes on until the end, then the end too."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class Socket:
    """A websocket of a page, as seen on the wire."""

    def __init__(self, websocket, changed):
        self.url = websocket.url
        self.sent, self.received, self.open = [], [], True

        def note(frames):
            return lambda frame: (frames.append(frame), changed.set())

        def closed(_):
            self.open = False
            changed.set()

        websocket.on("framesent", note(self.sent))
        websocket.on("framereceived", note(self.received))
        websocket.on("close", closed)


class Tab:
    """A page with what it complained of, and its websockets, oldest first."""

    def __init__(self, page):
        self.page = page
        self.complaints = []
        self.all_sockets = []
        self.changed = asyncio.Event()
        page.on("console", self.note_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("websocket", self.note_socket)

    def note_console(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def note_socket(self, websocket):
        self.all_sockets.append(Socket(websocket, self.changed))
        self.changed.set()

    def sockets(self, end):
        """Those whose address ends so."""
        return [socket for socket in self.all_sockets if socket.url.endswith(end)]

    async def until(self, holds, what, seconds=SECONDS):
        """Wait until `holds()` is true, looking whenever a websocket has changed."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            seen = "\n".join(f"{s.url} open={s.open} {s.sent[-3:]} {s.received[-3:]}" for s in self.all_sockets)
            pytest.fail(f"not {what} within {seconds} s; complaints: {self.complaints}; sockets:\n{seen}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium():
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_OPTIONS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def front():
    """A factory of fronts before a relay: `await front(relay)` -> Front."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(relay):
            return await stack.enter_async_context(Front(relay.ports))

        yield start


@pytest_asyncio.fixture(loop_scope="module")
async def new_tab(chromium):
    """A factory of empty tabs, each a browser profile of its own; options as Playwright's `new_context` has them."""
    async with contextlib.AsyncExitStack() as stack:

        async def new(**options):
            context = await chromium.new_context(**options)
            stack.push_async_callback(context.close)
            context.set_default_timeout(SECONDS * 1000)
            return Tab(await context.new_page())

        yield new


@pytest.fixture(scope="module")
def standing(_shared_redis, tmp_path_factory):
    """One relay with both services for all tests of a module that ask nothing special of it."""
    with Relay([], {"REDIS_URL": _shared_redis.url}, tmp_path_factory.mktemp("relay")) as process:
        yield process


# A page of somebody else, which has the module from the relay.
EMBEDDING = """<!doctype html><html data-status-port="{status}" data-preflight-port="{preflight}"><meta charset="utf-8">
<link rel="icon" href="data:,"><script type="module">import * as module from "http://127.0.0.1:{status}/relay.js";
globalThis.relay = module;</script>{body}"""


async def go_to_embedding(tab, site, body=""):
    site.pages["/embedding.html"] = EMBEDDING.format(**site.ports, body=body)
    await tab.page.goto(f"http://{site.host}/embedding.html")
    await tab.page.wait_for_function("globalThis.relay")


@pytest_asyncio.fixture(loop_scope="module")
async def embed(front, new_tab):
    """Opens a page that embeds the module: `await embed(relay, '<relay-log ...>', 'a script')` -> Tab."""

    async def open_page(relay, body="", script="null"):
        tab = await new_tab()
        await tab.page.add_init_script(script)
        await go_to_embedding(tab, await front(relay), body)
        return tab

    return open_page


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def still_tab(chromium, standing):
    """A page for all tests of a module that embeds the module of a relay, and whose time stands still."""
    async with Front(standing.ports) as site, await chromium.new_context() as context:
        tab = Tab(await context.new_page())
        await tab.page.clock.install(time=0)
        await go_to_embedding(tab, site)
        await tab.page.clock.pause_at(3_600_000)
        yield tab
