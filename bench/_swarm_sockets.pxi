# The clients' sockets: bytes in, frames out of them, short answers back. TLS where there is any.

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <stddef.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <unistd.h>
    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif

    static int swarm_watch(int ep, int op, int fd, unsigned events, uint64_t data) {
        struct epoll_event event;
        memset(&event, 0, sizeof event);
        event.events = events;
        event.data.u64 = data;
        return epoll_ctl(ep, op, fd, &event);
    }

    /* A socket on its way to an address, from 127.0.0.`source` unless that is 0; -1 with errno. */
    static int swarm_connect(int family, const void *address, unsigned size, unsigned source, int small) {
        int one = 1, few = 4096, fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        struct sockaddr_in from;
        if (fd < 0)
            return -1;
        if (family != AF_UNIX)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (small) /* before connect: the window is agreed on there */
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &few, sizeof few);
        memset(&from, 0, sizeof from);
        from.sin_family = AF_INET;
        from.sin_addr.s_addr = htonl(0x7f000000u + source);
        if (source) /* the port is chosen by connect, so that those in TIME_WAIT are not in the way */
            setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (!(source && bind(fd, (struct sockaddr *)&from, sizeof from)) &&
            (!connect(fd, (const struct sockaddr *)address, size) || errno == EINPROGRESS))
            return fd;
        one = errno;
        close(fd);
        errno = one;
        return -1;
    }

    static int swarm_socket_error(int fd) {
        int error = 0;
        socklen_t size = sizeof error;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) ? errno : error;
    }

    /* What socket.connect takes -> sockaddr; its size, 0 where the text is no numeric address. */
    static unsigned swarm_address(void *out, int family, const char *text, int port, unsigned flow, unsigned scope) {
        if (family == AF_INET6) {
            struct sockaddr_in6 *six = out;
            six->sin6_family = AF_INET6;
            six->sin6_port = htons((uint16_t)port);
            six->sin6_flowinfo = htonl(flow);
            six->sin6_scope_id = scope;
            return inet_pton(AF_INET6, text, &six->sin6_addr) == 1 ? sizeof *six : 0;
        }
        if (family == AF_INET) {
            struct sockaddr_in *four = out;
            four->sin_family = AF_INET;
            four->sin_port = htons((uint16_t)port);
            return inet_pton(AF_INET, text, &four->sin_addr) == 1 ? sizeof *four : 0;
        }
        struct sockaddr_un *path = out;
        if (family != AF_UNIX || !*text || strlen(text) >= sizeof path->sun_path)
            return 0;
        path->sun_family = AF_UNIX;
        strcpy(path->sun_path, text);
        return sizeof *path;
    }
    """
    int swarm_watch(int ep, int op, int fd, unsigned events, uint64_t data) noexcept
    int swarm_connect(int family, const void *address, unsigned size, unsigned source, int small) noexcept
    int swarm_socket_error(int fd) noexcept
    unsigned swarm_address(void *out, int family, const char *text, int port, unsigned flow, unsigned scope) noexcept
    enum: SOCKADDR_ROOM "sizeof(struct sockaddr_storage)"
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags) noexcept
    int epoll_wait(int ep, epoll_event *events, int most, int timeout) noexcept
    enum: EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CLOEXEC, EPOLLIN, EPOLLOUT, EPOLLRDHUP
    enum: MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t size, int flags) noexcept
    ssize_t recv(int fd, void *data, size_t size, int flags) noexcept
    int close_fd "close"(int fd) noexcept

cdef enum:
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10
    INBOX = 262144          # one read, shared by all
    LARGE = 16384           # a frame above it is collected in a place of its own, without copies
    MOST_FRAME = 67108864   # bytes of a frame; above it the server is at fault: 1009
    MOST_ANSWER = 16384     # bytes of the answer to the upgrade
    SMALL_FRAME = 125       # bytes that we send in one at most
    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    NO_CODE = 1005
    NO_CLOSE = 1006
    TOO_BIG = 1009

cdef const char *JSON_PING = b'{"type":"ping"}'
cdef const char *JSON_PONG = b'{"type":"pong"}'


@cython.final
cdef class Tls:
    """One client's TLS, between two buffers in memory."""

    cdef object link
    cdef object incoming
    cdef object outgoing

    def __init__(self, context, server_hostname):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.link = context.wrap_bio(self.incoming, self.outgoing, server_hostname=server_hostname)


