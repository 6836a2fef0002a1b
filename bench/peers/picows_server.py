"""picows_server.py PORT REDIS_HOST REDIS_PORT: picows, on uvloop.

A message lies in one buffer with room for the header in front: send_reuse_external_bytearray copies nothing, and is the
cheapest that picows offers for the same bytes to many. One send for each message and client: picows does not gather.
"""

import asyncio
import sys
from collections import defaultdict

import uvloop
from picows import WSListener, WSMsgType, ws_create_server
from status_feed import StatusFeed, frame_text

ROOM = 14  # bytes, for the longest header
TEXT = WSMsgType.TEXT

topics = defaultdict(set)


class Browser(WSListener):
    def __init__(self, request):
        super().__init__()
        self.topic = topics[request.path.rpartition(b"/")[2]]

    def on_ws_connected(self, transport):
        self.topic.add(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()

    def on_ws_disconnected(self, transport):
        self.topic.discard(transport)


def forward(channel, published):
    if topic := topics.get(channel):
        frame = bytearray(ROOM) + frame_text(published).encode()
        for transport in topic:
            transport.send_reuse_external_bytearray(TEXT, frame, ROOM)


async def main(port, redis_host, redis_port):
    # Ready when it listens: so the way in from Redis comes first.
    await asyncio.get_running_loop().create_connection(lambda: StatusFeed(forward), redis_host, int(redis_port))
    server = await ws_create_server(Browser, "127.0.0.1", int(port), backlog=4096)
    await server.serve_forever()


uvloop.run(main(*sys.argv[1:]))
