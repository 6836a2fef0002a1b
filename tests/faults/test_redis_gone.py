"""F1, F2, F7, F8, F9, F11, F14: Redis is away, comes back empty, resets, kills what is slow, or does not let us in."""

import time

import pytest

from tests.conftest import ADMIN
from tests.faults.promises import heals
from tests.faults.proxy import SUBSCRIPTIONS
from tests.faults.recorder import Publisher, Said, Written
from tests.integration.peers import Peer, wait_for

NEVER_BACK = {
    f"{service}_REDIS_RETRY_{which}": "1h" for service in ("STATUS", "PREFLIGHT") for which in ("BASE", "MAX")
}
RETURN = 2.0  # seconds from Redis' return, or from a reset, until all is subscribed again
USER, SECRET = "relay-user", "s3cr3t-of-the-row"


def ready(judge):
    judge.wait(lambda client: client.judge.version == 1 or client.judge.readies, "ready")
    judge.wait(lambda client: hasattr(client.judge, "said") or client.judge.got, "the first snapshot")


def unready(process):
    wait_for(lambda: not any(process.ready(service) for service in process.services), "the loss noticed")


def again(judge, patience=RETURN, gaps=1):
    """Each client that asks was told of so many holes, and then that nothing is missing from now on -> seconds."""

    def told(client):
        return client.judge.version == 1 or (len(client.judge.gaps) >= gaps and client.judge.sure)

    return judge.wait(told, "promise 4, heals", patience)


# ---- F1, F2: it dies, and is there again ----


