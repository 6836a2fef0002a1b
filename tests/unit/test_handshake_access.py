"""Who is let in: Origin against the list, and the token of a query."""

import pytest

from relay import handshake, settings
from relay.handshake import Refused, host_of, is_own_origin, judged, origin_allowed, permit, read
from relay.tokens import Keys
from tests.integration.peers import upgrade

SECRET = "s3cr3t-" + 32 * "x"
KEYS = Keys(SECRET)
LISTED = "https://wepp.cloud,http://dev.wepp.cloud:8080,https://[2001:DB8::1]:8443,*.example.com"
ORIGINS = settings.load(("status",), env={"STATUS_ALLOWED_ORIGINS": LISTED}).status.allowed_origins

ALLOWED = (
    "https://wepp.cloud",
    "https://wepp.cloud:443",
    "HTTPS://WEPP.Cloud",
    "http://dev.wepp.cloud:8080",
    "https://[2001:db8::1]:8443",
    "https://a.example.com",
    "http://a.example.com",
    "https://a.b.example.com:8443",
    "https://A.EXAMPLE.COM",
)
REFUSED = (
    "http://wepp.cloud",
    "https://wepp.cloud:80",
    "https://wepp.cloud:8443",
    "https://wepp.cloud.",
    "https://wepp.cloud/",
    "https://wepp.cloud.evil.org",
    "https://evilwepp.cloud",
    "https://sub.wepp.cloud",
    "https://user@wepp.cloud",
    "https://wepp.cloud@evil.org",
    "https://wepp.cloud:443@evil.org",
    "https://wepp.cloud https://evil.org",
    "https://evil.org,https://wepp.cloud",
    "https://wepp.cloud#.evil.org",
    "https://wepp.cloud?",
    "https://wepp.cloud:",
    "https://wepp.cloud:0443",
    "https://wepp.cloud:4430",
    "http://dev.wepp.cloud",
    "https://dev.wepp.cloud:8080",
    "https://[2001:db8::1]",
    "https://example.com",
    "https://.example.com",
    "https://a..example.com",
    "https://a.example.com.",
    "https://evilexample.com",
    "https://example.com.evil.org",
    "https://evil.org/.example.com",
    "https://evil.org#.example.com",
    "https://evil.org\\.example.com",
    "https://user:a.example.com@evil.org",
    "ftp://a.example.com",
    "chrome-extension://a.example.com",
    "file://a.example.com",
    "wss://a.example.com",
    "//a.example.com",
    "a.example.com",
    "null",
    "NULL",
    "",
    "*",
    "https://",
    "https://[::1",
    "https://wepp\x7f.cloud",
)


@pytest.mark.parametrize("origin", ALLOWED)
def test_allowed_origins(origin):
    assert origin_allowed(ORIGINS, origin)


@pytest.mark.row("S4")
@pytest.mark.parametrize("origin", REFUSED)
def test_refused_origins(origin):
    assert not origin_allowed(ORIGINS, origin)
    assert origin_allowed((), origin), "an empty list allows all"


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://wepp.cloud", "wepp.cloud", True),
        ("https://wepp.cloud", "WEPP.cloud:443", True),
        ("http://wepp.cloud", "wepp.cloud:80", True),
        ("http://wepp1:9002", "wepp1:9002", True),
        ("http://[::1]:9002", "[::1]:9002", True),
        ("http://wepp.cloud", "wepp.cloud:443", False),
        ("http://wepp1:9001", "wepp1:9002", False),
        ("https://evilwepp.cloud", "wepp.cloud", False),
        ("https://wepp.cloud", "a.wepp.cloud", False),
        ("null", "null", False),
        ("", "", False),
        (None, "wepp.cloud", False),
        ("https://wepp.cloud", "", False),
        ("https://a@wepp.cloud", "a@wepp.cloud", False),
    ],
)
def test_a_page_of_the_same_host_is_let_in(origin, host, own):
    assert is_own_origin(origin, host) is own


@pytest.mark.parametrize("name", ["Host", "host", "HOST"])
def test_the_host_is_found_whatever_its_name_is_written_like(name):
    assert (
        host_of(f"GET / HTTP/1.1\r\nA: b\r\n{name}:  wepp.cloud:9002 \r\nX-Host: c\r\n\r\n".encode())
        == "wepp.cloud:9002"
    )
    assert host_of(b"GET / HTTP/1.0\r\nX-Host: c\r\n\r\n") == ""


@pytest.mark.parametrize("origin", [*ALLOWED, *REFUSED])
def test_what_is_read_of_a_request_is_judged_alike(origin):
    """Neither the plain reader nor the judge may make an Origin that is allowed of one that is not."""
    data = upgrade("/r1:wepp", f"Origin: {origin}")
    for reader in (read, judged):
        try:
            found = reader(data).origin
        except Refused:
            continue  # with 400, for its characters
        assert origin_allowed(ORIGINS, found) is (origin in ALLOWED)


@pytest.mark.row("S4")
@pytest.mark.parametrize("second", ["https://wepp.cloud", "https://evil.org", ""])
def test_two_origins_are_none(second):
    for lines in (("https://wepp.cloud", second), (second, "https://wepp.cloud")):
        with pytest.raises(Refused) as refused:
            read(upgrade("/r1:wepp", *(f"Origin: {line}" for line in lines)))
        assert refused.value.answer.startswith(b"HTTP/1.1 400 ")


# --- tokens -------------------------------------------------------------------------------------------------


def refusal(query, topic=b"r1:wepp"):
    with pytest.raises(Refused) as refused:
        permit(KEYS, query, topic)
    top, _, body = refused.value.answer.partition(b"\r\n\r\n")
    return int(top.split(b" ")[1]), top, body.decode()


def test_a_token_lets_in_for_as_long_as_it_lasts():
    token = KEYS.sign(["r1"], ["wepp"], 60)
    assert 30 < permit(KEYS, f"v=2&token={token}&x", b"r1:wepp") <= 60
    assert permit(KEYS, f"token={token}", b"r1") > 30


@pytest.mark.parametrize(
    ("runs", "channels", "topic"),
    [
        (["r1"], ["wepp"], b"r2:wepp"),
        (["r1"], ["wepp"], b"r1:soils"),
        (["r1"], [], b"r1:soils"),
        ([], ["*"], b"r1:wepp"),
        (["R1"], ["*"], b"r1"),
        (["r1:wepp"], ["*"], b"r1:wepp"),
        (["r1"], ["*"], b"r11"),
    ],
)
def test_a_token_for_something_else_is_403(runs, channels, topic):
    assert refusal(f"token={KEYS.sign(runs, channels, 60)}", topic)[0] == 403


def test_no_token_is_401_with_its_challenge():
    token = KEYS.sign(["*"], ["*"], 60)
    for query in (
        "",
        "v=2",
        "token=",
        "token",
        f"token=&token={token}",
        "xtoken=" + token,
        f"token={token}&token={token}",
        f"token={token}x",
    ):
        status, top, body = refusal(query)
        assert (status, b'\r\nWWW-Authenticate: Bearer realm="relay"' in top) == (401, True)
        assert body.startswith("A token is needed here, and ")
        assert token not in body


def test_the_query_of_a_request_is_handed_over_as_it_is():
    for reader in (read, judged):
        assert reader(upgrade("/r1:wepp?v=2&token=a%20b?c")).query == "v=2&token=a%20b?c"
        assert reader(upgrade("/r1:wepp")).query == ""


def test_a_refusal_is_never_kept():
    assert b"\r\nCache-Control: no-store\r\n" in handshake.plain("401 Unauthorized", "x")
