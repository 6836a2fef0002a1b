# Bursts, topics and what a slow client is owed. Socket-free: nothing here reads, writes or closes.
#
# A topic's array may be reordered only while nothing sealed is left to deliver, because a sealed burst names the
# clients it is for by position: [cursor, end). Who joins meanwhile stands behind `end`; who leaves becomes a hole.
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc

cdef size_t live_bytes = 0   # of all bursts alive, whoever owes them
cdef uint32_t pressing_topics = 0    # whose bursts have grown large
cdef uint32_t crowded_backlogs = 0   # young ones that are half full


# What small ones are made of. A debug build has none, so that a look at one that is gone is seen.
cdef Burst *spares = NULL
cdef uint32_t spare = 0


cdef Burst *burst_new(size_t room) except NULL:
    global live_bytes, spares, spare
    cdef Burst *burst = spares
    if room == SMALL and burst is not NULL:
        spares = burst.next
        spare -= 1
    else:
        burst = <Burst *>PyMem_RawMalloc(sizeof(Burst) + room)
        if burst is NULL:
            raise MemoryError
    memset(burst, 0, sizeof(Burst))
    burst.refs = 1
    burst.room = room
    live_bytes += room
    return burst


cdef Burst *burst_grow(Burst *burst, size_t more) except NULL:
    """Room for `more` bytes; only the one owner of an open burst may call this."""
    global live_bytes
    cdef size_t room = burst.room
    cdef Burst *grown
    assert burst.refs == 1
    if burst.size + more <= room:
        return burst
    room = max(2 * room, burst.size + more)
    grown = <Burst *>PyMem_RawRealloc(burst, sizeof(Burst) + room)
    if grown is NULL:
        raise MemoryError
    live_bytes += room - grown.room
    grown.room = room
    return grown


cdef inline void burst_release(Burst *burst) noexcept:
    burst.refs -= 1
    if burst.refs == 0:
        burst_free(burst)


cdef void burst_free(Burst *burst) noexcept:
    global live_bytes, spares, spare
    live_bytes -= burst.room
    if burst.room == SMALL and spare < RELAY_SPARES:
        burst.next = spares
        spares = burst
        spare += 1
    else:
        PyMem_RawFree(burst)


cdef Burst *burst_of(const unsigned char *data, size_t size) except NULL:
    """A burst that is one unit for one client: an answer, a ping, a close."""
    cdef Burst *burst = burst_new(size)
    memcpy(burst.data, data, size)
    burst.size = size
    burst.opaque = 1
    return burst


cdef int burst_add_text(Burst *burst, int kind, bytes text) except -1:
    """A message at its end, where there is room; how many frames that is: none for an empty text."""
    cdef size_t size = PyBytes_GET_SIZE(text), whole
    cdef unsigned char *out
    cdef bytes lead
    if size == 0:
        return 0
    lead = event_lead(text) if kind == STREAM else b""
    whole = frame_size(kind, lead, size)
    assert burst.size + whole <= burst.room
    out = begin_frame(burst.data + burst.size, kind, lead, size)
    memcpy(out, PyBytes_AS_STRING(text), size)
    end_frame(out + size, kind)
    burst.size += whole
    return 1


# ---- rows ----

cdef void row_join(Row *row, Slot *slots, uint32_t index) noexcept:
    slots[index].next = NONE
    slots[index].previous = row.last
    if row.last == NONE:
        row.first = index
    else:
        slots[row.last].next = index
    row.last = index
    row.count += 1


cdef void row_leave(Row *row, Slot *slots, uint32_t index) noexcept:
    cdef Slot *slot = &slots[index]
    if slot.previous == NONE:
        row.first = slot.next
    else:
        slots[slot.previous].next = slot.next
    if slot.next == NONE:
        row.last = slot.previous
    else:
        slots[slot.next].previous = slot.previous
    slot.next = slot.previous = NONE
    row.count -= 1


# ---- topics ----

