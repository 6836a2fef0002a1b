"""The servers of bench/peers.toml, each started through its entry as `relay bench` does it."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import re
import tomllib

import pytest
import redis
from websockets.asyncio.client import connect

from relay.cli import bench_servers
from tests.conftest import REQUIRE_ALL

TABLES = tomllib.loads(bench_servers.PEERS.read_text())["peer"]
ALWAYS = {"yardstick", "websockets"}  # what the tests need anyway is all that these need
PLACES = {"port", "redis_host", "redis_port", "bench", "tmp", "python"}
TEXTS = [f'{i} said "no"\\\n\t\x01é – 雨 {"x" * (i * 20)}' for i in range(100)]
SECONDS = 30.0


def peers():
    """Those that are installed; the others are no tools of the project's, so where all of these are required they are
    no part of the tests."""
    for recipe in bench_servers.peers(list(TABLES)):
        if not recipe.lacking():
            yield pytest.param(recipe, id=recipe.name)
        elif not REQUIRE_ALL:
            why = f"needs {', '.join(recipe.lacking())}: {recipe.install}"
            yield pytest.param(recipe, id=recipe.name, marks=pytest.mark.skip(reason=why))


@pytest.fixture(scope="module")
def bench():
    with bench_servers.Bench() as bench:
        yield bench


def publish_by_redis(bench, server, messages):
    with redis.Redis(port=bench.redis_port, db=2) as worker, worker.pipeline(transaction=False) as pipeline:
        for channel, text in messages:
            pipeline.publish(channel, text)
        pipeline.execute()


def publish_by_http(bench, server, messages):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    for channel, text in messages:
        connection.request("POST", f"/pub?id={channel}", json.dumps({"type": "status", "data": text}))
        answer = connection.getresponse()
        assert answer.status in (201, 202), answer.read()
        answer.read()
    connection.close()


@pytest.mark.parametrize("recipe", list(peers()))
async def test_each_client_gets_every_message_of_its_channel_in_order(bench, recipe):
    publish = {"redis": publish_by_redis, "http": publish_by_http}[recipe.publish]
    messages = [("run1:wepp", text) for text in TEXTS]
    messages += [("nobody:wepp", "unheard"), ("run2:wepp", "other"), ("run1:wepp", "last")]
    with bench.server(recipe) as server:
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(SECONDS):
            one, two, other = [
                await stack.enter_async_context(connect(f"ws://127.0.0.1:{server.port}/{channel}"))
                for channel in ("run1:wepp", "run1:wepp", "run2:wepp")
            ]
            await asyncio.to_thread(publish, bench, server, messages)
            for client in one, two:
                frames = [json.loads(await client.recv()) for _ in range(len(TEXTS) + 1)]
                assert frames == [{"type": "status", "data": text} for text in [*TEXTS, "last"]]
            assert json.loads(await other.recv()) == {"type": "status", "data": "other"}


async def test_the_yardstick_can_send_each_message_by_itself(bench):
    """`plain`, the mode to compare a relay with that does not gather."""
    (recipe,) = bench_servers.peers(["yardstick"])
    with bench.server(dataclasses.replace(recipe, command=[*recipe.command, "plain"])) as server:
        async with connect(f"ws://127.0.0.1:{server.port}/run1:wepp") as client, asyncio.timeout(SECONDS):
            await asyncio.to_thread(publish_by_redis, bench, server, [("run1:wepp", text) for text in TEXTS])
            assert [json.loads(await client.recv())["data"] for _ in TEXTS] == TEXTS


def test_some_peers_are_always_there():
    assert {recipe.name for recipe in bench_servers.peers(list(TABLES)) if not recipe.lacking()} >= ALWAYS


@pytest.mark.parametrize("name", TABLES)
def test_an_entry_is_whole(name):
    table = TABLES[name]
    assert table.keys() - {"prepare"} == {"title", "command", "publish", "needs", "install"}
    assert table["publish"] in ("redis", "http")
    assert table["needs"]
    words = [*table["command"], *table.get("prepare", [])]
    assert {place for word in words for place in re.findall(r"{(\w+)}", word)} <= PLACES
    assert any("{port}" in word for word in table["command"])
    ours = [word.removeprefix("{bench}/") for word in words if word.startswith("{bench}/")]
    assert [word for word in ours if not (bench_servers.PEERS.parent / word).is_file()] == []
    for text in table["title"], table["install"]:
        assert text.strip()
        assert "\n" not in text
