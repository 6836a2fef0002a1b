"""Topics, bursts, slow clients, heads and time: what the core does with many clients and bad ones."""

import contextlib
import itertools
import json
import socket
import struct
import time

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.rig import ANSWER, HEARTBEAT, Rig, client_frame, close_code, ready, resp, server_frames, texts

BOUND = 262144


@pytest.fixture
def make_rig():
    rigs = []

    def make(**options):
        rigs.append(Rig(**options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(make_rig):
    return make_rig()


# ---- who gets what ----


def test_a_burst_is_one_write_for_each_client_of_the_topic_alone(rig):
    a, b, other = rig.join(b"t"), rig.join(b"t"), rig.join(b"u")
    rig.publish(b"t", b"1", b"2", b"3")
    assert texts(rig.received(a, 90)) == texts(rig.received(b, 90)) == ["1", "2", "3"]
    assert rig.received(other) == b""
    assert rig.stats["frames"] == 6


def test_a_joiner_gets_nothing_that_was_published_before(rig):
    old = rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"before"))
    new = rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"after"))
    rig.flush()
    assert texts(rig.received(old, 60)) == ["before", "after"]
    assert texts(rig.received(new, 30)) == ["after"]


def test_attach_sends_the_answer_and_the_first_text_in_one(make_rig):
    parked = []
    rig = make_rig(decide=lambda client, head, full: parked.append(client))
    rig.decide = lambda client, head, full: (rig.core.accept(client, ANSWER), parked.append(client))
    sock = rig.connect()
    sock.sendall(b"GET /t HTTP/1.1\r\n\r\n")
    rig.until(lambda: parked)
    assert rig.received(sock) == b"", "parked: nothing is said yet"
    assert rig.core.attach(parked[0], b"t", b"hello")
    assert rig.received(sock) == ANSWER + b"\x81\x05hello"
    assert not rig.core.attach(parked[0], b"t"), "attached already"


def test_frames_for_newer_clients_pass_older_ones_by(make_rig):
    rig = make_rig()
    rig.decide = lambda client, head, full: (
        rig.core.accept(client, ANSWER, version=int(head.split(b"v=")[1][:1])),
        rig.core.attach(client, b"t"),
    )
    old, new = rig.join(b"t?v=0"), rig.join(b"t?v=2")
    rig.feed(resp(b"message", b"t", b"1"))
    rig.core.publish(rig.service, b"t", b'{"data":"gap"}', 2)
    rig.feed(resp(b"message", b"t", b"2"))
    rig.flush()
    assert texts(rig.received(old, 60)) == ["1", "2"]
    assert texts(rig.received(new, 70)) == ["1", "gap", "2"]


def test_publish_to_a_topic_without_clients_says_so(rig):
    assert not rig.core.publish(rig.service, b"nobody", b"x")
    assert rig.feed(resp(b"message", b"nobody", b"x")) == [[b"message", b"nobody", b"x"]]


def test_the_last_to_leave_makes_a_topic_idle_once(rig):
    a, b = rig.join(b"t"), rig.join(b"t")
    a.close()
    rig.until(lambda: rig.stats["connections"] == 1)
    assert rig.idle == []
    b.close()
    rig.until(lambda: rig.stats["connections"] == 0)
    assert rig.idle == [b"t"]
    assert not rig.core.watched(rig.service, b"t")
    assert rig.stats["topics"] == 0


def test_close_topic_closes_its_clients_alone(rig):
    a, b, other = rig.join(b"t"), rig.join(b"t"), rig.join(b"u")
    assert rig.core.close_topic(rig.service, b"t", 1008, b"no") == 2
    assert [close_code(rig.received(s, 4)) for s in (a, b)] == [1008, 1008]
    assert rig.received(other) == b""


def test_what_waits_goes_out_ahead_of_a_close(rig):
    first = rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"1"))
    second = rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"2") + resp(b"message", b"t", b"3"))
    rig.core.close(rig.handles[first], 1000)
    rig.core.close_some(1, 1012)
    for sock, wanted in ((first, ["1", "2", "3"]), (second, ["2", "3"])):
        frames, _ = server_frames(rig.received(sock, 60))
        assert [json.loads(payload)["data"] for _, payload in frames[:-1]] == wanted
        assert frames[-1][0] == 8
    rig.flush()
    assert rig.live_bytes == 0


def test_a_burst_that_has_grown_is_pressing_until_it_is_flushed(rig):
    rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"x" * 130000))
    assert not rig.core.pressing
    rig.feed(resp(b"message", b"t", b"x" * 6000))
    assert rig.core.pressing
    rig.flush()
    assert not rig.core.pressing


