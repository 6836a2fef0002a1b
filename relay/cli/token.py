"""`relay token`: a signed token, for who makes links by hand and for trying out (SECURITY.md)."""

from pathlib import Path

import click

from relay.cli import core, flags
from relay.cli.examples import ExampleCommand
from relay.errors import ConfigError


@click.command(
    cls=ExampleCommand,
    examples=(
        "RELAY_TOKEN_SECRET_FILE=/run/secrets/relay_token relay token --run run1",
        "relay token --run run1 --run 'batch;;spring;;*' --channel '*' --expires 8h",
        'relay tail run1:wepp --token "$(relay token --run run1 --channel wepp)"',
    ),
)
@click.option("--run", "runs", metavar="PATTERN", multiple=True, required=True, help="Runs it opens; * is any text.")
@click.option(
    "--channel", "channels", metavar="PATTERN", multiple=True, default=("*",), help="Their channels.  [default: *]"
)
@click.option("--publish", is_flag=True, help="It opens the channels for publishing by POST, too.")
@click.option("--expires", default="1h", show_default=True, metavar="DURATION", help="How long it lasts.")
@flags.ENV_FILE
def token(runs: tuple[str, ...], channels: tuple[str, ...], publish: bool, expires: str, env_file: str | None) -> None:
    """Print a token that opens runs and channels.

    Signed with the first secret of RELAY_TOKEN_SECRET_FILE or RELAY_TOKEN_SECRET, which must be the relay's own. Who
    has the token may watch until it expires, and nothing takes it back before but another secret.
    """
    core.require_extra()
    from relay import settings, values
    from relay.tokens import Keys

    try:
        lifetime = values.parse_duration(expires)
    except ValueError as error:
        raise click.UsageError(f"--expires {expires}: {error}") from None
    if not 1 <= lifetime <= values.parse_duration("87600h"):
        raise click.UsageError(f"--expires {expires}: is not between 1s and ten years (87600h)")
    secret = settings.load((), env_file=Path(env_file) if env_file else None).token_secret
    if secret is None:
        raise ConfigError(
            "no secret to sign with: set RELAY_TOKEN_SECRET_FILE, or RELAY_TOKEN_SECRET, as for the relay"
        )
    click.echo(Keys(secret.get_secret_value()).sign(runs, channels, lifetime, publish=publish))
