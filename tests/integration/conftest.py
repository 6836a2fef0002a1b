"""Clients that end with their test."""

import contextlib

import pytest
import redis

from tests.conftest import Relay
from tests.integration.peers import Peer


@pytest.fixture(scope="module")
def standing(_shared_redis, tmp_path_factory):
    """One relay with both services for all tests of a module that ask nothing special of it: it must outlast them."""
    process = Relay([], {"REDIS_URL": _shared_redis.url}, tmp_path_factory.mktemp("relay"))
    try:
        process.wait("ready")
        yield process
    finally:
        process.end()


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
