"""Where a worker finds Redis: `configure()`, else REDIS_URL, else REDIS_HOST and REDIS_PORT (contract, section 2).

The database of a URL is not used: RedisPrep writes to 0, StatusMessenger publishes on 2. Of the query, `username`,
`password` and the five TLS options of `Tls` count; whatever else a URL says there tunes redis-py and is passed over,
for the budgets of this package set their own timeouts. An unknown `ssl_` option is an error: it may be the one that
was to make the connection safe.

A password is what the URL says, else the content of REDIS_PASSWORD_FILE, else REDIS_PASSWORD (contract, section 6).
It stands in no message, log line or repr of this package.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

CertReqs = Literal["required", "optional", "none"]
Resolver = Callable[[str], str]
RunIdResolver = Callable[[str], str | None]

_EXAMPLE = "redis://:password@wepp1:6379, with any of @ : / ? # % in the password percent-encoded"


@dataclass(frozen=True)
class Tls:
    """How `rediss://` checks the server and shows itself; named in the URL's query as redis-py names them."""

    ssl_cert_reqs: CertReqs = "required"
    ssl_check_hostname: bool = True
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None


@dataclass(frozen=True, repr=False)
class Address:
    """One Redis server; `str()` names it without user and password."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = None
    tls: Tls | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"<Address {self}>"

    def credentials(self) -> tuple[str, ...]:
        """The arguments of AUTH: `(username, password)`, `(password,)`, or `()` where none is needed."""
        if self.username:
            return (self.username, self.password or "")
        return (self.password,) if self.password else ()


_url: str | None = None
_resolver: Resolver | None = None
_run_id_resolver: RunIdResolver | None = None
_found: Address | None = None


def configure(
    url: str | None = None, *, resolver: Resolver | None = None, run_id_resolver: RunIdResolver | None = None
) -> None:
    """Tell the client where Redis is, and how run ids and working directories belong together.

    What is not given stays as it was. The environment and the password file are read again, so the next use of Redis
    is by the configuration of this moment.

    Args:
        url: `redis://`, `rediss://` or `unix://`; its database is not used.
        resolver: called with a run id, returns its working directory; `RedisPrep.getInstanceFromRunID` needs it.
        run_id_resolver: called with an absolute working directory, returns its run id, or None for its last part; for
            batch and nested runs, whose last parts are not unique.

    Raises:
        ValueError: the URL or the environment names no usable Redis.
        TypeError: a resolver cannot be called.
    """
    global _found, _resolver, _run_id_resolver, _url
    if resolver is not None and not callable(resolver):
        raise TypeError(f"configure(resolver=...) takes a function from run id to directory, not {resolver!r}")
    if run_id_resolver is not None and not callable(run_id_resolver):
        raise TypeError(
            f"configure(run_id_resolver=...) takes a function from directory to run id, not {run_id_resolver!r}"
        )
    found = _find(_url if url is None else url)
    _url = _url if url is None else url
    _resolver = resolver or _resolver
    _run_id_resolver = run_id_resolver or _run_id_resolver
    _found = found


def address() -> Address:
    """The Redis of this process, found at the first call and kept until `configure()`.

    Raises:
        ValueError: the environment names no usable Redis.
    """
    global _found
    if _found is None:
        _found = _find(_url)
    return _found


def working_directory(run_id: str) -> str:
    """The directory of a run, by the resolver that the host application gave.

    Raises:
        RuntimeError: no resolver was given.
    """
    if _resolver is None:
        raise RuntimeError(
            f"no working directory is known for run {run_id!r}: give the client a resolver first, "
            "client.configure(resolver=function_from_run_id_to_directory)"
        )
    return _resolver(run_id)


def resolved_run_id(wd: str) -> str | None:
    """The run id of an absolute working directory, by the resolver that the host application gave; None without one.

    Raises:
        TypeError: the resolver gave neither a str nor None.
    """
    found = _run_id_resolver(wd) if _run_id_resolver is not None else None
    if found is not None and not isinstance(found, str):
        raise TypeError(f"the run_id_resolver gave {found!r} for {wd}; it returns a run id, or None for the last part")
    return found or None


def _find(url: str | None) -> Address:
    if url is not None:
        return _parse(url, "configure(url=...)")
    if text := os.environ.get("REDIS_URL"):
        return _parse(text, "REDIS_URL")
    port = os.environ.get("REDIS_PORT") or "6379"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"REDIS_PORT={port!r} is no port; write a number from 1 to 65535, such as 6379")
    host = _host(os.environ.get("REDIS_HOST") or "localhost", "REDIS_HOST")
    return Address(host=host, port=int(port), password=_password_beside_url())


def _parse(url: str, source: str) -> Address:
    """Read a URL; errors name `source` and never quote the URL, which may hold a password in an unexpected place."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        port = parts.port if parts.port is not None else 6379
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{source} is no URL of Redis; an example is {_EXAMPLE}") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"{source} must start with redis://, rediss:// or unix://; an example is {_EXAMPLE}")
    if port == 0:
        raise ValueError(f"{source} names port 0; an example is {_EXAMPLE}")
    _check_shape(parts, source)
    tls = _tls(query, source)
    return Address(
        host=_host(unquote(parts.hostname or "localhost"), source),
        port=port,
        path=unquote(parts.path) if parts.scheme == "unix" else None,
        username=unquote(parts.username or "") or query.get("username") or None,
        password=unquote(parts.password or "") or query.get("password") or _password_beside_url(),
        tls=tls if parts.scheme == "rediss" else None,
    )


