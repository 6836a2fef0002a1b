"""`relay serve`: the flags, made into settings, and the server run on them."""

import os
import sys
from pathlib import Path

import click

from relay.cli import core, flags
from relay.cli.examples import ExampleCommand

SERVICES = ("status", "preflight")


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay serve",
        "relay serve --redis-url redis://wepp1:6379 --log-level WARNING",
        "relay serve --workers auto",
        "relay serve status --host 127.0.0.1 --port 8002",
        "relay serve preflight --uds /run/relay/preflight.sock",
        "STATUS_REDIS_URL=rediss://relay@wepp1/2 REDIS_PASSWORD_FILE=/run/secrets/redis relay serve status",
    ),
)
@click.argument("service", required=False, type=click.Choice(SERVICES))
@click.option("--host", help="Address to listen on; all addresses without it.  [with SERVICE]")
@click.option("--port", type=click.IntRange(0, 65535), help="9002 for status, 9001 for preflight.  [with SERVICE]")
@click.option("--uds", metavar="PATH", help="Listen on a Unix socket instead.  [with SERVICE]")
@click.option("--fd", type=click.IntRange(0), help="Listen on an inherited file descriptor instead.  [with SERVICE]")
@click.option("--status-listen-addr", metavar="ADDR", help="host:port, unix:/path, fd:N.  [env: STATUS_LISTEN_ADDR]")
@click.option("--preflight-listen-addr", metavar="ADDR", help="The same.  [env: PREFLIGHT_LISTEN_ADDR]")
@flags.options
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    service: str | None,
    host: str | None,
    port: int | None,
    uds: str | None,
    fd: int | None,
    status_listen_addr: str | None,
    preflight_listen_addr: str | None,
    env_file: str | None,
    **given: object,
) -> None:
    """Serve status and preflight, or one of them.

    Without an argument both, in one process, or in several (--workers). Ends on SIGTERM and SIGINT, telling its
    clients; a second one ends it at once. With several, SIGHUP replaces them one by one, SIGTTIN and SIGTTOU make one
    more or less. Durations are written as in Go: 500ms, 10s, 1m30s. Exit codes: 3 a malformed setting, 4 Redis given
    up, 5 an address that cannot be listened on, 6 the server extra or the compiled core is missing.
    """
    services = (service,) if service else SERVICES
    twins = flags.environment(services, given)
    addresses = {"status": status_listen_addr, "preflight": preflight_listen_addr}
    for name, address in addresses.items():
        if address is not None:
            if name not in services:
                raise click.UsageError(f"--{name}-listen-addr: `relay serve {service}` does not serve {name}")
            twins[f"{name.upper()}_LISTEN_ADDR"] = address
    shorthands = {"--host": host, "--port": port, "--uds": uds, "--fd": fd}
    used = [name for name, value in shorthands.items() if value is not None]
    core.require()
    if used:
        if service is None:
            raise click.UsageError(f"{used[0]} is for one service: `relay serve status` or `relay serve preflight`")
        if addresses[service] is not None:
            raise click.UsageError(f"{used[0]} and --{service}-listen-addr say the same thing: give one of them")
        twins[f"{service.upper()}_LISTEN_ADDR"] = _listen_addr(service, host, port, uds, fd, twins, env_file)

    from relay import notify, server, settings

    for name, address in _passed(services, notify.passed(os.environ)).items():
        twins.setdefault(f"{name.upper()}_LISTEN_ADDR", address)
    loaded = settings.load(services, flags=twins, env_file=_path(env_file))
    if channel := os.environ.pop(notify.CHANNEL, ""):
        from relay import worker

        ctx.exit(worker.run(loaded, int(channel)))
    if loaded.workers > 1:
        from relay import workers

        ctx.exit(workers.run(loaded, sys.argv[1:]))
    ctx.exit(server.run(loaded))


def _passed(services: tuple[str, ...], descriptors: dict[str, int]) -> dict[str, str]:
    """Listen addresses of the sockets that a service manager has opened, by service.

    A descriptor is named for its service (FileDescriptorName=); where one service is served, the only one is its own.
    """
    if len(services) == len(descriptors) == 1 and not descriptors.keys() & SERVICES:
        return {services[0]: f"fd:{next(iter(descriptors.values()))}"}
    return {name: f"fd:{fd}" for name, fd in descriptors.items() if name in services}


def _listen_addr(
    service: str,
    host: str | None,
    port: int | None,
    uds: str | None,
    fd: int | None,
    twins: dict[str, str],
    env_file: str | None,
) -> str:
    """The shorthands as a LISTEN_ADDR; half a TCP address leaves the other half as it is set elsewhere."""
    kinds = [kind is not None for kind in (uds, fd)] + [host is not None or port is not None]
    if sum(kinds) > 1:
        raise click.UsageError("--uds, --fd and --host/--port exclude each other: give one of them")
    if uds is not None:
        return f"unix:{Path(uds).absolute()}"
    if fd is not None:
        return f"fd:{fd}"
    if host is None or port is None:
        from relay import settings

        loaded = settings.load((service,), flags=twins, env_file=_path(env_file))
        listen = getattr(loaded, service).listen
        if listen.kind != "tcp":
            raise click.UsageError(f"{service.upper()}_LISTEN_ADDR is {listen}: give both --host and --port")
        host = listen.host if host is None else host
        port = listen.port if port is None else port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _path(env_file: str | None) -> Path | None:
    return Path(env_file) if env_file else None
