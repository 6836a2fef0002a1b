"""`relay doctor`: what is wrong with a deployment, what it means, and what mends it."""

import json
import resource
import shutil
import textwrap
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from relay.cli import core, flags
from relay.cli.doctor_finding import Finding
from relay.cli.examples import ExampleCommand
from relay.cli.serve import SERVICES
from relay.cli.target import TOKEN, address
from relay.cli.terminal import harmless
from relay.errors import FaultsFound

if TYPE_CHECKING:
    from relay.cli.doctor_relay import Visitor
    from relay.settings import Settings
    from relay.values import RedisAddress

Section = tuple[str, Coroutine[Any, Any, list[Finding]]]

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
FEW = 1024  # connections: fewer are no deployment
SHOWN = {"ok": "ok", "warning": "warning", "fault": "FAULT", "skipped": "skipped"}


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay doctor",
        "relay doctor --url ws://localhost:9002 --url ws://localhost:9001",
        "relay doctor --url wss://wepp.cloud/weppcloud-microservices/status --origin https://wepp.cloud",
        "WORKER_REDIS_URL=redis://worker@wepp1:6379 relay doctor status --url ws://localhost:9002",
        "relay doctor --json | jq '.findings[] | select(.state == \"fault\")'",
    ),
)
@click.argument("service", required=False, type=click.Choice(SERVICES))
@click.option("--url", "urls", metavar="URL", multiple=True, help="Look at this running service, too; more than once.")
@click.option("--origin", default="", metavar="ORIGIN", help="Come with this Origin, as a page of that site does.")
@TOKEN
@click.option(
    "--worker-redis-url",
    envvar="WORKER_REDIS_URL",
    metavar="URL",
    help="Redis as workers reach it; else as the status service does.  [env: WORKER_REDIS_URL]",
)
@flags.ENV_FILE
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(
    service: str | None,
    urls: tuple[str, ...],
    origin: str,
    token: str,
    worker_redis_url: str | None,
    env_file: str | None,
    as_json: bool,
) -> None:
    """Find what is wrong with a deployment.

    Looks at this machine and at Redis as a relay started here would find them, with the settings of the environment
    or of --env-file; with --url at a relay that runs, through every proxy on the way: a message published to Redis
    must arrive there, and two heartbeats, which takes up to 25 s. Changes nothing. For each fault it says what it
    means and what mends it. Exit code 8 where there is one; 0 where there is none, whatever warnings there are.
    """
    import asyncio

    core.require()
    from relay import settings
    from relay.cli.doctor_relay import Visitor

    for url in urls:
        address(url, "")  # what is no address is said before anything is asked
    loaded = settings.load((service,) if service else SERVICES, env_file=Path(env_file) if env_file else None)
    visitor = Visitor(loaded, _worker(worker_redis_url), token, origin)
    findings = asyncio.run(_run(_sections(visitor, urls), as_json))
    if as_json:
        found = [{"about": about, **finding._asdict()} for about, finding in findings]
        click.echo(json.dumps({"faults": _count(findings, "fault"), "findings": found}, indent=2))
    if faults := _count(findings, "fault"):
        raise FaultsFound(f"faults found: {faults}")


def _worker(url: str | None) -> "RedisAddress | None":
    from relay.errors import ConfigError
    from relay.values import RedisAddress

    if not url:
        return None
    try:
        return RedisAddress.parse(url, 0)
    except ValueError as error:  # the URL itself may hold a password, and is not repeated
        raise ConfigError(f"--worker-redis-url {error}; right is for example redis://worker@wepp1:6379") from None


def _count(findings: Sequence[tuple[str, Finding]], state: str) -> int:
    return sum(finding.state == state for _, finding in findings)


def _sections(visitor: "Visitor", urls: Sequence[str]) -> list[Section]:
    """What is looked at: this machine, each Redis with each user once, each running service."""
    from relay.cli import doctor_redis, doctor_relay

    loaded = visitor.settings
    sections: list[Section] = [("this machine", machine(loaded))]
    users = list(dict.fromkeys(replace(service.redis, db=0) for service in loaded.services))
    for user in users:
        services = [service for service in loaded.services if replace(service.redis, db=0) == user]
        about = f"Redis of {' and '.join(service.name for service in services)}: {user}"
        sections.append((about, doctor_redis.examine(user, services, loaded)))
    sections += [(f"relay at {_without_login(url)}", doctor_relay.examine(url, visitor)) for url in urls]
    return sections if urls else [*sections, ("a running relay", _none_named(loaded))]


