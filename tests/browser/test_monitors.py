"""What watches the services without a browser: the Discord bot, k6 with its status script, status_monitor.sh."""

import asyncio
import json
import socket
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import redis.asyncio
from websockets.asyncio.client import connect

CLOSE_WAIT, ESTABLISHED = "08", "01"


@pytest.mark.parametrize("prefix", ["", "/weppcloud-microservices/{}"])
@pytest.mark.parametrize("service", ["status", "preflight"])
async def test_the_discord_bot_is_told_ok(relay, service, prefix):
    """It connects, waits for one message and goes, offering compression as its library does."""
    process = relay(service)
    base = {"status": process.status_url, "preflight": process.preflight_url}[service]
    async with connect(f"{base}{prefix.format(service)}/health", open_timeout=20, compression="deflate") as bot:
        assert await asyncio.wait_for(bot.recv(), 20) == "OK"
        await asyncio.wait_for(bot.wait_closed(), 20)
    assert bot.close_code == 1000


async def test_the_discord_bot_is_told_ok_while_redis_is_away(relay, redis_server):
    process = relay("status", env={"REDIS_URL": redis_server.url})
    redis_server.kill()
    async with connect(f"{process.status_url}/health") as bot:
        assert await asyncio.wait_for(bot.recv(), 20) == "OK"


class VirtualUser:
    """One user of the k6 script: says init, answers pings, counts status frames, and leaves with 1000 when done."""

    def __init__(self, base, run, channel):
        self.url = f"{base}/{quote(run, safe='')}:{quote(channel, safe='')}"
        self.latencies, self.pings = [], 0
        self.opened = asyncio.Event()

    async def visit(self, messages):
        async with connect(self.url, origin=None, user_agent_header="k6/1.0", compression=None) as connection:
            await connection.send(json.dumps({"type": "init"}))
            self.opened.set()
            while len(self.latencies) < messages or not self.pings:
                await self.take(connection, json.loads(await connection.recv()))
            await connection.close(1000, "done")
        return connection.close_code

    async def take(self, connection, frame):
        if frame["type"] == "ping":
            self.pings += 1
            await connection.send(json.dumps({"type": "pong"}))
        else:
            assert frame["type"] == "status"
            self.latencies.append(time.monotonic() - float(frame["data"]))


async def test_the_k6_script_sees_no_failure(relay, redis_url):
    """Its thresholds are no failed connection and, at the 95th percentile, 50 ms; the time is not judged here."""
    process = relay("status")
    users = [VirtualUser(process.status_url, "loadtest", "wepp") for _ in range(50)]
    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        visits = [group.create_task(user.visit(messages=20)) for user in users]
        for user in users:
            await user.opened.wait()
        async with redis.asyncio.Redis.from_url(redis_url) as worker:
            for _ in range(20):
                assert await worker.publish("loadtest:wepp", repr(time.monotonic())) == 1
    assert [visit.result() for visit in visits] == [1000] * 50
    assert [len(user.latencies) for user in users] == [20] * 50
    assert all(user.pings for user in users)


def states(port):
    """States of the connections whose own end is this port, as netstat reads them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [state for _, local, _, state, *_ in lines if local.endswith(f":{port:04X}")]


async def all_let_go(port):
    """Wait until no connection is open, nor half closed by its client and forgotten by the relay."""
    deadline = time.monotonic() + 20.0
    while left := [state for state in states(port) if state in (ESTABLISHED, CLOSE_WAIT)]:
        assert time.monotonic() < deadline, f"after 20 s {left.count(CLOSE_WAIT)} of {len(left)} are in CLOSE_WAIT"
        await asyncio.sleep(0.02)


def rude(port, path):
    """A browser's handshake on a plain socket, which then leaves as it likes."""
    connection = socket.create_connection(("127.0.0.1", port), 20.0)
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return connection


@pytest.mark.parametrize(("service", "path"), [("status", "/r1:wepp"), ("preflight", "/r1")])
@pytest.mark.parametrize("opened", [True, False], ids=["opened", "parked"])
async def test_no_connection_stays_in_close_wait(relay, redis_server, service, path, opened):
    """Clients that send FIN and nothing else, in talk or before their answer: let go at once, not after 75 s."""
    process = relay(service, env={"REDIS_URL": redis_server.url})
    port = process.ports[service]
    if not opened:
        redis_server.pause()  # the answer waits for a SUBSCRIBE that nobody confirms
    rudes = [rude(port, path) for _ in range(20)]
    try:
        if opened:
            for connection in rudes:
                assert connection.recv(12) == b"HTTP/1.1 101"
        for connection in rudes:
            connection.shutdown(socket.SHUT_WR)
        await all_let_go(port)
    finally:
        for connection in rudes:
            connection.close()


async def test_close_wait_stays_away_under_traffic(relay, redis_url):
    """Two hundred clients come and go under a stream of messages, half of them with no word of farewell."""
    process = relay("status")
    port = process.ports["status"]
    with redis.Redis.from_url(redis_url) as worker:
        for round_ in range(10):
            rudes = [rude(port, "/r1:wepp") for _ in range(20)]
            for connection in rudes:
                assert connection.recv(12) == b"HTTP/1.1 101"
            worker.publish("r1:wepp", "x" * 1000)
            for number, connection in enumerate(rudes):
                if number % 2:
                    connection.sendall(bytes([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE8]))
                connection.close()
            assert worker.publish("r1:wepp", f"round {round_}") in (0, 1)
    await all_let_go(port)
