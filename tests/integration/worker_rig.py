"""What the tests of the worker client share: a subscriber as judge, and addresses that are no Redis."""

import contextlib
import json
import socket
import time
from pathlib import Path

import redis

ROOT = Path(__file__).parents[2]
RUN = "run1"
# Ahead of a program whose lines are to arrive: as in the fixture fresh_client, a publish has seconds, and its end.
PATIENT = """
from client import outbox, sender
sender.BUDGET = sender.FIRST_ATTEMPT = 10.0
outbox.EXIT_BUDGET = 30.0
"""


@contextlib.contextmanager
def subscribed(url, *channels):
    """A plain subscriber; yields a function that returns the next (channel, data)."""
    with redis.Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(*channels)
        waiting = set(channels)
        while waiting:
            waiting.discard(pubsub.handle_message(pubsub.parse_response()) or waiting.pop())

        def following(timeout=20.0):
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline:
                message = pubsub.get_message(timeout=deadline - time.monotonic())
                if message is not None:
                    return message["channel"].decode(), message["data"]
            raise AssertionError("nothing came")

        yield following


def heard(following, last):
    """The payloads up to and with `last`, notices left out."""
    lines = []
    while not lines or lines[-1] != last:
        lines.append(following()[1].decode())
    return [line for line in lines if not line.startswith("StatusMessenger: ")]


def until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


# --- point 1: network trouble never raises into a worker and never holds it up ------------------------------


def dumped(wd):
    return json.loads((wd / "redisprep.dump").read_text())


@contextlib.contextmanager
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def mute_server():
    """Accepts (the kernel does) and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"
