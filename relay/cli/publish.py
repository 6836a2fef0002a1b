"""`relay publish`: say something on a channel, as a worker would."""

import logging
import os
import sys
from collections.abc import Iterator

import click

from relay.cli.examples import ExampleCommand
from relay.cli.target import Target, parse
from relay.errors import ConfigError, RelayError

PATIENCE = 5.0  # seconds that Redis has for one message


@click.command(
    cls=ExampleCommand,
    examples=(
        'relay publish run1:wepp "wepp hillslope 17 of 214"',
        "tail -f wepp.log | relay publish run1:wepp",
        "relay publish run1:wepp hello --redis-url redis://wepp1:6379",
    ),
)
@click.argument("target", metavar="RUN:CHANNEL", callback=parse)
@click.argument("text", default="-")
@click.option("--redis-url", metavar="URL", help="The Redis to publish to.  [env: REDIS_URL]")
def publish(target: Target, text: str, redis_url: str | None) -> None:
    """Publish on a channel, as a worker would.

    Publishes TEXT or, without TEXT or with -, each line of standard input. Prints, for each message, how many
    subscribers Redis gave it to: a relay counts as one, however many browsers it serves. Exit code 1 where Redis
    does not take a message within 5 s.
    """
    from redis.exceptions import RedisError

    import client
    from client import sender

    # No run waits for this process, and Redis may be far away or busy: each message has as long as a person has.
    sender.BUDGET = sender.FIRST_ATTEMPT = PATIENCE
    # What the client would warn of in a worker's log is the error of this command, told once.
    logging.getLogger(client.__name__).addHandler(logging.NullHandler())
    try:
        client.configure(url=redis_url)
    except ValueError as error:
        raise ConfigError(str(error).replace("configure(url=...)", "--redis-url")) from error
    for message in _lines() if text == "-" else [os.fsencode(text)]:
        try:
            receivers = client.StatusMessenger.publish(str(target), message, strict=True)
        except (RedisError, OSError) as error:
            raise RelayError(str(error)) from error
        click.echo(receivers)


def _lines() -> Iterator[bytes]:
    """Standard input line by line, as the bytes they are without their ends, each as soon as it is there."""
    for line in sys.stdin.buffer:
        yield line.removesuffix(b"\n").removesuffix(b"\r")
