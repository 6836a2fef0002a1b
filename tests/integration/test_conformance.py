"""RFC 6455, rule by rule, each named by its section: raw sockets against the echo endpoint (tests/echo.py), which is
the core with its bounds raised, and what can be seen without an echo against the product, too."""

import contextlib
import itertools
import socket
import struct
import time
from urllib.parse import urlsplit

import pytest

from tests import echo

SECONDS = 20.0
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
# The handshake of RFC 6455, section 1.3.
REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: relay.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def masked(data, key):
    """Section 5.3. One XOR of two large numbers: a byte at a time, 64 MiB take a minute."""
    size = len(data)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def frame(payload=b"", opcode=TEXT, *, fin=True, rsv=0, key=b"\x37\xfa\x21\x3d", form=None):
    """A client's frame (section 5.2); no mask where key is None, `form` 16 or 64 a length in so many bits."""
    size = len(payload)
    form = form or (7 if size < 126 else 16 if size < 65536 else 64)
    bit = 0x80 if key else 0
    length = {7: bytes([bit | size & 127]), 16: struct.pack("!BH", bit | 126, size & 65535)}.get(form)
    head = bytes([fin << 7 | rsv << 4 | opcode]) + (length or struct.pack("!BQ", bit | 127, size))
    return head + (key + masked(payload, key) if key else payload)


def fragments(parts, opcode=TEXT):
    """A message of as many frames as there are parts (section 5.4)."""
    last = len(parts) - 1
    return [frame(part, 0 if i else opcode, fin=i == last) for i, part in enumerate(parts)]


def close(code, reason=b""):
    return frame(struct.pack("!H", code) + reason, CLOSE)


def unasked(one):
    """Whether the relay sent a frame of its own accord: a snapshot, or its heartbeat."""
    return one == (PING, b"") or (one[0] == TEXT and one[1].startswith(b'{"type":"'))


class Client:
    """A socket past its handshake, and a strict reader of what a server may send."""

    def __init__(self, url, path="/"):
        parts = urlsplit(url)
        self.sock = socket.create_connection((parts.hostname, parts.port), SECONDS)
        self.sock.sendall(REQUEST.format(path=path).encode())
        self.data = bytearray()
        while b"\r\n\r\n" not in self.data:
            assert self._more(), f"refused: {self.data!r}"
        end = self.data.index(b"\r\n\r\n") + 4
        self.head = bytes(self.data[:end])
        del self.data[:end]
        assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def _more(self):
        part = self.sock.recv(1 << 20)
        self.data += part
        return bool(part)

    def _need(self, size):
        while len(self.data) < size:
            if not self._more():
                return False
        return True

    def next(self):
        """(opcode, payload) of the next frame, None at the end."""
        if not self._need(2):
            assert not self.data, f"half a frame at the end: {self.data!r}"
            return None
        first, second = self.data[:2]
        assert first & 0x80, "5.4: this server sends whole messages"
        assert not first & 0x70, "5.2: no extension was negotiated"
        assert not second & 0x80, "5.1: a server never masks"
        form = {126: "!H", 127: "!Q"}.get(second)
        head = 2 + (struct.calcsize(form) if form else 0)
        assert self._need(head)
        size = struct.unpack(form, self.data[2:head])[0] if form else second
        assert form is None or size >= {"!H": 126, "!Q": 65536}[form], "5.2: the shortest form"
        assert self._need(head + size), "half a frame at the end"
        payload = bytes(self.data[head : head + size])
        del self.data[: head + size]
        assert first & 15 in (TEXT, BINARY, CLOSE, PING, PONG), "5.2: reserved opcode"
        assert first & 8 == 0 or size < 126, "5.5: a control frame above 125 bytes"
        return first & 15, payload

    def frames(self, count):
        """So many frames that answer something."""
        found = []
        while len(found) < count:
            one = self.next()
            assert one, f"the end after {found}"
            if not unasked(one):
                found.append(one)
        return found

    def rest(self):
        """All frames up to the end of the connection, which the server brings about (section 7.1.1)."""
        return [one for one in iter(self.next, None) if not unasked(one)]


