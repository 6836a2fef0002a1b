"""Plain requests that the core lets in by itself, and all those that it shows to `on_request`."""

import base64
import re

import pytest
from websockets.utils import accept_key

from relay import handshake
from tests.unit.rig import ANSWER, Rig, client_frame, server_frames, texts

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
PLAIN = "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
BEGIN = b"HTTP/1.1 101 Yes\r\nAccept: "


def head(target="/r:c", *, key=KEY, extra="", line="GET {} HTTP/1.1"):
    return f"{line.format(target)}\r\n{PLAIN}Sec-WebSocket-Key: {key}\r\n{extra}\r\n".encode()


def answer(key=KEY):
    return BEGIN + accept_key(key).encode() + b"\r\n\r\n"


@pytest.fixture
def rig():
    rig = Rig(limit=8)
    rig.join(b"r:c")
    rig.core.confirm(rig.service, b"r:c")
    rig.core.let_in_by(rig.service, lambda now: BEGIN)
    rig.requests.clear()
    yield rig
    rig.close()


def ask(rig, data):
    """A client that has sent this, and what it was answered."""
    sock = rig.connect()
    sock.sendall(data)
    return sock, rig.received(sock, 1)


def test_a_plain_request_for_a_confirmed_topic_is_let_in_unasked(rig):
    key = base64.b64encode(b"0123456789abcdef").decode()
    sock, got = ask(rig, head(key=key))
    assert got == answer(key)
    rig.publish(b"r:c", b"first", b"second")
    assert texts(rig.received(sock, 1)) == ["first", "second"]
    assert rig.requests == []
    assert rig.stats["connections"] == rig.stats["opened"] == 2
    assert rig.core.totals()["inbound_bytes"] == 0
    sock.close()
    rig.until(lambda: rig.stats["connections"] == 1)


def test_what_was_published_before_it_came_is_not_for_it(rig):
    rig.feed(b"*3\r\n$7\r\nmessage\r\n$3\r\nr:c\r\n$3\r\nold\r\n")
    sock, got = ask(rig, head())
    rig.publish(b"r:c", b"new")
    assert got == answer()
    assert texts(rig.received(sock, 1)) == ["new"]


def test_a_prefix_that_a_proxy_left_is_none_of_its_name(rig):
    assert ask(rig, head("/status/r:c"))[1] == answer()
    assert ask(rig, head("//r:c"))[1] == answer()
    assert rig.requests == []


def test_frames_behind_the_head_are_served(rig):
    ping, text = client_frame(b"yes", 9), client_frame(b"hello")
    sock, got = ask(rig, head() + ping + text[:5])
    assert got.startswith(answer())
    assert server_frames(got[len(answer()) :])[0] == [(10, b"yes")]
    sock.sendall(text[5:])
    rig.until(lambda: rig.texts == [b"hello"])


def test_a_frame_that_breaks_a_rule_ends_it_behind_its_answer(rig):
    sock = rig.connect()
    sock.sendall(head() + client_frame(b"", 3))
    got = rig.ended(sock)
    assert got.startswith(answer())
    assert server_frames(got[len(answer()) :])[0][0][0] == 8


@pytest.mark.parametrize(
    "data",
    [
        head("/other:c"),
        head("/r:c/"),
        head("/r:c?v=2"),
        head("/?x=/r:c"),
        head("/r%3Ac"),
        head("/R:C"),
        head("/"),
        head(extra="Sec-WebSocket-Protocol: a\r\n"),
        head(line="HEAD {} HTTP/1.1"),
        head(line="GET {} HTTP/1.0"),
        head(key="short=="),
        head(extra="A: b\r\n" * 60),
    ],
)
def test_anything_else_is_asked_about(rig, data):
    _, got = ask(rig, data)
    assert got == ANSWER
    assert [asked for _, asked, _ in rig.requests] == [data]


def test_a_head_in_two_parts_is_asked_about(rig):
    sock = rig.connect()
    sock.sendall(head()[:30])
    rig.until(lambda: rig.core.totals()["heads"] == 1)
    sock.sendall(head()[30:])
    assert rig.received(sock, 1) == ANSWER


def test_without_a_switching_all_are_asked_about(rig):
    rig.core.let_in_by(rig.service, None)
    assert ask(rig, head())[1] == ANSWER


def test_a_topic_is_confirmed_until_that_is_revoked(rig):
    rig.core.revoke(rig.service)
    assert ask(rig, head())[1] == ANSWER
    rig.core.confirm(rig.service, b"r:c")
    assert ask(rig, head())[1] == answer()


def test_a_topic_that_was_empty_is_not_confirmed_any_more(rig):
    rig.clients[0].close()
    rig.until(lambda: rig.idle == [b"r:c"])
    assert ask(rig, head())[1] == ANSWER


def test_confirming_what_nobody_watches_does_nothing(rig):
    rig.core.confirm(rig.service, b"nobody:c")
    assert ask(rig, head("/nobody:c"))[1] == ANSWER


def test_above_the_limit_all_are_asked_about(rig):
    for _ in range(7):
        assert ask(rig, head())[1] == answer()
    assert rig.requests == []
    ask(rig, head())
    assert [full for _, _, full in rig.requests] == [True]


def test_origins_that_need_a_judge(rig):
    rig.core.let_in_by(rig.service, lambda now: BEGIN, ["https://a.example", "*.b.example"])
    assert ask(rig, head(extra="Origin: https://a.example\r\n"))[1] == answer()
    assert ask(rig, head())[1] == answer()
    assert rig.requests == []
    for other in ("https://A.example", "https://x.b.example", "https://evil.example", ""):
        assert ask(rig, head(extra=f"Origin: {other}\r\n"))[1] == ANSWER
        assert rig.requests.pop()[1].endswith(f"Origin: {other}\r\n\r\n".encode())


def test_as_many_headers_as_are_allowed(rig):
    rig.core.let_in_by(rig.service, lambda now: BEGIN, None, 7)
    assert ask(rig, head(extra="A: b\r\n" * 2))[1] == answer()
    assert ask(rig, head(extra="A: b\r\n" * 3))[1] == ANSWER


def test_a_switching_that_fails_is_told_and_all_are_asked_about(rig):
    rig.core.let_in_by(rig.service, lambda now: 1 // 0)
    assert ask(rig, head())[1] == ANSWER
    assert isinstance(rig.errors.pop(), ZeroDivisionError)
    assert rig.errors == []


def test_a_switching_that_is_too_long_is_not_used(rig):
    rig.core.let_in_by(rig.service, lambda now: b"x" * 481)
    assert ask(rig, head())[1] == ANSWER
    rig.core.let_in_by(rig.service, lambda now: b"x" * 480)
    assert ask(rig, head())[1] == b"x" * 480 + answer()[len(BEGIN) :]


def test_the_answer_is_the_judges_but_for_its_second(rig):
    rig.core.let_in_by(rig.service, handshake.switching)
    _, mine = ask(rig, head())
    date = re.compile(rb"(?<=\r\nDate: )[^\r]+")
    assert date.search(mine)
    assert date.sub(b"then", mine) == date.sub(b"then", handshake.judged(head()).upgrade)
