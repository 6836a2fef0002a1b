"""The process: event loop, listeners, timers, answers to plain HTTP, and the end of it all.

    poll  <- the core's epoll is readable     read  <- bytes from Redis     tick  <- every 100 ms

One loop, one thread, one core for both services; what they share is the loop and nothing else.
"""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import math
import os
import resource
import select
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import uvloop

from relay import handshake, internal, metrics
from relay._fanout import FLOOD_FACTOR, LONGEST_INTRODUCTION, TICK, Core
from relay.addresses import forwarded
from relay.errors import ListenError, RelayError
from relay.handshake import Refused, Request, plain
from relay.internal import Facts, Internal
from relay.link import Link
from relay.logs import WAITING, Lines, to_stderr
from relay.metrics import Bound
from relay.page import index
from relay.preflight import Preflight
from relay.settings import ServiceSettings, Settings
from relay.status import Status
from relay.tokens import Keys
from relay.upstream import Commands
from relay.values import ListenAddress

BACKLOG = 4096  # of a listener; the kernel cuts it to net.core.somaxconn
FILES_KEPT = 32  # descriptors that are not for clients (DESIGN.md, "Bounds")
MIN_CONNECTIONS = 16
LAST_ACCEPTS = 0.5  # seconds for who waits in an accept queue when it is closed; 4096 take 0.2
LAST_WORDS = 2.0  # seconds for the last close frames of a drain to be answered

Service = Status | Preflight

log = logging.getLogger("relay")


