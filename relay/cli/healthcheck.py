"""`relay healthcheck`: for a container's HEALTHCHECK, a proxy's script, a person in a hurry.

Run every few seconds by many, so it stands on the standard library alone.
"""

import http.client
from urllib.parse import urlsplit

import click

from relay.cli.examples import ExampleCommand
from relay.errors import RelayError


@click.command(
    cls=ExampleCommand,
    examples=(
        "relay healthcheck",
        "relay healthcheck --ready --url http://localhost:9001",
        "relay healthcheck --proxy-protocol",
    ),
)
@click.option("--url", default="http://localhost:9002", show_default=True, help="Any service of the relay.")
@click.option("--ready", is_flag=True, help="Ask whether it can serve, Redis included, not only whether it lives.")
@click.option("--timeout", default=3.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Seconds.")
@click.option("--proxy-protocol", is_flag=True, help="Begin with a PROXY header, as trusted proxies must.")
def healthcheck(url: str, ready: bool, timeout: float, proxy_protocol: bool) -> None:
    """Ask a relay whether it lives, or is ready.

    Exit code 0 if it says yes, 1 if not. It asks /livez, or with --ready /readyz. Give /livez to what restarts the
    relay, and /readyz to what sends it clients: a relay whose Redis is away is alive, and restarting it mends
    nothing.
    """
    status, reason, body = _ask(url, "/readyz" if ready else "/livez", timeout, proxy_protocol)
    if status != http.client.OK:
        raise RelayError(f"{url} answered {status} {reason}: {body}")
    click.echo(body)


def _ask(url: str, path: str, timeout: float, introduced: bool) -> tuple[int, str, str]:
    """GET `path` of the service at `url`: status, reason phrase, body."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.UsageError(f"--url {url}: not an address such as http://localhost:9002")
    if introduced and parts.scheme == "https":
        raise click.UsageError(f"--proxy-protocol is for the relay itself, and {url} is an address of a proxy")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.connect()
        if introduced:
            connection.sock.sendall(b"PROXY UNKNOWN\r\n")
        connection.request("GET", parts.path.rstrip("/") + path)
        answer = connection.getresponse()
        return answer.status, answer.reason, answer.read(65536).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise RelayError(f"{url} does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
