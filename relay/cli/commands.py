"""The commands of `relay`, each imported when it is asked for.

`relay healthcheck` runs every few seconds on a busy machine, and `relay --version` is how people ask what they
have: neither may pay for pydantic, websockets or redis. So nothing heavy is imported before its command runs.
"""

import importlib
from typing import Any

import click

from relay.cli.examples import ExampleGroup
from relay.cli.main import INTERRUPTED
from relay.errors import RelayError

COMMANDS = {
    "serve": "relay.cli.serve",
    "demo": "relay.cli.demo",
    "publish": "relay.cli.publish",
    "tail": "relay.cli.tail",
    "checklist": "relay.cli.checklist",
    "healthcheck": "relay.cli.healthcheck",
    "config": "relay.cli.config",
    "token": "relay.cli.token",
    "doctor": "relay.cli.doctor",
    "top": "relay.cli.top",
    "bench": "relay.cli.bench",
}


class LazyGroup(ExampleGroup):
    """A group that imports the module of a command when the command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which an operator meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name: the one in its module that bears it."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes a line on stderr and the exit code of its class, Ctrl-C is quiet."""
        try:
            return super().invoke(ctx)
        except RelayError as error:
            for sentence in str(error).splitlines():
                click.echo(f"relay: {sentence}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def _version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from relay.cli.version import report

        click.echo(report())
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=(
        "relay demo                                  everything at once, with a page to look at",
        "relay serve                                 both services: status on 9002, preflight on 9001",
        "relay publish run1:wepp 'hillslope 1 of 9'  as a worker would",
        "relay tail run1:wepp",
        "relay checklist run1 --watch",
        "relay doctor                                what is wrong, and what mends it",
        "relay bench                                 how much this machine does",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Say which relay this is, on which core, Python, uvloop, hiredis and redis-py.",
)
def relay() -> None:
    """Push status and checklists of WEPPcloud runs from Redis to browsers.

    Data goes to stdout, talk to stderr.
    """
