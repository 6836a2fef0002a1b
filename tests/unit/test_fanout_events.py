"""Event streams in the core: the same bursts, bounds and turns as websockets, beside them on one topic."""

import json
import re

import pytest

from tests.unit.rig import Rig, texts
from tests.unit.test_fanout_bounds import breached

HEAD = b"HTTP/1.1 200 OK\r\n\r\nretry: 7\n\n"


class Both(Rig):
    """Who asks for `/topic?e` gets events."""

    def accept(self, client, head, full):
        path = head.split(b" ")[1][1:]
        topic, _, events = path.partition(b"?")
        self.core.accept(client, HEAD if events else b"HTTP/1.1 101 x\r\n\r\n", 2 if events else 0, events=bool(events))
        self.core.attach(client, topic, b'{"type":"first"}', b'{"type":"ready"}')

    def enter(self, target, *, rcvbuf=0):
        sock = self.connect(rcvbuf=rcvbuf)
        before = len(self.requests)
        sock.sendall(b"GET /" + target + b" HTTP/1.1\r\n\r\n")
        self.until(lambda: len(self.requests) > before)
        self.handles[sock] = self.requests[-1][0]
        return sock


@pytest.fixture
def make_rig():
    made = []

    def make(**values):
        made.append(Both(**values))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def events(data):
    """(name, decoded data) of each event; what is no whole one is left."""
    *blocks, rest = data.split(b"\n\n")
    found = [re.fullmatch(rb"event: (.*)\ndata: (.*)", block) for block in blocks if block and block != b":"]
    return [(each[1].decode(), json.loads(each[2])) for each in found], rest


def told(rig, sock, size=1):
    data = rig.received(sock, size)
    return events(data.removeprefix(HEAD))


def test_both_kinds_of_one_topic_get_the_same_in_order(make_rig):
    rig = make_rig()
    stream, socket, other = rig.enter(b"t?e"), rig.enter(b"t"), rig.enter(b"t?e")
    assert told(rig, stream)[0] == [("first", {"type": "first"}), ("ready", {"type": "ready"})]
    rig.received(socket, 1), rig.received(other, 1)
    said = ["one", "", 'a "b"\n', "–", "x" * 70_000]
    rig.publish(b"t", *(text.encode() for text in said))
    got, rest = told(rig, stream, 70_000)
    assert [data["data"] for _, data in got] == said
    assert {name for name, _ in got} == {"status"}
    assert rest == b""
    assert texts(rig.received(socket, 70_000)) == said
    rig.core.announce_gap(rig.service, b'{"type":"gap"}')
    rig.flush()
    assert told(rig, stream)[0] == [("gap", {"type": "gap"})]
    assert rig.received(socket) == b"", "an old websocket knows no gap"
    assert (rig.stats["told"], rig.stats["untold"]) == (2, 1)
    stream.close()
    rig.until(lambda: rig.stats["connections"] == 2)
    assert rig.stats["streams"] == 1
    assert rig.stats["responses"] == {101: 1, 200: 2}
    rig.publish(b"t", b"after")
    assert told(rig, other, 70_000)[0][-1][1]["data"] == "after"
    assert rig.live_bytes == 0


def test_a_stream_past_its_bound_gets_whole_events_and_why(make_rig):
    rig = make_rig(max_backlog=100_000)
    slow, quick = rig.enter(b"t?e", rcvbuf=4096), rig.enter(b"t?e")
    told(rig, quick)
    for number in range(400):
        rig.publish(b"t", b"%d " % number + b"x" * 20_000)
        assert told(rig, quick, 20_000)[0][0][1]["data"].startswith(f"{number} ")
        if breached(rig):
            break
    assert breached(rig) == {"backlog": 1}
    got, rest = events(rig.ended(slow).removeprefix(HEAD))
    assert rest == b""
    *lines, last = got[2:]
    assert last == ("close", {"type": "close", "code": 1013, "reason": "too slow: messages were waiting"})
    assert [data["data"].split()[0] for _, data in lines] == [str(n) for n in range(len(lines))]
    assert rig.live_bytes == 0


def test_a_stream_of_snapshots_keeps_the_newest(make_rig):
    rig = make_rig(newest_only=True, max_backlog=100_000)
    slow = rig.enter(b"r?e", rcvbuf=4096)
    for number in range(400):
        rig.core.publish(rig.service, b"r", b'{"type":"preflight","n":%d,"x":"%b"}' % (number, b"x" * 20_000))
        rig.flush()
    rig.core.publish(rig.service, b"r", b'{"type":"ready"}', 2)
    rig.flush()
    data = b""
    while b"399" not in data or not data.endswith(b'"ready"}\n\n'):
        data += rig.received(slow, 1)
    numbers = [event["n"] for _, event in events(data.removeprefix(HEAD))[0] if "n" in event]
    assert numbers[-1] == 399
    assert len(numbers) < 400
    assert numbers == sorted(numbers)
    assert breached(rig) == {}


def test_a_dead_stream_is_found_by_what_it_does_not_take(make_rig):
    rig = make_rig(newest_only=True, ping_interval=0.1, pong_timeout=0.2, write_timeout=0.3)
    stalled, idle = rig.enter(b"r?e", rcvbuf=4096), rig.enter(b"q?e")
    told(rig, idle)
    while not rig.stats["backlogs"]:
        rig.core.publish(rig.service, b"r", b'{"type":"preflight","x":"%b"}' % (b"x" * 60_000))
        rig.flush()
    rig.tick_until(lambda: rig.stats["connections"] == 1)
    assert breached(rig) == {"write_timeout": 1}, "and silence is none of a stream's faults"
    assert told(rig, idle)[0] == []
    stalled.close()


def test_more_than_a_request_ends_it(make_rig):
    rig = make_rig()
    stream = rig.enter(b"t?e")
    told(rig, stream)
    stream.sendall(b"GET ")
    got, rest = events(rig.ended(stream))
    assert [(name, data["code"]) for name, data in got] == [("close", 1002)]
    assert rest == b""
    assert not rig.core.ping(rig.handles[stream])
