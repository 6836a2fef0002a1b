"""Settings from flags, environment and file: strict, told by name, secrets never shown (contract, section 6).

Each setting is a variable: `STATUS_` or `PREFLIGHT_` for one service, `RELAY_` for the process, and without prefix
only REDIS_URL, REDIS_HOST, REDIS_PORT, REDIS_PASSWORD and REDIS_PASSWORD_FILE. A flag is the same variable given on
the command line. Flags win over the environment, the environment over the file, and the file over the default; where
several variables say the same thing (a password and a password file), the strongest source that has any decides, and
within it the order of the contract.

The services this replaces fell back to a default when a value was malformed, and nobody noticed for months. Here a
malformed value ends the start with `ConfigError`, and a variable that looks like ours and is none is warned of. An
empty variable counts as not set (compose files pass `X=` for an unset `${X}`); an empty flag is taken literally.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from dotenv.parser import parse_stream
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from relay.errors import ConfigError

# --- values ------------------------------------------------------------------------------------------------
# Each parser takes the text of a variable, and raises ValueError with the part of the sentence that says what is wrong.

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
_MAX_INT = 2**31 - 1


def parse_duration(text: str) -> float:
    """Seconds of a Go duration (Go's `time.ParseDuration`): `500ms`, `1m30s`, `1.5h`, `0`; never negative.

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
    """A Go boolean (`strconv.ParseBool`)."""
    if text not in _TRUE + _FALSE:
        raise ValueError(f"is neither true ({', '.join(_TRUE)}) nor false ({', '.join(_FALSE)})")
    return text in _TRUE


def _positive_duration(text: str) -> float:
    if (seconds := parse_duration(text)) == 0:
        raise ValueError("must be longer than 0")
    return seconds


def _int(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise ValueError(f"is not a whole number from {low} to {high}, written in digits alone")
        return int(text)

    return parse


def _milliseconds(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or Decimal(text) > 1000:
        raise ValueError("is not a number of milliseconds from 0 to 1000, such as 20 or 2.5, without a unit")
    return Decimal(text)


def _level(text: str) -> str:
    if text.lower() not in _LEVELS:
        raise ValueError(f"is not a log level: {', '.join(_LEVELS)}")
    return _LEVELS[text.lower()]


def _origins(text: str) -> tuple[str, ...]:
    return tuple(_origin(part.strip()) for part in text.split(",")) if text else ()


def _origin(text: str) -> str:
    """One allowed origin as browsers send it: lower case, and without the port that is the scheme's own."""
    if match := re.fullmatch(r"\*\.(.+)", text):
        if _HOSTNAME.fullmatch(match[1]) and not match[1].endswith("."):
            return text.lower()
    elif match := re.fullmatch(r"(https?)://(\[[^]]+\]|[^:/?#@]+)(?::([0-9]{1,5}))?", text, re.IGNORECASE):
        scheme, host, port = match[1].lower(), match[2].lower(), match[3]
        if _is_host(host.strip("[]")) and (port is None or 1 <= int(port) <= 65535):
            usual = port is None or int(port) == {"http": 80, "https": 443}[scheme]
            return f"{scheme}://{host}" if usual else f"{scheme}://{host}:{int(port)}"
    raise ValueError(
        f"{text!r} is no origin: https://host, https://host:port or *.domain, separated by commas, "
        "without a path or a closing slash (leave it empty to allow any)"
    )


def _is_host(text: str) -> bool:
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
            return cls("fd", fd=_int(0, _MAX_INT)(text.removeprefix("fd:")))
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]*)):([0-9]{1,5})", text)
        if match is None:
            raise ValueError("is not host:port, :port, [IPv6]:port, unix:/path or fd:number")
        six, host, port = match.groups()
        if int(port) > 65535:
            raise ValueError("has a port above 65535")
        if (six and (":" not in six or not _is_host(six))) or (host and not _is_host(host)):
            raise ValueError("has a host that is neither a name nor an address")
        return cls("tcp", host=six or host or "", port=int(port))

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
        if port == 0 or (host and not _is_host(host)):
            raise ValueError("has no usable host and port")
        return replace(address, host=host or "localhost", port=port or 6379)

    def url(self) -> str:
        """The URL with the password in it, percent-encoded: for clients alone, never for a log."""
        return self._url(quote(self.password, safe="") if self.password else None)

    def __str__(self) -> str:
        return self._url("***" if self.password else None)

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


# --- the settings ------------------------------------------------------------------------------------------


