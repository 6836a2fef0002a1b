# The Sec-WebSocket-Accept of a key (RFC 6455, section 4.2.2). A call of hashlib for each handshake is 0.5 us when its code is
# warm; in a storm that it shares with the kernel it never is, and Python took 9 us of 45.

cdef enum:
    KEY_SIZE = 24           # of a key, in base64
    ACCEPT_SIZE = 28        # of the answer to it, in base64

cdef const char *GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
cdef const char *BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


cdef inline uint32_t rotate(uint32_t x, int bits) noexcept:
    return x << bits | x >> (32 - bits)


cdef void sha1_block(uint32_t *hash, const unsigned char *block) noexcept:
    """One round of 64 bytes (FIPS 180-4, section 6.1.2)."""
    cdef uint32_t w[80]
    cdef uint32_t a = hash[0], b = hash[1], c = hash[2], d = hash[3], e = hash[4], f
    cdef int t
    for t in range(16):
        w[t] = <uint32_t>block[4 * t] << 24 | <uint32_t>block[4 * t + 1] << 16 | <uint32_t>block[4 * t + 2] << 8 | block[4 * t + 3]
    for t in range(16, 80):
        w[t] = rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1)
    for t in range(80):
        if t < 20:
            f = (b & c | ~b & d) + <uint32_t>0x5A827999
        elif t < 40:
            f = (b ^ c ^ d) + <uint32_t>0x6ED9EBA1
        elif t < 60:
            f = (b & c | b & d | c & d) + <uint32_t>0x8F1BBCDC
        else:
            f = (b ^ c ^ d) + <uint32_t>0xCA62C1D6
        f += rotate(a, 5) + e + w[t]
        e, d, c, b, a = d, c, rotate(b, 30), a, f
    hash[0] += a
    hash[1] += b
    hash[2] += c
    hash[3] += d
    hash[4] += e


cdef void write_accept(unsigned char *out, const unsigned char *key) noexcept:
    """ACCEPT_SIZE bytes for a key of KEY_SIZE."""
    cdef uint32_t hash[5]
    cdef unsigned char text[128]
    cdef unsigned char digest[21]
    cdef uint32_t group
    cdef int i
    memset(text, 0, sizeof(text))
    memcpy(text, key, KEY_SIZE)
    memcpy(text + KEY_SIZE, GUID, 36)
    text[KEY_SIZE + 36] = 0x80      # the end, and the length in bits: 480
    text[126], text[127] = 0x01, 0xE0
    hash[0], hash[1], hash[2], hash[3], hash[4] = 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0
    sha1_block(hash, text)
    sha1_block(hash, text + 64)
    for i in range(20):
        digest[i] = <unsigned char>(hash[i >> 2] >> (24 - 8 * (i & 3)))
    digest[20] = 0
    for i in range(7):
        group = <uint32_t>digest[3 * i] << 16 | <uint32_t>digest[3 * i + 1] << 8 | digest[3 * i + 2]
        out[4 * i] = BASE64[group >> 18]
        out[4 * i + 1] = BASE64[group >> 12 & 63]
        out[4 * i + 2] = BASE64[group >> 6 & 63]
        out[4 * i + 3] = BASE64[group & 63]
    out[ACCEPT_SIZE - 1] = 0x3D
