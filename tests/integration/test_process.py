"""The process: settings from the environment, addresses, exit codes, the end (contract, section 6)."""

import contextlib
import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from relay.cli.embedded import free_port
from tests.conftest import ROOT
from tests.integration.peers import Peer, Refused, Wire, address_of, ask, head, upgrade, wait_for

SECRET = "s3cr3t-of-the-test"


def ended(process, timeout=30.0):
    """The exit code of a relay that ends by itself, and what it wrote on stderr for people."""
    code = process.process.wait(timeout)
    lines = [line for line in process.stderr if not line.startswith("{")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("relay: ")
    return code, lines[0]


# ---- settings ----

MALFORMED = [  # one or two of each; tests/unit/test_settings.py has the others
    ("STATUS_LISTEN_ADDR", "9002"),
    ("STATUS_LISTEN_ADDR", "unix:relative"),
    ("STATUS_PING_INTERVAL", "10"),
    ("STATUS_PONG_TIMEOUT", "-1s"),
    ("STATUS_WRITE_TIMEOUT", "1S"),
    ("STATUS_REDIS_REQUEST_TIMEOUT", "0"),
    ("STATUS_REDIS_RETRY_BASE", "50"),
    ("STATUS_REDIS_RETRY_MAX", " 1s"),
    ("STATUS_REDIS_MAX_RETRIES", "-1"),
    ("STATUS_LOG_LEVEL", "LOUD"),
    ("STATUS_ALLOWED_ORIGINS", "wepp.cloud"),
    ("STATUS_METRICS_ENABLED", "yes"),
    ("STATUS_MAX_MESSAGE_SIZE", "64K"),
    ("STATUS_REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "redis://localhost:port"),
    ("STATUS_REDIS_PASSWORD_FILE", "/nonexistent"),
    ("RELAY_DRAIN", "10"),
    ("RELAY_COALESCE_MS", "5ms"),
]


@pytest.mark.parametrize(("name", "value"), MALFORMED)
def test_a_malformed_value_ends_the_start_with_3_and_says_which_and_what_is_right(relay, name, value):
    code, sentence = ended(relay("status", env={"REDIS_URL": None, name: value}, wait=None))
    assert code == 3
    assert name in sentence
    assert name.endswith("URL") or repr(value) in sentence  # of a URL less is shown: it may be a password
    assert "right is for example" in sentence


def test_one_service_does_not_look_at_the_settings_of_the_other(relay):
    process = relay("preflight", env={"STATUS_PING_INTERVAL": "nonsense", "STATUS_LISTEN_ADDR": "nonsense"})
    assert process.http("preflight", "/livez")[0] == 200


def test_a_variable_with_a_typo_is_warned_of(relay):
    process = relay("status", env={"STATUS_PING_INTERVALL": "10s"})
    warned = [json.loads(line) for line in process.stderr if "STATUS_PING_INTERVALL" in line]
    assert warned[0]["level"] == "warning"
    assert "did you mean STATUS_PING_INTERVAL?" in warned[0]["msg"]


def test_the_log_is_json_lines_with_time_level_and_msg(relay):
    process = relay()
    assert process.stop() == 0
    for line in process.stderr:
        entry = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
        assert entry["level"] in ("info", "warning")
        assert entry["msg"]
    assert process.stdout_path.read_bytes() == b""


def test_the_log_level(relay):
    process = relay("status", env={"STATUS_LOG_LEVEL": "error"})
    process.stop()
    assert process.stderr == []


@pytest.fixture
def locked(redis_server):
    """A Redis that asks everybody for a password."""
    redis_server.execute("ACL", "SETUSER", "default", "resetpass", f">{SECRET}")
    return redis_server


@pytest.mark.parametrize(
    "env",
    [
        {"REDIS_PASSWORD": SECRET},
        {"STATUS_REDIS_PASSWORD": SECRET, "PREFLIGHT_REDIS_PASSWORD": SECRET},
        {"REDIS_PASSWORD_FILE": "{file}"},
        {"REDIS_PASSWORD_FILE": "{file}", "REDIS_PASSWORD": "wrong"},
        {"REDIS_URL": "redis://:" + SECRET + "@127.0.0.1:{port}/7", "REDIS_PASSWORD": "wrong"},
        {"REDIS_URL": None, "REDIS_HOST": "localhost", "REDIS_PORT": "{port}", "REDIS_PASSWORD": SECRET},
    ],
    ids=lambda env: "+".join(env),
)
def test_passwords(relay, locked, tmp_path, env, join):
    (tmp_path / "password").write_text(f"  {SECRET}\n")
    filled = {
        name: value and value.replace("{file}", str(tmp_path / "password")).replace("{port}", str(locked.port))
        for name, value in {"REDIS_URL": locked.url, **env}.items()
    }
    process = relay(env=filled)
    peer = join(f"{process.preflight_url}/run1")
    assert peer.checks() == set()
    locked.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert peer.checks() == {"channels"}
    assert SECRET not in "".join(process.stderr)


# ---- exit codes ----


@pytest.mark.parametrize("service", ["status", "preflight"])
@pytest.mark.parametrize("url", ["redis://:wr0ng@{}", "redis://nobody:wr0ng@{}", "redis://{}"])
def test_a_wrong_password_at_the_start_is_3(relay, locked, service, url):
    process = relay(service, env={"REDIS_URL": url.format(f"127.0.0.1:{locked.port}")}, wait=None)
    code, sentence = ended(process)
    assert code == 3
    assert "password" in sentence
    assert str(locked.port) in sentence
    assert "wr0ng" not in "".join(process.stderr)


def test_a_port_in_use_is_5_and_nothing_else_is_disturbed(relay, redis_url):
    first = relay("status")
    for service in ("status", "preflight"):
        env = {f"{service.upper()}_LISTEN_ADDR": f"127.0.0.1:{first.ports['status']}"}
        code, sentence = ended(relay(env=env, wait=None))
        assert code == 5
        assert f"{service.upper()}_LISTEN_ADDR" in sentence
        assert str(first.ports["status"]) in sentence
    assert first.http("status", "/readyz")[0] == 200


@pytest.mark.parametrize("address", ["192.0.2.1:9002", "unix:/nonexistent/relay.sock", "fd:999"])
def test_an_address_that_cannot_be_had_is_5(relay, address):
    code, sentence = ended(relay("status", env={"STATUS_LISTEN_ADDR": address}, wait=None))
    assert code == 5
    assert address in sentence


TRIES = {"MAX_RETRIES": "3", "RETRY_BASE": "10ms", "RETRY_MAX": "20ms"}


def test_retries_used_up_tell_the_clients_and_are_4(relay, redis_server, join):
    few = {f"{prefix}_REDIS_{name}": value for prefix in ("STATUS", "PREFLIGHT") for name, value in TRIES.items()}
    process = relay(env={"REDIS_URL": redis_server.url, **few})
    peers = [join(f"{process.status_url}/run1:wepp"), join(f"{process.preflight_url}/run1")]
    redis_server.kill()
    for peer in peers:
        assert peer.closed()[0] == 1012
    code, sentence = ended(process)
    assert code == 4
    assert "REDIS_MAX_RETRIES" in sentence


def test_retries_used_up_at_the_start_are_4(relay):
    env = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}", "STATUS_REDIS_MAX_RETRIES": "2"}
    assert ended(relay("status", env=env, wait=None))[0] == 4


def test_retries_count_from_anew_once_redis_is_back(relay, redis_server, join):
    env = {"STATUS_REDIS_MAX_RETRIES": "3", "REDIS_URL": redis_server.url}
    process = relay("status", env=env)
    peer = join(f"{process.status_url}/run1:wepp")
    for _ in range(6):
        redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "x"), "subscribed again")
        assert peer.data() == "x"


