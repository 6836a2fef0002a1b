"""Contract, section 6, of both services: paths, methods, frames in, heartbeats, origins. Without Redis trouble."""

import contextlib
import json
import re
import socket
import time
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.integration.peers import (
    BINARY,
    CLOSE,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    Peer,
    Refused,
    Wire,
    address_of,
    ask,
    close,
    frame,
    head,
    text,
    upgrade,
    wait_for,
)

PONG_TEXT = '{"type":"pong"}'


@pytest.fixture
def urls(standing):
    """Of each service: its URL and a path that names a topic of it."""
    return {"status": (standing.status_url, "/r1:wepp"), "preflight": (standing.preflight_url, "/r1")}


@pytest.fixture
def status(standing):
    return standing.status_url


def answers(url, *requests):
    return [ask(url, request).status for request in requests]


# ---- paths ----

GOOD_PATHS = {
    "status": {
        "/r1:wepp": "r1:wepp",
        "/r1:wepp/": "r1:wepp",
        "//r1:wepp": "r1:wepp",
        "/r1%3Awepp": "r1:wepp",
        "/%72%31%3a%77epp": "r1:wepp",
        "/weppcloud-microservices/status/r1:wepp": "r1:wepp",
        "/__keyspace@0__:x/r1:wepp": "r1:wepp",
        "/../%00/r1:wepp": "r1:wepp",
        "/r1:wepp?token=a%20b&x=/y:z": "r1:wepp",
        "/r1:wepp?": "r1:wepp",
        "/health/r1:wepp": "r1:wepp",
        "/run/r1:wepp": "r1:wepp",
        "/batch;;spring;;run_1:sbs_upload": "batch;;spring;;run_1:sbs_upload",
        "/batch%3B%3Bspring%3B%3Brun_1%3Asbs_upload": "batch;;spring;;run_1:sbs_upload",
        "/r1.v-2_x:channel_delineation.v-2": "r1.v-2_x:channel_delineation.v-2",
        "/" + "r" * 195 + ":wepp": "r" * 195 + ":wepp",
    },
    "preflight": {
        "/r1": "r1",
        "/r1/": "r1",
        "/r%31?x=health": "r1",
        "/weppcloud-microservices/preflight/r1": "r1",
        "/a;;omni;;b;;c;;d": "a;;omni;;b;;c;;d",
        "/r1;x": "r1;x",
        "/run": "run",
        "/" + "r" * 200: "r" * 200,
    },
}

NO_NAMES = [  # as names of neither service
    *(
        "%2e",
        "%2e%2e",
        ".",
        "..",
        "...",
        "%252e",
        "%252e%252e",
        "%00",
        "r%00",
        "%0d%0a",
        "r1%0d%0aX:%20y",
        "%20",
        "r%20",
    ),
    *("*", "%2a", "r*", "[a]", "%5ba%5d", "r%3f", "r%2f", "%2f", "a%2fb", "a%5cb", "\\", "r%", "r%4"),
    *(
        "%zz",
        "__r",
        "__keyspace@0__",
        "%5f%5fr",
        "r%c3%a9",
        "r%ff",
        "r'",
        'r"',
        "r<",
        "r,",
        "r+",
        "r!",
        "r@",
        "r$",
        "r~",
    ),
    *("%68ealth", "%6civez", "r" * 201),
]
BAD_PATHS = {
    "status": [
        *(f"/{name}" for name in NO_NAMES),
        *(f"/{name}:wepp" for name in NO_NAMES if name not in ("%68ealth", "%6civez")),
        *(f"/r1:{name}" for name in ("", ".", "..", "%2e", "*", "a:b", "a;b", "%00", "a%2fb", "%0a", "%C3%A9")),
        *("/r1", "/:wepp", "/:", "/r1:wepp//", "/r1:wepp/x", "/r1%253Awepp", "/__relay__:probe:x", "/__keyspace@0__:x"),
        *("/__keyevent@0__:hset", "/r1:wepp#x", "//", "/x/", "/a;;b;;c;;d;;e;;f:wepp", "/run/r1/r1"),
    ],
    "preflight": [
        *(f"/{name}" for name in NO_NAMES),
        *("/r1:wepp", "/r1%3Awepp", "/r1//", "//", "/x/livez", "/livez/", "/a;;b;;c;;d;;e;;f", "/__relay__"),
    ],
}


