"""PROXY headers and the connections of one address, by the core: real sockets, the loopback's many addresses."""

import random
import socket
import struct

import pytest

from tests.unit.rig import ANSWER, Rig

MARK = b"\r\n\r\n\0\r\nQUIT\n"
REQUEST = b"GET /t HTTP/1.1\r\n\r\n"
MAPPED = bytes(10) + b"\xff\xff"


def mapped(text):
    return MAPPED + socket.inet_aton(text)


def six(text):
    return socket.inet_pton(socket.AF_INET6, text)


def binary(command=1, family=1, body=None, *, version=2, protocol=1, extra=b"", length=None):
    """A version 2 header (PROXY protocol, section 2.2)."""
    if body is None:
        ends = struct.pack("!HH", 4711, 9002)
        body = socket.inet_aton("1.2.3.4") + socket.inet_aton("5.6.7.8") + ends
        if family == 2:
            body = six("2001:db8::1") + six("::1") + ends
    body += extra
    length = len(body) if length is None else length
    return MARK + struct.pack("!BBH", version << 4 | command, family << 4 | protocol, length) + body


@pytest.fixture
def make_rig():
    rigs = []

    def make(networks=(("127.0.0.1", 128),), *, most=0, unix=False, **options):
        rig = Rig(**{"introduced": True, **options})
        rig.core.trust([(mapped(text), bits) for text, bits in networks], unix=unix, max_per_address=most)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig):
    return make_rig()


def judged(rig, sock, *parts):
    """The address and the trust that a client has once its request is there."""
    before = len(rig.requests)
    for part in parts:
        sock.sendall(part)
        rig.turn()
    rig.until(lambda: len(rig.requests) > before)
    client, head, _ = rig.requests[-1]
    assert head == REQUEST
    return rig.core.peer(client)


def breaches(rig):
    return rig.stats["breaches"]["proxy_header"]


