"""From a request head to a decision: what is asked for, and whether it may be had.

`read` parses and judges (RFC 9112 for the head, RFC 6455 section 4.2 for the upgrade), `route` says what a path names
(contract, section 6). `websockets`' sans-I/O ServerProtocol is the judge of everything unusual; the plain request of a
browser, which it would take 60 µs over, is read by the core in less than one. Nothing here has state.
"""

import logging
import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, unquote_to_bytes

from websockets.server import ServerProtocol

from relay._fanout import plain_upgrade
from relay.tokens import Denied, Keys

MAX_HEADERS = 64  # where nothing else is said (docs/architecture.md, "Bounds")
MAX_LINE = 8192  # bytes of a line with its end: what the judge reads
MAX_NAME = 200  # bytes of a decoded run or channel name
MAX_PARTS = 5  # of a nested run id, such as batch;;<name>;;<run>

RUN = r"[A-Za-z0-9_.;-]+"
CHANNEL = r"[A-Za-z0-9_.-]+"

VERSIONS = {"2": 2, "3": 3}
KINDS = {"text/event-stream": "stream", "application/json": "json"}
RETRY = (500, 3000)  # ms after which an event stream comes back: thousands that lost one relay must not all at once

Own = Literal["page", "run", "script", "livez", "readyz", "metrics", "health"]
OWN_PATHS: dict[str, Own] = {
    "/": "page",
    "/relay.js": "script",
    "/livez": "livez",
    "/readyz": "readyz",
    "/metrics": "metrics",
}
RESERVED = frozenset({"relay.js", "livez", "readyz", "metrics", "health"})

_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~]+) HTTP/(1\.[01])")
_AUTHORITY = re.compile(r"https?://[^/?#]+(?=[/?]|$)", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")  # what a host and its port are made of (RFC 3986, 3.2.2)
_HOST_LINE = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*(?=\r\n)", re.IGNORECASE)
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_RUN_PATH = re.compile(rf"/run/{RUN}/?")
_ORIGIN = re.compile(
    r"(https?)://((?:[a-z0-9_-]+\.)*[a-z0-9_-]+\.?|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?"
)  # RFC 6454, 6.2
_USUAL_PORT = {"http": "80", "https": "443"}
_NAMES = {"preflight": re.compile(RUN), "status": re.compile(f"{RUN}:{CHANNEL}")}

# The judge logs every refusal; what it finds is answered to the client, and a port scan must not flood the log.
_silent = logging.getLogger(__name__ + ".judge")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
_silent.setLevel(logging.CRITICAL)


class Refused(Exception):  # noqa: N818 - what became of the request
    """A request that cannot be had.

    Attributes:
        answer: bytes, the whole HTTP answer.
        bound: of `relay._fanout.BOUNDS`, the one that was exceeded; "" where it was none.
    """

    def __init__(self, status: str, sentence: str, extra: Iterable[tuple[str, str]] = (), *, bound: str = "") -> None:
        super().__init__(sentence)
        self.answer = plain(status, sentence + "\n", extra)
        self.bound = bound


class Request(NamedTuple):
    """A judged request.

    Attributes:
        method: `GET`, `HEAD` or `POST`.
        path: without the query, not decoded.
        query: what follows the `?`, not decoded.
        version: of the frame protocol asked for with `?v=`; 0 for clients that know none.
        origin: of the page that asks; None where there is no such header.
        upgrade: the whole 101 answer where a websocket is asked for, else None.
        length: bytes of the body that a POST brings; 0 for other methods.
        bearer: the token of its Authorization header; "" without one.
        wants: the first of `stream` (text/event-stream) and `json` that the Accept header names; "" for neither.
    """

    method: str
    path: str
    query: str
    version: int
    origin: str | None
    upgrade: bytes | None
    wants: str = ""
    length: int = 0
    bearer: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """What a path names: `own`, one of the relay's own pages, or `topic`, a run or channel."""

    own: Own | None = None
    topic: bytes = b""


def plain(
    status: str,
    body: str | bytes,
    extra: Iterable[tuple[str, str]] = (),
    *,
    kind: str = "text/plain; charset=utf-8",
    keep: str = "no-store",
    head: bool = False,
) -> bytes:
    """An HTTP answer that ends the connection.

    Args:
        status: such as `404 Not Found`.
        body: text or bytes.
        extra: further headers.
        kind: its Content-Type.
        keep: its Cache-Control.
        head: leave the body out, as the answer to HEAD does (RFC 9110, section 9.3.2).
    """
    content = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status}",
        f"Date: {formatdate(usegmt=True)}",
        "Connection: close",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        f"Cache-Control: {keep}",
        "X-Content-Type-Options: nosniff",
        *(f"{name}: {value}" for name, value in extra),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else content)


