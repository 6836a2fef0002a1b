# One client's row of numbers: what it got, what it missed, what came twice or too late. No sockets.

cdef enum Stage:
    IDLE                # not begun
    CONNECTING
    SECURING            # TLS handshake
    ASKED               # the request is out
    OPEN
    STALLED             # open, and never read again
    OVER

cdef struct Client:
    int fd
    Stage stage
    bint fresh              # has got nothing yet
    bint opened             # was open once
    bint stalls
    bint streams            # listens to an event stream, not to a websocket
    uint32_t topic
    int64_t expected        # number of the next message
    uint64_t seen           # bit k: whether message expected - 1 - k has come
    int64_t delivered
    int64_t lost
    uint64_t began          # connect(), monotonic ns
    unsigned char *held     # a frame or an answer that is not whole yet
    size_t have
    size_t room


cdef class Rows:
    """All clients and what became of the messages."""

    cdef Books *books
    cdef Client *clients
    cdef uint32_t count
    cdef uint64_t now           # when the bytes at hand were read, ns
    cdef int64_t lost
    cdef int64_t duplicated
    cdef int64_t reordered
    cdef int64_t damaged
    cdef int64_t other
    cdef uint64_t latency[2][BUCKETS]   # of websockets, of event streams

    cdef bint recognise(self, Client *c, const unsigned char *data, size_t size) noexcept nogil:
        """Whether the text of a frame is byte for byte one of ours; if so it is entered."""
        cdef Text *text = load_text(&self.books.texts)
        while text is not NULL:
            if size == text.size and memcmp(data, text.start, START) == 0 and \
                    memcmp(data + OPENING + HEAD, text.tail, text.tail_size) == 0:
                self.enter(c, data + START, True)
                return True
            text = text.next
        return False

    cdef int enter_unusual(self, Client *c, const unsigned char *data, size_t size, message) except -1:
        """A text that is not as we would have written it: otherwise escaped, damaged, or none of ours.

        `message` is what JSON made of it, None where it is none. A few µs each: rare, or from a server far slower than that.
        """
        cdef Text *text
        cdef bytes published = b""
        cdef bint intact = False
        if isinstance(message, dict) and isinstance(message.get("data"), str):
            published = message["data"].encode(errors="surrogatepass")
            intact = message.get("type") == "status"
        elif message is None and size >= OPENING:
            published = data[OPENING:size]
        text = self.text_of(published)
        if text is NULL:
            self.other += 1
            return 0
        intact = intact and <size_t>len(published) == HEAD + text.filling_size and \
            memcmp(PyBytes_AS_STRING(published) + HEAD, text.filling, text.filling_size) == 0
        if len(published) < HEAD:
            self.damaged += 1
        else:
            self.enter(c, <const unsigned char *>PyBytes_AS_STRING(published) + TOKEN, intact)
        return 0

    cdef Text *text_of(self, bytes published) noexcept:
        """By its token; NULL: none of ours."""
        cdef Text *text = self.books.texts
        while text is not NULL:
            if len(published) >= TOKEN and memcmp(PyBytes_AS_STRING(published), text.start + OPENING, TOKEN) == 0:
                return text
            text = text.next
        return NULL

    cdef void enter(self, Client *c, const unsigned char *head, bint intact) noexcept nogil:
        """A message with our token: its place in the client's row. `head` is what follows the token."""
        cdef int64_t topic = read_digits(head, TOPIC)
        cdef int64_t number = read_digits(head + TOPIC, NUMBER)
        cdef int64_t stamp = read_digits(head + TOPIC + NUMBER, STAMP)
        cdef int64_t ahead
        if number >= 0:
            ahead = ahead_of(<uint64_t>number, <uint64_t>c.expected)
        if topic != <int64_t>c.topic or number < 0 or stamp < 0 or c.expected + ahead < 0 or \
                c.expected + ahead >= load(&self.books.rows[c.topic].sent):
            self.damaged += 1  # another topic's, or a number that never went out
            return
        if c.fresh and ahead < 0:
            # It was published before this client's 101 was read, and came all the same: the row begins earlier.
            self.account(ahead)
            c.expected += ahead
            ahead = 0
        c.fresh = False
        if ahead >= 0:
            self.advance(c, ahead)
        elif not self.came_late(c, -ahead - 1):
            self.duplicated += 1
            return
        if not intact:
            self.damaged += 1
            return
        c.delivered += 1
        store(&self.books.delivered, self.books.delivered + 1)
        note(self.latency[1 if c.streams else 0], since(self.now, <uint64_t>stamp))

    cdef void advance(self, Client *c, int64_t missing) noexcept nogil:
        """The row goes on behind `missing` messages that should have come first."""
        c.seen = c.seen << (missing + 1) | 1 if missing < 63 else 1
        c.expected += missing + 1
        c.lost += missing
        self.lost += missing
        self.account(missing + 1)

    cdef bint came_late(self, Client *c, int64_t back) noexcept nogil:
        """A message from behind the last one: reordered, so not lost; false where it had come already.

        The last 64 are known one by one. An older one counts as late where the client misses any, else as duplicate.
        """
        if back >= 64 and c.lost == 0:
            return False
        if back < 64:
            if c.seen >> back & 1:
                return False
            c.seen |= <uint64_t>1 << back
        if c.lost > 0:  # counted before a `reset`, it is not there any more
            c.lost -= 1
            self.lost -= 1
        self.reordered += 1
        return True

    cdef void account(self, int64_t messages) noexcept nogil:
        store(&self.books.accounted, self.books.accounted + messages)

    cdef void give_up_missing(self) noexcept nogil:
        """What has not come until now is lost."""
        cdef int64_t missing
        cdef Client *c
        cdef uint32_t i
        for i in range(self.count):
            c = &self.clients[i]
            missing = load(&self.books.rows[c.topic].sent) - c.expected
            if c.stage == OPEN and missing > 0:
                c.fresh = False
                c.seen = c.seen << missing if missing < 64 else 0
                c.expected += missing
                c.lost += missing
                self.lost += missing
                self.account(missing)

    cdef int64_t cut_off(self) noexcept nogil:
        """What went out without those clients that were open once and are no more."""
        cdef int64_t total = 0
        cdef Client *c
        cdef uint32_t i
        for i in range(self.count):
            c = &self.clients[i]
            if c.stage == OVER and c.opened and not c.stalls:
                total += max(<int64_t>0, load(&self.books.rows[c.topic].sent) - c.expected)
        return total

    cdef void forget_messages(self) noexcept nogil:
        """All counts of messages to zero; the rows go on where they are."""
        cdef uint32_t i
        self.lost = self.duplicated = self.reordered = self.damaged = self.other = 0
        store(&self.books.delivered, 0)
        memset(self.latency, 0, sizeof(self.latency))
        for i in range(self.count):
            self.clients[i].delivered = self.clients[i].lost = 0