def _from_text(parse: Callable[[str], Any]) -> BeforeValidator:
    """Texts are parsed; values made in code are taken as they are."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


Duration = Annotated[float, _from_text(parse_duration)]
PositiveDuration = Annotated[float, _from_text(_positive_duration)]
Bool = Annotated[bool, _from_text(parse_bool)]
Size = Annotated[int, _from_text(_int(1, 32 << 20))]  # a Redis reply over 32 MiB resets the link, so no frame is larger


class ServiceSettings(BaseModel, frozen=True, extra="forbid"):
    """Settings of one service, `STATUS_*` or `PREFLIGHT_*`; durations in seconds, sizes in bytes."""

    name: Literal["status", "preflight"]
    listen: Annotated[ListenAddress, _from_text(ListenAddress.parse)] = Field(examples=[":9002"])
    redis: RedisAddress
    ping_interval: PositiveDuration = 10.0
    pong_timeout: PositiveDuration = 75.0
    write_timeout: PositiveDuration = 10.0
    redis_request_timeout: PositiveDuration = 5.0
    redis_retry_base: PositiveDuration = 0.05
    redis_retry_max: PositiveDuration = 1.0
    redis_max_retries: Annotated[int, _from_text(_int(0, _MAX_INT))] = 0
    log_level: Annotated[str, _from_text(_level)] = Field(default="INFO", examples=["info"])
    allowed_origins: Annotated[tuple[str, ...], _from_text(_origins)] = Field(
        default=(), examples=["https://wepp.cloud"]
    )
    metrics_enabled: Bool = False
    max_message_size: Size = 65536


class ProcessSettings(BaseModel, frozen=True, extra="forbid"):
    """Settings of the whole process, `RELAY_*`; durations in seconds, sizes in bytes, what is named so in ms."""

    coalesce_ms: Annotated[Decimal, _from_text(_milliseconds)] = Decimal(0)
    drain: Duration = 10.0
    drain_delay: Duration = 0.0
    max_published_size: Size = 1 << 20
    max_connections: Annotated[int | None, _from_text(_int(1, _MAX_INT))] = Field(default=None, examples=["10000"])
    set_keyspace_events: Bool = False


class Settings(ProcessSettings):
    """All settings of a process; a service that is not served is None.

    `warnings` are sentences about variables that look like ours and are none, and about values that do not go
    together; `sources` says of each variable that is not at its default where it came from.
    """

    status: ServiceSettings | None = None
    preflight: ServiceSettings | None = None
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str] = {}

    @property
    def services(self) -> tuple[ServiceSettings, ...]:
        """Those that are served, status first."""
        return tuple(service for service in (self.status, self.preflight) if service is not None)


# --- reading -----------------------------------------------------------------------------------------------

_DEFAULTS = {"status": (":9002", 2), "preflight": (":9001", 0)}  # listen address, database (contract, section 6)
_SHARED = ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE")
_PREFIXED = ("REDIS_URL", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE")
# Of setup.py, where a Dockerfile may leave them set; the last is the twin of --env-file.
_BUILD = ("RELAY_BUILD", "RELAY_REQUIRE_CORE", "RELAY_ENV_FILE")


class _Layer(NamedTuple):
    source: str  # "flag", "environment" or "file"
    values: Mapping[str, str]


class _Found(NamedTuple):
    name: str
    text: str
    source: str


class _Layered(BaseSettings):
    """Built from `layers`, dictionaries of field -> text, strongest first, and from nothing else around it."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """pydantic-settings' hook: one source for each layer, instead of os.environ and a file read unseen."""
        assert isinstance(init_settings, InitSettingsSource)
        return tuple(InitSettingsSource(settings_cls, layer) for layer in init_settings.init_kwargs["layers"])


class _ServiceVariables(ServiceSettings, _Layered):
    pass


class _ProcessVariables(ProcessSettings, _Layered):
    pass


