# Who a client is: the proxies that are trusted to say so, the header with which they do (haproxy's PROXY protocol,
# versions 1 and 2), and how many connections an address has. No sockets. An address is 16 bytes, IPv4 mapped into
# IPv6, zero for a Unix socket.

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <string.h>

    /* inet_pton; IPv4 mapped. 1 where the text is an address of the family. */
    static int relay_address(int six, const char *text, unsigned char address[16]) {
        unsigned char four[4];
        if (six)
            return inet_pton(AF_INET6, text, address);
        if (inet_pton(AF_INET, text, four) != 1)
            return 0;
        memset(address, 0, 10);
        address[10] = address[11] = 255;
        memcpy(address + 12, four, 4);
        return 1;
    }
    """
    int relay_address(bint six, const char *text, unsigned char *address) noexcept

cdef enum:
    LINE_MOST = 107         # bytes of a version 1 header, its line end included
    BINARY_HEAD = 16        # bytes of a version 2 header before the addresses
    BINARY_MOST = 4096      # with all its extensions; proxies send a few hundred

cdef const char *BINARY_MARK = b"\r\n\r\n\x00\r\nQUIT\n"
cdef const unsigned char *NOBODY = <const unsigned char *>b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
cdef const unsigned char *MAPPED = <const unsigned char *>b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef inline bint is_four(const unsigned char *address) noexcept:
    return memcmp(address, MAPPED, 12) == 0


cdef bint in_network(const unsigned char *address, const unsigned char *network, uint32_t bits) noexcept:
    """Whether the first bits of both are the same; 0 bits is everybody."""
    cdef uint32_t whole = bits >> 3, rest = bits & 7
    if memcmp(address, network, whole) != 0:
        return False
    return rest == 0 or (address[whole] ^ network[whole]) >> (8 - rest) == 0


cdef int read_proxy(const unsigned char *data, size_t size, unsigned char *address, size_t *used) noexcept:
    """Reads a PROXY header of either version.

    1 when it is whole: `used` bytes, and `address` is the client's, untouched where the header names none (LOCAL,
    UNKNOWN, a Unix socket: the connection is the proxy's own). 0 when more bytes are needed, -1 when it is none.
    """
    if memcmp(data, BINARY_MARK, min(size, <size_t>12)) == 0:
        return read_binary(data, size, address, used)
    if memcmp(data, b"PROXY ", min(size, <size_t>6)) == 0:
        return read_line_header(data, size, address, used)
    return -1


cdef int read_binary(const unsigned char *data, size_t size, unsigned char *address, size_t *used) noexcept:
    """Version 2. Lengths are unsigned, and what is behind the addresses is passed over."""
    cdef size_t length
    cdef unsigned int command, family
    if size < BINARY_HEAD:
        return 0
    command = data[12] & 15
    family = data[13] >> 4
    length = <size_t>data[14] << 8 | data[15]
    if data[12] >> 4 != 2 or command > 1 or family > 3 or data[13] & 15 > 2 or BINARY_HEAD + length > BINARY_MOST:
        return -1
    if command == 1 and length < (12 if family == 1 else 36 if family == 2 else 0):
        return -1
    if size < BINARY_HEAD + length:
        return 0
    used[0] = BINARY_HEAD + length
    if command == 1 and family == 1:
        memcpy(address, MAPPED, 12)
        memcpy(address + 12, data + BINARY_HEAD, 4)
    elif command == 1 and family == 2:
        memcpy(address, data + BINARY_HEAD, 16)
    return 1


cdef int read_line_header(const unsigned char *data, size_t size, unsigned char *address, size_t *used) noexcept:
    """Version 1: `PROXY TCP4 source destination port port`, or `PROXY UNKNOWN` and anything."""
    cdef const unsigned char *end = <const unsigned char *>memmem(data, min(size, <size_t>LINE_MOST), b"\r\n", 2)
    cdef char words[4][48]
    cdef unsigned char source[16]
    cdef unsigned char target[16]
    cdef const unsigned char *at = data + 6
    cdef size_t length
    cdef int i
    if end is NULL:
        return -1 if size >= LINE_MOST else 0
    used[0] = end + 2 - data
    if end - at >= 7 and memcmp(at, b"UNKNOWN", 7) == 0 and (at + 7 == end or at[7] == 0x20):
        return 1
    if end - at < 5 or (memcmp(at, b"TCP4 ", 5) != 0 and memcmp(at, b"TCP6 ", 5) != 0):
        return -1
    at += 5
    for i in range(4):
        length = 0
        while at + length < end and at[length] > 0x20:  # a NUL would end the C string, and hide what is behind it
            length += 1
        if length == 0 or length > 47 or (at + length == end) != (i == 3) or (i < 3 and at[length] != 0x20):
            return -1
        memcpy(words[i], at, length)
        words[i][length] = 0
        at += length + 1
    if not relay_address(data[9] == 0x36, words[0], source) or not relay_address(data[9] == 0x36, words[1], target) or \
            not is_port(words[2]) or not is_port(words[3]):
        return -1
    memcpy(address, source, 16)
    return 1


cdef bint is_port(const char *text) noexcept:
    """0-65535, digits alone, no leading zero."""
    cdef uint32_t port = 0
    cdef size_t i = 0
    while text[i] != 0:
        if not 0x30 <= text[i] <= 0x39 or i > 4 or (i == 1 and text[0] == 0x30):
            return False
        port = port * 10 + <uint32_t>(text[i] - 0x30)
        i += 1
    return i > 0 and port <= 65535


@cython.final
@cython.internal
cdef class Peers:
    """The proxies that are trusted, and the connections counted for each address."""

    cdef Network *networks
    cdef uint32_t count, most
    cdef bint local
    cdef dict charged       # connections of each address; empty where there is no bound

    def __cinit__(self):
        self.charged = {}

    def __dealloc__(self):
        PyMem_RawFree(self.networks)

    cdef int trust(self, networks, bint unix, uint32_t most) except -1:
        cdef Network *network
        PyMem_RawFree(self.networks)
        self.count = 0
        self.networks = <Network *>PyMem_RawCalloc(max(1, len(networks)), sizeof(Network))
        if self.networks is NULL:
            raise MemoryError
        for address, bits in networks:
            if len(address) != 16 or not 0 <= bits <= 128:
                raise ValueError(f"{address!r}/{bits} is no network")
            network = &self.networks[self.count]
            memcpy(network.address, PyBytes_AS_STRING(address), 16)
            network.bits = bits
            self.count += 1
        self.local, self.most = unix, most
        return 0

    cdef bint trusts(self, const unsigned char *address) noexcept:
        cdef uint32_t i
        if memcmp(address, NOBODY, 16) == 0:
            return self.local
        for i in range(self.count):
            if in_network(address, self.networks[i].address, self.networks[i].bits):
                return True
        return False

    cdef void meet(self, Slot *slot, bint introduced) noexcept:
        """A new connection, by the address of its socket; `introduced` where a proxy's begins with a PROXY header."""
        slot.peer = 0
        if self.trusts(slot.address):
            slot.peer = TRUSTED | (INTRODUCED if introduced else 0)

    cdef void introduce(self, Slot *slot, const unsigned char *proxy) noexcept:
        """A PROXY header has been read, by which that proxy may have named another as its client: is it trusted, too?

        Where it named nobody (UNKNOWN), the request is a stranger's all the same: an X-Forwarded-For in it is not the
        proxy's, and let 6 of 6 connections in where 2 of an address may be.
        """
        cdef bint named = memcmp(slot.address, proxy, 16) != 0
        slot.peer = slot.peer & BEGUN | (TRUSTED if named and self.trusts(slot.address) else 0)

    cdef bint charge(self, Slot *slot) except -1:
        """Whether one more connection of this address may be; a Unix socket has no address, and no bound."""
        cdef bytes key
        cdef uint32_t count
        if self.most == 0 or slot.peer & CHARGED or memcmp(slot.address, NOBODY, 16) == 0:
            return True
        key = address_key(slot)
        count = self.charged.get(key, 0)
        if count >= self.most:
            return False
        self.charged[key] = count + 1
        slot.peer |= CHARGED
        return True

    cdef int release(self, Slot *slot) except -1:
        """The connection has ended."""
        cdef bytes key
        cdef uint32_t count
        if not slot.peer & CHARGED:
            return 0
        key = address_key(slot)
        count = self.charged[key]
        if count == 1:
            del self.charged[key]
        else:
            self.charged[key] = count - 1
        return 0


cdef bytes address_key(Slot *slot):
    """What connections are counted by: an IPv4 address, or the first 64 bits of an IPv6 one, which are what a host gets."""
    return PyBytes_FromStringAndSize(<char *>slot.address, 16 if is_four(slot.address) else 8)
