# Websocket frames (RFC 6455, section 5) and the JSON string escape (RFC 8259, section 7). No state, no sockets.
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy, memmove

cdef enum:
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10

cdef extern from *:
    """
    /* Bytes that a JSON string takes for one byte of UTF-8: 1 as it is, 2 as \\n, 6 as \\u0000. */
    static unsigned char relay_escaped[256];
    static void relay_escape_init(void) {
        for (int c = 0; c < 256; c++)
            relay_escaped[c] = c < 0x20 ? 6 : 1;
        relay_escaped['"'] = relay_escaped['\\\\'] = 2;
        relay_escaped['\\b'] = relay_escaped['\\t'] = relay_escaped['\\n'] = relay_escaped['\\f'] = relay_escaped['\\r'] = 2;
    }
    """
    const unsigned char relay_escaped[256]
    void relay_escape_init() noexcept

relay_escape_init()


cdef inline bint is_plain(const unsigned char *text, size_t size, bint *ascii) noexcept:
    """Whether the text needs no escape. One branch-free pass that the compiler vectorises."""
    cdef unsigned char special = 0, high = 0, c
    cdef size_t i
    for i in range(size):
        c = text[i]
        special |= <unsigned char>((c < 0x20) | (c == 0x22) | (c == 0x5C))
        high |= c
    ascii[0] = high < 0x80
    return special == 0


cdef inline size_t escaped_size(const unsigned char *text, size_t size) noexcept:
    cdef size_t i, total = 0
    for i in range(size):
        total += relay_escaped[text[i]]
    return total


cdef unsigned char *escape(unsigned char *out, const unsigned char *text, size_t size) noexcept:
    """Writes the inside of a JSON string; the place after it."""
    cdef size_t i
    cdef unsigned char c, width
    for i in range(size):
        c = text[i]
        width = relay_escaped[c]
        if width == 1:
            out[0] = c
        elif width == 2:
            out[0] = 0x5C
            out[1] = (c if c == 0x22 or c == 0x5C else
                      0x62 if c == 8 else 0x74 if c == 9 else 0x6E if c == 10 else 0x66 if c == 12 else 0x72)
        else:
            memcpy(out, b"\\u00", 4)
            out[4] = 0x30 + (c >> 4)
            out[5] = (0x30 if (c & 15) < 10 else 0x57) + (c & 15)
        out += width
    return out


cdef inline size_t header_size(size_t payload) noexcept:
    return 2 if payload < 126 else 4 if payload < 65536 else 10


cdef unsigned char *write_header(unsigned char *out, int opcode, size_t payload) noexcept:
    """A final, unmasked frame header (RFC 6455, 5.2: a server never masks); the place after it."""
    cdef int i
    out[0] = 0x80 | opcode
    if payload < 126:
        out[1] = <unsigned char>payload
        return out + 2
    if payload < 65536:
        out[1] = 126
        out[2] = <unsigned char>(payload >> 8)
        out[3] = <unsigned char>payload
        return out + 4
    out[1] = 127
    for i in range(8):
        out[2 + i] = <unsigned char>(<uint64_t>payload >> (56 - 8 * i))
    return out + 10


cdef size_t whole_frame(const unsigned char *frame) noexcept:
    """Size of a frame of our own, header included: what write_header wrote, read back."""
    cdef uint64_t size = frame[1]
    cdef int i
    if size < 126:
        return 2 + size
    if size == 126:
        return 4 + (<size_t>frame[2] << 8 | frame[3])
    size = 0
    for i in range(8):
        size = size << 8 | frame[2 + i]
    return 10 + size


cdef void unmask(unsigned char *data, size_t size, const unsigned char *key) noexcept:
    """RFC 6455, 5.3."""
    cdef size_t i = 0
    cdef uint64_t wide, word
    cdef unsigned char key8[8]
    memcpy(key8, key, 4)
    memcpy(key8 + 4, key, 4)
    memcpy(&wide, key8, 8)
    while i + 8 <= size:
        memcpy(&word, data + i, 8)
        word ^= wide
        memcpy(data + i, &word, 8)
        i += 8
    while i < size:
        data[i] ^= key[i & 3]
        i += 1


cdef bint is_utf8(const unsigned char *data, size_t size) except -1:
    """RFC 6455, 8.1. Rare enough (only what clients send) for the interpreter's decoder to be the judge."""
    try:
        PyUnicode_DecodeUTF8(<const char *>data, <Py_ssize_t>size, NULL)
    except UnicodeDecodeError:
        return False
    return True


cdef bint close_code_valid(unsigned int code) noexcept:
    """What a peer may put into its close frame (RFC 6455, 7.4; 1012-1014 by the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


# What a client's frame header says. `need` is the size of the whole frame once the length is known.
cdef struct Header:
    uint64_t payload
    size_t size
    uint8_t opcode
    uint8_t final
    unsigned char key[4]


cdef int read_header(const unsigned char *data, size_t size, Header *out) noexcept:
    """Reads a masked frame header (RFC 6455, 5.2).

    1 when it is complete, 0 when more bytes are needed (out.size says how many in all), else -1: a protocol error.
    Lengths stay unsigned, all 64 bits of them: 2^63 is refused here and nowhere converted.
    """
    cdef size_t head = 6
    cdef uint64_t payload
    cdef size_t i
    if size < 2:
        out.size = 2
        return 0
    out.final = data[0] >> 7
    out.opcode = data[0] & 15
    payload = data[1] & 127
    if data[0] & 0x70 or not data[1] & 128 or 2 < out.opcode < 8 or out.opcode > 10:
        return -1
    if out.opcode >= 8 and (not out.final or payload > 125):
        return -1
    if payload == 126:
        head = 8
    elif payload == 127:
        head = 14
    out.size = head
    if payload >= 126 and size >= head - 4:
        payload = 0
        for i in range(2, head - 4):
            payload = payload << 8 | data[i]
        if payload < 126 or (head == 14 and (payload < 65536 or payload >> 63)):
            return -1  # not the shortest form, or the top bit set
    if size < head:
        return 0
    out.payload = payload
    memcpy(out.key, data + head - 4, 4)
    return 1
