# What a link reads from Redis, into the bursts.
#
# A message, which is nearly all that comes, is read where it lies: 48 bytes of framing around two strings. Whatever else
# comes (acknowledgements, errors, messages larger than half a read) is hiredis' to judge. Given every message, it made five
# objects of each, and a quarter of the user space of many small topics was spent on them.
from cpython.memoryview cimport PyMemoryView_GET_BUFFER

cdef const char *MESSAGE_HEAD = b"*3\r\n$7\r\nmessage\r\n$"
cdef size_t MESSAGE_HEAD_SIZE = 18

cdef struct Message:
    const unsigned char *channel
    size_t channel_size
    const unsigned char *payload
    size_t payload_size
    size_t size             # of the whole reply


cdef int read_bulk(const unsigned char *data, size_t size, size_t *at, const unsigned char **text, size_t *length) noexcept:
    """The rest of a bulk string behind its `$`, at `at`, which moves behind it. 1, 0 or -1 like `read_message`.

    What stands where its last CRLF should is not looked at: hiredis does not either.
    """
    cdef size_t i = at[0], digits = 0, value = 0
    cdef unsigned int digit
    while i < size and data[i] != 13:
        digit = <unsigned int>data[i] - 48
        if digit > 9 or digits == 9 or (digits and value == 0):
            return -1
        value = 10 * value + digit
        digits += 1
        i += 1
    if size - i < 2:
        return 0
    if digits == 0 or data[i + 1] != 10:
        return -1
    i += 2
    if size - i < value + 2:
        return 0
    text[0], length[0], at[0] = data + i, value, i + value + 2
    return 1


cdef int read_message(const unsigned char *data, size_t size, Message *out) noexcept:
    """A pub/sub message at the beginning of `data` (RESP2): 1 when it is whole, 0 when more bytes are needed, else -1.

    Narrower than the protocol: what it does not know it leaves, for hiredis accepts or refuses it.
    """
    cdef size_t at = MESSAGE_HEAD_SIZE
    cdef int known
    if memcmp(data, MESSAGE_HEAD, min(size, at)) != 0:
        return -1
    if size < at:
        return 0
    known = read_bulk(data, size, &at, &out.channel, &out.channel_size)
    if known <= 0:
        return known
    if at == size:
        return 0
    if data[at] != 0x24:
        return -1
    at += 1
    known = read_bulk(data, size, &at, &out.payload, &out.payload_size)
    out.size = at
    return known


cdef inline bint is_bytes(object value, bytes text) noexcept:
    return type(value) is bytes and PyBytes_GET_SIZE(value) == PyBytes_GET_SIZE(text) and \
        memcmp(PyBytes_AS_STRING(value), PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)) == 0


cdef inline bint is_message(object reply) noexcept:
    """Whether a reply is a pub/sub message: three byte strings, `message` first. What else a peer sends is not trusted."""
    return type(reply) is list and PyList_GET_SIZE(reply) == 3 and \
        is_bytes(<object>PyList_GET_ITEM(reply, 0), MESSAGE) and \
        type(<object>PyList_GET_ITEM(reply, 1)) is bytes and type(<object>PyList_GET_ITEM(reply, 2)) is bytes