def busy(sentence: str) -> bytes:
    """The answer to a client that would be served at another time (RFC 9110, section 15.6.4)."""
    return plain("503 Service Unavailable", sentence + "\n", [("Retry-After", "5")])


def read(head: bytes, max_headers: int = MAX_HEADERS, *, posts: bool = False) -> Request:
    """Parses and judges a request head.

    Args:
        head: up to and with its blank line.
        max_headers: at most 128, the judge's own bound.
        posts: POST is served too.

    Raises:
        Refused: not HTTP/1.x, another method than GET or HEAD (or POST), a POST without its length, too many headers
            or too long a one, or no valid upgrade.
    """
    found = plain_upgrade(head, max_headers)
    if found is None or b"\r\nauthorization:" in head.lower():
        return judged(head, max_headers, posts=posts)
    target, accept, origin = found
    path, _, query = target.partition("?")
    answer = switching(int(time.time())) + accept + b"\r\n\r\n"
    return Request("GET", path, query, _version(query) if query else 0, origin, answer)


@lru_cache(maxsize=1)
def switching(now: int) -> bytes:
    """The 101 of a second (unix time) up to the one value that is each client's own, as the judge answers."""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nDate: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " % formatdate(now, usegmt=True).encode()
    )


def judged(head: bytes, max_headers: int = MAX_HEADERS, *, posts: bool = False) -> Request:
    """`read`, with nothing taken for plain."""
    line = _REQUEST_LINE.fullmatch(head, 0, head.index(b"\r\n"))
    if not line:
        raise Refused("400 Bad Request", "The request line is not METHOD SP TARGET SP HTTP/1.1.")
    method, target, protocol_version = (part.decode("ascii") for part in line.groups())
    if method not in ("GET", "HEAD") and not (method == "POST" and posts):
        raise Refused(
            "405 Method Not Allowed", f"{method[:20]} is not served here: GET and HEAD are.", [("Allow", "GET, HEAD")]
        )
    if head.count(b"\r\n") - 2 > max_headers:
        raise Refused("431 Request Header Fields Too Large", f"More than {max_headers} headers.", bound="headers")
    if len(head) > MAX_LINE and max(map(len, head.split(b"\n"))) >= MAX_LINE:
        raise Refused(
            "431 Request Header Fields Too Large", f"A line of more than {MAX_LINE} bytes.", bound="head_size"
        )
    if not target.startswith("/"):
        target = _origin_form(target)
    length = 0
    if method == "POST":
        lengths = _LENGTH.findall(head)
        if len(lengths) != 1:
            raise Refused("411 Length Required", "A POST says how long its body is, once: Content-Length.")
        length, head = int(lengths[0]), _LENGTH.sub(b"", head)
    judge = ServerProtocol(logger=_silent)
    # The judge knows GET alone, and no body; a HEAD or POST has the same head otherwise.
    judge.receive_data(b"GET" + head[len(method) :])
    events = judge.events_received()
    if not events:
        cause = judge.handshake_exc and (judge.handshake_exc.__cause__ or judge.handshake_exc)
        raise Refused("400 Bad Request", f"The request head cannot be read: {cause}.")
    request = events[0]
    hosts = request.headers.get_all("Host")  # type: ignore[union-attr]
    if len(hosts) > 1 or (not hosts and protocol_version == "1.1"):
        raise Refused("400 Bad Request", f"{len(hosts)} Host headers where there must be one.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise Refused("400 Bad Request", "The Host header names no host.")
    path, _, query = target.partition("?")
    upgrade = _upgrade(judge, request, method)
    origins = request.headers.get_all("Origin")  # type: ignore[union-attr]
    if len(origins) > 1:
        raise Refused("400 Bad Request", f"{len(origins)} Origin headers where there may be one.")
    wants = _wants(request.headers.get_all("Accept"))  # type: ignore[union-attr]
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")  # type: ignore[union-attr]
    return Request(
        method,
        path,
        query,
        _version(query),
        origins[0] if origins else None,
        upgrade,
        wants,
        length,
        bearer.strip() if scheme.lower() == "bearer" else "",
    )


def _wants(values: list[str]) -> str:
    """What the Accept headers name first of what runs and channels come as (RFC 9110, section 12.5.1)."""
    named = (part.partition(";")[0].strip().lower() for value in values for part in value.split(","))
    return next((KINDS[kind] for kind in named if kind in KINDS), "")


def cross_origin(origin: str | None, origins: tuple[str, ...]) -> list[tuple[str, str]]:
    """The headers that let a page read an answer (WHATWG Fetch, section 3.2), whose Origin was found to be allowed."""
    if not origins or origin is None:
        return [("Access-Control-Allow-Origin", "*")] if not origins else []
    return [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]


def stream(origin: str | None, origins: tuple[str, ...]) -> bytes:
    """The head of an event stream (WHATWG HTML, section 9.2), and when to come back: each at another time.

    Args:
        origin: of a page that was found to be allowed.
        origins: those that are named; a page of any other may read it where there are none.
    """
    lines = [
        "HTTP/1.1 200 OK",
        f"Date: {formatdate(usegmt=True)}",
        "Connection: close",
        "Content-Type: text/event-stream; charset=utf-8",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "X-Accel-Buffering: no",  # or nginx keeps what has come until there is more
        *(f"{name}: {value}" for name, value in cross_origin(origin, origins)),
    ]
    return "\r\n".join([*lines, "", f"retry: {random.randint(*RETRY)}\n\n"]).encode()


def _origin_form(target: str) -> str:
    """The path of an absolute target, which a server must accept (RFC 9112, section 3.2.2)."""
    authority = _AUTHORITY.match(target)
    if not authority:
        raise Refused("400 Bad Request", "The target does not begin with a slash.")
    return "/" + target[authority.end() :].removeprefix("/")


def _upgrade(judge: ServerProtocol, request, method: str) -> bytes | None:  # type: ignore[no-untyped-def]
    if not any("websocket" in value.lower() for value in request.headers.get_all("Upgrade")):
        return None
    if method != "GET":
        raise Refused("405 Method Not Allowed", "A websocket is asked for with GET.", [("Allow", "GET")])
    response = judge.accept(request)
    if response.status_code != 101:
        del response.headers["Date"]
        status = f"{response.status_code} {response.reason_phrase}"
        kept = [(k, v) for k, v in response.headers.raw_items() if k in ("Upgrade", "Allow", "Sec-WebSocket-Version")]
        raise Refused(status, bytes(response.body).decode().strip(), kept)
    return response.serialize()


def _version(query: str) -> int:
    """`?v=2` and `?v=3` ask for the frames that old clients do not know; other parameters are ignored."""
    given = parse_qs(query).get("v", []) if "v=" in query else []
    return VERSIONS.get(given[0], 0) if len(given) == 1 else 0


@lru_cache(maxsize=4096)
def route(service: str, path: str) -> Route:
    """What a path names on a service's port (contract, section 6).

    Args:
        service: `status` or `preflight`.
        path: of the request, without its query.

    Raises:
        Refused: it names nothing that could be.
    """
    if path in OWN_PATHS:
        return Route(own=OWN_PATHS[path])
    last = path.removesuffix("/").rpartition("/")[2]
    if last == "health":
        return Route(own="health")
    if path.startswith("/run/") and _RUN_PATH.fullmatch(path):
        return Route(own="run")
    name = _name(service, last)
    if name is None:
        wanted = "<run>, such as /my-run" if service == "preflight" else "<run>:<channel>, such as /my-run:wepp"
        raise Refused("400 Bad Request", f"The last part of the path is no {wanted}.")
    return Route(topic=name)


def _name(service: str, part: str) -> bytes | None:
    """The run or channel that the last part of a path names, decoded once; None where it can be neither."""
    name = part
    if "%" in part:
        if _PERCENT.search(part):
            return None
        try:
            name = unquote_to_bytes(part).decode("ascii")
        except UnicodeDecodeError:
            return None
    run, _, channel = name.partition(":")
    refused = (
        not _NAMES[service].fullmatch(name)
        or len(name) > MAX_NAME
        or name in RESERVED
        or name.startswith("__")
        or not run.strip(".")
        or (service == "status" and not channel.strip("."))
        or run.count(";;") >= MAX_PARTS
    )
    return None if refused else name.encode()


def permit(keys: Keys, query: str, topic: bytes, *, bearer: str = "", publish: bool = False) -> float:
    """How long the token of a request lets it watch a topic.

    Args:
        keys: that tokens are signed with.
        query: of the request; its one `token=` is looked at.
        topic: `<run>`, or `<run>:<channel>`.
        bearer: the token, where it came in a header.
        publish: it must let its bearer publish, too.

    Returns:
        Seconds, more than 0.

    Raises:
        Refused: 401 without a valid token, 403 where it is not for this topic (RFC 9110, sections 15.5.2 and 15.5.4).
    """
    given = parse_qs(query, keep_blank_values=True).get("token", [""]) if "token=" in query else [""]
    try:
        grant = keys.verify(bearer or (given[0] if len(given) == 1 else ""))
    except Denied as denied:
        challenge = [("WWW-Authenticate", 'Bearer realm="relay"')]
        raise Refused("401 Unauthorized", f"A token is needed here, and {denied}.", challenge) from None
    run, colon, channel = topic.decode("ascii").partition(":")
    if not grant.covers(run, channel if colon else None):
        raise Refused("403 Forbidden", "The token is valid, but not for this run and channel.")
    if publish and not grant.publish:
        raise Refused("403 Forbidden", "The token is valid, but not for publishing: `relay token --publish` signs one.")
    return grant.expires_in


def origin_allowed(origins: tuple[str, ...], origin: str | None) -> bool:
    """Whether the Origin header is one of those allowed (contract, section 6).

    An empty list allows all. A client that sends no Origin is no browser and could send any: it is allowed.

    Args:
        origins: exact ones (`https://host[:port]`), or `*.domain`: its subdomains by http and https, on any port.
        origin: of a request.
    """
    if not origins or origin is None:
        return True
    found = _ORIGIN.fullmatch(origin.lower())
    if not found:
        return False
    plain, host = _plain_origin(*found.groups()), found[2]
    return any(plain == allowed or (allowed[0] == "*" and host.endswith(allowed[1:])) for allowed in origins)


def is_own_origin(origin: str | None, host: str) -> bool:
    """Whether the page that asks came from where it asks: its Origin is the request's own Host.

    The relay's own page is one, and a page of the site whose proxy stands in front. So is any page whose name was made
    to point here (DNS rebinding), which no Origin can tell from them: tokens can.

    Args:
        origin: of a request.
        host: its Host header.
    """
    found = origin and _ORIGIN.fullmatch(origin.lower())
    if not found:
        return False
    own = _ORIGIN.fullmatch(f"{found[1]}://{host.lower()}")
    return own is not None and _plain_origin(*own.groups()) == _plain_origin(*found.groups())


def _plain_origin(scheme: str, host: str, port: str | None) -> str:
    return f"{scheme}://{host}" + (f":{port}" if port not in (None, _USUAL_PORT[scheme]) else "")


def host_of(head: bytes) -> str:
    """The Host header of a head that was judged, and so has one at most; "" without one."""
    found = _HOST_LINE.search(head)
    return found[1].decode("ascii", "replace") if found else ""
