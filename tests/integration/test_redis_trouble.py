"""Redis away, refusing, silent or moved: contract, sections 1 (key events), 6 (Redis away) and 7."""

import json
import re
import ssl
import tempfile
import threading
import time

import pytest
import redis
import trustme

from tests.conftest import ADMIN
from tests.integration import fronts
from tests.integration.fronts import Front
from tests.integration.peers import Refused, Wire, address_of, upgrade, wait_for

SIX = {
    f"timestamps:{name}": str(value)
    for name, value in {
        "build_channels": 10,
        "set_outlet": 20,
        "abstract_watershed": 30,
        "build_landuse": 40,
        "build_soils": 50,
        "build_climate": 60,
    }.items()
}
SIX_CHECKS = {"channels", "outlet", "subcatchments", "landuse", "soils", "climate"}
METRICS = {f"{prefix}_METRICS_ENABLED": "true" for prefix in ("STATUS", "PREFLIGHT")}
# For a Redis that says nothing; one that this machine lets stand still for as long would be given up as well.
QUICK = {f"{prefix}_REDIS_REQUEST_TIMEOUT": "500ms" for prefix in ("STATUS", "PREFLIGHT")}
SECRET = "s3cr3t-of-the-test"


@pytest.fixture
def both(relay, redis_server):
    """A relay with both services on a Redis of its own."""
    return relay(env={"REDIS_URL": redis_server.url, **METRICS})


def is_ready(process):
    return all(process.ready(service) for service in process.services)


def gone(process):
    wait_for(lambda: not any(process.ready(service) for service in process.services), "the loss noticed")


def channels(server):
    return set(server.channels())


def log(process):
    return [json.loads(line) for line in process.stderr]


def counter(process, service, name):
    body = process.http(service, "/metrics")[2].decode()
    return float(re.search(rf"^{name} (\S+)$", body, re.MULTILINE)[1])


# ---- away ----


def test_killed_and_back_under_a_thousand_websockets(both, redis_server, join):
    lines = {f"run{number}:wepp": join(f"{both.status_url}/run{number}:wepp") for number in range(500)}
    lists = {f"run{number}": join(f"{both.preflight_url}/run{number}") for number in range(500)}
    for peer in lists.values():
        assert peer.checks() == set()
    took = []
    for turn in (1, 2):
        redis_server.kill()
        gone(both)
        assert both.http("status", "/health")[0] == both.http("preflight", "/livez")[0] == 200
        late = join(f"{both.status_url}/run0:wepp")
        redis_server.start()
        began = time.monotonic()
        with redis.Redis(port=redis_server.port) as worker, worker.pipeline(transaction=False) as pipe:
            for name in lists:  # some of these before the relay is back, which no event will ever announce
                pipe.hset(name, mapping=SIX | {"last_modified": turn})
            pipe.execute()
            wait_for(lambda: len(channels(redis_server)) == 1000, "all subscribed again")
            took.append(time.monotonic() - began)
            for name in lines:
                pipe.publish(name, f"first of {name}")
            assert pipe.execute() == [1] * 500
        for name, peer in lines.items():
            assert peer.data() == f"first of {name}"
        assert late.data() == "first of run0:wepp"
        late.drop()
        for peer in lists.values():
            seen = [peer.message()]
            while seen[-1].get("last_modified") != turn:
                seen.append(peer.message())
            assert len(seen) <= 2, "hashes were gone for a moment, and nothing else may have been seen"
            assert {key for key, value in seen[-1]["checklist"].items() if value} == SIX_CHECKS
    assert min(took) < 2.0, "one of them, for this machine may stand still for as long"
    for peer in (*lines.values(), *lists.values()):
        assert peer.alive(), "a websocket was lost"
    wait_for(lambda: is_ready(both), "ready again")
    assert not [line for line in log(both) if "run1" in line["msg"]], "a line for each run or channel"


def test_down_at_the_start(relay, redis_server, join):
    redis_server.kill()
    process = relay(env={"REDIS_URL": redis_server.url}, wait="listen")
    line = join(f"{process.status_url}/run1:wepp")
    checks = join(f"{process.preflight_url}/run1")
    for service in process.services:
        assert process.http(service, "/livez")[0] == 200
        assert process.http(service, "/readyz")[0] == 503
    redis_server.start()
    assert checks.checks() == set()
    wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "x"), "subscribed")
    assert line.data() == "x"
    wait_for(lambda: is_ready(process), "ready")


