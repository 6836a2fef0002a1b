"""The load generator against the relay itself: nothing lost, nothing damaged, and a restart is counted."""

import resource
import socket
import threading
import time

import pytest

from relay._swarm import Publisher, Swarm
from tests.integration.peers import wait_for

CLIENTS, TOPICS = 2000, 200
SECONDS = 30.0
NAMES = [b"swarm-%d:wepp" % number for number in range(TOPICS)]


@pytest.fixture(autouse=True)
def _descriptors():
    """The swarm and the relay, which inherits the limit, each need one for every client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def redis_socket(redis_url):
    with socket.create_connection(("127.0.0.1", int(redis_url.rpartition(":")[2]))) as connection:
        yield connection


def opened(process, clients=CLIENTS, **options):
    address = {"family": socket.AF_INET, "address": ("127.0.0.1", process.ports["status"]), "host": b"localhost"}
    swarm = Swarm(paths=[b"/" + name for name in NAMES], clients=clients, **(address | options))
    swarm.open(clients, seconds=SECONDS)
    assert swarm.counters()["open"] == clients, (swarm.trouble, swarm.counters())
    return swarm


def load(swarm, connection, messages, **options):
    """Publishes while the swarm is served, to the end."""
    options = {"size": 100, "window": 100} | options
    publisher = Publisher(swarm, fd=connection.fileno(), names=NAMES, messages=messages, **options)
    thread = threading.Thread(target=publisher.run)
    thread.start()
    while not publisher.done:
        swarm.serve(0.02)
    thread.join()
    assert (publisher.error, publisher.stalled, publisher.published) == ("", False, messages)


def assert_all_arrived(swarm, delivered):
    assert swarm.settle(20.0) is True
    counters = swarm.counters()
    wrong = ("lost", "duplicated", "reordered", "damaged", "other")
    assert {name: counters[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert counters["delivered"] == delivered
    assert (counters["closed"], counters["refused"]) == ({}, {})
    assert sum(count for _, count in swarm.latencies()) == delivered


def assert_pinged(swarm, count):
    until = time.monotonic() + SECONDS
    while swarm.counters()["pings"] < count:
        assert time.monotonic() < until, swarm.counters()
        swarm.serve(0.02)


@pytest.mark.parametrize("text", ["plain", "escapes", "accents"])
def test_two_thousand_clients_lose_nothing(relay, redis_socket, text):
    swarm = opened(relay("status"))
    load(swarm, redis_socket, 2 * TOPICS, text=text, size=1000)
    assert swarm.settle(20.0) is True
    swarm.reset()
    load(swarm, redis_socket, 4 * TOPICS, text=text, batch=8)
    assert_all_arrived(swarm, 4 * CLIENTS)
    assert swarm.per_client() == [(4, 0)] * CLIENTS


def test_an_open_loop_loses_nothing_either(relay, redis_socket):
    swarm = opened(relay("status"), 400)
    load(swarm, redis_socket, 2 * TOPICS, window=0, rate=2000.0)
    assert_all_arrived(swarm, 800)


def test_over_a_unix_socket(relay, redis_socket, tmp_path):
    path = tmp_path / "status.sock"
    process = relay("status", "--status-listen-addr", f"unix:{path}", wait=None)
    # A client of a relay without Redis is answered at once, and misses what is published before the SUBSCRIBE.
    wait_for(lambda: any("is there for status subscriptions" in line for line in process.stderr), "Redis is there")
    swarm = opened(process, 400, family=socket.AF_UNIX, address=str(path))
    load(swarm, redis_socket, 2 * TOPICS, size=20_000)
    assert_all_arrived(swarm, 800)


def test_heartbeats_are_no_messages(relay, redis_socket):
    swarm = opened(relay("status", env={"STATUS_PING_INTERVAL": "300ms"}), 200)
    load(swarm, redis_socket, TOPICS, window=0, rate=200.0)
    assert_all_arrived(swarm, 200)
    assert_pinged(swarm, 2 * 200)  # of both kinds for each client


def test_a_restart_is_counted(relay, redis_socket):
    process = relay("status", env={"RELAY_DRAIN": "500ms"})
    swarm = opened(process)
    load(swarm, redis_socket, TOPICS)
    stopper = threading.Thread(target=process.stop)
    stopper.start()
    until = time.monotonic() + SECONDS
    while swarm.counters()["open"]:
        assert time.monotonic() < until, swarm.counters()
        swarm.serve(0.02)
    stopper.join()
    counters = swarm.counters()
    assert counters["closed"] == {1012: CLIENTS}
    assert (counters["delivered"], counters["lost"]) == (CLIENTS, 0)
    late = Swarm(
        family=socket.AF_INET,
        address=("127.0.0.1", process.ports["status"]),
        host=b"localhost",
        paths=[b"/" + NAMES[0]],
        clients=3,
    )
    late.open(3, seconds=SECONDS)
    assert late.counters()["refused"] == {0: 3}


@pytest.mark.parametrize("streams", [400, 200])
def test_event_streams_lose_nothing(relay, redis_socket, streams):
    swarm = opened(relay("status", env={"STATUS_PING_INTERVAL": "300ms"}), 400, streams=streams)
    load(swarm, redis_socket, 2 * TOPICS, text="escapes")
    assert swarm.settle(20.0) is True
    swarm.reset()
    load(swarm, redis_socket, 4 * TOPICS, text="accents", batch=8, size=1000, window=0, rate=1000.0)
    assert swarm.settle(20.0) is True
    assert swarm.per_client() == [(4, 0)] * 400
    counters = swarm.counters()
    assert (counters["closed"], counters["damaged"], counters["other"]) == ({}, 0, 0)
    assert sum(count for _, count in swarm.latencies(streams=True)) == 4 * streams
    assert_pinged(swarm, 400)  # comments and heartbeats


def test_event_streams_are_told_of_a_restart(relay):
    process = relay("status", env={"RELAY_DRAIN": "500ms"})
    swarm = opened(process, 200, streams=200)
    stopper = threading.Thread(target=process.stop)
    stopper.start()
    until = time.monotonic() + SECONDS
    while swarm.counters()["open"]:
        assert time.monotonic() < until, swarm.counters()
        swarm.serve(0.02)
    stopper.join()
    assert swarm.counters()["closed"] == {1012: 200}


def test_what_the_relay_refuses(relay):
    process = relay("status", env={"STATUS_ALLOWED_ORIGINS": "https://here.example"})
    common = {"family": socket.AF_INET, "address": ("127.0.0.1", process.ports["status"]), "host": b"localhost"}
    for paths, origin, code in (([b"/r:wepp"], b"https://elsewhere.example", 403), ([b"/__r"], b"", 400)):
        swarm = Swarm(paths=paths, clients=5, origin=origin, **common)
        swarm.open(5, seconds=SECONDS)
        assert swarm.counters()["refused"] == {code: 5}


def test_stalled_clients_do_not_hold_up_the_others(relay, redis_socket):
    swarm = opened(relay("status"), 400, stalled=100)
    load(swarm, redis_socket, 20 * TOPICS, size=4000)
    assert swarm.settle(20.0) is True
    counters = swarm.counters()
    assert (counters["delivered"], counters["lost"], counters["open"]) == (300 * 20, 0, 400)
    assert swarm.per_client() == [(20, 0)] * 300
