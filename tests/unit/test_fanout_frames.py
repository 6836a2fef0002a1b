"""Frames out and in: the envelope, the escape, RFC 6455's framing, whole and at every split."""

import json
import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.unit.rig import ANSWER, HEARTBEAT, Rig, client_frame, close_code, resp, server_frames, texts

JSON_PONG = b'{"type":"pong"}'


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


def one_frame(payload):
    rig = Rig()
    try:
        sock = rig.join(b"run1:wepp")
        rig.publish(b"run1:wepp", payload)
        frames, rest = server_frames(rig.received(sock, 2))
        assert not rest
        return frames
    finally:
        rig.close()


@given(st.text())
def test_any_text_decodes_to_itself(text):
    [(opcode, payload)] = one_frame(text.encode("utf-8", "surrogatepass"))
    expected = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    assert opcode == 1
    assert json.loads(payload) == {"type": "status", "data": expected}


@given(st.binary())
def test_bytes_that_are_no_utf8_become_what_python_makes_of_them(data):
    [(_, payload)] = one_frame(data)
    assert json.loads(payload.decode("utf-8"))["data"] == data.decode("utf-8", "replace")


@pytest.mark.parametrize("character", [chr(c) for c in range(128)])
def test_every_ascii_character(character):
    [(_, payload)] = one_frame(b"a" + character.encode() + b"b")
    assert json.loads(payload)["data"] == f"a{character}b"


ENVELOPE_SIZE = len(b'{"type":"status","data":""}')


@pytest.mark.parametrize("body", [ENVELOPE_SIZE, 125, 126, 127, 65535, 65536, 65537])
def test_header_lengths(rig, body):
    sock = rig.join(b"t")
    rig.publish(b"t", b"x" * (body - ENVELOPE_SIZE))
    data = rig.received(sock, body)
    head = 2 if body < 126 else 4 if body < 65536 else 10
    assert len(data) == head + body
    assert data[0] == 0x81
    assert not data[1] & 0x80, "a server never masks"
    assert texts(data) == ["x" * (body - ENVELOPE_SIZE)]


def test_a_message_of_one_megabyte(rig):
    sock = rig.join(b"t")
    rig.publish(b"t", b"\x00" * (1 << 20))
    assert texts(rig.received(sock, 6 << 20)) == ["\x00" * (1 << 20)]


def test_a_message_above_the_limit_is_dropped_and_counted(rig):
    sock = rig.join(b"t")
    rig.publish(b"t", b"x" * ((1 << 20) + 1), b"next")
    assert texts(rig.received(sock, 10)) == ["next"]
    assert rig.stats["oversize"] == 1


# ---- from Redis ----

STREAM = (
    resp(b"message", b"t", b"one")
    + b"*3\r\n$9\r\nsubscribe\r\n$1\r\nu\r\n:1\r\n"
    + resp(b"message", b"other", b"not for us")
    + resp(b"message", b"t", b"")
    + b"+PONG\r\n-ERR no\r\n"
    + resp(b"message", b"t", "zwei – é".encode())
)


@pytest.mark.row("F26")
@pytest.mark.parametrize("split", range(len(STREAM) + 1))
def test_replies_split_anywhere_give_the_same(split):
    rig = Rig()
    try:
        sock = rig.join(b"t")
        rest = rig.feed(STREAM[:split]) + rig.feed(STREAM[split:])
        rig.flush()
        assert texts(rig.received(sock, 80)) == ["one", "", "zwei – é"]
        assert [str(r) if isinstance(r, Exception) else r for r in rest] == [
            [b"subscribe", b"u", 1],
            [b"message", b"other", b"not for us"],
            b"PONG",
            "ERR no",
        ]
    finally:
        rig.close()


@pytest.mark.parametrize("third", [b":5\r\n", b"$-1\r\n", b"*0\r\n", b"*2\r\n:1\r\n:2\r\n"])
def test_a_message_that_is_no_text_is_left_to_the_caller(rig, third):
    rig.join(b"t")
    [reply] = rig.feed(b"*3\r\n$7\r\nmessage\r\n$1\r\nt\r\n" + third)
    assert reply[:2] == [b"message", b"t"]


