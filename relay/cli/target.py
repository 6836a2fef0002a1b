"""RUN:CHANNEL and RUN as arguments, and the websocket address they stand for."""

import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

import click

from relay.cli.terminal import quoted

# Where the relay asks for one (RELAY_TOKEN_SECRET there). In the environment it is not seen by `ps`.
TOKEN = click.option(
    "--token", envvar="RELAY_TOKEN", default="", help="What `relay token` printed, if asked for.  [env: RELAY_TOKEN]"
)
WEBSOCKET = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class Target(NamedTuple):
    """A channel of a run."""

    run: str
    channel: str

    def __str__(self) -> str:
        """The Redis channel: `<run>:<channel>`."""
        return f"{self.run}:{self.channel}"

    def path(self) -> str:
        """The path to ask the relay for, both parts encoded as WEPPcloud's pages do it."""
        return f"{quote(self.run, safe='')}:{quote(self.channel, safe='')}"


def parse(_ctx: click.Context, _parameter: click.Parameter, text: str) -> Target:
    """The callback of an argument RUN:CHANNEL; a usage error where it is not two names with a colon between them."""
    run, _, channel = text.partition(":")
    if not (run and channel) or ":" in channel:
        raise click.BadParameter(f"{text!r} is not a run, a colon and a channel, as in run1:wepp")
    return Target(run, channel)


def parse_all(ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[Target, ...]:
    """The callback of an argument of several, each once, in their order."""
    return tuple(dict.fromkeys(parse(ctx, parameter, text) for text in texts))


def address(base: str, path: str) -> str:
    """`path` below the relay's address `base`, which may be ws://, wss://, http:// or https://."""
    try:
        parts = urlsplit(base)
        usable = parts.scheme in WEBSOCKET and parts.hostname and parts.port != 0
        usable = usable and (parts.username is None) == (parts.password is None)  # of basic authentication
    except ValueError:  # a port that is no number, half a bracket
        usable = False
    if not usable:
        raise click.UsageError(f"--url {masked(base)}: not an address such as ws://localhost:9002")
    if parts.query or parts.fragment:
        raise click.UsageError("--url: an address without ? and #; a token is given by --token or RELAY_TOKEN")
    return f"{WEBSOCKET[parts.scheme]}://{parts.netloc}{parts.path.rstrip('/')}/{path}"


def moved(url: str, location: str) -> tuple[str, str]:
    """Where a redirect of `url` leads, fit to be shown, and the --url that asks there; "" where that is no relay's."""
    try:
        parts = urlsplit(urljoin(url.replace("ws", "http", 1), location))
    except ValueError:  # half a bracket
        return quoted(location.partition("?")[0]), ""
    host, (base, _, last) = parts.netloc.rpartition("@")[2], parts.path.rpartition("/")
    same = host and parts.scheme in WEBSOCKET and unquote(last) == unquote(url.rpartition("/")[2])
    shown = f"{parts.scheme}://{host}{parts.path}"  # without its query: a token may have been repeated there
    return quoted(shown), quoted(f"{WEBSOCKET[parts.scheme]}://{host}{base}") if same else ""


def masked(url: str) -> str:
    """`url` as it may be shown: without user and password."""
    return re.sub(r"//.*@", "//***@", url)


def query(token: str, **others: str) -> str:
    """The query of an address: `others`, and the token where there is one."""
    return urlencode({**others, **({"token": token} if token else {})})
