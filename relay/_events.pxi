# Server-sent events (WHATWG HTML, section 9.2), and what a message is for either kind of client. No state, no sockets.

cdef const char *STILL_HERE = b":\n\n"

cdef enum:
    MOST_LEAD = 48          # bytes around a message of the relay's own, of either kind


cdef bytes event_lead(bytes json):
    """What stands ahead of a frame's JSON in the event that carries it, whose name is the frame's type: `{"type":"status"`.

    Two line ends go behind it. JSON has none in it.
    """
    cdef Py_ssize_t end = json.find(b'"', 9) if json.startswith(b'{"type":"') else -1
    return b"event: %b\ndata: " % (json[9:end] if end > 0 else b"message")


cdef size_t whole_event(const unsigned char *event, size_t size) noexcept:
    """Size of the first of some events of our own."""
    return <const unsigned char *>memmem(event, size, b"\n\n", 2) + 2 - event


cdef inline size_t frame_size(int kind, bytes lead, size_t size) noexcept:
    """Of a message of so many bytes for that kind of client."""
    return header_size(size) + size if kind == WEBSOCKET else PyBytes_GET_SIZE(lead) + size + 2


cdef inline unsigned char *begin_frame(unsigned char *out, int kind, bytes lead, size_t size) noexcept:
    if kind == WEBSOCKET:
        return write_header(out, TEXT, size)
    memcpy(out, PyBytes_AS_STRING(lead), PyBytes_GET_SIZE(lead))
    return out + PyBytes_GET_SIZE(lead)


cdef inline void end_frame(unsigned char *out, int kind) noexcept:
    if kind == STREAM:
        out[0] = out[1] = 0x0A