def test_frozen_it_is_noticed_and_nothing_comes_twice(relay, redis_server, join):
    process = relay(env={"REDIS_URL": redis_server.url, **QUICK})
    line = join(f"{process.status_url}/run1:wepp")
    checks = join(f"{process.preflight_url}/run1")
    checks.checks()
    redis_server.pause()
    gone(process)
    assert line.alive()
    redis_server.resume()
    wait_for(lambda: is_ready(process), "ready again")
    for number in range(10):
        assert redis_server.execute("PUBLISH", "run1:wepp", number) == 1
        assert line.data() == str(number)
    redis_server.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert checks.checks() == {"channels"}
    assert line.alive()
    assert checks.alive()


def test_the_subscription_socket_killed_under_traffic(both, redis_server, join):
    """Holes there are, but no doubles, no disorder, and no socket is lost."""
    peers = [join(f"{both.status_url}/run1:wepp") for _ in range(3)]
    with redis.Redis(port=redis_server.port) as worker:
        number = 0
        for _ in range(5):
            for _ in range(200):
                number += 1
                worker.publish("run1:wepp", number)
            redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        wait_for(lambda: worker.publish("run1:wepp", "end"), "subscribed again")
    seen = []
    for peer in peers:
        lines = [peer.data()]
        while lines[-1] != "end":
            lines.append(peer.data())
        numbers = [int(line) for line in lines[:-1]]
        assert numbers == sorted(set(numbers))
        seen.append(numbers)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) >= 200
    assert counter(both, "status", "status2_redis_reconnects_total") >= 1


def test_each_resubscription_brings_a_fresh_snapshot(both, redis_server, join):
    peer = join(f"{both.preflight_url}/run1")
    assert peer.checks() == set()
    redis_server.execute("CONFIG", "SET", "notify-keyspace-events", "")
    redis_server.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert peer.alive()
    assert peer.unread == b""
    redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
    assert peer.checks() == {"channels"}


def test_the_command_connection_killed(both, redis_server, join):
    """A read that was under way is made again, on the new connection."""
    peer = join(f"{both.preflight_url}/run1")
    assert peer.checks() == set()
    for number in range(10, 30):
        redis_server.execute("HSET", "run1", "last_modified", number)
        redis_server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    while peer.message()["last_modified"] != 29:
        pass
    assert peer.alive()


def test_one_connection_of_each_kind_over_many_losses(both, redis_server):
    for _ in range(10):
        redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        redis_server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_for(lambda: is_ready(both), "ready again")
    wait_for(
        lambda: redis_server.execute("CLIENT", "LIST").count(b"id=") == 5, "four connections beside the test's own"
    )


# ---- answers that are refusals ----


def test_a_busy_redis_refuses_nobody(both, redis_server, join):
    """-BUSY (a long script) answers every command, SUBSCRIBE and PING too. It is no verdict on a channel."""
    redis_server.execute("CONFIG", "SET", "busy-reply-threshold", "50")
    old = join(f"{both.status_url}/run1:wepp")
    old_checks = join(f"{both.preflight_url}/run1")
    old_checks.checks()

    def spin():
        with pytest.raises(redis.ResponseError, match="killed"):
            redis_server.execute("EVAL", "while true do end", 0)

    script = threading.Thread(target=spin)
    script.start()
    try:
        with redis.Redis(port=redis_server.port) as probe:
            wait_for(lambda: is_busy(probe), "busy")
        new = join(f"{both.status_url}/run2:wepp")
        new_checks = join(f"{both.preflight_url}/run2")
        assert new.alive()
        assert new_checks.alive()
    finally:
        redis_server.execute("SCRIPT", "KILL")
        script.join()
    for peer, run in ((old, "run1"), (new, "run2")):
        wait_for(lambda run=run: redis_server.execute("PUBLISH", f"{run}:wepp", "x"), f"{run} subscribed", 10.0)
        assert peer.data() == "x"
    assert new_checks.checks() == set()
    for peer, run in ((old_checks, "run1"), (new_checks, "run2")):
        redis_server.execute("HSET", run, "timestamps:build_channels", "10")
        assert peer.checks() == {"channels"}


def is_busy(connection):
    try:
        connection.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def test_a_redis_that_is_loading_is_waited_for_as_one_that_is_away(relay, new_redis, join):
    """-LOADING is over soon, unlike a wrong password: it must not be met with pauses of up to 30 s."""
    server = new_redis("--save", "3600 1", "--dbfilename", "dump.rdb")
    for number in range(200):
        server.execute("SET", f"key{number}", "x" * 2000)
    server.execute("SAVE")
    short = {"STATUS_REDIS_RETRY_BASE": "30s", "STATUS_REDIS_RETRY_MAX": "500ms"}
    process = relay("status", env={"REDIS_URL": server.url, **short})
    peer = join(f"{process.status_url}/run1:wepp")
    # In one of two times: this machine may stand still for as long.
    assert any(seconds_behind_loading(process, server, peer) < 1.5 for _ in range(2))


