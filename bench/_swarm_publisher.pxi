# The publisher: the other half of a load, in a thread of its own.

cdef extern from * nogil:
    """
    #include <poll.h>
    #include <sys/prctl.h>

    static int swarm_poll(int fd, int for_writing, int ms) {
        struct pollfd one = {fd, (short)(POLLIN | (for_writing ? POLLOUT : 0)), 0};
        return poll(&one, 1, ms);
    }

    static void swarm_sleep(uint64_t ns) {
        struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
        nanosleep(&t, NULL);
    }

    /* Sleeps of this thread end when they should, not up to 50 µs later. */
    static void swarm_sleep_exactly(void) {
        prctl(PR_SET_TIMERSLACK, 1000ul, 0ul, 0ul, 0ul);
    }

    static void swarm_no_delay(int fd) {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on a Unix socket, which needs none */
    }
    """
    int swarm_poll(int fd, int for_writing, int ms) noexcept
    void swarm_sleep(uint64_t ns) noexcept
    void swarm_sleep_exactly() noexcept
    void swarm_no_delay(int fd) noexcept
    void *memmem(const void *data, size_t size, const void *part, size_t length) noexcept

cdef enum:
    REPLIES = 65536         # one read of answers
    DRAIN_EVERY = 16        # sends between two looks at the answers
    RESTLESS_NS = 1000000   # a closed loop where something moved so lately only lets others run
    NAP_NS = 50000          # otherwise it sleeps
    WAKING_NS = 60000       # what a sleep may take longer than it should
    LAST_ANSWER_MS = 500    # for answers at the end

cdef uint64_t STANDSTILL_NS = 10000000000  # a closed loop in which nothing has moved for so long is over

cdef struct Piece:
    const unsigned char *data
    size_t size


