# What a message of ours looks like, and the books that publisher and swarm keep together. No sockets, no clients.
#
# A message is a head of 16 bytes and a filling known beforehand:
#
#     token 4 | topic 3 | number 4 | stamp 5 | filling
#
# The token is random for each publisher: what strangers or an earlier run publish is none of ours. Number counts the
# messages of its topic, so that one client alone can tell a loss, a duplicate and a wrong order. Stamp is the
# monotonic clock. All are digits of base 64 from letters, digits, - and _, which no JSON and no URL escapes; numbers and
# stamps wrap, and only differences are looked at.

cdef extern from * nogil:
    """
    #include <pthread.h>
    #include <sched.h>
    #include <stdint.h>
    #include <string.h>
    #include <time.h>

    #define swarm_load(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
    #define swarm_store(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
    #define swarm_width(v) (64 - __builtin_clzll(v))

    static const char swarm_digits[65] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    static unsigned char swarm_values[256]; /* 255: no digit */

    static void swarm_values_init(void) {
        memset(swarm_values, 255, sizeof swarm_values);
        for (int i = 0; i < 64; i++)
            swarm_values[(unsigned char)swarm_digits[i]] = i;
    }

    static uint64_t swarm_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    """
    const char *swarm_digits
    const unsigned char *swarm_values
    void swarm_values_init() noexcept
    uint64_t swarm_now() noexcept
    int swarm_width(uint64_t value) noexcept
    int sched_yield() noexcept
    int64_t load "swarm_load"(int64_t *at) noexcept
    Text *load_text "swarm_load"(Text **at) noexcept
    void store "swarm_store"(int64_t *at, int64_t value) noexcept
    void store_text "swarm_store"(Text **at, Text *value) noexcept
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, void *attributes) noexcept
    int pthread_mutex_lock(pthread_mutex_t *lock) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *lock) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *lock) noexcept

swarm_values_init()

cdef enum:
    TOKEN = 4               # digits of each part of the head
    TOPIC = 3
    NUMBER = 4
    STAMP = 5
    HEAD = 16
    OPENING = 25            # bytes of the envelope before the message
    START = 29              # those and the token
    MOST_TOPICS = 262144    # 3 digits
    MOST_SIZE = 8388608     # bytes of a message: with every byte escaped a frame stays below MOST_FRAME
    NUMBERS = 16777216      # 4 digits
    STAMPS = 1073741824     # 5 digits
    TICK_SHIFT = 10         # a stamp counts 1.024 µs: 18 minutes until it wraps
    BUCKETS = 832           # all of 30 bits at 1/32

cdef bytes ENVELOPE = b'{"type":"status","data":"'
cdef double TICK_US = 1.024
assert len(ENVELOPE) == OPENING


# ---- numbers ----

