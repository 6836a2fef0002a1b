"""`relay doctor`: a running relay, seen as a browser sees it, through whatever stands between.

It watches a channel and a run of its own name. A message that is published to Redis must arrive, and so must two
heartbeats: what cuts quiet connections is found only by a connection that is quiet.
"""

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import hiredis
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Origin

from relay.cli import reach
from relay.cli.doctor_finding import Finding
from relay.cli.doctor_redis import RUN, Refusal, open_line
from relay.cli.follow import LONGEST, StrictConnect, parse
from relay.cli.reach import DEADLINE, resolve, why
from relay.cli.target import address, moved, query
from relay.cli.terminal import quoted
from relay.errors import ConfigError
from relay.settings import Settings
from relay.upstream import Lost
from relay.values import RedisAddress

BEATS = 2  # the first may come at once: what lies between two of them is a whole interval
INTERVALS = 2.5  # in which they must have come
SNAPSHOT_SECONDS = 2 * DEADLINE  # the relay's own deadline for Redis, and as much again


class Visitor(NamedTuple):
    """As whom the doctor comes.

    Attributes:
        settings: of a relay started here; what is not known of the one that runs is taken from them.
        publisher: Redis as workers reach it, where messages are published; None: as the status service does.
        token, origin: as of a browser; "" for none.
    """

    settings: Settings
    publisher: RedisAddress | None = None
    token: str = ""
    origin: str = ""

    @property
    def interval(self) -> float:
        """Seconds between two heartbeats."""
        return max((service.ping_interval for service in self.settings.services), default=10.0)

    def units(self, port: int) -> list[str]:
        """The units of systemd (deploy/) that the service at a port may be of: its own, or all that were asked for."""
        services = [service for service in self.settings.services if service.listen.port == port]
        return [f"relay-{service.name}" for service in services or self.settings.services]

    def journal(self, port: int) -> str:
        """The command that shows what they said."""
        return " ".join(["journalctl", *(f"-u {unit}" for unit in self.units(port))])


async def examine(base: str, visitor: Visitor) -> list[Finding]:
    """What is the matter with the service at the address `base`."""
    return [finding async for finding in _steps(base, visitor)]


async def _steps(base: str, visitor: Visitor) -> AsyncIterator[Finding]:
    parts = urlsplit(address(base, ""))
    host, tls = parts.hostname or "", parts.scheme == "wss"
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    server = Server(host, parts.port or (443 if tls else 80), parts.path.rstrip("/"), tls, login)
    try:
        await resolve(host, server.port)
        yield await server.life()
    except (OSError, TimeoutError, ValueError) as error:
        mend = f"systemctl status {' '.join(visitor.units(server.port))}    # does it run, and listen there: ss -ltnp"
        if isinstance(error, ssl.SSLCertVerificationError):
            mend = "SSL_CERT_FILE=/path/to/ca.pem relay doctor ...    # of the authority that browsers know there"
        elif tls and isinstance(error, ssl.SSLError | TimeoutError):  # the relay waits for the end of a request
            plain = server._replace(tls=False).url("ws")
            mend = f"relay doctor --url {plain}    # and not wss://, if no TLS is spoken there; else: {mend}"
        yield Finding("fault", "livez", why(error), "No client can connect.", mend)
        return
    yield await server.readiness(visitor)
    opened = await _open(base, visitor, visitor.journal(server.port))
    if isinstance(opened, Finding):
        yield opened
        return
    async with opened.socket:
        yield Finding("ok", "handshake", f"101, the {opened.service} service")
        try:
            if opened.service == "status":
                async for finding in _status(opened, visitor):
                    yield finding
            else:
                yield await _preflight(opened)
            yield await _heartbeats(opened, visitor.interval)
        except ConnectionClosed as closed:
            when = f"after {time.monotonic() - opened.heard_at:.1f} s in which nothing was said"
            yield _cut(closed, when, f"journalctl -u relay-{opened.service}")


