"""`relay doctor` without a relay: Redis servers that a test plays, limits of the machine, and what is shown."""

import asyncio
import base64
import contextlib
import http.server
import json
import os
import resource
import socket
import ssl
import threading
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from relay import listeners, settings
from relay.cli import doctor, doctor_redis, doctor_relay, reach
from relay.cli.commands import relay
from relay.cli.doctor_finding import Finding
from relay.cli.terminal import quoted
from tests.conftest import OURS
from tests.integration.fronts import Front, saying
from tests.unit.scripted import PONG, Server, ack

SECRET = "s3cret-of-redis"


def load(port=1, **env):
    return settings.load(env={"REDIS_URL": f"redis://127.0.0.1:{port}", **env})


def invoke(*args, **env):
    ours = dict.fromkeys(name for name in os.environ if name.startswith((*OURS, "WORKER_")))
    return CliRunner().invoke(relay, ["doctor", *args], env={**ours, "REDIS_URL": "redis://127.0.0.1:1", **env})


def bulk(text):
    return b"$%d\r\n%b\r\n" % (len(text), text)


def pair(name, value):
    return b"*2\r\n" + bulk(name) + bulk(value)


def at(seconds):
    """TIME of a clock that is so many seconds ahead of ours."""
    return pair(b"%d" % (time.time() + seconds), b"0")


SOUND = {
    b"PING": PONG,
    b"INFO server": bulk(b"redis_version:7.0.15\r\nredis_mode:standalone\r\n"),
    b"INFO memory": bulk(b"used_memory:1000\r\n"),
    b"CONFIG GET maxmemory": pair(b"maxmemory", b"0"),
    b"CONFIG GET maxmemory-policy": pair(b"maxmemory-policy", b"noeviction"),
    b"CONFIG GET client-output-buffer-limit": pair(b"x", b"normal 0 0 0 slave 9 9 9 pubsub 33554432 8388608 60"),
    b"CONFIG GET notify-keyspace-events": pair(b"x", b"Kghx"),
    b"PUBLISH": b":1\r\n",
    b"HGETALL": b"*0\r\n",
}


@contextlib.asynccontextmanager
async def redis_that(answers):
    """A Redis that answers from a table, by the first words of a command; its port. None: it says nothing."""
    tasks = []

    async def serve(visit):
        visit.curious = True
        while (command := await visit.command()) is not None:
            if command[0] == b"SUBSCRIBE":
                message = b"*3\r\n" + bulk(b"message") + bulk(command[1]) + bulk(b"")
                visit.say(answers.get(b"SUBSCRIBE", ack(b"subscribe", command[1]) + message))
                continue
            words = [b" ".join(command[:count]) for count in (3, 2, 1)]
            reply = next((answers[word] for word in words if word in answers), b"-ERR unknown command\r\n")
            if reply is not None:
                visit.say(reply)

    async def accept(server):
        while True:
            tasks.append(asyncio.ensure_future(serve(await server.visits.get())))

    async with Server() as server:
        tasks.append(asyncio.ensure_future(accept(server)))
        try:
            yield server.port
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def examined(answers, **env):
    """What the doctor finds there, by check."""
    async with redis_that({b"TIME": at(0), **SOUND, **answers}) as port:
        loaded = load(port, **env)
        found = await doctor_redis.examine(replace(loaded.status.redis, db=0), loaded.services, loaded)
    return {finding.check: finding for finding in found}


# ---- Redis ----


async def test_nothing_is_the_matter_with_a_sound_one():
    found = await examined({})
    assert {finding.state for finding in found.values()} == {"ok"}
    assert list(found) == [
        "login", "version", "clock", "eviction", "output buffer", "probe", "status rights", "preflight rights",
        "key events",
    ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "said"), [(-90, "behind"), (5, "ahead of")])
async def test_a_clock_that_is_wrong(seconds, said):
    clock = (await examined({b"TIME": at(seconds)}))["clock"]
    assert clock.state == "warning"
    assert said in clock.found
    assert "timedatectl" in clock.mend


NOPERM = b"-NOPERM this user has no permissions\r\n"
BUFFER = b"CONFIG GET client-output-buffer-limit"
EVENTS = b"CONFIG GET notify-keyspace-events"
MEMORY = {
    b"CONFIG GET maxmemory": pair(b"x", b"1000"),
    b"CONFIG GET maxmemory-policy": pair(b"x", b"noeviction"),
}