@pytest.mark.row("F1")
@pytest.mark.parametrize("sockets, away", [(100, 0.3), pytest.param(1000, 3.0, marks=pytest.mark.long)])  # noqa: PT006
def test_killed_and_back(relay, redis_server, recorder, worker, told, sockets, away):
    env = {"REDIS_URL": redis_server.url}
    process, bare = relay(env=env), relay("status", env=env | NEVER_BACK)
    mute = relay("status", env=env, without=["resubscribe"])
    judge, lost, deaf = recorder(), recorder(), recorder()
    channels = [Said(f"run{n}:wepp") for n in range(sockets // 4)]
    runs = [Written(f"run{n}") for n in range(sockets // 4)]
    for version in (1, 2):
        judge.join(process.status_url, *channels, version=version)
        judge.join(process.preflight_url, *runs, version=version)
    lost.join(bare.status_url, *channels[:10])
    deaf.join(mute.status_url, *channels[:10])
    for known in (judge, lost, deaf):
        ready(known)
    connection = worker(redis_server)
    for run in runs:
        run.write(connection, 4)
    with Publisher(lambda: worker(redis_server), channels, 1000):
        judge.wait(lambda client: client.judge.got > 1, "traffic")
        redis_server.kill()
        unready(process)
        time.sleep(away)
    told.injected(f"kill -9 of Redis for {away} s, {sockets} sockets, traffic")
    for run in runs:
        run.wiped()
    redis_server.start()
    back = again(judge)
    for control in (lost, deaf):
        with pytest.raises(AssertionError, match="promise 4, heals"):
            again(control)
    for number, run in enumerate(runs):
        run.write(connection, 1 + number % 6)
    for channel in channels:
        channel.publish(connection)
    judge.settle()
    told.observed(
        f"all subscribed {back:.2f} s after its return; no socket lost; trying once an hour, or not subscribing again, "
        "it did not heal"
    )
    told.bound(f"{RETURN:g} s")


@pytest.mark.row("F2")
@pytest.mark.parametrize("kept", [False, True], ids=["hashes gone", "hashes kept"])
def test_a_clean_restart(relay, redis_server, recorder, worker, told, kept):
    """Nothing is said while it is away; one new snapshot where it forgot, and none where nothing has changed."""
    env = {"REDIS_URL": redis_server.url}
    judges, connection = (recorder(), recorder()), worker(redis_server)
    runs = [Written(f"run{n}") for n in range(20)]
    for run in runs:
        run.write(connection, 6)
    for judge, without in zip(judges, ([], ["silence"]), strict=True):
        process = relay("preflight", env=env, without=without)
        judge.join(process.preflight_url, *runs)
        ready(judge)
    if kept:
        redis_server.execute("SAVE")
    redis_server.stop()
    unready(process)
    told.injected("SHUTDOWN and start, " + ("hashes kept" if kept else "hashes gone"))
    if not kept:
        for run in runs:
            run.wiped()
            judges[0].verdict()
    redis_server.start()
    for judge in judges:
        again(judge)
    assert {client.judge.got for client in judges[0].clients} == {1 if kept else 2}
    for run in runs:
        run.write(connection, 2)
    judges[0].settle()
    told.observed("no frame while it was away; a relay that is not silent shows an empty checklist")
    told.bound("one fresh snapshot, no transient state")
    if kept:
        with pytest.raises(AssertionError, match="promise 7, never back in time"):
            judges[1].verdict()


# ---- F11: what is read is refused, and the connections stay ----


@pytest.mark.row("F11")
def test_reading_is_refused_meanwhile(relay, redis_server, worker, told):
    """A checklist was stale for ever, and newcomers were told that it was not."""
    connection = worker(redis_server)
    process = relay("preflight", env={"REDIS_URL": redis_server.url})
    url = process.preflight_url
    with Peer(f"{url}/run1?v=2") as peer:
        assert peer.checks() == set()
        assert peer.message() == {"type": "ready"}
        redis_server.execute("ACL", "SETUSER", "default", "-hgetall")
        connection.hset("run1", "timestamps:build_channels", "10")
        assert peer.message()["type"] == "gap"
        assert not process.ready("preflight")
        with Peer(f"{url}/run1?v=2") as newcomer:
            assert newcomer.checks() == set(), "the last that is known"
            assert newcomer.message()["type"] == "gap"
        redis_server.execute("ACL", "SETUSER", "default", "+hgetall")
        assert peer.checks() == {"channels"}
        assert peer.message() == {"type": "ready"}
    wait_for(lambda: process.ready("preflight"), "promise 4, heals")
    told.injected("HGETALL taken from the relay's user and given again")
    told.observed("told at the next write; 503 until it was given again")
    told.bound("15 s")


# ---- F7, F8, F9, F14: the subscriptions are reset ----


@pytest.mark.row("F7")
@pytest.mark.parametrize("times, every", [(10, 0.2), pytest.param(30, 2.0, marks=pytest.mark.long)])  # noqa: PT006
def test_reset_again_and_again(relay, redis_server, proxy, recorder, worker, footprint, told, times, every):
    line = proxy(redis_server)
    process = relay(env={"REDIS_URL": line.url})
    judge = recorder()
    channels, runs = [Said(f"run{n}:wepp") for n in range(20)], [Written(f"run{n}") for n in range(20)]
    judge.join(process.status_url, *channels)
    judge.join(process.preflight_url, *runs)
    ready(judge)
    use, connection = footprint(process), worker(redis_server)
    with Publisher(lambda: worker(redis_server), channels, 500):
        line.reset(SUBSCRIPTIONS)
        again(judge, 5.0)
        files, memory = use.files, use.memory
        for turn in range(2, times + 2):
            due = time.monotonic() + every
            line.reset(SUBSCRIPTIONS)
            runs[turn % 20].write(connection, 1 + turn % 6)
            again(judge, 5.0, gaps=turn)
            assert len(line.open()) <= 4, "one connection of each kind for each service"
            time.sleep(max(0.0, due - time.monotonic()))
        assert use.files == files, "descriptors are lost"
        wait_for(lambda: use.files == files, "as many descriptors as before")
        growth = use.memory - memory
        assert growth < 1 << 20, f"memory has grown by {growth} bytes"
    judge.settle()
    assert line.most <= 4, f"{line.most} connections at once"
    told.injected(f"RST of the subscriptions {times} times, every {every} s")
    told.observed(f"{line.most} connections at most, {files} descriptors, {growth >> 10:+} KiB")
    told.bound("4 connections, 0 descriptors, 1 MiB")


@pytest.mark.row("F8")
@pytest.mark.parametrize("rate, kills", [(2000, 3), pytest.param(10_000, 10, marks=pytest.mark.long)])  # noqa: PT006
def test_killed_under_traffic(relay, redis_server, recorder, worker, told, rate, kills):
    env = {"REDIS_URL": redis_server.url}
    process, bare = relay("status", env=env), relay("status", env=env, without=["gap"])
    judge, untold = recorder(keep=False), recorder(keep=False)
    channels = [Said(f"run{n}:wepp") for n in range(10)]
    judge.join(process.status_url, *channels)
    untold.join(bare.status_url, *channels)
    for known in (judge, untold):
        ready(known)
    with Publisher(lambda: worker(redis_server), channels, rate):
        for kill in range(1, kills + 1):
            got = sum(client.judge.got for client in judge.clients)
            wait_for(lambda got=got: sum(c.judge.got for c in judge.clients) > got + rate / 4, "traffic")
            redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
            again(judge, gaps=kill)
    judge.settle()
    missed = sum(client.judge.missed for client in judge.clients)
    assert missed, "no kill has made a hole: nothing was tried"
    assert {len(client.judge.gaps) for client in judge.clients} == {kills}, "one hole for each kill"
    with pytest.raises(AssertionError, match="promise 3, no silent hole"):
        untold.settle()
    told.injected(f"CLIENT KILL TYPE pubsub {kills} times at {rate} messages/s")
    told.observed(
        f"{missed} of {sum(c.count for c in channels)} missing, each within a flagged hole; untold: silent holes"
    )
    told.bound("one hole for each kill, each flagged")


@pytest.mark.row("F9")
def test_the_output_buffer_overflows(relay, redis_server, recorder, worker, told):
    """The relay stands still while Redis has too much for it, and is cut off."""
    redis_server.execute("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1")
    env = {"REDIS_URL": redis_server.url}
    processes = relay("status", env=env), relay("status", env=env, without=["gap"])
    judges, connection = (recorder(), recorder()), worker(redis_server)
    channels = [Said(f"run{n}:wepp") for n in range(4)]
    for process, judge in zip(processes, judges, strict=True):
        judge.join(process.status_url, *channels)
        ready(judge)
        process.process.send_signal(19)
    while any(channel.publish(connection, b"x" * 60_000) for channel in channels):
        assert channels[0].count < 2000, "Redis has not cut it off"
    for process in processes:
        process.process.send_signal(18)
    again(judges[0], 5.0)
    for channel in channels:
        channel.publish(connection)
    judges[0].settle()
    assert {len(client.judge.gaps) for client in judges[0].clients} == {1}
    with pytest.raises(AssertionError, match="promise 3, no silent hole"):
        judges[1].settle(patience=2.0)
    told.injected("SIGSTOP of the relay until Redis drops it for its output buffer")
    told.observed(f"one flagged hole of {judges[0].clients[0].judge.missed} messages; untold: a silent one")
    told.bound("flagged")


@pytest.mark.row("F9")
@pytest.mark.long
def test_the_reader_waits_for_no_client(relay, redis_server, recorder, worker, told):
    """Clients that never read, on the same channels: nothing is missing for the others, and Redis drops nobody."""
    redis_server.execute("CONFIG", "SET", "client-output-buffer-limit", "pubsub 8mb 8mb 1")
    process = relay("status", env={"REDIS_URL": redis_server.url})
    judge = recorder(keep=False)
    channels = [Said(f"run{n}:wepp") for n in range(4)]
    judge.join(process.status_url, *channels)
    ready(judge)
    mute = [Peer(f"{process.status_url}/run{n % 4}:wepp", receive_buffer=1024) for n in range(40)]
    with Publisher(lambda: worker(redis_server), channels, 2000, b"x" * 4000):
        judge.wait(lambda client: client.judge.got > 2000, "8 MB to each", 30.0)
    judge.settle()
    assert not any(client.judge.gaps for client in judge.clients), "Redis has dropped the link"
    assert not any(client.judge.missed for client in judge.clients)
    for peer in mute:
        peer.drop()
    told.injected("40 clients that never read, 8 MB/s")
    told.observed("nothing missing, no hole")
    told.bound("the link's reader never waits")


@pytest.mark.row("F14")
@pytest.mark.long
def test_five_thousand_channels(relay, redis_server, proxy, recorder, worker, told):
    line = proxy(redis_server)
    process = relay("status", env={"REDIS_URL": line.url})
    mute = relay("status", env={"REDIS_URL": line.url}, without=["resubscribe"])
    judge, deaf, connection = recorder(keep=False), recorder(keep=False), worker(redis_server)
    channels = [Said(f"run{n}:wepp") for n in range(5000)]
    judge.join(process.status_url, *channels)
    deaf.join(mute.status_url, *channels[:10])
    for known in (judge, deaf):
        known.wait(lambda client: client.judge.readies, "ready", 30.0)
    took = []
    for turn in range(1, 4):
        line.reset(SUBSCRIPTIONS)
        start = time.monotonic()
        judge.wait(
            lambda client, turn=turn: len(client.judge.gaps) == turn and client.judge.sure, "promise 4, heals", RETURN
        )
        took.append(time.monotonic() - start)
        for channel in channels[::7]:
            channel.publish(connection)
    judge.settle()
    with pytest.raises(AssertionError, match="promise 4, heals"):
        again(deaf)
    told.injected("RST of a link with 5000 channels, three times")
    told.observed(f"all told and subscribed again in {max(took):.2f} s at most; not subscribing again, never")
    told.bound(f"{RETURN:g} s")


# ---- F11: it is there, and does not let us in ----


def full(admin):
    admin.config_set("maxclients", 1)


def locked(admin):
    admin.execute_command("ACL", "SETUSER", USER, "resetpass", ">another")


def off(admin):
    admin.execute_command("ACL", "SETUSER", USER, "off")


def mute(admin):
    admin.execute_command("ACL", "SETUSER", USER, "-subscribe", "-publish", "-hgetall")


def let_in(admin):
    admin.config_set("maxclients", 1000)
    admin.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{SECRET}", "~*", "&*", "+@all")


@pytest.mark.row("F11")
@pytest.mark.long
@pytest.mark.parametrize("shut", [full, locked, off, mute], ids=lambda shut: shut.__name__)
def test_not_let_in(relay, redis_server, recorder, worker, told, shut):
    connection = worker(redis_server, username=ADMIN[0], password=ADMIN[1])
    let_in(connection)
    env = {"REDIS_URL": f"redis://{USER}:{SECRET}@127.0.0.1:{redis_server.port}"}
    chatty = {"without": ["log-every"]} if shut is not mute else {}
    process, bare = relay(env=env), relay("status", env=env, **chatty)
    gives_up = relay("status", env=env | {"STATUS_REDIS_MAX_RETRIES": "3"})
    judge = recorder()
    channels, runs = [Said(f"run{n}:wepp") for n in range(5)], [Written(f"run{n}") for n in range(5)]
    for version in (1, 2):
        judge.join(process.status_url, *channels, version=version)
        judge.join(process.preflight_url, *runs, version=version)
    ready(judge)
    shut(connection)
    for kind in ("pubsub", "normal"):
        connection.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    told.injected(f"{shut.__name__}, for 12 s")
    shut_at = time.monotonic()
    unready(process)
    while time.monotonic() < shut_at + 12:
        assert process.process.poll() is None
        judge.verdict()
        time.sleep(0.1)
    let_in(connection)
    back = heals(process, judge, 31.0)
    for run in runs:
        run.write(connection, 3)
    for channel in channels:
        channel.publish(connection)
    judge.settle()
    said = [line for line in process.stderr if "no Redis for" in line]
    assert said, "nothing in the log"
    assert len(said) <= 8, f"more than a line a minute of each kind and connection: {said}"
    for relays in (process, bare, gives_up):
        assert SECRET not in "\n".join(relays.stderr), "a secret in the log"
    if shut is not mute:
        assert len([line for line in bare.stderr if "no Redis for" in line]) > 8
        assert gives_up.process.wait(5) == 4, "a relay that tries three times is gone"
    told.observed(f"back {back:.1f} s after it was let in; {len(said)} lines")
    told.bound("tries for ever; a line a minute and connection; no secret")
