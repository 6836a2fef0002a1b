"""Reaching a server: its name, one page of it over HTTP, each with a deadline, and in words why it failed."""

import asyncio
import base64
import contextlib
import os
import re
import socket
import ssl
import threading

DEADLINE = 5.0  # seconds for one step
LONGEST = 4 << 20  # bytes of a page; /debug is a few KB


def why(error: Exception) -> str:
    """Why a server could not be reached, as the end of a sentence."""
    if isinstance(error, TimeoutError):
        return f"no answer in {DEADLINE:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {error}"
    if isinstance(error, socket.gaierror):
        return f"the name has no address: {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


async def resolve(host: str, port: int) -> None:
    """Returns where `host` has an address.

    In a thread that may be left behind: getaddrinfo has no deadline, and asyncio's threads are waited for at the end.

    Raises:
        OSError, TimeoutError: it has none, or nobody says so in time.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if not found.done():
            found.set_exception(error) if error else found.set_result(None)

    def look() -> None:
        failed = None
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the latter: a label of over 63 characters
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failed)

    threading.Thread(target=look, daemon=True).start()
    await asyncio.wait_for(found, DEADLINE)


async def get(
    path: str, *, host: str = "", port: int = 0, unix: str = "", tls: ssl.SSLContext | None = None, login: str = ""
) -> tuple[int, str]:
    """One page: its status and its body.

    Asked for with HTTP/1.0, whose answers are never chunked and end with the connection.

    Args:
        path: of the page.
        host: of the server.
        port: of the server.
        unix: the path of its socket instead.
        tls: where it speaks TLS.
        login: `user:password` of basic authentication.

    Raises:
        OSError, TimeoutError: there is no server, or no answer in time.
        ValueError: what answers speaks no HTTP.
    """
    authority = "relay" if unix else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with asyncio.timeout(DEADLINE):
        if unix:
            reader, writer = await asyncio.open_unix_connection(unix)
        else:
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        try:
            lines = [f"GET {path} HTTP/1.0", f"Host: {authority}", "Connection: close"]
            if login:
                lines.append(f"Authorization: Basic {base64.b64encode(login.encode()).decode()}")
            writer.write("\r\n".join([*lines, "", ""]).encode())
            data = b""
            while len(data) < LONGEST and (more := await reader.read(65536)):
                data += more
        finally:
            writer.transport.abort()
    head, _, body = data.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})\b", head)
    if not status:
        raise ValueError("what answers there speaks no HTTP")
    return int(status[1]), body.decode("utf-8", "replace")