cdef inline void write_digits(unsigned char *out, int width, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(width - 1, -1, -1):
        out[i] = <unsigned char>swarm_digits[value & 63]
        value >>= 6


cdef inline int64_t read_digits(const unsigned char *text, int width) noexcept nogil:
    """Their value, or -1 where one is none."""
    cdef uint64_t value = 0
    cdef unsigned char digit, wrong = 0
    cdef int i
    for i in range(width):
        digit = swarm_values[text[i]]
        wrong |= digit
        value = value << 6 | digit
    return -1 if wrong > 63 else <int64_t>value


cdef inline int64_t ahead_of(uint64_t number, uint64_t expected) noexcept nogil:
    """How far a wrapped number lies ahead of the one expected; negative: behind it."""
    cdef int64_t distance = <int64_t>((number - expected) & (NUMBERS - 1))
    return distance - NUMBERS if distance >= NUMBERS // 2 else distance


cdef inline uint64_t since(uint64_t now_ns, uint64_t stamp) noexcept nogil:
    """Ticks from a wrapped stamp to now; 0 where the stamp lies ahead."""
    cdef uint64_t ticks = ((now_ns >> TICK_SHIFT) - stamp) & (STAMPS - 1)
    return 0 if ticks >= STAMPS // 2 else ticks


# ---- latencies: buckets one tick wide up to 64, then 32 for each doubling ----

cdef inline void note(uint64_t *histogram, uint64_t ticks) noexcept nogil:
    cdef int shift = 0
    ticks = min(ticks, <uint64_t>(STAMPS - 1))
    if ticks >= 64:
        shift = swarm_width(ticks) - 6
    histogram[32 * shift + <int>(ticks >> shift)] += 1


cdef list buckets(uint64_t *histogram):
    cdef int i, shift
    cdef list found = []
    for i in range(BUCKETS):
        shift = max(0, i // 32 - 1)
        if histogram[i]:
            found.append((((i - 32 * shift + 1) << shift) * TICK_US, histogram[i]))
    return found


# ---- texts ----

cdef struct Text:
    # What one publisher sends. Never changed once it is in the list, so readers need no lock.
    Text *next
    size_t size                 # of the whole text of a frame
    size_t tail_size            # the filling as JSON, with the end of the envelope
    size_t filling_size         # the filling as published
    unsigned char *tail
    unsigned char *filling
    unsigned char start[START]  # the beginning of the envelope and the token


cdef bytes filling(str kind, size_t size):
    """So many bytes, the same each time, of a kind: what `Publisher` takes as `text`."""
    kinds = {
        "plain": b"abcdefghijklmnopqrstuvwxyz",
        "escapes": bytes(range(32)) + b'"\\/<>&\x7f"\n"',
        "accents": "Zürich – 100 m² café 雨量 🌲 ".encode(),
    }
    if kind not in kinds:
        raise ValueError(f"text {kind!r}: one of {', '.join(kinds)}")
    whole = (kinds[kind] * (size // len(kinds[kind]) + 1))[:size]
    # Cut within a character it would be no UTF-8; what is missing then is filled up.
    return whole.decode(errors="ignore").encode().ljust(size, b".")


cdef Text *text_new(str kind, size_t size) except NULL:
    cdef bytes raw = filling(kind, size - HEAD)
    cdef bytes tail = json.dumps(raw.decode(), ensure_ascii=False).encode()[1:] + b"}"
    cdef bytes start = ENVELOPE + base64.urlsafe_b64encode(os.urandom(TOKEN))[:TOKEN]
    cdef Text *text = <Text *>PyMem_RawCalloc(1, sizeof(Text) + len(tail) + len(raw))
    if text is NULL:
        raise MemoryError
    text.tail = <unsigned char *>(text + 1)
    text.tail_size = len(tail)
    text.filling = text.tail + text.tail_size
    text.filling_size = len(raw)
    text.size = OPENING + HEAD + text.tail_size
    memcpy(text.tail, PyBytes_AS_STRING(tail), text.tail_size)
    memcpy(text.filling, PyBytes_AS_STRING(raw), text.filling_size)
    memcpy(text.start, PyBytes_AS_STRING(start), START)
    return text


# ---- the books ----

cdef struct Row:
    int64_t sent            # messages of the topic handed to the publisher's socket, or about to be
    int64_t live            # clients that should get the next one

cdef struct Books:
    # The publisher expects, the swarm accounts; the lock makes a client's joining or leaving and a message's going out
    # happen one after the other, so that the two sums are equal exactly when nothing is on its way any more.
    pthread_mutex_t lock
    Text *texts             # newest first
    Row *rows
    int64_t expected        # messages times the clients that were to get them
    int64_t accounted       # those that came, were found lost, or whose client has gone; only the swarm writes it
    int64_t delivered


cdef Books *books_new(size_t topics) except NULL:
    cdef Books *books = <Books *>PyMem_RawCalloc(1, sizeof(Books) + topics * sizeof(Row))
    if books is NULL:
        raise MemoryError
    books.rows = <Row *>(books + 1)
    pthread_mutex_init(&books.lock, NULL)
    return books


cdef void books_free(Books *books) noexcept:
    cdef Text *text
    if books is NULL:
        return
    while books.texts is not NULL:
        text = books.texts
        books.texts = text.next
        PyMem_RawFree(text)
    pthread_mutex_destroy(&books.lock)
    PyMem_RawFree(books)


cdef int64_t books_send(Books *books, uint32_t topic) noexcept nogil:
    """Enters one message more of a topic; its number."""
    cdef int64_t number
    pthread_mutex_lock(&books.lock)
    number = books.rows[topic].sent
    store(&books.rows[topic].sent, number + 1)
    books.expected += books.rows[topic].live
    pthread_mutex_unlock(&books.lock)
    return number


cdef int64_t books_join(Books *books, uint32_t topic) noexcept nogil:
    """Enters a client; the number of the first message that it must get."""
    cdef int64_t first
    pthread_mutex_lock(&books.lock)
    first = books.rows[topic].sent
    books.rows[topic].live += 1
    pthread_mutex_unlock(&books.lock)
    return first


cdef void books_leave(Books *books, uint32_t topic, int64_t expected) noexcept nogil:
    """Takes a client out; what it would still have got is waited for no more."""
    pthread_mutex_lock(&books.lock)
    books.rows[topic].live -= 1
    store(&books.accounted, books.accounted + books.rows[topic].sent - expected)
    pthread_mutex_unlock(&books.lock)


cdef bint books_even(Books *books) noexcept nogil:
    """Whether nothing is on its way."""
    cdef bint even
    pthread_mutex_lock(&books.lock)
    even = books.accounted == books.expected
    pthread_mutex_unlock(&books.lock)
    return even
