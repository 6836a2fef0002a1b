"""What /metrics says is what clients of our own have counted."""

import signal
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Relay
from tests.integration.peers import TEXT, Refused, Wire, address_of, ask, frame, head, upgrade, wait_for

CLIENTS, MESSAGES = 20, 200
HEARTBEAT = ((1, b'{"type":"ping"}'), (9, b""))
ENV = {
    "STATUS_METRICS_ENABLED": "true",
    "RELAY_PAGE": "false",
    "STATUS_ALLOWED_ORIGINS": "https://wepp.cloud",
    "RELAY_MAX_HEAD_SIZE": "2048",
    "RELAY_HEAD_TIMEOUT": "1s",
    "RELAY_MAX_TOPICS": "4",
    "RELAY_MAX_BACKLOG": "4096",
}


class Measured(Relay):
    """A relay, and what its /metrics says."""

    def samples(self):
        """{(name, the value of its first label or None): value}."""
        families = text_string_to_metric_families(self.http("preflight", "/metrics")[2].decode())
        return {(s.name, next(iter(s.labels.values()), None)): s.value for f in families for s in f.samples}

    def rise(self, before):
        """What has changed since."""
        now = self.samples()
        return {key: now[key] - before[key] for key in now.keys() & before.keys()}


@pytest.fixture(scope="module")
def measured(_shared_redis, tmp_path_factory):
    env = {"REDIS_URL": _shared_redis.url, "PREFLIGHT_METRICS_ENABLED": "true", **ENV}
    with Measured([], env, tmp_path_factory.mktemp("relay")) as process:
        yield process


@pytest.fixture
def before(measured):
    """The samples from which a test counts, once the clients of the test before it have gone."""
    wait_for(lambda: measured.samples()["relay_bound_used", "connections"] == 1, "nobody but who asks is there")
    return measured.samples()


def by_label(changes, name):
    return {label: change for (of, label), change in changes.items() if of == name and change}


def seen_by(peer, number):
    """So many frames that are no heartbeats: how many bytes they take on the wire."""
    size = 0
    while number:
        opcode, payload = got = peer.frame()
        if got not in HEARTBEAT:
            assert opcode == TEXT
            size += len(payload) + (2 if len(payload) < 126 else 4)
            number -= 1
    return size


def test_frames_bytes_and_connections(measured, before, worker, redis_url, join):
    """A client in five asks with ?v=2 and gets a `ready` besides; the lines are short and long."""
    urls = [f"{measured.status_url}/r{number % 2}:wepp{'' if number % 5 else '?v=2'}" for number in range(CLIENTS)]
    peers = [join(url) for url in urls]
    with worker(redis_url).pipeline(transaction=False) as pipeline:
        for number in range(MESSAGES):
            for run in ("r0", "r1"):
                pipeline.publish(f"{run}:wepp", "x" * number)
        pipeline.execute()
    due = [MESSAGES + url.endswith("?v=2") for url in urls]
    size = sum(map(seen_by, peers, due))
    changes = measured.rise(before)
    assert changes["status2_messages_forwarded_total", None] == sum(due)
    assert changes["status2_sent_bytes_total", None] == size
    assert changes["status2_connections_active", None] == CLIENTS
    assert changes["status2_connections_opened_total", None] == CLIENTS
    assert changes["status2_topics", None] == 2
    assert changes["status2_burst_frames_sum", None] == 2 * MESSAGES, "each message once, whoever gets it"
    bursts = changes["status2_burst_frames_count", None]
    assert 2 <= bursts == changes["status2_delivery_seconds_count", None] <= 2 * MESSAGES
    assert 0 < changes["status2_delivery_seconds_sum", None] < 10 * bursts
    assert by_label(changes, "status2_closes_total") == {}


def test_snapshots(measured, before, worker, redis_url, join):
    peers = [join(f"{measured.preflight_url}/r1") for _ in range(3)]
    for peer in peers:
        assert peer.checks() == set()
    worker(redis_url).hset("r1", "timestamps:build_channels", "10")
    for peer in peers:
        assert peer.checks() == {"channels"}
    changes = measured.rise(before)
    assert changes["preflight2_messages_sent_total", None] == 6
    assert changes["preflight2_connections_active", None] == 3
    assert changes["status2_messages_forwarded_total", None] == 0