@pytest.mark.parametrize("service", ["status", "preflight"])
def test_paths_that_name_a_topic(relay, redis_server, service):
    process = relay(service, env={"REDIS_URL": redis_server.url})
    base = process.status_url or process.preflight_url
    for path, name in GOOD_PATHS[service].items():
        with Wire(address_of(base)) as wire:
            wire.send(upgrade(path))
            assert wire.answer().status == 101, path
            channel = name if service == "status" else f"__keyspace@0__:{name}"
            wait_for(lambda c=channel: redis_server.channels() == [c.encode()], f"{path} subscribed")


@pytest.mark.row("S5")
@pytest.mark.parametrize("service", ["status", "preflight"])
def test_paths_that_name_nothing_are_refused_and_reach_no_redis(relay, redis_server, service):
    process = relay(service, env={"REDIS_URL": redis_server.url})
    base = process.status_url or process.preflight_url
    for path in BAD_PATHS[service]:
        assert answers(base, upgrade(path), head(path)) == [400, 400], path
    asked = redis_server.execute("INFO", "commandstats")
    assert asked["cmdstat_subscribe"]["calls"] == 1, "the link's own probe"
    assert process.stderr == [line for line in process.stderr if '"level": "info"' in line], "a scan floods the log"


EVIL = "EVIL"
HEADERS = [
    f"{name}: {EVIL}" for name in ("User-Agent", "Cookie", "X-Forwarded-For", "X-Real-IP", "Forwarded", "Authorization")
]


@contextlib.contextmanager
def monitored(server):
    """All that the clients of a Redis say while the context lasts: each line of MONITOR."""
    lines = []
    with socket.create_connection(("127.0.0.1", server.port)) as sock, sock.makefile("rb") as file:
        sock.sendall(b"MONITOR\r\n")
        assert file.readline() == b"+OK\r\n"
        yield lines
        server.execute("ECHO", "the end")
        while not lines or b"the end" not in lines[-1]:
            lines.append(file.readline())


@pytest.mark.row("S5")
@pytest.mark.parametrize("service", ["status", "preflight"])
def test_no_byte_of_an_attacker_reaches_redis(relay, redis_server, service):
    """Odd paths, and good ones with everything else that a client may say; MONITOR is the judge."""
    process = relay(service, env={"REDIS_URL": redis_server.url})
    base = process.status_url or process.preflight_url
    good, watched = ("/r1:wepp", b"r1:wepp") if service == "status" else ("/r1", b"__keyspace@0__:r1")
    with monitored(redis_server) as lines:
        for path in (
            *BAD_PATHS[service],
            f"/{EVIL}" + "x" * 10_240,
            f"/{EVIL}%0d%0aFLUSHALL",
            f"/{EVIL}*",
            f"/[{EVIL}]",
        ):
            assert ask(base, upgrade(path)).status in (400, 431), path
        with Wire(address_of(base)) as wire:
            wire.send(upgrade(f"{good}?token={EVIL}&v={EVIL}", *HEADERS))
            assert wire.answer().status == 101
            wait_for(lambda: redis_server.channels() == [watched], "subscribed")
            for text in (f'{{"type":"init","run":"{EVIL}"}}', f"{EVIL}\r\nFLUSHALL\r\n", f"*1\r\n$4\r\n{EVIL}\r\n"):
                wire.send(frame(TEXT, text.encode()))
            wire.send(frame(CLOSE, b"\x03\xe8" + EVIL.encode()))
            wire.ended()
        wait_for(lambda: redis_server.channels() == [], "it has left")
    said = b"".join(lines)
    assert watched in said, "what is asked for reaches it"
    assert EVIL.encode() not in said
    known = {b"subscribe", b"unsubscribe", b"publish", b"ping", b"hgetall", b"config", b"pubsub", b"echo", b"info"}
    commands = [line.split(b'"')[1].lower() for line in lines]
    assert set(commands) - {b"hello"} <= known  # that one is the test's own
    names = {part for line in lines for part in line.split(b'"')[3::2]}
    strange = {name for name in names if b"__relay__:probe:" not in name} - {watched, b"r1"}
    assert strange <= {
        b"GET",
        b"notify-keyspace-events",
        b"CHANNELS",
        b"the end",
        b"server",
        b"",
        b"AUTH",
        b"(redacted)",
        b"3",
    }


