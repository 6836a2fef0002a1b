"""What the Python peers share: every channel of Redis over one connection, and the text of a status frame."""

import asyncio
import json
import sys
from collections.abc import Callable

import hiredis

SLICE = 16 << 10  # bytes: hiredis moves its whole unread tail for every KiB consumed

_escape = json.JSONEncoder(ensure_ascii=False).encode


class StatusFeed(asyncio.Protocol):
    """PSUBSCRIBE * on one connection; hiredis parses, and nothing of redis-py runs for each message.

    Args:
        forward: called with the channel and the published bytes of each message.
    """

    def __init__(self, forward: Callable[[bytes, bytes], None]) -> None:
        self.forward = forward
        self.reader = hiredis.Reader()

    def connection_made(self, transport):
        transport.write(b"PSUBSCRIBE *\r\n")

    def data_received(self, data):
        for start in range(0, len(data), SLICE):
            self.reader.feed(data[start : start + SLICE])
            while reply := self.reader.gets():
                if reply[0] == b"pmessage":
                    self.forward(reply[2], reply[3])

    def connection_lost(self, error):
        sys.exit(f"Redis hung up: {error}")


def frame_text(published: bytes) -> str:
    """The status frame of a published text (contract, section 5)."""
    return f'{{"type":"status","data":{_escape(published.decode(errors="replace"))}}}'