async def _run(sections: Sequence[Section], as_json: bool) -> list[tuple[str, Finding]]:
    """All at once, for most of it is waiting; shown in order, each as soon as it and those before it are there."""
    import asyncio

    tasks = [(about, asyncio.ensure_future(work)) for about, work in sections]
    found = []
    for about, task in tasks:
        if not as_json:
            click.echo(about)
        for finding in await task:
            found.append((about, finding))
            if not as_json:
                click.echo("\n".join(lines(finding)))
    return found


def lines(finding: Finding) -> list[str]:
    """A finding for people; what mends it is one line, however long, to be copied."""
    width = shutil.get_terminal_size().columns  # 80 without a terminal
    first = f"  {SHOWN[finding.state]:8} {finding.check}: "
    shown = textwrap.wrap(first + harmless(finding.found), width, subsequent_indent=" " * 11, break_on_hyphens=False)
    if finding.means:
        shown += textwrap.wrap(finding.means, width, initial_indent=" " * 11, subsequent_indent=" " * 11)
    if finding.mend:
        shown.append(f"{'mend it:':>10} {harmless(finding.mend)}")
    return shown


async def machine(loaded: "Settings") -> list[Finding]:
    """What a relay started here would find: of its settings, of the files it may have, of the kernel's queue."""
    return [
        *(Finding("warning", "settings", warning) for warning in loaded.warnings),
        files(loaded.max_connections),
        accept_queue(),
    ]


def files(wanted: int | None) -> Finding:
    """Whether the file limit leaves room for the connections; `relay serve` raises the soft limit to the hard one."""
    from relay import listeners

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(0, listeners.room(hard))
    found = f"the hard file limit of {hard} leaves room for {room} connections"
    means = "This is the limit of this shell: a unit of systemd and a container have their own."
    mend = "systemd: LimitNOFILE=65536; docker run --ulimit nofile=65536; a shell: ulimit -n 65536"
    if wanted is not None and wanted > room:
        means = f"More than that get 503, whatever RELAY_MAX_CONNECTIONS says. {means}"
        return Finding("fault", "file limit", f"RELAY_MAX_CONNECTIONS={wanted}, and {found}", means, mend)
    if room < listeners.MIN_CONNECTIONS:
        means = f"The relay takes {listeners.MIN_CONNECTIONS} all the same, and runs out of files. {means}"
        return Finding("fault", "file limit", found, means, mend)
    if room < FEW:
        return Finding("warning", "file limit", found, f"More than that get 503. {means}", mend)
    return Finding("ok", "file limit", found)


def accept_queue() -> Finding:
    """Whether the kernel lets as many wait to be accepted as the relay asks for."""
    from relay.listeners import BACKLOG

    try:
        most = int(SOMAXCONN.read_text())
    except (OSError, ValueError) as error:
        return Finding("skipped", "accept queue", f"{SOMAXCONN} cannot be read: {error}")
    if most < BACKLOG:
        return Finding(
            "warning",
            "accept queue",
            f"net.core.somaxconn is {most}, and the relay asks for {BACKLOG}",
            "When all browsers come back at once, those beyond it wait for a second or more until they try again.",
            f"sysctl -w net.core.somaxconn={BACKLOG}    # and in /etc/sysctl.d; of a container, docker run --sysctl",
        )
    return Finding("ok", "accept queue", f"net.core.somaxconn is {most}")


async def _none_named(loaded: "Settings") -> list[Finding]:
    """How to have a running relay looked at."""
    ports = {service.name: service.listen.port for service in loaded.services if service.listen.kind == "tcp"}
    urls = " ".join(f"--url ws://localhost:{port}" for port in ports.values()) or "--url ws://the-proxy/its/path"
    return [Finding("skipped", "all of it", "none was named", mend=f"relay doctor {urls}")]


def _without_login(url: str) -> str:
    """The address without a user, a password and a query: a token may be in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