def test_a_join_hides_nothing_that_waits(rig):
    """Each join seals the open burst; 600 clients with a join every 5 ms took 9 MB every 2 s, and no end."""
    rig.join(b"t")
    for _ in range(3):
        rig.feed(resp(b"message", b"t", b"x" * 50000))
        rig.join(b"t")
    assert rig.core.pressing
    rig.flush()
    assert not rig.core.pressing


def test_frames_above_the_bound_press_too(rig):
    rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"x" * 300_000))
    assert rig.core.pressing
    rig.flush()
    assert not rig.core.bulky


def pressed(make_rig):
    """A rig whose backlog presses, the client's socket, and the bytes sent."""
    for _ in range(9):  # where the machine stood still the backlog is old, and presses no more
        rig, sent, began = make_rig(), 0, time.monotonic()
        sock = rig.join(b"t", rcvbuf=16384)
        while not rig.core.pressing and not rig.stats["closes"]:
            rig.publish(b"t", b"x" * 16000)
            sent += 16000
        if time.monotonic() - began < 0.1:
            break
    assert rig.core.pressing, "before it is closed"
    return rig, sock, sent


def test_a_young_backlog_that_is_half_full_presses_until_it_is_taken(make_rig):
    rig, sock, sent = pressed(make_rig)
    while rig.core.pressing:
        rig.received(sock, 1)
    data = rig.received(sock, 1)
    assert rig.stats["closes"] == {}
    assert sent > BOUND // 2
    assert data


def test_a_young_backlog_presses_for_a_tenth_of_a_second_only(make_rig):
    rig, _, _ = pressed(make_rig)
    end = time.monotonic() + 10.0
    while rig.core.pressing:
        assert time.monotonic() < end
    assert rig.stats["closes"] == {}


def test_an_old_backlog_does_not_press(rig):
    rig.join(b"t", rcvbuf=4096)
    rig.publish(b"t", *[b"x" * 16000] * 7)  # more than the socket takes, less than presses
    now = time.monotonic()
    rig.tick_until(lambda: time.monotonic() > now + 0.35)
    while not rig.stats["closes"]:
        rig.publish(b"t", b"x" * 16000)
        assert not rig.core.pressing


def test_a_frame_above_the_bound_that_waits_for_a_young_backlog_presses(make_rig):
    for _ in range(9):
        rig = make_rig()
        rig.join(b"t", rcvbuf=16384)
        began = time.monotonic()
        rig.publish(b"t", b"a" * 900_000)
        assert not rig.core.pressing, "in progress"
        rig.publish(b"t", b"b" * 900_000)
        presses = rig.core.pressing
        if time.monotonic() - began < 0.1:  # where the machine stood still the backlog is old
            break
    assert presses, "one more would end it"


def test_a_topic_with_far_more_than_can_be_delivered_is_given_up(rig):
    live = rig.live_bytes
    socks = [rig.join(b"t"), rig.join(b"t")]
    other = rig.join(b"u")
    fed = 0
    while not rig.stats["closes"]:
        rig.feed(resp(b"message", b"t", b"x" * 100_000))
        fed += 1
        assert fed < 100
    assert fed * 100_000 > 16 * BOUND
    rig.flush()
    assert rig.stats["closes"] == {1013: 2}
    assert rig.live_bytes <= live
    assert [close_code(rig.ended(sock)) for sock in socks] == [1013, 1013]
    rig.publish(b"u", b"fine")
    assert texts(rig.received(other, 10)) == ["fine"]
    again = rig.join(b"t")
    rig.publish(b"t", b"anew")
    assert texts(rig.received(again, 10)) == ["anew"]


def test_one_message_is_never_too_much_for_a_topic(make_rig):
    rig = make_rig(max_published=8_000_000)
    sock = rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"x" * 7_000_000))
    rig.flush()
    assert texts(rig.received(sock, 7_000_000))[0] == "x" * 7_000_000


def test_handles_of_the_gone_do_nothing(rig):
    sock = rig.join(b"t")
    handle = rig.handles[sock]
    sock.close()
    rig.until(lambda: rig.core.totals()["sockets"] == 0)
    new = rig.join(b"t")
    assert rig.handles[new] != handle, "the slot is used again under another generation"
    assert not rig.core.close(handle, 1000)
    assert not rig.core.ping(handle)
    assert rig.core.address(handle) is None
    assert rig.core.address(rig.handles[new]) == bytes(10) + b"\xff\xff\x7f\x00\x00\x01"
    assert not rig.core.ping(1 << 63)


