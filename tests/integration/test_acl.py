"""deploy/redis-acl.conf against a real Redis: each role can do its work, and nothing else."""

import json
import re

import pytest
import redis

from client import RedisPrep, StatusMessenger, TaskEnum, configure
from tests.conftest import ADMIN, ROOT, RedisServer
from tests.integration.peers import head
from tests.integration.test_operators import asked
from tests.integration.worker_rig import RUN

FILE = ROOT / "deploy" / "redis-acl.conf"
PASSWORD = "only-on-loopback"
OPEN = {"auth", "hello", "quit", "reset"}  # to everybody, and harmless (Redis: CMD_NO_AUTH)
MAY = {
    "relay-status": {"ping", "subscribe", "unsubscribe", "info", "publish"},
    "relay-preflight": {"ping", "subscribe", "unsubscribe", "info", "publish", "hgetall"},
    "worker": {"publish", "hget", "hgetall", "hmget", "hset", "hsetnx", "hdel", "eval", "multi", "exec"},
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A Redis that includes the file, with passwords added, and shuts out who has no name."""
    directory = tmp_path_factory.mktemp("acl")
    lines = [line.replace(" on ", f" on >{PASSWORD} ", 1) for line in FILE.read_text().splitlines()]
    (directory / "acl.conf").write_text("\n".join(lines) + "\n")
    server = RedisServer(directory)
    server.start("--include", str(directory / "acl.conf"))
    server.execute("ACL", "SETUSER", "default", "off")
    yield server
    server.stop()


def login(server, user):
    return f"redis://{user}:{PASSWORD}@127.0.0.1:{server.port}"


def connected(server, user):
    return redis.Redis.from_url(login(server, user), protocol=2)


def refused(connection, *command):
    """Whether Redis says that this user may not; a command inside a script is refused with another word."""
    try:
        connection.execute_command(*command)
    except redis.exceptions.ResponseError as error:
        return (
            isinstance(error, redis.exceptions.NoPermissionError)
            or "ACL failure" in str(error)
            or "user executing" in str(error)
        )
    return False


def test_the_file_names_each_user_and_lets_nobody_in_yet(new_redis):
    server = new_redis("--include", str(FILE))
    assert {name.decode() for name in server.execute("ACL", "USERS")} >= set(MAY)
    for user in MAY:
        with redis.Redis.from_url(login(server, user)) as worker, pytest.raises(redis.AuthenticationError):
            worker.ping()


def every_command(server):
    """Each command and subcommand that the server has, with as many arguments as it wants."""
    user, password = ADMIN
    with redis.Redis(port=server.port, username=user, password=password) as admin:
        admin.response_callbacks.clear()  # redis-py's leaves the subcommands out
        for entry in admin.execute_command("COMMAND"):
            name, arity, subcommands = entry[0].decode(), entry[1], entry[9] if len(entry) > 9 else []
            if not subcommands:
                yield [name, *["1"] * (abs(arity) - 1)]
            for sub in subcommands:
                yield [*sub[0].decode().split("|"), *["1"] * (abs(sub[1]) - 2)]


@pytest.mark.row("S8")
@pytest.mark.parametrize("user", MAY)
def test_of_all_commands_only_those_it_needs(guarded, user):
    may = set()
    for command in every_command(guarded):
        said = guarded.execute("ACL", "DRYRUN", user, *command)
        if not re.search(rb"no permissions to run the", said):
            may.add(command[0])
    assert may - OPEN == MAY[user]


FORBIDDEN = {
    "relay-status": [
        ("PSUBSCRIBE", "*"),
        ("SUBSCRIBE", "__keyspace@0__:r1"),
        ("SUBSCRIBE", "__keyspace@2__:a:b"),
        ("SUBSCRIBE", "__keyevent@0__:hset"),
        ("SUBSCRIBE", "__relay__:other"),
        ("SUBSCRIBE", "r1:wepp", "__keyspace@0__:r1"),
        ("SSUBSCRIBE", "r1:wepp"),
        ("PUBLISH", "r1:wepp", "x"),
        ("HGETALL", "r1"),
        ("GET", "r1"),
        ("SELECT", "0"),
    ],
    "relay-preflight": [
        ("PSUBSCRIBE", "__keyspace@0__:*"),
        ("SUBSCRIBE", "r1:wepp"),
        ("SUBSCRIBE", "__keyspace@1__:r1"),
        ("SUBSCRIBE", "__keyevent@0__:hset"),
        ("PUBLISH", "r1:wepp", "x"),
        ("PUBLISH", "__keyspace@0__:r1", "hset"),
        ("HSET", "r1", "a", "b"),
        ("DEL", "r1"),
        ("SELECT", "9"),
        ("CONFIG", "GET", "requirepass"),
    ],
    "worker": [
        ("SUBSCRIBE", "r1:wepp"),
        ("PUBLISH", "__keyspace@0__:r1", "hset"),
        ("PUBLISH", "__keyevent@0__:hset", "r1"),
        ("PUBLISH", "__relay__:probe:x", "x"),
        ("PUBLISH", "no-channel-of-a-run", "x"),
        ("SELECT", "9"),
        ("DEL", "r1"),
        ("GET", "r1"),
        ("SET", "r1", "x"),
        ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "r1"),
        ("EVAL", "return redis.call('PUBLISH', '__keyspace@0__:r1', 'x')", "0"),
    ],
}
EVERYBODY = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("CONFIG", "SET", "notify-keyspace-events", ""),
    ("CONFIG", "GET", "*"),
    ("ACL", "WHOAMI"),
    ("ACL", "SETUSER", "default", "on"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "pubsub"),
    ("MONITOR",),
    ("SHUTDOWN", "NOSAVE"),
    ("DEBUG", "SLEEP", "0"),
    ("REPLICAOF", "NO", "ONE"),
    ("MODULE", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("PUBSUB", "CHANNELS"),
]


@pytest.mark.row("S8")
@pytest.mark.parametrize("user", MAY)
def test_what_a_role_must_not_is_refused(guarded, user):
    with connected(guarded, user) as connection:
        if user != "worker":
            assert refused(connection, "EVAL", "return 1", "0")
        for command in (*FORBIDDEN[user], *EVERYBODY):
            assert refused(connection, *command), command


def test_the_simple_pattern_would_show_key_events(guarded):
    """What the three patterns are for."""
    guarded.execute("ACL", "SETUSER", "naive", "on", f">{PASSWORD}", "resetchannels", "&*:*", "+subscribe")
    with connected(guarded, "naive") as connection:
        assert not refused(connection, "SUBSCRIBE", "__keyspace@0__:r1")


@pytest.mark.parametrize("run", ["r1", "_r1", "_", "a;;b;;c", "a__b"])
def test_every_run_is_within_the_patterns(guarded, run):
    with connected(guarded, "relay-status") as connection:
        assert not refused(connection, "SUBSCRIBE", f"{run}:wepp")
    with connected(guarded, "worker") as connection:
        assert not refused(connection, "PUBLISH", f"{run}:wepp", "x")


@pytest.mark.row("S8")
def test_relay_and_worker_work_as_their_users(guarded, relay, join, fresh_client, wd, tmp_path):
    path = str(tmp_path / "internal.sock")
    env = {
        "REDIS_URL": None,
        "STATUS_REDIS_URL": login(guarded, "relay-status"),
        "PREFLIGHT_REDIS_URL": login(guarded, "relay-preflight"),
        "RELAY_INTERNAL_ADDR": f"unix:{path}",
    }
    process = relay(env=env)
    status, preflight = join(f"{process.status_url}/{RUN}:wepp"), join(f"{process.preflight_url}/{RUN}")
    assert preflight.checks() == set()
    configure(login(guarded, "worker"))
    assert StatusMessenger.publish(f"{RUN}:wepp", "hello", strict=True) == 1
    assert status.data() == "hello"
    (wd / "redisprep.dump").write_text('{"timestamps:set_outlet": "7"}')
    with RedisPrep(str(wd), restore=True) as run:
        run.timestamp(TaskEnum.build_channels)
        preflight.until({"channels"})
        run.remove_all_timestamp()
        preflight.until(set())
        run.has_sbs = True
        assert (run["set_outlet"], run.has_sbs) == (None, True)
    services = json.loads(asked(path, head("/readyz")).body)["services"]
    for service in services.values():
        assert service["ready"]
        assert service["link"]["probe"]["off"] == ""
        assert service["link"]["probe"]["sent"] >= 1
        assert service["commands"]["instance"]
    assert services["preflight"]["key_events"] == "unknown"
    assert not [line for line in process.stderr if "NOPERM" in line]
