# Who becomes a member of a topic: those that were asked about, and plain requests that nothing needs to be asked for.

@cython.internal
cdef class Newcomers(Sockets):
    """Clients that come to topics."""

    def attach(self, uint64_t client, topic, bytes first=b"", bytes notice=b"", bytes ahead=b"") -> bool:
        """Sends a parked client its 101, `ahead`, `first` and `notice` in one write, and puts it in the topic.

        What is already in the topic's open burst was published before it joined: it does not get that.

        Args:
            client: a parked one.
            topic: bytes, or None for none.
            first: a text message in UTF-8 for this client alone; empty: none.
            notice: one more, where it asked for protocol version 2.
            ahead: and one, where it asked for version 3.

        Returns:
            Whether the client was still there.
        """
        cdef Slot *slot = self.find(client)
        cdef Burst *burst
        cdef uint32_t index
        cdef Service service
        if slot is NULL or slot.stage != PARKED:
            return False
        index = self.index_of(slot)
        service = self.services[slot.service]
        if slot.version < 3:
            ahead = b""
        if slot.version < 2:
            notice = b""
        burst = burst_new(slot.inbound.answer_size + PyBytes_GET_SIZE(ahead) + PyBytes_GET_SIZE(first) +
                          PyBytes_GET_SIZE(notice) + 3 * MOST_LEAD)
        try:
            memcpy(burst.data, slot.inbound.answer, slot.inbound.answer_size)
            burst.size = slot.inbound.answer_size
            service.frames += burst_add_text(burst, slot.kind, ahead)
            service.frames += burst_add_text(burst, slot.kind, first) + burst_add_text(burst, slot.kind, notice)
            service.bytes += burst.size - slot.inbound.answer_size
            self.inbound_bytes -= slot.inbound.answer_size
            PyMem_RawFree(slot.inbound.answer)
            slot.inbound.answer = NULL
            slot.inbound.answer_size = 0
            if slot.inbound.size == 0:
                self.inbound_drop(slot)
            self.open_up(slot, service)
            self.say(index, burst.data, burst.size)
            if topic is not None and slot.stage == OPEN:
                self.join(service, topic, index)
            if slot.inbound is not NULL and slot.stage == OPEN and not slot.dead:
                self.take_sent(index, slot.inbound.data, slot.inbound.size)
        finally:
            burst_release(burst)
        return True

    cdef void open_up(self, Slot *slot, Service service) noexcept:
        slot.stage = OPEN
        slot.heard = self.now
        slot.tokens = <uint16_t>service.frame_burst
        slot.refilled = self.now
        service.connections += 1
        service.opened += 1
        if slot.kind == STREAM:
            service.streams += 1
            service.streamed += 1

    cdef bint let_in(self, uint32_t index, unsigned char *data, size_t length, size_t size) except -1:
        cdef Slot *slot = &self.slots[index]
        cdef Service service = self.services[slot.service]
        cdef Head head
        cdef void *topic
        cdef unsigned char answer[MOST_ANSWER]
        cdef size_t start
        if service.switching is None or data is not self.inbox or self.is_full() or \
                not read_plain(&head, data, length, service.max_headers):
            return False
        topic = <void *>PyDict_GetItem(service.topics, last_part(head.target))
        if topic is NULL or (<Topic>topic).confirmed != service.epoch:
            return False
        if head.seen & ORIGIN and service.origins is not None and text_of(head.origin) not in service.origins:
            return False
        start = self.begin_answer(service, answer)
        if start == 0:
            return False
        write_accept(answer + start, head.key.at)
        memcpy(answer + start + ACCEPT_SIZE, b"\r\n\r\n", 4)
        self.leave_heads(index)
        self.open_up(slot, service)
        self.say(index, answer, start + ACCEPT_SIZE + 4)
        self.enter(<Topic>topic, index)
        if size > length and not slot.dead:
            self.take_frames(index, data + length, size - length)
        return True

    cdef size_t begin_answer(self, Service service, unsigned char *out) except? 0:
        """The 101 up to the accept value; 0 where there is none."""
        cdef time_t now = time(NULL)
        if now != service.second:
            service.second, service.answer = now, self.call(service.switching, (now,)) or b""
        cdef size_t size = PyBytes_GET_SIZE(service.answer)
        if size > MOST_ANSWER - ACCEPT_SIZE - 4:
            return 0
        memcpy(out, PyBytes_AS_STRING(service.answer), size)
        return size

    def let_in_by(self, int service, switching, origins=None, int max_headers=64) -> None:
        """Lets plain requests for confirmed topics in without asking `on_request`, which takes 10 us for each.

        Only where nothing else than these decides: what also needs a token, say, passes None.

        Args:
            service: its number.
            switching: the 101 of a second (unix time), bytes, up to the accept value; None: `on_request` judges all.
            origins: str, those of which `on_request` would let any in; None: all. A pattern is none of them.
            max_headers: with more a request is not plain.
        """
        cdef Service s = self.services[service]
        s.switching, s.max_headers, s.second = switching, max_headers, 0
        s.origins = None if origins is None else frozenset(origins)

    def confirm(self, int service, bytes topic) -> None:
        """Whatever is published to the topic arrives, so that newcomers have nothing to wait for: see `let_in_by`."""
        cdef Service s = self.services[service]
        cdef Topic t = s.topics.get(topic)
        if t is not None:
            t.confirmed = s.epoch

    def revoke(self, int service) -> None:
        """Takes every `confirm` back."""
        (<Service>self.services[service]).epoch += 1

    cdef int join(self, Service service, bytes name, uint32_t index) except -1:
        cdef Topic topic = service.topics.get(name)
        if topic is None:
            topic = Topic.__new__(Topic)
            topic.service, topic.name = service, name
            service.topics[name] = topic
        return self.enter(topic, index)

    cdef int enter(self, Topic topic, uint32_t index) except -1:
        topic_seal_all(topic)
        topic_join(topic, index, &self.slots[index])
        return 0
