"""Contract, section 5, against a running relay and a real Redis."""

import json
import random
import time

import pytest
from websockets.asyncio.client import connect

from tests.integration.peers import CLOSE, PING, TEXT, Peer, Wire, address_of, frame, upgrade, wait_for

MIB = 1 << 20

TEXTS = [
    "",
    "plain",
    'a "b" \\ c',
    "line\nline\r\n\ttab\x08\x0c",
    "<script>&</script>",
    "\u2028\u2029\x7f\x80\ufeff",
    "\0\x01\x1f",
    "žluťoučký 日本 🌋 \U0010ffff",
    '{"type":"hangup"}',
    '{"type":"ping"}',
    "[1, 2]",
    "17",
    "null",
    "rq:7f TRIGGER   command BUILD_CLIMATE_TASK_COMPLETED",
    " leading and trailing ",
    "\\u0041 \\n",
    "x" * 125,
    "x" * 65_536,
    '"' * 100_000,
    "é" * 300_000,
]

NO_UTF8 = [
    b"\xff",
    b"a\xc3",
    b"\xc3(",
    b"\xe2\x82",
    b"\xe2\x28\xa1",
    b"\xf0\x9f\x8c",
    b"\xf0\x9fx\x8c\x8b",
    b"\xed\xa0\x80",
    b"\xed\xa0\xbd\xed\xb8\x80",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\x80" * 9,
    b'"\xfe\\\xff\n',
    b"\xe9" * 70_000,
    bytes(range(256)),
]


@pytest.fixture
def status(standing):
    """The URL of a running status service."""
    return standing.status_url


@pytest.fixture
def publish(worker, redis_url):
    connection = worker(f"{redis_url}/2")
    connection.ping()
    return lambda channel, payload: connection.publish(channel, payload)


def test_one_frame_for_each_message_and_client_in_order_on_that_channel_alone(status, join, worker, redis_url):
    here = [join(f"{status}/run1:wepp") for _ in range(3)]
    others = {
        name: join(f"{status}/{name}") for name in ("run1:climate", "run2:wepp", "run1:wep", "RUN1:wepp", "run1:wepp2")
    }
    said = {name: [] for name in ("run1:wepp", *others)}
    pick = random.Random(5)
    with worker(redis_url).pipeline(transaction=False) as pipe:
        for number in range(2000):
            name = pick.choice(list(said))
            said[name].append(f"{name} {number}")
            pipe.publish(name, said[name][-1])
        pipe.execute()
    for peer, name in [*((peer, "run1:wepp") for peer in here), *((peer, name) for name, peer in others.items())]:
        assert [peer.data() for _ in said[name]] == said[name]
        peer.send(frame(PING, b"end"))
        assert peer.beyond_heartbeats() == (10, b"end"), "more than was published"


def test_the_frame_to_the_byte(status, join, publish):
    peer = join(f"{status}/run1:wepp")
    publish("run1:wepp", "a/é")
    assert peer.beyond_heartbeats() == (TEXT, '{"type":"status","data":"a/é"}'.encode())


@pytest.mark.parametrize("db", [0, 2, 5])
def test_the_database_of_a_publisher_does_not_matter(status, join, worker, redis_url, db):
    peer = join(f"{status}/run1:wepp")
    worker(f"{redis_url}/{db}").publish("run1:wepp", "x")
    assert peer.data() == "x"


def test_data_is_exactly_the_text(status, join, publish):
    peer = join(f"{status}/run1:wepp")
    for sent in TEXTS:
        publish("run1:wepp", sent)
        assert peer.data() == sent
    publish("run1:wepp", 3.5)
    assert peer.data() == "3.5"


async def test_data_is_exactly_the_text_for_another_websocket_library_too(status, publish):
    async with connect(f"{status}/run1:wepp", max_size=None) as websocket:
        for sent in TEXTS:
            publish("run1:wepp", sent)
        for sent in TEXTS:
            while (found := json.loads(await websocket.recv(decode=True))) == {"type": "ping"}:
                pass
            assert found == {"type": "status", "data": sent}


def test_bytes_that_are_no_utf8_become_what_python_makes_of_them(status, join, publish):
    peer = join(f"{status}/run1:wepp")
    pick = random.Random(8)
    for sent in [*NO_UTF8, *(pick.randbytes(pick.randrange(1, 300)) for _ in range(300))]:
        publish("run1:wepp", sent)
        assert peer.data() == sent.decode(errors="replace"), sent


