"""The process: event loop, listeners, timers, answers to plain HTTP, and the end of it all.

    poll  <- the core's epoll is readable     read  <- bytes from Redis     tick  <- every 100 ms

One loop, one thread, one core for both services; what they share is the loop and nothing else.
"""

import asyncio
import gc
import json
import logging
import math
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import uvloop

from relay import handshake, internal, listeners, metrics, notify
from relay._fanout import FLOOD_FACTOR, LONGEST_INTRODUCTION, TICK, Core
from relay.addresses import forwarded
from relay.errors import RelayError
from relay.handshake import Busy, Refused, Request, plain
from relay.internal import Facts, Internal
from relay.link import Link
from relay.logs import WAITING, Lines, to_stderr
from relay.metrics import Bound
from relay.page import Page, module, page
from relay.posts import Posts
from relay.preflight import Preflight
from relay.scoreboard import Row
from relay.settings import ServiceSettings, Settings
from relay.status import Status
from relay.tokens import Keys
from relay.upstream import Commands

LAST_ACCEPTS = 0.5  # seconds for who waits in an accept queue when it is closed; 4096 take 0.2
ALONE = "SIGHUP: nothing is done, for one process alone cannot be replaced without a refusal; see RELAY_WORKERS"
LAST_WORDS = 2.0  # seconds for the last close frames of a drain to be answered

Service = Status | Preflight

log = logging.getLogger("relay")


class Held(NamedTuple):
    """A listening socket that is served here; `slot` is the worker's share that it is (relay/workers.py)."""

    name: str
    sock: socket.socket
    slot: int = 0


class Whole(internal.Whole, Protocol):
    """All processes that serve together."""

    def readings(self) -> Iterable[metrics.Reading]:
        """What /metrics shows of each process and service."""

    def bounds(self) -> Sequence[Bound]:
        """The bounds of all processes, with what is used of them."""

    def lags(self) -> Iterable[metrics.Histogram]:
        """How late the turns of each process' loop come."""

    def processes(self) -> metrics.Processes:
        """What the system says of each process."""

    def write(self) -> None:
        """Lets all others know what this process has counted."""


