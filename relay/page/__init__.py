"""The page that the relay serves at `/` and `/run/<run>`, and the module at `/relay.js` that it is made of.

Nothing to fetch but that module, from below the page's own prefix, so that it works wherever the relay does. Its policy
(CSP level 3) lets in the style and the script it came with, by their hashes, what the relay itself serves, and the
websockets of both services.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from urllib.parse import urlsplit

PORTS = {"status": 9002, "preflight": 9001}
_HOST = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")  # in a policy, where `;` and `'` would say more


@dataclass(frozen=True)
class Page:
    """The document, UTF-8, and what its policy says ahead of whom it may connect to."""

    body: bytes
    policy: str
    urls: tuple[str, ...]
    ports: tuple[int, ...]

    def headers(self, host: str) -> list[tuple[str, str]]:
        """Of the answer to a request with that Host."""
        targets = [_origin(url) for url in self.urls]
        if named := _HOST.fullmatch(host):
            own = [f"{named[1]}:{port}" for port in self.ports] + [host]
            targets += [f"{scheme}://{each}" for each in own for scheme in ("ws", "wss")]
        if any("[" in target for target in targets):
            targets = ["ws:", "wss:"]  # an IPv6 address is no host-source (CSP level 3, 2.3.1): Chromium ignores it
        policy = f"{self.policy}; connect-src 'self' {' '.join(dict.fromkeys(targets))}".rstrip()
        return [("Content-Security-Policy", policy), ("Referrer-Policy", "no-referrer")]


def page(urls: Mapping[str, str | None], ports: dict[str, int]) -> Page:
    """The page as it is served.

    Args:
        urls: where browsers find a service, where that is said: `wss://host/prefix/status`.
        ports: of the host that the page comes from, where it is not.
    """
    text = _file("index.html")
    pieces = {"style": _file("page.css"), "script": _file("page.js").replace("{{relay_js}}", f"relay.js?{_tag()}")}
    for service, port in PORTS.items():
        pieces[f"{service}_url"] = html.escape(urls.get(service) or "")
        pieces[f"{service}_port"] = str(ports.get(service, port))
    body = re.sub(r"\{\{(\w+)\}\}", lambda found: pieces[found[1]], text)
    policy = (
        f"default-src 'self'; script-src 'self' {_hash(pieces['script'])}; style-src {_hash(pieces['style'])}; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    far = tuple(url for url in urls.values() if url)
    near = tuple(ports.get(service, port) for service, port in PORTS.items() if not urls.get(service))
    return Page(body.encode(), policy, far, near)


@cache
def module() -> bytes:
    """`/relay.js`."""
    return _file("relay.js").encode()


def _tag() -> str:
    """Of the module's content: a newer one has another address, so each may be kept for as long as one likes."""
    return hashlib.sha256(module()).hexdigest()[:12]


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@cache
def _file(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """The source expression that lets in an inline piece of the page (CSP level 3, section 8.4)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
