# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The load generator: thousands of clients in one thread, and a publisher in another, without the interpreter.

Clients are websockets, and so many of them as is said listen to event streams (RFC 6455; WHATWG HTML, section 9.2).

A client is a C struct and a socket in one epoll set; what is read goes through one buffer that all share, and each frame
is compared byte for byte with what it should be. The interpreter runs twice for each handshake and for what is unusual:
refusals, closes, texts that are none of ours. Connections with TLS are the exception: Python's ssl works on each of
their reads, some 10 µs a frame, so that one core serves several times fewer of them; measure a relay without TLS.

What is counted is in `Counters` of the stub. Loss is judged by the numbers in the messages, per client and at once: a
client must get everything that is published after its 101 was read, so all of a topic where it was there first. What it
missed at the very end shows only when nothing more comes: `Swarm.settle`. Stalled clients and those that have gone are
not judged, only their gaps before.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from libc.errno cimport EAGAIN, EINTR, EMFILE, ENFILE, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "<string.h>" nogil:
    void *memmem(const void *where, size_t size, const void *what, size_t what_size)

import base64
import hashlib
import json
import os
import socket
import ssl

include "_swarm_wire.pxi"
include "_swarm_rows.pxi"
include "_swarm_sockets.pxi"

cdef extern from *:
    const char *RELAY_BUILD

BUILD = RELAY_BUILD.decode()
SMALLEST = HEAD

cdef enum:
    EVENTS = 1024           # epoll events of one round
    SLICE_MS = 50           # between two looks at signals
    AWAKE_NS = 50000        # after the last frame, before it sleeps
    RETRY_MS = 1            # for a Unix socket whose queue of connections is full

cdef bytes GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


