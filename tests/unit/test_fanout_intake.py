"""What is read from Redis: messages by the core itself, all else by hiredis, in order and whatever the pieces."""

import contextlib
from itertools import pairwise

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import Reads, Rig, resp, texts

ACK = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nu\r\n:1\r\n"
NAMES = st.sampled_from([b"t", b"u", b"", b"t" * 200, b"t\r\n$1"])
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"x" * 9, b"x" * 10, b"y" * 900, b"z" * 3000, b"\xe2\x80\x93", b"\xff", resp(b"message", b"t", b"in")]
    ),
)
MESSAGES = st.builds(lambda name, payload: resp(b"message", name, payload), NAMES, PAYLOADS)
OTHERS = st.sampled_from(
    [
        ACK,
        b"+PONG\r\n",
        b"-ERR no\r\n",
        b":5\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"$0\r\n\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nt\r\n:5\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nt\r\n$-1\r\n",
        b"*3\r\n$7\r\nmessage\r\n:1\r\n$1\r\nx\r\n",
        b"*2\r\n$7\r\nmessage\r\n$1\r\nt\r\n",
        b"*4\r\n$7\r\nmessage\r\n$1\r\nt\r\n$1\r\nx\r\n$1\r\ny\r\n",
        b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nt\r\n$1\r\nx\r\n",
        b"*1\r\n*1\r\n$18\r\n*3\r\n$7\r\nmessage\r\n$\r\n",
        resp(resp(b"message", b"t", b"inner")),
        b"*3\r\n$7\r\nmessage\r\n$1\r\nt..$1\r\nx..",
    ]
)
BROKEN = st.sampled_from(
    [
        b"!",
        b"*3\r\n$7\r\nmessage\r\n$01\r\nt\r\n$1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nt\r\n$\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nt\r\n$+1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nt\r\nx1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$9999999999\r\n",
        b"*3\r\n$7\r\nmessage\r\n$99999999999999999999\r\nt\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\nt\r\n",
    ]
)


def judged(data):
    """What hiredis alone makes of it: all replies, and whether it ended in an error."""
    reader, replies = hiredis.Reader(), []
    reader.feed(data)
    try:
        while (reply := reader.gets()) is not False:
            replies.append(reply)
    except hiredis.ProtocolError:
        return replies, True
    return replies, False


def plain(replies):
    return [repr(reply) if isinstance(reply, hiredis.ReplyError) else reply for reply in replies]


@pytest.fixture(scope="module")
def rig():
    with contextlib.closing(Rig()) as rig:
        yield rig


@settings(deadline=None, max_examples=400)
@given(
    pieces=st.lists(st.one_of(MESSAGES, MESSAGES, MESSAGES, OTHERS), max_size=12),
    broken=st.one_of(st.just(b""), st.just(b""), BROKEN),
    room=st.sampled_from([37, 64, 200, 1024, 65536]),
    cuts=st.lists(st.integers(0, 8000), max_size=6),
)
def test_it_hears_what_hiredis_hears(rig, pieces, broken, room, cuts):
    """With no topic watched each reply is shown, in whatever reads it comes, whatever of it the core reads itself."""
    data = b"".join(pieces) + broken
    intake = Reads(rig.core, rig.service, room)
    failed = False
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    try:
        for start, end in pairwise(edges):
            intake.take(data[start:end])
    except hiredis.ProtocolError:
        failed = True
    right, broke = judged(data)
    assert plain(intake.heard) == plain(right)
    assert failed == broke


def test_what_stands_behind_an_acknowledgement_counts_after_it(rig):
    order = []
    sock = rig.join(b"t")
    intake = Reads(rig.core, rig.service)
    before = rig.core.arrived(rig.service)

    def heard(reply):
        order.append((reply, rig.core.arrived(rig.service) - before))

    intake.read_by(hiredis.Reader(), memoryview(bytearray(4096)), heard)
    intake.take(resp(b"message", b"t", b"first") + ACK + resp(b"message", b"t", b"second") + ACK)
    assert order == [([b"subscribe", b"u", 1], 1), ([b"subscribe", b"u", 1], 2)]
    rig.flush()
    assert texts(rig.received(sock, 20)) == ["first", "second"]
    sock.close()
    rig.until(lambda: not rig.core.watched(rig.service, b"t"))


@pytest.mark.parametrize("size", [30, 31, 32, 40_000, 65_450, 65_536, 200_000])
def test_a_message_larger_than_a_read_is_one_message(rig, size):
    """And what comes behind it is read by the core again."""
    sock = rig.join(b"big")
    intake = Reads(rig.core, rig.service, room=64 if size < 100 else 65_536)
    text = b"x" * size
    for _ in range(3):
        intake.take(resp(b"message", b"big", text) + resp(b"message", b"big", b"behind"))
        rig.flush()
        assert texts(rig.received(sock, size + 40)) == [text.decode(), "behind"]
    assert intake.heard == []
    sock.close()
    rig.until(lambda: not rig.core.watched(rig.service, b"big"))


def test_hiredis_is_not_asked_about_messages(rig):
    """Not behind an acknowledgement either, nor behind a read that ended within a message."""

    class Counted:
        fed = 0

        def __init__(self):
            reader = hiredis.Reader()
            self.gets, self.has_data, self.len = reader.gets, reader.has_data, reader.len
            self.reader = reader

        def feed(self, buffer, start, size):
            self.fed += size
            self.reader.feed(buffer, start, size)

    counted, heard = Counted(), []
    intake = Reads(rig.core, rig.service)
    intake.read_by(counted, memoryview(bytearray(4096)), heard.append)
    message = resp(b"message", b"nobody", b"x" * 100)
    stream = message * 3 + ACK + message * 100 + b"+PONG\r\n" + message * 2
    intake.take(stream)
    assert heard == judged(stream)[0]
    assert counted.fed == len(ACK) + len(b"+PONG\r\n")


def test_a_new_connection_begins_with_nothing_in_part(rig):
    intake = Reads(rig.core, rig.service)
    half = resp(b"message", b"nobody", b"lost")[:-5]
    for part in (half, b"*3\r\n$9\r\nsubs"):
        assert intake.take(part) == []
        intake.begin()
        message = [b"message", b"nobody", b"new"]
        assert intake.take(ACK + resp(*message)) == [[b"subscribe", b"u", 1], message]