class Server(NamedTuple):
    """Where the pages of a service are."""

    host: str
    port: int
    path: str
    tls: bool
    login: str

    def url(self, scheme: str = "http") -> str:
        """Its address, without the login."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}{'s' if self.tls else ''}://{host}:{self.port}{self.path}"

    async def get(self, page: str) -> tuple[int, str]:
        """As `reach.get`, below the path."""
        context = ssl.create_default_context() if self.tls else None
        status, body = await reach.get(self.path + page, host=self.host, port=self.port, tls=context, login=self.login)
        return status, quoted(body)

    async def life(self) -> Finding:
        """/livez, or /health where a proxy leaves a path in front: the relay knows that one below any."""
        status, body = await self.get("/livez")
        if status == 200:
            return Finding("ok", "livez", body)
        if (await self.get("/health"))[0] == 200:
            return Finding("ok", "livez", f"/health answers (/livez {status}: a proxy passes its own path on)")
        return Finding(
            "fault",
            "livez",
            f"answers {status}: {body}",
            "What answers is no relay, or a proxy that has none behind it.",
            f"relay healthcheck --url {self.url()}    # then at the relay's own port, without the proxy",
        )

    async def readiness(self, visitor: Visitor) -> Finding:
        """/readyz, and where the settings name the listener for operators, what that says of the reasons."""
        try:
            status, body = await self.get("/readyz")
        except (OSError, TimeoutError, ValueError) as error:
            return Finding("skipped", "readyz", why(error))
        if status == 200:
            return Finding("ok", "readyz", body)
        if status != 503:
            return Finding("skipped", "readyz", f"answers {status}: a proxy does not pass it on")
        reasons = await _reasons(visitor.settings)
        return Finding(
            "fault",
            "readyz",
            f"answers 503: {reasons or body}",
            "The relay lives and does not serve: its Redis is away or refuses it, or it is ending.",
            "" if reasons else "curl --unix-socket /run/relay/internal.sock http://relay/readyz    # says why",
        )


async def _reasons(settings: Settings) -> str:
    """Why the relay of these settings is not ready, in its own words; "" where it cannot be asked."""
    where = settings.internal_addr
    if where is None or where.kind == "fd":
        return ""
    try:
        _, body = await reach.get("/readyz", host=where.host or "localhost", port=where.port, unix=where.path)
        said = [sentence for service in json.loads(body)["services"].values() for sentence in service["why"]]
    except (OSError, TimeoutError, ValueError, LookupError, TypeError):
        return ""
    return quoted("; ".join(map(str, said)))


class Opened:
    """A websocket that is open, and when it was heard last."""

    def __init__(self, service: str, channel: str, socket: ClientConnection) -> None:
        self.service = service
        self.channel = channel
        self.socket = socket
        self.heard_at = time.monotonic()

    async def next(self, *types: str, within: float) -> dict[str, Any]:
        """The next frame of one of the types; heartbeats are answered, as a browser's page does it.

        Raises:
            TimeoutError: none came.
            ConnectionClosed: none will.
        """
        async with asyncio.timeout(within):
            while True:
                frame = parse(await self.socket.recv())
                self.heard_at = time.monotonic()
                if frame.get("type") == "ping":
                    await self.socket.send('{"type":"pong"}')
                if frame.get("type") in types:
                    return frame


async def _open(base: str, visitor: Visitor, journal: str) -> Opened | Finding:
    """A websocket: of a channel, or where the service takes no channel (400), of a run."""
    channel = f"{RUN}:{secrets.token_hex(8)}"
    for service, path in (("status", channel), ("preflight", RUN)):
        try:
            socket = await StrictConnect(
                f"{address(base, path)}?{query(visitor.token, v='2')}",
                origin=Origin(visitor.origin) if visitor.origin else None,
                compression=None,
                max_size=LONGEST,
                open_timeout=DEADLINE,
                close_timeout=1,
                ping_interval=None,  # one of ours would hide that the connection is cut when it is quiet
            )
            return Opened(service, channel, socket)
        except InvalidStatus as refused:
            if (refused.response.status_code, service) == (400, "status"):
                continue
            return _refused(refused, visitor, address(base, path))
        except (OSError, TimeoutError, InvalidHandshake) as error:
            said = "the answer is no HTTP/1.1" if isinstance(error, InvalidMessage) else why(error)
            return Finding("fault", "handshake", said, "No client can connect.", f"{journal}    # and the proxy's log")
    raise AssertionError("the second path has no third to go on to")


def _refused(refused: InvalidStatus, visitor: Visitor, url: str) -> Finding:
    """An answer other than 101, by what it can mean."""
    answer = refused.response
    status = answer.status_code
    if status // 100 == 3 and (location := answer.headers.get("Location")):
        where, base = moved(url, location)
        means = "Browsers follow no redirect of a websocket: no client can connect."
        mend = f"relay doctor --url {base}    # and the same address in the pages" if base else "see the proxy's log"
        return Finding("fault", "handshake", f"answers {status} with {where}", means, mend)
    body = quoted(bytes(answer.body or b"").decode("utf-8", "replace")) or answer.reason_phrase
    means, mend = {
        401: (
            "The relay asks for a token.",
            f'RELAY_TOKEN="$(relay token --run {RUN})" relay doctor ...    # with the relay\'s RELAY_TOKEN_SECRET',
        ),
        403: (
            "Browsers of this page are refused." if visitor.origin else "This client is refused.",
            f"STATUS_ALLOWED_ORIGINS and PREFLIGHT_ALLOWED_ORIGINS must name {visitor.origin}"
            if visitor.origin
            else "see the sentence that it answered, and the relay's log",
        ),
        426: (
            "A proxy in between drops the Upgrade header: pages load, and no websocket opens.",
            "nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
            'proxy_set_header Connection "upgrade";',
        ),
        503: (
            "There is no room, or the relay is ending, or a proxy knows none that is ready.",
            "curl --unix-socket /run/relay/internal.sock http://relay/debug    # its sockets; and the proxy's own page",
        ),
    }.get(status, ("What answers passes no websockets on to a relay.", "see the proxy's log for this path"))
    return Finding("fault", "handshake", f"answers {status}: {body}", means, mend)


async def _status(opened: Opened, visitor: Visitor) -> AsyncIterator[Finding]:
    """The relay's subscription, and a message through every hop."""
    try:
        first = await opened.next("ready", "gap", within=DEADLINE)
    except TimeoutError:
        first = {}
    if first.get("type") != "ready":
        yield Finding(
            "fault",
            "subscription",
            "the relay has no Redis" if first else f"Redis has not confirmed it in {DEADLINE:g} s",
            "Clients stay connected and get nothing until it has.",
            "relay doctor    # on the relay's host and with its settings",
        )
        return
    yield Finding("ok", "subscription", "confirmed by Redis")
    yield await _message(opened, visitor)