# ---- a delivery that is interrupted ----


@pytest.fixture
def crowd(make_rig):
    """So many clients of one topic that one slice of 2 ms cannot serve them."""
    rig = make_rig(limit=3000)
    return rig, [rig.join(b"t") for _ in range(1500)]


def test_the_loop_is_told_while_something_is_left(crowd):
    rig, clients = crowd
    rest = rig.core
    rig.turn()
    assert not ready(0, rest)
    rig.feed(resp(b"message", b"t", b"x"))
    while rig.core.flush():
        assert rig.core.left
        assert ready(0, rest)
    assert not rig.core.left
    assert not ready(0, rest)
    assert texts(rig.received(clients[-1], 30)) == ["x"]


def test_joiners_and_leavers_during_a_delivery(crowd):
    rig, clients = crowd
    rig.feed(resp(b"message", b"t", b"first"))
    assert rig.core.flush(), "1500 sends should take more than one slice"
    joiner = rig.join(b"t")
    leaver, served = clients[-1], clients[0]
    leaver.close()
    served.close()
    rig.until(lambda: rig.stats["connections"] == 1499)
    rig.feed(resp(b"message", b"t", b"second"))
    rig.flush()
    for sock in clients[1:-1]:
        assert texts(rig.received(sock, 60)) == ["first", "second"]
    assert texts(rig.received(joiner, 30)) == ["second"]
    rig.publish(b"t", b"third")
    assert texts(rig.received(joiner, 30)) == ["third"]


def test_another_topic_is_served_between_the_slices(crowd):
    rig, _ = crowd
    other = rig.join(b"u")
    rig.feed(resp(b"message", b"t", b"x"))
    rig.feed(resp(b"message", b"u", b"y"))
    assert rig.core.flush()
    assert rig.core.flush(), "still not done with the crowd"
    assert texts(rig.received(other, 20)) == ["y"]
    rig.flush()


def test_a_close_during_a_delivery_follows_on_what_is_left_of_it(crowd):
    rig, clients = crowd
    rig.feed(resp(b"message", b"t", b"first"))
    assert rig.core.flush()
    rig.feed(resp(b"message", b"t", b"second"))
    served, last = clients[0], clients[-1]
    for sock in (served, last):
        assert rig.core.close(rig.handles[sock], 1012)
    rig.flush()
    for sock in (served, last):
        frames, _ = server_frames(rig.received(sock, 71))
        assert [opcode for opcode, _ in frames] == [1, 1, 8]
        assert [json.loads(payload)["data"] for _, payload in frames[:2]] == ["first", "second"]
    assert texts(rig.received(clients[700], 67)) == ["first", "second"]


def test_everybody_leaving_during_a_delivery(crowd):
    rig, clients = crowd
    rig.feed(resp(b"message", b"t", b"x"))
    assert rig.core.flush()
    for sock in clients:
        sock.close()
    rig.until(lambda: rig.core.totals()["sockets"] == 0)
    rig.flush()
    assert rig.idle == [b"t"]
    assert rig.live_bytes == 0
    assert texts(b"".join(rig.received(rig.join(b"t")) for _ in range(2))) == []


def test_a_callback_that_flushes_waits_for_the_end_of_the_turn(rig):
    a, b = rig.join(b"t"), rig.join(b"t")
    answers = []

    def on_request(client, head, full):
        rig.core.close_topic(rig.service, b"t", 1008)
        rig.core.publish(rig.service, b"t", b"x")
        answers.append(rig.core.flush())
        for forbidden in (rig.core.poll, rig.core.tick):
            with pytest.raises(RuntimeError, match="by a callback"):
                forbidden()
        rig.accept(client, head, full)

    rig.decide = on_request
    c = rig.join(b"t")
    assert answers == [True], "something is left"
    assert not rig.core.left, "and the end of the same poll went on with it"
    assert [close_code(rig.ended(sock)) for sock in (a, b)] == [1008, 1008]
    rig.publish(b"t", b"y")
    assert texts(rig.received(c, 10)) == ["y"]