cdef class Sockets(Rows):
    """What is read from a client, and what it answers by itself."""

    cdef int ep
    cdef uint64_t bytes
    cdef int64_t pings
    cdef int64_t connecting
    cdef int64_t open_now
    cdef int64_t opened
    cdef size_t wanted              # bytes of the frame that `take_frames` found unfinished, 0: unknown
    cdef uint32_t mask
    cdef dict refused               # HTTP status -> how often
    cdef dict closed                # close code -> how often
    cdef dict accepts               # client -> Sec-WebSocket-Accept that it waits for
    cdef uint64_t handshake[BUCKETS]
    cdef list secured               # its Tls for each client, or None where the connections are plain
    cdef bint secure                # whether they are not
    cdef readonly str trouble       # the first thing that went wrong with a connection, or ""
    cdef unsigned char *inbox
    cdef unsigned char *cipher

    # ---- in ----

    cdef ssize_t receive(self, Client *c, unsigned char *into, size_t room) except -2 nogil:
        """So many bytes; 0: the end, or an error; -1: nothing now."""
        cdef ssize_t size
        if self.secure:
            with gil:
                return self.receive_secure(c, into, room)
        size = recv(c.fd, into, room, MSG_DONTWAIT)
        if size < 0:
            return -1 if errno == EAGAIN or errno == EINTR else 0
        return size

    cdef ssize_t receive_secure(self, Client *c, unsigned char *into, size_t room) except -2:
        cdef Tls tls = self.secured[c - self.clients]
        cdef bytes data
        cdef ssize_t fed
        while True:
            try:
                data = tls.link.read(room)
                memcpy(into, PyBytes_AS_STRING(data), len(data))
                return len(data)
            except ssl.SSLWantReadError:
                fed = self.feed(c, tls)
                if fed <= 0:
                    return fed
            except ssl.SSLError:
                return 0

    cdef ssize_t feed(self, Client *c, Tls tls) except -2:
        """What the socket has, to TLS; as `receive`."""
        cdef ssize_t size
        self.post(c, tls)
        size = recv(c.fd, self.cipher, INBOX, MSG_DONTWAIT)
        if size < 0:
            return -1 if errno == EAGAIN or errno == EINTR else 0
        tls.incoming.write(self.cipher[:size])
        return size

    cdef int on_readable(self, Client *c) except -1 nogil:
        """One read; with TLS until nothing is left, as what it has decrypted wakes nobody."""
        cdef ssize_t size
        while True:
            if c.stage == OPEN and c.room > LARGE and not c.streams:
                size = self.fill(c)
            else:
                if c.have:
                    memcpy(self.inbox, c.held, c.have)
                size = self.receive(c, self.inbox + c.have, INBOX - c.have)
                if size > 0:
                    self.now = swarm_now()
                    self.digest(c, self.inbox, c.have + <size_t>size, <size_t>size)
            if size == 0:
                return self.hang_up(c, NO_CLOSE if c.stage == OPEN else 0)
            if size < 0 or not self.secure or (c.stage != OPEN and c.stage != ASKED):
                return 0

    cdef ssize_t fill(self, Client *c) except -2 nogil:
        """Goes on with a large frame where it is collected."""
        cdef ssize_t size = self.receive(c, c.held + c.have, c.room - c.have)
        if size <= 0:
            return size
        c.have += <size_t>size
        self.bytes += <size_t>size
        if c.have == c.room:
            self.now = swarm_now()
            self.take_frames(c, c.held, c.have)
            self.keep(c, NULL, 0)
        return size

    cdef int digest(self, Client *c, const unsigned char *data, size_t size, size_t fresh) except -1 nogil:
        """The bytes of a read, what was kept of earlier ones in front; `fresh` of them are new."""
        cdef size_t used = 0
        self.wanted = 0
        if c.stage == ASKED:
            with gil:
                used = self.take_answer(c, data, size)
            fresh = size - used
        if c.stage == OPEN:
            self.bytes += fresh
            if c.streams:
                used += <size_t>self.take_events(c, data + used, size - used)
            else:
                used += <size_t>self.take_frames(c, data + used, size - used)
        if c.stage == OPEN or c.stage == ASKED:
            self.keep(c, data + used, size - used)
        return 0

    cdef int keep(self, Client *c, const unsigned char *data, size_t size) except -1 nogil:
        """Holds bytes of something unfinished until the rest comes."""
        cdef size_t room = max(size, self.wanted)
        cdef void *place
        if size == 0:
            PyMem_RawFree(c.held)
            c.held = NULL
            c.have = c.room = 0
            return 0
        if room > c.room:
            place = PyMem_RawRealloc(c.held, room)
            if place is NULL:
                with gil:
                    raise MemoryError
            c.held = <unsigned char *>place
        c.room = room  # a frame is whole when it is full
        memcpy(c.held, data, size)
        c.have = size
        return 0

    cdef size_t take_answer(self, Client *c, const unsigned char *data, size_t size) except? 0:
        """The answer to the upgrade, once it is whole; how many bytes it had."""
        cdef bytes head = data[:min(size, <size_t>MOST_ANSWER)]
        cdef Py_ssize_t end = head.find(b"\r\n\r\n")
        cdef int status = 0
        if end < 0 and size < MOST_ANSWER:
            return 0
        head = head[:end] if end >= 0 else b""
        status, trouble = judge_stream(head) if c.streams else judge(head, self.accepts[c - self.clients])
        if trouble:
            self.complain(trouble)
            self.hang_up(c, status)
            return size
        self.opens(c)
        return <size_t>end + 4

    cdef int opens(self, Client *c) except -1:
        self.accepts.pop(c - self.clients, None)
        self.connecting -= 1
        self.open_now += 1
        self.opened += 1
        c.opened = True
        note(self.handshake, (swarm_now() - c.began) >> TICK_SHIFT)
        if c.stalls:
            c.stage = STALLED
            PyMem_RawFree(c.held)
            c.held = NULL
            swarm_watch(self.ep, EPOLL_CTL_MOD, c.fd, EPOLLRDHUP, c - self.clients)
        else:
            c.stage = OPEN
            c.fresh = True
            c.expected = books_join(self.books, c.topic)
        return 0

    cdef ssize_t take_frames(self, Client *c, const unsigned char *data, size_t size) except -1 nogil:
        """Serves the whole frames; how many bytes they had. `wanted` is what the one behind them needs."""
        cdef const unsigned char *frame
        cdef size_t at = 0, header
        cdef uint64_t length
        cdef int i
        self.wanted = 0
        while c.stage == OPEN and size - at >= 2:
            frame = data + at
            length = frame[1] & 127
            header = 2 if length < 126 else 4 if length == 126 else 10
            if size - at < header:
                break
            if header > 2:
                length = 0
                for i in range(2, <int>header):
                    length = length << 8 | frame[i]
            if is_broken(frame[0], frame[1], length) or length > MOST_FRAME:
                self.damaged += 1
                self.bid_farewell(c, TOO_BIG if length > MOST_FRAME else PROTOCOL_ERROR)
                break
            if size - at - header < length:
                self.wanted = header + length
                break
            self.take_frame(c, frame[0] & 15, frame + header, length)
            at += header + length
        return <ssize_t>at

    cdef int take_frame(self, Client *c, int opcode, const unsigned char *data, size_t size) except -1 nogil:
        if opcode == TEXT:
            if not self.recognise(c, data, size):
                self.take_other(c, data, size)
        elif opcode == BINARY:
            self.damaged += 1
        elif opcode == PING:
            self.pings += 1
            self.answer(c, PONG, data, size)
        elif opcode == CLOSE:
            self.bid_farewell(c, data[0] << 8 | data[1] if size >= 2 else NO_CODE)
        return 0

    cdef ssize_t take_events(self, Client *c, const unsigned char *data, size_t size) except -1 nogil:
        """Serves the whole events (WHATWG HTML, 9.2.6), as the relay writes them; how many bytes they had."""
        cdef const unsigned char *end
        cdef size_t at = 0
        while c.stage == OPEN:
            end = <const unsigned char *>memmem(data + at, size - at, b"\n\n", 2)
            if end is NULL:
                break
            self.take_event(c, data + at, end - (data + at))
            at = end + 2 - data
        if c.stage == OPEN and size - at == INBOX:
            self.damaged += 1  # longer than what is read at once
            self.hang_up(c, TOO_BIG)
        return <ssize_t>at

    cdef int take_event(self, Client *c, const unsigned char *event, size_t size) except -1 nogil:
        cdef const unsigned char *line = event
        if size and event[0] == b":":
            self.pings += 1
            return 0
        if size > 7 and memcmp(event, b"event: ", 7) == 0:
            line = <const unsigned char *>memchr(event, b"\n", size)
            line = event + size if line is NULL else line + 1
        size -= line - event
        if size < 6 or memcmp(line, b"data: ", 6) != 0:
            return 0  # when to come back, or nothing
        if self.recognise(c, line + 6, size - 6):
            return 0
        return self.take_other(c, line + 6, size - 6)

    cdef int take_other(self, Client *c, const unsigned char *data, size_t size) except -1 nogil:
        """A text that is no message as we would have written it."""
        if size == 15 and memcmp(data, JSON_PING, 15) == 0:
            self.pings += 1
            return self.answer(c, TEXT, <const unsigned char *>JSON_PONG, 15)
        with gil:
            try:
                message = json.loads(data[:size])
            except (ValueError, RecursionError):
                message = None
            if c.streams and isinstance(message, dict) and message.get("type") == "close":
                code = message.get("code")
                return self.hang_up(c, code if isinstance(code, int) and 0 < code < 1 << 16 else NO_CODE)
            if isinstance(message, dict) and message.get("type") == "ping":
                self.pings += 1
                return self.answer(c, TEXT, <const unsigned char *>JSON_PONG, 15)
            return self.enter_unusual(c, data, size, message)

    # ---- out ----

    cdef int answer(self, Client *c, int opcode, const unsigned char *data, size_t size) except -1 nogil:
        """Sends a frame of at most 125 bytes, masked (RFC 6455, 5.3); a client of an event stream has nothing to say."""
        cdef unsigned char frame[6 + SMALL_FRAME]
        cdef uint32_t mask
        cdef size_t i
        if c.streams:
            return 0
        self.mask = self.mask * 1664525 + 1013904223
        mask = self.mask
        frame[0] = <unsigned char>(0x80 | opcode)
        frame[1] = <unsigned char>(0x80 | size)
        memcpy(frame + 2, &mask, 4)
        for i in range(size):
            frame[6 + i] = data[i] ^ frame[2 + (i & 3)]
        return self.transmit(c, frame, 6 + size)

    cdef int transmit(self, Client *c, const unsigned char *data, size_t size) except -1 nogil:
        """All of it or, where the server does not read, nothing. Something between would break the row of frames."""
        cdef ssize_t sent
        if self.secure:
            with gil:
                return self.transmit_secure(c, data[:size])
        sent = send(c.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if 0 <= sent < <ssize_t>size:
            return self.hang_up(c, NO_CLOSE if c.stage == OPEN else 0)
        return 0

    cdef int transmit_secure(self, Client *c, bytes data) except -1:
        cdef Tls tls = self.secured[c - self.clients]
        try:
            tls.link.write(data)
        except ssl.SSLError:
            return 0  # the other side has ended it: the next read says so
        return self.post(c, tls)

    cdef int post(self, Client *c, Tls tls) except -1:
        """What TLS has to say, to the socket."""
        cdef bytes data = tls.outgoing.read()
        cdef ssize_t sent = send(c.fd, PyBytes_AS_STRING(data), len(data), MSG_DONTWAIT | MSG_NOSIGNAL) if data else 0
        if data and sent != len(data):
            return self.hang_up(c, NO_CLOSE if c.stage == OPEN else 0)
        return 0

    # ---- the end ----

    cdef int bid_farewell(self, Client *c, int code) except -1 nogil:
        """Sends a close frame, an echo or our own verdict, and hangs up."""
        cdef unsigned char said[2]
        said[0], said[1] = <unsigned char>(code >> 8), <unsigned char>code
        self.answer(c, CLOSE, said, 0 if code == NO_CODE else 2)
        return self.hang_up(c, code)

    cdef int hang_up(self, Client *c, int code) except -1 nogil:
        """Ends a connection and counts how; `code`: a close code, or of one never open its HTTP status or 0."""
        cdef Stage was = c.stage
        if was == OVER:
            return 0
        self.drop(c)
        with gil:
            if was == OPEN or was == STALLED:
                self.open_now -= 1
                self.closed[code] = self.closed.get(code, 0) + 1
                return 0
            self.connecting -= 1
            self.refused[code] = self.refused.get(code, 0) + 1
            self.accepts.pop(c - self.clients, None)
            return self.complain("the connection ended before the answer to its request")

    cdef void drop(self, Client *c) noexcept nogil:
        """The one place where a socket is closed."""
        if c.stage == OPEN:
            books_leave(self.books, c.topic, c.expected)
        c.stage = OVER
        close_fd(c.fd)  # leaves the epoll set by itself
        c.fd = -1
        PyMem_RawFree(c.held)
        c.held = NULL
        c.have = c.room = 0
        if self.secure:
            with gil:
                self.secured[c - self.clients] = None

    cdef int complain(self, str trouble) except -1:
        self.trouble = self.trouble or trouble
        return 0


cdef inline bint is_broken(unsigned char first, unsigned char second, uint64_t length) noexcept nogil:
    """Fragments, reserved bits and opcodes, masks, long control frames: nothing that a relay sends."""
    cdef unsigned char opcode = first & 15
    if first >> 4 != 8 or second & 128:
        return True
    if opcode >= CLOSE:
        return opcode > PONG or length > SMALL_FRAME or (opcode == CLOSE and length == 1)
    return opcode != TEXT and opcode != BINARY


cdef tuple parse_answer(bytes head):
    """(HTTP status, status line, fields by lower-case name) (RFC 9112, 4); status 0: it is none."""
    cdef bytes line, name, value
    lines = head.split(b"\r\n")
    first = lines[0].split(b" ", 2)
    if len(first) < 2 or not first[0].startswith(b"HTTP/1.") or not (len(first[1]) == 3 and first[1].isdigit()):
        return 0, f"{bytes(head[:60])!r}", {}
    fields = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    return int(first[1]), lines[0].decode("latin-1"), fields


cdef tuple judge_stream(bytes head):
    """The answer to who asked for an event stream (WHATWG HTML, 9.2.3) -> HTTP status, and what is wrong with it or ''."""
    status, line, fields = parse_answer(head)
    if status != 200:
        return status, f"refused: {line}" if status else f"the answer is no HTTP: {line}"
    if not fields.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
        return status, "an answer 200 that is no event stream"
    if b"transfer-encoding" in fields:
        return status, "the event stream comes in chunks, as from a proxy: put the load on the relay itself"
    return status, ""


cdef tuple judge(bytes head, bytes accept):
    """The answer to an upgrade (RFC 6455, 4.1) -> HTTP status, and what is wrong with it or ''."""
    status, line, fields = parse_answer(head)
    if status != 101:
        return status, f"refused: {line}" if status else f"the answer is no HTTP: {line}"
    if fields.get(b"upgrade", b"").lower() != b"websocket" or b"upgrade" not in fields.get(b"connection", b"").lower():
        return 101, "an answer 101 that does not upgrade to websocket"
    if fields.get(b"sec-websocket-accept") != accept:
        return 101, "an answer 101 with the wrong Sec-WebSocket-Accept"
    for name in (b"sec-websocket-extensions", b"sec-websocket-protocol"):
        if name in fields:
            return 101, f"{name.decode()} in the answer, and none was asked for"
    return 101, ""
