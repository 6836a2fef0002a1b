"""`relay doctor` against deployments that are broken in one way each, and one that is not."""

import asyncio
import contextlib
import json
import os
import re
import resource
import ssl
import subprocess
import sys
import threading
import time
import traceback

import pytest
import trustme
from click.testing import CliRunner

from relay.cli import doctor_redis, embedded, reach
from relay.cli.commands import relay as cli
from tests.conftest import OURS, ROOT, Relay
from tests.faults.proxy import Proxy
from tests.integration.fronts import Front, passing_to, saying, silent
from tests.integration.peers import ask, head, wait_for
from tests.integration.test_acl import FILE, PASSWORD

QUICK = {"STATUS_PING_INTERVAL": "200ms", "PREFLIGHT_PING_INTERVAL": "200ms"}  # two heartbeats in 0.4 s
# What the doctor takes for the relay's: it waits no longer, and allows a busy machine more than half a second.
PATIENT = {"STATUS_PING_INTERVAL": "4s", "PREFLIGHT_PING_INTERVAL": "4s"}
SECRET = "s3cret-of-redis"


class Diagnosis:
    """What the doctor found; `states` by check, and `finding(check)` the one of that name that is worst."""

    def __init__(self, said):
        self.findings = said["findings"]
        self.states = {
            f"{found['about'].partition(' ')[0]} {found['check']}": found["state"] for found in self.findings
        }

    def bad(self):
        return [found["check"] for found in self.findings if found["state"] == "fault"]

    def finding(self, check):
        order = ["fault", "warning", "skipped", "ok"]
        return min((f for f in self.findings if f["check"] == check), key=lambda f: order.index(f["state"]))


@pytest.fixture
def doctor():
    """`doctor(*args, code=8, **env)` -> Diagnosis; everything that it prints is kept in `doctor.printed`."""

    def run(*args, code=8, **env):
        ours = dict.fromkeys(name for name in os.environ if name.startswith((*OURS, "WORKER_")))
        done = CliRunner().invoke(cli, ["doctor", "--json", *args], env={**ours, **PATIENT, **env})
        run.printed = done.output
        assert done.exit_code == code, done.output + "".join(traceback.format_exception(done.exception))
        return Diagnosis(json.loads(done.stdout))

    return run


