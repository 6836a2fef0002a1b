"""Contract, section 4, against a running relay and a real Redis."""

import json
import re
import threading
import time

import pytest
import redis
from websockets.asyncio.client import connect

from client import TaskEnum
from client.prep import RedisPrep
from tests.conftest import ADMIN
from tests.integration.peers import wait_for

CHECKS = {
    *("sbs_map", "channels", "outlet", "subcatchments", "landuse", "rangeland_cover", "rhem", "soils", "climate"),
    *("rap_ts", "openet_ts", "wepp", "observed", "debris", "watar", "omni_scenarios", "omni_contrasts", "dss_export"),
    *("run_path_ce", "roads", "rusle", "geneva"),
}
LOCKS = dict.fromkeys(("watershed", "climate", "wepp", "soils", "landuse", "disturbed"), False)
DUMP = {
    "attrs:loaded": "true",
    "attrs:has_sbs": "false",
    "timestamps:landuse_map": "1712535018",
    "timestamps:build_channels": "1712028840",
    "timestamps:set_outlet": "1712515206",
    "timestamps:abstract_watershed": "1712515226",
    "timestamps:build_landuse": "1712535023",
    "timestamps:build_soils": "1712535083",
    "timestamps:build_climate": "1712515667",
    "timestamps:run_wepp": "1714168234",
}
SEVEN = {"channels", "outlet", "subcatchments", "landuse", "soils", "climate", "wepp"}


def stamps(**times):
    return {f"timestamps:{name}": str(value) for name, value in times.items()}


# What a client is told that asks so, in this order.
TOLD = {("preflight",): "", ("preflight", "ready"): "?v=2", ("times", "preflight", "ready"): "?v=3"}
SIX = stamps(
    build_channels=10, set_outlet=20, abstract_watershed=30, build_landuse=40, build_soils=50, build_climate=60
)


@pytest.fixture
def preflight(standing):
    """The URL of a running preflight service, which knows what tests before this one did: use `run`."""
    return standing.preflight_url


@pytest.fixture
def run(request):
    """The name of a run that no other test uses."""
    return "run-" + re.sub(r"[^A-Za-z0-9_.-]", "-", request.node.name)


@pytest.fixture
def db(worker, redis_url):
    connection = worker(redis_url)
    connection.ping()
    return connection


@pytest.fixture
def private(relay, redis_server, worker):
    """A preflight service on a Redis of its own: (relay, the server, a worker's connection)."""
    process = relay("preflight", env={"REDIS_URL": redis_server.url, "PREFLIGHT_METRICS_ENABLED": "true"})
    return process, redis_server, worker(redis_server.url)


def reads(server):
    """How many HGETALLs the server has served."""
    found = server.execute("INFO", "commandstats").get("cmdstat_hgetall", {"calls": 0})
    return found["calls"]


# ---- the frame ----


def test_the_frame_of_an_unknown_run(preflight, join):
    raw = join(f"{preflight}/unknown").raw()
    frame = json.loads(raw)
    assert frame == {"type": "preflight", "checklist": dict.fromkeys(CHECKS, False), "lock_statuses": LOCKS}
    assert raw == json.dumps(frame, separators=(",", ":")).encode(), "compact, in UTF-8"


def test_the_frame_of_a_known_run(preflight, run, join, db):
    db.hset(run, mapping=DUMP | {"locked:wepp.nodb": "true", "locked:climate.nodb": "True", "locked:": "true"})
    frame = join(f"{preflight}/{run}").message()
    assert frame == {
        "type": "preflight",
        "checklist": {key: key in SEVEN for key in CHECKS},
        "lock_statuses": LOCKS | {"wepp.nodb": True, "climate.nodb": False},
        "last_modified": 1714168234,
    }


