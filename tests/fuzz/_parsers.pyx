# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The core's parsers, mutated and judged at the speed of C. Built beside the core in its debug and sanitized builds.

Each input lies in a block of its own of exactly its size, so that AddressSanitizer sees one byte read too many.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memset

include "../../relay/_frames.pxi"
include "../../relay/_accept.pxi"
include "../../relay/_heads.pxi"

cdef extern from * nogil:
    void *memmem(const void *data, size_t size, const void *part, size_t length)

cdef enum:
    MOST = 4096             # bytes of a mutated input
    PLACES = 4              # changes to one input, at most
    KEPT = 2000             # accepted heads of one call that are handed to the judge

cdef const char *EDGES = b"\x00\x01\x7d\x7e\x7f\x80\xfd\xfe\xff\r\n :,\t/"


cdef class Mutator:
    """Inputs made of a corpus by dice: the same seed gives the same inputs.

    Args:
        corpus: inputs to begin with, each of at most 2 KB.
        words: what is put into them whole.
        seed: of the dice.
        current: where the input under test is written: two bytes of size, then itself. Survives a crash.
    """

    cdef list corpus, words
    cdef uint64_t state
    cdef unsigned char[::1] current
    cdef unsigned char data[MOST + 4]
    cdef size_t size

    def __init__(self, list corpus, list words, uint64_t seed, unsigned char[::1] current):
        if not corpus or max(map(len, corpus)) > MOST // 2 or current.shape[0] < MOST + 8:
            raise ValueError("a corpus of inputs of at most 2048 bytes, and 4104 bytes for the current one")
        self.corpus, self.words, self.current = corpus, words, current
        self.state = (seed + 1) * <uint64_t>0x9E3779B97F4A7C15

    cdef uint64_t roll(self, uint64_t below) noexcept:
        """0 to below - 1 (xorshift64*)."""
        self.state ^= self.state >> 12
        self.state ^= self.state << 25
        self.state ^= self.state >> 27
        return (self.state * <uint64_t>0x2545F4914F6CDD1D >> 33) % below

    cdef int next(self) except -1:
        cdef bytes base = <bytes>self.corpus[self.roll(len(self.corpus))]
        cdef uint64_t i
        self.size = PyBytes_GET_SIZE(base)
        memcpy(self.data, PyBytes_AS_STRING(base), self.size)
        for i in range(1 + self.roll(PLACES)):
            self.change()
        return 0

    cdef int change(self) except -1:
        cdef uint64_t kind = self.roll(8)
        cdef size_t at = self.roll(self.size + 1), length
        cdef bytes other
        if kind == 0 and at < self.size:
            self.data[at] ^= <unsigned char>(1 << self.roll(8))
        elif kind == 1 and at < self.size:
            self.data[at] = <unsigned char>self.roll(256)
        elif kind == 2 and at < self.size:
            self.data[at] = <unsigned char>EDGES[self.roll(16)]
        elif kind == 3:
            self.size = at
        elif kind == 4:
            length = min(<size_t>self.roll(16), self.size - at)
            self.replace(at, length, NULL, 0)
        elif kind == 5:
            other = <bytes>self.corpus[self.roll(len(self.corpus))]
            length = self.roll(PyBytes_GET_SIZE(other) + 1)
            self.replace(at, self.size - at, PyBytes_AS_STRING(other) + length, PyBytes_GET_SIZE(other) - length)
        elif self.words:
            other = <bytes>self.words[self.roll(len(self.words))]
            length = min(<size_t>PyBytes_GET_SIZE(other) if kind == 6 else 0, self.size - at)
            self.replace(at, length, PyBytes_AS_STRING(other), PyBytes_GET_SIZE(other))
        return 0

    cdef void replace(self, size_t at, size_t length, const char *put, size_t size) noexcept:
        """data[at:at+length] = put; nothing where it would be too long."""
        if self.size - length + size > MOST:
            return
        memmove(self.data + at + size, self.data + at + length, self.size - at - length)
        if size:
            memcpy(self.data + at, put, size)
        self.size += size - length

    cdef unsigned char *block(self, size_t spare) except NULL:
        """The input in a block of its own, `spare` zeros behind it; noted as the current one."""
        cdef unsigned char *data = <unsigned char *>PyMem_RawMalloc(self.size + spare)
        if data is NULL:
            raise MemoryError
        self.current[0], self.current[1] = <unsigned char>(self.size >> 8), <unsigned char>self.size
        memcpy(&self.current[2], self.data, self.size)
        memcpy(data, self.data, self.size)
        memset(data + self.size, 0, spare)
        return data

    cdef bytes input(self):
        return PyBytes_FromStringAndSize(<const char *>self.data, self.size)

    def mutant(self) -> bytes:
        """The next input, for a target that is no parser."""
        self.next()
        PyMem_RawFree(self.block(1))
        return self.input()

    def keep(self, bytes found) -> None:
        """One more input to begin with, where it is small enough."""
        if len(found) <= MOST // 2:
            self.corpus.append(found)

    # ---- the frame parser ----

    def frames(self, uint64_t count) -> None:
        """So many inputs to the reading of headers, the masks, the JSON escape, and the writing of headers.

        Raises:
            AssertionError: the input, and which rule it breaks.
        """
        cdef uint64_t i
        cdef unsigned char *data
        cdef const char *wrong
        for i in range(count):
            self.next()
            data = self.block(0)
            try:
                wrong = judge_header(data, self.size)
                if wrong is NULL:
                    wrong = judge_mask(data, self.size)
                if wrong is NULL:
                    wrong = judge_escape(data, self.size)
                if wrong is NULL:
                    wrong = judge_close(data, self.size)
            finally:
                PyMem_RawFree(data)
            if wrong is not NULL:
                raise AssertionError(f"{wrong.decode()}: {self.input()!r}")

    # ---- the request parser ----

    def heads(self, uint64_t count) -> list:
        """So many request heads, each up to its first blank line; some of those that were taken for plain.

        Raises:
            AssertionError: the input, and which rule it breaks.
        """
        cdef set plain = set()
        cdef uint64_t i
        cdef unsigned char *data
        cdef Head head
        cdef bint taken
        for i in range(count):
            self.next()
            self.end_head()
            data = self.block(1)  # the NUL behind a bytes object
            try:
                taken = read_plain(&head, data, self.size, 64)
                if taken and not lies_within(&head, data, self.size):
                    raise AssertionError(f"a part lies outside of the head: {self.input()!r}")
            finally:
                PyMem_RawFree(data)
            if taken and len(plain) < KEPT:
                plain.add(self.input())
        return list(plain)

    cdef int end_head(self) except -1:
        cdef unsigned char *end = <unsigned char *>memmem(self.data, self.size, b"\r\n\r\n", 4)
        if end is NULL:
            memcpy(self.data + self.size, b"\r\n\r\n", 4)
            self.size += 4
        else:
            self.size = end + 4 - self.data
        return 0