def test_joins_between_messages_leave_everyone_what_is_theirs(crowd):
    """What they sealed apart goes out as one to those whom all of it is for."""
    rig, clients = crowd
    rig.feed(resp(b"message", b"t", b"first"))
    assert rig.core.flush(), "1500 sends should take more than one slice"
    late = []
    for number in range(20):
        late.append(rig.join(b"t"))
        rig.feed(resp(b"message", b"t", b"%d" % number))
        if number == 10:
            clients.pop().close()
            late[3].close()
    large = b"y" * 70_000
    rig.feed(resp(b"message", b"t", large))
    late.append(rig.join(b"t"))
    rig.feed(resp(b"message", b"t", b"last"))
    rig.flush()
    rest = [*map(str, range(20)), large.decode(), "last"]
    for sock in (clients[0], clients[700], clients[-1]):
        assert texts(rig.received(sock, 70_000)) == ["first", *rest]
    for number, sock in enumerate(late):
        if number != 3:
            assert texts(rig.received(sock, 1)) == rest[number if number < 20 else 21 :]
    assert rig.live_bytes == 0
    alone = rig.stats["burst"][1][0]
    assert alone < 20, "each of the 22 messages was a send of its own"


def test_a_client_that_leaves_amid_merged_bursts_is_settled_first(crowd):
    rig, clients = crowd
    rig.feed(resp(b"message", b"t", b"0"))
    assert rig.core.flush()
    for number in range(1, 6):
        rig.join(b"t")
        rig.feed(resp(b"message", b"t", b"%d" % number))
    rig.core.flush()
    rig.core.close(rig.handles[clients[-1]], 1001)
    data = rig.ended(clients[-1])
    assert close_code(data) == 1001
    assert [json.loads(text)["data"] for opcode, text in server_frames(data)[0] if opcode == 1] == list("012345")
    rig.flush()


# ---- those who do not read ----


def fill(rig, topic, message, until):
    for _ in range(4000):
        if until():
            return
        rig.publish(topic, message)
    raise AssertionError("it never came to that")


def test_a_client_that_never_reads_is_closed_at_its_bound_and_others_lose_nothing(rig):
    slow, good = rig.join(b"t", rcvbuf=16384), rig.join(b"t")
    got, sent = [], 0
    while rig.stats["closes"] == {}:
        assert sent < 2000
        rig.publish(b"t", b"%06d " % sent + b"x" * 4000)
        sent += 1
        got += [text[:6] for text in texts(rig.received(good, 4000))]
    assert got == [f"{i:06d}" for i in range(sent)]
    assert rig.stats["closes"] == {1013: 1}
    assert sent * 4000 > BOUND, "not before its bound"
    assert rig.live_bytes < 8192, "what it will not get is not kept"
    data = rig.ended(slow)
    frames, rest = server_frames(data)
    assert not rest, "the frame in progress goes out whole"
    assert struct.unpack("!H", frames[-1][1][:2])[0] == 1013
    numbers = [int(json.loads(payload)["data"][:6]) for _, payload in frames[:-1]]
    assert numbers == list(range(len(numbers))), "no hole before the close"


def test_a_client_that_reads_again_in_time_misses_nothing(rig):
    slow = rig.join(b"t", rcvbuf=16384)
    for i in range(40):
        rig.publish(b"t", b"%06d " % i + b"x" * 4000)
    assert rig.live_bytes > 0
    data = b""
    while len(data) < 40 * (4007 + ENVELOPE):
        data += rig.received(slow, 1)
    assert [t[:6] for t in texts(data)] == [f"{i:06d}" for i in range(40)]
    assert rig.live_bytes == 0
    assert rig.stats["closes"] == {}


ENVELOPE = len(b'{"type":"status","data":""}') + 4


def test_one_frame_above_the_bound_may_wait_a_second_one_may_not(rig):
    slow = rig.join(b"t", rcvbuf=16384)
    rig.publish(b"t", b"a" * 900_000)
    assert rig.stats["closes"] == {}, "in progress"
    rig.publish(b"t", b"b" * 900_000)
    assert rig.stats["closes"] == {}, "the one that may wait"
    rig.publish(b"t", b"c" * 900_000)
    assert rig.stats["closes"] == {1013: 1}
    frames, _ = server_frames(rig.ended(slow))
    assert [opcode for opcode, _ in frames] == [1, 8]
    assert json.loads(frames[0][1])["data"] == "a" * 900_000


def test_bytes_that_nobody_takes_for_too_long_close(make_rig):
    rig = make_rig(write_timeout=0.2)
    slow = rig.join(b"t", rcvbuf=16384)
    for _ in range(20):
        rig.publish(b"t", b"x" * 4000)
    rig.tick_until(lambda: rig.stats["closes"] == {1013: 1})
    assert close_code(rig.ended(slow)) == 1013


