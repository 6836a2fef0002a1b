"""Runs and channels by plain HTTP: event streams (WHATWG HTML, section 9.2), and the snapshot once."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest
import redis

from tests.integration.peers import Peer, Refused, Wire, address_of, ask, curl, head, wait_for

EVENTS = "Accept: text/event-stream"


class Stream(Wire):
    """An event stream, its head read."""

    def __init__(self, url, path, *headers, **options):
        super().__init__(address_of(url), **options)
        self.url = url
        self.send(head(path, EVENTS, *headers))
        while b"\r\n\r\n" not in self.unread:
            assert self.more()
        top, self.unread = self.unread.split(b"\r\n\r\n", 1)
        self.head = top.decode()
        self.status = int(self.head.split(" ")[1])

    def event(self):
        """The next (name, data); comments and `retry` are passed over, heartbeats counted."""
        while True:
            while b"\n\n" not in self.unread:
                if not self.more():
                    raise EOFError
            block, self.unread = self.unread.split(b"\n\n", 1)
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "data" in fields:
                return fields["event"], json.loads(fields["data"])
            if "retry" in fields:
                self.retry = int(fields["retry"])

    def until(self, name):
        while (event := self.event())[0] != name:
            pass
        return event[1]


@pytest.fixture
def stream():
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Stream(*args, **options))


@pytest.fixture
def database(redis_url):
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        yield client


def test_a_channel_as_events(standing, stream, database):
    events = stream(standing.status_url, "/e1:wepp")
    assert events.status == 200
    for header in (
        "Content-Type: text/event-stream; charset=utf-8",
        "Cache-Control: no-store",
        "X-Accel-Buffering: no",
        "Connection: close",
    ):
        assert header in events.head
    assert events.event() == ("ready", {"type": "ready"})
    assert 500 <= events.retry <= 3000
    with Peer(f"{standing.status_url}/e1:wepp") as peer:
        said = ["one", "", "zwei – é", 'a "quote"\nand a line\r\n\x00', "x" * 70_000]
        for text in said:
            database.publish("e1:wepp", text)
        assert [events.event() for _ in said] == [("status", {"type": "status", "data": text}) for text in said]
        assert [peer.data() for _ in said] == said, "and beside it a websocket has the same"


def test_a_run_as_events(standing, stream, database):
    database.hset("e2", mapping={"timestamps:build_soils": 1, "timestamps:run_wepp_watershed": 2})
    events = stream(standing.preflight_url, "/e2")
    snapshot = events.until("preflight")
    assert snapshot["type"] == "preflight"
    assert events.until("ready") == {"type": "ready"}
    before = json.dumps(snapshot)
    database.hset("e2", "locked:wepp.nodb", "true")
    assert json.dumps(events.until("preflight")) != before
    with Peer(f"{standing.preflight_url}/e2") as peer:
        assert peer.message()["type"] == "preflight"


def test_streams_are_counted(relay, stream):
    process = relay("status", env={"STATUS_METRICS_ENABLED": "true"})
    events = stream(process.status_url, "/e13:wepp")
    events.until("ready")
    with Peer(f"{process.status_url}/e13:wepp"):
        said = ask(process.status_url, head("/metrics")).body.decode()
        assert "\nstatus2_event_streams 1.0\n" in said
        assert "\nstatus2_connections_active 2.0\n" in said
    events.drop()
    wait_for(lambda: "streams 0.0\n" in ask(process.status_url, head("/metrics")).body.decode(), "it is gone")


def test_streams_begin_at_different_times_again(standing, stream):
    waits = set()
    for _ in range(8):
        events = stream(standing.status_url, "/e3:wepp")
        events.until("ready")
        waits.add(events.retry)
    assert len(waits) > 1, "thousands that lost one relay would return in the same second"


def test_the_snapshot_once(standing, stream, database):
    database.hset("e4", "timestamps:build_soils", 1)
    unwatched = ask(standing.preflight_url, head("/e4", "Accept: application/json"))
    assert unwatched.status == 200
    assert unwatched.headers["content-type"] == "application/json"
    events = stream(standing.preflight_url, "/x/e4?v=2")
    snapshot = events.until("preflight")
    events.until("ready")
    watched = ask(standing.preflight_url, head("/e4", "Accept: text/html, application/json;q=0.9, */*;q=0.1"))
    assert json.loads(unwatched.body) == json.loads(watched.body) == snapshot
    short = ask(standing.preflight_url, head("/e4", "Accept: application/json", method="HEAD"))
    assert (short.status, short.body) == (200, b"")
    assert short.headers["content-length"] == unwatched.headers["content-length"]
    empty = ask(standing.preflight_url, head("/nobody", "Accept: application/json"))
    assert not any(json.loads(empty.body)["checklist"].values())


def test_what_is_not_asked_for_is_a_websocket(standing):
    for url, path in ((standing.status_url, "/e5:wepp"), (standing.preflight_url, "/e5")):
        for headers in ((), ("Accept: */*",), ("Accept: text/html",)):
            answer = ask(url, head(path, *headers))
            assert answer.status == 426
            assert b"text/event-stream" in answer.body
            assert (b"application/json" in answer.body) is (url == standing.preflight_url)
    assert ask(standing.status_url, head("/e5:wepp", "Accept: application/json")).status == 426
    assert ask(standing.status_url, head("/e5:wepp", EVENTS, method="POST")).status == 405
    assert ask(standing.status_url, head("/not a run", EVENTS)).status == 400
    assert (
        ask(standing.status_url, head("/e5:wepp", EVENTS, method="HEAD")).headers["content-type"].startswith("text/ev")
    )


def test_line_ends_behind_a_request_are_none(standing, stream, database):
    events = stream(standing.preflight_url, "/e7")
    events.until("ready")
    events.send(b"\r\n\r\n")
    for number in range(3):
        database.hset("e7", "timestamps:build_soils", number)
        assert events.until("preflight")["last_modified"] == number


def test_what_is_wanted_most_is_had(standing, stream):
    both = "application/json, text/event-stream"
    with Wire(address_of(standing.status_url)) as wire:
        wire.send(head("/e16:wepp", f"Accept: {both}"))
        while b"\n\n" not in wire.unread:
            assert wire.more()
        assert b"200 OK" in wire.unread, "a channel has one of the two"
    for accept, kind in ((both, "application/json"), (f"{both};q=0", "application/json")):
        assert ask(standing.preflight_url, head("/e16", f"Accept: {accept}")).headers["content-type"] == kind
    reverse = head("/e16", f"Accept: application/json;q=0.1, {EVENTS[8:]};q=0.2", method="HEAD")
    assert "event-stream" in ask(standing.preflight_url, reverse).headers["content-type"]
    assert ask(standing.status_url, head("/e16:wepp", f"{EVENTS};q=0")).status == 426


def test_who_sends_more_is_told_and_ended(standing, stream):
    events = stream(standing.status_url, "/e6:wepp")
    events.until("ready")
    events.send(b"GET / HTTP/1.1\r\n\r\n")
    assert events.until("close")["code"] == 1002
    events.ended()


def test_heartbeats_are_comments(relay, stream):
    process = relay("status", env={"STATUS_PING_INTERVAL": "200ms", "STATUS_PONG_TIMEOUT": "1s"})
    begin = time.monotonic()
    events = stream(process.status_url, "/e7:wepp")
    events.until("ready")
    while events.unread.count(b":\n\n") < 10:
        assert events.more()
    assert time.monotonic() - begin > 1.0, "one that cannot answer is not given up for its silence"
    assert not events.unread.replace(b":\n\n", b"")


def test_a_drain_is_told_and_ends_the_stream(relay, stream):
    process = relay(env={"RELAY_DRAIN": "100ms"})
    both = [stream(process.status_url, "/e8:wepp"), stream(process.preflight_url, "/e8")]
    for events in both:
        events.until("ready")
    process.process.terminate()
    for events in both:
        assert events.until("close")["code"] == 1012
        events.ended()
    assert process.process.wait(20) == 0


def test_who_finds_no_room_is_told_to_come_back(relay, stream):
    """An EventSource never comes back after a 503."""
    env = {"RELAY_MAX_TOPICS": "1", "RELAY_DRAIN_DELAY": "30s", "STATUS_ALLOWED_ORIGINS": "https://wepp.cloud"}
    process = relay("status", env=env)

    def turned_away(path, why):
        events = stream(process.status_url, path, "Origin: https://wepp.cloud")
        assert (events.status, events.event()) == (200, ("close", {"type": "close", "code": 1013, "reason": why}))
        assert 3000 <= events.retry <= 6000
        assert "Access-Control-Allow-Origin: https://wepp.cloud" in events.head
        assert "Cache-Control: no-store" in events.head
        assert events.ended() == b""
        answer = ask(process.status_url, head(path, EVENTS, method="HEAD"))
        assert (answer.status, answer.body) == (503, b"")
        with pytest.raises(Refused, match="503"):
            Peer(f"{process.status_url}{path}")

    with Peer(f"{process.status_url}/e17:wepp"):
        turned_away("/e18:wepp", "This relay watches as many topics as it may.")
    process.process.terminate()
    wait_for(lambda: ask(process.status_url, head("/readyz")).status == 503, "it drains")
    turned_away("/e17:wepp", "This relay is restarting.")


def test_origins_and_tokens_are_those_of_websockets(relay, stream):
    process = relay("status", env={"STATUS_ALLOWED_ORIGINS": "https://wepp.cloud", "RELAY_TOKEN_SECRET": "s" * 40})
    command = [sys.executable, "-m", "relay", "token", "--run", "e9", "--expires", "1m"]
    token = subprocess.run(
        command, env=os.environ | {"RELAY_TOKEN_SECRET": "s" * 40}, capture_output=True, text=True, check=True
    ).stdout.strip()
    for path, headers, status in (
        ("/e9:wepp", (), 401),
        (f"/other:wepp?token={token}", (), 403),
        (f"/e9:wepp?token={token}", ("Origin: https://evil.com",), 403),
        (f"/e9:wepp?token={token}", ("Origin: https://wepp.cloud", "Origin: https://wepp.cloud"), 400),
    ):
        assert ask(process.status_url, head(path, EVENTS, *headers)).status == status, (path, headers)
    events = stream(process.status_url, f"/e9:wepp?token={token}", "Origin: https://wepp.cloud")
    assert "Access-Control-Allow-Origin: https://wepp.cloud\r\nVary: Origin" in events.head
    events.until("ready")


def test_a_page_of_an_allowed_origin_can_read_what_it_is_told(relay):
    page = "Origin: https://wepp.cloud"
    process = relay(env={"STATUS_ALLOWED_ORIGINS": "https://wepp.cloud", "RELAY_TOKEN_SECRET": "s" * 40})
    for method, path, status in (
        ("GET", "/e14:wepp", 401),
        ("HEAD", "/e14:wepp", 401),
        ("GET", "/%", 400),
        ("PUT", "/", 405),
    ):
        answer = ask(process.status_url, head(path, EVENTS, page, method=method))
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == "https://wepp.cloud"
        assert (answer.body == b"") is (method == "HEAD"), "and no answer to HEAD has a body"
        for others in (("Origin: https://evil.com",), (page, page), ()):
            answer = ask(process.status_url, head(path, EVENTS, *others, method=method))
            assert "access-control-allow-origin" not in answer.headers
    assert ask(process.preflight_url, head("/e14", page)).headers["access-control-allow-origin"] == "*"


def test_a_page_asks_ahead(standing, relay):
    """Browsers do, for a POST or an Authorization header of another Origin."""
    process = relay("status", env={"STATUS_ALLOWED_ORIGINS": "https://wepp.cloud", "RELAY_TOKEN_SECRET": "s" * 40})
    ahead = ("Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization")

    def asked(url, path, *headers):
        return ask(url, head(path, *headers, method="OPTIONS"))

    answer = asked(process.status_url, "/e15:wepp", "Origin: https://wepp.cloud", *ahead)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "https://wepp.cloud"
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD"
    assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type"
    assert int(answer.headers["access-control-max-age"]) > 0
    assert asked(process.status_url, "/e15:wepp", "Origin: https://evil.com", *ahead).status == 403
    assert asked(process.status_url, "/e15:wepp", "Origin: https://wepp.cloud").status == 405
    assert asked(process.status_url, "/", "Origin: https://wepp.cloud", *ahead).status == 405
    assert (
        asked(standing.preflight_url, "/e15", "Origin: https://any", *ahead).headers["access-control-allow-origin"]
        == "*"
    )


def test_a_stream_that_is_not_read_is_ended_and_others_go_on(relay, stream, database):
    process = relay("status", env={"RELAY_MAX_BACKLOG": "65536"})
    quick = stream(process.status_url, "/e10:wepp")
    quick.until("ready")

    def slow_is_told():
        slow = stream(process.status_url, "/e10:wepp", receive_buffer=4096)
        for number in range(100):
            database.publish("e10:wepp", f"{number} " + "x" * 20_000)
            assert quick.until("status")["data"].startswith(f"{number} ")
        got = []
        with contextlib.suppress(EOFError, OSError):
            while not got or got[-1][0] != "close":
                got.append(slow.event())
        lines = [data["data"].split()[0] for name, data in got if name == "status"]
        assert lines == [str(number) for number in range(len(lines))], "whole events, in order, up to the end"
        return got[-1][1].get("code") == 1013

    # Of three one hears of it: the relay waits 2 s for it to read, and this machine may stand still for as long.
    assert any(slow_is_told() for _ in range(3))


@pytest.mark.needs("curl")
def test_curl_shows_it_as_it_comes(standing, database):
    with curl(f"{standing.status_url}/e11:wepp") as lines:
        assert next(line for line in lines if line.startswith("event")) == "event: ready\n"
        database.publish("e11:wepp", "seen")
        assert next(line for line in lines if line.startswith("data") and "status" in line).endswith('"seen"}\n')


def test_redis_is_away_and_a_snapshot_is_not_to_be_had(relay, redis_server):
    process = relay("preflight", env={"REDIS_URL": redis_server.url})
    redis_server.stop()
    wait_for(lambda: ask(process.preflight_url, head("/readyz")).status == 503, "the relay knows")
    answer = ask(process.preflight_url, head("/e12", "Accept: application/json"))
    assert answer.status == 503
    assert answer.headers["retry-after"] == "5"
