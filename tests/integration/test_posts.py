"""POST publishes, where it is enabled, for who has a token for it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from tests.integration.peers import Peer, Wire, address_of, ask, head, wait_for

SECRET = "s" * 40
ENV = {"RELAY_TOKEN_SECRET": SECRET, "RELAY_PUBLISH": "true"}


def token(*args):
    command = [sys.executable, "-m", "relay", "token", "--run", "p1", *args]
    env = os.environ | {"RELAY_TOKEN_SECRET": SECRET}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def watcher():
    return token()


@pytest.fixture(scope="module")
def publisher():
    return token("--publish")


def post(path, body=b"", *headers, length=None):
    length = len(body) if length is None else length
    return head(path, f"Content-Length: {length}", *headers, method="POST") + body


@pytest.fixture
def process(relay):
    return relay(env=ENV | {"RELAY_HEAD_TIMEOUT": "30s", "STATUS_METRICS_ENABLED": "true"})


def test_a_line_by_post(process, watcher, publisher):
    bearer = f"Authorization: Bearer {publisher}"
    with Peer(f"{process.status_url}/p1:wepp?token={watcher}") as peer:
        for body in (b"one", b"", "zwei – é".encode(), b"x" * 60_000):
            answer = ask(process.status_url, post("/p1:wepp", body, bearer))
            assert (answer.status, json.loads(answer.body)) == (200, {"receivers": 1})
            assert peer.data() == body.decode()
        assert ask(process.status_url, post(f"/p1:wepp?token={publisher}", b"by query")).status == 200
        assert peer.data() == "by query"
        with Wire(address_of(process.status_url)) as wire:
            for part in (post("/p1:wepp", b"", bearer, length=6), b"in ", b"par"):
                wire.send(part)
                time.sleep(0.02)
            wire.send(b"ts GET / HTTP/1.1\r\n\r\n"[:2] + b"and more")
            assert wire.answer().status == 200
        assert peer.data() == "in par"


def test_who_may_not(relay, watcher, publisher):
    process = relay(env=ENV | {"RELAY_HEAD_TIMEOUT": "1s"})
    bearer = f"Authorization: Bearer {publisher}"
    with Peer(f"{process.status_url}/p1:wepp?token={watcher}") as peer:
        for request, status in (
            (post("/p1:wepp", b"x"), 401),
            (post("/p1:wepp", b"x", "Authorization: Bearer x"), 401),
            (post(f"/p1:wepp?token={watcher}", b"x"), 403),
            (post("/p2:wepp", b"x", bearer), 403),
            (post("/p1:wepp", b"x" * 70_000, bearer), 413),
            (head("/p1:wepp", bearer, method="POST"), 411),
            (post("/p1:wepp", b"x", bearer, "Content-Length: 1"), 411),
            (head("/p1:wepp", bearer, "Content-Length: -1", method="POST"), 411),
            (post("/p1:wepp", b"1\r\nx\r\n0\r\n\r\n", bearer, "Transfer-Encoding: chunked"), 400),
            (post("/", b"x", bearer), 405),
            (post("/p1:wepp", b"", bearer, length=5), 408),
        ):
            assert ask(process.status_url, request).status == status, request[:80]
        assert b"The request body was not complete in 1 s" in ask(process.status_url, request).body
        assert ask(process.preflight_url, post("/p1", b"x", bearer)).status == 405
        assert ask(process.status_url, post("/p1:wepp", b"the only one", bearer)).status == 200
        assert peer.data() == "the only one"


def test_the_oldest_of_too_many_is_told_so(relay, publisher):
    process = relay("status", env=ENV | {"RELAY_MAX_HEADS": "16"})
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(address_of(process.status_url))) for _ in range(17)]
        for wire in wires:
            wire.send(post(f"/p1:wepp?token={publisher}", length=1))
            time.sleep(0.01)
        assert wires[0].answer().status == 503
        for wire in wires[1:]:
            wire.send(b"x")
            assert wire.answer().status == 200


def test_a_page_posts(relay, publisher):
    process = relay("status", env=ENV | {"STATUS_ALLOWED_ORIGINS": "https://wepp.cloud"})
    page = "Origin: https://wepp.cloud"
    ahead = head("/p1:wepp", page, "Access-Control-Request-Method: POST", method="OPTIONS")
    for request, status in (
        (ahead, 200),
        (post(f"/p1:wepp?token={publisher}", b"x", page), 200),
        (post(f"/p1:wepp?token={publisher}", b"x" * 70_000, page), 413),
        (post("/p1:wepp", b"x", page), 401),
    ):
        answer = ask(process.status_url, request)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://wepp.cloud")
    assert ask(process.status_url, ahead).headers["access-control-allow-methods"] == "GET, HEAD, POST"
    other = ask(process.status_url, head("/p1:wepp", method="PUT"))
    assert (other.status, other.headers["allow"]) == (405, "GET, HEAD, POST")
    assert b"POST" in other.body


def test_who_leaves_before_the_end_leaves_nothing(process, publisher):
    for _ in range(20):
        with Wire(address_of(process.status_url)) as wire:
            wire.send(post("/p1:wepp", b"half", f"Authorization: Bearer {publisher}", length=50))
            wire.socket.shutdown(socket.SHUT_WR)
            wire.ended()
    assert ask(process.status_url, post(f"/p1:wepp?token={publisher}", b"x")).status == 200


def test_who_has_ended_his_half_is_answered(process, publisher):
    """As `nc -N` does. It was published and not answered, so that its client would send it again."""
    with Peer(f"{process.status_url}/p1:wepp?token={publisher}") as peer:
        for url, request, body in (
            (process.status_url, post(f"/p1:wepp?token={publisher}", b"a line"), b'{"receivers": 1}'),
            (process.preflight_url, head(f"/p1?token={publisher}", "Accept: application/json"), b'{"type":"preflight"'),
        ):
            with Wire(address_of(url)) as wire:
                wire.send(request)
                wire.socket.shutdown(socket.SHUT_WR)
                assert wire.answer().body.startswith(body)
                wire.ended()
        assert peer.data() == "a line"


def test_it_is_off_unless_it_is_asked_for(relay, publisher):
    process = relay("status", env={"RELAY_TOKEN_SECRET": SECRET})
    assert ask(process.status_url, post(f"/p1:wepp?token={publisher}", b"x")).status == 405
    alone = relay("status", env={"RELAY_PUBLISH": "true"}, wait=None)
    assert alone.process.wait(20) == 3
    assert any("RELAY_TOKEN_SECRET" in line for line in alone.stderr)


def test_redis_is_away(relay, redis_server, publisher):
    process = relay("status", env=ENV | {"REDIS_URL": redis_server.url})
    redis_server.stop()
    wait_for(lambda: ask(process.status_url, head("/readyz")).status == 503, "the relay knows")
    answer = ask(process.status_url, post(f"/p1:wepp?token={publisher}", b"x"))
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert b"was not published" in answer.body
