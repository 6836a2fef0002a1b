"""What an echo endpoint answers to a row of bytes, read off RFC 6455 a second time: the oracle of the fuzzer."""

import struct

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
JSON_PONG = b'{"type":"pong"}'  # taken for a sign of life and no message


class Failed(Exception):  # noqa: N818 - what became of the connection
    """The connection ends with this close code."""

    def __init__(self, code):
        self.code = code


def read_frame(data, at, most):
    """(fin, opcode, payload, end) of the frame at a place, None where more is needed (section 5.2)."""
    if len(data) - at < 2:
        return None
    first, second = data[at], data[at + 1]
    fin, opcode, size = first >= 128, first % 16, second % 128
    if first & 0x70 or second < 128 or opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        raise Failed(1002)
    if opcode >= CLOSE and (not fin or size > 125):
        raise Failed(1002)
    at += 2
    for short, form, least in ((126, "!H", 126), (127, "!Q", 65536)):
        if second % 128 == short:
            width = struct.calcsize(form)
            if len(data) - at < width:
                return None
            size = struct.unpack_from(form, data, at)[0]
            at += width
            if size < least or size >= 1 << 63:
                raise Failed(1002)
    if len(data) - at < 4:
        return None
    if opcode < CLOSE and size > most:
        raise Failed(1009)
    key, at = data[at : at + 4], at + 4
    if len(data) - at < size:
        return None
    return fin, opcode, bytes(byte ^ key[i % 4] for i, byte in enumerate(data[at : at + size])), at + size


def closing(payload):
    """The code with which a peer's close frame is answered (sections 5.5.1 and 7.4)."""
    if not payload:
        return 1000
    code = int.from_bytes(payload[:2], "big")
    valid = code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code <= 4999
    if len(payload) == 1 or not valid:
        return 1002
    return code if is_text(payload[2:]) else 1007


def is_text(data):
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class Endpoint:
    """The frames that an echo sends, as (opcode, payload); of a close the code alone."""

    def __init__(self, max_message, max_fragments):
        self.max_message, self.max_fragments = max_message, max_fragments
        self.answers = []
        self.parts, self.opcode = None, None

    def hear(self, data):
        """All that one connection brings; the answers."""
        at = 0
        try:
            while (found := read_frame(data, at, self.max_message)) is not None:
                *frame, at = found
                if self.take(*frame):
                    break
        except Failed as failed:
            self.answers.append((CLOSE, failed.code))
        return self.answers

    def take(self, fin, opcode, payload):
        """One frame; whether it was the last."""
        if opcode == CLOSE:
            self.answers.append((CLOSE, closing(payload)))
            return True
        if opcode == PING:
            self.answers.append((PONG, payload))
        elif opcode != PONG:
            self.take_data(fin, opcode, payload)
        return False

    def take_data(self, fin, opcode, payload):
        if (opcode == CONTINUATION) != (self.parts is not None):
            raise Failed(1002)
        if opcode != CONTINUATION:
            self.parts, self.opcode = [], opcode
        self.parts.append(payload)
        message = b"".join(self.parts)
        if len(message) > self.max_message or len(self.parts) > self.max_fragments:
            raise Failed(1009)
        if not fin:
            return
        self.parts = None
        if self.opcode == TEXT and message == JSON_PONG:
            return
        if self.opcode == TEXT and not is_text(message):
            raise Failed(1007)
        self.answers.append((self.opcode, message))
