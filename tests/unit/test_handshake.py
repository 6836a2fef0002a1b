"""What a request head asks for: the judge's verdicts, the path rules, the origins (contract, section 6)."""

import pytest

from relay.handshake import Refused, Route, origin_allowed, plain, read, route

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, section 1.3
UPGRADE = [
    "Host: x",
    "Connection: Upgrade",
    "Upgrade: websocket",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
]


def head(line="GET /r1:wepp HTTP/1.1", headers=UPGRADE):
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1")


def status(data):
    with pytest.raises(Refused) as refused:
        read(data)
    return int(refused.value.answer.split(b" ")[1])


def test_the_plain_browser_request_is_upgraded():
    request = read(head())
    assert request.upgrade.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in request.upgrade
    assert request.upgrade.endswith(b"\r\n\r\n")
    assert (request.method, request.path, request.version) == ("GET", "/r1:wepp", 0)


def test_extensions_and_subprotocols_are_declined_cleanly():
    extra = ["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", "Sec-WebSocket-Protocol: chat"]
    answer = read(head(headers=UPGRADE + extra)).upgrade.lower()
    assert b"extensions" not in answer
    assert b"protocol:" not in answer


@pytest.mark.parametrize(
    ("query", "version"),
    [
        ("?v=2", 2),
        ("?x=1&v=2", 2),
        ("?v=3", 3),
        ("?v=1", 0),
        ("?v=22", 0),
        ("?v=2&v=2", 0),
        ("?vv=2", 0),
        ("?", 0),
        ("?token=a%20b", 0),
    ],
)
def test_the_version_asked_for(query, version):
    assert read(head(f"GET /r1:wepp{query} HTTP/1.1")).version == version


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://x/r1:wepp", "/r1:wepp"),
        ("HTTPS://x:1/a/r1:wepp?v=2", "/a/r1:wepp"),
        ("http://x", "/"),
        ("http://x?v=2", "/"),
    ],
)
def test_an_absolute_target_is_its_path(target, path):
    assert read(head(f"GET {target} HTTP/1.1")).path == path


