"""The load generator: thousands of clients in one thread, without the interpreter."""

import ssl
from collections.abc import Sequence
from typing import TypedDict, final

BUILD: str
SMALLEST: int  # bytes of the smallest message: its head alone

class Counters(TypedDict):
    connecting: int  # now
    open: int  # now
    opened: int  # ever
    refused: dict[int, int]  # HTTP status -> how often; 0: broke before an answer; 101, 200: an answer that is none
    closed: dict[int, int]  # close code of an open one that ended -> how often; 1005: none in it; 1006: no close at all
    delivered: int  # messages of ours that arrived intact, each counted once per client
    lost: int  # gaps, and after `settle` what never came
    cut_off: int  # went out while a client that had been open was gone, once for each such client; stalled ones apart
    duplicated: int
    reordered: int  # came behind a later one; not lost then
    damaged: int  # wrong topic, payload, opcode or framing
    other: int  # text frames that are none of ours, heartbeats apart
    pings: int  # of both kinds, answered; comments of event streams, which need no answer
    bytes: int  # received behind the 101 or 200, headers of frames included

@final
class Swarm:
    def __init__(
        self,
        *,
        family: int,
        address: tuple[str, int] | tuple[str, int, int, int] | str,
        host: bytes,
        paths: Sequence[bytes],
        clients: int,
        stalled: int = 0,
        streams: int = 0,
        origin: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        sources: int = 0,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None: ...
    @property
    def trouble(self) -> str: ...
    def open(self, upto: int, *, at_once: int = 256, seconds: float) -> None: ...
    def serve(self, seconds: float) -> None: ...
    def settle(self, quiet: float) -> bool: ...
    def counters(self) -> Counters: ...
    def latencies(self, *, streams: bool = False) -> list[tuple[float, int]]: ...
    def handshakes(self) -> list[tuple[float, int]]: ...
    def per_client(self) -> list[tuple[int, int]]: ...
    def reset(self) -> None: ...
    def received(self) -> int: ...
    def close(self) -> None: ...

@final
class Publisher:
    def __init__(
        self,
        swarm: Swarm,
        *,
        fd: int,
        names: Sequence[bytes],
        size: int,
        messages: int,
        window: int = 0,
        rate: float = 0.0,
        batch: int = 1,
        text: str = "plain",
        protocol: str = "redis",
        host: bytes = b"",
    ) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def published(self) -> int: ...
    @property
    def done(self) -> bool: ...
    @property
    def stalled(self) -> bool: ...
    @property
    def error(self) -> str: ...