def seconds_behind_loading(process, server, peer):
    server.kill()
    gone(process)
    slow = ("--key-load-delay", "12000", "--loading-process-events-interval-bytes", "1024")
    begin = time.monotonic()
    server.start("--dbfilename", "dump.rdb", *slow)  # returns when it serves, 200 times 12 ms later
    loaded = time.monotonic()
    assert loaded - begin > 1.5
    wait_for(lambda: server.execute("PUBLISH", "run1:wepp", "x"), "subscribed again", patience=35.0)
    assert peer.data() == "x"
    return time.monotonic() - loaded


def test_a_wrong_password_while_running_is_tried_again(relay, redis_server, join):
    redis_server.execute("ACL", "SETUSER", "relay", "on", f">{SECRET}", "~*", "&*", "+@all")
    url = redis_server.url.replace("redis://", f"redis://relay:{SECRET}@")
    process = relay("status", env={"REDIS_URL": url})
    peer = join(f"{process.status_url}/run1:wepp")
    redis_server.execute("ACL", "SETUSER", "relay", "resetpass", ">another")
    redis_server.execute("CLIENT", "KILL", "USER", "relay")
    gone(process)
    refused = wait_for(lambda: [line for line in process.stderr if "WRONGPASS" in line], "the refusal in the log")
    assert '"level": "error"' in refused[0]
    assert peer.alive()
    redis_server.execute("ACL", "SETUSER", "relay", "resetpass", f">{SECRET}")
    wait_for(lambda: is_ready(process), "ready again", patience=30.0)
    wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "x"), "subscribed again")
    assert peer.data() == "x"
    assert len([line for line in process.stderr if "WRONGPASS" in line]) <= 2, "more than a line a minute"
    assert SECRET not in "".join(process.stderr)


def test_maxclients_is_no_reason_to_give_up(relay, redis_server, join):
    """Redis says it before it was asked anything."""
    user, password = ADMIN
    with redis.Redis(port=redis_server.port, username=user, password=password, single_connection_client=True) as admin:
        admin.config_set("maxclients", 1)
        process = relay("status", env={"REDIS_URL": redis_server.url}, wait="listen")
        peer = join(f"{process.status_url}/run1:wepp")
        wait_for(lambda: any("max number of clients" in line for line in process.stderr), "the refusal in the log")
        assert not process.ready("status")
        admin.config_set("maxclients", 1000)
        wait_for(lambda: process.ready("status"), "ready", patience=30.0)
        wait_for(lambda: admin.publish("run1:wepp", "x"), "subscribed")
    assert peer.data() == "x"


GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"$9223372036854775807\r\n",
    b"*1\r\n" * 1025,
    b"+PONG\r\n+PONG\r\n+PONG\r\n",
    b"",
    b":1\r\n",
]


@pytest.mark.parametrize("said", GARBAGE, ids=lambda said: repr(said[:20]))
def test_what_is_no_redis_is_tried_again(relay, join, said):
    with Front(fronts.saying(said)) as front:
        process = relay(env={"REDIS_URL": f"redis://127.0.0.1:{front.port}"}, wait="listen")
        line = join(f"{process.status_url}/run1:wepp")
        checks = join(f"{process.preflight_url}/run1")
        wait_for(lambda: front.accepted > 8, "tried again")
        assert line.alive()
        assert checks.alive()
        assert not is_ready(process)


def test_a_redis_that_never_answers(relay, join):
    with Front(fronts.silent) as front:
        process = relay(env={"REDIS_URL": f"redis://127.0.0.1:{front.port}", **QUICK}, wait="listen")
        line = join(f"{process.status_url}/run1:wepp")
        wait_for(lambda: front.accepted > 8, "tried again")
        assert line.alive()
        assert not is_ready(process)


# ---- ACL ----


@pytest.fixture
def limited(redis_server):
    """URL for a user who may use the channels of run1 and of the keys k:run1 alone."""
    redis_server.execute(
        *("ACL", "SETUSER", "relay", "on", f">{SECRET}", "~*", "resetchannels", "&run1:*", "&__keyspace@0__:run1"),
        *("+@all", "-config"),
    )
    return redis_server.url.replace("redis://", f"redis://relay:{SECRET}@")


