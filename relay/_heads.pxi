# The plain upgrade request of a browser, read in one pass: what most request heads are. Whatever is unusual in any way
# is left to the judge (relay/handshake.py), so that this needs to know no rule but the strictest reading of each.
# RFC 9112, sections 2-5, for the head; RFC 6455, section 4.2.1, for the upgrade.

cdef enum:
    MAX_LINE = 8192         # bytes of a line with its end: what the judge reads
    HOST = 1
    UPGRADE = 2
    CONNECTION = 4
    KEY = 8
    VERSION = 16
    ORIGIN = 32
    NEEDED = 31             # all of these but the Origin

cdef extern from *:
    """
    /* 1: may stand in a token (RFC 9110, 5.6.2). 2: in a field value. 4: in a target. 8: in base64. 16: in a host and its
       port (RFC 3986, 3.2.2), where no rule says in which order. */
    static unsigned char relay_class[256];
    static void relay_class_init(void) {
        for (int c = 0x20; c < 0x7f; c++) {
            int letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z', digit = c >= '0' && c <= '9';
            relay_class[c] = 2 | (c > 0x20 ? 4 : 0) | (letter || digit || c == '+' || c == '/' ? 8 : 0)
                | (letter || digit || (c > 0x20 && strchr("!#$%&'*+-.^_`|~", c)) ? 1 : 0)
                | (letter || digit || (c > 0x20 && strchr("-._~%!$&'()*+,;=:[]", c)) ? 16 : 0);
        }
    }
    """
    const unsigned char relay_class[256]
    void relay_class_init() noexcept

relay_class_init()

cdef struct Text:
    const unsigned char *at
    size_t size

cdef struct Head:
    Text target
    Text key
    Text origin
    unsigned int seen       # HOST ... ORIGIN, each allowed once


cdef inline bint same(Text text, const char *lower, size_t size) noexcept:
    """Whether a text of printable ASCII is `lower` (letters and `-`), in any case and any locale."""
    cdef size_t i
    if text.size != size:
        return False
    for i in range(size):
        if text.at[i] | 0x20 != <unsigned char>lower[i]:
            return False
    return True


cdef inline const unsigned char *span(const unsigned char *at, unsigned char kind) noexcept:
    """Behind the run of bytes of that kind; what ends a head is of none."""
    while relay_class[at[0]] & kind:
        at += 1
    return at


cdef bint asks_upgrade(Text value) noexcept:
    """Whether a Connection header is a plain list of tokens with `upgrade` among them."""
    cdef const unsigned char *at = value.at
    cdef const unsigned char *end = value.at + value.size
    cdef bint found = False
    cdef Text token
    while True:
        token.at = at
        at = span(at, 1)
        token.size = at - token.at
        if token.size == 0:
            return False
        found = found or same(token, b"upgrade", 7)
        if at == end:
            return found
        if at[0] != 0x2C:
            return False
        at += 1
        while at[0] == 0x20:
            at += 1


cdef bint is_key(Text value) noexcept:
    """16 bytes in base64 (RFC 6455, 4.2.1, point 5)."""
    return value.size == KEY_SIZE and span(value.at, 8) == value.at + 22 and memcmp(value.at + 22, b"==", 2) == 0


cdef bint take_header(Head *head, Text name, Text value) noexcept:
    """Whether this header is as a plain request has it."""
    cdef unsigned int which = 0
    cdef bint right = True
    if name.size == 4 and same(name, b"host", 4):
        which, right = HOST, span(value.at, 16) == value.at + value.size
    elif name.size == 7 and same(name, b"upgrade", 7):
        which, right = UPGRADE, same(value, b"websocket", 9)
    elif name.size == 10 and same(name, b"connection", 10):
        which, right = CONNECTION, asks_upgrade(value)
    elif name.size == 6 and same(name, b"origin", 6):
        which = ORIGIN
        head.origin = value
    elif name.size == 17 and same(name, b"sec-websocket-key", 17):
        which, right = KEY, is_key(value)
        head.key = value
    elif name.size == 21 and same(name, b"sec-websocket-version", 21):
        which, right = VERSION, value.size == 2 and memcmp(value.at, b"13", 2) == 0
    elif same(name, b"sec-websocket-protocol", 22) or same(name, b"content-length", 14) or same(name, b"transfer-encoding", 17):
        return False
    if head.seen & which:
        return False
    head.seen |= which
    return right


cdef const unsigned char *read_line(Head *head, const unsigned char *at) noexcept:
    """One header line; the place after it, or NULL where it is not plain."""
    cdef Text name, value
    cdef const unsigned char *end
    name.at = at
    at = span(at, 1)
    name.size = at - name.at
    if name.size == 0 or at[0] != 0x3A:
        return NULL
    at += 1
    if at[0] == 0x20:
        at += 1
    value.at = at
    end = span(at, 2)
    value.size = end - at
    if end[0] != 0x0D or end[1] != 0x0A or end + 2 - name.at > MAX_LINE or (value.size and (at[0] == 0x20 or (end - 1)[0] == 0x20)):
        return NULL
    return end + 2 if take_header(head, name, value) else NULL


cdef bint read_plain(Head *head, const unsigned char *at, size_t size, int max_headers) noexcept:
    """Whether the bytes, which end with a blank line (and a NUL behind it), are a plain upgrade request."""
    cdef const unsigned char *end = at + size
    cdef int lines
    memset(head, 0, sizeof(Head))
    if size < 16 or memcmp(at, b"GET /", 5) != 0:
        return False
    head.target.at = at + 4
    at = span(at + 4, 4)
    head.target.size = at - head.target.at
    if end - at < 11 or memcmp(at, b" HTTP/1.1\r\n", 11) != 0 or head.target.size + 15 > MAX_LINE:
        return False
    at += 11
    for lines in range(max_headers + 1):
        if at[0] == 0x0D:
            return at[1] == 0x0A and at + 2 == end and head.seen & NEEDED == NEEDED
        at = read_line(head, at)
        if at is NULL:
            return False
    return False


cdef object text_of(Text text):
    return PyUnicode_DecodeASCII(<const char *>text.at, text.size, NULL)


cdef bytes last_part(Text target):
    """What follows the last slash: the topic, if there is one of that name. Empty where a query says more."""
    cdef size_t start = target.size
    if memchr(target.at, 0x3F, target.size) is not NULL:
        return b""
    while target.at[start - 1] != 0x2F:
        start -= 1
    return PyBytes_FromStringAndSize(<const char *>target.at + start, target.size - start)


def plain_upgrade(bytes head, int max_headers=64):
    """Reads a request head that is a browser's plain websocket upgrade; 0.5 µs where the judge takes 60.

    Accepts nothing that the judge refuses (tests/unit/test_handshake.py compares them).

    Args:
        head: up to and with its blank line.
        max_headers: with more it is not plain.

    Returns:
        (target, accept, origin): str; the value of Sec-WebSocket-Accept, bytes; str or None. None where the request is
        anything else: see the judge.
    """
    cdef Head found
    cdef unsigned char accept[ACCEPT_SIZE]
    if not read_plain(&found, <const unsigned char *>PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head), max_headers):
        return None
    write_accept(accept, found.key.at)
    return text_of(found.target), accept[:ACCEPT_SIZE], text_of(found.origin) if found.seen & ORIGIN else None
