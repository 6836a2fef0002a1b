"""One websocket of the relay, followed over as many connections as it takes.

asyncio and websockets cost 0.2 s to import, so the commands import this module inside themselves.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.http11 import Response

from relay.cli.target import masked, moved
from relay.cli.terminal import quoted
from relay.errors import RelayError

Frame = dict[str, Any]


class StrictConnect(connect):
    """Takes a redirect for what it is to a browser's websocket: a refusal.

    websockets follows them, and raises an InvalidURI that is no InvalidHandshake where they lead to https://.
    """

    def process_redirect(self, exc: Exception) -> Exception:
        """The answer itself."""
        return exc


RETRY_BASE = 0.5  # seconds; upper bound of the first wait
RETRY_MAX = 15.0  # seconds; what WEPPcloud's pages wait at most
LONGEST = 16 << 20  # bytes; a published MiB may grow sixfold when it is escaped
PING, PONG = (
    10,
    20,
)  # seconds between two pings, and for an answer: a hung relay is noticed within 30 (docs/protocol.md)
NOT_NOW = (408, 429)  # the 4xx that invite another try; all others say "never"
POLICY = 1008  # close code of a subscription that Redis refuses, and of silence


def _say(_up: bool, sentence: str) -> None:
    print(f"relay: {sentence}", file=sys.stderr)


async def follow(
    url: str,
    take: Callable[[Frame], bool],
    *,
    query: str = "",
    again: bool = True,
    tell: Callable[[bool, str], None] = _say,
) -> None:
    """Hand every frame of `url` to `take` until that returns true; heartbeats are answered here.

    Args:
        url: websocket address; a password in it is not shown.
        query: what stands behind the `?` of the address; never shown.
        take: called with each frame, heartbeats among them, in order; true ends it.
        again: reconnect with full jitter for ever; otherwise the first failure ends it.
        tell: called when the connection is lost (false) and when it is there again (true), with a sentence.

    Raises:
        RelayError: the relay refuses this address for good; without `again`, any failure.
    """
    attempt, lost, shown = 0, False, masked(url)
    while True:
        heard = False
        try:
            socket = await StrictConnect(
                f"{url}?{query}" if query else url,
                compression=None,
                max_size=LONGEST,
                ping_interval=PING,
                ping_timeout=PONG,
                close_timeout=1,
            )
        except (OSError, InvalidHandshake) as error:
            reason = _refused(error, url)
        else:
            if lost:
                tell(True, f"connected to {shown} again")
            lost = False
            async with socket:
                heard, done = await _listen(socket, take)
            if done:
                return
            reason = _closed(socket, shown, heard)
        if not again:
            raise RelayError(f"{shown}: {reason}; is the relay running there?")
        if not lost:
            tell(False, f"{shown}: {reason}; reconnecting")
            lost = True
        attempt = 1 if heard else attempt + 1
        await asyncio.sleep(random.uniform(0, min(RETRY_MAX, RETRY_BASE * 2 ** min(attempt - 1, 10))))


async def follow_any(following: Iterable[Coroutine[Any, Any, object]], within: float | None = None) -> bool:
    """Run several at once until the first has ended, and end the others; false where none has `within` seconds.

    Raises:
        RelayError: all that ended were refused.
    """
    tasks = [asyncio.create_task(one) for one in following]
    try:
        done, _ = await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for task in done if (error := task.exception())]
    if errors and len(errors) == len(done):
        raise errors[0]
    return bool(done)


async def _listen(socket: ClientConnection, take: Callable[[Frame], bool]) -> tuple[bool, bool]:
    """Read until `take` has enough or the connection ends; (anything heard, had enough)."""
    heard = False
    try:
        async for message in socket:
            heard = True
            frame = parse(message)
            if frame.get("type") == "ping":
                await socket.send('{"type":"pong"}')
            if take(frame):
                return heard, True
    except ConnectionClosed:
        pass  # what it was is in the close code
    return heard, False


def parse(message: str | bytes) -> Frame:
    """A message as a frame; empty where it is none."""
    try:
        frame = json.loads(message)
    except ValueError:
        return {}
    return frame if isinstance(frame, dict) else {}


def _refused(error: Exception, url: str) -> str:
    """Why the handshake failed, for another try; RelayError where another try is pointless."""
    if isinstance(error, InvalidStatus):
        answer = error.response
        said = _said(answer)
        if answer.status_code // 100 == 3 and (location := answer.headers.get("Location")):
            where, base = moved(url, location)
            told = f"give --url {base}" if base else "no relay is there"
            raise RelayError(f"{masked(url)}: answered {answer.status_code} with {where}: {told}") from error
        if answer.status_code < 500 and answer.status_code not in NOT_NOW:
            raise RelayError(f"{masked(url)}: refused with {answer.status_code}: {said}") from error
        return f"answered {answer.status_code}: {said}"
    if isinstance(error, InvalidMessage):
        return "no HTTP answer"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return quoted(str(error)) or type(error).__name__


def _said(answer: Response) -> str:
    """Why the server says no: the first line of its body, or the words beside its number where the body is a page."""
    lines = (answer.body or b"").decode("utf-8", "replace").strip().splitlines()
    return quoted(lines[0] if lines and not lines[0].startswith("<") else answer.reason_phrase)


def _closed(socket: ClientConnection, url: str, heard: bool) -> str:
    """Why the connection ended, for another try; RelayError where another try is pointless."""
    said = f"closed {socket.close_code}" + (f" ({quoted(socket.close_reason)})" if socket.close_reason else "")
    if socket.close_code == POLICY and not heard:
        raise RelayError(f"{url}: {said}: the relay refuses this subscription")
    return said