class Server:
    """Both services, or one, of one process.

    Args:
        settings: of the process.
        lines: its log, for the metrics.

    Raises:
        ListenError: an address cannot be listened on.
        ConfigError: the TLS files of a Redis URL, or a secret of tokens, cannot be used.
        CoreMissing: tokens are asked for, and PyJWT is not there.
    """

    def __init__(self, settings: Settings, lines: Lines) -> None:
        self.settings = settings
        self._lines = lines
        self._keys = Keys(settings.token_secret.get_secret_value()) if settings.token_secret else None
        self.loop = asyncio.get_running_loop()
        self.limit = max_connections(settings)
        self.core = Core(
            limit=self.limit,
            max_live=settings.max_live,
            max_inbound=settings.max_inbound,
            max_head=settings.max_head_size,
            max_heads=settings.max_heads,
            head_timeout=settings.head_timeout,
            on_request=self.on_request,
            on_text=self.on_text,
            on_idle=self.on_idle,
            on_error=self.on_error,
        )
        proxies = settings.trusted_proxies
        self._asks_addresses = bool(proxies or settings.max_per_address)
        self.core.trust(
            proxies.networks,
            unix=proxies.unix,
            max_per_address=settings.max_per_address or 0,
        )
        self.services: list[Service] = [self._make_service(s) for s in settings.services]
        self._let_in()
        self.draining = False
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self._coalesce = float(settings.coalesce_ms) / 1000
        self._waiting: asyncio.TimerHandle | None = None
        self._listeners = [(service, _listen(service.settings)) for service in self.services]
        self._internal = self._make_internal()
        self._drain_from = self._drain_until = 0.0
        ports = self._page_ports()
        self._page = index(status_port=ports["status"], preflight_port=ports["preflight"])

    def _make_service(self, settings: ServiceSettings) -> Service:
        process = self.settings
        commands = Commands(settings, self.fail, max_reply=process.max_reply_size)

        deliver = self.deliver if process.coalesce_ms else self.core.deliver_fresh

        def make_link(number: int) -> Link:
            return Link(settings, self.core, number, deliver, commands, self.fail, max_reply=process.max_reply_size)

        if settings.name == "status":
            return Status(self.core, settings, make_link, commands, process)
        set_events = process.set_keyspace_events
        return Preflight(
            self.core, settings, make_link, commands, process, self.core.deliver_fresh, set_events=set_events
        )

    def _let_in(self) -> None:
        """Where nothing but the Origin decides about a plain request, it does not come as far as `on_request`."""
        if self._keys or self._asks_addresses:
            return
        for service in self.services:
            if isinstance(service, Preflight):
                continue  # a newcomer there gets a snapshot first, which the core knows nothing of
            allowed = service.settings.allowed_origins
            # A pattern is judged; its own text is an Origin of nobody.
            origins = [origin for origin in allowed if not origin.startswith("*")] if allowed else None
            self.core.let_in_by(service.index, handshake.switching, origins, self.settings.max_headers)

    def _make_internal(self) -> dict[int, tuple[Internal, socket.socket]]:
        """The listeners of operators, by their number in the core."""
        facts = Facts(self.core, self.services, lambda: self.draining)
        pages = {"/livez": facts.live, "/readyz": facts.ready, "/metrics": self._metrics, "/debug": facts.debug}
        found = {}
        for name, address, shown in (
            ("internal", self.settings.internal_addr, pages),
            ("metrics", self.settings.metrics_addr, {"/metrics": self._metrics}),
        ):
            if address:
                sock = _listen_at(address, name, f"RELAY_{name.upper()}_ADDR", 0o660)
                room = Internal(self.core, name, shown)
                found[room.index] = room, sock
        return found

    def _metrics(self) -> internal.Page:
        return internal.Page(self.exposition(), metrics.CONTENT_TYPE)

    def _page_ports(self) -> dict[str, int]:
        """Where the page finds each service: the port it has here, else the one it has by default."""
        ports = {"status": 9002, "preflight": 9001}
        for service, sock in self._listeners:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                ports[service.name] = sock.getsockname()[1]
        return ports

    # ---- the life of the process ----

    async def run(self) -> None:
        """Serves until it has drained.

        Raises:
            RelayError: what ended it before.
        """
        self.loop.set_exception_handler(_report)
        for number, signals in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")):
            self.loop.add_signal_handler(number, self.stop, signals)
        self.loop.add_reader(self.core.fileno(), self.core.poll)
        for service, sock in self._listeners:
            self.core.listen(sock.fileno(), service.index, introduced=self.settings.proxy_protocol)
            log.info(f"{service.name} listens on {_where(sock)}")
            if not service.settings.allowed_origins:
                log.info(f"{service.name} lets in any Origin: {service.name.upper()}_ALLOWED_ORIGINS is empty")
            service.link.start()
            service.commands.start()
        for room, sock in self._internal.values():
            self.core.listen(sock.fileno(), room.index)
            log.info(f"the {room.name} listener is {_where(sock)}")
        timer = self.loop.call_later(TICK, self._tick)
        try:
            await self.ended
        finally:
            timer.cancel()
            self.loop.remove_reader(self.core.fileno())
            self._stop_accepting()
            self.core.close_some(self.limit, 1012, b"the relay is restarting")  # who was accepted in these last turns
            self.core.stop_listening()
            for _, sock in self._internal.values():
                _unlisten(sock)
            for service in self.services:
                await service.link.stop()
                await service.commands.stop()

    def fail(self, error: RelayError) -> None:
        """Ends the process with an error; where clients are, they are told to come back."""
        if not self.ended.done():
            self._refuse_newcomers()
            self.core.close_some(self.limit, 1012, b"the relay is restarting")
            self.ended.set_exception(error)

    def stop(self, why: str) -> None:
        """Drains: not ready, then no accepts, then closes spread evenly. A second call ends it at once."""
        if self.draining:
            log.warning(f"{why} again: ending at once")
            self._end()
            return
        log.info(f"{why}: draining for {self.settings.drain:g} s at most")
        self._refuse_newcomers()
        self._drain_from = self.loop.time() + self.settings.drain_delay
        self._drain_until = self._drain_from + self.settings.drain
        self.loop.call_at(self._drain_from, self._stop_accepting)
        self.loop.call_at(self._drain_from, self._drain)

    def _refuse_newcomers(self) -> None:
        self.draining = True
        for service in self.services:
            self.core.let_in_by(service.index, None)

    def _stop_accepting(self) -> None:
        """Serves who waits in the accept queues, then closes the listeners.

        A socket that still took connections, for nobody, would leave newcomers hanging until the end. Operators are
        answered until then.
        """
        waiting = select.poll()
        for _, sock in self._listeners:
            waiting.register(sock, select.POLLIN)
        until = self.loop.time() + LAST_ACCEPTS
        while self._listeners and waiting.poll(0) and self.loop.time() < until:
            self.core.poll()
        for service, sock in self._listeners:
            self.core.stop_listening(service.index)
            _unlisten(sock)
        self._listeners = []

    def _drain(self) -> None:
        """Closes the share of this tick; at the end waits for the last answers, not longer than LAST_WORDS."""
        turns = max(1, math.ceil((self._drain_until - self.loop.time()) / TICK))
        count = sum(self.core.stats(service.index)["connections"] for service in self.services)
        self.core.close_some(math.ceil(count / turns), 1012, b"the relay is restarting")
        now = self.loop.time()
        if self.core.totals()["sockets"] == 0 or now > self._drain_until + LAST_WORDS:
            self._end()
        else:
            self.loop.call_later(TICK, self._drain)

    def _end(self) -> None:
        if not self.ended.done():
            if left := self.core.totals()["sockets"]:
                log.warning(f"connections reset because the drain had not ended them: {left}")
            self.ended.set_result(None)

    def _tick(self) -> None:
        self.loop.call_later(TICK, self._tick)
        self.core.tick()
        for service in self.services:
            if isinstance(service, Preflight):
                service.recheck(TICK)

    def deliver(self) -> None:
        """Behind each read from Redis, with `coalesce_ms`: lets the messages wait for others of their topics."""
        if self.core.bulky:
            self.flush()
        elif not self._waiting:
            self._waiting = self.loop.call_later(self._coalesce, self.flush)

    def flush(self) -> None:
        """Ends the wait of `deliver`."""
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None
        self.core.deliver_fresh()

    # ---- called by the core ----

    def on_request(self, client: int, number: int, head: bytes, full: bool) -> None:
        """A request head: judged, then answered, parked or attached."""
        if number in self._internal:
            self.core.refuse(client, self._internal[number][0].answer(head))
            return
        service = self.services[number]
        expires_in = 0.0
        try:
            request = handshake.read(head, self.settings.max_headers)
            route = handshake.route(service.name, request.path)
            if self._keys and route.topic:
                expires_in = handshake.permit(self._keys, request.query, route.topic)
        except Refused as refused:
            if refused.bound:
                self.core.breached(number, refused.bound)
            self.core.refuse(client, refused.answer)
            return
        if route.own == "health" and request.upgrade:
            self.core.accept(client, request.upgrade)
            self.core.attach(client, None, b"OK")
            self.core.close(client, 1000)
        elif route.own:
            self.core.refuse(client, self._own(service, route.own, request))
        elif not request.upgrade:
            sentence = f"{request.path[:100]} is a websocket: connect with ws:// or wss://.\n"
            extra = [("Upgrade", "websocket")]
            self.core.refuse(client, plain("426 Upgrade Required", sentence, extra, head=request.method == "HEAD"))
        elif full or self.draining:
            if full:
                self.core.breached(number, "connections")
            self.core.refuse(client, handshake.busy("No room for more connections."))
        elif not self.core.watched(number, route.topic) and self.topics() >= self.settings.max_topics:
            self.core.breached(number, "topics")
            self.core.refuse(client, handshake.busy("This relay watches as many topics as it may."))
        elif not handshake.origin_allowed(service.settings.allowed_origins, request.origin):
            name = f"{service.name.upper()}_ALLOWED_ORIGINS"
            self.core.refuse(client, plain("403 Forbidden", f"This Origin is not among those of {name}.\n"))
        elif self._asks_addresses and not self._has_room(client, head):
            self.core.refuse(client, handshake.busy("Too many connections from this address."))
        else:
            self.core.accept(client, request.upgrade, request.version, expires_in)
            service.join(client, route.topic)

    def _has_room(self, client: int, head: bytes) -> bool:
        """Whether the address of a client, perhaps one that a proxy reports, may have one connection more."""
        proxies = self.settings.trusted_proxies
        peer = self.core.peer(client) if proxies else None
        if peer and peer[1]:
            self.core.forwarded(client, forwarded(head, peer[0], proxies.trusts))
        return not self.settings.max_per_address or self.core.charge(client)

    def _own(self, service: Service, name: handshake.Own, request: Request) -> bytes:
        """The relay's own answers (contract, section 6)."""
        head = request.method == "HEAD"
        if request.upgrade:
            return plain("400 Bad Request", f"{request.path} is no websocket.\n")
        if name in ("health", "livez"):
            return plain("200 OK", "OK", head=head)
        if name == "readyz":
            ready = self.ready(service)
            return plain(
                "200 OK" if ready else "503 Service Unavailable", "ready\n" if ready else "not ready\n", head=head
            )
        if name == "page":
            return plain("200 OK", self._page, kind="text/html; charset=utf-8", head=head)
        if name == "metrics" and service.settings.metrics_enabled and not self.settings.metrics_addr:
            return plain("200 OK", self.exposition(), kind=metrics.CONTENT_TYPE, head=head)
        return plain("404 Not Found", f"There is no {request.path} here.\n", head=head)

    def on_text(self, client: int, number: int, text: bytes) -> None:
        """A text message: `{"type":"init"}` is answered with a ping, all others are life and nothing more."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(message, dict):
            kind = next((value for key, value in message.items() if key.lower() == "type"), None)
            if isinstance(kind, str) and kind.lower() == "init":
                self.core.ping(client)

    def on_idle(self, number: int, topic: bytes) -> None:
        """A topic has lost its last client."""
        self.services[number].idle(topic)

    def on_error(self, error: Exception) -> None:
        """One of the above raised: that one client suffers, and the log says why."""
        log.error("a callback of the core failed", exc_info=error)

    # ---- being looked at ----

    def ready(self, service: Service) -> bool:
        """Whether new clients of the service are well served here."""
        return not internal.obstacles(service, self.draining)

    def exposition(self) -> bytes:
        """/metrics."""
        return metrics.exposition(self.readings, self.bounds, lambda: [self.core.lag()])

    def readings(self) -> list[metrics.Reading]:
        """What /metrics shows."""
        found = []
        for service in self.services:
            stats = self.core.stats(service.index)
            counters = {name: count for name, count in stats.items() if isinstance(count, int)}
            link, commands = service.link, service.commands
            proved = link.probe.age if link.up and not link.probe.off else None
            found.append(
                metrics.Reading(
                    service.name,
                    counters,
                    stats["closes"],
                    stats["responses"],
                    stats["delivery"],
                    stats["burst"],
                    stats["backlog_seconds"],
                    ready=self.ready(service),
                    redis_up=link.up and commands.up,
                    reconnects=link.reconnects + commands.reconnects,
                    gaps=link.gaps,
                    instances=commands.instances,
                    proved=proved,
                    key_events=_KNOWN.get(service.events) if isinstance(service, Preflight) else None,
                    breaches={**stats["breaches"], "reply_size": link.large_replies + commands.large_replies},
                    bounds=_service_bounds(service.settings),
                )
            )
        return found

    def topics(self) -> int:
        """Runs and channels watched or asked for, of all services."""
        return sum(service.link.channels for service in self.services)

    def bounds(self) -> list[Bound]:
        """The bounds of the whole process, with what is used of them."""
        settings, totals = self.settings, self.core.totals()
        return [
            Bound("head_size", "bytes", settings.max_head_size),
            Bound("headers", "headers", settings.max_headers),
            Bound("head_timeout", "seconds", settings.head_timeout),
            Bound("heads", "heads", settings.max_heads, totals["heads"]),
            Bound("connections", "sockets", self.limit, totals["sockets"]),
            Bound("per_address", "sockets", settings.max_per_address or 0),
            Bound("proxy_header", "bytes", LONGEST_INTRODUCTION if settings.proxy_protocol else 0),
            Bound("topics", "topics", settings.max_topics, self.topics()),
            Bound("log_lines", "lines", WAITING, self._lines.waiting, self._lines.dropped),
            Bound("fragments", "frames", settings.max_fragments),
            Bound("frame_rate", "frames/s", settings.frame_rate),
            Bound("frame_burst", "frames", settings.frame_burst),
            Bound("inbound", "bytes", settings.max_inbound, totals["inbound_bytes"]),
            Bound("backlog", "bytes", settings.max_backlog),
            Bound("undelivered", "bytes", FLOOD_FACTOR * settings.max_backlog),
            Bound("live", "bytes", settings.max_live, totals["live_bytes"]),
            Bound("published_size", "bytes", settings.max_published_size),
            Bound("reply_size", "bytes", settings.max_reply_size),
            Bound("drain", "seconds", settings.drain),
            Bound("drain_delay", "seconds", settings.drain_delay),
        ]


_KNOWN = {"on": True, "off": False}  # of Redis' key events


def _service_bounds(settings: ServiceSettings) -> list[Bound]:
    return [
        Bound("message_size", "bytes", settings.max_message_size),
        Bound("write_timeout", "seconds", settings.write_timeout),
        Bound("pong_timeout", "seconds", settings.pong_timeout),
    ]


def max_connections(settings: Settings) -> int:
    """Connections at once: what is asked for, within what the file limit leaves after raising it as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    open_now = sum(1 for _ in Path("/proc/self/fd").iterdir())
    room = (1 << 20 if hard == resource.RLIM_INFINITY else hard) - open_now - FILES_KEPT
    limit = max(MIN_CONNECTIONS, min(room, 1 << 20))
    if settings.max_connections is not None:
        if settings.max_connections > limit:
            log.warning(f"RELAY_MAX_CONNECTIONS={settings.max_connections}: the file limit of {hard} leaves {limit}")
        limit = min(limit, settings.max_connections)
    log.info(f"room for {limit} connections (file limit {hard})")
    return limit


