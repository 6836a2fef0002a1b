# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The fan-out core: sockets, websocket frames, topics. It knows no Redis command, no settings and no service rule.

How bytes move. `Intake` turns pub/sub messages into frames at the end of each topic's open burst. `flush` seals the
bursts and gives each client of the topic one send(2) of the shared bytes; whoever does not take them at once owes a
reference (his backlog) and waits for EPOLLOUT. `poll` serves the sockets: accepts, request heads, inbound frames,
drains. `tick` (every 100 ms) sends heartbeats and gives up on the silent. Closing is always deferred: a connection
that is over is marked dead and reaped at the end of the turn, when nothing walks over an array any more.

Client sockets live in an epoll instance of the core's own, whose one file descriptor the event loop watches: a client
costs a C struct and no Python object. One thread owns the loop and the core; after a fork make a new one.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeASCII
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.string cimport memchr, memcmp, memset
from libc.time cimport time
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, time_t, timespec
from posix.unistd cimport close, read, write

from hiredis import ProtocolError

include "_system.pxi"
include "_frames.pxi"
include "_events.pxi"
include "_histograms.pxi"
include "_accept.pxi"
include "_heads.pxi"
include "_topics.pxi"
include "_proxy.pxi"

BUILD = RELAY_BUILD.decode()
TICK = 0.1  # seconds between two calls of Core.tick
# What Core.stats counts the breaches of, in the order of the pxd.
BOUNDS = (
    "head_size", "headers", "head_timeout", "heads", "connections", "topics", "message_size", "fragments", "frame_rate",
    "inbound", "backlog", "write_timeout", "undelivered", "live", "pong_timeout", "per_address", "proxy_header",
)

cdef enum:
    TICKS_PER_SECOND = 10
    EVENTS = 256            # epoll events of one round
    ROUNDS = 4              # rounds of one poll
    ACCEPTS = 64            # connections taken from one listener in one round
    FEED = 16384            # bytes that are taken from a read at once
    SLICE_NS = 2000000      # deliveries and handshakes run so long before the event loop gets its turn
    INBOX = 65536           # one read of a client
    PROMPT_TICKS = 2        # a head that has not come by now makes way, where there is no room or the end has come
    LINGER_TICKS = 20       # 2 s for the peer's close or end of file
    LINGER_READS = 64       # meanwhile, each of 64 KiB at most: a flood of 200 MB was read to its end
    TICK_NS = 100000000     # between two ticks
    CATCH_UP = 5            # ticks that one call makes up for: a stopped process must not judge by time it slept
    RESERVE = 16            # slots above the limit, from which health paths are answered
    VECTOR = 64
    MERGED = 65536          # bytes of bursts that are sent as one
    PRESSING = 131072       # bytes of a topic that should wait no longer, where half of what may wait for a client is more
    FLOOD = 16              # times what may wait for a client: a topic with more undelivered is given up
    YOUNG_TICKS = 1         # a backlog of at most 0.2 s: of a client that may not have had its turn of the processor yet
    GRACE_NS = 100000000    # so long it is worth waiting for
    WORTH_COPYING = 4096    # bytes that are freed by it
    LISTENER = 0x80000000   # marks a listener in an epoll event
    UNFINISHED = 0xFFFFFFFF # marks what a flush has left
    TRIM = 16777216         # bytes of frames that must have gone before their memory is given back
    SWEEP = 10              # every slot is looked at once in so many ticks
    BLOCK = 32              # neighbouring slots that are looked at in one tick
    MOST_ANSWER = 512       # bytes of a 101 that the core builds
    SMALL = 192             # bytes of a burst that one line or two fit into
    MOST_BURST = 6553       # frames at once: what a slot's 16 bits can count in tenths

FEED_SIZE = FEED
FLOOD_FACTOR = FLOOD
LONGEST_INTRODUCTION = BINARY_MOST  # bytes of a PROXY header

cdef const char *HEARTBEAT = b'\x81\x0f{"type":"ping"}\x89\x00'
cdef size_t HEARTBEAT_SIZE = 19
cdef const char *JSON_PONG = b'{"type":"pong"}'
cdef bytes MESSAGE = b"message"


cdef bytes plain_answer(bytes status, bytes sentence, bytes extra=b""):
    return b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n%b\r\n%b" % (
        status, len(sentence), extra, sentence)