@pytest.mark.parametrize("service", ["status", "preflight"])
def test_no_run_bears_a_reserved_name(urls, service):
    url, _ = urls[service]
    for path in ("/", "/run/r1", "/run/r1/", "/relay.js", "/livez", "/readyz", "/metrics", "/livez?x=1"):
        assert ask(url, upgrade(path)).status == 400, path


@pytest.mark.parametrize("service", ["status", "preflight"])
def test_the_relays_own_paths(urls, service):
    url, _ = urls[service]
    assert answers(url, *map(head, ("/livez", "/readyz", "/", "/?x=1"))) == [200] * 4
    assert b"<html" in ask(url, head("/")).body.lower()
    assert answers(url, *map(head, ("/relay.js", "/run/r1", "/run/r1/"))) == [200] * 3
    assert answers(url, head("/metrics")) == [404]
    for path in ("/health", "/livez", "/readyz", "/", "/run/r1", "/relay.js"):
        full, short = ask(url, head(path)), ask(url, head(path, method="HEAD"))
        assert (short.status, short.body) == (200, b""), path
        assert short.headers["content-length"] == full.headers["content-length"] == str(len(full.body))
        assert short.headers["content-type"] == full.headers["content-type"]


HEALTH = ["/health", "/health/", "/x/y/health", "/weppcloud-microservices/preflight/health", "/health?x", "/run/health"]


@pytest.mark.parametrize("service", ["status", "preflight"])
@pytest.mark.parametrize("path", HEALTH)
def test_health_as_the_last_part_of_any_path(urls, service, path):
    url, _ = urls[service]
    answer = ask(url, head(path))
    assert (answer.status, answer.body) == (200, b"OK")
    assert ask(url, head(path, host=None, version="HTTP/1.0")).status == 200, "as haproxy asks by default"
    with Peer(url + path) as peer:
        assert peer.frame() == (TEXT, b"OK")
        assert peer.frame() == (CLOSE, b"\x03\xe8")
        peer.send(close())
        assert peer.ended() == b""


async def test_a_websocket_to_health_as_the_discord_bot_has_it(status):
    async with connect(f"{status}/health") as websocket:
        assert await websocket.recv() == "OK"
        await websocket.wait_closed()
        assert websocket.close_code == 1000


# ---- methods, heads ----


def test_a_run_without_upgrade_is_426(urls):
    for url, path in urls.values():
        for header in ("X: y", "Accept: text/html, */*", "Upgrade: h2c"):
            answer = ask(url, head(path, header))
            assert answer.status == 426
            assert answer.headers["upgrade"] == "websocket"
        answer = ask(url, head(path, method="HEAD"))
        assert (answer.status, answer.body) == (426, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "get", "BREW"])
def test_other_methods_are_405(status, method):
    for path in ("/r1:wepp", "/health", "/", "/nothing"):
        answer = ask(status, head(path, "Content-Length: 5", method=method) + b"x=y&z")
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"
    assert ask(status, upgrade("/r1:wepp", method=method)).status == 405


