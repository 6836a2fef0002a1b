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
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from dotenv.parser import parse_stream
from pydantic import BaseModel, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from relay.errors import ConfigError
from relay.tokens import secrets_of
from relay.values import (
    MAX_INT,
    ListenAddress,
    Proxies,
    RedisAddress,
    duration_between,
    duration_text,
    is_host,
    level,
    milliseconds,
    origins,
    parse_bool,
    parse_duration,
    positive_duration,
    public_url,
    whole,
    worker_count,
)

# --- the settings ------------------------------------------------------------------------------------------


def _from_text(parse: Callable[[str], Any]) -> BeforeValidator:
    """Texts are parsed; values made in code are taken as they are."""

    @wraps(parse)
    def validate(value: Any) -> Any:
        return parse(value) if isinstance(value, str) else value

    return BeforeValidator(validate)


Duration = Annotated[float, _from_text(parse_duration)]
PositiveDuration = Annotated[float, _from_text(positive_duration)]
Bool = Annotated[bool, _from_text(parse_bool)]
Size = Annotated[
    int, _from_text(whole(1, 32 << 20))
]  # a Redis reply over 32 MiB resets the link, so no frame is larger
_AROUND = 4096  # bytes that Redis puts around a message at most, the name of its channel included

PublicUrl = Annotated[str | None, _from_text(public_url)]
OptionalAddress = Annotated[ListenAddress | None, _from_text(ListenAddress.parse)]


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
    redis_max_retries: Annotated[int, _from_text(whole(0, MAX_INT))] = Field(default=0, examples=["100"])
    log_level: Annotated[str, _from_text(level)] = Field(default="INFO", examples=["info"])
    allowed_origins: Annotated[tuple[str, ...], _from_text(origins)] = Field(
        default=(), examples=["https://wepp.cloud"]
    )
    metrics_enabled: Bool = Field(default=False, examples=["true"])
    max_message_size: Size = 65536


class ProcessSettings(BaseModel, frozen=True, extra="forbid"):
    """Settings of the whole process, `RELAY_*`; durations in seconds, sizes in bytes, what is named so in ms."""

    workers: Annotated[int, _from_text(worker_count)] = Field(default=1, examples=["auto"])
    coalesce_ms: Annotated[Decimal, _from_text(milliseconds)] = Field(default=Decimal(0), examples=["20"])
    drain: Duration = 10.0
    drain_delay: Duration = Field(default=0.0, examples=["3s"])
    max_published_size: Size = 1 << 20
    max_connections: Annotated[int | None, _from_text(whole(1, MAX_INT))] = Field(default=None, examples=["10000"])
    # Bounds (docs/architecture.md, docs/metrics.md). 64 KiB is one read of a client, 128 headers what the judge of
    # requests reads, 6553 frames what a client's slot can count, and a healthy client may answer with several at once.
    max_head_size: Annotated[int, _from_text(whole(1024, 65536))] = 8192
    max_headers: Annotated[int, _from_text(whole(16, 128))] = 64
    head_timeout: Annotated[float, _from_text(duration_between(1, 600))] = 5.0
    max_heads: Annotated[int, _from_text(whole(16, 1 << 20))] = 1024
    max_fragments: Annotated[int, _from_text(whole(1, MAX_INT))] = 64
    frame_rate: Annotated[int, _from_text(whole(1, 100_000))] = 20
    frame_burst: Annotated[int, _from_text(whole(10, 6553))] = 100
    max_inbound: Annotated[int, _from_text(whole(1 << 20, 1 << 40))] = 64 << 20
    max_backlog: Annotated[int, _from_text(whole(4096, 1 << 30))] = 256 << 10
    max_live: Annotated[int, _from_text(whole(1 << 20, 1 << 40))] = 256 << 20
    max_reply_size: Annotated[int, _from_text(whole(65536, 1 << 30))] = 32 << 20
    max_topics: Annotated[int, _from_text(whole(1, 10_000_000))] = 100_000
    # Who a client is (relay/addresses.py).
    trusted_proxies: Annotated[Proxies, _from_text(Proxies.parse)] = Field(
        default=Proxies(), examples=["127.0.0.1,10.0.0.0/8,unix"]
    )
    proxy_protocol: Bool = Field(default=False, examples=["true"])
    max_per_address: Annotated[int | None, _from_text(whole(1, MAX_INT))] = Field(default=None, examples=["100"])
    set_keyspace_events: Bool = Field(default=False, examples=["true"])
    internal_addr: OptionalAddress = Field(default=None, examples=["unix:/run/relay/internal.sock"])
    metrics_addr: OptionalAddress = Field(default=None, examples=["127.0.0.1:9090"])
    token_secret: SecretStr | None = None
    publish: Bool = Field(default=False, examples=["true"])
    # The page at /, and where it finds the services: of a browser's view, through whatever proxies there are.
    page: Bool = Field(default=True, examples=["false"])
    status_public_url: PublicUrl = Field(default=None, examples=["wss://wepp.cloud/weppcloud-microservices/status"])
    preflight_public_url: PublicUrl = Field(
        default=None, examples=["wss://wepp.cloud/weppcloud-microservices/preflight"]
    )


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

    @property
    def addresses(self) -> dict[str, ListenAddress]:
        """Where the process listens, by the variable that says so."""
        found = {f"{service.name.upper()}_LISTEN_ADDR": service.listen for service in self.services}
        own = {"RELAY_INTERNAL_ADDR": self.internal_addr, "RELAY_METRICS_ADDR": self.metrics_addr}
        return found | {name: address for name, address in own.items() if address}