cdef inline void topic_weigh(Topic topic, size_t waiting) noexcept:
    """Notes how many bytes wait in its bursts. All count, sealed ones too: each join seals the open one."""
    global pressing_topics
    topic.waiting = waiting
    if topic.pressing != (waiting >= topic.service.pressing):
        topic.pressing = not topic.pressing
        if topic.pressing:
            pressing_topics += 1
        else:
            pressing_topics -= 1


cdef int topic_join(Topic topic, uint32_t index, Slot *slot) except -1:
    cdef uint32_t room
    cdef uint32_t *grown
    if topic.count == topic.room:
        room = 2 * topic.room if topic.room else 1
        grown = <uint32_t *>PyMem_RawRealloc(topic.slots, room * sizeof(uint32_t))
        if grown is NULL:
            raise MemoryError
        topic.slots = grown
        topic.room = room
    topic.slots[topic.count] = index
    slot.position = topic.count
    slot.topic = <void *>topic
    topic.count += 1
    topic.newer += slot.version > 0
    topic.streams += slot.kind == STREAM
    return 0


cdef void topic_leave(Topic topic, Slot *slots, uint32_t index) noexcept:
    cdef Slot *slot = &slots[index]
    cdef uint32_t moved
    topic.newer -= slot.version > 0
    topic.streams -= slot.kind == STREAM
    if topic.sealed is not NULL:
        topic.slots[slot.position] = NONE
        topic.holes += 1
    else:
        topic.count -= 1
        moved = topic.slots[topic.count]
        topic.slots[slot.position] = moved
        slots[moved].position = slot.position
    slot.topic = NULL
    slot.position = NONE


cdef void topic_close_holes(Topic topic, Slot *slots) noexcept:
    """Once nothing sealed is left. Keeps the order."""
    cdef uint32_t i, kept = 0
    if topic.holes == 0:
        return
    for i in range(topic.count):
        if topic.slots[i] != NONE:
            topic.slots[kept] = topic.slots[i]
            slots[topic.slots[kept]].position = kept
            kept += 1
    topic.count = kept
    topic.holes = 0


cdef inline uint32_t topic_clients(Topic topic) noexcept:
    return topic.count - topic.holes


cdef inline bint topic_has(Topic topic, int kind) noexcept:
    """Whether any of its clients is of that kind."""
    return topic.streams > 0 if kind == STREAM else topic_clients(topic) > topic.streams


cdef void topic_seal_all(Topic topic) noexcept:
    cdef int kind
    for kind in range(KINDS):
        topic_seal(topic, kind)


cdef void topic_seal(Topic topic, int kind) noexcept:
    """Ends the open burst: it is for those who are in the topic now."""
    cdef Burst *burst = topic.open[kind]
    if burst is NULL:
        return
    topic.open[kind] = NULL
    burst.end = topic.count
    burst.kind = <uint8_t>kind
    if topic.sealed is NULL:
        topic.sealed = burst
    else:
        topic.last.next = burst
    topic.last = burst


cdef inline bint mergeable(Burst *burst, uint32_t cursor) noexcept:
    return burst.cursor == cursor and cursor < burst.end and burst.min_version == 0 and not burst.copies


cdef int topic_merge(Topic topic) except -1:
    """Gathers what joins have sealed apart into one burst for those whom all of it is for.

    Each join ends the open burst, so in a storm of them each message was a burst and a send of its own: 500 messages to
    1500 clients with a join behind each took 5.1 s of CPU, where without the joins it was 1.8.
    """
    cdef Burst *before = NULL
    cdef Burst *first = topic.sealed
    cdef Burst *merged
    cdef Burst *last
    cdef Burst *burst
    cdef size_t size
    while first is not NULL:
        size, last = first.size, first
        if mergeable(first, first.cursor):
            while last.next is not NULL and mergeable(last.next, first.cursor) and last.next.kind == first.kind and \
                    size + last.next.size <= MERGED:
                last = last.next
                size += last.size
        if last is not first:
            merged = burst_new(size)
            merged.kind, merged.copies = first.kind, 1
            merged.cursor, merged.end = first.cursor, first.end  # no other ends before: who joins stands behind
            merged.read_at = first.read_at
            burst = first
            while burst is not last.next:
                memcpy(merged.data + merged.size, burst.data, burst.size)
                merged.size += burst.size
                merged.frames += burst.frames
                burst.cursor = merged.end
                burst = burst.next
            merged.next = first
            if before is NULL:
                topic.sealed = merged
            else:
                before.next = merged
        before = last
        first = last.next
    return 0