@pytest.fixture(scope="module")
def _echo():
    with echo.process() as url:
        yield url


@pytest.fixture
def client(_echo):
    client = Client(_echo)
    yield client
    client.sock.close()


@pytest.fixture(params=["echo", "status", "preflight"])
def come(request, _echo, standing):
    """A factory of clients of the echo endpoint, and of each service of the product."""
    url, path = {
        "echo": (_echo, "/"),
        "status": (standing.status_url, "/conformance:log"),
        "preflight": (standing.preflight_url, "/conformance"),
    }[request.param]
    with contextlib.ExitStack() as stack:

        def come():
            client = Client(url, path)
            stack.callback(client.sock.close)
            return client

        yield come


@pytest.fixture
def any_client(come):
    return come()


def failed(client, data, code):
    """Whether these bytes end the connection with a close frame of this code (section 7.1.7)."""
    client.sock.sendall(data)
    [*before, (opcode, payload)] = client.rest()
    assert opcode == CLOSE
    assert struct.unpack("!H", payload[:2])[0] == code
    payload[2:].decode("utf-8")
    return before


# ---- 1.3, 4.2: the opening handshake ----


def test_1_3_the_accept_header_proves_that_the_key_was_read(any_client):
    assert b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\n" in any_client.head


def test_4_2_2_nothing_is_negotiated_that_was_not_asked_for(any_client):
    assert b"sec-websocket-extensions" not in any_client.head.lower()
    assert b"sec-websocket-protocol" not in any_client.head.lower()


# ---- 5.2, 5.3: frames, lengths, masks ----