def load(
    services: Iterable[str] = ("status", "preflight"),
    *,
    flags: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    env_file: Path | None = None,
) -> Settings:
    """The settings of `services` from flags, environment and file.

    Args:
        services: "status", "preflight" or both; the variables of the others are not looked at.
        flags: what the command line gave, by the name of the variable.
        env: os.environ, unless given.
        env_file: a file of `NAME=value` lines.

    Raises:
        ConfigError: a value is malformed, or a file cannot be read; one sentence without secrets.
    """
    layers = [
        _Layer("flag", flags or {}),
        _Layer("environment", _without_empty(os.environ if env is None else env)),
        _Layer("file", _without_empty(_read_env_file(env_file)) if env_file else {}),
    ]
    sources: dict[str, str] = {}
    read = {name: _service(name, layers, sources) for name in ("status", "preflight") if name in services}
    settings = Settings(
        **read, **_read(_ProcessVariables, "RELAY_", layers, sources), warnings=tuple(_unknown(layers)), sources=sources
    )
    listens = [service.listen for service in settings.services]
    if len(listens) == 2 and listens[0] == listens[1] and (listens[0].kind != "tcp" or listens[0].port):
        raise ConfigError(
            f"STATUS_LISTEN_ADDR and PREFLIGHT_LISTEN_ADDR are both {listens[0]}: give each service an address of its "
            "own, for example STATUS_LISTEN_ADDR=:9002 and PREFLIGHT_LISTEN_ADDR=:9001"
        )
    return settings.model_copy(update={"warnings": (*settings.warnings, *_at_odds(settings))})


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """Rows (variable, value as it would be written, source) of all settings; secrets are `***`."""
    rows = []
    for service in settings.services:
        prefix = f"{service.name.upper()}_"
        rows += [(_variable(prefix, name), _text(value)) for name, value in service if name != "name"]
        rows.append((f"{prefix}REDIS_PASSWORD", "***" if service.redis.password else ""))
    rows += [(_variable("RELAY_", name), _text(getattr(settings, name))) for name in ProcessSettings.model_fields]
    return [(name, text, settings.sources.get(name, "default")) for name, text in rows]


def _service(name: str, layers: list[_Layer], sources: dict[str, str]) -> ServiceSettings:
    listen, db = _DEFAULTS[name]
    prefix = f"{name.upper()}_"
    given = {"name": name, "redis": _redis(prefix, layers, db, sources)}
    return ServiceSettings(**_read(_ServiceVariables, prefix, layers, sources, given, {"listen": listen}))


def _read(
    model: type[_ServiceVariables] | type[_ProcessVariables],
    prefix: str,
    layers: list[_Layer],
    sources: dict[str, str],
    given: Mapping[str, Any] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The fields of `model` by name, from the variables that bear its prefix; notes where each came from."""
    variables = {name: _variable(prefix, name) for name in model.model_fields if name not in (given or {})}
    texts = [{name: layer.values[v] for name, v in variables.items() if v in layer.values} for layer in layers]
    found = {name: hit for name, v in variables.items() if (hit := _first(layers, v))}
    sources.update({hit.name: hit.source for hit in found.values()})
    try:
        return dict(model(layers=[given or {}, *texts, defaults or {}]))  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        example = (model.model_fields[name].examples or [_text(model.model_fields[name].default)])[0]
        raise _malformed(found[name], str(first["ctx"]["error"]), example) from None


def _redis(prefix: str, layers: list[_Layer], db: int, sources: dict[str, str]) -> RedisAddress:
    """The address of a service's Redis, with its password (order: contract, section 6)."""
    found = _first(layers, f"{prefix}REDIS_URL", "REDIS_URL", "REDIS_HOST", "REDIS_PORT")
    if found is None:
        address = RedisAddress(db=db)
    else:
        sources[f"{prefix}REDIS_URL"] = found.source
        address = _redis_from_url(found, db) if found.name.endswith("URL") else _redis_from_host(layers, db)
    if address.password:
        sources[f"{prefix}REDIS_PASSWORD"] = sources[f"{prefix}REDIS_URL"]
        return address
    names = (f"{prefix}REDIS_PASSWORD_FILE", "REDIS_PASSWORD_FILE", f"{prefix}REDIS_PASSWORD", "REDIS_PASSWORD")
    found = _first(layers, *names)
    if found is None:
        return address
    sources[f"{prefix}REDIS_PASSWORD"] = found.source
    return replace(address, password=_password_of_file(found) if found.name.endswith("FILE") else found.text)


def _redis_from_url(found: _Found, db: int) -> RedisAddress:
    """Of the URL all services share the database is replaced; one service's own URL may name another."""
    try:
        return RedisAddress.parse(found.text, db, keep_db=found.name != "REDIS_URL")
    except ValueError as error:
        raise _malformed(
            found._replace(text=_without_secrets(found.text)), str(error), f"redis://localhost:6379/{db}"
        ) from None


def _without_secrets(url: str) -> str:
    """A malformed Redis URL as it may be shown: all before the last @ may be a password, and more than one thinks."""
    scheme, rest = re.fullmatch(r"(?is)([a-z][a-z0-9+.-]*://)?(.*)", url).groups("")  # type: ignore[union-attr]
    rest = re.sub(r"(?s)^.*@", "***@", rest)
    rest = re.sub(r"(?s)^([^@:/\[]*):(?![0-9]+([/?,]|$)).*", r"\1:***", rest)  # redis://:secret, the host forgotten
    return scheme + re.sub(r"(?is)(password=)[^&]*", r"\1***", rest)


def _redis_from_host(layers: list[_Layer], db: int) -> RedisAddress:
    # Looked at only where no URL is given: Kubernetes puts REDIS_PORT=tcp://10.0.0.1:6379 into every container
    # beside a service named redis.
    host, port = _first(layers, "REDIS_HOST"), _first(layers, "REDIS_PORT")
    if host and not _is_host(host.text):
        raise _malformed(host, "is neither a name nor an address; the port goes into REDIS_PORT", "wepp1")
    try:
        number = _int(1, 65535)(port.text) if port else 6379
    except ValueError as error:
        assert port
        raise _malformed(port, str(error), "6379") from None
    return RedisAddress(host=host.text if host else "localhost", port=number, db=db)


def _password_of_file(found: _Found) -> str:
    try:
        password = Path(found.text).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise _malformed(found, f"the file cannot be read ({what})", "/run/secrets/redis_password") from None
    if not password:
        raise _malformed(found, "the file is empty, and must hold the password", "/run/secrets/redis_password")
    return password


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(
            f"the settings file {str(path)!r} cannot be read ({what}): check its name and rights"
        ) from None
    for binding in bindings:
        if binding.error or (binding.key and binding.value is None):  # the line itself may hold a secret
            line = binding.original.line
            raise ConfigError(f"{path}, line {line} is not NAME=value; right is for example STATUS_PING_INTERVAL=10s")
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}


