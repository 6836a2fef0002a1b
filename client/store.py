"""The Redis client behind RedisPrep: redis-py, with one deadline over everything that a call may take.

redis-py's timeouts are per operation and its own retries multiply them: with its defaults a first command takes 59 s
against a server that accepts and never answers. Here redis-py never retries, an operation may take STEP seconds,
and the loop in `Store.call` decides, by the deadline of the whole call, whether there is another attempt.
"""

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from client import keys
from client.connection import Address
from client.ending import start

# Seconds for one socket operation. A worker 190 ms away is well served, and ten attempts fit the default budget.
STEP = 0.5
PAUSE_BASE = 0.05
PAUSE_MAX = 0.25

_chance = random.SystemRandom()  # as in client.sender


class Store:
    """One connection pool, shared by all RedisPrep of a process with the same address and budget."""

    def __init__(self, address: Address, budget: float) -> None:
        self.address = address
        self.budget = budget
        # A budget of 0 means one attempt, which still needs time to be one.
        self.step = min(STEP, budget / 8) if budget else STEP
        self.redis = redis.Redis(connection_pool=_pool(address, self.step))
        self._answered = False

    def call(self, deadline: float, operation: Callable[[redis.Redis], Any]) -> Any:
        """Run `operation` until Redis answers it or `deadline` (on time.monotonic) leaves no room for an attempt.

        The operation may have taken effect although its answer was lost, and is then run again.

        Raises:
            redis.exceptions.ConnectionError: no answer in time, by whatever cause; a refused password at once.
            redis.exceptions.ResponseError: Redis answered with an error.
        """
        pause = PAUSE_BASE
        while True:
            try:
                if not self._answered:
                    self._resolve(deadline)
                result = operation(self.redis)
            except AuthenticationError:
                raise
            except (RedisConnectionError, RedisTimeoutError) as error:
                self._answered = False
                rest = _chance.uniform(pause / 2, pause)
                if time.monotonic() + rest + self.step > deadline:
                    message = f"Redis at {self.address} gave no answer within {self.budget:g} s: {error}"
                    raise RedisConnectionError(message) from error
            else:
                self._answered = True
                return result
            time.sleep(rest)
            pause = min(2 * pause, PAUSE_MAX)

    def _resolve(self, deadline: float) -> None:
        """See that the host's name resolves in time; redis-py then asks again and gets the same quick answer.

        getaddrinfo knows no timeout and, with a dead name server, takes half a minute. So it runs in a thread that is
        left behind where it takes too long.
        """
        if self.address.path is not None or _is_numeric(self.address.host):
            return
        outcome: list[OSError | None] = []

        def look_up() -> None:
            try:
                socket.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
                outcome.append(None)
            except OSError as error:
                outcome.append(error)

        thread = threading.Thread(target=look_up, name="client-resolve", daemon=True)
        try:
            start(thread)
            thread.join(max(deadline - time.monotonic(), self.step))
        except RuntimeError:  # no thread is to be had: better for as long as it takes than not at all
            look_up()
        if not outcome:
            raise RedisTimeoutError(f"the name {self.address.host} did not resolve in time")
        if outcome[0] is not None:
            raise RedisConnectionError(f"the name {self.address.host} does not resolve: {outcome[0].strerror}")


def _is_numeric(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return False
    return True


def _pool(address: Address, step: float) -> redis.ConnectionPool:
    options: dict[str, Any] = {
        "db": keys.PREP_DB,
        "username": address.username,
        "password": address.password,
        "socket_timeout": step,
        "socket_connect_timeout": step,
        "retry": Retry(NoBackoff(), 0),
        # RESP2 needs no HELLO. A field that is no UTF-8 must not make every later dump of the run fail.
        "protocol": 2,
        "decode_responses": True,
        "encoding_errors": "surrogateescape",
    }
    if address.path is not None:
        return redis.ConnectionPool(connection_class=redis.UnixDomainSocketConnection, path=address.path, **options)
    options |= {"host": address.host, "port": address.port, "socket_keepalive": True}
    if address.tls is None:
        return redis.ConnectionPool(**options)
    return redis.ConnectionPool(connection_class=redis.SSLConnection, **options, **vars(address.tls))


_stores: dict[tuple[Address, float], Store] = {}


def store(address: Address, budget: float) -> Store:
    """The process's store for this address and budget (seconds that one call may take in all)."""
    found = _stores.get((address, budget))
    return found or _stores.setdefault((address, budget), Store(address, budget))


# redis-py's pools know a fork by themselves; this also frees a child of locks that another thread held just then.
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_stores.clear)