@cython.final
cdef class Swarm(Sockets):
    """Clients, all of one server. Its methods belong to one thread; `received` may be called from any.

    Args:
        family: AF_INET, AF_INET6 or AF_UNIX.
        address: as `socket.getaddrinfo` gives it: (numeric host, port) or (host, port, flow, scope); of AF_UNIX the path.
        host: the Host field.
        paths: request targets; client i watches `paths[i % len(paths)]`.
        clients: how many in all; `open` opens them.
        stalled: so many of them, the last ones, get a small receive buffer and read nothing after their 101.
        streams: so many of them, the first ones, ask for an event stream in place of a websocket.
        origin: the Origin field; empty: none.
        headers: more fields, (name, value).
        sources: connect from so many addresses 127.0.0.1, 127.0.0.2, ... in turn (AF_INET, loopback only), as one has
            about 28 000 ports; 0: as the system chooses.
        tls: wss; much slower, as the module says.
        server_hostname: for the certificate; with `tls` only.

    Raises:
        ValueError: no paths, more than 262 144 of them, a line end in a field, an address that is not numeric.
        OSError: no epoll instance could be made.
    """

    cdef readonly Py_ssize_t topics     # how many paths
    cdef list requests                  # for each topic the request up to the value of its key
    cdef list stream_requests           # and up to the fields where no key is sent
    cdef bytes fields                   # what follows
    cdef uint32_t begun                 # clients [0, begun) were begun
    cdef uint32_t sources
    cdef int family
    cdef unsigned address_size
    cdef unsigned char address[SOCKADDR_ROOM]
    cdef object context
    cdef object server_hostname
    cdef bint inside                    # a method runs that serves
    cdef bint publishing                # a publisher runs
    cdef epoll_event events[EVENTS]

    def __cinit__(self):
        self.ep = -1

    def __init__(self, *, int family, address, bytes host, paths, uint32_t clients, uint32_t stalled=0,
                 uint32_t streams=0, bytes origin=b"", headers=(), uint32_t sources=0, tls=None, server_hostname=None):
        cdef uint32_t i
        if self.books is not NULL:
            raise RuntimeError("a swarm is made once")
        if not 0 < len(paths) <= MOST_TOPICS:
            raise ValueError(f"{len(paths)} paths: 1 to {MOST_TOPICS}")
        if sources > 250 or (sources and family != socket.AF_INET):
            raise ValueError("sources: up to 250 loopback addresses, AF_INET only")
        self.family, self.sources = family, sources
        self.take_address(address)
        self.take_requests(list(paths), host, origin, list(headers))
        self.context, self.server_hostname, self.secure = tls, server_hostname, tls is not None
        self.refused, self.closed, self.accepts, self.trouble = {}, {}, {}, ""
        self.secured = [None] * clients if self.secure else None
        self.mask = int.from_bytes(os.urandom(4), "little")
        self.books = books_new(self.topics)
        self.clients = <Client *>allocate(max(clients, 1) * sizeof(Client))
        self.inbox = <unsigned char *>allocate(INBOX)
        self.cipher = <unsigned char *>allocate(INBOX) if self.secure else NULL
        self.count = clients
        for i in range(clients):
            self.clients[i].fd = -1
            self.clients[i].topic = i % <uint32_t>self.topics
            self.clients[i].stalls = clients - i <= stalled
            self.clients[i].streams = i < streams
        self.ep = epoll_create1(EPOLL_CLOEXEC)
        if self.ep < 0:
            raise OSError(errno, os.strerror(errno))

    cdef int take_address(self, address) except -1:
        cdef list parts = [*address, 0, 0] if isinstance(address, tuple) else [os.fspath(address), 0, 0, 0]
        host, port, flow, scope = parts[:4]
        host = os.fsencode(host).partition(b"%")[0]
        self.address_size = swarm_address(self.address, self.family, host, port, flow, scope)
        if not self.address_size:
            raise ValueError(f"address {address!r}: a numeric one of its family, or the path of a Unix socket")
        return 0

    cdef int take_requests(self, list paths, bytes host, bytes origin, list headers) except -1:
        fields = [(b"Origin", origin)] if origin else []
        self.fields = b"".join(b"\r\n%b: %b" % field for field in fields + headers) + b"\r\n\r\n"
        if any(b"\n" in part or b"\r" in part for pair in [*headers, (host, origin), paths] for part in pair):
            raise ValueError("a line end in a path or in a header field")
        self.topics = len(paths)
        self.requests = [
            b"GET %b HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: " % (path, host)
            for path in paths
        ]
        self.stream_requests = [
            b"GET %b HTTP/1.1\r\nHost: %b\r\nAccept: text/event-stream" % (path, host) for path in paths
        ]
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.count):
            if self.clients[i].fd >= 0:
                close_fd(self.clients[i].fd)
            PyMem_RawFree(self.clients[i].held)
        if self.ep >= 0:
            close_fd(self.ep)
        PyMem_RawFree(self.clients)
        PyMem_RawFree(self.inbox)
        PyMem_RawFree(self.cipher)
        books_free(self.books)

    # ---- connecting ----

    def open(self, uint32_t upto, *, uint32_t at_once=256, double seconds) -> None:
        """Opens the clients up to `upto` that were not begun yet, and serves those that are open.

        Returns when all begun are open or refused, or when the time is up; those still undecided go on in `serve`.

        Args:
            upto: of the `clients` of the swarm.
            at_once: handshakes under way at a time.
            seconds: for all.

        Raises:
            OSError: no file descriptor is left (EMFILE): raise RLIMIT_NOFILE first.
        """
        cdef uint64_t until = deadline(seconds)
        cdef int wait
        self.enter_once()
        try:
            while swarm_now() < until:
                wait = SLICE_MS
                while self.begun < min(upto, self.count) and self.connecting < at_once:
                    if not self.begin(&self.clients[self.begun]):
                        wait = RETRY_MS
                        break
                    self.begun += 1
                if self.begun >= min(upto, self.count) and self.connecting == 0:
                    return
                with nogil:
                    self.round(wait)
                PyErr_CheckSignals()
        finally:
            self.inside = False

    cdef bint begin(self, Client *c) except -1:
        """connect(); false where a Unix socket's queue is full, so that it is for later."""
        cdef unsigned source = 1 + self.begun % self.sources if self.sources else 0
        c.began = swarm_now()
        c.fd = swarm_connect(self.family, self.address, self.address_size, source, c.stalls)
        if c.fd < 0 and errno == EAGAIN and self.family == socket.AF_UNIX:
            return False
        if c.fd < 0 and (errno == EMFILE or errno == ENFILE):
            raise OSError(errno, f"{self.begun} clients: {os.strerror(errno)}; raise RLIMIT_NOFILE (ulimit -n)")
        c.stage = CONNECTING
        self.connecting += 1
        if c.fd < 0:
            self.complain(f"connect: {os.strerror(errno)}")
            self.hang_up(c, 0)
        else:
            swarm_watch(self.ep, EPOLL_CTL_ADD, c.fd, EPOLLOUT, c - self.clients)
        return True

    cdef int on_connected(self, Client *c) except -1:
        cdef int error = swarm_socket_error(c.fd)
        if error:
            self.complain(f"connect: {os.strerror(error)}")
            return self.hang_up(c, 0)
        swarm_watch(self.ep, EPOLL_CTL_MOD, c.fd, EPOLLIN, c - self.clients)
        if not self.secure:
            return self.ask(c)
        c.stage = SECURING
        self.secured[c - self.clients] = Tls(self.context, self.server_hostname)
        return self.on_securing(c)

    cdef int on_securing(self, Client *c) except -1:
        """A step of the TLS handshake."""
        cdef Tls tls = self.secured[c - self.clients]
        cdef ssize_t fed = 1
        while fed > 0:
            try:
                tls.link.do_handshake()
                self.post(c, tls)
                return self.ask(c) if c.stage == SECURING else 0
            except ssl.SSLWantReadError:
                fed = self.feed(c, tls)
            except ssl.SSLError as error:
                self.complain(f"TLS: {error}")
                fed = 0
        return self.hang_up(c, 0) if fed == 0 else 0

    cdef int ask(self, Client *c) except -1:
        cdef bytes key = base64.b64encode(os.urandom(16)), request
        c.stage = ASKED
        if c.streams:
            request = self.stream_requests[c.topic] + self.fields
        else:
            request = self.requests[c.topic] + key + self.fields
            self.accepts[c - self.clients] = base64.b64encode(hashlib.sha1(key + GUID).digest())
        return self.transmit(c, <const unsigned char *>PyBytes_AS_STRING(request), len(request))

    # ---- serving ----

    def serve(self, double seconds) -> None:
        """Receives for so long, answers pings and heartbeats; signals are looked at 20 times a second.

        Raises:
            RuntimeError: another thread is in this swarm.
        """
        cdef uint64_t until = deadline(seconds), left, now
        self.enter_once()
        try:
            while True:
                with nogil:
                    now = swarm_now()
                    left = until - now if until > now else 0
                    self.serve_until(now + min(left, <uint64_t>SLICE_MS * 1000000))
                PyErr_CheckSignals()
                if swarm_now() >= until:
                    return
        finally:
            self.inside = False

    def settle(self, double quiet) -> bool:
        """Serves until all that was published has come; what has not is counted as lost then. Call it when publishing is done.

        Args:
            quiet: seconds without any message of ours after which no more are waited for.

        Returns:
            Whether all came.
        """
        cdef int64_t last = -1
        cdef uint64_t until = deadline(quiet)
        self.enter_once()
        try:
            while not books_even(self.books) and swarm_now() < until:
                if load(&self.books.accounted) != last:
                    last, until = load(&self.books.accounted), deadline(quiet)
                with nogil:
                    self.round(10)
                PyErr_CheckSignals()
            if books_even(self.books):
                return True
            self.give_up_missing()
            return False
        finally:
            self.inside = False

    cdef int enter_once(self) except -1:
        if self.inside:
            raise RuntimeError("a swarm is served by one thread at a time")
        self.inside = True
        return 0

    cdef int serve_until(self, uint64_t until) except -1 nogil:
        cdef uint64_t now = swarm_now()
        while True:
            self.round(<int>((until - now + 999999) // 1000000) if until > now else 0)
            now = swarm_now()
            if now >= until:
                return 0

    cdef int round(self, int milliseconds) except -1 nogil:
        """One look at all sockets.

        Within a burst it does not fall asleep: to wake an idle CPU for each frame costs the server a good part of what
        sending it costs (1000 clients, one message in flight: 131 000 frames/s with sleep, 154 000 so).
        """
        cdef int count = epoll_wait(self.ep, self.events, EVENTS, 0), i
        while count == 0 and swarm_now() - self.now < AWAKE_NS:
            sched_yield()
            count = epoll_wait(self.ep, self.events, EVENTS, 0)
        if count == 0:
            count = epoll_wait(self.ep, self.events, EVENTS, milliseconds)
        for i in range(count):
            self.on_event(&self.clients[self.events[i].data.u64])
        return 0

    cdef int on_event(self, Client *c) except -1 nogil:
        if c.stage == OPEN or c.stage == ASKED:
            return self.on_readable(c)
        if c.stage == STALLED:
            return self.hang_up(c, NO_CLOSE)
        with gil:
            return self.on_connected(c) if c.stage == CONNECTING else self.on_securing(c) if c.stage == SECURING else 0

    # ---- what came of it ----

    def counters(self) -> dict:
        """The counts of `Counters`."""
        return {
            "connecting": self.connecting, "open": self.open_now, "opened": self.opened,
            "refused": dict(self.refused), "closed": dict(self.closed),
            "delivered": load(&self.books.delivered), "lost": self.lost, "cut_off": self.cut_off(),
            "duplicated": self.duplicated, "reordered": self.reordered,
            "damaged": self.damaged, "other": self.other, "pings": self.pings, "bytes": self.bytes,
        }

    def latencies(self, *, bint streams=False) -> list:
        """From the stamp to the read that brought it: (upper bound in µs, count), ascending, to 1/32 or 1 µs.

        Args:
            streams: those of the event streams; else those of the websockets.
        """
        return buckets(self.latency[1 if streams else 0])

    def handshakes(self) -> list:
        """From connect() to the 101, or the 200 of an event stream, in the same way."""
        return buckets(self.handshake)

    def per_client(self) -> list:
        """(delivered, lost) of each client that was open once and is none of the stalled."""
        cdef uint32_t i
        return [(self.clients[i].delivered, self.clients[i].lost) for i in range(self.count)
                if self.clients[i].opened and not self.clients[i].stalls]

    def reset(self) -> None:
        """Latencies and counts of messages to zero; connections and their counts stay.

        After a warm-up `settle` first: what is still on its way would be counted behind the zero.
        """
        self.forget_messages()
        self.bytes = self.pings = 0

    def received(self) -> int:
        """Messages delivered until now, as in `counters`."""
        return load(&self.books.delivered)

    def close(self) -> None:
        """Closes all sockets, with a close frame where it goes at once. They count as neither closed nor open."""
        cdef unsigned char[2] code = [NORMAL >> 8, NORMAL & 255]
        cdef Client *c
        cdef uint32_t i
        self.enter_once()
        try:
            for i in range(self.count):
                c = &self.clients[i]
                if c.stage == OPEN or c.stage == STALLED:
                    self.answer(c, CLOSE, code, 2)
                if c.stage != IDLE and c.stage != OVER:
                    self.drop(c)
            self.begun, self.connecting, self.open_now = self.count, 0, 0
            self.accepts.clear()
        finally:
            self.inside = False


cdef uint64_t deadline(double seconds) noexcept:
    return swarm_now() + <uint64_t>(max(0.0, min(seconds, 1e9)) * 1e9)


include "_swarm_publisher.pxi"