# ---- the end ----


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_with_1012_and_ends_with_0(relay, join, sig):
    process = relay(env={"RELAY_DRAIN": "500ms"})
    peers = [join(f"{process.status_url}/run1:wepp") for _ in range(20)]
    peers += [join(f"{process.preflight_url}/run1") for _ in range(20)]
    process.process.send_signal(sig)
    for peer in peers:
        assert peer.closed()[0] == 1012
        peer.send(b"\x88\x82\0\0\0\0\x03\xf4")
        assert peer.ended() == b""
    assert process.process.wait(30) == 0


def test_nobody_there_is_nothing_to_wait_for(relay):
    process = relay(env={"RELAY_DRAIN": "1m"})
    assert process.stop(timeout=30.0) == 0


def test_closes_are_spread_over_the_drain_while_messages_go_on(relay, join, worker, redis_url):
    process = relay("status", env={"RELAY_DRAIN": "5s"})
    peers = [join(f"{process.status_url}/run1:wepp") for _ in range(60)]
    process.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any("draining" in line for line in process.stderr), "the drain")
    begin = time.monotonic()
    worker(redis_url).publish("run1:wepp", "still here")
    closed, told = [], 0
    for peer in peers:
        code = 0
        while not code:
            opcode, payload = peer.frame()
            told += b"still here" in payload
            code = int.from_bytes(payload[:2], "big") if opcode == 8 else 0
        assert code == 1012
        closed.append(time.monotonic() - begin)
        peer.send(b"\x88\x82\0\0\0\0\x03\xf4")
    assert told > 10, "those not closed yet are served"
    assert max(closed) - min(closed) > 1.0, "all at once"
    assert process.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once(relay, join):
    process = relay("status", env={"RELAY_DRAIN": "1m"})
    for _ in range(50):
        join(f"{process.status_url}/run1:wepp")
    process.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any("draining" in line for line in process.stderr), "the drain")
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(30) == 0
    assert any("the drain had not ended them: " in line for line in process.stderr)