@pytest.mark.parametrize(
    ("fields", "checks"),
    [
        (SIX, {"channels", "outlet", "subcatchments", "landuse", "soils", "climate"}),
        (SIX | stamps(run_wepp=70), {"channels", "outlet", "subcatchments", "landuse", "soils", "climate", "wepp"}),
        (
            SIX | stamps(run_wepp=70, build_landuse=80),
            {"channels", "outlet", "subcatchments", "landuse", "climate"},
        ),
        (stamps(set_outlet=10, abstract_watershed=10, build_channels=10), {"channels"}),
        ({"attrs:has_sbs": "True", "timestamps:build_channels": ""}, {"channels"}),
        (stamps(build_channels=10) | {"timestamps:set_outlet": " 20 "}, {"channels"}),
        ({b"timestamps:build_channels": b"\xff\xfe", b"\xff": b"\xff", b"locked:\xff": b"true"}, {"channels"}),
    ],
)
def test_checklists(preflight, run, join, db, fields, checks):
    db.hset(run, mapping=fields)
    assert join(f"{preflight}/{run}").checks() == checks


async def test_a_model_run_for_another_websocket_library(preflight, run, redis_url, tmp_path, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_url)
    (tmp_path / run).mkdir()
    async with connect(f"{preflight}/{run}") as websocket:
        seen = []

        async def checks():
            frame = json.loads(await websocket.recv(decode=True))
            while frame["type"] == "ping":
                frame = json.loads(await websocket.recv(decode=True))
            return {key for key, value in frame["checklist"].items() if value}

        assert await checks() == set()
        prep = RedisPrep(str(tmp_path / run))
        for task in ("build_channels", "set_outlet", "abstract_watershed", "build_landuse", "build_soils"):
            prep.timestamp(TaskEnum(task))
            seen.append(await checks())
            while len(seen[-1]) < len(seen):  # the dump's attrs:loaded, which changes nothing that is shown
                seen[-1] = await checks()
        assert seen[-1] == {"channels", "outlet", "subcatchments", "landuse", "soils"}
        prep.redis.connection_pool.disconnect()


# ---- the numbered statements ----


def test_1_a_snapshot_on_connect_and_the_socket_stays_open(preflight, run, join, db):
    first = join(f"{preflight}/{run}")
    assert first.checks() == set()
    db.hset(run, mapping=SIX)
    assert len(first.checks()) == 6
    second = join(f"{preflight}/{run}")
    assert len(second.checks()) == 6, "who joins later gets one as well"
    assert first.alive(), "the first client got another frame, or was closed"
    assert first.unread == b""


def test_2_a_frame_whenever_the_snapshot_changes_and_none_when_not(preflight, run, join, db):
    peer = join(f"{preflight}/{run}")
    assert peer.message()["lock_statuses"] == LOCKS
    db.hset(run, "timestamps:build_channels", "10")
    assert peer.message() == {
        "type": "preflight",
        "checklist": {key: key == "channels" for key in CHECKS},
        "lock_statuses": LOCKS,
        "last_modified": 10,
    }
    for fields in ({"timestamps:build_channels": "10"}, {"rq:x": "job"}, {"attrs:loaded": "true"}):
        db.hset(run, mapping=fields)
    db.hset(run, "locked:wepp", "true")
    frame = peer.message()
    assert frame["lock_statuses"] == LOCKS | {"wepp": True}, "an unchanged snapshot was sent again"
    assert {key for key, value in frame["checklist"].items() if value} == {"channels"}
    db.hset(run, "locked:wepp", "false")
    assert peer.message()["lock_statuses"] == LOCKS
    db.hset(run, "last_modified", "99")
    assert peer.message()["last_modified"] == 99


@pytest.mark.parametrize("how", ["DEL", "UNLINK", "EXPIRE", "RENAME", "HDEL"])
def test_2_a_hash_that_goes_away_changes_the_snapshot(preflight, run, join, db, how):
    db.hset(run, mapping=SIX)
    peer = join(f"{preflight}/{run}")
    assert len(peer.checks()) == 6
    arguments = {"EXPIRE": [0], "RENAME": ["elsewhere"], "HDEL": list(SIX)}.get(how, [])
    db.execute_command(how, run, *arguments)
    assert peer.checks() == set()