def _host(name: str, source: str) -> str:
    """The name, if one can ask for it: getaddrinfo raises UnicodeError, no OSError, for `wepp1..org`."""
    with contextlib.suppress(UnicodeError):
        with contextlib.suppress(LookupError):  # in the interpreter's last moments there is no such codec any more
            name.encode("idna")
        if not set(name) & set(" ,/"):  # of several servers this would be a name that nobody has
            return name
    raise ValueError(f"{source}: {name!r} is no host name; write one such as wepp1 or 10.0.0.7")


def _check_shape(parts: SplitResult, source: str) -> None:
    """Refuse what an unencoded password makes of a URL: `redis://:12/3@wepp1` would be port 12 of localhost."""
    if parts.fragment:
        raise ValueError(f"{source} has a '#' in it; an example is {_EXAMPLE}")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError(f"{source} names no socket; an example is unix:///run/redis/redis.sock")
    elif parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise ValueError(f"{source} has a path that is no database number; an example is {_EXAMPLE}")


def _tls(query: dict[str, str], source: str) -> Tls:
    known = Tls.__dataclass_fields__
    given = {name: value for name, value in query.items() if name.startswith("ssl_")}
    for name in given:
        if name not in known:
            raise ValueError(f"{source}: TLS option {name} is not known here; there are {', '.join(known)}")
    reqs = given.pop("ssl_cert_reqs", "required")
    if reqs not in ("required", "optional", "none"):
        raise ValueError(f"{source}: ssl_cert_reqs is required, optional or none, not {reqs!r}")
    check = given.pop("ssl_check_hostname", "true").lower()
    if check not in ("true", "yes", "1", "false", "no", "0"):
        raise ValueError(f"{source}: ssl_check_hostname is true or false, not {check!r}")
    # ssl.SSLContext refuses to check the name on a certificate that it does not check.
    named = check in ("true", "yes", "1") and reqs != "none"
    return Tls(ssl_cert_reqs=cast(CertReqs, reqs), ssl_check_hostname=named, **given)


def _password_beside_url() -> str | None:
    name = os.environ.get("REDIS_PASSWORD_FILE")
    if not name:
        return os.environ.get("REDIS_PASSWORD") or None
    try:
        password = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"REDIS_PASSWORD_FILE={name} cannot be read ({reason}); mend the path or the rights") from None
    if not password:
        raise ValueError(f"REDIS_PASSWORD_FILE={name} is empty; write the password into it or unset the variable")
    return password