def test_closes_by_code(measured, before, worker, redis_url, join):
    """Who leaves by himself, cleanly or not, is in no code."""
    url = f"{measured.status_url}/r0:wepp"
    leaving, vanishing, staying = join(url), join(url), join(url)
    broken = [frame(3)] * 2 + [frame(TEXT, b"\xff")] * 3 + [frame(TEXT, size=70_000)] * 2
    ended = []
    for data in broken:
        ended.append(join(url))
        ended[-1].send(data)
    codes = [peer.closed()[0] for peer in ended]
    redis = worker(redis_url)
    for number in range(1, 4):
        ended.append(join(f"{measured.status_url}/r{number}:wepp", receive_buffer=4096))
        while measured.rise(before)["status2_closes_total", "1013"] < number:
            redis.publish(f"r{number}:wepp", "x" * 3000)
        codes.append(ended[-1].told() or 1013)
    leaving.leave()
    vanishing.drop()
    wait_for(lambda: measured.rise(before)["status2_connections_active", None] == 1, "all but one have gone")
    changes = measured.rise(before)
    assert codes == [1002] * 2 + [1007] * 3 + [1009] * 2 + [1013] * 3
    assert by_label(changes, "status2_closes_total") == {str(code): codes.count(code) for code in codes}
    assert changes["status2_connections_opened_total", None] == 3 + len(ended)
    assert by_label(changes, "status2_breaches_total") == {"message_size": 2, "backlog": 3}
    assert staying.alive()


def test_answers_by_status(measured, before, join):
    requests = [
        *[upgrade("/no-channel")] * 2,
        *[upgrade("/r1:wepp", "Origin: https://evil.example")] * 3,
        head("/run/r1"),
        head("/r1:wepp", method="DELETE"),
        *[head("/r1:wepp")] * 2,
        head("/" + "x" * 3000),
        b"GET /r1:wepp HTTP/1.1\r\n",
        head("/livez"),
        upgrade("/health"),
    ]
    held = [join(f"{measured.status_url}/r{number}:wepp").answered.status for number in range(4)]
    statuses = held + [ask(measured.status_url, data).status for data in requests]
    with pytest.raises(Refused) as refused:
        join(f"{measured.status_url}/r4:wepp")
    statuses.append(refused.value.status)
    with Wire(address_of(measured.status_url)) as silent:
        assert silent.ended() == b"", "who has said nothing is answered nothing"
    changes = measured.rise(before)
    assert by_label(changes, "status2_http_responses_total") == {str(code): statuses.count(code) for code in statuses}
    assert set(statuses) == {101, 200, 400, 403, 404, 405, 408, 426, 431, 503}
    assert by_label(changes, "preflight2_http_responses_total") == {"200": 1}, "the look at /metrics before this one"


def test_a_process_that_stood_still(measured, before):
    measured.process.send_signal(signal.SIGSTOP)
    time.sleep(0.6)
    measured.process.send_signal(signal.SIGCONT)
    wait_for(lambda: measured.rise(before)["relay_loop_lag_seconds_sum", None] > 0.4, "its clock came late")
    late = measured.rise(before)
    assert late["relay_loop_lag_seconds_count", None] > late["relay_loop_lag_seconds_bucket", "0.25"]


def test_redis_away_and_back(redis_server, tmp_path):
    process = Measured([], {"REDIS_URL": redis_server.url, "PREFLIGHT_METRICS_ENABLED": "true"}, tmp_path)
    states = [(f"{service}_{name}", None) for service in ("status2", "preflight2") for name in ("ready", "redis_up")]
    proofs = [(f"{service}_redis_proved_seconds", None) for service in ("status2", "preflight2")]
    try:
        process.wait("ready")
        before = process.samples()
        assert [before[state] for state in states] == [1] * 4
        assert all(0 <= before[proof] < 14 for proof in proofs)
        redis_server.kill()
        wait_for(lambda: not any(process.samples()[state] for state in states), "both services say so")
        assert not process.samples().keys() & set(proofs), "nobody knows"
        redis_server.start()
        wait_for(lambda: all(process.samples()[state] for state in states), "they are back")
        changes = process.rise(before)
        for service in ("status2", "preflight2"):
            assert changes[f"{service}_redis_reconnects_total", None] == 2
            assert changes[f"{service}_gaps_total", "link"] == 1
            assert process.samples()[f"{service}_redis_instances_total", None] == 2
    finally:
        process.end()
