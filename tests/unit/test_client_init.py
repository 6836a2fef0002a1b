"""The package as a worker imports it: cheap, lazy, and without the relay."""

import json
import subprocess
import sys

import pytest

import client

NAMES = [
    "QueuedMessenger", "RedisPrep", "StatusMessenger", "StatusMessengerHandler", "TaskEnum", "configure",
    "run_and_stream", "status_logging", "timed",
]  # fmt: skip


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_import_is_cheap():
    """In seconds of the processor, for a machine that is busy with others makes it no dearer."""
    code = "import time; t = time.process_time(); import client; print(time.process_time() - t)"
    assert min(float(run(code)) for _ in range(5)) < 0.030


def test_publishing_needs_no_redis_py():
    code = "import sys; from client import StatusMessenger, StatusMessengerHandler, TaskEnum, configure; "
    assert run(code + "print('redis' in sys.modules)").strip() == "False"


def test_nothing_of_the_relay_is_imported():
    code = "import sys, json, client\nfor n in client.__all__: getattr(client, n)\nprint(json.dumps(list(sys.modules)))"
    modules = json.loads(run(code))
    assert "redis" in modules
    assert [name for name in modules if name.partition(".")[0] in ("relay", "uvloop", "click", "pydantic")] == []


def test_every_export_is_there_and_listed():
    assert sorted(client.__all__) == sorted(NAMES)
    assert {getattr(client, name).__name__ for name in NAMES} == set(NAMES)
    assert set(NAMES) <= set(dir(client))


def test_an_unknown_name_is_an_attribute_error_that_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'RedisPerp'; it has .*RedisPrep"):
        _ = client.RedisPerp
