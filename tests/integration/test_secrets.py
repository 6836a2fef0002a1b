"""Secrets everywhere and trouble of every kind: what the relay says of it repeats none of them (row S7)."""

import base64
import contextlib
import json
import os
import socket
import threading
import traceback
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from relay.cli import embedded
from relay.cli.commands import relay as cli
from relay.tokens import Keys
from tests.conftest import OURS, Relay
from tests.integration.peers import Peer, Refused, ask, head, upgrade, wait_for
from tests.integration.test_operators import asked

pytestmark = pytest.mark.row("S7")

IN_URL = "url+pass/w0rd?&=%"
IN_FILE = "file-passw0rd-'\"-ü"
SIGNING = "signing-s3cr3t-" + 32 * "z"
OLDER = "0lder-s3cr3t-" + 32 * "y"
SECRETS = (IN_URL, IN_FILE, SIGNING, OLDER)
TOKEN = Keys(SIGNING).sign(["r1"], ["*"], 86_400)  # from when tests are collected, so for as long as any run of them


def shapes(secret):
    """As it is, and as others would write it."""
    raw = secret.encode()
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        repr(secret)[1:-1],
        repr(raw)[2:-1],
        json.dumps(secret)[1:-1],
    } | {base64.b64encode(raw).decode().rstrip("=")}


def assert_silent(text, *more):
    """Nothing in it is a secret, or a token, or half of one."""
    for secret in (*SECRETS, *more):
        for shape in shapes(secret):
            assert shape not in text, f"{shape!r} is shown: {text[max(0, text.index(shape) - 300) :][:600]}"
    for part in TOKEN.split(".")[1:]:
        assert part not in text


@pytest.fixture
def secrets(tmp_path):
    """The environment of a relay that has them all, for a Redis at a port."""
    (tmp_path / "password").write_text(IN_FILE + "\n")
    (tmp_path / "signing").write_text(f"{SIGNING},{OLDER}\n")
    return lambda port: {
        "REDIS_URL": None,
        "STATUS_REDIS_URL": f"redis://relay:{quote(IN_URL, safe='')}@127.0.0.1:{port}",
        "PREFLIGHT_REDIS_URL": f"redis://watcher@127.0.0.1:{port}",
        "PREFLIGHT_REDIS_PASSWORD_FILE": str(tmp_path / "password"),
        "RELAY_TOKEN_SECRET_FILE": str(tmp_path / "signing"),
        "RELAY_INTERNAL_ADDR": f"unix:{tmp_path / 'internal.sock'}",
        "STATUS_LOG_LEVEL": "debug",
        "STATUS_METRICS_ENABLED": "true",
    }


def users(server):
    server.execute("ACL", "SETUSER", "relay", "on", f">{IN_URL}", "~*", "&*", "+@all")
    server.execute("ACL", "SETUSER", "watcher", "on", f">{IN_FILE}", "~*", "&*", "+@all")
    return server


def shown(process, env):
    """All that it has said and would say to operators."""
    path = env["RELAY_INTERNAL_ADDR"].removeprefix("unix:")
    pages = [asked(path, head(page)).body.decode() for page in ("/readyz", "/debug", "/metrics", "/nothing")]
    pages += [process.http("status", page)[2].decode() for page in ("/readyz", "/metrics", "/")]
    return "\n".join([*process.stderr, process.stdout_path.read_text(), *pages])


def command(*args, env):
    """The exit code of `relay ...` in this environment, and what it prints."""
    ours = dict.fromkeys(name for name in os.environ if name.startswith(OURS))
    done = CliRunner().invoke(cli, args, env={**ours, **env})
    return done.exit_code, done.output + "".join(traceback.format_exception(done.exception))


def test_wrong_passwords_and_rights_taken_away(relay, redis_server, secrets, join):
    users(redis_server)
    env = secrets(redis_server.port)
    process = relay(env=env)
    join(f"{process.status_url}/r1:wepp?token={TOKEN}")
    join(f"{process.preflight_url}/r1?token={TOKEN}").checks()
    redis_server.execute("ACL", "SETUSER", "relay", "resetpass", ">another")
    redis_server.execute("ACL", "SETUSER", "watcher", "-@all", "+ping")
    redis_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
    redis_server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_for(lambda: "WRONGPASS" in "".join(process.stderr), "the refusal in the log")
    wait_for(lambda: "WRONGPASS" in shown(process, env).split('"build"')[1], "the refusal in the details")
    assert_silent(shown(process, env))


def test_what_clients_send(relay, redis_server, secrets):
    users(redis_server)
    env = secrets(redis_server.port)
    process = relay(env=env)
    answers = []
    for data in (
        upgrade(f"/r2:wepp?token={TOKEN}"),
        upgrade(f"/r1:wepp?token={TOKEN}x"),
        upgrade(f"/r1:wepp?token={TOKEN}&token={TOKEN}"),
        upgrade(f"/r1?token={TOKEN}"),
        upgrade(f"/readyz?token={TOKEN}"),
        upgrade(f"http://x#/r1:wepp?token={TOKEN}"),
        upgrade(f"/r1:wepp?token={TOKEN}", "Host: another"),
        upgrade(f"/r1:wepp?token={TOKEN}", "A : b"),
        upgrade(f"/r1:wepp?token={TOKEN}", "Referer: " + 9000 * "x"),
        head(f"/r1:wepp?token={TOKEN}"),
        head(f"/r1:wepp?token={TOKEN}", method="POST"),
        head(f"/nothing/metrics?token={TOKEN}"),
        head(f"?token={TOKEN}"),
        head(f"/metrics?token={TOKEN}"),
    ):
        answers.append(ask(process.status_url, data))
        answers.append(asked(env["RELAY_INTERNAL_ADDR"].removeprefix("unix:"), data))
    assert all(answer.status >= 400 for answer in answers[:-2])
    assert_silent(shown(process, env) + "".join(str(answer.headers) + answer.body.decode() for answer in answers))


