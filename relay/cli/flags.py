"""The flags of the settings, one table: each is exactly its environment twin, and wins over it.

A flag of `SERVICE` sets STATUS_<variable> and PREFLIGHT_<variable>, or only that of the one service served; a flag of
`PROCESS` sets RELAY_<variable> (contract, section 6; the names are uvicorn's where uvicorn has one). No value is
judged here: `relay.settings` does that for command line, environment and file alike, in the same words.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Flag(NamedTuple):
    """One setting on the command line."""

    variable: str  # the environment twin, without its prefix
    metavar: str  # what the value looks like; empty for a switch
    help: str

    @property
    def name(self) -> str:
        """What is typed: PING_INTERVAL is `--ping-interval`."""
        return "--" + self.variable.lower().replace("_", "-")


SERVICE = (
    Flag("REDIS_URL", "URL", "Redis: redis://, rediss:// (TLS) or unix://. A password is better kept in a file."),
    Flag("LOG_LEVEL", "LEVEL", "DEBUG, INFO, WARNING or ERROR."),
    Flag("ALLOWED_ORIGINS", "LIST", "Origins let in, separated by commas; *.domain for all of a domain."),
    Flag("METRICS_ENABLED", "", "Answer /metrics."),
    Flag("PING_INTERVAL", "DURATION", "Time between two heartbeats to a client."),
    Flag("PONG_TIMEOUT", "DURATION", "Silence after which a client is given up."),
    Flag("WRITE_TIMEOUT", "DURATION", "Age at which an unsent byte ends a slow client."),
    Flag("MAX_MESSAGE_SIZE", "BYTES", "Longest message taken from a client."),
    Flag("REDIS_REQUEST_TIMEOUT", "DURATION", "Deadline of a Redis command."),
    Flag("REDIS_RETRY_BASE", "DURATION", "First upper bound of the wait before reconnecting to Redis."),
    Flag("REDIS_RETRY_MAX", "DURATION", "Last upper bound of that wait."),
    Flag("REDIS_MAX_RETRIES", "N", "Give up after N attempts, with exit code 4; 0 is never."),
)
PROCESS = (
    Flag("WORKERS", "N|auto", "Processes that serve, behind one supervisor; auto: one for each processor."),
    Flag("COALESCE_MS", "MS", "Longest wait of a message for others of its channel, in ms; 0 is none."),
    Flag("DRAIN", "DURATION", "Time over which clients are sent away when the relay ends."),
    Flag("DRAIN_DELAY", "DURATION", "Time between /readyz saying 503 and the end of accepting."),
    Flag("MAX_CONNECTIONS", "N", "Most connections at a time; unset: what the file limit allows."),
    Flag("MAX_PUBLISHED_SIZE", "BYTES", "Longest published message passed on."),
    Flag("MAX_HEAD_SIZE", "BYTES", "Longest request head."),
    Flag("MAX_HEADERS", "N", "Most headers of a request."),
    Flag("HEAD_TIMEOUT", "DURATION", "Time within which a request head must be complete."),
    Flag("MAX_HEADS", "N", "Most request heads that are not complete; the oldest is dropped for one more."),
    Flag("MAX_FRAGMENTS", "N", "Most fragments of a message from a client."),
    Flag("FRAME_RATE", "N", "Frames a second that a client may send."),
    Flag("FRAME_BURST", "N", "Frames that it may send at once."),
    Flag("MAX_INBOUND", "BYTES", "Most memory for heads and messages of all clients that are not complete."),
    Flag("MAX_BACKLOG", "BYTES", "Most that waits for one slow client."),
    Flag("MAX_LIVE", "BYTES", "Most memory for frames that wait, of all clients."),
    Flag("MAX_REPLY_SIZE", "BYTES", "Longest reply of Redis; with a longer one the connection is made anew."),
    Flag("MAX_TOPICS", "N", "Most runs and channels watched at a time."),
    Flag("INTERNAL_ADDR", "ADDR", "Listener for operators: host:port, unix:/path or fd:N; none without it."),
    Flag("METRICS_ADDR", "ADDR", "Listener that /metrics moves to."),
    Flag("TOKEN_SECRET_FILE", "FILE", "Ask clients for a token signed with the secret in this file."),
    Flag("TRUSTED_PROXIES", "LIST", "Proxies believed who their clients are: addresses, networks, unix."),
    Flag("PROXY_PROTOCOL", "", "Connections of trusted proxies begin with a PROXY header."),
    Flag("MAX_PER_ADDRESS", "N", "Most websockets of one address (IPv6: /64); unset: any number."),
    Flag("PUBLISH", "", "Publish what is sent by POST with a token for that (relay token --publish)."),
    Flag("PAGE", "", "Serve the page at / and /run/<run>; on by default."),
    Flag("STATUS_PUBLIC_URL", "URL", "Where browsers find status; unset: the page's own host, by status' port."),
    Flag("PREFLIGHT_PUBLIC_URL", "URL", "Where browsers find preflight; unset: likewise."),
    Flag("SET_KEYSPACE_EVENTS", "", "Set Redis's notify-keyspace-events where it is missing."),
)
ENV_FILE = click.option(
    "--env-file", envvar="RELAY_ENV_FILE", metavar="FILE", help="Read NAME=value lines; the environment wins over them."
)


def options(command: Command) -> Command:
    """Give a command every flag of both tables and `--env-file`; it gets them by the names of their variables."""
    command = ENV_FILE(command)
    for prefix, flags in (("RELAY_", PROCESS), ("{STATUS,PREFLIGHT}_", SERVICE)):
        for flag in reversed(flags):
            command = _option(flag, prefix)(command)
    return command


def _option(flag: Flag, prefix: str) -> Callable[[Command], Command]:
    said = f"{flag.help}  [env: {prefix}{flag.variable}]"
    if flag.metavar:
        return click.option(flag.name, flag.variable, metavar=flag.metavar, help=said)
    return click.option(f"{flag.name}/--no-{flag.name[2:]}", flag.variable, default=None, help=said)


def environment(services: Sequence[str], given: Mapping[str, object]) -> dict[str, str]:
    """The environment that says what the flags say.

    Args:
        services: "status", "preflight" or both: whom the flags of `SERVICE` are for.
        given: variable -> value of each flag; None where it was not given.

    Returns:
        Names and values as `relay.settings.load` takes them in `flags`. A `--redis-url` for both services is the
        common REDIS_URL, whose database each replaces by its own.
    """
    prefixes = {flag.variable: [f"{service.upper()}_" for service in services] for flag in SERVICE}
    prefixes |= {flag.variable: ["RELAY_"] for flag in PROCESS}
    if len(services) > 1:
        prefixes["REDIS_URL"] = [""]
    return {
        prefix + variable: _text(value)
        for variable, value in given.items()
        if value is not None
        for prefix in prefixes[variable]
    }


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
