"""A relay that asks for tokens."""

import contextlib
import subprocess
import sys
import time

import jwt
import pytest
import redis

from relay.tokens import Keys
from tests.conftest import ROOT, Relay
from tests.integration.peers import Peer, Refused, ask, head, upgrade, wait_for

SECRET = "s3cr3t-" + 32 * "x"
OLD = "0ld-s3cr3t-" + 32 * "y"
KEYS = Keys(SECRET)


@pytest.fixture(scope="module")
def guarded(_shared_redis, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    (directory / "secret").write_text(f"{SECRET}\n{OLD}\n")
    env = {"REDIS_URL": _shared_redis.url, "RELAY_TOKEN_SECRET_FILE": str(directory / "secret")}
    process = Relay([], env, directory)
    try:
        process.wait("ready")
        yield process
    finally:
        process.end()


def refused(url):
    with pytest.raises(Refused) as found:
        Peer(url)
    return found.value.status


def test_with_a_token_for_it_and_not_without(guarded, join, redis_url):
    token = KEYS.sign(["r1"], ["wepp"], 60)
    peer = join(f"{guarded.status_url}/r1:wepp?token={token}")
    with redis.Redis.from_url(redis_url) as worker:
        assert worker.publish("r1:wepp", "hello") == 1
    assert peer.data() == "hello"
    join(f"{guarded.preflight_url}/r1?token={token}").checks()
    assert refused(f"{guarded.status_url}/r1:wepp") == 401
    assert refused(f"{guarded.status_url}/r1:soils?token={token}") == 403
    assert refused(f"{guarded.status_url}/r2:wepp?token={token}") == 403
    assert refused(f"{guarded.preflight_url}/r2?token={token}") == 403
    assert refused(f"{guarded.preflight_url}/r1?token={token}x") == 401


def test_it_may_come_in_a_header_as_the_challenge_says(guarded):
    """Of a websocket too: its plain request was read without it, and 401 asked for what had come."""
    for name in ("Authorization", "authorization"):
        for scheme, status in (("Bearer", 101), ("bearer", 101), ("Basic", 401)):
            field = f"{name}: {scheme} {KEYS.sign(['r1'], ['wepp'], 60)}"
            assert ask(guarded.status_url, upgrade("/r1:wepp", field)).status == status
            assert ask(guarded.status_url, upgrade("/r2:wepp", field)).status == (403 if status == 101 else 401)


def test_no_forged_one_opens_anything(guarded):
    claims = {"run": "*", "channel": "*", "exp": time.time() + 60}
    for token in (
        jwt.encode(claims, None, "none"),
        jwt.encode(claims, "another-" + 32 * "x", "HS256"),
        jwt.encode({"run": "*", "channel": "*"}, SECRET, "HS256"),
        jwt.encode({**claims, "exp": time.time() - 1}, SECRET, "HS256"),
        jwt.encode({**claims, "nbf": time.time() + 60}, SECRET, "HS256"),
        "a" * 6000,
        "..",
        "%00",
        "%ff%fe",
    ):
        assert refused(f"{guarded.status_url}/r1:wepp?token={token}") == 401, token[:80]


def test_the_old_secret_verifies_while_the_new_one_signs(guarded, join):
    join(f"{guarded.status_url}/r1:wepp?token={Keys(OLD).sign('*', '*', 60)}")


def test_a_topic_is_guarded_however_it_is_asked_for(guarded):
    for data in (head("/r1:wepp"), head("/r1:wepp", method="HEAD"), head("/a/b/r1:wepp", "Accept: text/event-stream")):
        answer = ask(guarded.status_url, data)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="relay"')
    assert ask(guarded.status_url, upgrade("/r1%3Awepp")).status == 401
    assert ask(guarded.status_url, upgrade("/health:wepp")).status == 401


def test_the_relays_own_paths_stay_open(guarded, join):
    for path in ("/livez", "/readyz", "/health", "/x/health", "/"):
        assert guarded.http("status", path)[0] == 200
    assert join(f"{guarded.status_url}/health").frame() == (1, b"OK")


def test_an_open_connection_ends_with_its_token(guarded, join):
    asked_at = time.monotonic()
    urls = (f"{guarded.status_url}/r1:wepp", f"{guarded.preflight_url}/r1")
    staying = [join(f"{url}?token={KEYS.sign(['r1'], ['*'], 600)}") for url in urls]
    ending = [wait_for(lambda url=url: let_in_for_two_seconds(join, url), "in time for its token") for url in urls]
    assert [peer.closed() for peer in ending] == [(1008, "permission expired")] * 2
    assert 0.5 < time.monotonic() - asked_at < 15
    assert all(peer.alive() for peer in staying)


def let_in_for_two_seconds(join, url):
    """A peer; None where this machine came too late with the token."""
    with contextlib.suppress(Refused):
        return join(f"{url}?token={KEYS.sign(['r1'], ['*'], 2)}")


def test_the_commands_bring_theirs_along(guarded):
    env = {"RELAY_TOKEN_SECRET": SECRET, "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "relay", "token", "--run", "r1", "--expires", "1m"]
    token = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip()
    command = [sys.executable, "-m", "relay", "checklist", "r1", "--url", guarded.preflight_url, "--json"]
    for given, code in (({"RELAY_TOKEN": token}, 0), ({}, 1), ({"RELAY_TOKEN": f"{token}x"}, 1)):
        done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert token not in done.stdout + done.stderr
        assert ("refused with 401" in done.stderr) is (code == 1)


def test_no_secret_is_no_start(relay, tmp_path):
    for text, what in (("short", "has 5 bytes"), ("", "empty")):
        (tmp_path / "secret").write_text(text)
        process = relay("status", env={"RELAY_TOKEN_SECRET_FILE": str(tmp_path / "secret")}, wait=None)
        assert process.process.wait(20) == 3
        assert what in process.stderr[-1]
