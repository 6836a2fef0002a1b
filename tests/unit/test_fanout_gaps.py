"""What clients of protocol version 2 are told, where in the stream it stands, and who is counted."""

import json

import pytest

from tests.unit.rig import ANSWER, Rig, client_frame, resp, server_frames

NOTICE = b'{"gap":"size"}'


@pytest.fixture
def make():
    rigs = []

    def new(**service):
        rig = Rig(decide=lambda client, head, full: by_version(rig, client, head), **service)
        rigs.append(rig)
        return rig

    yield new
    for rig in rigs:
        rig.close()


def by_version(rig, client, head):
    """`/2t` joins topic t as a client of version 2."""
    path = head.split(b" ")[1]
    rig.core.accept(client, ANSWER, int(path[1:2]))
    rig.core.attach(client, path[2:])


def payloads(rig, sock, size=1):
    frames, rest = server_frames(rig.received(sock, size))
    assert not rest
    return [payload for opcode, payload in frames if opcode == 1]


def said(rig, sock):
    """All that has come so far, as the text of messages and as notices."""
    return [json.loads(text).get("data", text) for text in payloads(rig, sock)]


def test_a_gap_stands_between_what_came_before_and_after(make):
    rig = make()
    new, old = rig.join(b"2t"), rig.join(b"0t")
    rig.feed(resp(b"message", b"t", b"before"))
    rig.core.announce_gap(rig.service, b'{"gap":1}')
    rig.feed(resp(b"message", b"t", b"after"))
    rig.flush()
    assert said(rig, new) == ["before", b'{"gap":1}', "after"]
    assert said(rig, old) == ["before", "after"]
    assert (rig.stats["told"], rig.stats["untold"]) == (1, 1)


def test_a_message_too_large_leaves_a_notice_in_its_place(make):
    rig = make(notice=NOTICE, max_published=10)
    new, old = rig.join(b"2t"), rig.join(b"0t")
    rig.publish(b"t", b"a", b"x" * 11, b"b", b"y" * 10)
    assert said(rig, new) == ["a", NOTICE, "b", "y" * 10]
    assert said(rig, old) == ["a", "b", "y" * 10]
    assert (rig.stats["oversize"], rig.stats["told"], rig.stats["untold"]) == (1, 1, 1)


def test_for_old_clients_alone_nothing_is_made(make):
    rig = make(notice=NOTICE, max_published=10)
    rig.join(b"0t")
    before = rig.live_bytes
    rig.feed(resp(b"message", b"t", b"x" * 11))
    rig.core.announce_gap(rig.service, b'{"gap":1}')
    assert not rig.core.publish(rig.service, b"t", b"{}", 2)
    assert rig.live_bytes == before
    assert rig.stats["untold"] == 2


def test_who_has_left_is_not_counted(make):
    rig = make()
    new, _ = rig.join(b"2t"), rig.join(b"0t")
    new.sendall(client_frame(b"", 8))
    rig.until(lambda: rig.stats["connections"] == 1)
    rig.core.announce_gap(rig.service, b'{"gap":1}')
    assert (rig.stats["told"], rig.stats["untold"]) == (0, 1)


def test_every_message_counts_as_having_come_whoever_it_is_for(make):
    rig = make()
    rig.join(b"0t")
    rig.publish(b"t", b"a", b"b")
    rig.publish(b"elsewhere", b"c")
    assert rig.core.arrived(rig.service) == 3


def stalled(rig, sock):
    """Snapshots until one is in progress and one waits; the number of the last."""
    for number in range(1000):
        rig.core.publish(rig.service, b"t", b'{"data":"%d"}' % number + b" " * 60_000)
        rig.flush()
        if rig.stats["replaced"]:
            return str(number)
    raise AssertionError("it never stalled")


def rest(rig, sock, wanted):
    """What a client reads up to `wanted`."""
    data = b""
    while wanted not in data:
        data += rig.received(sock, 1)
    return [json.loads(payload) for _, payload in server_frames(data)[0]]


def test_a_notice_takes_no_snapshot_from_a_laggard(make):
    rig = make(newest_only=True)
    slow = rig.join(b"2t", rcvbuf=16384)
    last = stalled(rig, slow)
    rig.core.announce_gap(rig.service, b'{"gap":1}')
    assert rig.core.publish(rig.service, b"t", b'{"ready":1}', 2)
    rig.flush()
    assert rest(rig, slow, b'{"ready":1}')[-2:] == [{"data": last}, {"ready": 1}], "of notices the newest"


def test_a_snapshot_takes_no_notice_from_a_laggard(make):
    rig = make(newest_only=True)
    slow = rig.join(b"2t", rcvbuf=16384)
    stalled(rig, slow)
    rig.core.publish(rig.service, b"t", b'{"ready":1}', 2)
    rig.core.publish(rig.service, b"t", b'{"data":"newest"}')
    rig.flush()
    assert rest(rig, slow, b"newest")[-2:] == [{"ready": 1}, {"data": "newest"}]


def test_a_laggard_has_the_newest_of_each_kind(make):
    """Snapshots, notices, and what explains snapshots: none takes another one's place."""
    rig = make(newest_only=True)
    slow = rig.join(b"3t", rcvbuf=16384)
    stalled(rig, slow)
    for number in range(3):
        rig.core.publish(rig.service, b"t", b'{"ready":%d}' % number, 2)
        rig.core.publish(rig.service, b"t", b'{"times":%d}' % number, 3)
        rig.core.publish(rig.service, b"t", b'{"data":%d}' % number)
        rig.flush()
    assert rest(rig, slow, b'{"data":2}')[-3:] == [{"ready": 2}, {"times": 2}, {"data": 2}]


def test_each_version_has_what_it_knows(make):
    rig = make(newest_only=True)
    clients = [rig.join(b"%dt" % version) for version in (0, 2, 3)]
    for version in (0, 2, 3):
        rig.core.publish(rig.service, b"t", b'{"of":%d}' % version, version)
    rig.flush()
    for sock, known in zip(clients, ([0], [0, 2], [0, 2, 3]), strict=True):
        assert [frame["of"] for frame in rest(rig, sock, b'{"of":%d}' % known[-1])] == known