class Server:
    """Both services, or one, of one process. It takes no connections until it is given listeners.

    Args:
        settings: of the process.
        lines: its log, for the metrics.

    Raises:
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
            on_body=lambda client, number, body: self._posts.publish(client, body),
        )
        self._posts = Posts(self.core, settings.max_heads)
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
        self._refusing = True  # newcomers, while draining
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self._coalesce = float(settings.coalesce_ms) / 1000
        self._waiting: asyncio.TimerHandle | None = None
        self.held: list[Held] = []
        self.facts = Facts(self.core, self.services, lambda: self.draining, lambda: self.whole)
        self._internal = self._make_internal()
        self._drain_from = self._drain_until = 0.0
        self._page: Page | None = None
        self.on_stopped: Callable[[], None] = lambda: None  # called once nothing is accepted any more
        self.signals = [signal.SIGTERM, signal.SIGINT]  # that end it
        self.whole: Whole = self  # of which this is all, or one of several

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

    def _make_internal(self) -> dict[int, Internal]:
        """What operators see, by its number in the core."""
        facts = self.facts
        pages = {"/livez": facts.live, "/readyz": facts.ready, "/metrics": self._metrics, "/debug": facts.debug}
        found = {}
        for name, address, shown in (
            ("internal", self.settings.internal_addr, pages),
            ("metrics", self.settings.metrics_addr, {"/metrics": self._metrics}),
        ):
            if address:
                room = Internal(self.core, name, shown)
                found[room.index] = room
        return found

    def _metrics(self) -> internal.Page:
        return internal.Page(self.exposition(), metrics.CONTENT_TYPE)

    # ---- the life of the process ----

    async def run(self) -> None:
        """Serves until it has drained.

        Raises:
            RelayError: what ended it before.
        """
        self.loop.set_exception_handler(_report)
        for number in self.signals:
            self.loop.add_signal_handler(number, self.stop, number.name)
        self.loop.add_reader(self.core.fileno(), self.core.poll)
        for service in self.services:
            if not service.settings.allowed_origins:
                log.info(f"{service.name} lets in any Origin: {service.name.upper()}_ALLOWED_ORIGINS is empty")
            service.link.start()
            service.commands.start()
        timer = self.loop.call_later(TICK, self._tick)
        try:
            await self.ended
        finally:
            timer.cancel()
            self.loop.remove_reader(self.core.fileno())
            self._stop_accepting()
            self.core.close_some(self.limit, 1012, b"the relay is restarting")  # who was accepted in these last turns
            self.core.stop_listening()
            for held in self.held:
                listeners.unlisten(held.sock)
            for service in self.services:
                await service.link.stop()
                await service.commands.stop()

    def accept_on(self, held: Held, *, shared: bool = False) -> None:
        """Takes connections from a listening socket, which is this process' to close.

        Args:
            held: the socket.
            shared: with other processes, which are to have their share: one connection is taken a turn.
        """
        numbers = {service.name: service.index for service in self.services}
        numbers |= {room.name: room.index for room in self._internal.values()}
        service = held.name in ("status", "preflight")
        introduced = service and self.settings.proxy_protocol
        self.core.listen(held.sock.fileno(), numbers[held.name], introduced=introduced, shared=shared)
        self.held.append(held)
        log.info(f"{held.name} listens on {listeners.where(held.sock)}")
        if self.settings.page:
            self._page = self._make_page()

    def _make_page(self) -> Page:
        """It finds each service where it is said, else on the port it has here, else on that it has by default."""
        tcp = [held for held in self.held if held.sock.family in (socket.AF_INET, socket.AF_INET6)]
        ports = {held.name: held.sock.getsockname()[1] for held in tcp}
        settings = self.settings
        urls = {"status": settings.status_public_url, "preflight": settings.preflight_public_url}
        return page(urls, ports)

    def release(self, slot: int) -> None:
        """Takes no more connections from the sockets of a slot: another process does."""
        for held in [held for held in self.held if held.slot == slot]:
            self.leave(held)

    def leave(self, held: Held) -> None:
        """Takes no more connections from a socket; the address of one that this process has made goes with it."""
        self.core.stop_listening(fd=held.sock.fileno())
        listeners.unlisten(held.sock)
        self.held.remove(held)

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
            self.end()
            return
        self.drain(why, self.settings.drain_delay)

    def drain(self, why: str, delay: float, *, refusing: bool = True) -> None:
        """Not ready from now on, no accepts after `delay` seconds, then closes spread evenly.

        With `refusing` who comes meanwhile is answered 503. Else, where others serve, who has been accepted and not
        read yet is let in, and told to come back with the others.
        """
        self._refusing = refusing
        log.info(f"{why}: draining for {self.settings.drain:g} s at most")
        notify.tell("STOPPING=1")
        self._refuse_newcomers()
        self._drain_from = self.loop.time() + delay
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
        doors = [held for held in self.held if held.name in ("status", "preflight")]
        waiting = select.poll()
        for held in doors:
            waiting.register(held.sock, select.POLLIN)
        until = self.loop.time() + LAST_ACCEPTS
        while doors and waiting.poll(0) and self.loop.time() < until:
            self.core.poll()
        for held in doors:
            self.leave(held)
        self.on_stopped()

    def _drain(self) -> None:
        """Closes the share of this tick; at the end waits for the last answers, not longer than LAST_WORDS."""
        turns = max(1, math.ceil((self._drain_until - self.loop.time()) / TICK))
        count = sum(self.core.stats(service.index)["connections"] for service in self.services)
        self.core.close_some(math.ceil(count / turns), 1012, b"the relay is restarting")
        now = self.loop.time()
        if self.core.totals()["sockets"] == 0 or now > self._drain_until + LAST_WORDS:
            self.end()
        else:
            self.loop.call_later(TICK, self._drain)

    def end(self) -> None:
        """Ends at once, whoever is there still."""
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

    def notify(self, state: str = "READY=1") -> None:
        """Tells the service manager, then every second that the loop turns, and what there is to know at a glance."""
        self.loop.call_later(1.0, self.notify, "WATCHDOG=1")
        said = [f"{s.name}: {self.core.stats(s.index)['connections']} clients" for s in self.services]
        said += [sentence for s in self.services for sentence in self.why(s.name)]
        notify.tell(state, f"STATUS={'; '.join(said)}")

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
            self.core.refuse(client, self._internal[number].answer(head))
            return
        service = self.services[number]
        try:
            self._serve(client, service, head, full)
        except Refused as refused:
            if refused.bound:
                self.core.breached(number, refused.bound)
            readable = handshake.cross_origin(head, service.settings.allowed_origins)
            self.core.refuse(client, refused.answer_with(readable, head=head.startswith(b"HEAD ")))

    def _serve(self, client: int, service: Service, head: bytes, full: bool) -> None:
        """`on_request`, of a service.

        Raises:
            Refused: what is asked for cannot be had.
        """
        posts = self.settings.publish and service.name == "status"
        preflight = handshake.is_preflight(head)
        asked = b"GET" + head[len(b"OPTIONS") :] if preflight else head
        request = handshake.read(asked, self.settings.max_headers, posts=posts)
        route = handshake.route(service.name, request.path)
        post = request.method == "POST"
        if route.own and (post or preflight):
            raise Refused("405 Method Not Allowed", "This is had with GET and HEAD.", [("Allow", "GET, HEAD")])
        if route.own == "health" and request.upgrade:
            self.core.accept(client, request.upgrade)
            self.core.attach(client, None, b"OK")
            self.core.close(client, 1000)
            return
        if route.own:
            self.core.refuse(client, self._own(service, route.own, request, head))
            return
        origins, expires_in = service.settings.allowed_origins, 0.0
        if self._keys and not preflight:
            expires_in = handshake.permit(self._keys, request.query, route.topic, bearer=request.bearer, publish=post)
        served = ("stream", "json") if isinstance(service, Preflight) else ("stream",)
        plain_http = not (request.upgrade or post or preflight)
        kind = next((kind for kind in request.wants if kind in served), "") if plain_http else ""
        if plain_http and not kind:
            kinds = "text/event-stream or application/json" if isinstance(service, Preflight) else "text/event-stream"
            sentence = f"{request.path[:100]} is a websocket: connect with ws:// or wss://, or ask for {kinds}."
            raise Refused("426 Upgrade Required", sentence, [("Upgrade", "websocket")])
        if not handshake.origin_allowed(origins, request.origin) and not handshake.is_own_origin(
            request.origin, handshake.host_of(head)
        ):
            name = f"{service.name.upper()}_ALLOWED_ORIGINS"
            raise Refused("403 Forbidden", f"This Origin is not among those of {name}.")
        readable = handshake.cross_origin(head, origins) if not request.upgrade else []
        if preflight:
            self.core.refuse(client, handshake.preflight(handshake.methods(posts=posts), readable))
            return
        if busy := self._busy(client, service, head, full, route.topic):
            busy.events = kind == "stream"
            raise busy
        if request.upgrade:
            self.core.accept(client, request.upgrade, request.version, expires_in)
            service.join(client, route.topic)
        elif post:
            self._posts.take(client, service, request.length, route.topic, readable)
        elif kind == "json" and isinstance(service, Preflight):
            service.show(client, route.topic, readable, head=request.method == "HEAD")
        elif request.method == "HEAD":
            begin = handshake.stream(readable)
            self.core.refuse(client, begin[: begin.index(b"\r\n\r\n") + 4])
        else:
            # Events of an unknown name pass by whoever does not listen to them.
            version = max(2, request.version)
            self.core.accept(client, handshake.stream(readable), version, expires_in, events=True)
            service.join(client, route.topic)

    def _busy(self, client: int, service: Service, head: bytes, full: bool, topic: bytes) -> Busy | None:
        """Why there is no room for a newcomer, where there is none."""
        if full:
            return Busy("No room for more connections.", bound="connections")
        if self.draining and self._refusing:
            return Busy("This relay is restarting.")
        if not self.core.watched(service.index, topic) and self.topics() >= self.settings.max_topics:
            return Busy("This relay watches as many topics as it may.", bound="topics")
        if self._asks_addresses and not self._has_room(client, head):
            return Busy("Too many connections from this address.")
        return None

    def _has_room(self, client: int, head: bytes) -> bool:
        """Whether the address of a client, perhaps one that a proxy reports, may have one connection more."""
        proxies = self.settings.trusted_proxies
        peer = self.core.peer(client) if proxies else None
        if peer and peer[1]:
            self.core.forwarded(client, forwarded(head, peer[0], proxies.trusts))
        return not self.settings.max_per_address or self.core.charge(client)

    def _own(self, service: Service, name: handshake.Own, request: Request, asked: bytes) -> bytes:
        """The relay's own answers (contract, section 6)."""
        head = request.method == "HEAD"
        if request.upgrade:
            return plain("400 Bad Request", f"{request.path} is no websocket.\n")
        if name in ("health", "livez"):
            return plain("200 OK", "OK", head=head)
        if name == "readyz":
            ready = not self.whole.why(service.name)
            return plain(
                "200 OK" if ready else "503 Service Unavailable", "ready\n" if ready else "not ready\n", head=head
            )
        if name in ("page", "run") and self._page:
            extra = self._page.headers(handshake.host_of(asked))
            return plain("200 OK", self._page.body, extra, kind="text/html; charset=utf-8", head=head)
        if name == "script":
            # Any page may embed it (Cross-Origin-Resource-Policy, and a module is fetched with CORS).
            extra = [("Access-Control-Allow-Origin", "*")]
            kind = "text/javascript; charset=utf-8"
            return plain("200 OK", module(), extra, kind=kind, keep="public, max-age=3600", head=head)
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

    def why(self, service: str) -> list[str]:
        """Why newcomers of a service would not be well served, in sentences; empty where they would be."""
        served = next(each for each in self.services if each.name == service)
        return internal.obstacles(served, self.draining)

    def exposition(self) -> bytes:
        """/metrics."""
        return metrics.exposition(self.whole.readings, self.whole.bounds, self.whole.lags, self.whole.processes)

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
                    ready=not internal.obstacles(service, self.draining),
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

    def lags(self) -> list[metrics.Histogram]:
        """How late the loop's turns come."""
        return [self.core.lag()]

    def processes(self) -> metrics.Processes:
        """What the system says of this process."""
        return metrics.Processes([metrics.process()])

    def write(self) -> None:
        """There is nobody to let know."""

    def rows(self) -> list[Row]:
        """Of one process alone there is none."""
        return []

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
    limit = max(listeners.MIN_CONNECTIONS, listeners.room(hard))
    if settings.max_connections is not None:
        if settings.max_connections > limit:
            log.warning(f"RELAY_MAX_CONNECTIONS={settings.max_connections}: the file limit of {hard} leaves {limit}")
        limit = min(limit, settings.max_connections)
    log.info(f"room for {limit} connections (file limit {hard})")
    return limit


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What a callback of the loop raised: said in the relay's own log, and the loop goes on."""
    log.error(context["message"], exc_info=context.get("exception"))