def test_a_channel_that_may_not_be_read_is_403_and_the_others_of_its_batch_work(relay, redis_server, limited, join):
    process = relay("status", env={"REDIS_URL": limited})
    names = [f"run1:c{number}" for number in range(30)]
    names.insert(11, "run2:wepp")
    wires = {name: Wire(address_of(process.status_url)) for name in names}
    try:
        redis_server.pause()  # so that all are asked for before the first answer
        for name, wire in wires.items():
            wire.send(upgrade(f"/{name}"))
        process.http("status", "/health")
        redis_server.resume()
        answers = {name: wire.answer() for name, wire in wires.items()}
        assert {name for name, answer in answers.items() if answer.status != 101} == {"run2:wepp"}
        assert answers["run2:wepp"].status == 403
        for name in names:
            assert redis_server.execute("PUBLISH", name, "x") == (name != "run2:wepp")
        redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        wait_for(lambda: len(channels(redis_server)) == 30, "subscribed again")
    finally:
        for wire in wires.values():
            wire.drop()
    with pytest.raises(Refused) as refused:
        join(f"{process.status_url}/run2:other")
    assert refused.value.status == 403
    assert process.ready("status"), "a refused name is no outage"
    redis_server.execute("ACL", "SETUSER", "relay", "&run2:*")
    peer = join(f"{process.status_url}/run2:wepp")
    assert redis_server.execute("PUBLISH", "run2:wepp", "x") == 1
    assert peer.data() == "x"


def test_a_right_that_is_taken_away_closes_that_channel_alone(relay, redis_server, limited, join):
    redis_server.execute("ACL", "SETUSER", "relay", "&run2:*")
    process = relay("status", env={"REDIS_URL": limited})
    mine, other = join(f"{process.status_url}/run1:wepp"), join(f"{process.status_url}/run2:wepp")
    redis_server.execute("ACL", "SETUSER", "relay", "resetchannels", "&run1:*")
    assert other.closed()[0] == 1008
    wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "x"), "subscribed again")
    assert mine.data() == "x"


def test_a_run_that_may_not_be_watched_is_closed_alone(relay, redis_server, limited, join):
    process = relay("preflight", env={"REDIS_URL": limited})
    mine, other = join(f"{process.preflight_url}/run1"), join(f"{process.preflight_url}/run2")
    assert other.closed()[0] == 1008
    assert mine.checks() == set()
    redis_server.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert mine.checks() == {"channels"}
    assert process.ready("preflight")


# ---- key events ----


def test_config_refused_is_unknown_and_no_failure(relay, redis_server, limited, join):
    process = relay("preflight", env={"REDIS_URL": limited})
    assert join(f"{process.preflight_url}/run1").checks() == set()
    told = wait_for(lambda: [line for line in log(process) if "unknown" in line["msg"]], "said")
    redis_server.execute("CLIENT", "KILL", "USER", "relay")
    wait_for(lambda: any("is back" in line["msg"] for line in log(process)), "back")
    wait_for(lambda: process.ready("preflight"), "ready")
    process.http("preflight", "/health")
    assert [line["level"] for line in told] == ["info"]
    assert len([line for line in log(process) if "unknown" in line["msg"]]) == 1, "once"
    assert not [line for line in log(process) if line["level"] == "error"]


@pytest.mark.parametrize("flags", ["", "Kgx", "AE"])
def test_key_events_that_are_off_are_a_loud_warning_and_stay_off(relay, redis_server, flags):
    redis_server.execute("CONFIG", "SET", "notify-keyspace-events", flags)
    before = redis_server.execute("CONFIG", "GET", "notify-keyspace-events")
    process = relay("preflight", env={"REDIS_URL": redis_server.url})
    told = wait_for(lambda: [line for line in log(process) if "notify-keyspace-events" in line["msg"]], "said")
    assert told[0]["level"] == "warning"
    assert "--set-keyspace-events" in told[0]["msg"]
    assert redis_server.execute("CONFIG", "GET", "notify-keyspace-events") == before


@pytest.mark.parametrize("flags", ["Kh", "KA"])
def test_key_events_that_are_on_are_no_warning(relay, redis_server, flags):
    redis_server.execute("CONFIG", "SET", "notify-keyspace-events", flags)
    process = relay("preflight", env={"REDIS_URL": redis_server.url})
    told = wait_for(lambda: [line for line in log(process) if "notify-keyspace-events" in line["msg"]], "said")
    assert told[0]["level"] == "info"