async def _message(opened: Opened, visitor: Visitor) -> Finding:
    """A message that a worker would publish, and what arrives of it."""
    status = visitor.settings.status
    publisher = visitor.publisher or (status.redis if status else None)
    if publisher is None:
        return Finding("skipped", "message", "no Redis to publish on: --worker-redis-url names it")
    text = secrets.token_hex(8)
    began = time.perf_counter()
    try:
        line = await open_line(publisher, ping=False)
        try:
            receivers = await asyncio.wait_for(line.ask("PUBLISH", opened.channel, text), DEADLINE)
        finally:
            await line.__aexit__()
    except Refusal as refusal:
        return Finding(
            "skipped",
            "message",
            f"this user may not publish: {refusal}",
            "The relay's own user should not; a worker's may.",
            "WORKER_REDIS_URL=redis://worker:...@host relay doctor ...",
        )
    except (ConfigError, OSError, TimeoutError, Lost, hiredis.ProtocolError) as error:
        return Finding("skipped", "message", f"not published, {publisher}: {why(error)}")
    try:
        while (await opened.next("status", within=DEADLINE)).get("data") != text:
            pass
    except TimeoutError:
        means = (
            "The relay is subscribed at another Redis than the one workers publish on: every log stays empty."
            if receivers == 0
            else "Redis gave it to a subscriber; it is lost in the relay or in a proxy that holds frames back."
        )
        return Finding(
            "fault",
            "message",
            f"published on {publisher} to {receivers} subscribers, not here in {DEADLINE:g} s",
            means,
            "relay config show status    # on the relay's host: STATUS_REDIS_URL must be the Redis of the workers",
        )
    return Finding(
        "ok", "message", f"published on {publisher}, here after {(time.perf_counter() - began) * 1e3:.1f} ms"
    )


async def _preflight(opened: Opened) -> Finding:
    """The snapshot that every client gets."""
    try:
        first = await opened.next("preflight", "gap", within=SNAPSHOT_SECONDS)
    except TimeoutError:
        first = {}
    if first.get("type") == "preflight":
        return Finding("ok", "snapshot", f"a checklist of {len(first.get('checklist', ()))} items")
    return Finding(
        "fault",
        "snapshot",
        "the relay has no Redis" if first else f"none in {SNAPSHOT_SECONDS:g} s",
        "Pages show no checklist.",
        "relay doctor preflight    # on the relay's host and with its settings",
    )


async def _heartbeats(opened: Opened, interval: float) -> Finding:
    """Whether a quiet connection lives from one heartbeat to the next."""
    within = INTERVALS * interval
    beats: list[float] = []
    try:
        async with asyncio.timeout(within):
            while len(beats) < BEATS:
                await opened.next("ping", within=within)
                beats.append(time.monotonic())
    except TimeoutError:
        return Finding(
            "fault",
            "heartbeat",
            f"{len(beats)} in {within:g} s, where {BEATS} were due",
            "Clients take a connection without heartbeats for dead. The relay stands still, a proxy holds frames back, "
            f"or its *_PING_INTERVAL is not the {interval:g} s of the settings here.",
            "relay config show    # on the relay's host",
        )
    return Finding("ok", "heartbeat", f"{beats[1] - beats[0]:.1f} s apart")


def _cut(closed: ConnectionClosed, when: str, journal: str) -> Finding:
    """An end that the doctor did not ask for: said by the relay in a close frame, else done by something in between."""
    if closed.rcvd is not None:
        reason = f" ({quoted(closed.rcvd.reason)})" if closed.rcvd.reason else ""
        means = "The relay, or a proxy, has closed it: docs/protocol.md says what the code means."
        found = f"closed with {closed.rcvd.code}{reason} {when}"
        return Finding("fault", "connection", found, means, f"{journal}    # says why")
    return Finding(
        "fault",
        "connection",
        f"cut {when}, without a close frame",
        "Something between cuts connections that are quiet, sooner than the relay's heartbeat comes (or the relay "
        "died): every browser loses its log again and again.",
        "haproxy: timeout tunnel 1h and timeout client 1h; nginx: proxy_read_timeout 1h; or a shorter *_PING_INTERVAL",
    )