def test_snapshots_a_laggard_gets_the_one_in_progress_and_the_newest(make_rig):
    rig = make_rig(newest_only=True)
    slow = rig.join(b"t", rcvbuf=16384)
    fill(rig, b"t", b"old" + b"x" * 60_000, lambda: rig.live_bytes > 0)
    for i in range(100):
        rig.publish(b"t", b"%03d" % i + b"y" * 60_000)
    assert rig.live_bytes < 4 * 61_000, "one in progress, one waiting"
    data = b""
    while not data.count(b'"099'):
        data += rig.received(slow, 1)
    data += rig.received(slow)
    while server_frames(data)[1]:
        data += rig.received(slow, 1)
    assert texts(data)[-1][:3] == "099"
    assert len(texts(data)) < 50
    assert rig.stats["closes"] == {}
    assert rig.stats["replaced"] > 50


def test_snapshots_of_one_burst_the_newest_alone_goes_out(make_rig):
    rig = make_rig(newest_only=True)
    sock = rig.join(b"t")
    for i in range(3):
        rig.core.publish(rig.service, b"t", b'{"data":"%d"}' % i)
    rig.flush()
    assert texts(rig.received(sock, 10)) == ["2"]


def test_the_process_bound_closes_those_who_owe_most(make_rig):
    rig = make_rig(max_live=600_000)
    good = rig.join(b"a")
    slow = [rig.join(b"b%d" % i, rcvbuf=16384) for i in range(8)]
    rounds = 0
    while not rig.stats["closes"]:
        assert rounds < 200
        for i in range(8):
            rig.publish(b"b%d" % i, b"x" * (8000 + 1000 * i))
        rounds += 1
        assert rig.live_bytes <= 700_000
    assert set(rig.stats["closes"]) == {1013}
    assert close_code(rig.ended(slow[7])) == 1013, "the one that owed most"
    rig.publish(b"a", b"fine")
    assert texts(rig.received(good, 10)) == ["fine"]


def test_the_process_bound_closes_no_more_than_it_takes(make_rig):
    """A frame in progress kept the whole burst that holds it alive: 39 of 39 laggards were closed for nothing."""
    rig = make_rig(max_live=3_000_000, max_backlog=1_000_000)
    small = [rig.join(b"s%d" % i, rcvbuf=4096) for i in range(10)]
    for i in range(len(small)):
        while rig.live_bytes < 10_000 * (i + 1):
            rig.publish(b"s%d" % i, b"y" * 8000)
    large = [rig.join(b"b%d" % i, rcvbuf=4096) for i in range(10)]
    for i in range(len(large)):
        if rig.stats["closes"]:
            break
        rig.feed(b"".join(resp(b"message", b"b%d" % i, b"z" * 2000) for _ in range(200)))  # one burst of 400 KB
        rig.flush()
    assert rig.stats["closes"] == {1013: 1}
    assert rig.live_bytes <= 3_000_000


def test_the_process_bound_counts_what_is_not_delivered(make_rig):
    rig = make_rig(max_live=1_000_000)
    good = rig.join(b"a")
    rig.join(b"t")
    rig.feed(resp(b"message", b"t", b"x" * 60_000) * 20)
    rig.core.poll()
    assert rig.stats["closes"] == {1013: 1}
    assert rig.live_bytes == 0
    rig.publish(b"a", b"fine")
    assert texts(rig.received(good, 10)) == ["fine"]


def test_the_process_bound_passes_the_dead_by(make_rig):
    """It went round for ever once: the one that owed most was dead already, and could not be closed any more."""
    rig = make_rig(max_live=300_000)
    slow = rig.join(b"t", rcvbuf=16384)
    rig.publish(b"t", b"x" * 200_000)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    slow.close()
    rig.feed(resp(b"message", b"t", b"y" * 200_000))
    assert rig.live_bytes > 300_000
    rig.until(lambda: rig.core.totals()["sockets"] == 0)


def test_a_client_that_is_reset_during_the_fan_out_is_the_only_one_to_go(rig):
    a, b = rig.join(b"t"), rig.join(b"t")
    a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    a.close()
    rig.publish(b"t", b"x")
    rig.publish(b"t", b"y")
    assert texts(rig.received(b, 60)) == ["x", "y"]
    rig.until(lambda: rig.stats["connections"] == 1)


# ---- heads and limits ----


