"""Clients that end with their test."""

import contextlib
import os
import time

import pytest
import redis

from client import configure, prep, sender, store
from tests.conftest import Relay
from tests.integration.peers import Peer
from tests.integration.worker_rig import RUN


@pytest.fixture(scope="module")
def standing(_shared_redis, tmp_path_factory):
    """One relay with both services for all tests of a module that ask nothing special of it: it must outlast them."""
    with Relay([], {"REDIS_URL": _shared_redis.url}, tmp_path_factory.mktemp("relay")) as process:
        yield process


@pytest.fixture
def join():
    """A factory of open websockets, all dropped with the test: `join(url, *headers)`, as Peer takes them."""
    with contextlib.ExitStack() as stack:
        yield lambda url, *headers, **options: stack.enter_context(Peer(url, *headers, **options))


@pytest.fixture
def worker():
    """A factory of connections to Redis, as workers have them: `worker(url)`, db 0 unless the URL names another."""
    with contextlib.ExitStack() as stack:
        yield lambda url, **options: stack.enter_context(redis.Redis.from_url(url, **options))


@pytest.fixture
def fresh_client(monkeypatch, request):
    """A process with no Redis in its environment, which has kept no checklist yet.

    Where there is a Redis, a publish has seconds: on a machine that stands still for 0.2 s a line that a test waits for
    would be dropped. A test of that promise itself is marked `promise`.
    """
    servers = {"redis_url", "redis_server", "new_redis"} & set(request.fixturenames)
    if servers and not request.node.get_closest_marker("promise"):
        seconds = 10.0 if servers == {"redis_url"} else 3.0  # of a server of its own a test may freeze it
        monkeypatch.setattr(sender, "BUDGET", seconds)
        monkeypatch.setattr(sender, "FIRST_ATTEMPT", seconds)
    for name in [name for name in os.environ if name.startswith("REDIS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(prep._Outage, "told", False)
    yield
    for used in store._stores.values():
        used.redis.connection_pool.disconnect()
    store._stores.clear()


@pytest.fixture
def server(redis_url, fresh_client):
    """The shared Redis, known to the worker client; a plain client of it on database 0."""
    configure(redis_url + "/5")
    with redis.Redis.from_url(redis_url, db=0, decode_responses=True) as client:
        yield client


@pytest.fixture
def wd(tmp_path):
    (tmp_path / RUN).mkdir()
    return tmp_path / RUN


@pytest.fixture
def clock(monkeypatch):
    """The second that the worker's clock shows; changed by assigning `clock.now`."""

    class Clock:
        now = 1_714_168_234

    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now + 0.9)
    return clock