class Repeating:
    """A server that is no Redis, or one that knows no AUTH: it says back what it was sent, in an error or as it was."""

    def __init__(self, wrap):
        self.wrap = wrap
        self.heard = b""
        self.socket = socket.create_server(("127.0.0.1", embedded.free_port()))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                with client, contextlib.suppress(OSError):
                    data = client.recv(65536)
                    self.heard += data
                    client.sendall(self.wrap(data))
                    client.recv(65536)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def in_an_error(data):
    """Of Redis 7, where AUTH is renamed; others do the same with what they take for a typo."""
    words = [line for line in data.split(b"\r\n") if line and line[:1] not in b"*$"]
    return b"-ERR unknown command 'AUTH', with args beginning with: " + b" ".join(b"'%b'" % w for w in words) + b"\r\n"


WRAPS = {
    "in an error": in_an_error,
    "twice": lambda data: data + data,
    "later": lambda data: b"+OK\r\n+PONG\r\n" + in_an_error(data),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_server_that_repeats_what_it_is_sent(relay, secrets, wrap):
    with Repeating(WRAPS[wrap]) as server:
        env = secrets(server.port)
        process = relay(env=env, wait="listen")
        wait_for(lambda: IN_URL.encode() in server.heard and IN_FILE.encode() in server.heard, "both passwords")
        wait_for(lambda: sum("no Redis for" in line for line in process.stderr) >= 2, "trouble in the log")
        said = shown(process, env)
        assert "trouble" in said
        assert_silent(said)


RAISING = """
import relay.status, relay.handshake, relay.upstream
def raising(*args, **more):
    raise ValueError(f"broken on purpose, with {len(args)} arguments")
relay.status.Status.join = relay.handshake.origin_allowed = raising
relay.upstream.Commands._on_info = raising
"""


def test_callbacks_that_raise(redis_server, secrets, tmp_path):
    users(redis_server)
    (tmp_path / "sitecustomize.py").write_text(RAISING)
    env = {**secrets(redis_server.port), "PYTHONPATH": str(tmp_path)}
    process = Relay([], env, tmp_path)
    try:
        process.wait("ready")
        with pytest.raises(Refused) as refused:
            Peer(f"{process.status_url}/r1:wepp?token={TOKEN}")
        assert refused.value.status == 500
        text = shown(process, env)
        assert text.count("broken on purpose") >= 2
        assert "Traceback" in text
        assert_silent(text + refused.value.answer.body.decode())
    finally:
        process.stop()


@pytest.mark.parametrize(
    "wrong",
    [
        {"STATUS_REDIS_URL": f"redis://relay:{IN_URL}@127.0.0.1:1"},
        {"STATUS_REDIS_URL": f"redis://relay:{quote(IN_URL, safe='')}@127.0.0.1:port"},
        {"STATUS_REDIS_URL": f"redis://:{quote(IN_URL, safe='')}"},
        {"STATUS_REDIS_URL": f"http://relay:{quote(IN_URL, safe='')}@h"},
        {"STATUS_REDIS_URL": f"redis://h:1?password={quote(IN_URL, safe='')}&x=y"},
        {"PREFLIGHT_PING_INTERVAL": "soon"},
        {"RELAY_TOKEN_SECRET_FILE": None, "RELAY_TOKEN_SECRET": f"{SIGNING},{SIGNING[:20]}"},
        {"RELAY_TOKEN_SECRET_FILE": "{file}"},
        {"PREFLIGHT_REDIS_PASSWORD_FILE": "{file}", "RELAY_DRAIN": "x"},
        {"RELAY_ENV_FILE": "{broken}"},
        {"RELAY_METRICS_ADDR": "unix:relative"},
    ],
    ids=lambda wrong: "+".join(wrong),
)
def test_settings_that_are_malformed(secrets, tmp_path, wrong):
    (tmp_path / "file").write_text(SIGNING[:20])
    (tmp_path / "broken").write_text(f"A=b\n'{SIGNING}\nREDIS_PASSWORD='{IN_FILE}\n")
    filled = {name: v and v.replace("{", str(tmp_path) + "/").replace("}", "") for name, v in wrong.items()}
    for args in (("serve",), ("config", "show"), ("config", "check"), ("token", "--run", "r1")):
        code, said = command(*args, env={**secrets(1), **filled})
        assert code == 3 or (args[0] == "token" and not any(name.startswith("RELAY_") for name in wrong)), said
        assert_silent(said, SIGNING[:20])


def test_settings_that_are_shown(secrets):
    code, said = command("config", "show", env=secrets(1))
    assert code == 0
    assert said.count("***") >= 4
    assert_silent(said)


def test_a_password_refused_at_the_start(relay, redis_server, secrets):
    process = relay(env=secrets(redis_server.port), wait=None)
    assert process.process.wait(20) == 3
    assert_silent("\n".join(process.stderr))


def test_given_up(relay, secrets):
    env = {**secrets(embedded.free_port()), "STATUS_REDIS_MAX_RETRIES": "1"}
    process = relay("status", env=env, wait=None)
    assert process.process.wait(20) == 4
    assert_silent("\n".join(process.stderr))
