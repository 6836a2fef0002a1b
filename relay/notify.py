"""What a service manager is told and gives: sd_notify(3) and sd_listen_fds(3) of systemd; what a supervisor gives."""

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping

from relay.errors import ListenError

CHANNEL = "_RELAY_CHANNEL"  # names a worker's descriptor of its supervisor: a flag could land behind a `--`
FIRST = 3  # descriptor of those that are passed
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def tell(*lines: str) -> None:
    """Sends assignments such as `READY=1`, where somebody listens (NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in ("/", "@"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a manager that hangs must not hang us
            sock.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            sock.send("\n".join(lines).encode())


def without(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child, which the manager neither knows nor has passed anything."""
    return {name: value for name, value in env.items() if name not in _OURS}


def passed(env: MutableMapping[str, str]) -> dict[str, int]:
    """Descriptors of socket units that the manager has opened for this process, by name; `` where they have none.

    Raises:
        ListenError: two of them have the same name, and one would be accepted on by nobody.
    """
    if env.get("LISTEN_PID") != str(os.getpid()) or not env.get("LISTEN_FDS", "").isdecimal():
        return {}
    count = int(env["LISTEN_FDS"])
    names = [*env.get("LISTEN_FDNAMES", "").split(":"), *[""] * count][:count]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ListenError(
            f"{len(doubled)} sockets that were passed have the name {doubled[0]!r}: give each listener one socket unit "
            "with one ListenStream=, and FileDescriptorName=status or preflight"
        )
    return {name: FIRST + number for number, name in enumerate(names)}