cdef bint topic_waits(Topic topic) noexcept:
    """Whether anything is left to deliver."""
    cdef int kind
    for kind in range(KINDS):
        if topic.open[kind] is not NULL:
            return True
    return topic.sealed is not NULL


cdef void topic_discard(Topic topic) noexcept:
    """Drops whatever waits: nobody is left to get it."""
    cdef Burst *burst
    cdef int kind
    for kind in range(KINDS):
        if topic.open[kind] is not NULL:
            burst_release(topic.open[kind])
            topic.open[kind] = NULL
    while topic.sealed is not NULL:
        burst = topic.sealed
        topic.sealed = burst.next
        burst_release(burst)
    topic.last = NULL
    topic_weigh(topic, 0)


@cython.final
@cython.internal
cdef class Line:
    # Topics that wait for their turn to be delivered, first come first served. A topic stands in one line at most.
    cdef Topic first, last

    cdef void join(self, Topic topic) noexcept:
        topic.queued = True
        if self.first is None:
            self.first = topic
        else:
            self.last.next = topic
        self.last = topic

    cdef Topic leave(self):
        cdef Topic topic = self.first
        self.first = topic.next
        topic.next = None
        topic.queued = False
        if self.first is None:
            self.last = None
        return topic


# ---- backlogs ----

cdef Backlog *backlog_new() except NULL:
    cdef Backlog *backlog = <Backlog *>PyMem_RawMalloc(sizeof(Backlog))
    if backlog is NULL:
        raise MemoryError
    memset(backlog, 0, sizeof(Backlog))
    backlog.ring = <Owed *>PyMem_RawMalloc(4 * sizeof(Owed))
    if backlog.ring is NULL:
        PyMem_RawFree(backlog)
        raise MemoryError
    backlog.room = 4
    return backlog


cdef void backlog_crowd(Backlog *backlog, size_t limit) noexcept:
    """Counts it among the crowded until less than `limit` waits, and no frame larger than the bound."""
    global crowded_backlogs
    if not backlog.crowded_at:
        backlog.crowded_at = limit
        crowded_backlogs += 1


cdef inline void backlog_uncrowd(Backlog *backlog) noexcept:
    global crowded_backlogs
    if backlog.crowded_at:
        backlog.crowded_at = 0
        crowded_backlogs -= 1


cdef void backlog_free(Backlog *backlog) noexcept:
    cdef uint32_t i
    if backlog is NULL:
        return
    backlog_uncrowd(backlog)
    for i in range(backlog.count):
        burst_release(backlog.ring[(backlog.first + i) & (backlog.room - 1)].burst)
    PyMem_RawFree(backlog.ring)
    PyMem_RawFree(backlog)


cdef inline Owed *backlog_at(Backlog *backlog, uint32_t i) noexcept:
    return &backlog.ring[(backlog.first + i) & (backlog.room - 1)]


cdef int backlog_push(Backlog *backlog, Burst *burst, size_t start, uint32_t now) except -1:
    """Owes `burst` from `start` on: a reference, not a copy."""
    cdef Owed *ring
    cdef uint32_t i
    if backlog.count == backlog.room:
        ring = <Owed *>PyMem_RawMalloc(2 * backlog.room * sizeof(Owed))
        if ring is NULL:
            raise MemoryError
        for i in range(backlog.count):
            ring[i] = backlog_at(backlog, i)[0]
        PyMem_RawFree(backlog.ring)
        backlog.ring = ring
        backlog.room *= 2
        backlog.first = 0
    burst.refs += 1
    ring = backlog_at(backlog, backlog.count)
    ring.burst = burst
    ring.start = start
    ring.end = burst.size
    ring.since = now
    backlog.count += 1
    backlog.bytes += burst.size - start
    if backlog.count == 1:
        backlog.boundary = 0
        backlog_find_boundary(backlog)
    return 0