def _first(layers: list[_Layer], *names: str) -> _Found | None:
    """The first of `names` in the strongest layer that has any of them."""
    for layer in layers:
        for name in names:
            if name in layer.values:
                return _Found(name, layer.values[name], layer.source)
    return None


def _without_empty(values: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in values.items() if text}


def _variable(prefix: str, name: str) -> str:
    return prefix + {"listen": "LISTEN_ADDR", "redis": "REDIS_URL"}.get(name, name.upper())


def _text(value: object) -> str:
    """A value as it is written in a variable."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return duration_text(value)
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


def _malformed(found: _Found, what: str, example: str) -> ConfigError:
    where = {"flag": " on the command line", "environment": "", "file": " in the settings file"}[found.source]
    shown = found.text if len(found.text) <= 200 else f"{found.text[:200]}..."
    return ConfigError(f"{found.name}={shown!r}{where}: {what}; right is for example {found.name}={example}")


def _unknown(layers: list[_Layer]) -> Iterable[str]:
    """A sentence for each variable that looks like ours and is none: a typo leaves a default in force unseen."""
    known = {*_SHARED, *(_variable("RELAY_", name) for name in ProcessSettings.model_fields)}
    for prefix in ("STATUS_", "PREFLIGHT_"):
        fields = [name for name in ServiceSettings.model_fields if name not in ("name", "redis")]
        known |= {*(_variable(prefix, name) for name in fields), *(prefix + name for name in _PREFIXED)}
    for name in sorted({name for layer in layers for name in layer.values} - known):
        prefix, _, rest = name.upper().partition("_")
        if not rest or prefix not in ("STATUS", "PREFLIGHT", "RELAY", "REDIS"):
            continue
        if name in _BUILD or name.startswith("RELAY_TEST_"):
            continue
        ours = [right.removeprefix(f"{prefix}_") for right in sorted(known) if right.startswith(f"{prefix}_")]
        if nearest := difflib.get_close_matches(rest, ours, 1):
            yield f"{name} is not a setting and has no effect; did you mean {prefix}_{nearest[0]}?"
        elif prefix != "REDIS":  # other programs have REDIS_* variables of their own
            yield f"{name} is not a setting and has no effect; `relay config show` lists all settings"


def _at_odds(settings: Settings) -> Iterable[str]:
    for service in settings.services:
        if service.pong_timeout <= service.ping_interval:
            prefix = f"{service.name.upper()}_"
            yield (
                f"{prefix}PONG_TIMEOUT={duration_text(service.pong_timeout)} is not longer than {prefix}PING_INTERVAL="
                f"{duration_text(service.ping_interval)}: clients are closed before they had a ping to answer"
            )