# --- reading -----------------------------------------------------------------------------------------------

_DEFAULTS = {"status": (":9002", 2), "preflight": (":9001", 0)}  # listen address, database (contract, section 6)
_EXAMPLES = {
    "STATUS_LISTEN_ADDR": ":9002",
    "PREFLIGHT_LISTEN_ADDR": ":9001",
    "RELAY_INTERNAL_ADDR": "unix:/run/relay/internal.sock",
    "RELAY_METRICS_ADDR": "127.0.0.1:9090",
}
_SHARED = ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE")
_PREFIXED = ("REDIS_URL", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE")
# Of setup.py, where a Dockerfile may leave them set; the last two are the twins of --env-file and --token.
_BUILD = ("RELAY_BUILD", "RELAY_REQUIRE_CORE", "RELAY_ENV_FILE", "RELAY_TOKEN")


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
        ConfigError: values are malformed, or a file cannot be read; a line for each, without secrets.
    """
    layers = [
        _Layer("flag", flags or {}),
        _Layer("environment", _without_empty(os.environ if env is None else env)),
        _Layer("file", _without_empty(_read_env_file(env_file)) if env_file else {}),
    ]
    sources: dict[str, str] = {}
    mistakes: list[str] = []
    read: dict[str, Any] = {}
    for name in ("status", "preflight"):
        if name in services:
            with _noted(mistakes):
                read[name] = _service(name, layers, sources)
    secret: dict[str, Any] = {"token_secret": None}
    with _noted(mistakes):
        secret["token_secret"] = _token_secret(layers, sources)
    with _noted(mistakes):
        read |= _read(_ProcessVariables, "RELAY_", layers, sources, secret)
    _refuse(mistakes)
    settings = Settings(**read, warnings=tuple(_unknown(layers)), sources=sources)
    _refuse(list(_impossible(settings)))
    return settings.model_copy(update={"warnings": (*settings.warnings, *_at_odds(settings))})


@contextmanager
def _noted(mistakes: list[str]) -> Iterator[None]:
    """Who has three settings to mend is told of all three at once."""
    try:
        yield
    except ConfigError as error:
        mistakes += str(error).splitlines()


def _refuse(mistakes: list[str]) -> None:
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))  # what both services share is said once


def _impossible(settings: Settings) -> Iterable[str]:
    """A sentence for all that is right by itself, and cannot be together."""
    for (one, here), (other, there) in combinations(settings.addresses.items(), 2):
        if here.overlaps(there):
            are = f"are both {here}" if here == there else f"share a port, {here} and {there}"
            yield (
                f"{one} and {other} {are}: give each an address of its own, for example "
                f"{one}={_EXAMPLES[one]} and {other}={_EXAMPLES[other]}"
            )
    if settings.proxy_protocol and not settings.trusted_proxies:
        yield (
            "RELAY_PROXY_PROTOCOL is set and RELAY_TRUSTED_PROXIES is not: a PROXY header is believed from those alone;"
            " right is for example RELAY_TRUSTED_PROXIES=127.0.0.1,unix"
        )
    if settings.publish and not settings.token_secret:
        yield (
            "RELAY_PUBLISH is set and RELAY_TOKEN_SECRET is not: whoever can reach the relay could publish; set "
            "RELAY_TOKEN_SECRET_FILE to a file that holds what `openssl rand -hex 32` prints"
        )
    if settings.max_published_size + _AROUND > settings.max_reply_size:
        yield (
            f"RELAY_MAX_PUBLISHED_SIZE={settings.max_published_size} does not fit into RELAY_MAX_REPLY_SIZE="
            f"{settings.max_reply_size} with what Redis puts around it, and would break the link; right is for example "
            f"RELAY_MAX_REPLY_SIZE={settings.max_published_size + 65536}"
        )


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """Rows (variable, value as it would be written, source) of all settings; secrets are `***`."""
    rows = []
    for service in settings.services:
        prefix = f"{service.name.upper()}_"
        rows += [(_variable(prefix, name), _text(value)) for name, value in service if name != "name"]
        rows.append((f"{prefix}REDIS_PASSWORD", "***" if service.redis.password else ""))
    rows += [(_variable("RELAY_", name), _text(getattr(settings, name))) for name in ProcessSettings.model_fields]
    return [(name, text, settings.sources.get(name, "default")) for name, text in rows]


def example(field: FieldInfo) -> str:
    """A value that is right, for the sentence about one that is not; the default where the field names no other."""
    return str((field.examples or [_text(field.default)])[0])


def _service(name: str, layers: list[_Layer], sources: dict[str, str]) -> ServiceSettings:
    listen, db = _DEFAULTS[name]
    prefix = f"{name.upper()}_"
    mistakes: list[str] = []
    given: dict[str, Any] = {"name": name, "redis": RedisAddress(db=db)}
    with _noted(mistakes):
        given["redis"] = _redis(prefix, layers, db, sources)
    read: dict[str, Any] = {}
    with _noted(mistakes):
        read = _read(_ServiceVariables, prefix, layers, sources, given, {"listen": listen})
    _refuse(mistakes)
    return ServiceSettings(**read)


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
        wrong = [(str(each["loc"][0]), str(each["ctx"]["error"])) for each in error.errors()]
        mistakes = [str(_malformed(found[name], what, example(model.model_fields[name]))) for name, what in wrong]
        raise ConfigError("\n".join(mistakes)) from None


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
    return replace(address, password=_secret_of(found, "password", "/run/secrets/redis_password"))


def _redis_from_url(found: _Found, db: int) -> RedisAddress:
    """Of the URL all services share the database is replaced; one service's own URL may name another."""
    try:
        return RedisAddress.parse(found.text, db, keep_db=found.name != "REDIS_URL")
    except ValueError as error:
        example = "redis://localhost:6379" if found.name == "REDIS_URL" else f"redis://localhost:6379/{db}"
        raise _malformed(found._replace(text=_without_secrets(found.text)), str(error), example) from None


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
    if host and not is_host(host.text):
        raise _malformed(host, "is neither a name nor an address; the port goes into REDIS_PORT", "wepp1")
    try:
        number = whole(1, 65535)(port.text) if port else 6379
    except ValueError as error:
        assert port
        raise _malformed(port, str(error), "6379") from None
    return RedisAddress(host=host.text if host else "localhost", port=number, db=db)


def _token_secret(layers: list[_Layer], sources: dict[str, str]) -> SecretStr | None:
    found = _first(layers, "RELAY_TOKEN_SECRET_FILE", "RELAY_TOKEN_SECRET")
    if found is None:
        return None
    sources["RELAY_TOKEN_SECRET"] = found.source
    secret = _secret_of(found, "secret", "/run/secrets/relay_token")
    try:
        secrets_of(secret)
    except ValueError as error:
        in_file = found.name.endswith("_FILE")
        shown, example = (found.text, "/run/secrets/relay_token") if in_file else ("***", "$(openssl rand -hex 32)")
        raise _malformed(found._replace(text=shown), str(error), example) from None
    return SecretStr(secret)


def _secret_of(found: _Found, what: str, example: str) -> str:
    """The value itself, or what the file holds that it names."""
    if not found.name.endswith("_FILE"):
        return found.text
    try:
        secret = Path(found.text).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise _malformed(found, f"the file cannot be read ({why})", example) from None
    if not secret:
        raise _malformed(found, f"the file is empty, and must hold the {what}", example)
    return secret


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
                text = layer.values[name]
                if any("\ud800" <= letter <= "\udfff" for letter in text):  # not shown: it may be a password
                    raise ConfigError(f"{name} is no UTF-8 text: write it anew, Redis and the relay read it as UTF-8")
                return _Found(name, text, layer.source)
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
    if isinstance(value, SecretStr):
        return "***"
    return "" if value is None else str(value)


def _malformed(found: _Found, what: str, example: str) -> ConfigError:
    where = {"flag": " on the command line", "environment": "", "file": " in the settings file"}[found.source]
    shown = found.text if len(found.text) <= 200 else f"{found.text[:200]}..."
    return ConfigError(f"{found.name}={shown!r}{where}: {what}; right is for example {found.name}={example}")


def _unknown(layers: list[_Layer]) -> Iterable[str]:
    """A sentence for each variable that looks like ours and is none: a typo leaves a default in force unseen."""
    known = {*_SHARED, "RELAY_TOKEN_SECRET_FILE", *(_variable("RELAY_", name) for name in ProcessSettings.model_fields)}
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
        if settings.frame_rate * service.ping_interval < 2:
            yield (
                f"RELAY_FRAME_RATE={settings.frame_rate} is less than the two pongs with which a client may answer "
                f"each {service.name.upper()}_PING_INTERVAL={duration_text(service.ping_interval)}: healthy clients "
                "are closed"
            )
        if 2 * service.max_message_size > settings.max_inbound:
            yield (
                f"{service.name.upper()}_MAX_MESSAGE_SIZE={service.max_message_size} is more than half of "
                f"RELAY_MAX_INBOUND={settings.max_inbound}: one message may end the client that sends it"
            )
    sockets = [service for service in settings.services if service.listen.kind == "unix"]
    if settings.max_per_address and sockets and not settings.trusted_proxies.unix:
        yield (
            f"RELAY_MAX_PER_ADDRESS={settings.max_per_address} bounds nobody on {sockets[0].listen}: a Unix socket's "
            "peers have no address. RELAY_TRUSTED_PROXIES=unix takes the one that the proxy reports"
        )
    if 6 * settings.max_published_size > settings.max_live:  # a NUL becomes six bytes of JSON
        yield (
            f"RELAY_MAX_LIVE={settings.max_live} is less than one message of RELAY_MAX_PUBLISHED_SIZE="
            f"{settings.max_published_size} may take: such a message may end all clients of its channel"
        )