def test_2_a_hash_that_comes_by_another_name_changes_the_snapshot(preflight, run, join, db):
    peer = join(f"{preflight}/{run}")
    assert peer.checks() == set()
    db.hset("other", mapping=SIX)
    db.rename("other", run)
    assert len(peer.checks()) == 6


def test_3_a_write_between_connect_and_subscription_is_never_missed(preflight, run, join, db):
    for number in range(150):
        peer = join(f"{preflight}/{run}-{number}")
        db.hset(f"{run}-{number}", "timestamps:build_channels", "10")
        assert all(before == set() for before in peer.until({"channels"}))


def test_3_subscribed_first_and_then_read(private, join):
    process, server, _ = private
    user, password = ADMIN
    with redis.Redis(port=server.port, username=user, password=password) as watcher, watcher.monitor() as monitor:
        peer = join(f"{process.preflight_url}/run1")
        peer.checks()
        seen = []
        for command in monitor.listen():
            seen.append(command["command"])
            if command["command"].startswith("HGETALL"):
                break
    asked = [command for command in seen if "run1" in command]
    assert asked == ["SUBSCRIBE __keyspace@0__:run1", "HGETALL run1"]


def test_4_a_burst_of_writes_costs_few_reads_and_frames_and_the_last_state_arrives(private, join):
    process, server, db = private
    peers = [join(f"{process.preflight_url}/run1") for _ in range(30)]
    for peer in peers:
        assert peer.checks() == set()
    before, begin = reads(server), time.monotonic()
    for first in range(1, 40_001, 1000):
        with db.pipeline(transaction=False) as pipe:
            for number in range(first, first + 1000):
                pipe.hset("run1", "timestamps:x", str(number))
            pipe.execute()
    counts = []
    for peer in peers:
        frames = [peer.message()["last_modified"]]
        while frames[-1] != 40_000:
            frames.append(peer.message()["last_modified"])
        assert frames == sorted(set(frames)), "an older snapshot after a newer one, or one twice"
        counts.append(len(frames))
    most = (time.monotonic() - begin) / 0.025 + 3
    assert max(counts) <= most
    assert reads(server) - before <= most


def test_4_one_event_is_one_read_however_many_watch(private, join):
    process, server, db = private
    peers = [join(f"{process.preflight_url}/run1") for _ in range(50)]
    for peer in peers:
        peer.checks()
    before = reads(server)
    db.hset("run1", "timestamps:build_channels", "10")
    for peer in peers:
        assert peer.checks() == {"channels"}
    assert reads(server) - before == 1


def test_4_at_most_one_read_in_flight_for_a_run(private, join):
    """Five hundred events in one go, as a script makes them: one read at once, and one more for what came meanwhile."""
    process, server, _ = private
    peer = join(f"{process.preflight_url}/run1")
    peer.checks()
    before = reads(server)
    server.execute("EVAL", "for i = 1, 500 do redis.call('HSET', KEYS[1], 'timestamps:x', i) end", 1, "run1")
    while peer.message()["last_modified"] != 500:
        pass
    peer.alive()
    assert reads(server) - before <= 2


