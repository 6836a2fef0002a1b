"""A lean Redis connection on which every step obeys one deadline, for publishing and nothing else.

redis-py's timeouts are per socket operation, its name resolution has none, and its first command takes up to six round
trips; a worker must not wait for any of that. Here a connection is opened with AUTH (where there is a password) and
SELECT in one write, and a request is one write and one short reply line under RESP2.
"""

import contextlib
import math
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from client.connection import Address

if TYPE_CHECKING:
    import ssl

S = TypeVar("S", bound=socket.socket)
T = TypeVar("T")

# Seconds. A late reply does not end the connection, or a worker whose round trip is 0.2 s would reconnect for every
# line; Redis that owes a reply for this long without giving any is taken for dead.
PATIENCE = 1.0
# As much more as its answer to a new connection took, twice, for then it is late and not dead; at most so much.
PATIENCE_MOST = 5.0

# What says that a socket is not ready, and for what it waits then; None: for what it was asked to do.
WouldBlock = Mapping[type[OSError], bool | None]
_READ, _WRITE = False, True

# A reply to AUTH, SELECT or PUBLISH is one short line; a peer that says more without an end is no Redis.
_LINE_MAX = 65536


class ReplyError(Exception):
    """Redis answered with an error; the text is Redis's own."""


class Unsent(Exception):  # noqa: N818 - what became of the request, not a fault of the caller
    """The request was not wholly written, so Redis cannot have run it, and the connection is of no more use."""


class Unanswered(Exception):  # noqa: N818 - as above
    """The request was written and its reply not seen: Redis may have run it or may yet, so it is never sent again.

    Attributes:
        lost: the connection is of no more use; where false, the reply may still come and is then passed over.
    """

    def __init__(self, reason: str, *, lost: bool) -> None:
        super().__init__(reason)
        self.lost = lost


class Outcome(NamedTuple):
    """What became of many messages written at once, counted from the first.

    Attributes:
        answers: Redis's reply lines, one for each message that it answered.
        written: messages that left this process wholly; of them, Redis may have run any without an answer.
        trouble: why the connection is of no more use; empty where all were answered.
        stuck: a message was begun, and the time did not do for the rest of it.
    """

    answers: list[bytes]
    written: int
    trouble: str
    stuck: bool = False