@pytest.fixture
def front_with_tls(tmp_path):
    """`front_with_tls(port)` -> the port of a front that speaks TLS as localhost, and the file of its authority."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with contextlib.ExitStack() as stack:
        yield lambda port: (stack.enter_context(Front(passing_to(port), context)).port, tmp_path / "ca.pem")


@pytest.fixture(scope="module")
def sound(_shared_redis, tmp_path_factory):
    """One relay for all tests in which nothing is wrong with it."""
    process = Relay([], {"REDIS_URL": _shared_redis.url, **QUICK}, tmp_path_factory.mktemp("relay"))
    try:
        process.wait("ready")
        yield process
    finally:
        process.end()


def urls(process):
    return [word for url in (process.status_url, process.preflight_url) if url for word in ("--url", url)]


# ---- sound ----


def test_nothing_is_the_matter_with_a_sound_deployment(doctor, sound, redis_url):
    found = doctor(*urls(sound), code=0, REDIS_URL=redis_url)
    of_redis = [
        "login", "version", "clock", "eviction", "output buffer", "probe", "status rights", "preflight rights",
        "key events",
    ]  # fmt: skip
    of_relay = ["livez", "readyz", "handshake", "subscription", "message", "snapshot", "heartbeat"]
    assert found.states == {
        "this file limit": found.states["this file limit"],  # what this machine has
        "this accept queue": found.states["this accept queue"],
        **{f"Redis {check}": "ok" for check in of_redis},
        **{f"relay {check}": "ok" for check in of_relay},
    }


def test_people_are_told_line_by_line(sound, redis_url):
    env = {**os.environ, **PATIENT, "REDIS_URL": redis_url}
    command = [sys.executable, "-m", "relay", "doctor", *urls(sound)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\nrelay at {sound.status_url}\n  ok       livez: OK\n  ok       readyz: ready\n" in done.stdout
    assert f"Redis of status and preflight: {redis_url}/0\n  ok       login: as default, in " in done.stdout
    assert "FAULT" not in done.stdout


def test_it_changes_nothing(doctor, relay, redis_server):
    """No key is written, no setting set, and nobody stays."""
    process = relay(env={**QUICK, "REDIS_URL": redis_server.url})

    def state():
        calls = redis_server.execute("INFO", "commandstats")
        return {name for name in calls if any(word in name for word in ("set", "del", "expire", "flush", "rename"))}

    before = state()
    doctor(*urls(process), code=0, REDIS_URL=redis_server.url)
    assert redis_server.execute("DBSIZE") == 0
    assert state() == before
    wait_for(lambda: redis_server.channels() == [], "nobody stays")


def test_users_with_least_rights_and_a_worker(doctor, relay, new_redis, tmp_path):
    """What they may not ask is said to be unknown, and nothing is said to be wrong."""
    lines = [line.replace(" on ", f" on >{PASSWORD} ", 1) for line in FILE.read_text().splitlines()]
    (tmp_path / "acl.conf").write_text("\n".join(lines) + "\n")
    server = new_redis("--include", str(tmp_path / "acl.conf"))
    server.execute("ACL", "SETUSER", "default", "off")
    login = f"redis://{{}}:{PASSWORD}@127.0.0.1:{server.port}"
    users = {
        "STATUS_REDIS_URL": login.format("relay-status"),
        "PREFLIGHT_REDIS_URL": login.format("relay-preflight"),
    }
    process = relay(env={**QUICK, "REDIS_URL": None, **users})
    found = doctor(*urls(process), code=0, **users)
    assert PASSWORD not in doctor.printed
    for check in ("clock", "eviction", "output buffer", "key events", "message"):
        assert found.finding(check)["state"] == "skipped"
        assert "NOPERM" in found.finding(check)["found"]
    for check in ("version", "probe", "status rights", "preflight rights", "snapshot"):
        assert found.finding(check)["state"] == "ok"
    found = doctor("--url", process.status_url, code=0, **users, WORKER_REDIS_URL=login.format("worker"))
    assert PASSWORD not in doctor.printed
    assert found.finding("message")["state"] == "ok"


# ---- Redis ----


def test_nothing_at_the_port(doctor):
    found = doctor(REDIS_URL=f"redis://127.0.0.1:{embedded.free_port()}")
    assert found.bad() == ["reach"]
    assert "Connection refused" in found.finding("reach")["found"]


def test_no_such_socket(doctor, tmp_path):
    found = doctor(
        STATUS_REDIS_URL=f"unix://{tmp_path}/redis.sock", PREFLIGHT_REDIS_URL=f"unix://{tmp_path}/redis.sock"
    )
    assert found.bad() == ["reach"]
    assert "No such file" in found.finding("reach")["found"]


@pytest.mark.parametrize("given", [{}, {"REDIS_PASSWORD": SECRET}], ids=["none", "another"])
def test_a_wrong_password(doctor, new_redis, given):
    server = new_redis("--requirepass", "an0ther-secret")
    found = doctor(REDIS_URL=server.url, **given)
    assert found.bad() == ["login"]
    assert ("WRONGPASS" if given else "NOAUTH") in found.finding("login")["found"]
    assert "exit code 3" in found.finding("login")["means"]
    assert SECRET not in doctor.printed


@pytest.mark.parametrize("user", ["", "relay"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.needs("redis-cli")
def test_what_mends_it_works_as_it_is_printed(doctor, new_redis, front_with_tls, user, tls):
    server = new_redis("--requirepass", SECRET, "--user", "relay", "on", f">{SECRET}", "~*", "&*", "+@all")
    url = f"redis://{user}:{SECRET}@127.0.0.1:{server.port}"
    if tls:
        port, trusted = front_with_tls(server.port)
        url = f"rediss://{user}:{SECRET}@localhost:{port}?ssl_ca_certs={trusted}"
    server.execute("CONFIG", "SET", "notify-keyspace-events", "")
    mend = doctor(REDIS_URL=url).finding("key events")["mend"]
    assert SECRET not in doctor.printed
    done = subprocess.run(mend, shell=True, input=f"{SECRET}\n", capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == "OK", done
    doctor(code=0, REDIS_URL=url)


@pytest.mark.parametrize("password", [SECRET, "p"])
@pytest.mark.needs("redis-cli")
def test_a_user_that_may_not_ping(doctor, redis_server, password):
    """Nor give itself the right."""
    redis_server.execute("ACL", "SETUSER", "relay", "on", f">{password}", "~*", "&*", "+@all", "-ping", "-acl")
    redis_server.execute("ACL", "SETUSER", "default", "resetpass", f">{SECRET}")
    url = f"redis://relay:{password}@127.0.0.1:{redis_server.port}"
    found = doctor(REDIS_URL=url)
    assert found.bad() == ["login"]
    assert "no permissions to run the 'ping' command" in found.finding("login")["found"]
    done = subprocess.run(
        found.finding("login")["mend"], shell=True, input=f"{SECRET}\n", capture_output=True, text=True, timeout=20,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "OK", done
    doctor(code=0, REDIS_URL=url)


def test_preflight_on_another_database_than_workers_write(doctor, new_redis):
    server = new_redis()
    found = doctor(code=0, REDIS_URL=server.url, PREFLIGHT_REDIS_URL=f"{server.url}/3").finding("preflight rights")
    assert (found["state"], found["found"]) == ("warning", "the relay reads database 3")
    assert found["mend"].startswith("PREFLIGHT_REDIS_URL=redis://.../0")


def test_a_database_that_does_not_exist(doctor, new_redis):
    server = new_redis("--databases", "1")
    found = doctor(REDIS_URL=server.url, PREFLIGHT_REDIS_URL=f"{server.url}/1").finding("preflight rights")
    assert (found["state"], found["found"]) == ("fault", "ERR DB index is out of range")
    assert "`databases`" in found["mend"]
    assert "ACL" not in found["mend"]


def test_tls_where_there_is_none(doctor, redis_server, monkeypatch):
    monkeypatch.setattr(doctor_redis, "DEADLINE", 0.5)  # Redis may wait for more of what it takes for a command
    found = doctor(REDIS_URL=f"rediss://127.0.0.1:{redis_server.port}")
    assert found.bad() == ["reach"]
    assert found.finding("reach")["mend"].startswith("redis:// in the URL, and not rediss://")


def test_no_tls_where_there_is_some(doctor, redis_server, front_with_tls):
    port, _ = front_with_tls(redis_server.port)
    found = doctor(REDIS_URL=f"redis://localhost:{port}")
    assert found.bad() == ["reach"]
    assert found.finding("reach")["mend"].startswith("rediss:// in the URL, and not redis://")


@pytest.mark.parametrize(
    ("rights", "check", "mend"),
    [
        (("~*", "&*", "+@all", "resetchannels", "&*:*"), None, ""),
        (("~*", "+@all", "resetchannels", "&[^_]*:*", "&__relay__:probe:*"), "preflight rights", "&__keyspace@0__:*"),
        (("~*", "+@all", "resetchannels", "&__*"), "status rights", "&[^_]*:*"),
        (("~*", "&*", "+@all", "-hgetall"), "preflight rights", "+hgetall"),
    ],
    ids=["all that it needs", "no key events", "no channels of runs", "no reading"],
)
def test_a_user_without_a_right(doctor, redis_server, rights, check, mend):
    redis_server.execute("ACL", "SETUSER", "relay", "on", f">{SECRET}", *rights)
    found = doctor(code=8 if check else 0, REDIS_URL=f"redis://relay:{SECRET}@127.0.0.1:{redis_server.port}")
    assert SECRET not in doctor.printed
    assert found.bad() == ([check] if check else [])
    if check:
        command = found.finding(check)["mend"].partition(" ACL ")[2].partition("    #")[0]
        words = [word.strip("'") for word in command.split()]
        assert mend in words
        redis_server.execute("ACL", *words)  # what it says mends it
        assert doctor(code=0, REDIS_URL=f"redis://relay:{SECRET}@127.0.0.1:{redis_server.port}").bad() == []


def test_a_probe_that_may_not_be_published_is_a_warning(doctor, redis_server):
    redis_server.execute("ACL", "SETUSER", "default", "-publish")
    found = doctor(code=0, REDIS_URL=redis_server.url)
    assert found.finding("probe")["state"] == "warning"


@pytest.mark.parametrize(
    ("option", "value", "check", "state"),
    [
        ("notify-keyspace-events", "", "key events", "fault"),
        ("notify-keyspace-events", "Kh", "key events", "warning"),
        ("client-output-buffer-limit", "pubsub 4096 4096 1", "output buffer", "fault"),
        ("maxmemory-policy", "allkeys-lru", "eviction", "warning"),
    ],
)
def test_a_setting_of_redis(doctor, redis_server, option, value, check, state):
    redis_server.execute("CONFIG", "SET", "maxmemory", "100mb")
    assert doctor(code=0, REDIS_URL=redis_server.url).finding(check)["state"] == "ok"
    redis_server.execute("CONFIG", "SET", option, value)
    found = doctor(code=8 if state == "fault" else 0, REDIS_URL=redis_server.url)
    assert found.finding(check)["state"] == state
    command = found.finding(check)["mend"].partition(" CONFIG ")[2]
    name, _, right = command.removeprefix("SET ").partition(" ")
    redis_server.execute("CONFIG", "SET", name, right.strip("'"))  # what it says mends it
    assert doctor(code=0, REDIS_URL=redis_server.url).finding(check)["state"] == "ok"


def test_one_that_accepts_and_never_answers(doctor, redis_server, monkeypatch):
    for module in (doctor_redis, reach):
        monkeypatch.setattr(module, "DEADLINE", 0.5)
    redis_server.pause()
    began = time.monotonic()
    found = doctor(REDIS_URL=redis_server.url)
    assert time.monotonic() - began < 10
    assert found.bad() == ["reach"]
    assert "no answer in 0.5 s" in found.finding("reach")["found"]


def test_two_servers_behind_one_address(doctor, new_redis, monkeypatch):
    """As where a proxy has a failover half behind it: what is published at the one never comes to the other."""
    one, other = new_redis(), new_redis()
    with Proxy(one.port) as proxy:
        assert doctor(code=0, REDIS_URL=proxy.url).finding("probe")["state"] == "ok"
        monkeypatch.setattr(doctor_redis, "PROBE_SECONDS", 0.3)
        proxy.subscriptions.target = other.port
        found = doctor(REDIS_URL=proxy.url)
    assert found.bad() == ["probe"]
    assert "two servers" in found.finding("probe")["means"]


def test_tls_to_redis_and_to_the_proxy(doctor, sound, redis_url, front_with_tls):
    redis, trusted = front_with_tls(int(redis_url.rpartition(":")[2]))
    proxy, _ = front_with_tls(sound.ports["status"])
    url, redis_url = f"wss://localhost:{proxy}", f"rediss://localhost:{redis}"
    found = doctor("--url", url, REDIS_URL=redis_url)
    assert found.bad() == ["reach", "livez"]
    for check in found.bad():
        assert "its certificate is not accepted: unable to get local issuer" in found.finding(check)["found"]
    assert found.finding("reach")["mend"].startswith("?ssl_ca_certs=/path/to/ca.pem behind the URL")
    env = {"REDIS_URL": f"{redis_url}?ssl_ca_certs={trusted}", "SSL_CERT_FILE": str(trusted)}
    assert doctor("--url", url, code=0, **env).finding("message")["state"] == "ok"


@pytest.mark.parametrize("serve", [silent, saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")], ids=["waits", "answers"])
def test_wss_where_there_is_no_tls(doctor, redis_url, monkeypatch, serve):
    """The relay waits for the end of a request, and a proxy answers."""
    monkeypatch.setattr(reach, "DEADLINE", 0.5)
    with Front(serve) as front:
        found = doctor("--url", f"wss://127.0.0.1:{front.port}", REDIS_URL=redis_url)
    assert found.bad() == ["livez"]
    assert found.finding("livez")["mend"].startswith(f"relay doctor --url ws://127.0.0.1:{front.port} ")


# ---- this machine ----


def test_a_file_limit_of_64(redis_url):
    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    env = {**os.environ, "REDIS_URL": redis_url, "RELAY_MAX_CONNECTIONS": "1000"}
    done = subprocess.run(
        [sys.executable, "-m", "relay", "doctor", "--json"], cwd=ROOT, env=env, preexec_fn=limited, timeout=30,
        capture_output=True, check=False,
    )  # fmt: skip
    found = Diagnosis(json.loads(done.stdout))
    assert (done.returncode, found.bad()) == (8, ["file limit"])
    assert "RELAY_MAX_CONNECTIONS=1000, and the hard file limit of 64" in found.finding("file limit")["found"]


# ---- a running relay ----


def test_no_relay_there(doctor, redis_url):
    began = time.monotonic()
    found = doctor("--url", f"ws://127.0.0.1:{embedded.free_port()}", REDIS_URL=redis_url)
    assert time.monotonic() - began < 10
    assert found.bad() == ["livez"]
    assert found.finding("livez")["found"] == "Connection refused"
    assert found.finding("livez")["mend"].startswith("systemctl status relay-status relay-preflight ")
    port = embedded.free_port()
    found = doctor("--url", f"ws://127.0.0.1:{port}", REDIS_URL=redis_url, PREFLIGHT_LISTEN_ADDR=f":{port}")
    assert found.finding("livez")["mend"].startswith("systemctl status relay-preflight ")


def test_a_relay_without_its_redis(doctor, relay, redis_url, tmp_path):
    env = {
        **QUICK,
        "REDIS_URL": f"redis://127.0.0.1:{embedded.free_port()}",
        "RELAY_INTERNAL_ADDR": f"unix:{tmp_path}/internal.sock",
    }
    process = relay(env=env, wait="listen")
    found = doctor(*urls(process), REDIS_URL=redis_url)
    assert found.bad() == ["readyz", "subscription", "readyz", "snapshot"]
    assert found.finding("readyz")["found"] == "answers 503: not ready"
    found = doctor("status", *urls(process), REDIS_URL=redis_url, RELAY_INTERNAL_ADDR=env["RELAY_INTERNAL_ADDR"])
    assert "no Redis for status subscriptions" in found.finding("readyz")["found"]
    assert found.finding("heartbeat")["state"] == "ok"


def test_a_relay_of_another_redis(doctor, relay, redis_server, redis_url, monkeypatch):
    process = relay("status", env={**QUICK, "REDIS_URL": redis_server.url})
    url = ("--url", process.status_url)
    assert doctor(*url, code=0, REDIS_URL=redis_url, WORKER_REDIS_URL=redis_server.url)
    monkeypatch.setattr("relay.cli.doctor_relay.DEADLINE", 1.0)
    # In one of three: in a second this machine may stand still, and the relay not answer.
    looks = (doctor(*url, REDIS_URL=redis_url) for _ in range(3))
    found = next(found for found in looks if found.bad() == ["message"])
    assert "to 0 subscribers" in found.finding("message")["found"]
    assert "another Redis" in found.finding("message")["means"]


def test_an_origin_that_is_refused(doctor, relay, redis_url):
    process = relay("status", env={**QUICK, "STATUS_ALLOWED_ORIGINS": "https://wepp.cloud"})
    found = doctor("--url", process.status_url, "--origin", "https://other.example", REDIS_URL=redis_url)
    assert found.bad() == ["handshake"]
    assert (
        "answers 403: This Origin is not among those of STATUS_ALLOWED_ORIGINS" in found.finding("handshake")["found"]
    )
    assert "https://other.example" in found.finding("handshake")["mend"]
    assert doctor("--url", process.status_url, "--origin", "https://wepp.cloud", code=0, REDIS_URL=redis_url)


def test_a_relay_that_asks_for_tokens(doctor, relay, redis_url):
    signing = "signing-s3cr3t-" + 32 * "z"
    process = relay(env={**QUICK, "RELAY_TOKEN_SECRET": signing})
    found = doctor(*urls(process), REDIS_URL=redis_url)
    assert found.bad() == ["handshake", "handshake"]
    assert "answers 401" in found.finding("handshake")["found"]
    ours = dict.fromkeys(name for name in os.environ if name.startswith(OURS))
    token = CliRunner().invoke(cli, ["token", "--run", "doctor"], env={**ours, "RELAY_TOKEN_SECRET": signing})
    assert doctor(*urls(process), code=0, REDIS_URL=redis_url, RELAY_TOKEN=token.stdout.strip())
    assert token.stdout.strip() not in doctor.printed


def test_heartbeats_that_do_not_come(doctor, relay, redis_url):
    process = relay("status", env={"STATUS_PING_INTERVAL": "1h", "STATUS_PONG_TIMEOUT": "2h"})
    found = doctor("--url", process.status_url, REDIS_URL=redis_url, **QUICK)
    assert found.bad() == ["heartbeat"]
    assert "0.5 s, where 2 were due" in found.finding("heartbeat")["found"]


def impatient(port, idle):
    """Passes all on to a port, and cuts without a word each connection on which nothing was said for so long.

    From the first answer on: the relay may be late with that.
    """

    async def serve(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", port)
        pumps = []
        try:
            async with asyncio.timeout(None) as patience:

                async def pump(source, sink):
                    while data := await source.read(65536):
                        if source is there or patience.when() is not None:
                            patience.reschedule(asyncio.get_running_loop().time() + idle)
                        sink.write(data)

                pumps = [asyncio.ensure_future(pump(reader, back)), asyncio.ensure_future(pump(there, writer))]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        finally:
            for task in pumps:
                task.cancel()
            back.transport.abort()

    return serve


def test_a_proxy_that_cuts_quiet_connections(doctor, relay, redis_url):
    interval = {"STATUS_PING_INTERVAL": "800ms"}
    process = relay("status", env=interval)
    with Front(impatient(process.ports["status"], 0.3)) as proxy:
        found = doctor("--url", f"ws://127.0.0.1:{proxy.port}", REDIS_URL=redis_url, **interval)
    assert found.bad() == ["connection"]
    said = found.finding("connection")["found"]
    cut = re.fullmatch(r"cut after (\d+\.\d) s in which nothing was said, without a close frame", said)
    assert cut, said
    assert float(cut[1]) >= 0.2
    assert "timeout tunnel" in found.finding("connection")["mend"]
    with Front(impatient(process.ports["status"], 30)) as proxy:
        assert doctor("--url", f"ws://127.0.0.1:{proxy.port}", code=0, REDIS_URL=redis_url, **interval)


def test_a_relay_that_ends_while_it_is_looked_at(doctor, relay, redis_server):
    env = {"STATUS_PING_INTERVAL": "20s", "REDIS_URL": redis_server.url}
    process = relay("status", env={**env, "RELAY_DRAIN": "0s"})

    def end():
        wait_for(redis_server.channels, "the doctor's channel")
        process.process.terminate()

    ending = threading.Thread(target=end)
    ending.start()
    found = doctor("--url", process.status_url, **env)
    ending.join()
    assert found.bad() == ["connection"]
    assert "closed with 1012 (the relay is restarting)" in found.finding("connection")["found"]


HAPROXY = """
global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen front
    bind 127.0.0.1:{port}
    {strip}
    server relay 127.0.0.1:{relay}