cdef bytes NOT_INTRODUCED = plain_answer(
    b"400 Bad Request", b"A connection of a trusted proxy must begin with a PROXY header (RELAY_PROXY_PROTOCOL).\n")
cdef bytes UNDECIDED = plain_answer(b"500 Internal Server Error", b"The relay failed to judge this request; its log says why.\n")
cdef bytes FULL = plain_answer(b"503 Service Unavailable", b"No room for more connections.\n", b"Retry-After: 5\r\n")
cdef bytes ENDING = plain_answer(b"503 Service Unavailable", b"This relay is restarting.\n", b"Retry-After: 1\r\n")
cdef bytes NO_MEMORY = plain_answer(
    b"503 Service Unavailable", b"Too much memory is held by requests that are not complete.\n", b"Retry-After: 5\r\n")


cdef inline int64_t now_ns() noexcept:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef uint32_t ticks(double seconds) except? 0:
    if not 0 < seconds < 1e8:
        raise ValueError(f"{seconds} s is no interval")
    return max(1, <uint32_t>(seconds * TICKS_PER_SECOND + 0.5))


@cython.final
cdef class Service:
    def __cinit__(self):
        self.topics = {}
        self.closes, self.responses = {}, {}
        self.epoch = 1


@cython.final
@cython.no_gc
cdef class Topic:
    def __dealloc__(self):
        topic_discard(self)
        PyMem_RawFree(self.slots)


include "_clients.pxi"
include "_sockets.pxi"
include "_newcomers.pxi"
include "_looks.pxi"


