"""A server in front of Redis, or in its place: TLS, silence, and answers that are none."""

import asyncio
import contextlib
import threading


class Front:
    """Listens on `port` in a thread of its own while the context lasts.

    Args:
        serve: a coroutine function of (reader, writer), for each connection.
        tls: a server's ssl.SSLContext.
    """

    def __init__(self, serve, tls=None):
        self.serve = serve
        self.tls = tls
        self.accepted = 0
        self._serving = set()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self._thread.start()
        self._listens.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _run(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        # A client that refuses our certificate is what some tests are about, and nothing for stderr.
        self._loop.set_exception_handler(lambda loop, context: None)
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._end.wait()
        server.close()
        await asyncio.sleep(0.01)  # who was accepted last begins only now, and an aborted transport ends a turn later
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.sleep(0.01)

    async def _accept(self, reader, writer):
        self.accepted += 1
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            with contextlib.suppress(OSError):
                await self.serve(reader, writer)
        finally:
            writer.transport.abort()
            self._serving.discard(task)


def passing_to(port):
    """Passes all on to a port of this machine, both ways."""

    async def serve(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", port)
        try:
            done = [asyncio.ensure_future(_pump(reader, back)), asyncio.ensure_future(_pump(there, writer))]
            await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.cancel()
        finally:
            back.transport.abort()

    return serve


async def _pump(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def saying(data):
    """Answers each connection with the same bytes, whatever it asks, and ends it."""

    async def serve(reader, writer):
        await reader.read(65536)
        writer.write(data)
        await writer.drain()

    return serve


async def silent(reader, writer):
    """Reads all and never says a word."""
    while await reader.read(65536):
        pass