def test_a_head_in_pieces(rig):
    sock = rig.connect()
    for byte in b"GET /t HTTP/1.1\r\nA: b\r\n\r\n":
        assert not rig.requests
        sock.sendall(bytes([byte]))
        rig.turn()
    rig.until(lambda: rig.requests)
    assert rig.requests[0][1] == b"GET /t HTTP/1.1\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("head", [b"GET /" + b"x" * 9000, b"GET /" + b"x" * 8185 + b"\r\n\r\n"])
def test_a_head_above_8_kib_is_refused(rig, head):
    sock = rig.connect()
    sock.sendall(head)
    assert rig.ended(sock).startswith(b"HTTP/1.1 431 ")
    assert not rig.requests


def test_a_head_of_8_kib_is_not(rig):
    sock = rig.connect()
    head = b"GET /" + b"x" * (8192 - 9) + b"\r\n\r\n"
    sock.sendall(head)
    rig.until(lambda: rig.requests)
    assert rig.requests[0][1] == head


def test_the_oldest_of_too_many_unfinished_heads_gives_way(make_rig):
    rig = make_rig(limit=2000)
    socks = [rig.connect() for _ in range(1025)]
    for count, sock in enumerate(socks[:1024], 1):
        sock.sendall(b"GET")
        rig.until(lambda count=count: rig.core.totals()["heads"] == count)
    late = rig.join(b"t")
    socks[1024].sendall(b"GET")
    assert rig.ended(socks[0]) == b""
    rig.publish(b"t", b"x")
    assert texts(rig.received(late, 10)) == ["x"]
    assert rig.core.totals()["heads"] == 1024


def test_a_client_left_undecided_gets_500_and_the_error_is_told(make_rig):
    def fail(client, head, full):
        raise RuntimeError("boom")

    rig = make_rig(decide=fail)
    sock = rig.connect()
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert rig.ended(sock).startswith(b"HTTP/1.1 500 ")
    assert [str(error) for error in rig.errors] == ["boom"]
    rig.errors.clear()


def test_above_the_limit_requests_are_shown_as_such_and_above_the_reserve_503(make_rig):
    rig = make_rig(limit=2)
    socks = [rig.join(b"t") for _ in range(18)]
    assert [full for _, _, full in rig.requests] == [False] * 2 + [True] * 16
    late = rig.connect()
    assert rig.ended(late).startswith(b"HTTP/1.1 503 ")
    socks[0].close()
    rig.until(lambda: rig.core.totals()["sockets"] == 17)
    rig.join(b"t")


def test_the_silent_make_way_where_there_is_no_room(make_rig):
    """As many as there is room for, and the reserve, kept health checks out for 5 s each time they came."""
    rig = make_rig(limit=2)
    silent = [rig.connect() for _ in range(18)]
    rig.until(lambda: rig.core.totals()["sockets"] == 18)
    assert rig.ended(rig.connect()).startswith(b"HTTP/1.1 503 "), "they have come just now, as browsers do"
    now = time.monotonic()
    rig.tick_until(lambda: time.monotonic() > now + 0.35)
    rig.ended(rig.connect())
    for _ in range(10):
        rig.join(b"t").close()
    assert rig.ended(silent[0]) == b""
    assert rig.ended(silent[1]) == b"" or rig.core.totals()["sockets"] >= 16


def test_who_comes_at_once_does_not_crowd_out_who_there_is_room_for(make_rig):
    rig = make_rig(limit=2)
    socks = [rig.connect() for _ in range(5)]
    for sock in socks:
        sock.sendall(b"GET /t HTTP/1.1\r\n\r\n")
    rig.until(lambda: len(rig.requests) == 5)
    assert sorted(full for _, _, full in rig.requests) == [False] * 2 + [True] * 3


def test_above_the_limit_who_is_refused_does_not_linger(make_rig):
    rig = make_rig(limit=2)
    rig.decide = lambda client, head, full: (
        rig.core.refuse(client, b"HTTP/1.1 503 \r\n\r\n") if full else rig.accept(client, head, full)
    )
    for _ in range(2):
        rig.join(b"t")
    late = rig.connect()
    late.sendall(b"GET /t HTTP/1.1\r\n\r\n")
    assert rig.ended(late).startswith(b"HTTP/1.1 503 ")
    assert rig.core.totals()["sockets"] == 2


def test_refuse_answers_and_ends(make_rig):
    rig = make_rig()
    rig.decide = lambda client, head, full: rig.core.refuse(client, b"HTTP/1.1 404 No\r\n\r\n" + b"x" * 100_000)
    sock = rig.connect()
    sock.sendall(b"POST / HTTP/1.1\r\n\r\n" + b"body" * 1000)
    data = rig.ended(sock)
    assert data.startswith(b"HTTP/1.1 404 No")
    assert len(data) == 100_019