class Wire:
    """One connection, used by one thread at a time.

    The socket never blocks: each call of the kernel lets go of the interpreter, and where the run computes it takes
    5 ms to have it again and costs the run a tenth of a millisecond. With a timeout set for each call a message took
    ten of them, and now four.
    """

    def __init__(self, sock: socket.socket, would_block: WouldBlock) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._would_block = would_block
        self._not_ready = tuple(would_block)
        self._buffer = b""
        self._owed: deque[float] = deque()  # when each was written whose reply is not seen yet
        self._heard = time.monotonic()
        # Seconds from a write until its reply was seen, of the last reply; infinite once one was waited for in vain.
        self.latency = 0.0
        self._known_late = 0.0

    def close(self) -> None:
        """Close this process's hold on the socket; a child of a fork does not disturb its parent's connection."""
        self._sock.close()

    def publish(self, channel: bytes, message: bytes, deadline: float) -> int:
        """PUBLISH and wait for the number of receivers.

        Args:
            channel: the channel's name.
            message: the payload, of any size.
            deadline: on time.monotonic.

        Raises:
            ReplyError, Unsent, Unanswered: see there.
        """
        self.tell(channel, message, deadline)
        try:
            while len(self._owed) > 1:
                self._take(deadline)
            return _number(self._take(deadline))
        except TimeoutError:
            self.latency = math.inf
            raise Unanswered("Redis did not answer in time", lost=self._is_silent()) from None
        except OSError as error:
            raise Unanswered(f"the connection ended before Redis answered: {reason(error)}", lost=True) from None

    def tell(self, channel: bytes, message: bytes, deadline: float) -> None:
        """PUBLISH and pass the reply over when it comes; a round trip less than `publish`.

        Raises:
            Unsent: see there.
        """
        self._settle()
        self._write(_head(channel) % (len(message), message), deadline)

    def publish_many(self, messages: Sequence[tuple[str, bytes]], deadline: float) -> Outcome:
        """PUBLISH each (channel, message) in one write, and take the replies.

        Args:
            messages: not more than a socket takes while Redis reads none, or the replies would never be read.
            deadline: on time.monotonic.
        """
        try:
            self._settle()
        except Unsent as trouble:
            return Outcome([], 0, str(trouble))
        heads = {channel: _head(channel.encode()) for channel in {channel for channel, _ in messages}}
        packets = [heads[channel] % (len(message), message) for channel, message in messages]
        sent, failure = self._push(b"".join(packets), deadline)
        written = len(packets) if failure is None else sum(end <= sent for end in accumulate(map(len, packets)))
        if failure is not None:
            stuck = isinstance(failure, TimeoutError) and sent > 0
            return Outcome([], written, f"could not write to Redis: {reason(failure)}", stuck)
        earlier = len(self._owed)
        self._owed.extend([time.monotonic()] * written)
        answers: list[bytes] = []
        try:
            for _ in range(earlier):
                self._take(deadline)
            while len(answers) < written:  # what came before an error counts
                self._receive(deadline)
                answers += self._pop(written - len(answers))
        except OSError as error:
            late = isinstance(error, TimeoutError)
            trouble_is = "Redis did not answer in time" if late else f"the connection ended: {reason(error)}"
            return Outcome(answers, written, trouble_is)
        return Outcome(answers, written, "")

    def handshake(self, commands: list[bytes], deadline: float) -> list[bytes]:
        """Write all commands at once and return their reply lines, errors among them.

        Raises:
            OSError: the connection ended, or not all replies came in time.
        """
        self._send(b"".join(commands), deadline)
        self._owed.extend([time.monotonic()] * len(commands))
        replies = [self._take(deadline) for _ in commands]
        self._known_late = min(2 * self.latency, PATIENCE_MOST)
        return replies

    def ping(self, deadline: float) -> None:
        """PING, for `latency` to say what is true now; an answer that does not come in time is passed over later."""
        with contextlib.suppress(OSError):  # of a connection that ended: the next command finds it so
            self.handshake([pack(b"PING")], deadline)

    def _settle(self) -> None:
        """Take replies that came late, and notice a dead connection while nothing is written yet."""
        try:
            while data := self._sock.recv(4096):
                self._buffer += data
            raise Unsent("Redis has closed the connection")
        except self._not_ready:
            pass
        except OSError as error:
            raise Unsent(reason(error)) from None
        self._pop(len(self._owed))
        if self._buffer and not self._owed:
            raise Unsent("the peer speaks unasked, so it is no Redis")
        if self._is_silent():
            raise Unsent("Redis has left an earlier message unanswered")

    def _is_silent(self) -> bool:
        return bool(self._owed) and time.monotonic() - self._heard > max(PATIENCE, self._known_late)

    def _write(self, packet: bytes, deadline: float) -> None:
        try:
            self._send(packet, deadline)
        except OSError as error:
            raise Unsent(f"could not write to Redis: {reason(error)}") from None
        now = time.monotonic()
        if not self._owed:
            self._heard = now
        self._owed.append(now)

    def _send(self, packet: bytes, deadline: float) -> None:
        _, failure = self._push(packet, deadline)
        if failure is not None:
            raise failure

    def _push(self, packet: bytes, deadline: float) -> tuple[int, OSError | None]:
        """Write as much as goes; returns how many bytes that was, and what stopped it."""
        view = memoryview(packet)
        sent = 0
        try:
            while sent < len(packet):
                _left(deadline)
                sent += self._when_ready(partial(self._sock.send, view[sent:]), _WRITE, deadline)
        except OSError as error:
            return sent, error
        return sent, None

    def _take(self, deadline: float) -> bytes:
        self._receive(deadline)
        return self._pop(1)[0]

    def _receive(self, deadline: float) -> None:
        """Read until there is a whole reply line, if there is none yet."""
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > _LINE_MAX:
                raise ConnectionError("the peer's answer has no end, so it is no Redis")
            if None in self._would_block.values():  # under TLS what has come may wait in the layer between
                self._wait(_READ, deadline)
            data = self._when_ready(partial(self._sock.recv, 4096), _READ, deadline)
            if not data:
                raise ConnectionError("Redis has closed the connection")
            self._buffer += data

    def _when_ready(self, operation: Callable[[], T], writes: bool, deadline: float) -> T:
        while True:
            try:
                return operation()
            except self._not_ready as error:
                wanted = self._would_block[type(error)]
                self._wait(writes if wanted is None else wanted, deadline)

    def _wait(self, writes: bool, deadline: float) -> None:
        left = _left(deadline)
        if hasattr(select, "poll"):
            poller = select.poll()
            poller.register(self._sock, select.POLLOUT if writes else select.POLLIN)
            is_ready = bool(poller.poll(math.ceil(left * 1000)))
        else:  # Windows
            socks = [self._sock]
            is_ready = any(select.select([] if writes else socks, socks if writes else [], socks, left))
        if not is_ready:
            raise TimeoutError("timed out")

    def _pop(self, most: int) -> list[bytes]:
        """So many of the reply lines that have come, or all of them."""
        *lines, rest = self._buffer.split(b"\r\n", most)
        if lines:
            self._buffer = rest
            self._heard = time.monotonic()
            for _ in lines:
                written = self._owed.popleft()
            self.latency = self._heard - written
        return lines


