"""deploy/nginx.conf and deploy/Caddyfile before a relay: the prefix, the addresses, the heartbeat."""

import re
from urllib.parse import urlsplit

import pytest

from relay.cli.embedded import free_port
from relay.settings import ServiceSettings
from relay.values import parse_duration
from tests.integration.peers import (
    Peer,
    Wire,
    address_of,
    ask,
    assert_told_to_come_back,
    curl,
    head,
    upgrade,
)
from tests.integration.proxies import PREFIX, caddy, in_front, nginx
from tests.integration.topology import DEPLOY, PORTS


@pytest.fixture
def behind(relay):
    """The relay behind the proxy; one client of an address is let in."""
    return relay(env={"RELAY_TRUSTED_PROXIES": "127.0.0.1", "RELAY_MAX_PER_ADDRESS": "1"})


@pytest.fixture(params=[pytest.param(proxy, marks=pytest.mark.needs(proxy.__name__)) for proxy in (nginx, caddy)])
def url(request, behind, tmp_path):
    """ws:// of the proxy, with WEPPcloud's prefix."""
    port = free_port()
    with in_front(request.param, behind, tmp_path, port):
        yield f"ws://127.0.0.1:{port}{PREFIX}"


def test_both_services_below_the_prefix(url, worker, redis_url):
    run = "batch;;x;;r1"
    with (
        Peer(f"{url}/status/{run.replace(';', '%3B')}:wepp") as log,
        Peer(f"{url}/preflight/{run}", source="127.0.0.2") as box,
    ):
        assert worker(redis_url).publish(f"{run}:wepp", "through the proxy") == 1
        assert log.data() == "through the proxy"
        assert box.checks() == set()
        assert log.alive()
    for service in PORTS:
        for path in ("/livez", "/readyz", "/health"):
            answer = ask(url, head(f"{PREFIX}/{service}{path}", "Connection: close"))
            assert answer.status == 200, "its own paths are exact"


@pytest.mark.needs("curl")
def test_events_come_through_as_they_happen(url, worker, redis_url):
    with curl(f"{url}/status/r1:wepp") as lines:
        assert next(lines).startswith("retry: ")
        assert next(line for line in lines if line.startswith("event")) == "event: ready\n", "and is not kept for more"
        worker(redis_url).publish("r1:wepp", "by and by")
        assert next(line for line in lines if "by and by" in line).startswith("data: ")
    with curl(f"{url}/preflight/r1", "application/json") as lines:
        assert '"checklist"' in next(lines)


def test_an_event_source_comes_back_when_the_relay_is_away(url, behind):
    """It never does after a 502."""
    behind.stop()
    for path in ("/status/r1:wepp", "/preflight/r1"):
        answer = ask(url, head(PREFIX + path, "Accept: text/event-stream", "Connection: close"))
        assert_told_to_come_back(answer)
        plain = ask(url, head(PREFIX + path, "Connection: close"))
        assert plain.status in (502, 503)
        with Wire(address_of(url)) as websocket:
            websocket.send(upgrade(PREFIX + path))
            assert websocket.take(11) == b"HTTP/1.1 50"
    assert ask(url, head("/elsewhere", "Connection: close")).status in (200, 404), "all else is as it was"


def test_the_address_is_the_clients(url):
    channel = f"{url}/status/r1:wepp"
    with (
        Peer(channel, source="127.0.0.5"),
        Peer(channel, source="127.0.0.6"),
        Wire(address_of(channel), source="127.0.0.5") as one_too_many,
    ):
        one_too_many.send(upgrade(urlsplit(channel).path, "X-Forwarded-For: 6.6.6.6"))
        assert one_too_many.take(12) == b"HTTP/1.1 503"


def test_nginx_waits_longer_than_the_heartbeat_takes():
    settings = ServiceSettings.model_fields
    text = (DEPLOY / "nginx.conf").read_text()
    timeouts = [parse_duration(found) for found in re.findall(r"proxy_(?:read|send)_timeout (\w+);", text)]
    assert len(timeouts) == 4
    assert min(timeouts) > settings["pong_timeout"].default > settings["ping_interval"].default
