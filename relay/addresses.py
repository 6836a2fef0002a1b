"""The address of a client as its proxy reports it: X-Forwarded-For, read from the right as far as proxies are trusted.

Each proxy appends the address it was connected from, so what stands to the left of the last trusted proxy was written
by the client and may be anything. `Forwarded` (RFC 7239) is not read: a relay that believed two headers could be told
two things. An address is 16 bytes, as the core has it: IPv4 mapped into IPv6.
"""

import ipaddress
import re
from collections.abc import Callable

_FORWARDED = re.compile(rb"\r\nx-forwarded-for:([^\r\n]*)", re.IGNORECASE)
_PORT = re.compile(r"\[([^\]]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")
MOST = 32  # addresses of a chain that are looked at


def packed(text: str) -> bytes | None:
    """An address in 16 bytes; None where it is none. A port behind it is left out, as some proxies write one."""
    match = _PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((match[1] or match[2]) if match else text)
    except ValueError:
        return None
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def forwarded(head: bytes, peer: bytes, trusted: Callable[[bytes], bool]) -> bytes:
    """Who the client behind a trusted proxy is.

    Args:
        head: of the request; several headers are one list (RFC 9110, section 5.3).
        peer: the address of that proxy.
        trusted: whether an address is a proxy's that may be believed.

    Returns:
        The rightmost address that is no such proxy's; where the list ends, or is no list of addresses any more, the
        last one that was.
    """
    found = b",".join(_FORWARDED.findall(head)).decode("latin-1").rsplit(",", MOST)
    for text in reversed(found[-MOST:]):
        address = packed(text.strip(" \t"))
        if address is None:
            return peer
        peer = address
        if not trusted(address):
            return peer
    return peer