@pytest.mark.parametrize("second", [b":5\r\n", b"$-1\r\n", b"*1\r\n:1\r\n"])
def test_a_message_on_no_channel_is_left_to_the_caller(rig, second):
    [reply] = rig.feed(b"*3\r\n$7\r\nmessage\r\n" + second + b"$1\r\nx\r\n")
    assert reply[0] == b"message"


# ---- from clients ----

INBOUND = (
    client_frame(b'{"type":"pong"}')
    + client_frame(b'{"type":"init"}', key=b"\xff\x00\xaa\x55")
    + client_frame(b"ping!", 9)
    + client_frame(b"in two ", 1, fin=False)
    + client_frame(b"", 10)
    + client_frame("teilen é".encode(), 0)
    + client_frame(b"\x00\xff", 2)
    + client_frame(b"z" * 200)
)


@pytest.mark.row("F26")
@pytest.mark.parametrize("split", range(len(INBOUND) + 1))
def test_frames_split_anywhere_give_the_same(split):
    rig = Rig()
    try:
        sock = rig.join(b"t")
        sock.sendall(INBOUND[:split])
        rig.turn()
        sock.sendall(INBOUND[split:])
        rig.until(lambda: len(rig.texts) == 3)
        assert rig.texts == [b'{"type":"init"}', "in two teilen é".encode(), b"z" * 200]
        assert server_frames(rig.received(sock, 7)) == ([(10, b"ping!")], b"")
    finally:
        rig.close()


@pytest.mark.row("F26")
def test_frames_byte_by_byte(rig):
    sock = rig.join(b"t")
    for byte in INBOUND:
        sock.sendall(bytes([byte]))
        rig.turn()
    rig.until(lambda: len(rig.texts) == 3)


def test_frames_sent_with_the_request_are_served_after_the_answer(rig):
    sock = rig.connect()
    sock.sendall(b"GET /t HTTP/1.1\r\n\r\n" + client_frame(b"early"))
    rig.until(lambda: rig.texts == [b"early"])
    assert rig.received(sock) == ANSWER