cdef bint lies_within(Head *head, const unsigned char *data, size_t size) noexcept:
    cdef const unsigned char *end = data + size
    return data < head.target.at and head.target.size > 0 and head.target.at + head.target.size < end and \
        head.target.at[0] == 0x2F and head.key.size == 24 and data < head.key.at and head.key.at + 24 < end and \
        (not head.seen & ORIGIN or (data < head.origin.at and head.origin.at + head.origin.size < end))


cdef int expected(const unsigned char *data, size_t size, Header *out) noexcept:
    """RFC 6455, 5.2, read once more, straight down the page."""
    cdef uint64_t length
    cdef int wide, i
    if size < 2:
        out.size = 2
        return 0
    out.final, out.opcode = data[0] >= 128, data[0] % 16
    if data[0] % 128 >= 16 or data[1] < 128:
        return -1
    if out.opcode not in (0, 1, 2, 8, 9, 10):
        return -1
    length = data[1] % 128
    if out.opcode > 7 and (length > 125 or data[0] < 128):
        return -1
    wide = 2 if length == 126 else 8 if length == 127 else 0
    out.size = 6 + wide
    if wide and size >= <size_t>(2 + wide):
        length = 0
        for i in range(wide):
            length = length * 256 + data[2 + i]
        if length <= 125 or (wide == 8 and (length <= 65535 or length >= <uint64_t>1 << 63)):
            return -1
    if size < out.size:
        return 0
    out.payload = length
    memcpy(out.key, data + 2 + wide, 4)
    return 1


