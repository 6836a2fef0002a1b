"""What the text of a variable means: durations, sizes, origins, addresses.

Each parser takes the text, and raises ValueError with the part of the sentence that says what is wrong. The first line
of its docstring says what it takes, for docs/configuration.md.
"""

import contextlib
import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_NANOSECONDS = {
    "h": 3600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ns": 1,
}
_AMOUNT = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "warning": "WARNING", "error": "ERROR"}
_HOSTNAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?")
MAX_INT = 2**31 - 1
MAX_WORKERS = 64
_SHORTEST_SECRET = 4  # characters: with the password `p` "no permissions" was told as "no ***ermissions"
_LONGEST = 10_000 * 3600.0  # s: the core counts in 32 bits of 0.1 s


def parse_duration(text: str) -> float:
    """A duration of 0s or longer.

    As Go's `time.ParseDuration` reads it: `500ms`, `1m30s`, `1.5h`, `0`; never negative.

    Returns:
        Seconds.

    Raises:
        ValueError: it is none, with what is wrong.
    """
    if text in ("0", "+0"):
        return 0.0
    if text.startswith("-"):
        raise ValueError("a duration cannot be negative")
    body = text.removeprefix("+")
    amounts = _AMOUNT.findall(body)
    if re.fullmatch(r"[0-9.]+", body):
        raise ValueError("a duration needs a unit (ns, us, ms, s, m or h)")
    if not amounts or "".join(number + unit for number, unit in amounts) != body:
        raise ValueError("is not a duration: numbers with the units ns, us, ms, s, m or h, without spaces")
    nanoseconds = sum(Decimal(number) * _NANOSECONDS[unit] for number, unit in amounts)
    if nanoseconds >= 2**63:
        raise ValueError("is longer than the 292 years that a Go duration can hold")
    return float(nanoseconds / 10**9)


