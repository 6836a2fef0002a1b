# The state of the core, in C. What each field means is said here once; the rules that tie them together are the
# invariants of docs/architecture.md, asserted by Core.check() in the debug build.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    NONE = 0xFFFFFFFF       # no slot, no position
    KINDS = 2               # kinds of client, for each of which a burst is built
    WEBSOCKET = 0
    STREAM = 1              # a stream of server-sent events
    BUCKETS = 16            # of a histogram

cdef enum Stage:
    FREE = 0
    HEAD                    # its request head is not complete
    PARKED                  # judged and accepted; the 101 waits for the topic
    OPEN                    # a websocket
    CLOSING                 # our last bytes are sent or queued; the peer's end is awaited

cdef enum:
    # The bounds whose breaches the core counts; BOUNDS of _fanout.pyx names them, in this order.
    HEAD_SIZE
    HEADERS
    HEAD_TIMEOUT
    HEADS
    CONNECTIONS
    TOPICS
    MESSAGE_SIZE
    FRAGMENTS
    FRAME_RATE
    INBOUND
    BACKLOG
    WRITE_TIMEOUT
    UNDELIVERED
    LIVE
    PONG_TIMEOUT
    PER_ADDRESS
    PROXY_HEADER
    COUNTED                 # how many these are

cdef enum:
    # Of a slot's peer.
    TRUSTED = 1             # a proxy that may say who its client is
    INTRODUCED = 2          # and says it before anything else: that is still to come
    CHARGED = 4             # counted among the connections of its address
    BEGUN = 8               # HEAD: has sent a part of its request
    SAID = 16               # PARKED: has ended its half, and awaits an answer (RFC 9112, 9.6)

cdef struct Row:
    # Slots in the order in which they came.
    uint32_t first, last, count

cdef struct Network:
    unsigned char address[16]
    uint32_t bits           # of the 128 that count

cdef struct Histogram:
    uint64_t counts[BUCKETS]    # each bucket alone; the last is for what is above all bounds
    uint64_t sum

cdef struct Burst:
    # Finished bytes, shared by all who still owe them. Grows while it is a topic's open burst, then never changes.
    Burst *next             # the next sealed one of the topic
    size_t size             # bytes used
    size_t room             # bytes allocated for data
    uint32_t refs
    uint32_t frames
    uint32_t end            # sealed: positions below this one get it
    uint32_t cursor         # sealed: the next position to serve
    int64_t read_at         # ns of the clock at which the oldest of it was read from Redis
    uint8_t kind
    uint8_t min_version     # clients below this protocol version do not get it
    uint8_t opaque          # one unit, not a row of websocket frames (an HTTP answer)
    uint8_t copies          # holds what those behind it hold: not counted among what waits
    uint8_t begun           # sealed: somebody's turn has come; what a merged one has sent for all of its clients has none
    unsigned char data[1]

cdef struct Owed:
    Burst *burst
    size_t start            # the next byte to send
    size_t end
    uint32_t since          # tick at which it began to wait

cdef struct Backlog:
    Owed *ring
    uint32_t first
    uint32_t count
    uint32_t room           # a power of two
    size_t bytes            # all that is not sent yet
    size_t boundary         # in the first entry: where the frame in progress ends; == its start between two frames
    Burst *large            # the one waiting frame that is larger than the bound, or NULL
    size_t crowded_at       # counted among the crowded until less than this waits; 0: not counted
    uint32_t began          # tick at which it was empty last

cdef struct Inbound:
    # What of a client's bytes waits for more; freed when there is nothing.
    unsigned char *data     # the beginning of a head or a frame
    size_t size
    size_t room
    size_t need             # parse again when size reaches this
    unsigned char *message  # the fragments of a message so far
    size_t message_size
    uint32_t fragments
    uint8_t opcode          # of the first fragment; 0 when no message is open
    unsigned char *answer   # the 101 of a parked client
    size_t answer_size

cdef struct Slot:
    # What every send looks at stands first, in one cache line: a slot is cold when its turn comes.
    Backlog *backlog        # NULL while everything was taken at once
    int fd
    uint8_t stage
    uint8_t kind
    uint8_t version         # of the protocol it asked for
    uint8_t dead            # in the dead list: reaped at the end of the turn
    void *topic             # borrowed Topic, or NULL
    uint32_t position       # in the topic's array
    uint32_t generation     # tells a stale epoll event or handle
    Inbound *inbound
    uint32_t next           # in the free list, the dead list or a row of heads
    uint32_t previous       # in a row of heads
    uint32_t heard          # tick of the last sign of life
    uint32_t deadline       # tick at which a head or a close is given up
    uint32_t expires        # tick, those included for which the process stood still, that ends its permission; 0: never
    uint32_t refilled       # tick of the token bucket
    uint16_t tokens         # tenths of a frame that it may send now; CLOSING: reads until it is cut off
    uint8_t service
    uint8_t farewell        # CLOSING: 1 an HTTP answer, 2 a close frame, 3 and the peer's close has come
    uint8_t address[16]     # the client's, IPv4 mapped into IPv6; zero for a Unix socket
    uint8_t peer            # TRUSTED, INTRODUCED, CHARGED, BEGUN, SAID


cdef class Service:
    # The values of one listener's service; a slot points to it by number.
    cdef dict topics        # bytes -> Topic
    cdef bytes prefix, suffix
    cdef bytes lead         # ahead of a message in an event stream
    cdef readonly int index
    cdef bint newest_only
    cdef bint introduced    # by a PROXY header, those that trusted proxies connect for
    cdef object switching   # what begins the answer to a plain request, or None: each is shown to on_request
    cdef bytes answer       # its beginning in that second
    cdef int64_t second
    cdef frozenset origins  # that need no judge; None: all
    cdef int max_headers    # of a plain request
    cdef uint32_t epoch     # of its topics' confirmations: a later one revokes all
    cdef uint32_t ping_every, silence, write_timeout, max_fragments
    cdef size_t max_message, max_backlog, max_published
    cdef size_t pressing    # bytes of a topic that should wait no longer
    cdef uint32_t frame_rate, frame_burst   # frames a second; tenths of a frame
    cdef bytes notice       # for clients of a newer protocol, where a message was dropped for its size
    cdef uint64_t breaches[COUNTED]
    cdef uint64_t streams, streamed  # event streams among its connections, and among those it has opened
    cdef uint64_t connections, opened, frames, bytes, oversize, write_errors, replaced
    cdef uint64_t arrived   # messages Redis sent, for whatever channel
    cdef uint64_t told, untold  # clients that learned of a gap, and those of the old protocol, which cannot
    cdef dict closes        # by code
    cdef dict responses     # HTTP answers but 101, by status
    cdef Histogram delivery # ns from the read of a burst's oldest message to the last of its clients, those that lag left out
    cdef Histogram sizes    # frames of each burst delivered


cdef class Topic:
    cdef Service service
    cdef bytes name
    cdef uint32_t *slots    # compact; NONE is the hole of one who left during a delivery
    cdef uint32_t count, room, holes
    cdef uint32_t streams   # of its clients, those that are event streams
    cdef uint32_t newer     # of its clients, those that know frames of a newer protocol
    cdef uint32_t confirmed # the service's epoch in which its subscription was; others may be let in without asking
    cdef Burst *open[KINDS] # what grows
    cdef Burst *sealed      # what is being delivered, oldest first
    cdef Burst *last
    cdef size_t waiting     # bytes of its open and sealed bursts
    cdef bint pressing      # counted among those with too many
    cdef bint queued        # in one of the core's lines
    cdef Topic next