def test_4_a_join_does_not_wait_for_the_spacing_and_an_overtaken_read_is_still_sent(preflight, run, join, db):
    """Writes without a pause: frames keep coming, and who joins has one at once."""
    done = threading.Event()

    def write():
        number = 0
        while not done.is_set():
            number += 1
            db.hset(run, "timestamps:x", str(number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        peer = join(f"{preflight}/{run}")
        stamps = [peer.message().get("last_modified", 0) for _ in range(30)]
        late = join(f"{preflight}/{run}")
        assert late.message()["last_modified"] >= stamps[-1]
    finally:
        done.set()
        writer.join()
    assert stamps == sorted(set(stamps))


def test_5_on_errors_of_redis_nothing_is_sent(private, join):
    process, server, db = private
    db.hset("run1", mapping=SIX | stamps(run_wepp=70))
    peer = join(f"{process.preflight_url}/run1")
    assert "wepp" in peer.checks()
    with db.pipeline(transaction=True) as pipe:  # a string where the hash was: WRONGTYPE
        pipe.delete("run1").set("run1", "x").expire("run1", 100).execute()
    wait_for(lambda: any("WRONGTYPE" in line for line in process.stderr), "the refusal in the log")
    with db.pipeline(transaction=True) as pipe:
        pipe.delete("run1").hset("run1", mapping=SIX | stamps(run_wepp=71)).execute()
    assert peer.message()["last_modified"] == 71, "something was sent meanwhile"
    server.execute("ACL", "SETUSER", "default", "-hgetall")
    db.hset("run1", "timestamps:run_wepp", "72")
    wait_for(lambda: server.execute("ACL", "LOG"), "the read refused")
    peer.alive()
    server.execute("ACL", "SETUSER", "default", "+hgetall")
    db.hset("run1", "timestamps:run_wepp", "73")
    assert peer.message()["last_modified"] == 73


def test_5_no_false_frame_over_a_restart_and_the_truth_after_it(private, join):
    process, server, db = private
    done = SIX | stamps(run_wepp=70)
    db.hset("run1", mapping=done)
    peer = join(f"{process.preflight_url}/run1")
    everything = peer.checks()
    server.kill()
    wait_for(lambda: not process.ready("preflight"), "the loss noticed")
    late = join(f"{process.preflight_url}/run1")
    assert late.checks() == everything, "the last snapshot that this process holds"
    unknown = join(f"{process.preflight_url}/never-seen")
    assert unknown.alive()
    server.start()
    db.hset("run1", mapping=done | stamps(run_wepp=71))
    for watcher in (peer, late):
        frames = [watcher.message()]
        while frames[-1].get("last_modified") != 71:
            frames.append(watcher.message())
        # Hashes are gone with the server: that it was empty for a moment is true, and may have been seen.
        assert len(frames) <= 2
    assert unknown.checks() == set()


def test_5_a_run_that_was_watched_once_has_its_snapshot_while_redis_is_away(private, join):
    process, server, db = private
    db.hset("run1", mapping=SIX)
    with join(f"{process.preflight_url}/run1") as first:
        first.checks()
        first.leave()
    wait_for(lambda: server.channels() == [], "unsubscribed")
    server.kill()
    wait_for(lambda: not process.ready("preflight"), "the loss noticed")
    assert len(join(f"{process.preflight_url}/run1").checks()) == 6


def test_5_a_snapshot_at_hand_survives_a_redis_that_dies_in_silence(relay, redis_server, join, worker):
    """Frozen, it is away before anybody knows; who joins then must not lose the snapshot for those after him."""
    env = {
        "REDIS_URL": redis_server.url,
        "PREFLIGHT_REDIS_REQUEST_TIMEOUT": "300ms",
        "PREFLIGHT_PING_INTERVAL": "200ms",
    }
    process = relay("preflight", env=env)
    worker(redis_server.url).hset("run1", mapping=SIX)
    with join(f"{process.preflight_url}/run1") as first:
        first.checks()
        first.leave()
    wait_for(lambda: redis_server.channels() == [], "unsubscribed")
    redis_server.pause()
    early = join(f"{process.preflight_url}/run1")
    wait_for(lambda: not process.ready("preflight"), "the silence noticed")
    late = join(f"{process.preflight_url}/run1")
    assert b'"preflight"' in late.frame()[1], "who joins while Redis is away gets the last snapshot"
    redis_server.resume()
    assert len(early.checks()) == 6


def test_6_the_exact_key_only(private, join):
    process, server, db = private
    peer = join(f"{process.preflight_url}/run1")
    peer.checks()
    assert server.channels() == [b"__keyspace@0__:run1"]
    assert server.execute("PUBSUB", "NUMPAT") == 0
    before = reads(server)
    for key in ("nodb-lock:x:run1", "run10", "run", "xrun1", "run1:x", "RUN1"):
        db.hset(key, mapping=DUMP)
    with redis.Redis(port=server.port, db=1) as elsewhere:
        elsewhere.hset("run1", mapping=DUMP)
    db.hset("run1", "timestamps:build_channels", "10")
    assert peer.checks() == {"channels"}
    assert reads(server) - before == 1


def test_6_another_database_is_watched_where_the_services_own_url_names_it(relay, redis_url, join, worker):
    process = relay("preflight", env={"PREFLIGHT_REDIS_URL": f"{redis_url}/3"})
    peer = join(f"{process.preflight_url}/run1")
    assert peer.checks() == set()
    worker(f"{redis_url}/0").hset("run1", mapping=DUMP)
    worker(f"{redis_url}/3").hset("run1", "timestamps:build_channels", "10")
    assert peer.checks() == {"channels"}


def test_7_watched_runs_are_read_again_without_any_event(private, join):
    """Spread over 50 s: of 200 watched runs the first few are read again within a second."""
    process, server, db = private
    peers = [join(f"{process.preflight_url}/run{number}") for number in range(200)]
    for peer in peers:
        assert peer.checks() == set()
    server.execute("CONFIG", "SET", "notify-keyspace-events", "")
    with db.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.hset(f"run{number}", mapping=SIX)
        pipe.execute()
    before = reads(server)
    healed = wait_for(lambda: [peer for peer in peers if has_come(peer)][4:], "some runs read again")
    assert len(healed[0].checks()) == 6
    assert reads(server) - before < 100, "spread, not all at once"
    wait_for(lambda: any("notify-keyspace-events" in line for line in process.stderr), "the warning")


def has_come(peer):
    """Whether a snapshot has come by now."""
    peer.socket.settimeout(0)
    try:
        peer.more()
    except BlockingIOError:
        pass
    finally:
        peer.socket.settimeout(20)
    return b'"preflight"' in peer.unread


def test_no_reads_for_runs_that_nobody_watches(private, join):
    process, server, db = private
    with join(f"{process.preflight_url}/run1") as peer:
        peer.checks()
        peer.leave()
    wait_for(lambda: server.channels() == [], "unsubscribed")
    before = reads(server)
    db.hset("run1", mapping=DUMP)
    other = join(f"{process.preflight_url}/other")
    other.checks()
    assert reads(server) - before == 1


def test_counters(private, join):
    process, _, db = private
    peers = [join(f"{process.preflight_url}/run1") for _ in range(3)]
    for peer in peers:
        peer.checks()
    db.hset("run1", "timestamps:build_channels", "10")
    for peer in peers:
        peer.checks()
    body = process.http("preflight", "/metrics")[2].decode()
    assert re.search(r"^preflight2_connections_active 3\.0$", body, re.MULTILINE)
    assert float(re.search(r"^preflight2_messages_sent_total (.+)$", body, re.MULTILINE)[1]) == 6


def test_who_asks_for_version_3_is_told_when_and_why_ahead_of_each_snapshot(preflight, run, join, db):
    db.hset(run, mapping=SIX)
    peers = {kinds: join(f"{preflight}/{run}{query}") for kinds, query in TOLD.items()}
    for kinds, peer in peers.items():
        frames = [peer.message() for _ in kinds]
        assert [frame["type"] for frame in frames] == list(kinds)
    assert frames[0] == {
        "type": "times",
        "done": {"channels": 10, "outlet": 20, "subcatchments": 30, "landuse": 40, "soils": 50, "climate": 60},
        "started": {},
        "stale": {},
    }
    db.hset(run, mapping={"timestamps:build_landuse": "70", "started:build_soils": "71"})
    for kinds, peer in peers.items():
        frames = [peer.message() for kind in kinds if kind != "ready"]
        assert [frame["type"] for frame in frames] == [kind for kind in kinds if kind != "ready"]
        assert frames[-1]["checklist"]["soils"] is False
    assert (frames[0]["started"], frames[0]["stale"]) == ({"soils": 71}, {"soils": ["landuse"]})
    db.hset(run, "started:build_soils", "72")
    assert frames[0] | {"started": {"soils": 72}} == peer.message(), "alone, for no tick has changed"
    assert all(peer.alive() and peer.unread == b"" for peer in peers.values())
