"""Sockets that take connections: made, inherited, and unmade again."""

import contextlib
import errno
import os
import resource
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from relay.errors import ListenError
from relay.settings import Settings
from relay.values import ListenAddress

BACKLOG = 4096  # of a listener; the kernel cuts it to net.core.somaxconn
FILES_KEPT = 32  # descriptors that are not for clients (docs/architecture.md, "Bounds")
MIN_CONNECTIONS = 16


def room(files: int) -> int:
    """Connections that a hard file limit leaves room for; below 0 where it is not even enough for the relay itself."""
    most = 1 << 20 if files == resource.RLIM_INFINITY else min(files, 1 << 20)
    return most - FILES_KEPT - sum(1 for _ in Path("/proc/self/fd").iterdir())


class Place(NamedTuple):
    """Where something listens: `name` is a service's, `internal` or `metrics`, `variable` the setting that says it."""

    name: str
    address: ListenAddress
    variable: str
    mode: int  # of a Unix socket

    def open(self, *, shared: bool = False) -> socket.socket:
        """A listening socket; with `shared`, one beside which `beside` can make others.

        Raises:
            ListenError: with what is wrong and how to mend it.
        """
        try:
            sock = _bound(self.address, self.mode, shared)
            sock.setblocking(False)
            if self.address.kind != "fd":
                sock.listen(BACKLOG)
            elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sock.close()
                raise OSError(errno.EINVAL, "descriptor is no listening socket")
            return sock
        except OSError as error:
            why = _BIND_TROUBLE.get(error.errno or 0, error.strerror or str(error))
            raise ListenError(f"{self.name} cannot listen on {self.address}: {why}; see {self.variable}") from None


def places(settings: Settings) -> list[Place]:
    """All that a process listens on, services first."""
    # 0666 as uvicorn has it: the proxy is another user; who may come is up to the directory.
    found = [Place(s.name, s.listen, f"{s.name.upper()}_LISTEN_ADDR", 0o666) for s in settings.services]
    own = {"internal": settings.internal_addr, "metrics": settings.metrics_addr}
    return found + [Place(name, at, f"RELAY_{name.upper()}_ADDR", 0o660) for name, at in own.items() if at]


def open_all(found: Iterable[Place], *, shared: bool = False) -> dict[str, socket.socket]:
    """The listening sockets of all places, by name; or none of them.

    Raises:
        ListenError: one of them cannot be had.
    """
    opened: dict[str, socket.socket] = {}
    try:
        for place in found:
            opened[place.name] = place.open(shared=shared)
    except ListenError:
        for sock in opened.values():
            unlisten(sock)  # the path of a Unix socket would stay
        raise
    return opened


def beside(sock: socket.socket) -> socket.socket:
    """One more socket for the TCP address of a `shared` one: the kernel spreads newcomers over them (SO_REUSEPORT).

    Raises:
        ListenError: there are no more descriptors, or another user's process has taken the address meanwhile.
    """
    try:
        other = _bound_tcp(sock.family, *sock.getsockname()[:2], shared=True)
        other.setblocking(False)
        other.listen(BACKLOG)
    except OSError as error:
        raise ListenError(f"no second socket for {where(sock)}: {error.strerror}; see RELAY_WORKERS") from None
    return other


_BIND_TROUBLE = {
    errno.EADDRINUSE: "something else listens there already (ss -lntxp shows what)",
    errno.EEXIST: "there is a file or a directory already, and no socket",
    errno.ENOENT: "the directory is not there",
    errno.EACCES: "this user may not (ports below 1024 need CAP_NET_BIND_SERVICE)",
    errno.EADDRNOTAVAIL: "that is no address of this machine",
    errno.EBADF: "no such descriptor was inherited",
}


_paths: dict[int, os.stat_result] = {}  # of the Unix sockets that this process has made, by descriptor


def _bound(address: ListenAddress, mode: int, shared: bool) -> socket.socket:
    if address.kind == "fd":
        return socket.socket(fileno=address.fd)
    if address.kind == "unix":
        return _bound_unix(address.path, mode)
    if not address.host:
        family, host = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
    else:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, host = found[0][0], str(found[0][4][0])
    sock = _bound_tcp(family, host, address.port)
    if not shared:
        return sock
    # Bound alone first: another relay that shares too would be let in beside this one, and take half of its clients.
    host, port = sock.getsockname()[:2]
    sock.close()
    return _bound_tcp(family, host, port, shared=True)


def _bound_tcp(family: int, host: str, port: int, *, shared: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _bound_unix(path: str, mode: int) -> socket.socket:
    """A Unix socket; one that a dead relay left behind is replaced, a living one is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).exists():
            if not stat.S_ISSOCK(Path(path).stat().st_mode):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                # Nothing else proves it dead: EPROTOTYPE is a living socket of another kind, EAGAIN a busy one.
                if probe.connect_ex(path) == errno.ECONNREFUSED:
                    Path(path).unlink()
        sock.bind(path)
        Path(path).chmod(mode)
        _paths[sock.fileno()] = Path(path).stat()
    except OSError:
        sock.close()
        raise
    return sock


def unlisten(sock: socket.socket) -> None:
    """Closes a listener; the path of a Unix socket goes with it, unless it was inherited or is another's by now."""
    bound = _paths.pop(sock.fileno(), None)
    if bound is not None:
        path = Path(sock.getsockname())
        with contextlib.suppress(OSError):
            if os.path.samestat(bound, path.stat()):
                path.unlink()
    sock.close()


def where(sock: socket.socket) -> str:
    """The address of a listening socket, for a log."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