def test_a_parked_client_that_talks_on_is_ended(make_rig):
    rig = make_rig()
    rig.decide = lambda client, head, full: rig.core.accept(client, ANSWER)
    sock = rig.connect()
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    rig.until(lambda: rig.requests)
    sock.sendall(b"x" * 20_000)
    rig.until(lambda: rig.core.totals()["sockets"] == 0)


def test_a_parked_client_that_leaves_is_reaped(make_rig):
    rig = make_rig()
    rig.decide = lambda client, head, full: rig.core.accept(client, ANSWER)
    sock = rig.connect()
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    rig.until(lambda: rig.requests)
    sock.close()
    rig.until(lambda: rig.core.totals()["sockets"] == 0)
    assert not rig.core.attach(rig.requests[0][0], b"t")
    assert rig.stats["topics"] == 0


def test_close_some_spreads_and_the_last_take_the_rest_with_them(rig):
    clients = [rig.join(b"t%d" % i) for i in range(5)]
    spare = rig.connect()
    rig.until(lambda: rig.core.totals()["sockets"] == 6)
    assert rig.core.close_some(2, 1012, b"restart") == 3
    assert rig.core.close_some(2, 1012, b"restart") == 1
    assert rig.core.totals()["sockets"] == 6
    assert rig.core.close_some(2, 1012, b"restart") == 0
    assert [close_code(rig.received(s, 4)) for s in clients] == [1012] * 5
    assert rig.core.totals()["sockets"] == 6, "a spare connection may be about to ask"
    rig.tick_until(lambda: rig.core.close_some(2, 1012) == 0 and rig.core.totals()["sockets"] == 5)
    assert rig.ended(spare) == b""


def test_the_end_answers_who_has_asked(make_rig):
    """They were reset, unread or with their handshake half done."""
    rig = make_rig()
    rig.decide = lambda client, head, full: b"parked" in head and rig.core.accept(client, ANSWER)
    parked, asking, slow = (rig.connect() for _ in range(3))
    parked.sendall(b"GET /parked HTTP/1.1\r\n\r\n")
    slow.sendall(b"GET /slow HTTP/1.1\r\n")
    rig.until(lambda: rig.requests and rig.core.totals()["sockets"] == rig.core.totals()["heads"] + 2 == 3)
    for _ in range(3):
        ready(0.1)
        rig.core.tick()
    asking.sendall(b"GET /asking HTTP/1.1\r\n\r\n")
    assert rig.core.close_some(0, 1012) == 0
    assert rig.ended(parked).startswith(b"HTTP/1.1 503 ")
    assert rig.ended(slow).startswith(b"HTTP/1.1 408 ")
    assert rig.ended(asking).startswith(b"HTTP/1.1 500 "), "this rig leaves it undecided"


def test_stop_listening(rig):
    rig.core.stop_listening()
    sock = rig.connect()
    sock.sendall(b"GET /t HTTP/1.1\r\n\r\n")
    rig.turn()
    assert rig.core.totals()["sockets"] == 0


# ---- time ----


def test_who_is_always_a_little_behind_gets_heartbeats(make_rig):
    """It got none, said nothing that was asked for, and was closed with 1008 after the silence."""
    rig = make_rig(ping_interval=0.1, max_backlog=10_000_000)
    sock = rig.join(b"t", rcvbuf=16384)
    while not rig.live_bytes:
        rig.publish(b"t", b"x" * 16000)
    now = time.monotonic()
    rig.tick_until(lambda: time.monotonic() > now + 0.5)
    rig.publish(b"t", b"last")
    data = b""
    while b"last" not in data:
        data += rig.received(sock, 1)
    assert data.count(HEARTBEAT) >= 3, "behind what waited"