def run(settings: Settings, attach: Callable[[Server], object] | None = None, *, warns: bool = True) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: of the process.
        attach: called with the server, to give it listeners; without it those of the settings are made.
        warns: of what is odd about the settings.

    Returns:
        0 after a drain.

    Raises:
        RelayError: what kept it from starting, or ended it.
    """
    levels = [service.log_level for service in settings.services]

    async def serve() -> None:
        for warning in settings.warnings if warns else ():
            log.warning(warning)
        server = Server(settings, lines)
        if attach:
            attach(server)
        else:
            if not sys.stdin.isatty():  # of a terminal that is closed it is the end
                server.loop.add_signal_handler(signal.SIGHUP, log.warning, ALONE)
            places = listeners.places(settings)
            inherited = [place.name for place in places if place.address.kind == "fd"]  # perhaps by others too
            for name, sock in listeners.open_all(places).items():
                server.accept_on(Held(name, sock), shared=name in inherited)
            server.notify()
        # What is here now stays: a collection that walked all of it again stopped every delivery for 12 ms.
        gc.collect()
        gc.freeze()
        try:
            await server.run()
        finally:
            server.whole.write()  # what its last clients were told

    with (
        to_stderr(min(levels, key=lambda level: int(logging.getLevelName(level)))) as lines,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(serve())
    return 0
