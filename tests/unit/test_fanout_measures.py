"""What the core measures: bursts and how long they take, answers by status, who lags, how late the clock comes."""

import math
import socket
import time

import pytest

from tests.unit.rig import ANSWER, Rig, resp, texts

WAIT = 0.4  # seconds that a read waits; more than this machine stands still by itself


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


def buckets(histogram):
    """{upper bound: how many} of the buckets that are not empty."""
    bounds, counts, _ = histogram
    return {bound: count for bound, count in zip((*bounds, math.inf), counts, strict=True) if count}


def number(histogram):
    return sum(histogram[1])


def test_a_burst_counts_once_however_many_get_it(rig):
    socks = [rig.join(b"a:x") for _ in range(3)]
    rig.publish(b"a:x", b"1", b"2", b"3")
    rig.publish(b"a:x", b"4")
    assert [texts(rig.received(sock)) for sock in socks] == [["1", "2", "3", "4"]] * 3
    assert buckets(rig.stats["burst"]) == {4: 1, 1: 1}
    assert rig.stats["burst"][2] == 4
    assert number(rig.stats["delivery"]) == 2
    assert rig.stats["frames"] == 12


def test_what_joins_have_sealed_apart_counts_as_it_is_sent(rig):
    """Both messages in one send to the first client, and the second one to who came between; the third gets nothing."""
    first = rig.join(b"a:x")
    rig.feed(resp(b"message", b"a:x", b"1"))
    second = rig.join(b"a:x")
    rig.feed(resp(b"message", b"a:x", b"2"))
    third = rig.join(b"a:x")
    rig.flush()
    assert [texts(rig.received(sock)) for sock in (first, second, third)] == [["1", "2"], ["2"], []]
    assert buckets(rig.stats["burst"]) == {2: 1, 1: 1}
    assert number(rig.stats["delivery"]) == 2
    assert 0 < rig.stats["delivery"][2] < 5


def test_a_delivery_takes_from_the_read_to_the_last_client(rig):
    sock = rig.join(b"a:x")
    rig.feed(resp(b"message", b"a:x", b"1"))
    time.sleep(WAIT)
    rig.feed(resp(b"message", b"a:x", b"2"))
    rig.flush()
    assert texts(rig.received(sock)) == ["1", "2"]
    took = rig.stats["delivery"][2]
    assert WAIT <= took < 5, "that of the oldest message"
    assert min(buckets(rig.stats["delivery"])) >= WAIT
    rig.publish(b"a:x", b"3")
    assert rig.stats["delivery"][2] - took < WAIT, "and of no other"


def test_a_message_of_our_own_has_no_read_and_takes_from_its_making(rig):
    rig.join(b"a:x")
    rig.publish(b"a:x", b"1")
    took = rig.stats["delivery"][2]
    time.sleep(WAIT)
    rig.core.publish(rig.service, b"a:x", b"a snapshot")
    rig.core.announce_gap(rig.service, b"for nobody here")
    rig.flush()
    assert number(rig.stats["delivery"]) == 2
    assert rig.stats["delivery"][2] - took < WAIT


def test_a_snapshot_that_replaces_another_has_waited_for_nobody():
    rig = Rig(newest_only=True)
    try:
        sock = rig.join(b"run")
        rig.core.publish(rig.service, b"run", b'{"data":"old"}')
        time.sleep(WAIT)
        rig.core.publish(rig.service, b"run", b'{"data":"new"}')
        rig.flush()
        assert texts(rig.received(sock)) == ["new"]
        assert rig.stats["delivery"][2] < WAIT
    finally:
        rig.close()


def test_a_delivery_in_slices_is_one_and_ends_with_the_last():
    rig = Rig(limit=200, max_backlog=1 << 20)
    try:
        for _ in range(150):
            rig.join(b"a:x")
        rig.feed(resp(b"message", b"a:x", b"x" * 500_000))
        slices = 1
        while rig.core.flush():
            slices += 1
            assert number(rig.stats["delivery"]) == 0
        assert slices > 1, "2 ms are enough for 75 MB"
        assert number(rig.stats["delivery"]) == 1
        assert rig.stats["delivery"][2] > 0.002 * (slices - 1)
    finally:
        rig.close()


def test_the_bytes_are_those_of_the_frames(rig):
    """With the one that comes with the 101, and without heartbeats."""

    def decide(client, head, full):
        rig.core.accept(client, ANSWER, 2)
        rig.core.attach(client, b"a:x", b"a snapshot", b"a notice")

    rig.decide = decide
    sock = rig.join(b"a:x")
    rig.publish(b"a:x", b"x" * 200, b"y")
    got = rig.received(sock, rig.stats["bytes"])
    assert (rig.stats["frames"], rig.stats["bytes"]) == (4, len(got))
    rig.core.ping(rig.handles[sock])
    assert rig.stats["bytes"] == len(got)


def test_answers_by_status(rig):
    rig.join(b"a:x")
    rig.decide = lambda client, head, full: rig.core.refuse(client, b"HTTP/1.1 403 Forbidden\r\n\r\n")
    for data in (b"GET /a:x HTTP/1.1\r\n\r\n", b"GET /a:x HTTP/1.1\r\n\r\n", b"x" * 9000):
        sock = rig.connect()
        sock.sendall(data)
        rig.ended(sock)
    assert rig.stats["responses"] == {101: 1, 403: 2, 431: 1}


def test_an_answer_that_is_none_counts_as_the_500_that_comes_of_it(rig):
    rig.decide = lambda client, head, full: rig.core.refuse(client, b"no")
    sock = rig.connect()
    sock.sendall(b"GET /a:x HTTP/1.1\r\n\r\n")
    assert rig.ended(sock).startswith(b"HTTP/1.1 500 ")
    assert rig.stats["responses"] == {101: 0, 500: 1}
    assert isinstance(rig.errors.pop(), ValueError)


def test_an_answer_without_a_slot_counts_too():
    rig = Rig(limit=1)
    try:
        socks = [rig.connect() for _ in range(18)]
        rig.turn()
        assert rig.ended(socks[-1]).startswith(b"HTTP/1.1 503 ")
        assert rig.stats["responses"] == {101: 0, 503: 1}
    finally:
        rig.close()


def test_who_lags_and_for_how_long(rig):
    quick, slow = rig.join(b"a:x"), rig.join(b"a:x", rcvbuf=4096)
    assert (rig.stats["backlogs"], rig.stats["backlog_bytes"], rig.stats["backlog_seconds"]) == (0, 0, 0)
    other = rig.core.add_service()
    rig.publish(b"a:x", b"x" * 200_000)
    size = len(rig.received(quick, 200_000))
    [(waiting, _, _, _)] = rig.core.slowest(5)
    assert (rig.stats["backlogs"], rig.stats["backlog_bytes"]) == (1, waiting)
    assert rig.core.stats(other)["backlogs"] == 0
    rig.tick_until(lambda: rig.stats["backlog_seconds"] >= 0.2)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    rig.received(slow, size)
    assert (rig.stats["backlogs"], rig.stats["backlog_bytes"], rig.stats["backlog_seconds"]) == (0, 0, 0)


def test_how_late_a_tick_comes(rig):
    rig.core.tick()
    assert number(rig.core.lag()) == 0, "nothing was due before the first"
    time.sleep(0.13)
    rig.core.tick()
    rig.core.tick()
    assert number(rig.core.lag()) == 2
    assert 0.03 <= rig.core.lag()[2] < 5
    assert buckets(rig.core.lag())[0.00005] == 1, "too early is not late"