def test_a_megabyte_arrives_and_a_byte_more_is_dropped_and_counted(relay, join, publish):
    process = relay("status", env={"STATUS_METRICS_ENABLED": "true"})
    peer = join(f"{process.status_url}/run1:wepp")
    for sent in ("\0" * MIB, "y" * MIB, "🌋" * (MIB // 4)):
        publish("run1:wepp", sent)
        assert peer.data() == sent
    publish("run1:wepp", "z" * (MIB + 1))
    publish("run1:wepp", "next")
    assert peer.data() == "next"
    assert b"\nstatus2_oversize_messages_total 1.0\n" in process.http("status", "/metrics")[2]


def test_subscribed_means_subscribed(status, join, publish):
    for number in range(200):
        peer = join(f"{status}/run{number}:wepp")
        assert publish(f"run{number}:wepp", number) == 1, "the 101 was sent before Redis had confirmed"
        assert peer.data() == str(number)


def test_subscribed_means_subscribed_where_the_last_client_has_just_left(status, publish):
    for number in range(200):
        with Peer(f"{status}/run1:wepp") as peer:
            assert publish("run1:wepp", number) == 1
            assert peer.data() == str(number)
            if number % 3 == 0:
                peer.leave()
            elif number % 3 == 1:
                peer.send(frame(CLOSE, b"\x03\xe9"))


def test_many_at_once_share_one_subscription(status, join, publish):
    wires = [Wire(address_of(status)) for _ in range(100)]
    try:
        for number, wire in enumerate(wires):
            wire.send(upgrade(f"/run{number % 5}:wepp"))
        for wire in wires:
            assert wire.answer().status == 101
        assert [publish(f"run{number}:wepp", "x") for number in range(5)] == [1] * 5
    finally:
        for wire in wires:
            wire.drop()


def test_with_redis_known_to_be_away_the_answer_comes_at_once(relay, redis_server, join):
    process = relay("status", env={"REDIS_URL": redis_server.url})
    redis_server.kill()
    wait_for(lambda: not process.ready("status"), "the loss noticed")
    # One of three: this machine may stand still for as long.
    assert any(seconds_until_answered(process) < 0.8 for _ in range(3))
    peer = join(f"{process.status_url}/run1:wepp")
    redis_server.start()
    process.wait("ready")
    wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "x"), "subscribed again")
    assert peer.data() == "x"


def seconds_until_answered(process):
    begin = time.monotonic()
    with Peer(f"{process.status_url}/run1:wepp"):
        return time.monotonic() - begin


def test_with_a_silent_redis_the_answer_comes_after_a_second_all_the_same(relay, redis_server, join):
    # By default the link is given up after 5 s, and the answer comes at once: as on a machine that stood still.
    process = relay("status", env={"REDIS_URL": redis_server.url, "STATUS_REDIS_REQUEST_TIMEOUT": "60s"})
    redis_server.pause()
    begin = time.monotonic()
    peer = join(f"{process.status_url}/run1:wepp")
    assert 0.9 < time.monotonic() - begin < 10.0
    redis_server.resume()
    wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "x"), "subscribed")
    assert peer.data() == "x"


def test_who_leaves_before_the_answer_leaves_no_subscription_behind(relay, redis_server):
    process = relay("status", env={"REDIS_URL": redis_server.url})
    redis_server.pause()
    for number in range(20):
        with Wire(address_of(process.status_url)) as wire:
            wire.send(upgrade(f"/run{number}:wepp"))
    process.http("status", "/health")  # served after the requests before it
    redis_server.resume()
    with Peer(f"{process.status_url}/other:wepp"):
        wait_for(lambda: redis_server.channels() == [b"other:wepp"], "the others unsubscribed")


def test_the_last_client_takes_the_subscription_with_it(relay, redis_server, join):
    process = relay("status", env={"REDIS_URL": redis_server.url})
    first, second = (join(f"{process.status_url}/run1:wepp") for _ in range(2))
    first.leave()
    second.alive()
    assert redis_server.execute("PUBSUB", "NUMSUB", "run1:wepp") == [b"run1:wepp", 1]
    second.drop()
    wait_for(lambda: redis_server.channels() == [], "unsubscribed")