"""


@pytest.mark.parametrize("keep", [True, False], ids=["keeps its path", "strips it"])
@pytest.mark.needs("haproxy")
def test_behind_a_path_of_a_proxy(doctor, sound, redis_url, tmp_path, keep):
    """Where the proxy passes its own path on, /livez is not the relay's any more, and /health is."""
    port = embedded.free_port()
    strip = "" if keep else "http-request replace-path /micro/status/(.*) /\\1"
    text = HAPROXY.format(port=port, relay=sound.ports["status"], strip=strip)
    (tmp_path / "haproxy.cfg").write_text(text)

    def passes():
        with contextlib.suppress(OSError, AssertionError):
            return ask(f"ws://127.0.0.1:{port}", head("/micro/status/health", "Connection: close")).status == 200

    with subprocess.Popen(["haproxy", "-q", "-db", "-f", str(tmp_path / "haproxy.cfg")]) as proxy:
        try:
            wait_for(passes, "a way through haproxy")
            found = doctor("--url", f"ws://127.0.0.1:{port}/micro/status", code=0, REDIS_URL=redis_url)
        finally:
            proxy.terminate()
    assert found.finding("heartbeat")["state"] == "ok"
    assert ("/health answers" in found.finding("livez")["found"]) == keep
    assert found.finding("readyz")["state"] == ("skipped" if keep else "ok")
