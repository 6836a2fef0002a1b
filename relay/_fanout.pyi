from collections.abc import Callable
from typing import Any, TypedDict

import hiredis

BUILD: str
TICK: float
BOUNDS: tuple[str, ...]
FLOOD_FACTOR: int

class Stats(TypedDict):
    connections: int
    opened: int
    topics: int
    frames: int
    bytes: int
    oversize: int
    write_errors: int
    replaced: int
    told: int
    untold: int
    closes: dict[int, int]
    breaches: dict[str, int]

class Totals(TypedDict):
    sockets: int
    heads: int
    live_bytes: int
    inbound_bytes: int

def plain_upgrade(head: bytes, max_headers: int = 64) -> tuple[str, bytes, str | None] | None: ...

class Core:
    def __init__(
        self,
        *,
        limit: int,
        max_live: int,
        max_inbound: int = 67108864,
        max_head: int = 8192,
        max_heads: int = 1024,
        head_timeout: float = 5,
        on_request: Callable[[int, int, bytes, bool], Any],
        on_text: Callable[[int, int, bytes], Any],
        on_idle: Callable[[int, bytes], Any],
        on_error: Callable[[Exception], Any],
    ) -> None: ...
    @property
    def pressing(self) -> bool: ...
    @property
    def bulky(self) -> bool: ...
    def fileno(self) -> int: ...
    def add_service(
        self,
        *,
        prefix: bytes = b"",
        suffix: bytes = b"",
        notice: bytes = b"",
        newest_only: bool = False,
        ping_interval: float = 10,
        pong_timeout: float = 75,
        write_timeout: float = 10,
        max_message: int = 65536,
        max_backlog: int = 262144,
        max_published: int = 1048576,
        max_fragments: int = 64,
        frame_rate: int = 20,
        frame_burst: int = 100,
    ) -> int: ...
    def listen(self, fd: int, service: int) -> None: ...
    def stop_listening(self) -> None: ...
    def poll(self) -> None: ...
    def tick(self) -> None: ...
    def consume(self, reader: hiredis.Reader, service: int) -> list[Any]: ...
    def publish(self, service: int, topic: bytes, text: bytes, min_version: int = 0) -> bool: ...
    def announce_gap(self, service: int, text: bytes) -> None: ...
    def flush(self) -> bool: ...
    def accept(self, client: int, answer: bytes, version: int = 0, expires_in: float = 0) -> bool: ...
    def attach(self, client: int, topic: bytes | None, first: bytes = b"", notice: bytes = b"") -> bool: ...
    def refuse(self, client: int, answer: bytes) -> bool: ...
    def close(self, client: int, code: int, reason: bytes = b"") -> bool: ...
    def close_topic(self, service: int, topic: bytes, code: int, reason: bytes = b"") -> int: ...
    def close_some(self, count: int, code: int, reason: bytes = b"") -> int: ...
    def ping(self, client: int) -> bool: ...
    def arrived(self, service: int) -> int: ...
    def watched(self, service: int, topic: bytes) -> bool: ...
    def address(self, client: int) -> bytes | None: ...
    def stats(self, service: int) -> Stats: ...
    def totals(self) -> Totals: ...
    def breached(self, service: int, bound: str) -> None: ...