cdef const char *judge_header(const unsigned char *data, size_t size) noexcept:
    """What is said of the header is what the RFC says, and of each beginning of it what fits the whole."""
    cdef Header mine, right, part
    cdef int known, early
    cdef size_t cut
    memset(&mine, 0, sizeof(Header))
    memset(&right, 0, sizeof(Header))
    known = read_header(data, size, &mine)
    if known != expected(data, size, &right):
        return b"the verdict is not the RFC's"
    if known >= 0 and mine.size != right.size:
        return b"the size of the header is not the RFC's"
    if known == 1 and (mine.payload != right.payload or mine.opcode != right.opcode or mine.final != right.final or
                       memcmp(mine.key, right.key, 4) != 0 or mine.size > size):
        return b"the header is read wrong"
    for cut in range(min(size, <size_t>14)):
        memset(&part, 0, sizeof(Header))
        early = read_header(data, cut, &part)
        if early == 1 and (known != 1 or part.size != mine.size or part.payload != mine.payload):
            return b"a part is read as another header than the whole"
        if early == -1 and known != -1:
            return b"a part is refused and the whole is not"
        if early == 0 and part.size <= cut:
            return b"more is wanted, and it is there"
    return NULL


cdef const char *judge_mask(unsigned char *data, size_t size) noexcept:
    """Unmasked in place it is what it is byte by byte, at any alignment, and what is around it stays."""
    cdef unsigned char key[4]
    cdef unsigned char before[MOST]
    cdef size_t start = 4 + (size & 7), end = size - (size & 3), i
    if end < start:
        return NULL
    memcpy(key, data, 4)
    memcpy(before, data, size)
    unmask(data + start, end - start, key)
    for i in range(size):
        if data[i] != (before[i] ^ key[(i - start) % 4] if start <= i < end else before[i]):
            return b"unmasked wrong"
    unmask(data + start, end - start, key)
    if memcmp(data, before, size) != 0:
        return b"unmasked twice it is another"
    return NULL


cdef const char *judge_escape(const unsigned char *data, size_t size) noexcept:
    """As many bytes as were announced, none of them special; a frame of them has the size that its header says."""
    cdef size_t inner = escaped_size(data, size), i
    cdef bint ascii = False, again = False
    cdef bint plain = is_plain(data, size, &ascii)
    cdef unsigned char *frame
    cdef const unsigned char *end
    if plain != (inner == size):
        return b"plain, and escaped to another size"
    frame = <unsigned char *>PyMem_RawMalloc(header_size(inner) + inner)
    if frame is NULL:
        return b"no memory"
    try:
        end = escape(write_header(frame, TEXT, inner), data, size)
        if <size_t>(end - frame) != header_size(inner) + inner or whole_frame(frame) != header_size(inner) + inner:
            return b"not of the size that was announced"
        for i in range(header_size(inner), header_size(inner) + inner):
            if frame[i] < 0x20:
                return b"a control character is left"
        return NULL
    finally:
        PyMem_RawFree(frame)


cdef const char *judge_close(const unsigned char *data, size_t size) except? NULL:
    """The first two bytes are a close code by the table of RFC 6455, 7.4.2, the others a reason by that of RFC 3629, 4."""
    cdef unsigned int code
    if size < 2:
        return NULL
    code = data[0] * 256 + data[1]
    if close_code_valid(code) != (999 < code < 5000 and code // 1000 != 2 and (
            code >= 3000 or (code < 1015 and not 1004 <= code <= 1006))):
        return b"the close code is judged wrong"
    if is_utf8(data + 2, size - 2) != (text_end(data + 2, size - 2) == size - 2):
        return b"the text is judged wrong"
    return NULL


cdef size_t text_end(const unsigned char *data, size_t size) noexcept:
    """Where the text ends that is UTF-8."""
    cdef size_t at = 0, more, i
    cdef unsigned char first, least, most
    while at < size:
        first = data[at]
        more = 0 if first < 0x80 else 1 if 0xC2 <= first < 0xE0 else 2 if 0xE0 <= first < 0xF0 else 3
        least = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        most = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        if 0x80 <= first < 0xC2 or first > 0xF4 or size - at <= more:
            return at
        for i in range(1, more + 1):
            if not (least if i == 1 else 0x80) <= data[at + i] <= (most if i == 1 else 0xBF):
                return at
        at += 1 + more
    return at