LINES = {
    "tcp4": (b"PROXY TCP4 1.2.3.4 5.6.7.8 4711 9002\r\n", mapped("1.2.3.4")),
    "tcp6": (b"PROXY TCP6 2001:db8::1 ::1 4711 9002\r\n", six("2001:db8::1")),
    "longest": (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        six("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ),
    "unknown": (b"PROXY UNKNOWN\r\n", mapped("127.0.0.1")),
    "unknown and more": (b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n", mapped("127.0.0.1")),
    "port 0": (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n", mapped("1.2.3.4")),
    "v2 ipv4": (binary(), mapped("1.2.3.4")),
    "v2 ipv6": (binary(family=2), six("2001:db8::1")),
    "v2 udp": (binary(protocol=2), mapped("1.2.3.4")),
    "v2 with extensions": (binary(extra=b"\x04\x00\x03abc"), mapped("1.2.3.4")),
    "v2 longest": (binary(extra=bytes(4096 - 28)), mapped("1.2.3.4")),
    "v2 local": (binary(command=0, family=0, body=b""), mapped("127.0.0.1")),
    "v2 local with addresses": (binary(command=0), mapped("127.0.0.1")),
    "v2 unix": (binary(family=3, body=b"/a".ljust(108, b"\0") + b"/b".ljust(108, b"\0")), mapped("127.0.0.1")),
    "v2 unspecified": (binary(family=0, protocol=0, body=b""), mapped("127.0.0.1")),
}


@pytest.mark.row("F26")
@pytest.mark.parametrize("name", LINES)
def test_at_once_and_cut_at_every_byte(rig, name):
    header, address = LINES[name]
    trusted = False  # nor where it names nobody: what the request says of addresses is not the proxy's word
    assert judged(rig, rig.connect(), header + REQUEST) == (address, trusted)
    assert judged(rig, rig.connect(), header, REQUEST) == (address, trusted)
    cuts = range(1, len(header + REQUEST)) if len(header) < 300 else (1, 12, 15, 16, 17, 28, 4095, 4097)
    for cut in cuts:
        whole = header + REQUEST
        sock = rig.connect()
        assert judged(rig, sock, whole[:cut], whole[cut:]) == (address, trusted), cut
        sock.close()
    assert breaches(rig) == 0


BROKEN = {
    "no header": REQUEST,
    "small letters": b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    "another word": b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
    "unknowns": b"PROXY UNKNOWNS\r\n",
    "nothing": b"PROXY \r\n",
    "no address": b"PROXY TCP4 1.2.3.400 5.6.7.8 1 2\r\n",
    "no second address": b"PROXY TCP4 1.2.3.4 x 1 2\r\n",
    "IPv6 as TCP4": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "IPv4 as TCP6": b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
    "three words": b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    "five words": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
    "two spaces": b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
    "a space at the end": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    "a tab": b"PROXY TCP4\t1.2.3.4 5.6.7.8 1 2\r\n",
    "port": b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
    "long port": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 000002\r\n",
    "port 01": b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
    "negative port": b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
    "NUL": b"PROXY TCP4 1.2.3.4\0 5.6.7.8 1 2\r\n",
    "line feed alone": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n" + REQUEST + b"x" * 107,
    "too long": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "endless": b"PROXY UNKNOWN " + b"x" * 4000,
    "a long word": b"PROXY TCP4 " + b"1" * 60 + b" 5.6.7.8 1 2\r\n",
    "another mark": b"\r\n\r\n\0\r\nQUIT\r" + binary()[12:],
    "v2 version 1": binary(version=1),
    "v2 version 3": binary(version=3),
    "v2 command": binary(command=2),
    "v2 family": binary(family=4),
    "v2 protocol": binary(protocol=3),
    "v2 ipv4 short": binary(body=bytes(11)),
    "v2 ipv6 short": binary(family=2, body=bytes(35)),
    "v2 longer than any": binary(extra=bytes(4096 - 27)),
    "v2 length of 65535": binary(length=65535),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_header_is_400_and_counted(rig, name):
    sock = rig.connect()
    sock.sendall(BROKEN[name])
    answer = rig.ended(sock)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"RELAY_PROXY_PROTOCOL" in answer
    assert not rig.requests
    assert breaches(rig) == 1


def test_from_others_it_is_no_request_and_theirs_needs_none(rig):
    assert judged(rig, rig.connect(source="127.0.0.2"), REQUEST) == (mapped("127.0.0.2"), False)
    sock = rig.connect(source="127.0.0.2")
    sock.sendall(LINES["tcp4"][0] + REQUEST)
    rig.until(lambda: len(rig.requests) == 2)
    assert rig.requests[-1][1].startswith(b"PROXY TCP4 "), "no header to be believed, but a line that is no request"
    assert rig.core.peer(rig.requests[-1][0]) == (mapped("127.0.0.2"), False)


def test_one_header_alone(rig):
    sock = rig.connect()
    sock.sendall(LINES["tcp4"][0] * 2 + REQUEST)
    rig.until(lambda: rig.requests)
    assert rig.requests[-1][1].startswith(b"PROXY "), "the second is the client's own"
    assert rig.core.peer(rig.requests[-1][0]) == (mapped("1.2.3.4"), False)


def test_a_proxy_behind_a_proxy_is_trusted(make_rig):
    rig = make_rig([("127.0.0.1", 128), ("1.2.0.0", 112)])
    assert judged(rig, rig.connect(), LINES["tcp4"][0] + REQUEST) == (mapped("1.2.3.4"), True)


def test_without_introductions_the_address_of_a_proxy_is_its_own(make_rig):
    rig = make_rig(introduced=False)
    assert judged(rig, rig.connect(), REQUEST) == (mapped("127.0.0.1"), True)
    client = rig.requests[-1][0]
    rig.core.forwarded(client, mapped("9.9.9.9"))
    assert rig.core.peer(client)[0] == mapped("9.9.9.9")


def test_a_unix_socket(make_rig):
    rig = make_rig([], unix=True, family=socket.AF_UNIX)
    assert judged(rig, rig.connect(), LINES["tcp4"][0] + REQUEST) == (mapped("1.2.3.4"), False)
    rig = make_rig([], family=socket.AF_UNIX)
    assert judged(rig, rig.connect(), REQUEST) == (bytes(16), False)


def test_a_header_that_does_not_end_is_a_head_too_slow(make_rig):
    rig = make_rig(head_timeout=0.2)
    sock = rig.connect()
    sock.sendall(b"PROXY TCP4 1.2.3.4")
    rig.tick_until(lambda: rig.stats["breaches"]["head_timeout"])
    assert rig.ended(sock).startswith(b"HTTP/1.1 408 ")


def test_mutants(rig):
    """Whatever comes: an answer or a request, and no memory kept."""
    chance = random.Random(5)
    rig.decide = lambda client, head, full: rig.core.refuse(client, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    for _ in range(2000):
        data = bytearray(chance.choice(list(LINES.values()))[0] + REQUEST)
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        cut = chance.randrange(len(data))
        sock = rig.connect()
        sock.sendall(data[:cut])
        rig.turn()
        sock.sendall(data[cut:])
        rig.turn()
        sock.close()
        rig.clients.remove(sock)
    rig.until(lambda: rig.core.totals()["sockets"] == 0)
    assert rig.core.totals()["inbound_bytes"] == 0
    assert breaches(rig) > 100
    assert rig.requests


# ---- how many of one address ----


def charged(rig):
    """A rig's judge that lets in whom the bound allows."""

    def decide(client, head, full):
        if not rig.core.charge(client):
            rig.core.refuse(client, b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
            return
        assert rig.core.charge(client), "one client counts once"
        rig.core.accept(client, ANSWER)
        rig.core.attach(client, b"t")

    rig.decide = decide
    return rig


def arrival(rig, header=b"", source=None):
    sock = rig.connect(source=source)
    sock.sendall(header + REQUEST)
    rig.turn()
    return sock, sock.recv(12)


def test_the_bound_counts_those_who_are_there(make_rig):
    rig = charged(make_rig([], most=2))
    first, answer = arrival(rig)
    assert answer == b"HTTP/1.1 101"
    assert arrival(rig)[1] == b"HTTP/1.1 101"
    refused = arrival(rig)
    assert refused[1] == b"HTTP/1.1 503"
    assert arrival(rig, source="127.0.0.2")[1] == b"HTTP/1.1 101", "another address"
    assert rig.stats["breaches"]["per_address"] == 1
    first.close()
    rig.until(lambda: rig.stats["connections"] == 2)
    assert arrival(rig)[1] == b"HTTP/1.1 101"
    assert arrival(rig)[1] == b"HTTP/1.1 503"


def test_it_counts_the_address_that_a_proxy_names(make_rig):
    rig = charged(make_rig(most=1))
    names = ("TCP4 1.1.1.1 2.2.2.2", "TCP4 1.1.1.2 2.2.2.2", "TCP6 2001:db8::1 ::1", "TCP6 2001:db8:0:1::1 ::1")
    for name in names:
        assert arrival(rig, f"PROXY {name} 1 2\r\n".encode())[1] == b"HTTP/1.1 101"
    for name in (*names[:2], "TCP6 2001:db8::2 ::1", "TCP6 2001:db8::ffff:1 ::1"):
        assert arrival(rig, f"PROXY {name} 1 2\r\n".encode())[1] == b"HTTP/1.1 503", "IPv6: of the same /64"


def test_those_without_an_address_are_not_bound(make_rig):
    rig = charged(make_rig([], most=1, family=socket.AF_UNIX))
    for _ in range(3):
        assert arrival(rig)[1] == b"HTTP/1.1 101"


def test_an_address_is_not_changed_once_it_counts(make_rig):
    rig = charged(make_rig([], most=1, introduced=False))
    arrival(rig)
    client = rig.requests[-1][0]
    rig.core.forwarded(client, mapped("9.9.9.9"))
    assert rig.core.peer(client)[0] == mapped("127.0.0.1")


def test_clients_that_are_gone_have_no_peer(rig):
    assert rig.core.peer(12345) is None
    rig.core.forwarded(12345, mapped("1.2.3.4"))
    assert rig.core.charge(12345)
    with pytest.raises(ValueError, match="is no address"):
        rig.core.forwarded(12345, b"1.2.3.4")
    with pytest.raises(ValueError, match="is no network"):
        rig.core.trust([(b"\0" * 16, 129)])