def test_heartbeats_come_at_their_interval(make_rig):
    rig = make_rig(ping_interval=0.3)
    got = {rig.join(b"t"): b"" for _ in range(4)}

    def everybody_has_two():
        for sock in got:
            got[sock] += rig.received(sock)
        return min(map(len, got.values())) >= 2 * len(HEARTBEAT)

    rig.tick_until(everybody_has_two)
    assert all(data == HEARTBEAT * (len(data) // len(HEARTBEAT)) for data in got.values())


def test_the_silent_are_closed_and_the_living_are_not(make_rig):
    rig = make_rig(pong_timeout=1.0, frame_rate=0)
    silent, living = rig.join(b"t"), rig.join(b"t")

    def gone():
        with contextlib.suppress(OSError):
            living.sendall(client_frame(b"", 10))
        return rig.stats["connections"] == 1

    rig.tick_until(gone)
    assert close_code(rig.ended(silent)) == 1008
    assert rig.stats["closes"] == {1008: 1}


def test_a_permission_that_expires(make_rig):
    rig = make_rig()
    rig.decide = lambda client, head, full: (
        rig.core.accept(client, ANSWER, expires_in=0.1),
        rig.core.attach(client, b"t"),
    )
    sock = rig.join(b"t")
    rig.tick_until(lambda: rig.stats["closes"] == {1008: 1})
    assert close_code(rig.ended(sock)) == 1008


def test_a_permission_ends_when_it_was_said_to_though_the_process_stood_still(make_rig):
    """The core's clock stands still then, so that nobody is judged by pongs that could not be read."""
    rig = make_rig()
    rig.decide = lambda client, head, full: (
        rig.core.accept(client, ANSWER, expires_in=2.0),
        rig.core.attach(client, b"t"),
    )
    sock = rig.join(b"t")
    time.sleep(2.1)
    looks = itertools.count()
    rig.tick_until(lambda: next(looks) >= 0 and rig.stats["closes"] == {1008: 1})
    assert next(looks) < 1.3 / 0.02, "each slot is looked at once a second"
    assert close_code(rig.ended(sock)) == 1008


@pytest.mark.parametrize("value", [0, -1, 1e9, float("nan")])
def test_an_interval_that_is_none_is_refused(rig, value):
    with pytest.raises(ValueError, match="is no interval"):
        rig.core.add_service(ping_interval=value)


# ---- any order of events, against an oracle ----


class Oracle:
    """The topics as plain sets: who is where, what everybody must have got."""

    def __init__(self):
        self.topic_of, self.due, self.pending, self.idle = {}, {}, {}, []

    def join(self, client, topic):
        self.seal(topic)
        self.topic_of[client] = topic
        self.due[client] = []

    def leave(self, client):
        topic = self.topic_of.pop(client)
        self.due.pop(client)
        if topic not in self.topic_of.values():
            self.idle.append(topic)
            self.pending.pop(topic, None)

    def publish(self, topic, text):
        if topic in self.topic_of.values():
            self.pending.setdefault(topic, []).append(text)

    def seal(self, topic):
        for client, its in self.topic_of.items():
            if its == topic:
                self.due[client] += self.pending.get(topic, [])
        self.pending.pop(topic, None)

    def flush(self):
        for topic in list(self.pending):
            self.seal(topic)


class AnyOrder(RuleBasedStateMachine):
    """Random joins, leaves, publications and flushes over few topics."""

    @initialize()
    def begin(self):
        self.rig, self.oracle, self.number = Rig(limit=100), Oracle(), 0

    @rule(topic=st.sampled_from([b"a", b"b", b"c"]))
    def join(self, topic):
        if len(self.oracle.topic_of) < 60:
            self.oracle.join(self.rig.join(topic), topic)

    @rule(data=st.data())
    def leave(self, data):
        if self.oracle.topic_of:
            sock = data.draw(st.sampled_from(list(self.oracle.topic_of)))
            self.flush()  # what it is still due cannot be seen once it has left
            self.oracle.leave(sock)
            connections = self.rig.stats["connections"]
            sock.close()
            self.rig.until(lambda: self.rig.stats["connections"] == connections - 1)

    @rule(topic=st.sampled_from([b"a", b"b", b"c", b"d"]), count=st.integers(1, 3))
    def publish(self, topic, count):
        for _ in range(count):
            self.number += 1
            self.rig.feed(resp(b"message", topic, b"%d" % self.number))
            self.oracle.publish(topic, str(self.number))

    @rule()
    def flush(self):
        self.rig.flush()
        self.oracle.flush()
        for sock, due in self.oracle.due.items():
            assert texts(self.rig.received(sock, 30 * len(due))) == due
            due.clear()

    @invariant()
    def the_index_is_the_oracles(self):
        if not hasattr(self, "rig"):
            return
        topics = set(self.oracle.topic_of.values())
        assert self.rig.stats["topics"] == len(topics)
        assert self.rig.stats["connections"] == len(self.oracle.topic_of)
        assert all(self.rig.core.watched(self.rig.service, t) == (t in topics) for t in (b"a", b"b", b"c", b"d"))
        assert self.rig.idle == self.oracle.idle

    def teardown(self):
        if hasattr(self, "rig"):
            self.rig.close()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
