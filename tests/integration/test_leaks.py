"""Clients that come and go in every way there is: what the process held before, it holds afterwards, and no more."""

import re
import socket
import statistics
import struct
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.integration.peers import close, frame, head, upgrade, wait_for

AT_ONCE = 20
TOPICS = 300  # names; all of them in whatever keeps answers, before it is measured
WARM = 3000
KIB = 1024
HALF = frame(1, b"half a message " * 100, final=False)
LINGER = struct.pack("ii", 1, 0)


def own_memory(pid):
    """Bytes of pages that are the process' alone (USS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"Private_\w+: +(\d+) kB", rollup)) * KIB


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def gauges(process, service):
    """Sockets open and topics watched, as its metrics say."""
    text = process.http("status", "/metrics")[2].decode()
    return [
        float(re.search(rf"^{service}2_{name} (\S+)$", text, re.MULTILINE)[1])
        for name in ("connections_active", "topics")
    ]


# How a client comes, and how it goes: what it sends, whether it awaits its 101, what it sends then, and whether a reset
# ends it.
UPGRADED = "an upgrade"
WAYS = [
    (UPGRADED, True, close(1000, b"bye"), False),
    (UPGRADED, True, b"", False),
    (UPGRADED, True, b"", True),
    (UPGRADED, True, HALF + b"\x82\xfe\x02", True),
    (UPGRADED, True, HALF + frame(0, b"z" * 5000)[:2000], False),
    (UPGRADED, True, frame(9, b"?") + frame(1, b"text") + frame(3, b""), False),
    (UPGRADED, False, b"", False),
    (UPGRADED, False, frame(1, b"early"), True),
    (head("/no-such:thing/%00", "Connection: close"), True, b"", False),
    (head("/livez"), True, b"", False),
    (b"GET /half HTTP/1.1\r\nHost:", False, b"", False),
    (b"GET /half HTTP/1.1\r\nHost:", False, b"", True),
    (b"\x16\x03\x01\x02\x00", False, b"", True),
    (b"", False, b"", False),
    (b"", False, b"", True),
]


def addresses(process):
    """Both services in turn; the clients from many addresses, for one has too few ports for 100 000 in a minute."""
    for number, service in enumerate(cycle(["status", "preflight"])):
        yield service, (f"127.0.{number // AT_ONCE % 40}.2", 0), ("127.0.0.1", process.ports[service])


def come(service, source, address, number):
    """A client of a run or channel; itself, and how it is to go."""
    first, *rest = WAYS[number % len(WAYS)]
    if first is UPGRADED:
        first = upgrade(f"/leak{number % TOPICS}" + (":log" if service == "status" else ""))
    sock = socket.socket()
    sock.settimeout(20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(source)
    sock.connect(address)
    sock.sendall(first)
    return sock, rest


def go(sock, awaits, then, reset):
    if awaits:
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 ")
    sock.sendall(then)
    if then.startswith(b"\x88"):  # its close is answered, and the end comes from there
        while sock.recv(1 << 16):
            pass
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    sock.close()


def storm(process, count):
    """So many clients, some at once."""
    where = addresses(process)
    for begin in range(0, count, AT_ONCE):
        clients = [come(*each, begin + i) for i, each in enumerate(islice(where, AT_ONCE))]
        for sock, rest in clients:
            go(sock, *rest)


def settled(process, files):
    """Own memory, once nobody is connected any more and no more descriptors are open than there were."""
    for service in ("status", "preflight"):
        wait_for(lambda service=service: gauges(process, service) == [0, 0], f"nobody on {service}")
    wait_for(lambda: descriptors(process.process.pid) <= files, f"{files} descriptors")
    return own_memory(process.process.pid)


@pytest.mark.parametrize(
    ("count", "most"), [(2000, 256 * KIB), pytest.param(100_000, 1024 * KIB, marks=pytest.mark.long)]
)
def test_nothing_is_left_of_those_who_came_and_went(relay, redis_server, count, most):
    process = relay(env={"REDIS_URL": redis_server.url, "STATUS_METRICS_ENABLED": "true"})
    files = descriptors(process.process.pid)
    storm(process, WARM)
    memory, grown = [settled(process, files)], []
    # What is lost is lost in each storm; what more there was at once, on a machine that stood still, is kept once.
    while not grown or (statistics.median(grown) >= most and len(grown) < 5):
        storm(process, count)
        memory.append(settled(process, files))
        grown.append(memory[-1] - memory[-2])
    print(f"{count} clients a storm: {memory} bytes before and after each; {files} descriptors")
    assert statistics.median(grown) < most
    wait_for(lambda: redis_server.channels() == [], "no channel subscribed to")