def _listen(settings: ServiceSettings) -> socket.socket:
    """The listening socket of a service; see `_listen_at`."""
    # 0666 as uvicorn has it: the proxy is another user; who may come is up to the directory.
    return _listen_at(settings.listen, settings.name, f"{settings.name.upper()}_LISTEN_ADDR", 0o666)


def _listen_at(address: ListenAddress, who: str, variable: str, mode: int) -> socket.socket:
    """A listening socket; where it is a Unix socket, with that mode.

    Raises:
        ListenError: with what is wrong and how to mend it.
    """
    try:
        sock = _bound(address, mode)
        sock.setblocking(False)
        if address.kind != "fd":
            sock.listen(BACKLOG)
        elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.close()
            raise OSError(errno.EINVAL, "descriptor is no listening socket")
        return sock
    except OSError as error:
        why = _BIND_TROUBLE.get(error.errno or 0, error.strerror or str(error))
        raise ListenError(f"{who} cannot listen on {address}: {why}; see {variable}") from None


_BIND_TROUBLE = {
    errno.EADDRINUSE: "something else listens there already (ss -ltnp shows what)",
    errno.EACCES: "this user may not (ports below 1024 need CAP_NET_BIND_SERVICE)",
    errno.EADDRNOTAVAIL: "that is no address of this machine",
    errno.EBADF: "no such descriptor was inherited",
}


