"""websockets_broadcast.py PORT REDIS_HOST REDIS_PORT: `websockets` with its broadcast(), on uvloop."""

import asyncio
import sys
from collections import defaultdict

import uvloop
from status_feed import StatusFeed, frame_text
from websockets.asyncio.server import broadcast, serve

topics = defaultdict(set)


async def join(connection):
    topic = topics[connection.request.path.rpartition("/")[2].encode()]
    topic.add(connection)
    try:
        async for _ in connection:
            pass
    finally:
        topic.discard(connection)


def forward(channel, published):
    if topic := topics.get(channel):
        broadcast(topic, frame_text(published))


async def main(port, redis_host, redis_port):
    # Ready when it listens: so the way in from Redis comes first.
    await asyncio.get_running_loop().create_connection(lambda: StatusFeed(forward), redis_host, int(redis_port))
    async with serve(join, "127.0.0.1", int(port), compression=None, backlog=4096) as server:
        await server.serve_forever()


uvloop.run(main(*sys.argv[1:]))
