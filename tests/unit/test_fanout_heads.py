"""The core's reading of a plain upgrade request, against the judge of all of them: it may only ever say less."""

import base64
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.utils import accept_key

from relay._fanout import plain_upgrade
from relay.handshake import Refused, judged, read

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, section 1.3
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
NEEDED = [
    "Host: x",
    "Connection: Upgrade",
    "Upgrade: websocket",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
]


def head(lines=(), line="GET /r1:wepp HTTP/1.1", needed=NEEDED):
    return "\r\n".join([line, *needed, *lines, "", ""]).encode("latin-1")


BROWSERS = {
    "chromium": """GET /run1:wepp HTTP/1.1
Host: wepp.cloud
Connection: Upgrade
Pragma: no-cache
Cache-Control: no-cache
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36
Upgrade: websocket
Origin: https://wepp.cloud
Sec-WebSocket-Version: 13
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-US,en;q=0.9
Cookie: session=abc; theme="dark"
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits""",
    "firefox": """GET /run1:wepp HTTP/1.1
Host: wepp.cloud
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0
Accept: */*
Accept-Language: en-US,en;q=0.5
Accept-Encoding: gzip, deflate, br, zstd
Sec-WebSocket-Version: 13
Origin: https://wepp.cloud
Sec-WebSocket-Extensions: permessage-deflate
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
DNT: 1
Connection: keep-alive, Upgrade
Sec-Fetch-Dest: empty
Sec-Fetch-Mode: websocket
Sec-Fetch-Site: same-origin
Pragma: no-cache
Cache-Control: no-cache
Upgrade: websocket""",
    "behind a proxy": """GET /run1:wepp?v=2 HTTP/1.1
host: wepp.cloud
upgrade: WebSocket
connection: Upgrade
sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==
sec-websocket-version: 13
origin: https://wepp.cloud
x-forwarded-for: 10.1.2.3
x-forwarded-proto: https""",
}


@pytest.mark.parametrize("browser", BROWSERS)
def test_what_browsers_and_proxies_send_is_plain(browser):
    found = plain_upgrade(BROWSERS[browser].replace("\n", "\r\n").encode() + b"\r\n\r\n")
    assert found == (
        "/run1:wepp?v=2" if browser == "behind a proxy" else "/run1:wepp",
        ACCEPT,
        "https://wepp.cloud",
    )


def test_without_an_origin_there_is_none():
    assert plain_upgrade(head()) == ("/r1:wepp", ACCEPT, None)
    assert plain_upgrade(head(["Origin:"])) == ("/r1:wepp", ACCEPT, "")


@pytest.mark.parametrize("i", range(len(NEEDED)))
def test_each_needed_header_is_needed_once(i):
    assert plain_upgrade(head(needed=NEEDED[:i] + NEEDED[i + 1 :])) is None
    assert plain_upgrade(head([NEEDED[i]])) is None


def test_sixty_four_headers_are_plain_and_one_more_is_not():
    assert plain_upgrade(head(["A: b"] * 59))
    assert plain_upgrade(head(["A: b"] * 60)) is None


def test_as_many_headers_as_are_asked_for():
    assert plain_upgrade(head(["A: b"] * 4), 9)
    assert plain_upgrade(head(["A: b"] * 5), 9) is None
    assert plain_upgrade(head(["A: b"] * 123), 128)


@pytest.mark.parametrize(
    "unusual",
    [
        head(line="HEAD /r1:wepp HTTP/1.1"),
        head(line="GET /r1:wepp HTTP/1.0"),
        head(line="GET http://x/r1:wepp HTTP/1.1"),
        head(line="GET  /r1:wepp HTTP/1.1"),
        head(line="GET /r1:wepp HTTP/1.1 "),
        head(line="GET /r1 wepp HTTP/1.1"),
        head(line="GET /r1:w\xe9pp HTTP/1.1"),
        head(line="GET /r1:wepp HTTP/1.1\r\n folded: x"),
        head(["Origin: a", "Origin: b"]),
        head(["Content-Length: 0"]),
        head(["Transfer-Encoding: chunked"]),
        head(["Sec-WebSocket-Protocol: chat"]),
        head(["A : b"]),
        head([": b"]),
        head(["A"]),
        head(["A: b\x00"]),
        head(["A: b\x7f"]),
        head(["A: \xe9"]),
        head(["A: b", " folded"]),
        head(["A: b\rB: c"]),
        head(["A: b\nB: c"]),
        head(needed=[*NEEDED[:3], "Sec-WebSocket-Key: " + KEY[:-1], NEEDED[4]]),
        head(needed=[*NEEDED[:3], "Sec-WebSocket-Key: " + KEY[:-3] + "===", NEEDED[4]]),
        head(needed=[*NEEDED[:3], "Sec-WebSocket-Key: *" + KEY[1:], NEEDED[4]]),
        head(needed=[*NEEDED[:4], "Sec-WebSocket-Version: 8"]),
        head(needed=[NEEDED[0], "Connection: close", *NEEDED[2:]]),
        head(needed=["Host: a b@c/", *NEEDED[1:]]),
        head(needed=["Host: user@x", *NEEDED[1:]]),
        head(needed=[NEEDED[0], "Connection: upgrade, ", *NEEDED[2:]]),
        head(needed=[NEEDED[0], "Connection: upgradex", *NEEDED[2:]]),
        head(needed=[*NEEDED[:2], "Upgrade: websocket, h2c", *NEEDED[3:]]),
        head()[:-2],
        head()[:-1],
        head() + b"x",
        b"\r\n\r\n",
        b"",
    ],
)
def test_whatever_is_unusual_is_left_to_the_judge(unusual):
    assert plain_upgrade(unusual) is None


