"""`relay config`: the settings that a `relay serve` started here would run on."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from relay.cli import core, flags
from relay.cli.examples import ExampleCommand, ExampleGroup
from relay.cli.serve import SERVICES

if TYPE_CHECKING:
    from relay.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(cls=ExampleGroup, examples=("relay config show", "relay config check --env-file relay.env"))
def config() -> None:
    """Show or check the settings of a relay."""


def _scope(command: Command) -> Command:
    """Which settings: of which service, and with which file."""
    return click.argument("service", required=False, type=click.Choice(SERVICES))(flags.ENV_FILE(command))


@config.command(
    cls=ExampleCommand,
    examples=(
        "relay config show",
        "STATUS_PING_INTERVAL=5s relay config show status",
    ),
)
@_scope
def show(service: str | None, env_file: str | None) -> None:
    """Print every setting.

    Its variable, its value, and where that comes from: environment, file or default. Secrets are shown as ***.
    """
    settings = _load(service, env_file)
    from relay.settings import describe

    rows = describe(settings)
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        click.echo(f"{name:{wide[0]}}  {value:{wide[1]}}  {source}")


@config.command(
    cls=ExampleCommand,
    examples=(
        "relay config check",
        "relay config check status --env-file relay.env",
    ),
)
@_scope
def check(service: str | None, env_file: str | None) -> None:
    """Exit with 0 where the settings are good, else with 3.

    A line on stderr for each mistake says what to mend.
    """
    _load(service, env_file)
    click.echo("the settings are good", err=True)


def _load(service: str | None, env_file: str | None) -> "Settings":
    """The settings of the service, or of both; warnings go to stderr."""
    core.require_extra()
    from relay import settings

    loaded = settings.load((service,) if service else SERVICES, env_file=Path(env_file) if env_file else None)
    for warning in loaded.warnings:
        click.echo(f"relay: warning: {warning}", err=True)
    return loaded