@cython.final
cdef class Core(Looks):
    """All sockets of a process.

    Args:
        limit: connections at once; those above it are shown to `on_request` with `full` true and should be refused.
        max_live: bytes of frames alive in the process; above it those who owe most are closed with 1013.
        max_inbound: bytes that unfinished heads and messages of all clients take; above it those who hold most are
            closed with 1013 or answered 503.
        max_head: bytes of a request head, at most 65536; more is answered 431.
        max_heads: request heads of which a part has come; the oldest is dropped for one more.
        head_timeout: seconds until a request head must be complete; then 408.
        on_request: `(client, service, head, full)` for each complete request head, bytes up to the blank line. It
            must call `accept` or `refuse`; a client left undecided is answered 500.
        on_text: `(client, service, text)` for each text message that is not the plain `{"type":"pong"}`.
        on_idle: `(service, topic)` when a topic has lost its last client.
        on_error: `(exception)` for whatever one of the others raised.
        on_binary: `(client, service, data)` for each binary message; without it they are dropped.
        on_body: `(client, service, data)` for the body of a request that `await_body` was called for.

    `client` is an int naming one connection for its lifetime; calls with one that is gone do nothing and say so.

    Raises:
        OSError: no epoll instance could be made.
        ValueError: `max_head`, `max_heads` or `head_timeout` is outside of what can be.
    """

    cdef int64_t read_at    # ns of the clock: what comes into bursts now was read then
    cdef int64_t looked_at  # at the clock, by a delivery

    # ---- from Redis to the bursts ----

    cdef int append_message(self, Topic topic, const unsigned char *text, size_t size) except -1:
        """The envelope around the escaped text, at the end of the open burst."""
        cdef Service service = topic.service
        cdef const unsigned char *prefix
        cdef size_t inner, body, whole
        cdef Py_ssize_t length
        cdef bint ascii = True, plain
        cdef int kind
        cdef unsigned char *out
        cdef Burst *burst
        if size > service.max_published:
            service.oversize += 1
            self.tell_gap(topic, service.notice)
            return 0
        plain = is_plain(text, size, &ascii)
        if not ascii:
            # The interpreter's decoder judges and mends: every byte that is no UTF-8 becomes U+FFFD.
            mended = PyUnicode_DecodeUTF8(<const char *>text, <Py_ssize_t>size, b"replace")
            text = <const unsigned char *>PyUnicode_AsUTF8AndSize(mended, &length)
            size = <size_t>length
        inner = size if plain else escaped_size(text, size)
        prefix = <const unsigned char *>PyBytes_AS_STRING(service.prefix)
        body = PyBytes_GET_SIZE(service.prefix) + inner + PyBytes_GET_SIZE(service.suffix)
        for kind in range(KINDS):
            if not topic_has(topic, kind):
                continue
            whole = frame_size(kind, service.lead, body)
            burst = self.room_for(topic, kind, whole)
            out = begin_frame(burst.data + burst.size, kind, service.lead, body)
            memcpy(out, prefix, PyBytes_GET_SIZE(service.prefix))
            out += PyBytes_GET_SIZE(service.prefix)
            if plain:
                memcpy(out, text, size)
                out += size
            else:
                out = escape(out, text, size)
            memcpy(out, PyBytes_AS_STRING(service.suffix), PyBytes_GET_SIZE(service.suffix))
            end_frame(out + PyBytes_GET_SIZE(service.suffix), kind)
            self.appended(topic, kind, burst, whole)
        return 0

    cdef Burst *room_for(self, Topic topic, int kind, size_t size) except NULL:
        """The topic's open burst with room for `size` bytes more. A frame above the bound travels alone: it is excused."""
        cdef Burst *burst = topic.open[kind]
        if burst is not NULL and size > topic.service.max_backlog:
            topic_seal(topic, kind)
            burst = NULL
        if burst is not NULL and topic.service.newest_only:
            topic_weigh(topic, topic.waiting - burst.size)
            burst.size = 0
            burst.frames = 0
            burst.read_at = self.read_at
        if burst is NULL:
            burst = burst_new(max(size, <size_t>SMALL))
            burst.read_at = self.read_at
        else:
            burst = burst_grow(burst, size)
        topic.open[kind] = burst
        return burst

    cdef int appended(self, Topic topic, int kind, Burst *burst, size_t size) except -1:
        burst.size += size
        burst.frames += 1
        assert burst.size <= burst.room
        topic_weigh(topic, topic.waiting + size)
        if topic.waiting - size > FLOOD * topic.service.max_backlog:
            return self.dismiss_all(topic, UNDELIVERED)
        if size > topic.service.max_backlog:
            topic_seal(topic, kind)
        self.enqueue(topic)
        return 0

    cdef void enqueue(self, Topic topic) noexcept:
        if not topic.queued:
            self.fresh.join(topic)

    def publish(self, int service, bytes topic, bytes text, int min_version=0) -> bool:
        """A text frame, `text` being UTF-8 as it is to arrive, to the topic's clients; false where it has none.

        With `min_version` above 0 it goes as a burst of its own to those who asked for that version or a newer one.
        """
        cdef Service s = self.services[service]
        cdef Topic t = s.topics.get(topic)
        if t is None or (min_version > 0 and t.newer == 0):
            return False
        self.read_at = now_ns()
        self.append_text(t, text, min_version)
        return True

    cdef int append_text(self, Topic topic, bytes text, int min_version) except -1:
        cdef size_t size = PyBytes_GET_SIZE(text), whole
        cdef bytes lead
        cdef unsigned char *out
        cdef Burst *burst
        cdef int kind
        for kind in range(KINDS):
            if not topic_has(topic, kind):
                continue
            if min_version > 0:
                topic_seal(topic, kind)
            lead = event_lead(text) if kind == STREAM else b""
            whole = frame_size(kind, lead, size)
            burst = self.room_for(topic, kind, whole)
            out = begin_frame(burst.data + burst.size, kind, lead, size)
            memcpy(out, PyBytes_AS_STRING(text), size)
            end_frame(out + size, kind)
            burst.min_version = <uint8_t>min_version
            self.appended(topic, kind, burst, whole)
            if min_version > 0:
                topic_seal(topic, kind)
        return 0

    def announce_gap(self, int service, bytes text, name=None) -> None:
        """Tells the clients of every topic that messages may be missing here, behind all that came before.

        Args:
            service: its number.
            text: the frame, UTF-8, for those of protocol version 2. The others are counted in `untold`.
            name: of the one topic, bytes, where it is not all of them.
        """
        cdef Service s = self.services[service]
        cdef Topic topic
        self.read_at = now_ns()
        for topic in list(s.topics.values()) if name is None else [s.topics[name]] if name in s.topics else []:
            self.tell_gap(topic, text)

    cdef int tell_gap(self, Topic topic, bytes text) except -1:
        topic.service.told += topic.newer
        topic.service.untold += topic_clients(topic) - topic.newer
        if topic.newer and text:
            self.append_text(topic, text, 2)
        return 0

    def deliver_fresh(self) -> None:
        """`flush`, unless one has left something: that is gone on with by the loop, and each read from Redis would take
        another 2 ms from everything else."""
        if not self.left:
            self.deliver_some()

    def flush(self) -> bool:
        """Delivers for at most about 2 ms; whether something is left for the next call.

        Half of the time is for topics that have not had any yet, so that one client's message need not wait for a
        burst to fifteen thousand others; the rest is for those that were not finished.

        While something is left `fileno` is readable, and `poll` goes on. Called by a callback of the core it does nothing
        yet: its arrays are being walked over.
        """
        self.deliver_some()
        return self.left

    cdef int deliver_some(self) except -1:
        cdef int64_t now = now_ns()
        if self.inside:
            self.tell_unfinished(True)
            return 0
        self.inside = True
        self.looked_at = now
        try:
            self.serve(self.fresh, now + SLICE_NS // 2)
            self.serve(self.unfinished, now + SLICE_NS)
            self.serve(self.fresh, now + SLICE_NS)
        finally:
            self.inside = False
            self.finish_turn()
        self.tell_unfinished(self.fresh.first is not None or self.unfinished.first is not None)
        return 0

    cdef int serve(self, Line line, int64_t until) except -1:
        cdef Topic topic
        while line.first is not None and self.looked_at < until:
            topic = line.leave()
            if topic.sealed is NULL:
                topic_seal_all(topic)
            self.deliver(topic, until)
            if topic_waits(topic):
                self.unfinished.join(topic)
        return 0

    cdef int deliver(self, Topic topic, int64_t until) except -1:
        """Each sealed burst to each client it is for, in one send; stops where the time is up."""
        cdef Service service = topic.service
        cdef Burst *burst
        cdef uint32_t index
        if topic.sealed is not NULL and topic.sealed.next is not NULL and not service.newest_only:
            topic_merge(topic)
        while topic.sealed is not NULL:
            burst = topic.sealed
            burst.begun |= burst.cursor < burst.end
            while burst.cursor < burst.end:
                index = topic.slots[burst.cursor]
                burst.cursor += 1
                if burst.cursor < burst.end and topic.slots[burst.cursor] != NONE:
                    # On its way while this one is sent to: waiting for slots was a quarter of what user space does.
                    __builtin_prefetch(&self.slots[topic.slots[burst.cursor]])
                if index != NONE:
                    self.push(service, index, burst)
                if burst.cursor & 15 == 0:
                    self.looked_at = now_ns()
                    if self.looked_at >= until:
                        return 0
            if burst.begun:
                self.measure(service, burst)
            topic.sealed = burst.next
            if not burst.copies:
                topic_weigh(topic, topic.waiting - burst.size)
            burst_release(burst)
        topic.last = NULL
        topic_close_holes(topic, self.slots)
        return 0

    cdef inline void measure(self, Service service, Burst *burst) noexcept:
        """A burst is delivered, in however many slices. The one look at the clock that `serve` needs behind it anyway."""
        self.looked_at = now_ns()
        observe(&service.delivery, relay_delays, self.looked_at - burst.read_at)
        observe(&service.sizes, relay_sizes, burst.frames)

    cdef inline int push(self, Service service, uint32_t index, Burst *burst) except -1:
        cdef Slot *slot = &self.slots[index]
        cdef ssize_t sent
        if slot.dead or burst.min_version > slot.version or burst.kind != slot.kind:
            return 0
        service.frames += burst.frames
        service.bytes += burst.size
        if slot.backlog is not NULL:
            return self.owe(service, index, burst, 0)
        sent = relay_send(slot.fd, burst.data, burst.size)
        if sent == <ssize_t>burst.size:
            return 0
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                service.write_errors += 1
                self.bury(index)
                return 0
            sent = 0
        return self.owe(service, index, burst, sent)

    cdef int settle(self, uint32_t index) except -1:
        cdef Slot *slot = &self.slots[index]
        cdef Topic topic
        cdef Burst *burst
        if slot.topic is NULL:
            return 0
        topic = <Topic>slot.topic
        topic_seal_all(topic)
        burst = topic.sealed
        while burst is not NULL and slot.topic is not NULL:  # a push may find it too slow
            if burst.cursor <= slot.position < burst.end:
                self.push(topic.service, index, burst)
            burst = burst.next
        return 0

    def close_topic(self, int service, bytes topic, int code, bytes reason=b"") -> int:
        """Closes every client of a topic; how many there were."""
        cdef Service s = self.services[service]
        cdef Topic t = s.topics.get(topic)
        cdef list clients
        if t is None:
            return 0
        clients = [self.handle(t.slots[i]) for i in range(t.count) if t.slots[i] != NONE]
        return sum(self.close(client, code, reason) for client in clients)

    @property
    def pressing(self) -> bool:
        """Whether more from Redis would end clients that had no chance to take any of it.

        So much waits in a topic that it should neither wait nor grow; or for clients whose backlog is so young that they
        may not have had the processor since: of 0.5 MB at once, one that reads without a pause got 152 KB and a 1013.
        """
        return self.presses()

    cdef bint presses(self) noexcept:
        return pressing_topics > 0 or (crowded_backlogs > 0 and now_ns() < self.crowded_until)

    @property
    def bulky(self) -> bool:
        """Whether so much waits in a topic that it should wait no longer."""
        return pressing_topics > 0

    def arrived(self, int service) -> int:
        """Messages that Redis has sent for a service so far, whatever their channel."""
        return (<Service>self.services[service]).arrived

    def watched(self, int service, bytes topic) -> bool:
        """Whether the topic has clients."""
        cdef Topic t = (<Service>self.services[service]).topics.get(topic)
        return t is not None and topic_clients(t) > 0

    # ---- the invariants ----

    cdef bint check(self) except -1:
        """The invariants of docs/architecture.md; true or AssertionError. The release build never calls it."""
        cdef uint32_t i, open = 0, pressing = 0, crowded = 0
        cdef size_t inbound = 0
        cdef Service service
        cdef Topic topic
        for service in self.services:
            for name, topic in service.topics.items():
                assert topic_clients(topic) > 0 and topic.name == name
                assert topic.waiting == self.bytes_in(topic) and topic.pressing == (topic.waiting >= service.pressing)
                pressing += topic.pressing
                assert topic.holes == 0 or topic.sealed is not NULL
                open += self.check_topic(topic)
        for i in range(self.high):
            if self.slots[i].topic is not NULL:
                open -= 1
            if self.slots[i].stage == OPEN:
                assert self.slots[i].fd >= 0
            if self.slots[i].backlog is not NULL:
                self.check_backlog(&self.slots[i])
                crowded += self.slots[i].backlog.crowded_at > 0
            if self.slots[i].inbound is not NULL:
                inbound += inbound_held(self.slots[i].inbound)
        assert open == 0
        assert inbound == self.inbound_bytes
        # Those of the process: a test may have made other cores.
        assert pressing <= pressing_topics and crowded <= crowded_backlogs
        return True

    cdef size_t bytes_in(self, Topic topic) noexcept:
        cdef size_t bytes = 0
        cdef Burst *burst = topic.sealed
        cdef int kind
        for kind in range(KINDS):
            if topic.open[kind] is not NULL:
                bytes += topic.open[kind].size
        while burst is not NULL:
            bytes += 0 if burst.copies else burst.size
            burst = burst.next
        return bytes

    cdef uint32_t check_topic(self, Topic topic) except? 0:
        """A slot is in a topic's array if and only if that is its topic."""
        cdef uint32_t position, index, clients = 0, newer = 0, streams = 0
        for position in range(topic.count):
            index = topic.slots[position]
            if index != NONE:
                assert self.slots[index].topic is <void *>topic and self.slots[index].position == position
                clients += 1
                newer += self.slots[index].version > 0
                streams += self.slots[index].kind == STREAM
        assert clients == topic_clients(topic) and newer == topic.newer and streams == topic.streams
        return clients

    cdef int check_backlog(self, Slot *slot) except -1:
        """Bytes are counted, never estimated; what waits stays within its bound."""
        cdef Backlog *backlog = slot.backlog
        cdef Service service = self.services[slot.service]
        cdef uint32_t i
        cdef size_t bytes = 0
        for i in range(backlog.count):
            assert backlog_at(backlog, i).start < backlog_at(backlog, i).end <= backlog_at(backlog, i).burst.size
            bytes += backlog_at(backlog, i).end - backlog_at(backlog, i).start
        assert bytes == backlog.bytes
        if backlog.count and slot.stage == OPEN:
            assert backlog_at(backlog, 0).start <= backlog.boundary <= backlog_at(backlog, 0).end
            assert backlog_waiting(backlog) <= service.max_backlog
        return 0


include "_intake.pxi"