@pytest.mark.parametrize("flags", ["", "Elsh"])
def test_key_events_are_switched_on_where_that_is_asked_for(relay, redis_server, join, flags):
    redis_server.execute("CONFIG", "SET", "notify-keyspace-events", flags)
    process = relay("preflight", "--set-keyspace-events", env={"REDIS_URL": redis_server.url})
    wait_for(lambda: set("Kh") <= event_flags(redis_server), "switched on")
    assert set(flags) | set("Kghx") <= event_flags(redis_server), "what was on stays on"
    peer = join(f"{process.preflight_url}/run1")
    assert peer.checks() == set()
    redis_server.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert peer.checks() == {"channels"}


def event_flags(server):
    return set(server.execute("CONFIG", "GET", "notify-keyspace-events")[b"notify-keyspace-events"].decode())


def test_key_events_are_looked_at_again_after_each_reconnect(relay, redis_server):
    process = relay("preflight", env={"REDIS_URL": redis_server.url})
    redis_server.kill()
    redis_server.start("--notify-keyspace-events", "")
    told = wait_for(lambda: [line for line in log(process) if "--set-keyspace-events" in line["msg"]], "said")
    assert told[0]["level"] == "warning"


# ---- other ways to Redis ----


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def front(authority, redis_server):
    """A TLS front of a Redis, whose certificate is for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with Front(fronts.passing_to(redis_server.port), tls=context) as front:
        yield front


@pytest.fixture
def ca_file(authority, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


def serves(process, server, join):
    """Whether both services do what they are for."""
    line, checks = join(f"{process.status_url}/run1:wepp"), join(f"{process.preflight_url}/run1")
    assert checks.checks() == set()
    wait_for(lambda: server.execute("PUBLISH", "run1:wepp", "x" * 300_000), "subscribed")
    assert line.data() == "x" * 300_000
    server.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert checks.checks() == {"channels"}
    return line, checks


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("localhost", "ssl_ca_certs={ca}"),
        ("127.0.0.1", "ssl_ca_certs={ca}&ssl_check_hostname=false"),
        ("127.0.0.1", "ssl_cert_reqs=none"),
    ],
)
def test_tls(relay, redis_server, front, ca_file, join, host, options):
    redis_server.execute("ACL", "SETUSER", "relay", "on", f">{SECRET}", "~*", "&*", "+@all")
    url = f"rediss://relay:{SECRET}@{host}:{front.port}?{options.format(ca=ca_file)}"
    process = relay(env={"REDIS_URL": url})
    line, checks = serves(process, redis_server, join)
    redis_server.kill()
    gone(process)
    redis_server.start()
    redis_server.execute("ACL", "SETUSER", "relay", "on", f">{SECRET}", "~*", "&*", "+@all")
    assert checks.checks() == set()
    wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "y"), "subscribed again", patience=30.0)
    assert line.data() == "y"
    assert SECRET not in "".join(process.stderr)


@pytest.mark.parametrize(("host", "options"), [("localhost", ""), ("127.0.0.1", "?ssl_ca_certs={ca}")])
def test_a_certificate_that_does_not_fit_is_said_and_tried_again(relay, front, ca_file, join, host, options):
    process = relay(
        "status", env={"REDIS_URL": f"rediss://{host}:{front.port}{options.format(ca=ca_file)}"}, wait="listen"
    )
    wait_for(lambda: any("certificate" in line.lower() for line in process.stderr), "said")
    assert join(f"{process.status_url}/run1:wepp").alive()
    assert not process.ready("status")


def test_tls_asked_of_a_redis_that_has_none_and_the_reverse(relay, redis_server, front):
    for url in (redis_server.url.replace("redis:", "rediss:"), f"redis://localhost:{front.port}"):
        process = relay("status", env={"REDIS_URL": url, **QUICK}, wait="listen")
        wait_for(lambda p=process: any("no Redis for" in line for line in p.stderr), "said")
        assert process.http("status", "/readyz")[0] == 503


def test_a_unix_socket_of_redis(relay, new_redis, join):
    with tempfile.TemporaryDirectory() as directory:  # a short path: CLIENT LIST cuts it at 63 bytes
        server = new_redis("--unixsocket", f"{directory}/redis.sock", "--unixsocketperm", "700")
        process = relay(env={"REDIS_URL": f"unix://{directory}/redis.sock"})
        serves(process, server, join)
    assert server.execute("CLIENT", "LIST").count(b"redis.sock:0 laddr") == 4