def _head(channel: bytes) -> bytes:
    """A PUBLISH but for its message, for `% (length, message)` to fill in: an eighth of the time of `pack`.

    Where the run computes in Python it stands still for this.
    """
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%%d\r\n%%b\r\n" % (len(channel), channel.replace(b"%", b"%%"))


def pack(*arguments: bytes) -> bytes:
    """One command as RESP sends it: an array of bulk strings."""
    return b"".join([b"*%d\r\n" % len(arguments), *(b"$%d\r\n%b\r\n" % (len(a), a) for a in arguments)])


def open_wire(address: Address, db: int, budget: float) -> Wire:
    """Connect, authenticate and select a database.

    getaddrinfo cannot be interrupted; `budget` (seconds, for all the rest) begins with its answer, however late.

    Raises:
        OSError: no connection, or no answer in time.
        ReplyError: Redis refuses the password or the connection.
    """
    found: Sequence[Any] = (
        [] if address.path is not None else socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    )
    deadline = time.monotonic() + budget
    sock = _connect(found, deadline) if address.path is None else _connect_path(address.path, deadline)
    would_block: WouldBlock = {BlockingIOError: None}
    try:
        if address.tls is not None:
            sock, would_block = _secured(sock, address, deadline)
        wire = Wire(sock, would_block)
        _introduce(wire, address, db, deadline)
    except BaseException:
        sock.close()
        raise
    return wire


# All that this module has made, also what is not connected yet: a child of a fork closes its copies. The lock keeps a
# fork from falling between the making of one and its being known.
_sockets: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()
_making = threading.RLock()  # a signal handler may connect, or fork


def _made(make: Callable[[], S]) -> S:
    with _making:
        sock = make()
        _sockets.add(sock)
    return sock


def _close_all() -> None:
    """In a child of a fork. Closing a copy says nothing to the peer: the parent's connection goes on."""
    _making.release()
    for sock in list(_sockets):
        sock.close()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_close_all)


def _connect(found: Sequence[tuple[int, int, int, str, Any]], deadline: float) -> socket.socket:
    """Try each address; one that swallows packets gets its share of the time, not all of it."""
    trouble = OSError("the name has no address")
    for waiting, (family, kind, proto, _, where) in zip(range(len(found), 0, -1), found, strict=True):
        sock = _made(partial(socket.socket, family, kind, proto))
        try:
            sock.settimeout(_left(deadline) / waiting)
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            sock.close()
            trouble = error
        else:
            return sock
    raise trouble


def _connect_path(path: str, deadline: float) -> socket.socket:
    sock = _made(partial(socket.socket, socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        sock.settimeout(_left(deadline))
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _secured(sock: socket.socket, address: Address, deadline: float) -> tuple[socket.socket, WouldBlock]:
    import ssl

    context = _context(address)
    # Its handshake apart: a fork in the middle of it must find the socket among those that are known.
    secured = _made(partial(context.wrap_socket, sock, server_hostname=address.host, do_handshake_on_connect=False))
    try:
        secured.settimeout(_left(deadline))
        secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return secured, {ssl.SSLWantReadError: _READ, ssl.SSLWantWriteError: _WRITE}


def _context(address: Address) -> "ssl.SSLContext":
    import ssl

    tls = address.tls
    assert tls is not None
    context = ssl.create_default_context(cafile=tls.ssl_ca_certs)
    context.check_hostname = tls.ssl_check_hostname
    context.verify_mode = {
        "required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE,
    }[tls.ssl_cert_reqs]  # fmt: skip
    if tls.ssl_certfile:
        context.load_cert_chain(tls.ssl_certfile, tls.ssl_keyfile)
    return context


def _introduce(wire: Wire, address: Address, db: int, deadline: float) -> None:
    """AUTH where needed, then SELECT, in one write.

    Pub/Sub ignores the database, so a SELECT that is refused as such (an ACL without it, a server with one database)
    is no reason to publish nothing.
    """
    credentials = [part.encode() for part in address.credentials()]
    commands = [pack(b"AUTH", *credentials)] if credentials else []
    replies = wire.handshake([*commands, pack(b"SELECT", b"%d" % db)], deadline)
    for reply in replies[:-1]:
        _check(reply)
    if not replies[-1].startswith(b"-NOPERM") and b"DB index" not in replies[-1]:
        _check(replies[-1])


def _check(line: bytes) -> None:
    if line.startswith(b"-"):
        raise ReplyError(line[1:].decode(errors="replace"))


def _number(line: bytes) -> int:
    _check(line)
    if not line.startswith(b":") or not line[1:].isdigit():
        raise ConnectionError("the answer is none that Redis gives")
    return int(line[1:])


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def reason(error: OSError) -> str:
    """The error in words, without its number."""
    return error.strerror or str(error) or type(error).__name__
