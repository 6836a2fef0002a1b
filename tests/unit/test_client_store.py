"""The deadline over redis-py's calls, with operations of the test's own in place of Redis's."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest
import redis
from redis.exceptions import AuthenticationError, BusyLoadingError, ResponseError

from client import store as module
from client.connection import Address, Tls
from client.store import Store, store


class Failing:
    """Raises the errors given, one a call, then answers."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, _):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


ADDRESS = Address("127.0.0.1", 1)


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("reset"), redis.TimeoutError("late"), BusyLoadingError("loading")]
)
def test_trouble_with_the_connection_is_tried_again(error):
    operation = Failing(error, error)
    assert Store(ADDRESS, 5.0).call(time.monotonic() + 60, operation) == "answer"
    assert operation.calls == 3


@pytest.mark.parametrize("error", [AuthenticationError("WRONGPASS"), ResponseError("WRONGTYPE")])
def test_what_another_attempt_cannot_mend_is_raised_at_once(error):
    operation = Failing(error)
    with pytest.raises(type(error)):
        Store(ADDRESS, 5.0).call(time.monotonic() + 60, operation)
    assert operation.calls == 1


def test_a_timeout_becomes_a_connection_error_that_names_redis_and_the_budget(monkeypatch):
    clock = SimpleNamespace(now=100.0)  # only its own pauses take time, so there is time for several attempts
    clock.monotonic = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(module, "time", clock)
    operation = Failing(*[redis.TimeoutError("late")] * 99)
    with pytest.raises(
        redis.ConnectionError, match=r"Redis at redis://127\.0\.0\.1:1 gave no answer within 0\.4 s: late"
    ):
        Store(ADDRESS, 0.4).call(clock.now + 0.4, operation)
    assert operation.calls > 1
    assert clock.now <= 100.4


def test_without_a_budget_there_is_one_attempt():
    operation = Failing(redis.ConnectionError("reset"))
    with pytest.raises(redis.ConnectionError):
        Store(ADDRESS, 0.0).call(time.monotonic(), operation)
    assert operation.calls == 1


def test_a_name_that_never_resolves_ends_with_the_deadline(monkeypatch):
    release, lookup = threading.Event(), socket.getaddrinfo

    def stuck(host, *args, **kwargs):
        return (
            release.wait() if host == "redis.example.org" and not kwargs.get("flags") else lookup(host, *args, **kwargs)
        )

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    operation = Failing()
    with pytest.raises(redis.ConnectionError, match=r"redis\.example\.org did not resolve in time"):
        Store(Address("redis.example.org"), 0.4).call(time.monotonic() + 0.4, operation)
    release.set()
    assert operation.calls == 0


def test_a_name_that_does_not_exist_is_said_to_be_the_trouble(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(redis.ConnectionError, match=r"redis\.example\.org does not resolve: Name or service not known"):
        Store(Address("redis.example.org"), 0.0).call(time.monotonic(), Failing())


def test_a_name_is_looked_up_once_while_redis_answers(monkeypatch):
    asked, lookup = [], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: (asked.append((host, k)), lookup(host, *a, **k))[1]
    )
    calls = Store(Address("localhost"), 5.0)
    for _ in range(3):
        calls.call(time.monotonic() + 60, Failing())
    assert len([k for host, k in asked if not k.get("flags")]) == 1


def test_a_process_has_one_store_for_an_address_and_budget():
    assert store(ADDRESS, 5.0) is store(Address("127.0.0.1", 1), 5.0)
    assert store(ADDRESS, 5.0) is not store(ADDRESS, 4.0)


@pytest.mark.parametrize(
    ("address", "kind", "expected"),
    [
        (Address("h", 7, password="p"), redis.Connection, {"host": "h", "port": 7, "password": "p", "db": 0}),
        (Address(path="/s", username="u"), redis.UnixDomainSocketConnection, {"path": "/s", "username": "u", "db": 0}),
        (
            Address("h", 7, tls=Tls(ssl_ca_certs="/ca")),
            redis.SSLConnection,
            {"host": "h", "ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": "/ca"},
        ),
    ],
)
def test_the_address_reaches_redis_py(address, kind, expected):
    pool = Store(address, 5.0).redis.connection_pool
    assert pool.connection_class is kind
    assert {name: pool.connection_kwargs[name] for name in expected} == expected
    assert pool.connection_kwargs["socket_timeout"] == pool.connection_kwargs["socket_connect_timeout"] == module.STEP