BAD_HEADS = {
    "nonsense": (b"\x00\x01\x02\r\n\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /r1:wepp\r\n\r\n", 400),
    "two spaces": (b"GET  /r1:wepp HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "bytes above 127": (b"GET /\xff:wepp HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no host": (upgrade("/r1:wepp", host=None), 400),
    "two hosts": (upgrade("/r1:wepp", "Host: y"), 400),
    "folded": (upgrade("/r1:wepp", "X: y", " z"), 400),
    "bare LF in a header": (upgrade("/r1:wepp", "X: y\nZ: w"), 400),
    "NUL in a header": (upgrade("/r1:wepp", "X: \0"), 400),
    "space before the colon": (upgrade("/r1:wepp", "X : y"), 400),
    "chunked": (upgrade("/r1:wepp", "Transfer-Encoding: chunked"), 400),
    "a body": (upgrade("/r1:wepp", "Content-Length: 5") + b"abcde", 400),
    "two keys": (upgrade("/r1:wepp", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400),
    "two origins": (upgrade("/r1:wepp", "Origin: https://a.b", "Origin: https://c.d"), 400),
    "a version of old": (upgrade("/r1:wepp").replace(b"Version: 13", b"Version: 8"), 400),
    "a short key": (re.sub(rb"Key: .*?\r", b"Key: c2hvcnQ=\r", upgrade("/r1:wepp")), 400),
    "no connection header": (upgrade("/r1:wepp").replace(b"Connection: Upgrade\r\n", b""), 426),
    "no path": (b"GET r1:wepp HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "65 headers": (upgrade("/r1:wepp", *(f"X-{i}: y" for i in range(60))), 431),
    "a long line": (upgrade("/r1:wepp", "Cookie: " + "x" * 8200), 431),
    "a long path": (upgrade("/" + "x" * 10_000 + ":wepp"), 431),
    "no end": (b"GET /" + b"x" * 9000, 431),
}


@pytest.mark.row("F24")
@pytest.mark.parametrize("name", BAD_HEADS)
def test_heads_that_cannot_be_served(status, name):
    data, code = BAD_HEADS[name]
    answer = ask(status, data)
    assert answer.status == code
    assert answer.headers["connection"] == "close"
    assert ask(status, head("/health")).status == 200


def test_no_extension_and_no_subprotocol_is_agreed_on(status, join):
    wanted = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", "Sec-WebSocket-Protocol: chat"
    answer = join(f"{status}/r1:wepp", *wanted).answered
    assert not {"sec-websocket-extensions", "sec-websocket-protocol"} & answer.headers.keys()


@pytest.mark.row("F26")
def test_a_head_may_come_byte_by_byte_and_frames_right_behind_it(status):
    with Wire(address_of(status)) as wire:
        for byte in upgrade("/r1:wepp"):
            wire.send(bytes([byte]))
        assert wire.answer().status == 101
    with Wire(address_of(status)) as wire:
        wire.send(upgrade("/r1:wepp") + frame(PING, b"early"))
        assert wire.answer().status == 101
        assert wire.take(7) == b"\x8a\x05early"


def test_a_head_that_does_not_come_is_408(status):
    """5 s; who never said a word is hung up on without one."""
    with Wire(address_of(status)) as slow, Wire(address_of(status)) as mute, Wire(address_of(status)) as bare:
        slow.send(b"GET /r1:wepp HTTP/1.1\r\nHost:")
        bare.send(b"GET /health HTTP/1.1\nHost: x\n\n")
        assert ask(status, head("/health")).status == 200
        for part in (" x\r", "\nX: y\r\n"):  # going on does not make it longer
            time.sleep(0.5)
            slow.send(part.encode())
        assert slow.answer().status == 408
        assert bare.answer().status == 408
        assert mute.ended() == b""


# ---- what clients send ----

IGNORED = [
    PONG_TEXT,
    '{"type":"PONG"}',
    '{"type":"nonsense"}',
    '{"type":17}',
    '{"type":null}',
    '{"type":["init"]}',
    '{"typ":"init"}',
    "{}",
    "[]",
    '["init"]',
    "null",
    "17",
    '"init"',
    "init",
    "",
    "{",
    '{"type":"init"',
    "NaN",
    "[" * 30_000,
    '{"a":' * 10_000,
    "9" * 10_000,
    '{"type":"subscribe","channel":"r2:wepp"}',
    '{"type":"hangup"}',
    "x" * 65_536,
]


@pytest.mark.parametrize("service", ["status", "preflight"])
def test_other_types_broken_json_and_binary_frames_are_ignored(urls, join, service):
    peer = join("".join(urls[service]))
    if service == "preflight":
        peer.checks()
    for sent in IGNORED:
        peer.send(text(sent))
    for sent in (b"", b"\xff\x00", b'{"type":"init"}', b"x" * 65_536):
        peer.send(frame(BINARY, sent))
    peer.send(frame(PING, b"end"))
    assert peer.beyond_heartbeats() == (PONG, b"end"), "something was answered"


INITS = ['{"type":"init"}', '{"type":"INIT"}', '{"Type":"Init"}', '{"run":1, "type" : "init"}\n', '{"TYPE":"iNiT"}']


@pytest.mark.parametrize("service", ["status", "preflight"])
def test_init_is_answered_with_a_ping_at_once(urls, join, service):
    peer = join("".join(urls[service]))
    if service == "preflight":
        peer.checks()
    for sent in INITS:
        peer.send(text(sent))
        assert peer.frame() == (TEXT, b'{"type":"ping"}'), sent
        assert peer.frame() == (PING, b"")
    peer.send(frame(TEXT, b'{"type":', final=False) + frame(PING, b"between") + frame(0, b'"init"}'))
    assert [peer.frame() for _ in range(3)] == [(PONG, b"between"), (TEXT, b'{"type":"ping"}'), (PING, b"")]


BROKEN = {
    "unmasked text": (frame(TEXT, b"x", masked=False), 1002),
    "unmasked ping": (frame(PING, b"x", masked=False), 1002),
    "unmasked close": (frame(CLOSE, b"\x03\xe8", masked=False), 1002),
    **{f"reserved bit {bit}": (frame(TEXT, b"x", reserved=bit), 1002) for bit in (1, 2, 4, 7)},
    **{f"opcode {opcode}": (frame(opcode, b""), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a length of 125 in 16 bits": (frame(TEXT, b"x" * 125, form=16), 1002),
    "a length of 0 in 64 bits": (frame(TEXT, b"", form=64), 1002),
    "a length of 65535 in 64 bits": (frame(TEXT, b"x" * 65_535, form=64), 1002),
    "a length of 2^63": (frame(TEXT, b"", size=1 << 63, form=64), 1002),
    "a length of 2^64-1": (frame(BINARY, b"", size=(1 << 64) - 1, form=64), 1002),
    "a length of 2^63-1": (frame(TEXT, b"", size=(1 << 63) - 1, form=64), 1009),
    "a length of 2^32": (frame(TEXT, b"", size=1 << 32, form=64), 1009),
    "65537 bytes": (frame(TEXT, b"x" * 65_537), 1009),
    "65537 bytes, binary": (frame(BINARY, b"x" * 65_537), 1009),
    "65537 bytes, announced": (frame(TEXT, b"", size=65_537), 1009),
    "65537 bytes in two": (frame(TEXT, b"x" * 65_536, final=False) + frame(0, b"x"), 1009),
    "65 fragments": (frame(TEXT, b"x", final=False) + frame(0, b"x", final=False) * 64, 1009),
    "empty fragments": (frame(TEXT, b"", final=False) + frame(0, b"", final=False) * 99, 1009),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a ping in fragments": (frame(PING, b"x", final=False), 1002),
    "a close in fragments": (frame(CLOSE, b"\x03\xe8", final=False), 1002),
    "a continuation of nothing": (frame(0, b"x"), 1002),
    "a text within a text": (frame(TEXT, b"x", final=False) + frame(TEXT, b"x"), 1002),
    "text that is not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "text that is not UTF-8 over two": (frame(TEXT, b"\xc3", final=False) + frame(0, b"("), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    **{f"close code {code}": (close(code), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535)},
    "a close reason that is not UTF-8": (close(1000, b"\xff"), 1007),
    "a flood of frames": (frame(PONG) * 150, 1008),
}


@pytest.mark.row("S2")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_closes_that_client_alone_with_its_code(status, join, worker, redis_url, name):
    data, code = BROKEN[name]
    other = join(f"{status}/r1:wepp")
    with Peer(f"{status}/r1:wepp") as peer:
        peer.send(data)
        assert peer.closed()[0] == code
        assert peer.ended() == b"", "something came behind the close frame"
    worker(redis_url).publish("r1:wepp", "x")
    assert other.data() == "x"


def test_closes_are_answered_with_their_code(status):
    for payload in (b"", b"\x03\xe8", b"\x03\xe9going away", b"\x0f\xa0mine", b"\x13\x87"):
        with Peer(f"{status}/r1:wepp") as peer:
            peer.send(frame(CLOSE, payload) + frame(PING, b"after the end"))
            opcode, answered = peer.frame()
            assert (opcode, answered[:2]) == (CLOSE, payload[:2] or b"\x03\xe8")
            assert peer.ended() == b""


def test_pings_are_answered_whatever_their_size(status, join):
    peer = join(f"{status}/r1:wepp")
    for size in (0, 1, 125):
        peer.send(frame(PING, b"p" * size))
        assert peer.beyond_heartbeats() == (PONG, b"p" * size)


def test_the_size_of_a_message_is_a_setting(relay, join):
    process = relay("status", env={"STATUS_MAX_MESSAGE_SIZE": "100"})
    peer = join(f"{process.status_url}/r1:wepp")
    peer.send(text("x" * 100))
    assert peer.alive()
    peer.send(text("x" * 101))
    assert peer.closed()[0] == 1009


# ---- heartbeat ----

PINGED = {f"{prefix}_PING_INTERVAL": "200ms" for prefix in ("STATUS", "PREFLIGHT")}
FAST = PINGED | {f"{prefix}_PONG_TIMEOUT": "1s" for prefix in ("STATUS", "PREFLIGHT")}
ROUNDS = 3  # of which one must go well: in each a machine that stands still may be what was too late


@pytest.fixture
def fast(relay):
    process = relay(env=FAST)
    return f"{process.status_url}/r1:wepp", f"{process.preflight_url}/r1"


def test_a_heartbeat_is_a_ping_of_both_kinds_in_one_write(relay, join):
    process = relay(env=PINGED)
    for url in (f"{process.status_url}/r1:wepp", f"{process.preflight_url}/r1"):
        assert any(0.4 < seconds_of_four_pings(join(url)) < 3.0 for _ in range(ROUNDS))


def seconds_of_four_pings(peer):
    times = []
    for _ in range(4):
        assert peer.pinged(), "two writes"
        times.append(time.monotonic())
        peer.send(text(PONG_TEXT))
    return times[-1] - times[0]


@pytest.mark.row("F20")
def test_who_keeps_silent_is_closed_with_1008(fast, join):
    began = time.monotonic()
    silent = [join(url) for url in fast for _ in range(10)]
    for peer in silent:
        assert peer.closed()[0] == 1008
        assert peer.ended() == b""
    assert time.monotonic() - began >= 0.9


LIFE = {  # first, and then over and over
    "JSON pongs": (b"", text(PONG_TEXT)),
    "protocol pongs": (b"", frame(PONG)),
    "protocol pings": (b"", frame(PING, b"x")),
    "nonsense": (b"", text("x")),
    "binary": (b"", frame(BINARY, b"\0")),
    "fragments": (frame(TEXT, b"x", final=False), frame(0, b"x", final=False)),
}


@pytest.mark.row("F21")
def test_any_frame_is_life_and_nothing_less_is(fast, join):
    """Each of these alone keeps its client; who says nothing, or the bytes of an endless frame, is gone meanwhile."""
    died = [set(LIFE)]
    while died[-1] and len(died) <= ROUNDS:
        died.append(who_dies(fast, join))
    assert set.intersection(*died) == set()


def who_dies(fast, join):
    living = {(name, url): join(url) for name in LIFE for url in fast}
    trickling = [join(url) for url in fast]
    for (name, _), peer in living.items():
        peer.send(LIFE[name][0])
    for byte in frame(TEXT, b"x" * 10):
        said = [(peer, LIFE[name][1]) for (name, _), peer in living.items()]
        for peer, data in said + [(peer, bytes([byte])) for peer in trickling]:
            with contextlib.suppress(ConnectionError):
                peer.send(data)
        time.sleep(0.15)
    for peer in trickling:
        assert peer.closed()[0] == 1008
    return {name for (name, _), peer in living.items() if not stayed(peer)}


def stayed(peer):
    with contextlib.suppress(ConnectionError, AssertionError):
        return peer.alive()
    return False


async def test_the_websockets_library_needs_no_json_to_stay(fast):
    for _ in range(ROUNDS):
        with contextlib.suppress(ConnectionClosed):
            async with connect(fast[0]) as websocket:
                for _ in range(8):
                    assert json.loads(await websocket.recv()) == {"type": "ping"}
                return
    pytest.fail("it is closed each time")


def test_heartbeats_of_many_are_on_time_and_spread_over_the_interval(relay, join):
    """A round that took 50 ms for each client let 700 of them starve."""
    process = relay("status", env={"STATUS_PING_INTERVAL": "1s"})
    peers = [join(f"{process.status_url}/r1:wepp") for _ in range(700)]
    for peer in peers:
        peer.socket.setblocking(False)
    rounds = (next_pings(peers) for _ in range(ROUNDS))
    assert any(last < 3.0 and last - first > 0.5 for first, last in rounds), "more than 3 intervals, or all at once"


def next_pings(peers):
    """In how many seconds the first and the last of them is pinged."""
    for peer in peers:
        with contextlib.suppress(BlockingIOError):
            while peer.more():
                pass
    began, waiting, times = time.monotonic(), set(peers), []
    while waiting:
        assert time.monotonic() - began < PATIENCE, f"{len(waiting)} of {len(peers)} have no ping"
        for peer in list(waiting):
            with contextlib.suppress(BlockingIOError):
                assert peer.more()
                times.append(time.monotonic() - began)
                waiting.discard(peer)
        time.sleep(0.01)  # a turn for the relay
    return times[0], times[-1]


# ---- origins ----

ALLOWED = "https://wepp.cloud,*.example.com,http://localhost:8080,https://[::1]:8443"
ORIGINS = {
    "https://wepp.cloud": True,
    "https://WEPP.cloud": True,
    "HTTPS://wepp.cloud": True,
    "http://wepp.cloud": False,
    "https://wepp.cloud:8443": False,
    "https://wepp.cloud.evil.com": False,
    "https://evilwepp.cloud": False,
    "https://www.wepp.cloud": False,
    "https://a.example.com": True,
    "http://a.b.example.com": True,
    "https://a.example.com:8443": True,
    "https://A.EXAMPLE.COM": True,
    "https://example.com": False,
    "https://evilexample.com": False,
    "https://a.example.com.evil.com": False,
    "https://a.example.com@evil.com": False,
    "https://evil.com/.example.com": False,
    "https://evil.com#.example.com": False,
    "https://evil.com?.example.com": False,
    "http://localhost:8080": True,
    "http://localhost": True,  # the very Host that is asked for: the relay's own page
    "https://localhost": True,
    "http://localhost:9002": False,
    "http://localhost:80800": False,
    "https://[::1]:8443": True,
    "https://[::1": False,
    "null": False,
    "": False,
    "*": False,
    "*.example.com": False,
    "file://": False,
}


def test_the_page_can_be_left_out(relay):
    process = relay(env={"RELAY_PAGE": "false"})
    for url in (process.status_url, process.preflight_url):
        assert answers(url, *map(head, ("/", "/run/r1", "/relay.js", "/livez"))) == [404, 404, 200, 200]


def test_the_page_says_whom_it_may_connect_to(relay):
    process = relay("status", env={"RELAY_PREFLIGHT_PUBLIC_URL": "wss://far.example/preflight"})
    answer = ask(process.status_url, head("/run/r1"))
    assert b'data-preflight-url="wss://far.example/preflight"' in answer.body
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self';" in policy
    assert "connect-src 'self' wss://far.example ws://localhost:" in policy


@pytest.mark.row("S4")
@pytest.mark.parametrize("watched", [False, True], ids=["asked", "let in by the core"])
def test_origins(relay, watched):
    process = relay("status", env={"STATUS_ALLOWED_ORIGINS": ALLOWED})
    url = f"{process.status_url}/r1:wepp"
    with Peer(url) if watched else contextlib.nullcontext():
        look_at_origins(url)


def look_at_origins(url):
    for origin, allowed in ORIGINS.items():
        assert ask(url, head("/health", f"Origin: {origin}")).status == 200, "health is for anybody"
        with Wire(address_of(url)) as wire:
            wire.send(upgrade("/r1:wepp", f"Origin: {origin}"))
            assert wire.answer().status == (101 if allowed else 403), origin
    assert answers(url, upgrade("/r1:wepp", "Origin: https://wepp.cloud", "Origin: https://evil.com")) == [400]
    with Peer(url):
        pass  # no Origin is no browser


def test_without_a_list_any_origin_is_allowed_and_the_log_says_so(relay, join):
    process = relay("preflight")
    for origin in ("https://anywhere.org", "null", "*"):
        join(f"{process.preflight_url}/r1", f"Origin: {origin}")
    wait_for(lambda: any("PREFLIGHT_ALLOWED_ORIGINS" in line for line in process.stderr), "the line in the log")


# ---- clients of old, metrics ----


def test_hangup_is_never_sent(relay, join, worker, redis_url):
    """Over all that ends a connection; browsers take it as: never come back."""
    process = relay(env={**PINGED, "RELAY_DRAIN": "300ms"})
    urls = (f"{process.status_url}/r1:wepp", f"{process.preflight_url}/r1")
    ends = [join(url) for url in urls for _ in range(3)]
    for peer in ends[::3]:
        peer.send(frame(3))
    for peer in ends[1::3]:
        peer.send(close())
    worker(redis_url).hset("r1", "timestamps:build_channels", "10")
    worker(redis_url).delete("r1")
    for peer in ends[2::3]:
        peer.pinged()
    process.stop()
    for peer in ends:
        assert b"hangup" not in peer.ended()


def test_metrics_keep_their_names(relay, join):
    process = relay(env={"STATUS_METRICS_ENABLED": "true", "PREFLIGHT_METRICS_ENABLED": "1"})
    join(f"{process.status_url}/r1:wepp")
    answer = process.http("status", "/metrics")
    assert answer[0] == 200
    assert answer[1]["Content-Type"].startswith("text/plain; version=0.0.4")
    body = answer[2].decode() + process.http("preflight", "/metrics")[2].decode()
    names = set(re.findall(r"^([a-z0-9_]+)(?:\{.*\})? [0-9.]+$", body, re.MULTILINE))
    assert {
        "status2_connections_active",
        "status2_messages_forwarded_total",
        "status2_redis_reconnects_total",
        "status2_write_errors_total",
        "preflight2_connections_active",
        "preflight2_messages_sent_total",
        "preflight2_redis_reconnects_total",
    } <= names
    assert "\nstatus2_connections_active 1.0\n" in body
    answer = ask(process.status_url, head("/metrics", method="HEAD"))
    assert (answer.status, answer.body) == (200, b"")


def test_no_room_is_503_and_health_is_still_answered(relay, join):
    process = relay("status", env={"RELAY_MAX_CONNECTIONS": "3"})
    clients = [join(f"{process.status_url}/r1:wepp") for _ in range(3)]
    with pytest.raises(Refused) as refused:
        Peer(f"{process.status_url}/r1:wepp")
    assert refused.value.status == 503
    assert int(refused.value.answer.headers["retry-after"]) > 0
    assert answers(process.status_url, head("/health"), head("/readyz")) == [200, 200]
    clients[0].drop()
    wait_for(lambda: comes_in(f"{process.status_url}/r1:wepp"), "room again")


def comes_in(url):
    try:
        Peer(url).drop()
    except Refused:
        return False
    return True


def test_no_descriptor_is_left_behind(relay):
    """Neither by those refused, nor by the broken, nor by those who vanish: CLOSE_WAIT stays 0."""
    process = relay("status", env=FAST)
    descriptors = Path(f"/proc/{process.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(50):
        Peer(f"{process.status_url}/r{number}:wepp").drop()
        ask(process.status_url, upgrade("/%00"))
        Wire(address_of(process.status_url)).drop()
        with Peer(f"{process.status_url}/r1:wepp") as peer:
            peer.send(frame(3))
    wait_for(lambda: len(list(descriptors.iterdir())) <= before, "all descriptors closed")