cdef void backlog_find_boundary(Backlog *backlog) noexcept:
    """Walks the frame headers of the first entry up to where it has been sent; each frame is walked once."""
    cdef Owed *owed
    if backlog.count == 0:
        return
    owed = backlog_at(backlog, 0)
    while backlog.boundary < owed.start:
        if owed.burst.opaque:
            backlog.boundary = owed.burst.size
        elif owed.burst.kind == STREAM:
            backlog.boundary += whole_event(owed.burst.data + backlog.boundary, owed.burst.size - backlog.boundary)
        else:
            backlog.boundary += whole_frame(owed.burst.data + backlog.boundary)
    if owed.start and owed.burst is backlog.large:
        backlog.large = NULL


cdef size_t backlog_waiting(Backlog *backlog) noexcept:
    """Bytes behind the frame in progress, the one oversize frame left out (docs/architecture.md, "Bounds")."""
    cdef Owed *owed = backlog_at(backlog, 0)
    cdef size_t large = backlog.large.size if backlog.large is not NULL else 0
    return backlog.bytes - (backlog.boundary - owed.start) - large


cdef void backlog_sent(Backlog *backlog, size_t size) noexcept:
    cdef Owed *owed
    cdef size_t part
    backlog.bytes -= size
    while size:
        owed = backlog_at(backlog, 0)
        part = min(size, owed.end - owed.start)
        owed.start += part
        size -= part
        if owed.start == owed.end:
            backlog_pop(backlog)
    backlog_find_boundary(backlog)
    if backlog.count == 0 or (backlog.large is NULL and backlog_waiting(backlog) < backlog.crowded_at):
        backlog_uncrowd(backlog)


cdef void backlog_pop(Backlog *backlog) noexcept:
    cdef Owed *owed = backlog_at(backlog, 0)
    if owed.burst is backlog.large:
        backlog.large = NULL
    burst_release(owed.burst)
    backlog.first = (backlog.first + 1) & (backlog.room - 1)
    backlog.count -= 1
    backlog.boundary = 0


cdef int backlog_keep_started(Backlog *backlog, int replaced=-1) except -1:
    """Drops every frame that is not started; the one in progress is kept, for a frame is sent whole or the connection ends.

    With `replaced` only those whose `min_version` that is: a new snapshot replaces snapshots and no notices, a notice
    notices alone.

    Its rest is copied where the reference would keep much more alive: at the process bound, 39 of 39 laggards were closed
    and nothing was freed.
    """
    cdef Burst *rest
    cdef Owed *owed
    cdef uint32_t kept, i
    cdef bint started
    if backlog.count == 0:
        return 0
    owed = backlog_at(backlog, 0)
    started = owed.start < backlog.boundary
    kept = started
    if started:
        owed.end = backlog.boundary
    backlog.large = NULL
    backlog_uncrowd(backlog)
    backlog.bytes = owed.end - owed.start if started else 0
    if started and owed.burst.room - backlog.bytes > WORTH_COPYING:
        rest = burst_of(owed.burst.data + owed.start, backlog.bytes)
        burst_release(owed.burst)
        owed.burst, owed.start, owed.end = rest, 0, rest.size
        backlog.boundary = rest.size
    for i in range(kept, backlog.count):
        owed = backlog_at(backlog, i)
        if replaced >= 0 and owed.burst.min_version != replaced:
            backlog.bytes += owed.end - owed.start
            backlog_at(backlog, kept)[0] = owed[0]
            kept += 1
        else:
            burst_release(owed.burst)
    backlog.count = kept
    if not started:
        backlog.boundary = 0
        backlog_find_boundary(backlog)
    return 0