LENGTHS = [0, 1, 125, 126, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 65537, 1 << 20]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", LENGTHS)
def test_5_2_every_form_of_length_comes_back_byte_by_byte(client, size, opcode):
    payload = (b"0123456789abcdefghijklmnopqrstuvwxyz_" * (size // 37 + 1))[:size]
    client.sock.sendall(frame(payload, opcode))
    assert client.frames(1) == [(opcode, payload)]


def test_5_2_binary_carries_every_byte(client):
    payload = bytes(range(256)) * 3
    client.sock.sendall(frame(payload, BINARY))
    assert client.frames(1) == [(BINARY, payload)]


@pytest.mark.parametrize("key", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x02\x04\x08", b"\x80\0\0\x7f"])
def test_5_3_any_key_over_any_alignment(client, key):
    payloads = [bytes(range(65, 65 + size)) for size in range(34)]
    client.sock.sendall(b"".join(frame(payload, key=key) for payload in payloads))
    assert client.frames(34) == [(TEXT, payload) for payload in payloads]


def test_5_3_each_frame_has_a_key_of_its_own(client):
    keys = [bytes([n, 255 - n, 3 * n & 255, n ^ 85]) for n in range(50)]
    client.sock.sendall(b"".join(frame(b"again and again", key=key) for key in keys))
    assert client.frames(50) == [(TEXT, b"again and again")] * 50


PROTOCOL_ERRORS = {
    **{f"5.1 unmasked, opcode {op}": frame(b"hi", op, key=None) for op in (TEXT, BINARY, PING, PONG)},
    "5.1 unmasked close": frame(b"\x03\xe8", CLOSE, key=None),
    "5.1 unmasked, no payload": frame(b"", key=None),
    "5.1 unmasked behind a masked one": frame(b"", PONG) + frame(b"x", key=None),
    **{f"5.2 RSV {bits:03b} on opcode {op}": frame(b"hi", op, rsv=bits) for bits in range(1, 8) for op in (TEXT, PING)},
    **{f"5.2 RSV {bits:03b} on close": frame(b"\x03\xe8", CLOSE, rsv=bits) for bits in (1, 2, 4)},
    "5.2 RSV on a continuation": frame(b"a", fin=False) + frame(b"b", 0, rsv=1),
    **{f"5.2 reserved opcode {op}": frame(b"", op) for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"5.2 reserved opcode {op}, with payload": frame(b"abc", op) for op in (3, 7, 11, 15)},
    "5.2 reserved opcode between fragments": frame(b"a", fin=False) + frame(b"", 5),
    "5.2 0 in 16 bits": frame(b"", form=16),
    "5.2 125 in 16 bits": frame(b"x" * 125, form=16),
    "5.2 0 in 64 bits": frame(b"", form=64),
    "5.2 126 in 64 bits": frame(b"x" * 126, form=64),
    "5.2 65535 in 64 bits": frame(b"x" * 65535, form=64),
    "5.2 length 2^63": b"\x82\xff" + struct.pack("!Q", 1 << 63) + b"mask",
    "5.2 length 2^63, its mask not sent": b"\x82\xff" + struct.pack("!Q", 1 << 63),
    "5.2 length 2^64 - 1": b"\x82\xff" + struct.pack("!Q", (1 << 64) - 1) + b"mask",
    "5.4 continuation of nothing": frame(b"x", 0),
    "5.4 first fragment of nothing": frame(b"x", 0, fin=False),
    "5.4 continuation behind a whole message": b"".join(fragments([b"{}", b""])) + frame(b"x", 0),
    "5.4 text inside a text": frame(b"a", fin=False) + frame(b"b"),
    "5.4 binary inside a text": frame(b"a", fin=False) + frame(b"b", BINARY),
    "5.4 text inside a binary": frame(b"a", BINARY, fin=False) + frame(b"b", fin=False),
    **{f"5.5 fragmented control frame {op}": frame(b"", op, fin=False) for op in (CLOSE, PING, PONG)},
    **{f"5.5 control frame {op} of 126 bytes": frame(b"\x03\xe8" + b"x" * 124, op) for op in (CLOSE, PING, PONG)},
    "5.5 ping of 65536 bytes": frame(b"x" * 65536, PING),
    "5.5 ping in two fragments": frame(b"a", PING, fin=False) + frame(b"b", 0),
    "5.5.1 close of one byte": frame(b"\x03", CLOSE),
    **{
        f"7.4 close code {code}": close(code)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("rule", PROTOCOL_ERRORS)
def test_a_broken_rule_ends_the_connection_with_1002(any_client, rule):
    assert [opcode for opcode, _ in failed(any_client, PROTOCOL_ERRORS[rule], 1002) if opcode == PONG] == []


def test_7_1_7_what_came_before_the_broken_rule_is_answered_and_nothing_behind_it(client):
    before = failed(client, frame(b"before") + frame(b"p", PING) + frame(b"", 3) + frame(b"behind"), 1002)
    assert before == [(TEXT, b"before"), (PONG, b"p")]


# ---- 5.4: fragmentation ----


def splits(data):
    """`data` in all ways of cutting it into parts, none empty."""
    for cuts in itertools.product([False, True], repeat=len(data) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(data)]
        yield [data[a:b] for a, b in itertools.pairwise(places)]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_5_4_a_message_in_all_splits_is_the_same_message(client, opcode):
    ways = list(splits(b"sixbit"))
    client.sock.sendall(b"".join(b"".join(fragments(parts, opcode)) for parts in ways))
    assert client.frames(len(ways)) == [(opcode, b"sixbit")] * 32


@pytest.mark.parametrize("parts", list(itertools.product([b"", b"ab"], repeat=4)), ids=str)
def test_5_4_empty_fragments_anywhere(client, parts):
    client.sock.sendall(b"".join(fragments(parts)) + frame(b"next"))
    assert client.frames(2) == [(TEXT, b"".join(parts)), (TEXT, b"next")]


def test_5_4_control_frames_between_fragments_are_served_first(client):
    one, two, three = fragments([b"a", b"b", b"c"], BINARY)
    sent = [
        frame(b"0", PING),
        one,
        frame(b"1", PING),
        frame(b"", PONG),
        two,
        frame(b"2", PING),
        three,
        frame(b"3", PING),
    ]
    client.sock.sendall(b"".join(sent))
    assert client.frames(5) == [(PONG, b"0"), (PONG, b"1"), (PONG, b"2"), (BINARY, b"abc"), (PONG, b"3")]


def test_5_4_a_fragment_is_no_message_yet(client):
    client.sock.sendall(frame(b"half", fin=False) + frame(b"?", PING))
    assert client.frames(1) == [(PONG, b"?")]


# ---- 5.5: control frames ----


def test_5_5_2_a_ping_of_each_size_is_answered_with_its_payload_in_order(any_client):
    payloads = [bytes([size]) * size for size in (*range(0, 125, 5), 125)]
    any_client.sock.sendall(b"".join(frame(payload, PING) for payload in payloads))
    assert any_client.frames(len(payloads)) == [(PONG, payload) for payload in payloads]


def test_5_5_3_a_pong_that_nobody_asked_for_is_not_answered(any_client):
    any_client.sock.sendall(frame(b"", PONG) + frame(b"x" * 125, PONG) + frame(b"behind", PING))
    assert any_client.frames(1) == [(PONG, b"behind")]


# ---- 8.1: UTF-8 ----

POINTS = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1FFFF, 0x10FFFF]
VALID = [*(chr(point).encode() for point in POINTS), "Καλημέρα – é 🏔".encode(), b"\xef\xbb\xbfbom", b"\r\n\x1b"]
INVALID = {
    "a continuation alone": b"\x80",
    "two of them": b"\xbf\xbf",
    "the beginning of two bytes alone": b"\xc3",
    "and a letter behind it": b"\xc3(",
    "three bytes, the last missing": b"\xe2\x82",
    "four bytes, the last missing": b"\xf0\x9f\x8f",
    "/ in two bytes": b"\xc0\xaf",
    "NUL in two bytes": b"\xc0\x80",
    "U+7F in two bytes": b"\xc1\xbf",
    "U+7FF in three bytes": b"\xe0\x9f\xbf",
    "U+FFFF in four bytes": b"\xf0\x8f\xbf\xbf",
    "the first surrogate": b"\xed\xa0\x80",
    "the last surrogate": b"\xed\xbf\xbf",
    "a pair of surrogates": b"\xed\xa0\xbd\xed\xb8\x80",
    "behind the last code point": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "FE": b"\xfe",
    "FF": b"\xff",
}


def test_8_1_valid_texts_come_back(client):
    client.sock.sendall(b"".join(frame(text) for text in VALID))
    assert client.frames(len(VALID)) == [(TEXT, text) for text in VALID]


def test_8_1_a_code_point_may_be_cut_by_fragments_anywhere(client):
    texts = [(b"<" + text + b">", cut) for text in VALID for cut in range(len(text) + 3)]
    client.sock.sendall(b"".join(b"".join(fragments([text[:cut], text[cut:]])) for text, cut in texts))
    assert client.frames(len(texts)) == [(TEXT, text) for text, _ in texts]


@pytest.mark.parametrize("place", ["alone", "behind", "before"])
@pytest.mark.parametrize("name", INVALID)
def test_8_1_a_text_that_is_no_utf8_fails_with_1007(any_client, name, place):
    bad = {"alone": b"%b", "behind": "Grüße %b".encode(), "before": b"%b, and more"}[place] % INVALID[name]
    assert failed(any_client, frame(bad) + frame(b"behind"), 1007) == []


@pytest.mark.parametrize("name", INVALID)
def test_8_1_nor_in_fragments(any_client, name):
    assert (
        failed(any_client, b"".join(fragments([INVALID[name][i : i + 1] for i in range(len(INVALID[name]))])), 1007)
        == []
    )


def test_8_1_binary_messages_are_not_judged(client):
    client.sock.sendall(b"".join(frame(data, BINARY) for data in INVALID.values()))
    assert client.frames(len(INVALID)) == [(BINARY, data) for data in INVALID.values()]


# ---- 5.5.1, 7: closing ----

CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]


@pytest.mark.parametrize("code", CODES)
def test_7_4_a_close_is_answered_with_its_code(any_client, code):
    assert failed(any_client, close(code), code) == []


def test_7_4_1_a_close_without_a_code_is_answered(any_client):
    any_client.sock.sendall(frame(b"", CLOSE))
    [(opcode, _)] = any_client.rest()
    assert opcode == CLOSE


@pytest.mark.parametrize("reason", [b"x", b"x" * 123, "Grüße".encode(), "🏔".encode() * 30])
def test_5_5_1_a_reason_may_be_anything_in_utf8(any_client, reason):
    assert failed(any_client, close(1000, reason), 1000) == []


@pytest.mark.parametrize("name", INVALID)
def test_8_1_a_reason_that_is_no_utf8_fails_with_1007(any_client, name):
    assert failed(any_client, close(1000, INVALID[name]), 1007) == []


def test_5_5_1_what_comes_behind_a_close_is_thrown_away(any_client):
    behind = frame(b"late") + frame(b"late", PING) + frame(b"", 3) + close(1001)
    assert failed(any_client, close(1000) + behind, 1000) == []


def test_5_4_a_close_may_come_while_a_message_is_open(client):
    assert failed(client, frame(b"half", fin=False) + close(1000), 1000) == []


def test_7_1_1_the_server_ends_the_connection_first_and_at_once(come):
    # One of three: this machine may stand still for as long.
    assert any(seconds_to_end(come()) < 1.5 for _ in range(3)), "LINGER_TICKS is for peers that do not answer"


def seconds_to_end(client):
    begun = time.monotonic()
    assert failed(client, close(1000), 1000) == []
    return time.monotonic() - begun


# ---- all of it in pieces, and large ----

TALK = [
    frame(b""),
    *fragments([b"in ", b"", "drei Stücken é".encode()]),
    frame(b"?", PING),
    frame(b"\x00\xff" * 70, BINARY, key=b"\xa5\x5a\x00\xff"),
    frame(b"x" * 300, BINARY, fin=False),
    frame(b"between", PING),
    frame(b"", PONG),
    frame(b"y" * 200, 0),
    close(1001, b"done"),
]
ANSWERS = [
    (TEXT, b""),
    (TEXT, "in drei Stücken é".encode()),
    (PONG, b"?"),
    (BINARY, b"\x00\xff" * 70),
    (PONG, b"between"),
    (BINARY, b"x" * 300 + b"y" * 200),
    (CLOSE, b"\x03\xe9"),
]


@pytest.mark.parametrize("chop", [1, 2, 3, 7, 64, 10_000])
def test_bytes_in_chops_of_any_size_mean_the_same(client, chop):
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b"".join(TALK)
    for at in range(0, len(data), chop):
        client.sock.sendall(data[at : at + chop])
    assert client.rest() == ANSWERS


@pytest.mark.parametrize("chop", [997, 65_536, 4 << 20])
def test_a_message_of_4_mib_in_chops(client, chop):
    payload = bytes(range(251)) * (4 << 12)
    data = frame(payload[: 4 << 20], BINARY)
    for at in range(0, len(data), chop):
        client.sock.sendall(data[at : at + chop])
    assert client.frames(1) == [(BINARY, payload[: 4 << 20])]


def test_the_largest_message_and_one_byte_more(client):
    payload = bytes(1 << 20) * 64
    client.sock.sendall(frame(payload, BINARY))
    assert client.frames(1) == [(BINARY, payload)]
    assert failed(client, frame(payload, BINARY, fin=False) + frame(b"!", 0, fin=False), 1009) == []


@pytest.mark.parametrize("payload", [b"", b"z"])
def test_a_message_of_very_many_fragments(client, payload):
    count = 2000 if payload else 200_000 - 2
    client.sock.sendall(frame(b"a", fin=False) + frame(payload, 0, fin=False) * count + frame(b"!", 0))
    assert client.frames(1) == [(TEXT, b"a" + payload * count + b"!")]


def test_one_fragment_above_the_bound(client):
    assert failed(client, frame(b"a", fin=False) + frame(b"", 0, fin=False) * 200_000, 1009) == []


# ---- the product is no echo ----


@pytest.mark.parametrize("come", ["status", "preflight"], indirect=True)
def test_the_product_echoes_nothing(any_client):
    sent = frame(b"hello") + frame(b"hello", BINARY) + b"".join(fragments([b"hel", b"lo"], BINARY)) + frame(b"?", PING)
    any_client.sock.sendall(sent)
    assert any_client.frames(1) == [(PONG, b"?")]
    assert failed(any_client, close(1000), 1000) == []