@cython.final
cdef class Publisher:
    """Publishes messages in turn over the topics of a swarm: `threading.Thread(target=publisher.run)`, without the GIL.

    Several may use one swarm one after the other; the numbers of the topics go on.

    Args:
        swarm: whose clients should get the messages.
        fd: a connected blocking socket to Redis, authenticated, with nothing on its way; it stays the caller's, and
            open until `run` has returned.
        names: the topic behind each path of the swarm: the Redis channel, or the `id` of an HTTP publication.
        size: bytes of a message before JSON escapes it, `SMALLEST` to 8 MiB.
        messages: how many in all.
        window: closed loop: at most so many messages that have not yet come to all their live clients. Stalled ones and
            those that have gone are not waited for.
        rate: open loop: so many messages a second. Their stamp is the time when they were due, so what a relay that
            falls behind makes others wait is in the latencies.
        batch: messages in one write; with a rate a burst of so many, all due together.
        text: `plain`; `escapes` (quotes, backslashes, control characters), `accents` (UTF-8 of 2 to 4 bytes).
        protocol: `redis` (PUBLISH), or `http`: `POST /pub?id=<name>`, keep-alive, pipelined, its body the whole text of
            the frame, for servers that pass bodies on unchanged.
        host: the Host field of HTTP.

    Raises:
        ValueError: numbers that make no load, an unknown text or protocol, a name that the protocol cannot carry.
    """

    cdef Swarm swarm
    cdef Text *text
    cdef int fd
    cdef list kept              # owns what the pieces point to
    cdef Piece *openings        # for each topic what stands before the token
    cdef Piece filling
    cdef Piece ending
    cdef uint32_t topics
    cdef int64_t messages
    cdef int64_t window
    cdef int64_t batch
    cdef double rate
    cdef bint http
    cdef int64_t *sums          # what was expected in all after each of the last `window` messages
    cdef unsigned char *out
    cdef unsigned char *replies
    cdef int64_t sent
    cdef int64_t answered
    cdef int64_t stopping
    cdef bint begun
    cdef readonly bint done     # run() is over
    cdef readonly bint stalled  # because nothing moved for 10 s
    cdef readonly str error     # or because of this; ""

    def __init__(self, Swarm swarm, *, int fd, names, size_t size, int64_t messages, int64_t window=0, double rate=0.0,
                 int64_t batch=1, str text="plain", str protocol="redis", bytes host=b""):
        if self.kept is not None:
            raise RuntimeError("a publisher is made once")
        if not (window > 0) ^ (rate > 0):
            raise ValueError("either a window (closed loop) or a rate (open loop)")
        if window < 0 or rate < 0 or batch < 1 or messages < 0 or not HEAD <= size <= MOST_SIZE:
            raise ValueError(f"no load: {window=}, {rate=}, {batch=}, {messages=}, {size=} (from {HEAD} to {MOST_SIZE})")
        if len(names) != swarm.topics:
            raise ValueError(f"{len(names)} names for the {swarm.topics} paths of the swarm")
        if protocol not in ("redis", "http"):
            raise ValueError(f"protocol {protocol!r}: redis or http")
        self.swarm, self.fd, self.messages, self.window, self.rate = swarm, fd, messages, window, rate
        self.batch, self.http, self.error, self.topics = batch, protocol == "http", "", <uint32_t>swarm.topics
        self.text = text_new(text, size)
        self.text.next = swarm.books.texts
        store_text(&swarm.books.texts, self.text)
        self.prepare(list(names), size, host)
        swarm_no_delay(fd)

    cdef int prepare(self, list names, size_t size, bytes host) except -1:
        cdef size_t most
        cdef uint32_t i
        if self.http:
            self.kept = [http_opening(name, self.text.size, host) for name in names]
            self.filling = Piece(self.text.tail, self.text.tail_size)
            self.ending = Piece(<const unsigned char *>b"", 0)
        else:
            self.kept = [b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, size) for name in names]
            self.filling = Piece(self.text.filling, self.text.filling_size)
            self.ending = Piece(<const unsigned char *>b"\r\n", 2)
        most = max([len(opening) for opening in self.kept]) + HEAD + self.filling.size + self.ending.size
        self.openings = <Piece *>allocate(self.topics * sizeof(Piece))
        self.sums = <int64_t *>allocate(max(self.window, 1) * sizeof(int64_t))
        self.out = <unsigned char *>allocate(most * <size_t>self.batch)
        self.replies = <unsigned char *>allocate(REPLIES)
        for i in range(self.topics):
            self.openings[i] = Piece(<const unsigned char *>PyBytes_AS_STRING(self.kept[i]), len(self.kept[i]))
        return 0

    def __dealloc__(self):
        PyMem_RawFree(self.openings)
        PyMem_RawFree(self.sums)
        PyMem_RawFree(self.out)
        PyMem_RawFree(self.replies)

    @property
    def published(self) -> int:
        """Messages handed to the socket until now."""
        return load(&self.sent)

    def stop(self) -> None:
        """Has `run` return soon; from any thread."""
        store(&self.stopping, 1)

    def run(self) -> None:
        """Publishes until all are out, `stop` was called, the server refuses, or a closed loop stands still for 10 s.

        What ended it early is in `stalled` and `error`.

        Raises:
            RuntimeError: it has run, or another publisher of this swarm is running.
        """
        if self.begun or self.swarm.publishing:
            raise RuntimeError("a publisher runs once, and one at a time on a swarm")
        self.begun = self.swarm.publishing = True
        try:
            with nogil:
                self.publish()
        finally:
            self.swarm.publishing = False
            self.done = True

    cdef int publish(self) except -1 nogil:
        cdef uint64_t began = swarm_now(), stamp
        cdef int64_t count, round = 0
        swarm_sleep_exactly()
        while self.sent < self.messages:
            count = min(self.batch, self.messages - self.sent)
            if self.rate > 0:
                stamp = began + <uint64_t>(<double>self.sent / self.rate * 1e9)
                self.wait_until(stamp)
            else:
                self.wait_for_window(count)
                stamp = swarm_now()
            if self.over():
                return 0
            self.transmit(self.compose(count, stamp))
            store(&self.sent, self.sent + count)
            round += 1
            if round % DRAIN_EVERY == 0:
                self.drain()
        while not self.over() and self.answered < self.sent and swarm_poll(self.fd, False, LAST_ANSWER_MS) > 0:
            self.drain()
        return 0

    cdef bint over(self) noexcept nogil:
        return load(&self.stopping) != 0

    cdef size_t compose(self, int64_t count, uint64_t stamp) noexcept nogil:
        """The next `count` messages, entered in the books before they go out; bytes."""
        cdef Books *books = self.swarm.books
        cdef unsigned char *out = self.out
        cdef uint32_t topic
        cdef int64_t i, number
        for i in range(self.sent, self.sent + count):
            topic = <uint32_t>(i % self.topics)
            number = books_send(books, topic)
            if self.window:
                self.sums[i % self.window] = books.expected  # joins and leaves do not touch it
            out = put(out, self.openings[topic])
            memcpy(out, self.text.start + OPENING, TOKEN)
            write_digits(out + TOKEN, TOPIC, topic)
            write_digits(out + TOKEN + TOPIC, NUMBER, <uint64_t>number)
            write_digits(out + TOKEN + TOPIC + NUMBER, STAMP, stamp >> TICK_SHIFT)
            out = put(put(out + HEAD, self.filling), self.ending)
        return <size_t>(out - self.out)

    # ---- waiting ----

    cdef int wait_until(self, uint64_t due) except -1 nogil:
        """Sleeps until shortly before: from a sleep one wakes up to 100 µs late, which would look like the relay's latency."""
        cdef uint64_t now = swarm_now()
        while now < due and not self.over():
            if due - now > WAKING_NS:
                self.drain()
                swarm_sleep(min(due - now - WAKING_NS, <uint64_t>50000000))
            else:
                sched_yield()
            now = swarm_now()
        return 0

    cdef int wait_for_window(self, int64_t count) except -1 nogil:
        """Until `count` messages more leave at most `window` that have not come everywhere."""
        cdef int64_t before = min(self.sent + count - self.window, self.sent)
        cdef int64_t target, came, last = -1
        cdef uint64_t moved = swarm_now(), still
        if before <= 0:
            return 0
        target = self.sums[(before - 1) % self.window]
        while not self.over():
            came = load(&self.swarm.books.accounted)
            if came >= target:
                return 0
            if came != last:
                last, moved = came, swarm_now()
            still = swarm_now() - moved
            if still > STANDSTILL_NS:
                self.stalled = True
                self.stop_now()
            elif still < RESTLESS_NS:
                sched_yield()  # the swarm, which may share the CPU, is at work: it will not be long
            else:
                self.drain()
                swarm_sleep(NAP_NS)
        return 0

    # ---- the socket ----

    cdef int transmit(self, size_t size) except -1 nogil:
        cdef size_t at = 0
        cdef ssize_t sent
        while at < size and not self.over():
            sent = send(self.fd, self.out + at, size - at, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent >= 0:
                at += <size_t>sent
            elif errno == EAGAIN or errno == EINTR:
                self.drain()
                swarm_poll(self.fd, True, 50)
            else:
                self.fail(errno, NULL, 0)
        return 0

    cdef int drain(self) except -1 nogil:
        """Takes the answers that are there."""
        cdef ssize_t size
        while not self.over():
            size = recv(self.fd, self.replies, REPLIES, MSG_DONTWAIT)
            if size < 0 and (errno == EAGAIN or errno == EINTR):
                return 0
            if size <= 0:
                return self.fail(errno if size < 0 else 0, NULL, 0)
            if self.http:
                self.take_http(self.replies, <size_t>size)
            else:
                self.take_redis(self.replies, <size_t>size)
        return 0

    cdef int take_redis(self, const unsigned char *data, size_t size) except -1 nogil:
        """`:<receivers>` for each PUBLISH; a minus is an error, the only one that a line can have."""
        cdef const unsigned char *wrong = <const unsigned char *>memchr(data, 45, size)
        cdef size_t i
        if wrong is not NULL:
            return self.fail(0, wrong, <size_t>(data + size - wrong))
        for i in range(size):
            self.answered += data[i] == 10
        return 0

    cdef int take_http(self, const unsigned char *data, size_t size) except -1 nogil:
        cdef const unsigned char *end = data + size
        while True:
            data = <const unsigned char *>memmem(data, end - data, b"HTTP/1.1 ", 9)
            if data is NULL or end - data < 10:
                return 0
            if data[9] != 50:  # 2xx
                return self.fail(0, data, <size_t>(end - data))
            self.answered += 1
            data += 10

    cdef int fail(self, int code, const unsigned char *said, size_t size) except -1 nogil:
        with gil:
            if said is not NULL:
                line = said[:min(size, <size_t>200)].split(b"\r\n")[0].decode(errors="replace")
                self.error = f"the server refused a publication: {line}"
            else:
                self.error = f"the connection that publishes broke: {os.strerror(code) if code else 'end of file'}"
        self.stop_now()
        return 0

    cdef void stop_now(self) noexcept nogil:
        store(&self.stopping, 1)


cdef inline unsigned char *put(unsigned char *out, Piece piece) noexcept nogil:
    memcpy(out, piece.data, piece.size)
    return out + piece.size


cdef void *allocate(size_t size) except NULL:
    cdef void *place = PyMem_RawCalloc(1, size)
    if place is NULL:
        raise MemoryError(size)
    return place


cdef bytes http_opening(bytes name, size_t size, bytes host):
    if not name.isascii() or set(name) & set(b" #&\r\n\0"):
        raise ValueError(f"{name!r} cannot stand in the query of a URL")
    return b"POST /pub?id=%b HTTP/1.1\r\nHost: %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
        name, host, size, ENVELOPE)