cdef class Intake:
    """What a link reads from Redis, into the core: the two methods of asyncio.BufferedProtocol that each read calls.

    The one way of every message, so that none of it is left to the interpreter: its code is cold whenever a message
    comes alone. The class that derives from it has `rest()`, called where all others should have their turn before the
    next read, and `too_large()` and `unreadable(error)`, which throw the connection away.

    Attributes:
        core: what the messages go into.
        service: whose messages these are, its number.
        deliver: called behind the last message of a read, and before where a topic has so much by now that it should
            wait no longer: escaped, one read can be six times as long.
        max_reply: bytes of a reply that is not complete yet; with more `too_large` is called.
        heard_at: seconds of the monotonic clock at which the last bytes came.
    """

    cdef public Core core
    cdef public int service
    cdef public object deliver
    cdef public Py_ssize_t max_reply
    cdef public double heard_at
    cdef object feed, gets, has_data, unread, on_reply
    cdef object buffer
    cdef unsigned char *data    # the buffer's
    cdef size_t room            # bytes of it
    cdef size_t kept            # of its beginning: a message that is not whole yet
    cdef bint between           # hiredis holds no part of a reply

    def read_by(self, reader, buffer, on_reply) -> None:
        """Begins a connection.

        Args:
            reader: a `hiredis.Reader` that nothing has been fed to.
            buffer: a memoryview of bytes to read into.
            on_reply: called with each reply that is no message for a watched topic, before what stands behind it counts.
        """
        self.feed, self.gets, self.has_data, self.unread = reader.feed, reader.gets, reader.has_data, reader.len
        self.buffer, self.on_reply = buffer, on_reply
        self.data, self.room = <unsigned char *>PyMemoryView_GET_BUFFER(buffer).buf, len(buffer)
        self.kept, self.between = 0, True

    def get_buffer(self, sizehint: int) -> memoryview:
        """Of asyncio.BufferedProtocol."""
        return self.buffer[self.kept:] if self.kept else self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Of asyncio.BufferedProtocol: all that one read brought for a topic goes to each of its clients in one send."""
        cdef size_t size = self.kept + <size_t>nbytes
        self.core.read_at = now_ns()
        self.heard_at = self.core.read_at * 1e-9
        self.kept = 0
        try:
            self.take(size)
            if not self.between and <Py_ssize_t>self.unread() > self.max_reply:
                self.too_large()
        except (ProtocolError, MemoryError, TypeError) as error:  # the last: a map with a list for a key
            self.unreadable(error)
        self.deliver()
        if size == self.room or self.core.presses():
            self.rest()

    cdef int take(self, size_t size) except -1:
        """The buffer's first `size` bytes."""
        cdef size_t start = 0, part
        cdef int known
        while start < size:
            known = -1
            if self.between:
                known = self.take_messages(&start, size)
                if known == 0:
                    if size - start <= self.room // 2:
                        memmove(self.data, self.data + start, size - start)
                        self.kept = size - start
                        return 0
            if known <= 0:
                part = self.before_message(start, size)
                self.feed(self.buffer, start, part)
                start += part
                self.drain()
            if pressing_topics:
                self.deliver()
        return 0

    cdef int take_messages(self, size_t *start, size_t size) except -2:
        """Whole messages, some 16 KiB of them: 1; or what `read_message` says of that which stands behind them."""
        cdef size_t until = start[0] + FEED
        cdef Message message
        cdef int known
        cdef void *topic
        while start[0] < size and start[0] < until:
            known = read_message(self.data + start[0], size - start[0], &message)
            if known <= 0:
                return known
            start[0] += message.size
            channel = PyBytes_FromStringAndSize(<const char *>message.channel, message.channel_size)
            topic = self.find_topic(channel)
            if topic is not NULL:
                self.core.append_message(<Topic>topic, message.payload, message.payload_size)
            else:
                payload = PyBytes_FromStringAndSize(<const char *>message.payload, message.payload_size)
                self.on_reply([MESSAGE, channel, payload])
        return 1

    cdef size_t before_message(self, size_t start, size_t size) noexcept:
        """Bytes for hiredis: up to where the next message seems to begin, so that it is left with nothing in part.

        16 KiB at most, for it moves its whole unread tail for each KiB consumed.
        """
        cdef size_t part = min(<size_t>FEED, size - start)
        cdef unsigned char *first = self.data + start
        cdef unsigned char *found = <unsigned char *>memmem(first + 1, part - 1, MESSAGE_HEAD, MESSAGE_HEAD_SIZE)
        return part if found is NULL else found - first

    cdef int drain(self) except -1:
        """The replies that hiredis has whole."""
        cdef void *topic
        self.between = False
        while True:
            reply = self.gets()
            if reply is False:  # what it says when there is none left
                return 0
            self.between = not self.has_data()
            topic = self.find_topic(reply[1]) if is_message(reply) else NULL
            if topic is NULL:
                self.on_reply(reply)
            else:
                text = <object>PyList_GET_ITEM(reply, 2)
                self.core.append_message(
                    <Topic>topic, <const unsigned char *>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))

    cdef void *find_topic(self, channel) except? NULL:
        """The topic of a message's channel; it counts as arrived."""
        cdef Service service = self.core.services[self.service]
        service.arrived += 1
        return <void *>PyDict_GetItem(service.topics, channel)