_paths: dict[int, os.stat_result] = {}  # of the Unix sockets that this process has made, by descriptor


def _bound(address: ListenAddress, mode: int) -> socket.socket:
    if address.kind == "fd":
        return socket.socket(fileno=address.fd)
    if address.kind == "unix":
        return _bound_unix(address.path, mode)
    if not address.host:
        sock = _bound_tcp(socket.AF_INET6, "::", address.port) if socket.has_dualstack_ipv6() else None
        return sock or _bound_tcp(socket.AF_INET, "0.0.0.0", address.port)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return _bound_tcp(found[0][0], found[0][4][0], address.port)


def _bound_tcp(family: int, host: str | int, port: int | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _bound_unix(path: str, mode: int) -> socket.socket:
    """A Unix socket; one that a dead relay left behind is replaced, a living one is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).exists() and stat.S_ISSOCK(Path(path).stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                # Nothing else proves it dead: EPROTOTYPE is a living socket of another kind, EAGAIN a busy one.
                if probe.connect_ex(path) == errno.ECONNREFUSED:
                    Path(path).unlink()
        sock.bind(path)
        Path(path).chmod(mode)
        _paths[sock.fileno()] = Path(path).stat()
    except OSError:
        sock.close()
        raise
    return sock


def _unlisten(sock: socket.socket) -> None:
    """Closes a listener; the path of a Unix socket goes with it, unless it was inherited or is another's by now."""
    bound = _paths.pop(sock.fileno(), None)
    if bound is not None:
        path = Path(sock.getsockname())
        with contextlib.suppress(OSError):
            if os.path.samestat(bound, path.stat()):
                path.unlink()
    sock.close()


def _where(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a callback of the loop raised: said in the relay's own log, and the loop goes on."""
    log.error(context["message"], exc_info=context.get("exception"))


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT.

    Returns:
        0 after a drain.

    Raises:
        RelayError: what kept it from starting, or ended it.
    """
    levels = [service.log_level for service in settings.services]

    async def serve() -> None:
        for warning in settings.warnings:
            log.warning(warning)
        server = Server(settings, lines)
        # What is here now stays: a collection that walked all of it again stopped every delivery for 12 ms.
        gc.collect()
        gc.freeze()
        await server.run()

    with (
        to_stderr(min(levels, key=lambda level: int(logging.getLevelName(level)))) as lines,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(serve())
    return 0