def test_before_the_drain_it_is_not_ready_and_still_answers(relay, join):
    process = relay("status", env={"RELAY_DRAIN_DELAY": "5s", "RELAY_DRAIN": "200ms"})
    peer = join(f"{process.status_url}/run1:wepp")
    process.process.send_signal(signal.SIGTERM)
    wait_for(lambda: process.http("status", "/readyz")[0] == 503, "not ready")
    assert process.http("status", "/livez")[0] == 200
    with pytest.raises(Refused) as refused:
        Peer(f"{process.status_url}/run1:wepp")
    assert refused.value.status == 503
    assert peer.alive()
    assert peer.closed()[0] == 1012


def test_who_comes_during_the_drain_is_not_left_hanging(relay, join):
    """Refused or answered, so that it goes elsewhere: a kernel that still takes connections for nobody is a trap."""
    process = relay("status", env={"RELAY_DRAIN": "1m"})
    for _ in range(40):
        join(f"{process.status_url}/run1:wepp")
    process.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any("draining" in line for line in process.stderr), "the drain")
    begin = time.monotonic()
    with contextlib.suppress(ConnectionError), Wire(("127.0.0.1", process.ports["status"])) as late:
        late.send(head("/readyz"))
        late.ended()
    assert time.monotonic() - begin < 10.0
    assert process.process.poll() is None


def test_a_drain_does_not_wait_for_who_never_asked_anything(relay):
    process = relay("status", env={"RELAY_DRAIN": "1m"})
    with Wire(("127.0.0.1", process.ports["status"])) as spare:
        process.http("status", "/livez")
        assert process.stop(timeout=30.0) == 0
        assert spare.ended() == b""


# ---- addresses ----


