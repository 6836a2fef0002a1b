# What is told of the core: to metrics, to operators.

@cython.internal
cdef class Looks(Newcomers):
    """What can be counted and named."""

    def stats(self, int service) -> dict:
        """Counters of one service: all of them ints, but for

        - `closes` and `responses`, dicts from close code and HTTP status to how often;
        - `breaches`, one from each of BOUNDS and `published_size` to how often it was exceeded;
        - `delivery` in seconds and `burst` in frames, histograms as (bounds, counts, sum);
        - `backlog_seconds`, how long the oldest byte has waited that a client did not take.
        """
        cdef Service s = self.services[service]
        cdef uint32_t waiting = 0, since = self.now
        cdef size_t bytes = 0
        cdef int i
        cdef uint32_t index
        cdef Slot *slot
        for index in range(self.high):
            slot = &self.slots[index]
            if slot.backlog is not NULL and slot.backlog.count and slot.stage == OPEN and slot.service == service:
                waiting += 1
                bytes += slot.backlog.bytes
                since = min(since, backlog_at(slot.backlog, 0).since)
        opened = {101: s.opened - s.streamed}
        if s.streamed:
            opened[200] = s.responses.get(200, 0) + s.streamed
        return {
            "connections": s.connections, "streams": s.streams, "opened": s.opened, "topics": len(s.topics), "frames": s.frames, "bytes": s.bytes,
            "oversize": s.oversize, "write_errors": s.write_errors, "replaced": s.replaced, "closes": dict(s.closes),
            "told": s.told, "untold": s.untold, "backlogs": waiting, "backlog_bytes": bytes,
            "backlog_seconds": <double>(self.now - since) / TICKS_PER_SECOND, "responses": {**s.responses, **opened},
            "delivery": buckets_of(&s.delivery, relay_delays, 1e9), "burst": buckets_of(&s.sizes, relay_sizes, 1),
            "breaches": {**{BOUNDS[i]: s.breaches[i] for i in range(COUNTED)}, "published_size": s.oversize},
        }

    def totals(self) -> dict:
        """Gauges of the process: connections of any stage, request heads of which a part has come, bytes of live
        frames, and bytes held by heads and messages that are not complete."""
        return {
            "sockets": self.used, "heads": self.begun.count, "live_bytes": live_bytes, "inbound_bytes": self.inbound_bytes,
        }

    def lag(self) -> tuple:
        """Seconds by which ticks came late: how long whatever is ready waits for its turn, as (bounds, counts, sum)."""
        return buckets_of(&self.lateness, relay_delays, 1e9)

    def breached(self, int service, str bound) -> None:
        """Counts a breach that was found outside of the core.

        Raises:
            ValueError: it is none of BOUNDS.
        """
        (<Service>self.services[service]).breaches[BOUNDS.index(bound)] += 1

    def largest(self, int service, uint32_t most) -> list:
        """The topics of a service with most clients: (clients, bytes not delivered yet, name), most first.

        One look at each topic: 100 000 of them take some ms.
        """
        cdef Service s = self.services[service]
        cdef Topic topic
        cdef uint32_t least = 0
        cdef list found = []
        for topic in s.topics.values():
            if topic_clients(topic) > least:
                found.append((topic_clients(topic), topic.waiting, topic.name))
                if len(found) > most:
                    found.remove(min(found))
                    least = min(found)[0]
        return sorted(found, reverse=True)

    def slowest(self, uint32_t most) -> list:
        """The clients for whom most waits: (bytes, seconds that the oldest has waited, service, address), most first."""
        cdef uint32_t i
        cdef Slot *slot
        cdef size_t least = 0
        cdef list found = []
        for i in range(self.high):
            slot = &self.slots[i]
            if slot.stage == OPEN and slot.backlog is not NULL and slot.backlog.bytes > least:
                waited = <double>(self.now - backlog_at(slot.backlog, 0).since) / TICKS_PER_SECOND
                address = PyBytes_FromStringAndSize(<char *>slot.address, 16)
                found.append((slot.backlog.bytes, waited, slot.service, address))
                if len(found) > most:
                    found.remove(min(found))
                    least = min(found)[0]
        return sorted(found, reverse=True)

    def address(self, uint64_t client):
        """The peer's address, 16 bytes (IPv4 mapped into IPv6, zero for a Unix socket), or None when it is gone."""
        cdef Slot *slot = self.find(client)
        return None if slot is NULL else PyBytes_FromStringAndSize(<char *>slot.address, 16)