@pytest.mark.parametrize("size", [8191, 8192, 8193])
def test_a_line_is_plain_as_far_as_the_judge_reads(size):
    """The line with its end; heads of more than 8 KiB are let through where RELAY_MAX_HEAD_SIZE says so."""
    path = "GET /" + "x" * (size - 16) + " HTTP/1.1"
    for data in (head(["A: " + "b" * (size - 5)]), head(line=path)):
        assert size in map(len, data.splitlines(keepends=True))
        assert compare(data) == (size <= 8192)
        if size > 8192:
            with pytest.raises(Refused, match="A line of more than 8192 bytes") as caught:
                read(data)
            assert caught.value.answer.startswith(b"HTTP/1.1 431 ")
            assert caught.value.bound == "head_size"


@given(st.binary(min_size=16, max_size=16))
def test_the_accept_value_is_that_of_the_key(key):
    text = base64.b64encode(key).decode()
    request = head(needed=[re.sub(r"(?<=Key: ).*", text, line) for line in NEEDED])
    assert text.encode() in request
    assert plain_upgrade(request)[1].decode() == accept_key(text)


def without_date(answer):
    return re.sub(rb"\r\nDate: [^\r]+", b"\r\nDate: then", answer)


def compare(data):
    """What the core calls plain the judge accepts, and answers with the same bytes; whether it was plain."""
    if plain_upgrade(data) is None:
        return False
    mine, judges = read(data), judged(data)  # Refused by the judge alone: the failure this is all about
    assert mine._replace(upgrade=without_date(mine.upgrade)) == judges._replace(upgrade=without_date(judges.upgrade))
    assert mine.upgrade.startswith(b"HTTP/1.1 101 ")
    return True


NAMES = st.sampled_from(
    [
        "Host",
        "Upgrade",
        "Connection",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Version",
        "Origin",
        "Sec-WebSocket-Extensions",
        "Sec-WebSocket-Protocol",
        "Content-Length",
        "Transfer-Encoding",
        "Cookie",
        "Expect",
        "Trailer",
        "X-A",
        "",
        " ",
        "A B",
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            "x",
            "websocket",
            "WebSocket",
            "websocket, h2c",
            "upgrade",
            "keep-alive, Upgrade",
            "upgrade,",
            ",upgrade",
            "Upgrade;q=1",
            "up grade",
            "close",
            KEY,
            KEY.lower(),
            "AAAAAAAAAAAAAAAAAAAAAA==",
            "/+/+/+/+/+/+/+/+/+/+/w==",
            "13",
            "013",
            "13, 8",
            "8",
            "null",
            "https://wepp.cloud",
            "",
            " ",
            "permessage-deflate; client_max_window_bits",
            "a;;=,,",
            "0",
            "chunked",
            "100-continue",
            "\t",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=30),
)
CASES = st.sampled_from([str, str.lower, str.upper, str.swapcase])
LINES = st.builds(
    lambda case, name, colon, value, end: case(name) + colon + value + end,
    CASES,
    NAMES,
    st.sampled_from([": "] * 5 + [":", ":  ", " : ", ":\t", ""]),
    VALUES,
    st.sampled_from([""] * 5 + [" ", "\t", "\r"]),
)
SUSPECTS = st.sampled_from(
    [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: y",
        "Origin: null",
        "Sec-WebSocket-Protocol: chat",
        "Sec-WebSocket-Protocol: ,;",
        "Connection: close",
        "Upgrade: h2c",
        " folded",
        "Sec-WebSocket-Extensions: ;",
    ]
)
TARGETS = st.one_of(
    st.sampled_from(["/", "/r1:wepp", "/a/b?v=2", "//x", "/%00", "/#f", "*", "http://x/y"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=20).map(lambda text: "/" + text),
)


@st.composite
def heads(draw):
    """A good request with some headers changed, added, left out or out of order; sometimes with a byte changed."""
    missing = draw(st.sampled_from([None] * 4 + NEEDED))
    lines = [line for line in NEEDED if line != missing]
    lines += draw(st.lists(st.one_of(LINES, SUSPECTS), max_size=3))
    lines = draw(st.permutations(lines))
    first = draw(st.sampled_from(["GET"] * 8 + ["HEAD", "get"])) + " " + draw(TARGETS)
    data = bytearray(head(line=first + " HTTP/1." + draw(st.sampled_from("1111110")), needed=lines))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        data[draw(st.integers(0, len(data) - 5))] = draw(st.integers(0, 255))
    return bytes(data)


@pytest.mark.row("F24")
@settings(max_examples=1500, deadline=None)
@given(heads())
def test_nothing_is_plain_that_the_judge_refuses(data):
    compare(data)


@settings(max_examples=500, deadline=None)
@given(
    st.permutations(NEEDED), st.lists(st.sampled_from(["A: b", "Cookie: a=b", "Origin: https://x"]), unique=True), CASES
)
def test_the_comparison_is_no_empty_one(needed, more, case):
    """Good requests in any order and case are plain, so that the test above does compare something."""
    lines = [case(name) + ":" + value for name, _, value in (line.partition(":") for line in [*needed, *more])]
    assert compare(head(needed=lines))


def test_what_the_judge_refuses_it_still_refuses():
    with pytest.raises(Refused):
        read(head(["Content-Length: 5"]))