def test_all_addresses_means_ipv6_and_ipv4(relay):
    port = free_port()
    relay("status", env={"STATUS_LISTEN_ADDR": f":{port}"}, wait=None)
    for host in ("127.0.0.1", "::1"):
        wait_for(lambda host=host: opens((host, port)), host)
        with Peer("ws://x/r1:wepp", address=(host, port)) as peer:
            assert peer.alive()


def opens(address):
    try:
        Wire(address).drop()
    except OSError:
        return False
    return True


def test_who_waits_in_the_accept_queue_is_answered_at_the_end(relay):
    process = relay("status", env={"RELAY_DRAIN": "1s"})
    process.process.send_signal(signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        wires = [Wire(address_of(process.status_url)) for _ in range(600)]
        for wire in wires:
            stack.callback(wire.drop)
            wire.send(upgrade("/r1:wepp"))
        process.process.send_signal(signal.SIGTERM)
        process.process.send_signal(signal.SIGCONT)
        statuses = {wire.take(len("HTTP/1.1 101"))[-3:] for wire in wires}
    assert statuses <= {b"101", b"503"}, "none was reset"
    assert process.process.wait(30) == 0


def test_a_path_that_is_anothers_by_now_stays(relay, tmp_path):
    """As in a restart that moves the old socket aside: whoever binds the path next must not lose it."""
    path = tmp_path / "status.sock"
    first = relay("status", env={"STATUS_LISTEN_ADDR": f"unix:{path}"}, wait=None)
    wait_for(lambda: opens(str(path)), "listening")
    path.rename(tmp_path / "aside.sock")
    second = relay("status", env={"STATUS_LISTEN_ADDR": f"unix:{path}"}, wait=None)
    wait_for(lambda: opens(str(path)), "listening")
    for process in (first, second):  # a listener is there before the handler of SIGTERM is
        wait_for(lambda p=process: any("Redis is there" in line for line in p.stderr), "running")
    assert first.stop() == 0
    assert opens(str(path))
    assert second.stop() == 0
    assert not path.exists()


def test_a_living_socket_of_another_kind_is_not_replaced(relay, tmp_path):
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        code, sentence = ended(relay("status", env={"STATUS_LISTEN_ADDR": f"unix:{path}"}, wait=None))
        assert code == 5, sentence
        assert path.exists()


def test_a_unix_socket(relay, tmp_path, worker, redis_url):
    path = tmp_path / "status.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    process = relay("status", env={"STATUS_LISTEN_ADDR": f"unix:{path}"}, wait=None)
    wait_for(lambda: opens(str(path)), "listening")
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666, "a proxy that is another user may connect"
    wait_for(lambda: any("is there for status subscriptions" in line for line in process.stderr), "Redis is there")
    with Peer("ws://x/r1:wepp", address=str(path)) as peer:
        assert worker(redis_url).publish("r1:wepp", "x") == 1
        assert peer.data() == "x"
    code, _ = ended(relay("status", env={"STATUS_LISTEN_ADDR": f"unix:{path}"}, wait=None))
    assert code == 5, "a living one is not replaced"
    assert opens(str(path))
    assert process.stop() == 0
    assert not path.exists()
    path.write_text("precious")
    code, _ = ended(relay("status", env={"STATUS_LISTEN_ADDR": f"unix:{path}"}, wait=None))
    assert code == 5
    assert path.read_text() == "precious", "a file is not replaced"


def test_an_inherited_socket(redis_url, worker):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        for _ in range(2):  # the socket outlives its user
            process = subprocess.Popen(
                [sys.executable, "-m", "relay", "serve", "status", "--fd", str(listener.fileno())],
                cwd=ROOT,
                env={"REDIS_URL": redis_url, "RELAY_DRAIN": "200ms"},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                wait_for(lambda: ask(url, head("/readyz")).status == 200, "ready")
                with Peer(f"{url}/r1:wepp") as peer:
                    assert worker(redis_url).publish("r1:wepp", "x") == 1
                    assert peer.data() == "x"
            finally:
                process.terminate()
                assert process.wait(30) == 0
