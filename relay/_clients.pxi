# The clients: slots, what is sent to one of them, and how a connection ends.
#
# Closing is always deferred. A connection that is over is marked dead by `bury`, and `finish_turn` reaps it once
# nothing walks over an array any more; `reap` is the one place that closes a client's socket.

cdef inline size_t inbound_held(Inbound *inbound) noexcept:
    """Bytes allocated for it."""
    return sizeof(Inbound) + inbound.room + inbound.message_size + inbound.answer_size


cdef int count(dict counts, int code) except -1:
    """One more of a close code or an HTTP status."""
    counts[code] = counts.get(code, 0) + 1
    return 0


@cython.internal
cdef class Clients:
    """Slots for every connection of the process, and the values of its services."""

    cdef int ep
    cdef Slot *slots
    cdef uint32_t capacity, limit, used, high
    cdef uint32_t free_slot, dead_slot
    cdef Row silent, begun  # heads: those of whom nothing has come, and those of whom a part has
    cdef uint32_t now       # the tick: stands still while the process does
    cdef uint32_t stood     # ticks for which it has
    cdef uint32_t max_heads, head_ticks
    cdef int64_t last_tick
    cdef size_t max_live, most_live, max_head
    cdef size_t max_inbound, inbound_bytes  # of all that inbound_held counts
    cdef bytes head_too_slow, head_too_large    # the answers
    cdef int64_t crowded_until
    cdef Peers peers
    cdef list services, listeners, emptied
    cdef Line fresh, unfinished  # topics to be delivered, and those whose delivery has begun
    cdef int rest           # an eventfd in the epoll instance, readable while `left`
    cdef readonly bint left # whether the last flush has left something to the next
    cdef bint inside
    cdef object on_request, on_text, on_idle, on_error, on_binary, on_body
    cdef unsigned char *inbox
    cdef epoll_event events[EVENTS]

    def __cinit__(self, *, uint32_t limit, size_t max_live, size_t max_inbound=67108864, size_t max_head=8192,
                  uint32_t max_heads=1024, double head_timeout=5, on_request, on_text, on_idle, on_error,
                  on_binary=None, on_body=None):
        self.ep = self.rest = -1
        if not 0 < max_head <= INBOX or max_heads == 0:
            raise ValueError(f"{max_head} bytes of a head, {max_heads} heads at once")
        self.head_ticks = ticks(head_timeout)
        self.max_head, self.max_heads, self.max_inbound = max_head, max_heads, max_inbound
        self.head_too_slow = plain_answer(
            b"408 Request Timeout", b"The request head was not complete in %g s.\n" % head_timeout)
        self.head_too_large = plain_answer(
            b"431 Request Header Fields Too Large", b"The request head has more than %d bytes.\n" % max_head)
        self.capacity = min(limit, 1 << 24) + RESERVE
        self.limit = limit
        # Pages never touched cost nothing, so the slab never moves.
        self.slots = <Slot *>PyMem_RawCalloc(self.capacity, sizeof(Slot))
        self.inbox = <unsigned char *>PyMem_RawMalloc(INBOX)
        if self.slots is NULL or self.inbox is NULL:
            raise MemoryError
        self.free_slot = self.dead_slot = NONE
        self.silent.first = self.silent.last = self.begun.first = self.begun.last = NONE
        self.ep = epoll_create1(EPOLL_CLOEXEC)
        self.rest = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.ep < 0 or self.rest < 0 or relay_watch(self.ep, EPOLL_CTL_ADD, self.rest, EPOLLIN, UNFINISHED) < 0:
            raise OSError(errno, "no descriptor for an epoll instance or an eventfd")
        self.max_live = max_live
        self.services, self.listeners, self.emptied = [], [], []
        self.peers = Peers()
        self.fresh, self.unfinished = Line(), Line()
        self.on_request, self.on_text, self.on_idle, self.on_error = on_request, on_text, on_idle, on_error
        self.on_binary, self.on_body = on_binary, on_body
        self.last_tick = now_ns()
        self.now = 1

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.high):
            if self.slots[i].stage != FREE:
                self.free_buffers(&self.slots[i])
                close(self.slots[i].fd)
        PyMem_RawFree(self.slots)
        PyMem_RawFree(self.inbox)
        if self.ep >= 0:
            close(self.ep)
        if self.rest >= 0:
            close(self.rest)

    def fileno(self) -> int:
        """The epoll instance: readable when `poll` has something to do."""
        return self.ep

    cdef void tell_unfinished(self, bint left) noexcept:
        """Readable, and no `call_soon`: that goes through the interpreter for each 2 ms, 40 us when its code is cold."""
        cdef uint64_t count = 1
        if left == self.left:
            return
        self.left = left
        if left:
            write(self.rest, &count, sizeof(count))
        else:
            read(self.rest, &count, sizeof(count))

    def add_service(self, *, bytes prefix=b"", bytes suffix=b"", bytes notice=b"", bint newest_only=False, double ping_interval=10,
                    double pong_timeout=75, double write_timeout=10, size_t max_message=65536,
                    size_t max_backlog=262144, size_t max_published=1048576, uint32_t max_fragments=64,
                    uint32_t frame_rate=20, uint32_t frame_burst=100) -> int:
        """A set of topics with its values; its number.

        Args:
            prefix: what stands before the escaped text of a published message in its frame.
            suffix: what stands behind it.
            notice: the frame that clients of protocol version 2 get where a message was dropped for its size.
            newest_only: a client that lags keeps the newest frame alone instead of being closed (snapshots).
            ping_interval: seconds between two heartbeats of a client.
            pong_timeout: seconds of silence after which a client is closed with 1008.
            write_timeout: seconds that the oldest unsent byte may wait; then 1013.
            max_message: bytes of an inbound message; more closes with 1009.
            max_backlog: bytes that may wait for a client behind the frame in progress; more closes with 1013.
            max_published: bytes of a published message, before escaping; a larger one is dropped and counted.
            max_fragments: frames of an inbound message; more closes with 1009.
            frame_rate: inbound frames a second, 0 for any number; more closes with 1008.
            frame_burst: inbound frames at once, 6553 at most.

        Raises:
            ValueError: an interval that is not positive.
        """
        cdef Service service = Service()
        service.index = len(self.services)
        service.prefix, service.suffix, service.notice, service.newest_only = prefix, suffix, notice, newest_only
        service.lead = event_lead(prefix)
        service.ping_every, service.silence, service.write_timeout = ticks(ping_interval), ticks(pong_timeout), ticks(write_timeout)
        service.max_message, service.max_backlog, service.max_published = max_message, max_backlog, max_published
        service.pressing = min(max_backlog // 2, <size_t>PRESSING)
        service.max_fragments, service.frame_rate = max_fragments, frame_rate
        service.frame_burst = TICKS_PER_SECOND * min(frame_burst, <uint32_t>MOST_BURST)
        if service.index > 255:
            raise ValueError("256 services are the most")
        self.services.append(service)
        return service.index

    # ---- who a client is ----

    def trust(self, networks, *, bint unix=False, uint32_t max_per_address=0) -> None:
        """Whom to believe what it says of its clients, and how many connections an address may have. Once, at the start.

        Args:
            networks: of proxies, each (address, bits): 16 bytes, and how many of their 128 bits count.
            unix: whether a peer on a Unix socket is such a proxy, too.
            max_per_address: connections of one address (of an IPv6 /64), 0 for any number.
        """
        self.peers.trust(networks, unix, max_per_address)

    def peer(self, uint64_t client):
        """(address, trusted) of a client: 16 bytes as in `address`, and whether it may say who its client is; or None."""
        cdef Slot *slot = self.find(client)
        if slot is NULL:
            return None
        return PyBytes_FromStringAndSize(<char *>slot.address, 16), bool(slot.peer & TRUSTED)

    def forwarded(self, uint64_t client, bytes address) -> None:
        """The client behind a trusted proxy, as that one says: 16 bytes."""
        cdef Slot *slot = self.find(client)
        if len(address) != 16:
            raise ValueError(f"{address!r} is no address")
        if slot is not NULL and not slot.peer & CHARGED:
            memcpy(slot.address, PyBytes_AS_STRING(address), 16)

    def charge(self, uint64_t client) -> bool:
        """Counts a client among those of its address until it ends; false where they are as many as may be."""
        cdef Slot *slot = self.find(client)
        if slot is NULL or self.peers.charge(slot):
            return True
        self.breach(self.index_of(slot), PER_ADDRESS)
        return False

    cdef Slot *find(self, uint64_t client) noexcept:
        """The slot of a handle, or NULL: gone, and its place perhaps another's."""
        cdef uint32_t index = client & 0xFFFFFFFF
        if index >= self.high or self.slots[index].generation != <uint32_t>(client >> 32):
            return NULL
        if self.slots[index].stage == FREE or self.slots[index].dead:
            return NULL
        return &self.slots[index]

    cdef inline uint64_t handle(self, uint32_t index) noexcept:
        return <uint64_t>self.slots[index].generation << 32 | index

    cdef inline uint32_t index_of(self, Slot *slot) noexcept:
        return <uint32_t>(slot - self.slots)

    def accept(self, uint64_t client, bytes answer, uint8_t version=0, double expires_in=0, bint events=False) -> bool:
        """Parks a client that has been judged: `answer` is sent by `attach`, its 101 or the head of its event stream.

        Args:
            client: as `on_request` gave it.
            answer: the whole HTTP answer; of an event stream the head, and what may stand ahead of the first event.
            version: of the protocol it asked for; frames of newer ones pass it by.
            expires_in: seconds after which it is closed with 1008; 0: never.
            events: it gets server-sent events instead of websocket frames.
        """
        cdef Slot *slot = self.find(client)
        cdef Inbound *inbound
        if slot is NULL or slot.stage != HEAD:
            return False
        inbound = self.inbound_of(slot)
        inbound.answer = <unsigned char *>PyMem_RawMalloc(PyBytes_GET_SIZE(answer))
        if inbound.answer is NULL:
            raise MemoryError
        inbound.answer_size = PyBytes_GET_SIZE(answer)
        self.inbound_bytes += inbound.answer_size
        memcpy(inbound.answer, PyBytes_AS_STRING(answer), inbound.answer_size)
        self.leave_heads(self.index_of(slot))
        slot.stage = PARKED
        slot.kind = STREAM if events else WEBSOCKET
        slot.version = version
        slot.expires = self.now + self.stood + ticks(expires_in) if expires_in > 0 else 0
        return True

    def refuse(self, uint64_t client, bytes answer) -> bool:
        """Sends a client that is no websocket yet its HTTP answer, counted by its status, then ends the connection."""
        cdef Slot *slot = self.find(client)
        if slot is NULL or slot.stage > PARKED:
            return False
        self.turn_away(self.index_of(slot), answer)
        return True

    cdef int turn_away(self, uint32_t index, bytes answer) except -1:
        cdef Slot *slot = &self.slots[index]
        count((<Service>self.services[slot.service]).responses, int(answer[9:12]))
        if slot.stage == HEAD:
            self.leave_heads(index)
        self.inbound_drop(slot)
        slot.stage = CLOSING
        slot.farewell = 1
        slot.deadline = self.now + LINGER_TICKS
        slot.tokens = LINGER_READS
        self.say(index, PyBytes_AS_STRING(answer), PyBytes_GET_SIZE(answer))
        self.all_sent(index)
        return 0

    def close(self, uint64_t client, int code, bytes reason=b"") -> bool:
        """Sends a close frame behind what waits, and awaits the peer's for 2 s (RFC 6455, 7.1)."""
        cdef Slot *slot = self.find(client)
        if slot is NULL or slot.stage != OPEN:
            return False
        self.settle(self.index_of(slot))
        self.part(self.index_of(slot), code, reason, True)
        return True

    def close_some(self, uint32_t count, int code, bytes reason=b"") -> int:
        """Closes up to `count` websockets, whichever; how many are left. For a drain that spreads its closes.

        With the last of them go those that are none yet: a browser's spare connections hold up no drain.
        """
        cdef uint32_t i, left = 0
        for i in range(self.high):
            if self.slots[i].stage == OPEN and not self.slots[i].dead:
                if count > 0:
                    count -= 1
                    self.settle(i)
                    self.part(i, code, reason, True)
                else:
                    left += 1
        if left == 0:
            self.end_requests()
        return left

    cdef int end_requests(self) except -1:
        """Ends those that are no websockets yet: an answer for who has asked, or may just be about to.

        Of 600 who waited in the accept queue of a stopped process, some were reset unread in one drain of three.
        """
        cdef uint32_t i
        cdef Slot *slot
        for i in range(self.high):
            slot = &self.slots[i]
            if slot.stage == PARKED and not slot.dead:
                self.turn_away(i, ENDING)
            elif slot.stage == HEAD and not slot.dead and slot.deadline + PROMPT_TICKS <= self.now + self.head_ticks and \
                    recv(slot.fd, self.inbox, 1, MSG_DONTWAIT | MSG_PEEK) <= 0:
                self.give_up_head(i)
        return 0

    cdef int give_up_head(self, uint32_t index) except -1:
        if self.slots[index].inbound is NULL:
            self.bury(index)  # it never said a word: a port scan, or a browser's spare connection
            return 0
        return self.turn_away(index, self.head_too_slow)

    cdef int owe(self, Service service, uint32_t index, Burst *burst, size_t sent) except -1:
        """Keeps what the socket did not take. A client past its bound is closed, or left with the newest frame alone."""
        cdef Slot *slot = &self.slots[index]
        cdef bint large = burst.frames == 1 and burst.size > service.max_backlog
        cdef size_t before, waiting
        if slot.backlog is NULL:
            slot.backlog = backlog_new()
            slot.backlog.began = self.now
            relay_watch(self.ep, EPOLL_CTL_MOD, slot.fd, EPOLLIN | EPOLLOUT, self.handle(index))
        elif service.newest_only and not burst.opaque:
            before = slot.backlog.count
            backlog_keep_started(slot.backlog, burst.min_version)
            service.replaced += before - slot.backlog.count
        backlog_push(slot.backlog, burst, sent, self.now)
        if large and sent == 0 and slot.backlog.large is NULL:
            slot.backlog.large = burst
        if slot.stage != OPEN:
            return 0
        waiting = backlog_waiting(slot.backlog)
        if waiting > service.max_backlog:  # with `newest_only` these are pongs: 20 a second, and each a sign of life
            self.breach(index, BACKLOG)
            return self.dismiss(index, 1013, b"too slow: messages were waiting")
        if service.newest_only:
            return 0
        if (waiting > service.max_backlog // 2 or slot.backlog.large is not NULL) and not slot.backlog.crowded_at and \
                self.now - slot.backlog.began <= YOUNG_TICKS:
            backlog_crowd(slot.backlog, service.max_backlog // 2)
            self.crowded_until = now_ns() + GRACE_NS
        return 0

    cdef int drain(self, uint32_t index) except -1:
        """EPOLLOUT: what fits, in one sendmsg, so that one client never holds up the others."""
        cdef Slot *slot = &self.slots[index]
        cdef Backlog *backlog = slot.backlog
        cdef iovec vector[VECTOR]
        cdef msghdr message
        cdef Owed *owed
        cdef uint32_t i
        cdef ssize_t sent
        if backlog is NULL:
            return 0
        memset(&message, 0, sizeof(message))
        message.msg_iov = vector
        message.msg_iovlen = min(backlog.count, <uint32_t>VECTOR)
        for i in range(<uint32_t>message.msg_iovlen):
            owed = backlog_at(backlog, i)
            vector[i].iov_base = owed.burst.data + owed.start
            vector[i].iov_len = owed.end - owed.start
        sent = sendmsg(slot.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                (<Service>self.services[slot.service]).write_errors += 1
                self.bury(index)
            return 0
        backlog_sent(backlog, sent)
        if backlog.count == 0:
            backlog_free(backlog)
            slot.backlog = NULL
            relay_watch(self.ep, EPOLL_CTL_MOD, slot.fd, EPOLLIN, self.handle(index))
            self.all_sent(index)
        return 0

    cdef int say(self, uint32_t index, const void *data, size_t size) except -1:
        """Bytes for one client alone, as one unit."""
        cdef Slot *slot = &self.slots[index]
        cdef ssize_t sent = 0
        cdef Burst *burst
        if slot.dead:
            return 0
        if slot.backlog is NULL:
            sent = relay_send(slot.fd, data, size)
            if sent == <ssize_t>size:
                return 0
            if sent < 0:
                if errno != EAGAIN and errno != EINTR:
                    self.bury(index)
                    return 0
                sent = 0
        burst = burst_of(<const unsigned char *>data, size)
        try:
            self.owe(self.services[slot.service], index, burst, sent)
        finally:
            burst_release(burst)
        return 0

    cdef int settle(self, uint32_t index) except -1:
        """Sends a client what its topic has for it already, ahead of a close frame."""
        return 0

    cdef int deliver_some(self) except -1:
        """Delivers for at most about 2 ms."""
        return 0

    cdef int fail(self, uint32_t index, int code, bytes reason) except -1:
        """The peer broke a rule: a close frame, the end of our half, and whatever it still sends is thrown away."""
        cdef Slot *slot = &self.slots[index]
        self.part(index, code, reason, True)
        if slot.dead:
            return 0
        self.inbound_drop(slot)
        slot.farewell = 1
        return self.all_sent(index)

    cdef int dismiss(self, uint32_t index, int code, bytes reason) except -1:
        """Closes a laggard: of what waits for it only the frame in progress still goes out."""
        if self.slots[index].backlog is not NULL:
            backlog_keep_started(self.slots[index].backlog)
        return self.part(index, code, reason, True)

    cdef int part(self, uint32_t index, int code, bytes reason, bint ours) except -1:
        """Takes a client out of its topic and says goodbye. `ours`: not the echo of the peer's.

        An event stream hears the code and the reason in its last event, and ends.
        """
        cdef Slot *slot = &self.slots[index]
        cdef Service service = self.services[slot.service]
        cdef unsigned char frame[127]
        cdef size_t size = min(PyBytes_GET_SIZE(reason), 123)
        cdef bytes event
        if slot.stage != OPEN or slot.dead:
            return 0
        if ours:
            count(service.closes, code)
        self.leave_topic(index)
        slot.stage = CLOSING
        slot.farewell = 2
        slot.deadline = self.now + LINGER_TICKS
        slot.tokens = LINGER_READS
        self.leave_service(slot)
        if slot.kind == STREAM:
            slot.farewell = 1
            event = b'event: close\ndata: {"type":"close","code":%d,"reason":"%b"}\n\n' % (code, reason)
            self.say(index, PyBytes_AS_STRING(event), PyBytes_GET_SIZE(event))
            return self.all_sent(index)
        frame[0] = 0x80 | CLOSE
        frame[1] = <unsigned char>(2 + size)
        frame[2] = <unsigned char>(code >> 8)
        frame[3] = <unsigned char>(code & 255)
        memcpy(frame + 4, PyBytes_AS_STRING(reason), size)
        return self.say(index, frame, 4 + size)

    cdef void leave_service(self, Slot *slot) noexcept:
        cdef Service service = self.services[slot.service]
        service.connections -= 1
        service.streams -= slot.kind == STREAM

    cdef void leave_topic(self, uint32_t index) noexcept:
        cdef Slot *slot = &self.slots[index]
        if slot.topic is NULL:
            return
        topic = <Topic>slot.topic
        topic_leave(topic, self.slots, index)
        if topic_clients(topic) == 0:
            self.emptied.append(topic)

    cdef int all_sent(self, uint32_t index) except -1:
        """What follows on a client's last byte: nothing, the end of our half, or the end."""
        cdef Slot *slot = &self.slots[index]
        if slot.stage != CLOSING or slot.dead or slot.backlog is not NULL:
            return 0
        if slot.farewell == 3 or (slot.farewell == 1 and self.used > self.limit):
            self.bury(index)  # above the limit nobody lingers: these slots are what health paths are answered from
        elif slot.farewell == 1:
            shutdown(slot.fd, SHUT_WR)
        return 0

    cdef void bury(self, uint32_t index) noexcept:
        """Marks a connection dead; the reap closes it."""
        cdef Slot *slot = &self.slots[index]
        if slot.dead or slot.stage == FREE:
            return
        if slot.stage == HEAD:
            self.leave_heads(index)
        slot.dead = 1
        slot.next = self.dead_slot
        self.dead_slot = index

    cdef int finish_turn(self) except -1:
        """Reaps the dead and tells which topics are idle; never while something walks over an array."""
        cdef Topic topic
        cdef list emptied
        if self.inside:
            return 0
        self.reap_dead()
        if live_bytes > self.max_live or self.inbound_bytes > self.max_inbound:
            self.relieve()
            self.relieve_inbound()
            self.reap_dead()
        assert self.inbound_bytes <= self.max_inbound
        if self.emptied:
            emptied = self.emptied
            self.emptied = []
            for topic in emptied:
                if topic_clients(topic) or topic.service.topics.get(topic.name) is not topic:
                    continue
                topic_discard(topic)
                del topic.service.topics[topic.name]
                self.call(self.on_idle, (topic.service.index, topic.name))
        assert self.check()
        return 0

    cdef int reap_dead(self) except -1:
        cdef uint32_t index
        while self.dead_slot != NONE:
            index = self.dead_slot
            self.dead_slot = self.slots[index].next
            self.reap(index)
        return 0

    cdef int reap(self, uint32_t index) except -1:
        """The one place where a client's socket is closed."""
        cdef Slot *slot = &self.slots[index]
        cdef uint32_t generation = slot.generation + 1
        self.leave_topic(index)
        if slot.stage == OPEN:
            self.leave_service(slot)
        self.peers.release(slot)
        self.free_buffers(slot)
        close(slot.fd)
        memset(slot, 0, sizeof(Slot))
        slot.generation = generation
        slot.next = self.free_slot
        self.free_slot = index
        self.used -= 1
        return 0

    cdef void free_buffers(self, Slot *slot) noexcept:
        backlog_free(slot.backlog)
        slot.backlog = NULL
        self.inbound_drop(slot)

    cdef int relieve(self) except -1:
        """The process owes too much: those who owe most go first, with 1013, until it holds.

        What is not delivered yet is owed as well: by all clients of the topic. Who is being closed still owes the frame
        in progress, which may be one of 6 MB, for 2 s; where that is most, the connection ends.
        """
        cdef uint32_t i, worst
        cdef size_t most
        cdef Slot *slot
        cdef Service service
        cdef Topic topic, flooded
        while live_bytes > self.max_live:
            worst, most, flooded = NONE, 0, None
            for service in self.services:
                for topic in service.topics.values():
                    if topic_clients(topic) and topic.waiting > most:
                        flooded, most = topic, topic.waiting
            for i in range(self.high):
                slot = &self.slots[i]
                if slot.stage >= OPEN and not slot.dead and slot.backlog is not NULL and slot.backlog.bytes > most:
                    worst, most = i, slot.backlog.bytes
            if worst != NONE and self.slots[worst].stage == CLOSING:
                self.bury(worst)
                self.reap_dead()
            elif worst != NONE:
                self.breach(worst, LIVE)
                self.dismiss(worst, 1013, b"too slow: the relay is short of memory")
            elif flooded is not None:
                self.dismiss_all(flooded, LIVE)
            else:
                return 0
        return 0

    cdef int relieve_inbound(self) except -1:
        """Clients have sent too much that is not complete: those who hold most go first, until it holds.

        All who hold more than half of the most in one pass: they may be ten thousand, and a look at every slot for
        each of them would stop the process.
        """
        cdef uint32_t i
        cdef size_t most
        while self.inbound_bytes > self.max_inbound:
            most = 0
            for i in range(self.high):
                if self.slots[i].inbound is not NULL:
                    most = max(most, inbound_held(self.slots[i].inbound))
            for i in range(self.high):
                if self.inbound_bytes <= self.max_inbound:
                    return 0
                if self.slots[i].inbound is not NULL and inbound_held(self.slots[i].inbound) > most // 2:
                    self.stop_sender(i)
        return 0

    cdef int stop_sender(self, uint32_t index) except -1:
        """Frees what a client has sent, and ends it: with 503 or 1013."""
        cdef Slot *slot = &self.slots[index]
        self.breach(index, INBOUND)
        self.inbound_drop(slot)
        if slot.dead:
            return 0
        if slot.stage <= PARKED:
            return self.turn_away(index, NO_MEMORY)
        return self.fail(index, 1013, b"too much memory is held by messages that are not complete")

    cdef Inbound *inbound_of(self, Slot *slot) except NULL:
        if slot.inbound is NULL:
            slot.inbound = <Inbound *>PyMem_RawCalloc(1, sizeof(Inbound))
            if slot.inbound is NULL:
                raise MemoryError
            self.inbound_bytes += sizeof(Inbound)
        return slot.inbound

    cdef void inbound_drop(self, Slot *slot) noexcept:
        if slot.inbound is not NULL:
            self.inbound_bytes -= inbound_held(slot.inbound)
            PyMem_RawFree(slot.inbound.data)
            PyMem_RawFree(slot.inbound.message)
            PyMem_RawFree(slot.inbound.answer)
            PyMem_RawFree(slot.inbound)
            slot.inbound = NULL

    cdef void breach(self, uint32_t index, int bound) noexcept:
        """Counts that a client is ended by a bound; who is being ended already breaks no other."""
        cdef Slot *slot = &self.slots[index]
        if not slot.dead and slot.stage != CLOSING:
            (<Service>self.services[slot.service]).breaches[bound] += 1

    cdef int dismiss_all(self, Topic topic, int bound) except -1:
        """Ends a topic that gets more than this process can deliver: other topics must not wait for it."""
        cdef uint32_t i
        topic_seal_all(topic)  # who leaves is a hole now, and nobody moves
        for i in range(topic.count):
            if topic.slots[i] != NONE:
                self.breach(topic.slots[i], bound)
                self.dismiss(topic.slots[i], 1013, b"too slow: more comes than can be delivered")
        topic_discard(topic)
        topic_close_holes(topic, self.slots)
        return 0

    cdef bint check(self) except -1:
        """The invariants; the debug build asserts them at the end of every turn."""
        return True

    cdef object call(self, function, tuple args):
        """A callback. Whatever it raises is reported and ends here: C code has nowhere to send it."""
        try:
            return function(*args)
        except Exception as error:
            self.on_error(error)
            return None

    cdef void leave_heads(self, uint32_t index) noexcept:
        row_leave(&self.begun if self.slots[index].peer & BEGUN else &self.silent, self.slots, index)
