# What is measured in buckets: how long deliveries take, how much one send carries, how late the clock comes. No sockets.

cdef extern from *:
    """
    /* The upper bound of each bucket but the last, which has none: in ns, from one client of a relay at rest to what
       everybody feels; and in frames. */
    static const int64_t relay_delays[] = {
        50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 25000000, 50000000,
        100000000, 250000000, 500000000, 1000000000, 5000000000};
    static const int64_t relay_sizes[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
    """
    const int64_t relay_delays[BUCKETS - 1]
    const int64_t relay_sizes[BUCKETS - 1]


cdef inline void observe(Histogram *histogram, const int64_t *bounds, int64_t value) noexcept:
    cdef int i = 0
    value = max(value, <int64_t>0)
    while i < BUCKETS - 1 and value > bounds[i]:
        i += 1
    histogram.counts[i] += 1
    histogram.sum += <uint64_t>value


cdef tuple buckets_of(Histogram *histogram, const int64_t *bounds, double unit):
    """(bounds, counts, sum), with `unit` of what was observed as 1. One count more than bounds; none of them cumulative."""
    cdef int i
    return (
        tuple([bounds[i] / unit for i in range(BUCKETS - 1)]),
        tuple([histogram.counts[i] for i in range(BUCKETS)]),
        histogram.sum / unit,
    )