def test_a_channel_that_was_quiet_delivers_the_very_next_message(relay, redis_server, join):
    """Past a PING of the link, and past Redis closing connections that it takes for idle."""
    process = relay("status", env={"REDIS_URL": redis_server.url, "STATUS_PING_INTERVAL": "200ms"})
    redis_server.execute("CONFIG", "SET", "timeout", "1")
    peer = join(f"{process.status_url}/run1:wepp")
    link = redis_server.execute("CLIENT", "LIST", "TYPE", "pubsub").split(b" ")[0]

    def pinged():
        listed = redis_server.execute("CLIENT", "LIST", "TYPE", "pubsub")
        assert listed.split(b" ")[0] == link, "the link was made anew"
        return b"cmd=ping" in listed

    wait_for(pinged, "a PING on the link")
    assert redis_server.execute("PUBLISH", "run1:wepp", "x") == 1
    assert peer.data() == "x"


def test_nothing_is_replayed(status, join, publish):
    publish("run1:wepp", "before anybody")
    first = join(f"{status}/run1:wepp")
    publish("run1:wepp", "before the second")
    assert first.data() == "before the second"
    second = join(f"{status}/run1:wepp")
    publish("run1:wepp", "now")
    assert first.data() == second.data() == "now"


def test_completed_and_trigger_at_the_end_of_a_burst(status, join, worker, redis_url):
    # Few: to read twenty one after the other took a slow machine longer than the 10 s that the last one may let wait.
    peers = [join(f"{status}/run1:wepp") for _ in range(5)]
    with worker(redis_url).pipeline(transaction=False) as pipe:
        for number in range(5000):
            pipe.publish("run1:wepp", f"hillslope {number}")
        pipe.publish("run1:wepp", "rq:7f COMPLETED run_wepp(run1)")
        pipe.publish("run1:wepp", "rq:7f TRIGGER   wepp WEPP_RUN_TASK_COMPLETED")
        pipe.execute()
    for peer in peers:
        lines = [peer.data() for _ in range(5002)]
        assert lines[:5000] == [f"hillslope {number}" for number in range(5000)]
        assert lines[5000:] == ["rq:7f COMPLETED run_wepp(run1)", "rq:7f TRIGGER   wepp WEPP_RUN_TASK_COMPLETED"]


def test_a_client_that_never_reads_is_closed_and_changes_nothing_for_the_others(status, join, publish):
    """Not much above the bound: 2000 messages took a slow machine longer than the 2 s that the relay waits for it."""
    good = join(f"{status}/run1:wepp")
    # Of three one hears of it: this machine may stand still for as long.
    assert any(what_slow_is_told(status, good, publish) == 1013 for _ in range(3))


def what_slow_is_told(status, good, publish):
    with Peer(f"{status}/run1:wepp", receive_buffer=1024) as slow:
        for number in range(120):
            publish("run1:wepp", f"{number:04}" + "x" * 4096)
            assert good.data().startswith(f"{number:04}")
        return slow.told()


def test_a_client_that_was_slow_for_a_moment_misses_nothing(status, join, publish):
    """Not a byte within its bound, and nothing of what comes later: once slow, clients stayed open, pinged and mute."""
    slow = join(f"{status}/run1:wepp", receive_buffer=1024)
    good = join(f"{status}/run1:wepp")
    said = [f"{number:03}" + "x" * 1000 for number in range(200)]
    for text in said:
        publish("run1:wepp", text)
        assert good.data() == text
    assert [slow.data() for _ in said] == said
    publish("run1:wepp", "later")
    assert slow.data() == good.data() == "later"


def test_a_vanished_client_is_no_matter_to_the_others(status, join, publish):
    peers = [join(f"{status}/run1:wepp") for _ in range(20)]
    for peer in peers[::2]:
        peer.drop()
    for number in range(100):
        publish("run1:wepp", number)
    for peer in peers[1::2]:
        assert [peer.data() for _ in range(100)] == [str(number) for number in range(100)]


def test_one_link_however_many_clients(relay, redis_server, join):
    process = relay(env={"REDIS_URL": redis_server.url})
    for number in range(50):
        join(f"{process.status_url}/run{number}:wepp")
        join(f"{process.preflight_url}/run{number}")
    assert int(redis_server.execute("CLIENT", "LIST").count(b"id=")) == 4 + 1  # ours, that asks, is one more
    assert redis_server.execute("PUBSUB", "NUMPAT") == 0
