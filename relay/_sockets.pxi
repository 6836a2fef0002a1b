# What comes from the clients: connections, request heads, frames; and what comes from the clock.

@cython.final
@cython.internal
cdef class Listener:
    cdef int fd             # -1 once it has been stopped
    cdef int service
    cdef bint watched       # not while descriptors are short
    cdef bint fresh         # connections may wait that came before it was tuned
    cdef int most           # connections taken in one round


@cython.internal
cdef class Sockets(Clients):
    """Clients whose sockets are served."""

    cdef int64_t ticked_at  # ns of the clock, the last time
    cdef Histogram lateness # ns by which a tick came late

    # ---- listening ----

    def listen(self, int fd, int service, *, bint introduced=False, bint shared=False) -> None:
        """Accepts on a listening, non-blocking socket, which stays the caller's.

        Args:
            fd: the socket.
            service: that its clients are of.
            introduced: the connections of trusted proxies begin with a PROXY header; one without it is refused.
            shared: other processes accept on it too. One connection is taken a turn, or who wakes first has them all.

        Raises:
            OSError: the descriptor cannot be watched.
        """
        if not 0 <= service < len(self.services):
            raise ValueError(f"no service {service}")
        cdef Listener listener = Listener()
        listener.fd, listener.service, listener.watched, listener.fresh = fd, service, True, True
        listener.most = 1 if shared else ACCEPTS
        (<Service>self.services[service]).introduced = introduced
        relay_tune(fd)
        if relay_watch(self.ep, EPOLL_CTL_ADD, fd, EPOLLIN, LISTENER | <uint32_t>len(self.listeners)) < 0:
            raise OSError(errno, f"descriptor {fd} cannot be watched")
        self.listeners.append(listener)

    def stop_listening(self, *, int fd=-1) -> None:
        """No more accepts on one of the listening sockets, or on any."""
        cdef Listener listener
        for listener in self.listeners:
            if listener.fd < 0 or 0 <= fd != listener.fd:
                continue
            if listener.watched:
                relay_watch(self.ep, EPOLL_CTL_DEL, listener.fd, 0, 0)
            listener.fd = -1

    # ---- the turn ----

    def poll(self) -> None:
        """Serves whatever sockets are ready, then what a flush has left, each for at most about 2 ms.

        Call it whenever `fileno` is readable.
        """
        if self.inside:
            raise RuntimeError("poll was called by a callback of the core")
        self.inside = True
        try:
            self.serve_sockets(now_ns() + SLICE_NS)
        finally:
            self.inside = False
            self.finish_turn()
        if self.left:
            self.deliver_some()

    cdef int serve_sockets(self, int64_t until) except -1:
        cdef int n, i, turn
        cdef uint32_t index
        for turn in range(ROUNDS):
            n = epoll_wait(self.ep, self.events, EVENTS, 0)
            for i in range(n):
                if i + 1 < n:
                    index = self.events[i + 1].data.u64 & 0xFFFFFFFF
                    if index < self.high:
                        __builtin_prefetch(&self.slots[index])
                self.on_event(self.events[i].data.u64, self.events[i].events)
                if now_ns() >= until:
                    return 0  # level-triggered: what is left is reported again, behind those not seen yet
            self.reap_dead()  # on the turn's time: close(2) is 12 us, and a proxy that dies takes all at once
            # Another look costs 0.4 us, another turn of the event loop ten times that: a storm brings more at once.
            if n <= self.left or now_ns() >= until:
                return 0
        return 0

    cdef int on_event(self, uint64_t data, uint32_t events) except -1:
        cdef uint32_t index = data & 0xFFFFFFFF
        cdef Slot *slot
        if data == UNFINISHED:
            return 0
        if index & LISTENER:
            return self.accept_some(index & ~<uint32_t>LISTENER)
        slot = self.find(data)
        if slot is NULL:
            return 0  # stale: the connection ended in this very turn
        if events & EPOLLOUT:
            self.drain(index)
        if events & ~<uint32_t>EPOLLOUT and not slot.dead:
            self.on_readable(index)
        return 0

    # ---- accepting ----

    cdef int accept_some(self, uint32_t which) except -1:
        cdef Listener listener = self.listeners[which]
        cdef unsigned char address[16]
        cdef int fd, i
        if listener.fd < 0:
            return 0
        for i in range(listener.most):
            fd = relay_accept(listener.fd, address, listener.fresh)
            if fd >= 0:
                self.admit(fd, listener.service, address)
            elif errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                # Level-triggered, it would spin until a descriptor is free: looked at again by the next tick.
                relay_watch(self.ep, EPOLL_CTL_DEL, listener.fd, 0, 0)
                listener.watched = False
                return 0
            elif errno != ECONNABORTED and errno != EINTR:
                listener.fresh = False  # all that wait have been taken: whoever comes now inherits
                return 0
        return 0

    cdef int admit(self, int fd, int service, const unsigned char *address) except -1:
        cdef uint32_t index = self.free_slot
        cdef Slot *slot
        if index != NONE:
            self.free_slot = self.slots[index].next
        elif self.high < self.capacity:
            index = self.high
            self.high += 1
        else:
            relay_send(fd, PyBytes_AS_STRING(FULL), PyBytes_GET_SIZE(FULL))
            shutdown(fd, SHUT_WR)
            recv(fd, self.inbox, INBOX, MSG_DONTWAIT)  # a close with a request unread would reset the answer away
            close(fd)
            (<Service>self.services[service]).breaches[CONNECTIONS] += 1
            count((<Service>self.services[service]).responses, 503)
            return self.make_way()
        slot = &self.slots[index]
        slot.fd = fd
        slot.stage = HEAD
        slot.service = <uint8_t>service
        slot.topic = NULL
        slot.position = NONE
        slot.deadline = self.now + self.head_ticks
        memcpy(slot.address, address, 16)
        self.peers.meet(slot, (<Service>self.services[service]).introduced)
        self.used += 1
        row_join(&self.silent, self.slots, index)
        if self.used == self.capacity:
            self.make_way()
        if relay_watch(self.ep, EPOLL_CTL_ADD, fd, EPOLLIN, self.handle(index)) < 0:
            self.bury(index)
        return 0

    cdef int make_way(self) except -1:
        """The last slot is taken: a head that should have been here by now makes way for health checks.

        116 connections that said nothing kept them out for 5 s each time. A browser's head comes with its connection.
        """
        cdef uint32_t oldest = self.silent.first if self.silent.first != NONE else self.begun.first
        if oldest == NONE or self.slots[oldest].deadline + PROMPT_TICKS > self.now + self.head_ticks:
            return 0
        self.breach(oldest, CONNECTIONS)
        return self.give_up_head(oldest)

    # ---- reading ----

    cdef int on_readable(self, uint32_t index) except -1:
        """One read: into the shared inbox, or behind what waits for more."""
        cdef Slot *slot = &self.slots[index]
        cdef Inbound *inbound = slot.inbound
        cdef unsigned char *data = self.inbox
        cdef size_t size = 0, room = INBOX
        cdef ssize_t n
        if slot.stage == CLOSING:
            if slot.tokens == 0:
                self.bury(index)
                return 0
            slot.tokens -= 1
        if inbound is not NULL and inbound.size:
            self.make_room(inbound)
            data, size, room = inbound.data, inbound.size, inbound.room
        n = recv(slot.fd, data + size, room - size, MSG_DONTWAIT)
        if n == 0 and slot.stage == PARKED and not slot.peer & SAID and \
                (inbound is NULL or not (inbound.answer_size or inbound.need)):
            # It waits for Redis' word. A POST whose client had half-closed was published and never answered.
            slot.peer |= SAID
            relay_watch(self.ep, EPOLL_CTL_MOD, slot.fd, 0, self.handle(index))
            return 0
        if n <= 0:
            if n == 0 or (errno != EAGAIN and errno != EINTR):
                self.bury(index)
            return 0
        size += n
        if data is not self.inbox:
            inbound.size = size
        if slot.stage == HEAD:
            self.take_head(index, data, size)
        elif slot.stage == PARKED:
            self.keep(slot, data, size, 0, slot.inbound.need)
            if slot.inbound.need:
                self.take_body(index)
            elif slot.inbound.size > self.max_head:
                self.breach(index, HEAD_SIZE)
                self.bury(index)  # a client must await the 101 (RFC 6455, 4.1)
        elif slot.farewell != 1:
            self.take_sent(index, data, size)
        return 0

    def await_body(self, uint64_t client, size_t size) -> bool:
        """`on_body` gets so many bytes behind a request head once they are there, the time of a head being theirs again."""
        cdef Slot *slot = self.find(client)
        if slot is NULL or slot.stage != HEAD:
            return False
        self.inbound_of(slot).need = size
        self.leave_heads(self.index_of(slot))
        slot.stage = PARKED
        slot.deadline = self.now + self.head_ticks
        self.take_body(self.index_of(slot))
        return True

    cdef int take_body(self, uint32_t index) except -1:
        cdef Slot *slot = &self.slots[index]
        cdef Inbound *inbound = slot.inbound
        if inbound.size < inbound.need:
            return 0
        body = PyBytes_FromStringAndSize(<char *>inbound.data, inbound.need)
        inbound.need = 0
        self.call(self.on_body, (self.handle(index), slot.service, body))
        return 0

    cdef int take_sent(self, uint32_t index, unsigned char *data, size_t size) except -1:
        """What an open client has sent. Line ends behind a request are none (RFC 9112, 2.2), and clients send them."""
        cdef size_t i = 0
        if self.slots[index].kind == STREAM:
            while i < size and (data[i] == 0x0D or data[i] == 0x0A):
                i += 1
            self.inbound_drop(&self.slots[index])
            return self.part(index, 1002, b"nothing follows the request of an event stream", True) if i < size else 0
        return self.take_frames(index, data, size)

    cdef int make_room(self, Inbound *inbound) except -1:
        """For the next read: what the frame needs, but never far ahead of what has come."""
        if inbound.room == inbound.size:
            self.grow_inbound(inbound, max(inbound.size + 4096, min(inbound.need, 2 * inbound.size)))
        return 0

    cdef int keep(self, Slot *slot, unsigned char *data, size_t size, size_t used, size_t need) except -1:
        """Keeps data[used:size] for the next read; nothing left, nothing kept."""
        cdef Inbound *inbound = slot.inbound
        cdef size_t left = size - used
        if inbound is not NULL and data is inbound.data:
            memmove(data, data + used, left)
            inbound.size = left
        elif left:
            inbound = self.inbound_of(slot)
            if inbound.room < inbound.size + left:
                self.grow_inbound(inbound, inbound.size + left)
            memcpy(inbound.data + inbound.size, data + used, left)
            inbound.size += left
        if inbound is NULL:
            return 0
        inbound.need = need
        if inbound.size == 0 and inbound.answer is NULL and inbound.opcode == 0:
            self.inbound_drop(slot)
        return 0

    cdef int grow_inbound(self, Inbound *inbound, size_t room) except -1:
        cdef unsigned char *grown = <unsigned char *>PyMem_RawRealloc(inbound.data, room)
        if grown is NULL:
            raise MemoryError
        self.inbound_bytes += room - inbound.room
        inbound.data = grown
        inbound.room = room
        return 0

    cdef void begin_head(self, uint32_t index) noexcept:
        """A part of its request has come. How many of these there may be is bounded: the oldest gives way.

        Who has said nothing yet is not counted among them. Of 5000 who came back at once, 3976 were dropped before
        their requests, which were on their way, had been read.
        """
        if self.slots[index].peer & BEGUN:
            return
        self.leave_heads(index)
        if self.begun.count >= self.max_heads:
            self.breach(self.begun.first, HEADS)
            self.bury(self.begun.first)
        self.slots[index].peer |= BEGUN
        row_join(&self.begun, self.slots, index)

    cdef int take_head(self, uint32_t index, unsigned char *data, size_t size) except -1:
        """A request head up to its blank line; Python judges it."""
        cdef Slot *slot = &self.slots[index]
        if slot.peer & INTRODUCED:
            return self.take_introduction(index, data, size)
        cdef uint64_t client = self.handle(index)
        cdef unsigned char *end = <unsigned char *>memmem(data, size, b"\r\n\r\n", 4)
        cdef size_t length
        if end is NULL:
            if size >= self.max_head:
                self.breach(index, HEAD_SIZE)
                return self.turn_away(index, self.head_too_large)
            self.begin_head(index)
            return self.keep(slot, data, size, 0, self.max_head)
        length = end + 4 - data
        if length > self.max_head:
            self.breach(index, HEAD_SIZE)
            return self.turn_away(index, self.head_too_large)
        if self.let_in(index, data, length, size):
            return 0
        head = PyBytes_FromStringAndSize(<char *>data, length)
        self.keep(slot, data, size, length, 0)
        self.call(self.on_request, (client, slot.service, head, self.is_full()))
        slot = self.find(client)
        if slot is not NULL and slot.stage == HEAD:
            self.turn_away(index, UNDECIDED)
        return 0

    cdef inline bint is_full(self) noexcept:
        return self.used - self.silent.count - self.begun.count >= self.limit

    cdef bint let_in(self, uint32_t index, unsigned char *data, size_t length, size_t size) except -1:
        """Opens a websocket where nothing needs to be asked; false where `on_request` must judge."""
        return False

    cdef int take_introduction(self, uint32_t index, unsigned char *data, size_t size) except -1:
        """A proxy's PROXY header, and what has come behind it."""
        cdef Slot *slot = &self.slots[index]
        cdef size_t used = 0
        cdef unsigned char proxy[16]
        cdef int known
        memcpy(proxy, slot.address, 16)
        known = read_proxy(data, size, slot.address, &used)
        if known < 0:
            self.breach(index, PROXY_HEADER)
            return self.turn_away(index, NOT_INTRODUCED)
        if known == 0:
            self.begin_head(index)
            return self.keep(slot, data, size, 0, self.max_head)
        self.peers.introduce(slot, proxy)
        self.keep(slot, data, size, used, self.max_head)
        if slot.inbound is NULL or slot.inbound.size == 0:
            return 0
        return self.take_head(index, slot.inbound.data, slot.inbound.size)

    cdef int take_frames(self, uint32_t index, unsigned char *data, size_t size) except -1:
        """Serves the whole frames in data; what is left waits for more."""
        cdef Slot *slot = &self.slots[index]
        cdef Header header
        cdef size_t used = 0, need = 0
        cdef int known
        cdef Service service = self.services[slot.service]
        while True:
            known = read_header(data + used, size - used, &header)
            need = header.size
            if known < 0:
                return self.fail(index, 1002, b"protocol error: see RFC 6455, section 5.2")
            if known == 0:
                break
            if header.opcode < CLOSE and header.payload > service.max_message:
                self.breach(index, MESSAGE_SIZE)
                return self.fail(index, 1009, b"message too big")
            need = header.size + <size_t>header.payload  # payload is at most max_message or 125 here
            if size - used < need:
                break
            unmask(data + used + header.size, <size_t>header.payload, header.key)
            self.on_frame(index, service, &header, data + used + header.size)
            used += need
            need = 0
            if slot.dead or (slot.stage == CLOSING and slot.farewell != 2):
                return 0
            if used == size:
                break
        return self.keep(slot, data, size, used, need)

    cdef int on_frame(self, uint32_t index, Service service, Header *header, unsigned char *data) except -1:
        cdef Slot *slot = &self.slots[index]
        cdef size_t size = <size_t>header.payload
        slot.heard = self.now
        if header.opcode == CLOSE:
            return self.on_close(index, data, size)
        if slot.stage == CLOSING:
            return 0
        if service.frame_rate and not self.spend_token(slot, service):
            self.breach(index, FRAME_RATE)
            return self.fail(index, 1008, b"too many frames")
        if header.opcode == PING:
            return self.on_ping(index, data, size)
        if header.opcode == PONG:
            return 0
        return self.on_data(index, service, header, data, size)

    cdef bint spend_token(self, Slot *slot, Service service) noexcept:
        cdef uint64_t earned = <uint64_t>(self.now - slot.refilled) * service.frame_rate
        slot.tokens = <uint16_t>min(slot.tokens + earned, <uint64_t>service.frame_burst)
        slot.refilled = self.now
        if slot.tokens < TICKS_PER_SECOND:
            return False
        slot.tokens -= TICKS_PER_SECOND
        return True

    cdef int on_ping(self, uint32_t index, const unsigned char *data, size_t size) except -1:
        cdef unsigned char frame[127]
        memcpy(write_header(frame, PONG, size), data, size)
        return self.say(index, frame, 2 + size)

    cdef int on_close(self, uint32_t index, const unsigned char *data, size_t size) except -1:
        """RFC 6455, 5.5.1: the close is answered with its own code, then we close the connection first (7.1.1)."""
        cdef Slot *slot = &self.slots[index]
        cdef unsigned int code = 1000
        if size >= 2:
            code = <unsigned int>data[0] << 8 | data[1]
        if size == 1 or not close_code_valid(code):
            return self.fail(index, 1002, b"close frame with no valid code")
        if size > 2 and not is_utf8(data + 2, size - 2):
            return self.fail(index, 1007, b"close reason is not UTF-8")
        self.part(index, code, b"", False)
        if slot.dead:
            return 0
        slot.farewell = 3
        return self.all_sent(index)

    cdef int on_data(self, uint32_t index, Service service, Header *header, unsigned char *data, size_t size) except -1:
        """A text or binary frame: a whole message, or a fragment of one (RFC 6455, 5.4)."""
        cdef Slot *slot = &self.slots[index]
        cdef Inbound *inbound = slot.inbound
        cdef int opcode = header.opcode
        cdef bint open = inbound is not NULL and inbound.opcode != 0
        if open != (opcode == CONTINUATION):
            return self.fail(index, 1002, b"fragments out of order: see RFC 6455, section 5.4")
        if header.final and not open:
            return self.on_message(index, opcode, data, size)
        if not open:
            inbound = self.inbound_of(slot)
            inbound.opcode = <uint8_t>opcode
        inbound.fragments += 1
        if inbound.fragments > service.max_fragments:
            self.breach(index, FRAGMENTS)
            return self.fail(index, 1009, b"message of too many fragments")
        if inbound.message_size + size > service.max_message:
            self.breach(index, MESSAGE_SIZE)
            return self.fail(index, 1009, b"message too big")
        self.append_fragment(inbound, data, size)
        if not header.final:
            return 0
        opcode = inbound.opcode
        data, size = inbound.message, inbound.message_size
        inbound.message = NULL
        self.inbound_bytes -= size
        inbound.message_size = inbound.fragments = inbound.opcode = 0
        try:
            return self.on_message(index, opcode, data, size)
        finally:
            PyMem_RawFree(data)

    cdef int append_fragment(self, Inbound *inbound, const unsigned char *data, size_t size) except -1:
        cdef unsigned char *grown
        if size == 0:
            return 0
        grown = <unsigned char *>PyMem_RawRealloc(inbound.message, inbound.message_size + size)
        if grown is NULL:
            raise MemoryError
        memcpy(grown + inbound.message_size, data, size)
        inbound.message = grown
        inbound.message_size += size
        self.inbound_bytes += size
        return 0

    cdef int on_message(self, uint32_t index, int opcode, const unsigned char *data, size_t size) except -1:
        cdef object listener = self.on_text if opcode == TEXT else self.on_binary
        if listener is None or (opcode == TEXT and size == 15 and memcmp(data, JSON_PONG, 15) == 0):
            return 0
        if opcode == TEXT and size and not is_utf8(data, size):
            return self.fail(index, 1007, b"text is not UTF-8")
        message = PyBytes_FromStringAndSize(<const char *>data, size)
        self.call(listener, (self.handle(index), self.slots[index].service, message))
        return 0

    # ---- time ----

    def tick(self) -> None:
        """Heartbeats, deadlines, the silent and the slow. Call it every TICK seconds.

        The core's clock stands still while the process does: after a stop of minutes nobody is judged by pongs that
        wait in the sockets unread. A permission ends when it was said to.
        """
        cdef int64_t now = now_ns(), elapsed = (now - self.last_tick) // TICK_NS
        cdef int64_t i
        if self.inside:
            raise RuntimeError("tick was called by a callback of the core")
        if self.ticked_at:
            observe(&self.lateness, relay_delays, now - self.ticked_at - TICK_NS)
        self.ticked_at = now
        self.last_tick += elapsed * TICK_NS
        self.inside = True
        try:
            self.stood += <uint32_t>max(elapsed - CATCH_UP, <int64_t>0)
            for i in range(min(elapsed, <int64_t>CATCH_UP)):
                self.now += 1
                self.expire_heads()
                self.sweep()
                for service in self.services:
                    self.send_heartbeats(service)
            self.watch_again()
        finally:
            self.inside = False
            self.finish_turn()
        self.give_back()

    cdef int expire_heads(self) except -1:
        """The silent stand in the order of their deadlines; those who have begun, few, in that of their beginnings."""
        cdef uint32_t index, next
        while self.silent.first != NONE and self.slots[self.silent.first].deadline <= self.now:
            self.expire_head(self.silent.first)
        index = self.begun.first
        while index != NONE:
            next = self.slots[index].next
            if self.slots[index].deadline <= self.now:
                self.expire_head(index)
            index = next
        return 0

    cdef int expire_head(self, uint32_t index) except -1:
        self.breach(index, HEAD_TIMEOUT)
        return self.give_up_head(index)

    # With a step that is no literal, Cython's `range` is the interpreter's, with an object for each number: hence `while`.

    cdef int sweep(self) except -1:
        """A tenth of the slots: each is looked at once a second. Neighbours together, for memory is read ahead in its order."""
        cdef uint32_t first = self.now % SWEEP * BLOCK, i
        while first < self.high:
            for i in range(first, min(first + BLOCK, self.high)):
                if not self.slots[i].dead:
                    self.look_at(i)
            first += SWEEP * BLOCK
        return 0

    cdef int look_at(self, uint32_t index) except -1:
        """Whether a connection has lasted too long: in closing, in silence, beyond its permission, or with bytes that wait."""
        cdef Slot *slot = &self.slots[index]
        cdef Service service
        if slot.stage == CLOSING:
            if slot.deadline <= self.now:
                self.bury(index)
            return 0
        if slot.stage == PARKED and slot.inbound.need and slot.deadline <= self.now:
            self.breach(index, HEAD_TIMEOUT)
            self.turn_away(index, self.body_too_slow)
        if slot.stage != OPEN:
            return 0
        service = self.services[slot.service]
        if slot.kind == WEBSOCKET and self.now - slot.heard > service.silence:
            self.breach(index, PONG_TIMEOUT)
            self.part(index, 1008, b"no pong in time", True)
            self.bury(index)  # nothing will come from there any more
        elif slot.expires and slot.expires <= self.now + self.stood:
            self.part(index, 1008, b"permission expired", True)
        elif slot.backlog is not NULL and slot.backlog.count and (not service.newest_only or slot.kind == STREAM) and \
                self.now - backlog_at(slot.backlog, 0).since > service.write_timeout:
            self.breach(index, WRITE_TIMEOUT)
            self.dismiss(index, 1013, b"too slow: nothing was taken in time")
        return 0

    cdef int send_heartbeats(self, Service service) except -1:
        """One in every `ping_every` slots: spread over the interval, without a timer for anyone."""
        cdef uint32_t i = self.now % service.ping_every
        cdef Slot *slot
        while i < self.high:
            slot = &self.slots[i]
            __builtin_prefetch(&self.slots[min(i + service.ping_every, self.high - 1)])
            # Behind what waits, too: who is always a little behind must be heard of, or ends as one that is silent.
            if slot.stage == OPEN and slot.service == service.index and not slot.dead:
                if slot.kind == WEBSOCKET:
                    self.say(i, HEARTBEAT, HEARTBEAT_SIZE)
                else:  # it cannot answer: a dead one is found by what it does not take, and by TCP
                    self.say(i, STILL_HERE, 3)
            i += service.ping_every
        return 0

    def ping(self, uint64_t client) -> bool:
        """A heartbeat at once: `{"type":"ping"}` and a protocol ping."""
        cdef Slot *slot = self.find(client)
        if slot is NULL or slot.stage != OPEN or slot.kind != WEBSOCKET:
            return False
        self.say(self.index_of(slot), HEARTBEAT, HEARTBEAT_SIZE)
        return True

    def send_message(self, uint64_t client, bytes message, bint binary=False) -> bool:
        """A message of a client's own, behind what waits for it (RFC 6455, 5.6); a text must be UTF-8."""
        cdef Slot *slot = self.find(client)
        cdef size_t size = PyBytes_GET_SIZE(message), head = header_size(size)
        cdef bytes frame
        if slot is NULL or slot.stage != OPEN or slot.kind != WEBSOCKET:
            return False
        frame = PyBytes_FromStringAndSize(NULL, head + size)
        write_header(<unsigned char *>PyBytes_AS_STRING(frame), BINARY if binary else TEXT, size)
        memcpy(PyBytes_AS_STRING(frame) + head, PyBytes_AS_STRING(message), size)
        self.say(self.index_of(slot), PyBytes_AS_STRING(frame), head + size)
        return True

    cdef void give_back(self) noexcept:
        """Memory of frames that are gone: left alone, malloc kept 190 of the 250 MB that laggards had made it take."""
        cdef size_t held = live_bytes + self.inbound_bytes
        self.most_live = max(self.most_live, held)
        if self.most_live - held >= TRIM:
            malloc_trim(0)
            self.most_live = held

    cdef int watch_again(self) except -1:
        """Listeners that were put aside for want of descriptors."""
        cdef Listener listener
        cdef uint32_t which
        for which in range(<uint32_t>len(self.listeners)):
            listener = self.listeners[which]
            if not listener.watched and listener.fd >= 0 and \
                    relay_watch(self.ep, EPOLL_CTL_ADD, listener.fd, EPOLLIN, LISTENER | which) == 0:
                listener.watched = True
        return 0