@pytest.mark.parametrize(
    ("answers", "check", "state", "said"),
    [
        ({b"INFO server": bulk(b"redis_version:5.0.3")}, "version", "warning", "5.0.3"),
        ({b"INFO server": bulk(b"redis_version:7.2.4\nvalkey_version:9.1.0")}, "version", "ok", "Valkey 9.1.0"),
        ({b"INFO server": bulk(b"redis_version:7.0\r\nredis_mode:cluster")}, "version", "fault", "cluster"),
        ({b"INFO server": NOPERM}, "version", "skipped", "NOPERM"),
        ({b"TIME": NOPERM}, "clock", "skipped", "NOPERM"),
        ({b"TIME": PONG}, "clock", "skipped", "not understood"),
        ({BUFFER: pair(b"x", b"pubsub 1")}, "output buffer", "skipped", "not understood"),
        ({BUFFER: pair(b"x", b"normal 0 0 0 pubsub 4096 4096 1")}, "output buffer", "fault", "4096 bytes"),
        ({BUFFER: pair(b"x", b"pubsub 33554432 1048576 10")}, "output buffer", "warning", "1048576 for 10 s"),
        ({BUFFER: pair(b"x", b"pubsub 0 0 0")}, "output buffer", "warning", "0 bytes"),
        ({BUFFER: b"*0\r\n"}, "output buffer", "skipped", "does not say"),
        ({EVENTS: pair(b"x", b"")}, "key events", "fault", "without Kh"),
        ({EVENTS: pair(b"x", b"Eh")}, "key events", "fault", "without K"),
        ({EVENTS: pair(b"x", b"Kh")}, "key events", "warning", "without gx"),
        ({EVENTS: pair(b"x", b"AKE")}, "key events", "ok", "AKE"),
        ({EVENTS: NOPERM}, "key events", "skipped", "NOPERM"),
        ({**MEMORY, b"CONFIG GET maxmemory-policy": pair(b"x", b"allkeys-lru")}, "eviction", "warning", "allkeys-lru"),
        ({**MEMORY, b"INFO memory": bulk(b"used_memory:950")}, "eviction", "warning", "950 of maxmemory 1000"),
        ({**MEMORY, b"INFO memory": bulk(b"used_memory:100")}, "eviction", "ok", "noeviction"),
        ({b"SUBSCRIBE": NOPERM}, "status rights", "fault", "NOPERM"),
        ({b"HGETALL": NOPERM}, "preflight rights", "fault", "NOPERM"),
        ({b"PUBLISH": NOPERM}, "probe", "warning", "NOPERM"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_made_of_an_answer(answers, check, state, said):
    found = await examined(answers)
    assert found[check].state == state, found[check]
    assert said in found[check].found
    if state in ("warning", "fault"):
        assert found[check].means
        assert found[check].mend


async def test_key_events_that_the_relay_switches_on_itself_are_no_fault():
    found = await examined({EVENTS: pair(b"x", b"")}, RELAY_SET_KEYSPACE_EVENTS="true")
    assert found["key events"].state == "warning"


async def test_a_message_that_does_not_come_back(monkeypatch):
    monkeypatch.setattr(doctor_redis, "PROBE_SECONDS", 0.05)
    found = await examined({b"SUBSCRIBE": ack(b"subscribe", b"x")})
    assert found["probe"].state == "fault"
    assert "did not come back" in found["probe"].found


async def test_one_that_falls_silent_in_the_middle(monkeypatch):
    monkeypatch.setattr(doctor_redis, "DEADLINE", 0.5)
    found = await examined({b"TIME": None})
    assert [finding.state for finding in found.values()] == ["ok", "ok", "fault"]
    assert found["clock"].found.startswith("Redis stopped answering: no answer in")


@pytest.mark.parametrize(
    ("answer", "check", "said", "means"),
    [
        (b"-WRONGPASS invalid username-password pair\r\n", "login", "WRONGPASS", "exit code 3"),
        (b"-ERR max number of clients reached\r\n", "login", "max number of clients", "for ever"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "login", "LOADING", "for ever"),
        (
            b"-ERR unknown command 'AUTH', with args beginning with: '%b' \r\n" % SECRET.encode(),
            "login",
            "unknown command",
            "for ever",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "reach", "what answers is no Redis", "for ever"),
        (None, "reach", "no answer in", "for ever"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_one_that_lets_nobody_in(monkeypatch, answer, check, said, means):
    monkeypatch.setattr(doctor_redis, "DEADLINE", 0.5)
    async with redis_that({b"AUTH": answer}) as port:
        loaded = load(port, REDIS_PASSWORD=SECRET)
        found = await doctor_redis.examine(loaded.status.redis, loaded.services, loaded)
    assert [(finding.state, finding.check) for finding in found] == [("fault", check), ("skipped", found[1].check)]
    assert said in found[0].found
    assert means in found[0].means
    assert SECRET not in str(found)


# ---- reaching ----


async def test_a_name_that_nobody_resolves_has_a_deadline(monkeypatch):
    """What getaddrinfo does where the name server is away; its thread is left behind and ends by itself."""
    go_on = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: go_on.wait(60))
    monkeypatch.setattr(reach, "DEADLINE", 0.1)
    began = time.monotonic()
    try:
        with pytest.raises(TimeoutError):
            await reach.resolve("wepp1", 6379)
    finally:
        go_on.set()
    assert time.monotonic() - began < 20


async def test_a_name_that_is_none():
    with pytest.raises(OSError) as raised:  # noqa: PT011 - which it is, is the resolver's affair
        await reach.resolve("no-such-host.invalid", 6379)
    assert reach.why(raised.value).startswith("the name has no address: ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "no answer in 5 s"),
        (ConnectionRefusedError(111, "Connect call failed ('::1', 1)"), "Connection refused"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS fails: "),
        (ValueError(), "ValueError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_why(error, said):
    assert reach.why(error).startswith(said)


async def test_what_speaks_no_http():
    with Front(saying(b"SSH-2.0-OpenSSH\r\n")) as front, pytest.raises(ValueError, match="no HTTP"):
        await reach.get("/livez", host="127.0.0.1", port=front.port)


PAGE = b"a page\x1b[2J of another\nserver"


@pytest.fixture
def site():
    """An HTTP server that answers each path with a status: `site(200)` -> its URL; /livez has one of its own."""
    with contextlib.ExitStack() as stack:

        def start(status, livez=200, location=None):
            class Handler(http.server.BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"
                logins = start.logins

                def do_GET(self):
                    self.logins.append(self.headers["Authorization"])
                    self.send_response(livez if self.path == "/livez" else status)
                    if location:
                        self.send_header("Location", location + self.path)
                    self.send_header("Content-Length", str(len(PAGE)))
                    self.end_headers()
                    self.wfile.write(PAGE)

                def log_message(self, *_):
                    pass

            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"ws://127.0.0.1:{server.server_port}"

        start.logins = []
        yield start


@pytest.mark.parametrize(
    ("status", "said", "mend"),
    [(426, "answers 426", "nginx"), (401, "answers 401", "relay token"), (200, "answers 200", "proxy's log"),
     (503, "answers 503", "/debug"), (400, "answers 400", "proxy's log")],
)  # fmt: skip
async def test_what_stands_between_and_passes_no_websocket_on(site, status, said, mend):
    found = await doctor_relay.examine(site(status), doctor_relay.Visitor(load()))
    assert (found[-1].check, found[-1].state) == ("handshake", "fault")
    assert said in found[-1].found
    assert mend in found[-1].mend


def test_a_redirect_is_a_fault_that_names_the_right_url(site):
    """As nginx in front has it, `return 301 https://...`; what is named behind it is looked at all the same."""
    urls = site(301, livez=301, location="https://wepp.cloud/status"), site(426)
    found = json.loads(invoke("--json", "--token", SECRET, "--url", urls[0], "--url", urls[1]).stdout)["findings"]
    [moved, last] = [finding for finding in found if finding["check"] == "handshake"]
    assert (moved["state"], last["state"]) == ("fault", "fault")
    assert moved["found"].startswith("answers 301 with https://wepp.cloud/status/doctor:")
    assert moved["mend"].startswith("relay doctor --url wss://wepp.cloud/status ")
    assert "answers 426" in last["found"]
    assert SECRET not in str(found)


async def test_what_is_no_relay_at_all(site):
    url = site(404, livez=404)
    found = await doctor_relay.examine(url, doctor_relay.Visitor(load()))
    assert found[0].mend.startswith(f"relay healthcheck --url {url.replace('ws:', 'http:')} ")
    assert (found[0].check, found[0].state) == ("livez", "fault")
    assert "\x1b" not in found[0].found
    assert "answers 404: a page\\x1b[2J of another server" in found[0].found


async def test_a_login_is_for_each_page_and_for_the_websocket(site):
    url = site(200).replace("//", f"//user:{SECRET}%21@")
    found = await doctor_relay.examine(url, doctor_relay.Visitor(load()))
    assert {base64.b64decode(login.removeprefix("Basic ")).decode() for login in site.logins} == {f"user:{SECRET}!"}
    assert len(site.logins) == 3
    assert SECRET not in str(found)


# ---- this machine ----


@pytest.mark.parametrize(
    ("hard", "wanted", "state"),
    [
        (30, None, "fault"),
        (500, None, "warning"),
        (64, 1000, "fault"),
        (100_000, 1000, "ok"),
        (resource.RLIM_INFINITY, None, "ok"),
    ],
)
def test_the_file_limit(monkeypatch, hard, wanted, state):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    found = doctor.files(wanted)
    assert found.state == state
    assert state == "ok" or "LimitNOFILE" in found.mend
    assert f"room for {max(0, listeners.room(hard))} connections" in found.found


@pytest.mark.parametrize(("text", "state"), [("128\n", "warning"), ("4096\n", "ok"), ("none", "skipped")])
def test_the_accept_queue(monkeypatch, tmp_path, text, state):
    (tmp_path / "somaxconn").write_text(text)
    monkeypatch.setattr(doctor, "SOMAXCONN", tmp_path / "somaxconn")
    found = doctor.accept_queue()
    assert found.state == state
    assert state != "warning" or found.mend.startswith("sysctl -w net.core.somaxconn=4096")


# ---- the command ----


def test_what_mends_a_fault_is_one_line_to_be_copied():
    mend = "redis-cli " + "-h wepp1 " * 20
    shown = doctor.lines(Finding("fault", "login", "a\x1b[2Jb " + "word " * 40, "what it means " * 20, mend))
    assert shown[0].startswith("  FAULT    login: a\\x1b[2Jb word")
    assert max(map(len, shown[:-1])) <= 80
    assert shown[-1] == f"  mend it: {mend}"


def test_what_a_server_says_is_one_short_line():
    assert quoted("a\n b\x07\u202ec") == "a b\\x07\\u202ec"
    assert len(quoted("x" * 1000)) == 203


def test_nothing_there_is_exit_code_8_and_says_what_mends_it():
    result = invoke()
    assert result.exit_code == 8
    assert "Redis of status and preflight: redis://127.0.0.1:1/0\n  FAULT    reach: " in result.stdout
    assert "Connection refused" in result.stdout
    assert "mend it: redis-cli -h 127.0.0.1 -p 1 PING" in result.stdout
    assert "  skipped  all of it: none was named\n" in result.stdout
    assert "  mend it: relay doctor --url ws://localhost:9002 --url ws://localhost:9001\n" in result.stdout
    assert result.stderr == "relay: faults found: 1\n"


def test_as_json():
    said = json.loads(invoke("--json").stdout)
    assert said["faults"] == 1
    [fault] = [finding for finding in said["findings"] if finding["state"] == "fault"]
    assert set(fault) == {"about", "state", "check", "found", "means", "mend"}


def test_one_service_alone():
    about = {finding["about"] for finding in json.loads(invoke("preflight", "--json").stdout)["findings"]}
    assert about == {"this machine", "Redis of preflight: redis://127.0.0.1:1/0", "a running relay"}


def test_a_typo_among_the_settings_is_told():
    assert "STATUS_PING_INTERVALL is not a setting" in " ".join(invoke(STATUS_PING_INTERVALL="5s").stdout.split())


def test_a_setting_that_is_malformed_is_exit_code_3():
    assert invoke(STATUS_PING_INTERVAL="5").exit_code == 3


def test_a_worker_url_that_is_none_is_not_repeated():
    result = invoke(WORKER_REDIS_URL=f"redis://:{SECRET}@host:port")
    assert result.exit_code == 3
    assert result.stderr.startswith("relay: --worker-redis-url has a malformed host")
    assert SECRET not in result.output


def test_a_url_that_is_none_is_a_usage_error():
    result = invoke("--url", "localhost:9002")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "not an address such as ws://localhost:9002" in result.stderr


def test_the_login_and_the_query_of_a_url_are_not_shown():
    assert doctor._without_login(f"wss://user:{SECRET}@h:1/status?token={SECRET}") == "wss://h:1/status"