def without(name):
    return [line for line in UPGRADE if not line.startswith(name)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (head("GET  /r HTTP/1.1"), 400),
        (head("GET /r"), 400),
        (head("GET /r HTTP/2.0"), 400),
        (head("GET /r HTTP/0.9"), 400),
        (head("GET /\xe9 HTTP/1.1"), 400),
        (head("PRI * HTTP/2.0"), 400),
        (head("GET r1:wepp HTTP/1.1"), 400),
        (head("GET * HTTP/1.1"), 400),
        (head("GET ftp://x/r1:wepp HTTP/1.1"), 400),
        (head("GET http://x#y/r1:wepp HTTP/1.1"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (head("POST /r HTTP/1.1"), 405),
        (head("OPTIONS * HTTP/1.1"), 405),
        (head("get /r HTTP/1.1"), 405),
        (head("HEAD /r HTTP/1.1"), 405),
        (head(headers=["A b: c", *UPGRADE]), 400),
        (head(headers=["A : c", *UPGRADE]), 400),
        (head(headers=["A: b\x00", *UPGRADE]), 400),
        (head(headers=["A: b", " folded", *UPGRADE]), 400),
        (head(headers=["A: b\nX: y", *UPGRADE]), 400),
        (head(headers=["Transfer-Encoding: chunked", *UPGRADE]), 400),
        (head(headers=["Content-Length: 5", *UPGRADE]), 400),
        (head(headers=["Host: y", *UPGRADE]), 400),
        (head(headers=without("Host")), 400),
        (head(headers=["Host: a b@c/", *UPGRADE[1:]]), 400),
        (head(headers=["Host: user@x", *UPGRADE[1:]]), 400),
        (head(headers=["Host: http://x", *UPGRADE[1:]]), 400),
        (head(headers=without("Connection")), 426),
        (head(headers=without("Sec-WebSocket-Key")), 400),
        (head(headers=without("Sec-WebSocket-Version")), 400),
        (head(headers=[*without("Sec-WebSocket-Version"), "Sec-WebSocket-Version: 8"]), 400),
        (head(headers=[*UPGRADE, f"Sec-WebSocket-Key: {KEY}"]), 400),
        (head(headers=[*without("Sec-WebSocket-Key"), "Sec-WebSocket-Key: c2hvcnQ="]), 400),
        (head("GET /r HTTP/1.0"), 505),
        (head(headers=[*UPGRADE, *(f"X-{i}: y" for i in range(60))]), 431),
    ],
    ids=repr,
)
def test_what_is_refused_and_how(data, code):
    assert status(data) == code


def test_sixty_four_headers_are_not_too_many():
    assert read(head(headers=[*UPGRADE, *(f"X-{i}: y" for i in range(59))])).upgrade


@pytest.mark.parametrize("extra", [[], ["Content-Length: 0"]], ids=["plain", "judged"])
def test_the_number_of_headers_may_be_set(extra):
    assert read(head(headers=[*UPGRADE, *extra, *(f"X-{i}: y" for i in range(100))]), 128).upgrade
    with pytest.raises(Refused, match="More than 16 headers") as caught:
        read(head(headers=[*UPGRADE, *extra, *(f"X-{i}: y" for i in range(12))]), 16)
    assert caught.value.bound == "headers"


def test_without_upgrade_nothing_is_upgraded():
    assert read(head(headers=["Host: x"])).upgrade is None
    assert read(head(headers=["Host: [2001:db8::1]:9002"])).method == "GET"
    assert read(head(headers=["Host:"])).method == "GET"
    assert read(head("HEAD /health HTTP/1.1", ["Host: x"])).method == "HEAD"
    assert read(head("GET /health HTTP/1.0", [])).upgrade is None
    assert read(head(headers=["Host: x", "Connection: Upgrade", "Upgrade: h2c"])).upgrade is None


GOOD = {
    "preflight": {
        "/r1": b"r1",
        "/r1/": b"r1",
        "/weppcloud-microservices/preflight/r1": b"r1",
        "/a/b/c/copacetic-note.v2": b"copacetic-note.v2",
        "/batch;;spring;;run_1": b"batch;;spring;;run_1",
        "/batch%3B%3Bspring%3B%3Brun_1": b"batch;;spring;;run_1",
        "/a;;b;;c;;d;;e": b"a;;b;;c;;d;;e",
        "/%72%31": b"r1",
        "/run": b"run",
        "/" + "x" * 200: b"x" * 200,
        "//r1": b"r1",
        "/_r1": b"_r1",
    },
    "status": {
        "/r1:wepp": b"r1:wepp",
        "/r1%3Awepp": b"r1:wepp",
        "/weppcloud-microservices/status/r1:wepp": b"r1:wepp",
        "/batch;;a;;b:sbs_upload": b"batch;;a;;b:sbs_upload",
        "/run/r1:wepp/": b"r1:wepp",
        "/health:wepp": b"health:wepp",
    },
}
BAD = {
    "preflight": [
        "/r1:wepp",
        "/..",
        "/.",
        "/...",
        "/%2e%2e",
        "/%252e",
        "/r%2Fs",
        "/r%00",
        "/r%0d%0aX",
        "/*",
        "/[a]",
        "/r?",
        "/__keyspace@0__:x",
        "/__r",
        "/%5f%5fr",
        "/" + "x" * 201,
        "/r%",
        "/r%g1",
        "/r%C3%A9",
        "/a b",
        "/a;;b;;c;;d;;e;;f",
        "/x/relay.js",
        "/x/livez",
        "/x/readyz",
        "/x/metrics",
        "/r//",
        "/%2f",
        "/r%3f",
        "*",
        "/r%20",
    ],
    "status": [
        "/r1",
        "/r1:",
        "/:wepp",
        "/r1:wepp:x",
        "/r1:we%2Fpp",
        "/..:wepp",
        "/r1:..",
        "/r1:a;b",
        "/__relay__:probe",
        "/%2e:x",
        "/r1:w*",
    ],
}


@pytest.mark.parametrize(
    ("service", "path", "topic"), [(s, p, t) for s, paths in GOOD.items() for p, t in paths.items()]
)
def test_paths_that_name_a_topic(service, path, topic):
    assert route(service, path) == Route(topic=topic)


@pytest.mark.parametrize(("service", "path"), [(s, p) for s, paths in BAD.items() for p in paths])
def test_paths_that_name_nothing(service, path):
    with pytest.raises(Refused) as refused:
        route(service, path)
    assert refused.value.answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("service", ["status", "preflight"])
@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/", "page"),
        ("/relay.js", "script"),
        ("/livez", "livez"),
        ("/readyz", "readyz"),
        ("/metrics", "metrics"),
        ("/health", "health"),
        ("/a/b/health", "health"),
        ("/a/health/", "health"),
        ("/run/health", "health"),
        ("/run/r1", "run"),
        ("/run/a;;b", "run"),
    ],
)
def test_the_relays_own_paths(service, path, own):
    assert route(service, path) == Route(own=own)


ORIGINS = ("https://wepp.cloud", "*.example.com")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://wepp.cloud", True),
        ("HTTPS://WEPP.cloud", True),
        ("https://wepp.cloud:8443", False),
        ("http://wepp.cloud", False),
        ("https://wepp.cloud.evil.org", False),
        ("https://evilwepp.cloud", False),
        ("https://a.example.com", True),
        ("http://a.b.example.com:8080", True),
        ("https://example.com", False),
        ("https://evilexample.com", False),
        ("https://example.com.evil.org", False),
        ("https://evil.org/.example.com", False),
        ("null", False),
        ("", False),
        ("https://[::1", False),
    ],
)
def test_origins(origin, allowed):
    assert origin_allowed(ORIGINS, origin) is allowed
    assert origin_allowed((), origin)


def test_no_origin_is_no_browser():
    assert origin_allowed(ORIGINS, None)


def test_an_answer_has_its_length_and_ends_the_connection():
    answer = plain("200 OK", "né", [("A", "b")])
    top, body = answer.split(b"\r\n\r\n")
    assert body == "né".encode()
    assert b"\r\nContent-Length: 3" in top
    assert b"\r\nConnection: close" in top
    assert b"\r\nA: b" in top
    assert plain("200 OK", "né", head=True).endswith(b"\r\n\r\n")
