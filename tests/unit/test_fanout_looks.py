"""What the core shows of itself, and listeners that end one by one."""

import socket

import pytest

from tests.unit.rig import Rig


@pytest.fixture
def rig():
    rig = Rig(max_backlog=1 << 20)
    yield rig
    rig.close()


def test_the_topics_with_most_clients(rig):
    assert rig.core.largest(rig.service, 3) == []
    for topic, clients in ((b"a:x", 1), (b"b:x", 4), (b"c:x", 2), (b"d:x", 3), (b"e:x", 1)):
        for _ in range(clients):
            rig.join(topic)
    assert rig.core.largest(rig.service, 3) == [(4, 0, b"b:x"), (3, 0, b"d:x"), (2, 0, b"c:x")]
    assert [clients for clients, _, _ in rig.core.largest(rig.service, 9)] == [4, 3, 2, 1, 1]
    assert rig.core.largest(rig.core.add_service(), 9) == []


def test_what_is_not_delivered_yet_is_shown_with_its_topic(rig):
    rig.join(b"a:x")
    rig.feed(b"*3\r\n$7\r\nmessage\r\n$3\r\na:x\r\n$2\r\nhi\r\n")
    [(_, waiting, _)] = rig.core.largest(rig.service, 1)
    assert waiting == len(b'\x81\x1d{"type":"status","data":"hi"}')
    rig.flush()
    assert rig.core.largest(rig.service, 1)[0][1] == 0


def test_the_clients_for_whom_most_waits(rig):
    joined = [rig.join(topic, rcvbuf=4096) for topic in (b"a:x", b"b:x", b"c:x")]
    assert rig.core.slowest(5) == []
    for topic, size in ((b"a:x", 100_000), (b"b:x", 300_000), (b"c:x", 200_000)):
        rig.publish(topic, b"x" * size)
    found = rig.core.slowest(2)
    assert [round(size, -5) for size, *_ in found] == [300_000, 200_000]
    assert {(service, address) for _, _, service, address in found} == {
        (rig.service, bytes(10) + b"\xff\xff" + socket.inet_aton("127.0.0.1"))
    }
    before = found[0][1]
    rig.tick_until(lambda: rig.core.slowest(1)[0][1] > before)
    joined[1].close()
    rig.until(lambda: len(rig.core.slowest(5)) == 2)


def test_listeners_of_one_service_end_alone(rig):
    other = rig.core.add_service()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        rig.core.listen(listener.fileno(), other)
        rig.core.stop_listening(fd=rig.listener.fileno())
        rig.connect()
        with socket.create_connection(listener.getsockname()) as client:
            rig.until(lambda: rig.core.totals()["sockets"] == 1)  # not two: nobody was taken from the first
            client.sendall(b"GET /a:x HTTP/1.1\r\n\r\n")
            rig.until(lambda: rig.requests)
        rig.core.stop_listening()
        with socket.create_connection(listener.getsockname()):
            rig.turn()
            assert rig.core.totals()["sockets"] <= 1
        rig.core.stop_listening()