BAD = {
    "unmasked": (client_frame(b"x", mask=False), 1002),
    "rsv1": (client_frame(b"x", rsv=0x40), 1002),
    "rsv2": (client_frame(b"x", rsv=0x20), 1002),
    "rsv3": (client_frame(b"x", rsv=0x10), 1002),
    **{f"opcode {op}": (client_frame(b"", op), 1002) for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "ping of 126 bytes": (client_frame(b"x" * 126, 9), 1002),
    "fragmented ping": (client_frame(b"x", 9, fin=False), 1002),
    "continuation of nothing": (client_frame(b"x", 0), 1002),
    "text inside a message": (client_frame(b"a", 1, fin=False) + client_frame(b"b", 1), 1002),
    "length 125 in 16 bits": (b"\x81\xfe\x00\x7d", 1002),
    "length 65535 in 64 bits": (b"\x81\xff" + struct.pack("!Q", 65535), 1002),
    "length 2^63": (b"\x81\xff" + struct.pack("!Q", 1 << 63), 1002),
    "length 2^64-1": (b"\x81\xff" + struct.pack("!Q", (1 << 64) - 1), 1002),
    "length 2^63-1": (b"\x81\xff" + struct.pack("!Q", (1 << 63) - 1) + b"mask", 1009),
    "65537 bytes": (client_frame(b"x" * 65537), 1009),
    "65537 bytes in fragments": (client_frame(b"x" * 65000, fin=False) + client_frame(b"x" * 537, 0), 1009),
    "65 fragments": (client_frame(b"x", fin=False) + client_frame(b"x", 0, fin=False) * 64, 1009),
    "text that is no UTF-8": (client_frame(b"\xc3\x28"), 1007),
    "text that is no UTF-8 in fragments": (client_frame(b"\xc3", fin=False) + client_frame(b"\x28", 0), 1007),
    "close of one byte": (client_frame(b"\x03", 8), 1002),
    **{
        f"close {c}": (client_frame(struct.pack("!H", c), 8), 1002)
        for c in (0, 999, 1004, 1005, 1006, 1015, 1100, 2999, 5000)
    },
    "close reason no UTF-8": (client_frame(struct.pack("!H", 1000) + b"\xff", 8), 1007),
    "101 frames at once": (client_frame(b"", 10) * 101, 1008),
}


@pytest.mark.row("S1", "S2")
@pytest.mark.parametrize("name", BAD)
def test_a_broken_rule_closes_with_its_code(rig, name):
    data, code = BAD[name]
    sock, other = rig.join(b"t"), rig.join(b"t")
    sock.sendall(data)
    assert close_code(rig.ended(sock)) == code
    rig.publish(b"t", b"still here")
    assert texts(rig.received(other, 10)) == ["still here"]
    sock.close()
    rig.until(lambda: rig.core.totals()["sockets"] == 1)
    assert rig.stats["connections"] == 1


@pytest.mark.parametrize(
    "payload", [b"", struct.pack("!H", 1000), struct.pack("!H", 1001) + b"going", struct.pack("!H", 4999)]
)
def test_a_close_is_answered_with_its_code_and_the_end(rig, payload):
    sock = rig.join(b"t")
    sock.sendall(client_frame(payload, 8))
    assert close_code(rig.ended(sock)) == (struct.unpack("!H", payload[:2])[0] if payload else 1000)
    assert rig.stats["closes"] == {}, "the peer's wish is not counted as ours"
    assert rig.idle == [b"t"]


def test_our_close_ends_when_the_peers_has_come(rig):
    sock = rig.join(b"t")
    assert rig.core.close(rig.handles[sock], 1012, b"restart")
    rig.turn()
    assert close_code(rig.received(sock, 4)) == 1012
    sock.sendall(client_frame(b"late") + client_frame(struct.pack("!H", 1012), 8))
    assert rig.ended(sock) == b""
    assert rig.texts == []
    assert rig.stats["closes"] == {1012: 1}


def test_a_peer_that_never_answers_our_close_is_given_up(rig):
    sock = rig.join(b"t")
    rig.core.close(rig.handles[sock], 1012)
    rig.tick_until(lambda: rig.core.totals()["sockets"] == 0)


def test_the_largest_message_allowed_is_taken(rig):
    sock = rig.join(b"t")
    sock.sendall(client_frame(b"x" * 65536))
    rig.until(lambda: rig.texts == [b"x" * 65536])


def test_heartbeat_on_demand(rig):
    sock = rig.join(b"t")
    rig.core.ping(rig.handles[sock])
    assert rig.received(sock, len(HEARTBEAT)) == HEARTBEAT


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
@pytest.mark.parametrize("binary", [False, True])
def test_a_message_for_one_client(rig, size, binary):
    sock, other = rig.join(b"t"), rig.join(b"t")
    assert rig.core.send_message(rig.handles[sock], b"x" * size, binary)
    assert server_frames(rig.received(sock, size + 2)) == ([(2 if binary else 1, b"x" * size)], b"")
    assert rig.received(other) == b""


def test_a_message_for_one_who_is_gone(rig):
    sock = rig.join(b"t")
    rig.core.close(rig.handles[sock], 1000)
    assert not rig.core.send_message(rig.handles[sock], b"late")


def test_binary_messages_are_for_whoever_asks_for_them():
    heard = []
    rig = Rig(on_binary=lambda client, service, data: heard.append(data))
    rig.join(b"t").sendall(client_frame(b"\xff\x00", 2) + client_frame(b"text") + client_frame(JSON_PONG, 2))
    rig.until(lambda: len(heard) == 2)
    assert heard == [b"\xff\x00", JSON_PONG]
    assert rig.texts == [b"text"]
    rig.close()