def duration_text(seconds: float) -> str:
    """A Go duration of that length: 75.0 -> `1m15s`, 0.05 -> `50ms`, 0.0 -> `0s`."""
    rest, parts = round(seconds * 10**9), []
    for unit in ("h", "m", "s", "ms", "us", "ns"):
        count, rest = divmod(rest, _NANOSECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_bool(text: str) -> bool:
    """`true` or `false`, or another boolean of Go (`strconv.ParseBool`)."""
    if text not in _TRUE + _FALSE:
        raise ValueError(f"is neither true ({', '.join(_TRUE)}) nor false ({', '.join(_FALSE)})")
    return text in _TRUE


def positive_duration(text: str) -> float:
    """A duration longer than 0s, up to 10000h."""
    if (seconds := parse_duration(text)) == 0:
        raise ValueError("must be longer than 0")
    if seconds > _LONGEST:
        raise ValueError(f"must not be longer than {duration_text(_LONGEST)}")
    return seconds


def duration_between(low: float, high: float) -> Callable[[str], float]:
    """A parser of durations from `low` to `high` seconds."""

    def parse(text: str) -> float:
        if not low <= (seconds := parse_duration(text)) <= high:
            raise ValueError(f"is not from {duration_text(low)} to {duration_text(high)}")
        return seconds

    parse.__doc__ = f"A duration from {duration_text(low)} to {duration_text(high)}."
    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise ValueError(f"is not a whole number from {low} to {high}, written in digits alone")
        return int(text)

    parse.__doc__ = f"A whole number from {low} to {high}."
    return parse


def worker_count(text: str) -> int:
    """A whole number from 1 to 64, or `auto`: one for each processor that this process may use."""
    return min(processors(), MAX_WORKERS) if text == "auto" else whole(1, MAX_WORKERS)(text)


def processors(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors that this process may use: of its affinity, and no more than its container's quota (cgroup v2)."""
    count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or `max`
        most, period = quota.read_text().split()
        count = min(count, math.ceil(int(most) / int(period)))
    return max(1, count)


def milliseconds(text: str) -> Decimal:
    """A number from 0 to 1000, such as `20` or `2.5`: milliseconds, without a unit."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or Decimal(text) > 1000:
        raise ValueError("is not a number of milliseconds from 0 to 1000, such as 20 or 2.5, without a unit")
    return Decimal(text)


def level(text: str) -> str:
    """`debug`, `info`, `warn`, `warning` or `error`, in either case."""
    if text.lower() not in _LEVELS:
        raise ValueError(f"is not a log level: {', '.join(_LEVELS)}")
    return _LEVELS[text.lower()]


def origins(text: str) -> tuple[str, ...]:
    """Origins as browsers send them: `https://host`, `https://host:port` or `*.domain`; commas between."""
    return tuple(_origin(part.strip()) for part in text.split(",")) if text else ()


def _origin(text: str) -> str:
    """One allowed origin as browsers send it: lower case, and without the port that is the scheme's own."""
    if match := re.fullmatch(r"\*\.(.+)", text):
        if _HOSTNAME.fullmatch(match[1]) and not match[1].endswith("."):
            return text.lower()
    elif match := re.fullmatch(r"(https?)://(\[[^]]+\]|[^:/?#@]+)(?::([0-9]{1,5}))?", text, re.IGNORECASE):
        scheme, host, port = match[1].lower(), match[2].lower(), match[3]
        if is_host(host.strip("[]")) and (port is None or 1 <= int(port) <= 65535):
            usual = port is None or int(port) == {"http": 80, "https": 443}[scheme]
            return f"{scheme}://{host}" if usual else f"{scheme}://{host}:{int(port)}"
    raise ValueError(
        f"{text!r} is no origin: https://host, https://host:port or *.domain, separated by commas, "
        "without a path or a closing slash (leave it empty to allow any)"
    )


def public_url(text: str) -> str:
    """Where browsers find a service: `ws://host[:port][/prefix]` or `wss://...`, without a query."""
    found = re.fullmatch(r"(wss?)://(\[[^]]+\]|[^:/?#@\s]+)(:[0-9]{1,5})?(/[!-~]*)?", text)
    if not found or not is_host(found[2].strip("[]")) or re.search(r"[?#'\"<>]", text):
        raise ValueError(
            f"{text!r} is no address of websockets, such as wss://wepp.cloud/weppcloud-microservices/status"
        )
    return text.rstrip("/")


Network = tuple[bytes, int]  # 16 bytes, IPv4 mapped into IPv6, and how many of their 128 bits count


@dataclass(frozen=True)
class Proxies:
    """Who is trusted to say for whom it connects; `str()` gives back what was written."""

    networks: tuple[Network, ...] = ()
    unix: bool = False
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.networks) or self.unix

    def __str__(self) -> str:
        return self.text

    def trusts(self, address: bytes) -> bool:
        """Whether an address, 16 bytes, is in one of the networks."""
        number = int.from_bytes(address, "big")
        return any((number ^ int.from_bytes(base, "big")) >> (128 - bits) == 0 for base, bits in self.networks)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Addresses and networks (`10.0.0.0/8`, `fd00::/8`), and `unix` for peers on a Unix socket; commas between.

        Raises:
            ValueError: one of them is none of these, with what is wrong.
        """
        parts = [part.strip() for part in text.split(",")] if text else []
        return cls(tuple(_network(part) for part in parts if part != "unix"), "unix" in parts, ",".join(parts))


def _network(text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        if _is_interface(text):
            why = (
                f"{text!r} is an address in the network {ipaddress.ip_interface(text).network}: write one or the other"
            )
        else:
            why = f"{text!r} is no address, no network such as 10.0.0.0/8 or fd00::/8, and not unix"
        raise ValueError(why) from None
    if network.version == 6:
        return network.network_address.packed, network.prefixlen
    return b"\0" * 10 + b"\xff\xff" + network.network_address.packed, 96 + network.prefixlen


def _is_interface(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """A host name or an address; what is written like an IPv4 address must be one."""
    if ":" in text or re.fullmatch(r"[0-9.]+", text):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            return False
        return True
    return _HOSTNAME.fullmatch(text) is not None


@dataclass(frozen=True)
class ListenAddress:
    """Where a service listens; `str()` gives back what was written.

    `tcp`: host ("" = all, IPv6 and IPv4) and port (0 = any free one). `unix`: path. `fd`: a listening socket inherited
    under that number.
    """

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1

    @classmethod
    def parse(cls, text: str) -> Self:
        """`[host]:port`, `:9002`, `unix:/path` or `fd:3`.

        Raises:
            ValueError: it is none of these, with what is wrong.
        """
        if text.startswith("unix:"):
            return cls("unix", path=_socket_path(text.removeprefix("unix:")))
        if text.startswith("fd:"):
            return cls("fd", fd=whole(0, MAX_INT)(text.removeprefix("fd:")))
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
        if match is None:
            raise ValueError("is not host:port, :port, [IPv6]:port, unix:/path or fd:number")
        six, host, port = match.groups()
        if int(port) > 65535:
            raise ValueError("has a port above 65535")
        if (six and (":" not in six or not is_host(six))) or (host and not is_host(host)):
            raise ValueError("has a host that is neither a name nor an address")
        return cls("tcp", host=six or host or "", port=int(port))

    def overlaps(self, other: Self) -> bool:
        """Whether no process can listen on both."""
        if self.kind != "tcp" or other.kind != "tcp":
            return self == other
        return self.port == other.port != 0 and (self._covers(other) or other._covers(self))

    def _covers(self, other: Self) -> bool:
        return self.host in ("", "::", other.host) or (self.host == "0.0.0.0" and ":" not in other.host)

    def __str__(self) -> str:
        if self.kind != "tcp":
            return f"unix:{self.path}" if self.kind == "unix" else f"fd:{self.fd}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _socket_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("needs an absolute path of a socket")
    if len(os.fsencode(path)) > 107 or "\0" in path:  # sun_path of unix(7), 108 bytes with its NUL
        raise ValueError("has a path of over 107 bytes, more than a socket's name can hold")
    return path


@dataclass(frozen=True)
class RedisAddress:
    """Where Redis is and how to be let in; neither `str()` nor `repr()` shows the password.

    The TLS options bear redis-py's names and meanings, as in the query of a URL.
    """

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    ssl_cert_reqs: Literal["none", "optional", "required"] = "required"
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True

    @classmethod
    def parse(cls, url: str, db: int, *, keep_db: bool = False) -> Self:
        """An address from `redis://`, `rediss://` (TLS) or `unix://`.

        Args:
            url: `redis[s]://[user[:password]@]host[:port][/db][?options]` or `unix://[user:password@]/path[?options]`.
            db: the database to use, whatever the URL says.
            keep_db: a database that the URL names wins over `db`.

        Raises:
            ValueError: it is none of these, with what is wrong, and without the password.
        """
        if re.search(r"[\x00-\x20\x7f]", url):
            raise ValueError("has spaces or control characters")
        scheme = url.partition("://")[0].lower()
        if "cluster" in scheme or "sentinel" in scheme or (scheme != "unix" and "," in url.rpartition("@")[2]):
            raise ValueError("names a cluster or Sentinel, which the relay cannot use: give the URL of one server")
        if scheme not in ("redis", "rediss", "unix"):
            raise ValueError("must start with redis://, rediss:// (TLS) or unix://")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
        except ValueError:
            # urlsplit's own text repeats what it took for a port, and that may be half a password.
            raise ValueError("has a malformed host, port or options (in a password / ? # are %2F %3F %23)") from None
        if "#" in url or "@" in parts.path + parts.query:  # then what looks like a path or option is half a password
            raise ValueError("has a # or a late @: in a password they are written %23 and %40, and / is written %2F")
        query = dict(pairs)
        user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
        options = _redis_options(query, scheme)
        named = query.get("db") if scheme == "unix" else parts.path.strip("/") or query.get("db")
        if named and not re.fullmatch(r"[0-9]{1,9}", named):
            raise ValueError("has something other than a database number after the host")
        address = cls(
            tls=scheme == "rediss",
            username=user or query.get("username") or None,
            password=password or query.get("password") or None,
            db=int(named) if named and keep_db else db,
            **options,
        )
        if scheme == "unix":
            if host:
                raise ValueError("needs three slashes before the path of the socket")
            return replace(address, path=_socket_path(unquote(parts.path)))
        if port == 0 or (host and not is_host(host)):
            raise ValueError("has no usable host and port")
        return replace(address, host=host or "localhost", port=port or 6379)

    def url(self) -> str:
        """The URL with the password in it, percent-encoded: for clients alone, never for a log."""
        return self._url(quote(self.password, safe="") if self.password else None)

    def __str__(self) -> str:
        return self._url("***" if self.password else None)

    def redacted(self, text: str) -> str:
        """What a server said, without the password; a short one in a URL alone, for any word may hold its letters."""
        if not self.password:
            return text
        if len(self.password) < _SHORTEST_SECRET:
            return text.replace(f":{self.password}@", ":***@")
        return text.replace(self.password, "***")

    def _url(self, password: str | None) -> str:
        login = quote(self.username or "", safe="") + (f":{password}" if password else "")
        login += "@" if login else ""
        names = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
        plain = RedisAddress()
        options = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        if self.path:
            return f"unix://{login}{quote(self.path)}?{urlencode({'db': self.db, **options})}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = f"?{urlencode(options)}" if options else ""
        return f"redis{'s' if self.tls else ''}://{login}{host}:{self.port}/{self.db}{query}"


def _redis_options(query: Mapping[str, str], scheme: str) -> dict[str, Any]:
    """The TLS options of a Redis URL's query, checked; an option unknown here would be one silently left out."""
    files = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
    known = ("db", "username", "password", "ssl_cert_reqs", "ssl_check_hostname", *files)
    if unknown := sorted(set(query) - set(known)):
        raise ValueError(f"has the option {unknown[0]!r}, which is none of {', '.join(known)}")
    options: dict[str, Any] = {name: value for name, value in query.items() if name.startswith("ssl_")}
    if options and scheme != "rediss":
        raise ValueError(f"has the option {min(options)!r}, which needs rediss://")
    if options.get("ssl_cert_reqs", "required") not in ("none", "optional", "required"):
        raise ValueError("has an ssl_cert_reqs that is none of none, optional, required")
    for name in files:
        if name in options and not os.access(options[name], os.R_OK):
            raise ValueError(f"names {options[name]!r} as {name}, which cannot be read")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ValueError("has an ssl_keyfile without its ssl_certfile")
    verified = options.get("ssl_cert_reqs") != "none"
    options["ssl_check_hostname"] = parse_bool(options.get("ssl_check_hostname", str(verified).lower()))
    if options["ssl_check_hostname"] and not verified:
        raise ValueError("asks for ssl_check_hostname without a certificate (ssl_cert_reqs=none)")
    return options if scheme == "rediss" else {}
